"""Stock: what of a reward is left, reserved and issued, and the alarm when few are left.

The three always sum to all there ever was. A reservation is one guarded write that also notes the
redemption, so repeating it changes nothing. Each write also says since when there are few, so that
one crossing of the threshold leaves one alarm, whoever dies in between.
"""

import contextlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import clock, storage
from accounting.errors import DomainError, NotFound
from rewards import catalogue
from rewards.offers import RewardUnavailable

TOTAL_MAX = 10_000_000
CHANGES_KEPT = 100
SWEEP_MAX = 100


class OutOfStock(DomainError):
    code = "out_of_stock"
    en = "This reward is sold out."
    zh = "该奖品已兑完。"


class StockPromised(DomainError):
    """Facts: left."""

    code = "stock_promised"
    en = "Only {left} are neither reserved nor issued; no more can be taken away."
    zh = "仅有 {left} 份尚未预留或发放，最多可减少该数量。"


class StockTooLarge(DomainError):
    """Facts: most."""

    code = "stock_too_large"
    en = "A reward has at most {most} in all."
    zh = "单个奖品库存合计不得超过 {most}。"


@storage.indexed
class StockAlarmDocument(me.Document):
    """Few were left of a reward; one row for each time."""

    id = me.StringField(primary_key=True)
    reward_id = me.StringField(required=True)
    merchant_id = me.StringField(required=True)
    title = me.DictField()
    stock_left = me.IntField(required=True)
    low_stock_at = me.IntField(required=True)
    at = me.DateTimeField(required=True)

    meta = {
        "collection": "stock_alarms",
        "auto_create_index": False,
        "indexes": [{"fields": ["at", "_id"]}],
    }


@dataclass(frozen=True, slots=True)
class StockAlarm:
    id: str
    reward_id: str
    merchant_id: str
    title: dict[str, str]
    stock_left: int
    low_stock_at: int
    at: datetime


def reserve(reward_id: str, name: str, quantity: int, month: str) -> None:
    """Take stock aside for a redemption of a city month; repeating it changes nothing.

    Raises `OutOfStock`, for good or for the month, and `RewardUnavailable` for a paused reward.
    """
    monthly = {
        "$or": [
            {"$eq": ["$monthly_stock", None]},
            {"$lte": [{"$add": [catalogue.taken_in(month), quantity]}, "$monthly_stock"]},
        ]
    }
    wanted = {
        "_id": reward_id,
        "stock_left": {"$gte": quantity},
        "in_flight": {"$ne": name},
        "paused": False,
        "$expr": monthly,
    }
    moved = _move(wanted, name, left=-quantity, reserved=quantity, month=month, begins=True)
    if not moved:
        found = catalogue.rows().find_one({"_id": reward_id}, {"in_flight": 1, "paused": 1})
        if found is None or name not in found["in_flight"]:
            raise RewardUnavailable() if found is None or found["paused"] else OutOfStock()


def issue(reward_id: str, name: str, quantity: int) -> None:
    """Turn a reservation into issued vouchers; repeating it changes nothing."""
    wanted = {"_id": reward_id, "in_flight": name}
    _move(wanted, name, issued=quantity, reserved=-quantity)


def give_back(reward_id: str, name: str, quantity: int, month: str) -> None:
    """Return a reservation to the stock, and to its month; repeating it changes nothing."""
    wanted = {"_id": reward_id, "in_flight": name}
    _move(wanted, name, left=quantity, reserved=-quantity, month=month)


def begin_return(reward_id: str, name: str, quantity: int) -> None:
    """Move vouchers that come back from issued to reserved; `give_back` then frees them."""
    wanted = {"_id": reward_id, "in_flight": {"$ne": name}}
    _move(wanted, name, issued=-quantity, reserved=quantity, begins=True)


def change(reward_id: str, delta: int, key: str | None) -> tuple[int, int]:
    """Add stock or take some away; returns how many are left before and after.

    The same `key` again changes nothing more. Raises `NotFound`, `StockPromised` when fewer are
    free, and `StockTooLarge`.
    """
    wanted = {
        "_id": reward_id,
        "stock_left": {"$gte": -delta},
        "stock_changes": {"$ne": key},
        "$expr": {
            "$lte": [
                {"$add": ["$stock_left", "$stock_reserved", "$stock_issued", delta]},
                TOTAL_MAX,
            ]
        },
    }
    kept: storage.Doc = {} if key is None else {
        "stock_changes": {
            "$slice": [{"$concatArrays": ["$stock_changes", [{"$literal": key}]]}, -CHANGES_KEPT]
        }
    }  # fmt: skip
    after = _write(wanted, {"stock_left": {"$add": ["$stock_left", delta]}, **kept})
    if after is not None:
        return after["stock_left"] - delta, after["stock_left"]
    found = catalogue.rows().find_one({"_id": reward_id})
    if found is None:
        raise NotFound()
    if key is not None and key in found["stock_changes"]:
        return found["stock_left"] - delta, found["stock_left"]
    if found["stock_left"] < -delta:
        raise StockPromised(left=found["stock_left"])
    raise StockTooLarge(most=TOTAL_MAX)


def watch(reward_id: str) -> None:
    """Say anew whether few are left, after the threshold was changed."""
    _write({"_id": reward_id}, {})


def sweep() -> int:
    """Leave the alarms that a crash kept back; returns how many."""
    untold = {"low_since": {"$type": "date"}, "$expr": {"$ne": ["$low_since", "$low_told"]}}
    found = list(catalogue.rows().find(untold).limit(SWEEP_MAX))
    for row in found:
        _tell(row)
    return len(found)


def alarms(*, before: tuple[Any, ...] | None, limit: int) -> list[StockAlarm]:
    """Alarms, newest first; `before` is (at, id) of the last one seen."""
    wanted: dict[str, Any] = {}
    if before is not None:
        at, last = before
        wanted["$or"] = [{"at": {"$lt": at}}, {"at": at, "_id": {"$lt": last}}]
    found = _alarms().find(wanted).sort([("at", -1), ("_id", -1)]).limit(limit)
    return [StockAlarm(id=row.pop("_id"), **row) for row in found]


def _move(
    wanted: storage.Doc,
    name: str,
    *,
    left: int = 0,
    reserved: int = 0,
    issued: int = 0,
    month: str | None = None,
    begins: bool = False,
) -> bool:
    """Move stock where `wanted` holds, and note or forget whose it is; whether it did."""
    assert left + reserved + issued == 0, (left, reserved, issued)
    changes: storage.Doc = {
        field: {"$add": [f"${field}", amount]}
        for field, amount in (
            ("stock_left", left), ("stock_reserved", reserved), ("stock_issued", issued),
        )
        if amount
    }  # fmt: skip
    if begins:
        changes["in_flight"] = {"$concatArrays": ["$in_flight", [name]]}
    else:
        others = {"input": "$in_flight", "cond": {"$ne": ["$$this", name]}}
        changes["in_flight"] = {"$filter": others}
    if month is not None:
        changes[f"taken.{month}"] = {"$subtract": [catalogue.taken_in(month), left]}
    return _write(wanted, changes) is not None


def _write(wanted: storage.Doc, changes: storage.Doc) -> storage.Doc | None:
    """One write with what follows for the alarm; the row afterwards, None where nothing fits."""
    few = {
        "$and": [
            {"$ne": ["$low_stock_at", None]},
            {"$lte": ["$stock_left", "$low_stock_at"]},
        ]
    }
    since = {"$cond": [few, {"$ifNull": ["$low_since", clock.now()]}, None]}
    after = catalogue.rows().find_one_and_update(
        wanted,
        [*([{"$set": changes}] if changes else []), {"$set": {"low_since": since}}],
        projection={"grams": 0},
        return_document=True,
    )
    if after is not None and after["low_since"] not in (None, after["low_told"]):
        _tell(after)
    return after


def _tell(row: storage.Doc) -> None:
    at = row["low_since"]
    alarm = {
        "_id": f"{row['_id']}:{int(at.timestamp() * 1_000)}",
        "reward_id": row["_id"],
        "merchant_id": row["merchant_id"],
        "title": row["title"],
        "stock_left": row["stock_left"],
        "low_stock_at": row["low_stock_at"],
        "at": at,
    }
    # Another request may have told it, and died before it said so.
    with contextlib.suppress(DuplicateKeyError):
        _alarms().insert_one(alarm)
    catalogue.rows().update_one({"_id": row["_id"], "low_since": at}, {"$set": {"low_told": at}})


def _alarms() -> "Collection[storage.Doc]":
    return storage.strong(StockAlarmDocument._get_collection())
