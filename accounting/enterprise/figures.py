"""What plants made and paid in a month, and the averages of their sectors.

Both are kept in full: a correction is the next of a row of versions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import clock, storage


@storage.indexed
class FigureDocument(me.Document):
    """Figures of a month; a correction is the next revision, the old one stays."""

    plant = me.StringField(required=True)
    month = me.StringField(required=True)
    revision = me.IntField(required=True)

    meta = {
        "collection": "plant_figures",
        "auto_create_index": False,
        "indexes": [{"fields": ["plant", "month", "revision"], "unique": True}],
    }


@storage.indexed
class BenchmarkDocument(me.Document):
    """The averages of a sector and year; a correction is the next version."""

    sector = me.StringField(required=True)
    year = me.IntField(required=True)
    version = me.IntField(required=True)

    meta = {
        "collection": "benchmarks",
        "auto_create_index": False,
        "indexes": [{"fields": ["sector", "year", "version"], "unique": True}],
    }


@dataclass(frozen=True, slots=True)
class Figures:
    """What a plant made and paid in a month; None was not reported. Money may be negative."""

    plant: str
    month: str
    revision: int
    output: Decimal | None
    output_unit: str | None
    added_value_fen: int | None
    tax_fen: int | None
    recorded_at: datetime


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Average intensities of a sector and year, by indicator (product, added_value, tax).

    In grams of CO2e per unit of the profile's denominator, as decimals.
    """

    sector: str
    year: int
    version: int
    intensities: Mapping[str, Decimal]
    source: str


def add(
    plant_id: str,
    month: str,
    *,
    output: Decimal | None,
    output_unit: str | None,
    added_value_fen: int | None,
    tax_fen: int | None,
) -> Figures:
    """The figures of a month as its next revision; the same again is the revision it was."""
    told = {
        "output": None if output is None else str(output),
        "output_unit": output_unit,
        "added_value_fen": added_value_fen,
        "tax_fen": tax_fen,
    }
    return _figures_of(_next(_figures(), {"plant": plant_id, "month": month}, "revision", told))


def of_months(plant_id: str, first_month: str, last_month: str) -> list[Figures]:
    """The newest revision of each month reported, oldest month first."""
    months = {"$gte": first_month, "$lte": last_month}
    found = _figures().find({"plant": plant_id, "month": months})
    newest = {row["month"]: row for row in found.sort([("month", 1), ("revision", 1)])}
    return [_figures_of(row) for row in newest.values()]


def add_benchmark(
    sector: str, year: int, intensities: Mapping[str, Decimal], source: str
) -> Benchmark:
    """The averages of a sector and year as the next version."""
    told = {"intensities": {name: str(one) for name, one in intensities.items()}, "source": source}
    return _benchmark(_next(_benchmarks(), {"sector": sector, "year": year}, "version", told))


def benchmark(sector: str, year: int) -> Benchmark | None:
    """The newest version for a sector and year."""
    wanted = {"sector": sector, "year": year}
    found = _benchmarks().find_one(wanted, sort=[("version", -1)])
    return _benchmark(found) if found else None


def benchmark_versions(
    sector: str, year: int, *, before: int | None, limit: int
) -> list[Benchmark]:
    """The versions of a sector and year, newest first, below a version."""
    wanted: storage.Doc = {"sector": sector, "year": year}
    if before is not None:
        wanted["version"] = {"$lt": before}
    return [_benchmark(row) for row in _benchmarks().find(wanted).sort("version", -1).limit(limit)]


def _next(
    collection: "Collection[storage.Doc]", whose: storage.Doc, counter: str, told: storage.Doc
) -> storage.Doc:
    """Append the next of a row of versions, unless the newest says the same."""
    while True:
        newest = collection.find_one(whose, sort=[(counter, -1)])
        if newest is not None and {name: newest[name] for name in told} == told:
            return newest
        row = {
            **whose,
            counter: newest[counter] + 1 if newest else 1,
            **told,
            "recorded_at": clock.now(),
        }
        try:
            collection.insert_one(row)
        except DuplicateKeyError:
            continue  # Another took this number; each round one writer gets on.
        return row


def _figures_of(row: storage.Doc) -> Figures:
    output = None if row["output"] is None else Decimal(row["output"])
    names = ("plant", "month", "revision", "output_unit", "added_value_fen", "tax_fen")
    return Figures(
        output=output, recorded_at=row["recorded_at"], **{name: row[name] for name in names}
    )


def _benchmark(row: storage.Doc) -> Benchmark:
    intensities = {name: Decimal(one) for name, one in row["intensities"].items()}
    return Benchmark(row["sector"], row["year"], row["version"], intensities, row["source"])


def _figures() -> "Collection[storage.Doc]":
    return storage.strong(FigureDocument._get_collection())


def _benchmarks() -> "Collection[storage.Doc]":
    return storage.strong(BenchmarkDocument._get_collection())
