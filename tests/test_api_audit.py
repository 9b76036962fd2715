"""The audit trail over HTTP."""

from datetime import UTC, datetime, timedelta

import pytest
from callers import Caller, machine, resident, said
from flask import Flask

from accounting import audit, clock
from accounting.clients import Kind

NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)


@pytest.fixture
def operator(app: Flask) -> Caller:
    return machine(app, Kind.OPERATOR)


def test_the_trail_says_who_changed_what_and_why_newest_first(operator: Caller) -> None:
    # Changes of one instant stand in no order, so each has its own.
    with clock.stand(NOON):
        audit.note(
            "cli_a", "price changed", "rwd_1", reason="costs", before={"p": 5}, after={"p": 6}
        )
    with clock.stand(NOON + timedelta(seconds=1)):
        audit.note("cli_b", "reward paused", "rwd_2", once="pause:1")
        audit.note("cli_b", "reward paused", "rwd_2", once="pause:1")
    with clock.stand(NOON + timedelta(seconds=2)):
        audit.note("cli_a", "reward paused", "rwd_1")
    rows = operator.get("/v1/operator/audit").get_json()["items"]
    assert [(row["actor"], row["action"], row["subject"]) for row in rows] == [
        ("cli_a", "reward paused", "rwd_1"),
        ("cli_b", "reward paused", "rwd_2"),
        ("cli_a", "price changed", "rwd_1"),
    ]
    assert (rows[2]["reason"], rows[2]["before"], rows[2]["after"]) == ("costs", {"p": 5}, {"p": 6})
    about = operator.get("/v1/operator/audit?subject=rwd_1").get_json()["items"]
    assert [row["action"] for row in about] == ["reward paused", "price changed"]
    by = operator.get("/v1/operator/audit?actor=cli_b").get_json()["items"]
    assert [row["subject"] for row in by] == ["rwd_2"]


def test_pages_lose_no_change_of_the_same_instant(operator: Caller) -> None:
    with clock.travel(NOON - clock.now()):
        for number in range(7):
            # Named causes do not sort by time as new ids do.
            audit.note(
                "cli_a", "done", f"s{number}", once=f"cause:{number}" if number % 2 else None
            )
    seen: list[str] = []
    path = "/v1/operator/audit?limit=3"
    for _ in range(3):
        answer = operator.get(path).get_json()
        seen += [row["subject"] for row in answer["items"]]
        path = f"/v1/operator/audit?limit=3&cursor={answer['next_cursor']}"
    assert sorted(seen) == [f"s{number}" for number in range(7)]
    assert answer["next_cursor"] is None


def test_only_operators_read_it_and_by_one_filter(app: Flask, operator: Caller) -> None:
    assert said(resident(app).get("/v1/operator/audit")) == (403, "forbidden")
    both = operator.get("/v1/operator/audit?subject=a&actor=b")
    assert said(both) == (422, "validation_failed")
