"""Rewards over HTTP: the catalogue, redemptions, keys, cancelling, QR codes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from callers import Caller, resident, said
from flask import Flask
from shop import EARNED, Shop, open_shop, rich_resident

from accounting import clock, tokens

# Wednesday 20 May 2026, noon in the city.
NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)


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


def redeem(me: Caller, reward_id: str, key: str = "k1", **body: Any) -> Any:
    return me.post("/v1/redemptions", {"reward_id": reward_id, **body}, key=key)


def available(me: Caller) -> int:
    points: int = me.get("/v1/me/points").get_json()["available"]
    return points


# --- rewards ------------------------------------------------------------------------------------


def test_the_catalogue_is_open_and_speaks_the_readers_language(app: Flask, shop: Shop) -> None:
    reward_id = shop.offer(description={"zh": "一次", "en": "Once"}, per_resident_limit=2)
    shop.offer(available_from="2026-05-21T00:00:00+08:00")
    shop.offer(available_from="2026-05-01T00:00:00+08:00", available_to="2026-05-20T12:00:00+08:00")
    http = app.test_client()
    [reward] = http.get("/v1/rewards").get_json()["items"]
    assert reward == {
        "id": reward_id,
        "title": "公交单程券",
        "description": "一次",
        "category": "",
        "image_url": None,
        "price_points": 500,
        "prices_by_grade": {},
        "face_value_fen": 100,
        "stock_left": 10,
        "per_resident_limit": 2,
        "per_day_limit": None,
        "per_month_limit": None,
        "grades": [],
        "districts": [],
        "voucher_valid_days": 30,
        "paused": False,
        "merchant_id": shop.till.id,
        "stores": [
            {"store_id": shop.store_id, "name": "柯城店", "address": "柯城区"},
            {"store_id": shop.other_store_id, "name": "衢江店", "address": "衢江区"},
        ],
        "available_from": reward["available_from"],
        "available_to": None,
    }
    english = http.get(f"/v1/rewards/{reward_id}", headers={"Accept-Language": "en-US"})
    assert (english.get_json()["title"], english.get_json()["description"]) == (
        "One bus ride", "Once",
    )  # fmt: skip
    assert said(http.get("/v1/rewards/rwd_none")) == (404, "not_found")
    assert said(http.get("/v1/rewards?limit=101")) == (422, "validation_failed")


# --- redemptions --------------------------------------------------------------------------------


def test_points_become_vouchers(me: Caller, shop: Shop) -> None:
    reward_id = shop.offer()
    answer = redeem(me, reward_id, quantity=2)
    assert answer.status_code == 201
    redemption = answer.get_json()
    assert (redemption["status"], redemption["points"], redemption["quantity"]) == (
        "issued", 1_000, 2,
    )  # fmt: skip
    assert len({voucher["code"] for voucher in redemption["vouchers"]}) == 2
    for voucher in redemption["vouchers"]:
        assert voucher.keys() >= {"id", "code", "expires_at", "qr_payload"}
        # Thirty days after today, to the end of the city day.
        assert voucher["expires_at"] == "2026-06-19T16:00:00.000Z"
    assert available(me) == EARNED - 1_000
    stock = me.get(f"/v1/rewards/{reward_id}").get_json()["stock_left"]
    assert stock == 8
    [listed] = me.get("/v1/redemptions").get_json()["items"]
    seen = me.get(f"/v1/redemptions/{redemption['id']}").get_json()
    for one in (listed, seen):
        assert [voucher["code"] for voucher in one["vouchers"]] == [
            voucher["code"] for voucher in redemption["vouchers"]
        ]


def test_the_key_is_required_and_the_same_key_is_the_same_redemption(
    me: Caller, shop: Shop
) -> None:
    reward_id = shop.offer()
    missing = me.post("/v1/redemptions", {"reward_id": reward_id})
    assert said(missing) == (422, "validation_failed")
    assert missing.get_json()["errors"][0]["pointer"] == "/Idempotency-Key"
    first = redeem(me, reward_id)
    assert "Idempotency-Replayed" not in first.headers
    again = redeem(me, reward_id)
    assert (again.status_code, again.headers["Idempotency-Replayed"]) == (201, "true")
    assert again.data == first.data
    assert available(me) == EARNED - 500
    other = redeem(me, reward_id, quantity=2)
    assert said(other) == (422, "idempotency_key_reused")
    assert redeem(me, reward_id, key="k2").get_json()["id"] != first.get_json()["id"]
    for bad in ("", "x" * 256, "钥匙".encode().decode("latin-1"), "a\tb"):
        answer = redeem(me, reward_id, key=bad)
        assert said(answer) == (422, "validation_failed")


def test_a_key_belongs_to_its_caller(app: Flask, me: Caller, shop: Shop) -> None:
    reward_id = shop.offer()
    mine = redeem(me, reward_id).get_json()
    theirs = redeem(rich_resident(app), reward_id).get_json()
    assert mine["id"] != theirs["id"]


def test_eight_requests_under_one_key_are_one_redemption(
    app: Flask, me: Caller, shop: Shop
) -> None:
    reward_id = shop.offer()

    def attempt(_: int) -> Any:
        return redeem(replace(me, http=app.test_client()), reward_id)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(attempt, range(8)))
    assert {said(answer) for answer in answers} <= {(201, ""), (409, "request_in_progress")}
    won = [answer for answer in answers if answer.status_code == 201]
    assert len({answer.data for answer in won}) == 1
    assert available(me) == EARNED - 500
    for answer in answers:
        assert answer.status_code == 201 or int(answer.headers["Retry-After"]) >= 1


def test_what_cannot_be_redeemed_costs_nothing(app: Flask, me: Caller, shop: Shop) -> None:
    dear = shop.offer(price_points=EARNED + 1)
    scarce = shop.offer(stock=1)
    limited = shop.offer(per_resident_limit=1)
    later = shop.offer(available_from="2026-05-21T00:00:00+08:00")
    assert said(redeem(me, dear, "a")) == (409, "insufficient_points")
    assert said(redeem(me, scarce, "b", quantity=2)) == (409, "out_of_stock")
    assert said(redeem(me, limited, "c", quantity=2)) == (409, "limit_reached")
    assert said(redeem(me, later, "d")) == (409, "reward_unavailable")
    assert said(redeem(me, "rwd_none", "e")) == (404, "not_found")
    assert available(me) == EARNED
    assert me.get("/v1/redemptions").get_json()["items"] == []
    assert redeem(me, limited, "f").status_code == 201
    assert said(redeem(me, limited, "g")) == (409, "limit_reached")
    # A refusal is final for its key: the same answer, also when it could be had now.
    refused = redeem(me, scarce, "b", quantity=2)
    assert said(refused) == (409, "out_of_stock")
    assert refused.headers["Idempotency-Replayed"] == "true"


@pytest.mark.parametrize(
    "change",
    [
        {"quantity": 0}, {"quantity": -1}, {"quantity": 21}, {"quantity": "1"},
        {"quantity": True}, {"reward_id": ""}, {"reward_id": None}, {"price_points": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_redemption_that_cannot_be_read_is_refused(
    me: Caller, shop: Shop, change: dict[str, Any]
) -> None:
    body = {"reward_id": shop.offer()} | change
    answer = me.post("/v1/redemptions", body, key="k")
    assert said(answer) == (422, "validation_failed")
    assert answer.get_json()["errors"][0]["pointer"] == f"/{next(iter(change))}"
    assert available(me) == EARNED


def test_an_unused_redemption_is_given_back_once(me: Caller, shop: Shop) -> None:
    reward_id = shop.offer()
    redemption_id = redeem(me, reward_id, quantity=2).get_json()["id"]
    path = f"/v1/redemptions/{redemption_id}/cancel"
    cancelled = me.post(path)
    assert cancelled.status_code == 200
    assert cancelled.get_json()["status"] == "cancelled"
    assert {one["status"] for one in cancelled.get_json()["vouchers"]} == {"cancelled"}
    assert me.post(path).status_code == 200
    points = me.get("/v1/me/points").get_json()
    assert (points["available"], points["spent"]) == (EARNED, 0)
    assert points["expiring"] == [{"on": "2028-05-31", "points": EARNED}]
    assert me.get(f"/v1/rewards/{reward_id}").get_json()["stock_left"] == 10
    kinds = [row["kind"] for row in me.get("/v1/me/points/entries").get_json()["items"]]
    assert kinds == ["release", "spend", "earn"]


def test_a_used_voucher_cannot_be_given_back(me: Caller, shop: Shop) -> None:
    redemption = redeem(me, shop.offer(), quantity=2).get_json()
    shop.till.post(
        "/v1/merchant/vouchers/redeem",
        {"code": redemption["vouchers"][1]["code"], "store_id": shop.store_id,
         "terminal_ref": "t1"},
    )  # fmt: skip
    answer = me.post(f"/v1/redemptions/{redemption['id']}/cancel")
    assert said(answer) == (409, "voucher_used")
    seen = me.get(f"/v1/redemptions/{redemption['id']}").get_json()
    assert [voucher["status"] for voucher in seen["vouchers"]] == ["issued", "used"]
    assert available(me) == EARNED - 1_000


def test_an_expired_voucher_cannot_be_given_back(me: Caller, shop: Shop) -> None:
    redemption_id = redeem(me, shop.offer(voucher_valid_days=1)).get_json()["id"]
    with clock.travel(timedelta(days=2)):
        later = replace(me, token=tokens.open_session(me.id).access_token)
        answer = later.post(f"/v1/redemptions/{redemption_id}/cancel")
        assert said(answer) == (409, "voucher_expired")


def test_somebody_elses_redemption_and_voucher_are_not_there(
    app: Flask, me: Caller, shop: Shop
) -> None:
    redemption = redeem(me, shop.offer()).get_json()
    other = resident(app)
    voucher_id = redemption["vouchers"][0]["id"]
    assert said(other.get(f"/v1/redemptions/{redemption['id']}")) == (404, "not_found")
    assert said(other.post(f"/v1/redemptions/{redemption['id']}/cancel")) == (404, "not_found")
    assert said(other.get(f"/v1/vouchers/{voucher_id}/qr")) == (404, "not_found")
    assert said(other.get("/v1/vouchers/vch_none/qr")) == (404, "not_found")
    assert other.get("/v1/redemptions").get_json()["items"] == []
    assert me.get(f"/v1/redemptions/{redemption['id']}").get_json()["status"] == "issued"


@pytest.mark.parametrize(
    ("accept", "mimetype", "begins"),
    [
        (None, "image/svg+xml", b"<"),
        ("*/*", "image/svg+xml", b"<"),
        ("image/svg+xml", "image/svg+xml", b"<"),
        ("image/png", "image/png", b"\x89PNG"),
        ("image/png;q=0.5, image/svg+xml", "image/svg+xml", b"<"),
    ],
)
def test_a_voucher_is_shown_as_a_fresh_qr_code(
    me: Caller, shop: Shop, accept: str | None, mimetype: str, begins: bytes
) -> None:
    voucher_id = redeem(me, shop.offer()).get_json()["vouchers"][0]["id"]
    answer = me.get(f"/v1/vouchers/{voucher_id}/qr", headers={"Accept": accept} if accept else {})
    assert (answer.status_code, answer.mimetype) == (200, mimetype)
    assert answer.data.startswith(begins)
    assert answer.headers["Cache-Control"] == "no-store"
    refused = me.get(f"/v1/vouchers/{voucher_id}/qr", headers={"Accept": "text/html"})
    assert said(refused) == (406, "not_acceptable")
