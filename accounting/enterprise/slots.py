"""Quarter hours of a city day, and how good the quantity of each is."""

from datetime import date, datetime, timedelta
from enum import StrEnum

from accounting import clock

SLOTS = 96
SLOT = timedelta(minutes=15)
SLOT_S = 900

# One quantity for each slot, in the smallest unit of the meter; None is missing, never zero.
Row = tuple[int | None, ...]
EMPTY: Row = (None,) * SLOTS


class Quality(StrEnum):
    ACTUAL = "A"
    EDITED = "edited"
    ESTIMATED = "E"
    MISSING = "M"


# One letter for each slot, as it is stored.
LETTERS = {
    Quality.ACTUAL: "A",
    Quality.EDITED: "D",
    Quality.ESTIMATED: "E",
    Quality.MISSING: "M",
}
QUALITIES = {letter: quality for quality, letter in LETTERS.items()}


def start_of_slot(day: date, slot: int) -> datetime:
    """The instant (UTC) at which a slot begins. The city's days all have 96."""
    return clock.start_of(day) + slot * SLOT
