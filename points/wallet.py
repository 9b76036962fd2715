"""The wallet of one resident: pending, available, held and owed points, in lots. Pure.

This is the only module that names the points books. A lot is points of one funder that expire on
one day; spending takes what expires first. A `Wallet` is loaded from the state an entry left,
brought to the present by `advance`, changed, and dumped into the next entry together with the
lines it gathered.

    earn     issued:<funder> -> pending | owed
    mature   pending         -> available           (tag `mature`)
    expire   available       -> expired:<funder>    (tag `expire`)
    spend    available       -> spent:<funder>
    hold     available       -> held
    capture  held            -> spent:<funder>      (what is left returns)
    release  held            -> available | owed    (tag `lapse` when its time is over)
    reopen   spent:<funder>  -> available | owed    (a cancelled redemption)
    take     pending | available | owed -> issued:<funder>

Points of one funder that pay what was earned from another leave a line in `between:<funder>` on
both sides. So for each funder its shared points books are always the negative of its points in
wallets, which is what the funder still owes the residents.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from accounting import clock
from accounting.book import Line, State, balance
from accounting.errors import DomainError
from points.lots import (
    Hold,
    Lot,
    Pending,
    ReversalPolicy,
    day_number,
    ms,
    nearness,
    pack_lots,
    pack_pending,
    split,
    terms,
    unpack_lots,
    unpack_pending,
)

UNIT = "points"
PENDING, AVAILABLE, HELD, OWED = "pending", "available", "held", "owed"
OWN_BOOKS = (PENDING, AVAILABLE, HELD, OWED)
MATURE, EXPIRE, LAPSE = "mature", "expire", "lapse"
REOPEN_GRACE = timedelta(days=30)
# More than any resident can hold: 24 expiry months of a few funders, and three days at every cap.
LOTS_MAX = 1_000
HOLDS_MAX = 20


class InsufficientPoints(DomainError):
    """Facts: needed, available (points)."""

    code = "insufficient_points"
    en = "This costs {needed} points and {available} are available."
    zh = "需要 {needed} 积分，当前可用 {available} 积分。"


class TooManyHolds(DomainError):
    """Facts: limit."""

    code = "too_many_holds"
    en = "At most {limit} holds may be open at once; capture or release one first."
    zh = "同时最多保留 {limit} 笔积分冻结，请先完成或释放其中一笔。"
    final = False


@dataclass(slots=True)
class Wallet:
    """Lots and pending points by what tells them apart, so that there is one of each."""

    points_of: dict[tuple[int, str], int] = field(default_factory=dict)
    pending_of: dict[tuple[int, int, str], int] = field(default_factory=dict)
    holds: list[Hold] = field(default_factory=list)
    owed: dict[str, int] = field(default_factory=dict)
    earned: int = 0
    spent: int = 0
    expired: int = 0
    # What moved into each book, by book and tag, in the order it began to.
    moved: dict[tuple[str, str], int] = field(default_factory=dict)
    # The city day it was brought to by `advance`.
    today: int = 0

    @classmethod
    def load(cls, after: State) -> "Wallet":
        """The wallet inside the state an entry left."""
        state = after.get("wallet", {})
        return cls(
            points_of=unpack_lots(state.get("lots", ())),
            pending_of=unpack_pending(state.get("pending", ())),
            holds=[
                Hold(name, until_ms, tuple(map(_lot, unpack_lots(lots).items())))
                for name, until_ms, *lots in state.get("holds", ())
            ],
            owed=dict(state.get("owed", {})),
            earned=state.get("earned", 0),
            spent=state.get("spent", 0),
            expired=state.get("expired", 0),
        )

    def dump(self) -> dict[str, Any]:
        """The state to keep in the entry; bounded, about 15 bytes a lot.

        Lots lie flat beside their funder, pending points beside funder and expiry, and what there
        is nothing of is left out: every entry of the account carries this.
        """
        count = len(self.points_of) + len(self.pending_of)
        assert count <= LOTS_MAX, "more lots than a wallet can hold"
        state = {
            "lots": pack_lots(self.points_of),
            "pending": pack_pending(self.pending_of),
            "holds": _pack_holds(self.holds) if self.holds else None,
            "owed": _sorted(self.owed) if self.owed else None,
            "earned": self.earned,
            "spent": self.spent,
            "expired": self.expired,
        }
        return {name: value for name, value in state.items() if value}

    @property
    def lots(self) -> list[Lot]:
        return [_lot(one) for one in self.points_of.items()]

    @property
    def pending(self) -> list[Pending]:
        return [Pending(*key, points) for key, points in self.pending_of.items()]

    @property
    def lines(self) -> list[Line]:
        """What moved so far. However many lots move at once, an entry has few lines."""
        return [Line(UNIT, book, points, tag) for (book, tag), points in self.moved.items()]

    @property
    def available(self) -> int:
        return sum(self.points_of.values())

    @property
    def pending_points(self) -> int:
        return sum(self.pending_of.values())

    @property
    def held_points(self) -> int:
        return sum(hold.points for hold in self.holds)

    @property
    def owed_points(self) -> int:
        return sum(self.owed.values())

    def advance(self, now: datetime) -> None:
        """Let time pass: what matured becomes available, what expired leaves, old holds lapse."""
        self.mature(now)
        self.lapse(now)
        self.expire(now)

    def mature(self, now: datetime) -> None:
        """Let what is mature become available; a part of `advance`."""
        if not self.pending_of:
            return
        now_ms = ms(now)
        for key in [key for key in self.pending_of if key[0] <= now_ms]:
            points = self.pending_of.pop(key)
            self._add(key[1:], points)
            self._move(PENDING, AVAILABLE, points, MATURE)

    def lapse(self, now: datetime) -> None:
        """Let go of what was held for as long as it was asked for; a part of `advance`."""
        if self.holds:
            now_ms = ms(now)
            for hold in [hold for hold in self.holds if hold.until_ms <= now_ms]:
                self.release(hold, LAPSE)

    def expire(self, now: datetime) -> None:
        """Let what expired leave; a part of `advance`. Held points expire once they are free."""
        self.today = day_number(clock.city_day(now))
        for key in [key for key in self.points_of if key[0] < self.today]:
            points = self.points_of.pop(key)
            self.expired += points
            self._move(AVAILABLE, f"expired:{key[1]}", points, EXPIRE)

    def earn(self, points: int, funder: str, *, over: datetime, maturity: timedelta) -> None:
        """Issue points of a funder for something that was over at an instant.

        What the resident owes is recovered first. Maturity and expiry count from `over`, so a ride
        that arrives late may be mature on arrival. Call `advance` afterwards to let it become so.
        """
        assert points >= 0, points
        if points == 0:
            return
        self.earned += points
        points -= self._recover(f"issued:{funder}", points, funder)
        if points:
            row = (*terms(over, maturity), funder)
            self.pending_of[row] = self.pending_of.get(row, 0) + points
            self._move(f"issued:{funder}", PENDING, points)

    def spend(self, points: int) -> list[Lot]:
        """Take points, first expiring first; returns what was taken from which lot.

        Raises `InsufficientPoints`; then nothing changed.
        """
        taken = self._draw(points)
        self.spent += points
        for lot in taken:
            self._move(AVAILABLE, f"spent:{lot.funder}", lot.points)
        return taken

    def reopen(self, taken: Iterable[Lot], now: datetime) -> None:
        """Give spent points back to the lots they came from, with their own dates.

        What the resident owes is paid first. A lot that expired meanwhile gets 30 days of grace
        from now.
        """
        today = clock.city_day(now)
        for lot in sorted(taken, reverse=True):
            self.spent -= lot.points
            if lot.expires_on < day_number(today):
                lot = lot._replace(expires_on=day_number(today + REOPEN_GRACE))
            self._return(f"spent:{lot.funder}", lot)

    def hold(self, name: str, points: int, until: datetime) -> Hold:
        """Set points aside, first expiring first, until they are captured, released, or `until`.

        They keep their lots and dates: what expires meanwhile can still be captured, and leaves
        when it is released. Raises `InsufficientPoints` and `TooManyHolds`; then nothing changed.
        """
        if len(self.holds) >= HOLDS_MAX:
            raise TooManyHolds(limit=HOLDS_MAX)
        held = Hold(name, ms(until), tuple(self._draw(points)))
        self.holds.append(held)
        self._move(AVAILABLE, HELD, points)
        return held

    def held(self, name: str) -> Hold | None:
        """A hold that is open, by its name."""
        return next((hold for hold in self.holds if hold.id == name), None)

    def capture(self, hold: Hold, points: int) -> list[Lot]:
        """Spend points of an open hold, first expiring first; the others return to their lots."""
        assert 0 < points <= hold.points, (points, hold)
        self.holds.remove(hold)
        taken, left = split(hold.lots, points)
        self.spent += points
        for lot in taken:
            self._move(HELD, f"spent:{lot.funder}", lot.points)
        for lot in reversed(left):
            self._return(HELD, lot)
        return taken

    def release(self, hold: Hold, tag: str = "") -> None:
        """Return the points of an open hold to their lots; what the resident owes is paid first."""
        self.holds.remove(hold)
        for lot in sorted(hold.lots, reverse=True):
            self._return(HELD, lot, tag)

    def take_back(
        self,
        points: int,
        funder: str,
        *,
        over: datetime,
        maturity: timedelta,
        policy: ReversalPolicy = ReversalPolicy.OWED,
    ) -> int:
        """Undo an earning as far as its policy reaches; returns how many points it took back.

        Own pending points go first, then the own lot, the same funder's latest expiring, other
        funders' latest expiring, and what is left becomes owed to the funder. Nothing is taken back
        of a month that has expired: its points are gone, and whoever had spent them did so long
        ago. Held points are promised to somebody and stay where they are.
        """
        assert points >= 0, points
        mature_ms, expires_on = terms(over, maturity)
        if expires_on < self._today:
            return 0
        own = Pending(mature_ms, expires_on, funder, 0)
        taken = self._take(points, own, pending_only=policy is ReversalPolicy.PENDING_ONLY)
        if policy is ReversalPolicy.OWED and taken < points:
            self.owed[funder] = self.owed.get(funder, 0) + points - taken
            self._move(OWED, f"issued:{funder}", points - taken)
            taken = points
        self.earned -= taken
        return taken

    def take_what_is_left(
        self, points: int, funder: str, *, over: datetime, maturity: timedelta
    ) -> int:
        """Undo an earning only as far as its funder's points are still there; returns how far.

        In the order of `take_back`, but what was spent or has expired stays with the resident, and
        nothing becomes owed.
        """
        assert points >= 0, points
        mature_ms, expires_on = terms(over, maturity)
        if expires_on < self._today:
            return 0
        taken = self._take(points, Pending(mature_ms, expires_on, funder, 0), own_funder=True)
        self.earned -= taken
        return taken

    def adjust(self, points: int, funder: str, *, over: datetime, maturity: timedelta) -> int:
        """Change an earning by a difference; returns how many points moved, with their sign.

        More is earned on the terms of the earning. Less is taken back within the balance, so that a
        better record of the same trip never makes a debt.
        """
        if points >= 0:
            self.earn(points, funder, over=over, maturity=maturity)
            return points
        policy = ReversalPolicy.WITHIN_BALANCE
        return -self.take_back(-points, funder, over=over, maturity=maturity, policy=policy)

    @property
    def _today(self) -> int:
        assert self.today, "bring the wallet to the present first"
        return self.today

    def _draw(self, points: int) -> list[Lot]:
        """Take points out of the lots, first expiring first, without saying where they go."""
        assert points > 0, points
        if points > self.available:
            raise InsufficientPoints(needed=points, available=self.available)
        taken, left = split(self.lots, points)
        self.points_of = {lot[:2]: lot.points for lot in left}
        return taken

    def _take(
        self, points: int, own: Pending, *, pending_only: bool = False, own_funder: bool = False
    ) -> int:
        """Take points out of pending and lots, nearest first; returns how many were there."""
        rows: list[Lot | Pending] = [*self.pending, *self.lots]
        if pending_only:
            rows = [row for row in self.pending if row[:3] == own[:3]]
        if own_funder:
            rows = [row for row in rows if row.funder == own.funder]
        left = points
        for row in sorted(rows, key=lambda row: nearness(row, own), reverse=True):
            part = min(row.points, left)
            if part == 0:
                break
            left -= part
            if isinstance(row, Pending):
                del self.pending_of[row[:3]]
                if row.points > part:
                    self.pending_of[row[:3]] = row.points - part
                self._move(PENDING, f"issued:{own.funder}", part)
            else:
                del self.points_of[row[:2]]
                if row.points > part:
                    self.points_of[row[:2]] = row.points - part
                self._move(AVAILABLE, f"issued:{own.funder}", part)
            self._pay_between(row.funder, own.funder, part)
        return points - left

    def _return(self, source: str, lot: Lot, tag: str = "") -> None:
        """Bring points back from a book to their lot, or pay with them what is owed."""
        left = lot.points - self._recover(source, lot.points, lot.funder, tag)
        if left:
            self._add(lot[:2], left)
            self._move(source, AVAILABLE, left, tag)

    def _recover(self, source: str, points: int, funder: str, tag: str = "") -> int:
        """Pay what is owed with points of a funder, to itself first; returns how many it took."""
        if not self.owed:
            return 0
        paid = 0
        for creditor in sorted(self.owed, key=lambda name: (name != funder, name)):
            part = min(self.owed[creditor], points - paid)
            if part:
                self.owed[creditor] -= part
                self._move(source, OWED, part, tag)
                self._pay_between(funder, creditor, part, tag)
                paid += part
        return paid

    def _pay_between(self, payer: str, creditor: str, points: int, tag: str = "") -> None:
        """Note that points of one funder made up for what another had issued."""
        if payer != creditor:
            self._move(f"between:{creditor}", f"between:{payer}", points, tag)

    def _move(self, source: str, target: str, points: int, tag: str = "") -> None:
        moved = self.moved
        moved[source, tag] = moved.get((source, tag), 0) - points
        moved[target, tag] = moved.get((target, tag), 0) + points

    def _add(self, lot: tuple[int, str], points: int) -> None:
        self.points_of[lot] = self.points_of.get(lot, 0) + points


def _pack_holds(holds: Iterable[Hold]) -> list[list[Any]]:
    """`[id, until_ms, lots ...]` for each."""
    return [
        [hold.id, hold.until_ms, *pack_lots({lot[:2]: lot.points for lot in hold.lots})]
        for hold in sorted(holds)
    ]


def _sorted(owed: dict[str, int]) -> dict[str, int]:
    return {funder: points for funder, points in sorted(owed.items()) if points}


def _lot(one: tuple[tuple[int, str], int]) -> Lot:
    (expires_on, funder), points = one
    return Lot(expires_on, funder, points)


def consistent(after: State) -> str | None:
    """Whether lots and counters agree with the balances of the book; for `book.verify`."""
    wallet = Wallet.load(after)
    for book, there in (
        (AVAILABLE, wallet.available),
        (PENDING, wallet.pending_points),
        (HELD, wallet.held_points),
        (OWED, -wallet.owed_points),
    ):
        if balance(after, UNIT, book) != there:
            return f"its {book} points do not equal its lots"
    rows: list[Lot | Pending] = [*wallet.lots, *wallet.pending]
    rows += [lot for hold in wallet.holds for lot in hold.lots]
    if min((row.points for row in rows), default=1) <= 0:
        return "it holds an empty or negative lot"
    free = wallet.available + wallet.pending_points
    if wallet.owed_points and free:
        return "it owes points and has some that could pay"
    if wallet.earned != (
        free + wallet.held_points + wallet.spent + wallet.expired - wallet.owed_points
    ):
        return "earned points are not all available, pending, held, spent, expired or owed"
    if wallet.dump() != after.get("wallet", {}):
        return "its lots are not told once each, in their order"
    return None
