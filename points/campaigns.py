"""Campaigns: a bonus on what the rules give, for some days, behaviours and residents.

Two operators agree on a campaign; then its terms become a dated record that earning uses. A change
of its last day, or a pause, is a new record. What was earned before keeps what it was given.
"""

from datetime import date, datetime
from typing import Any

import mongoengine as me
from pymongo.collection import Collection

from accounting import clock, storage
from accounting.errors import ValidationFailed
from accounting.ids import new_id
from points import funders, proposals, terms
from points.earning import Campaign
from points.proposals import Agreed

# Terms of a campaign that is agreed on may change in these only; the others take a new campaign.
CHANGEABLE = ("name", "last_day", "paused")
SWEEP_MAX = 500
LIVE_MAX = 200


@storage.indexed
class CampaignDocument(me.Document):
    id = me.StringField(primary_key=True)
    terms = me.DictField()
    proposed = me.DictField()
    revision = me.IntField(required=True)
    # The revision whose terms are in a record.
    recorded = me.IntField()
    asked_by = me.StringField(required=True)
    asked_at = me.DateTimeField(required=True)
    reason = me.StringField()
    approved_by = me.StringField()
    approved_at = me.DateTimeField()
    created_at = me.DateTimeField(required=True)
    # The request that made it, so that a retry makes no other.
    once = me.StringField()

    meta = {
        "collection": "campaigns",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["approved_at"], "sparse": True},
            {"fields": ["once"], "unique": True, "sparse": True},
        ],
    }


def propose(wanted: dict[str, Any], by: str, *, alone: bool, once: str | None = None) -> Agreed:
    """Propose a campaign; it is in force some seconds after another operator approved it.

    With `alone` (the demo) it is approved at once. Raises `ValidationFailed` for days that are over
    and for a funder that is not there.
    """
    if wanted["first_day"] < clock.city_day(clock.now()).isoformat():
        raise ValidationFailed("/first_day", "Must not lie in the past.", "不得早于今天。")
    _check(wanted)
    found = proposals.begin(
        _collection(), new_id("cmp"), {**wanted, "paused": False}, by=by, once=once
    )
    return approve(found.id, by, alone=True) if alone else found


def change(
    campaign_id: str, changes: dict[str, Any], by: str, *, reason: str, alone: bool
) -> Agreed:
    """Propose another name or last day, or a pause. Raises what `proposals.change` raises."""
    assert set(changes) <= set(CHANGEABLE), changes
    before = get(campaign_id)
    if "last_day" in changes:
        if changes["last_day"] < clock.city_day(clock.now()).isoformat():
            raise ValidationFailed("/last_day", "Must not lie in the past.", "不得早于今天。")
        _check_days(before.shown | changes)
    found = proposals.change(_collection(), campaign_id, changes, by=by, reason=reason)
    return approve(campaign_id, by, alone=True) if alone else found


def approve(campaign_id: str, by: str, *, alone: bool) -> Agreed:
    """Approve what is proposed, and write the record that puts it in force; safe to repeat."""
    found = proposals.approve(_collection(), campaign_id, by=by, alone=alone)
    _record(found)
    return found


def decline(campaign_id: str, by: str, *, reason: str) -> Agreed:
    return proposals.decline(_collection(), campaign_id, by=by, reason=reason)


def get(campaign_id: str) -> Agreed:
    """Raises `NotFound`."""
    return proposals.get(_collection(), campaign_id)


def newest(*, before: str | None, limit: int) -> list[Agreed]:
    return proposals.newest(_collection(), before=before, limit=limit)


def drafted(wanted: dict[str, Any]) -> Campaign:
    """The campaign that was wanted, to be tried out. Raises `ValidationFailed` like `propose`."""
    _check(wanted)
    put = {name: value for name, value in wanted.items() if name != "name"}
    row = {"campaign": "draft", "number": 0, "applies_from": clock.now(), "terms": put}
    return terms.campaign_of(row)


def sweep(now: datetime) -> int:
    """Write the records that a crash left out after an approval; returns how many."""
    wanted = {"approved_at": {"$ne": None}, "$expr": {"$ne": ["$recorded", "$revision"]}}
    found = list(_collection().find(wanted).limit(SWEEP_MAX))
    for row in found:
        _record(proposals.agreed(row))
    return len(found)


def state_on(found: Agreed, today: date) -> str:
    """`proposed`, `planned`, `running`, `paused` or `over`."""
    if found.terms is None:
        return "proposed"
    if found.terms["last_day"] < today.isoformat():
        return "over"
    if found.terms["paused"]:
        return "paused"
    return "planned" if today.isoformat() < found.terms["first_day"] else "running"


def _record(found: Agreed) -> None:
    if found.terms is None:
        return
    put = {name: value for name, value in found.terms.items() if name not in ("name", "paused")}
    if found.terms["paused"]:
        # No day is left of it, until a later record says otherwise.
        put["last_day"] = clock.first_day("1970-01").isoformat()
    terms.publish_campaign(found.id, put, ends=found.terms["last_day"])
    _collection().update_one(
        {"_id": found.id, "revision": found.revision}, {"$set": {"recorded": found.revision}}
    )


def _check(wanted: dict[str, Any]) -> None:
    if not funders.known(wanted["funder"]):
        raise ValidationFailed("/funder_id", "There is no such funder.", "没有该出资方。")
    _check_days(wanted)


def _check_days(wanted: dict[str, Any]) -> None:
    if wanted["last_day"] < wanted["first_day"]:
        raise ValidationFailed("/last_day", "Must not lie before first_day.", "不得早于首日。")


def _collection() -> "Collection[storage.Doc]":
    return storage.strong(CampaignDocument._get_collection())
