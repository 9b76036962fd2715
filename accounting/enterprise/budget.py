"""The budget of a plant's year: what was planned, what is used, where the year will end. Pure.

Amounts are integers: energy in Wh, coal equivalent in mg, CO2e in mg. A day nobody measured is
missing: it is never counted as zero, and the forecast fills it like a day to come. Of a day that is
known in part the forecast takes the rest to be like what is known.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from enum import StrEnum
from fractions import Fraction
from math import floor

from accounting import clock
from accounting.errors import ValidationFailed

# A year stands for the next one if nine days in ten of it are known (V21's share).
SHARE_KNOWN = Fraction(9, 10)
# So many days of this year say how it goes against the last one.
DAYS_TO_COMPARE = 28
# How far back a forecast without a last year looks.
RECENT_DAYS = 56
_DAY = timedelta(days=1)


class Measure(StrEnum):
    """What is budgeted; the value names the integer amount that is stored."""

    ENERGY = "energy_wh"
    COAL = "coal_mg"
    CARBON = "co2e_mg"


class Method(StrEnum):
    """How a forecast was made: see `forecast`."""

    ACTUAL = "actual"
    LAST_YEAR = "last_year"
    RECENT_WEEKS = "recent_weeks"
    NO_DATA = "no_data"


Amounts = Mapping[Measure, int]


@dataclass(frozen=True, slots=True)
class Day:
    """What is known of a day: the amount, and the share of the whole day it was measured over."""

    amount: int
    share: Fraction = Fraction(1)

    @property
    def whole(self) -> Fraction:
        return self.amount / self.share


Days = Mapping[date, Day]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a plant may use in a year, and in those months that were told one by one."""

    year: int
    yearly: Amounts
    monthly: Mapping[str, Amounts] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the whole year will have used; None where nothing is known of it."""

    amount: int | None
    method: Method


@dataclass(frozen=True, slots=True)
class Line:
    """One measure of a year's budget. None: nothing planned, or nothing known.

    `planned_to_date` is what the plan allows on the days that are over; `months` holds
    (planned, used) of the twelve months.
    """

    plan: int | None
    used: int | None
    planned_to_date: int | None
    forecast: Forecast
    months: tuple[tuple[int | None, int | None], ...]

    @property
    def surplus(self) -> int | None:
        """What the forecast leaves of the plan; negative is a shortage."""
        if self.plan is None or self.forecast.amount is None:
            return None
        return self.plan - self.forecast.amount

    @property
    def progress(self) -> Fraction | None:
        """The share of the year's plan that is used; None without a plan, or with one of zero."""
        return None if not self.plan or self.used is None else Fraction(self.used, self.plan)

    @property
    def ahead(self) -> Fraction | None:
        """How far use is ahead of the plan to date, as a share of it; negative is a saving."""
        if not self.planned_to_date or self.used is None:
            return None
        return Fraction(self.used, self.planned_to_date) - 1


def check(plan: Plan) -> None:
    """Raises `ValidationFailed` for a plan that plans nothing or does not add up."""
    if not plan.yearly and not any(plan.monthly.values()):
        raise ValidationFailed("/yearly", "Nothing is planned.", "未填写任何预算。")
    for month in plan.monthly:
        if month not in clock.months_of(plan.year):
            raise ValidationFailed(
                "/monthly",
                f"{month} is no month of {plan.year}.",
                f"{month} 不属于 {plan.year} 年。",
            )
    for measure, whole in plan.yearly.items():
        told = _told(plan, measure)
        total = sum(told.values())
        if total > whole or (len(told) == 12 and total != whole):
            raise ValidationFailed(
                "/monthly",
                "The months do not add up to the year.",
                "各月预算之和与年度预算不符。",
            )


def by_month(plan: Plan, measure: Measure) -> tuple[int | None, ...]:
    """The plan of each of the twelve months; None where there is none.

    What the year has beyond the months told is spread over the others by their days, and the sum
    is exactly the year's.
    """
    months, told = clock.months_of(plan.year), _told(plan, measure)
    whole = plan.yearly.get(measure)
    if whole is None:
        return tuple(told.get(month) for month in months)
    rest, days = whole - sum(told.values()), 0
    length = sum(_length(month) for month in months if month not in told)
    spread: dict[str, int] = {}
    for month in months:
        if month not in told:
            # Rounded on the running sum, so that nothing is lost between the months.
            begin = rest * days // length
            days += _length(month)
            spread[month] = rest * days // length - begin
    return tuple(told[month] if month in told else spread[month] for month in months)


def of_year(plan: Plan, measure: Measure) -> int | None:
    """The year's plan; the sum of the months where all twelve were told and the year was not."""
    if measure in plan.yearly:
        return plan.yearly[measure]
    told = _told(plan, measure)
    return sum(told.values()) if len(told) == 12 else None


def planned_until(plan: Plan, measure: Measure, end: date) -> int | None:
    """What the plan allows on the days before `end`; a month counts day by day, rounded down."""
    if of_year(plan, measure) is None:
        return None
    total = Fraction(0)
    for month, amount in zip(clock.months_of(plan.year), by_month(plan, measure), strict=True):
        assert amount is not None, "a year that is planned has a plan for each month"
        over = (end - clock.first_day(month)).days
        total += Fraction(amount * min(max(over, 0), _length(month)), _length(month))
    return int(total)


def forecast(year: int, today: date, this: Days, last: Days) -> Forecast:
    """Where the year will end, from the days that are over; rounded down once.

    With a last year of which 90 % is known: each day to come uses what its day used last year,
    times the ratio of both years over the days known in both (28 at least). Else: the mean of its
    weekday over the last 56 days; a weekday without any takes the mean of all.
    """
    known = _known(year, today, this)
    # Today is not over: it says something only where no other day does.
    over = {day: told for day, told in known.items() if day < today} or known
    if not over:
        return Forecast(None, Method.NO_DATA)
    used = sum(told.amount for told in known.values())
    total = sum((told.whole for told in over.values()), Fraction(0))
    open_days = [day for day in _days(year) if day not in over]
    if not open_days:
        method = Method.ACTUAL
    else:
        rest, method = _like_last_year(year, over, last, open_days), Method.LAST_YEAR
        if rest is None:
            rest, method = _like_recent_weeks(over, open_days), Method.RECENT_WEEKS
        total += rest
    return Forecast(max(floor(total), used), method)


def line(
    year: int, plan: Plan | None, measure: Measure, today: date, this: Days, last: Days
) -> Line:
    """One measure of a year's budget as it stands on `today`, from the days of it and the last."""
    known = _known(year, today, this)
    used: dict[str, int] = {}
    for day, told in known.items():
        used[clock.month_of(day)] = used.get(clock.month_of(day), 0) + told.amount
    planned = by_month(plan, measure) if plan else (None,) * 12
    return Line(
        plan=of_year(plan, measure) if plan else None,
        used=sum(used.values()) if used else None,
        planned_to_date=planned_until(plan, measure, today) if plan else None,
        forecast=forecast(year, today, this, last),
        months=tuple(
            (amount, used.get(month))
            for month, amount in zip(clock.months_of(year), planned, strict=True)
        ),
    )


def _known(year: int, today: date, days: Days) -> Days:
    return {day: told for day, told in days.items() if day.year == year and day <= today}


def _like_last_year(
    year: int, over: Days, last: Days, open_days: Sequence[date]
) -> Fraction | None:
    """What the open days will use if they follow last year; None where it cannot say."""
    if len(last) < SHARE_KNOWN * len(_days(year - 1)):
        return None
    both = [day for day in over if _before(day) in last]
    base = sum((last[_before(day)].whole for day in both), Fraction(0))
    told = [last[_before(day)].whole for day in open_days if _before(day) in last]
    if len(both) < DAYS_TO_COMPARE or base <= 0 or not told:
        return None
    ratio = sum((over[day].whole for day in both), Fraction(0)) / base
    return ratio * sum(told, Fraction(0)) * len(open_days) / len(told)


def _like_recent_weeks(over: Days, open_days: Sequence[date]) -> Fraction:
    newest = max(over)
    recent = {day: told.whole for day, told in over.items() if newest - day < RECENT_DAYS * _DAY}
    mean = _mean(recent.values())
    means = {
        weekday: _mean([whole for day, whole in recent.items() if day.isoweekday() == weekday])
        for weekday in {day.isoweekday() for day in recent}
    }
    return sum((means.get(day.isoweekday(), mean) for day in open_days), Fraction(0))


def _mean(amounts: Collection[Fraction]) -> Fraction:
    return sum(amounts, Fraction(0)) / len(amounts)


def _told(plan: Plan, measure: Measure) -> dict[str, int]:
    return {month: told[measure] for month, told in plan.monthly.items() if measure in told}


def _length(month: str) -> int:
    return clock.last_day(month).day


def _days(year: int) -> list[date]:
    first = date(year, 1, 1)
    return [first + number * _DAY for number in range((date(year + 1, 1, 1) - first).days)]


def _before(day: date) -> date:
    """The same day a year before; of 29 February the 28th."""
    if (day.month, day.day) == (2, 29):
        return date(day.year - 1, 2, 28)
    return day.replace(year=day.year - 1)
