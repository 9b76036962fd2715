"""What a draft rule or campaign would change, tried on a sample of residents."""

from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields, validate

from accounting.errors import ValidationFailed
from api.idempotency import idempotent
from api.numbers import Grams, Schema
from api.openapi import Blueprint, refuses
from api.reports import MONTH
from api.security import OPERATOR, door
from api.views.campaigns import CampaignRequest, stored
from api.views.methodology import SampleRequest, month_of_preview
from points import campaigns, earning, funders, trying
from points.earning import EarningRule, EarningRuleError
from points.trying import Draft

RULE_CHARS_MAX = 20_000

blueprint = Blueprint("earning_trials", __name__, description="Trying earning rules")


class TrialRequest(Schema):
    """A draft rule, a draft campaign, or both; as if in force for the whole month."""

    rule = fields.String(
        validate=validate.Length(1, RULE_CHARS_MAX),
        metadata={"description": "A whole earning rule as TOML, as the shipped one."},
    )
    campaign = fields.Nested(CampaignRequest)
    month = fields.String(
        validate=MONTH, metadata={"description": "The city month; the last full one by default."}
    )
    sample = fields.Nested(SampleRequest)

    @ma.validates_schema(skip_on_field_errors=True)
    def something_to_try(self, data: dict[str, Any], **_: Any) -> None:
        if "rule" not in data and "campaign" not in data:
            raise ma.ValidationError("Send rule, campaign or both.", "rule")


class TrialExtremeAnswer(ma.Schema):
    resident_id = fields.String(required=True, attribute="resident")
    points = fields.Integer(required=True)


class TrialSideAnswer(ma.Schema):
    residents = fields.Integer(required=True)
    points = fields.Integer(required=True)
    median_points = fields.Integer(required=True)
    extremes = fields.List(fields.Nested(TrialExtremeAnswer), required=True)


class TrialFunderAnswer(ma.Schema):
    funder_id = fields.String(required=True, attribute="funder")
    points = fields.Integer(required=True)
    fen = fields.Integer(required=True)


class TrialBehaviourAnswer(ma.Schema):
    behaviour = fields.String(required=True)
    reduction_g = Grams(required=True, attribute="mg")
    points = fields.Integer(required=True)


class TrialAnswer(ma.Schema):
    """Differences: what the draft would give less what the terms in force give for the same grams.

    Every funder pays in full on both sides.
    """

    month = fields.String(required=True)
    residents = fields.Integer(required=True, metadata={"description": "Looked at."})
    active = fields.Integer(required=True, metadata={"description": "Who was credited then."})
    points = fields.Integer(required=True)
    gain = fields.Nested(TrialSideAnswer, required=True)
    lose = fields.Nested(TrialSideAnswer, required=True)
    unchanged = fields.Integer(required=True)
    by_funder = fields.List(fields.Nested(TrialFunderAnswer), required=True)
    by_behaviour = fields.List(fields.Nested(TrialBehaviourAnswer), required=True)


@blueprint.route("/v1/operator/earning/preview")
class Trial(MethodView):
    @door(OPERATOR, area="funders")
    @refuses("validation_failed")
    @blueprint.arguments(TrialRequest)
    @idempotent()
    @blueprint.response(200, TrialAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Who gains and who loses by a draft rule or campaign, and its cost; changes nothing"""
        sample = wanted.get("sample") or SampleRequest().load({})
        draft = Draft(
            rule=_draft_rule(wanted["rule"]) if "rule" in wanted else None,
            campaign=campaigns.drafted(stored(wanted["campaign"]))
            if "campaign" in wanted
            else None,
        )
        month = month_of_preview(wanted.get("month"))
        return trying.of_sample(draft, month, seed=sample["seed"], size=sample["size"])


def _draft_rule(text: str) -> EarningRule:
    try:
        rule = earning.load(text, "rule")
    except EarningRuleError as error:
        message = str(error)[:500]
        raise ValidationFailed("/rule", message, f"积分规则无效：{message}") from None
    unknown = [share.funder for share in rule.funders if not funders.known(share.funder)]
    if unknown:
        raise ValidationFailed(
            "/rule", f"There is no funder {unknown[0]}.", f"没有出资方 {unknown[0]}。"
        )
    return rule
