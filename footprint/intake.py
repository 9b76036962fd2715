"""From a report to a judged fact, and from a fact to what the book should say about it.

`fact_of` does what needs no state: assess, hash what must be unique, forget what no rule needs.
`judge` runs inside the posting loop and reads the account through its head alone, so what it saw
changes only together with a new entry, and a batch can have read it for many accounts at once.
"""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from accounting import book, clock, vault
from accounting.book import Head, Line, State
from footprint import activities, held, methodology, rules
from footprint.activities import Activity
from footprint.methodology import Behaviour, ClaimRule, Methodology
from footprint.rules import Counts, Report

UNIT, REDUCTION, BASELINE = "co2e_mg", "reduction", "baseline:city"
# Day counters of the newest days live in the state; older days are summed from their entries.
DAYS_KEPT = 3


def fact_of(
    report: Report,
    *,
    resident: str,
    source: str,
    event_id: str,
    evidence: str,
    received_at: datetime,
    subject: str = "",
    activity_id: str | None = None,
    job: str | None = None,
) -> Activity:
    """The fact to store for one report: assessed, with everything external as keyed hashes.

    `subject` is what else the source said: whom it named, what evidence it claimed. It is part of
    what was asked; the evidence class is our answer and may differ on a retry. A row that was
    parked before brings the id it was answered with. `job` is the file it came with.
    """
    rules_now = methodology.in_force(clock.city_day(report.start))
    behaviour = rules_now.behaviours[report.behaviour]
    assessment = rules.assess(
        rules_now, behaviour, report, evidence=evidence, received_at=received_at
    )
    activity_id = activity_id or activities.new_activity_id()
    line = report.attributes.get("line")
    return Activity(
        id=activity_id,
        resident=resident,
        source=source,
        event_id=event_id,
        fingerprint=fingerprint(report, subject),
        behaviour=report.behaviour,
        quantity=format(report.quantity.normalize(), "f"),
        start=report.start,
        end=report.end,
        attributes=dict(rules.without_attributes(report).attributes),
        evidence=evidence,
        methodology=rules_now.version,
        received_at=received_at,
        verdict=assessment.verdict,
        reasons=assessment.reasons,
        claim=_claim(behaviour, report, resident, activity_id),
        line=vault.keyed_hash("line", str(line)) if line else None,
        job=job,
    )


def fingerprint(report: Report, subject: str = "") -> str:
    """The hash of what was asked; numbers and instants in one spelling, attributes in order."""
    return book.fingerprint(
        report.behaviour,
        format(report.quantity.normalize(), "f"),
        clock.cut(report.start).isoformat(),
        clock.cut(report.end).isoformat() if report.end else "",
        subject,
        *(f"{name}={value}" for name, value in sorted(report.attributes.items())),
    )


def _claim(
    behaviour: Behaviour, report: Report, resident: str, activity_id: str
) -> dict[str, str] | None:
    rule: ClaimRule | None = behaviour.claim
    if rule is None or rule.attribute not in report.attributes:
        return None
    day = clock.city_day(report.start)
    scopes = {
        "resident": resident,
        "day": day.isoformat(),
        "month": clock.month_of(day),
        "billing_month": str(report.attributes.get("billing_month", "")),
    }
    value = "\x1f".join([str(report.attributes[rule.attribute])] + [scopes[s] for s in rule.within])
    owner = activity_id if rule.held_by == "activity" else f"{resident}/{behaviour.code}"
    return {
        "kind": rule.kind,
        "value": vault.keyed_hash("claimed", value),
        "owner": owner,
    }


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the rules say about a fact on a given state of the account."""

    status: str
    reasons: tuple[str, ...]
    mg: int
    lines: tuple[Line, ...]
    after: State
    refs: dict[str, Any]
    merged_into: str | None = None


def judge(
    activity: Activity, head: Head, now: datetime, *, claim_lost: bool, overruled: bool = False
) -> Judgement:
    """Judge a fact on the newest state of its resident; pure but for reads of the account.

    `overruled` is after an upheld appeal: other trips do not stand against it, caps still do.
    """
    rules_then = methodology.version(activity.methodology)
    behaviour = rules_then.behaviours[activity.behaviour]
    report = report_of(activity)
    day = clock.city_day(report.start)
    refused: str | None = "already_credited" if claim_lost else None
    if refused is None and behaviour.is_trip and not overruled:
        refused = _conflict(activity, behaviour, report, head)
    if refused is not None:
        refs = _refs(activity, "rejected", (refused,), 0, 0, None)
        after = {"lifetime_mg": lifetime_mg(head)}
        return Judgement("rejected", (refused,), 0, (), after, refs)
    counters = _Counters.load(head, now)
    before = counters.counts(head, behaviour, rules_then, day)
    credit = rules.credit(rules_then, behaviour, report, before)
    reasons = credit.reasons
    if rules_then.stale(clock.city_day(activity.received_at)):
        reasons += ("stale_factor",)
    status = "merged" if credit.merged_into else "capped" if credit.reasons else "credited"
    refs = _refs(activity, status, reasons, credit.mg, credit.counted, credit.merged_into)
    refs["gross_mg"] = credit.gross_mg
    if behaviour.formula == "capped_steps" and credit.counted:
        refs["best"] = activity.quantity
    refs["overall"] = behaviour.dimension in rules_then.overall_dimensions
    refs["bank_grade"] = (
        behaviour.bank_grade
        and activity.evidence in ("A", "B")
        and not rules_then.past_grace(clock.city_day(activity.received_at))
    )
    refs["steps"] = [[step.rule, step.mg, step.limit] for step in credit.steps]
    refs["before"] = before.amounts()
    counters.add(day, refs)
    return Judgement(
        status=status,
        reasons=reasons,
        mg=credit.mg,
        lines=reduction_lines(credit.mg),
        after={"lifetime_mg": lifetime_mg(head) + credit.mg, "caps": counters.dump()},
        refs=refs,
        merged_into=credit.merged_into,
    )


def reduction_lines(mg: int) -> tuple[Line, ...]:
    """Milligrams avoided, against the city's baseline; none for zero."""
    return (Line(UNIT, BASELINE, -mg), Line(UNIT, REDUCTION, mg)) if mg else ()


def report_of(activity: Activity) -> Report:
    """The report as the fact keeps it."""
    return Report(
        behaviour=activity.behaviour,
        quantity=activity.amount,
        start=activity.start,
        end=activity.end,
        attributes=activity.attributes,
    )


def undone(activity: Activity, refs: dict[str, Any], head: Head, now: datetime) -> State:
    """The footprint's state after an activity was taken back: grams and counters reopen."""
    counters = _Counters.load(head, now)
    counters.add(clock.city_day(activity.start), undo_refs(refs))
    return {"lifetime_mg": lifetime_mg(head) - refs["mg"], "caps": counters.dump()}


def undo_refs(refs: dict[str, Any]) -> dict[str, Any]:
    """The refs of the entry that takes an activity back: the same, with the amounts negated."""
    return held.undone(refs)


def _refs(
    activity: Activity,
    status: str,
    reasons: tuple[str, ...],
    mg: int,
    counted: int,
    merged_into: str | None,
) -> dict[str, Any]:
    """What the entry keeps of the activity: enough to rebuild counters, summaries and reasons."""
    return {
        "activity": activity.id,
        "behaviour": activity.behaviour,
        "methodology": activity.methodology,
        "evidence": activity.evidence,
        "start": activity.start,
        "end": activity.end,
        "line": activity.line,
        "trip": activity.attributes.get("trip") is True,
        "quantity": activity.quantity,
        "status": status,
        "reasons": list(reasons),
        "mg": mg,
        "counted": counted,
        "gross_mg": mg,
        "overall": False,
        "bank_grade": False,
        "merged_into": merged_into,
        "best": None,
    }


def lifetime_mg(head: Head) -> int:
    """Milligrams credited over the life of the account, net of what was taken back."""
    return int(head.after.get("lifetime_mg", 0))


def _conflict(activity: Activity, behaviour: Behaviour, report: Report, head: Head) -> str | None:
    """Whether another credited trip of the resident overlaps this one, or was boarded too close."""
    first = clock.city_day(report.start) - timedelta(days=1)
    last = clock.city_day(report.over) + timedelta(days=1)
    taken_back = set()
    trips: list[dict[str, Any]] = []
    for entry in head.on_days(first, last):
        refs = entry.refs
        if refs.get("status") == "reversed":
            taken_back.add(refs["activity"])
        elif _is_credited_trip(refs) and refs["activity"] != activity.id:
            trips.append(refs)
    standing = (refs for refs in trips if refs["activity"] not in taken_back)
    return held.clash(behaviour, report, activity.line, standing)


def _is_credited_trip(refs: dict[str, Any]) -> bool:
    if "behaviour" not in refs or refs["status"] not in ("credited", "capped"):
        return False
    version: Methodology = methodology.version(refs["methodology"])
    return version.behaviours[refs["behaviour"]].is_trip


class _Counters:
    """Cap counters of the newest days and months, kept in the state; late days are summed.

    A day inside the kept window has exact counters: either they were carried along, or the day is
    younger than every entry so far and therefore empty. Anything older is summed from its entries.
    """

    def __init__(self, today: date, days: dict[str, Any], months: dict[str, Any]) -> None:
        self.today = today
        self.days = days
        self.months = months

    @classmethod
    def load(cls, head: Head, now: datetime) -> "_Counters":
        today = clock.city_day(now)
        caps = head.after.get("caps", {})
        first_day = (today - timedelta(days=DAYS_KEPT - 1)).isoformat()
        first_month = clock.add_months(clock.month_of(today), -1)
        days = {day: _copy(one) for day, one in caps.get("days", {}).items() if day >= first_day}
        months = {
            month: dict(one)
            for month, one in caps.get("months", {}).items()
            if month >= first_month
        }
        return cls(today, days, months)

    def dump(self) -> State:
        return {"days": self.days, "months": self.months}

    def add(self, day: date, refs: dict[str, Any]) -> None:
        if self._keeps_day(day):
            _count(self.days.setdefault(day.isoformat(), {}), refs)
        month = clock.month_of(day)
        if self._keeps_month(month):
            in_month = self.months.setdefault(month, {})
            in_month[refs["behaviour"]] = in_month.get(refs["behaviour"], 0) + refs["counted"]

    def counts(
        self, head: Head, behaviour: Behaviour, rules_then: Methodology, day: date
    ) -> Counts:
        on_day = self.days.get(day.isoformat(), {}) if self._keeps_day(day) else {}
        if not self._keeps_day(day):
            for entry in head.on_days(day, day):
                if "counted" in entry.refs:
                    _count(on_day, entry.refs)
        month_used = self._month_used(head, behaviour, clock.month_of(day))
        return held.counts(on_day, behaviour, rules_then, month_used)

    def _month_used(self, head: Head, behaviour: Behaviour, month: str) -> int:
        if behaviour.caps.month_count is None:
            return 0
        if self._keeps_month(month):
            return int(self.months.get(month, {}).get(behaviour.code, 0))
        first, last = clock.first_day(month), clock.last_day(month)
        return sum(
            entry.refs["counted"]
            for entry in head.on_days(first, last)
            if entry.refs.get("behaviour") == behaviour.code and "counted" in entry.refs
        )

    def _keeps_day(self, day: date) -> bool:
        return day > self.today - timedelta(days=DAYS_KEPT)

    def _keeps_month(self, month: str) -> bool:
        return month >= clock.add_months(clock.month_of(self.today), -1)


def _copy(on_day: dict[str, Any]) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, list) else value for name, value in on_day.items()
    }


def _count(on_day: dict[str, Any], refs: dict[str, Any]) -> None:
    held.count(on_day, refs, methodology.version(refs["methodology"]))
