"""From a bill to credited shares: fact, judgement, one book entry a resident, milestones.

    bill -> fact (stored once) -> what it ends taken back -> judgement (frozen) -> claim
         -> book.post for each resident -> bills that waited for history -> settled

Every step is safe to repeat, and the bill stays `received` until the last one, so whatever a crash
leaves half-way is finished by the retry or by the sweeper. The judgement is frozen before the first
entry: residents who were posted before and after a crash get the same share. Bills that come
together take the steps together; a single bill is a batch of one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from accounting import book, claims, clock, sweeping
from accounting.book import Ask, Decision, Entry, Head, Wanted
from accounting.claims import Wish
from accounting.errors import AccountBusy, DomainError
from footprint import bill_intake, bills, grade, intake, reviews
from footprint.activities import SETTLED
from footprint.bill_intake import Received, Sent
from footprint.billing_rules import NEEDS_HISTORY, VACANCY, VACANT, BillReport, Judgement
from footprint.bills import Bill, Given
from points import awards, milestones, restating
from points.milestones import Climb
from points.wallet import Wallet

SWEEP_AFTER = timedelta(minutes=1)
SWEEP_MAX = 500
# A bill is reopened a few times in its life at most: when its history is complete, by its
# reviewer, by an upheld appeal.
ATTEMPTS_MAX = 5
# One credited bill a month and meter account; paying online has its own claim, `meter_month`.
CLAIM = "bill_month"
UPHELD = "appeal_upheld"


def report(
    what: BillReport, *, source: str, event_id: str, job: str | None = None
) -> tuple[Bill, bool]:
    """Take one bill in; returns the settled bill and whether it was new. `job`: the file it is of.

    The same event again gives the first bill. Raises what `bill_intake.receive` raises, which
    stores nothing, and `AccountBusy`; nothing is lost then, because the sweeper finishes a stored
    bill.
    """
    stored, fresh = bill_intake.receive(
        Sent(what, event_id), source=source, received_at=clock.now(), job=job
    )
    return resume(stored), fresh


def report_many(sent: Sequence[Sent], *, source: str, job: str | None = None) -> list[Received]:
    """Take bills in together, each as `report` would; what each became, in order.

    Each is judged knowing all of them: whatever came with it may be its history.
    """
    received = bill_intake.receive_many(sent, source=source, received_at=clock.now(), job=job)
    stored = {one.bill.id: one.bill for one in received if one.bill is not None}
    left = [bill for bill in stored.values() if bill.state != SETTLED]
    # A correction finishes what it corrects first, so its account goes bill by bill.
    corrected = {bill.household for bill in left if bill.corrects is not None}
    together = [bill for bill in left if bill.household not in corrected]
    stored |= {bill.id: bill for bill in _advance(together)}
    refused: dict[str, DomainError] = {}
    for bill in left:
        # Those of the batch that were reopened or corrected meanwhile are among these.
        try:
            stored[bill.id] = resume(stored[bill.id])
        except DomainError as refusal:
            refused[bill.id] = refusal
    return [_told(one, stored, refused) for one in received]


def _told(one: Received, stored: dict[str, Bill], refused: dict[str, DomainError]) -> Received:
    if one.bill is None:
        return one
    if one.bill.id in refused:
        return Received(refusal=refused[one.bill.id])
    return Received(stored[one.bill.id], one.fresh)


def resume(bill: Bill) -> Bill:
    """Bring a received bill to its outcome; safe to run twice and at the same time."""
    for _ in range(ATTEMPTS_MAX):
        if bill.state == SETTLED:
            return bill
        if bill.corrects is not None:
            _take_back(bill)
        advanced = _advance([bill])
        if not advanced:
            break
        [bill] = advanced
    raise AccountBusy(retry_after=1)


def reverse(bill: Bill, *, reason: str, by: str) -> Bill:
    """Take a bill back, credited or not: it is no history, no use and in nobody's way any more.

    What it corrected stays ended. Repeating it changes nothing. Raises `AlreadyCorrected` for one
    that a correction has replaced.
    """
    resume(bill_intake.take_back(bill, reason=reason, by=by, received_at=clock.now()))
    return bills.by_id(bill.id)


def reviewed(bill: Bill, *, accept: bool) -> bool:
    """Carry out what a reviewer decided on a bill that may be of an empty home; safe to repeat.

    Returns whether it had an effect: a bill that was ended meanwhile is beyond it.
    """
    assert bill.judgement is not None, "a bill is judged before it is reviewed"
    if VACANCY in bill.judgement.reasons:
        judgement = _overruled(bill) if accept else bill.judgement.refused(VACANT)
        bill = bills.reopen(bill, VACANCY, judgement) or bills.by_id(bill.id)
    return _carried_out(bill)


def appealed(bill: Bill) -> bool:
    """Credit a bill after an upheld appeal, for the month it is of; safe to repeat.

    Returns whether it had an effect, as `reviewed` does.
    """
    assert bill.judgement is not None, "a bill is judged before it is appealed"
    if bill.judgement.status == "recorded" and UPHELD not in bill.judgement.reasons:
        judgement = _overruled(bill)
        said = judgement.reasons
        # Where nothing is left to credit, what stands against it comes first.
        reasons = (UPHELD, *said) if judgement.mg else (*said, UPHELD)
        judgement = replace(judgement, reasons=reasons)
        against = bill.judgement.reasons[0]
        bill = bills.reopen(bill, against, judgement) or bills.by_id(bill.id)
    return _carried_out(bill)


def worth_if_upheld(bill: Bill) -> int:
    """Milligrams of each share if an appeal of this bill were upheld now; changes nothing."""
    judgement = bill_intake.accounts_of([bill.household])[bill.household].judge(
        bill, overruled=True
    )
    free = claims.holder(CLAIM, _month(bill)) in (None, bill.id)
    return judgement.mg if free else 0


def sweep(now: datetime) -> int:
    """Finish what a crash left received; returns how many were finished."""
    return sweeping.each("bill", bills.unsettled(now - SWEEP_AFTER, SWEEP_MAX), resume)


def _carried_out(bill: Bill) -> bool:
    """Post what a bill was judged anew; whether it had an effect."""
    if bill.corrected_by is not None:
        # What was claimed a moment ago is for whatever ended it.
        claims.release(bill.id)
        return False
    resume(bill)
    return True


def _overruled(bill: Bill) -> Judgement:
    """The judgement of a bill after a person looked at what stood against it."""
    accounts = bill_intake.accounts_of([bill.household])
    judgement = accounts[bill.household].judge(bill, overruled=True)
    if judgement.mg and not all(_claimed([bill])):
        return judgement.refused("bill_month_credited")
    return judgement


def _advance(group: list[Bill]) -> list[Bill]:
    """Take bills through the steps once; those reopened meanwhile come back unsettled."""
    credited = _credit(group)
    # Looked for after these are judged: each may have waited for one that came between.
    _wake({bill.household for bill in group})
    return bills.settle(credited)


def _wake(households: Iterable[str]) -> None:
    """Judge the bills anew that lacked history and lack it no more."""
    waiting = bills.waiting(list(households))
    accounts = bill_intake.accounts_of(list({bill.household for bill in waiting}))
    reopened = [
        bills.reopen(bill, NEEDS_HISTORY)
        for bill in waiting
        if NEEDS_HISTORY not in accounts[bill.household].judge(bill).reasons
    ]
    bills.settle(_credit([bill for bill in reopened if bill is not None]))


def _credit(group: list[Bill]) -> list[Bill]:
    """Judge bills once and post every share of them; one with a busy resident is left out."""
    credited = {bill.id: bill for bill in _judged(group)}
    shares: list[tuple[Bill, str]] = []
    for bill in credited.values():
        assert bill.judgement is not None
        if VACANCY in bill.judgement.reasons:
            reviews.ask(reviews.VACANCY, bill.id, bill.residents)
        shares += [(bill, resident) for resident in bill.residents if bill.judgement.mg]
    for (bill, resident), result in zip(shares, _post_shares(shares), strict=True):
        if isinstance(result, DomainError):
            credited.pop(bill.id, None)
        elif bill.id in credited:
            given = {**credited[bill.id].given, resident: _given(bill, result.entry)}
            credited[bill.id] = replace(bill, given=given)
    return list(credited.values())


def _given(bill: Bill, entry: Entry) -> Given:
    assert bill.judgement is not None
    said = [one for one in entry.refs["reasons"] if one not in bill.judgement.reasons]
    return Given(entry.refs["points"], tuple(said))


def _post_shares(shares: Sequence[tuple[Bill, str]]) -> list[book.Result]:
    results: list[book.Result] = []
    for start in range(0, len(shares), book.BATCH_MAX):
        wanted = [_share(bill, who) for bill, who in shares[start : start + book.BATCH_MAX]]
        results += book.post_many(wanted)
    posted = [one.entry for one in results if not isinstance(one, DomainError)]
    milestones.record_many(
        Climb(one.account, one.after["lifetime_mg"] - one.refs["mg"], one.after["lifetime_mg"])
        for one in posted
    )
    return results


def _share(bill: Bill, resident: str) -> Wanted:
    ask = _ask(bill, resident, "earn", bills.entry_key(bill, resident))
    return Wanted(ask, lambda head, now: _decide(bill, head, now), (bill.period_end,) * 2)


def _judged(group: list[Bill]) -> list[Bill]:
    """Bills with their judgement: the one that is frozen, or one to freeze now."""
    for _ in range(ATTEMPTS_MAX):
        left = [bill for bill in group if bill.judgement is None]
        if not left:
            return group
        accounts = bill_intake.accounts_of(list({bill.household for bill in left}))
        judged = [(bill, accounts[bill.household].judge(bill)) for bill in left]
        wanting = [bill for bill, judgement in judged if judgement.mg]
        lost = {
            bill.id for bill, claimed in zip(wanting, _claimed(wanting), strict=True) if not claimed
        }
        kept = {
            bill.id: bill
            for bill in bills.freeze(
                [
                    (
                        bill,
                        judgement.refused("bill_month_credited") if bill.id in lost else judgement,
                    )
                    for bill, judgement in judged
                ]
            )
        }
        for bill in kept.values():
            if bill.corrected_by is not None:
                # It was ended before it claimed: the month is for whatever comes after it.
                claims.release(bill.id)
        group = [kept.get(bill.id, bill) for bill in group]
    raise AccountBusy(retry_after=1)


def _claimed(group: Sequence[Bill]) -> list[bool]:
    """Whether each bill is the one to be credited for its month and account."""
    holders = claims.take_many([Wish(CLAIM, _month(bill), bill.id) for bill in group])
    for place, (bill, holder) in enumerate(zip(group, holders, strict=True)):
        if holder != bill.id and bills.is_ended(holder):
            # Its holder was ended, and whoever did so has not come to releasing it yet.
            claims.release(holder)
            holders[place] = claims.take(CLAIM, _month(bill), bill.id)
    return [holder == bill.id for bill, holder in zip(group, holders, strict=True)]


def _month(bill: Bill) -> str:
    return f"{bill.household}\x1f{clock.month_of(bill.period_end)}"


def _take_back(ending: Bill) -> None:
    """Undo what the bill it ends credited, resident by resident; repeating it changes nothing."""
    assert ending.corrects is not None, ending.id
    for _ in range(ATTEMPTS_MAX):
        # Finished first, so that no entry of it can come after its reversal.
        bill = resume(bills.by_id(ending.corrects))
        ended = bills.end(bill, ending.id)
        if ended is not None:
            break
    else:
        raise AccountBusy(retry_after=1)
    assert ended.judgement is not None
    for resident in ended.residents if ended.judgement.mg else ():
        earlier = book.by_key(resident, bills.entry_key(ended, resident))
        assert earlier is not None, "a settled bill has every entry"
        _post_reversal(ended, resident, earlier, ending)
    claims.release(ended.id)
    for kind in (reviews.VACANCY, reviews.BILL_APPEAL):
        reviews.withdraw(kind, ended.id)


def _post_reversal(bill: Bill, resident: str, earlier: Entry, ending: Bill) -> None:
    book.post(
        _ask(bill, resident, "reverse", f"{bills.entry_key(bill, resident)}:reverse"),
        lambda head, now: _decide_reversal(bill, earlier, head, now, ending),
    )
    grade.taken_back(resident)


def _ask(bill: Bill, resident: str, kind: str, key: str) -> Ask:
    return Ask(
        account=resident,
        key=key,
        kind=kind,
        fingerprint=book.fingerprint(key, bill.fingerprint),
        occurred_at=bill.over,
        cap_day=bill.period_end,
    )


def _decide(bill: Bill, head: Head, now: datetime) -> Decision:
    refs = _refs(bill)
    wallet = Wallet.load(head.after)
    wallet.advance(now)
    award = awards.give(
        wallet,
        head,
        now,
        mg=refs["mg"],
        behaviour=refs["behaviour"],
        day=bill.period_end,
        over=bill.over,
        maturity=bill.rules[1].maturity,
    )
    return Decision(
        lines=(*intake.reduction_lines(refs["mg"]), *wallet.lines),
        after={
            **award.after,
            "lifetime_mg": intake.lifetime_mg(head) + refs["mg"],
            "wallet": wallet.dump(),
        },
        refs={**refs, **award.refs, "reasons": [*refs["reasons"], *award.reasons]},
    )


def _decide_reversal(
    bill: Bill, earlier: Entry, head: Head, now: datetime, ending: Bill
) -> Decision:
    refs = intake.undo_refs(earlier.refs)
    stands = restating.standing(earlier.account, earlier.seq, earlier.cap_day, earlier.refs)
    mg = refs["mg"] + stands.mg
    wallet = Wallet.load(head.after)
    wallet.advance(now)
    undone = awards.take_back(
        wallet,
        head,
        now,
        earlier,
        stands.parts,
        day=bill.period_end,
        over=bill.over,
        maturity=bill.rules[1].maturity,
    )
    return Decision(
        lines=(*intake.reduction_lines(mg), *wallet.lines),
        after={
            **undone.after,
            "lifetime_mg": intake.lifetime_mg(head) + mg,
            "wallet": wallet.dump(),
        },
        refs={
            **refs,
            "changes": [list(change) for change in stands.changes],
            **undone.refs,
            "reverses": earlier.seq,
            "reason": ending.reason or "bill_corrected",
            "by": ending.by or ending.id,
        },
    )


def _refs(bill: Bill) -> dict[str, Any]:
    """What the entry keeps of the bill, in the shape summaries and grade read of any activity.

    No cap of a day or month is counted for bills: the claim is what allows one a month.
    """
    judgement, (rules_then, behaviour) = bill.judgement, bill.rules
    assert judgement is not None
    steps: list[list[Any]] = [["formula", judgement.gross_mg, None]]
    if judgement.mg != judgement.gross_mg:
        steps.append(["pv_certified" if bill.pv else "saving_cap", judgement.mg, judgement.mg])
    return {
        "activity": None,
        "bill": bill.id,
        "behaviour": behaviour.code,
        "methodology": bill.methodology,
        "evidence": "A",
        "start": clock.start_of(bill.period_start),
        "end": bill.over,
        "line": None,
        "quantity": bill.quantity,
        "status": judgement.status,
        "reasons": list(judgement.reasons),
        "mg": judgement.mg,
        "counted": 1,
        "gross_mg": judgement.gross_mg,
        "overall": False,
        "bank_grade": behaviour.bank_grade
        and not rules_then.past_grace(clock.city_day(bill.received_at)),
        "merged_into": None,
        "best": None,
        "steps": steps,
        "shares": bill.shares,
        "baseline": judgement.baseline,
        "saving": judgement.saving,
    }
