"""The catalogue: rewards of merchants, their terms, finding them.

Terms change by a guarded write on the revision that was read; what was redeemed before keeps the
terms it was asked for under. Stock is moved in `rewards/stock.py` alone.
"""

from dataclasses import asdict
from datetime import datetime
from typing import Any

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import clock, storage
from accounting.errors import AccountBusy, KeyReused, NotFound, ValidationFailed
from accounting.ids import new_id
from rewards import merchants, offers, searching
from rewards.offers import LAPSE, Reward

ATTEMPTS_MAX = 5
# What an operator may change; stock changes by deltas, see `rewards/stock.py`.
CHANGEABLE = (
    "title",
    "description",
    "category",
    "price_points",
    "prices_by_grade",
    "face_value_fen",
    "funders",
    "per_resident_limit",
    "per_day_limit",
    "per_month_limit",
    "monthly_stock",
    "grades",
    "districts",
    "store_ids",
    "voucher_valid_days",
    "unused",
    "available_from",
    "available_to",
    "paused",
    "low_stock_at",
)
_PAIRS, _LISTS = ("funders",), ("grades", "districts", "store_ids")


@storage.indexed
class RewardDocument(me.Document):
    id = me.StringField(primary_key=True)
    merchant_id = me.StringField(required=True)
    title = me.DictField(required=True)
    description = me.DictField()
    category = me.StringField()
    image = me.StringField()
    price_points = me.IntField(required=True)
    prices_by_grade = me.DictField()
    face_value_fen = me.IntField(required=True)
    funders = me.ListField(me.ListField())
    per_resident_limit = me.IntField()
    per_day_limit = me.IntField()
    per_month_limit = me.IntField()
    monthly_stock = me.IntField()
    grades = me.ListField(me.StringField())
    districts = me.ListField(me.StringField())
    store_ids = me.ListField(me.StringField())
    voucher_valid_days = me.IntField(required=True)
    unused = me.StringField(required=True)
    available_from = me.DateTimeField(required=True)
    available_to = me.DateTimeField()
    paused = me.BooleanField(required=True)
    stock_left = me.IntField(required=True)
    stock_reserved = me.IntField(required=True)
    stock_issued = me.IntField(required=True)
    # How many were taken by city month.
    taken = me.DictField()
    # Redemptions whose reservation is neither issued nor given back yet: empty but for crashes.
    in_flight = me.ListField(me.StringField())
    # The newest requests that changed the stock, so that a retry changes it once.
    stock_changes = me.ListField(me.StringField())
    low_stock_at = me.IntField()
    # Since when there are few, and the last such instant an alarm was left for.
    low_since = me.DateTimeField()
    low_told = me.DateTimeField()
    revision = me.IntField(required=True)
    # What its texts are found by.
    grams = me.ListField(me.StringField())
    # The request or row that made it and what it said, so that a retry makes no other.
    once = me.StringField()
    once_print = me.StringField()

    meta = {
        "collection": "rewards",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["merchant_id", "_id"]},
            {"fields": ["category", "_id"]},
            {"fields": ["grams", "_id"]},
            {"fields": ["once"], "unique": True, "sparse": True},
            {
                "fields": ["low_since"],
                "name": "low_stock",
                "partialFilterExpression": {"low_since": {"$type": "date"}},
            },
        ],
    }


def rows() -> "Collection[storage.Doc]":
    """The rewards themselves, for whoever moves stock."""
    return storage.strong(RewardDocument._get_collection())


def add_reward(
    *,
    merchant_id: str,
    title: dict[str, str],
    description: dict[str, str],
    price_points: int,
    face_value_fen: int,
    stock: int,
    voucher_valid_days: int,
    funder: str = "",
    once: tuple[str, str] | None = None,
    **terms: Any,
) -> Reward:
    """Add a reward of an existing merchant; `terms` are further fields of `CHANGEABLE`.

    `funder` alone stands for one that pays all. `once` is a key with the fingerprint of what was
    asked: the same again gives the first one, with other content it raises `KeyReused`. Raises
    `NotFound` for an unknown merchant and `ValidationFailed` for a store that is not its own.
    """
    reward = Reward(
        id=new_id("rwd"),
        merchant_id=merchant_id,
        title=title,
        description=description,
        category=terms.get("category", ""),
        image=None,
        price_points=price_points,
        prices_by_grade=terms.get("prices_by_grade", {}),
        face_value_fen=face_value_fen,
        funders=terms.get("funders") or ((funder, offers.WHOLE_PERCENT),),
        per_resident_limit=terms.get("per_resident_limit"),
        per_day_limit=terms.get("per_day_limit"),
        per_month_limit=terms.get("per_month_limit"),
        monthly_stock=terms.get("monthly_stock"),
        grades=tuple(terms.get("grades", ())),
        districts=tuple(terms.get("districts", ())),
        store_ids=tuple(terms.get("store_ids", ())),
        voucher_valid_days=voucher_valid_days,
        unused=terms.get("unused", LAPSE),
        available_from=terms.get("available_from") or clock.now(),
        available_to=terms.get("available_to"),
        paused=terms.get("paused", False),
        low_stock_at=terms.get("low_stock_at"),
        stock_left=stock,
        stock_reserved=0,
        stock_issued=0,
        taken={},
        revision=0,
    )
    _check_stores(reward)
    row = _document(reward) | {"in_flight": [], "stock_changes": []}
    row |= {"low_since": None, "low_told": None}
    if once is not None:
        row["once"], row["once_print"] = once
    try:
        rows().insert_one(row)
    except DuplicateKeyError:
        found = rows().find_one({"once": row["once"]})
        assert found is not None, "rewards are never deleted"
        if found["once_print"] != row["once_print"]:
            raise KeyReused(key=row["once"]) from None
        return of_row(found)
    return reward


def reward(reward_id: str) -> Reward:
    """Raises `NotFound`."""
    found = rows().find_one({"_id": reward_id})
    if found is None:
        raise NotFound()
    return of_row(found)


def many(ids: set[str]) -> dict[str, Reward]:
    return {row["_id"]: of_row(row) for row in rows().find({"_id": {"$in": sorted(ids)}})}


def change(reward_id: str, changes: dict[str, Any]) -> tuple[Reward, Reward]:
    """Change terms (fields of `CHANGEABLE`); returns the reward before and after.

    Raises `NotFound`, and `ValidationFailed` for what does not fit together afterwards.
    """
    assert set(changes) <= set(CHANGEABLE), changes
    for _ in range(ATTEMPTS_MAX):
        before = reward(reward_id)
        wanted = _changed(before, changes)
        changed = {name: _stored(getattr(wanted, name)) for name in changes}
        changed["grams"] = _grams(wanted)
        after = rows().find_one_and_update(
            {"_id": reward_id, "revision": before.revision},
            {"$set": changed, "$inc": {"revision": 1}},
            return_document=True,
        )
        if after is not None:
            return before, of_row(after)
    raise AccountBusy(retry_after=1)


def check(reward_id: str, changes: dict[str, Any]) -> None:
    """Raise what `change` would raise, and change nothing."""
    _changed(reward(reward_id), changes)


def set_image(reward_id: str, digest: str) -> None:
    """Show another picture. Raises `NotFound`."""
    if not rows().update_one({"_id": reward_id}, {"$set": {"image": digest}}).matched_count:
        raise NotFound()


def open_rewards(
    now: datetime,
    *,
    before: str | None,
    limit: int,
    text: str = "",
    category: str | None = None,
    merchant_id: str | None = None,
    most_points: int | None = None,
    grade: str | None = None,
    in_stock: bool = False,
) -> list[Reward]:
    """The rewards that can be had, newest first.

    `most_points` is the highest price for a resident of `grade`; `in_stock` leaves out what is sold
    out, for good or for this month.
    """
    wanted: dict[str, Any] = {
        "available_from": {"$lte": now},
        "paused": False,
        "$or": [{"available_to": None}, {"available_to": {"$gt": now}}],
        **_named(before, text, category, merchant_id),
    }
    conditions: list[Any] = []
    if most_points is not None:
        price: Any = "$price_points"
        if grade is not None:
            price = {"$ifNull": [f"$prices_by_grade.{grade}", "$price_points"]}
        conditions.append({"$lte": [price, most_points]})
    if in_stock:
        wanted["stock_left"] = {"$gt": 0}
        conditions.append({"$or": [
            {"$eq": ["$monthly_stock", None]},
            {"$gt": ["$monthly_stock", taken_in(clock.city_month(now))]},
        ]})  # fmt: skip
    if conditions:
        wanted["$expr"] = {"$and": conditions}
    return [of_row(row) for row in rows().find(wanted).sort("_id", -1).limit(limit)]


def all_rewards(
    *,
    before: str | None,
    limit: int,
    text: str = "",
    category: str | None = None,
    merchant_id: str | None = None,
    low_stock: bool = False,
) -> list[Reward]:
    """Every reward, newest first, or those of which few are left."""
    wanted: dict[str, Any] = _named(before, text, category, merchant_id)
    if low_stock:
        wanted["low_since"] = {"$type": "date"}
    return [of_row(row) for row in rows().find(wanted).sort("_id", -1).limit(limit)]


def taken_in(month: str) -> storage.Doc:
    """How many were taken in a city month, as MongoDB finds it."""
    return {"$ifNull": [f"$taken.{month}", 0]}


def of_row(row: storage.Doc) -> Reward:
    """A reward as MongoDB keeps it."""
    fields = {name: row[name] for name in Reward.__slots__ if name != "id"}
    fields |= {name: offers.listed(row[name]) for name in _PAIRS}
    fields |= {name: tuple(row[name]) for name in _LISTS}
    return Reward(id=row["_id"], **fields)


def _named(
    before: str | None, text: str, category: str | None, merchant_id: str | None
) -> dict[str, Any]:
    wanted: dict[str, Any] = {}
    if before is not None:
        wanted["_id"] = {"$lt": before}
    if category is not None:
        wanted["category"] = category
    if merchant_id is not None:
        wanted["merchant_id"] = merchant_id
    pieces = searching.pieces(text)
    if pieces:
        parts = {part for word in pieces for part in searching.grams_of(word)}
        wanted["grams"] = {"$all": sorted(parts)}
    return wanted


def _changed(before: Reward, changes: dict[str, Any]) -> Reward:
    fields = {name: getattr(before, name) for name in Reward.__slots__}
    fields |= {name: tuple(value) if name in _LISTS else value for name, value in changes.items()}
    wanted = Reward(**fields)
    _check_stores(wanted)
    if wanted.available_to is not None and wanted.available_to <= wanted.available_from:
        raise ValidationFailed(
            "/available_to", "Must lie after available_from.", "应晚于 available_from。"
        )
    return wanted


def _document(reward: Reward) -> storage.Doc:
    fields = {name: _stored(value) for name, value in asdict(reward).items() if name != "id"}
    return {"_id": reward.id, **fields, "grams": _grams(reward)}


def _stored(value: Any) -> Any:
    return [_stored(one) for one in value] if isinstance(value, tuple) else value


def _grams(reward: Reward) -> list[str]:
    return searching.grams(*reward.title.values(), *reward.description.values())


def _check_stores(reward: Reward) -> None:
    merchant = merchants.get(reward.merchant_id)
    if not {*reward.store_ids} <= {store.store_id for store in merchant.stores}:
        raise ValidationFailed(
            "/store_ids", "A store is not the merchant's.", "包含不属于该商户的门店。"
        )
