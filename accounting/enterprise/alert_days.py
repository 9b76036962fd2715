"""What alerts look at of a plant's day: its series, and when each meter was last heard.

A series is a carrier at a node, or of the whole plant: the sum of the meters there that no other of
them covers (`boundary`). Where some of them measure the whole load, those that measure what is
bought are left out, or own generation would hide what a line uses. A day of a plant is one document
made from the validated layer alone, so making it twice makes it the same; `stamp` grows with that
layer, and an older document never replaces a newer one.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import storage
from accounting.enterprise import (
    alert_rules,
    meterdays,
    meters,
    plants,
    trees,
    validating,
    workdays,
)
from accounting.enterprise.alert_rules import DayFigures, Rule, Severity, SlotVerdict
from accounting.enterprise.boundary import highest
from accounting.enterprise.carbon import ELECTRICITY
from accounting.enterprise.meterdays import MeterDay
from accounting.enterprise.meters import Flow, Meter
from accounting.enterprise.plants import Node
from accounting.enterprise.slots import SLOTS, Row, start_of_slot

# A meter is in service while it was heard within so many days; only such can leave gaps in a sum.
IN_SERVICE_DAYS = 7


@storage.indexed
class AlertDayDocument(me.Document):
    id = me.StringField(primary_key=True)
    plant = me.StringField(required=True)
    day = me.StringField(required=True)
    stamp = me.IntField(required=True)

    meta = {"collection": "alert_days", "auto_create_index": False}


@storage.indexed
class PlantLimitDocument(me.Document):
    """The limit of a node, or what a plant has contracted (its own row, without a node)."""

    id = me.StringField(primary_key=True)
    plant = me.StringField(required=True)

    meta = {"collection": "plant_limits", "auto_create_index": False, "indexes": ["plant"]}


@dataclass(frozen=True, slots=True)
class Series:
    """A carrier at a node (None: the plant). `schedule` has the slots in shifts by ISO weekday."""

    node: str | None
    carrier: str
    meters: tuple[str, ...]
    schedule: Mapping[int, frozenset[int]]

    @property
    def key(self) -> str:
        return f"{self.node or ''}/{self.carrier}"


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of a meter on a day. `until_slot` is the end of its last measured slot, or 0."""

    until_slot: int
    actual: int
    estimated: int


@dataclass(frozen=True, slots=True)
class PlantDay:
    """A day of a plant; figures by the key of the series, what limits say by rule and key."""

    plant: str
    day: date
    stamp: int
    figures: Mapping[str, DayFigures]
    limits: Mapping[tuple[Rule, str], SlotVerdict]
    meters: Mapping[str, Heard]

    @property
    def heard(self) -> frozenset[str]:
        return frozenset(name for name, one in self.meters.items() if one.until_slot)


@dataclass(frozen=True, slots=True)
class Layout:
    """What is known of a plant besides its readings. Limits in kW by node; None: contracted.

    `bought` are the meters whose sum is the power that is bought.
    """

    plant: str
    bought: tuple[str, ...]
    series: tuple[Series, ...]
    limits: Mapping[str | None, Decimal]


def layout_of(plant_id: str) -> Layout:
    measured, tree = meters.of_plant(plant_id), plants.nodes(plant_id)
    power = [one for one in measured if (one.carrier, one.flow) == (ELECTRICITY, Flow.IMPORT)]
    bought = tuple(one.meter for one in highest(power, tree))
    return Layout(plant_id, bought, tuple(series_of(measured, tree)), limits(plant_id))


def series_of(measured: Sequence[Meter], tree: Sequence[Node]) -> list[Series]:
    """The series of a plant: the whole first, then its nodes."""
    parents = plants.parents(tree)
    nodes: list[tuple[str | None, list[Meter]]] = [(None, list(measured))]
    for node in tree:
        under = trees.below(node.node, parents)
        nodes.append((node.node, [one for one in measured if one.node in under]))
    made = []
    for name, there in nodes:
        for carrier in sorted({one.carrier for one in there}):
            of_carrier = [one for one in there if one.carrier == carrier]
            load = [one for one in of_carrier if one.flow is Flow.LOAD]
            using = load or [one for one in of_carrier if one.flow is Flow.IMPORT]
            summed = highest(using, tree)
            if summed:
                names = tuple(one.meter for one in summed)
                made.append(Series(name, carrier, names, _schedule(summed)))
    return made


def _schedule(measured: Sequence[Meter]) -> dict[int, frozenset[int]]:
    slots: dict[int, frozenset[int]] = defaultdict(frozenset)
    for meter in measured:
        for weekday, those in validating.terms_of(meter).shifts.items():
            slots[weekday] |= those
    return dict(slots)


# --- limits -------------------------------------------------------------------------------------


def set_limit(plant_id: str, node: str | None, kw: Decimal | None) -> Decimal | None:
    """Set the limit of a node, or the contracted demand of the plant; None takes it away.

    Returns what it was.
    """
    identity = f"{plant_id}/{node or ''}"
    if kw is None:
        before = _limits().find_one_and_delete({"_id": identity})
    else:
        row = {"plant": plant_id, "node": node, "kw": str(kw)}
        before = _limits().find_one_and_update({"_id": identity}, {"$set": row}, upsert=True)
    return Decimal(before["kw"]) if before else None


def limits(plant_id: str) -> dict[str | None, Decimal]:
    return {row["node"]: Decimal(row["kw"]) for row in _limits().find({"plant": plant_id})}


# --- days ---------------------------------------------------------------------------------------


def make(layout: Layout, day: date, before: Mapping[date, PlantDay]) -> PlantDay:
    """Make a plant's day from its validated layer and keep it, unless a newer one is there.

    `before` are the days before it, as far as they are known. Returns the one that is kept.
    """
    validated = {one.meter: one for one in meterdays.of_plant(layout.plant, day)}
    made = figure(layout, day, validated, before)
    row = _row(made)
    guard = {"_id": row["_id"], "stamp": {"$lte": made.stamp}}
    try:
        _days().update_one(guard, {"$set": row}, upsert=True)
    except DuplicateKeyError:
        return between(layout.plant, day, day)[day]
    return made


def figure(
    layout: Layout, day: date, validated: Mapping[str, MeterDay], before: Mapping[date, PlantDay]
) -> PlantDay:
    """A plant's day, from the days of its meters."""
    recently = {
        name
        for on, one in before.items()
        if 0 < (day - on).days <= IN_SERVICE_DAYS
        for name in one.heard
    }
    heard = {name: _heard(one) for name, one in validated.items()}
    in_service = recently | {name for name, one in heard.items() if one.until_slot}
    last = max((on for on in before if on < day), default=None)
    yesterday = before[last] if last is not None and (day - last).days == 1 else None
    found: dict[tuple[Rule, str], SlotVerdict] = {}
    figures = {}
    for series in layout.series:
        values, quality = _sum(series.meters, validated, in_service)
        figures[series.key] = _figures(day, series, values, quality)
        kw = layout.limits.get(series.node) if series.node else None
        if kw is not None and series.carrier == ELECTRICITY:
            levels = [(alert_rules.slot_limit(kw), Severity.WARNING)]
            _judge(found, Rule.LIMIT, series.key, values, quality, levels, yesterday)
    contracted = layout.limits.get(None)
    if contracted is not None:
        limit = alert_rules.slot_limit(contracted)
        levels = [(limit * 9 / 10, Severity.WARNING), (limit, Severity.CRITICAL)]
        values, quality = _sum(layout.bought, validated, in_service)
        _judge(found, Rule.DEMAND, f"/{ELECTRICITY}", values, quality, levels, yesterday)
    stamp = sum(one.validation for one in validated.values())
    return PlantDay(layout.plant, day, stamp, figures, found, heard)


def _judge(
    found: dict[tuple[Rule, str], SlotVerdict],
    rule: Rule,
    key: str,
    values: Row,
    quality: str,
    levels: Sequence[tuple[Any, Severity]],
    yesterday: PlantDay | None,
) -> None:
    carried = yesterday.limits.get((rule, key)) if yesterday else None
    hot = carried is not None and carried.hot
    found[rule, key] = alert_rules.over_limit(rule, values, quality, levels, hot)


def _sum(
    names: Sequence[str], validated: Mapping[str, MeterDay], in_service: Set[str]
) -> tuple[Row, str]:
    """The slots of several meters together; as good as the worst of them, missing where one is."""
    days = [
        validated.get(name) or MeterDay("", name, date.min) for name in names if name in in_service
    ]
    if not days:
        return (None,) * SLOTS, "M" * SLOTS
    values = tuple(
        None if None in slot else sum(one for one in slot if one is not None)
        for slot in zip(*(one.values for one in days), strict=True)
    )
    letters = zip(*(one.quality for one in days), strict=True)
    quality = "".join(
        "M" if value is None else "E" if "E" in slot else "A"
        for value, slot in zip(values, letters, strict=True)
    )
    return values, quality


def _figures(day: date, series: Series, values: Row, quality: str) -> DayFigures:
    # A holiday has the shifts and the baseline of a Sunday.
    weekday = workdays.kind_of(day)
    shifts = series.schedule.get(weekday, frozenset())
    calendar = any(series.schedule.values())

    def total(slots: Set[int] | range) -> int:
        return sum(values[slot] or 0 for slot in slots)

    rest = frozenset(range(SLOTS)) - shifts if calendar else alert_rules.NIGHT_SLOTS
    actual = quality.count("A")
    return DayFigures(
        day=day,
        kind=alert_rules.kinds_of(series.schedule)[weekday],
        total=total(range(SLOTS)),
        shift=total(shifts) if calendar else None,
        rest=total(rest),
        rest_slots=len(rest),
        judged="M" not in quality and actual >= alert_rules.ACTUAL_MIN * SLOTS,
    )


def _heard(day: MeterDay) -> Heard:
    measured = [slot for slot, letter in enumerate(day.quality) if letter in "AD"]
    return Heard(
        until_slot=measured[-1] + 1 if measured else 0,
        actual=len(measured),
        estimated=day.quality.count("E"),
    )


def heard_between(plant_id: str, first: date, last: date) -> dict[str, datetime]:
    """The end of the last slot each meter was heard in, of those that were heard at all."""
    heard: dict[str, datetime] = {}
    for row in _days().find(_ids(plant_id, first, last), {"day": 1, "meters": 1}).sort("_id", 1):
        for name, until_slot, *_ in row["meters"]:
            if until_slot:
                heard[name] = start_of_slot(date.fromisoformat(row["day"]), until_slot)
    return heard


def between(plant_id: str, first: date, last: date) -> dict[date, PlantDay]:
    """The days of a plant that were made, in order."""
    found = _days().find(_ids(plant_id, first, last)).sort("_id", 1)
    return {date.fromisoformat(row["day"]): _day(row) for row in found}


def stamps(plant_id: str, days: Sequence[date]) -> dict[date, int]:
    """How new the days are that are kept."""
    ids = [f"{plant_id}/{day.isoformat()}" for day in days]
    found = _days().find({"_id": {"$in": ids}}, {"day": 1, "stamp": 1})
    return {date.fromisoformat(row["day"]): row["stamp"] for row in found}


def _ids(plant_id: str, first: date, last: date) -> storage.Doc:
    return {
        "_id": {"$gte": f"{plant_id}/{first.isoformat()}", "$lte": f"{plant_id}/{last.isoformat()}"}
    }


def _row(day: PlantDay) -> storage.Doc:
    return {
        "_id": f"{day.plant}/{day.day.isoformat()}",
        "plant": day.plant,
        "day": day.day.isoformat(),
        "stamp": day.stamp,
        "figures": [
            [key, one.kind, one.total, one.shift, one.rest, one.rest_slots, one.judged]
            for key, one in day.figures.items()
        ],
        "limits": [
            [rule, key, one.severity, one.first, one.last, one.normal_after, one.hot, one.facts]
            for (rule, key), one in day.limits.items()
        ],
        "meters": [
            [name, one.until_slot, one.actual, one.estimated] for name, one in day.meters.items()
        ],
    }


def _day(row: storage.Doc) -> PlantDay:
    on = date.fromisoformat(row["day"])
    return PlantDay(
        plant=row["plant"],
        day=on,
        stamp=row["stamp"],
        figures={key: DayFigures(on, *rest) for key, *rest in row["figures"]},
        limits={
            (Rule(rule), key): SlotVerdict(
                Rule(rule), Severity(severity) if severity else None, *rest
            )
            for rule, key, severity, *rest in row["limits"]
        },
        meters={name: Heard(*rest) for name, *rest in row["meters"]},
    )


def _days() -> "Collection[storage.Doc]":
    return storage.strong(AlertDayDocument._get_collection())


def _limits() -> "Collection[storage.Doc]":
    return storage.strong(PlantLimitDocument._get_collection())
