"""The carbon credit report of a plant's year: inventory, label, budget and load in one place.

Nothing is computed here that has a definition elsewhere; a report made again from the same data
says the same, apart from the time it was made at.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from accounting import clock
from accounting.enterprise import (
    budgets,
    inventory,
    inventory_days,
    labels,
    meterdays,
    meters,
    plants,
    workdays,
)
from accounting.enterprise.boundary import Boundary, highest
from accounting.enterprise.budgets import Standing
from accounting.enterprise.carbon import ELECTRICITY
from accounting.enterprise.inventory import By, Inventory
from accounting.enterprise.labels import PlantLabel
from accounting.enterprise.meters import Flow, Meter
from accounting.enterprise.plants import Node, Plant
from accounting.enterprise.slots import SLOTS, start_of_slot

CURVE_DAYS = 28
# Watts of one watt hour in a quarter hour.
_PER_HOUR = 4
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Deduction:
    """What was taken off, by what: energy in Wh and CO2e in mg, both positive."""

    kind: str
    energy_wh: int
    co2e_mg: int


@dataclass(frozen=True, slots=True)
class Curve:
    """The mean power of each quarter hour in W, None where no day tells; and the highest of all.

    A holiday is a weekend, a weekend that is worked on is none. Taken over `first` to `last`, from
    quarter hours in which every meter that is summed is known.
    """

    first: date
    last: date
    workdays: tuple[int | None, ...]
    weekends: tuple[int | None, ...]
    peak: tuple[datetime, int] | None


@dataclass(frozen=True, slots=True)
class PlantReport:
    """A year to `last`, its end or today. `generated_wh` is what the plant made itself."""

    plant: Plant
    year: int
    last: date
    made_at: datetime
    inventory: Inventory
    label: PlantLabel
    standing: Standing
    deductions: tuple[Deduction, ...]
    generated_wh: int
    curve: Curve


def of_year(plant: Plant, year: int) -> PlantReport:
    """Raises what the inventory does: `MissingFactor`, `AccountBusy`."""
    now = clock.now()
    first = date(year, 1, 1)
    last = max(first, min(date(year, 12, 31), clock.city_day(now)))
    found = inventory.for_period(plant.id, first, last, By.MONTH)
    tree, measured = plants.nodes(plant.id), meters.of_plant(plant.id)
    deductions, generated_wh = _deductions(plant, first, last, tree, measured)
    return PlantReport(
        plant=plant,
        year=year,
        last=last,
        made_at=now,
        inventory=found,
        label=labels.of_year(plant, year),
        standing=budgets.standing(plant.id, year, fresh=False),
        deductions=deductions,
        generated_wh=generated_wh,
        curve=_curve(plant, max(first, last - (CURVE_DAYS - 1) * _DAY), last, tree, measured),
    )


def _deductions(
    plant: Plant, first: date, last: date, tree: Sequence[Node], measured: Sequence[Meter]
) -> tuple[tuple[Deduction, ...], int]:
    """What the boundary subtracts, and all that was generated, whether subtracted or not."""
    bounds = Boundary(measured, tree, None)
    taken: dict[Flow, list[int]] = defaultdict(lambda: [0, 0])
    making = [one for one in measured if (one.carrier, one.flow) == (ELECTRICITY, Flow.GENERATION)]
    made = {one.meter for one in highest(making, tree)}
    generated_wh = 0
    for on, day in inventory_days.days(plant.id, first, last).items():
        signs = bounds.signs(on)
        for name, row in day.rows.items():
            meter = bounds.meters.get(name)
            if meter is None or meter.carrier != ELECTRICITY:
                continue
            if name in made:
                generated_wh += row.quantity
            if signs.get(name) == -1:
                taken[meter.flow][0] += row.quantity
                taken[meter.flow][1] += row.co2e_mg
    found = [Deduction(flow.value, *amounts) for flow, amounts in sorted(taken.items())]
    return tuple(found), generated_wh


def _curve(
    plant: Plant, first: date, last: date, tree: Sequence[Node], measured: Sequence[Meter]
) -> Curve:
    """What the plant draws over the day."""
    drawing = [
        one
        for one in measured
        if one.carrier == ELECTRICITY and one.flow in (Flow.IMPORT, Flow.LOAD)
    ]
    names = sorted(Boundary(drawing, tree, None).signs(last))
    days = [first + number * _DAY for number in range((last - first).days + 1)]
    rows: dict[date, list[Sequence[int | None]]] = defaultdict(list)
    for one in meterdays.several((plant.id, name, on) for name in names for on in days):
        rows[one.day].append(one.values)
    sums = {
        on: tuple(_sum(slot) for slot in zip(*those, strict=True))
        for on, those in rows.items()
        if len(those) == len(names)
    }
    off = {on: row for on, row in sums.items() if workdays.rests(workdays.kind_of(on))}
    worked = {on: row for on, row in sums.items() if on not in off}
    highest = max(
        ((watts, on, slot) for on, row in sums.items() for slot, watts in enumerate(row) if watts),
        default=None,
    )
    peak = (start_of_slot(highest[1], highest[2]), highest[0]) if highest else None
    return Curve(first, last, _mean_day(worked), _mean_day(off), peak)


def _sum(slot: Sequence[int | None]) -> int | None:
    """Watts of all meters in a quarter hour; None where one of them is missing."""
    known = [one for one in slot if one is not None]
    return sum(known) * _PER_HOUR if len(known) == len(slot) else None


def _mean_day(days: Mapping[date, Sequence[int | None]]) -> tuple[int | None, ...]:
    means: list[int | None] = []
    for slot in range(SLOTS):
        known = [one for row in days.values() if (one := row[slot]) is not None]
        means.append(sum(known) // len(known) if known else None)
    return tuple(means)
