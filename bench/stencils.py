"""Accounts by the million, as the real path leaves them: a pattern is lived once and traced often.

A pattern is a resident whose rows went through the door of the partners, with everything that left
behind: account, link, facts, entries, claims, months, milestones, notifications, grade. A tracing
has the same documents with everything that is somebody's own (ids, keyed hashes, sealed texts, the
fingerprints of what was reported) made anew for another resident, and each hash of the chain and of
the months computed from what it then covers. Only times and quantities are the pattern's.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import bson
from bson import CodecOptions, ObjectId
from bson.raw_bson import RawBSONDocument

from accounting import accounts, claims, clock, links, outbox, storage, vault
from accounting.book.entries import _with_hash
from accounting.ids import new_id
from api import feed_rows
from api.city import days
from api.city.people import Person
from footprint import folding, grade, greenlist, intake, methodology, summaries
from footprint.rules import Report
from integrations import delivery
from integrations.push_file import FilePusher
from points import milestones
from points.feed import Partner

# Attributes that are one person's or one occasion's; in the others people are alike.
OWN = ("vehicle", "slip", "invoice", "order", "waybill", "card")
_ID = re.compile(rb"(?<![a-z])[a-z]{2,5}_[0-9abcdefghjkmnpqrstvwxyz]{26}(?![0-9a-z])")
_OBJECT_ID = b"\x07_id\x00"
_RAW: CodecOptions[Any] = CodecOptions(document_class=RawBSONDocument)
# The grading before the one that is measured.
GRADED_DAYS_AGO = 31


def phone_of(number: int) -> str:
    return f"+86139{number:08d}"


def event_of(partner: str, number: int, place: int) -> str:
    return f"{partner}-seed-{number:08d}-{place:02d}"


def report_of(report: Report, number: int, place: int) -> Report:
    """What another person reported at that time: with a vehicle, slip and so on of their own."""
    own = {name: own_of(name, number, place) for name in OWN if name in report.attributes}
    if not own:
        return report
    return replace(report, attributes={**report.attributes, **own})


def own_of(name: str, number: int, place: int) -> str:
    return f"{name}-{number:08d}-{place:02d}"


@dataclass(frozen=True, slots=True)
class Trace:
    """A document cut where something is somebody's own: pieces, and what goes between them."""

    collection: str
    pieces: tuple[bytes, ...]
    slots: tuple[int, ...]

    def fill(self, values: Sequence[bytes]) -> bytes:
        filled = list(self.pieces)
        filled[1::2] = [values[slot] for slot in self.slots]
        return b"".join(filled)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A resident's documents to be traced, and what of a person's own goes where in the values.

    The values are, in this order: new ids by their prefixes (the resident's comes first), then
    `own` texts of the account and the link, four of each activity, object ids, hashes of the chain,
    digests of the months. `activities` are the places of the activities' ids. `chain` are the
    entries without their hashes, `months` the months, each with what its digest covers.
    """

    partner: str | None
    reports: tuple[Report, ...]
    ids: tuple[str, ...]
    activities: tuple[int, ...]
    objects: int
    plain: tuple[Trace, ...]
    chain: tuple[Trace, ...]
    months: tuple[tuple[Trace, Trace], ...]

    def trace(self, person: Person) -> Iterator[tuple[str, bytes]]:
        """Another person's documents, each with its collection."""
        values = _new_ids(self.ids)
        values += _own(person, self.partner)
        resident = values[0].decode()
        external = values[-2].decode()
        for place, report in enumerate(self.reports):
            activity = values[self.activities[place]].decode()
            mine = report_of(report, person.number, place)
            values += _told(mine, resident, activity, external, self.partner, person, place)
        values += [ObjectId().binary for _ in range(self.objects)]
        for trace in self.chain:
            content = trace.fill(values)
            digest = hashlib.sha256(content).hexdigest()
            values.append(digest.encode())
            yield trace.collection, _with_hash(content, digest).raw
        for trace, covered in self.months:
            covers = covered.fill(values)
            values.append(hashlib.sha256(covers).hexdigest()[: folding.DIGEST_CHARS].encode())
            yield trace.collection, trace.fill(values)
        for trace in self.plain:
            yield trace.collection, trace.fill(values)

    def link(self, person: Person, resident: bytes) -> tuple[str, bytes]:
        """Only the link of a person to this partner."""
        [trace] = [one for one in self.plain if one.collection == "links"]
        own = len(self.ids)
        values = [b""] * own + [b"", b"", *_linked(person, self.partner)]
        for slot in trace.slots:
            if slot < own:
                values[slot] = new_id(self.ids[slot]).encode() if slot else resident
        return "links", trace.fill(values)


def _new_ids(prefixes: Sequence[str]) -> list[bytes]:
    """Ids in their order, of one instant; made one by one they would be a fifth of the work."""
    stem = new_id("")[1:-2]
    return [f"{prefix}_{stem}{place:02d}".encode() for place, prefix in enumerate(prefixes)]


def _own(person: Person, partner: str | None) -> list[bytes]:
    """Keyed hash and sealed text of the phone, and of the id at a partner."""
    phone = phone_of(person.number)
    found = [vault.keyed_hash("phone", phone).encode(), vault.encrypt(phone, "phone")]
    return found + _linked(person, partner)


def _linked(person: Person, partner: str | None) -> list[bytes]:
    if partner is None:
        return []
    external = person.external_id(partner)
    return [
        links.external_hash(partner, external).encode(),
        vault.encrypt(external, "external"),
    ]


def _told(
    report: Report, resident: str, activity: str, external_hash: str, partner: str | None,
    person: Person, place: int,
) -> list[bytes]:  # fmt: skip
    """Event id and fingerprint of an activity; its claim and the name of that, or nothing."""
    assert partner is not None
    found = [
        event_of(partner, person.number, place).encode(),
        intake.fingerprint(report, external_hash).encode(),
    ]
    version = methodology.in_force(clock.city_day(report.start))
    claim = intake._claim(version.behaviours[report.behaviour], report, resident, activity)
    if claim is None:
        return [*found, b"", b""]
    name = claims._name(claim["kind"], claim["value"]).rpartition(":")[2]
    return [*found, claim["value"].encode(), name.encode()]


# --- living a pattern ---------------------------------------------------------------------------


def live(person: Person, partner: str | None, dates: Sequence[date], seed: int) -> Pattern:
    """Have days of a person reported by a partner, each the night after; read what that left."""
    joined = clock.start_of(dates[0]) - timedelta(days=10)
    rows = list(_rows(person, partner, dates, seed)) if partner else []
    with clock.stand(joined):
        resident = accounts.by_phone(phone_of(person.number))
        if partner is not None:
            link = links.link(resident, partner, person.external_id(partner))
            links.parked_credited(link.id)
    reports = []
    for on, row in rows:
        assert partner is not None
        reports.append(feed_rows.row_of(Partner(partner), row).report)
        night = clock.start_of(on) + timedelta(days=1, hours=2)
        with clock.stand(night):
            [taken] = feed_rows.take_rows(Partner(partner), [row])
            assert taken.refusal is None, taken
            assert taken.fresh, taken
            summaries.catch_up(resident)
            milestones.look_at({resident})
        _carried(night + timedelta(hours=10))
    graded_at = clock.now() - timedelta(days=GRADED_DAYS_AGO)
    with clock.stand(graded_at):
        grade.grade_now(resident, scheduled=clock.city_month(clock.now()))
        greenlist.sweep(clock.now())
    _carried(graded_at + timedelta(days=1))
    return _pattern(person, partner, resident, reports)


def _rows(
    person: Person, partner: str, dates: Sequence[date], seed: int
) -> Iterator[tuple[date, dict[str, Any]]]:
    """One row a day, of the first of its lives in which the person did something that day."""
    for place, on in enumerate(dates):
        day, made = days.day_of(seed, on), list[dict[str, Any]]()
        lives = iter(range(10_000))
        while not made:
            found = days.rows(Random(next(lives)), person, day)
            made = [row for name, row in found if name == partner]
        row = json.loads(json.dumps(made[0]), parse_float=Decimal)
        row["source_event_id"] = event_of(partner, person.number, place)
        for name in row.get("attributes", {}):
            if name in OWN:
                row["attributes"][name] = own_of(name, person.number, place)
        yield on, row


def _carried(at: datetime) -> None:
    """The notifications left so far are carried by noon; nobody has a phone, so to nobody."""
    noon = clock.start_of(clock.city_day(at)) + timedelta(hours=12)
    with TemporaryDirectory() as folder, clock.stand(noon):
        for category in (outbox.SERVICE, outbox.MARKETING):
            delivery.carry_due(category, FilePusher(Path(folder)), 5)


def _pattern(
    person: Person, partner: str | None, resident: str, reports: Sequence[Report]
) -> Pattern:
    stored = _documents_of(resident)
    facts = sorted(stored.get("activities", []), key=lambda raw: bson.decode(raw)["_id"])
    chain = [bson.decode(raw) for raw in stored.pop("entries", [])]
    chain.sort(key=lambda entry: entry["seq"])
    months = [bson.decode(raw) for raw in stored.pop("summary_months", [])]
    plain = [(name, raw) for name, found in sorted(stored.items()) for raw in found]

    whole = b"".join(raw for _, raw in plain)
    ids = sorted(set(_ID.findall(whole)), key=lambda one: (one != resident.encode(), one))
    prefixes = tuple(one.partition(b"_")[0].decode() for one in ids)
    objects = [raw[9:21] for _, raw in plain if raw[4:9] == _OBJECT_ID]
    tokens = [*ids, *_sealed(stored, partner)]
    for raw in facts:
        tokens += _tokens_of(bson.decode(raw))
    tokens += objects
    tokens += [entry["hash"].encode() for entry in chain]
    tokens += [month["digest"].encode() for month in months]
    cut = _Cutter(tokens, f"{person.number:08d}")
    pattern = Pattern(
        partner=partner,
        reports=tuple(reports),
        ids=prefixes,
        activities=tuple(ids.index(bson.decode(raw)["_id"].encode()) for raw in facts),
        objects=len(objects),
        plain=tuple(cut(name, raw) for name, raw in plain),
        chain=tuple(cut("entries", _without(entry, "hash")) for entry in chain),
        months=tuple(
            (cut("summary_months", bson.encode(month)), cut("", _covered(month)))
            for month in months
        ),
    )
    assert len(pattern.reports) == len(facts), "every report has its fact"
    return pattern


def _documents_of(resident: str) -> dict[str, list[bytes]]:
    """All that names a resident or one of its activities, raw, by collection."""
    base = storage.database().with_options(codec_options=_RAW)
    facts = base["activities"].find({"resident": resident})
    names = [resident.encode(), *(one["_id"].encode() for one in facts)]
    found: dict[str, list[bytes]] = {}
    for collection in sorted(base.list_collection_names()):
        for document in base[collection].find():
            if any(name in document.raw for name in names):
                found.setdefault(collection, []).append(document.raw)
    return found


def _sealed(stored: dict[str, list[bytes]], partner: str | None) -> list[bytes]:
    [account] = [bson.decode(raw) for raw in stored["residents"]]
    found = [account["phone_hash"].encode(), account["phone_sealed"]]
    if partner is not None:
        [link] = [bson.decode(raw) for raw in stored["links"]]
        found += [link["external_hash"].encode(), link["external_sealed"]]
    return found


def _tokens_of(fact: dict[str, Any]) -> list[bytes]:
    found, claim = [fact["event_id"].encode(), fact["fingerprint"].encode()], fact.get("claim")
    if claim is None:
        return [*found, b"", b""]
    name = claims._name(claim["kind"], claim["value"]).rpartition(":")[2]
    return [*found, claim["value"].encode(), name.encode()]


def _without(document: dict[str, Any], name: str) -> bytes:
    content = {field: value for field, value in document.items() if field != name}
    encoded = bson.encode(content)
    assert hashlib.sha256(encoded).hexdigest() == document["hash"], "as the book hashes it"
    return encoded


def _covered(month: dict[str, Any]) -> bytes:
    """What the digest of a month is taken over."""
    encoded = bson.encode({name: month[name] for name in ("_id", "seq", "behaviours", "books")})
    digest = hashlib.sha256(encoded).hexdigest()[: folding.DIGEST_CHARS]
    assert digest == month["digest"], "as the summaries take it"
    return encoded


class _Cutter:
    """Cuts documents at the tokens; nothing of the person may be left in between."""

    def __init__(self, tokens: Sequence[bytes], number: str) -> None:
        self._slots = {token: place for place, token in enumerate(tokens) if token}
        self._splits = re.compile(b"(" + b"|".join(map(re.escape, self._slots)) + b")")
        self._number = number.encode()

    def __call__(self, collection: str, raw: bytes) -> Trace:
        pieces = self._splits.split(raw)
        left = b"".join(pieces[::2])
        assert self._number not in left, (collection, left)
        slots = tuple(self._slots[token] for token in pieces[1::2])
        return Trace(collection, tuple(pieces), slots)


def id_of(raw: bytes) -> bytes:
    """The `_id` of a document that begins with it, as text."""
    size = int.from_bytes(raw[9:13], "little")
    return raw[13 : 13 + size - 1]
