"""Summaries: what a resident's entries add up to, by month, day, behaviour and evidence class.

A projection of the book: one document per account and month, built from the gapless sequence. It
remembers the last `seq` it took in, so applying an entry twice changes nothing, and it can be
dropped and rebuilt identically. Reads that must be exact first take in everything up to the head.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import book, clock, storage, walks
from accounting.book import Entry
from accounting.jobs import Job
from footprint.replay import moved

CATCH_UP_MAX = 100_000
# The job that does so for every resident.
KIND = "projections"


@storage.indexed
class MonthDocument(me.Document):
    account = me.StringField(required=True)
    month = me.StringField(required=True)
    # The last entry of the account this month has taken in.
    seq = me.IntField(required=True)
    days = me.DictField()

    meta = {
        "collection": "summary_months",
        "auto_create_index": False,
        "indexes": [{"fields": ["account", "month"], "unique": True}],
    }


@storage.indexed
class CursorDocument(me.Document):
    """How far an account's entries have been taken in."""

    id = me.StringField(primary_key=True)
    seq = me.IntField(required=True)

    meta = {"collection": "summary_cursors", "auto_create_index": False}


@dataclass(frozen=True, slots=True)
class Cell:
    """One day, behaviour and evidence class: milligrams, points and how many activities."""

    day: str
    behaviour: str
    evidence: str
    bank_grade: bool
    mg: int
    points: int
    count: int


@dataclass(frozen=True, slots=True)
class Summary:
    """The cells of a range of days."""

    cells: tuple[Cell, ...] = field(default_factory=tuple)


def _months() -> "Collection[storage.Doc]":
    return storage.strong(MonthDocument._get_collection())


def _cursors() -> "Collection[storage.Doc]":
    return storage.strong(CursorDocument._get_collection())


def catch_up(account: str) -> int:
    """Take in every entry up to the head; returns the last sequence number taken in.

    Two callers at once do no harm: each month refuses an entry it has already taken in.
    """
    cursor = _cursors().find_one({"_id": account})
    done = cursor["seq"] if cursor else 0
    last = done
    for entry in book.entries(account, after_seq=done, limit=CATCH_UP_MAX):
        _take_in(entry)
        last = entry.seq
    if last > done:
        _cursors().update_one({"_id": account}, {"$max": {"seq": last}}, upsert=True)
    return last


def rebuild(account: str) -> int:
    """Drop an account's projection and build it again from the book."""
    _cursors().delete_one({"_id": account})
    _months().delete_many({"account": account})
    return catch_up(account)


def run(job_id: str) -> Job | None:
    """Carry the job that brings every resident's projection up to the head to its end."""

    def work(job: Job, residents: Sequence[str]) -> walks.Totals:
        for resident in residents:
            catch_up(resident)
        return {"residents": len(residents)}

    return walks.run(job_id, work)


def between(account: str, first: date, last: date) -> Summary:
    """The exact cells of the city days `first` to `last`, both included, oldest first."""
    catch_up(account)
    months = {"$gte": clock.month_of(first), "$lte": clock.month_of(last)}
    found = _months().find({"account": account, "month": months}).sort("month", 1)
    return Summary(
        tuple(
            cell
            for document in found
            for cell in _cells(document["days"])
            if first.isoformat() <= cell.day <= last.isoformat()
        )
    )


def _take_in(entry: Entry) -> None:
    changes = moved(entry.seq, entry.cap_day, entry.refs) if entry.cap_day else []
    if not changes:
        return
    assert entry.cap_day is not None
    sums: dict[str, int] = {}
    for one in changes:
        grade = "yes" if one.bank_grade else "no"
        place = f"days.{one.day}.{one.behaviour}.{one.evidence}.{grade}"
        for name, amount in (("mg", one.mg), ("points", one.points), ("count", one.activities)):
            sums[f"{place}.{name}"] = sums.get(f"{place}.{name}", 0) + amount
    wanted = {
        "account": entry.account,
        "month": entry.cap_day[:7],
        "seq": {"$lt": entry.seq},
    }
    change = {"$set": {"seq": entry.seq}, "$inc": sums}
    try:
        _months().update_one(wanted, change, upsert=True)
    except DuplicateKeyError:
        # The month exists and has this entry, or another caller just made it: once more tells.
        _months().update_one(wanted, change)


def _cells(days: dict[str, Any]) -> Iterable[Cell]:
    for day in sorted(days):
        for behaviour in sorted(days[day]):
            for evidence, grades in sorted(days[day][behaviour].items()):
                for grade, sums in sorted(grades.items()):
                    if not any(sums.values()):
                        continue  # Refused, or all of it taken back: nothing of that day.
                    yield Cell(
                        day=day,
                        behaviour=behaviour,
                        evidence=evidence,
                        bank_grade=grade == "yes",
                        mg=sums["mg"],
                        points=sums["points"],
                        count=sums["count"],
                    )
