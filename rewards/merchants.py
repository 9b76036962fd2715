"""Merchants with their stores.

A store that closes stays known: vouchers were used there, and statements name it. What tills ask at
every scan, whose store that is, each process knows for some seconds.
"""

import time
from dataclasses import asdict, dataclass
from typing import Any

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import clock, storage
from accounting.errors import AccountBusy, DomainError, NotFound
from accounting.ids import new_id

STORES_MAX = 500
# How long a store that has closed may still take vouchers, at a till of another process.
REFRESH_S = 5.0
KNOWN_MAX = 10_000
ATTEMPTS_MAX = 5


class TooManyStores(DomainError):
    """Facts: most."""

    code = "too_many_stores"
    en = "A merchant has at most {most} stores."
    zh = "每个商户最多 {most} 家门店。"


class TooManyCredentials(DomainError):
    """Facts: most."""

    code = "too_many_credentials"
    en = "A merchant has at most {most} credentials."
    zh = "每个商户最多 {most} 个接入凭证。"


@storage.indexed
class MerchantDocument(me.Document):
    id = me.StringField(primary_key=True)
    name = me.DictField(required=True)
    stores = me.ListField(me.DictField())
    fee_basis_points = me.IntField(required=True)
    revision = me.IntField(required=True)
    created_at = me.DateTimeField(required=True)
    # The request that made it, so that a retry makes no other.
    once = me.StringField()

    meta = {
        "collection": "merchants",
        "auto_create_index": False,
        "indexes": [{"fields": ["once"], "unique": True, "sparse": True}],
    }


@dataclass(frozen=True, slots=True)
class Store:
    store_id: str
    name: str
    address: str
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Merchant:
    """The fee is what settlement keeps of the face value, in hundredths of a percent."""

    id: str
    name: dict[str, str]
    stores: tuple[Store, ...]
    fee_basis_points: int = 0
    revision: int = 0

    @property
    def open_stores(self) -> tuple[Store, ...]:
        return tuple(store for store in self.stores if not store.closed)

    def has(self, store_id: str) -> bool:
        """Whether a store is this merchant's and open."""
        return any(store.store_id == store_id for store in self.open_stores)


_known: dict[str, tuple[float, Merchant]] = {}


def add(
    name: dict[str, str],
    stores: list[dict[str, str]],
    *,
    fee_basis_points: int = 0,
    once: str | None = None,
) -> Merchant:
    """Add a merchant; each store (`name`, `address`) gets an id.

    The same `once` again gives the first one.
    """
    row: storage.Doc = {
        "_id": new_id("mer"),
        "name": name,
        "stores": [_new_store(store) for store in stores],
        "fee_basis_points": fee_basis_points,
        "revision": 0,
        "created_at": clock.now(),
    }
    if once is not None:
        row["once"] = once
    try:
        _collection().insert_one(row)
    except DuplicateKeyError:
        found = _collection().find_one({"once": once})
        assert found is not None, "merchants are never deleted"
        return _merchant(found)
    return _merchant(row)


def get(merchant_id: str) -> Merchant:
    """Raises `NotFound`."""
    found = _collection().find_one({"_id": merchant_id})
    if found is None:
        raise NotFound()
    return _merchant(found)


def many(ids: set[str]) -> dict[str, Merchant]:
    found = _collection().find({"_id": {"$in": sorted(ids)}})
    return {row["_id"]: _merchant(row) for row in found}


def newest(*, before: str | None, limit: int) -> list[Merchant]:
    """Newest first."""
    wanted = {"_id": {"$lt": before}} if before is not None else {}
    return [_merchant(row) for row in _collection().find(wanted).sort("_id", -1).limit(limit)]


def owns(merchant_id: str, store_id: str) -> bool:
    """Whether a store is an open one of the merchant's; no read of the database for most calls."""
    asked = time.monotonic()
    read_at, merchant = _known.get(merchant_id, (0.0, None))
    # One that is not known may have been opened a moment ago.
    if merchant is None or asked - read_at > REFRESH_S or not merchant.has(store_id):
        merchant = get(merchant_id)
        if len(_known) >= KNOWN_MAX:
            _known.clear()
        _known[merchant_id] = (asked, merchant)
    return merchant.has(store_id)


def change(
    merchant_id: str,
    *,
    name: dict[str, str] | None = None,
    fee_basis_points: int | None = None,
    stores: list[dict[str, Any]] | None = None,
) -> tuple[Merchant, Merchant]:
    """Change names, fee and stores; returns the merchant before and after.

    A store with a `store_id` is changed, one without is new unless one with its name and address is
    there: so the same change again changes nothing. Raises `NotFound`, also for a store that is not
    the merchant's, and `TooManyStores`.
    """
    for _ in range(ATTEMPTS_MAX):
        before = get(merchant_id)
        changed: storage.Doc = {"stores": _with(before.stores, stores or [])}
        if len(changed["stores"]) > STORES_MAX:
            raise TooManyStores(most=STORES_MAX)
        if name is not None:
            changed["name"] = name
        if fee_basis_points is not None:
            changed["fee_basis_points"] = fee_basis_points
        after = _collection().find_one_and_update(
            {"_id": merchant_id, "revision": before.revision},
            {"$set": changed, "$inc": {"revision": 1}},
            return_document=True,
        )
        if after is not None:
            _known.pop(merchant_id, None)
            return before, _merchant(after)
    raise AccountBusy(retry_after=1)


def _with(stores: tuple[Store, ...], changes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = [asdict(store) for store in stores]
    for wanted in changes:
        store_id = wanted.get("store_id")
        if store_id is None:
            there = {(row["name"], row["address"]) for row in rows}
            if (wanted["name"], wanted["address"]) not in there:
                rows.append(_new_store(wanted))
            continue
        row = next((row for row in rows if row["store_id"] == store_id), None)
        if row is None:
            raise NotFound()
        row.update(wanted)
    return rows


def _new_store(store: dict[str, Any]) -> dict[str, Any]:
    closed = store.get("closed", False)
    return asdict(Store(new_id("sto"), store["name"], store["address"], closed))


def _merchant(row: storage.Doc) -> Merchant:
    stores = tuple(Store(**store) for store in row["stores"])
    return Merchant(row["_id"], row["name"], stores, row["fee_basis_points"], row["revision"])


def _collection() -> "Collection[storage.Doc]":
    return storage.strong(MerchantDocument._get_collection())
