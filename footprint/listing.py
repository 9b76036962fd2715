"""What a bank is told when a grade, its threshold or a consent changes; pure.

A consent stands on the bank's green list or not, with the grade the bank last had to know. Each
event moves that standing by one step, and a step says at most one thing to the bank.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from accounting.grading import Policy

ADDED, UPGRADED, DOWNGRADED = "added", "upgraded", "downgraded"
WITHDRAWN, EXPIRED = "withdrawn", "expired"
CHANGES: Final = (ADDED, UPGRADED, DOWNGRADED, WITHDRAWN, EXPIRED)


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a consent is told. `number` is the last grading taken in, `terms` the last terms.

    `grade` is that grading's; `since` is when it came on the list, None while it is not on it.
    """

    step: int
    number: int
    grade: str | None
    threshold: str
    terms: int
    since: datetime | None
    over: bool = False

    @property
    def listed(self) -> bool:
        return self.since is not None


@dataclass(frozen=True, slots=True)
class Change:
    """What the bank is told; `grade` is None where it may know none any more."""

    change: str
    grade: str | None


def graded(
    old: Standing, policy: Policy, number: int, grade: str, at: datetime, *, may_list: bool
) -> tuple[Standing, Change | None]:
    """One grading more; without the field `grade` in its consent nobody is listed."""
    listed = may_list and reaches(policy, grade, old.threshold)
    rise = policy.rank(grade) - policy.rank(old.grade or "")
    change = None
    if listed and not old.listed:
        change = ADDED
    elif old.listed and (rise < 0 or not listed):
        change = DOWNGRADED
    elif old.listed and rise > 0:
        change = UPGRADED
    since = (old.since or at) if listed else None
    new = replace(old, step=old.step + 1, number=number, grade=grade, since=since)
    return new, Change(change, grade) if change else None


def termed(
    old: Standing, policy: Policy, terms: int, threshold: str, at: datetime, *, may_list: bool
) -> tuple[Standing, Change | None]:
    """Another threshold: who falls below it is told as downgraded, with the grade that is held."""
    listed = may_list and old.grade is not None and reaches(policy, old.grade, threshold)
    change = None
    if listed != old.listed:
        change = Change(ADDED if listed else DOWNGRADED, old.grade)
    since = (old.since or at) if listed else None
    new = replace(old, step=old.step + 1, terms=terms, threshold=threshold, since=since)
    return new, change


def ended(old: Standing, *, withdrawn: bool) -> tuple[Standing, Change]:
    """The consent is over. The bank is told whether or not it was on the list."""
    new = replace(old, step=old.step + 1, since=None, over=True)
    return new, Change(WITHDRAWN if withdrawn else EXPIRED, None)


def reaches(policy: Policy, grade: str, threshold: str) -> bool:
    rank = policy.rank(grade)
    return rank >= 0 and rank >= policy.rank(threshold)
