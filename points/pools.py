"""The keeper of the pools: slows a funder that runs low, stops it in time, says so once.

    flows of all accounts -> used of each pool -> a record if the rate must change -> alarms

A pass is safe to repeat and to run twice at once: a record follows the one it was decided on, and
an alarm is unique. What is issued while a record is on its way is bounded by the reserve: the
keeper comes back before ten times the speed it has seen could reach a threshold.
"""

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import alarms, clock, storage
from points import flows, funders, terms
from points.earning import CITY_RATE, FULL_PERMILLE
from points.flows import Flows
from points.funders import Pool
from points.proposals import Agreed

SLOWED, SPENT, REFILLED = "budget_slowed", "budget_spent", "refilled"
LEVELS = (80, 90, 100)
ALARM = "budget"
# From the entries a pass has seen to the record that applies everywhere: the follower, the time to
# the next pass, the lead of a record. The time that a pass itself takes comes on top, twice.
COVER_S = 30 + 15 + terms.LEAD // timedelta(seconds=1)
EVERY, RARELY = timedelta(seconds=15), timedelta(minutes=15)
# Bursts of ten times what is usual are what the city is built for.
BURST = 10


@storage.indexed
class PoolDocument(me.Document):
    """What the keeper saw of a funder last, to know how fast its points flow."""

    id = me.StringField(primary_key=True)
    at = me.DateTimeField(required=True)
    used = me.LongField(required=True)
    points_per_hour = me.LongField(required=True)
    due_at = me.DateTimeField(required=True)

    meta = {"collection": "pools", "auto_create_index": False}


@storage.indexed
class BudgetAlarmDocument(me.Document):
    """A level of a budget that was reached; once for each level and budget."""

    id = me.StringField(primary_key=True)
    funder = me.StringField(required=True)
    level = me.IntField(required=True)
    used_points = me.LongField(required=True)
    limit_points = me.LongField(required=True)
    at = me.DateTimeField(required=True)

    meta = {
        "collection": "budget_alarms",
        "auto_create_index": False,
        "indexes": [{"fields": ["-at"]}],
    }


@dataclass(frozen=True, slots=True)
class Kept:
    """A pool as a pass left it."""

    funder: str
    used: int
    limit: int | None
    reserve: int
    permille: int
    due_at: datetime


def keep_due(now: datetime) -> list[Kept]:
    """A pass over all pools if one is due; nothing otherwise."""
    soonest = _pools().find_one({}, {"due_at": 1}, sort=[("due_at", 1)])
    changed = _pools().count_documents({}) != len(funders.everyone())
    if soonest is not None and soonest["due_at"] > now and not changed:
        return []
    return keep(now)


def keep(now: datetime) -> list[Kept]:
    """Look at every pool and do what is to be done."""
    begun = time.monotonic()
    found = flows.refresh(now)
    cover_s = COVER_S + 2 * int(time.monotonic() - begun)
    return [_keep(one, found, now, cover_s) for one in funders.everyone()]


def raised(*, limit: int) -> list[dict[str, Any]]:
    """The alarms, newest first."""
    return list(_alarms().find({}).sort("at", -1).limit(limit))


def _keep(one: Agreed, found: Flows, now: datetime, cover_s: int) -> Kept:
    # What a crash between an approval and its record left out.
    funders.record(one)
    pool, flow = funders.pool_of(one), found.funders.get(one.id)
    used = flow.used if flow else 0
    limit = pool.limit(flow.expired if flow else 0)
    speed = _speed(one.id, used, now)
    rate = terms.newest_rate(one.id)
    permille = rate.permille if rate is not None else CITY_RATE.permille
    reserve = 0
    due_at = now + RARELY
    if limit is not None:
        reserve = pool.reserve(limit, speed, cover_s)
        wanted = pool.permille(used, limit, reserve, permille)
        if wanted != permille:
            terms.publish_rate(
                one.id,
                permille=wanted,
                priority=pool.priority,
                covers=pool.covers_others,
                fen_per_1000_points=pool.fen_per_1000_points,
                reason={0: SPENT, FULL_PERMILLE: REFILLED}.get(wanted, SLOWED),
                after=rate.number if rate is not None else 0,
                used_points=used,
                limit_points=limit,
                reserve_points=reserve,
            )
            permille = wanted
        _sound(pool, used, limit, reserve)
        due_at = now + _rest(pool, used, limit, reserve, speed)
    row = {"at": now, "used": used, "points_per_hour": speed, "due_at": due_at}
    _pools().replace_one({"_id": one.id}, {"_id": one.id, **row}, upsert=True)
    return Kept(one.id, used, limit, reserve, permille, due_at)


def _speed(funder: str, used: int, now: datetime) -> int:
    """Points an hour, rounded up: what was seen since the last pass, or nine tenths of before."""
    before = _pools().find_one({"_id": funder})
    if before is None:
        return 0
    seconds = max(now - before["at"], EVERY) // timedelta(seconds=1)
    seen = -(-max(used - before["used"], 0) * 3_600 // seconds)
    return int(max(seen, before["points_per_hour"] * 9 // 10))


def _rest(pool: Pool, used: int, limit: int, reserve: int, points_per_hour: int) -> timedelta:
    """How long the keeper may look away: no burst reaches the next threshold meanwhile."""
    marks = [limit * pool.slows_at_percent // 100, limit - reserve]
    ahead = min((mark - used for mark in marks if mark > used), default=0)
    rest = timedelta(seconds=ahead * 3_600 // (BURST * max(points_per_hour, 1)))
    return min(max(rest, EVERY), RARELY)


def _sound(pool: Pool, used: int, limit: int, reserve: int) -> None:
    """Leave each alarm of a budget once; the last one when the pool is as empty as it gets."""
    budget = f"{pool.budget_points}/{pool.budget_fen}"
    for level in LEVELS:
        mark = limit - reserve if level == 100 else limit * level // 100
        if used < mark:
            continue
        row: storage.Doc = {
            "_id": f"{pool.funder}/{budget}/{level}",
            "funder": pool.funder,
            "level": level,
            "used_points": used,
            "limit_points": limit,
            "at": clock.now(),
        }
        try:
            _alarms().insert_one(row)
        except DuplicateKeyError:
            continue
        alarms.sound(ALARM, f"{pool.funder} {level} %", used_points=used, limit_points=limit)


def _pools() -> "Collection[storage.Doc]":
    return storage.strong(PoolDocument._get_collection())


def _alarms() -> "Collection[storage.Doc]":
    return storage.strong(BudgetAlarmDocument._get_collection())
