"""Consent requests, green list, feed, files, terms, reports, keys and the supervisor, over HTTP.

The worked resident: in each of March, April and May 20 kg of recyclables (26.9 kg of CO2) and, in
May, 8 km on the bus. 80.7 kg and 0.2152 kg make 80.9152 kg raw; one behaviour counts at most 40 %,
32.36608 kg, so 32.58128 kg count: light green.
"""

import base64
import csv
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from callers import Caller, machine, named, partner, resident, said
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flask import Flask
from pypdf import PdfReader

from accounting import clients, clock, consent_requests, consents, jobs, outbox, storage
from accounting.clients import Kind
from api import tasks
from footprint import greenlist
from integrations import bank_files, jws
from integrations.signatures import NonceStore

NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)
ENDS = "2026-12-31T00:00:00+08:00"
ASK = {"customer_ref": "KH-0001", "purpose": "green loan", "fields": ["grade"]}
NAMED = {**ASK, "customer_name": "王 小梅"}
CHANGES, LIST = "/v1/bank/green-list/changes", "/v1/bank/green-list"
TABLE = {
    "threshold": "mid",
    "grades": {
        "deep": {"limit_uplift": 1.5, "basis_points": 100, "fast_lane": True},
        "mid": {"limit_uplift": 1.125, "basis_points": 50, "fast_lane": False},
    },
}


@pytest.fixture(autouse=True)
def _noon(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    nonces = NonceStore(app.extensions["redis"], prefix="nonce-of-lists")
    nonces.begin(NOON - timedelta(hours=1))
    monkeypatch.setitem(app.extensions, "nonces", nonces)
    with clock.travel(NOON - clock.now()):
        yield


@pytest.fixture
def me(app: Flask) -> Caller:
    """A resident with three active months, light green."""
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
    city.post("/v1/feeds/activities", {"activities": rows})
    return me


@pytest.fixture
def bank(app: Flask) -> Caller:
    return machine(app, Kind.BANK)


def agree(me: Caller, bank: Caller, **changes: Any) -> dict[str, Any]:
    body = {"bank_id": bank.id, "purpose": "loan", "fields": ["grade"], "expires_at": ENDS}
    answer = me.post("/v1/me/consents", body | {"real_name": named(me)} | changes)
    assert answer.status_code == 201, answer.text
    consent: dict[str, Any] = answer.get_json()
    return consent


def items(caller: Caller, path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = caller.get(path).get_json()["items"]
    return found


def put(bank: Caller, table: dict[str, Any]) -> Any:
    return bank.send("PUT", "/v1/bank/terms", table)


# --- kinds and texts ----------------------------------------------------------------------------


def test_other_kinds_of_consent_are_given_and_withdrawn(app: Flask) -> None:
    me, city = resident(app), partner(app)
    for kind, more in (("location", {}), ("health", {}), ("partner", {"partner_id": city.id})):
        consent = me.post("/v1/me/consents", {"kind": kind, **more}).get_json()
        assert (consent["kind"], consent["bank_id"], consent["status"]) == (kind, None, "active")
        assert consent["partner_id"] == more.get("partner_id")
        assert me.delete(f"/v1/me/consents/{consent['id']}").status_code == 204
    for body, pointer in (
        ({"kind": "partner"}, "/partner_id"),
        ({"kind": "partner", "partner_id": "ptn_none"}, "/partner_id"),
        ({"kind": "location", "fields": ["grade"]}, "/fields"),
    ):
        answer = me.post("/v1/me/consents", body)
        assert said(answer) == (422, "validation_failed")
        assert [error["pointer"] for error in answer.get_json()["errors"]] == [pointer]


def test_a_newer_text_is_the_one_in_force_from_its_day(
    app: Flask, me: Caller, bank: Caller
) -> None:
    assert agree(me, bank)["text_version"] == "2026-01"
    early = {"bank_id": bank.id, "purpose": "p", "fields": ["grade"], "expires_at": ENDS,
             "text_version": "2026-07"}  # fmt: skip
    assert said(me.post("/v1/me/consents", early)) == (422, "validation_failed")
    with clock.travel(timedelta(days=60)):
        again = resident(app)
        assert agree(again, bank)["text_version"] == "2026-07"
        assert agree(again, bank, text_version="2026-01")["text_version"] == "2026-01"
        texts = items(again, "/v1/consent-texts?kind=bank")
        assert [(one["version"], one["in_force"]) for one in texts] == [
            ("2026-07", True), ("2026-01", False),
        ]  # fmt: skip


def test_a_consent_that_ends_soon_is_told_once(me: Caller, bank: Caller) -> None:
    agree(me, bank)
    gone = agree(me, bank)
    me.delete(f"/v1/me/consents/{gone['id']}")
    agree(me, bank, expires_at="2026-05-25T00:00:00+08:00")  # Shorter than a week: no reminder.

    def told() -> list[str]:
        return [one.type for one in outbox.inbox(me.id, before=None, limit=99)].count(
            "consent_ends"
        ) * ["consent_ends"]

    # 31 December minus 7 days is the 24th; the day before nothing is said.
    with clock.stand(datetime(2026, 12, 23, 15, 59, tzinfo=UTC)):
        tasks.remind_of_consents()
        assert told() == []
    with clock.stand(datetime(2026, 12, 23, 16, 0, tzinfo=UTC)):
        tasks.remind_of_consents()
        tasks.remind_of_consents()
        assert told() == ["consent_ends"]


# --- consent requests ---------------------------------------------------------------------------


def test_a_customer_approves_what_a_bank_asks_for(app: Flask, me: Caller, bank: Caller) -> None:
    asked = bank.post("/v1/bank/consent-requests", NAMED, key="ask-1")
    assert asked.status_code == 201
    request_id = asked.get_json()["request_id"]
    assert asked.get_json()["link"].endswith(f"/v1/me/consent-requests/{request_id}")
    assert bank.post("/v1/bank/consent-requests", NAMED).get_json() == asked.get_json()
    path = f"/v1/me/consent-requests/{request_id}"
    assert items(me, "/v1/me/consent-requests") == []
    shown = me.get(path).get_json()
    assert (shown["purpose"], shown["fields"], shown["status"]) == ("green loan", ["grade"], "open")
    assert items(me, "/v1/me/consent-requests") == [shown]
    # Whoever opened the link first is the customer.
    other = resident(app)
    assert said(other.get(path)) == (404, "not_found")
    assert said(other.post(f"{path}/approve")) == (404, "not_found")
    # The bank knows its customer's name, and so does the customer.
    assert said(me.post(f"{path}/approve")) == (403, "name_not_matching")
    wrong = me.post(f"{path}/approve", {"real_name": "王大梅"})
    assert said(wrong) == (403, "name_not_matching")
    consent = me.post(f"{path}/approve", {"real_name": "王小梅"})
    assert consent.status_code == 201
    again = me.post(f"{path}/approve", {"real_name": "王小梅"})
    assert again.get_json() == consent.get_json()
    assert len(items(me, "/v1/me/consents")) == 1
    reference = consent.get_json()["reference"]
    status = bank.get(f"/v1/bank/consent-requests/{request_id}").get_json()
    assert (status["status"], status["customer_ref"], status["reference"]) == (
        "approved", "KH-0001", reference,
    )  # fmt: skip
    assert bank.get(f"/v1/bank/grades/{reference}?purpose=green%20loan").status_code == 200
    stranger = machine(app, Kind.BANK)
    assert said(stranger.get(f"/v1/bank/consent-requests/{request_id}")) == (404, "not_found")
    assert said(me.post(f"{path}/decline")) == (409, "consent_request_over")
    # What the bank calls its customer, and the name, are nowhere in clear.
    [row] = storage.database()["consent_requests"].find()
    assert "KH-0001" not in str(row)
    assert "小梅" not in str(row)


def test_after_a_refusal_the_bank_rests(app: Flask, me: Caller, bank: Caller) -> None:
    request_id = bank.post("/v1/bank/consent-requests", NAMED).get_json()["request_id"]
    path = f"/v1/me/consent-requests/{request_id}"
    assert me.post(f"{path}/decline").get_json()["status"] == "declined"
    assert me.post(f"{path}/decline").status_code == 200
    assert said(me.post(f"{path}/approve", {"real_name": "王小梅"})) == (
        409,
        "consent_request_over",
    )
    for body in (NAMED, {**NAMED, "purpose": "another loan"}):
        assert said(bank.post("/v1/bank/consent-requests", body)) == (
            409, "consent_refused_recently",
        )  # fmt: skip
    # Another customer, and another bank, may be asked.
    other = {**NAMED, "customer_ref": "KH-0002"}
    assert bank.post("/v1/bank/consent-requests", other).status_code == 201
    elsewhere = machine(app, Kind.BANK)
    assert elsewhere.post("/v1/bank/consent-requests", NAMED).status_code == 201
    assert timedelta(days=90) == consent_requests.REFUSAL_RESTS
    with clock.travel(timedelta(days=90)):
        consent_requests.ask(bank.id, "KH-0001", "green loan", ("grade",))


def test_names_cannot_be_tried_out_and_old_requests_end(me: Caller, bank: Caller) -> None:
    request_id = bank.post("/v1/bank/consent-requests", NAMED).get_json()["request_id"]
    path = f"/v1/me/consent-requests/{request_id}/approve"
    for _ in range(consent_requests.NAME_TRIES_MAX):
        assert said(me.post(path, {"real_name": "x"})) == (403, "name_not_matching")
    assert said(me.post(path, {"real_name": "王小梅"})) == (403, "name_not_matching")
    late = consent_requests.ask(bank.id, "KH-9", "loan", ("grade",))
    consent_requests.open_link(me.id, late.id)
    with clock.travel(consent_requests.OPEN_FOR), pytest.raises(consent_requests.RequestOver):
        consent_requests.approve(me.id, late.id)


def test_outside_the_demo_a_name_is_needed(bank: Caller) -> None:
    answer = bank.post("/v1/bank/consent-requests", ASK)
    assert said(answer) == (422, "validation_failed")
    assert [one["pointer"] for one in answer.get_json()["errors"]] == ["/customer_name"]


def test_in_the_demo_everybody_sees_what_nobody_opened_and_needs_no_name(
    app: Flask, me: Caller, bank: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = app.extensions["config"]
    monkeypatch.setitem(app.extensions, "config", replace(config, demo=True))
    request_id = bank.post("/v1/bank/consent-requests", ASK).get_json()["request_id"]
    assert [one["id"] for one in items(me, "/v1/me/consent-requests")] == [request_id]
    approved = me.post(f"/v1/me/consent-requests/{request_id}/approve", {})
    assert approved.status_code == 201
    assert items(resident(app), "/v1/me/consent-requests") == []


def test_a_crash_between_approval_and_consent_is_finished_by_the_sweep(
    me: Caller, bank: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = consent_requests.ask(bank.id, "KH-1", "loan", ("grade",))

    def crash(**_: Any) -> None:
        raise ConnectionError

    with monkeypatch.context() as cut:
        cut.setattr(consents, "grant", lambda *_, **__: crash())
        with pytest.raises(ConnectionError):
            consent_requests.approve(me.id, asked.id)
    assert items(me, "/v1/me/consents") == []
    with clock.travel(timedelta(minutes=2)):
        consent_requests.sweep(clock.now())
        consent_requests.sweep(clock.now())
        assert len(items(me, "/v1/me/consents")) == 1


# --- green list, feed, terms --------------------------------------------------------------------


def test_who_consents_is_on_the_list_until_withdrawing(me: Caller, bank: Caller) -> None:
    consent = agree(me, bank)
    [row] = items(bank, LIST)
    assert (row["reference"], row["grade"]) == (consent["reference"], "light")
    assert row["terms"] == {"limit_uplift": 1, "basis_points": 0, "fast_lane": False}
    [added] = items(bank, CHANGES)
    assert (added["sequence"], added["change"], added["grade"]) == (1, "added", "light")
    me.delete(f"/v1/me/consents/{consent['id']}")
    assert items(bank, LIST) == []
    first, last = items(bank, CHANGES)
    # What was told stays told, but shows no grade any more.
    assert first == {name: value for name, value in added.items() if name != "grade"}
    assert last == {
        "sequence": 2, "reference": consent["reference"], "change": "withdrawn", "at": last["at"],
    }  # fmt: skip
    assert items(bank, f"{CHANGES}?after=1") == [last]
    # Both pages showed a grade, and the resident sees that.
    log = [(one["what"], one["allowed"]) for one in items(me, "/v1/me/access-log")]
    assert log == [("green_list_changes", True), ("green_list", True)]


def test_a_run_out_consent_is_told_when_the_bank_looks(me: Caller, bank: Caller) -> None:
    agree(me, bank, expires_at="2026-05-20T12:00:30+08:00")
    with clock.travel(timedelta(seconds=31)):
        assert items(bank, LIST) == []
        assert [one["change"] for one in items(bank, CHANGES)] == ["added", "expired"]


def test_the_feed_is_walked_by_cursor_oldest_first(me: Caller, bank: Caller) -> None:
    references = [agree(me, bank)["reference"] for _ in range(5)]
    seen: list[dict[str, Any]] = []
    cursor = ""
    while cursor is not None:
        page = bank.get(f"{CHANGES}?limit=2{cursor and f'&cursor={cursor}'}").get_json()
        seen += page["items"]
        cursor = page["next_cursor"]
    assert [one["sequence"] for one in seen] == [1, 2, 3, 4, 5]
    assert [one["reference"] for one in seen] == references
    pages: list[str] = []
    cursor = ""
    while cursor is not None:
        page = bank.get(f"{LIST}?limit=2{cursor and f'&cursor={cursor}'}").get_json()
        pages += [one["reference"] for one in page["items"]]
        cursor = page["next_cursor"]
    assert pages == references


def test_a_bank_sets_its_terms(app: Flask, me: Caller, bank: Caller) -> None:
    empty = bank.get("/v1/bank/terms").get_json()
    assert empty == {"version": 0, "threshold": "light", "grades": {}, "effective_from": None}
    agree(me, bank)
    answer = put(bank, TABLE)
    assert answer.status_code == 200
    assert answer.get_json()["version"] == 1
    assert answer.get_json()["grades"]["mid"]["limit_uplift"] == Decimal("1.125")
    # The resident is light green, below the new threshold.
    assert items(bank, LIST) == []
    assert [one["change"] for one in items(bank, CHANGES)] == ["added", "downgraded"]
    put(bank, {"threshold": "light", "grades": {"light": {"basis_points": 10}}})
    [row] = items(bank, LIST)
    assert row["terms"] == {"limit_uplift": 1, "basis_points": 10, "fast_lane": False}
    assert bank.get("/v1/bank/terms").get_json()["version"] == 2
    other = machine(app, Kind.BANK)
    assert other.get("/v1/bank/terms").get_json()["version"] == 0
    audited = list(storage.database()["audit"].find({"action": "bank terms set"}).sort("at", 1))
    assert [row["after"]["version"] for row in audited] == [1, 2]
    assert audited[1]["before"]["threshold"] == "mid"


@pytest.mark.parametrize(
    ("table", "pointer"),
    [
        ({"grades": {"deep": {"limit_uplift": 1.501}}}, "/grades/deep/limit_uplift"),
        ({"grades": {"deep": {"limit_uplift": 0.9}}}, "/grades/deep/limit_uplift"),
        ({"grades": {"deep": {"limit_uplift": 1.2345}}}, "/grades/deep/limit_uplift"),
        ({"grades": {"deep": {"basis_points": 101}}}, "/grades/deep/basis_points"),
        ({"grades": {"deep": {"basis_points": -1}}}, "/grades/deep/basis_points"),
        ({"grades": {"deep": {"fast_lane": "yes"}}}, "/grades/deep/fast_lane"),
        ({"grades": {"deep": 1}}, "/grades/deep"),
        ({"grades": 1}, "/grades"),
        ({"grades": {"gold": {}}}, "/grades/gold"),
        ({"grades": {}, "threshold": "unrated"}, "/threshold"),
        ({}, "/grades"),
    ],
    ids=str,
)
def test_terms_beyond_the_ceilings_are_refused(
    bank: Caller, table: dict[str, Any], pointer: str
) -> None:
    answer = put(bank, table)
    assert said(answer) == (422, "validation_failed")
    [error] = answer.get_json()["errors"]
    assert error["pointer"] == pointer
    assert not error["message"].isascii()


# --- the daily file -----------------------------------------------------------------------------

FILE = "/v1/bank/green-list/files/2026-05-20"


def rows_of(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode())))


def test_the_file_of_the_day_is_made_once_with_a_signed_manifest(
    app: Flask, me: Caller, bank: Caller
) -> None:
    put(bank, {"grades": {"light": {"limit_uplift": 1.2, "basis_points": 5}}})
    leaving, staying = agree(me, bank), agree(resident(app), bank)
    assert staying["status"] == "active"  # But not rated, so not in the file.
    second = agree(me, bank)
    file = bank.get(FILE)
    digest = base64.b64encode(hashlib.sha256(file.data).digest()).decode()
    assert file.headers["Content-Digest"] == f"sha-256=:{digest}:"
    assert file.content_length == len(file.data)
    rows = rows_of(file.data)
    assert rows == [
        {"reference": one["reference"], "grade": "light", "since": "2026-05-20",
         "limit_uplift": "1.200", "basis_points": "5", "fast_lane": "no"}
        for one in (leaving, second)
    ]  # fmt: skip
    manifest = bank.get(f"{FILE}/manifest").get_json()
    assert (manifest["rows"], manifest["revision"], manifest["size"]) == (2, 1, len(file.data))
    assert manifest["sha256"] == hashlib.sha256(file.data).hexdigest()
    keys = app.test_client().get("/.well-known/jwks.json").get_json()
    claims = jws.verify(manifest["signature"], keys, audience=bank.id)
    assert {name: claims[name] for name in manifest if name != "signature"} == {
        name: value for name, value in manifest.items() if name != "signature"
    }
    # Whoever comes later is in tomorrow's file; the bytes stay, also for whoever reads tomorrow.
    agree(me, bank, purpose="=cmd()")
    assert bank.get(FILE).data == file.data
    with clock.travel(timedelta(days=1)):
        # Yesterday's token is over.
        bank_then = machine(app, Kind.BANK, bank.id)
        assert bank_then.get(FILE).data == file.data
        tomorrow = bank_then.get("/v1/bank/green-list/files/2026-05-21").data
        assert len(rows_of(tomorrow)) == 3
    # A withdrawal works on the next read of the file too, and that is another revision.
    me.delete(f"/v1/me/consents/{leaving['id']}")
    after = bank.get(FILE)
    assert [row["reference"] for row in rows_of(after.data)] == [second["reference"]]
    manifest = bank.get(f"{FILE}/manifest").get_json()
    assert (manifest["revision"], manifest["rows"]) == (2, 1)
    assert manifest["sha256"] == hashlib.sha256(after.data).hexdigest()
    reads = [one for one in items(me, "/v1/me/access-log?limit=99")
             if one["what"] == "green_list_file"]  # fmt: skip
    # Two rows in each of three reads of the first revision, three tomorrow, one of the second.
    assert len(reads) == 2 * 3 + 3 + 1


def test_files_of_other_days_are_not_there(bank: Caller) -> None:
    for day in ("2026-05-19", "2026-05-21", "2026-02-30", "today"):
        for path in ("", "/manifest"):
            answer = bank.get(f"/v1/bank/green-list/files/{day}{path}")
            assert said(answer) == (404, "not_found")


def test_the_night_makes_every_banks_file(me: Caller, bank: Caller) -> None:
    agree(me, bank)
    tasks.make_bank_files()
    tasks.make_bank_files()
    [night] = jobs.newest(kind=bank_files.KIND, limit=9)
    over = bank_files.run(night.id)
    assert over is not None
    assert (over.state, over.done, over.total, over.unit) == ("done", 1, 1, "consents")
    made = storage.database()["bank_files"]
    assert made.count_documents({"bank_id": bank.id}) == 1
    assert bank.get(f"{FILE}/manifest").get_json()["rows"] == 1


# --- reports ------------------------------------------------------------------------------------


def test_a_report_shows_what_was_consented_to(app: Flask, me: Caller, bank: Caller) -> None:
    reference = agree(me, bank, fields=["report", "margin"])["reference"]
    report = bank.get(f"/v1/bank/reports/{reference}").get_json()
    proof = report.pop("jws")
    assert report["reduction_kg"] == Decimal("80.9152")
    assert report["counted_kg"] == Decimal("32.58128")
    assert report["margin_below_kg"] == Decimal("32.58128")
    assert "coverage" not in report
    months = {one["month"]: one["reduction_kg"] for one in report["by_month"]}
    assert len(months) == 13
    assert {month: kg for month, kg in months.items() if kg} == {
        "2026-03": Decimal("26.9"), "2026-04": Decimal("26.9"), "2026-05": Decimal("27.1152"),
    }  # fmt: skip
    assert report["by_dimension"] == [
        {"dimension": "green_travel", "counted_kg": Decimal("0.2152")},
        {"dimension": "green_payment", "counted_kg": 0},
        {"dimension": "green_life", "counted_kg": Decimal("32.36608")},
    ]
    keys = app.test_client().get("/.well-known/jwks.json").get_json()
    claims = jws.verify(proof, keys, audience=bank.id)
    assert claims["reference"] == reference
    assert json.dumps(claims["by_month"]) == json.dumps(
        [{**one, "reduction_kg": float(one["reduction_kg"]) if one["reduction_kg"] % 1 else
          int(one["reduction_kg"])} for one in report["by_month"]]
    )  # fmt: skip
    [read] = items(me, "/v1/me/access-log")
    assert (read["what"], read["purpose"], read["allowed"]) == ("report", "loan", True)


@pytest.mark.parametrize(("language", "words"), [("zh", "个人碳征信报告"), ("en", "Carbon grade")])
def test_a_report_is_a_pdf_too(me: Caller, bank: Caller, language: str, words: str) -> None:
    reference = agree(me, bank, fields=["report", "coverage"])["reference"]
    headers = {"Accept": "application/pdf", "Accept-Language": language}
    pdf = bank.get(f"/v1/bank/reports/{reference}", headers=headers)
    assert pdf.content_type == "application/pdf"
    reader = PdfReader(io.BytesIO(pdf.data))
    text = "".join(page.extract_text() for page in reader.pages)
    assert words in text
    assert reference in text
    assert sum(len(page.images) for page in reader.pages) == 2


def test_without_the_field_or_the_purpose_there_is_no_report(
    app: Flask, me: Caller, bank: Caller
) -> None:
    only_grade, both = agree(me, bank), agree(me, bank, fields=["grade", "report"])
    path = "/v1/bank/reports/"
    stranger = machine(app, Kind.BANK)
    for answer in (
        bank.get(f"{path}{only_grade['reference']}"),
        bank.get(f"{path}{both['reference']}?purpose=marketing"),
        stranger.get(f"{path}{both['reference']}"),
        bank.get(f"{path}ref_none"),
    ):
        assert said(answer) == (404, "no_grade_available")
    assert bank.get(f"{path}{both['reference']}?purpose=loan").status_code == 200
    refused = bank.get(f"{path}{both['reference']}", headers={"Accept": "image/png"})
    assert said(refused) == (406, "not_acceptable")


# --- keys ---------------------------------------------------------------------------------------


def test_a_bank_changes_its_keys_with_two_live(app: Flask, me: Caller, bank: Caller) -> None:
    assert bank.key is not None
    fresh = bank.post("/v1/bank/keys", {"algorithm": "hmac-sha256"}, key="k1")
    assert fresh.status_code == 201
    replayed = bank.post("/v1/bank/keys", {"algorithm": "hmac-sha256"}, key="k1").get_json()
    assert replayed["hmac_key_b64"] is None
    secret = base64.b64decode(fresh.get_json()["hmac_key_b64"])
    second = replace(
        bank, key=replace(bank.key, key_id=fresh.get_json()["key_id"], material=secret)
    )
    ids = [one["key_id"] for one in items(second, "/v1/bank/keys")]
    assert ids == [bank.key.key_id, second.key.key_id]
    # A third ends the oldest at once.
    private = Ed25519PrivateKey.generate()
    public = base64.b64encode(private.public_key().public_bytes_raw()).decode()
    body = {"algorithm": "ed25519", "public_key_b64": public}
    third_id = second.post("/v1/bank/keys", body).get_json()["key_id"]
    assert said(bank.get(LIST)) == (401, "invalid_signature")
    third = replace(
        bank,
        key=clients.BankKey(third_id, bank.key.client_id, "ed25519", private.private_bytes_raw()),
    )
    assert third.get(LIST).status_code == second.get(LIST).status_code == 200
    assert third.delete(f"/v1/bank/keys/{second.key.key_id}").status_code == 204
    assert said(second.get(LIST)) == (401, "invalid_signature")
    assert said(third.delete(f"/v1/bank/keys/{third_id}")) == (409, "last_key")
    assert said(third.delete("/v1/bank/keys/key_none")) == (404, "not_found")


@pytest.mark.parametrize(
    "body",
    [
        {"algorithm": "sm2"},
        {"algorithm": "ed25519"},
        {"algorithm": "ed25519", "public_key_b64": "AAAA"},
        {"algorithm": "ed25519", "public_key_b64": "?"},
        {"algorithm": "hmac-sha256", "public_key_b64": "AAAA"},
    ],
    ids=str,
)
def test_keys_that_cannot_be_used_are_refused(bank: Caller, body: dict[str, Any]) -> None:
    assert said(bank.post("/v1/bank/keys", body)) == (422, "validation_failed")
    assert len(items(bank, "/v1/bank/keys")) == 1


# --- the supervisor -----------------------------------------------------------------------------


def test_the_supervisor_gets_every_read_escaped(app: Flask, me: Caller, bank: Caller) -> None:
    reference = agree(me, bank, purpose="=HYPERLINK(1)")["reference"]
    bank.get(f"/v1/bank/grades/{reference}?purpose=%3DHYPERLINK(1)")
    bank.get("/v1/bank/grades/ref_none?purpose=other")
    operator = machine(app, Kind.OPERATOR)
    path = "/v1/operator/bank-access?from=2026-05-20&to=2026-05-20"
    text = operator.get(path).data.decode("utf-8-sig")
    first, second = csv.DictReader(io.StringIO(text))
    assert (first["purpose"], first["allowed"], first["fields"]) == (
        "'=HYPERLINK(1)",
        "yes",
        "grade",
    )
    assert (first["resident_id"], second["resident_id"]) == (me.id, "")
    headers = {"Accept": "application/x-ndjson"}
    lines = [json.loads(line) for line in operator.get(path, headers=headers).text.splitlines()]
    assert [one["allowed"] for one in lines] == [True, False]
    assert lines[1]["resident_id"] is None
    for query, count in (
        ("from=2026-05-19&to=2026-05-19", 0),
        (f"from=2026-05-20&to=2026-05-20&bank_id={bank.id}", 2),
        ("from=2026-05-20&to=2026-05-20&bank_id=bnk_none", 0),
    ):
        found = operator.get(f"/v1/operator/bank-access?{query}", headers=headers).text
        assert len(found.splitlines()) == count, query
    for query in ("from=2026-05-20&to=2026-05-19", "from=2024-05-20&to=2026-05-19", "from=x"):
        answer = operator.get(f"/v1/operator/bank-access?{query}")
        assert said(answer) == (422, "validation_failed")
    audited = storage.database()["audit"].count_documents({"action": "bank reads exported"})
    assert audited == 5


def test_reads_are_kept_for_ever_and_cannot_be_changed(app: Flask) -> None:
    indexes = storage.database()["bank_access"].index_information()
    assert [name for name, one in indexes.items() if "expireAfterSeconds" in one] == []
    assert not hasattr(consents._accesses(), "update_one")
    assert not hasattr(consents._accesses(), "delete_many")


def test_whatever_a_refused_read_lacks_the_same_work_is_done(
    app: Flask, me: Caller, bank: Caller
) -> None:
    """One look and one write, in the database's own record of what it was asked."""
    ended, short = agree(me, bank), agree(me, bank, expires_at="2026-05-20T12:00:10+08:00")
    live = agree(me, bank)
    me.delete(f"/v1/me/consents/{ended['id']}")
    strange = agree(me, machine(app, Kind.BANK))
    database = storage.database()
    asked = []
    # The first request of a token, whatever it asks, reads whose it is by itself.
    assert said(bank.get("/v1/bank/grades/ref_none?purpose=loan")) == (404, "no_grade_available")
    with clock.travel(timedelta(seconds=20)):
        for reference, purpose in (
            ("ref_none", "loan"), (ended["reference"], "loan"), (short["reference"], "loan"),
            (live["reference"], "other"), (strange["reference"], "loan"),
        ):  # fmt: skip
            database["system.profile"].drop()
            database.command("profile", 2)
            try:
                answer = bank.get(f"/v1/bank/grades/{reference}?purpose={purpose}")
            finally:
                database.command("profile", 0)
            assert said(answer) == (404, "no_grade_available")
            asked.append(
                [(one["op"], one["ns"].partition(".")[2]) for one in
                 database["system.profile"].find({"ns": {"$not": {"$regex": "system|jobs"}}})]
            )  # fmt: skip
    database["system.profile"].drop()
    assert all(one == asked[0] for one in asked), asked
    assert ("query", "consents") in asked[0]
    assert ("insert", "bank_access") in asked[0]


def test_a_closed_account_is_told_to_the_bank(me: Caller, bank: Caller) -> None:
    agree(me, bank)
    me.delete("/v1/me")
    assert items(bank, LIST) == []
    greenlist.sweep(clock.now())
    assert [one["change"] for one in items(bank, CHANGES)] == ["added", "withdrawn"]
