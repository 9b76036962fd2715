"""A grade policy as stages of a MongoDB aggregation, made from the policy object. Pure.

`grading.stand` and `standing` say the same of the same inputs; a test holds them against each other
on thousands of random residents. All arithmetic is on integers: `$divide` makes a double, so what
is divided is made divisible first and the quotient an integer again.
"""

from collections.abc import Sequence
from typing import Any

from accounting.grading import UNRATED, Policy

Expression = dict[str, Any]


def counting(policy: Policy, row: str) -> Expression:
    """`Policy.counts` of a row of a month."""
    return {
        "$and": [f"{row}.bank_grade", {"$in": [f"{row}.evidence", list(policy.evidence)]}],
    }


def standing(policy: Policy, *, scheduled: Any, released: bool) -> list[Expression]:
    """Stages that add `standing`, as `grading.stand` makes it.

    They read `rows` ({behaviour, mg} above zero), `active_months`, `held` (null without an earlier
    grading) and `below`; `scheduled` is an expression.
    """
    ranks = list(policy.names)
    floors = [floor for floor, _ in policy.cut_offs]
    raw = {"$sum": "$rows.mg"}
    fresh = {
        "$cond": [
            {"$gte": ["$active_months", policy.active_months_min]},
            {"$subtract": [_count_reached(floors), 1]},
            -1,
        ]
    }
    falls = False if released else {"$lt": ["$fresh_rank", "$held_rank"]}
    below: Expression = {"$add": ["$below", {"$cond": [scheduled, 1, 0]}]}
    kept = {"$and": ["$falls", {"$lt": ["$now_below", policy.gradings_below]}]}
    rated = {"$gte": ["$rank", 0]}
    return [
        {"$set": {"raw": raw, "held_rank": {"$indexOfArray": [ranks, "$held"]}}},
        {"$set": {"most": _floor_share(policy)}},
        {"$set": {"counted_mg": _sum_of_least("$most")}},
        {"$set": {"fresh_rank": fresh}},
        {"$set": {"falls": falls, "now_below": below}},
        {"$set": {"kept": kept}},
        {"$set": {"rank": {"$cond": ["$kept", "$held_rank", "$fresh_rank"]}}},
        {
            "$set": {
                "standing": {
                    "grade": {"$cond": [rated, _at(ranks, "$rank"), UNRATED]},
                    "reduction_mg": "$raw",
                    "counted_mg": "$counted_mg",
                    "margin_below_mg": {
                        "$cond": [
                            rated,
                            {"$subtract": ["$counted_mg", _at(floors, "$rank")]},
                            None,
                        ]
                    },
                    "to_next_mg": _of_next(
                        floors,
                        lambda floor: {"$max": [{"$subtract": [floor, "$counted_mg"]}, 0]},
                    ),
                    "next_grade": _of_next(ranks, lambda name: name),
                    "active_months": "$active_months",
                    "below": {"$cond": ["$kept", "$now_below", 0]},
                }
            }
        },
    ]


def _count_reached(floors: Sequence[int]) -> Expression:
    """How many cut-offs are reached; they ascend and begin at zero."""
    return {"$sum": [{"$cond": [{"$gte": ["$counted_mg", floor]}, 1, 0]} for floor in floors]}


def _floor_share(policy: Policy) -> Expression:
    product = {"$multiply": ["$raw", policy.share_num]}
    whole = {"$subtract": [product, {"$mod": [product, policy.share_den]}]}
    return {"$toLong": {"$divide": [whole, policy.share_den]}}


def _sum_of_least(most: str) -> Expression:
    return {
        "$sum": {"$map": {"input": "$rows", "as": "row", "in": {"$min": ["$$row.mg", most]}}},
    }


def _at(values: Sequence[Any], rank: Any) -> Expression:
    return {"$arrayElemAt": [list(values), rank]}


def _of_next(values: Sequence[Any], say: Any) -> Expression:
    """Something about the cut-off above; null for the highest and for unrated."""
    highest = len(values) - 1
    above = {"$and": [{"$gte": ["$rank", 0]}, {"$lt": ["$rank", highest]}]}
    return {"$cond": [above, say(_at(values, {"$add": ["$rank", 1]})), None]}
