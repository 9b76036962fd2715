"""A bank that lost its key: two operators end every key of its and give it a new one."""

import base64
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from callers import Caller, machine, said
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flask import Flask

import api.app
from accounting import audit, clients, key_resets, tokens
from accounting.clients import Kind

LOST: dict[str, Any] = {"algorithm": "hmac-sha256", "reason": "the vault burnt down"}


@pytest.fixture
def bank(app: Flask) -> Caller:
    return machine(app, Kind.BANK)


@pytest.fixture
def anna(app: Flask) -> Caller:
    return machine(app, Kind.OPERATOR)


@pytest.fixture
def bo(app: Flask) -> Caller:
    return machine(app, Kind.OPERATOR)


def resets(bank: Caller) -> str:
    return f"/v1/operator/banks/{bank.id}/key-resets"


def signing_with(bank: Caller, shown: dict[str, Any], private: bytes | None = None) -> Caller:
    """The bank with the key an operator handed over."""
    assert bank.key is not None
    material = private or base64.b64decode(shown["hmac_key_b64"])
    key = replace(bank.key, key_id=shown["key_id"], algorithm=shown["algorithm"], material=material)
    return replace(bank, key=key)


def status(bank: Caller) -> int:
    return bank.get("/v1/bank/keys").status_code


def test_two_operators_give_a_bank_another_key(bank: Caller, anna: Caller, bo: Caller) -> None:
    assert bank.key is not None
    second, _ = clients.new_hmac_key(clients.get(bank.key.client_id))
    asked = anna.post(resets(bank), LOST, key="r1")
    assert asked.status_code == 201
    waiting = asked.get_json()
    assert (waiting["needs_approval"], waiting["key_id"]) == (True, None)
    assert anna.post(resets(bank), LOST, key="r1").get_json() == waiting
    # Until then the bank's keys hold.
    assert status(bank) == 200
    path = f"{resets(bank)}/{waiting['reset_id']}/approve"
    assert said(anna.post(path)) == (403, "second_operator_needed")
    done = bo.post(path).get_json()
    assert (done["needs_approval"], done["approved_by"]) == (False, bo.id)
    assert said(bank.get("/v1/bank/keys")) == (401, "invalid_signature")
    fresh = signing_with(bank, done)
    [one] = fresh.get("/v1/bank/keys").get_json()["items"]
    assert one["key_id"] == done["key_id"]
    # Again it changes nothing and shows nothing.
    assert bo.post(path).get_json() == done | {"hmac_key_b64": None}
    assert status(fresh) == 200
    shown = anna.get(resets(bank)).get_json()["items"]
    assert shown == [{name: text for name, text in done.items() if name != "hmac_key_b64"}]
    gave, wanted = audit.trail(subject=bank.id, limit=9)
    assert (wanted.actor, wanted.action, wanted.reason) == (
        anna.id, "bank key reset asked", LOST["reason"],
    )  # fmt: skip
    assert (gave.actor, gave.action, gave.reason) == (bo.id, "bank keys reset", LOST["reason"])
    assert gave.before == {"key_ids": [bank.key.key_id, second]}
    assert gave.after == {"key_ids": [done["key_id"]], "asked_by": anna.id}


def test_a_bank_may_bring_a_key_of_its_own(bank: Caller, anna: Caller, bo: Caller) -> None:
    private = Ed25519PrivateKey.generate()
    public = base64.b64encode(private.public_key().public_bytes_raw()).decode()
    body = {"algorithm": "ed25519", "public_key_b64": public, "reason": "lost"}
    reset_id = anna.post(resets(bank), body).get_json()["reset_id"]
    done = bo.post(f"{resets(bank)}/{reset_id}/approve").get_json()
    assert done["hmac_key_b64"] is None
    assert status(signing_with(bank, done, private.private_bytes_raw())) == 200
    assert status(bank) == 401


def test_in_the_demo_one_operator_is_enough(app: Flask, bank: Caller, tmp_path: Any) -> None:
    config = replace(app.extensions["config"], demo=True, data_dir=tmp_path)
    operator = machine(api.app.create_app(config), Kind.OPERATOR)
    done = operator.post(resets(bank), LOST).get_json()
    assert done["needs_approval"] is False
    assert status(signing_with(bank, done)) == 200


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"algorithm": "sm2"}, "/algorithm"),
        ({"algorithm": "ed25519"}, "/public_key_b64"),
        ({"public_key_b64": "AAAA"}, "/public_key_b64"),
        ({"client_id": "cli_none"}, "/client_id"),
        ({"reason": ""}, "/reason"),
        ({"reason": None}, "/reason"),
    ],
    ids=str,
)
def test_a_reset_that_cannot_be_is_pointed_at(
    bank: Caller, anna: Caller, change: dict[str, Any], pointer: str
) -> None:
    answer = anna.post(resets(bank), LOST | change)
    assert said(answer) == (422, "validation_failed")
    assert answer.get_json()["errors"][0]["pointer"] == pointer
    assert anna.get(resets(bank)).get_json()["items"] == []


def test_only_who_looks_after_partners_resets_keys(app: Flask, bank: Caller, anna: Caller) -> None:
    assert said(bank.post(resets(bank), LOST)) == (403, "forbidden")
    for area, refusal in (
        ("operator:support", (403, "forbidden")),
        ("operator:partners", (201, "")),
    ):
        client, _ = clients.create_client(Kind.OPERATOR, area, scopes=(area,))
        token, _ = tokens.issue_client_token(client, frozenset(client.scopes))
        assert said(replace(anna, token=token).post(resets(bank), LOST)) == refusal
    assert said(anna.post("/v1/operator/banks/bnk_none/key-resets", LOST)) == (404, "not_found")
    assert said(anna.post(f"{resets(bank)}/krs_none/approve")) == (404, "not_found")
    other = machine(app, Kind.BANK)
    reset_id = anna.post(resets(bank), LOST).get_json()["reset_id"]
    assert said(anna.post(f"{resets(other)}/{reset_id}/approve")) == (404, "not_found")


def test_of_operators_who_approve_at_once_one_is_shown_the_key_that_holds(
    bank: Caller, anna: Caller
) -> None:
    assert bank.key is not None
    reset = key_resets.ask(
        clients.get(bank.key.client_id), "hmac-sha256", None, reason="r", by=anna.id, alone=False
    )

    def approve(by: str) -> bytes | None:
        return key_resets.approve(bank.id, reset.id, by=by, alone=False).secret

    with ThreadPoolExecutor(8) as pool:
        secrets = [one for one in pool.map(approve, [f"op_{n}" for n in range(8)]) if one]
    assert len(secrets) == 1
    done = key_resets.get(bank.id, reset.id)
    live = clients.live_key(bank.key.client_id, done.key_id or "")
    assert live is not None
    assert live.material == secrets[0]


def test_a_crash_before_a_reset_is_done_leaves_it_to_be_approved_again(
    bank: Caller, anna: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bank.key is not None
    client = clients.get(bank.key.client_id)
    reset = key_resets.ask(client, "hmac-sha256", None, reason="r", by=anna.id, alone=False)
    real = clients.new_hmac_key

    def dies(*args: Any, **options: Any) -> Any:
        real(*args, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(clients, "new_hmac_key", dies)
        with pytest.raises(KeyboardInterrupt):
            key_resets.approve(bank.id, reset.id, by="bo", alone=False)
    done = key_resets.approve(bank.id, reset.id, by="bo", alone=False)
    [live] = clients.live_keys(clients.get(bank.key.client_id))
    assert live.key_id == done.key_id
    assert done.secret is not None


def test_of_two_keys_added_at_once_neither_is_lost(bank: Caller) -> None:
    assert bank.key is not None
    client_id = bank.key.client_id
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda _: clients.new_hmac_key(clients.get(client_id)), range(2)))
    live = {key.key_id for key in clients.live_keys(clients.get(client_id))}
    assert live == {key_id for key_id, _ in made}
