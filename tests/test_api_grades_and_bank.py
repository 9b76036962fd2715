"""The personal grade, consents, and what a bank may read, over HTTP.

The worked resident: in each of March, April and May 20 kg of recyclables (26.9 kg of CO2) and, in
May, 8 km on the bus. 80.7 kg and 0.2152 kg make 80.9152 kg raw; one behaviour counts at most 40 %,
32.36608 kg, so 32.58128 kg count: light green, 17.41872 kg to mid green.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import jwt
import pytest
from callers import Caller, machine, named, partner, resident, said, signed
from flask import Flask

from accounting import clients, clock, consents, tokens
from accounting.clients import Kind
from accounting.errors import Unavailable
from integrations import jws
from integrations.signatures import NonceStore

# Wednesday 20 May 2026, noon in the city.
NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)
ENDS = "2026-12-31T00:00:00+08:00"
QUERY = "/v1/bank/grades/query"


@pytest.fixture(autouse=True)
def _noon(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Nonces are taken since the store began; this one began before our noon.
    nonces = NonceStore(app.extensions["redis"], prefix="nonce-at-noon")
    nonces.begin(NOON - timedelta(hours=1))
    monkeypatch.setitem(app.extensions, "nonces", nonces)
    with clock.travel(NOON - clock.now()):
        yield


@pytest.fixture
def me(app: Flask) -> Caller:
    """A resident with three active months."""
    me, city = resident(app), partner(app)
    me.post("/v1/me/links", {"partner_id": city.id, "external_id": "home-1"})
    rows = [
        {
            "external_id": "home-1",
            "behaviour": behaviour,
            "quantity": quantity,
            "occurred_at": f"{day}T10:00:00+08:00",
            "source_event_id": f"{behaviour}-{day}",
        }
        for behaviour, quantity, day in (
            ("recycle_kg", 20, "2026-03-10"),
            ("recycle_kg", 20, "2026-04-10"),
            ("recycle_kg", 20, "2026-05-10"),
            ("bus_km", 8, "2026-05-11"),
        )
    ]
    results = city.post("/v1/feeds/activities", {"activities": rows}).get_json()["results"]
    assert [result["activity"]["status"] for result in results] == ["credited"] * 4
    return me


@pytest.fixture
def bank(app: Flask) -> Caller:
    return machine(app, Kind.BANK)


def agree(me: Caller, bank: Caller, purpose: str = "green loan", **changes: Any) -> dict[str, Any]:
    body = {"bank_id": bank.id, "purpose": purpose, "fields": ["grade"], "expires_at": ENDS}
    answer = me.post("/v1/me/consents", body | {"real_name": named(me)} | changes)
    assert answer.status_code == 201, answer.text
    consent: dict[str, Any] = answer.get_json()
    return consent


def read(bank: Caller, reference: str, purpose: str = "green%20loan") -> Any:
    return bank.get(f"/v1/bank/grades/{reference}?purpose={purpose}")


# --- the grade ----------------------------------------------------------------------------------


def test_a_new_resident_is_not_rated(app: Flask) -> None:
    grade = resident(app).get("/v1/me/grade").get_json()
    assert grade == {
        "grade": "unrated",
        "label": "未评级",
        "reduction_kg": 0,
        "counted_kg": 0,
        "margin_below_kg": None,
        "coverage": {"active_months": 0, "months": 13, "share_ab_percent": 0},
        "by_dimension": {},
        "policy_version": "QZ-GRADE-2026.1",
        "graded_on": "2026-05-20",
        "valid_until": "2026-06-30",
    }


def test_the_grade_is_worked_out_with_its_margins(me: Caller) -> None:
    grade = me.get("/v1/me/grade", headers={"Accept-Language": "en"}).get_json()
    assert (grade["grade"], grade["label"]) == ("light", "Light green")
    assert grade["reduction_kg"] == Decimal("80.9152")
    assert grade["counted_kg"] == Decimal("32.58128")
    assert grade["margin_below_kg"] == Decimal("32.58128")
    assert grade["next"] == {"grade": "mid", "kg_to_go": Decimal("17.41872")}
    assert grade["by_dimension"] == {
        "green_life": Decimal("32.36608"), "green_travel": Decimal("0.2152"),
    }  # fmt: skip
    assert grade["coverage"] == {"active_months": 3, "months": 13, "share_ab_percent": 100}
    again = me.get("/v1/me/grade", headers={"Accept-Language": "en"}).get_json()
    assert again == grade
    history = me.get("/v1/me/grade/history", headers={"Accept-Language": "en"}).get_json()
    assert history == {"items": [grade], "next_cursor": None}


# --- consents -----------------------------------------------------------------------------------


def test_a_consent_is_given_seen_and_withdrawn(app: Flask, me: Caller, bank: Caller) -> None:
    consent = agree(me, bank, fields=["grade", "margin", "grade"])
    assert consent == {
        "id": consent["id"],
        "kind": "bank",
        "reference": consent["reference"],
        "bank_id": bank.id,
        "partner_id": None,
        "purpose": "green loan",
        "fields": ["grade", "margin"],
        "text_version": "2026-01",
        "status": "active",
        "created_at": consent["created_at"],
        "expires_at": "2026-12-30T16:00:00.000Z",
        "withdrawn_at": None,
    }
    second = agree(me, bank)
    assert second["reference"] != consent["reference"]
    assert me.get(f"/v1/me/consents/{consent['id']}").get_json() == consent
    items = me.get("/v1/me/consents").get_json()["items"]
    assert items == [second, consent]
    other = resident(app)
    assert other.get("/v1/me/consents").get_json()["items"] == []
    path = f"/v1/me/consents/{consent['id']}"
    assert said(other.get(path)) == said(other.delete(path)) == (404, "not_found")
    assert me.delete(path).status_code == 204
    assert me.delete(path).status_code == 204
    assert me.get(path).get_json()["status"] == "withdrawn"
    assert said(me.delete("/v1/me/consents/con_none")) == (404, "not_found")


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"bank_id": "bnk_none"}, "/bank_id"),
        ({"bank_id": None}, "/bank_id"),
        ({"partner_id": "ptn_1"}, "/partner_id"),
        ({"purpose": ""}, "/purpose"),
        ({"purpose": "x" * 129}, "/purpose"),
        ({"fields": []}, "/fields"),
        ({"fields": ["phone"]}, "/fields/0"),
        ({"fields": "grade"}, "/fields"),
        ({"expires_at": "2026-05-20T12:00:00+08:00"}, "/expires_at"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "/expires_at"),
        ({"expires_at": "2046-01-01T00:00:00Z"}, "/expires_at"),
        ({"expires_at": "2026-12-31"}, "/expires_at"),
        ({"text_version": "1999-01"}, "/text_version"),
        ({"kind": "everything"}, "/kind"),
        ({"resident_id": "res_1"}, "/resident_id"),
    ],
    ids=str,
)
def test_a_consent_that_cannot_be_given_is_pointed_at(
    me: Caller, bank: Caller, change: dict[str, Any], pointer: str
) -> None:
    body = {"bank_id": bank.id, "purpose": "p", "fields": ["grade"], "expires_at": ENDS} | change
    answer = me.post("/v1/me/consents", body)
    assert said(answer) == (422, "validation_failed")
    [error] = answer.get_json()["errors"]
    assert error["pointer"] == pointer
    assert not error["message"].isascii()
    assert me.get("/v1/me/consents").get_json()["items"] == []


def test_the_texts_are_open_to_all(app: Flask) -> None:
    listed = app.test_client().get("/v1/consent-texts").get_json()
    assert listed["next_cursor"] is None
    read, query = [], "limit=1"
    while len(read) < len(listed["items"]):
        one = app.test_client().get(f"/v1/consent-texts?{query}").get_json()
        read += one["items"]
        query = f"limit=1&cursor={one['next_cursor']}"
    assert (read, one["next_cursor"]) == (listed["items"], None)
    [zh] = app.test_client().get("/v1/consent-texts?kind=bank").get_json()["items"]
    headers = {"Accept-Language": "en"}
    [en] = app.test_client().get("/v1/consent-texts?kind=bank", headers=headers).get_json()["items"]
    assert (zh["version"], en["version"]) == ("2026-01", "2026-01")
    assert zh["text"].startswith("您同意")
    assert en["text"].startswith("You agree")


# --- what a bank reads --------------------------------------------------------------------------


def test_a_bank_reads_a_grade_under_consent_with_proof(
    app: Flask, me: Caller, bank: Caller
) -> None:
    reference = agree(me, bank)["reference"]
    answer = read(bank, reference)
    assert answer.status_code == 200
    grade = answer.get_json()
    proof = grade.pop("jws")
    assert grade == {
        "reference": reference,
        "grade": "light",
        "label": "浅绿",
        "period": {"from": "2025-05", "to": "2026-05"},
        "policy_version": "QZ-GRADE-2026.1",
        "graded_on": "2026-05-20",
        "valid_until": "2026-06-30",
    }
    keys = app.test_client().get("/.well-known/jwks.json").get_json()
    claims = jws.verify(proof, keys, audience=bank.id)
    assert claims == grade | {
        "iss": "http://localhost", "aud": bank.id, "iat": claims["iat"],
    }  # fmt: skip
    assert jwt.get_unverified_header(proof)["kid"] in {key["kid"] for key in keys["keys"]}
    with pytest.raises(jwt.InvalidAudienceError):
        jws.verify(proof, keys, audience="another bank")
    head, payload, signature = proof.split(".")
    with pytest.raises(jwt.InvalidTokenError):
        jws.verify(f"{head}.{payload[:-4]}AAAA.{signature}", keys, audience=bank.id)


def test_only_the_consented_fields_are_answered(me: Caller, bank: Caller) -> None:
    everything = agree(me, bank, fields=["grade", "margin", "coverage"])["reference"]
    grade = read(bank, everything).get_json()
    assert grade["margin_below_kg"] == Decimal("32.58128")
    assert grade["coverage"]["active_months"] == 3
    claims = jwt.decode(grade["jws"], options={"verify_signature": False})
    assert claims["margin_below_kg"] == 32.58128
    no_grade = agree(me, bank, fields=["margin"])["reference"]
    assert said(read(bank, no_grade)) == (404, "no_grade_available")


def test_whatever_is_missing_a_bank_gets_the_same_answer(
    app: Flask, me: Caller, bank: Caller
) -> None:
    consent = agree(me, bank)
    withdrawn, short = agree(me, bank), agree(me, bank, expires_at="2026-05-20T12:00:30+08:00")
    me.delete(f"/v1/me/consents/{withdrawn['id']}")
    stranger = machine(app, Kind.BANK)
    with clock.travel(timedelta(minutes=1)):
        answers = [
            read(bank, withdrawn["reference"]),
            read(bank, short["reference"]),
            read(bank, consent["reference"], "marketing"),
            read(bank, consent["reference"], "Green%20loan"),
            read(stranger, consent["reference"]),
            read(bank, "ref_unknown"),
            read(bank, consent["id"]),
        ]
        assert read(bank, consent["reference"]).status_code == 200
    assert {said(answer) for answer in answers} == {(404, "no_grade_available")}
    bodies = [{**answer.get_json(), "request_id": ""} for answer in answers]
    assert all(body == bodies[0] for body in bodies)
    headers = [
        {name: text for name, text in answer.headers.items()
         if name != "X-Request-ID" and not name.startswith("RateLimit-")}
        for answer in answers
    ]  # fmt: skip
    assert all(header == headers[0] for header in headers)


def test_many_grades_are_asked_for_at_once_in_order(me: Caller, bank: Caller) -> None:
    reference = agree(me, bank)["reference"]
    asked = ["ref_unknown", reference, reference]
    answer = bank.post(QUERY, {"purpose": "green loan", "references": asked})
    assert answer.status_code == 200
    unknown, first, second = answer.get_json()["results"]
    assert (unknown["status_code"], unknown["problem"]["code"]) == (404, "no_grade_available")
    assert first["status_code"] == second["status_code"] == 200
    assert first["grade"]["reference"] == reference
    single = read(bank, reference).get_json()
    assert {**first["grade"], "jws": ""} == {**single, "jws": ""}


@pytest.mark.parametrize(
    "change",
    [
        {"references": []},
        {"references": ["r"] * 501},
        {"references": "r"},
        {"references": [1]},
        {"references": [""]},
        {"purpose": ""},
        {"purpose": None},
        {"bank_id": "bnk_other"},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_query_that_cannot_be_read_is_refused(bank: Caller, change: dict[str, Any]) -> None:
    body = {"purpose": "green loan", "references": ["r"]} | change
    assert said(bank.post(QUERY, body)) == (422, "validation_failed")


def test_a_purpose_is_needed(bank: Caller) -> None:
    for query in ("", "?purpose=", f"?purpose={'x' * 129}", "?purpose=a&why=b"):
        answer = bank.get(f"/v1/bank/grades/ref_1{query}")
        assert said(answer) == (422, "validation_failed")


def test_every_read_is_in_the_residents_access_log(app: Flask, me: Caller, bank: Caller) -> None:
    reference = agree(me, bank, fields=["grade", "margin"])["reference"]
    read(bank, reference)
    read(bank, reference, "marketing")
    read(machine(app, Kind.BANK), reference)
    refused, allowed = me.get("/v1/me/access-log").get_json()["items"]
    assert allowed == {
        "id": allowed["id"],
        "bank_id": bank.id,
        "reference": reference,
        "purpose": "green loan",
        "what": "grade",
        "allowed": True,
        "fields": ["grade", "margin"],
        "at": allowed["at"],
    }
    assert (refused["purpose"], refused["allowed"], refused["fields"]) == ("marketing", False, [])
    assert resident(app).get("/v1/me/access-log").get_json()["items"] == []


@pytest.mark.parametrize("purpose", ["green%20loan", "marketing"])
def test_a_read_is_on_record_before_it_is_answered(
    me: Caller, bank: Caller, purpose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = agree(me, bank)["reference"]
    real, asked, may = consents._note, threading.Event(), threading.Event()

    def slowly(records: Any) -> None:
        asked.set()
        assert may.wait(30)
        real(records)

    monkeypatch.setattr(consents, "_note", slowly)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(read, bank, reference, purpose)
        assert asked.wait(30)
        with pytest.raises(TimeoutError):
            answer.result(0.05)
        assert me.get("/v1/me/access-log").get_json()["items"] == []
        may.set()
        status = answer.result(30).status_code
    assert status == (200 if purpose == "green%20loan" else 404)
    assert len(me.get("/v1/me/access-log").get_json()["items"]) == 1


def test_a_read_that_cannot_be_recorded_is_not_answered(
    me: Caller, bank: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = agree(me, bank)["reference"]

    def away(_: Any) -> None:
        raise Unavailable("the store")

    monkeypatch.setattr(consents, "_note", away)
    assert said(read(bank, reference)) == (503, "unavailable")


# --- the signature ------------------------------------------------------------------------------


def test_without_a_good_signature_a_bank_reads_nothing(
    app: Flask, me: Caller, bank: Caller
) -> None:
    reference = agree(me, bank)["reference"]
    path = f"/v1/bank/grades/{reference}?purpose=green%20loan"
    assert bank.key is not None
    plain = bank.unsigned()
    good = signed(bank.key, "GET", f"http://localhost{path}", b"")
    other_key = replace(bank.key, material=b"x" * 32)
    stranger = machine(app, Kind.BANK)
    assert stranger.key is not None
    refused = {
        "none": {},
        "half": {"Signature": good["Signature"]},
        "other target": signed(bank.key, "GET", f"http://localhost{path}2", b""),
        "other method": signed(bank.key, "POST", f"http://localhost{path}", b""),
        "other key": signed(other_key, "GET", f"http://localhost{path}", b""),
        "other bank": signed(stranger.key, "GET", f"http://localhost{path}", b""),
        "stale": signed(bank.key, "GET", f"http://localhost{path}", b"",
                        now=clock.now() - timedelta(seconds=301)),
        "ahead": signed(bank.key, "GET", f"http://localhost{path}", b"",
                        now=clock.now() + timedelta(seconds=301)),
        "nonsense": {"Signature-Input": "sig1=(", "Signature": "sig1=:x:"},
    }  # fmt: skip
    for why, headers in refused.items():
        answer = plain.get(path, headers=headers)
        assert said(answer) == (401, "invalid_signature"), why
    assert plain.get(path, headers=good).status_code == 200
    replayed = plain.get(path, headers=good)
    assert said(replayed) == (401, "invalid_signature")
    # Nothing was read by those that were refused.
    assert len(me.get("/v1/me/access-log").get_json()["items"]) == 1


def test_the_body_of_a_query_is_covered_by_the_signature(me: Caller, bank: Caller) -> None:
    reference = agree(me, bank)["reference"]
    assert bank.key is not None
    plain = bank.unsigned()
    content = plain.http.application.json.dumps(
        {"purpose": "green loan", "references": [reference]}
    )
    uri, other = f"http://localhost{QUERY}", content.replace("green", "grey")
    headers = signed(bank.key, "POST", uri, content.encode())
    swapped = plain.post(QUERY, data=other, headers=headers, content_type="application/json")
    assert said(swapped) == (401, "invalid_signature")
    bare = signed(bank.key, "POST", uri, b"")
    uncovered = plain.post(QUERY, data=content, headers=bare, content_type="application/json")
    assert said(uncovered) == (401, "invalid_signature")
    headers = signed(bank.key, "POST", uri, content.encode())
    good = plain.post(QUERY, data=content, headers=headers, content_type="application/json")
    assert good.status_code == 200


def test_a_key_does_not_keep_a_grade_readable_after_withdrawal(me: Caller, bank: Caller) -> None:
    consent = agree(me, bank)
    body = {"purpose": "green loan", "references": [consent["reference"]]}
    [before] = bank.post(QUERY, body, key="q1").get_json()["results"]
    me.delete(f"/v1/me/consents/{consent['id']}")
    [after] = bank.post(QUERY, body, key="q1").get_json()["results"]
    assert (before["status_code"], after["status_code"]) == (200, 404)
    assert len(me.get("/v1/me/access-log").get_json()["items"]) == 2


def test_a_token_without_the_scope_reads_nothing(app: Flask, me: Caller, bank: Caller) -> None:
    client = clients.of_subject(Kind.BANK, bank.id)
    assert client is not None
    token, _ = tokens.issue_client_token(client, frozenset({"terms:write"}))
    assert said(read(replace(bank, token=token), "ref_1")) == (403, "forbidden")
    assert said(me.get("/v1/bank/grades/ref_1?purpose=p")) == (403, "forbidden")
