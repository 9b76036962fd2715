"""The emission-factor registry: dated factors with source, apart by series, region and set.

The tables beside this module are the data; `shipped()` reads them once. A lookup names series and
set, and nothing answers in place of what is missing.
"""

from functools import lru_cache
from pathlib import Path

from accounting.factors.model import Confidence, Factor, FactorSet, Found, Series
from accounting.factors.reading import FactorsError, Problem
from accounting.factors.registry import MissingFactor, Registry

__all__ = [
    "CALORIFIC_SET",
    "EQUIVALENT_SET",
    "FOOTPRINT_SET",
    "FUEL_SET",
    "GRID_SET",
    "HEAT_SET",
    "PROCESS_SET",
    "Confidence",
    "Factor",
    "FactorSet",
    "FactorsError",
    "Found",
    "MissingFactor",
    "Problem",
    "Registry",
    "Series",
    "files_in",
    "shipped",
]

# The sets that ship. A result stores the set it was computed with, so these names never change.
FUEL_SET = "CN-GBT32151.34-2024"
GRID_SET = "CN-MEE-GRID"
FOOTPRINT_SET = "CN-MEE-FOOTPRINT"
HEAT_SET = "CN-GBT32150-2025"
CALORIFIC_SET = "CN-GBT2589-2020"
EQUIVALENT_SET = "CN-TCE-EQUIVALENT"
PROCESS_SET = "CN-GBT32151-PROCESS"

_HERE = Path(__file__).parent


def files_in(folder: Path) -> tuple[Path, ...]:
    """The files of a folder that a registry is loaded from, in a fixed order."""
    return tuple(sorted([*folder.glob("*.toml"), *folder.glob("*.csv")]))


@lru_cache(maxsize=1)
def shipped() -> Registry:
    """The registry that ships with the product. Raises `FactorsError` when a table is broken."""
    return Registry.load(files_in(_HERE))
