"""V12 and V13 over many days at once, against the same rules said plainly, value by value."""

import random
from datetime import date
from fractions import Fraction
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting.enterprise import screening, workdays
from accounting.enterprise.slots import SLOTS

Rows = list[list[int | None]]


def plain_spikes(days: Rows, unit: int) -> list[tuple[int, int]]:
    found = []
    for number, row in enumerate(days):
        known = sorted(value for value in row if value is not None)
        if len(known) < 8:
            continue
        third, most = known[-3], known[-1]
        if most > unit and third > 0 and Fraction(most - third, third) > Fraction(18, 10):
            found.append((number, row.index(most)))
    return found


def plain_outliers(
    days: Rows, targets: list[int], resting: list[bool], unit: int
) -> list[tuple[int, int]]:
    found = []
    for target in targets:
        before = [
            day for day in range(max(0, target - 14), target) if resting[day] == resting[target]
        ]
        for slot, value in enumerate(days[target]):
            history = [Fraction(one) for day in before if (one := days[day][slot]) is not None]
            if value is None or len(history) < 8:
                continue
            middle = median(history)
            deviation = median([abs(one - middle) for one in history])
            if abs(value - middle) > unit and 0 < 5 * deviation < abs(value - middle):
                found.append((target, slot))
    return found


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from([1, 50, 2**50]), st.sampled_from([0.0, 0.1, 0.6]))
def test_arrays_find_what_the_rules_say(seed: int, scale: int, gaps: float) -> None:
    chance = random.Random(seed)
    days: Rows = [
        [
            None if chance.random() < gaps else scale * chance.choice((0, 1, 2, 2, 3, 3, 9, -4, 60))
            for _ in range(SLOTS)
        ]
        for _ in range(22)
    ]
    resting = [chance.random() < 0.25 for _ in days]
    targets = sorted(chance.sample(range(22), 7))
    unit = chance.choice((1, scale))
    array = np.array([screening.amounts(row) for row in days])
    assert screening.spikes(array, unit) == plain_spikes(days, unit)
    assert screening.outliers(array, targets, resting, unit) == plain_outliers(
        days, targets, resting, unit
    )


@pytest.mark.parametrize(
    ("day", "kind"),
    [
        (date(2026, 2, 13), 5),
        # Spring Festival is worked for on a Saturday before and a Saturday after.
        (date(2026, 2, 14), 5),
        (date(2026, 2, 16), 7),
        (date(2026, 2, 23), 7),
        (date(2026, 2, 24), 2),
        (date(2026, 1, 4), 1),
        (date(2026, 7, 4), 6),
        # Nothing was announced for this year.
        (date(2035, 10, 1), 1),
    ],
)
def test_holidays_are_sundays_and_worked_weekends_are_not(day: date, kind: int) -> None:
    assert workdays.kind_of(day) == kind


def test_every_announced_day_is_one_that_would_be_otherwise() -> None:
    for day, kind in workdays._special().items():
        if kind != workdays.SUNDAY:
            assert day.isoweekday() >= workdays.SATURDAY, day
