"""Consents of residents, and the record of every read a bank made or tried.

A consent names one bank, one purpose and the fields it may see, until a date. Its reference is
random per consent, so two banks cannot join their lists. It is looked at on each read; withdrawal
works on the next one. Consents are never deleted: their record is what shows a read was allowed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import clock, consent_marks, consent_texts, events, notices, outbox, storage
from accounting.clients import Kind
from accounting.consent_texts import BANK
from accounting.events import Happening, Type
from accounting.ids import new_id

# What a bank may be allowed to see beside the grade itself.
FIELDS: Final = ("grade", "margin", "coverage", "report")
RENEWAL_NOTICE = timedelta(days=7)
SWEEP_MAX = 500


@storage.indexed
class ConsentDocument(me.Document):
    id = me.StringField(primary_key=True)
    resident = me.StringField(required=True)
    kind = me.StringField(required=True)
    bank_id = me.StringField()
    partner_id = me.StringField()
    purpose = me.StringField(required=True)
    fields = me.ListField(me.StringField())
    reference = me.StringField(required=True)
    text_version = me.StringField(required=True)
    created_at = me.DateTimeField(required=True)
    expires_at = me.DateTimeField(required=True)
    withdrawn_at = me.DateTimeField()
    # False until the resident was told that it ends soon.
    reminded = me.BooleanField(required=True)
    # The request that gave it, so that a retry gives no other.
    once = me.StringField()

    meta = {
        "collection": "consents",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["bank_id", "reference"], "unique": True},
            {"fields": ["resident", "_id"]},
            {"fields": ["once"], "unique": True, "sparse": True},
            {
                "fields": ["expires_at"],
                "name": "to_be_reminded",
                "partialFilterExpression": {"reminded": False},
            },
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
            {"fields": ["at", "_id"]},
        ],
    }


@dataclass(frozen=True, slots=True)
class Consent:
    id: str
    resident: str
    kind: str
    bank_id: str | None
    partner_id: str | None
    purpose: str
    fields: tuple[str, ...]
    reference: str
    text_version: str
    created_at: datetime
    expires_at: datetime
    withdrawn_at: datetime | None

    @property
    def ends_at(self) -> datetime:
        """When it ended or will: withdrawn, or at its date, whichever came first."""
        return min(self.withdrawn_at or self.expires_at, self.expires_at)

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


def _accesses() -> storage.AppendOnly:
    return storage.AppendOnly(AccessDocument._get_collection())


def grant(
    resident: str,
    *,
    bank_id: str | None = None,
    purpose: str,
    fields: tuple[str, ...],
    expires_at: datetime,
    kind: str = BANK,
    partner_id: str | None = None,
    text_version: str | None = None,
    consent_id: str | None = None,
    once: str | None = None,
) -> Consent:
    """Record a consent; its reference is new and means nothing outside this bank.

    The text is the one in force unless said otherwise. The same `consent_id`, or the same `once`,
    again is the same consent.
    """
    assert (bank_id is not None) is (kind == BANK), (kind, bank_id)
    now = clock.now()
    consent = Consent(
        id=consent_id or new_id("con"),
        resident=resident,
        kind=kind,
        bank_id=bank_id,
        partner_id=partner_id,
        purpose=purpose,
        fields=fields,
        reference=new_id("ref"),
        text_version=text_version or consent_texts.in_force(kind, clock.city_day(now)).version,
        created_at=now,
        expires_at=expires_at,
        withdrawn_at=None,
    )
    document = {name: getattr(consent, name) for name in Consent.__slots__ if name != "id"}
    # Nobody needs a reminder of what is given for a few days.
    soon = expires_at <= now + RENEWAL_NOTICE
    consent_marks.mark([resident])
    row = {"_id": consent.id, **document, "fields": list(fields), "reminded": soon}
    if once is not None:
        row["once"] = once
    try:
        _consents().insert_one(row)
    except DuplicateKeyError:
        same = {"once": once} if once is not None else {"_id": consent_id}
        there = _consents().find_one({**same, "resident": resident})
        if there is None:
            raise
        return _consent(there)
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
    consent_marks.mark([resident])
    _consents().update_one(
        {**wanted, "withdrawn_at": None}, {"$set": {"withdrawn_at": clock.now()}}
    )
    return _consents().count_documents(wanted, limit=1) == 1


def withdraw_all(resident: str) -> None:
    """End every consent now, for an account that is closed."""
    wanted = {"resident": resident, "withdrawn_at": None}
    _tell_withdrawn(wanted)
    consent_marks.mark([resident])
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
            for row in _consents().find({**wanted, "kind": BANK})
        ]
    )


def of_banks(resident: str) -> list[Consent]:
    """Every consent to a bank this resident ever gave, the oldest first."""
    found = _consents().find({"resident": resident, "kind": BANK}).sort("_id", 1)
    return [_consent(row) for row in found]


def live(consent_ids: Sequence[str], now: datetime) -> dict[str, Consent]:
    """Those of these consents that hold now, by id."""
    wanted = {"_id": {"$in": list(consent_ids)}, "withdrawn_at": None, "expires_at": {"$gt": now}}
    return {row["_id"]: _consent(row) for row in _consents().find(wanted)}


def read(bank_id: str, reference: str, purpose: str | None, what: str) -> Consent | None:
    """The live consent behind a bank's read, None when it may see nothing; see `read_many`."""
    return read_many(bank_id, [reference], purpose, what)[0]


def read_many(
    bank_id: str, references: Sequence[str], purpose: str | None, what: str
) -> list[Consent | None]:
    """The live consents behind a bank's reads, None for each of which it may see nothing.

    The reads are recorded before anything is answered, allowed or not, and cost the same whatever
    is missing: one look and one write. A refused one names the resident only if the reference was
    ever given to this bank. Without a purpose the consent's own is read for.
    """
    found = _given(bank_id, references)
    now = clock.now()
    allowed = [_allows(found.get(one), purpose, what, now) for one in references]
    _note(
        [
            _record(bank_id, one, purpose, what, found.get(one), seen is not None, now)
            for one, seen in zip(references, allowed, strict=True)
        ]
    )
    return allowed


def _given(bank_id: str, references: Sequence[str]) -> dict[str, Consent]:
    """Every consent behind these references of a bank, whatever became of it."""
    if len(references) == 1:
        row = _consents().find_one({"bank_id": bank_id, "reference": references[0]})
        rows = [row] if row is not None else []
    else:
        wanted = {"bank_id": bank_id, "reference": {"$in": list(set(references))}}
        rows = list(_consents().find(wanted))
    return {row["reference"]: _consent(row) for row in rows}


def note_reads(bank_id: str, seen: Sequence[Consent], what: str) -> None:
    """Record what a list shows a bank of each of these consents, before it is answered."""
    now = clock.now()
    _note([_record(bank_id, one.reference, one.purpose, what, one, True, now) for one in seen])


def _note(records: Sequence[storage.Doc]) -> None:
    """Put reads on record; one alone, the usual case, without the machinery for many."""
    if len(records) == 1:
        _accesses().insert_one(records[0])
    elif records:
        _accesses().insert_many(records, ordered=True)


def _allows(
    consent: Consent | None, purpose: str | None, what: str, now: datetime
) -> Consent | None:
    allowed = (
        consent is not None
        and consent.status_at(now) == "active"
        and purpose in (None, consent.purpose)
        and what in consent.fields
    )
    return consent if allowed else None


def _record(
    bank_id: str,
    reference: str,
    purpose: str | None,
    what: str,
    consent: Consent | None,
    allowed: bool,
    now: datetime,
) -> storage.Doc:
    record: storage.Doc = {
        "_id": new_id("acc"),
        "bank_id": bank_id,
        "reference": reference,
        "purpose": purpose or (consent.purpose if consent is not None else ""),
        "what": what,
        "allowed": allowed,
        "fields": list(consent.fields) if consent is not None and allowed else [],
        "at": now,
    }
    if consent is not None:
        record["resident"] = consent.resident
    return record


def remind(now: datetime) -> int:
    """Tell residents once that a consent ends within a week; returns how many are done."""
    wanted = {"reminded": False, "expires_at": {"$lte": now + RENEWAL_NOTICE}}
    found = list(_consents().find(wanted).sort("expires_at", 1).limit(SWEEP_MAX))
    told = []
    for consent in map(_consent, found):
        if consent.status_at(now) == "active":
            day = clock.city_day(consent.expires_at).isoformat()
            told.append(
                notices.make(
                    "consent_ends",
                    consent.resident,
                    f"consent-ends:{consent.id}",
                    consent=consent.id,
                    purpose=consent.purpose,
                    day=day,
                )
            )
    outbox.leave_many(told)
    ids = [row["_id"] for row in found]
    _consents().update_many({"_id": {"$in": ids}}, {"$set": {"reminded": True}})
    return len(found)


def access_log(resident: str, *, before: str | None, limit: int) -> list[Access]:
    """Who read what of this resident, newest first."""
    wanted: dict[str, Any] = {"resident": resident}
    if before is not None:
        wanted["_id"] = {"$lt": before}
    return [_access(row) for row in _accesses().find(wanted).sort("_id", -1).limit(limit)]


def accesses(first: datetime, end: datetime, bank_id: str | None = None) -> Iterator[Access]:
    """Every read between two instants (the first included), oldest first, for the supervisor."""
    wanted: dict[str, Any] = {"at": {"$gte": first, "$lt": end}}
    if bank_id is not None:
        wanted["bank_id"] = bank_id
    for row in _accesses().find(wanted).sort([("at", 1), ("_id", 1)]):
        yield _access(row)


def _access(row: storage.Doc) -> Access:
    return Access(
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


def _consent(row: storage.Doc) -> Consent:
    fields = {name: row[name] for name in Consent.__slots__ if name != "id"}
    return Consent(id=row["_id"], **{**fields, "fields": tuple(row["fields"])})
