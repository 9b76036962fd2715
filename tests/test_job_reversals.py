"""Taking a whole file back: what it brought first and nothing else, whatever runs at the same time.

Worked by hand: 8 km on the bus avoid 215.2 g; April's bill of `homes` credits 9,948 g a member.
"""

import json
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from callers import Caller, machine, partner, resident, said
from faults.crew import KILLED, Crew, Death
from flask import Flask
from homes import NOW, live_in, points_of

from accounting import audit, book, clock, events, jobs, links, subscriptions, walks
from accounting.clients import Kind
from accounting.events import Type
from accounting.jobs import Job
from api import feed_rows, tasks
from footprint import activities, bills
from integrations import imports, reversals
from integrations.imports import RowResult
from points import batches

NDJSON = "application/x-ndjson"
CARD = "card-1"


@pytest.fixture(autouse=True)
def _may(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Nobody listens to the queue here: the sweep's way is what is tested.
    monkeypatch.setattr(tasks, "nudge", lambda *_: None)
    with clock.travel(NOW - clock.now()):
        yield


@pytest.fixture
def me(app: Flask) -> Caller:
    return resident(app)


@pytest.fixture
def feeder(app: Flask) -> Caller:
    return partner(app, carriers=["electricity"])


@pytest.fixture
def card(me: Caller, feeder: Caller) -> str:
    links.link(me.id, feeder.id, CARD)
    return CARD


def ride(number: int, km: object = 8) -> dict[str, Any]:
    """One ride a day, oldest first, so that no cap of a day bites."""
    day = clock.city_day(NOW) - timedelta(days=2 + number)
    return {
        "external_id": CARD,
        "behaviour": "bus_km",
        "quantity": km,
        "occurred_at": f"{day}T08:00:00+08:00",
        "source_event_id": f"tap-{number}",
    }


def month(name: str, used: int, **changed: Any) -> dict[str, Any]:
    return {
        "carrier": "electricity",
        "account_no": "3300-0001",
        "period_start": clock.first_day(name).isoformat(),
        "period_end": clock.last_day(name).isoformat(),
        "quantity": used,
        "estimated": False,
        "source_event_id": f"bill-{name}",
        **changed,
    }


def queued(feeder: Caller, kind: str, *rows: dict[str, Any]) -> str:
    answer = feeder.send(
        "POST",
        f"/v1/feeds/{kind}/files",
        data="\n".join(map(json.dumps, rows)),
        headers={"Content-Type": NDJSON},
    )
    assert answer.status_code == 202
    job_id: str = answer.get_json()["job_id"]
    return job_id


def imported(feeder: Caller, kind: str, *rows: dict[str, Any]) -> str:
    job_id = queued(feeder, kind, *rows)
    done = imports.run(job_id, feed_rows.take_file_rows)
    assert done is not None
    assert done.state == jobs.DONE
    return job_id


def back(who: Caller, job_id: str, reason: str = "the wrong day") -> dict[str, Any]:
    answer = who.post(f"/v1/jobs/{job_id}/reverse", {"reason": reason})
    assert answer.status_code == 200
    told: dict[str, Any] = answer.get_json()
    return told


def statuses(me: Caller) -> list[tuple[str, int]]:
    items = me.get("/v1/activities?limit=100").get_json()["items"]
    return sorted((one["status"], one["points"]) for one in items)


@pytest.mark.usefixtures("card")
def test_a_file_of_rides_is_taken_back_and_what_was_there_before_stays(
    me: Caller, feeder: Caller
) -> None:
    first = imported(feeder, "activities", ride(1), ride(2))
    second = imported(feeder, "activities", ride(2), ride(3), ride(4))
    told = back(feeder, second)
    assert (told["state"], told["total"], told["reversed"]) == ("done", 2, 2)
    assert told["reverses"] == second
    assert statuses(me) == [("credited", 215), ("credited", 215), ("reversed", 0), ("reversed", 0)]
    assert points_of(me.id) == 430
    read = feeder.get(f"/v1/jobs/{second}").get_json()
    assert (read["state"], read["reversal_job_id"]) == ("done", told["job_id"])
    assert "reversal_job_id" not in feeder.get(f"/v1/jobs/{first}").get_json()
    entry = list(book.entries(me.id))[-1]
    assert (entry.refs["reason"], entry.refs["by"]) == ("the wrong day", f"partner:{feeder.id}")
    assert book.verify().problem is None


@pytest.mark.usefixtures("card")
def test_asking_again_gives_the_first_reversal(me: Caller, feeder: Caller) -> None:
    job_id = imported(feeder, "activities", ride(1))
    first = back(feeder, job_id)
    again = back(feeder, job_id, "another reason")
    assert (again["job_id"], again["reversed"]) == (first["job_id"], 1)
    assert [one.kind for one in book.entries(me.id)] == ["earn", "reverse"]


def test_a_file_of_bills_is_taken_back_with_its_history(me: Caller, feeder: Caller) -> None:
    live_in(me.id, members=1)
    months = [clock.add_months("2026-04", -ago) for ago in range(12, 0, -1)]
    history = imported(feeder, "bills", *(month(one, 300) for one in months))
    job_id = imported(feeder, "bills", month("2026-04", 240), month("2026-03", 300))
    # 60 kWh x 497.4 g for a household of one.
    assert points_of(me.id) == 29_844
    told = back(feeder, job_id)
    assert (told["total"], told["reversed"]) == (1, 1)
    assert points_of(me.id) == 0
    listed = me.get("/v1/me/bills?limit=100").get_json()["items"]
    assert len(listed) == 13
    assert [one["status"] for one in listed if one["source_event_id"] == "bill-2026-04"] == [
        "reversed"
    ]
    assert back(feeder, history)["reversed"] == 12
    # Nothing of it is left to compare with.
    imported(feeder, "bills", month("2026-04", 240, source_event_id="again"))
    newest = me.get("/v1/me/bills?limit=1").get_json()["items"][0]
    assert [one["code"] for one in newest["reasons"]] == ["needs_history"]


def test_corrections_of_the_same_file_go_with_what_they_correct(me: Caller, feeder: Caller) -> None:
    live_in(me.id, members=1)
    kept = imported(feeder, "bills", month("2026-01", 300))
    job_id = imported(
        feeder,
        "bills",
        month("2026-02", 280, estimated=True, source_event_id="guess"),
        month("2026-02", 270, source_event_id="read", corrects="guess"),
        month("2026-01", 310, source_event_id="right", corrects="bill-2026-01"),
    )
    told = back(feeder, job_id)
    # The guess was replaced already; what replaced it went, so nothing of it counts.
    assert (told["total"], told["reversed"]) == (3, 2)
    emitted = bills.emissions_between(me.id, clock.first_day("2026-01"), clock.last_day("2026-02"))
    assert emitted == {}
    assert back(feeder, kept)["reversed"] == 0


@pytest.mark.usefixtures("card")
def test_rows_that_earned_nothing_have_nothing_to_take_back(feeder: Caller) -> None:
    far = ride(3) | {"quantity": 10_000}
    told = back(feeder, imported(feeder, "activities", ride(1), far))
    assert (told["total"], told["reversed"]) == (2, 1)


def test_only_the_owner_and_operators_may(app: Flask, feeder: Caller) -> None:
    job_id = imported(feeder, "activities", ride(1))
    other = partner(app)
    assert said(other.post(f"/v1/jobs/{job_id}/reverse", {"reason": "x"})) == (404, "not_found")
    assert said(feeder.post("/v1/jobs/none/reverse", {"reason": "x"})) == (404, "not_found")
    refused = said(feeder.post(f"/v1/jobs/{job_id}/reverse", {"reason": ""}))
    assert refused == (422, "validation_failed")
    operator = machine(app, Kind.OPERATOR)
    told = back(operator, job_id)
    assert told["state"] == "done"
    assert said(operator.post(f"/v1/jobs/{told['job_id']}/reverse", {"reason": "x"})) == (
        409,
        "not_a_file",
    )
    (noted,) = audit.trail(subject=job_id, limit=9)
    assert (noted.action, noted.actor, noted.reason) == (
        "job reversed",
        operator.id,
        "the wrong day",
    )


@pytest.mark.usefixtures("card")
def test_a_file_nobody_has_read_yet_is_never_read(me: Caller, feeder: Caller) -> None:
    job_id = queued(feeder, "activities", ride(1))
    assert back(feeder, job_id)["total"] == 0
    assert imports.run(job_id, feed_rows.take_file_rows) is None
    read = feeder.get(f"/v1/jobs/{job_id}").get_json()
    assert (read["state"], read["failure"]) == ("failed", reversals.STOPPED.zh)
    assert statuses(me) == []


@pytest.mark.usefixtures("card")
def test_taking_back_an_import_that_runs_stops_it_and_misses_no_row(
    me: Caller, feeder: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "CHUNK_ROWS", 4)
    party = events.party(Kind.DATA, feeder.id)
    subscriptions.add(party, "https://partner.example/hook", {Type.JOB_DONE}, 0)
    job_id = queued(feeder, "activities", *(ride(number) for number in range(12)))
    told: dict[str, Any] = {}

    def asked_in_the_middle(job: Job, raw: Sequence[dict[str, Any]]) -> list[RowResult]:
        if job.done == 0 and not told and raw[0]["source_event_id"] == "tap-4":
            told.update(back(feeder, job_id))
        return feed_rows.take_file_rows(job, raw)

    # The worker learns of it after its second chunk, when four more rows are credited.
    assert imports.run(job_id, asked_in_the_middle) is None
    assert told["state"] == "queued", "its worker may be at it still"
    assert len(statuses(me)) == 8
    events.number(party)
    [ended] = events.after(party, 0, 9)
    assert (ended.data["job_id"], ended.data["state"]) == (job_id, "failed")
    with clock.travel(jobs.LEASE + timedelta(seconds=1)):
        assert jobs.waiting(clock.now()) == [told["job_id"]]
        done = reversals.run(told["job_id"])
        assert done is not None
        assert (done.state, done.total) == ("done", 8)
        assert statuses(me) == [("reversed", 0)] * 8
    assert points_of(me.id) == 0


@pytest.mark.usefixtures("card")
def test_a_cancelled_file_that_was_taken_back_does_not_go_on(
    app: Flask, me: Caller, feeder: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "CHUNK_ROWS", 1)
    operator = machine(app, Kind.OPERATOR)
    job_id = queued(feeder, "activities", ride(1), ride(2), ride(3))

    def cancelled_in_the_middle(job: Job, raw: Sequence[dict[str, Any]]) -> list[RowResult]:
        if raw[0]["source_event_id"] == "tap-2":
            operator.post(f"/v1/operator/jobs/{job_id}/cancel", {"reason": "busy hour"})
        return feed_rows.take_file_rows(job, raw)

    assert imports.run(job_id, cancelled_in_the_middle) is None
    told = back(feeder, job_id)
    assert told["state"] == "queued", "its worker may be at its last row still"
    resume = f"/v1/operator/jobs/{job_id}/resume"
    assert said(operator.post(resume)) == (409, "job_not_cancelled")
    with clock.travel(jobs.LEASE + timedelta(seconds=1)):
        assert reversals.run(told["job_id"]) is not None
        assert said(operator.post(resume)) == (409, "job_not_cancelled")
        assert imports.run(job_id, feed_rows.take_file_rows) is None
        assert statuses(me) == [("reversed", 0)] * 2
    assert points_of(me.id) == 0


@pytest.mark.usefixtures("card")
def test_a_worker_that_slept_over_its_lease_has_its_rows_taken_back_too(
    me: Caller, feeder: Caller
) -> None:
    job_id = queued(feeder, "activities", ride(1))

    def slow(job: Job, raw: Sequence[dict[str, Any]]) -> list[RowResult]:
        with clock.travel(jobs.LEASE + timedelta(seconds=1)):
            assert back(feeder, job_id)["state"] == "done"
            return feed_rows.take_file_rows(job, raw)

    assert imports.run(job_id, slow) is None
    assert [status for status, _ in statuses(me)] == ["credited"]
    reversal_id = walks.again_after(job_id)
    assert reversal_id is not None
    with clock.travel(jobs.LEASE + timedelta(minutes=2)):
        assert reversals.run(reversal_id) is not None
        assert statuses(me) == [("reversed", 0)]


def test_rows_that_wait_for_a_link_are_dropped(me: Caller, feeder: Caller) -> None:
    job_id = imported(feeder, "activities", ride(1))
    kept = imported(feeder, "activities", ride(2))
    assert back(feeder, job_id)["state"] == "done"
    me.post("/v1/me/links", {"partner_id": feeder.id, "external_id": CARD})
    assert statuses(me) == [("credited", 215)]
    assert back(feeder, kept)["reversed"] == 1


def test_rows_credited_by_a_link_while_their_file_is_taken_back_go_too(
    me: Caller, feeder: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = imported(feeder, "activities", ride(1))
    take_in = batches.take_in

    def late(facts: Any) -> Any:
        # The whole walk happens between the reading of what is parked and its crediting.
        assert back(feeder, job_id)["total"] == 0
        return take_in(facts)

    with monkeypatch.context() as patch:
        patch.setattr(batches, "take_in", late)
        me.post("/v1/me/links", {"partner_id": feeder.id, "external_id": CARD})
    assert statuses(me) == [("credited", 215)]
    (reversal_id,) = jobs.waiting(clock.now())
    assert reversals.run(reversal_id) is not None
    assert statuses(me) == [("reversed", 0)]


@pytest.mark.usefixtures("card")
def test_a_large_file_is_taken_back_by_a_worker(
    me: Caller, feeder: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reversals, "AT_ONCE_MAX", 2)
    job_id = imported(feeder, "activities", *(ride(number) for number in range(3)))
    told = back(feeder, job_id)
    assert (told["state"], told["reversed"]) == ("queued", 0)
    tasks.run_job(told["job_id"])
    read = feeder.get(f"/v1/jobs/{told['job_id']}").get_json()
    assert (read["state"], read["reversed"], read["progress"]) == ("done", 3, 100)
    assert points_of(me.id) == 0


@pytest.mark.parametrize(
    "death",
    [
        Death("accounting.book:post", "before"),
        Death("accounting.book:post", "after", 2),
        Death("footprint.activities:settle", "before"),
        Death("accounting.walks:_move", "before"),
        Death("accounting.jobs:finish", "before"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("card")
def test_a_reversal_killed_anywhere_is_finished_once(
    me: Caller, feeder: Caller, crew: Crew, death: Death, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = imported(feeder, "activities", *(ride(number) for number in range(3)))
    monkeypatch.setattr(reversals, "AT_ONCE_MAX", 0)
    reversal_id = back(feeder, job_id)["job_id"]
    assert crew.run("run_reversal", death, job_id=reversal_id) == KILLED
    with clock.travel(jobs.LEASE + timedelta(seconds=1)):
        done = reversals.run(reversal_id)
        assert done is not None
        assert (done.state, done.total) == ("done", 3)
    assert [one.kind for one in book.entries(me.id)] == ["earn"] * 3 + ["reverse"] * 3
    assert points_of(me.id) == 0
    brought = activities.by_ids(activities.of_job(job_id, after="", limit=9))
    assert [one.status for one in brought] == ["reversed"] * 3
