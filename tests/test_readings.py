"""Readings of a plant: over HTTP, in any order, from many callers, through deaths."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from callers import Caller, machine, resident, said
from faults.crew import KILLED, Crew, Death
from flask import Flask
from works import USCC, Works, layer, open_works, row

from accounting import clock, storage
from accounting.clients import Kind as ClientKind
from accounting.enterprise import meterdays, meters, readings, validating
from accounting.enterprise.meterdays import Mark, Touched
from accounting.enterprise.meters import Kind, Meter, MeterChange
from accounting.enterprise.readings import Reading
from accounting.enterprise.slots import SLOT

NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)
DAY = date(2026, 5, 18)


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.stand(NOON):
        yield


@pytest.fixture
def works(app: Flask) -> Works:
    return open_works(app)


def test_what_is_sent_comes_back_validated_with_the_gap_filled(works: Works) -> None:
    works.meter()
    told = works.send(row("18T08:00:00", 1.5), row("18T08:15:00", 2), row("18T09:00:00", 3.5))
    assert told == {"accepted": 3, "duplicate": 0, "conflicts": [], "rejected": []}
    items = works.intervals("2026-05-18T08:00:00%2B08:00", "2026-05-18T09:30:00%2B08:00")
    # From 2 to 3.5 over three steps of 0.5; after nine nothing is known.
    assert layer(items) == [
        (1.5, 1.5, "A", None),
        (2, 2, "A", None),
        (None, 2.5, "E", "V18"),
        (None, 3, "E", "V18"),
        (3.5, 3.5, "A", None),
        (None, None, "M", "V20"),
    ]
    assert items[0]["at"] == "2026-05-18T00:00:00.000Z"


def test_a_gateway_that_asks_again_with_its_key_hears_the_same(works: Works) -> None:
    works.meter()
    path, body = f"{works.path}/readings", {"readings": [row("18T08:00:00", 1.5)]}
    first = works.gateway.send("POST", path, body, key="k1")
    again = works.gateway.send("POST", path, body, key="k1")
    assert first.get_json() == again.get_json()
    assert (first.get_json()["accepted"], again.headers["Idempotency-Replayed"]) == (1, "true")
    other = {"readings": [row("18T08:00:00", 2)]}
    reused = works.gateway.send("POST", path, other, key="k1")
    assert said(reused) == (422, "idempotency_key_reused")


def test_an_actual_that_comes_late_replaces_the_estimate(works: Works) -> None:
    works.meter()
    works.send(row("18T08:00:00", 1), row("18T08:30:00", 3))
    slots = ("2026-05-18T08:15:00%2B08:00", "2026-05-18T08:30:00%2B08:00")
    assert layer(works.intervals(*slots)) == [(None, 2, "E", "V18")]
    works.send(row("18T08:15:00", 9))
    assert layer(works.intervals(*slots)) == [(9, 9, "A", None)]


def test_second_values_are_kept_and_shown_the_newest_slot_first(works: Works) -> None:
    works.meter()
    works.send(row("18T08:00:00", 1), row("18T08:15:00", 2))
    works.send(row("18T08:00:00", 1.5), row("18T08:15:00", 3), row("18T08:00:00", 1.5))
    works.send(row("18T08:00:00", 1.6))
    path = f"/v1/plants/{works.gateway.id}/meters/m1/conflicts"
    told = works.gateway.get(path).get_json()
    shown = [(one["at"], one["kind"], one["value"]) for one in told["items"]]
    eight, quarter_past = "2026-05-18T00:00:00.000Z", "2026-05-18T00:15:00.000Z"
    assert shown == [
        (quarter_past, "interval", 3),
        (eight, "interval", Decimal("1.6")),
        (eight, "interval", Decimal("1.5")),
    ]
    pages, cursor = [], ""
    for _ in shown:
        page = works.gateway.get(f"{path}?limit=1{cursor}").get_json()
        pages += page["items"]
        cursor = f"&cursor={page['next_cursor']}"
    assert (pages, page["next_cursor"]) == (told["items"], None)
    assert said(works.gateway.get(f"/v1/plants/{works.gateway.id}/meters/no/conflicts")) == (
        404,
        "not_found",
    )


def test_each_row_has_its_own_end(works: Works) -> None:
    works.meter()
    works.meter("r1", kind="register")
    first = works.send(row("18T08:00:00", 1.5), row("18T08:00:00", 1.5), row("18T08:00:00", 1.6))
    assert (first["accepted"], first["duplicate"]) == (1, 1)
    assert first["conflicts"] == [
        {
            "index": 2,
            "meter": "m1",
            "at": "2026-05-18T00:00:00.000Z",
            "kept": Decimal("1.5"),
            "value": Decimal("1.6"),
        }
    ]
    told = works.send(
        row("18T08:15:00", 2),
        row("18T08:00:00", 1, meter="nobody"),
        row("20T12:05:01", 1),
        row("20T12:05:00", 1),
        row("18T08:00:00", 1, meter="r1"),
        row("18T08:00:00", -5, "register", "r1"),
        row("18T08:30:00", 1) | {"unit": "MWh"},
        row("18T08:30:00", 1) | {"multiplier": 40},
        row("18T08:30:00", 1) | {"unit": "kWh", "multiplier": 1},
        {"meter": "m1"},
        row("18T08:30:00", "1"),
        row("18T08:00:00", 1.6),
    )
    assert (told["accepted"], told["duplicate"], len(told["conflicts"])) == (3, 0, 1)
    assert [(one["index"], one["code"]) for one in told["rejected"]] == [
        (1, "unknown_meter"),
        (2, "future_reading"),
        (4, "wrong_kind"),
        (5, "value_out_of_range"),
        (6, "wrong_unit"),
        (7, "wrong_multiplier"),
        (9, "malformed_reading"),
        (10, "malformed_reading"),
    ]
    assert storage.database()["reading_conflicts"].count_documents({}) == 1


def test_a_multiplier_counts_what_the_transformers_took_away(works: Works) -> None:
    works.meter("r1", kind="register", multiplier=40)
    works.send(
        row("18T08:00:00", 100, "register", "r1"), row("18T08:15:00", 100.5, "register", "r1")
    )
    [item] = works.intervals("2026-05-18T08:00:00%2B08:00", "2026-05-18T08:15:00%2B08:00", "r1")
    # Half a kilowatt-hour shown, times 40.
    assert (item["raw"], item["validated"], item["quality"]) == (20, 20, "A")


def test_a_day_across_midnight_and_a_day_nobody_sent(works: Works) -> None:
    works.meter("r1", kind="register")
    works.send(row("17T23:45:00", 10, "register", "r1"), row("18T00:00:00", 12, "register", "r1"))
    items = works.intervals("2026-05-16", "2026-05-18", "r1")
    assert len(items) == 3 * 96
    assert layer(items)[191] == (2, 2, "A", None)
    assert {quality for _, _, quality, _ in layer(items)[:191]} == {"M"}


def test_a_whole_silent_day_is_estimated_once_both_ends_are_known(works: Works) -> None:
    works.meter("r1", kind="register")
    works.send(
        row("15T23:45:00", 10, "register", "r1"), row("18T00:00:00", 2_030, "register", "r1")
    )
    items = works.intervals("2026-05-15", "2026-05-18", "r1")
    # 2,020 kWh over 193 slots, to the watt-hour, and not a slot beyond.
    known = [one for one in items if one["validated"] is not None]
    assert len(known) == 193
    assert sum(Decimal(str(one["validated"])) for one in known) == 2_020
    assert {one["rule"] for one in known} == {"V19"}


def test_doors_of_plants(app: Flask, works: Works) -> None:
    works.meter()
    body = {"readings": [row("18T08:00:00", 1)]}
    stranger = machine(app, ClientKind.PLANT, "plt_other")
    assert said(stranger.post(f"{works.path}/readings", body)) == (403, "forbidden")
    assert said(resident(app).post(f"{works.path}/readings", body)) == (403, "forbidden")
    assert works.operator.post(f"{works.path}/readings", body).status_code == 200
    missing = works.operator.post("/v1/plants/plt_nothing/readings", body)
    assert said(missing) == (404, "not_found")
    query = "intervals?from=2026-05-18&to=2026-05-18"
    assert said(works.gateway.get(f"{works.path}/meters/m9/{query}")) == (404, "not_found")
    assert said(stranger.get(f"{works.path}/meters/m1/{query}")) == (403, "forbidden")


@pytest.mark.parametrize(
    "query",
    ["", "?from=2026-05-18", "?from=2026-05-19&to=2026-05-18", "?from=2025-01-01&to=2026-05-18"],
)
def test_a_range_that_is_none_is_refused(works: Works, query: str) -> None:
    works.meter()
    answer = works.gateway.get(f"{works.path}/meters/m1/intervals{query}")
    assert said(answer) == (422, "validation_failed")


@pytest.mark.parametrize("body", [{}, {"readings": []}, {"readings": {}}, {"rows": []}])
def test_a_body_that_is_no_list_of_readings_is_refused(works: Works, body: Any) -> None:
    answer = works.gateway.post(f"{works.path}/readings", body)
    assert said(answer) == (422, "validation_failed")


def test_the_operator_registers_plants_meters_nodes_and_figures(app: Flask, works: Works) -> None:
    operator, base = works.operator, f"/v1/operator/plants/{works.gateway.id}"
    again = {"name": "x", "uscc": USCC, "sector": "C3110"}
    assert said(operator.post("/v1/operator/plants", again)) == (409, "plant_exists")
    wrong = again | {"uscc": "123"}
    assert said(operator.post("/v1/operator/plants", wrong)) == (422, "validation_failed")
    node = {"node": "line1", "kind": "line", "name": "一号线"}
    assert operator.post(f"{base}/nodes", node).status_code == 201
    assert said(operator.post(f"{base}/nodes", node | {"kind": "workshop"})) == (
        409,
        "node_exists",
    )
    works.meter("m2", node="line1", rated_kw=500, flow="load")
    changed = {"meter": "m2", "carrier": "electricity", "kind": "interval", "unit": "MWh"}
    assert said(operator.post(f"{base}/meters", changed)) == (409, "meter_exists")
    gas = {"meter": "g", "carrier": "natural_gas", "kind": "register", "unit": "kWh"}
    assert said(operator.post(f"{base}/meters", gas)) == (422, "validation_failed")
    told = operator.post(f"{base}/figures", {"month": "2026-04", "output": 12.5, "tax_fen": -3})
    assert told.get_json()["revision"] == 1
    nobody = operator.post("/v1/operator/plants/plt_x/figures", {"month": "2026-04"})
    assert said(nobody) == (404, "not_found")
    for path in ("/v1/operator/plants", f"{base}/meters", f"{base}/nodes", f"{base}/figures"):
        assert said(works.gateway.post(path, {})) == (403, "forbidden")


def test_a_gateway_gets_credentials_for_its_plant(works: Works) -> None:
    wanted = {"kind": "plant", "name": "网关", "plant_id": works.gateway.id}
    made = works.operator.post("/v1/operator/partners", wanted).get_json()
    second = machine(works.operator.http.application, ClientKind.OPERATOR)
    agreed = second.post(f"/v1/operator/partners/{made['client_id']}/approve")
    assert agreed.status_code == 200
    token = works.operator.http.post(
        "/v1/oauth/token",
        data={"grant_type": "client_credentials"},
        auth=(made["client_id"], made["client_secret"]),
    ).get_json()["access_token"]
    works.meter()
    gateway = Caller(works.operator.http, made["plant_id"], token)
    body = {"readings": [row("18T08:00:00", 1)]}
    assert gateway.post(f"{works.path}/readings", body).get_json()["accepted"] == 1
    unknown = works.operator.post("/v1/operator/partners", wanted | {"plant_id": "plt_x"})
    assert said(unknown) == (404, "not_found")
    unnamed = works.operator.post("/v1/operator/partners", {"kind": "plant", "name": "网关"})
    assert said(unnamed) == (422, "validation_failed")
    missing = {"pointer": "/plant_id", "message": "缺少必填字段。"}
    assert unnamed.get_json()["errors"] == [missing]
    partner = works.operator.post("/v1/operator/partners", wanted | {"kind": "data"})
    assert partner.get_json()["errors"][0]["message"] == "只有工厂网关可以指定工厂。"


# --- below HTTP ---------------------------------------------------------------------------------


def put(plant: str, name: str = "m", **changes: Any) -> Meter:
    return meters.add(Meter(plant, name, "electricity", Kind.INTERVAL, "kWh", **changes))


def at(slot: int, day: date = DAY) -> datetime:
    return clock.start_of(day) + slot * SLOT


def final(plant: str, first: date, last: date) -> list[Any]:
    """The validated layer of all meters of a plant, after whatever is due was validated."""
    validating.catch_up(plant, first, last)
    names = [meter.meter for meter in meters.of_plant(plant)]
    return [
        (day.meter, day.day, day.raw, day.values, day.quality, day.rules, day.flags)
        for day in meterdays.days(plant, names, first, last)
    ]


def mess(seed: int) -> list[Reading]:
    """Twelve days of two meters with gaps, spikes, a dip and a rollover; no slot sent twice."""
    chance = random.Random(seed)
    rows, shown = [], 999_700 + chance.randrange(200)
    for number in range(12 * 96):
        silent = number // 96 in (3, 7) or chance.random() < 0.06
        shown = (shown + chance.randrange(3)) % 1_000_000
        if not silent:
            value = Decimal(chance.choice((1, 2, 3, 3, 4, 90, -1)))
            rows.append(Reading("m", at(number), value, Kind.INTERVAL))
            rows.append(Reading("r", at(number), Decimal(shown), Kind.REGISTER))
    return rows


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.usefixtures("app")
def test_any_order_gives_the_same_final_layer(seed: int) -> None:
    chance, rows = random.Random(seed), mess(seed)
    layers = []
    with clock.travel(timedelta(days=30)):
        for plant, ordered in (("a", True), ("b", False), ("c", False)):
            put(plant)
            meters.add(Meter(plant, "r", "electricity", Kind.REGISTER, "kWh"))
            sent = list(rows) if ordered else chance.sample(rows, len(rows))
            while sent:
                size = chance.choice((50, 400, 900))
                # Some rows come again.
                readings.take(plant, sent[:size] + sent[: size // 10])
                sent = sent[size:]
                if chance.random() < 0.6:
                    validating.sweep(clock.now() + readings.DEBOUNCE)
            layers.append(final(plant, DAY, DAY + timedelta(days=11)))
    assert layers[0] == layers[1] == layers[2]
    qualities = "".join(quality for _, _, _, _, quality, _, _ in layers[0])
    assert {"A", "E", "M"} == set(qualities)
    for _, _, _, values, quality, _, _ in layers[0]:
        assert all(
            (value is None) == (letter == "M")
            for value, letter in zip(values, quality, strict=True)
        )


@pytest.mark.usefixtures("app")
def test_callers_at_once_lose_nothing_and_agree_on_the_first() -> None:
    put("p")

    def send(worker: int) -> list[str]:
        # Each has slots of its own, and all fight for slot 90 with values of their own.
        rows = [Reading("m", at(worker * 8 + one), Decimal(1), Kind.INTERVAL) for one in range(8)]
        rows.append(Reading("m", at(90), Decimal(worker), Kind.INTERVAL))
        return [end.outcome for end in readings.take("p", rows)]

    with ThreadPoolExecutor(8) as pool:
        ends = list(pool.map(send, range(8)))
    assert all(one[:8] == ["accepted"] * 8 for one in ends)
    assert sorted(one[8] for one in ends) == ["accepted"] + ["conflict"] * 7
    assert storage.database()["reading_conflicts"].count_documents({}) == 7
    [day] = final("p", DAY, DAY)
    assert day[3][:64] == (1_000,) * 64


@pytest.mark.usefixtures("app")
def test_validation_and_readings_at_once_end_in_the_layer_of_what_was_sent() -> None:
    put("p")
    rows = [
        Reading("m", at(slot, DAY - timedelta(days=back)), Decimal(slot + back), Kind.INTERVAL)
        for back in range(3)
        for slot in range(0, 96, 2)
    ]
    random.Random(7).shuffle(rows)

    def send(part: int) -> None:
        for place in range(part, len(rows), 4 * 6):
            readings.take("p", rows[place : place + 1])

    def check(_: int) -> None:
        for _ in range(4):
            validating.sweep(clock.now() + readings.DEBOUNCE)

    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(send, part) for part in range(24)]
        jobs += [pool.submit(check, part) for part in range(3)]
        for job in jobs:
            job.result()
    put("q")
    readings.take("q", rows)
    first = DAY - timedelta(days=2)
    assert final("p", first, DAY) == final("q", first, DAY)


@pytest.mark.usefixtures("app")
def test_only_the_days_whose_values_changed_are_told_to_the_inventory() -> None:
    put("p")
    days = [DAY - timedelta(days=back) for back in range(4)]
    rows = [
        Reading("m", at(slot, day), Decimal(2), Kind.INTERVAL) for day in days for slot in range(96)
    ]
    readings.take("p", [one for one in rows if one.at != at(40)])
    final("p", days[-1], DAY)

    def waiting() -> list[Touched]:
        return meterdays.touched(Mark.INVENTORY, clock.now(), 100).get("p", [])

    told = waiting()
    assert {one.day for one in told} == {*days}
    meterdays.let_go(Mark.INVENTORY, told)
    assert waiting() == []
    readings.take("p", [one for one in rows if one.at == at(40)])
    final("p", days[-1], DAY)
    [again] = waiting()
    assert (again.day, again.validation) == (DAY, 2)
    # What changed while it was being counted stays touched.
    meterdays.let_go(Mark.INVENTORY, [one for one in told if one.day == DAY])
    assert waiting() == [again]


@pytest.mark.usefixtures("app")
def test_a_meter_that_was_swapped_is_validated_anew() -> None:
    meters.add(Meter("p", "r", "electricity", Kind.REGISTER, "kWh"))
    shown = {0: 500, 1: 501, 2: 40, 3: 41}
    readings.take(
        "p",
        [Reading("r", at(slot), Decimal(value), Kind.REGISTER) for slot, value in shown.items()],
    )
    [before] = final("p", DAY, DAY)
    assert (before[4][:3], before[5][1]) == ("AEA", "V9")
    meters.record_change("p", "r", MeterChange(at(2) - timedelta(minutes=5), 501_600, 39_800))
    validating.touch("p", "r")
    [after] = final("p", DAY, DAY)
    # 0.6 kWh of the old one and 0.2 of the new.
    assert (after[3][1], after[4][:3], after[5][1]) == (800, "AAA", "V9")


@pytest.mark.parametrize(
    "step",
    [
        Death("accounting.enterprise.readings:_write", "before"),
        Death("accounting.enterprise.readings:_write", "after"),
        Death("accounting.enterprise.validating:_write", "before"),
        Death("accounting.enterprise.validating:_write", "after"),
        Death("accounting.enterprise.validating:_write", "after", 2),
    ],
    ids=str,
)
@pytest.mark.usefixtures("app")
def test_a_death_at_any_step_loses_nothing(crew: Crew, step: Death) -> None:
    put("p")
    # Yesterday has a gap at its end that only today's first slot can close.
    yesterday = DAY - timedelta(days=1)
    readings.take("p", [Reading("m", at(90, yesterday), Decimal(2), Kind.INTERVAL)])
    final("p", yesterday, DAY)
    args = {"plant": "p", "meter": "m", "at": at(0).isoformat(), "value": "2"}
    assert crew.run("read_meter", step, **args) == KILLED
    # The gateway heard nothing and sends again; the sweep does the rest.
    readings.take("p", [Reading("m", at(0), Decimal(2), Kind.INTERVAL)])
    validating.sweep(clock.now() + 2 * readings.DEBOUNCE)
    [before, today] = meterdays.days("p", ["m"], yesterday, DAY)
    assert (before.values[90:], before.quality[90:]) == ((2_000,) * 6, "AEEEEE")
    assert (today.values[0], today.quality[0]) == (2_000, "A")
    assert storage.database()["meter_days"].count_documents({"vee_due_at": {"$type": "date"}}) == 0
