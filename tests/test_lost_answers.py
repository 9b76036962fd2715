"""A crash between what a request stored and its answer: the retry gets that, and stores no more."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from callers import Caller, machine, named, partner, resident, said
from flask import Flask

from accounting import clients, clock, links, storage, tokens
from accounting.clients import Kind
from api import idempotency
from footprint import households

KEY = "k-1"


def _dies(*_: Any, **__: Any) -> None:
    """Not an `Exception`: nobody handles it, as nobody handles a kill."""
    raise KeyboardInterrupt


@dataclass(frozen=True)
class Asked:
    """A request that makes something, how many of it there may be, and who asks."""

    who: Caller
    path: str
    body: dict[str, Any]
    collection: str
    name: str = "id"

    def send(self, key: str | None = KEY) -> Any:
        return self.who.post(self.path, self.body, key=key)

    def stored(self) -> int:
        return storage.database()[self.collection].count_documents({})


def link(app: Flask) -> Asked:
    bus = partner(app, link_code_required=True)
    code, _ = links.issue_code(bus.id, "card-1")
    body = {"partner_id": bus.id, "external_id": "card-1", "link_code": code}
    return Asked(resident(app), "/v1/me/links", body, "links")


def household(app: Flask) -> Asked:
    grid = partner(app, carriers=["electricity"])
    code, _ = links.issue_code(grid.id, "330800123")
    body = {
        "carrier": "electricity", "account_no": "330800123", "members": 3,
        "partner_id": grid.id, "link_code": code,
    }  # fmt: skip
    return Asked(resident(app), "/v1/me/households", body, "households")


def consent(app: Flask) -> Asked:
    me, bank = resident(app), machine(app, Kind.BANK)
    body = {
        "bank_id": bank.id, "purpose": "loan", "fields": ["grade"], "real_name": named(me),
        "expires_at": (clock.now() + timedelta(days=30)).isoformat(),
    }  # fmt: skip
    return Asked(me, "/v1/me/consents", body, "consents")


def new_bank(app: Flask) -> Asked:
    operator = machine(app, Kind.OPERATOR)
    body = {"kind": "bank", "name": "柯城农商行"}
    return Asked(operator, "/v1/operator/partners", body, "clients", "client_id")


def key_reset(app: Flask) -> Asked:
    bank, operator = machine(app, Kind.BANK), machine(app, Kind.OPERATOR)
    path = f"/v1/operator/banks/{bank.id}/key-resets"
    body = {"algorithm": "hmac-sha256", "reason": "lost"}
    return Asked(operator, path, body, "key_resets", "reset_id")


@pytest.mark.parametrize("prepared", [link, household, consent, new_bank, key_reset])
def test_a_retry_gets_what_was_stored_and_stores_no_more(
    app: Flask, prepared: Callable[[Flask], Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = prepared(app)
    before = asked.stored()
    with monkeypatch.context() as patch:
        # Killed where the answer would be kept: nothing that follows is done either.
        patch.setattr(idempotency, "_keep", _dies)
        patch.setattr(idempotency, "_release", lambda _: None)
        with pytest.raises(KeyboardInterrupt):
            asked.send()
    assert asked.stored() == before + 1
    ids = {row["_id"] for row in storage.database()[asked.collection].find()}
    # Until the lease of the dead one is over.
    assert said(asked.send()) == (409, "request_in_progress")
    with clock.travel(timedelta(seconds=idempotency.LEASE_S)):
        again = asked.send()
        assert again.status_code == 201, again.text
        replayed = asked.send()
    assert asked.stored() == before + 1
    assert again.get_json()[asked.name] in ids
    assert replayed.headers["Idempotency-Replayed"] == "true"
    assert replayed.get_json()[asked.name] == again.get_json()[asked.name]


@pytest.mark.parametrize(
    ("prepared", "place", "name"),
    [(link, links, "link"), (household, households, "join")],
    ids=["link", "household"],
)
def test_a_code_used_up_by_a_request_that_died_is_good_for_its_retry_alone(
    app: Flask,
    prepared: Callable[[Flask], Asked],
    place: Any,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = prepared(app)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, _dies)
        with pytest.raises(KeyboardInterrupt):
            asked.send()
    assert asked.stored() == 0
    for key in (None, "another"):
        assert said(asked.send(key)) == (422, "invalid_link_code")
    other = Asked(resident(app), asked.path, asked.body, asked.collection)
    assert said(other.send()) == (422, "invalid_link_code")
    assert asked.send().status_code == 201
    assert asked.stored() == 1


def test_what_is_linked_is_linked_for_any_other_request(app: Flask) -> None:
    for asked in (link(app), household(app)):
        assert asked.send().status_code == 201
        code, _ = links.issue_code(asked.body["partner_id"], _number(asked.body))
        again = Asked(asked.who, asked.path, asked.body | {"link_code": code}, asked.collection)
        assert said(again.send("another")) == (409, "already_linked")
        assert said(again.send(None)) in {(409, "already_linked"), (422, "invalid_link_code")}


def _number(body: dict[str, Any]) -> str:
    number: str = body.get("external_id") or body["account_no"]
    return number


def test_a_partner_whose_answer_was_lost_gets_credentials_that_work(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = new_bank(app)
    with monkeypatch.context() as patch:
        # Between the client and its first key.
        patch.setattr(clients, "new_hmac_key", _dies)
        with pytest.raises(KeyboardInterrupt):
            asked.send()
    made = asked.send().get_json()
    other = machine(app, Kind.OPERATOR)
    assert other.post(f"{asked.path}/{made['client_id']}/approve").status_code == 200
    answer = asked.who.http.post(
        "/v1/oauth/token",
        data={"grant_type": "client_credentials"},
        auth=(made["client_id"], made["client_secret"]),
    )
    assert answer.status_code == 200
    [live] = clients.live_keys(clients.get(made["client_id"]))
    assert live.key_id == made["key_id"]
    assert clients.subjects(Kind.BANK) == [made["partner_id"]]
    # When the answer is no longer kept it may have been seen: nothing is changed or shown.
    storage.database()["idempotency"].delete_many({})
    with clock.travel(idempotency.KEPT):
        token, _ = _token_of(asked.who.id)
        late = Caller(asked.who.http, asked.who.id, token).post(asked.path, asked.body, key=KEY)
    assert late.get_json() == made | {"client_secret": None, "hmac_key_b64": None}


def _token_of(client_id: str) -> tuple[str, int]:
    client = clients.get(client_id)
    return tokens.issue_client_token(client, frozenset(client.scopes))
