"""The demo plant: two lines, a compressor, an office, solar power on the roof, since last month.

What each quarter hour used follows from its meter and time alone, so a seeding that was killed and
runs again sends the same. Yesterday the first line took a quarter more: an alert to look at.
"""

import random
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from accounting import clock
from accounting.enterprise import alert_days, figures, meters, plants, readings
from accounting.enterprise.meters import Flow, Kind, Meter
from accounting.enterprise.plants import Node, NodeKind
from accounting.enterprise.readings import Reading
from accounting.enterprise.slots import SLOT, SLOTS

HIGH = Decimal("1.25")
CONTRACTED_KW = Decimal(1_200)
# Ten in the evening to six: one shift is off.
SHIFT = range(24, 88)


class Load(NamedTuple):
    """What hangs on a node, in kW: in the shift, outside it, and at most."""

    node: Node
    busy_kw: int
    idle_kw: int
    rated_kw: int


def loads(plant_id: str) -> tuple[Load, ...]:
    shop = "melt"
    return (
        Load(
            Node(plant_id, "line-1", NodeKind.LINE, "一号线", shop, value_fen_per_kwh=420),
            440,
            60,
            600,
        ),
        Load(
            Node(
                plant_id,
                "line-2",
                NodeKind.LINE,
                "二号线",
                shop,
                minimum_stop_minutes=60,
                restart_cost_fen=80_000,
                value_fen_per_kwh=260,
            ),
            300,
            40,
            400,
        ),
        Load(
            Node(plant_id, "compressor", NodeKind.EQUIPMENT, "空压站", shop, flexible=True),
            140,
            90,
            200,
        ),
        Load(Node(plant_id, "office", NodeKind.WORKSHOP, "办公楼", must_run=True), 35, 8, 60),
    )


ROOF_KW = 600
# Invented averages of the sector, in grams per tonne and per fen, to be held against.
AVERAGES = {
    "product": Decimal(340_000),
    "added_value": Decimal("1.1"),
    "tax": Decimal(4),
}


def seed(plant_id: str) -> None:
    """Nodes, meters, a month's figures, and readings since it began. Safe to repeat."""
    plants.add_node(Node(plant_id, "melt", NodeKind.WORKSHOP, "熔炼车间"))
    there = loads(plant_id)
    for one in there:
        plants.add_node(one.node)
        meters.add(_meter(plant_id, one.node.node, one.rated_kw, Flow.LOAD))
    plants.add_node(Node(plant_id, "roof", NodeKind.EQUIPMENT, "屋顶光伏"))
    meters.add(_meter(plant_id, "roof", ROOF_KW, Flow.GENERATION))
    now = clock.now()
    today = clock.city_day(now)
    month = clock.add_months(clock.month_of(today), -1)
    _tell(plant_id, month)
    days = (today - clock.first_day(month)).days
    rows = [
        row
        for number in range(days, -1, -1)
        for row in _day(there, today - timedelta(days=number), now)
    ]
    for place in range(0, len(rows), readings.ROWS_MAX):
        readings.take(plant_id, rows[place : place + readings.ROWS_MAX])


def _tell(plant_id: str, month: str) -> None:
    """What the plant made and paid last month, what it contracted, and what others come to."""
    alert_days.set_limit(plant_id, None, CONTRACTED_KW)
    figures.add(
        plant_id,
        month,
        output=Decimal(560),
        output_unit="t",
        added_value_fen=210_000_000,
        tax_fen=31_000_000,
    )
    sector = plants.get_plant(plant_id).sector
    figures.add_benchmark(sector, int(month[:4]), AVERAGES, "demo")


def _meter(plant_id: str, node: str, rated_kw: int, flow: Flow) -> Meter:
    name, rated = f"{node}-kwh", Decimal(rated_kw)
    return Meter(
        plant_id,
        name,
        "electricity",
        Kind.INTERVAL,
        "kWh",
        flow=flow,
        node=node,
        rated_kw=rated,
    )


def _day(there: tuple[Load, ...], on: date, now: datetime) -> list[Reading]:
    rows: list[Reading] = []
    over = min(SLOTS, max(0, (now - clock.start_of(on)) // SLOT))
    for one in there:
        chance = random.Random(f"{one.node.node}/{on}")
        weekend = on.isoweekday() == 7
        yesterday = on == clock.city_day(now) - timedelta(days=1)
        more = HIGH if yesterday and one.node.node == "line-1" else 1
        for slot in range(over):
            kw = one.busy_kw if slot in SHIFT and not weekend else one.idle_kw
            rows.append(_reading(one.node.node, on, slot, more * kw * _noise(chance)))
    chance = random.Random(f"roof/{on}")
    sky = Decimal(chance.randint(35, 95)) / 100
    for slot in range(over):
        # A parabola from six to six.
        height = max(Decimal(0), 1 - ((slot - 48) / Decimal(24)) ** 2)
        rows.append(_reading("roof", on, slot, ROOF_KW * sky * height * _noise(chance)))
    return rows


def _noise(chance: random.Random) -> Decimal:
    return Decimal(chance.randint(93, 107)) / 100


def _reading(node: str, on: date, slot: int, kw: Decimal) -> Reading:
    kwh = (kw / 4).quantize(Decimal("0.01"))
    return Reading(f"{node}-kwh", clock.start_of(on) + slot * SLOT, kwh, Kind.INTERVAL)
