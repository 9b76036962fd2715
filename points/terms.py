"""What decides about points, as dated records that every process has read before they apply.

A record is never changed; a later one applies from its own instant. It is written `LEAD` ahead, and
every process asks again for records when what it knows is older than `REFRESH_S`, at use. So two
processes that decide at the same instant decide by the same records, and entries name them.
"""

import time
from datetime import date, datetime, timedelta
from fractions import Fraction
from typing import Any

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import clock, storage
from points import earning
from points.earning import CITY_RATE, Campaign, Rate, Terms

REFRESH_S = 3.0
# Longer than the oldest knowledge of a process, the slowest write and the skew of clocks together.
LEAD = timedelta(seconds=10)
RECORDS_MAX = 10_000
# Of each funder; a record in force is older than this many only if they were written all at once.
RATES_KEPT = 50
# After this many days nothing of a campaign can arrive any more, appeals included.
CAMPAIGN_KEPT = timedelta(days=400)
ATTEMPTS_MAX = 5


@storage.indexed
class RateDocument(me.Document):
    """What a funder pays from an instant on, and what the pool looked like when that was decided.

    Append-only. `_id` is what entries name: funder and number.
    """

    id = me.StringField(primary_key=True)
    funder = me.StringField(required=True)
    number = me.IntField(required=True)
    applies_from = me.DateTimeField(required=True)
    permille = me.IntField(required=True)
    priority = me.IntField(required=True)
    covers = me.BooleanField(required=True)
    fen_per_1000_points = me.IntField(required=True)
    reason = me.StringField(required=True)
    used_points = me.IntField()
    limit_points = me.IntField()
    reserve_points = me.IntField()
    made_at = me.DateTimeField(required=True)

    meta = {
        "collection": "funder_rates",
        "auto_create_index": False,
        "indexes": [{"fields": ["funder", "-number"], "unique": True}],
    }


@storage.indexed
class CampaignTermsDocument(me.Document):
    """The terms of a campaign from an instant on. Append-only; entries name `_id`."""

    id = me.StringField(primary_key=True)
    campaign = me.StringField(required=True)
    number = me.IntField(required=True)
    applies_from = me.DateTimeField(required=True)
    ends = me.StringField(required=True)
    terms = me.DictField(required=True)

    meta = {
        "collection": "campaign_terms",
        "auto_create_index": False,
        "indexes": [{"fields": ["campaign", "-number"], "unique": True}, {"fields": ["ends"]}],
    }


_known: tuple[float, Terms] | None = None


def current() -> Terms:
    """What this process knows, at most `REFRESH_S` old: no read of the database for most calls."""
    if _known is None or time.monotonic() - _known[0] > REFRESH_S:
        return refresh()
    return _known[1]


def forget() -> None:
    """Know nothing, as a process that begins."""
    global _known
    _known = None


def refresh() -> Terms:
    """Read every record that may still matter."""
    global _known
    asked = time.monotonic()
    newest: list[storage.Doc] = [
        {"$sort": {"funder": 1, "number": -1}},
        {"$group": {"_id": "$funder", "rows": {"$firstN": {"n": RATES_KEPT, "input": "$$ROOT"}}}},
        {"$limit": RECORDS_MAX},
    ]
    rates = [_rate(row) for found in _rates().aggregate(newest) for row in found["rows"]]
    ended = clock.city_day(clock.now()) - CAMPAIGN_KEPT
    rows = _campaigns().find({"ends": {"$gte": ended.isoformat()}}).limit(RECORDS_MAX)
    terms = Terms(
        rules=earning.shipped(),
        rates=(CITY_RATE, *rates),
        campaigns=tuple(campaign_of(row) for row in rows),
    )
    _known = (asked, terms)
    return terms


def publish_rate(
    funder: str,
    *,
    permille: int,
    priority: int,
    covers: bool,
    fen_per_1000_points: int,
    reason: str,
    after: int,
    used_points: int | None = None,
    limit_points: int | None = None,
    reserve_points: int | None = None,
) -> Rate | None:
    """Add the record that follows number `after` of a funder; None when another came first.

    What the pool looked like is kept for whoever asks why.
    """
    newest = newest_rate(funder)
    if (newest.number if newest else 0) != after:
        return None
    row: storage.Doc = {
        "_id": f"{funder}@{after + 1}",
        "funder": funder,
        "number": after + 1,
        "applies_from": _from(newest.applies_from if newest else None),
        "permille": permille,
        "priority": priority,
        "covers": covers,
        "fen_per_1000_points": fen_per_1000_points,
        "reason": reason,
        "used_points": used_points,
        "limit_points": limit_points,
        "reserve_points": reserve_points,
        "made_at": clock.now(),
    }
    try:
        _rates().insert_one(row)
    except DuplicateKeyError:
        return None
    refresh()
    return _rate(row)


def newest_rate(funder: str) -> Rate | None:
    """The newest record of a funder, whether it applies already or not."""
    found = _rates().find_one({"funder": funder}, sort=[("number", -1)])
    return _rate(found) if found else None


def rate_rows(funder: str, *, before: int | None, limit: int) -> list[storage.Doc]:
    """The records of a funder as they were written, newest first."""
    wanted: dict[str, Any] = {"funder": funder}
    if before is not None:
        wanted["number"] = {"$lt": before}
    return list(_rates().find(wanted).sort("number", -1).limit(limit))


def publish_campaign(campaign: str, terms: storage.Doc, *, ends: str) -> Campaign:
    """Add the next terms of a campaign; they apply in a few seconds.

    `ends` is its last day, which a pause leaves alone.
    """
    for _ in range(ATTEMPTS_MAX):
        newest = _campaigns().find_one({"campaign": campaign}, sort=[("number", -1)])
        number = newest["number"] + 1 if newest else 1
        row: storage.Doc = {
            "_id": f"{campaign}@{number}",
            "campaign": campaign,
            "number": number,
            "applies_from": _from(newest["applies_from"] if newest else None),
            "ends": ends,
            "terms": terms,
        }
        if newest is not None and newest["terms"] == terms:
            return campaign_of(newest)
        try:
            _campaigns().insert_one(row)
        except DuplicateKeyError:
            continue
        refresh()
        return campaign_of(row)
    raise AssertionError("nobody publishes the same campaign over and over")


def campaign_of(row: storage.Doc) -> Campaign:
    """Terms as they lie in a record; exact numbers are text."""
    terms = dict(row["terms"])
    for name in ("behaviours", "districts", "grades"):
        terms[name] = frozenset(terms[name])
    for name in ("first_day", "last_day"):
        terms[name] = date.fromisoformat(terms[name])
    terms["multiplier"] = Fraction(terms["multiplier"])
    return Campaign(
        id=row["campaign"], number=row["number"], applies_from=row["applies_from"], **terms
    )


def _from(before: datetime | None) -> datetime:
    soon = clock.now() + LEAD
    return soon if before is None else max(soon, before + timedelta(milliseconds=1))


def _rate(row: storage.Doc) -> Rate:
    return Rate(**{name: row[name] for name in Rate._fields})


def _rates() -> "Collection[storage.Doc]":
    return storage.strong(RateDocument._get_collection())


def _campaigns() -> "Collection[storage.Doc]":
    return storage.strong(CampaignTermsDocument._get_collection())
