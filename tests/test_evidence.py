"""What each class of evidence earns, typed by hand from the design: A a partner's record, B a
sensor of an attested app, C a reviewed photo, D the resident's word.

    walking and cycling A or B; leaving the car A or C; savings and own solar power only from bills;
    everything else A. Only A and B count for the bank grade, and health data never does.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from itertools import product
from typing import Any

import pytest
from callers import Caller, partner, resident
from flask import Flask
from pictures import picture

import api.app
from accounting import book, clock
from footprint import activities, methodology, photos
from footprint.rules import Report
from points import crediting

NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)
MORNING = datetime(2026, 5, 20, 0, tzinfo=UTC)
EARNS = {
    "walk_steps": "AB",
    "bike_km": "AB",
    "ebike_shared_km": "AB",
    "bus_km": "A",
    "metro_km": "A",
    "ev_km": "A",
    "ev_charge_kwh": "A",
    "carpool_km": "A",
    "car_stop_day": "AC",
    "mobile_pay_offline": "A",
    "utility_pay_online": "A",
    "e_invoice": "A",
    "e_statement": "A",
    "e_card": "A",
    "online_transfer": "A",
    "etc_pass": "A",
    "ticket_online": "A",
    "train_ticket_online": "A",
    "hospital_booking": "A",
    "electricity_saving": "",
    "gas_saving": "",
    "water_saving": "",
    "rooftop_pv_self_use": "",
    "recycle_kg": "A",
    "carton_return": "A",
    "no_tableware": "A",
    "clean_plate": "",
}
FROM_BILLS = {"electricity_saving", "gas_saving", "water_saving", "rooftop_pv_self_use"}
HEALTH_DATA = {"walk_steps", "hospital_booking"}
REQUIRED: dict[str, Any] = {
    "amount_fen": 10_000,
    "meter_account": "330800001",
    "card": "6230",
    "billing_month": "2026-04",
    "card_product": "green",
    "vehicle": "浙H12345",
    "order": "order-1",
}


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.travel(NOON - clock.now()):
        yield


@pytest.fixture(scope="module")
def demo(app: Flask, tmp_path_factory: pytest.TempPathFactory) -> Flask:
    folder = tmp_path_factory.mktemp("demo")
    return api.app.create_app(replace(app.extensions["config"], demo=True, data_dir=folder))


def attributes_of(behaviour: str) -> dict[str, Any]:
    required = methodology.in_force(clock.city_day(NOON)).behaviours[behaviour].required
    return {name: REQUIRED[name] for name in required}


def quantity_of(behaviour: str) -> int:
    return 1_000 if behaviour == "walk_steps" else 1


def body(behaviour: str, **more: Any) -> dict[str, Any]:
    return {
        "behaviour": behaviour,
        "quantity": quantity_of(behaviour),
        "occurred_at": "2026-05-20T08:00:00+08:00",
        "source_event_id": f"one-{behaviour}",
        "attributes": attributes_of(behaviour),
    } | more


def test_the_table_knows_every_behaviour() -> None:
    assert EARNS.keys() == methodology.in_force(clock.city_day(NOON)).behaviours.keys()


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize("behaviour", EARNS)
@pytest.mark.parametrize("evidence", "ABCD")
def test_what_each_class_earns(behaviour: str, evidence: str) -> None:
    what = Report(
        behaviour, Decimal(quantity_of(behaviour)), MORNING, attributes=attributes_of(behaviour)
    )
    activity, _ = crediting.report("res_a", what, source="s", event_id="1", evidence=evidence)
    if evidence in EARNS[behaviour]:
        assert (activity.status, activity.reasons) == ("credited", ())
        assert activity.mg > 0
        [entry] = book.entries("res_a")
        assert entry.refs["evidence"] == evidence
        assert entry.refs["bank_grade"] == (evidence in "AB" and behaviour not in HEALTH_DATA)
        return
    expected = ("recorded", ("evidence_not_accepted",))
    if behaviour in FROM_BILLS:
        expected = ("recorded", ("only_from_bills",))
    if behaviour == "clean_plate":
        expected = ("rejected", ("behaviour_disabled",))
    assert (activity.status, activity.reasons) == expected
    assert (activity.mg, activity.points) == (0, 0)
    assert list(book.entries("res_a")) == []


@pytest.mark.parametrize("attestation", [None, "", "demo", "forged", "a.b.c"])
def test_the_clients_word_alone_is_class_d(app: Flask, attestation: str | None) -> None:
    """Outside the demo only a token that App Check signed makes a sensor record of it."""
    me = resident(app)
    headers = {} if attestation is None else {"X-Firebase-AppCheck": attestation}
    words = product(
        ("sensor", "photo", "none"),
        ({}, {"recorder": "gps"}, {"recorder": "health_platform"}),
        ({}, {"manual": False}, {"manual": True}),
    )
    for number, (kind, recorder, manual) in enumerate(words):
        evidence = {"kind": kind, **recorder, **manual}
        told = body("bike_km", evidence=evidence, source_event_id=str(number))
        shown = me.post("/v1/activities", told, headers=headers).get_json()
        assert (shown["evidence_class"], shown["points"]) == ("D", 0), evidence


@pytest.mark.parametrize("behaviour", EARNS)
def test_the_best_an_app_can_report_of_each_behaviour(demo: Flask, behaviour: str) -> None:
    """Attested, sensor, not manual: class B, and only walking and cycling are credited for it."""
    me = resident(demo)
    told = body(behaviour, evidence={"kind": "sensor", "manual": False})
    shown = me.post("/v1/activities", told, headers={"X-Firebase-AppCheck": "demo"}).get_json()
    assert shown["evidence_class"] == "B"
    assert (shown["points"] > 0) == ("B" in EARNS[behaviour])


def test_a_manual_health_sample_earns_nothing_and_the_sensors_part_does(demo: Flask) -> None:
    """A mixed day is two reports: what was typed in is dropped, what was counted is kept."""
    me = resident(demo)
    attested = {"X-Firebase-AppCheck": "demo"}
    health = {"kind": "sensor", "recorder": "health_platform"}
    typed = body("walk_steps", quantity=9_000, evidence=health | {"manual": True})
    counted = body("walk_steps", quantity=3_000, source_event_id="two", evidence=health)
    dropped = me.post("/v1/activities", typed, headers=attested).get_json()
    kept = me.post("/v1/activities", counted, headers=attested).get_json()
    assert (dropped["evidence_class"], dropped["status"], dropped["points"]) == ("D", "recorded", 0)
    # 3,000 x 296,000 / 18,000 = 49,333 mg: the 9,000 do not count as the day's highest.
    assert (kept["evidence_class"], kept["reduction_g"]) == ("B", Decimal("49.333"))


def test_of_a_total_with_both_parts_the_one_entered_by_hand_is_dropped(demo: Flask) -> None:
    me = resident(demo)
    attested = {"X-Firebase-AppCheck": "demo"}

    def tell(quantity: object, by_hand: object, **more: Any) -> Any:
        evidence = {"kind": "sensor", "recorder": "health_platform", "manual_quantity": by_hand}
        told = body(more.pop("behaviour", "walk_steps"), quantity=quantity, evidence=evidence)
        return me.post("/v1/activities", told | more, headers=attested)

    mixed = tell(12_000, 9_000).get_json()
    # 3,000 x 296,000 / 18,000 = 49,333 mg
    assert (mixed["evidence_class"], mixed["quantity"]) == ("B", 3_000)
    assert (mixed["reduction_g"], mixed["status"]) == (Decimal("49.333"), "pending")
    assert [one["code"] for one in mixed["reasons"]] == ["manual_part_dropped"]
    why = me.get(f"/v1/activities/{mixed['id']}/explanation").get_json()
    assert why["inputs"]["attributes"] == {"manual_quantity": "9000"}
    # The same again is the same; another part is another report.
    assert tell(12_000, 9_000.0).status_code == 200
    assert tell(12_000, 8_000).status_code == 409
    # All of it by hand is the reporter's word.
    typed = tell(9_000, 9_000, source_event_id="typed").get_json()
    assert (typed["evidence_class"], typed["status"], typed["quantity"]) == ("D", "recorded", 9_000)
    assert tell(9_000, 9_001, source_event_id="more").status_code == 422
    assert tell(5, 1, behaviour="bike_km", source_event_id="ride").status_code == 422


def test_a_photo_is_the_residents_word_until_somebody_looked(app: Flask) -> None:
    me = resident(app)
    told = body("car_stop_day", evidence={"kind": "photo"})
    activity = me.post("/v1/activities", told).get_json()
    path = f"/v1/activities/{activity['id']}"
    me.post(f"{path}/photos", data=picture(), headers={"Content-Type": "image/jpeg"})
    shown = me.get(path).get_json()
    assert (shown["evidence_class"], shown["status"], shown["points"]) == ("D", "recorded", 0)
    assert len(photos.of_activity(activity["id"])) == 1


@pytest.mark.parametrize("behaviour", EARNS)
def test_a_photo_makes_only_a_stop_day_wait(app: Flask, behaviour: str) -> None:
    me: Caller = resident(app)
    shown = me.post("/v1/activities", body(behaviour, evidence={"kind": "photo"})).get_json()
    waits = [reason["code"] for reason in shown["reasons"]] == ["awaiting_review"]
    assert waits == (behaviour == "car_stop_day")


def test_a_partners_key_is_class_a_whatever_the_row_says(app: Flask) -> None:
    feed, me = partner(app), resident(app)
    me.post("/v1/me/links", {"partner_id": feed.id, "external_id": "card-1"})
    row = body("bus_km", external_id="card-1")
    sent = {"activities": [row, row | {"source_event_id": "2", "evidence": {"kind": "none"}}]}
    plain, claiming = feed.post("/v1/feeds/activities", sent).get_json()["results"]
    assert plain["activity"]["evidence_class"] == "A"
    assert claiming["status_code"] == 422, "a row does not speak of evidence at all"
    stored = activities.by_id(plain["activity"]["id"])
    assert stored is not None
    assert stored.evidence == "A"
