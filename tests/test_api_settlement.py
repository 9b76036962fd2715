"""Settlement over HTTP: the operator closes, the merchant reads and disagrees, the bank pays."""

import csv
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO, StringIO
from typing import Any

import pytest
from callers import Caller, machine, said
from flask import Flask
from pypdf import PdfReader
from shop import Shop, open_shop, rich_resident

from accounting import clients, clock, jobs, tokens
from accounting.clients import Kind
from rewards import disputes, settlement, takings

NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)
DAY = timedelta(days=1)
STATEMENTS = "/v1/merchant/statements"


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.travel(NOON - clock.now()):
        yield


@pytest.fixture
def shop(app: Flask) -> Shop:
    """A shop that took a voucher of 100 fen; the fen funder is the city."""
    shop, me = open_shop(app), rich_resident(app)
    answer = me.post("/v1/redemptions", {"reward_id": shop.offer()}, key="k1").get_json()
    body = {"store_id": shop.store_id, "terminal_ref": "=1+1"}
    used = shop.till.post(
        "/v1/merchant/vouchers/redeem", body | {"code": answer["vouchers"][0]["code"]}
    )
    assert used.status_code == 200
    return shop


def renewed(shop: Shop) -> Shop:
    """The same people with tokens of now, after the clock was moved."""

    def sign_in(caller: Caller, kind: Kind) -> Caller:
        client = clients.of_subject(kind, caller.id)
        assert client is not None
        token, _ = tokens.issue_client_token(client, frozenset(client.scopes))
        return replace(caller, token=token)

    till = sign_in(shop.till, Kind.MERCHANT)
    return replace(shop, till=till, operator=sign_in(shop.operator, Kind.OPERATOR))


def close(shop: Shop, **days: str) -> dict[str, Any]:
    answer = shop.operator.post("/v1/operator/jobs", {"kind": "settle", **days})
    assert answer.status_code == 202, answer.text
    settlement.run(answer.get_json()["job_id"])
    job: dict[str, Any] = shop.operator.get(f"/v1/jobs/{answer.get_json()['job_id']}").get_json()
    return job


def rows_of(text: str) -> list[dict[str, str]]:
    assert text.startswith("\ufeff")
    return list(csv.DictReader(StringIO(text.removeprefix("\ufeff"))))


def test_a_closed_period_is_a_statement_in_json_and_csv(shop: Shop) -> None:
    with clock.travel(DAY):
        shop = renewed(shop)
        assert close(shop)["state"] == jobs.DONE
        [listed] = shop.till.get(STATEMENTS).get_json()["items"]
        assert (listed["from"], listed["to"], listed["payable_fen"]) == (
            "2026-05-20", "2026-05-20", 100,
        )  # fmt: skip
        whole = shop.till.get(f"{STATEMENTS}/{listed['id']}")
        said_in_chinese = whole.get_json()
        assert said_in_chinese["merchant_name"] == "共富商城"
        assert said_in_chinese["by_reward"][0]["title"] == "公交单程券"
        assert said_in_chinese["lines"] == [
            {"funder": "city", "face_value_fen": 100, "fee_fen": 0, "net_fen": 100}
        ]
        # 500 points of the city at 200 fen a thousand.
        assert said_in_chinese["points"][0]["value_fen"] == 100
        table = shop.till.get(f"{STATEMENTS}/{listed['id']}", headers={"Accept": "text/csv"})
        assert table.mimetype == "text/csv"
        scan, *last = rows_of(table.text)
        assert (scan["kind"], scan["fen"], scan["funder"]) == ("used", "100", "city")
        # What would be a formula is text.
        assert scan["terminal_ref"] == "'=1+1"
        assert [(row["kind"], row["fen"]) for row in last] == [
            ("fee", "0"), ("brought_forward", "0"), ("total", "100"),
        ]  # fmt: skip
        for language, title in (("zh", "商户结算单"), ("en", "Merchant statement")):
            headers = {"Accept": "application/pdf", "Accept-Language": language}
            paper = shop.till.get(f"{STATEMENTS}/{listed['id']}", headers=headers)
            assert paper.mimetype == "application/pdf"
            shown = PdfReader(BytesIO(paper.data)).pages[0].extract_text()
            assert title in shown
            assert "¥1.00" in shown
        other = shop.till.get(f"{STATEMENTS}/{listed['id']}", headers={"Accept": "image/png"})
        assert said(other) == (406, "not_acceptable")
        path = f"/v1/operator/statements/{listed['id']}"
        assert shop.operator.get(path).get_json() == said_in_chinese


def test_in_the_demo_a_close_without_days_states_what_was_scanned_today(
    app: Flask, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    close(shop)
    assert shop.till.get(STATEMENTS).get_json()["items"] == [], "to yesterday"
    monkeypatch.setitem(app.extensions, "config", replace(app.extensions["config"], demo=True))
    for _ in range(2):
        assert close(shop)["state"] == jobs.DONE
        [listed] = shop.till.get(STATEMENTS).get_json()["items"]
        assert (listed["from"], listed["to"], listed["payable_fen"]) == (
            "2026-05-20",
            "2026-05-20",
            100,
        )


def test_a_period_is_closed_once(shop: Shop) -> None:
    with clock.travel(DAY):
        shop = renewed(shop)
        close(shop)
        for days, code, status in (
            ({"from": "2026-05-20", "to": "2026-05-20"}, "period_closed", 409),
            ({"to": "2026-05-20"}, "period_closed", 409),
            ({"from": "2026-05-22", "to": "2026-05-22"}, "period_not_over", 422),
            ({"to": "2026-05-40"}, "validation_failed", 422),
            ({"month": "2026-05"}, "validation_failed", 422),
        ):
            answer = shop.operator.post("/v1/operator/jobs", {"kind": "settle", **days})
            assert said(answer) == (status, code), days
        [period] = shop.operator.get("/v1/operator/settlements").get_json()["items"]
        assert (period["number"], period["state"], period["statements"]) == (1, "closed", 1)


def test_the_payout_file_adds_up(shop: Shop) -> None:
    with clock.travel(DAY):
        shop = renewed(shop)
        close(shop)
        answer = shop.operator.get("/v1/operator/settlements/1/payout")
        paid, total = rows_of(answer.text)
        assert (paid["merchant_id"], paid["merchant_name"], paid["amount_fen"]) == (
            shop.till.id, "共富商城", "100",
        )  # fmt: skip
        assert (total["statement_id"], total["merchant_id"], total["amount_fen"]) == (
            "total", "1", "100",
        )  # fmt: skip
        assert said(shop.operator.get("/v1/operator/settlements/2/payout")) == (404, "not_found")


def test_a_dispute_is_heard_answered_and_ends_with_a_credit_note(shop: Shop) -> None:
    with clock.travel(DAY):
        shop = renewed(shop)
        close(shop)
        statement = shop.till.get(STATEMENTS).get_json()["items"][0]["id"]
        mine, theirs = f"{STATEMENTS}/{statement}/dispute", f"/v1/operator/disputes/{statement}"
        assert said(shop.operator.post(f"{theirs}/answer", {"text": "?"})) == (404, "not_found")
        for _ in range(2):
            opened = shop.till.post(mine, {"text": "少了一张券"})
            assert (opened.status_code, opened.get_json()["state"]) == (201, "open")
        assert len(opened.get_json()["messages"]) == 1
        answered = shop.operator.post(f"{theirs}/answer", {"text": "请提供小票"}).get_json()
        assert answered["state"] == "answered"
        assert shop.till.post(mine, {"text": "已寄出"}).get_json()["state"] == "open"
        ending = {"text": "补记一张", "correction": {"fen": 250, "funder_id": "city"}}
        for _ in range(2):
            ended = shop.operator.post(f"{theirs}/resolve", ending)
            assert (ended.status_code, ended.get_json()["state"]) == (200, "resolved")
        assert said(shop.till.post(mine, {"text": "谢谢"})) == (409, "dispute_resolved")
        [listed] = shop.operator.get("/v1/operator/disputes?state=resolved").get_json()["items"]
        assert listed["correction"] == {"fen": 250, "funder": "city"}
        assert shop.till.get(f"{STATEMENTS}/{statement}").get_json()["dispute"] == listed
    with clock.travel(2 * DAY):
        shop = renewed(shop)
        close(shop)
        newest = shop.till.get(STATEMENTS).get_json()["items"][0]["id"]
        said_now = shop.till.get(f"{STATEMENTS}/{newest}").get_json()
        assert (said_now["vouchers"], said_now["payable_fen"]) == (0, 250)
        assert [(note["face_value_fen"], note["reason"]) for note in said_now["credit_notes"]] == [
            (250, "补记一张")
        ]


def test_a_correction_the_crash_left_unbooked_is_booked_by_the_sweep(shop: Shop) -> None:
    with clock.travel(DAY):
        shop = renewed(shop)
        close(shop)
        statement = shop.till.get(STATEMENTS).get_json()["items"][0]["id"]
        shop.till.post(f"{STATEMENTS}/{statement}/dispute", {"text": "少了"})
        # As a worker leaves it that dies between the decision and the book.
        disputes._say(
            statement,
            disputes._message("cli_1", "补"),
            disputes.RESOLVED,
            {"correction": {"fen": 7, "funder": "city", "booked": False}},
        )
        assert disputes.sweep(clock.now() + DAY) == 1
        assert disputes.sweep(clock.now() + DAY) == 0
        assert settlement.unsettled([shop.till.id]) == {shop.till.id: 7}


def test_a_correction_has_a_reference_of_its_own(shop: Shop) -> None:
    path = f"/v1/operator/merchants/{shop.till.id}/corrections"
    body = {"fen": -40, "funder_id": "city", "reference": "c-1", "reason": "双重计入"}
    first = shop.operator.post(path, body)
    assert (first.status_code, shop.operator.post(path, body).get_json()) == (
        201, first.get_json(),
    )  # fmt: skip
    changed = shop.operator.post(path, body | {"fen": -41})
    assert said(changed) == (422, "idempotency_key_reused")
    assert settlement.unsettled([shop.till.id]) == {shop.till.id: 60}
    # What only the book has after a crash comes back before the close.
    takings.moves().delete_many({"kind": "corrected"})
    takings.catch_up(shop.till.id)
    assert settlement.unsettled([shop.till.id]) == {shop.till.id: 60}
    for wrong in ({"fen": 0}, {"funder_id": "nobody"}, {"reference": "a b"}, {"reason": ""}):
        assert said(shop.operator.post(path, body | wrong)) == (422, "validation_failed"), wrong
    unknown = path.replace(shop.till.id, "mer_none")
    assert said(shop.operator.post(unknown, body)) == (404, "not_found")


def test_nobody_reads_or_disputes_the_statement_of_another(app: Flask, shop: Shop) -> None:
    with clock.travel(DAY):
        shop, other = renewed(shop), machine(app, Kind.MERCHANT, "mer_other")
        close(shop)
        statement = shop.till.get(STATEMENTS).get_json()["items"][0]["id"]
        assert said(other.get(f"{STATEMENTS}/{statement}")) == (404, "not_found")
        text = {"text": "x"}
        assert said(other.post(f"{STATEMENTS}/{statement}/dispute", text)) == (404, "not_found")
        assert other.get(STATEMENTS).get_json()["items"] == []
        assert said(shop.till.get("/v1/operator/settlements")) == (403, "forbidden")
