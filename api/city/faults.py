"""What is wrong with a partner's files, by known shares, and how much of it there is.

A day that comes late is chosen without drawing anything, so the file of a later day can tell which
days it must bring without having seen them.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import date
from random import Random
from typing import Any

from api.city.chance import Use, among, share

Row = dict[str, Any]

LATE, DUPLICATE, IMPLAUSIBLE, UNKNOWN = "late", "duplicate", "implausible", "unknown_id"
# Of a resident's days; the days are handed over so many days later.
LATE_SHARE, LATE_DAYS = 0.005, 3
# Of rows.
SHARES = ((DUPLICATE, 0.005), (IMPLAUSIBLE, 0.002), (UNKNOWN, 0.003))
# Beyond what the methodology takes for possible; where a quantity counts, a half is not.
BEYOND = {
    "bus_km": 480,
    "bike_km": 88.5,
    "ev_charge_kwh": 900,
    "recycle_kg": 350,
    "walk_steps": 120_000,
}
HALF = 1.5


def is_late(seed: int, resident: int, day: date) -> bool:
    return share(seed, Use.LATE, resident, day.toordinal()) < LATE_SHARE


def spoil(random: Random, row: Row, found: Counter[str]) -> Iterator[Row]:
    """The row as it is handed over, once or twice; what was done to it is counted in `found`."""
    fault = among(random.random(), SHARES)
    if fault is None:
        yield row
        return
    found[fault] += 1
    yield from _spoilt(fault, row)


def _spoilt(fault: str, row: Row) -> Iterable[Row]:
    if fault == DUPLICATE:
        return (row, row)
    if fault == UNKNOWN:
        # Ids of residents begin with a nought.
        kind, _, number = row["external_id"].partition("-")
        return (row | {"external_id": f"{kind}-9{number[1:]}"},)
    by_trip = row.get("attributes", {}).get("trip")
    return (row | {"quantity": HALF if by_trip else BEYOND.get(row["behaviour"], HALF)},)
