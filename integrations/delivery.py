"""Carrying notifications to devices: quiet hours, daily caps, one attempt ledger, retries.

The ledger has one row per notification and device. A worker takes notifications under a lease, a
batch at a time, so two of them seldom send the same twice; when one dies in between, the next
repeats what the ledger does not show as sent, at most a batch, and the app drops it by
`notification_id`.
"""

import logging
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import mongoengine as me
from pymongo import UpdateOne
from pymongo.collection import Collection

from accounting import accounts, clock, notices, outbox, quiet_hours, storage
from accounting.accounts import Resident
from accounting.ids import new_id
from accounting.outbox import Notification
from integrations import devices, slots
from integrations.devices import Device
from integrations.push import MessageClass, Outcome, Pusher, PushMessage, PushResult
from integrations.slots import Wish

log = logging.getLogger(__name__)

# Longer than a batch takes when every message of it times out.
LEASE = timedelta(minutes=1)
TAKE_MAX = 100
# Messages handed to the provider at once; what a worker that dies may leave to be sent again.
BATCH_MAX = 100
GIVE_UP_AFTER = timedelta(hours=24)
BACKOFF_FIRST = timedelta(seconds=10)
BACKOFF_MAX = timedelta(hours=1)
# The ledger says so of a device that had its number of the day.
CAPPED = "capped"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@storage.indexed
class DeliveryDocument(me.Document):
    """What became of one notification on one device."""

    notification = me.StringField(required=True)
    device = me.StringField(required=True)
    outcome = me.StringField(required=True)
    attempts = me.IntField(required=True)
    reason = me.StringField()
    at = me.DateTimeField(required=True)

    meta = {
        "collection": "deliveries",
        "auto_create_index": False,
        "indexes": [{"fields": ["notification", "device"], "unique": True}],
    }


@dataclass(slots=True)
class _Course:
    """One notification on its way: whom it goes to, and what is known of each device."""

    notification: Notification
    resident: Resident
    waiting: list[tuple[Device, int]] = field(default_factory=list)
    # Reached before, or by this batch.
    reached: bool = False
    capped: bool = False
    results: list[PushResult] = field(default_factory=list)
    waits: list[timedelta] = field(default_factory=list)
    # Folded and unread, for a digest.
    count: int = 0


@dataclass(frozen=True, slots=True)
class _End:
    """Where a notification stands after it was looked at; without a next time it is over."""

    delivery: str
    next_attempt_at: datetime | None = None
    tried: bool = False


def _ledger() -> "Collection[storage.Doc]":
    return storage.strong(DeliveryDocument._get_collection())


def due(now: datetime, category: str, limit: int = TAKE_MAX) -> list[str]:
    """Notifications of a class whose time for an attempt has come, longest waiting first."""
    wanted = {"category": category, "next_attempt_at": {"$gt": EPOCH, "$lte": now}}
    found = outbox.collection().find(wanted, {"_id": 1}).sort("next_attempt_at", 1)
    return [row["_id"] for row in found.limit(limit)]


def carry_due(category: str, pusher: Pusher | None, within_s: float) -> int:
    """Carry what is due, batch by batch, beginning none after `within_s`; returns how many."""
    until, carried = time.monotonic() + within_s, 0
    while ids := due(clock.now(), category):
        carried += len(carry(ids, pusher))
        if time.monotonic() > until:
            break
    return carried


def deliver(notification_id: str, pusher: Pusher | None) -> str:
    """Try to carry one notification to every live device; returns its delivery state."""
    return carry([notification_id], pusher).get(notification_id, "not due")


def carry(notification_ids: Sequence[str], pusher: Pusher | None) -> dict[str, str]:
    """Try to carry notifications to every live device; the delivery state of those that were due.

    Safe to run twice and at the same time. Without a pusher they stay queued: the inbox has them
    anyway.
    """
    now = clock.now()
    lease = new_id("lease")
    taken = _take(notification_ids, now, lease)
    if not taken:
        return {}
    residents = accounts.get_many([one.resident for one in taken])
    stopped = outbox.stopped(one.batch for one in taken if one.batch)
    ends: dict[str, _End] = {}
    courses: dict[str, _Course] = {}
    for notification in taken:
        resident = residents.get(notification.resident)
        end = (
            _STOPPED
            if notification.batch in stopped
            else _held_back(notification, resident, pusher, now)
        )
        if end is not None:
            ends[notification.id] = end
        else:
            assert resident is not None, "without one it is held back"
            courses[notification.id] = _Course(notification, resident)
    if courses:
        assert pusher is not None, "without one all are held back"
        _find_devices(courses)
        _count_digests(courses.values())
        _keep_caps(courses.values(), now)
        left_over = _send(courses, pusher, now)
        for name, course in courses.items():
            ends[name] = _End(outbox.QUEUED, now) if name in left_over else _end(course, now)
        _fold(course for course in courses.values() if ends[course.notification.id] == _FOLDED)
    _put(taken, ends, now, lease)
    return {name: end.delivery for name, end in ends.items()}


_FOLDED, _STOPPED = _End(outbox.FOLDED), _End(outbox.STOPPED)


def _take(ids: Sequence[str], now: datetime, lease: str) -> list[Notification]:
    """Those of the notifications that are due and that nobody else has taken."""
    mine = {"_id": {"$in": list(ids)}}
    outbox.collection().update_many(
        {**mine, "next_attempt_at": {"$lte": now, "$gt": EPOCH}},
        {"$set": {"next_attempt_at": now + LEASE, "lease": lease}},
    )
    return outbox.found({**mine, "lease": lease})


def _held_back(
    notification: Notification, resident: Resident | None, pusher: Pusher | None, now: datetime
) -> _End | None:
    """Why a notification is not sent now, if so. Pure."""
    if resident is None or not resident.push.get(notification.category, True):
        return _End("not_wanted")
    if notification.tried_at is not None and now - notification.tried_at >= GIVE_UP_AFTER:
        return _End("given_up")
    if (quiet_until := quiet_hours.until(resident.quiet_hours, now)) is not None:
        return _End(outbox.DEFERRED, quiet_until)
    if pusher is None:
        return _End(outbox.QUEUED, now + BACKOFF_MAX, tried=True)
    return None


def _find_devices(courses: Mapping[str, _Course]) -> None:
    """The live devices each has not reached yet, with the attempts made so far."""
    live = devices.live_of(list({one.resident.id for one in courses.values()}))
    ledger: dict[str, dict[str, storage.Doc]] = {name: {} for name in courses}
    for row in _ledger().find({"notification": {"$in": list(courses)}}):
        ledger[row["notification"]][row["device"]] = row
    for name, course in courses.items():
        rows = ledger[name]
        course.reached = any(row["outcome"] == Outcome.SENT for row in rows.values())
        course.waiting = [
            (device, rows[device.id]["attempts"] if device.id in rows else 0)
            for device in live[course.resident.id]
            if device.id not in rows or rows[device.id]["outcome"] == Outcome.RETRY
        ]


def _count_digests(courses: Iterable[_Course]) -> None:
    """What a digest tells of; nothing where the inbox was read meanwhile."""
    for course in courses:
        notification = course.notification
        if notification.type == outbox.DIGEST:
            course.count = outbox.folded(notification.resident, notification.category)
            course.waiting = course.waiting if course.count else []


def _keep_caps(courses: Iterable[_Course], now: datetime) -> None:
    """Leave out the devices that had their number of this class today, and note it of them."""
    courses = list(courses)
    may = slots.take([wish for one in courses for wish in _wishes(one)], clock.city_day(now))
    full: list[Wish] = []
    for course in courses:
        wishes = _wishes(course)
        waiting = list(zip(course.waiting, wishes, strict=True))
        course.waiting = [place for place, wish in waiting if wish in may]
        course.capped = len(course.waiting) < len(wishes)
        if course.waiting:
            full += [wish for _, wish in waiting if wish not in may]
    if full:
        _ledger().bulk_write(
            [_ledger_row(one.notification, one.device, CAPPED, None, now) for one in full],
            ordered=False,
        )


def _wishes(course: _Course) -> list[Wish]:
    notification = course.notification
    return [Wish(notification.id, notification.category, device.id) for device, _ in course.waiting]


def _send(courses: Mapping[str, _Course], pusher: Pusher, now: datetime) -> set[str]:
    """Send batch by batch, each written down before the next; what there was no time for."""
    places = [
        (course, device, attempts)
        for course in courses.values()
        for device, attempts in course.waiting
    ]
    for start in range(0, len(places), BATCH_MAX):
        batch = places[start : start + BATCH_MAX]
        if start and clock.now() - now > LEASE / 2:
            return {course.notification.id for course, _, _ in places[start:]}
        results = pusher.send([_message(course, device) for course, device, _ in batch])
        _note(batch, results, now)
    return set()


def _message(course: _Course, device: Device) -> PushMessage:
    notification, language = course.notification, course.resident.language
    title = notification.title[language]
    if notification.type == outbox.DIGEST:
        title = title.format(count=course.count)
    return PushMessage(
        token=device.token,
        platform=device.platform,
        title=title,
        body=notification.body[language],
        data={
            "notification_id": notification.id,
            "type": notification.type,
            "deep_link": notification.deep_link,
        },
        collapse_key=notification.collapse_key or notification.id,
        message_class=MessageClass(notification.category),
    )


def _note(
    batch: Sequence[tuple[_Course, Device, int]], results: Sequence[PushResult], now: datetime
) -> None:
    """Write the ledger, retire dead tokens, and gather how long to wait for the rest."""
    rows, dead = [], []
    for (course, device, attempts), result in zip(batch, results, strict=True):
        outcome = result.outcome
        rows.append(
            _ledger_row(course.notification.id, device.id, outcome.value, result.reason, now)
        )
        course.results.append(result)
        course.reached = course.reached or outcome is Outcome.SENT
        if outcome is Outcome.RETIRE:
            dead.append(device.id)
        if outcome is Outcome.RETRY:
            course.waits.append(_wait(attempts, result.retry_after_s))
    _ledger().bulk_write(rows, ordered=False)
    if dead:
        devices.retire(dead, now)


def _ledger_row(
    notification: str, device: str, outcome: str, reason: str | None, now: datetime
) -> UpdateOne:
    return UpdateOne(
        {"notification": notification, "device": device},
        {"$set": {"outcome": outcome, "reason": reason, "at": now}, "$inc": {"attempts": 1}},
        upsert=True,
    )


def _wait(attempts: int, retry_after_s: int | None) -> timedelta:
    """Doubling, and up to half as long again so that not all come back at once."""
    backoff = min(BACKOFF_FIRST * 2 ** min(attempts, 12), BACKOFF_MAX)
    least = max(backoff, timedelta(seconds=retry_after_s or 0))
    return least + backoff * random.random() / 2


def _end(course: _Course, now: datetime) -> _End:
    """What became of a notification that was to be sent. Pure."""
    if course.waits:
        # The longest: a provider that asks for a rest asks for all of its devices.
        return _End(outbox.RETRYING, clock.cut(now + max(course.waits)), tried=True)
    if course.reached:
        return _End("sent", tried=bool(course.results))
    if course.capped:
        return _FOLDED
    if any(result.outcome is not Outcome.RETIRE for result in course.results):
        return _End("failed", tried=True)
    if course.notification.type == outbox.DIGEST and not course.count:
        return _End("not_wanted")
    return _End("no_device", tried=bool(course.results))


def _fold(courses: Iterator[_Course]) -> None:
    """Leave one digest for tomorrow of what is too much for today."""
    tomorrow = clock.city_day(clock.now()) + timedelta(days=1)
    outbox.leave_many(
        [
            notices.make(
                outbox.DIGEST,
                course.resident.id,
                f"digest/{course.notification.category}/{tomorrow}",
                category=course.notification.category,
                not_before=notices.morning_of(tomorrow),
                # Filled in when it is sent: more may be folded until then.
                count="{count}",
            )
            for course in courses
        ]
    )


def _put(
    taken: Iterable[Notification], ends: Mapping[str, _End], now: datetime, lease: str
) -> None:
    """Write down where each stands; whoever lost its lease leaves it to the other."""
    rows = []
    for notification in taken:
        end = ends[notification.id]
        fields: dict[str, Any] = {
            "delivery": end.delivery,
            "next_attempt_at": end.next_attempt_at,
            "lease": None,
        }
        if end.tried and notification.tried_at is None:
            fields["tried_at"] = now
        rows.append(UpdateOne({"_id": notification.id, "lease": lease}, {"$set": fields}))
    if rows:
        outbox.collection().bulk_write(rows, ordered=False)
