"""The balance and the entries of an account: for its resident, and for whoever helps them."""

from functools import partial
from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields

from accounting import accounts, audit
from accounting.errors import NotFound
from api.numbers import CityDay, Instant, Schema
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, newest, page_of
from api.security import OPERATOR, RESIDENT, caller, door
from points import statements
from points.statements import Balance, Row

blueprint = Blueprint("points", __name__, description="Points")


class PointsQuery(Schema):
    as_of = Instant()


class ExpiringAnswer(ma.Schema):
    on = CityDay(required=True)
    points = fields.Integer(required=True)


class PointsAnswer(ma.Schema):
    available = fields.Integer(required=True)
    pending = fields.Integer(required=True)
    held = fields.Integer(required=True)
    owed = fields.Integer(required=True)
    lifetime_earned = fields.Integer(required=True)
    spent = fields.Integer(required=True)
    expired = fields.Integer(required=True)
    expiring = fields.List(fields.Nested(ExpiringAnswer), required=True)
    as_of = Instant(required=True)


class ChangesAnswer(ma.Schema):
    """What the entry changed of each balance, with what time did in `by_time`."""

    available = fields.Integer(required=True)
    pending = fields.Integer(required=True)
    held = fields.Integer(required=True)
    owed = fields.Integer(required=True)


class ByTimeAnswer(ma.Schema):
    """What time had done since the entry before: matured, expired, let go from holds."""

    matured = fields.Integer(required=True)
    expired = fields.Integer(required=True)
    released = fields.Integer(required=True)


class FunderPointsAnswer(ma.Schema):
    """How many points more, or less, a funder owes the resident after the entry."""

    funder = fields.String(required=True)
    points = fields.Integer(required=True)


class CampaignPointsAnswer(ma.Schema):
    campaign = fields.String(required=True)
    funder = fields.String(required=True)
    points = fields.Integer(required=True)


class EntryAnswer(ma.Schema):
    id = fields.String(required=True)
    seq = fields.Integer(required=True)
    kind = fields.String(required=True)
    points = fields.Integer(required=True)
    available_after = fields.Integer(required=True)
    changes = fields.Nested(ChangesAnswer, required=True)
    by_time = fields.Nested(ByTimeAnswer, required=True)
    funders = fields.List(fields.Nested(FunderPointsAnswer), required=True)
    campaigns = fields.List(fields.Nested(CampaignPointsAnswer), required=True)
    occurred_at = Instant(required=True)
    recorded_at = Instant(required=True)
    reason = fields.String(required=True)
    activity_id = fields.String()
    bill_id = fields.String()
    redemption_id = fields.String()
    hold = fields.String()
    rule = fields.String()
    funder = fields.String()
    methodology_version = fields.String()


EntriesAnswer = page_of(EntryAnswer)


@blueprint.route("/v1/me/points")
class Points(MethodView):
    @door(RESIDENT)
    @blueprint.arguments(PointsQuery, location="query")
    @blueprint.response(200, PointsAnswer)
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """My balance, now or as it stood at an instant"""
        return _balance(statements.balance(caller().id, wanted.get("as_of")))


@blueprint.route("/v1/me/points/entries")
class Entries(MethodView):
    @door(RESIDENT)
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, EntriesAnswer)
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Every entry of my account, newest first

        `points` is what an entry earned, moved or took. The balances after the entry before and the
        `changes` of an entry are the balances after it.
        """
        return _entries(caller().id, wanted)


@blueprint.route("/v1/operator/residents/<resident_id>/points")
class ResidentPoints(MethodView):
    @door(OPERATOR, area="support")
    @refuses("not_found")
    @blueprint.arguments(PointsQuery, location="query")
    @blueprint.response(200, PointsAnswer)
    def get(self, wanted: dict[str, Any], resident_id: str) -> dict[str, Any]:
        """The balance of a resident, now or as it stood at an instant; the look is recorded"""
        _look(resident_id, "balance looked at")
        return _balance(statements.balance(resident_id, wanted.get("as_of")))


@blueprint.route("/v1/operator/residents/<resident_id>/points/entries")
class ResidentEntries(MethodView):
    @door(OPERATOR, area="support")
    @refuses("not_found")
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, EntriesAnswer)
    def get(self, wanted: dict[str, Any], resident_id: str) -> dict[str, Any]:
        """Every entry of a resident's account, newest first; the look is recorded"""
        _look(resident_id, "entries looked at")
        return _entries(resident_id, wanted)


def _look(resident_id: str, what: str) -> None:
    """Record that an operator looks at a resident's account. Raises `NotFound` for nobody's."""
    if not accounts.known(resident_id):
        raise NotFound()
    audit.note(caller().id, what, resident_id)


def _balance(found: Balance) -> dict[str, Any]:
    return {
        "available": found.available,
        "pending": found.pending,
        "held": found.held,
        "owed": found.owed,
        "lifetime_earned": found.lifetime_earned,
        "spent": found.spent,
        "expired": found.expired,
        "expiring": [{"on": on, "points": points} for on, points in found.expiring],
        "as_of": found.as_of,
    }


def _entries(resident_id: str, wanted: dict[str, Any]) -> dict[str, Any]:
    theirs = partial(statements.rows, resident_id)
    return newest(wanted, theirs, _entry, by=lambda row: row.entry.seq)


def _entry(row: Row) -> dict[str, Any]:
    entry, refs = row.entry, row.entry.refs
    answer: dict[str, Any] = {
        "id": f"{entry.account}/{entry.seq}",
        "seq": entry.seq,
        "kind": entry.kind,
        "points": row.points,
        "available_after": row.available_after,
        "changes": row.changes,
        "by_time": row.by_time,
        "funders": [{"funder": funder, "points": points} for funder, points in row.funders],
        "campaigns": row.campaigns,
        "occurred_at": entry.occurred_at,
        "recorded_at": entry.recorded_at,
        "reason": refs.get("reason") or refs.get("behaviour") or entry.key.split(":")[0],
    }
    optional = {
        "activity_id": refs.get("activity"),
        "bill_id": refs.get("bill"),
        "redemption_id": refs.get("redemption"),
        "hold": refs.get("hold"),
        "rule": refs.get("rule"),
        "funder": refs.get("funder"),
        "methodology_version": refs.get("methodology"),
    }
    return answer | {name: value for name, value in optional.items() if value is not None}
