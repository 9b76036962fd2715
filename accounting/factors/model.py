"""What a factor is, and the units it may be given in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction

from accounting.quantities import MG_PER_KG, floor_mg


class Series(StrEnum):
    """What a factor measures. Two series never answer for each other, however alike they look."""

    COMBUSTION = "combustion"
    LOCATION_AVERAGE = "location_average"
    LIFE_CYCLE = "life_cycle"
    PURCHASED_HEAT = "purchased_heat"
    COAL_EQUIVALENT = "coal_equivalent"
    PROCESS = "process"


class Confidence(StrEnum):
    """How well the value is known: read in the source itself, in a transcription, not at all."""

    SEEN = "seen"
    SECONDARY = "secondary"
    MEMORY = "memory"
    COMPUTED = "computed"


UNITS: Mapping[Series, frozenset[str]] = {
    Series.COMBUSTION: frozenset({"kgCO2/kg", "kgCO2/Nm3"}),
    Series.LOCATION_AVERAGE: frozenset({"kgCO2/kWh"}),
    Series.LIFE_CYCLE: frozenset({"kgCO2e/kWh"}),
    Series.PURCHASED_HEAT: frozenset({"kgCO2/GJ"}),
    Series.PROCESS: frozenset({"kgCO2/kg"}),
    Series.COAL_EQUIVALENT: frozenset({"kgce/kg", "kgce/Nm3", "kgce/kWh", "kgce/MJ"}),
}

# Each unit in the base unit of its kind. Electricity and heat are two kinds on purpose: turning one
# into the other is a statement about a plant, not a conversion.
SIZES: Mapping[str, tuple[str, Fraction]] = {
    "Wh": ("electricity", Fraction(1, 1_000)),
    "kWh": ("electricity", Fraction(1)),
    "MWh": ("electricity", Fraction(1_000)),
    "g": ("mass", Fraction(1, 1_000)),
    "kg": ("mass", Fraction(1)),
    "t": ("mass", Fraction(1_000)),
    "NL": ("volume", Fraction(1, 1_000)),
    "Nm3": ("volume", Fraction(1)),
    "1e4Nm3": ("volume", Fraction(10_000)),
    "kJ": ("heat", Fraction(1, 1_000)),
    "MJ": ("heat", Fraction(1)),
    "GJ": ("heat", Fraction(1_000)),
}


@dataclass(frozen=True, slots=True)
class FactorSet:
    """Where factors come from together: one standard, or one row of notices."""

    id: str
    series: frozenset[Series]
    title: Mapping[str, str] = field(hash=False)
    published: date | None
    review_by: date | None


@dataclass(frozen=True, slots=True)
class Factor:
    """One factor, valid for activities of the days in `[valid_from, valid_to)`; None is open.

    `value` is kilograms (of CO2, CO2e or coal equivalent, as `unit` says) per `per`. `data_year` is
    the year the value describes; a fuel property has none. `basis` says what kind of value it is,
    `derivation` the numbers it was computed from.
    """

    id: str
    carrier: str
    series: Series
    region: str
    set: str
    data_year: int | None
    value: Decimal
    unit: str
    valid_from: date
    valid_to: date | None
    published: date
    review_by: date
    basis: str
    confidence: Confidence
    source: str
    derivation: Mapping[str, str] = field(hash=False)

    @property
    def per(self) -> str:
        """The unit of quantity the factor multiplies: kWh, kg, Nm3, GJ or MJ."""
        return self.unit.split("/")[1]

    @property
    def mg_num(self) -> int:
        """Milligrams per `per`, as the exact fraction `mg_num / mg_den` in lowest terms."""
        return self.mg_per(self.per).numerator

    @property
    def mg_den(self) -> int:
        return self.mg_per(self.per).denominator

    def mg_per(self, unit: str) -> Fraction:
        """Exact milligrams per `unit`, such as Wh for a factor given per kWh.

        Raises `ValueError` for a unit of another kind.
        """
        kind, size = SIZES[self.per]
        if SIZES.get(unit, ("", 0))[0] != kind:
            raise ValueError(f"{self.id} is given per {self.per}; {unit!r} is not a unit of {kind}")
        return Fraction(self.value) * MG_PER_KG * SIZES[unit][1] / size

    def mg(self, quantity: int | Decimal | Fraction, unit: str) -> int:
        """Milligrams of `quantity` `unit`, rounded down once. Sum quantities first, then call."""
        assert isinstance(quantity, int | Decimal | Fraction), f"no floats: {quantity!r}"
        exact = self.mg_per(unit)
        return floor_mg(Fraction(quantity), exact.numerator, exact.denominator)

    def covers(self, on: date) -> bool:
        return self.valid_from <= on and (self.valid_to is None or on < self.valid_to)

    def stale(self, today: date) -> bool:
        """In force and past its review date. A vintage that has ended is final, never stale."""
        return self.valid_to is None and today > self.review_by

    def provisional(self, on: date) -> bool:
        """The latest vintage standing in for a later year whose own value is not out yet."""
        return self.data_year is not None and on.year > self.data_year


@dataclass(frozen=True, slots=True)
class Found:
    """A factor, and what to say beside every result computed with it."""

    factor: Factor
    provisional: bool
    stale: bool
    past_grace: bool
