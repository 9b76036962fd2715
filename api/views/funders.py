"""Who pays for points: funders with their budgets, and campaigns that give a bonus."""

from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import clock
from accounting.errors import ValidationFailed
from api.idempotency import business_key, idempotent
from api.numbers import CityDay, Flag, Grams, Instant, Quantity, Schema, Whole
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, page, page_of, place
from api.reports import MONTH
from api.reward_terms import FEN_MAX, TEXT, BothLanguages
from api.security import OPERATOR, caller, door
from api.versions import one_is_enough
from api.views.methodology import SampleRequest, month_of_preview
from footprint import methodology
from points import campaigns, earning, funders, terms, trying
from points.earning import (
    FULL_PERMILLE,
    REVERSAL_POLICIES,
    STOP,
    WHEN_SPENT,
    EarningRule,
    EarningRuleError,
)
from points.proposals import Agreed
from points.trying import Draft

BUDGET_POINTS_MAX = 10**13
BUDGET_FEN_MAX = 10**12
MULTIPLIER_MAX = 100
LIST_MAX = 500
RULE_CHARS_MAX = 20_000
GRADES = ("deep", "mid", "light", "unrated")
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


class DeclineRequest(Schema):
    reason = REASON


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


def stored(wanted: dict[str, Any]) -> dict[str, Any]:
    """A campaign's terms as they are kept: exact numbers and days as text."""
    kept = {name: value for name, value in wanted.items() if name != "funder_id"}
    return kept | {
        "funder": wanted["funder_id"],
        "multiplier": format(wanted["multiplier"].normalize(), "f"),
        "first_day": wanted["first_day"].isoformat(),
        "last_day": wanted["last_day"].isoformat(),
    }


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


def _funder(found: Agreed) -> dict[str, Any]:
    rates = terms.current().rates_at(clock.now())
    return {
        **found.shown,
        **_agreed(found),
        "funder_id": found.id,
        "state": "open" if found.terms is not None else "proposed",
        "pays_permille": rates[found.id].permille if found.id in rates else 0,
    }


def _campaign(found: Agreed) -> dict[str, Any]:
    shown = found.shown
    return {
        **shown,
        **_agreed(found),
        "campaign_id": found.id,
        "funder_id": shown["funder"],
        "state": campaigns.state_on(found, clock.city_day(clock.now())),
    }


def _agreed(found: Agreed) -> dict[str, Any]:
    names = ("asked_by", "asked_at", "reason", "approved_by", "approved_at", "created_at")
    waits = {"needs_approval": found.needs_approval, "proposed": found.proposed}
    return waits | {name: getattr(found, name) for name in names}
