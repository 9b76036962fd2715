"""Who changed what, when and why: append-only."""

import mongoengine as me

from accounting import clock, storage
from accounting.ids import new_id


@storage.indexed
class AuditDocument(me.Document):
    id = me.StringField(primary_key=True)
    actor = me.StringField(required=True)
    action = me.StringField(required=True)
    subject = me.StringField(required=True)
    reason = me.StringField()
    at = me.DateTimeField(required=True)

    meta = {
        "collection": "audit",
        "auto_create_index": False,
        "indexes": [{"fields": ["subject", "_id"]}],
    }


def note(actor: str, action: str, subject: str, *, reason: str | None = None) -> None:
    """Record one change; `actor` is the client that made it, `subject` the id it made it to."""
    storage.strong(AuditDocument._get_collection()).insert_one(
        {
            "_id": new_id("aud"),
            "actor": actor,
            "action": action,
            "subject": subject,
            "reason": reason,
            "at": clock.now(),
        }
    )
