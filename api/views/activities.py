"""What residents report: single and in batches, with every gram's reason."""

from collections.abc import Sequence
from decimal import Decimal
from functools import partial
from typing import Any

import marshmallow as ma
from flask import current_app, request
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import clock
from accounting.errors import DomainError, NotFound
from api import problems
from api.idempotency import idempotent
from api.numbers import CityDay, EachAlone, Flag, Grams, Quantity, Schema
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, newest, page_of
from api.problems import Invalid, language
from api.reading import RowReader
from api.reports import QUANTITY_MAX, ActivityAnswer, ReportFields, report_of, shown
from api.security import OPEN, RESIDENT, caller, door
from footprint import activities, intake, methodology, photos, rules
from footprint.activities import Activity
from footprint.methodology import Behaviour, Methodology
from integrations import firebase
from points import batches, crediting

BATCH_MAX = 100
ATTESTATION = "X-Firebase-AppCheck"
DEMO_ATTESTATION = "demo"

blueprint = Blueprint("activities", __name__, description="Behaviours and activities")


class Evidence(Schema):
    kind = fields.String(required=True, validate=validate.OneOf(["sensor", "photo", "none"]))
    recorder = fields.String(validate=validate.OneOf(["gps", "pedometer", "health_platform"]))
    manual = Flag(load_default=False)
    manual_quantity = Quantity(
        above=0,
        maximum=QUANTITY_MAX,
        metadata={
            "description": "The part of a health total that was entered by hand; it is left out."
        },
    )


class ActivityRequest(ReportFields):
    evidence = fields.Nested(Evidence, load_default=lambda: {"kind": "none", "manual": False})

    @ma.validates_schema(skip_on_field_errors=True)
    def manual_part_fits(self, data: dict[str, Any], **_: Any) -> None:
        """Only a total of the day has parts, and a part is no more than the whole."""
        part = data["evidence"].get("manual_quantity")
        if part is None:
            return
        version = methodology.in_force(clock.city_day(data["occurred_at"]))
        behaviour = version.behaviours.get(data["behaviour"])
        if behaviour is not None and behaviour.formula != "capped_steps":
            raise ma.ValidationError({"evidence": {"manual_quantity": ["Unknown field."]}})
        if part > data["quantity"]:
            raise ma.ValidationError(
                {"evidence": {"manual_quantity": ["Must not exceed the quantity."]}}
            )


class BatchRequest(Schema):
    activities = EachAlone(ActivityRequest, most=BATCH_MAX)


class ItemAnswer(ma.Schema):
    status_code = fields.Integer(required=True)
    activity = fields.Nested(ActivityAnswer)
    problem = fields.Nested(problems.Problem)


class BatchAnswer(ma.Schema):
    results = fields.List(fields.Nested(ItemAnswer), required=True)


class CapsAnswer(ma.Schema):
    day_g = Grams(allow_none=True)
    day_count = fields.Integer(allow_none=True)
    month_count = fields.Integer(allow_none=True)


class MaturityAnswer(ma.Schema):
    hours = fields.Integer(required=True)


class FactorAnswer(ma.Schema):
    """Exact milligrams a unit: `mg_num / mg_den`; `trip_mg` for a trip of unknown length."""

    id = fields.String(required=True)
    mg_num = fields.Integer(required=True)
    mg_den = fields.Integer(required=True)
    trip_mg = fields.Integer(required=True, allow_none=True)
    derivation = fields.Dict(keys=fields.String(), values=fields.String(), required=True)
    valid_from = CityDay(required=True)
    review_by = CityDay(required=True)


class LimitsAnswer(ma.Schema):
    """What one record can be; null is not checked."""

    quantity_min = Quantity(required=True, allow_none=True)
    quantity_max = Quantity(required=True, allow_none=True)
    kmh_min = Quantity(required=True, allow_none=True)
    kmh_max = Quantity(required=True, allow_none=True)
    gap_minutes_min = fields.Integer(required=True, allow_none=True)
    per_minute_max = fields.Integer(required=True, allow_none=True)
    same_day_count = fields.Integer(required=True, allow_none=True)
    amount_fen_min = fields.Integer(required=True, allow_none=True)
    step_limit = fields.Integer(required=True, allow_none=True)


class BehaviourAnswer(ma.Schema):
    code = fields.String(required=True)
    name = fields.String(required=True)
    names = fields.Dict(keys=fields.String(), values=fields.String(), required=True)
    dimension = fields.String(required=True)
    unit = fields.String(required=True)
    enabled = fields.Boolean(required=True)
    formula = fields.String(required=True)
    factor = fields.Nested(FactorAnswer, required=True)
    caps = fields.Nested(CapsAnswer, required=True)
    limits = fields.Nested(LimitsAnswer, required=True)
    maturity = fields.Nested(MaturityAnswer, required=True)
    evidence = fields.List(fields.String(), required=True)
    attributes = fields.Dict(
        keys=fields.String(), values=fields.List(fields.String()), required=True
    )
    rules = fields.String(required=True)
    source = fields.String(required=True)
    confidence = fields.String(required=True)


class BehavioursAnswer(ma.Schema):
    methodology_version = fields.String(required=True)
    items = fields.List(fields.Nested(BehaviourAnswer), required=True)


@blueprint.route("/v1/behaviours")
class Behaviours(MethodView):
    @door(OPEN)
    @blueprint.response(200, BehavioursAnswer)
    def get(self) -> dict[str, Any]:
        """The methodology in force: what is credited, with factors, caps and sources"""
        version = methodology.in_force(clock.city_day(clock.now()))
        return {
            "methodology_version": version.version,
            "items": [_behaviour(version, one) for one in version.behaviours.values()],
        }


@blueprint.route("/v1/activities")
class Activities(MethodView):
    @door(RESIDENT)
    @refuses("source_event_conflict", "account_busy")
    @blueprint.arguments(ActivityRequest)
    @idempotent()
    @blueprint.response(201, ActivityAnswer)
    @blueprint.alt_response(200, schema=ActivityAnswer, description="Reported before")
    def post(self, wanted: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Report one activity

        It is answered 201 also when it is rejected or only recorded; the reasons say why.
        """
        activity, fresh = crediting.take_in(_fact(wanted))
        return shown(activity), 201 if fresh else 200

    @door(RESIDENT)
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(ActivityAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """My activities, newest first"""
        answer = newest(wanted, partial(activities.of_resident, caller().id))
        return answer | {"items": [shown(settled(one)) for one in answer["items"]]}


@blueprint.route("/v1/activities/batch")
class ActivityBatch(MethodView):
    @door(RESIDENT)
    @blueprint.arguments(BatchRequest)
    @idempotent()
    @blueprint.response(200, BatchAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Report up to 100 activities; each has its own result, in order"""
        return {"results": _items(wanted["activities"])}


@blueprint.route("/v1/activities/<activity_id>")
class OneActivity(MethodView):
    @door(RESIDENT)
    @blueprint.response(200, ActivityAnswer)
    def get(self, activity_id: str) -> dict[str, Any]:
        """One of my activities"""
        return shown(mine(activity_id))


def _fact(wanted: dict[str, Any]) -> Activity:
    """What the caller reports, as the fact to store."""
    resident, evidence = caller().id, wanted["evidence"]
    fact = intake.fact_of(
        rules.without_manual(report_of(wanted), evidence.get("manual_quantity")),
        resident=resident,
        source=f"app:{resident}",
        event_id=wanted["source_event_id"],
        evidence=_evidence_class(evidence, wanted["quantity"]),
        received_at=clock.now(),
        subject=" ".join(f"{name}={_spelt(value)}" for name, value in sorted(evidence.items())),
    )
    return photos.awaiting(fact) if evidence["kind"] == "photo" else fact


def _items(raw: Sequence[Any]) -> list[dict[str, Any]]:
    """Take the good ones in together; each has its own result, in order."""
    results: dict[int, dict[str, Any]] = {}
    facts: list[tuple[int, Activity]] = []
    reader = RowReader(ActivityRequest())
    for at, one in enumerate(raw):
        try:
            facts.append((at, _fact(reader.load(one))))
        except ma.ValidationError as error:
            results[at] = problems.item(Invalid.of(error))
        except DomainError as refusal:
            results[at] = problems.item(refusal)
    received = batches.take_in([fact for _, fact in facts])
    for (at, _), end in zip(facts, received, strict=True):
        if isinstance(end, DomainError):
            results[at] = problems.item(end)
        else:
            results[at] = {"status_code": 201 if end[1] else 200, "activity": shown(end[0])}
    return [results[at] for at in range(len(raw))]


def mine(activity_id: str) -> Activity:
    """The caller's activity, with its outcome. Raises `NotFound` also for somebody else's."""
    found = activities.by_id(activity_id)
    if found is None or found.resident != caller().id:
        raise NotFound()
    return settled(found)


def settled(activity: Activity) -> Activity:
    """An activity a crash left without its outcome gets it now rather than at the next sweep."""
    return activity if activity.state == activities.SETTLED else crediting.resume(activity)


def _spelt(value: Any) -> str:
    """A value of the evidence in one spelling, so that 1200.0 is said again by 1200."""
    return format(value.normalize(), "f") if isinstance(value, Decimal) else str(value)


def _evidence_class(evidence: dict[str, Any], quantity: Decimal) -> str:
    """B needs a sensor, no manual entry and an attested app; the client's word alone is D.

    A photo is D as well, until somebody has reviewed it.
    """
    manual = evidence["manual"] or evidence.get("manual_quantity") == quantity
    if evidence["kind"] == "sensor" and not manual and _attested():
        return "B"
    return "D"


def _attested() -> bool:
    token = request.headers.get(ATTESTATION)
    if not token:
        return False
    if current_app.extensions["config"].demo and token == DEMO_ATTESTATION:
        return True
    return firebase.verify_app_check(current_app.extensions["firebase"], token)


def _behaviour(version: Methodology, one: Behaviour) -> dict[str, Any]:
    limits = one.plausible
    return {
        "code": one.code,
        "name": one.name[language()],
        "names": dict(one.name),
        "dimension": one.dimension,
        "unit": one.unit,
        "enabled": one.enabled,
        "formula": one.formula_text,
        "factor": {
            "id": one.factor_id,
            "mg_num": one.mg_num,
            "mg_den": one.mg_den,
            "trip_mg": one.trip_mg,
            "derivation": dict(one.derivation),
            "valid_from": version.valid_from,
            "review_by": version.review_by,
        },
        "caps": {
            "day_g": one.caps.day_mg,
            "day_count": one.caps.day_count,
            "month_count": one.caps.month_count,
        },
        "limits": {
            "quantity_min": limits.quantity_min,
            "quantity_max": limits.quantity_max,
            "kmh_min": limits.kmh_min,
            "kmh_max": limits.kmh_max,
            "gap_minutes_min": limits.gap_minutes_min,
            "per_minute_max": limits.per_minute_max,
            "same_day_count": one.same.day_count if one.same else None,
            "amount_fen_min": one.amount_fen_min,
            "step_limit": one.step_limit,
        },
        "maturity": {"hours": int(one.maturity.total_seconds()) // 3600},
        "evidence": sorted(one.accepts),
        "attributes": {"required": list(one.required), "optional": list(one.optional)},
        "rules": one.rules_text,
        "source": one.source,
        "confidence": one.confidence,
    }
