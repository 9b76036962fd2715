"""The OpenAPI document, its page, the key set and the texts: what integrators read first."""

import json
import re
from collections.abc import Iterator

from flask import Flask
from flask.testing import FlaskClient
from marshmallow import fields

from accounting.errors import DomainError
from api import problems
from api.numbers import CityDay, DayOrInstant, Flag, Instant, Quantity, Whole


def test_the_contract_is_complete_for_every_address(app: Flask, client: FlaskClient) -> None:
    contract = client.get("/openapi.json").get_json()
    assert contract["openapi"] == "3.1.0"
    described = {
        (re.sub(r"{\w+}", "{}", path), method.upper())
        for path, operations in contract["paths"].items()
        for method in operations
        if method != "parameters"
    }
    served = {
        (re.sub(r"<[^>]+>", "{}", rule.rule), method)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert described == served
    for path, operations in contract["paths"].items():
        for method, operation in operations.items():
            if method == "parameters":
                continue
            where = f"{method} {path}"
            assert operation.get("summary"), where
            assert {"429", "500", "503"} <= set(operation["responses"]), where
            assert any(status[0] == "2" for status in operation["responses"]), where
            if "security" in operation and operation["security"][0].keys() != {"basic"}:
                assert {"401", "403"} <= set(operation["responses"]), where
            if "requestBody" in operation:
                assert {"400", "413", "415", "422"} <= set(operation["responses"]), where
            if "{" in path:
                assert "404" in operation["responses"], where


def test_every_reference_and_security_scheme_of_the_contract_exists(client: FlaskClient) -> None:
    text = client.get("/openapi.json").get_data(as_text=True)
    contract = json.loads(text)
    for reference in set(re.findall(r'"#/([^"]+)"', text)):
        found = contract
        for step in reference.split("/"):
            found = found[step]
    schemes = contract["components"]["securitySchemes"]
    for operations in contract["paths"].values():
        for operation in operations.values():
            for way in operation.get("security", ()) if isinstance(operation, dict) else ():
                assert way.keys() <= schemes.keys()


def test_the_page_needs_no_internet_and_runs_no_inline_script(client: FlaskClient) -> None:
    answer = client.get("/docs")
    text = answer.get_data(as_text=True)
    assert "script-src 'self';" in answer.headers["Content-Security-Policy"]
    assert "<script>" not in text
    named = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert named
    for name in named:
        assert name.startswith("/docs/"), name
        with client.get(name) as part:
            assert part.status_code == 200, name
            assert part.data
    for name in ("nothing.js", "..%2fREADME.md"):
        assert client.get(f"/docs/assets/{name}").get_json()["code"] == "not_found"


def test_the_key_set_is_public(client: FlaskClient) -> None:
    [key] = client.get("/.well-known/jwks.json").get_json()["keys"]
    assert (key["kty"], key["crv"], key["alg"]) == ("OKP", "Ed25519", "EdDSA")
    assert "d" not in key


def all_refusals(of: type[DomainError] = DomainError) -> Iterator[type[DomainError]]:
    for refusal in of.__subclasses__():
        # Tests have refusals of their own.
        if not refusal.__module__.startswith(("test_", "faults.")):
            yield refusal
        yield from all_refusals(refusal)


def test_every_refusal_has_a_status_and_a_text_in_both_languages() -> None:
    for refusal in all_refusals():
        assert refusal.code in problems.STATUS, refusal
        assert refusal.zh, refusal
        assert refusal.en, refusal
        assert set(re.findall(r"{(\w+)", refusal.zh)) - {"zh", "first_zh"} == set(
            re.findall(r"{(\w+)", refusal.en)
        ) - {"en", "first_en"}, refusal


def test_what_the_fields_say_has_a_chinese_text() -> None:
    used = (fields.String, fields.Integer, fields.Boolean, fields.List, fields.Nested, fields.Dict)
    ours = (Quantity, Whole, Flag, Instant, CityDay, DayOrInstant)
    for field in (*used, *ours):
        for base in field.__mro__:
            for message in getattr(base, "default_error_messages", {}).values():
                if "{" not in message and "Validator" not in message:
                    assert problems.translated(message, "zh") != message, (field, message)
