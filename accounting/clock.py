"""The city's clock: instants are UTC cut to milliseconds, days and months are Asia/Shanghai.

MongoDB keeps milliseconds. A finer instant would come back changed, and a retry would look new, so
every instant is cut where it enters.
"""

import contextlib
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

CITY = ZoneInfo("Asia/Shanghai")
# Days and months are asked for many times of one instant: those of the last few batches are kept.
_KEPT = 8_192

_shift = timedelta(0)
_standing: datetime | None = None


def now() -> datetime:
    """The present instant, aware, UTC, cut to milliseconds."""
    return cut((_standing or datetime.now(UTC)) + _shift)


def cut(instant: datetime) -> datetime:
    """The instant in UTC without anything finer than a millisecond."""
    assert instant.tzinfo is not None, "an instant needs a timezone"
    if instant.tzinfo is UTC and not instant.microsecond % 1000:
        return instant
    return instant.astimezone(UTC).replace(microsecond=instant.microsecond // 1000 * 1000)


def iso(instant: datetime) -> str:
    """For example `2026-03-01T02:03:04.567Z`."""
    return cut(instant).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


@lru_cache(maxsize=_KEPT)
def city_day(instant: datetime) -> date:
    return instant.astimezone(CITY).date()


def city_month(instant: datetime) -> str:
    """`YYYY-MM` of the city month the instant falls in."""
    return month_of(city_day(instant))


@lru_cache(maxsize=_KEPT)
def month_of(day: date) -> str:
    return f"{day.year:04d}-{day.month:02d}"


@lru_cache(maxsize=_KEPT)
def add_months(month: str, count: int) -> str:
    """`2026-11` plus 24 is `2028-11`."""
    year, number = int(month[:4]), int(month[5:])
    index = year * 12 + number - 1 + count
    return f"{index // 12:04d}-{index % 12 + 1:02d}"


def months_of(year: int) -> tuple[str, ...]:
    return tuple(f"{year:04d}-{number:02d}" for number in range(1, 13))


def first_day(month: str) -> date:
    return date(int(month[:4]), int(month[5:]), 1)


@lru_cache(maxsize=_KEPT)
def last_day(month: str) -> date:
    return first_day(add_months(month, 1)) - timedelta(days=1)


def start_of(day: date) -> datetime:
    """The instant (UTC) at which the city day begins."""
    return datetime.combine(day, time.min, CITY).astimezone(UTC)


def end_of_month(month: str) -> datetime:
    """The first instant after the city month (UTC); lots of that month expire at it."""
    return start_of(first_day(add_months(month, 1)))


@contextlib.contextmanager
def travel(by: timedelta) -> Iterator[None]:
    """Shift the clock of this process; for tests and what-if runs only."""
    global _shift
    before = _shift
    _shift = before + by
    try:
        yield
    finally:
        _shift = before


@contextlib.contextmanager
def stand(at: datetime) -> Iterator[None]:
    """Stop the clock of this process at an instant; for tests of what happens exactly then.

    `travel` inside moves on from it. After a travel the clock runs, so an instant just before an
    edge may be past it by the time the code looks.
    """
    global _shift, _standing
    before = _shift, _standing
    _shift, _standing = timedelta(0), at
    try:
        yield
    finally:
        _shift, _standing = before
