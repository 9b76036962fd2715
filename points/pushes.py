"""Pushes of operators: a text to a filtered audience, once to each, at a pace, until it is stopped.

    asked -> job, not before its time -> rows in inboxes, a stretch at a time -> carried like others

A push is marketing: preferences, quiet hours and the daily cap hold for every row, and the city's
default quiet hours for the walk as a whole. A row is unique on (push, resident), so a worker that
dies repeats a stretch and leaves nothing twice. What waits is bounded by the pace: a sender that
was away comes back to a minute of it and not to a night.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import (
    account_filters,
    alarms,
    audit,
    clock,
    jobs,
    outbox,
    quiet_hours,
    storage,
    sweeping,
    walks,
)
from accounting.accounts import DEFAULT_QUIET_HOURS
from accounting.errors import DomainError, NotFound, ValidationFailed
from accounting.ids import new_id
from accounting.jobs import Job
from accounting.outbox import Notice
from points import push_audience
from points.push_audience import Audience

KIND: Final = "push"
TYPE: Final = "city_message"
AHEAD_MAX = timedelta(days=90)
SWEEP_MAX = 1_000
_MINUTE = timedelta(minutes=1)
# By what became of a row: what is in none of these was dropped.
_COUNTED: Final = (outbox.QUEUED, outbox.DEFERRED, outbox.RETRYING, outbox.SENT, outbox.FOLDED)


class PushOver(DomainError):
    code = "push_over"
    en = "This push has ended: nothing of it is left to be stopped."
    zh = "该推送已结束，没有可停止的内容。"


@storage.indexed
class PushDocument(me.Document):
    """`size` is what was counted when it was asked for."""

    id = me.StringField(primary_key=True)
    # The request that made it, so that a retry makes no other.
    once = me.StringField()
    terms = me.DictField()
    size = me.DictField()
    asked_by = me.StringField(required=True)
    created_at = me.DateTimeField(required=True)
    stopped_by = me.StringField()
    stopped_at = me.DateTimeField()
    stop_reason = me.StringField()
    # Until nothing is left to do for it; the sweep looks here.
    open = me.BooleanField()

    meta = {
        "collection": "pushes",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["once"], "unique": True, "sparse": True},
            {"fields": ["open"], "name": "open", "partialFilterExpression": {"open": True}},
        ],
    }


@dataclass(frozen=True, slots=True)
class Terms:
    """What is to be told to whom, when and how fast; texts are `{"zh": ..., "en": ...}`."""

    title: Mapping[str, str]
    body: Mapping[str, str]
    deep_link: str
    audience: Audience
    not_before: datetime | None = None
    per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class Push:
    """A push as it stands; `state` is scheduled, sending, sent, stopped or failed."""

    id: str
    terms: Terms
    people: int
    opted_out: int
    exact: bool
    asked_by: str
    created_at: datetime
    stopped_by: str | None
    stopped_at: datetime | None
    stop_reason: str | None
    state: str

    @property
    def job(self) -> str:
        return _job_id(self.id)

    @property
    def as_of(self) -> datetime:
        """When its audience is looked at: days since somebody was there count from here."""
        return max(self.created_at, self.terms.not_before or self.created_at)


@dataclass(frozen=True, slots=True)
class Report:
    """What became of the rows of a push: each is in one place, and read ones are `opened` too."""

    left: int
    waiting: int
    deferred: int
    sent: int
    folded: int
    dropped: int
    dropped_by: Mapping[str, int]
    opened: int


def ask(terms: Terms, by: str, *, once: str | None = None) -> Push:
    """Ask for a push; a worker begins at once, or at its time. The same `once` is the same push."""
    now = clock.now()
    if terms.not_before is not None and terms.not_before > now + AHEAD_MAX:
        raise ValidationFailed("/not_before", "At most 90 days ahead.", "最多提前 90 天。")
    size = push_audience.size(terms.audience, now)
    kept = {
        "title": dict(terms.title),
        "body": dict(terms.body),
        "deep_link": terms.deep_link,
        "audience": terms.audience.dump(),
        "not_before": terms.not_before,
        "per_minute": terms.per_minute,
    }
    row: storage.Doc = {
        "_id": new_id("psh"),
        "terms": kept,
        "size": {"people": size.people, "opted_out": size.opted_out, "exact": size.exact},
        "asked_by": by,
        "created_at": now,
        "stopped_by": None,
        "stopped_at": None,
        "stop_reason": None,
        "open": True,
        **({"once": once} if once is not None else {}),
    }
    try:
        _pushes().insert_one(row)
    except DuplicateKeyError:
        found = _pushes().find_one({"once": once})
        assert found is not None, "ids are never made twice"
        row = found
    _begin(row)
    return get(row["_id"])


def stop(push_id: str, by: str, *, reason: str) -> Push:
    """Leave and send nothing more of a push; what is under way at the provider arrives.

    Stopping again changes nothing. Raises `NotFound` and `PushOver`.
    """
    change = {"stopped_by": by, "stopped_at": clock.now(), "stop_reason": reason}
    wanted = {"_id": push_id, "open": True, "stopped_at": None}
    _pushes().update_one(wanted, {"$set": change})
    push = get(push_id)
    if push.stopped_at is None:
        raise PushOver()
    _carry_out_stop(push)
    return push


def get(push_id: str) -> Push:
    """Raises `NotFound`."""
    found = _pushes().find_one({"_id": push_id})
    if found is None:
        raise NotFound()
    return _push(found, jobs.get(_job_id(push_id)))


def newest(*, before: str | None, limit: int) -> list[Push]:
    """Pushes, newest first, from below an id."""
    wanted = {"_id": {"$lt": before}} if before is not None else {}
    found = list(_pushes().find(wanted).sort("_id", -1).limit(limit))
    by_id = {job.id: job for job in jobs.many([_job_id(row["_id"]) for row in found])}
    return [_push(row, by_id.get(_job_id(row["_id"]))) for row in found]


def report(push_id: str) -> Report:
    states, opened = outbox.progress(push_id)
    dropped = {state: rows for state, rows in sorted(states.items()) if state not in _COUNTED}
    return Report(
        left=states.total(),
        waiting=states[outbox.QUEUED] + states[outbox.RETRYING],
        deferred=states[outbox.DEFERRED],
        sent=states[outbox.SENT],
        folded=states[outbox.FOLDED],
        dropped=sum(dropped.values()),
        dropped_by=dropped,
        opened=opened,
    )


def run(job_id: str) -> Job | None:
    """Carry a push on: leave rows at its pace, then rest; see `walks.run`."""
    job = jobs.get(job_id)
    assert job is not None, job_id
    push = get(job.arguments["push"])
    if push.stopped_at is not None:
        # It may have been queued a moment after the stop, when there was nothing to cancel.
        _carry_out_stop(push)
        return None
    terms, began = push.terms, clock.now()
    which = terms.audience.accounts(push.as_of)
    room = _room(push)
    chosen: list[str] = []

    def ids_after(after: str, limit: int) -> Sequence[str]:
        nonlocal room, chosen
        now = clock.now()
        if terms.not_before is not None and now < terms.not_before:
            raise walks.Rest(terms.not_before)
        morning = quiet_hours.until(DEFAULT_QUIET_HOURS, now)
        if morning is not None:
            raise walks.Rest(morning)
        ids = account_filters.after(which, after, limit)
        wanted = push_audience.among(terms.audience, ids, push.as_of)
        chosen = [one for one in ids if one in wanted]
        if room is None or not ids:
            return ids
        if chosen and not room:
            raise walks.Rest(began + _MINUTE)
        if len(chosen) > room:
            # Up to the first there is no room for.
            ids = ids[: ids.index(chosen[room])]
            chosen = chosen[:room]
        room -= len(chosen)
        return ids

    def work(job: Job, ids: Sequence[str]) -> walks.Totals:
        outbox.leave_many([_notice(push, resident) for resident in chosen])
        return {"people": len(chosen)}

    return walks.run(job_id, work, ids_after=ids_after)


def sweep() -> int:
    """Go on with what a crash left half asked or half stopped, and close what has ended."""
    rows = list(_pushes().find({"open": True}).sort("_id", 1).limit(SWEEP_MAX))
    found = {job.id: job for job in jobs.many([_job_id(row["_id"]) for row in rows])}
    steps = [_next_step(row, found.get(_job_id(row["_id"]))) for row in rows]
    return sweeping.each("push", filter(None, steps), lambda step: step())


def _next_step(row: storage.Doc, job: Job | None) -> Callable[[], None] | None:
    push = _push(row, job)
    if push.stopped_at is not None:
        return partial(_carry_out_stop, push)
    if job is None:
        return partial(_begin, row)
    if job.state == jobs.FAILED:
        return partial(_give_up, push, job.failure.en if job.failure else None)
    if job.state == jobs.DONE and not outbox.any_waits(push.id):
        return partial(_close, push)
    return None


def _give_up(push: Push, why: str | None) -> None:
    alarms.sound("push_failed", push.id, failure=why)
    _close(push)


def _begin(row: storage.Doc) -> None:
    """Write down who asked and queue the job; safe to repeat."""
    push_id, terms = row["_id"], row["terms"]
    not_before = terms["not_before"]
    shown = {**terms, "not_before": not_before.isoformat() if not_before else None}
    audit.note(row["asked_by"], "push asked for", push_id, after=shown, once=f"push:{push_id}")
    walks.queue(KIND, row["asked_by"], {"push": push_id}, _job_id(push_id))
    if not_before is not None:
        jobs.postpone(_job_id(push_id), not_before)


def _carry_out_stop(push: Push) -> None:
    """Everything that follows from a stop; safe to repeat."""
    assert push.stopped_by is not None, push.id
    outbox.stop(push.id)
    job = jobs.get(push.job)
    if job is not None and job.state in jobs.UNFINISHED:
        with contextlib.suppress(jobs.JobOver):
            jobs.cancel(job.id, push.stopped_by, push.stop_reason or push.id)
    audit.note(
        push.stopped_by,
        "push stopped",
        push.id,
        reason=push.stop_reason,
        before={"stopped": False},
        after={"stopped": True},
        once=f"push:{push.id}:stopped",
    )
    _close(push)


def _close(push: Push) -> None:
    _pushes().update_one({"_id": push.id}, {"$set": {"open": False}})


def _room(push: Push) -> int | None:
    """How many rows may be left in this turn, None for any number."""
    pace = push.terms.per_minute
    return None if pace is None else pace - outbox.untried(push.id, pace)


def _notice(push: Push, resident: str) -> Notice:
    return Notice(
        resident,
        f"push/{push.id}",
        type=TYPE,
        category=outbox.MARKETING,
        title=push.terms.title,
        body=push.terms.body,
        deep_link=push.terms.deep_link,
        batch=push.id,
    )


def _push(row: storage.Doc, job: Job | None) -> Push:
    terms = row["terms"]
    return Push(
        id=row["_id"],
        terms=Terms(**{**terms, "audience": Audience.of(terms["audience"])}),
        people=row["size"]["people"],
        opted_out=row["size"]["opted_out"],
        exact=row["size"]["exact"],
        asked_by=row["asked_by"],
        created_at=row["created_at"],
        stopped_by=row["stopped_by"],
        stopped_at=row["stopped_at"],
        stop_reason=row["stop_reason"],
        state=_state(row, job),
    )


def _state(row: storage.Doc, job: Job | None) -> str:
    if row["stopped_at"] is not None:
        return "stopped"
    if job is None or job.started_at is None:
        return "scheduled"
    if job.state == jobs.FAILED:
        return "failed"
    return "sending" if row["open"] else "sent"


def _job_id(push_id: str) -> str:
    return f"job_{push_id}"


def _pushes() -> "Collection[storage.Doc]":
    return storage.strong(PushDocument._get_collection())
