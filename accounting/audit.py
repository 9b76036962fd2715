"""Who changed what, when and why: append-only."""

from typing import Any

import mongoengine as me
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
        "indexes": [{"fields": ["subject", "_id"]}],
    }


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
        storage.strong(AuditDocument._get_collection()).insert_one(row)
    except DuplicateKeyError:
        assert once is not None, "ids are never made twice"
