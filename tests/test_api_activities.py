"""Reporting activities over HTTP, by a resident: what is credited, what is refused, and why.

The grams are worked by hand from the methodology: cycling avoids 48.7 g a kilometre, a kilometre on
the bus 26.9 g, one point a gram, rounded down once.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from callers import Caller, resident, said
from flask import Flask

import api.app
from accounting import clock, tokens
from footprint import methodology

# Wednesday 20 May 2026, noon in the city.
NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)
ATTESTED = {"X-Firebase-AppCheck": "demo"}
SENSOR = {"kind": "sensor", "recorder": "gps"}
RIDE: dict[str, Any] = {
    "behaviour": "bike_km",
    "quantity": 2,
    "occurred_at": "2026-05-20T08:00:00+08:00",
    "ended_at": "2026-05-20T08:10:00+08:00",
    "source_event_id": "ride-1",
    "evidence": SENSOR,
}


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.travel(NOON - clock.now()):
        yield


@pytest.fixture(scope="module")
def demo(app: Flask, tmp_path_factory: pytest.TempPathFactory) -> Flask:
    folder = tmp_path_factory.mktemp("demo")
    return api.app.create_app(replace(app.extensions["config"], demo=True, data_dir=folder))


@pytest.fixture
def me(app: Flask, demo: Flask) -> Caller:
    """A resident of the demo, where the attestation `demo` is accepted."""
    return resident(demo)


def report(me: Caller, **changes: Any) -> Any:
    body = {**RIDE, **changes}
    return me.post("/v1/activities", {name: body[name] for name in body if body[name] is not ...},
                   headers=ATTESTED)  # fmt: skip


# --- one activity -------------------------------------------------------------------------------


def test_a_ride_earns_what_the_methodology_says(me: Caller) -> None:
    answer = report(me)
    assert answer.status_code == 201
    activity = answer.get_json()
    assert activity == {
        "id": activity["id"],
        "source_event_id": "ride-1",
        "behaviour": "bike_km",
        "quantity": 2,
        "unit": "km",
        "occurred_at": "2026-05-20T00:00:00.000Z",
        "ended_at": "2026-05-20T00:10:00.000Z",
        "status": "credited",
        "reduction_g": Decimal("97.4"),
        "points": 97,
        "reasons": [],
        "evidence_class": "B",
        "matures_at": "2026-05-20T00:10:00.000Z",
        "methodology_version": "QZ-RES-2026.1",
    }
    assert me.get(f"/v1/activities/{activity['id']}").get_json() == activity
    assert me.get("/v1/activities").get_json() == {"items": [activity], "next_cursor": None}


def test_the_same_event_again_is_the_first_activity_and_earns_nothing_more(me: Caller) -> None:
    first = report(me)
    again = report(me)
    assert (again.status_code, again.get_json()) == (200, first.get_json())
    # The same numbers and instants in other spellings are the same event.
    spelled = report(
        me,
        quantity=Decimal("2.000"),
        occurred_at="2026-05-20T00:00:00Z",
        ended_at="2026-05-20T00:10:00.0004Z",
    )
    assert (spelled.status_code, spelled.get_json()) == (200, first.get_json())
    assert me.get("/v1/me/points").get_json()["available"] == 97


@pytest.mark.parametrize(
    "change",
    [
        {"quantity": 3},
        {"behaviour": "ebike_shared_km"},
        {"occurred_at": "2026-05-20T08:00:01+08:00"},
        {"ended_at": ...},
    ],
    ids=str,
)
def test_the_same_event_id_with_other_content_conflicts(me: Caller, change: Any) -> None:
    first = report(me).get_json()
    answer = report(me, **change)
    assert said(answer) == (409, "source_event_conflict")
    assert "ride-1" in answer.get_json()["detail"]
    assert me.get("/v1/activities").get_json()["items"] == [first]


def test_event_ids_are_the_reporters_own(demo: Flask, me: Caller) -> None:
    other = resident(demo)
    first, second = report(me), report(other, quantity=3)
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.get_json()["id"] != second.get_json()["id"]


def test_somebody_elses_activity_is_not_there(demo: Flask, me: Caller) -> None:
    activity_id = report(me).get_json()["id"]
    other = resident(demo)
    for path in (f"/v1/activities/{activity_id}", f"/v1/activities/{activity_id}/explanation"):
        assert me.get(path).status_code == 200
        assert said(other.get(path)) == (404, "not_found")
    unknown = other.get("/v1/activities/act_nothing")
    assert said(unknown) == (404, "not_found")
    foreign = other.get(f"/v1/activities/{activity_id}")
    assert {**foreign.get_json(), "request_id": ""} == {**unknown.get_json(), "request_id": ""}


@pytest.mark.parametrize(
    ("evidence", "attestation", "evidence_class", "status"),
    [
        (SENSOR, "demo", "B", "credited"),
        ({"kind": "sensor"}, "demo", "B", "credited"),
        ({"kind": "sensor", "manual": False}, "demo", "B", "credited"),
        ({"kind": "sensor", "manual": True}, "demo", "D", "recorded"),
        ({"kind": "sensor"}, "forged", "D", "recorded"),
        ({"kind": "sensor"}, None, "D", "recorded"),
        ({"kind": "photo"}, "demo", "D", "recorded"),
        ({"kind": "none"}, "demo", "D", "recorded"),
        (..., "demo", "D", "recorded"),
    ],
)
def test_class_b_needs_a_sensor_no_manual_entry_and_an_attested_app(
    me: Caller, evidence: Any, attestation: str | None, evidence_class: str, status: str
) -> None:
    body = {**RIDE, "evidence": evidence}
    if evidence is ...:
        del body["evidence"]
    headers = {"X-Firebase-AppCheck": attestation} if attestation else {}
    answer = me.post("/v1/activities", body, headers=headers)
    assert answer.status_code == 201
    activity = answer.get_json()
    assert (activity["evidence_class"], activity["status"]) == (evidence_class, status)
    expected = (Decimal("97.4"), 97) if status == "credited" else (0, 0)
    assert (activity["reduction_g"], activity["points"]) == expected
    assert [reason["code"] for reason in activity["reasons"]] == (
        [] if status == "credited" else ["evidence_not_accepted"]
    )


def test_outside_the_demo_its_attestation_is_worth_nothing(app: Flask) -> None:
    answer = resident(app).post("/v1/activities", RIDE, headers=ATTESTED)
    assert answer.get_json()["evidence_class"] == "D"
    assert answer.get_json()["reduction_g"] == 0


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"quantity": 15.1, "ended_at": ...}, "implausible_quantity"),
        ({"quantity": 0.2, "ended_at": ...}, "implausible_quantity"),
        ({"quantity": 5}, "implausible_speed"),  # 5 km in ten minutes: 30 km/h.
        ({"occurred_at": "2026-05-20T12:05:01+08:00", "ended_at": ...}, "in_the_future"),
        ({"occurred_at": "2026-04-20T11:59:59+08:00", "ended_at": ...}, "too_old"),
        ({"occurred_at": "1970-01-01T00:00:00Z", "ended_at": ...}, "too_old"),
        ({"ended_at": "2026-05-20T12:10:00+08:00"}, "in_the_future"),
        ({"behaviour": "clean_plate", "quantity": 1, "ended_at": ...}, "behaviour_disabled"),
    ],
)
def test_what_cannot_be_is_rejected_with_its_reason_and_kept(
    me: Caller, change: dict[str, Any], code: str
) -> None:
    body = {**RIDE, **change}
    answer = me.post(
        "/v1/activities",
        {name: Decimal(str(value)) if isinstance(value, float) else value
         for name, value in body.items() if value is not ...},
        headers=ATTESTED,
    )  # fmt: skip
    assert answer.status_code == 201
    activity = answer.get_json()
    assert activity["status"] == "rejected"
    assert (activity["reduction_g"], activity["points"]) == (0, 0)
    assert code in [reason["code"] for reason in activity["reasons"]]
    english = me.get(f"/v1/activities/{activity['id']}", headers={"Accept-Language": "en"})
    texts = [reason["text"] for reason in english.get_json()["reasons"]]
    assert all(text.isascii() for text in texts)
    assert not any(reason["text"].isascii() for reason in activity["reasons"])


def test_a_second_trip_at_the_same_time_is_rejected(me: Caller) -> None:
    report(me)
    overlapping = report(
        me, source_event_id="ride-2", occurred_at="2026-05-20T08:05:00+08:00",
        ended_at="2026-05-20T08:20:00+08:00",
    )  # fmt: skip
    assert overlapping.get_json()["status"] == "rejected"
    assert overlapping.get_json()["reasons"][0]["code"] == "overlapping_trip"


def test_the_day_cap_trims_to_the_gram(me: Caller) -> None:
    """730 g a day for cycling: a ride of 14 km avoids 681.8 g, the next of 2 km only 48.2 g."""
    first = report(
        me, quantity=14, occurred_at="2026-05-20T06:00:00+08:00",
        ended_at="2026-05-20T07:00:00+08:00",
    ).get_json()  # fmt: skip
    second = report(me, source_event_id="ride-2").get_json()
    assert (first["reduction_g"], first["points"]) == (Decimal("681.8"), 681)
    assert (second["status"], second["reduction_g"], second["points"]) == (
        "capped", Decimal("48.2"), 48,
    )  # fmt: skip
    assert [reason["code"] for reason in second["reasons"]] == ["day_gram_cap"]


def test_steps_are_pending_until_the_day_after_and_the_highest_total_counts(me: Caller) -> None:
    """10,000 steps avoid 164.444 g, 18,000 avoid 296 g: the second report adds 131.556 g.

    And the points up to those of 296 g: 296 - 164 = 132.
    """
    steps = {"behaviour": "walk_steps", "ended_at": ..., "evidence": {"kind": "sensor"}}
    morning = report(me, **steps, quantity=10_000, source_event_id="steps-am").get_json()
    evening = report(me, **steps, quantity=18_000, source_event_id="steps-pm").get_json()
    assert (morning["status"], morning["reduction_g"], morning["points"]) == (
        "pending", Decimal("164.444"), 164,
    )  # fmt: skip
    assert (evening["reduction_g"], evening["points"]) == (Decimal("131.556"), 132)
    lower = report(me, **steps, quantity=9_000, source_event_id="steps-late").get_json()
    assert (lower["status"], lower["reduction_g"]) == ("merged", 0)
    assert lower["merged_into"] == evening["id"]
    assert me.get("/v1/me/points").get_json()["pending"] == 164 + 132
    with clock.travel(timedelta(hours=20)):  # 08:00 the next city day.
        me = replace(me, token=tokens.open_session(me.id).access_token)
        assert me.get("/v1/me/points").get_json()["available"] == 164 + 132
        seen = me.get(f"/v1/activities/{morning['id']}").get_json()
        assert seen["status"] == "credited"


def test_behaviours_that_need_better_evidence_are_recorded_for_the_footprint(me: Caller) -> None:
    bus = report(me, behaviour="bus_km", quantity=8, ended_at=...).get_json()
    assert (bus["status"], bus["reduction_g"], bus["points"]) == ("recorded", 0, 0)
    assert bus["reasons"][0]["code"] == "evidence_not_accepted"
    power = report(
        me, behaviour="electricity_saving", quantity=30, ended_at=..., source_event_id="power"
    ).get_json()
    assert (power["status"], power["reasons"][0]["code"]) == ("recorded", "only_from_bills")


# --- what cannot be accepted --------------------------------------------------------------------

LONG = "x" * 129


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"behaviour": "teleport"}, "/behaviour"),
        ({"behaviour": ""}, "/behaviour"),
        ({"behaviour": 7}, "/behaviour"),
        ({"behaviour": None}, "/behaviour"),
        ({"behaviour": ...}, "/behaviour"),
        ({"quantity": 0}, "/quantity"),
        ({"quantity": -1}, "/quantity"),
        ({"quantity": Decimal("0.0000001")}, "/quantity"),
        ({"quantity": Decimal("1.2345678")}, "/quantity"),
        ({"quantity": 1_000_000_001}, "/quantity"),
        ({"quantity": "5"}, "/quantity"),
        ({"quantity": True}, "/quantity"),
        ({"quantity": None}, "/quantity"),
        ({"quantity": [2]}, "/quantity"),
        ({"quantity": ...}, "/quantity"),
        ({"occurred_at": "2026-05-20T08:00:00"}, "/occurred_at"),
        ({"occurred_at": "2026-05-20"}, "/occurred_at"),
        ({"occurred_at": "2026-02-30T08:00:00Z"}, "/occurred_at"),
        ({"occurred_at": "2026-05-20T25:00:00Z"}, "/occurred_at"),
        ({"occurred_at": 1_779_235_200}, "/occurred_at"),
        ({"occurred_at": ""}, "/occurred_at"),
        ({"occurred_at": "0001-01-01T00:00:00Z"}, "/occurred_at"),
        ({"occurred_at": "9999-12-31T23:59:59Z"}, "/occurred_at"),
        ({"occurred_at": ...}, "/occurred_at"),
        ({"ended_at": "2026-05-20T07:59:59+08:00"}, "/ended_at"),
        ({"ended_at": "2026-05-20T08:10:00"}, "/ended_at"),
        ({"source_event_id": "ride 1"}, "/source_event_id"),
        ({"source_event_id": "ride-1\n"}, "/source_event_id"),
        ({"source_event_id": "骑行"}, "/source_event_id"),
        ({"source_event_id": ""}, "/source_event_id"),
        ({"source_event_id": LONG}, "/source_event_id"),
        ({"source_event_id": 1}, "/source_event_id"),
        ({"source_event_id": ...}, "/source_event_id"),
        ({"evidence": {}}, "/evidence/kind"),
        ({"evidence": {"kind": "witness"}}, "/evidence/kind"),
        ({"evidence": {"kind": "sensor", "recorder": "watch"}}, "/evidence/recorder"),
        ({"evidence": {"kind": "sensor", "manual": "no"}}, "/evidence/manual"),
        ({"evidence": {"kind": "sensor", "proof": 1}}, "/evidence/proof"),
        ({"evidence": "sensor"}, "/evidence"),
        ({"attributes": {"colour": "red"}}, "/attributes/colour"),
        ({"attributes": {"line": "K1"}}, "/attributes/line"),
        ({"attributes": []}, "/attributes"),
        ({"points": 10_000}, "/points"),
        ({"resident_id": "res_other"}, "/resident_id"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_report_that_cannot_be_accepted_is_pointed_at_and_leaves_nothing(
    me: Caller, change: dict[str, Any], pointer: str
) -> None:
    answer = report(me, **change)
    assert said(answer) == (422, "validation_failed")
    errors = answer.get_json()["errors"]
    assert pointer in [error["pointer"] for error in errors]
    assert not any(error["message"].isascii() for error in errors)
    assert me.get("/v1/activities").get_json()["items"] == []


@pytest.mark.parametrize(
    ("behaviour", "attributes", "pointer"),
    [
        ("mobile_pay_offline", {}, "/attributes/amount_fen"),
        ("mobile_pay_offline", {"amount_fen": -1}, "/attributes/amount_fen"),
        ("mobile_pay_offline", {"amount_fen": 1.5}, "/attributes/amount_fen"),
        ("mobile_pay_offline", {"amount_fen": "100"}, "/attributes/amount_fen"),
        ("utility_pay_online", {"amount_fen": 100}, "/attributes/meter_account"),
        ("e_statement", {"card": "1"}, "/attributes/billing_month"),
        ("e_statement", {"card": "1", "billing_month": "2026-13"}, "/attributes/billing_month"),
        ("e_card", {}, "/attributes/card_product"),
        ("ev_km", {}, "/attributes/vehicle"),
        ("ev_charge_kwh", {}, "/attributes/vehicle"),
        ("car_stop_day", {}, "/attributes/vehicle"),
        ("carpool_km", {"role": "passenger"}, "/attributes/order"),
        ("carpool_km", {"order": "1", "role": "pilot"}, "/attributes/role"),
        ("recycle_kg", {"category": "wishes"}, "/attributes/category"),
        ("bus_km", {"trip": "yes"}, "/attributes/trip"),
    ],
    ids=str,
)
def test_a_behaviour_says_which_attributes_it_needs(
    me: Caller, behaviour: str, attributes: dict[str, Any], pointer: str
) -> None:
    attributes = {
        name: Decimal(str(value)) if isinstance(value, float) else value
        for name, value in attributes.items()
    }
    answer = report(me, behaviour=behaviour, ended_at=..., attributes=attributes)
    assert said(answer) == (422, "validation_failed")
    assert [error["pointer"] for error in answer.get_json()["errors"]] == [pointer]


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"{", {}, 400, "malformed_request"),
        (b"{'a': 1}", {}, 400, "malformed_request"),
        (b'{"quantity": NaN}', {}, 400, "malformed_request"),
        (b'{"quantity": 1, "quantity": 2}', {}, 400, "malformed_request"),
        (b'{"behaviour": "\xff"}', {}, 400, "malformed_request"),
        (b'{"behaviour": "\\u0000"}', {}, 400, "malformed_request"),
        (b'{"quantity": 1e400}', {}, 422, "validation_failed"),
        (b"null", {}, 422, "validation_failed"),
        (b"[]", {}, 422, "validation_failed"),
        (b'"ride"', {}, 422, "validation_failed"),
        (b"", {}, 400, "malformed_request"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        (b"a=1", {"Content-Type": "application/x-www-form-urlencoded"}, 415,
         "unsupported_media_type"),
        (b"{}", {"Content-Encoding": "gzip"}, 415, "unsupported_media_type"),
        (b'{"behaviour": "' + b"x" * 2_000_000 + b'"}', {}, 413, "payload_too_large"),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_a_body_that_cannot_be_read_is_a_clear_problem(
    me: Caller, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    sent = {"Content-Type": "application/json", **headers}
    for language, ascii_only in (("zh", False), ("en", True)):
        answer = me.post("/v1/activities", headers={**sent, "Accept-Language": language}, data=body)
        assert said(answer) == (status, code)
        assert answer.content_type == "application/problem+json"
        assert answer.get_json()["detail"].isascii() is ascii_only


# --- batches ------------------------------------------------------------------------------------


def test_each_item_of_a_batch_has_its_own_end_in_order(me: Caller) -> None:
    report(me, source_event_id="taken", quantity=1, occurred_at="2026-05-20T06:00:00+08:00",
           ended_at=...)  # fmt: skip
    items = [
        RIDE,
        {**RIDE, "quantity": 0},
        {**RIDE},
        {**RIDE, "source_event_id": "taken"},
        {**RIDE, "source_event_id": "r 2"},
        7,
        None,
        "ride",
        {},
        {**RIDE, "source_event_id": "bus", "behaviour": "bus_km", "ended_at": None},
        {**RIDE, "source_event_id": "far", "quantity": 15},
    ]
    answer = me.post("/v1/activities/batch", {"activities": items}, headers=ATTESTED)
    assert answer.status_code == 200
    results = answer.get_json()["results"]
    assert [result["status_code"] for result in results] == [
        201, 422, 200, 409, 422, 422, 422, 422, 422, 422, 201,
    ]  # fmt: skip
    assert all(("activity" in result) != ("problem" in result) for result in results)
    assert results[2]["activity"] == results[0]["activity"]
    assert results[3]["problem"]["code"] == "source_event_conflict"
    assert results[1]["problem"]["errors"][0]["pointer"] == "/quantity"
    assert results[10]["activity"]["status"] == "rejected"
    assert len(me.get("/v1/activities").get_json()["items"]) == 3


def test_a_batch_is_one_to_a_hundred_items(me: Caller) -> None:
    many = [{**RIDE, "source_event_id": f"r{number}"} for number in range(101)]
    for activities in ([], many, {}, None, "x"):
        answer = me.post("/v1/activities/batch", {"activities": activities})
        assert said(answer) == (422, "validation_failed")
        assert answer.get_json()["errors"][0]["pointer"] == "/activities"
    assert said(me.post("/v1/activities/batch", {})) == (422, "validation_failed")
    assert me.get("/v1/activities").get_json()["items"] == []


# --- reading ------------------------------------------------------------------------------------


def test_activities_come_newest_first_in_pages(me: Caller) -> None:
    """Time stands still for a millisecond at most: the ids sort by time of arrival."""
    for number in range(5):
        report(me, source_event_id=f"s{number}", behaviour="walk_steps", quantity=number + 1,
               ended_at=...)  # fmt: skip
        clock_ticks()
    seen: list[str] = []
    cursor = ""
    for expected in (2, 2, 1):
        page = me.get(f"/v1/activities?limit=2{cursor}").get_json()
        assert len(page["items"]) == expected
        seen += [item["source_event_id"] for item in page["items"]]
        cursor = f"&cursor={page['next_cursor']}"
    assert page["next_cursor"] is None
    assert seen == ["s4", "s3", "s2", "s1", "s0"]


def clock_ticks() -> None:
    """Wait for the next millisecond, which new ids begin with."""
    now = clock.now()
    while clock.now() == now:
        pass


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "limit=-1", "limit=x", "limit=", "cursor=garbage", "page=2"]
)
def test_a_page_that_cannot_be_is_refused(me: Caller, query: str) -> None:
    answer = me.get(f"/v1/activities?{query}")
    assert said(answer) == (422, "validation_failed")
    assert answer.get_json()["errors"][0]["pointer"] == "/" + query.partition("=")[0]


def test_an_explanation_shows_every_step_from_quantity_to_points(me: Caller) -> None:
    activity = report(me).get_json()
    explained = me.get(f"/v1/activities/{activity['id']}/explanation").get_json()
    assert explained.keys() >= {
        "inputs", "formula", "steps", "factors", "caps", "rounding", "points"
    }  # fmt: skip
    assert (explained["inputs"]["quantity"], explained["formula"]) == (2, "km*f")
    assert explained["inputs"]["occurred_at"] == activity["occurred_at"], "one form of instants"
    assert [(step["rule"], step["result"]) for step in explained["steps"]] == [
        ("quantity", "2"), ("formula", "97400"), ("rounding", "97400"),
    ]  # fmt: skip
    [factor] = explained["factors"]
    assert factor.keys() >= {"id", "value", "unit", "source", "valid_from", "review_by"}
    assert (factor["id"], factor["value"]) == ("QZ-RES-2026.1/bike_km", Decimal("48.7"))
    points = explained["points"]
    assert (points["points"], points["rule"], points["funder"]) == (97, "QZ-PTS-2026.1", "city")
    recorded = report(me, source_event_id="r2", evidence={"kind": "none"}).get_json()
    explained = me.get(f"/v1/activities/{recorded['id']}/explanation").get_json()
    assert (explained["steps"][-1]["op"], explained["points"]["points"]) == ("nothing", 0)


def test_behaviours_are_open_to_all_and_say_everything_a_phone_needs(app: Flask) -> None:
    http = app.test_client()
    answer = http.get("/v1/behaviours").get_json()
    assert answer.keys() == {"items", "methodology_version"}
    assert answer["methodology_version"] == "QZ-RES-2026.1"
    assert len(answer["items"]) == 27 == len(methodology.shipped()[-1].behaviours)
    by_code = {item["code"]: item for item in answer["items"]}
    bike = by_code["bike_km"]
    assert bike["names"] == {
        "zh": "自行车/公共自行车/共享单车", "en": "Cycling, own or shared bicycle",
    }  # fmt: skip
    assert (bike["name"], bike["unit"]) == (bike["names"]["zh"], "km")
    assert bike["factor"] == {
        "id": "QZ-RES-2026.1/bike_km", "mg_num": 48_700, "mg_den": 1, "trip_mg": None,
        "derivation": {}, "valid_from": "2024-01-01", "review_by": "2028-01-01",
    }  # fmt: skip
    assert bike["limits"] == {
        "quantity_min": Decimal("0.3"), "quantity_max": 15, "kmh_min": 4, "kmh_max": 25,
        "gap_minutes_min": None, "amount_fen_min": None, "step_limit": None,
        "per_minute_max": None, "same_day_count": None,
    }  # fmt: skip
    assert bike["caps"] == {"day_g": 730, "day_count": 10, "month_count": None}
    assert (bike["maturity"], bike["evidence"]) == ({"hours": 0}, ["A", "B"])
    assert "S17" in bike["source"]
    assert by_code["mobile_pay_offline"]["attributes"]["required"] == ["amount_fen"]
    english = http.get("/v1/behaviours", headers={"Accept-Language": "en"}).get_json()
    assert english["items"][1]["name"] == "Cycling, own or shared bicycle"
