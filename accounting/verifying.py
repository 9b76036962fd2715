"""Checking the book: every hash, number, balance and sum recomputed, by accounts or as a whole.

A check of an account may begin behind what was proved before: then the entry it begins at must be
the one that was proved. What the book cannot know itself the rooms bring: `checks` look at a state,
`steps` at a state and the entry that follows on it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import mongoengine as me
from pymongo.collection import Collection

from accounting import book, clock, storage
from accounting.book import Check, Entry, Head, State

# Says in one sentence why an entry cannot follow on a state; None if it can.
Step = Callable[[State, Entry], str | None]

STRETCH = 500
# How many entries of several accounts are read at once; an account with more is read alone.
TOGETHER_MAX = 5_000


class Leaf(NamedTuple):
    """The head of an account as it was proved."""

    account: str
    seq: int
    hash: str


@dataclass(frozen=True, slots=True)
class Rules:
    """What the rooms know of states and entries."""

    checks: tuple[Check, ...] = ()
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Checked:
    """What was read and held: entries, the newest leaf of each account, balances by unit/book."""

    entries: int
    leaves: tuple[Leaf, ...]
    balances: Mapping[str, int]


class Broken(Exception):
    """The first thing that does not hold, in one sentence that names the entry."""


def broken(account: str, seq: int, why: str) -> Broken:
    return Broken(f"{account} seq {seq}: {why}")


def check(
    accounts: Sequence[str],
    rules: Rules,
    proved: Mapping[str, Leaf] | None = None,
    *,
    whole: Callable[[str], bool] = lambda account: True,
) -> Checked:
    """Check some accounts up to their heads; raises `Broken`.

    An account that is not `whole` is read from its proved entry on, if it has one. The proved entry
    itself must be there and unchanged in any case.
    """
    proved = proved or {}
    starts = {
        account: 1 if account not in proved or whole(account) else proved[account].seq
        for account in accounts
    }
    entries = 0
    leaves: list[Leaf] = []
    balances: Counter[str] = Counter()
    for account, documents in _read(starts):
        count, head = _chain(account, documents, starts[account], proved.get(account), rules)
        entries += count
        leaves.append(Leaf(account, head.seq, head.hash))
        balances.update(head.after["balances"])
    return Checked(entries, tuple(sorted(leaves)), dict(balances))


def _chain(
    account: str,
    documents: Iterable[storage.Doc],
    start: int,
    proved: Leaf | None,
    rules: Rules,
) -> tuple[int, Head]:
    """Follow the entries of one account; returns how many there were and the last."""
    count, before = 0, Head(account)
    for document in documents:
        count += 1
        if count == 1 and start > 1:
            if document["seq"] != start:
                break
            # What came before it was checked when it was proved; its own content is checked here.
            problem = book.problem(document, None, rules.checks)
        else:
            problem = book.problem(document, before, rules.checks) or _next(
                before, document, rules.steps
            )
        if problem is not None:
            raise broken(account, document["seq"], problem)
        if proved is not None and document["seq"] == proved.seq and document["hash"] != proved.hash:
            raise broken(account, proved.seq, "is not the entry that was proved")
        before = Head(
            account,
            document["seq"],
            document["after"],
            document["recorded_at"],
            document["hash"],
        )
    if proved is not None and before.seq < proved.seq:
        raise broken(account, proved.seq, "was proved, and is gone")
    return count, before


def _next(before: Head, document: storage.Doc, steps: tuple[Step, ...]) -> str | None:
    entry = book.entry_of(document)
    return next((wrong for step in steps if (wrong := step(before.after, entry))), None)


def _read(starts: Mapping[str, int]) -> Iterator[tuple[str, Iterable[storage.Doc]]]:
    """The entries of accounts from a number each: many small ones at once, large ones alone."""
    heads = book.heads(starts)
    together: dict[str, int] = {}
    room = TOGETHER_MAX
    for account, start in starts.items():
        count = heads[account].seq - start + 1 if account in heads else 0
        if count > TOGETHER_MAX:
            yield account, book.documents(account, start)
            continue
        if count > room:
            yield from book.documents_of(together).items()
            together, room = {}, TOGETHER_MAX
        together[account] = start
        room -= count
    yield from book.documents_of(together).items()


# The whole book, from the command line.


@storage.indexed
class VerificationDocument(me.Document):
    """How far a check of the whole book has come, for whoever goes on after a stop."""

    id = me.StringField(primary_key=True)
    after = me.StringField(required=True)
    accounts = me.IntField(required=True)
    entries = me.IntField(required=True)
    balances = me.DictField()
    began_at = me.DateTimeField(required=True)

    meta = {"collection": "verifications", "auto_create_index": False}


@dataclass(frozen=True, slots=True)
class Place:
    """Accounts up to and including `after` have been checked since `began_at`, and held."""

    after: str = ""
    accounts: int = 0
    entries: int = 0
    balances: Mapping[str, int] = field(default_factory=dict)
    began_at: datetime = field(default_factory=clock.now)


WHOLE = "book"


def _places() -> "Collection[storage.Doc]":
    return storage.strong(VerificationDocument._get_collection())


def place() -> Place | None:
    """Where a check of the whole book was stopped."""
    found = _places().find_one({"_id": WHOLE}, {"_id": 0})
    return Place(**found) if found else None


def whole_book(
    rules: Rules,
    proved: Callable[[Sequence[str]], Mapping[str, Leaf]],
    tell: Callable[[int], None] = lambda entries: None,
    *,
    anew: bool = False,
) -> Place:
    """Check every account of the book, from where an earlier check was stopped unless `anew`.

    `tell` hears how many entries were read so far. Raises `Broken`; then the next one begins anew.
    """
    at = (None if anew else place()) or Place()
    tell(at.entries)
    while accounts := book.accounts_after(at.after, STRETCH):
        try:
            found = check(accounts, rules, proved(accounts))
        except Broken:
            _places().delete_one({"_id": WHOLE})
            raise
        at = Place(
            after=accounts[-1],
            accounts=at.accounts + len(accounts),
            entries=at.entries + found.entries,
            balances=_sum(at.balances, found.balances),
            began_at=at.began_at,
        )
        row: dict[str, Any] = {name: getattr(at, name) for name in Place.__slots__}
        _places().replace_one({"_id": WHOLE}, {"_id": WHOLE, **row}, upsert=True)
        tell(at.entries)
    _places().delete_one({"_id": WHOLE})
    return at


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in sorted({*one, *other})}
