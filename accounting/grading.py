"""Grading arithmetic, pure: from milligrams by behaviour and month to a grade with its margins.

The policy is one object. Default: the last 12 full months and this month to date; one behaviour
counts at most 40 % of the raw total; below 50 kg light, below 100 kg mid, else deep; unrated with
fewer than 3 active months. Up at once; down only after two scheduled gradings below, or when a
fraud is taken back. `accounting/grading_stages.py` makes the same of a policy for the database.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Final

UNRATED: Final = "unrated"


@dataclass(frozen=True, slots=True)
class Policy:
    """A versioned grade policy.

    `cut_offs` are (milligrams, grade) from the lowest: the grade holds from that amount on.
    `share_num / share_den` is the largest share of the raw total one behaviour may count.
    `evidence` are the classes that count, of what may count for a bank at all.
    """

    version: str
    months_back: int
    cut_offs: tuple[tuple[int, str], ...]
    share_num: int
    share_den: int
    active_months_min: int
    gradings_below: int
    labels: Mapping[str, Mapping[str, str]]
    evidence: tuple[str, ...] = ("A", "B")
    valid_from: date = date.min

    def counts(self, evidence: str, *, bank_grade: bool) -> bool:
        """Whether what was credited counts: `bank_grade` is what the methodology says of it."""
        return bank_grade and evidence in self.evidence

    def most(self, raw_mg: int) -> int:
        """What one behaviour counts at most of a raw total, rounded down."""
        return raw_mg * self.share_num // self.share_den

    def counted(self, by_behaviour: Mapping[str, int]) -> dict[str, int]:
        """Each behaviour's milligrams, at most its share of the raw total, rounded down."""
        most = self.most(sum(by_behaviour.values()))
        return {code: min(mg, most) for code, mg in by_behaviour.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """The grades from the lowest."""
        return tuple(name for _, name in self.cut_offs)

    def grade_of(self, counted_mg: int) -> str:
        return [grade for floor, grade in self.cut_offs if counted_mg >= floor][-1]

    def rank(self, grade: str) -> int:
        """-1 for unrated, then 0 upwards in the order of the cut-offs."""
        return self.names.index(grade) if grade in self.names else -1

    def floor_of(self, grade: str) -> int:
        return next(floor for floor, name in self.cut_offs if name == grade)

    def next_above(self, grade: str) -> tuple[int, str] | None:
        """The cut-off above a grade, None for the highest."""
        rank = self.rank(grade)
        return self.cut_offs[rank + 1] if rank + 1 < len(self.cut_offs) else None


@dataclass(frozen=True, slots=True)
class Standing:
    """What came of grading once, and what the next grading must know about it.

    `below` counts the scheduled gradings in a row whose amount lay below the grade held.
    """

    grade: str
    reduction_mg: int
    counted_mg: int
    margin_below_mg: int | None
    to_next_mg: int | None
    next_grade: str | None
    active_months: int
    below: int


def stand(
    policy: Policy,
    by_behaviour: Mapping[str, int],
    active_months: int,
    *,
    held: str | None = None,
    below: int = 0,
    scheduled: bool = False,
    released: bool = False,
) -> Standing:
    """Grade one resident.

    `held` is the grade of the last grading and `below` its count; without them there is nothing to
    protect from a fall. Only a `scheduled` grading counts towards falling; `released` lets the
    grade fall at once.
    """
    raw = sum(by_behaviour.values())
    counted_mg = sum(policy.counted(by_behaviour).values())
    grade = policy.grade_of(counted_mg) if active_months >= policy.active_months_min else UNRATED
    if held is not None and policy.rank(grade) < policy.rank(held) and not released:
        below += scheduled
        if below < policy.gradings_below:
            grade = held
        else:
            below = 0
    else:
        below = 0
    above = policy.next_above(grade) if grade != UNRATED else None
    return Standing(
        grade=grade,
        reduction_mg=raw,
        counted_mg=counted_mg,
        margin_below_mg=None if grade == UNRATED else counted_mg - policy.floor_of(grade),
        to_next_mg=None if above is None else max(above[0] - counted_mg, 0),
        next_grade=None if above is None else above[1],
        active_months=active_months,
        below=below,
    )
