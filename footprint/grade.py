"""The personal carbon grade of one resident: inputs from the summaries, a snapshot for ever.

Only credited reductions of evidence class A or B, net of reversals, of behaviours that may count
for a bank. Health data never does.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import clock, grading, storage
from accounting.grading import Policy, Standing
from accounting.quantities import MG_PER_KG
from footprint import methodology, summaries
from footprint.summaries import Cell

_POLICIES = Path(__file__).parent / "policies"


@storage.indexed
class SnapshotDocument(me.Document):
    """One grading. Append-only; a day is graded again only when its inputs changed."""

    resident = me.StringField(required=True)
    number = me.IntField(required=True)
    graded_at = me.DateTimeField(required=True)
    standing = me.DictField()
    inputs = me.DictField()

    meta = {
        "collection": "grades",
        "auto_create_index": False,
        "indexes": [{"fields": ["resident", "-number"], "unique": True}],
    }


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One grading with everything needed to explain it and to make it again."""

    resident: str
    number: int
    graded_at: datetime
    policy: str
    first_month: str
    last_month: str
    standing: Standing
    by_behaviour: dict[str, int]
    share_ab: tuple[int, int]
    months_covered: int

    @property
    def valid_until(self) -> date:
        """The end of the month after the grading."""
        return clock.last_day(clock.add_months(clock.city_month(self.graded_at), 1))

    @property
    def by_dimension(self) -> dict[str, int]:
        """Counted milligrams per dimension, after the share cap."""
        counted = policy_named(self.policy).counted(self.by_behaviour)
        sums: dict[str, int] = {}
        for code, mg in counted.items():
            dimension = methodology.dimension_of(code)
            sums[dimension] = sums.get(dimension, 0) + mg
        return sums


@lru_cache(maxsize=1)
def policies() -> tuple[tuple[date, Policy], ...]:
    """Every grade policy that ships with its first day, oldest first."""
    found = []
    for file in _POLICIES.glob("*.toml"):
        data = tomllib.loads(file.read_text(encoding="utf-8"))
        found.append((data["valid_from"], _policy(data)))
    return tuple(sorted(found, key=lambda dated: dated[0]))


def policy_on(day: date) -> Policy:
    return [policy for first, policy in policies() if first <= day][-1]


def policy_named(version: str) -> Policy:
    return next(policy for _, policy in policies() if policy.version == version)


def label(policy: Policy, grade: str) -> Mapping[str, str]:
    return policy.labels[grade]


def grade_now(resident: str) -> Snapshot:
    """Grade a resident on demand, exactly, and keep the snapshot if anything changed."""
    now = clock.now()
    last = _last(resident)
    fresh = _grade(resident, now, last)
    if last is not None and _same(last, fresh):
        return last
    document = {
        "resident": resident,
        "number": fresh.number,
        "graded_at": fresh.graded_at,
        "standing": {name: getattr(fresh.standing, name) for name in Standing.__slots__},
        "inputs": {
            "policy": fresh.policy,
            "first_month": fresh.first_month,
            "last_month": fresh.last_month,
            "by_behaviour": fresh.by_behaviour,
            "share_ab": list(fresh.share_ab),
            "months_covered": fresh.months_covered,
        },
    }
    try:
        _snapshots().insert_one(document)
    except DuplicateKeyError:
        # Graded twice at once: both read the same entries, so the other snapshot serves as well.
        other = _last(resident)
        assert other is not None, resident
        return other
    return fresh


def history(resident: str, *, before: int | None, limit: int) -> list[Snapshot]:
    """Snapshots, newest first."""
    wanted: dict[str, Any] = {"resident": resident}
    if before is not None:
        wanted["number"] = {"$lt": before}
    found = _snapshots().find(wanted).sort("number", -1).limit(limit)
    return [_snapshot(document) for document in found]


def _grade(resident: str, now: datetime, last: Snapshot | None) -> Snapshot:
    policy = policy_on(clock.city_day(now))
    last_month = clock.city_month(now)
    first_month = clock.add_months(last_month, -policy.months_back)
    found = summaries.between(resident, clock.first_day(first_month), clock.city_day(now)).cells
    counted = [cell for cell in found if cell.bank_grade and cell.mg]
    by_behaviour: dict[str, int] = {}
    for cell in counted:
        by_behaviour[cell.behaviour] = by_behaviour.get(cell.behaviour, 0) + cell.mg
    standing = grading.stand(
        policy,
        by_behaviour,
        len({cell.day[:7] for cell in counted}),
        held=last.standing.grade if last else None,
        below=last.standing.below if last else 0,
    )
    return Snapshot(
        resident=resident,
        number=last.number + 1 if last else 1,
        graded_at=now,
        policy=policy.version,
        first_month=first_month,
        last_month=last_month,
        standing=standing,
        by_behaviour=dict(sorted(by_behaviour.items())),
        share_ab=(_sum(counted), _sum(found)),
        months_covered=policy.months_back + 1,
    )


def _sum(cells: "list[Cell] | tuple[Cell, ...]") -> int:
    return sum(cell.mg for cell in cells)


def _same(last: Snapshot, fresh: Snapshot) -> bool:
    """Whether grading again would say nothing new within the same month."""
    return (
        last.standing == fresh.standing
        and last.by_behaviour == fresh.by_behaviour
        and last.policy == fresh.policy
        and last.last_month == fresh.last_month
    )


def _snapshots() -> "Collection[storage.Doc]":
    return storage.strong(SnapshotDocument._get_collection())


def _last(resident: str) -> Snapshot | None:
    found = _snapshots().find_one({"resident": resident}, sort=[("number", -1)])
    return _snapshot(found) if found else None


def newest(residents: Sequence[str]) -> dict[str, str]:
    """The grade of the newest snapshot of each resident who has one, in one read."""
    found = _snapshots().aggregate(
        [
            {"$match": {"resident": {"$in": list(residents)}}},
            {"$sort": {"resident": 1, "number": -1}},
            {"$group": {"_id": "$resident", "grade": {"$first": "$standing.grade"}}},
        ]
    )
    return {row["_id"]: row["grade"] for row in found}


def _snapshot(document: storage.Doc) -> Snapshot:
    inputs = document["inputs"]
    return Snapshot(
        resident=document["resident"],
        number=document["number"],
        graded_at=document["graded_at"],
        policy=inputs["policy"],
        first_month=inputs["first_month"],
        last_month=inputs["last_month"],
        standing=Standing(**document["standing"]),
        by_behaviour=dict(inputs["by_behaviour"]),
        share_ab=(inputs["share_ab"][0], inputs["share_ab"][1]),
        months_covered=inputs["months_covered"],
    )


def _policy(data: dict[str, Any]) -> Policy:
    grades = sorted(data["grade"], key=lambda grade: grade["from_kg"])
    labels = {grade["name"]: grade["label"] for grade in grades}
    labels[grading.UNRATED] = data["unrated"]["label"]
    return Policy(
        version=data["version"],
        months_back=data["months_back"],
        cut_offs=tuple((grade["from_kg"] * MG_PER_KG, grade["name"]) for grade in grades),
        share_num=data["share_percent"],
        share_den=100,
        active_months_min=data["active_months_min"],
        gradings_below=data["gradings_below"],
        labels=labels,
    )
