"""A phone number changes hands: an account idle for 90 days is not inherited, and can be proven."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from callers import Caller, new_phone, partner, said
from flask import Flask
from shop import RECYCLED

from accounting import accounts, clock, tokens

NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)
DAY, MS = timedelta(days=1), timedelta(milliseconds=1)
RETURN = "/v1/auth/return"


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.stand(NOON):
        yield


def sign_in(app: Flask, phone: str) -> Caller:
    """As after a right code: whoever holds the number gets tokens."""
    resident_id = accounts.by_phone(phone)
    accounts.seen(resident_id)
    return Caller(app.test_client(), resident_id, tokens.open_session(resident_id).access_token)


def linked(app: Flask, phone: str) -> tuple[Caller, dict[str, Any]]:
    """A resident with a partner's id and a meter account; the partner's proof comes with it."""
    me, recycler = sign_in(app, phone), partner(app)
    proof = {"partner_id": recycler.id, "external_id": "home-1"}
    assert me.post("/v1/me/links", proof).status_code == 201
    recycler.post("/v1/feeds/activities", {"activities": [RECYCLED]})
    return me, proof


def test_ninety_idle_days_and_the_number_opens_another_account(app: Flask) -> None:
    phone = new_phone()
    old = sign_in(app, phone)
    with clock.stand(NOON + 90 * DAY):
        assert sign_in(app, phone).id == old.id
    with clock.stand(NOON + 180 * DAY + MS):
        new = sign_in(app, phone)
        assert new.id != old.id
        assert sign_in(app, phone).id == new.id
        assert new.get("/v1/me/points").get_json()["available"] == 0


def test_a_refresh_keeps_an_account_from_being_idle(app: Flask) -> None:
    phone = new_phone()
    resident_id = accounts.by_phone(phone)
    http, token = app.test_client(), tokens.open_session(resident_id).refresh_token
    for month in range(1, 5):
        with clock.stand(NOON + month * 29 * DAY):
            answer = http.post("/v1/auth/refresh", json={"refresh_token": token})
            assert answer.status_code == 200
            token = answer.get_json()["refresh_token"]
    with clock.stand(NOON + 120 * DAY):
        assert accounts.by_phone(phone) == resident_id


def test_who_knows_a_linked_id_comes_back_to_points_and_history(app: Flask) -> None:
    phone = new_phone()
    old, proof = linked(app, phone)
    with clock.stand(NOON + 91 * DAY):
        new = sign_in(app, phone)
        answer = new.post(RETURN, proof)
        assert answer.status_code == 200
        assert answer.get_json()["resident_id"] == old.id
        back = Caller(new.http, old.id, answer.get_json()["access_token"])
        # 20 kg of recyclables, as in the shop tests.
        assert back.get("/v1/me/points").get_json()["lifetime_earned"] == 26_900
        assert said(new.get("/v1/me")) == (401, "unauthenticated")
        assert sign_in(app, phone).id == old.id


def test_a_meter_account_proves_it_as_well(app: Flask) -> None:
    phone = new_phone()
    old, recycler = sign_in(app, phone), partner(app, carriers=["electricity"])
    code = recycler.post("/v1/feeds/link-codes", {"external_id": "E-1"}).get_json()
    meter = {"carrier": "electricity", "account_no": "E-1"}
    joined = old.post("/v1/me/households", meter | {"members": 2, "partner_id": recycler.id,
                                                    "link_code": code["link_code"]})  # fmt: skip
    assert joined.status_code == 201, joined.text
    with clock.stand(NOON + 91 * DAY):
        new = sign_in(app, phone)
        assert said(new.post(RETURN, meter | {"account_no": "E-2"})) == (403, "proof_not_accepted")
        assert new.post(RETURN, meter).get_json()["resident_id"] == old.id


def test_the_id_of_somebody_else_proves_nothing_and_five_tries_are_all(app: Flask) -> None:
    phone = new_phone()
    _, proof = linked(app, phone)
    other = sign_in(app, new_phone())
    # Nothing was set aside for this number.
    assert said(other.post(RETURN, proof)) == (403, "proof_not_accepted")
    with clock.stand(NOON + 91 * DAY):
        new = sign_in(app, phone)
        for _ in range(5):
            refused = new.post(RETURN, proof | {"external_id": "home-2"})
            assert said(refused) == (403, "proof_not_accepted")
        assert said(new.post(RETURN, proof)) == (403, "proof_not_accepted")


def test_an_account_with_entries_of_its_own_is_not_thrown_away(app: Flask) -> None:
    phone = new_phone()
    _, proof = linked(app, phone)
    with clock.stand(NOON + 91 * DAY):
        new, recycler = sign_in(app, phone), partner(app)
        new.post("/v1/me/links", {"partner_id": recycler.id, "external_id": "home-9"})
        row = {**RECYCLED, "external_id": "home-9", "occurred_at": "2026-08-18T10:00:00+08:00"}
        recycler.post("/v1/feeds/activities", {"activities": [row]})
        assert said(new.post(RETURN, proof)) == (409, "account_in_use")


def test_eight_sign_ins_at_once_set_aside_once_and_open_one(app: Flask) -> None:
    phone = new_phone()
    old = accounts.by_phone(phone)
    with clock.stand(NOON + 91 * DAY), ThreadPoolExecutor(8) as pool:
        opened = set(pool.map(lambda _: accounts.by_phone(phone), range(8)))
        assert len(opened) == 1
        assert opened != {old}
        assert accounts.set_aside(opened.pop()) == [old]


def test_after_a_crash_in_between_the_next_sign_in_can_do_it_again(app: Flask) -> None:
    phone = new_phone()
    old, proof = linked(app, phone)
    with clock.stand(NOON + 91 * DAY):
        new = sign_in(app, phone)
        # As a process leaves it that dies between the two writes of taking back.
        accounts.close(new.id)
        third = sign_in(app, phone)
        assert third.id not in (old.id, new.id)
        assert third.post(RETURN, proof).get_json()["resident_id"] == old.id


def test_a_proof_is_one_of_two_and_whole(app: Flask) -> None:
    me = sign_in(app, new_phone())
    link, meter = {"partner_id": "p", "external_id": "e"}, {"carrier": "gas", "account_no": "1"}
    for body in ({}, {"partner_id": "p"}, {"carrier": "gas"}, meter | {"carrier": "sun"},
                 link | meter):  # fmt: skip
        assert said(me.post(RETURN, body)) == (422, "validation_failed"), body
