"""Restatement: a past month brought to another methodology, by adding and never by editing.

A run is one methodology and one month over the whole city, and two operators agree on it. Every
resident whose month comes out otherwise gets one entry with the differences in milligrams and
points. Nobody loses points already spent: less is taken back where less is there, and the entry
says what was waived.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import mongoengine as me
from pymongo.collection import Collection

from accounting import approvals, audit, book, clock, jobs, storage, walks
from accounting.book import Ask, Decision, Entry, Head
from accounting.errors import NotFound, ValidationFailed
from accounting.jobs import Job
from footprint import grade, intake, methodology, versions
from footprint.methodology import Methodology
from footprint.months import posted
from footprint.replay import Change, Posted, Worth, differences
from points import earning, milestones
from points.earning import Part
from points.wallet import Wallet

KIND = "restate"
REASON = "methodology_restated"
TOTALS = (
    "residents",
    "restated",
    "mg_more",
    "mg_less",
    "points_given",
    "points_taken",
    "points_waived",
)


@storage.indexed
class RestatementDocument(me.Document):
    """A run, by the id of its job."""

    id = me.StringField(primary_key=True)
    methodology = me.StringField(required=True)
    month = me.StringField(required=True)
    reason = me.StringField(required=True)
    asked_by = me.StringField(required=True)
    asked_at = me.DateTimeField(required=True)
    approved_by = me.StringField()
    approved_at = me.DateTimeField()

    meta = {"collection": "restatements", "auto_create_index": False}


@dataclass(frozen=True, slots=True)
class Restatement:
    """One run: `month` of every resident brought to `methodology`."""

    id: str
    methodology: str
    month: str
    reason: str
    asked_by: str
    asked_at: datetime
    approved_by: str | None = None
    approved_at: datetime | None = None

    @property
    def rules(self) -> Methodology:
        return methodology.version(self.methodology)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The differences of a resident-month as its account stood at `seq`."""

    seq: int
    changes: tuple[Change, ...]
    credited: Mapping[int, Posted]


class _Worth:
    """Points of milligrams on the terms of an entry, which it names itself."""

    def points(self, refs: Mapping[str, Any], mg: int) -> int:
        return sum(earning.split(earning.parts_of(refs), mg, refs.get("above_mg", 0)))

    def payers(self, refs: Mapping[str, Any], points: int) -> Mapping[str, int]:
        parts = earning.parts_of(refs)
        paid: Counter[str] = Counter()
        for part, amount in zip(parts, earning.shared(parts, points), strict=True):
            paid[part.funder] += amount
        return paid


worth: Worth = _Worth()


@dataclass(frozen=True, slots=True)
class Standing:
    """What there is to take back of an entry: restatements of it, undone, and its parts today."""

    changes: tuple[Change, ...]
    parts: tuple[Part, ...]

    @property
    def mg(self) -> int:
        return sum(change.mg for change in self.changes)


def ask(version: str, month: str, reason: str | None, by: str, *, alone: bool) -> Restatement:
    """Ask for a run; its job waits until another operator approves. With `alone` it begins.

    Raises `ValidationFailed` for an unknown version and for a month that is not over.
    """
    # It may have been published a moment ago, through another process.
    versions.register.refresh()
    if not any(known.version == version for known in methodology.known()):
        raise ValidationFailed("/methodology", "There is no such version.", "没有该版本。")
    if month >= clock.city_month(clock.now()):
        raise ValidationFailed("/month", "The month must be over.", "该月份尚未结束。")
    job = walks.queue(KIND, by, {"methodology": version, "month": month}, held=True)
    row: storage.Doc = {"methodology": version, "month": month, "reason": reason or REASON}
    row |= {"asked_by": by, "asked_at": clock.now(), "approved_by": None, "approved_at": None}
    _collection().insert_one({"_id": job.id, **row})
    audit.note(by, "restatement asked for", job.id, reason=reason, after=job.arguments)
    return approve(job.id, by, alone=True) if alone else get(job.id)


def approve(run_id: str, by: str, *, alone: bool) -> Restatement:
    """Let a run begin as its second operator; approving again changes nothing.

    Raises `NotFound` and `SecondOperatorNeeded`.
    """
    run = get(run_id)
    if run.approved_by is None:
        approvals.check(run.asked_by, by, alone=alone)
        change = {"approved_by": by, "approved_at": clock.now()}
        _collection().update_one({"_id": run_id, "approved_by": None}, {"$set": change})
        run = get(run_id)
    audit.note(run.approved_by or by, "restatement approved", run_id, once=f"{run_id}:approved")
    jobs.release(run_id)
    return run


def get(run_id: str) -> Restatement:
    """Raises `NotFound`."""
    found = _collection().find_one({"_id": run_id})
    if found is None:
        raise NotFound()
    return Restatement(id=found.pop("_id"), **found)


def run(job_id: str) -> Job | None:
    """Carry a run to its end; see `walks.run`."""

    def work(job: Job, residents: Sequence[str]) -> walks.Totals:
        order = get(job.id)
        added = Counter(residents=len(residents))
        for resident in residents:
            entry = restate(resident, order)
            if entry is not None:
                added.update(restated=1, **_sums(entry))
        return dict(added)

    versions.register.refresh()
    return walks.run(job_id, work)


def totals(run_id: str) -> dict[str, int]:
    """What a run has added up so far: residents, entries, milligrams and points by sign."""
    found = walks.totals(run_id)
    return {name: found.get(name, 0) for name in TOTALS}


def restate(resident: str, order: Restatement) -> Entry | None:
    """Add the differences of one resident-month, once however often; None where there are none."""
    assert order.approved_at is not None, f"{order.id} is not approved"
    key = f"restate:{order.id}:{resident}:{order.month}"
    plan = _plan(book.head(resident), order)
    if not plan.changes:
        earlier = book.by_key(resident, key)
        if earlier is not None:
            # A crash may have come between the entry and the grading.
            grade.taken_back(resident)
        return earlier
    entry = book.post(
        Ask(
            account=resident,
            key=key,
            kind=KIND,
            fingerprint=book.fingerprint(key, order.methodology),
            occurred_at=order.approved_at,
            cap_day=clock.last_day(order.month),
        ),
        lambda head, now: _decide(plan, order, head, now),
    ).entry
    after_mg = entry.after.get("lifetime_mg", 0)
    milestones.record(resident, after_mg - entry.refs["mg"], after_mg)
    grade.taken_back(resident)
    return entry


def standing(account: str, seq: int, day: str | None, refs: Mapping[str, Any]) -> Standing:
    """What stands of an entry after restatements; for whoever takes it back.

    `day` is the city day it counts on, `refs` are its own. Read after the head: the entry that
    takes it back carries the undone changes among its `changes`.
    """
    assert day is not None, seq
    last = clock.last_day(day[:7])
    sums: dict[bool, Change] = {}
    parts = list(earning.parts_of(refs))
    for entry in book.on_days(account, last, last):
        for change in map(Change._make, entry.refs.get("changes", ())):
            if change.seq == seq:
                held = sums.get(change.bank_grade)
                sums[change.bank_grade] = _minus(change, held)
        for moved, place, points in entry.refs.get("moves", ()):
            if moved == seq:
                parts[place] = parts[place]._replace(points=parts[place].points + points)
    return Standing(tuple(sums.values()), tuple(parts))


def _minus(change: Change, held: Change | None) -> Change:
    return change._replace(
        mg=(held.mg if held else 0) - change.mg,
        points=(held.points if held else 0) - change.points,
        activities=(held.activities if held else 0) - change.activities,
        waived=(held.waived if held else 0) - change.waived,
    )


def _plan(head: Head, order: Restatement) -> _Plan:
    """Read after the head: what else is read here changes only together with a new entry."""
    entries = posted(head.account, order.month)
    changes = differences(entries, order.month, order.rules, worth)
    return _Plan(head.seq, tuple(changes), {entry.seq: entry for entry in entries})


def _decide(plan: _Plan, order: Restatement, head: Head, now: datetime) -> Decision:
    if head.seq != plan.seq:
        plan = _plan(head, order)
    wallet = Wallet.load(head.after)
    wallet.advance(now)
    changes, moves = _move_points(wallet, plan, now)
    mg = sum(change.mg for change in changes)
    return Decision(
        lines=(*intake.reduction_lines(mg), *wallet.lines),
        after={"lifetime_mg": intake.lifetime_mg(head) + mg, "wallet": wallet.dump()},
        refs={
            "run": order.id,
            "methodology": order.methodology,
            "month": order.month,
            "reason": order.reason,
            "by": [order.asked_by, order.approved_by],
            "mg": mg,
            "points": sum(change.points for change in changes),
            "waived": sum(change.waived for change in changes),
            "changes": [list(change) for change in changes],
            # By the entry that credited them and its part: whose points moved.
            "moves": moves,
        },
    )


def _move_points(
    wallet: Wallet, plan: _Plan, now: datetime
) -> tuple[list[Change], list[list[int]]]:
    """Give first and take afterwards, so that a month is weighed as a whole; in the entries' order.

    Points mature and expire like those of the activity they are about, and are of its funders.
    """
    moves: list[list[int]] = []
    for change in plan.changes:
        if change.points > 0:
            parts, over, maturity = _terms(plan.credited[change.seq])
            for place, points in enumerate(earning.shared(parts, change.points)):
                wallet.earn(points, parts[place].funder, over=over, maturity=maturity)
                moves.append([change.seq, place, points])
    wallet.advance(now)
    changes = []
    for change in plan.changes:
        if change.points < 0:
            parts, over, maturity = _terms(plan.credited[change.seq])
            taken = 0
            for place, points in enumerate(earning.shared(parts, change.points)):
                part = wallet.take_what_is_left(
                    -points, parts[place].funder, over=over, maturity=maturity
                )
                moves.append([change.seq, place, -part])
                taken += part
            change = change._replace(points=-taken, waived=-change.points - taken)
        changes.append(change)
    return changes, [move for move in moves if move[2]]


def _terms(entry: Posted) -> tuple[tuple[Part, ...], datetime, timedelta]:
    """Who pays for what an entry credited, when it was over, how long its points took to mature."""
    refs: Mapping[str, Any] = entry.refs
    behaviour = methodology.version(refs["methodology"]).behaviours[refs["behaviour"]]
    return earning.parts_of(refs), refs["end"] or refs["start"], behaviour.maturity


def _sums(entry: Entry) -> dict[str, int]:
    """What a run adds up, by sign: the sums of a city hide who lost."""
    changes = [Change._make(row) for row in entry.refs["changes"]]
    return {
        "mg_more": sum(max(change.mg, 0) for change in changes),
        "mg_less": sum(max(-change.mg, 0) for change in changes),
        "points_given": sum(max(change.points, 0) for change in changes),
        "points_taken": sum(max(-change.points, 0) for change in changes),
        "points_waived": sum(change.waived for change in changes),
    }


def _collection() -> "Collection[storage.Doc]":
    return storage.strong(RestatementDocument._get_collection())
