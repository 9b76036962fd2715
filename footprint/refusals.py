"""How many reports were rejected and why, by city day: counted once for a day that is over."""

from collections import Counter
from datetime import date, timedelta
from typing import Any

import mongoengine as me
from pymongo.collection import Collection

from accounting import clock, storage
from footprint import activities

# A day is counted again while appeals and late outcomes may still change it.
OPEN_DAYS = 2


@storage.indexed
class RefusalDayDocument(me.Document):
    """Rejected reports that arrived on a city day, by reason."""

    id = me.StringField(primary_key=True)
    counts = me.DictField()

    meta = {"collection": "refusal_days", "auto_create_index": False}


def refresh(first: date, last: date) -> None:
    """Count the days that were not counted yet, and the last ones again."""
    kept = set(_collection().distinct("_id", {"_id": {"$gte": first.isoformat()}}))
    day = first
    while day <= last:
        name = day.isoformat()
        if name not in kept or day > last - timedelta(days=OPEN_DAYS):
            row: dict[str, Any] = {"_id": name, "counts": _counted(day)}
            _collection().replace_one({"_id": name}, row, upsert=True)
        day += timedelta(days=1)


def between(first: date, last: date) -> dict[str, int]:
    """Reasons and how often they were given, most often first."""
    sums: Counter[str] = Counter()
    wanted = {"_id": {"$gte": first.isoformat(), "$lte": last.isoformat()}}
    for row in _collection().find(wanted):
        sums.update(row["counts"])
    return dict(sums.most_common())


def _counted(day: date) -> dict[str, int]:
    begins, ends = clock.start_of(day), clock.start_of(day + timedelta(days=1))
    return activities.rejected_between(begins, ends)


def _collection() -> "Collection[storage.Doc]":
    return storage.strong(RefusalDayDocument._get_collection())
