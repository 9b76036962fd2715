"""A resident-month judged again under another methodology. Pure: entries in, differences out.

The entries are taken in the order of the book with the rules and counters of the intake, so under
the version they were judged by the answer is what the book says, to the milligram. What depended on
more than the month stays as it was decided then: whether the report came in time, who holds a claim
in the whole city, what an upheld appeal said, how much a household saved.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

from accounting import clock
from accounting.quantities import floor_mg
from footprint import held, methodology, rules
from footprint.held import SAME_TRIP, Meeting, Trip
from footprint.methodology import Behaviour, Methodology
from footprint.rules import Report

# Trips of the day before and of the two days after may overlap one of the month.
EDGE_BEFORE, EDGE_AFTER = timedelta(days=1), timedelta(days=2)

Refs = Mapping[str, Any]


class Worth(Protocol):
    """What the footprint asks about points, which it knows nothing of: `refs` are an entry's."""

    def points(self, refs: Refs, mg: int) -> int:
        """What milligrams are worth on the terms of an entry."""

    def payers(self, refs: Refs, points: int) -> Mapping[str, int]:
        """Who pays, or gets back, a difference in points of an entry."""


class Posted(NamedTuple):
    """An entry of the account as the book keeps it; `day` is the city day it counts on."""

    seq: int
    day: str
    recorded_on: date
    refs: Refs


class Change(NamedTuple):
    """What an entry changes in one cell of the summaries, about what entry `seq` credited.

    `points` are those that moved; `waived` are those that should have been taken back besides.
    """

    seq: int
    day: str
    behaviour: str
    evidence: str
    bank_grade: bool
    mg: int
    points: int
    activities: int
    waived: int = 0


class _Sums(NamedTuple):
    mg: int = 0
    points: int = 0
    activities: int = 0

    def plus(self, mg: int, points: int, activities: int) -> "_Sums":
        return _Sums(self.mg + mg, self.points + points, self.activities + activities)


# By the entry that credited it, and whether it counts for a bank.
_Standing = dict[tuple[int, bool], _Sums]


def window(month: str) -> tuple[date, date]:
    """The first and last day of the entries that replaying a month needs, both included."""
    return clock.first_day(month) - EDGE_BEFORE, clock.last_day(month) + EDGE_AFTER


def differences(
    posted: Iterable[Posted], month: str, rules_now: Methodology, worth: Worth
) -> list[Change]:
    """What must be added to a month so that it is what `rules_now` would have made of it.

    `posted` are the account's entries of `window(month)` in the order of the book, earlier
    restatements among them. Nothing waived; in the order of the entries they change.
    """
    entries = sorted(posted, key=lambda entry: entry.seq)
    inside = {entry.seq: entry for entry in entries if entry.day[:7] == month}
    stands = _standing(inside.values())
    wanted = _replayed(entries, month, rules_now, worth)
    changes = []
    for key in sorted(stands.keys() | wanted.keys()):
        now, then = stands.get(key, _Sums()), wanted.get(key, _Sums())
        if now != then:
            entry = inside[key[0]]
            changes.append(
                Change(
                    seq=entry.seq,
                    day=entry.day,
                    behaviour=entry.refs["behaviour"],
                    evidence=entry.refs["evidence"],
                    bank_grade=key[1],
                    mg=then.mg - now.mg,
                    points=then.points - now.points,
                    activities=then.activities - now.activities,
                )
            )
    return changes


def moved(entry_seq: int, day: str, refs: Refs) -> list[Change]:
    """What an entry changes, cell by cell: its own activity, and what it restates."""
    changes = [Change._make(row) for row in refs.get("changes", ())]
    if "behaviour" in refs:
        changes.append(
            Change(
                seq=refs.get("reverses", entry_seq),
                day=day,
                behaviour=refs["behaviour"],
                evidence=refs["evidence"],
                bank_grade=refs["bank_grade"],
                mg=refs["mg"],
                points=refs["points"],
                activities=_count_of(refs["status"]),
                # What a reversal left with the resident is settled: no restatement asks for it.
                waived=refs.get("waived", 0),
            )
        )
    return changes


def _count_of(status: str) -> int:
    return {"reversed": -1, "rejected": 0, "merged": 0}.get(status, 1)


def _standing(entries: Iterable[Posted]) -> _Standing:
    """What the book says of each activity now; what was waived counts as taken back for good."""
    sums: _Standing = {}
    for entry in entries:
        for change in moved(entry.seq, entry.day, entry.refs):
            key = (change.seq, change.bank_grade)
            points = change.points - change.waived
            sums[key] = sums.get(key, _Sums()).plus(change.mg, points, change.activities)
    return sums


def _replayed(entries: list[Posted], month: str, rules_now: Methodology, worth: Worth) -> _Standing:
    appealed = {entry.refs["activity"] for entry in entries if "appeal" in entry.refs}
    again = _Month(rules_now, appealed)
    for entry in entries:
        if "behaviour" in entry.refs:
            again.take(entry, replayed=entry.day[:7] == month)
    sums: _Standing = {}
    for seq, (was, refs) in again.outcomes.items():
        # Only what the grams are worth changes: whatever else the entry gave in points stays.
        more = worth.points(was, refs["mg"]) - worth.points(was, was["mg"])
        if refs["status"] != "reversed":
            sums[seq, refs["bank_grade"]] = _Sums(
                refs["mg"], was["points"] + more, _count_of(refs["status"])
            )
    return sums


@dataclass
class _Month:
    """The month as it fills up again, entry by entry."""

    rules_now: Methodology
    # Activities whose first entry was overruled by a later one: only the later one may credit.
    appealed: set[str]
    days: dict[str, held.Held] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    trips: dict[str, dict[int, Refs]] = field(default_factory=dict)
    # By sequence number: what the book kept, and what it would keep now.
    outcomes: dict[int, tuple[Refs, Refs]] = field(default_factory=dict)

    def take(self, entry: Posted, *, replayed: bool) -> None:
        """Judge an entry of the month again; one beside it only stands in the way of trips."""
        refs = entry.refs
        on_day = self.trips.setdefault(entry.day, {})
        if refs["status"] == "reversed":
            on_day.pop(refs["reverses"], None)
            if replayed:
                self._end(refs["reverses"], entry.day)
            return
        if not replayed:
            for seq in held.ended(refs):
                on_day.pop(seq, None)
        behaviour = self.rules_now.behaviours[refs["behaviour"]]
        outcome = refs
        if replayed:
            outcome = self._bill(entry, behaviour) if "bill" in refs else self._judge(entry)
            self._count(entry.day, outcome)
            self.outcomes[entry.seq] = (refs, outcome)
        if behaviour.is_trip and outcome["status"] in ("credited", "capped"):
            on_day[entry.seq] = refs

    def _end(self, seq: int, day: str) -> None:
        """Take back what an entry credited, because of a reversal or of better evidence."""
        was, earlier = self.outcomes[seq]
        self._count(day, held.undone(earlier))
        self.outcomes[seq] = (was, {**earlier, "status": "reversed"})

    def _count(self, day: str, refs: Refs) -> None:
        held.count(self.days.setdefault(day, {}), refs, self.rules_now)
        code = refs["behaviour"]
        self.used[code] = self.used.get(code, 0) + refs["counted"]

    def _judge(self, entry: Posted) -> Refs:
        refs = entry.refs
        behaviour = self.rules_now.behaviours[refs["behaviour"]]
        report = Report(
            behaviour=behaviour.code,
            quantity=Decimal(refs["quantity"]),
            start=refs["start"],
            end=refs["end"],
            attributes={"trip": refs["trip"]},
            same=refs["same"],
        )
        if self._refused(entry, behaviour, report):
            return {**refs, **_NOTHING}
        meeting = self._meeting(entry, behaviour, report)
        if meeting.refused is not None or meeting.into is not None:
            return {**refs, **_NOTHING}
        for trip in meeting.replaces:
            del self.trips[trip.day][trip.seq]
            self._end(trip.seq, trip.day)
        counts = held.counts(
            self.days.get(entry.day, {}),
            behaviour,
            self.rules_now,
            self.used.get(behaviour.code, 0),
            refs["same"],
        )
        credit = rules.credit(self.rules_now, behaviour, report, counts)
        highest = behaviour.formula == "capped_steps" and credit.counted
        status = "merged" if credit.merged_into else "capped" if credit.reasons else "credited"
        return {
            **refs,
            "status": status,
            "mg": credit.mg,
            "counted": credit.counted,
            "gross_mg": credit.gross_mg,
            "covered_mg": credit.covered_mg,
            "best": refs["quantity"] if highest else None,
            "overall": behaviour.dimension in self.rules_now.overall_dimensions,
            "bank_grade": self._bank_grade(entry, behaviour),
        }

    def _bill(self, entry: Posted, behaviour: Behaviour) -> Refs:
        refs = entry.refs
        share = Fraction(refs["saving"]) / refs["shares"]
        mg = floor_mg(share, behaviour.mg_num, behaviour.mg_den) if behaviour.enabled else 0
        if mg == 0:
            return {**refs, **_NOTHING}
        return {**refs, "mg": mg, "bank_grade": self._bank_grade(entry, behaviour)}

    def _bank_grade(self, entry: Posted, behaviour: Behaviour) -> bool:
        proven = behaviour.bank_grade and entry.refs["evidence"] in ("A", "B")
        return proven and not self.rules_now.past_grace(entry.recorded_on)

    def _refused(self, entry: Posted, behaviour: Behaviour, report: Report) -> bool:
        refs = entry.refs
        if "appeal" in refs:
            # Somebody looked at it and decided; of that, only a claim lost meanwhile is left.
            return "already_credited" in refs["reasons"]
        if refs["activity"] in self.appealed or "already_credited" in refs["reasons"]:
            return True
        if refs["methodology"] != self.rules_now.version:
            earlier = methodology.version(refs["methodology"])
            # What was credited although its own version would not have it was decided by a person.
            if _assess(self.rules_now, refs, report) and not _assess(earlier, refs, report):
                return True
        return False

    def _meeting(self, entry: Posted, behaviour: Behaviour, report: Report) -> Meeting:
        refs = entry.refs
        overruled = refs["overruled"] if "appeal" in refs else None
        if not behaviour.is_trip or SAME_TRIP in (overruled or ()):
            return Meeting()
        meeting = held.meet(refs, behaviour, report, entry.day, self._trips_near(report))
        return meeting if overruled is None else meeting._replace(refused=None)

    def _trips_near(self, report: Report) -> list[Trip]:
        day = clock.city_day(report.start) - timedelta(days=1)
        last = clock.city_day(report.over) + timedelta(days=1)
        found: list[Trip] = []
        while day <= last:
            name = day.isoformat()
            found += [Trip(seq, name, refs) for seq, refs in self.trips.get(name, {}).items()]
            day += timedelta(days=1)
        return found


_NOTHING: Refs = {
    "status": "rejected",
    "mg": 0,
    "counted": 0,
    "gross_mg": 0,
    "covered_mg": 0,
    "best": None,
    "overall": False,
    "bank_grade": False,
}


def _assess(version: Methodology, refs: Refs, report: Report) -> bool:
    """Whether a version would not credit a report for what it says by itself.

    It is judged as if it had arrived at once: whether it came in time was decided when it came.
    """
    behaviour = version.behaviours[report.behaviour]
    assessment = rules.assess(
        version, behaviour, report, evidence=refs["evidence"], received_at=report.over
    )
    return assessment.verdict is not None
