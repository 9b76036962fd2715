"""Months replayed under another methodology, and what a preview of a draft says of a city.

The clock stands at noon of Wednesday 10 June 2026 in the city, so the last full month is May.
Worked by hand: 5.2 km by bus are 139,880 mg at 26.9 g/km and 156,000 mg at 30.0 g/km.
"""

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from callers import Caller, machine, new_phone, said
from drafts import changed, cleaner_bus, draft, nothing_left_behind, published, rules
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lives import at, city, did

from accounting import accounts, book, clock, jobs, storage, walks
from accounting.clients import Kind
from api import tasks
from footprint import methodology, preview, replay
from footprint.methodology import Methodology
from footprint.months import posted
from footprint.replay import Change, Posted
from points import crediting
from points.crediting import NothingToReverse
from points.restating import worth

pytestmark = pytest.mark.usefixtures("app")

ANNA = "res_anna"
MAY = "2026-05"
DAY, HOUR = timedelta(days=1), timedelta(hours=1)


@pytest.fixture(autouse=True)
def _june() -> Iterator[None]:
    with at("2026-06-10 12:00"), nothing_left_behind():
        yield


@pytest.fixture
def operator(app: Flask) -> Caller:
    return machine(app, Kind.OPERATOR)


def someone() -> str:
    return accounts.by_phone(new_phone())


def under(text: str, who: str = ANNA, month: str = MAY) -> list[Change]:
    return replay.differences(posted(who, month), month, rules(text), worth)


def in_force() -> Methodology:
    return methodology.in_force(date(2026, 5, 1))


def sums(changes: list[Change]) -> tuple[int, int, int]:
    return (
        sum(change.mg for change in changes),
        sum(change.points for change in changes),
        sum(change.activities for change in changes),
    )


# Replaying.


def test_a_bus_ride_under_a_cleaner_bus() -> None:
    ride = did(ANNA, "bus_km", "5.2", "2026-05-20 08:00", minutes=18)
    assert under(cleaner_bus()) == [
        Change(ride.seq or 0, "2026-05-20", "bus_km", "A", True, 16_120, 17, 0)
    ]
    assert under(draft()) == []
    assert under(cleaner_bus(), month="2026-04") == []


def test_a_ride_of_unknown_length_keeps_its_value_a_trip() -> None:
    did(ANNA, "bus_km", 1, "2026-05-20 08:00", trip=True)
    assert under(cleaner_bus()) == []
    # 80 g a trip becomes 90 g: 10,000 mg and 10 points.
    dearer = changed(draft(), "trip_mg = 80000", "trip_mg = 90000")
    assert sums(under(dearer)) == (10_000, 10, 0)


def test_a_cap_that_bites_earlier_leaves_less_for_what_arrived_later() -> None:
    # 40 + 30 km are 1,076 + 807 g; the day cap of 1,600 g leaves 524 g of the second ride.
    did(ANNA, "bus_km", 40, "2026-05-20 18:00", minutes=90)
    did(ANNA, "bus_km", 30, "2026-05-20 08:00", minutes=60)
    lower = changed(draft(), "caps = { day_grams = 1600, day_count = 6 }",
                    "caps = { day_grams = 1200, day_count = 6 }")  # fmt: skip
    # 1,076 g as before, then 124 g instead of 524 g, in the order in which they arrived.
    [change] = under(lower)
    assert (change.mg, change.points) == (-400_000, -400)
    assert change.seq == 2
    # 40 x 30 = 1,200 g (+124), then 400 g (-124).
    assert [change.mg for change in under(cleaner_bus())] == [124_000, -124_000]


def test_a_count_cap_of_a_month_counts_through_the_month() -> None:
    for day in range(1, 10):
        did(ANNA, "car_stop_day", 1, f"2026-05-{day:02d} 08:00", vehicle="Z1")
    assert under(draft()) == []
    # The 9th day was over the cap of 8; under a cap of 3 the 4th to 8th are as well.
    fewer = changed(draft(), "day_count = 1, month_count = 8 }\nmaturity_hours = 72",
                    "day_count = 1, month_count = 3 }\nmaturity_hours = 72")  # fmt: skip
    changes = under(fewer)
    assert [change.day[-1] for change in changes] == ["4", "5", "6", "7", "8"]
    assert sums(changes) == (-5 * 2_396_000, -5 * 2_396, 0)


def test_a_reversal_reopens_room_for_later_arrivals_only() -> None:
    first, second, third = (
        did(ANNA, "bus_km", 40, f"2026-05-20 {hour:02d}:00", minutes=90) for hour in (8, 12, 16)
    )
    assert [one.mg for one in (first, second, third)] == [1_076_000, 524_000, 0]
    crediting.reverse(first, reason="refund", by="op")
    fourth = did(ANNA, "bus_km", 40, "2026-05-20 20:00", minutes=90)
    assert fourth.mg == 1_076_000
    assert under(draft()) == []
    # At 30 g/km: 1,200 and 400; the first taken back leaves room for 1,200, not for the third.
    changes = {change.seq: change.mg for change in under(cleaner_bus())}
    assert changes == {second.seq: -124_000, fourth.seq: 124_000}


def test_trips_of_the_next_month_still_stand_in_the_way() -> None:
    with at("2026-06-01 09:00"):
        did(ANNA, "bus_km", 10, "2026-06-01 00:05", minutes=30)
        late = did(ANNA, "metro_km", 10, "2026-05-31 23:50", minutes=30)
    assert late.status == "rejected"
    assert under(draft()) == []


def test_a_behaviour_turned_off_loses_everything_and_its_trips_stand_in_nobodys_way() -> None:
    did(ANNA, "bus_km", 10, "2026-05-20 08:00", minutes=30)
    metro = did(ANNA, "metro_km", 10, "2026-05-20 08:10", minutes=30)
    assert metro.reasons == ("overlapping_trip",)
    off = changed(draft(), 'code = "bus_km"', 'code = "bus_km"\nenabled = false')
    # 10 km by bus are lost, and 10 km by metro (467 g) no longer overlap anything.
    assert [(change.behaviour, change.mg, change.activities) for change in under(off)] == [
        ("bus_km", -269_000, -1),
        ("metro_km", 467_000, 1),
    ]


def test_what_no_longer_counts_for_a_bank_moves_to_the_other_cell() -> None:
    did(ANNA, "bus_km", 10, "2026-05-20 08:00", minutes=30)
    health = changed(draft(), 'code = "bus_km"', 'code = "bus_km"\nbank_grade = false')
    changes = under(health)
    assert [(one.bank_grade, one.mg, one.points, one.activities) for one in changes] == [
        (False, 269_000, 269, 1),
        (True, -269_000, -269, -1),
    ]


def test_the_highest_step_total_is_the_highest_again() -> None:
    for steps in (5_000, 12_000, 9_000):
        did(ANNA, "walk_steps", steps, "2026-05-20 21:00", evidence="B")
    assert under(draft()) == []
    # 296,000/18,000 mg a step doubled: 5,000 steps 82,222 -> 164,444; 12,000 steps 197,333 ->
    # 296,000 (the day cap); what the second adds to the first 115,111 -> 131,556.
    double = changed(draft(), "mg_num = 296000", "mg_num = 592000")
    assert [change.mg for change in under(double)] == [82_222, 16_445]


def bill_entry(seq: int, **refs: Any) -> Posted:
    """60 kWh saved by a household of two: 60 / 2 x 497,400 = 14,922,000 mg each."""
    return Posted(seq, "2026-05-31", date(2026, 6, 2), {
        "activity": None, "bill": "bil_1", "behaviour": "electricity_saving",
        "methodology": "QZ-RES-2026.1", "evidence": "A", "start": city("2026-05-01 00:00"),
        "end": city("2026-06-01 00:00"), "line": None, "quantity": "240", "status": "credited",
        "reasons": [], "mg": 14_922_000, "counted": 1, "gross_mg": 14_922_000, "overall": False,
        "bank_grade": True, "best": None, "saving": "60", "shares": 2, "points": 14_922,
        "rule": "QZ-PTS-2026.1", "funder": "city",
    } | refs)  # fmt: skip


def test_a_bill_is_worth_its_saving_at_the_new_factor() -> None:
    entries = [bill_entry(1)]
    assert replay.differences(entries, MAY, in_force(), worth) == []
    formula = "max(0,min(base-actual,0.3*base))*EF_grid/members"
    factor = f'formula_text = "{formula}"\nfactor = {{ id = "electricity/CN-ZJ/2023", mg_num = '
    green = changed(draft(), f"{factor}497400", f"{factor}500001")
    # 30 kWh x 500,001 mg = 15,000,030 mg, 15,000 points.
    [change] = replay.differences(entries, MAY, rules(green), worth)
    assert (change.mg, change.points, change.activities) == (78_030, 78, 0)
    corrected = bill_entry(2, status="reversed", mg=-14_922_000, counted=-1, points=-14_922,
                           gross_mg=-14_922_000, reverses=1)  # fmt: skip
    assert replay.differences([*entries, corrected], MAY, rules(green), worth) == []


def test_an_upheld_appeal_stands_under_any_draft_and_credits_once() -> None:
    did(ANNA, "bus_km", 10, "2026-05-20 08:00", minutes=30)
    rejected = did(ANNA, "metro_km", 10, "2026-05-20 08:10", minutes=30)
    crediting.credit(
        rejected,
        f"appeal:{rejected.id}",
        crediting.Overruling("apl_1", "op", ("overlapping_trip",), None),
    )
    assert under(draft()) == []
    off = changed(draft(), 'code = "bus_km"', 'code = "bus_km"\nenabled = false')
    assert [change.behaviour for change in under(off)] == ["bus_km"]


def test_points_given_beyond_the_grams_stay() -> None:
    doubled = bill_entry(1, points=2 * 14_922)
    assert replay.differences([doubled], MAY, in_force(), worth) == []


MINUTES = st.integers(0, 24 * 60 - 1)
TRIPS = st.tuples(
    st.sampled_from(["bus_km", "metro_km", "bike_km"]),
    st.decimals("0.5", 14, places=1),
    st.sampled_from([None, 40, 90]),
)
OTHERS = st.sampled_from(
    [
        ("walk_steps", Decimal(4_000), None),
        ("walk_steps", Decimal(15_000), None),
        ("walk_steps", Decimal(30_000), None),
        ("car_stop_day", Decimal(1), None),
        ("mobile_pay_offline", Decimal(7), None),
        ("recycle_kg", Decimal("12.5"), None),
        ("online_transfer", Decimal(1), None),
    ]
)
ATTRIBUTES: dict[str, dict[str, Any]] = {
    "car_stop_day": {"vehicle": "Z1"},
    "mobile_pay_offline": {"amount_fen": 500},
}
# What was done, on one of few days so that it meets caps and trips, and how late it was reported;
# last whether it is taken back in the end, and how long after that.
LIFE = st.tuples(
    TRIPS | OTHERS,
    st.sampled_from([1, 2, 30, 31]),
    MINUTES,
    st.sampled_from([0, 0, 1, 4, 9]),
    st.sampled_from([None, None, None, 0, 3]),
)
_nobody = iter(range(10**9))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(LIFE, min_size=1, max_size=14))
def test_a_month_replayed_under_its_own_version_is_what_the_book_says(life: list[Any]) -> None:
    who = f"res_{next(_nobody)}"
    steps: list[tuple[datetime, int, Any]] = []
    for number, ((behaviour, quantity, minutes), day, minute, late, undone) in enumerate(life):
        start = city(f"2026-05-{day:02d} 00:00") + timedelta(minutes=minute)
        arrives = start + late * DAY + 3 * HOUR
        steps.append((arrives, number, (behaviour, quantity, start, minutes)))
        if undone is not None:
            steps.append((arrives + undone * DAY, number, None))
    done: dict[int, Any] = {}
    for instant, number, what in sorted(steps, key=lambda step: (step[0], step[2] is None)):
        with at(instant):
            if what is None:
                try:
                    crediting.reverse(done[number], reason="refund", by="op")
                except NothingToReverse:
                    continue
            else:
                behaviour, quantity, start, minutes = what
                attributes = ATTRIBUTES.get(behaviour, {})
                done[number] = did(who, behaviour, quantity, start, minutes=minutes, **attributes)
    entries = posted(who, MAY)
    assert replay.differences(entries, MAY, in_force(), worth) == []
    again = replay._replayed(entries, MAY, in_force(), worth)
    total = sum(entry.refs["mg"] for entry in entries)
    assert sum(one.mg for one in again.values()) == total == lifetime_mg(who)


def lifetime_mg(who: str) -> int:
    return int(book.head(who).after.get("lifetime_mg", 0))


# A preview of a city.


def preview_of(text: str, operator: Caller, **options: Any) -> Any:
    answer = operator.post("/v1/operator/methodology/preview", {"draft": text, **options})
    assert answer.status_code == 200, answer.text
    return answer.get_json()


def test_who_gains_and_who_loses_by_a_cleaner_bus(operator: Caller) -> None:
    rider, commuter, walker, idle = (someone() for _ in range(4))
    did(rider, "bus_km", "5.2", "2026-05-20 08:00", minutes=18)
    did(commuter, "bus_km", 10, "2026-05-04 08:00", minutes=30)
    did(commuter, "bus_km", 10, "2026-05-05 08:00", minutes=30)
    did(commuter, "bus_km", 20, "2026-06-01 08:00", minutes=60)  # Not in May.
    did(walker, "walk_steps", 9_000, "2026-05-20 21:00", evidence="B")
    text = cleaner_bus()
    # The rider gains 16.12 g and 17 points; the commuter 2 x 31 g and 62 points.
    assert preview_of(text, operator) == {
        "methodology_version": "QZ-RES-2026.2",
        "compared_with": ["QZ-RES-2026.1"],
        "month": MAY,
        "residents": 4,
        "active": 3,
        "gain": {
            "residents": 2,
            "reduction_g": Decimal("78.12"),
            "median_g": Decimal("16.12"),
            "extremes": [
                {"resident_id": commuter, "reduction_g": 62},
                {"resident_id": rider, "reduction_g": Decimal("16.12")},
            ],
        },
        "lose": {"residents": 0, "reduction_g": 0, "median_g": 0, "extremes": []},
        "unchanged": 1,
        "reduction_g": Decimal("78.12"),
        "by_behaviour": [
            {
                "behaviour": "bus_km",
                "residents": 2,
                "reduction_g": Decimal("78.12"),
                "points": 79,
            }
        ],
        "points": 79,
        # 200 fen per 1,000 points: 15.8 fen, rounded down.
        "by_funder": [{"funder_id": "city", "points": 79, "fen": 15}],
        "grades": {"unrated": {"unrated": 3}},
        "grades_changed": 0,
    }
    assert idle not in str(preview_of(text, operator))
    loses = preview_of(cleaner_bus(mg=20_000), operator)["lose"]
    # -6.9 g a km: 35.88 g and 138 g.
    assert (loses["residents"], loses["reduction_g"]) == (2, Decimal("-173.88"))
    assert [one["resident_id"] for one in loses["extremes"]] == [commuter, rider]
    assert preview_of(text, operator, month="2026-06")["reduction_g"] == 62


def test_a_preview_changes_nothing(operator: Caller) -> None:
    rider = someone()
    did(rider, "bus_km", "5.2", "2026-05-20 08:00", minutes=18)
    before = book.head(rider)
    preview_of(cleaner_bus(), operator)
    assert book.head(rider) == before
    assert [version.version for version in methodology.known()] == ["QZ-RES-2026.1"]
    assert storage.database().methodology_versions.count_documents({}) == 0


def test_a_grade_that_would_change_shows_in_the_matrix(operator: Caller) -> None:
    greta = someone()
    # March to May: 16 days of 8 kWh charged (3,808 g each: 60.928 kg in all, 40 % rule below),
    # 20 kg recycled in May (26.9 kg) and 10 carpools of 30 km (2.19 kg each: 21.9 kg).
    for month, days in (("2026-03", 2), ("2026-04", 2), ("2026-05", 4)):
        for day in range(1, days + 1):
            did(greta, "ev_charge_kwh", 8, f"{month}-{day:02d} 22:00", vehicle="Z1")
    for day in range(1, 11):
        did(greta, "carpool_km", 30, f"2026-05-{day:02d} 07:00", minutes=40, order=f"o{day}")
    did(greta, "recycle_kg", 20, "2026-05-09 10:00")
    # Raw 30.464 + 21.9 + 26.9 = 79.264; 40 % = 31.7056 caps none: 79.264 kg, mid.
    assert preview_of(draft(), operator)["grades"] == {"mid": {"mid": 1}}
    # Recycling at 1 mg a kg: raw 52.364, 40 % = 20.9456 caps both others: 41.891 kg, light.
    poorer = changed(draft(), "mg_num = 1345000", "mg_num = 1")
    found = preview_of(poorer, operator)
    assert (found["grades"], found["grades_changed"]) == ({"mid": {"light": 1}}, 1)
    # Under a draft by which May's activities count for no bank, two active months are too few.
    health = draft()
    for code in ("ev_charge_kwh", "carpool_km", "recycle_kg"):
        health = changed(health, f'code = "{code}"', f'code = "{code}"\nbank_grade = false')
    assert preview_of(health, operator)["grades"] == {"mid": {"unrated": 1}}


def test_a_sample_is_the_same_for_the_same_seed_and_no_larger_than_asked(
    operator: Caller,
) -> None:
    people = {someone() for _ in range(12)}
    people.add(accounts.by_firebase("someone"))
    for who in people:
        did(who, "bus_km", 1, "2026-05-20 08:00", minutes=5)
    samples = [accounts.sample(seed, 5) for seed in range(40)]
    assert all(len(set(sample)) == 5 for sample in samples)
    assert samples[7] == accounts.sample(7, 5)
    assert {who for sample in samples for who in sample} == people
    assert set(accounts.sample(1, 500)) == people
    found = preview_of(cleaner_bus(), operator, sample={"size": 5, "seed": 7})
    assert (found["residents"], found["gain"]["residents"]) == (5, 5)
    shown = {one["resident_id"] for one in found["gain"]["extremes"]}
    assert shown == set(samples[7])


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"sample": {"size": 501}}, "/sample/size"),
        ({"sample": {"size": 0}}, "/sample/size"),
        ({"sample": {"seed": -1}}, "/sample/seed"),
        ({"sample": {}, "whole": True}, "/whole"),
        ({"month": "2026-13"}, "/month"),
        ({"month": "2026-07"}, "/month"),
        ({"draft": ""}, "/draft"),
        ({"valid_from": "2026-07-01"}, "/valid_from"),
    ],
)
def test_a_preview_that_makes_no_sense_is_refused(
    operator: Caller, change: dict[str, Any], pointer: str
) -> None:
    answer = operator.post("/v1/operator/methodology/preview", {"draft": draft()} | change)
    assert said(answer) == (422, "validation_failed")
    assert answer.get_json()["errors"][0]["pointer"] == pointer


def city_of_riders(count: int) -> list[str]:
    riders = [someone() for _ in range(count)]
    for number, who in enumerate(riders, start=1):
        did(who, "bus_km", number, "2026-05-20 08:00", minutes=60)
    return riders


@pytest.mark.parametrize("by", ["preview", "jobs"])
def test_the_whole_city_is_a_job_with_the_report_of_a_sample_of_everybody(
    operator: Caller, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walks, "STRETCH", 2)
    city_of_riders(5)
    text = cleaner_bus()
    if by == "preview":
        path, body = "/v1/operator/methodology/preview", {"draft": text, "whole": True}
    else:
        path, body = "/v1/operator/jobs", {"draft": text, "kind": "preview"}
    answer = operator.post(path, body)
    assert answer.status_code == 202
    job_id = answer.get_json()["job_id"]
    assert answer.headers["Location"] == f"/v1/jobs/{job_id}"
    result = f"/v1/operator/methodology/previews/{job_id}"
    waiting = operator.get(result).get_json()
    assert waiting == {"job_id": job_id, "state": "queued", "report": None}
    tasks.run_job(job_id)
    job = operator.get(f"/v1/jobs/{job_id}").get_json()
    assert (job["state"], job["done"], job["total"], job["progress"]) == ("done", 5, 5, 100)
    found = operator.get(result).get_json()
    assert found["report"] == preview_of(text, operator, sample={"size": 500})
    # 1 + 2 + 3 + 4 + 5 km at 3.1 g more.
    assert found["report"]["reduction_g"] == Decimal("46.5")
    tasks.run_job(job_id)
    assert operator.get(result).get_json() == found


def test_a_preview_that_was_killed_goes_on_and_counts_nobody_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(walks, "STRETCH", 2)
    riders = city_of_riders(5)
    job = preview.queue("op", cleaner_bus(), MAY)
    real, calls = preview._keep, iter(range(10))

    def dies_the_second_time(job_id: str, rows: list[preview.Row]) -> None:
        real(job_id, rows)
        if next(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(preview, "_keep", dies_the_second_time)
    with pytest.raises(KeyboardInterrupt):
        preview.run(job.id, worth)
    halfway = jobs.get(job.id)
    assert halfway is not None
    assert (halfway.state, halfway.done, halfway.progress) == ("running", 2, 40)
    assert preview.run(job.id, worth) is None, "the dead worker's lease"
    with clock.travel(jobs.LEASE):
        ended = preview.run(job.id, worth)
    assert ended is not None
    assert (ended.state, ended.done) == ("done", 5)
    report = preview.result(job.id)
    assert report is not None
    assert (report["residents"], report["active"], report["mg"]) == (5, 5, 46_500)
    assert report["gain"]["extremes"][0] == {"resident_id": riders[-1], "mg": 15_500}


def test_a_preview_says_which_versions_it_compares_with(operator: Caller) -> None:
    with at("2026-05-13 12:00"):
        published(cleaner_bus())  # From Friday 15 May.
    rider = someone()
    did(rider, "bus_km", 10, "2026-05-14 08:00", minutes=30)
    did(rider, "bus_km", 10, "2026-05-15 08:00", minutes=30)
    found = preview_of(cleaner_bus("QZ-RES-2026.3", 31_000), operator)
    assert found["compared_with"] == ["QZ-RES-2026.1", "QZ-RES-2026.2"]
    # 10 km at 4.1 g and 10 km at 1.0 g.
    assert found["reduction_g"] == 51
    assert preview_of(cleaner_bus("QZ-RES-2026.3", 31_000), operator, month="2026-06")[
        "compared_with"
    ] == ["QZ-RES-2026.2"]


def test_nobody_but_an_operator_sees_a_preview(operator: Caller) -> None:
    assert operator.get("/v1/operator/methodology/previews/job_nothing").status_code == 404
