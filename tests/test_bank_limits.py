"""A bank's budget of reads: shared by its clients, a batch weighed by what it names."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from callers import Caller, machine, said, signed
from flask import Flask

import api.app
from accounting import clients, clock, storage, tokens
from accounting.clients import Kind
from accounting.errors import RateLimited
from api import security

QUERY = "/v1/bank/grades/query"
SINGLE = "/v1/bank/grades/ref_none?purpose=loan"


@pytest.fixture
def small(app: Flask) -> Flask:
    """An application where a bank may read 500 grades a minute."""
    return api.app.create_app(replace(app.extensions["config"], bank_reads_per_minute=500))


def single(bank: Caller) -> Any:
    return bank.get(SINGLE)


def batch(bank: Caller, size: int) -> Any:
    return bank.post(QUERY, {"purpose": "loan", "references": ["ref_none"] * size})


def left(answer: Any) -> tuple[int, int]:
    return answer.status_code, int(answer.headers["RateLimit-Remaining"])


def test_a_request_is_one_read_and_a_batch_as_many_as_it_names(small: Flask) -> None:
    bank = machine(small, Kind.BANK)
    first = single(bank)
    assert left(first) == (404, 499)
    assert first.headers["RateLimit-Limit"] == "500"
    assert 1 <= int(first.headers["RateLimit-Reset"]) <= 60
    assert left(batch(bank, 300)) == (200, 199)
    # The request itself is the first of its reads: 199 - 1 = 198, and 199 more are wanted.
    refused = batch(bank, 200)
    assert said(refused) == (429, "rate_limited")
    assert left(refused) == (429, 198)
    assert refused.headers["Retry-After"] == refused.headers["RateLimit-Reset"]
    # Nothing of it was read: 1 + 300 are in the record.
    assert storage.database()["bank_access"].count_documents({}) == 301
    assert left(batch(bank, 198)) == (200, 0)
    assert left(single(bank)) == (429, 0)


def test_the_clients_of_a_bank_share_its_budget_and_other_banks_have_theirs(small: Flask) -> None:
    bank = machine(small, Kind.BANK)
    second = machine(small, Kind.BANK, bank.id)
    assert left(batch(bank, 400)) == (200, 100)
    assert left(single(second)) == (404, 99)
    assert left(single(machine(small, Kind.BANK))) == (404, 499)


def test_batches_at_the_same_moment_never_read_more_than_is_left(small: Flask) -> None:
    bank = machine(small, Kind.BANK)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: batch(bank, 100), range(8)))
    allowed = [answer for answer in answers if answer.status_code == 200]
    assert {answer.status_code for answer in answers} <= {200, 429}
    read = storage.database()["bank_access"].count_documents({})
    assert read == 100 * len(allowed)
    assert 0 < read <= 500


# --- the budget and the nonce, in one round trip ------------------------------------------------


def sent(app: Flask, bank: Caller, headers: dict[str, str]) -> Any:
    """The very same signed request, as often as wanted."""
    own = {"Authorization": f"Bearer {bank.token}", **headers}
    return app.test_client().get(SINGLE, headers=own)


def sign(bank: Caller) -> dict[str, str]:
    assert bank.key is not None
    return signed(bank.key, "GET", f"http://localhost{SINGLE}", b"")


def test_of_twenty_that_send_one_signature_at_once_one_is_let_in(small: Flask) -> None:
    bank = machine(small, Kind.BANK)
    headers = sign(bank)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: sent(small, bank, headers), range(20)))
    assert sorted(said(answer) for answer in answers) == sorted(
        [(404, "no_grade_available")] + [(401, "invalid_signature")] * 19
    )
    # Each of them was counted, once: the last to be counted had 480 left.
    assert sorted(left(answer)[1] for answer in answers) == list(range(480, 500))
    assert storage.database()["bank_access"].count_documents({}) == 1


def test_past_the_limit_no_nonce_is_used_up(small: Flask) -> None:
    bank = machine(small, Kind.BANK)
    headers = sign(bank)
    assert left(batch(bank, 500)) == (200, 0)
    refused = sent(small, bank, headers)
    assert said(refused) == (429, "rate_limited")
    assert refused.headers["Retry-After"] == refused.headers["RateLimit-Reset"]
    # The next minute.
    budget = small.extensions["limits"].budget(security.Caller(security.BANK, bank.id))
    assert small.extensions["redis"].delete(budget.name) == 1
    assert left(sent(small, bank, headers)) == (404, 499)
    assert said(sent(small, bank, headers)) == (401, "invalid_signature")


def test_nobody_is_told_to_come_back_in_no_time(small: Flask) -> None:
    """Redis answers whole seconds: of the last half second of a window, none."""
    bank = security.Caller(security.BANK, "bnk_1")
    with small.test_request_context(), pytest.raises(RateLimited) as refused:
        small.extensions["limits"].counted(bank, 501, 0)
    assert refused.value.facts == {"retry_after": 1}


def test_a_wrong_signature_is_counted_and_uses_up_no_nonce(small: Flask) -> None:
    bank = machine(small, Kind.BANK)
    headers = sign(bank)
    start, _, rest = headers["Signature"].partition(":")
    wrong = headers | {"Signature": f"{start}:{rest[::-1]}"}
    other = headers | {"Signature": f"{start}:{'A' * 43}=:"}
    for number, bad in enumerate((wrong, other, {}), start=1):
        assert said(sent(small, bank, bad)) == (401, "invalid_signature")
        assert left(sent(small, bank, bad)) == (401, 500 - 2 * number)
    assert left(sent(small, bank, headers)) == (404, 493)
    # With nothing left a wrong one is told that, as a right one is.
    assert left(batch(bank, 493)) == (200, 0)
    assert said(sent(small, bank, other)) == (429, "rate_limited")


def test_what_is_known_of_a_token_outlives_neither_it_nor_its_client(app: Flask) -> None:
    bank = machine(app, Kind.BANK)
    assert bank.key is not None
    client = clients.get(bank.key.client_id)
    second, material = clients.new_hmac_key(client)
    # Twice: from then on the process knows whose token it is.
    assert [single(bank).status_code for _ in range(3)] == [404] * 3
    clients.retire_key(client, bank.key.key_id)
    assert said(single(bank)) == (401, "invalid_signature")
    bank = replace(bank, key=replace(bank.key, key_id=second, material=material))
    assert single(bank).status_code == 404
    with clock.travel(timedelta(seconds=tokens.CLIENT_S)):
        assert said(single(bank)) == (401, "unauthenticated")
    assert single(bank).status_code == 404
    tokens.disable_client(client)
    assert said(single(bank)) == (401, "unauthenticated")
