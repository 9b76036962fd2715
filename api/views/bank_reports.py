"""The carbon credit report of a consenting resident, and the supervisor's copy of the reads."""

from collections.abc import Iterator
from typing import Any

import marshmallow as ma
from flask import Response, request, stream_with_context
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import audit, clock, consents
from accounting.consents import Access
from accounting.tables import CSV, csv_rows, csv_text
from api.credit_report_pdf import credit_report_pdf
from api.documents import PDF
from api.numbers import CityDay, Instant, Kilograms, Schema
from api.openapi import Blueprint, refuses
from api.problems import Invalid, NotAcceptable, language
from api.security import BANK, OPERATOR, caller, door
from api.views.bank import NoGradeAvailable, PeriodAnswer, signed
from api.views.consents import PURPOSE
from api.views.grades import CoverageAnswer, coverage
from footprint import credit_report, grade
from footprint.credit_report import Report

JSON, NDJSON = "application/json", "application/x-ndjson"
REPORT = "report"
DAYS_MAX = 366
ROWS_A_PIECE = 1_000

blueprint = Blueprint("bank_reports", __name__, description="Carbon credit reports, access export")


class ReportQuery(Schema):
    """Without a purpose the one the resident agreed to."""

    purpose = fields.String(validate=PURPOSE)


class MonthKg(ma.Schema):
    month = fields.String(required=True)
    reduction_kg = Kilograms(required=True)


class DimensionKg(ma.Schema):
    dimension = fields.String(required=True)
    counted_kg = Kilograms(required=True)


class PastGrade(ma.Schema):
    graded_on = CityDay(required=True)
    grade = fields.String(required=True)


class ReportAnswer(ma.Schema):
    """`margin_below_kg` and `coverage` only where the resident agreed to them."""

    reference = fields.String(required=True)
    purpose = fields.String(required=True)
    grade = fields.String(required=True)
    label = fields.String(required=True)
    period = fields.Nested(PeriodAnswer, required=True)
    reduction_kg = Kilograms(required=True)
    counted_kg = Kilograms(required=True)
    by_month = fields.List(fields.Nested(MonthKg), required=True)
    by_dimension = fields.List(fields.Nested(DimensionKg), required=True)
    history = fields.List(fields.Nested(PastGrade), required=True)
    margin_below_kg = Kilograms(allow_none=True)
    coverage = fields.Nested(CoverageAnswer)
    policy_version = fields.String(required=True)
    graded_on = CityDay(required=True)
    valid_until = CityDay(required=True)
    jws = fields.String(required=True)


class AccessQuery(Schema):
    """City days, both included; at most a year and a day at once."""

    from_ = CityDay(required=True, data_key="from")
    to = CityDay(required=True)
    bank_id = fields.String(validate=validate.Length(1, 64))


class AccessRow(ma.Schema):
    """A line of the export; `resident_id` is null where a reference was never this bank's."""

    id = fields.String(required=True)
    at = Instant(required=True)
    bank_id = fields.String(required=True)
    reference = fields.String(required=True)
    resident_id = fields.String(required=True, allow_none=True, attribute="resident")
    purpose = fields.String(required=True)
    what = fields.String(required=True)
    allowed = fields.Boolean(required=True)
    fields_ = fields.List(fields.String(), required=True, data_key="fields", attribute="fields")


@blueprint.route("/v1/bank/reports/<reference>")
class BankReport(MethodView):
    @door(BANK, scope="grades:read")
    @refuses("no_grade_available", "not_acceptable")
    @blueprint.arguments(ReportQuery, location="query")
    @blueprint.response(200, ReportAnswer)
    @blueprint.doc(
        responses={200: {"content": {PDF: {"schema": {"type": "string", "format": "binary"}}}}}
    )
    def get(self, wanted: dict[str, Any], reference: str) -> Any:
        """The carbon credit report behind a reference, JSON or PDF by the Accept header

        It needs the field `report` in the consent. The PDF names the JWS of the same content.
        """
        accepted = request.accept_mimetypes
        form = accepted.best_match([JSON, PDF]) if accepted else JSON
        if form is None:
            raise NotAcceptable()
        consent = consents.read(caller().id, reference, wanted.get("purpose"), REPORT)
        if consent is None:
            raise NoGradeAvailable()
        answer = _answer(credit_report.of(consent.resident), consent)
        answer["jws"] = signed(ReportAnswer(exclude=["jws"]).dump(answer))
        if form == JSON:
            return answer
        pdf = Response(credit_report_pdf(answer, language()), mimetype=PDF)
        pdf.headers["Content-Disposition"] = f'attachment; filename="report-{reference}.pdf"'
        return pdf


@blueprint.route("/v1/operator/bank-access")
class AccessExport(MethodView):
    @door(OPERATOR, area="partners")
    @refuses("not_acceptable")
    @blueprint.arguments(AccessQuery, location="query")
    @blueprint.response(200, description="A row for every read, allowed or refused")
    @blueprint.doc(
        responses={
            200: {"content": {kind: {"schema": {"type": "string"}} for kind in (CSV, NDJSON)}}
        }
    )
    def get(self, wanted: dict[str, Any]) -> Response:
        """Every read of banks, for the supervisor: CSV or NDJSON by the Accept header"""
        accepted = request.accept_mimetypes
        form = accepted.best_match([CSV, NDJSON]) if accepted else CSV
        if form is None:
            raise NotAcceptable()
        first, last = wanted["from_"], wanted["to"]
        if not 0 <= (last - first).days < DAYS_MAX:
            raise Invalid([("/to", "Must not be before `from`, nor more than a year after it.")])
        start = clock.start_of(first)
        end = clock.start_of(last.fromordinal(last.toordinal() + 1))
        audit.note(
            caller().id,
            "bank reads exported",
            wanted.get("bank_id", "all banks"),
            after={"from": first.isoformat(), "to": last.isoformat()},
        )
        rows = consents.accesses(start, end, wanted.get("bank_id"))
        lines = _csv_lines(rows) if form == CSV else _json_lines(rows)
        answer = Response(stream_with_context(lines), mimetype=form)
        name = f"bank-access-{first}-{last}.{'csv' if form == CSV else 'ndjson'}"
        answer.headers["Content-Disposition"] = f'attachment; filename="{name}"'
        return answer


def _answer(report: Report, consent: consents.Consent) -> dict[str, Any]:
    snapshot = report.snapshot
    standing, policy = snapshot.standing, grade.policy_named(snapshot.policy)
    answer: dict[str, Any] = {
        "reference": consent.reference,
        "purpose": consent.purpose,
        "grade": standing.grade,
        "label": grade.label(policy, standing.grade)[language()],
        "period": {"from_month": snapshot.first_month, "to_month": snapshot.last_month},
        "reduction_kg": standing.reduction_mg,
        "counted_kg": standing.counted_mg,
        "by_month": [{"month": month, "reduction_kg": mg} for month, mg in report.by_month.items()],
        "by_dimension": [
            {"dimension": name, "counted_kg": mg} for name, mg in report.by_dimension.items()
        ],
        "history": [
            {"graded_on": clock.city_day(one.graded_at), "grade": one.standing.grade}
            for one in report.history
        ],
        "policy_version": snapshot.policy,
        "graded_on": clock.city_day(snapshot.graded_at),
        "valid_until": snapshot.valid_until,
    }
    if "margin" in consent.fields:
        answer["margin_below_kg"] = standing.margin_below_mg
    if "coverage" in consent.fields:
        answer["coverage"] = coverage(snapshot)
    return answer


def _json_lines(rows: Iterator[Access]) -> Iterator[str]:
    schema = AccessRow()
    for row in rows:
        yield schema.dumps(row, ensure_ascii=False) + "\n"


def _csv_lines(rows: Iterator[Access]) -> Iterator[str]:
    header = (
        "id", "at", "bank_id", "reference", "resident_id", "purpose", "what", "allowed", "fields",
    )  # fmt: skip
    yield csv_text(header, ())
    piece: list[tuple[Any, ...]] = []
    for row in rows:
        piece.append(
            (
                row.id, row.at.isoformat(), row.bank_id, row.reference, row.resident, row.purpose,
                row.what, "yes" if row.allowed else "no", " ".join(row.fields),
            )
        )  # fmt: skip
        if len(piece) == ROWS_A_PIECE:
            yield csv_rows(piece)
            piece.clear()
    if piece:
        yield csv_rows(piece)
