"""Plans of a plant's year as they are kept: a change is the next revision, the old one stays."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import clock, storage
from accounting.enterprise import budget
from accounting.enterprise.budget import Amounts, Measure, Plan
from accounting.errors import AccountBusy, KeyReused

ATTEMPTS_MAX = 16


@storage.indexed
class PlanDocument(me.Document):
    """A revision of a year's plan; `once` is the key of the request that told it."""

    plant = me.StringField(required=True)
    year = me.IntField(required=True)
    revision = me.IntField(required=True)
    once = me.StringField()
    recorded_at = me.DateTimeField(required=True)

    meta = {
        "collection": "plant_budgets",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["plant", "year", "revision"], "unique": True},
            {
                "fields": ["once"],
                "name": "once",
                "unique": True,
                "partialFilterExpression": {"once": {"$type": "string"}},
            },
        ],
    }


@dataclass(frozen=True, slots=True)
class Kept:
    """A plan with its place in the row of revisions."""

    plant: str
    revision: int
    plan: Plan
    recorded_at: datetime


def tell(plant_id: str, plan: Plan, *, once: str | None = None) -> Kept:
    """Keep a plan as the next revision of its year, in one write.

    What the newest revision says already is that revision. A request that names itself in `once`
    is a revision of its own, once for ever. Raises `ValidationFailed` for a plan that does not add
    up, `KeyReused`, `AccountBusy`.
    """
    budget.check(plan)
    told = {"yearly": _row(plan.yearly), "monthly": {m: _row(a) for m, a in plan.monthly.items()}}
    for attempt in range(ATTEMPTS_MAX):
        if once is not None and (held := _plans().find_one({"once": once})):
            if _says(held) != (plant_id, plan.year, told):
                raise KeyReused(key=once)
            return _kept(held)
        newest = _newest(plant_id, plan.year)
        if once is None and newest and _says(newest) == (plant_id, plan.year, told):
            return _kept(newest)
        row = {
            "plant": plant_id,
            "year": plan.year,
            "revision": newest["revision"] + 1 if newest else 1,
            **told,
            **({"once": once} if once else {}),
            "recorded_at": clock.now(),
        }
        try:
            _plans().insert_one(row)
        except DuplicateKeyError:
            # Another took this number, or a twin of this request told the plan.
            storage.pause(attempt)
            continue
        return _kept(row)
    raise AccountBusy(retry_after=1)


def plan_of(plant_id: str, year: int) -> Kept | None:
    """The plan in force for a year; None where nothing was planned."""
    found = _newest(plant_id, year)
    return _kept(found) if found else None


def revision(plant_id: str, year: int, number: int) -> Kept | None:
    found = _plans().find_one({"plant": plant_id, "year": year, "revision": number})
    return _kept(found) if found else None


def _newest(plant_id: str, year: int) -> storage.Doc | None:
    return _plans().find_one({"plant": plant_id, "year": year}, sort=[("revision", -1)])


def _says(row: storage.Doc) -> tuple[str, int, dict[str, Any]]:
    return row["plant"], row["year"], {name: row[name] for name in ("yearly", "monthly")}


def _kept(row: storage.Doc) -> Kept:
    monthly = {month: _amounts(told) for month, told in row["monthly"].items()}
    plan = Plan(row["year"], _amounts(row["yearly"]), monthly)
    return Kept(row["plant"], row["revision"], plan, row["recorded_at"])


def _row(amounts: Amounts) -> dict[str, int]:
    return {measure.value: amount for measure, amount in amounts.items()}


def _amounts(row: Mapping[str, int]) -> Amounts:
    return {Measure(name): amount for name, amount in row.items()}


def _plans() -> "Collection[storage.Doc]":
    return storage.strong(PlanDocument._get_collection())
