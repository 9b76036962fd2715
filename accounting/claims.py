"""Rules across accounts: one invoice, one slip, one vehicle-day, one owner.

A claim is a document `kind:keyed-hash` that names its owner activity. It is taken before posting;
the owner may take it again (a retry), anybody else is refused until it is released.
"""

from collections.abc import Sequence

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError, DuplicateKeyError

from accounting import clock, storage, vault

_DUPLICATE = 11_000


@storage.indexed
class Claim(me.Document):
    id = me.StringField(primary_key=True)
    owner = me.StringField(required=True)
    taken_at = me.DateTimeField(required=True)

    meta = {"collection": "claims", "auto_create_index": False, "indexes": ["owner"]}


def take(kind: str, value: str, owner: str) -> str:
    """Take a claim for an owner; returns the owner that holds it, which is another when refused."""
    claims, name = _collection(), _name(kind, value)
    try:
        claims.insert_one({"_id": name, "owner": owner, "taken_at": clock.now()})
    except DuplicateKeyError:
        held = claims.find_one({"_id": name}, {"owner": 1})
        # Released between the two calls: whoever asks next may have it; this ask was second.
        return str(held["owner"]) if held else ""
    return owner


def take_many(kind: str, wanted: Sequence[tuple[str, str]]) -> list[str]:
    """Take claims of one kind, `(value, owner)` each, in one write; the holders, in order."""
    if not wanted:
        return []
    claims, now = _collection(), clock.now()
    names = [_name(kind, value) for value, _ in wanted]
    rows = [
        {"_id": name, "owner": owner, "taken_at": now}
        for name, (_, owner) in zip(names, wanted, strict=True)
    ]
    try:
        claims.insert_many(rows, ordered=False)
    except BulkWriteError as error:
        wrong = error.details["writeErrors"]
        if any(one["code"] != _DUPLICATE for one in wrong) or error.details["writeConcernErrors"]:
            raise
        held = {one["_id"]: one["owner"] for one in claims.find({"_id": {"$in": names}})}
        refused = {one["index"] for one in wrong}
        return [
            str(held.get(name, "")) if place in refused else wanted[place][1]
            for place, name in enumerate(names)
        ]
    return [owner for _, owner in wanted]


def holder(kind: str, value: str) -> str | None:
    """The owner that holds a claim now; None if it is free."""
    held = _collection().find_one({"_id": _name(kind, value)}, {"owner": 1})
    return str(held["owner"]) if held else None


def release(owner: str) -> None:
    """Give back every claim of an owner; safe to repeat."""
    _collection().delete_many({"owner": owner})


def _collection() -> "Collection[storage.Doc]":
    return storage.strong(Claim._get_collection())


def _name(kind: str, value: str) -> str:
    return f"{kind}:{vault.keyed_hash(f'claim/{kind}', value)}"
