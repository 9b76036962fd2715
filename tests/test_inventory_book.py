"""What the book, the closed months and the entries of plants say, whoever comes in between."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from callers import Caller, machine, said
from faults.crew import KILLED, Crew, Death
from flask import Flask

from accounting import book, clock, jobs, storage
from accounting.clients import Kind as ClientKind
from accounting.enterprise import (
    inventory,
    inventory_book,
    inventory_days,
    inventory_entries,
    meters,
    periods,
    plants,
    readings,
    validating,
)
from accounting.enterprise.inventory_entries import CertificateUsed, Evidence, MoreThanBought
from accounting.enterprise.meters import Kind, Meter
from accounting.enterprise.plants import Node, NodeKind
from accounting.enterprise.readings import Reading
from accounting.enterprise.slots import SLOT
from accounting.errors import KeyReused, ValidationFailed
from accounting.proration import Use
from accounting.verifying import check
from api.bookkeeping import RULES
from footprint import upkeep
from points import liability

NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)
DAY, NEXT = date(2023, 6, 1), date(2023, 6, 2)
# The clock of a process that is killed goes on.
SOON = NOON + timedelta(hours=1)
# A kilowatt-hour of 2023 in Zhejiang.
MG = 497_400


@pytest.fixture(autouse=True)
def _noon(app: Flask) -> Iterator[None]:
    with clock.stand(NOON):
        yield


def send(slot: int, kwh: Any, day: date = DAY, plant: str = "p") -> None:
    """One quarter hour of the plant's meter, counted at once."""
    meters.add(Meter(plant, "m", "electricity", Kind.INTERVAL, "kWh"))
    at = clock.start_of(day) + slot * SLOT
    readings.take(plant, [Reading("m", at, Decimal(kwh), Kind.INTERVAL)])
    inventory.for_period(plant, day, day)


def posted(plant: str = "p") -> list[tuple[str, int]]:
    """The differences that were posted, by day, in the order of the book."""
    entries = book.entries(plant)
    return [(one.cap_day or "", one.amount("co2e_mg", "emitted")) for one in entries]


def proven(plant: str = "p") -> None:
    """The book holds, and holds what the days say."""
    check([plant], RULES, {})
    head = book.head(plant).after
    total = inventory.for_period(plant, date(2023, 1, 1), date(2023, 12, 31), fresh=False).total
    assert book.balance(head, "co2e_mg", "emitted") == total.co2e_mg
    assert book.balance(head, "tce_mg", "used") == total.tce_mg


# --- the book -----------------------------------------------------------------------------------


def test_days_that_are_over_go_to_the_book_once_and_then_differences() -> None:
    send(0, 1)
    send(0, 2, NEXT)
    send(0, 5, NOON.date())
    assert periods.run(clock.now()) == 2
    assert posted() == [("2023-06-01", MG), ("2023-06-02", 2 * MG)]
    assert periods.run(clock.now()) == 0
    # Two late readings of a day are one difference of the next run.
    send(40, 3)
    send(80, 4)
    assert periods.run(clock.now()) == 1
    assert posted()[2:] == [("2023-06-01", 7 * MG)]
    entry = list(book.entries("p"))[-1]
    assert (entry.refs["co2e_mg"], entry.refs["cause"]) == (8 * MG, "readings")
    assert entry.refs["factors"] == ["electricity/CN-ZJ/2023", "tce/electricity/calorific"]
    proven()
    with clock.travel(timedelta(days=1)):
        assert periods.run(clock.now()) == 1
    assert posted()[3:] == [("2026-05-20", 5 * MG)]


def test_who_walks_all_accounts_takes_a_plant_for_what_it_is() -> None:
    send(0, 1)
    periods.run(clock.now())
    upkeep.walk()
    assert upkeep.differing(book.heads(["p"]).values()) == []
    job = liability.queue("clock")
    liability.run(job.id)
    ended = jobs.get(job.id)
    assert ended is not None
    assert ended.state == "done"


def test_runs_at_once_post_a_day_once() -> None:
    for slot in range(4):
        send(slot, 1)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: periods.run(clock.now()), range(4)))
    assert sum(mg for _, mg in posted()) == 4 * MG
    proven()


def test_a_run_with_older_numbers_posts_nothing_over_newer_ones() -> None:
    send(0, 1)
    old = inventory_book.due(clock.now(), 10)["p"]
    send(1, 1)
    periods.run(clock.now())
    assert inventory_book.post("p", old, clock.now()) == old
    assert sum(mg for _, mg in posted()) == 2 * MG
    inventory_book.let_go(old)
    proven()


@pytest.mark.parametrize(
    "step",
    [
        Death("accounting.book.posting:_insert", "before"),
        Death("accounting.book.posting:_insert", "after"),
        Death("accounting.enterprise.inventory_book:let_go", "before"),
    ],
    ids=str,
)
def test_a_run_that_is_killed_is_finished_by_the_next(crew: Crew, step: Death) -> None:
    send(0, 1)
    assert crew.run("post_inventory", step) == KILLED
    assert periods.run(clock.now()) == 1
    assert posted() == [("2023-06-01", MG)]
    proven()


def test_a_main_meter_heard_earlier_than_known_is_posted_through_a_death(crew: Crew) -> None:
    """On the second day the line alone is known: its sum ends when the main meter covers it."""
    last = date(2023, 6, 3)
    plants.add_node(Node("p", "line", NodeKind.LINE))
    meters.add(Meter("p", "l", "electricity", Kind.INTERVAL, "kWh", node="line"))
    for day in (DAY, NEXT, last):
        told = [Reading("l", clock.start_of(day), Decimal(5), Kind.INTERVAL)]
        readings.take("p", told)
    send(0, 8, last)
    inventory.for_period("p", DAY, last)
    periods.run(clock.now())
    assert [mg for _, mg in posted()] == [5 * MG, 5 * MG, 8 * MG]
    readings.take("p", [Reading("m", clock.start_of(DAY), Decimal(9), Kind.INTERVAL)])
    validating.catch_up("p", DAY, last)
    step = Death("accounting.enterprise.meters:heard_since", "after")
    assert crew.run("count_inventory", step) == KILLED
    inventory_days.catch_up("p", DAY, last)
    with clock.travel(timedelta(hours=1)):
        periods.run(clock.now())
    assert sum(mg for day, mg in posted() if day == "2023-06-01") == 9 * MG
    assert sum(mg for day, mg in posted() if day == "2023-06-02") == 0
    proven()


# --- closed months ------------------------------------------------------------------------------


def test_a_closed_month_is_frozen_and_late_data_make_a_revision() -> None:
    send(0, 1)
    first = periods.close("p", "2023-06", by="gateway")
    assert (first.revision, first.causes, first.co2e_mg) == (1, ("closed",), MG)
    assert posted() == [("2023-06-01", MG)]
    assert periods.close("p", "2023-06", by="another") == first
    send(0, 4, NEXT)
    # The reading is taken, and the frozen numbers stand until the run.
    assert periods.newest("p", "2023-06") == first
    periods.run(clock.now())
    second = periods.newest("p", "2023-06")
    assert second is not None
    assert (second.revision, second.causes, second.co2e_mg) == (2, ("readings",), 5 * MG)
    assert (second.difference_co2e_mg, dict(second.days)) == (4 * MG, {"2023-06-02": 4 * MG})
    assert periods.revisions_before("p", before=None, limit=9) == [second, first]
    assert periods.run(clock.now()) == 0
    proven()
    with pytest.raises(periods.MonthNotOver):
        periods.close("p", "2026-05", by="gateway")


def test_closing_against_late_data_forgets_nothing() -> None:
    for number in range(6):
        send(number, 1)

    def late(slot: int) -> None:
        send(slot, 1)
        periods.run(clock.now())

    with ThreadPoolExecutor(6) as pool:
        closing = [pool.submit(periods.close, "p", "2023-06", by="x") for _ in range(2)]
        coming = [pool.submit(late, slot) for slot in range(20, 24)]
        for one in [*closing, *coming]:
            one.result()
    periods.run(clock.now())
    newest = periods.newest("p", "2023-06")
    assert newest is not None
    now = inventory.for_period("p", DAY, DAY).total
    assert newest.co2e_mg == now.co2e_mg
    revisions = periods.revisions_before("p", before=None, limit=20)
    assert [one.revision for one in revisions] == list(range(len(revisions), 0, -1))
    differences = sum(one.difference_co2e_mg for one in revisions)
    assert (revisions[-1].co2e_mg or 0) + differences == newest.co2e_mg
    proven()


@pytest.mark.parametrize(
    "step",
    [
        Death("accounting.enterprise.periods:_finish", "before"),
        Death("accounting.enterprise.inventory_book:let_go", "before"),
        Death("accounting.enterprise.periods:_revise", "after", 2),
    ],
    ids=str,
)
def test_a_closing_that_is_killed_is_finished_by_the_sweep(crew: Crew, step: Death) -> None:
    send(0, 1)
    assert crew.run("close_month", step, plant="p", month="2023-06") == KILLED
    assert periods.sweep(SOON) == 1
    assert periods.sweep(SOON) == 0
    newest = periods.newest("p", "2023-06")
    assert newest is not None
    assert (newest.revision, newest.co2e_mg) == (1, MG)
    proven()


# --- process emissions --------------------------------------------------------------------------


def limestone(event: str = "e1", grams: int = 1_000_000, **changes: Any) -> Any:
    told: dict[str, Any] = {"evidence": "weighbridge 17", "by": "gateway", **changes}
    return inventory_entries.add_process(
        "p", event, DAY, NEXT, material="calcium_carbonate", quantity_g=grams, **told
    )


def of_day(day: date, node: str | None = None) -> int:
    return inventory.for_period("p", day, day, node=node).total.co2e_mg


def test_a_process_emission_counts_evenly_on_its_days() -> None:
    """1 t of limestone: 0.440 t of CO2, half on each of two days."""
    plants.add_node(Node("p", "kiln", NodeKind.EQUIPMENT))
    entry = limestone(node="kiln")
    assert (entry.amount, entry.factor) == (440_000_000, "process/calcium_carbonate/CN-GBT32151")
    assert (of_day(DAY), of_day(NEXT), of_day(DAY, "kiln")) == (220_000_000,) * 3
    assert limestone(node="kiln") == entry
    with pytest.raises(KeyReused):
        limestone(node="kiln", grams=2_000_000)
    found = inventory.for_period("p", DAY, NEXT).total
    assert found.scope_mg(1) == found.co2e_mg == 440_000_000
    periods.run(clock.now())
    assert posted() == [("2023-06-01", 220_000_000), ("2023-06-02", 220_000_000)]
    # It was two tonnes: the first is taken back, the event is told anew.
    gone = inventory_entries.take_back(
        "p", inventory_entries.Kind.PROCESS, "e1", reason="typo", by="gateway"
    )
    assert (gone.taken_back, of_day(DAY)) == ("typo", 0)
    assert limestone(node="kiln", grams=2_000_000).number == 2
    # A retry of the first call hears what became of it and changes nothing.
    assert limestone(node="kiln").taken_back == "typo"
    periods.run(clock.now())
    assert sum(mg for _, mg in posted()) == 880_000_000
    proven()


@pytest.mark.parametrize(("amount", "days"), [(100, 7), (3, 10), (0, 3), (-10, 4), (97, 1)])
def test_the_parts_of_days_add_up(amount: int, days: int) -> None:
    use = Use(DAY, DAY + timedelta(days=days - 1), Decimal(amount))
    parts = [use.on(DAY + timedelta(days=number)) for number in range(days)]
    assert sum(parts) == amount
    assert max(parts) - min(parts) <= 1


def test_more_entries_than_a_day_can_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory_entries, "LIVE_MAX", 2)
    limestone("e1")
    limestone("e2")
    with pytest.raises(ValidationFailed):
        limestone("e3")
    assert limestone("e2").number == 1


def test_entries_at_once_are_all_counted() -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda number: limestone(f"e{number % 3}"), range(6)))
    assert of_day(DAY) == 3 * 220_000_000


@pytest.mark.parametrize(
    "step",
    [
        Death("accounting.enterprise.inventory_entries:_settle", "before"),
        Death("accounting.enterprise.inventory_days:_write", "after"),
    ],
    ids=str,
)
def test_an_entry_that_is_killed_half_way_is_counted_by_the_sweep(crew: Crew, step: Death) -> None:
    assert crew.run("add_process", step, plant="p", event="e1", day=DAY.isoformat()) == KILLED
    assert inventory_entries.sweep(SOON) == 1
    assert inventory_entries.sweep(SOON) == 0
    # 1 t measured.
    assert of_day(DAY) == 1_000_000_000


# --- green power --------------------------------------------------------------------------------


def green(kwh: int, plant: str = "p", certificate: str = "gec-1", last: date = NEXT) -> Any:
    return inventory_entries.add_green_power(
        plant,
        certificate,
        DAY,
        last,
        wh=kwh * 1_000,
        evidence_kind=Evidence.CERTIFICATE,
        evidence="registry page",
        by="gateway",
    )


def test_green_power_is_zero_and_the_rest_has_the_residual_factor() -> None:
    """100 kWh a day bought, 60 green over two days: (100 - 30) x 0.6096 = 42.672 kg a day."""
    send(0, 100)
    send(0, 100, NEXT)
    green(60)
    found = inventory.for_period("p", DAY, NEXT)
    assert found.total.co2e_mg == 2 * 42_672_000
    lines = found.total.by_carrier
    assert lines["electricity"].co2e_mg == 200 * MG
    assert lines["green_power"].quantity == -60_000
    assert lines["green_power"].factors == {"electricity/CN-RESIDUAL/2023"}
    # By slots it is the same, and what is used stays used.
    assert inventory.for_period("p", DAY, NEXT, inventory.By.SLOT).total.co2e_mg == 85_344_000
    assert found.total.tce_mg == 200 * 122_900
    # All of it green is zero.
    green(140, certificate="gec-2")
    assert inventory.for_period("p", DAY, NEXT).total.co2e_mg == 0
    with pytest.raises(MoreThanBought):
        green(1, certificate="gec-3")
    periods.run(clock.now())
    proven()


def test_a_certificate_is_used_once_in_the_city() -> None:
    for plant in ("p", "q"):
        send(0, 100, plant=plant)

    def use(number: int) -> str:
        try:
            return str(green(50, "pq"[number % 2], last=DAY).plant)
        except CertificateUsed:
            return "refused"

    with ThreadPoolExecutor(6) as pool:
        ends = set(pool.map(use, range(6)))
    [winner] = ends - {"refused"}
    assert ends == {winner, "refused"}
    loser = "q" if winner == "p" else "p"
    inventory_entries.take_back(
        winner, inventory_entries.Kind.GREEN_POWER, "gec-1", reason="sold on", by="gateway"
    )
    assert green(50, loser, last=DAY).plant == loser
    with pytest.raises(CertificateUsed):
        green(40, winner, last=DAY)
    sums = [inventory.for_period(plant, DAY, DAY).total.co2e_mg for plant in (winner, loser)]
    # 100 x 0.4974; 50 x 0.6096.
    assert sums == [49_740_000, 30_480_000]


def test_certificates_that_come_at_once_are_no_more_than_was_bought() -> None:
    """100 kWh bought: of six times 40 two have room, whoever they are, and four are free again."""
    send(0, 100)

    def use(number: int) -> bool:
        try:
            green(40, certificate=f"gec-{number}", last=DAY)
        except MoreThanBought:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        ends = list(pool.map(use, range(6)))
    assert ends.count(True) == 2
    # (100 - 80) x 0.6096.
    assert inventory.for_period("p", DAY, DAY).total.co2e_mg == 20 * 609_600
    send(0, 100, plant="q")
    assert green(40, "q", f"gec-{ends.index(False)}", last=DAY).plant == "q"


# --- over HTTP ----------------------------------------------------------------------------------


@pytest.fixture
def gateway(app: Flask) -> Caller:
    plant = plants.add_plant("示范钢厂", "91330802MA2DH0000Y", "C3110").id
    return machine(app, ClientKind.PLANT, plant)


def test_entries_and_closings_over_http(app: Flask, gateway: Caller) -> None:
    path = f"/v1/plants/{gateway.id}"
    send(0, 100, plant=gateway.id)
    told = {
        "source_event_id": "e1",
        "from": "2023-06-01",
        "to": "2023-06-01",
        "material": "dolomite",
        "quantity_t": 2.5,
        "evidence": "weighbridge 17",
    }
    made = gateway.post(f"{path}/process-emissions", told, key="k1")
    assert made.status_code == 201, made.text
    # 2.5 t x 0.477 = 1.1925 t
    assert made.get_json()["co2e_kg"] == Decimal("1192.5")
    assert gateway.post(f"{path}/process-emissions", told, key="k1").get_json() == made.get_json()
    assert gateway.post(f"{path}/process-emissions", told).get_json() == made.get_json()
    measured = {**told, "source_event_id": "e2", "co2e_kg": 7.5}
    assert said(gateway.post(f"{path}/process-emissions", measured)) == (422, "validation_failed")
    del measured["material"], measured["quantity_t"]
    assert gateway.post(f"{path}/process-emissions", measured).status_code == 201
    listed = gateway.get(f"{path}/process-emissions?limit=1").get_json()
    assert [one["co2e_kg"] for one in listed["items"]] == [Decimal("7.5")]
    more = gateway.get(f"{path}/process-emissions?limit=1&cursor={listed['next_cursor']}")
    assert [one["source_event_id"] for one in more.get_json()["items"]] == ["e1"]

    power = {
        "certificate": "gec-1",
        "from": "2023-06-01",
        "to": "2023-06-01",
        "kwh": 40,
        "evidence_kind": "certificate",
        "evidence": "registry page",
    }
    assert gateway.post(f"{path}/green-power", power).status_code == 201
    too_much = power | {"certificate": "gec-2", "kwh": 61}
    answer = gateway.post(f"{path}/green-power", too_much)
    assert said(answer) == (409, "green_power_exceeds_purchase")
    unproven = power | {"certificate": "gec-2", "evidence_kind": "promise"}
    assert said(gateway.post(f"{path}/green-power", unproven)) == (422, "validation_failed")

    closed = gateway.post(f"{path}/periods/2023-06/close")
    assert closed.status_code == 200, closed.text
    # 1,192.5 + 7.5 + 60 x 0.6096 = 1,236.576 kg
    assert closed.get_json()["co2e_kg"] == Decimal("1236.576")
    back = gateway.post(f"{path}/green-power/gec-1/take-back", {"reason": "sold on"})
    assert back.get_json()["taken_back"] == "sold on"
    assert said(gateway.post(f"{path}/green-power/e1/take-back", {"reason": "x"})) == (
        404,
        "not_found",
    )
    periods.run(clock.now())
    [second, first] = gateway.get(f"{path}/periods").get_json()["items"]
    # 100 x 0.4974 - 60 x 0.6096 = 13.164 kg more
    assert (second["revision"], second["difference_co2e_kg"]) == (2, Decimal("13.164"))
    assert (second["causes"], second["days"]) == (["entries"], {"2023-06-01": Decimal("13.164")})
    assert first["co2e_kg"] == Decimal("1236.576")
    assert said(gateway.post(f"{path}/periods/2026-05/close")) == (422, "period_not_over")
    assert said(gateway.post(f"{path}/periods/2026-13/close")) == (422, "validation_failed")
    trail = machine(app, ClientKind.OPERATOR).get("/v1/operator/audit?limit=50").get_json()
    assert {
        "process emission recorded",
        "green power recorded",
        "green_power taken back",
        "month closed",
    } <= {one["action"] for one in trail["items"]}


def test_strangers_write_nothing(app: Flask, gateway: Caller) -> None:
    path = f"/v1/plants/{gateway.id}"
    stranger = machine(app, ClientKind.PLANT, "plt_other")
    told = {
        "source_event_id": "e1",
        "from": "2023-06-01",
        "to": "2023-06-01",
        "co2e_kg": 1,
        "evidence": "x",
    }
    for answer in (
        stranger.post(f"{path}/process-emissions", told),
        stranger.get(f"{path}/process-emissions"),
        stranger.get(f"{path}/green-power"),
        stranger.get(f"{path}/periods"),
        stranger.post(f"{path}/periods/2023-06/close"),
        stranger.post(f"{path}/process-emissions/e1/take-back", {"reason": "x"}),
    ):
        assert said(answer) == (403, "forbidden")
    assert storage.database()["inventory_entries"].count_documents({}) == 0
