"""What a meter will say of quarter hours that are not over, from those that are. Pure.

A quarter hour that is known is taken as it is. Else the mean of the same quarter hour on the same
weekday of the four weeks before (`workdays`: a holiday is a Sunday); else of any day of these
weeks; else the mean of all that is known of them. The sun has its hours: of what it makes the last
is the nearest quarter hour that is known, four hours away at most, and beyond that nothing is
counted on. A meter of which nothing is known says nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from fractions import Fraction

from accounting import clock
from accounting.enterprise import workdays
from accounting.enterprise.slots import SLOT, SLOTS, Row, start_of_slot

HISTORY_DAYS = 28
SUN_SLOTS = 16
_DAY = timedelta(days=1)

# A quarter hour: its city day and its number on it.
Place = tuple[date, int]


class Basis(StrEnum):
    """What an expectation rests on, best first."""

    MEASURED = "measured"
    SAME_WEEKDAY = "same_weekday"
    RECENT_DAYS = "recent_days"
    RECENT_MEAN = "recent_mean"
    NEAREST_TIME = "nearest_time"


_ORDER = tuple(Basis)


@dataclass(frozen=True, slots=True)
class Expected:
    """A quantity a quarter hour, in the smallest unit of the meter, and the weakest basis."""

    quantities: tuple[Fraction, ...]
    basis: Basis


def places(begin: datetime, end: datetime) -> tuple[Place, ...]:
    """The quarter hours that `[begin, end)` touches, in order."""
    day = clock.city_day(begin)
    slot = int((begin - clock.start_of(day)) / SLOT)
    found: list[Place] = []
    while start_of_slot(day, slot) < end:
        found.append((day, slot))
        day, slot = (day, slot + 1) if slot + 1 < SLOTS else (day + _DAY, 0)
    return tuple(found)


def shares(begin: datetime, end: datetime) -> tuple[Fraction, ...]:
    """How much of each of these quarter hours lies in the span."""
    found = []
    for day, slot in places(begin, end):
        at = start_of_slot(day, slot)
        inside = min(end, at + SLOT) - max(begin, at)
        found.append(Fraction(inside // _MS, SLOT // _MS))
    return tuple(found)


def history(wanted: Iterable[Place], today: date) -> list[date]:
    """The days an expectation may look at: those asked for, and four weeks before them."""
    asked = {day for day, _ in wanted}
    newest = min(*asked, today)
    return sorted(asked | {newest - number * _DAY for number in range(HISTORY_DAYS + 1)})


def expected(
    wanted: Sequence[Place], known: Mapping[date, Row], *, sun: bool = False
) -> Expected | None:
    """The quantities of `wanted`, from the days that are known; None where nothing tells.

    `sun` is for what the sun makes.
    """
    every = [value for row in known.values() for value in row if value is not None]
    if not every:
        return None
    overall = _mean(every), Basis.RECENT_MEAN
    found: dict[tuple[int, int], tuple[Fraction, Basis]] = {}
    quantities: list[Fraction] = []
    weakest = Basis.MEASURED
    for day, slot in wanted:
        measured = known[day][slot] if day in known else None
        if measured is not None:
            quantities.append(Fraction(measured))
            continue
        like = workdays.kind_of(day), slot
        if like not in found:
            found[like] = _like(*like, known) or (_nearest(slot, known) if sun else overall)
        quantity, basis = found[like]
        quantities.append(quantity)
        weakest = max(weakest, basis, key=_ORDER.index)
    return Expected(tuple(quantities), weakest)


def _nearest(slot: int, known: Mapping[date, Row]) -> tuple[Fraction, Basis]:
    """The mean of the quarter hour nearest in the day; of two as near the later one."""
    for away in range(1, SUN_SLOTS + 1):
        for near in (slot + away, slot - away):
            told = [row[near] for row in known.values()] if 0 <= near < SLOTS else []
            there = [value for value in told if value is not None]
            if there:
                return _mean(there), Basis.NEAREST_TIME
    return Fraction(0), Basis.NEAREST_TIME


def _like(kind: int, slot: int, known: Mapping[date, Row]) -> tuple[Fraction, Basis] | None:
    there = [(day, row[slot]) for day, row in known.items()]
    same = [value for day, value in there if value is not None and workdays.kind_of(day) == kind]
    if same:
        return _mean(same), Basis.SAME_WEEKDAY
    recent = [value for _, value in there if value is not None]
    return (_mean(recent), Basis.RECENT_DAYS) if recent else None


def _mean(values: Sequence[int]) -> Fraction:
    return Fraction(sum(values), len(values))


_MS = timedelta(milliseconds=1)
