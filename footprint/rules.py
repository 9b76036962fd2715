"""The resident rules, pure: no clock, no database, no web. Milligrams in, reasons out.

`assess` judges one report by itself. `credit` judges it against what the day and the month already
hold, so it runs inside the posting loop, on the newest state, on every attempt.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from accounting.quantities import floor_mg
from footprint.methodology import Behaviour, Methodology, Plausible

TRIP_MAX = timedelta(days=1)
# The part of a health total that was entered by hand; it is told, and is no part of the quantity.
MANUAL = "manual_quantity"
_KEPT = ("trip", "category", MANUAL)
Attributes = Mapping[str, str | int | bool]


@dataclass(frozen=True, slots=True)
class Report:
    """What somebody says happened. `quantity` is in the behaviour's unit, at most six places."""

    behaviour: str
    quantity: Decimal
    start: datetime
    end: datetime | None = None
    attributes: Attributes = field(default_factory=dict)
    # The hash of what the behaviour's `same` rule counts by, once it is known.
    same: str | None = None

    @property
    def over(self) -> datetime:
        """When it was over; maturity and expiry count from here."""
        return self.end or self.start

    @property
    def by_trip(self) -> bool:
        """The distance is unknown and the quantity counts trips."""
        return self.attributes.get("trip") is True


class Assessment(NamedTuple):
    """Verdict None means it goes on to be credited; else `rejected` or `recorded`."""

    verdict: str | None
    reasons: tuple[str, ...] = ()


_AMOUNTS = (
    "used",
    "mg",
    "month_used",
    "overall_mg",
    "netted_mg",
    "stop_factor_mg",
    "earned_mg",
    "same_used",
)


class Counts(NamedTuple):
    """What one city day and month of a resident already hold.

    `used` and `mg` are this behaviour's on the day, `mg` before a stop-day covered any of it and
    before the overall cap: so neither hands out this behaviour's own grams a second time.
    `overall_mg` is what was credited over the capped dimensions; `best` is the day's highest total
    of a behaviour where the highest wins, `best_of` its activity. `netted_mg` is what transit and
    cycling were worth that day; `stop_factor_mg` what a stop-driving day is, None without one;
    `earned_mg` what all of these earned together. `same_used` is what the day holds of the same
    merchant.
    """

    used: int = 0
    mg: int = 0
    month_used: int = 0
    overall_mg: int = 0
    best: Decimal = Decimal(0)
    best_of: str | None = None
    netted_mg: int = 0
    stop_factor_mg: int | None = None
    earned_mg: int = 0
    same_used: int = 0

    def amounts(self) -> dict[str, int]:
        """Its amounts that are not nought: what an entry keeps of it for the explanation."""
        amounts = (
            self.used,
            self.mg,
            self.month_used,
            self.overall_mg,
            self.netted_mg,
            self.stop_factor_mg,
            self.earned_mg,
            self.same_used,
        )
        return {name: amount for name, amount in zip(_AMOUNTS, amounts, strict=True) if amount}


class Step(NamedTuple):
    """One step of the working, for the explanation: what was done and the milligrams after it."""

    rule: str
    mg: int
    limit: int | None = None


class Credit(NamedTuple):
    """What the rules grant: milligrams, units counted, reasons for anything trimmed, the working.

    `gross_mg` is the worth before a stop-day covered any of it and before the overall cap,
    `covered_mg` what the stop-day covered of it.
    """

    mg: int
    counted: int
    gross_mg: int
    reasons: tuple[str, ...]
    steps: tuple[Step, ...]
    merged_into: str | None = None
    covered_mg: int = 0


def assess(
    methodology: Methodology,
    behaviour: Behaviour,
    report: Report,
    *,
    evidence: str,
    received_at: datetime,
) -> Assessment:
    """Judge one report by itself: window, plausibility, accepted evidence.

    It uses nothing but its arguments, so a retry that resumes after a crash judges the same.
    """
    reasons = _window(methodology, report, evidence, received_at)
    reasons += _plausibility(behaviour, report)
    if not behaviour.enabled:
        reasons += ("behaviour_disabled",)
    if reasons:
        return Assessment("rejected", reasons)
    if behaviour.from_bills:
        return Assessment("recorded", ("only_from_bills",))
    if evidence not in behaviour.accepts:
        return Assessment("recorded", ("evidence_not_accepted",))
    return Assessment(None)


def _window(
    methodology: Methodology, report: Report, evidence: str, received_at: datetime
) -> tuple[str, ...]:
    window = methodology.window
    if max(report.start, report.over) > received_at + window.future:
        return ("in_the_future",)
    age_max = window.partner if evidence == "A" else window.app
    return ("too_old",) if received_at - report.start > age_max else ()


def _plausibility(behaviour: Behaviour, report: Report) -> tuple[str, ...]:
    limits: Plausible = behaviour.plausible
    reasons: list[str] = []
    counted = behaviour.counts_quantity or behaviour.formula == "capped_steps" or report.by_trip
    if counted and report.quantity != report.quantity.to_integral_value():
        reasons.append("quantity_not_whole")
    claim = behaviour.claim
    if (
        behaviour.counts_quantity
        and claim is not None
        and claim.attribute in report.attributes
        and report.quantity != 1
    ):
        reasons.append("quantity_not_one")
    if not report.by_trip and not _within(
        report.quantity, limits.quantity_min, limits.quantity_max
    ):
        reasons.append("implausible_quantity")
    amount = report.attributes.get("amount_fen")
    if behaviour.amount_fen_min is not None and isinstance(amount, int):
        if amount < behaviour.amount_fen_min:
            reasons.append("amount_too_small")
    if report.end is not None:
        if report.end - report.start > TRIP_MAX:
            reasons.append("implausible_duration")
        elif behaviour.is_trip and not report.by_trip and not _speed_fits(report, limits):
            reasons.append("implausible_speed")
    return tuple(reasons)


def _within(value: Decimal, low: Decimal | None, high: Decimal | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def speed_kmh(report: Report) -> Decimal | None:
    """How fast a trip was; None where it has no end, or took no time."""
    milliseconds = (report.over - report.start) // timedelta(milliseconds=1)
    return report.quantity * 3_600_000 / milliseconds if milliseconds else None


def _speed_fits(report: Report, limits: Plausible) -> bool:
    kmh = speed_kmh(report)
    return limits.kmh_max is None if kmh is None else _within(kmh, limits.kmh_min, limits.kmh_max)


def quantify(behaviour: Behaviour, quantity: Decimal, *, by_trip: bool = False) -> int:
    """Milligrams of CO2 avoided, before caps: quantity x factor, rounded down once.

    A `capped_steps` behaviour counts at most its step limit; with `by_trip` the quantity is a
    number of trips at the fallback value of a trip of unknown length.
    """
    if by_trip and behaviour.trip_mg is not None:
        return floor_mg(quantity, behaviour.trip_mg, 1)
    if behaviour.step_limit is not None:
        quantity = min(quantity, Decimal(behaviour.step_limit))
    return floor_mg(quantity, behaviour.mg_num, behaviour.mg_den)


def credit(methodology: Methodology, behaviour: Behaviour, report: Report, day: Counts) -> Credit:
    """Apply count caps, formula, own gram cap, stop-day and the overall day cap, in this order.

    In this order the total of a day does not depend on which of its activities arrived first.
    """
    if behaviour.formula == "capped_steps":
        return _credit_highest(methodology, behaviour, report, day)
    working = _Working()
    counted, quantity = _countable(behaviour, report, day, working)
    working.set("formula", quantify(behaviour, quantity, by_trip=report.by_trip))
    if behaviour.nets:
        working.cap("net_of_transit", max(max(working.mg, day.netted_mg) - day.earned_mg, 0))
    _cap_own(behaviour, day, working)
    gross_mg = working.mg
    if day.stop_factor_mg is not None:
        # The day earns its own worth or that of its trips, whichever is more; so far it has less
        # than either where something was taken back.
        day_mg = max(day.stop_factor_mg, day.netted_mg + gross_mg)
        working.cap("stop_day_covers", max(day_mg - day.earned_mg, 0))
    covered_mg = gross_mg - working.mg
    _cap_overall(methodology, behaviour, day, working)
    return Credit(
        working.mg,
        counted,
        gross_mg,
        tuple(working.reasons),
        tuple(working.steps),
        covered_mg=covered_mg,
    )


def flags(behaviour: Behaviour, report: Report) -> tuple[str, ...]:
    """What is marked about a report that is credited all the same."""
    found = []
    per_minute_max = behaviour.plausible.per_minute_max
    if per_minute_max is not None and report.end is not None:
        milliseconds = (report.end - report.start) // timedelta(milliseconds=1)
        if report.quantity * 60_000 > per_minute_max * milliseconds:
            found.append("step_cadence")
    if MANUAL in report.attributes:
        found.append("manual_part_dropped")
    return tuple(found)


class _Working:
    """The running milligrams with the steps that led to them and the caps that bit."""

    def __init__(self) -> None:
        self.mg = 0
        self.steps: list[Step] = []
        self.reasons: list[str] = []

    def set(self, rule: str, mg: int) -> None:
        self.mg = mg
        self.steps.append(Step(rule, mg))

    def cap(self, rule: str, limit_mg: int) -> None:
        if limit_mg < self.mg:
            self.mg = limit_mg
            self.reasons.append(rule)
            self.steps.append(Step(rule, self.mg, limit_mg))


def _countable(
    behaviour: Behaviour, report: Report, day: Counts, working: _Working
) -> tuple[int, Decimal]:
    """How many units the count caps leave, and the quantity that may be credited."""
    by_quantity = behaviour.counts_quantity or report.by_trip
    wanted = int(report.quantity) if by_quantity else 1
    allowed = wanted
    for rule, cap, used in (
        ("day_count_cap", behaviour.caps.day_count, day.used),
        ("month_count_cap", behaviour.caps.month_count, day.month_used),
        ("same_merchant_cap", _same_max(behaviour, report), day.same_used),
    ):
        if cap is not None and cap - used < allowed:
            allowed = max(cap - used, 0)
            working.reasons.append(rule)
            working.steps.append(Step(rule, 0, cap))
    if allowed == wanted:
        return wanted, report.quantity
    return allowed, Decimal(allowed)


def _same_max(behaviour: Behaviour, report: Report) -> int | None:
    return behaviour.same.day_count if behaviour.same is not None and report.same else None


def _cap_own(behaviour: Behaviour, day: Counts, working: _Working) -> None:
    if behaviour.caps.day_mg is not None:
        working.cap("day_gram_cap", max(behaviour.caps.day_mg - day.mg, 0))


def _cap_overall(
    methodology: Methodology, behaviour: Behaviour, day: Counts, working: _Working
) -> None:
    if behaviour.dimension in methodology.overall_dimensions:
        working.cap("overall_day_cap", max(methodology.overall_day_mg - day.overall_mg, 0))


def _credit_highest(
    methodology: Methodology, behaviour: Behaviour, report: Report, day: Counts
) -> Credit:
    """The highest total of a day counts; a higher one posts the difference, a lower one nothing.

    The difference is to what the day is worth so far, which a reversal has made smaller.
    """
    whole = quantify(behaviour, report.quantity)
    if (day.best_of is not None and report.quantity <= day.best) or whole < day.mg:
        return Credit(0, 0, 0, ("lower_step_total",), (Step("lower_step_total", 0),), day.best_of)
    working = _Working()
    working.set("formula", whole)
    if behaviour.step_limit is not None and report.quantity > behaviour.step_limit:
        working.reasons.append("step_limit")
    if day.mg:
        working.set("less_lower_total", whole - day.mg)
    _cap_own(behaviour, day, working)
    gross_mg = working.mg
    _cap_overall(methodology, behaviour, day, working)
    return Credit(working.mg, 1, gross_mg, tuple(working.reasons), tuple(working.steps))


def overlaps(one: Report, start: datetime, end: datetime) -> bool:
    """Whether two trips share an instant; a trip without an end lasts one millisecond."""
    least = timedelta(milliseconds=1)
    mine, other = max(one.over, one.start + least), max(end, start + least)
    return one.start < other and start < mine


def without_manual(report: Report, manual: Decimal | None) -> Report:
    """The sensor's part of a health total, with what was entered by hand told beside it.

    Where all of it was, it stays as it was told: the reporter's word.
    """
    if manual is None or manual >= report.quantity:
        return report
    told = {**report.attributes, MANUAL: format(manual.normalize(), "f")}
    return replace(report, quantity=report.quantity - manual, attributes=told)


def kept(attributes: Attributes) -> dict[str, str | int | bool]:
    """What may be kept of them: external numbers are claimed by hash, never stored."""
    return {name: attributes[name] for name in _KEPT if name in attributes}


def without_attributes(report: Report) -> Report:
    """The report as it may be kept."""
    return replace(report, attributes=kept(report.attributes))
