"""What alerts look at once a night: data quality.

Each review says of every subject it could judge what it found, or that nothing is wrong; what it
could not judge stays as it is. A second review of a night finds the same.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from datetime import date, datetime, timedelta

from accounting import clock
from accounting.enterprise import alert_days, alert_rules, alerts, plants
from accounting.enterprise.alert_rules import Rule, Verdict
from accounting.enterprise.alerts import Finding, Subject, Why
from accounting.enterprise.plants import Plant
from accounting.enterprise.slots import SLOTS
from accounting.errors import DomainError

# Days of a month that say something of its quality.
QUALITY_DAYS_MIN = 7
_DAY = timedelta(days=1)

# What was found of each subject that could be judged; None for nothing.
Judged = Mapping[tuple[Rule, Subject], Finding | None]

log = logging.getLogger(__name__)


def review(now: datetime) -> None:
    """Look at every plant; one that cannot be counted today is left for tomorrow."""
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


REVIEWS: tuple[tuple[frozenset[Rule], Callable[[Plant, datetime], Judged]], ...] = (
    (frozenset({Rule.QUALITY}), quality),
)


def _finding(verdict: Verdict, subject: Subject, first: date, last: date) -> Finding | None:
    if verdict.severity is None:
        return None
    begin, end = clock.start_of(first), clock.start_of(last + _DAY)
    return Finding(verdict.rule, subject, verdict.severity, begin, end, verdict.facts)
