"""Redemptions: reserve stock, spend points, issue vouchers; every step safe to repeat.

    asked --reserve stock, spend points, issue vouchers--> issued --cancel--> cancelled
      \\--refused: stock given back

A redemption is unique on `(resident, key)` and carried by one caller at a time, under a lease. What
a crash leaves half-way the sweeper finishes when the points are spent, and releases when they are
not. To release it, it first takes the redemption's key in the book with an empty entry, so that a
request that was only slow can no longer spend.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import book, clock, storage, sweeping
from accounting.book import Ask, Decision, Entry, Head
from accounting.errors import DomainError, KeyReused, NotFound
from accounting.ids import new_id
from points.lots import Lot
from points.wallet import InsufficientPoints, Wallet
from rewards import catalogue, vouchers
from rewards.catalogue import OutOfStock, Reward, RewardUnavailable
from rewards.vouchers import Voucher, VoucherExpired, VoucherUsed

QUANTITY_MAX = 20
# Longer than any request may run; then the one who carried it is taken for dead.
LEASE = timedelta(minutes=1)
SWEEP_MAX = 500
ASKED, ISSUED, REFUSED = "asked", "issued", "refused"
# Cancelling: vouchers are withdrawn. Returning: points are back and stock is on its way.
CANCELLING, RETURNING, CANCELLED = "cancelling", "returning", "cancelled"
HALF_WAY = (ASKED, CANCELLING, RETURNING)


class LimitReached(DomainError):
    """Facts: limit."""

    code = "limit_reached"
    en = "Each resident may have {limit} of this reward."
    zh = "该奖品每人限兑 {limit} 份。"


class RedemptionInProgress(DomainError):
    """Facts: retry_after (s)."""

    code = "request_in_progress"
    en = "This redemption is being worked on; ask again in {retry_after} s."
    zh = "该兑换正在处理中，请在 {retry_after} 秒后重试。"
    final = False


_REFUSALS: dict[str, type[DomainError]] = {
    refusal.code: refusal
    for refusal in (InsufficientPoints, OutOfStock, RewardUnavailable, LimitReached)
}


@storage.indexed
class RedemptionDocument(me.Document):
    id = me.StringField(primary_key=True)
    resident = me.StringField(required=True)
    key = me.StringField(required=True)
    reward_id = me.StringField(required=True)
    quantity = me.IntField(required=True)
    points = me.IntField(required=True)
    state = me.StringField(required=True)
    refusal = me.DictField()
    created_at = me.DateTimeField(required=True)
    # Until when somebody is carrying it; meaningless once it is final.
    leased_until = me.DateTimeField(required=True)

    meta = {
        "collection": "redemptions",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["resident", "key"], "unique": True},
            {"fields": ["resident", "_id"]},
            {
                "fields": ["leased_until"],
                "name": "half_way",
                "partialFilterExpression": {"state": {"$in": list(HALF_WAY)}},
            },
        ],
    }


@dataclass(frozen=True, slots=True)
class Redemption:
    id: str
    resident: str
    key: str
    reward_id: str
    quantity: int
    points: int
    state: str
    refusal: dict[str, Any] | None
    created_at: datetime
    leased_until: datetime


def _redemptions() -> "Collection[storage.Doc]":
    return storage.strong(RedemptionDocument._get_collection())


def redeem(resident: str, key: str, reward_id: str, quantity: int) -> Redemption:
    """Exchange points for vouchers of a reward.

    The same key again gives the same redemption or the same refusal; with other content it raises
    `KeyReused`. Raises `NotFound`, `RewardUnavailable`, `LimitReached`, `OutOfStock` or
    `InsufficientPoints`; then points and stock are as before.
    """
    reward = catalogue.reward(reward_id)
    now = clock.now()
    wanted = Redemption(
        id=new_id("rdm"),
        resident=resident,
        key=key,
        reward_id=reward_id,
        quantity=quantity,
        points=reward.price_points * quantity,
        state=ASKED,
        refusal=None,
        created_at=now,
        leased_until=now + LEASE,
    )
    redemption = _ask(wanted)
    if (redemption.reward_id, redemption.quantity) != (reward_id, quantity):
        raise KeyReused(key=key)
    if redemption.state == REFUSED:
        raise _refusal_of(redemption)
    if redemption.state == ASKED:
        resumed = redemption.id != wanted.id
        if resumed and _lease(redemption.id, ASKED) is None:
            raise RedemptionInProgress(retry_after=1)
        with _let_go_on_error(redemption.id):
            spent = _spent(redemption) if resumed else None
            # What is paid for is handed over, whatever has happened to stock and dates since.
            if spent is not None:
                redemption = _issue(redemption, reward, spent)
            else:
                redemption = _carry_through(redemption, reward)
    return redemption


def get(resident: str, redemption_id: str) -> Redemption:
    """Raises `NotFound`, also for somebody else's."""
    found = _redemptions().find_one({"_id": redemption_id, "resident": resident})
    if found is None or found["state"] in (ASKED, REFUSED):
        raise NotFound()
    return _redemption(found)


def of_resident(resident: str, *, before: str | None, limit: int) -> list[Redemption]:
    """Newest first; refused and half-way ones are not shown."""
    wanted: dict[str, Any] = {
        "resident": resident,
        "state": {"$nin": [ASKED, REFUSED]},
    }
    if before is not None:
        wanted["_id"] = {"$lt": before}
    return [_redemption(row) for row in _redemptions().find(wanted).sort("_id", -1).limit(limit)]


def cancel(resident: str, redemption_id: str) -> Redemption:
    """Give unused vouchers back: the points return to the lots they came from, and so does stock.

    Raises `VoucherUsed` when one of them was scanned; then all stay as they are.
    """
    redemption = get(resident, redemption_id)
    if redemption.state == CANCELLED:
        return redemption
    if redemption.state == ISSUED:
        _set_state(redemption.id, ISSUED, CANCELLING)
    leased = _lease(redemption.id, CANCELLING, RETURNING)
    if leased is None:
        raise RedemptionInProgress(retry_after=1)
    with _let_go_on_error(redemption.id):
        return _carry_cancel(leased)


def sweep(now: datetime) -> int:
    """Finish or release what a crash left half-way; returns how many were touched."""
    wanted = {"state": {"$in": list(HALF_WAY)}, "leased_until": {"$lt": now}}
    found = _redemptions().find(wanted).sort("leased_until", 1).limit(SWEEP_MAX)
    return sweeping.each("redemption", [_redemption(row) for row in found], _finish)


def _finish(found: Redemption) -> None:
    """Bring one half-way redemption to an end, unless somebody carries it just now."""
    redemption = _lease(found.id, *HALF_WAY)
    if redemption is None:
        return
    if redemption.state != ASKED:
        # A voucher used meanwhile ends the cancellation, and that is an end as well.
        with contextlib.suppress(VoucherUsed, VoucherExpired):
            _carry_cancel(redemption)
        return
    last = _fence(redemption)
    if last.kind == "release":
        catalogue.give_back(redemption.reward_id, redemption.id, redemption.quantity)
        _refuse(redemption, RewardUnavailable())
    else:
        _issue(redemption, catalogue.reward(redemption.reward_id), last)


def _lease(redemption_id: str, *states: str) -> Redemption | None:
    """Become the one who carries a half-way redemption; None while another does.

    Returns it as it stands now: what was read before may have been carried on meanwhile.
    """
    now = clock.now()
    found = _redemptions().find_one_and_update(
        {"_id": redemption_id, "state": {"$in": states}, "leased_until": {"$lte": now}},
        {"$set": {"leased_until": now + LEASE}},
        return_document=True,
    )
    return _redemption(found) if found else None


@contextlib.contextmanager
def _let_go_on_error(redemption_id: str) -> Iterator[None]:
    """Give the lease back when carrying failed, so that a retry need not wait for its end."""
    try:
        yield
    except DomainError:
        now = clock.now()
        _redemptions().update_one({"_id": redemption_id}, {"$set": {"leased_until": now}})
        raise


def _ask(wanted: Redemption) -> Redemption:
    """Store the ask once per `(resident, key)`; returns what is stored."""
    document = {name: getattr(wanted, name) for name in Redemption.__slots__ if name != "id"}
    try:
        _redemptions().insert_one({"_id": wanted.id, **document})
    except DuplicateKeyError:
        found = _redemptions().find_one({"resident": wanted.resident, "key": wanted.key})
        assert found is not None, "redemptions are never deleted"
        return _redemption(found)
    return wanted


def _carry_through(redemption: Redemption, reward: Reward) -> Redemption:
    try:
        # As it was when it was asked: a retry must not judge otherwise than the first try.
        if not reward.open_at(redemption.created_at):
            raise RewardUnavailable()
        catalogue.reserve(reward.id, redemption.id, redemption.quantity)
        try:
            spent = _spend(redemption, reward)
        except DomainError as refusal:
            if refusal.final:
                catalogue.give_back(reward.id, redemption.id, redemption.quantity)
            raise
    except DomainError as refusal:
        if refusal.final:
            _refuse(redemption, refusal)
        raise
    return _issue(redemption, reward, spent)


def _spend(redemption: Redemption, reward: Reward) -> Entry:
    posted = book.post(
        _ask_of(redemption), lambda head, now: _decide(redemption, reward, head, now)
    )
    if posted.entry.kind == "release":
        # The sweeper gave this redemption up while it was being carried through.
        raise RewardUnavailable()
    return posted.entry


def _ask_of(redemption: Redemption, kind: str = "spend") -> Ask:
    return Ask(
        account=redemption.resident,
        key=f"redemption:{redemption.id}",
        kind=kind,
        fingerprint=book.fingerprint("redemption", redemption.id),
        occurred_at=redemption.created_at,
    )


def _decide(redemption: Redemption, reward: Reward, head: Head, now: datetime) -> Decision:
    """Spend, if the resident may have that many and has the points; judged on the newest state."""
    held = dict(head.after.get("redeemed", {}))
    limit = reward.per_resident_limit
    if limit is not None:
        if held.get(reward.id, 0) + redemption.quantity > limit:
            raise LimitReached(limit=limit)
        held[reward.id] = held.get(reward.id, 0) + redemption.quantity
    wallet = Wallet.load(head.after)
    wallet.advance(now)
    taken = wallet.spend(redemption.points)
    return Decision(
        lines=tuple(wallet.lines),
        after={"redeemed": held, "wallet": wallet.dump()},
        refs={"redemption": redemption.id, "lots": [list(lot) for lot in taken]},
    )


def _spent(redemption: Redemption) -> Entry | None:
    entry = book.by_key(redemption.resident, f"redemption:{redemption.id}")
    return entry if entry is not None and entry.kind == "spend" else None


def _fence(redemption: Redemption) -> Entry:
    """Take the redemption's key in the book with an empty `release`, unless it has its `spend`."""
    posted = book.post(
        _ask_of(redemption, "release"),
        lambda head, now: Decision(
            lines=(),
            after={},
            refs={"redemption": redemption.id},
        ),
    )
    return posted.entry


def _points_of_each(spent: Entry, quantity: int) -> Iterator[tuple[tuple[str, int], ...]]:
    """The points each of a redemption's vouchers was bought with, by the funder of their lots."""
    lots = [Lot(*lot) for lot in spent.refs["lots"]]
    price = sum(lot.points for lot in lots) // quantity
    for _ in range(quantity):
        used: dict[str, int] = {}
        left = price
        while left:
            part = min(lots[0].points, left)
            used[lots[0].funder] = used.get(lots[0].funder, 0) + part
            left -= part
            lots[0] = lots[0]._replace(points=lots[0].points - part)
            if lots[0].points == 0:
                del lots[0]
        yield tuple(used.items())


def _issue(redemption: Redemption, reward: Reward, spent: Entry) -> Redemption:
    expires_at = clock.start_of(
        clock.city_day(redemption.created_at) + timedelta(days=reward.voucher_valid_days + 1)
    )
    vouchers.issue(
        [
            Voucher(
                id=f"vch_{redemption.id.removeprefix('rdm_')}_{number}",
                redemption_id=redemption.id,
                resident=redemption.resident,
                reward_id=reward.id,
                merchant_id=reward.merchant_id,
                title=reward.title,
                face_value_fen=reward.face_value_fen,
                funder_split=((reward.funder, reward.face_value_fen),),
                status=vouchers.ISSUED,
                expires_at=expires_at,
                points=points,
            )
            for number, points in enumerate(_points_of_each(spent, redemption.quantity), start=1)
        ]
    )
    catalogue.issue(reward.id, redemption.id, redemption.quantity)
    return _set_state(redemption.id, ASKED, ISSUED)


def _carry_cancel(redemption: Redemption) -> Redemption:
    """Withdraw every voucher, return the points, return the stock; under a lease."""
    taken: list[str] = []
    for voucher in vouchers.of_redemption(redemption.id):
        try:
            if not vouchers.cancel(voucher.id, redemption.resident):
                raise VoucherUsed()
        except DomainError:
            for voucher_id in taken:
                vouchers.uncancel(voucher_id)
            _set_state(redemption.id, CANCELLING, ISSUED)
            raise
        taken.append(voucher.id)
    spent = book.by_key(redemption.resident, f"redemption:{redemption.id}")
    assert spent is not None, "an issued redemption has its entry"
    lots = [Lot(*lot) for lot in spent.refs["lots"]]
    book.post(
        Ask(
            account=redemption.resident,
            key=f"redemption:{redemption.id}:cancel",
            kind="release",
            fingerprint=book.fingerprint("cancel", redemption.id),
            occurred_at=redemption.created_at,
        ),
        lambda head, now: _decide_cancel(redemption, lots, head, now),
    )
    if redemption.state != RETURNING:
        catalogue.begin_return(redemption.reward_id, redemption.id, redemption.quantity)
        _set_state(redemption.id, CANCELLING, RETURNING)
    catalogue.give_back(redemption.reward_id, redemption.id, redemption.quantity)
    return _set_state(redemption.id, RETURNING, CANCELLED)


def _decide_cancel(redemption: Redemption, taken: list[Lot], head: Head, now: datetime) -> Decision:
    held = dict(head.after.get("redeemed", {}))
    if redemption.reward_id in held:
        held[redemption.reward_id] -= redemption.quantity
    wallet = Wallet.load(head.after)
    wallet.advance(now)
    wallet.reopen(taken, now)
    return Decision(
        lines=tuple(wallet.lines),
        after={"redeemed": held, "wallet": wallet.dump()},
        refs={"redemption": redemption.id, "cancelled": True},
    )


def _refuse(redemption: Redemption, refusal: DomainError) -> None:
    _redemptions().update_one(
        {"_id": redemption.id, "state": ASKED},
        {"$set": {"state": REFUSED, "refusal": {"code": refusal.code, "facts": refusal.facts}}},
    )


def _refusal_of(redemption: Redemption) -> DomainError:
    assert redemption.refusal is not None, redemption.id
    return _REFUSALS[redemption.refusal["code"]](**redemption.refusal["facts"])


def _set_state(redemption_id: str, before: str, after: str) -> Redemption:
    change: dict[str, Any] = {"state": after}
    if after not in HALF_WAY:
        change["leased_until"] = clock.now()
    _redemptions().update_one({"_id": redemption_id, "state": before}, {"$set": change})
    found = _redemptions().find_one({"_id": redemption_id})
    assert found is not None, redemption_id
    return _redemption(found)


def _redemption(row: storage.Doc) -> Redemption:
    fields = {name: row[name] for name in Redemption.__slots__ if name != "id"}
    return Redemption(id=row["_id"], **fields)
