"""What a carrier is worth on a day: milligrams of CO2e and of coal equivalent, by dated factors.

Pure. The factor is that of the data's own date and set; nothing answers for one that is missing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import accumulate, pairwise

from accounting.factors import (
    CALORIFIC_SET,
    EQUIVALENT_SET,
    FUEL_SET,
    GRID_SET,
    HEAT_SET,
    Factor,
    Registry,
    Series,
)

NATION = "CN"
# Power that was not sold as green to somebody else; what is left of a plant's purchase beside
# green power has this factor, because the average holds the green power already.
RESIDUAL = "CN-RESIDUAL"
ELECTRICITY, HEAT = "electricity", "heat"
# What is bought as power or heat was emitted elsewhere (scope 2); all else is burned here.
PURCHASED = frozenset({ELECTRICITY, HEAT})


@dataclass(frozen=True, slots=True)
class Rate:
    """The factors of one carrier on one day, for quantities in `unit` (Wh, g, NL, kJ)."""

    co2e: Factor
    tce: Factor
    unit: str

    def co2e_mg(self, quantity: int) -> int:
        """Milligrams of CO2e, rounded towards zero once."""
        return _towards_zero(self.co2e, quantity, self.unit)

    def tce_mg(self, quantity: int) -> int:
        """Milligrams of coal equivalent, rounded towards zero once."""
        return _towards_zero(self.tce, quantity, self.unit)


def rate(
    registry: Registry, carrier: str, unit: str, region: str, on: date, *, equivalent: bool = False
) -> Rate:
    """The factors of a carrier for a day. Raises `MissingFactor` with carrier, region and date.

    Coal equivalent is calorific; `equivalent` takes the equivalent value of electricity, which
    energy budgets and quotas are kept in.
    """
    return Rate(
        co2e_factor(registry, carrier, region, on),
        tce_factor(registry, carrier, on, equivalent),
        unit,
    )


def co2e_factor(registry: Registry, carrier: str, region: str, on: date) -> Factor:
    """Raises `MissingFactor`."""
    if carrier == ELECTRICITY:
        series, of, place = Series.LOCATION_AVERAGE, GRID_SET, region
    elif carrier == HEAT:
        series, of, place = Series.PURCHASED_HEAT, HEAT_SET, NATION
    else:
        series, of, place = Series.COMBUSTION, FUEL_SET, NATION
    return registry.lookup(carrier, place, on, series=series, set=of, today=on).factor


def tce_factor(registry: Registry, carrier: str, on: date, equivalent: bool = False) -> Factor:
    """Raises `MissingFactor`."""
    if carrier not in PURCHASED:
        of = FUEL_SET
    else:
        of = EQUIVALENT_SET if equivalent and carrier == ELECTRICITY else CALORIFIC_SET
    series = Series.COAL_EQUIVALENT
    return registry.lookup(carrier, NATION, on, series=series, set=of, today=on).factor


def scope_of(carrier: str) -> int:
    """1 for what is emitted here, 2 for what was emitted for the power and heat bought."""
    return 2 if carrier in PURCHASED else 1


def split(quantities: Sequence[int | None], worth: Factor, unit: str) -> list[int]:
    """Milligrams of each quantity of a day such that they add up to those of their sum.

    What is missing has none.
    """
    exact = worth.mg_per(unit)
    num, den = exact.numerator, exact.denominator
    upto = accumulate((one or 0 for one in quantities), initial=0)
    marks = [one * num // den if one >= 0 else -(-one * num // den) for one in upto]
    return [after - before for before, after in pairwise(marks)]


def sets_of(factors: Iterable[Factor]) -> str:
    """The sets some factors are from, in one order."""
    return "+".join(sorted({one.set for one in factors}))


def _towards_zero(factor: Factor, quantity: int, unit: str) -> int:
    return factor.mg(quantity, unit) if quantity >= 0 else -factor.mg(-quantity, unit)
