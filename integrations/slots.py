"""How many notifications of a class a device may ring for in a city day.

A slot is taken before the message is sent, by one guarded write a device: of two workers with the
last slot one gets it, and a notification that is tried again has its slot already.
"""

from collections.abc import Sequence
from datetime import date
from typing import NamedTuple

import mongoengine as me
from pymongo import UpdateOne
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError

from accounting import clock, outbox, storage

# What is not here is not capped.
DAILY_MAX = {outbox.MARKETING: 2}
KEPT_S = 3 * 86_400
_DUPLICATE_KEY = 11_000


@storage.indexed
class SlotDocument(me.Document):
    """The notifications of one class that one device rang for on one city day."""

    id = me.StringField(primary_key=True)
    notifications = me.ListField(me.StringField())
    at = me.DateTimeField(required=True)

    meta = {
        "collection": "push_slots",
        "auto_create_index": False,
        "indexes": [{"fields": ["at"], "expireAfterSeconds": KEPT_S}],
    }


class Wish(NamedTuple):
    """A notification that is to ring a device."""

    notification: str
    category: str
    device: str


def _slots() -> "Collection[storage.Doc]":
    return storage.strong(SlotDocument._get_collection())


def take(wishes: Sequence[Wish], day: date) -> set[Wish]:
    """Those of the wishes that may ring on a day, in one round trip; repeating it is free."""
    capped = [wish for wish in wishes if wish.category in DAILY_MAX]
    if not capped:
        return set(wishes)
    now = clock.now()
    # A full document does not match, so the upsert meets its id: that wish gets no slot.
    asks = [
        UpdateOne(
            {
                "_id": f"{wish.device}/{wish.category}/{day}",
                "$or": [
                    {"notifications": wish.notification},
                    {f"notifications.{DAILY_MAX[wish.category] - 1}": {"$exists": False}},
                ],
            },
            {"$addToSet": {"notifications": wish.notification}, "$setOnInsert": {"at": now}},
            upsert=True,
        )
        for wish in capped
    ]
    try:
        _slots().bulk_write(asks, ordered=False)
    except BulkWriteError as error:
        wrong = error.details["writeErrors"]
        if any(one["code"] != _DUPLICATE_KEY for one in wrong):
            raise
        # Two first rings at once meet as well, and there was room for both.
        return set(wishes) - _without_slot([capped[one["index"]] for one in wrong], day)
    return set(wishes)


def _without_slot(lost: Sequence[Wish], day: date) -> set[Wish]:
    """Of the wishes that met another document, those that it has no room for."""
    turned_down = set()
    for wish in lost:
        taken = _slots().update_one(
            {
                "_id": f"{wish.device}/{wish.category}/{day}",
                f"notifications.{DAILY_MAX[wish.category] - 1}": {"$exists": False},
            },
            {"$addToSet": {"notifications": wish.notification}},
        )
        if taken.matched_count == 0:
            turned_down.add(wish)
    return turned_down
