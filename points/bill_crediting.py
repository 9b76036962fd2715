"""From a bill to credited shares: fact, judgement, one book entry a resident, milestones.

    bill -> fact (stored once) -> correction taken back -> judgement (frozen) -> claim
         -> book.post for each resident -> bills that waited for history -> settled

Every step is safe to repeat, and the bill stays `received` until the last one, so whatever a crash
leaves half-way is finished by the retry or by the sweeper. The judgement is frozen before the first
entry: residents who were posted before and after a crash get the same share.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any

from accounting import book, claims, clock, sweeping
from accounting.book import Ask, Decision, Entry, Head
from accounting.errors import AccountBusy
from footprint import billing_rules, bills, intake, reviews
from footprint.activities import SETTLED
from footprint.billing_rules import NEEDS_HISTORY, VACANCY, VACANT, BillReport, Judgement
from footprint.bills import Bill
from points import awards, milestones, restating
from points.wallet import Wallet

SWEEP_AFTER = timedelta(minutes=1)
SWEEP_MAX = 500
# A bill is reopened twice in its life at most: when its history is complete, and by its reviewer.
ATTEMPTS_MAX = 5
# One credited bill a month and meter account; paying online has its own claim, `meter_month`.
CLAIM = "bill_month"


def report(
    what: BillReport, *, source: str, event_id: str, job: str | None = None
) -> tuple[Bill, bool]:
    """Take one bill in; returns the settled bill and whether it was new. `job`: the file it is of.

    The same event again gives the first bill. Raises what `bills.receive` raises, which stores
    nothing, and `AccountBusy`; nothing is lost then, because the sweeper finishes a stored bill.
    """
    stored, fresh = bills.receive(
        what, source=source, event_id=event_id, received_at=clock.now(), job=job
    )
    return (stored if stored.state == SETTLED else resume(stored)), fresh


def resume(bill: Bill) -> Bill:
    """Bring a received bill to its outcome; safe to run twice and at the same time."""
    for _ in range(ATTEMPTS_MAX):
        if bill.state == SETTLED:
            return bill
        if bill.corrects is not None:
            _take_back(bill.corrects, by=bill.id)
        bill = _credit(bill)
        # Looked for after this bill is judged: it may itself have waited for one that came between.
        _wake(bill.household)
        bill = bills.settle(bill) or bills.by_id(bill.id)
    raise AccountBusy(retry_after=1)


def reviewed(bill: Bill, *, accept: bool) -> bool:
    """Carry out what a reviewer decided on a bill that may be of an empty home; safe to repeat.

    Returns whether it had an effect: a bill that was corrected meanwhile is beyond it.
    """
    assert bill.judgement is not None, "a bill is judged before it is reviewed"
    if VACANCY in bill.judgement.reasons:
        judgement = _as_lived_in(bill) if accept else bill.judgement.refused(VACANT)
        bill = bills.reopen(bill, VACANCY, judgement) or bills.by_id(bill.id)
    if bill.corrected_by is not None:
        # What was claimed a moment ago is for the correction.
        claims.release(bill.id)
        return False
    resume(bill)
    return True


def _as_lived_in(bill: Bill) -> Judgement:
    """The judgement of a bill whose low use a person found plausible, on the same baseline."""
    assert bill.judgement is not None
    assert bill.judgement.baseline is not None, "without a baseline nothing looks empty"
    rules_then, behaviour = bill.rules
    verdict = billing_rules.saving_against(bill.use, Fraction(bill.judgement.baseline))
    stale = rules_then.stale(clock.city_day(bill.received_at))
    judgement = billing_rules.judged(verdict, behaviour, bill.shares, stale=stale)
    if judgement.mg and not _claimed(bill):
        return judgement.refused("bill_month_credited")
    return judgement


def sweep(now: datetime) -> int:
    """Finish what a crash left received; returns how many were finished."""
    return sweeping.each("bill", bills.unsettled(now - SWEEP_AFTER, SWEEP_MAX), resume)


def _wake(household: str) -> None:
    """Judge the bills anew that lacked history and lack it no more."""
    for waiting in bills.waiting(household):
        if NEEDS_HISTORY in bills.judge(waiting).reasons:
            continue
        reopened = bills.reopen(waiting, NEEDS_HISTORY)
        if reopened is not None:
            bills.settle(_credit(reopened))


def _credit(bill: Bill) -> Bill:
    """Judge a bill once and post every share of it."""
    bill = _judged(bill)
    assert bill.judgement is not None
    if VACANCY in bill.judgement.reasons:
        reviews.ask(reviews.VACANCY, bill.id, bill.residents)
    if bill.judgement.mg == 0:
        return bill
    for resident in bill.residents:
        entry = _post_share(bill, resident)
        bill = replace(bill, points=entry.refs["points"])
    return bill


def _judged(bill: Bill) -> Bill:
    for _ in range(ATTEMPTS_MAX):
        if bill.judgement is not None:
            return bill
        judgement = bills.judge(bill)
        if judgement.mg and not _claimed(bill):
            judgement = judgement.refused("bill_month_credited")
        bill = bills.freeze(bill, judgement)
    raise AccountBusy(retry_after=1)


def _claimed(bill: Bill) -> bool:
    month = clock.month_of(bill.period_end)
    return claims.take(CLAIM, f"{bill.household}\x1f{month}", bill.id) == bill.id


def _post_share(bill: Bill, resident: str) -> Entry:
    entry = book.post(
        _ask(bill, resident, "earn", bills.entry_key(bill, resident)),
        lambda head, now: _decide(bill, head, now),
    ).entry
    after_mg = entry.after.get("lifetime_mg", 0)
    milestones.record(resident, after_mg - entry.refs["mg"], after_mg)
    return entry


def _take_back(bill_id: str, *, by: str) -> None:
    """Undo what a corrected bill credited, resident by resident; repeating it changes nothing."""
    for _ in range(ATTEMPTS_MAX):
        # Finished first, so that no entry of it can come after its reversal.
        bill = resume(bills.by_id(bill_id))
        marked = bills.mark_corrected(bill, by)
        if marked is not None:
            break
    else:
        raise AccountBusy(retry_after=1)
    assert marked.judgement is not None
    for resident in marked.residents if marked.judgement.mg else ():
        earlier = book.by_key(resident, bills.entry_key(marked, resident))
        assert earlier is not None, "a settled bill has every entry"
        _post_reversal(marked, resident, earlier, by)
    claims.release(marked.id)
    reviews.withdraw(reviews.VACANCY, marked.id)


def _post_reversal(bill: Bill, resident: str, earlier: Entry, by: str) -> None:
    book.post(
        _ask(bill, resident, "reverse", f"{bills.entry_key(bill, resident)}:reverse"),
        lambda head, now: _decide_reversal(bill, earlier, head, now, by),
    )


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


def _decide_reversal(bill: Bill, earlier: Entry, head: Head, now: datetime, by: str) -> Decision:
    refs = intake.undo_refs(earlier.refs)
    stands = restating.standing(earlier)
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
            "reason": "bill_corrected",
            "by": by,
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
        steps.append(["saving_cap", judgement.mg, judgement.mg])
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
