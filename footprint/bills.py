"""Bills: what utilities sent for linked meter accounts, stored once, and what became of them.

A bill is unique on `(source, event_id)` for ever. It takes the next number of its meter account;
`(household, number)` is unique, so two bills that each saw no overlap cannot both be stored. Who
lives behind the meter is frozen on the bill when it arrives, the judgement when it is first made,
so a resumed bill posts the same entries whatever arrived meanwhile. A correction names the bill it
replaces and inherits its residents, shares and window.
"""

import random
import time
from dataclasses import asdict, dataclass, fields, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import mongoengine as me
from pymongo.collection import Collection, ReturnDocument
from pymongo.errors import DuplicateKeyError

from accounting import book, clock, storage
from accounting.errors import AccountBusy, DomainError, ValidationFailed
from accounting.ids import new_id
from accounting.quantities import floor_mg
from footprint import billing_rules, households, methodology
from footprint.activities import RECEIVED, SETTLED, SourceEventConflict
from footprint.billing_rules import (
    BASELINE_YEARS,
    BEHAVIOURS,
    NEEDS_HISTORY,
    TIER_3,
    BillReport,
    Carrier,
    Judgement,
    Use,
)
from footprint.households import Household
from footprint.methodology import Behaviour, Methodology

RECEIVE_ATTEMPTS_MAX = 12
_PAUSE_S, _PAUSE_MAX_S = 0.004, 0.25


class AccountNotLinked(DomainError):
    code = "account_not_linked"
    en = "No resident has linked this meter account; nothing was stored."
    zh = "该户号尚无居民绑定，账单未保存。"


class BillOverlaps(DomainError):
    """Facts: period_start, period_end of the bill that is there."""

    code = "bill_overlaps"
    en = "This account has a bill for {period_start} to {period_end}; correct that one instead."
    zh = "该户号已有 {period_start} 至 {period_end} 的账单，请改用更正。"


class CorrectedBillUnknown(DomainError):
    """Facts: corrects."""

    code = "corrected_bill_unknown"
    en = "There is no earlier bill {corrects} of yours to correct."
    zh = "未找到您此前上报的账单 {corrects}，无法更正。"


class AlreadyCorrected(DomainError):
    """Facts: corrects."""

    code = "already_corrected"
    en = "Bill {corrects} was corrected before; correct the newest one."
    zh = "账单 {corrects} 已被更正，请更正最新的一份。"


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
    points = me.IntField()
    corrected_by = me.StringField()
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
class Bill:
    """One stored bill. `points` are each resident's, 0 once corrected; `emissions_mg` is of all.

    `window_from` is when the first bill of a chain of corrections arrived.
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
    points: int = 0
    corrected_by: str | None = None
    job: str | None = None

    @property
    def over(self) -> datetime:
        """The last instant of the period; maturity and expiry count from here."""
        return clock.start_of(self.period_end + timedelta(days=1)) - timedelta(milliseconds=1)

    @property
    def use(self) -> Use:
        return Use(self.period_start, self.period_end, Decimal(self.quantity))

    @property
    def rules(self) -> tuple[Methodology, Behaviour]:
        version = methodology.version(self.methodology)
        return version, version.behaviours[BEHAVIOURS[self.carrier]]

    def outcome(self, now: datetime) -> Judgement:
        """What to show: a corrected bill earned nothing, points not yet mature are pending."""
        assert self.judgement is not None, f"{self.id} is not judged"
        if self.corrected_by is not None:
            status = "reversed" if self.judgement.mg else "recorded"
            return self.judgement.refused("bill_corrected", status)
        if self.judgement.status == "credited" and self.over + self.rules[1].maturity > now:
            return replace(self.judgement, status="pending")
        return self.judgement


def _collection() -> "Collection[storage.Doc]":
    return storage.strong(BillDocument._get_collection())


def receive(
    report: BillReport,
    *,
    source: str,
    event_id: str,
    received_at: datetime,
    job: str | None = None,
) -> tuple[Bill, bool]:
    """Store a bill once; returns what is stored and whether it was new. `job`: the file it is of.

    Raises `SourceEventConflict` when the source sent this event id with other content, and before
    anything is stored `ValidationFailed`, `AccountNotLinked`, `CorrectedBillUnknown`,
    `AlreadyCorrected` or `BillOverlaps`; `AccountBusy` after a bounded number of lost races.
    """
    fingerprint = _fingerprint(report)
    for attempt in range(RECEIVE_ATTEMPTS_MAX):
        try:
            bill = _fact(report, fingerprint, source, event_id, received_at)
            _collection().insert_one(_document(replace(bill, job=job)))
            return replace(bill, job=job), True
        except (DomainError, DuplicateKeyError) as refusal:
            # Its first try may be stored: the answer to that comes before any refusal.
            earlier = _collection().find_one({"source": source, "event_id": event_id})
            if earlier is None and isinstance(refusal, DomainError):
                raise
        if earlier is not None:
            if earlier["fingerprint"] != fingerprint:
                raise SourceEventConflict(source_event_id=event_id)
            return _bill(earlier), False
        # The account's next number or the correction was taken: look again.
        time.sleep(random.uniform(0, min(_PAUSE_S * 2**attempt, _PAUSE_MAX_S)))
    raise AccountBusy(retry_after=1)


def judge(bill: Bill) -> Judgement:
    """What the rules say on what is known of the account now; reads, changes nothing."""
    rules_then, behaviour = bill.rules
    reason = _why_not(bill, rules_then, behaviour)
    if reason is not None:
        return Judgement("recorded", (reason,))
    first = clock.add_months(clock.month_of(bill.period_start), -12 * max(BASELINE_YEARS))
    known = _live(
        {
            "household": bill.household,
            "estimated": False,
            "_id": {"$ne": bill.id},
            **_within(clock.first_day(first), bill.period_end),
        }
    )
    verdict = billing_rules.assess(
        bill.use, (other.use for other in known), tier_3=TIER_3.get(bill.carrier)
    )
    stale = rules_then.stale(clock.city_day(bill.received_at))
    return billing_rules.judged(verdict, behaviour, bill.shares, stale=stale)


def freeze(bill: Bill, judgement: Judgement) -> Bill:
    """Keep the first judgement of this revision; returns the bill with the one that is kept."""
    wanted = {"_id": bill.id, "revision": bill.revision, "judgement": None}
    return _changed(wanted, {"judgement": asdict(judgement)}) or by_id(bill.id)


def waiting(household: str) -> list[Bill]:
    """Bills of an account that lacked nothing but history when they were judged."""
    wanted = {"household": household, "judgement.reasons": NEEDS_HISTORY, "corrected_by": None}
    return [_bill(found) for found in _collection().find(wanted).sort("number", 1)]


def reopen(bill: Bill, reason: str, judgement: Judgement | None = None) -> Bill | None:
    """Take a bill with this reason up as its next revision, judged anew or so; None without it."""
    wanted = {"_id": bill.id, "revision": bill.revision, "corrected_by": None}
    wanted["judgement.reasons"] = reason
    kept = asdict(judgement) if judgement else None
    return _changed(wanted, {"revision": bill.revision + 1, "judgement": kept, "state": RECEIVED})


def mark_corrected(bill: Bill, by: str) -> Bill | None:
    """Name the correction on the bill it replaces; None if the bill was reopened meanwhile."""
    wanted = {"_id": bill.id, "revision": bill.revision, "judgement": {"$ne": None}}
    return _changed(wanted, {"corrected_by": by, "points": 0})


def settle(bill: Bill) -> Bill | None:
    """Every entry of this revision is posted; None if it was reopened or corrected meanwhile."""
    wanted = {"_id": bill.id, "revision": bill.revision, "corrected_by": None}
    return _changed(wanted, {"state": SETTLED, "points": bill.points})


def by_id(bill_id: str) -> Bill:
    found = _collection().find_one({"_id": bill_id})
    assert found is not None, "bills are never deleted"
    return _bill(found)


def shared_with(resident: str, bill_id: str) -> Bill | None:
    """A bill the resident has a share in."""
    found = _collection().find_one({"_id": bill_id, "residents": resident})
    return _bill(found) if found else None


def of_resident(resident: str, *, before: str | None, limit: int) -> list[Bill]:
    """The bills the resident has a share in, credited or not, the last to arrive first."""
    wanted: dict[str, Any] = {"residents": resident}
    if before is not None:
        wanted["_id"] = {"$lt": before}
    return [_bill(found) for found in _collection().find(wanted).sort("_id", -1).limit(limit)]


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


def entry_key(bill: Bill, resident: str) -> str:
    """The key of the entry that credits a resident's share of this revision of a bill."""
    return f"bill:{bill.id}:{bill.revision}:{resident}"


def _fingerprint(report: BillReport) -> str:
    return book.fingerprint(
        households.number_hash(report.carrier, report.account_no),
        report.period_start.isoformat(),
        report.period_end.isoformat(),
        _plain(report.quantity),
        report.estimated,
        report.corrects or "",
    )


def _plain(quantity: Decimal) -> str:
    """One spelling of a decimal: no exponent, no trailing zeros."""
    return format(quantity.normalize(), "f")


def _fact(
    report: BillReport, fingerprint: str, source: str, event_id: str, received_at: datetime
) -> Bill:
    """The bill to store as the account's next, or the refusal. Reads the last number first."""
    billing_rules.check(report, clock.city_day(received_at))
    household = households.by_number(report.carrier, report.account_no)
    # What was credited must be corrected even when everybody has left since.
    if household is None or not (household.residents or report.corrects):
        raise AccountNotLinked()
    last = _collection().find_one({"household": household.id}, {"number": 1}, sort=[("number", -1)])
    earlier = _to_correct(report, report.corrects, source, household) if report.corrects else None
    _refuse_overlap(report, household, earlier)
    rules_then = methodology.in_force(report.period_end)
    behaviour = rules_then.behaviours[BEHAVIOURS[report.carrier]]
    residents = earlier.residents if earlier else household.residents
    members = household.members_on(report.period_end)
    return Bill(
        id=new_id("bil"),
        household=household.id,
        number=last["number"] + 1 if last else 1,
        source=source,
        event_id=event_id,
        fingerprint=fingerprint,
        carrier=report.carrier,
        period_start=report.period_start,
        period_end=report.period_end,
        quantity=_plain(report.quantity),
        estimated=report.estimated,
        corrects=earlier.id if earlier else None,
        residents=residents,
        # Fewer may have lived there then than are linked now; a saving is never shared out twice.
        shares=earlier.shares if earlier else max(members, len(residents)),
        methodology=rules_then.version,
        emissions_mg=floor_mg(report.quantity, behaviour.mg_num, behaviour.mg_den),
        window_from=earlier.window_from if earlier else received_at,
        received_at=received_at,
    )


def _to_correct(report: BillReport, corrects: str, source: str, household: Household) -> Bill:
    found = _collection().find_one({"source": source, "event_id": corrects})
    if found is None:
        raise CorrectedBillUnknown(corrects=corrects)
    earlier = _bill(found)
    if earlier.household != household.id:
        raise ValidationFailed("/corrects", "Is a bill of another account.", "该账单属于其他户号。")
    if report.estimated and not earlier.estimated:
        raise ValidationFailed(
            "/estimated",
            "An estimate cannot replace an actual reading.",
            "估算账单不能替换实际抄表账单。",
        )
    if _is_corrected(earlier):
        raise AlreadyCorrected(corrects=corrects)
    return earlier


def _refuse_overlap(report: BillReport, household: Household, earlier: Bill | None) -> None:
    period = _within(report.period_start, report.period_end)
    for other in _live({"household": household.id, **period}):
        if earlier is not None and other.id == earlier.id:
            continue
        if earlier is not None and other.corrects == earlier.id:
            # Another correction was stored since the earlier bill was read.
            raise AlreadyCorrected(corrects=earlier.event_id)
        raise BillOverlaps(
            period_start=other.period_start.isoformat(), period_end=other.period_end.isoformat()
        )


def _why_not(bill: Bill, rules_then: Methodology, behaviour: Behaviour) -> str | None:
    """Why a bill is not even compared with the years before."""
    if _is_corrected(bill):
        return "bill_corrected"
    if bill.estimated:
        return "bill_estimated"
    if bill.window_from - bill.over > rules_then.window.partner:
        return "bill_history"
    return None if behaviour.enabled else "behaviour_disabled"


def _is_corrected(bill: Bill) -> bool:
    return _collection().count_documents({"corrects": bill.id}, limit=1) == 1


def _within(first: date, last: date) -> dict[str, Any]:
    """The bills that share a day with `first` to `last`."""
    return {"period_start": {"$lte": last.isoformat()}, "period_end": {"$gte": first.isoformat()}}


def _live(wanted: dict[str, Any]) -> list[Bill]:
    """The bills found that no correction has replaced."""
    found = [_bill(document) for document in _collection().find(wanted)]
    if not found:
        return found
    wanted = {"corrects": {"$in": [bill.id for bill in found]}}
    corrections = _collection().find(wanted, {"corrects": 1})
    replaced = {document["corrects"] for document in corrections}
    return [bill for bill in found if bill.id not in replaced]


def _changed(wanted: dict[str, Any], change: dict[str, Any]) -> Bill | None:
    found = _collection().find_one_and_update(
        wanted, {"$set": change}, return_document=ReturnDocument.AFTER
    )
    return _bill(found) if found else None


def _document(bill: Bill) -> storage.Doc:
    document: storage.Doc = {
        field.name: getattr(bill, field.name) for field in fields(bill) if field.name != "id"
    }
    return {
        "_id": bill.id,
        **document,
        "period_start": bill.period_start.isoformat(),
        "period_end": bill.period_end.isoformat(),
        "residents": list(bill.residents),
    }


def _bill(document: storage.Doc) -> Bill:
    held = {field.name: document[field.name] for field in fields(Bill) if field.name != "id"}
    kept = held["judgement"]
    return Bill(
        **{
            **held,
            "id": document["_id"],
            "period_start": date.fromisoformat(held["period_start"]),
            "period_end": date.fromisoformat(held["period_end"]),
            "residents": tuple(held["residents"]),
            "judgement": Judgement(**{**kept, "reasons": tuple(kept["reasons"])}) if kept else None,
        }
    )
