"""The green list as a daily file: CSV rows kept in pieces, with a signed manifest.

A file is made once, of the list as it stands at that moment, and its bytes stay. The one thing that
changes it is a consent that ends: its row goes, as a withdrawal works on the next read, and the
file is the next revision. A manifest names its revision, so a bank sees which bytes it describes.
Formula cells are escaped; every read of a file is on record for everybody in it.
"""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import clients, clock, consents, jobs, storage, sweeping, tables, vault, walks
from accounting.clients import Kind
from accounting.errors import AccountBusy, NotFound
from accounting.ids import new_id
from accounting.jobs import Job
from footprint import bank_terms, greenlist
from footprint.greenlist import Listed
from integrations import jws

KIND: Final = "bank_files"
HEADER: Final = ("reference", "grade", "since", "limit_uplift", "basis_points", "fast_lane")
ROWS_A_PIECE: Final = 1_000
ATTEMPTS_MAX: Final = 10
WHAT: Final = "green_list_file"


@storage.indexed
class FileDocument(me.Document):
    """One revision of a bank's file of a day; the newest is the file."""

    bank_id = me.StringField(required=True)
    day = me.StringField(required=True)
    revision = me.IntField(required=True)
    attempt = me.StringField(required=True)
    pieces = me.IntField(required=True)
    rows = me.IntField(required=True)
    size = me.IntField(required=True)
    sha256 = me.StringField(required=True)
    sequence = me.IntField(required=True)
    made_at = me.DateTimeField(required=True)

    meta = {
        "collection": "bank_files",
        "auto_create_index": False,
        "indexes": [{"fields": ["bank_id", "day", "-revision"], "unique": True}],
    }


@storage.indexed
class PieceDocument(me.Document):
    """A stretch of rows: their text and the consents they stand for."""

    attempt = me.StringField(required=True)
    number = me.IntField(required=True)
    lines = me.ListField(me.StringField())
    consents = me.ListField(me.StringField())

    meta = {
        "collection": "bank_file_pieces",
        "auto_create_index": False,
        "indexes": [{"fields": ["attempt", "number"], "unique": True}],
    }


@dataclass(frozen=True, slots=True)
class File:
    """A file as it can be read; `sequence` is the last change of the feed it contains."""

    bank_id: str
    day: str
    revision: int
    attempt: str
    pieces: int
    rows: int
    size: int
    sha256: str
    sequence: int
    made_at: datetime


def _files() -> "Collection[storage.Doc]":
    return storage.strong(FileDocument._get_collection())


def _pieces() -> "Collection[storage.Doc]":
    return storage.strong(PieceDocument._get_collection())


def of_day(bank_id: str, day: date) -> File:
    """A bank's file of a city day: made on first demand on that day, as it was made after it.

    Raises `NotFound` for a day of which there is none and none can be made.
    """
    for _ in range(ATTEMPTS_MAX):
        file = _newest(bank_id, day)
        if file is None:
            if day != clock.city_day(clock.now()):
                raise NotFound()
            greenlist.catch_up(bank_id)
            lines = _list(bank_id)
            _keep(bank_id, day, 1, lines, greenlist.last_sequence(bank_id))
        elif ended := _ended(file):
            _keep(bank_id, day, file.revision + 1, _without(file, ended), file.sequence)
        else:
            return file
    raise AccountBusy()


def queue(owner: str, day: date) -> Job:
    """The job of a day, however often asked: look at all green lists, then make every file."""
    job_id = f"job_{KIND}_{day.isoformat()}"
    arguments = {"day": day.isoformat()}
    total = greenlist.count()
    return walks.queue(KIND, owner, arguments, job_id, unit=jobs.CONSENTS, total=total)


def run(job_id: str) -> Job | None:
    """Carry the job to its end; see `walks.run`."""

    def work(job: Job, ids: Sequence[str]) -> walks.Totals:
        return {"followed": greenlist.compare(ids)}

    def end(job: Job) -> None:
        day = date.fromisoformat(job.arguments["day"])

        def make(bank_id: str) -> None:
            jobs.hold(job.id)
            of_day(bank_id, day)

        sweeping.each("bank file", clients.subjects(Kind.BANK), make)

    return walks.run(job_id, work, end, greenlist.ids_after, greenlist.STRETCH)


def content(file: File) -> Iterator[bytes]:
    """The bytes of a file, a piece at a time; each is on record before it goes out."""
    yield tables.csv_rows([HEADER]).encode()
    for piece in _of(file):
        live = consents.live(piece["consents"], clock.now())
        consents.note_reads(
            file.bank_id, [live[one] for one in piece["consents"] if one in live], WHAT
        )
        yield "".join(piece["lines"]).encode()


def manifest(file: File, *, issuer: str) -> dict[str, Any]:
    """Rows, size and SHA-256 of a file, and a JWS over all of it that verifies offline."""
    said = {
        "bank_id": file.bank_id,
        "date": file.day,
        "revision": file.revision,
        "rows": file.rows,
        "size": file.size,
        "sha256": file.sha256,
        "sequence": file.sequence,
        "made_at": file.made_at.isoformat(),
    }
    signature = jws.sign(
        said,
        vault.signing_key(),
        vault.key_id(),
        issuer=issuer,
        audience=file.bank_id,
        now=clock.now(),
    )
    return said | {"signature": signature}


def digest_header(file: File) -> str:
    """`Content-Digest` (RFC 9530)."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(file.sha256)).decode()}:"


Line = tuple[str, str]
"""The consent a row stands for, and its text."""


def _list(bank_id: str) -> Iterator[Line]:
    terms = bank_terms.current(bank_id)
    after = None
    while found := greenlist.listed(bank_id, after=after, limit=ROWS_A_PIECE):
        for one in found:
            yield one.consent.id, _row(one, terms)
        after = found[-1].consent.id


def _row(one: Listed, terms: bank_terms.Terms) -> str:
    of_grade = terms.of(one.grade)
    return tables.csv_rows(
        [
            (
                one.consent.reference,
                one.grade,
                clock.city_day(one.since).isoformat(),
                f"{of_grade.limit_permille / 1000:.3f}",
                of_grade.basis_points,
                "yes" if of_grade.fast_lane else "no",
            )
        ]
    )


def _ended(file: File) -> set[str]:
    """The consents of a file that no longer hold."""
    ended: set[str] = set()
    for piece in _of(file):
        ended |= set(piece["consents"]) - consents.live(piece["consents"], clock.now()).keys()
    return ended


def _without(file: File, ended: set[str]) -> Iterator[Line]:
    for piece in _of(file):
        for consent_id, line in zip(piece["consents"], piece["lines"], strict=True):
            if consent_id not in ended:
                yield consent_id, line


def _keep(bank_id: str, day: date, revision: int, lines: Iterator[Line], sequence: int) -> None:
    """Store a revision; whoever made the same one first has made it."""
    attempt, digest, size, rows, number = new_id("bfa"), hashlib.sha256(), 0, 0, 0
    header = tables.csv_rows([HEADER]).encode()
    digest.update(header)
    size += len(header)
    piece: list[Line] = []

    def store() -> None:
        nonlocal number
        texts = [line for _, line in piece]
        ids = [consent_id for consent_id, _ in piece]
        _pieces().insert_one({"attempt": attempt, "number": number, "lines": texts,
                              "consents": ids})  # fmt: skip
        number += 1
        piece.clear()

    for line in lines:
        piece.append(line)
        digest.update(line[1].encode())
        size += len(line[1].encode())
        rows += 1
        if len(piece) == ROWS_A_PIECE:
            store()
    if piece:
        store()
    row = {
        "bank_id": bank_id,
        "day": day.isoformat(),
        "revision": revision,
        "attempt": attempt,
        "pieces": number,
        "rows": rows,
        "size": size,
        "sha256": digest.hexdigest(),
        "sequence": sequence,
        "made_at": clock.now(),
    }
    try:
        _files().insert_one(row)
    except DuplicateKeyError:
        _pieces().delete_many({"attempt": attempt})


def _newest(bank_id: str, day: date) -> File | None:
    wanted = {"bank_id": bank_id, "day": day.isoformat()}
    found = _files().find_one(wanted, sort=[("revision", -1)])
    return File(**{name: found[name] for name in File.__slots__}) if found else None


def _of(file: File) -> Iterator[storage.Doc]:
    yield from _pieces().find({"attempt": file.attempt}).sort("number", 1).limit(file.pieces)
