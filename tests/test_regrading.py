"""Grading the whole city: as one by one, shared by workers, resumed after a kill."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from callers import machine, said
from cities import settle
from flask import Flask
from lives import did

from accounting import clock, jobs, storage
from accounting.clients import Kind
from api.config import Config
from footprint import grade, grade_changes, regrading
from footprint.summaries import Row

pytestmark = pytest.mark.usefixtures("app")

# The first of June 2026, half past two in the city: when the scheduled grading begins.
NOW = datetime(2026, 5, 31, 18, 30, tzinfo=UTC)
JUNE = "2026-06"
NAMES = ("behaviour", "evidence", "bank_grade", "mg", "count")


@pytest.fixture(autouse=True)
def _now() -> Iterator[None]:
    with clock.stand(NOW):
        yield


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges of twenty residents, stretches of seven."""
    monkeypatch.setattr(regrading, "RANGE_MIN", 20)
    monkeypatch.setattr(regrading, "STRETCH", 7)


def graded() -> list[dict[str, Any]]:
    """What was graded at this very moment."""
    return list(storage.database()["grades"].find({"graded_at": NOW}).sort("resident", 1))


def residents_open() -> list[str]:
    found = storage.database()["residents"].find({"status": "open"}, {"_id": 1}).sort("_id", 1)
    return [row["_id"] for row in found]


def one_by_one(scheduled: str | None) -> dict[str, dict[str, Any]]:
    """The documents that single gradings would write, by resident, from the stored months."""
    policy = grade.policy_on(clock.city_day(NOW))
    first, last = grade.window(policy, NOW)
    rows: dict[str, list[Row]] = {}
    seqs: dict[str, int] = {}
    wanted = {"month": {"$gte": first, "$lte": last}}
    for month in storage.database()["summary_months"].find(wanted):
        account = month["account"]
        seqs[account] = max(seqs.get(account, 0), month["seq"])
        rows.setdefault(account, []).extend(
            Row(month["month"], **{name: row[name] for name in NAMES})
            for row in month["behaviours"]
        )
    newest = {
        row["resident"]: grade.snapshot_of(row) for row in storage.database()["grades"].find()
    }
    expected = {}
    for one in residents_open():
        earlier = newest.get(one)
        fresh = grade.graded(
            one, policy, NOW, seqs.get(one, 0), rows.get(one, []), earlier, scheduled=scheduled
        )
        if earlier is None or not grade.is_same(earlier, fresh):
            expected[one] = grade.document_of(fresh)
    return expected


@pytest.mark.parametrize("scheduled", [JUNE, None])
def test_the_batch_makes_the_very_snapshots_that_grading_one_by_one_makes(
    scheduled: str | None,
) -> None:
    settle(1_500, NOW, seed=1 if scheduled else 2)
    expected = one_by_one(scheduled)
    # The whole way of a single grading, of some; these months are not from the book.
    for one in sorted(expected)[::50]:
        fresh = grade.document_of(grade.grade_now(one, scheduled=scheduled, anew=True))
        assert fresh == expected[one]
        storage.database()["grades"].delete_one({"_id": fresh["_id"]})
        storage.database()["grade_changes"].delete_many({"resident": one})
    moved = {one for one, document in expected.items() if document.pop("untold", False)}
    job = regrading.run(regrading.queue("clock", month=scheduled).id)
    assert job is not None
    assert (job.state, job.total) == (jobs.DONE, 1_500)
    assert {document["resident"]: document for document in graded()} == expected
    # Every grade and every way of moving was met, or the comparison says little.
    seen = Counter(
        (document["inputs"]["held"], document["standing"]["grade"])
        for document in expected.values()
    )
    assert len(seen) > (14 if scheduled else 12)
    assert {one.resident for one in grade_changes.waiting(2_000)} == moved
    assert regrading.totals(job) == {
        "residents": 1_500,
        "graded": len(expected),
        "changed": len(moved),
    }
    # Again in the same month: nobody has anything new.
    again = regrading.run(regrading.queue("anna").id)
    assert again is not None
    assert regrading.totals(again) == {"residents": 1_500, "graded": 0, "changed": 0}


def test_what_the_follower_has_not_reached_is_taken_in_first() -> None:
    settle(1, NOW)
    with clock.stand(NOW - timedelta(hours=1)):
        did("res_000000", "recycle_kg", 20, "2026-05-31 10:00")
    storage.database()["summary_months"].delete_many({})
    regrading.run(regrading.queue("clock", month=JUNE).id)
    [document] = graded()
    assert document["inputs"]["by_behaviour"] == {"recycle_kg": 26_900_000}


@pytest.mark.usefixtures("small")
def test_the_scheduled_grading_of_a_month_is_one_job() -> None:
    settle(50, NOW)
    first = regrading.queue("clock", month=JUNE)
    assert regrading.queue("another clock", month=JUNE) == first
    assert len(first.arguments["cuts"]) == 2
    regrading.run(first.id)
    assert regrading.run(first.id) == regrading.queue("clock", month=JUNE)


@pytest.mark.usefixtures("small")
def test_workers_share_the_ranges_and_the_last_one_ends_the_job() -> None:
    settle(100, NOW)
    job = regrading.queue("clock", month=JUNE)
    shares = regrading.cut(job.id)
    assert len(shares) == 5
    assert regrading.cut(job.id) == [], "somebody cut it"
    halfway = regrading.run_range(shares[0].id)
    assert halfway is not None
    assert halfway.done == 20
    part = jobs.get(job.id)
    assert part is not None
    assert (part.state, part.done, part.progress) == (jobs.RUNNING, 20, 20)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(regrading.run_range, [one.id for one in shares] * 2))
    over = jobs.get(job.id)
    assert over is not None
    assert (over.state, over.done, over.total) == (jobs.DONE, 100, 100)
    assert [document["resident"] for document in graded()] == residents_open()


def test_who_grades_himself_meanwhile_is_counted_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = settle(3, NOW, graded=False)
    write = storage.insert_new

    def slower(collection: Any, documents: Any, **options: Any) -> list[int]:
        monkeypatch.undo()
        grade.grade_now(ids[1])
        return write(collection, documents, **options)

    monkeypatch.setattr(storage, "insert_new", slower)
    regrading.run(regrading.queue("clock", month=JUNE).id)
    found = {one: grade.newest_of(one) for one in ids}
    assert {one.inputs.scheduled for one in found.values() if one} == {JUNE}
    numbers = [one.number for one in found.values() if one]
    assert numbers == [1, 2, 1]


KILLED = """
import os, signal, sys
from datetime import datetime
from accounting import clock, storage, vault
from footprint import grade, regrading

storage.connect(sys.argv[1])
vault.configure(bytes(range(32)))
regrading.RANGE_MIN, regrading.STRETCH = 20, 7
tell, calls = grade.tell_untold, []

def killed(residents, **options):
    # In the fifth stretch: its snapshots are written, nothing of it is told.
    calls.append(residents)
    if len(calls) == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
    while tell(residents):
        pass
    return 0

grade.tell_untold = killed
with clock.stand(datetime.fromisoformat(sys.argv[3])):
    regrading.run(sys.argv[2])
"""


@pytest.mark.usefixtures("small")
def test_a_worker_that_is_killed_is_replaced_and_nobody_is_graded_twice_or_left_out(
    config: Config,
) -> None:
    settle(100, NOW)
    storage.database()["grades"].delete_many({"inputs.scheduled": JUNE})
    job = regrading.queue("clock", month=JUNE)
    script = [sys.executable, "-c", KILLED, config.mongodb_uri, job.id, NOW.isoformat(), "5"]
    root = Path(__file__).parents[1]
    killed = subprocess.run(script, cwd=root, check=False, timeout=240)
    assert killed.returncode == -9
    half = len(graded())
    assert 0 < half < len(residents_open())
    assert storage.database()["grades"].count_documents({"untold": True}) > 0
    assert regrading.run(job.id) == jobs.get(job.id), "its lease is not over"
    assert len(graded()) == half
    with clock.stand(NOW + 2 * jobs.LEASE):
        over = regrading.run(job.id)
    assert over is not None
    assert (over.state, over.done) == (jobs.DONE, 100)
    found = list(storage.database()["grades"].find({"inputs.scheduled": JUNE}))
    assert sorted(row["resident"] for row in found) == residents_open()
    moved = {row["_id"] for row in found if grade.snapshot_of(row).change is not None}
    assert {one.id for one in grade_changes.waiting(999)} == moved
    assert storage.database()["grades"].count_documents({"untold": True}) == 0


@pytest.mark.usefixtures("small")
def test_a_grading_that_is_cancelled_stops_in_every_range_and_goes_on_when_resumed() -> None:
    settle(100, NOW)
    storage.database()["grades"].delete_many({"inputs.scheduled": JUNE})
    job = regrading.queue("clock", month=JUNE)
    shares = regrading.cut(job.id)
    regrading.run_range(shares[0].id)
    jobs.cancel(job.id, "anna", "not tonight")
    half = len(graded())
    assert [regrading.run_range(one.id) for one in shares[1:]] == [None] * 4
    assert len(graded()) == half
    assert regrading.cut(job.id) == []
    jobs.resume(job.id)
    # Whoever was at it may be at a last stretch: everything rests for as long as a lease.
    for leases in (2, 4, 6):
        with clock.stand(NOW + leases * jobs.LEASE):
            over = regrading.run(job.id)
    assert over is not None
    assert (over.state, over.done) == (jobs.DONE, 100)
    found = storage.database()["grades"].find({"inputs.scheduled": JUNE})
    assert sorted(row["resident"] for row in found) == residents_open()


def test_an_operator_starts_it_and_watches(app: Flask) -> None:
    settle(40, NOW)
    anna = machine(app, Kind.OPERATOR)
    answer = anna.post("/v1/operator/jobs", {"kind": "regrade"})
    assert answer.status_code == 202
    job_id = answer.get_json()["job_id"]
    assert anna.get(f"/v1/jobs/{job_id}").get_json()["state"] == "queued"
    regrading.run(job_id)
    over = anna.get(f"/v1/jobs/{job_id}").get_json()
    assert (over["state"], over["done"], over["total"]) == ("done", 40, 40)
    # It was not the scheduled one: no count moved.
    assert {document["inputs"]["counts"] for document in graded()} == {False}
    wrong = anna.post("/v1/operator/jobs", {"kind": "regrade", "month": JUNE})
    assert said(wrong) == (422, "validation_failed")
