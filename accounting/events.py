"""Events for parties outside: what happened to what they sent, read or sell.

A room leaves a row where the thing happens, before the write that ends it, so that a crash leaves
both undone or the event there; unique on `(party, dedupe)`, leaving it twice leaves it once. Rows
are left only for parties that asked (`accounting/subscriptions.py`).

Whoever carries them gives each row its `number`, without gaps in its party, and its `sequence`,
without gaps in its aggregate (one activity, one bill). Several may number at once: see `number`.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

import mongoengine as me
from pymongo import UpdateOne
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError

from accounting import clock, storage, subscriptions
from accounting.clients import Kind
from accounting.ids import new_id

log = logging.getLogger(__name__)

KEPT = timedelta(days=35)
BATCH_MAX = 500
ATTEMPTS_MAX = 20
OPERATORS: Final = f"{Kind.OPERATOR}:programme"


class Type(StrEnum):
    """What can happen. A name never changes its meaning."""

    ACTIVITY_SETTLED = "activity.settled"
    ACTIVITY_REVERSED = "activity.reversed"
    BILL_SETTLED = "bill.settled"
    HISTORY_REQUESTED = "bills.history_requested"
    JOB_DONE = "job.done"
    CONSENT_WITHDRAWN = "consent.withdrawn"
    GREEN_LIST_CHANGED = "green_list.changed"
    VOUCHER_USED = "voucher.used"
    VOUCHER_REFUNDED = "voucher.refunded"
    STATEMENT_CLOSED = "statement.closed"
    ALERT_OPENED = "alert.opened"
    ALERT_ESCALATED = "alert.escalated"
    ALERT_CLOSED = "alert.closed"
    WEBHOOK_DISABLED = "webhook.disabled"


# What a caller of a kind may ask for; kinds that are not here have no webhooks.
TYPES_OF: dict[Kind, tuple[Type, ...]] = {
    Kind.DATA: (
        Type.ACTIVITY_SETTLED,
        Type.ACTIVITY_REVERSED,
        Type.BILL_SETTLED,
        Type.HISTORY_REQUESTED,
        Type.JOB_DONE,
    ),
    Kind.BANK: (Type.CONSENT_WITHDRAWN, Type.GREEN_LIST_CHANGED),
    Kind.MERCHANT: (Type.VOUCHER_USED, Type.VOUCHER_REFUNDED, Type.STATEMENT_CLOSED),
    Kind.PLANT: (Type.ALERT_OPENED, Type.ALERT_ESCALATED, Type.ALERT_CLOSED),
    Kind.OPERATOR: (
        Type.JOB_DONE,
        Type.VOUCHER_USED,
        Type.VOUCHER_REFUNDED,
        Type.STATEMENT_CLOSED,
        Type.WEBHOOK_DISABLED,
    ),
}

_nudge: Callable[[str], None] | None = None


@storage.indexed
class EventDocument(me.Document):
    """`number` is 0 until it is numbered."""

    id = me.StringField(primary_key=True)
    party = me.StringField(required=True)
    dedupe = me.StringField(required=True)
    type = me.StringField(required=True)
    aggregate = me.StringField(required=True)
    data = me.DictField()
    at = me.DateTimeField(required=True)
    number = me.IntField(required=True)
    sequence = me.IntField(required=True)

    meta = {
        "collection": "events",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["party", "dedupe"], "unique": True},
            {
                "fields": ["party", "number"],
                "unique": True,
                "partialFilterExpression": {"number": {"$gt": 0}},
            },
            {
                "fields": ["party", "aggregate", "sequence"],
                "unique": True,
                "partialFilterExpression": {"sequence": {"$gt": 0}},
            },
            {
                "fields": ["party", "_id"],
                "name": "to_be_numbered",
                "partialFilterExpression": {"number": 0},
            },
            {"fields": ["at"], "expireAfterSeconds": int(KEPT.total_seconds())},
        ],
    }


@storage.indexed
class EventHeadDocument(me.Document):
    """The last number of a party, which outlives its rows."""

    id = me.StringField(primary_key=True)
    number = me.IntField(required=True)

    meta = {"collection": "event_heads", "auto_create_index": False}


@dataclass(frozen=True, slots=True)
class Happening:
    """One thing a party may want to hear; the same `dedupe` tells it once.

    Of one `aggregate` it hears in order. `data` goes to the party as it is: plain JSON, and nothing
    it could not have read.
    """

    party: str
    type: Type
    aggregate: str
    dedupe: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Event:
    """A numbered row."""

    id: str
    party: str
    type: str
    aggregate: str
    data: dict[str, Any]
    at: datetime
    number: int
    sequence: int


def party(kind: Kind, subject_id: str) -> str:
    """The name under which a caller's events are kept; operators share one."""
    return OPERATORS if kind is Kind.OPERATOR else f"{kind}:{subject_id}"


def party_of_source(source: str) -> str | None:
    """The party that handed over what came from a source; None for the app."""
    kind, _, partner_id = source.partition(":")
    return party(Kind.DATA, partner_id) if kind == "partner" else None


def asked(sources: Iterable[str]) -> dict[str, str]:
    """Of sources those whose party asked for any event, with that party; one read for all.

    For whoever would make a happening of each of a thousand rows that nobody asked for.
    """
    parties = {source: name for source in sources if (name := party_of_source(source)) is not None}
    hooks = subscriptions.wanted(set(parties.values())) if parties else ()
    asking = {hook.party for hook in hooks}
    return {source: name for source, name in parties.items() if name in asking}


def on_left(nudge: Callable[[str], None] | None) -> None:
    """Set what to call with a webhook that has something to carry; wiring, done by `api/`."""
    global _nudge
    _nudge = nudge


def leave(*happenings: Happening) -> int:
    """Leave what somebody asked for, in their order; returns how many rows were not there before.

    One read when nobody asked for any of it, and one write otherwise.
    """
    if not happenings:
        return 0
    wanted = subscriptions.wanted({one.party for one in happenings})
    asked = {(hook.party, type_) for hook in wanted for type_ in hook.events}
    now = clock.now()
    rows = [_row(one, now) for one in happenings if (one.party, str(one.type)) in asked]
    if not rows:
        return 0
    left = storage.insert_new(_events(), rows)
    if _nudge is not None and left:
        told = {rows[place]["party"] for place in left}
        for hook in wanted:
            if hook.party in told:
                _nudge(hook.id)
    return len(left)


def number(party: str) -> None:
    """Give every row of a party that has none its number and sequence.

    Several may do so at once. Each goes through rows that had no number after it had read the last
    ones, in the order of their ids, and stops at the first number that is taken. So whoever writes
    the k-th number above the last has seen k - 1 rows numbered since: none is left out, and none
    seen before the one below it. The same holds in each aggregate.
    """
    for _ in range(ATTEMPTS_MAX):
        first = _waiting(party)
        if not first:
            return
        last, sequences = head(party), _sequences(party, {row["aggregate"] for row in first})
        rows = _waiting(party, [row["_id"] for row in first])
        if not rows:
            continue
        try:
            _events().bulk_write(_numbered(rows, last, sequences), ordered=True)
        except BulkWriteError as error:
            if any(one["code"] != storage.DUPLICATE for one in error.details["writeErrors"]):
                raise
        _heads().update_one({"_id": party}, {"$max": {"number": head(party)}}, upsert=True)
    log.warning("%s has more events than one try numbers", party)


def any_left(party: str) -> bool:
    """Whether a party has events without a number."""
    return _events().count_documents({"party": party, "number": 0}, limit=1) == 1


def head(party: str) -> int:
    """The last number given to an event of a party."""
    newest = _events().find_one(
        {"party": party, "number": {"$gt": 0}}, {"number": 1}, sort=[("number", -1)]
    )
    kept = _heads().find_one({"_id": party})
    return max(newest["number"] if newest else 0, kept["number"] if kept else 0)


def after(party: str, number: int, limit: int) -> list[Event]:
    """The numbered events of a party after a number, in order."""
    wanted = {"party": party, "number": {"$gt": number}}
    return [_event(row) for row in _events().find(wanted).sort("number", 1).limit(limit)]


def by_ids(ids: Sequence[str]) -> dict[str, Event]:
    return {row["_id"]: _event(row) for row in _events().find({"_id": {"$in": list(ids)}})}


def _waiting(party: str, ids: Sequence[str] | None = None) -> list[storage.Doc]:
    wanted: dict[str, Any] = {"party": party, "number": 0}
    if ids is not None:
        wanted["_id"] = {"$in": list(ids)}
    return list(_events().find(wanted, {"aggregate": 1}).sort("_id", 1).limit(BATCH_MAX))


def _numbered(rows: Sequence[storage.Doc], last: int, sequences: dict[str, int]) -> list[UpdateOne]:
    writes = []
    for number, row in enumerate(rows, start=last + 1):
        sequences[row["aggregate"]] = sequence = sequences.get(row["aggregate"], 0) + 1
        change = {"number": number, "sequence": sequence}
        writes.append(UpdateOne({"_id": row["_id"], "number": 0}, {"$set": change}))
    return writes


def _sequences(party: str, aggregates: Set[str]) -> dict[str, int]:
    found = _events().aggregate(
        [
            {
                "$match": {
                    "party": party,
                    "aggregate": {"$in": list(aggregates)},
                    "sequence": {"$gt": 0},
                }
            },
            {"$group": {"_id": "$aggregate", "last": {"$max": "$sequence"}}},
        ]
    )
    return {row["_id"]: row["last"] for row in found}


def _events() -> "Collection[storage.Doc]":
    return storage.strong(EventDocument._get_collection())


def _heads() -> "Collection[storage.Doc]":
    return storage.strong(EventHeadDocument._get_collection())


def _row(one: Happening, now: datetime) -> storage.Doc:
    return {
        "_id": new_id("evt"),
        "party": one.party,
        "dedupe": one.dedupe,
        "type": str(one.type),
        "aggregate": one.aggregate,
        "data": dict(one.data),
        "at": now,
        "number": 0,
        "sequence": 0,
    }


def _event(row: storage.Doc) -> Event:
    return Event(id=row["_id"], **{name: row[name] for name in Event.__slots__ if name != "id"})
