"""Settlement: a period closes to one immutable statement for each merchant.

    period n closing --each merchant: claim its moves, hold them against the book, state--> closed

Periods follow one another without a gap and are closed in order. A statement takes in every move of
its merchant that the book recorded before the close and no statement has; what comes later, a late
scan or a refund, is in the next one. Each step is safe to repeat, so a close that died is carried
on by its job, and nothing of a statement changes once it is written.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import book, clock, events, jobs, proofs, storage
from accounting.book import Entry
from accounting.clients import Kind
from accounting.errors import DomainError, NotFound
from accounting.events import Happening, Type
from accounting.jobs import Failure, Job
from accounting.proofs import BookNotProven
from rewards import merchants, statement_content, takings

KIND = "settle"
CLOSING, CLOSED = "closing", "closed"
BATCH = 500
NOT_THIS_ONE = Failure(
    "period_of_another", "Another job closes this period.", "该结算期由另一任务关账。"
)


class PeriodClosed(DomainError):
    """Facts: first, last (city days of the period that was closed last)."""

    code = "period_closed"
    en = "The period {first} to {last} is closed; the next one begins the day after."
    zh = "{first} 至 {last} 已结算；下一结算期自次日开始。"


class PeriodNotContinuous(DomainError):
    """Facts: first (the city day the next period begins with)."""

    code = "period_not_continuous"
    en = "Periods follow one another: the next one begins on {first}."
    zh = "结算期须首尾相接，下一期应自 {first} 开始。"


class PeriodNotOver(DomainError):
    code = "period_not_over"
    en = "A period cannot end after today."
    zh = "结算期的截止日不得晚于今天。"


class SettlementUnderway(DomainError):
    code = "settlement_underway"
    en = "A period is being closed; wait for its job."
    zh = "有结算期正在关账，请等待其任务完成。"


class BookDisagrees(Exception):
    """A move does not equal its entry: nothing may be settled until somebody has looked."""


@storage.indexed
class PeriodDocument(me.Document):
    number = me.IntField(primary_key=True)
    first = me.StringField(required=True)
    last = me.StringField(required=True)
    # Moves the book recorded before this instant are in.
    cutoff = me.DateTimeField(required=True)
    job = me.StringField(required=True)
    state = me.StringField(required=True)
    statements = me.IntField(required=True)

    meta = {"collection": "settlement_periods", "auto_create_index": False}


@storage.indexed
class StatementDocument(me.Document):
    id = me.StringField(primary_key=True)
    merchant_id = me.StringField(required=True)
    period = me.IntField(required=True)
    content = me.DictField(required=True)
    digest = me.StringField(required=True)

    meta = {
        "collection": "statements",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["merchant_id", "-period"], "unique": True},
            {"fields": ["period", "merchant_id"]},
        ],
    }


@dataclass(frozen=True, slots=True)
class Period:
    """City days `first` to `last`, both included."""

    number: int
    first: date
    last: date
    cutoff: datetime
    job: str
    state: str
    statements: int


@dataclass(frozen=True, slots=True)
class Statement:
    """What one merchant gets for one period; `content` is written once and never changes.

    `digest` is the SHA-256 of `content` as JSON with sorted keys.
    """

    id: str
    merchant_id: str
    period: int
    content: dict[str, Any]
    digest: str


def _periods() -> "Collection[storage.Doc]":
    return storage.strong(PeriodDocument._get_collection())


def _statements() -> "Collection[storage.Doc]":
    return storage.strong(StatementDocument._get_collection())


def ask(first: date | None, last: date | None, owner: str, *, to_now: bool = False) -> Job:
    """Begin to close a period: city days, both included; returns the job that does it.

    Left out, `last` is yesterday and `first` the day after the period before, or the day of the
    first move. `to_now`, with neither said, makes `last` today, also when the period before ends
    today: what was recorded since is taken in. A close that failed is begun again by asking for it
    again. Raises `PeriodClosed`, `PeriodNotContinuous`, `PeriodNotOver` or `SettlementUnderway`,
    and `BookNotProven` while the book's proof is red.
    """
    proofs.require_green()
    today = clock.city_day(clock.now())
    before = _newest()
    if before is not None and before.state == CLOSING:
        return _again(before, first, last)
    to_now = to_now and first is None and last is None
    last = last or (today if to_now else today - timedelta(days=1))
    if last > today:
        raise PeriodNotOver()
    if before is None:
        first = first or min(_first_move_on() or last, last)
    else:
        again_today = to_now and before.last == today
        due = today if again_today else before.last + timedelta(days=1)
        if last < due or (first is not None and first < due):
            raise PeriodClosed(first=before.first, last=before.last)
        if first is not None and first != due:
            raise PeriodNotContinuous(first=due)
        first = due
    number = before.number + 1 if before else 1
    job = jobs.queue(KIND, owner, {"period": number}, unit=jobs.MERCHANTS, held=True)
    period: storage.Doc = {
        "_id": number,
        "first": first.isoformat(),
        "last": last.isoformat(),
        "cutoff": min(clock.start_of(last + timedelta(days=1)), clock.now()),
        "job": job.id,
        "state": CLOSING,
        "statements": 0,
    }
    try:
        _periods().insert_one(period)
    except DuplicateKeyError:
        raise SettlementUnderway() from None
    jobs.release(job.id)
    return job


def _again(period: Period, first: date | None, last: date | None) -> Job:
    """Begin a close again that has failed; raises `SettlementUnderway` for any other."""
    # A crash may have come between the period and this.
    jobs.release(period.job)
    job = jobs.get(period.job)
    assert job is not None, "jobs are never deleted"
    same = first in (None, period.first) and last in (None, period.last)
    if job.state != jobs.FAILED or not same:
        raise SettlementUnderway()
    jobs.again(job.id)
    return job


def run(job_id: str) -> Job | None:
    """Close the period of a job; safe to run again after a crash. None when another has it."""
    job = jobs.take(job_id)
    if job is None:
        return None
    period = period_of(job.arguments["period"])
    if period is None or period.job != job.id:
        jobs.fail(job, NOT_THIS_ONE)
        return jobs.get(job_id)
    try:
        proofs.require_green()
    except BookNotProven as red:
        jobs.fail(job, Failure.of(red))
        return jobs.get(job_id)
    # What a crash left unbooked belongs into the period it was scanned in, if that is still open.
    while takings.book_unbooked(clock.now()) == takings.UNBOOKED_MAX:
        pass
    waiting = sorted({*_waiting_merchants(period.cutoff), *_claimed_merchants(period.number)})
    jobs.expect(job.id, len(waiting))
    try:
        for done, merchant_id in enumerate(waiting, start=1):
            _state(period, merchant_id)
            # A second try goes through those that are claimed again.
            if not jobs.advance(job, done, done, job.counts):
                jobs.hold(job.id)
    except BookDisagrees as problem:
        said = str(problem)
        jobs.fail(job, Failure("book_disagrees", said, f"交易与账本不一致：{said}"))
        return jobs.get(job_id)
    _periods().update_one(
        {"_id": period.number}, {"$set": {"state": CLOSED, "statements": len(waiting)}}
    )
    jobs.finish(job, len(waiting))
    return jobs.get(job_id)


def period_of(number: int) -> Period | None:
    found = _periods().find_one({"_id": number})
    return _period(found) if found else None


def periods(*, before: int | None, limit: int) -> list[Period]:
    """Newest first."""
    wanted = {} if before is None else {"_id": {"$lt": before}}
    return [_period(row) for row in _periods().find(wanted).sort("_id", -1).limit(limit)]


def statement(statement_id: str, merchant_id: str | None = None) -> Statement:
    """One statement; raises `NotFound`, also for another merchant's."""
    found = _statements().find_one({"_id": statement_id})
    if found is None or merchant_id not in (None, found["merchant_id"]):
        raise NotFound()
    return _statement(found)


def of_merchant(merchant_id: str, *, before: int | None, limit: int) -> list[Statement]:
    """A merchant's statements, newest first."""
    wanted: dict[str, Any] = {"merchant_id": merchant_id}
    if before is not None:
        wanted["period"] = {"$lt": before}
    found = _statements().find(wanted).sort("period", -1).limit(limit)
    return [_statement(row) for row in found]


def of_period(number: int) -> Iterator[Statement]:
    """Every statement of a period, in the order of the merchants' ids."""
    for row in _statements().find({"period": number}).sort("merchant_id", 1):
        yield _statement(row)


def payout(number: int) -> list[tuple[str, str, str, str, int]]:
    """What a closed period pays each merchant: statement, merchant, its name, currency, fen.

    Raises `NotFound` and, while it is being closed, `SettlementUnderway`.
    """
    period = period_of(number)
    if period is None:
        raise NotFound()
    if period.state != CLOSED:
        raise SettlementUnderway()
    return [
        (
            one.id,
            one.merchant_id,
            one.content["merchant_name"]["zh"],
            "CNY",
            one.content["payable_fen"],
        )
        for one in of_period(number)
        if one.content["payable_fen"]
    ]


def moves_of(statement_id: str) -> Iterator[storage.Doc]:
    """The scans, refunds and corrections a statement is made of."""
    yield from takings.moves().find({"statement": statement_id}).sort("_id", 1)


def unsettled(merchant_ids: Sequence[str]) -> dict[str, int]:
    """What each merchant is owed that no statement has yet, in fen."""
    found = takings.moves().aggregate(
        [
            {"$match": {"merchant_id": {"$in": list(merchant_ids)}, "statement": None}},
            {"$group": {"_id": "$merchant_id", "fen": {"$sum": "$fen"}}},
        ]
    )
    return {row["_id"]: row["fen"] for row in found}


def _state(period: Period, merchant_id: str) -> None:
    """Write the statement of one merchant, unless an earlier try has."""
    statement_id = f"stm_{period.number:05d}_{merchant_id.removeprefix('mer_')}"
    # What it would claim now is not in the one that is written: it belongs into the next.
    if _statements().find_one({"_id": statement_id}, {"_id": 1}) is not None:
        return
    takings.catch_up(merchant_id)
    takings.moves().update_many(
        {
            "merchant_id": merchant_id,
            "statement": None,
            "recorded_at": {"$lt": period.cutoff},
        },
        {"$set": {"statement": statement_id}},
    )
    rows = list(moves_of(statement_id))
    _hold_against_the_book(rows)
    content = statement_content.of_moves(
        merchants.get(merchant_id),
        (period.first, period.last),
        period.cutoff,
        rows,
        _carried(merchant_id, period.number),
    )
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    document: storage.Doc = {
        "_id": statement_id,
        "merchant_id": merchant_id,
        "period": period.number,
        "content": content,
        "digest": hashlib.sha256(text.encode()).hexdigest(),
    }
    data = {"statement_id": statement_id, "merchant_id": merchant_id, "period": period.number}
    told = (Type.STATEMENT_CLOSED, f"statement:{statement_id}", statement_id, data)
    parties = (events.party(Kind.MERCHANT, merchant_id), events.OPERATORS)
    events.leave(*[Happening(party, *told) for party in parties])
    _statements().update_one({"_id": statement_id}, {"$setOnInsert": document}, upsert=True)


def _hold_against_the_book(rows: list[storage.Doc]) -> None:
    """Compare every move with the fen lines of its entry; raises `BookDisagrees`."""
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        entries = book.at([(row["account"], row["seq"]) for row in part])
        for row in part:
            entry = entries.get((row["account"], row["seq"]))
            if entry is None or not _agrees(row, entry):
                raise BookDisagrees(
                    f"{row['_id']} says {row['fen']} fen, the book at {row['account']} seq "
                    f"{row['seq']} does not."
                )


def _agrees(row: storage.Doc, entry: Entry) -> bool:
    paid: dict[str, int] = {}
    for funder, fen in row["funder_split"]:
        paid[f"funded:{funder}"] = paid.get(f"funded:{funder}", 0) - fen
    paid[f"payable:{row['merchant_id']}"] = row["fen"]
    booked: dict[str, int] = {}
    for line in entry.lines:
        if line.unit == "fen":
            booked[line.book] = booked.get(line.book, 0) + line.amount
    return {name: fen for name, fen in paid.items() if fen} == booked


def _carried(merchant_id: str, period: int) -> int:
    """What the merchant's statement before this period left below zero."""
    wanted = {"merchant_id": merchant_id, "period": {"$lt": period}}
    found = _statements().find_one(wanted, sort=[("period", -1)])
    return int(found["content"]["carried_forward_fen"]) if found else 0


def _waiting_merchants(cutoff: datetime) -> list[str]:
    wanted = {"statement": None, "recorded_at": {"$lt": cutoff}}
    return list(takings.moves().distinct("merchant_id", wanted))


def _claimed_merchants(number: int) -> list[str]:
    """Those a try that died has begun with."""
    first, beyond = f"stm_{number:05d}_", f"stm_{number:05d}`"
    wanted = {"statement": {"$gte": first, "$lt": beyond}}
    return list(takings.moves().distinct("merchant_id", wanted))


def _first_move_on() -> date | None:
    found = takings.moves().find_one({"statement": None}, sort=[("recorded_at", 1)])
    return clock.city_day(found["recorded_at"]) if found else None


def _newest() -> Period | None:
    found = periods(before=None, limit=1)
    return found[0] if found else None


def _period(row: storage.Doc) -> Period:
    return Period(
        number=row["_id"],
        first=date.fromisoformat(row["first"]),
        last=date.fromisoformat(row["last"]),
        cutoff=row["cutoff"],
        job=row["job"],
        state=row["state"],
        statements=row["statements"],
    )


def _statement(row: storage.Doc) -> Statement:
    return Statement(row["_id"], row["merchant_id"], row["period"], row["content"], row["digest"])
