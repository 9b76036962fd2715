"""Every number from inputs to points, for a person to read and for a machine to work out again."""

from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields, validate

from accounting.errors import NotFound
from api.numbers import Quantity
from api.openapi import Blueprint
from api.problems import language
from api.security import OPERATOR, RESIDENT, caller, door
from api.views.activities import mine, settled
from api.views.households import my_bill
from footprint import activities, reviews, working
from points import explaining

EXACT = {"description": "An exact number as text: `5.2`, or a fraction like `620/29`."}
OPS = {"description": (working.__doc__ or "").partition("\n\n")[2]}

blueprint = Blueprint("explanations", __name__, description="Why each gram and each point")


class StepAnswer(ma.Schema):
    """One operation on the running number, which begins at nought."""

    rule = fields.String(required=True)
    op = fields.String(required=True, validate=validate.OneOf(working.OPS), metadata=OPS)
    value = fields.String(metadata=EXACT)
    factor = fields.String(metadata={"description": "The id of one of `factors`."})
    cap = fields.Integer(metadata={"description": "The whole cap, where one bit."})
    used_before = fields.Integer(metadata={"description": "What was used of the cap before."})
    result = fields.String(required=True, metadata=EXACT)
    unit = fields.String(required=True)
    text = fields.String(required=True)


class ExactAnswer(ma.Schema):
    mg_num = fields.Integer(required=True)
    mg_den = fields.Integer(required=True)


class UsedFactorAnswer(ma.Schema):
    """`value` is rounded to be shown; `exact` is what is computed with.

    `registry` is what the factor registry says of a factor that was taken from it.
    """

    id = fields.String(required=True)
    value = Quantity(required=True)
    unit = fields.String(required=True)
    exact = fields.Nested(ExactAnswer, required=True)
    derivation = fields.Dict(keys=fields.String(), values=fields.String(), required=True)
    source = fields.String(required=True)
    confidence = fields.String(required=True)
    version = fields.String(required=True)
    valid_from = fields.String(required=True)
    review_by = fields.String(required=True)
    registry = fields.Dict(required=True, allow_none=True)


class UsedCapsAnswer(ma.Schema):
    day_mg = fields.Integer(required=True, allow_none=True)
    day_count = fields.Integer(required=True, allow_none=True)
    month_count = fields.Integer(required=True, allow_none=True)
    overall_day_mg = fields.Integer(required=True, allow_none=True)
    used_before = fields.Dict(keys=fields.String(), values=fields.Integer(), required=True)
    bit = fields.List(fields.String(), required=True)


class NeededReasonAnswer(ma.Schema):
    """`needed` says what would have been needed; null beside a credit."""

    code = fields.String(required=True)
    text = fields.String(required=True)
    needed = fields.String(required=True, allow_none=True)


class OutcomeAnswer(ma.Schema):
    status = fields.String(required=True)
    reasons = fields.List(fields.Nested(NeededReasonAnswer), required=True)


class EvidenceAnswer(ma.Schema):
    evidence_class = fields.String(required=True, data_key="class", attribute="class")
    why = fields.String(required=True)
    accepted = fields.List(fields.String(), required=True)
    bank_grade = fields.Boolean(required=True)


class ExplainedAppealAnswer(ma.Schema):
    """`overruled` are the reasons that an upheld appeal set aside."""

    appeal_id = fields.String(required=True)
    status = fields.String(
        required=True, validate=validate.OneOf(list(reviews.APPEAL_WORDS.values()))
    )
    due_on = fields.String(required=True)
    reason = fields.String(required=True, allow_none=True)
    overruled = fields.List(fields.String(), required=True)


class StandsAnswer(ma.Schema):
    reduction_mg = fields.Integer(required=True)
    points = fields.Integer(required=True)


class LaterAnswer(StandsAnswer):
    """What a later entry changed: a restatement, a reversal, a better record of the same."""

    kind = fields.String(required=True)
    recorded_at = fields.String(required=True)
    waived_points = fields.Integer(required=True)
    methodology_version = fields.String(required=True, allow_none=True)
    reason = fields.String(required=True, allow_none=True)
    text = fields.String(required=True)


class MergedAnswer(ma.Schema):
    """Records of one trip, or step totals of one day: which one counts, and for which others."""

    into = fields.String(required=True, allow_none=True)
    # `from` is a word of the language.
    merged_from = fields.List(fields.String(), required=True, data_key="from", attribute="from")


class ExplanationAnswer(ma.Schema):
    """`reduction_mg` and `points` as first credited; `stands` is what is left after `later`."""

    inputs = fields.Dict(required=True)
    outcome = fields.Nested(OutcomeAnswer, required=True)
    evidence = fields.Nested(EvidenceAnswer, required=True)
    formula = fields.String(required=True)
    steps = fields.List(fields.Nested(StepAnswer), required=True)
    factors = fields.List(fields.Nested(UsedFactorAnswer), required=True)
    caps = fields.Nested(UsedCapsAnswer, required=True)
    rounding = fields.String(required=True)
    points = fields.Dict(required=True)
    reduction_mg = fields.Integer(required=True)
    appealable = fields.Boolean(required=True)
    appeal = fields.Nested(ExplainedAppealAnswer, required=True, allow_none=True)
    merged = fields.Nested(MergedAnswer, required=True)
    later = fields.List(fields.Nested(LaterAnswer), required=True)
    stands = fields.Nested(StandsAnswer, required=True)


@blueprint.route("/v1/activities/<activity_id>/explanation")
class ActivityExplanation(MethodView):
    @door(RESIDENT)
    @blueprint.response(200, ExplanationAnswer)
    def get(self, activity_id: str) -> dict[str, Any]:
        """How the grams and points of an activity came about, or why there are none"""
        return explaining.of_activity(mine(activity_id), language())


@blueprint.route("/v1/operator/activities/<activity_id>/explanation")
class AnyExplanation(MethodView):
    @door(OPERATOR, area="support")
    @blueprint.response(200, ExplanationAnswer)
    def get(self, activity_id: str) -> dict[str, Any]:
        """Why somebody's activity was credited so: what the resident sees"""
        found = activities.by_id(activity_id)
        if found is None:
            raise NotFound()
        return explaining.of_activity(settled(found), language())


@blueprint.route("/v1/me/bills/<bill_id>/explanation")
class BillExplanation(MethodView):
    @door(RESIDENT)
    @blueprint.response(200, ExplanationAnswer)
    def get(self, bill_id: str) -> dict[str, Any]:
        """How my share of a household bill came about, or why there is none"""
        return explaining.of_share(my_bill(bill_id), caller().id, language())
