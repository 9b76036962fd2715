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
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

import bson
from bson.raw_bson import RawBSONDocument
from pymongo import IndexModel
from pymongo.change_stream import ChangeStream
from pymongo.errors import DuplicateKeyError

from accounting import alarms, clock, storage
from accounting.errors import AccountBusy, DomainError, KeyReused

POST_ATTEMPTS_MAX = 12
# Rounds of a batch after which the accounts that still lose are posted one ask at a time.
BATCH_ROUNDS_MAX = 3
BATCH_MAX = 5_000
# Day ranges that one query of a batch tells apart; beyond, they are read as one.
RANGES_MAX = 50
_HEADS = [("account", 1), ("seq", -1)]
_BY_DAY = [("account", 1), ("cap_day", 1)]
LINES_PER_ENTRY_MAX = 400
# How far a clock may be behind the newest entry of an account before somebody has to look at it.
SKEW_MAX = timedelta(seconds=1)
SKEW_TOLD_EVERY_S = 60.0
SKEWED = "clock_skew"
_PAUSE_S = 0.004
_PAUSE_MAX_S = 0.25

_skew_told_s = -SKEW_TOLD_EVERY_S

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


class Noted(NamedTuple):
    """An entry as rules look back on it: without its lines and the state after it."""

    seq: int
    kind: str
    cap_day: str
    recorded_at: datetime
    refs: dict[str, Any]


# Finds the entries of an account whose activity happened on city days, both included.
Days = Callable[[str, date, date], list[Noted]]


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

    def on_days(self, first: date, last: date) -> list[Noted]:
        """This account's entries of the city days `first` to `last`; see `book.on_days`."""
        return (self.days or on_days)(self.account, first, last)


@dataclass(frozen=True, slots=True)
class Decision:
    """What the rules answered: the lines, the parts of the state that change, the explanation.

    `after` is laid over the state before, part by part; `balances` is the book's own part. `kind`
    is for an entry that turned out to be of another kind than was asked for.
    """

    lines: tuple[Line, ...]
    after: State
    refs: Mapping[str, Any] = field(default_factory=dict)
    kind: str | None = None


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


@dataclass(frozen=True, slots=True)
class Wanted:
    """One posting of a batch. `days`, first and last, is what `decide` may look back on.

    It is a hint, read for the whole batch at once: other days are found too, by a query of their
    own.
    """

    ask: Ask
    decide: Decide
    days: tuple[date, date] | None = None


Result = Posted | DomainError


_TEXT = {"bsonType": "string"}
_INSTANT = {"bsonType": "date"}
# How an entry lies in MongoDB, in the order of its hash. The id is account and key: so a key is
# unique in its account without an index of its own.
_SHAPE: storage.Doc = {
    "_id": _TEXT,
    "account": _TEXT,
    "seq": {"bsonType": ["int", "long"], "minimum": 1},
    "kind": _TEXT,
    "lines": {"bsonType": "array", "maxItems": LINES_PER_ENTRY_MAX},
    "after": {"bsonType": "object", "required": ["balances"]},
    "fingerprint": _TEXT,
    "occurred_at": _INSTANT,
    "recorded_at": _INSTANT,
    "cap_day": {"bsonType": ["string", "null"]},
    "refs": {"bsonType": "object"},
    "prev_hash": _TEXT,
    "hash": {"bsonType": "string", "minLength": 64, "maxLength": 64},
}


@storage.indexed
class EntryCollection:
    """The one collection of the book. It can be read and added to, nothing else."""

    name = "entries"

    @classmethod
    def ensure_indexes(cls) -> None:
        schema = {
            "bsonType": "object",
            "required": list(_SHAPE),
            "properties": _SHAPE,
            "additionalProperties": False,
        }
        indexes = [
            # Newest first: heads of many accounts come from one DISTINCT_SCAN of this index.
            IndexModel(_HEADS, unique=True),
            IndexModel(_BY_DAY, sparse=True),
        ]
        storage.ensure_collection(cls.name, schema, indexes)

    @classmethod
    def open(cls) -> storage.AppendOnly:
        return storage.AppendOnly(storage.database()[cls.name])


def _collection() -> storage.AppendOnly:
    return EntryCollection.open()


def _digest(document: Mapping[str, Any]) -> str:
    """SHA-256 over the BSON of all there is of an entry but the hash, in the order it lies in."""
    content = {name: value for name, value in document.items() if name != "hash"}
    return hashlib.sha256(bson.encode(content)).hexdigest()


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
        now = _following(before, clock.now())
        try:
            entry, document = _next(ask, before, decide(before, now), now)
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
        return Posted(entry, replayed=False)
    raise AccountBusy(retry_after=1)


def post_many(wanted: Sequence[Wanted]) -> list[Result]:
    """Record many asks in a fixed number of round trips; the results are in their order.

    Each is judged like by `post`: asks of one account one after the other, in their order, each on
    the state the one before left. A refusal is that ask's result and nobody else's. What lost its
    account to another writer is judged again, at last through `post`.
    """
    assert len(wanted) <= BATCH_MAX, len(wanted)
    results: dict[int, Result] = {}
    left = list(range(len(wanted)))
    for _ in range(BATCH_ROUNDS_MAX):
        left = _round(wanted, left, results)
        if not left:
            break
        # Some of what is left may be there: that is one way of losing.
        left = _answered(wanted, left, results)
    for place in left:
        try:
            results[place] = post(wanted[place].ask, wanted[place].decide)
        except DomainError as refusal:
            results[place] = refusal
    return [results[place] for place in range(len(wanted))]


@dataclass(slots=True)
class _Chain:
    """What a round decided for one account: entries that follow one another, and refusals.

    `places` are its asks in order, `drafts` the entries with the place each is for.
    """

    places: list[int]
    drafts: list[tuple[int, Entry, RawBSONDocument]] = field(default_factory=list)
    refused: dict[int, DomainError] = field(default_factory=dict)
    again: list[int] = field(default_factory=list)
    written: int = 0


def _round(wanted: Sequence[Wanted], left: list[int], results: dict[int, Result]) -> list[int]:
    """Judge and insert what is left, filling in results; returns what has to be judged again."""
    chains: dict[str, _Chain] = {}
    for place in left:
        chains.setdefault(wanted[place].ask.account, _Chain([])).places.append(place)
    befores, days = heads(chains), _DaysRead(wanted, left)
    now = clock.now()
    for account, chain in chains.items():
        _decide_chain(wanted, chain, befores.get(account) or Head(account), days, now)
    # Before anything is written, so that a later ask of the batch with the same key is not meant.
    refused = [place for chain in chains.values() for place in chain.refused]
    _answered(wanted, refused, results)
    # A later entry of an account must never lie behind a lost one. So the first of each account
    # goes in by itself: whoever lost is known, and the others' entries follow in order.
    first = [chain for chain in chains.values() if chain.drafts]
    for place in _insert([chain.drafts[0][2] for chain in first], ordered=False):
        first[place].written = 1
    rest = [(chain, draft) for chain in first if chain.written for draft in chain.drafts[1:]]
    for place in _insert([draft[2] for _, draft in rest], ordered=True):
        rest[place][0].written += 1
    for chain in chains.values():
        for place, entry, _ in chain.drafts[: chain.written]:
            results[place] = Posted(entry, replayed=False)
    return _unsettled(chains.values(), results)


def _decide_chain(
    wanted: Sequence[Wanted], chain: _Chain, before: Head, days: "_DaysRead", now: datetime
) -> None:
    keys = set()
    before = replace(before, days=days)
    for place in chain.places:
        ask = wanted[place].ask
        if ask.key in keys:
            # The answer is the entry drafted here a moment ago, once it is written.
            chain.again.append(place)
            continue
        then = _following(before, now)
        try:
            entry, document = _next(ask, before, wanted[place].decide(before, then), then)
        except DomainError as refusal:
            chain.refused[place] = refusal
            continue
        keys.add(ask.key)
        chain.drafts.append((place, entry, document))
        days.add(entry)
        before = Head(ask.account, entry.seq, entry.after, then, entry.hash, days)


def _unsettled(chains: Iterable[_Chain], results: dict[int, Result]) -> list[int]:
    """What must be judged again: all of an account from what it lost, and keys asked for twice.

    A refusal is a result unless it rested on what was lost.
    """
    again: list[int] = []
    for chain in chains:
        lost = chain.drafts[chain.written][0] if chain.written < len(chain.drafts) else None
        for place in chain.places:
            if place in results:
                continue
            if place in chain.again or (lost is not None and place >= lost):
                again.append(place)
            else:
                results[place] = chain.refused[place]
    return sorted(again)


def _answered(wanted: Sequence[Wanted], places: list[int], results: dict[int, Result]) -> list[int]:
    """Answer what an earlier try wrote, all found in one query; returns what nobody wrote."""
    if not places:
        return []
    asks = {_id(wanted[place].ask.account, wanted[place].ask.key): place for place in places}
    accounts = {wanted[place].ask.account for place in places}
    found = _collection().find({"_id": {"$in": list(asks)}, "account": {"$in": list(accounts)}})
    earlier = {document["_id"]: entry_of(document) for document in found}
    nobody = []
    for place in places:
        ask = wanted[place].ask
        entry = earlier.get(_id(ask.account, ask.key))
        if entry is None:
            nobody.append(place)
        elif entry.fingerprint != ask.fingerprint:
            results[place] = KeyReused(key=ask.key)
        else:
            results[place] = Posted(entry, replayed=True)
    return nobody


def _insert(documents: list[RawBSONDocument], *, ordered: bool) -> list[int]:
    """Insert entries; returns the places of those written."""
    return storage.insert_new(_collection(), documents, ordered=ordered)


class _DaysRead:
    """The entries of a batch's accounts on the days its rules look back on, read at once.

    What the batch itself decides is added as it goes; days nobody named are read when asked for.
    """

    def __init__(self, wanted: Sequence[Wanted], places: list[int]) -> None:
        self.ranges: dict[str, tuple[date, date]] = {}
        self.stored: dict[str, list[Noted]] = {}
        self.added: dict[str, list[Noted]] = {}
        for place in places:
            days, account = wanted[place].days, wanted[place].ask.account
            if days is not None:
                first, last = self.ranges.get(account, days)
                self.ranges[account] = (min(first, days[0]), max(last, days[1]))
        if self.ranges:
            self._read()

    def __call__(self, account: str, first: date, last: date) -> list[Noted]:
        known = self.ranges.get(account)
        if known is not None and known[0] <= first and last <= known[1]:
            stored = self.stored.get(account, [])
        else:
            stored = on_days(account, first, last)
        since, until = first.isoformat(), last.isoformat()
        return [
            noted
            for noted in (*stored, *self.added.get(account, ()))
            if since <= noted.cap_day <= until
        ]

    def add(self, entry: Entry) -> None:
        if entry.cap_day is not None:
            noted = Noted(entry.seq, entry.kind, entry.cap_day, entry.recorded_at, entry.refs)
            self.added.setdefault(entry.account, []).append(noted)

    def _read(self) -> None:
        by_range: dict[tuple[date, date], list[str]] = {}
        for account, days in self.ranges.items():
            by_range.setdefault(days, []).append(account)
        if len(by_range) > RANGES_MAX:
            whole = (min(days[0] for days in by_range), max(days[1] for days in by_range))
            by_range = {whole: list(self.ranges)}
        wanted = [
            {"account": {"$in": accounts}, "cap_day": _between(*days)}
            for days, accounts in by_range.items()
        ]
        found = _collection().find({"$or": wanted}, _NOTED).hint(_BY_DAY)
        for document in found.sort([("account", 1), ("seq", 1)]):
            self.stored.setdefault(document["account"], []).append(_noted(document))


def heads(accounts: Iterable[str]) -> dict[str, Head]:
    """The newest states of many accounts in one read; an account without entries is left out."""
    return _heads(heads_pipeline({"$in": list(accounts)}))


def heads_after(account: str, limit: int) -> dict[str, Head]:
    """The heads of the next accounts in the order of their ids; "" begins."""
    return _heads([*heads_pipeline({"$gt": account}), {"$limit": limit}])


def heads_pipeline(accounts: storage.Doc) -> list[storage.Doc]:
    """Sorted like the index, so that the planner skips from head to head (a DISTINCT_SCAN)."""
    first = {name: {"$first": f"${name}"} for name in ("seq", "after", "recorded_at", "hash")}
    return [
        {"$match": {"account": accounts}},
        {"$sort": {"account": 1, "seq": -1}},
        {"$group": {"_id": "$account", **first}},
    ]


def _heads(pipeline: list[storage.Doc]) -> dict[str, Head]:
    return {
        row["_id"]: Head(row["_id"], row["seq"], row["after"], row["recorded_at"], row["hash"])
        for row in _collection().aggregate(pipeline)
    }


def count() -> int:
    """About how many entries there are."""
    return _collection().estimated_count()


def accounts_after(account: str, limit: int) -> list[str]:
    """The ids of the next accounts that have entries, in their order; "" begins."""
    found = _collection().aggregate(
        [
            {"$match": {"account": {"$gt": account}}},
            {"$sort": {"account": 1, "seq": -1}},
            {"$group": {"_id": "$account"}},
            {"$limit": limit},
        ]
    )
    return [row["_id"] for row in found]


def entries_after(seqs: Mapping[str, int]) -> dict[str, list[Entry]]:
    """What several accounts recorded after a sequence number each, oldest first, without `after`.

    For callers who know from the heads that it is not too much at once.
    """
    if not seqs:
        return {}
    wanted = [{"account": account, "seq": {"$gt": seq}} for account, seq in seqs.items()]
    found: dict[str, list[Entry]] = {account: [] for account in seqs}
    for document in _collection().find({"$or": wanted}, {"after": 0}):
        found[document["account"]].append(entry_of(document))
    for entries_of_one in found.values():
        entries_of_one.sort(key=lambda entry: entry.seq)
    return found


def documents(account: str, first_seq: int) -> Iterator[storage.Doc]:
    """The entries of an account from a number on as they lie in MongoDB, oldest first."""
    wanted = {"account": account, "seq": {"$gte": first_seq}}
    yield from _collection().find(wanted).sort("seq", 1)


def documents_of(first_seqs: Mapping[str, int]) -> dict[str, list[storage.Doc]]:
    """The same of several accounts in one query; for callers who know that it is not too much."""
    found: dict[str, list[storage.Doc]] = {account: [] for account in first_seqs}
    if first_seqs:
        wanted = [{"account": one, "seq": {"$gte": seq}} for one, seq in first_seqs.items()]
        for document in _collection().find({"$or": wanted}):
            found[document["account"]].append(document)
    for documents_of_one in found.values():
        documents_of_one.sort(key=lambda document: document["seq"])
    return found


def watch(token: Mapping[str, Any] | None, wait_ms: int) -> "ChangeStream[storage.Doc]":
    """Every entry from now on, or from behind a resume token, in the order of recording.

    Each change has the entry in `fullDocument`, without `after`; see `entry_of`.
    """
    only_entries: list[storage.Doc] = [
        {"$match": {"operationType": "insert"}},
        {"$project": {"fullDocument.after": 0}},
    ]
    return _collection().watch(pipeline=only_entries, resume_after=token, max_await_time_ms=wait_ms)


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
    found = _collection().find_one({"_id": _id(account, key), "account": account})
    return entry_of(found) if found else None


def kinds(account: str, keys: Iterable[str]) -> dict[str, str]:
    """The kinds of an account's entries by their keys, as far as there are any; one query."""
    ids = {_id(account, key): key for key in keys}
    found = _collection().find({"_id": {"$in": list(ids)}, "account": account}, {"kind": 1})
    return {ids[document["_id"]]: document["kind"] for document in found} if ids else {}


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
        yield entry_of(document)


def at(places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], Entry]:
    """Entries by (account, seq), in one query: a few hundred at most."""
    wanted = [{"account": account, "seq": seq} for account, seq in places]
    found = map(entry_of, _collection().find({"$or": wanted})) if wanted else ()
    return {(entry.account, entry.seq): entry for entry in found}


def on_days(account: str, first: date, last: date) -> list[Noted]:
    """The entries whose activity happened on the city days `first` to `last`, both included.

    In the order of the book: a reversal comes after what it undoes.
    """
    found = _collection().find({"account": account, "cap_day": _between(first, last)}, _NOTED)
    return sorted((_noted(document) for document in found), key=lambda noted: noted.seq)


_NOTED = {"_id": 0, "account": 1, "seq": 1, "kind": 1, "cap_day": 1, "recorded_at": 1, "refs": 1}


def _noted(document: Mapping[str, Any]) -> Noted:
    return Noted(*(document[name] for name in Noted._fields))


def _between(first: date, last: date) -> dict[str, str]:
    return {"$gte": first.isoformat(), "$lte": last.isoformat()}


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
    for document in found.sort([("account", 1), ("seq", 1)]).hint(_HEADS):
        if document["account"] != previous.account:
            previous = Head(document["account"])
            accounts += 1
        count += 1
        wrong = problem(document, previous, checks)
        if wrong is not None:
            name = f"{document['account']} seq {document['seq']}"
            return Verification(count, accounts, totals, f"{name}: {wrong}")
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


def problem(
    document: Mapping[str, Any], previous: Head | None, checks: tuple[Check, ...]
) -> str | None:
    """What is wrong with a stored entry, in one sentence; None for `previous` looks at it alone."""
    if previous is not None and document["seq"] != previous.seq + 1:
        return f"follows seq {previous.seq}, so an entry is missing"
    if previous is not None and document["prev_hash"] != previous.hash:
        return "does not name the hash of the entry before it"
    if document["hash"] != _digest(document):
        return "its hash does not match its content"
    lines = tuple(Line(*line) for line in document["lines"])
    if any(total != 0 for total in _sums(lines).values()):
        return "its lines do not sum to zero"
    if previous is not None:
        if document["after"]["balances"] != _balances(previous.after, lines):
            return "its balances do not follow from the entry before it and its lines"
        if previous.recorded_at and document["recorded_at"] < previous.recorded_at:
            return "was recorded before the entry it follows"
    return next((wrong for check in checks if (wrong := check(document["after"]))), None)


def _following(before: Head, now: datetime) -> datetime:
    """Now, or the instant of the entry before where our clock is behind the one that wrote it.

    More than a second of that is an alarm: one of the two clocks is wrong.
    """
    global _skew_told_s
    if before.recorded_at is None or before.recorded_at <= now:
        return now
    behind = before.recorded_at - now
    if behind > SKEW_MAX and time.monotonic() - _skew_told_s > SKEW_TOLD_EVERY_S:
        _skew_told_s = time.monotonic()
        behind_ms = behind // timedelta(milliseconds=1)
        alarms.sound(SKEWED, socket.gethostname(), behind_ms=behind_ms, account=before.account)
    return before.recorded_at


def _replayed(ask: Ask) -> Posted | None:
    earlier = by_key(ask.account, ask.key)
    if earlier is None:
        return None
    if earlier.fingerprint != ask.fingerprint:
        raise KeyReused(key=ask.key)
    return Posted(earlier, replayed=True)


def _id(account: str, key: str) -> str:
    return f"{account}/{key}"


def _next(
    ask: Ask, before: Head, decision: Decision, now: datetime
) -> tuple[Entry, RawBSONDocument]:
    """The next entry and the bytes to store: encoded once, for its hash and for the insert.

    Assertions here are about our own rules, never about a caller.
    """
    lines = decision.lines
    assert len(lines) <= LINES_PER_ENTRY_MAX, len(lines)
    assert all(type(line.amount) is int for line in lines), lines
    assert all(total == 0 for total in _sums(lines).values()), f"unbalanced: {lines}"
    assert ask.occurred_at.tzinfo is not None, "occurred_at needs a timezone"
    assert ask.occurred_at.microsecond % 1_000 == 0, ask.occurred_at
    document: storage.Doc = {
        "_id": _id(ask.account, ask.key),
        "account": ask.account,
        "seq": before.seq + 1,
        "kind": decision.kind or ask.kind,
        "lines": lines,
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
    content = bson.encode(document)
    document["hash"] = hashlib.sha256(content).hexdigest()
    return entry_of(document), _with_hash(content, document["hash"])


def _with_hash(content: bytes, digest: str) -> RawBSONDocument:
    """The BSON of a document with one more text behind its fields."""
    text = digest.encode()
    element = b"\x02hash\x00" + struct.pack("<i", len(text) + 1) + text + b"\x00"
    size = struct.pack("<i", len(content) + len(element))
    return RawBSONDocument(size + content[4:-1] + element + b"\x00")


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


def entry_of(document: Mapping[str, Any]) -> Entry:
    """An entry as it lies in MongoDB; `after` is empty where it was not read."""
    return Entry(
        account=document["account"],
        seq=document["seq"],
        key=document["_id"][len(document["account"]) + 1 :],
        kind=document["kind"],
        lines=tuple(Line(*line) for line in document["lines"]),
        after=document.get("after", {}),
        fingerprint=document["fingerprint"],
        occurred_at=document["occurred_at"],
        recorded_at=document["recorded_at"],
        cap_day=document["cap_day"],
        refs=document["refs"],
        prev_hash=document["prev_hash"],
        hash=document["hash"],
    )
