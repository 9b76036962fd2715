"""Who pays for points: funders with their budgets."""

from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import clock
from api.idempotency import business_key, idempotent
from api.numbers import Flag, Instant, Schema, Whole
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, page, page_of, place
from api.reward_terms import FEN_MAX, BothLanguages
from api.security import OPERATOR, caller, door
from api.versions import one_is_enough
from points import funders, terms
from points.earning import FULL_PERMILLE
from points.proposals import Agreed

BUDGET_POINTS_MAX = 10**13
BUDGET_FEN_MAX = 10**12
REASON = fields.String(required=True, validate=validate.Length(1, 500))

blueprint = Blueprint("funders", __name__, description="Who pays for points")


class FunderChanges(Schema):
    """Terms that may change; a budget of null is none."""

    name = fields.Nested(BothLanguages)
    budget_points = Whole(allow_none=True, validate=validate.Range(0, BUDGET_POINTS_MAX))
    budget_fen = Whole(allow_none=True, validate=validate.Range(0, BUDGET_FEN_MAX))
    priority = Whole(
        validate=validate.Range(0, 1_000),
        metadata={"description": "Who takes over for a spent funder first: the smallest number."},
    )
    covers_others = Flag(metadata={"description": "Whether it takes over for others at all."})
    slows_at_percent = Whole(
        validate=validate.Range(1, 100),
        metadata={"description": "Used part of the pool from which on it pays less."},
    )
    slowed_permille = Whole(
        validate=validate.Range(1, FULL_PERMILLE),
        metadata={"description": "What it pays then, of what the rules ask for."},
    )
    reserve_points = Whole(
        allow_none=True,
        validate=validate.Range(0, BUDGET_POINTS_MAX),
        metadata={"description": "Left when it stops; 1 % of the pool by default."},
    )


class FunderRequest(FunderChanges):
    """`fen_per_1000_points` is what its points are worth, for ever."""

    name = fields.Nested(BothLanguages, required=True)
    kind = fields.String(required=True, validate=validate.OneOf(funders.KINDS))
    fen_per_1000_points = Whole(required=True, validate=validate.Range(1, FEN_MAX))


class FunderPatch(FunderChanges):
    reason = REASON


class RateAnswer(ma.Schema):
    record = fields.String(required=True)
    applies_from = Instant(required=True)
    permille = fields.Integer(required=True)
    priority = fields.Integer(required=True)
    reason = fields.String(required=True)
    used_points = fields.Integer(required=True, allow_none=True)
    limit_points = fields.Integer(required=True, allow_none=True)
    reserve_points = fields.Integer(required=True, allow_none=True)


class AgreedAnswer(ma.Schema):
    """`proposed` is what waits for a second operator."""

    needs_approval = fields.Boolean(required=True)
    proposed = fields.Dict(required=True, allow_none=True)
    asked_by = fields.String(required=True)
    asked_at = Instant(required=True)
    reason = fields.String(required=True, allow_none=True)
    approved_by = fields.String(required=True, allow_none=True)
    approved_at = Instant(required=True, allow_none=True)
    created_at = Instant(required=True)


class FunderAnswer(AgreedAnswer):
    funder_id = fields.String(required=True)
    state = fields.String(required=True, validate=validate.OneOf(["proposed", "open"]))
    name = fields.Dict(keys=fields.String(), values=fields.String(), required=True)
    kind = fields.String(required=True)
    fen_per_1000_points = fields.Integer(required=True)
    budget_points = fields.Integer(required=True, allow_none=True)
    budget_fen = fields.Integer(required=True, allow_none=True)
    priority = fields.Integer(required=True)
    covers_others = fields.Boolean(required=True)
    slows_at_percent = fields.Integer(required=True)
    slowed_permille = fields.Integer(required=True)
    reserve_points = fields.Integer(required=True, allow_none=True)
    pays_permille = fields.Integer(
        required=True, metadata={"description": "What it pays now, of what the rules ask for."}
    )


class DeclineRequest(Schema):
    reason = REASON


@blueprint.route("/v1/operator/funders")
class Funders(MethodView):
    @door(OPERATOR, area="funders")
    @blueprint.arguments(FunderRequest)
    @idempotent()
    @blueprint.response(201, FunderAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Propose a funder; it pays some seconds after another operator has approved it"""
        terms_of = {**DEFAULTS, **wanted}
        found = funders.propose(terms_of, caller().id, alone=one_is_enough(), once=business_key())
        return _funder(found)

    @door(OPERATOR, area="funders")
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(FunderAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Every funder, newest first; the city's own comes last"""
        at = place(wanted)
        found = funders.newest(before=at[0] if at else None, limit=wanted["limit"] + 1)
        answer = page(found, wanted, lambda one: (one.id,))
        return answer | {"items": [_funder(one) for one in answer["items"]]}


@blueprint.route("/v1/operator/funders/<funder_id>")
class OneFunder(MethodView):
    @door(OPERATOR, area="funders")
    @blueprint.response(200, FunderAnswer)
    def get(self, funder_id: str) -> dict[str, Any]:
        """One funder, and what waits for its approval"""
        return _funder(funders.get(funder_id))

    @door(OPERATOR, area="funders")
    @refuses("proposal_waiting")
    @blueprint.arguments(FunderPatch)
    @idempotent()
    @blueprint.response(200, FunderAnswer)
    def patch(self, wanted: dict[str, Any], funder_id: str) -> dict[str, Any]:
        """Propose other terms; the old ones stay until another operator has approved"""
        reason = wanted.pop("reason")
        found = funders.change(funder_id, wanted, caller().id, reason=reason, alone=one_is_enough())
        return _funder(found)


@blueprint.route("/v1/operator/funders/<funder_id>/approve")
class ApprovedFunder(MethodView):
    @door(OPERATOR, area="funders")
    @refuses("second_operator_needed")
    @idempotent()
    @blueprint.response(200, FunderAnswer)
    def post(self, funder_id: str) -> dict[str, Any]:
        """Approve another operator's funder, or change of it"""
        return _funder(funders.approve(funder_id, caller().id, alone=one_is_enough()))


@blueprint.route("/v1/operator/funders/<funder_id>/decline")
class DeclinedFunder(MethodView):
    @door(OPERATOR, area="funders")
    @refuses("nothing_proposed")
    @blueprint.arguments(DeclineRequest)
    @idempotent()
    @blueprint.response(200, FunderAnswer)
    def post(self, wanted: dict[str, Any], funder_id: str) -> dict[str, Any]:
        """Let a proposed change go"""
        return _funder(funders.decline(funder_id, caller().id, reason=wanted["reason"]))


@blueprint.route("/v1/operator/funders/<funder_id>/rates")
class FunderRates(MethodView):
    @door(OPERATOR, area="funders")
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(RateAnswer))
    def get(self, wanted: dict[str, Any], funder_id: str) -> dict[str, Any]:
        """The records of what a funder paid from when on, newest first"""
        funders.get(funder_id)
        at = place(wanted)
        rows = terms.rate_rows(funder_id, before=at[0] if at else None, limit=wanted["limit"] + 1)
        answer = page(rows, wanted, lambda row: (row["number"],))
        return answer | {"items": [{"record": row["_id"], **row} for row in answer["items"]]}


# What a funder's terms are where the request says nothing.
DEFAULTS: dict[str, Any] = {
    "budget_points": None,
    "budget_fen": None,
    "priority": 100,
    "covers_others": False,
    "slows_at_percent": 90,
    "slowed_permille": 500,
    "reserve_points": None,
}


def _funder(found: Agreed) -> dict[str, Any]:
    rates = terms.current().rates_at(clock.now())
    return {
        **found.shown,
        **agreed_answer(found),
        "funder_id": found.id,
        "state": "open" if found.terms is not None else "proposed",
        "pays_permille": rates[found.id].permille if found.id in rates else 0,
    }


def agreed_answer(found: Agreed) -> dict[str, Any]:
    names = ("asked_by", "asked_at", "reason", "approved_by", "approved_at", "created_at")
    waits = {"needs_approval": found.needs_approval, "proposed": found.proposed}
    return waits | {name: getattr(found, name) for name in names}
