"""Funders: who pays for points, how much of it, and what a point of theirs is worth.

Two operators agree on a funder and on each change. What earning uses of it are dated records
(`points/terms.py`): the first when it is agreed on, later ones when its pool runs low or is filled
up again, and when its priority changes. The city's own funder comes with Tanhui, without a budget.
"""

from dataclasses import dataclass
from typing import Any, Final

import mongoengine as me
from pymongo.collection import Collection

from accounting import storage
from accounting.errors import NotFound
from accounting.ids import new_id
from points import proposals, terms, valuing
from points.earning import CITY, CITY_RATE, FULL_PERMILLE, Rate
from points.proposals import Agreed

KINDS = ("city", "bank", "merchant", "other")
FUNDERS_MAX = 1_000
# The value of a point never changes under whoever holds it: another value is another funder.
CHANGEABLE = (
    "name",
    "budget_points",
    "budget_fen",
    "priority",
    "covers_others",
    "slows_at_percent",
    "slowed_permille",
    "reserve_points",
)
OPENED, CHANGED = "opened", "changed"
FREE_AGAIN_PERCENT = 5

CITY_TERMS: Final[dict[str, Any]] = {
    "kind": "city",
    "name": {"zh": "城市", "en": "The city"},
    "fen_per_1000_points": CITY_RATE.fen_per_1000_points,
    "budget_points": None,
    "budget_fen": None,
    "priority": 0,
    "covers_others": False,
    "slows_at_percent": 90,
    "slowed_permille": 500,
    "reserve_points": None,
}


@storage.indexed
class FunderDocument(me.Document):
    id = me.StringField(primary_key=True)
    terms = me.DictField()
    proposed = me.DictField()
    revision = me.IntField(required=True)
    asked_by = me.StringField(required=True)
    asked_at = me.DateTimeField(required=True)
    reason = me.StringField()
    approved_by = me.StringField()
    approved_at = me.DateTimeField()
    created_at = me.DateTimeField(required=True)
    # The request that made it, so that a retry makes no other.
    once = me.StringField()

    meta = {
        "collection": "funders",
        "auto_create_index": False,
        "indexes": [{"fields": ["once"], "unique": True, "sparse": True}],
    }


@dataclass(frozen=True, slots=True)
class Pool:
    """A funder's budget in points, and at how many used ones it slows and stops.

    `limit` is the smaller of the budget in points and what the budget in fen pays for; None where
    there is no budget. `reserve` is what may still be issued while a record that stops it is on its
    way to every process.
    """

    funder: str
    budget_points: int | None
    budget_fen: int | None
    fen_per_1000_points: int
    priority: int
    covers_others: bool
    slows_at_percent: int
    slowed_permille: int
    reserve_points: int | None

    def limit(self, expired: int) -> int | None:
        """Points that may be issued in all, when so many have expired: those cost no fen."""
        limits = []
        if self.budget_points is not None:
            limits.append(self.budget_points)
        if self.budget_fen is not None:
            paid_for = valuing.points_for(self.budget_fen, self.fen_per_1000_points)
            limits.append(paid_for + expired)
        return min(limits, default=None)

    def reserve(self, limit: int, points_per_hour: int, cover_s: int) -> int:
        """The configured reserve (1 % of the limit by default), or twice what flows meanwhile."""
        floor = self.reserve_points if self.reserve_points is not None else limit // 100
        return min(limit, max(floor, 2 * points_per_hour * cover_s // 3_600))

    def permille(self, used: int, limit: int, reserve: int, before: int) -> int:
        """What the funder should pay from now on.

        It goes faster again only once five per cent of the pool are free, so that points that are
        taken back do not make it slow and fast in turns.
        """
        again = 0 if before == FULL_PERMILLE else limit * FREE_AGAIN_PERCENT // 100
        stop = limit - reserve - (again if before == 0 else 0)
        if used >= stop:
            return 0
        slow = limit * self.slows_at_percent // 100 - again
        return FULL_PERMILLE if used < slow else self.slowed_permille


def propose(wanted: dict[str, Any], by: str, *, alone: bool, once: str | None = None) -> Agreed:
    """Propose a funder; it pays some seconds after another operator approved it."""
    found = proposals.begin(_collection(), new_id("fnd"), wanted, by=by, once=once)
    return approve(found.id, by, alone=True) if alone else found


def change(funder_id: str, changes: dict[str, Any], by: str, *, reason: str, alone: bool) -> Agreed:
    """Propose other terms. Raises what `proposals.change` raises."""
    assert set(changes) <= set(CHANGEABLE), changes
    if funder_id == CITY:
        _write_city_down(by)
    found = proposals.change(_collection(), funder_id, changes, by=by, reason=reason)
    return approve(funder_id, by, alone=True) if alone else found


def approve(funder_id: str, by: str, *, alone: bool) -> Agreed:
    """Approve what is proposed, and write the record that puts it in force; safe to repeat."""
    found = proposals.approve(_collection(), funder_id, by=by, alone=alone)
    record(found)
    return found


def decline(funder_id: str, by: str, *, reason: str) -> Agreed:
    return proposals.decline(_collection(), funder_id, by=by, reason=reason)


def get(funder_id: str) -> Agreed:
    """Raises `NotFound`."""
    try:
        return proposals.get(_collection(), funder_id)
    except NotFound:
        if funder_id != CITY:
            raise
        return _city()


def known(funder_id: str) -> bool:
    """Whether a funder was agreed on."""
    try:
        return get(funder_id).terms is not None
    except NotFound:
        return False


def newest(*, before: str | None, limit: int) -> list[Agreed]:
    """Funders, newest first; the city's own, which was there first, comes last."""
    wanted: dict[str, Any] = {"_id": {"$ne": CITY}}
    if before is not None:
        if before == CITY:
            return []
        wanted = {"_id": {"$lt": before, "$ne": CITY}}
    rows = _collection().find(wanted).sort("_id", -1).limit(limit)
    found = [proposals.agreed(row) for row in rows]
    return found if len(found) == limit else [*found, get(CITY)]


def everyone() -> list[Agreed]:
    """Every funder that was agreed on."""
    rows = _collection().find({"terms": {"$ne": None}, "_id": {"$ne": CITY}}).limit(FUNDERS_MAX)
    return [get(CITY), *map(proposals.agreed, rows)]


def pool_of(found: Agreed) -> Pool:
    assert found.terms is not None, found.id
    names = [name for name in Pool.__slots__ if name != "funder"]
    return Pool(found.id, **{name: found.terms[name] for name in names})


def record(found: Agreed) -> Rate | None:
    """Write down what earning must know of a funder that was agreed on; nothing if it does.

    A change keeps the rate: whether more budget makes a pool pay again is for its keeper to say.
    """
    if found.terms is None:
        return None
    newest = terms.newest_rate(found.id)
    if newest is None and found.id == CITY:
        newest = CITY_RATE
    wanted = {
        "priority": found.terms["priority"],
        "covers": found.terms["covers_others"],
        "fen_per_1000_points": found.terms["fen_per_1000_points"],
    }
    if newest is not None and all(getattr(newest, name) == one for name, one in wanted.items()):
        return newest
    return terms.publish_rate(
        found.id,
        permille=newest.permille if newest is not None else FULL_PERMILLE,
        reason=CHANGED if newest is not None else OPENED,
        after=newest.number if newest is not None else 0,
        **wanted,
    )


def _city() -> Agreed:
    row = dict.fromkeys(Agreed.__slots__) | {"_id": CITY, "terms": dict(CITY_TERMS)}
    epoch = CITY_RATE.applies_from
    return proposals.agreed(
        row | {"revision": 0, "asked_by": "", "asked_at": epoch, "created_at": epoch}
    )


def _write_city_down(by: str) -> None:
    """Make the document of the city's funder, whose terms come with Tanhui, to propose on it."""
    proposals.begin(_collection(), CITY, {}, by=by, terms=CITY_TERMS)


def _collection() -> "Collection[storage.Doc]":
    return storage.strong(FunderDocument._get_collection())
