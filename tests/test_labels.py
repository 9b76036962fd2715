"""Colour labels of plants: from readings and figures to a label, over HTTP.

A meter read once an hour, so that a year is quickly told. Zhejiang's electricity of 2023 stands in
for later years: 497.4 g/kWh.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from callers import Caller, machine, resident, said
from flask import Flask

from accounting import clock
from accounting.clients import Kind as ClientKind
from accounting.enterprise import (
    alert_reviews,
    alerts,
    figures,
    inventory_days,
    label_vetoes,
    labels,
    meters,
    plants,
    readings,
    validating,
)
from accounting.enterprise.alert_rules import Rule
from accounting.enterprise.label_rules import Doubt, Label, Reason
from accounting.enterprise.meters import Kind, Meter
from accounting.enterprise.plants import Plant
from accounting.enterprise.readings import ROWS_MAX, Reading

USCC = "91330802MA2DH0000Y"
SECTOR = "C3110"
# Noon of 10 April: January to March are over.
NOON = datetime(2026, 4, 10, 4, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.stand(NOON):
        yield


@pytest.fixture
def plant(app: Flask) -> Plant:
    made = plants.add_plant("示范钢厂", USCC, SECTOR)
    meters.add(Meter(made.id, "m", "electricity", Kind.INTERVAL, "kWh", interval_minutes=60))
    return made


@pytest.fixture
def operator(app: Flask) -> Caller:
    return machine(app, ClientKind.OPERATOR)


@pytest.fixture
def gateway(app: Flask, plant: Plant) -> Caller:
    return machine(app, ClientKind.PLANT, plant.id)


def used(plant: Plant, first_month: str, last_month: str, kwh: int) -> None:
    """So much in every hour of some months."""
    at, end = clock.start_of(clock.first_day(first_month)), clock.end_of_month(last_month)
    rows = []
    while at < end:
        rows.append(Reading("m", at, Decimal(kwh), Kind.INTERVAL))
        at += HOUR
    for place in range(0, len(rows), ROWS_MAX):
        readings.take(plant.id, rows[place : place + ROWS_MAX])
    validating.sweep(clock.now() + 2 * readings.DEBOUNCE)


def told(plant: Plant, *months: str, output: int = 100, tax_fen: int | None = 1_000_000) -> None:
    for month in months:
        figures.add(
            plant.id,
            month,
            output=Decimal(output),
            output_unit="t",
            added_value_fen=5_000_000,
            tax_fen=tax_fen,
        )


def publish(operator: Caller, year: int, **averages: Any) -> dict[str, Any]:
    wanted = {"sector": SECTOR, "year": year, "source": "statistics office"} | averages
    answer = operator.post("/v1/operator/benchmarks", wanted)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.get_json()
    return made


def asked(who: Caller, plant: Plant, year: int | None = None, **options: Any) -> dict[str, Any]:
    query = "" if year is None else f"?year={year}"
    answer = who.get(f"/v1/plants/{plant.id}/label{query}", **options)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.get_json()
    return made


def test_a_label_of_three_intensities(plant: Plant, operator: Caller, gateway: Caller) -> None:
    """March: 744 h x 100 kWh x 497.4 g = 37,006,560 g, over 100 t, 5,000,000 and 1,000,000 fen."""
    used(plant, "2025-03", "2025-03", 125)
    used(plant, "2026-03", "2026-03", 100)
    told(plant, "2025-03", "2026-03")
    publish(operator, 2026, product=1, added_value=10, tax=10)
    publish(operator, 2026, product=370_065.6, added_value=10, tax=10)
    made = asked(gateway, plant, 2026, headers={"Accept-Language": "en"})
    shown = [
        (one["name"], *(float(one[part]) for part in ("intensity", "benchmark", "k")), one["label"])
        for one in made["indicators"]
    ]
    assert shown == [
        ("product", 370_065.6, 370_065.6, 1, "light_green"),
        ("added_value", 7.401312, 10, 0.740131, "dark_green"),
        ("tax", 37.00656, 10, 3.700656, "red"),
    ]
    # The median of light green, dark green and red.
    assert (made["label"], made["name"], made["reason"]) == ("light_green", "light green", None)
    assert made["indicators"][0]["explanation"] == (
        "37,006,560 g over 100 t is 370,065.6 g/t; the benchmark is 370,065.6 g/t; K = 1: "
        "light green."
    )
    assert made["benchmark"]["version"] == 2
    # A year that runs, and began in March.
    assert made["provisional"] is True
    assert made["provisional_for"] == ["year_not_over", "part_of_year"]
    assert (made["first_month"], made["last_month"]) == ("2026-03", "2026-03")
    # A fifth less than in last year's March, of all three.
    assert made["trend"] == {
        "direction": "improving",
        "changes": [{"name": name, "percent": -20} for name in ("product", "added_value", "tax")],
    }


def test_a_plant_nobody_knows_anything_of_is_unrated(plant: Plant, gateway: Caller) -> None:
    for year in (2025, 2026, 2030, None):
        made = asked(gateway, plant, year)
        assert (made["label"], made["trend"]) == ("unrated", None)
        assert [one["label"] for one in made["indicators"]] == ["unrated"] * 3
        assert made["reason"] in {"figures_missing", "no_emissions"}
        assert made["text"]


def test_what_is_missing_is_unrated_and_one_indicator_alone_is_said(
    plant: Plant, operator: Caller, gateway: Caller
) -> None:
    used(plant, "2026-03", "2026-03", 100)
    told(plant, "2026-03", tax_fen=-5)
    made = asked(gateway, plant, 2026)
    assert {one["reason"] for one in made["indicators"][:2]} == {"no_benchmark"}
    assert made["indicators"][2]["reason"] == "denominator_not_positive"
    assert (made["label"], made["reason"]) == ("unrated", "no_benchmark")
    # An average of the year before stands in while the year runs, and says so.
    publish(operator, 2025, product=400_000)
    made = asked(gateway, plant, 2026)
    assert (made["label"], made["single_indicator"]) == ("light_green", True)
    assert "benchmark_of_an_earlier_year" in made["provisional_for"]


def test_a_month_that_was_not_told_is_a_hole_and_at_the_end_it_is_to_come(plant: Plant) -> None:
    used(plant, "2026-01", "2026-03", 100)
    told(plant, "2026-01")
    made = labels.of_year(plant, 2026)
    # February and March were not told yet: January's emissions over January's output.
    assert made.months == ("2026-01",)
    assert made.indicators[0].emissions_mg == 744 * 100 * 497_400
    told(plant, "2026-03")
    made = labels.of_year(plant, 2026)
    assert made.months == ("2026-01", "2026-02", "2026-03")
    assert [one.reason for one in made.indicators] == [Reason.FIGURES_MISSING] * 3


def test_a_year_that_is_over_is_final_until_a_veto_and_the_next_months_are_watched(
    plant: Plant, operator: Caller, gateway: Caller
) -> None:
    months = [clock.add_months("2025-01", number) for number in range(15)]
    used(plant, "2025-01", "2025-12", 100)
    told(plant, *months)
    publish(operator, 2025, product=500_000)
    made = labels.of_year(plant, 2025)
    # 8,760 h x 100 kWh x 497.4 g over 1,200 t are 363,102 g/t, K 0.726.
    assert made.indicators[0].intensity == Fraction(8_760 * 100 * 4_974, 10 * 1_200)
    assert (made.label, made.doubts, made.completeness) == (Label.DARK_GREEN, (), 1)

    base = f"/v1/operator/plants/{plant.id}/label-vetoes"
    wanted = {"year": 2025, "kind": "data_fraud", "evidence": "inspection 12/2025"}
    veto = operator.post(base, wanted, key="once").get_json()
    assert operator.post(base, wanted, key="once").get_json()["id"] == veto["id"]
    assert asked(gateway, plant, 2025)["reason"] == "veto"
    assert asked(gateway, plant, 2025)["label"] == "unrated"
    lifted = operator.post(f"{base}/{veto['id']}/lift", {"reason": "appeal upheld"})
    assert lifted.get_json()["lifted_at"] is not None
    assert asked(gateway, plant, 2025)["label"] == "dark_green"
    assert [one["id"] for one in operator.get(base).get_json()["items"]] == [veto["id"]]

    # From January on three times as much: (9 x 1 + 3 x 3) / 12 = 1.5 times, K about 1.09.
    used(plant, "2026-01", "2026-03", 300)
    inventory_days.sweep(clock.now())
    alert_reviews.review(clock.now())
    [alert] = [one for one in alerts.live(plant.id) if one.rule is Rule.LABEL]
    assert alert.facts == {"label": "light_green", "final": "dark_green"}
    alert_reviews.review(clock.now())
    assert len(alerts.listed(plant.id, None, before=None, limit=10)) == 1


def test_without_averages_ten_plants_of_a_sector_are_compared(plant: Plant) -> None:
    used(plant, "2026-03", "2026-03", 100)
    told(plant, "2026-03")
    mine = labels.of_year(plant, 2026)
    product = mine.indicators[0]
    for number in range(1, 10):
        # Nine others with 10, 20 ... 90 % of this one's emissions: it is the worst of ten.
        other = replace(product, emissions_mg=product.emissions_mg * number // 10)
        named = replace(plant, id=f"plt_{number}")
        labels.keep(replace(mine, plant=named, indicators=(other,)))
        labels.keep(replace(mine, plant=named, indicators=(other,)))
        made = labels.of_year(plant, 2026)
        wanted = (Label.RED, None) if number == 9 else (Label.UNRATED, Reason.NO_BENCHMARK)
        assert (made.indicators[0].label, made.indicators[0].reason) == wanted
        assert made.indicators[0].peers == number + 1
    # Another sector's plants are no peers, and the plant itself is counted once.
    labels.keep(made)
    assert labels.of_year(plant, 2026).indicators[0].peers == 10
    assert labels.of_year(replace(plant, sector="C2511"), 2026).indicators[0].peers == 1


def test_gaps_make_a_label_provisional(plant: Plant) -> None:
    used(plant, "2026-01", "2026-01", 100)
    begin = clock.start_of(clock.first_day("2026-02"))
    rows = [Reading("m", begin + hour * HOUR, Decimal(1), Kind.INTERVAL) for hour in range(24)]
    readings.take(plant.id, rows)
    told(plant, "2026-01", "2026-02")
    made = labels.of_year(plant, 2026)
    assert Doubt.COMPLETENESS in made.doubts


def test_benchmarks_are_versions_with_a_trail(operator: Caller) -> None:
    first = publish(operator, 2025, product=400_000)
    assert (first["version"], first["tax"]) == (1, None)
    # The same again is the same version, anything else the next.
    assert publish(operator, 2025, product=400_000)["version"] == 1
    assert publish(operator, 2025, product=390_000, tax=3, reason="census")["version"] == 2
    base = f"/v1/operator/benchmarks?sector={SECTOR}&year=2025"
    page = operator.get(f"{base}&limit=1").get_json()
    assert [one["version"] for one in page["items"]] == [2]
    rest = operator.get(f"{base}&limit=1&cursor={page['next_cursor']}").get_json()
    assert ([one["product"] for one in rest["items"]], rest["next_cursor"]) == ([400_000], None)
    trail = operator.get(f"/v1/operator/audit?subject={SECTOR}/2025").get_json()["items"]
    assert trail[0]["before"] == {"version": 1, "product": "400000"}
    assert (trail[0]["after"]["tax"], trail[0]["reason"]) == ("3", "census")
    with ThreadPoolExecutor(8) as pool:
        made = pool.map(
            lambda number: figures.add_benchmark("C9", 2025, {"tax": Decimal(number)}, "x").version,
            range(1, 9),
        )
    assert sorted(made) == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"product": 0},
        {"product": -1},
        {"product": "1"},
        {"product": 1, "year": 1999},
        {"product": 1, "colour": "green"},
    ],
)
def test_averages_that_cannot_be_are_refused(operator: Caller, wrong: dict[str, Any]) -> None:
    body = {"sector": SECTOR, "year": 2025, "source": "x"} | wrong
    answer = operator.post("/v1/operator/benchmarks", body)
    assert said(answer) == (422, "validation_failed")


def test_doors_of_labels(app: Flask, plant: Plant, operator: Caller, gateway: Caller) -> None:
    path = f"/v1/plants/{plant.id}/label"
    stranger = machine(app, ClientKind.PLANT, "plt_other")
    assert said(stranger.get(path)) == (403, "forbidden")
    assert said(resident(app).get(path)) == (403, "forbidden")
    assert said(operator.get("/v1/plants/plt_nothing/label")) == (404, "not_found")
    assert said(gateway.get(f"{path}?year=20261")) == (422, "validation_failed")
    for method, other, body in (
        ("POST", "/v1/operator/benchmarks", {"sector": "x", "year": 2025, "source": "x"}),
        ("POST", f"/v1/operator/plants/{plant.id}/label-vetoes", {}),
    ):
        assert said(gateway.send(method, other, body)) == (403, "forbidden")
    base = f"/v1/operator/plants/{plant.id}/label-vetoes"
    assert said(operator.post(f"{base}/vto_none/lift", {"reason": "x"})) == (404, "not_found")


def test_who_lifts_a_veto_first_stays(plant: Plant) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = pool.map(
            lambda number: (
                label_vetoes.add(
                    plant.id,
                    2025,
                    label_vetoes.Kind.MAJOR_PENALTY,
                    "fine",
                    f"op{number}",
                    "one key",
                ).id
            ),
            range(8),
        )
        [veto_id] = set(made)
        lifted = pool.map(
            lambda number: label_vetoes.lift(plant.id, veto_id, f"op{number}").lifted_by, range(8)
        )
        assert len(set(lifted)) == 1
    assert label_vetoes.standing(plant.id, {2025}) is None
