"""The working of an explanation: from what was reported to milligrams, step by step. Pure.

Each step is one operation on one running number, exact to the last digit, with a sentence for a
person beside it. Whoever repeats the operations with fractions gets the same milligrams and needs
none of our rules for it:

    take      the number becomes `value`
    minus     `value` is taken off, but never below nought
    at_most   the number becomes `value` if it is more
    over      the number is divided by `value`
    times     the number is multiplied by the exact factor named in `factor`: now milligrams
    floor     the number is rounded down to a whole one
    nothing   the number becomes nought
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, Literal, get_args

from accounting.errors import Language
from accounting.quantities import MG_PER_G, PLACES_MAX
from footprint import reasons
from footprint.billing_rules import Judgement
from footprint.methodology import Behaviour, Methodology

Op = Literal["take", "minus", "at_most", "over", "times", "floor", "nothing"]
OPS: Final[tuple[Op, ...]] = get_args(Op)
MG = "mg"
TRIP = "trip"
_UNITS_ZH: Final[dict[str, str]] = {
    "step": "步",
    "km": "公里",
    "passenger-km": "人公里",
    "vehicle-km": "车公里",
    "kWh": "千瓦时",
    "m3": "立方米",
    "t": "吨",
    "day": "天",
    "txn": "笔",
    "payment": "笔",
    "invoice": "张",
    "statement": "份",
    "card": "张",
    "pass": "次",
    "order": "单",
    "visit": "次",
    "kg": "公斤",
    "carton": "个",
    "meal": "餐",
    TRIP: "次",
}
# What each step says; the numbers in braces are facts of the step.
_SAYS: Final[dict[str, dict[Language, str]]] = {
    "quantity": {
        "zh": "上报数量为 {result} {unit}。",
        "en": "Reported: {result} {unit}.",
    },
    "step_limit": {
        "zh": "每天最多计 {value} 步。",
        "en": "At most {value} steps of a day count.",
    },
    "day_count_cap": {
        "zh": "每天最多计入 {cap} 次，此前已计 {used}，本次还可计 {value}。",
        "en": "{cap} a day are credited; {used} were before this one, which leaves {value}.",
    },
    "month_count_cap": {
        "zh": "每月最多计入 {cap} 次，此前已计 {used}，本次还可计 {value}。",
        "en": "{cap} a month are credited; {used} were before this one, which leaves {value}.",
    },
    "same_merchant_cap": {
        "zh": "同一商户每天最多计入 {cap} 次，此前已计 {used}，本次还可计 {value}。",
        "en": "{cap} a day are credited at one merchant; {used} were before this one, which "
        "leaves {value}.",
    },
    "formula": {
        "zh": "乘以每{per}减排 {factor_g} 克，得 {result_g} 克。",
        "en": "Times {factor_g} g for each {per}: {result_g} g.",
    },
    "rounding": {
        "zh": "向下取整到毫克，为 {result_g} 克。",
        "en": "Rounded down to whole milligrams: {result_g} g.",
    },
    "less_lower_total": {
        "zh": "减去当天较低步数已计入的 {value_g} 克。",
        "en": "Less the {value_g} g that a lower step total of the same day was credited.",
    },
    "net_of_transit": {
        "zh": "减去当天公共交通与骑行的 {value_g} 克，最低为 0。",
        "en": "Less the {value_g} g of transit and cycling of the same day, not below nought.",
    },
    "day_gram_cap": {
        "zh": "该行为每天最多计 {cap_g} 克，此前已用 {used_g} 克，还可计 {value_g} 克。",
        "en": "{cap_g} g a day are credited for this behaviour; {used_g} g were used before, "
        "which leaves {value_g} g.",
    },
    "stop_day_covers": {
        "zh": "停驶日计 {cap_g} 克，其他出行已抵 {used_g} 克，其余涵盖本次的 {value_g} 克。",
        "en": "The day the car stayed at home is worth {cap_g} g; other trips had taken up "
        "{used_g} g of that. {value_g} g of this trip are covered by the rest.",
    },
    "overall_day_cap": {
        "zh": "出行与支付类每天合计最多计 {cap_g} 克，此前已用 {used_g} 克，还可计 {value_g} 克。",
        "en": "{cap_g} g a day are credited over travel and payments; {used_g} g were used before, "
        "which leaves {value_g} g.",
    },
    "baseline": {
        "zh": "往年同期的用量为 {result} {unit}。",
        "en": "The same months of the years before used {result} {unit}.",
    },
    "use": {
        "zh": "减去本期用量 {value} {unit}，节约 {result} {unit}。",
        "en": "Less the {value} {unit} of this bill: {result} {unit} saved.",
    },
    "generation": {
        "zh": "账单所载自发自用电量为 {result} {unit}。",
        "en": "By the bill, {result} {unit} were made and used at home.",
    },
    "pv_certified": {
        "zh": "已核发绿证或其他碳减排量的电量不重复计入，余 {value} {unit}。",
        "en": "Less what a certificate covers already: {value} {unit} are left.",
    },
    "saving_cap": {
        "zh": "节约量最多按往年同期的 30% 计，即 {value} {unit}。",
        "en": "At most 30 % of the years before count as saved: {value} {unit}.",
    },
    "household_share": {
        "zh": "由 {value} 位家庭成员均分，每人 {result} {unit}。",
        "en": "Shared by the {value} members of the household: {result} {unit} each.",
    },
}


@dataclass(frozen=True, slots=True)
class Step:
    """One operation and the number after it; `unit` is the number's.

    `cap` and `used` are there where a cap bit: the whole of it, and what was used before.
    """

    rule: str
    op: Op
    result: Fraction
    unit: str
    value: Fraction | None = None
    factor: str | None = None
    cap: int | None = None
    used: int | None = None
    says: Mapping[str, str] = field(default_factory=dict)

    def text(self, language: Language) -> str:
        """The step as a sentence."""
        if self.rule not in _SAYS:
            return reasons.text(self.rule, language)
        facts: dict[str, Any] = {
            "unit": unit_name(self.unit, language),
            "per": unit_name(self.says.get("per", ""), language),
            "factor_g": self.says.get("factor_g"),
        }
        amounts = {"result": self.result, "value": self.value, "cap": self.cap, "used": self.used}
        for name, amount in amounts.items():
            if amount is not None:
                facts[name] = shown(Fraction(amount), places=PLACES_MAX)
                facts[f"{name}_g"] = shown(Fraction(amount) / MG_PER_G)
        return _SAYS[self.rule][language].format(**facts)

    def dumped(self, language: Language) -> dict[str, Any]:
        """The step as it is answered: exact numbers as text, and the sentence."""
        optional = {"factor": self.factor, "cap": self.cap, "used_before": self.used}
        return {
            "rule": self.rule,
            "op": self.op,
            **({} if self.value is None else {"value": exact(self.value)}),
            **{name: value for name, value in optional.items() if value is not None},
            "result": exact(self.result),
            "unit": self.unit,
            "text": self.text(language),
        }


class _Run:
    """The steps so far and the running number."""

    def __init__(self, unit: str) -> None:
        self.steps: list[Step] = []
        self.number = Fraction(0)
        self.unit = unit

    def add(self, rule: str, op: Op, value: Fraction | int | None = None, **more: Any) -> None:
        """Apply one operation; `more` are further fields of the step."""
        value = None if value is None else Fraction(value)
        self.number = _applied(op, self.number, value)
        self.steps.append(Step(rule, op, self.number, self.unit, value, **more))

    def times(self, factor: "Factor") -> None:
        self.number *= factor.mg
        self.unit = MG
        says = {"per": factor.per, "factor_g": shown(factor.mg / MG_PER_G, places=PLACES_MAX)}
        self.steps.append(
            Step("formula", "times", self.number, MG, factor=factor.id, says=says),
        )
        self.add("rounding", "floor")


def _applied(op: Op, number: Fraction, value: Fraction | None) -> Fraction:
    match op, value:
        case "take", Fraction():
            return value
        case "minus", Fraction():
            return max(number - value, Fraction(0))
        case "at_most", Fraction():
            return min(number, value)
        case "over", Fraction():
            return number / value
        case "floor", None:
            return Fraction(number.__floor__())
        case "nothing", None:
            return Fraction(0)
    raise AssertionError((op, value))


@dataclass(frozen=True, slots=True)
class Factor:
    """A factor of a behaviour: exact milligrams for each `per`."""

    id: str
    per: str
    mg_num: int
    mg_den: int

    @property
    def mg(self) -> Fraction:
        return Fraction(self.mg_num, self.mg_den)


def factor_of(behaviour: Behaviour, *, by_trip: bool = False) -> Factor:
    """The factor a calculation uses; `by_trip` the value of a trip whose length is unknown."""
    if by_trip and behaviour.trip_mg is not None:
        return Factor(f"{behaviour.factor_id}/{TRIP}", TRIP, behaviour.trip_mg, 1)
    per = _counted_in(behaviour)
    return Factor(behaviour.factor_id, per, behaviour.mg_num, behaviour.mg_den)


# What the caps of counts had used before, in `rules.Counts`.
_COUNTED: Final = {
    "day_count_cap": "used",
    "month_count_cap": "month_used",
    "same_merchant_cap": "same_used",
}


def of_activity(
    refs: Mapping[str, Any], rules_then: Methodology, behaviour: Behaviour, *, by_trip: bool
) -> list[Step]:
    """The steps of an activity, from what its entry keeps of the judgement."""
    factor = factor_of(behaviour, by_trip=by_trip)
    before: Mapping[str, int] = refs.get("before", {})
    run = _Run(factor.per)
    run.add("quantity", "take", Fraction(refs["quantity"]))
    overall_mg = rules_then.overall_day_mg
    for rule, mg, limit in refs.get("steps", ()):
        if rule in _COUNTED:
            used = before.get(_COUNTED[rule], 0)
            run.add(rule, "at_most", max(limit - used, 0), cap=limit, used=used)
        elif rule == "formula":
            if behaviour.step_limit is not None and run.number > behaviour.step_limit:
                run.add("step_limit", "at_most", behaviour.step_limit)
            run.times(factor)
        elif rule == "less_lower_total" or rule == "net_of_transit":
            run.add(rule, "minus", run.number - mg)
        elif rule == "day_gram_cap":
            run.add(rule, "at_most", limit, cap=behaviour.caps.day_mg, used=before.get("mg", 0))
        elif rule == "stop_day_covers":
            whole, used = before["stop_factor_mg"], before.get("netted_mg", 0)
            run.add(rule, "minus", run.number - mg, cap=whole, used=used)
        elif rule == "overall_day_cap":
            run.add(rule, "at_most", limit, cap=overall_mg, used=before.get("overall_mg", 0))
        else:
            run.unit = MG
            run.add(rule, "nothing")
    return run.steps


def of_refusal(quantity: Fraction, factor: Factor, reason: str) -> list[Step]:
    """The steps of what was not credited at all."""
    run = _Run(factor.per)
    run.add("quantity", "take", quantity)
    run.unit = MG
    run.add(reason, "nothing")
    return run.steps


def of_share(judgement: Judgement, use: Decimal, shares: int, behaviour: Behaviour) -> list[Step]:
    """The steps of one resident's share of a household bill."""
    factor = factor_of(behaviour)
    if judgement.saving == "0" and judgement.baseline is None:
        return of_refusal(Fraction(use), factor, judgement.reasons[0])
    run = _Run(factor.per)
    if judgement.baseline is not None:
        run.add("baseline", "take", Fraction(judgement.baseline))
        run.add("use", "minus", Fraction(use))
        if run.number > Fraction(judgement.saving) > 0:
            run.add("saving_cap", "at_most", Fraction(judgement.saving))
    else:
        run.add("generation", "take", Fraction(judgement.saved))
        if run.number > Fraction(judgement.saving):
            run.add("pv_certified", "at_most", Fraction(judgement.saving))
    if judgement.mg:
        run.add("household_share", "over", shares)
        run.times(factor)
    else:
        run.unit = MG
        run.add(judgement.reasons[0], "nothing")
    return run.steps


def exact(number: Fraction) -> str:
    """A number as exact text: a plain decimal where there is one, else a fraction (`620/29`)."""
    places = 0
    while places <= 18 and (number * 10**places).denominator != 1:
        places += 1
    if places > 18:
        return str(number)
    return f"{Decimal(int(number * 10**places)).scaleb(-places):f}"


def shown(number: Fraction, *, places: int = 3) -> str:
    """A number for a person: rounded down to `places`, without trailing noughts."""
    whole = (number * 10**places).__floor__()
    text = f"{Decimal(whole).scaleb(-places):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def shown_g(mg: int) -> str:
    """Milligrams as grams for a person, exactly."""
    return shown(Fraction(mg, MG_PER_G))


def unit_name(unit: str, language: Language) -> str:
    return _UNITS_ZH.get(unit, unit) if language == "zh" else unit


def _counted_in(behaviour: Behaviour) -> str:
    """The unit of a quantity; a saving of a month is told in kWh, not in kWh/month."""
    return behaviour.unit.removesuffix("/month")
