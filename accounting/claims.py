"""Rules across accounts: one invoice, one slip, one vehicle-day, one owner.

A claim is a document `kind:keyed-hash` that names its owner. It is taken before posting; the owner
may take it again, anybody else is refused until it is released. The owner is an activity, or what
several may share (a resident's charges of one car in a day): then each holds it, and it is free
when the last one that held it has let go.
"""

from collections.abc import Sequence
from typing import NamedTuple

import mongoengine as me
from pymongo import UpdateOne
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import clock, storage, vault


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


class Wish(NamedTuple):
    """What is to be claimed, in whose name, and what for; see `take`."""

    kind: str
    value: str
    owner: str
    holder: str | None = None


def take_many(wishes: Sequence[Wish]) -> list[str]:
    """Take many claims in a fixed number of round trips; their owners as `take` returns them."""
    now = clock.now()
    names = [_name(wish.kind, wish.value) for wish in wishes]
    rows: dict[tuple[str, str], storage.Doc] = {}
    for name, wish in zip(names, wishes, strict=True):
        row = {"_id": name, "owner": wish.owner, "holders": [], "taken_at": now}
        rows.setdefault((name, wish.owner), row)["holders"].append(wish.holder or wish.owner)
    new = list(rows.values())
    taken = set(storage.insert_new(_collection(), new))
    there = [row for place, row in enumerate(new) if place not in taken]
    if not there:
        return [wish.owner for wish in wishes]
    _collection().bulk_write(
        [
            UpdateOne(
                {"_id": row["_id"], "owner": row["owner"]},
                {"$addToSet": {"holders": {"$each": row["holders"]}}},
            )
            for row in there
        ],
        ordered=False,
    )
    found = _collection().find({"_id": {"$in": [row["_id"] for row in there]}}, {"owner": 1})
    held = {row["_id"]: str(row["owner"]) for row in found}
    lost = {(row["_id"], row["owner"]) for row in there}
    return [
        # Released between the calls: whoever asks next may have it; this ask was second.
        held.get(name, "") if (name, wish.owner) in lost else wish.owner
        for name, wish in zip(names, wishes, strict=True)
    ]


def holder(kind: str, value: str) -> str | None:
    """The owner that holds a claim now; None if it is free."""
    held = _collection().find_one({"_id": _name(kind, value)}, {"owner": 1})
    return str(held["owner"]) if held else None


def release(*holders: str) -> None:
    """Let go of every claim of the holders; one that nobody holds any more is free.

    Safe to repeat.
    """
    claims, whose = _collection(), {"$in": list(holders)}
    names = [held["_id"] for held in claims.find({"holders": whose}, {"_id": 1})]
    if names:
        claims.update_many({"_id": {"$in": names}}, {"$pull": {"holders": whose}})
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
