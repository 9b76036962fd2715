"""What a person should look at in a registry: `tanhui factors check`."""

from dataclasses import dataclass
from datetime import date
from enum import StrEnum

from accounting.factors.model import Confidence, Factor
from accounting.factors.registry import Registry


class Kind(StrEnum):
    PAST_GRACE = "past grace"
    OVERDUE = "overdue"
    MEMORY = "memory only"
    PROVISIONAL = "provisional"


@dataclass(frozen=True, slots=True)
class Finding:
    kind: Kind
    factor: Factor
    detail: str


def findings(registry: Registry, today: date) -> list[Finding]:
    """Factors in need of a look on `today`, most urgent kind first, then by id.

    None of them breaks a calculation. What does is refused while loading.
    """
    found = [one for factor in registry.factors for one in _about(registry, factor, today)]
    order = list(Kind)
    return sorted(found, key=lambda one: (order.index(one.kind), one.factor.id))


def _about(registry: Registry, factor: Factor, today: date) -> list[Finding]:
    found: list[Finding] = []
    if registry.past_grace(factor, today):
        ended = factor.review_by + registry.grace
        detail = f"review was due {factor.review_by}, grace ended {ended}"
        found.append(Finding(Kind.PAST_GRACE, factor, detail))
    elif factor.stale(today):
        found.append(Finding(Kind.OVERDUE, factor, f"review was due {factor.review_by}"))
    if factor.confidence == Confidence.MEMORY:
        found.append(Finding(Kind.MEMORY, factor, factor.source))
    if factor.covers(today) and factor.provisional(today):
        detail = f"data of {factor.data_year} stand in for {today.year}"
        found.append(Finding(Kind.PROVISIONAL, factor, detail))
    return found
