"""What holds for every address: the document, the texts in both languages, ids, limits, ids of
others. What one address does is in the test of its caller.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from callers import resident, said
from flask import Flask
from flask.testing import FlaskClient

import api
from api import problems

HERE = Path(api.__file__).parent
CODES_OF_ALL = {"429": "rate_limited", "500": "internal_error", "503": "unavailable"}


@pytest.fixture(scope="module")
def contract(app: Flask) -> dict[str, Any]:
    document: dict[str, Any] = app.test_client().get("/openapi.json").get_json()
    return document


def operations(contract: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in contract["paths"].items():
        for method, operation in methods.items():
            if method != "parameters":
                yield f"{method.upper()} {path}", operation


# --- the document -------------------------------------------------------------------------------


def test_every_schema_of_the_document_is_a_schema(contract: dict[str, Any]) -> None:
    """OpenAPI 3.1 schemas are JSON Schema 2020-12."""
    schemas = contract["components"]["schemas"]
    assert len(schemas) > 50
    for name, schema in schemas.items():
        jsonschema_rs.meta.validate(
            schema | {"$schema": "https://json-schema.org/draft/2020-12/schema"}
        )
        assert name[-1] not in "0123456789", f"{name}: two schemas of one name"


def test_every_operation_says_what_it_is_who_may_and_what_may_go_wrong(
    contract: dict[str, Any],
) -> None:
    for where, operation in operations(contract):
        assert operation["summary"], where
        assert operation["tags"], where
        for status, response in operation["responses"].items():
            assert response["description"], (where, status)
            if status >= "400":
                [(content_type, content)] = response["content"].items()
                assert content_type == "application/problem+json", where
                assert content["schema"] == {"$ref": "#/components/schemas/Problem"}, where
                codes = response["description"].replace("`", "").split(" | ")
                assert {problems.STATUS[code] for code in codes} == {int(status)}, where
        for status, code in CODES_OF_ALL.items():
            assert f"`{code}`" in operation["responses"][status]["description"], where
        for status in ("429", "503"):
            assert "Retry-After" in operation["responses"][status]["headers"], where


OPEN = {
    "GET /.well-known/jwks.json", "GET /docs", "GET /docs/assets/{name}", "GET /docs/start.js",
    "GET /healthz", "GET /metrics", "GET /openapi.json", "GET /readyz", "GET /v1/behaviours",
    "GET /v1/consent-texts", "GET /v1/proofs", "GET /v1/rewards", "GET /v1/rewards/{reward_id}",
    "GET /v1/rewards/{reward_id}/image",
    # Whoever has the signed address may.
    "GET /v1/feeds/{feed}/uploads/{upload_id}", "PUT /v1/feeds/{feed}/uploads/{upload_id}",
    "GET /v1/jobs/{job_id}/errors/download",
    "POST /v1/auth/firebase", "POST /v1/auth/otp", "POST /v1/auth/refresh", "POST /v1/auth/token",
}  # fmt: skip


def test_all_but_a_few_addresses_need_a_token(contract: dict[str, Any]) -> None:
    unprotected = {
        where for where, operation in operations(contract) if not operation.get("security")
    }
    assert unprotected == OPEN
    for where, operation in operations(contract):
        if where.split()[1].startswith("/v1/bank/"):
            [way] = operation["security"]
            assert way["client"] in (["grades:read"], ["terms:write"]), where
            assert way == {"client": way["client"], "signature": []}, where


def test_every_list_has_the_same_form(contract: dict[str, Any]) -> None:
    schemas = contract["components"]["schemas"]
    lists = 0
    for where, operation in operations(contract):
        names = {parameter.get("name") for parameter in operation.get("parameters", ())}
        if "cursor" not in names:
            continue
        lists += 1
        limit = next(one for one in operation["parameters"] if one.get("name") == "limit")["schema"]
        assert (limit["minimum"], limit["maximum"], limit["default"]) == (1, 100, 20), where
        answer = operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
        schema = schemas[answer.rsplit("/", 1)[1]]
        assert {"items", "next_cursor"} <= set(schema["required"]), where
        assert "null" in schema["properties"]["next_cursor"]["type"], where
    assert lists >= 9


# --- texts --------------------------------------------------------------------------------------


def messages() -> Iterator[tuple[str, str]]:
    """Every text that our code gives to `Invalid` or `ValidationError`, with its file."""
    for file in sorted(HERE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if called in ("Invalid", "ValidationError"):
                    for argument in node.args[:1]:
                        yield from ((file.name, text) for text in sentences(argument))


def sentences(part: ast.AST) -> Iterator[str]:
    """The texts in an expression that are sentences; what is formatted in stands as 7."""
    text = ""
    if isinstance(part, ast.JoinedStr):
        text = "".join(
            str(inner.value) if isinstance(inner, ast.Constant) else "7" for inner in part.values
        )
    elif isinstance(part, ast.Constant):
        text = str(part.value)
    else:
        for inner in ast.iter_child_nodes(part):
            yield from sentences(inner)
    if text.endswith("."):
        yield text


def test_every_message_of_ours_has_a_chinese_text() -> None:
    found = list(messages())
    assert len(found) >= 10
    for file, text in found:
        assert problems.translated(text, "zh") != text, (file, text)


# --- headers ------------------------------------------------------------------------------------


def test_every_answer_has_a_request_id_and_says_how_much_is_left(app: Flask) -> None:
    me = resident(app)
    first = me.get("/v1/me", headers={"X-Request-ID": "phone-7"})
    assert first.headers["X-Request-ID"] == "phone-7"
    assert first.headers["RateLimit-Limit"] == "600"
    second = me.get("/v1/activities/none")
    assert second.headers["X-Request-ID"] == second.get_json()["request_id"] != "phone-7"
    left = [int(answer.headers["RateLimit-Remaining"]) for answer in (first, second)]
    assert left[0] - left[1] == 1
    assert 1 <= int(second.headers["RateLimit-Reset"]) <= 60


def test_answers_about_people_are_kept_by_nobody(app: Flask) -> None:
    me = resident(app)
    for path in ("/v1/me", "/v1/me/points", "/v1/activities/none"):
        answer = me.get(path)
        assert "no-store" in answer.headers["Cache-Control"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "path", ["/v1", "/v1/", "/v1/me/", "//v1/me", "/v2/me", "/v1/activities/a/b", "/v1/Me", "/"]
)
def test_an_unknown_address_is_a_problem(client: FlaskClient, path: str) -> None:
    assert said(client.get(path)) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path"),
    [("DELETE", "/v1/me/points"), ("PUT", "/v1/me"), ("OPTIONS", "/v1/me"), ("TRACE", "/healthz")],
)
def test_a_wrong_method_is_a_problem_that_names_the_right_ones(
    client: FlaskClient, method: str, path: str
) -> None:
    answer = client.open(path, method=method)
    assert said(answer) == (405, "method_not_allowed")
    assert "GET" in answer.headers["Allow"]


def test_every_post_of_a_resident_replays_under_its_key(app: Flask) -> None:
    """Activities have business keys of their own; a device has none, and still is one."""
    me = resident(app)
    body = {"token": "fcm-1", "platform": "ios"}
    first = me.post("/v1/me/devices", body, key="d1")
    again = me.post("/v1/me/devices", dict(reversed(body.items())), key="d1")
    assert (again.status_code, again.data) == (201, first.data)
    assert again.headers["Idempotency-Replayed"] == "true"
    other = me.post("/v1/me/devices", body | {"platform": "web"}, key="d1")
    assert said(other) == (422, "idempotency_key_reused")
    # The same key at another address is another key.
    report = {
        "behaviour": "bike_km", "quantity": 2, "occurred_at": "2026-05-20T08:00:00+08:00",
        "source_event_id": "r1",
    }  # fmt: skip
    assert me.post("/v1/activities", report, key="d1").status_code == 201
