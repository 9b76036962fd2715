"""The carbon credit report of a plant's year, JSON or PDF."""

import hashlib
from decimal import Decimal
from typing import Any

import marshmallow as ma
import simplejson
from flask import Response, request
from flask.views import MethodView
from marshmallow import fields

from accounting.enterprise import plant_reports, sectors
from accounting.enterprise.plant_reports import PlantReport
from accounting.enterprise.plants import Plant
from api.documents import PDF
from api.numbers import CityDay, Digits, Instant, Kilograms, Quantity, Schema
from api.openapi import Blueprint, refuses
from api.plant_report_pdf import plant_report_pdf
from api.plants import own_plant
from api.problems import NotAcceptable, language
from api.security import PLANT, door
from api.views.bank import signed
from api.views.budgets import YEAR, BudgetAnswer, this_year
from api.views.budgets import shown as shown_budget
from api.views.curtailment import Kilowatts
from api.views.inventory import CarrierEmissions, Known
from api.views.inventory import carrier as shown_carrier
from api.views.inventory import known as shown_known
from api.views.plant_labels import LabelAnswer
from api.views.plant_labels import shown as shown_label

JSON = "application/json"
WH_PER_KWH = 1_000

blueprint = Blueprint("plant_reports", __name__, description="Carbon credit reports of plants")


class PlantReportQuery(Schema):
    """The city's year; without one the present."""

    year = Digits(validate=YEAR)


class PlantReportPeriod(ma.Schema):
    first = CityDay(required=True, data_key="from")
    last = CityDay(required=True, data_key="to")


class ReportedPlant(ma.Schema):
    plant_id = fields.String(required=True)
    name = fields.String(required=True)
    uscc = fields.String(required=True)
    sector = fields.String(required=True)
    sector_name = fields.String(required=True)
    region = fields.String(required=True)


class PlantReportMonth(Known):
    month = fields.String(required=True)


class DeductionAnswer(ma.Schema):
    """What the boundary takes off what was metered: own generation, power given away."""

    kind = fields.String(required=True)
    kwh = Quantity(required=True)
    co2e_kg = Kilograms(required=True)


class LoadPeak(ma.Schema):
    at = Instant(required=True)
    kw = Kilowatts(required=True)


class LoadCurve(ma.Schema):
    """Mean power of the 96 quarter hours of a day; null where no day tells."""

    first = CityDay(required=True, data_key="from")
    last = CityDay(required=True, data_key="to")
    workdays_kw = fields.List(Kilowatts(allow_none=True), required=True)
    weekends_kw = fields.List(Kilowatts(allow_none=True), required=True)
    peak = fields.Nested(LoadPeak, required=True, allow_none=True)


class PlantReportAnswer(Known):
    """`sha256` is of all the rest but `report_id`, `issued_at` and `jws`: same data, same digest.

    It is taken over JSON in UTF-8 with keys in order, without blanks, numbers as they stand.

    `jws` is a signature over the whole answer, which verifies offline with the published keys.
    """

    report_id = fields.String(required=True)
    revision = fields.Integer(required=True)
    issued_at = Instant(required=True)
    year = fields.Integer(required=True)
    period = fields.Nested(PlantReportPeriod, required=True)
    plant = fields.Nested(ReportedPlant, required=True)
    scope1_kg = Kilograms(required=True, allow_none=True)
    scope2_kg = Kilograms(required=True, allow_none=True)
    by_carrier = fields.Dict(
        keys=fields.String(), values=fields.Nested(CarrierEmissions), required=True
    )
    by_month = fields.List(fields.Nested(PlantReportMonth), required=True)
    generated_kwh = Quantity(required=True)
    deductions = fields.List(fields.Nested(DeductionAnswer), required=True)
    label = fields.Nested(LabelAnswer, required=True)
    budget = fields.Nested(BudgetAnswer, required=True)
    load_curve = fields.Nested(LoadCurve, required=True)
    factor_set = fields.String(required=True)
    provisional = fields.Boolean(required=True)
    sha256 = fields.String(required=True)
    jws = fields.String(required=True)


@blueprint.route("/v1/plants/<plant_id>/report")
class Report(MethodView):
    @door(PLANT, scope="plant:read")
    @refuses("account_busy", "missing_factor", "not_acceptable")
    @blueprint.arguments(PlantReportQuery, location="query")
    @blueprint.response(200, PlantReportAnswer)
    @blueprint.doc(
        responses={200: {"content": {PDF: {"schema": {"type": "string", "format": "binary"}}}}}
    )
    def get(self, wanted: dict[str, Any], plant_id: str) -> Any:
        """The carbon credit report of a year, JSON or PDF by the Accept header

        Emissions by source, deductions, the label and what it rests on, the budget, the load curve,
        and how well all of it is known.
        """
        return answered(own_plant(plant_id), wanted.get("year"))


def answered(plant: Plant, year: int | None) -> Any:
    """The report as its reader accepts it. Raises `NotAcceptable`."""
    accepted = request.accept_mimetypes
    form = accepted.best_match([JSON, PDF]) if accepted else JSON
    if form is None:
        raise NotAcceptable()
    report = plant_reports.of_year(plant, year or this_year())
    answer = _answer(report)
    if form == JSON:
        return answer
    pdf = Response(plant_report_pdf(report, answer, language()), mimetype=PDF)
    name = f"carbon-report-{plant.uscc}-{report.year}.pdf"
    pdf.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return pdf


def canonical(content: Any) -> str:
    """JSON with keys in order, no blanks, numbers as answered: who has the answer can repeat it."""
    return simplejson.dumps(
        content, use_decimal=True, sort_keys=True, ensure_ascii=False, separators=(",", ":")
    )


def _answer(report: PlantReport) -> dict[str, Any]:
    content = _content(report)
    unsigned = PlantReportAnswer(exclude=["report_id", "issued_at", "sha256", "jws"])
    digest = hashlib.sha256(canonical(unsigned.dump(content)).encode()).hexdigest()
    content |= {
        "report_id": f"{report.plant.id}-{report.year}-{digest[:12]}",
        "issued_at": report.made_at,
        "sha256": digest,
    }
    content["jws"] = signed(PlantReportAnswer(exclude=["jws"]).dump(content))
    return content


def _content(report: PlantReport) -> dict[str, Any]:
    plant, found, total = report.plant, report.inventory, report.inventory.total
    profile, curve = sectors.profile_of(plant.sector), report.curve
    return {
        **shown_known(total),
        "revision": found.revision,
        "year": report.year,
        "period": {"first": report.last.replace(month=1, day=1), "last": report.last},
        "plant": {
            "plant_id": plant.id,
            "name": plant.name,
            "uscc": plant.uscc,
            "sector": plant.sector,
            "sector_name": profile.en if language() == "en" else profile.zh,
            "region": plant.region,
        },
        "scope1_kg": total.scope_mg(1) if total.known else None,
        "scope2_kg": total.scope_mg(2) if total.known else None,
        "by_carrier": {
            name: shown_carrier(name, one) for name, one in sorted(total.by_carrier.items())
        },
        "by_month": [{"month": month, **shown_known(one)} for month, one in found.series],
        "generated_kwh": Decimal(report.generated_wh) / WH_PER_KWH,
        "deductions": [
            {
                "kind": one.kind,
                "kwh": Decimal(one.energy_wh) / WH_PER_KWH,
                "co2e_kg": one.co2e_mg,
            }
            for one in report.deductions
        ],
        "label": shown_label(report.label),
        "budget": shown_budget(report.standing),
        "load_curve": {
            "first": curve.first,
            "last": curve.last,
            "workdays_kw": curve.workdays,
            "weekends_kw": curve.weekends,
            "peak": dict(zip(("at", "kw"), curve.peak, strict=True)) if curve.peak else None,
        },
        "factor_set": found.factor_set,
        "provisional": found.provisional or report.label.provisional,
    }
