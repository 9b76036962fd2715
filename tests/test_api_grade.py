"""What a resident can ask about a grade: explanation, advice, objection; and made again by hand.

The worked resident of `test_api_grades_and_bank`: 80.7 kg of recyclables in three rows and one bus
ride of 0.2152 kg; 40 % of 80.9152 kg are 32.36608, so 32.58128 kg count.
"""

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from callers import Caller, machine, resident, said
from flask import Flask
from lives import did

from accounting import audit, clock, outbox, storage
from accounting.clients import Kind
from api import grading as made_again
from api.config import Config
from footprint import grade, grade_advice, reviews
from footprint.summaries import Row
from points import crediting

NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)
POLICY = grade.policy_on(NOON.date())
KG = 1_000_000


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.travel(NOON - clock.now()):
        yield


@pytest.fixture
def me(app: Flask) -> Caller:
    me = resident(app)
    for month in ("03", "04", "05"):
        did(me.id, "recycle_kg", 20, f"2026-{month}-10 10:00")
    did(me.id, "bus_km", 8, "2026-05-11 10:00")
    return me


def rows(**kg_and_count: tuple[int, int]) -> list[Row]:
    return [
        Row("2026-05", code, "A", bank_grade=True, mg=kg * KG, count=count)
        for code, (kg, count) in kg_and_count.items()
    ]


def test_advice_counts_with_the_share_cap() -> None:
    """Twenty rides of 1 kg and 25 kg of recyclables: how many rides to 50 kg counted?"""
    amounts = {"bus_km": 20 * KG, "recycle_kg": 25 * KG}
    mine = rows(bus_km=(20, 20), recycle_kg=(25, 5))
    # With n rides more: raw 45 + n, of which one counts at most 40 %. From n = 18 on:
    # raw 63, at most 25.2: min(38, 25.2) + min(25, 25.2) = 50.2. With 17: 24.8 + 24.8 = 49.6.
    # Recycling, 5 kg each: with 4 raw 65, at most 26: 20 + 26 = 46; with 5 raw 70, at most
    # 28: 20 + 28 = 48; with 6 raw 75, at most 30: 20 + 30 = 50.
    found = grade_advice.advise(POLICY, amounts, mine, 50 * KG, ["bus_km", "recycle_kg"])
    assert [(one.behaviour, one.times) for one in found] == [("bus_km", 18), ("recycle_kg", 6)]
    # What can no longer be done, or counts for no bank, is no advice.
    assert grade_advice.advise(POLICY, amounts, mine, 50 * KG, ["recycle_kg"]) == found[1:]
    health = [Row("2026-05", "walk_steps", "B", bank_grade=False, mg=KG, count=9)]
    assert grade_advice.advise(POLICY, amounts, health, 50 * KG, ["walk_steps"]) == []


def test_what_would_take_a_life_is_no_advice() -> None:
    amounts = {"e_invoice": KG}
    mine = rows(e_invoice=(1, 200))
    # 5 g each: 400 times are 2 kg, and raw 3 kg count 1.2 kg.
    assert grade_advice.advise(POLICY, amounts, mine, 50 * KG, ["e_invoice"]) == []


def test_a_resident_is_told_what_would_be_enough(me: Caller) -> None:
    answer = me.get("/v1/me/grade/advice", headers={"Accept-Language": "en"}).get_json()
    # Recycling: 26.9 kg each; the raw total needs (50 - 0.2152) / 0.4 = 124.462 kg: two more.
    # The bus: 215.2 g a ride; the cap of recycling rises with each: 0.4 (80.9152 + x) +
    # 0.2152 + x = 50 gives x = 12.4419..., 57.8 rides.
    assert answer["next"] == {"grade": "mid", "kg_to_go": Decimal("17.41872")}
    assert answer["active_months_to_go"] == 0
    told = {item["behaviour"]: item["times"] for item in answer["items"]}
    assert told == {"recycle_kg": 2, "bus_km": 58}
    assert answer["items"][0]["text"].startswith("about 2 more: ")
    zh = me.get("/v1/me/grade/advice").get_json()
    assert zh["items"][0]["text"].startswith("再完成约 2 次“")


def test_who_is_not_rated_is_told_how_many_months_are_missing(app: Flask) -> None:
    answer = resident(app).get("/v1/me/grade/advice").get_json()
    assert answer == {"active_months_to_go": 3, "items": []}


def test_a_grade_is_explained_by_dimension_and_rule(me: Caller) -> None:
    found = me.get("/v1/me/grade/explanation", headers={"Accept-Language": "en"}).get_json()
    assert (found["from_month"], found["to_month"]) == ("2025-05", "2026-05")
    assert (found["share_percent"], found["most_of_one_kg"]) == (40, Decimal("32.36608"))
    life, travel = found["dimensions"]
    assert (life["dimension"], life["counted_kg"]) == ("green_life", Decimal("32.36608"))
    [part] = life["behaviours"]
    assert (part["reduction_kg"], part["counted_kg"]) == (Decimal("80.7"), Decimal("32.36608"))
    assert travel["counted_kg"] == Decimal("0.2152")
    assert [(one["grade"], one["from_kg"]) for one in found["cut_offs"]] == [
        ("light", 0),
        ("mid", 50),
        ("deep", 100),
    ]
    assert (found["active_months"], found["active_months_min"]) == (3, 3)


def test_an_objection_is_decided_by_an_operator_in_time(app: Flask, me: Caller) -> None:
    answer = me.post("/v1/me/grade/objections", {"text": "April is missing"})
    assert answer.status_code == 201
    objection = answer.get_json()
    assert (objection["status"], objection["grading"]) == ("open", 1)
    # Twenty calendar days.
    assert objection["due_on"] == "2026-06-09"
    again = me.post("/v1/me/grade/objections", {"text": "April is missing"})
    assert (again.status_code, again.get_json()) == (200, objection)
    other = me.post("/v1/me/grade/objections", {"text": "May too"})
    assert said(other) == (409, "already_appealed")
    # Somebody wrote into a month: what the book says is another thing.
    month = {"account": me.id, "month": "2026-04"}
    storage.database()["summary_months"].update_one(month, {"$set": {"behaviours": []}})
    operator = machine(app, Kind.OPERATOR)
    [listed] = operator.get("/v1/operator/appeals").get_json()["items"]
    assert (listed["resident_id"], listed["grade"]["grade"]) == (me.id, "light")
    path = f"/v1/operator/appeals/{objection['appeal_id']}/decide"
    decision = {"uphold": True, "reason": "Made again from the book"}
    assert operator.post(path, decision).get_json()["status"] == "upheld"
    assert operator.post(path, decision).status_code == 200
    assert said(operator.post(path, {"uphold": False, "reason": "x"})) == (409, "already_decided")
    assert me.get("/v1/me/grade").get_json()["reduction_kg"] == Decimal("80.9152")
    [mine] = me.get("/v1/me/appeals").get_json()["items"]
    assert (mine["status"], mine["reason"]) == ("upheld", "Made again from the book")
    told = [one.type for one in outbox.inbox(me.id, before=None, limit=9)]
    assert "appeal_decided" in told
    [noted] = audit.trail(subject=f"{me.id}/1", limit=9)
    assert noted.action == f"{reviews.OBJECTION} accepted"


def test_objections_are_the_residents_own(app: Flask) -> None:
    operator = machine(app, Kind.OPERATOR)
    assert said(operator.post("/v1/me/grade/objections", {"text": "x"})) == (403, "forbidden")
    me = resident(app)
    for body in ({}, {"text": ""}, {"text": "x", "grade": "deep"}):
        assert said(me.post("/v1/me/grade/objections", body)) == (422, "validation_failed")


def test_an_operators_reversal_is_a_fraud_unless_it_says_otherwise(app: Flask, me: Caller) -> None:
    operator = machine(app, Kind.OPERATOR)
    told = [did(me.id, "ev_charge_kwh", 9, f"2026-05-{day} 10:00", vehicle="v") for day in
            ("12", "13", "14", "15", "16", "17")]  # fmt: skip
    # 80.7 + 24 + 0.2152 = 104.9152; 40 % are 41.96608; + 24 + 0.2152 = 66.18128: mid.
    assert me.get("/v1/me/grade").get_json()["grade"] == "mid"
    honest = {"reason": "counted twice", "fraud": False}
    for activity in told[:5]:
        path = f"/v1/operator/activities/{activity.id}/reverse"
        assert operator.post(path, honest).status_code == 200
    assert me.get("/v1/me/grade").get_json()["grade"] == "mid"
    path = f"/v1/operator/activities/{told[5].id}/reverse"
    operator.post(path, {"reason": "no such charger"})
    assert me.get("/v1/me/grade").get_json()["grade"] == "light"


# Made again.


@pytest.mark.usefixtures("app")
def test_a_grading_is_made_again_from_the_book_as_it_stood() -> None:
    anna = "res_anna"
    told = [did(anna, "recycle_kg", 20, f"2026-0{month}-10 10:00") for month in (3, 4, 5)]
    first = grade.grade_now(anna)
    crediting.reverse(told[0], reason="x", by="operator")
    did(anna, "bus_km", 8, "2026-05-11 10:00")
    last = grade.grade_now(anna)
    assert made_again.differing(first) == made_again.differing(last) == []
    assert made_again.on_day(anna, NOON.date()) == last
    assert made_again.on_day(anna, datetime(2026, 5, 19, tzinfo=UTC).date()) is None
    grades = storage.database()["grades"]
    grades.update_one({"_id": first.id}, {"$set": {"inputs.by_behaviour.recycle_kg": 1}})
    assert made_again.differing(grade.by_id(first.id)) == [
        "the kept inputs give another standing",
        "the book gives other inputs",
    ]


def explain(config: Config, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "api.cli", "grade", "explain", *arguments]
    env: dict[str, Any] = {
        **os.environ,
        "MONGODB_URI": config.mongodb_uri,
        "REDIS_URL": config.redis_url,
        "TANHUI_SECRET": base64.b64encode(config.secret).decode(),
    }
    root = Path(__file__).parents[1]
    return subprocess.run(
        command, cwd=root, env=env, capture_output=True, text=True, check=False, timeout=120
    )


def test_the_command_explains_and_says_whether_it_comes_out_again(
    config: Config, me: Caller
) -> None:
    me.get("/v1/me/grade")
    good = explain(config, me.id, "--on", "2026-05-20")
    assert good.returncode == 0, good.stderr
    assert "light (浅绿)" in good.stdout
    assert "32.581280 kg" in good.stdout
    assert good.stdout.endswith("the same.\n")
    early = explain(config, me.id, "--on", "2026-05-19")
    assert (early.returncode, early.stdout) == (1, "")
    assert early.stderr == f"tanhui: {me.id} was not graded by 2026-05-19\n"
