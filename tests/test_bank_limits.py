"""A bank's budget of reads: shared by its clients, a batch weighed by what it names."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from callers import Caller, machine, said
from flask import Flask

import api.app
from accounting import storage
from accounting.clients import Kind

QUERY = "/v1/bank/grades/query"


@pytest.fixture
def small(app: Flask) -> Flask:
    """An application where a bank may read 500 grades a minute."""
    return api.app.create_app(replace(app.extensions["config"], bank_reads_per_minute=500))


def single(bank: Caller) -> Any:
    return bank.get("/v1/bank/grades/ref_none?purpose=loan")


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
