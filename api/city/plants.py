"""Plants whose meters are read every quarter of an hour, by a profile of shifts and weekdays."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from random import Random
from typing import Any

from stdnum.cn import uscc

from api.city.chance import Use, among, stream

Row = dict[str, Any]

SLOTS = 96
# Plants the city has for so many residents, and the meters of each.
RESIDENTS_A_PLANT = 2_334_000 / 1_110
METERS = 100
MISSING, SPIKE, NEGATIVE = "missing", "spike", "negative"
SHARES = ((MISSING, 0.002), (SPIKE, 0.0002), (NEGATIVE, 0.0001))
SPIKE_FACTOR = 40
# Work begins and ends with slots of the day; a plant without shifts runs round the clock.
SHIFTS = ((28, 80), (32, 72), (0, SLOTS))
SATURDAY, SUNDAY = 0.6, 0.15
# kWh of a slot at rest, and how much more at work: medians over meters.
REST_KWH, WORK_KWH, METER_SIGMA = 1.2, 9.0, 0.9
SECTORS = ("C3011", "C2614", "C2221", "C3120", "C1761", "C2911")


@dataclass(frozen=True, slots=True)
class Plant:
    number: int
    meters: int
    shift: tuple[int, int]

    @property
    def id(self) -> str:
        return f"plant-{self.number:05d}"

    def meter(self, place: int) -> str:
        return f"p{self.number:05d}-m{place:03d}"

    @property
    def uscc(self) -> str:
        """A unified social credit code of the city with its right check digit."""
        body = f"91330800MA{self.number:07d}"
        return body + str(uscc.calc_check_digit(body))

    def told(self) -> Row:
        """As the operator opens it: `POST /v1/operator/plants`, then its meters."""
        return {
            "id": self.id,
            "plant": {
                "name": f"示范企业{self.number}",
                "uscc": self.uscc,
                "sector": SECTORS[self.number % len(SECTORS)],
            },
            "meters": [
                {
                    "meter": self.meter(place),
                    "carrier": "electricity",
                    "kind": "interval",
                    "unit": "kWh",
                }
                for place in range(1, self.meters + 1)
            ],
        }


def count_for(residents: int) -> int:
    return max(round(residents / RESIDENTS_A_PLANT), 1)


def plants(count: int, meters: int) -> Iterator[Plant]:
    for number in range(1, count + 1):
        yield Plant(number, meters, SHIFTS[number % len(SHIFTS)])


def readings(seed: int, plant: Plant, on: date, found: Counter[str]) -> Iterator[Row]:
    """A plant's day, meter by meter in kWh; a reading that is missing is only counted."""
    random = Random()
    load = SUNDAY if on.weekday() == 6 else SATURDAY if on.weekday() == 5 else 1.0
    first, last = plant.shift
    for place in range(1, plant.meters + 1):
        key = plant.number << 12 | place
        stream(random, seed, Use.METER, key)
        rest = REST_KWH * math.exp(random.gauss(0, METER_SIGMA))
        work = WORK_KWH * math.exp(random.gauss(0, METER_SIGMA)) * load
        stream(random, seed, Use.METER_DAY, key, on.toordinal())
        meter = plant.meter(place)
        for slot, at in enumerate(_times(on)):
            mean = rest + work if first <= slot < last else rest
            value = mean * random.uniform(0.93, 1.07)
            fault = among(random.random(), SHARES)
            if fault is not None:
                found[fault] += 1
                if fault == MISSING:
                    continue
                value *= SPIKE_FACTOR if fault == SPIKE else -1
            yield {"meter": meter, "at": at, "value": round(value, 3), "kind": "interval"}


def _times(on: date) -> list[str]:
    return [f"{on}T{slot // 4:02d}:{slot % 4 * 15:02d}:00+08:00" for slot in range(SLOTS)]
