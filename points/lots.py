"""Points in lots: whose they are, when they mature and expire, how they lie in an entry. Pure."""

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
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
    month = clock.add_months(clock.city_month(over), EXPIRY_MONTHS)
    return ms(over + maturity), day_number(clock.last_day(month))


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


def pack_lots(lots: Iterable[Lot]) -> list[list[Any]]:
    """`[funder, expires_on, points, expires_on, points, ...]` for each funder."""
    packed: dict[str, list[Any]] = {}
    for lot in sorted(lots):
        packed.setdefault(lot.funder, [lot.funder]).extend((lot.expires_on, lot.points))
    return [packed[funder] for funder in sorted(packed)]


def unpack_lots(packed: Iterable[list[Any]]) -> list[Lot]:
    return [
        Lot(expires_on, row[0], points)
        for row in packed
        for expires_on, points in zip(row[1::2], row[2::2], strict=True)
    ]


def pack_pending(pending: Iterable[Pending]) -> list[list[Any]]:
    """`[funder, expires_on, mature_ms, points, ...]` for each funder and expiry."""
    packed: dict[tuple[str, int], list[Any]] = {}
    for row in sorted(pending):
        group = (row.funder, row.expires_on)
        packed.setdefault(group, [*group]).extend((row.mature_ms, row.points))
    return [packed[group] for group in sorted(packed)]


def unpack_pending(packed: Iterable[list[Any]]) -> list[Pending]:
    return [
        Pending(mature_ms, row[1], row[0], points)
        for row in packed
        for mature_ms, points in zip(row[2::2], row[3::2], strict=True)
    ]


def ms(instant: datetime) -> int:
    """Milliseconds since 1970."""
    return (instant - _EPOCH) // _MILLISECOND
