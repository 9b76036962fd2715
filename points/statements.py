"""What a resident sees of the wallet: the balance at an instant, what expires, every entry."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from accounting import book, clock
from accounting.book import Entry
from points.earning import Part
from points.lots import day_of
from points.wallet import (
    AVAILABLE,
    EXPIRE,
    HELD,
    LAPSE,
    MATURE,
    OWED,
    OWN_BOOKS,
    PENDING,
    UNIT,
    Wallet,
)

# Kinds whose entry moves points between what is held and what is not, and nothing else.
_ABOUT_HELD = ("hold", "release")


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
class Changes:
    """What an entry changed of each balance, what time did meanwhile included.

    The balances before an entry and its changes are the balances after it: a statement adds up.
    """

    available: int
    pending: int
    held: int
    owed: int


@dataclass(frozen=True, slots=True)
class ByTime:
    """What time had done since the entry before: points that matured, expired, were let go."""

    matured: int
    expired: int
    released: int


@dataclass(frozen=True, slots=True)
class Campaigned:
    """Points of an entry that a campaign gave, or that were taken back of it; terms by name."""

    campaign: str
    funder: str
    points: int


@dataclass(frozen=True, slots=True)
class Row:
    """One entry of the account; `points` is what it earned, moved or took, 0 for CO2e alone.

    `funders` are by how many points each owes the resident more or less after it.
    """

    entry: Entry
    points: int
    available_after: int
    changes: Changes
    by_time: ByTime
    funders: tuple[tuple[str, int], ...]
    campaigns: tuple[Campaigned, ...]


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
    return [row_of(entry) for entry in book.entries(resident, before_seq=newest, limit=limit)]


def row_of(entry: Entry) -> Row:
    """An entry as its account's statement shows it."""
    # A hold that is let go may pay a debt; a point that expires never does.
    by_time = ByTime(
        matured=_moved(entry, MATURE, AVAILABLE),
        expired=-_moved(entry, EXPIRE, AVAILABLE),
        released=-_moved(entry, LAPSE, HELD),
    )
    return Row(
        entry=entry,
        points=_points(entry, by_time),
        available_after=book.balance(entry.after, UNIT, AVAILABLE),
        changes=Changes(
            available=entry.amount(UNIT, AVAILABLE),
            pending=entry.amount(UNIT, PENDING),
            held=entry.amount(UNIT, HELD),
            owed=-entry.amount(UNIT, OWED),
        ),
        by_time=by_time,
        funders=_funders(entry),
        campaigns=tuple(
            Campaigned(part.campaign, part.funder, part.points)
            for part in map(Part._make, entry.refs.get("parts", ()))
            if part.campaign is not None and part.points
        ),
    )


def _funders(entry: Entry) -> tuple[tuple[str, int], ...]:
    """What an entry changed of each funder's debt to the resident: its shared books, negated."""
    sums: Counter[str] = Counter()
    for line in entry.lines:
        if line.unit == UNIT and line.book not in OWN_BOOKS:
            sums[line.book.partition(":")[2]] -= line.amount
    return tuple((funder, points) for funder, points in sorted(sums.items()) if points)


def _points(entry: Entry, by_time: ByTime) -> int:
    """What the entry is about, with its sign; what time did beside it is told apart."""
    if "by_time" in entry.refs:
        return by_time.matured - by_time.expired + by_time.released
    books = [book for book in OWN_BOOKS if entry.kind not in _ABOUT_HELD or book != HELD]
    return sum(_moved(entry, "", book) for book in books)


def _moved(entry: Entry, tag: str, name: str) -> int:
    wanted = (UNIT, name, tag)
    return sum(line.amount for line in entry.lines if (line.unit, line.book, line.tag) == wanted)
