"""Telling residents that a voucher they have not used ends soon: 3 days and 1 day before."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Final

from accounting import clock, notices, storage
from accounting.outbox import Notice
from rewards import vouchers
from rewards.offers import LAPSE, RETURN
from rewards.vouchers import ISSUED

DAYS_BEFORE: Final = (3, 1)
CHUNK = 500
_INSTANT = timedelta(milliseconds=1)


def remind(now: datetime) -> int:
    """Leave the reminders that are due; returns how many are new. Safe to repeat."""
    shown = dict.fromkeys(("resident", "redemption_id", "title", "expires_at"), 1)
    rows = vouchers.rows().find(ending(now), shown)
    told = 0
    while chunk := list(islice(rows, CHUNK)):
        told += notices.leave_new(_notices(chunk, now))
    return told


def ending(now: datetime) -> dict[str, Any]:
    """Which vouchers are near their end and can be used still."""
    after_last = clock.city_day(now) + timedelta(days=DAYS_BEFORE[0] + 1)
    return {
        "status": ISSUED,
        "unused": {"$in": [LAPSE, RETURN]},
        "expires_at": {"$gt": now, "$lte": clock.start_of(after_last)},
    }


def _notices(rows: Iterable[storage.Doc], now: datetime) -> list[Notice]:
    """One for each redemption and last day, however many vouchers it brought."""
    today = clock.city_day(now)
    made: dict[str, Notice] = {}
    for row in rows:
        last_day = clock.city_day(row["expires_at"] - _INSTANT)
        step = notices.step_of((last_day - today).days, DAYS_BEFORE)
        if step is None:
            continue
        dedupe = f"voucher_expires/{row['redemption_id']}/{last_day}/{step}"
        made[dedupe] = notices.make(
            "voucher_expires",
            row["resident"],
            dedupe,
            not_before=notices.morning_of(today),
            reward=row["title"],
            day=last_day.isoformat(),
            redemption=row["redemption_id"],
        )
    return list(made.values())
