"""What grams earn, worked by hand: rules, campaigns, funders that run low, caps, rounding."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from points import earning, valuing
from points.earning import (
    CITY_RATE,
    NEXT,
    Campaign,
    Earned,
    EarningRule,
    EarningRuleError,
    Rate,
    Share,
    Terms,
    Who,
)

NOON = datetime(2026, 5, 20, 4, 0, tzinfo=UTC)
DAY = date(2026, 5, 20)
LONG_AGO = NOON - timedelta(days=100)
ANNA = Who("柯城区", date(2026, 5, 1), "mid")
[RULE] = earning.shipped()
BANK = Rate("bank", 1, LONG_AGO, 1_000, 5, True, 300)


def rate(permille: int, number: int = 1, funder: str = "city", **changes: Any) -> Rate:
    return CITY_RATE._replace(
        funder=funder, number=number, permille=permille, applies_from=LONG_AGO, **changes
    )


def campaign(multiplier: str = "2", **changes: Any) -> Campaign:
    whole_may = {"first_day": date(2026, 5, 1), "last_day": date(2026, 5, 31)}
    terms = {"id": "cmp_1", "number": 1, "applies_from": LONG_AGO, "funder": "bank"}
    return Campaign(multiplier=Fraction(multiplier), **{**terms, **whole_may, **changes})


def earned(
    mg: int,
    *campaigns: Campaign,
    rule: EarningRule = RULE,
    rates: tuple[Rate, ...] = (),
    behaviour: str = "bus_km",
    day: date = DAY,
    now: datetime = NOON,
    who: Callable[[], Who] = lambda: ANNA,
    used: tuple[int, int] = (0, 0),
    above_mg: int = 0,
) -> Earned:
    return earning.earn(
        mg,
        behaviour,
        day,
        Terms((rule,), (CITY_RATE, BANK, *rates), campaigns),
        now=now,
        who=who,
        used=lambda campaign, day: used,
        above_mg=above_mg,
    )


def paid(found: Earned) -> list[tuple[str, str | None, int]]:
    return [(part.funder, part.campaign, part.points) for part in found.parts]


def test_a_gram_is_a_point_rounded_down_once() -> None:
    found = earned(139_880)
    assert (found.points, found.rule, found.reasons) == (139, "QZ-PTS-2026.1", ())
    assert paid(found) == [("city", None, 139)]
    assert found.parts[0].rate == "city@0"


def test_a_behaviour_may_have_its_own_points_a_gram() -> None:
    rule = replace(RULE, points_per_gram_of={"bus_km": Fraction("1.25")})
    # 139.88 g x 1.25 = 174.85.
    assert earned(139_880, rule=rule).points == 174
    assert earned(139_880, rule=rule, behaviour="metro_km").points == 139


def test_a_bonus_is_rounded_with_the_base_and_paid_by_its_own_funder() -> None:
    # 139.88 x 1.5 = 209.82: 209 in all, of which the base is 139.
    assert paid(earned(139_880, campaign("1.5"))) == [
        ("city", None, 139),
        ("bank", "cmp_1@1", 70),
    ]


def test_bonuses_of_two_campaigns_add_up_and_do_not_multiply() -> None:
    second = campaign("1.5", id="cmp_2", funder="city")
    # 100 g: 100, + 100 x (2 - 1), + 100 x (1.5 - 1).
    assert [points for *_, points in paid(earned(100_000, campaign(), second))] == [100, 100, 50]


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({"first_day": DAY, "last_day": DAY}, True),
        ({"first_day": date(2026, 5, 21)}, False),
        ({"last_day": date(2026, 5, 19)}, False),
        ({"behaviours": frozenset({"bus_km"})}, True),
        ({"behaviours": frozenset({"metro_km"})}, False),
        ({"districts": frozenset({"柯城区"})}, True),
        ({"districts": frozenset({"衢江区"})}, False),
        ({"grades": frozenset({"mid", "deep"})}, True),
        ({"grades": frozenset({"deep"})}, False),
        # Joined on 1 May: the 20th is the 20th day, 19 days after.
        ({"new_within_days": 20}, True),
        ({"new_within_days": 19}, False),
        ({"applies_from": NOON}, True),
        ({"applies_from": NOON + timedelta(milliseconds=1)}, False),
    ],
)
def test_a_campaign_is_for_its_days_behaviours_and_target_group(
    changes: dict[str, Any], fits: bool
) -> None:
    assert earned(100_000, campaign(**changes)).points == (200 if fits else 100)


def test_who_it_is_is_asked_only_where_a_campaign_has_a_target_group() -> None:
    def never() -> Who:
        raise AssertionError("nobody asked")

    assert earned(100_000, campaign(), who=never).points == 200
    elsewhere = campaign(behaviours=frozenset({"metro_km"}), grades=frozenset({"deep"}))
    assert earned(100_000, elsewhere, who=never).points == 100
    with pytest.raises(AssertionError, match="nobody asked"):
        earned(100_000, campaign(grades=frozenset({"deep"})), who=never)


@pytest.mark.parametrize(
    ("used", "bonus", "reasons"),
    [
        ((0, 0), 50, ("campaign_cap",)),
        ((20, 20), 30, ("campaign_cap",)),
        ((50, 50), 0, ("campaign_cap",)),
        ((0, 90), 10, ("campaign_cap",)),
        ((0, 100), 0, ("campaign_cap",)),
    ],
)
def test_a_resident_has_so_much_bonus_a_day_and_so_much_in_all(
    used: tuple[int, int], bonus: int, reasons: tuple[str, ...]
) -> None:
    capped = campaign(day_points_max=50, total_points_max=100)
    found = earned(100_000, capped, used=used)
    assert (found.points, found.reasons) == (100 + bonus, reasons)
    assert found.parts[1].limit == bonus
    # Within the cap nothing is said: 40 g of bonus into a room of 50.
    assert earned(40_000, capped).reasons == ()


def test_a_funder_that_runs_low_pays_less_and_says_so() -> None:
    # Half of 139.88: 69.94.
    found = earned(139_880, rates=(rate(500),))
    assert (found.points, found.reasons) == (69, ("budget_slowed",))
    assert found.parts[0].rate == "city@1"


def test_a_spent_funder_pays_nothing_and_is_still_named() -> None:
    found = earned(139_880, rates=(rate(0),))
    assert (found.points, found.reasons, found.funder) == (0, ("budget_spent",), "city")
    assert paid(found) == [("city", None, 0)]
    # Nobody is told about budgets for an activity that is worth nothing.
    assert earned(0, rates=(rate(0),)).reasons == ()


def test_the_next_by_priority_takes_over_if_the_rule_says_so() -> None:
    rule = replace(RULE, when_spent=NEXT)
    later = BANK._replace(funder="shop", priority=9)
    closed = BANK._replace(funder="aaa", priority=1, covers=False)
    found = earned(139_880, rule=rule, rates=(rate(0), later, closed))
    assert (paid(found), found.reasons) == ([("bank", None, 139)], ())
    slower = BANK._replace(number=2, permille=500)
    found = earned(139_880, rule=rule, rates=(rate(0), slower))
    assert (paid(found), found.reasons) == ([("bank", None, 69)], ("budget_slowed",))
    nobody = BANK._replace(number=2, permille=0)
    found = earned(139_880, rule=rule, rates=(rate(0), nobody))
    assert (paid(found), found.reasons) == ([("city", None, 0)], ("budget_spent",))


def test_a_bonus_whose_funder_is_spent_ends_alone() -> None:
    found = earned(100_000, campaign(), rates=(BANK._replace(number=2, permille=0),))
    assert (paid(found), found.reasons) == (
        [("city", None, 100), ("bank", "cmp_1@1", 0)],
        ("campaign_spent",),
    )


def test_funders_may_share_the_base() -> None:
    rule = replace(RULE, funders=(Share("city", 70), Share("bank", 30)))
    # 70 % of 139.88 = 97.916; all of it 139.88: the bank pays what is left of the 139.
    assert paid(earned(139_880, rule=rule)) == [("city", None, 97), ("bank", None, 42)]


def test_a_record_applies_from_its_own_instant_and_the_newest_counts() -> None:
    soon = rate(500, number=2)._replace(applies_from=NOON)
    rates = (rate(1_000), soon)
    before = NOON - timedelta(milliseconds=1)
    assert earned(100_000, rates=rates, now=before).parts[0].rate == "city@1"
    assert earned(100_000, rates=rates, now=NOON).parts[0].rate == "city@2"


def test_less_than_the_minimum_is_not_given() -> None:
    rule = replace(RULE, minimum_points=10)
    assert earned(9_999, rule=rule).reasons == ("below_minimum",)
    assert earned(9_999, rule=rule).points == 0
    assert earned(10_000, rule=rule).points == 10
    assert earned(400, rule=rule).reasons == ()


def test_the_rule_is_that_of_the_day_of_the_activity() -> None:
    june = replace(RULE, version="JUNE", valid_from=date(2026, 6, 1), points_per_gram=Fraction(2))
    terms = Terms((RULE, june))
    assert terms.rule_on(date(2026, 5, 31)) is RULE
    assert terms.rule_on(date(2026, 6, 1)) is june
    assert terms.rule_on(date(2020, 1, 1)) is RULE


@given(
    mg=st.integers(0, 10**9),
    permille=st.integers(0, 1_000),
    multiplier=st.fractions(Fraction(1), Fraction(5), max_denominator=100),
    share=st.integers(1, 99),
)
def test_parts_add_up_to_the_exact_sum_rounded_down(
    mg: int, permille: int, multiplier: Fraction, share: int
) -> None:
    rule = replace(RULE, funders=(Share("city", share), Share("bank", 100 - share)))
    found = earned(mg, campaign(str(multiplier)), rule=rule, rates=(rate(permille),))
    city = Fraction(share * permille, 100 * 1_000)
    exact = Fraction(mg, 1_000) * (city + Fraction(100 - share, 100) + multiplier - 1)
    assert found.points == exact.__floor__() == sum(part.points for part in found.parts)
    assert min(part.points for part in found.parts) >= 0
    # An entry can be judged again from what it says.
    assert earning.split(found.parts, mg) == [part.points for part in found.parts]


@given(
    totals=st.lists(st.integers(0, 10**7), min_size=2, max_size=6).map(sorted),
    permille=st.integers(0, 1_000),
    multiplier=st.fractions(Fraction(1), Fraction(5), max_denominator=100),
    share=st.integers(1, 99),
)
def test_a_growing_total_earns_at_each_part_what_it_grows_by(
    totals: list[int], permille: int, multiplier: Fraction, share: int
) -> None:
    low = (rate(permille),)
    told = [earned(mg - above, rates=low, above_mg=above) for above, mg in pairwise([0, *totals])]
    assert sum(one.points for one in told) == earned(totals[-1], rates=low).points
    three = replace(RULE, funders=(Share("city", share), Share("bank", 100 - share)))
    bonus = campaign(str(multiplier))
    told = [
        earned(mg - above, bonus, rule=three, above_mg=above)
        for above, mg in pairwise([0, *totals])
    ]
    assert sum(one.points for one in told) == earned(totals[-1], bonus, rule=three).points
    held = campaign(str(multiplier), id="cmp_2", day_points_max=3)
    told += [
        earned(mg - above, bonus, held, rule=three, above_mg=above)
        for above, mg in pairwise([0, *totals])
    ]
    for (above, mg), found in zip(2 * list(pairwise([0, *totals])), told, strict=True):
        assert min(part.points for part in found.parts) >= 0
        assert earning.split(found.parts, mg - above, above) == [
            part.points for part in found.parts
        ]


def test_nobody_is_paid_twice_for_a_point_of_a_growing_total() -> None:
    # 0.95 g x 1.5 = 1.425: 1, all of it bonus. 1.05 g x 1.5 = 1.575: 1 as before, though the base
    # alone is at its first whole point now. 2 g x 1.5 = 3: one each.
    steps = [(950, 0), (100, 950), (950, 1_050)]
    told = [earned(mg, campaign("1.5"), above_mg=above) for mg, above in steps]
    assert [[part.points for part in one.parts] for one in told] == [[0, 1], [0, 0], [1, 1]]
    # Where nothing is left of the bonus the base has its point as soon as it is whole.
    spent = campaign("1.5", day_points_max=5)
    told = [earned(mg, spent, above_mg=above, used=(5, 5)) for mg, above in steps]
    assert [[part.points for part in one.parts] for one in told] == [[0, 0], [1, 0], [1, 0]]


def test_a_bonus_with_a_cap_does_not_grow_with_how_often_a_total_is_told() -> None:
    # 100 g at 1.5, told every 100 mg: 100 and 50, as if told once.
    held = campaign("1.5", day_points_max=1_000)
    told = [earned(100, held, above_mg=above) for above in range(0, 100_000, 100)]
    assert [sum(one.parts[place].points for one in told) for place in (0, 1)] == [100, 50]


@given(points=st.integers(-(10**6), 10**6))
def test_a_correction_is_shared_like_the_points_were(points: int) -> None:
    parts = earned(100_000, campaign("1.5")).parts
    # The bank pays a third of all: 0.5 of 1.5 points a gram.
    amounts = earning.shared(parts, points)
    assert sum(amounts) == points
    assert abs(amounts[1] - Fraction(points, 3)) <= 1
    capped = earned(100_000, campaign("1.5", day_points_max=10)).parts
    assert earning.shared(capped, 30) == [30, 0]
    assert earning.shared(capped, -30) == [-20, -10]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('points_per_gram = "1"', "points_per_gram = 1.5", "points_per_gram: must be a number as"),
        ('points_per_gram = "1"', 'points_per_gram = "-1"', "points_per_gram: must be"),
        ("share_percent = 100", "share_percent = 99", "funders: shares must be positive"),
        ("minimum_points = 0 ", "minimum_points = -1 ", "minimum_points: must be a whole"),
        ('when_spent = "stop"', 'when_spent = "never"', "when_spent: must be one of: stop, next"),
        ('reversal_policy = "owed"', "", "reversal_policy: is missing"),
        ("valid_from = 2024-01-01", "valid_from = 2024", "valid_from: must be a date"),
        ('id = "city"', 'id = "city"\nnote = "x"', "funders: each needs id and share_percent"),
        ("minimum_points = 0 ", "bonus = 1\nminimum_points = 0 ", "bonus: is unknown"),
    ],
)
def test_a_rule_that_cannot_be_used_says_which_field_is_wrong(
    old: str, new: str, says: str
) -> None:
    text = (earning.FOLDER / "QZ-PTS-2026.1.toml").read_text(encoding="utf-8")
    assert text.count(old) == 1
    with pytest.raises(EarningRuleError, match=f"draft: {says}"):
        earning.load(text.replace(old, new), "draft")


def test_fen_are_rounded_once_and_lines_add_up() -> None:
    # 79 points at 200 fen per 1,000: 15.8 fen.
    assert valuing.fen(79, 200) == 15
    # 10 + 10 + 5 points at 300 per 1,000: 7.5 -> 7; 3.0, 3.0 and 1.5.
    assert valuing.lines({"a": 10, "b": 10, "c": 5}, 300) == {"a": 3, "b": 3, "c": 1}
    # 1 + 1 + 1 points at 1,000: thirds of 2 fen.
    assert valuing.shares(2, {"a": 1, "b": 1, "c": 1}) == {"a": 1, "b": 1, "c": 0}
    assert valuing.points_for(100, 300) == 333
