"""Webhooks over HTTP: who may ask for what, secrets shown once, and what rooms leave."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from callers import Caller, machine, partner, resident, said
from flask import Flask
from receivers import Receiver, receiver

from accounting import clock, subscriptions
from accounting.clients import Kind
from integrations import webhook_targets, webhooks

POST = partial(webhook_targets.post, loopback=True)


@pytest.fixture
def there() -> Iterator[Receiver]:
    with receiver() as one:
        yield one


@pytest.fixture
def demo(app: Flask) -> Iterator[Flask]:
    """Loopback targets are for the demo."""
    before = app.extensions["config"]
    app.extensions["config"] = replace(before, demo=True)
    yield app
    app.extensions["config"] = before


def asked(who: Caller, url: str, *types: str, at: str = "/v1/webhooks", **options: Any) -> Any:
    return who.post(at, {"url": url, "events": list(types)}, **options)


def test_a_partner_hears_of_what_it_sent_and_took_back(demo: Flask, there: Receiver) -> None:
    bus = partner(demo)
    made = asked(bus, there.url, "activity.settled", "activity.reversed")
    assert made.status_code == 201
    hook = made.json["id"]
    assert made.json["secret"].startswith("whsec_")

    rider = resident(demo)
    link = {"partner_id": bus.id, "external_id": "card-1"}
    assert rider.post("/v1/me/links", link).status_code == 201
    row = {
        "external_id": "card-1",
        "behaviour": "e_invoice",
        "quantity": 1,
        "occurred_at": _now(),
        "source_event_id": "one",
        "attributes": {"invoice": "I-1"},
    }
    sent = bus.post("/v1/feeds/activities", {"activities": [row]})
    assert sent.json["results"][0]["status_code"] == 201, sent.json
    assert bus.post("/v1/feeds/activities", {"activities": [row]}).status_code == 200
    assert bus.post("/v1/feeds/activities/one/reverse", {"reason": "refund"}).status_code == 200
    webhooks.carry(hook, POST)

    first, second = there.taken
    assert (first["type"], second["type"]) == ("activity.settled", "activity.reversed")
    assert (first["sequence"], second["sequence"]) == (1, 2)
    assert first["aggregate"] == second["aggregate"]
    assert first["data"]["source_event_id"] == "one"
    assert first["data"]["status"] == "credited"
    # Nothing that would tell the partner who the resident is.
    assert rider.id not in str(there.got)

    log = bus.get(f"/v1/webhooks/{hook}/deliveries").json["items"]
    assert [(row["cursor"], row["state"], row["status"]) for row in log] == [
        (2, "delivered", 204),
        (1, "delivered", 204),
    ]
    again = bus.post(f"/v1/webhooks/{hook}/replay", {"cursor": 1}, key="again")
    assert (again.status_code, again.json) == (202, {"last_cursor": 2})
    webhooks.carry(hook, POST)
    assert [event["cursor"] for event in there.taken] == [1, 2, 2]
    beyond = bus.post(f"/v1/webhooks/{hook}/replay", {"cursor": 99})
    assert said(beyond) == (422, "validation_failed")


def test_secrets_are_shown_once_and_rotate(demo: Flask, there: Receiver) -> None:
    bank = machine(demo, Kind.BANK)
    made = asked(bank, there.url, "consent.withdrawn", key="one")
    again = asked(bank, there.url, "consent.withdrawn", key="one")
    assert (again.status_code, again.json["id"]) == (201, made.json["id"])
    assert again.json["secret"] is None
    path = f"/v1/webhooks/{made.json['id']}"
    rotated = bank.post(f"{path}/rotate")
    live = subscriptions.get(f"bank:{bank.id}", made.json["id"]).secrets
    assert live == (rotated.json["secret"], made.json["secret"])
    assert "secret" not in bank.get(path).json
    assert [row["id"] for row in bank.get("/v1/webhooks").json["items"]] == [made.json["id"]]
    assert said(bank.unsigned().get(path)) == (401, "invalid_signature")
    assert bank.delete(path).status_code == 204
    assert said(bank.get(path)) == (404, "not_found")
    assert said(bank.delete(path)) == (404, "not_found")


def test_nobody_sees_another_ones_webhooks(demo: Flask, there: Receiver) -> None:
    mine, other = partner(demo), partner(demo)
    hook = asked(mine, there.url, "job.done").json["id"]
    for method, path in (
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/deliveries"),
        ("POST", "/rotate"),
        ("POST", "/enable"),
    ):
        assert said(other.send(method, f"/v1/webhooks/{hook}{path}")) == (404, "not_found")
    replay = other.post(f"/v1/webhooks/{hook}/replay", {"cursor": 0})
    assert said(replay) == (404, "not_found")


def test_each_kind_may_ask_for_its_own_events(demo: Flask, there: Receiver) -> None:
    data, merchant = partner(demo), machine(demo, Kind.MERCHANT)
    operator = machine(demo, Kind.OPERATOR)
    assert said(asked(data, there.url, "consent.withdrawn")) == (422, "validation_failed")
    assert said(asked(merchant, there.url, "activity.settled")) == (422, "validation_failed")
    assert said(asked(data, there.url, "no.such")) == (422, "validation_failed")
    assert said(asked(data, there.url)) == (422, "validation_failed")
    assert asked(merchant, there.url, "voucher.used").status_code == 201
    plant = machine(demo, Kind.PLANT)
    assert asked(plant, there.url, "alert.opened", "alert.closed").status_code == 201
    assert said(asked(plant, there.url, "voucher.used")) == (422, "validation_failed")
    at = "/v1/operator/webhooks"
    assert asked(operator, there.url, "webhook.disabled", at=at).status_code == 201
    assert said(asked(operator, there.url, "job.done")) == (403, "forbidden")
    assert said(asked(data, there.url, "job.done", at=at)) == (403, "forbidden")
    assert said(asked(resident(demo), there.url, "job.done")) == (403, "forbidden")
    everybody = operator.get("/v1/operator/partner-webhooks?state=active").json["items"]
    assert [row["party"] for row in everybody] == [
        "operator:programme",
        f"plant:{plant.id}",
        f"merchant:{merchant.id}",
    ]


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:9/", "https://127.0.0.1/", "https://10.0.0.8/", "https://169.254.169.254/"],
)
def test_outside_the_demo_nothing_inside_is_reached(app: Flask, url: str) -> None:
    assert said(asked(partner(app), url, "job.done")) == (422, "validation_failed")


def test_ten_webhooks_are_enough(demo: Flask, there: Receiver) -> None:
    bus = partner(demo)
    for _ in range(subscriptions.WEBHOOKS_MAX):
        assert asked(bus, there.url, "job.done").status_code == 201
    assert said(asked(bus, there.url, "job.done")) == (409, "too_many_webhooks")


def _now() -> str:

    return clock.now().isoformat()
