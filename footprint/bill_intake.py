"""From what a utility sent to stored bills: one at a time or many together, each stored once.

Storing takes the account's next number, which fails when anybody stored a bill of it meanwhile;
then the account is read and the bill judged again, a bounded number of times.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from accounting import book, clock
from accounting.errors import AccountBusy, DomainError, ValidationFailed
from accounting.ids import new_id
from accounting.quantities import floor_mg
from footprint import billing_rules, bills, households, methodology
from footprint.activities import SourceEventConflict
from footprint.bill_accounts import Account
from footprint.billing_rules import BEHAVIOURS, BillReport
from footprint.bills import Bill
from footprint.households import Household

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
    en = "There is no earlier bill {corrects} of yours to correct; send that one first."
    zh = "未找到您此前上报的账单 {corrects}，请先上报该账单再更正。"


class AlreadyCorrected(DomainError):
    """Facts: corrects."""

    code = "already_corrected"
    en = "Bill {corrects} was corrected before; name the newest one."
    zh = "账单 {corrects} 已被更正，请指明最新的一份。"


class AlreadyReversed(DomainError):
    """Facts: corrects."""

    code = "already_reversed"
    en = "Bill {corrects} was taken back; send the right one as a new bill."
    zh = "账单 {corrects} 已被撤销，请将正确账单作为新账单上报。"


@dataclass(frozen=True, slots=True)
class Sent:
    """One bill as its source sent it."""

    report: BillReport
    event_id: str


@dataclass(frozen=True, slots=True)
class Received:
    """What became of it: the stored bill and whether it is new, or the refusal."""

    bill: Bill | None = None
    fresh: bool = False
    refusal: DomainError | None = None


def receive(
    sent: Sent, *, source: str, received_at: datetime, job: str | None = None
) -> tuple[Bill, bool]:
    """Store a bill once; returns what is stored and whether it was new. `job`: the file it is of.

    Raises `SourceEventConflict` when the source sent this event id with other content, and before
    anything is stored `ValidationFailed`, `AccountNotLinked`, `CorrectedBillUnknown`,
    `AlreadyCorrected`, `AlreadyReversed` or `BillOverlaps`; `AccountBusy` after a bounded number of
    lost races.
    """

    def make() -> Bill:
        billing_rules.check(sent.report, clock.city_day(received_at))
        home = households.by_number(sent.report.carrier, sent.report.account_no)
        if home is None:
            raise AccountNotLinked()
        corrects = sent.report.corrects
        earlier = bills.by_event(source, corrects) if corrects else None
        return _next(sent, earlier, home, _account(home.id), source, received_at, job)

    stored, fresh = _store(make, source, sent.event_id)
    if stored.fingerprint != fingerprint(sent.report):
        raise SourceEventConflict(source_event_id=sent.event_id)
    return stored, fresh


def receive_many(
    sent: Sequence[Sent], *, source: str, received_at: datetime, job: str | None = None
) -> list[Received]:
    """Store many bills in their order, each as `receive` would; what each became, in order.

    Everything is read in three queries and written in one. When somebody else stored a bill of one
    of the accounts meanwhile, what is left is received one by one.
    """
    stored = bills.by_events(
        source, [name for one in sent for name in (one.event_id, one.report.corrects) if name]
    )
    numbers = {(one.report.carrier, one.report.account_no) for one in sent}
    homes = households.by_numbers(numbers)
    accounts = accounts_of([home.id for home in homes.values()])
    received: list[Received] = []
    new: list[tuple[int, Bill]] = []
    for place, one in enumerate(sent):
        earlier = stored.get(one.event_id)
        try:
            if earlier is not None:
                if earlier.fingerprint != fingerprint(one.report):
                    raise SourceEventConflict(source_event_id=one.event_id)
                received.append(Received(earlier))
                continue
            billing_rules.check(one.report, clock.city_day(received_at))
            home = homes.get((one.report.carrier, one.report.account_no))
            if home is None:
                raise AccountNotLinked()
            corrected = stored.get(one.report.corrects or "")
            bill = _next(one, corrected, home, accounts[home.id], source, received_at, job)
        except DomainError as refusal:
            received.append(Received(refusal=refusal))
            continue
        accounts[home.id].add(bill)
        stored[one.event_id] = bill
        new.append((place, bill))
        received.append(Received(bill, fresh=True))
    done = bills.insert([bill for _, bill in new])
    if done < len(new):
        # The first that could not be stored, and all that were judged as if it had been.
        left = new[done][0]
        received[left:] = [_one(one, source, received_at, job) for one in sent[left:]]
    return received


def take_back(bill: Bill, *, reason: str, by: str, received_at: datetime) -> Bill:
    """Store the row that takes a bill back; the row that is there if it was before.

    Raises `AlreadyCorrected` for a bill that a correction has replaced.
    """
    row_id = bills.taken_back_by(bill.id)

    def make() -> Bill:
        account = _account(bill.household)
        if account.ending(bill) is not None:
            raise AlreadyCorrected(corrects=bill.event_id)
        return Bill(
            id=row_id,
            household=bill.household,
            number=account.next_number,
            source=bill.source,
            # No partner can send an id with a slash.
            event_id=f"/{row_id}",
            fingerprint=book.fingerprint("take back", bill.id),
            carrier=bill.carrier,
            period_start=bill.period_start,
            period_end=bill.period_end,
            quantity="0",
            estimated=bill.estimated,
            pv=None,
            corrects=bill.id,
            residents=(),
            shares=bill.shares,
            methodology=bill.methodology,
            emissions_mg=0,
            window_from=received_at,
            received_at=received_at,
            reason=reason,
            by=by,
        )

    return _store(make, bill.source, f"/{row_id}")[0]


def accounts_of(household_ids: Sequence[str]) -> dict[str, Account]:
    """Everything known of these meter accounts, in one read."""
    kept = bills.of_households(household_ids)
    return {household: Account(household, rows) for household, rows in kept.items()}


def fingerprint(report: BillReport) -> str:
    pv = report.pv
    return book.fingerprint(
        households.number_hash(report.carrier, report.account_no),
        report.period_start.isoformat(),
        report.period_end.isoformat(),
        _plain(report.quantity),
        report.estimated,
        report.corrects or "",
        *(map(_plain, (pv.generated, pv.exported, pv.certified)) if pv else ()),
    )


def _store(make: Callable[[], Bill], source: str, event_id: str) -> tuple[Bill, bool]:
    """Store what `make` says is the account's next row, or find what an earlier try stored."""
    for attempt in range(RECEIVE_ATTEMPTS_MAX):
        refusal: DomainError | None = None
        try:
            bill = make()
            if bills.insert([bill]):
                return bill, True
        except DomainError as refused:
            refusal = refused
        # Its first try may be stored: the answer to that comes before any refusal.
        earlier = bills.by_event(source, event_id)
        if earlier is not None:
            return earlier, False
        if refusal is not None:
            raise refusal
        # The account's next number or the correction was taken: look again.
        time.sleep(random.uniform(0, min(_PAUSE_S * 2**attempt, _PAUSE_MAX_S)))
    raise AccountBusy(retry_after=1)


def _one(sent: Sent, source: str, received_at: datetime, job: str | None) -> Received:
    try:
        bill, fresh = receive(sent, source=source, received_at=received_at, job=job)
    except DomainError as refusal:
        return Received(refusal=refusal)
    return Received(bill, fresh)


def _account(household: str) -> Account:
    return accounts_of([household])[household]


def _plain(quantity: Decimal) -> str:
    """One spelling of a decimal: no exponent, no trailing zeros."""
    return format(quantity.normalize(), "f")


def _next(
    sent: Sent,
    corrected: Bill | None,
    home: Household,
    account: Account,
    source: str,
    received_at: datetime,
    job: str | None,
) -> Bill:
    """The bill to store as the account's next, or the refusal; `corrected` is what it names."""
    report = sent.report
    # What was credited must be corrected even when everybody has left since.
    if not (home.residents or report.corrects):
        raise AccountNotLinked()
    earlier = _to_correct(report, report.corrects, corrected, account) if report.corrects else None
    for other in account.live(report.period_start, report.period_end):
        if earlier is None or other.id != earlier.id:
            raise BillOverlaps(
                period_start=other.period_start.isoformat(), period_end=other.period_end.isoformat()
            )
    rules_then = methodology.in_force(report.period_end)
    used = rules_then.behaviours[BEHAVIOURS[report.carrier]]
    residents = earlier.residents if earlier else home.residents
    members = home.members_on(report.period_end)
    return Bill(
        id=new_id("bil"),
        household=home.id,
        number=account.next_number,
        source=source,
        event_id=sent.event_id,
        fingerprint=fingerprint(report),
        carrier=report.carrier,
        period_start=report.period_start,
        period_end=report.period_end,
        quantity=_plain(report.quantity),
        estimated=report.estimated,
        pv=report.pv,
        corrects=earlier.id if earlier else None,
        residents=residents,
        # Fewer may have lived there then than are linked now; a saving is never shared out twice.
        shares=earlier.shares if earlier else max(members, len(residents)),
        methodology=rules_then.version,
        emissions_mg=floor_mg(report.quantity, used.mg_num, used.mg_den),
        window_from=earlier.window_from if earlier else received_at,
        received_at=received_at,
        job=job,
    )


def _to_correct(report: BillReport, corrects: str, earlier: Bill | None, account: Account) -> Bill:
    if earlier is None:
        raise CorrectedBillUnknown(corrects=corrects)
    if earlier.household != account.household:
        raise ValidationFailed("/corrects", "Is a bill of another account.", "该账单属于其他户号。")
    if report.estimated and not earlier.estimated:
        raise ValidationFailed(
            "/estimated",
            "An estimate cannot replace an actual reading.",
            "估算账单不能替换实际抄表账单。",
        )
    ending = account.ending(earlier)
    if ending is not None:
        raise (AlreadyReversed if ending.takes_back else AlreadyCorrected)(corrects=corrects)
    return earlier
