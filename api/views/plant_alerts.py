"""Alerts of a plant: what is wrong now or was, who has seen it; the limits they are measured by."""

from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import audit
from accounting.enterprise import alert_days, alerts, plants
from accounting.enterprise.alert_rules import Rule, Severity
from accounting.enterprise.alert_texts import TEXTS
from accounting.enterprise.alerts import Alert, State, Why
from accounting.errors import ValidationFailed
from api.idempotency import idempotent
from api.numbers import Instant, Quantity, Schema
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, newest, page_of
from api.plants import NAME, own_plant
from api.problems import language
from api.security import OPERATOR, PLANT, caller, door

KW_MAX = 10_000_000
REASON = validate.Length(1, 500)

blueprint = Blueprint("plant_alerts", __name__, description="Warnings about a plant")


class AlertQuery(PageQuery):
    state = fields.String(validate=validate.OneOf([state.value for state in State]))


class AlertAnswer(ma.Schema):
    """`facts` has the numbers of the rule, in the carrier's smallest unit (electricity: Wh).

    Those of a budget name its `measure` (energy_wh, coal_mg, co2e_mg: the unit) and `period`.
    """

    id = fields.String(required=True)
    rule = fields.String(required=True, validate=validate.OneOf([rule.value for rule in Rule]))
    text = fields.String(required=True)
    state = fields.String(required=True, validate=validate.OneOf([one.value for one in State]))
    severity = fields.String(
        required=True, validate=validate.OneOf([one.value for one in Severity])
    )
    node = fields.String(
        required=True, allow_none=True, metadata={"description": "null: the whole plant"}
    )
    meter = fields.String(required=True, allow_none=True)
    carrier = fields.String(required=True, allow_none=True)
    first_at = Instant(required=True)
    last_at = Instant(required=True)
    opened_at = Instant(required=True)
    acknowledged_at = Instant(required=True, allow_none=True)
    acknowledged_by = fields.String(required=True, allow_none=True)
    closed_at = Instant(required=True, allow_none=True)
    why_closed = fields.String(
        required=True, allow_none=True, metadata={"enum": [*(one.value for one in Why), None]}
    )
    times = fields.Integer(
        required=True, metadata={"description": "How often it came back within eight hours."}
    )
    facts = fields.Dict(required=True)


class PlantLimitRequest(Schema):
    """Without `node` it is the contracted demand of the plant; `kw` null takes the limit away."""

    node = fields.String(allow_none=True, load_default=None, validate=NAME)
    kw = Quantity(required=True, allow_none=True, above=0, maximum=KW_MAX)
    reason = fields.String(load_default=None, allow_none=True, validate=REASON)


class PlantLimitAnswer(ma.Schema):
    plant_id = fields.String(required=True)
    node = fields.String(required=True, allow_none=True)
    kw = Quantity(required=True, allow_none=True)


class PlantLimitsAnswer(ma.Schema):
    items = fields.List(fields.Nested(PlantLimitAnswer), required=True)


@blueprint.route("/v1/plants/<plant_id>/alerts")
class Alerts(MethodView):
    @door(PLANT, scope="plant:read")
    @blueprint.arguments(AlertQuery, location="query")
    @blueprint.response(200, page_of(AlertAnswer))
    def get(self, wanted: dict[str, Any], plant_id: str) -> dict[str, Any]:
        """Alerts of the plant, newest first: open, acknowledged and closed ones"""
        own_plant(plant_id)
        state = State(wanted["state"]) if "state" in wanted else None

        def find(before: str | None, limit: int) -> list[Alert]:
            return alerts.listed(plant_id, state, before=before, limit=limit)

        return newest(wanted, find, _shown)


@blueprint.route("/v1/plants/<plant_id>/alerts/<alert_id>/acknowledge")
class AcknowledgedAlert(MethodView):
    @door(PLANT, scope="plant:read")
    @refuses("alert_closed", "account_busy")
    @idempotent()
    @blueprint.response(200, AlertAnswer)
    def post(self, plant_id: str, alert_id: str) -> dict[str, Any]:
        """Say that the alert was seen; who came first stays, and it opens again if it gets worse"""
        own_plant(plant_id)
        return _shown(alerts.acknowledge(plant_id, alert_id, caller().client_id or caller().id))


@blueprint.route("/v1/operator/plants/<plant_id>/limits")
class Limits(MethodView):
    @door(OPERATOR, area="partners")
    @blueprint.arguments(PlantLimitRequest)
    @idempotent()
    @blueprint.response(200, PlantLimitAnswer)
    def post(self, wanted: dict[str, Any], plant_id: str) -> dict[str, Any]:
        """Set the limit of a node, or the contracted demand of the plant, in kW"""
        plants.get_plant(plant_id)
        node, kw = wanted["node"], wanted["kw"]
        if node is not None and all(one.node != node for one in plants.nodes(plant_id)):
            raise ValidationFailed("/node", "There is no such node.", "没有该节点。")
        before = alert_days.set_limit(plant_id, node, kw)
        audit.note(
            caller().client_id or caller().id,
            "limit set",
            f"{plant_id}/{node or ''}",
            reason=wanted["reason"],
            before=None if before is None else {"kw": str(before)},
            after=None if kw is None else {"kw": str(kw)},
        )
        return {"plant_id": plant_id, "node": node, "kw": kw}

    @door(OPERATOR, area="partners")
    @blueprint.response(200, PlantLimitsAnswer)
    def get(self, plant_id: str) -> dict[str, Any]:
        """The limits of the nodes, and the contracted demand of the plant (`node` null)"""
        plants.get_plant(plant_id)
        items = alert_days.limits(plant_id).items()
        return {"items": [{"plant_id": plant_id, "node": node, "kw": kw} for node, kw in items]}


def _shown(alert: Alert) -> dict[str, Any]:
    subject = alert.subject
    return {
        **{name: getattr(alert, name, None) for name in AlertAnswer().fields},
        "text": TEXTS[alert.rule][language()],
        "node": subject.node,
        "meter": subject.meter,
        "carrier": subject.carrier,
    }
