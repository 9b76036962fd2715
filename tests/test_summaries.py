"""Summaries: a projection that may be caught up, raced and rebuilt without changing its answer."""

import itertools
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument

from accounting import book, clock, storage
from footprint import summaries
from footprint.activities import Activity
from footprint.rules import Report
from points import crediting

pytestmark = pytest.mark.usefixtures("app")

ANNA, BO = "res_anna", "res_bo"
events = (f"event-{number}" for number in itertools.count())
ALL = (date(2025, 1, 1), date(2026, 12, 31))


def city(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=clock.CITY).astimezone(UTC)


NOW = city("2026-05-20 12:00")


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.travel(NOW - clock.now()):
        yield


def tell(
    behaviour: str, quantity: object, at: str, *, who: str = ANNA, evidence: str = "A", **more: Any
) -> Activity:
    what = Report(behaviour, Decimal(str(quantity)), city(at), None, more)
    return crediting.report(
        who, what, source="partner:x", event_id=next(events), evidence=evidence
    )[0]


def live(who: str = ANNA) -> list[Activity]:
    """Rides, steps, a late row of another month, a refused one and one taken back."""
    told = [
        tell("bus_km", 10, "2026-05-20 08:00", who=who),
        tell("bus_km", 10, "2026-05-20 09:00", who=who),
        tell("bike_km", 5, "2026-05-20 10:00", who=who, evidence="B"),
        tell("bike_km", 5, "2026-05-20 08:00", who=who, evidence="B"),  # Overlaps: rejected.
        tell("walk_steps", 5_000, "2026-05-19 20:00", who=who),
        tell("walk_steps", 4_000, "2026-05-19 21:00", who=who),  # Merged.
        tell("recycle_kg", 2, "2026-04-30 23:59:59.999", who=who),
        tell("recycle_kg", 2, "2026-05-01 00:00", who=who),
        tell("online_transfer", 1, "2026-03-15 08:00", who=who),
        tell("online_transfer", 1, "2026-03-15 09:00", who=who),  # Capped to nothing.
    ]
    crediting.reverse(told[1], reason="x", by="operator")
    return told


def cells(first: date, last: date, who: str = ANNA) -> list[tuple[Any, ...]]:
    return [
        (cell.day, cell.behaviour, cell.evidence, cell.mg, cell.points, cell.count)
        for cell in summaries.between(who, first, last).cells
    ]


def documents(who: str = ANNA) -> list[dict[str, Any]]:
    found = storage.database()["summary_months"].find({"account": who}, {"_id": 0})
    return list(found.sort("month", 1))


def raw(who: str = ANNA) -> list[bytes]:
    """The documents of an account byte by byte, the order of their fields included."""
    months = storage.database().get_collection(
        "summary_months", codec_options=CodecOptions(document_class=RawBSONDocument)
    )
    return [document.raw for document in months.find({"account": who}).sort("month", 1)]


def test_a_range_of_days_is_told_by_day_behaviour_and_evidence() -> None:
    live()
    assert cells(date(2026, 5, 1), date(2026, 5, 20)) == [
        ("2026-05-01", "recycle_kg", "A", 2_690_000, 2_690, 1),
        # 5,000 steps; the lower total was merged into them.
        ("2026-05-19", "walk_steps", "A", 82_222, 82, 1),
        # 5 x 48.7 g; the overlapping ride counts as nothing.
        ("2026-05-20", "bike_km", "B", 243_500, 243, 1),
        # Two rides of 269 g, and one taken back.
        ("2026-05-20", "bus_km", "A", 269_000, 269, 1),
    ]
    assert cells(date(2026, 4, 30), date(2026, 4, 30)) == [
        ("2026-04-30", "recycle_kg", "A", 2_690_000, 2_690, 1)
    ]
    assert cells(date(2026, 3, 1), date(2026, 3, 31)) == [
        ("2026-03-15", "online_transfer", "A", 173_000, 173, 2)
    ]
    assert cells(date(2026, 5, 2), date(2026, 5, 18)) == []


def test_part_of_a_day_knows_what_was_taken_back_of_it() -> None:
    told = live()
    day = date(2026, 5, 20)
    morning = summaries.during(ANNA, city("2026-05-20 00:00"), city("2026-05-20 09:00"))
    [cell] = morning.cells
    assert (cell.day, cell.behaviour, cell.mg, cell.count) == ("2026-05-20", "bus_km", 269_000, 1)
    # The ride at nine was taken back, the one by bike at ten stands.
    later = summaries.during(ANNA, city("2026-05-20 09:00"), city("2026-05-20 13:00"))
    assert [(cell.behaviour, cell.mg) for cell in later.cells] == [("bike_km", 243_500)]
    both = sorted([*morning.cells, *later.cells], key=lambda cell: cell.behaviour)
    assert tuple(both) == summaries.between(ANNA, day, day).cells
    assert told[0].seq == 1


def test_the_cells_add_up_to_the_lines_of_the_book() -> None:
    live()
    mg: Counter[str] = Counter()
    for entry in book.entries(ANNA):
        assert entry.cap_day is not None
        mg[entry.cap_day] += entry.amount("co2e_mg", "reduction")
    told: Counter[str] = Counter()
    for cell in summaries.between(ANNA, *ALL).cells:
        told[cell.day] += cell.mg
    assert told == mg
    assert sum(told.values()) == book.head(ANNA).after["lifetime_mg"]


def test_catching_up_again_changes_nothing() -> None:
    live()
    assert summaries.catch_up(ANNA) == book.head(ANNA).seq
    before = documents()
    assert [document["month"] for document in before] == ["2026-03", "2026-04", "2026-05"]
    assert summaries.catch_up(ANNA) == book.head(ANNA).seq
    # As if a caller had read the cursor long ago, and takes everything in once more.
    storage.database()["summary_cursors"].delete_many({})
    assert summaries.catch_up(ANNA) == book.head(ANNA).seq
    assert documents() == before


def test_catching_up_in_steps_is_the_same_as_at_once() -> None:
    for activity in live():
        assert activity.id
        summaries.catch_up(ANNA)
    stepwise = raw()
    for name in ("summary_months", "summary_cursors"):
        storage.database()[name].delete_many({})
    summaries.catch_up(ANNA)
    assert raw() == stepwise


def test_a_rebuilt_summary_is_identical() -> None:
    live()
    live(BO)
    summaries.catch_up(ANNA)
    summaries.catch_up(BO)
    before, of_bo = raw(), raw(BO)
    assert summaries.rebuild(ANNA) == book.head(ANNA).seq
    assert raw() == before
    assert raw(BO) == of_bo


@pytest.mark.parametrize("callers", [2, 8])
def test_callers_at_once_take_each_entry_in_once(callers: int) -> None:
    for number in range(6):
        live(f"res_{number}")
    everybody = [f"res_{number}" for number in range(6)]
    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(summaries.catch_up, everybody * callers))
    raced = [raw(who) for who in everybody]
    for who, found in zip(everybody, raced, strict=True):
        summaries.rebuild(who)
        assert raw(who) == found


def test_a_caller_who_catches_up_while_entries_arrive_misses_none() -> None:
    def arrive() -> None:
        for hour in range(12):
            tell("bike_km", 1, f"2026-05-19 {hour:02d}:00")

    with ThreadPoolExecutor(3) as pool:
        arriving = pool.submit(arrive)
        while not arriving.done():
            list(pool.map(summaries.catch_up, [ANNA, ANNA]))
        arriving.result()
    assert cells(date(2026, 5, 19), date(2026, 5, 19)) == [
        # 10 of 12 rides are credited: 487 g, 48 points each.
        ("2026-05-19", "bike_km", "A", 487_000, 480, 12)
    ]


def test_what_is_no_activity_is_passed_by_but_not_forgotten() -> None:
    live()
    ask = book.Ask(ANNA, "gift", "adjust", "f", NOW)
    book.post(ask, lambda head, now: book.Decision((), {}))
    assert summaries.catch_up(ANNA) == book.head(ANNA).seq


def test_an_account_without_entries_has_an_empty_summary() -> None:
    assert summaries.catch_up("res_nobody") == 0
    assert summaries.between("res_nobody", *ALL).cells == ()


def test_bank_grade_and_other_grams_of_one_behaviour_are_told_apart() -> None:
    with clock.travel(city("2028-06-30 12:00") - clock.now()):  # The factor's grace is over.
        tell("bus_km", 10, "2028-06-29 08:00")
        [cell] = summaries.between(ANNA, date(2028, 6, 1), date(2028, 6, 30)).cells
        assert (cell.mg, cell.bank_grade) == (269_000, False)
