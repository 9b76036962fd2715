"""Jobs: long work with a state people can watch, kept in the database, resumable after a kill.

A job is queued, then run by one worker at a time under a lease it renews; a worker that dies lets
the lease run out and the sweep hands the job to another, which goes on where the counts stand. A
large one is cut into shares, jobs of their own, that workers do side by side (`shares.py`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import clock, events, pace, storage
from accounting.clients import Kind
from accounting.errors import DomainError, Language
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
ROWS, RESIDENTS, ACCOUNTS = "rows", "residents", "accounts"
SECTIONS, MERCHANTS, CONSENTS = "sections", "merchants", "consents"
# What `total` and `done` may count, and what one of it is called.
UNITS = {
    ROWS: ("row", "行"),
    RESIDENTS: ("resident", "位居民"),
    ACCOUNTS: ("account", "个账户"),
    SECTIONS: ("section", "个部分"),
    MERCHANTS: ("merchant", "家商户"),
    CONSENTS: ("consent", "份授权"),
}
COUNTS = ("credited", "pending", "recorded", "rejected", "duplicate", "parked")


@storage.indexed
class JobDocument(me.Document):
    id = me.StringField(primary_key=True)
    kind = me.StringField(required=True)
    owner = me.StringField(required=True)
    # The job this one is a share of.
    whole = me.StringField()
    state = me.StringField(required=True)
    arguments = me.DictField()
    # What `total` and `done` count.
    unit = me.StringField(required=True)
    total = me.IntField()
    done = me.IntField(required=True)
    bytes_done = me.IntField(required=True)
    counts = me.DictField()
    failure = me.DictField()
    # The pace: see `pace.py`.
    stepped_at = me.DateTimeField()
    marks = me.ListField()
    worked_ms = me.IntField(required=True)
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
            # The newest first, for whoever looks at all of them.
            {"fields": ["whole", "-created_at", "-_id"]},
        ],
    }


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job ended before its work did, in a sentence for its owner."""

    code: str
    en: str
    zh: str

    @classmethod
    def of(cls, refusal: DomainError) -> "Failure":
        return cls(refusal.code, refusal.text("en"), refusal.text("zh"))

    def text(self, language: Language = "zh") -> str:
        return self.zh if language == "zh" else self.en


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stands. `done` counts units; `total` is None until somebody knows.

    Of a walk over people who come and go `total` is how many there were when it was queued, until
    it ends. `bytes_done` is how far a stored file is read, for the progress while it is not known
    how many rows there are.
    """

    id: str
    kind: str
    owner: str
    state: str
    arguments: dict[str, Any]
    unit: str
    total: int | None
    done: int
    bytes_done: int
    counts: dict[str, int]
    failure: Failure | None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    leased_until: datetime = field(default_factory=clock.now)
    tries: int = 0
    reversal: str | None = None
    cancelled_by: str | None = None
    whole: str | None = None
    stepped_at: datetime | None = None
    marks: list[dict[str, Any]] = field(default_factory=list)
    worked_ms: int = 0

    @property
    def progress(self) -> int:
        """Percent; 0 while there is nothing to measure it by, 100 at the end alone."""
        if self.state == DONE:
            return 100
        done, whole = self._way
        return min(done * 100 // whole, 99) if whole else 0

    @property
    def rate_milli(self) -> int:
        """Thousandths of a unit a second: lately, or of one that ended while it was worked on.

        Nobody works on a job that is queued or whose worker died: that one has no rate.
        """
        if self.state in (DONE, FAILED):
            return pace.mean_milli(self.done, self.worked_ms)
        if self.state != RUNNING or self.leased_until <= clock.now():
            return 0
        return pace.lately_milli(self.marks, self.done, self.stepped_at)

    @property
    def seconds_left(self) -> int | None:
        """How long it will take at its rate; None while there is nothing to go by."""
        if self.state != RUNNING:
            return None
        done, whole = self._way
        if not done:
            return None
        left = max(whole - done, 0)
        if self.total is None:
            # Of a file of which only the bytes are known: its rows are taken to be alike.
            left = self.done * left // done
        return pace.seconds_for(left, self.rate_milli)

    @property
    def eta(self) -> datetime | None:
        """When it will be over at its rate."""
        left = self.seconds_left
        return None if left is None else clock.now() + timedelta(seconds=left)

    @property
    def _way(self) -> tuple[int, int]:
        """How far of how much: units where it is known how many, bytes of the file otherwise."""
        if self.total is not None:
            return self.done, self.total
        return self.bytes_done, self.arguments.get("size") or 0


class JobOver(DomainError):
    code = "job_over"
    en = "This job has ended, or waits for an approval."
    zh = "该任务已结束，或正在等待批准。"


class JobNotCancelled(DomainError):
    code = "job_not_cancelled"
    en = "Only a job that was cancelled, and not taken back since, can be resumed."
    zh = "仅可恢复已取消且此后未被撤销的任务。"


def _jobs() -> "Collection[storage.Doc]":
    return storage.strong(JobDocument._get_collection())


def queue(
    kind: str,
    owner: str,
    arguments: dict[str, Any],
    job_id: str | None = None,
    *,
    unit: str = ROWS,
    total: int | None = None,
    whole: str | None = None,
    held: bool = False,
) -> Job:
    """Store a job; a worker takes it when told, or when the sweep finds it.

    With an id it is the one job of that id, however often asked: the first is returned, as it
    stands. A `held` one waits until it is released. A share names the job it is a share of as its
    `whole`.
    """
    now = clock.now()
    job = Job(
        id=job_id or new_id("job"),
        kind=kind,
        owner=owner,
        state=QUEUED,
        arguments=arguments,
        unit=unit,
        total=total,
        done=0,
        bytes_done=0,
        counts=dict.fromkeys(COUNTS, 0),
        failure=None,
        created_at=now,
        leased_until=HELD_UNTIL if held else now,
        whole=whole,
    )
    document = {name: getattr(job, name) for name in Job.__slots__ if name != "id"}
    try:
        _jobs().insert_one({"_id": job.id, **document})
    except DuplicateKeyError:
        first = get(job.id)
        assert first is not None, "jobs are never deleted"
        return first
    return job


def get(job_id: str) -> Job | None:
    found = _jobs().find_one({"_id": job_id})
    return _job(found) if found else None


def many(job_ids: Sequence[str]) -> list[Job]:
    """Those of some jobs that there are."""
    return [_job(found) for found in _jobs().find({"_id": {"$in": list(job_ids)}})]


def shares(whole: str, most: int) -> list[Job]:
    """The shares a job was cut into, in the order of their ids."""
    return [_job(found) for found in _jobs().find({"whole": whole}).sort("_id", 1).limit(most)]


def newest(*, state: str | None = None, kind: str | None = None, limit: int) -> list[Job]:
    """Jobs, the newest first, without shares."""
    wanted: storage.Doc = {"whole": None}
    wanted |= {"state": state} if state is not None else {}
    wanted |= {"kind": kind} if kind is not None else {}
    found = _jobs().find(wanted).sort([("created_at", -1), ("_id", -1)]).limit(limit)
    return [_job(row) for row in found]


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
                    **pace.begun(now),
                }
            }
        ],
        return_document=True,
    )
    if found is None:
        return None
    job = _job(found)
    if job.tries > TRIES_MAX:
        fail(job, _gave_up(job))
        return None
    return job


def _gave_up(job: Job) -> Failure:
    what_en, what_zh = UNITS[job.unit]
    share_en, share_zh = (" of a share", "（某一分片内）") if job.whole else ("", "")
    return Failure(
        "gave_up",
        f"It stopped {TRIES_MAX} times after {what_en} {job.done}{share_en}. Tell us the job id.",
        f"处理到第 {job.done} {what_zh}{share_zh}后已中断 {TRIES_MAX} 次，请把任务编号告知我们。",
    )


def advance(job: Job, done: int, bytes_done: int, counts: dict[str, int]) -> bool:
    """Record progress and renew the lease; False if another worker took the job over."""
    now = clock.now()
    change = {
        "done": done,
        "bytes_done": bytes_done,
        "counts": {"$literal": counts},
        "leased_until": now + LEASE,
        "tries": 0,
        **pace.stepped(now, done, LEASE),
    }
    wanted = {"_id": job.id, "state": RUNNING, "done": {"$lt": done}}
    return _jobs().update_one(wanted, [{"$set": change}]).modified_count == 1


def hold(job_id: str) -> bool:
    """Renew the lease of a job that is worked on; False if it is over or rests."""
    change = {"$max": {"leased_until": clock.now() + LEASE}}
    return _jobs().update_one({"_id": job_id, "state": RUNNING}, change).matched_count == 1


def forget_tries(job_id: str) -> None:
    """Let a job begin its tries anew: what was tried has worked."""
    _jobs().update_one({"_id": job_id, "state": RUNNING}, {"$set": {"tries": 0}})


def expect(job_id: str, total: int, **arguments: Any) -> None:
    """Write down how much a job will have to do, and what its worker found out besides.

    Its pace is measured from here: finding out was none of the work.
    """
    change = {"total": total, **pace.begun(clock.now())}
    change |= {f"arguments.{name}": {"$literal": value} for name, value in arguments.items()}
    _jobs().update_one({"_id": job_id, "state": RUNNING}, [{"$set": change}])


def finish(job: Job, total: int) -> None:
    _tell(job, DONE)
    _end(job, {"state": DONE, "total": total})


def fail(job: Job, why: Failure) -> None:
    """End a job that cannot go on."""
    _tell(job, FAILED)
    _end(job, {"state": FAILED, "failure": asdict(why)})


def _end(job: Job, change: storage.Doc) -> None:
    ended = {**change, "finished_at": clock.now()}
    _jobs().update_one({"_id": job.id, "state": RUNNING}, {"$set": ended})


def _tell(job: Job, state: str) -> None:
    """Leave word that a job ends, for its partner or for operators, whoever asked for it.

    Nobody asked for a share: its whole ends with the last of them.
    """
    if job.whole is not None:
        return
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
        "failure": asdict(Failure("cancelled", f"Cancelled: {why}", f"已取消：{why}")),
        "finished_at": clock.now(),
        "cancelled_by": by,
    }
    wanted = {"_id": job_id, "state": {"$in": UNFINISHED}, "leased_until": {"$lt": HELD_UNTIL}}
    found = _jobs().find_one_and_update(wanted, {"$set": change}, return_document=True)
    if found is None:
        raise JobOver()
    return _job(found)


def resume(job_id: str, rest: timedelta = LEASE) -> Job:
    """Let a cancelled job go on where it was stopped, after a rest. Raises `JobNotCancelled`.

    Whoever worked on it may be at its last step yet.
    """
    change = {
        "state": QUEUED,
        "failure": None,
        "finished_at": None,
        "cancelled_by": None,
        "leased_until": clock.now() + rest,
        "tries": 0,
    }
    wanted = {"_id": job_id, "state": FAILED, "cancelled_by": {"$type": "string"}, "reversal": None}
    found = _jobs().find_one_and_update(wanted, {"$set": change}, return_document=True)
    if found is None:
        raise JobNotCancelled()
    return _job(found)


def stop(job_id: str, reversal: str, why: Failure) -> Job:
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
                    "failure": {"$cond": [unfinished, {"$literal": asdict(why)}, "$failure"]},
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
    change = {"state": QUEUED, "leased_until": clock.now(), "tries": 0}
    change |= {"finished_at": None, "failure": None}
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
    fields = {name: row[name] for name in Job.__slots__ if name != "id" and name in row}
    if fields["failure"] is not None:
        fields["failure"] = Failure(**fields["failure"])
    return Job(id=row["_id"], **fields)
