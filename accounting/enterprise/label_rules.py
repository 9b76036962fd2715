"""A plant's colour label: three intensities against the averages of its sector. Pure.

K is the plant's intensity over the benchmark of the same sector and year. Cut points 0.8, 1.2 and
2.0 are those of the province's five grades with the two best merged; where a sector has no
benchmark, ten plants or more are compared with each other. What cannot be divided is not rated:
never green. Everything is exact until it is shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, Decimal
from enum import StrEnum
from fractions import Fraction

from accounting.enterprise.carriers import UNITS
from accounting.enterprise.sectors import Denominator
from accounting.errors import Language

PLACES = Decimal("0.000001")
PEERS_MIN = 10
COMPLETENESS_MIN = Fraction(9, 10)
ESTIMATED_MAX = Fraction(1, 10)
MG_PER_G = 1_000
# Less than a hundredth up or down is no change.
STEADY = Fraction(1, 100)


class Label(StrEnum):
    DARK_GREEN = "dark_green"
    LIGHT_GREEN = "light_green"
    YELLOW = "yellow"
    RED = "red"
    UNRATED = "unrated"

    @property
    def rank(self) -> int:
        """From the best to the worst; what is not rated comes last and is compared with nothing."""
        return list(Label).index(self)


NAMES: Mapping[Label, Mapping[Language, str]] = {
    Label.DARK_GREEN: {"zh": "深绿", "en": "dark green"},
    Label.LIGHT_GREEN: {"zh": "浅绿", "en": "light green"},
    Label.YELLOW: {"zh": "黄", "en": "yellow"},
    Label.RED: {"zh": "红", "en": "red"},
    Label.UNRATED: {"zh": "未评定", "en": "not rated"},
}
CUTS = (
    (Fraction(8, 10), Label.DARK_GREEN),
    (Fraction(12, 10), Label.LIGHT_GREEN),
    (Fraction(2), Label.YELLOW),
)
PERCENTILES = ((20, Label.DARK_GREEN), (50, Label.LIGHT_GREEN), (80, Label.YELLOW))


class Reason(StrEnum):
    """Why an indicator, or a label, is not rated."""

    NO_EMISSIONS = "no_emissions"
    FIGURES_MISSING = "figures_missing"
    NOT_POSITIVE = "denominator_not_positive"
    OTHER_UNIT = "unit_not_comparable"
    NO_BENCHMARK = "no_benchmark"
    VETO = "veto"


class Doubt(StrEnum):
    """Why a label is provisional."""

    YEAR_NOT_OVER = "year_not_over"
    PART_OF_YEAR = "part_of_year"
    COMPLETENESS = "completeness_below_90_percent"
    ESTIMATES = "estimates_above_10_percent"
    EARLIER_BENCHMARK = "benchmark_of_an_earlier_year"


@dataclass(frozen=True, slots=True)
class Told:
    """What a plant said it made and paid in a month; None was not reported."""

    output: Decimal | None
    output_unit: str | None
    added_value_fen: int | None
    tax_fen: int | None


@dataclass(frozen=True, slots=True)
class Indicator:
    """One intensity, in grams per `unit`, and what it is held against.

    `k` is None where the label comes from the percentiles among `peers`, itself included; `reason`
    says why it has none.
    """

    name: str
    unit: str
    label: Label
    emissions_mg: int
    amount: Fraction | None = None
    benchmark: Decimal | None = None
    peers: int = 0
    reason: Reason | None = None

    @property
    def intensity(self) -> Fraction | None:
        """Grams per unit."""
        if self.amount is None or self.amount <= 0:
            return None
        return Fraction(self.emissions_mg, MG_PER_G) / self.amount

    @property
    def k(self) -> Fraction | None:
        if self.intensity is None or self.benchmark is None:
            return None
        return self.intensity / Fraction(self.benchmark)


def by_k(k: Fraction) -> Label:
    return next((label for cut, label in CUTS if k <= cut), Label.RED)


def by_percentile(intensity: Fraction, everybody: Sequence[Fraction]) -> Label:
    """By the place among the plants of a sector, itself among them (nearest rank)."""
    ordered = sorted(everybody)
    for percent, label in PERCENTILES:
        if intensity <= ordered[-(-len(ordered) * percent // 100) - 1]:
            return label
    return Label.RED


def amount_of(denominator: Denominator, told: Sequence[Told | None]) -> Fraction | Reason:
    """What emissions are divided by, over months that were all told; else the reason why not."""
    if not told or any(one is None for one in told):
        return Reason.FIGURES_MISSING
    total = Fraction(0)
    for one in told:
        part = _part(denominator, one) if one is not None else None
        if part is None:
            return Reason.FIGURES_MISSING
        if isinstance(part, Reason):
            return part
        total += part
    return total if total > 0 else Reason.NOT_POSITIVE


def _part(denominator: Denominator, told: Told) -> Fraction | Reason | None:
    if denominator.indicator == "added_value":
        return None if told.added_value_fen is None else Fraction(told.added_value_fen)
    if denominator.indicator == "tax":
        return None if told.tax_fen is None else Fraction(told.tax_fen)
    if told.output is None:
        return None
    # Several products cannot be added up; one in kilograms and tonnes can.
    return _converted(Fraction(told.output), told.output_unit or "", denominator.unit)


def _converted(amount: Fraction, unit: str, to: str) -> Fraction | Reason:
    if unit == to:
        return amount
    if unit not in UNITS or to not in UNITS or UNITS[unit][0] != UNITS[to][0]:
        return Reason.OTHER_UNIT
    return amount * UNITS[unit][1] / UNITS[to][1]


def indicator(
    denominator: Denominator,
    emissions_mg: int | None,
    told: Sequence[Told | None],
    benchmark: Decimal | None,
    peers: Sequence[Fraction],
) -> Indicator:
    """Rate one intensity. `peers` are the intensities of other plants of the sector and year."""
    name, unit = denominator.indicator, denominator.unit
    amount = amount_of(denominator, told)
    if not emissions_mg or isinstance(amount, Reason):
        reason = amount if isinstance(amount, Reason) else Reason.NO_EMISSIONS
        return Indicator(
            name, unit, Label.UNRATED, emissions_mg or 0, benchmark=benchmark, reason=reason
        )
    intensity = Fraction(emissions_mg, MG_PER_G) / amount
    if benchmark is not None and benchmark > 0:
        label = by_k(intensity / Fraction(benchmark))
        return Indicator(name, unit, label, emissions_mg, amount, benchmark)
    count = len(peers) + 1
    if count < PEERS_MIN:
        reason = Reason.NO_BENCHMARK
        return Indicator(
            name, unit, Label.UNRATED, emissions_mg, amount, peers=count, reason=reason
        )
    label = by_percentile(intensity, [intensity, *peers])
    return Indicator(name, unit, label, emissions_mg, amount, peers=count)


def overall(labels: Sequence[Label]) -> Label:
    """The median of what is rated; of two the worse; none is not rated."""
    rated = sorted((one for one in labels if one is not Label.UNRATED), key=lambda one: one.rank)
    if not rated:
        return Label.UNRATED
    return rated[len(rated) // 2]


def change(now: Fraction, before: Fraction) -> Fraction:
    """By how much an intensity changed against its own past, as a share."""
    return now / before - 1


def direction(changes: Sequence[Fraction]) -> str | None:
    """improving, steady or worsening, by the median of the changes; None without any."""
    if not changes:
        return None
    ordered = sorted(changes)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    if abs(middle) <= STEADY:
        return "steady"
    return "improving" if middle < 0 else "worsening"


def shown(value: Fraction | None) -> Decimal | None:
    """As it is answered: six places, cut."""
    if value is None:
        return None
    return (Decimal(value.numerator) / Decimal(value.denominator)).quantize(PLACES, ROUND_DOWN)


_REASONS: Mapping[Reason, Mapping[Language, str]] = {
    Reason.NO_EMISSIONS: {
        "zh": "该期间没有排放量，不评定。",
        "en": "There are no emissions in the period: not rated.",
    },
    Reason.FIGURES_MISSING: {
        "zh": "该期间有月份未填报此项数据，不评定。",
        "en": "A month of the period was not reported: not rated.",
    },
    Reason.NOT_POSITIVE: {
        "zh": "该期间合计不大于零（如退税、负增加值），不评定。",
        "en": "The sum of the period is not above zero (a refund, a loss): not rated.",
    },
    Reason.OTHER_UNIT: {
        "zh": "产量单位不是 {unit}，也不能换算，不评定。",
        "en": "The output is not in {unit} and cannot be converted: not rated.",
    },
    Reason.NO_BENCHMARK: {
        "zh": "没有行业基准，同行业企业不足 {least} 家，不评定。",
        "en": "There is no benchmark, and fewer than {least} plants to compare with: not rated.",
    },
    Reason.VETO: {
        "zh": "有一票否决事项，不评定。",
        "en": "A veto stands: not rated.",
    },
}


def explained(one: Indicator, language: Language) -> str:
    """How an indicator came to its label, in a sentence."""
    if one.reason is not None:
        return _REASONS[one.reason][language].format(unit=one.unit, least=PEERS_MIN)
    assert one.amount is not None, one
    values = {
        "emissions": f"{one.emissions_mg // MG_PER_G:,}",
        "amount": f"{_cut(one.amount):,}",
        "unit": one.unit,
        "intensity": f"{_cut(one.intensity):,}",
        "benchmark": f"{one.benchmark:,}" if one.benchmark is not None else "",
        "k": "" if one.k is None else str(_cut(one.k)),
        "peers": one.peers,
        "label": NAMES[one.label][language],
    }
    way = "benchmark" if one.benchmark is not None else "percentile"
    return _WAYS[way][language].format(**values)


def reason_text(reason: Reason, language: Language) -> str:
    return _REASONS[reason][language].format(unit="", least=PEERS_MIN)


def _cut(value: Fraction | None) -> Decimal:
    assert value is not None
    cut = shown(value)
    assert cut is not None
    return cut.normalize() if cut != cut.to_integral_value() else cut.quantize(Decimal(1))


_WAYS: Mapping[str, Mapping[Language, str]] = {
    "benchmark": {
        "zh": "排放 {emissions} g ÷ {amount} {unit} = {intensity} g/{unit}；"
        "基准 {benchmark} g/{unit}；K = {k}，{label}。",
        "en": "{emissions} g over {amount} {unit} is {intensity} g/{unit}; the benchmark is "
        "{benchmark} g/{unit}; K = {k}: {label}.",
    },
    "percentile": {
        "zh": "排放 {emissions} g ÷ {amount} {unit} = {intensity} g/{unit}；"
        "无基准，在 {peers} 家同行业企业中按分位评定：{label}。",
        "en": "{emissions} g over {amount} {unit} is {intensity} g/{unit}; without a benchmark, by "
        "its place among {peers} plants of the sector: {label}.",
    },
}
