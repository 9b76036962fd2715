"""The hand-picked reports of `day/story.toml` and what must come of them."""

import tomllib
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

DAY = Path(__file__).parent / "day"
FILE = "story.toml"
APP, BATCH, NDJSON, CSV = "app", "batch", "ndjson", "csv"
METER = "E-story"
BILL_SHARE_G = Decimal(7461)
"""200 kWh in that month of both years before, 170 now: 30 kWh x 497.4 g, shared by 2 members."""


@dataclass(frozen=True)
class Case:
    """One report and its outcome; the fields are explained in the file."""

    event: str
    door: str
    behaviour: str
    quantity: str
    day: int
    at: str
    how: str
    code: int = 201
    status: str = ""
    grams: Decimal = Decimal(0)
    points: int | None = None
    """Where they are not the grams rounded down."""
    reasons: tuple[str, ...] = ()
    minutes: int | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    by: str = ""
    neighbour: bool = False
    external_id: str | None = None


@lru_cache(maxsize=1)
def cases() -> tuple[Case, ...]:
    """All of them, in the order they are sent."""
    data = tomllib.loads((DAY / FILE).read_text("utf-8"))
    return tuple(
        Case(
            **{
                **one,
                "grams": Decimal(one.get("grams", 0)),
                "reasons": tuple(one.get("reasons", ())),
            }
        )
        for one in data["case"]
    )


def through(door: str) -> list[Case]:
    """The cases that come through one door, in the order they are sent."""
    return [case for case in cases() if case.door == door]


def exact(number: float) -> Decimal:
    """A JSON number of an answer as the decimal that was written."""
    return Decimal(str(number))
