"""The aggregation that grades residents on the server, made from a policy.

What it reads of the stored months is what `grade.counted` reads of their rows, and the snapshots it
makes are those of `grade.document_of`; tests hold both against each other.
"""

from datetime import datetime
from typing import Any

from accounting import accounts, clock, grading_stages
from accounting.grading import UNRATED, Policy
from footprint import grade
from footprint.grade import SnapshotDocument
from footprint.summaries import MonthDocument

Stage = dict[str, Any]


def snapshots(residents: Any, now: datetime, scheduled: str | None) -> list[Stage]:
    """Stages on the residents that match: a finished snapshot of each who needs a new one."""
    policy = grade.policy_on(clock.city_day(now))
    first_month, last_month = grade.window(policy, now)
    counts: Any = {"$and": [scheduled is not None, {"$lt": ["$before", scheduled]}]}
    inputs: Stage = {
        "policy": policy.version,
        "first_month": first_month,
        "last_month": last_month,
        "by_behaviour": "$by_behaviour",
        "active_months": "$active_months",
        "credited_mg": "$credited_mg",
        "seq": "$seq",
        "held": "$held",
        "below": "$below",
        "scheduled": {"$cond": ["$counts", scheduled, "$before"]},
        "counts": "$counts",
        "released": {"$literal": False},
    }
    return [
        *_open(residents),
        *_months(policy, first_month, last_month),
        *_earlier(),
        {
            "$set": {
                "held": {"$ifNull": ["$last.standing.grade", None]},
                "below": {"$ifNull": ["$last.standing.below", 0]},
                "before": {"$ifNull": ["$last.inputs.scheduled", None]},
                "number": {"$add": [{"$ifNull": ["$last.number", 0]}, 1]},
            }
        },
        {"$set": {"counts": counts}},
        *grading_stages.standing(policy, scheduled="$counts", released=False),
        {
            "$set": {
                "by_behaviour": {
                    "$arrayToObject": {
                        "$map": {
                            "input": "$rows",
                            "as": "row",
                            "in": {"k": "$$row.behaviour", "v": "$$row.mg"},
                        }
                    }
                },
            }
        },
        {"$match": {"$expr": {"$not": [_same(policy, last_month)]}}},
        {
            "$project": {
                "_id": {"$concat": ["$_id", "/", {"$toString": "$number"}]},
                "resident": "$_id",
                "number": 1,
                "graded_at": {"$literal": now},
                "standing": 1,
                "inputs": inputs,
                "untold": {
                    "$cond": [
                        {"$ne": ["$standing.grade", {"$ifNull": ["$held", UNRATED]}]},
                        True,
                        "$$REMOVE",
                    ]
                },
            }
        },
    ]


def grades(residents: Any, policy: Policy, now: datetime) -> list[Stage]:
    """Stages on the residents that match: the grade their amounts make, whatever was held."""
    return [
        *_open(residents),
        *_months(policy, *grade.window(policy, now)),
        {"$set": {"held": None, "below": 0}},
        *grading_stages.standing(policy, scheduled=False, released=False),
        {"$project": {"grade": "$standing.grade"}},
    ]


def _open(residents: Any) -> list[Stage]:
    return [{"$match": {"_id": residents, "status": accounts.OPEN}}, {"$project": {"_id": 1}}]


def _months(policy: Policy, first_month: str, last_month: str) -> list[Stage]:
    """`rows`, `active_months`, `credited_mg` and `seq` of the months of a window."""
    names = ("behaviour", "evidence", "bank_grade", "mg")
    wanted = {"_id": 0, "seq": 1} | {f"behaviours.{name}": 1 for name in names}
    counting = grading_stages.counting(policy, "$$row")
    counted_rows = {"input": "$$month.behaviours", "as": "row", "cond": counting}
    return [
        {
            "$lookup": {
                "from": MonthDocument._get_collection_name(),
                "localField": "_id",
                "foreignField": "account",
                "pipeline": [
                    {"$match": {"month": {"$gte": first_month, "$lte": last_month}}},
                    {"$project": wanted},
                ],
                "as": "months",
            }
        },
        {
            "$set": {
                "seq": {"$ifNull": [{"$max": "$months.seq"}, 0]},
                "credited_mg": _total("$months", {"$sum": "$$one.behaviours.mg"}),
                "counted": {
                    "$map": {"input": "$months", "as": "month", "in": {"$filter": counted_rows}}
                },
            }
        },
        {
            "$set": {
                "active_months": _total(
                    "$counted", {"$cond": [{"$gt": [{"$max": "$$one.mg"}, 0]}, 1, 0]}
                ),
                "counted": {
                    "$reduce": {
                        "input": "$counted",
                        "initialValue": [],
                        "in": {"$concatArrays": ["$$value", "$$this"]},
                    }
                },
            }
        },
        {
            "$set": {
                "rows": {
                    "$map": {
                        "input": {"$setUnion": ["$counted.behaviour", []]},
                        "as": "code",
                        "in": {"behaviour": "$$code", "mg": _of_code()},
                    }
                }
            }
        },
        {
            "$set": {
                "rows": {
                    "$sortArray": {
                        "input": {
                            "$filter": {
                                "input": "$rows",
                                "as": "row",
                                "cond": {"$gt": ["$$row.mg", 0]},
                            }
                        },
                        "sortBy": {"behaviour": 1},
                    }
                }
            }
        },
    ]


def _of_code() -> Stage:
    """Milligrams of the counted rows of `$$code`."""
    amount = {"$cond": [{"$eq": ["$$row.behaviour", "$$code"]}, "$$row.mg", 0]}
    return {"$sum": {"$map": {"input": "$counted", "as": "row", "in": amount}}}


def _total(of: str, amount: Stage) -> Stage:
    return {"$sum": {"$map": {"input": of, "as": "one", "in": amount}}}


def _earlier() -> list[Stage]:
    """`last`: the newest snapshot of each resident, absent before the first."""
    return [
        {
            "$lookup": {
                "from": SnapshotDocument._get_collection_name(),
                "localField": "_id",
                "foreignField": "resident",
                "pipeline": [{"$sort": {"number": -1}}, {"$limit": 1}],
                "as": "last",
            }
        },
        {"$set": {"last": {"$first": "$last"}}},
    ]


def _same(policy: Policy, last_month: str) -> Stage:
    """What `grade` calls the same: nothing new to say within the month."""
    return {
        "$and": [
            {"$not": ["$counts"]},
            {"$eq": ["$last.standing", "$standing"]},
            {"$eq": ["$last.inputs.by_behaviour", "$by_behaviour"]},
            {"$eq": ["$last.inputs.credited_mg", "$credited_mg"]},
            {"$eq": ["$last.inputs.policy", policy.version]},
            {"$eq": ["$last.inputs.last_month", last_month]},
        ]
    }
