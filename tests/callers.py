"""Who calls in the HTTP tests: residents and machines with real tokens, banks with signatures.

Every answer on the way is held against the OpenAPI document, refusals included.
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import schemathesis
from flask import Flask
from flask.testing import FlaskClient
from schemathesis.schemas import BaseSchema
from werkzeug.test import TestResponse

from accounting import accounts, clients, clock, real_names, tokens
from accounting.clients import BankKey, Client, Kind
from integrations import signatures

# Redis is not emptied between tests, and codes are limited per phone: every phone is used once.
_numbers = itertools.count(1)
_contract: list[BaseSchema] = []


def new_phone() -> str:
    return f"+86138{next(_numbers):08d}"


@dataclass(frozen=True)
class Caller:
    """Sends requests with one token; `id` is the resident or the party a machine acts for."""

    http: FlaskClient
    id: str
    token: str
    key: BankKey | None = None

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> TestResponse:
        """`body` goes as JSON; `key` is the Idempotency-Key. A bank's requests are signed."""
        sent = {"Authorization": f"Bearer {self.token}", **(headers or {})}
        if key is not None:
            sent["Idempotency-Key"] = key
        if body is not None:
            options["data"] = self.http.application.json.dumps(body)
            sent.setdefault("Content-Type", "application/json")
        if self.key is not None:
            content = options.get("data", b"")
            content = content.encode() if isinstance(content, str) else content
            sent |= signed(self.key, method, f"http://localhost{path}", content)
        answer = self.http.open(path, method=method, headers=sent, **options)
        check_documented(self.http.application, method, path, answer)
        return answer

    def get(self, path: str, **options: Any) -> TestResponse:
        return self.send("GET", path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> TestResponse:
        return self.send("POST", path, body, **options)

    def patch(self, path: str, body: Any, **options: Any) -> TestResponse:
        return self.send("PATCH", path, body, **options)

    def delete(self, path: str, **options: Any) -> TestResponse:
        return self.send("DELETE", path, **options)

    def unsigned(self) -> "Caller":
        return replace(self, key=None)


def resident(app: Flask, phone: str | None = None) -> Caller:
    """A signed-in resident; a new one unless the phone is known."""
    resident_id = accounts.by_phone(phone or new_phone())
    return Caller(app.test_client(), resident_id, tokens.open_session(resident_id).access_token)


def named(who: Caller) -> str:
    """The name of a resident, which a bank has matched: a consent given unasked needs it."""
    name = "王小梅"
    real_names.prove(who.id, name)
    return name


def machine(
    app: Flask, kind: Kind, subject_id: str | None = None, policy: dict[str, Any] | None = None
) -> Caller:
    """A machine client with all scopes of its kind; a bank gets a shared secret to sign with."""
    subject = subject_id or (None if kind is Kind.OPERATOR else f"{kind}_{next(_numbers)}")
    client, _secret = clients.create_client(kind, f"a {kind}", subject_id=subject, policy=policy)
    token, _ = tokens.issue_client_token(client, frozenset(client.scopes))
    return Caller(app.test_client(), client.subject_id, token, _key_of(client))


def partner(app: Flask, **policy: Any) -> Caller:
    """A data partner that may report everything and needs no link codes, unless `policy` says."""
    return machine(
        app, Kind.DATA, policy={"every_behaviour": True, "link_code_required": False} | policy
    )


def signed(key: BankKey, method: str, uri: str, body: bytes, **options: Any) -> dict[str, str]:
    """The signature headers of a bank's request."""
    return signatures.sign(
        signatures.SignedRequest(method=method, target_uri=uri, headers={}, body=body),
        key_id=key.key_id,
        algorithm=key.algorithm,
        material=key.material,
        now=options.pop("now", clock.now()),
        **options,
    )


def _key_of(client: Client) -> BankKey | None:
    if client.kind is not Kind.BANK:
        return None
    key_id, material = clients.new_hmac_key(client)
    return BankKey(key_id, client.client_id, clients.HMAC_SHA256, material)


def check_documented(app: Flask, method: str, path: str, answer: TestResponse) -> None:
    """Fail unless the OpenAPI document has this status, content type and shape."""
    rule, _ = app.url_map.bind("localhost").match(path.partition("?")[0], method, return_rule=True)
    if not _contract:  # Reading the document takes a second, and it is the same for every app.
        _contract.append(schemathesis.openapi.from_wsgi("/openapi.json", app))
    operation = _contract[0][re.sub(r"<(\w+)>", r"{\1}", rule.rule)][method]
    assert str(answer.status_code) in operation.responses.status_codes, (method, path, answer.text)
    operation.validate_response(answer)


def said(answer: TestResponse) -> tuple[int, str]:
    """Status and problem code; the code of a success is empty."""
    body = answer.get_json(silent=True)
    code = body.get("code", "") if isinstance(body, dict) and answer.status_code >= 400 else ""
    return answer.status_code, code
