"""Looking at plants: days whose layer changed, and meters that fell silent.

A run makes the touched days anew, raises what the rules find in them, in order, and closes what is
normal again. All of it is a function of the days and may be repeated; the marks of the meter-days
go last. Two runs on one day may overlap: whoever looked at an older layer sees that when it is done
and looks again, so what an outdated look raised does not stay.
"""

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from accounting import clock
from accounting.enterprise import alert_days, alert_rules, alerts, meterdays, meters, plants
from accounting.enterprise.alert_days import Layout, PlantDay
from accounting.enterprise.alert_rules import Rule, Verdict
from accounting.enterprise.alerts import Alert, Finding, Subject, Why
from accounting.enterprise.meterdays import Mark
from accounting.enterprise.slots import start_of_slot
from accounting.errors import AccountBusy

# Meter-days a sweep takes, and days of a plant that are looked at in one go.
SWEEP_MAX = 5_000
TOGETHER_DAYS = 60
# Days after a late one that may close what it raised.
AFTER_DAYS = 14
ROUNDS_MAX = 8
NOT_IN_SERVICE_DAYS = 14
_DAY = timedelta(days=1)
_OF_SLOTS = frozenset({Rule.LIMIT, Rule.DEMAND})
_OF_DAYS = frozenset({Rule.DAY_TOTAL, Rule.EWMA, Rule.CUSUM, Rule.STANDBY})

log = logging.getLogger(__name__)


def sweep(now: datetime, limit: int = SWEEP_MAX) -> int:
    """Look at the days whose layer changed; returns how many meter-days were due.

    A plant that fails holds up no other; its days stay due.
    """
    by_plant = meterdays.touched(Mark.ALERTS, now, limit)
    for plant_id, touched in by_plant.items():
        try:
            evaluate(plant_id, {one.day for one in touched})
        except AccountBusy:
            log.info("%s is being looked at by others, its days stay due", plant_id)
        except Exception:  # A bug in one plant must not become a standstill of all.
            log.exception("the alerts of %s failed, its days stay due", plant_id)
            meterdays.put_off(Mark.ALERTS, touched, now)
        else:
            meterdays.let_go(Mark.ALERTS, touched)
    alerts.tell_untold()
    return sum(map(len, by_plant.values()))


def evaluate(plant_id: str, days: Collection[date]) -> None:
    """Look at some days of a plant. Raises `AccountBusy` when they keep changing."""
    layout = alert_days.layout_of(plant_id)
    for together in meterdays.stretches(days, TOGETHER_DAYS):
        _evaluate(layout, together)


def _evaluate(layout: Layout, days: Sequence[date]) -> None:
    for _ in range(ROUNDS_MAX):
        first, last = days[0] - alert_rules.HISTORY_DAYS * _DAY, days[-1] + AFTER_DAYS * _DAY
        look = _Look(layout, alert_days.between(layout.plant, first, last))
        for day in days:
            look.known[day] = alert_days.make(layout, day, look.known)
        for day in days:
            for finding in look.findings(day):
                alerts.found(layout.plant, finding)
            look.close([day])
        # What a late day raised may be over on a day that was here before it.
        look.close([day for day in sorted(look.known) if day > days[0]])
        newest = alert_days.stamps(layout.plant, days)
        days = [day for day in days if newest[day] != look.known[day].stamp]
        if not days:
            return
    raise AccountBusy(retry_after=1)


@dataclass(frozen=True, slots=True)
class _Look:
    """One look at a plant: what is known of its days."""

    layout: Layout
    known: dict[date, PlantDay]

    def findings(self, day: date) -> Iterator[Finding]:
        """What is wrong on a day, of all series."""
        of_day = self.known[day]
        for series in self.layout.series:
            subject = Subject(node=series.node, carrier=series.carrier)
            for verdict in self.verdicts(day, series.key):
                if verdict.severity is not None:
                    begin, end = clock.start_of(day), clock.start_of(day + _DAY)
                    facts = verdict.facts
                    yield Finding(verdict.rule, subject, verdict.severity, begin, end, facts)
        for (rule, key), over in of_day.limits.items():
            if over.severity is not None and over.first is not None and over.last is not None:
                node, _, carrier = key.partition("/")
                yield Finding(
                    rule,
                    Subject(node=node or None, carrier=carrier),
                    over.severity,
                    start_of_slot(day, over.first),
                    start_of_slot(day, over.last + 1),
                    over.facts,
                )

    def verdicts(self, day: date, key: str) -> Iterator[Verdict]:
        """What the rules of whole days say of a series; nothing where they cannot judge."""
        today = self.known[day].figures.get(key)
        if today is None or not today.judged:
            return
        since = day - alert_rules.HISTORY_DAYS * _DAY
        history = [
            self.known[on].figures[key]
            for on in sorted(self.known)
            if since <= on < day and key in self.known[on].figures
        ]
        for verdict in (
            alert_rules.day_total(today, history),
            alert_rules.standby(today, history),
        ):
            if verdict is not None:
                yield verdict
        scores = alert_rules.standard_scores(today, history)
        if scores is not None:
            yield alert_rules.ewma(scores)
            yield alert_rules.cusum(scores)

    def close(self, days: Sequence[date]) -> None:
        """Close what one of these days shows to be normal again."""
        for alert in alerts.live(self.layout.plant):
            if alert.rule in _OF_SLOTS | _OF_DAYS:
                over = (why for day in days if (why := self.why_over(alert, day)) is not None)
                why = next(over, None)
                if why is not None:
                    alerts.close(alert, why)

    def why_over(self, alert: Alert, day: date) -> Why | None:
        """Why a day ends an alert; None if it does not, or lies before its last instant."""
        begin, end = clock.start_of(day), clock.start_of(day + _DAY)
        if end < alert.last_at:
            return None
        key = f"{alert.subject.node or ''}/{alert.subject.carrier}"
        whole = alert.first_at >= begin and alert.last_at <= end
        if alert.rule in _OF_DAYS:
            said = next((one for one in self.verdicts(day, key) if one.rule is alert.rule), None)
            if said is None or said.severity is not None:
                return None
            return Why.WITHDRAWN if whole else Why.NORMAL
        over = self.known[day].limits.get((alert.rule, key))
        if over is None:
            return Why.NORMAL if alert.subject.node not in self.layout.limits else None
        if over.hot or over.normal_after < alert_rules.NORMAL_SLOTS:
            return None
        return Why.WITHDRAWN if whole and over.last is None else Why.NORMAL


# --- silence ------------------------------------------------------------------------------------


def listen(now: datetime) -> None:
    """Look at every plant for meters that were not heard for too long (A9)."""
    for plant in plants.everyone():
        listen_to(plant.id, now)


def listen_to(plant_id: str, now: datetime) -> None:
    """One alert for each silent meter, or one for the plant when none of several is heard.

    A meter that was not heard for two weeks before anybody looked is not in service.
    """
    today = clock.city_day(now)
    heard = alert_days.heard_between(plant_id, today - NOT_IN_SERVICE_DAYS * _DAY, today)
    intervals = {
        one.meter: timedelta(minutes=one.interval_minutes) for one in meters.of_plant(plant_id)
    }
    late = {
        name: severity
        for name, until in heard.items()
        if name in intervals
        and (severity := alert_rules.silent(now, until, intervals[name])) is not None
    }
    everybody = len(heard) > 1 and len(late) == len(heard)
    if everybody:
        since = max(heard.values())
        worst = max(late.values(), key=lambda one: one.rank)
        facts = {"meters": len(late)}
        alerts.found(plant_id, Finding(Rule.SILENT, Subject(), worst, since, since, facts))
    else:
        for name, severity in late.items():
            subject, since = Subject(meter=name), heard[name]
            alerts.found(plant_id, Finding(Rule.SILENT, subject, severity, since, since))
    for alert in alerts.live(plant_id):
        if alert.rule is Rule.SILENT:
            meter = alert.subject.meter
            back = not everybody if meter is None else meter in heard and meter not in late
            if back and heard:
                alerts.close(alert, Why.NORMAL)
