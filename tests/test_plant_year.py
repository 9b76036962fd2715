"""Whole years: of a plant whose faults are known, and of a real steel works where it is at hand."""

import csv
import gzip
import os
import random
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from plant_year import FOUND, year

from accounting import clock
from accounting.enterprise import (
    alerting,
    alerts,
    inventory,
    meterdays,
    meters,
    readings,
    validating,
)
from accounting.enterprise.alert_rules import Rule, Severity
from accounting.enterprise.inventory import By
from accounting.enterprise.meters import Kind, Meter
from accounting.enterprise.readings import Reading
from accounting.enterprise.slots import SLOT, SLOTS

STEEL = Path(
    os.environ.get("TANHUI_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")
).joinpath("plant_steel_gwangyang_2018_15min.csv.gz")
# The year 2018, moved to one that begins on a Monday too: plants' factors begin in 2021.
FIRST, LAST = date(2024, 1, 1), date(2024, 12, 30)


def test_every_seeded_fault_is_found_and_no_gap_becomes_zero() -> None:
    told = year(3, seed=5)
    assert told.seeded.keys() == set(FOUND)
    # What is three times the usual at night or on a Sunday is no peak of its day: not all are.
    unseen = told.seeded - told.found
    assert unseen.keys() <= {"triple"}
    assert 2 * told.found["triple"] > told.seeded["triple"]
    assert told.zeros == 0
    # The profile has 7 % of noise and steps at the shifts' ends; a register knows the sum.
    assert 10 * sum(told.off.values()) < sum(told.true.values())
    assert told.bias["zero reading"] == 0


def steel_year() -> list[Reading]:
    """The quarter hours by their position: each day's 96 rows are stamped at their ends."""
    with gzip.open(STEEL, "rt", encoding="utf-8-sig") as file:
        used = [Decimal(row["Usage_kWh"]) for row in csv.DictReader(file)]
    begin = clock.start_of(FIRST)
    return [
        Reading("m", begin + place * SLOT, value, Kind.INTERVAL) for place, value in enumerate(used)
    ]


# The data is not part of the repository.
if STEEL.exists():

    @pytest.mark.usefixtures("app")
    def test_a_real_year_goes_through_late_and_out_of_order_and_comes_out_whole() -> None:
        rows = steel_year()
        assert len(rows) == 365 * SLOTS
        meters.add(Meter("p", "m", "electricity", Kind.INTERVAL, "kWh"))
        chance = random.Random(2018)
        late = {chance.randrange(len(rows)) for _ in range(300)}
        parts = [
            [row for place, row in enumerate(rows) if place not in late],
            [row for place, row in enumerate(rows) if place in late],
        ]
        for part in parts:
            chance.shuffle(part)
            for place in range(0, len(part), readings.ROWS_MAX):
                readings.take("p", part[place : place + readings.ROWS_MAX])
            validating.sweep(clock.now() + readings.DEBOUNCE)
            days = list(meterdays.days("p", ["m"], FIRST, LAST))
            if part is parts[0]:
                estimated = sum(day.quality.count("E") for day in days)
                assert estimated == len(late)
        assert {day.quality for day in days} == {"A" * SLOTS}
        # 959,636.71 kWh, as the publisher's file adds up.
        assert sum(day.total for day in days) == 959_636_710
        # The one dropout of the year, 23:45 on 7 November, stands as sent and is flagged.
        [dropout] = [day for day in days if 0 in day.values]
        assert (dropout.day, dropout.values.index(0)) == (FIRST + timedelta(days=310), 95)
        assert dropout.rules[95] == "V13"
        # 959,636.71 kWh x 0.4974 = 477,323.299554 kg, each of 365 days rounded down.
        found = inventory.for_period("p", FIRST, LAST, By.MONTH)
        assert 0 <= 477_323_299_554 - found.total.co2e_mg < 365
        assert (found.total.completeness, len(found.series)) == (1, 12)
        # Sunday 15 December took 2,014.66 kWh, six times the median of the eight Sundays before.
        sunday = date(2024, 12, 15)
        alerting.evaluate("p", [sunday - timedelta(days=number) for number in range(84)])
        totals = {day.day: day.total for day in days}
        before = sorted(totals[sunday - timedelta(weeks=number)] for number in range(1, 9))
        [alert] = [
            one
            for one in alerts.listed("p", None, before=None, limit=100)
            if (one.rule, one.first_at) == (Rule.DAY_TOTAL, clock.start_of(sunday))
        ]
        assert alert.severity is Severity.CRITICAL
        assert alert.facts == {
            "part": "day",
            "used": 2_014_660,
            "expected": (before[3] + before[4]) // 2,
            "like_days": 8,
        }
