"""The wallet of one resident: pending, available and owed points, in lots. Pure.

This is the only module that names the points books. A lot is points of one funder that expire on
one day; spending takes what expires first. A `Wallet` is loaded from the state an entry left,
brought to the present by `advance`, changed, and dumped into the next entry together with the
lines it gathered.

    earn     issued:<funder> -> pending | available | owed
    mature   pending         -> available           (tag `mature`)
    expire   available       -> expired:<funder>    (tag `expire`)
    spend    available       -> spent:<funder>
    reopen   spent:<funder>  -> available           (a cancelled redemption)
    take     pending | available | owed -> issued:<funder>
"""

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

from accounting import clock
from accounting.book import Line, State, balance
from accounting.errors import DomainError

UNIT = "points"
PENDING, AVAILABLE, OWED = "pending", "available", "owed"
EXPIRY_MONTHS = 24
REOPEN_GRACE = timedelta(days=30)
# More than any resident can hold: 24 expiry months of a few funders, and three days at every cap.
LOTS_MAX = 1_000


class InsufficientPoints(DomainError):
    """Facts: needed, available (points)."""

    code = "insufficient_points"
    en = "This costs {needed} points and {available} are available."
    zh = "需要 {needed} 积分，当前可用 {available} 积分。"


class Lot(NamedTuple):
    """Points of one funder, usable up to and including the city day `expires_on`."""

    expires_on: str
    funder: str
    points: int


class Pending(NamedTuple):
    """Points that mature at an instant (milliseconds since 1970) and then join a lot."""

    mature_ms: int
    expires_on: str
    funder: str
    points: int


@dataclass
class Wallet:
    lots: list[Lot] = field(default_factory=list)
    pending: list[Pending] = field(default_factory=list)
    owed: dict[str, int] = field(default_factory=dict)
    earned: int = 0
    spent: int = 0
    expired: int = 0
    lines: list[Line] = field(default_factory=list)

    @classmethod
    def load(cls, after: State) -> "Wallet":
        """The wallet inside the state an entry left."""
        state = after.get("wallet", {})
        return cls(
            lots=[Lot(*lot) for lot in state.get("lots", ())],
            pending=[Pending(*row) for row in state.get("pending", ())],
            owed=dict(state.get("owed", {})),
            earned=state.get("earned", 0),
            spent=state.get("spent", 0),
            expired=state.get("expired", 0),
        )

    def dump(self) -> dict[str, Any]:
        """The state to keep in the entry; bounded, about 40 bytes a lot."""
        assert len(self.lots) + len(self.pending) <= LOTS_MAX, "more lots than a wallet can hold"
        return {
            "lots": [list(lot) for lot in sorted(self.lots)],
            "pending": [list(row) for row in sorted(self.pending)],
            "owed": {funder: points for funder, points in sorted(self.owed.items()) if points},
            "earned": self.earned,
            "spent": self.spent,
            "expired": self.expired,
        }

    @property
    def available(self) -> int:
        return sum(lot.points for lot in self.lots)

    @property
    def pending_points(self) -> int:
        return sum(row.points for row in self.pending)

    @property
    def owed_points(self) -> int:
        return sum(self.owed.values())

    def advance(self, now: datetime) -> None:
        """Let time pass: what matured becomes available, what expired leaves."""
        now_ms = _ms(now)
        today = clock.city_day(now).isoformat()
        for row in [row for row in self.pending if row.mature_ms <= now_ms]:
            self.pending.remove(row)
            self._add(Lot(row.expires_on, row.funder, row.points))
            self._move(PENDING, AVAILABLE, row.points, "mature")
        for lot in [lot for lot in self.lots if lot.expires_on < today]:
            self.lots.remove(lot)
            self.expired += lot.points
            self._move(AVAILABLE, f"expired:{lot.funder}", lot.points, "expire")

    def earn(self, points: int, funder: str, *, over: datetime, maturity: timedelta) -> None:
        """Issue points of a funder for something that was over at an instant.

        What the resident owes is recovered first. Maturity and expiry count from `over`, so a ride
        that arrives late may be mature on arrival. Call `advance` afterwards to let it become so.
        """
        assert points >= 0, points
        if points == 0:
            return
        self.earned += points
        points -= self._recover(points, funder)
        if points:
            month = clock.add_months(clock.city_month(over), EXPIRY_MONTHS)
            expires_on = clock.last_day(month).isoformat()
            self._add_pending(Pending(_ms(over + maturity), expires_on, funder, points))
            self._move(f"issued:{funder}", PENDING, points)

    def spend(self, points: int) -> list[Lot]:
        """Take points, first expiring first; returns what was taken from which lot.

        Raises `InsufficientPoints`; then nothing changed.
        """
        assert points > 0, points
        if points > self.available:
            raise InsufficientPoints(needed=points, available=self.available)
        taken: list[Lot] = []
        for lot in sorted(self.lots):
            part = min(lot.points, points - sum(one.points for one in taken))
            if part:
                taken.append(lot._replace(points=part))
                self._remove(lot, part)
                self._move(AVAILABLE, f"spent:{lot.funder}", part)
        self.spent += points
        return taken

    def reopen(self, taken: list[Lot], now: datetime) -> None:
        """Give spent points back to the lots they came from, with their own dates.

        A lot that expired meanwhile gets 30 days of grace from now.
        """
        today = clock.city_day(now)
        for lot in taken:
            expires_on = lot.expires_on
            if date.fromisoformat(expires_on) < today:
                expires_on = (today + REOPEN_GRACE).isoformat()
            self._add(lot._replace(expires_on=expires_on))
            self.spent -= lot.points
            self._move(f"spent:{lot.funder}", AVAILABLE, lot.points)

    def take_back(self, points: int, funder: str, *, over: datetime, maturity: timedelta) -> None:
        """Undo an earning: own pending, own lot, same funder latest-expiring, others, then owed.

        Nothing is taken from an expired lot; `advance` has removed those before.
        """
        assert points >= 0, points
        self.earned -= points
        left = points - self._take(points, funder, over, maturity, own_only=False)
        if left:
            self.owed[funder] = self.owed.get(funder, 0) + left
            self._move(OWED, f"issued:{funder}", left)

    def take_what_is_left(
        self, points: int, funder: str, *, over: datetime, maturity: timedelta
    ) -> int:
        """Undo an earning only as far as its funder's points are still there; returns how far.

        In the order of `take_back`, but what was spent or has expired stays with the resident, and
        nothing becomes owed.
        """
        assert points >= 0, points
        taken = self._take(points, funder, over, maturity, own_only=True)
        self.earned -= taken
        return taken

    def _take(
        self, points: int, funder: str, over: datetime, maturity: timedelta, *, own_only: bool
    ) -> int:
        """Take points out of pending and lots, `own_only` those of the funder; returns how many."""
        month = clock.add_months(clock.city_month(over), EXPIRY_MONTHS)
        expires_on = clock.last_day(month).isoformat()
        own_pending = (_ms(over + maturity), expires_on, funder)
        left = points
        # Own pending comes first of all, other pending points only after every lot.
        for row in [row for row in self.pending if row[:3] == own_pending]:
            left -= self._take_pending(row, left, funder)
        for lot in sorted(
            (lot for lot in self.lots if lot.funder == funder or not own_only),
            key=lambda lot: (
                lot[:2] == (expires_on, funder),
                lot.funder == funder,
                lot,
            ),
            reverse=True,
        ):
            part = min(lot.points, left)
            if part:
                self._remove(lot, part)
                self._move(AVAILABLE, f"issued:{funder}", part)
                left -= part
        rows = [row for row in self.pending if row.funder == funder or not own_only]
        for row in sorted(rows, key=lambda row: (row.funder == funder, row), reverse=True):
            left -= self._take_pending(row, left, funder)
        return points - left

    def _take_pending(self, row: Pending, most: int, funder: str) -> int:
        part = min(row.points, most)
        if part:
            self.pending.remove(row)
            if row.points > part:
                self.pending.append(row._replace(points=row.points - part))
            self._move(PENDING, f"issued:{funder}", part)
        return part

    def _recover(self, points: int, funder: str) -> int:
        """Pay what is owed out of new earnings; the debt was to a funder, the coin is another's."""
        paid = 0
        for creditor in sorted(self.owed, key=lambda name: (name != funder, name)):
            part = min(self.owed[creditor], points - paid)
            if part:
                self.owed[creditor] -= part
                self._move(f"issued:{funder}", OWED, part)
                paid += part
        return paid

    def _move(self, source: str, target: str, points: int, tag: str = "") -> None:
        if points:
            self._note(source, -points, tag)
            self._note(target, points, tag)

    def _note(self, book: str, points: int, tag: str) -> None:
        """Add to the line of a book: however many lots move at once, an entry has few lines."""
        for place, line in enumerate(self.lines):
            if (line.book, line.tag) == (book, tag):
                self.lines[place] = line._replace(amount=line.amount + points)
                return
        self.lines.append(Line(UNIT, book, points, tag))

    def _add(self, lot: Lot) -> None:
        for place, held in enumerate(self.lots):
            if (held.expires_on, held.funder) == (lot.expires_on, lot.funder):
                self.lots[place] = held._replace(points=held.points + lot.points)
                return
        self.lots.append(lot)

    def _add_pending(self, row: Pending) -> None:
        for place, held in enumerate(self.pending):
            if held[:3] == row[:3]:
                self.pending[place] = held._replace(points=held.points + row.points)
                return
        self.pending.append(row)

    def _remove(self, lot: Lot, points: int) -> None:
        place = self.lots.index(lot)
        if lot.points == points:
            del self.lots[place]
        else:
            self.lots[place] = lot._replace(points=lot.points - points)


def consistent(after: State) -> str | None:
    """Whether lots and counters agree with the balances of the book; for `book.verify`."""
    wallet = Wallet.load(after)
    for book, held in (
        (AVAILABLE, wallet.available),
        (PENDING, wallet.pending_points),
        (OWED, -wallet.owed_points),
    ):
        if balance(after, UNIT, book) != held:
            return f"its {book} points do not equal its lots"
    if min((lot.points for lot in wallet.lots), default=1) <= 0:
        return "it holds an empty or negative lot"
    held = wallet.available + wallet.pending_points + wallet.spent + wallet.expired
    if wallet.earned != held - wallet.owed_points:
        return "earned points are not all available, pending, spent, expired or owed"
    return None


def _ms(instant: datetime) -> int:
    return (instant - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
