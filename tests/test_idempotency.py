"""The Idempotency-Key: one effect, one answer, whatever happens in between."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any, ClassVar

import marshmallow as ma
import pytest
from flask import Flask, Response
from flask.testing import FlaskClient
from flask.views import MethodView
from marshmallow import fields

import api.app
import api.views
from accounting import clock, tokens
from accounting.errors import AccountBusy, NotFound
from api.idempotency import IdempotencyRecord, business_key, idempotent
from api.numbers import Quantity, Schema
from api.openapi import Blueprint, refuses
from api.security import RESIDENT, door

# Sign-in, and questions that are posted because they are long.
WITHOUT_KEY = (
    "/v1/oauth/token",
    "/v1/auth/",
    "/v1/merchant/vouchers/lookup",
    "/v1/bank/grades/query",
    "/v1/operator/partners/<partner_id>/profiles/preview",
)
SEVEN_DAYS = timedelta(days=7)
probe = Blueprint("probe", __name__)


class Order(Schema):
    what = fields.String(required=True)
    amount = Quantity()


class OrderAnswer(ma.Schema):
    number = fields.Integer()
    what = fields.String()
    secret = fields.String()


class Effects:
    """What the probe did, so that a test can count it, hold it up or make it fail."""

    done: ClassVar[list[str]] = []
    keys: ClassVar[list[str | None]] = []
    refusal: ClassVar[Exception | None] = None
    gate: ClassVar[threading.Event] = threading.Event()


class Orders(MethodView):
    @door(RESIDENT)
    @refuses("account_busy")
    @probe.arguments(Order)
    @idempotent(secrets=("secret",))
    @probe.response(201, OrderAnswer)
    def post(self, wanted: dict[str, Any]) -> Any:
        Effects.gate.wait(10)
        Effects.keys.append(business_key())
        if Effects.refusal:
            raise Effects.refusal
        Effects.done.append(wanted["what"])
        number = len(Effects.done)
        answer = {"number": number, "what": wanted["what"], "secret": "shown once"}
        return answer, 201, {"Location": f"/probe/orders/{number}"}


class OtherOrders(Orders):
    pass


class NeededKey(MethodView):
    @door(RESIDENT)
    @idempotent(required=True)
    def post(self) -> Response:
        return Response("plain", mimetype="text/plain")


probe.add_url_rule("/probe/orders", view_func=Orders)
probe.add_url_rule("/probe/others", view_func=OtherOrders)
probe.add_url_rule("/probe/needed", view_func=NeededKey)


@pytest.fixture(scope="module")
def probed(app: Flask) -> Iterator[Flask]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api.app, "BLUEPRINTS", (*api.views.BLUEPRINTS, probe))
        yield api.app.create_app(app.extensions["config"])


@pytest.fixture(autouse=True)
def fresh_effects() -> None:
    Effects.done, Effects.keys, Effects.refusal = [], [], None
    Effects.gate.set()


class Sender:
    def __init__(self, app: Flask, resident_id: str) -> None:
        self._app = app
        self._token = tokens.open_session(resident_id).access_token

    def send(self, key: str | None, body: str, path: str = "/probe/orders") -> Any:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        if key is not None:
            headers["Idempotency-Key"] = key
        return self._app.test_client().post(path, data=body, headers=headers)


@pytest.fixture
def mei(probed: Flask) -> Sender:
    return Sender(probed, "res_mei")


def code(answer: Any) -> str:
    return str(answer.get_json()["code"])


TEA = '{"what": "tea", "amount": 1.50}'


def test_the_second_try_is_answered_as_the_first_and_does_nothing(mei: Sender) -> None:
    first, second = mei.send("k1", TEA), mei.send("k1", '{"amount":1.50 ,"what":"te\\u0061"}')
    assert first.status_code == second.status_code == 201
    assert "Idempotency-Replayed" not in first.headers
    assert second.headers["Idempotency-Replayed"] == "true"
    for header in ("Content-Type", "Location"):
        assert first.headers[header] == second.headers[header]
    assert first.get_json()["secret"] == "shown once"
    assert second.get_json() == {**first.get_json(), "secret": None}
    assert Effects.done == ["tea"]


def test_without_a_key_each_request_is_its_own(mei: Sender) -> None:
    assert mei.send(None, TEA).get_json()["number"] == 1
    assert mei.send(None, TEA).get_json()["number"] == 2
    assert Effects.keys == [None, None]


def test_the_same_key_for_something_else_is_refused(mei: Sender) -> None:
    mei.send("k1", TEA)
    answer = mei.send("k1", '{"what": "coffee"}')
    assert (answer.status_code, code(answer)) == (422, "idempotency_key_reused")
    assert mei.send("k1", TEA).headers["Idempotency-Replayed"] == "true"
    assert Effects.done == ["tea"]


def test_callers_and_addresses_never_meet_in_one_key(probed: Flask, mei: Sender) -> None:
    chen = Sender(probed, "res_chen")
    mei.send("k1", TEA)
    assert chen.send("k1", '{"what": "rice"}').get_json()["what"] == "rice"
    assert mei.send("k1", '{"what": "soap"}', "/probe/others").get_json()["what"] == "soap"
    assert len(set(Effects.keys)) == 3


def test_the_key_belongs_to_the_caller_not_to_one_token(probed: Flask, mei: Sender) -> None:
    mei.send("k1", TEA)
    again = Sender(probed, "res_mei").send("k1", TEA)
    assert again.headers["Idempotency-Replayed"] == "true"


@pytest.mark.parametrize("key", ["", "x" * 256, "täst", "a\tb"])
def test_a_key_has_at_most_255_printable_characters(mei: Sender, key: str) -> None:
    answer = mei.send(key, TEA)
    assert (answer.status_code, code(answer)) == (422, "validation_failed")
    assert answer.get_json()["errors"][0]["pointer"] == "/Idempotency-Key"
    assert Effects.done == []
    assert mei.send("x" * 255, TEA).status_code == 201


def test_a_needed_key_is_missed(mei: Sender) -> None:
    answer = mei.send(None, "", "/probe/needed")
    assert (answer.status_code, code(answer)) == (422, "validation_failed")
    for replayed in (None, "true"):
        answer = mei.send("k1", "", "/probe/needed")
        assert answer.headers.get("Idempotency-Replayed") == replayed
        assert answer.get_data(as_text=True) == "plain"
        assert answer.mimetype == "text/plain"


def test_a_final_refusal_is_kept(mei: Sender) -> None:
    Effects.refusal = NotFound()
    first = mei.send("k1", TEA)
    assert (first.status_code, code(first)) == (404, "not_found")
    Effects.refusal = None
    second = mei.send("k1", TEA)
    assert second.get_data() == first.get_data()
    assert second.content_type == "application/problem+json"
    assert second.headers["Idempotency-Replayed"] == "true"
    assert Effects.done == []


@pytest.mark.parametrize("failure", [AccountBusy(retry_after=1), RuntimeError("a bug")])
def test_what_may_pass_is_tried_again_at_once_but_only_with_the_same_content(
    probed: Flask, mei: Sender, failure: Exception
) -> None:
    Effects.refusal = failure
    assert mei.send("k1", TEA).status_code in (409, 500)
    Effects.refusal = None
    assert code(mei.send("k1", '{"what": "coffee"}')) == "idempotency_key_reused"
    answer = mei.send("k1", TEA)
    assert answer.status_code == 201
    assert "Idempotency-Replayed" not in answer.headers
    assert len(set(Effects.keys)) == 1, "both tries acted under one business key"


def test_a_body_that_is_refused_uses_no_key_up(mei: Sender) -> None:
    assert mei.send("k1", '{"what": 5}').status_code == 422
    assert mei.send("k1", TEA).status_code == 201


def test_while_the_first_runs_the_second_is_asked_to_wait(mei: Sender) -> None:
    Effects.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(mei.send, "k1", TEA)
        while not IdempotencyRecord.objects.count():
            pass
        second = mei.send("k1", TEA)
        Effects.gate.set()
        assert first.result().status_code == 201
    assert (second.status_code, code(second)) == (409, "request_in_progress")
    assert 1 <= int(second.headers["Retry-After"]) <= 60
    assert Effects.done == ["tea"]


def test_of_eight_at_once_one_acts(mei: Sender) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: mei.send("k1", TEA), range(8)))
    assert Effects.done == ["tea"]
    assert {answer.status_code for answer in answers} <= {201, 409}


def test_after_a_crash_exactly_one_try_takes_over(mei: Sender) -> None:
    mei.send("k1", TEA)
    # As a killed process leaves it: running, no answer, its lease over.
    IdempotencyRecord.objects.update(
        set__state="running",
        unset__answer=1,
        set__lease_until=clock.now() - timedelta(seconds=1),
    )
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: mei.send("k1", TEA), range(8)))
    assert Effects.done == ["tea", "tea"]
    assert sum(answer.status_code == 201 for answer in answers) >= 1
    assert mei.send("k1", TEA).headers["Idempotency-Replayed"] == "true"
    assert len(set(Effects.keys)) == 1


def test_a_key_is_free_after_seven_days(probed: Flask) -> None:
    Sender(probed, "res_mei").send("k1", TEA)
    with clock.travel(SEVEN_DAYS - timedelta(seconds=30)):
        late = Sender(probed, "res_mei")
        assert late.send("k1", TEA).headers["Idempotency-Replayed"] == "true"
    with clock.travel(SEVEN_DAYS + timedelta(seconds=30)):
        later = Sender(probed, "res_mei")
        assert later.send("k1", '{"what": "rice"}').get_json()["what"] == "rice"


def test_the_record_outlives_redis_and_shows_nothing(probed: Flask, mei: Sender) -> None:
    # Long enough not to stand among random bytes by chance.
    key = "order-of-tea-1"
    mei.send(key, TEA)
    away = replace(probed.extensions["config"], redis_url="redis://127.0.0.1:1/0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api.app, "BLUEPRINTS", (*api.views.BLUEPRINTS, probe))
        without_redis = api.app.create_app(away)
    again = Sender(without_redis, "res_mei").send(key, TEA)
    assert again.headers["Idempotency-Replayed"] == "true"
    [record] = IdempotencyRecord.objects.as_pymongo()
    for shown in ("tea", "shown once", "res_mei", key):
        assert shown not in str(record)


def test_every_post_that_changes_something_takes_a_key(app: Flask) -> None:
    for rule in app.url_map.iter_rules():
        if "POST" in (rule.methods or ()) and not rule.rule.startswith(WITHOUT_KEY):
            view = app.view_functions[rule.endpoint]
            post = getattr(getattr(view, "view_class", None), "post", view)
            assert getattr(post, "idempotent", False), f"POST {rule.rule}"


def test_the_contract_tells_of_the_key(probed: Flask) -> None:
    client: FlaskClient = probed.test_client()
    paths = client.get("/openapi.json").get_json()["paths"]
    [header] = paths["/probe/needed"]["post"]["parameters"]
    assert (header["name"], header["in"], header["required"]) == ("Idempotency-Key", "header", True)
    assert (
        "request_in_progress" in paths["/probe/orders"]["post"]["responses"]["409"]["description"]
    )
