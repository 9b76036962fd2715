"""Entries: what is asked, decided and recorded, and how an entry lies in MongoDB."""

import hashlib
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from types import MappingProxyType
from typing import Any, NamedTuple

import bson
from bson.raw_bson import RawBSONDocument
from pymongo import IndexModel

from accounting import storage
from accounting.errors import DomainError

State = dict[str, Any]
LINES_PER_ENTRY_MAX = 400
BY_HEAD = [("account", 1), ("seq", -1)]
BY_DAY = [("account", 1), ("cap_day", 1)]


class Line(NamedTuple):
    """One move: `amount` (an integer in `unit`) into `book`; `tag` names moves made by time."""

    unit: str
    book: str
    amount: int
    tag: str = ""


class Ask(NamedTuple):
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

    def reading(self, days: tuple[date, date] | None) -> "Head":
        """This head with the entries of `days`, first and last, read in one query.

        For rules that look at them more than once; where `days` finds entries already, as it is.
        """
        if days is None or self.days is not None:
            return self
        begins, ends = days
        read = on_days(self.account, begins, ends)

        def found(account: str, first: date, last: date) -> list[Noted]:
            if first < begins or last > ends:
                return on_days(account, first, last)
            since, until = first.isoformat(), last.isoformat()
            return [noted for noted in read if since <= noted.cap_day <= until]

        return replace(self, days=found)


class Decision(NamedTuple):
    """What the rules answered: the lines, the parts of the state that change, the explanation.

    `after` is laid over the state before, part by part; `balances` is the book's own part. `kind`
    is for an entry that turned out to be of another kind than was asked for.
    """

    lines: tuple[Line, ...]
    after: State
    refs: Mapping[str, Any] = MappingProxyType({})
    kind: str | None = None


class Entry(NamedTuple):
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


class Wanted(NamedTuple):
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
    def prepare_collection(cls) -> None:
        schema = {
            "bsonType": "object",
            "required": list(_SHAPE),
            "properties": _SHAPE,
            "additionalProperties": False,
        }
        storage.ensure_collection(cls.name, schema)

    @classmethod
    def indexes(cls) -> list[IndexModel]:
        return [
            # Newest first: heads of many accounts come from one DISTINCT_SCAN of this index.
            IndexModel(BY_HEAD, unique=True),
            IndexModel(BY_DAY, sparse=True),
        ]

    @classmethod
    def ensure_indexes(cls) -> None:
        storage.database()[cls.name].create_indexes(cls.indexes())

    @classmethod
    def open(cls) -> storage.AppendOnly:
        return storage.AppendOnly(storage.database()[cls.name])


def collection() -> storage.AppendOnly:
    return EntryCollection.open()


def digest(document: Mapping[str, Any]) -> str:
    """SHA-256 over the BSON of all there is of an entry but the hash, in the order it lies in."""
    content = {name: value for name, value in document.items() if name != "hash"}
    return hashlib.sha256(bson.encode(content)).hexdigest()


def fingerprint(*parts: Any) -> str:
    """The hash of what was asked; parts must be values whose text form is stable."""
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).hexdigest()


def id_of(account: str, key: str) -> str:
    return f"{account}/{key}"


def next_entry(
    ask: Ask, before: Head, decision: Decision, now: datetime
) -> tuple[Entry, RawBSONDocument]:
    """The next entry and the bytes to store: encoded once, for its hash and for the insert.

    Assertions here are about our own rules, never about a caller.
    """
    lines = decision.lines
    assert len(lines) <= LINES_PER_ENTRY_MAX, len(lines)
    for line in lines:
        assert type(line.amount) is int, lines
    assert not any(sums(lines).values()), f"unbalanced: {lines}"
    assert ask.occurred_at.tzinfo is not None, "occurred_at needs a timezone"
    assert ask.occurred_at.microsecond % 1_000 == 0, ask.occurred_at
    balances = balances_after(before.after, lines)
    document: storage.Doc = {
        "_id": id_of(ask.account, ask.key),
        "account": ask.account,
        "seq": before.seq + 1,
        "kind": decision.kind or ask.kind,
        "lines": lines,
        "after": {**before.after, **decision.after, "balances": balances},
        "fingerprint": ask.fingerprint,
        "occurred_at": ask.occurred_at,
        "recorded_at": now,
        "cap_day": ask.cap_day.isoformat() if ask.cap_day else None,
        "refs": dict(decision.refs),
        "prev_hash": before.hash,
    }
    content = bson.encode(document)
    digest = hashlib.sha256(content).hexdigest()
    del document["_id"]
    return Entry(key=ask.key, hash=digest, **document), _with_hash(content, digest)


def _with_hash(content: bytes, digest: str) -> RawBSONDocument:
    """The BSON of a document with one more text behind its fields."""
    text = digest.encode()
    element = b"\x02hash\x00" + struct.pack("<i", len(text) + 1) + text + b"\x00"
    size = struct.pack("<i", len(content) + len(element))
    return RawBSONDocument(size + content[4:-1] + element + b"\x00")


def sums(lines: Iterable[Line]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for line in lines:
        sums[line.unit] = sums.get(line.unit, 0) + line.amount
    return sums


def balances_after(before: State, lines: Iterable[Line]) -> dict[str, int]:
    """The account's own books after the lines; a book at zero is left out."""
    balances = {name: int(held) for name, held in before.get("balances", {}).items()}
    for unit, book, amount, _ in lines:
        if ":" not in book:
            name = f"{unit}/{book}"
            balances[name] = balances.get(name, 0) + amount
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


def balance(state: State, unit: str, book: str) -> int:
    """What one of the account's own books holds in a state."""
    return int(state.get("balances", {}).get(f"{unit}/{book}", 0))


def on_days(account: str, first: date, last: date) -> list[Noted]:
    """The entries whose activity happened on the city days `first` to `last`, both included.

    In the order of the book: a reversal comes after what it undoes.
    """
    found = collection().find({"account": account, "cap_day": between(first, last)}, NOTED_FIELDS)
    return sorted((noted_of(document) for document in found), key=lambda noted: noted.seq)


NOTED_FIELDS = dict.fromkeys(Noted._fields, 1) | {"_id": 0, "account": 1}


def noted_of(document: Mapping[str, Any]) -> Noted:
    return Noted(*(document[name] for name in Noted._fields))


def between(first: date, last: date) -> dict[str, str]:
    return {"$gte": first.isoformat(), "$lte": last.isoformat()}
