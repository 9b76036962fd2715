"""The operator over HTTP: merchants, rewards, and partners, who take two operators."""

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from callers import Caller, machine, partner, resident, said
from flask import Flask
from shop import EARNED, open_shop, rich_resident

from accounting import audit, clients, clock
from accounting.clients import BankKey, Kind
from api.app import create_app

NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)
MERCHANT: dict[str, Any] = {
    "name": {"zh": "共富商城", "en": "Common Prosperity Mall"},
    "stores": [{"name": "柯城店", "address": "柯城区"}],
}


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.travel(NOON - clock.now()):
        yield


@pytest.fixture
def operator(app: Flask) -> Caller:
    return machine(app, Kind.OPERATOR)


def sign_in(operator: Caller, made: dict[str, Any], party: str) -> Caller:
    """A caller with a token for credentials the operator was just shown."""
    answer = operator.http.post(
        "/v1/oauth/token",
        data={"grant_type": "client_credentials"},
        auth=(made["client_id"], made["client_secret"]),
    )
    assert answer.status_code == 200
    return Caller(operator.http, made[party], answer.get_json()["access_token"])


def actions(subject: str) -> list[tuple[str, str, str | None]]:
    return [(row.actor, row.action, row.reason) for row in audit.AuditDocument.objects(
        subject=subject)]  # fmt: skip


def test_a_new_merchant_can_use_its_till(operator: Caller) -> None:
    answer = operator.post("/v1/operator/merchants", MERCHANT)
    assert answer.status_code == 201
    made = answer.get_json()
    assert made.keys() == {"merchant_id", "stores", "client_id", "client_secret"}
    assert [store.keys() >= {"store_id"} for store in made["stores"]] == [True]
    till = sign_in(operator, made, "merchant_id")
    unknown = till.post("/v1/merchant/vouchers/lookup", {"code": "AAAA-AAAA-AAAAA"})
    assert said(unknown) == (404, "not_found")
    assert actions(made["merchant_id"]) == [(operator.id, "merchant added", None)]


def test_a_secret_is_shown_once_also_under_a_key(operator: Caller) -> None:
    first = operator.post("/v1/operator/merchants", MERCHANT, key="m1")
    again = operator.post("/v1/operator/merchants", MERCHANT, key="m1")
    assert again.headers["Idempotency-Replayed"] == "true"
    assert first.get_json()["client_secret"]
    assert again.get_json() == first.get_json() | {"client_secret": None}


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"name": "Mall"}, "/name"),
        ({"name": {"zh": "商城"}}, "/name/en"),
        ({"stores": []}, "/stores"),
        ({"stores": [{"name": "柯城店"}]}, "/stores/0/address"),
        ({"stores": None}, "/stores"),
        ({"owner": "x"}, "/owner"),
    ],
    ids=str,
)
def test_a_merchant_that_is_not_complete_is_refused(
    operator: Caller, change: dict[str, Any], pointer: str
) -> None:
    answer = operator.post("/v1/operator/merchants", MERCHANT | change)
    assert said(answer) == (422, "validation_failed")
    assert answer.get_json()["errors"][0]["pointer"] == pointer


# --- rewards ------------------------------------------------------------------------------------


def test_a_reward_shows_its_stock_to_the_operator(app: Flask, operator: Caller) -> None:
    shop = open_shop(app)
    reward_id = shop.offer(stock=5, per_resident_limit=3)
    me = rich_resident(app)
    me.post("/v1/redemptions", {"reward_id": reward_id, "quantity": 2}, key="k1")
    [reward] = operator.get("/v1/operator/rewards").get_json()["items"]
    assert reward == {
        "id": reward_id,
        "title": {"zh": "公交单程券", "en": "One bus ride"},
        "description": {},
        "category": "",
        "image_url": None,
        "merchant_id": shop.till.id,
        "price_points": 500,
        "prices_by_grade": {},
        "face_value_fen": 100,
        "stock_left": 3,
        "stock_reserved": 0,
        "stock_issued": 2,
        "monthly_stock": None,
        "low_stock_at": None,
        "low_stock": False,
        "per_resident_limit": 3,
        "per_day_limit": None,
        "per_month_limit": None,
        "grades": [],
        "districts": [],
        "store_ids": [],
        "voucher_valid_days": 30,
        "unused": "lapse",
        "funder_id": "city",
        "funders": [{"funder_id": "city", "percent": 100}],
        "paused": False,
        "available_from": reward["available_from"],
        "available_to": None,
    }


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"title": {"zh": "券", "en": ""}}, "/title/en"),
        ({"price_points": 0}, "/price_points"),
        ({"price_points": -5}, "/price_points"),
        ({"price_points": "500"}, "/price_points"),
        ({"face_value_fen": -1}, "/face_value_fen"),
        ({"stock": -1}, "/stock"),
        ({"per_resident_limit": 0}, "/per_resident_limit"),
        ({"voucher_valid_days": 0}, "/voucher_valid_days"),
        ({"funder_id": "nobody"}, "/funder_id"),
        ({"available_from": "2026-05-20"}, "/available_from"),
        (
            {"available_from": "2026-06-01T00:00:00Z", "available_to": "2026-06-01T00:00:00Z"},
            "/available_to",
        ),
        ({"stock_issued": 1}, "/stock_issued"),
    ],
    ids=str,
)
def test_a_reward_that_cannot_be_is_pointed_at(
    app: Flask, operator: Caller, change: dict[str, Any], pointer: str
) -> None:
    reward = {
        "title": {"zh": "券", "en": "Voucher"},
        "merchant_id": open_shop(app).till.id,
        "price_points": 500,
        "face_value_fen": 100,
        "stock": 5,
        "voucher_valid_days": 30,
    }
    answer = operator.post("/v1/operator/rewards", reward | change)
    assert said(answer) == (422, "validation_failed")
    assert [error["pointer"] for error in answer.get_json()["errors"]] == [pointer]
    unknown = operator.post("/v1/operator/rewards", reward | {"merchant_id": "mer_none"})
    assert said(unknown) == (404, "not_found")
    assert operator.get("/v1/operator/rewards").get_json()["items"] == []


def approve(operator: Caller, made: dict[str, Any]) -> None:
    """Another operator lets a new partner in."""
    other = machine(operator.http.application, Kind.OPERATOR)
    done = other.post(f"/v1/operator/partners/{made['client_id']}/approve")
    assert done.get_json()["needs_approval"] is False


# --- partners -----------------------------------------------------------------------------------


def test_a_new_data_partner_reports_what_it_may(operator: Caller) -> None:
    made = operator.post(
        "/v1/operator/partners",
        {"kind": "data", "name": "公交集团", "behaviours": ["bus_km"], "id_namespace": "bus:"},
    ).get_json()
    assert made.keys() == {"partner_id", "kind", "client_id", "client_secret"}
    approve(operator, made)
    buses = sign_in(operator, made, "partner_id")
    row = {
        "external_id": "bus:1", "behaviour": "bus_km", "quantity": 1,
        "occurred_at": "2026-05-20T08:00:00+08:00", "source_event_id": "e1",
    }  # fmt: skip
    answer = buses.post(
        "/v1/feeds/activities",
        {"activities": [row, row | {"behaviour": "metro_km", "source_event_id": "e2"}]},
    )
    parked, refused = answer.get_json()["results"]
    assert (parked["status_code"], parked["activity"]["status"]) == (201, "parked")
    assert (refused["status_code"], refused["problem"]["code"]) == (403, "behaviour_not_allowed")
    # A link needs a code: that is the default.
    link = {"partner_id": made["partner_id"], "external_id": "bus:1"}
    answer = resident(operator.http.application).post("/v1/me/links", link)
    assert said(answer) == (422, "invalid_link_code")


def test_a_new_bank_signs_with_the_key_it_was_shown(app: Flask, operator: Caller) -> None:
    made = operator.post(
        "/v1/operator/partners", {"kind": "bank", "name": "柯城农商银行"}, key="b1"
    )
    shown = made.get_json()
    assert shown.keys() == {
        "partner_id", "kind", "client_id", "client_secret", "key_id", "hmac_key_b64",
    }  # fmt: skip
    again = operator.post(
        "/v1/operator/partners", {"kind": "bank", "name": "柯城农商银行"}, key="b1"
    )
    assert again.get_json() == shown | {"client_secret": None, "hmac_key_b64": None}
    approve(operator, shown)
    key = BankKey(
        shown["key_id"], shown["client_id"], clients.HMAC_SHA256,
        base64.b64decode(shown["hmac_key_b64"]),
    )  # fmt: skip
    bank = sign_in(operator, shown, "partner_id")
    with clock.travel(-(NOON - datetime.now(UTC))):  # Nonces are taken since the store began.
        bank = replace(sign_in(operator, shown, "partner_id"), key=key)
        answer = bank.get("/v1/bank/grades/ref_none?purpose=loan")
    assert said(answer) == (404, "no_grade_available")


def token_for(operator: Caller, made: dict[str, Any]) -> int:
    """What the credentials of a new partner are answered."""
    auth = (made["client_id"], made["client_secret"])
    form = {"grant_type": "client_credentials"}
    return operator.http.post("/v1/oauth/token", data=form, auth=auth).status_code


@pytest.mark.parametrize("kind", ["data", "bank"])
def test_credentials_of_a_partner_work_once_a_second_operator_agrees(
    app: Flask, operator: Caller, kind: str
) -> None:
    partners = "/v1/operator/partners"
    made = operator.post(partners, {"kind": kind, "name": "公交集团"}).get_json()
    assert token_for(operator, made) == 401
    [waits] = operator.get(partners).get_json()["items"]
    assert waits == {
        "partner_id": made["partner_id"], "kind": kind, "name": "公交集团",
        "client_id": made["client_id"], "needs_approval": True, "asked_by": operator.id,
        "approved_by": None,
    }  # fmt: skip
    path = f"{partners}/{made['client_id']}/approve"
    assert said(operator.post(path)) == (403, "second_operator_needed")
    assert token_for(operator, made) == 401
    others = [machine(app, Kind.OPERATOR) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda one: one.post(path), others))
    # One of the four approved, and all are told the same.
    [won] = {answer.get_json()["approved_by"] for answer in answers}
    for answer in answers:
        assert answer.status_code == 200
        assert answer.get_json() == waits | {"needs_approval": False, "approved_by": won}
    assert token_for(operator, made) == 200
    assert operator.get(partners).get_json()["items"] == []
    # Again it changes nothing, whoever asks.
    assert operator.post(path).get_json()["needs_approval"] is False
    agreed, added = audit.trail(subject=made["partner_id"], limit=9)
    assert (added.actor, added.action) == (operator.id, "partner added")
    assert (agreed.actor, agreed.action) == (won, "partner approved")
    assert agreed.after == {"client_id": made["client_id"], "approved_by": won}
    assert won in {one.id for one in others}
    assert said(operator.post(f"{partners}/cli_none/approve")) == (404, "not_found")


def test_in_the_demo_one_operator_adds_a_partner(app: Flask, tmp_path: Path) -> None:
    config = replace(app.extensions["config"], demo=True, data_dir=tmp_path)
    alone = machine(create_app(config), Kind.OPERATOR)
    made = alone.post("/v1/operator/partners", {"kind": "data", "name": "公交集团"}).get_json()
    assert token_for(alone, made) == 200
    assert alone.get("/v1/operator/partners").get_json()["items"] == []


def test_the_approver_that_died_before_the_audit_approves_again(
    app: Flask, operator: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = operator.post("/v1/operator/partners", {"kind": "data", "name": "x"}).get_json()
    path = f"/v1/operator/partners/{made['client_id']}/approve"
    other = machine(app, Kind.OPERATOR)

    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(audit, "note", dies)
        with pytest.raises(KeyboardInterrupt):
            other.post(path)
    assert other.post(path).status_code == 200
    assert [one.action for one in audit.trail(subject=made["partner_id"], limit=9)] == [
        "partner approved", "partner added",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"kind": "friend"}, "/kind"),
        ({"kind": None}, "/kind"),
        ({"name": ""}, "/name"),
        ({"behaviours": ["teleport"]}, "/behaviours"),
        ({"behaviours": "bus_km"}, "/behaviours"),
        ({"carriers": ["steam"]}, "/carriers/0"),
        ({"every_behaviour": True}, "/every_behaviour"),
        ({"link_code_required": False}, "/link_code_required"),
    ],
    ids=str,
)
def test_a_partner_that_cannot_be_is_pointed_at(
    operator: Caller, change: dict[str, Any], pointer: str
) -> None:
    answer = operator.post("/v1/operator/partners", {"kind": "data", "name": "x"} | change)
    assert said(answer) == (422, "validation_failed")
    [error] = answer.get_json()["errors"]
    assert error["pointer"] == pointer
    assert not error["message"].isascii()


# --- taking an activity back --------------------------------------------------------------------


def test_an_activity_is_taken_back_once_with_its_points(app: Flask, operator: Caller) -> None:
    me = rich_resident(app)
    [activity] = me.get("/v1/activities").get_json()["items"]
    path = f"/v1/operator/activities/{activity['id']}/reverse"
    first = operator.post(path, {"reason": "weighed twice"})
    assert first.status_code == 200
    assert (first.get_json()["status"], first.get_json()["points"]) == ("reversed", 0)
    assert first.get_json()["reduction_g"] == 0
    assert operator.post(path, {"reason": "weighed twice"}).get_json() == first.get_json()
    points = me.get("/v1/me/points").get_json()
    assert (points["available"], points["owed"]) == (0, 0)
    rows = me.get("/v1/me/points/entries").get_json()["items"]
    assert [(row["kind"], row["points"]) for row in rows] == [
        ("reverse", -EARNED), ("earn", EARNED),
    ]  # fmt: skip
    assert (operator.id, "activity reversed", "weighed twice") in actions(activity["id"])


def test_points_already_spent_are_owed(app: Flask, operator: Caller) -> None:
    me = rich_resident(app)
    me.post("/v1/redemptions", {"reward_id": open_shop(app).offer(price_points=20_000)}, key="k1")
    [activity] = me.get("/v1/activities").get_json()["items"]
    operator.post(f"/v1/operator/activities/{activity['id']}/reverse", {"reason": "refund"})
    points = me.get("/v1/me/points").get_json()
    assert (points["available"], points["owed"]) == (0, 20_000)


def test_what_cannot_be_taken_back_is_told(app: Flask, operator: Caller) -> None:
    unknown = "/v1/operator/activities/act_none/reverse"
    assert said(operator.post(unknown, {"reason": "x"})) == (404, "not_found")
    for body in ({}, {"reason": ""}, {"reason": None}, {"reason": "x", "points": 1}):
        assert said(operator.post(unknown, body)) == (422, "validation_failed")
    me = resident(app)
    recorded = me.post(
        "/v1/activities",
        {"behaviour": "bike_km", "quantity": 2, "occurred_at": "2026-05-20T08:00:00+08:00",
         "source_event_id": "r1"},
    ).get_json()  # fmt: skip
    answer = operator.post(
        f"/v1/operator/activities/{recorded['id']}/reverse", {"reason": "why not"}
    )
    assert said(answer) == (409, "nothing_to_reverse")
    assert actions(recorded["id"]) == []


def test_nobody_else_is_an_operator(app: Flask) -> None:
    for caller in (resident(app), partner(app), machine(app, Kind.MERCHANT)):
        for path in ("merchants", "rewards", "partners"):
            assert said(caller.post(f"/v1/operator/{path}", {})) == (403, "forbidden")
        assert said(caller.get("/v1/operator/rewards")) == (403, "forbidden")
