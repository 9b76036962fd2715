"""Who gets in: every address against every kind of caller, tokens, sessions and signatures."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask, Response, jsonify, request
from flask.testing import FlaskClient
from flask.views import MethodView

import api.app
import api.views
from accounting import accounts, clients, clock, tokens
from accounting.errors import Unauthenticated
from api.openapi import Blueprint
from api.security import (
    BANK,
    DATA,
    INTERNAL,
    MERCHANT,
    OPEN,
    OPERATOR,
    PLANT,
    RESIDENT,
    Kind,
    caller,
    door,
    doors,
)
from integrations import signatures

CALLERS = (RESIDENT, DATA, MERCHANT, BANK, PLANT, OPERATOR)
# What a view may do for an idle POST that it lets in is its own test's business; here only who.
DENIED = {"unauthenticated", "forbidden"}

probe = Blueprint("probe", __name__)


@probe.route("/probe/bank/<name>")
class BankOnly(MethodView):
    @door(BANK, scope="grades:read")
    def get(self, name: str) -> Response:
        return jsonify(id=caller().id, name=name)

    @door(BANK, DATA)
    def post(self, name: str) -> Response:
        return jsonify(length=len(request.get_data()))


@probe.route("/probe/plant")
class PlantOnly(MethodView):
    @door(PLANT, scope="readings:write")
    def post(self) -> Response:
        return jsonify(id=caller().id, kind=caller().kind)


@probe.route("/probe/me")
class Me(MethodView):
    @door(RESIDENT)
    def get(self) -> Response:
        return jsonify(id=caller().id, session_id=caller().session_id)


@pytest.fixture(scope="module")
def probed(app: Flask) -> Iterator[Flask]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api.app, "BLUEPRINTS", (*api.views.BLUEPRINTS, probe))
        yield api.app.create_app(app.extensions["config"])


@pytest.fixture
def http(probed: Flask) -> FlaskClient:
    return probed.test_client()


def token_of(kind: Kind, scopes: tuple[str, ...] | None = None) -> str:
    if kind is RESIDENT:
        return tokens.open_session(accounts.by_phone("+8613700000001")).access_token
    client, _ = clients.create_client(clients.Kind(kind), f"a {kind}", subject_id=f"{kind}_1")
    wanted = frozenset(client.scopes if scopes is None else scopes)
    return tokens.issue_client_token(client, wanted)[0]


def bearing(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def said(answer: Any) -> tuple[int, str]:
    body = answer.get_json(silent=True)
    return answer.status_code, body.get("code", "") if isinstance(body, dict) else ""


# --- every address x every caller ---------------------------------------------------------------


def test_every_view_declares_its_door_outermost(probed: Flask) -> None:
    walked = list(doors(probed))
    assert len(walked) > 10
    assert all(found is not None for _, _, found in walked)


def test_a_view_without_a_door_stops_the_start(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    careless = Blueprint("careless", __name__)

    @careless.route("/careless")
    class Careless(MethodView):
        @careless.response(200)
        @door(OPEN)
        def get(self) -> None: ...

        def post(self) -> None: ...

    monkeypatch.setattr(api.app, "BLUEPRINTS", (careless,))
    with pytest.raises(LookupError, match=r"GET careless\.Careless, POST careless\.Careless"):
        api.app.create_app(app.extensions["config"])


def addresses(app: Flask) -> Iterator[tuple[str, str, Any]]:
    for rule in app.url_map.iter_rules():
        for endpoint, method, found in doors(app):
            if endpoint == rule.endpoint and method in (rule.methods or ()):
                # A plant comes to its own doors.
                values = {
                    name: f"{PLANT}_1" if name == "plant_id" else "1" for name in rule.arguments
                }
                with app.test_request_context():
                    path = app.url_map.bind("localhost").build(endpoint, values)
                yield method, path, found


def test_every_address_turns_away_whoever_it_did_not_invite(probed: Flask) -> None:
    http = probed.test_client()
    walked = refused = 0
    for method, path, found in addresses(probed):
        if found.kinds <= {OPEN, INTERNAL}:
            continue
        where = f"{method} {path}"
        answer = http.open(path, method=method)
        assert said(answer) == (401, "unauthenticated"), where
        assert answer.headers["WWW-Authenticate"].startswith("Bearer"), where
        for forged in ("x", "x" * 43, "x" * 10_000, "é"):
            answer = http.open(path, method=method, headers=bearing(forged))
            assert said(answer) == (401, "unauthenticated"), (where, forged)
        for kind in CALLERS:
            walked += 1
            if kind not in found.kinds:
                refused += 1
                answer = http.open(path, method=method, headers=bearing(token_of(kind)))
                assert said(answer) == (403, "forbidden"), (where, kind)
            elif kind is not RESIDENT and (found.scope or kind is OPERATOR):
                answer = http.open(path, method=method, headers=bearing(token_of(kind, ())))
                assert said(answer) == (403, "forbidden"), (where, kind, "without scope")
    assert walked
    assert refused


def test_every_address_lets_in_whom_it_invited(probed: Flask) -> None:
    http = probed.test_client()
    for method, path, found in addresses(probed):
        if method != "GET" or found.kinds <= {OPEN, INTERNAL}:
            continue
        for kind in found.kinds:
            answer = http.open(path, method=method, headers=bearing(token_of(kind)))
            status, code = said(answer)
            assert code not in DENIED, (method, path, kind)
            assert status < 500, (method, path, kind)
            if kind is BANK:
                assert (status, code) == (401, "invalid_signature")


def test_an_operator_may_use_a_plant_door(http: FlaskClient) -> None:
    for kind in (PLANT, OPERATOR):
        answer = http.post("/probe/plant", headers=bearing(token_of(kind)))
        assert answer.get_json()["kind"] == kind


def test_a_token_in_another_scheme_or_place_is_none(http: FlaskClient) -> None:
    token = tokens.open_session("res_1").access_token
    assert http.get("/probe/me", headers=bearing(token)).get_json()["id"] == "res_1"
    assert http.get("/probe/me", headers={"Authorization": f"bearer {token}"}).status_code == 200
    assert http.get("/probe/me", headers={"Authorization": token}).status_code == 401
    assert http.get("/probe/me", headers={"Authorization": f"Basic {token}"}).status_code == 401
    assert http.get(f"/probe/me?access_token={token}").status_code == 401


# --- tokens and sessions ------------------------------------------------------------------------


def test_no_token_is_stored_as_it_is(app: Flask) -> None:
    pair = tokens.open_session("res_1")
    _, secret = clients.create_client(clients.Kind.DATA, "Bus card", subject_id="par_1")
    stored = str(
        [*tokens.Token.objects.as_pymongo(), *tokens.RefreshToken.objects.as_pymongo()]
    ) + str(list(clients.Client.objects.as_pymongo()))
    for shown in (pair.access_token, pair.refresh_token, secret):
        assert shown not in stored


def test_access_and_refresh_tokens_end(app: Flask) -> None:
    pair = tokens.open_session("res_1")
    assert tokens.resolve(pair.access_token) is not None
    with clock.travel(timedelta(seconds=tokens.ACCESS_S)):
        assert tokens.resolve(pair.access_token) is None
        later = tokens.refresh(pair.refresh_token)
        assert tokens.resolve(later.access_token) is not None
    with clock.travel(timedelta(days=31)), pytest.raises(Unauthenticated):
        tokens.refresh(later.refresh_token)


def test_a_refresh_token_is_no_access_token_and_the_reverse(app: Flask) -> None:
    pair = tokens.open_session("res_1")
    assert tokens.resolve(pair.refresh_token) is None
    with pytest.raises(Unauthenticated):
        tokens.refresh(pair.access_token)


def test_a_refresh_token_seen_twice_ends_the_session_but_no_other(app: Flask) -> None:
    first, elsewhere = tokens.open_session("res_1"), tokens.open_session("res_1")
    second = tokens.refresh(first.refresh_token)
    with pytest.raises(Unauthenticated):
        tokens.refresh(first.refresh_token)
    for token in (first.access_token, second.access_token):
        assert tokens.resolve(token) is None
    with pytest.raises(Unauthenticated):
        tokens.refresh(second.refresh_token)
    assert tokens.resolve(elsewhere.access_token) is not None


def test_of_eight_refreshes_at_once_one_wins_and_nothing_is_left_behind(app: Flask) -> None:
    pair = tokens.open_session("res_1")

    def attempt(_: int) -> tokens.TokenPair | None:
        try:
            return tokens.refresh(pair.refresh_token)
        except Unauthenticated:
            return None

    with ThreadPoolExecutor(8) as pool:
        won = [result for result in pool.map(attempt, range(8)) if result]
    assert len(won) <= 1
    # Whoever came after the winner saw a used token, and ended the session; nobody else holds one.
    usable = tokens.RefreshToken.objects(used_at=None).count()
    assert usable <= 1


def test_the_loser_of_a_race_gets_nothing_and_the_winner_keeps_the_session(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = tokens.open_session("res_1")
    issue, winners = tokens._issue_pair, []

    def overtaken(session_id: str, resident_id: str) -> tokens.TokenPair:
        made = issue(session_id, resident_id)
        monkeypatch.setattr(tokens, "_issue_pair", issue)
        winners.append(tokens.refresh(pair.refresh_token))  # Between our look and our write.
        return made

    monkeypatch.setattr(tokens, "_issue_pair", overtaken)
    with pytest.raises(Unauthenticated):
        tokens.refresh(pair.refresh_token)
    [winner] = winners
    assert tokens.resolve(winner.access_token) is not None
    assert tokens.RefreshToken.objects(used_at=None).count() == 1
    assert tokens.Token.objects.count() == 2


def test_signing_out_takes_effect_at_once(http: FlaskClient) -> None:
    pair, elsewhere = tokens.open_session("res_1"), tokens.open_session("res_1")
    answer = http.get("/probe/me", headers=bearing(pair.access_token)).get_json()
    tokens.close_session(answer["session_id"])
    assert http.get("/probe/me", headers=bearing(pair.access_token)).status_code == 401
    assert http.get("/probe/me", headers=bearing(elsewhere.access_token)).status_code == 200
    tokens.close_all("res_1")
    assert http.get("/probe/me", headers=bearing(elsewhere.access_token)).status_code == 401


def test_a_session_that_closes_during_a_refresh_stays_closed(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = tokens.open_session("res_1")
    issue = tokens._issue_pair

    def closing(session_id: str, resident_id: str) -> tokens.TokenPair:
        made = issue(session_id, resident_id)
        tokens.Session.objects(session_id=session_id).delete()  # What a closing does first.
        return made

    monkeypatch.setattr(tokens, "_issue_pair", closing)
    with pytest.raises(Unauthenticated):
        tokens.refresh(pair.refresh_token)
    assert tokens.RefreshToken.objects(used_at=None).count() == 0


def test_a_disabled_client_is_out(http: FlaskClient) -> None:
    client, secret = clients.create_client(clients.Kind.PLANT, "Dye works", subject_id="pla_1")
    token, _ = tokens.issue_client_token(client, frozenset(client.scopes))
    assert http.post("/probe/plant", headers=bearing(token)).status_code == 200
    tokens.disable_client(client)
    assert http.post("/probe/plant", headers=bearing(token)).status_code == 401
    assert clients.authenticate(client.client_id, secret) is None


# --- tokens for machines ------------------------------------------------------------------------


def test_a_client_gets_a_token_by_basic_or_by_form(http: FlaskClient) -> None:
    client, secret = clients.create_client(clients.Kind.MERCHANT, "Tea house", subject_id="mer_1")
    grant = {"grant_type": "client_credentials"}
    basic = http.post("/v1/oauth/token", data=grant, auth=(client.client_id, secret))
    form = http.post(
        "/v1/oauth/token",
        data={**grant, "client_id": client.client_id, "client_secret": secret},
    )
    for answer in (basic, form):
        body = answer.get_json()
        assert answer.status_code == 200, body
        assert (body["token_type"], body["expires_in"]) == ("Bearer", 3600)
        assert body["scope"] == "statements:read vouchers:redeem"
    less = http.post(
        "/v1/oauth/token",
        data={**grant, "scope": "statements:read"},
        auth=(client.client_id, secret),
    )
    assert less.get_json()["scope"] == "statements:read"


def refused(answer: Any, status: int, code: str) -> None:
    assert said(answer) == (status, code)


def test_a_client_gets_no_token_it_has_no_right_to(http: FlaskClient) -> None:
    client, secret = clients.create_client(clients.Kind.MERCHANT, "Tea house", subject_id="mer_1")
    grant = {"grant_type": "client_credentials"}
    own = (client.client_id, secret)

    def ask(form: dict[str, str], auth: tuple[str, str] | None) -> Any:
        return http.post("/v1/oauth/token", data=form, auth=auth)

    refused(ask(grant, None), 401, "unauthenticated")
    refused(ask(grant, (own[0], secret + "x")), 401, "unauthenticated")
    refused(ask(grant, ("cli_unknown", secret)), 401, "unauthenticated")
    refused(ask({"grant_type": "password"}, own), 400, "malformed_request")
    refused(ask({}, own), 400, "malformed_request")
    refused(ask({**grant, "scope": "operator"}, own), 403, "forbidden")
    refused(http.post("/v1/oauth/token", json=grant, auth=own), 415, "unsupported_media_type")


# --- signatures of banks ------------------------------------------------------------------------


class SignedBank:
    """A bank with a key, which signs what it sends as the address it was given."""

    def __init__(self, http: FlaskClient, base_url: str) -> None:
        self.http, self.base_url = http, base_url
        self.client, _ = clients.create_client(clients.Kind.BANK, "Rural", subject_id="bank_1")
        self.key_id, self.material = clients.new_hmac_key(self.client)
        self.token, _ = tokens.issue_client_token(self.client, frozenset(self.client.scopes))

    def sign(self, method: str, target: str, body: bytes = b"", **changes: Any) -> dict[str, str]:
        signed = signatures.SignedRequest(method, self.base_url + target, {}, body)
        key: dict[str, Any] = {"key_id": self.key_id, "material": self.material, **changes}
        return bearing(self.token) | signatures.sign(
            signed, algorithm="hmac-sha256", now=clock.now(), **key
        )


@pytest.fixture
def bank(probed: Flask, http: FlaskClient) -> SignedBank:
    return SignedBank(http, probed.extensions["config"].public_url)


def test_a_signed_request_of_a_bank_gets_in_once(bank: SignedBank) -> None:
    target = "/probe/bank/%E7%A2%B3%E6%83%A0?purpose=a%20loan&x="
    headers = bank.sign("GET", target)
    answer = bank.http.get(target, headers=headers)
    assert answer.get_json() == {"id": "bank_1", "name": "碳惠"}
    assert said(bank.http.get(target, headers=headers)) == (401, "invalid_signature")


def test_a_signed_body_is_covered(bank: SignedBank) -> None:
    body = b'{"purpose": "loan"}'
    headers = bank.sign("POST", "/probe/bank/x", body)
    assert said(bank.http.post("/probe/bank/x", data=b"{}", headers=headers))[0] == 401
    headers = bank.sign("POST", "/probe/bank/x", body)
    answer = bank.http.post("/probe/bank/x", data=body, headers=headers)
    assert answer.get_json() == {"length": len(body)}


def test_a_bank_without_a_right_signature_is_out(bank: SignedBank) -> None:
    wrong = (401, "invalid_signature")
    other = SignedBank(bank.http, bank.base_url)
    target = "/probe/bank/x"
    assert said(bank.http.get(target, headers=bearing(bank.token))) == wrong
    elsewhere = bank.sign("GET", "/probe/bank/y")
    assert said(bank.http.get(target, headers=elsewhere)) == wrong
    foreign = bank.sign("GET", target, key_id=other.key_id, material=other.material)
    assert said(bank.http.get(target, headers=foreign)) == wrong
    guessed = bank.sign("GET", target, material=bytes(32))
    assert said(bank.http.get(target, headers=guessed)) == wrong
    clients.retire_key(bank.client, bank.key_id)
    assert said(bank.http.get(target, headers=bank.sign("GET", target))) == wrong


def test_a_bank_signs_where_others_need_not(bank: SignedBank) -> None:
    partner = bearing(token_of(DATA))
    assert bank.http.post("/probe/bank/x", headers=partner).status_code == 200
    unsigned = bearing(bank.token)
    assert said(bank.http.post("/probe/bank/x", headers=unsigned)) == (401, "invalid_signature")


def test_a_third_key_retires_the_oldest(app: Flask) -> None:
    client, _ = clients.create_client(clients.Kind.BANK, "Rural", subject_id="bank_1")
    keys = [clients.new_hmac_key(client) for _ in range(3)]
    live = [clients.live_key(client.client_id, key_id) for key_id, _ in keys]
    assert live[0] is None
    assert [key.material for key in live[1:] if key] == [material for _, material in keys[1:]]
    assert clients.live_key("cli_other", keys[2][0]) is None
