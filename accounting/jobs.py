"""Jobs: long work with a state people can watch, kept in the database, resumable after a kill.

A job is queued, then run by one worker at a time under a lease it renews; a worker that dies lets
the lease run out and the sweep hands the job to another, which goes on where the counts stand.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import mongoengine as me
from pymongo.collection import Collection

from accounting import clock, events, storage
from accounting.clients import Kind
from accounting.errors import DomainError
from accounting.events import Happening, Type
from accounting.ids import new_id

QUEUED, RUNNING, DONE, FAILED = "queued", "running", "done", "failed"
UNFINISHED = (QUEUED, RUNNING)
# Longer than a chunk takes; renewed with each. A dead worker's job rests this long.
LEASE = timedelta(minutes=1)
# Tries without progress after which a job is given up: what fails five times fails again.
TRIES_MAX = 5
# The lease of a job that waits for an approval: no worker takes it, no sweep finds it.
HELD_UNTIL = datetime(9999, 1, 1, tzinfo=UTC)
SWEEP_MAX = 100
COUNTS = ("credited", "pending", "recorded", "rejected", "duplicate", "parked")


@storage.indexed
class JobDocument(me.Document):
    id = me.StringField(primary_key=True)
    kind = me.StringField(required=True)
    owner = me.StringField(required=True)
    state = me.StringField(required=True)
    arguments = me.DictField()
    total = me.IntField()
    done = me.IntField(required=True)
    bytes_done = me.IntField(required=True)
    counts = me.DictField()
    failure = me.StringField()
    created_at = me.DateTimeField(required=True)
    started_at = me.DateTimeField()
    finished_at = me.DateTimeField()
    leased_until = me.DateTimeField(required=True)
    # The job that takes this one back.
    reversal = me.StringField()
    cancelled_by = me.StringField()
    tries = me.IntField(required=True)

    meta = {
        "collection": "jobs",
        "auto_create_index": False,
        "indexes": [
            {
                "fields": ["leased_until"],
                "name": "unfinished",
                "partialFilterExpression": {"state": {"$in": [QUEUED, RUNNING]}},
            },
            {"fields": ["owner", "_id"]},
        ],
    }


@storage.indexed
class JobErrorDocument(me.Document):
    """One row a job could not take, with what was wrong; the input is kept encrypted."""

    job = me.StringField(required=True)
    row = me.IntField(required=True)
    code = me.StringField(required=True)
    message = me.DictField()
    input_sealed = me.BinaryField()

    meta = {
        "collection": "job_errors",
        "auto_create_index": False,
        "indexes": [{"fields": ["job", "row"], "unique": True}],
    }


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stands. `done` counts rows; `total` is None until the end is known.

    `bytes_done` is how far the stored file is read, for the progress.
    """

    id: str
    kind: str
    owner: str
    state: str
    arguments: dict[str, Any]
    total: int | None
    done: int
    bytes_done: int
    counts: dict[str, int]
    failure: str | None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    leased_until: datetime = field(default_factory=clock.now)
    tries: int = 0
    reversal: str | None = None
    cancelled_by: str | None = None

    @property
    def progress(self) -> int:
        """Percent of the file read; 0 until its size is known to the worker."""
        size = self.arguments.get("size") or 0
        return min(self.bytes_done * 100 // size, 99) if size else 0

    @property
    def rows_per_second(self) -> int:
        """Rows a second since the start, 0 before anything was done."""
        if self.started_at is None:
            return 0
        spent = (self.finished_at or clock.now()) - self.started_at
        return self.done * 1_000 // max(spent // timedelta(milliseconds=1), 1)

    @property
    def seconds_left(self) -> int | None:
        """How long it will take at the speed so far; None while there is nothing to go by."""
        size = self.arguments.get("size") or 0
        if self.state != RUNNING or self.started_at is None or not 0 < self.bytes_done <= size:
            return None
        spent_s = (clock.now() - self.started_at) // timedelta(seconds=1)
        return spent_s * (size - self.bytes_done) // self.bytes_done


class JobOver(DomainError):
    code = "job_over"
    en = "This job has ended, or waits for an approval."
    zh = "该任务已结束，或正在等待批准。"


class JobNotCancelled(DomainError):
    code = "job_not_cancelled"
    en = "Only a job that was cancelled can be resumed."
    zh = "仅可恢复已取消的任务。"


def _jobs() -> "Collection[storage.Doc]":
    return storage.strong(JobDocument._get_collection())


def _errors() -> "Collection[storage.Doc]":
    return storage.strong(JobErrorDocument._get_collection())


def queue(
    kind: str,
    owner: str,
    arguments: dict[str, Any],
    job_id: str | None = None,
    *,
    held: bool = False,
) -> Job:
    """Store a job; a worker takes it when told, or when the sweep finds it.

    A `held` one waits until it is released.
    """
    now = clock.now()
    job = Job(
        id=job_id or new_id("job"),
        kind=kind,
        owner=owner,
        state=QUEUED,
        arguments=arguments,
        total=None,
        done=0,
        bytes_done=0,
        counts=dict.fromkeys(COUNTS, 0),
        failure=None,
        created_at=now,
        leased_until=HELD_UNTIL if held else now,
    )
    document = {name: getattr(job, name) for name in Job.__slots__ if name != "id"}
    _jobs().insert_one({"_id": job.id, **document})
    return job


def get(job_id: str) -> Job | None:
    found = _jobs().find_one({"_id": job_id})
    return _job(found) if found else None


def many(job_ids: Sequence[str]) -> list[Job]:
    """Those of some jobs that there are."""
    return [_job(found) for found in _jobs().find({"_id": {"$in": list(job_ids)}})]


def unfinished(kind: str, owner: str) -> Job | None:
    """The owner's newest job of a kind that is still to be done."""
    wanted = {"owner": owner, "kind": kind, "state": {"$in": [QUEUED, RUNNING]}}
    found = _jobs().find_one(wanted, sort=[("_id", -1)])
    return _job(found) if found else None


def release(job_id: str) -> None:
    """Let a held job be worked on; nothing happens to one that is not held."""
    wanted = {"_id": job_id, "state": QUEUED, "leased_until": HELD_UNTIL}
    _jobs().update_one(wanted, {"$set": {"leased_until": clock.now()}})


def take(job_id: str) -> Job | None:
    """Become the worker of a job; None when it is finished, given up, or another has it."""
    now = clock.now()
    found = _jobs().find_one_and_update(
        {"_id": job_id, "state": {"$in": [QUEUED, RUNNING]}, "leased_until": {"$lte": now}},
        [
            {
                "$set": {
                    "state": RUNNING,
                    "leased_until": now + LEASE,
                    "started_at": {"$ifNull": ["$started_at", now]},
                    "tries": {"$add": ["$tries", 1]},
                }
            }
        ],
        return_document=True,
    )
    if found is None:
        return None
    job = _job(found)
    if job.tries > TRIES_MAX:
        fail(job, f"It stopped {TRIES_MAX} times after row {job.done}. Tell us the job id.")
        return None
    return job


def advance(job: Job, done: int, bytes_done: int, counts: dict[str, int]) -> bool:
    """Record progress and renew the lease; False if another worker took the job over."""
    changed = _jobs().update_one(
        {"_id": job.id, "state": RUNNING, "done": {"$lt": done}},
        {
            "$set": {
                "done": done,
                "bytes_done": bytes_done,
                "counts": counts,
                "leased_until": clock.now() + LEASE,
                "tries": 0,
            }
        },
    )
    return changed.modified_count == 1


def finish(job: Job, total: int) -> None:
    _tell(job, DONE)
    change = {"state": DONE, "total": total, "finished_at": clock.now()}
    _jobs().update_one({"_id": job.id, "state": RUNNING}, {"$set": change})


def fail(job: Job, why: str) -> None:
    """End a job that cannot go on; `why` is a sentence for the owner."""
    _tell(job, FAILED)
    change = {"state": FAILED, "failure": why, "finished_at": clock.now()}
    _jobs().update_one({"_id": job.id, "state": RUNNING}, {"$set": change})


def _tell(job: Job, state: str) -> None:
    """Leave word that a job ends, for its partner or for operators, whoever asked for it."""
    data = {"job_id": job.id, "kind": job.kind, "state": state}
    parties = (events.party(Kind.DATA, job.owner), events.OPERATORS)
    told = (f"job:{job.id}", f"job:{job.id}:{state}", data)
    events.leave(*[Happening(party, Type.JOB_DONE, *told) for party in parties])


def cancel(job_id: str, by: str, why: str) -> Job:
    """Stop a job where it is; its worker notices at its next step. Raises `JobOver`."""
    job = get(job_id)
    if job is not None and job.state in UNFINISHED and job.leased_until < HELD_UNTIL:
        _tell(job, FAILED)
    change = {
        "state": FAILED,
        "failure": f"Cancelled: {why}",
        "finished_at": clock.now(),
        "cancelled_by": by,
    }
    wanted = {"_id": job_id, "state": {"$in": UNFINISHED}, "leased_until": {"$lt": HELD_UNTIL}}
    found = _jobs().find_one_and_update(wanted, {"$set": change}, return_document=True)
    if found is None:
        raise JobOver()
    return _job(found)


def resume(job_id: str) -> Job:
    """Let a cancelled job go on where it was stopped. Raises `JobNotCancelled`."""
    change = {
        "state": QUEUED,
        "failure": None,
        "finished_at": None,
        "cancelled_by": None,
        # Whoever worked on it may be at its last step yet.
        "leased_until": clock.now() + LEASE,
        "tries": 0,
    }
    wanted = {"_id": job_id, "state": FAILED, "cancelled_by": {"$type": "string"}}
    found = _jobs().find_one_and_update(wanted, {"$set": change}, return_document=True)
    if found is None:
        raise JobNotCancelled()
    return _job(found)


def note_errors(rows: list[dict[str, Any]]) -> None:
    """Keep refused rows; a row noted before is kept once."""
    storage.insert_new(_errors(), rows)


def errors(job_id: str) -> Iterator[dict[str, Any]]:
    yield from _errors().find({"job": job_id}, {"_id": 0}).sort("row", 1)


def stop(job_id: str, reversal: str, why: str) -> Job:
    """Name the job that takes this one back and end it if it is not over; safe to repeat.

    Its worker may still be at its last rows, until its lease is over.
    """
    now = clock.now()
    job = get(job_id)
    if job is not None and job.reversal is None and job.state in UNFINISHED:
        _tell(job, FAILED)
    unfinished = {"$in": ["$state", [QUEUED, RUNNING]]}
    _jobs().update_one(
        {"_id": job_id, "reversal": None},
        [
            {
                "$set": {
                    "reversal": reversal,
                    "state": {"$cond": [unfinished, FAILED, "$state"]},
                    "failure": {"$cond": [unfinished, why, "$failure"]},
                    "finished_at": {"$ifNull": ["$finished_at", now]},
                }
            }
        ],
    )
    stopped = get(job_id)
    assert stopped is not None, "jobs are never deleted"
    return stopped


def again(job_id: str) -> None:
    """Queue a job once more that has ended."""
    change = {"state": QUEUED, "leased_until": clock.now(), "tries": 0, "finished_at": None}
    wanted = {"_id": job_id, "state": {"$in": [DONE, FAILED]}}
    _jobs().update_one(wanted, {"$set": change})


def postpone(job_id: str, until: datetime) -> None:
    """Let no worker take a queued job before an instant."""
    wanted = {"_id": job_id, "state": QUEUED, "leased_until": {"$lt": until}}
    _jobs().update_one(wanted, {"$set": {"leased_until": until}})


def rest(job: Job, until: datetime) -> None:
    """Let go of a job that is being worked on; it goes on at an instant, with all its tries."""
    wanted = {"_id": job.id, "state": RUNNING}
    change = {"state": QUEUED, "leased_until": until, "tries": 0}
    _jobs().update_one(wanted, {"$set": change})


def waiting(now: datetime) -> list[str]:
    """Jobs nobody works on: queued and not taken, or left by a worker that died."""
    wanted = {"state": {"$in": [QUEUED, RUNNING]}, "leased_until": {"$lte": now}}
    found = _jobs().find(wanted, {"_id": 1}).sort("leased_until", 1).limit(SWEEP_MAX)
    return [row["_id"] for row in found]


def _job(row: storage.Doc) -> Job:
    fields = {name: row[name] for name in Job.__slots__ if name not in ("id",) and name in row}
    return Job(id=row["_id"], **fields)
