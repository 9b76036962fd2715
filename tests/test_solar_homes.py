"""Homes with solar panels: no saving on the grid's bill, their own use of what they made instead.

Worked by hand: 5 kW on a roof in Quzhou make about 480 kWh in May; 290 of them go into the grid,
190 are used at home. 190 x 497.4 g = 94,506 g, for a household of three 31,502 g each.
"""

import json
from collections.abc import Iterator
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest
from callers import Caller, partner, resident
from flask import Flask
from homes import (
    ANNA,
    BO,
    CHEN,
    GRID,
    NOW,
    bill,
    live_in,
    points_of,
    send,
    send_history,
    whole,
)

from accounting import book, clock
from accounting.errors import ValidationFailed
from api import feed_rows
from footprint import billing_rules, bills, summaries
from footprint.billing_rules import Generation
from integrations import imports
from points import bill_crediting

pytestmark = pytest.mark.usefixtures("app")


@pytest.fixture(autouse=True)
def _may() -> Iterator[None]:
    with clock.travel(NOW - clock.now()):
        yield


def sun(generated: object, exported: object = 0, certified: object = 0) -> Generation:
    return Generation(*(Decimal(str(kwh)) for kwh in (generated, exported, certified)))


@pytest.mark.parametrize(
    ("pv", "used", "saving", "because"),
    [
        (sun(480, 290), 190, 190, ()),
        (sun(480, 290, 40), 190, 150, ("pv_certified",)),
        (sun(480, 290, 480), 190, 0, ("pv_certified",)),
        (sun(480, 480), 0, 0, ("no_own_use",)),
        (sun(0), 0, 0, ("no_own_use",)),
    ],
)
def test_what_of_the_sun_counts(
    pv: Generation, used: int, saving: int, because: tuple[str, ...]
) -> None:
    verdict = billing_rules.own_use(pv)
    assert (verdict.saved, verdict.saving, verdict.reasons) == (used, saving, because)


@pytest.mark.parametrize(
    ("carrier", "pv"),
    [
        ("gas", sun(1)),
        ("electricity", sun(-1)),
        ("electricity", sun(1_000_001)),
        ("electricity", sun(10, 11)),
        ("electricity", sun(10, 0, 11)),
        ("electricity", sun(10, -1)),
    ],
)
def test_a_generation_that_cannot_be(carrier: Any, pv: Generation) -> None:
    live_in(ANNA)
    with pytest.raises(ValidationFailed):
        send(bill("2026-04", 240, carrier=carrier, pv=pv))
    assert bills.of_resident(ANNA, before=None, limit=9) == []


def test_own_use_is_credited_without_any_history_and_shared() -> None:
    live_in(ANNA, BO, CHEN)
    april = send(bill("2026-04", 120, pv=sun(480, 290)))
    assert april.judgement is not None
    assert (april.judgement.status, april.judgement.mg, april.points) == (
        "credited",
        190 * 497_400 // 3,
        31_502,
    )
    assert [points_of(who) for who in (ANNA, BO, CHEN)] == [31_502] * 3
    (cell,) = summaries.between(ANNA, *whole("2026-04")).cells
    assert (cell.behaviour, cell.mg, cell.bank_grade) == ("rooftop_pv_self_use", 31_502_000, True)
    # What the grid delivered is the footprint, by the grid's factor: 120 x 497.4 / 3.
    assert bills.emissions_between(ANNA, *whole("2026-04")) == {"electricity": 19_896_000}


def test_the_power_of_the_panels_is_never_taken_for_a_saving() -> None:
    live_in(ANNA, BO, CHEN)
    send_history(count=24)
    # From 1 May on there are panels; the bill of May 20 says so.
    first = send(bill("2026-05", 60, period_end=date(2026, 5, 20), pv=sun(300, 180)), "may")
    assert first.points == 120 * 497_400 // 3 // 1_000 == 19_896
    # The next one forgets to: 200 kWh where 300 were usual, and still no saving.
    with clock.travel(timedelta(days=30)):
        next_one = bill("2026-05", 60, period_start=date(2026, 5, 21))
        june = send(next_one, "june")
        assert june.outcome(clock.now()).reasons == ("pv_home",)
        # The utility corrects it, and what was used at home is credited.
        right = send(
            bill("2026-05", 60, period_start=date(2026, 5, 21), pv=sun(150, 100), corrects="june"),
            "june 2",
        )
        # May has its credited bill already.
        assert right.outcome(clock.now()).reasons == ("bill_month_credited",)
    assert book.head(ANNA).seq == 1


def test_without_panels_for_two_years_a_home_saves_like_any_other() -> None:
    live_in(ANNA)
    send(bill("2024-03", 100, pv=sun(300, 200)), "the last with panels")
    send_history(last="2026-03", count=24)
    # The two years before April 2026 begin in April 2024: 60 of 300 kWh, one share of three.
    assert send(bill("2026-04", 240)).points == 9_948


def test_panels_a_month_inside_the_two_years_still_count() -> None:
    live_in(ANNA)
    send(bill("2024-04", 100, pv=sun(300, 200)), "with panels")
    send_history(last="2026-03", count=23)
    april = send(bill("2026-04", 240))
    assert april.outcome(clock.now()).reasons == ("pv_home",)


def test_a_waiting_bill_is_told_of_panels_that_came_with_its_history() -> None:
    live_in(ANNA)
    april = send(bill("2026-04", 240))
    assert april.outcome(clock.now()).reasons == ("needs_history",)
    send(bill("2025-06", 100, pv=sun(300, 200)))
    assert bills.by_id(april.id).outcome(clock.now()).reasons == ("pv_home",)


def test_correcting_what_the_panels_made_takes_back_and_credits_anew() -> None:
    live_in(ANNA)
    send(bill("2026-04", 120, pv=sun(480, 290)), "e1")
    assert points_of(ANNA) == 31_502
    # 40 of the 190 kWh had a green certificate: 150 x 497.4 / 3 = 24,870 g.
    right = send(bill("2026-04", 120, pv=sun(480, 290, 40), corrects="e1"), "e2")
    assert right.outcome(clock.now()).status == "capped"
    assert points_of(ANNA) == 24_870
    assert [one.refs["points"] for one in book.entries(ANNA)] == [31_502, -31_502, 24_870]
    bill_crediting.reverse(right, reason="wrong meter", by=GRID)
    assert points_of(ANNA) == 0


# Over HTTP and from a file.

ROW = {
    "carrier": "electricity",
    "account_no": "3300-0001",
    "period_start": "2026-04-01",
    "period_end": "2026-04-30",
    "quantity": 120,
    "estimated": False,
    "source_event_id": "b1",
    "pv_generated_kwh": 480,
    "pv_exported_kwh": 290.5,
}


@pytest.fixture
def grid(app: Flask) -> Caller:
    return partner(app, carriers=["electricity"])


def test_the_grid_sends_what_the_panels_made_and_the_resident_reads_how_it_counted(
    app: Flask, grid: Caller
) -> None:
    me = resident(app)
    live_in(me.id, members=1)
    answer = grid.post("/v1/feeds/bills", {"bills": [ROW]}).get_json()["results"][0]
    assert answer["status_code"] == 201
    told = answer["bill"]
    assert (told["behaviour"], told["pv_generated_kwh"]) == ("rooftop_pv_self_use", 480)
    # 189.5 x 497.4 g = 94,257.3 g.
    assert (told["reduction_g"], told["points"]) == (Decimal("94257.3"), 94_257)
    working = me.get(f"/v1/me/bills/{told['id']}/explanation").get_json()
    assert [step["rule"] for step in working["steps"]][:2] == ["generation", "household_share"]
    assert working["inputs"]["exported"] == Decimal("290.5")


def test_parts_without_the_whole_are_refused(grid: Caller) -> None:
    row = {name: value for name, value in ROW.items() if name != "pv_generated_kwh"}
    answer = grid.post("/v1/feeds/bills", {"bills": [row]}).get_json()["results"][0]
    assert answer["status_code"] == 422
    assert answer["problem"]["errors"][0]["pointer"] == "/pv_generated_kwh"


def test_a_file_says_it_in_columns_of_its_own(app: Flask, grid: Caller) -> None:
    live_in(resident(app).id, members=1)
    content = ",".join(ROW) + "\n" + ",".join(json.dumps(one).strip('"') for one in ROW.values())
    answer = grid.send(
        "POST", "/v1/feeds/bills/files", data=content, headers={"Content-Type": "text/csv"}
    )
    job = imports.run(answer.get_json()["job_id"], feed_rows.take_file_rows)
    assert job is not None
    assert (job.state, job.counts["credited"]) == ("done", 1)
