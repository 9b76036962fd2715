"""What alerts look at once a night: data quality, the label, the budget.

Each review says of every subject it could judge what it found, or that nothing is wrong; what it
could not judge stays as it is. A second review of a night finds the same.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import date, datetime, timedelta
from fractions import Fraction

from accounting import clock
from accounting.enterprise import (
    alert_days,
    alert_rules,
    alerts,
    budget_plans,
    budgets,
    labels,
    plants,
)
from accounting.enterprise.alert_rules import Facts, Rule, Severity, Verdict
from accounting.enterprise.alerts import Finding, Subject, Why
from accounting.enterprise.label_rules import Label
from accounting.enterprise.plants import Plant
from accounting.enterprise.slots import SLOTS
from accounting.errors import DomainError

# Days of a month that say something of its quality.
QUALITY_DAYS_MIN = 7
# The months that begin after a quarter.
QUARTERS = (1, 4, 7, 10)
_DAY = timedelta(days=1)

# What was found of each subject that could be judged; None for nothing.
Judged = Mapping[tuple[Rule, Subject], Finding | None]

log = logging.getLogger(__name__)


def review(now: datetime) -> None:
    """Look at every plant; one that cannot be counted today is left for tomorrow."""
    labels.keep_all(now)
    for plant in plants.everyone():
        for rules, look in REVIEWS:
            try:
                settle(plant.id, rules, look(plant, now))
            except DomainError as refusal:
                log.warning("%s of %s was not reviewed: %s", sorted(rules), plant.id, refusal)


def settle(plant_id: str, rules: Collection[Rule], judged: Judged) -> None:
    """Raise what was found and close what was judged and is fine; the rest stays as it is."""
    for finding in judged.values():
        if finding is not None:
            alerts.found(plant_id, finding)
    for alert in alerts.live(plant_id):
        if alert.rule in rules and judged.get((alert.rule, alert.subject), ...) is None:
            alerts.close(alert, Why.NORMAL)


def quality(plant: Plant, now: datetime) -> Judged:
    """A10: the slots of each meter in yesterday's month, from the first day it was heard on."""
    yesterday = clock.city_day(now) - _DAY
    known = alert_days.between(plant.id, yesterday.replace(day=1), yesterday)
    begun: dict[str, date] = {}
    for day in known.values():
        for name in day.heard:
            begun.setdefault(name, day.day)
    judged: dict[tuple[Rule, Subject], Finding | None] = {}
    for name, since in begun.items():
        days = (yesterday - since).days + 1
        if days >= QUALITY_DAYS_MIN:
            counted = [one.meters[name] for one in known.values() if name in one.meters]
            actual = sum(one.actual for one in counted)
            estimated = sum(one.estimated for one in counted)
            verdict = alert_rules.data_quality(actual, estimated, days * SLOTS)
            subject = Subject(meter=name)
            judged[Rule.QUALITY, subject] = _finding(verdict, subject, since, yesterday)
    return judged


def label(plant: Plant, now: datetime) -> Judged:
    """A11: the label of the last twelve months is worse than the last final one."""
    final = labels.last_final(plant.id, now)
    made = labels.rolling(plant, fresh=False)
    if final is None or made.label is Label.UNRATED:
        return {}
    worse = made.label.rank > final.rank
    facts = {"label": made.label.value, "final": final.value}
    verdict = Verdict(Rule.LABEL, Severity.WARNING if worse else None, facts)
    first, last = clock.first_day(made.months[0]), clock.last_day(made.months[-1])
    subject = Subject(of="label")
    return {(Rule.LABEL, subject): _finding(verdict, subject, first, last)}


def budgeted(plant: Plant, now: datetime) -> Judged:
    """A7, A8 and, on the day after a quarter, A12: what is used, against the plan of the year.

    Each measure is a subject, and so is its month where the year is planned; the facts name both,
    or nobody could tell watt-hours from milligrams.
    """
    today = clock.city_day(now)
    yesterday = today - _DAY
    year, month = yesterday.year, clock.month_of(yesterday)
    if budget_plans.plan_of(plant.id, year) is None:
        return {}
    judged: dict[tuple[Rule, Subject], Finding | None] = {}

    def judge(verdict: Verdict | None, of: str, facts: Facts, since: date) -> None:
        if verdict is not None:
            subject, told = Subject(of=of), replace(verdict, facts={**verdict.facts, **facts})
            judged[verdict.rule, subject] = _finding(told, subject, since, yesterday)

    first, begin = date(year, 1, 1), clock.first_day(month)
    over = Fraction((today - begin).days, clock.last_day(month).day)
    for measure, line in budgets.standing(plant.id, year, fresh=False).lines.items():
        if line.plan is None or line.used is None:
            continue
        name, planned = measure.value, line.planned_to_date or 0
        whole = {"measure": name, "period": f"{year:04d}"}
        judge(alert_rules.budget_progress(line.used, line.plan, planned), name, whole, first)
        if line.forecast.amount is not None:
            verdict = alert_rules.budget_forecast(line.forecast.amount, line.plan)
            judge(verdict, name, whole, first)
        if today.day == 1 and today.month in QUARTERS:
            judge(alert_rules.surplus(line.used, planned), name, whole, first)
        month_plan, month_used = line.months[yesterday.month - 1]
        if month_plan is not None and month_used is not None:
            verdict = alert_rules.budget_progress(month_used, month_plan, int(month_plan * over))
            judge(verdict, f"{name} month", {"measure": name, "period": month}, begin)
    return judged


REVIEWS: tuple[tuple[frozenset[Rule], Callable[[Plant, datetime], Judged]], ...] = (
    (frozenset({Rule.QUALITY}), quality),
    (frozenset({Rule.LABEL}), label),
    (frozenset({Rule.BUDGET, Rule.FORECAST, Rule.SURPLUS}), budgeted),
)


def _finding(verdict: Verdict, subject: Subject, first: date, last: date) -> Finding | None:
    if verdict.severity is None:
        return None
    begin, end = clock.start_of(first), clock.start_of(last + _DAY)
    return Finding(verdict.rule, subject, verdict.severity, begin, end, verdict.facts)
