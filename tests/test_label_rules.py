"""Colour labels, by hand: cut points, percentiles, what cannot be divided, and the whole of it."""

from decimal import Decimal
from fractions import Fraction

import pytest

from accounting.enterprise import label_rules
from accounting.enterprise.label_rules import Indicator, Label, Reason, Told
from accounting.enterprise.sectors import Denominator

PRODUCT = Denominator("product", "t", "单位产品", "per tonne of product")
TAX = Denominator("tax", "fen", "单位税收", "per yuan of tax")
DARK, LIGHT, YELLOW, RED, NONE = Label


def told(output: str | None = None, unit: str | None = "t", tax_fen: int | None = None) -> Told:
    return Told(None if output is None else Decimal(output), unit, None, tax_fen)


@pytest.mark.parametrize(
    ("grams", "k", "label"),
    [
        # Against 1,000 g/t: 2 t of product and so many grams.
        (1_600, "0.8", DARK),
        (1_601, "0.8005", LIGHT),
        (2_400, "1.2", LIGHT),
        (2_401, "1.2005", YELLOW),
        (4_000, "2", YELLOW),
        (4_001, "2.0005", RED),
    ],
)
def test_k_is_the_own_intensity_over_the_average(grams: int, k: str, label: Label) -> None:
    made = label_rules.indicator(PRODUCT, grams * 1_000, [told("2")], Decimal(1_000), ())
    assert (made.label, made.k) == (label, Fraction(k))
    assert made.intensity == Fraction(grams, 2)


def test_months_are_added_before_they_divide() -> None:
    # 3,000 g over 1 t and 2,000 kg: 1,000 g/t, in whatever unit a month was told.
    months = [told("1"), told("2000", "kg")]
    made = label_rules.indicator(PRODUCT, 3_000_000, months, Decimal(1_000), ())
    assert (made.intensity, made.k, made.label) == (1_000, 1, LIGHT)
    # 100 g over 400 - 200 fen of tax: a refund inside a year that paid more is in the sum.
    months = [told(tax_fen=400), told(tax_fen=-200)]
    made = label_rules.indicator(TAX, 100_000, months, Decimal("0.25"), ())
    assert (made.intensity, made.k, made.label) == (Fraction(1, 2), 2, YELLOW)


@pytest.mark.parametrize(
    ("denominator", "months", "reason"),
    [
        (PRODUCT, [], Reason.FIGURES_MISSING),
        (PRODUCT, [told("1"), None], Reason.FIGURES_MISSING),
        (PRODUCT, [told("1"), told()], Reason.FIGURES_MISSING),
        (PRODUCT, [told("1"), told("5", "piece")], Reason.OTHER_UNIT),
        (PRODUCT, [told("0")], Reason.NOT_POSITIVE),
        (TAX, [told(tax_fen=100), told(tax_fen=-300)], Reason.NOT_POSITIVE),
        (TAX, [told(tax_fen=None)], Reason.FIGURES_MISSING),
    ],
)
def test_what_cannot_be_divided_is_not_rated_and_never_green(
    denominator: Denominator, months: list[Told | None], reason: Reason
) -> None:
    made = label_rules.indicator(denominator, 1_000, months, Decimal(1), ())
    assert (made.label, made.reason, made.k, made.intensity) == (NONE, reason, None, None)


@pytest.mark.parametrize("emissions_mg", [None, 0])
def test_no_emissions_are_no_dark_green(emissions_mg: int | None) -> None:
    made = label_rules.indicator(PRODUCT, emissions_mg, [told("1")], Decimal(1), ())
    assert (made.label, made.reason) == (NONE, Reason.NO_EMISSIONS)


def test_without_a_benchmark_ten_plants_are_compared() -> None:
    def rated(grams: int, others: int) -> Indicator:
        peers = [Fraction(one * 10) for one in range(1, others + 1)]
        return label_rules.indicator(PRODUCT, grams * 1_000, [told("1")], None, peers)

    few = rated(5, 8)
    assert (few.label, few.reason, few.peers) == (NONE, Reason.NO_BENCHMARK, 9)
    # Nine others at 10, 20 ... 90 and this one: of ten the 2nd, 5th and 8th are the cuts.
    places = {15: DARK, 20: DARK, 21: LIGHT, 50: LIGHT, 51: YELLOW, 80: YELLOW, 81: RED, 99: RED}
    assert {grams: rated(grams, 9).label for grams in places} == places
    assert (rated(15, 9).k, rated(15, 9).peers) == (None, 10)


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        ([DARK, YELLOW, RED], YELLOW),
        ([RED, DARK, DARK], DARK),
        ([DARK, NONE, RED], RED),
        ([DARK, LIGHT, NONE], LIGHT),
        ([NONE, YELLOW, NONE], YELLOW),
        ([NONE, NONE, NONE], NONE),
    ],
)
def test_the_whole_is_the_median_and_of_two_the_worse(labels: list[Label], wanted: Label) -> None:
    assert label_rules.overall(labels) is wanted


def test_a_trend_is_against_the_own_past() -> None:
    # From 200 to 180 is a tenth less; from 200 to 201 half a percent more, which is nothing.
    assert label_rules.change(Fraction(180), Fraction(200)) == Fraction(-1, 10)
    assert label_rules.direction([Fraction(-1, 10)]) == "improving"
    assert label_rules.direction([Fraction(1, 200)]) == "steady"
    assert label_rules.direction([Fraction(-1, 10), Fraction(3, 10), Fraction(1, 5)]) == "worsening"
    assert label_rules.direction([]) is None


def test_each_k_is_explained_in_both_languages() -> None:
    made = label_rules.indicator(PRODUCT, 3_000_000, [told("2")], Decimal(1_000), ())
    assert label_rules.explained(made, "en") == (
        "3,000 g over 2 t is 1,500 g/t; the benchmark is 1,000 g/t; K = 1.5: yellow."
    )
    assert "K = 1.5，黄。" in label_rules.explained(made, "zh")
    unrated = label_rules.indicator(PRODUCT, 3_000_000, [None], None, ())
    assert "not rated" in label_rules.explained(unrated, "en")
    placed = label_rules.indicator(PRODUCT, 1_000, [told("3")], None, [Fraction(9)] * 9)
    assert "10 plants" in label_rules.explained(placed, "en")
    # A third of a gram is cut after six places, never rounded up.
    assert label_rules.shown(placed.intensity) == Decimal("0.333333")
    for reason in Reason:
        assert label_rules.reason_text(reason, "zh")
        assert label_rules.reason_text(reason, "en")
