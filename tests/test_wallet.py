"""The wallet: lots, maturity, expiry, spending, giving back and taking back."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from accounting import book, clock
from accounting.book import Line, State
from points.wallet import InsufficientPoints, Lot, Wallet, consistent

DAY, HOUR, MS = timedelta(days=1), timedelta(hours=1), timedelta(milliseconds=1)


def city(text: str) -> datetime:
    """An instant written in city time."""
    return datetime.fromisoformat(text).replace(tzinfo=clock.CITY).astimezone(UTC)


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
    assert wallet.lots == [Lot(expires_on, "city", 10)]
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
    assert sorted(wallet.lots) == [Lot("2028-05-31", "bank", 5), Lot("2028-05-31", "city", 33)]


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
    assert wallet.spend(9) == [Lot("2028-04-30", "city", 7), Lot("2028-05-31", "city", 2)]
    assert wallet.lots == [Lot("2028-05-31", "city", 8)]
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
    assert wallet.spend(10) == [Lot("2028-05-31", "city", 10)]


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
    assert wallet.lots == [Lot(expires_on, "city", 10)]
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
    wallet.lines.clear()
    return wallet


MARCH, APRIL, MAY = "2028-03-31", "2028-04-30", "2028-05-31"


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
    points: int, lots: dict[tuple[str, str], int], pending: int, owed: int
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


def test_nothing_is_taken_from_an_expired_month() -> None:
    wallet = Wallet()
    earned(wallet, 10, MAY_20)
    now = city("2028-06-01 00:00")
    wallet.advance(now)
    wallet.take_back(10, "city", over=MAY_20, maturity=timedelta(0))
    assert (wallet.expired, wallet.owed, wallet.earned) == (10, {"city": 10}, 0)


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
    wrong = {
        "its available points do not equal its lots": state_of(wallet, available=99, pending=11),
        "its pending points do not equal its lots": state_of(wallet, available=100, pending=12),
        "its owed points do not equal its lots": state_of(
            wallet, available=100, pending=11, owed=-1
        ),
        "it holds an empty or negative lot": state_of(Wallet(lots=[Lot(MAY, "city", 0)])),
        "earned points are not all available, pending, spent, expired or owed": state_of(
            Wallet(lots=[Lot(MAY, "city", 5)], earned=4), available=5
        ),
    }
    assert {problem: consistent(state) for problem, state in wrong.items()} == {
        problem: problem for problem in wrong
    }


# Against a model that keeps every single point.


@dataclass
class Point:
    funder: str
    mature: datetime
    expires_on: str
    state: str = "pending"


@dataclass
class Model:
    """The rules once more, slow and plain: one object for each point ever issued."""

    points: list[Point] = field(default_factory=list)
    owed: Counter[str] = field(default_factory=Counter)
    earned: int = 0

    def of(self, *states: str) -> list[Point]:
        return [point for point in self.points if point.state in states]

    def let_time_pass(self, now: datetime) -> None:
        for point in self.of("pending"):
            if point.mature <= now:
                point.state = "available"
        for point in self.of("available"):
            if clock.start_of(date.fromisoformat(point.expires_on) + DAY) <= now:
                point.state = "expired"

    def earn(self, count: int, funder: str, over: datetime, maturity: timedelta) -> None:
        self.earned += count
        month = clock.add_months(clock.city_month(over), 24)
        for _ in range(count):
            creditors = [funder, *sorted(self.owed)]
            creditor = next((name for name in creditors if self.owed[name]), None)
            if creditor is not None:
                self.owed[creditor] -= 1
            else:
                expires_on = clock.last_day(month).isoformat()
                self.points.append(Point(funder, over + maturity, expires_on))

    def spend(self, count: int) -> list[Point]:
        taken = sorted(self.of("available"), key=lambda point: (point.expires_on, point.funder))
        for point in taken[:count]:
            point.state = "spent"
        return taken[:count]

    def reopen(self, taken: list[Point], now: datetime) -> None:
        for point in taken:
            point.state = "available"
            if clock.start_of(date.fromisoformat(point.expires_on) + DAY) <= now:
                point.expires_on = (clock.city_day(now) + 30 * DAY).isoformat()

    def take_back(self, count: int, funder: str, over: datetime, maturity: timedelta) -> None:
        self.earned -= count
        expires_on = clock.last_day(clock.add_months(clock.city_month(over), 24)).isoformat()
        own = (funder, over + maturity, expires_on)
        tiers: list[list[Point]] = [
            [p for p in self.of("pending") if (p.funder, p.mature, p.expires_on) == own],
            [p for p in self.of("available") if (p.funder, p.expires_on) == (funder, expires_on)],
            latest([p for p in self.of("available") if p.funder == funder]),
            latest([p for p in self.of("available") if p.funder != funder]),
            latest([p for p in self.of("pending") if p.funder == funder]),
            latest([p for p in self.of("pending") if p.funder != funder]),
        ]
        for point in [point for tier in tiers for point in tier]:
            if count and point.state != "taken":
                point.state = "taken"
                count -= 1
        self.owed[funder] += count


def latest(points: list[Point]) -> list[Point]:
    if points and points[0].state == "pending":
        return sorted(points, key=lambda p: (p.mature, p.expires_on, p.funder), reverse=True)
    return sorted(points, key=lambda p: (p.expires_on, p.funder), reverse=True)


FUNDERS = st.sampled_from(["bank", "city", "merchant"])
AMOUNTS = st.integers(1, 25)


class AnyLife(RuleBasedStateMachine):
    """Anything a resident may live through, in any order, on a clock that only goes forward."""

    def __init__(self) -> None:
        super().__init__()
        self.now = MAY_20
        self.after: State = {}
        self.model = Model()
        self.earnings: list[tuple[int, str, datetime, timedelta]] = []
        self.redemptions: list[tuple[list[Lot], list[Point]]] = []
        self.totals: Counter[str] = Counter()

    def loaded(self) -> Wallet:
        """What `decide` does: the state of the last entry, brought to now."""
        self.model.let_time_pass(self.now)
        wallet = Wallet.load(self.after)
        wallet.advance(self.now)
        return wallet

    def keep(self, wallet: Wallet) -> None:
        """What the book does with the answer, through the store's own types."""
        balances: dict[str, int] = book._balances(self.after, wallet.lines)
        self.after = {"balances": balances, "wallet": wallet.dump()}
        for line in wallet.lines:
            self.totals[line.book] += line.amount

    @rule(
        count=AMOUNTS,
        funder=FUNDERS,
        late=st.sampled_from([timedelta(minutes=-5), timedelta(0), HOUR, DAY, 40 * DAY, 180 * DAY]),
        maturity=st.sampled_from([timedelta(0), 24 * HOUR, 48 * HOUR, 72 * HOUR]),
    )
    def earn(self, count: int, funder: str, late: timedelta, maturity: timedelta) -> None:
        wallet, over = self.loaded(), self.now - late
        wallet.earn(count, funder, over=over, maturity=maturity)
        wallet.advance(self.now)
        self.keep(wallet)
        self.model.earn(count, funder, over, maturity)
        self.model.let_time_pass(self.now)
        self.earnings.append((count, funder, over, maturity))

    @rule(by=st.sampled_from([HOUR, DAY, 3 * DAY, 31 * DAY, 200 * DAY, 800 * DAY]))
    def time_passes(self, by: timedelta) -> None:
        self.now += by

    @rule(count=AMOUNTS)
    def spend(self, count: int) -> None:
        wallet = self.loaded()
        if count > len(self.model.of("available")):
            with pytest.raises(InsufficientPoints):
                wallet.spend(count)
            return
        taken = wallet.spend(count)
        self.keep(wallet)
        self.redemptions.append((taken, self.model.spend(count)))

    @precondition(lambda self: self.redemptions)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        which = data.draw(st.integers(0, len(self.redemptions) - 1))
        taken, points = self.redemptions.pop(which)
        wallet = self.loaded()
        wallet.reopen(taken, self.now)
        self.keep(wallet)
        self.model.reopen(points, self.now)

    @precondition(lambda self: self.earnings)
    @rule(data=st.data())
    def reverse(self, data: Any) -> None:
        which = data.draw(st.integers(0, len(self.earnings) - 1))
        count, funder, over, maturity = self.earnings.pop(which)
        wallet = self.loaded()
        wallet.take_back(count, funder, over=over, maturity=maturity)
        self.keep(wallet)
        self.model.take_back(count, funder, over, maturity)

    @invariant()
    def it_equals_the_model(self) -> None:
        wallet = self.loaded()
        assert Counter({lot[:2]: lot.points for lot in wallet.lots}) == Counter(
            (point.expires_on, point.funder) for point in self.model.of("available")
        )
        assert Counter({row[:3]: row.points for row in wallet.pending}) == Counter(
            (int(point.mature.timestamp() * 1_000), point.expires_on, point.funder)
            for point in self.model.of("pending")
        )
        assert Counter(wallet.owed) == self.model.owed
        assert wallet.earned == self.model.earned
        assert wallet.spent == len(self.model.of("spent"))
        assert wallet.expired == len(self.model.of("expired"))

    @invariant()
    def it_is_consistent_and_nothing_is_lost(self) -> None:
        assert consistent(self.after) is None
        assert sum(self.totals.values()) == 0
        wallet = Wallet.load(self.after)
        parts = [wallet.available, wallet.pending_points, wallet.spent, wallet.expired]
        assert min([*parts, wallet.owed_points]) >= 0
        assert wallet.earned == sum(parts) - wallet.owed_points
        issued = sum(amount for name, amount in self.totals.items() if name.startswith("issued:"))
        assert issued == -wallet.earned


AnyLife.TestCase.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)
TestAnyLife = AnyLife.TestCase
