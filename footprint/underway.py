"""Batches of facts on their way to the book: one document for all of them, while they are.

Facts of a batch are stored as `booked`: what became of them is what their entries say, and is not
written a second time. So no state of theirs tells which of them a crash left without an entry. This
does: the ids of a batch lie here before the first of its facts is stored, and go when the last has
its outcome. What stays longer than a minute was left by a crash.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import mongoengine as me
from pymongo import WriteConcern
from pymongo.collection import Collection

from accounting import clock, storage
from accounting.ids import new_id

# A process that was stopped in between may store its facts late: so long they are waited for.
AWAITED = timedelta(hours=1)
LOOK_EVERY = timedelta(minutes=10)


@storage.indexed
class UnderwayDocument(me.Document):
    id = me.StringField(primary_key=True)
    facts = me.ListField(me.StringField(), required=True)
    begun_at = me.DateTimeField(required=True)
    # When somebody should look whether a crash left it.
    look_at = me.DateTimeField(required=True)

    meta = {"collection": "underway", "auto_create_index": False, "indexes": ["look_at"]}


class Batch(NamedTuple):
    id: str
    facts: tuple[str, ...]
    begun_at: datetime


def begin(facts: Sequence[str], look_at: datetime) -> str:
    """Remember the ids of facts about to be stored; returns the name of the batch."""
    batch = new_id("bat")
    row = {"_id": batch, "facts": list(facts), "begun_at": clock.now(), "look_at": look_at}
    _collection().insert_one(row)
    return batch


def end(batch: str) -> None:
    """Forget a batch whose facts all have their outcome; safe to repeat.

    It does not wait for the journal: a batch that is still there is looked at once more.
    """
    _collection().with_options(write_concern=WriteConcern(w=1)).delete_one({"_id": batch})


def left(now: datetime, limit: int) -> Iterator[Batch]:
    """Batches somebody should look at, oldest first."""
    found = _collection().find({"look_at": {"$lte": now}}).sort("look_at", 1).limit(limit)
    for row in found:
        yield Batch(row["_id"], tuple(row["facts"]), row["begun_at"])


def looked_at(batch: Batch, now: datetime, *, stored: int, left: int) -> None:
    """Forget a batch none of whose `stored` facts is `left` without its outcome.

    Those that are not there were sent before under another id, or are yet to be stored: they are
    waited for. What is left is looked at again later, after what others left.
    """
    awaited = stored < len(batch.facts) and batch.begun_at > now - AWAITED
    if left or awaited:
        later = {"$set": {"look_at": now + LOOK_EVERY}}
        _collection().update_one({"_id": batch.id}, later)
    else:
        end(batch.id)


def _collection() -> "Collection[storage.Doc]":
    return storage.strong(UnderwayDocument._get_collection())
