"""The till over HTTP: what a voucher is, and that it is used once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from callers import Caller, machine, said
from flask import Flask
from shop import Shop, open_shop, rich_resident

from accounting import clients, clock, tokens
from accounting.clients import Kind

NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)
LOOKUP, REDEEM = "/v1/merchant/vouchers/lookup", "/v1/merchant/vouchers/redeem"


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.travel(NOON - clock.now()):
        yield


@pytest.fixture
def shop(app: Flask) -> Shop:
    return open_shop(app)


@pytest.fixture
def me(app: Flask) -> Caller:
    return rich_resident(app)


def voucher(me: Caller, shop: Shop, key: str = "k1", **changes: Any) -> dict[str, Any]:
    answer = me.post("/v1/redemptions", {"reward_id": shop.offer(**changes)}, key=key)
    found: dict[str, Any] = answer.get_json()["vouchers"][0]
    return found


def scan(shop: Shop, hand: dict[str, Any], terminal_ref: str = "t1", **changes: Any) -> Any:
    body = {"store_id": shop.store_id, "terminal_ref": terminal_ref, **hand} | changes
    return shop.till.post(REDEEM, body)


def later(caller: Caller, kind: Kind) -> Caller:
    """The same party with a token of now, after the clock was moved."""
    client = clients.of_subject(kind, caller.id)
    assert client is not None
    token, _ = tokens.issue_client_token(client, frozenset(client.scopes))
    return replace(caller, token=token)


def test_a_voucher_is_looked_up_by_code_or_qr(me: Caller, shop: Shop) -> None:
    held = voucher(me, shop)
    code = held["code"]
    expected = {
        "voucher_id": held["id"],
        "reward_title": "公交单程券",
        "status": "issued",
        "expires_at": held["expires_at"],
    }
    for hand in ({"code": code}, {"code": code.lower().replace("-", " ")},
                 {"qr_payload": held["qr_payload"]}):  # fmt: skip
        answer = shop.till.post(LOOKUP, hand)
        assert (answer.status_code, answer.get_json()) == (200, expected)
    english = shop.till.post(LOOKUP, {"code": code}, headers={"Accept-Language": "en"})
    assert english.get_json()["reward_title"] == "One bus ride"


def test_a_voucher_is_used_once_and_the_same_scan_again_is_the_first_answer(
    me: Caller, shop: Shop
) -> None:
    held = voucher(me, shop)
    first = scan(shop, {"qr_payload": held["qr_payload"]})
    assert first.status_code == 200
    used = first.get_json()
    assert (used["voucher_id"], used["status"]) == (held["id"], "used")
    assert used["used_at"].startswith("2026-05-20T04:00:")
    assert scan(shop, {"code": held["code"]}).get_json() == used
    assert said(scan(shop, {"code": held["code"]}, "t2")) == (409, "voucher_used")
    elsewhere = scan(shop, {"code": held["code"]}, store_id=shop.other_store_id)
    assert said(elsewhere) == (409, "voucher_used")
    assert shop.till.post(LOOKUP, {"code": held["code"]}).get_json()["status"] == "used"
    [redemption] = me.get("/v1/redemptions").get_json()["items"]
    assert redemption["vouchers"][0]["status"] == "used"


def test_a_terminal_reference_stands_for_one_voucher(me: Caller, shop: Shop) -> None:
    one, two = voucher(me, shop), voucher(me, shop, "k2")
    assert scan(shop, {"code": one["code"]}).status_code == 200
    assert said(scan(shop, {"code": two["code"]})) == (422, "idempotency_key_reused")
    # Another store counts its own receipts.
    other = scan(shop, {"code": two["code"]}, store_id=shop.other_store_id)
    assert other.status_code == 200


def test_of_eight_tills_at_once_one_wins(app: Flask, me: Caller, shop: Shop) -> None:
    held = voucher(me, shop)

    def attempt(number: int) -> tuple[int, str]:
        till = replace(shop.till, http=app.test_client())
        return said(scan(replace(shop, till=till), {"code": held["code"]}, f"t{number}"))

    with ThreadPoolExecutor(8) as pool:
        ends = sorted(pool.map(attempt, range(8)))
    assert ends == [(200, "")] + [(409, "voucher_used")] * 7


def test_an_idempotency_key_replays_a_scan(me: Caller, shop: Shop) -> None:
    held = voucher(me, shop)
    body = {"code": held["code"], "store_id": shop.store_id, "terminal_ref": "t1"}
    first = shop.till.post(REDEEM, body, key="scan-1")
    again = shop.till.post(REDEEM, body, key="scan-1")
    assert (again.data, again.headers["Idempotency-Replayed"]) == (first.data, "true")


def test_another_merchant_learns_nothing_and_uses_nothing(
    app: Flask, me: Caller, shop: Shop
) -> None:
    held = voucher(me, shop)
    stranger = open_shop(app)
    assert said(stranger.till.post(LOOKUP, {"code": held["code"]})) == (403, "wrong_merchant")
    assert said(scan(stranger, {"code": held["code"]})) == (403, "wrong_merchant")
    foreign_store = scan(shop, {"code": held["code"]}, store_id=stranger.store_id)
    assert said(foreign_store) == (403, "wrong_merchant")
    assert shop.till.post(LOOKUP, {"code": held["code"]}).get_json()["status"] == "issued"


def test_cancelled_and_expired_vouchers_are_told_apart(me: Caller, shop: Shop) -> None:
    cancelled, expired = voucher(me, shop), voucher(me, shop, "k2", voucher_valid_days=1)
    [second, first] = me.get("/v1/redemptions").get_json()["items"]
    me.post(f"/v1/redemptions/{first['id']}/cancel")
    assert second["vouchers"][0]["id"] == expired["id"]
    assert said(scan(shop, {"code": cancelled["code"]})) == (409, "voucher_cancelled")
    with clock.travel(timedelta(days=2)):
        till = replace(shop, till=later(shop.till, Kind.MERCHANT))
        assert said(scan(till, {"code": expired["code"]})) == (409, "voucher_expired")
        status = till.till.post(LOOKUP, {"code": expired["code"]}).get_json()["status"]
        assert status == "expired"


def test_a_qr_code_dies_after_a_minute_and_cannot_be_altered(me: Caller, shop: Shop) -> None:
    held = voucher(me, shop)
    payload = held["qr_payload"]
    for bad in (payload[:-2], payload.replace("TH1", "TH2"), "x", "TH1.a.b.c", f"{payload}.x",
                payload.replace(held["id"], held["id"][:-1] + "9"), "TH1..1.é"):  # fmt: skip
        for path in (LOOKUP, REDEEM):
            body = {"qr_payload": bad}
            if path is REDEEM:
                body |= {"store_id": shop.store_id, "terminal_ref": "t1"}
            assert said(shop.till.post(path, body)) == (422, "invalid_qr"), bad
    with clock.travel(timedelta(seconds=70)):
        assert said(shop.till.post(LOOKUP, {"qr_payload": payload})) == (422, "invalid_qr")
        assert shop.till.post(LOOKUP, {"code": held["code"]}).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"code": "AAAA-AAAA-AAAAA"}, 404, "not_found"),
        ({"code": "nonsense"}, 404, "not_found"),
        ({"code": ""}, 422, "validation_failed"),
        ({"code": 123}, 422, "validation_failed"),
        ({"code": "A", "qr_payload": "B"}, 422, "validation_failed"),
        ({}, 422, "validation_failed"),
        ({"code": "A", "pin": "1"}, 422, "validation_failed"),
    ],
    ids=str,
)
def test_what_is_no_voucher_is_refused(
    shop: Shop, body: dict[str, Any], status: int, code: str
) -> None:
    assert said(shop.till.post(LOOKUP, body)) == (status, code)
    assert said(scan(shop, body)) == (status, code)


def test_a_scan_names_its_store_and_terminal(me: Caller, shop: Shop) -> None:
    held = voucher(me, shop)
    for change in ({"store_id": None}, {"store_id": ""}, {"terminal_ref": ""},
                   {"terminal_ref": "x" * 129}):  # fmt: skip
        answer = scan(shop, {"code": held["code"]}, **change)
        assert said(answer) == (422, "validation_failed")
    assert said(scan(shop, {"code": held["code"]}, store_id="sto_none")) == (403, "wrong_merchant")


def test_a_resident_does_not_scan(app: Flask, me: Caller) -> None:
    assert said(me.post(LOOKUP, {"code": "A"})) == (403, "forbidden")
    assert said(machine(app, Kind.DATA).post(REDEEM, {"code": "A"})) == (403, "forbidden")


def test_a_scan_is_refunded_and_the_voucher_used_again(me: Caller, shop: Shop) -> None:
    held = voucher(me, shop)
    path = f"/v1/merchant/vouchers/{held['id']}/refund"
    assert said(shop.till.post(path)) == (409, "voucher_not_used")
    assert scan(shop, {"code": held["code"]}).status_code == 200
    first = shop.till.post(path, key="r1")
    assert (first.status_code, first.get_json()["status"]) == (200, "issued")
    assert first.get_json()["voucher_id"] == held["id"]
    assert shop.till.post(path).get_json() == first.get_json()
    assert scan(shop, {"code": held["code"]}, "t2").status_code == 200
    assert shop.till.post(path, key="r1").headers["Idempotency-Replayed"] == "true"
    assert shop.till.post(LOOKUP, {"code": held["code"]}).get_json()["status"] == "used"


def test_another_merchant_refunds_nothing(app: Flask, me: Caller, shop: Shop) -> None:
    held = voucher(me, shop)
    scan(shop, {"code": held["code"]})
    path = f"/v1/merchant/vouchers/{held['id']}/refund"
    assert said(open_shop(app).till.post(path)) == (403, "wrong_merchant")
    assert said(me.post(path)) == (403, "forbidden")
    assert said(shop.till.post("/v1/merchant/vouchers/vch_none/refund")) == (404, "not_found")


def test_scans_without_network_are_handed_in_later(me: Caller, shop: Shop) -> None:
    one, two = voucher(me, shop), voucher(me, shop, "k2")
    made = {"store_id": shop.store_id, "scanned_at": "2026-05-20T12:00:10+08:00"}
    scans = [
        {**made, "qr_payload": one["qr_payload"], "terminal_ref": "t1"},
        {**made, "qr_payload": one["qr_payload"], "terminal_ref": "t2"},
        {**made, "qr_payload": two["qr_payload"], "terminal_ref": "t3", "pin": 1},
        {**made, "qr_payload": two["qr_payload"][:-3], "terminal_ref": "t3"},
        "x",
    ]
    with clock.travel(timedelta(hours=3)):
        till = later(shop.till, Kind.MERCHANT)
        answer = till.post("/v1/merchant/vouchers/offline-scans", {"scans": scans})
        results = answer.get_json()["results"]
        assert [result["status_code"] for result in results] == [200, 409, 422, 422, 422]
        assert results[0]["voucher"] == {
            "voucher_id": one["id"], "status": "used", "used_at": "2026-05-20T04:00:10.000Z",
        }  # fmt: skip
        told = [result["problem"]["code"] for result in results[1:]]
        assert told == ["voucher_used", "validation_failed", "invalid_qr", "validation_failed"]
        [lost] = till.get("/v1/merchant/vouchers/offline-scans").get_json()["items"]
        assert (lost["terminal_ref"], lost["code"]) == ("t2", "voucher_used")
        operator = later(shop.operator, Kind.OPERATOR)
        assert operator.get("/v1/operator/lost-scans").get_json()["items"] == [lost]


def test_guessing_codes_ends_after_thirty_wrong_ones(app: Flask, me: Caller, shop: Shop) -> None:
    held = voucher(me, shop)
    wrong = {"code": "AAAA-AAAA-AAAAA"}
    ends = [said(shop.till.post(LOOKUP, wrong)) for _ in range(31)]
    assert ends == [(404, "not_found")] * 30 + [(429, "rate_limited")]
    refused = scan(shop, {"code": held["code"]})
    assert said(refused) == (429, "rate_limited")
    assert int(refused.headers["Retry-After"]) <= 600
    # The QR of a phone cannot be guessed, and other merchants go on.
    assert shop.till.post(LOOKUP, {"qr_payload": held["qr_payload"]}).status_code == 200
    assert said(open_shop(app).till.post(LOOKUP, wrong)) == (404, "not_found")
