"""Milestones: thresholds of lifetime kilograms, reached once and told once.

A milestone is a row unique on `(resident, milestone)`; reaching it leaves a notification. Both are
safe to repeat, so the activity that crossed it is settled only afterwards.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import mongoengine as me
from pymongo.collection import Collection

from accounting import clock, outbox, storage
from accounting.outbox import Notice
from accounting.quantities import MG_PER_KG

# Kilograms of CO2 avoided over the lifetime of the account.
STEPS_KG = (1, 5, 10, 25, 50, 100, 200, 500, 1_000)


@storage.indexed
class MilestoneDocument(me.Document):
    resident = me.StringField(required=True)
    milestone = me.StringField(required=True)
    reached_at = me.DateTimeField(required=True)

    meta = {
        "collection": "milestones",
        "auto_create_index": False,
        "indexes": [{"fields": ["resident", "milestone"], "unique": True}],
    }


@dataclass(frozen=True, slots=True)
class Milestone:
    milestone: str
    kg: int
    reached_at: datetime | None


def _collection() -> "Collection[storage.Doc]":
    return storage.strong(MilestoneDocument._get_collection())


def crossed(before_mg: int, after_mg: int) -> list[int]:
    """The kilogram steps that lie between two lifetime totals. Pure."""
    return [kg for kg in STEPS_KG if before_mg < kg * MG_PER_KG <= after_mg]


class Climb(NamedTuple):
    """A resident's lifetime milligrams before and after an entry."""

    resident: str
    before_mg: int
    after_mg: int


def record(resident: str, before_mg: int, after_mg: int) -> None:
    """Leave a row and a notification for every step crossed; safe to repeat."""
    record_many([Climb(resident, before_mg, after_mg)])


def record_many(climbs: Iterable[Climb]) -> None:
    """`record` for many entries, in two round trips if anybody crossed a step."""
    reached = [
        (climb.resident, kg) for climb in climbs for kg in crossed(climb.before_mg, climb.after_mg)
    ]
    if not reached:
        return
    now = clock.now()
    rows = [
        {"resident": resident, "milestone": _name(kg), "reached_at": now}
        for resident, kg in reached
    ]
    storage.insert_new(_collection(), rows)
    outbox.leave_many([_notice(resident, kg) for resident, kg in reached])


def _notice(resident: str, kg: int) -> Notice:
    return Notice(
        resident,
        f"milestone/{_name(kg)}",
        type="milestone",
        category=outbox.SERVICE,
        title={"zh": f"已减排 {kg} 千克", "en": f"{kg} kg of CO2 avoided"},
        body={
            "zh": f"您的低碳行为累计减少二氧化碳 {kg} 千克，继续加油！",
            "en": f"What you did has avoided {kg} kg of CO2 so far. Keep going!",
        },
        deep_link="tanhui://milestones",
    )


def of_resident(resident: str) -> tuple[list[Milestone], int | None]:
    """The steps reached, in order, and the kilograms of the next one (None after the last)."""
    found = {
        row["milestone"]: row["reached_at"] for row in _collection().find({"resident": resident})
    }
    reached = [Milestone(_name(kg), kg, found[_name(kg)]) for kg in STEPS_KG if _name(kg) in found]
    following = [kg for kg in STEPS_KG if _name(kg) not in found]
    return reached, (following[0] if following else None)


def _name(kg: int) -> str:
    return f"lifetime_{kg}_kg"
