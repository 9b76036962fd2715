"""The resident rules: what one unit is worth, what is implausible, and which caps bite.

Every milligram here is worked by hand from `resident_defaults.json`: quantity x f_mg_num/f_mg_den.
"""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounting import clock, quantities
from footprint import held, methodology, rules
from footprint.methodology import Behaviour
from footprint.rules import Counts, Credit, Report, Step
from points import earning

# Wednesday 20 May 2026, eight in the morning in the city.
MORNING = datetime(2026, 5, 20, 0, 0, tzinfo=UTC)
RULES = methodology.in_force(date(2026, 5, 20))
MINUTE, DAY, MS = timedelta(minutes=1), timedelta(days=1), timedelta(milliseconds=1)


def behaviour(code: str) -> Behaviour:
    return RULES.behaviours[code]


def report(code: str, quantity: object, minutes: float | None = None, **attributes: Any) -> Report:
    end = MORNING + timedelta(minutes=minutes) if minutes is not None else None
    return Report(code, Decimal(str(quantity)), MORNING, end, attributes)


def credit(code: str, quantity: object, day: Counts | None = None, **attributes: Any) -> Credit:
    what = report(code, quantity, **attributes)
    return rules.credit(RULES, behaviour(code), what, day or Counts())


# What one unit is worth.


@pytest.mark.parametrize(
    ("code", "quantity", "mg"),
    [
        # 10,000 x 296,000 / 18,000 = 164,444.4
        ("walk_steps", 10_000, 164_444),
        # 1 x 296,000 / 18,000 = 16.4
        ("walk_steps", 1, 16),
        ("bike_km", 1, 48_700),
        ("ebike_shared_km", 1, 48_700),
        ("bus_km", 1, 26_900),
        # 5.2 x 26,900
        ("bus_km", "5.2", 139_880),
        # 3.333333 x 26,900 = 89,666.6577
        ("bus_km", "3.333333", 89_666),
        ("metro_km", 1, 46_700),
        ("ev_km", 1, 79_000),
        ("ev_charge_kwh", 1, 476_000),
        ("carpool_km", 1, 73_000),
        ("car_stop_day", 1, 2_396_000),
        ("mobile_pay_offline", 1, 5_000),
        ("utility_pay_online", 1, 89_000),
        ("e_invoice", 1, 5_000),
        ("e_statement", 1, 24_000),
        ("e_card", 1, 89_000),
        ("online_transfer", 1, 173_000),
        ("etc_pass", 1, 23_000),
        ("ticket_online", 1, 180_000),
        ("train_ticket_online", 1, 136_000),
        ("hospital_booking", 1, 277_000),
        ("recycle_kg", 1, 1_345_000),
        # 0.7 x 1,345,000
        ("recycle_kg", "0.7", 941_500),
        # 0.000001 x 1,345,000 = 1.345: the smallest quantity is still a milligram.
        ("recycle_kg", "0.000001", 1),
        ("carton_return", 1, 37_000),
        ("no_tableware", 1, 23_000),
    ],
)
def test_one_unit_is_worth_what_was_published(code: str, quantity: object, mg: int) -> None:
    assert credit(code, quantity) == Credit(mg, 1, mg, (), (Step("formula", mg),))


def test_every_behaviour_that_can_be_reported_stands_in_the_table_above() -> None:
    marks = test_one_unit_is_worth_what_was_published.pytestmark  # type: ignore[attr-defined]
    tabled = {case[0] for case in marks[0].args[1]}
    listed = {one.code for one in RULES.behaviours.values() if one.enabled and not one.from_bills}
    assert tabled == listed


def points_for(mg: int) -> int:
    """What the shipped rule gives a resident for a bus ride, with no campaign."""
    nobody = earning.Who(None, date(2026, 1, 1), None)
    earned = earning.earn(
        mg,
        "bus_km",
        date(2026, 5, 20),
        earning.Terms(earning.shipped()),
        now=MORNING,
        who=lambda: nobody,
        used=lambda campaign, day: (0, 0),
    )
    return earned.points


def test_a_bus_ride_of_five_kilometres_is_139_points() -> None:
    mg = credit("bus_km", "5.2").mg
    # 139.88 g at one point a gram, rounded down.
    assert points_for(mg) == 139


@pytest.mark.parametrize(
    ("mg", "points"), [(0, 0), (999, 0), (1_000, 1), (1_999, 1), (2_396_000, 2_396)]
)
def test_a_point_is_a_whole_gram(mg: int, points: int) -> None:
    assert points_for(mg) == points


@pytest.mark.parametrize(
    ("code", "trips", "mg"),
    [("bus_km", 1, 80_000), ("bus_km", 2, 160_000), ("metro_km", 1, 46_000)],
)
def test_a_trip_of_unknown_length_has_its_own_value(code: str, trips: int, mg: int) -> None:
    assert credit(code, trips, trip=True) == Credit(mg, trips, mg, (), (Step("formula", mg),))


@pytest.mark.parametrize(
    ("steps", "mg", "reasons"),
    [
        (18_000, 296_000, ()),
        (18_001, 296_000, ("step_limit",)),
        (30_000, 296_000, ("step_limit",)),
    ],
)
def test_18000_steps_are_exactly_296_grams_and_no_more(
    steps: int, mg: int, reasons: tuple[str, ...]
) -> None:
    got = credit("walk_steps", steps)
    assert (got.mg, got.reasons) == (mg, reasons)


@given(
    quantity=st.decimals(0, 1_000_000, places=6),
    code=st.sampled_from(sorted(RULES.behaviours)),
)
def test_a_calculation_is_rounded_down_once(quantity: Decimal, code: str) -> None:
    one = behaviour(code)
    mg = rules.quantify(one, quantity)
    counted = min(quantity, Decimal(one.step_limit)) if one.step_limit else quantity
    # In whole millionths, so that nothing but integers is compared.
    worth = int(counted * 1_000_000) * one.mg_num
    assert mg * one.mg_den * 1_000_000 <= worth < (mg + 1) * one.mg_den * 1_000_000


@pytest.mark.parametrize("quantity", ["0", "5.2", "0.000001", "999999999.999999"])
def test_a_quantity_is_the_same_after_it_was_stored_as_millionths(quantity: str) -> None:
    assert quantities.from_micro(quantities.micro(Decimal(quantity))) == Decimal(quantity)


def test_a_quantity_with_seven_places_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError):
        quantities.micro(Decimal("0.0000001"))


# Caps of counts.


@pytest.mark.parametrize(
    ("code", "quantity", "day", "counted", "mg", "reasons"),
    [
        # Quantities are counted where the unit is a count: 10 payments of 5 g a day.
        ("mobile_pay_offline", 3, Counts(used=7, mg=35_000), 3, 15_000, ()),
        ("mobile_pay_offline", 5, Counts(used=7, mg=35_000), 3, 15_000, ("day_count_cap",)),
        ("mobile_pay_offline", 1, Counts(used=10, mg=50_000), 0, 0, ("day_count_cap",)),
        ("mobile_pay_offline", 12, Counts(), 10, 50_000, ("day_count_cap",)),
        # Records are counted where it is not: the tenth ride counts, the eleventh does not.
        ("bike_km", 1, Counts(used=9, mg=9 * 48_700), 1, 48_700, ()),
        ("bike_km", 1, Counts(used=10, mg=10 * 48_700), 0, 0, ("day_count_cap",)),
        # With `trip` the trips are counted, together with the rides of known length.
        ("bus_km", 6, Counts(used=4), 2, 160_000, ("day_count_cap",)),
        # The month: 8 stop-driving days; 10 train tickets, of which 2 a day.
        ("car_stop_day", 1, Counts(month_used=7), 1, 2_396_000, ()),
        ("car_stop_day", 1, Counts(month_used=8), 0, 0, ("month_count_cap",)),
        ("train_ticket_online", 2, Counts(month_used=9), 1, 136_000, ("month_count_cap",)),
        # Both bite: 3 asked, 2 left today, 1 left this month.
        (
            "train_ticket_online",
            3,
            Counts(month_used=9),
            1,
            136_000,
            ("day_count_cap", "month_count_cap"),
        ),
        # No daily count, 2 statements a month, 24 g a day.
        ("e_statement", 1, Counts(month_used=1), 1, 24_000, ()),
        ("e_statement", 1, Counts(month_used=2), 0, 0, ("month_count_cap",)),
    ],
)
def test_counts_are_capped_by_day_and_month(
    code: str, quantity: int, day: Counts, counted: int, mg: int, reasons: tuple[str, ...]
) -> None:
    got = credit(code, quantity, day, **({"trip": True} if code == "bus_km" else {}))
    assert (got.counted, got.mg, got.reasons) == (counted, mg, reasons)


@pytest.mark.parametrize(
    ("payments", "used", "same_used", "counted", "reasons"),
    [
        (1, 2, 2, 1, ()),
        (1, 3, 3, 0, ("same_merchant_cap",)),
        (5, 0, 0, 3, ("same_merchant_cap",)),
        # Two are left of the day, one at this merchant.
        (3, 8, 2, 1, ("day_count_cap", "same_merchant_cap")),
    ],
)
def test_three_payments_a_day_count_at_one_merchant(
    payments: int, used: int, same_used: int, counted: int, reasons: tuple[str, ...]
) -> None:
    what = replace(report("mobile_pay_offline", payments), same="m")
    day = Counts(used=used, mg=used * 5_000, same_used=same_used)
    got = rules.credit(RULES, behaviour("mobile_pay_offline"), what, day)
    assert (got.counted, got.mg, got.reasons) == (counted, counted * 5_000, reasons)


# Caps of grams.


@pytest.mark.parametrize(
    ("code", "quantity", "day", "mg", "reasons"),
    [
        # A bike's 730 g: 14.98 km = 729.526 g, 15 km = 730.5 g.
        ("bike_km", "14.98", Counts(), 729_526, ()),
        ("bike_km", 15, Counts(), 730_000, ("day_gram_cap",)),
        ("bike_km", 1, Counts(used=1, mg=700_000), 30_000, ("day_gram_cap",)),
        ("bike_km", 1, Counts(used=1, mg=730_000), 0, ("day_gram_cap",)),
        # 4,000 g of driving: 50 km = 3,950 g.
        ("ev_km", 50, Counts(), 3_950_000, ()),
        ("ev_km", 51, Counts(), 4_000_000, ("day_gram_cap",)),
        # Travel and payments together: 10,000 g.
        ("bus_km", 10, Counts(overall_mg=9_731_000), 269_000, ()),
        ("bus_km", 10, Counts(overall_mg=9_900_000), 100_000, ("overall_day_cap",)),
        ("mobile_pay_offline", 1, Counts(overall_mg=9_999_000), 1_000, ("overall_day_cap",)),
        ("online_transfer", 1, Counts(overall_mg=10_000_000), 0, ("overall_day_cap",)),
        # Steps are travel as well: 164.444 g of which 44.444 g have room.
        ("walk_steps", 10_000, Counts(overall_mg=9_955_556), 44_444, ("overall_day_cap",)),
        # Green life is not: 20 kg of recyclables are 26.9 kg, its own cap is 27 kg.
        ("recycle_kg", 20, Counts(overall_mg=10_000_000), 26_900_000, ()),
        ("recycle_kg", 20, Counts(used=1, mg=26_900_000), 100_000, ("day_gram_cap",)),
        # Own cap first, then the overall one.
        (
            "ev_km",
            51,
            Counts(overall_mg=7_000_000),
            3_000_000,
            ("day_gram_cap", "overall_day_cap"),
        ),
    ],
)
def test_grams_are_capped_by_behaviour_and_over_travel_and_payments(
    code: str, quantity: object, day: Counts, mg: int, reasons: tuple[str, ...]
) -> None:
    got = credit(code, quantity, day)
    assert (got.mg, got.reasons) == (mg, reasons)


def test_the_working_names_each_step_with_its_limit() -> None:
    assert credit("ev_km", 51, Counts(overall_mg=7_000_000)).steps == (
        Step("formula", 4_029_000),
        Step("day_gram_cap", 4_000_000, 4_000_000),
        Step("overall_day_cap", 3_000_000, 3_000_000),
    )


# The day the car stayed at home: 2,396 g less what transit and cycling were worth.


def refs_of(number: int, code: str, got: Credit) -> dict[str, Any]:
    """What an entry would keep of it."""
    return {
        "activity": f"act_{number}",
        "behaviour": code,
        "status": "credited",
        "mg": got.mg,
        "counted": got.counted,
        "gross_mg": got.gross_mg,
        "covered_mg": got.covered_mg,
        "best": None,
        "overall": behaviour(code).dimension in RULES.overall_dimensions,
    }


def day_of(*arrivals: tuple[str, object]) -> int:
    """The milligrams of one day, its activities judged in this order, as `intake` counts them."""
    so_far: held.Held = {}
    credited = 0
    for number, (code, quantity) in enumerate(arrivals):
        one = behaviour(code)
        day = held.counts(so_far, one, RULES, 0)
        got = rules.credit(RULES, one, report(code, quantity), day)
        credited += got.mg
        held.count(so_far, refs_of(number, code, got), RULES)
    return credited


STOP, BUS_10, BIKE_10 = ("car_stop_day", 1), ("bus_km", 10), ("bike_km", 10)


@pytest.mark.parametrize(
    ("arrivals", "mg"),
    [
        # A bus ride of 269 g and a bike ride of 487 g lie within the 2,396 g,
        ([STOP, BUS_10, BIKE_10], 2_396_000),
        ([BUS_10, STOP, BIKE_10], 2_396_000),
        ([BUS_10, BIKE_10, STOP], 2_396_000),
        # 50 km by metro are 2,335 g, 756 g more make 3,091 g: more than the day itself.
        ([STOP, ("metro_km", 50), BUS_10, BIKE_10], 3_091_000),
        ([BUS_10, ("metro_km", 50), STOP, BIKE_10], 3_091_000),
        ([("metro_km", 50), BUS_10, BIKE_10, STOP], 3_091_000),
        # The metro's own cap of 2,400 g holds whether or not the day covered a part of it.
        ([("metro_km", 60), ("metro_km", 60), STOP], 2_400_000),
        ([("metro_km", 60), STOP, ("metro_km", 60)], 2_400_000),
        ([STOP, ("metro_km", 60), ("metro_km", 60)], 2_400_000),
        # 4,000 + 2,200 g of driving and carpooling beside them: max(2,396, 2,400) + 6,200.
        ([STOP, ("ev_km", 60), ("carpool_km", 40), ("metro_km", 60)], 8_600_000),
        ([("metro_km", 60), ("ev_km", 60), ("carpool_km", 40), STOP], 8_600_000),
        # Charging (4,000 g) as well: 10,200 g and 2,396 g stop at 10,000 g.
        (
            [("ev_km", 60), ("ev_charge_kwh", 10), ("carpool_km", 40), STOP, BUS_10],
            10_000_000,
        ),
        # A car does not stay at home twice.
        ([STOP, STOP], 2_396_000),
    ],
)
def test_a_stop_day_and_transit_give_the_same_in_whichever_order(
    arrivals: list[tuple[str, object]], mg: int
) -> None:
    assert day_of(*arrivals) == mg


def test_each_activity_of_a_stop_day_says_what_was_taken_off() -> None:
    after_transit = credit("car_stop_day", 1, Counts(netted_mg=756_000, earned_mg=756_000))
    # 2,396 - 756
    assert (after_transit.mg, after_transit.reasons) == (1_640_000, ("net_of_transit",))
    covered = credit("bus_km", 10, Counts(stop_factor_mg=2_396_000, earned_mg=2_396_000))
    assert (covered.mg, covered.gross_mg, covered.reasons) == (0, 269_000, ("stop_day_covers",))
    day = Counts(stop_factor_mg=2_396_000, netted_mg=2_335_000, earned_mg=2_396_000)
    partly = credit("bus_km", 10, day)
    # 2,396 - 2,335 = 61 g are still covered, 269 - 61 are not.
    assert (partly.mg, partly.gross_mg) == (208_000, 269_000)
    beyond = credit("car_stop_day", 1, Counts(netted_mg=3_091_000, earned_mg=3_091_000))
    assert (beyond.mg, beyond.counted) == (0, 1)


def test_what_was_taken_back_of_a_stop_day_is_made_up_for_by_what_comes_later() -> None:
    # A bike ride of 487 g, then the day: 1,909 g. Without the ride the day has 487 g too little,
    lone = Counts(stop_factor_mg=2_396_000, earned_mg=1_909_000)
    # so a ride of 269 g counts in full, and of one of 535.7 g what makes it 2,396.
    assert credit("bus_km", 10, lone).mg == 269_000
    assert credit("bike_km", 11, lone).mg == 487_000
    # A day taken back that had covered a ride of 269 g: a new one earns all of 2,396 g.
    assert credit("car_stop_day", 1, Counts(netted_mg=269_000)).mg == 2_396_000


# Marks.


@pytest.mark.parametrize(
    ("steps", "minutes", "flags"),
    [
        (9_000, 45, ()),
        (9_001, 45, ("step_cadence",)),
        (1, 0, ("step_cadence",)),
        (60_000, None, ()),
    ],
)
def test_more_than_200_steps_a_minute_are_marked(
    steps: int, minutes: float | None, flags: tuple[str, ...]
) -> None:
    what = report("walk_steps", steps, minutes)
    assert rules.flags(behaviour("walk_steps"), what) == flags
    assert verdict(what, evidence="B", received_at=MORNING + DAY)[0] is None


def test_of_a_health_total_the_part_entered_by_hand_is_left_out() -> None:
    whole = report("walk_steps", 10_000)
    part = rules.without_manual(whole, Decimal("1200.0"))
    assert (part.quantity, part.attributes) == (8_800, {"manual_quantity": "1200"})
    assert rules.flags(behaviour("walk_steps"), part) == ("manual_part_dropped",)
    assert rules.without_attributes(part) == part
    # All of it, or nothing: it stays as it was told.
    assert rules.without_manual(whole, Decimal(10_000)) == whole
    assert rules.without_manual(whole, None) == whole


# Steps: the highest total of the day.


def test_a_higher_step_total_posts_the_difference_and_a_lower_one_nothing() -> None:
    # 5,000 steps = 82,222 mg (82,222.2); 10,000 = 164,444; the difference is 82,222.
    first = Counts(used=1, mg=82_222, best=Decimal(5_000), best_of="act_1")
    higher = credit("walk_steps", 10_000, first)
    assert (higher.mg, higher.counted, higher.merged_into) == (82_222, 1, None)
    assert higher.steps == (Step("formula", 164_444), Step("less_lower_total", 82_222))
    for steps in (4_999, 5_000):
        lower = credit("walk_steps", steps, first)
        assert (lower.mg, lower.counted, lower.reasons) == (0, 0, ("lower_step_total",))
        assert lower.merged_into == "act_1"


def test_after_a_reversal_a_step_total_posts_the_difference_to_what_the_day_is_still_worth() -> (
    None
):
    # 5,000 and then 10,000 steps; the second was taken back, so the day is worth 82,222 mg.
    left = Counts(used=1, mg=82_222)
    assert credit("walk_steps", 8_000, left).mg == 131_555 - 82_222  # 8,000 = 131,555.5
    assert credit("walk_steps", 4_000, left).reasons == ("lower_step_total",)
    # The first was taken back instead: 82,222 mg of the second are left, its total still counts.
    second = Counts(used=1, mg=82_222, best=Decimal(10_000), best_of="act_2")
    assert credit("walk_steps", 12_000, second).mg == 197_333 - 82_222  # 12,000 = 197,333.3
    assert credit("walk_steps", 9_000, second).mg == 0


# One report by itself: the window.


def verdict(
    what: Report, *, evidence: str = "A", received_at: datetime = MORNING + 2 * timedelta(hours=1)
) -> tuple[str | None, tuple[str, ...]]:
    found = rules.assess(
        RULES, behaviour(what.behaviour), what, evidence=evidence, received_at=received_at
    )
    return found.verdict, found.reasons


@pytest.mark.parametrize(("evidence", "days"), [("A", 180), ("B", 30), ("C", 30), ("D", 30)])
def test_the_window_ends_to_the_millisecond(evidence: str, days: int) -> None:
    ride = report("bike_km", 3)
    age = timedelta(days=days)
    _, reasons = verdict(ride, evidence=evidence, received_at=MORNING + age)
    assert "too_old" not in reasons
    rejected, reasons = verdict(ride, evidence=evidence, received_at=MORNING + age + MS)
    assert (rejected, reasons) == ("rejected", ("too_old",))


def test_a_clock_may_run_five_minutes_ahead_and_the_end_of_a_trip_counts_too() -> None:
    assert verdict(report("bike_km", 3), received_at=MORNING - 5 * MINUTE) == (None, ())
    assert verdict(report("bike_km", 3), received_at=MORNING - 5 * MINUTE - MS) == (
        "rejected",
        ("in_the_future",),
    )
    ride = report("bike_km", 3, minutes=20)
    assert verdict(ride, received_at=MORNING + 15 * MINUTE) == (None, ())
    assert verdict(ride, received_at=MORNING + 15 * MINUTE - MS)[1] == ("in_the_future",)


# Plausibility.


@pytest.mark.parametrize(
    ("what", "reasons"),
    [
        (report("bike_km", "0.3"), ()),
        (report("bike_km", "0.299999"), ("implausible_quantity",)),
        (report("bike_km", 15), ()),
        (report("bike_km", "15.000001"), ("implausible_quantity",)),
        (report("walk_steps", 60_000), ()),
        (report("walk_steps", 60_001), ("implausible_quantity",)),
        (report("recycle_kg", 20), ()),
        (report("recycle_kg", "20.000001"), ("implausible_quantity",)),
        (report("ev_charge_kwh", 150, vehicle="v"), ()),
        (report("ev_charge_kwh", 151, vehicle="v"), ("implausible_quantity",)),
        # 4 to 25 km/h by bicycle: 5 km in 12 minutes are 25 km/h, in 75 minutes 4 km/h.
        (report("bike_km", 5, minutes=12), ()),
        (report("bike_km", 5, minutes=11.99), ("implausible_speed",)),
        (report("bike_km", 5, minutes=75), ()),
        (report("bike_km", 5, minutes=75.01), ("implausible_speed",)),
        (report("bike_km", 5, minutes=0), ("implausible_speed",)),
        # A bus has no lower limit, 100 km/h above: 50 km in half an hour.
        (report("bus_km", 50, minutes=30), ()),
        (report("bus_km", "50.000001", minutes=30), ("implausible_speed",)),
        # Trips of unknown length have no speed and no length.
        (report("bus_km", 3, minutes=1, trip=True), ()),
        (report("bus_km", 1, minutes=24 * 60), ()),
        (report("bus_km", 1, minutes=24 * 60 + 0.001), ("implausible_duration",)),
        (report("walk_steps", "1.5"), ("quantity_not_whole",)),
        (report("mobile_pay_offline", "1.5", amount_fen=100), ("quantity_not_whole",)),
        (report("bus_km", "1.5", trip=True), ("quantity_not_whole",)),
        (report("mobile_pay_offline", 2, amount_fen=100), ()),
        (report("mobile_pay_offline", 1, amount_fen=99), ("amount_too_small",)),
        (report("e_invoice", 2), ()),
        (report("e_invoice", 1, invoice="i"), ()),
        (report("e_invoice", 2, invoice="i"), ("quantity_not_one",)),
        # Everything that is wrong is said at once.
        (
            report("utility_pay_online", "1.5", amount_fen=1, meter_account="m"),
            ("quantity_not_whole", "quantity_not_one", "amount_too_small"),
        ),
    ],
)
def test_what_one_record_can_be(what: Report, reasons: tuple[str, ...]) -> None:
    received_at = MORNING + 2 * DAY
    expected = ("rejected", reasons) if reasons else (None, ())
    assert verdict(what, received_at=received_at) == expected


@pytest.mark.parametrize(
    ("what", "evidence", "expected"),
    [
        (report("bike_km", 3), "B", (None, ())),
        (report("bike_km", 3), "C", ("recorded", ("evidence_not_accepted",))),
        (report("walk_steps", 9_000), "D", ("recorded", ("evidence_not_accepted",))),
        (report("bus_km", 3), "B", ("recorded", ("evidence_not_accepted",))),
        (report("car_stop_day", 1, vehicle="v"), "C", (None, ())),
        (report("car_stop_day", 1, vehicle="v"), "B", ("recorded", ("evidence_not_accepted",))),
        (report("electricity_saving", 30), "A", ("recorded", ("only_from_bills",))),
        (report("rooftop_pv_self_use", 30), "A", ("recorded", ("only_from_bills",))),
        (report("clean_plate", 1), "A", ("rejected", ("behaviour_disabled",))),
        # A refusal weighs more than weak evidence.
        (report("bike_km", 99), "D", ("rejected", ("implausible_quantity",))),
    ],
)
def test_evidence_decides_whether_it_is_credited_or_only_recorded(
    what: Report, evidence: str, expected: tuple[str | None, tuple[str, ...]]
) -> None:
    assert verdict(what, evidence=evidence) == expected


# Overlap.


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (20, 30, False),  # The other begins when this one ends.
        (19.999, 30, True),
        (-10, 0, False),
        (-10, 0.001, True),
        (5, 6, True),
        (-5, 50, True),
        (20, 20, False),
        (0, 0, True),  # A boarding without an end lasts one millisecond.
    ],
)
def test_two_trips_overlap_when_they_share_an_instant(
    start: float, end: float, expected: bool
) -> None:
    mine = report("bike_km", 3, minutes=20)
    times = [MORNING + timedelta(minutes=minutes) for minutes in (start, end)]
    assert rules.overlaps(mine, *times) is expected
    other = replace(mine, start=times[0], end=times[1])
    assert rules.overlaps(other, mine.start, mine.over) is expected


# The city's days and months.


@pytest.mark.parametrize(
    ("instant", "day"),
    [
        ("2026-05-20T15:59:59.999+00:00", date(2026, 5, 20)),
        ("2026-05-20T16:00:00.000+00:00", date(2026, 5, 21)),
        ("2026-05-31T15:59:59.999+00:00", date(2026, 5, 31)),
        ("2026-05-31T16:00:00.000+00:00", date(2026, 6, 1)),
        ("2028-02-28T16:00:00.000+00:00", date(2028, 2, 29)),
        ("2028-02-29T15:59:59.999+00:00", date(2028, 2, 29)),
        ("2028-02-29T16:00:00.000+00:00", date(2028, 3, 1)),
        ("2026-12-31T23:59:59.999+08:00", date(2026, 12, 31)),
        ("2027-01-01T00:00:00.000+08:00", date(2027, 1, 1)),
    ],
)
def test_a_day_of_the_city_begins_at_four_in_the_afternoon_utc(instant: str, day: date) -> None:
    when = datetime.fromisoformat(instant)
    assert clock.city_day(when) == day
    assert clock.start_of(day) <= when < clock.start_of(day + DAY)
    assert clock.city_month(when) == f"{day.year:04d}-{day.month:02d}"


@pytest.mark.parametrize(
    ("month", "count", "expected", "last"),
    [
        ("2026-11", 24, "2028-11", date(2028, 11, 30)),
        ("2026-02", 24, "2028-02", date(2028, 2, 29)),
        ("2026-12", 1, "2027-01", date(2027, 1, 31)),
        ("2026-01", -12, "2025-01", date(2025, 1, 31)),
        ("2026-01", -1, "2025-12", date(2025, 12, 31)),
    ],
)
def test_months_are_counted_over_the_turn_of_the_year(
    month: str, count: int, expected: str, last: date
) -> None:
    assert clock.add_months(month, count) == expected
    assert clock.last_day(expected) == last


def test_an_instant_is_cut_to_milliseconds_not_rounded() -> None:
    fine = datetime(2026, 5, 20, 8, 0, 0, 999_999, tzinfo=clock.CITY)
    assert clock.cut(fine) == datetime(2026, 5, 20, 0, 0, 0, 999_000, tzinfo=UTC)
    with pytest.raises(AssertionError):
        clock.cut(fine.replace(tzinfo=None))


# What is kept of a report.


def test_numbers_of_other_people_are_not_kept() -> None:
    what = report("recycle_kg", 1, category="paper", slip="123", vehicle="浙H12345", trip=True)
    assert rules.without_attributes(what).attributes == {"trip": True, "category": "paper"}


# The order of arrival.

GRAM_CAPPED = {
    "ev_km": st.decimals("0.1", 60, places=2),
    "carpool_km": st.decimals("0.1", 30, places=2),
    "metro_km": st.decimals("0.1", 40, places=2),
    "bus_km": st.decimals("0.1", 40, places=2),
    "bike_km": st.decimals("0.3", 15, places=2),
    "ev_charge_kwh": st.decimals("0.1", 9, places=2),
    "recycle_kg": st.decimals("0.1", 20, places=2),
}


@st.composite
def shuffled_days(draw: st.DrawFn) -> tuple[list[tuple[str, object]], list[tuple[str, object]]]:
    """A day within its count caps (at most 3 records a behaviour), and the same day shuffled."""
    day: list[tuple[str, object]] = []
    for code, quantity in GRAM_CAPPED.items():
        day += [(code, one) for one in draw(st.lists(quantity, max_size=3))]
    if draw(st.booleans()):
        day.append(STOP)
    return day, draw(st.permutations(day))


@given(shuffled_days())
def test_the_order_of_arrival_does_not_change_what_a_day_is_worth(
    days: tuple[list[tuple[str, object]], list[tuple[str, object]]],
) -> None:
    assert day_of(*days[0]) == day_of(*days[1])
