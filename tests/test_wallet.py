"""The wallet: lots, maturity, expiry, spending, holding, giving back and taking back."""

from collections import Counter
from datetime import UTC, date, datetime, timedelta

import bson
import pytest

from accounting import book, clock
from accounting.book import Line, State
from points.lots import Lot, ReversalPolicy
from points.wallet import (
    HOLDS_MAX,
    InsufficientPoints,
    TooManyHolds,
    Wallet,
    consistent,
)

DAY, HOUR, MS = timedelta(days=1), timedelta(hours=1), timedelta(milliseconds=1)


def city(text: str) -> datetime:
    """An instant written in city time."""
    return datetime.fromisoformat(text).replace(tzinfo=clock.CITY).astimezone(UTC)


def number(day: str) -> int:
    """A city day as lots write it."""
    return int(day.replace("-", ""))


MAY_20 = city("2026-05-20 08:00")


def earned(wallet: Wallet, points: int, over: datetime, *, funder: str = "city") -> None:
    """Points that are mature at once and in their lot."""
    wallet.earn(points, funder, over=over, maturity=timedelta(0))
    wallet.advance(over)


def sums(lines: list[Line]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for line in lines:
        total[line.book] += line.amount
    return {name: amount for name, amount in total.items() if amount}


# Earning, maturing, expiring.


def test_points_are_pending_until_48_hours_after_the_ride_to_the_millisecond() -> None:
    wallet = Wallet()
    wallet.earn(139, "city", over=MAY_20, maturity=48 * HOUR)
    wallet.advance(MAY_20 + 48 * HOUR - MS)
    assert (wallet.pending_points, wallet.available) == (139, 0)
    wallet.advance(MAY_20 + 48 * HOUR)
    assert (wallet.pending_points, wallet.available) == (0, 139)
    assert wallet.lines == [
        Line("points", "issued:city", -139),
        Line("points", "pending", 139),
        Line("points", "pending", -139, "mature"),
        Line("points", "available", 139, "mature"),
    ]


def test_a_ride_that_arrives_three_days_late_is_mature_on_arrival() -> None:
    wallet = Wallet()
    wallet.earn(139, "city", over=MAY_20 - 3 * DAY, maturity=48 * HOUR)
    wallet.advance(MAY_20)
    assert wallet.available == 139


@pytest.mark.parametrize(
    ("over", "expires_on"),
    [
        ("2026-05-20 08:00", "2028-05-31"),
        ("2026-02-03 08:00", "2028-02-29"),  # A leap year.
        ("2025-02-28 23:59", "2027-02-28"),
        ("2026-05-31 23:59:59.999", "2028-05-31"),
        ("2026-06-01 00:00", "2028-06-30"),
        ("2025-12-31 23:59:59.999", "2027-12-31"),
    ],
)
def test_points_expire_at_the_end_of_the_24th_month_after_the_activity(
    over: str, expires_on: str
) -> None:
    wallet = Wallet()
    earned(wallet, 10, city(over))
    assert wallet.lots == [Lot(number(expires_on), "city", 10)]
    last_instant = clock.end_of_month(expires_on[:7]) - MS
    wallet.advance(last_instant)
    assert (wallet.available, wallet.expired) == (10, 0)
    wallet.advance(last_instant + MS)
    assert (wallet.available, wallet.expired, wallet.earned) == (0, 10, 10)
    assert wallet.lines[-2:] == [
        Line("points", "available", -10, "expire"),
        Line("points", "expired:city", 10, "expire"),
    ]


def test_the_end_of_may_2028_in_the_city_is_four_in_the_afternoon_utc() -> None:
    assert clock.end_of_month("2028-05") == datetime(2028, 5, 31, 16, tzinfo=UTC)


def test_points_that_mature_after_they_expired_are_gone_in_the_same_moment() -> None:
    wallet = Wallet()
    wallet.earn(10, "city", over=city("2026-05-31 23:00"), maturity=48 * HOUR)
    wallet.advance(city("2028-07-01 00:00"))
    assert (wallet.pending_points, wallet.available, wallet.expired) == (0, 0, 10)


def test_points_of_one_month_and_funder_share_a_lot() -> None:
    wallet = Wallet()
    for day in (1, 2, 30):
        earned(wallet, day, MAY_20.replace(day=day))
    earned(wallet, 5, MAY_20, funder="bank")
    assert sorted(wallet.lots) == [Lot(2028_05_31, "bank", 5), Lot(2028_05_31, "city", 33)]


def test_nothing_earned_moves_nothing() -> None:
    wallet = Wallet()
    wallet.earn(0, "city", over=MAY_20, maturity=HOUR)
    assert (wallet.lines, wallet.pending, wallet.earned) == ([], [], 0)


# Spending and giving back.


def test_what_expires_first_is_spent_first() -> None:
    wallet = Wallet()
    earned(wallet, 10, MAY_20)
    earned(wallet, 7, city("2026-04-30 12:00"))  # Arrived later, expires sooner.
    # 9 = all 7 that expire in April 2028, and 2 of those that expire in May.
    assert wallet.spend(9) == [Lot(2028_04_30, "city", 7), Lot(2028_05_31, "city", 2)]
    assert wallet.lots == [Lot(2028_05_31, "city", 8)]
    assert (wallet.available, wallet.spent) == (8, 9)


def test_spending_more_than_is_available_changes_nothing() -> None:
    wallet = Wallet()
    earned(wallet, 10, MAY_20)
    wallet.earn(90, "city", over=MAY_20, maturity=HOUR)  # Pending cannot be spent.
    before = wallet.dump()
    with pytest.raises(InsufficientPoints) as refused:
        wallet.spend(11)
    assert refused.value.facts == {"needed": 11, "available": 10}
    assert wallet.dump() == before
    assert wallet.spend(10) == [Lot(2028_05_31, "city", 10)]


def test_points_given_back_return_to_their_lots_with_their_dates() -> None:
    wallet = Wallet()
    earned(wallet, 7, city("2026-04-30 12:00"), funder="bank")
    earned(wallet, 10, MAY_20)
    before = wallet.dump()
    taken = wallet.spend(9)
    wallet.reopen(taken, MAY_20 + DAY)
    assert wallet.dump() == before
    assert sums(wallet.lines) == {"issued:bank": -7, "issued:city": -10, "available": 17}


@pytest.mark.parametrize(
    ("today", "expires_on"),
    [
        # The last day of the lot is still its own.
        ("2028-05-31 23:59:59.999", "2028-05-31"),
        # 1 June + 30 days is 1 July.
        ("2028-06-01 00:00", "2028-07-01"),
        ("2028-12-31 12:00", "2029-01-30"),
    ],
)
def test_a_lot_that_expired_while_it_was_spent_gets_30_days_of_grace(
    today: str, expires_on: str
) -> None:
    wallet = Wallet()
    earned(wallet, 10, MAY_20)
    taken = wallet.spend(10)
    now = city(today)
    wallet.advance(now)
    assert wallet.expired == 0
    wallet.reopen(taken, now)
    assert wallet.lots == [Lot(number(expires_on), "city", 10)]
    wallet.advance(clock.start_of(date.fromisoformat(expires_on) + DAY) - MS)
    assert wallet.available == 10
    wallet.advance(clock.start_of(date.fromisoformat(expires_on) + DAY))
    assert (wallet.available, wallet.expired) == (0, 10)


# Taking back.


def full_wallet() -> Wallet:
    """Points of two funders and three months, and pending points of one ride yesterday."""
    wallet = Wallet()
    for points, month, funder in ((10, 4, "city"), (20, 5, "city"), (30, 3, "city"), (40, 5, "b")):
        earned(wallet, points, city(f"2026-{month:02d}-10 12:00"), funder=funder)
    wallet.earn(5, "city", over=city("2026-05-19 12:00"), maturity=48 * HOUR)
    wallet.earn(6, "b", over=city("2026-05-19 13:00"), maturity=48 * HOUR)
    wallet.moved.clear()
    return wallet


MARCH, APRIL, MAY = 2028_03_31, 2028_04_30, 2028_05_31


@pytest.mark.parametrize(
    ("points", "lots", "pending", "owed"),
    [
        # The ride's own pending points go first,
        (5, {(MARCH, "city"): 30, (APRIL, "city"): 10, (MAY, "city"): 20, (MAY, "b"): 40}, 6, 0),
        # then the lot the ride would have joined: 5 + 20,
        (25, {(MARCH, "city"): 30, (APRIL, "city"): 10, (MAY, "b"): 40}, 6, 0),
        # then the same funder's, latest expiring: 5 + 20 + 10 of April,
        (35, {(MARCH, "city"): 30, (MAY, "b"): 40}, 6, 0),
        (36, {(MARCH, "city"): 29, (MAY, "b"): 40}, 6, 0),
        # then other funders': 5 + 20 + 10 + 30, and 1 of the 40 of b,
        (66, {(MAY, "b"): 39}, 6, 0),
        # then other pending points: 105 are in lots and the own pending, 1 of the 6,
        (106, {}, 5, 0),
        # and what is left is owed: 111 were there.
        (120, {}, 0, 9),
    ],
)
def test_taking_back_takes_the_nearest_points_first(
    points: int, lots: dict[tuple[int, str], int], pending: int, owed: int
) -> None:
    wallet = full_wallet()
    wallet.take_back(points, "city", over=city("2026-05-19 12:00"), maturity=48 * HOUR)
    assert {lot[:2]: lot.points for lot in wallet.lots} == lots
    assert wallet.pending_points - (5 if points < 5 else 0) == pending
    assert wallet.owed_points == owed
    assert wallet.earned == 111 - points
    assert sums(wallet.lines)["issued:city"] == points


def test_taking_back_once_more_than_the_own_points_leaves_the_debt_to_the_funder() -> None:
    wallet = full_wallet()
    wallet.spend(wallet.available)
    wallet.take_back(111, "b", over=city("2026-05-10 12:00"), maturity=timedelta(0))
    # 11 were pending, 100 were spent.
    assert wallet.owed == {"b": 100}
    assert (wallet.available, wallet.pending_points, wallet.earned) == (0, 0, 0)


def test_pending_points_of_the_same_funder_go_before_anything_of_another() -> None:
    wallet = Wallet()
    earned(wallet, 40, city("2026-05-10 12:00"), funder="b")
    wallet.earn(7, "city", over=city("2026-05-19 13:00"), maturity=48 * HOUR)
    wallet.earn(9, "city", over=city("2026-05-19 14:00"), maturity=48 * HOUR)
    wallet.take_back(12, "city", over=city("2026-05-19 12:00"), maturity=48 * HOUR)
    # The youngest 9 first, then 3 of the 7; b is not touched.
    assert ([row.points for row in wallet.pending], wallet.available) == ([4], 40)


@pytest.mark.parametrize(("today", "owed", "earned_now"), [("05-31", 10, 0), ("06-01", 0, 10)])
def test_nothing_is_taken_from_an_expired_month(today: str, owed: int, earned_now: int) -> None:
    """Points of May 2026 were spent; through May 2028 they can become owed, and never after."""
    wallet = Wallet()
    earned(wallet, 10, MAY_20)
    wallet.spend(10)
    wallet.advance(city(f"2028-{today} 00:00"))
    earned(wallet, 30, city(f"2028-{today} 00:00"), funder="bank")
    wallet.spend(30)
    taken = wallet.take_back(10, "city", over=MAY_20, maturity=timedelta(0))
    assert (taken, wallet.owed_points, wallet.earned) == (owed, owed, earned_now + 30)
    assert wallet.take_what_is_left(10, "city", over=MAY_20, maturity=timedelta(0)) == 0


@pytest.mark.parametrize(
    ("policy", "taken", "left", "owed"),
    [
        # 111 were earned and 20 of them spent: 80 are in lots, 5 + 6 pending.
        (ReversalPolicy.PENDING_ONLY, 5, 80 + 6, 0),
        (ReversalPolicy.WITHIN_BALANCE, 91, 0, 0),
        (ReversalPolicy.OWED, 100, 0, 9),
    ],
)
def test_a_reversal_reaches_as_far_as_its_policy(
    policy: ReversalPolicy, taken: int, left: int, owed: int
) -> None:
    wallet = full_wallet()
    wallet.spend(20)
    there = {"over": city("2026-05-19 12:00"), "maturity": 48 * HOUR}
    assert wallet.take_back(100, "city", policy=policy, **there) == taken
    assert wallet.available + wallet.pending_points == left
    assert (wallet.owed_points, wallet.earned) == (owed, 111 - taken)


def test_an_earning_is_adjusted_by_its_difference_and_never_into_debt() -> None:
    wallet = Wallet()
    earned(wallet, 50, MAY_20)
    wallet.spend(45)
    there = {"over": MAY_20, "maturity": timedelta(0)}
    assert wallet.adjust(-20, "city", **there) == -5
    assert (wallet.available, wallet.owed_points, wallet.earned) == (0, 0, 45)
    assert wallet.adjust(8, "city", **there) == 8
    assert (wallet.pending_points, wallet.earned) == (8, 53)


def test_points_of_one_funder_that_pay_for_another_are_noted_between_them() -> None:
    """What a funder owes residents is the negative of its shared books, whoever paid for whom."""
    wallet = Wallet()
    earned(wallet, 10, MAY_20)
    earned(wallet, 10, MAY_20, funder="bank")
    wallet.spend(10)  # The bank's: its name comes first in the same month.
    wallet.take_back(15, "bank", over=MAY_20, maturity=timedelta(0))
    # 10 of the city pay for the bank's; 5 are owed to the bank. Then the city pays 5 of its new 8.
    wallet.earn(8, "city", over=MAY_20, maturity=HOUR)
    assert sums(wallet.lines) == {
        "issued:city": -10 - 8,
        "issued:bank": -10 + 15,
        "spent:bank": 10,
        "between:city": 10 + 5,
        "between:bank": -10 - 5,
        "pending": 3,
    }


def test_what_is_owed_is_recovered_from_later_earnings_before_anything_is_pending() -> None:
    wallet = Wallet()
    earned(wallet, 100, MAY_20)
    wallet.spend(100)
    wallet.take_back(100, "city", over=MAY_20, maturity=timedelta(0))
    assert (wallet.owed_points, wallet.earned) == (100, 0)
    wallet.earn(30, "city", over=MAY_20, maturity=HOUR)
    assert (wallet.owed_points, wallet.pending_points, wallet.earned) == (70, 0, 30)
    wallet.earn(100, "city", over=MAY_20, maturity=HOUR)
    # 100 - 70 are the resident's own again.
    assert (wallet.owed_points, wallet.pending_points, wallet.earned) == (0, 30, 130)
    assert sums(wallet.lines) == {
        "issued:city": -130,  # 100 came back.
        "spent:city": 100,
        "pending": 30,
    }


def test_the_debt_to_the_earning_funder_is_paid_first() -> None:
    wallet = Wallet(owed={"a": 5, "city": 5}, earned=-10)
    wallet.earn(7, "city", over=MAY_20, maturity=HOUR)
    assert wallet.owed == {"a": 3, "city": 0}
    assert wallet.dump()["owed"] == {"a": 3}


def test_many_lots_that_move_at_once_still_fit_in_one_entry() -> None:
    """A phone that reports steps every five minutes has 288 pending rows the next day."""
    wallet = Wallet()
    for number in range(288):
        over = MAY_20 + number * timedelta(minutes=5)
        wallet.earn(1, "city", over=over, maturity=24 * HOUR)
    reloaded = Wallet.load({"wallet": wallet.dump()})
    reloaded.advance(MAY_20 + 3 * DAY)
    assert reloaded.available == 288
    assert reloaded.lines == [
        Line("points", "pending", -288, "mature"),
        Line("points", "available", 288, "mature"),
    ]
    assert len(reloaded.lines) <= book.LINES_PER_ENTRY_MAX


# Holding.


def test_held_points_are_set_aside_in_their_lots_until_they_are_spent() -> None:
    wallet = Wallet()
    earned(wallet, 7, city("2026-04-30 12:00"), funder="bank")
    earned(wallet, 10, MAY_20)
    wallet.moved.clear()
    held = wallet.hold("h1", 9, MAY_20 + HOUR)
    assert held.lots == (Lot(APRIL, "bank", 7), Lot(MAY, "city", 2))
    assert (wallet.available, wallet.held_points, wallet.spent) == (8, 9, 0)
    with pytest.raises(InsufficientPoints):
        wallet.spend(9)
    # 8 are taken, first expiring first; the ninth returns to May.
    assert wallet.capture(held, 8) == [Lot(APRIL, "bank", 7), Lot(MAY, "city", 1)]
    assert (wallet.available, wallet.held_points, wallet.spent) == (9, 0, 8)
    assert wallet.lots == [Lot(MAY, "city", 9)]
    assert sums(wallet.lines) == {"available": -8, "spent:bank": 7, "spent:city": 1}


def test_a_hold_is_let_go_when_its_time_is_over_to_the_millisecond() -> None:
    wallet = Wallet()
    earned(wallet, 10, MAY_20)
    before = wallet.dump()
    wallet.hold("h1", 9, MAY_20 + HOUR)
    reloaded = Wallet.load({"wallet": wallet.dump()})
    reloaded.advance(MAY_20 + HOUR - MS)
    assert reloaded.held("h1") is not None
    reloaded.advance(MAY_20 + HOUR)
    assert (reloaded.held("h1"), reloaded.dump()) == (None, before)
    assert reloaded.lines == [
        Line("points", "held", -9, "lapse"),
        Line("points", "available", 9, "lapse"),
    ]


def test_what_expires_while_it_is_held_can_be_captured_and_expires_when_it_is_free() -> None:
    last_instant = clock.end_of_month("2028-05") - MS
    wallet = Wallet()
    earned(wallet, 10, MAY_20)
    wallet.advance(last_instant)
    held = wallet.hold("h1", 10, last_instant + HOUR)
    wallet.advance(last_instant + MS)
    assert (wallet.held_points, wallet.expired) == (10, 0)
    assert wallet.capture(held, 4) == [Lot(MAY, "city", 4)]
    wallet.advance(last_instant + MS)
    assert (wallet.available, wallet.spent, wallet.expired) == (0, 4, 6)


def test_points_that_return_pay_what_is_owed_first() -> None:
    """Held and spent points alike; those that expire last pay, the funder's own debt first."""
    wallet = Wallet()
    earned(wallet, 7, city("2026-04-30 12:00"), funder="bank")
    earned(wallet, 20, MAY_20)
    held = wallet.hold("h1", 10, MAY_20 + HOUR)  # 7 of the bank, 3 of the city.
    taken = wallet.spend(17)
    wallet.take_back(12, "city", over=MAY_20, maturity=timedelta(0))
    assert (wallet.available, wallet.held_points, wallet.owed) == (0, 10, {"city": 12})
    wallet.release(held)
    # The city's 3 and all 7 of the bank: 2 are left to pay.
    assert (wallet.available, wallet.owed) == (0, {"city": 2})
    wallet.reopen(taken, MAY_20)
    assert (wallet.lots, wallet.owed_points) == ([Lot(MAY, "city", 15)], 0)
    # 27 less the 12 that were taken back.
    assert (wallet.earned, wallet.spent, wallet.dump().get("owed")) == (15, 0, None)


def test_only_so_many_holds_are_open_at_once() -> None:
    wallet = Wallet()
    earned(wallet, 100, MAY_20)
    for name in range(HOLDS_MAX):
        wallet.hold(str(name), 1, MAY_20 + HOUR)
    with pytest.raises(TooManyHolds):
        wallet.hold("one more", 1, MAY_20 + HOUR)
    assert (wallet.available, wallet.held_points) == (100 - HOLDS_MAX, HOLDS_MAX)


# How it lies in an entry.


def test_what_is_dumped_is_loaded_again_and_nothing_else() -> None:
    wallet = full_wallet()
    wallet.spend(20)
    wallet.hold("h1", 15, MAY_20 + HOUR)
    wallet.owed = {"b": 0, "city": 3}
    packed = wallet.dump()
    assert packed == {
        # 30 of March were spent by 20 and held by 10; 5 of April are held too.
        "lots": [["b", MAY, 40], ["city", APRIL, 5, MAY, 20]],
        "pending": [["b", MAY, 1_779_339_600_000, 6], ["city", MAY, 1_779_336_000_000, 5]],
        "holds": [["h1", 1_779_238_800_000, ["city", MARCH, 10, APRIL, 5]]],
        "owed": {"city": 3},
        "earned": 111,
        "spent": 20,
    }
    assert Wallet.load({"wallet": packed}).dump() == packed
    assert Wallet().dump() == {}


def test_two_years_of_points_lie_in_less_than_700_bytes() -> None:
    wallet = Wallet()
    for month in range(24):
        earned(wallet, 5_000, MAY_20 - month * 30 * DAY)
    for number in range(10):
        over = MAY_20 + number * HOUR
        wallet.earn(139, "city", over=over, maturity=48 * HOUR)
    assert len(bson.encode(wallet.dump())) < 700


# What `book.verify` asks of every state.


def state_of(wallet: Wallet, **balances: int) -> State:
    return {
        "balances": {f"points/{name}": amount for name, amount in balances.items()},
        "wallet": wallet.dump(),
    }


def test_a_wallet_that_disagrees_with_its_balances_is_found() -> None:
    wallet = full_wallet()
    assert consistent(state_of(wallet, available=100, pending=11)) is None
    assert consistent({}) is None
    twice = {"lots": [["city", MAY, 5, MAY, 5]], "earned": 5}
    wrong = {
        "its lots are not told once each, in their order": {
            "wallet": twice,
            "balances": {"points/available": 5},
        },
        "its available points do not equal its lots": state_of(wallet, available=99, pending=11),
        "its pending points do not equal its lots": state_of(wallet, available=100, pending=12),
        "its owed points do not equal its lots": state_of(
            wallet, available=100, pending=11, owed=-1
        ),
        "it holds an empty or negative lot": state_of(Wallet(points_of={(MAY, "city"): 0})),
        "its held points do not equal its lots": state_of(
            wallet, available=100, pending=11, held=1
        ),
        "it owes points and has some that could pay": state_of(
            Wallet(points_of={(MAY, "city"): 5}, owed={"city": 1}, earned=4), available=5, owed=-1
        ),
        "earned points are not all available, pending, held, spent, expired or owed": state_of(
            Wallet(points_of={(MAY, "city"): 5}, earned=4), available=5
        ),
    }
    assert {problem: consistent(state) for problem, state in wrong.items()} == {
        problem: problem for problem in wrong
    }
