"""Campaigns: a bonus on points for some days, paid by a funder."""

from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import clock
from api.idempotency import business_key, idempotent
from api.numbers import CityDay, Flag, Quantity, Schema, Whole
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, page, page_of, place
from api.reward_terms import TEXT, BothLanguages
from api.security import OPERATOR, caller, door
from api.versions import one_is_enough
from api.views.funders import (
    BUDGET_POINTS_MAX,
    REASON,
    AgreedAnswer,
    DeclineRequest,
    agreed_answer,
)
from footprint import methodology
from points import campaigns
from points.earning import REVERSAL_POLICIES, STOP, WHEN_SPENT
from points.proposals import Agreed

MULTIPLIER_MAX = 100
LIST_MAX = 500
GRADES = ("deep", "mid", "light", "unrated")

blueprint = Blueprint("campaigns", __name__, description="A bonus for some days")


class CampaignRequest(Schema):
    """Days are those of the activities. An empty target group means everybody."""

    name = fields.Nested(BothLanguages, required=True)
    funder_id = fields.String(required=True, validate=validate.Length(1, 64))
    multiplier = Quantity(above=1, maximum=MULTIPLIER_MAX, required=True)
    first_day = CityDay(required=True)
    last_day = CityDay(required=True)
    behaviours = fields.List(
        fields.String(), load_default=list, validate=validate.Length(max=LIST_MAX)
    )
    districts = fields.List(
        fields.String(validate=TEXT), load_default=list, validate=validate.Length(max=LIST_MAX)
    )
    grades = fields.List(
        fields.String(validate=validate.OneOf(GRADES)),
        load_default=list,
        validate=validate.Length(max=len(GRADES)),
    )
    new_within_days = Whole(
        load_default=None,
        allow_none=True,
        validate=validate.Range(1, 3_650),
        metadata={"description": "Only for residents who joined fewer days ago than this."},
    )
    day_points_max = Whole(
        load_default=None,
        allow_none=True,
        validate=validate.Range(1, BUDGET_POINTS_MAX),
        metadata={"description": "Bonus points of one resident for the activities of a day."},
    )
    total_points_max = Whole(
        load_default=None,
        allow_none=True,
        validate=validate.Range(1, BUDGET_POINTS_MAX),
        metadata={"description": "Bonus points of one resident in the whole campaign."},
    )
    when_spent = fields.String(load_default=STOP, validate=validate.OneOf(WHEN_SPENT))
    reversal_policy = fields.String(load_default="owed", validate=validate.OneOf(REVERSAL_POLICIES))

    @ma.validates("behaviours")
    def known(self, value: list[str], **_: Any) -> None:
        rules = methodology.in_force(clock.city_day(clock.now()))
        if any(code not in rules.behaviours for code in value):
            raise ma.ValidationError("Not a known behaviour.")


class CampaignPatch(Schema):
    name = fields.Nested(BothLanguages)
    last_day = CityDay()
    paused = Flag()
    reason = REASON


class CampaignAnswer(AgreedAnswer):
    campaign_id = fields.String(required=True)
    state = fields.String(
        required=True,
        validate=validate.OneOf(["proposed", "planned", "running", "paused", "over"]),
    )
    name = fields.Dict(keys=fields.String(), values=fields.String(), required=True)
    funder_id = fields.String(required=True)
    multiplier = Quantity(required=True)
    first_day = CityDay(required=True)
    last_day = CityDay(required=True)
    behaviours = fields.List(fields.String(), required=True)
    districts = fields.List(fields.String(), required=True)
    grades = fields.List(fields.String(), required=True)
    new_within_days = fields.Integer(required=True, allow_none=True)
    day_points_max = fields.Integer(required=True, allow_none=True)
    total_points_max = fields.Integer(required=True, allow_none=True)
    when_spent = fields.String(required=True)
    reversal_policy = fields.String(required=True)
    paused = fields.Boolean(required=True)


@blueprint.route("/v1/operator/campaigns")
class Campaigns(MethodView):
    @door(OPERATOR, area="funders")
    @blueprint.arguments(CampaignRequest)
    @idempotent()
    @blueprint.response(201, CampaignAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Propose a campaign; it is in force some seconds after another operator approved it"""
        found = campaigns.propose(
            stored(wanted), caller().id, alone=one_is_enough(), once=business_key()
        )
        return _campaign(found)

    @door(OPERATOR, area="funders")
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(CampaignAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Every campaign, newest first"""
        at = place(wanted)
        found = campaigns.newest(before=at[0] if at else None, limit=wanted["limit"] + 1)
        answer = page(found, wanted, lambda one: (one.id,))
        return answer | {"items": [_campaign(one) for one in answer["items"]]}


@blueprint.route("/v1/operator/campaigns/<campaign_id>")
class OneCampaign(MethodView):
    @door(OPERATOR, area="funders")
    @blueprint.response(200, CampaignAnswer)
    def get(self, campaign_id: str) -> dict[str, Any]:
        """One campaign, and what waits for its approval"""
        return _campaign(campaigns.get(campaign_id))

    @door(OPERATOR, area="funders")
    @refuses("proposal_waiting")
    @blueprint.arguments(CampaignPatch)
    @idempotent()
    @blueprint.response(200, CampaignAnswer)
    def patch(self, wanted: dict[str, Any], campaign_id: str) -> dict[str, Any]:
        """Propose another name or last day, or a pause; the bonus itself takes a new campaign"""
        reason = wanted.pop("reason")
        if "last_day" in wanted:
            wanted["last_day"] = wanted["last_day"].isoformat()
        found = campaigns.change(
            campaign_id, wanted, caller().id, reason=reason, alone=one_is_enough()
        )
        return _campaign(found)


@blueprint.route("/v1/operator/campaigns/<campaign_id>/approve")
class ApprovedCampaign(MethodView):
    @door(OPERATOR, area="funders")
    @refuses("second_operator_needed")
    @idempotent()
    @blueprint.response(200, CampaignAnswer)
    def post(self, campaign_id: str) -> dict[str, Any]:
        """Approve another operator's campaign, or change of it"""
        return _campaign(campaigns.approve(campaign_id, caller().id, alone=one_is_enough()))


@blueprint.route("/v1/operator/campaigns/<campaign_id>/decline")
class DeclinedCampaign(MethodView):
    @door(OPERATOR, area="funders")
    @refuses("nothing_proposed")
    @blueprint.arguments(DeclineRequest)
    @idempotent()
    @blueprint.response(200, CampaignAnswer)
    def post(self, wanted: dict[str, Any], campaign_id: str) -> dict[str, Any]:
        """Let a proposed change go"""
        return _campaign(campaigns.decline(campaign_id, caller().id, reason=wanted["reason"]))


def stored(wanted: dict[str, Any]) -> dict[str, Any]:
    """A campaign's terms as they are kept: exact numbers and days as text."""
    kept = {name: value for name, value in wanted.items() if name != "funder_id"}
    return kept | {
        "funder": wanted["funder_id"],
        "multiplier": format(wanted["multiplier"].normalize(), "f"),
        "first_day": wanted["first_day"].isoformat(),
        "last_day": wanted["last_day"].isoformat(),
    }


def _campaign(found: Agreed) -> dict[str, Any]:
    shown = found.shown
    return {
        **shown,
        **agreed_answer(found),
        "campaign_id": found.id,
        "funder_id": shown["funder"],
        "state": campaigns.state_on(found, clock.city_day(clock.now())),
    }
