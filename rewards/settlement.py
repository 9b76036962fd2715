"""Settlement: a period closes to one immutable statement for each merchant.

    period n closing --each merchant: claim its moves, hold them against the book, state--> closed

Periods follow one another without a gap and are closed in order. A statement takes in every move of
its merchant that the book recorded before the close and no statement has; what comes later, a late
scan or a refund, is in the next one. Each step is safe to repeat, so a close that died is carried
on by its job, and nothing of a statement changes once it is written.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from fractions import Fraction
from typing import Any

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import book, clock, events, jobs, proofs, storage
from accounting.book import Entry
from accounting.clients import Kind
from accounting.errors import DomainError, NotFound
from accounting.events import Happening, Type
from accounting.jobs import Job
from accounting.proofs import BookNotProven
from points import terms, valuing
from rewards import merchants, takings

KIND = "settle"
CLOSING, CLOSED = "closing", "closed"
BATCH = 500
FEE_BASE = 10_000


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


def ask(first: date | None, last: date | None, owner: str) -> Job:
    """Begin to close a period: city days, both included; returns the job that does it.

    Left out, `last` is yesterday and `first` the day after the period before, or the day of the
    first move. A close that failed is begun again by asking for it again. Raises `PeriodClosed`,
    `PeriodNotContinuous`, `PeriodNotOver` or `SettlementUnderway`, and `BookNotProven` while the
    book's proof is red.
    """
    proofs.require_green()
    today = clock.city_day(clock.now())
    before = _newest()
    if before is not None and before.state == CLOSING:
        return _again(before, first, last)
    last = last or today - timedelta(days=1)
    if last > today:
        raise PeriodNotOver()
    if before is None:
        first = first or min(_first_move_on() or last, last)
    else:
        due = before.last + timedelta(days=1)
        if last <= before.last or (first is not None and first <= before.last):
            raise PeriodClosed(first=before.first, last=before.last)
        if first is not None and first != due:
            raise PeriodNotContinuous(first=due)
        first = due
    number = before.number + 1 if before else 1
    job = jobs.queue(KIND, owner, {"period": number}, held=True)
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
        jobs.fail(job, "Another job closes this period.")
        return jobs.get(job_id)
    try:
        proofs.require_green()
    except BookNotProven as red:
        jobs.fail(job, red.text("en"))
        return jobs.get(job_id)
    # What a crash left unbooked belongs into the period it was scanned in, if that is still open.
    while takings.book_unbooked(clock.now()) == takings.UNBOOKED_MAX:
        pass
    waiting = sorted({*_waiting_merchants(period.cutoff), *_claimed_merchants(period.number)})
    try:
        for done, merchant_id in enumerate(waiting, start=1):
            _state(period, merchant_id)
            jobs.advance(job, done, done, job.counts)
    except BookDisagrees as problem:
        jobs.fail(job, str(problem))
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
    content = _content(period, merchant_id, rows, _carried(merchant_id, period.number))
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


def _content(
    period: Period, merchant_id: str, rows: list[storage.Doc], carried_fen: int
) -> dict[str, Any]:
    """The statement: plain JSON values, money in fen.

    The fee is rounded once for the whole statement, half up, and shared among the funders by
    largest remainder. A negative total is carried into the merchant's next statement.
    """
    merchant = merchants.get(merchant_id)
    face_fen = sum(row["fen"] for row in rows)
    fee_fen = _half_up(face_fen * merchant.fee_basis_points, FEE_BASE)
    by_funder = _sums(pair for row in rows for pair in row["funder_split"])
    fees = valuing.shares(fee_fen, by_funder) if face_fen else dict.fromkeys(by_funder, 0)
    total_fen = face_fen - fee_fen + carried_fen
    scans = [row for row in rows if row["kind"] != takings.CORRECTED]
    titles = {row["reward_id"]: row["title"] for row in scans}
    return {
        "merchant_id": merchant_id,
        "merchant_name": merchant.name,
        "from": period.first.isoformat(),
        "to": period.last.isoformat(),
        "closed_at": clock.iso(period.cutoff),
        "vouchers": sum(row["kind"] == takings.USED for row in rows),
        "refunds": sum(row["kind"] == takings.REFUNDED for row in rows),
        "face_value_fen": face_fen,
        "fee_basis_points": merchant.fee_basis_points,
        "fee_fen": fee_fen,
        "brought_forward_fen": carried_fen,
        "payable_fen": max(total_fen, 0),
        "carried_forward_fen": min(total_fen, 0),
        "lines": [
            {
                "funder": funder,
                "face_value_fen": fen,
                "fee_fen": fees[funder],
                "net_fen": fen - fees[funder],
            }
            for funder, fen in by_funder.items()
        ],
        "points": _points_retired(rows),
        "transfers": _transfers(rows),
        "by_store": _table("store_id", _sums((row["store_id"], row["fen"]) for row in scans)),
        "by_reward": [
            {"title": titles[reward], **line}
            for line in _table("reward_id", _sums((row["reward_id"], row["fen"]) for row in scans))
            for reward in [line["reward_id"]]
        ],
        "by_day": _table(
            "day", _sums((clock.city_day(row["at"]).isoformat(), row["fen"]) for row in rows)
        ),
        "credit_notes": _credit_notes(rows),
    }


def _points_retired(rows: list[storage.Doc]) -> list[dict[str, Any]]:
    """By funder of the points: how many these vouchers were bought with, and their face value.

    That retires a liability of theirs. Rounded once for each line, half up.
    """
    points = _sums(pair for row in rows for pair in row["points"])
    known = terms.current()
    return [
        {
            "funder": funder,
            "points": count,
            "fen_per_1000_points": known.face_value(funder),
            "value_fen": _half_up(count * known.face_value(funder), valuing.POINTS_PER_PRICE),
        }
        for funder, count in points.items()
    ]


def _transfers(rows: list[storage.Doc]) -> list[dict[str, Any]]:
    """What the funders of points owe the funders of the rewards those points bought, in fen.

    The reward's funders pay the merchant the face value; who issued the points pays them what the
    points are worth, shared like the face value. So the difference stays with the reward's funders.
    Rounded once for each pair, half up.
    """
    known = terms.current()
    exact: dict[tuple[str, str], Fraction] = {}
    for row in rows:
        # Of a reward without a face value the first funder is its funder.
        weights = dict(row["funder_split"]) if row["fen"] else {row["funder_split"][0][0]: 1}
        for issuer, points in row["points"]:
            worth = Fraction(points * known.face_value(issuer), valuing.POINTS_PER_PRICE)
            for funder, weight in weights.items():
                if funder != issuer:
                    share = worth * weight / sum(weights.values())
                    exact[issuer, funder] = exact.get((issuer, funder), Fraction(0)) + share
    return [
        {"from": issuer, "to": funder, "value_fen": _half_up(fen.numerator, fen.denominator)}
        for (issuer, funder), fen in sorted(exact.items())
    ]


def _credit_notes(rows: list[storage.Doc]) -> list[dict[str, Any]]:
    """Corrections, and refunds of scans that an earlier statement has settled."""
    scans = {(row["voucher_id"], row["number"]) for row in rows if row["kind"] == takings.USED}
    return [
        {
            "id": row["_id"],
            "voucher_id": row["voucher_id"],
            "face_value_fen": row["fen"],
            "reason": row["reason"],
        }
        for row in rows
        if row["kind"] != takings.USED and (row["voucher_id"], row["number"]) not in scans
    ]


def _sums(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for name, amount in pairs:
        sums[name] = sums.get(name, 0) + amount
    return dict(sorted(sums.items()))


def _table(name: str, sums: dict[str, int]) -> list[dict[str, Any]]:
    return [{name: key, "face_value_fen": fen} for key, fen in sums.items()]


def _half_up(numerator: int, denominator: int) -> int:
    """The nearest integer; of two equally near ones the one farther from zero."""
    whole = (2 * abs(numerator) + denominator) // (2 * denominator)
    return whole if numerator >= 0 else -whole


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
