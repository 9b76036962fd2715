"""The colour label of a plant; the benchmarks it is held against, and vetoes."""

from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import audit
from accounting.enterprise import figures, label_rules, label_vetoes, labels, plants
from accounting.enterprise.figures import Benchmark
from accounting.enterprise.label_rules import Doubt, Indicator, Label, Reason
from accounting.enterprise.label_vetoes import Kind as VetoKind
from accounting.enterprise.labels import PlantLabel
from accounting.errors import ValidationFailed
from api.idempotency import business_key, idempotent
from api.numbers import Digits, Instant, Quantity, Schema, Whole
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, newest, page_of
from api.plants import own_plant
from api.problems import language
from api.security import OPERATOR, PLANT, caller, door

YEARS = validate.Range(2000, 2100)
SECTOR = validate.Length(1, 64)
TEXT = validate.Length(1, 500)
INTENSITY_MAX = 10**12
LABELS = validate.OneOf([label.value for label in Label])

blueprint = Blueprint("plant_labels", __name__, description="Colour labels of plants")


class LabelQuery(Schema):
    """Without `year` a preview of the twelve months that are over."""

    year = Digits(validate=YEARS)


class IndicatorAnswer(ma.Schema):
    """`intensity` and `benchmark` are grams of CO2e per `unit`, `k` is one over the other."""

    name = fields.String(required=True)
    unit = fields.String(required=True)
    intensity = Quantity(required=True, allow_none=True)
    benchmark = Quantity(required=True, allow_none=True)
    k = Quantity(required=True, allow_none=True)
    label = fields.String(required=True, validate=LABELS)
    peers = fields.Integer(
        required=True,
        metadata={"description": "Plants compared with, itself among them, where none is given."},
    )
    reason = fields.String(
        required=True, allow_none=True, metadata={"enum": [*(one.value for one in Reason), None]}
    )
    explanation = fields.String(required=True)


class IntensityChangeAnswer(ma.Schema):
    name = fields.String(required=True)
    percent = Quantity(required=True)


class TrendAnswer(ma.Schema):
    """Against the same months of the year before."""

    direction = fields.String(
        required=True,
        allow_none=True,
        metadata={"enum": ["improving", "steady", "worsening", None]},
    )
    changes = fields.List(fields.Nested(IntensityChangeAnswer), required=True)


class BenchmarkAnswer(ma.Schema):
    """Average intensities in grams of CO2e per unit of the sector's denominators."""

    sector = fields.String(required=True)
    year = fields.Integer(required=True)
    version = fields.Integer(required=True)
    product = Quantity(required=True, allow_none=True)
    added_value = Quantity(required=True, allow_none=True)
    tax = Quantity(required=True, allow_none=True)
    source = fields.String(required=True)


class LabelAnswer(ma.Schema):
    label = fields.String(required=True, validate=LABELS)
    name = fields.String(required=True, metadata={"description": "The label in words."})
    indicators = fields.List(fields.Nested(IndicatorAnswer), required=True)
    provisional = fields.Boolean(required=True)
    provisional_for = fields.List(
        fields.String(validate=validate.OneOf([one.value for one in Doubt])), required=True
    )
    trend = fields.Nested(TrendAnswer, required=True, allow_none=True)
    reason = fields.String(
        required=True, allow_none=True, metadata={"enum": [*(one.value for one in Reason), None]}
    )
    text = fields.String(
        required=True, allow_none=True, metadata={"description": "The reason in words."}
    )
    single_indicator = fields.Boolean(required=True)
    year = fields.Integer(required=True)
    first_month = fields.String(required=True, allow_none=True)
    last_month = fields.String(required=True, allow_none=True)
    benchmark = fields.Nested(BenchmarkAnswer, required=True, allow_none=True)
    completeness = Quantity(required=True)
    estimated_share = Quantity(required=True)


class BenchmarkRequest(Schema):
    """Average intensities in grams of CO2e: per tonne (or the sector's unit) and per fen."""

    sector = fields.String(required=True, validate=SECTOR)
    year = Whole(required=True, validate=YEARS)
    product = Quantity(allow_none=True, load_default=None, above=0, maximum=INTENSITY_MAX)
    added_value = Quantity(allow_none=True, load_default=None, above=0, maximum=INTENSITY_MAX)
    tax = Quantity(allow_none=True, load_default=None, above=0, maximum=INTENSITY_MAX)
    source = fields.String(required=True, validate=TEXT)
    reason = fields.String(allow_none=True, load_default=None, validate=TEXT)


class BenchmarkQuery(PageQuery):
    sector = fields.String(required=True, validate=SECTOR)
    year = Digits(required=True, validate=YEARS)


class VetoRequest(Schema):
    year = Whole(required=True, validate=YEARS)
    kind = fields.String(required=True, validate=validate.OneOf([one.value for one in VetoKind]))
    evidence = fields.String(required=True, validate=TEXT)


class LiftRequest(Schema):
    reason = fields.String(required=True, validate=TEXT)


class VetoAnswer(ma.Schema):
    id = fields.String(required=True)
    plant_id = fields.String(required=True, attribute="plant")
    year = fields.Integer(required=True)
    kind = fields.String(required=True)
    evidence = fields.String(required=True)
    by = fields.String(required=True)
    at = Instant(required=True)
    lifted_by = fields.String(required=True, allow_none=True)
    lifted_at = Instant(required=True, allow_none=True)


@blueprint.route("/v1/plants/<plant_id>/label")
class PlantLabels(MethodView):
    @door(PLANT, scope="plant:read")
    @refuses("missing_factor", "account_busy")
    @blueprint.arguments(LabelQuery, location="query")
    @blueprint.response(200, LabelAnswer)
    def get(self, wanted: dict[str, Any], plant_id: str) -> dict[str, Any]:
        """The colour label of a year, with what each indicator rests on; unrated with the reason"""
        plant = own_plant(plant_id)
        year = wanted.get("year")
        return shown(labels.rolling(plant) if year is None else labels.of_year(plant, year))


@blueprint.route("/v1/operator/benchmarks")
class Benchmarks(MethodView):
    @door(OPERATOR, area="methodology")
    @blueprint.arguments(BenchmarkRequest)
    @idempotent()
    @blueprint.response(201, BenchmarkAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Averages of a sector and year; others for it are its next version, the old ones stay"""
        intensities = {
            name: wanted[name]
            for name in ("product", "added_value", "tax")
            if wanted[name] is not None
        }
        if not intensities:
            raise ValidationFailed("/product", "Give at least one.", "至少填写一项。")
        before = figures.benchmark(wanted["sector"], wanted["year"])
        told = figures.add_benchmark(
            wanted["sector"], wanted["year"], intensities, wanted["source"]
        )
        audit.note(
            _who(),
            "benchmark published",
            f"{told.sector}/{told.year}",
            reason=wanted["reason"],
            before=None if before is None else _noted(before),
            after=_noted(told),
        )
        return _benchmark(told)

    @door(OPERATOR, area="methodology")
    @blueprint.arguments(BenchmarkQuery, location="query")
    @blueprint.response(200, page_of(BenchmarkAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """All versions for a sector and year, newest first"""

        def find(before: int | None, limit: int) -> list[Benchmark]:
            sector, year = wanted["sector"], wanted["year"]
            return figures.benchmark_versions(sector, year, before=before, limit=limit)

        return newest(wanted, find, _benchmark, by=lambda one: one.version)


@blueprint.route("/v1/operator/plants/<plant_id>/label-vetoes")
class Vetoes(MethodView):
    @door(OPERATOR, area="partners")
    @blueprint.arguments(VetoRequest)
    @idempotent()
    @blueprint.response(201, VetoAnswer)
    def post(self, wanted: dict[str, Any], plant_id: str) -> label_vetoes.Veto:
        """Take a plant's label of a year away: proven data fraud, or a major penalty"""
        plants.get_plant(plant_id)
        by, kind, evidence = _who(), VetoKind(wanted["kind"]), wanted["evidence"]
        veto = label_vetoes.add(plant_id, wanted["year"], kind, evidence, by, business_key())
        after = {"plant": plant_id, "year": veto.year, "kind": veto.kind.value}
        audit.note(by, "label veto", veto.id, reason=evidence, after=after, once=veto.id)
        return veto

    @door(OPERATOR, area="partners")
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(VetoAnswer))
    def get(self, wanted: dict[str, Any], plant_id: str) -> dict[str, Any]:
        """Vetoes on a plant, lifted ones too, newest first"""
        plants.get_plant(plant_id)

        def find(before: str | None, limit: int) -> list[label_vetoes.Veto]:
            return label_vetoes.listed(plant_id, before=before, limit=limit)

        return newest(wanted, find)


@blueprint.route("/v1/operator/plants/<plant_id>/label-vetoes/<veto_id>/lift")
class LiftedVeto(MethodView):
    @door(OPERATOR, area="partners")
    @blueprint.arguments(LiftRequest)
    @idempotent()
    @blueprint.response(200, VetoAnswer)
    def post(self, wanted: dict[str, Any], plant_id: str, veto_id: str) -> label_vetoes.Veto:
        """Lift a veto; who did it first stays"""
        plants.get_plant(plant_id)
        by, reason = _who(), wanted["reason"]
        veto = label_vetoes.lift(plant_id, veto_id, by)
        after, once = {"lifted_by": veto.lifted_by}, f"{veto.id}:lifted"
        audit.note(by, "label veto lifted", veto.id, reason=reason, after=after, once=once)
        return veto


def _who() -> str:
    return caller().client_id or caller().id


def shown(made: PlantLabel) -> dict[str, Any]:
    """A label as it is answered, in the reader's language."""
    return {
        "label": made.label.value,
        "name": label_rules.NAMES[made.label][language()],
        "indicators": [_indicator(one) for one in made.indicators],
        "provisional": made.provisional,
        "provisional_for": [one.value for one in made.doubts],
        "trend": None
        if made.trend is None
        else {
            "direction": made.trend.direction,
            "changes": [
                {"name": name, "percent": label_rules.shown(share * 100)}
                for name, share in made.trend.changes
            ],
        },
        "reason": made.reason,
        "text": label_rules.reason_text(made.reason, language()) if made.reason else None,
        "single_indicator": made.single,
        "year": made.year,
        "first_month": made.months[0] if made.months else None,
        "last_month": made.months[-1] if made.months else None,
        "benchmark": _benchmark(made.benchmark) if made.benchmark else None,
        "completeness": made.completeness,
        "estimated_share": made.estimated_share,
    }


def _indicator(one: Indicator) -> dict[str, Any]:
    return {
        "name": one.name,
        "unit": one.unit,
        "intensity": label_rules.shown(one.intensity),
        "benchmark": one.benchmark,
        "k": label_rules.shown(one.k),
        "label": one.label.value,
        "peers": one.peers,
        "reason": one.reason,
        "explanation": label_rules.explained(one, language()),
    }


def _benchmark(one: Benchmark) -> dict[str, Any]:
    told = {name: one.intensities.get(name) for name in ("product", "added_value", "tax")}
    return {
        "sector": one.sector,
        "year": one.year,
        "version": one.version,
        "source": one.source,
        **told,
    }


def _noted(one: Benchmark) -> dict[str, Any]:
    return {"version": one.version} | {name: str(k) for name, k in one.intensities.items()}
