"""Energy and carbon of plants: worked by hand, whole over nodes and periods, in any order."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from callers import Caller, machine, resident, said
from faults.crew import KILLED, Crew, Death
from flask import Flask

from accounting import clock, factors, storage
from accounting.clients import Kind as ClientKind
from accounting.enterprise import (
    carbon,
    inventory,
    inventory_days,
    meterdays,
    meters,
    plants,
    readings,
    validating,
)
from accounting.enterprise.boundary import Boundary
from accounting.enterprise.inventory import By, Inventory
from accounting.enterprise.meterdays import Mark
from accounting.enterprise.meters import Flow, Kind, Meter
from accounting.enterprise.plants import Node, NodeKind
from accounting.enterprise.readings import Reading
from accounting.enterprise.slots import SLOT, SLOTS
from accounting.errors import ValidationFailed
from accounting.factors import MissingFactor, Registry
from accounting.quantities import floor_mg
from api.demo import plant as demo_plant
from footprint import methodology

NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)
# A Thursday of 2023, the last year whose own factor of power in Zhejiang is known: 0.4974.
DAY = date(2023, 6, 1)


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.stand(NOON):
        yield


def put(name: str, plant: str = "p", carrier: str = "electricity", **changes: Any) -> Meter:
    unit = changes.pop("unit", "kWh")
    return meters.add(Meter(plant, name, carrier, Kind.INTERVAL, unit, **changes))


def at(slot: int, day: date = DAY) -> datetime:
    return clock.start_of(day) + slot * SLOT


def rows(name: str, value: Any, slots: range = range(SLOTS), day: date = DAY) -> list[Reading]:
    return [Reading(name, at(slot, day), Decimal(value), Kind.INTERVAL) for slot in slots]


def send(name: str, value: Any, *, plant: str = "p", **where: Any) -> None:
    readings.take(plant, rows(name, value, **where))


def emitted(node: str | None = None, by: By = By.DAY, plant: str = "p", **span: date) -> Inventory:
    return inventory.for_period(plant, span.get("first", DAY), span.get("last", DAY), by, node)


def kilograms(found: Inventory) -> Decimal:
    return Decimal(found.total.co2e_mg) / 1_000_000


# --- by hand ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("carrier", "unit", "multiplier", "used", "co2e_kg", "tce_kg"),
    [
        # 1,000 kWh x 0.4974 kg; x 0.1229 kgce.
        ("electricity", "kWh", 1, 1_000, "497.4", "122.9"),
        # 1 t x 1.9003 t; x 0.7143 tce.
        ("raw_coal", "t", 1, 1, "1900.3", "714.3"),
        ("diesel", "t", 1, 1, "3095.9", "1457.1"),
        # 1,000 Nm3 x 2.1622 kg; x 1.3300 kgce.
        ("natural_gas", "Nm3", 1, 1_000, "2162.2", "1330"),
        # Steam metered in tonnes, 2,800 kJ/kg: 1 t holds 2.8 GJ. 2.8 GJ x 110 kg = 308 kg;
        # 2,800 MJ x 0.03412 kgce = 95.536 kgce.
        ("heat", "GJ", "2.8", 1, "308", "95.536"),
    ],
)
@pytest.mark.usefixtures("app")
def test_a_carrier_is_worth_its_published_factor(
    carrier: str, unit: str, multiplier: Any, used: int, co2e_kg: str, tce_kg: str
) -> None:
    put("m", carrier=carrier, unit=unit, multiplier=Decimal(multiplier))
    send("m", used, slots=range(1))
    found = emitted()
    assert kilograms(found) == Decimal(co2e_kg)
    assert Decimal(found.total.tce_mg) / 1_000_000 == Decimal(tce_kg)
    assert found.total.scope_mg(carbon.scope_of(carrier)) == found.total.co2e_mg
    assert not found.provisional


@pytest.mark.usefixtures("app")
def test_solar_power_is_deducted_once_however_it_is_metered() -> None:
    """100 kWh used; 40 made, of which 10 are given away: 70 drawn. (70 - 10) x 0.4974 = 29.844."""
    for plant, metered, drawn in (("in", Flow.IMPORT, 70), ("all", Flow.LOAD, 100)):
        put("main", plant, flow=metered)
        put("pv", plant, flow=Flow.GENERATION)
        put("out", plant, flow=Flow.EXPORT)
        for name, kwh in (("main", drawn), ("pv", 40), ("out", 10)):
            send(name, kwh, plant=plant, slots=range(40, 41))
        assert kilograms(emitted(plant=plant)) == Decimal("29.844")
    # Both at one plant: what comes in decides, the rest is there for the nodes.
    put("used", "in", flow=Flow.LOAD)
    send("used", 100, plant="in", slots=range(40, 41))
    assert kilograms(emitted(plant="in")) == Decimal("29.844")


@pytest.mark.usefixtures("app")
def test_an_estimate_is_no_evidence_of_what_was_generated() -> None:
    put("main", flow=Flow.LOAD)
    put("pv", flow=Flow.GENERATION)
    send("main", 10, slots=range(40, 43))
    send("pv", 4, slots=range(40, 43, 2))
    # 30 used; 4 + 4 measured, the 4 between them are an estimate: 22 x 0.4974 = 10.9428.
    assert kilograms(emitted()) == Decimal("10.9428")
    send("pv", 4, slots=range(41, 42))
    # Now it was measured: 18 x 0.4974 = 8.9532.
    assert kilograms(emitted()) == Decimal("8.9532")


@pytest.mark.usefixtures("app")
def test_the_same_power_is_the_same_carbon_at_home_and_in_a_plant() -> None:
    kwh = Decimal("3456.789")
    put("m")
    send("m", kwh, slots=range(1))
    home = methodology.in_force(NOON.date()).behaviours["electricity_saving"]
    assert emitted().total.co2e_mg == floor_mg(kwh, home.mg_num, home.mg_den) == 1_719_406_848
    put("g", "gas", "natural_gas", unit="Nm3")
    readings.take("gas", [Reading("g", at(0), Decimal("12.345"), Kind.INTERVAL)])
    home = methodology.in_force(NOON.date()).behaviours["gas_saving"]
    # 12.345 x 2.1622 kg
    found = emitted(plant="gas").total.co2e_mg
    assert found == floor_mg(Decimal("12.345"), home.mg_num, home.mg_den) == 26_692_359


# --- what is known of it ------------------------------------------------------------------------


@pytest.mark.usefixtures("app")
def test_what_is_missing_is_missing_and_never_zero() -> None:
    put("m")
    nothing = emitted(by=By.HOUR)
    assert not nothing.total.known
    assert (nothing.total.expected, nothing.total.completeness) == (96, 0)
    send("m", 1, slots=range(8))
    send("m", 1, slots=range(10, 12))
    found = emitted(by=By.HOUR)
    # Two hours of eight and two slots measured, two between them estimated, the rest missing.
    assert (found.total.actual, found.total.estimated, found.total.expected) == (10, 2, 96)
    assert (found.total.completeness, found.total.estimated_share) == (
        Decimal("0.1041"),
        Decimal("0.0208"),
    )
    known = [total.known for _, total in found.series]
    assert known == [True] * 3 + [False] * 21
    assert found.series[0][0] == "2023-05-31T16:00:00.000Z"


@pytest.mark.usefixtures("app")
def test_water_is_metered_and_is_neither_energy_nor_carbon() -> None:
    put("w", carrier="water", unit="m3")
    send("w", 3)
    found = emitted(by=By.HOUR)
    assert (found.total.known, found.total.expected, found.factor_set) == (False, 0, "")


@pytest.mark.usefixtures("app")
def test_a_plant_that_cannot_be_counted_holds_up_no_other() -> None:
    for seconds, plant in enumerate(("bad", "good")):
        with clock.stand(NOON + timedelta(seconds=seconds)):
            put("m", plant)
            send("m", 1, plant=plant, slots=range(1))
            validating.catch_up(plant, DAY, DAY)
    storage.database()["meters"].delete_one({"_id": "bad/m"})
    # A sweep takes one day, and the bad plant's has waited longest: it makes way, and stays due.
    later = NOON + timedelta(days=1)
    assert [inventory_days.sweep(later, limit=1) for _ in range(3)] == [1, 1, 0]
    assert [*meterdays.touched(Mark.INVENTORY, later, 9)] == []
    again = later + meterdays.FAILED_WAIT
    assert [*meterdays.touched(Mark.INVENTORY, again, 9)] == ["bad"]


@pytest.mark.usefixtures("app")
def test_a_slot_that_is_not_over_is_not_missing_yet() -> None:
    put("m")
    today = NOON.date()
    # It is noon: 48 slots are over.
    readings.take("p", rows("m", 1, range(48), today))
    found = emitted(first=today, last=today)
    assert (found.total.actual, found.total.expected, found.total.completeness) == (48, 48, 1)
    # The newest factor stands in for 2026.
    assert found.provisional
    assert kilograms(found) == 48 * Decimal("0.4974")


@pytest.mark.usefixtures("app")
def test_a_meter_never_heard_is_missing_and_a_new_one_was_not_there_before() -> None:
    put("old")
    put("silent")
    send("old", 1)
    assert emitted().total.completeness == Decimal("0.5")
    for name in ("old", "silent"):
        send(name, 1, day=DAY + timedelta(days=1))
    found = emitted(last=DAY + timedelta(days=1)).total
    assert (found.expected, found.completeness) == (3 * SLOTS, 1)


@pytest.mark.usefixtures("app")
def test_a_missing_factor_is_an_error_that_names_it(app: Flask) -> None:
    plant = plants.add_plant("示范钢厂", "91330802MA2DH0000Y", "C3110")
    put("m", plant.id)
    send("m", 1, plant=plant.id, day=date(2020, 12, 31), slots=range(1))
    gateway = machine(app, ClientKind.PLANT, plant.id)
    path = f"/v1/plants/{plant.id}/emissions?from=2020-12-31&to=2020-12-31"
    answer = gateway.get(path, headers={"Accept-Language": "en"})
    assert said(answer) == (422, "missing_factor")
    assert "electricity in CN-ZJ on 2020-12-31" in answer.get_json()["detail"]
    # A day nothing is known of needs no factor.
    assert gateway.get(path.replace("12-31", "12-30")).get_json()["co2e_kg"] is None


# --- trees --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("app")
def test_a_meter_and_those_below_it_are_never_both_summed() -> None:
    plants.add_node(Node("p", "shop", NodeKind.WORKSHOP))
    plants.add_node(Node("p", "line", NodeKind.LINE, parent="shop"))
    plants.add_node(Node("p", "office", NodeKind.WORKSHOP))
    put("main")
    put("shop", node="shop")
    put("pump", node="shop", parent="shop")
    put("line", node="line")
    put("office", node="office")
    for name, kwh in (("main", 100), ("shop", 60), ("pump", 7), ("line", 50), ("office", 30)):
        send(name, kwh, slots=range(1))
    used = {
        node: emitted(node).total.by_carrier["electricity"].quantity // 1_000
        for node in (None, "shop", "line", "office")
    }
    assert used == {None: 100, "shop": 60, "line": 50, "office": 30}
    with pytest.raises(inventory.NotFound):
        emitted("nowhere")


@pytest.mark.usefixtures("app")
def test_before_the_main_meter_was_heard_the_others_count() -> None:
    plants.add_node(Node("p", "line", NodeKind.LINE))
    put("line", node="line")
    send("line", 5, slots=range(1))
    put("main")
    send("line", 5, slots=range(1), day=DAY + timedelta(days=1))
    send("main", 8, slots=range(1), day=DAY + timedelta(days=1))
    found = emitted(last=DAY + timedelta(days=1))
    sums = [total.by_carrier["electricity"].quantity for _, total in found.series]
    assert sums == [5_000, 8_000]


@pytest.mark.usefixtures("app")
def test_a_range_has_as_many_days_as_are_allowed_and_no_more() -> None:
    month = [DAY, DAY + timedelta(days=30)]
    assert len(inventory.for_period("p", *month, By.HOUR).series) == 31 * 24
    with pytest.raises(ValidationFailed):
        inventory.for_period("p", DAY, DAY + timedelta(days=31), By.HOUR)
    # At noon it begins and ends on 32 days of the city.
    noon = clock.start_of(DAY) + timedelta(hours=12)
    assert inventory.for_period("p", noon, noon + timedelta(days=31), By.HOUR).total.expected == 0


def test_signs_by_flow_and_place() -> None:
    tree = [Node("p", "roof", NodeKind.EQUIPMENT), Node("p", "line", NodeKind.LINE)]

    def signs(*meters: tuple[str, Flow, str | None]) -> dict[str, int]:
        there = [
            Meter("p", name, "electricity", Kind.INTERVAL, "kWh", flow=flow, node=node)
            for name, flow, node in meters
        ]
        return dict(Boundary(there, tree, None).signs(DAY))

    used, made, given = (
        ("used", Flow.LOAD, "line"),
        ("made", Flow.GENERATION, "roof"),
        ("given", Flow.EXPORT, "roof"),
    )
    assert signs(used, made, given) == {"used": 1, "made": -1}
    assert signs(used, given) == {"used": 1, "given": -1}
    assert signs(made) == {}
    assert signs(("in", Flow.IMPORT, None), used, made, given) == {"in": 1, "given": -1}
    # A line with a supply of its own beside one whose use is metered.
    assert signs(("in", Flow.IMPORT, "line"), ("all", Flow.LOAD, "roof"), made) == {
        "in": 1,
        "all": 1,
        "made": -1,
    }
    water = Meter("p", "w", "water", Kind.INTERVAL, "m3")
    assert Boundary([water], [], None).signs(DAY) == {}


def mess(seed: int) -> list[Reading]:
    """Three days of five meters, a tenth of it missing."""
    chance = random.Random(seed)
    return [
        Reading(name, at(slot), Decimal(chance.randrange(1, 90_000)) / 1_000, Kind.INTERVAL)
        for name in ("a", "b", "pv", "gas", "steam")
        for slot in range(3 * SLOTS)
        if chance.random() > 0.1
    ]


def works(plant: str) -> None:
    for node in ("one", "two"):
        plants.add_node(Node(plant, node, NodeKind.LINE))
    put("a", plant, flow=Flow.LOAD, node="one")
    put("b", plant, flow=Flow.LOAD, node="two")
    put("pv", plant, flow=Flow.GENERATION, node="one")
    put("gas", plant, "natural_gas", unit="Nm3", node="two")
    put("steam", plant, "heat", unit="GJ", node="two")


def sums(found: Inventory) -> tuple[int, int, int, int, int]:
    total = found.total
    return total.co2e_mg, total.tce_mg, total.expected, total.actual, total.estimated


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.usefixtures("app")
def test_nodes_and_periods_add_up_and_the_order_of_arrival_does_not_matter(seed: int) -> None:
    chance, sent = random.Random(seed), mess(seed)
    last = DAY + timedelta(days=2)
    answers = []
    for plant in ("x", "y"):
        works(plant)
        left = list(sent) if plant == "x" else chance.sample(sent, len(sent))
        while left:
            size = chance.choice((200, 700))
            readings.take(plant, left[:size])
            left = left[size:]
            if chance.random() < 0.5:
                validating.sweep(clock.now() + readings.DEBOUNCE)
                inventory_days.sweep(clock.now() + timedelta(days=1))
        found = {by: emitted(by=by, plant=plant, last=last) for by in By}
        whole = sums(found[By.DAY])
        assert {sums(one) for one in found.values()} == {whole}
        nodes = [sums(emitted(node, plant=plant, last=last)) for node in ("one", "two")]
        assert tuple(map(sum, zip(*nodes, strict=True))) == whole
        halves = [
            inventory.for_period(plant, *ends)
            for ends in ((at(0), at(130)), (at(130), at(3 * SLOTS)))
        ]
        # A day cut in two still adds up.
        assert sum(one.total.co2e_mg for one in halves) == whole[0]
        answers.append([replace(one, plant="", revision=0) for one in found.values()])
    assert answers[0] == answers[1]
    assert answers[0][0].factor_set == (
        "CN-GBT2589-2020+CN-GBT32150-2025+CN-GBT32151.34-2024+CN-MEE-GRID"
    )


# --- races, crashes, corrections ----------------------------------------------------------------


@pytest.mark.usefixtures("app")
def test_who_counts_the_same_days_at_once_loses_nothing() -> None:
    for name in ("a", "b", "c", "d"):
        put(name)
        send(name, 1, slots=range(4))
    validating.catch_up("p", DAY, DAY)
    touched = meterdays.touched_of("p", DAY, DAY)
    assert len(touched) == 4
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda place: inventory_days.count([touched[place % 4]]), range(8)))
    assert meterdays.touched_of("p", DAY, DAY) == []
    # 4 meters of 4 kWh: each rounds 4 x 497,400 mg.
    assert inventory.for_period("p", DAY, DAY, fresh=False).total.co2e_mg == 16 * 497_400


@pytest.mark.usefixtures("app")
def test_an_older_count_that_comes_late_changes_nothing() -> None:
    put("m")
    send("m", 1, slots=range(1))
    validating.catch_up("p", DAY, DAY)
    [old] = meterdays.several([("p", "m", DAY)])
    send("m", 1, slots=range(1, 2))
    new = emitted()
    inventory_days._count_plant("p", {DAY: [old]}, factors.shipped())
    assert inventory.for_period("p", DAY, DAY, fresh=False) == new


@pytest.mark.parametrize(
    "step",
    [
        Death("accounting.enterprise.meters:heard_since", "after"),
        Death("accounting.enterprise.inventory_days:_write", "before"),
        Death("accounting.enterprise.inventory_days:_write", "after"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("app")
def test_a_count_that_is_killed_is_made_by_the_next(crew: Crew, step: Death) -> None:
    put("m")
    send("m", 2, slots=range(3))
    validating.catch_up("p", DAY, DAY)
    assert crew.run("count_inventory", step) == KILLED
    assert inventory_days.sweep(clock.now() + timedelta(days=1)) == 1
    found = inventory.for_period("p", DAY, DAY, fresh=False)
    assert kilograms(found) == 6 * Decimal("0.4974")
    assert inventory_days.sweep(clock.now() + timedelta(days=1)) == 0


@pytest.mark.usefixtures("app")
def test_a_late_reading_counts_its_own_day_anew_and_no_other() -> None:
    put("m")
    days = [DAY + timedelta(days=number) for number in range(3)]
    for day in days:
        send("m", 1, slots=range(4), day=day)
    emitted(last=days[-1])
    before = inventory_days.days("p", days[0], days[-1])
    send("m", 1, slots=range(90, 91), day=days[1])
    emitted(last=days[-1])
    after = inventory_days.days("p", days[0], days[-1])
    assert [on for on in days if after[on] != before[on]] == [days[1]]
    assert (after[days[1]].version, after[days[1]].run) == (before[days[1]].version + 1, 2)


def with_2024() -> Registry:
    """The shipped factors after the ministry has published 0.5 kg for Zhejiang in 2024."""
    shipped = factors.shipped()
    content = factors.reading.Content()
    content.sets, content.regions = dict(shipped.sets), dict(shipped.regions)
    content.carriers, content.grace = dict(shipped.carriers), shipped.grace
    [of_2023] = [one for one in shipped.factors if one.id == "electricity/CN-ZJ/2023"]
    new_year = date(2024, 1, 1)
    content.factors = [
        *(one for one in shipped.factors if one is not of_2023),
        replace(of_2023, valid_to=new_year),
        replace(
            of_2023,
            id="electricity/CN-ZJ/2024",
            data_year=2024,
            value=Decimal("0.5"),
            valid_from=new_year,
        ),
    ]
    return Registry(content)


@pytest.mark.usefixtures("app")
def test_a_new_vintage_values_exactly_its_own_days_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    put("m")
    old, new = date(2023, 12, 31), date(2024, 1, 1)
    for day in (old, new):
        send("m", 1, slots=range(1), day=day)
    before = emitted(first=old, last=new)
    assert before.provisional
    assert [total.co2e_mg for _, total in before.series] == [497_400, 497_400]
    later = with_2024()
    assert inventory_days.restate(later) == 1
    assert inventory_days.restate(later) == 0
    monkeypatch.setattr(factors, "shipped", lambda: later)
    after = inventory.for_period("p", old, new, fresh=False)
    assert [total.co2e_mg for _, total in after.series] == [497_400, 500_000]
    assert after.series[1][1].by_carrier["electricity"].factors == {
        "electricity/CN-ZJ/2024",
        "tce/electricity/calorific",
    }
    assert not after.provisional
    assert after.revision > before.revision
    assert inventory_days.days("p", old, new)[new].cause == inventory_days.FACTORS


@pytest.mark.usefixtures("app")
def test_a_day_without_a_factor_is_valued_when_there_is_one() -> None:
    put("m")
    early = date(2020, 12, 31)
    send("m", 1, slots=range(1), day=early)
    with pytest.raises(MissingFactor):
        emitted(first=early, last=early)
    later = factors.shipped()
    content = factors.reading.Content()
    content.factors = [
        replace(one, valid_from=date(2020, 1, 1)) if one.valid_from.year == 2021 else one
        for one in later.factors
    ]
    assert inventory_days.restate(Registry(content)) == 1
    # 0.5422 of 2021, which was made to reach back.
    assert inventory_days.days("p", early, early)[early].rows["m"].co2e_mg == 542_200


# --- over HTTP ----------------------------------------------------------------------------------


def test_the_answer_has_the_contract_s_fields_and_comes_at_once(app: Flask) -> None:
    operator = machine(app, ClientKind.OPERATOR)
    wanted = {"name": "示范钢厂", "uscc": "91330802MA2DH0000Y", "sector": "C3110"}
    plant = operator.post("/v1/operator/plants", wanted).get_json()["plant_id"]
    gateway = machine(app, ClientKind.PLANT, plant)
    base, path = f"/v1/operator/plants/{plant}", f"/v1/plants/{plant}"
    operator.post(f"{base}/nodes", {"node": "line", "kind": "line"})
    meter = {"meter": "m", "carrier": "electricity", "kind": "interval", "unit": "kWh"}
    assert operator.post(f"{base}/meters", meter | {"node": "line"}).status_code == 201

    def read(query: str, who: Caller = gateway) -> dict[str, Any]:
        answer = who.get(f"{path}/emissions?{query}")
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.get_json()
        return told

    def tell(hours: range) -> None:
        sent = [
            {"meter": "m", "at": f"2026-05-18T{hour:02}:00:00+08:00", "value": 2.5}
            for hour in hours
        ]
        told = [one | {"kind": "interval"} for one in sent]
        assert gateway.post(f"{path}/readings", {"readings": told}).status_code == 200

    empty = read("from=2026-05-18&to=2026-05-18")
    assert (empty["co2e_kg"], empty["completeness"], empty["revision"]) == (None, 0, 0)
    assert empty["series"] == [
        {
            "period": "2026-05-18",
            "quantities": {},
            "co2e_kg": None,
            "tce_kg": None,
            "completeness": 0,
            "estimated_share": 0,
        }
    ]
    tell(range(8, 12))
    told = read("from=2026-05-18&to=2026-05-18")
    # Four readings of 2.5 kWh and nine estimates of 2.5 between them: 32.5 x 0.4974, x 0.1229.
    assert told == {
        "co2e_kg": Decimal("16.1655"),
        "tce_kg": Decimal("3.99425"),
        "by_carrier": {
            "electricity": {
                "co2e_kg": Decimal("16.1655"),
                "tce_kg": Decimal("3.99425"),
                "scope": 2,
                "quantity": Decimal("32.5"),
                "unit": "kWh",
                "factors": [
                    {
                        "id": "electricity/CN-ZJ/2023",
                        "set": "CN-MEE-GRID",
                        "value": Decimal("0.4974"),
                        "unit": "kgCO2/kWh",
                        "data_year": 2023,
                    },
                    {
                        "id": "tce/electricity/calorific",
                        "set": "CN-GBT2589-2020",
                        "value": Decimal("0.1229"),
                        "unit": "kgce/kWh",
                        "data_year": None,
                    },
                ],
            }
        },
        "series": [
            {
                "period": "2026-05-18",
                "quantities": {"electricity": Decimal("32.5")},
                "co2e_kg": Decimal("16.1655"),
                "tce_kg": Decimal("3.99425"),
                "completeness": Decimal("0.0416"),
                "estimated_share": Decimal("0.0937"),
            }
        ],
        "completeness": Decimal("0.0416"),
        "estimated_share": Decimal("0.0937"),
        "factor_set": "CN-GBT2589-2020+CN-MEE-GRID",
        "revision": 1,
    }
    tell(range(12, 13))
    assert read("from=2026-05-18&to=2026-05-18")["revision"] == 2
    assert len(read("from=2026-05-18&to=2026-05-19&by=slot")["series"]) == 192
    assert (
        read("from=2026-05-18&to=2026-05-18&by=month&node=line", operator)["series"][0]["period"]
        == "2026-05"
    )
    hours = "from=2026-05-18T08:00:00%2B08:00&to=2026-05-18T10:00:00%2B08:00&by=hour"
    assert [one["co2e_kg"] for one in read(hours)["series"]] == [Decimal("4.974")] * 2


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("", (422, "validation_failed")),
        ("from=2026-05-18&to=2026-05-17", (422, "validation_failed")),
        ("from=2026-04-01&to=2026-05-18&by=slot", (422, "validation_failed")),
        ("from=2026-05-01&to=2026-05-18&by=year", (422, "validation_failed")),
        ("from=2026-05-01&to=2026-05-18&node=nowhere", (404, "not_found")),
    ],
)
def test_a_range_that_cannot_be_answered_is_refused(
    app: Flask, query: str, wanted: tuple[int, str]
) -> None:
    plant = plants.add_plant("示范钢厂", "91330802MA2DH0000Y", "C3110").id
    gateway = machine(app, ClientKind.PLANT, plant)
    assert said(gateway.get(f"/v1/plants/{plant}/emissions?{query}")) == wanted


def test_a_plant_is_read_by_its_own_and_by_operators(app: Flask) -> None:
    plant = plants.add_plant("示范钢厂", "91330802MA2DH0000Y", "C3110").id
    path = f"/v1/plants/{plant}/emissions?from=2026-05-18&to=2026-05-18"
    assert machine(app, ClientKind.OPERATOR).get(path).status_code == 200
    stranger = machine(app, ClientKind.PLANT, "plt_other")
    assert said(stranger.get(path)) == (403, "forbidden")
    assert said(resident(app).get(path)) == (403, "forbidden")
    nobody = machine(app, ClientKind.OPERATOR).get(path.replace(plant, "plt_nobody"))
    assert said(nobody) == (404, "not_found")


def test_a_year_of_days_is_found_by_index(app: Flask) -> None:
    put("m")
    send("m", 1, slots=range(1))
    emitted()
    database = storage.database()
    between = {"$gte": "p/2023-01-01", "$lte": "p/2023-12-31"}
    for name, wanted in (
        ("inventory_days", {"_id": between}),
        ("inventory_days", {"factors": "x", "day": {"$gte": "2024-01-01"}}),
        ("inventory_days", {"due_at": meterdays.due_by(NOON), "day": {"$lt": "2026-05-20"}}),
        ("inventory_entries", {"due_at": meterdays.due_by(NOON)}),
        ("inventory_periods", {"due_at": meterdays.due_by(NOON)}),
        *(("meter_days", {mark: meterdays.due_by(NOON)}) for mark in Mark),
        ("meter_days", {"vee_due_at": meterdays.due_by(NOON)}),
    ):
        plan = database[name].find(wanted).explain()["queryPlanner"]["winningPlan"]
        assert "COLLSCAN" not in str(plan), wanted


@pytest.mark.usefixtures("app")
def test_the_demo_plant_has_two_weeks_of_emissions() -> None:
    demo = plants.add_plant("示范工厂", "91330802MA00DEM00E", "industry").id
    demo_plant.seed(demo)
    today = NOON.date()
    first = today - timedelta(days=14)
    found = inventory.for_period(demo, first, today)
    assert found.total.completeness > Decimal("0.9")
    # Two lines, compressor and office use some 900 kW in the shift, 200 beside; the sun gives some.
    assert 2_000 < kilograms(found) / 15 < 10_000
    nodes = [emitted(node, plant=demo, first=first, last=today) for node in ("melt", "office")]
    assert all(one.total.co2e_mg > 0 for one in nodes)
    demo_plant.seed(demo)
    assert inventory.for_period(demo, first, today) == found
