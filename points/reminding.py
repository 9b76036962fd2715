"""Telling residents that points expire soon: 30, 7 and 1 days before their last day."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from accounting import book, clock, notices
from accounting.book import Head
from accounting.outbox import Notice
from points.lots import day_of
from points.wallet import Wallet

DAYS_BEFORE: Final = (30, 7, 1)


def remind(residents: Sequence[str]) -> int:
    """Leave the reminders that are due for some residents; returns how many are new.

    Safe to repeat. Each step of a last day is told once, with what there is at that time.
    """
    return notices.leave_new(due(book.heads(residents).values(), clock.now()))


def due(heads: Iterable[Head], now: datetime) -> list[Notice]:
    """The reminders of accounts as they stand, brought to the present. Pure."""
    today = clock.city_day(now)
    made = []
    for head in heads:
        wallet = Wallet.load(head.after)
        wallet.advance(max(now, head.recorded_at or now))
        by_day: Counter[int] = Counter()
        for lot in wallet.lots:
            by_day[lot.expires_on] += lot.points
        for number, points in sorted(by_day.items()):
            last_day = day_of(number)
            step = notices.step_of((last_day - today).days, DAYS_BEFORE)
            if step is not None:
                made.append(
                    notices.make(
                        "points_expire",
                        head.account,
                        f"points_expire/{last_day}/{step}",
                        not_before=notices.morning_of(today),
                        points=points,
                        day=last_day.isoformat(),
                    )
                )
    return made
