"""The follower of the book: every entry in the summaries once, whatever is killed on the way."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import Any

import pytest
from callers import machine, said
from faults.crew import KILLED, Crew, Death
from flask import Flask
from test_summaries import NOW, city, live, raw, tell

from accounting import book, clock, events, following, jobs, storage, subscriptions, walks
from accounting.book import Ask, Decision, Line
from accounting.clients import Kind
from accounting.events import Type
from footprint import folding, summaries, upkeep
from points import crediting

pytestmark = pytest.mark.usefixtures("app")

PEOPLE = [f"res_{number}" for number in range(4)]


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.travel(NOW - clock.now()):
        yield


def real_now() -> datetime:
    return datetime.now(UTC)


def heads(people: list[str] = PEOPLE) -> dict[str, int]:
    return {who: book.head(who).seq for who in people}


def follow_up() -> None:
    """Follow the book until everything recorded so far is taken in."""
    wanted = heads()
    upkeep.follow(lambda: summaries.cursors(wanted) == wanted)


@contextmanager
def followers(count: int) -> Iterator[None]:
    """So many followers at work; at the end they go on to the heads."""
    over = threading.Event()

    def stopping() -> bool:
        return over.is_set() and summaries.cursors(PEOPLE) == heads()

    with ThreadPoolExecutor(count) as pool:
        at_work = [pool.submit(upkeep.follow, stopping) for _ in range(count)]
        try:
            yield
        finally:
            over.set()
        for one in at_work:
            one.result()


def as_rebuilt(people: list[str] = PEOPLE) -> bool:
    """Whether the stored documents are, byte for byte, what the book gives from the beginning."""
    before = {who: raw(who) for who in people}
    storage.database()["summary_months"].delete_many({})
    for who in people:
        summaries.rebuild(who)
    return before == {who: raw(who) for who in people} and all(before.values())


def place() -> Any:
    return storage.database()["followers"].find_one({"_id": upkeep.FOLLOWER})


def test_what_was_there_before_the_follower_is_walked_and_what_comes_after_is_followed() -> None:
    for who in PEOPLE[:2]:
        live(who)
    follow_up()
    first = place()
    for who in PEOPLE:
        live(who)
    follow_up()
    assert place()["token"] != first["token"]
    assert as_rebuilt()


def test_a_quiet_follower_is_up_to_date_without_reading_the_book(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live("res_0")
    follow_up()

    def read(*_: object, **__: object) -> None:
        raise AssertionError("the stream brought everything")

    for name in ("entries", "entries_after", "heads_after", "heads"):
        monkeypatch.setattr(book, name, read)
    tell("bike_km", 2, "2026-05-18 08:00", who="res_0")
    follow_up()
    assert summaries.cursors(["res_0"]) == {"res_0": book.head("res_0").seq}


def test_two_followers_and_readers_take_each_entry_in_once() -> None:
    with followers(2), ThreadPoolExecutor(4) as pool:
        telling = [pool.submit(live, who) for who in PEOPLE]
        reading = [pool.submit(summaries.catch_up, who) for who in PEOPLE * 3]
        for one in (*telling, *reading):
            one.result()
    assert as_rebuilt()


def test_a_rebuild_while_others_follow_loses_nothing() -> None:
    with followers(1), ThreadPoolExecutor(4) as pool:
        telling = [pool.submit(live, who) for who in PEOPLE]
        while not all(one.done() for one in telling):
            list(pool.map(summaries.rebuild, PEOPLE))
    assert as_rebuilt()


def test_a_follower_that_read_a_month_before_a_rebuild_does_not_bring_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live("res_0")
    summaries.catch_up("res_0")
    # A mistake of an earlier release, written with a digest that fits.
    months = storage.database()["summary_months"]
    wrong = months.find_one({"account": "res_0", "month": "2026-05"})
    wrong["books"][0]["into"] += 1
    months.replace_one({"_id": wrong["_id"]}, {**wrong, "digest": folding._digest(wrong)})
    tell("bike_km", 2, "2026-05-18 08:00", who="res_0")
    real = summaries._write

    def rebuilt_first(replacements: Any) -> list[int]:
        monkeypatch.setattr(summaries, "_write", real)
        writes = list(replacements)
        summaries.rebuild("res_0")
        return real(writes)

    monkeypatch.setattr(summaries, "_write", rebuilt_first)
    summaries.catch_up("res_0")
    assert as_rebuilt(["res_0"])


def test_a_month_somebody_wrote_into_is_built_again_when_it_is_met() -> None:
    live("res_0")
    summaries.catch_up("res_0")
    months = storage.database()["summary_months"]
    months.update_one({"account": "res_0", "month": "2026-05"}, {"$inc": {"behaviours.0.mg": 1}})
    tell("bike_km", 2, "2026-05-18 08:00", who="res_0")
    summaries.catch_up("res_0")
    assert as_rebuilt(["res_0"])


def test_a_place_the_oplog_no_longer_has_is_found_again_by_walking() -> None:
    live("res_0")
    follow_up()
    with book.watch(None, following.WAIT_MS) as stream:
        live("res_1")
        change = stream.try_next()
    assert change is not None
    # A resume token begins with its kind (82) and the seconds of its time: here those of 2020.
    long_ago = f"82{1_577_836_800:08X}{change['_id']['_data'][10:]}"
    storage.database()["followers"].update_one({}, {"$set": {"token": {"_data": long_ago}}})
    follow_up()
    assert summaries.cursors(PEOPLE) == heads()
    assert as_rebuilt(PEOPLE[:2])


STEPS = [
    Death("footprint.summaries:_fold", "before"),
    Death("footprint.summaries:_write", "after"),
    Death("footprint.summaries:_move", "before"),
    Death("footprint.summaries:_move", "after"),
    Death("accounting.following:_keep", "before"),
]


@pytest.mark.parametrize("death", STEPS, ids=str)
def test_a_follower_killed_at_a_step_is_followed_by_one_who_loses_and_doubles_nothing(
    crew: Crew, death: Death
) -> None:
    follow_up()
    for who in PEOPLE:
        live(who)
    assert crew.run("follow_book", die=death, heads=heads()) == KILLED
    assert crew.run("follow_book", heads=heads()) == {"value": heads()}
    assert as_rebuilt()


def test_the_follower_killed_during_its_walk_walks_again(crew: Crew) -> None:
    for who in PEOPLE:
        live(who)
    death = Death("footprint.summaries:_write", "after")
    assert crew.run("follow_book", die=death, heads=heads()) == KILLED
    assert place() is None
    assert crew.run("follow_book", heads=heads()) == {"value": heads()}
    assert as_rebuilt()


# What the months say of the books.


def test_a_month_says_what_each_funder_issued_and_took_back() -> None:
    told = [
        tell("bus_km", 10, "2026-05-20 08:00"),
        tell("bus_km", 10, "2026-04-30 08:00"),
        tell("bike_km", 5, "2026-05-19 08:00"),
    ]
    crediting.reverse(told[0], reason="x", by="operator")
    summaries.catch_up("res_anna")
    # Two bus rides of 269 points, both recorded in May, one of them taken back; 5 x 48.7 g by bike.
    assert moved("issued:") == {
        ("2026-05", "points", "issued:city", "bike_km"): (0, 243),
        ("2026-05", "points", "issued:city", "bus_km"): (269, 538),
    }
    assert moved("baseline:") == {
        ("2026-05", "co2e_mg", "baseline:city", "bike_km"): (0, 243_500),
        ("2026-05", "co2e_mg", "baseline:city", "bus_km"): (269_000, 538_000),
    }
    # By the day of the ride: April has one bus ride, and nothing is left of the one in May.
    cells = summaries.between("res_anna", date(2026, 4, 1), date(2026, 5, 31)).cells
    assert [(cell.day, cell.behaviour, cell.points) for cell in cells] == [
        ("2026-04-30", "bus_km", 269),
        ("2026-05-19", "bike_km", 243),
    ]


def test_expired_points_count_in_the_month_their_expiry_was_recorded() -> None:
    tell("bus_km", 10, "2026-05-19 08:00")
    with clock.travel(city("2028-07-10 12:00") - clock.now()):
        # The lot ran until the end of May 2028; the next entry of the account notices.
        tell("bike_km", 2, "2028-07-09 08:00")
        summaries.catch_up("res_anna")
    assert moved("expired:") == {("2028-07", "points", "expired:city", ""): (269, 0)}


def moved(prefix: str) -> dict[tuple[str, str, str, str], tuple[int, int]]:
    return {
        (row.month, row.unit, row.book, row.behaviour): (row.into, row.out_of)
        for row in summaries.books_between("2026-01", "2028-12", prefix)
    }


# The walk and its checks.


def run_job(**options: Any) -> dict[str, Any]:
    job = upkeep.run(upkeep.queue("op", **options).id)
    assert job is not None
    return {"state": job.state, **dict(upkeep.totals(job.id))}


def test_the_nightly_walk_brings_up_what_lags_and_changes_nothing_that_agrees() -> None:
    live("res_0")
    live("res_1")
    summaries.catch_up("res_0")
    assert run_job() == {"state": "done", "accounts": 2, "lagged": 1, "rebuilt": 0}
    assert run_job() == {"state": "done", "accounts": 2, "lagged": 0, "rebuilt": 0}
    assert as_rebuilt(PEOPLE[:2])


@pytest.mark.parametrize("where", ["behaviours.0.mg", "books.0.into"])
def test_sums_that_differ_from_the_book_are_built_again_and_leave_an_alarm(where: str) -> None:
    live("res_0")
    live("res_1")
    run_job()
    months = storage.database()["summary_months"]
    wrong = months.find_one({"_id": "res_1:2026-05"})
    part, place, field = where.split(".")
    wrong[part][int(place)][field] += 5
    months.replace_one({"_id": wrong["_id"]}, {**wrong, "digest": folding._digest(wrong)})
    elsewhere = (upkeep.part_of("res_1") + 1) % upkeep.PARTS
    assert run_job(part=elsewhere)["rebuilt"] == 0
    assert run_job(part=upkeep.part_of("res_1"))["rebuilt"] == 1
    [alarm] = storage.database()["alarms"].find({})
    assert (alarm["kind"], alarm["subject"]) == ("summary_differs", "res_1")
    assert as_rebuilt(PEOPLE[:2])


def test_a_month_in_another_shape_is_built_again() -> None:
    live("res_0")
    run_job()
    storage.database()["summary_months"].update_one({}, {"$unset": {"books": 1}})
    assert run_job()["rebuilt"] == 1
    assert as_rebuilt(PEOPLE[:1])


def test_a_walk_that_builds_everything_again_gives_the_same_bytes() -> None:
    live("res_0")
    summaries.catch_up("res_0")
    before = raw("res_0")
    assert run_job(rebuild=True) == {"state": "done", "accounts": 1, "rebuilt": 1}
    assert raw("res_0") == before


def job_events() -> list[tuple[str, str]]:
    """What webhooks of operators are told of jobs."""
    events.number(events.OPERATORS)
    told = events.after(events.OPERATORS, 0, 99)
    return [(one.data["job_id"], one.data["state"]) for one in told]


def test_a_walk_is_cancelled_and_resumed_where_it_was(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    for who in PEOPLE:
        live(who)
    operator = machine(app, Kind.OPERATOR)
    job_id = operator.post("/v1/operator/jobs", {"kind": "projections"}).get_json()["job_id"]
    subscriptions.add(events.OPERATORS, "https://city.example/hook", {Type.JOB_DONE}, 0)
    monkeypatch.setattr(walks, "STRETCH", 1)
    real = summaries.catch_up_to
    seen: list[str] = []

    def cancelled_at_the_second(heads: Any) -> int:
        found = list(heads)
        seen.extend(head.account for head in found)
        if len(seen) == 2:
            answer = operator.post(f"/v1/operator/jobs/{job_id}/cancel", {"reason": "busy hour"})
            assert answer.status_code == 204
        return real(found)

    monkeypatch.setattr(summaries, "catch_up_to", cancelled_at_the_second)
    assert upkeep.run(job_id) is None
    told = operator.get(f"/v1/jobs/{job_id}").get_json()
    assert (told["state"], told["failure"]) == ("failed", "已取消：busy hour")
    assert told["failure_code"] == "cancelled"
    assert said(operator.post(f"/v1/operator/jobs/{job_id}/cancel", {"reason": "x"})) == (
        409,
        "job_over",
    )
    assert job_events() == [(job_id, "failed")]
    assert operator.post(f"/v1/operator/jobs/{job_id}/resume").status_code == 202
    assert said(operator.post(f"/v1/operator/jobs/{job_id}/resume")) == (409, "job_not_cancelled")
    assert upkeep.run(job_id) is None  # Whoever had it may be at it for as long as the lease.
    with clock.travel(2 * jobs.LEASE):
        job = upkeep.run(job_id)
    assert job is not None
    assert (job.state, seen) == ("done", PEOPLE)
    assert job_events() == [(job_id, "failed"), (job_id, "done")]
    assert operator.post("/v1/operator/jobs/job_x/cancel", {"reason": "x"}).status_code == 404
    assert said(operator.post(f"/v1/operator/jobs/{job_id}/cancel", {})) == (
        422,
        "validation_failed",
    )


def test_entries_that_move_nothing_leave_no_month() -> None:
    ask = Ask("res_0", "gift", "adjust", "f", NOW)
    book.post(ask, lambda head, now: Decision((Line("points", "issued:city", 0),), {}))
    follow_up()
    assert raw("res_0") == []
    assert summaries.cursors(["res_0"]) == {"res_0": 1}


def test_heads_come_one_key_an_account() -> None:
    """Whole-city walks read heads by the thousand; a sort would read every entry."""
    for who in PEOPLE:
        live(who)
    pipeline = [*book.heads_pipeline({"$gt": ""}), {"$limit": 2}]
    asked = {"aggregate": "entries", "pipeline": pipeline, "cursor": {}}
    told = storage.database().command("explain", asked, verbosity="executionStats")
    assert told["stages"][0]["$cursor"]["executionStats"]["totalKeysExamined"] == len(PEOPLE)
    assert list(book.heads_after("", 3)) == PEOPLE[:3]
    assert book.heads_after("res_2", 3) == {"res_3": book.head("res_3")}
    assert book.accounts_after("res_0", 2) == PEOPLE[1:3]
    assert following.lag("nobody") is None
