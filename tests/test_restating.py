"""A past month brought to another methodology: by adding, once, and at nobody's expense.

The clock stands at noon of Wednesday 10 June 2026 in the city; what is restated is May. By hand:
5.2 km by bus are 139,880 mg and 139 points at 26.9 g/km, 156,000 mg and 156 points at 30.0 g/km,
104,000 mg and 104 points at 20.0 g/km.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest
from callers import Caller, machine, new_phone, resident, said
from drafts import changed, cleaner_bus, draft, nothing_left_behind, published
from faults.crew import KILLED, Crew, Death
from flask import Flask
from lives import at, city, did, spent
from shop import open_shop

import api.app
from accounting import accounts, audit, book, clock, jobs, storage, walks
from accounting.approvals import SecondOperatorNeeded
from accounting.book import Entry
from accounting.clients import Kind
from accounting.errors import AccountBusy, ValidationFailed
from api import tasks
from footprint import bills, households, methodology, replay, summaries, upkeep, versions
from footprint.billing_rules import BillReport
from points import bill_crediting, crediting, milestones, restating, statements
from points.restating import Restatement
from points.wallet import consistent

pytestmark = pytest.mark.usefixtures("app")

MAY, V2, V3 = "2026-05", "QZ-RES-2026.2", "QZ-RES-2026.3"
DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def _june() -> Iterator[None]:
    with at("2026-06-10 12:00"), nothing_left_behind():
        published(cleaner_bus())
        yield


def someone() -> str:
    return accounts.by_phone(new_phone())


def order(version: str = V2, month: str = MAY) -> Restatement:
    """A run two operators agreed on, not begun."""
    asked = restating.ask(version, month, None, "anna", alone=False)
    return restating.approve(asked.id, "bo", alone=False)


def restated(*people: str, version: str = V2) -> list[Entry | None]:
    run = order(version)
    return [restating.restate(who, run) for who in people]


def poorer_bus() -> None:
    """Version 3, 20.0 g/km, in force from next week."""
    day = clock.city_day(clock.now()) + 7 * DAY
    versions.register.publish(cleaner_bus(V3, 20_000), day, "anna", alone=False)
    versions.register.approve(V3, "bo", alone=False)


def lifetime_mg(who: str) -> int:
    return int(book.head(who).after.get("lifetime_mg", 0))


def month_of(who: str) -> list[tuple[str, str, bool, int, int, int]]:
    cells = summaries.between(who, date(2026, 5, 1), date(2026, 5, 31)).cells
    return [
        (cell.day, cell.behaviour, cell.bank_grade, cell.mg, cell.points, cell.count)
        for cell in cells
    ]


def projection(who: str) -> Any:
    months = storage.database().summary_months.find({"account": who}, {"_id": 0}).sort("month", 1)
    return list(months)


def the_books_hold() -> None:
    assert book.verify(checks=[consistent]).problem is None


# One resident.


def test_a_ride_gains_what_the_new_factor_adds() -> None:
    rider = someone()
    ride = did(rider, "bus_km", "5.2", "2026-05-20 08:00", minutes=18)
    [entry] = restated(rider)
    assert entry is not None
    assert (entry.kind, entry.amount("co2e_mg", "reduction")) == ("restate", 16_120)
    assert entry.refs | {"run": "", "by": []} == {
        "run": "",
        "methodology": V2,
        "month": MAY,
        "reason": "methodology_restated",
        "by": [],
        "mg": 16_120,
        "points": 17,
        "waived": 0,
        "changes": [[ride.seq, "2026-05-20", "bus_km", "A", True, 16_120, 17, 0, 0]],
        # The ride's only part: the city's.
        "moves": [[ride.seq, 0, 17]],
    }
    assert entry.refs["by"] == ["anna", "bo"]
    assert entry.key == f"restate:{entry.refs['run']}:{rider}:{MAY}"
    # The ride was over three weeks ago, so the 17 points are mature; they expire with the other.
    balance = statements.balance(rider)
    assert (balance.available, balance.pending, balance.lifetime_earned) == (156, 0, 156)
    assert balance.expiring == (("2028-05-31", 156),)
    assert lifetime_mg(rider) == 156_000
    assert month_of(rider) == [("2026-05-20", "bus_km", True, 156_000, 156, 1)]
    the_books_hold()


def test_the_activity_keeps_its_version_and_its_entry() -> None:
    rider = someone()
    ride = did(rider, "bus_km", "5.2", "2026-05-20 08:00", minutes=18)
    before = book.by_key(rider, f"activity:{ride.id}")
    restated(rider)
    assert book.by_key(rider, f"activity:{ride.id}") == before
    assert (ride.mg, ride.methodology) == (139_880, "QZ-RES-2026.1")


def test_points_of_a_restated_ride_mature_with_it() -> None:
    rider = someone()
    with at("2026-06-01 00:10"):
        did(rider, "bus_km", "5.2", "2026-05-31 23:00", minutes=18)
        restated(rider)
        balance = statements.balance(rider)
        assert (balance.available, balance.pending) == (0, 156)
    with at("2026-06-02 23:18"):
        assert statements.balance(rider).available == 156


def test_a_run_twice_and_two_runs_of_one_version_change_a_month_once() -> None:
    rider = someone()
    did(rider, "bus_km", "5.2", "2026-05-20 08:00", minutes=18)
    run = order()
    first = restating.restate(rider, run)
    assert restating.restate(rider, run) == first
    assert restated(rider) == [None]
    assert lifetime_mg(rider) == 156_000


def test_who_did_nothing_or_nothing_that_changes_gets_no_entry() -> None:
    idle, walker = someone(), someone()
    did(walker, "walk_steps", 9_000, "2026-05-20 21:00", evidence="B")
    assert restated(idle, walker) == [None, None]


def test_less_takes_points_back_from_pending_and_available_of_that_funder() -> None:
    poorer_bus()
    rider = someone()
    did(rider, "bus_km", "5.2", "2026-05-20 08:00", minutes=18)
    [entry] = restated(rider, version=V3)
    assert entry is not None
    # 139,880 -> 104,000 mg; 139 -> 104 points.
    assert (entry.refs["mg"], entry.refs["points"], entry.refs["waived"]) == (-35_880, -35, 0)
    balance = statements.balance(rider)
    assert (balance.available, balance.owed, balance.lifetime_earned) == (104, 0, 104)
    assert month_of(rider) == [("2026-05-20", "bus_km", True, 104_000, 104, 1)]
    the_books_hold()


def test_nobody_loses_points_already_spent() -> None:
    poorer_bus()
    rider = someone()
    did(rider, "bus_km", "5.2", "2026-05-20 08:00", minutes=18)
    spent(rider, 120)
    [entry] = restated(rider, version=V3)
    assert entry is not None
    # Of 35 points only the 19 that are left are taken; 16 are waived, and nothing is owed.
    assert (entry.refs["mg"], entry.refs["points"], entry.refs["waived"]) == (-35_880, -19, 16)
    balance = statements.balance(rider)
    assert (balance.available, balance.owed, balance.spent) == (0, 0, 120)
    assert lifetime_mg(rider) == 104_000
    assert month_of(rider) == [("2026-05-20", "bus_km", True, 104_000, 120, 1)]
    # What was waived stays waived, whatever is earned later.
    did(rider, "bike_km", 10, "2026-06-09 08:00", minutes=40)
    assert restated(rider, version=V3) == [None]
    assert statements.balance(rider).available == 487
    the_books_hold()


def test_a_month_is_weighed_as_a_whole() -> None:
    text = changed(cleaner_bus(V3), "mg_num = 1345000", "mg_num = 1335000")
    versions.register.publish(text, clock.city_day(clock.now()) + 7 * DAY, "anna", alone=False)
    versions.register.approve(V3, "bo", alone=False)
    both = someone()
    did(both, "recycle_kg", 10, "2026-05-19 08:00")
    did(both, "bus_km", 30, "2026-05-20 08:00", minutes=60)
    spent(both, 13_450 + 807)
    [entry] = restated(both, version=V3)
    assert entry is not None
    # 10 kg lose 100 points and nothing is left, but 30 km gain 93: so 93 are given and taken.
    assert [(one[2], one[6], one[8]) for one in entry.refs["changes"]] == [
        ("recycle_kg", -93, 7),
        ("bus_km", 93, 0),
    ]
    assert statements.balance(both).available == 0
    the_books_hold()


def test_what_moved_out_of_the_bank_grade_moves_in_the_summary() -> None:
    text = changed(draft(V3), 'code = "bus_km"', 'code = "bus_km"\nbank_grade = false')
    versions.register.publish(text, clock.city_day(clock.now()) + 7 * DAY, "anna", alone=False)
    versions.register.approve(V3, "bo", alone=False)
    rider = someone()
    did(rider, "bus_km", "5.2", "2026-05-20 08:00", minutes=18)
    [entry] = restated(rider, version=V3)
    assert entry is not None
    assert (entry.refs["mg"], entry.refs["points"]) == (0, 0)
    assert month_of(rider) == [
        ("2026-05-20", "bus_km", False, 139_880, 139, 1),
    ]
    assert lifetime_mg(rider) == 139_880


def test_a_kilogram_reached_by_a_restatement_is_told() -> None:
    rider = someone()
    did(rider, "bus_km", 36, "2026-05-20 08:00", minutes=60)
    assert milestones.of_resident(rider)[0] == []
    # 36 x 26.9 = 968.4 g; 36 x 30 = 1,080 g.
    restated(rider)
    assert [one.milestone for one in milestones.of_resident(rider)[0]] == ["lifetime_1_kg"]


def test_a_ride_that_arrives_after_a_restatement_is_brought_along_by_the_next() -> None:
    rider = someone()
    did(rider, "bus_km", "5.2", "2026-05-20 08:00", minutes=18)
    restated(rider)
    late = did(rider, "bus_km", "5.2", "2026-05-21 08:00", minutes=18)
    assert late.mg == 139_880
    [entry] = restated(rider)
    assert entry is not None
    assert [row[0] for row in entry.refs["changes"]] == [late.seq]
    assert lifetime_mg(rider) == 312_000


@pytest.mark.parametrize("version", [V2, V3])
def test_taking_a_restated_ride_back_takes_back_what_was_restated(version: str) -> None:
    poorer_bus()
    rider = someone()
    ride = did(rider, "bus_km", "5.2", "2026-05-20 08:00", minutes=18)
    restated(rider, version=version)
    crediting.reverse(ride, reason="refund", by="op")
    balance = statements.balance(rider)
    assert (balance.available, balance.owed, balance.lifetime_earned) == (0, 0, 0)
    assert lifetime_mg(rider) == 0
    assert month_of(rider) == []
    assert restated(rider, version=version) == [None]
    the_books_hold()


def test_what_was_waived_stays_with_who_spent_it_when_the_ride_is_taken_back() -> None:
    poorer_bus()
    rider = someone()
    ride = did(rider, "bus_km", "5.2", "2026-05-20 08:00", minutes=18)
    spent(rider, 120)
    restated(rider, version=V3)
    crediting.reverse(ride, reason="refund", by="op")
    # 139 earned, 19 taken by the restatement; the other 120 are owed now, by a reversal's rules.
    assert statements.balance(rider).owed == 120
    assert month_of(rider) == []
    assert restated(rider, version=V3) == [None]
    the_books_hold()


def test_a_corrected_bill_takes_back_what_was_restated_of_it() -> None:
    formula = 'formula_text = "max(0,min(base-actual,0.3*base))*EF_grid/members"\n'
    factor = f'{formula}factor = {{ id = "electricity/CN-ZJ/2023", mg_num = 497400'
    # Another value is another factor: the registry's own has only one.
    other = f'{formula}factor = {{ id = "{V3}/electricity_saving", mg_num = 500000'
    text = changed(draft(V3), factor, other)
    versions.register.publish(text, clock.city_day(clock.now()) + 7 * DAY, "anna", alone=False)
    versions.register.approve(V3, "bo", alone=False)
    anna = someone()
    households.join(anna, "electricity", "3300-0001", 2)

    def send(month: str, used: int, event: str, corrects: str | None = None) -> bills.Bill:
        days = clock.first_day(month), clock.last_day(month)
        what = BillReport("electricity", "3300-0001", *days, Decimal(used), corrects=corrects)
        return bill_crediting.report(what, source="grid", event_id=event)[0]

    for ago in range(12, 0, -1):
        month = clock.add_months(MAY, -ago)
        send(month, 300, month)
    send(MAY, 240, "may")
    # 60 kWh saved, two members: 30 x 497,400 = 14,922,000 mg each; at 500,000: 15,000,000.
    assert lifetime_mg(anna) == 14_922_000
    restated(anna, version=V3)
    assert (lifetime_mg(anna), statements.balance(anna).available) == (15_000_000, 15_000)
    send(MAY, 300, "may-2", corrects="may")
    assert (lifetime_mg(anna), statements.balance(anna).available) == (0, 0)
    assert month_of(anna) == []
    the_books_hold()


def test_a_rebuilt_projection_is_identical() -> None:
    poorer_bus()
    rider = someone()
    rides = [
        did(rider, "bus_km", 40, f"2026-05-{day} {hour}:00", minutes=90)
        for day in (20, 21)
        for hour in ("08", "12", "16")
    ]
    restated(rider)
    crediting.reverse(rides[0], reason="refund", by="op")
    restated(rider, version=V3)
    summaries.catch_up(rider)
    before = projection(rider)
    assert before
    summaries.rebuild(rider)
    assert projection(rider) == before
    mg = sum(cell[3] for cell in month_of(rider))
    assert (
        mg
        == lifetime_mg(rider)
        == sum(entry.amount("co2e_mg", "reduction") for entry in book.entries(rider))
    )
    the_books_hold()


# At the same time.


def test_a_ride_that_arrives_while_restating_is_judged_and_restated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rider = someone()
    did(rider, "bus_km", "5.2", "2026-05-20 08:00", minutes=18)
    real, calls = restating._plan, []

    def then_a_ride_arrives(*args: Any) -> Any:
        plan = real(*args)
        calls.append(plan.seq)
        if len(calls) == 1:
            did(rider, "bus_km", "5.2", "2026-05-21 08:00", minutes=18)
        return plan

    monkeypatch.setattr(restating, "_plan", then_a_ride_arrives)
    [entry] = restated(rider)
    assert entry is not None
    assert calls == [1, 2]
    assert [row[0] for row in entry.refs["changes"]] == [1, 2]
    assert lifetime_mg(rider) == 312_000
    the_books_hold()


def test_eight_threads_restate_a_month_once() -> None:
    rider, run = someone(), order()
    did(rider, "bus_km", "5.2", "2026-05-20 08:00", minutes=18)
    threads = [threading.Thread(target=restating.restate, args=(rider, run)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [entry.kind for entry in book.entries(rider)] == ["earn", "restate"]
    assert lifetime_mg(rider) == 156_000


# A run over the city.


def riders(count: int) -> list[str]:
    people = [someone() for _ in range(count)]
    for number, who in enumerate(people, start=1):
        did(who, "bus_km", number, "2026-05-20 08:00", minutes=60)
    return people


def kinds(people: list[str]) -> list[list[str]]:
    return [[entry.kind for entry in book.entries(who)] for who in people]


DEATHS = [
    Death("accounting.walks:_place", "after"),
    Death("points.restating:_decide", "after"),
    Death("points.restating:restate", "before", 2),
    Death("points.restating:restate", "after", 2),
    Death("points.milestones:record", "before", 3),
    Death("accounting.walks:_move", "before"),
    Death("accounting.walks:_move", "after"),
    Death("accounting.jobs:advance", "after"),
    Death("accounting.jobs:finish", "before"),
]


@pytest.mark.parametrize("death", DEATHS, ids=str)
def test_a_run_killed_at_any_step_is_finished_and_adds_nothing_twice(
    crew: Crew, death: Death
) -> None:
    people, run = riders(4), order()
    assert crew.run("run_restatement", death, job_id=run.id) == KILLED
    crew.ahead += 2 * jobs.LEASE
    assert crew.run("run_restatement", job_id=run.id) == {"value": "done"}
    assert kinds(people) == [["earn", "restate"]] * 4
    # 1 + 2 + 3 + 4 km at 3.1 g more; 26 + 53 + 80 + 107 points became 30 + 60 + 90 + 120.
    assert restating.totals(run.id) == {
        "residents": 4,
        "restated": 4,
        "mg_more": 31_000,
        "mg_less": 0,
        "points_given": 34,
        "points_taken": 0,
        "points_waived": 0,
    }
    the_books_hold()


def test_a_worker_restates_by_a_version_it_has_not_heard_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    [who] = riders(1)
    run = order()
    monkeypatch.setattr(versions.register, "_known", (time.monotonic(), ()))
    assert [one.version for one in methodology.known()] == ["QZ-RES-2026.1"]
    assert restating.run(run.id) is not None
    assert kinds([who]) == [["earn", "restate"]]
    monkeypatch.setattr(versions.register, "_known", (time.monotonic(), ()))
    assert restating.ask(V2, MAY, None, "anna", alone=False)


def test_a_busy_account_stops_a_try_and_the_next_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walks, "STRETCH", 1)
    people, run = riders(3), order()
    real = restating.restate

    def busy(who: str, order: Restatement) -> Any:
        if who == people[1]:
            raise AccountBusy(retry_after=1)
        return real(who, order)

    with monkeypatch.context() as patched:
        patched.setattr(restating, "restate", busy)
        assert restating.run(run.id) is None
    halfway = jobs.get(run.id)
    assert halfway is not None
    assert (halfway.state, halfway.done) == ("running", 1)
    with clock.travel(jobs.LEASE):
        assert jobs.waiting(clock.now()) == [run.id]
        ended = restating.run(run.id)
    assert ended is not None
    assert (ended.state, ended.done) == ("done", 3)
    assert kinds(people) == [["earn", "restate"]] * 3


# Over HTTP.


@pytest.fixture
def anna(app: Flask) -> Caller:
    return machine(app, Kind.OPERATOR)


@pytest.fixture
def bo(app: Flask) -> Caller:
    return machine(app, Kind.OPERATOR)


def ask(operator: Caller, **changes: Any) -> Any:
    body = {"kind": "restate", "methodology": V2, "month": MAY} | changes
    return operator.post("/v1/operator/jobs", body)


def test_a_restatement_begins_when_a_second_operator_approves(
    app: Flask, anna: Caller, bo: Caller
) -> None:
    rider = resident(app)
    did(rider.id, "bus_km", "5.2", "2026-05-20 08:00", minutes=18)
    answer = ask(anna, reason="新的公交排放因子")
    assert answer.status_code == 202
    made = answer.get_json()
    job_id = made["job_id"]
    assert made == {"job_id": job_id, "needs_approval": True}
    assert answer.headers["Location"] == f"/v1/jobs/{job_id}"
    place = f"/v1/operator/methodology/restatements/{job_id}"
    assert anna.get(place).get_json()["state"] == "needs_approval"
    # Nobody works on it, and no sweep finds it.
    tasks.run_job(job_id)
    assert job_id not in jobs.waiting(clock.now() + 365 * DAY)
    assert anna.get(f"/v1/jobs/{job_id}").get_json()["state"] == "queued"
    approve = f"/v1/operator/jobs/{job_id}/approve"
    assert said(anna.post(approve)) == (403, "second_operator_needed")
    assert bo.post(approve).get_json() == {"job_id": job_id, "needs_approval": False}
    tasks.run_job(job_id)
    assert anna.get(place).get_json() == {
        "job_id": job_id,
        "state": "done",
        "methodology": V2,
        "month": MAY,
        "reason": "新的公交排放因子",
        "asked_by": anna.id,
        "approved_by": bo.id,
        "residents": 1,
        "restated": 1,
        "reduction_more_g": Decimal("16.12"),
        "reduction_less_g": 0,
        "points_given": 17,
        "points_taken": 0,
        "points_waived": 0,
    }
    # Approving once more begins nothing again.
    assert bo.post(approve).status_code == 202
    tasks.run_job(job_id)
    [entry, earned] = rider.get("/v1/me/points/entries").get_json()["items"]
    assert (entry["kind"], entry["points"], entry["available_after"]) == ("restate", 17, 156)
    assert (entry["reason"], earned["kind"]) == ("新的公交排放因子", "earn")
    assert (
        rider.get("/v1/me/summary?from=2026-05-01&to=2026-05-31").get_json()["reduction_g"] == 156
    )
    found = {(row.actor, row.action) for row in audit.AuditDocument.objects(subject=job_id)}
    assert found == {(anna.id, "restatement asked for"), (bo.id, "restatement approved")}


def test_in_the_demo_one_operator_restates_alone(app: Flask, tmp_path: Any) -> None:
    demo = api.app.create_app(replace(app.extensions["config"], demo=True, data_dir=tmp_path))
    operator = machine(demo, Kind.OPERATOR)
    [who] = riders(1)
    made = ask(operator).get_json()
    assert made["needs_approval"] is False
    tasks.run_job(made["job_id"])
    assert kinds([who]) == [["earn", "restate"]]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"month": "2026-06"}, "/month"),
        ({"month": "2027-01"}, "/month"),
        ({"month": "2026-5"}, "/month"),
        ({"methodology": "QZ-RES-2099.1"}, "/methodology"),
        ({"kind": "regroup"}, "/kind"),
        ({"draft": "x"}, "/draft"),
        ({"kind": "preview"}, "/draft"),
        ({"kind": "projections"}, "/methodology"),
    ],
    ids=str,
)
def test_a_job_that_makes_no_sense_is_refused(
    anna: Caller, change: dict[str, Any], pointer: str
) -> None:
    answer = ask(anna, **change)
    assert said(answer) == (422, "validation_failed")
    assert pointer in [error["pointer"] for error in answer.get_json()["errors"]]


def test_a_draft_restates_nothing() -> None:
    versions.register.publish(
        cleaner_bus(V3, 31_000), clock.city_day(clock.now()) + 9 * DAY, "anna", alone=False
    )
    with pytest.raises(ValidationFailed, match="There is no such version"):
        restating.ask(V3, MAY, None, "anna", alone=False)


def test_one_operator_alone_restates_nothing() -> None:
    run = restating.ask(V2, MAY, None, "anna", alone=False)
    with pytest.raises(SecondOperatorNeeded):
        restating.approve(run.id, "anna", alone=False)


def test_projections_are_brought_up_to_the_heads_of_everybody(anna: Caller) -> None:
    people = riders(3)
    made = anna.post("/v1/operator/jobs", {"kind": "projections"}).get_json()
    assert storage.database().summary_cursors.count_documents({}) == 0
    tasks.run_job(made["job_id"])
    cursors = storage.database().summary_cursors.find({})
    assert {row["_id"]: row["seq"] for row in cursors} == dict.fromkeys(people, 1)
    assert anna.get(f"/v1/jobs/{made['job_id']}").get_json()["state"] == "done"


def test_approving_what_is_not_a_restatement_is_not_found(anna: Caller) -> None:
    job = upkeep.queue("op")
    assert anna.post(f"/v1/operator/jobs/{job.id}/approve").status_code == 404
    assert anna.get(f"/v1/operator/methodology/restatements/{job.id}").status_code == 404


def test_a_spent_voucher_and_a_restatement_leave_the_shop_alone(app: Flask) -> None:
    poorer_bus()
    rider = resident(app)
    shop = open_shop(app)
    for day in range(10, 20):
        did(rider.id, "bus_km", 40, f"2026-05-{day} 08:00", minutes=90)
    reward = shop.offer()
    assert rider.post("/v1/redemptions", {"reward_id": reward}, key="k1").status_code == 201
    restated(rider.id, version=V3)
    # 10 x 1,076 points, 500 spent; 10 x 276 fewer at 20 g/km.
    assert rider.get("/v1/me/points").get_json()["available"] == 10_760 - 500 - 2_760
    the_books_hold()


def test_replaying_a_restated_month_under_its_version_finds_nothing_to_add() -> None:
    rider = someone()
    for hour in (8, 12, 16):
        did(rider, "bus_km", 40, city(f"2026-05-20 {hour:02d}:00"), minutes=90)
    restated(rider)
    entries = restating.posted(rider, MAY)
    assert replay.differences(entries, MAY, order().rules, restating.worth) == []
