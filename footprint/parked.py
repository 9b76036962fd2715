"""Parked rows: what a partner sent for an id nobody has linked yet. Encrypted, for 90 days.

A parked row keeps the activity id it will have, so the answer the partner got stays true.
"""

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import storage, vault
from footprint.activities import SourceEventConflict
from footprint.rules import Report

PARKED_FOR = timedelta(days=90)
CREDIT_MAX = 10_000


@storage.indexed
class ParkedDocument(me.Document):
    id = me.StringField(primary_key=True)
    source = me.StringField(required=True)
    event_id = me.StringField(required=True)
    external_hash = me.StringField(required=True)
    fingerprint = me.StringField(required=True)
    report_sealed = me.BinaryField(required=True)
    parked_at = me.DateTimeField(required=True)
    job = me.StringField()
    expires_at = me.DateTimeField(required=True)

    meta = {
        "collection": "parked",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["source", "event_id"], "unique": True},
            {"fields": ["external_hash", "_id"]},
            {"fields": ["expires_at"], "expireAfterSeconds": 0},
        ],
    }


@dataclass(frozen=True, slots=True)
class Parked:
    id: str
    source: str
    event_id: str
    external_hash: str
    fingerprint: str
    report: Report
    parked_at: datetime
    job: str | None = None


def _parked() -> "Collection[storage.Doc]":
    return storage.strong(ParkedDocument._get_collection())


def park(row: Parked) -> tuple[Parked, bool]:
    """Park a row once; returns what is parked and whether it is new.

    Raises `SourceEventConflict` when this event id is parked with other content.
    """
    document: storage.Doc = {
        "_id": row.id,
        "source": row.source,
        "event_id": row.event_id,
        "external_hash": row.external_hash,
        "fingerprint": row.fingerprint,
        "report_sealed": vault.encrypt(_dump(row.report), "parked"),
        "parked_at": row.parked_at,
        "job": row.job,
        "expires_at": row.parked_at + PARKED_FOR,
    }
    try:
        _parked().insert_one(document)
    except DuplicateKeyError:
        found = _parked().find_one({"source": row.source, "event_id": row.event_id})
        if found is not None and found["fingerprint"] != row.fingerprint:
            raise SourceEventConflict(source_event_id=row.event_id) from None
        return (_row(found) if found else row), False
    return row, True


def of_external(external_hash: str) -> list[Parked]:
    """Everything parked for one external id, in order of arrival."""
    found = _parked().find({"external_hash": external_hash}).sort("_id", 1).limit(CREDIT_MAX)
    return [_row(document) for document in found]


def forget(parked_id: str) -> None:
    _parked().delete_one({"_id": parked_id})


def forget_external(external_hash: str) -> None:
    """Drop everything parked for one external id, for an account that is closed."""
    _parked().delete_many({"external_hash": external_hash})


def _dump(report: Report) -> str:
    return json.dumps(
        {
            "behaviour": report.behaviour,
            "quantity": str(report.quantity),
            "start": report.start.isoformat(),
            "end": report.end.isoformat() if report.end else None,
            "attributes": dict(report.attributes),
        }
    )


def _row(document: storage.Doc) -> Parked:
    held = json.loads(vault.decrypt(document["report_sealed"], "parked"))
    return Parked(
        id=document["_id"],
        source=document["source"],
        event_id=document["event_id"],
        external_hash=document["external_hash"],
        fingerprint=document["fingerprint"],
        report=Report(
            behaviour=held["behaviour"],
            quantity=Decimal(held["quantity"]),
            start=datetime.fromisoformat(held["start"]),
            end=datetime.fromisoformat(held["end"]) if held["end"] else None,
            attributes=held["attributes"],
        ),
        parked_at=document["parked_at"],
        job=document["job"],
    )
