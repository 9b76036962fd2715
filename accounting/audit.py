"""Who changed what, when and why: append-only."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import clock, storage
from accounting.ids import new_id


@storage.indexed
class AuditDocument(me.Document):
    id = me.StringField(primary_key=True)
    actor = me.StringField(required=True)
    action = me.StringField(required=True)
    subject = me.StringField(required=True)
    reason = me.StringField()
    before = me.DictField()
    after = me.DictField()
    at = me.DateTimeField(required=True)

    meta = {
        "collection": "audit",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["at", "_id"]},
            {"fields": ["subject", "at", "_id"]},
            {"fields": ["actor", "at", "_id"]},
        ],
    }


@dataclass(frozen=True, slots=True)
class Change:
    """One recorded change; `actor` is the client that made it."""

    id: str
    actor: str
    action: str
    subject: str
    reason: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    at: datetime


def _rows() -> "Collection[storage.Doc]":
    return storage.strong(AuditDocument._get_collection())


def note(
    actor: str,
    action: str,
    subject: str,
    *,
    reason: str | None = None,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
    once: str | None = None,
) -> None:
    """Record one change; `actor` is the client that made it, `subject` the id it made it to.

    What is done by steps that may run twice names its cause in `once`, and is recorded once.
    """
    row: storage.Doc = {
        "_id": new_id("aud") if once is None else f"aud:{once}",
        "actor": actor,
        "action": action,
        "subject": subject,
        "reason": reason,
        "before": before,
        "after": after,
        "at": clock.now(),
    }
    try:
        _rows().insert_one(row)
    except DuplicateKeyError:
        assert once is not None, "ids are never made twice"


def trail(
    *,
    subject: str | None = None,
    actor: str | None = None,
    before: tuple[datetime, str] | None = None,
    limit: int,
) -> list[Change]:
    """Changes to a subject, or by an actor, or all of them, newest first.

    `before` is (at, id) of the last one seen. Ids do not sort by time: some name their cause.
    """
    wanted: dict[str, Any] = {"subject": subject} if subject is not None else {}
    if actor is not None:
        wanted["actor"] = actor
    if before is not None:
        at, last = before
        wanted["$or"] = [{"at": {"$lt": at}}, {"at": at, "_id": {"$lt": last}}]
    found = _rows().find(wanted).sort([("at", -1), ("_id", -1)]).limit(limit)
    return [_change(row) for row in found]


def _change(row: storage.Doc) -> Change:
    fields = {name: row[name] for name in Change.__slots__ if name != "id"}
    return Change(id=row["_id"], **fields)
