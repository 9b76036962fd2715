"""A bank reads the report of a plant that let it, until it is taken back; each try is on record."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from io import BytesIO
from typing import Any

import pytest
from callers import Caller, machine, resident, said
from flask import Flask
from pypdf import PdfReader

from accounting import audit, clock
from accounting.clients import Kind
from integrations import jws
from integrations.signatures import NonceStore

USCC = "91330802MA2DH0000Y"
NOON = datetime(2026, 2, 9, 4, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _noon(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Nonces of a store of our own: what others signed at other times is none of ours.
    nonces = NonceStore(app.extensions["redis"], prefix="nonce-of-plants")
    nonces.begin(NOON - timedelta(hours=1))
    monkeypatch.setitem(app.extensions, "nonces", nonces)
    with clock.stand(NOON):
        yield


@pytest.fixture
def manager(app: Flask) -> Caller:
    """The energy manager of a plant that burned 1,000 Nm3 of natural gas on 2 February."""
    operator = machine(app, Kind.OPERATOR)
    wanted = {"name": "示范织造厂", "uscc": USCC, "sector": "C1751"}
    plant = operator.post("/v1/operator/plants", wanted).get_json()["plant_id"]
    gas = {"meter": "gas", "carrier": "natural_gas", "kind": "interval", "unit": "Nm3"}
    operator.post(f"/v1/operator/plants/{plant}/meters", gas)
    manager = machine(app, Kind.PLANT, plant)
    burned = {"meter": "gas", "at": "2026-02-02T00:00:00+08:00", "value": 1000, "kind": "interval"}
    manager.post(f"/v1/plants/{plant}/readings", {"readings": [burned]})
    return manager


@pytest.fixture
def bank(app: Flask) -> Caller:
    return machine(app, Kind.BANK)


def letter(bank: Caller, **other: Any) -> dict[str, Any]:
    return {
        "bank_id": bank.id,
        "purpose": "green loan",
        "signatory": "王建国",
        "letter_sha256": "ab" * 32,
        "expires_at": (NOON + timedelta(days=30)).isoformat(),
    } | other


def give(manager: Caller, body: dict[str, Any], **options: Any) -> Any:
    return manager.post(f"/v1/plants/{manager.id}/bank-authorisations", body, **options)


def read(bank: Caller, uscc: str = USCC, **options: Any) -> Any:
    return bank.get(f"/v1/bank/plants/{uscc}/report?year=2026", **options)


def test_a_bank_that_was_let_reads_the_plants_own_report(manager: Caller, bank: Caller) -> None:
    given = give(manager, letter(bank))
    assert given.status_code == 201
    assert (given.get_json()["signatory"], given.get_json()["withdrawn_at"]) == ("王建国", None)
    answer = read(bank)
    assert answer.status_code == 200
    report = answer.get_json()
    # 1,000 Nm3 x 2.1622 kg/Nm3.
    assert report["co2e_kg"] == Decimal("2162.2")
    assert report["plant"]["uscc"] == USCC
    own = manager.get(f"/v1/plants/{manager.id}/report?year=2026").get_json()
    assert report["sha256"] == own["sha256"]
    keys = bank.http.get("/.well-known/jwks.json").get_json()
    assert jws.verify(report["jws"], keys, audience=bank.id)["sha256"] == report["sha256"]


def test_the_bank_gets_the_pdf_too(manager: Caller, bank: Caller) -> None:
    give(manager, letter(bank))
    pdf = read(bank, headers={"Accept": "application/pdf"})
    assert pdf.mimetype == "application/pdf"
    assert "示范织造厂" in PdfReader(BytesIO(pdf.data)).pages[0].extract_text()


def test_without_a_live_authorisation_every_refusal_is_the_same(
    app: Flask, manager: Caller, bank: Caller
) -> None:
    other = machine(app, Kind.BANK)
    ended = give(manager, letter(bank)).get_json()
    assert manager.delete(
        f"/v1/plants/{manager.id}/bank-authorisations/{ended['id']}"
    ).status_code == 204  # fmt: skip
    give(manager, letter(other, expires_at=(NOON + timedelta(minutes=5)).isoformat()))
    assert read(other).status_code == 200
    with clock.stand(NOON + timedelta(minutes=5)):
        answers = [read(bank), read(bank, "91330802MA2DH0001X"), read(other)]
    assert {said(answer) for answer in answers} == {(404, "no_report_available")}
    bodies = [answer.get_json() | {"request_id": ""} for answer in answers]
    assert bodies[0] == bodies[1] == bodies[2]


def test_every_read_is_on_record_before_it_is_answered_and_the_plant_sees_it(
    manager: Caller, bank: Caller
) -> None:
    read(bank)
    give(manager, letter(bank))
    read(bank)
    log = manager.get(f"/v1/plants/{manager.id}/access-log").get_json()["items"]
    assert [(one["bank_id"], one["allowed"]) for one in log] == [(bank.id, True), (bank.id, False)]
    first = manager.get(f"/v1/plants/{manager.id}/access-log?limit=1").get_json()
    rest = manager.get(
        f"/v1/plants/{manager.id}/access-log?limit=1&cursor={first['next_cursor']}"
    ).get_json()
    assert [*first["items"], *rest["items"]] == log


def test_eight_retries_at_once_are_one_authorisation(manager: Caller, bank: Caller) -> None:
    def once(_: int) -> tuple[int, str]:
        answer = give(manager, letter(bank), key="letter-1")
        return answer.status_code, answer.get_json().get("id", answer.get_json().get("code"))

    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(once, range(8)))
    assert {status for status, _ in answers} <= {201, 409}
    assert {said for status, said in answers if status == 409} <= {"request_in_progress"}
    path = f"/v1/plants/{manager.id}/bank-authorisations"
    [kept] = manager.get(path).get_json()["items"]
    assert (201, kept["id"]) in answers
    assert len(audit.trail(subject=kept["id"], limit=50)) == 1


def test_taken_back_twice_it_ended_when_it_first_was(manager: Caller, bank: Caller) -> None:
    given = give(manager, letter(bank)).get_json()
    path = f"/v1/plants/{manager.id}/bank-authorisations"
    assert manager.delete(f"{path}/{given['id']}").status_code == 204
    with clock.stand(NOON + timedelta(minutes=5)):
        assert manager.delete(f"{path}/{given['id']}").status_code == 204
        [kept] = manager.get(path).get_json()["items"]
    assert kept["withdrawn_at"] == "2026-02-09T04:00:00.000Z"
    assert said(manager.delete(f"{path}/aut_unknown")) == (404, "not_found")


@pytest.mark.parametrize(
    ("wrong", "pointer"),
    [
        ({"bank_id": "bnk_nobody"}, "/bank_id"),
        ({"letter_sha256": "AB" * 32}, "/letter_sha256"),
        ({"letter_sha256": "ab"}, "/letter_sha256"),
        ({"expires_at": NOON.isoformat()}, "/expires_at"),
        ({"expires_at": (NOON + timedelta(days=2000)).isoformat()}, "/expires_at"),
        ({"signatory": ""}, "/signatory"),
        ({"more": 1}, "/more"),
    ],
)
def test_a_wrong_letter_is_refused_by_its_field(
    manager: Caller, bank: Caller, wrong: dict[str, Any], pointer: str
) -> None:
    refused = give(manager, letter(bank, **wrong))
    assert said(refused) == (422, "validation_failed")
    assert [error["pointer"] for error in refused.get_json()["errors"]] == [pointer]


def test_nobody_speaks_for_another_plant(app: Flask, manager: Caller, bank: Caller) -> None:
    other = machine(app, Kind.PLANT, "plt_other")
    path = f"/v1/plants/{manager.id}/bank-authorisations"
    assert said(other.post(path, letter(bank))) == (403, "forbidden")
    assert said(other.get(f"/v1/plants/{manager.id}/access-log")) == (403, "forbidden")
    assert said(resident(app).get(f"/v1/bank/plants/{USCC}/report")) == (403, "forbidden")
    assert said(read(bank.unsigned())) == (401, "invalid_signature")
