"""The operator's catalogue over HTTP: terms, stock, pictures, files, figures, merchants' tills."""

import csv
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO, StringIO
from typing import Any

import pytest
from callers import Caller, machine, resident, said
from flask import Flask
from PIL import Image
from shop import EARNED, Shop, open_shop, rich_resident

from accounting import audit, clients, clock, tokens
from accounting.clients import Kind
from points import funders
from rewards import pictures

NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)
REWARDS, FILES = "/v1/operator/rewards", "/v1/operator/reward-files"


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


def changes_of(subject: str) -> list[tuple[str, str | None, Any, Any]]:
    found = audit.trail(subject=subject, limit=20)
    return [(one.action, one.reason, one.before, one.after) for one in reversed(found)]


def bank_funder() -> str:
    """A bank that pays for rewards, agreed on."""
    terms = funders.CITY_TERMS | {"kind": "bank", "name": {"zh": "银行", "en": "Bank"}}
    return funders.propose(terms, "cli_test", alone=True).id


# --- terms --------------------------------------------------------------------------------------

FULL: dict[str, Any] = {
    "description": {"zh": "一次", "en": "Once"},
    "category": "transport",
    "prices_by_grade": {"deep": 400},
    "per_day_limit": 1,
    "per_month_limit": 5,
    "per_resident_limit": 9,
    "monthly_stock": 7,
    "grades": [],
    "districts": ["柯城区"],
    "unused": "return",
    "low_stock_at": 2,
}


def test_every_term_is_kept_and_shown(shop: Shop) -> None:
    shares = [{"funder_id": "city", "percent": 70}, {"funder_id": bank_funder(), "percent": 30}]
    terms = FULL | {"store_ids": [shop.other_store_id], "funders": shares}
    reward_id = shop.offer(**terms)
    shown = shop.operator.get(f"{REWARDS}/{reward_id}").get_json()
    assert {name: shown[name] for name in terms} == terms
    assert (shown["funder_id"], shown["paused"], shown["low_stock"]) == ("city", False, False)
    public = shop.operator.http.get(f"/v1/rewards/{reward_id}").get_json()
    assert [store["store_id"] for store in public["stores"]] == [shop.other_store_id]
    assert (public["stock_left"], public["prices_by_grade"]) == (7, {"deep": 400})
    assert said(shop.operator.get(f"{REWARDS}/rwd_none")) == (404, "not_found")


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"funders": [{"funder_id": "city", "percent": 99}]}, "/funders"),
        ({"funders": [{"funder_id": "fnd_none", "percent": 100}]}, "/funders"),
        ({"funders": [{"funder_id": "city"}]}, "/funders/0/percent"),
        ({"funders": [{"funder_id": "city", "percent": 50}] * 2}, "/funders"),
        ({"funder_id": "fnd_none"}, "/funder_id"),
        ({"funders": [{"funder_id": "city", "percent": 100}], "funder_id": "city"}, "/funder_id"),
        ({"store_ids": ["sto_none"]}, "/store_ids"),
        ({"grades": ["green"]}, "/grades/0"),
        ({"unused": "keep"}, "/unused"),
        ({"category": "Food & drink"}, "/category"),
        ({"prices_by_grade": {"green": 1}}, "/prices_by_grade/green"),
        ({"per_day_limit": 0}, "/per_day_limit"),
    ],
    ids=str,
)
def test_terms_that_make_no_sense_are_refused(
    shop: Shop, change: dict[str, Any], pointer: str
) -> None:
    reward = {
        "title": {"zh": "券", "en": "Ticket"}, "merchant_id": shop.till.id, "price_points": 1,
        "face_value_fen": 1, "stock": 1, "voucher_valid_days": 1,
    }  # fmt: skip
    answer = shop.operator.post(REWARDS, reward | change)
    assert said(answer) == (422, "validation_failed")
    assert answer.get_json()["errors"][0]["pointer"] == pointer
    patched = {name: value for name, value in change.items() if name != "funder_id"}
    if patched and "funder_id" not in change:
        answer = shop.operator.patch(f"{REWARDS}/{shop.offer()}", patched | {"reason": "x"})
        assert answer.get_json()["errors"][0]["pointer"] == pointer


def test_a_change_may_say_why_and_is_audited_with_before_and_after(shop: Shop) -> None:
    path = f"{REWARDS}/{shop.offer(stock=10)}"
    change = {"price_points": 600, "per_day_limit": 1, "stock_delta": -4, "reason": "spring"}
    for _ in range(2):
        answer = shop.operator.patch(path, change, key="p1").get_json()
        assert (answer["price_points"], answer["per_day_limit"], answer["stock_left"]) == (
            600,
            1,
            6,
        )
    action, reason, before, after = changes_of(path.rpartition("/")[2])[-1]
    assert (action, reason) == ("reward changed", "spring")
    assert before == {"price_points": 500, "per_day_limit": None, "stock_left": 10}
    assert after == {"price_points": 600, "per_day_limit": 1, "stock_left": 6}
    assert len(changes_of(path.rpartition("/")[2])) == 2
    [changed, added] = shop.operator.get(
        f"/v1/operator/audit?subject={path.rpartition('/')[2]}"
    ).get_json()["items"]
    assert (changed["before"], added["after"]["price_points"]) == (before, 500)
    assert shop.operator.patch(path, {"per_day_limit": None, "reason": "x"}).status_code == 200
    # The contract asks for no reason; without one the trail says so.
    assert shop.operator.patch(path, {"paused": True}).get_json()["paused"] is True
    assert changes_of(path.rpartition("/")[2])[-1][:2] == ("reward changed", None)
    refused = shop.operator.patch(path, {"stock_delta": -7, "reason": "x"})
    assert said(refused) == (409, "stock_promised")
    wrong = {"available_to": "2026-05-01T00:00:00+08:00", "stock_delta": 5, "reason": "x"}
    assert said(shop.operator.patch(path, wrong)) == (422, "validation_failed")
    assert shop.operator.get(path).get_json()["stock_left"] == 6


def test_whoever_adds_under_one_key_adds_one(shop: Shop) -> None:
    reward = {
        "title": {"zh": "券", "en": "Ticket"}, "merchant_id": shop.till.id, "price_points": 1,
        "face_value_fen": 1, "stock": 1, "voucher_valid_days": 1,
    }  # fmt: skip
    first = shop.operator.post(REWARDS, reward, key="r1").get_json()["id"]
    # What the answer was kept in is gone after a week; the reward knows its request.
    with clock.travel(timedelta(days=8)):
        operator = fresh(shop.operator, Kind.OPERATOR)
        assert operator.post(REWARDS, reward, key="r1").get_json()["id"] == first
        assert len(operator.get(REWARDS).get_json()["items"]) == 1


def fresh(caller: Caller, kind: Kind) -> Caller:
    """The same party with a token of now, after the clock was moved."""
    client = clients.of_subject(kind, caller.id)
    assert client is not None
    token, _ = tokens.issue_client_token(client, frozenset(client.scopes))
    return replace(caller, token=token)


def test_only_operators_of_rewards_touch_the_catalogue(app: Flask, shop: Shop, me: Caller) -> None:
    path = f"{REWARDS}/{shop.offer()}"
    for caller in (me, shop.till):
        for method, where in (("GET", path), ("PATCH", path), ("PUT", f"{path}/image"),
                              ("POST", FILES), ("GET", FILES), ("GET", "/v1/operator/stock-alarms"),
                              ("GET", "/v1/operator/reward-figures")):  # fmt: skip
            assert said(caller.send(method, where, {})) == (403, "forbidden"), where


# --- what residents find ------------------------------------------------------------------------


def test_residents_search_and_filter(app: Flask, shop: Shop, me: Caller) -> None:
    bus = shop.offer(category="transport")
    tea = shop.offer(title={"zh": "龙井茶", "en": "Green tea"}, price_points=EARNED + 1, stock=0)

    def found(query: str, caller: Caller = me) -> list[str]:
        items = caller.get(f"/v1/rewards?{query}").get_json()["items"]
        return [one["id"] for one in items]

    assert found("") == [tea, bus]
    assert found("text=龙井") == found("text=TEA") == [tea]
    assert found("category=transport") == found("affordable=true") == [bus]
    assert found("available=true") == [bus]
    assert found(f"merchant_id={shop.till.id}&limit=1") == [tea]
    assert found("affordable=true", resident(app)) == []
    anonymous = app.test_client().get("/v1/rewards?affordable=true")
    assert said(anonymous) == (401, "unauthenticated")
    assert said(me.get("/v1/rewards?affordable=yes")) == (422, "validation_failed")


def test_limits_and_eligibility_speak_the_readers_language(shop: Shop, me: Caller) -> None:
    daily = shop.offer(per_day_limit=1)
    assert redeem(me, daily).status_code == 201
    answer = redeem(me, daily, "k2")
    assert said(answer) == (409, "limit_reached")
    assert answer.get_json()["detail"] == "该奖品每人每日限兑 1 份。"
    answer = redeem(me, shop.offer(districts=["衢江区"]), "k3")
    assert said(answer) == (409, "reward_unavailable")
    assert said(redeem(me, shop.offer(monthly_stock=1), "k4", quantity=2)) == (409, "out_of_stock")


# --- pictures -----------------------------------------------------------------------------------


def picture(colour: str = "green", kind: str = "PNG") -> bytes:
    out = BytesIO()
    Image.new("RGB", (3_000, 1_000), colour).save(out, kind)
    return out.getvalue()


def test_a_picture_is_made_anew_and_served_to_all(app: Flask, shop: Shop) -> None:
    reward_id = shop.offer()
    http, path = app.test_client(), f"/v1/rewards/{reward_id}"
    assert http.get(path).get_json()["image_url"] is None
    assert said(http.get(f"{path}/image")) == (404, "not_found")
    for colour in ("green", "red"):
        answer = shop.operator.send(
            "PUT", f"{REWARDS}/{reward_id}/image",
            data=picture(colour), headers={"Content-Type": "image/png"},
        )  # fmt: skip
        assert answer.status_code == 200
    url = http.get(path).get_json()["image_url"]
    served = http.get(url)
    with Image.open(BytesIO(served.data)) as image:
        assert (image.format, image.size) == ("JPEG", (2_048, 683))
    assert served.headers["Cache-Control"] == "public, max-age=86400"
    again = http.get(url, headers={"If-None-Match": served.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    assert pictures.PictureDocument.objects.count() == 2
    assert [one[0] for one in changes_of(reward_id)][1:] == ["reward picture changed"] * 2


@pytest.mark.parametrize(
    ("data", "kind", "end"),
    [
        (b"no picture", "image/png", (422, "photo_unreadable")),
        (b"GIF89a", "image/gif", (415, "unsupported_media_type")),
        (b"x" * 5_000_001, "image/png", (413, "payload_too_large")),
    ],
    ids=["text", "gif", "large"],
)
def test_what_is_no_picture_is_refused(
    shop: Shop, data: bytes, kind: str, end: tuple[int, str]
) -> None:
    path = f"{REWARDS}/{shop.offer()}/image"
    answer = shop.operator.send("PUT", path, data=data, headers={"Content-Type": kind})
    assert said(answer) == end


# --- files --------------------------------------------------------------------------------------

HEADER = (
    "reference,merchant_id,title_zh,title_en,price_points,price_deep,face_value_fen,funders,stock,"
    "districts,voucher_valid_days,available_to"
)


def upload(operator: Caller, text: str, kind: str = "text/csv", **options: Any) -> Any:
    data = text.encode()
    return operator.send("POST", FILES, data=data, headers={"Content-Type": kind}, **options)


def test_good_rows_of_a_file_are_taken_and_the_others_told(shop: Shop) -> None:
    bank = bank_funder()
    rows = [
        f"a-1,{shop.till.id},柚子,Pomelo,500,400,1000,city:70 {bank}:30,5,柯城区 衢江区,30,",
        f"a-2,{shop.till.id},茶,Tea,many,,1000,,5,,30,",
        f"a-3,{shop.till.id},米,Rice,500,,1000,city:90,5,,30,",
        "a-4,mer_none,米,Rice,500,,1000,,5,,30,",
        f",{shop.till.id},米,Rice,500,,1000,,5,,30,",
        f"a-6,{shop.till.id},米",
        f'a-7,{shop.till.id},"米, 新",Rice,500,,0,,5,,30,2026-06-01T00:00:00+08:00',
    ]
    text = "\ufeff" + "\r\n".join([HEADER, *rows]) + "\r\n"
    results = upload(shop.operator, text).get_json()["results"]
    assert [one["status_code"] for one in results] == [201, 422, 422, 404, 422, 422, 201]
    assert [one["row"] for one in results] == [1, 2, 3, 4, 5, 6, 7]
    wrong = [one["problem"]["errors"][0]["pointer"] for one in results[1:3]]
    assert wrong == ["/price_points", "/funders"]
    taken = shop.operator.get(f"{REWARDS}/{results[0]['id']}").get_json()
    assert (taken["prices_by_grade"], taken["districts"], taken["stock_left"]) == (
        {"deep": 400}, ["柯城区", "衢江区"], 5,
    )  # fmt: skip
    assert [one["percent"] for one in taken["funders"]] == [70, 30]
    again = upload(shop.operator, text).get_json()["results"]
    assert [one.get("id") for one in again] == [one.get("id") for one in results]
    changed = upload(shop.operator, text.replace(",500,400,", ",700,400,")).get_json()["results"]
    assert changed[0]["problem"]["code"] == "idempotency_key_reused"
    assert len(shop.operator.get(REWARDS).get_json()["items"]) == 2


@pytest.mark.parametrize(
    ("text", "kind", "end"),
    [
        ("", "text/csv", (422, "validation_failed")),
        (HEADER, "text/csv", (422, "validation_failed")),
        ("reference,colour\r\na,b\r\n", "text/csv", (422, "validation_failed")),
        ('reference\r\n"a\r\n', "text/csv", (400, "malformed_request")),
        (HEADER, "application/json", (415, "unsupported_media_type")),
        (HEADER + "\r\na" * 1_001, "text/csv", (422, "validation_failed")),
    ],
    ids=["empty", "header alone", "unknown column", "open quote", "json", "too long"],
)
def test_a_file_that_is_no_list_of_rewards_is_refused(
    shop: Shop, text: str, kind: str, end: tuple[int, str]
) -> None:
    assert said(upload(shop.operator, text, kind)) == end
    assert shop.operator.get(REWARDS).get_json()["items"] == []


def test_an_exported_catalogue_runs_no_formula_and_can_be_read_in(shop: Shop) -> None:
    shop.offer(title={"zh": "=1+1", "en": "@here"}, districts=["柯城区"], monthly_stock=4)
    answer = shop.operator.get(FILES)
    assert answer.headers["Content-Disposition"] == 'attachment; filename="rewards.csv"'
    [row] = list(csv.DictReader(StringIO(answer.data.decode("utf-8-sig"))))
    assert (row["title_zh"], row["title_en"], row["funders"]) == ("'=1+1", "'@here", "city:100")
    assert (row["stock_left"], row["monthly_stock"], row["available_to"]) == ("10", "4", "")
    row |= {"reference": "copy", "stock": "3"}
    out = StringIO()
    writer = csv.DictWriter(out, list(row))
    writer.writeheader()
    writer.writerow(row)
    [result] = upload(shop.operator, out.getvalue()).get_json()["results"]
    copy = shop.operator.get(f"{REWARDS}/{result['id']}").get_json()
    assert (copy["title"], copy["stock_left"]) == ({"zh": "=1+1", "en": "@here"}, 3)


# --- figures ------------------------------------------------------------------------------------


def test_figures_follow_redemptions_from_asking_to_using(shop: Shop, me: Caller) -> None:
    bus, tea = shop.offer(per_resident_limit=4), shop.offer(voucher_valid_days=1, stock=1)
    first = redeem(me, bus, "k1", quantity=2).get_json()
    cancelled = redeem(me, bus, "k2").get_json()
    me.post(f"/v1/redemptions/{cancelled['id']}/cancel")
    redeem(me, tea, "k3")
    for key in ("k4", "k5"):
        assert said(redeem(me, tea, key)) == (409, "out_of_stock")
    assert said(redeem(me, bus, "k6", quantity=3)) == (409, "limit_reached")
    scan = {"code": first["vouchers"][0]["code"], "store_id": shop.store_id, "terminal_ref": "t"}
    assert shop.till.post("/v1/merchant/vouchers/redeem", scan).status_code == 200
    with clock.travel(timedelta(days=3)):
        operator = fresh(shop.operator, Kind.OPERATOR)
        path = "/v1/operator/reward-figures"
        found = operator.get(path).get_json()
        assert (found["asked"], found["went_through"], found["under_way"]) == (6, 3, 0)
        assert found["refused"] == [
            {"code": "limit_reached", "redemptions": 1}, {"code": "out_of_stock", "redemptions": 2},
        ]  # fmt: skip
        assert found["vouchers"] == {"issued": 1, "used": 1, "expired": 1, "cancelled": 1}
        assert [(one["reward_id"], one["vouchers"], one["points"]) for one in found["top"]] == [
            (bus, 3, 1_500), (tea, 1, 500),
        ]  # fmt: skip
        only = operator.get(f"{path}?reward_id={tea}&from=2026-05-20&to=2026-05-20").get_json()
        assert (only["asked"], only["vouchers"]["expired"]) == (3, 1)
        assert operator.get(f"{path}?from=2026-05-21").get_json()["asked"] == 0
        for query in ("from=2026-05-21&to=2026-05-20", "from=2026-01-01&to=2026-05-20"):
            assert said(operator.get(f"{path}?{query}")) == (422, "validation_failed")


def test_operators_see_each_time_few_were_left(shop: Shop, me: Caller) -> None:
    reward_id = shop.offer(stock=2, low_stock_at=1)
    shop.offer()
    redeem(me, reward_id)
    [alarm] = shop.operator.get("/v1/operator/stock-alarms").get_json()["items"]
    assert (alarm["reward_id"], alarm["stock_left"], alarm["low_stock_at"]) == (reward_id, 1, 1)
    [low] = shop.operator.get(f"{REWARDS}?low_stock=true").get_json()["items"]
    assert (low["id"], low["low_stock"]) == (reward_id, True)


# --- merchants ----------------------------------------------------------------------------------


def test_a_merchant_changes_with_reason_and_shows_what_it_is_owed(shop: Shop, me: Caller) -> None:
    code = redeem(me, shop.offer()).get_json()["vouchers"][0]["code"]
    scan = {"code": code, "store_id": shop.store_id, "terminal_ref": "t"}
    assert shop.till.post("/v1/merchant/vouchers/redeem", scan).status_code == 200
    path = f"/v1/operator/merchants/{shop.till.id}"
    [listed] = shop.operator.get("/v1/operator/merchants").get_json()["items"]
    assert listed == shop.operator.get(path).get_json()
    assert (listed["unsettled_fen"], listed["fee_basis_points"]) == (100, 0)
    change = {
        "name": {"zh": "新名", "en": "New"},
        "fee_basis_points": 150,
        "stores": [
            {"store_id": shop.other_store_id, "closed": True},
            {"name": "开化店", "address": "开化县"},
        ],
        "reason": "moved",
    }
    for _ in range(2):
        after = shop.operator.patch(path, change, key="m1").get_json()
    assert (after["name"]["en"], after["fee_basis_points"]) == ("New", 150)
    assert [(one["name"], one["closed"]) for one in after["stores"]] == [
        ("柯城店", False), ("衢江店", True), ("开化店", False),
    ]  # fmt: skip
    action, reason, before, _ = changes_of(shop.till.id)[-1]
    assert (action, reason, before["fee_basis_points"]) == ("merchant changed", "moved", 0)
    for wrong in ({"stores": [{"name": "x"}]}, {"fee_basis_points": 10_001}, {"stores": []}):
        answer = shop.operator.patch(path, wrong | {"reason": "x"})
        assert said(answer) == (422, "validation_failed")
    foreign = {"stores": [{"store_id": "sto_none", "closed": True}], "reason": "x"}
    assert said(shop.operator.patch(path, foreign)) == (404, "not_found")
    assert said(shop.operator.get("/v1/operator/merchants/mer_none")) == (404, "not_found")


def test_a_credential_of_one_store_works_there_alone(app: Flask, shop: Shop, me: Caller) -> None:
    path = f"/v1/operator/merchants/{shop.till.id}/credentials"
    made = shop.operator.post(path, {"name": "till 1", "store_id": shop.store_id}).get_json()
    assert made["store_id"] == shop.store_id
    token = app.test_client().post(
        "/v1/oauth/token",
        data={"grant_type": "client_credentials"},
        auth=(made["client_id"], made["client_secret"]),
    )
    till = replace(shop.till, token=token.get_json()["access_token"])
    one, two = redeem(me, shop.offer(), quantity=2).get_json()["vouchers"]

    def scan(caller: Caller, code: str, store_id: str) -> tuple[int, str]:
        body = {"code": code, "store_id": store_id, "terminal_ref": f"t-{store_id}"}
        return said(caller.post("/v1/merchant/vouchers/redeem", body))

    assert scan(till, one["code"], shop.other_store_id) == (403, "wrong_merchant")
    assert scan(till, one["code"], shop.store_id) == (200, "")
    assert scan(shop.till, two["code"], shop.other_store_id) == (200, "")
    refund = "/v1/merchant/vouchers/{}/refund"
    assert said(till.post(refund.format(two["id"]))) == (403, "wrong_merchant")
    assert till.post(refund.format(one["id"])).status_code == 200
    made_offline = {"qr_payload": one["qr_payload"], "store_id": shop.other_store_id,
                    "terminal_ref": "off", "scanned_at": "2026-05-20T12:00:01+08:00"}  # fmt: skip
    answer = till.post("/v1/merchant/vouchers/offline-scans", {"scans": [made_offline]})
    [result] = answer.get_json()["results"]
    assert result["problem"]["code"] == "wrong_merchant"
    items = shop.operator.get(path).get_json()["items"]
    assert [one["store_id"] for one in items] == [None, None, shop.store_id]
    assert all("client_secret" not in one for one in items)
    end = f"{path}/{made['client_id']}/disable"
    for _ in range(2):
        assert shop.operator.post(end).get_json()["disabled_at"] is not None
    assert scan(till, one["code"], shop.store_id) == (401, "unauthenticated")
    assert scan(shop.till, one["code"], shop.store_id) == (200, "")
    assert said(shop.operator.post(path, {"name": "x", "store_id": "sto_none"})) == (
        404, "not_found",
    )  # fmt: skip
    stranger = machine(app, Kind.MERCHANT)
    foreign = clients.of_subject(Kind.MERCHANT, stranger.id)
    assert foreign is not None
    wrong = f"{path}/{foreign.client_id}/disable"
    assert said(shop.operator.post(wrong)) == (404, "not_found")
