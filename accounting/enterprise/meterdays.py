"""One document for each day of a meter: what it sent, and what is made of that.

The raw layer is written once: a slot that has a reading keeps it. The validated layer is a function
of the raw layers around it and of edits, and is made anew whenever one of them changes. A raw write
marks its day as due for validation in the same write, and a validated write marks it as due for the
inventory, so neither queue can lose a day to a crash.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

import mongoengine as me
from pymongo import UpdateOne
from pymongo.collection import Collection

from accounting import storage
from accounting.enterprise.slots import EMPTY, QUALITIES, SLOTS, Quality, Row


@storage.indexed
class MeterDayDocument(me.Document):
    """`_id` is plant/meter/day, so the days of one meter lie side by side.

    `raw` and `reads` hold 96 integers or null: intervals by slot, register readings by the instant
    the slot begins at. `version` counts raw writes and edits, `validation` validations.
    """

    id = me.StringField(primary_key=True)
    plant = me.StringField(required=True)
    meter = me.StringField(required=True)
    day = me.StringField(required=True)
    vee_due_at = me.DateTimeField()
    inventory_due_at = me.DateTimeField()

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


@dataclass(frozen=True, slots=True)
class Touched:
    """A day whose validated layer changed since the inventory last counted it."""

    plant: str
    meter: str
    day: date
    validation: int


def day_id(plant: str, meter: str, on: date) -> str:
    return f"{plant}/{meter}/{on.isoformat()}"


def day(plant: str, meter: str, on: date) -> MeterDay:
    """A day as it was last validated; all missing where nothing is known."""
    found = collection().find_one({"_id": day_id(plant, meter, on)}, _SHOWN)
    return shown(found) if found else MeterDay(plant, meter, on)


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
            yield shown(row) if row else MeterDay(plant, meter, on)


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


def touched(now: datetime, limit: int) -> list[Touched]:
    """Days the inventory has to count anew, the longest waiting first."""
    fields = {"plant": 1, "meter": 1, "day": 1, "validation": 1}
    found = collection().find({"inventory_due_at": {"$lte": now}}, fields)
    return [
        Touched(row["plant"], row["meter"], date.fromisoformat(row["day"]), row["validation"])
        for row in found.sort("inventory_due_at", 1).limit(limit)
    ]


def counted(done: Iterable[Touched]) -> None:
    """The inventory has counted these; one that changed meanwhile stays touched."""
    changes = [
        UpdateOne(
            {"_id": day_id(one.plant, one.meter, one.day), "validation": one.validation},
            {"$unset": {"inventory_due_at": ""}},
        )
        for one in done
    ]
    if changes:
        collection().bulk_write(changes, ordered=False)


_SHOWN = dict.fromkeys(("plant", "meter", "day", "validation"), 1) | dict.fromkeys(
    ("shown", "values", "quality", "rules", "flags", "total"), 1
)
_TOTALS = {"_id": 0, "meter": 1, "day": 1, "total": 1, "quality": 1, "validation": 1}


def shown(row: storage.Doc) -> MeterDay:
    """A stored day; one that was never validated shows nothing."""
    plant, meter, on = row["plant"], row["meter"], date.fromisoformat(row["day"])
    if not row.get("validation"):
        return MeterDay(plant, meter, on)
    return MeterDay(
        plant=plant,
        meter=meter,
        day=on,
        raw=tuple(row["shown"]),
        values=tuple(row["values"]),
        quality=row["quality"],
        rules={int(slot): rule for slot, rule in row["rules"].items()},
        flags=tuple(row["flags"]),
        total=row["total"],
        validation=row["validation"],
    )


def collection() -> "Collection[storage.Doc]":
    return storage.strong(MeterDayDocument._get_collection())
