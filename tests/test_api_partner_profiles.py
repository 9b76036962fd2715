"""Mapping profiles over HTTP: versions, a preview that keeps nothing, files read by a profile.

Worked by hand: 8 km on the bus avoid 8 x 26.9 = 215.2 g and earn 215 points, 48 hours later.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from callers import Caller, machine, partner, resident, said
from flask import Flask

from accounting import audit, clock, jobs, storage
from accounting.clients import Kind
from accounting.jobs import Job
from api import feed_rows
from integrations import imports, partner_profiles
from integrations.imports import RowResult

NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)
NDJSON, CSV = "application/x-ndjson", "text/csv"
RIDES: dict[str, Any] = {
    "name": "rides",
    "kind": "activities",
    "encoding": "gb18030",
    "fields": {
        "external_id": {"column": "卡号"},
        "behaviour": {"column": "类型", "codes": {"巴士": "bus_km"}},
        "quantity": {"column": "里程", "unit": "m", "to": "km"},
        "occurred_at": {"column": "时间", "format": "%Y-%m-%d %H:%M:%S"},
        "source_event_id": {"column": "流水"},
        "attributes": {"line": {"column": "线路", "default": "未知"}},
    },
}
HEADER = "流水,卡号,类型,里程,时间,线路"
RIDE = "tap-1,card-1,巴士,8000,2026-05-20 08:00:00,K1"


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.travel(NOON - clock.now()):
        yield


@pytest.fixture
def operator(app: Flask) -> Caller:
    return machine(app, Kind.OPERATOR)


@pytest.fixture
def buses(app: Flask) -> Caller:
    return partner(app)


def add(operator: Caller, buses: Caller, key: str | None = None, **changed: Any) -> Any:
    body = {"profile": {**RIDES, **changed}, "reason": "as agreed"}
    return operator.post(f"/v1/operator/partners/{buses.id}/profiles", body, key=key)


def send(
    buses: Caller,
    text: str,
    query: str = "?profile=rides",
    kind: str = CSV,
    encoding: str = "gb18030",
    key: str | None = None,
) -> Any:
    return buses.post(
        f"/v1/feeds/activities/files{query}",
        data=text.encode(encoding),
        headers={"Content-Type": kind},
        key=key,
    )


def work(buses: Caller, sent: Any) -> dict[str, Any]:
    """The job after the worker did it, with the counts that are not nothing."""
    job_id = sent.get_json()["job_id"]
    imports.run(job_id, feed_rows.take_file_rows)
    job: dict[str, Any] = buses.get(f"/v1/jobs/{job_id}").get_json()
    return job | {"counts": {name: job[name] for name in jobs.COUNTS if job[name]}}


def preview(operator: Caller, buses: Caller, *lines: str, **more: Any) -> Any:
    body = {"profile": RIDES, "lines": list(lines), **more}
    return operator.post(f"/v1/operator/partners/{buses.id}/profiles/preview", body)


def test_a_file_in_the_partners_own_words_is_credited(
    app: Flask, operator: Caller, buses: Caller
) -> None:
    """Columns in Chinese, metres, local times and GB18030, as the profile says."""
    me = resident(app)
    me.post("/v1/me/links", {"partner_id": buses.id, "external_id": "card-1"})
    assert add(operator, buses).status_code == 201
    bad = "tap-2,card-1,轮渡,8000,2026-05-20 09:00:00,"
    job = work(buses, send(buses, f"{HEADER}\n{RIDE}\n{bad}\n"))
    assert (job["state"], job["counts"]) == ("done", {"pending": 1, "rejected": 1})
    assert (job["profile"], job["profile_version"]) == ("rides", 1)
    [error] = [json.loads(line) for line in buses.get(job["errors_url"]).text.splitlines()]
    assert (error["row"], error["code"]) == (2, "malformed_row")
    assert error["message"].endswith("behaviour from 类型: '轮渡' is not in the code table")
    assert json.loads(error["input"])["流水"] == "tap-2"
    [activity] = me.get("/v1/activities").get_json()["items"]
    assert (activity["quantity"], activity["reduction_g"]) == (8, Decimal("215.2"))
    assert activity["occurred_at"] == "2026-05-20T00:00:00.000Z"


def test_a_declared_charset_goes_before_the_profiles(operator: Caller, buses: Caller) -> None:
    add(operator, buses)
    text = f"{HEADER}\n{RIDE}\n"
    utf8 = send(buses, text, kind=f"{CSV}; charset=utf-8", encoding="utf-8-sig")
    assert work(buses, utf8)["counts"] == {"parked": 1}
    row = dict(zip(HEADER.split(","), RIDE.split(","), strict=True))
    ndjson = send(buses, json.dumps(row) + "\n", kind=NDJSON, encoding="utf-8")
    assert work(buses, ndjson)["counts"] == {"duplicate": 1}


def test_a_job_keeps_the_version_it_was_sent_with(operator: Caller, buses: Caller) -> None:
    add(operator, buses)
    text = f"{HEADER}\n{RIDE}\n"
    first = send(buses, text, key="night")
    fields = RIDES["fields"] | {"quantity": {"column": "里程", "unit": "km", "to": "km"}}
    assert add(operator, buses, fields=fields).get_json()["version"] == 2
    # 8,000 m by the first version; 8,000 km by the second would be no ride.
    assert work(buses, first)["counts"] == {"parked": 1}
    later = work(buses, send(buses, text.replace("tap-1", "tap-2")))
    assert later["profile_version"] == 2
    assert send(buses, text, key="night").get_json() == first.get_json()
    assert said(send(buses, text, query="", key="night")) == (422, "idempotency_key_reused")


def test_a_file_goes_on_by_its_profile_where_a_worker_died(
    operator: Caller, buses: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of two: the worker dies in the second, and the next one begins with the third row."""
    monkeypatch.setattr(imports, "CHUNK_ROWS", 2)
    add(operator, buses)
    rows = [RIDE.replace("tap-1", f"tap-{number}") for number in range(5)]
    sent = send(buses, "\n".join([HEADER, *rows]))
    seen: list[list[str]] = []

    def dies(job: Job, raw: Sequence[dict[str, Any]]) -> list[RowResult]:
        seen.append([row["source_event_id"] for row in raw])
        if len(seen) == 2:
            raise SystemExit
        return feed_rows.take_file_rows(job, raw)

    with pytest.raises(SystemExit):
        imports.run(sent.get_json()["job_id"], dies)
    with clock.travel(jobs.LEASE * 2):
        assert imports.run(sent.get_json()["job_id"], dies)
        assert seen == [["tap-0", "tap-1"], ["tap-2", "tap-3"], ["tap-2", "tap-3"], ["tap-4"]]
        assert buses.get(f"/v1/jobs/{sent.get_json()['job_id']}").get_json()["parked"] == 5


def test_a_file_without_a_column_of_the_profile_fails_in_words(
    operator: Caller, buses: Caller
) -> None:
    add(operator, buses)
    job = work(buses, send(buses, "流水,卡号,类型,里程\n1,2,3,4\n"))
    assert (job["state"], job["failure"]) == ("failed", "CSV 表头缺少列：时间, 线路")
    assert job["failure_code"] == "file_refused"


@pytest.mark.parametrize("name", ["other", "bills-of-mine"])
def test_a_profile_that_is_not_there_or_of_another_kind_is_refused(
    app: Flask, operator: Caller, buses: Caller, name: str
) -> None:
    bill = {name: {"constant": "1"} for name in ("account_no", "period_start", "period_end")}
    bill |= {"carrier": {"constant": "gas"}, "source_event_id": {"column": "a"}}
    bill |= {"quantity": {"column": "b"}, "estimated": {"constant": False}}
    assert add(operator, buses, name="bills-of-mine", kind="bills", fields=bill).status_code == 201
    add(operator, partner(app), name="other")
    answer = send(buses, HEADER, query=f"?profile={name}")
    assert said(answer) == (422, "validation_failed")
    assert answer.get_json()["errors"][0]["pointer"] == "/profile"
    assert jobs.waiting(clock.now()) == []


def test_versions_are_listed_and_told_to_the_audit(operator: Caller, buses: Caller) -> None:
    path = f"/v1/operator/partners/{buses.id}/profiles"
    first = add(operator, buses).get_json()
    add(operator, buses, delimiter=";")
    add(operator, buses, name="a-first")
    assert (first["version"], first["profile"], first["reason"]) == (1, RIDES, "as agreed")
    page = operator.get(f"{path}?limit=2").get_json()
    rest = operator.get(f"{path}?limit=2&cursor={page['next_cursor']}").get_json()
    items = [*page["items"], *rest["items"]]
    assert [(one["name"], one["version"]) for one in items] == [
        ("a-first", 1), ("rides", 1), ("rides", 2),
    ]  # fmt: skip
    assert rest["next_cursor"] is None
    noted = [one for one in audit.trail(subject=buses.id, limit=9) if "profile" in one.action]
    assert [(one.before, one.after) for one in reversed(noted)] == [
        (None, {"name": "rides", "version": 1}),
        ({"name": "rides", "version": 1}, {"name": "rides", "version": 2}),
        (None, {"name": "a-first", "version": 1}),
    ]
    assert {one.reason for one in noted} == {"as agreed"}


def test_six_at_once_make_six_versions(app: Flask, operator: Caller, buses: Caller) -> None:
    def one(number: int) -> int:
        raw = {**RIDES, "delimiter": ";" if number % 2 else ","}
        made = partner_profiles.add(buses.id, raw, reason="r", by="op", once=f"once-{number // 2}")
        return made.version

    with ThreadPoolExecutor(6) as threads:
        versions = list(threads.map(one, range(12)))
    # Two of each wish: the second finds what the first made.
    assert versions[::2] == versions[1::2]
    assert sorted(versions[::2]) == [1, 2, 3, 4, 5, 6]


def test_a_crash_before_the_audit_is_made_good_by_the_same_key(
    operator: Caller, buses: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(*_: Any, **__: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as cut:
        cut.setattr(audit, "note", dead)
        with pytest.raises(SystemExit):
            add(operator, buses, key="k")
    again = add(operator, buses, key="k")
    assert (again.status_code, again.get_json()["version"]) == (201, 1)
    [noted] = [one for one in audit.trail(subject=buses.id, limit=9) if "profile" in one.action]
    assert noted.after == {"name": "rides", "version": 1}
    assert add(operator, buses, key="k").headers["Idempotency-Replayed"] == "true"


@pytest.mark.parametrize(
    ("changed", "pointer"),
    [
        ({"kind": "readings"}, "/profile/kind"),
        ({"encoding": "big5"}, "/profile/encoding"),
        ({"delimiter": "::"}, "/profile/delimiter"),
        ({"time_zone": "Quzhou"}, "/profile/time_zone"),
        ({"name": "Rides!"}, "/profile/name"),
        ({"extra": 1}, "/profile/extra"),
        ({"fields": "all"}, "/profile/fields"),
        ({"fields": None}, "/profile/fields"),
        ({"fields": RIDES["fields"] | {"quantity": "里程"}}, "/profile/fields/quantity"),
        ({"fields": RIDES["fields"] | {"carrier": {"constant": "gas"}}}, "/profile/fields/carrier"),
        ({"fields": {"quantity": {"column": "a"}}}, "/profile/fields/behaviour"),
        (
            {"fields": RIDES["fields"] | {"attributes": {"colour": {"column": "a"}}}},
            "/profile/fields/attributes/colour",
        ),
        (
            {"fields": RIDES["fields"] | {"behaviour": {"constant": "fly_km"}}},
            "/profile/fields/behaviour/constant",
        ),
        (
            {"fields": RIDES["fields"] | {"quantity": {"column": "a", "unit": "mile"}}},
            "/profile/fields/quantity/unit",
        ),
        (
            {"fields": RIDES["fields"] | {"occurred_at": {"column": "a", "format": "%d.%m."}}},
            "/profile/fields/occurred_at/format",
        ),
    ],
)
def test_a_wrong_profile_is_refused_naming_the_field(
    operator: Caller, buses: Caller, changed: dict[str, Any], pointer: str
) -> None:
    answers = (
        add(operator, buses, **changed),
        preview(operator, buses, HEADER, profile={**RIDES, **changed}),
    )
    for answer in answers:
        assert said(answer) == (422, "validation_failed")
        assert pointer in [error["pointer"] for error in answer.get_json()["errors"]]
    assert partner_profiles.listed(buses.id, after=None, limit=1) == []


def everything(app: Flask) -> dict[str, int]:
    """How many documents each collection has."""
    names = storage.database().list_collection_names()
    return {name: storage.database()[name].count_documents({}) for name in names}


def test_a_preview_shows_each_row_or_its_error_and_keeps_nothing(
    app: Flask, operator: Caller, buses: Caller
) -> None:
    before = everything(app)
    answer = preview(
        operator, buses, HEADER, RIDE, RIDE.replace("8000", "八"), "a,b", RIDE.replace("8000", "-1")
    )
    assert answer.status_code == 200
    good, number, cells, negative = answer.get_json()["results"]
    row = {
        "external_id": "card-1", "behaviour": "bus_km", "quantity": 8,
        "occurred_at": "2026-05-20T08:00:00+08:00", "source_event_id": "tap-1",
        "attributes": {"line": "K1"},
    }  # fmt: skip
    assert good == {"line": 2, "row": row}
    assert (number["line"], number["error"]["code"]) == (3, "malformed_row")
    assert number["error"]["message"].endswith("quantity from 里程: '八' is not a number")
    assert cells["error"]["message"].endswith("has more or fewer cells than the header")
    assert (negative["line"], negative["error"]["code"]) == (5, "validation_failed")
    assert negative["row"]["quantity"] == Decimal("-0.001")
    assert everything(app) == before


def test_a_preview_speaks_the_readers_language_and_knows_what_the_partner_may(
    app: Flask, operator: Caller
) -> None:
    rows = partner(app, every_behaviour=False, behaviours=["metro_km"])
    line = json.dumps(dict(zip(HEADER.split(","), RIDE.split(","), strict=True)))
    answer = operator.post(
        f"/v1/operator/partners/{rows.id}/profiles/preview",
        {"profile": RIDES, "lines": [line, '{"流水": 1, "流水": 2}'], "media_type": NDJSON},
        headers={"Accept-Language": "en"},
    )
    refused, twice = answer.get_json()["results"]
    assert (refused["line"], refused["error"]["code"]) == (1, "behaviour_not_allowed")
    assert twice["error"]["message"].startswith("names a key twice")


@pytest.mark.parametrize(
    ("lines", "pointer"),
    [
        ([], "/lines"),
        (["a"] * 101, "/lines"),
        (["a", " "], "/lines/1"),
        (["a\nb"], "/lines/0"),
        (["流水,卡号"], "/lines/0"),
    ],
)
def test_sample_lines_are_one_each_and_at_most_a_hundred(
    operator: Caller, buses: Caller, lines: list[str], pointer: str
) -> None:
    answer = preview(operator, buses, *lines)
    assert said(answer) == (422, "validation_failed")
    assert answer.get_json()["errors"][0]["pointer"] == pointer


def test_profiles_are_the_operators_of_partners_alone(
    app: Flask, operator: Caller, buses: Caller
) -> None:
    path = f"/v1/operator/partners/{buses.id}/profiles"
    for caller in (buses, resident(app)):
        assert said(caller.get(path)) == (403, "forbidden")
        assert said(caller.post(path, {})) == (403, "forbidden")
    bank = machine(app, Kind.BANK)
    for party in ("ptn_none", bank.id):
        assert said(operator.get(f"/v1/operator/partners/{party}/profiles")) == (404, "not_found")
