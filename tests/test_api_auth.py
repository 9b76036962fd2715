"""Sign-in over HTTP: codes, rotating tokens, Firebase, machine clients with scopes."""

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from callers import Caller, check_documented, machine, new_phone, resident, said
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

import api.app
from accounting import clients, clock
from accounting.clients import Kind

ZH, EN = {"Accept-Language": "zh-CN"}, {"Accept-Language": "en"}


class Phones:
    """A texter that keeps what it was given to send."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def send(self, phone: str, text: str) -> None:
        self.texts[phone] = text

    def code(self, phone: str) -> str:
        [code] = re.findall(r"\b[0-9]{6}\b", self.texts[phone])
        return code


@pytest.fixture
def phones(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Phones:
    phones = Phones()
    monkeypatch.setitem(app.extensions, "texter", phones)
    return phones


@pytest.fixture
def phone() -> Iterator[str]:
    return new_phone()


def post(http: FlaskClient, path: str, body: Any, **headers: str) -> TestResponse:
    answer = http.post(path, json=body, headers=headers)
    check_documented(http.application, "POST", path, answer)
    return answer


def sign_in(http: FlaskClient, phones: Phones, phone: str) -> dict[str, Any]:
    assert post(http, "/v1/auth/otp", {"phone": phone}).status_code == 202
    answer = post(http, "/v1/auth/token", {"phone": phone, "code": phones.code(phone)})
    assert answer.status_code == 200
    return answer.get_json()


def bearing(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# --- by text message ----------------------------------------------------------------------------


def test_a_texted_code_becomes_tokens(client: FlaskClient, phones: Phones, phone: str) -> None:
    asked = post(client, "/v1/auth/otp", {"phone": phone})
    assert (asked.status_code, asked.get_json()) == (202, {"expires_in": 300})
    answer = post(client, "/v1/auth/token", {"phone": phone, "code": phones.code(phone)})
    assert answer.status_code == 200
    signed_in = answer.get_json()
    assert signed_in.keys() == {
        "access_token", "refresh_token", "token_type", "expires_in", "resident_id"
    }  # fmt: skip
    assert (signed_in["token_type"], signed_in["expires_in"]) == ("Bearer", 900)
    me = client.get("/v1/me", headers=bearing(signed_in["access_token"]))
    assert me.get_json()["resident_id"] == signed_in["resident_id"]
    assert answer.headers["Cache-Control"] == "no-store"


def test_one_phone_is_one_resident_however_it_is_written(
    client: FlaskClient, phones: Phones, phone: str
) -> None:
    national = phone.removeprefix("+86")
    spaced = f"{national[:3]} {national[3:7]}-{national[7:]}"
    post(client, "/v1/auth/otp", {"phone": spaced})
    body = {"phone": national, "code": phones.code(phone)}
    first = post(client, "/v1/auth/token", body).get_json()
    again = resident(client.application, phone)
    assert first["resident_id"] == again.id


def test_a_second_code_within_a_minute_is_refused_and_says_when(
    client: FlaskClient, phones: Phones, phone: str
) -> None:
    assert post(client, "/v1/auth/otp", {"phone": phone}).status_code == 202
    code = phones.code(phone)
    refused = post(client, "/v1/auth/otp", {"phone": phone}, **EN)
    assert said(refused) == (429, "rate_limited")
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert refused.get_json()["detail"].startswith("Too many requests")
    # The code sent before stays good.
    answer = post(client, "/v1/auth/token", {"phone": phone, "code": code})
    assert answer.status_code == 200


def test_a_code_works_once_and_only_when_it_is_right(
    client: FlaskClient, phones: Phones, phone: str
) -> None:
    post(client, "/v1/auth/otp", {"phone": phone})
    code = phones.code(phone)
    wrong = f"{(int(code) + 1) % 1_000_000:06d}"
    refused = post(client, "/v1/auth/token", {"phone": phone, "code": wrong})
    assert said(refused) == (401, "invalid_code")
    assert refused.get_json()["detail"] == "验证码错误或已过期，请重新获取。"
    assert post(client, "/v1/auth/token", {"phone": phone, "code": code}).status_code == 200
    used = post(client, "/v1/auth/token", {"phone": phone, "code": code})
    assert said(used) == (401, "invalid_code")
    # A phone that never asked gets the same answer: nobody learns who has an account.
    stranger = post(client, "/v1/auth/token", {"phone": new_phone(), "code": code})
    assert said(stranger) == (401, "invalid_code")


def test_after_five_wrong_tries_even_the_right_code_is_refused(
    client: FlaskClient, phones: Phones, phone: str
) -> None:
    post(client, "/v1/auth/otp", {"phone": phone})
    code = phones.code(phone)
    wrong = {"phone": phone, "code": f"{(int(code) + 1) % 1_000_000:06d}"}
    tries = [said(post(client, "/v1/auth/token", wrong)) for _ in range(5)]
    assert tries == [(401, "invalid_code")] * 5
    answer = post(client, "/v1/auth/token", {"phone": phone, "code": code})
    assert said(answer) == (429, "rate_limited")
    assert int(answer.headers["Retry-After"]) >= 1


@pytest.mark.parametrize(
    "body",
    [
        {"phone": "12345"},
        {"phone": "110"},
        {"phone": "+0123456789"},
        {"phone": "23812345678"},
        {"phone": "１３８００１３８０００"},
        {"phone": "13800138000; DROP"},
        {"phone": 13800138000},
        {"phone": None},
        {"phone": ""},
        {},
        {"phone": "13800138000", "channel": "voice"},
    ],
    ids=str,
)
def test_a_phone_that_is_none_gets_no_code(
    client: FlaskClient, phones: Phones, body: dict[str, Any]
) -> None:
    answer = post(client, "/v1/auth/otp", body)
    assert said(answer) == (422, "validation_failed")
    assert answer.get_json()["errors"][0]["pointer"] in ("/phone", "/channel")
    assert phones.texts == {}


def test_the_code_is_shown_in_the_answer_in_the_demo_only(
    app: Flask, client: FlaskClient, phones: Phones, tmp_path: Any
) -> None:
    assert "debug_code" not in post(client, "/v1/auth/otp", {"phone": new_phone()}).get_json()
    config = replace(app.extensions["config"], demo=True, data_dir=tmp_path)
    http = api.app.create_app(config).test_client()
    phone = new_phone()
    shown = post(http, "/v1/auth/otp", {"phone": phone}).get_json()
    answer = post(http, "/v1/auth/token", {"phone": phone, "code": shown["debug_code"]})
    assert answer.status_code == 200


# --- sessions -----------------------------------------------------------------------------------


def test_refresh_tokens_rotate_and_a_copied_one_ends_the_session(
    client: FlaskClient, phones: Phones, phone: str
) -> None:
    first = sign_in(client, phones, phone)
    answer = post(client, "/v1/auth/refresh", {"refresh_token": first["refresh_token"]})
    assert answer.status_code == 200
    second = answer.get_json()
    assert second["resident_id"] == first["resident_id"]
    assert second["refresh_token"] != first["refresh_token"]
    assert client.get("/v1/me", headers=bearing(second["access_token"])).status_code == 200
    copied = post(client, "/v1/auth/refresh", {"refresh_token": first["refresh_token"]})
    assert said(copied) == (401, "unauthenticated")
    for token in (first["access_token"], second["access_token"]):
        assert client.get("/v1/me", headers=bearing(token)).status_code == 401
    for bad in (second["refresh_token"], first["access_token"], "x"):
        answer = post(client, "/v1/auth/refresh", {"refresh_token": bad})
        assert said(answer) == (401, "unauthenticated")


def test_signing_out_ends_both_tokens_of_this_phone_only(
    client: FlaskClient, phones: Phones, phone: str
) -> None:
    here = sign_in(client, phones, phone)
    elsewhere = resident(client.application, phone)
    me = Caller(client, here["resident_id"], here["access_token"])
    assert me.post("/v1/auth/logout").status_code == 204
    assert said(me.get("/v1/me")) == (401, "unauthenticated")
    assert said(me.post("/v1/auth/logout")) == (401, "unauthenticated")
    answer = post(client, "/v1/auth/refresh", {"refresh_token": here["refresh_token"]})
    assert said(answer) == (401, "unauthenticated")
    assert elsewhere.get("/v1/me").status_code == 200


def test_an_access_token_ends_after_a_quarter_of_an_hour(app: Flask) -> None:
    with clock.stand(clock.now()):
        me = resident(app)
        with clock.travel(timedelta(seconds=899)):
            assert me.get("/v1/me").status_code == 200
        with clock.travel(timedelta(seconds=900)):
            answer = me.get("/v1/me")
            assert said(answer) == (401, "unauthenticated")
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_a_forged_firebase_token_signs_nobody_in(client: FlaskClient) -> None:
    unsigned = "eyJhbGciOiJub25lIn0.eyJ1aWQiOiJ4In0."
    for token in ("x", unsigned, "x" * 8_000):
        answer = post(client, "/v1/auth/firebase", {"id_token": token})
        assert said(answer) == (401, "unauthenticated")
    answer = post(client, "/v1/auth/firebase", {"id_token": "x" * 8_001})
    assert said(answer) == (422, "validation_failed")


# --- machines -----------------------------------------------------------------------------------

TOKEN = "/v1/oauth/token"


@pytest.fixture
def merchant(app: Flask) -> tuple[str, str]:
    made, secret = clients.create_client(Kind.MERCHANT, "a shop", subject_id="mer_1")
    return made.client_id, secret


def ask(http: FlaskClient, auth: tuple[str, str] | None, **form: str) -> TestResponse:
    form = {"grant_type": "client_credentials"} | form
    answer = http.post(TOKEN, data=form, auth=auth)
    check_documented(http.application, "POST", TOKEN, answer)
    return answer


def test_a_client_gets_all_its_scopes_or_the_part_it_asks_for(
    client: FlaskClient, merchant: tuple[str, str]
) -> None:
    everything = ask(client, merchant)
    assert everything.status_code == 200
    body = everything.get_json()
    assert body.keys() == {"access_token", "token_type", "expires_in", "scope"}
    assert (body["token_type"], body["expires_in"]) == ("Bearer", 3_600)
    assert body["scope"] == "statements:read vouchers:redeem"
    part = ask(client, merchant, scope="statements:read").get_json()
    assert part["scope"] == "statements:read"
    # A token without the scope a door needs is a known caller that may not enter.
    lookup = client.post(
        "/v1/merchant/vouchers/lookup",
        json={"code": "X"},
        headers=bearing(part["access_token"]),
    )
    assert said(lookup) == (403, "forbidden")


def test_a_client_gets_no_scope_that_is_not_its_own(
    client: FlaskClient, merchant: tuple[str, str]
) -> None:
    for scope in ("operator", "vouchers:redeem operator", "nonsense"):
        assert said(ask(client, merchant, scope=scope)) == (403, "forbidden")


def test_credentials_may_come_in_the_form_and_must_be_right(
    client: FlaskClient, merchant: tuple[str, str]
) -> None:
    client_id, secret = merchant
    in_form = ask(client, None, client_id=client_id, client_secret=secret)
    assert in_form.status_code == 200
    for auth in ((client_id, secret[:-1]), ("cli_unknown", secret), ("", ""), None):
        answer = ask(client, auth)
        assert said(answer) == (401, "unauthenticated")
        assert "WWW-Authenticate" in answer.headers


def test_a_token_request_that_is_none_is_refused(
    client: FlaskClient, merchant: tuple[str, str]
) -> None:
    other = ask(client, merchant, grant_type="password")
    assert said(other) == (400, "malformed_request")
    assert said(client.post(TOKEN, auth=merchant)) == (400, "malformed_request")
    as_json = client.post(TOKEN, json={"grant_type": "client_credentials"}, auth=merchant)
    assert said(as_json) == (415, "unsupported_media_type")


def test_a_machine_token_ends_after_an_hour_and_opens_no_resident_door(app: Flask) -> None:
    shop = machine(app, Kind.MERCHANT)
    assert said(shop.get("/v1/me")) == (403, "forbidden")
    assert said(shop.post("/v1/activities", {})) == (403, "forbidden")
    with clock.travel(timedelta(seconds=3_601)):
        answer = shop.post("/v1/merchant/vouchers/lookup", {"code": "X"})
        assert said(answer) == (401, "unauthenticated")
    for token in ("", "x", shop.token[:-1], f"{shop.token}x"):
        stranger = replace(shop, token=token)
        answer = stranger.post("/v1/merchant/vouchers/lookup", {"code": "X"})
        assert said(answer) == (401, "unauthenticated")
