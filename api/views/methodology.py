"""Versions of the methodology: look at them, preview a draft, publish it, see what it restated."""

from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import audit, clock, jobs
from accounting.errors import NotFound, ValidationFailed
from accounting.jobs import Job
from api import tasks
from api.idempotency import idempotent
from api.numbers import Grams, Whole
from api.openapi import Blueprint
from api.reports import MONTH
from api.security import OPERATOR, caller, door
from api.versions import (
    GRADES_MOVED,
    DraftOnSampleOrWhole,
    QueuedPreviewAnswer,
    Sample,
    queued,
    version_doors,
)
from footprint import preview, versions
from footprint.preview import Report
from points import restating, terms, valuing

blueprint = Blueprint("methodology", __name__, description="Versions of the methodology")


class SampleRequest(Sample):
    size = Whole(load_default=200, validate=validate.Range(1, preview.SAMPLE_MAX))


class PreviewRequest(DraftOnSampleOrWhole):
    """Without `whole` on a sample; the same seed picks the same residents."""

    month = fields.String(
        validate=MONTH, metadata={"description": "The city month; the last full one by default."}
    )
    sample = fields.Nested(SampleRequest)


class ExtremeAnswer(ma.Schema):
    resident_id = fields.String(required=True)
    reduction_g = Grams(required=True, attribute="mg")


class SideAnswer(ma.Schema):
    residents = fields.Integer(required=True)
    reduction_g = Grams(required=True, attribute="mg")
    median_g = Grams(required=True, attribute="median_mg")
    extremes = fields.List(fields.Nested(ExtremeAnswer), required=True)


class BehaviourChangeAnswer(ma.Schema):
    behaviour = fields.String(required=True)
    residents = fields.Integer(required=True)
    reduction_g = Grams(required=True, attribute="mg")
    points = fields.Integer(required=True)


class FunderChangeAnswer(ma.Schema):
    funder_id = fields.String(required=True)
    points = fields.Integer(required=True)
    fen = fields.Integer(required=True)


class PreviewReportAnswer(ma.Schema):
    """Differences: what the draft would give less what was given."""

    methodology_version = fields.String(required=True)
    compared_with = fields.List(fields.String(), required=True)
    month = fields.String(required=True)
    residents = fields.Integer(required=True, metadata={"description": "Looked at."})
    active = fields.Integer(required=True, metadata={"description": "Who did anything then."})
    gain = fields.Nested(SideAnswer, required=True)
    lose = fields.Nested(SideAnswer, required=True)
    unchanged = fields.Integer(required=True)
    reduction_g = Grams(required=True, attribute="mg")
    by_behaviour = fields.List(fields.Nested(BehaviourChangeAnswer), required=True)
    points = fields.Integer(required=True)
    by_funder = fields.List(fields.Nested(FunderChangeAnswer), required=True)
    grades = GRADES_MOVED
    grades_changed = fields.Integer(required=True)


class PreviewAnswer(ma.Schema):
    job_id = fields.String(required=True)
    state = fields.String(required=True)
    report = fields.Nested(PreviewReportAnswer, required=True, allow_none=True)


class RestatementAnswer(ma.Schema):
    job_id = fields.String(required=True, attribute="run.id")
    state = fields.String(required=True)
    methodology = fields.String(required=True, attribute="run.methodology")
    month = fields.String(required=True, attribute="run.month")
    reason = fields.String(required=True, attribute="run.reason")
    asked_by = fields.String(required=True, attribute="run.asked_by")
    approved_by = fields.String(required=True, attribute="run.approved_by", allow_none=True)
    residents = fields.Integer(required=True)
    restated = fields.Integer(required=True)
    reduction_more_g = Grams(required=True, attribute="mg_more")
    reduction_less_g = Grams(required=True, attribute="mg_less")
    points_given = fields.Integer(required=True)
    points_taken = fields.Integer(required=True)
    points_waived = fields.Integer(required=True)


version_doors(blueprint, "/v1/operator/methodology", versions.register)


@blueprint.route("/v1/operator/methodology/preview")
class Previewed(MethodView):
    @door(OPERATOR, area="methodology")
    @blueprint.arguments(PreviewRequest)
    @idempotent()
    @blueprint.response(200, PreviewReportAnswer)
    @blueprint.alt_response(
        202, schema=QueuedPreviewAnswer, description="With `whole`: a job", success=True
    )
    def post(self, wanted: dict[str, Any]) -> Any:
        """Who gains and who loses by a draft, and whose grade changes; changes nothing

        On a sample the report is the answer. With `whole` it is the result of a job.
        """
        draft = versions.register.checked(wanted["draft"])
        month = month_of_preview(wanted.get("month"))
        if wanted["whole"]:
            return queued(queue_preview(wanted["draft"], month))
        sample = wanted.get("sample") or SampleRequest().load({})
        found = preview.of_sample(
            draft, month, restating.worth, seed=sample["seed"], size=sample["size"]
        )
        return _report(found)


@blueprint.route("/v1/operator/methodology/previews/<job_id>")
class OnePreview(MethodView):
    @door(OPERATOR, area="methodology")
    @blueprint.response(200, PreviewAnswer)
    def get(self, job_id: str) -> dict[str, Any]:
        """The report of a preview of the whole city; null until its job is done"""
        job = _job(job_id, preview.KIND)
        found = preview.result(job_id)
        report = _report(found) if found is not None and job.state == jobs.DONE else None
        return {"job_id": job.id, "state": job.state, "report": report}


@blueprint.route("/v1/operator/methodology/restatements/<job_id>")
class OneRestatement(MethodView):
    @door(OPERATOR, area="methodology")
    @blueprint.response(200, RestatementAnswer)
    def get(self, job_id: str) -> dict[str, Any]:
        """What a restatement has changed so far, who asked for it and who approved"""
        run = restating.get(job_id)
        state = "needs_approval" if run.approved_by is None else _job(job_id, restating.KIND).state
        return {**restating.totals(job_id), "run": run, "state": state}


def month_of_preview(wanted: str | None) -> str:
    """The city month to preview, the last full one by default; not one that has not begun."""
    now = clock.city_month(clock.now())
    if wanted is not None and wanted > now:
        raise ValidationFailed("/month", "Has not begun yet.", "该月份尚未开始。")
    return wanted or clock.add_months(now, -1)


def queue_preview(text: str, month: str) -> Job:
    job = preview.queue(caller().id, text, month)
    audit.note(caller().id, "methodology previewed", job.id, after={"month": month})
    tasks.nudge(tasks.run_job, job.id)
    return job


def _job(job_id: str, kind: str) -> Job:
    job = jobs.get(job_id)
    if job is None or job.kind != kind:
        raise NotFound()
    return job


def _report(found: Report) -> dict[str, Any]:
    now = terms.current()
    return {
        **found,
        "points": sum(one["points"] for one in found["by_payer"]),
        "by_funder": [
            {
                "funder_id": one["payer"],
                "points": one["points"],
                "fen": valuing.fen(one["points"], now.face_value(one["payer"])),
            }
            for one in found["by_payer"]
        ],
    }
