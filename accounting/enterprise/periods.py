"""Closed months of a plant: frozen numbers, and each change since as a revision that shows it.

A month is closed once. The row that says so comes first, then its first revision: whoever changes a
day afterwards meets the row and makes the next revision before the day stops being due for the
book. A revision is only ever added; the newest says what the month is now.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import clock, storage, sweeping
from accounting.enterprise import inventory, inventory_book, inventory_days, meterdays
from accounting.enterprise.inventory import By, Inventory, share
from accounting.enterprise.inventory_days import Day
from accounting.errors import DomainError, NotFound

log = logging.getLogger(__name__)

SWEEP_MAX = 200
# Days of plants that are posted in one go.
TOGETHER_MAX = 1_000
CLOSED = "closed"


class MonthNotOver(DomainError):
    """Facts: month."""

    code = "period_not_over"
    en = "{month} is not over yet."
    zh = "{month} 尚未结束。"
    final = False


@storage.indexed
class InventoryPeriodDocument(me.Document):
    """A closed month; `due_at` until its first revision is made."""

    id = me.StringField(primary_key=True)
    plant = me.StringField(required=True)
    due_at = me.DateTimeField()

    meta = {
        "collection": "inventory_periods",
        "auto_create_index": False,
        "indexes": [
            {
                "fields": ["due_at"],
                "name": "periods_due",
                "partialFilterExpression": {"due_at": {"$type": "date"}},
            }
        ],
    }


@storage.indexed
class InventoryRevisionDocument(me.Document):
    id = me.StringField(primary_key=True)
    plant = me.StringField(required=True)
    month = me.StringField(required=True)
    revision = me.IntField(required=True)

    meta = {
        "collection": "inventory_revisions",
        "auto_create_index": False,
        "indexes": [{"fields": ["plant", "month", "revision"], "unique": True}],
    }


@dataclass(frozen=True, slots=True)
class Revision:
    """What a closed month was at one time. Milligrams; None where nothing was known.

    `difference_*` is what changed since the revision before, `days` the days that did and by how
    many milligrams of CO2e, `causes` why (closed, readings, factors, entries). `by_carrier` has
    (unit, quantity, co2e_mg, tce_mg); `expected`, `actual` and `estimated` count slots.
    """

    plant: str
    month: str
    revision: int
    made_at: datetime
    by: str
    causes: tuple[str, ...]
    co2e_mg: int | None
    tce_mg: int | None
    by_carrier: Mapping[str, tuple[str, int, int, int]]
    expected: int
    actual: int
    estimated: int
    factor_set: str
    provisional: bool
    run: int
    difference_co2e_mg: int
    difference_tce_mg: int
    days: Mapping[str, int]
    day_sums: Mapping[str, int | None]

    @property
    def completeness(self) -> Decimal:
        return share(self.actual, self.expected)

    @property
    def estimated_share(self) -> Decimal:
        return share(self.estimated, self.expected)


def close(plant_id: str, month: str, *, by: str) -> Revision:
    """Freeze a month: count what was sent, post its days, keep the numbers as its first revision.

    Closed again, it answers with the newest revision. Raises `MonthNotOver`, `MissingFactor`,
    `AccountBusy`.
    """
    first, last = clock.first_day(month), clock.last_day(month)
    now = clock.now()
    if clock.city_day(now) <= last:
        raise MonthNotOver(month=month)
    inventory.for_period(plant_id, first, last)
    row = {"_id": _id(plant_id, month), "plant": plant_id, "month": month}
    # Who closed it first did so; what is left of it is done below.
    storage.insert_new(_periods(), [row | {"closed_at": now, "by": by, "due_at": now}])
    return _finish(plant_id, month)


def run(now: datetime) -> int:
    """Post what is over to the book, and revise closed months; returns how many days were due."""
    inventory_days.mark_covered()
    count = 0
    while True:
        found = inventory_book.due(now, TOGETHER_MAX)
        done = 0
        for plant_id, days in found.items():
            try:
                done += _settle(plant_id, days, now)
            except DomainError as refusal:
                log.warning("the days of %s stay due: %s", plant_id, refusal)
        count += done
        # What others changed meanwhile is due again, and is taken by the next run.
        if sum(map(len, found.values())) < TOGETHER_MAX or not done:
            return count


def _settle(plant_id: str, days: Sequence[Day], now: datetime) -> int:
    """A closed month has its revision before its days stop being due, so none is forgotten."""
    done = inventory_book.post(plant_id, days, now)
    _revise_closed(plant_id, {clock.month_of(day.day) for day in days})
    inventory_book.let_go(done)
    return len(done)


def _revise_closed(plant_id: str, months: Iterable[str]) -> None:
    """Make the next revision of those of these months that are closed and have changed."""
    ids = [_id(plant_id, month) for month in sorted(months)]
    for row in _periods().find({"_id": {"$in": ids}}):
        _revise(plant_id, row["month"], row["by"])


def sweep(now: datetime) -> int:
    """Finish closings that a crash left half-way."""
    found = list(
        _periods().find({"due_at": meterdays.due_by(now)}).sort("due_at", 1).limit(SWEEP_MAX)
    )
    return sweeping.each("closing", found, lambda row: _finish(row["plant"], row["month"]))


def newest(plant_id: str, month: str) -> Revision | None:
    wanted = {"plant": plant_id, "month": month}
    found = _revisions().find_one(wanted, sort=[("revision", -1)])
    return _revision(found) if found else None


def revisions_before(
    plant_id: str, *, before: tuple[str, int] | None, limit: int
) -> list[Revision]:
    """Revisions of closed months, the newest month and revision first.

    `before` is (month, revision) of the last one seen.
    """
    wanted: storage.Doc = {"plant": plant_id}
    if before is not None:
        month, number = before
        wanted["$or"] = [{"month": {"$lt": month}}, {"month": month, "revision": {"$lt": number}}]
    found = _revisions().find(wanted).sort([("month", -1), ("revision", -1)]).limit(limit)
    return [_revision(row) for row in found]


def _finish(plant_id: str, month: str) -> Revision:
    row = _periods().find_one({"_id": _id(plant_id, month)})
    if row is None:
        raise NotFound
    first, last = clock.first_day(month), clock.last_day(month)
    days = inventory_days.days(plant_id, first, last)
    if days:
        _settle(plant_id, list(days.values()), clock.now())
    made = _revise(plant_id, month, row["by"])
    _periods().update_one({"_id": row["_id"]}, {"$unset": {"due_at": ""}})
    return made


def _revise(plant_id: str, month: str, by: str) -> Revision:
    """The newest revision, made now if the month is no longer as the one before says."""
    first, last = clock.first_day(month), clock.last_day(month)
    while True:
        before = newest(plant_id, month)
        # Read after the newest revision, so the numbers are never older than it.
        found = inventory.for_period(plant_id, first, last, By.DAY, fresh=False)
        made = _next(plant_id, month, by, before, found)
        if before is not None and _numbers(made) == _numbers(before):
            return before
        try:
            _revisions().insert_one(_document(made))
        except DuplicateKeyError:
            continue  # Another made this revision; each round one of them gets on.
        return made


def _next(
    plant_id: str, month: str, by: str, before: Revision | None, found: Inventory
) -> Revision:
    total = found.total
    sums = {day: one.co2e_mg if one.known else None for day, one in found.series}
    earlier = before.day_sums if before else sums
    changed = {
        day: (mg or 0) - (earlier.get(day) or 0)
        for day, mg in sums.items()
        if mg != earlier.get(day)
    }
    return Revision(
        plant=plant_id,
        month=month,
        revision=before.revision + 1 if before else 1,
        made_at=clock.now(),
        by=by,
        causes=_causes(plant_id, before, found) if before else (CLOSED,),
        co2e_mg=total.co2e_mg if total.known else None,
        tce_mg=total.tce_mg if total.known else None,
        by_carrier={
            name: (one.unit, one.quantity, one.co2e_mg, one.tce_mg)
            for name, one in sorted(total.by_carrier.items())
        },
        expected=total.expected,
        actual=total.actual,
        estimated=total.estimated,
        factor_set=found.factor_set,
        provisional=found.provisional,
        run=found.revision,
        difference_co2e_mg=total.co2e_mg - (before.co2e_mg or 0) if before else 0,
        difference_tce_mg=total.tce_mg - (before.tce_mg or 0) if before else 0,
        days=changed,
        day_sums=sums,
    )


def _causes(plant_id: str, before: Revision, found: Inventory) -> tuple[str, ...]:
    """Why days changed since the revision before."""
    first, last = (date.fromisoformat(found.series[place][0]) for place in (0, -1))
    days = inventory_days.days(plant_id, first, last).values()
    return tuple(sorted({day.cause for day in days if day.run > before.run})) or (
        inventory_days.READINGS,
    )


def _numbers(one: Revision) -> tuple[Any, ...]:
    known = (one.expected, one.actual, one.estimated, one.factor_set, one.provisional)
    return one.co2e_mg, one.tce_mg, dict(one.by_carrier), dict(one.day_sums), *known


def _id(plant_id: str, month: str) -> str:
    return f"{plant_id}/{month}"


def _document(one: Revision) -> storage.Doc:
    row = {each.name: getattr(one, each.name) for each in fields(one)}
    return row | {
        "_id": f"{_id(one.plant, one.month)}/{one.revision}",
        "causes": list(one.causes),
        "by_carrier": {name: list(part) for name, part in one.by_carrier.items()},
    }


def _revision(row: storage.Doc) -> Revision:
    held = {each.name: row[each.name] for each in fields(Revision)}
    parts = {name: tuple(part) for name, part in row["by_carrier"].items()}
    return Revision(**held | {"causes": tuple(row["causes"]), "by_carrier": parts})


def _periods() -> "Collection[storage.Doc]":
    return storage.strong(InventoryPeriodDocument._get_collection())


def _revisions() -> "Collection[storage.Doc]":
    return storage.strong(InventoryRevisionDocument._get_collection())
