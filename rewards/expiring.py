"""Vouchers nobody used: they lapse, or their points come back, as their reward said.

    issued --time over, lapse--> expired
    issued --time over, return--> expiring --points back, stock on its way--> returning --> returned

Both wait until no scan made without network can arrive any more for a time when the voucher was
valid: so points never come back for what a shop has handed over. A refund gives a voucher a later
last day, and what is counted here is that. Each voucher coming back is carried by one at a time,
under a lease; what a crash leaves half-way the next run finishes.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from accounting import accounts, clock, notices, outbox, storage, sweeping
from rewards import redemptions, stock, vouchers
from rewards.offers import LAPSE, RETURN
from rewards.till import OFFLINE_MAX_AGE
from rewards.vouchers import (
    EXPIRED,
    EXPIRING,
    ISSUED,
    RETURN_HALF_WAY,
    RETURNED,
    RETURNING,
    Voucher,
)

# Longer than giving one voucher's points back may take; then who carried it is taken for dead.
LEASE = timedelta(minutes=1)
BATCH = 500
# Of one night: what is left is done by the next.
BATCHES_MAX = 2_000


def run(now: datetime) -> int:
    """End every voucher whose time is over; returns how many. Safe to repeat and to run twice."""
    return _in_batches(_lapse, now) + _in_batches(_return, now)


def sweep(now: datetime) -> int:
    """Finish what a crash left coming back; returns how many."""
    wanted = {"status": {"$in": list(RETURN_HALF_WAY)}, "leased_until": {"$lte": now}}
    return _carry_all(wanted)


def _in_batches(end: Callable[[datetime], int], now: datetime) -> int:
    ended = 0
    for _ in range(BATCHES_MAX):
        batch = end(now)
        ended += batch
        if batch == 0:
            break
    return ended


def _over(unused: str, now: datetime) -> dict[str, Any]:
    """Vouchers that can be used no more, not even by a scan that is still on its way."""
    return {"status": ISSUED, "unused": unused, "expires_at": {"$lte": now - OFFLINE_MAX_AGE}}


def _lapse(now: datetime) -> int:
    """Their points were spent, and stay so."""
    wanted = _over(LAPSE, now)
    ids = [row["_id"] for row in vouchers.rows().find(wanted, {"_id": 1}).limit(BATCH)]
    if not ids:
        return 0
    done = vouchers.rows().update_many(
        {"_id": {"$in": ids}, **wanted}, {"$set": {"status": EXPIRED}}
    )
    return done.modified_count


def _return(now: datetime) -> int:
    return _carry_all(_over(RETURN, now))


def _carry_all(wanted: dict[str, Any]) -> int:
    found = [vouchers.of_row(row) for row in vouchers.rows().find(wanted).limit(BATCH)]
    return sweeping.each("voucher that ran out", found, lambda one: _carry(one.id, wanted))


def _carry(voucher_id: str, wanted: dict[str, Any]) -> None:
    """Give the points of one voucher back, then its stock; unless somebody carries it just now."""
    voucher = _lease(voucher_id, wanted)
    if voucher is None:
        return
    redemption = redemptions.return_points(voucher)
    if voucher.status == EXPIRING:
        stock.begin_return(voucher.reward_id, voucher.id, 1)
        _set_status(voucher.id, EXPIRING, RETURNING)
    stock.give_back(voucher.reward_id, voucher.id, 1, redemption.month)
    _tell(voucher)
    _set_status(voucher.id, RETURNING, RETURNED)


def _tell(voucher: Voucher) -> None:
    """Leave a notification, once a voucher; nothing for an account that has closed."""
    if accounts.get(voucher.resident) is None:
        return
    points = sum(count for _, count in voucher.points)
    notice = notices.make(
        "points_returned",
        voucher.resident,
        f"came_back/{voucher.id}",
        reward=voucher.title,
        points=points,
        redemption=voucher.redemption_id,
    )
    outbox.leave(notice)


def _lease(voucher_id: str, wanted: dict[str, Any]) -> Voucher | None:
    began: storage.Doc = {"$cond": [{"$eq": ["$status", ISSUED]}, EXPIRING, "$status"]}
    found = vouchers.rows().find_one_and_update(
        {"_id": voucher_id, **wanted},
        [{"$set": {"status": began, "leased_until": clock.now() + LEASE}}],
        return_document=True,
    )
    return vouchers.of_row(found) if found else None


def _set_status(voucher_id: str, before: str, after: str) -> None:
    vouchers.rows().update_one({"_id": voucher_id, "status": before}, {"$set": {"status": after}})
