"""From a report to grams and points: once, resumable, within every cap, and undone by adding.

The clock stands at noon of Wednesday 20 May 2026 in the city. Milligrams are worked by hand from
`resident_defaults.json`: bus 26,900 a km, metro 46,700, bike 48,700, steps 296,000/18,000.
"""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import bson
import pytest
from faults.crew import KILLED, Crew, Death
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounting import book, claims, clock, outbox, storage
from accounting.errors import AccountBusy
from footprint import activities, reasons, summaries
from footprint.activities import Activity, SourceEventConflict
from footprint.rules import Report
from points import crediting, milestones, statements
from points.crediting import NothingToReverse
from points.wallet import Wallet, consistent

pytestmark = pytest.mark.usefixtures("app")

ANNA, BO = "res_anna", "res_bo"
DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)


def city(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=clock.CITY).astimezone(UTC)


NOW = city("2026-05-20 12:00")
TODAY = date(2026, 5, 20)
events = (f"event-{number}" for number in itertools.count())


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.travel(NOW - clock.now()):
        yield


def tell(
    behaviour: str,
    quantity: object,
    at: str | datetime = "2026-05-20 08:00",
    *,
    who: str = ANNA,
    minutes: float | None = None,
    event: str | None = None,
    evidence: str = "A",
    source: str | None = None,
    **attributes: Any,
) -> Activity:
    """Report something that happened, in city time, and return what became of it."""
    start = city(at) if isinstance(at, str) else at
    end = start + timedelta(minutes=minutes) if minutes is not None else None
    what = Report(behaviour, Decimal(str(quantity)), start, end, attributes)
    activity, _ = crediting.report(
        who,
        what,
        source=source or f"app:{who}",
        event_id=event or next(events),
        evidence=evidence,
    )
    return crediting.shown(activity)


def lifetime_mg(who: str = ANNA) -> int:
    return int(book.head(who).after.get("lifetime_mg", 0))


def day_mg(day: date, who: str = ANNA) -> int:
    return sum(cell.mg for cell in summaries.between(who, day, day).cells)


def the_books_hold() -> None:
    assert book.verify(checks=[consistent]).problem is None


# One ride.


def test_a_bus_ride_of_five_kilometres_earns_139_points_in_two_days() -> None:
    ride = tell("bus_km", "5.2", minutes=18)
    # 5.2 x 26,900 = 139,880 mg; over at 08:18 on the 20th, mature 48 hours later.
    assert (ride.status, ride.mg, ride.points, ride.reasons) == ("pending", 139_880, 139, ())
    assert ride.mature_at == city("2026-05-22 08:18")
    assert ride.evidence == "A"
    balance = statements.balance(ANNA)
    assert (balance.pending, balance.available, balance.lifetime_earned) == (139, 0, 139)
    with clock.travel(city("2026-05-22 08:18") - clock.now()):
        later = statements.balance(ANNA)
        assert (later.pending, later.available) == (0, 139)
        assert later.expiring == (("2028-05-31", 139),)
        shown = activities.by_id(ride.id)
        assert shown is not None
        assert crediting.shown(shown).status == "credited"


def test_the_entry_carries_grams_and_points_together_and_explains_both() -> None:
    ride = tell("bus_km", "5.2")
    (entry,) = book.entries(ANNA)
    assert entry.key == f"activity:{ride.id}"
    assert [tuple(line) for line in entry.lines] == [
        ("co2e_mg", "baseline:city", -139_880, ""),
        ("co2e_mg", "reduction", 139_880, ""),
        ("points", "issued:city", -139, ""),
        ("points", "pending", 139, ""),
    ]
    assert entry.cap_day == "2026-05-20"
    kept = {"behaviour", "methodology", "evidence", "steps", "rule", "funder", "reasons"}
    assert kept <= entry.refs.keys()
    assert entry.refs["steps"] == [["formula", 139_880, None]]
    assert (entry.refs["rule"], entry.refs["funder"]) == ("QZ-PTS-2026.1", "city")
    the_books_hold()


def test_a_ride_that_arrives_three_days_late_is_mature_on_arrival() -> None:
    ride = tell("bus_km", "5.2", "2026-05-17 08:00")
    assert ride.status == "credited"
    assert statements.balance(ANNA).available == 139


def test_a_cycle_ride_is_mature_at_once() -> None:
    # 3 x 48,700; no waiting for bicycles.
    ride = tell("bike_km", 3)
    assert (ride.status, ride.mg, ride.points) == ("credited", 146_100, 146)


def test_what_is_only_recorded_or_refused_by_itself_makes_no_entry() -> None:
    assert tell("bus_km", 5, evidence="D").status == "recorded"
    assert tell("bike_km", 99).status == "rejected"
    assert book.head(ANNA).seq == 0
    assert statements.balance(ANNA).lifetime_earned == 0


# The same event.


def test_the_same_event_again_gives_the_first_activity_and_no_second_effect() -> None:
    first = tell("bus_km", "5.2", event="one")
    before = book.head(ANNA)
    with clock.travel(40 * DAY):  # Long after the window has closed.
        again = tell("bus_km", "5.20", "2026-05-20 08:00:00.000400", event="one")
    assert (again.id, again.mg, again.points) == (first.id, first.mg, first.points)
    assert book.head(ANNA) == before


@pytest.mark.parametrize(
    "other",
    [
        {"quantity": "5.3"},
        {"behaviour": "metro_km"},
        {"at": "2026-05-20 08:00:00.001"},
        {"minutes": 18},
        {"line": "2"},
    ],
)
def test_the_same_event_id_with_other_content_is_a_conflict(other: dict[str, Any]) -> None:
    said = {"behaviour": "bus_km", "quantity": "5.2", "event": "one", "line": "1"}
    tell(**said)
    with pytest.raises(SourceEventConflict) as refused:
        tell(**{**said, **other})
    assert refused.value.facts == {"source_event_id": "one"}
    assert book.head(ANNA).seq == 1


def test_a_retry_that_is_attested_otherwise_is_the_same_report() -> None:
    """The class is what the city makes of the evidence, not what the phone said happened."""
    first = tell("bike_km", 3, event="one", evidence="B")
    again = tell("bike_km", 3, event="one", evidence="D")
    assert (again.id, again.evidence, again.mg) == (first.id, "B", 146_100)


def test_two_residents_may_use_the_same_event_id() -> None:
    assert tell("bus_km", 5, event="one").id != tell("bus_km", 5, event="one", who=BO).id


def test_twelve_threads_with_one_event_have_one_effect() -> None:
    with ThreadPoolExecutor(12) as pool:
        told = list(pool.map(lambda _: patiently("bus_km", "5.2", event="one"), range(12)))
    assert len({activity.id for activity in told}) == 1
    assert (book.head(ANNA).seq, lifetime_mg()) == (1, 139_880)


def patiently(*args: Any, **kwargs: Any) -> Activity:
    for _ in range(20):
        try:
            return tell(*args, **kwargs)
        except AccountBusy:
            continue
    raise AssertionError("still busy after 20 tries")


# Crashes.


STEPS = [
    Death("footprint.activities:receive", "before"),
    Death("footprint.activities:receive", "after"),
    Death("accounting.claims:take", "after"),
    Death("accounting.book:post", "before"),
    Death("accounting.book:post", "after"),
    Death("accounting.outbox:leave_many", "before"),
    Death("accounting.outbox:leave_many", "after"),
    Death("points.milestones:record", "after"),
    Death("footprint.activities:settle", "before"),
    Death("footprint.activities:settle", "after"),
]
# 3 kWh x 476,000 = 1,428,000 mg: more than the first kilogram.
CHARGE = {"behaviour": "ev_charge_kwh", "quantity": "3", "at": "2026-05-20T00:00:00+00:00"}


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("rescue", ["retry", "sweep"])
def test_a_process_killed_at_any_step_loses_nothing_and_doubles_nothing(
    crew: Crew, step: Death, rescue: str
) -> None:
    killed = crew.run("report", step, resident=ANNA, event_id="one", vehicle="浙H1", **CHARGE)
    assert killed == KILLED
    if rescue == "sweep":
        with clock.travel(2 * MINUTE):
            crediting.sweep(clock.now())
            assert crediting.sweep(clock.now()) == 0
    charge = tell("ev_charge_kwh", 3, event="one", vehicle="浙H1")
    assert (charge.status, charge.mg, charge.points) == ("pending", 1_428_000, 1_428)
    assert activities.of_resident(ANNA, before=None, limit=9)[0].state == "settled"
    assert [entry.kind for entry in book.entries(ANNA)] == ["earn"]
    assert [row.dedupe for row in outbox.inbox(ANNA, before=None, limit=9)] == [
        "milestone/lifetime_1_kg"
    ]
    assert [one.kg for one in milestones.of_resident(ANNA)[0]] == [1]
    assert storage.database()["claims"].count_documents({}) == 1
    the_books_hold()


def test_the_sweep_leaves_what_is_younger_than_a_minute_to_its_request(crew: Crew) -> None:
    step = Death("footprint.activities:receive", "after")
    assert crew.run("report", step, resident=ANNA, event_id="one", vehicle="v", **CHARGE) == KILLED
    assert crediting.sweep(clock.now()) == 0
    with clock.travel(61 * timedelta(seconds=1)):
        assert crediting.sweep(clock.now()) == 1


def test_one_that_cannot_be_finished_does_not_hold_up_the_others(crew: Crew) -> None:
    step = Death("footprint.activities:receive", "after")
    for resident in (ANNA, BO):
        crew.run("report", step, resident=resident, event_id="one", vehicle=resident, **CHARGE)
    storage.database()["activities"].update_one({"resident": ANNA}, {"$set": {"methodology": "?"}})
    with clock.travel(2 * MINUTE):
        crediting.sweep(clock.now())
    assert lifetime_mg(BO) == 1_428_000
    left = activities.of_resident(ANNA, before=None, limit=9)[0]
    assert left.state == "received"


def test_a_reversal_is_the_last_word_whoever_still_carries_the_old_outcome(crew: Crew) -> None:
    step = Death("footprint.activities:settle", "before")
    crew.run("report", step, resident=ANNA, event_id="one", vehicle="v", **CHARGE)
    half_way = activities.by_event(f"app:{ANNA}", "one")
    assert half_way is not None
    assert half_way.state == "received"
    crediting.reverse(half_way, reason="wrong car", by="operator")
    assert crediting.resume(half_way).status == "reversed"
    found = activities.by_id(half_way.id)
    assert found is not None
    assert (found.status, found.points) == ("reversed", 0)


# Claims.


def test_a_meter_account_is_credited_once_a_month_whoever_pays() -> None:
    pay = {"amount_fen": 5_000, "meter_account": "3300-1"}
    assert tell("utility_pay_online", 1, "2026-05-01 00:00", **pay).mg == 89_000
    for who in (ANNA, BO):
        second = tell("utility_pay_online", 1, "2026-05-20 11:00", who=who, **pay)
        assert (second.status, second.reasons) == ("rejected", ("already_credited",))
    # Another account, and the same one the month before, are free.
    assert tell("utility_pay_online", 1, **{**pay, "meter_account": "3300-2"}).mg == 89_000
    assert tell("utility_pay_online", 1, "2026-04-30 23:59:59.999", **pay).mg == 89_000


def test_two_residents_race_for_one_invoice_and_one_gets_it() -> None:
    residents = [f"res_{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda who: tell("e_invoice", 1, who=who, invoice="I-1"), residents))
    assert sorted(one.status for one in told) == ["pending"] + ["rejected"] * 7


@pytest.mark.parametrize(
    ("behaviour", "first", "second"),
    [
        ("e_invoice", {"invoice": "1"}, {"invoice": "1"}),
        ("recycle_kg", {"slip": "1"}, {"slip": "1"}),
        ("carton_return", {"waybill": "1"}, {"waybill": "1"}),
        ("no_tableware", {"order": "1"}, {"order": "1"}),
        ("carpool_km", {"order": "1", "role": "driver"}, {"order": "1", "role": "passenger"}),
        (
            "e_statement",
            {"card": "1", "billing_month": "2026-04"},
            {"card": "1", "billing_month": "2026-04"},
        ),
        ("car_stop_day", {"vehicle": "1"}, {"vehicle": "1"}),
        ("ev_charge_kwh", {"vehicle": "1"}, {"vehicle": "1"}),
    ],
)
def test_what_has_a_number_of_its_own_is_credited_once_in_the_city(
    behaviour: str, first: dict[str, Any], second: dict[str, Any]
) -> None:
    assert tell(behaviour, 1, **first).mg > 0
    other = tell(behaviour, 1, "2026-05-20 10:00", who=BO, **second)
    assert other.reasons == ("already_credited",)


def test_the_same_order_number_of_two_kinds_of_claim_does_not_collide() -> None:
    assert tell("carpool_km", 5, order="1").mg > 0
    # A cinema, the railway and a kitchen number their orders by themselves.
    assert tell("ticket_online", 1, order="1").mg == 180_000
    assert tell("train_ticket_online", 1, order="1").mg == 136_000
    assert tell("no_tableware", 1, order="1").mg == 23_000


def test_a_car_charged_twice_a_day_belongs_to_one_resident_and_one_behaviour() -> None:
    assert tell("ev_charge_kwh", 2, "2026-05-20 07:00", vehicle="v").mg == 952_000
    assert tell("ev_charge_kwh", 2, "2026-05-20 09:00", vehicle="v").mg == 952_000
    assert tell("ev_km", 10, "2026-05-20 10:00", vehicle="v").reasons == ("already_credited",)
    assert tell("ev_km", 10, "2026-05-19 10:00", vehicle="v").mg == 790_000


def test_a_car_that_was_charged_or_driven_did_not_stay_at_home() -> None:
    assert tell("ev_charge_kwh", 2, "2026-05-20 07:00", vehicle="v").mg == 952_000
    assert tell("car_stop_day", 1, "2026-05-20 00:00", vehicle="v").reasons == ("already_credited",)
    assert tell("car_stop_day", 1, "2026-05-19 00:00", vehicle="v").mg == 2_396_000
    assert tell("ev_km", 10, "2026-05-19 09:00", who=BO, vehicle="v").reasons == (
        "already_credited",
    )


def test_a_vehicle_day_is_free_when_the_last_that_held_it_is_taken_back() -> None:
    charges = [tell("ev_charge_kwh", 2, f"2026-05-20 0{hour}:00", vehicle="v") for hour in (7, 9)]
    for charge in charges:
        assert tell("ev_km", 10, who=BO, vehicle="v").reasons == ("already_credited",)
        crediting.reverse(charge, reason="refund", by="operator")
        # One who still carries what it was does not take it again.
        assert crediting.resume(charge).status == "reversed"
    assert storage.database()["claims"].count_documents({}) == 0
    assert tell("ev_km", 10, who=BO, vehicle="v").mg == 790_000


def test_a_charge_beyond_the_cap_of_a_day_holds_no_vehicle() -> None:
    for hour in range(3):
        tell("ev_charge_kwh", 1, f"2026-05-20 0{hour}:00", vehicle=f"v{hour}")
    assert tell("ev_charge_kwh", 1, "2026-05-20 09:00", vehicle="v").reasons == ("day_count_cap",)
    assert tell("ev_charge_kwh", 1, "2026-05-20 09:00", who=BO, vehicle="v").mg == 476_000


def test_two_charges_that_take_a_vehicle_day_together_both_hold_it() -> None:
    with ThreadPoolExecutor(8) as pool:
        owners = list(pool.map(lambda n: claims.take("vehicle_day", "v", "me", f"a{n}"), range(8)))
    assert owners == ["me"] * 8
    for number in range(8):
        assert claims.take("vehicle_day", "v", "you") == "me"
        claims.release(f"a{number}")
    assert claims.take("vehicle_day", "v", "you") == "you"


def test_a_card_product_counts_once_in_a_life_but_for_everybody() -> None:
    assert tell("e_card", 1, "2026-04-20 08:00", card_product="green").mg == 89_000
    assert tell("e_card", 1, card_product="green").reasons == ("already_credited",)
    assert tell("e_card", 1, who=BO, card_product="green").mg == 89_000


def test_what_earned_nothing_claims_nothing() -> None:
    tell("bus_km", 10, minutes=30)
    overlapping = tell("carpool_km", 5, "2026-05-20 08:10", order="A-1")
    assert overlapping.reasons == ("overlapping_trip",)
    assert tell("carpool_km", 5, "2026-05-20 08:10", who=BO, order="A-1").mg == 365_000


def test_a_claim_that_is_released_is_free_for_the_next() -> None:
    assert claims.take("kind", "x", "a") == "a"
    assert claims.take("kind", "x", "a") == "a"
    assert claims.take("kind", "x", "b") == "a"
    assert claims.take("other", "x", "b") == "b"
    claims.release("a")
    claims.release("a")
    assert claims.take("kind", "x", "b") == "b"


# Trips.


@pytest.mark.parametrize(
    ("behaviour", "at", "minutes", "reasons"),
    [
        ("bus_km", "2026-05-20 08:29:59.999", 10, ("overlapping_trip",)),
        ("bike_km", "2026-05-20 07:50", 11, ("overlapping_trip",)),
        ("bike_km", "2026-05-20 07:50", 10, ()),
        ("bus_km", "2026-05-20 08:30", 10, ()),
        ("bus_km", "2026-05-20 08:15", None, ("overlapping_trip",)),
        # Steps are not a trip.
        ("walk_steps", "2026-05-20 08:15", 10, ()),
    ],
)
def test_a_resident_is_on_one_trip_at_a_time(
    behaviour: str, at: str, minutes: float | None, reasons: tuple[str, ...]
) -> None:
    tell("metro_km", 20, minutes=30)
    quantity = 100 if behaviour == "walk_steps" else 2
    told = tell(behaviour, quantity, at, minutes=minutes)
    assert told.reasons == reasons
    assert (told.mg == 0) == bool(reasons)
    assert tell(behaviour, quantity, at, minutes=minutes, who=BO).reasons == ()


def test_a_trip_over_midnight_is_in_the_way_of_both_days() -> None:
    assert tell("bus_km", 60, "2026-05-18 23:00", minutes=120).mg == 1_600_000
    assert tell("bus_km", 5, "2026-05-19 00:59").reasons == ("overlapping_trip",)
    assert tell("bus_km", 5, "2026-05-18 22:55", minutes=10).reasons == ("overlapping_trip",)
    assert tell("bus_km", 5, "2026-05-19 01:00").mg == 134_500


def test_a_trip_that_was_refused_or_taken_back_is_in_nobodys_way() -> None:
    first = tell("metro_km", 20, minutes=30)
    refused = tell("bus_km", 10, "2026-05-20 08:20", minutes=30)
    assert refused.reasons == ("overlapping_trip",)
    assert tell("bike_km", 3, "2026-05-20 08:35", minutes=15).reasons == ()
    crediting.reverse(first, reason="cancelled", by="operator")
    assert tell("bus_km", 2, "2026-05-20 08:10", minutes=5).reasons == ()


@pytest.mark.parametrize(
    ("behaviour", "minutes_after", "line", "reasons"),
    [
        ("bus_km", 9.99, "1", ("boarding_too_soon",)),
        ("bus_km", -9.99, "1", ("boarding_too_soon",)),
        ("bus_km", 10, "1", ()),
        ("bus_km", -10, "1", ()),
        ("bus_km", 5, "2", ()),
        ("bus_km", 5, None, ()),
        # Line 1 of the metro is another line.
        ("metro_km", 5, "1", ()),
    ],
)
def test_ten_minutes_lie_between_two_boardings_of_a_line(
    behaviour: str, minutes_after: float, line: str | None, reasons: tuple[str, ...]
) -> None:
    tell("bus_km", 5, line="1")
    attributes = {"line": line} if line else {}
    at = city("2026-05-20 08:00") + timedelta(minutes=minutes_after)
    assert tell(behaviour, 5, clock.cut(at), **attributes).reasons == reasons


def test_coming_from_the_metro_onto_a_bus_of_the_same_number_is_no_second_boarding() -> None:
    tell("metro_km", 5, line="1")
    assert tell("bus_km", 5, "2026-05-20 08:05", line="1").reasons == ()


# Steps.


def test_the_highest_step_total_of_a_day_counts() -> None:
    # 5,000 = 82,222 mg; 10,000 = 164,444; 20,000 = 296,000 (18,000).
    first = tell("walk_steps", 5_000, "2026-05-20 09:00", evidence="B")
    assert (first.mg, first.status) == (82_222, "pending")
    lower = tell("walk_steps", 4_000, "2026-05-20 09:30", evidence="B")
    assert (lower.mg, lower.status, lower.merged_into) == (0, "merged", first.id)
    higher = tell("walk_steps", 10_000, "2026-05-20 10:00", evidence="B")
    assert (higher.mg, higher.merged_into) == (164_444 - 82_222, None)
    most = tell("walk_steps", 20_000, "2026-05-20 11:00", evidence="B")
    assert (most.mg, most.reasons, most.status) == (296_000 - 164_444, ("step_limit",), "capped")
    assert day_mg(TODAY) == 296_000
    assert tell("walk_steps", 20_001, evidence="B").mg == 0
    assert tell("walk_steps", 5_000, "2026-05-19 09:00", evidence="B").mg == 82_222


def test_a_step_total_told_often_earns_what_it_earns_told_once() -> None:
    # 1,000 steps = 16,444 mg, 2,000 = 32,888, 18,000 = 296,000; rounded one by one 295 points.
    told = [tell("walk_steps", steps, evidence="B") for steps in (1_000, 2_000, 18_000)]
    assert [one.mg for one in told] == [16_444, 16_444, 263_112]
    assert [one.points for one in told] == [16, 16, 264]
    assert tell("walk_steps", 18_000, who=BO, evidence="B").points == 296
    # Taken back, the highest leaves what the others earned.
    assert crediting.reverse(told[2], reason="shaken", by="operator").points == 0
    assert statements.balance(ANNA).pending == 32


def test_a_step_total_taken_back_makes_room_for_a_true_one() -> None:
    wrong = tell("walk_steps", 18_000)
    crediting.reverse(wrong, reason="shaken", by="operator")
    true = tell("walk_steps", 8_000)
    assert (true.mg, true.status) == (131_555, "pending")  # 131,555.5
    assert day_mg(TODAY) == 131_555


def test_a_step_total_taken_back_long_ago_makes_room_as_well() -> None:
    wrong = tell("walk_steps", 18_000, "2026-05-05 20:00")
    crediting.reverse(wrong, reason="shaken", by="operator")
    assert tell("walk_steps", 8_000, "2026-05-05 20:00").mg == 131_555


def test_steps_faster_than_anybody_walks_are_credited_and_marked() -> None:
    told = tell("walk_steps", 9_001, "2026-05-20 09:00", minutes=45, evidence="B")
    # 9,001 x 296,000 / 18,000 = 148,016.4
    assert (told.status, told.mg, told.reasons) == ("pending", 148_016, ("step_cadence",))


# Caps over several arrivals.


@pytest.mark.parametrize("at", ["2026-05-20", "2026-05-05"])
def test_three_payments_a_day_at_one_merchant_count(at: str) -> None:
    def pay(hour: int, merchant: str, quantity: int = 1) -> Activity:
        return tell(
            "mobile_pay_offline",
            quantity,
            f"{at} {hour:02d}:00",
            amount_fen=1_000,
            merchant=merchant,
        )

    paid = [pay(hour, "noodles") for hour in range(4)]
    assert [one.mg for one in paid] == [5_000, 5_000, 5_000, 0]
    assert (paid[3].status, paid[3].reasons) == ("capped", ("same_merchant_cap",))
    five = pay(5, "fruit", 5)
    assert (five.mg, five.reasons) == (15_000, ("same_merchant_cap",))
    # No merchant, no limit but the day's ten: six are used.
    assert tell("mobile_pay_offline", 3, f"{at} 06:00", amount_fen=1_000).mg == 15_000
    crediting.reverse(paid[0], reason="refund", by="bank")
    assert pay(7, "noodles").mg == 5_000
    assert pay(8, "noodles").reasons == ("same_merchant_cap",)
    with clock.travel(DAY):
        assert tell("mobile_pay_offline", 1, amount_fen=1_000, merchant="noodles").mg == (
            5_000 if at == "2026-05-05" else 0
        )
    stored = repr([*storage.database()["activities"].find(), *storage.database()["entries"].find()])
    assert "noodles" not in stored
    the_books_hold()


def test_the_tenth_payment_counts_and_the_eleventh_does_not() -> None:
    told = [tell("mobile_pay_offline", 1, amount_fen=100) for _ in range(11)]
    assert [one.mg for one in told] == [5_000] * 10 + [0]
    assert (told[-1].status, told[-1].reasons) == ("capped", ("day_count_cap",))


def test_ten_kilograms_a_day_over_travel_and_payments() -> None:
    tell("ev_km", 60, "2026-05-20 01:00", minutes=60, vehicle="1")  # 4,000
    tell("ev_charge_kwh", 10, "2026-05-20 02:00", vehicle="2")  # 4,000
    last = tell("carpool_km", 40, "2026-05-20 04:00", minutes=60, order="1")  # 2,200: 2,000 fit
    assert (last.mg, last.reasons) == (2_000_000, ("day_gram_cap", "overall_day_cap"))
    assert tell("walk_steps", 18_000).mg == 0
    assert tell("online_transfer", 1).reasons == ("overall_day_cap",)
    # Green life has no part in it.
    assert tell("recycle_kg", 10).mg == 13_450_000
    assert day_mg(TODAY) == 23_450_000


def test_the_day_changes_at_midnight_of_the_city_to_the_millisecond() -> None:
    before = tell("online_transfer", 1, "2026-05-18 23:59:59.999")
    assert before.mg == 173_000
    assert tell("online_transfer", 1, "2026-05-18 00:00").reasons == ("day_count_cap",)
    assert tell("online_transfer", 1, "2026-05-19 00:00").mg == 173_000


def test_the_month_changes_at_midnight_of_the_city() -> None:
    for day in range(24, 32):
        with clock.travel(city(f"2026-05-{day} 12:00") - clock.now()):
            assert tell("online_transfer", 1, f"2026-05-{day} 10:00").mg == 173_000
    with clock.travel(city("2026-06-01 12:00") - clock.now()):
        # Eight in May, and a ninth that arrives in June.
        late = tell("online_transfer", 1, "2026-05-20 23:59:59.999")
        assert late.reasons == ("month_count_cap",)
        assert tell("online_transfer", 1, "2026-06-01 00:00").mg == 173_000


def test_a_leap_day_is_a_day_of_its_own() -> None:
    with clock.travel(city("2028-03-01 12:00") - clock.now()):
        leap = tell("online_transfer", 1, "2028-02-29 23:59:59.999")
        assert (leap.mg, leap.reasons) == (173_000, ("stale_factor",))
        assert tell("online_transfer", 1, "2028-03-01 00:00").mg == 173_000
        assert [entry.cap_day for entry in book.entries(ANNA)] == ["2028-02-29", "2028-03-01"]


def test_late_arrivals_count_in_the_caps_of_the_day_they_happened() -> None:
    # Fifteen days ago, long out of the state: its entries are summed.
    for number in range(12):
        told = tell("mobile_pay_offline", 1, f"2026-05-05 08:{number:02d}", amount_fen=100)
        assert told.mg == (5_000 if number < 10 else 0)
    assert tell("mobile_pay_offline", 1, amount_fen=100).mg == 5_000
    assert "2026-05-05" not in book.head(ANNA).after["caps"]["days"]


def test_late_arrivals_count_in_the_month_they_happened() -> None:
    # Stop-driving days in February (8 a month), in May: two months are kept, February is summed.
    for day in range(1, 10):
        told = tell("car_stop_day", 1, f"2026-02-{day:02d} 08:00", vehicle="v")
        assert (told.mg, told.status) == ((2_396_000, "credited") if day < 9 else (0, "capped"))


def test_the_state_keeps_three_days_and_two_months_and_stays_small() -> None:
    for day in range(0, 60, 2):
        with clock.travel(DAY * day):
            at = clock.now() - HOUR
            tell("bus_km", 5, at, line=str(day))
            tell("walk_steps", 9_000, at)
            tell("mobile_pay_offline", 1, at, amount_fen=100)
    after = book.head(ANNA).after
    # 20 May and 58 days are 17 July; the 16th is kept as well, but empty.
    assert sorted(after["caps"]["days"]) == ["2026-07-15", "2026-07-17"]
    assert sorted(after["caps"]["months"]) == ["2026-06", "2026-07"]
    assert len(bson.encode(after)) < 2_000
    the_books_hold()


def test_twelve_reports_at_once_never_exceed_a_cap() -> None:
    # 730 g a day for bicycles: 12 rides of 2 km = 97.4 g, seven of them fill 681.8 g.
    starts = [city("2026-05-19 06:00") + HOUR * number for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        told = list(pool.map(lambda at: patiently("bike_km", 2, at), starts))
    assert sum(one.mg for one in told) == lifetime_mg() == day_mg(date(2026, 5, 19)) == 730_000
    assert [entry.seq for entry in book.entries(ANNA)] == list(range(1, 13))
    the_books_hold()


def test_twelve_overlapping_trips_at_once_leave_one() -> None:
    with ThreadPoolExecutor(12) as pool:
        told = list(pool.map(lambda _: patiently("bike_km", 3, minutes=20), range(12)))
    assert sorted(one.status for one in told) == ["credited"] + ["rejected"] * 11


# Taking back.


def test_a_reversal_is_an_entry_that_names_the_old_one_and_takes_the_points_back() -> None:
    ride = tell("bus_km", "5.2")
    back = crediting.reverse(ride, reason="refunded", by="partner:bus")
    assert (back.status, back.reasons, back.mg, back.points) == ("reversed", ("reversed",), 0, 0)
    first, second = book.entries(ANNA)
    assert [tuple(line) for line in second.lines] == [
        ("co2e_mg", "baseline:city", 139_880, ""),
        ("co2e_mg", "reduction", -139_880, ""),
        ("points", "pending", -139, ""),
        ("points", "issued:city", 139, ""),
    ]
    assert (second.refs["reverses"], second.refs["reason"]) == (first.seq, "refunded")
    assert second.refs["by"] == "partner:bus"
    assert lifetime_mg() == day_mg(TODAY) == 0
    balance = statements.balance(ANNA)
    assert (balance.pending, balance.lifetime_earned, balance.owed) == (0, 0, 0)
    the_books_hold()


def test_taking_back_twice_changes_nothing() -> None:
    ride = tell("bus_km", "5.2")
    crediting.reverse(ride, reason="refunded", by="a")
    before = book.head(ANNA)
    again = crediting.reverse(ride, reason="refunded once more", by="b")
    assert (again.status, again.state) == ("reversed", activities.SETTLED)
    assert book.head(ANNA) == before


def test_what_was_spent_is_owed_and_recovered_from_later_earnings() -> None:
    ride = tell("bike_km", 10)  # 487 points, mature at once.
    spend(ANNA, 400)
    crediting.reverse(ride, reason="fraud", by="operator")
    balance = statements.balance(ANNA)
    assert (balance.available, balance.owed, balance.spent) == (0, 400, 400)
    tell("bike_km", 10, "2026-05-20 10:00")
    balance = statements.balance(ANNA)
    # 487 - 400
    assert (balance.available, balance.owed, balance.lifetime_earned) == (87, 0, 487)
    the_books_hold()


def spend(who: str, points: int) -> None:
    def decide(head: book.Head, now: datetime) -> book.Decision:
        wallet = Wallet.load(head.after)
        wallet.advance(now)
        wallet.spend(points)
        return book.Decision(tuple(wallet.lines), {"wallet": wallet.dump()})

    book.post(book.Ask(who, next(events), "spend", "f", NOW), decide)


@pytest.mark.parametrize("at", ["2026-05-20", "2026-05-05"])
def test_a_reversal_makes_room_for_later_arrivals_only(at: str) -> None:
    rides = [tell("bike_km", 10, f"{at} 0{hour}:00") for hour in (5, 6)]
    # 487,000 and what is left of 730,000.
    assert [ride.mg for ride in rides] == [487_000, 243_000]
    crediting.reverse(rides[0], reason="wrong", by="operator")
    assert lifetime_mg() == 243_000
    later = tell("bike_km", 10, f"{at} 08:00")
    assert later.mg == 487_000
    assert lifetime_mg() == 730_000


@pytest.mark.parametrize("at", ["2026-05-20", "2026-05-05"])
def test_a_stop_day_taken_back_covers_later_rides_no_more(at: str) -> None:
    stop = tell("car_stop_day", 1, f"{at} 00:00", vehicle="v")
    covered = tell("bus_km", 10, f"{at} 08:00")
    assert (covered.mg, covered.reasons) == (0, ("stop_day_covers",))
    crediting.reverse(stop, reason="the odometer moved", by="operator")
    assert tell("bus_km", 10, f"{at} 10:00").mg == 269_000
    # Two rides of 269 g are worth less than the day, and one of them earned nothing.
    assert tell("car_stop_day", 1, f"{at} 00:00", vehicle="v").mg == 2_396_000 - 269_000
    assert lifetime_mg() == 2_396_000


@pytest.mark.parametrize("at", ["2026-05-20", "2026-05-05"])
def test_a_stop_day_is_worth_the_same_whatever_was_taken_back_before(at: str) -> None:
    ride = tell("bike_km", 10, f"{at} 08:00")
    stop = tell("car_stop_day", 1, f"{at} 00:00", vehicle="v")
    assert (ride.mg, stop.mg) == (487_000, 1_909_000)
    crediting.reverse(ride, reason="cancelled", by="operator")
    # 50 km by metro are 2,335 g: with the 61 g that are left of the day 2,396 g.
    assert tell("metro_km", 50, f"{at} 09:00").mg == 487_000
    assert tell("bus_km", 10, f"{at} 12:00").mg == 208_000
    assert lifetime_mg() == 2_335_000 + 269_000
    the_books_hold()


def test_a_reversal_frees_the_claim() -> None:
    mine = tell("e_invoice", 1, invoice="1")
    crediting.reverse(mine, reason="void", by="operator")
    assert tell("e_invoice", 1, who=BO, invoice="1").mg == 5_000


@pytest.mark.parametrize("of", ["rejected", "recorded", "capped to nothing"])
def test_what_earned_nothing_cannot_be_taken_back(of: str) -> None:
    if of == "rejected":
        told = tell("bike_km", 99)
    elif of == "recorded":
        told = tell("bike_km", 3, evidence="D")
    else:
        tell("online_transfer", 1)
        told = tell("online_transfer", 1)
    seq = book.head(ANNA).seq
    with pytest.raises(NothingToReverse):
        crediting.reverse(told, reason="x", by="y")
    assert book.head(ANNA).seq == seq


def test_eight_threads_taking_back_one_ride_take_it_back_once() -> None:
    ride = tell("bus_km", "5.2")

    def back(_: int) -> str | None:
        for _try in range(20):
            try:
                return crediting.reverse(ride, reason="refund", by="operator").status
            except AccountBusy:
                continue
        raise AssertionError("still busy")

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(back, range(8))) == {"reversed"}
    assert (book.head(ANNA).seq, lifetime_mg()) == (2, 0)


# Milestones.


def test_each_kilogram_step_is_told_once_and_a_big_one_may_pass_several() -> None:
    assert milestones.of_resident(ANNA) == ([], 1)
    # 8 kg of recyclables = 10.76 kg: past 1, 5 and 10.
    tell("recycle_kg", 8, slip="1")
    reached, following = milestones.of_resident(ANNA)
    assert ([one.kg for one in reached], following) == ([1, 5, 10], 25)
    assert outbox.unread(ANNA) == 3
    first = activities.of_resident(ANNA, before=None, limit=1)[0]
    crediting.reverse(first, reason="void", by="operator")
    tell("recycle_kg", 8, slip="2")
    assert outbox.unread(ANNA) == 3


@pytest.mark.parametrize(
    ("before", "after", "steps"),
    [
        (0, 999_999, []),
        (999_999, 1_000_000, [1]),
        (1_000_000, 4_999_999, []),
        (0, 1_000_000_000, [1, 5, 10, 25, 50, 100, 200, 500, 1_000]),
        (5_000_000, 4_000_000, []),
    ],
)
def test_a_step_is_crossed_by_reaching_it(before: int, after: int, steps: list[int]) -> None:
    assert milestones.crossed(before, after) == steps


# Old factors.


def test_under_a_factor_past_its_review_points_are_earned_and_marked() -> None:
    with clock.travel(city("2028-06-29 12:00") - clock.now()):
        ride = tell("bus_km", "5.2", "2028-06-29 08:00")
        assert (ride.status, ride.reasons, ride.points) == ("pending", ("stale_factor",), 139)
        assert book.by_key(ANNA, f"activity:{ride.id}").refs["bank_grade"]  # type: ignore[union-attr]
    with clock.travel(city("2028-06-30 12:00") - clock.now()):
        ride = tell("bus_km", "5.2", "2028-06-30 08:00")
        assert ride.points == 139
        assert not book.by_key(ANNA, f"activity:{ride.id}").refs["bank_grade"]  # type: ignore[union-attr]


# Every reason.

OF_BILLS = {
    "needs_history",
    "no_saving",
    "saving_cap",
    "tier_3",
    "vacancy_review",
    "bill_estimated",
    "bill_history",
    "bill_month_credited",
    "bill_corrected",
    "vacant_home",
    "pv_home",
    "pv_certified",
    "no_own_use",
}
OF_REVIEWS = {"awaiting_review", "photo_not_accepted", "appeal_upheld"}
# Of points and not of grams: tests/test_earning.py.
OF_POINTS = {"budget_slowed", "budget_spent", "campaign_spent", "campaign_cap", "below_minimum"}
# What is told first, and what then earns the reason.
REACHED: dict[str, list[dict[str, Any]]] = {
    "in_the_future": [{"behaviour": "bus_km", "quantity": 5, "at": "2026-05-20 12:06"}],
    "too_old": [{"behaviour": "bike_km", "quantity": 5, "at": "2025-05-20 12:00"}],
    "behaviour_disabled": [{"behaviour": "clean_plate", "quantity": 1}],
    "evidence_not_accepted": [{"behaviour": "bus_km", "quantity": 5, "evidence": "D"}],
    "only_from_bills": [{"behaviour": "gas_saving", "quantity": 5}],
    "implausible_quantity": [{"behaviour": "walk_steps", "quantity": 60_001}],
    "implausible_speed": [{"behaviour": "bike_km", "quantity": 15, "minutes": 5}],
    "implausible_duration": [{"behaviour": "bus_km", "quantity": 5, "minutes": 1_441}],
    "quantity_not_whole": [{"behaviour": "etc_pass", "quantity": "1.5"}],
    "quantity_not_one": [{"behaviour": "e_invoice", "quantity": 2, "invoice": "1"}],
    "amount_too_small": [{"behaviour": "mobile_pay_offline", "quantity": 1, "amount_fen": 99}],
    "already_credited": [{"behaviour": "e_invoice", "quantity": 1, "invoice": "1"}] * 2,
    "overlapping_trip": [{"behaviour": "bus_km", "quantity": 5}] * 2,
    "boarding_too_soon": [
        {"behaviour": "bus_km", "quantity": 5, "line": "1"},
        {"behaviour": "bus_km", "quantity": 5, "line": "1", "at": "2026-05-20 08:05"},
    ],
    "same_trip": [
        {"behaviour": "bus_km", "quantity": 5},
        {"behaviour": "bus_km", "quantity": 5, "source": "partner:bus"},
    ],
    "lower_step_total": [{"behaviour": "walk_steps", "quantity": 5_000}] * 2,
    "step_limit": [{"behaviour": "walk_steps", "quantity": 18_001}],
    "day_count_cap": [{"behaviour": "no_tableware", "quantity": 4}],
    "month_count_cap": [
        {"behaviour": "e_card", "quantity": 1, "at": f"2026-05-1{n} 08:00", "card_product": f"{n}"}
        for n in (1, 2)
    ],
    "day_gram_cap": [{"behaviour": "bike_km", "quantity": 15}],
    "overall_day_cap": [
        {"behaviour": "ev_charge_kwh", "quantity": 10, "vehicle": "1"},
        {"behaviour": "ev_km", "quantity": 60, "vehicle": "2"},
        {"behaviour": "carpool_km", "quantity": 40, "at": "2026-05-20 10:00", "order": "1"},
    ],
    "same_merchant_cap": [
        {"behaviour": "mobile_pay_offline", "quantity": 1, "amount_fen": 100, "merchant": "m"}
    ]
    * 4,
    "step_cadence": [{"behaviour": "walk_steps", "quantity": 9_001, "minutes": 45}],
    "manual_part_dropped": [
        {"behaviour": "walk_steps", "quantity": 9_000, "manual_quantity": "1000"}
    ],
    "net_of_transit": [
        {"behaviour": "bus_km", "quantity": 5},
        {"behaviour": "car_stop_day", "quantity": 1, "vehicle": "1"},
    ],
    "stop_day_covers": [
        {"behaviour": "car_stop_day", "quantity": 1, "vehicle": "1"},
        {"behaviour": "bus_km", "quantity": 5},
    ],
}


def test_every_reason_an_activity_can_have_is_reached_by_a_test() -> None:
    """`stale_factor` and `reversed` above; bills, photos and appeals have tests of their own."""
    elsewhere = OF_BILLS | OF_REVIEWS | OF_POINTS | {"stale_factor", "reversed"}
    assert REACHED.keys() == reasons.REASONS.keys() - elsewhere


@pytest.mark.parametrize("reason", REACHED)
def test_each_reason_is_reached_and_only_where_it_applies(reason: str) -> None:
    told = [tell(**one) for one in REACHED[reason]]
    assert reason in told[-1].reasons
    for earlier in told[:-1]:
        assert reason not in earlier.reasons


# Any order, any number of times.

TOLD = {
    "bus_km": st.decimals("0.1", 60, places=1),
    "metro_km": st.decimals("0.1", 60, places=1),
    "bike_km": st.decimals("0.3", 15, places=1),
    "ev_charge_kwh": st.decimals("0.1", 9, places=1),
    "walk_steps": st.integers(1, 30_000),
    "recycle_kg": st.decimals("0.1", 20, places=1),
    "car_stop_day": st.just(1),
}
residents = (f"res_any_{number}" for number in itertools.count())


@st.composite
def a_few_activities(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Activities of two days, one kept in the state and one long gone, none of them overlapping."""
    told: list[dict[str, Any]] = []
    for day in ("2026-05-19", "2026-05-03"):
        for code in draw(st.lists(st.sampled_from(sorted(TOLD)), max_size=5)):
            if code == "car_stop_day" and any(
                one["behaviour"] == code and one["at"].startswith(day) for one in told
            ):
                continue
            told.append(
                {
                    "behaviour": code,
                    "quantity": draw(TOLD[code]),
                    "at": f"{day} {len(told):02d}:00",
                    "vehicle": code,
                }
            )
    return told


def live(who: str, told: list[dict[str, Any]]) -> dict[tuple[str, str], int]:
    """Tell all of it, and return the milligrams by day and dimension."""
    for number, one in enumerate(told):
        owned = {"vehicle": f"{who}/{one['vehicle']}"}
        event = f"{who}-{one['at']}"
        tell(**{**one, **owned}, who=who, event=event)
        assert number < 20
    return {day: day_mg(date.fromisoformat(day), who) for day in ("2026-05-19", "2026-05-03")}


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_neither_the_order_of_arrival_nor_a_replay_changes_what_a_day_is_worth(
    data: st.DataObject,
) -> None:
    told = data.draw(a_few_activities())
    shuffled = data.draw(st.permutations(told))
    one, other = next(residents), next(residents)
    worth = live(one, told)
    assert live(other, shuffled) == worth
    before = book.head(one)
    assert live(one, shuffled) == worth
    assert book.head(one) == before


def test_a_fact_is_kept_without_the_numbers_of_other_people() -> None:
    told = tell("recycle_kg", 1, slip="SLIP-77", category="paper")
    stored = storage.database()["activities"].find_one({"_id": told.id})
    assert stored is not None
    assert stored["attributes"] == {"category": "paper"}
    everything = repr([stored, *storage.database()["entries"].find()])
    assert "SLIP-77" not in everything
