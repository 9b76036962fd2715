"""What an account already holds that an activity is judged against: counters and trips. Pure.

The same arithmetic judges an activity when it arrives and when its month is replayed, so the two
cannot differ. `refs` is what the book entry of an activity keeps of it.
"""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any

from footprint import rules
from footprint.methodology import Behaviour, Methodology
from footprint.rules import Counts, Report

# The counters of one city day, by behaviour, with `_overall`, `_netted` and `_stop` beside them.
Held = dict[str, Any]
Refs = Mapping[str, Any]


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
    behaviour = rules_then.behaviours[code]
    if is_netted(behaviour, rules_then):
        held["_netted"] = held.get("_netted", 0) + refs["gross_mg"]
    if behaviour.nets and refs["counted"]:
        held["_stop"] = rules.quantify(behaviour, Decimal(1)) if refs["counted"] > 0 else None


def counts(held: Held, behaviour: Behaviour, rules_then: Methodology, month_used: int) -> Counts:
    """What a day holds, as the rules ask for it; `month_used` is this behaviour's in the month."""
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
    )


def is_netted(behaviour: Behaviour, rules_then: Methodology) -> bool:
    """Whether a stop-driving day is reduced by what this behaviour earns."""
    return any(behaviour.code in other.nets for other in rules_then.behaviours.values())


def undone(refs: Refs) -> dict[str, Any]:
    """The refs of the entry that takes an activity back: the same, with the amounts negated."""
    negated = {name: -refs[name] for name in ("mg", "counted", "gross_mg")}
    return {**refs, **negated, "status": "reversed", "best": None}


def clash(
    behaviour: Behaviour, report: Report, line: str | None, trips: Iterable[Refs]
) -> str | None:
    """Why a trip cannot stand beside the others: one was boarded too soon before, or overlaps."""
    gap_min = behaviour.plausible.gap_minutes_min
    for refs in trips:
        # Line 1 of the bus is not line 1 of the metro: changing there takes no ten minutes.
        same_line = line is not None and (refs["behaviour"], refs["line"]) == (behaviour.code, line)
        if gap_min is not None and same_line:
            if abs(refs["start"] - report.start) < timedelta(minutes=gap_min):
                return "boarding_too_soon"
        if rules.overlaps(report, refs["start"], refs["end"] or refs["start"]):
            return "overlapping_trip"
    return None
