"""Any life of a wallet, in any order of events, against a model that keeps every single point.

The same lives are lived by the pure wallet and by an account of the real book; more and longer ones
with TANHUI_FUZZ_EXAMPLES.
"""

import itertools
import os
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from wallet_model import Earning, Model

from accounting import book, clock
from accounting.book import Ask, Decision, Head, Line, State
from accounting.book.entries import balances_after
from accounting.errors import DomainError, ValidationFailed
from points import holds, passing, statements
from points.holds import HoldOver
from points.lots import Lot, day_number
from points.statements import Balance
from points.wallet import OWN_BOOKS, InsufficientPoints, ReversalPolicy, Wallet, consistent

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
BEGIN = datetime(2026, 5, 20, tzinfo=UTC)
FUNDERS = ("bank", "city", "merchant")
AMOUNTS = st.integers(1, 25)
T = TypeVar("T")
names = itertools.count()


class PureAccount:
    """What the book does, without the book: one state after the other, and the sum of all lines."""

    def __init__(self) -> None:
        self.after: State = {}
        self.lines: list[Line] = []
        self.seq = 0

    def change(self, now: datetime, do: Callable[[Wallet], T]) -> T:
        """Change the wallet as an entry does; a refusal leaves everything as it was."""
        wallet = Wallet.load(self.after)
        wallet.advance(now)
        answer = do(wallet)
        wallet.advance(now)
        self._keep(wallet)
        return answer

    def hold(self, now: datetime, name: str, count: int, ttl: timedelta) -> None:
        self.change(now, lambda wallet: wallet.hold(name, count, now + ttl))

    def capture(self, now: datetime, name: str, count: int) -> None:
        def do(wallet: Wallet) -> None:
            held = wallet.held(name)
            if held is None:
                raise HoldOver()
            if count > held.points:
                raise ValidationFailed("/points", "too many", "")
            wallet.capture(held, count)

        self.change(now, do)

    def release(self, now: datetime, name: str) -> None:
        def do(wallet: Wallet) -> None:
            held = wallet.held(name)
            if held is None:
                raise HoldOver()
            wallet.release(held)

        self.change(now, do)

    def pass_time(self, now: datetime) -> None:
        for _, step in passing.STEPS:
            wallet = Wallet.load(self.after)
            step(wallet, now)
            if wallet.lines:
                self._keep(wallet)

    def _keep(self, wallet: Wallet) -> None:
        balances: dict[str, int] = balances_after(self.after, wallet.lines)
        self.after = {"balances": balances, "wallet": wallet.dump()}
        self.lines += wallet.lines
        self.seq += 1


class BookAccount(PureAccount):
    """An account of the real book, at whatever time its life has come to."""

    def __init__(self) -> None:
        super().__init__()
        self.name = f"life-{next(names)}"
        # What the balance was at instants of its life.
        self.seen: dict[datetime, Balance] = {}

    def change(self, now: datetime, do: Callable[[Wallet], T]) -> T:
        answers: list[T] = []

        def decide(head: Head, instant: datetime) -> Decision:
            wallet = Wallet.load(head.after)
            wallet.advance(instant)
            answers.append(do(wallet))
            wallet.advance(instant)
            return Decision(tuple(wallet.lines), {"wallet": wallet.dump()})

        with clock.stand(now):
            book.post(Ask(self.name, f"k{next(names)}", "adjust", "f", now), decide)
            self._read(now)
        return answers[-1]

    def hold(self, now: datetime, name: str, count: int, ttl: timedelta) -> None:
        self._by_api(now, lambda: holds.hold(self.name, name, count, ttl, purpose="scale"))

    def capture(self, now: datetime, name: str, count: int) -> None:
        self._by_api(now, lambda: holds.capture(self.name, name, count, reason="weighed"))

    def release(self, now: datetime, name: str) -> None:
        self._by_api(now, lambda: holds.release(self.name, name, reason="left"))

    def pass_time(self, now: datetime) -> None:
        self._by_api(now, lambda: passing.pass_time([self.name]))

    def _by_api(self, now: datetime, do: Callable[[], Any]) -> None:
        with clock.stand(now):
            try:
                do()
            finally:
                self._read(now)

    def _read(self, now: datetime) -> None:
        for entry in book.entries(self.name, after_seq=self.seq):
            self.after, self.seq = entry.after, entry.seq
            self.lines += entry.lines
        self.seen[now] = statements.balance(self.name)

    def its_book_holds(self, now: datetime) -> None:
        """Every entry verifies, the statement adds up, and every instant is still what it was."""
        assert book.verify(self.name, checks=[consistent]).problem is None
        running = dict.fromkeys(("available", "pending", "held", "owed"), 0)
        for entry in book.entries(self.name):
            row = statements.row_of(entry)
            for name in running:
                running[name] += getattr(row.changes, name)
            assert row.available_after == running["available"]
        with clock.stand(now):
            for instant, balance in self.seen.items():
                assert statements.balance(self.name, instant) == balance


class AnyLife(RuleBasedStateMachine):
    """Anything a resident may live through, on a clock that only goes forward."""

    account_of: Callable[[], PureAccount] = PureAccount

    def __init__(self) -> None:
        super().__init__()
        self.now = BEGIN
        self.account = type(self).account_of()
        self.model = Model()
        self.earnings: list[Earning] = []
        self.redemptions: list[tuple[list[Lot], list[Any]]] = []
        self.asked_holds: list[str] = []

    def begin(self) -> None:
        self.model.let_time_pass(self.now)

    def end(self) -> None:
        self.model.let_time_pass(self.now)

    @rule(
        count=AMOUNTS,
        funder=st.sampled_from(FUNDERS),
        late=st.sampled_from([timedelta(minutes=-5), timedelta(0), HOUR, DAY, 40 * DAY, 180 * DAY]),
        maturity=st.sampled_from([timedelta(0), 24 * HOUR, 48 * HOUR, 72 * HOUR]),
        policy=st.sampled_from(list(ReversalPolicy)),
    )
    def earn(
        self, count: int, funder: str, late: timedelta, maturity: timedelta, policy: str
    ) -> None:
        self.begin()
        what = Earning(count, funder, self.now - late, maturity, str(policy))
        self.account.change(
            self.now,
            lambda wallet: wallet.earn(count, funder, over=what.over, maturity=maturity),
        )
        self.model.earn(what)
        self.earnings.append(what)
        self.end()

    @rule(by=st.sampled_from([HOUR, DAY, 3 * DAY, 31 * DAY, 200 * DAY, 720 * DAY]))
    def the_clock_jumps(self, by: timedelta) -> None:
        self.now += by

    @rule()
    def the_night_passes(self) -> None:
        self.begin()
        self.account.pass_time(self.now)

    @rule(count=AMOUNTS)
    def spend(self, count: int) -> None:
        self.begin()
        if count > len(self.model.of("available")):
            with pytest.raises(InsufficientPoints):
                self.account.change(self.now, lambda wallet: wallet.spend(count))
            return
        taken = self.account.change(self.now, lambda wallet: wallet.spend(count))
        self.redemptions.append((taken, self.model.spend(count)))

    @precondition(lambda self: self.redemptions)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        self.begin()
        taken, points = self.redemptions.pop(self._which(data, self.redemptions))
        self.account.change(self.now, lambda wallet: wallet.reopen(taken, self.now))
        self.model.cancel(points, self.now)
        self.end()

    @rule(count=AMOUNTS, ttl=st.sampled_from([HOUR, DAY, 7 * DAY]))
    def hold(self, count: int, ttl: timedelta) -> None:
        self.begin()
        name = f"hold-{next(names)}"
        if count > len(self.model.of("available")):
            with pytest.raises(InsufficientPoints):
                self.account.hold(self.now, name, count, ttl)
            return
        self.account.hold(self.now, name, count, ttl)
        self.model.hold(name, count, self.now + ttl)
        self.asked_holds.append(name)

    @precondition(lambda self: self.asked_holds)
    @rule(data=st.data(), count=AMOUNTS)
    def capture(self, data: Any, count: int) -> None:
        self.begin()
        name = self.asked_holds[self._which(data, self.asked_holds)]
        if name not in self.model.holds or count > len(self.model.holds[name][1]):
            self._refused(lambda: self.account.capture(self.now, name, count))
            return
        self.account.capture(self.now, name, count)
        self.asked_holds.remove(name)
        self.model.capture(name, count)
        self.end()

    @precondition(lambda self: self.asked_holds)
    @rule(data=st.data())
    def release(self, data: Any) -> None:
        self.begin()
        name = self.asked_holds[self._which(data, self.asked_holds)]
        if name not in self.model.holds:
            self._refused(lambda: self.account.release(self.now, name))
            return
        self.account.release(self.now, name)
        self.asked_holds.remove(name)
        self.model.release(name)
        self.end()

    @precondition(lambda self: self.earnings)
    @rule(data=st.data())
    def reverse(self, data: Any) -> None:
        self.begin()
        what = self.earnings.pop(self._which(data, self.earnings))
        taken = self.account.change(
            self.now,
            lambda wallet: wallet.take_back(
                what.count,
                what.funder,
                over=what.over,
                maturity=what.maturity,
                policy=ReversalPolicy(what.policy),
            ),
        )
        assert taken == self.model.take_back(what, self.now)

    @precondition(lambda self: self.earnings)
    @rule(data=st.data(), count=AMOUNTS)
    def correct_downwards(self, data: Any, count: int) -> None:
        """A better record of the same trip is worth less; nobody gets into debt by that."""
        self.begin()
        what = self.earnings[self._which(data, self.earnings)]
        moved = self.account.change(
            self.now,
            lambda wallet: wallet.adjust(
                -count, what.funder, over=what.over, maturity=what.maturity
            ),
        )
        less = Earning(count, what.funder, what.over, what.maturity, "within_balance")
        assert -moved == self.model.take_back(less, self.now)

    @invariant()
    def it_equals_the_model(self) -> None:
        self.begin()
        wallet, model = Wallet.load(self.account.after), self.model
        wallet.advance(self.now)
        assert Counter({lot[:2]: lot.points for lot in wallet.lots}) == Counter(
            (day_number(point.expires_on), point.funder) for point in model.of("available")
        )
        assert Counter({row[:3]: row.points for row in wallet.pending}) == Counter(
            (int(point.mature.timestamp() * 1_000), day_number(point.expires_on), point.funder)
            for point in model.of("pending")
        )
        assert {
            hold.id: Counter({lot[:2]: lot.points for lot in hold.lots}) for hold in wallet.holds
        } == {
            name: Counter((day_number(point.expires_on), point.funder) for point in held)
            for name, (_, held) in model.holds.items()
        }
        assert Counter(wallet.owed) == model.owed
        assert wallet.earned == model.earned
        assert wallet.spent == len(model.of("spent"))
        assert wallet.expired == len(model.of("expired"))

    @invariant()
    def it_is_consistent_and_nothing_is_lost(self) -> None:
        assert consistent(self.account.after) is None
        wallet = Wallet.load(self.account.after)
        # With what time did since the last entry: the model has lived through it too.
        wallet.advance(self.now)
        totals: Counter[str] = Counter()
        for line in (*self.account.lines, *wallet.lines):
            totals[line.book] += line.amount
        assert sum(totals.values()) == 0
        parts = [wallet.available, wallet.pending_points, wallet.held_points]
        parts += [wallet.spent, wallet.expired]
        assert min([*parts, wallet.owed_points]) >= 0
        assert sum(parts[:2]) == 0 or wallet.owed_points == 0
        assert wallet.earned == sum(parts) - wallet.owed_points
        rows = [*wallet.lots, *wallet.pending, *(lot for one in wallet.holds for lot in one.lots)]
        for funder in FUNDERS:
            shared = sum(
                amount
                for name, amount in totals.items()
                if name not in OWN_BOOKS and name.endswith(f":{funder}")
            )
            there = sum(row.points for row in rows if row.funder == funder)
            assert shared == wallet.owed.get(funder, 0) - there
            assert totals[f"between:{funder}"] == self.model.between[funder]

    def _which(self, data: Any, among: list[Any]) -> int:
        which: int = data.draw(st.integers(0, len(among) - 1))
        return which

    def _refused(self, do: Callable[[], Any]) -> None:
        before = self.account.seq
        with pytest.raises(DomainError):
            do()
        assert self.account.seq == before


class AnyLifeInTheBook(AnyLife):
    account_of = BookAccount

    def teardown(self) -> None:
        assert isinstance(self.account, BookAccount)
        self.account.its_book_holds(self.now)


# CI asks for 25 and gets thousands of steps of each kind.
ASKED = int(os.environ.get("TANHUI_FUZZ_EXAMPLES", "0"))


def lives(count: int, for_each_asked: int) -> settings:
    """So many lives, or so many for each example the environment asks for."""
    return settings(
        max_examples=ASKED * for_each_asked or count,
        stateful_step_count=50 if ASKED else 30,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


AnyLife.TestCase.settings = lives(60, for_each_asked=20)
TestAnyLife = AnyLife.TestCase

AnyLifeInTheBook.TestCase.settings = lives(12, for_each_asked=5)
TestAnyLifeInTheBook = pytest.mark.usefixtures("app")(AnyLifeInTheBook.TestCase)
