"""Hand-picked reports and what must come of them, worked out by hand from the published factors.

The generator writes them into the day's files among all the others; the player compares each answer
with what is written here. They belong to two residents who report nothing else, each on a day of
its own, so nothing but the rule in question can touch them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

APP, BATCH, FILE, TABLE = "app", "batch", "file", "table"
Door = Literal["app", "batch", "file", "table"]
CREATED, INVALID, CONFLICT, SEEN = 201, 422, 409, 200
NOBODY = "card-nobody-1"
METER = "E-story"
BILL_SHARE_G = Decimal("7461")
"""200 kWh in that month of both years before, 170 now: 30 kWh x 497.4 g, shared by 2 members."""


@dataclass(frozen=True)
class Case:
    """One report and its outcome. `neighbour` is the second of the two residents.

    `grams` is exact; `how` is the working, or the reason, in words.
    """

    event: str
    door: Door
    behaviour: str
    quantity: str
    day: int
    at: str
    how: str
    grams: Decimal = Decimal(0)
    status: str = "credited"
    reasons: tuple[str, ...] = ()
    code: int = CREATED
    minutes: int | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    by: str = ""
    neighbour: bool = False
    external_id: str | None = None


def _app(
    event: str, behaviour: str, quantity: str, day: int, at: str, how: str, **rest: Any
) -> Case:
    by = "pedometer" if behaviour == "walk_steps" else "gps"
    return Case(event, APP, behaviour, quantity, day, at, how, **{"by": by, **rest})


def _batch(
    event: str, behaviour: str, quantity: str, day: int, at: str, how: str, **rest: Any
) -> Case:
    return Case(event, BATCH, behaviour, quantity, day, at, how, **rest)


def _refused(reason: str) -> dict[str, Any]:
    return {"status": "rejected", "reasons": (reason,)}


def _capped(grams: str, *reasons: str) -> dict[str, Any]:
    return {"status": "capped", "grams": Decimal(grams), "reasons": reasons}


def _grams(grams: str) -> dict[str, Any]:
    return {"grams": Decimal(grams)}


_FROM_APP = (
    _app(
        "walk-1",
        "walk_steps",
        "9000",
        4,
        "21:30:00",
        "9,000 steps x 296 g / 18,000",
        **_grams("148"),
    ),
    _app(
        "walk-2",
        "walk_steps",
        "25000",
        5,
        "21:30:00",
        "18,000 steps count, so 296 g",
        **_capped("296", "step_limit"),
    ),
    _app(
        "walk-3",
        "walk_steps",
        "6000",
        6,
        "12:00:00",
        "6,000 steps x 296 g / 18,000",
        **_grams("98.666"),
    ),
    _app(
        "walk-4",
        "walk_steps",
        "12000",
        6,
        "21:30:00",
        "197.333 g less the 98.666 g of noon",
        **_grams("98.667"),
    ),
    _app(
        "walk-5",
        "walk_steps",
        "5000",
        6,
        "22:00:00",
        "the highest total of the day counts",
        status="merged",
        reasons=("lower_step_total",),
    ),
    _app(
        "walk-6",
        "walk_steps",
        "8000",
        11,
        "21:30:00",
        "typed by hand, so class D",
        by="manual",
        status="recorded",
        reasons=("evidence_not_accepted",),
    ),
    _app(
        "walk-7",
        "walk_steps",
        "61000",
        12,
        "21:30:00",
        "more than 60,000 steps",
        **_refused("implausible_quantity"),
    ),
    _app(
        "walk-8",
        "walk_steps",
        "8000",
        45,
        "21:30:00",
        "the app has 30 days",
        **_refused("too_old"),
    ),
    _app(
        "walk-9",
        "walk_steps",
        "8000",
        -2,
        "12:00:00",
        "the day after tomorrow",
        **_refused("in_the_future"),
    ),
    _app("bike-1", "bike_km", "3", 7, "07:40:00", "3 km x 48.7 g", minutes=12, **_grams("146.1")),
    _app(
        "bike-1",
        "bike_km",
        "3",
        7,
        "07:40:00",
        "the same event again: the first answer",
        minutes=12,
        code=SEEN,
        **_grams("146.1"),
    ),
    _app(
        "bike-1",
        "bike_km",
        "4",
        7,
        "07:40:00",
        "the same id with another distance",
        minutes=12,
        code=CONFLICT,
        reasons=("source_event_conflict",),
    ),
    _app(
        "bike-2",
        "bike_km",
        "12.5",
        8,
        "07:10:00",
        "12.5 km x 48.7 g",
        minutes=50,
        **_grams("608.75"),
    ),
    _app(
        "bike-3",
        "bike_km",
        "5",
        8,
        "17:30:00",
        "243.5 g, of which 730 - 608.75 g fit under the day's cap",
        minutes=20,
        **_capped("121.25", "day_gram_cap"),
    ),
    _app(
        "bike-4",
        "bike_km",
        "12",
        9,
        "07:40:00",
        "72 km/h",
        minutes=10,
        **_refused("implausible_speed"),
    ),
    _app("bike-5", "bike_km", "4", 10, "07:00:00", "4 km x 48.7 g", minutes=20, **_grams("194.8")),
    _app(
        "bike-6",
        "bike_km",
        "4",
        10,
        "07:10:00",
        "on two bicycles at once",
        minutes=20,
        **_refused("overlapping_trip"),
    ),
    _app(
        "odd-1",
        "hoverboard_km",
        "3",
        13,
        "08:00:00",
        "not a behaviour of the methodology",
        code=INVALID,
        reasons=("validation_failed",),
    ),
    _app(
        "odd-2",
        "bike_km",
        "-3",
        13,
        "09:00:00",
        "less than nothing",
        code=INVALID,
        reasons=("validation_failed",),
    ),
)

_FROM_PARTNER = (
    _batch(
        "bus-1", "bus_km", "5.2", 20, "08:00:00", "5.2 km x 26.9 g", minutes=20, **_grams("139.88")
    ),
    _batch(
        "bus-2",
        "bus_km",
        "1",
        21,
        "08:00:00",
        "a trip of unknown length",
        attributes={"trip": True},
        **_grams("80"),
    ),
    _batch(
        "bus-3",
        "bus_km",
        "1",
        22,
        "08:00:00",
        "1 km x 26.9 g",
        minutes=3,
        attributes={"line": "K1"},
        **_grams("26.9"),
    ),
    _batch(
        "bus-4",
        "bus_km",
        "1",
        22,
        "08:06:00",
        "the same line within ten minutes",
        minutes=3,
        attributes={"line": "K1"},
        **_refused("boarding_too_soon"),
    ),
    _batch(
        "ev-1",
        "ev_charge_kwh",
        "10",
        23,
        "20:00:00",
        "10 kWh x 476 g = 4,760 g, at most 4,000 g a day",
        attributes={"vehicle": "story-ev"},
        **_capped("4000", "day_gram_cap"),
    ),
    _batch(
        "pay-1",
        "mobile_pay_offline",
        "1",
        24,
        "12:10:00",
        "5 g a payment",
        attributes={"amount_fen": 1250, "merchant": "noodles"},
        **_grams("5"),
    ),
    _batch(
        "pay-2",
        "mobile_pay_offline",
        "1",
        24,
        "12:40:00",
        "half a yuan",
        attributes={"amount_fen": 50, "merchant": "noodles"},
        **_refused("amount_too_small"),
    ),
    _batch("bin-1", "recycle_kg", "3.25", 25, "18:00:00", "3.25 kg x 1,345 g", **_grams("4371.25")),
    _batch("bus-5", "bus_km", "10", 26, "08:00:00", "10 km x 26.9 g", minutes=40, **_grams("269")),
    _batch(
        "stop-1",
        "car_stop_day",
        "1",
        26,
        "20:00:00",
        "2,396 g less the 269 g of the bus",
        attributes={"vehicle": "story-car"},
        **_capped("2127", "net_of_transit"),
    ),
    _batch(
        "metro-1", "metro_km", "12", 27, "09:00:00", "12 km x 46.7 g", minutes=25, **_grams("560.4")
    ),
    _batch(
        "ev-2",
        "ev_charge_kwh",
        "20",
        29,
        "07:00:00",
        "9,520 g, at most 4,000 g a day",
        attributes={"vehicle": "story-ev"},
        **_capped("4000", "day_gram_cap"),
    ),
    _batch(
        "ev-3",
        "ev_km",
        "60",
        29,
        "09:00:00",
        "60 km x 79 g = 4,740 g, at most 4,000 g a day",
        minutes=90,
        attributes={"vehicle": "story-ev-2"},
        **_capped("4000", "day_gram_cap"),
    ),
    _batch(
        "pool-1",
        "carpool_km",
        "40",
        29,
        "12:00:00",
        "2,920 g, 2,200 g by its own cap, 2,000 g are left of the day's 10 kg",
        minutes=60,
        attributes={"order": "story-order", "role": "passenger"},
        **_capped("2000", "day_gram_cap", "overall_day_cap"),
    ),
    _batch(
        "inv-1",
        "e_invoice",
        "1",
        30,
        "13:00:00",
        "5 g an invoice",
        attributes={"invoice": "story-invoice"},
        **_grams("5"),
    ),
    _batch(
        "old-1",
        "bus_km",
        "5",
        200,
        "08:00:00",
        "a partner has 180 days",
        minutes=20,
        **_refused("too_old"),
    ),
    _batch(
        "odd-3",
        "teleport_km",
        "5",
        31,
        "08:00:00",
        "not a behaviour of the methodology",
        code=INVALID,
        reasons=("validation_failed",),
    ),
    _batch(
        "lost-1",
        "bus_km",
        "5.2",
        32,
        "08:00:00",
        "nobody has linked this card yet",
        minutes=20,
        status="parked",
        external_id=NOBODY,
    ),
    Case(
        "inv-2",
        FILE,
        "e_invoice",
        "1",
        30,
        "14:00:00",
        "somebody else's invoice",
        attributes={"invoice": "story-invoice"},
        neighbour=True,
        status="rejected",
        reasons=("already_credited",),
    ),
    Case(
        "box-1",
        FILE,
        "carton_return",
        "1",
        33,
        "18:20:00",
        "37 g a carton",
        Decimal(37),
        attributes={"waybill": "story-waybill"},
        neighbour=True,
    ),
    Case(
        "send-1",
        TABLE,
        "online_transfer",
        "1",
        34,
        "10:00:00",
        "173 g a transfer",
        Decimal(173),
        neighbour=True,
    ),
    Case(
        "rail-1",
        TABLE,
        "train_ticket_online",
        "1",
        150,
        "22:00:00",
        "136 g an order, five months late",
        Decimal(136),
        neighbour=True,
    ),
)

CASES: tuple[Case, ...] = (*_FROM_APP, *_FROM_PARTNER)


def at(door: Door) -> list[Case]:
    """The cases that come through one door, in the order they are sent."""
    return [case for case in CASES if case.door == door]
