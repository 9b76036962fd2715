"""An operator's pushes over HTTP: preview, ask, watch, stop; alarms."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from callers import Caller, machine, resident, said
from flask import Flask
from lives import city

from accounting import alarms, clock
from accounting.clients import Kind
from api import tasks

NOON = city("2026-05-20 12:00")
DAY = timedelta(days=1)
BODY: dict[str, Any] = {
    "title": {"zh": "地球日", "en": "Earth Day"},
    "body": {"zh": "今天骑车吧", "en": "Ride a bike today"},
    "audience": {},
}


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.stand(NOON):
        yield


@pytest.fixture
def operator(app: Flask) -> Caller:
    return machine(app, Kind.OPERATOR)


def errors(answer: Any) -> list[str]:
    assert said(answer) == (422, "validation_failed")
    return [one["pointer"] for one in answer.get_json()["errors"]]


def test_a_push_from_its_preview_to_its_report(app: Flask, operator: Caller) -> None:
    anna, bo = resident(app), resident(app)
    anna.patch("/v1/me", {"district": "柯城区"})
    audience = {"districts": ["柯城区"], "grades": ["unrated"]}
    counted = operator.post("/v1/operator/pushes/preview", {"audience": audience})
    assert counted.get_json() == {
        "audience_count": 1, "exact": True, "opted_out": 0, "looked_at": 1,
    }  # fmt: skip
    made = operator.post("/v1/operator/pushes", BODY | {"audience": audience}, key="p1")
    assert made.status_code == 201
    push = made.get_json()
    assert (push["state"], push["audience_count"], push["report"]["left"]) == ("scheduled", 1, 0)
    assert push["audience"]["districts"] == ["柯城区"]
    again = operator.post("/v1/operator/pushes", BODY | {"audience": audience}, key="p1")
    assert (again.get_json()["id"], again.headers["Idempotency-Replayed"]) == (push["id"], "true")
    assert said(operator.post("/v1/operator/pushes", BODY, key="p1")) == (
        422,
        "idempotency_key_reused",
    )

    tasks.run_job(f"job_{push['id']}")
    [row] = anna.get("/v1/me/notifications").get_json()["items"]
    assert (row["type"], row["category"], row["title"]) == ("city_message", "marketing", "地球日")
    assert bo.get("/v1/me/notifications").get_json()["items"] == []
    anna.post(f"/v1/me/notifications/{row['id']}/read")
    seen = operator.get(f"/v1/operator/pushes/{push['id']}").get_json()
    assert seen["report"] == {
        "left": 1, "waiting": 1, "deferred": 0, "sent": 0, "folded": 0, "dropped": 0,
        "dropped_by": {}, "opened": 1,
    }  # fmt: skip

    stop = f"/v1/operator/pushes/{push['id']}/stop"
    ended = operator.post(stop, {"reason": "wrong day"}).get_json()
    assert (ended["state"], ended["stop_reason"]) == ("stopped", "wrong day")
    assert ended["report"]["dropped_by"] == {"stopped": 1}
    assert anna.get("/v1/me/notifications").get_json()["items"] == []
    trail = operator.get(f"/v1/operator/audit?subject={push['id']}").get_json()["items"]
    assert [(one["action"], one["reason"]) for one in trail] == [
        ("push stopped", "wrong day"),
        ("push asked for", None),
    ]
    assert trail[1]["after"]["audience"]["grades"] == ["unrated"]


def test_pushes_are_listed_newest_first_in_pages(operator: Caller) -> None:
    ids = [
        operator.post(
            "/v1/operator/pushes",
            BODY | {"not_before": "2026-05-21T10:00:00+08:00", "per_minute": 600},
        ).get_json()["id"]
        for _ in range(3)
    ]
    first = operator.get("/v1/operator/pushes?limit=2").get_json()
    assert [one["id"] for one in first["items"]] == [ids[2], ids[1]]
    assert first["items"][0]["not_before"] == "2026-05-21T02:00:00.000Z"
    rest = operator.get(f"/v1/operator/pushes?limit=2&cursor={first['next_cursor']}").get_json()
    assert ([one["id"] for one in rest["items"]], rest["next_cursor"]) == ([ids[0]], None)


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"audience": None}, "/audience"),
        ({"audience": {"district": ["柯城区"]}}, "/audience/district"),
        ({"audience": {"districts": []}}, "/audience/districts"),
        ({"audience": {"language": "fr"}}, "/audience/language"),
        ({"audience": {"grades": ["gold"]}}, "/audience/grades/0"),
        ({"audience": {"behaviours": ["flying"]}}, "/audience/behaviours"),
        ({"audience": {"within_months": 13}}, "/audience/within_months"),
        ({"audience": {"active_within_days": 0}}, "/audience/active_within_days"),
        (
            {"audience": {"active_within_days": 7, "inactive_for_days": 7}},
            "/audience/inactive_for_days",
        ),
        (
            {"audience": {"lifetime_kg_from": 10, "lifetime_kg_below": 10}},
            "/audience/lifetime_kg_below",
        ),
        ({"title": {"zh": "一"}}, "/title/en"),
        ({"body": {"zh": "一" * 401, "en": "One"}}, "/body/zh"),
        ({"deep_link": "https://example.com"}, "/deep_link"),
        ({"per_minute": 0}, "/per_minute"),
        ({"not_before": "2026-05-21"}, "/not_before"),
        ({"not_before": "2026-08-19T00:00:00Z"}, "/not_before"),
    ],
)
def test_a_push_that_makes_no_sense_is_refused_by_field(
    operator: Caller, change: dict[str, Any], pointer: str
) -> None:
    assert errors(operator.post("/v1/operator/pushes", BODY | change)) == [pointer]


def test_what_is_not_there_or_over_is_refused(operator: Caller) -> None:
    for path in ("psh_1", "psh_1/stop"):
        method = "POST" if path.endswith("stop") else "GET"
        body = {"reason": "x"} if method == "POST" else None
        answer = operator.send(method, f"/v1/operator/pushes/{path}", body)
        assert said(answer) == (404, "not_found")
    # An audience of nobody is over as soon as it has begun.
    push = operator.post("/v1/operator/pushes", BODY).get_json()["id"]
    tasks.run_job(f"job_{push}")
    tasks.sweep_half_done()
    assert operator.get(f"/v1/operator/pushes/{push}").get_json()["state"] == "sent"
    answer = operator.post(f"/v1/operator/pushes/{push}/stop", {"reason": "x"})
    assert said(answer) == (409, "push_over")


def test_only_who_runs_the_whole_programme_writes_to_the_city(app: Flask) -> None:
    for kind in (Kind.DATA, Kind.MERCHANT, Kind.BANK):
        for path in ("/v1/operator/pushes", "/v1/operator/alarms"):
            assert said(machine(app, kind).get(path)) == (403, "forbidden")
    assert said(resident(app).post("/v1/operator/pushes", BODY)) == (403, "forbidden")


def test_alarms_are_listed_newest_first(operator: Caller) -> None:
    for number in range(3):
        alarms.sound("push_failed", f"psh_{number}", failure=None)
        alarms.sound("push_failed", f"psh_{number}", failure=None)
    first = operator.get("/v1/operator/alarms?limit=2").get_json()
    assert [one["subject"] for one in first["items"]] == ["psh_2", "psh_1"]
    rest = operator.get(f"/v1/operator/alarms?cursor={first['next_cursor']}").get_json()
    assert [(one["kind"], one["subject"]) for one in rest["items"]] == [("push_failed", "psh_0")]
