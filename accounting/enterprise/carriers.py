"""The carriers meters measure, and the integers their readings become.

A reading is a decimal in the meter's unit times its multiplier (current and voltage transformers);
it is kept as an integer in the smallest unit of its kind: Wh, g, normal litres, kJ, litres.
"""

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction

# Each unit of a meter: the smallest unit it is kept in, and how many of those it holds.
UNITS: Mapping[str, tuple[str, int]] = {
    "Wh": ("Wh", 1),
    "kWh": ("Wh", 1_000),
    "MWh": ("Wh", 1_000_000),
    "g": ("g", 1),
    "kg": ("g", 1_000),
    "t": ("g", 1_000_000),
    "NL": ("NL", 1),
    "Nm3": ("NL", 1_000),
    "1e4Nm3": ("NL", 10_000_000),
    "kJ": ("kJ", 1),
    "MJ": ("kJ", 1_000),
    "GJ": ("kJ", 1_000_000),
    "L": ("L", 1),
    "m3": ("L", 1_000),
}

_MASS, _GAS, _HEAT = frozenset({"g", "kg", "t"}), frozenset({"NL", "Nm3", "1e4Nm3"}), ("kJ", "MJ")
_GASES = (
    "natural_gas",
    "blast_furnace_gas",
    "converter_gas",
    "coke_oven_gas",
    "other_gas",
)
_FUELS = (
    "raw_coal",
    "anthracite",
    "bituminous",
    "lignite",
    "washed_coal",
    "other_washed_coal",
    "briquette",
    "other_coal_products",
    "coke",
    "petroleum_coke",
    "crude_oil",
    "fuel_oil",
    "gasoline",
    "diesel",
    "kerosene",
    "lng",
    "lpg",
    "naphtha",
    "coal_tar",
    "crude_benzene",
    "refinery_gas",
)
# The units a meter of a carrier may have. The carriers are those of the factor registry, and water.
CARRIERS: Mapping[str, frozenset[str]] = {
    "electricity": frozenset({"Wh", "kWh", "MWh"}),
    "heat": frozenset({*_HEAT, "GJ"}),
    **dict.fromkeys(_GASES, _GAS),
    **dict.fromkeys(_FUELS, _MASS),
    "water": frozenset({"L", "m3"}),
}


def smallest(unit: str) -> str:
    """The unit readings of a meter in `unit` are kept in."""
    return UNITS[unit][0]


def scale(unit: str, multiplier: Decimal) -> Fraction:
    """Smallest units per number the meter shows."""
    return Fraction(multiplier) * UNITS[unit][1]
