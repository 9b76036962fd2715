"""Everything we hold about a resident, as one file for themselves.

A job writes a ZIP with one JSON list a section. It is kept encrypted, in pieces that fit a
document, for a week, and only its owner can read it. A worker that is killed leaves pieces without
a file; the next one writes its own, and whichever names its pieces first made the file.
"""

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from tempfile import SpooledTemporaryFile
from typing import IO, Any

import mongoengine as me
from pymongo.collection import Collection

from accounting import (
    accounts,
    book,
    clock,
    consent_requests,
    consents,
    jobs,
    links,
    outbox,
    storage,
    vault,
)
from accounting.ids import new_id
from accounting.jobs import Failure, Job
from footprint import activities, bills, grade, households, photos, reviews
from integrations import devices
from points import milestones
from rewards import redemptions, vouchers

KIND = "export"
CLOSED = Failure("account_closed", "The account was closed.", "该账户已注销。")
KEPT = timedelta(days=7)
PIECE_BYTES = 4 << 20
IN_MEMORY_BYTES = 8 << 20
PAGE = 500
_PURPOSE = "export"


@storage.indexed
class ExportDocument(me.Document):
    """A finished file: which pieces it is made of."""

    id = me.StringField(primary_key=True)
    resident = me.StringField(required=True)
    attempt = me.StringField(required=True)
    pieces = me.IntField(required=True)
    size = me.IntField(required=True)
    sha256 = me.StringField(required=True)
    expires_at = me.DateTimeField(required=True)

    meta = {
        "collection": "exports",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["resident"]},
            {"fields": ["expires_at"], "expireAfterSeconds": 0},
        ],
    }


@storage.indexed
class ExportPieceDocument(me.Document):
    attempt = me.StringField(required=True)
    number = me.IntField(required=True)
    resident = me.StringField(required=True)
    sealed = me.BinaryField(required=True)
    expires_at = me.DateTimeField(required=True)

    meta = {
        "collection": "export_pieces",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["attempt", "number"], "unique": True},
            {"fields": ["resident"]},
            {"fields": ["expires_at"], "expireAfterSeconds": 0},
        ],
    }


@dataclasses.dataclass(frozen=True, slots=True)
class Export:
    """A file that can be read until `expires_at`; `size` in bytes."""

    id: str
    attempt: str
    pieces: int
    size: int
    sha256: str
    expires_at: datetime


def _exports() -> "Collection[storage.Doc]":
    return storage.strong(ExportDocument._get_collection())


def _pieces() -> "Collection[storage.Doc]":
    return storage.strong(ExportPieceDocument._get_collection())


def ask(resident: str) -> Job:
    """Queue the job that writes the file; one that is under way already is the same."""
    return jobs.unfinished(KIND, resident) or jobs.queue(
        KIND, resident, {}, unit=jobs.SECTIONS, total=len(SECTIONS)
    )


def run(job_id: str) -> Job | None:
    """Write the file; None when somebody else does, or it is written."""
    job = jobs.take(job_id)
    if job is None:
        return None
    if accounts.get(job.owner) is None:
        jobs.fail(job, CLOSED)
        return jobs.get(job_id)
    with SpooledTemporaryFile(IN_MEMORY_BYTES) as file:
        _write(file, job)
        file.seek(0)
        _keep(job, file)
    jobs.finish(job, len(SECTIONS))
    if accounts.get(job.owner) is None:
        forget(job.owner)  # Closed while the file was written.
    return jobs.get(job_id)


def get(resident: str, job_id: str) -> Export | None:
    """A finished file of this resident, until it expires."""
    wanted = {"_id": job_id, "resident": resident, "expires_at": {"$gt": clock.now()}}
    found = _exports().find_one(wanted)
    if found is None:
        return None
    names = [field.name for field in dataclasses.fields(Export) if field.name != "id"]
    return Export(id=found["_id"], **{name: found[name] for name in names})


def content(export: Export) -> Iterator[bytes]:
    """The bytes of the file, a piece at a time."""
    found = _pieces().find({"attempt": export.attempt}).sort("number", 1).limit(export.pieces)
    for row in found:
        yield vault.unseal(row["sealed"], _PURPOSE)


def forget(resident: str) -> None:
    """Remove every file of a resident."""
    for collection in (_exports(), _pieces()):
        collection.delete_many({"resident": resident})


def _write(file: IO[bytes], job: Job) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for done, (name, section) in enumerate(SECTIONS.items(), start=1):
            with archive.open(f"{name}.json", "w", force_zip64=True) as member:
                separator = "[\n"
                for row in section(job.owner):
                    member.write(f"{separator}{_json(row)}".encode())
                    separator = ",\n"
                member.write(b"[]\n" if separator == "[\n" else b"\n]\n")
            # A second try begins at the first section again.
            if not jobs.advance(job, done, 0, job.counts):
                jobs.hold(job.id)


def _keep(job: Job, file: IO[bytes]) -> None:
    attempt, digest, size, number = new_id("exa"), hashlib.sha256(), 0, 0
    expires_at = clock.now() + KEPT
    while piece := file.read(PIECE_BYTES):
        _pieces().insert_one(
            {
                "attempt": attempt,
                "number": number,
                "resident": job.owner,
                "sealed": vault.seal(piece, _PURPOSE),
                "expires_at": expires_at,
            }
        )
        digest.update(piece)
        size += len(piece)
        number += 1
    made = {
        "resident": job.owner,
        "attempt": attempt,
        "pieces": number,
        "size": size,
        "sha256": digest.hexdigest(),
        "expires_at": expires_at,
    }
    _exports().update_one({"_id": job.id}, {"$setOnInsert": made}, upsert=True)


# What is in the file.


def _account(resident: str) -> Iterator[Any]:
    yield {
        **dataclasses.asdict(_known(resident)),
        **accounts.contact(resident),
        "created_at": accounts.created_at(resident),
    }


def _known(resident: str) -> accounts.Resident:
    found = accounts.get(resident)
    assert found is not None, "the job looked before it began"
    return found


def _paged(
    find: Callable[..., Sequence[Any]], by: Callable[[Any], Any] = lambda row: row.id
) -> Callable[[str], Iterator[Any]]:
    """All rows of a list that is found in pages, newest first."""

    def rows(resident: str) -> Iterator[Any]:
        before = None
        while found := find(resident, before=before, limit=PAGE):
            yield from found
            before = by(found[-1])

    return rows


def _photos(resident: str) -> Iterator[Any]:
    for ids in activities.ids_of_resident(resident):
        yield from photos.of_activities(ids)


def _vouchers(resident: str) -> Iterator[Any]:
    for redemption in _paged(redemptions.of_resident)(resident):
        yield from vouchers.of_redemption(redemption.id)


def _appeals(resident: str) -> Iterator[Any]:
    mine = _paged(lambda who, **page: reviews.of_resident(who, reviews.APPEALS, **page))
    for review in mine(resident):
        row = dataclasses.asdict(review) | {"text": review.text}
        # Who decided is the programme's business, and the sealed text stands beside it, open.
        yield {name: row[name] for name in row.keys() - {"text_sealed", "decided_by", "residents"}}


def _bills(resident: str) -> Iterator[Any]:
    for bill in _paged(bills.of_resident)(resident):
        # Who else lives there is not about me.
        yield dataclasses.asdict(bill) | {"residents": [resident]}


def _entries(resident: str) -> Iterator[Any]:
    for entry in book.entries(resident):
        yield entry._asdict()


SECTIONS: dict[str, Callable[[str], Iterable[Any]]] = {
    "account": _account,
    "links": _paged(links.of_resident),
    "households": _paged(households.of_resident),
    "devices": devices.live,
    "activities": _paged(activities.of_resident),
    "photos": _photos,
    "appeals": _appeals,
    "bills": _bills,
    "entries": _entries,
    "milestones": lambda resident: milestones.of_resident(resident)[0],
    "redemptions": _paged(redemptions.of_resident),
    "vouchers": _vouchers,
    "grades": _paged(grade.history, lambda snapshot: snapshot.number),
    "consents": _paged(consents.of_resident),
    "consent_requests": _paged(consent_requests.of_resident),
    "access_log": _paged(consents.access_log),
    "notifications": _paged(outbox.inbox),
}


def _json(row: Any) -> str:
    plain = row if isinstance(row, dict) else dataclasses.asdict(row)
    return json.dumps(plain, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, timedelta):
        return value.total_seconds()
    raise TypeError(f"{type(value).__name__} has no JSON form")
