"""People with a month of life each: posted over HTTP, worked by hand beside each, and compared.

When a factor or a rule changes, this file shows whose life changed and by how much. Grams are
exact, points are rounded down for each activity. May 2026 begins on a Friday; partners send it on
1 June, phones on 30 May.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import machine
import pytest
from callers import Caller, partner, resident
from flask import Flask
from lives import at

import api.app
from accounting import book, clock, tokens
from points.wallet import consistent

ATTESTED = {"X-Firebase-AppCheck": "demo"}
Row = dict[str, Any]
_events = itertools.count()

MAY = range(1, 32)
# Monday to Friday of four weeks: 4 to 8, 11 to 15, 18 to 22 and 25 to 29 May.
WORKDAYS = [day for day in MAY if day >= 4 and (day - 4) % 7 < 5 and day <= 29]
SUNDAYS = [3, 10, 17, 24, 31]


@dataclass(frozen=True)
class Person:
    """`feed` and `phone` are what arrives of the month; `earns` is grams and points a behaviour.

    `refused` counts what earned nothing, by the code of its first reason.
    """

    name: str
    earns: dict[str, tuple[str, int]]
    feed: list[Row] = field(default_factory=list)
    phone: list[Row] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    april: dict[str, tuple[str, int]] = field(default_factory=dict)


def when(day: int, time: str, month: str = "2026-05") -> str:
    return f"{month}-{day:02d}T{time}+08:00"


def row(
    behaviour: str, quantity: object, start: str, end: str | None = None, **attributes: Any
) -> Row:
    ended = {} if end is None else {"ended_at": end}
    return {
        "behaviour": behaviour,
        "quantity": Decimal(str(quantity)),
        "occurred_at": start,
        **ended,
        "source_event_id": f"e{next(_events)}",
        "attributes": attributes,
    }


def each(days: Iterable[int], *made: Callable[[int], Row]) -> list[Row]:
    return [make(day) for day in days for make in made]


def sensed(rows: list[Row]) -> list[Row]:
    return [one | {"evidence": {"kind": "sensor"}} for one in rows]


PEOPLE = [
    # 12.4 km are 12.4 x 46.7 = 579.08 g; twice on 20 workdays: 40 x 579.08 = 23,163.2 g and
    # 40 x 579 = 23,160 points. A day has 1,158.16 of its 2,400 g.
    Person(
        "Mei, by metro to work and back",
        {"metro_km": ("23163.2", 23_160)},
        each(
            WORKDAYS,
            lambda day: row("metro_km", "12.4", when(day, "08:00:00"), when(day, "08:31:00")),
            lambda day: row("metro_km", "12.4", when(day, "18:00:00"), when(day, "18:31:00")),
        ),
    ),
    # The card knows no distance: 80 g a trip, 4 on the 2nd, 9th, 16th, 23rd and 30th, 8 on Sundays,
    # of which 6 count: 5 x 4 x 80 + 5 x 6 x 80 = 1,600 + 2,400 = 4,000 g. 5 x 2 trips are refused.
    Person(
        "Old Chen, retired, by bus",
        {"bus_km": ("4000", 4_000)},
        [
            row("bus_km", 1, when(day, f"{8 + trip:02d}:00:00"), trip=True, line="K1")
            for day, trips in [(day, 4) for day in (2, 9, 16, 23, 30)] + [(d, 8) for d in SUNDAYS]
            for trip in range(trips)
        ],
        refused={"day_count_cap": 10},
    ),
    # Own bicycle with a phone: 3.3 km are 160.71 g, twice on the 20 workdays: 40 x 160.71 = 6,428.4
    # g, 40 x 160 = 6,400 points. On the 9th three rides of 8 km, 389.6 g each: 389.6 + 340.4 + 0 =
    # 730 g, 389 + 340 points. What was typed in by hand is recorded.
    Person(
        "Lin, a student on a bicycle",
        {"bike_km": ("7158.4", 7_129)},
        phone=[
            *sensed(
                each(
                    WORKDAYS,
                    lambda day: row("bike_km", "3.3", when(day, "07:30:00"), when(day, "07:42:00")),
                    lambda day: row("bike_km", "3.3", when(day, "17:00:00"), when(day, "17:12:00")),
                )
                + [
                    row("bike_km", 8, when(9, f"{hour}:00:00"), when(9, f"{hour}:30:00"))
                    for hour in (10, 11, 12)
                ]
            ),
            row("bike_km", 5, when(16, "09:00:00"), when(16, "09:20:00"))
            | {"evidence": {"kind": "sensor", "manual": True}},
        ],
        refused={"day_gram_cap": 1, "evidence_not_accepted": 1},
    ),
    # 30 km are 2,370 g, on ten days; charging the same car on them is the same kilometres. A day of
    # 60 km is 4,740 g, cut to 4,000. On five other days 20 kWh, 9,520 g, cut to 4,000, twice: the
    # second charge of the day adds nothing. 23,700 + 4,000 g driven, 20,000 g charged.
    Person(
        "Wang, with an electric car",
        {"ev_km": ("27700", 27_700), "ev_charge_kwh": ("20000", 20_000)},
        [
            *each(
                range(1, 11),
                lambda day: row(
                    "ev_km", 30, when(day, "09:00:00"), when(day, "10:00:00"), vehicle="W"
                ),
                lambda day: row("ev_charge_kwh", 12, when(day, "22:00:00"), vehicle="W"),
            ),
            row("ev_km", 60, when(11, "09:00:00"), when(11, "11:00:00"), vehicle="W"),
            *each(
                range(20, 25),
                lambda day: row("ev_charge_kwh", 20, when(day, "12:00:00"), vehicle="W"),
                lambda day: row("ev_charge_kwh", 20, when(day, "22:00:00"), vehicle="W"),
            ),
        ],
        refused={"already_credited": 10, "day_gram_cap": 5},
    ),
    # 18.5 km are 1,350.5 g; of the ride home 2,200 - 1,350.5 = 849.5 g are left. 20 days: 44,000 g,
    # 20 x (1,350 + 849) = 43,980 points.
    Person(
        "Zhao, who shares a car to work",
        {"carpool_km": ("44000", 43_980)},
        each(
            WORKDAYS,
            lambda day: row(
                "carpool_km",
                "18.5",
                when(day, "08:00:00"),
                when(day, "08:30:00"),
                order=f"out-{day}",
                role="passenger",
            ),
            lambda day: row(
                "carpool_km",
                "18.5",
                when(day, "18:00:00"),
                when(day, "18:30:00"),
                order=f"home-{day}",
                role="passenger",
            ),
        ),
    ),
    # The car stays at home on the 1st to the 10th; eight days a month count. On the 2nd a bus of
    # 10 km, 269 g, came first: the day adds 2,127. On the 3rd a metro of 60 km came after, 2,802 g
    # of which 2,400 count and 2,396 are covered: 4 g. On the 9th the day does not count, so the bus
    # does: 269 g. Stop days: 7 x 2,396 + 2,127 = 18,899 g; bus 538 g; metro 4 g.
    Person(
        "The Suns, who leave the car at home",
        {"car_stop_day": ("18899", 18_899), "bus_km": ("538", 538), "metro_km": ("4", 4)},
        [
            row("car_stop_day", 1, when(1, "00:00:00"), vehicle="S"),
            row("bus_km", 10, when(2, "08:00:00"), when(2, "08:30:00")),
            row("car_stop_day", 1, when(2, "00:00:00"), vehicle="S"),
            row("car_stop_day", 1, when(3, "00:00:00"), vehicle="S"),
            row("metro_km", 60, when(3, "08:00:00"), when(3, "09:00:00")),
            *each(
                range(4, 11), lambda day: row("car_stop_day", 1, when(day, "00:00:00"), vehicle="S")
            ),
            row("bus_km", 10, when(9, "08:00:00"), when(9, "08:30:00")),
        ],
        refused={"month_count_cap": 2},
    ),
    # Two devices on 20 days: 8,000 steps are 131.555 g, then 9,500 are 156.222 g: 24.667 more. That
    # is 3,124.44 g and 20 x 156 = 3,120 points, since the day is rounded down once. On the 1st
    # 12,000 and then 7,000: 197.333 g. On the 2nd 30,000 count as 18,000: 296 g.
    Person(
        "Li, who walks with a phone and a watch",
        {"walk_steps": ("3617.773", 3_613)},
        phone=sensed(
            [
                *each(
                    WORKDAYS,
                    lambda day: row("walk_steps", 8000, when(day, "21:00:00")),
                    lambda day: row("walk_steps", 9500, when(day, "21:30:00")),
                ),
                row("walk_steps", 12000, when(1, "21:00:00")),
                row("walk_steps", 7000, when(1, "21:30:00")),
                row("walk_steps", 30000, when(2, "21:00:00")),
            ]
        ),
        refused={"lower_step_total": 1},
    ),
    # A slip of 2.5 kg is 3,362.5 g, on twelve days: 40,350 g and 12 x 3,362 = 40,344 points. On the
    # 20th four of 1.2 kg, 1,614 g each, of which three count: 4,842 g. On the 21st 20 kg, 26,900 g,
    # and 3 kg, of which 100 g are left of 27,000. One slip comes twice. Five cartons in a day:
    # three count, 111 g. No tableware with ten meals: 230 g.
    Person(
        "Aunt Wu, who recycles",
        {
            "recycle_kg": ("72192", 72_186),
            "carton_return": ("111", 111),
            "no_tableware": ("230", 230),
        },
        each(
            range(1, 13),
            lambda day: row("recycle_kg", "2.5", when(day, "09:00:00"), slip=f"s{day}"),
        )
        + [row("recycle_kg", "2.5", when(13, "09:00:00"), slip="s12")]
        + [
            row("recycle_kg", "1.2", when(20, f"{9 + number}:30:00"), slip=f"t{number}")
            for number in range(1, 5)
        ]
        + [
            row("recycle_kg", 20, when(21, "09:00:00"), slip="u1", category="paper"),
            row("recycle_kg", 3, when(21, "10:00:00"), slip="u2"),
        ]
        + [
            row("carton_return", 1, when(22, "09:00:00"), waybill=f"w{number}")
            for number in range(5)
        ]
        + each(
            range(1, 11), lambda day: row("no_tableware", 1, when(day, "12:00:00"), order=f"o{day}")
        ),
        refused={"already_credited": 1, "day_count_cap": 3},
    ),
    # 12 payments a day on 25 days in one row, of which 10 count: 50 g, 1,250 g. Seven invoices a
    # day on ten days, of which five count: 250 g. Three meters paid: 267 g; one of them again: the
    # month is taken. Three statements in the month, of which two count: 48 g. A card: 89 g, a
    # second in the month: none. A transfer on ten days, of which eight count: 1,384 g.
    Person(
        "Zhou, whose shop takes no cash",
        {
            "mobile_pay_offline": ("1250", 1_250),
            "e_invoice": ("250", 250),
            "utility_pay_online": ("267", 267),
            "e_statement": ("48", 48),
            "e_card": ("89", 89),
            "online_transfer": ("1384", 1_384),
        },
        each(
            range(1, 26),
            lambda day: row("mobile_pay_offline", 12, when(day, "20:00:00"), amount_fen=3_000),
        )
        + each(range(1, 11), lambda day: row("e_invoice", 7, when(day, "20:10:00")))
        + [
            row(
                "utility_pay_online",
                1,
                when(day, "20:20:00"),
                amount_fen=9_000,
                meter_account=f"z{meter}",
            )
            for day, meter in ((5, 1), (5, 2), (5, 3), (6, 1))
        ]
        + [
            row("e_statement", 1, when(day, "20:30:00"), card=f"z{day}", billing_month="2026-04")
            for day in (7, 8, 9)
        ]
        + [row("e_card", 1, when(day, "20:40:00"), card_product=f"p{day}") for day in (10, 11)]
        + each(range(12, 22), lambda day: row("online_transfer", 1, when(day, "20:50:00"))),
        refused={"already_credited": 1, "month_count_cap": 4},
    ),
    # Two cars and a shared ride on two days: 4,000 + 4,000 + 2,000 of 2,200 g make 10,000 g, so a
    # payment adds nothing; what belongs to green life is not under that cap: 26,900 g. Twice. A
    # show of six tickets: two a day, 360 g; four attended visits, one a day: 277 g each.
    Person(
        "Ms. Xu, who reaches every cap",
        {
            "ev_km": ("8000", 8_000),
            "ev_charge_kwh": ("8000", 8_000),
            "carpool_km": ("4000", 4_000),
            "recycle_kg": ("53800", 53_800),
            "ticket_online": ("360", 360),
            "hospital_booking": ("1108", 1_108),
        },
        [
            *each(
                (5, 6),
                lambda day: row(
                    "ev_km", 60, when(day, "01:00:00"), when(day, "02:00:00"), vehicle="X"
                ),
                lambda day: row("ev_charge_kwh", 10, when(day, "03:00:00"), vehicle="Y"),
                lambda day: row(
                    "carpool_km", 40, when(day, "04:00:00"), when(day, "05:00:00"), order=f"x{day}"
                ),
                lambda day: row("mobile_pay_offline", 1, when(day, "06:00:00"), amount_fen=100),
                lambda day: row("recycle_kg", 20, when(day, "07:00:00"), slip=f"x{day}"),
            ),
            row("ticket_online", 6, when(12, "19:00:00")),
            *each(range(13, 17), lambda day: row("hospital_booking", 1, when(day, "09:00:00"))),
        ],
        refused={"overall_day_cap": 2},
    ),
    # A trip belongs to the city day it began on. Metro of 10 km, 467 g: what began on 30 April and
    # ended at 00:00 is April's, what began then is May's, and so is that from 23:50 on 31 May. A
    # transfer a day, 173 g: 23:59:59.999 on 30 May and 00:00 on 31 May are two days: 346 g.
    Person(
        "Night owl Feng, across midnight",
        {"metro_km": ("934", 934), "online_transfer": ("346", 346)},
        [
            row("metro_km", 10, when(30, "23:40:00", "2026-04"), when(1, "00:00:00")),
            row("metro_km", 10, when(1, "00:00:00"), when(1, "00:20:00")),
            row("metro_km", 10, when(31, "23:50:00"), when(1, "00:10:00", "2026-06")),
            row("online_transfer", 1, when(30, "23:59:59.999")),
            row("online_transfer", 1, when(31, "00:00:00")),
            row("online_transfer", 1, when(31, "23:59:59.999")),
        ],
        refused={"day_count_cap": 1},
        april={"metro_km": ("467", 467)},
    ),
    # The motorway without stopping: 23 g a pass, four a day. Six on the 10th, two on four days:
    # 92 + 184 = 276 g. A ride on a shared e-bike counts as a bicycle: 4 km, 194.8 g. Trains: 136 g.
    Person(
        "Driver Tang, on the road",
        {
            "etc_pass": ("276", 276),
            "ebike_shared_km": ("194.8", 194),
            "train_ticket_online": ("272", 272),
        },
        [
            row("etc_pass", 6, when(10, "09:00:00")),
            *each(range(11, 15), lambda day: row("etc_pass", 2, when(day, "09:00:00"))),
            row("ebike_shared_km", 4, when(16, "10:00:00"), when(16, "10:15:00")),
            row("train_ticket_online", 3, when(17, "10:00:00")),
        ],
    ),
]


@pytest.fixture(scope="module")
def demo(app: Flask, tmp_path_factory: pytest.TempPathFactory) -> Flask:
    folder = tmp_path_factory.mktemp("demo")
    return api.app.create_app(replace(app.extensions["config"], demo=True, data_dir=folder))


@pytest.fixture
def _books_hold() -> Iterator[None]:
    yield
    assert book.verify(checks=[consistent]).problem is None


def again(who: Caller) -> Caller:
    """The same resident, signed in now."""
    return replace(who, token=tokens.open_session(who.id).access_token)


def by_phone(me: Caller, rows: list[Row]) -> list[Row]:
    """Report over HTTP, a hundred at a time; returns what became of each."""
    found: list[Row] = []
    for first in range(0, len(rows), 100):
        body = {"activities": rows[first : first + 100]}
        answer = me.post("/v1/activities/batch", body, headers=ATTESTED)
        found += [result["activity"] for result in answer.get_json()["results"]]
    return found


def by_feed(city: Caller, card: str, rows: list[Row]) -> list[Row]:
    body = {"activities": [{**one, "external_id": card} for one in rows]}
    answer = city.post("/v1/feeds/activities", body)
    return [result["activity"] for result in answer.get_json()["results"]]


def summary(me: Caller, first: str, last: str) -> dict[str, tuple[Decimal, int]]:
    told = me.get(f"/v1/me/summary?from={first}&to={last}").get_json()
    cells = {
        code: (Decimal(sums["reduction_g"]), sums["points"])
        for code, sums in told["by_behaviour"].items()
        if sums["reduction_g"]
    }
    assert told["reduction_g"] == sum(grams for grams, _ in cells.values())
    assert told["points"] == sum(points for _, points in cells.values())
    return cells


def month(me: Caller, which: str) -> dict[str, tuple[Decimal, int]]:
    return summary(me, clock.first_day(which).isoformat(), clock.last_day(which).isoformat())


def by_hand(earns: dict[str, tuple[str, int]]) -> dict[str, tuple[Decimal, int]]:
    return {code: (Decimal(grams), points) for code, (grams, points) in earns.items()}


@pytest.mark.usefixtures("_books_hold")
@pytest.mark.parametrize("person", PEOPLE, ids=lambda person: person.name)
def test_a_month_of_a_life_comes_out_as_worked_by_hand(demo: Flask, person: Person) -> None:
    told: list[Row] = []
    with at("2026-05-30 23:00"):
        me = resident(demo)
        told += by_phone(me, person.phone)
    with at("2026-06-01 12:00"):
        me, city = again(me), partner(demo)
        me.post("/v1/me/links", {"partner_id": city.id, "external_id": "card"})
        if person.feed:
            told += by_feed(city, "card", person.feed)
        assert month(me, "2026-05") == by_hand(person.earns)
        assert month(me, "2026-04") == by_hand(person.april)
        nothing = [one for one in told if not one["reduction_g"]]
        assert Counter(one["reasons"][0]["code"] for one in nothing) == person.refused
        # The same month again changes nothing.
        if person.feed:
            assert by_feed(city, "card", person.feed) == told[len(person.phone) :]
        assert month(me, "2026-05") == by_hand(person.earns)
        points = me.get("/v1/me/points").get_json()
        whole = summary(me, "2026-04-01", "2026-06-30")
        assert points["lifetime_earned"] == sum(one for _, one in whole.values())
        for activity in told[:: max(len(told) // 6, 1)]:
            machine.check(me.get(f"/v1/activities/{activity['id']}/explanation").get_json())


def test_the_other_side_of_a_shared_ride_earns_nothing(demo: Flask) -> None:
    """Driver and passenger share one reduction: 18.5 km, 1,350.5 g, whoever is told of first."""
    with at("2026-06-01 12:00"):
        passenger, driver, city = resident(demo), resident(demo), partner(demo)
        for who, card in ((passenger, "p"), (driver, "d")):
            who.post("/v1/me/links", {"partner_id": city.id, "external_id": card})
        ride = {"start": when(4, "08:00:00"), "end": when(4, "08:30:00")}
        [first] = by_feed(
            city, "p", [row("carpool_km", "18.5", **ride, order="1", role="passenger")]
        )
        [second] = by_feed(city, "d", [row("carpool_km", "18.5", **ride, order="1", role="driver")])
        assert (first["reduction_g"], second["reduction_g"]) == (Decimal("1350.5"), 0)
        assert second["reasons"][0]["code"] == "already_credited"
        assert month(driver, "2026-05") == {}


@pytest.mark.usefixtures("_books_hold")
def test_a_household_of_three_saves_power_gas_and_water(demo: Flask) -> None:
    """Behind three meters, for two years 300 kWh, 20 m3 and 12 t a month; in May less.

    300 - 250 = 50 kWh: 50/3 x 497.4 g = 8,290 g. 20 - 17.5 = 2.5 m3: 2.5/3 x 2,162.2 = 1,801.833 g.
    12 - 8 = 4 t, of which 3.6 count: 1.2 x 168 = 201.6 g. Each of two residents gets that share;
    the third has no account. Emitted, all three together: 250 x 497.4 + 17.5 x 2,162.2 + 8 x 168 =
    124,350 + 37,838.5 + 1,344 g, a third of it each.
    """
    with at("2026-06-05 12:00"):
        me, other, city = resident(demo), resident(demo), partner(demo, carriers=[
            "electricity", "gas", "water",
        ])  # fmt: skip
        usual = {"electricity": "300", "gas": "20", "water": "12"}
        may = {"electricity": "250", "gas": "17.5", "water": "8"}
        for who, carrier in itertools.product((me, other), usual):
            meter = {"carrier": carrier, "account_no": f"no-{carrier}", "members": 3}
            assert who.post("/v1/me/households", meter).status_code == 201
        bills = [
            {
                "carrier": carrier,
                "account_no": f"no-{carrier}",
                "period_start": clock.first_day(month).isoformat(),
                "period_end": clock.last_day(month).isoformat(),
                "quantity": Decimal(used[carrier]),
                "estimated": False,
                "source_event_id": f"{carrier}-{month}",
            }
            for ago in range(24, -1, -1)
            for month in [clock.add_months("2026-05", -ago)]
            for used in [may if ago == 0 else usual]
            for carrier in usual
        ]
        answer = city.post("/v1/feeds/bills", {"bills": bills}).get_json()
        assert {result["status_code"] for result in answer["results"]} == {201}
        for who in (me, other):
            assert month(who, "2026-05") == {
                "electricity_saving": (Decimal(8_290), 8_290),
                "gas_saving": (Decimal("1801.833"), 1_801),
                "water_saving": (Decimal("201.6"), 201),
            }
            told = who.get("/v1/me/summary?from=2026-05-01&to=2026-05-31").get_json()
            assert told["by_carrier"] == {
                "electricity": 41_450, "gas": Decimal("12612.833"), "water": 448,
            }  # fmt: skip
            for bill in who.get("/v1/me/bills?limit=100").get_json()["items"][:4]:
                path = f"/v1/me/bills/{bill['id']}/explanation"
                explained = who.get(path).get_json()
                machine.check(explained)
                assert explained["reduction_mg"] == bill["reduction_g"] * 1_000


@pytest.mark.usefixtures("_books_hold")
def test_a_home_with_panels_is_credited_for_what_it_makes_and_uses(demo: Flask) -> None:
    """Two people; in May the panels made 410 kWh, 250 went out, 40 are under a certificate.

    160 kWh used at home less 40 are 120: 60 x 497.4 = 29,844 g each. The 95 kWh of the grid are
    emitted: 47.5 x 497.4 = 23,626.5 g.
    """
    with at("2026-06-05 12:00"):
        me, city = resident(demo), partner(demo, carriers=["electricity"])
        meter = {"carrier": "electricity", "account_no": "sun", "members": 2}
        assert me.post("/v1/me/households", meter).status_code == 201
        may = {
            "carrier": "electricity",
            "account_no": "sun",
            "estimated": False,
            "period_start": "2026-05-01",
            "period_end": "2026-05-31",
            "quantity": 95,
            "source_event_id": "may",
            "pv_generated_kwh": 410,
            "pv_exported_kwh": 250,
            "pv_certified_kwh": 40,
        }
        answer = city.post("/v1/feeds/bills", {"bills": [may]}).get_json()
        assert [result["status_code"] for result in answer["results"]] == [201]
        assert month(me, "2026-05") == {"rooftop_pv_self_use": (Decimal(29_844), 29_844)}
        told = me.get("/v1/me/summary?from=2026-05-01&to=2026-05-31").get_json()
        assert told["by_carrier"] == {"electricity": Decimal("23626.5")}
        [bill] = me.get("/v1/me/bills").get_json()["items"]
        machine.check(me.get(f"/v1/me/bills/{bill['id']}/explanation").get_json())


@pytest.mark.usefixtures("_books_hold")
def test_a_leap_day_is_a_day_of_its_own(demo: Flask) -> None:
    """5.2 km by bus, 139.88 g, on 28 and 29 February 2024 and on 1 March; eight times on the 29th.

    Six of them count: 839.28 g, 6 x 139 = 834 points. February: 979.16 g, 973 points; they expire
    at the end of February 2026, which has no 29th day, and those of March a month later.
    """
    with at("2024-03-05 12:00"):
        me, city = resident(demo), partner(demo)
        me.post("/v1/me/links", {"partner_id": city.id, "external_id": "card"})
        rides = [row("bus_km", "5.2", when(28, "08:00:00", "2024-02"))]
        rides += [row("bus_km", "5.2", when(29, f"{8 + n:02d}:00:00", "2024-02")) for n in range(8)]
        rides += [row("bus_km", "5.2", when(1, "00:00:00", "2024-03"))]
        by_feed(city, "card", rides)
        assert summary(me, "2024-02-28", "2024-02-28") == {"bus_km": (Decimal("139.88"), 139)}
        assert summary(me, "2024-02-29", "2024-02-29") == {"bus_km": (Decimal("839.28"), 834)}
        assert summary(me, "2024-02-01", "2024-02-29") == {"bus_km": (Decimal("979.16"), 973)}
        assert summary(me, "2024-03-01", "2024-03-31") == {"bus_km": (Decimal("139.88"), 139)}
        assert me.get("/v1/me/points").get_json()["expiring"] == [
            {"on": "2026-02-28", "points": 973}, {"on": "2026-03-31", "points": 139},
        ]  # fmt: skip
