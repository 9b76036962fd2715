"""The explanation of an activity or a bill with its points: what a gram earns, and who pays."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Final

from accounting import book
from accounting.book import Entry
from accounting.errors import Language
from accounting.quantities import MG_PER_G
from footprint import activities, bills, explanation, working
from footprint.activities import Activity
from footprint.bills import Bill
from points import deciding, earning
from points.earning import Part

_SAYS: Final[dict[Language, str]] = {
    "zh": "{g} 克 × 每克 {rate} 分，向下取整为 {points} 分，由 {funder} 承担。",
    "en": "{g} g x {rate} points a gram, rounded down: {points} points, paid by {funder}.",
}
_ALSO: Final[dict[Language, str]] = {
    "zh": "活动 {campaign}：每克再得 {rate} 分，合计取整后为 {points} 分，由 {funder} 承担。",
    "en": "Campaign {campaign}: {rate} points a gram more, {points} points of the sum rounded "
    "down, paid by {funder}.",
}
_SHARE: Final[dict[Language, str]] = {
    "zh": "另每克 {rate} 分，合计取整后为 {points} 分，由 {funder} 承担。",
    "en": "And {rate} points a gram, {points} points of the sum rounded down, paid by {funder}.",
}
_ABOVE: Final[dict[Language, str]] = {
    "zh": "同日较低的总数已按 {g} 克计分，两者合计只向下取整一次。",
    "en": "A lower total of the day has its points for {g} g; both together are rounded down once.",
}
_NONE: Final[dict[Language, str]] = {"zh": "没有积分。", "en": "No points."}


def of_activity(activity: Activity, language: Language) -> dict[str, Any]:
    """How the grams and points of a settled activity came about."""
    entry = activities.entry(activity)
    told = explanation.of(activity, entry, language)
    may = told["appeal"] is None and deciding.appealable(activity)
    return told | {"points": _points(entry, language), "appealable": may}


def of_share(bill: Bill, resident: str, language: Language) -> dict[str, Any]:
    """How a resident's share of a settled bill came about."""
    entry = book.by_key(resident, bills.entry_key(bill, resident))
    told = explanation.of_share(bill, resident, entry, language)
    may = told["appeal"] is None and deciding.bill_appealable(bill)
    return told | {"points": _points(entry, language), "appealable": may}


def _points(entry: Entry | None, language: Language) -> dict[str, Any]:
    refs: Mapping[str, Any] = entry.refs if entry is not None else {}
    if "rule" not in refs:
        nothing: dict[str, Any] = {
            "points": 0,
            "above_mg": 0,
            "rule": None,
            "funder": None,
            "parts": [],
        }
        return nothing | {"text": _NONE[language]}
    parts = earning.parts_of(refs)
    says = [
        _says(part, place)[language].format(
            g=working.shown_g(refs["mg"]),
            rate=_a_gram(part),
            points=part.points,
            campaign=part.campaign,
            funder=part.funder,
        )
        for place, part in enumerate(parts)
    ]
    if "above_mg" in refs:
        says.append(_ABOVE[language].format(g=working.shown_g(refs["above_mg"])))
    return {
        "points": refs["points"],
        # What a lower total of the day has its points for: both together are rounded down once.
        "above_mg": refs.get("above_mg", 0),
        "rule": refs["rule"],
        "funder": refs["funder"],
        "parts": [_part(part) for part in parts],
        "text": " ".join(says),
    }


def _part(part: Part) -> dict[str, Any]:
    """What a funder pays, in order: the running sum of `exact` times milligrams, rounded down.

    On top of `above_mg`: that of both together, less that of `above_mg`; no sum counts for more
    than a longer one, and a part with a limit is rounded by itself.
    """
    return {
        "points": part.points,
        "funder": part.funder,
        "funder_rate": part.rate,
        "campaign": part.campaign,
        "reversal_policy": part.policy,
        # Points for each milligram, exactly: what is computed with.
        "exact": {"points_num": part.num, "mg_den": part.den},
        "limit_points": part.limit,
    }


def _says(part: Part, place: int) -> dict[Language, str]:
    if part.campaign is not None:
        return _ALSO
    return _SHARE if place else _SAYS


def _a_gram(part: Part) -> str:
    exact = Fraction(part.num * MG_PER_G, part.den)
    return str(exact.numerator) if exact.denominator == 1 else f"{float(exact):g}"
