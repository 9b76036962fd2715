"""What funders owe residents: points in wallets by funder and by the month they expire in.

A nightly walk over the heads of all accounts adds up their lots, brought to the present. How much
of it nobody will claim is an estimate from how fast points are spent:

    s = S / (S + O)     the part of the points that is spent in a month: S spent in the last full
                        month, O outstanding now
    expected lapse      the sum over lots of points x (1 - s)^k, k = full months until they expire

An account spends its oldest points first, but accounts differ: over the city the points of every
month shrink by about the same part. Points of accounts that never spend make it an under-estimate.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction

import mongoengine as me
from pymongo.collection import Collection

from accounting import accounts, book, clock, jobs, storage, walks
from accounting.book import Head
from accounting.jobs import Job
from points.lots import Lot, Pending, day_of
from points.wallet import Wallet

KIND = "liability"
LATEST = "latest"
# Up to so many residents the keeper of the pools adds them up itself, so that a small city sees
# its liability at once.
SMALL_CITY = 5_000
PAGE = 500

# By funder, then by the month (`2028-05`) in which its points expire.
Lots = dict[str, dict[str, int]]


@storage.indexed
class LiabilityDocument(me.Document):
    id = me.StringField(primary_key=True)
    at = me.DateTimeField(required=True)
    lots = me.ListField()

    meta = {"collection": "liabilities", "auto_create_index": False}


@dataclass(frozen=True, slots=True)
class Liability:
    """Points outstanding when they were last added up."""

    at: datetime
    lots: Lots


def queue(owner: str) -> Job:
    """A job over every account of the book, which a large city does at night."""
    return walks.queue(KIND, owner, {}, unit=jobs.ACCOUNTS)


def run(job_id: str) -> Job | None:
    """Carry the job to its end; see `walks.run`."""

    def work(job: Job, ids: Sequence[str]) -> walks.Totals:
        return dict(_added(book.heads(ids).values(), job.created_at))

    def end(job: Job) -> None:
        _keep(job.created_at, walks.totals(job.id))

    return walks.run(job_id, work, end, ids_after=book.accounts_after)


def small_city() -> bool:
    return accounts.count() <= SMALL_CITY


def add_up(now: datetime) -> Liability:
    """Add everything up at once, for a small city or a command."""
    sums: Counter[str] = Counter()
    after = ""
    while heads := book.heads_after(after, PAGE):
        sums.update(_added(heads.values(), now))
        after = max(heads)
    _keep(now, sums)
    found = latest()
    assert found is not None, "it was kept"
    return found


def latest() -> Liability | None:
    """What was added up last; None before the first time."""
    found = _collection().find_one({"_id": LATEST})
    if found is None:
        return None
    lots: Lots = {}
    for funder, month, points in found["lots"]:
        lots.setdefault(funder, {})[month] = points
    return Liability(found["at"], lots)


def spent_share(spent: int, outstanding: int) -> Fraction:
    """The part of the points that is spent in a month."""
    whole = max(spent, 0) + max(outstanding, 0)
    return Fraction(max(spent, 0), whole) if whole else Fraction(0)


def expected_lapse(lots: Mapping[str, int], share: Fraction, this_month: str) -> int:
    """Points of these lots that nobody will claim, rounded down once."""
    exact = sum(
        (points * (1 - share) ** months_until(month, this_month) for month, points in lots.items()),
        Fraction(0),
    )
    return exact.__floor__()


def months_until(month: str, this_month: str) -> int:
    """Full months until what expires at the end of a month does; 0 for this one."""
    return max(_number(month) - _number(this_month), 0)


def _number(month: str) -> int:
    return int(month[:4]) * 12 + int(month[5:])


def _added(heads: Iterable[Head], now: datetime) -> Counter[str]:
    """Points of some accounts by `funder:month`, as totals of a walk are named."""
    sums: Counter[str] = Counter()
    for head in heads:
        wallet = Wallet.load(head.after)
        wallet.advance(max(now, head.recorded_at or now))
        rows: list[Lot | Pending] = [*wallet.lots, *wallet.pending]
        rows += [lot for hold in wallet.holds for lot in hold.lots]
        for row in rows:
            sums[f"{row.funder}:{clock.month_of(day_of(row.expires_on))}"] += row.points
    return sums


def _keep(at: datetime, sums: Mapping[str, int]) -> None:
    lots = [[*name.rsplit(":", 1), points] for name, points in sorted(sums.items()) if points]
    # The later of two walks that end at about the same time has the last word.
    _collection().update_one(
        {"_id": LATEST},
        [
            {
                "$replaceWith": {
                    "$cond": [
                        {"$lte": [{"$ifNull": ["$at", at]}, at]},
                        {"_id": LATEST, "at": at, "lots": {"$literal": lots}},
                        "$$ROOT",
                    ]
                }
            }
        ],
        upsert=True,
    )


def _collection() -> "Collection[storage.Doc]":
    return storage.strong(LiabilityDocument._get_collection())
