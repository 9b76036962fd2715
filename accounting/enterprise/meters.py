"""The meters of plants: what each measures, how it is read, and below which other it hangs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction

import mongoengine as me
from pymongo import UpdateOne
from pymongo.collection import Collection

from accounting import storage
from accounting.enterprise import carriers, plants, trees
from accounting.errors import DomainError, NotFound, ValidationFailed

METERS_MAX = 2_000
CHANGES_MAX = 50
# A register of DL/T 645 has six digits before the point.
MODULUS = Decimal(1_000_000)


class Kind(StrEnum):
    INTERVAL = "interval"
    REGISTER = "register"


class Flow(StrEnum):
    """What a meter measures: drawn from outside, used in all, made here, given away."""

    IMPORT = "import"
    LOAD = "load"
    GENERATION = "generation"
    EXPORT = "export"


class MeterExists(DomainError):
    """A meter is never redefined: its readings were read with its unit. Facts: meter."""

    code = "meter_exists"
    en = "The plant has a meter {meter} with other properties already."
    zh = "该企业已有表计 {meter}，且属性不同。"


class ChangeExists(DomainError):
    """Facts: meter."""

    code = "change_exists"
    en = "Something else is recorded for meter {meter} at this instant, or it has too many changes."
    zh = "表计 {meter} 在该时刻已有不同的换表记录，或换表记录过多。"


@storage.indexed
class MeterDocument(me.Document):
    id = me.StringField(primary_key=True)
    plant = me.StringField(required=True)

    meta = {"collection": "meters", "auto_create_index": False, "indexes": ["plant"]}


@dataclass(frozen=True, slots=True)
class Shift:
    """A scheduled shift: ISO weekdays, and minutes of the city day `[start_minute, end_minute)`."""

    weekdays: tuple[int, ...]
    start_minute: int
    end_minute: int


@dataclass(frozen=True, slots=True)
class MeterChange:
    """A register was swapped or reset at an instant: what the old one showed, what the new."""

    at: datetime
    old_last: int
    new_first: int


@dataclass(frozen=True, slots=True)
class Meter:
    """A meter. Readings are numbers in `unit` as shown, before `multiplier`.

    `parent` is the meter that measures this one's flow too. `interval_minutes` is 15, 30 or 60.
    `modulus` is the number at which the register begins at zero again, as shown. `first_day` is the
    earliest day anything is known of it, None before its first reading was counted.
    """

    plant: str
    meter: str
    carrier: str
    kind: Kind
    unit: str
    multiplier: Decimal = Decimal(1)
    flow: Flow = Flow.IMPORT
    node: str | None = None
    parent: str | None = None
    rated_kw: Decimal | None = None
    interval_minutes: int = 15
    modulus: Decimal = MODULUS
    shifts: tuple[Shift, ...] = ()
    changes: tuple[MeterChange, ...] = field(default=(), compare=False)
    first_day: date | None = field(default=None, compare=False)

    @property
    def smallest_unit(self) -> str:
        """What its quantities are kept in: Wh, g, NL, kJ or L."""
        return carriers.smallest(self.unit)

    @property
    def scale(self) -> Fraction:
        """Smallest units per number shown."""
        return carriers.scale(self.unit, self.multiplier)


def add(meter: Meter) -> Meter:
    """Add a meter. The same again changes nothing; another under its name: `MeterExists`."""
    there = {one.meter: one for one in of_plant(meter.plant)}
    if meter.meter in there:
        if there[meter.meter] != meter:
            raise MeterExists(meter=meter.meter)
        return there[meter.meter]
    _check(meter, there)
    new = storage.insert_new(_rows(), [stored(meter)])
    if not new and get(meter.plant, meter.meter) != meter:
        # Another came first, with something else.
        raise MeterExists(meter=meter.meter)
    return meter


def _check(meter: Meter, there: Mapping[str, Meter]) -> None:
    if meter.unit not in carriers.CARRIERS.get(meter.carrier, ()):
        raise ValidationFailed(
            "/unit", "The carrier is not measured in this unit.", "该能源品种不使用此单位。"
        )
    if meter.node is not None and all(one.node != meter.node for one in plants.nodes(meter.plant)):
        raise ValidationFailed("/node", "There is no such node.", "没有该节点。")
    if meter.parent is not None:
        parent = there.get(meter.parent)
        if parent is None or (parent.carrier, parent.flow) != (meter.carrier, meter.flow):
            raise ValidationFailed(
                "/parent",
                "The parent is no meter of the same carrier and flow.",
                "上级表计不存在，或能源品种、流向不同。",
            )
    parents = {one.meter: one.parent for one in (*there.values(), meter)}
    chain = trees.above(meter.meter, parents)
    if len(there) >= METERS_MAX or len(chain) >= plants.DEPTH_MAX:
        raise ValidationFailed("/meter", "Too many or too deep meters.", "表计过多或层级过深。")


def of_plant(plant_id: str) -> list[Meter]:
    """All meters of a plant, ordered by name."""
    return [_meter(row) for row in _rows().find({"plant": plant_id}).sort("_id", 1)]


def named(plant_id: str, names: Iterable[str]) -> list[Meter]:
    """Those of these meters that the plant has."""
    wanted = {"_id": {"$in": [f"{plant_id}/{name}" for name in names]}}
    return [_meter(row) for row in _rows().find(wanted)]


def get(plant_id: str, name: str) -> Meter:
    """Raises `NotFound`."""
    found = _rows().find_one({"_id": f"{plant_id}/{name}"})
    if found is None:
        raise NotFound
    return _meter(found)


def record_change(plant_id: str, name: str, change: MeterChange) -> Meter:
    """Record that a register was swapped or reset; the same again changes nothing.

    Raises `NotFound`, `ChangeExists` when something else is known of that instant.
    """
    row = {"at": change.at, "old_last": change.old_last, "new_first": change.new_first}
    free = {"_id": f"{plant_id}/{name}", "changes.at": {"$ne": change.at}}
    room = {f"changes.{CHANGES_MAX - 1}": {"$exists": False}}
    done = _rows().update_one(free | room, {"$push": {"changes": row}})
    meter = get(plant_id, name)
    if not done.matched_count and change not in meter.changes:
        raise ChangeExists(meter=name)
    return meter


def heard_since(plant_id: str, days: Mapping[str, date]) -> None:
    """Move back the first day of meters something is known of from earlier on."""
    changes = [
        UpdateOne({"_id": f"{plant_id}/{name}"}, {"$min": {"first_day": day.isoformat()}})
        for name, day in days.items()
    ]
    if changes:
        _rows().bulk_write(changes, ordered=False)


def stored(meter: Meter) -> storage.Doc:
    """A meter as it is stored."""
    return {
        "_id": f"{meter.plant}/{meter.meter}",
        "plant": meter.plant,
        "meter": meter.meter,
        "carrier": meter.carrier,
        "kind": meter.kind.value,
        "unit": meter.unit,
        "multiplier": str(meter.multiplier),
        "flow": meter.flow.value,
        "node": meter.node,
        "parent": meter.parent,
        "rated_kw": None if meter.rated_kw is None else str(meter.rated_kw),
        "interval_minutes": meter.interval_minutes,
        "modulus": str(meter.modulus),
        "shifts": [[list(one.weekdays), one.start_minute, one.end_minute] for one in meter.shifts],
        "changes": [],
    }


def _meter(row: storage.Doc) -> Meter:
    return Meter(
        plant=row["plant"],
        meter=row["meter"],
        carrier=row["carrier"],
        kind=Kind(row["kind"]),
        unit=row["unit"],
        multiplier=Decimal(row["multiplier"]),
        flow=Flow(row["flow"]),
        node=row["node"],
        parent=row["parent"],
        rated_kw=None if row["rated_kw"] is None else Decimal(row["rated_kw"]),
        interval_minutes=row["interval_minutes"],
        modulus=Decimal(row["modulus"]),
        shifts=tuple(Shift(tuple(days), start, end) for days, start, end in row["shifts"]),
        changes=tuple(
            sorted((MeterChange(**one) for one in row["changes"]), key=lambda one: one.at)
        ),
        first_day=date.fromisoformat(row["first_day"]) if row.get("first_day") else None,
    )


def _rows() -> "Collection[storage.Doc]":
    return storage.strong(MeterDocument._get_collection())
