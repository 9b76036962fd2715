"""What each funder's points did, over all accounts: issued, taken back, spent, reopened, expired.

Added up from the months of the summaries, which follow the book within seconds. Months that are
over are added up once and kept; this one is added up again each time, some seconds for a city of
millions. The result is one document, so that whoever only asks reads one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import mongoengine as me
from pymongo.collection import Collection

from accounting import clock, storage
from footprint import summaries
from footprint.summaries import BookMonth

FIRST_MONTH = "2024-01"
# A month is over once its last entries are followed for certain.
OPEN_FOR = timedelta(days=3)
NOW = "now"
KINDS = ("issued", "spent", "expired", "between")
BASELINE = "baseline"


@storage.indexed
class FlowDocument(me.Document):
    """Rows of a month that is over, by its name, and of all months together (`now`)."""

    id = me.StringField(primary_key=True)
    at = me.DateTimeField(required=True)
    rows = me.ListField()

    meta = {"collection": "funder_flows", "auto_create_index": False}


@dataclass(slots=True)
class Flow:
    """Points of one funder over all time; `by_behaviour` is what was issued net of taken back."""

    funder: str
    issued: int = 0
    taken_back: int = 0
    spent: int = 0
    reopened: int = 0
    expired: int = 0
    # What its points paid for others less what others' points paid for it.
    between: int = 0
    by_behaviour: dict[str, int] = field(default_factory=dict)
    spent_by_month: dict[str, int] = field(default_factory=dict)

    @property
    def used(self) -> int:
        """What its budget in points has paid for."""
        return self.issued - self.taken_back

    @property
    def redeemed(self) -> int:
        return self.spent - self.reopened

    @property
    def outstanding(self) -> int:
        """What it still owes residents: its points in wallets, less what residents owe it."""
        return self.used - self.redeemed - self.expired - self.between


@dataclass(frozen=True, slots=True)
class Flows:
    """Every funder's flow at an instant, and the milligrams that were avoided by behaviour."""

    at: datetime
    funders: dict[str, Flow]
    mg_by_behaviour: dict[str, int]


def refresh(now: datetime) -> Flows:
    """Add everything up again and keep it."""
    this_month = clock.city_month(now)
    first_open = clock.city_month(now - OPEN_FOR)
    rows = [row for month in _closed(first_open, now) for row in month]
    rows += [_packed(row) for row in summaries.books_between(first_open, this_month)]
    _collection().replace_one({"_id": NOW}, {"_id": NOW, "at": now, "rows": rows}, upsert=True)
    return _flows(now, rows)


def latest() -> Flows:
    """What was added up last; nothing yet in a new city."""
    found = _collection().find_one({"_id": NOW})
    if found is None:
        return Flows(clock.now(), {}, {})
    return _flows(found["at"], found["rows"])


_Row = list[object]


def _closed(first_open: str, now: datetime) -> Iterable[list[_Row]]:
    """The rows of the months before, each added up once."""
    kept = {row["_id"]: row["rows"] for row in _collection().find({"_id": {"$lt": first_open}})}
    month = FIRST_MONTH
    missing = []
    while month < first_open:
        if month not in kept:
            missing.append(month)
        month = clock.add_months(month, 1)
    if missing:
        fresh: dict[str, list[_Row]] = {month: [] for month in missing}
        for row in summaries.books_between(missing[0], missing[-1]):
            if row.month in fresh:
                fresh[row.month].append(_packed(row))
        for month, rows in fresh.items():
            document = {"_id": month, "at": now, "rows": rows}
            _collection().replace_one({"_id": month}, document, upsert=True)
        kept |= fresh
    return kept.values()


def _packed(row: BookMonth) -> _Row:
    return [row.month, row.unit, row.book, row.behaviour, row.into, row.out_of]


def _flows(at: datetime, rows: Iterable[_Row]) -> Flows:
    funders: dict[str, Flow] = {}
    mg: dict[str, int] = {}
    for row in rows:
        _add(funders, mg, *row)  # type: ignore[arg-type]
    return Flows(at, funders, mg)


def _add(
    funders: dict[str, Flow],
    mg: dict[str, int],
    month: str,
    unit: str,
    book: str,
    behaviour: str,
    into: int,
    out_of: int,
) -> None:
    kind, _, funder = book.partition(":")
    if kind == BASELINE:
        mg[behaviour] = mg.get(behaviour, 0) + out_of - into
    elif unit == "points" and kind in KINDS:
        flow = funders.setdefault(funder, Flow(funder))
        if kind == "issued":
            flow.issued += out_of
            flow.taken_back += into
            by = flow.by_behaviour
            by[behaviour] = by.get(behaviour, 0) + out_of - into
        elif kind == "spent":
            flow.spent += into
            flow.reopened += out_of
            by = flow.spent_by_month
            by[month] = by.get(month, 0) + into - out_of
        elif kind == "expired":
            flow.expired += into - out_of
        else:
            flow.between += into - out_of


def _collection() -> "Collection[storage.Doc]":
    return storage.strong(FlowDocument._get_collection())
