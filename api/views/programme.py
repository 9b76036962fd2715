"""The programme on one page, for the city."""

from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields

from accounting import clock
from api.numbers import CityDay, Grams, Instant
from api.openapi import Blueprint
from api.problems import language
from api.security import OPERATOR, door
from footprint import reasons
from points import programme

blueprint = Blueprint("programme", __name__, description="What the programme costs")


class FunderLineAnswer(ma.Schema):
    """Points over all time; fen are points at the funder's value."""

    funder_id = fields.String(required=True, attribute="funder")
    name = fields.Dict(keys=fields.String(), values=fields.String(), required=True)
    kind = fields.String(required=True)
    budget_points = fields.Integer(required=True, allow_none=True)
    budget_fen = fields.Integer(required=True, allow_none=True)
    limit_points = fields.Integer(required=True, allow_none=True)
    used_percent = fields.Integer(required=True, allow_none=True)
    pays_permille = fields.Integer(required=True)
    issued_points = fields.Integer(required=True, attribute="issued")
    taken_back_points = fields.Integer(required=True, attribute="taken_back")
    redeemed_points = fields.Integer(required=True, attribute="redeemed")
    redeemed_fen = fields.Integer(required=True)
    expired_points = fields.Integer(required=True, attribute="expired")
    outstanding_points = fields.Integer(required=True, attribute="outstanding")
    liability_fen = fields.Integer(required=True)
    expected_lapse_points = fields.Integer(
        required=True, allow_none=True, attribute="expected_lapse"
    )
    expected_lapse_fen = fields.Integer(required=True, allow_none=True)


class BehaviourLineAnswer(ma.Schema):
    """The unnamed behaviour stands for corrections that are about several."""

    behaviour = fields.String(required=True)
    reduction_g = Grams(required=True, attribute="mg")
    points = fields.Integer(required=True)
    fen = fields.Integer(required=True)
    fen_per_tonne = fields.Integer(required=True, allow_none=True)


class RefusedAnswer(ma.Schema):
    reason = fields.String(required=True)
    text = fields.String(required=True)
    count = fields.Integer(required=True)


class BudgetAlarmAnswer(ma.Schema):
    funder_id = fields.String(required=True, attribute="funder")
    level_percent = fields.Integer(required=True, attribute="level")
    used_points = fields.Integer(required=True)
    limit_points = fields.Integer(required=True)
    at = Instant(required=True)


class ProgrammeAnswer(ma.Schema):
    """As of when it was added up; `liability_as_of` is when all wallets were."""

    as_of = Instant(required=True)
    liability_as_of = Instant(required=True, allow_none=True)
    outstanding_points = fields.Integer(required=True)
    liability_fen = fields.Integer(required=True)
    expected_lapse_points = fields.Integer(required=True)
    expected_lapse_fen = fields.Integer(required=True)
    redeemed_fen = fields.Integer(required=True)
    funders = fields.List(fields.Nested(FunderLineAnswer), required=True)
    cost_by_behaviour = fields.List(fields.Nested(BehaviourLineAnswer), required=True)
    rejections_from = CityDay(required=True)
    rejections_to = CityDay(required=True)
    rejections = fields.List(fields.Nested(RefusedAnswer), required=True)
    alarms = fields.List(fields.Nested(BudgetAlarmAnswer), required=True)


@blueprint.route("/v1/operator/programme")
class OneProgramme(MethodView):
    @door(OPERATOR, area="funders")
    @blueprint.response(200, ProgrammeAnswer)
    def get(self) -> dict[str, Any]:
        """Liability, expected lapse, cost per tonne, and why reports were rejected"""
        found = programme.page(clock.now())
        return {
            "as_of": found.as_of,
            "liability_as_of": found.liability_as_of,
            "outstanding_points": found.total("outstanding"),
            "liability_fen": found.total("liability_fen"),
            "expected_lapse_points": found.total("expected_lapse"),
            "expected_lapse_fen": found.total("expected_lapse_fen"),
            "redeemed_fen": found.total("redeemed_fen"),
            "funders": found.funders,
            "cost_by_behaviour": found.behaviours,
            "rejections_from": found.refused_from,
            "rejections_to": found.refused_to,
            "rejections": [
                {"reason": code, "text": reasons.text(code, language()), "count": count}
                for code, count in found.refused.items()
            ],
            "alarms": found.alarms,
        }
