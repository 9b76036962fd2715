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
        *_inputs(residents, policy, first_month, last_month),
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
        *_inputs(residents, policy, *grade.window(policy, now)),
        {"$set": {"held": None, "below": 0}},
        *grading_stages.standing(policy, scheduled=False, released=False),
        {"$project": {"grade": "$standing.grade"}},
    ]


def _inputs(residents: Any, policy: Policy, first_month: str, last_month: str) -> list[Stage]:
    """`rows`, `active_months`, `credited_mg` and `seq` of every open account among `residents`.

    The months come as one range of their index and are added up as they pass; looking them up for
    each account, and adding up inside arrays, takes three times as long.
    """
    return [
        {"$match": {"_id": residents, "status": accounts.OPEN}},
        {"$project": {"open": {"$literal": True}}},
        {
            "$unionWith": {
                "coll": MonthDocument._get_collection_name(),
                "pipeline": _sums(residents, policy, first_month, last_month),
            }
        },
        {
            "$group": {
                "_id": "$_id",
                "open": {"$max": "$open"},
                "rows": {"$max": "$rows"},
                **{name: {"$sum": f"${name}"} for name in ("active_months", "credited_mg", "seq")},
            }
        },
        {"$match": {"open": True}},
        {"$set": {"rows": _in_order({"$ifNull": ["$rows", []]})}},
    ]


def _sums(residents: Any, policy: Policy, first_month: str, last_month: str) -> list[Stage]:
    """Of each account with months in the window: what `_inputs` says of it."""
    names = ("behaviour", "evidence", "bank_grade", "mg")
    wanted = {"_id": 0, "account": 1, "seq": 1} | {f"behaviours.{name}": 1 for name in names}
    active = {
        "$map": {
            "input": "$behaviours",
            "as": "row",
            "in": {
                "$and": [grading_stages.counting(policy, "$$row"), {"$gt": ["$$row.mg", 0]}],
            },
        }
    }
    of_behaviour = {
        "account": "$account",
        "behaviour": "$behaviours.behaviour",
        "counts": grading_stages.counting(policy, "$behaviours"),
    }
    return [
        {
            "$match": {
                "account": residents,
                "month": {"$gte": first_month, "$lte": last_month},
            }
        },
        {"$project": wanted},
        {"$set": {"active": {"$anyElementTrue": [active]}}},
        {
            "$unwind": {
                "path": "$behaviours",
                "includeArrayIndex": "place",
                # A month from which everything was taken back has its last entry all the same.
                "preserveNullAndEmptyArrays": True,
            }
        },
        {
            "$group": {
                "_id": of_behaviour,
                "mg": {"$sum": "$behaviours.mg"},
                "seq": {"$max": "$seq"},
                # A month counts once, with its first row.
                "active_months": {
                    "$sum": {"$cond": [{"$and": ["$active", {"$eq": ["$place", 0]}]}, 1, 0]}
                },
            }
        },
        {
            "$group": {
                "_id": "$_id.account",
                "rows": {
                    "$push": {
                        "$cond": [
                            {"$and": ["$_id.counts", {"$gt": ["$mg", 0]}]},
                            {"behaviour": "$_id.behaviour", "mg": "$mg"},
                            None,
                        ]
                    }
                },
                "active_months": {"$sum": "$active_months"},
                "credited_mg": {"$sum": "$mg"},
                "seq": {"$max": "$seq"},
            }
        },
    ]


def _in_order(rows: Stage) -> Stage:
    """Only the rows that count, by the name of the behaviour."""
    counting = {"$filter": {"input": rows, "as": "row", "cond": {"$ne": ["$$row", None]}}}
    return {"$sortArray": {"input": counting, "sortBy": {"behaviour": 1}}}


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
