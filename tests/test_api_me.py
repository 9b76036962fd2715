"""The resident's own account over HTTP: preferences, summary, devices, inbox, milestones."""

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

import pytest
from callers import Caller, partner, resident, said
from flask import Flask
from shop import rich_resident

from accounting import accounts, clock

# Wednesday 20 May 2026, noon in the city.
NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)
EN = {"Accept-Language": "en"}


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.travel(NOON - clock.now()):
        yield


@pytest.fixture
def me(app: Flask) -> Caller:
    return resident(app)


# --- preferences --------------------------------------------------------------------------------


def test_an_account_begins_with_defaults_and_keeps_what_it_is_told(me: Caller) -> None:
    begun = {
        "resident_id": me.id,
        "display_name": None,
        "district": None,
        "language": "zh",
        "quiet_hours": {"from": "22:00", "to": "07:00"},
        "push": {"service": True, "marketing": True},
    }
    assert me.get("/v1/me").get_json() == begun
    changed = me.patch(
        "/v1/me",
        {"display_name": "小梅", "district": "柯城", "language": "en", "quiet_hours": None,
         "push": {"marketing": False}},
    )  # fmt: skip
    expected = begun | {
        "display_name": "小梅",
        "district": "柯城",
        "language": "en",
        "quiet_hours": None,
        "push": {"service": True, "marketing": False},
    }
    assert (changed.status_code, changed.get_json()) == (200, expected)
    assert me.get("/v1/me").get_json() == expected
    # What is left out stays; null clears.
    again = me.patch(
        "/v1/me", {"display_name": None, "quiet_hours": {"from": "23:30", "to": "06:00"}}
    ).get_json()
    assert again == expected | {
        "display_name": None, "quiet_hours": {"from": "23:30", "to": "06:00"},
    }  # fmt: skip
    assert me.patch("/v1/me", {}).get_json() == again


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"display_name": ""}, "/display_name"),
        ({"display_name": "x" * 41}, "/display_name"),
        ({"display_name": 5}, "/display_name"),
        ({"language": "fr"}, "/language"),
        ({"language": None}, "/language"),
        ({"quiet_hours": {"from": "22:00"}}, "/quiet_hours/to"),
        ({"quiet_hours": {"from": "24:00", "to": "07:00"}}, "/quiet_hours/from"),
        ({"quiet_hours": {"from": "22:00", "to": "7:00"}}, "/quiet_hours/to"),
        ({"quiet_hours": {"from": "22:00", "to": "07:00", "on": "sunday"}}, "/quiet_hours/on"),
        ({"quiet_hours": "never"}, "/quiet_hours"),
        ({"push": {"marketing": 0}}, "/push/marketing"),
        ({"push": {"email": True}}, "/push/email"),
        ({"resident_id": "res_other"}, "/resident_id"),
        ({"phone": "13800138000"}, "/phone"),
    ],
    ids=str,
)
def test_a_preference_that_cannot_be_is_pointed_at_and_nothing_changes(
    me: Caller, body: dict[str, Any], pointer: str
) -> None:
    before = me.get("/v1/me").get_json()
    answer = me.patch("/v1/me", {"district": "衢江"} | body)
    assert said(answer) == (422, "validation_failed")
    [error] = answer.get_json()["errors"]
    assert error["pointer"] == pointer
    assert not error["message"].isascii()
    assert me.get("/v1/me").get_json() == before


# --- summary ------------------------------------------------------------------------------------


def test_an_account_closed_since_its_owner_was_let_in_has_no_preferences(me: Caller) -> None:
    accounts.close(me.id)
    assert said(me.patch("/v1/me", {"district": "柯城区"})) == (401, "unauthenticated")
    assert said(me.get("/v1/me")) == (401, "unauthenticated")


def test_the_summary_adds_up_by_behaviour_dimension_and_day(app: Flask, me: Caller) -> None:
    """8 km by bus avoid 215.2 g, a payment 5 g, 2 km by bus 53.8 g; the last one is of April."""
    city = partner(app)
    me.post("/v1/me/links", {"partner_id": city.id, "external_id": "1"})
    rows = [
        ("bus_km", 8, "2026-05-18T08:00:00+08:00", {}),
        ("mobile_pay_offline", 1, "2026-05-18T12:00:00+08:00", {"amount_fen": 1_000}),
        ("bus_km", 8, "2026-05-19T23:59:59+08:00", {}),
        ("bus_km", 2, "2026-04-30T23:59:59+08:00", {}),
    ]
    city.post(
        "/v1/feeds/activities",
        {
            "activities": [
                {
                    "external_id": "1",
                    "behaviour": behaviour,
                    "quantity": quantity,
                    "occurred_at": at,
                    "source_event_id": f"e{number}",
                    "attributes": attributes,
                }
                for number, (behaviour, quantity, at, attributes) in enumerate(rows)
            ]
        },
    )
    month = me.get("/v1/me/summary").get_json()
    assert (month["reduction_g"], month["points"]) == (Decimal("435.4"), 435)
    bus = {"reduction_g": Decimal("430.4"), "points": 430, "count": 2}
    paid = {"reduction_g": 5, "points": 5, "count": 1}
    assert month["by_behaviour"] == {"bus_km": bus, "mobile_pay_offline": paid}
    assert month["by_dimension"] == {"green_travel": bus, "green_payment": paid}
    assert month["series"] == [
        {"period": "2026-05-18", "reduction_g": Decimal("220.2"), "points": 220, "count": 2},
        {"period": "2026-05-19", "reduction_g": Decimal("215.2"), "points": 215, "count": 1},
    ]
    both = me.get("/v1/me/summary?from=2026-04-30&to=2026-05-18&by=month").get_json()
    assert [(row["period"], row["reduction_g"]) for row in both["series"]] == [
        ("2026-04", Decimal("53.8")), ("2026-05", Decimal("220.2")),
    ]  # fmt: skip
    assert both["reduction_g"] == 274
    assert month["by_evidence"] == {
        "A": {"reduction_g": Decimal("435.4"), "points": 435, "count": 3}
    }
    one = me.get("/v1/me/summary?from=2026-05-19&to=2026-05-19").get_json()
    assert one["reduction_g"] == Decimal("215.2")
    assert resident(app).get("/v1/me/summary").get_json()["series"] == []


def test_instants_are_half_open_and_days_inclusive(app: Flask, me: Caller) -> None:
    """Rides of 1, 2 and 4 km by bus (26.9 g a km) at eight, noon and just before midnight."""
    city = partner(app)
    me.post("/v1/me/links", {"partner_id": city.id, "external_id": "1"})
    times = [("1", "18T08:00:00"), ("2", "18T12:00:00"), ("4", "18T23:59:59"), ("8", "19T00:00:00")]
    rows = [
        {
            "external_id": "1",
            "behaviour": "bus_km",
            "quantity": Decimal(km),
            "occurred_at": f"2026-05-{at}+08:00",
            "source_event_id": f"half-open-{km}",
        }
        for km, at in times
    ]
    city.post("/v1/feeds/activities", {"activities": rows})
    me.post("/v1/me/devices", {"token": "unrelated", "platform": "ios"})

    def km(first: str, last: str) -> Decimal:
        query = {"from": first, "to": last}
        answer = me.get("/v1/me/summary?" + urlencode(query)).get_json()
        assert sum(row["reduction_g"] for row in answer["series"]) == answer["reduction_g"]
        return Decimal(answer["reduction_g"]) / Decimal("26.9")

    assert km("2026-05-18", "2026-05-18") == 7
    assert km("2026-05-18T00:00:00+08:00", "2026-05-19T00:00:00+08:00") == 7
    assert km("2026-05-17T16:00:00Z", "2026-05-18T16:00:00Z") == 7
    assert km("2026-05-18T08:00:00+08:00", "2026-05-18T12:00:00+08:00") == 1
    assert km("2026-05-18T08:00:00.001+08:00", "2026-05-18T12:00:00.001+08:00") == 2
    assert km("2026-05-18T12:00:00+08:00", "2026-05-19T00:00:00.001+08:00") == 14
    # One end a day, the other an instant; and nothing at all.
    assert km("2026-05-18T12:00:00+08:00", "2026-05-19") == 14
    assert km("2026-05-17", "2026-05-18T12:00:00+08:00") == 1
    assert km("2026-05-18T12:00:00+08:00", "2026-05-18T12:00:00+08:00") == 0


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("from=2026-05-20&to=2026-05-19", "/from"),
        ("from=2026-05-19T00:00:00%2B08:00&to=2026-05-18T23:59:59%2B08:00", "/from"),
        ("from=2026-05-19&to=2026-05-18T23:59:59%2B08:00", "/from"),
        ("from=2026-05-19T00:00:00", "/from"),
        ("from=2020-01-01T00:00:00Z&to=2026-05-19", "/from"),
        ("from=2020-01-01&to=2026-05-19", "/from"),
        ("from=yesterday", "/from"),
        ("to=2026-02-30", "/to"),
        ("by=week", "/by"),
        ("by=", "/by"),
        ("behaviour=bus_km", "/behaviour"),
    ],
)
def test_a_range_that_cannot_be_is_refused(me: Caller, query: str, pointer: str) -> None:
    answer = me.get(f"/v1/me/summary?{query}")
    assert said(answer) == (422, "validation_failed")
    [error] = answer.get_json()["errors"]
    assert error["pointer"] == pointer
    assert not error["message"].isascii()


# --- devices ------------------------------------------------------------------------------------


def test_a_phone_is_registered_once_and_removed_by_its_owner(app: Flask, me: Caller) -> None:
    body = {"token": "fcm-1", "platform": "harmony"}
    first = me.post("/v1/me/devices", body)
    assert first.status_code == 201
    assert me.post("/v1/me/devices", body).get_json()["id"] == first.get_json()["id"]
    path = f"/v1/me/devices/{first.get_json()['id']}"
    assert said(resident(app).delete(path)) == (404, "not_found")
    assert me.delete(path).status_code == 204
    assert said(me.delete(path)) == (404, "not_found")
    for change in ({"platform": "pager"}, {"token": ""}, {"token": "x" * 4_097}, {"token": None}):
        assert said(me.post("/v1/me/devices", body | change)) == (422, "validation_failed")


# --- inbox and milestones -----------------------------------------------------------------------


def test_milestones_are_told_in_the_inbox_in_the_readers_language(app: Flask) -> None:
    """26.9 kg of CO2 cross the steps of 1, 5, 10 and 25 kg at once."""
    me = rich_resident(app)
    milestones = me.get("/v1/me/milestones").get_json()
    assert [step["kg"] for step in milestones["reached"]] == [1, 5, 10, 25]
    assert milestones["next"] == {"kg": 50}
    inbox = me.get("/v1/me/notifications?limit=3").get_json()
    assert (len(inbox["items"]), inbox["unread"]) == (3, 4)
    rest = me.get(f"/v1/me/notifications?limit=3&cursor={inbox['next_cursor']}").get_json()
    items = inbox["items"] + rest["items"]
    assert (len({item["id"] for item in items}), rest["next_cursor"]) == (4, None)
    assert {item["type"] for item in items} == {"milestone"}
    assert {item["deep_link"] for item in items} == {"tanhui://milestones"}
    assert "已减排 25 千克" in {item["title"] for item in items}
    english = me.get("/v1/me/notifications", headers=EN).get_json()["items"]
    assert "25 kg of CO2 avoided" in {item["title"] for item in english}


def test_a_notification_is_read_by_its_owner_only(app: Flask) -> None:
    me = rich_resident(app)
    first = me.get("/v1/me/notifications").get_json()["items"][0]
    assert first["read_at"] is None
    path = f"/v1/me/notifications/{first['id']}/read"
    assert said(resident(app).post(path)) == (404, "not_found")
    for _ in range(2):
        assert me.post(path).status_code == 204
    inbox = me.get("/v1/me/notifications").get_json()
    assert (inbox["items"][0]["read_at"] is not None, inbox["unread"]) == (True, 3)
    assert said(me.post("/v1/me/notifications/ntf_none/read")) == (404, "not_found")


def test_a_new_resident_has_reached_nothing_yet(me: Caller) -> None:
    found = me.get("/v1/me/milestones").get_json()
    assert (found["reached"], found["next"]) == ([], {"kg": 1})
    assert [(one["milestone"], one["have"], one["need"]) for one in found["upcoming"]] == [
        ("lifetime_1_kg", 0, 1_000),
        ("streak_3_days", 0, 3),
        (f"month_{clock.city_month(clock.now())}_10_kg", 0, 10_000),
    ]
    inbox = me.get("/v1/me/notifications").get_json()
    assert inbox == {"items": [], "next_cursor": None, "unread": 0}
