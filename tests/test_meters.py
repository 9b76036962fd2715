"""Files of readings, values set by hand, swapped registers, and the quality of a month."""

import gzip
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from callers import machine, said
from faults.crew import KILLED, Crew, Death
from flask import Flask
from works import Works, layer, open_works, row

from accounting import audit, clock, jobs
from accounting.clients import Kind as ClientKind
from accounting.enterprise import checking, editing, meterdays, meters, readings, validating
from accounting.enterprise.checking import Day
from accounting.enterprise.editing import Edit
from accounting.enterprise.meters import Kind, Meter
from accounting.enterprise.readings import Reading
from accounting.enterprise.slots import SLOT, Quality
from accounting.errors import AccountBusy
from api import tasks

NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)
DAY = date(2026, 5, 18)
EIGHT = ("2026-05-18T08:00:00%2B08:00", "2026-05-18T09:00:00%2B08:00")


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.stand(NOON):
        yield


@pytest.fixture
def works(app: Flask) -> Works:
    return open_works(app)


# --- files ---


def hand_over(
    works: Works, content: bytes, media_type: str, *, gzipped: bool = False
) -> dict[str, Any]:
    """Send a file, let the worker read it; the job as the gateway sees it."""
    headers = {"Content-Type": media_type} | ({"Content-Encoding": "gzip"} if gzipped else {})
    answer = works.gateway.send(
        "POST", f"{works.path}/readings/files", headers=headers, data=content
    )
    assert answer.status_code == 202, answer.text
    job_id = answer.get_json()["job_id"]
    assert answer.headers["Location"] == f"/v1/jobs/{job_id}"
    tasks.run_job(job_id)
    job: dict[str, Any] = works.gateway.get(f"/v1/jobs/{job_id}").get_json()
    return job


def errors_of(works: Works, job: dict[str, Any]) -> list[tuple[int, str]]:
    lines = works.gateway.get(job["errors_url"]).text.splitlines()
    return [(one["row"], one["code"]) for one in map(json.loads, lines)]


def test_a_file_of_readings_has_an_end_for_each_row(works: Works) -> None:
    works.meter()
    sent = [
        row("18T08:00:00", 1.5),
        row("18T08:15:00", 2),
        row("18T08:00:00", 1.5),
        row("18T08:15:00", 3),
        row("18T08:30:00", 1, meter="m9"),
        row("18T08:30:00", 1) | {"unit": "MWh"},
        row("18T08:30:00", "1"),
        {"meter": "m1"},
        row("18T08:45:00", 4),
    ]
    lines = [json.dumps(one) for one in sent]
    job = hand_over(
        works, gzip.compress("\n".join(lines).encode()), "application/x-ndjson", gzipped=True
    )
    counts = (job["state"], job["done"], job["recorded"], job["duplicate"], job["rejected"])
    assert counts == ("done", 9, 3, 1, 5)
    assert errors_of(works, job) == [
        (4, "conflicting_reading"),
        (5, "unknown_meter"),
        (6, "wrong_unit"),
        (7, "validation_failed"),
        (8, "validation_failed"),
    ]
    # From 2 to 4 in two steps.
    assert layer(works.intervals(*EIGHT)) == [
        (1.5, 1.5, "A", None),
        (2, 2, "A", None),
        (None, 3, "E", "V18"),
        (4, 4, "A", None),
    ]


def test_a_csv_of_readings_has_columns_by_name(works: Works) -> None:
    works.meter()
    content = (
        b"at,meter,kind,value,unit,remark\n"
        b"2026-05-18T08:00:00+08:00,m1,interval,1.25,kWh,\n"
        b"2026-05-18T08:15:00+08:00,m1,interval,1.75,,\n"
        b"2026-05-18T08:30:00+08:00,m1,interval,2,,seen by hand\n"
    )
    job = hand_over(works, content, "text/csv")
    assert (job["recorded"], job["rejected"]) == (2, 1)
    assert errors_of(works, job) == [(3, "validation_failed")]
    assert [raw for raw, *_ in layer(works.intervals(*EIGHT))] == [1.25, 1.75, None, None]


@pytest.mark.parametrize(
    "step",
    [
        Death("accounting.enterprise.readings:_write", "after"),
        Death("accounting.jobs:advance", "before"),
        Death("accounting.jobs:finish", "before"),
    ],
    ids=str,
)
def test_a_file_whose_worker_died_is_read_on(works: Works, crew: Crew, step: Death) -> None:
    works.meter()
    sent = [row("18T08:00:00", 1.5), row("18T08:15:00", 2), row("18T08:15:00", 3)]
    content = "\n".join(json.dumps(one) for one in sent).encode()
    headers = {"Content-Type": "application/x-ndjson"}
    path = f"{works.path}/readings/files"
    job_id = works.gateway.send("POST", path, headers=headers, data=content).get_json()["job_id"]
    assert crew.run("run_readings_file", step, job_id=job_id) == KILLED
    with clock.travel(2 * jobs.LEASE):
        tasks.run_job(job_id)
        job = works.gateway.get(f"/v1/jobs/{job_id}").get_json()
    assert (job["state"], job["done"], job["rejected"]) == ("done", 3, 1)
    assert job["recorded"] + job["duplicate"] == 2
    assert errors_of(works, job) == [(3, "conflicting_reading")]
    assert [raw for raw, *_ in layer(works.intervals(*EIGHT))] == [1.5, 2, None, None]


def test_whose_file_it_is(app: Flask, works: Works) -> None:
    stranger = machine(app, ClientKind.PLANT, "plt_other")
    headers = {"Content-Type": "text/csv"}
    refused = stranger.send("POST", f"{works.path}/readings/files", headers=headers, data=b"at\n")
    assert said(refused) == (403, "forbidden")
    job = hand_over(works, b"at,meter,kind,value\n", "text/csv")
    assert said(stranger.get(f"/v1/jobs/{job['job_id']}")) == (404, "not_found")
    assert works.operator.get(f"/v1/jobs/{job['job_id']}").status_code == 200
    picture = works.gateway.send(
        "POST", f"{works.path}/readings/files", headers={"Content-Type": "image/png"}, data=b"x"
    )
    assert said(picture) == (415, "unsupported_media_type")
    taken_back = works.operator.post(f"/v1/jobs/{job['job_id']}/reverse", {"reason": "no"})
    assert said(taken_back) == (409, "not_a_file")


# --- edits ---


def edit(works: Works, *edits: tuple[str, Any], **more: Any) -> Any:
    rows = [{"at": f"2026-05-{at}+08:00", "value": value} for at, value in edits]
    path = f"/v1/operator/plants/{works.gateway.id}/meters/m1/edits"
    return works.operator.post(path, {"edits": rows, "reason": "抄表记录"} | more)


def test_an_edit_fills_a_gap_until_an_actual_comes(works: Works) -> None:
    works.meter()
    works.send(row("18T08:00:00", 1), row("18T08:45:00", 4))
    assert edit(works, ("18T08:15:00", 2.5)).status_code == 201
    # The rest of the gap now lies between 2.5 and 4.
    assert layer(works.intervals(*EIGHT)) == [
        (1, 1, "A", None),
        (None, 2.5, "edited", "V23"),
        (None, 3.25, "E", "V18"),
        (4, 4, "A", None),
    ]
    works.send(row("18T08:15:00", 9))
    assert layer(works.intervals(*EIGHT))[1] == (9, 9, "A", None)
    [told] = [one for one in audit.trail(limit=10) if one.action == "readings edited"]
    assert told.reason == "抄表记录"
    assert told.before == {"2026-05-18T00:15:00+00:00": {"amount": 2_000, "quality": "E"}}
    assert told.after == {"2026-05-18T00:15:00+00:00": 2_500}


def test_an_edit_stands_above_an_actual_only_where_that_is_said(works: Works) -> None:
    works.meter()
    works.send(row("18T08:00:00", 1), row("18T08:15:00", 90))
    assert said(edit(works, ("18T08:15:00", 2))) == (409, "actual_stands")
    assert edit(works, ("18T08:15:00", 2), above_actual=True).status_code == 201
    assert layer(works.intervals(*EIGHT))[1] == (90, 2, "edited", "V3")
    assert edit(works, ("18T08:15:00", None)).status_code == 201
    assert layer(works.intervals(*EIGHT))[1] == (90, 90, "A", None)


@pytest.mark.parametrize(
    ("at", "value", "more"),
    [
        ("18T08:01:00", 1, {}),
        # The slot that begins at noon is not over.
        ("20T12:00:00", 1, {}),
        ("18T08:00:00", -1, {}),
        ("18T08:00:00", 1, {"reason": ""}),
    ],
)
def test_what_is_no_edit(works: Works, at: str, value: Any, more: dict[str, Any]) -> None:
    works.meter()
    assert said(edit(works, (at, value), **more)) == (422, "validation_failed")


def test_only_operators_edit(works: Works) -> None:
    works.meter()
    for what in ("edits", "changes"):
        path = f"/v1/operator/plants/{works.gateway.id}/meters/m1/{what}"
        assert said(works.gateway.post(path, {})) == (403, "forbidden")
        body = {"edits": [{"at": NOON.isoformat(), "value": 1}], "reason": "x"}
        if what == "changes":
            body = {"at": NOON.isoformat(), "old_last": 1, "new_first": 0, "reason": "x"}
        assert said(works.operator.post(path.replace("m1", "m9"), body)) == (404, "not_found")


def put(plant: str) -> Meter:
    return meters.add(Meter(plant, "m", "electricity", Kind.INTERVAL, "kWh"))


def at(slot: int) -> datetime:
    return clock.start_of(DAY) + slot * SLOT


@pytest.mark.usefixtures("app")
def test_edits_and_readings_at_once_lose_nothing() -> None:
    meter = put("p")

    def work(number: int) -> None:
        if number % 2:
            readings.take("p", [Reading("m", at(number), Decimal(1), Kind.INTERVAL)])
            return None
        while True:
            with suppress(AccountBusy):
                edits = [Edit(at(number), 2_000)]
                return editing.edit(meter, edits, above=False, by="op", reason="x")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(16)))
    validating.catch_up("p", DAY, DAY)
    made = meterdays.day("p", "m", DAY)
    assert made.values[:16] == (2_000, 1_000) * 8
    assert made.quality[:16] == "DA" * 8


@pytest.mark.parametrize(
    "step",
    [
        Death("accounting.enterprise.editing:_write", "before"),
        Death("accounting.enterprise.editing:_write", "after"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("app")
def test_an_edit_that_was_cut_off_is_made_again(crew: Crew, step: Death) -> None:
    meter = put("p")
    assert crew.run("edit_meter", step, plant="p", meter="m", at=at(3).isoformat()) == KILLED
    editing.edit(meter, [Edit(at(3), 7_000)], above=False, by="op", reason="again")
    validating.catch_up("p", DAY, DAY)
    made = meterdays.day("p", "m", DAY)
    assert (made.values[3], made.quality[3]) == (7_000, "D")


# --- swapped registers ---


def test_a_swapped_register_loses_nothing_between_the_two(works: Works) -> None:
    works.meter("r1", kind="register", multiplier=40)
    shown = {"08:00": 500, "08:15": 501, "08:30": 40, "08:45": 41}
    works.send(*[row(f"18T{at}:00", one, "register", "r1") for at, one in shown.items()])
    assert layer(works.intervals(*EIGHT, "r1"))[1][2:] == ("E", "V9")
    path = f"/v1/operator/plants/{works.gateway.id}/meters/r1/changes"
    change = {"at": "2026-05-18T08:25:00+08:00", "old_last": 501.6, "new_first": 39.8}
    answer = works.operator.post(path, change | {"reason": "轮换"})
    assert (answer.status_code, answer.get_json()["changes"]) == (201, 1)
    # 0.6 of the old and 0.2 of the new, times 40.
    assert layer(works.intervals(*EIGHT, "r1"))[1] == (-18_440, 32, "A", "V9")
    assert works.operator.post(path, change | {"reason": "again"}).get_json()["changes"] == 1
    other = change | {"old_last": 502, "reason": "x"}
    assert said(works.operator.post(path, other)) == (409, "change_exists")
    ahead = change | {"at": "2026-05-20T12:00:01+08:00", "reason": "x"}
    assert said(works.operator.post(path, ahead)) == (422, "validation_failed")


# --- the quality of a month ---


def test_a_month_says_what_was_measured_and_what_does_not_add_up(works: Works) -> None:
    works.meter("all")
    works.meter("half", parent="all")
    for name, value in (("all", 10), ("half", 9)):
        works.send(*[_slot(name, slot, value) for slot in range(96)])
    # The register beside the intervals counted 1,100 kWh; the intervals sum to 960 of one day.
    shown = {"2026-04-01": 100, "2026-05-01": 1_200}
    works.send(
        *[
            {"meter": "all", "at": f"{on}T00:00:00+08:00", "value": one, "kind": "register"}
            for on, one in shown.items()
        ]
    )
    answer = works.gateway.get(f"{works.path}/quality?month=2026-04").get_json()
    # 30 days of 96 slots, of which one day was sent: 96 / 2,880 = 0.0333.
    told = {one["meter"]: one for one in answer["meters"]}
    assert told["all"] == {
        "meter": "all",
        "expected": 2_880,
        "actual": 96,
        "edited": 0,
        "estimated": 0,
        "missing": 2_784,
        "completeness": Decimal("0.0333"),
        "provisional": True,
        "total": 960,
        "register": 1_100,
        "disagrees": False,
    }
    # 960 against 864: 10 % apart.
    assert answer["unbalanced"] == [
        {"meter": "all", "day": "2026-04-18", "total": 960, "children": 864}
    ]
    assert said(works.gateway.get(f"{works.path}/quality?month=0000-01")) == (
        422,
        "validation_failed",
    )


def _slot(meter: str, slot: int, value: int) -> dict[str, Any]:
    start = clock.start_of(date(2026, 4, 18)) + slot * SLOT
    return {"meter": meter, "at": start.isoformat(), "value": value, "kind": "interval"}


def test_parents_and_children_are_compared_where_all_are_known() -> None:
    whole, holed = "A" * 96, "A" * 95 + "M"
    days = {
        ("top", DAY): Day(1_000, whole),
        ("a", DAY): Day(600, whole),
        ("b", DAY): Day(350, whole),
    }
    tree = {"top": ["a", "b"]}
    # 950 is exactly 5 % away; 949 is more.
    assert checking.unbalanced(days, tree) == []
    days["b", DAY] = Day(349, whole)
    [found] = checking.unbalanced(days, tree)
    assert (found.total, found.children) == (1_000, 949)
    days["b", DAY] = Day(349, holed)
    assert checking.unbalanced(days, tree) == []
    del days["b", DAY]
    assert checking.unbalanced(days, tree) == []


def test_a_month_against_its_register_and_its_completeness() -> None:
    # Ten days are over: 960 slots, of which 90 % are 864.
    known = [Day(10_000, "A" * 96)] * 9
    nine = checking.month("m", known, 960, None)
    assert (nine.counts[Quality.ACTUAL], nine.counts[Quality.MISSING]) == (864, 96)
    assert not nine.provisional
    assert checking.month("m", [*known[:8], Day(1, "A" * 95 + "E")], 960, None).provisional
    ten = [*known, Day(10_000, "E" * 96)]
    # 100,000 against a register of 95,238 is 5.0 % of it and a little; against 95,239 not.
    assert checking.month("m", ten, 960, 95_238).disagrees
    assert not checking.month("m", ten, 960, 95_239).disagrees
    assert not checking.month("m", known, 960, 1).disagrees
