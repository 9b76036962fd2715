"""Parked rows: what a partner sent for an id nobody has linked yet. Encrypted, for 90 days.

A parked row keeps the activity id it will have, so the answer the partner got stays true.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

import mongoengine as me
from pymongo.collection import Collection

from accounting import clock, storage, vault
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
            {"fields": ["job"], "partialFilterExpression": {"job": {"$gt": ""}}},
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


def park_many(rows: Sequence[Parked]) -> list[tuple[Parked, bool] | SourceEventConflict]:
    """Park rows once in two round trips; what is parked of each and whether it is new.

    `SourceEventConflict` is the answer when an event id is parked with other content.
    """
    fresh = set(storage.insert_new(_parked(), _documents(rows)))
    there = [row for place, row in enumerate(rows) if place not in fresh]
    if there and _sweep_expired(there):
        again = [place for place in range(len(rows)) if place not in fresh]
        fresh |= {again[place] for place in storage.insert_new(_parked(), _documents(there))}
        there = [row for place, row in enumerate(rows) if place not in fresh]
    earlier = {
        (document["source"], document["event_id"]): _row(document)
        for source in {row.source for row in there}
        for document in _parked().find(
            {
                "source": source,
                "event_id": {"$in": [row.event_id for row in there if row.source == source]},
            }
        )
    }
    results: list[tuple[Parked, bool] | SourceEventConflict] = []
    for place, row in enumerate(rows):
        # Credited and forgotten since: the row itself stands for it.
        kept = row if place in fresh else earlier.get((row.source, row.event_id), row)
        if kept.fingerprint == row.fingerprint:
            results.append((kept, place in fresh))
        else:
            results.append(SourceEventConflict(source_event_id=row.event_id))
    return results


def _sweep_expired(rows: Sequence[Parked]) -> int:
    """Delete what has expired of these events; the server does it some time afterwards."""
    wanted = {
        "source": {"$in": sorted({row.source for row in rows})},
        "event_id": {"$in": [row.event_id for row in rows]},
        "expires_at": {"$lte": clock.now()},
    }
    return _parked().delete_many(wanted).deleted_count


def _documents(rows: Sequence[Parked]) -> list[storage.Doc]:
    return [_document(row) for row in rows]


def _document(row: Parked) -> storage.Doc:
    return {
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


def of_external(external_hash: str) -> list[Parked]:
    """What is parked for one external id and has not expired, in order of arrival."""
    wanted = {"external_hash": external_hash, "expires_at": {"$gt": clock.now()}}
    found = _parked().find(wanted).sort("_id", 1).limit(CREDIT_MAX)
    return [_row(document) for document in found]


def forget(parked_ids: Sequence[str]) -> int:
    """Drop parked rows; returns how many were still there."""
    return _parked().delete_many({"_id": {"$in": list(parked_ids)}}).deleted_count


def forget_job(job: str) -> None:
    """Drop everything parked that a file brought, for a file that is taken back."""
    _parked().delete_many({"job": job})


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
