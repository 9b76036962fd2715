"""Merchants with their stores, and the rewards they accept vouchers for.

Stock lives in one document a reward: `left`, `reserved` and `issued` always sum to the total. A
reservation is one guarded update that also notes the redemption, so repeating it changes nothing.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import mongoengine as me
from pymongo.collection import Collection

from accounting import clock, storage
from accounting.errors import DomainError, NotFound
from accounting.ids import new_id


class OutOfStock(DomainError):
    code = "out_of_stock"
    en = "This reward is sold out."
    zh = "该奖品已兑完。"


class RewardUnavailable(DomainError):
    code = "reward_unavailable"
    en = "This reward cannot be had at present."
    zh = "该奖品当前不可兑换。"


@storage.indexed
class MerchantDocument(me.Document):
    id = me.StringField(primary_key=True)
    name = me.DictField(required=True)
    stores = me.ListField(me.DictField())
    fee_basis_points = me.IntField(required=True)
    created_at = me.DateTimeField(required=True)

    meta = {"collection": "merchants", "auto_create_index": False}


@storage.indexed
class RewardDocument(me.Document):
    id = me.StringField(primary_key=True)
    merchant_id = me.StringField(required=True)
    title = me.DictField(required=True)
    description = me.DictField()
    price_points = me.IntField(required=True)
    face_value_fen = me.IntField(required=True)
    funder = me.StringField(required=True)
    per_resident_limit = me.IntField()
    voucher_valid_days = me.IntField(required=True)
    available_from = me.DateTimeField(required=True)
    available_to = me.DateTimeField()
    stock_left = me.IntField(required=True)
    stock_reserved = me.IntField(required=True)
    stock_issued = me.IntField(required=True)
    # Redemptions whose reservation is neither issued nor given back yet: empty but for crashes.
    in_flight = me.ListField(me.StringField())

    meta = {
        "collection": "rewards",
        "auto_create_index": False,
        "indexes": [{"fields": ["merchant_id", "_id"]}],
    }


@dataclass(frozen=True, slots=True)
class Store:
    store_id: str
    name: str
    address: str


@dataclass(frozen=True, slots=True)
class Merchant:
    id: str
    name: dict[str, str]
    stores: tuple[Store, ...]
    fee_basis_points: int = 0


@dataclass(frozen=True, slots=True)
class Reward:
    """A reward as it stands. Prices in points, face value in fen."""

    id: str
    merchant_id: str
    title: dict[str, str]
    description: dict[str, str]
    price_points: int
    face_value_fen: int
    funder: str
    per_resident_limit: int | None
    voucher_valid_days: int
    available_from: datetime
    available_to: datetime | None
    stock_left: int
    stock_reserved: int
    stock_issued: int

    def open_at(self, now: datetime) -> bool:
        return self.available_from <= now and (self.available_to is None or now < self.available_to)


def _merchants() -> "Collection[storage.Doc]":
    return storage.strong(MerchantDocument._get_collection())


def _rewards() -> "Collection[storage.Doc]":
    return storage.strong(RewardDocument._get_collection())


def add_merchant(
    name: dict[str, str], stores: list[dict[str, str]], *, fee_basis_points: int = 0
) -> Merchant:
    """Add a merchant; each store (`name`, `address`) gets an id.

    The fee is what settlement keeps of the face value, in hundredths of a percent.
    """
    merchant = Merchant(
        id=new_id("mer"),
        name=name,
        stores=tuple(Store(new_id("sto"), store["name"], store["address"]) for store in stores),
        fee_basis_points=fee_basis_points,
    )
    _merchants().insert_one(
        {
            "_id": merchant.id,
            "name": name,
            "stores": [
                {"store_id": store.store_id, "name": store.name, "address": store.address}
                for store in merchant.stores
            ],
            "fee_basis_points": fee_basis_points,
            "created_at": clock.now(),
        }
    )
    return merchant


def merchant(merchant_id: str) -> Merchant:
    """Raises `NotFound`."""
    found = _merchants().find_one({"_id": merchant_id})
    if found is None:
        raise NotFound()
    return _merchant(found)


def merchants(ids: set[str]) -> dict[str, Merchant]:
    found = _merchants().find({"_id": {"$in": sorted(ids)}})
    return {row["_id"]: _merchant(row) for row in found}


def add_reward(
    *,
    merchant_id: str,
    title: dict[str, str],
    description: dict[str, str],
    price_points: int,
    face_value_fen: int,
    stock: int,
    voucher_valid_days: int,
    funder: str,
    per_resident_limit: int | None = None,
    available_from: datetime | None = None,
    available_to: datetime | None = None,
) -> Reward:
    """Add a reward of an existing merchant. Raises `NotFound` for an unknown one."""
    merchant(merchant_id)
    reward = Reward(
        id=new_id("rwd"),
        merchant_id=merchant_id,
        title=title,
        description=description,
        price_points=price_points,
        face_value_fen=face_value_fen,
        funder=funder,
        per_resident_limit=per_resident_limit,
        voucher_valid_days=voucher_valid_days,
        available_from=available_from or clock.now(),
        available_to=available_to,
        stock_left=stock,
        stock_reserved=0,
        stock_issued=0,
    )
    document = {name: getattr(reward, name) for name in Reward.__slots__ if name != "id"}
    _rewards().insert_one({"_id": reward.id, **document, "in_flight": []})
    return reward


def reward(reward_id: str) -> Reward:
    """Raises `NotFound`."""
    found = _rewards().find_one({"_id": reward_id})
    if found is None:
        raise NotFound()
    return _reward(found)


def open_rewards(now: datetime, *, before: str | None, limit: int) -> list[Reward]:
    """The rewards that can be had, newest first."""
    wanted: dict[str, Any] = {
        "available_from": {"$lte": now},
        "$or": [{"available_to": None}, {"available_to": {"$gt": now}}],
    }
    if before is not None:
        wanted["_id"] = {"$lt": before}
    return [_reward(row) for row in _rewards().find(wanted).sort("_id", -1).limit(limit)]


def all_rewards(*, before: str | None, limit: int) -> list[Reward]:
    """Every reward, newest first."""
    wanted = {"_id": {"$lt": before}} if before is not None else {}
    return [_reward(row) for row in _rewards().find(wanted).sort("_id", -1).limit(limit)]


def reserve(reward_id: str, redemption_id: str, quantity: int) -> None:
    """Take stock aside for a redemption; repeating it changes nothing. Raises `OutOfStock`."""
    done = _rewards().update_one(
        {"_id": reward_id, "stock_left": {"$gte": quantity}, "in_flight": {"$ne": redemption_id}},
        {
            "$inc": {"stock_left": -quantity, "stock_reserved": quantity},
            "$push": {"in_flight": redemption_id},
        },
    )
    if done.modified_count == 0 and not _in_flight(reward_id, redemption_id):
        raise OutOfStock()


def issue(reward_id: str, redemption_id: str, quantity: int) -> None:
    """Turn a reservation into issued vouchers; repeating it changes nothing."""
    _finish(reward_id, redemption_id, {"stock_issued": quantity, "stock_reserved": -quantity})


def give_back(reward_id: str, redemption_id: str, quantity: int) -> None:
    """Return a reservation to the stock; repeating it changes nothing."""
    _finish(reward_id, redemption_id, {"stock_left": quantity, "stock_reserved": -quantity})


def begin_return(reward_id: str, redemption_id: str, quantity: int) -> None:
    """Move cancelled vouchers from issued back to reserved; `give_back` then frees them."""
    _rewards().update_one(
        {"_id": reward_id, "in_flight": {"$ne": redemption_id}},
        {
            "$inc": {"stock_issued": -quantity, "stock_reserved": quantity},
            "$push": {"in_flight": redemption_id},
        },
    )


def _finish(reward_id: str, redemption_id: str, change: dict[str, int]) -> None:
    _rewards().update_one(
        {"_id": reward_id, "in_flight": redemption_id},
        {"$inc": change, "$pull": {"in_flight": redemption_id}},
    )


def _in_flight(reward_id: str, redemption_id: str) -> bool:
    wanted = {"_id": reward_id, "in_flight": redemption_id}
    return _rewards().count_documents(wanted, limit=1) == 1


def _merchant(row: storage.Doc) -> Merchant:
    stores = tuple(Store(**store) for store in row["stores"])
    return Merchant(row["_id"], row["name"], stores, row["fee_basis_points"])


def _reward(row: storage.Doc) -> Reward:
    fields = {name: row[name] for name in Reward.__slots__ if name != "id"}
    return Reward(id=row["_id"], **fields)
