"""Versions of the grade policy: preview a draft, publish it with a second operator."""

from typing import Any

import marshmallow as ma
from flask import current_app
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import audit, jobs
from accounting.errors import NotFound
from api import tasks
from api.idempotency import idempotent
from api.numbers import CityDay, Flag, Schema, Whole
from api.openapi import Blueprint, refuses
from api.security import OPERATOR, caller, door
from api.views.methodology import (
    SEED_MAX,
    TEXT_CHARS_MAX,
    PublishedAnswer,
    QueuedPreviewAnswer,
    location_of,
    one_is_enough,
)
from footprint import policy_preview, policy_versions
from footprint.versions import Version

DRAFT = fields.String(
    required=True,
    validate=validate.Length(1, TEXT_CHARS_MAX),
    metadata={"description": "The whole policy as TOML, like those in footprint/policies/."},
)

blueprint = Blueprint("grade_policies", __name__, description="Versions of the grade policy")


class GradeSampleRequest(Schema):
    size = Whole(load_default=1_000, validate=validate.Range(1, policy_preview.SAMPLE_MAX))
    seed = Whole(load_default=1, validate=validate.Range(0, SEED_MAX))


class GradePreviewRequest(Schema):
    """Without `whole` on a sample; the same seed picks the same residents."""

    draft = DRAFT
    sample = fields.Nested(GradeSampleRequest)
    whole = Flag(load_default=False)

    @ma.validates_schema(skip_on_field_errors=True)
    def one_of_two(self, data: dict[str, Any], **_: Any) -> None:
        if data["whole"] and "sample" in data:
            raise ma.ValidationError("Send either sample or whole.", "whole")


class GradePreviewReport(ma.Schema):
    policy_version = fields.String(required=True)
    compared_with = fields.String(required=True)
    residents = fields.Integer(required=True)
    grades = fields.Dict(
        keys=fields.String(),
        values=fields.Dict(keys=fields.String(), values=fields.Integer()),
        required=True,
        metadata={"description": "Residents by grade now, then by grade under the draft."},
    )
    grades_changed = fields.Integer(required=True)
    up = fields.Integer(required=True)
    down = fields.Integer(required=True)


class GradePreviewAnswer(ma.Schema):
    job_id = fields.String(required=True)
    state = fields.String(required=True)
    report = fields.Nested(GradePreviewReport, required=True)


class GradePolicyPublish(Schema):
    draft = DRAFT
    valid_from = CityDay(required=True)


@blueprint.route("/v1/operator/grade-policies/preview")
class PreviewedPolicy(MethodView):
    @door(OPERATOR, area="methodology")
    @blueprint.arguments(GradePreviewRequest)
    @idempotent()
    @blueprint.response(200, GradePreviewReport)
    @blueprint.alt_response(
        202, schema=QueuedPreviewAnswer, description="With `whole`: a job", success=True
    )
    def post(self, wanted: dict[str, Any]) -> Any:
        """How many residents a draft moves from which grade to which; changes nothing

        On a sample the report is the answer. With `whole` it is the result of a job.
        """
        draft = policy_versions.checked(wanted["draft"])
        if wanted["whole"]:
            job = policy_preview.queue(caller().id, wanted["draft"])
            audit.note(caller().id, "grade policy previewed", job.id)
            tasks.nudge(tasks.run_job, job.id)
            # The schema of the answer depends on the status, so this one is dumped here.
            return current_app.json.response({"job_id": job.id}), 202, location_of(job.id)
        sample = wanted.get("sample") or GradeSampleRequest().load({})
        return policy_preview.of_sample(draft, seed=sample["seed"], size=sample["size"])


@blueprint.route("/v1/operator/grade-policies/previews/<job_id>")
class OnePolicyPreview(MethodView):
    @door(OPERATOR, area="methodology")
    @blueprint.response(200, GradePreviewAnswer)
    def get(self, job_id: str) -> dict[str, Any]:
        """What a preview of the whole city has added up so far"""
        job = jobs.get(job_id)
        if job is None or job.kind != policy_preview.KIND:
            raise NotFound()
        return {"job_id": job.id, "state": job.state, "report": policy_preview.result(job)}


@blueprint.route("/v1/operator/grade-policies/publish")
class PublishedPolicy(MethodView):
    @door(OPERATOR, area="methodology")
    @refuses("version_exists", "first_day_taken", "approved_too_late")
    @blueprint.arguments(GradePolicyPublish)
    @idempotent()
    @blueprint.response(201, PublishedAnswer)
    def post(self, wanted: dict[str, Any]) -> Version:
        """Draft a grade policy for a day to come; another operator must approve it"""
        return policy_versions.publish(
            wanted["draft"], wanted["valid_from"], caller().id, alone=one_is_enough()
        )


@blueprint.route("/v1/operator/grade-policies/<version>/approve")
class ApprovedPolicy(MethodView):
    @door(OPERATOR, area="methodology")
    @refuses("second_operator_needed", "first_day_taken", "approved_too_late")
    @idempotent()
    @blueprint.response(200, PublishedAnswer)
    def post(self, version: str) -> Version:
        """Publish another operator's draft of the grade policy"""
        return policy_versions.approve(version, caller().id, alone=one_is_enough())
