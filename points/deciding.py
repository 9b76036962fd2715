"""From an operator's decision to what follows from it: entry, outcome, audit, notification.

    decision recorded (the first one counts) -> book.post -> settled -> audit -> outbox -> done

Every step is safe to repeat, and the review stays `pending` until the last one, so whatever a crash
leaves half-way is finished by the same decision sent again or by the sweeper.
"""

from dataclasses import replace
from datetime import datetime
from typing import Any

from accounting import audit, claims, notices, outbox, sweeping
from accounting.errors import DomainError
from footprint import activities, bills, grade, methodology, photos, reviews
from footprint.activities import Activity
from footprint.billing_rules import VACANCY
from footprint.bills import Bill
from footprint.grade import Snapshot
from footprint.reviews import Decision, Review
from points import bill_crediting, crediting
from points.crediting import Overruling

SWEEP_MAX = 500
APPEALABLE = ("rejected", "recorded", "merged")
# Reviews whose subject is a bill, not an activity.
OF_BILLS = (reviews.VACANCY, reviews.BILL_APPEAL)


class NotAppealable(DomainError):
    code = "not_appealable"
    en = "Only what was rejected, recorded or merged can be appealed, once its review has ended."
    zh = "仅可对未通过、仅记录或已合并且审核已结束的活动提出申诉。"


class AlreadyAppealed(DomainError):
    code = "already_appealed"
    en = "This was appealed before, with another text or by somebody else of the household."
    zh = "此前已有申诉，且内容不同或由同户其他成员提出。"


class NotCreditable(DomainError):
    code = "not_creditable"
    en = "The methodology gives nothing for this, whoever decides; the appeal cannot be upheld."
    zh = "依减排方法学，该项无论由谁决定均不能计入，申诉无法获得支持。"


class ClaimHeld(DomainError):
    """Facts: holder (the activity, or resident/behaviour, that was credited for it)."""

    code = "claim_held"
    en = (
        "Its invoice, order, card or vehicle day is credited to {holder}; name that to overrule it."
    )
    zh = "对应的发票、订单、卡片或车辆日已计入 {holder}；如需推翻请指明该对象。"


def appeal(activity: Activity, text: str) -> tuple[Review, bool]:
    """Appeal what became of an activity; returns the appeal and whether it is new.

    One an activity: the same text again gives the first. Raises `AlreadyAppealed` for another text
    and `NotAppealable`.
    """
    return _appeal(
        reviews.APPEAL, activity.id, activity.resident, text, allowed=appealable(activity)
    )


def appeal_bill(bill: Bill, resident: str, text: str) -> tuple[Review, bool]:
    """Appeal that a bill was not credited, for the whole household; see `appeal`."""
    return _appeal(reviews.BILL_APPEAL, bill.id, resident, text, allowed=bill_appealable(bill))


def object_to(graded: Snapshot, text: str) -> tuple[Review, bool]:
    """Object to a grading; see `appeal`. Upheld, it is made again from the entries of the book."""
    return _appeal(reviews.OBJECTION, graded.id, graded.resident, text, allowed=True)


def _appeal(
    kind: str, subject: str, resident: str, text: str, *, allowed: bool
) -> tuple[Review, bool]:
    earlier = reviews.of_subject(kind, subject)
    if earlier is None and not allowed:
        raise NotAppealable()
    if earlier is None:
        stored, fresh = reviews.ask(kind, subject, (resident,), text)
    else:
        stored, fresh = earlier, False
    if stored.residents != (resident,) or stored.text != text:
        raise AlreadyAppealed()
    return stored, fresh


def decide(review: Review, decision: Decision) -> Review:
    """Decide a review and carry the decision out.

    The same decision again gives the same answer. Raises `AlreadyDecided` for another one; for an
    appeal to uphold `NotAppealable`, `NotCreditable` and `ClaimHeld`, which change nothing.
    """
    before = None
    if review.status == reviews.OPEN:
        if review.kind == reviews.APPEAL and decision.accept:
            _check_uphold(_activity(review), decision.despite)
        if review.kind == reviews.BILL_APPEAL and decision.accept:
            _check_uphold_bill(bills.by_id(review.subject))
        before = _seen(review)
    return finish(reviews.decide(review, decision, before))


def finish(review: Review) -> Review:
    """Carry a recorded decision out; safe to run twice and at the same time."""
    if not review.pending:
        return review
    accepted = review.status == reviews.ACCEPTED
    assert review.decided_by is not None, review.id
    assert review.decided_at is not None, review.id
    if review.kind == reviews.VACANCY:
        told = bill_crediting.reviewed(bills.by_id(review.subject), accept=accepted)
    elif review.kind == reviews.BILL_APPEAL:
        told = not accepted or bill_crediting.appealed(bills.by_id(review.subject))
    elif review.kind == reviews.OBJECTION:
        told = True
        if accepted:
            grade.made_anew(review.residents[0])
    elif review.kind == reviews.PHOTOS:
        told = _photos_decided(_activity(review), accepted)
        photos.expire(review.subject, review.decided_at)
    else:
        told = _appeal_decided(review, _activity(review), accepted)
    audit.note(
        review.decided_by,
        f"{review.kind} {review.status}",
        review.subject,
        reason=review.reason,
        before=review.before,
        after=_seen(review),
        once=review.id,
    )
    if told:
        _tell(review)
    return reviews.carried_out(review)


def sweep(now: datetime) -> int:
    """Finish what a crash left decided but not carried out; returns how many were finished."""
    left = reviews.undone(now - crediting.SWEEP_AFTER, SWEEP_MAX)
    return sweeping.each("decision", left, finish)


def appealable(activity: Activity) -> bool:
    """Caps and reversals cannot be appealed, nor what a reviewer still looks at."""
    return activity.status in APPEALABLE and photos.AWAITING not in activity.reasons


def _check_uphold(activity: Activity, despite: str | None) -> None:
    """Refuse what cannot be upheld before it is recorded as decided."""
    if not appealable(activity):
        raise NotAppealable()
    behaviour = methodology.version(activity.methodology).behaviours[activity.behaviour]
    if behaviour.from_bills or not behaviour.enabled:
        raise NotCreditable()
    claim = activity.claim
    if claim is not None:
        holder = claims.holder(claim["kind"], claim["value"])
        if holder not in (None, claim["owner"], despite):
            raise ClaimHeld(holder=holder)


def bill_appealable(bill: Bill) -> bool:
    """What earned nothing, unless something else than an appeal comes next for it."""
    assert bill.judgement is not None, "a bill is judged before it is shown"
    if bill.corrected_by is not None or bill.judgement.status != "recorded":
        return False
    return VACANCY not in bill.judgement.reasons


def _check_uphold_bill(bill: Bill) -> None:
    if not bill_appealable(bill):
        raise NotAppealable()
    if bill_crediting.worth_if_upheld(bill) == 0:
        raise NotCreditable()


def _photos_decided(activity: Activity, accepted: bool) -> bool:
    if accepted:
        judged = replace(activity, evidence=photos.CLASS, verdict=None, reasons=())
        crediting.credit(judged, activities.key_of(activity.id))
    else:
        activities.replace_reason(activity, photos.AWAITING, photos.NOT_ACCEPTED)
    return True


def _appeal_decided(review: Review, activity: Activity, accepted: bool) -> bool:
    """An upheld appeal credits with the original date and behaviour; caps of its day still apply.

    Whoever upheld it has looked at what there is, so evidence that the behaviour does not accept
    becomes class C: it earns, and never counts for a bank.
    """
    if accepted:
        behaviour = methodology.version(activity.methodology).behaviours[activity.behaviour]
        accepts = activity.evidence in behaviour.accepts
        judged = replace(
            activity,
            evidence=activity.evidence if accepts else photos.CLASS,
            verdict=None,
            reasons=(),
        )
        assert review.decided_by is not None, review.id
        overruling = Overruling(review.id, review.decided_by, activity.reasons, review.despite)
        crediting.credit(judged, activities.appeal_key(activity.id), overruling)
    return True


def _activity(review: Review) -> Activity:
    found = activities.by_id(review.subject)
    assert found is not None, "activities are never deleted"
    return found


def _seen(review: Review) -> dict[str, Any]:
    """What the subject of a review is now, for the audit."""
    if review.kind == reviews.OBJECTION:
        last = grade.newest_of(review.residents[0])
        assert last is not None, "a grading is made before it is objected to"
        return {"grading": last.id, "grade": last.standing.grade, "mg": last.standing.counted_mg}
    subject: Activity | Bill
    if review.kind in OF_BILLS:
        subject = bills.by_id(review.subject)
        judgement = subject.judgement
        assert judgement is not None, "a bill is judged before it is reviewed"
        status, reasons, mg = judgement.status, judgement.reasons, judgement.mg
    else:
        subject = _activity(review)
        assert subject.status is not None, "an activity is settled before it is reviewed"
        status, reasons, mg = subject.status, subject.reasons, subject.mg
    return {"status": status, "reasons": list(reasons), "mg": mg, "points": subject.points}


_PLACES = {**dict.fromkeys(OF_BILLS, "bills"), reviews.OBJECTION: "grade"}


def _tell(review: Review) -> None:
    """Leave a notification; the operator's words stay in the app, off the push service."""
    place = _PLACES.get(review.kind, f"activities/{review.subject}")
    occasion = f"{review.kind}_{review.status}"
    outbox.leave_many(
        [
            notices.make(occasion, resident, f"decided/{review.id}", place=place)
            for resident in review.residents
        ]
    )
