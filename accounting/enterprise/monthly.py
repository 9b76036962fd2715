"""How good a plant's month of data is: V16, V17 and V21 over what is stored."""

from collections import defaultdict
from dataclasses import dataclass
from datetime import date, timedelta

from accounting import clock
from accounting.enterprise import checking, meterdays, meters, validating
from accounting.enterprise.checking import Day, Month, Unbalanced
from accounting.enterprise.meters import Kind, Meter
from accounting.enterprise.slots import SLOT, SLOTS


@dataclass(frozen=True, slots=True)
class Quality:
    """Every meter's month, and the days on which parents and children disagree."""

    meters: list[tuple[Meter, Month]]
    unbalanced: list[Unbalanced]


def quality(plant_id: str, month: str) -> Quality:
    """A month of a plant as it is known now; of a month that goes on, what is over of it."""
    first, last = clock.first_day(month), clock.last_day(month)
    validating.catch_up(plant_id, first, last)
    measured = meters.of_plant(plant_id)
    days = {
        (one.meter, one.day): Day(one.total, one.quality)
        for one in meterdays.totals(plant_id, first, last)
    }
    by_meter: dict[str, list[Day]] = defaultdict(list)
    for (meter, _), day in days.items():
        by_meter[meter].append(day)
    over = max(clock.now() - clock.start_of(first), timedelta(0)) // SLOT
    expected = min(over, (last - first).days * SLOTS + SLOTS)
    counted = _registers(plant_id, measured, first, last)
    children: dict[str, list[str]] = defaultdict(list)
    for one in measured:
        if one.parent is not None:
            children[one.parent].append(one.meter)
    return Quality(
        [
            (
                one,
                checking.month(one.meter, by_meter[one.meter], expected, counted.get(one.meter)),
            )
            for one in measured
        ],
        checking.unbalanced(days, children),
    )


def _registers(plant_id: str, measured: list[Meter], first: date, last: date) -> dict[str, int]:
    """What the registers beside intervals counted in the month; none that fell in it."""
    names = [one.meter for one in measured if one.kind is Kind.INTERVAL]
    begin = meterdays.first_reads(plant_id, names, first)
    end = meterdays.first_reads(plant_id, names, last + timedelta(days=1))
    return {name: end[name] - shown for name, shown in begin.items() if end.get(name, -1) >= shown}
