"""Versions of the methodology: look at them, preview a draft, publish it, see what it restated."""

from datetime import date
from typing import Any

import marshmallow as ma
from flask import current_app
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import audit, clock, jobs
from accounting.errors import NotFound, ValidationFailed
from accounting.jobs import Job
from api import tasks
from api.idempotency import idempotent
from api.numbers import CityDay, Flag, Grams, Instant, Schema, Whole
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, page, page_of, place
from api.reports import MONTH
from api.security import OPERATOR, caller, door
from footprint import methodology, preview, versions
from footprint.preview import Report
from footprint.versions import SHIPPED, Version
from points import restating, terms, valuing

TEXT_CHARS_MAX = 200_000
SEED_MAX = 2**31 - 1
DRAFT = fields.String(
    required=True,
    validate=validate.Length(1, TEXT_CHARS_MAX),
    metadata={"description": "The whole methodology as TOML, as `versions/{version}` shows it."},
)

blueprint = Blueprint("methodology", __name__, description="Versions of the methodology")


class SampleRequest(Schema):
    size = Whole(load_default=200, validate=validate.Range(1, preview.SAMPLE_MAX))
    seed = Whole(load_default=1, validate=validate.Range(0, SEED_MAX))


class PreviewRequest(Schema):
    """Without `whole` on a sample; the same seed picks the same residents."""

    draft = DRAFT
    month = fields.String(
        validate=MONTH, metadata={"description": "The city month; the last full one by default."}
    )
    sample = fields.Nested(SampleRequest)
    whole = Flag(load_default=False)

    @ma.validates_schema(skip_on_field_errors=True)
    def one_of_two(self, data: dict[str, Any], **_: Any) -> None:
        if data["whole"] and "sample" in data:
            raise ma.ValidationError("Send either sample or whole.", "whole")


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
    grades = fields.Dict(
        keys=fields.String(),
        values=fields.Dict(keys=fields.String(), values=fields.Integer()),
        required=True,
        metadata={"description": "Residents by grade now, then by grade under the draft."},
    )
    grades_changed = fields.Integer(required=True)


class QueuedPreviewAnswer(ma.Schema):
    job_id = fields.String(required=True)


class PreviewAnswer(ma.Schema):
    job_id = fields.String(required=True)
    state = fields.String(required=True)
    report = fields.Nested(PreviewReportAnswer, required=True, allow_none=True)


class PublishRequest(Schema):
    draft = DRAFT
    valid_from = CityDay(required=True)


class PublishedAnswer(ma.Schema):
    version = fields.String(required=True)
    state = fields.String(required=True, validate=validate.OneOf(["draft", "published"]))
    needs_approval = fields.Boolean(required=True)
    valid_from = CityDay(required=True)


class VersionAnswer(PublishedAnswer):
    in_force = fields.Boolean(required=True)
    shipped = fields.Boolean(required=True)
    drafted_by = fields.String(required=True, allow_none=True)
    drafted_at = Instant(required=True, allow_none=True)
    approved_by = fields.String(required=True, allow_none=True)
    published_at = Instant(required=True, allow_none=True)


class VersionTextAnswer(VersionAnswer):
    text = fields.String(required=True)


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


@blueprint.route("/v1/operator/methodology")
class Versions(MethodView):
    @door(OPERATOR, area="methodology")
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(VersionAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Every version, drafts too, the last to be in force first"""
        at = place(wanted)
        found = [one for one in versions.listed() if at is None or _place_of(one) < at]
        answer = page(found, wanted, _place_of)
        return answer | {"items": [_shown(one) for one in answer["items"]]}


@blueprint.route("/v1/operator/methodology/versions/<version>")
class OneVersion(MethodView):
    @door(OPERATOR, area="methodology")
    @blueprint.response(200, VersionTextAnswer)
    def get(self, version: str) -> dict[str, Any]:
        """One version with its text, to begin a draft from"""
        found = versions.get(version)
        return {**_shown(found), "text": found.text}


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
        draft = versions.checked(wanted["draft"])
        month = month_of_preview(wanted.get("month"))
        if wanted["whole"]:
            job = queue_preview(wanted["draft"], month)
            # The schema of the answer depends on the status, so this one is dumped here.
            return current_app.json.response({"job_id": job.id}), 202, location_of(job.id)
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


@blueprint.route("/v1/operator/methodology/publish")
class Published(MethodView):
    @door(OPERATOR, area="methodology")
    @refuses("version_exists", "first_day_taken", "approved_too_late")
    @blueprint.arguments(PublishRequest)
    @idempotent()
    @blueprint.response(201, PublishedAnswer)
    def post(self, wanted: dict[str, Any]) -> Version:
        """Draft a version for a day to come; another operator must approve it

        Activities of earlier days keep their version.
        """
        return versions.publish(
            wanted["draft"], wanted["valid_from"], caller().id, alone=one_is_enough()
        )


@blueprint.route("/v1/operator/methodology/<version>/approve")
class ApprovedVersion(MethodView):
    @door(OPERATOR, area="methodology")
    @refuses("second_operator_needed", "first_day_taken", "approved_too_late", "validation_failed")
    @idempotent()
    @blueprint.response(200, VersionAnswer)
    def post(self, version: str) -> dict[str, Any]:
        """Publish another operator's draft"""
        return _shown(versions.approve(version, caller().id, alone=one_is_enough()))


@blueprint.route("/v1/operator/methodology/restatements/<job_id>")
class OneRestatement(MethodView):
    @door(OPERATOR, area="methodology")
    @blueprint.response(200, RestatementAnswer)
    def get(self, job_id: str) -> dict[str, Any]:
        """What a restatement has changed so far, who asked for it and who approved"""
        run = restating.get(job_id)
        state = "needs_approval" if run.approved_by is None else _job(job_id, restating.KIND).state
        return {**restating.totals(job_id), "run": run, "state": state}


def one_is_enough() -> bool:
    """Whether an operator may approve alone: in the demo only."""
    demo: bool = current_app.extensions["config"].demo
    return demo


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


def location_of(job_id: str) -> dict[str, str]:
    return {"Location": f"/v1/jobs/{job_id}"}


def _job(job_id: str, kind: str) -> Job:
    job = jobs.get(job_id)
    if job is None or job.kind != kind:
        raise NotFound()
    return job


def _place_of(version: Version) -> tuple[str, str]:
    return version.valid_from.isoformat(), version.version


def _shown(version: Version) -> dict[str, Any]:
    today: date = clock.city_day(clock.now())
    return {
        "version": version.version,
        "state": versions.PUBLISHED if version.state == SHIPPED else version.state,
        "shipped": version.state == SHIPPED,
        "needs_approval": version.needs_approval,
        "valid_from": version.valid_from,
        "in_force": methodology.in_force(today).version == version.version,
        "drafted_by": version.drafted_by,
        "drafted_at": version.drafted_at,
        "approved_by": version.approved_by,
        "published_at": version.published_at,
    }


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
