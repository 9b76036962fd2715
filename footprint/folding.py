"""A month of an account as the sum of what its entries did to it. Pure.

The same entries give the same document, byte for byte, however they were taken in: one by one, in
batches, or all again after a rebuild. An entry counts in the month of each activity it is about,
and its moves between books count in the month in which it was recorded.

    behaviours  by behaviour, evidence class and whether a bank may count it: milligrams, points and
                activities of the month, and the same by day of the month
    books       by unit, shared book (`issued:city`, `payable:m_1`) and behaviour: what went `into`
                it and what came `out_of` it, both counted upwards from zero; the behaviour is empty
                for entries that are about none or about several
"""

import bisect
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import bson

from accounting import clock
from accounting.book import Entry
from footprint import methodology
from footprint.replay import Change, moved

DIGEST_CHARS = 32

Document = dict[str, Any]


class Key(NamedTuple):
    """What the grams of a month are told apart by, besides the day."""

    behaviour: str
    evidence: str
    bank_grade: bool


@dataclass(frozen=True, slots=True)
class Effect:
    """What one entry does to one month; moves are (unit, book, behaviour, amount)."""

    changes: tuple[Change, ...]
    moves: tuple[tuple[str, str, str, int], ...]


class Spoiled(Exception):
    """A month that is not what was written: its digest does not fit its content."""


def effects(entry: Entry) -> dict[str, Effect]:
    """What an entry does, by month; a month it does nothing to is left out."""
    changes: dict[str, list[Change]] = {}
    for change in moved(entry.seq, entry.cap_day, entry.refs) if entry.cap_day else ():
        if change.mg or change.points or change.activities:
            changes.setdefault(change.day[:7], []).append(change)
    about = entry.refs.get("behaviour", "")
    moves = tuple(
        # What time moved is not about the activity that came at that moment.
        (line.unit, line.book, "" if line.tag else about, line.amount)
        for line in entry.lines
        if ":" in line.book and line.amount
    )
    booked = clock.city_month(entry.recorded_at)
    months = changes.keys() | ({booked} if moves else set())
    return {
        month: Effect(tuple(changes.get(month, ())), moves if month == booked else ())
        for month in sorted(months)
    }


@dataclass
class Month:
    """One month of one account; `seq` is the last entry that did something to it."""

    account: str
    month: str
    seq: int = 0
    digest: str | None = None
    behaviours: dict[Key, Document] = field(default_factory=dict)
    books: dict[tuple[str, str, str], Document] = field(default_factory=dict)

    @classmethod
    def load(cls, document: Mapping[str, Any]) -> "Month":
        """A month as it was stored. Raises `Spoiled` if somebody else wrote into it."""
        if not document.keys() >= _STORED or document["digest"] != _digest(document):
            raise Spoiled(document["_id"])
        return cls(
            account=document["account"],
            month=document["month"],
            seq=document["seq"],
            digest=document["digest"],
            behaviours={
                Key(row["behaviour"], row["evidence"], row["bank_grade"]): row
                for row in document["behaviours"]
            },
            books={(row["unit"], row["book"], row["behaviour"]): row for row in document["books"]},
        )

    def take_in(self, seq: int, effect: Effect) -> None:
        """Add what an entry did; one that is in already is passed by."""
        if seq <= self.seq:
            return
        self.seq = seq
        for change in effect.changes:
            self._add(change)
        for unit, book, about, amount in effect.moves:
            row = self.books.setdefault(
                (unit, book, about),
                {"unit": unit, "book": book, "behaviour": about, "into": 0, "out_of": 0},
            )
            row["into" if amount > 0 else "out_of"] += abs(amount)

    def dump(self) -> Document:
        """The document to store, in one order whatever the order of the entries was."""
        document: Document = {
            "_id": f"{self.account}:{self.month}",
            "account": self.account,
            "month": self.month,
            "seq": self.seq,
            "behaviours": [
                self.behaviours[key] for key in sorted(self.behaviours) if self._days(key)
            ],
            "books": [self.books[key] for key in sorted(self.books)],
        }
        return {**document, "digest": _digest(document)}

    def _days(self, key: Key) -> list[list[int]]:
        days: list[list[int]] = self.behaviours[key]["days"]
        return days

    def _add(self, change: Change) -> None:
        key = Key(change.behaviour, change.evidence, change.bank_grade)
        row = self.behaviours.get(key)
        if row is None:
            row = self.behaviours[key] = {
                "behaviour": key.behaviour,
                "dimension": methodology.dimension_of(key.behaviour),
                "evidence": key.evidence,
                "bank_grade": key.bank_grade,
                "mg": 0,
                "points": 0,
                "count": 0,
                "days": [],
            }
        row["mg"] += change.mg
        row["points"] += change.points
        row["count"] += change.activities
        _add_to_day(row["days"], int(change.day[8:]), change)


def _add_to_day(days: list[list[int]], day: int, change: Change) -> None:
    """Days are [day, mg, points, count] in order; one where nothing is left goes."""
    place = bisect.bisect_left(days, day, key=lambda row: row[0])
    if place == len(days) or days[place][0] != day:
        days.insert(place, [day, 0, 0, 0])
    row = days[place]
    row[1] += change.mg
    row[2] += change.points
    row[3] += change.activities
    if not any(row[1:]):
        del days[place]


_STORED = {"account", "month", "seq", "behaviours", "books", "digest"}


def totals(months: Iterable[Month]) -> tuple[int, dict[str, int]]:
    """Milligrams of some months, and by unit what all shared books gained in them.

    The account's own books hold what the shared ones lost.
    """
    mg, units = 0, dict[str, int]()
    for month in months:
        mg += sum(row["mg"] for row in month.behaviours.values())
        for row in month.books.values():
            units[row["unit"]] = units.get(row["unit"], 0) + row["into"] - row["out_of"]
    return mg, units


def _digest(document: Mapping[str, Any]) -> str:
    content = {name: document[name] for name in ("_id", "seq", "behaviours", "books")}
    return hashlib.sha256(bson.encode(content)).hexdigest()[:DIGEST_CHARS]
