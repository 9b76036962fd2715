"""Consents of residents, and the record of every read a bank made or tried.

A consent names one bank, one purpose and the fields it may see, until a date. Its reference is
random per consent, so two banks cannot join their lists. It is looked at on each read; withdrawal
works on the next one. Consents are never deleted: their record is what shows a read was allowed.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import mongoengine as me
from pymongo.collection import Collection

from accounting import clock, events, storage
from accounting.clients import Kind
from accounting.events import Happening, Type
from accounting.ids import new_id

BANK = "bank"
# What a bank may be allowed to see beside the grade itself.
FIELDS: Final = ("grade", "margin", "coverage", "report")
TEXT_VERSION: Final = "2026-01"
TEXTS: Final[dict[str, dict[str, str]]] = {
    TEXT_VERSION: {
        "zh": (
            "您同意将所选字段（如碳账户等级）提供给所选银行，仅用于所列用途，至所列日期为止。"
            "您可随时撤回，撤回后银行下一次查询即不可见。银行的每次查询都会向您展示。"
        ),
        "en": (
            "You agree that the chosen fields (such as your carbon grade) are given to the chosen "
            "bank, for the stated purpose only, until the stated date. You can withdraw at any "
            "time; the bank's next read then gets nothing. Every read is shown to you."
        ),
    }
}


@storage.indexed
class ConsentDocument(me.Document):
    id = me.StringField(primary_key=True)
    resident = me.StringField(required=True)
    bank_id = me.StringField(required=True)
    purpose = me.StringField(required=True)
    fields = me.ListField(me.StringField())
    reference = me.StringField(required=True)
    text_version = me.StringField(required=True)
    created_at = me.DateTimeField(required=True)
    expires_at = me.DateTimeField(required=True)
    withdrawn_at = me.DateTimeField()

    meta = {
        "collection": "consents",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["bank_id", "reference"], "unique": True},
            {"fields": ["resident", "_id"]},
        ],
    }


@storage.indexed
class AccessDocument(me.Document):
    """One read a bank made or tried. Append-only, kept at least three years."""

    id = me.StringField(primary_key=True)
    resident = me.StringField()
    bank_id = me.StringField(required=True)
    reference = me.StringField(required=True)
    purpose = me.StringField(required=True)
    what = me.StringField(required=True)
    allowed = me.BooleanField(required=True)
    fields = me.ListField(me.StringField())
    at = me.DateTimeField(required=True)

    meta = {
        "collection": "bank_access",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["resident", "_id"], "sparse": True},
            {"fields": ["bank_id", "_id"]},
        ],
    }


@dataclass(frozen=True, slots=True)
class Consent:
    id: str
    resident: str
    bank_id: str
    purpose: str
    fields: tuple[str, ...]
    reference: str
    text_version: str
    created_at: datetime
    expires_at: datetime
    withdrawn_at: datetime | None

    def status_at(self, now: datetime) -> str:
        if self.withdrawn_at is not None:
            return "withdrawn"
        return "expired" if self.expires_at <= now else "active"


@dataclass(frozen=True, slots=True)
class Access:
    id: str
    resident: str | None
    bank_id: str
    reference: str
    purpose: str
    what: str
    allowed: bool
    fields: tuple[str, ...]
    at: datetime


def _consents() -> "Collection[storage.Doc]":
    return storage.strong(ConsentDocument._get_collection())


def _accesses() -> "Collection[storage.Doc]":
    return storage.strong(AccessDocument._get_collection())


def grant(
    resident: str,
    *,
    bank_id: str,
    purpose: str,
    fields: tuple[str, ...],
    expires_at: datetime,
    text_version: str = TEXT_VERSION,
) -> Consent:
    """Record a consent; its reference is new and means nothing outside this bank."""
    consent = Consent(
        id=new_id("con"),
        resident=resident,
        bank_id=bank_id,
        purpose=purpose,
        fields=fields,
        reference=new_id("ref"),
        text_version=text_version,
        created_at=clock.now(),
        expires_at=expires_at,
        withdrawn_at=None,
    )
    document = {name: getattr(consent, name) for name in Consent.__slots__ if name != "id"}
    _consents().insert_one({"_id": consent.id, **document, "fields": list(fields)})
    return consent


def of_resident(resident: str, *, before: str | None, limit: int) -> list[Consent]:
    """Newest first."""
    wanted: dict[str, Any] = {"resident": resident}
    if before is not None:
        wanted["_id"] = {"$lt": before}
    return [_consent(row) for row in _consents().find(wanted).sort("_id", -1).limit(limit)]


def get(resident: str, consent_id: str) -> Consent | None:
    found = _consents().find_one({"_id": consent_id, "resident": resident})
    return _consent(found) if found else None


def withdraw(resident: str, consent_id: str) -> bool:
    """End a consent now; the next read already gets nothing. False if there is no such consent."""
    wanted = {"_id": consent_id, "resident": resident}
    _tell_withdrawn({**wanted, "withdrawn_at": None})
    _consents().update_one(
        {**wanted, "withdrawn_at": None}, {"$set": {"withdrawn_at": clock.now()}}
    )
    return _consents().count_documents(wanted, limit=1) == 1


def withdraw_all(resident: str) -> None:
    """End every consent now, for an account that is closed."""
    wanted = {"resident": resident, "withdrawn_at": None}
    _tell_withdrawn(wanted)
    _consents().update_many(wanted, {"$set": {"withdrawn_at": clock.now()}})


def _tell_withdrawn(wanted: dict[str, Any]) -> None:
    """Leave word for the banks of consents that are about to be withdrawn."""
    events.leave(
        *[
            Happening(
                events.party(Kind.BANK, row["bank_id"]),
                Type.CONSENT_WITHDRAWN,
                f"consent:{row['reference']}",
                f"withdrawn:{row['_id']}",
                {"reference": row["reference"], "purpose": row["purpose"]},
            )
            for row in _consents().find(wanted)
        ]
    )


def read(bank_id: str, reference: str, purpose: str, what: str) -> Consent | None:
    """The live consent behind a bank's read, None when it may see nothing.

    The read is recorded before anything is answered, allowed or not. A refused one names the
    resident only if the reference was ever given to this bank.
    """
    found = _consents().find_one({"bank_id": bank_id, "reference": reference})
    consent = _consent(found) if found else None
    now = clock.now()
    allowed = (
        consent is not None
        and consent.status_at(now) == "active"
        and consent.purpose == purpose
        and what in consent.fields
    )
    record: storage.Doc = {
        "_id": new_id("acc"),
        "bank_id": bank_id,
        "reference": reference,
        "purpose": purpose,
        "what": what,
        "allowed": allowed,
        "fields": list(consent.fields) if consent is not None and allowed else [],
        "at": now,
    }
    if consent is not None:
        record["resident"] = consent.resident
    _accesses().insert_one(record)
    return consent if allowed else None


def access_log(resident: str, *, before: str | None, limit: int) -> list[Access]:
    """Who read what of this resident, newest first."""
    wanted: dict[str, Any] = {"resident": resident}
    if before is not None:
        wanted["_id"] = {"$lt": before}
    return [
        Access(
            id=row["_id"],
            resident=row.get("resident"),
            bank_id=row["bank_id"],
            reference=row["reference"],
            purpose=row["purpose"],
            what=row["what"],
            allowed=row["allowed"],
            fields=tuple(row["fields"]),
            at=row["at"],
        )
        for row in _accesses().find(wanted).sort("_id", -1).limit(limit)
    ]


def _consent(row: storage.Doc) -> Consent:
    fields = {name: row[name] for name in Consent.__slots__ if name != "id"}
    return Consent(id=row["_id"], **{**fields, "fields": tuple(row["fields"])})
