"""The carbon credit report of a plant's year: figures by hand, JSON and PDF, signed."""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from io import BytesIO
from typing import Any

import pytest
import simplejson
from callers import Caller, machine, resident, said
from flask import Flask
from pypdf import PdfReader

from accounting import clock
from accounting.clients import Kind as ClientKind
from accounting.enterprise import figures, plants
from api.demo import seed
from integrations import jws

USCC = "91330802MA2DH0000Y"
# Noon of Monday 9 February 2026: January is over, and has figures.
NOON = datetime(2026, 2, 9, 4, tzinfo=UTC)
PDF = "application/pdf"


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.stand(NOON):
        yield


@pytest.fixture
def works(app: Flask) -> tuple[Caller, Caller]:
    """A plant metered as a whole with a roof, its energy manager, and the operator."""
    operator = machine(app, ClientKind.OPERATOR)
    wanted = {"name": "示范织造厂", "uscc": USCC, "sector": "C1751"}
    made = operator.post("/v1/operator/plants", wanted).get_json()
    manager = machine(app, ClientKind.PLANT, made["plant_id"])
    base = {"carrier": "electricity", "kind": "interval", "unit": "kWh"}
    for name, flow in (("all", "load"), ("roof", "generation")):
        told = base | {"meter": name, "flow": flow}
        operator.post(f"/v1/operator/plants/{manager.id}/meters", told)
    gas = {"meter": "gas", "carrier": "natural_gas", "kind": "interval", "unit": "Nm3"}
    operator.post(f"/v1/operator/plants/{manager.id}/meters", gas)
    # Two working days and a Sunday: 100 kWh a quarter hour used, 25 made, 2 Nm3 burned.
    for day, kwh in ((date(2026, 1, 29), 100), (date(2026, 1, 30), 120), (date(2026, 2, 1), 10)):
        send(manager, day, {"all": kwh, "roof": 25 if kwh > 10 else 0, "gas": 2})
    operator.post(
        f"/v1/operator/plants/{manager.id}/figures",
        {"month": "2026-01", "output": 10, "output_unit": "t", "added_value_fen": 1_000_000},
    )
    return manager, operator


def send(manager: Caller, day: date, values: dict[str, Any]) -> None:
    begin = clock.start_of(day)
    rows = [
        {
            "meter": meter,
            "at": (begin + slot * timedelta(minutes=15)).isoformat(),
            "value": value,
            "kind": "interval",
        }
        for meter, value in values.items()
        for slot in range(96)
    ]
    answer = manager.post(f"/v1/plants/{manager.id}/readings", {"readings": rows})
    assert answer.get_json()["accepted"] == len(rows), answer.text


def report(of: Caller, plant: str, form: str = "application/json", to: str = "zh") -> Any:
    headers = {"Accept": form, "Accept-Language": to}
    return of.get(f"/v1/plants/{plant}/report?year=2026", headers=headers)


def test_the_figures_of_the_year_and_what_they_rest_on(works: tuple[Caller, Caller]) -> None:
    manager, operator = works
    figures.add_benchmark(
        "C1751", 2026, {"product": Decimal(1_000_000), "added_value": Decimal(10)}, "a test"
    )
    manager.post(f"/v1/plants/{manager.id}/budget", {"year": 2026, "yearly": {"kwh": 1_000_000}})
    told = report(manager, manager.id).get_json()
    # Used 96 x (100 + 120 + 10) = 22,080 kWh, made 96 x 50 = 4,800: 17,280 x 0.4974 = 8,595.072 kg.
    power = told["by_carrier"]["electricity"]
    assert (power["quantity"], power["co2e_kg"]) == (17_280, Decimal("8595.072"))
    assert told["scope2_kg"] == Decimal("8595.072")
    # 576 Nm3 of gas at 2.1622 are 1,245.4 kg, scope 1.
    gas_kg = told["by_carrier"]["natural_gas"]["co2e_kg"]
    assert abs(gas_kg - Decimal("1245.4")) < Decimal("0.1")
    assert told["scope1_kg"] == gas_kg
    assert told["co2e_kg"] == gas_kg + Decimal("8595.072")
    assert [one["month"] for one in told["by_month"] if one["co2e_kg"]] == ["2026-01", "2026-02"]
    assert told["deductions"] == [
        {"kind": "generation", "kwh": 4_800, "co2e_kg": Decimal("2387.52")}
    ]
    assert told["generated_kwh"] == 4_800
    curve = told["load_curve"]
    # 100 and 120 kWh a quarter hour are 400 and 480 kW; 10 are 40 kW on the Sunday.
    assert (set(curve["workdays_kw"]), set(curve["weekends_kw"])) == ({440}, {40})
    assert curve["peak"]["kw"] == 480
    assert (curve["from"], curve["to"]) == ("2026-01-13", "2026-02-09")
    assert told["budget"]["used"]["kwh"] == 17_280
    assert told["budget"]["plan"]["kwh"] == 1_000_000
    rated = {one["name"]: one for one in told["label"]["indicators"]}
    # January: 96 x 220 - 4,800 = 16,320 kWh and 384 Nm3: 8,117.568 + 830.27 kg over 10 t.
    k = rated["product"]["k"]
    assert abs(k - Decimal("0.894784")) < Decimal("0.00001")
    assert rated["tax"]["label"] == "unrated"
    assert told["plant"]["sector_name"] == "工业"
    assert told["provisional"] is True
    assert "CN-MEE-GRID" in told["factor_set"]
    assert report(operator, manager.id).get_json()["sha256"] == told["sha256"]


def test_digest_and_signature_are_of_what_is_answered(works: tuple[Caller, Caller]) -> None:
    manager, _ = works
    answer = report(manager, manager.id)
    told = json.loads(answer.text, parse_float=Decimal)
    content = {
        name: value
        for name, value in told.items()
        if name not in ("report_id", "issued_at", "sha256", "jws")
    }
    dumped = simplejson.dumps(
        content, use_decimal=True, sort_keys=True, ensure_ascii=False, separators=(",", ":")
    )
    assert hashlib.sha256(dumped.encode()).hexdigest() == told["sha256"]
    assert told["report_id"].endswith(told["sha256"][:12])
    keys = manager.http.get("/.well-known/jwks.json").get_json()
    claims = jws.verify(told["jws"], keys, audience=manager.id)
    assert (claims["sha256"], claims["plant"]["uscc"]) == (told["sha256"], USCC)
    # A reading more is another report.
    send(manager, date(2026, 2, 2), {"all": 1})
    assert report(manager, manager.id).get_json()["sha256"] != told["sha256"]


@pytest.mark.parametrize(
    ("to", "texts"),
    [
        (
            "zh",
            ("企业碳征信报告", "示范织造厂", "电力", "天然气", "用能与碳预算", "典型日负荷曲线"),
        ),
        ("en", ("Carbon credit report of a plant", "示范织造厂", "Electricity", "Natural gas")),
    ],
)
def test_people_get_a_document(works: tuple[Caller, Caller], to: str, texts: tuple[str]) -> None:
    manager, _ = works
    answer = report(manager, manager.id, PDF, to)
    assert (answer.status_code, answer.mimetype) == (200, PDF)
    shown = "\n".join(page.extract_text() for page in PdfReader(BytesIO(answer.data)).pages)
    for text in texts:
        assert text in shown, text
    assert USCC in answer.headers["Content-Disposition"]


def test_a_plant_of_which_nothing_is_known_has_a_report_that_says_so(app: Flask) -> None:
    operator = machine(app, ClientKind.OPERATOR)
    made = plants.add_plant("空厂", USCC, "C1751")
    told = report(operator, made.id).get_json()
    assert (told["co2e_kg"], told["scope1_kg"], told["load_curve"]["peak"]) == (None, None, None)
    assert told["label"]["label"] == "unrated"
    assert report(operator, made.id, PDF).data.startswith(b"%PDF")
    future = operator.get(f"/v1/plants/{made.id}/report?year=2099").get_json()
    assert (future["co2e_kg"], future["year"]) == (None, 2099)


def test_whose_report_it_is(app: Flask, works: tuple[Caller, Caller]) -> None:
    manager, _ = works
    for other in (machine(app, ClientKind.PLANT), resident(app)):
        assert said(report(other, manager.id)) == (403, "forbidden")
    assert said(report(manager, manager.id, "text/html")) == (406, "not_acceptable")
    path = f"/v1/plants/{manager.id}/report?year=1"
    assert said(manager.get(path)) == (422, "validation_failed")


def test_the_demo_plant_answers_all_three(app: Flask) -> None:
    plant = seed._plant()
    operator = machine(app, ClientKind.OPERATOR)
    window = {"from": "2026-02-10T10:00:00+08:00", "to": "2026-02-10T12:00:00+08:00"}
    path = f"/v1/plants/{plant}/curtailment"
    told = operator.post(path, {"kw": 700} | window).get_json()
    stopped = sum(one["kw"] for one in told["stop"])
    assert 0 < told["covered_by_pv_kw"] < 700
    assert told["covered_by_pv_kw"] + stopped + told["shortfall_kw"] >= 700
    assert told["stop"]
    assert {one["node"] for one in told["stop"]} == {
        one["node"] for one in told["explanation"]["nodes"] if one["reason"] == "stopped"
    }
    budget = operator.get(f"/v1/plants/{plant}/budget").get_json()
    for name in ("kwh", "tce", "tco2"):
        assert 0 < budget["used"][name] < budget["forecast"][name] < budget["plan"][name], name
    shown = report(operator, plant).get_json()
    assert shown["budget"]["plan"] == budget["plan"]
    assert shown["co2e_kg"] > 0
    assert shown["load_curve"]["peak"]["kw"] > 0
