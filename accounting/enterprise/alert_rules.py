"""What is worth a warning: the rules of a plant's alerts, pure.

Each rule looks at one series (a node, or the plant, and a carrier) and answers a `Verdict`, or None
where it cannot judge: a day with gaps, too little history. No rule judges on estimates alone.
Quantities are integers in the smallest unit of the carrier (Wh for electricity).

EWMA (lambda 0.2, L 3) and CUSUM (k 0.5, h 5) are the usual control charts, on residuals against the
like days, because loads are not independent. Where numbers come from: docs/alerts.md.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction

from accounting import clock
from accounting.enterprise import workdays
from accounting.enterprise.slots import SLOTS

# Days before a day that its rules look at: eight weeks of reference, four that are watched.
HISTORY_DAYS = 83
WATCHED_DAYS = 28
REFERENCE_DAYS_MIN = 14
KIND_DAYS_MIN = 2
LIKE_DAYS = 8
LIKE_DAYS_MIN = 4
NIGHTS, NIGHTS_MIN = 30, 14
# A day is judged when nothing of it is missing and so much of it was measured.
ACTUAL_MIN = Fraction(9, 10)
# Normal slots after which a limit is over: two hours.
NORMAL_SLOTS = 8
HYSTERESIS = Fraction(95, 100)
LAMBDA, EWMA_L = Decimal("0.2"), Decimal(3)
CUSUM_K, CUSUM_H = Decimal("0.5"), Decimal(5)
# A single day is the business of A2: in the charts it counts for no more than this.
Z_MAX = Decimal(4)
SIGMA_MIN = Decimal("0.01")
STANDBY = Fraction(12, 10)
STANDBY_SHARE_MIN = Fraction(1, 100)
NIGHT_SLOTS = frozenset(range(20))
SLOTS_PER_HOUR = 4
# Before a tenth of it was due a plan says nothing of whether one is ahead of it.
PLANNED_MIN = Fraction(1, 10)


class Rule(StrEnum):
    LIMIT = "A1"
    DAY_TOTAL = "A2"
    EWMA = "A3"
    CUSUM = "A4"
    STANDBY = "A5"
    DEMAND = "A6"
    BUDGET = "A7"
    FORECAST = "A8"
    SILENT = "A9"
    QUALITY = "A10"
    LABEL = "A11"
    SURPLUS = "A12"


class Severity(StrEnum):
    INFORMATION = "information"
    NOTICE = "notice"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        return list(Severity).index(self)


Facts = Mapping[str, int | str]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule says of a day: how bad, or None for nothing wrong, and the numbers it saw."""

    rule: Rule
    severity: Severity | None
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SlotVerdict:
    """What a limit says of a day's slots, which end at the first that nobody has measured yet.

    `first` and `last` are the slots over the limit, `normal_after` the measured slots since, `hot`
    whether the last measured slot was over.
    """

    rule: Rule
    severity: Severity | None
    first: int | None
    last: int | None
    normal_after: int
    hot: bool
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DayFigures:
    """A day of a series. `kind` is the first ISO weekday whose shifts are those of this day.

    `shift` is the sum inside the shifts, None without a calendar; `rest` that of the `rest_slots`
    outside of them, or of the night. `judged` is whether all of it is known and nine tenths were
    measured.
    """

    day: date
    kind: int
    total: int
    shift: int | None
    rest: int
    rest_slots: int
    judged: bool


def kinds_of(schedule: Mapping[int, frozenset[int]]) -> dict[int, int]:
    """The kind of each ISO weekday; without a calendar working days, Saturdays and Sundays."""
    if not any(schedule.values()):
        return {weekday: 1 if weekday < 6 else weekday for weekday in range(1, 8)}
    first: dict[frozenset[int], int] = {}
    return {
        weekday: first.setdefault(schedule.get(weekday, frozenset()), weekday)
        for weekday in range(1, 8)
    }


def day_total(today: DayFigures, history: Sequence[DayFigures]) -> Verdict | None:
    """A2: the day, and its shifts, against the median of the like days before.

    More than 10 % over is a notice, 20 % a warning, 30 % critical; the worse of the two counts.
    """
    like = [one for one in history if one.judged and one.kind == today.kind][-LIKE_DAYS:]
    if not today.judged or len(like) < LIKE_DAYS_MIN:
        return None
    found = [_excess("day", today.total, [one.total for one in like])]
    shifts = [one.shift for one in like if one.shift is not None]
    if today.shift is not None and len(shifts) == len(like):
        found.append(_excess("shift", today.shift, shifts))
    return max(found, key=lambda one: one.severity.rank if one.severity else -1)


def _excess(part: str, used: int, before: Sequence[int]) -> Verdict:
    expected = median(before)
    severity = None
    for percent, level in (
        (110, Severity.NOTICE),
        (120, Severity.WARNING),
        (130, Severity.CRITICAL),
    ):
        if used * 100 > expected * percent:
            severity = level
    facts: Facts = {"part": part, "used": used, "expected": expected, "like_days": len(before)}
    return Verdict(Rule.DAY_TOTAL, severity, facts)


def median(values: Sequence[int]) -> int:
    """The middle value; of an even number the mean of both, rounded down."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) // 2


def standard_scores(today: DayFigures, history: Sequence[DayFigures]) -> list[Decimal] | None:
    """The residuals of the watched days in standard deviations of the reference, oldest first.

    The last 28 judged days are watched (fewer, as long as 14 are left before them); the days before
    give the mean of each kind of day and the spread of what is left when it is taken away. So what
    creeps up is not measured against itself. None where today cannot be judged.
    """
    days = [one for one in history if one.judged]
    watched = min(WATCHED_DAYS, len(days) + 1 - REFERENCE_DAYS_MIN)
    if not today.judged or watched < 1:
        return None
    days.append(today)
    reference, days = days[:-watched], days[-watched:]
    by_kind: dict[int, list[int]] = defaultdict(list)
    for one in reference:
        by_kind[one.kind].append(one.total)
    means = {
        kind: Decimal(sum(totals)) / len(totals)
        for kind, totals in by_kind.items()
        if len(totals) >= KIND_DAYS_MIN
    }
    used = [one for one in reference if one.kind in means]
    usual = Decimal(sum(one.total for one in used)) / max(1, len(used))
    if today.kind not in means or len(used) < REFERENCE_DAYS_MIN or usual <= 0:
        return None
    squares = sum(((one.total - means[one.kind]) ** 2 for one in used), Decimal(0))
    sigma = max((squares / (len(used) - len(means))).sqrt(), SIGMA_MIN * usual)
    scores = [(one.total - means[one.kind]) / sigma for one in days if one.kind in means]
    return [max(-Z_MAX, min(Z_MAX, score)) for score in scores]


def ewma(scores: Sequence[Decimal]) -> Verdict:
    """A3: an exponentially weighted mean of the scores beyond three of its standard deviations."""
    mean, left = Decimal(0), Decimal(1)
    for score in scores:
        mean = LAMBDA * score + (1 - LAMBDA) * mean
        left *= (1 - LAMBDA) ** 2
    limit = EWMA_L * (LAMBDA / (2 - LAMBDA) * (1 - left)).sqrt()
    return _chart(Rule.EWMA, mean, limit, len(scores))


def cusum(scores: Sequence[Decimal]) -> Verdict:
    """A4: what scores lie beyond half a deviation, added up, is more than five: a slow drift."""
    above = below = Decimal(0)
    for score in scores:
        above = max(Decimal(0), above + score - CUSUM_K)
        below = max(Decimal(0), below - score - CUSUM_K)
    return _chart(Rule.CUSUM, above if above >= below else -below, CUSUM_H, len(scores))


def _chart(rule: Rule, value: Decimal, limit: Decimal, days: int) -> Verdict:
    """More than usual is a warning; less may be a meter that loses, and is worth a notice."""
    severity = None
    if abs(value) > limit:
        severity = Severity.WARNING if value > 0 else Severity.NOTICE
    facts: Facts = {
        "direction": "below" if value < 0 else "above",
        "deviations_thousandths": int(abs(value) * 1_000),
        "limit_thousandths": int(limit * 1_000),
        "days": days,
    }
    return Verdict(rule, severity, facts)


def standby(today: DayFigures, history: Sequence[DayFigures]) -> Verdict | None:
    """A5: more outside the shifts than 1.2 times the 90th percentile of the last 30 nights.

    Nights of another length, and days off, count for as many slots as today has. What is less
    than a hundredth of a usual day more is not worth getting up for.
    """
    before = [one for one in history if one.judged and one.rest_slots][-NIGHTS:]
    if not today.judged or not today.rest_slots or len(before) < NIGHTS_MIN:
        return None
    usual = percentile([one.rest * today.rest_slots // one.rest_slots for one in before], 90)
    floor = STANDBY_SHARE_MIN * median([one.total for one in before])
    over = today.rest > STANDBY * usual and today.rest - usual >= floor
    facts: Facts = {"used": today.rest, "usual": usual, "nights": len(before)}
    return Verdict(Rule.STANDBY, Severity.WARNING if over else None, facts)


def percentile(values: Sequence[int], percent: int) -> int:
    """The smallest value that at least so many percent of them do not exceed (nearest rank)."""
    return sorted(values)[-(-len(values) * percent // 100) - 1]


def over_limit(
    rule: Rule,
    values: Sequence[int | None],
    quality: str,
    levels: Sequence[tuple[Fraction, Severity]],
    hot: bool,
) -> SlotVerdict:
    """A1 and A6: slots above a limit, until one lies below 95 % of it.

    `levels` are quantities of a slot, the lowest first. Only measured slots count; an estimate
    neither raises nor ends anything. `hot` is whether the day before ended above.
    """
    lowest = levels[0][0]
    first: int | None = None
    last: int | None = None
    normal, peak = 0, 0
    for slot in range(SLOTS):
        value = values[slot]
        if value is None or quality[slot] not in "AD":
            continue
        hot = value > (lowest * HYSTERESIS if hot else lowest)
        if hot:
            first, last, normal = slot if first is None else first, slot, 0
            peak = max(peak, value)
        else:
            normal += 1
    reached = [severity for limit, severity in levels if peak > limit]
    # What stayed hot over midnight may have no peak of its own today.
    severity = None if last is None else (reached[-1] if reached else levels[0][1])
    facts: Facts = {"peak": peak, "limit": int(lowest)} if last is not None else {}
    return SlotVerdict(rule, severity, first, last, normal, hot, facts)


def silent(now: datetime, heard_until: datetime, interval: timedelta) -> Severity | None:
    """A9: three intervals without a word are a notice, an hour a warning, three working days worse.

    A meter that intervals of an hour come from may be silent for three of them. Three working days
    are what the national rule gives for a repair.
    """
    age = now - heard_until
    if working_days(clock.city_day(heard_until), clock.city_day(now)) > 3:
        return Severity.CRITICAL
    if age > max(timedelta(hours=1), 4 * interval):
        return Severity.WARNING
    return Severity.NOTICE if age > 3 * interval else None


def working_days(after: date, until: date) -> int:
    """The days in `(after, until]` that are worked on: no weekend, no holiday."""
    days = (after + timedelta(days=number) for number in range(1, (until - after).days + 1))
    return sum(not workdays.rests(workdays.kind_of(day)) for day in days)


def data_quality(actual: int, estimated: int, expected: int) -> Verdict:
    """A10: of a meter's slots of a month under 90 % measured, or over 10 % estimated."""
    poor = actual * 100 < expected * 90 or estimated * 100 > expected * 10
    facts: Facts = {
        "actual": actual,
        "estimated": estimated,
        "expected": expected,
    }
    return Verdict(Rule.QUALITY, Severity.WARNING if poor else None, facts)


def budget_progress(used: int, plan: int, planned: int) -> Verdict | None:
    """A7: 80, 90 or all of a budget used, or a tenth more than was `planned` by now."""
    if plan <= 0:
        return None
    severity = None
    for percent, level in (
        (80, Severity.NOTICE),
        (90, Severity.WARNING),
        (100, Severity.CRITICAL),
    ):
        if used * 100 >= plan * percent:
            severity = level
    early = planned < plan * PLANNED_MIN
    if severity is None and not early and used * 100 > planned * 110:
        severity = Severity.NOTICE
    return Verdict(Rule.BUDGET, severity, {"used": used, "plan": plan, "planned_by_now": planned})


def budget_forecast(forecast: int, plan: int) -> Verdict | None:
    """A8: the year is going to take more than its budget."""
    if plan <= 0:
        return None
    severity = Severity.WARNING if forecast > plan else None
    return Verdict(Rule.FORECAST, severity, {"forecast": forecast, "plan": plan})


def surplus(used: int, planned: int) -> Verdict | None:
    """A12, at the end of a quarter: over a tenth of what was planned so far was saved."""
    if planned <= 0:
        return None
    severity = Severity.INFORMATION if used * 100 < planned * 90 else None
    return Verdict(Rule.SURPLUS, severity, {"used": used, "planned_by_now": planned})


def slot_limit(kw: Decimal) -> Fraction:
    """The watt-hours of a quarter hour at a mean power."""
    return Fraction(kw) * 1_000 / SLOTS_PER_HOUR
