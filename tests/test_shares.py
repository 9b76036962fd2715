"""A large file cut into shares: by whose row it is, worked on side by side, counted once."""

import contextlib
import csv
import gzip
import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from faults import crew as crews
from faults import scenarios
from faults.crew import KILLED, Crew, Death

from accounting import (
    book,
    clock,
    events,
    jobs,
    links,
    refused_rows,
    shares,
    storage,
    subscriptions,
)
from accounting.clients import Kind
from accounting.events import Type
from accounting.jobs import Failure, Job
from footprint import activities
from integrations import feeds, imports, mapping, reversals
from integrations.feeds import CSV, NDJSON, FeedRow, Form, Share, Unreadable
from integrations.imports import RowResult
from points.wallet import consistent

PARTNER, CHUNK, CARDS = "bus", 5, 9
LEASE_OVER = jobs.LEASE + timedelta(seconds=1)
NOW = datetime(2026, 5, 20, 12, tzinfo=clock.CITY).astimezone(UTC)


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.travel(NOW - clock.now()):
        yield


# Which rows are whose.

Numbered = list[tuple[int, FeedRow]]


def read(content: bytes, media_type: str, share: Share | None, form: Form) -> Numbered:
    return list(
        feeds.numbered_rows(
            io.BytesIO(content),
            media_type=media_type,
            gzipped=False,
            size=len(content),
            form=form,
            share=share,
        )
    )


def assert_cut(content: bytes, media_type: str, form: Form = feeds.REPORTS, of: int = 4) -> None:
    """Every row is in one share, those of an account in the same; shares keep the order."""
    whole = read(content, media_type, None, form)
    parts = [read(content, media_type, feeds.share(n, of, form), form) for n in range(of)]
    assert sorted((one for part in parts for one in part), key=lambda one: one[0]) == whole
    assert all([n for n, _ in part] == sorted(n for n, _ in part) for part in parts)
    where: dict[str, set[int]] = {}
    for place, part in enumerate(parts):
        for _, row in part:
            account = None if isinstance(row, Unreadable) else feeds.account_in(row, form.account)
            if account is not None:
                where.setdefault(account, set()).add(place)
    assert where
    assert all(len(places) == 1 for places in where.values()), where
    [counted] = [*feeds.counted(io.BytesIO(content), **how(content, media_type))][-1:]
    assert counted == len(whole)


def how(content: bytes, media_type: str) -> dict[str, Any]:
    return {"media_type": media_type, "gzipped": False, "size": len(content)}


def test_rows_of_an_account_are_in_one_share_however_they_are_written() -> None:
    plain = [json.dumps({"external_id": f"card-{n % 13}", "n": n}) for n in range(80)]
    odd = [
        '{"external\\u005fid": "card-1", "n": 1}',  # The name in another way,
        '{"external_id": "card-\\u0031"}',  # and the value.
        '{"external_id" : "card-1" }',
        '{"external_id":\t"card-1"}',
        ' {"a": {"external_id": "card-2"}, "external_id": "card-1"}  ',
        '{"a": "external_id", "external_id": "card-1"}',
        '{"external_id": " card-1 "}',
        '{"external_id": "卡一"}',
        '{"external_id": "card-1", "external_id": "card-2"}',  # Which? Unreadable.
        '{"a": {"external_id": "card-1"}}',
        '{"external_id": 7}',
        '{"external_id": ""}',
        '{"external_id": "card-1"',
        "",
        "   ",
        "not json",
        '["external_id"]',
        "x" * (feeds.LINE_BYTES_MAX + 9),
    ]
    content = "\n".join([*plain, *odd, *plain]).encode() + b"\n\xff\xfe\n" + plain[0].encode()
    assert_cut(content, NDJSON)
    assert_cut(b"\xef\xbb\xbf" + content, NDJSON, of=3)


def test_rows_of_a_meter_account_are_in_one_share() -> None:
    bills = [
        {"carrier": carrier, "account_no": str(n), "source_event_id": f"{carrier}-{n}"}
        for n in range(20)
        for carrier in ("gas", "water")
    ]
    turned = [dict(reversed(bill.items())) for bill in bills]
    lines = [json.dumps(bill) for bill in bills + turned + [{"carrier": "gas"}]]
    assert_cut("\n".join(lines).encode(), NDJSON, feeds.BILLS)


def test_a_csv_is_cut_below_its_header() -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["behaviour", "external_id", "quantity"])
    writer.writerows([["bus_km", f" card-{n % 7} ", n] for n in range(50)])
    content = b"\xef\xbb\xbf\n" + text.getvalue().encode() + b'\n"open\ntoo,few\n,,\n\n'
    assert_cut(content, CSV)
    assert [*feeds.counted(io.BytesIO(b""), **how(b"", CSV))] == [0]


def test_a_profile_says_whose_row_it_is_by_what_the_cells_become() -> None:
    raw = {
        "name": "rides",
        "kind": "activities",
        "fields": {
            "external_id": {"columns": ["city", "card"], "codes": {"A-1": "one", "B-1": "one"}},
            "behaviour": {"constant": "bus_km"},
        },
    }
    profile = mapping.parse(raw)
    assert profile.account({"city": "A", "card": "1"}) == "one"
    assert profile.account({"city": " B", "card": "1 "}) == "one"
    assert profile.account({"city": "B", "card": "2"}) is None
    assert profile.account({"city": "B"}) is None
    lines = [json.dumps({"city": "AB"[n % 2], "card": str(n % 3)}) for n in range(30)]
    content = "\n".join(lines).encode()
    parts = [read(content, NDJSON, Share(n, 3, profile.account), profile.form) for n in range(3)]
    assert sorted(n for part in parts for n, _ in part) == list(range(1, 31))
    ones = {n for n in range(1, 31) if (n - 1) % 3 == 1}
    assert [ones <= {n for n, _ in part} for part in parts].count(True) == 1


# Taking them in.


def ride(number: int, **changed: Any) -> dict[str, Any]:
    """Every card has one ride a day, one day after the other: no cap bites."""
    day, card = divmod(number, CARDS)
    return {
        "external_id": f"card-{card}",
        "behaviour": "bus_km",
        "quantity": "2",
        "occurred_at": (NOW - timedelta(days=day + 3)).isoformat(),
        "source_event_id": f"e-{number}",
        **changed,
    }


RIDES = 90
# By their numbers in the file: rows behind the rides, and a blank line that is no row.
BAD = {91: "malformed_row", 93: "malformed_row", 95: "source_event_conflict"}
# Rides, an unknown card, a ride of before, and three refused: 90 + 1 + 1 + 3 rows.
ROWS = 95
OUTCOME = {"credited": 90, "parked": 1, "duplicate": 1, "rejected": 3}


def content() -> bytes:
    lines = [json.dumps(ride(number)) for number in range(RIDES)]
    lines += ["not json", "", json.dumps(ride(0)), '{"external_id": "card-3"']
    lines += [json.dumps(ride(91, external_id="card-unknown")), json.dumps(ride(0, quantity="3"))]
    return "\n".join(lines).encode()


def store(data: bytes, *, gzipped: bool = False) -> Job:
    for card in range(CARDS):
        # A second file comes to those that are linked.
        with contextlib.suppress(links.AlreadyLinked):
            links.link(f"res_{card}", PARTNER, f"card-{card}")
    return imports.store(
        "activities", PARTNER, io.BytesIO(data), media_type=NDJSON, gzipped=gzipped
    )


def cut(job: Job) -> list[Job]:
    """Have a worker cut a job; returns what it gives to others."""
    given: list[Job] = []
    assert imports.run(job.id, scenarios.bus_rows, give=given.append) is None
    return given


def found(job: Job) -> Job:
    there = jobs.get(job.id)
    assert there is not None
    return there


def assert_all_taken(job: Job, redone: int = 0) -> None:
    """`redone` rows were taken in by a worker that died before it could say so."""
    over = found(job)
    assert (over.state, over.done, over.total, over.progress) == ("done", ROWS, ROWS, 100)
    again = {"credited": RIDES - redone, "duplicate": 1 + redone}
    assert {name: count for name, count in over.counts.items() if count} == OUTCOME | again
    assert {one["row"]: one["code"] for one in refused_rows.of_job(job.id)} == BAD
    assert storage.database()["entries"].count_documents({"kind": "earn"}) == RIDES
    assert activities.count_of_job(job.id) == RIDES
    assert book.verify(checks=[consistent]).problem is None


@pytest.fixture
def _small(app: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "CHUNK_ROWS", CHUNK)
    # 95 rows: four shares.
    monkeypatch.setattr(imports, "SHARE_ROWS_MIN", 22)


small = pytest.mark.usefixtures("_small")


def told() -> list[str]:
    """The ends of jobs that the partner was told of."""
    party = events.party(Kind.DATA, PARTNER)
    events.number(party)
    return [one.data["state"] for one in events.after(party, 0, 9)]


def listen() -> None:
    party = events.party(Kind.DATA, PARTNER)
    subscriptions.add(party, "https://partner.example/hook", {Type.JOB_DONE}, 0)


@small
@pytest.mark.parametrize("gzipped", [False, True])
def test_workers_share_a_file_and_count_every_row_once(crew: Crew, gzipped: bool) -> None:
    listen()
    job = store(gzip.compress(content()) if gzipped else content(), gzipped=gzipped)
    given = cut(job)
    assert [one.id for one in given] == [shares.name(job.id, number) for number in range(4)]
    half = found(job)
    assert (half.state, half.done, half.total, half.unit) == ("running", 0, ROWS, "rows")
    assert cut(job) == [], "somebody has cut it"
    works = [
        crews.job("run_shares", job_id=job.id, chunk_rows=CHUNK, first=first) for first in (0, 2)
    ]
    ends = crew.wait(crew.start(*works))
    assert {"value": "done"} in [{"value": end.get("value")} for end in ends], ends
    assert_all_taken(job)
    assert told() == ["done"]
    assert [imports.run(one.id, scenarios.bus_rows) for one in given] == [None] * 4
    assert told() == ["done"]


@small
def test_threads_of_one_worker_share_it_as_well() -> None:
    job = store(content())
    given = [one.id for one in cut(job)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda one: imports.run(one, scenarios.bus_rows), given * 2))
    assert_all_taken(job)


@small
@pytest.mark.parametrize(
    ("death", "redone"),
    [
        (Death("integrations.imports:_take_chunk", "before", 2), 0),
        (Death("integrations.imports:_take_chunk", "after", 2), CHUNK),
        (Death("accounting.jobs:advance", "after", 1), 0),
        (Death("accounting.shares:add_up", "before", 1), 0),
        (Death("accounting.jobs:finish", "before", 1), 0),
    ],
    ids=str,
)
def test_one_of_two_workers_is_killed_and_nothing_is_counted_twice(
    crew: Crew, death: Death, redone: int
) -> None:
    listen()
    job = store(content())
    cut(job)
    pids = crew.start(
        crews.job("run_shares", death, job_id=job.id, chunk_rows=CHUNK, first=0),
        # However slow the other is, the first share is its own.
        crews.job("run_shares", job_id=job.id, chunk_rows=CHUNK, first=2, leave=1),
    )
    assert crew.wait(pids)[0] == KILLED
    part = found(job)
    assert part.state == "running"
    assert 0 < part.done < ROWS + 1
    assert told() == []
    with clock.travel(LEASE_OVER):
        # The sweep finds the share, and the whole: whoever comes first.
        for job_id in jobs.waiting(clock.now()):
            imports.run(job_id, scenarios.bus_rows, give=lambda one: None)
    assert_all_taken(job, redone)
    assert told() == ["done"]


@small
def test_a_worker_killed_after_the_last_share_leaves_the_end_to_the_sweep(crew: Crew) -> None:
    listen()
    job = store(content())
    cut(job)
    death = Death("accounting.jobs:finish", "after", 4)
    assert crew.run("run_shares", death, job_id=job.id, chunk_rows=CHUNK, first=0) == KILLED
    assert found(job).state == "running"
    assert {one.state for one in shares.of(job.id)} == {"done"}
    with clock.travel(LEASE_OVER):
        assert jobs.waiting(clock.now()) == [job.id]
        assert cut(job) == []
    assert_all_taken(job)
    assert told() == ["done"]


@small
def test_a_worker_killed_while_it_cuts_is_followed_by_one_that_cuts_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = store(content())
    taken = jobs.take(job.id)
    assert taken is not None
    assert imports._cut_into(taken, may_cut=True) == 4
    shares.make(taken, imports.SHARE_KIND, [{"number": 0}, {"number": 1}])
    # Two of four are made, and worked on: that is not all of the file.
    for one in shares.of(job.id):
        imports.run(one.id, scenarios.bus_rows)
    assert [one.state for one in shares.of(job.id)] == ["done", "done"]
    half = found(job)
    assert (half.state, half.done < ROWS) == ("running", True)
    # It would be cut otherwise today.
    monkeypatch.setattr(imports, "SHARE_ROWS_MIN", 11)
    with clock.travel(LEASE_OVER):
        assert len(cut(job)) == 2
        for one in shares.of(job.id):
            imports.run(one.id, scenarios.bus_rows)
    assert_all_taken(job)


@small
def test_a_small_file_stays_whole_and_one_without_workers_to_give_to_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = store(content())
    assert imports.run(job.id, scenarios.bus_rows) == found(job)
    assert_all_taken(job)
    monkeypatch.setattr(imports, "SHARE_ROWS_MIN", ROWS // 2 + 1)
    again = store(content())
    given: list[Job] = []
    over = imports.run(again.id, scenarios.bus_rows, give=given.append)
    assert over is not None
    assert (over.state, given, shares.of(job.id)) == ("done", [], [])


@small
def test_cancelled_in_the_middle_it_stops_in_every_share_and_goes_on_when_resumed() -> None:
    listen()
    job = store(content())
    given = cut(job)
    calls = 0

    def cancelled(whole: Job, raw: Sequence[dict[str, Any]]) -> list[RowResult]:
        nonlocal calls
        calls += 1
        if calls == 2:
            jobs.cancel(job.id, "anna", "not tonight")
        return scenarios.bus_rows(whole, raw)

    assert [imports.run(one.id, cancelled) is None for one in given] == [True] + [False] * 3
    # What was begun is ended: two chunks, and nothing of the other shares.
    assert calls == 2
    stopped = found(job)
    assert (stopped.state, stopped.cancelled_by) == ("failed", "anna")
    assert [one.done for one in shares.of(job.id)] == [2 * CHUNK, 0, 0, 0]
    assert jobs.waiting(clock.now()) == []
    assert told() == ["failed"]
    jobs.resume(job.id)
    assert cut(job) == [], "whoever had it may be at it for as long as a lease"
    with clock.travel(LEASE_OVER):
        for one in cut(job):
            imports.run(one.id, scenarios.bus_rows)
        assert_all_taken(job)
    assert told() == ["failed", "done"]


@small
def test_a_share_that_is_given_up_fails_the_whole_when_the_others_have_ended() -> None:
    listen()
    job = store(content())
    given = cut(job)

    def broken(_job: Job, _rows: Sequence[dict[str, Any]]) -> list[RowResult]:
        raise RuntimeError("a bug in one row")

    for number in range(jobs.TRIES_MAX):
        with clock.travel(LEASE_OVER * number), pytest.raises(RuntimeError, match="a bug"):
            imports.run(given[0].id, broken)
    with clock.travel(LEASE_OVER * jobs.TRIES_MAX):
        assert imports.run(given[0].id, broken) is None
        assert found(given[0]).state == "failed"
        assert found(job).state == "running"
        for one in given[1:]:
            imports.run(one.id, scenarios.bus_rows)
        over = found(job)
    assert over.failure is not None
    assert (over.state, over.failure.code) == ("failed", "gave_up")
    assert over.done == sum(one.done for one in shares.of(job.id)) > 0
    assert told() == ["failed"]


@small
def test_shares_that_wait_long_for_a_worker_do_not_fail_the_whole() -> None:
    job = store(content())
    for minutes in range(2 * jobs.TRIES_MAX):
        with clock.travel(LEASE_OVER * minutes):
            assert len(cut(job)) == 4
    assert found(job).state == "running"


@small
def test_a_cut_file_is_taken_back_once_nobody_can_be_at_any_share() -> None:
    job = store(content())
    given = cut(job)
    asked: list[Job] = []

    def asked_in_the_middle(whole: Job, raw: Sequence[dict[str, Any]]) -> list[RowResult]:
        with clock.travel(timedelta(seconds=40)):
            asked.append(reversals.ask(job, reason="the wrong day", by="partner:bus"))
            return scenarios.bus_rows(whole, raw)

    imports.run(given[1].id, scenarios.bus_rows)
    with clock.travel(timedelta(seconds=30)):
        # The whole's own lease ends before this share's would.
        assert imports.run(given[2].id, asked_in_the_middle) is None
    assert asked[0].state == "queued"
    assert found(job).failure == reversals.STOPPED
    with clock.travel(timedelta(seconds=75)):
        assert asked[0].id not in jobs.waiting(clock.now())
        others = imports.run(given[0].id, scenarios.bus_rows)
        assert others is not None
        assert (others.state, others.done) == ("failed", 0)
    taken = activities.count_of_job(job.id)
    assert taken > 0
    with clock.travel(2 * LEASE_OVER):
        over = reversals.run(asked[0].id)
    assert over is not None
    assert (over.state, over.done) == ("done", taken)
    settled = storage.database()["activities"].find({"job": job.id})
    assert {row["status"] for row in settled} == {"reversed"}


@small
def test_a_share_that_has_had_its_stint_goes_behind_what_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(imports, "STINT", timedelta(0))
    job = store(content())
    given = [one.id for one in cut(job)]
    turns = 0
    while waiting := [one for one in jobs.waiting(clock.now()) if one in given]:
        turns += 1
        # A chunk each, round and round; at the end of its rows a share is done.
        imports.run(waiting[0], scenarios.bus_rows)
    assert turns >= ROWS // CHUNK
    assert_all_taken(job)


@small
def test_rows_of_a_card_are_taken_in_the_order_of_the_file() -> None:
    job = store(content())
    order: dict[str, list[str]] = {}

    def noted(whole: Job, raw: Sequence[dict[str, Any]]) -> list[RowResult]:
        for one in raw:
            order.setdefault(one["external_id"], []).append(one["source_event_id"])
        return scenarios.bus_rows(whole, raw)

    for one in reversed(cut(job)):
        imports.run(one.id, noted)
    assert order["card-4"] == [f"e-{number}" for number in range(4, RIDES, CARDS)]
    assert_all_taken(job)


@small
def test_a_header_that_cannot_be_read_fails_every_share_and_the_whole_once() -> None:
    listen()
    data = b"external_id,external_id\n" + b"a,b\n" * 60
    job = imports.store("activities", PARTNER, io.BytesIO(data), media_type=CSV, gzipped=False)
    for one in cut(job):
        imports.run(one.id, scenarios.bus_rows)
    over = found(job)
    assert (over.state, over.done) == ("failed", 0)
    assert over.failure == Failure(
        "file_refused", "the header of the CSV names a column twice", "CSV 表头中有重复的列名"
    )
    assert told() == ["failed"]
