"""What a household saved against its own past, pure: exact fractions of kWh, m3 or tonnes.

A bill says how much was used over its city days. Use inside a bill is even, so a part of it is
taken by days. The baseline of a bill is what the same months of the two years before used (the mean
of both, or the one that is known), each month by the share of its days the bill covers.

A home with solar panels saves nothing by this comparison, because the panels would be taken for
thrift. Its bill says what they made, and what of that was used at home is credited instead.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Final, Literal

from accounting import clock
from accounting.errors import ValidationFailed
from accounting.proration import Use
from accounting.quantities import floor_mg
from footprint.methodology import Behaviour

Carrier = Literal["electricity", "gas", "water"]
BEHAVIOURS: Final[dict[Carrier, str]] = {
    "electricity": "electricity_saving",
    "gas": "gas_saving",
    "water": "water_saving",
}
# What own use of solar power is credited as.
PV: Final = "rooftop_pv_self_use"
BASELINE_YEARS = (1, 2)
HISTORY_MONTHS = 12
# The most of a baseline that counts as saved; what lies beyond is not plausible as saving.
SAVING_CAP = Fraction(30, 100)
# Below this share of its baseline a home may simply be empty.
VACANCY_BELOW = Fraction(30, 100)
# Use of twelve months above which a household pays the third price step: kilowatt-hours.
TIER_3: Final[dict[Carrier, int]] = {"electricity": 4_800}
PERIOD_DAYS_MAX = 400
PERIOD_FIRST = date(2000, 1, 1)
QUANTITY_MAX = 1_000_000
NEEDS_HISTORY, VACANCY, VACANT = "needs_history", "vacancy_review", "vacant_home"
PV_HOME, PV_CERTIFIED, NO_OWN_USE = "pv_home", "pv_certified", "no_own_use"

_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Generation:
    """What solar panels behind a meter made over a bill's days, in kWh.

    `exported` of it went into the grid; for `certified` of it a green certificate, a CCER or
    another scheme was issued, so it is credited nowhere else.
    """

    generated: Decimal
    exported: Decimal = Decimal(0)
    certified: Decimal = Decimal(0)

    @property
    def own_use(self) -> Decimal:
        return self.generated - self.exported


@dataclass(frozen=True, slots=True)
class BillReport:
    """What a utility says was used. `quantity` in kWh, m3 or tonnes; both city days included."""

    carrier: Carrier
    account_no: str
    period_start: date
    period_end: date
    quantity: Decimal
    estimated: bool = False
    corrects: str | None = None
    pv: Generation | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a bill saved, in its own unit, for the whole household; reasons if less than all of it.

    `baseline` is None while it cannot be known. `saved` is before the cap, `saving` after it.
    """

    reasons: tuple[str, ...]
    baseline: Fraction | None = None
    saved: Fraction = Fraction(0)
    saving: Fraction = Fraction(0)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What became of a bill: milligrams of each share, before (`gross_mg`) and after the cap.

    `baseline`, `saved` and `saving` are exact fractions as text (`620/29`) in the bill's unit, for
    the whole household.
    """

    status: str
    reasons: tuple[str, ...]
    mg: int = 0
    gross_mg: int = 0
    baseline: str | None = None
    saved: str = "0"
    saving: str = "0"

    def refused(self, reason: str, status: str = "recorded") -> "Judgement":
        """The same working, of which nothing is credited."""
        return replace(self, status=status, reasons=(reason,), mg=0)


def check(report: BillReport, today: date) -> None:
    """Refuse what no bill can say, with `ValidationFailed`; `today` is the day it arrived."""
    days = (report.period_end - report.period_start).days + 1
    if days < 1:
        raise ValidationFailed(
            "/period_end", "Must not lie before period_start.", "不得早于 period_start。"
        )
    if days > PERIOD_DAYS_MAX:
        raise ValidationFailed(
            "/period_end",
            f"A bill covers at most {PERIOD_DAYS_MAX} days.",
            f"账单最多覆盖 {PERIOD_DAYS_MAX} 天。",
        )
    if report.period_end > today:
        raise ValidationFailed("/period_end", "Has not ended yet.", "账单周期尚未结束。")
    if report.period_start < PERIOD_FIRST:
        raise ValidationFailed(
            "/period_start", f"Must be {PERIOD_FIRST} or later.", f"不得早于 {PERIOD_FIRST}。"
        )
    if not 0 <= report.quantity <= QUANTITY_MAX:
        raise ValidationFailed(
            "/quantity", f"Must be 0 to {QUANTITY_MAX}.", f"应为 0 至 {QUANTITY_MAX}。"
        )
    if report.pv is not None:
        _check_pv(report.carrier, report.pv)


def _check_pv(carrier: Carrier, pv: Generation) -> None:
    if carrier != "electricity":
        raise ValidationFailed(
            "/pv_generated_kwh", "Only electricity is generated.", "仅电力账单可填写发电量。"
        )
    if not 0 <= pv.generated <= QUANTITY_MAX:
        raise ValidationFailed(
            "/pv_generated_kwh", f"Must be 0 to {QUANTITY_MAX}.", f"应为 0 至 {QUANTITY_MAX}。"
        )
    for name, kwh in (("exported", pv.exported), ("certified", pv.certified)):
        if not 0 <= kwh <= pv.generated:
            raise ValidationFailed(
                f"/pv_{name}_kwh", "Must be 0 to what was generated.", "应为 0 至发电量。"
            )


def assess(
    bill: Use, history: Iterable[Use], *, tier_3: int | None = None, lived_in: bool = False
) -> Verdict:
    """Judge one bill against the other actual bills of its account, which overlap nowhere.

    `tier_3` is the use of the twelve months up to the bill's end above which nothing is credited.
    Somebody has seen that a home is `lived_in` however little it used.
    """
    others = tuple(history)
    base = baseline(bill, others) if has_history(bill, others) else None
    if base is None:
        return Verdict((NEEDS_HISTORY,))
    if tier_3 is not None and trailing_year(bill, others) > tier_3:
        return Verdict(("tier_3",), base)
    if Fraction(bill.quantity) < VACANCY_BELOW * base and not lived_in:
        return Verdict((VACANCY,), base)
    return saving_against(bill, base)


def saving_against(bill: Use, base: Fraction) -> Verdict:
    """What a bill of a home that people live in saved against its baseline, at most the cap."""
    saved, cap = base - Fraction(bill.quantity), SAVING_CAP * base
    if saved <= 0:
        return Verdict(("no_saving",), base)
    if saved > cap:
        return Verdict(("saving_cap",), base, saved, cap)
    return Verdict((), base, saved, saved)


def own_use(pv: Generation) -> Verdict:
    """What of the power the panels made was used at home and is credited nowhere else.

    Nobody can tell which kWh were certified, so all of them count as used at home.
    """
    used = Fraction(pv.own_use)
    if used == 0:
        return Verdict((NO_OWN_USE,))
    saving = max(used - Fraction(pv.certified), Fraction(0))
    return Verdict((PV_CERTIFIED,) if saving < used else (), None, used, saving)


def judged(verdict: Verdict, behaviour: Behaviour, shares: int, *, stale: bool) -> Judgement:
    """Share a verdict out: milligrams of one of `shares` equal parts, rounded down once."""
    mg, gross_mg = (
        floor_mg(units / shares, behaviour.mg_num, behaviour.mg_den)
        for units in (verdict.saving, verdict.saved)
    )
    reasons = verdict.reasons
    if mg == 0 and verdict.saving:
        # Less than a milligram for each.
        reasons = ("no_saving" if verdict.baseline is not None else NO_OWN_USE,)
    status = "recorded" if mg == 0 else "capped" if reasons else "credited"
    return Judgement(
        status=status,
        reasons=(*reasons, "stale_factor") if mg and stale else reasons,
        mg=mg,
        gross_mg=gross_mg,
        baseline=None if verdict.baseline is None else str(verdict.baseline),
        saved=str(verdict.saved),
        saving=str(verdict.saving),
    )


def has_history(bill: Use, others: tuple[Use, ...]) -> bool:
    """Whether actual bills cover the twelve months before the bill's own, up to its first day."""
    first = clock.first_day(clock.add_months(clock.month_of(bill.first), -HISTORY_MONTHS))
    return _covered(others, first, bill.first - _DAY)


def baseline(bill: Use, others: tuple[Use, ...]) -> Fraction | None:
    """What the bill's days would have used in the years before; None if a month is unknown."""
    total = Fraction(0)
    for month in months(bill.first, bill.last):
        known = [
            used
            for years in BASELINE_YEARS
            if (used := month_use(others, clock.add_months(month, -12 * years))) is not None
        ]
        if not known:
            return None
        first, last = clock.first_day(month), clock.last_day(month)
        share = Fraction(bill.days_within(first, last), last.day)
        total += share * sum(known) / len(known)
    return total


def month_use(bills: tuple[Use, ...], month: str) -> Fraction | None:
    """The use of a city month, each bill by its days in it; None unless every day is covered."""
    first, last = clock.first_day(month), clock.last_day(month)
    if not _covered(bills, first, last):
        return None
    return sum((bill.within(first, last) for bill in bills), Fraction(0))


def trailing_year(bill: Use, others: tuple[Use, ...]) -> Fraction:
    """The use of the twelve months that end with the bill's last day, the bill included."""
    first = _year_before(bill.last) + _DAY
    return sum((one.within(first, bill.last) for one in (bill, *others)), Fraction(0))


def months(first: date, last: date) -> Iterator[str]:
    """The city months that two days and those between them fall in, oldest first."""
    month = clock.month_of(first)
    while month <= clock.month_of(last):
        yield month
        month = clock.add_months(month, 1)


def _covered(bills: tuple[Use, ...], first: date, last: date) -> bool:
    return sum(bill.days_within(first, last) for bill in bills) == (last - first).days + 1


def _year_before(day: date) -> date:
    """The same day a year earlier; 28 February for 29 February."""
    month = clock.add_months(clock.month_of(day), -12)
    return clock.first_day(month).replace(day=min(day.day, clock.last_day(month).day))
