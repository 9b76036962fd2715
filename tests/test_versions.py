"""Published versions of the methodology: two operators, a day to come, and a past that stays.

The clock stands at noon of Wednesday 20 May 2026 in the city.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from callers import Caller, machine, partner, resident, said
from drafts import SHIPPED, changed, cleaner_bus, draft, nothing_left_behind, published, rules
from flask import Flask

import api.app
from accounting import accounts, audit, clock, publishing, storage
from accounting.clients import Kind
from accounting.errors import DomainError, ValidationFailed
from accounting.publishing import ApprovedTooLate, FirstDayTaken, VersionExists
from footprint import methodology, versions
from footprint.rules import Report
from points import crediting

pytestmark = pytest.mark.usefixtures("app")

DAY = timedelta(days=1)
NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)
TODAY, TOMORROW = date(2026, 5, 20), date(2026, 5, 21)


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.travel(NOON - clock.now()), nothing_left_behind():
        yield


@pytest.fixture
def anna(app: Flask) -> Caller:
    return machine(app, Kind.OPERATOR)


@pytest.fixture
def bo(app: Flask) -> Caller:
    return machine(app, Kind.OPERATOR)


def at(city_time: str) -> Any:
    """The clock at a time of the city."""
    wanted = datetime.fromisoformat(city_time).replace(tzinfo=clock.CITY)
    return clock.travel(wanted - clock.now())


def publish(operator: Caller, text: str, valid_from: date = TOMORROW, **options: Any) -> Any:
    body = {"draft": text, "valid_from": valid_from.isoformat()}
    return operator.post("/v1/operator/methodology/publish", body, **options)


def approve(operator: Caller, version: str = "QZ-RES-2026.2") -> Any:
    return operator.post(f"/v1/operator/methodology/{version}/approve")


def ride(resident_id: str, event: str, when: str) -> Any:
    """5.2 km by bus, as a partner reports it."""
    report = Report("bus_km", Decimal("5.2"), datetime.fromisoformat(when))
    activity, _ = crediting.report(
        resident_id, report, source="bus-card", event_id=event, evidence="A"
    )
    return activity


# Two operators and a day.


def test_a_version_is_published_by_its_second_operator(anna: Caller, bo: Caller) -> None:
    answer = publish(anna, cleaner_bus())
    assert answer.status_code == 201
    assert answer.get_json() == {
        "version": "QZ-RES-2026.2",
        "state": "draft",
        "needs_approval": True,
        "valid_from": "2026-05-21",
    }
    assert said(approve(anna)) == (403, "second_operator_needed")
    assert methodology.in_force(TOMORROW).version == SHIPPED
    approved = approve(bo).get_json()
    assert (approved["state"], approved["needs_approval"]) == ("published", False)
    assert (approved["drafted_by"], approved["approved_by"]) == (anna.id, bo.id)
    assert methodology.in_force(TODAY).version == SHIPPED
    assert methodology.in_force(TOMORROW).version == "QZ-RES-2026.2"
    assert methodology.in_force(TOMORROW).valid_from == TOMORROW
    assert approve(bo).get_json() == approved
    actions = [
        (row.actor, row.action) for row in audit.AuditDocument.objects(subject="QZ-RES-2026.2")
    ]
    assert sorted(actions) == sorted(
        [(anna.id, "methodology drafted"), (bo.id, "methodology published")]
    )


def test_in_the_demo_one_operator_is_enough(app: Flask, tmp_path: Any) -> None:
    demo = api.app.create_app(replace(app.extensions["config"], demo=True, data_dir=tmp_path))
    answer = publish(machine(demo, Kind.OPERATOR), cleaner_bus()).get_json()
    assert (answer["state"], answer["needs_approval"]) == ("published", False)


def test_the_same_draft_again_gives_the_same_answer_and_another_text_is_refused(
    app: Flask, anna: Caller, bo: Caller
) -> None:
    first = publish(anna, cleaner_bus()).get_json()
    assert publish(anna, cleaner_bus()).get_json() == first
    assert publish(bo, cleaner_bus()).get_json() == first
    assert said(publish(bo, cleaner_bus(mg=31_000))) == (409, "version_exists")
    assert said(publish(bo, cleaner_bus(), TOMORROW + DAY)) == (409, "version_exists")
    assert said(publish(bo, cleaner_bus(SHIPPED))) == (409, "version_exists")
    approve(bo)
    # Long after its first day the answer is still the same.
    with clock.travel(400 * DAY):
        again = publish(machine(app, Kind.OPERATOR), cleaner_bus()).get_json()
    assert again == first | {"state": "published", "needs_approval": False}


@pytest.mark.parametrize(
    ("now", "earliest"),
    # A version is read by everybody within 5 minutes, and a report may be 5 minutes ahead.
    [
        ("2026-05-20T00:00:00", "2026-05-21"),
        ("2026-05-20T23:49:50", "2026-05-21"),
        ("2026-05-20T23:50:00", "2026-05-22"),
    ],
)
def test_the_first_day_of_a_version_leaves_time_to_hear_of_it(
    app: Flask, now: str, earliest: str
) -> None:
    with at(now):
        anna = machine(app, Kind.OPERATOR)
        day = date.fromisoformat(earliest)
        refused = publish(anna, cleaner_bus(), day - DAY)
        assert said(refused) == (422, "validation_failed")
        [error] = refused.get_json()["errors"]
        assert error == {"pointer": "/valid_from", "message": f"不得早于 {earliest}。"}
        assert publish(anna, cleaner_bus(), day).status_code == 201


def test_an_approval_that_comes_too_late_is_refused(app: Flask, anna: Caller) -> None:
    publish(anna, cleaner_bus())
    with at("2026-05-20T23:55:00"):
        refused = approve(machine(app, Kind.OPERATOR))
    assert said(refused) == (409, "approved_too_late")
    assert "2026-05-22" in refused.get_json()["detail"]
    assert methodology.in_force(TOMORROW).version == SHIPPED


def test_two_versions_never_begin_on_one_day(anna: Caller, bo: Caller) -> None:
    publish(anna, cleaner_bus())
    publish(anna, cleaner_bus("QZ-RES-2026.3", 31_000))
    assert approve(bo).status_code == 200
    assert said(approve(bo, "QZ-RES-2026.3")) == (409, "first_day_taken")
    fourth = cleaner_bus("QZ-RES-2026.4", 32_000)
    assert said(publish(anna, fourth)) == (409, "first_day_taken")


def test_eight_operators_racing_with_one_name_draft_one_version() -> None:
    texts = [cleaner_bus(mg=30_000 + number % 2) for number in range(8)]
    ends: list[str] = []

    def race(text: str) -> None:
        try:
            ends.append(versions.register.publish(text, TOMORROW, "anna", alone=False).text)
        except DomainError as refusal:
            ends.append(refusal.code)

    threads = [threading.Thread(target=race, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = versions.register.get("QZ-RES-2026.2").text
    assert sorted(end == kept for end in ends) == [False] * 4 + [True] * 4
    assert ends.count("version_exists") == 4


# What a draft may say.


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('mg_num = 26900', 'mg_num = "many"', "draft: bus_km: factor: mg_num: must be int"),
        ('mg_num = 26900', "mg_num = 26900.5", "draft: bus_km: factor: mg_num: must be int"),
        ('mg_num = 26900', f"mg_num = {10**30}", "draft: bus_km: factor: mg_num: must not exceed"),
        ('mg_num = 26900', f"mg_num = {'9' * 5_000}", "draft: is not TOML"),
        ('code = "bus_km"', 'code = "bus.km"', "draft: bus.km: code: must match"),
        ('code = "no_tableware"', 'code = "no_spoon"',
         "no_tableware: code: is in QZ-RES-2026.1 and must stay"),
        ("review_by = 2028-01-01", "review_by = 9999-12-31", "draft: review_by: must lie in the"),
        ("review_by = 2028-01-01", "review_by = 2028-01-01T00:00:00", "review_by: must be date"),
        ("grace_days = 180", "grace_days = 999999999", "draft: grace_days: must not exceed"),
        ('\nversion = "QZ-RES-2026.2"', '\nversion = "../x"', "draft: version: must match"),
        ('derivation = { avg_km_per_day = "32.9"', "derivation = { avg_km_per_day = 1979-05-27",
         "draft: car_stop_day: derivation: must hold texts only"),
        ("[window]", "deep = " + "[" * 5_000, "draft: is not TOML"),
        ('"natural_gas/CN-GBT32151.34-2024"', '"natural_gas/CN-GBT32151.34-2031"',
         "gas_saving: factor: id: 'natural_gas/CN-GBT32151.34-2031' is not in the factor registry"),
        ("mg_num = 2162200", "mg_num = 2162300",
         "gas_saving: factor: mg_num: natural_gas/CN-GBT32151.34-2024 has 2162200 mg a Nm3"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_draft_that_cannot_be_used_is_refused_by_name(
    anna: Caller, old: str, new: str, message: str
) -> None:
    for path in ("publish", "preview"):
        body = {"draft": changed(draft(), old, new)}
        body |= {"valid_from": "2026-06-01"} if path == "publish" else {}
        refused = anna.post(
            f"/v1/operator/methodology/{path}", body, headers={"Accept-Language": "en"}
        )
        assert said(refused) == (422, "validation_failed"), refused.text
        assert message in refused.get_json()["detail"]
        assert refused.get_json()["errors"][0]["pointer"] == "/draft"


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('unit = "step"', 'unit = "km"', "unit"),
        ('dimension = "green_travel"\nunit = "step"', 'dimension = "green_life"\nunit = "step"',
         "dimension"),
    ],
)  # fmt: skip
def test_a_behaviour_keeps_its_unit_and_dimension(old: str, new: str, field: str) -> None:
    with pytest.raises(ValidationFailed, match=f"walk_steps: {field}: is "):
        versions.register.publish(changed(draft(), old, new), TOMORROW, "anna", alone=False)


def test_a_version_between_two_others_fits_both() -> None:
    tram = "[[behaviour]]" + draft().split("[[behaviour]]")[5].replace("metro_km", "tram_km")
    later = draft("QZ-RES-2026.9") + "\n" + tram
    versions.register.approve(
        versions.register.publish(later, date(2026, 9, 1), "anna", alone=False).version,
        "bo",
        alone=False,
    )
    # Before September nobody needs to know of trams, from then on everybody does.
    assert versions.register.publish(draft("QZ-1"), date(2026, 7, 1), "anna", alone=False)
    with pytest.raises(ValidationFailed, match="tram_km: code: is in QZ-RES-2026"):
        versions.register.publish(draft("QZ-2"), date(2026, 10, 1), "anna", alone=False)
    other = draft("QZ-3") + "\n" + tram.replace("tram_km", "ferry_km")
    with pytest.raises(ValidationFailed, match="ferry_km: code: is in QZ-3 and must stay"):
        versions.register.publish(other, date(2026, 7, 2), "anna", alone=False)


def test_a_draft_whose_review_is_over_before_it_begins_is_refused() -> None:
    with pytest.raises(ValidationFailed, match="review_by, 2028-01-01"):
        versions.register.publish(draft(), date(2028, 1, 1), "anna", alone=False)


# Judging by it.


def test_a_ride_is_judged_by_the_version_of_its_day_and_keeps_it() -> None:
    before = ride("res_a", "e1", "2026-05-20T08:00:00+08:00")
    published(cleaner_bus())  # From Friday 22 May.
    with clock.travel(3 * DAY):
        late = ride("res_a", "e2", "2026-05-21T23:59:59.999+08:00")
        after = ride("res_a", "e3", "2026-05-22T00:00:00+08:00")
    # 5.2 km x 26,900 mg = 139,880 mg; x 30,000 mg = 156,000 mg.
    assert [(one.mg, one.points, one.methodology) for one in (before, late, after)] == [
        (139_880, 139, SHIPPED),
        (139_880, 139, SHIPPED),
        (156_000, 156, "QZ-RES-2026.2"),
    ]


def test_every_address_shows_the_published_version(app: Flask) -> None:
    published(cleaner_bus())
    with clock.travel(2 * DAY):
        me, city = resident(app), partner(app)
        me.post("/v1/me/links", {"partner_id": city.id, "external_id": "card-1"})
        row = {
            "external_id": "card-1", "behaviour": "bus_km", "quantity": Decimal("5.2"),
            "occurred_at": "2026-05-22T08:00:00+08:00", "source_event_id": "r1",
        }  # fmt: skip
        [result] = city.post("/v1/feeds/activities", {"activities": [row]}).get_json()["results"]
        activity = result["activity"]
        assert (activity["reduction_g"], activity["points"]) == (156, 156)
        assert activity["methodology_version"] == "QZ-RES-2026.2"
        explained = me.get(f"/v1/activities/{activity['id']}/explanation").get_json()
        assert explained["inputs"]["methodology_version"] == "QZ-RES-2026.2"
        [factor] = explained["factors"]
        assert (factor["id"], factor["valid_from"]) == ("QZ-RES-2026.2/bus_km", "2026-05-22")
        behaviours = me.http.get("/v1/behaviours").get_json()
        assert behaviours["methodology_version"] == "QZ-RES-2026.2"
        assert me.get("/v1/me/summary").get_json()["reduction_g"] == 156


def test_another_process_hears_of_a_version_within_its_lead(monkeypatch: Any) -> None:
    assert publishing.REFRESH_S < 60 < publishing.LEAD.total_seconds()
    methodology.in_force(TOMORROW)
    # Another process publishes: this one is not told.
    document = {
        "_id": "QZ-RES-2026.2", "text": cleaner_bus(), "valid_from": "2026-05-21",
        "state": "published", "drafted_by": "a", "drafted_at": NOON,
    }  # fmt: skip
    storage.database()["methodology_versions"].insert_one(document)
    assert methodology.in_force(TOMORROW).version == SHIPPED
    soon = time.monotonic() + publishing.REFRESH_S + 0.1
    monkeypatch.setattr(time, "monotonic", lambda: soon)
    assert methodology.in_force(TOMORROW).version == "QZ-RES-2026.2"


def test_a_draft_judges_nothing() -> None:
    versions.register.publish(cleaner_bus(), TOMORROW, "anna", alone=False)
    versions.register.refresh()
    assert methodology.in_force(date(2027, 1, 1)).version == SHIPPED
    assert [version.version for version in methodology.known()] == [SHIPPED]


# Looking at them.


def test_the_list_shows_state_and_dates_and_each_has_its_text(anna: Caller, bo: Caller) -> None:
    publish(anna, cleaner_bus())
    approve(bo)
    publish(bo, cleaner_bus("QZ-RES-2026.3"), TOMORROW + DAY)
    answer = anna.get("/v1/operator/methodology").get_json()
    shown = [
        (one["version"], one["state"], one["valid_from"], one["in_force"], one["shipped"])
        for one in answer["items"]
    ]
    assert shown == [
        ("QZ-RES-2026.3", "draft", "2026-05-22", False, False),
        ("QZ-RES-2026.2", "published", "2026-05-21", False, False),
        (SHIPPED, "published", "2024-01-01", True, True),
    ]
    first = anna.get("/v1/operator/methodology?limit=2").get_json()
    rest = anna.get(f"/v1/operator/methodology?limit=2&cursor={first['next_cursor']}").get_json()
    assert [*first["items"], *rest["items"]] == answer["items"]
    assert rest["next_cursor"] is None
    one = anna.get("/v1/operator/methodology/versions/QZ-RES-2026.2").get_json()
    assert one["text"] == cleaner_bus()
    assert (
        rules(anna.get(f"/v1/operator/methodology/versions/{SHIPPED}").get_json()["text"])
        == (methodology.shipped()[0])
    )
    assert anna.get("/v1/operator/methodology/versions/nothing").status_code == 404
    assert approve(anna, "nothing").status_code == 404
    assert approve(anna, SHIPPED).status_code == 404


def test_a_replayed_publication_has_one_effect(anna: Caller) -> None:
    first = publish(anna, cleaner_bus(), key="p1")
    again = publish(anna, cleaner_bus(), key="p1")
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.get_json() == first.get_json()


def test_no_look_up_reads_a_whole_collection(app: Flask) -> None:
    published(cleaner_bus())
    residents = [resident(app).id for _ in range(3)]
    store = storage.database()
    store.command("profile", 2)
    try:
        versions.register.refresh()
        versions.register.listed()
        accounts.sample(1, 2)
        accounts.ids_after(residents[0], 2)
    finally:
        store.command("profile", 0)
    seen = [one for one in store["system.profile"].find() if "planSummary" in one]
    store["system.profile"].drop()
    assert len(seen) >= 7
    assert [one["command"] for one in seen if one["planSummary"] == "COLLSCAN"] == []


def test_refusals_of_versions_name_what_they_are_about() -> None:
    assert "QZ" in VersionExists(version="QZ").text("en")
    assert "2026-05-21" in FirstDayTaken(valid_from="2026-05-21").text("zh")
    assert "a" in ApprovedTooLate(valid_from="a", earliest="b").text("zh")
