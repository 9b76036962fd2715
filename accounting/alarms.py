"""Alarms: what a person has to look at, as rows; one an incident and city day, also in the log."""

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import mongoengine as me
from pymongo.errors import DuplicateKeyError

from accounting import clock, storage
from accounting.ids import new_id

log = logging.getLogger(__name__)


@storage.indexed
class AlarmDocument(me.Document):
    id = me.StringField(primary_key=True)
    kind = me.StringField(required=True)
    # What it is about, for example an account; with the day it makes the alarm one.
    subject = me.StringField(required=True)
    day = me.StringField(required=True)
    facts = me.DictField()
    at = me.DateTimeField(required=True)

    meta = {
        "collection": "alarms",
        "auto_create_index": False,
        "indexes": [{"fields": ["kind", "subject", "day"], "unique": True}],
    }


@dataclass(frozen=True, slots=True)
class Alarm:
    id: str
    kind: str
    subject: str
    facts: dict[str, Any]
    at: datetime


def sound(kind: str, subject: str, **facts: Any) -> None:
    """Leave an alarm; the same kind about the same subject on the same city day is kept once."""
    now = clock.now()
    log.error("alarm %s about %s: %s", kind, subject, facts)
    row = {
        "_id": new_id("alm"),
        "kind": kind,
        "subject": subject,
        "day": clock.city_day(now).isoformat(),
        "facts": facts,
        "at": now,
    }
    try:
        storage.strong(AlarmDocument._get_collection()).insert_one(row)
    except DuplicateKeyError:
        log.info("that alarm was left before today")


def newest(*, before: str | None, limit: int) -> list[Alarm]:
    """Alarms, newest first, from below an id."""
    wanted = {"_id": {"$lt": before}} if before is not None else {}
    found = storage.strong(AlarmDocument._get_collection()).find(wanted, {"day": 0})
    return [Alarm(id=row.pop("_id"), **row) for row in found.sort("_id", -1).limit(limit)]
