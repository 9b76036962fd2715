"""What a resident sees of the wallet: the balance at an instant, what expires, every entry."""

from dataclasses import dataclass
from datetime import datetime

from accounting import book, clock
from accounting.book import Entry
from points.lots import day_of
from points.wallet import AVAILABLE, UNIT, Wallet


@dataclass(frozen=True, slots=True)
class Balance:
    """Points, at an instant. `expiring` are (last day, points), soonest first."""

    available: int
    pending: int
    held: int
    owed: int
    lifetime_earned: int
    spent: int
    expired: int
    expiring: tuple[tuple[str, int], ...]
    as_of: datetime


@dataclass(frozen=True, slots=True)
class Row:
    """One entry of the account; `points` is what it earned, moved or took, 0 for CO2e alone."""

    entry: Entry
    points: int
    available_after: int


def balance(resident: str, as_of: datetime | None = None) -> Balance:
    """The balance now or at an earlier instant: the last entry then, brought to that instant."""
    now = clock.now()
    instant = min(as_of, now) if as_of is not None else now
    head = book.head(resident) if as_of is None else book.as_of(resident, instant)
    wallet = Wallet.load(head.after)
    wallet.advance(instant)
    expiring: dict[str, int] = {}
    for lot in sorted(wallet.lots):
        on = day_of(lot.expires_on).isoformat()
        expiring[on] = expiring.get(on, 0) + lot.points
    return Balance(
        available=wallet.available,
        pending=wallet.pending_points,
        held=wallet.held_points,
        owed=wallet.owed_points,
        lifetime_earned=wallet.earned,
        spent=wallet.spent,
        expired=wallet.expired,
        expiring=tuple(expiring.items()),
        as_of=instant,
    )


def rows(resident: str, *, before: int | None, limit: int) -> list[Row]:
    """The entries of an account, newest first."""
    newest = before if before is not None else 2**62
    return [_row(entry) for entry in book.entries(resident, before_seq=newest, limit=limit)]


def _row(entry: Entry) -> Row:
    """What the entry itself did; moves made by time passing carry a tag and are told apart."""
    own = [
        line for line in entry.lines if line.unit == UNIT and ":" not in line.book and not line.tag
    ]
    return Row(
        entry=entry,
        points=sum(line.amount for line in own),
        available_after=book.balance(entry.after, UNIT, AVAILABLE),
    )
