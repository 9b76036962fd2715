"""A plant's year through the door: seeded faults, duplicates, conflicts, late and out of order.

    python -m bench.plant_year [--meters 100] [--seed 8]

The faults are those of `tests/plant_year.py`, whose truth is known. Of each meter's readings one in
a hundred is held back and comes last, the rest comes in shuffled bodies, one in fifty twice and one
in five hundred again with another value. Prints the tables of `docs/vee.md`; what is stored in the
end must be what the pure rules make of the year.
"""

import argparse
import json
import random
from collections import Counter
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

from accounting import clock
from accounting.enterprise import meterdays, meters, readings, validating
from accounting.enterprise.meterdays import MeterDay
from accounting.enterprise.meters import Kind, Meter, MeterChange
from accounting.enterprise.slots import SLOT
from accounting.enterprise.vee import Validated
from api.numbers import read_json
from api.plain_readings import plain_body
from api.plants import take_readings
from bench.side_by_side import fresh_store, out, table, timed
from tests.plant_year import DAYS, FIRST, FOUND, UNIT, Faulty, Score, meter_of, score

PLANT = "year"
LAST = FIRST + timedelta(days=DAYS - 1)


def rows_of(name: str, meter: Faulty) -> list[dict[str, Any]]:
    begin, kind = clock.start_of(FIRST), "register" if meter.terms.register else "interval"
    return [
        {
            "meter": name,
            "at": (begin + place * SLOT).isoformat(),
            "value": sent / UNIT,
            "kind": kind,
        }
        for place, sent in enumerate(meter.sent)
        if sent is not None
    ]


def send(rows: list[dict[str, Any]], ends: Counter[str]) -> None:
    for place in range(0, len(rows), readings.ROWS_MAX):
        body = json.dumps({"readings": rows[place : place + readings.ROWS_MAX]}).encode()
        taken = take_readings(PLANT, (plain_body(body) or read_json(body))["readings"])
        ends.update(readings.accepted(taken))


def hand_over(
    name: str, meter: Faulty, chance: random.Random, seeded: Counter[str]
) -> Counter[str]:
    """Add the meter and send its year; what became of the rows."""
    kind = Kind.REGISTER if meter.terms.register else Kind.INTERVAL
    meters.add(Meter(PLANT, name, "electricity", kind, "kWh", rated_kw=Decimal(400)))
    for change in meter.changes:
        at = clock.start_of(FIRST) + change.slot * SLOT
        meters.record_change(PLANT, name, MeterChange(at, change.old_last, change.new_first))
    rows = rows_of(name, meter)
    late = [row for row in rows if chance.random() < 0.01]
    held = {row["at"] for row in late}
    first = [row for row in rows if row["at"] not in held]
    again = [row for row in first if chance.random() < 0.02]
    other = [
        row | {"value": round(row["value"] + 1, 3)} for row in first if chance.random() < 0.002
    ]
    ends: Counter[str] = Counter()
    for part in (first, [*again, *other], late):
        chance.shuffle(part)
        send(part, ends)
        validating.catch_up(PLANT, FIRST, LAST, name)
    seeded.update(accepted=len(rows), duplicate=len(again), conflict=len(other))
    return ends


def as_validated(day: MeterDay) -> Validated:
    return Validated(day.raw, day.values, day.quality, day.rules, day.flags)


def differing(stored: list[MeterDay], pure: list[Validated]) -> int:
    """Days whose stored layer is not what the rules make of the year as a whole."""
    return sum(
        (one.raw, one.values, one.quality, dict(one.rules), one.flags)
        != (made.shown, made.values, made.quality, dict(made.rules), made.flags)
        for one, made in zip(stored, pure, strict=True)
    )


def percent(part: int, whole: int) -> str:
    return f"{float(Fraction(100 * part, whole)):.2f} %" if whole else "-"


def show(told: Score, meters: int) -> None:
    columns = ("fault", "seeded", "found", "slots estimated", "mean error", "error of the sum")
    shown = table(f"{meters} meters, {told.all_slots:,} slots", *columns)
    for name in FOUND:
        shown.add_row(
            name,
            f"{told.seeded[name]:,}",
            f"{told.found[name]:,}",
            f"{told.slots[name]:,}",
            percent(told.off[name], told.true[name]),
            percent(told.bias[name], told.true[name]),
        )
    out.print(shown)
    out.print("estimates of zero:", told.zeros)
    out.print(
        "slots with a rule where nothing was seeded:", dict(sorted(told.false_alarms.items()))
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--meters", type=int, default=100)
    parser.add_argument("--seed", type=int, default=8)
    wanted = parser.parse_args()
    told, seeded, found, wrong = Score(), Counter[str](), Counter[str](), 0
    with fresh_store(), clock.travel(clock.start_of(LAST) + timedelta(days=40) - clock.now()):
        took = 0.0
        for number in range(wanted.meters):
            name, meter = f"m{number}", meter_of(number, wanted.seed)
            chance = random.Random(number)
            took += timed(
                lambda n=name, m=meter, c=chance: found.update(hand_over(n, m, c, seeded))
            )
            stored = list(meterdays.days(PLANT, [name], FIRST, LAST))
            score(meter, [as_validated(day) for day in stored], told)
            wrong += differing(stored, meter.validated())
    show(told, wanted.meters)
    out.print("rows sent:", dict(seeded), "and what became of them:", dict(found))
    out.print(
        f"days that differ from the pure rules: {wrong}; {sum(found.values()) / took:,.0f} rows/s"
    )
    assert found == seeded
    assert wrong == 0


if __name__ == "__main__":
    main()
