"""The form of an activity report and of an activity in answers, for residents and partners."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import marshmallow as ma
from marshmallow import fields, validate

from accounting import clock
from accounting.errors import Language
from api.numbers import Flag, Grams, Instant, Quantity, Schema, Whole
from api.problems import language
from footprint import methodology, reasons
from footprint.activities import Activity
from footprint.rules import Report
from points import crediting

QUANTITY_MAX = 1_000_000_000
FEN_MAX = 100_000_000_000
EVENT_ID = validate.Regexp(r"^[A-Za-z0-9._:-]{1,128}\Z")
NAME = validate.Length(1, 128)
MONTH = validate.Regexp(r"^[0-9]{4}-(0[1-9]|1[0-2])\Z")


class Attributes(Schema):
    """What a behaviour may need beside its quantity; which ones is in `GET /v1/behaviours`."""

    amount_fen = Whole(validate=validate.Range(0, FEN_MAX))
    merchant = fields.String(validate=NAME)
    meter_account = fields.String(validate=NAME)
    invoice = fields.String(validate=NAME)
    card = fields.String(validate=NAME)
    billing_month = fields.String(validate=MONTH)
    card_product = fields.String(validate=NAME)
    vehicle = fields.String(validate=NAME)
    line = fields.String(validate=NAME)
    trip = Flag()
    order = fields.String(validate=NAME)
    role = fields.String(validate=validate.OneOf(["driver", "passenger"]))
    category = fields.String(validate=NAME)
    slip = fields.String(validate=NAME)
    waybill = fields.String(validate=NAME)


class ReportFields(Schema):
    behaviour = fields.String(required=True, validate=validate.Length(1, 64))
    quantity = Quantity(required=True, above=0, maximum=QUANTITY_MAX)
    occurred_at = Instant(required=True)
    ended_at = Instant()
    source_event_id = fields.String(required=True, validate=EVENT_ID)
    attributes = fields.Nested(Attributes, load_default=dict)

    @ma.validates_schema(skip_on_field_errors=True)
    def fits_behaviour(self, data: dict[str, Any], **_: Any) -> None:
        """Unknown behaviours and attributes, missing ones, and times in the wrong order."""
        when: datetime = data["occurred_at"]
        rules = methodology.in_force(clock.city_day(when))
        behaviour = rules.behaviours.get(data["behaviour"])
        if behaviour is None:
            raise ma.ValidationError("Not a known behaviour.", "behaviour")
        if "ended_at" in data and data["ended_at"] < when:
            raise ma.ValidationError("Must not lie before occurred_at.", "ended_at")
        given, known = data["attributes"], behaviour.attributes
        wrong: dict[str, list[str]] = {
            name: ["Unknown field."] for name in given if name not in known
        }
        for name in behaviour.required:
            if name not in given:
                wrong[name] = ["Missing data for required field."]
        category = given.get("category")
        if category is not None and "category" in known and category not in behaviour.categories:
            wrong["category"] = [f"Must be one of: {', '.join(behaviour.categories)}."]
        if wrong:
            raise ma.ValidationError({"attributes": wrong})


def report_of(data: dict[str, Any]) -> Report:
    """The checked form as the domain's report."""
    return Report(
        behaviour=data["behaviour"],
        quantity=data["quantity"],
        start=data["occurred_at"],
        end=data.get("ended_at"),
        attributes=data["attributes"],
    )


class ReasonAnswer(ma.Schema):
    code = fields.String(required=True)
    text = fields.String(required=True)


class ActivityAnswer(ma.Schema):
    id = fields.String(required=True)
    source_event_id = fields.String(required=True)
    behaviour = fields.String(required=True)
    quantity = Quantity(required=True)
    unit = fields.String(required=True)
    occurred_at = Instant(required=True)
    ended_at = Instant()
    status = fields.String(
        required=True,
        validate=validate.OneOf(
            [
                "credited",
                "pending",
                "capped",
                "recorded",
                "rejected",
                "parked",
                "merged",
                "reversed",
            ]
        ),
    )
    reduction_g = Grams(required=True)
    points = fields.Integer(required=True)
    reasons = fields.List(fields.Nested(ReasonAnswer), required=True)
    evidence_class = fields.String(required=True, validate=validate.OneOf(["A", "B", "C", "D"]))
    matures_at = Instant()
    merged_into = fields.String()
    merged_from = fields.List(fields.String())
    methodology_version = fields.String(required=True)


def reasons_of(codes: Iterable[str], to: Language) -> list[dict[str, str]]:
    return [{"code": code, "text": reasons.text(code, to)} for code in codes]


def shown(activity: Activity) -> dict[str, Any]:
    """An activity as it is answered, in the reader's language."""
    seen = crediting.shown(activity)
    rules = methodology.in_force(clock.city_day(seen.start))
    answer: dict[str, Any] = {
        "id": seen.id,
        "source_event_id": seen.event_id,
        "behaviour": seen.behaviour,
        "quantity": seen.amount,
        "unit": rules.behaviours[seen.behaviour].unit,
        "occurred_at": seen.start,
        "status": seen.status,
        "reduction_g": seen.mg,
        "points": seen.points,
        "reasons": reasons_of(seen.reasons, language()),
        "evidence_class": seen.evidence,
        "methodology_version": seen.methodology or rules.version,
    }
    optional = {
        "ended_at": seen.end,
        "matures_at": seen.mature_at,
        "merged_into": seen.merged_into,
        "merged_from": list(seen.merged_from) or None,
    }
    return answer | {name: value for name, value in optional.items() if value is not None}
