"""What a register counted between its readings: rules V7, V8 and V9, and readings that are wrong.

Pure. Readings are given slot by slot, as the register stood when the slot began, multiplied.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from accounting.enterprise.slots import SLOTS

# Of a longer silence the difference says too little about each of its days.
LONG_GAP = 7 * SLOTS
# A reading is contradicted by one at most this much later.
LOOK_AHEAD = SLOTS
DIP = Fraction(1, 10)
# Where a register must stand before and after its modulus for the step to be a rollover.
ROLLS_FROM, ROLLS_TO = Fraction(9, 10), Fraction(1, 10)


class Change(NamedTuple):
    """A register was swapped between two slots: what the old one showed last, the new one first.

    `slot` counts from the first slot of the span; readings at it are of the new register.
    """

    slot: int
    old_last: int
    new_first: int


class Stretch(NamedTuple):
    """Slots `[start, end)` whose sum the register knows."""

    start: int
    end: int
    total: int


@dataclass(slots=True)
class Counted:
    """What a register says, the rules that were needed for it, and where it says nothing."""

    stretches: list[Stretch] = field(default_factory=list)
    notes: list[tuple[int, int, str]] = field(default_factory=list)
    broken: list[tuple[int, int]] = field(default_factory=list)


def count(
    reads: Sequence[int | None], changes: Sequence[Change], *, modulus: int, unit: int
) -> Counted:
    """What was counted between readings that follow each other."""
    known = [(slot, value) for slot, value in enumerate(reads) if value is not None]
    if not changes and all(one <= other for (_, one), (_, other) in pairwise(known)):
        # Nothing but growth, as nearly always: each step is what was counted.
        return Counted(
            [
                Stretch(start, end, after - before)
                for (start, before), (end, after) in pairwise(known)
                if end - start <= LONG_GAP
            ]
        )
    return _Count(changes, modulus, unit).walk(known)


class _Count:
    def __init__(self, changes: Sequence[Change], modulus: int, unit: int) -> None:
        self.changes, self.modulus, self.unit = changes, modulus, unit

    def walk(self, known: list[tuple[int, int]]) -> Counted:
        made = Counted()
        place = 0
        while place + 1 < len(known):
            start, before = known[place]
            behind = place + 1
            end, after = known[behind]
            if end - start > LONG_GAP:
                place = behind
                continue
            if self._contradicted(start, before, after, known, behind):
                made.notes.append((start, end, "V9" if after < before else "V12"))
                behind += 1
                end, after = known[behind]
            counted, rule = self._step(start, before, end, after)
            if rule == "V7":
                known[behind] = (end, before)
            if rule is not None:
                made.notes.append((start, end, rule))
            if counted is None:
                made.broken.append((start, end))
            else:
                made.stretches.append(Stretch(start, end, counted))
            place = behind
        return made

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
            return before - after >= self.unit and following >= before
        return before <= following < after and after - following >= self.unit

    def _rolls(self, before: int, after: int) -> bool:
        return before >= ROLLS_FROM * self.modulus and after <= ROLLS_TO * self.modulus

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
        if before - after <= DIP * before and before - after < self.unit:
            return 0, "V7"
        if self._rolls(before, after):
            return after + self.modulus - before, "V8"
        return None, "V9"
