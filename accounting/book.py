"""The book: one append-only collection of double entries, one document an entry.

An entry of an account carries its lines, which sum to zero in each unit, and the account's state
after it. It takes the account's next sequence number; `(account, seq)` and `(account, key)` are
unique. So one insert is the whole transaction: two writers who saw the same state cannot both win,
and a retry finds what its first try wrote. Entries are never updated or deleted; undo is a new
entry that names the old one.

A book whose name has a colon is shared (`issued:city`, `payable:m_1`); one without belongs to the
account (`available`). Shared books have no head: only the account is sequenced.
"""

import hashlib
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, NamedTuple

import bson
import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import clock, storage
from accounting.errors import AccountBusy, DomainError, KeyReused

POST_ATTEMPTS_MAX = 12
LINES_PER_ENTRY_MAX = 400
_PAUSE_S = 0.004
_PAUSE_MAX_S = 0.25

State = dict[str, Any]


class Line(NamedTuple):
    """One move: `amount` (an integer in `unit`) into `book`; `tag` names moves made by time."""

    unit: str
    book: str
    amount: int
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a caller wants recorded, before anything is decided.

    `fingerprint` is the hash of what was asked, not of what the rules answered: a cap or a new
    factor may change the answer between two tries, and the retry must still be the same ask.
    """

    account: str
    key: str
    kind: str
    fingerprint: str
    occurred_at: datetime
    cap_day: date | None = None


# Finds the entries of an account whose activity happened on city days, both included.
Days = Callable[[str, date, date], "list[Entry]"]


@dataclass(frozen=True, slots=True)
class Head:
    """The account as its newest entry left it; seq 0 and an empty state before the first.

    It is what `decide` sees of the account: the state, and `on_days` for what the state leaves out.
    `days` finds those entries; None reads them from the book.
    """

    account: str
    seq: int = 0
    after: State = field(default_factory=dict)
    recorded_at: datetime | None = None
    hash: str = ""
    days: Days | None = field(default=None, compare=False, repr=False)

    def on_days(self, first: date, last: date) -> "list[Entry]":
        """This account's entries of the city days `first` to `last`; see `book.on_days`."""
        return (self.days or on_days)(self.account, first, last)


@dataclass(frozen=True, slots=True)
class Decision:
    """What the rules answered: the lines, the parts of the state that change, the explanation.

    `after` is laid over the state before, part by part; `balances` is the book's own part.
    """

    lines: tuple[Line, ...]
    after: State
    refs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    account: str
    seq: int
    key: str
    kind: str
    lines: tuple[Line, ...]
    after: State
    fingerprint: str
    occurred_at: datetime
    recorded_at: datetime
    cap_day: str | None
    refs: dict[str, Any]
    prev_hash: str
    hash: str

    def amount(self, unit: str, book: str) -> int:
        """What this entry moved into one book, in the unit's smallest step."""
        return sum(line.amount for line in self.lines if (line.unit, line.book) == (unit, book))


class Posted(NamedTuple):
    entry: Entry
    replayed: bool


Decide = Callable[[Head, datetime], Decision]


@storage.indexed
class EntryDocument(me.Document):
    """How an entry lies in MongoDB. Written with one raw insert; read through `entries`."""

    account = me.StringField(required=True)
    seq = me.IntField(required=True)
    key = me.StringField(required=True)
    kind = me.StringField(required=True)
    lines = me.ListField(me.ListField())
    after = me.DictField()
    fingerprint = me.StringField(required=True)
    occurred_at = me.DateTimeField(required=True)
    recorded_at = me.DateTimeField(required=True)
    cap_day = me.StringField()
    refs = me.DictField()
    prev_hash = me.StringField(required=True)
    hash = me.StringField(required=True)

    meta = {
        "collection": "entries",
        "auto_create_index": False,
        "indexes": [
            # Newest first: heads of many accounts come from one DISTINCT_SCAN of this index.
            {"fields": ["account", "-seq"], "unique": True},
            {"fields": ["account", "key"], "unique": True},
            {"fields": ["account", "cap_day"], "sparse": True},
        ],
    }


# The order is part of the hash.
_FIELDS = (
    "account",
    "seq",
    "key",
    "kind",
    "lines",
    "after",
    "fingerprint",
    "occurred_at",
    "recorded_at",
    "cap_day",
    "refs",
    "prev_hash",
)


def _collection() -> "Collection[storage.Doc]":
    return storage.strong(EntryDocument._get_collection())


def _digest(document: Mapping[str, Any]) -> str:
    """SHA-256 over the BSON of the fields in fixed order."""
    return hashlib.sha256(bson.encode({name: document[name] for name in _FIELDS})).hexdigest()


def fingerprint(*parts: Any) -> str:
    """The hash of what was asked; parts must be values whose text form is stable."""
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).hexdigest()


def post(ask: Ask, decide: Decide) -> Posted:
    """Record one ask and return its entry, or the entry an earlier try of it wrote.

    `decide` is pure but for `Head.on_days`, this account's own entries. It is judged on the newest
    state, again on every lost race. A refusal it raises leaves no entry; a retry after success gets
    its answer before any refusal. Raises `KeyReused` for the same key with other content and
    `AccountBusy` after a bounded number of lost races.
    """
    for attempt in range(POST_ATTEMPTS_MAX):
        before = head(ask.account)
        now = max(clock.now(), before.recorded_at) if before.recorded_at else clock.now()
        try:
            document = _document(ask, before, decide(before, now), now)
        except DomainError:
            earlier = _replayed(ask)
            if earlier is not None:
                return earlier
            raise
        try:
            _collection().insert_one(document)
        except DuplicateKeyError:
            # Either this very key was posted before, or somebody took the sequence number.
            earlier = _replayed(ask)
            if earlier is not None:
                return earlier
            time.sleep(random.uniform(0, min(_PAUSE_S * 2**attempt, _PAUSE_MAX_S)))
            continue
        return Posted(_entry(document), replayed=False)
    raise AccountBusy(retry_after=1)


def head(account: str) -> Head:
    """The newest state of an account, read from the primary."""
    found = _collection().find_one(
        {"account": account},
        {"seq": 1, "after": 1, "recorded_at": 1, "hash": 1},
        sort=[("seq", -1)],
    )
    if found is None:
        return Head(account)
    return Head(account, found["seq"], found["after"], found["recorded_at"], found["hash"])


def by_key(account: str, key: str) -> Entry | None:
    found = _collection().find_one({"account": account, "key": key})
    return _entry(found) if found else None


def entries(
    account: str, *, after_seq: int = 0, before_seq: int | None = None, limit: int = 0
) -> Iterator[Entry]:
    """The account's entries, oldest first; with `before_seq`, newest first from below it."""
    if before_seq is None:
        wanted: dict[str, Any] = {"$gt": after_seq}
        direction = 1
    else:
        wanted = {"$gt": after_seq, "$lt": before_seq}
        direction = -1
    found = _collection().find({"account": account, "seq": wanted})
    for document in found.sort("seq", direction).limit(limit):
        yield _entry(document)


def on_days(account: str, first: date, last: date) -> list[Entry]:
    """The entries whose activity happened on the city days `first` to `last`, both included.

    In the order of the book: a reversal comes after what it undoes.
    """
    wanted = {"$gte": first.isoformat(), "$lte": last.isoformat()}
    found = _collection().find({"account": account, "cap_day": wanted})
    return sorted(map(_entry, found), key=lambda entry: entry.seq)


def as_of(account: str, instant: datetime) -> Head:
    """The account as it stood at an instant: its last entry recorded at or before it."""
    found = _collection().find_one(
        {"account": account, "recorded_at": {"$lte": instant}}, sort=[("seq", -1)]
    )
    if found is None:
        return Head(account)
    return Head(account, found["seq"], found["after"], found["recorded_at"], found["hash"])


def balance(state: State, unit: str, book: str) -> int:
    """What one of the account's own books holds in a state."""
    return int(state.get("balances", {}).get(f"{unit}/{book}", 0))


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found: how much it read, the totals per unit, and the first broken entry."""

    entries: int
    accounts: int
    totals: dict[str, int]
    problem: str | None


Check = Callable[[State], str | None]


def verify(
    account: str | None = None,
    progress: Callable[[int], None] | None = None,
    checks: Iterable[Check] = (),
) -> Verification:
    """Recompute every hash, sequence, balance and zero sum; stop at the first that does not hold.

    `checks` are the rooms' own: each looks at a state and says in one sentence what is wrong.
    `progress` is called with the number of entries read so far, every 1,000.
    """
    checks = tuple(checks)
    count = accounts = 0
    totals: dict[str, int] = {}
    previous = Head("")
    found = _collection().find({"account": account} if account else {})
    for document in found.sort([("account", 1), ("seq", 1)]).hint([("account", 1), ("seq", -1)]):
        if document["account"] != previous.account:
            previous = Head(document["account"])
            accounts += 1
        count += 1
        problem = _problem(document, previous, checks)
        if problem is not None:
            name = f"{document['account']} seq {document['seq']}"
            return Verification(count, accounts, totals, f"{name}: {problem}")
        for unit, _book, amount, _tag in document["lines"]:
            totals[unit] = totals.get(unit, 0) + amount
        previous = Head(
            document["account"],
            document["seq"],
            document["after"],
            document["recorded_at"],
            document["hash"],
        )
        if progress is not None and count % 1_000 == 0:
            progress(count)
    return Verification(count, accounts, totals, None)


def _problem(document: Mapping[str, Any], previous: Head, checks: tuple[Check, ...]) -> str | None:
    if document["seq"] != previous.seq + 1:
        return f"follows seq {previous.seq}, so an entry is missing"
    if document["prev_hash"] != previous.hash:
        return "does not name the hash of the entry before it"
    if document["hash"] != _digest(document):
        return "its hash does not match its content"
    lines = tuple(Line(*line) for line in document["lines"])
    if any(total != 0 for total in _sums(lines).values()):
        return "its lines do not sum to zero"
    if document["after"]["balances"] != _balances(previous.after, lines):
        return "its balances do not follow from the entry before it and its lines"
    if previous.recorded_at and document["recorded_at"] < previous.recorded_at:
        return "was recorded before the entry it follows"
    return next((wrong for check in checks if (wrong := check(document["after"]))), None)


def _replayed(ask: Ask) -> Posted | None:
    earlier = by_key(ask.account, ask.key)
    if earlier is None:
        return None
    if earlier.fingerprint != ask.fingerprint:
        raise KeyReused(key=ask.key)
    return Posted(earlier, replayed=True)


def _document(ask: Ask, before: Head, decision: Decision, now: datetime) -> storage.Doc:
    """Build the next entry. Assertions here are about our own rules, never about a caller."""
    lines = decision.lines
    assert len(lines) <= LINES_PER_ENTRY_MAX, len(lines)
    assert all(type(line.amount) is int for line in lines), lines
    assert all(total == 0 for total in _sums(lines).values()), f"unbalanced: {lines}"
    assert ask.occurred_at.tzinfo is not None, "occurred_at needs a timezone"
    assert ask.occurred_at.microsecond % 1_000 == 0, ask.occurred_at
    document: storage.Doc = {
        "account": ask.account,
        "seq": before.seq + 1,
        "key": ask.key,
        "kind": ask.kind,
        "lines": [list(line) for line in lines],
        "after": {
            **before.after,
            **decision.after,
            "balances": _balances(before.after, lines),
        },
        "fingerprint": ask.fingerprint,
        "occurred_at": ask.occurred_at,
        "recorded_at": now,
        "cap_day": ask.cap_day.isoformat() if ask.cap_day else None,
        "refs": dict(decision.refs),
        "prev_hash": before.hash,
    }
    document["hash"] = _digest(document)
    return document


def _sums(lines: Iterable[Line]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for line in lines:
        sums[line.unit] = sums.get(line.unit, 0) + line.amount
    return sums


def _balances(before: State, lines: Iterable[Line]) -> dict[str, int]:
    """The account's own books after the lines; a book at zero is left out."""
    balances = {name: int(held) for name, held in before.get("balances", {}).items()}
    for line in lines:
        if ":" not in line.book:
            name = f"{line.unit}/{line.book}"
            balances[name] = balances.get(name, 0) + line.amount
    return {name: balances[name] for name in sorted(balances) if balances[name]}


def _entry(document: Mapping[str, Any]) -> Entry:
    return Entry(
        account=document["account"],
        seq=document["seq"],
        key=document["key"],
        kind=document["kind"],
        lines=tuple(Line(*line) for line in document["lines"]),
        after=document["after"],
        fingerprint=document["fingerprint"],
        occurred_at=document["occurred_at"],
        recorded_at=document["recorded_at"],
        cap_day=document["cap_day"],
        refs=document["refs"],
        prev_hash=document["prev_hash"],
        hash=document["hash"],
    )
