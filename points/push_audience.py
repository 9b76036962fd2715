"""Whom an operator's push goes to, by what is known of residents: account, grade, grams, behaviour.

Every part of an audience narrows it. What the account says is one condition; the rest is looked up
for a stretch of residents at a time, one read for each part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Final

from accounting import account_filters, accounts, book, clock
from accounting.account_filters import AccountFilter
from accounting.grading import UNRATED
from accounting.quantities import MG_PER_KG
from footprint import grade, intake, summaries

MONTHS_DEFAULT: Final = 3
# Of a larger group grades, grams and behaviours are looked up for a sample.
LOOKED_AT_MAX: Final = 5_000
_SEED: Final = 1


@dataclass(frozen=True, slots=True)
class Audience:
    """Empty and None ask for nothing, so an empty audience is everybody.

    `lifetime_kg_from` is included, `lifetime_kg_below` is not. Of `behaviours` one is enough,
    credited in this city month or the `within_months` - 1 before. Who was never graded is unrated.
    """

    districts: tuple[str, ...] = ()
    language: str | None = None
    active_within_days: int | None = None
    inactive_for_days: int | None = None
    grades: tuple[str, ...] = ()
    lifetime_kg_from: int | None = None
    lifetime_kg_below: int | None = None
    behaviours: tuple[str, ...] = ()
    within_months: int = MONTHS_DEFAULT

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Audience":
        known = {one.name for one in fields(cls)} & row.keys()
        given: dict[str, Any] = {
            name: tuple(row[name]) if isinstance(row[name], list) else row[name] for name in known
        }
        return cls(**given)

    def dump(self) -> dict[str, Any]:
        plain = asdict(self)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in plain.items()
        }

    def accounts(self, now: datetime) -> AccountFilter:
        """The part of it that the accounts themselves answer."""

        def ago(days: int | None) -> datetime | None:
            return None if days is None else clock.cut(now - timedelta(days=days))

        return AccountFilter(
            self.districts,
            self.language,
            seen_from=ago(self.active_within_days),
            seen_before=ago(self.inactive_for_days),
        )

    @property
    def needs_a_look(self) -> bool:
        """Whether anything but the accounts must be asked."""
        kilograms = (self.lifetime_kg_from, self.lifetime_kg_below)
        return bool(self.grades or self.behaviours) or kilograms != (None, None)


@dataclass(frozen=True, slots=True)
class Size:
    """How many people an audience has; `exact` or estimated from `looked_at` of them."""

    people: int
    opted_out: int
    exact: bool
    looked_at: int


def size(audience: Audience, now: datetime) -> Size:
    """How many a push would be left for, and how many more there are who want no marketing.

    `opted_out` is counted by account alone. In one request: a large group that has to be looked at
    is estimated from a sample, always the same one.
    """
    which = audience.accounts(now)
    people, opted_out = account_filters.count(which)
    if not audience.needs_a_look:
        return Size(people, opted_out, exact=True, looked_at=people)
    if people <= LOOKED_AT_MAX:
        looked_at = account_filters.after(which, "", LOOKED_AT_MAX)
        found = among(audience, looked_at, now)
        return Size(len(found), opted_out, exact=True, looked_at=len(looked_at))
    looked_at = account_filters.among(which, accounts.sample(_SEED, LOOKED_AT_MAX))
    found = among(audience, looked_at, now)
    estimate = people * len(found) // len(looked_at) if looked_at else 0
    return Size(estimate, opted_out, exact=False, looked_at=len(looked_at))


def among(audience: Audience, residents: Sequence[str], now: datetime) -> set[str]:
    """Those of some residents who are in an audience by more than their accounts.

    Grades and behaviours may lag the book by seconds.
    """
    left = set(residents)
    if audience.grades and left:
        grades = grade.newest(sorted(left))
        left = {one for one in left if grades.get(one, UNRATED) in audience.grades}
    if audience.behaviours and left:
        first_month = clock.add_months(clock.city_month(now), 1 - audience.within_months)
        left &= summaries.who_did(sorted(left), audience.behaviours, first_month)
    least, below = audience.lifetime_kg_from, audience.lifetime_kg_below
    if (least, below) != (None, None) and left:
        heads = book.heads(sorted(left))
        mg = {one: intake.lifetime_mg(heads[one]) if one in heads else 0 for one in left}
        left = {one for one in left if least is None or mg[one] >= least * MG_PER_KG}
        left = {one for one in left if below is None or mg[one] < below * MG_PER_KG}
    return left
