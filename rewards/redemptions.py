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

from accounting import accounts, book, clock, storage, sweeping
from accounting.book import Ask, Decision, Entry, Head
from accounting.errors import DomainError, KeyReused, NotFound
from accounting.ids import new_id
from footprint import grade
from points.lots import Lot, split
from points.wallet import InsufficientPoints, Wallet
from rewards import catalogue, offers, stock, vouchers
from rewards.offers import (
    DayLimitReached,
    Limit,
    LimitReached,
    MonthLimitReached,
    NotEligible,
    Reward,
    RewardUnavailable,
)
from rewards.stock import OutOfStock
from rewards.vouchers import Voucher, VoucherExpired, VoucherUsed

QUANTITY_MAX = 20
# Longer than any request may run; then the one who carried it is taken for dead.
LEASE = timedelta(minutes=1)
SWEEP_MAX = 500
ASKED, ISSUED, REFUSED = "asked", "issued", "refused"
# Cancelling: vouchers are withdrawn. Returning: points are back and stock is on its way.
CANCELLING, RETURNING, CANCELLED = "cancelling", "returning", "cancelled"
HALF_WAY = (ASKED, CANCELLING, RETURNING)


class RedemptionInProgress(DomainError):
    """Facts: retry_after (s)."""

    code = "request_in_progress"
    en = "This redemption is being worked on; ask again in {retry_after} s."
    zh = "该兑换正在处理中，请在 {retry_after} 秒后重试。"
    final = False


_REFUSALS: dict[str, type[DomainError]] = {
    refusal.__name__: refusal
    for refusal in (
        InsufficientPoints,
        OutOfStock,
        RewardUnavailable,
        NotEligible,
        LimitReached,
        DayLimitReached,
        MonthLimitReached,
    )
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
    # What its vouchers are, as the reward stood when it was asked for.
    promise = me.DictField()
    created_at = me.DateTimeField(required=True)
    # Until when somebody is carrying it; meaningless once it is final.
    leased_until = me.DateTimeField(required=True)

    meta = {
        "collection": "redemptions",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["resident", "key"], "unique": True},
            {"fields": ["resident", "_id"]},
            {"fields": ["resident", "reward_id", "created_at"]},
            {"fields": ["created_at", "state"]},
            {
                "fields": ["leased_until"],
                "name": "half_way",
                "partialFilterExpression": {"state": {"$in": list(HALF_WAY)}},
            },
        ],
    }


@dataclass(frozen=True, slots=True)
class Redemption:
    """One exchange; `promise` are the fields of `Voucher` that all its vouchers share."""

    id: str
    resident: str
    key: str
    reward_id: str
    quantity: int
    points: int
    state: str
    refusal: dict[str, Any] | None
    promise: dict[str, Any]
    created_at: datetime
    leased_until: datetime

    @property
    def month(self) -> str:
        """The city month whose stock it takes."""
        return clock.city_month(self.created_at)


def rows() -> "Collection[storage.Doc]":
    """The redemptions themselves, for figures."""
    return storage.strong(RedemptionDocument._get_collection())


def redeem(resident: str, key: str, reward_id: str, quantity: int) -> Redemption:
    """Exchange points for vouchers of a reward.

    The same key again gives the same redemption or the same refusal; with other content it raises
    `KeyReused`. Raises `NotFound`, `RewardUnavailable`, `LimitReached`, `OutOfStock` or
    `InsufficientPoints`; then points and stock are as before.
    """
    reward = catalogue.reward(reward_id)
    now = clock.now()
    grade_held, district = _standing(resident, reward)
    wanted = Redemption(
        id=new_id("rdm"),
        resident=resident,
        key=key,
        reward_id=reward_id,
        quantity=quantity,
        points=reward.price_for(grade_held) * quantity,
        state=ASKED,
        refusal=None,
        promise=_promise(reward, now),
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
                redemption = _issue(redemption, spent)
            else:
                eligible = reward.admits(grade_held, district)
                redemption = _carry_through(redemption, reward, eligible=eligible)
    return redemption


def _standing(resident: str, reward: Reward) -> tuple[str | None, str | None]:
    """The grade and the district of a resident, as far as the reward asks for them."""
    grade_held = grade.grade_now(resident).standing.grade if reward.asks_grade else None
    if not reward.districts:
        return grade_held, None
    account = accounts.get(resident)
    return grade_held, account.district if account is not None else None


def _promise(reward: Reward, asked_at: datetime) -> dict[str, Any]:
    return {
        "merchant_id": reward.merchant_id,
        "title": reward.title,
        "face_value_fen": reward.face_value_fen,
        "funder_split": [list(part) for part in reward.funder_split()],
        "store_ids": list(reward.store_ids),
        "unused": reward.unused,
        "expires_at": reward.expires_at(asked_at),
    }


def get(resident: str, redemption_id: str) -> Redemption:
    """Raises `NotFound`, also for somebody else's."""
    found = rows().find_one({"_id": redemption_id, "resident": resident})
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
    return [_redemption(row) for row in rows().find(wanted).sort("_id", -1).limit(limit)]


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
    found = rows().find(wanted).sort("leased_until", 1).limit(SWEEP_MAX)
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
        _give_back(redemption)
        _refuse(redemption, RewardUnavailable())
    else:
        _issue(redemption, last)


def _lease(redemption_id: str, *states: str) -> Redemption | None:
    """Become the one who carries a half-way redemption; None while another does.

    Returns it as it stands now: what was read before may have been carried on meanwhile.
    """
    now = clock.now()
    found = rows().find_one_and_update(
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
        rows().update_one({"_id": redemption_id}, {"$set": {"leased_until": now}})
        raise


def _ask(wanted: Redemption) -> Redemption:
    """Store the ask once per `(resident, key)`; returns what is stored."""
    document = {name: getattr(wanted, name) for name in Redemption.__slots__ if name != "id"}
    try:
        rows().insert_one({"_id": wanted.id, **document})
    except DuplicateKeyError:
        found = rows().find_one({"resident": wanted.resident, "key": wanted.key})
        assert found is not None, "redemptions are never deleted"
        return _redemption(found)
    return wanted


def _carry_through(redemption: Redemption, reward: Reward, *, eligible: bool) -> Redemption:
    try:
        # As it was when it was asked: a retry must not judge otherwise than the first try.
        if not reward.open_at(redemption.created_at):
            raise RewardUnavailable()
        if not eligible:
            raise NotEligible()
        stock.reserve(reward.id, redemption.id, redemption.quantity, redemption.month)
        try:
            spent = _spend(redemption, reward.limits_at(redemption.created_at))
        except DomainError as refusal:
            if refusal.final:
                _give_back(redemption)
            raise
    except DomainError as refusal:
        if refusal.final:
            _refuse(redemption, refusal)
        raise
    return _issue(redemption, spent)


def _give_back(redemption: Redemption) -> None:
    stock.give_back(redemption.reward_id, redemption.id, redemption.quantity, redemption.month)


def _spend(redemption: Redemption, limits: list[Limit]) -> Entry:
    posted = book.post(
        _ask_of(redemption), lambda head, now: _decide(redemption, limits, head, now)
    )
    if posted.entry.kind == "release":
        # The sweeper gave this redemption up while it was being carried through.
        raise RewardUnavailable()
    return posted.entry


def _ask_of(redemption: Redemption, kind: str = "spend") -> Ask:
    return Ask(
        account=redemption.resident,
        key=_key_of(redemption.id),
        kind=kind,
        fingerprint=book.fingerprint("redemption", redemption.id),
        occurred_at=redemption.created_at,
    )


def _decide(redemption: Redemption, limits: list[Limit], head: Head, now: datetime) -> Decision:
    """Spend, if the resident may have that many and has the points; judged on the newest state."""
    _check_limits(redemption, limits)
    wallet = Wallet.load(head.after)
    wallet.advance(now)
    taken = wallet.spend(redemption.points)
    return Decision(
        lines=tuple(wallet.lines),
        after={"wallet": wallet.dump()},
        refs={"redemption": redemption.id, "lots": [list(lot) for lot in taken]},
    )


def _check_limits(redemption: Redemption, limits: list[Limit]) -> None:
    """Raise `LimitReached` if the resident has had as many as there may be.

    Counted from the entries of the account, which is read after its head: whoever spends at the
    same time takes the sequence number, and this is judged again. The redemptions only say which
    entries there may be: each was stored before it could spend.
    """
    if not limits:
        return
    wanted = {
        "resident": redemption.resident,
        "reward_id": redemption.reward_id,
        "state": {"$nin": [REFUSED, CANCELLED]},
    }
    others = [one for one in map(_redemption, rows().find(wanted)) if one.id != redemption.id]
    had = _had(redemption.resident, others)
    for limit in limits:
        count = sum(
            had[one.id] for one in others if limit.since is None or one.created_at >= limit.since
        )
        if count + redemption.quantity > limit.most:
            raise limit.refusal(limit=limit.most)


def _had(resident: str, asked: list[Redemption]) -> dict[str, int]:
    """How many vouchers each redemption gave the resident who still has or has used them."""
    came_back = {
        _key_of_return(one.id, number): one.id
        for one in asked
        for number in range(1, one.quantity + 1)
    }
    keys = [key for one in asked for key in (_key_of(one.id), _key_of_cancel(one.id))]
    kinds = book.kinds(resident, [*keys, *came_back])
    had = {
        one.id: one.quantity
        if kinds.get(_key_of(one.id)) == "spend" and _key_of_cancel(one.id) not in kinds
        else 0
        for one in asked
    }
    for key, redemption_id in came_back.items():
        had[redemption_id] -= key in kinds
    return had


def _key_of(redemption_id: str) -> str:
    return f"redemption:{redemption_id}"


def _key_of_cancel(redemption_id: str) -> str:
    return f"redemption:{redemption_id}:cancel"


def _key_of_return(redemption_id: str, number: int) -> str:
    return f"redemption:{redemption_id}:return:{number}"


def _spent(redemption: Redemption) -> Entry | None:
    entry = book.by_key(redemption.resident, _key_of(redemption.id))
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


def _lots_of_each(spent: Entry, quantity: int) -> Iterator[list[Lot]]:
    """The lots each of a redemption's vouchers was bought with."""
    left = [Lot(*lot) for lot in spent.refs["lots"]]
    price = sum(lot.points for lot in left) // quantity
    for _ in range(quantity):
        used, left = split(left, price)
        yield used


def _by_funder(lots: list[Lot]) -> tuple[tuple[str, int], ...]:
    points: dict[str, int] = {}
    for lot in lots:
        points[lot.funder] = points.get(lot.funder, 0) + lot.points
    return tuple(points.items())


def _issue(redemption: Redemption, spent: Entry) -> Redemption:
    promise = {**redemption.promise}
    promise["funder_split"] = offers.listed(promise["funder_split"])
    promise["store_ids"] = tuple(promise["store_ids"])
    vouchers.issue(
        [
            Voucher(
                id=f"vch_{redemption.id.removeprefix('rdm_')}_{number}",
                redemption_id=redemption.id,
                resident=redemption.resident,
                reward_id=redemption.reward_id,
                status=vouchers.ISSUED,
                issued_at=redemption.created_at,
                points=_by_funder(lots),
                **promise,
            )
            for number, lots in enumerate(_lots_of_each(spent, redemption.quantity), start=1)
        ]
    )
    stock.issue(redemption.reward_id, redemption.id, redemption.quantity)
    return _set_state(redemption.id, ASKED, ISSUED)


def return_points(voucher: Voucher) -> Redemption:
    """Give back the points of a voucher that ran out unused, to their lots; safe to repeat."""
    redemption = get(voucher.resident, voucher.redemption_id)
    number = int(voucher.id.rpartition("_")[2])
    spent = _spent(redemption)
    assert spent is not None, "an issued redemption has its entry"
    lots = list(_lots_of_each(spent, redemption.quantity))[number - 1]
    refs = {"redemption": redemption.id, "voucher": voucher.id, "reason": "voucher_expired"}
    key = _key_of_return(redemption.id, number)
    book.post(
        Ask(redemption.resident, key, "release", book.fingerprint(key), voucher.expires_at),
        lambda head, now: _decide_return(lots, refs, head, now),
    )
    return redemption


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
    spent = book.by_key(redemption.resident, _key_of(redemption.id))
    assert spent is not None, "an issued redemption has its entry"
    lots = [Lot(*lot) for lot in spent.refs["lots"]]
    refs = {"redemption": redemption.id, "cancelled": True}
    book.post(
        Ask(
            account=redemption.resident,
            key=_key_of_cancel(redemption.id),
            kind="release",
            fingerprint=book.fingerprint("cancel", redemption.id),
            occurred_at=redemption.created_at,
        ),
        lambda head, now: _decide_return(lots, refs, head, now),
    )
    if redemption.state != RETURNING:
        stock.begin_return(redemption.reward_id, redemption.id, redemption.quantity)
        _set_state(redemption.id, CANCELLING, RETURNING)
    _give_back(redemption)
    return _set_state(redemption.id, RETURNING, CANCELLED)


def _decide_return(taken: list[Lot], refs: dict[str, Any], head: Head, now: datetime) -> Decision:
    wallet = Wallet.load(head.after)
    wallet.advance(now)
    wallet.reopen(taken, now)
    return Decision(tuple(wallet.lines), {"wallet": wallet.dump()}, refs)


def _refuse(redemption: Redemption, refusal: DomainError) -> None:
    told = {"name": type(refusal).__name__, "code": refusal.code, "facts": refusal.facts}
    rows().update_one(
        {"_id": redemption.id, "state": ASKED},
        {"$set": {"state": REFUSED, "refusal": told}},
    )


def _refusal_of(redemption: Redemption) -> DomainError:
    assert redemption.refusal is not None, redemption.id
    return _REFUSALS[redemption.refusal["name"]](**redemption.refusal["facts"])


def _set_state(redemption_id: str, before: str, after: str) -> Redemption:
    change: dict[str, Any] = {"state": after}
    if after not in HALF_WAY:
        change["leased_until"] = clock.now()
    rows().update_one({"_id": redemption_id, "state": before}, {"$set": change})
    found = rows().find_one({"_id": redemption_id})
    assert found is not None, redemption_id
    return _redemption(found)


def _redemption(row: storage.Doc) -> Redemption:
    fields = {name: row[name] for name in Redemption.__slots__ if name != "id"}
    return Redemption(id=row["_id"], **fields)
