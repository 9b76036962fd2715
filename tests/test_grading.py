"""The personal grade: the policy's edges, what counts, and that it follows from the book.

Cut-offs 50 and 100 kg, one behaviour at most 40 % of the raw total, at least 3 active months.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounting import book, clock, grading, outbox, storage
from accounting.grading import UNRATED, Policy, stand
from footprint import grade, grade_changes, summaries, upkeep
from footprint.activities import Activity
from footprint.rules import Report
from points import crediting

KG, DAY = 1_000_000, timedelta(days=1)
ANNA = "res_anna"
POLICY = grade.policy_on(date(2026, 5, 20))
events = (f"event-{number}" for number in itertools.count())


def three(kg: str) -> dict[str, int]:
    """An amount over three behaviours, none of them above 40 %."""
    mg = int(Decimal(kg) * KG)
    return {"bus_km": mg // 3, "bike_km": mg // 3, "recycle_kg": mg - 2 * (mg // 3)}


# The policy that ships.


def test_the_policy_has_the_settled_numbers() -> None:
    assert POLICY.version == "QZ-GRADE-2026.1"
    assert POLICY.cut_offs == ((0, "light"), (50 * KG, "mid"), (100 * KG, "deep"))
    assert (POLICY.months_back, POLICY.active_months_min, POLICY.gradings_below) == (12, 3, 2)
    assert (POLICY.share_num, POLICY.share_den) == (40, 100)
    assert grade.label(POLICY, "deep") == {"zh": "深绿", "en": "Deep green"}
    assert grade.label(POLICY, UNRATED)["zh"] == "未评级"
    assert grade.policy_named(POLICY.version) is POLICY


# Pure arithmetic.


@pytest.mark.parametrize(
    ("kg", "expected", "below_mg", "next_mg", "next_grade"),
    [
        ("0.000003", "light", 3, 49_999_997, "mid"),
        ("49.999", "light", 49_999_000, 1_000, "mid"),
        ("49.999999", "light", 49_999_999, 1, "mid"),
        ("50", "mid", 0, 50 * KG, "deep"),
        ("99.999999", "mid", 49_999_999, 1, "deep"),
        ("100", "deep", 0, None, None),
        ("250", "deep", 150 * KG, None, None),
    ],
)
def test_a_grade_holds_from_its_cut_off_on_to_the_milligram(
    kg: str, expected: str, below_mg: int, next_mg: int | None, next_grade: str | None
) -> None:
    got = stand(POLICY, three(kg), 3)
    assert (got.grade, got.margin_below_mg) == (expected, below_mg)
    assert (got.to_next_mg, got.next_grade) == (next_mg, next_grade)
    assert got.reduction_mg == got.counted_mg == Decimal(kg) * KG


def test_104_7_kg_with_60_from_one_behaviour_count_less() -> None:
    """The worked example of Wendeng's 104.7 kg, 60 of them by electric car."""
    got = stand(POLICY, {"ev_km": 60_000_000, "bus_km": 30_000_000, "recycle_kg": 14_700_000}, 12)
    # 40 % of 104.7 kg are 41.88 kg; 41.88 + 30 + 14.7 = 86.58 kg: mid, not deep.
    assert (got.reduction_mg, got.counted_mg, got.grade) == (104_700_000, 86_580_000, "mid")
    assert (got.margin_below_mg, got.to_next_mg) == (36_580_000, 13_420_000)


def test_one_behaviour_alone_counts_forty_percent_rounded_down() -> None:
    # floor(0.4 x 124,999,999) = 49,999,999: a milligram short of mid.
    assert stand(POLICY, {"bus_km": 124_999_999}, 12).counted_mg == 49_999_999
    assert stand(POLICY, {"bus_km": 124_999_999}, 12).grade == "light"
    assert stand(POLICY, {"bus_km": 125 * KG}, 12).grade == "mid"


@given(
    st.dictionaries(st.sampled_from(["a", "b", "c", "d", "e"]), st.integers(0, 10**9), max_size=5)
)
def test_no_behaviour_counts_more_than_its_share_of_the_raw_total(amounts: dict[str, int]) -> None:
    counted = POLICY.counted(amounts)
    raw = sum(amounts.values())
    for code, mg in counted.items():
        assert mg == amounts[code] or 5 * mg <= 2 * raw < 5 * (mg + 1)
        assert mg <= amounts[code]


@pytest.mark.parametrize(("months", "expected"), [(0, UNRATED), (2, UNRATED), (3, "deep")])
def test_under_three_active_months_nobody_is_rated(months: int, expected: str) -> None:
    got = stand(POLICY, three("200"), months)
    assert got.grade == expected
    if expected == UNRATED:
        assert (got.margin_below_mg, got.to_next_mg, got.next_grade) == (None, None, None)
        assert got.counted_mg == 200 * KG


def test_up_at_once_and_down_only_after_the_second_scheduled_grading_below() -> None:
    up = stand(POLICY, three("100"), 12, held="light", below=1)
    assert (up.grade, up.below) == ("deep", 0)
    first = stand(POLICY, three("60"), 12, held="deep", below=0, scheduled=True)
    assert (first.grade, first.below) == ("deep", 1)
    # The margin shows how far below the grade held it lies.
    assert first.margin_below_mg == -40 * KG
    between = stand(POLICY, three("60"), 12, held="deep", below=first.below)
    assert (between.grade, between.below) == ("deep", 1)
    second = stand(POLICY, three("60"), 12, held="deep", below=first.below, scheduled=True)
    assert (second.grade, second.below) == ("mid", 0)


def test_one_good_grading_in_between_forgets_the_bad_one() -> None:
    first = stand(POLICY, three("60"), 12, held="deep", scheduled=True)
    good = stand(POLICY, three("100"), 12, held="deep", below=first.below, scheduled=True)
    assert good.below == 0
    again = stand(POLICY, three("60"), 12, held="deep", below=good.below, scheduled=True)
    assert again.grade == "deep"


def test_on_demand_a_grade_never_falls() -> None:
    below = 0
    for _ in range(5):
        got = stand(POLICY, three("10"), 12, held="mid", below=below)
        assert (got.grade, got.below) == ("mid", 0)
        below = got.below


def test_a_resident_who_falls_silent_falls_from_light_to_unrated_the_same_way() -> None:
    first = stand(POLICY, three("5"), 2, held="light", scheduled=True)
    assert (first.grade, first.below) == ("light", 1)
    second = stand(POLICY, three("5"), 2, held="light", below=1, scheduled=True)
    assert second.grade == UNRATED


def test_the_first_grading_has_nothing_to_protect() -> None:
    assert stand(POLICY, three("10"), 12, scheduled=True).grade == "light"
    assert stand(POLICY, three("10"), 12, held=UNRATED).grade == "light"


def test_another_policy_is_other_data_and_no_other_code() -> None:
    strict = Policy(
        version="T",
        months_back=3,
        cut_offs=((0, "grey"), (10, "green")),
        share_num=1,
        share_den=3,
        active_months_min=1,
        gradings_below=1,
        labels={},
    )
    assert stand(strict, {"a": 10, "b": 20}, 1).counted_mg == 20
    fall = stand(strict, {"a": 3}, 1, held="green", scheduled=True)
    assert fall.grade == "grey"


# From the book.


def city(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=clock.CITY).astimezone(UTC)


NOW = city("2026-05-20 12:00")


@pytest.fixture
def _noon(app: object) -> Iterator[None]:
    with clock.travel(NOW - clock.now()):
        yield


from_the_book = pytest.mark.usefixtures("_noon")


def tell(
    behaviour: str, quantity: object, at: str, *, evidence: str = "A", **attributes: Any
) -> Activity:
    what = Report(behaviour, Decimal(str(quantity)), city(at), None, attributes)
    return crediting.report(
        ANNA, what, source="partner:x", event_id=next(events), evidence=evidence
    )[0]


def a_year() -> list[Activity]:
    """Four months: 80.7 kg of recyclables, 24 kg of charging, 5.38 kg by bus. 110.08 kg in all."""
    told = [tell("recycle_kg", 20, f"2026-0{month}-10 10:00") for month in (2, 3, 4)]
    for month, day in itertools.product((2, 3, 4), (11, 12)):
        # 8.403361 kWh are 4,000 g, the day's cap.
        told.append(tell("ev_charge_kwh", 9, f"2026-0{month}-{day} 10:00", vehicle=f"{month}{day}"))
    told += [tell("bus_km", 50, f"2026-05-{day:02d} 10:00") for day in (1, 2, 3, 4)]
    return told


@from_the_book
def test_a_grade_is_what_the_entries_of_thirteen_months_say() -> None:
    a_year()
    got = grade.grade_now(ANNA)
    # recycle 3 x 26.9 = 80.7; charge 6 x 4 = 24; bus 4 x 1.345 = 5.38; raw 110.08.
    assert got.by_behaviour == {
        "bus_km": 5_380_000,
        "ev_charge_kwh": 24_000_000,
        "recycle_kg": 80_700_000,
    }
    assert got.standing.reduction_mg == 110_080_000
    # 40 % of 110.08 are 44.032; 44.032 + 24 + 5.38 = 73.412 kg.
    assert (got.standing.counted_mg, got.standing.grade) == (73_412_000, "mid")
    assert got.by_dimension == {"green_life": 44_032_000, "green_travel": 29_380_000}
    assert (got.standing.active_months, got.months_covered) == (4, 13)
    assert (got.first_month, got.last_month) == ("2025-05", "2026-05")
    assert got.valid_until == date(2026, 6, 30)
    assert got.share_ab == (110_080_000, 110_080_000)


def from_raw_entries(first: date, last: date) -> tuple[Counter[str], set[str]]:
    """The inputs once more, straight from the entries and the definition."""
    by_behaviour: Counter[str] = Counter()
    by_month: Counter[tuple[str, str]] = Counter()
    for entry in book.entries(ANNA):
        counts = entry.refs.get("bank_grade") and entry.refs["evidence"] in "AB"
        if counts and entry.cap_day and first.isoformat() <= entry.cap_day <= last.isoformat():
            by_behaviour[entry.refs["behaviour"]] += entry.amount("co2e_mg", "reduction")
            by_month[entry.cap_day[:7], entry.refs["behaviour"]] += entry.refs["mg"]
    return +by_behaviour, {month for (month, _), mg in by_month.items() if mg}


@from_the_book
def test_a_grade_equals_its_recomputation_from_the_raw_entries() -> None:
    told = a_year()
    tell("walk_steps", 18_000, "2026-05-05 10:00")
    tell("mobile_pay_offline", 3, "2026-01-05 10:00", amount_fen=100)
    for activity in (told[0], told[5], told[-1]):
        crediting.reverse(activity, reason="x", by="operator")
    got = grade.grade_now(ANNA)
    amounts, months = from_raw_entries(date(2025, 5, 1), date(2026, 5, 20))
    assert Counter(got.by_behaviour) == amounts
    expected = stand(POLICY, amounts, len(months))
    assert got.standing == expected
    assert got.standing.active_months == 5


@from_the_book
def test_health_data_and_self_declared_activities_never_count_for_a_bank() -> None:
    tell("walk_steps", 18_000, "2026-05-05 10:00")
    tell("walk_steps", 18_000, "2026-05-06 10:00", evidence="B")
    tell("hospital_booking", 1, "2026-05-05 10:00")
    tell("car_stop_day", 1, "2026-05-05 00:00", evidence="C", vehicle="v")
    tell("bike_km", 5, "2026-05-07 10:00", evidence="D")
    got = grade.grade_now(ANNA)
    assert got.by_behaviour == {}
    assert (got.standing.reduction_mg, got.standing.grade) == (0, UNRATED)
    # 296 + 296 + 277 + 2,396 g were credited all the same.
    assert book.head(ANNA).after["lifetime_mg"] == 3_265_000
    assert got.share_ab == (0, 3_265_000)
    tell("bike_km", 5, "2026-05-08 10:00", evidence="B")
    assert grade.grade_now(ANNA).by_behaviour == {"bike_km": 243_500}


def test_factors_past_their_grace_earn_and_stay_out_of_a_grade(app: object) -> None:
    # Review by 1 January 2028, and 180 days of grace: 29 June is the last day that counts.
    with clock.stand(city("2028-06-29 12:00")):
        inside = tell("recycle_kg", 20, "2028-06-29 10:00")
    with clock.stand(city("2028-06-30 12:00")):
        beyond = tell("recycle_kg", 10, "2028-06-30 10:00")
        got = grade.grade_now(ANNA)
    for activity, mg in ((inside, 26_900_000), (beyond, 13_450_000)):
        assert (activity.mg, activity.reasons) == (mg, ("stale_factor",))
        assert activity.points > 0
    # 26.9 kg of 40.35 count, of which 40 % of 26.9 at most.
    assert got.by_behaviour == {"recycle_kg": 26_900_000}
    assert (got.standing.reduction_mg, got.standing.counted_mg) == (26_900_000, 10_760_000)
    assert got.share_ab == (26_900_000, 40_350_000)


@from_the_book
def test_a_reversal_lowers_what_counts_at_once() -> None:
    told = a_year()
    assert grade.grade_now(ANNA).standing.counted_mg == 73_412_000
    crediting.reverse(told[0], reason="empty boxes", by="operator")
    got = grade.grade_now(ANNA)
    # 53.8 + 24 + 5.38 = 83.18; 40 % are 33.272; 33.272 + 24 + 5.38 = 62.652.
    assert (got.standing.reduction_mg, got.standing.counted_mg) == (83_180_000, 62_652_000)
    crediting.reverse(told[1], reason="empty boxes", by="operator")
    got = grade.grade_now(ANNA)
    # 26.9 + 24 + 5.38 = 56.28; 40 % are 22.512; 22.512 + 22.512 + 5.38 = 50.404.
    assert (got.standing.counted_mg, got.standing.grade) == (50_404_000, "mid")
    crediting.reverse(told[2], reason="empty boxes", by="operator")
    got = grade.grade_now(ANNA)
    # 24 + 5.38 = 29.38; 40 % are 11.752; 11.752 + 5.38 = 17.132: below, but not yet twice.
    assert (got.standing.counted_mg, got.standing.grade) == (17_132_000, "mid")
    assert got.standing.margin_below_mg == 17_132_000 - 50 * KG


@from_the_book
def test_a_month_whose_only_activity_was_taken_back_is_not_active() -> None:
    told = a_year()
    assert grade.grade_now(ANNA).standing.active_months == 4
    for activity in told[-4:]:
        crediting.reverse(activity, reason="x", by="operator")
    assert grade.grade_now(ANNA).standing.active_months == 3


@from_the_book
def test_a_day_leaves_the_window_with_its_month() -> None:
    a_year()
    # On 28 February 2027 the window begins in February 2026; on 1 March in March 2026.
    with clock.stand(city("2027-02-28 23:59:59.999")):
        assert grade.grade_now(ANNA).standing.reduction_mg == 110_080_000
    with clock.stand(city("2027-03-01 00:00")):
        got = grade.grade_now(ANNA)
        # February's 26.9 + 8 are gone.
        assert (got.first_month, got.standing.reduction_mg) == ("2026-03", 75_180_000)


@from_the_book
def test_grading_again_keeps_the_snapshot_until_something_changes() -> None:
    told = a_year()
    first = grade.grade_now(ANNA)
    assert grade.grade_now(ANNA) == first
    assert first.number == 1
    crediting.reverse(told[-1], reason="x", by="operator")
    second = grade.grade_now(ANNA)
    assert second.number == 2
    # A new month is a new grading, although the activities are the same.
    with clock.travel(15 * DAY):
        third = grade.grade_now(ANNA)
    assert (third.number, third.valid_until) == (3, date(2026, 7, 31))
    newest = grade.history(ANNA, before=None, limit=9)
    assert [one.number for one in newest] == [3, 2, 1]
    assert newest[2] == first
    assert grade.history(ANNA, before=3, limit=1) == [second]


@from_the_book
def test_a_grade_that_nothing_came_after_is_read_without_its_months() -> None:
    a_year()
    first = grade.grade_now(ANNA)
    database = storage.database()
    database.command("profile", 2)
    try:
        assert grade.grade_now(ANNA) == first
    finally:
        database.command("profile", 0)
    read = {one["ns"].partition(".")[2] for one in database["system.profile"].find()}
    database["system.profile"].drop()
    assert "grades" in read
    assert not {"summary_months", "summary_cursors"} & read
    # An entry that moves nothing makes no snapshot, and one that does makes one.
    tell("walk_steps", 1, "2026-05-06 10:00", evidence="D")
    assert grade.grade_now(ANNA) == first
    tell("bus_km", 10, "2026-05-06 10:00")
    assert grade.grade_now(ANNA).by_behaviour["bus_km"] == 5_380_000 + 269_000


@from_the_book
def test_months_that_were_built_again_are_graded_again_without_a_new_entry() -> None:
    a_year()
    months = storage.database()["summary_months"]
    summaries.catch_up(ANNA)
    # 269 kg of recyclables that nobody brought: the projection is spoiled, not the book.
    spoiled = {"account": ANNA, "month": "2026-04", "behaviours.behaviour": "recycle_kg"}
    assert months.update_one(spoiled, {"$inc": {"behaviours.$.mg": 269 * KG}}).modified_count == 1
    assert grade.grade_now(ANNA).by_behaviour["recycle_kg"] == 80_700_000 + 269 * KG
    upkeep.run(upkeep.queue("op").id)
    # 44.032 + 24 + 5.38 kg, as the book has it.
    got = grade.newest_of(ANNA)
    assert got is not None
    assert got.number == 2
    assert got.by_behaviour["recycle_kg"] == 80_700_000
    assert got.standing.counted_mg == 73_412_000


@from_the_book
def test_eight_gradings_at_once_leave_one_snapshot() -> None:
    a_year()
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda _: grade.grade_now(ANNA), range(8)))
    assert {one.number for one in got} == {1}
    assert storage.database()["grades"].count_documents({}) == 1


@from_the_book
def test_a_resident_without_anything_is_unrated() -> None:
    got = grade.grade_now("res_nobody")
    assert (got.standing.grade, got.by_behaviour, got.share_ab) == (UNRATED, {}, (0, 0))


def test_the_names_of_the_grades_are_in_the_order_of_their_rank() -> None:
    assert [POLICY.rank(name) for name in (UNRATED, "light", "mid", "deep")] == [-1, 0, 1, 2]
    assert grading.UNRATED == "unrated"


# What follows when a grade moves.


def told_of(resident: str = ANNA) -> list[tuple[int, str, str]]:
    return [(one.number, one.before, one.after) for one in changes_of(resident)]


def changes_of(resident: str = ANNA) -> list[grade_changes.Change]:
    return grade_changes.waiting(99, resident=resident)


def untold() -> int:
    return storage.database()["grades"].count_documents({"untold": True})


@from_the_book
def test_a_grade_that_moves_leaves_one_row_for_the_feeds_and_one_notification() -> None:
    a_year()
    grade.grade_now(ANNA)
    assert grade_changes.waiting(9) == changes_of()
    assert told_of() == [(1, UNRATED, "mid")]
    tell("bus_km", 50, "2026-05-05 10:00")
    # More kilograms, the same grade: a snapshot, and nothing to tell.
    assert grade.grade_now(ANNA).number == 2
    assert told_of() == [(1, UNRATED, "mid")]
    grade_changes.taken(changes_of())
    assert grade_changes.waiting(9) == []
    [notice] = outbox.inbox(ANNA, before=None, limit=9)[:1]
    assert (notice.type, notice.title["en"]) == ("grade", "Your grade: Mid green")


@from_the_book
def test_a_crash_before_a_change_is_told_leaves_it_to_the_sweep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a_year()

    def crash(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as cut:
        cut.setattr(grade_changes, "leave", crash)
        with pytest.raises(KeyboardInterrupt):
            grade.grade_now(ANNA)
    assert (told_of(), untold()) == ([], 1)
    # Nobody else's grading in between, and no sweep that comes too early, tells it.
    assert grade.sweep(clock.now() - timedelta(minutes=1)) == 0
    assert grade.sweep(clock.now() + timedelta(minutes=1)) == 1
    assert (told_of(), untold()) == ([(1, UNRATED, "mid")], 0)
    assert grade.sweep(clock.now() + timedelta(minutes=1)) == 0


@from_the_book
def test_a_fraud_taken_back_lets_the_grade_fall_at_once_and_a_mistake_does_not() -> None:
    told = a_year()
    assert grade.grade_now(ANNA).standing.grade == "mid"
    for activity in told[:3]:
        crediting.reverse(activity, reason="counted twice", by="operator")
    # 17.132 kg are left (see above), and the grade is held.
    assert grade.newest(["res_bo", ANNA]) == {ANNA: "mid"}
    crediting.reverse(told[3], reason="no such charger", by="operator", fraud=True)
    # 5 x 4 + 5.38 = 25.38; 40 % are 10.152; 10.152 + 5.38 = 15.532 kg.
    [last] = grade.history(ANNA, before=None, limit=1)
    assert (last.standing.grade, last.standing.counted_mg) == ("light", 15_532_000)
    assert last.inputs.released
    assert told_of() == [(1, UNRATED, "mid"), (last.number, "mid", "light")]
    # The same reversal again, as after a lost answer, grades nothing again.
    crediting.reverse(told[3], reason="no such charger", by="operator", fraud=True)
    assert grade.newest_of(ANNA) == last


@from_the_book
def test_who_was_never_graded_is_not_graded_by_a_reversal() -> None:
    told = a_year()
    crediting.reverse(told[0], reason="x", by="operator", fraud=True)
    assert grade.newest_of(ANNA) is None


@from_the_book
def test_only_the_first_scheduled_grading_of_a_month_counts_towards_a_fall() -> None:
    a_year()
    assert grade.grade_now(ANNA).standing.grade == "mid"
    # From May 2027 the window begins in May 2026: 5.38 kg by bus, one active month, unrated.
    for month in ("2027-05", "2027-06"):
        with clock.stand(city(f"{month}-01 02:30")):
            first = grade.grade_now(ANNA, scheduled=month)
            again = grade.grade_now(ANNA, scheduled=month)
            assert grade.grade_now(ANNA) == again == first
            assert (first.inputs.scheduled, first.inputs.counts) == (month, True)
        expected = ("mid", 1) if month == "2027-05" else (UNRATED, 0)
        assert (first.standing.grade, first.standing.below) == expected
    assert told_of() == [(1, UNRATED, "mid"), (3, "mid", UNRATED)]


@from_the_book
def test_a_snapshot_is_made_again_from_what_it_keeps() -> None:
    told = a_year()
    grade.grade_now(ANNA)
    crediting.reverse(told[0], reason="x", by="operator", fraud=True)
    with clock.stand(city("2027-05-01 02:30")):
        grade.grade_now(ANNA, scheduled="2027-05")
    kept = grade.history(ANNA, before=None, limit=9)
    assert len(kept) == 3
    assert all(one.inputs.stand() == one.standing for one in kept)
