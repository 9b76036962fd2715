"""One document for each day of a meter: what it sent, and what is made of that.

The raw layer is written once: a slot that has a reading keeps it. The validated layer is a function
of the raw layers around it and of edits, and is made anew whenever one of them changes. A raw write
marks its day as due for validation in the same write, and a validated write marks it as due for the
inventory and for the alerts, so no queue can lose a day to a crash.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from enum import StrEnum

import mongoengine as me
from pymongo import UpdateOne
from pymongo.collection import Collection

from accounting import storage
from accounting.enterprise import vee
from accounting.enterprise.slots import EMPTY, LETTERS, QUALITIES, SLOTS, Quality, Row
from accounting.enterprise.vee import Validated


@storage.indexed
class MeterDayDocument(me.Document):
    """`_id` is plant/meter/day, so the days of one meter lie side by side.

    `raw` and `reads` hold 96 integers or null: intervals by slot, register readings by the instant
    the slot begins at. `version` counts raw writes and edits, `validation` validations.

    What the raw layer says already is not stored again: a day without `values` has those of `raw`
    wherever its `quality` says they were there when it was validated (a slot of `raw` is written
    once), and one without `shown` shows `raw`, or its values if it is a register's. `rules` holds
    no V20.
    """

    id = me.StringField(primary_key=True)
    plant = me.StringField(required=True)
    meter = me.StringField(required=True)
    day = me.StringField(required=True)
    vee_due_at = me.DateTimeField()
    inventory_due_at = me.DateTimeField()
    alerts_due_at = me.DateTimeField()

    meta = {
        "collection": "meter_days",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["plant", "day"]},
            {
                "fields": ["vee_due_at"],
                "name": "vee_due",
                "partialFilterExpression": {"vee_due_at": {"$type": "date"}},
            },
            {
                "fields": ["inventory_due_at"],
                "name": "inventory_due",
                "partialFilterExpression": {"inventory_due_at": {"$type": "date"}},
            },
            {
                "fields": ["alerts_due_at"],
                "name": "alerts_due",
                "partialFilterExpression": {"alerts_due_at": {"$type": "date"}},
            },
        ],
    }


@dataclass(frozen=True, slots=True)
class MeterDay:
    """A day of a meter. Quantities are integers in the meter's smallest unit; None is missing.

    `raw` is what was sent (for a register the difference of the readings at both ends of the slot),
    `values` the validated layer, `rules` the VEE rule that decided or flagged a slot. `counts` has
    the slots of each quality and `total` the sum of the values that are there. `validation` grows
    with each change of the validated layer, 0 before the first.
    """

    plant: str
    meter: str
    day: date
    raw: Row = EMPTY
    values: Row = EMPTY
    quality: str = "M" * SLOTS
    rules: Mapping[int, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    total: int = 0
    validation: int = 0

    def quality_of(self, slot: int) -> Quality:
        return QUALITIES[self.quality[slot]]

    @property
    def counts(self) -> dict[Quality, int]:
        return {quality: self.quality.count(letter) for letter, quality in QUALITIES.items()}


@dataclass(frozen=True, slots=True)
class DayTotal:
    """What a sum over days needs of one, without its slots; `quality` has a letter for each."""

    plant: str
    meter: str
    day: date
    total: int
    quality: str
    validation: int


# How long a sweep leaves the days of a plant alone that it failed on.
FAILED_WAIT = timedelta(minutes=5)


class Mark(StrEnum):
    """Who still has to look at a day whose validated layer changed; the names of the fields."""

    INVENTORY = "inventory_due_at"
    ALERTS = "alerts_due_at"


@dataclass(frozen=True, slots=True)
class Touched:
    """A day whose validated layer changed, as it was when the mark was read."""

    plant: str
    meter: str
    day: date
    validation: int


def day_id(plant: str, meter: str, on: date) -> str:
    return f"{plant}/{meter}/{on.isoformat()}"


def unknown(plant: str, meter: str, on: date) -> MeterDay:
    """A day of which nothing is known, or nothing was validated yet."""
    return MeterDay(plant, meter, on, rules=_UNKNOWN)


def day(plant: str, meter: str, on: date) -> MeterDay:
    """A day as it was last validated; all missing where nothing is known."""
    found = collection().find_one({"_id": day_id(plant, meter, on)}, _SHOWN)
    return shown(found) if found else unknown(plant, meter, on)


def days(plant: str, meters: Sequence[str], first: date, last: date) -> Iterator[MeterDay]:
    """Every day of every meter in `[first, last]`, by meter and day, as last validated.

    Days nobody knows anything about are there too, all missing.
    """
    for meter in meters:
        between = {"$gte": day_id(plant, meter, first), "$lte": day_id(plant, meter, last)}
        found = {row["day"]: row for row in collection().find({"_id": between}, _SHOWN)}
        for number in range((last - first).days + 1):
            on = first + timedelta(days=number)
            row = found.get(on.isoformat())
            yield shown(row) if row else unknown(plant, meter, on)


def of_plant(plant: str, on: date) -> list[MeterDay]:
    """A day of all meters of a plant that are known, as last validated."""
    found = collection().find({"plant": plant, "day": on.isoformat()}, _SHOWN)
    return [shown(row) for row in found]


def totals(plant: str, first: date, last: date) -> list[DayTotal]:
    """The days of all meters of a plant that are known, without their slots."""
    wanted = {"plant": plant, "day": {"$gte": first.isoformat(), "$lte": last.isoformat()}}
    found = collection().find({**wanted, "validation": {"$gt": 0}}, _TOTALS)
    return [
        DayTotal(
            plant,
            row["meter"],
            date.fromisoformat(row["day"]),
            row["total"],
            row["quality"],
            row["validation"],
        )
        for row in found
    ]


def first_reads(plant: str, meters: Sequence[str], on: date) -> dict[str, int]:
    """What registers showed at the beginning of a day, where they were read just then."""
    wanted = {"_id": {"$in": [day_id(plant, meter, on) for meter in meters]}}
    found = collection().find(wanted, {"meter": 1, "reads": {"$slice": 1}})
    return {
        row["meter"]: row["reads"][0]
        for row in found
        if row.get("reads") and row["reads"][0] is not None
    }


def touched(mark: Mark, now: datetime, limit: int) -> dict[str, list[Touched]]:
    """Days that wait for somebody to look at them, the longest waiting first, by plant."""
    fields = {"plant": 1, "meter": 1, "day": 1, "validation": 1}
    by_plant: dict[str, list[Touched]] = {}
    for row in collection().find({mark: due_by(now)}, fields).sort(mark, 1).limit(limit):
        on = date.fromisoformat(row["day"])
        one = Touched(row["plant"], row["meter"], on, row["validation"])
        by_plant.setdefault(one.plant, []).append(one)
    return by_plant


def touched_of(plant: str, first: date, last: date) -> list[Touched]:
    """The days of one plant in `[first, last]` that the inventory has to count anew."""
    between = {"$gte": first.isoformat(), "$lte": last.isoformat()}
    wanted = {"plant": plant, "day": between, Mark.INVENTORY: {"$type": "date"}}
    found = collection().find(wanted, {"meter": 1, "day": 1, "validation": 1})
    return [
        Touched(plant, row["meter"], date.fromisoformat(row["day"]), row["validation"])
        for row in found
    ]


def several(wanted: Iterable[tuple[str, str, date]]) -> list[MeterDay]:
    """Days by plant, meter and day, as far as there are any; one query."""
    ids = [day_id(*one) for one in wanted]
    return [shown(row) for row in collection().find({"_id": {"$in": ids}}, _SHOWN)]


def let_go(mark: Mark, done: Iterable[Touched]) -> None:
    """Strike off what was looked at; a day that changed meanwhile keeps its mark."""
    changes = [
        UpdateOne(
            {"_id": day_id(one.plant, one.meter, one.day), "validation": one.validation},
            {"$unset": {mark: ""}},
        )
        for one in done
    ]
    if changes:
        collection().bulk_write(changes, ordered=False)


def put_off(mark: Mark, failed: Iterable[Touched], now: datetime) -> None:
    """Let days wait whose plant failed: at the front of the queue they would hold up all others."""
    ids = [day_id(one.plant, one.meter, one.day) for one in failed]
    wanted = {"_id": {"$in": ids}, mark: due_by(now)}
    collection().update_many(wanted, {"$set": {mark: now + FAILED_WAIT}})


def stretches(days: Iterable[date], length: int) -> Iterator[list[date]]:
    """Days in order, in groups that reach over so many days at most."""
    group: list[date] = []
    for day in sorted(days):
        if group and (day - group[0]).days >= length:
            yield group
            group = []
        group.append(day)
    if group:
        yield group


def due_by(now: datetime) -> storage.Doc:
    """The condition of a due mark. Without `$type` the planner leaves its partial index alone."""
    return {"$type": "date", "$lte": now}


_SHOWN = dict.fromkeys(
    ("plant", "meter", "day", "validation", "raw", "shown", "values", "quality", "total"), 1
) | dict.fromkeys(("rules", "flags"), 1)
_TOTALS = {"_id": 0, "meter": 1, "day": 1, "total": 1, "quality": 1, "validation": 1}


def shown(row: storage.Doc) -> MeterDay:
    """A stored day; one that was never validated shows nothing."""
    plant, meter, on = row["plant"], row["meter"], date.fromisoformat(row["day"])
    if not row.get("validation"):
        return unknown(plant, meter, on)
    values = values_of(row)
    return MeterDay(
        plant=plant,
        meter=meter,
        day=on,
        raw=_shown_of(row, values),
        values=values,
        quality=row["quality"],
        rules=vee.all_rules(row["quality"], {int(s): one for s, one in row["rules"].items()}),
        flags=tuple(row["flags"]),
        total=row["total"],
        validation=row["validation"],
    )


def layer_of(raw: Row | None, made: Validated) -> storage.Doc:
    """The validated layer as it is stored beside the raw one; None is not stored."""
    shown_too = made.values if raw is None else raw
    return {
        "shown": None if made.shown == shown_too else list(made.shown),
        "values": None if made.values == raw else list(made.values),
        "quality": made.quality,
        "rules": {str(slot): rule for slot, rule in made.told.items()},
        "flags": list(made.flags),
        "total": made.total,
    }


def values_of(row: storage.Doc) -> Row:
    """The values of a stored day that was validated."""
    stored = row.get("values")
    if stored is not None:
        return tuple(stored)
    raw, quality = row["raw"], row["quality"]
    if _MISSING not in quality:
        return tuple(raw)
    return tuple(
        None if letter == _MISSING else value for value, letter in zip(raw, quality, strict=True)
    )


def _shown_of(row: storage.Doc, values: Row) -> Row:
    stored = row.get("shown")
    if stored is None:
        stored = row.get("raw")
    return values if stored is None else tuple(stored)


_MISSING = LETTERS[Quality.MISSING]
_UNKNOWN = vee.all_rules(_MISSING * SLOTS, {})


def collection() -> "Collection[storage.Doc]":
    return storage.strong(MeterDayDocument._get_collection())
