"""A day's mess of reports, made from a seed: the same for a test and for the processes it kills."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from accounting import clock
from footprint import intake
from footprint.activities import Activity
from footprint.rules import Report

ANNA, BO, CY = "res_anna", "res_bo", "res_cy"


def city(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=clock.CITY).astimezone(UTC)


NOW = city("2026-05-20 12:00")


def fact(
    who: str,
    behaviour: str,
    quantity: object,
    when: str,
    event: str,
    *,
    minutes: int | None = None,
    evidence: str = "A",
    **attributes: Any,
) -> Activity:
    start = city(when)
    end = start + timedelta(minutes=minutes) if minutes is not None else None
    return intake.fact_of(
        Report(behaviour, Decimal(str(quantity)), start, end, attributes),
        resident=who,
        source="partner:bus",
        event_id=event,
        evidence=evidence,
        received_at=NOW,
        activity_id=f"act_{who}_{event}",
    )


MADE: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "bus_km": lambda chance: {
        "quantity": chance.randint(1, 30),
        "minutes": 9,
        **chance.choice([{}, {"line": "K1"}, {"line": "K2"}]),
    },
    "metro_km": lambda chance: {"quantity": "7.5", "minutes": 15},
    "bike_km": lambda chance: {"quantity": 2, "minutes": 12},
    "walk_steps": lambda chance: {"quantity": chance.randint(1, 20_000)},
    "e_invoice": lambda chance: {"quantity": 1, "invoice": str(chance.randrange(6))},
    "ev_charge_kwh": lambda chance: {"quantity": 9, "vehicle": str(chance.randrange(2))},
    "car_stop_day": lambda chance: {"quantity": 1, "vehicle": str(chance.randrange(3))},
    "mobile_pay_offline": lambda chance: {
        "quantity": 1,
        "amount_fen": chance.choice([50, 5_000]),
        "merchant": "m",
    },
    "transit_of_ones_own_word": lambda chance: {
        "behaviour": "bus_km",
        "quantity": 9,
        "evidence": "D",
    },
}
DAYS = ("2026-05-20", "2026-05-19", "2026-05-18", "2026-05-16", "2026-04-02")


def a_days_mess(seed: int) -> list[Activity]:
    """A hundred reports of a few people: overlaps, caps, shared invoices, late ones, repeats."""
    chance = random.Random(seed)
    facts = []
    for number in range(100):
        who, day = chance.choice([ANNA, BO, CY]), chance.choice(DAYS)
        when = f"{day} {chance.randrange(6, 11):02d}:{chance.randrange(0, 60, 10):02d}"
        event = f"e{number}" if number % 9 else f"e{chance.randrange(100)}"
        behaviour = chance.choice(list(MADE))
        made = {"behaviour": behaviour, **MADE[behaviour](chance)}
        facts.append(fact(who=who, when=when, event=event, **made))
    return facts
