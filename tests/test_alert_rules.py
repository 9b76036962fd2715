"""The rules of alerts, by hand."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest

from accounting.enterprise import alert_rules
from accounting.enterprise.alert_rules import DayFigures, Rule, Severity, Verdict
from accounting.enterprise.slots import SLOTS

MONDAY = date(2026, 5, 18)
QUARTER = timedelta(minutes=15)


def day(number: int, total: int, rest: int = 10, shift: int | None = None) -> DayFigures:
    """A judged day, so many days from Monday, all of one kind."""
    return DayFigures(MONDAY + timedelta(days=number), 1, total, shift, rest, 48, judged=True)


def before(*totals: int) -> list[DayFigures]:
    return [day(number - len(totals), total) for number, total in enumerate(totals)]


def severity(found: Verdict | None) -> Severity | None:
    assert found is not None
    return found.severity


def test_weekdays_of_one_calendar_are_one_kind() -> None:
    assert alert_rules.kinds_of({}) == {1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 6, 7: 7}
    early = frozenset(range(32, 64))
    # Mondays and Wednesdays work, the other five do not.
    assert alert_rules.kinds_of({1: early, 3: early}) == {1: 1, 2: 2, 3: 1, 4: 2, 5: 2, 6: 2, 7: 2}


@pytest.mark.parametrize(
    ("total", "wanted"),
    [
        (1_100, None),
        (1_101, Severity.NOTICE),
        (1_200, Severity.NOTICE),
        (1_201, Severity.WARNING),
        (1_300, Severity.WARNING),
        (1_301, Severity.CRITICAL),
        (10, None),
    ],
)
def test_a_day_is_held_against_the_median_of_like_days(total: int, wanted: Severity | None) -> None:
    # The median of 900, 1,000, 1,000 and 5,000 is 1,000: one wild day moves nothing.
    found = alert_rules.day_total(day(0, total), before(900, 1_000, 5_000, 1_000))
    assert severity(found) is wanted
    assert found is not None
    assert (found.facts["expected"], found.facts["like_days"]) == (1_000, 4)


def test_a_shift_that_took_more_shows_in_a_day_that_did_not() -> None:
    history = [day(-number, 100, shift=50) for number in range(4, 0, -1)]
    # 66 in the shifts are 132 % of 50, the day of 104 only 104 %.
    found = alert_rules.day_total(day(0, 104, shift=66), history)
    assert (severity(found), found and found.facts["part"]) == (Severity.CRITICAL, "shift")


def test_no_rule_judges_a_day_with_gaps_or_without_a_past() -> None:
    gaps = DayFigures(MONDAY, 1, 9_999, None, 9_999, 48, judged=False)
    history = before(*[100] * 40)
    assert alert_rules.day_total(gaps, history) is None
    assert alert_rules.standby(gaps, history) is None
    assert alert_rules.standard_scores(gaps, history) is None
    assert alert_rules.day_total(day(0, 100), before(100, 100, 100)) is None
    assert alert_rules.standby(day(0, 100), before(*[100] * 13)) is None
    assert alert_rules.standard_scores(day(0, 100), before(*[100] * 13)) is None
    # Days that were not judged are no past either.
    unknown = [DayFigures(one.day, 1, one.total, None, 0, 48, judged=False) for one in history]
    assert alert_rules.day_total(day(0, 100), unknown) is None


def test_residuals_are_in_deviations_of_the_reference() -> None:
    # 14 days of 98 and 102 in turn: mean 100, residuals of 2, variance 14 x 4 / 13 = 4.3077,
    # deviation 2.0755. 106 lies 6 / 2.0755 = 2.8909 of them above.
    [score] = alert_rules.standard_scores(day(0, 106), before(*[98, 102] * 7)) or []
    assert score.quantize(Decimal("0.0001")) == Decimal("2.8909")
    # A flat reference has a deviation of 1 % at least, and one day counts for four at most.
    assert alert_rules.standard_scores(day(0, 103), before(*[100] * 14)) == [Decimal(3)]
    assert alert_rules.standard_scores(day(0, 500), before(*[100] * 14)) == [Decimal(4)]


def test_what_is_watched_is_no_reference_of_its_own() -> None:
    # 20 days known with today: the first 14 are the reference, the last 6 are watched.
    scores = alert_rules.standard_scores(day(0, 102), before(*[100] * 14, *[101] * 5))
    assert scores == [*[Decimal(1)] * 5, Decimal(2)]
    # Of 84 days the last 28.
    scores = alert_rules.standard_scores(day(0, 100), before(*[100] * 83))
    assert scores == [Decimal(0)] * 28


@pytest.mark.parametrize(
    ("scores", "shown", "limit", "wanted"),
    [
        # One day of 2: 0.2 x 2 = 0.4 below 3 x sqrt(0.2 / 1.8 x (1 - 0.64)) = 0.6.
        (["2"], 400, 600, None),
        (["4"], 800, 600, Severity.WARNING),
        # 0.2 x 2 = 0.4, then 0.4 + 0.32 = 0.72; limit 3 x sqrt(0.11111 x (1 - 0.4096)) = 0.7684.
        (["2", "2"], 720, 768, None),
        # 0.2 x -4 = -0.8, then -1.44.
        (["-4", "-4"], 1_440, 768, Severity.NOTICE),
    ],
)
def test_ewma(scores: list[str], shown: int, limit: int, wanted: Severity | None) -> None:
    found = alert_rules.ewma([Decimal(one) for one in scores])
    assert found.severity is wanted
    facts = found.facts
    assert (facts["deviations_thousandths"], facts["limit_thousandths"]) == (shown, limit)
    assert facts["direction"] == ("below" if scores[0].startswith("-") else "above")


def test_a_slow_drift_adds_up() -> None:
    # 1.5 deviations a day are 1.0 beyond k: 5.0 after five days is not more than 5, 6.0 is.
    drift = [Decimal("1.5")] * 5
    assert alert_rules.cusum(drift).severity is None
    found = alert_rules.cusum([*drift, Decimal("1.5")])
    assert (found.severity, found.facts["deviations_thousandths"]) == (Severity.WARNING, 6_000)
    # The same downwards: a meter that loses.
    found = alert_rules.cusum([-one for one in [*drift, Decimal(2)]])
    assert (found.severity, found.facts["direction"]) == (Severity.NOTICE, "below")
    # Half a deviation is the noise that is let pass for ever.
    assert alert_rules.cusum([Decimal("0.5")] * 28).severity is None


def test_standby_is_held_against_the_nights_before() -> None:
    history = [day(-number, 1_000, rest=100) for number in range(14, 0, -1)]
    assert severity(alert_rules.standby(day(0, 1_000, rest=120), history)) is None
    found = alert_rules.standby(day(0, 1_000, rest=121), history)
    assert (severity(found), found and found.facts["usual"]) == (Severity.WARNING, 100)
    # From 5 to 14 is more than 1.2 times, and less than a hundredth of a day of 1,000.
    small = [day(-number, 1_000, rest=5) for number in range(14, 0, -1)]
    assert severity(alert_rules.standby(day(0, 1_000, rest=14), small)) is None
    # A day off has 96 such slots and not 48: twice 100 is no more than usual.
    off = replace(day(0, 1_000, rest=200), rest_slots=96)
    assert severity(alert_rules.standby(off, history)) is None
    assert severity(alert_rules.standby(replace(off, rest=241), history)) is Severity.WARNING
    # Nearest rank: nine of ten values are at most 9.
    assert alert_rules.percentile(range(1, 11), 90) == 9


def slots(*values: int | None) -> list[int | None]:
    return [*values, *[100] * (SLOTS - len(values))]


def test_a_limit_is_left_only_well_below_it() -> None:
    levels = [(Fraction(200), Severity.WARNING)]
    # 201 raises; 195 and 191 lie above 95 % of 200; 190 does not.
    found = alert_rules.over_limit(
        Rule.LIMIT, slots(200, 201, 195, 191, 190), "A" * SLOTS, levels, hot=False
    )
    assert (found.severity, found.first, found.last) == (Severity.WARNING, 1, 3)
    assert (found.normal_after, found.hot, found.facts["peak"]) == (SLOTS - 4, False, 201)
    # What was hot at midnight stays so at 195.
    found = alert_rules.over_limit(Rule.LIMIT, slots(195), "A" * SLOTS, levels, hot=True)
    assert (found.severity, found.first, found.last) == (Severity.WARNING, 0, 0)


def test_estimates_neither_raise_nor_end_a_limit() -> None:
    levels = [(Fraction(200), Severity.WARNING)]
    found = alert_rules.over_limit(Rule.LIMIT, slots(900), "E" + "A" * 95, levels, hot=False)
    assert (found.severity, found.last) == (None, None)
    values: list[int | None] = [201, *[1] * 40, *[None] * 55]
    found = alert_rules.over_limit(Rule.LIMIT, values, "A" + "E" * 40 + "M" * 55, levels, hot=False)
    assert (found.last, found.normal_after, found.hot) == (0, 0, True)


def test_demand_has_two_levels() -> None:
    # 1,000 kW over a quarter of an hour are 250 kWh.
    limit = alert_rules.slot_limit(Decimal(1_000))
    assert limit == 250_000
    levels = [(limit * 9 / 10, Severity.WARNING), (limit, Severity.CRITICAL)]

    def reached(wh: int) -> Severity | None:
        return alert_rules.over_limit(
            Rule.DEMAND, slots(wh), "A" * SLOTS, levels, hot=False
        ).severity

    assert [reached(wh) for wh in (225_000, 225_001, 250_000, 250_001)] == [
        None,
        Severity.WARNING,
        Severity.WARNING,
        Severity.CRITICAL,
    ]


@pytest.mark.parametrize(
    ("heard", "wanted"),
    [
        # Friday noon of the city.
        ("2026-05-22T03:15", None),
        ("2026-05-22T03:14", Severity.NOTICE),
        ("2026-05-22T03:00", Severity.NOTICE),
        ("2026-05-22T02:59", Severity.WARNING),
        # Since Tuesday: Wednesday, Thursday, Friday are three working days, not more.
        ("2026-05-19T04:00", Severity.WARNING),
        ("2026-05-18T04:00", Severity.CRITICAL),
    ],
)
def test_silence_grows_worse(heard: str, wanted: Severity | None) -> None:
    until = datetime.fromisoformat(heard).replace(tzinfo=UTC)
    now = datetime(2026, 5, 22, 4, tzinfo=UTC)
    assert alert_rules.silent(now, until, QUARTER) is wanted
    # A meter read once an hour may miss three hours.
    hour_ago = now - timedelta(hours=3)
    assert alert_rules.silent(now, hour_ago, timedelta(hours=1)) is None


def test_a_weekend_has_no_working_days() -> None:
    friday = date(2026, 5, 22)
    assert alert_rules.working_days(friday, date(2026, 5, 24)) == 0
    assert alert_rules.working_days(friday, date(2026, 5, 25)) == 1
    assert alert_rules.working_days(friday, date(2026, 6, 5)) == 10


def test_nobody_repairs_a_meter_on_a_holiday() -> None:
    """1 to 7 October are off, Saturday the 10th is worked: of ten days the 8th, 9th and 10th."""
    assert alert_rules.working_days(date(2026, 9, 30), date(2026, 10, 7)) == 0
    assert alert_rules.working_days(date(2026, 9, 30), date(2026, 10, 10)) == 3


@pytest.mark.parametrize(
    ("actual", "estimated", "poor"),
    [(90, 10, False), (89, 0, True), (95, 0, False), (89, 11, True), (90, 11, True)],
)
def test_data_quality(actual: int, estimated: int, poor: bool) -> None:
    found = alert_rules.data_quality(actual, estimated, 100)
    assert (found.severity is Severity.WARNING) is poor


def test_budget() -> None:
    def progress(used: int, planned: int = 500) -> Severity | None:
        return severity(alert_rules.budget_progress(used, 1_000, planned))

    assert [progress(used) for used in (550, 551, 800, 900, 1_000)] == [
        None,
        Severity.NOTICE,
        Severity.NOTICE,
        Severity.WARNING,
        Severity.CRITICAL,
    ]
    # On the second of January nobody is ahead of anything.
    assert progress(110, 3) is None
    assert alert_rules.budget_progress(1, 0, 0) is None
    assert severity(alert_rules.budget_forecast(1_000, 1_000)) is None
    assert severity(alert_rules.budget_forecast(1_001, 1_000)) is Severity.WARNING
    assert severity(alert_rules.surplus(449, 500)) is Severity.INFORMATION
    assert severity(alert_rules.surplus(450, 500)) is None
