"""The outbox: rows a room leaves for somebody else to carry.

Domain rooms never call outwards. They leave a notification row, which is at once the resident's
inbox and the intention to deliver; `integrations/` picks it up. A row is unique on
`(resident, dedupe)`, so leaving it twice leaves it once. Nudging a queue is only a courtesy: the
sweep finds what no nudge reached.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import mongoengine as me
from pymongo.collection import Collection

from accounting import clock, storage
from accounting.ids import new_id

log = logging.getLogger(__name__)

NUDGES_MAX = 50
SERVICE, MARKETING = "service", "marketing"
# A row that only tells of others: it is pushed and not shown in the inbox.
DIGEST = "digest"
QUEUED, DEFERRED, RETRYING = "queued", "deferred", "retrying"
WAITING = (QUEUED, DEFERRED, RETRYING)
SENT, FOLDED, STOPPED = "sent", "folded", "stopped"
STATES = (*WAITING, SENT, FOLDED, "no_device", "not_wanted", "failed", "given_up", STOPPED)
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
_SHOWN: dict[str, Any] = {"type": {"$ne": DIGEST}, "delivery": {"$ne": STOPPED}}

_nudge: Callable[[str], None] | None = None


@storage.indexed
class NotificationDocument(me.Document):
    id = me.StringField(primary_key=True)
    resident = me.StringField(required=True)
    dedupe = me.StringField(required=True)
    type = me.StringField(required=True)
    category = me.StringField(required=True)
    title = me.DictField()
    body = me.DictField()
    deep_link = me.StringField()
    # Of rows with one key a sleeping phone shows the last.
    collapse_key = me.StringField()
    created_at = me.DateTimeField(required=True)
    read_at = me.DateTimeField()
    # None once nothing is left to deliver; the sweep looks here.
    next_attempt_at = me.DateTimeField()
    # When it was first tried: from then on a day is spent on it.
    tried_at = me.DateTimeField()
    # What it is one of, if it is: all that wait of a batch can be stopped at once.
    batch = me.StringField()
    # Who carries it at the moment.
    lease = me.StringField()
    delivery = me.StringField(required=True)

    meta = {
        "collection": "notifications",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["resident", "dedupe"], "unique": True},
            {"fields": ["resident", "_id"]},
            # How far a batch is, without reading a row.
            {
                "fields": ["batch", "delivery", "tried_at"],
                "name": "of_a_batch",
                "partialFilterExpression": {"batch": {"$gt": ""}},
            },
            {
                "fields": ["batch", "read_at"],
                "name": "read_of_a_batch",
                "partialFilterExpression": {"batch": {"$gt": ""}, "read_at": {"$gt": _LONG_AGO}},
            },
            # What waits, by class: nothing that is over is in it.
            {
                "fields": ["category", "next_attempt_at"],
                "name": "waiting",
                "partialFilterExpression": {"next_attempt_at": {"$gt": _LONG_AGO}},
            },
        ],
    }


@storage.indexed
class StoppedBatchDocument(me.Document):
    """A batch of which nothing more is to be sent."""

    id = me.StringField(primary_key=True)
    at = me.DateTimeField(required=True)

    meta = {"collection": "stopped_batches", "auto_create_index": False}


@dataclass(frozen=True, slots=True)
class Notification:
    """One row. Texts are `{"zh": ..., "en": ...}`; `delivery` says what became of the push.

    It is queued, deferred (to the end of the quiet hours) or retrying; in the end sent, no_device,
    not_wanted, folded (into a digest), failed, given_up or stopped (with its batch). The inbox has
    the row in any case but the last.
    """

    id: str
    resident: str
    dedupe: str
    type: str
    category: str
    title: dict[str, str]
    body: dict[str, str]
    deep_link: str
    collapse_key: str | None
    created_at: datetime
    read_at: datetime | None
    next_attempt_at: datetime | None
    tried_at: datetime | None
    delivery: str
    batch: str | None


def collection() -> "Collection[storage.Doc]":
    return storage.strong(NotificationDocument._get_collection())


def on_left(nudge: Callable[[str], None] | None) -> None:
    """Set what to call with the id of a row just left; wiring, done once by `api/`."""
    global _nudge
    _nudge = nudge


@dataclass(frozen=True, slots=True)
class Notice:
    """What is to be told to whom; the same `dedupe` tells a resident once.

    It is pushed at once, or not before an instant. Without a `collapse_key` it replaces no other on
    a sleeping phone.
    """

    resident: str
    dedupe: str
    type: str
    category: str
    title: Mapping[str, str]
    body: Mapping[str, str]
    deep_link: str
    collapse_key: str | None = None
    not_before: datetime | None = None
    batch: str | None = None


def leave(notice: Notice) -> bool:
    """Leave one notification; False when the same was left before."""
    return leave_many([notice]) == 1


def leave_many(notices: Sequence[Notice]) -> int:
    """Leave notifications in one round trip; returns how many were not there before.

    Of very many only the first are nudged: the sweep takes the rest in its own time.
    """
    now = clock.now()
    rows = [_row(notice, now) for notice in notices]
    left = storage.insert_new(collection(), rows)
    if _nudge is not None:
        # What a resident may do without waits for its sweep.
        urgent = [
            rows[place]["_id"]
            for place in left
            if rows[place]["category"] == SERVICE and rows[place]["next_attempt_at"] <= now
        ]
        for notification_id in urgent[:NUDGES_MAX]:
            _nudge(notification_id)
    return len(left)


def _row(notice: Notice, now: datetime) -> storage.Doc:
    return {
        "_id": new_id("ntf"),
        "resident": notice.resident,
        "dedupe": notice.dedupe,
        "type": notice.type,
        "category": notice.category,
        "title": dict(notice.title),
        "body": dict(notice.body),
        "deep_link": notice.deep_link,
        "collapse_key": notice.collapse_key,
        "created_at": now,
        "read_at": None,
        "next_attempt_at": max(now, notice.not_before or now),
        "tried_at": None,
        "delivery": QUEUED,
        "batch": notice.batch,
    }


def untold(notices: Sequence[Notice]) -> list[Notice]:
    """Those of the notices that were not left before, in one read.

    For jobs that come to the same every night: a read costs less than inserts that fail.
    """
    if not notices:
        return []
    wanted = {
        "resident": {"$in": sorted({one.resident for one in notices})},
        "dedupe": {"$in": sorted({one.dedupe for one in notices})},
    }
    shown = {"_id": 0, "resident": 1, "dedupe": 1}
    told = {(row["resident"], row["dedupe"]) for row in collection().find(wanted, shown)}
    return [one for one in notices if (one.resident, one.dedupe) not in told]


def stop(batch: str) -> None:
    """Send nothing more of a batch, and show nobody what was not sent; safe to repeat.

    Rows that are being carried stay with who carries them, and those left later are stopped when
    somebody takes them.
    """
    _stopped().update_one({"_id": batch}, {"$setOnInsert": {"at": clock.now()}}, upsert=True)
    collection().update_many(
        {"batch": batch, "delivery": {"$in": list(WAITING)}, "lease": None},
        {"$set": {"delivery": STOPPED, "next_attempt_at": None}},
    )


def stopped(batches: Iterable[str]) -> set[str]:
    """Those of some batches that were stopped."""
    wanted = sorted(set(batches))
    if not wanted:
        return set()
    return {row["_id"] for row in _stopped().find({"_id": {"$in": wanted}})}


def untried(batch: str, limit: int) -> int:
    """How many of a batch nobody has tried to send, up to a number."""
    wanted = {"batch": batch, "delivery": QUEUED, "tried_at": None}
    return collection().count_documents(wanted, limit=limit)


def any_waits(batch: str) -> bool:
    """Whether anything of a batch is still to be sent."""
    wanted = {"batch": batch, "delivery": {"$in": list(WAITING)}}
    return collection().count_documents(wanted, limit=1) == 1


def progress(batch: str) -> tuple[Counter[str], int]:
    """How many rows of a batch there are in each state of delivery, and how many were read.

    Each is counted in an index, without reading a row.
    """
    states = {
        state: collection().count_documents({"batch": batch, "delivery": state}) for state in STATES
    }
    read = collection().count_documents({"batch": batch, "read_at": {"$gt": _LONG_AGO}})
    return +Counter(states), read


def _stopped() -> "Collection[storage.Doc]":
    return storage.strong(StoppedBatchDocument._get_collection())


def by_id(notification_id: str) -> Notification | None:
    found = collection().find_one({"_id": notification_id})
    return _notification(found) if found else None


def found(wanted: Mapping[str, Any]) -> list[Notification]:
    return [_notification(row) for row in collection().find(wanted)]


def folded(resident: str, category: str) -> int:
    """How many unread rows of a class were too many for their day, and are told of in a digest."""
    wanted = {"resident": resident, "category": category, "delivery": FOLDED, "read_at": None}
    return collection().count_documents({**wanted, "type": {"$ne": DIGEST}})


def inbox(resident: str, *, before: str | None, limit: int) -> list[Notification]:
    """Newest first; `before` is the id of the last row of the page before."""
    wanted: dict[str, Any] = {"resident": resident, **_SHOWN}
    if before is not None:
        wanted["_id"] = {"$lt": before}
    found = collection().find(wanted).sort("_id", -1).limit(limit)
    return [_notification(row) for row in found]


def unread(resident: str) -> int:
    wanted = {"resident": resident, "read_at": None, **_SHOWN}
    return collection().count_documents(wanted)


def forget(resident: str) -> None:
    """Empty the inbox of a closed account."""
    collection().delete_many({"resident": resident})


def mark_read(resident: str, notification_id: str) -> bool:
    """Mark one of the resident's rows as read, keeping the first time; False if there is none."""
    wanted = {"_id": notification_id, "resident": resident}
    collection().update_one({**wanted, "read_at": None}, {"$set": {"read_at": clock.now()}})
    return collection().count_documents(wanted, limit=1) == 1


def _notification(row: Mapping[str, Any]) -> Notification:
    fields: dict[str, Any] = {
        name: row.get(name) for name in Notification.__slots__ if name != "id"
    }
    return Notification(id=row["_id"], **fields)
