"""A plant's month of data as a whole: rules V16, V17 and V21, pure.

They judge what the slots cannot show by themselves: a parent meter against its children day by day,
a month's slots against the register beside them, and how much of a month was measured at all.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from fractions import Fraction

from accounting.enterprise.slots import LETTERS, SLOTS, Quality

NODE_TOLERANCE = Fraction(5, 100)
MONTH_TOLERANCE = Fraction(5, 100)
COMPLETE = Fraction(90, 100)

_ACTUAL, _MISSING = LETTERS[Quality.ACTUAL], LETTERS[Quality.MISSING]


@dataclass(frozen=True, slots=True)
class Day:
    """A meter's day: the sum of its values, and the letter of each slot's quality."""

    total: int
    quality: str


@dataclass(frozen=True, slots=True)
class Unbalanced:
    """V16: a day on which a parent meter and its children differ by more than 5 %."""

    meter: str
    day: date
    total: int
    children: int


@dataclass(frozen=True, slots=True)
class Month:
    """A meter's month. `expected` slots are those that are over.

    `register` is what the register beside the intervals counted, where it was read at both ends
    (V17); `provisional` says that less than 90 % was measured (V21).
    """

    meter: str
    total: int
    expected: int
    counts: Mapping[Quality, int]
    register: int | None

    @property
    def provisional(self) -> bool:
        return self.counts[Quality.ACTUAL] < COMPLETE * self.expected

    @property
    def disagrees(self) -> bool:
        """V17, judged only where no slot is missing."""
        if self.register is None or self.counts[Quality.MISSING]:
            return False
        return abs(self.total - self.register) > MONTH_TOLERANCE * self.register


def unbalanced(
    days: Mapping[tuple[str, date], Day], children: Mapping[str, Sequence[str]]
) -> list[Unbalanced]:
    """V16 over all days on which a parent and every child is known in each slot."""
    found = []
    for (meter, day), own in sorted(days.items()):
        below = [days.get((child, day)) for child in children.get(meter, ())]
        if not below or _MISSING in own.quality:
            continue
        whole = [one for one in below if one is not None and _MISSING not in one.quality]
        if len(whole) < len(below):
            continue
        total = sum(one.total for one in whole)
        if abs(own.total - total) > NODE_TOLERANCE * own.total:
            found.append(Unbalanced(meter, day, own.total, total))
    return found


def month(meter: str, days: Iterable[Day], expected: int, register: int | None) -> Month:
    """A meter's month from its known days, of which `expected` slots are over."""
    letters = dict.fromkeys(LETTERS.values(), 0)
    total = known = 0
    for one in days:
        total += one.total
        known += SLOTS
        for letter in letters:
            letters[letter] += one.quality.count(letter)
    # Days nobody knows of are missing; so are the slots of today that are not over, but not here.
    letters[_MISSING] += expected - known
    counts = {quality: letters[letter] for quality, letter in LETTERS.items()}
    counts[Quality.MISSING] = max(counts[Quality.MISSING], 0)
    return Month(meter, total, expected, counts, register)
