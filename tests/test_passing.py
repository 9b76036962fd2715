"""The night of the book: what matured, was held too long and expired in quiet accounts."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from typing import Any

import pytest
from callers import machine, resident
from faults import scenarios
from faults.crew import KILLED, Crew, Death
from flask import Flask
from lives import city, did

from accounting import accounts, book, clock, jobs
from accounting.clients import Kind
from api import tasks
from points import holds, passing, statements
from points.wallet import consistent

pytestmark = pytest.mark.usefixtures("app")

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
NOON = city("2026-05-20 12:00")
PHONE = "+8613900000000"


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.travel(NOON - clock.now()):
        yield


def rider(number: int = 0) -> str:
    """Somebody who rode 5 km by bus this morning: 5 x 26,900 mg, 134 points, mature in 48 hours."""
    who = accounts.by_phone(f"{PHONE[:-1]}{number}")
    assert did(who, "bus_km", 5, "2026-05-20 08:00", minutes=18).points == 134
    return who


def kinds(who: str) -> list[str]:
    return [entry.kind for entry in book.entries(who)]


def books() -> Counter[str]:
    """What lies in the shared points books, as entries say it."""
    found: Counter[str] = Counter()
    for who in accounts.ids_after("", 1_000):
        for entry in book.entries(who):
            for line in entry.lines:
                if line.unit == "points" and ":" in line.book:
                    found[line.book] += line.amount
    return found


def the_books_hold() -> None:
    assert book.verify(checks=[consistent]).problem is None


def test_a_quiet_account_gets_an_entry_of_each_kind_of_time() -> None:
    who = rider()
    assert passing.pass_time([who]) == []
    with clock.stand(city("2026-05-22 08:18")):
        [matured] = passing.pass_time([who])
        assert passing.pass_time([who]) == []
        holds.hold(who, "h1", 100, HOUR, purpose="scale")
    assert [tuple(line) for line in matured.lines] == [
        ("points", "pending", -134, "mature"),
        ("points", "available", 134, "mature"),
    ]
    with clock.stand(city("2028-06-01 00:00")):
        before = statements.balance(who)
        released, expired = passing.pass_time([who])
        assert statements.balance(who) == before
    assert (before.available, before.held, before.expired) == (0, 0, 134)
    assert kinds(who) == ["earn", "mature", "hold", "release", "expire"]
    rows = [statements.row_of(entry) for entry in (matured, released, expired)]
    assert [(row.points, row.available_after, row.entry.refs["reason"]) for row in rows] == [
        (134, 134, "matured"),
        (100, 134, "hold_over"),
        (-134, 0, "expired"),
    ]
    assert books() == {"issued:city": -134, "expired:city": 134}
    the_books_hold()


def test_what_passes_inside_another_entry_is_told_apart_and_the_statement_adds_up() -> None:
    who = rider()
    with clock.stand(city("2026-05-25 12:00")):
        scenarios.move_points(who, "s1", "spend", 100)
    with clock.stand(city("2028-06-01 00:00")):
        scenarios.move_points(who, "e1", "earn", 7)
    rows = [statements.row_of(entry) for entry in book.entries(who)]
    assert [(row.entry.kind, row.points, row.available_after) for row in rows] == [
        ("earn", 134, 0),
        ("spend", -100, 34),
        ("earn", 7, 7),
    ]
    assert [(row.by_time.matured, row.by_time.expired) for row in rows] == [
        (0, 0),
        (134, 0),
        (7, 34),
    ]
    assert [(row.changes.available, row.changes.pending) for row in rows] == [
        (0, 134),
        (34, -134),
        (-27, 0),
    ]


def test_the_night_after_a_night_writes_nothing() -> None:
    people = [rider(number) for number in range(5)]
    with clock.travel(3 * DAY):
        first = run(passing.queue("op").id)
        assert first == {"residents": 5, "mature": 5}
        assert run(passing.queue("op").id) == {"residents": 5}
    assert [kinds(who) for who in people] == [["earn", "mature"]] * 5


def run(job_id: str) -> dict[str, int]:
    done = passing.run(job_id)
    assert done is not None
    assert done.state == "done"
    return passing.walks.totals(job_id)


def test_one_job_a_night_however_often_the_clock_strikes() -> None:
    with ThreadPoolExecutor(8) as pool:
        queued = list(pool.map(lambda _: passing.queue("clock", day=date(2026, 5, 20)), range(8)))
    assert {job.id for job in queued} == {"job_mature_and_expire_2026-05-20"}
    assert passing.queue("clock", day=date(2026, 5, 21)).id != queued[0].id


def test_the_clock_strikes_at_night() -> None:
    rider()
    with clock.travel(3 * DAY):
        tasks.let_time_pass()
        tasks.let_time_pass()
        tasks.run_job("job_mature_and_expire_2026-05-23")
        job = jobs.get("job_mature_and_expire_2026-05-23")
    assert job is not None
    assert (job.state, job.done) == ("done", 1)
    assert books() == {"issued:city": -134}


@pytest.mark.parametrize(
    "step",
    [
        Death("accounting.book.posting:_insert", "before"),
        Death("accounting.book.posting:_insert", "after"),
        Death("accounting.walks:_move", "before"),
        Death("accounting.walks:_move", "after"),
        Death("accounting.jobs:finish", "before"),
    ],
    ids=str,
)
def test_a_night_killed_at_any_step_is_finished_and_writes_nothing_twice(
    crew: Crew, step: Death
) -> None:
    people = [rider(number) for number in range(5)]
    with clock.travel(3 * DAY):
        job_id = passing.queue("op").id
        assert crew.run("run_passing", step, job_id=job_id) == KILLED
        crew.ahead += jobs.LEASE + timedelta(seconds=1)
        assert crew.run("run_passing", job_id=job_id) == {"value": "done"}
    assert [kinds(who) for who in people] == [["earn", "mature"]] * 5
    the_books_hold()


def test_the_night_and_the_resident_at_once_move_each_point_once() -> None:
    who = rider()
    with clock.travel(3 * DAY):

        def one(number: int) -> Any:
            if number % 3:
                return passing.pass_time([who])
            return scenarios.move_points(who, f"s{number}", "spend", 10)

        with ThreadPoolExecutor(9) as pool:
            list(pool.map(one, range(9)))
        balance = statements.balance(who)
    assert (balance.available, balance.pending, balance.spent) == (104, 0, 30)
    matured = [statements.row_of(entry).by_time.matured for entry in book.entries(who)]
    assert sorted(matured)[-2:] == [0, 134]
    the_books_hold()


def test_an_operator_starts_the_night_by_hand(app: Flask) -> None:
    rider()
    with clock.stand(city("2026-05-22 08:18")):
        operator, me = machine(app, Kind.OPERATOR), resident(app, PHONE)
        made = operator.post("/v1/operator/jobs", {"kind": "mature_and_expire"}, key="n1")
        assert made.status_code == 202
        tasks.run_job(made.get_json()["job_id"])
        done = operator.get(made.headers["Location"]).get_json()
        assert (done["state"], done["done"]) == ("done", 1)
        [matured, earned] = me.get("/v1/me/points/entries").get_json()["items"]
        points = me.get("/v1/me/points").get_json()
    assert (matured["kind"], matured["points"], matured["available_after"]) == ("mature", 134, 134)
    assert matured["by_time"] == {"matured": 134, "expired": 0, "released": 0}
    assert (matured["reason"], earned["kind"]) == ("matured", "earn")
    assert (points["available"], points["pending"]) == (134, 0)
