"""One document for each day of a plant: what its meters measured, and the carbon that follows.

A day is counted from the validated layer of its meters, meter by meter, whether or not they are
summed: that depends on the tree and is decided by who reads (`boundary`). It is replaced only as it
was read, and its meter-days stay touched until it is, so two who count the same day end in the same
document and a crash between leaves the day to be counted again.

What changes a day marks it, in the same write, as due for the book (`due_at`).
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from typing import Any, NamedTuple

import mongoengine as me
from pymongo import ReplaceOne
from pymongo.collection import Collection, ReturnDocument
from pymongo.errors import BulkWriteError

from accounting import clock, factors, storage
from accounting.enterprise import carbon, meterdays, meters, plants
from accounting.enterprise.boundary import OUTSIDE
from accounting.enterprise.meterdays import Mark, MeterDay, Touched
from accounting.enterprise.meters import Flow, Meter
from accounting.enterprise.slots import Quality
from accounting.enterprise.slots import Row as Values
from accounting.errors import AccountBusy
from accounting.factors import MissingFactor, Registry

ATTEMPTS_MAX = 12
# Meter-days that are counted in one go.
TOGETHER_MAX = 2_000

READINGS, FACTORS, ENTRIES = "readings", "factors", "entries"

log = logging.getLogger(__name__)

# Days as they are, to days as they should be, in the same order.
Lay = Callable[[Sequence["Day"]], "list[Day]"]


@storage.indexed
class InventoryDayDocument(me.Document):
    """`rows` are lists in the order of `Row`; `factors` has the ids of all, "" for a missing one.

    `version` counts writes; `run` is the number of the plant's run that last changed a number.
    """

    id = me.StringField(primary_key=True)
    plant = me.StringField(required=True)
    day = me.StringField(required=True)
    factors = me.ListField(me.StringField())
    due_at = me.DateTimeField()

    meta = {
        "collection": "inventory_days",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["factors", "day"]},
            {
                "fields": ["due_at", "day"],
                "name": "book_due",
                "partialFilterExpression": {"due_at": {"$type": "date"}},
            },
        ],
    }


@storage.indexed
class InventoryRunDocument(me.Document):
    """How many times the numbers of a plant have changed, and from when on its days are unmarked.

    `covers_from` is there while days wait to be marked because meters cover others from then on.
    """

    id = me.StringField(primary_key=True)

    meta = {"collection": "inventory_runs", "auto_create_index": False}


class Row(NamedTuple):
    """A meter's day: what it measured in its smallest unit, and what that is worth.

    Counts are slots. Of generation only what was measured or edited counts: an estimate is no
    evidence. `factor` and `tce_factor` are ids, "" where there is none for the day; then the
    milligrams are 0 and mean nothing.
    """

    meter: str
    validation: int
    quantity: int
    actual: int
    estimated: int
    co2e_mg: int
    tce_mg: int
    factor: str
    tce_factor: str


class Process(NamedTuple):
    """The part of a process emission that falls on a day."""

    entry: str
    node: str | None
    co2e_mg: int


@dataclass(frozen=True, slots=True)
class Day:
    """A plant's day as it was last counted; `green_wh` is green power with evidence."""

    plant: str
    day: date
    rows: Mapping[str, Row] = field(default_factory=dict)
    process: tuple[Process, ...] = ()
    green_wh: int = 0
    version: int = 0
    run: int = 0
    cause: str = READINGS


def days(plant: str, first: date, last: date) -> dict[date, Day]:
    """The days of a plant in `[first, last]` that were ever counted."""
    between = {"$gte": day_id(plant, first), "$lte": day_id(plant, last)}
    return {one.day: one for one in map(day_of, collection().find({"_id": between}))}


def sweep(now: datetime, limit: int = TOGETHER_MAX) -> int:
    """Count meter-days that changed, the longest waiting first; returns how many were touched."""
    by_plant = meterdays.touched(Mark.INVENTORY, now, limit)
    for plant_id, those in by_plant.items():
        try:
            count(those)
        except AccountBusy:
            log.info("days of %s are being counted by others, they stay touched", plant_id)
        except Exception:  # A bug at one plant must not become a standstill of all.
            log.exception("the sweep failed on %s", plant_id)
            meterdays.put_off(Mark.INVENTORY, those, now)
    return sum(map(len, by_plant.values()))


def catch_up(plant: str, first: date, last: date) -> int:
    """Count at once what changed of a plant in `[first, last]`. Raises `AccountBusy`."""
    found = meterdays.touched_of(plant, first, last)
    for place in range(0, len(found), TOGETHER_MAX):
        count(found[place : place + TOGETHER_MAX])
    between = {"$gte": day_id(plant, first), "$lte": day_id(plant, last)}
    unfactored = collection().find({"_id": between, "factors": ""}, {"day": 1})
    value_anew(plant, [date.fromisoformat(row["day"]) for row in unfactored], factors.shipped())
    return len(found)


def restate(registry: Registry) -> int:
    """Value anew the days whose factors are no longer those of their date; how many changed.

    A new vintage ends the one before, so exactly the days behind that end are touched; so are days
    that had no factor and have one now.
    """
    wanted: list[storage.Doc] = []
    for factor_id in collection().distinct("factors"):
        factor = registry.find(factor_id)
        if factor is None:
            wanted.append({"factors": factor_id})
            continue
        wanted.append({"factors": factor_id, "day": {"$lt": factor.valid_from.isoformat()}})
        if factor.valid_to is not None:
            wanted.append({"factors": factor_id, "day": {"$gte": factor.valid_to.isoformat()}})
    if not wanted:
        return 0
    found = list(collection().find({"$or": wanted}, {"plant": 1, "day": 1}))
    changed = 0
    for place in range(0, len(found), TOGETHER_MAX):
        by_plant: dict[str, list[date]] = defaultdict(list)
        for row in found[place : place + TOGETHER_MAX]:
            by_plant[row["plant"]].append(date.fromisoformat(row["day"]))
        for plant, those in by_plant.items():
            changed += len(value_anew(plant, those, registry))
    return changed


def value_anew(plant_id: str, wanted: Sequence[date], registry: Registry) -> list[date]:
    """Value counted days by the factors of a registry; returns those that changed."""
    if not wanted:
        return []
    region = plants.region_of(plant_id)
    measured = {one.meter: one for one in meters.of_plant(plant_id)}

    def lay(held: Sequence[Day]) -> list[Day]:
        return [replace(day, rows=rows_of(day), cause=FACTORS) for day in held]

    def rows_of(day: Day) -> Mapping[str, Row]:
        return {
            name: worth(row, measured[name], day.day, region, registry)
            for name, row in day.rows.items()
        }

    return change(plant_id, wanted, lay)


def count(touched: Sequence[Touched], registry: Registry | None = None) -> None:
    """Count days of meters anew. Raises `AccountBusy` when others keep changing the same days."""
    if not touched:
        return
    by_plant: dict[str, dict[date, list[MeterDay]]] = defaultdict(lambda: defaultdict(list))
    found = meterdays.several((one.plant, one.meter, one.day) for one in touched)
    for one in found:
        by_plant[one.plant][one.day].append(one)
    for plant_id, changed in by_plant.items():
        _count_plant(plant_id, changed, registry or factors.shipped())
    # What was read, not what was touched: a day that changed in between stays touched.
    counted = (Touched(one.plant, one.meter, one.day, one.validation) for one in found)
    meterdays.let_go(Mark.INVENTORY, counted)


def _count_plant(
    plant_id: str, changed: Mapping[date, Sequence[MeterDay]], registry: Registry
) -> None:
    region = plants.region_of(plant_id)
    measured = {one.meter: one for one in meters.of_plant(plant_id)}
    _hear(plant_id, measured, changed)

    def lay(held: Sequence[Day]) -> list[Day]:
        return [replace(day, rows=rows_of(day), cause=READINGS) for day in held]

    def rows_of(day: Day) -> Mapping[str, Row]:
        rows = dict(day.rows)
        for one in changed[day.day]:
            before = rows.get(one.meter)
            if measured[one.meter].carrier in OUTSIDE:
                continue
            if before is None or before.validation <= one.validation:
                rows[one.meter] = row_of(measured[one.meter], one, region, registry)
        return rows

    change(plant_id, changed, lay)


def _hear(
    plant_id: str, measured: Mapping[str, Meter], changed: Mapping[date, Sequence[MeterDay]]
) -> None:
    """Keep since when meters are heard; it decides which others they cover, on other days too."""
    earlier: dict[str, date] = {}
    for on, those in changed.items():
        for one in those:
            known = earlier.get(one.meter) or measured[one.meter].first_day
            if one.quality.strip("M") and (known is None or on < known):
                earlier[one.meter] = on
    if not earlier:
        return
    since = min(earlier.values()).isoformat()
    # Kept until the days are marked: a crash in between must not leave them as they were posted.
    _runs().update_one({"_id": plant_id}, {"$min": {"covers_from": since}}, upsert=True)
    meters.heard_since(plant_id, earlier)
    _mark(plant_id, since)


def mark_covered() -> None:
    """Mark the days whose sums changed with what covers what, where a crash kept that back."""
    for row in _runs().find({"covers_from": {"$exists": True}}):
        _mark(row["_id"], row["covers_from"])


def _mark(plant_id: str, since: str) -> None:
    """Let every day from one on be due for the book: what is summed on it may have changed."""
    wanted = {"_id": {"$gte": f"{plant_id}/{since}", "$lt": f"{plant_id}0"}}
    collection().update_many(wanted, {"$set": {"due_at": clock.now()}, "$inc": {"version": 1}})
    _runs().update_one({"_id": plant_id, "covers_from": since}, {"$unset": {"covers_from": ""}})


def row_of(meter: Meter, one: MeterDay, region: str, registry: Registry) -> Row:
    """What a validated day of a meter is worth."""
    counts = one.counts
    actual = counts[Quality.ACTUAL] + counts[Quality.EDITED]
    quantity, estimated = one.total, counts[Quality.ESTIMATED]
    if meter.flow is Flow.GENERATION and estimated:
        quantity = sum(value for value in counted_values(meter, one) if value is not None)
        estimated = 0
    row = Row(one.meter, one.validation, quantity, actual, estimated, 0, 0, "", "")
    return worth(row, meter, one.day, region, registry)


def worth(row: Row, meter: Meter, on: date, region: str, registry: Registry) -> Row:
    """The same quantity at the factors of the day, or at none where there are none."""
    try:
        rate = carbon.rate(registry, meter.carrier, meter.smallest_unit, region, on)
    except MissingFactor:
        return row._replace(co2e_mg=0, tce_mg=0, factor="", tce_factor="")
    return row._replace(
        co2e_mg=rate.co2e_mg(row.quantity),
        tce_mg=rate.tce_mg(row.quantity),
        factor=rate.co2e.id,
        tce_factor=rate.tce.id,
    )


def counted_values(meter: Meter, one: MeterDay) -> Values:
    """The slots of a day that count; an estimate is no evidence of what was generated."""
    if meter.flow is not Flow.GENERATION:
        return one.values
    return tuple(
        None if letter == "E" else value
        for value, letter in zip(one.values, one.quality, strict=True)
    )


def change(plant_id: str, wanted: Iterable[date], lay: Lay) -> list[date]:
    """Replace days of a plant by what `lay` makes of them; returns those that changed.

    `lay` is called again with days that somebody else changed meanwhile, and must then look again
    at whatever it uses besides. Raises `AccountBusy` after a bounded number of lost races.
    """
    left = sorted(set(wanted))
    run, done = 0, set[date]()
    for attempt in range(ATTEMPTS_MAX):
        held = {one.day: one for one in _read(plant_id, left)}
        changes: list[ReplaceOne[storage.Doc]] = []
        known = [held.get(on) or Day(plant_id, on) for on in left]
        for before, after in zip(known, lay(known), strict=True):
            # Who lost a race finds what it wrote itself unchanged.
            if _numbers(after) != _numbers(before):
                run = run or _next_run(plant_id)
                done.add(before.day)
                changes.append(
                    _replace(before, replace(after, version=before.version + 1, run=run))
                )
        if _write(changes):
            return sorted(done)
        storage.pause(attempt)
    raise AccountBusy(retry_after=1)


def _read(plant_id: str, wanted: Sequence[date]) -> list[Day]:
    ids = [day_id(plant_id, on) for on in wanted]
    return [day_of(row) for row in collection().find({"_id": {"$in": ids}})]


def _numbers(day: Day) -> Any:
    rows = {name: row._replace(validation=0) for name, row in day.rows.items()}
    return rows, day.process, day.green_wh


def _replace(before: Day, after: Day) -> "ReplaceOne[storage.Doc]":
    # A day nobody has counted: whoever else does so first is in the way.
    guard = {"_id": day_id(after.plant, after.day), "version": before.version or -1}
    return ReplaceOne(guard, _document(after), upsert=before.version == 0)


def _write(changes: "Sequence[ReplaceOne[storage.Doc]]") -> bool:
    """False if one of the days is not what was read any more."""
    if not changes:
        return True
    try:
        result = collection().bulk_write(list(changes), ordered=False)
    except BulkWriteError as error:
        if any(one["code"] != storage.DUPLICATE for one in error.details["writeErrors"]):
            raise
        return False
    return int(result.matched_count) + int(result.upserted_count) == len(changes)


def _next_run(plant_id: str) -> int:
    found = _runs().find_one_and_update(
        {"_id": plant_id}, {"$inc": {"run": 1}}, upsert=True, return_document=ReturnDocument.AFTER
    )
    assert found is not None, "an upsert leaves a document"
    return int(found["run"])


def day_id(plant: str, on: date) -> str:
    return f"{plant}/{on.isoformat()}"


def _document(day: Day) -> storage.Doc:
    known = [row for row in day.rows.values() if row.actual or row.estimated]
    used = {one for row in known for one in (row.factor, row.tce_factor)}
    return {
        "_id": day_id(day.plant, day.day),
        "plant": day.plant,
        "day": day.day.isoformat(),
        "version": day.version,
        "run": day.run,
        "cause": day.cause,
        "rows": [list(row) for row in day.rows.values()],
        "process": [list(one) for one in day.process],
        "green_wh": day.green_wh,
        "factors": sorted(used),
        "due_at": clock.now(),
    }


def day_of(row: storage.Doc) -> Day:
    rows = [Row(*one) for one in row["rows"]]
    return Day(
        plant=row["plant"],
        day=date.fromisoformat(row["day"]),
        rows={one.meter: one for one in rows},
        process=tuple(Process(*one) for one in row["process"]),
        green_wh=row["green_wh"],
        version=row["version"],
        run=row["run"],
        cause=row["cause"],
    )


def collection() -> "Collection[storage.Doc]":
    return storage.strong(InventoryDayDocument._get_collection())


def _runs() -> "Collection[storage.Doc]":
    return storage.strong(InventoryRunDocument._get_collection())
