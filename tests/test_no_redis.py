"""Redis is away: residents keep what they have, and what needs Redis says when to come back."""

import socket
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from callers import Caller, machine, new_phone, partner, resident, said
from flask import Flask
from shop import EARNED, RECYCLED, open_shop

import api.app
from accounting import clock, outbox
from accounting.clients import Kind
from api import tasks

NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)
NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture(scope="module")
def alone(app: Flask) -> Iterator[Flask]:
    """The application without its Redis; afterwards the process has its queue back."""
    yield api.app.create_app(replace(app.extensions["config"], redis_url=NOWHERE))
    tasks.make_celery(app.extensions["config"])


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.travel(NOON - clock.now()):
        yield


def test_a_resident_reports_earns_spends_and_reads_as_ever(alone: Flask) -> None:
    me, city = resident(alone), partner(alone)
    me.post("/v1/me/links", {"partner_id": city.id, "external_id": "home-1"})
    city.post("/v1/feeds/activities", {"activities": [RECYCLED]})
    ride = {
        "behaviour": "bike_km", "quantity": 2, "occurred_at": "2026-05-20T08:00:00+08:00",
        "source_event_id": "r1",
    }  # fmt: skip
    assert me.post("/v1/activities", ride, key="k1").status_code == 201
    replayed = me.post("/v1/activities", ride, key="k1")
    assert replayed.headers["Idempotency-Replayed"] == "true"
    shop = open_shop(alone)
    redemption = me.post("/v1/redemptions", {"reward_id": shop.offer()}, key="k2").get_json()
    scanned = shop.till.post(
        "/v1/merchant/vouchers/redeem",
        {"code": redemption["vouchers"][0]["code"], "store_id": shop.store_id,
         "terminal_ref": "t1"},
    )  # fmt: skip
    assert scanned.status_code == 200
    assert me.get("/v1/me/points").get_json()["available"] == EARNED - 500
    assert me.get("/v1/me/summary").get_json()["reduction_g"] == 26_900
    assert me.get("/v1/me/grade").get_json()["reduction_kg"] == Decimal("26.9")
    for path in (
        "/v1/me", "/v1/activities", "/v1/redemptions", "/v1/me/points/entries",
        "/v1/me/consents", "/v1/me/access-log", "/v1/behaviours", "/v1/rewards",
    ):  # fmt: skip
        assert me.get(path).status_code == 200


def test_what_no_nudge_reached_is_left_for_the_sweep(alone: Flask) -> None:
    me, city = resident(alone), partner(alone)
    me.post("/v1/me/links", {"partner_id": city.id, "external_id": "home-1"})
    city.post("/v1/feeds/activities", {"activities": [RECYCLED]})
    assert len(me.get("/v1/me/notifications").get_json()["items"]) == 4
    due = outbox.collection().count_documents({"next_attempt_at": {"$ne": None}})
    assert due == 4


def test_a_redis_that_hangs_holds_up_one_nudge_not_each(
    app: Flask, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slow the machine, all ten are within the pause.
    monkeypatch.setattr(tasks, "PAUSE_S", 600.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # Connects, and never says a word.
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        celery = tasks.make_celery(replace(app.extensions["config"], redis_url=url))
        celery.conf.broker_transport_options |= {"socket_timeout": 0.3}
        for _ in range(10):
            tasks.nudge(tasks.deliver, "ntf_1")
    tasks.make_celery(app.extensions["config"])
    tasks.nudge(tasks.deliver, "ntf_1")
    assert [record.msg for record in caplog.records if "queue is away" in record.msg] == [
        "the queue is away, the sweep will find %s: %s"
    ]


def test_a_file_is_accepted_and_waits_for_the_sweep(alone: Flask) -> None:
    city = partner(alone)
    answer = city.post(
        "/v1/feeds/activities/files",
        data=b"{}\n",
        headers={"Content-Type": "application/x-ndjson"},
    )
    assert answer.status_code == 202
    assert city.get(answer.headers["Location"]).get_json()["state"] == "queued"


def test_signing_in_needs_redis_and_says_when_to_come_back(alone: Flask) -> None:
    http, phone = alone.test_client(), new_phone()
    for path, body in (
        ("/v1/auth/otp", {"phone": phone}),
        ("/v1/auth/token", {"phone": phone, "code": "123456"}),
    ):
        answer = http.post(path, json=body)
        assert said(answer) == (503, "unavailable")
        assert int(answer.headers["Retry-After"]) >= 1
        assert "redis" not in answer.text.lower()


def test_a_session_goes_on_without_redis(alone: Flask) -> None:
    me = resident(alone)
    assert me.post("/v1/auth/logout").status_code == 204
    assert said(me.get("/v1/me")) == (401, "unauthenticated")


def test_a_bank_is_refused_rather_than_read_twice(alone: Flask) -> None:
    bank: Caller = machine(alone, Kind.BANK)
    answer = bank.get("/v1/bank/grades/ref_1?purpose=loan")
    assert said(answer) == (503, "unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
    assert said(bank.unsigned().get("/v1/bank/grades/ref_1?purpose=loan")) == (
        401, "invalid_signature",
    )  # fmt: skip


def test_limits_fail_open_and_say_nothing(alone: Flask) -> None:
    answer = resident(alone).get("/v1/me")
    assert answer.status_code == 200
    assert not [name for name in answer.headers if str(name[0]).startswith("RateLimit-")]


def test_readiness_says_degraded(alone: Flask) -> None:
    http = alone.test_client()
    answer = http.get("/readyz")
    assert (answer.status_code, answer.get_json()) == (200, {"status": "degraded"})
    assert http.get("/healthz").status_code == 200
