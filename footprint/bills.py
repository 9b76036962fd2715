"""Bills: what utilities sent for linked meter accounts, stored once, and what became of them.

A bill is unique on `(source, event_id)` for ever. It takes the next number of its meter account;
`(household, number)` is unique, so two bills that each saw no overlap cannot both be stored. Who
lives behind the meter is frozen on the bill when it arrives, the judgement when it is first made,
so a resumed bill posts the same entries whatever arrived meanwhile.

A bill is ended by another one that names it in `corrects`, and by one only: a correction, which
inherits its residents, shares and window, or a row that takes it back and says nothing itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import mongoengine as me
from pymongo import UpdateOne
from pymongo.collection import Collection, ReturnDocument

from accounting import clock, events, storage
from accounting.events import Happening, Type
from accounting.proration import Use
from footprint import methodology
from footprint.activities import RECEIVED, SETTLED
from footprint.billing_rules import (
    BEHAVIOURS,
    NEEDS_HISTORY,
    PV,
    Carrier,
    Generation,
    Judgement,
)
from footprint.methodology import Behaviour, Methodology


@storage.indexed
class BillDocument(me.Document):
    id = me.StringField(primary_key=True)
    household = me.StringField(required=True)
    number = me.IntField(required=True)
    source = me.StringField(required=True)
    event_id = me.StringField(required=True)
    fingerprint = me.StringField(required=True)
    carrier = me.StringField(required=True)
    period_start = me.StringField(required=True)
    period_end = me.StringField(required=True)
    quantity = me.StringField(required=True)
    estimated = me.BooleanField(required=True)
    # {generated, exported, certified}: kWh as text, from homes with solar panels.
    pv = me.DictField()
    corrects = me.StringField()
    residents = me.ListField(me.StringField())
    shares = me.IntField(required=True)
    methodology = me.StringField(required=True)
    emissions_mg = me.IntField(required=True)
    window_from = me.DateTimeField(required=True)
    received_at = me.DateTimeField(required=True)
    state = me.StringField(required=True)
    revision = me.IntField(required=True)
    judgement = me.DictField()
    # By resident: {points, reasons}.
    given = me.DictField()
    corrected_by = me.StringField()
    # Why and by whom, on a row that takes another one back.
    reason = me.StringField()
    by = me.StringField()
    # The file it came with, for taking a whole file back.
    job = me.StringField()

    meta = {
        "collection": "bills",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["source", "event_id"], "unique": True},
            {"fields": ["household", "-number"], "unique": True},
            {"fields": ["residents", "_id"]},
            {
                "fields": ["job", "_id"],
                "partialFilterExpression": {"job": {"$gt": ""}},
            },
            {
                "fields": ["corrects"],
                "unique": True,
                # Any text. A filter by `$type` would keep the planner from using the index.
                "partialFilterExpression": {"corrects": {"$gt": ""}},
            },
            {
                "fields": ["received_at"],
                "name": "unsettled",
                "partialFilterExpression": {"state": RECEIVED},
            },
        ],
    }


@dataclass(frozen=True, slots=True)
class Given:
    """The points one resident got for a share, and what was said about them (a budget ran low)."""

    points: int
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bill:
    """One stored bill. `given` is by resident, empty once ended; `emissions_mg` is of all.

    `window_from` is when the first bill of a chain of corrections arrived; `job` is the file that
    brought it first. `reason` and `by` are of a row that takes back the bill it names in
    `corrects`; `corrected_by` is the row that ended this one.
    """

    id: str
    household: str
    number: int
    source: str
    event_id: str
    fingerprint: str
    carrier: Carrier
    period_start: date
    period_end: date
    quantity: str
    estimated: bool
    pv: Generation | None
    corrects: str | None
    residents: tuple[str, ...]
    shares: int
    methodology: str
    emissions_mg: int
    window_from: datetime
    received_at: datetime
    state: str = RECEIVED
    revision: int = 1
    judgement: Judgement | None = None
    given: Mapping[str, Given] = field(default_factory=dict)
    corrected_by: str | None = None
    reason: str | None = None
    by: str | None = None
    job: str | None = None

    @property
    def takes_back(self) -> bool:
        return self.reason is not None

    @property
    def points(self) -> int:
        """What a share earned; of residents whom campaigns give more, the most."""
        return max((one.points for one in self.given.values()), default=0)

    @property
    def over(self) -> datetime:
        """The last instant of the period; maturity and expiry count from here."""
        return clock.start_of(self.period_end + timedelta(days=1)) - timedelta(milliseconds=1)

    @property
    def use(self) -> Use:
        return Use(self.period_start, self.period_end, Decimal(self.quantity))

    @property
    def rules(self) -> tuple[Methodology, Behaviour]:
        """The version it is judged by, and what it is credited as."""
        version = methodology.version(self.methodology)
        return version, version.behaviours[PV if self.pv else BEHAVIOURS[self.carrier]]

    def outcome(self, now: datetime) -> Judgement:
        """What to show: an ended bill earned nothing, points not yet mature are pending."""
        assert self.judgement is not None, f"{self.id} is not judged"
        if self.corrected_by is not None:
            reason = "reversed" if self.corrected_by == taken_back_by(self.id) else "bill_corrected"
            was_worth = self.judgement.mg or reason == "reversed"
            return self.judgement.refused(reason, "reversed" if was_worth else "recorded")
        if self.judgement.status == "credited" and self.over + self.rules[1].maturity > now:
            return replace(self.judgement, status="pending")
        return self.judgement


def _collection() -> "Collection[storage.Doc]":
    return storage.strong(BillDocument._get_collection())


def taken_back_by(bill_id: str) -> str:
    """The id of the row that takes a bill back; there is at most one."""
    return f"back_{bill_id}"


def insert(bills: Sequence[Bill]) -> int:
    """Store bills in their order; returns how many are, up to the first that was in the way."""
    documents = [_document(bill) for bill in bills]
    return len(storage.insert_new(_collection(), documents, ordered=True))


def freeze(judged: Sequence[tuple[Bill, Judgement]]) -> list[Bill]:
    """Keep the first judgement of each revision; returns the bills with the one that is kept."""
    if not judged:
        return []
    done = _collection().bulk_write(
        [
            UpdateOne(
                {"_id": bill.id, "revision": bill.revision, "judgement": None},
                {"$set": {"judgement": asdict(judgement)}},
            )
            for bill, judgement in judged
        ],
        ordered=False,
    )
    if done.modified_count == len(judged):
        return [replace(bill, judgement=judgement) for bill, judgement in judged]
    kept = by_ids([bill.id for bill, _ in judged])
    return [kept[bill.id] for bill, _ in judged]


def settle(bills: Sequence[Bill]) -> list[Bill]:
    """Every entry of these revisions is posted; returns the bills as they are now.

    One that was reopened or ended meanwhile is left to whoever did so.
    """
    if not bills:
        return []
    _tell(bills)
    done = _collection().bulk_write(
        [
            UpdateOne(
                {"_id": bill.id, "revision": bill.revision, "corrected_by": None},
                {"$set": {"state": SETTLED, "given": _given(bill)}},
            )
            for bill in bills
        ],
        ordered=False,
    )
    if done.matched_count == len(bills):
        return [replace(bill, state=SETTLED) for bill in bills]
    kept = by_ids([bill.id for bill in bills])
    return [kept[bill.id] for bill in bills]


def _tell(bills: Sequence[Bill]) -> None:
    """Leave word of settled bills for the utilities that sent them."""
    told = [
        (bill, bill.judgement, party)
        for bill in bills
        if bill.judgement is not None and (party := events.party_of_source(bill.source))
    ]
    events.leave(
        *[
            Happening(
                party,
                Type.BILL_SETTLED,
                f"bill:{bill.id}",
                f"bill:{bill.id}:{bill.revision}",
                {
                    "bill_id": bill.id,
                    "source_event_id": bill.event_id,
                    "carrier": str(bill.carrier),
                    "status": judgement.status,
                    "reasons": list(judgement.reasons),
                },
            )
            for bill, judgement, party in told
        ]
    )


def waiting(households: Sequence[str]) -> list[Bill]:
    """Bills of these accounts that lacked nothing but history when they were judged."""
    wanted = {
        "household": {"$in": list(households)},
        "judgement.reasons": NEEDS_HISTORY,
        "corrected_by": None,
    }
    return [_bill(found) for found in _collection().find(wanted).sort("number", 1)]


def reopen(bill: Bill, reason: str, judgement: Judgement | None = None) -> Bill | None:
    """Take a bill with this reason up as its next revision, judged anew or so; None without it."""
    wanted = {"_id": bill.id, "revision": bill.revision, "corrected_by": None}
    wanted["judgement.reasons"] = reason
    kept = asdict(judgement) if judgement else None
    return _changed(wanted, {"revision": bill.revision + 1, "judgement": kept, "state": RECEIVED})


def end(bill: Bill, by: str) -> Bill | None:
    """Name on a bill the row that ended it; None if the bill was reopened meanwhile."""
    wanted = {"_id": bill.id, "revision": bill.revision, "judgement": {"$ne": None}}
    return _changed(wanted, {"corrected_by": by, "given": {}})


def by_id(bill_id: str) -> Bill:
    found = find(bill_id)
    assert found is not None, "bills are never deleted"
    return found


def find(bill_id: str) -> Bill | None:
    found = _collection().find_one({"_id": bill_id})
    return _bill(found) if found else None


def by_ids(bill_ids: Iterable[str]) -> dict[str, Bill]:
    found = _collection().find({"_id": {"$in": list(bill_ids)}})
    return {document["_id"]: _bill(document) for document in found}


def shared_with(resident: str, bill_id: str) -> Bill | None:
    """A bill the resident has a share in."""
    found = _collection().find_one({"_id": bill_id, "residents": resident})
    return _bill(found) if found else None


def entry_key(bill: Bill, resident: str) -> str:
    """The key of the entry that credits a resident's share of this revision of a bill."""
    return f"bill:{bill.id}:{bill.revision}:{resident}"


def by_events(source: str, event_ids: Sequence[str]) -> dict[str, Bill]:
    """What a source sent under these event ids, by event id."""
    wanted = {"source": source, "event_id": {"$in": list(event_ids)}}
    return {found["event_id"]: _bill(found) for found in _collection().find(wanted)}


def by_event(source: str, event_id: str) -> Bill | None:
    return by_events(source, [event_id]).get(event_id)


def of_households(households: Sequence[str]) -> dict[str, list[Bill]]:
    """Every row of these accounts, in the order of their numbers; none for an account unseen."""
    kept: dict[str, list[Bill]] = {household: [] for household in households}
    for found in _collection().find({"household": {"$in": list(kept)}}):
        kept[found["household"]].append(_bill(found))
    for rows in kept.values():
        rows.sort(key=lambda bill: bill.number)
    return kept


def is_ended(bill_id: str) -> bool:
    """Whether a correction or a taking back of a bill is stored, carried out or not yet."""
    return _collection().count_documents({"corrects": bill_id}, limit=1) == 1


def of_resident(resident: str, *, before: str | None, limit: int) -> list[Bill]:
    """The bills the resident has a share in, credited or not, the last to arrive first."""
    wanted: dict[str, Any] = {"residents": resident}
    if before is not None:
        wanted["_id"] = {"$lt": before}
    return [_bill(found) for found in _collection().find(wanted).sort("_id", -1).limit(limit)]


def of_job(job: str, *, after: str, limit: int) -> list[str]:
    """The ids of what a file job brought, in their order; `after` is the last one seen."""
    wanted = {"job": job, "_id": {"$gt": after}}
    found = _collection().find(wanted, {"_id": 1}).sort("_id", 1).limit(limit)
    return [document["_id"] for document in found]


def count_of_job(job: str) -> int:
    return _collection().count_documents({"job": job})


def unsettled(received_before: datetime, limit: int) -> list[Bill]:
    """Bills a crash left half-way, oldest first."""
    wanted = {"state": RECEIVED, "received_at": {"$lt": received_before}}
    found = _collection().find(wanted).sort("received_at", 1).limit(limit)
    return [_bill(document) for document in found]


def emissions_between(resident: str, first: date, last: date) -> dict[Carrier, int]:
    """Milligrams a resident's share of the bills stands for, by carrier, both days included.

    A bill is taken by the days it has in the range; estimates count until they are corrected. Each
    carrier is rounded down once.
    """
    sums: dict[Carrier, Fraction] = {}
    for bill in _live({"residents": resident, **_within(first, last)}):
        share = Fraction(bill.use.days_within(first, last), bill.use.days * bill.shares)
        sums[bill.carrier] = sums.get(bill.carrier, Fraction(0)) + bill.emissions_mg * share
    return {carrier: total.__floor__() for carrier, total in sorted(sums.items())}


def _within(first: date, last: date) -> dict[str, Any]:
    """The bills that share a day with `first` to `last`."""
    return {"period_start": {"$lte": last.isoformat()}, "period_end": {"$gte": first.isoformat()}}


def _live(wanted: dict[str, Any]) -> list[Bill]:
    """The bills found that nothing has ended."""
    found = [_bill(document) for document in _collection().find(wanted)]
    if not found:
        return found
    wanted = {"corrects": {"$in": [bill.id for bill in found]}}
    ending = _collection().find(wanted, {"corrects": 1})
    ended = {document["corrects"] for document in ending}
    return [bill for bill in found if bill.id not in ended]


def _changed(wanted: dict[str, Any], change: dict[str, Any]) -> Bill | None:
    found = _collection().find_one_and_update(
        wanted, {"$set": change}, return_document=ReturnDocument.AFTER
    )
    return _bill(found) if found else None


def _document(bill: Bill) -> storage.Doc:
    document: storage.Doc = {
        one.name: getattr(bill, one.name) for one in fields(bill) if one.name != "id"
    }
    pv = bill.pv
    return {
        "_id": bill.id,
        **document,
        "period_start": bill.period_start.isoformat(),
        "period_end": bill.period_end.isoformat(),
        "residents": list(bill.residents),
        "pv": {name: str(kwh) for name, kwh in asdict(pv).items()} if pv else None,
        "judgement": asdict(bill.judgement) if bill.judgement else None,
        "given": _given(bill),
    }


def _given(bill: Bill) -> storage.Doc:
    return {resident: asdict(one) for resident, one in bill.given.items()}


def _bill(document: storage.Doc) -> Bill:
    held = {one.name: document[one.name] for one in fields(Bill) if one.name != "id"}
    kept, pv = held["judgement"], held["pv"]
    return Bill(
        **{
            **held,
            "id": document["_id"],
            "period_start": date.fromisoformat(held["period_start"]),
            "period_end": date.fromisoformat(held["period_end"]),
            "residents": tuple(held["residents"]),
            "pv": Generation(**{name: Decimal(kwh) for name, kwh in pv.items()}) if pv else None,
            "judgement": Judgement(**{**kept, "reasons": tuple(kept["reasons"])}) if kept else None,
            "given": {
                resident: Given(one["points"], tuple(one["reasons"]))
                for resident, one in held["given"].items()
            },
        }
    )
