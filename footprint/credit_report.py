"""The carbon credit report of a resident: what a bank may be shown under the field `report`.

Only what counts for the grade is in it: class A and B reductions net of reversals, of behaviours
that are no health data.
"""

from dataclasses import dataclass

from accounting import clock
from footprint import grade, methodology, summaries
from footprint.grade import Snapshot


@dataclass(frozen=True, slots=True)
class Report:
    """Milligrams by city month, oldest first and without a gap, and by dimension (counted)."""

    snapshot: Snapshot
    by_month: dict[str, int]
    by_dimension: dict[str, int]
    history: tuple[Snapshot, ...]


HISTORY_MAX = 12


def of(resident: str) -> Report:
    """The report as of now."""
    snapshot = grade.grade_now(resident)
    first, last = snapshot.first_month, snapshot.last_month
    by_month: dict[str, int] = {}
    month = first
    while month <= last:
        by_month[month] = 0
        month = clock.add_months(month, 1)
    found = summaries.between(resident, clock.first_day(first), clock.last_day(last))
    for cell in found.cells:
        if cell.bank_grade:
            by_month[cell.day[:7]] += cell.mg
    by_dimension = dict.fromkeys(methodology.DIMENSIONS, 0) | snapshot.by_dimension
    history = grade.history(resident, before=None, limit=HISTORY_MAX)
    return Report(snapshot, by_month, by_dimension, tuple(history))
