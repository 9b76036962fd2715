"""Rules across accounts: one invoice, one slip, one vehicle-day, one owner.

A claim is a document `kind:keyed-hash` that names its owner. It is taken before posting; the owner
may take it again, anybody else is refused until it is released. The owner is an activity, or what
several may share (a resident's charges of one car in a day): then each holds it, and it is free
when the last one that held it has let go.
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
    # The activities or bills it is held for, all of the owner's.
    holders = me.ListField(me.StringField())
    taken_at = me.DateTimeField(required=True)

    meta = {"collection": "claims", "auto_create_index": False, "indexes": ["holders"]}


def take(kind: str, value: str, owner: str, holder: str | None = None) -> str:
    """Take a claim for an owner; returns the owner that holds it, which is another when refused.

    `holder` is what it is held for, the owner itself unless it says otherwise.
    """
    claims, name = _collection(), _name(kind, value)
    mine = {"_id": name, "owner": owner}
    held_for = {"$addToSet": {"holders": holder or owner}}
    first = {"$setOnInsert": {"taken_at": clock.now()}}
    try:
        claims.update_one(mine, held_for | first, upsert=True)
    except DuplicateKeyError:
        # Another owner has it, or two holders of this one took it for the first time together.
        if claims.update_one(mine, held_for).matched_count == 0:
            held = claims.find_one({"_id": name}, {"owner": 1})
            # Released between the calls: whoever asks next may have it; this ask was second.
            return str(held["owner"]) if held else ""
    return owner


def take_many(kind: str, wanted: Sequence[tuple[str, str]]) -> list[str]:
    """Take claims of one kind, `(value, owner)` each, in one write; their owners, in order."""
    if not wanted:
        return []
    claims, now = _collection(), clock.now()
    names = [_name(kind, value) for value, _ in wanted]
    rows = [
        {"_id": name, "owner": owner, "holders": [owner], "taken_at": now}
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


def release(holder: str) -> None:
    """Let go of every claim of a holder; one that nobody holds any more is free. Safe to repeat."""
    claims = _collection()
    names = [held["_id"] for held in claims.find({"holders": holder}, {"_id": 1})]
    if names:
        claims.update_many({"_id": {"$in": names}}, {"$pull": {"holders": holder}})
        # Whoever took it in between holds it.
        claims.delete_many({"_id": {"$in": names}, "holders": []})


def pass_on(holder: str, to: str) -> None:
    """Let another hold every claim of a holder, which was found to be the same; safe to repeat."""
    owner = {"$cond": [{"$eq": ["$owner", holder]}, to, "$owner"]}
    holders = {"$setUnion": [{"$setDifference": ["$holders", [holder]]}, [to]]}
    _collection().update_many({"holders": holder}, [{"$set": {"owner": owner, "holders": holders}}])


def _collection() -> "Collection[storage.Doc]":
    return storage.strong(Claim._get_collection())


def _name(kind: str, value: str) -> str:
    return f"{kind}:{vault.keyed_hash(f'claim/{kind}', value)}"
