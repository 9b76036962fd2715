"""What the store knows of drop folders: who serves a partner's now, and which files came to a job.

Two watchers may look at one folder, on one machine or on two: the lease keeps them from doing the
same work. Should it be lost in the middle, both come to the same job all the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import mongoengine as me
from pymongo.errors import DuplicateKeyError

from accounting import clock, storage
from accounting.ids import new_id

# A watcher that dies leaves a partner's folder alone for this long.
LEASE = timedelta(minutes=1)
REPORTS_MAX = 100


@storage.indexed
class DropLeaseDocument(me.Document):
    """The watcher that serves a partner's folder; the id is the partner's."""

    id = me.StringField(primary_key=True)
    owner = me.StringField(required=True)
    until = me.DateTimeField(required=True)

    meta = {"collection": "drop_leases", "auto_create_index": False}


@storage.indexed
class DroppedFileDocument(me.Document):
    """A file that was taken, under the name it has in `done`, and whether its end was told."""

    id = me.StringField(primary_key=True)
    partner = me.StringField(required=True)
    kind = me.StringField(required=True)
    name = me.StringField(required=True)
    job = me.StringField(required=True)
    at = me.DateTimeField(required=True)
    reported = me.BooleanField(required=True)

    meta = {
        "collection": "dropped_files",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["partner", "kind", "name"], "unique": True},
            {"fields": ["job"]},
            {
                "fields": ["partner", "_id"],
                "name": "unreported",
                "partialFilterExpression": {"reported": False},
            },
        ],
    }


@dataclass(frozen=True, slots=True)
class Dropped:
    id: str
    kind: str
    name: str
    job: str
    at: datetime


class LeaseLost(Exception):
    """Another watcher serves this partner now."""


class Lease:
    """The right to serve one partner's folder."""

    def __init__(self, partner: str, owner: str) -> None:
        self._partner, self._owner = partner, owner
        self._renew_at = clock.now() + LEASE / 3

    def hold(self) -> None:
        """Renew it when it is time; raises `LeaseLost`."""
        now = clock.now()
        if now < self._renew_at:
            return
        changed = _leases().update_one(
            {"_id": self._partner, "owner": self._owner}, {"$set": {"until": now + LEASE}}
        )
        if not changed.matched_count:
            raise LeaseLost(self._partner)
        self._renew_at = now + LEASE / 3


@contextmanager
def lease(partner: str, owner: str) -> Iterator[Lease | None]:
    """Serve a partner alone; None when another does."""
    now = clock.now()
    free = {"_id": partner, "$or": [{"until": {"$lte": now}}, {"owner": owner}]}
    try:
        _leases().update_one(free, {"$set": {"owner": owner, "until": now + LEASE}}, upsert=True)
    except DuplicateKeyError:
        yield None
        return
    try:
        yield Lease(partner, owner)
    finally:
        mine = {"_id": partner, "owner": owner}
        _leases().update_one(mine, {"$set": {"until": clock.now()}})


def note(partner: str, kind: str, name: str, job_id: str) -> None:
    """Keep that the file that will lie under a name in `done` is a job's; safe to repeat."""
    change = {
        "$set": {"job": job_id, "reported": False, "at": clock.now()},
        "$setOnInsert": {"_id": new_id("drp")},
    }
    _files().update_one({"partner": partner, "kind": kind, "name": name}, change, upsert=True)


def unreported(partner: str) -> list[Dropped]:
    """Files whose end was not told yet, the oldest first."""
    found = _files().find({"partner": partner, "reported": False}).sort("_id", 1)
    return [
        Dropped(row["_id"], row["kind"], row["name"], row["job"], row["at"])
        for row in found.limit(REPORTS_MAX)
    ]


def first_name(job_id: str) -> str:
    """The name under which the file of a job came first."""
    found = _files().find_one({"job": job_id}, sort=[("_id", 1)])
    assert found is not None, "asked about a file that was noted"
    return str(found["name"])


def reported(dropped: Dropped) -> None:
    """Its end was told; of one that was noted or begins again since, it was another end."""
    wanted = {"_id": dropped.id, "job": dropped.job, "at": dropped.at}
    _files().update_one(wanted, {"$set": {"reported": True}})


def again(job_id: str) -> None:
    """Let the end of a job be told once more, because it goes on; for a job of no file nothing."""
    change = {"$set": {"reported": False, "at": clock.now()}}
    _files().update_many({"job": job_id}, change)


def _leases() -> Any:
    return storage.strong(DropLeaseDocument._get_collection())


def _files() -> Any:
    return storage.strong(DroppedFileDocument._get_collection())
