"""From a report to a judged fact, and from a fact to what the book should say about it.

`fact_of` does what needs no state: assess, hash what must be unique, forget what no rule needs.
`judge` runs inside the posting loop and reads the account through its head alone, so what it saw
changes only together with a new entry, and a batch can have read it for many accounts at once.
"""

from collections.abc import Collection, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

from accounting import book, clock, vault
from accounting.book import Entry, Head, Line, State
from footprint import activities, held, methodology, rules
from footprint.activities import Activity
from footprint.held import SAME_TRIP, Meeting, Refs, Trip
from footprint.methodology import Behaviour, ClaimRule, Methodology
from footprint.rules import Counts, Report

UNIT, REDUCTION, BASELINE = "co2e_mg", "reduction", "baseline:city"
# Day counters of the newest days live in the state; older days are summed from their entries.
DAYS_KEPT = 3
# Of a hash that tells apart what one resident does in one day.
SAME_CHARACTERS = 12


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
    quantity = _spelled(report.quantity)
    line = report.attributes.get("line")
    return Activity(
        id=activity_id,
        resident=resident,
        source=source,
        event_id=event_id,
        fingerprint=_fingerprint(report, quantity, subject),
        behaviour=report.behaviour,
        quantity=quantity,
        start=report.start,
        end=report.end,
        attributes=rules.kept(report.attributes),
        evidence=evidence,
        methodology=rules_now.version,
        received_at=received_at,
        verdict=assessment.verdict,
        reasons=assessment.reasons,
        claim=_claim(behaviour, report, resident, activity_id),
        line=vault.keyed_hash("line", str(line)) if line else None,
        same=_same(behaviour, report),
        job=job,
    )


def fingerprint(report: Report, subject: str = "") -> str:
    """The hash of what was asked; numbers and instants in one spelling, attributes in order."""
    return _fingerprint(report, _spelled(report.quantity), subject)


def _spelled(quantity: Decimal) -> str:
    return format(quantity.normalize(), "f")


def _fingerprint(report: Report, quantity: str, subject: str) -> str:
    return book.fingerprint(
        report.behaviour,
        quantity,
        clock.cut(report.start).isoformat(),
        clock.cut(report.end).isoformat() if report.end else "",
        subject,
        *(f"{name}={value}" for name, value in sorted(report.attributes.items())),
    )


def _same(behaviour: Behaviour, report: Report) -> str | None:
    """What else of a day is counted together with it, as a hash short enough for the state."""
    rule = behaviour.same
    value = report.attributes.get(rule.attribute) if rule is not None else None
    return (
        vault.keyed_hash("same", f"{behaviour.code}/{value}")[:SAME_CHARACTERS] if value else None
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


class Judgement(NamedTuple):
    """What the rules say about a fact on a given state of the account."""

    status: str
    reasons: tuple[str, ...]
    mg: int
    after: State
    refs: dict[str, Any]
    merged_into: str | None = None
    replaces: tuple[Trip, ...] = ()


def judge(
    activity: Activity,
    head: Head,
    now: datetime,
    *,
    lost_to: str | None = None,
    overruled: Collection[str] | None = None,
) -> Judgement:
    """Judge a fact on the newest state of its resident; pure but for reads of the account.

    `lost_to` is the owner of what it claims, when that is another: of the same trip's other record
    it may be taken over. `overruled` are the reasons an upheld appeal set aside: other trips do not
    stand against it, caps still do, and one trip is not credited twice unless just that was
    appealed. `mg` and the state are its own worth; what it replaces is for the caller to undo.
    """
    rules_then = methodology.version(activity.methodology)
    behaviour = rules_then.behaviours[activity.behaviour]
    report = report_of(activity)
    day = clock.city_day(report.start)
    meeting = Meeting()
    if behaviour.is_trip and SAME_TRIP not in (overruled or ()):
        meeting = _meeting(activity, behaviour, report, head)
    refused = meeting.refused if overruled is None else None
    if lost_to is not None and lost_to not in {twin.activity for twin in meeting.twins}:
        refused = "already_credited"
    if refused is not None:
        return _nothing(activity, head, "rejected", refused)
    if meeting.into is not None:
        return _nothing(activity, head, "merged", SAME_TRIP, meeting.into.activity)
    counters = _Counters.load(head, now)
    replaced = [trip.replaced() for trip in meeting.replaces]
    for one in replaced:
        counters.add(day, one)
    before = counters.counts(head, behaviour, rules_then, day, activity.same, replaced)
    credit = rules.credit(rules_then, behaviour, report, before)
    reasons = credit.reasons + rules.flags(behaviour, report)
    if rules_then.stale(clock.city_day(activity.received_at)):
        reasons += ("stale_factor",)
    status = "merged" if credit.merged_into else "capped" if credit.reasons else "credited"
    refs = _refs(activity, status, reasons, credit.mg, credit.counted, credit.merged_into)
    refs["gross_mg"] = credit.gross_mg
    refs["covered_mg"] = credit.covered_mg
    if behaviour.formula == "capped_steps" and credit.counted:
        refs["best"] = activity.quantity
        if before.mg:
            refs["above_mg"] = before.mg
    refs["overall"] = behaviour.dimension in rules_then.overall_dimensions
    refs["bank_grade"] = (
        behaviour.bank_grade
        and activity.evidence in ("A", "B")
        and not rules_then.past_grace(clock.city_day(activity.received_at))
    )
    refs["steps"] = [list(step) for step in credit.steps]
    refs["before"] = before.amounts()
    if replaced:
        refs["replaces"] = replaced
    counters.add(day, refs)
    return Judgement(
        status=status,
        reasons=reasons,
        mg=credit.mg,
        after={"lifetime_mg": lifetime_mg(head) + credit.mg, "caps": counters.dump()},
        refs=refs,
        merged_into=credit.merged_into,
        replaces=meeting.replaces,
    )


def _nothing(
    activity: Activity, head: Head, status: str, reason: str, merged_into: str | None = None
) -> Judgement:
    """It is credited nothing, for one reason; caps and counters stay as they are."""
    refs = _refs(activity, status, (reason,), 0, 0, merged_into)
    return Judgement(status, (reason,), 0, {"lifetime_mg": lifetime_mg(head)}, refs, merged_into)


def days_read(activity: Activity, now: datetime) -> tuple[date, date] | None:
    """The days whose entries `judge` will look at, first and last; None if the state is enough.

    For whoever reads them for many at once: a day that is missing here costs a read of its own.
    """
    behaviour = methodology.version(activity.methodology).behaviours[activity.behaviour]
    day, today = clock.city_day(activity.start), clock.city_day(now)
    if behaviour.is_trip:
        return day - timedelta(days=1), clock.city_day(activity.over) + timedelta(days=1)
    if behaviour.caps.month_count is not None and not _month_kept(clock.month_of(day), today):
        month = clock.month_of(day)
        return clock.first_day(month), clock.last_day(month)
    return None if _day_kept(day, today) else (day, day)


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
        same=activity.same,
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
        "source": activity.source,
        "behaviour": activity.behaviour,
        "methodology": activity.methodology,
        "evidence": activity.evidence,
        "start": activity.start,
        "end": activity.end,
        "line": activity.line,
        "same": activity.same,
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


def follows(before: State, entry: Entry) -> str | None:
    """Whether lifetime grams and cap counters are what an entry makes of the state before it.

    For checks of the book: in one sentence what is wrong. Counters at zero are none.
    """
    head = Head(entry.account, after=before)
    kept = Head(entry.account, after=entry.after)
    if lifetime_mg(kept) != lifetime_mg(head) + entry.amount(UNIT, REDUCTION):
        return "its lifetime grams do not follow from the entry before it and its lines"
    counters = _Counters.load(head, entry.recorded_at)
    # Bills take no part in the caps of a day or month.
    if entry.cap_day is not None and "bill" not in entry.refs:
        for part in held.parts(entry.refs):
            counters.add(date.fromisoformat(entry.cap_day), part)
    if counters.standing() != _Counters.load(kept, entry.recorded_at).standing():
        return "its cap counters do not follow from the entry before it and its activity"
    return None


def _meeting(activity: Activity, behaviour: Behaviour, report: Report, head: Head) -> Meeting:
    """How a trip stands to the resident's other credited trips around it."""
    first = clock.city_day(report.start)
    last = clock.city_day(report.over)
    standing: dict[int, Trip] = {}
    for entry in head.on_days(first - timedelta(days=1), last + timedelta(days=1)):
        for seq in held.ended(entry.refs):
            standing.pop(seq, None)
        if _is_credited_trip(entry.refs) and entry.refs["activity"] != activity.id:
            assert entry.cap_day is not None, entry.seq
            standing[entry.seq] = Trip(entry.seq, entry.cap_day, entry.refs)
    fact = {"source": activity.source, "line": activity.line, "evidence": activity.evidence}
    return held.meet(fact, behaviour, report, first.isoformat(), standing.values())


def still_stands(credited: Entry, head: Head) -> bool:
    """Whether nothing replaced an entry since; for whoever is about to take it back."""
    assert credited.cap_day is not None, credited.key
    day = date.fromisoformat(credited.cap_day)
    return not any(
        one["reverses"] == credited.seq
        for entry in head.on_days(day, day)
        for one in entry.refs.get("replaces", ())
    )


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
        first_day, first_month = _kept_from(today)
        days = {day: one for day, one in caps.get("days", {}).items() if day >= first_day}
        months = {
            month: one for month, one in caps.get("months", {}).items() if month >= first_month
        }
        return cls(today, days, months)

    def dump(self) -> State:
        return {"days": self.days, "months": self.months}

    def standing(self) -> State:
        """The counters that say something: whoever credits nothing may leave a zero or nothing."""
        kept = {
            period: {code: one for code, one in counters.items() if _says_something(one)}
            for period, counters in (*self.days.items(), *self.months.items())
        }
        return {period: counters for period, counters in kept.items() if counters}

    def add(self, day: date, refs: Refs) -> None:
        """Count an entry. What the state before shares is left as it is: a day is copied."""
        if self._keeps_day(day):
            name = day.isoformat()
            on_day = self.days[name] = dict(self.days.get(name, ()))
            _count(on_day, refs)
        month = clock.month_of(day)
        if self._keeps_month(month):
            in_month = self.months[month] = dict(self.months.get(month, ()))
            in_month[refs["behaviour"]] = in_month.get(refs["behaviour"], 0) + refs["counted"]

    def counts(
        self,
        head: Head,
        behaviour: Behaviour,
        rules_then: Methodology,
        day: date,
        same: str | None = None,
        less: Sequence[Refs] = (),
    ) -> Counts:
        """What day and month hold; `less` is what was added here and is in no entry yet."""
        on_day = self.days.get(day.isoformat(), {}) if self._keeps_day(day) else {}
        if not self._keeps_day(day):
            for part in (*_parts(head, day, day), *less):
                _count(on_day, part)
        month_used = self._month_used(head, behaviour, clock.month_of(day), less)
        return held.counts(on_day, behaviour, rules_then, month_used, same)

    def _month_used(
        self, head: Head, behaviour: Behaviour, month: str, less: Sequence[Refs]
    ) -> int:
        if behaviour.caps.month_count is None:
            return 0
        if self._keeps_month(month):
            return int(self.months.get(month, {}).get(behaviour.code, 0))
        parts = (*_parts(head, clock.first_day(month), clock.last_day(month)), *less)
        return sum(part["counted"] for part in parts if part["behaviour"] == behaviour.code)

    def _keeps_day(self, day: date) -> bool:
        return _day_kept(day, self.today)

    def _keeps_month(self, month: str) -> bool:
        return _month_kept(month, self.today)


@lru_cache(maxsize=8)
def _kept_from(today: date) -> tuple[str, str]:
    """The first day and the first month whose counters the state keeps, by their names."""
    first_day = today - timedelta(days=DAYS_KEPT - 1)
    return first_day.isoformat(), clock.add_months(clock.month_of(today), -1)


def _day_kept(day: date, today: date) -> bool:
    return (today - day).days < DAYS_KEPT


def _month_kept(month: str, today: date) -> bool:
    return month >= _kept_from(today)[1]


def _says_something(counter: Any) -> bool:
    """Whether a counter is more than nothing; those of a day and behaviour are lists of them."""
    return any(counter) if isinstance(counter, list) else bool(counter)


def _parts(head: Head, first: date, last: date) -> list[Refs]:
    """What the account's entries of these days add to counters, in the order of the book."""
    return [part for entry in head.on_days(first, last) for part in held.parts(entry.refs)]


def _count(on_day: dict[str, Any], refs: Refs) -> None:
    held.count(on_day, refs, methodology.version(refs["methodology"]))
