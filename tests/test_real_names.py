"""A consent given unasked needs the name a bank has matched; see `accounting/real_names.py`."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from callers import Caller, machine, resident, said
from flask import Flask

import api.app
from accounting import accounts, clock, real_names, storage
from accounting.clients import Kind

NAME = "王 小梅"


@pytest.fixture
def bank(app: Flask) -> Caller:
    return machine(app, Kind.BANK)


@pytest.fixture
def me(app: Flask) -> Caller:
    return resident(app)


def consent(me: Caller, bank: Caller, **more: Any) -> tuple[int, str]:
    ends = (clock.now() + timedelta(days=30)).isoformat()
    body = {"bank_id": bank.id, "purpose": "loan", "fields": ["grade"], "expires_at": ends}
    return said(me.post("/v1/me/consents", body | more))


def approve(me: Caller, bank: Caller, **name: str) -> tuple[int, str]:
    """Ask for a consent, as a bank that knows its customer, and approve it."""
    asked = {"customer_ref": me.id, "purpose": "card", "fields": ["grade"], "customer_name": NAME}
    request_id = bank.post("/v1/bank/consent-requests", asked).get_json()["request_id"]
    return said(me.post(f"/v1/me/consent-requests/{request_id}/approve", name))


def test_a_name_a_bank_has_matched_lets_a_resident_consent_unasked(
    me: Caller, bank: Caller, app: Flask
) -> None:
    assert consent(me, bank, real_name=NAME) == (403, "real_name_needed")
    assert approve(me, bank, real_name="王大梅") == (403, "name_not_matching")
    assert consent(me, bank, real_name=NAME) == (403, "real_name_needed")
    assert approve(me, bank, real_name="王小梅") == (201, "")
    # Another bank as well: it is the resident who is known now.
    for one in (bank, machine(app, Kind.BANK)):
        assert consent(me, one) == (403, "name_not_matching")
        assert consent(me, one, real_name="王大梅") == (403, "name_not_matching")
        assert consent(me, one, real_name=NAME) == (201, "")
    assert consent(resident(app), bank, real_name=NAME) == (403, "real_name_needed")
    # Other kinds of consent are nobody's but the resident's.
    assert said(me.post("/v1/me/consents", {"kind": "location"})) == (201, "")
    refused = me.post("/v1/me/consents", {"kind": "location", "real_name": NAME})
    assert said(refused) == (422, "validation_failed")


def test_names_cannot_be_tried_out_not_even_at_once(me: Caller, bank: Caller) -> None:
    real_names.prove(me.id, NAME)
    # One that is right in between begins the count anew.
    assert consent(me, bank, real_name="x") == (403, "name_not_matching")
    assert consent(me, bank, real_name=NAME) == (201, "")
    with ThreadPoolExecutor(8) as pool:
        ends = list(pool.map(lambda n: consent(me, bank, real_name=f"x{n}"), range(8)))
    assert sorted(code for _, code in ends) == ["name_not_matching"] * 5 + ["real_name_needed"] * 3
    assert consent(me, bank, real_name=NAME) == (403, "real_name_needed")
    assert approve(me, bank, real_name=NAME) == (201, "")
    assert consent(me, bank, real_name=NAME) == (201, "")


def test_the_name_is_kept_as_a_hash_and_ends_with_the_account(me: Caller) -> None:
    real_names.prove(me.id, NAME)
    stored = storage.database()["residents"].find_one({"_id": me.id})
    assert "小梅" not in str(stored)
    accounts.close(me.id)
    left = storage.database()["residents"].find_one({"_id": me.id})
    assert left is not None
    assert not {"real_name_hash", "real_name_tries"} & left.keys()
    real_names.prove(me.id, NAME)
    with pytest.raises(real_names.RealNameNeeded):
        real_names.check(me.id, NAME)


def test_in_the_demo_no_name_is_needed(app: Flask, bank: Caller, tmp_path: Any) -> None:
    demo = api.app.create_app(replace(app.extensions["config"], demo=True, data_dir=tmp_path))
    assert consent(resident(demo), bank) == (201, "")
