"""Carrying events to webhooks: at least once, in order within an aggregate, for three days.

Signed as Standard Webhooks (standardwebhooks.com) says: HMAC-SHA256 over `id.timestamp.body`, with
every live secret. One worker at a time carries to a webhook, under a lease it renews; one that dies
leaves the lease to run out, and the next repeats what has no answer on record. The receiver drops
what it has seen by `webhook-id`.

An event that fails holds up the later ones of its aggregate and no others. A receiver that answers
nothing rests as a whole, and is then tried with one event; three days of that disable it.
"""

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import mongoengine as me
from pymongo import UpdateOne
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError
from standardwebhooks import Webhook as Signer

from accounting import alarms, clock, events, storage, subscriptions
from accounting.errors import ValidationFailed
from accounting.events import OPERATORS, Event, Happening, Type
from accounting.ids import new_id
from accounting.subscriptions import Webhook
from integrations.webhook_targets import Answer

log = logging.getLogger(__name__)

LEASE = timedelta(minutes=1)
RENEW_AFTER = timedelta(seconds=20)
GIVE_UP_AFTER = timedelta(days=3)
BACKOFF_FIRST = timedelta(seconds=5)
BACKOFF_MAX = timedelta(hours=1)
# A receiver that is away is tried with one event a minute, so that it is soon known to be back.
REST_MAX = timedelta(minutes=1)
JITTER = 0.1
DELIVERIES_KEPT = timedelta(days=35)
# Sends at once to one webhook, each of another aggregate.
LANES = 8
BATCH_MAX = 200
LAY_OUT_MAX = 500
# How long a run begins new batches before it lets another webhook have the worker.
RUN_S = 60.0
# Failures without one success after which the receiver counts as away.
HOPELESS = 3
GONE = 410
WAITING, DELIVERED, GIVEN_UP = "waiting", "delivered", "given_up"

# Sends one signed request: (url, body, headers).
Post = Callable[[str, bytes, dict[str, str]], Answer]


@storage.indexed
class WebhookDeliveryDocument(me.Document):
    """One event on its way to one webhook; the id is `webhook:number`."""

    id = me.StringField(primary_key=True)
    webhook = me.StringField(required=True)
    number = me.LongField(required=True)
    event = me.StringField(required=True)
    type = me.StringField(required=True)
    aggregate = me.StringField(required=True)
    state = me.StringField(required=True)
    round = me.IntField(required=True)
    attempts = me.IntField(required=True)
    next_attempt_at = me.DateTimeField(required=True)
    first_attempt_at = me.DateTimeField()
    last_attempt_at = me.DateTimeField()
    status = me.IntField()
    error = me.StringField()
    took_ms = me.IntField()
    created_at = me.DateTimeField(required=True)

    meta = {
        "collection": "webhook_deliveries",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["webhook", "number"]},
            {"fields": ["webhook", "state", "number"]},
            {
                "fields": ["webhook", "next_attempt_at", "number"],
                "name": "due",
                "partialFilterExpression": {"state": WAITING},
            },
            {
                "fields": ["webhook", "aggregate", "number"],
                "name": "waiting_lane",
                "partialFilterExpression": {"state": WAITING},
            },
            {"fields": ["created_at"], "expireAfterSeconds": int(DELIVERIES_KEPT.total_seconds())},
        ],
    }


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of an event on its way to a webhook; `error` is from the last try."""

    id: str
    number: int
    event: str
    type: str
    aggregate: str
    state: str
    attempts: int
    next_attempt_at: datetime | None
    last_attempt_at: datetime | None
    status: int | None
    error: str | None
    took_ms: int | None
    created_at: datetime


@dataclass
class _Run:
    """One worker's turn at a webhook."""

    webhook: Webhook
    lease: str
    post: Post
    renewed_at: datetime
    sent: int = 0
    failed: int = 0
    retry_after_s: int = 0
    until_s: float = field(default_factory=lambda: time.monotonic() + RUN_S)
    over: bool = False
    gone: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def hopeless(self) -> bool:
        return self.failed >= HOPELESS and self.sent == 0


def carry(webhook_id: str, post: Post) -> bool:
    """Carry what waits for a webhook; True when there is more to carry at once.

    Safe to run twice: only one has the lease.
    """
    run = _taken(webhook_id, post)
    if run is None:
        return False
    more = False
    try:
        events.number(run.webhook.party)
        while lay_out(run.webhook.id):
            if not _still_mine(run):
                return False
        more = _send(run)
    finally:
        _rest(run)
    # What was left since found the lease taken.
    return more or events.any_left(run.webhook.party)


def lay_out(webhook_id: str) -> bool:
    """Make deliveries of the next numbered events; False when there was none.

    Safe to repeat. What an earlier round made is made to wait once more, once.
    """
    found = subscriptions.rows().find_one({"_id": webhook_id})
    if found is None:
        return False
    hook = subscriptions.of_row(found)
    next_ = events.after(hook.party, hook.laid_out, LAY_OUT_MAX)
    if not next_:
        return False
    wanted = [event for event in next_ if event.type in hook.events]
    _make(hook, wanted)
    subscriptions.rows().update_one(
        {"_id": hook.id, "round": hook.round, "laid_out": hook.laid_out},
        {"$set": {"laid_out": next_[-1].number}},
    )
    return True


def replay(party: str, webhook_id: str, cursor: int) -> int:
    """Carry everything after a cursor once more; returns the number of the last event so far.

    Raises `NotFound`, and `ValidationFailed` for a cursor that lies in the future.
    """
    hook = subscriptions.get(party, webhook_id)
    events.number(party)
    last = events.head(party)
    if cursor > last:
        raise ValidationFailed("/cursor", "No event has it yet.", "尚无该游标对应的事件。")
    subscriptions.rows().update_one(
        {"_id": hook.id},
        [
            {
                "$set": {
                    "round": {"$add": ["$round", 1]},
                    "laid_out": {"$min": ["$laid_out", cursor]},
                }
            }
        ],
    )
    return last


def deliveries(
    webhook_id: str, *, state: str | None, before: int | None, limit: int
) -> list[Delivery]:
    """The deliveries of a webhook, the newest event first."""
    wanted: dict[str, Any] = {"webhook": webhook_id}
    if state is not None:
        wanted["state"] = state
    if before is not None:
        wanted["number"] = {"$lt": before}
    return [_delivery(row) for row in _rows().find(wanted).sort("number", -1).limit(limit)]


def waiting(webhook_id: str) -> int:
    return _rows().count_documents({"webhook": webhook_id, "state": WAITING})


def forget(webhook_id: str) -> None:
    """Drop the deliveries of a webhook that is deleted."""
    _rows().delete_many({"webhook": webhook_id})


def body_of(event: Event) -> bytes:
    """What is sent; the same for every try, so that its digest is too."""
    content = {
        "id": event.id,
        "type": event.type,
        "timestamp": clock.iso(event.at),
        "aggregate": event.aggregate,
        "sequence": event.sequence,
        "cursor": event.number,
        "data": event.data,
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def headers_of(event: Event, body: bytes, secrets: Iterable[str], now: datetime) -> dict[str, str]:
    """The headers of Standard Webhooks, with one signature for each live secret."""
    signatures = [Signer(secret).sign(event.id, now, body.decode()) for secret in secrets]
    return {
        "Content-Type": "application/json",
        "User-Agent": "Tanhui-Webhooks/1",
        "webhook-id": event.id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def backoff(attempts: int) -> timedelta:
    """How long to wait after so many failures in a row: 5 s, doubled to an hour, ± 10 %."""
    wait = min(BACKOFF_FIRST * 2 ** min(attempts - 1, 12), BACKOFF_MAX)
    return wait * random.uniform(1 - JITTER, 1 + JITTER)


def _taken(webhook_id: str, post: Post) -> _Run | None:
    now, lease = clock.now(), new_id("lse")
    found = subscriptions.rows().find_one_and_update(
        {
            "_id": webhook_id,
            "state": subscriptions.ACTIVE,
            "rests_until": {"$lte": now},
            "leased_until": {"$lte": now},
        },
        {"$set": {"lease": lease, "leased_until": now + LEASE}},
        return_document=True,
    )
    return _Run(subscriptions.of_row(found), lease, post, now) if found else None


def _still_mine(run: _Run) -> bool:
    """Renew the lease when it is time; False, for good, once another has it or it is stopped."""
    with run.lock:
        now = clock.now()
        if not run.over and now - run.renewed_at > RENEW_AFTER:
            mine = {"_id": run.webhook.id, "lease": run.lease, "state": subscriptions.ACTIVE}
            change = {"$set": {"leased_until": now + LEASE}}
            run.over = subscriptions.rows().update_one(mine, change).matched_count == 0
            run.renewed_at = now
        return not run.over


def _make(hook: Webhook, wanted: Sequence[Event]) -> None:
    now = clock.now()
    writes = [
        UpdateOne(
            {"_id": f"{hook.id}:{event.number}", "round": {"$lt": hook.round}},
            {
                "$set": {
                    "state": WAITING,
                    "round": hook.round,
                    "attempts": 0,
                    "next_attempt_at": now,
                    "first_attempt_at": None,
                },
                "$setOnInsert": {
                    "webhook": hook.id,
                    "number": event.number,
                    "event": event.id,
                    "type": event.type,
                    "aggregate": event.aggregate,
                    "last_attempt_at": None,
                    "status": None,
                    "error": None,
                    "took_ms": None,
                    "created_at": now,
                },
            },
            upsert=True,
        )
        for event in wanted
    ]
    if not writes:
        return
    try:
        _rows().bulk_write(writes, ordered=False)
    except BulkWriteError as error:
        # Those of this round are there already.
        if any(one["code"] != storage.DUPLICATE for one in error.details["writeErrors"]):
            raise


def _send(run: _Run) -> bool:
    """Send what is due, lane by lane; True when the run ended before the work did."""
    with ThreadPoolExecutor(LANES, thread_name_prefix="webhook") as pool:
        while not run.hopeless and not run.gone and _still_mine(run):
            lanes = _due(run)
            if not lanes:
                return False
            if time.monotonic() > run.until_s:
                return True
            # Exceptions of a lane come out here.
            list(pool.map(lambda lane: _send_lane(run, lane), lanes))
            if run.webhook.failures:
                if not run.sent:
                    return False
                _is_back(run)
    return False


def _due(run: _Run) -> list[list[storage.Doc]]:
    """What is due, by aggregate in order; a receiver that was away gets one to begin with."""
    limit = 1 if run.webhook.failures and not run.sent else BATCH_MAX
    wanted = {
        "webhook": run.webhook.id,
        "state": WAITING,
        "next_attempt_at": {"$lte": clock.now()},
    }
    order = [("next_attempt_at", 1), ("number", 1)]
    lanes: dict[str, list[storage.Doc]] = {}
    for row in _rows().find(wanted).sort(order).limit(limit):
        lanes.setdefault(row["aggregate"], []).append(row)
    return [sorted(lane, key=lambda row: row["number"]) for lane in lanes.values()]


def _send_lane(run: _Run, lane: list[storage.Doc]) -> None:
    """Send events of one aggregate in their order, until one fails."""
    known = events.by_ids([row["event"] for row in lane])
    for row in lane:
        if run.hopeless or run.gone or not _still_mine(run):
            return
        event = known.get(row["event"])
        if event is None:
            _put(row, {"state": GIVEN_UP, "error": "the event is no longer kept"})
            continue
        first = _first_waiting(row)
        if first["number"] != row["number"]:
            _wait(row, first["next_attempt_at"])
            return
        now, body = clock.now(), body_of(event)
        headers = headers_of(event, body, run.webhook.secrets, now)
        if not _note(run, row, run.post(run.webhook.url, body, headers), now):
            return


def _first_waiting(row: storage.Doc) -> storage.Doc:
    wanted = {"webhook": row["webhook"], "aggregate": row["aggregate"], "state": WAITING}
    return _rows().find_one(wanted, sort=[("number", 1)]) or row


def _note(run: _Run, row: storage.Doc, answer: Answer, now: datetime) -> bool:
    """Write down what became of a try; True when the next of the aggregate may go."""
    attempts, began = row["attempts"] + 1, row["first_attempt_at"] or now
    change: storage.Doc = {
        "attempts": attempts,
        "first_attempt_at": began,
        "last_attempt_at": now,
        "status": answer.status,
        "error": answer.error,
        "took_ms": answer.took_ms,
    }
    if answer.ok:
        _put(row, {**change, "state": DELIVERED})
        with run.lock:
            run.sent += 1
        return True
    with run.lock:
        run.failed += 1
        run.gone = run.gone or answer.status == GONE
        run.retry_after_s = max(run.retry_after_s, answer.retry_after_s or 0)
    wait = max(backoff(attempts), timedelta(seconds=answer.retry_after_s or 0))
    if now + wait - began > GIVE_UP_AFTER:
        _put(row, {**change, "state": GIVEN_UP})
        return True
    _put(row, change)
    _wait(row, now + wait)
    return False


def _put(row: storage.Doc, change: storage.Doc) -> None:
    # A replay that began meanwhile has made it wait again.
    _rows().update_one({"_id": row["_id"], "round": row["round"]}, {"$set": change})


def _wait(row: storage.Doc, until: datetime) -> None:
    """Let an event and the later ones of its aggregate wait, so that others are found first."""
    wanted = {
        "webhook": row["webhook"],
        "aggregate": row["aggregate"],
        "state": WAITING,
        "number": {"$gte": row["number"]},
    }
    _rows().update_many(wanted, {"$max": {"next_attempt_at": clock.cut(until)}})


def _is_back(run: _Run) -> None:
    """A receiver that was away answers: what waits for it need not wait any longer."""
    wanted = {"webhook": run.webhook.id, "state": WAITING}
    _rows().update_many(wanted, {"$set": {"next_attempt_at": clock.now()}})
    change = {"failures": 0, "failing_since": None}
    subscriptions.rows().update_one({"_id": run.webhook.id, "lease": run.lease}, {"$set": change})
    found = subscriptions.rows().find_one({"_id": run.webhook.id})
    if found is None:
        run.over = True
    else:
        run.webhook = subscriptions.of_row(found)


def _rest(run: _Run) -> None:
    """Give the lease back, and say how the receiver is."""
    now = clock.now()
    change: storage.Doc = {"leased_until": now, "lease": None}
    if run.sent:
        change |= {"failures": 0, "failing_since": None}
    elif run.failed:
        failures = run.webhook.failures + 1
        wait = max(min(backoff(failures), REST_MAX), timedelta(seconds=run.retry_after_s))
        change |= {
            "failures": failures,
            "failing_since": run.webhook.failing_since or now,
            "rests_until": clock.cut(now + wait),
        }
    mine = {"_id": run.webhook.id, "lease": run.lease}
    if subscriptions.rows().update_one(mine, {"$set": change}).matched_count == 0:
        return
    if run.gone:
        _disable(run.webhook, "It answered 410 Gone.")
    elif not run.sent and run.failed and now - change["failing_since"] > GIVE_UP_AFTER:
        _disable(run.webhook, "It answered nothing for three days.")


def _disable(hook: Webhook, why: str) -> None:
    """Stop, and tell: the owner reads it in the list, operators by alarm and by event."""
    if not subscriptions.disable(hook.id, why):
        return
    alarms.sound("webhook_disabled", hook.id, party=hook.party, why=why)
    events.leave(
        Happening(
            OPERATORS,
            Type.WEBHOOK_DISABLED,
            hook.id,
            f"webhook:{hook.id}:{clock.now().isoformat()}",
            {"webhook_id": hook.id, "party": hook.party, "why": why},
        )
    )


def _rows() -> "Collection[storage.Doc]":
    return storage.strong(WebhookDeliveryDocument._get_collection())


def _delivery(row: storage.Doc) -> Delivery:
    fields = {name: row[name] for name in Delivery.__slots__ if name != "id"}
    if row["state"] != WAITING:
        fields["next_attempt_at"] = None
    return Delivery(id=row["_id"], **fields)
