"""Plants, their node trees, meters, and monthly figures.

A plant is known by its unified social credit code (USCC). Its nodes (workshop, line, equipment) and
its meters form two trees of their own: a parent meter measures what its children measure too, so
the two are never both summed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from typing import Any

import mongoengine as me
from pymongo import UpdateOne
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError
from stdnum.cn import uscc as uscc_number

from accounting import clock, storage
from accounting.enterprise import carriers
from accounting.errors import AccountBusy, DomainError, NotFound, ValidationFailed
from accounting.ids import new_id

REGION = "CN-ZJ"
METERS_MAX = 2_000
NODES_MAX = 1_000
DEPTH_MAX = 8
CHANGES_MAX = 50
CHANGE_ATTEMPTS_MAX = 16
WALK = 100
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


class NodeKind(StrEnum):
    WORKSHOP = "workshop"
    LINE = "line"
    EQUIPMENT = "equipment"


class PlantExists(DomainError):
    code = "plant_exists"
    en = "A plant with this USCC is registered already."
    zh = "该统一社会信用代码的企业已登记。"


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


class NodeExists(DomainError):
    """Facts: node."""

    code = "node_exists"
    en = "The plant has a node {node} with other properties already."
    zh = "该企业已有节点 {node}，且属性不同。"


@storage.indexed
class PlantDocument(me.Document):
    id = me.StringField(primary_key=True)
    uscc = me.StringField(required=True)
    name = me.StringField(required=True)
    sector = me.StringField(required=True)
    region = me.StringField(required=True)
    created_at = me.DateTimeField(required=True)

    meta = {
        "collection": "plants",
        "auto_create_index": False,
        "indexes": [{"fields": ["uscc"], "unique": True}],
    }


@storage.indexed
class NodeDocument(me.Document):
    id = me.StringField(primary_key=True)
    plant = me.StringField(required=True)

    meta = {"collection": "plant_nodes", "auto_create_index": False, "indexes": ["plant"]}


@storage.indexed
class MeterDocument(me.Document):
    id = me.StringField(primary_key=True)
    plant = me.StringField(required=True)

    meta = {"collection": "meters", "auto_create_index": False, "indexes": ["plant"]}


@storage.indexed
class FigureDocument(me.Document):
    """Figures of a month; a correction is the next revision, the old one stays."""

    plant = me.StringField(required=True)
    month = me.StringField(required=True)
    revision = me.IntField(required=True)

    meta = {
        "collection": "plant_figures",
        "auto_create_index": False,
        "indexes": [{"fields": ["plant", "month", "revision"], "unique": True}],
    }


@storage.indexed
class BenchmarkDocument(me.Document):
    """The averages of a sector and year; a correction is the next version."""

    sector = me.StringField(required=True)
    year = me.IntField(required=True)
    version = me.IntField(required=True)

    meta = {
        "collection": "benchmarks",
        "auto_create_index": False,
        "indexes": [{"fields": ["sector", "year", "version"], "unique": True}],
    }


@dataclass(frozen=True, slots=True)
class Plant:
    """A plant; `sector` is a profile's name or a GB/T 4754 code, `region` that of its factors."""

    id: str
    name: str
    uscc: str
    sector: str
    created_at: datetime
    region: str = REGION


@dataclass(frozen=True, slots=True)
class Node:
    """A workshop, line or piece of equipment, and what stopping it means.

    Once stopped it stands for `minimum_stop_minutes` at least. A node whose `value_fen_per_kwh` was
    not told has that of the nearest node above it; 0 is told.
    """

    plant: str
    node: str
    kind: NodeKind
    name: str = ""
    parent: str | None = None
    must_run: bool = False
    flexible: bool = False
    minimum_stop_minutes: int = 0
    restart_cost_fen: int = 0
    value_fen_per_kwh: int | None = None


# The fields of a node that say what stopping it means; the others never change.
STOPPING = (
    "must_run",
    "flexible",
    "minimum_stop_minutes",
    "restart_cost_fen",
    "value_fen_per_kwh",
)


@dataclass(frozen=True, slots=True)
class Changed:
    """A node after a change; `number` counts the changes of the node."""

    node: Node
    number: int
    before: dict[str, Any]
    after: dict[str, Any]


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


@dataclass(frozen=True, slots=True)
class Figures:
    """What a plant made and paid in a month; None was not reported. Money may be negative."""

    plant: str
    month: str
    revision: int
    output: Decimal | None
    output_unit: str | None
    added_value_fen: int | None
    tax_fen: int | None
    recorded_at: datetime


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Average intensities of a sector and year, by indicator (product, added_value, tax).

    In grams of CO2e per unit of the profile's denominator, as decimals.
    """

    sector: str
    year: int
    version: int
    intensities: Mapping[str, Decimal]
    source: str


# --- plants -------------------------------------------------------------------------------------


def add_plant(
    name: str, uscc: str, sector: str, *, region: str = REGION, plant_id: str | None = None
) -> Plant:
    """Register a plant. Raises `ValidationFailed` for a bad USCC, `PlantExists`."""
    number = uscc_number.compact(uscc)
    if not uscc_number.is_valid(number):
        raise ValidationFailed(
            "/uscc",
            "Not a valid unified social credit code.",
            "统一社会信用代码无效。",
        )
    plant = Plant(plant_id or new_id("plt"), name, number, sector, clock.now(), region)
    row = asdict(plant)
    try:
        _plants().insert_one({"_id": row.pop("id"), **row})
    except DuplicateKeyError:
        raise PlantExists() from None
    return plant


def get_plant(plant_id: str) -> Plant:
    """Raises `NotFound`."""
    found = _plants().find_one({"_id": plant_id})
    if found is None:
        raise NotFound
    return _plant(found)


def region_of(plant_id: str) -> str:
    """The region whose factors a plant's purchases have."""
    found = _plants().find_one({"_id": plant_id}, {"region": 1})
    return found["region"] if found else REGION


def plant_by_uscc(uscc: str) -> Plant | None:
    found = _plants().find_one({"uscc": uscc_number.compact(uscc)})
    return _plant(found) if found else None


def plants_after(after: str, limit: int) -> list[Plant]:
    """In the order of their ids, for walks over all of them."""
    found = _plants().find({"_id": {"$gt": after}}).sort("_id", 1).limit(limit)
    return [_plant(row) for row in found]


def everyone() -> Iterator[Plant]:
    """Every plant, in the order of their ids."""
    after = ""
    while batch := plants_after(after, WALK):
        yield from batch
        after = batch[-1].id


# --- nodes --------------------------------------------------------------------------------------


def add_node(node: Node) -> Node:
    """Add a node below one that is there. The same again changes nothing; raises `NodeExists`."""
    there = {one.node: one for one in nodes(node.plant)}
    if node.node in there:
        if there[node.node] != node:
            raise NodeExists(node=node.node)
        return node
    if node.parent is not None and node.parent not in there:
        raise ValidationFailed("/parent", "There is no such node.", "没有该节点。")
    if len(there) >= NODES_MAX or len(_above(node.node, node.parent, there)) >= DEPTH_MAX:
        raise ValidationFailed("/node", "Too many or too deep nodes.", "节点过多或层级过深。")
    row = asdict(node) | {"kind": node.kind.value}
    return _insert_same(_nodes(), f"{node.plant}/{node.node}", row, node, _node, NodeExists)


def nodes(plant_id: str) -> list[Node]:
    """All nodes of a plant, ordered by name."""
    return [_node(row) for row in _nodes().find({"plant": plant_id}).sort("_id", 1)]


def change_stopping(
    plant_id: str, node: str, terms: Mapping[str, Any], *, once: str | None = None
) -> Changed:
    """Change what stopping a node means; `terms` are fields of `STOPPING`.

    The change lies in the node's own document beside what was there before, so a request that names
    itself in `once` and comes again finds its change and makes no second one, unless another came
    in between. Raises `NotFound`, `AccountBusy`.
    """
    assert terms.keys() <= {*STOPPING}, terms
    identity = f"{plant_id}/{node}"
    for _ in range(CHANGE_ATTEMPTS_MAX):
        held = _nodes().find_one({"_id": identity})
        if held is None:
            raise NotFound
        last = held.get("change")
        if last and once is not None and last["once"] == once:
            return Changed(_node(held), last["number"], last["before"], last["after"])
        before = {name: getattr(_node(held), name) for name in STOPPING}
        after = before | dict(terms)
        number = last["number"] + 1 if last else 1
        change = {"number": number, "once": once, "before": before, "after": after}
        written = _nodes().update_one(
            {"_id": identity, "change.number": last["number"] if last else None},
            {"$set": {**after, "change": change}},
        )
        if written.matched_count:
            return Changed(_node(held | after), number, before, after)
    raise AccountBusy(retry_after=1)


def below(tree: Iterable[Node], node: str) -> frozenset[str]:
    """A node and everything under it."""
    children: dict[str | None, list[str]] = {}
    for one in tree:
        children.setdefault(one.parent, []).append(one.node)
    found, open_ = set[str](), [node]
    while open_:
        here = open_.pop()
        found.add(here)
        open_ += [child for child in children.get(here, ()) if child not in found]
    return frozenset(found)


def _above(name: str, parent: str | None, there: Mapping[str, Any]) -> list[str]:
    """The chain of parents; stops before it would meet itself."""
    chain: list[str] = []
    while parent is not None and parent != name and parent not in chain:
        chain.append(parent)
        parent = there[parent].parent if parent in there else None
    return chain


# --- meters -------------------------------------------------------------------------------------


def add_meter(meter: Meter) -> Meter:
    """Add a meter. The same again changes nothing; another under its name: `MeterExists`."""
    there = {one.meter: one for one in meters(meter.plant)}
    if meter.meter in there:
        if there[meter.meter] != meter:
            raise MeterExists(meter=meter.meter)
        return there[meter.meter]
    _check_meter(meter, there)
    row = meter_row(meter)
    identity = f"{meter.plant}/{meter.meter}"
    return _insert_same(_meters(), identity, row, meter, _meter, MeterExists)


def _check_meter(meter: Meter, there: Mapping[str, Meter]) -> None:
    if meter.unit not in carriers.CARRIERS.get(meter.carrier, ()):
        raise ValidationFailed(
            "/unit", "The carrier is not measured in this unit.", "该能源品种不使用此单位。"
        )
    if meter.node is not None and all(one.node != meter.node for one in nodes(meter.plant)):
        raise ValidationFailed("/node", "There is no such node.", "没有该节点。")
    if meter.parent is not None:
        parent = there.get(meter.parent)
        if parent is None or (parent.carrier, parent.flow) != (meter.carrier, meter.flow):
            raise ValidationFailed(
                "/parent",
                "The parent is no meter of the same carrier and flow.",
                "上级表计不存在，或能源品种、流向不同。",
            )
    if len(there) >= METERS_MAX or len(_above(meter.meter, meter.parent, there)) >= DEPTH_MAX:
        raise ValidationFailed("/meter", "Too many or too deep meters.", "表计过多或层级过深。")


def meters(plant_id: str) -> list[Meter]:
    """All meters of a plant, ordered by name."""
    return [_meter(row) for row in _meters().find({"plant": plant_id}).sort("_id", 1)]


def named_meters(plant_id: str, names: Iterable[str]) -> list[Meter]:
    """Those of these meters that the plant has."""
    wanted = {"_id": {"$in": [f"{plant_id}/{name}" for name in names]}}
    return [_meter(row) for row in _meters().find(wanted)]


def get_meter(plant_id: str, name: str) -> Meter:
    """Raises `NotFound`."""
    found = _meters().find_one({"_id": f"{plant_id}/{name}"})
    if found is None:
        raise NotFound
    return _meter(found)


def roots(measured: Sequence[Meter]) -> list[Meter]:
    """The meters among these that no other of them measures too: what may be summed."""
    names = {one.meter: one for one in measured}
    return [
        one for one in measured if names.keys().isdisjoint(_above(one.meter, one.parent, names))
    ]


def change_meter(plant_id: str, name: str, change: MeterChange) -> Meter:
    """Record that a register was swapped or reset; the same again changes nothing.

    Raises `NotFound`, `ChangeExists` when something else is known of that instant.
    """
    row = {"at": change.at, "old_last": change.old_last, "new_first": change.new_first}
    free = {"_id": f"{plant_id}/{name}", "changes.at": {"$ne": change.at}}
    room = {f"changes.{CHANGES_MAX - 1}": {"$exists": False}}
    done = _meters().update_one(free | room, {"$push": {"changes": row}})
    meter = get_meter(plant_id, name)
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
        _meters().bulk_write(changes, ordered=False)


# --- figures and benchmarks ---------------------------------------------------------------------


def add_figures(
    plant_id: str,
    month: str,
    *,
    output: Decimal | None,
    output_unit: str | None,
    added_value_fen: int | None,
    tax_fen: int | None,
) -> Figures:
    """The figures of a month as its next revision; the same again is the revision it was."""
    told = {
        "output": None if output is None else str(output),
        "output_unit": output_unit,
        "added_value_fen": added_value_fen,
        "tax_fen": tax_fen,
    }
    return _figures_of(_next(_figures(), {"plant": plant_id, "month": month}, "revision", told))


def figures(plant_id: str, first_month: str, last_month: str) -> list[Figures]:
    """The newest revision of each month reported, oldest month first."""
    months = {"$gte": first_month, "$lte": last_month}
    found = _figures().find({"plant": plant_id, "month": months})
    newest = {row["month"]: row for row in found.sort([("month", 1), ("revision", 1)])}
    return [_figures_of(row) for row in newest.values()]


def add_benchmark(
    sector: str, year: int, intensities: Mapping[str, Decimal], source: str
) -> Benchmark:
    """The averages of a sector and year as the next version."""
    told = {"intensities": {name: str(one) for name, one in intensities.items()}, "source": source}
    return _benchmark(_next(_benchmarks(), {"sector": sector, "year": year}, "version", told))


def benchmark(sector: str, year: int) -> Benchmark | None:
    """The newest version for a sector and year."""
    wanted = {"sector": sector, "year": year}
    found = _benchmarks().find_one(wanted, sort=[("version", -1)])
    return _benchmark(found) if found else None


def benchmark_versions(
    sector: str, year: int, *, before: int | None, limit: int
) -> list[Benchmark]:
    """The versions of a sector and year, newest first, below a version."""
    wanted: storage.Doc = {"sector": sector, "year": year}
    if before is not None:
        wanted["version"] = {"$lt": before}
    return [_benchmark(row) for row in _benchmarks().find(wanted).sort("version", -1).limit(limit)]


# --- rows ---------------------------------------------------------------------------------------


def _next(
    collection: "Collection[storage.Doc]", whose: storage.Doc, counter: str, told: storage.Doc
) -> storage.Doc:
    """Append the next of a row of versions, unless the newest says the same."""
    while True:
        newest = collection.find_one(whose, sort=[(counter, -1)])
        if newest is not None and {name: newest[name] for name in told} == told:
            return newest
        row = {
            **whose,
            counter: newest[counter] + 1 if newest else 1,
            **told,
            "recorded_at": clock.now(),
        }
        try:
            collection.insert_one(row)
        except DuplicateKeyError:
            continue  # Another took this number; each round one writer gets on.
        return row


def _insert_same(
    collection: "Collection[storage.Doc]",
    identity: str,
    row: storage.Doc,
    wanted: Any,
    read: Any,
    exists: type[DomainError],
) -> Any:
    """Insert once; whoever lost the race against the same content has what it asked for."""
    try:
        collection.insert_one({"_id": identity, **row})
    except DuplicateKeyError:
        found = collection.find_one({"_id": identity})
        assert found is not None, "nodes and meters are never deleted"
        if read(found) != wanted:
            name = identity.rpartition("/")[2]
            raise exists(meter=name, node=name) from None
    return wanted


def _plant(row: storage.Doc) -> Plant:
    names = ("name", "uscc", "sector", "created_at", "region")
    return Plant(id=row["_id"], **{name: row[name] for name in names})


def _node(row: storage.Doc) -> Node:
    fields = {name: row[name] for name in Node.__slots__ if name in row}
    return Node(**fields | {"kind": NodeKind(row["kind"])})


def meter_row(meter: Meter) -> storage.Doc:
    """A meter as it is stored, without its id."""
    return {
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


def _figures_of(row: storage.Doc) -> Figures:
    output = None if row["output"] is None else Decimal(row["output"])
    names = ("plant", "month", "revision", "output_unit", "added_value_fen", "tax_fen")
    return Figures(
        output=output, recorded_at=row["recorded_at"], **{name: row[name] for name in names}
    )


def _benchmark(row: storage.Doc) -> Benchmark:
    intensities = {name: Decimal(one) for name, one in row["intensities"].items()}
    return Benchmark(row["sector"], row["year"], row["version"], intensities, row["source"])


def _plants() -> "Collection[storage.Doc]":
    return storage.strong(PlantDocument._get_collection())


def _nodes() -> "Collection[storage.Doc]":
    return storage.strong(NodeDocument._get_collection())


def _meters() -> "Collection[storage.Doc]":
    return storage.strong(MeterDocument._get_collection())


def _figures() -> "Collection[storage.Doc]":
    return storage.strong(FigureDocument._get_collection())


def _benchmarks() -> "Collection[storage.Doc]":
    return storage.strong(BenchmarkDocument._get_collection())
