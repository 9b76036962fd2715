"""Plants: readings in, validated intervals out; the operator's plants, meters and figures."""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import audit, clock
from accounting.enterprise import figures, meterdays, meters, plants, readings, validating
from accounting.enterprise.carriers import CARRIERS, UNITS
from accounting.enterprise.meterdays import MeterDay
from accounting.enterprise.meters import Flow, Kind, Meter, Shift
from accounting.enterprise.plants import Node, NodeKind
from accounting.enterprise.readings import ACCEPTED, CONFLICT, DUPLICATE, REJECTED, ROWS_MAX
from accounting.enterprise.slots import SLOT, SLOTS, Quality, start_of_slot
from api.filing import FILE, QueuedAnswer, queued
from api.idempotency import idempotent
from api.numbers import DayOrInstant, EachAlone, Flag, Instant, Quantity, Schema, Whole, plain
from api.openapi import Blueprint, refuses
from api.plain_readings import plain_body
from api.plants import MONTH, NAME, READINGS, ReadingFields, own_plant, span_of, take_readings
from api.security import OPERATOR, PLANT, READINGS_BODY_MAX, caller, door
from integrations import imports

TEXT = validate.Length(1, 200)
FEN_MAX = 10**15
STOP_MINUTES_MAX = 10_080
# The solver adds these up in doubles: a sum over a plant stays a whole number far below 2**53.
RESTART_FEN_MAX, VALUE_FEN_MAX = 10**11, 10**6
INTERVAL_DAYS_MAX = 100

blueprint = Blueprint("plants", __name__, description="Plants and their meters")


class ReadingsRequest(Schema):
    quick = staticmethod(plain_body)
    readings = EachAlone(ReadingFields, most=ROWS_MAX)


class ConflictAnswer(ma.Schema):
    index = fields.Integer(required=True)
    meter = fields.String(required=True)
    at = Instant(required=True)
    kept = Quantity(required=True, metadata={"description": "The first reading, which stays."})
    value = Quantity(required=True, metadata={"description": "The second, kept beside it."})


class RejectedAnswer(ma.Schema):
    index = fields.Integer(required=True)
    code = fields.String(required=True)


class ReadingsAnswer(ma.Schema):
    accepted = fields.Integer(required=True)
    duplicate = fields.Integer(required=True)
    conflicts = fields.List(fields.Nested(ConflictAnswer), required=True)
    rejected = fields.List(fields.Nested(RejectedAnswer), required=True)


class RangeQuery(Schema):
    begin = DayOrInstant(required=True, data_key="from")
    end = DayOrInstant(required=True, data_key="to")


class IntervalAnswer(ma.Schema):
    at = Instant(required=True)
    raw = Quantity(required=True, allow_none=True)
    validated = Quantity(required=True, allow_none=True)
    quality = fields.String(
        required=True, validate=validate.OneOf([quality.value for quality in Quality])
    )
    rule = fields.String()


class IntervalsAnswer(ma.Schema):
    items = fields.List(fields.Nested(IntervalAnswer), required=True)
    unit = fields.String(required=True)


class PlantRequest(Schema):
    name = fields.String(required=True, validate=TEXT)
    uscc = fields.String(required=True, validate=validate.Length(1, 32))
    sector = fields.String(required=True, validate=validate.Length(1, 64))


class PlantAnswer(ma.Schema):
    plant_id = fields.String(required=True)
    name = fields.String(required=True)
    uscc = fields.String(required=True)
    sector = fields.String(required=True)


class ShiftFields(Schema):
    """A scheduled shift: ISO weekdays, minutes of the city day."""

    weekdays = fields.List(
        Whole(validate=validate.Range(1, 7)), required=True, validate=validate.Length(1, 7)
    )
    start_minute = Whole(required=True, validate=validate.Range(0, 1_439))
    end_minute = Whole(required=True, validate=validate.Range(1, 1_440))


class MeterRequest(Schema):
    meter = fields.String(required=True, validate=NAME)
    carrier = fields.String(required=True, validate=validate.OneOf(sorted(CARRIERS)))
    kind = fields.String(required=True, validate=validate.OneOf([kind.value for kind in Kind]))
    unit = fields.String(required=True, validate=validate.OneOf(sorted(UNITS)))
    multiplier = Quantity(load_default=Decimal(1), above=0, maximum=1_000_000)
    node = fields.String(allow_none=True, load_default=None, validate=NAME)
    parent = fields.String(allow_none=True, load_default=None, validate=NAME)
    rated_kw = Quantity(allow_none=True, load_default=None, above=0, maximum=10_000_000)
    flow = fields.String(
        load_default=Flow.IMPORT.value, validate=validate.OneOf([flow.value for flow in Flow])
    )
    interval_minutes = Whole(load_default=15, validate=validate.OneOf([15, 30, 60]))
    modulus = Quantity(load_default=meters.MODULUS, above=0, maximum=10**12)
    shifts = fields.List(
        fields.Nested(ShiftFields), load_default=list, validate=validate.Length(max=21)
    )


class MeterAnswer(ma.Schema):
    plant_id = fields.String(required=True, attribute="plant")
    meter = fields.String(required=True)
    carrier = fields.String(required=True)
    kind = fields.String(required=True)
    unit = fields.String(required=True)
    multiplier = Quantity(required=True)
    flow = fields.String(required=True)
    node = fields.String(required=True, allow_none=True)
    parent = fields.String(required=True, allow_none=True)
    rated_kw = Quantity(required=True, allow_none=True)


class NodeRequest(Schema):
    node = fields.String(required=True, validate=NAME)
    kind = fields.String(required=True, validate=validate.OneOf([kind.value for kind in NodeKind]))
    name = fields.String(load_default="", validate=validate.Length(max=200))
    parent = fields.String(allow_none=True, load_default=None, validate=NAME)
    must_run = Flag(load_default=False)
    flexible = Flag(load_default=False)
    minimum_stop_minutes = Whole(load_default=0, validate=validate.Range(0, STOP_MINUTES_MAX))
    restart_cost_fen = Whole(load_default=0, validate=validate.Range(0, RESTART_FEN_MAX))
    value_fen_per_kwh = Whole(
        allow_none=True,
        load_default=None,
        validate=validate.Range(0, VALUE_FEN_MAX),
        metadata={"description": "Null or left out: that of the nearest node above it."},
    )


class NodeAnswer(ma.Schema):
    plant_id = fields.String(required=True, attribute="plant")
    node = fields.String(required=True)
    kind = fields.String(required=True)
    name = fields.String(required=True)
    parent = fields.String(required=True, allow_none=True)


class MonthlyFiguresRequest(Schema):
    """What a plant made and paid in a month; left out means not reported."""

    month = fields.String(required=True, validate=MONTH)
    output = Quantity(allow_none=True, load_default=None, minimum=0)
    output_unit = fields.String(allow_none=True, load_default=None, validate=validate.Length(1, 16))
    added_value_fen = Whole(
        allow_none=True, load_default=None, validate=validate.Range(-FEN_MAX, FEN_MAX)
    )
    tax_fen = Whole(allow_none=True, load_default=None, validate=validate.Range(-FEN_MAX, FEN_MAX))


class MonthlyFiguresAnswer(ma.Schema):
    plant_id = fields.String(required=True, attribute="plant")
    month = fields.String(required=True)
    revision = fields.Integer(required=True)
    output = Quantity(required=True, allow_none=True)
    output_unit = fields.String(required=True, allow_none=True)
    added_value_fen = fields.Integer(required=True, allow_none=True)
    tax_fen = fields.Integer(required=True, allow_none=True)


@blueprint.route("/v1/plants/<plant_id>/readings")
class Readings(MethodView):
    @door(PLANT, scope="readings:write", body_max=READINGS_BODY_MAX)
    @refuses("account_busy")
    @blueprint.arguments(ReadingsRequest)
    @idempotent()
    @blueprint.response(200, ReadingsAnswer)
    def post(self, wanted: dict[str, Any], plant_id: str) -> dict[str, Any]:
        """Hand over up to 10,000 readings; each has its own end

        The first reading of a slot stays; another value for it is kept beside it as a conflict.
        """
        own_plant(plant_id)
        raw = wanted["readings"]
        ends = take_readings(plant_id, raw)
        counts = readings.accepted(ends)
        return {
            "accepted": counts[ACCEPTED],
            "duplicate": counts[DUPLICATE],
            "conflicts": [
                {
                    "index": index,
                    "meter": raw[index]["meter"],
                    "at": ReadingFields().fields["at"].deserialize(raw[index]["at"]),
                    "kept": end.kept,
                    "value": raw[index]["value"],
                }
                for index, end in enumerate(ends)
                if end.outcome == CONFLICT
            ],
            "rejected": [
                {"index": index, "code": end.code}
                for index, end in enumerate(ends)
                if end.outcome == REJECTED
            ],
        }


@blueprint.route("/v1/plants/<plant_id>/readings/files")
class ReadingFiles(MethodView):
    @door(PLANT, scope="readings:write", body_max=imports.FILE_BYTES_MAX)
    @refuses("malformed_request", "unsupported_media_type", "payload_too_large")
    @blueprint.doc(requestBody=FILE)
    @idempotent(streamed=True)
    @blueprint.response(202, QueuedAnswer)
    def post(self, plant_id: str) -> tuple[dict[str, Any], int, dict[str, str]]:
        """Hand over a file of readings, NDJSON or CSV, gzip allowed

        Its job counts readings that were stored as `recorded`. What was refused,
        conflicts among it, is at the job's errors, row by row.
        """
        return queued(READINGS, own_plant(plant_id).id)


@blueprint.route("/v1/plants/<plant_id>/meters/<meter>/intervals")
class Intervals(MethodView):
    @door(PLANT, scope="plant:read")
    @refuses("account_busy")
    @blueprint.arguments(RangeQuery, location="query")
    @blueprint.response(200, IntervalsAnswer)
    def get(self, wanted: dict[str, Any], plant_id: str, meter: str) -> dict[str, Any]:
        """The quarter hours of a meter: as sent, and validated with the rule that decided

        What was sent a moment ago is validated first. Numbers are in the meter's unit, with its
        multiplier.
        """
        own_plant(plant_id)
        known = meters.get(plant_id, meter)
        begin, end = span_of(wanted["begin"], wanted["end"], INTERVAL_DAYS_MAX)
        first, last = clock.city_day(begin), clock.city_day(end - timedelta(milliseconds=1))
        validating.catch_up(plant_id, first, last, meter)
        items: list[dict[str, Any]] = []
        for day in meterdays.days(plant_id, [meter], first, last):
            items += _items(day, known, begin, end)
        return {"items": items, "unit": known.unit}


@blueprint.route("/v1/operator/plants")
class Plants(MethodView):
    @door(OPERATOR, area="partners")
    @refuses("plant_exists")
    @blueprint.arguments(PlantRequest)
    @idempotent()
    @blueprint.response(201, PlantAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Register a plant by its unified social credit code"""
        plant = plants.add_plant(wanted["name"], wanted["uscc"], wanted["sector"])
        shown = {"name": plant.name, "uscc": plant.uscc, "sector": plant.sector}
        audit.note(caller().id, "plant added", plant.id, after=shown)
        return {"plant_id": plant.id, **shown}


@blueprint.route("/v1/operator/plants/<plant_id>/meters")
class Meters(MethodView):
    @door(OPERATOR, area="partners")
    @refuses("meter_exists")
    @blueprint.arguments(MeterRequest)
    @idempotent()
    @blueprint.response(201, MeterAnswer)
    def post(self, wanted: dict[str, Any], plant_id: str) -> Meter:
        """Add a meter; it is never redefined, because its readings were read with its unit"""
        plants.get_plant(plant_id)
        shifts = tuple(
            Shift(tuple(one["weekdays"]), one["start_minute"], one["end_minute"])
            for one in wanted.pop("shifts")
        )
        kind, flow = Kind(wanted.pop("kind")), Flow(wanted.pop("flow"))
        meter = meters.add(Meter(plant=plant_id, kind=kind, flow=flow, shifts=shifts, **wanted))
        audit.note(caller().id, "meter added", f"{plant_id}/{meter.meter}")
        return meter


@blueprint.route("/v1/operator/plants/<plant_id>/nodes")
class Nodes(MethodView):
    @door(OPERATOR, area="partners")
    @refuses("node_exists")
    @blueprint.arguments(NodeRequest)
    @idempotent()
    @blueprint.response(201, NodeAnswer)
    def post(self, wanted: dict[str, Any], plant_id: str) -> Node:
        """Add a workshop, a line or a piece of equipment"""
        plants.get_plant(plant_id)
        kind = NodeKind(wanted.pop("kind"))
        node = plants.add_node(Node(plant=plant_id, kind=kind, **wanted))
        audit.note(caller().id, "node added", f"{plant_id}/{node.node}")
        return node


@blueprint.route("/v1/operator/plants/<plant_id>/figures")
class Figures(MethodView):
    @door(OPERATOR, area="partners")
    @blueprint.arguments(MonthlyFiguresRequest)
    @idempotent()
    @blueprint.response(201, MonthlyFiguresAnswer)
    def post(self, wanted: dict[str, Any], plant_id: str) -> figures.Figures:
        """Output, added value and tax of a month; other figures for it are its next revision"""
        plants.get_plant(plant_id)
        month = wanted.pop("month")
        before = figures.of_months(plant_id, month, month)
        told = figures.add(plant_id, month, **wanted)
        audit.note(
            caller().id,
            "figures reported",
            f"{plant_id}/{month}",
            before={"revision": before[-1].revision} if before else None,
            after={"revision": told.revision},
        )
        return told


def _items(day: MeterDay, meter: Meter, begin: datetime, end: datetime) -> list[dict[str, Any]]:
    per = UNITS[meter.unit][1]

    def number(amount: int | None) -> Decimal | int | None:
        return None if amount is None else plain(Decimal(amount) / per)

    midnight = start_of_slot(day.day, 0)
    items = []
    for slot in range(SLOTS):
        at = midnight + slot * SLOT
        if begin <= at < end:
            item: dict[str, Any] = {
                "at": at,
                "raw": number(day.raw[slot]),
                "validated": number(day.values[slot]),
                "quality": day.quality_of(slot).value,
            }
            if slot in day.rules:
                item["rule"] = day.rules[slot]
            items.append(item)
    return items
