"""What an account already holds that an activity is judged against: counters and trips. Pure.

The same arithmetic judges an activity when it arrives and when its month is replayed, so the two
cannot differ. `refs` is what the book entry of an activity keeps of it.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from footprint import rules
from footprint.methodology import Behaviour, Methodology
from footprint.rules import Counts, Report

# The counters of one city day, by behaviour, with `_overall`, `_netted`, `_earned` and `_stop`
# beside them: what transit was worth before a stop-driving day covered any, what both earned.
Held = dict[str, Any]
Refs = Mapping[str, Any]
# Why a record earned nothing or no more: another source told of the same trip, at least as well.
SAME_TRIP = "same_trip"


_AMOUNTS = ("mg", "counted", "gross_mg", "covered_mg")


def count(held: Held, refs: Refs, rules_then: Methodology) -> None:
    """Add one entry to the counters of its day."""
    code = refs["behaviour"]
    used, gross_mg, best, best_of = held.get(code, (0, 0, None, None))
    if refs["best"] is not None:
        best, best_of = refs["best"], refs["activity"]
    elif refs["status"] == "reversed" and refs["activity"] == best_of:
        best, best_of = None, None
    held[code] = [used + refs["counted"], gross_mg + refs["gross_mg"], best, best_of]
    if refs["overall"]:
        held["_overall"] = held.get("_overall", 0) + refs["mg"]
    if refs.get("same"):
        of_same = f"{code}/{refs['same']}"
        held[of_same] = held.get(of_same, 0) + refs["counted"]
    behaviour = rules_then.behaviours[code]
    netted = is_netted(behaviour, rules_then)
    if netted:
        held["_netted"] = held.get("_netted", 0) + refs["gross_mg"]
    if netted or behaviour.nets:
        held["_earned"] = held.get("_earned", 0) + refs["gross_mg"] - refs.get("covered_mg", 0)
    if behaviour.nets and refs["counted"]:
        held["_stop"] = rules.quantify(behaviour, Decimal(1)) if refs["counted"] > 0 else None


def counts(
    held: Held,
    behaviour: Behaviour,
    rules_then: Methodology,
    month_used: int,
    same: str | None = None,
) -> Counts:
    """What a day holds, as the rules ask for it; `month_used` is this behaviour's in the month.

    `same` is what else of the day the behaviour's own rule counts together with it.
    """
    used, mg, best, best_of = held.get(behaviour.code, (0, 0, None, None))
    return Counts(
        used=used,
        mg=mg,
        month_used=month_used,
        overall_mg=held.get("_overall", 0),
        best=Decimal(best) if best else Decimal(0),
        best_of=best_of,
        netted_mg=held.get("_netted", 0),
        stop_factor_mg=held.get("_stop") if is_netted(behaviour, rules_then) else None,
        earned_mg=held.get("_earned", 0),
        same_used=held.get(f"{behaviour.code}/{same}", 0) if same else 0,
    )


def is_netted(behaviour: Behaviour, rules_then: Methodology) -> bool:
    """Whether a stop-driving day is reduced by what this behaviour earns."""
    return behaviour.code in rules_then.netted


def undone(refs: Refs) -> dict[str, Any]:
    """The refs of the entry that takes an activity back: the same, with the amounts negated."""
    negated = {name: -refs[name] for name in _AMOUNTS if name in refs}
    kept = {name: value for name, value in refs.items() if name != "replaces"}
    return {**kept, **negated, "status": "reversed", "best": None}


def parts(refs: Refs) -> Iterator[Refs]:
    """What an entry adds to counters: what it replaces, undone, and then its own activity."""
    yield from refs.get("replaces", ())
    if "counted" in refs:
        yield refs


def ended(refs: Refs) -> list[int]:
    """The entries, by number, whose activities no longer stand after this one."""
    reverses = [refs["reverses"]] if "reverses" in refs else []
    return reverses + [one["reverses"] for one in refs.get("replaces", ())]


class Trip(NamedTuple):
    """A credited trip that stands: the number of its entry, the city day it counts on, its refs."""

    seq: int
    day: str
    refs: Refs

    @property
    def activity(self) -> str:
        return str(self.refs["activity"])

    def replaced(self) -> dict[str, Any]:
        """What the entry of a better record keeps of it: its refs undone, short of the working."""
        return {name: value for name, value in undone(self.refs).items() if name in _REPLACED} | {
            "reverses": self.seq
        }


_REPLACED = frozenset(
    (
        "activity",
        "behaviour",
        "methodology",
        "evidence",
        "status",
        "mg",
        "counted",
        "gross_mg",
        "covered_mg",
        "same",
        "overall",
        "best",
        "bank_grade",
    )
)


class Meeting(NamedTuple):
    """How a trip stands to those that are credited already.

    `twins` are records of the same trip by other sources: it is merged `into` one of them or, where
    that is None, takes the place of all. With `refused` it can do neither.
    """

    refused: str | None = None
    twins: tuple[Trip, ...] = ()
    into: Trip | None = None

    @property
    def replaces(self) -> tuple[Trip, ...]:
        return self.twins if self.into is None else ()


def meet(
    fact: Refs, behaviour: Behaviour, report: Report, day: str, trips: Iterable[Trip]
) -> Meeting:
    """Whether a trip is one of the credited ones told again, clashes with one, or stands alone.

    Two sources that tell of the same way of travelling at the same time tell of one trip. The
    better evidence counts (A over B over C over D), of equals the first. A record of another city
    day replaces nothing: which day's caps it counts in is settled with the first. `fact` is the
    trip's `source`, `line` and `evidence`.
    """
    twins: list[Trip] = []
    refused = None
    for trip in trips:
        refs = trip.refs
        if (
            refs["behaviour"] == behaviour.code
            and refs["source"] != fact["source"]
            and rules.overlaps(report, refs["start"], refs["end"] or refs["start"])
        ):
            twins.append(trip)
        else:
            refused = refused or _clash(behaviour, report, fact["line"], refs)
    if not twins:
        return Meeting(refused)
    best = min(twins, key=lambda trip: (trip.refs["evidence"], trip.seq))
    better = fact["evidence"] < best.refs["evidence"]
    replaces = better and all(trip.day == day for trip in twins)
    return Meeting(refused, tuple(twins), None if replaces else best)


def _clash(behaviour: Behaviour, report: Report, line: str | None, refs: Refs) -> str | None:
    """Why a trip cannot stand beside another: it was boarded too soon after, or overlaps."""
    gap_min = behaviour.plausible.gap_minutes_min
    # Line 1 of the bus is not line 1 of the metro: changing there takes no ten minutes.
    same_line = line is not None and (refs["behaviour"], refs["line"]) == (behaviour.code, line)
    if gap_min is not None and same_line:
        if abs(refs["start"] - report.start) < timedelta(minutes=gap_min):
            return "boarding_too_soon"
    if rules.overlaps(report, refs["start"], refs["end"] or refs["start"]):
        return "overlapping_trip"
    return None
