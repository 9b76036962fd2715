"""Carrying notifications to devices: quiet hours, one attempt ledger, retries with backoff.

The ledger has one row per notification and device. A worker takes a notification under a lease, so
two of them seldom send the same twice; when one dies in between, the next repeats what the ledger
does not show as sent, and the app drops it by `notification_id`.
"""

import logging
from datetime import datetime, time, timedelta

import mongoengine as me
from pymongo.collection import Collection

from accounting import accounts, clock, outbox, storage
from accounting.outbox import Notification
from integrations import devices
from integrations.devices import Device
from integrations.push import MessageClass, Outcome, Pusher, PushMessage, PushResult

log = logging.getLogger(__name__)

LEASE = timedelta(minutes=1)
# A day of trying, and the quiet hours in between.
GIVE_UP_AFTER = timedelta(hours=36)
BACKOFF_FIRST = timedelta(seconds=10)
BACKOFF_MAX = timedelta(hours=1)
SWEEP_MAX = 1_000


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


def _ledger() -> "Collection[storage.Doc]":
    return storage.strong(DeliveryDocument._get_collection())


def due(now: datetime) -> list[str]:
    """Notifications whose time for an attempt has come, longest waiting first."""
    wanted = {"next_attempt_at": {"$lte": now}}
    found = outbox.collection().find(wanted, {"_id": 1}).sort("next_attempt_at", 1)
    return [row["_id"] for row in found.limit(SWEEP_MAX)]


def deliver(notification_id: str, pusher: Pusher | None) -> str:
    """Try to carry one notification to every live device; returns its delivery state.

    Safe to run twice. Without a pusher it stays queued: the inbox has it anyway.
    """
    now = clock.now()
    if not _take(notification_id, now):
        return "not due"
    notification = outbox.by_id(notification_id)
    if notification is None:
        return "gone"  # With the account it was for.
    resident = accounts.get(notification.resident)
    if resident is None or not resident.push.get(notification.category, True):
        return _put(notification_id, "not_wanted", None)
    if now - notification.created_at > GIVE_UP_AFTER:
        return _put(notification_id, "given_up", None)
    if (quiet_until := _quiet_until(resident.quiet_hours, now)) is not None:
        return _put(notification_id, "deferred", quiet_until)
    if pusher is None:
        return _put(notification_id, "queued", now + BACKOFF_MAX)
    waiting = _waiting_devices(notification)
    if not waiting:
        sent = _ledger().count_documents({"notification": notification_id, "outcome": "sent"})
        return _put(notification_id, "sent" if sent else "no_device", None)
    messages = [_message(notification, device, resident.language) for device, _ in waiting]
    results = pusher.send(messages)
    return _note(notification_id, waiting, results, now)


def _take(notification_id: str, now: datetime) -> bool:
    done = outbox.collection().update_one(
        {"_id": notification_id, "next_attempt_at": {"$lte": now}},
        {"$set": {"next_attempt_at": now + LEASE}},
    )
    return done.modified_count == 1


def _put(notification_id: str, delivery: str, next_attempt_at: datetime | None) -> str:
    outbox.collection().update_one(
        {"_id": notification_id},
        {"$set": {"delivery": delivery, "next_attempt_at": next_attempt_at}},
    )
    return delivery


def _waiting_devices(notification: Notification) -> list[tuple[Device, int]]:
    """Live devices the notification has not reached yet, with the attempts made so far."""
    rows = {row["device"]: row for row in _ledger().find({"notification": notification.id})}
    return [
        (device, rows[device.id]["attempts"] if device.id in rows else 0)
        for device in devices.live(notification.resident)
        if device.id not in rows or rows[device.id]["outcome"] == Outcome.RETRY
    ]


def _message(notification: Notification, device: Device, language: str) -> PushMessage:
    return PushMessage(
        token=device.token,
        title=notification.title[language],
        body=notification.body[language],
        data={
            "notification_id": notification.id,
            "type": notification.type,
            "deep_link": notification.deep_link,
        },
        collapse_key=notification.id,
        message_class=MessageClass(notification.category),
    )


def _note(
    notification_id: str,
    waiting: list[tuple[Device, int]],
    results: list[PushResult],
    now: datetime,
) -> str:
    """Write the ledger, retire dead tokens, and say when to try what is left."""
    waits: list[timedelta] = []
    for (device, attempts), result in zip(waiting, results, strict=True):
        _ledger().update_one(
            {"notification": notification_id, "device": device.id},
            {
                "$set": {"outcome": result.outcome.value, "reason": result.reason, "at": now},
                "$inc": {"attempts": 1},
            },
            upsert=True,
        )
        if result.outcome is Outcome.RETIRE:
            devices.retire(device.id)
        if result.outcome is Outcome.RETRY:
            backoff = min(BACKOFF_FIRST * 2 ** min(attempts, 12), BACKOFF_MAX)
            waits.append(max(backoff, timedelta(seconds=result.retry_after_s or 0)))
    if waits:
        # The longest: a provider that asks for a rest asks for all of its devices.
        return _put(notification_id, "retrying", now + max(waits))
    sent = any(result.outcome is Outcome.SENT for result in results)
    return _put(notification_id, "sent" if sent else "failed", None)


def _quiet_until(quiet_hours: dict[str, str] | None, now: datetime) -> datetime | None:
    """The end of the resident's quiet hours (city time) if `now` lies in them."""
    if quiet_hours is None:
        return None
    local = now.astimezone(clock.CITY)
    start, end = time.fromisoformat(quiet_hours["from"]), time.fromisoformat(quiet_hours["to"])
    at = local.time()
    inside = start <= at < end if start <= end else at >= start or at < end
    if not inside or start == end:
        return None
    until = local.replace(hour=end.hour, minute=end.minute, second=0, microsecond=0)
    if until <= local:
        until += timedelta(days=1)
    return clock.cut(until)
