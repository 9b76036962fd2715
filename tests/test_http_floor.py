"""What every address does alike: problems, numbers, instants, pages, limits, health."""

import io
import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import marshmallow as ma
import pytest
from flask import Flask, Response, jsonify
from flask.testing import FlaskClient
from flask.views import MethodView
from marshmallow import fields, validate
from pymongo.errors import AutoReconnect, ServerSelectionTimeoutError

import api.app
import api.views
from accounting import clock
from accounting.errors import Unavailable
from api import limits, problems
from api.numbers import (
    CityDay,
    DayOrInstant,
    Flag,
    Grams,
    Instant,
    Quantity,
    Schema,
    Whole,
)
from api.openapi import Blueprint
from api.paging import PageQuery, beyond, page, page_of, place
from api.security import OPEN, door

probe = Blueprint("probe", __name__)
ROWS = [{"at": clock.start_of(clock.first_day("2026-03")), "id": n} for n in range(45)]


class Part(Schema):
    amount = Quantity(minimum=0, maximum=100_000)


class Report(Schema):
    name = fields.String(validate=validate.Length(1, 20))
    amount = Quantity(above=0, maximum=100_000)
    count = Whole(validate=validate.Range(1, 12))
    sure = Flag()
    at = Instant()
    on = CityDay()
    parts = fields.List(fields.Nested(Part))


class ProbeAnswer(Report):
    mass_g = Grams(attribute="mass_mg")


class Row(ma.Schema):
    id = fields.Integer(required=True)


class RangeQuery(Schema):
    since = DayOrInstant(data_key="from", required=True)


@probe.route("/probe/reports")
class Reports(MethodView):
    @door(OPEN)
    @probe.arguments(Report)
    @probe.response(201, ProbeAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        return {**wanted, "mass_mg": 1_500}


@probe.route("/probe/rows")
class Rows(MethodView):
    @door(OPEN)
    @probe.arguments(PageQuery, location="query")
    @probe.response(200, page_of(Row))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        at = place(wanted)
        rows = sorted(ROWS, key=lambda row: (row["at"], row["id"]), reverse=True)
        left = [row for row in rows if at is None or (row["at"], row["id"]) < at]
        return page(left[: wanted["limit"] + 1], wanted, lambda row: (row["at"], row["id"]))


@probe.route("/probe/range")
class Range(MethodView):
    @door(OPEN)
    @probe.arguments(RangeQuery, location="query")
    def get(self, wanted: dict[str, Any]) -> Response:
        return jsonify(kind=type(wanted["since"]).__name__)


FAILURES: dict[str, Exception] = {
    "bug": RuntimeError("the table tanhui.secrets is gone"),
    "store": AutoReconnect("mongodb-1.internal:27017 went away"),
    "selection": ServerSelectionTimeoutError("no primary"),
    "part": Unavailable("sign-in", retry_after=7),
}


@probe.route("/probe/failures/<name>")
class Failures(MethodView):
    @door(OPEN)
    def get(self, name: str) -> Response:
        raise FAILURES[name]


@pytest.fixture(scope="module")
def probed(app: Flask) -> Iterator[Flask]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api.app, "BLUEPRINTS", (*api.views.BLUEPRINTS, probe))
        yield api.app.create_app(app.extensions["config"])


@pytest.fixture
def http(probed: Flask) -> FlaskClient:
    return probed.test_client()


def post(http: FlaskClient, body: str | bytes, **headers: str) -> Any:
    return http.post(
        "/probe/reports", data=body, headers={"Content-Type": "application/json", **headers}
    )


def problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.get_data(as_text=True)
    assert answer.content_type == "application/problem+json"
    body = answer.get_json()
    assert body["status"] == status
    assert body["code"] == code
    assert body["request_id"] == answer.headers["X-Request-ID"]
    assert body["type"]
    assert body["title"]
    assert body["detail"]
    return body


# --- problems -----------------------------------------------------------------------------------


def test_an_unknown_address_is_a_problem_in_chinese_unless_english_is_asked_for(
    http: FlaskClient,
) -> None:
    assert problem(http.get("/v1/nope"), 404, "not_found")["detail"] == "没有找到对应内容。"
    for asked, said in [
        ("en-GB,en;q=0.9", "en"),
        ("zh-CN,en;q=0.5", "zh"),
        ("fr", "zh"),
        ("en;q=0", "zh"),
    ]:
        answer = http.get("/v1/nope", headers={"Accept-Language": asked})
        assert answer.headers["Content-Language"] == said
        assert problem(answer, 404, "not_found")["detail"].isascii() == (said == "en")


def test_a_wrong_method_names_the_right_ones(http: FlaskClient) -> None:
    answer = http.put("/probe/reports", json={})
    problem(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"] == "POST"
    problem(http.options("/probe/reports"), 405, "method_not_allowed")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"nonsense",
        b'{"name": "\xff"}',
        b'\xef\xbb\xbf{"name": "x"}',
        b'{"name": "a", "name": "b"}',
        b'{"amount": NaN}',
        b'{"amount": -Infinity}',
        b'{"name": "\\ud800"}',
        b'{"name": "a\\u0000b"}',
        b'{"\\udfff": 1}',
        b"[" * 100_000,
        b'{"parts":' * 5_000 + b"1" + b"}" * 5_000,
        b'{"parts":' + b"[" * 40 + b"]" * 40 + b"}",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_a_body_that_cannot_be_read_is_malformed(http: FlaskClient, body: bytes) -> None:
    problem(post(http, body), 400, "malformed_request")


def test_a_whole_surrogate_pair_is_a_character(http: FlaskClient) -> None:
    assert post(http, '{"name": "\\ud83d\\ude8c"}').get_json()["name"] == "🚌"


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/xml"},
        {"Content-Type": ""},
        {"Content-Type": "application/json; charset=gbk"},
        {"Content-Encoding": "gzip"},
    ],
)
def test_another_media_type_is_refused(http: FlaskClient, headers: dict[str, str]) -> None:
    problem(post(http, '{"name": "x"}', **headers), 415, "unsupported_media_type")


def test_an_oversize_body_is_refused_declared_or_not(http: FlaskClient) -> None:
    body = b'{"name": "' + b"x" * 2_000_000 + b'"}'
    problem(post(http, body), 413, "payload_too_large")
    chunked = http.post(
        "/probe/reports",
        input_stream=io.BytesIO(body),
        content_type="application/json",
        environ_overrides={"wsgi.input_terminated": True},
    )
    problem(chunked, 413, "payload_too_large")


def test_a_refused_body_is_read_to_its_end_so_that_the_connection_lives(http: FlaskClient) -> None:
    for answered, path in ((413, "/probe/reports"), (404, "/nowhere")):
        stream = io.BytesIO(b"x" * 2_500_000)
        answer = http.post(
            path,
            input_stream=stream,
            content_type="application/json",
            headers={"Content-Length": "2500000"},
        )
        assert answer.status_code == answered
        assert stream.read() == b""


@pytest.mark.parametrize(
    ("body", "pointer", "chinese", "english"),
    [
        ('{"colour": 1}', "/colour", "未知字段。", "Unknown field."),
        ('{"name": 1}', "/name", "应为字符串。", "Not a valid string."),
        ('{"name": null}', "/name", "不能为 null。", "Field may not be null."),
        ('{"name": ""}', "/name", "长度应在 1 与 20 之间。", None),
        ('{"amount": "1"}', "/amount", "应为 JSON 数字。", "Not a valid number."),
        ('{"amount": true}', "/amount", "应为 JSON 数字。", None),
        ('{"amount": 0}', "/amount", "应大于 0 且不超过 100000。", None),
        ('{"amount": -5}', "/amount", "应大于 0 且不超过 100000。", None),
        ('{"amount": 1e400}', "/amount", "数字过大。", "Number too large."),
        ('{"amount": 1e99999999999999999999}', "/amount", "数字过大。", None),
        ('{"amount": 0.0000001}', "/amount", "最多 6 位小数。", "At most 6 decimal places."),
        ('{"count": 1.5}', "/count", "应为整数。", "Not a valid integer."),
        ('{"count": "3"}', "/count", "应为整数。", None),
        ('{"count": true}', "/count", "应为整数。", None),
        ('{"count": 99999999999999999999}', "/count", "数字过大。", None),
        ('{"count": 13}', "/count", "应在 1 与 12 之间。", None),
        ('{"sure": 1}', "/sure", "应为 true 或 false。", "Not a valid boolean."),
        ('{"at": "2026-03-01T10:00:00"}', "/at", "应为带时区偏移的 RFC 3339 时间。", None),
        ('{"on": "2026-02-30"}', "/on", "应为日期（YYYY-MM-DD）。", None),
        ('{"parts": {}}', "/parts", "应为数组。", "Not a valid list."),
        ('{"parts": [{}, {"amount": -1}]}', "/parts/1/amount", "应在 0 与 100000 之间。", None),
        ('{"parts": [3]}', "/parts/0", "值无效。", None),
        ("[]", "", "值无效。", "Invalid input type."),
        ('{"a/b~c": 1}', "/a~1b~0c", "未知字段。", None),
    ],
)
def test_what_cannot_be_accepted_is_pointed_at(
    http: FlaskClient, body: str, pointer: str, chinese: str | None, english: str | None
) -> None:
    for language, said in [("zh", chinese), ("en", english)]:
        answer = post(http, body, **{"Accept-Language": language})
        [error] = problem(answer, 422, "validation_failed")["errors"]
        assert error["pointer"] == pointer
        if said is not None:
            assert error["message"] == said


def test_many_errors_come_in_one_answer_but_not_without_end(http: FlaskClient) -> None:
    body = json.dumps({"parts": [{"amount": -1}] * 1_000})
    assert len(problem(post(http, body), 422, "validation_failed")["errors"]) == 100


def test_our_own_failure_says_nothing_but_the_request_id(
    probed: Flask, http: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        answer = http.get("/probe/failures/bug", headers={"X-Request-ID": "call-7"})
    body = problem(answer, 500, "internal_error")
    assert body["request_id"] == "call-7"
    assert "secrets" not in answer.get_data(as_text=True)
    assert any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize(("part", "wait"), [("store", "5"), ("selection", "5"), ("part", "7")])
def test_an_absent_part_is_a_503_that_says_when_to_come_back(
    http: FlaskClient, part: str, wait: str
) -> None:
    answer = http.get(f"/probe/failures/{part}")
    problem(answer, 503, "unavailable")
    assert answer.headers["Retry-After"] == wait
    assert "internal" not in answer.get_data(as_text=True)


# --- numbers and instants -----------------------------------------------------------------------


def test_numbers_keep_every_digit_on_the_way_in_and_out(http: FlaskClient) -> None:
    answer = post(http, '{"amount": 0.1, "parts": [{"amount": 99999.999999}, {"amount": 1.50}]}')
    assert answer.status_code == 201
    text = answer.get_data(as_text=True)
    assert '"amount":0.1,' in text
    assert '{"amount":99999.999999},{"amount":1.5}' in text
    assert '"mass_g":1.5' in text


def test_the_end_of_a_range_is_a_day_or_an_instant(http: FlaskClient) -> None:
    assert http.get("/probe/range?from=2026-03-01").get_json() == {"kind": "date"}
    instant = "2026-03-01T00:00:00%2B08:00"
    assert http.get(f"/probe/range?from={instant}").get_json() == {"kind": "datetime"}
    problem(http.get("/probe/range?from=yesterday"), 422, "validation_failed")


# --- pages --------------------------------------------------------------------------------------


def test_pages_run_through_everything_once_and_are_stable_under_inserts(http: FlaskClient) -> None:
    seen, cursor = [], ""
    for _ in range(4):
        answer = http.get(f"/probe/rows?limit=20&cursor={cursor}" if cursor else "/probe/rows")
        body = answer.get_json()
        seen += [row["id"] for row in body["items"]]
        cursor = body["next_cursor"]
        if cursor is None:
            break
        ROWS.append({"at": clock.now(), "id": 1_000 + len(seen)})  # Newer than every page.
    del ROWS[45:]
    assert seen == list(range(44, -1, -1))


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=101", "limit=1_0", "limit=x", "limit=２", "cursor=abc", "page=2", "cursor="],
)
def test_a_page_that_cannot_be_is_refused(http: FlaskClient, query: str) -> None:
    answer = http.get(f"/probe/rows?{query}")
    if query == "cursor=":
        assert answer.status_code == 200
    else:
        [error] = problem(answer, 422, "validation_failed")["errors"]
        assert error["pointer"] == "/" + query.split("=")[0]


def test_a_cursor_is_signed_and_belongs_to_its_list(probed: Flask, http: FlaskClient) -> None:
    cursor = http.get("/probe/rows").get_json()["next_cursor"]
    problem(http.get(f"/probe/rows?cursor={cursor[:-1]}"), 422, "validation_failed")
    problem(http.get("/probe/rows?cursor=%00"), 400, "malformed_request")
    with probed.test_request_context("/probe/other"), pytest.raises(problems.Invalid):
        place({"cursor": cursor})


def test_the_condition_behind_a_page_walks_the_whole_sort_order() -> None:
    assert beyond(("at", "_id"), None) == {}
    assert beyond(("at", "_id"), (5, "x")) == {
        "$or": [{"at": {"$lt": 5}}, {"at": 5, "_id": {"$lt": "x"}}]
    }


# --- request ids, limits, health ----------------------------------------------------------------


def test_a_sane_request_id_is_echoed_and_another_replaced(http: FlaskClient) -> None:
    sent = "7f3a/批".encode().decode("latin-1")
    for given, kept in [("abc-123", True), ("x" * 128, True), ("x" * 129, False), (sent, False)]:
        answer = http.get("/healthz", headers={"X-Request-ID": given})
        assert (answer.headers["X-Request-ID"] == given) is kept
        assert answer.headers["X-Request-ID"].isascii()


def test_who_asks_too_often_is_told_when_to_come_back(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ADDRESS_PER_MINUTE", 2)
    http = api.app.create_app(app.extensions["config"]).test_client()
    sender = {"REMOTE_ADDR": f"192.0.2.{time.time_ns() % 250}"}
    left = [http.get("/healthz", environ_base=sender) for _ in range(3)]
    assert [answer.headers["RateLimit-Remaining"] for answer in left] == ["1", "0", "0"]
    assert {answer.headers["RateLimit-Limit"] for answer in left} == {"2"}
    problem(left[2], 429, "rate_limited")
    assert 1 <= int(left[2].headers["Retry-After"]) <= 60
    assert left[2].headers["Retry-After"] == left[2].headers["RateLimit-Reset"]
    assert "Retry-After" not in left[0].headers


@pytest.fixture
def _long_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine, all that follows is within the pause."""
    monkeypatch.setattr(limits, "PAUSE_S", 600.0)


@pytest.mark.usefixtures("_long_pause")
def test_without_redis_requests_are_served_and_only_one_asks_for_it(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    away = replace(app.extensions["config"], redis_url="redis://127.0.0.1:1/0")
    http = api.app.create_app(away).test_client()
    for _ in range(50):
        assert http.get("/healthz").status_code == 200
    assert ["limits are off" in one.message for one in caplog.records].count(True) == 1
    answer = http.get("/readyz")
    assert (answer.status_code, answer.get_json()) == (200, {"status": "degraded"})


@pytest.mark.usefixtures("_long_pause")
def test_a_redis_that_hangs_holds_up_one_request_not_each(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.app, "REDIS_ANSWER_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # Connects, and never says a word.
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        hanging = replace(app.extensions["config"], redis_url=url)
        http = api.app.create_app(hanging).test_client()
        assert _callers(silent) == 1  # The nonce store.
        for _ in range(20):
            assert http.get("/healthz").status_code == 200
        assert _callers(silent) == 1


def _callers(server: socket.socket) -> int:
    """How many have connected since it was asked last."""
    server.setblocking(False)
    count = 0
    with suppress(BlockingIOError):
        while True:
            server.accept()[0].close()
            count += 1
    return count


def test_readiness_waits_for_the_demo_credentials(app: Flask, tmp_path: Any) -> None:
    demo = replace(app.extensions["config"], demo=True, data_dir=tmp_path)
    http = api.app.create_app(demo).test_client()
    problem(http.get("/readyz"), 503, "unavailable")
    (tmp_path / "demo-credentials.json").write_text("{}")
    assert http.get("/readyz").get_json() == {"status": "ready"}


@pytest.mark.parametrize(
    ("address", "headers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("::1", {}, 200),
        ("10.1.2.3", {}, 200),
        ("192.0.2.1", {}, 403),
        ("127.0.0.1", {"X-Forwarded-For": "192.0.2.1"}, 403),
    ],
)
def test_figures_are_for_internal_addresses_only(
    app: Flask, address: str, headers: dict[str, str], status: int
) -> None:
    inside = replace(app.extensions["config"], internal_networks=(ip_network("10.0.0.0/8"),))
    http = api.app.create_app(inside).test_client()
    http.get("/healthz")
    answer = http.get("/metrics", environ_base={"REMOTE_ADDR": address}, headers=headers)
    assert answer.status_code == status
    if status == 200:
        text = answer.get_data(as_text=True)
        assert 'tanhui_request_seconds_count{endpoint="system.healthz",method="GET"' in text
