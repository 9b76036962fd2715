"""Summaries: what an account's entries add up to, one document an account and month.

A projection of the book, built from the gapless sequence; `footprint/folding.py` says what is in a
month. Whoever takes entries in may be interrupted, repeat them, or meet others at the same work:

- a month says which entry it took in last, and is replaced only as it was read, content included;
- an account's cursor moves after all its months, so it may lag behind them and never runs ahead.

Reads that must be exact first take in everything up to the head. The follower does so within
seconds of an entry, and whole-city jobs read what it wrote.
"""

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

import mongoengine as me
from pymongo import InsertOne, ReplaceOne, UpdateOne
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError

from accounting import book, clock, storage
from accounting.book import Entry, Head
from accounting.errors import AccountBusy
from footprint import folding
from footprint.folding import Effect, Month, Spoiled
from footprint.replay import moved

CATCH_UP_CHUNK = 1_000
# How many entries of several accounts are read at once.
ENTRIES_MAX = 5_000
ATTEMPTS_MAX = 20
_PAUSE_MAX_S = 0.1
_DUPLICATE_KEY = 11000
_DAY, _INSTANT = timedelta(days=1), timedelta(milliseconds=1)

Seqs = dict[str, int]


@storage.indexed
class MonthDocument(me.Document):
    """Written by replacement as `folding.Month` dumps it."""

    id = me.StringField(primary_key=True)
    account = me.StringField(required=True)
    month = me.StringField(required=True)
    seq = me.IntField(required=True)
    behaviours = me.ListField()
    books = me.ListField()
    digest = me.StringField(required=True)

    meta = {
        "collection": "summary_months",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["account", "month"], "unique": True},
            # What the whole city did in a month.
            {"fields": ["month", "account"]},
        ],
    }


@storage.indexed
class CursorDocument(me.Document):
    """How far an account's entries have been taken in."""

    id = me.StringField(primary_key=True)
    seq = me.IntField(required=True)

    meta = {"collection": "summary_cursors", "auto_create_index": False}


@dataclass(frozen=True, slots=True, order=True)
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
class Row:
    """One behaviour and evidence class of a whole month: milligrams and how many activities."""

    month: str
    behaviour: str
    evidence: str
    bank_grade: bool
    mg: int
    count: int


@dataclass(frozen=True, slots=True)
class Summary:
    """The cells of a range, oldest day first."""

    cells: tuple[Cell, ...] = ()


@dataclass(frozen=True, slots=True)
class BookMonth:
    """What went into and came out of a shared book in a city month, over all accounts."""

    month: str
    unit: str
    book: str
    behaviour: str
    into: int
    out_of: int


def _months() -> "Collection[storage.Doc]":
    return storage.strong(MonthDocument._get_collection())


def _cursors() -> "Collection[storage.Doc]":
    return storage.strong(CursorDocument._get_collection())


# Taking in.


def catch_up(account: str) -> int:
    """Take in every entry up to the head; returns the last sequence number taken in."""
    done = cursors([account])[account]
    while True:
        fresh = list(book.entries(account, after_seq=done, limit=CATCH_UP_CHUNK))
        if not fresh:
            return done
        _take_in({account: fresh}, {account: done})
        done = fresh[-1].seq


def take_in(entries: Iterable[Entry]) -> None:
    """Take in entries of many accounts, those of one account in the order of the book.

    What they do not follow on from without a gap is read from the book first.
    """
    fresh: dict[str, list[Entry]] = {}
    for entry in entries:
        fresh.setdefault(entry.account, []).append(entry)
    done = cursors(fresh)
    following: dict[str, list[Entry]] = {}
    for account, found in fresh.items():
        found = [entry for entry in found if entry.seq > done[account]]
        if found and found[0].seq == done[account] + 1:
            following[account] = found
        elif found:
            catch_up(account)
    _take_in(following, done)


def catch_up_to(heads: Iterable[Head]) -> int:
    """Take in what is missing up to these heads at least; returns how many accounts lagged."""
    heads = list(heads)
    done = cursors(head.account for head in heads)
    behind = [head for head in heads if head.seq > done[head.account]]
    together: Seqs = {}
    room = ENTRIES_MAX
    for head in behind:
        missing = head.seq - done[head.account]
        if missing <= room:
            together[head.account] = done[head.account]
            room -= missing
        else:
            catch_up(head.account)
    _take_in(book.entries_after(together), together)
    return len(behind)


def cursors(accounts: Iterable[str]) -> Seqs:
    """How far each account has been taken in."""
    wanted = list(accounts)
    found = {row["_id"]: row["seq"] for row in _cursors().find({"_id": {"$in": wanted}})}
    return {account: found.get(account, 0) for account in wanted}


def rebuild(account: str) -> int:
    """Build an account's months again from its first entry; returns the last one taken in.

    Nothing is dropped first: what follows the book meanwhile goes on with the old months until each
    is replaced, and after that starts over on the new one.
    """
    for attempt in range(ATTEMPTS_MAX):
        months: dict[str, Month] = {}
        last = 0
        for entry in book.entries(account):
            last = entry.seq
            for name, effect in folding.effects(entry).items():
                months.setdefault(name, Month(account, name)).take_in(entry.seq, effect)
        # A month that has taken in later entries than these is left, and read again.
        behind = {"account": account, "seq": {"$lte": last}}
        lost = _write(
            ReplaceOne({**behind, "month": month.month}, month.dump(), upsert=True)
            for month in months.values()
        )
        _months().delete_many({**behind, "month": {"$nin": list(months)}})
        if not lost:
            _cursors().update_one({"_id": account}, {"$max": {"seq": last}}, upsert=True)
            return last
        _pause(attempt)
    raise AccountBusy(retry_after=1)


def _take_in(fresh: Mapping[str, Sequence[Entry]], done: Seqs) -> None:
    """Write what entries do, then move the cursors; each account begins right behind its own."""
    waiting = {account: found for account, found in fresh.items() if found}
    for attempt in range(ATTEMPTS_MAX):
        if not waiting:
            break
        try:
            lost = _fold(waiting)
        except Spoiled as spoiled:
            account = str(spoiled).rpartition(":")[0]
            rebuild(account)
            lost = set(waiting)
        waiting = {account: waiting[account] for account in lost}
        if waiting:
            _pause(attempt)
    else:
        raise AccountBusy(retry_after=1)
    _move({account: (done[account], found[-1].seq) for account, found in fresh.items() if found})


def _fold(fresh: Mapping[str, Sequence[Entry]]) -> set[str]:
    """Add entries to their months; returns the accounts where somebody else was faster."""
    doing: dict[tuple[str, str], list[tuple[int, Effect]]] = {}
    for account, entries in fresh.items():
        for entry in entries:
            for month, effect in folding.effects(entry).items():
                doing.setdefault((account, month), []).append((entry.seq, effect))
    stored = {
        (document["account"], document["month"]): document
        for document in _months().find(
            {
                "account": {"$in": sorted({account for account, _ in doing})},
                "month": {"$in": sorted({month for _, month in doing})},
            }
        )
    }
    places: list[str] = []
    writes: list[ReplaceOne[storage.Doc]] = []
    for (account, month), effects in doing.items():
        document = stored.get((account, month))
        sums = Month.load(document) if document else Month(account, month)
        if sums.seq >= effects[-1][0]:
            continue
        before = {"account": account, "month": month, "seq": sums.seq, "digest": sums.digest}
        for seq, effect in effects:
            sums.take_in(seq, effect)
        places.append(account)
        writes.append(ReplaceOne(before, sums.dump(), upsert=True))
    return {places[number] for number in _write(writes)}


def _write(replacements: Iterable["ReplaceOne[storage.Doc]"]) -> list[int]:
    """Replace months that are as they were read; returns the numbers of those that are not.

    One that is not meets its own id when it is inserted instead.
    """
    writes = list(replacements)
    if writes:
        try:
            _months().bulk_write(writes, ordered=False)
        except BulkWriteError as error:
            return [wrong["index"] for wrong in _only_duplicates(error)]
    return []


def _move(places: Mapping[str, tuple[int, int]]) -> None:
    """Move cursors on; one that somebody else has moved meanwhile goes no further back.

    A cursor that is gone was dropped together with its months, and the next to look begins anew.
    """
    if not places:
        return
    writes: list[InsertOne[storage.Doc] | UpdateOne] = [
        InsertOne({"_id": account, "seq": last})
        for account, (before, last) in places.items()
        if not before
    ]
    writes += [
        UpdateOne({"_id": account, "seq": {"$gte": before}}, {"$max": {"seq": last}})
        for account, (before, last) in places.items()
    ]
    try:
        _cursors().bulk_write(writes, ordered=False)
    except BulkWriteError as error:
        _only_duplicates(error)


def _only_duplicates(error: BulkWriteError) -> list[dict[str, Any]]:
    wrong: list[dict[str, Any]] = (error.details or {}).get("writeErrors", [])
    if not wrong or any(one["code"] != _DUPLICATE_KEY for one in wrong):
        raise error
    return wrong


def _pause(attempt: int) -> None:
    time.sleep(random.uniform(0, min(0.002 * 2**attempt, _PAUSE_MAX_S)))


# Reading.


def between(account: str, first: date, last: date) -> Summary:
    """The exact cells of the city days `first` to `last`, both included, oldest first."""
    catch_up(account)
    months = {"$gte": clock.month_of(first), "$lte": clock.month_of(last)}
    found = _months().find({"account": account, "month": months}).sort("month", 1)
    return Summary(
        tuple(
            cell
            for document in found
            for cell in cells(document)
            if first.isoformat() <= cell.day <= last.isoformat()
        )
    )


def during(account: str, start: datetime, end: datetime) -> Summary:
    """The exact cells of what happened from `start` until just before `end`.

    An activity counts where it begins and a bill where its period is over. Days that are only in
    part inside are told from their entries, the others from the months.
    """
    if start >= end:
        return Summary()
    first, last = clock.city_day(start), clock.city_day(end - _INSTANT)
    found = between(account, first, last).cells
    cut = {first} if clock.start_of(first) < start else set()
    cut |= {last} if end < clock.start_of(last + _DAY) else set()
    whole = [cell for cell in found if date.fromisoformat(cell.day) not in cut]
    parts = [cell for day in sorted(cut) for cell in _of_day(account, day, start, end)]
    return Summary(tuple(sorted([*whole, *parts])))


def _of_day(account: str, day: date, start: datetime, end: datetime) -> list[Cell]:
    """The cells of the part of a day, from its entries and the restatements of its month."""
    entries = book.on_days(account, day, day)
    last = clock.last_day(clock.month_of(day))
    # A restatement stands at the end of the month it is about.
    later = book.on_days(account, last, last) if last != day else []
    happened = {
        entry.seq: entry.refs["end"] if "bill" in entry.refs else entry.refs["start"]
        for entry in entries
        if "start" in entry.refs
    }
    sums: dict[tuple[str, str, bool], list[int]] = {}
    for entry in (*entries, *later):
        for change in moved(entry.seq, entry.cap_day, entry.refs):
            if change.day == day.isoformat() and start <= happened[change.seq] < end:
                key = (change.behaviour, change.evidence, change.bank_grade)
                row = sums.setdefault(key, [0, 0, 0])
                for place, amount in enumerate((change.mg, change.points, change.activities)):
                    row[place] += amount
    return [Cell(day.isoformat(), *key, *row) for key, row in sums.items() if any(row)]


def month_rows(account: str, first_month: str, last_month: str) -> tuple[int, list[Row]]:
    """The exact rows of some months, oldest first, and the last entry that did anything to them."""
    catch_up(account)
    months = {"$gte": first_month, "$lte": last_month}
    found = _months().find({"account": account, "month": months}, _ROWS).sort("month", 1)
    rows, seq = [], 0
    for document in found:
        seq = max(seq, document["seq"])
        rows += [Row(month=document["month"], **row) for row in document["behaviours"]]
    return seq, rows


_ROWS = {"_id": 0, "month": 1, "seq": 1} | {
    f"behaviours.{name}": 1 for name in ("behaviour", "evidence", "bank_grade", "mg", "count")
}


def months_of(accounts: Sequence[str]) -> dict[str, list[Month] | None]:
    """The stored months of some accounts; None for an account with a spoiled one. For checks."""
    found: dict[str, list[Month] | None] = {account: [] for account in accounts}
    for document in _months().find({"account": {"$in": list(accounts)}}):
        months = found[document["account"]]
        if months is not None:
            try:
                months.append(Month.load(document))
            except Spoiled:
                found[document["account"]] = None
    return found


def days_of(accounts: Sequence[str], first_month: str) -> dict[str, dict[date, dict[str, int]]]:
    """Milligrams by city day and behaviour, of some accounts from a month on; in one read.

    It lags the book by what the follower has not taken in.
    """
    wanted = {"account": {"$in": list(accounts)}, "month": {"$gte": first_month}}
    shown = dict.fromkeys(("account", "month", "behaviours.behaviour", "behaviours.days"), 1)
    found: dict[str, dict[date, dict[str, int]]] = {account: {} for account in accounts}
    for document in _months().find(wanted, shown):
        first = clock.first_day(document["month"])
        for row in document["behaviours"]:
            for day, mg, _, _ in row["days"]:
                sums = found[document["account"]].setdefault(first.replace(day=day), {})
                sums[row["behaviour"]] = sums.get(row["behaviour"], 0) + mg
    return found


def who_did(accounts: Sequence[str], behaviours: Sequence[str], first_month: str) -> set[str]:
    """Those of some accounts that were credited for one of these behaviours from a month on.

    In one read; it lags the book by what the follower has not taken in.
    """
    did = {"behaviour": {"$in": list(behaviours)}, "mg": {"$gt": 0}}
    wanted = {
        "account": {"$in": list(accounts)},
        "month": {"$gte": first_month},
        "behaviours": {"$elemMatch": did},
    }
    return {row["account"] for row in _months().find(wanted, {"_id": 0, "account": 1})}


def cells(document: Mapping[str, Any]) -> list[Cell]:
    """The cells of a stored month, in order."""
    found = [
        Cell(
            day=f"{document['month']}-{day:02d}",
            behaviour=row["behaviour"],
            evidence=row["evidence"],
            bank_grade=row["bank_grade"],
            mg=mg,
            points=points,
            count=count,
        )
        for row in document["behaviours"]
        for day, mg, points, count in row["days"]
    ]
    return sorted(found)


def books_between(first_month: str, last_month: str, prefix: str = "") -> list[BookMonth]:
    """What all accounts moved through shared books, by city month of recording and behaviour.

    What funders need, for each funder: `out_of` of `issued:<funder>` are the points it issued, and
    `into` those taken back from residents; `into` of `spent:<funder>` were spent, and `out_of` came
    back with cancelled redemptions; `into` of `expired:<funder>` expired. In fen, `out_of` of
    `funded:<funder>` is what it owes merchants. `out_of` of `baseline:city` are the milligrams that
    were avoided, `into` those taken back. The behaviour is empty where an entry is about none
    (spending, expiry) or several (restatements).

    `prefix` restricts it to books that begin so. It lags the book by seconds. One pass over the
    months of the whole city: for jobs, not for requests.
    """
    begins: storage.Doc = {"$eq": [{"$indexOfCP": ["$books.book", prefix]}, 0]}
    names = ("unit", "book", "behaviour")
    found = _months().aggregate(
        [
            {"$match": {"month": {"$gte": first_month, "$lte": last_month}}},
            {"$project": {"month": 1, "books": 1}},
            {"$unwind": "$books"},
            {"$match": {"$expr": begins}},
            {
                "$group": {
                    "_id": {"month": "$month"} | {name: f"$books.{name}" for name in names},
                    "into": {"$sum": "$books.into"},
                    "out_of": {"$sum": "$books.out_of"},
                }
            },
        ]
    )
    rows = (BookMonth(into=row["into"], out_of=row["out_of"], **row["_id"]) for row in found)
    return sorted(rows, key=lambda row: (row.month, row.unit, row.book, row.behaviour))


class TakingPart(NamedTuple):
    """Accounts that avoided something in a month, and what they avoided and earned in all."""

    accounts: int
    mg: int
    points: int


def taking_part(month: str) -> TakingPart:
    """Who took part in a month. One pass over a month of the whole city: for jobs."""
    sums = {"mg": {"$sum": "$behaviours.mg"}, "points": {"$sum": "$behaviours.points"}}
    totals = {"mg": {"$sum": "$mg"}, "points": {"$sum": "$points"}}
    found = _months().aggregate(
        [
            {"$match": {"month": month}},
            {"$project": sums},
            {"$match": {"mg": {"$gt": 0}}},
            {"$group": {"_id": None, "accounts": {"$sum": 1}, **totals}},
        ]
    )
    return next(
        (TakingPart(row["accounts"], row["mg"], row["points"]) for row in found),
        TakingPart(0, 0, 0),
    )
