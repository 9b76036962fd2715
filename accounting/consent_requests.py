"""A bank asks one of its customers for a consent; the customer approves or declines it in the app.

The bank knows its customer by a reference of its own and hands over a link. Whoever opens the link
first, signed in, is the customer the request is for. So that this is not somebody else, the bank
may be made to give the customer's real name, which the resident must know when approving. What the
bank calls its customer is sealed; the consent's reference is bound to it through the request.

After a refusal the same bank may not ask the same customer again for 90 days.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import mongoengine as me
from pymongo import ReturnDocument
from pymongo.collection import Collection

from accounting import clock, consents, real_names, storage, sweeping, vault
from accounting.consents import Consent
from accounting.errors import DomainError, NotFound
from accounting.ids import new_id
from accounting.real_names import NameNotMatching

OPEN, APPROVED, DECLINED, EXPIRED = "open", "approved", "declined", "expired"
OPEN_FOR: Final = timedelta(days=30)
REFUSAL_RESTS: Final = timedelta(days=90)
CONSENT_FOR: Final = timedelta(days=366)
NAME_TRIES_MAX: Final = 5
SWEEP_MAX: Final = 100
_PURPOSE = "customer"


class RefusedRecently(DomainError):
    """Facts: until (the city day from which the bank may ask again)."""

    code = "consent_refused_recently"
    en = "This customer declined a request of yours; ask again from {until} on."
    zh = "该客户已拒绝贵行的请求，{until} 起方可再次请求。"


class RequestOver(DomainError):
    code = "consent_request_over"
    en = "This request was answered already, or nobody answered it in time."
    zh = "该请求已被答复，或已过期。"


@storage.indexed
class ConsentRequestDocument(me.Document):
    id = me.StringField(primary_key=True)
    bank_id = me.StringField(required=True)
    customer_hash = me.StringField(required=True)
    customer_sealed = me.BinaryField(required=True)
    name_hash = me.StringField()
    name_tries = me.IntField(required=True)
    purpose = me.StringField(required=True)
    fields = me.ListField(me.StringField())
    # None until somebody opened the link.
    resident = me.StringField()
    state = me.StringField(required=True)
    created_at = me.DateTimeField(required=True)
    answered_at = me.DateTimeField()
    consent_ends_at = me.DateTimeField()
    # False between the approval and the consent it gives.
    granted = me.BooleanField()

    meta = {
        "collection": "consent_requests",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["resident", "_id"]},
            {"fields": ["bank_id", "customer_hash", "_id"]},
            {
                "fields": ["granted"],
                "name": "half_granted",
                "partialFilterExpression": {"granted": False},
            },
        ],
    }


@dataclass(frozen=True, slots=True)
class ConsentRequest:
    """What a bank asked for; `consent_id` is the consent it becomes when approved."""

    id: str
    bank_id: str
    customer_ref: str
    purpose: str
    fields: tuple[str, ...]
    resident: str | None
    state: str
    named: bool
    created_at: datetime
    answered_at: datetime | None

    @property
    def expires_at(self) -> datetime:
        return self.created_at + OPEN_FOR

    @property
    def consent_id(self) -> str:
        return f"con_{self.id.partition('_')[2]}"

    def state_at(self, now: datetime) -> str:
        return EXPIRED if self.state == OPEN and self.expires_at <= now else self.state


def _requests() -> "Collection[storage.Doc]":
    return storage.strong(ConsentRequestDocument._get_collection())


def ask(
    bank_id: str,
    customer_ref: str,
    purpose: str,
    fields: Sequence[str],
    *,
    real_name: str | None = None,
) -> ConsentRequest:
    """Ask a customer; the same question that is still open is the same request.

    Raises `RefusedRecently`.
    """
    now = clock.now()
    hashed = vault.keyed_hash(_PURPOSE, f"{bank_id}\n{customer_ref}")
    of_customer = {"bank_id": bank_id, "customer_hash": hashed}
    earlier = [_request(row) for row in _requests().find(of_customer).sort("_id", -1).limit(50)]
    for one in earlier:
        if one.state == DECLINED and one.answered_at is not None:
            rested = one.answered_at + REFUSAL_RESTS
            if now < rested:
                raise RefusedRecently(until=clock.city_day(rested + timedelta(days=1)))
        same = (one.purpose, one.fields) == (purpose, tuple(fields))
        if same and one.state_at(now) == OPEN:
            return one
    row: storage.Doc = {
        "_id": new_id("crq"),
        **of_customer,
        "customer_sealed": vault.encrypt(customer_ref, _PURPOSE),
        "name_hash": real_names.hash_of(real_name) if real_name is not None else None,
        "name_tries": 0,
        "purpose": purpose,
        "fields": list(fields),
        "resident": None,
        "state": OPEN,
        "created_at": now,
        "answered_at": None,
    }
    _requests().insert_one(row)
    return _request(row)


def of_bank(bank_id: str, request_id: str) -> ConsentRequest:
    """One of a bank's requests; raises `NotFound`."""
    found = _requests().find_one({"_id": request_id, "bank_id": bank_id})
    if found is None:
        raise NotFound()
    return _request(found)


def of_resident(
    resident: str, *, unopened_too: bool = False, before: str | None, limit: int
) -> list[ConsentRequest]:
    """Those a resident has opened, newest first; in the demo also those nobody has opened."""
    whose: list[str | None] = [resident, None] if unopened_too else [resident]
    wanted: dict[str, Any] = {"resident": {"$in": whose}}
    if before is not None:
        wanted["_id"] = {"$lt": before}
    return [_request(row) for row in _requests().find(wanted).sort("_id", -1).limit(limit)]


def open_link(resident: str, request_id: str) -> ConsentRequest:
    """The request behind a link, from now on this resident's; raises `NotFound`."""
    now = clock.now()
    _requests().update_one(
        {
            "_id": request_id,
            "resident": None,
            "state": OPEN,
            "created_at": {"$gt": now - OPEN_FOR},
        },
        {"$set": {"resident": resident}},
    )
    found = _requests().find_one({"_id": request_id, "resident": resident})
    if found is None:
        raise NotFound()
    return _request(found)


def approve(
    resident: str,
    request_id: str,
    *,
    expires_at: datetime | None = None,
    real_name: str | None = None,
) -> Consent:
    """Give the consent that was asked for, for a year unless said otherwise; safe to repeat.

    Raises `NotFound`, `RequestOver` and, where the bank gave a name, `NameNotMatching`.
    """
    request = open_link(resident, request_id)
    now = clock.now()
    if request.state != APPROVED:
        if request.state_at(now) != OPEN:
            raise RequestOver()
        if request.named:
            _check_name(request, real_name)
        _requests().update_one(
            {"_id": request.id, "resident": resident, "state": OPEN},
            {
                "$set": {
                    "state": APPROVED,
                    "answered_at": now,
                    "consent_ends_at": expires_at or now + CONSENT_FOR,
                    "granted": False,
                }
            },
        )
    return _grant(request.id)


def decline(resident: str, request_id: str) -> ConsentRequest:
    """Refuse; the bank may not ask again for a while. Safe to repeat."""
    request = open_link(resident, request_id)
    now = clock.now()
    if request.state_at(now) == OPEN:
        _requests().update_one(
            {"_id": request.id, "resident": resident, "state": OPEN},
            {"$set": {"state": DECLINED, "answered_at": now}},
        )
        request = open_link(resident, request_id)
    if request.state != DECLINED:
        raise RequestOver()
    return request


def forget(resident: str) -> None:
    """A closed account has no requests to answer; what a bank called the customer goes."""
    _requests().delete_many({"resident": resident, "state": {"$ne": APPROVED}})


def sweep(now: datetime) -> int:
    """Grant what was approved when a crash came between."""
    wanted = {"granted": False, "answered_at": {"$lt": now - timedelta(minutes=1)}}
    found = _requests().find(wanted, {"_id": 1}).limit(SWEEP_MAX)
    return sweeping.each("approved consent", [row["_id"] for row in found], _grant)


def _grant(request_id: str) -> Consent:
    row = _requests().find_one({"_id": request_id})
    if row is None or row["state"] != APPROVED:
        raise RequestOver()
    request = _request(row)
    assert request.resident is not None, "only who opened it approves"
    consent = consents.grant(
        request.resident,
        bank_id=request.bank_id,
        purpose=request.purpose,
        fields=request.fields,
        expires_at=row["consent_ends_at"],
        consent_id=request.consent_id,
    )
    _requests().update_one({"_id": request_id}, {"$set": {"granted": True}})
    return consent


def _check_name(request: ConsentRequest, real_name: str | None) -> None:
    row = _requests().find_one_and_update(
        {"_id": request.id, "name_tries": {"$lt": NAME_TRIES_MAX}},
        {"$inc": {"name_tries": 1}},
        return_document=ReturnDocument.AFTER,
    )
    if row is None or real_name is None or row["name_hash"] != real_names.hash_of(real_name):
        raise NameNotMatching()
    assert request.resident is not None, "only who opened it approves"
    real_names.prove(request.resident, real_name)


def _request(row: storage.Doc) -> ConsentRequest:
    return ConsentRequest(
        id=row["_id"],
        bank_id=row["bank_id"],
        customer_ref=vault.decrypt(row["customer_sealed"], _PURPOSE),
        purpose=row["purpose"],
        fields=tuple(row["fields"]),
        resident=row["resident"],
        state=row["state"],
        named=row["name_hash"] is not None,
        created_at=row["created_at"],
        answered_at=row["answered_at"],
    )
