"""Which files of a partner's series came: alarms for a gap, a late file, one that comes twice.

A series is what a partner sends of one kind by one profile. Nothing here refuses a file: rows of
a file that replaces another are judged like any rows; a person is told to look.
"""

from typing import Any

import mongoengine as me
from pymongo.errors import DuplicateKeyError

from accounting import alarms, clock, storage
from accounting.jobs import Job
from integrations.manifests import Manifest

GAP, LATE, REPLACED = "feed_sequence_gap", "feed_file_late", "feed_file_replaced"
# How many missing numbers an alarm lists.
MISSING_MAX = 20


@storage.indexed
class FeedDeliveryDocument(me.Document):
    """One file that came with a business date or a number; the id is its job's."""

    id = me.StringField(primary_key=True)
    series = me.StringField(required=True)
    file = me.StringField(required=True)
    sha256 = me.StringField(required=True)
    business_date = me.StringField()
    sequence = me.LongField()
    at = me.DateTimeField(required=True)

    meta = {
        "collection": "feed_deliveries",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["series", "business_date"]},
            {"fields": ["series", "sequence"]},
        ],
    }


def _deliveries() -> Any:
    return storage.strong(FeedDeliveryDocument._get_collection())


def note(job: Job, manifest: Manifest) -> None:
    """Keep that a file of a series came, with an alarm for what is odd about it; safe to repeat.

    The alarms go first: a crash between the two repeats them, and an alarm is one a day.
    """
    if manifest.business_date is None and manifest.sequence is None:
        return
    if _deliveries().find_one({"_id": job.id}, {"_id": 1}) is not None:
        return
    series = f"{job.owner}/{job.kind}/{manifest.profile or '-'}"
    day = manifest.business_date.isoformat() if manifest.business_date else None
    facts = {"job": job.id, "file": manifest.file}
    if day is not None:
        _check_day(series, day, facts)
    if manifest.sequence is not None:
        _check_number(series, manifest.sequence, facts)
    row = {
        "_id": job.id,
        "series": series,
        "file": manifest.file,
        "sha256": manifest.sha256,
        "business_date": day,
        "sequence": manifest.sequence,
        "at": clock.now(),
    }
    try:
        _deliveries().insert_one(row)
    except DuplicateKeyError:
        return  # Another try of the same file was faster.


def _check_day(series: str, day: str, facts: dict[str, Any]) -> None:
    same = _deliveries().find_one({"series": series, "business_date": day}, sort=[("_id", 1)])
    if same is not None:
        alarms.sound(
            REPLACED, f"{series}/{day}", **facts, business_date=day, earlier_job=same["_id"]
        )
        return
    newest = _newest(series, "business_date")
    if newest is not None and newest["business_date"] > day:
        alarms.sound(
            LATE, f"{series}/{day}", **facts, business_date=day, newest=newest["business_date"]
        )


def _check_number(series: str, number: int, facts: dict[str, Any]) -> None:
    same = _deliveries().find_one({"series": series, "sequence": number}, sort=[("_id", 1)])
    if same is not None:
        alarms.sound(
            REPLACED, f"{series}/#{number}", **facts, sequence=number, earlier_job=same["_id"]
        )
        return
    newest = _newest(series, "sequence")
    if newest is None:
        return
    last = newest["sequence"]
    if number < last:
        alarms.sound(LATE, f"{series}/#{number}", **facts, sequence=number, newest=last)
    elif number > last + 1:
        missing = list(range(last + 1, min(number, last + 1 + MISSING_MAX)))
        alarms.sound(
            GAP,
            f"{series}/#{last + 1}",
            **facts,
            sequence=number,
            missing=missing,
            missing_count=number - last - 1,
        )


def _newest(series: str, name: str) -> dict[str, Any] | None:
    wanted = {"series": series, name: {"$ne": None}}
    found: dict[str, Any] | None = _deliveries().find_one(wanted, sort=[(name, -1)])
    return found
