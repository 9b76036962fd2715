"""What became of redemptions and vouchers, for the operator: counts by city days asked for."""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from accounting import clock, storage
from rewards import redemptions, vouchers
from rewards.redemptions import ASKED, REFUSED
from rewards.vouchers import CANCELLED, EXPIRED, ISSUED, RAN_OUT, USED

TOP = 20
DAYS_MAX = 92


@dataclass(frozen=True, slots=True)
class Top:
    """A reward with how many vouchers of it were handed out, for how many points."""

    reward_id: str
    vouchers: int
    points: int


@dataclass(frozen=True, slots=True)
class Figures:
    """From asking to using. `asked` redemptions are refused, under way or went through.

    `by_status` counts vouchers as they stand now; `top` is by vouchers handed out.
    """

    asked: int
    under_way: int
    refused: dict[str, int]
    went_through: int
    by_status: dict[str, int]
    top: list[Top]


def between(first: date, last: date, reward_id: str | None = None) -> Figures:
    """Of the city days `first` to `last`, both included, of one reward or of all."""
    span = {
        "$gte": clock.start_of(first),
        "$lt": clock.start_of(last + timedelta(days=1)),
    }
    one = {} if reward_id is None else {"reward_id": reward_id}
    ends = _ends({"created_at": span, **one})
    refused = {code: count for (state, code), count in ends.items() if state == REFUSED}
    under_way = ends.get((ASKED, None), 0)
    asked = sum(ends.values())
    return Figures(
        asked=asked,
        under_way=under_way,
        refused=dict(sorted(refused.items())),
        went_through=asked - under_way - sum(refused.values()),
        by_status=_by_status({"issued_at": span, **one}, clock.now()),
        top=_top({"created_at": span, "state": {"$nin": [ASKED, REFUSED]}, **one}),
    )


def _ends(wanted: dict[str, Any]) -> dict[tuple[str, Any], int]:
    """How many redemptions are in which state, with the code of a refusal."""
    group = {"_id": {"state": "$state", "code": "$refusal.code"}, "count": {"$sum": 1}}
    found = redemptions.rows().aggregate([{"$match": wanted}, {"$group": group}])
    return {(row["_id"]["state"], row["_id"].get("code")): row["count"] for row in found}


def _by_status(wanted: dict[str, Any], now: datetime) -> dict[str, int]:
    """Vouchers by what they are now; one that ran out has expired, whether written down or not."""
    over = {"$and": [{"$eq": ["$status", ISSUED]}, {"$lte": ["$expires_at", now]}]}
    ran_out = {"$or": [over, {"$in": ["$status", list(RAN_OUT)]}]}
    status: storage.Doc = {"$cond": [ran_out, EXPIRED, "$status"]}
    found = vouchers.rows().aggregate(
        [{"$match": wanted}, {"$group": {"_id": status, "count": {"$sum": 1}}}]
    )
    return dict.fromkeys((ISSUED, USED, EXPIRED, CANCELLED), 0) | {
        row["_id"]: row["count"] for row in found
    }


def _top(wanted: dict[str, Any]) -> list[Top]:
    sums = {"vouchers": {"$sum": "$quantity"}, "points": {"$sum": "$points"}}
    found = redemptions.rows().aggregate(
        [
            {"$match": wanted},
            {"$group": {"_id": "$reward_id", **sums}},
            {"$sort": {"vouchers": -1, "_id": 1}},
            {"$limit": TOP},
        ]
    )
    return [Top(row["_id"], row["vouchers"], row["points"]) for row in found]
