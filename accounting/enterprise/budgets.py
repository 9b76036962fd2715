"""How a plant's year stands against its budget: the plan kept for it, and the inventory's days.

Coal equivalent is counted here with the equivalent value of electricity, in which energy budgets
and quotas are kept; the inventory's own figure is calorific.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from fractions import Fraction

from accounting import clock, factors
from accounting.enterprise import budget, budget_plans, carbon, inventory
from accounting.enterprise.budget import Amounts, Day, Days, Line, Measure
from accounting.enterprise.budget_plans import Kept
from accounting.enterprise.inventory import By, Inventory, Total
from accounting.enterprise.slots import SLOT, SLOTS
from accounting.factors import EQUIVALENT_SET

TCE_BASIS = EQUIVALENT_SET
_WH = "Wh"


@dataclass(frozen=True, slots=True)
class Standing:
    """A year of a plant by measure, and how well it is known. `kept` is None without a plan."""

    plant: str
    year: int
    on: date
    kept: Kept | None
    lines: Mapping[Measure, Line]
    completeness: Decimal
    estimated_share: Decimal
    provisional: bool


def standing(plant_id: str, year: int, *, fresh: bool = True) -> Standing:
    """The budget of a year today. Raises what `inventory.for_period` does."""
    today = clock.city_day(clock.now())
    kept = budget_plans.plan_of(plant_id, year)
    this = _year(plant_id, year, fresh)
    days, before = days_of(this), days_of(_year(plant_id, year - 1, fresh))
    plan = kept.plan if kept else None
    lines = {
        measure: budget.line(year, plan, measure, today, days[measure], before[measure])
        for measure in Measure
    }
    return Standing(
        plant_id,
        year,
        today,
        kept,
        lines,
        this.total.completeness,
        this.total.estimated_share,
        this.provisional,
    )


def days_of(found: Inventory) -> Mapping[Measure, Days]:
    """The days of an inventory that are known, by measure."""
    days: dict[Measure, dict[date, Day]] = {measure: {} for measure in Measure}
    for name, total in found.series:
        on = date.fromisoformat(name)
        if total.known and (share := _share(on, total)):
            for measure, amount in amounts_of(total, on).items():
                days[measure][on] = Day(amount, share)
    return days


def amounts_of(total: Total, on: date) -> Amounts:
    """What a day used. Raises `MissingFactor`."""
    # Green power stands beside as what it changes; here a kilowatt hour is one, however made.
    power = total.by_carrier.get(carbon.ELECTRICITY)
    energy_wh, calorific_mg = (power.quantity, power.tce_mg) if power else (0, 0)
    equivalent = carbon.tce_factor(factors.shipped(), carbon.ELECTRICITY, on, equivalent=True)
    sign = 1 if energy_wh >= 0 else -1
    coal_mg = total.tce_mg - calorific_mg + sign * equivalent.mg(abs(energy_wh), _WH)
    return {
        Measure.ENERGY: energy_wh,
        Measure.COAL: coal_mg,
        Measure.CARBON: total.co2e_mg,
    }


def _year(plant_id: str, year: int, fresh: bool) -> Inventory:
    first, last = date(year, 1, 1), date(year, 12, 31)
    return inventory.for_period(plant_id, first, last, By.DAY, fresh=fresh)


def _share(on: date, total: Total) -> Fraction:
    """The share of the whole day that is known; of a day that is not over only part can be."""
    if not total.expected:
        return Fraction(0)
    over = min(SLOTS, max(1, (clock.now() - clock.start_of(on)) // SLOT))
    known = Fraction(total.actual + total.estimated, total.expected)
    return known * Fraction(over, SLOTS)
