"""Pools that run down: slower, then stopped in time, alarms once, and the page that shows it."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from callers import machine, resident
from flask import Flask
from lives import at, city, did, spent

from accounting import accounts, book, clock, storage
from accounting.clients import Kind
from api import tasks
from footprint import upkeep
from points import crediting, flows, funders, liability, pools, programme, terms
from points.funders import Pool
from points.wallet import consistent

NOON = "2026-05-20 12:00"
SECOND = timedelta(seconds=1)
_people = iter(range(10_000))


@pytest.fixture(autouse=True)
def _noon(request: pytest.FixtureRequest) -> Iterator[None]:
    if "app" not in request.fixturenames:
        yield
        return
    request.getfixturevalue("app")
    terms.forget()
    with at(NOON):
        yield
    terms.forget()


def someone() -> str:
    return accounts.by_phone(f"+86137{next(_people):08d}")


def funder(**changes: Any) -> str:
    """A funder two operators agreed on, as the city's stand-in or for a campaign."""
    wanted = {**funders.CITY_TERMS, "kind": "bank", "priority": 5, **changes}
    return funders.approve(funders.propose(wanted, "anna", alone=False).id, "bo", alone=False).id


def city_has(**changes: Any) -> None:
    funders.change("city", changes, "anna", reason="the year's budget", alone=False)
    funders.approve("city", "bo", alone=False)


def passed() -> dict[str, pools.Kept]:
    """A pass of the keeper that has seen every entry, by funder."""
    upkeep.walk()
    return {kept.funder: kept for kept in pools.keep(clock.now())}


def records(name: str = "city") -> list[tuple[int, int, str]]:
    return [
        (row["number"], row["permille"], row["reason"])
        for row in terms.rate_rows(name, before=None, limit=100)[::-1]
    ]


def the_books_hold() -> None:
    assert book.verify(checks=(consistent,)).problem is None


# The arithmetic of a pool.


def pool(**changes: Any) -> Pool:
    terms_of = {
        "budget_points": 1_000,
        "budget_fen": None,
        "fen_per_1000_points": 200,
        "priority": 0,
        "covers_others": False,
        "slows_at_percent": 90,
        "slowed_permille": 500,
        "reserve_points": 40,
    }
    return Pool("city", **{**terms_of, **changes})


def test_a_pool_is_the_smaller_of_points_and_of_what_its_money_pays_for() -> None:
    assert pool().limit(0) == 1_000
    # 100 fen pay for 500 points at 200 fen a thousand.
    assert pool(budget_fen=100).limit(0) == 500
    # 30 points have expired: they cost nothing any more.
    assert pool(budget_fen=100).limit(30) == 530
    assert pool(budget_points=None).limit(0) is None


def test_the_reserve_is_what_flows_until_a_stop_is_everywhere() -> None:
    # 1 % of the pool, or what was agreed on, or twice what flows in 55 seconds at 10,800 an hour.
    assert pool(reserve_points=None).reserve(1_000, 0, 55) == 10
    assert pool().reserve(1_000, 0, 55) == 40
    assert pool().reserve(1_000, 10_800, 55) == 330
    assert pool().reserve(1_000, 10**6, 55) == 1_000


@pytest.mark.parametrize(
    ("used", "before", "wanted"),
    [
        (0, 1_000, 1_000),
        (899, 1_000, 1_000),
        (900, 1_000, 500),
        (959, 500, 500),
        (960, 500, 0),
        (960, 1_000, 0),
        # Points that are taken back do not turn it faster at once: five per cent must be free.
        (850, 500, 500),
        (849, 500, 1_000),
        (910, 0, 0),
        (909, 0, 500),
        (849, 0, 1_000),
    ],
)
def test_a_pool_slows_stops_and_goes_on(used: int, before: int, wanted: int) -> None:
    assert pool().permille(used, 1_000, 40, before) == wanted


def test_expected_lapse_by_hand() -> None:
    # 100 spent, 300 outstanding: a quarter a month. 80 points with 2 months left keep 9/16: 45;
    # 10 that end this month keep all.
    share = liability.spent_share(100, 300)
    assert share == Fraction(1, 4)
    assert liability.expected_lapse({"2026-07": 80, "2026-05": 10}, share, "2026-05") == 55
    assert liability.spent_share(0, 0) == 0
    assert liability.expected_lapse({"2028-05": 7}, Fraction(0), "2026-05") == 7


# A pool that runs down.


def test_the_faster_a_pool_flows_the_earlier_it_stops(app: Flask) -> None:
    city_has(budget_points=10_000, reserve_points=100)
    with at("2026-05-20 12:01"):
        passed()
    with at("2026-05-20 12:02"):
        for _ in range(10):
            did(someone(), "bus_km", "5.2", "2026-05-20 08:00")
        # 1,390 in a minute are 83,400 an hour: twice 55 seconds of it are 2,548 points.
        kept = passed()["city"]
        assert (kept.reserve, kept.permille) == (pytest.approx(2_548, rel=0.02), 1_000)
    with at("2026-05-20 13:02"):
        # A quiet hour: nine tenths of that speed.
        assert passed()["city"].reserve == pytest.approx(2_293, rel=0.02)


def test_what_a_resident_is_told_when_a_pool_is_slow_and_then_spent(app: Flask) -> None:
    city_has(budget_points=1_000, reserve_points=20)
    first, second = someone(), someone()
    with at("2026-05-20 12:01"):
        for hour in range(6):
            did(first, "bus_km", "5.2", f"2026-05-20 {hour + 1:02d}:00")
        did(second, "bus_km", "2.5", "2026-05-20 08:00")
        # 834 + 67 = 901.
        assert passed()["city"].permille == 500
    with at("2026-05-20 18:02"):
        slowed = did(second, "bus_km", "5.2", "2026-05-20 09:00")
        # Half of 139.88.
        assert (slowed.points, slowed.mg, slowed.reasons) == (69, 139_880, ("budget_slowed",))
        did(second, "bus_km", "1", "2026-05-20 10:00")
        # 901 + 69 + 13 = 983: past 980.
        assert passed()["city"].permille == 0
    with at("2026-05-20 18:03"):
        third = resident(app)
        nothing = did(third.id, "bus_km", "5.2", "2026-05-20 09:00")
        assert (nothing.status, nothing.points, nothing.mg) == ("credited", 0, 139_880)
        shown = third.get(f"/v1/activities/{nothing.id}", headers={"Accept-Language": "zh"})
        [reason] = shown.get_json()["reasons"]
        assert reason["code"] == "budget_spent"
        assert "预算已用完" in reason["text"]
        # A month's money more: the pool pays again, and says from when.
        city_has(budget_points=2_000)
        assert passed()["city"].permille == 1_000
        with clock.travel(terms.LEAD):
            assert did(third.id, "bus_km", "5.2", "2026-05-20 10:00").points == 139
    assert records() == [
        (1, 500, "budget_slowed"),
        (2, 0, "budget_spent"),
        (3, 1_000, "refilled"),
    ]
    the_books_hold()


def test_each_alarm_of_a_budget_is_raised_once(app: Flask) -> None:
    city_has(budget_points=1_000, reserve_points=20)
    rider, other = someone(), someone()
    with at("2026-05-20 12:01"):
        for hour in range(6):
            did(rider, "bus_km", "5.2", f"2026-05-20 {hour + 1:02d}:00")
        for _ in range(2):
            passed()
        assert [row["level"] for row in pools.raised(limit=10)] == [80]
        did(other, "bus_km", "5.5", "2026-05-20 08:00")
    with at("2026-05-20 18:02"):
        # 834 + 147 = 981.
        with ThreadPoolExecutor(4) as pool_of_threads:
            list(pool_of_threads.map(lambda _: passed(), range(4)))
        assert sorted(row["level"] for row in pools.raised(limit=10)) == [80, 90, 100]
        assert storage.database()["alarms"].count_documents({"kind": "budget"}) == 3
    # Four keepers at once wrote one record.
    assert records() == [(1, 0, "budget_spent")]


def test_the_next_funder_takes_over_where_a_campaign_says_so(app: Flask) -> None:
    from points import campaigns

    bank = funder(budget_points=200, reserve_points=50, covers_others=True)
    shop = funder(kind="merchant", covers_others=True, priority=7, fen_per_1000_points=100)
    made = campaigns.propose(
        {
            "name": {"zh": "双倍", "en": "Double"},
            "funder": bank,
            "multiplier": "2",
            "first_day": "2026-05-20",
            "last_day": "2026-05-31",
            "behaviours": [],
            "districts": [],
            "grades": [],
            "new_within_days": None,
            "day_points_max": None,
            "total_points_max": None,
            "when_spent": "next",
            "reversal_policy": "owed",
        },
        "anna",
        alone=True,
    )
    rider = someone()
    with at("2026-05-20 12:01"):
        did(rider, "bus_km", "6", "2026-05-20 08:00")
        # 161 of 200: past the 150 it stops at.
        assert passed()[bank].permille == 0
    with at("2026-05-20 12:02"):
        ride = did(rider, "bus_km", "5.2", "2026-05-20 10:00")
        assert (ride.points, ride.reasons) == (279, ())
        entry = list(book.entries(rider))[-1]
        assert [(part[1], part[3], part[0]) for part in entry.refs["parts"]] == [
            ("city", None, 139),
            (shop, f"{made.id}@1", 140),
        ]
    the_books_hold()


def test_eight_threads_run_a_pool_down_and_the_reserve_holds(app: Flask) -> None:
    """Rides of 139 points on eight threads; a keeper passes between them, and time goes on.

    A ride takes five seconds of the clock and the keeper passes every three rides. So a stop lets
    by three rides before its pass, eight that were under way, eight that began beside the pass, and
    two in the ten seconds until it applies: 21 x 139 = 2,919 points, the reserve agreed on.
    """
    limit, reserve = 20_000, 2_919
    city_has(budget_points=limit, reserve_points=reserve, slows_at_percent=100)
    riders = [someone() for _ in range(32)]
    turn = threading.Lock()
    done = 0

    def ride(number: int) -> int:
        nonlocal done
        who, hour = riders[number % 32], 1 + number // 32
        points = did(who, "bus_km", "5.2", f"2026-05-20 {hour:02d}:00").points
        with turn:
            done += 1
            time_goes_on.enter_context(clock.travel(5 * SECOND))
            if done % 3 == 0:
                passed()
        return points

    with ExitStack() as time_goes_on:
        time_goes_on.enter_context(at("2026-05-20 12:01"))
        with ThreadPoolExecutor(8) as threads:
            points = list(threads.map(ride, range(32 * 6)))
        passed()
    # What was asked for is 192 x 139 = 26,688.
    assert set(points) == {139, 0}
    assert sum(points) <= limit
    rows = terms.rate_rows("city", before=None, limit=1_000)[::-1]
    stops = [row for row in rows if row["permille"] == 0]
    assert stops
    for stop in stops:
        later = [row["used_points"] for row in rows if row["number"] == stop["number"] + 1]
        assert max([*later, 0] if later else [sum(points)]) - stop["used_points"] <= reserve
        assert stop["reserve_points"] >= reserve
    the_books_hold()


def test_a_pass_that_died_before_its_record_is_made_up_for_by_the_next(app: Flask) -> None:
    city_has(budget_points=100, reserve_points=10)
    with at("2026-05-20 12:01"):
        did(someone(), "bus_km", "5.2", "2026-05-20 08:00")
        # As if the keeper had been killed after it added up, and after its record.
        upkeep.walk()
        flows.refresh(clock.now())
        assert records() == []
        assert passed()["city"].permille == 0
        storage.database()["pools"].delete_many({})
        assert passed()["city"].permille == 0
    assert records() == [(1, 0, "budget_spent")]


def test_the_keeper_looks_away_only_as_long_as_no_burst_could_matter(app: Flask) -> None:
    city_has(budget_points=1_000_000, reserve_points=1_000)
    with at("2026-05-20 12:01"):
        passed()
    with at("2026-05-20 12:02"):
        for _ in range(10):
            did(someone(), "bus_km", "5.2", "2026-05-20 08:00")
        kept = passed()["city"]
        # 83,400 an hour, in a burst 232 a second; 898,610 points ahead: an hour, and never longer
        # than a quarter of one.
        assert pools.RARELY - SECOND < kept.due_at - clock.now() <= pools.RARELY
        assert pools.keep_due(clock.now()) == []
    with at("2026-05-20 12:30"):
        assert [one.funder for one in pools.keep_due(clock.now())] == ["city"]
        city_has(budget_points=12_000)
        # 9,410 points to the slow mark at 90 %, in a burst at nine tenths of that 209 a second.
        kept = passed()["city"]
        assert kept.due_at - clock.now() < timedelta(minutes=1)


# The page.


def test_the_page_by_hand(app: Flask) -> None:
    anna = machine(app, Kind.OPERATOR)
    bank = funder(fen_per_1000_points=300, budget_fen=30)
    rider, walker = someone(), someone()
    with at("2026-05-21 12:00"):
        did(rider, "bus_km", "5.2", "2026-05-20 08:00")
        gone = did(rider, "bus_km", "10", "2026-05-20 11:00")
        did(walker, "metro_km", "10", "2026-05-20 08:00", minutes=30)
        did(walker, "bus_km", "10", "2026-05-20 08:10", minutes=30)
        crediting.reverse(gone, reason="refund", by="op")
    with at("2026-05-25 12:00"):
        spent(rider, 39)
        anna = machine(app, Kind.OPERATOR)
        upkeep.walk()
        tasks.keep_pools()
        told = anna.get("/v1/operator/programme").get_json()
    lines = {line["funder_id"]: line for line in told["funders"]}
    # A metro ride of 10 km avoids 467 g.
    ride, metro = 139, 467
    assert lines["city"] == {
        "funder_id": "city",
        "name": {"zh": "城市", "en": "The city"},
        "kind": "city",
        "budget_points": None,
        "budget_fen": None,
        "limit_points": None,
        "used_percent": None,
        "pays_permille": 1_000,
        "issued_points": ride + 269 + metro,
        "taken_back_points": 269,
        "redeemed_points": 39,
        # 39 points at 200 fen a thousand: 7.8.
        "redeemed_fen": 7,
        "expired_points": 0,
        "outstanding_points": 567,
        "liability_fen": 113,
        # Nothing was spent in April, so by the formula nobody spends.
        "expected_lapse_points": 567,
        "expected_lapse_fen": 113,
    }
    assert (lines[bank]["issued_points"], lines[bank]["limit_points"]) == (0, 100)
    # 606 points are worth 121 fen: bus 27.75, metro 93.25 of them.
    assert told["cost_by_behaviour"] == [
        {
            "behaviour": "bus_km",
            "reduction_g": Decimal("139.88"),
            "points": 139,
            "fen": 28,
            # 28 fen for 139.88 g.
            "fen_per_tonne": 200_171,
        },
        {
            "behaviour": "metro_km",
            "reduction_g": 467,
            "points": 467,
            "fen": 93,
            "fen_per_tonne": 199_143,
        },
    ]
    assert [(one["reason"], one["count"]) for one in told["rejections"]] == [
        ("overlapping_trip", 1)
    ]
    assert told["liability_fen"] == 113


def test_next_month_the_lapse_follows_what_was_spent(app: Flask) -> None:
    rider = someone()
    with at("2026-05-21 12:00"):
        did(rider, "bus_km", "10", "2026-05-20 08:00")
    with at("2026-05-25 12:00"):
        spent(rider, 69)
    with at("2026-06-02 12:00"):
        upkeep.walk()
        pools.keep(clock.now())
        liability.run(liability.queue("anna").id)
        page = programme.page(clock.now())
    [line] = page.funders
    # 69 of 269 spent in May: s = 69 / 269; 200 points expire at the end of May 2028, 23 months on.
    expected = (200 * (1 - Fraction(69, 269)) ** 23).__floor__()
    assert (line.outstanding, line.expected_lapse) == (200, expected)
    assert page.liability_as_of is not None
    assert page.liability_as_of - city("2026-06-02 12:00") < 10 * SECOND


def test_months_that_are_over_are_added_up_once(app: Flask) -> None:
    rider = someone()
    with at("2026-03-21 12:00"):
        did(rider, "bus_km", "10", "2026-03-20 08:00")
    with at("2026-05-21 12:00"):
        upkeep.walk()
        flows.refresh(clock.now())
        storage.database()["summary_months"].delete_many({"month": "2026-03"})
        found = flows.refresh(clock.now())
    assert found.funders["city"].issued == 269
    assert flows.latest() == found
