"""Validation, estimation, editing of meter readings: table R5 of the design facts, pure.

The validated layer of a day is a function of the raw layers of the days around it (`BEFORE`,
`AFTER`), so the order in which readings arrive cannot matter. Each slot carries the id of the rule
that decided it. Estimates are made from actual values only, never from other estimates.

| rule | what it does here |
|---|---|
| V4 | a reading more than a minute off its slot stands in the nearest free one, flagged |
| V6 | intervals of 30 and 60 minutes are split evenly, flagged |
| V7 | a register dips by at most a tenth and less than one unit: held, flagged |
| V8 | a register passes its modulus: the difference goes on through zero |
| V9 | a register was swapped (with its event), or falls otherwise: a new segment begins |
| V10 | a negative interval is estimated |
| V11 | more than 1.2 times what the rated power allows is estimated |
| V12 | the highest of a day's values (8 or more) is over 2.8 times the third highest: to review |
| V13 | over 5 MAD (and one unit) from the slot's median in two weeks of working days: flagged |
| V14 | 24 hours the same, or zero for more than 4 hours of a shift: flagged |
| V15 | intervals and register disagree by more than one unit and 1 %: the day is flagged |
| V18 | up to 2 hours between two known values: linear |
| V19 | up to 7 days: as on the same weekday of the three weeks before; a holiday as on Sundays |
| V20 | longer, open at an end, or nothing to go by: missing |
| V3, V23 | somebody chose the other of two readings, or wrote a value, with a reason |
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

import numpy as np

from accounting.enterprise import registers, screening, workdays
from accounting.enterprise.registers import LONG_GAP, Change, Stretch
from accounting.enterprise.screening import MISSING, Amounts
from accounting.enterprise.slots import EMPTY, LETTERS, SLOTS, Quality, Row

# What a day's validated layer depends on, in days before and after it: three weeks of like days
# for a gap that begins a week earlier and whose sum a register knows; a gap of a week behind it.
BEFORE, AFTER = 28, 10
SHORT_GAP = 8
# Between two readings of a register that checks intervals, estimates are made to add up.
CHECKED_GAP = 2 * SLOTS
LIKE_DAYS = 21
CEILING = Fraction(12, 10)
ZERO_RUN = 16
SUM_TOLERANCE = Fraction(1, 100)

_ACTUAL, _EDITED = LETTERS[Quality.ACTUAL], LETTERS[Quality.EDITED]
_ESTIMATED, _MISSING = LETTERS[Quality.ESTIMATED], LETTERS[Quality.MISSING]


@dataclass(frozen=True, slots=True)
class Terms:
    """What VEE knows of a meter; quantities in its smallest unit.

    `unit` is one unit as shown (with the multiplier): differences below it are noise. `ceiling` is
    the most a slot can hold, None where no rated power says so. `register` tells what the meter's
    consumption is read from; the other channel only checks it. `shifts` holds the slots of
    scheduled work by kind of day.
    """

    register: bool
    unit: int
    modulus: int
    ceiling: int | None = None
    interval_slots: int = 1
    shifts: Mapping[int, frozenset[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RawDay:
    """What was sent of a day. `off` are readings off their slot, by slot, of the same channels."""

    values: Row = EMPTY
    reads: Row = EMPTY
    off_values: Mapping[int, int] = field(default_factory=dict)
    off_reads: Mapping[int, int] = field(default_factory=dict)
    # Slot to value, and whether it stands above an actual one.
    edits: Mapping[int, tuple[int, bool]] = field(default_factory=dict)


NOTHING = RawDay()


@dataclass(frozen=True, slots=True)
class Validated:
    """The validated layer of one day; `shown` is what `raw` means to people.

    `told` holds the rules of slots but V20, which is what a missing slot has without another.
    """

    shown: Row
    values: Row
    quality: str
    told: Mapping[int, str]
    flags: tuple[str, ...]

    @property
    def rules(self) -> Mapping[int, str]:
        return all_rules(self.quality, self.told)

    @property
    def total(self) -> int:
        return sum(filter(None, self.values))


def validate(
    terms: Terms,
    span: Sequence[RawDay],
    targets: Sequence[int],
    *,
    kinds: Sequence[int] | None = None,
    changes: Sequence[Change] = (),
) -> list[Validated]:
    """The validated layer of days of a span of consecutive days.

    `targets` are places in the span with `BEFORE` days before them and `AFTER` behind, unless
    nothing is known there. `kinds` are the kinds of the span's days (`workdays.kind_of`); without
    them its weeks are plain and it begins on a Monday.
    """
    if kinds is None:
        kinds = [day % 7 + 1 for day in range(len(span))]
    work = _Work(terms, span, kinds, changes)
    work.read()
    work.refuse()
    work.edit()
    work.flag(targets)
    work.fill({*targets})
    return work.days(targets)


def all_rules(quality: str, told: Mapping[int, str]) -> Mapping[int, str]:
    """The rules of a day's slots, V20 where a slot is missing and nothing else says why."""
    if _MISSING not in quality:
        return told
    missing = (slot for slot, letter in enumerate(quality) if letter == _MISSING)
    return dict.fromkeys(missing, "V20") | dict(told)


def spread(total: int, weights: Sequence[int]) -> list[int]:
    """`total` in proportion to the weights, evenly if all are zero; the parts add up to it."""
    assert total >= 0, total
    shares = weights if any(weights) else [1] * len(weights)
    whole, given, running = sum(shares), 0, 0
    parts = []
    for share in shares:
        running += share
        upto = total * running // whole
        parts.append(upto - given)
        given = upto
    return parts


class _Work:
    """One run over a span; slots are counted from its beginning."""

    def __init__(
        self,
        terms: Terms,
        span: Sequence[RawDay],
        kinds: Sequence[int],
        changes: Sequence[Change],
    ) -> None:
        self.terms, self.span, self.kinds, self.changes = terms, span, kinds, changes
        self.size = len(span) * SLOTS
        self.shown: list[int | None] = []
        self.values: list[int | None] = []
        # The same as an array, as it was before anything was estimated.
        self.known: Amounts = screening.amounts(())
        self.quality: list[str] = []
        self.rules: dict[int, str] = {}
        self.flags: dict[int, list[str]] = {}
        self.stretches: list[Stretch] = []
        # Slots whose own reading was refused: what the register says of them is doubted too.
        self.refused: set[int] = set()

    # --- what was sent ---

    def read(self) -> None:
        counted = registers.Counted()
        if any(day.reads is not EMPTY or day.off_reads for day in self.span):
            reads = self._placed("reads")
            counted = registers.count(
                reads, self.changes, modulus=self.terms.modulus, unit=self.terms.unit
            )
        else:
            reads = [None] * self.size
        self.stretches = counted.stretches
        if self.terms.register:
            for start, end, rule in counted.notes:
                for slot in range(start, end):
                    self._flag(slot, rule)
            for start, end in counted.broken:
                self.rules |= dict.fromkeys(range(start, end), "V9")
            self.shown = [
                None if here is None or there is None else there - here
                for here, there in pairwise([*reads, None])
            ]
            self.values = [None] * self.size
            for stretch in self.stretches:
                if stretch.end - stretch.start == 1:
                    self.values[stretch.start] = stretch.total
        else:
            self.shown = self._placed("values")
            self.values = list(self.shown)
            if self.terms.interval_slots > 1:
                self._split()

    def _placed(self, channel: str) -> list[int | None]:
        """One channel over the span, readings off their slot where it is free."""
        placed: list[int | None] = []
        watched = (channel == "reads") == self.terms.register
        for number, day in enumerate(self.span):
            row = getattr(day, channel)
            off = getattr(day, f"off_{channel}")
            if off:
                row = list(row)
                for slot, value in off.items():
                    if row[slot] is None:
                        row[slot] = value
                        if watched:
                            self._flag(number * SLOTS + slot, "V4")
            placed += row
        return placed

    def _split(self) -> None:
        """Longer intervals, evenly over their slots, the sum kept; slots of their own stay."""
        width = self.terms.interval_slots
        for start in range(0, self.size, width):
            value, rest = self.values[start], self.values[start + 1 : start + width]
            if value is None or any(one is not None for one in rest):
                continue
            sign = -1 if value < 0 else 1
            for place, part in enumerate(spread(abs(value), [1] * width), start):
                self.values[place] = sign * part
                self._flag(place, "V6")

    # --- what is refused ---

    def refuse(self) -> None:
        self.known = known = screening.amounts(self.values)
        self.quality = [_MISSING if missing else _ACTUAL for missing in (known == MISSING).tolist()]
        for slot in np.flatnonzero((known < 0) & (known != MISSING)).tolist():
            self._refuse(slot, "V10")
        if self.terms.ceiling is not None:
            most = int(CEILING * self.terms.ceiling)
            for slot in np.flatnonzero(known > most).tolist():
                self._refuse(slot, "V11")

    def _refuse(self, slot: int, rule: str) -> None:
        self.values[slot] = None
        self.known[slot] = MISSING
        self.quality[slot] = _MISSING
        self.rules[slot] = rule
        self.refused.add(slot)

    def edit(self) -> None:
        for number, day in enumerate(self.span):
            for place, (value, above) in day.edits.items():
                slot = number * SLOTS + place
                if above or self.quality[slot] == _MISSING:
                    self.values[slot] = value
                    self.known[slot] = value
                    self.quality[slot] = _EDITED
                    self.rules[slot] = "V3" if above else "V23"

    # --- what is flagged ---

    def flag(self, targets: Sequence[int]) -> None:
        by_day = self.known.reshape(-1, SLOTS)
        rows, unit = by_day[list(targets)], self.terms.unit
        for number, slot in screening.spikes(rows, unit):
            self._flag(targets[number] * SLOTS + slot, "V12")
        resting = [workdays.rests(kind) for kind in self.kinds]
        for target, slot in screening.outliers(by_day, targets, resting, unit):
            self._flag(target * SLOTS + slot, "V13")
        first = rows[:, :1]
        flat = (rows == first).all(axis=1) & (first[:, 0] != 0) & (first[:, 0] != MISSING)
        still = (rows == 0).sum(axis=1) > ZERO_RUN
        for number, target in enumerate(targets):
            if flat[number]:
                for slot in range(target * SLOTS, (target + 1) * SLOTS):
                    self._flag(slot, "V14")
            if still[number]:
                self._flag_stops(target, rows[number])
            if self.stretches and not self.terms.register:
                self._check_sums(target * SLOTS)

    def _flag_stops(self, target: int, row: Amounts) -> None:
        shift = self.terms.shifts.get(self.kinds[target], frozenset())
        run: list[int] = []
        for slot in range(SLOTS + 1):
            if slot < SLOTS and slot in shift and row[slot] == 0:
                run.append(slot)
                continue
            if len(run) > ZERO_RUN:
                for one in run:
                    self._flag(target * SLOTS + one, "V14")
            run = []

    def _check_sums(self, start: int) -> None:
        for stretch in self._around(start, start + SLOTS):
            sent = self.values[stretch.start : stretch.end]
            if None in sent:
                continue
            away = abs(sum(value for value in sent if value is not None) - stretch.total)
            if away > self.terms.unit and away > SUM_TOLERANCE * stretch.total:
                for slot in range(max(stretch.start, start), min(stretch.end, start + SLOTS)):
                    self._flag(slot, "V15")

    def _flag(self, slot: int, rule: str) -> None:
        self.flags.setdefault(slot, [])
        if rule not in self.flags[slot]:
            self.flags[slot].append(rule)

    # --- what is estimated ---

    def fill(self, targets: set[int]) -> None:
        """Estimate the gaps that reach into the targets, each as a whole."""
        shapes: dict[int, tuple[int, str]] = {}
        stretches: set[Stretch] = set()
        for start, end in self._gaps(targets):
            shapes |= self._shape(start, end)
            stretches.update(self._around(start, end))
        for stretch in stretches:
            self._scale(stretch, shapes)
        for slot, (value, rule) in shapes.items():
            self.values[slot] = value
            self.quality[slot] = _ESTIMATED
            self.rules.setdefault(slot, rule)

    def _gaps(self, targets: set[int]) -> list[tuple[int, int]]:
        """Runs of missing slots in or near the targets; a register's end where a reading is."""
        missing = np.flatnonzero(self.known == MISSING)
        if not missing.size:
            return []
        starts = np.ones(len(missing), dtype=bool)
        starts[1:] = np.diff(missing) > 1
        if self.terms.register:
            marks = [end for stretch in self.stretches for end in (stretch.start, stretch.end)]
            starts |= np.isin(missing, marks)
        begins = missing[starts].tolist()
        ends = (missing[np.append(starts[1:], True)] + 1).tolist()
        return [
            (start, end)
            for start, end in zip(begins, ends, strict=True)
            if not targets.isdisjoint(range(start // SLOTS - 2, (end - 1) // SLOTS + 3))
        ]

    def _shape(self, start: int, end: int) -> dict[int, tuple[int, str]]:
        """A gap's slots with what each would be by itself; none where nothing may be said."""
        if end - start > LONG_GAP:
            return {}
        left = self.values[start - 1] if start > 0 else None
        right = self.values[end] if end < self.size else None
        bracketed = self._bracketed(start, end)
        if left is not None and right is not None and end - start <= SHORT_GAP:
            width = end - start + 1
            return {
                slot: ((left * (end - slot) + right * (slot - start + 1)) // width, "V18")
                for slot in range(start, end)
            }
        if not bracketed and (left is None or right is None):
            return {}
        like = {slot: self._like(slot) for slot in range(start, end)}
        known = [value for value in like.values() if value is not None]
        if not bracketed:
            return {slot: (value, "V19") for slot, value in like.items() if value is not None}
        # The register knows the sum: what has no like day takes the mean of those that have.
        mean = sum(known) // len(known) if known else 1
        rule = "V18" if end - start <= SHORT_GAP else "V19"
        return {slot: (mean if value is None else value, rule) for slot, value in like.items()}

    def _bracketed(self, start: int, end: int) -> bool:
        return any(
            stretch.start <= start and end <= stretch.end and not self._doubted(stretch)
            for stretch in self._around(start, end)
        )

    def _around(self, start: int, end: int) -> list[Stretch]:
        """The stretches that have slots in `[start, end)`."""
        first = bisect_right(self.stretches, start, key=lambda stretch: stretch.end)
        last = bisect_left(self.stretches, end, key=lambda stretch: stretch.start)
        return self.stretches[first:last]

    def _like(self, slot: int) -> int | None:
        """The mean of the actual values of this slot on days of its kind in three weeks before."""
        day, place = divmod(slot, SLOTS)
        found = [
            value
            for one in range(max(0, day - LIKE_DAYS), day)
            if self.kinds[one] == self.kinds[day]
            and self.quality[there := one * SLOTS + place] == _ACTUAL
            and (value := self.values[there]) is not None
        ]
        return sum(found) // len(found) if found else None

    def _scale(self, stretch: Stretch, shapes: dict[int, tuple[int, str]]) -> None:
        """Make the estimates of a stretch add up to what the register counted."""
        slots = range(stretch.start, stretch.end)
        open_ = [slot for slot in slots if self.values[slot] is None]
        if not open_ or self._doubted(stretch) or any(slot not in shapes for slot in open_):
            return
        known = sum(value for slot in slots if (value := self.values[slot]) is not None)
        left = stretch.total - known
        if left < 0:
            for slot in open_:
                self._flag(slot, "V15")
            return
        for slot, part in zip(
            open_, spread(left, [shapes[slot][0] for slot in open_]), strict=True
        ):
            shapes[slot] = (part, shapes[slot][1])

    def _doubted(self, stretch: Stretch) -> bool:
        """A register's own step that was refused says nothing about what it should have been."""
        if self.terms.register:
            return stretch.start in self.refused
        return stretch.end - stretch.start > CHECKED_GAP

    # --- the answer ---

    def days(self, targets: Sequence[int]) -> list[Validated]:
        told: dict[int, dict[int, str]] = {target: {} for target in targets}
        flags: dict[int, set[str]] = {target: set() for target in targets}
        for slot, those in self.flags.items():
            day, place = divmod(slot, SLOTS)
            if day in told:
                flags[day].update(those)
                if self.quality[slot] != _MISSING:
                    told[day][place] = min(those, key=_order)
        for slot, rule in self.rules.items():
            day, place = divmod(slot, SLOTS)
            if day in told:
                told[day][place] = rule
        return [
            Validated(
                shown=tuple(self.shown[target * SLOTS : (target + 1) * SLOTS]),
                values=tuple(self.values[target * SLOTS : (target + 1) * SLOTS]),
                quality="".join(self.quality[target * SLOTS : (target + 1) * SLOTS]),
                told=told[target],
                flags=tuple(sorted(flags[target], key=_order)),
            )
            for target in targets
        ]


def _order(rule: str) -> int:
    return int(rule[1:])
