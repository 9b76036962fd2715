"""Budgets: plans that add up, a forecast worked by hand, revisions, and how a year stands."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from callers import Caller, machine, resident, said
from flask import Flask

from accounting import audit, clock, storage
from accounting.clients import Kind as ClientKind
from accounting.enterprise import budget, budget_plans
from accounting.enterprise.budget import Day, Measure, Method, Plan
from accounting.errors import KeyReused, ValidationFailed
from api.views import budgets as views

USCC = "91330802MA2DH0000Y"
# Noon of 21 January 2026, a Wednesday: twenty days of the year are over.
NOON = datetime(2026, 1, 21, 4, tzinfo=UTC)
TODAY = date(2026, 1, 21)
WH = Measure.ENERGY


def days(first: date, amounts: list[int]) -> dict[date, Day]:
    return {first + timedelta(number): Day(amount) for number, amount in enumerate(amounts)}


# --- plans ---------------------------------------------------------------------------------------


def test_a_year_is_spread_over_its_months_by_days_to_the_last_watt_hour() -> None:
    spread = budget.by_month(Plan(2026, {WH: 1_000}), WH)
    # 1,000 x 31/365 = 84.9, x 59/365 = 161.6, x 90/365 = 246.5: the running sum is rounded down.
    assert spread[:3] == (84, 77, 85)
    assert sum(one or 0 for one in spread) == 1_000


def test_months_that_are_told_stand_and_the_others_share_the_rest() -> None:
    plan = Plan(2026, {WH: 1_000}, {"2026-01": {WH: 700}, "2026-12": {WH: 100}})
    spread = budget.by_month(plan, WH)
    # 200 over 303 days; February to March 59 of them: 28 x 200/303 = 18.5, 59 x 200/303 = 38.9.
    assert (spread[0], spread[11], spread[1], spread[2]) == (700, 100, 18, 20)
    assert sum(one or 0 for one in spread) == 1_000
    # January is told as 700: until the 21st 20 of its 31 days are over, 700 x 20/31 = 451.6.
    assert budget.planned_until(plan, WH, TODAY) == 451
    # Until 15 February: all of January, and 14 of 28 days of 18.
    assert budget.planned_until(plan, WH, date(2026, 2, 15)) == 709
    assert budget.planned_until(plan, WH, date(2027, 3, 1)) == 1_000


def test_twelve_months_are_a_year_and_eleven_are_not() -> None:
    monthly = {month: {WH: 10} for month in clock.months_of(2026)}
    assert budget.of_year(Plan(2026, {}, monthly), WH) == 120
    del monthly["2026-07"]
    some = Plan(2026, {}, monthly)
    assert budget.of_year(some, WH) is None
    assert budget.by_month(some, WH)[5:8] == (10, None, 10)
    assert budget.planned_until(some, WH, TODAY) is None


@pytest.mark.parametrize(
    "wrong",
    [
        Plan(2026, {}),
        Plan(2026, {WH: 10}, {"2025-12": {WH: 1}}),
        Plan(2026, {WH: 10}, {"2026-12": {WH: 11}}),
        Plan(2026, {WH: 13}, {month: {WH: 1} for month in clock.months_of(2026)}),
    ],
    ids=["nothing", "another year", "more than the year", "less than the year"],
)
def test_a_plan_that_does_not_add_up_is_refused(wrong: Plan) -> None:
    with pytest.raises(ValidationFailed):
        budget.check(wrong)


# --- forecasts -----------------------------------------------------------------------------------


def test_without_a_last_year_each_weekday_goes_on_as_it_did() -> None:
    # Four weeks from Monday 5 January: 100 on working days, 30 on Saturdays, nothing on Sundays.
    this = days(date(2026, 1, 5), [100, 100, 100, 100, 100, 30, 0] * 4)
    told = budget.forecast(2026, date(2026, 2, 2), this, {})
    # 2026 has 261 working days (it begins and ends on a Thursday), 52 Saturdays and 52 Sundays.
    assert told == budget.Forecast(261 * 100 + 52 * 30, Method.RECENT_WEEKS)


def test_with_a_last_year_the_rest_follows_it_at_this_years_ratio() -> None:
    last = days(date(2025, 1, 1), [100] * 181 + [200] * 184)
    this = days(date(2026, 1, 1), [90] * 31)
    told = budget.forecast(2026, date(2026, 2, 1), this, last)
    # 0.9 of last year: 181 x 90 + 184 x 180.
    assert told == budget.Forecast(181 * 90 + 184 * 180, Method.LAST_YEAR)


def test_a_last_year_with_holes_or_too_little_of_this_one_says_nothing() -> None:
    holes = days(date(2025, 1, 1), [100] * 320)
    whole = days(date(2025, 1, 1), [100] * 365)
    short, long = days(date(2026, 1, 1), [50] * 27), days(date(2026, 1, 1), [50] * 60)
    today = date(2026, 3, 2)
    assert budget.forecast(2026, today, long, holes).method is Method.RECENT_WEEKS
    assert budget.forecast(2026, today, short, whole).method is Method.RECENT_WEEKS
    assert budget.forecast(2026, today, long, whole).method is Method.LAST_YEAR


def test_a_day_that_is_missing_is_filled_and_one_half_known_is_doubled() -> None:
    this = days(date(2026, 1, 1), [100] * 10)
    del this[date(2026, 1, 4)]
    this[date(2026, 1, 6)] = Day(50, Fraction(1, 2))
    line = budget.line(2026, None, WH, date(2026, 1, 11), this, {})
    # Used is what is known, 8 x 100 + 50; the year is 365 days of 100.
    assert (line.used, line.forecast.amount) == (850, 36_500)
    assert line.months[0] == (None, 850)
    assert line.months[1] == (None, None)


def test_a_year_that_is_over_is_what_it_was_and_one_unknown_has_no_forecast() -> None:
    whole = days(date(2025, 1, 1), [7] * 365)
    assert budget.forecast(2025, TODAY, whole, {}) == budget.Forecast(7 * 365, Method.ACTUAL)
    assert budget.forecast(2026, TODAY, whole, {}) == budget.Forecast(None, Method.NO_DATA)


def test_today_counts_as_used_but_forecasts_only_where_nothing_else_does() -> None:
    today = {TODAY: Day(60, Fraction(1, 2))}
    before = days(date(2026, 1, 19), [100, 100])
    both = budget.line(2026, None, WH, TODAY, before | today, {})
    assert (both.used, both.forecast.amount) == (260, 36_500)
    only = budget.line(2026, None, WH, TODAY, today, {})
    assert (only.used, only.forecast.amount) == (60, 120 * 365)


def test_progress_surplus_and_how_far_ahead() -> None:
    this = days(date(2026, 1, 1), [120] * 20)
    line = budget.line(2026, Plan(2026, {WH: 36_500}), WH, TODAY, this, {})
    # 20 days at 120 against a plan of 100 a day: 2,400 of 36,500 used, 43,800 at the end. The
    # running sum of January is 36,500 x 31/365 = 3,100, of which 20/31 are 2,000.
    assert (line.used, line.planned_to_date, line.forecast.amount) == (2_400, 2_000, 43_800)
    assert (line.surplus, line.progress, line.ahead) == (
        -7_300,
        Fraction(2_400, 36_500),
        Fraction(1, 5),
    )


# --- kept ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("app")
def test_a_plan_is_changed_by_a_revision_and_the_same_again_is_none() -> None:
    first, second = Plan(2026, {WH: 10}), Plan(2026, {WH: 20}, {"2026-03": {Measure.CARBON: 5}})
    told = [budget_plans.tell("p", plan).revision for plan in (first, first, second)]
    assert told == [1, 1, 2]
    newest = budget_plans.plan_of("p", 2026)
    assert newest is not None
    assert newest.plan == second
    old = budget_plans.revision("p", 2026, 1)
    assert old is not None
    assert old.plan == first
    assert budget_plans.plan_of("p", 2025) is None


@pytest.mark.usefixtures("app")
def test_plans_of_eight_callers_at_once_have_no_gap() -> None:
    def tell(amount: int) -> int:
        return budget_plans.tell("p", Plan(2026, {WH: amount}), once=f"k{amount}").revision

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(tell, range(8))) == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.usefixtures("app")
def test_one_request_eight_times_at_once_is_one_revision() -> None:
    def tell(_: int) -> int:
        return budget_plans.tell("p", Plan(2026, {WH: 5}), once="k").revision

    with ThreadPoolExecutor(8) as pool:
        assert {*pool.map(tell, range(8))} == {1}
    with pytest.raises(KeyReused):
        budget_plans.tell("p", Plan(2026, {WH: 6}), once="k")


# --- over HTTP -----------------------------------------------------------------------------------


@pytest.fixture
def noon() -> Iterator[None]:
    with clock.stand(NOON):
        yield


@pytest.fixture
def works(app: Flask, noon: None) -> tuple[Caller, Caller]:
    """A plant's energy manager, and the operator; one meter that draws 50 kWh an hour."""
    operator = machine(app, ClientKind.OPERATOR)
    wanted = {"name": "示范织造厂", "uscc": USCC, "sector": "C1751"}
    made = operator.post("/v1/operator/plants", wanted).get_json()
    manager = machine(app, ClientKind.PLANT, made["plant_id"])
    meter = {"meter": "m1", "carrier": "electricity", "kind": "interval", "unit": "kWh"}
    operator.post(f"/v1/operator/plants/{manager.id}/meters", meter)
    begin = clock.start_of(date(2026, 1, 1))
    rows = [
        {
            "meter": "m1",
            "at": (begin + number * timedelta(minutes=15)).isoformat(),
            "value": 12.5,
            "kind": "interval",
        }
        for number in range(20 * 96)
    ]
    told = manager.post(f"/v1/plants/{manager.id}/readings", {"readings": rows}).get_json()
    assert told["accepted"] == len(rows)
    return manager, operator


def test_a_year_stands_against_its_plan(works: tuple[Caller, Caller]) -> None:
    manager, _ = works
    path = f"/v1/plants/{manager.id}/budget"
    plan = {"year": 2026, "yearly": {"kwh": 400_000, "tce": 130, "tco2": 200}}
    made = manager.post(path, plan)
    assert made.status_code == 201, made.text
    assert made.get_json()["plan"] == {"kwh": 400_000, "tce": 130, "tco2": 200}
    told = manager.get(f"{path}?year=2026").get_json()
    # 20 days of 1,200 kWh; 0.31 kgce and 0.4974 kg of CO2 each. The year is 365 such days.
    assert told["used"] == {"kwh": 24_000, "tce": Decimal("7.44"), "tco2": Decimal("11.9376")}
    assert told["forecast"] == {
        "kwh": 438_000,
        "tce": Decimal("135.78"),
        "tco2": Decimal("217.8612"),
    }
    assert told["surplus"]["kwh"] == -38_000
    assert told["surplus"]["tco2"] == Decimal("-17.8612")
    # 400,000 x 31/365 = 33,972.602 kWh for January (in whole Wh), of which 20/31 are over.
    assert told["planned_to_date"]["kwh"] == Decimal("21917.807")
    assert told["progress"]["kwh"] == Decimal("0.06")
    assert told["months"][0]["used"]["kwh"] == 24_000
    assert told["months"][1]["used"] == {"kwh": None, "tce": None, "tco2": None}
    assert (told["revision"], told["forecast_method"]["kwh"]) == (1, "recent_weeks")
    assert told["provisional"] is True
    assert told == manager.get(path).get_json()


def test_a_year_without_a_plan_or_data_shows_that(works: tuple[Caller, Caller]) -> None:
    manager, operator = works
    told = operator.get(f"/v1/plants/{manager.id}/budget?year=2025").get_json()
    nothing = {"kwh": None, "tce": None, "tco2": None}
    for name in ("plan", "used", "forecast", "surplus", "progress", "ahead"):
        assert told[name] == nothing, name
    assert (told["revision"], told["forecast_method"]["kwh"]) == (0, "no_data")


def test_a_plan_cut_off_before_it_was_noted_is_noted_by_the_retry(
    works: tuple[Caller, Caller], monkeypatch: pytest.MonkeyPatch
) -> None:
    manager, _ = works
    path = f"/v1/plants/{manager.id}/budget"
    first = {"year": 2026, "yearly": {"kwh": 400_000}}
    manager.post(path, first)

    def die(*_: Any, **__: Any) -> None:
        raise RuntimeError("killed")

    second = {"year": 2026, "yearly": {"kwh": 300_000}, "reason": "a line was sold"}
    with monkeypatch.context() as cut:
        cut.setattr(views.audit, "note", die)
        assert manager.post(path, second, key="k1").status_code == 500
    # Meanwhile another plan was told: the retry does not bring its own back to the front.
    assert manager.post(path, first, key="k2").get_json()["revision"] == 3
    assert manager.post(path, second, key="k1").get_json()["revision"] == 2
    assert manager.get(path).get_json()["plan"]["kwh"] == 400_000
    noted = {one.after["revision"]: one for one in audit.trail(subject=manager.id, limit=9)
             if one.action == "budget planned" and one.after}  # fmt: skip
    assert sorted(noted) == [1, 2, 3]
    assert noted[2].reason == "a line was sold"
    assert noted[2].before is not None
    assert noted[2].before["yearly"] == {"energy_wh": 400_000_000}
    assert storage.database()["plant_budgets"].count_documents({}) == 3


def test_whose_budget_it_is(app: Flask, works: tuple[Caller, Caller]) -> None:
    manager, operator = works
    path, plan = f"/v1/plants/{manager.id}/budget", {"year": 2026, "yearly": {"tce": 5}}
    assert operator.post(path, plan).status_code == 201
    for other in (machine(app, ClientKind.PLANT), resident(app)):
        assert said(other.get(path)) == (403, "forbidden")
        assert said(other.post(path, plan)) == (403, "forbidden")
    assert said(operator.get("/v1/plants/none/budget")) == (404, "not_found")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"year": 2026}, "/yearly"),
        ({"year": 1999, "yearly": {"kwh": 1}}, "/year"),
        ({"year": 2026, "yearly": {"kwh": -1}}, "/yearly/kwh"),
        ({"year": 2026, "yearly": {"gas": 1}}, "/yearly/gas"),
        ({"year": 2026, "monthly": [{"month": "2025-01", "kwh": 1}]}, "/monthly"),
        ({"year": 2026, "monthly": [{"month": "2026-01", "kwh": 1}] * 2}, "/monthly"),
    ],
)
def test_a_plan_that_is_none_is_refused(
    works: tuple[Caller, Caller], body: dict[str, Any], pointer: str
) -> None:
    manager, _ = works
    answer = manager.post(f"/v1/plants/{manager.id}/budget", body)
    assert said(answer) == (422, "validation_failed")
    assert answer.get_json()["errors"][0]["pointer"] == pointer
    assert said(manager.get(f"/v1/plants/{manager.id}/budget?year=20x6"))[0] == 422
