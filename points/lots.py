"""Points in lots: whose they are, when they mature and expire, how they lie in an entry. Pure."""

from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple

from accounting import clock

EXPIRY_MONTHS = 24

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


class Lot(NamedTuple):
    """Points of one funder, usable up to and including a city day, written as YYYYMMDD."""

    expires_on: int
    funder: str
    points: int


class Pending(NamedTuple):
    """Points that mature at an instant (milliseconds since 1970) and then join a lot."""

    mature_ms: int
    expires_on: int
    funder: str
    points: int


class Hold(NamedTuple):
    """Points set aside until an instant (milliseconds since 1970), in the lots they came from."""

    id: str
    until_ms: int
    lots: tuple[Lot, ...]

    @property
    def points(self) -> int:
        return sum(lot.points for lot in self.lots)


class ReversalPolicy(StrEnum):
    """How far taking an activity back may reach; its crediting entry names it."""

    PENDING_ONLY = "pending_only"  # What has matured stays with the resident.
    WITHIN_BALANCE = "within_balance"  # What was spent stays, and nothing becomes owed.
    OWED = "owed"  # What is not there any more is recovered from later earnings.


def day_number(day: date) -> int:
    """A city day as YYYYMMDD, in the order of days; a quarter of the bytes of its name."""
    return day.year * 10_000 + day.month * 100 + day.day


def day_of(number: int) -> date:
    """The city day of its number."""
    return date(number // 10_000, number // 100 % 100, number % 100)


def terms(over: datetime, maturity: timedelta) -> tuple[int, int]:
    """When points of something mature (ms since 1970), and the number of the day they expire on."""
    return ms(over + maturity), expiry(clock.city_day(over))


@lru_cache(maxsize=1_024)
def expiry(day: date) -> int:
    """The number of the day on which points of something of this day expire."""
    month = clock.add_months(clock.month_of(day), EXPIRY_MONTHS)
    return day_number(clock.last_day(month))


def nearness(row: Lot | Pending, own: Pending) -> tuple[Any, ...]:
    """How near points are to those of an earning; the nearest is taken back first."""
    is_lot = isinstance(row, Lot)
    return (
        not is_lot and row[:3] == own[:3],
        is_lot and row[:2] == own[1:3],
        row.funder == own.funder,
        row.expires_on,
        is_lot,
        row.funder,
        row,
    )


def split(lots: Iterable[Lot], points: int) -> tuple[list[Lot], list[Lot]]:
    """Lots parted at a number of points, first expiring first: those before, those after."""
    before: list[Lot] = []
    after: list[Lot] = []
    for lot in sorted(lots):
        part = min(lot.points, points)
        points -= part
        if part:
            before.append(lot._replace(points=part))
        if part < lot.points:
            after.append(lot._replace(points=lot.points - part))
    return before, after


def pack_lots(lots: Mapping[tuple[int, str], int]) -> list[list[Any]]:
    """`[funder, expires_on, points, expires_on, points, ...]` for each funder."""
    packed: dict[str, list[Any]] = {}
    for key in sorted(lots):
        expires_on, funder = key
        if funder not in packed:
            packed[funder] = [funder]
        packed[funder] += (expires_on, lots[key])
    return [packed[funder] for funder in sorted(packed)]


def unpack_lots(packed: Iterable[list[Any]]) -> dict[tuple[int, str], int]:
    """Points by day of expiry and funder."""
    return {
        (expires_on, row[0]): points
        for row in packed
        for expires_on, points in zip(row[1::2], row[2::2], strict=True)
    }


def pack_pending(pending: Mapping[tuple[int, int, str], int]) -> list[list[Any]]:
    """`[funder, expires_on, mature_ms, points, ...]` for each funder and expiry."""
    packed: dict[tuple[str, int], list[Any]] = {}
    for key in sorted(pending):
        mature_ms, expires_on, funder = key
        group = (funder, expires_on)
        if group not in packed:
            packed[group] = [funder, expires_on]
        packed[group] += (mature_ms, pending[key])
    return [packed[group] for group in sorted(packed)]


def unpack_pending(packed: Iterable[list[Any]]) -> dict[tuple[int, int, str], int]:
    """Points by instant of maturity, day of expiry and funder."""
    return {
        (mature_ms, row[1], row[0]): points
        for row in packed
        for mature_ms, points in zip(row[2::2], row[3::2], strict=True)
    }


@lru_cache(maxsize=1_024)
def ms(instant: datetime) -> int:
    """Milliseconds since 1970."""
    return (instant - _EPOCH) // _MILLISECOND
