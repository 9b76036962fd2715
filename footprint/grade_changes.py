"""Rows that say whose grade changed, for whoever tells the banks and the resident.

    grading -> snapshot (marked `untold` if the grade moved) -> rows of its change -> mark removed

A row is unique on (resident, number of the snapshot) and leaving it twice leaves it once, so a
crash between two steps costs nothing: the mark is still there and the sweep leaves the rows again.
A feed reads `waiting`, does what follows from each row in a way that may be repeated, and then says
that they are `taken`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

import mongoengine as me
from pymongo.collection import Collection

from accounting import storage


@storage.indexed
class ChangeDocument(me.Document):
    id = me.StringField(primary_key=True)
    resident = me.StringField(required=True)
    number = me.IntField(required=True)
    before = me.StringField(required=True)
    after = me.StringField(required=True)
    graded_at = me.DateTimeField(required=True)
    # Until a feed has taken the row.
    waiting = me.BooleanField()

    meta = {
        "collection": "grade_changes",
        "auto_create_index": False,
        "indexes": [
            {
                "fields": ["resident", "number"],
                "name": "waiting",
                "partialFilterExpression": {"waiting": True},
            },
        ],
    }


@dataclass(frozen=True, slots=True)
class Change:
    """`number` is that of the snapshot in which the grade became `after`."""

    resident: str
    number: int
    before: str
    after: str
    graded_at: datetime

    @property
    def id(self) -> str:
        return f"{self.resident}/{self.number}"


def _collection() -> "Collection[storage.Doc]":
    return storage.strong(ChangeDocument._get_collection())


def leave(changes: Sequence[Change]) -> None:
    """Leave rows for the feeds; safe to repeat, also when a row was taken already."""
    rows = [{"_id": one.id, **asdict(one), "waiting": True} for one in changes]
    storage.insert_new(_collection(), rows)


def waiting(limit: int, *, resident: str | None = None) -> list[Change]:
    """Rows no feed has taken, those of one resident in their order."""
    # The bound on the resident lets the partial index serve.
    wanted = {"waiting": True, "resident": {"$gt": ""} if resident is None else resident}
    found = _collection().find(wanted).sort([("resident", 1), ("number", 1)]).limit(limit)
    return [
        Change(row["resident"], row["number"], row["before"], row["after"], row["graded_at"])
        for row in found
    ]


def taken(changes: Iterable[Change]) -> None:
    """What follows from these rows is done."""
    _collection().update_many(
        {"_id": {"$in": [one.id for one in changes]}}, {"$unset": {"waiting": ""}}
    )
