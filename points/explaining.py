"""The explanation of an activity or a bill with its points: what a gram earns, and who pays."""

from collections.abc import Mapping
from typing import Any, Final

from accounting import book
from accounting.book import Entry
from accounting.errors import Language
from accounting.quantities import MG_PER_G
from footprint import activities, bills, explanation, working
from footprint.activities import Activity
from footprint.bills import Bill
from points import earning

_SAYS: Final[dict[Language, str]] = {
    "zh": "{g} 克 × 每克 {rate} 分，向下取整为 {points} 分，由 {funder} 承担。",
    "en": "{g} g x {rate} points a gram, rounded down: {points} points, paid by {funder}.",
}
_NONE: Final[dict[Language, str]] = {"zh": "没有积分。", "en": "No points."}


def of_activity(activity: Activity, language: Language) -> dict[str, Any]:
    """How the grams and points of a settled activity came about."""
    entry = activities.entry(activity)
    return explanation.of(activity, entry, language) | {"points": _points(entry, language)}


def of_share(bill: Bill, resident: str, language: Language) -> dict[str, Any]:
    """How a resident's share of a settled bill came about."""
    entry = book.by_key(resident, bills.entry_key(bill, resident))
    told = explanation.of_share(bill, resident, entry, language)
    return told | {"points": _points(entry, language)}


def _points(entry: Entry | None, language: Language) -> dict[str, Any]:
    refs: Mapping[str, Any] = entry.refs if entry is not None else {}
    rule = next((one for one in earning.rules() if one.version == refs.get("rule")), None)
    if rule is None:
        return {"points": 0, "rule": None, "funder": None, "text": _NONE[language]}
    return {
        "points": refs["points"],
        "rule": rule.version,
        "funder": refs["funder"],
        # Points for each milligram, exactly: what is computed with.
        "exact": {"points_num": rule.points_per_gram, "mg_den": MG_PER_G},
        "text": _SAYS[language].format(
            g=working.shown_g(refs["mg"]),
            rate=rule.points_per_gram,
            points=refs["points"],
            funder=refs["funder"],
        ),
    }
