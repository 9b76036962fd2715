"""The rules of the wallet once more, slow and plain: one object for each point ever issued."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from accounting import clock

DAY = timedelta(days=1)


@dataclass
class Point:
    """`state`: pending, available, held, spent, expired, or gone (taken back, or paid a debt)."""

    funder: str
    mature: datetime
    expires_on: date
    state: str = "pending"

    def has_expired(self, now: datetime) -> bool:
        return clock.start_of(self.expires_on + DAY) <= now


@dataclass
class Earning:
    """What was earned once and may be taken back."""

    count: int
    funder: str
    over: datetime
    maturity: timedelta
    policy: str

    @property
    def mature(self) -> datetime:
        return self.over + self.maturity

    @property
    def expires_on(self) -> date:
        return clock.last_day(clock.add_months(clock.city_month(self.over), 24))


@dataclass
class Model:
    points: list[Point] = field(default_factory=list)
    holds: dict[str, tuple[datetime, list[Point]]] = field(default_factory=dict)
    owed: Counter[str] = field(default_factory=Counter)
    # What points of a funder paid for others, and with a minus what others paid for it.
    between: Counter[str] = field(default_factory=Counter)
    earned: int = 0

    def of(self, *states: str) -> list[Point]:
        return [point for point in self.points if point.state in states]

    def let_time_pass(self, now: datetime) -> None:
        for point in self.of("pending"):
            if point.mature <= now:
                point.state = "available"
        for name in sorted(self.holds):
            if self.holds[name][0] <= now:
                self.release(name)
        for point in self.of("available"):
            if point.has_expired(now):
                point.state = "expired"

    def earn(self, what: Earning) -> None:
        self.earned += what.count
        for _ in range(what.count):
            if not self._pays(what.funder):
                self.points.append(Point(what.funder, what.mature, what.expires_on))

    def spend(self, count: int) -> list[Point]:
        return self._first_expiring(self.of("available"), count, "spent")

    def cancel(self, spent: list[Point], now: datetime) -> None:
        for point in spent:
            if point.has_expired(now):
                point.expires_on = clock.city_day(now) + 30 * DAY
        # In the order of the days they had before; grace changes none of it.
        self._come_back(spent)

    def hold(self, name: str, count: int, until: datetime) -> None:
        self.holds[name] = until, self._first_expiring(self.of("available"), count, "held")

    def capture(self, name: str, count: int) -> None:
        _, held = self.holds[name]
        self._first_expiring(held, count, "spent")
        self.release(name)

    def release(self, name: str) -> None:
        _, held = self.holds.pop(name)
        self._come_back([point for point in held if point.state == "held"])

    def take_back(self, what: Earning, now: datetime) -> int:
        """Returns how many were taken back, with those that became owed."""
        if clock.start_of(what.expires_on + DAY) <= now:
            return 0
        own = [
            point
            for point in self.of("pending")
            if (point.funder, point.mature, point.expires_on)
            == (what.funder, what.mature, what.expires_on)
        ]
        own_lot = [
            point
            for point in self.of("available")
            if (point.funder, point.expires_on) == (what.funder, what.expires_on)
        ]
        free = latest(self.of("pending", "available"))
        same = [point for point in free if point.funder == what.funder]
        others = [point for point in free if point.funder != what.funder]
        order = own if what.policy == "pending_only" else [*own, *own_lot, *same, *others]
        taken = 0
        for point in order:
            if taken < what.count and point.state != "gone":
                point.state = "gone"
                taken += 1
                self._note(point.funder, what.funder)
        if what.policy == "owed":
            self.owed[what.funder] += what.count - taken
            taken = what.count
        self.earned -= taken
        return taken

    def _first_expiring(self, points: list[Point], count: int, state: str) -> list[Point]:
        taken = sorted(points, key=lambda point: (point.expires_on, point.funder))[:count]
        for point in taken:
            point.state = state
        return taken

    def _come_back(self, points: list[Point]) -> None:
        for point in sorted(points, key=lambda one: (one.expires_on, one.funder), reverse=True):
            point.state = "gone" if self._pays(point.funder) else "available"

    def _pays(self, funder: str) -> bool:
        """Let one point of a funder pay a debt, to its own funder first."""
        creditors = [funder, *sorted(self.owed)]
        creditor = next((name for name in creditors if self.owed[name]), None)
        if creditor is None:
            return False
        self.owed[creditor] -= 1
        self._note(funder, creditor)
        return True

    def _note(self, payer: str, creditor: str) -> None:
        if payer != creditor:
            self.between[payer] += 1
            self.between[creditor] -= 1


def latest(points: list[Point]) -> list[Point]:
    """Latest expiring first; of those that expire together available ones, then the youngest."""
    return sorted(
        points,
        key=lambda one: (one.expires_on, one.state == "available", one.funder, one.mature),
        reverse=True,
    )
