"""From a report to credited grams and points: fact, judgement, one book entry, milestones.

    report -> fact (stored once) -> claim -> book.post(judge + earn) -> milestones -> settled

Every step is safe to repeat, and the fact stays `received` until the last one, so whatever a crash
leaves half-way is finished by the retry or by the sweeper. The entry carries grams and points
together: there is no moment at which one is booked and the other is not.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from accounting import book, claims, clock, sweeping
from accounting.book import Ask, Decision, Entry, Head, Wanted
from accounting.errors import DomainError
from footprint import activities, grade, intake, methodology, photos
from footprint.activities import SETTLED, Activity, Outcome
from footprint.held import SAME_TRIP
from footprint.replay import Change
from footprint.rules import Report
from points import awards, exchanging, milestones, restating
from points.earning import Who
from points.exchanging import Forerunner
from points.milestones import Climb
from points.wallet import Wallet

SWEEP_AFTER = timedelta(minutes=1)
SWEEP_MAX = 500


class NothingToReverse(DomainError):
    code = "nothing_to_reverse"
    en = "This activity earned nothing that could be taken back."
    zh = "该活动没有可撤销的减排量或积分。"


@dataclass(frozen=True, slots=True)
class Overruling:
    """An upheld appeal: who decided it, what was said against the activity, the claim it ignores.

    `despite` is the owner of a claim that stays with it.
    """

    appeal: str
    by: str
    reasons: tuple[str, ...]
    despite: str | None


def report(
    resident: str,
    what: Report,
    *,
    source: str,
    event_id: str,
    evidence: str,
    subject: str = "",
    photo: bool = False,
    job: str | None = None,
) -> tuple[Activity, bool]:
    """Take one report in; returns the settled activity and whether it was new.

    `subject` is whom the source named, see `intake.fact_of`; with `photo` its evidence is to be
    photos, see `photos.awaiting`; `job` is the file it came with. The same event again gives the
    first activity. Raises `SourceEventConflict` when the event id came with other content and
    `AccountBusy` when the account is contended; nothing is lost then, because the fact is stored
    and the sweeper finishes it.
    """
    fact = intake.fact_of(
        what,
        resident=resident,
        source=source,
        event_id=event_id,
        evidence=evidence,
        received_at=clock.now(),
        subject=subject,
        job=job,
    )
    return take_in(photos.awaiting(fact) if photo else fact)


def take_in(fact: Activity) -> tuple[Activity, bool]:
    """Store a fact and bring it to its outcome; see `report`."""
    stored, fresh = activities.receive(fact)
    return (stored if stored.state == SETTLED else resume(stored)), fresh


def resume(activity: Activity) -> Activity:
    """Bring a received fact to its outcome; safe to run twice and at the same time."""
    if activity.seq is not None:
        return _resume_reversal(activity)
    if activity.verdict is not None:
        return activities.settle(activity, Outcome(activity.verdict, activity.reasons))
    return credit(activity, activities.key_of(activity.id))


def credit(activity: Activity, key: str, overruling: Overruling | None = None) -> Activity:
    """Claim, post the entry of this key, settle; repeating it changes nothing."""
    lost_to = _lost_to(activity, overruling.despite if overruling else None)
    entry = book.post(
        _ask(activity, key), lambda head, now: _decide(activity, head, now, lost_to, overruling)
    ).entry
    return finish(activity, entry)


def asking(
    activity: Activity, now: datetime, *, lost_to: str | None, who: Callable[[], Who]
) -> Wanted:
    """The posting that credits a received activity, for a batch; `who` is its resident."""
    return Wanted(
        _ask(activity, activities.key_of(activity.id)),
        lambda head, now: _decide(activity, head, now, lost_to, None, who),
        intake.days_read(activity, now),
    )


def _ask(activity: Activity, key: str) -> Ask:
    return Ask(
        account=activity.resident,
        key=key,
        kind="earn",
        fingerprint=activity.fingerprint,
        occurred_at=activity.start,
        cap_day=clock.city_day(activity.start),
    )


def climb(entry: Entry) -> Climb:
    """How far an entry brought its resident."""
    after_mg = entry.after.get("lifetime_mg", 0)
    return Climb(entry.account, after_mg - entry.amount(intake.UNIT, intake.REDUCTION), after_mg)


def finish(activity: Activity, entry: Entry) -> Activity:
    """Do what follows from the entry of an activity; repeating it changes nothing."""
    merged = _merged(activity, entry, activities.outcome_of(activity, entry))
    milestones.record(*climb(entry))
    settled = activities.settle(activity, merged)
    if settled.merged_into is not None:
        claims.pass_on(activity.id, settled.merged_into)
    elif entry.refs["counted"] == 0 or settled.status == "reversed":
        # Nothing is credited for it, so somebody else may have it.
        claims.release(activity.id)
    return settled


def _merged(activity: Activity, entry: Entry, outcome: Outcome) -> Outcome:
    """Let the records of one trip name each other: those this replaced, the one it merged into.

    Whichever of two mergers comes second sees what the first wrote of the record between them, so
    all name the one that is credited.
    """
    for one in entry.refs.get("replaces", ()):
        weaker = activities.by_id(one["activity"])
        assert weaker is not None, "activities are never deleted"
        claims.pass_on(weaker.id, activity.id)
        gone = Outcome("merged", (SAME_TRIP,), merged_into=activity.id, seq=entry.seq)
        weaker = activities.settle(weaker, gone)
        activities.absorb(activity.id, (weaker.id, *weaker.merged_from))
        activities.point(weaker.merged_from, activity.id)
    if outcome.merged_into is None:
        return outcome
    survivor = activities.absorb(outcome.merged_into, (activity.id,))
    while survivor.merged_into is not None:
        survivor = activities.absorb(survivor.merged_into, (activity.id,))
    return replace(outcome, merged_into=survivor.id)


def sweep(now: datetime) -> int:
    """Finish what a crash left received; returns how many were finished."""
    waiting = activities.unsettled(now - SWEEP_AFTER, SWEEP_MAX)
    return sweeping.each("activity", waiting, resume)


def reverse(activity: Activity, *, reason: str, by: str, fraud: bool = False) -> Activity:
    """Take an activity back by a new entry that names the old one; the points it earned go too.

    The resident is graded again; a `fraud` lets the grade fall at once. Raises `NothingToReverse`
    for one that earned nothing. Repeating it changes nothing.
    """
    if activity.state != SETTLED:
        # A crash left it on its way: it would be credited behind our back.
        activity = resume(activity)
    earlier = activities.entry(activity)
    if earlier is None or earlier.refs["counted"] == 0:
        raise NothingToReverse()
    activities.reopen(activity, earlier)
    try:
        entry = book.post(
            Ask(
                account=activity.resident,
                key=f"reverse:{activity.id}",
                kind="reverse",
                fingerprint=book.fingerprint("reverse", activity.id),
                occurred_at=activity.start,
                cap_day=clock.city_day(activity.start),
            ),
            lambda head, now: _decide_reversal(activity, earlier, head, now, reason, by, fraud),
        ).entry
    except NothingToReverse:
        activities.close(activity)
        raise
    return _reversed(activity, entry)


def _reversed(activity: Activity, entry: Entry) -> Activity:
    claims.release(activity.id)
    grade.taken_back(activity.resident, fraud=entry.refs.get("fraud", False))
    stays = entry.refs["waived"]
    return activities.settle(
        activity, Outcome("reversed", ("reversed",), points=stays, seq=entry.seq)
    )


def _resume_reversal(activity: Activity) -> Activity:
    """Finish taking an activity back where a crash left it; it may not have reached the book."""
    entry = book.by_key(activity.resident, f"reverse:{activity.id}")
    return activities.close(activity) if entry is None else _reversed(activity, entry)


def _lost_to(activity: Activity, despite: str | None) -> str | None:
    """Take what the activity claims; the owner that has it if that is another.

    A claim of the owner `despite` stays with it and counts.
    """
    claim = activity.claim
    if claim is None:
        return None
    owner = claims.take(claim["kind"], claim["value"], claim["owner"], activity.id)
    return None if owner in (claim["owner"], despite) else owner


def _decide(
    activity: Activity,
    head: Head,
    now: datetime,
    lost_to: str | None,
    overruling: Overruling | None,
    who: Callable[[], Who] | None = None,
) -> Decision:
    head = head.reading(intake.days_read(activity, now))
    overruled = overruling.reasons if overruling else None
    judged = intake.judge(activity, head, now, lost_to=lost_to, overruled=overruled)
    replaces = exchanging.forerunners(activity.resident, judged.replaces)
    wallet = Wallet.load(head.after)
    wallet.advance(now)
    award = awards.give(
        wallet,
        head,
        now,
        mg=judged.mg,
        behaviour=activity.behaviour,
        day=clock.city_day(activity.start),
        over=activity.over,
        maturity=_maturity(activity),
        replaces=replaces,
        above_mg=judged.refs.get("above_mg", 0),
        who=who,
    )
    changes = exchanging.changes(replaces, award.waived)
    mg = judged.mg + sum(change.mg for change in changes)
    return Decision(
        lines=(*intake.reduction_lines(mg), *wallet.lines),
        after={
            **judged.after,
            **award.after,
            "lifetime_mg": intake.lifetime_mg(head) + mg,
            "wallet": wallet.dump(),
        },
        refs={
            **judged.refs,
            **award.refs,
            "reasons": [*judged.reasons, *award.reasons],
            **(_replaced_refs(judged.refs, replaces, changes) if replaces else {}),
            **(_appeal_refs(overruling) if overruling else {}),
        },
        kind="replace" if judged.replaces else None,
    )


def _replaced_refs(
    refs: dict[str, Any], replaces: list[Forerunner], changes: list[Change]
) -> dict[str, Any]:
    rows = zip(refs["replaces"], replaces, strict=True)
    return {
        "replaces": [{**row, "parts": [list(part) for part in one.back]} for row, one in rows],
        "changes": [list(change) for change in changes],
    }


def _appeal_refs(overruling: Overruling) -> dict[str, Any]:
    return {
        "appeal": overruling.appeal,
        "overruled": list(overruling.reasons),
        "despite": overruling.despite,
        "by": overruling.by,
    }


def _decide_reversal(
    activity: Activity,
    earlier: Entry,
    head: Head,
    now: datetime,
    reason: str,
    by: str,
    fraud: bool,
) -> Decision:
    if not intake.still_stands(earlier, head):
        # Better evidence took its place: what it earned is gone, and not to be taken twice.
        raise NothingToReverse()
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
        day=clock.city_day(activity.start),
        over=activity.over,
        maturity=_maturity(activity),
    )
    return Decision(
        lines=(*intake.reduction_lines(mg), *wallet.lines),
        after={
            **intake.undone(activity, earlier.refs, head, now),
            **undone.after,
            "lifetime_mg": intake.lifetime_mg(head) + mg,
            "wallet": wallet.dump(),
        },
        refs={
            **refs,
            "changes": [list(change) for change in stands.changes],
            **undone.refs,
            "reverses": earlier.seq,
            "reason": reason,
            "by": by,
            **({"fraud": True} if fraud else {}),
        },
    )


def _maturity(activity: Activity) -> timedelta:
    return methodology.version(activity.methodology).behaviours[activity.behaviour].maturity


def shown(activity: Activity) -> Activity:
    """An activity as people see it now: credited points that are not mature are pending."""
    return replace(activity, status=activity.status_at(clock.now()))
