"""Data partners over HTTP: rows, link codes, files as jobs, taking a row back.

Worked by hand: 8 km on the bus avoid 215.2 g and earn 215 points, 48 hours later.
"""

import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from callers import Caller, machine, partner, resident, said
from flask import Flask

from accounting import clock, jobs, storage, tokens
from accounting.clients import Kind
from api import feed_rows, security
from integrations import imports

NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)
ROW: dict[str, Any] = {
    "external_id": "card-1",
    "behaviour": "bus_km",
    "quantity": 8,
    "occurred_at": "2026-05-20T08:00:00+08:00",
    "source_event_id": "tap-1",
}
NDJSON, CSV = "application/x-ndjson", "text/csv"


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.travel(NOON - clock.now()):
        yield


@pytest.fixture
def me(app: Flask) -> Caller:
    return resident(app)


@pytest.fixture
def buses(app: Flask) -> Caller:
    return partner(app)


def linked(me: Caller, buses: Caller, external_id: str = "card-1") -> str:
    answer = me.post("/v1/me/links", {"partner_id": buses.id, "external_id": external_id})
    assert answer.status_code == 201
    link_id: str = answer.get_json()["id"]
    return link_id


def feed(buses: Caller, *rows: Any) -> list[dict[str, Any]]:
    answer = buses.post("/v1/feeds/activities", {"activities": list(rows)})
    assert answer.status_code == 200
    results: list[dict[str, Any]] = answer.get_json()["results"]
    assert len(results) == len(rows)
    return results


# --- rows ---------------------------------------------------------------------------------------


def test_a_row_of_a_linked_card_is_class_a_and_pending_for_two_days(
    me: Caller, buses: Caller
) -> None:
    linked(me, buses)
    [result] = feed(buses, ROW)
    activity = result["activity"]
    assert result["status_code"] == 201
    assert (activity["evidence_class"], activity["status"]) == ("A", "pending")
    assert (activity["reduction_g"], activity["points"]) == (Decimal("215.2"), 215)
    assert activity["matures_at"] == "2026-05-22T00:00:00.000Z"
    assert me.get(f"/v1/activities/{activity['id']}").get_json() == activity
    points = me.get("/v1/me/points").get_json()
    assert (points["available"], points["pending"]) == (0, 215)
    with clock.travel(timedelta(days=2)):
        later = replace(me, token=tokens.open_session(me.id).access_token)
        assert later.get("/v1/me/points").get_json()["available"] == 215
        assert later.get(f"/v1/activities/{activity['id']}").get_json()["status"] == "credited"


def test_a_trip_of_unknown_length_counts_eighty_grams(me: Caller, buses: Caller) -> None:
    linked(me, buses)
    [result] = feed(buses, {**ROW, "quantity": 1, "attributes": {"trip": True, "line": "K1"}})
    assert result["activity"]["reduction_g"] == 80


def test_each_row_has_its_own_end_in_order(me: Caller, buses: Caller) -> None:
    linked(me, buses)
    results = feed(
        buses,
        ROW,
        {**ROW, "quantity": -1},
        ROW,
        {**ROW, "quantity": 9},
        {**ROW, "source_event_id": "tap 2"},
        {**ROW, "source_event_id": "tap-3", "external_id": "card-2"},
        {**ROW, "source_event_id": "tap-4", "evidence": {"kind": "sensor"}},
        {**ROW, "source_event_id": "tap-5", "external_id": ""},
        5,
        None,
    )
    assert [result["status_code"] for result in results] == [
        201, 422, 200, 409, 422, 201, 422, 422, 422, 422,
    ]  # fmt: skip
    assert results[2]["activity"] == results[0]["activity"]
    assert results[3]["problem"]["code"] == "source_event_conflict"
    assert results[5]["activity"]["status"] == "parked"
    assert results[6]["problem"]["errors"][0]["pointer"] == "/evidence"
    assert all(("activity" in result) != ("problem" in result) for result in results)


def test_a_request_holds_one_to_a_thousand_rows(buses: Caller) -> None:
    for rows in ([], [ROW] * 1_001, None, {}):
        answer = buses.post("/v1/feeds/activities", {"activities": rows})
        assert said(answer) == (422, "validation_failed")
        assert answer.get_json()["errors"][0]["pointer"] == "/activities"


def test_a_partner_reports_only_what_its_policy_allows(app: Flask) -> None:
    bikes = partner(app, every_behaviour=False, behaviours=["bike_km"], id_namespace="bike:")
    results = feed(
        bikes,
        {**ROW, "external_id": "bike:1"},
        {**ROW, "behaviour": "bike_km", "quantity": 1},
        {**ROW, "behaviour": "bike_km", "quantity": 1, "external_id": "bike:1"},
    )
    assert [result["status_code"] for result in results] == [403, 403, 201]
    assert [result["problem"]["code"] for result in results[:2]] == [
        "behaviour_not_allowed", "id_not_in_namespace",
    ]  # fmt: skip


def test_event_ids_of_partners_and_residents_do_not_meet(
    app: Flask, me: Caller, buses: Caller
) -> None:
    trains = partner(app)
    linked(me, buses)
    linked(me, trains)
    [one] = feed(buses, ROW)
    later = {**ROW, "occurred_at": "2026-05-20T10:00:00+08:00"}
    [two] = feed(trains, later)
    assert (one["status_code"], two["status_code"]) == (201, 201)


# --- links --------------------------------------------------------------------------------------


def test_rows_that_came_before_the_link_are_credited_with_it(me: Caller, buses: Caller) -> None:
    [parked] = feed(buses, ROW)
    assert (parked["activity"]["status"], parked["activity"]["points"]) == ("parked", 0)
    assert me.get("/v1/activities").get_json()["items"] == []
    linked(me, buses)
    [activity] = me.get("/v1/activities").get_json()["items"]
    assert activity["id"] == parked["activity"]["id"]
    assert (activity["status"], activity["reduction_g"]) == ("pending", Decimal("215.2"))
    [again] = feed(buses, ROW)
    assert (again["status_code"], again["activity"]) == (200, activity)


def test_a_link_needs_the_partners_code_unless_waived(app: Flask, me: Caller) -> None:
    strict = partner(app, link_code_required=True)
    body = {"partner_id": strict.id, "external_id": "card-1"}
    issued = strict.post("/v1/feeds/link-codes", {"external_id": "card-1"})
    assert issued.status_code == 201
    code, lifetime = issued.get_json()["link_code"], issued.get_json()["expires_in"]
    assert lifetime == 1_800
    wrong = f"{(int(code) + 1) % 10**8:08d}"
    other = strict.post("/v1/feeds/link-codes", {"external_id": "card-2"}).get_json()["link_code"]
    for attempt in ({}, {"link_code": wrong}, {"link_code": other}):
        answer = me.post("/v1/me/links", body | attempt)
        assert said(answer) == (422, "invalid_link_code")
    answer = me.post("/v1/me/links", body | {"link_code": code})
    assert answer.status_code == 201
    assert answer.get_json().keys() >= {"id", "partner_id", "external_id"}
    second = resident(app).post("/v1/me/links", body | {"link_code": code})
    assert said(second) == (409, "already_linked")


def test_links_are_listed_and_ended_by_their_owner_only(
    app: Flask, me: Caller, buses: Caller
) -> None:
    link_id = linked(me, buses)
    [item] = me.get("/v1/me/links").get_json()["items"]
    assert me.get(f"/v1/me/links/{item['id']}").get_json() == item
    assert said(resident(app).get(f"/v1/me/links/{item['id']}")) == (404, "not_found")
    assert (item["id"], item["external_id"], item["partner_id"]) == (link_id, "card-1", buses.id)
    assert said(resident(app).delete(f"/v1/me/links/{link_id}")) == (404, "not_found")
    feed(buses, ROW)
    assert me.delete(f"/v1/me/links/{link_id}").status_code == 204
    assert said(me.delete(f"/v1/me/links/{link_id}")) == (404, "not_found")
    assert me.get("/v1/me/links").get_json()["items"] == []
    # What was earned stays, and what comes later is parked.
    assert me.get("/v1/me/points").get_json()["pending"] == 215
    [after] = feed(buses, {**ROW, "source_event_id": "tap-2"})
    assert after["activity"]["status"] == "parked"


def test_a_link_with_nobody_is_refused(me: Caller) -> None:
    answer = me.post("/v1/me/links", {"partner_id": "ptn_none", "external_id": "1"})
    assert said(answer) == (422, "validation_failed")
    [error] = answer.get_json()["errors"]
    assert error == {"pointer": "/partner_id", "message": "没有这样的机构。"}


# --- taking back --------------------------------------------------------------------------------


def test_a_refunded_row_takes_its_points_back_once(app: Flask, me: Caller, buses: Caller) -> None:
    linked(me, buses)
    feed(buses, ROW)
    path, body = "/v1/feeds/activities/tap-1/reverse", {"reason": "refund"}
    first = buses.post(path, body)
    assert first.status_code == 200
    assert first.get_json()["status"] == "reversed"
    assert buses.post(path, body).get_json() == first.get_json()
    assert me.get("/v1/me/points").get_json()["pending"] == 0
    kinds = [row["kind"] for row in me.get("/v1/me/points/entries").get_json()["items"]]
    assert kinds == ["reverse", "earn"]
    assert said(partner(app).post(path, body)) == (404, "not_found")
    assert said(buses.post("/v1/feeds/activities/nothing/reverse", body)) == (404, "not_found")
    assert said(buses.post(path, {})) == (422, "validation_failed")


def test_a_row_that_earned_nothing_has_nothing_to_give_back(me: Caller, buses: Caller) -> None:
    linked(me, buses)
    feed(buses, {**ROW, "quantity": 1_000})
    answer = buses.post("/v1/feeds/activities/tap-1/reverse", {"reason": "refund"})
    assert said(answer) == (409, "nothing_to_reverse")


# --- files --------------------------------------------------------------------------------------


def upload(buses: Caller, data: bytes, kind: str = NDJSON, **headers: str) -> str:
    answer = buses.post(
        "/v1/feeds/activities/files", data=data, headers={"Content-Type": kind, **headers}
    )
    assert answer.status_code == 202
    job_id: str = answer.get_json()["job_id"]
    assert answer.headers["Location"] == f"/v1/jobs/{job_id}"
    return job_id


def work(job_id: str) -> None:
    """What the worker does when it is told, or the sweep finds the job."""
    imports.run(job_id, feed_rows.take_file_rows)


def lines(*rows: Any) -> bytes:
    return b"".join(
        row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows
    )


COUNTS = ("credited", "pending", "recorded", "rejected", "duplicate", "parked")


def counted(job: dict[str, Any]) -> dict[str, int]:
    return {name: job[name] for name in COUNTS if job[name]}


def test_a_file_is_taken_in_row_by_row_and_its_refusals_are_listed(
    me: Caller, buses: Caller
) -> None:
    linked(me, buses)
    job_id = upload(
        buses,
        lines(
            ROW,
            {**ROW, "quantity": -1, "source_event_id": "tap-2"},
            b"not json\n",
            {**ROW, "source_event_id": "tap-3", "external_id": "card-9"},
            ROW,
            b"[]\n",
            b'{"quantity": NaN}\n',
        ),
    )
    queued = buses.get(f"/v1/jobs/{job_id}").get_json()
    assert (queued["state"], queued["total"], queued["done"]) == ("queued", None, 0)
    work(job_id)
    job = buses.get(f"/v1/jobs/{job_id}").get_json()
    assert (job["state"], job["total"], job["done"], job["progress"]) == ("done", 7, 7, 100)
    assert counted(job) == {"pending": 1, "rejected": 4, "parked": 1, "duplicate": 1}
    assert isinstance(job["rows_per_second"], int)
    assert int(job["rate"]) == job["rows_per_second"] > 0
    assert (queued["unit"], queued["rate"], queued["eta"]) == ("rows", 0, None)
    assert (job["seconds_left"], job["eta"], job["failure_code"]) == (None, None, None)
    answer = buses.get(job["errors_url"], headers={"Accept-Language": "en"})
    assert answer.mimetype == NDJSON
    errors = [json.loads(line) for line in answer.text.splitlines()]
    assert all(error.keys() == {"row", "code", "message", "input"} for error in errors)
    assert [(error["row"], error["code"]) for error in errors] == [
        (2, "validation_failed"), (3, "malformed_row"), (6, "malformed_row"),
        (7, "validation_failed"),
    ]  # fmt: skip
    assert "quantity" in errors[0]["message"]
    assert errors[1]["input"] == "not json"


def test_a_csv_file_in_gzip_gives_the_same_rows(me: Caller, buses: Caller) -> None:
    linked(me, buses)
    text = (
        "external_id,behaviour,quantity,occurred_at,source_event_id,line\n"
        "card-1,bus_km,8,2026-05-20T08:00:00+08:00,tap-1,K1\n"
        "card-1,bus_km,eight,2026-05-20T10:00:00+08:00,tap-2,\n"
    )
    job_id = upload(
        buses, gzip.compress(text.encode()), f"{CSV}; charset=utf-8", **{"Content-Encoding": "gzip"}
    )
    work(job_id)
    job = buses.get(f"/v1/jobs/{job_id}").get_json()
    assert (job["state"], counted(job)) == ("done", {"pending": 1, "rejected": 1})
    [activity] = me.get("/v1/activities").get_json()["items"]
    assert activity["reduction_g"] == Decimal("215.2")


def test_rows_with_reasons_are_counted_without_a_reader(me: Caller, buses: Caller) -> None:
    """100 km by bus avoid 2,690 g, of which 1,600 g a day count; 1,000 km are no bus ride."""
    linked(me, buses)
    job_id = upload(
        buses,
        lines({**ROW, "quantity": 100}, {**ROW, "quantity": 1_000, "source_event_id": "tap-2"}),
    )
    work(job_id)
    assert counted(buses.get(f"/v1/jobs/{job_id}").get_json()) == {"credited": 1, "rejected": 1}
    far, capped = me.get("/v1/activities").get_json()["items"]
    assert (far["status"], capped["status"], capped["reduction_g"]) == ("rejected", "capped", 1_600)


def test_the_same_file_again_has_no_second_effect(me: Caller, buses: Caller) -> None:
    linked(me, buses)
    for expected in ({"pending": 1}, {"duplicate": 1}):
        job_id = upload(buses, lines(ROW))
        work(job_id)
        assert counted(buses.get(f"/v1/jobs/{job_id}").get_json()) == expected
    assert me.get("/v1/me/points").get_json()["pending"] == 215


# A gzip file whose content was overwritten behind the header.
WHOLE = gzip.compress(b'{"a": 1}\n' * 1_000)
DAMAGED = WHOLE[:15] + b"\xff" * 10 + WHOLE[25:]


@pytest.mark.parametrize(
    ("data", "kind", "headers"),
    [
        (b"\x1f\x8bnot gzip", NDJSON, {"Content-Encoding": "gzip"}),
        (DAMAGED, NDJSON, {"Content-Encoding": "gzip"}),
        (gzip.compress(b"{}\n")[:-9], NDJSON, {"Content-Encoding": "gzip"}),
        (b"\xff\xfe\x00", CSV, {}),
    ],
    ids=("no gzip", "damaged gzip", "half a gzip", "no header"),
)
def test_a_file_that_cannot_be_read_fails_with_a_reason(
    buses: Caller, data: bytes, kind: str, headers: dict[str, str]
) -> None:
    job_id = upload(buses, data, kind, **headers)
    work(job_id)
    job = buses.get(f"/v1/jobs/{job_id}").get_json()
    assert (job["state"], job["failure_code"]) == ("failed", "file_refused")
    english = buses.get(f"/v1/jobs/{job_id}", headers={"Accept-Language": "en"}).get_json()
    assert english["failure"].startswith(("the gzip data is damaged", "the header of the CSV"))
    assert job["failure"].startswith(("gzip 数据已损坏", "CSV 表头无法读取"))


HOSTILE = [
    b"\xff\xfe\x00\n",
    b'{"external_id": "' + b"x" * 70_000 + b'"}\n',
    b'{"quantity": 1e99999999999999999999}\n',
    b'{"external_id": "\\ud800"}\n',
    b'{"external_id": "a\\u0000b"}\n',
    b'{"external_id": "card-1", "behaviour": "\\udfff"}\n',
    b'{"quantity": ' + b"9" * 5_000 + b"}\n",
    b"[" * 5_000 + b"\n",
]


@pytest.mark.parametrize("line", HOSTILE, ids=lambda line: repr(line[:30]))
def test_one_hostile_line_does_not_stop_the_rows_behind_it(
    me: Caller, buses: Caller, line: bytes
) -> None:
    linked(me, buses)
    job_id = upload(buses, lines(line, ROW))
    work(job_id)
    job = buses.get(f"/v1/jobs/{job_id}").get_json()
    assert (job["state"], counted(job)) == ("done", {"pending": 1, "rejected": 1})
    [error] = buses.get(job["errors_url"]).text.splitlines()
    assert json.loads(error)["row"] == 1


def test_a_file_of_another_kind_is_refused_before_it_is_read(buses: Caller) -> None:
    for kind in ("application/json", "text/plain", ""):
        answer = buses.post("/v1/feeds/activities/files", data=b"x", headers={"Content-Type": kind})
        assert said(answer) == (415, "unsupported_media_type")
    assert jobs.waiting(clock.now()) == []


@pytest.mark.parametrize("charset", ["gb18030", "GBK", '"gb2312"'])
def test_a_csv_in_gb18030_with_one_wrong_byte_loses_one_row(
    me: Caller, buses: Caller, charset: str
) -> None:
    linked(me, buses)
    text = (
        "external_id,behaviour,quantity,occurred_at,source_event_id,line\n"
        "card-1,bus_km,8,2026-05-20T08:00:00+08:00,tap-1,衢州\n"
        "card-1,bus_km,8,2026-05-20T10:00:00+08:00,tap-2,?\n"
    )
    job_id = upload(
        buses, text.encode("gb18030").replace(b"?", b"\xff"), f"{CSV}; charset={charset}"
    )
    work(job_id)
    job = buses.get(f"/v1/jobs/{job_id}").get_json()
    assert (job["state"], counted(job)) == ("done", {"pending": 1, "rejected": 1})
    [error] = [json.loads(line) for line in buses.get(job["errors_url"]).text.splitlines()]
    assert (error["row"], error["code"]) == (2, "malformed_row")
    assert error["message"].endswith("not GB18030")
    [activity] = me.get("/v1/activities").get_json()["items"]
    assert activity["source_event_id"] == "tap-1"


@pytest.mark.parametrize(
    "kind", [f"{CSV}; charset=big5", f"{CSV}; charset=utf-16", f"{NDJSON}; charset=gb18030"]
)
def test_a_charset_nobody_reads_is_refused_before_the_file_is_kept(
    buses: Caller, kind: str
) -> None:
    answer = buses.post("/v1/feeds/activities/files", data=b"x", headers={"Content-Type": kind})
    assert said(answer) == (415, "unsupported_media_type")
    assert jobs.waiting(clock.now()) == []


def test_a_job_is_seen_by_its_owner_and_the_operator(app: Flask, buses: Caller) -> None:
    job_id = upload(buses, lines(ROW))
    operator = machine(app, Kind.OPERATOR)
    for path in (f"/v1/jobs/{job_id}", f"/v1/jobs/{job_id}/errors"):
        assert buses.get(path).status_code == operator.get(path).status_code == 200
        assert said(partner(app).get(path)) == (404, "not_found")
    assert said(buses.get("/v1/jobs/job_none")) == (404, "not_found")


def test_an_operator_stops_a_file_and_lets_it_go_on(app: Flask, buses: Caller) -> None:
    job_id = upload(buses, lines(ROW))
    operator = machine(app, Kind.OPERATOR)
    path = f"/v1/operator/jobs/{job_id}"
    assert said(buses.post(f"{path}/cancel", {"reason": "x"})) == (403, "forbidden")
    assert operator.post(f"{path}/cancel", {"reason": "the wrong day"}).status_code == 204
    work(job_id)
    told = buses.get(f"/v1/jobs/{job_id}").get_json()
    assert (told["state"], told["done"]) == ("failed", 0)
    assert (told["failure"], told["failure_code"]) == ("已取消：the wrong day", "cancelled")
    assert operator.post(f"{path}/resume").status_code == 202
    with clock.travel(2 * jobs.LEASE):
        work(job_id)
    told = buses.get(f"/v1/jobs/{job_id}").get_json()
    assert (told["state"], told["done"], told["failure"]) == ("done", 1, None)
    share = jobs.queue(imports.SHARE_KIND, buses.id, {}, whole=job_id)
    refused = operator.post(f"/v1/operator/jobs/{share.id}/cancel", {"reason": "x"})
    assert said(refused) == (404, "not_found")


def test_a_file_may_be_larger_than_any_other_body(buses: Caller) -> None:
    data = b'{"behaviour": "a row that is refused"}\n' * 100_000
    assert len(data) > security.BODY_MAX
    job_id = upload(buses, data)
    job = jobs.get(job_id)
    assert job is not None
    assert job.arguments["size"] == len(data)


def test_a_file_sent_again_under_its_key_is_one_job(buses: Caller) -> None:
    path, headers = "/v1/feeds/activities/files", {"Content-Type": NDJSON}
    first = buses.post(path, data=lines(ROW), headers=headers, key="file-1")
    again = buses.post(path, data=lines(ROW), headers=headers, key="file-1")
    assert first.get_json() == again.get_json()
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.headers["Location"] == first.headers["Location"]
    other = buses.post(path, data=lines(ROW, ROW), headers=headers, key="file-1")
    assert said(other) == (422, "idempotency_key_reused")


def test_another_file_of_the_same_length_under_the_key_of_one_is_refused(buses: Caller) -> None:
    path, headers = "/v1/feeds/activities/files", {"Content-Type": NDJSON}
    corrected = lines({**ROW, "quantity": 9})
    assert len(corrected) == len(lines(ROW))
    first = buses.post(path, data=lines(ROW), headers=headers, key="file-1")
    other = buses.post(path, data=corrected, headers=headers, key="file-1")
    assert said(other) == (422, "idempotency_key_reused")
    # Also when the answers are gone, after seven days or a crash before the first was kept.
    storage.database()["idempotency"].delete_many({})
    other = buses.post(path, data=corrected, headers=headers, key="file-1")
    assert said(other) == (422, "idempotency_key_reused")
    storage.database()["idempotency"].delete_many({})
    again = buses.post(path, data=lines(ROW), headers=headers, key="file-1")
    assert again.get_json() == first.get_json()
    assert storage.database()["jobs"].count_documents({}) == 1
    assert storage.database()["feed_files.files"].count_documents({}) == 1
