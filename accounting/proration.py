"""What is known of a span of days, taken by days: bills of households, entries of plants. Pure."""

from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Use:
    """What was used on the city days `first` to `last`, both included, evenly."""

    first: date
    last: date
    quantity: Decimal

    @property
    def days(self) -> int:
        return (self.last - self.first).days + 1

    def days_within(self, first: date, last: date) -> int:
        return max((min(self.last, last) - max(self.first, first)).days + 1, 0)

    def within(self, first: date, last: date) -> Fraction:
        """The part of the use that falls on the days `first` to `last`."""
        return Fraction(self.quantity) * self.days_within(first, last) / self.days

    def on(self, day: date) -> int:
        """The whole units of a day; those of all days add up to the whole units of the use."""
        upto = [self.within(self.first, one).__floor__() for one in (day, day - timedelta(days=1))]
        return upto[0] - upto[1]
