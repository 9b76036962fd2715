"""A city of residents by what the projections hold of them, as random as grading can meet."""

import random
from datetime import datetime
from typing import Any

from accounting import clock, storage
from accounting.grading import UNRATED
from footprint import grade
from footprint.grade import Inputs, Snapshot

KG = 1_000_000
CODES = ("bus_km", "metro_km", "bike_km", "recycle_kg", "ev_charge_kwh", "e_invoice", "walk_steps")


def settle(residents: int, now: datetime, seed: int = 7, *, graded: bool = True) -> list[str]:
    """Residents with months and, most of them, earlier gradings; a few accounts are closed."""
    chance = random.Random(seed)
    ids = [f"res_{number:06d}" for number in range(residents)]
    database = storage.database()
    people: list[dict[str, Any]] = []
    months: list[dict[str, Any]] = []
    gradings: list[dict[str, Any]] = []
    for one in ids:
        status = "closed" if graded and chance.random() < 0.02 else "open"
        people.append({"_id": one, "status": status})
        months += _months(one, now, chance)
        if graded and chance.random() < 0.7:
            gradings += [grade.document_of(_earlier(one, now, chance))]
    database["residents"].insert_many(people)
    if months:
        database["summary_months"].insert_many(months)
    for row in gradings:
        row.pop("untold", None)
    if gradings:
        database["grades"].insert_many(gradings)
    return ids


def _months(one: str, now: datetime, chance: random.Random) -> list[dict[str, Any]]:
    """Fifteen months back, of which two are beyond the window; a third of the people do little."""
    this = clock.city_month(now)
    scale = chance.choice((0, 0.01, 0.3, 1, 1, 2))
    found = []
    for back in range(15):
        if chance.random() < (0.8 if scale < 1 else 0.1):
            continue
        rows = [
            _row(code, evidence, chance, scale)
            for code in CODES
            for evidence in ("A", "B", "C", "D")
            if chance.random() < 0.25
        ]
        found.append(
            {
                "_id": f"{one}:{clock.add_months(this, -back)}",
                "account": one,
                "month": clock.add_months(this, -back),
                "seq": chance.randrange(1, 10**6),
                "behaviours": rows,
                "books": [],
                "digest": "",
            }
        )
    return found


def _row(code: str, evidence: str, chance: random.Random, scale: float) -> dict[str, Any]:
    mg = chance.choice((0, 1, int(chance.random() * 8 * KG * scale)))
    days = [[day, mg // 5, 0, 1] for day in sorted(chance.sample(range(1, 29), 5))]
    return {
        "behaviour": code,
        "dimension": "green_travel",
        "evidence": evidence,
        "bank_grade": evidence in "AB" and code != "walk_steps" and chance.random() < 0.95,
        "mg": mg,
        "points": 0,
        "count": 5,
        "days": days,
    }


def _earlier(one: str, now: datetime, chance: random.Random) -> Snapshot:
    """A grading of some month before, which may hold any grade and any count."""
    then = clock.add_months(clock.city_month(now), -chance.randrange(3))
    policy = grade.policy_on(clock.city_day(now))
    inputs = Inputs(
        policy=policy.version,
        first_month=clock.add_months(then, -12),
        last_month=then,
        by_behaviour={},
        active_months=0,
        credited_mg=0,
        seq=0,
        held=None,
        below=0,
        scheduled=chance.choice((None, then)),
        counts=False,
        released=False,
    )
    standing = inputs.stand()
    held = chance.choice((UNRATED, *policy.names))
    below = chance.randrange(2) if held != UNRATED else 0
    fields = {name: getattr(standing, name) for name in standing.__slots__}
    standing = type(standing)(**fields | {"grade": held, "below": below})
    return Snapshot(
        one, chance.randrange(1, 30), clock.start_of(clock.first_day(then)), standing, inputs
    )
