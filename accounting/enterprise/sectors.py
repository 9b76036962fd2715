"""Sector profiles: what an intensity is measured by, what is counted, which label rule applies."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

FALLBACK = "industry"


@dataclass(frozen=True, slots=True)
class Denominator:
    """What emissions are divided by; `indicator` is product, added_value or tax."""

    indicator: str
    unit: str
    zh: str
    en: str


@dataclass(frozen=True, slots=True)
class Profile:
    """One kind of sector; `label` is three_intensities or product_intensity."""

    id: str
    zh: str
    en: str
    of: tuple[str, ...]
    denominators: tuple[Denominator, ...]
    boundary: tuple[str, ...]
    label: str


@cache
def profiles() -> Mapping[str, Profile]:
    text = resources.files("accounting.enterprise").joinpath("sectors.toml").read_text("utf-8")
    return {
        name: Profile(
            id=name,
            zh=row["zh"],
            en=row["en"],
            of=tuple(row["of"]),
            denominators=tuple(Denominator(**one) for one in row["denominators"]),
            boundary=tuple(row["boundary"]),
            label=row["label"],
        )
        for name, row in tomllib.loads(text).items()
    }


def profile_of(sector: str) -> Profile:
    """The profile of a sector: its own name, or the letter its GB/T 4754 code begins with.

    A sector nobody described is treated as industry, the widest boundary there is.
    """
    known = profiles()
    if sector in known:
        return known[sector]
    coded = len(sector) > 1 and sector[1:].isdigit()
    fitting = [one for one in known.values() if coded and sector[0] in one.of]
    return fitting[0] if fitting else known[FALLBACK]
