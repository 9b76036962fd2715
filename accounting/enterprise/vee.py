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
| V19 | up to 7 days: as on the same weekday of the three weeks before |
| V20 | longer, open at an end, or nothing to go by: missing |
| V3, V23 | somebody chose the other of two readings, or wrote a value, with a reason |
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from statistics import median
from typing import NamedTuple

from accounting.enterprise.slots import EMPTY, LETTERS, SLOTS, Quality, Row

# What a day's validated layer depends on, in days before and after it: three weeks of like days
# for a gap that begins two days earlier in a stretch of the register; a gap of a week behind it.
BEFORE, AFTER = 24, 10
SHORT_GAP = 8
LONG_GAP = 7 * SLOTS
# Between two readings of a register that checks intervals, estimates are made to add up.
CHECKED_GAP = 2 * SLOTS
# A reading is contradicted by one at most this much later.
LOOK_AHEAD = SLOTS
LIKE_DAYS = (7, 14, 21)
HISTORY_DAYS = 14
HISTORY_MIN = 8
CEILING = Fraction(12, 10)
SPIKE = Fraction(18, 10)
MAD_MAX = 5
ZERO_RUN = 16
DIP = Fraction(1, 10)
# Where a register must stand before and after its modulus for the step to be a rollover.
ROLLS_FROM, ROLLS_TO = Fraction(9, 10), Fraction(1, 10)
SUM_TOLERANCE = Fraction(1, 100)

_ACTUAL, _EDITED = LETTERS[Quality.ACTUAL], LETTERS[Quality.EDITED]
_ESTIMATED, _MISSING = LETTERS[Quality.ESTIMATED], LETTERS[Quality.MISSING]


class Change(NamedTuple):
    """A register was swapped between two slots: what the old one showed last, the new one first.

    `slot` counts from the first slot of the span; readings at it are of the new register.
    """

    slot: int
    old_last: int
    new_first: int


@dataclass(frozen=True, slots=True)
class Terms:
    """What VEE knows of a meter; quantities in its smallest unit.

    `unit` is one unit as shown (with the multiplier): differences below it are noise. `ceiling` is
    the most a slot can hold, None where no rated power says so. `register` tells what the meter's
    consumption is read from; the other channel only checks it. `shift[weekday]` holds the
    slots of scheduled work, by ISO weekday.
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
    """The validated layer of one day; `shown` is what `raw` means to people."""

    shown: Row
    values: Row
    quality: str
    rules: Mapping[int, str]
    flags: tuple[str, ...]

    @property
    def total(self) -> int:
        return sum(value for value in self.values if value is not None)


class _Stretch(NamedTuple):
    """Slots `[start, end)` whose sum the register knows."""

    start: int
    end: int
    total: int


def validate(
    terms: Terms,
    span: Sequence[RawDay],
    targets: Sequence[int],
    *,
    weekday: int = 1,
    changes: Sequence[Change] = (),
) -> list[Validated]:
    """The validated layer of days of a span of consecutive days.

    `targets` are places in the span with `BEFORE` days before them and `AFTER` behind, unless
    nothing is known there. `weekday` is the ISO weekday of the span's first day.
    """
    work = _Work(terms, span, weekday, changes)
    work.read()
    work.refuse()
    work.edit()
    for target in targets:
        work.flag(target)
    work.fill({*targets})
    return [work.day(target) for target in targets]


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
        self, terms: Terms, span: Sequence[RawDay], weekday: int, changes: Sequence[Change]
    ) -> None:
        self.terms, self.span, self.weekday, self.changes = terms, span, weekday, changes
        self.size = len(span) * SLOTS
        self.shown: list[int | None] = []
        self.values: list[int | None] = []
        self.quality: list[str] = []
        self.rules: dict[int, str] = {}
        self.flags: dict[int, list[str]] = {}
        self.stretches: list[_Stretch] = []
        # Slots whose own reading was refused: what the register says of them is doubted too.
        self.refused: set[int] = set()

    # --- what was sent ---

    def read(self) -> None:
        reads = self._placed("reads")
        self.stretches = self._register(reads)
        if self.terms.register:
            self.shown = [None] * self.size
            for slot in range(self.size - 1):
                here, there = reads[slot], reads[slot + 1]
                if here is not None and there is not None:
                    self.shown[slot] = there - here
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

    # --- registers ---

    def _register(self, reads: Sequence[int | None]) -> list[_Stretch]:
        """What the register says it counted between readings that follow each other."""
        stretches: list[_Stretch] = []
        known = [(slot, value) for slot, value in enumerate(reads) if value is not None]
        place = 0
        while place + 1 < len(known):
            start, before = known[place]
            behind = place + 1
            end, after = known[behind]
            if end - start > LONG_GAP:
                place = behind
                continue
            if self._contradicted(start, before, after, known, behind):
                self._note(start, end, "V9" if after < before else "V12")
                behind += 1
                end, after = known[behind]
            counted, rule = self._step(start, before, end, after)
            if rule == "V7":
                known[behind] = (end, before)
            if rule is not None:
                self._note(start, end, rule)
            if counted is None and self.terms.register:
                self.rules |= dict.fromkeys(range(start, end), "V9")
            if counted is not None:
                stretches.append(_Stretch(start, end, counted))
            place = behind
        return stretches

    def _contradicted(
        self, start: int, before: int, after: int, known: Sequence[tuple[int, int]], behind: int
    ) -> bool:
        """Whether a single reading jumps away and the next comes back to where it would be."""
        if behind + 1 >= len(known):
            return False
        end, following = known[behind + 1]
        if end - known[behind][0] > LOOK_AHEAD or end - start > LONG_GAP:
            return False
        if any(start < change.slot <= end for change in self.changes):
            return False
        if after < before:
            # After a rollover the next one would be small too.
            return before - after >= self.terms.unit and following >= before
        return before <= following < after and after - following >= self.terms.unit

    def _rolls(self, before: int, after: int) -> bool:
        modulus = self.terms.modulus
        return before >= ROLLS_FROM * modulus and after <= ROLLS_TO * modulus

    def _step(self, start: int, before: int, end: int, after: int) -> tuple[int | None, str | None]:
        """What was counted from one reading to the next, and the rule if it is not plain."""
        swaps = [change for change in self.changes if start < change.slot <= end]
        if swaps:
            counted = 0
            for swap in swaps:
                counted += swap.old_last - before
                before = swap.new_first
            counted += after - before
            return (counted if counted >= 0 else None), "V9"
        if after >= before:
            return after - before, None
        if before - after <= DIP * before and before - after < self.terms.unit:
            return 0, "V7"
        if self._rolls(before, after):
            return after + self.terms.modulus - before, "V8"
        return None, "V9"

    def _note(self, start: int, end: int, rule: str) -> None:
        if self.terms.register:
            for slot in range(start, end):
                self._flag(slot, rule)

    # --- what is refused ---

    def refuse(self) -> None:
        ceiling = self.terms.ceiling
        most = None if ceiling is None else CEILING * ceiling
        self.quality = []
        for slot, value in enumerate(self.values):
            if value is not None and value < 0:
                self._refuse(slot, "V10")
            elif value is not None and most is not None and value > most:
                self._refuse(slot, "V11")
            self.quality.append(_MISSING if self.values[slot] is None else _ACTUAL)

    def _refuse(self, slot: int, rule: str) -> None:
        self.values[slot] = None
        self.rules[slot] = rule
        self.refused.add(slot)

    def edit(self) -> None:
        for number, day in enumerate(self.span):
            for place, (value, above) in day.edits.items():
                slot = number * SLOTS + place
                if above or self.quality[slot] == _MISSING:
                    self.values[slot] = value
                    self.quality[slot] = _EDITED
                    self.rules[slot] = "V3" if above else "V23"

    # --- what is flagged ---

    def flag(self, target: int) -> None:
        start = target * SLOTS
        row = self.values[start : start + SLOTS]
        known = sorted([(value, -slot) for slot, value in enumerate(row) if value is not None])
        if len(known) >= HISTORY_MIN:
            third, (most, place) = known[-3][0], known[-1]
            if most > self.terms.unit and third > 0 and most - third > SPIKE * third:
                self._flag(start - place, "V12")
        self._flag_outliers(target, row)
        if None not in row and row[0] and len({*row}) == 1:
            for slot in range(start, start + SLOTS):
                self._flag(slot, "V14")
        self._flag_stops(target, row)
        if not self.terms.register:
            self._check_sums(start)

    def _flag_outliers(self, target: int, row: Sequence[int | None]) -> None:
        # A Sunday is no outlier among working days; of its own kind two weeks hold too few.
        rest = self._rests(target)
        days = [
            day for day in range(max(0, target - HISTORY_DAYS), target) if self._rests(day) == rest
        ]
        if len(days) < HISTORY_MIN:
            return
        columns = [self.values[day * SLOTS : (day + 1) * SLOTS] for day in days]
        for slot, value in enumerate(row):
            if value is None:
                continue
            history = [one for column in columns if (one := column[slot]) is not None]
            if len(history) < HISTORY_MIN:
                continue
            middle = median(history)
            away = abs(value - middle)
            # Most values are near: the deviation is only worth its sorting for those that are not.
            if away > self.terms.unit:
                deviation = median([abs(one - middle) for one in history])
                if 0 < MAD_MAX * deviation < away:
                    self._flag(target * SLOTS + slot, "V13")

    def _rests(self, day: int) -> bool:
        return (self.weekday - 1 + day) % 7 >= 5

    def _flag_stops(self, target: int, row: Sequence[int | None]) -> None:
        shift = self.terms.shifts.get((self.weekday - 1 + target) % 7 + 1, frozenset())
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
        stretches: set[_Stretch] = set()
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
        own = self.stretches if self.terms.register else []
        marks = {stretch.start for stretch in own} | {stretch.end for stretch in own}
        gaps: list[tuple[int, int]] = []
        slot = 0
        while slot < self.size:
            if self.values[slot] is not None:
                slot += 1
                continue
            start = slot
            slot += 1
            while slot < self.size and self.values[slot] is None and slot not in marks:
                slot += 1
            near = range(start // SLOTS - 2, (slot - 1) // SLOTS + 3)
            if not targets.isdisjoint(near):
                gaps.append((start, slot))
        return gaps

    def _shape(self, start: int, end: int) -> dict[int, tuple[int, str]]:
        """A gap's slots with what each would be by itself; none where nothing may be said."""
        left = self.values[start - 1] if start > 0 else None
        right = self.values[end] if end < self.size else None
        bracketed = self._bracketed(start, end)
        if end - start > LONG_GAP:
            return {}
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

    def _around(self, start: int, end: int) -> list[_Stretch]:
        """The stretches that have slots in `[start, end)`."""
        first = bisect_right(self.stretches, start, key=lambda stretch: stretch.end)
        last = bisect_left(self.stretches, end, key=lambda stretch: stretch.start)
        return self.stretches[first:last]

    def _like(self, slot: int) -> int | None:
        """The mean of the actual values of this slot on the same weekday of three weeks before."""
        found = [
            value
            for days in LIKE_DAYS
            if (place := slot - days * SLOTS) >= 0
            and self.quality[place] == _ACTUAL
            and (value := self.values[place]) is not None
        ]
        return sum(found) // len(found) if found else None

    def _scale(self, stretch: _Stretch, shapes: dict[int, tuple[int, str]]) -> None:
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

    def _doubted(self, stretch: _Stretch) -> bool:
        """A register's own step that was refused says nothing about what it should have been."""
        if self.terms.register:
            return stretch.start in self.refused
        return stretch.end - stretch.start > CHECKED_GAP

    # --- the answer ---

    def day(self, target: int) -> Validated:
        start = target * SLOTS
        slots = range(start, start + SLOTS)
        rules: dict[int, str] = {}
        for slot in slots:
            if slot in self.rules:
                rules[slot - start] = self.rules[slot]
            elif self.quality[slot] == _MISSING:
                rules[slot - start] = "V20"
            elif slot in self.flags:
                rules[slot - start] = min(self.flags[slot], key=_order)
        flags = {rule for slot in slots for rule in self.flags.get(slot, ())}
        return Validated(
            shown=tuple(self.shown[start : start + SLOTS]),
            values=tuple(self.values[start : start + SLOTS]),
            quality="".join(self.quality[start : start + SLOTS]),
            rules=rules,
            flags=tuple(sorted(flags, key=_order)),
        )


def _order(rule: str) -> int:
    return int(rule[1:])
