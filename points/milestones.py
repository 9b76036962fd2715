"""Milestones: reached once, told once, taken back with what they were reached by.

A milestone is a row unique on `(resident, milestone)`, and its notification is unique as well.
Lifetime kilograms are recorded with the entry that crossed them; first times, streaks and monthly
goals by the follower of the book, from the days of the summaries. All of it is safe to repeat. What
a reversal takes back is hidden, and shown again without a word when it is reached again.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

import mongoengine as me
from pymongo import UpdateOne
from pymongo.collection import Collection

from accounting import book, clock, outbox, storage
from accounting.book import Entry
from accounting.outbox import Notice
from accounting.quantities import MG_PER_KG
from footprint import intake, methodology, summaries
from points import reaching
from points.reaching import FIRST, LIFETIME, MONTH, STREAK, Days, Step, crossed

# Days are looked at so far back: more than any streak, and than a partner may report late.
WINDOW_MONTHS = 12
# What was reached longer ago, by data that came late, is shown and not told.
TOLD_WITHIN = timedelta(days=35)
DEEP_LINK = "tanhui://milestones"

__all__ = [
    "Climb",
    "Milestone",
    "crossed",
    "look",
    "look_at",
    "of_resident",
    "record",
    "record_many",
    "upcoming",
]


@storage.indexed
class MilestoneDocument(me.Document):
    resident = me.StringField(required=True)
    milestone = me.StringField(required=True)
    reached_at = me.DateTimeField(required=True)
    # What it is (see `reaching.Step`); rows of lifetime steps say it by their name.
    kind = me.StringField()
    n = me.IntField()
    about = me.StringField()
    day = me.StringField()
    # When what had reached it was taken back.
    undone_at = me.DateTimeField()

    meta = {
        "collection": "milestones",
        "auto_create_index": False,
        "indexes": [{"fields": ["resident", "milestone"], "unique": True}],
    }


@dataclass(frozen=True, slots=True)
class Milestone:
    """One that was reached; `kg` of a lifetime step or a monthly goal."""

    milestone: str
    kind: str
    kg: int | None
    title: Mapping[str, str]
    reached_at: datetime


@dataclass(frozen=True, slots=True)
class Upcoming:
    """The next of a kind: how much there is of how much, in `unit` (g or days)."""

    milestone: str
    kind: str
    title: Mapping[str, str]
    have: int
    need: int
    unit: str


class Climb(NamedTuple):
    """A resident's lifetime milligrams before and after an entry."""

    resident: str
    before_mg: int
    after_mg: int


def _collection() -> "Collection[storage.Doc]":
    return storage.strong(MilestoneDocument._get_collection())


# Recording.


def record(resident: str, before_mg: int, after_mg: int) -> None:
    """Leave a row and a notification for every lifetime step crossed; safe to repeat."""
    record_many([Climb(resident, before_mg, after_mg)])


def record_many(climbs: Iterable[Climb]) -> None:
    """`record` for many entries, in two round trips if anybody crossed a step."""
    _record(
        [
            (climb.resident, Step(LIFETIME, kg))
            for climb in climbs
            for kg in crossed(climb.before_mg, climb.after_mg)
        ]
    )


def look(entries: Sequence[Entry]) -> None:
    """`look_at` the accounts whose days these entries changed; the summaries have them."""
    look_at(
        {
            entry.account
            for entry in entries
            if entry.amount(intake.UNIT, intake.REDUCTION) or entry.refs.get("changes")
        }
    )


def look_at(moved: Set[str]) -> None:
    """Record what accounts reach by their days.

    Two reads for all of them, and writes only where something is new. Safe to repeat and to skip:
    the next look finds what this one would have.
    """
    if not moved:
        return
    today = clock.city_day(clock.now())
    first_month = clock.add_months(clock.month_of(today), -WINDOW_MONTHS)
    days = summaries.days_of(sorted(moved), first_month)
    reached = {account: reaching.reached(days[account]) for account in moved}
    known: dict[str, dict[str, storage.Doc]] = {account: {} for account in moved}
    wanted = {"resident": {"$in": sorted(moved)}}
    for row in _collection().find(
        wanted, {"resident": 1, "milestone": 1, "day": 1, "undone_at": 1}
    ):
        known[row["resident"]][row["milestone"]] = row
    fresh, undone = [], []
    for account in sorted(moved):
        rows, steps = known[account], reached[account]
        fresh += [(account, step) for name, step in steps.items() if _is_news(rows.get(name))]
        undone += [
            row["_id"]
            for name, row in rows.items()
            if name not in steps and not row.get("undone_at") and _is_judged(row, first_month)
        ]
    _record(fresh)
    if undone:
        _collection().update_many(
            {"_id": {"$in": undone}, "undone_at": None}, {"$set": {"undone_at": clock.now()}}
        )


def _is_news(row: storage.Doc | None) -> bool:
    return row is None or row.get("undone_at") is not None


def _is_judged(row: storage.Doc, first_month: str) -> bool:
    """Whether the days that were looked at are all those that could reach it."""
    # The longest streak begins some months before the day it is reached.
    return row.get("day", "") >= clock.add_months(first_month, 4)


def _record(reached: Sequence[tuple[str, Step]]) -> None:
    if not reached:
        return
    now = clock.now()
    today = clock.city_day(now)
    # Told first, and recorded only then: what has its row is not looked at again.
    outbox.leave_many(
        [_notice(resident, step) for resident, step in reached if _is_told(step, today)]
    )
    rows = [_row(resident, step, now) for resident, step in reached]
    if len(storage.insert_new(_collection(), rows)) < len(rows):
        # Some are there: perhaps they were taken back, and are reached again.
        again = [
            UpdateOne(
                {
                    "resident": row["resident"],
                    "milestone": row["milestone"],
                    "undone_at": {"$ne": None},
                },
                {"$set": {"undone_at": None, "day": row.get("day")}},
            )
            for row in rows
        ]
        _collection().bulk_write(again, ordered=False)


def _is_told(step: Step, today: date) -> bool:
    return step.day is None or today - step.day <= TOLD_WITHIN


def _row(resident: str, step: Step, now: datetime) -> storage.Doc:
    row: storage.Doc = {"resident": resident, "milestone": step.name, "reached_at": now}
    if step.kind == LIFETIME:
        return row
    assert step.day is not None, step
    about = {"kind": step.kind, "n": step.n, "about": step.about, "day": step.day.isoformat()}
    return row | about


def _notice(resident: str, step: Step) -> Notice:
    rule = reaching.rules()[step.kind]
    return Notice(
        resident,
        f"milestone/{step.name}",
        type=rule.type,
        category=rule.category,
        title=_said(rule.title, step),
        body=_said(rule.body, step),
        deep_link=DEEP_LINK,
        collapse_key=None if step.kind == LIFETIME else rule.type,
    )


def _said(texts: Mapping[str, str], step: Step) -> dict[str, str]:
    names = methodology.name_of(step.about) if step.kind == FIRST else {}
    return {
        language: text.format(n=step.n, month=step.about, behaviour=names.get(language, ""))
        for language, text in texts.items()
    }


# Reading.


def of_resident(resident: str) -> tuple[list[Milestone], int | None]:
    """What was reached and stands, oldest first, and the next lifetime kilograms if any."""
    lifetime_mg = intake.lifetime_mg(book.head(resident))
    rows = list(_collection().find({"resident": resident, "undone_at": None}))
    steps = {
        name: kg
        for kg in reaching.rules()[LIFETIME].steps
        if (name := Step(LIFETIME, kg).name) and kg * MG_PER_KG <= lifetime_mg
    }
    found = []
    for row in sorted(rows, key=lambda row: (row["reached_at"], row["_id"])):
        if "kind" in row:
            found.append(_milestone(Step(row["kind"], row["n"], row["about"]), row["reached_at"]))
        elif row["milestone"] in steps:
            step = Step(LIFETIME, steps[row["milestone"]])
            found.append(_milestone(step, row["reached_at"]))
    have = {one.milestone for one in found}
    kilograms = reaching.rules()[LIFETIME].steps
    return found, next((kg for kg in kilograms if Step(LIFETIME, kg).name not in have), None)


def upcoming(resident: str) -> list[Upcoming]:
    """The next of each kind that is a matter of more of the same."""
    today = clock.city_day(clock.now())
    month = clock.month_of(today)
    first_month = clock.add_months(month, -WINDOW_MONTHS)
    days: Days = summaries.days_of([resident], first_month)[resident]
    lifetime_mg = intake.lifetime_mg(book.head(resident))
    in_a_row = reaching.run_until(days, today)
    month_mg = reaching.month_mg(days, month)
    found: list[tuple[str, str, int, int, str]] = [
        (LIFETIME, "", lifetime_mg, MG_PER_KG, "g"),
        (STREAK, "", in_a_row, 1, "days"),
        (MONTH, month, month_mg, MG_PER_KG, "g"),
    ]
    answer = []
    for kind, about, have, size, unit in found:
        n = reaching.following(reaching.rules()[kind].steps, have // size)
        if n is not None:
            step = Step(kind, n, about)
            scale = 1_000 if unit == "g" else 1
            answer.append(
                Upcoming(
                    step.name,
                    kind,
                    _said(reaching.rules()[kind].title, step),
                    have // scale,
                    n * size // scale,
                    unit,
                )
            )
    return answer


def _milestone(step: Step, reached_at: datetime) -> Milestone:
    title = _said(reaching.rules()[step.kind].title, step)
    kg: Any = step.n if step.kind in (LIFETIME, MONTH) else None
    return Milestone(step.name, step.kind, kg, title, reached_at)
