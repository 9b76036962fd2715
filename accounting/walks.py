"""Jobs that go through every resident once, or all of something else, in the order of their ids.

How far a walk is and what it has added up are one document, moved forward by one guarded write a
stretch. A worker that is killed lets the next one begin at the last stretch that was finished, so
what is done for a resident must be safe to repeat and must say the same the second time.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import accounts, jobs, storage
from accounting.errors import AccountBusy
from accounting.jobs import Job

STRETCH = 100

log = logging.getLogger(__name__)

Totals = dict[str, int]
# The next ids after one, at most so many.
IdsAfter = Callable[[str, int], Sequence[str]]
# Does the work for some of them and returns what to add to the totals.
Work = Callable[[Job, Sequence[str]], Totals]


class Rest(Exception):
    """Raised where a walk is to pause: it goes on from the same place at an instant."""

    def __init__(self, until: datetime) -> None:
        super().__init__(until)
        self.until = until


@storage.indexed
class WalkDocument(me.Document):
    """How far a job is: the last resident done, how many, and the sums so far."""

    id = me.StringField(primary_key=True)
    after = me.StringField(required=True)
    done = me.IntField(required=True)
    totals = me.DictField()

    meta = {"collection": "walks", "auto_create_index": False}


def _collection() -> "Collection[storage.Doc]":
    return storage.strong(WalkDocument._get_collection())


def queue(
    kind: str,
    owner: str,
    arguments: dict[str, Any],
    job_id: str | None = None,
    *,
    unit: str = jobs.RESIDENTS,
    total: int | None = None,
    held: bool = False,
) -> Job:
    """Store a job over every resident, or as many of something else; see `jobs.queue`."""
    if total is None:
        # What the progress is measured by; residents who join meanwhile do not matter.
        total = accounts.count()
    return jobs.queue(kind, owner, arguments, job_id, unit=unit, total=total, held=held)


def run(
    job_id: str,
    work: Work,
    end: Callable[[Job], None] | None = None,
    ids_after: IdsAfter = accounts.ids_after,
    stretch: int | None = None,
) -> Job | None:
    """Carry a walk to its end, then call `end`; None when another worker has it or it is over.

    A resident whose account is too busy stops this try: the sweep begins it again where it stands.
    `ids_after` says what it goes through, every resident unless told otherwise. Both may raise
    `Rest`.
    """
    job = jobs.take(job_id)
    if job is None:
        return None
    after, done = _place(job.id)
    while True:
        try:
            ids = ids_after(after, stretch or STRETCH)
            if not ids:
                break
            added = work(job, ids)
        except AccountBusy as busy:
            log.warning("%s waits at %s: %s", job.id, after, busy)
            return None
        except Rest as rest:
            jobs.rest(job, rest.until)
            return None
        if not _move(job.id, after, ids[-1], len(ids), added):
            return None
        after, done = ids[-1], done + len(ids)
        if not jobs.advance(job, done, done, job.counts):
            return None  # Cancelled, or another worker has it.
    if end is not None:
        end(job)
    jobs.finish(job, done)
    return jobs.get(job_id)


def again(job_id: str) -> None:
    """Let a walk begin at its first id once more."""
    jobs.again(job_id)
    _collection().update_one({"_id": job_id}, {"$set": {"after": ""}})


def again_after(job_id: str) -> str | None:
    """Let the walk that takes a job back begin once more; returns it, None if there is none."""
    job = jobs.get(job_id)
    if job is None or job.reversal is None:
        return None
    again(job.reversal)
    return job.reversal


def totals(job_id: str) -> Totals:
    """What a walk has added up so far."""
    found = _collection().find_one({"_id": job_id})
    return dict(found["totals"]) if found else {}


def _place(job_id: str) -> tuple[str, int]:
    try:
        _collection().insert_one({"_id": job_id, "after": "", "done": 0, "totals": {}})
    except DuplicateKeyError:
        found = _collection().find_one({"_id": job_id})
        assert found is not None, "a walk is never deleted"
        return found["after"], found["done"]
    return "", 0


def _move(job_id: str, after: str, last: str, count: int, added: Totals) -> bool:
    """Move on; False if another worker has moved from here before."""
    add = {"done": count} | {f"totals.{name}": amount for name, amount in added.items()}
    moved = _collection().update_one(
        {"_id": job_id, "after": after}, {"$set": {"after": last}, "$inc": add}
    )
    return moved.modified_count == 1
