"""Residents whose consents change, so that a bank may have to be told: a mark, left before it.

A crash between mark and change leaves a mark without a change, which costs a look and nothing else.
A mark taken up too early, before the change it announces is stored, would be lost; so it stays for
`SETTLED_AFTER` and is looked at again. Changes of grades have rows of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import mongoengine as me
from pymongo import DeleteOne, UpdateOne
from pymongo.collection import Collection

from accounting import clock, storage
from accounting.ids import new_id

# Longer than any request takes from its mark to its change.
SETTLED_AFTER = timedelta(minutes=2)


@storage.indexed
class MarkDocument(me.Document):
    id = me.StringField(primary_key=True)
    mark = me.StringField(required=True)
    at = me.DateTimeField(required=True)

    meta = {
        "collection": "consent_marks",
        "auto_create_index": False,
        "indexes": [{"fields": ["at"]}],
    }


@dataclass(frozen=True, slots=True)
class Mark:
    resident: str
    mark: str
    at: datetime


def _marks() -> "Collection[storage.Doc]":
    return storage.strong(MarkDocument._get_collection())


def mark(residents: Sequence[str]) -> None:
    """Say that consents of these residents are about to change."""
    if not residents:
        return
    change = {"$set": {"mark": new_id("mrk"), "at": clock.now()}}
    _marks().bulk_write(
        [UpdateOne({"_id": one}, change, upsert=True) for one in residents], ordered=False
    )


def marked(limit: int, *, newest: bool = False) -> list[Mark]:
    """The oldest marks, or the newest, which are most likely what somebody waits for."""
    found = _marks().find().sort("at", -1 if newest else 1).limit(limit)
    return [Mark(row["_id"], row["mark"], row["at"]) for row in found]


def looked_at(marks: Sequence[Mark], now: datetime) -> None:
    """Forget marks whose change is certain to have been seen, unless they were left anew."""
    old = [one for one in marks if one.at <= now - SETTLED_AFTER]
    if old:
        _marks().bulk_write(
            [DeleteOne({"_id": one.resident, "mark": one.mark}) for one in old], ordered=False
        )
