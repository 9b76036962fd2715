"""Earning rules: what credited grams are worth in points, and which funder pays."""

import tomllib
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path

from accounting.quantities import MG_PER_G

_RULES = Path(__file__).parent / "rules"


@dataclass(frozen=True, slots=True)
class EarningRule:
    """One dated rule. `fen_per_1000_points` is how the funder values what it owes."""

    version: str
    valid_from: date
    points_per_gram: int
    funder: str
    fen_per_1000_points: int

    def points(self, mg: int) -> int:
        """Points for milligrams of one activity, rounded down once."""
        return mg * self.points_per_gram // MG_PER_G


@lru_cache(maxsize=1)
def rules() -> tuple[EarningRule, ...]:
    """Every earning rule that ships, oldest first."""
    found = [
        EarningRule(**tomllib.loads(file.read_text(encoding="utf-8")))
        for file in _RULES.glob("*.toml")
    ]
    return tuple(sorted(found, key=lambda rule: rule.valid_from))


def rule_on(day: date) -> EarningRule:
    """The rule for an activity of a city day: the newest whose date has come, else the first."""
    applicable = [rule for rule in rules() if rule.valid_from <= day]
    return applicable[-1] if applicable else rules()[0]
