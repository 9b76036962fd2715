"""Which lines to stop, asked over HTTP, with figures worked by hand."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from callers import Caller, machine, resident, said
from flask import Flask

from accounting import audit, clock, storage
from accounting.clients import Kind as ClientKind
from accounting.enterprise import plants
from api.views import curtailment as views

USCC = "91330802MA2DH0000Y"
# Wednesday noon; the window asked for is Thursday 14:00 to 16:00, known from the Thursday before.
NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)
BEFORE = datetime(2026, 5, 14, 6, tzinfo=UTC)
WINDOW = {"from": "2026-05-21T14:00:00+08:00", "to": "2026-05-21T16:00:00+08:00"}


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.stand(NOON):
        yield


@dataclass(frozen=True)
class Mill:
    """A plant whose lines are metered, its energy manager, and the operator."""

    operator: Caller
    manager: Caller

    @property
    def path(self) -> str:
        return f"/v1/plants/{self.manager.id}"

    def told(self, what: str, wanted: dict[str, Any]) -> None:
        answer = self.operator.post(f"/v1/operator/plants/{self.manager.id}/{what}", wanted)
        assert answer.status_code == 201, answer.text

    def line(self, node: str, kwh: float | None = None, **changes: Any) -> None:
        """A node; with `kwh` a meter of its own, and that in each quarter hour of the window."""
        carrier, unit = changes.pop("carrier", "electricity"), changes.pop("unit", "kWh")
        flow = changes.pop("flow", "load")
        if carrier == "electricity":
            self.told("nodes", {"node": node, "kind": "line"} | changes)
        if kwh is not None:
            name = f"{node}-{carrier}"
            meter = {"meter": name, "carrier": carrier, "kind": "interval", "unit": unit}
            self.told("meters", meter | {"node": node, "flow": flow})
            self.send(name, kwh)

    def send(self, meter: str, kwh: float, begin: datetime = BEFORE, slots: int = 8) -> None:
        rows = [
            {
                "meter": meter,
                "at": (begin + number * timedelta(minutes=15)).isoformat(),
                "value": kwh,
                "kind": "interval",
            }
            for number in range(slots)
        ]
        answer = self.manager.post(f"{self.path}/readings", {"readings": rows})
        assert answer.get_json()["accepted"] == slots, answer.text

    def ask(self, kw: Any, **more: Any) -> dict[str, Any]:
        answer = self.manager.post(f"{self.path}/curtailment", {"kw": kw} | WINDOW | more)
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.get_json()
        return told


@pytest.fixture
def mill(app: Flask) -> Mill:
    operator = machine(app, ClientKind.OPERATOR)
    wanted = {"name": "示范织造厂", "uscc": USCC, "sector": "C1751"}
    made = operator.post("/v1/operator/plants", wanted).get_json()
    return Mill(operator, machine(app, ClientKind.PLANT, made["plant_id"]))


def reasons(told: dict[str, Any]) -> dict[str, str]:
    return {one["node"]: one["reason"] for one in told["explanation"]["nodes"]}


def test_the_roof_then_what_is_flexible_then_the_line_that_loses_least(mill: Mill) -> None:
    mill.line("spin", 100, value_fen_per_kwh=30, restart_cost_fen=1_000)
    mill.line("weave", 75, value_fen_per_kwh=50)
    mill.line("charge", 25, flexible=True, value_fen_per_kwh=0)
    mill.line("furnace", 200, must_run=True)
    mill.told(
        "meters",
        {
            "meter": "roof",
            "carrier": "electricity",
            "kind": "interval",
            "unit": "kWh",
            "flow": "generation",
        },
    )
    mill.send("roof", 50)
    told = mill.ask(650)
    # The roof gives 4 x 50 = 200 kW, the chargers 100: 350 are left, and spin draws 400. In two
    # hours spin makes 800 kWh x 30 fen and costs 1,000 to start again; 800 kWh at 0.4974 kg/kWh.
    assert told["covered_by_pv_kw"] == 200
    assert told["shortfall_kw"] == 0
    assert told["stop"] == [
        {
            "node": "charge",
            "kw": 100,
            "value_lost_fen": 0,
            "co2e_kg_avoided": Decimal("99.48"),
            "restart_at": "2026-05-21T08:00:00.000Z",
            "flexible": True,
        },
        {
            "node": "spin",
            "kw": 400,
            "value_lost_fen": 25_000,
            "co2e_kg_avoided": Decimal("397.92"),
            "restart_at": "2026-05-21T08:00:00.000Z",
            "flexible": False,
        },
    ]
    assert reasons(told) == {
        "charge": "stopped",
        "furnace": "must_run",
        "spin": "stopped",
        "weave": "not_needed",
    }
    explained = told["explanation"]
    assert explained["proven"] is True
    assert explained["lowest"] == {"at": "2026-05-21T06:00:00.000Z", "kw": 700}
    assert {one["basis"] for one in explained["nodes"]} == {"same_weekday"}
    assert "250.00" in explained["text"]


def test_what_the_sun_makes_is_expected_near_the_hours_it_was_seen_in(mill: Mill) -> None:
    made = {"carrier": "electricity", "kind": "interval", "unit": "kWh", "flow": "generation"}
    mill.told("meters", made | {"meter": "roof"})
    # This morning from 10 to 12 is all that is known: 200 kW.
    mill.send("roof", 50, datetime(2026, 5, 20, 2, tzinfo=UTC))
    assert mill.ask(500)["covered_by_pv_kw"] == 200
    late = {"from": "2026-05-21T15:00:00+08:00", "to": "2026-05-21T17:00:00+08:00"}
    # The last known is 11:45: of 15:00 to 17:00 only the first four quarters lie within four hours.
    assert mill.ask(500, **late)["covered_by_pv_kw"] == 100
    night = {"from": "2026-05-21T22:00:00+08:00", "to": "2026-05-21T23:00:00+08:00"}
    assert mill.ask(500, **night)["covered_by_pv_kw"] == 0


def test_what_if_a_line_had_to_run_and_nothing_is_left_behind(mill: Mill) -> None:
    mill.line("spin", 100, value_fen_per_kwh=30)
    mill.line("weave", 75, value_fen_per_kwh=50)
    first = mill.ask(300)
    before = everything()
    told = mill.ask(300, keep_running=["spin"])
    assert [one["node"] for one in first["stop"]] == ["spin"]
    assert [one["node"] for one in told["stop"]] == ["weave"]
    assert mill.ask(300) == first
    assert everything() == before


def everything() -> dict[str, list[Any]]:
    database = storage.database()
    return {name: list(database[name].find()) for name in database.list_collection_names()}


def test_what_cannot_be_covered_is_said(mill: Mill) -> None:
    mill.line("spin", 100)
    told = mill.ask(Decimal("1000.5"))
    assert [one["node"] for one in told["stop"]] == ["spin"]
    assert told["shortfall_kw"] == Decimal("600.5")
    assert told["covered_by_pv_kw"] == 0


def test_a_line_that_stands_longer_than_the_window_loses_more(mill: Mill) -> None:
    # Three hours: the third was never metered and is taken to be like the other two.
    mill.line("kiln", 50, value_fen_per_kwh=10, minimum_stop_minutes=180)
    mill.line("press", 50, value_fen_per_kwh=14)
    told = mill.ask(200)
    # kiln: 3 h x 200 kW x 10 = 6,000; press: 2 h x 200 kW x 14 = 5,600.
    assert [(one["node"], one["value_lost_fen"]) for one in told["stop"]] == [("press", 5_600)]
    [kiln] = mill.ask(200, keep_running=["press"])["stop"]
    assert (kiln["value_lost_fen"], kiln["restart_at"]) == (6_000, "2026-05-21T09:00:00.000Z")


def test_a_workshop_metered_as_a_whole_is_never_counted_twice(mill: Mill) -> None:
    mill.line("shop", 130, value_fen_per_kwh=20)
    mill.line("left", 50, parent="shop")
    mill.line("right", 60, parent="shop", value_fen_per_kwh=10)
    told = mill.ask(1_000)
    # 130 - 50 - 60 = 20 kWh a quarter hour are the shop's own. left has the value of the shop.
    assert {one["node"]: (one["kw"], one["value_lost_fen"]) for one in told["stop"]} == {
        "shop": (80, 3_200),
        "left": (200, 8_000),
        "right": (240, 4_800),
    }
    assert told["shortfall_kw"] == 480


def test_of_two_lines_that_lose_the_same_the_one_that_burns_gas_stops(mill: Mill) -> None:
    mill.line("dry", 100)
    mill.line("singe", 100)
    mill.line("singe", 10, carrier="natural_gas", unit="Nm3")
    [stopped] = mill.ask(400)["stop"]
    # 800 kWh x 0.4974 = 397.92 kg, and 80 Nm3 x 2.1622 (389.31 x 0.0153 x 0.99 x 44/12 / 10 =
    # 2.16219...) of the gas it does not burn.
    assert stopped["node"] == "singe"
    gas_kg = Decimal("389.31") * Decimal("0.0153") * Decimal("0.99") * 44 / 12 / 10 * 80
    assert abs(stopped["co2e_kg_avoided"] - Decimal("397.92") - gas_kg) < Decimal("0.01")


def test_a_meter_that_said_nothing_for_a_month_is_not_offered(mill: Mill) -> None:
    mill.line("silent", parent=None)
    mill.told(
        "meters",
        {
            "meter": "s",
            "carrier": "electricity",
            "kind": "interval",
            "unit": "kWh",
            "node": "silent",
        },
    )
    mill.send("s", 500, NOON - timedelta(days=40))
    mill.line("spin", 100)
    told = mill.ask(800)
    assert reasons(told) == {"silent": "no_readings", "spin": "stopped"}
    assert told["shortfall_kw"] == 400
    [silent] = [one for one in told["explanation"]["nodes"] if one["node"] == "silent"]
    assert (silent["kw"], silent["basis"]) == (None, None)


def test_a_window_that_is_over_is_answered_from_what_was_measured(mill: Mill) -> None:
    mill.line("spin", 100)
    mill.send("spin-electricity", 60, datetime(2026, 5, 19, 6, tzinfo=UTC))
    past = {"from": "2026-05-19T14:00:00+08:00", "to": "2026-05-19T15:00:00+08:00"}
    told = mill.ask(100, **past)
    assert (told["stop"][0]["kw"], told["explanation"]["nodes"][0]["basis"]) == (240, "measured")


def test_whose_plant_it_is_and_what_can_be_asked(app: Flask, mill: Mill) -> None:
    path, body = f"{mill.path}/curtailment", {"kw": 5, **WINDOW}
    assert mill.operator.post(path, body).status_code == 200
    assert said(machine(app, ClientKind.PLANT).post(path, body)) == (403, "forbidden")
    assert said(resident(app).post(path, body)) == (403, "forbidden")
    elsewhere = "/v1/plants/plt_none/curtailment"
    assert said(mill.operator.post(elsewhere, body)) == (404, "not_found")


def test_parts_of_a_watt_are_asked_for_as_a_whole_one(mill: Mill) -> None:
    # Nothing hangs on the plant yet, so all of it is short: 0.1 W is one, 5,000.2 W are 5,001.
    assert mill.ask(Decimal("0.0001"))["shortfall_kw"] == Decimal("0.001")
    assert mill.ask(Decimal("5.0002"))["shortfall_kw"] == Decimal("5.001")


@pytest.mark.parametrize(
    ("wrong", "pointer"),
    [
        ({"kw": 0}, "/kw"),
        ({"kw": -5}, "/kw"),
        ({"kw": "5"}, "/kw"),
        ({"to": WINDOW["from"]}, "/to"),
        ({"to": "2026-05-29T14:00:00+08:00"}, "/to"),
        ({"keep_running": ["nobody"]}, "/keep_running"),
        ({"lines": []}, "/lines"),
    ],
)
def test_an_order_that_is_none_is_refused(mill: Mill, wrong: dict[str, Any], pointer: str) -> None:
    answer = mill.manager.post(f"{mill.path}/curtailment", {"kw": 5} | WINDOW | wrong)
    assert said(answer) == (422, "validation_failed")
    assert answer.get_json()["errors"][0]["pointer"] == pointer


# --- what stopping means ------------------------------------------------------------------------


def change(mill: Mill, key: str | None = None, **terms: Any) -> Any:
    path = f"/v1/operator/plants/{mill.manager.id}/nodes/spin"
    return mill.operator.patch(path, {"reason": "new contract", **terms}, key=key)


def test_the_operator_says_anew_what_stopping_means(app: Flask, mill: Mill) -> None:
    mill.line("spin", 100, value_fen_per_kwh=30)
    told = change(mill, must_run=True, value_fen_per_kwh=None).get_json()
    assert (told["must_run"], told["value_fen_per_kwh"], told["flexible"]) == (True, None, False)
    assert reasons(mill.ask(5)) == {"spin": "must_run"}
    trail = audit.trail(subject=f"{mill.manager.id}/spin", limit=9)
    [noted] = [one for one in trail if one.action == "node changed"]
    assert noted.reason == "new contract"
    assert noted.before is not None
    assert noted.after is not None
    assert (noted.before["value_fen_per_kwh"], noted.after["value_fen_per_kwh"]) == (30, None)
    assert said(change(mill, value_fen_per_kwh=-1)) == (422, "validation_failed")
    path = f"/v1/operator/plants/{mill.manager.id}/nodes/nobody"
    assert said(mill.operator.patch(path, {"reason": "x"})) == (404, "not_found")
    assert said(mill.manager.patch(path, {"reason": "x"})) == (403, "forbidden")


def test_changes_of_eight_at_once_are_eight_and_each_saw_the_one_before(mill: Mill) -> None:
    mill.line("spin")

    def tell(value: int) -> plants.Changed:
        return plants.change_stopping(mill.manager.id, "spin", {"value_fen_per_kwh": value})

    with ThreadPoolExecutor(8) as pool:
        made = sorted(pool.map(tell, range(1, 9)), key=lambda one: one.number)
    assert [one.number for one in made] == [1, 2, 3, 4, 5, 6, 7, 8]
    chain = [None, *(one.after["value_fen_per_kwh"] for one in made)]
    assert [one.before["value_fen_per_kwh"] for one in made] == chain[:-1]


def test_a_change_cut_off_before_it_was_noted_is_noted_by_the_retry(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    mill.line("spin", value_fen_per_kwh=30)

    def die(*_: Any, **__: Any) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as cut:
        cut.setattr(views.audit, "note", die)
        assert change(mill, "k1", value_fen_per_kwh=40).status_code == 500
    subject = f"{mill.manager.id}/spin"
    assert [one.action for one in audit.trail(subject=subject, limit=9)] == ["node added"]
    assert change(mill, "k1", value_fen_per_kwh=40).status_code == 200
    assert change(mill, "k1", value_fen_per_kwh=40).headers["Idempotency-Replayed"] == "true"
    noted = [one for one in audit.trail(subject=subject, limit=9) if one.action == "node changed"]
    [only] = noted
    assert only.before is not None
    assert only.before["value_fen_per_kwh"] == 30
