"""What people do about a meter's data: edits, swapped registers, the quality of a month."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import audit, clock
from accounting.enterprise import editing, meters, monthly, readings, validating
from accounting.enterprise.carriers import UNITS
from accounting.enterprise.checking import Month, Unbalanced
from accounting.enterprise.editing import EDITS_MAX, Edit
from accounting.enterprise.meters import Meter, MeterChange
from accounting.enterprise.slots import Quality
from accounting.errors import ValidationFailed
from api.idempotency import idempotent
from api.numbers import CityDay, Flag, Instant, Quantity, Schema, plain
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, page, page_of, place
from api.plants import MONTH, own_plant
from api.security import OPERATOR, PLANT, caller, door

REASON = validate.Length(1, 500)
UNBALANCED_MAX = 1_000
AMOUNT_MAX = 10**12

blueprint = Blueprint("meters", __name__, description="Plants and their meters")


class MeterEditFields(Schema):
    at = Instant(required=True, metadata={"description": "The start of a slot that is over."})
    value = Quantity(
        required=True,
        allow_none=True,
        minimum=0,
        maximum=AMOUNT_MAX,
        metadata={"description": "In the meter's unit, with its multiplier; null takes it back."},
    )


class MeterEditsRequest(Schema):
    """`above_actual` lets the values stand above actual readings (rule V3)."""

    edits = fields.List(
        fields.Nested(MeterEditFields), required=True, validate=validate.Length(1, EDITS_MAX)
    )
    above_actual = Flag(load_default=False)
    reason = fields.String(required=True, validate=REASON)


class MeterEditsAnswer(ma.Schema):
    edited = fields.Integer(required=True)


class ConflictingReading(ma.Schema):
    at = Instant(required=True)
    kind = fields.String(required=True)
    value = Quantity(required=True, metadata={"description": "As sent, before the multiplier."})
    received_at = Instant(required=True)


class MeterChangeRequest(Schema):
    """Numbers as the registers showed them, before the multiplier."""

    at = Instant(required=True)
    old_last = Quantity(required=True, minimum=0, maximum=AMOUNT_MAX)
    new_first = Quantity(required=True, minimum=0, maximum=AMOUNT_MAX)
    reason = fields.String(required=True, validate=REASON)


class MeterChangeAnswer(ma.Schema):
    meter = fields.String(required=True)
    at = Instant(required=True)
    changes = fields.Integer(required=True)


class MonthQuery(Schema):
    month = fields.String(required=True, validate=MONTH)


class MeterQualityAnswer(ma.Schema):
    meter = fields.String(required=True)
    expected = fields.Integer(required=True, metadata={"description": "Slots that are over."})
    actual = fields.Integer(required=True)
    edited = fields.Integer(required=True)
    estimated = fields.Integer(required=True)
    missing = fields.Integer(required=True)
    completeness = Quantity(required=True, allow_none=True)
    provisional = fields.Boolean(required=True, metadata={"description": "V21: below 90 %."})
    total = Quantity(required=True)
    register = Quantity(
        required=True,
        allow_none=True,
        metadata={"description": "What the register beside the intervals counted."},
    )
    disagrees = fields.Boolean(required=True, metadata={"description": "V17: by more than 5 %."})


class UnbalancedAnswer(ma.Schema):
    meter = fields.String(required=True)
    day = CityDay(required=True)
    total = Quantity(required=True)
    children = Quantity(required=True)


class PlantQualityAnswer(ma.Schema):
    month = fields.String(required=True)
    meters = fields.List(fields.Nested(MeterQualityAnswer), required=True)
    unbalanced = fields.List(
        fields.Nested(UnbalancedAnswer),
        required=True,
        metadata={"description": "V16: days on which a meter and those below it differ by 5 %."},
    )


@blueprint.route("/v1/operator/plants/<plant_id>/meters/<meter>/edits")
class MeterEdits(MethodView):
    @door(OPERATOR, area="partners")
    @refuses("actual_stands", "account_busy")
    @blueprint.arguments(MeterEditsRequest)
    @idempotent()
    @blueprint.response(201, MeterEditsAnswer)
    def post(self, wanted: dict[str, Any], plant_id: str, meter: str) -> dict[str, Any]:
        """Set slots of a meter by hand, with a reason

        What was sent stays as `raw`. An actual reading that comes later replaces the edit, unless
        `above_actual` was said.
        """
        known = meters.get(plant_id, meter)
        per = UNITS[known.unit][1]
        edits = [
            Edit(one["at"], None if one["value"] is None else int(one["value"] * per))
            for one in wanted["edits"]
        ]
        editing.edit(
            known, edits, above=wanted["above_actual"], by=caller().id, reason=wanted["reason"]
        )
        return {"edited": len(edits)}


@blueprint.route("/v1/operator/plants/<plant_id>/meters/<meter>/changes")
class MeterChanges(MethodView):
    @door(OPERATOR, area="partners")
    @refuses("change_exists")
    @blueprint.arguments(MeterChangeRequest)
    @idempotent()
    @blueprint.response(201, MeterChangeAnswer)
    def post(self, wanted: dict[str, Any], plant_id: str, meter: str) -> dict[str, Any]:
        """Tell that a meter's register was swapped or reset

        With the last number of the old one and the first of the new one nothing is lost between
        them. Every day of the meter is validated anew.
        """
        known = meters.get(plant_id, meter)
        if wanted["at"] > clock.now():
            raise ValidationFailed("/at", "Must not lie ahead.", "不得晚于当前时间。")
        old_last, new_first = (
            int(Fraction(wanted[name]) * known.scale) for name in ("old_last", "new_first")
        )
        # Before the change: what was done without a trace would be worse than the reverse.
        audit.note(
            caller().id,
            "meter changed",
            f"{plant_id}/{meter}",
            reason=wanted["reason"],
            after={
                "at": wanted["at"].isoformat(),
                "old_last": str(wanted["old_last"]),
                "new_first": str(wanted["new_first"]),
            },
        )
        changed = meters.record_change(
            plant_id, meter, MeterChange(wanted["at"], old_last, new_first)
        )
        validating.touch(plant_id, meter)
        return {"meter": meter, "at": wanted["at"], "changes": len(changed.changes)}


@blueprint.route("/v1/plants/<plant_id>/meters/<meter>/conflicts")
class Conflicts(MethodView):
    @door(PLANT, scope="plant:read")
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(ConflictingReading))
    def get(self, wanted: dict[str, Any], plant_id: str, meter: str) -> dict[str, Any]:
        """Values that came for slots that had one already, the newest slot first

        The value that came first holds; an operator may set another (`/edits`).
        """
        own_plant(plant_id)
        meters.get(plant_id, meter)
        before, limit = place(wanted), wanted["limit"] + 1
        found = readings.conflicts_of(plant_id, meter, before=before, limit=limit)
        return page(found, wanted, lambda one: (one.at, one.id))


@blueprint.route("/v1/plants/<plant_id>/quality")
class PlantQuality(MethodView):
    @door(PLANT, scope="plant:read")
    @refuses("account_busy")
    @blueprint.arguments(MonthQuery, location="query")
    @blueprint.response(200, PlantQualityAnswer)
    def get(self, wanted: dict[str, Any], plant_id: str) -> dict[str, Any]:
        """How much of a month was measured, estimated and missing, and what does not add up"""
        own_plant(plant_id)
        found = monthly.quality(plant_id, wanted["month"])
        units = {meter.meter: UNITS[meter.unit][1] for meter, _ in found.meters}
        return {
            "month": wanted["month"],
            "meters": [_month(meter, one) for meter, one in found.meters],
            "unbalanced": [
                _unbalanced(one, units[one.meter]) for one in found.unbalanced[:UNBALANCED_MAX]
            ],
        }


def _month(meter: Meter, one: Month) -> dict[str, Any]:
    per, actual = UNITS[meter.unit][1], one.counts[Quality.ACTUAL]
    return {
        "meter": meter.meter,
        "expected": one.expected,
        "actual": actual,
        "edited": one.counts[Quality.EDITED],
        "estimated": one.counts[Quality.ESTIMATED],
        "missing": one.counts[Quality.MISSING],
        # Rounded down, so that what is not whole never looks whole.
        "completeness": Decimal(actual * 10_000 // one.expected) / 10_000 if one.expected else None,
        "provisional": one.provisional,
        "total": plain(Decimal(one.total) / per),
        "register": None if one.register is None else plain(Decimal(one.register) / per),
        "disagrees": one.disagrees,
    }


def _unbalanced(one: Unbalanced, per: int) -> dict[str, Any]:
    return {
        "meter": one.meter,
        "day": one.day,
        "total": plain(Decimal(one.total) / per),
        "children": plain(Decimal(one.children) / per),
    }
