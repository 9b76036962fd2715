"""What a resident's partners see of one day, as the rows they hand over.

Only behaviours and attributes of the methodology, in its units; what is drawn stays inside its
bounds, so that whatever is rejected was meant to be.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from random import Random
from typing import Any

from accounting import clock
from api.city.chance import Use, stream, times
from api.city.people import Person
from api.demo.habits import CATEGORIES, clock_time

Row = dict[str, Any]

# Chance of a wet day by month: in the rain few ride a bicycle.
WET = (0.42, 0.46, 0.53, 0.52, 0.52, 0.56, 0.43, 0.42, 0.34, 0.27, 0.33, 0.32)
RIDES_IN_RAIN = 0.35
WEEKEND_RIDES = 0.4
BUS_A_DAY, BIKE_A_DAY = 0.55, 0.40
PAYMENTS_A_DAY, PAYMENTS_MAX = 2.0, 9
TRANSFERS_A_DAY, INVOICES_A_DAY, TICKETS_A_DAY = 0.08, 0.12, 0.02
EV_CHARGES_A_DAY, ETC_TRIPS_A_DAY = 0.35, 0.22
RECYCLING_A_DAY, CARTONS_A_DAY = 0.09, 0.03
STEP_DAY_SIGMA, STEPS_MAX = 0.45, 55_000
SHOPS = 4_000


@dataclass(frozen=True, slots=True)
class Day:
    """`wet` for the whole city."""

    date: date
    wet: bool

    @property
    def weekend(self) -> bool:
        return self.date.weekday() >= 5


def day_of(seed: int, on: date) -> Day:
    wet = stream(Random(), seed, Use.WEATHER, on.toordinal()).random() < WET[on.month - 1]
    return Day(on, wet)


def rows(random: Random, person: Person, day: Day) -> Iterator[tuple[str, Row]]:
    """Each row with its partner's name; `random` is the resident's stream of the day."""
    for partner in person.partners:
        for number, row in enumerate(_SEEN[partner](random, person, day), start=1):
            yield (
                partner,
                {
                    "source_event_id": f"{partner}-{person.number}-{day.date:%Y%m%d}-{number}",
                    "external_id": person.external_id(partner),
                    **row,
                },
            )


def _bank(random: Random, person: Person, day: Day) -> Iterator[Row]:
    for _ in range(times(random, PAYMENTS_A_DAY * person.keen, PAYMENTS_MAX)):
        # Two of three around lunch and supper.
        at = random.gauss(735, 60) if random.random() < 0.5 else random.gauss(1110, 90)
        fen = max(int(random.lognormvariate(7.6, 0.9)), 100)
        shop = f"shop-{random.randint(1, SHOPS)}"
        yield _row(day, "mobile_pay_offline", 1, at, amount_fen=fen, merchant=shop)
    tail = f"{person.number}-{day.date:%Y%m%d}"
    if random.random() < TRANSFERS_A_DAY * person.keen:
        yield _row(day, "online_transfer", 1, random.uniform(480, 1320))
    if random.random() < INVOICES_A_DAY * person.keen:
        yield _row(day, "e_invoice", 1, random.uniform(600, 1300), invoice=f"inv-{tail}")
    if random.random() < TICKETS_A_DAY * person.keen:
        yield _row(day, "train_ticket_online", 1, random.uniform(480, 1380), order=f"rail-{tail}")
    if day.date.day == person.pay_day:
        before = clock.add_months(clock.month_of(day.date), -1)
        card = f"card-{person.number}"
        yield _row(day, "e_statement", 1, 540, card=card, billing_month=before)
        if person.pays_bills:
            meter = person.household.account_no("electricity")
            fen = int(random.lognormvariate(9.1, 0.4))
            at = random.uniform(480, 1320)
            yield _row(day, "utility_pay_online", 1, at, amount_fen=fen, meter_account=meter)


def _peaks(random: Random, day: Day) -> tuple[float, float]:
    """When somebody leaves and comes back, in minutes after midnight; never within two hours."""
    if day.weekend:
        out, home = random.gauss(630, 60), random.gauss(960, 70)
    else:
        out, home = random.gauss(468, 25), random.gauss(1058, 35)
    return out, max(home, out + 150)


def _bus(random: Random, person: Person, day: Day) -> Iterator[Row]:
    if random.random() < min(BUS_A_DAY * person.keen, 0.95) * _thin(day):
        for at in _peaks(random, day):
            if random.random() < 0.05:
                # Paid with a ticket: the length is unknown.
                yield _row(day, "bus_km", 1, at, line=person.line, trip=True)
            else:
                km = round(max(person.home_km * random.uniform(0.9, 1.15), 0.5), 1)
                yield _row(day, "bus_km", km, at, km * 3.4, line=person.line)


def _bike(random: Random, person: Person, day: Day) -> Iterator[Row]:
    rides = min(BIKE_A_DAY * person.keen, 0.95) * _thin(day) * (RIDES_IN_RAIN if day.wet else 1)
    noon = "bus" in person.partners
    if noon and day.weekend:
        return
    if random.random() < rides:
        # Whoever also takes the bus cycles at noon of a working day, between its rides.
        for at in (720.0, 795.0) if noon else _peaks(random, day):
            km = round(min(max(random.lognormvariate(0.5, 0.55), 0.5), 12.0), 2)
            yield _row(day, "bike_km", km, at, km / random.uniform(11, 15) * 60)


def _ev(random: Random, person: Person, day: Day) -> Iterator[Row]:
    if random.random() < min(EV_CHARGES_A_DAY * person.keen, 0.95):
        kwh = round(min(max(random.lognormvariate(3.1, 0.45), 3.0), 95.0), 2)
        at = random.gauss(1215, 60) if random.random() < 0.7 else random.gauss(780, 90)
        yield _row(day, "ev_charge_kwh", kwh, at, vehicle=f"ev-{person.number}")


def _etc(random: Random, person: Person, day: Day) -> Iterator[Row]:
    if random.random() < min(ETC_TRIPS_A_DAY * person.keen, 0.95):
        for at in _peaks(random, day):
            yield _row(day, "etc_pass", 1, at)


def _recycler(random: Random, person: Person, day: Day) -> Iterator[Row]:
    tail = f"{person.number}-{day.date:%Y%m%d}"
    if random.random() < RECYCLING_A_DAY * person.keen:
        kg = round(min(max(random.lognormvariate(0.9, 0.6), 0.2), 18.0), 2)
        told: Row = {"slip": f"slip-{tail}"}
        if random.random() < 0.6:
            told["category"] = random.choice(CATEGORIES)
        yield _row(day, "recycle_kg", kg, random.uniform(1020, 1200), **told)
    if random.random() < CARTONS_A_DAY * person.keen:
        at = random.uniform(1020, 1260)
        yield _row(day, "carton_return", 1, at, waybill=f"way-{tail}")


def _health(random: Random, person: Person, day: Day) -> Iterator[Row]:
    steps = int(person.steps * random.lognormvariate(0, STEP_DAY_SIGMA))
    yield _row(day, "walk_steps", min(max(steps, 1), STEPS_MAX), 1420)


def _thin(day: Day) -> float:
    return WEEKEND_RIDES if day.weekend else 1.0


def _row(
    day: Day, behaviour: str, quantity: float, at: float, minutes: float | None = None,
    **attributes: Any,
) -> Row:  # fmt: skip
    """`at` in minutes after midnight; a trip that took `minutes` has an end."""
    row: Row = {
        "behaviour": behaviour,
        "quantity": quantity,
        "occurred_at": f"{day.date}T{clock_time(at)}+08:00",
    }
    if minutes is not None:
        row["ended_at"] = _after(day.date, at + math.ceil(minutes))
    if attributes:
        row["attributes"] = attributes
    return row


def _after(day: date, at: float) -> str:
    over, at = divmod(at, 24 * 60)
    return f"{day + timedelta(days=over)}T{clock_time(at)}+08:00"


_SEEN: dict[str, Callable[[Random, Person, Day], Iterator[Row]]] = {
    "bank": _bank,
    "bus": _bus,
    "bike": _bike,
    "ev": _ev,
    "etc": _etc,
    "recycler": _recycler,
    "health": _health,
}
