"""Household bills: who lives behind a meter, what a bill saved, and what each resident got for it.

See `homes` for the household that is worked by hand.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from homes import (
    ANNA,
    BO,
    CHEN,
    GRID,
    METER,
    MG_PER_KWH,
    MG_PER_M3,
    NOW,
    at_once,
    bill,
    live_in,
    points_of,
    send,
    send_history,
    whole,
)
from hypothesis import given
from hypothesis import strategies as st

from accounting import book, clock, storage
from accounting.errors import NotFound, ValidationFailed
from accounting.links import AlreadyLinked
from accounting.proration import Use
from footprint import bill_intake, billing_rules, bills, households, methodology, reasons, summaries
from footprint.activities import RECEIVED, SETTLED, SourceEventConflict
from footprint.bill_accounts import Account
from footprint.billing_rules import Judgement, assess, baseline, judged, month_use
from points import bill_crediting, milestones, statements
from points.wallet import Wallet, consistent

pytestmark = pytest.mark.usefixtures("app")


@pytest.fixture(autouse=True)
def _may() -> Iterator[None]:
    with clock.travel(NOW - clock.now()):
        yield


def uses(*rows: tuple[str, str, object]) -> tuple[Use, ...]:
    return tuple(
        Use(date.fromisoformat(first), date.fromisoformat(last), Decimal(str(used)))
        for first, last, used in rows
    )


def steady(first: str, count: int, used: object = 300) -> tuple[Use, ...]:
    months = [clock.add_months(first, number) for number in range(count)]
    return tuple(Use(*whole(month), Decimal(str(used))) for month in months)


# The rules alone.


def test_a_bill_over_two_months_is_split_by_its_days() -> None:
    # 31 days at 10 kWh: 16 of them in March, 15 in April. 1 to 15 March: 75 kWh.
    known = uses(("2026-03-01", "2026-03-15", 75), ("2026-03-16", "2026-04-15", 310))
    assert month_use(known, "2026-03") == 75 + 160
    assert month_use(known, "2026-04") is None, "16 to 30 April are not known"


def test_a_leap_february_has_its_29th_day() -> None:
    # 60 days in 2028, 59 in 2027, both at 10 kWh a day.
    leap, common = (
        uses(("2028-02-01", "2028-03-31", 600)),
        uses(("2027-02-01", "2027-03-31", 590)),
    )
    assert (month_use(leap, "2028-02"), month_use(leap, "2028-03")) == (290, 310)
    assert (month_use(common, "2027-02"), month_use(common, "2027-03")) == (280, 310)


def test_a_part_of_a_month_is_compared_with_that_part() -> None:
    # 20 of the 29 days of February 2028 against 280 kWh in 2027 and 300 in 2026; all of March
    # against 310 in 2027 only: 20/29 x 290 + 310 = 510.
    (now,) = uses(("2028-02-10", "2028-03-31", 400))
    past = uses(
        ("2026-02-01", "2026-02-28", 300),
        ("2027-02-01", "2027-02-28", 280),
        ("2027-03-01", "2027-03-31", 310),
    )
    assert baseline(now, past) == 510
    assert baseline(now, past[:2]) is None, "no March is known"


def test_the_trailing_year_ends_with_the_bill() -> None:
    (leap_day,) = uses(("2028-02-29", "2028-02-29", 10))
    # From 1 March 2027: February 2027 is out, 366 days are in.
    assert billing_rules.trailing_year(leap_day, steady("2027-02", 12, 31)) == 10 + 11 * 31


@pytest.mark.parametrize(
    ("used", "because", "saving"),
    [
        (240, (), 60),
        (210, (), 90),
        (209, ("saving_cap",), 90),
        (90, ("saving_cap",), 90),
        ("89.999999", ("vacancy_review",), 0),
        (300, ("no_saving",), 0),
        (350, ("no_saving",), 0),
    ],
)
def test_what_a_household_of_300_kwh_saved(
    used: object, because: tuple[str, ...], saving: int
) -> None:
    (now,) = uses(("2026-04-01", "2026-04-30", used))
    verdict = assess(now, steady("2025-04", 12), tier_3=4_800)
    assert (verdict.reasons, verdict.saving) == (because, saving)
    assert verdict.baseline == 300


def test_the_third_price_step_begins_above_4800_kwh_in_twelve_months() -> None:
    (now,) = uses(("2026-04-01", "2026-04-30", 400))
    # April 2025 is outside the twelve months and was 500: 11 x 400 + 400 = 4,800 exactly.
    at = (*steady("2025-04", 1, 500), *steady("2025-05", 11, 400))
    assert assess(now, at, tier_3=4_800).saving == 100
    above = (*steady("2025-04", 1, 500), *steady("2025-05", 11, "400.000001"))
    assert assess(now, above, tier_3=4_800).reasons == ("tier_3",)
    assert assess(now, above).saving == 100, "gas and water have no third step here"


def test_every_day_of_the_twelve_months_before_must_be_known() -> None:
    (now,) = uses(("2026-04-16", "2026-05-15", 200))
    whole_year = (*steady("2025-04", 12), *uses(("2026-04-01", "2026-04-15", 150)))
    # Half of April 2025 and half of May 2025, at 300 each: 15/30 x 300 + 15/31 x 300.
    assert assess(now, whole_year).baseline == 150 + Fraction(15 * 300, 31)
    assert assess(now, whole_year[1:]).reasons == ("needs_history",)
    assert assess(now, whole_year[:-1]).reasons == ("needs_history",)


@given(
    used=st.decimals(0, 1_000, places=6),
    before=st.decimals(0, 1_000, places=6),
    shares=st.integers(1, 12),
)
def test_shares_never_exceed_what_was_saved(used: Decimal, before: Decimal, shares: int) -> None:
    behaviour = methodology.in_force(date(2026, 4, 30)).behaviours["electricity_saving"]
    (now,) = uses(("2026-04-01", "2026-04-30", used))
    verdict = assess(now, steady("2025-04", 12, before))
    judgement = judged(verdict, behaviour, shares, stale=False)
    assert 0 <= judgement.mg * shares <= verdict.saving * MG_PER_KWH
    assert verdict.saving <= Fraction(before) * 3 / 10
    assert (judgement.mg > 0) == (judgement.status in ("credited", "capped"))


# Who lives behind a meter.


def test_residents_join_up_to_the_members() -> None:
    first = households.join(ANNA, "electricity", METER, 2)
    assert (first.members, first.joined, first.account_no) == (2, 1, METER)
    with pytest.raises(AlreadyLinked):
        households.join(ANNA, "electricity", METER, 2)
    with pytest.raises(households.MembersConflict):
        households.join(BO, "electricity", METER, 3)
    assert households.join(BO, "electricity", METER, 2).joined == 2
    with pytest.raises(households.HouseholdFull):
        households.join(CHEN, "electricity", METER, 2)
    # The same number of another utility is another account.
    gas = households.join(CHEN, "gas", METER, 1)
    assert gas.id != first.id
    assert [place.id for place in households.of_resident(CHEN, before=None, limit=9)] == [gas.id]
    assert households.get(BO, first.id).resident == BO
    with pytest.raises(NotFound):
        households.get(CHEN, first.id)


def test_leaving_makes_room_and_the_next_family_says_its_own_number() -> None:
    home = live_in(ANNA, members=1)
    households.leave(ANNA, home)
    with pytest.raises(NotFound):
        households.leave(ANNA, home)
    assert households.join(BO, "electricity", METER, 4).members == 4
    found = households.by_number("electricity", METER)
    assert found is not None
    assert (found.id, found.residents, found.members) == (home, (BO,), 4)


def test_members_are_dated_and_never_fewer_than_the_residents() -> None:
    home = live_in(ANNA, BO)
    with clock.travel(timedelta(days=10)):
        assert households.change_members(ANNA, home, 4).members == 3
        assert households.change_members(BO, home, 4).members == 4
    with pytest.raises(households.MembersBelowJoined):
        households.change_members(ANNA, home, 1)
    with pytest.raises(NotFound):
        households.change_members(CHEN, home, 5)
    found = households.by_number("electricity", METER)
    assert found is not None
    on = [date(2020, 1, 1), date(2026, 5, 20), date(2026, 5, 29), date(2026, 5, 30)]
    assert [found.members_on(day) for day in on] == [3, 3, 3, 4]


@pytest.mark.parametrize(
    ("number", "members"), [("", 3), ("no spaces", 3), (METER, 0), (METER, 13)]
)
def test_a_household_that_cannot_be(number: str, members: int) -> None:
    with pytest.raises(ValidationFailed):
        households.join(ANNA, "electricity", number, members)
    assert households.by_number("electricity", number) is None


def test_the_account_number_is_kept_sealed() -> None:
    live_in(ANNA)
    send(bill("2026-04", 240))
    for name in ("households", "bills"):
        assert METER not in str(list(storage.database()[name].find()))


def test_residents_who_join_at_once_are_never_too_many() -> None:
    results = at_once(12, lambda n: households.join(f"res_{n}", "electricity", METER, 5).joined)
    assert sorted(r for r in results if isinstance(r, int)) == [1, 2, 3, 4, 5]
    assert results.count("household_full") == 7
    found = households.by_number("electricity", METER)
    assert found is not None
    assert len(set(found.residents)) == 5


def test_joining_and_shrinking_at_once_never_leave_too_many() -> None:
    home = live_in("res_first", members=6)

    def act(number: int) -> Any:
        if number % 4 == 3:
            return households.change_members("res_first", home, 2)
        return households.join(f"res_{number}", "electricity", METER, 6)

    at_once(12, act)
    found = households.by_number("electricity", METER)
    assert found is not None
    assert len(found.residents) <= found.members


# Bills and what they earn.


def test_the_worked_bill_credits_every_member_alike() -> None:
    live_in(ANNA, BO, CHEN)
    send_history(count=24)
    april = send(bill("2026-04", 240))
    # Baseline (320 + 280) / 2 = 300, saved 60 kWh, 20 kWh each: 20 x 497,400 mg.
    assert april.judgement is not None
    assert (april.judgement.status, april.judgement.reasons) == ("credited", ())
    assert (april.judgement.baseline, april.judgement.saving) == ("300", "60")
    assert (april.judgement.mg, april.points, april.state) == (9_948_000, 9_948, SETTLED)
    for resident in (ANNA, BO, CHEN):
        assert points_of(resident) == 9_948
        head = book.head(resident)
        assert (head.seq, head.after["lifetime_mg"]) == (1, 9_948_000)
        assert consistent(head.after) is None
        (cell,) = summaries.between(resident, *whole("2026-04")).cells
        assert (cell.day, cell.behaviour, cell.evidence) == (
            "2026-04-30",
            "electricity_saving",
            "A",
        )
        assert (cell.mg, cell.points, cell.count, cell.bank_grade) == (9_948_000, 9_948, 1, True)
        reached, following = milestones.of_resident(resident)
        assert ([step.kg for step in reached], following) == ([1, 5], 10)
        assert Wallet.load(head.after).lots[0].expires_on == 2028_04_30
    assert book.verify().problem is None
    assert [shown.id for shown in bills.of_resident(BO, before=None, limit=1)] == [april.id]
    assert len(bills.of_resident(BO, before=april.id, limit=99)) == 24


def test_only_the_residents_linked_get_their_share_of_three() -> None:
    live_in(ANNA)
    send_history()
    assert send(bill("2026-04", 240)).residents == (ANNA,)
    households.join(BO, "electricity", METER, 3)
    # Only April 2025 is known: 23 months of history begin in May 2024.
    april = bills.of_resident(ANNA, before=None, limit=1)[0]
    assert april.judgement is not None
    assert april.judgement.baseline == "280"
    assert points_of(ANNA) == 40 * MG_PER_KWH // 3 // 1_000
    assert points_of(BO) == 0


def test_a_saving_is_never_shared_out_more_than_once() -> None:
    home = live_in(ANNA, members=1)
    send_history(count=24)
    with clock.travel(timedelta(days=10)):
        households.change_members(ANNA, home, 2)
        households.join(BO, "electricity", METER, 2)
        # One lived there in April, two are linked when the bill comes: two shares of 30 kWh.
        april = send(bill("2026-04", 240))
    assert (april.shares, points_of(ANNA), points_of(BO)) == (2, 14_922, 14_922)


def test_thirty_percent_is_the_most_that_counts() -> None:
    live_in(ANNA, BO)
    send_history(count=24)
    april = send(bill("2026-04", 100))
    # 200 saved, 90 counted, 30 each.
    assert april.judgement is not None
    assert (april.judgement.status, april.judgement.reasons) == ("capped", ("saving_cap",))
    assert (april.judgement.gross_mg, april.judgement.mg) == (33_160_000, 14_922_000)
    assert (points_of(ANNA), points_of(BO)) == (14_922, 14_922)


@pytest.mark.parametrize(
    ("used", "past", "because"),
    [
        (80, 300, "vacancy_review"),
        (300, 300, "no_saving"),
        (350, 450, "tier_3"),
        ("299.999999", 300, "no_saving"),
    ],
)
def test_what_earns_nothing_says_why(used: object, past: int, because: str) -> None:
    live_in(ANNA, members=12)
    for ago in range(12, 0, -1):
        send(bill(clock.add_months("2026-04", -ago), past))
    april = send(bill("2026-04", used))
    assert april.judgement is not None
    assert (april.judgement.status, april.judgement.mg) == ("recorded", april.judgement.mg)
    if because == "no_saving" and used != 300:
        # A millionth of a kWh is 497.4 mg/1,000,000 for twelve: nothing is left to credit.
        assert april.judgement.saving == "1/1000000"
    assert april.judgement.reasons == (because,)
    assert book.head(ANNA).seq == 0
    assert all(reasons.text(because, language) for language in ("zh", "en"))


def test_gas_is_credited_by_the_cubic_metre() -> None:
    households.join(ANNA, "gas", METER, 3)
    for ago in range(12, 0, -1):
        send(bill(clock.add_months("2026-04", -ago), 30, carrier="gas"))
    april = send(bill("2026-04", 24, carrier="gas"))
    assert april.judgement is not None
    assert april.judgement.mg == 6 * MG_PER_M3 // 3 == 4_324_400
    assert april.emissions_mg == 24 * MG_PER_M3


def test_a_bill_that_lacked_history_is_judged_again_when_it_comes() -> None:
    live_in(ANNA, BO, CHEN)
    april = send(bill("2026-04", 240))
    assert april.judgement is not None
    assert (april.judgement.status, april.judgement.reasons) == ("recorded", ("needs_history",))
    send_history(count=11)
    assert points_of(ANNA) == 0
    send(bill("2025-04", 280))
    april = bills.by_id(april.id)
    assert april.judgement is not None
    assert (april.revision, april.state, april.judgement.baseline) == (2, SETTLED, "280")
    # 40 kWh of 280 saved, a third each: 40 x 497,400 / 3.
    assert (points_of(ANNA), april.points) == (6_632, 6_632)
    # More history later does not change what was credited.
    send(bill("2024-04", 320))
    assert bills.by_id(april.id) == april


def test_old_bills_are_history_only() -> None:
    live_in(ANNA)
    send_history(last="2025-10")
    # 31 October to 20 May is more than 180 days, 30 November is 171.
    november = send(bill("2025-11", 240))
    october = bills.of_resident(ANNA, before=november.id, limit=1)[0]
    assert october.judgement is not None
    assert november.judgement is not None
    assert october.judgement.reasons == ("bill_history",)
    assert november.judgement.status == "credited"


def test_bills_nobody_linked_are_refused_and_not_stored() -> None:
    home = live_in(ANNA)
    with pytest.raises(bill_intake.AccountNotLinked):
        send(bill("2026-04", 240, carrier="water"))
    households.leave(ANNA, home)
    with pytest.raises(bill_intake.AccountNotLinked):
        send(bill("2026-04", 240))
    assert storage.database().bills.count_documents({}) == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"period_end": date(2026, 3, 31)},
        {"period_start": date(2025, 3, 26)},
        {"period_end": date(2026, 5, 21)},
        {"period_start": date(1999, 4, 1), "period_end": date(1999, 4, 30)},
        {"quantity": Decimal(-1)},
        {"quantity": Decimal(1_000_001)},
    ],
    ids=["ends before it starts", "over 400 days", "not over", "too early", "negative", "too much"],
)
def test_a_bill_that_cannot_be(changed: dict[str, Any]) -> None:
    live_in(ANNA)
    with pytest.raises(ValidationFailed):
        send(bill("2026-04", 240, **changed))
    assert storage.database().bills.count_documents({}) == 0


def test_the_same_event_again_is_the_first_bill_and_other_content_is_refused() -> None:
    home = live_in(ANNA)
    send_history()
    first, fresh = bill_crediting.report(bill("2026-04", 240), source=GRID, event_id="e1")
    assert fresh
    households.leave(ANNA, home)
    again = bill_crediting.report(bill("2026-04", "240.00"), source=GRID, event_id="e1")
    assert again == (first, False)
    with pytest.raises(SourceEventConflict):
        send(bill("2026-04", 241), "e1")
    assert book.head(ANNA).seq == 1


def test_bills_of_one_account_may_not_overlap() -> None:
    live_in(ANNA)
    send(bill("2026-04", 240))
    one_day = bill("2026-04", 9, period_start=date(2026, 4, 30), period_end=date(2026, 5, 9))
    with pytest.raises(bill_intake.BillOverlaps) as refusal:
        send(one_day, source="another grid")
    assert refusal.value.facts == {"period_start": "2026-04-01", "period_end": "2026-04-30"}
    send(replace(one_day, period_start=date(2026, 5, 1)))


def test_overlapping_bills_sent_at_once_leave_one() -> None:
    live_in(ANNA)
    results = at_once(8, lambda n: send(bill("2026-04", 200 + n), f"e{n}").number)
    assert sorted(map(str, results)) == ["1"] + ["bill_overlaps"] * 7


def test_one_event_sent_at_once_is_one_bill_and_one_entry() -> None:
    live_in(ANNA, BO)
    send_history()
    results = at_once(8, lambda _: send(bill("2026-04", 240), "e1").id)
    assert len(set(results)) == 1
    assert (book.head(ANNA).seq, book.head(BO).seq) == (1, 1)


def test_history_sent_in_any_order_at_once_credits_the_waiting_bill() -> None:
    live_in(ANNA)
    months = [clock.add_months("2026-04", -ago) for ago in range(13)]
    at_once(13, lambda n: send(bill(months[n], 240 if n == 0 else 300)).id)
    with clock.travel(timedelta(minutes=2)):
        bill_crediting.sweep(clock.now())
    stored = bills.of_resident(ANNA, before=None, limit=99)
    april = next(one for one in stored if one.period_end == date(2026, 4, 30))
    assert len(stored) == 13
    assert all(one.state == SETTLED for one in stored)
    assert points_of(ANNA) == 60 * MG_PER_KWH // 3 // 1_000
    assert april.points == 9_948


def test_one_bill_a_month_and_account_is_credited() -> None:
    live_in(ANNA)
    send_history()
    half = date(2026, 4, 15)
    first = send(bill("2026-04", 100, period_end=half))
    second = send(bill("2026-04", 100, period_start=half + timedelta(days=1)))
    assert first.judgement is not None
    assert second.judgement is not None
    # Half of April 2025: 140 kWh.
    assert (first.judgement.status, first.judgement.baseline) == ("credited", "140")
    assert second.judgement.reasons == ("bill_month_credited",)
    assert book.head(ANNA).seq == 1


def test_an_estimate_earns_nothing_until_the_actual_reading_corrects_it() -> None:
    live_in(ANNA, BO, CHEN)
    send_history(count=24)
    guess = send(bill("2026-04", 200, estimated=True), "guess")
    assert guess.judgement is not None
    assert guess.judgement.reasons == ("bill_estimated",)
    actual = send(bill("2026-04", 240, corrects="guess"), "actual")
    assert actual.points == 9_948
    assert bills.by_id(guess.id).outcome(clock.now()).reasons == ("bill_corrected",)
    with pytest.raises(ValidationFailed):
        send(bill("2026-04", 230, estimated=True, corrects="actual"), "guess again")


def test_an_estimate_is_no_history() -> None:
    live_in(ANNA, BO, CHEN)
    send_history(count=11)
    send(bill("2025-04", 290, estimated=True), "guess")
    april = send(bill("2026-04", 240))
    assert april.judgement is not None
    assert april.judgement.reasons == ("needs_history",)
    send(bill("2025-04", 280, corrects="guess"), "actual")
    assert bills.by_id(april.id).points == 6_632


def test_a_correction_takes_back_and_credits_anew() -> None:
    home = live_in(ANNA, BO, CHEN)
    send_history(count=24)
    wrong = send(bill("2026-04", 240), "e1")
    # The family as it was when the bill came keeps its shares.
    households.leave(CHEN, home)
    for who in (ANNA, BO):
        assert households.change_members(who, home, 12).proposed is None or who == ANNA
    right = send(bill("2026-04", 270, corrects="e1"), "e2")
    # 30 kWh saved, 10 each: 4,974,000 mg.
    assert (right.residents, right.shares, right.points) == ((ANNA, BO, CHEN), 3, 4_974)
    for resident in (ANNA, BO, CHEN):
        kinds = [(entry.kind, entry.refs["points"]) for entry in book.entries(resident)]
        assert kinds == [("earn", 9_948), ("reverse", -9_948), ("earn", 4_974)]
        assert points_of(resident) == 4_974
        assert book.head(resident).after["lifetime_mg"] == 4_974_000
        (cell,) = summaries.between(resident, *whole("2026-04")).cells
        assert (cell.mg, cell.points, cell.count) == (4_974_000, 4_974, 1)
    wrong = bills.by_id(wrong.id)
    shown = wrong.outcome(clock.now())
    assert (shown.status, shown.reasons, shown.mg, wrong.points) == (
        "reversed",
        ("bill_corrected",),
        0,
        0,
    )
    assert book.verify().problem is None
    # Only the newest of a chain can be corrected, and only by who sent it.
    with pytest.raises(bill_intake.AlreadyCorrected):
        send(bill("2026-04", 250, corrects="e1"), "e3")
    with pytest.raises(bill_intake.CorrectedBillUnknown):
        send(bill("2026-04", 250, corrects="e2"), "e3", source="another grid")
    households.join(ANNA, "gas", METER, 1)
    with pytest.raises(ValidationFailed):
        send(bill("2026-04", 250, carrier="gas", corrects="e2"), "e3")


def test_a_correction_that_comes_late_is_judged_like_the_bill_it_replaces() -> None:
    live_in(ANNA, BO, CHEN)
    send_history(count=24)
    send(bill("2026-04", 240), "e1")
    with clock.travel(timedelta(days=300)):
        assert send(bill("2026-04", 270, corrects="e1"), "e2").points == 4_974


def test_corrections_sent_at_once_leave_one() -> None:
    live_in(ANNA)
    send_history(count=24)
    send(bill("2026-04", 240), "e0")
    results = at_once(6, lambda n: send(bill("2026-04", 270, corrects="e0"), f"e{n + 1}").points)
    assert sorted(map(str, results)) == ["4974"] + ["already_corrected"] * 5
    assert points_of(ANNA) == 4_974


class Killed(Exception):
    pass


def _killed_at(monkeypatch: pytest.MonkeyPatch, step: str, call: int) -> None:
    """Let the process die before the given call of a step, or before that share is posted."""
    if step == "post_many":
        posting = book.post_many

        def partly(wanted: Any) -> Any:
            posting(wanted[: call - 1])
            raise Killed

        monkeypatch.setattr(book, "post_many", partly)
        return
    module: Any = next(one for one in (Account, bills, bill_crediting) if hasattr(one, step))
    name = step
    original, calls = getattr(module, name), []

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == call:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, dying)


@pytest.mark.parametrize(
    ("step", "call"),
    [
        ("judge", 1),
        ("freeze", 1),
        ("post_many", 1),
        ("post_many", 2),
        ("post_many", 3),
        ("waiting", 1),
        ("settle", 1),
    ],
)
def test_a_bill_cut_off_anywhere_is_finished_once(
    monkeypatch: pytest.MonkeyPatch, step: str, call: int
) -> None:
    live_in(ANNA, BO, CHEN)
    send_history(count=24)
    with monkeypatch.context() as patch:
        _killed_at(patch, step, call)
        with pytest.raises(Killed):
            send(bill("2026-04", 240), "e1")
    (left,) = bills.unsettled(clock.now() + timedelta(minutes=1), 9)
    assert left.state == RECEIVED
    with clock.travel(timedelta(minutes=2)):
        assert bill_crediting.sweep(clock.now()) == 1
        assert bill_crediting.sweep(clock.now()) == 0
        again = send(bill("2026-04", 240), "e1")
    assert (again.state, again.points, again.revision) == (SETTLED, 9_948, 1)
    for resident in (ANNA, BO, CHEN):
        assert (points_of(resident), book.head(resident).seq) == (9_948, 1)


def test_the_first_judgement_of_a_revision_stands() -> None:
    live_in(ANNA)
    sent = bill_intake.Sent(bill("2026-04", 240), "e1")
    stored, _ = bill_intake.receive(sent, source=GRID, received_at=clock.now())
    first, second = Judgement("recorded", ("no_saving",)), Judgement("recorded", ("tier_3",))
    assert bills.freeze([(stored, first)])[0].judgement == first
    assert bills.freeze([(stored, second)])[0].judgement == first


def test_shares_posted_after_a_crash_are_those_posted_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live_in(ANNA, BO, CHEN)
    send_history(count=23)
    with monkeypatch.context() as patch:
        _killed_at(patch, "post_many", 2)
        with pytest.raises(Killed):
            send(bill("2026-04", 240), "e1")
    # April 2024 would move the baseline from 280 to 300.
    send(bill("2024-04", 320))
    send(bill("2026-04", 240), "e1")
    assert [points_of(who) for who in (ANNA, BO, CHEN)] == [6_632] * 3


@pytest.mark.parametrize(
    ("step", "call"),
    [
        ("end", 1),
        ("_post_reversal", 1),
        ("_post_reversal", 2),
        ("freeze", 1),
        ("post_many", 2),
    ],
)
def test_a_correction_cut_off_anywhere_is_finished_once(
    monkeypatch: pytest.MonkeyPatch, step: str, call: int
) -> None:
    live_in(ANNA, BO, CHEN)
    send_history(count=24)
    send(bill("2026-04", 240), "e1")
    with monkeypatch.context() as patch:
        _killed_at(patch, step, call)
        with pytest.raises(Killed):
            send(bill("2026-04", 270, corrects="e1"), "e2")
    with clock.travel(timedelta(minutes=2)):
        assert bill_crediting.sweep(clock.now()) == 1
    for resident in (ANNA, BO, CHEN):
        assert (points_of(resident), book.head(resident).seq) == (4_974, 3)
    assert bills.unsettled(clock.now() + timedelta(hours=1), 9) == []


def test_correcting_a_bill_that_was_cut_off_finishes_it_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live_in(ANNA, BO, CHEN)
    send_history(count=24)
    with monkeypatch.context() as patch:
        _killed_at(patch, "post_many", 2)
        with pytest.raises(Killed):
            send(bill("2026-04", 240), "e1")
    send(bill("2026-04", 270, corrects="e1"), "e2")
    assert [points_of(who) for who in (ANNA, BO, CHEN)] == [4_974] * 3
    assert [book.head(who).seq for who in (ANNA, BO, CHEN)] == [3] * 3


def test_points_spent_before_a_correction_become_owed_and_are_recovered() -> None:
    live_in(ANNA, BO, CHEN)
    send_history(count=24)
    send(bill("2026-04", 240), "e1")

    def spend(head: book.Head, now: datetime) -> book.Decision:
        wallet = Wallet.load(head.after)
        wallet.spend(9_000)
        return book.Decision(tuple(wallet.lines), {"wallet": wallet.dump()})

    book.post(book.Ask(ANNA, "spend", "spend", "f", clock.now()), spend)
    send(bill("2026-04", 270, corrects="e1"), "e2")
    # 948 were left and taken, 9,000 owed; 4,974 earned anew pay part of it.
    balance = statements.balance(ANNA)
    assert (balance.available, balance.owed) == (0, 9_000 - 4_974)
    assert consistent(book.head(ANNA).after) is None


def test_a_bill_of_today_is_pending_until_the_day_is_over() -> None:
    live_in(ANNA, BO, CHEN)
    send_history(last="2026-04", count=24)
    part = send(bill("2026-05", 150, period_end=date(2026, 5, 20)))
    assert part.outcome(clock.now()).status == "pending"
    assert statements.balance(ANNA).pending == part.points > 0
    with clock.travel(timedelta(hours=12)):
        assert part.outcome(clock.now()).status == "credited"
        assert points_of(ANNA) == part.points


def test_emissions_are_shared_and_taken_by_days() -> None:
    live_in(ANNA, BO)
    households.join(ANNA, "gas", METER, 2)
    send(bill("2026-03", 300, period_end=date(2026, 4, 15)), "wrong", source=GRID)
    # 46 days at 10 kWh: 16 of them from 31 March to 15 April, for one of three.
    send(bill("2026-03", 460, period_end=date(2026, 4, 15), corrects="wrong"), "right")
    send(bill("2026-04", 20, carrier="gas"))
    found = bills.emissions_between(ANNA, date(2026, 3, 31), date(2026, 4, 30))
    assert found == {
        "electricity": 160 * MG_PER_KWH // 3,
        "gas": 10 * MG_PER_M3,
    }
    assert bills.emissions_between(BO, date(2026, 4, 16), date(2026, 4, 30)) == {}
    assert bills.emissions_between(CHEN, date(2026, 1, 1), date(2026, 12, 31)) == {}


@pytest.mark.parametrize(
    "wanted",
    [
        {"source": GRID, "event_id": "e1"},
        {"household": {"$in": ["hh", "hi"]}},
        {"household": {"$in": ["hh"]}, "judgement.reasons": "needs_history", "corrected_by": None},
        {"job": "job", "_id": {"$gt": "bil"}},
        {"residents": ANNA, "period_start": {"$lte": "2026"}, "period_end": {"$gte": "2026"}},
        {"corrects": "bil"},
        {"corrects": {"$in": ["bil"]}},
        {"state": RECEIVED, "received_at": {"$lt": NOW}},
    ],
    ids=str,
)
def test_no_search_walks_all_bills(wanted: dict[str, Any]) -> None:
    plan = storage.database().bills.find(wanted).explain()["queryPlanner"]["winningPlan"]
    assert "COLLSCAN" not in str(plan)


def test_every_reason_a_bill_may_give_has_a_text() -> None:
    for code in (
        "needs_history",
        "no_saving",
        "saving_cap",
        "tier_3",
        "vacancy_review",
        "bill_estimated",
        "bill_history",
        "bill_month_credited",
        "bill_corrected",
    ):
        assert reasons.text(code, "zh") != reasons.text(code, "en")


# Many bills together.


def requests_made() -> int:
    """What the server has been asked since it started, by everybody."""
    status = storage.client().admin.command("serverStatus", metrics=0)
    return int(status["network"]["numRequests"])


def month_of(homes: int) -> list[bill_intake.Sent]:
    return [
        bill_intake.Sent(bill("2026-04", 240, account_no=f"H-{number}"), f"april-{number}")
        for number in range(homes)
    ]


def homes_with_history(homes: int) -> None:
    for number in range(homes):
        households.join(f"res_{number}", "electricity", f"H-{number}", 1)
    history = [
        bill_intake.Sent(bill(month, 300, account_no=f"H-{number}"), f"{month}-{number}")
        for month in [clock.add_months("2026-04", -ago) for ago in range(12, 0, -1)]
        for number in range(homes)
    ]
    received = bill_crediting.report_many(history, source=GRID)
    assert all(one.fresh for one in received)


def test_many_bills_take_as_many_round_trips_as_a_few() -> None:
    homes_with_history(60)
    before = requests_made()
    few = bill_crediting.report_many(month_of(5), source=GRID)
    for_five = requests_made() - before
    many = bill_crediting.report_many(month_of(60), source=GRID)
    for_sixty = requests_made() - before - for_five
    # The heartbeats of the driver are counted too.
    assert for_sixty < for_five + 15, (for_five, for_sixty)
    # 29.8 kg pass the milestones of 1, 5, 10 and 25 kg.
    assert storage.database().notifications.count_documents({}) == 4 * 60
    assert [one.fresh for one in many] == [False] * 5 + [True] * 55
    assert all(one.bill is not None and one.bill.points == 29_844 for one in few + many)
    assert points_of("res_59") == 29_844


def test_a_bad_bill_among_many_spoils_no_other() -> None:
    homes_with_history(4)
    good = month_of(4)
    bad = [
        bill_intake.Sent(bill("2026-04", 1, account_no="H-none"), "stranger"),
        bill_intake.Sent(bill("2026-04", 1, account_no="H-0"), "overlaps"),
        bill_intake.Sent(bill("2026-05", 1, account_no="H-0"), "not over"),
        bill_intake.Sent(bill("2026-04", 9, account_no="H-0"), "april-0"),
        bill_intake.Sent(bill("2026-04", 9, account_no="H-1", corrects="no such"), "corrects"),
        bill_intake.Sent(bill("2026-04", 9, account_no="H-1", corrects="april-2"), "another's"),
    ]
    right = bill_intake.Sent(bill("2026-04", 270, account_no="H-3", corrects="april-3"), "right")
    received = bill_crediting.report_many([*good, *bad, *good[:1], right], source=GRID)
    refusals = [one.refusal.code if one.refusal else None for one in received]
    assert refusals == [
        *[None] * 4,
        "account_not_linked",
        "bill_overlaps",
        "validation_failed",
        "source_event_conflict",
        "corrected_bill_unknown",
        "validation_failed",
        None,
        None,
    ]
    assert [one.fresh for one in received if one.bill] == [True] * 4 + [False, True]
    # 60 and 30 kWh for households of one.
    assert [points_of(f"res_{number}") for number in range(4)] == [29_844] * 3 + [14_922]
    assert book.verify().problem is None


def test_the_same_many_bills_handed_over_at_once_are_one_credit_each() -> None:
    homes_with_history(6)
    results = at_once(8, lambda _: bill_crediting.report_many(month_of(6), source=GRID))
    stored = {one.bill.id for received in results for one in received if one.bill}
    assert len(stored) == 6
    assert sum(one.fresh for received in results for one in received) == 6
    assert [book.head(f"res_{number}").seq for number in range(6)] == [1] * 6
    with clock.travel(timedelta(minutes=2)):
        assert bill_crediting.sweep(clock.now()) == 0
    assert [points_of(f"res_{number}") for number in range(6)] == [29_844] * 6


def test_many_bills_cut_off_between_their_steps_are_finished_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    homes_with_history(6)
    for step, call in (("freeze", 1), ("post_many", 4), ("waiting", 1), ("settle", 1)):
        with monkeypatch.context() as patch:
            _killed_at(patch, step, call)
            with pytest.raises(Killed):
                bill_crediting.report_many(month_of(6), source=GRID)
    with clock.travel(timedelta(minutes=2)):
        assert bill_crediting.sweep(clock.now()) == 6
    assert [points_of(f"res_{number}") for number in range(6)] == [29_844] * 6
    assert [book.head(f"res_{number}").seq for number in range(6)] == [1] * 6
