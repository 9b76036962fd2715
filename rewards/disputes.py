"""A merchant that does not agree with a statement: one dispute a statement, every word of it kept.

    open --operator answers--> answered --merchant writes again--> open
      \\--operator resolves, with or without a correction--> resolved

A statement is never changed. What a dispute brings is a correction in the next one.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import clock, storage, sweeping
from accounting.errors import AccountBusy, DomainError, NotFound
from rewards import takings

OPEN, ANSWERED, RESOLVED = "open", "answered", "resolved"
MESSAGES_MAX = 50
ATTEMPTS_MAX = 5
SWEEP_MAX = 100


class DisputeResolved(DomainError):
    code = "dispute_resolved"
    en = "This dispute is resolved, or has grown too long to go on."
    zh = "该异议已处理完毕，或往来条数已达上限。"


@storage.indexed
class DisputeDocument(me.Document):
    id = me.StringField(primary_key=True)
    merchant_id = me.StringField(required=True)
    state = me.StringField(required=True)
    messages = me.ListField(me.DictField())
    correction = me.DictField()
    opened_at = me.DateTimeField(required=True)

    meta = {
        "collection": "disputes",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["opened_at", "_id"]},
            {"fields": ["state", "opened_at", "_id"]},
            {
                "fields": ["correction.booked"],
                "name": "unbooked",
                "partialFilterExpression": {"correction.booked": False},
            },
        ],
    }


@dataclass(frozen=True, slots=True)
class Dispute:
    """`id` is that of the statement; `correction` is in fen, with its funder."""

    id: str
    merchant_id: str
    state: str
    messages: list[dict[str, Any]]
    correction: dict[str, Any] | None
    opened_at: datetime


def _disputes() -> "Collection[storage.Doc]":
    return storage.strong(DisputeDocument._get_collection())


def raise_(statement_id: str, merchant_id: str, text: str) -> Dispute:
    """Open a dispute, or write again in one; the same words twice in a row are said once.

    Raises `DisputeResolved`.
    """
    message = _message(merchant_id, text)
    row: storage.Doc = {
        "_id": statement_id,
        "merchant_id": merchant_id,
        "state": OPEN,
        "messages": [message],
        "correction": None,
        "opened_at": message["at"],
    }
    try:
        _disputes().insert_one(row)
    except DuplicateKeyError:
        return _say(statement_id, message, OPEN)
    return _dispute(row)


def answer(statement_id: str, by: str, text: str) -> Dispute:
    """An operator answers; raises `NotFound` or `DisputeResolved`."""
    return _say(statement_id, _message(by, text), ANSWERED)


def resolve(
    statement_id: str, by: str, text: str, *, correction_fen: int = 0, funder: str = ""
) -> Dispute:
    """End a dispute, with a correction if the merchant was right; the same again changes nothing.

    The correction is recorded with the decision and booked after it, under the statement's id: a
    retry or the sweep finishes what a crash left. Raises `NotFound` or `DisputeResolved`.
    """
    correction = (
        {"fen": correction_fen, "funder": funder, "booked": False} if correction_fen else None
    )
    return _book(_say(statement_id, _message(by, text), RESOLVED, {"correction": correction}))


def sweep(before: datetime) -> int:
    """Book the corrections a crash left unbooked; returns how many."""
    wanted = {"correction.booked": False, "messages.at": {"$lt": before}}
    found = _disputes().find(wanted).limit(SWEEP_MAX)
    return sweeping.each("correction", [_dispute(row) for row in found], _book)


def _book(dispute: Dispute) -> Dispute:
    correction = dispute.correction
    if correction is None or correction["booked"]:
        return dispute
    last = dispute.messages[-1]
    takings.correct(
        dispute.merchant_id,
        correction["fen"],
        correction["funder"],
        reference=f"dispute:{dispute.id}",
        reason=last["text"],
        by=last["by"],
    )
    _disputes().update_one({"_id": dispute.id}, {"$set": {"correction.booked": True}})
    return replace(dispute, correction={**correction, "booked": True})


def of_statement(statement_id: str) -> Dispute | None:
    found = _disputes().find_one({"_id": statement_id})
    return _dispute(found) if found else None


def listed(state: str | None, *, before: tuple[Any, ...] | None, limit: int) -> list[Dispute]:
    """Disputes, newest first; `before` is (opened_at, id) of the last one seen."""
    wanted: dict[str, Any] = {} if state is None else {"state": state}
    if before is not None:
        at, last = before
        wanted["$or"] = [{"opened_at": {"$lt": at}}, {"opened_at": at, "_id": {"$lt": last}}]
    found = _disputes().find(wanted).sort([("opened_at", -1), ("_id", -1)]).limit(limit)
    return [_dispute(row) for row in found]


def _say(
    statement_id: str, message: dict[str, Any], state: str, change: dict[str, Any] | None = None
) -> Dispute:
    for _ in range(ATTEMPTS_MAX):
        found = of_statement(statement_id)
        if found is None:
            raise NotFound()
        last = found.messages[-1]
        if (last["by"], last["text"], found.state) == (message["by"], message["text"], state):
            return found
        if found.state == RESOLVED or len(found.messages) >= MESSAGES_MAX:
            raise DisputeResolved()
        changed = _disputes().find_one_and_update(
            {"_id": statement_id, "messages": {"$size": len(found.messages)}, "state": found.state},
            {"$set": {"state": state, **(change or {})}, "$push": {"messages": message}},
            return_document=True,
        )
        if changed is not None:
            return _dispute(changed)
    raise AccountBusy(retry_after=1)


def _message(by: str, text: str) -> dict[str, Any]:
    return {"by": by, "text": text, "at": clock.now()}


def _dispute(row: storage.Doc) -> Dispute:
    fields = {name: row[name] for name in Dispute.__slots__ if name != "id"}
    return Dispute(id=row["_id"], **fields)
