"""Versions of the grade policy: preview a draft, publish it with a second operator."""

from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import audit, jobs
from accounting.errors import NotFound
from api import tasks
from api.idempotency import idempotent
from api.numbers import Whole
from api.openapi import Blueprint
from api.security import OPERATOR, caller, door
from api.versions import (
    GRADES_MOVED,
    DraftOnSampleOrWhole,
    QueuedPreviewAnswer,
    Sample,
    queued,
    version_doors,
)
from footprint import policy_preview, policy_versions

blueprint = Blueprint("grade_policies", __name__, description="Versions of the grade policy")


class GradeSampleRequest(Sample):
    size = Whole(load_default=1_000, validate=validate.Range(1, policy_preview.SAMPLE_MAX))


class GradePreviewRequest(DraftOnSampleOrWhole):
    """Without `whole` on a sample; the same seed picks the same residents."""

    sample = fields.Nested(GradeSampleRequest)


class GradePreviewReport(ma.Schema):
    policy_version = fields.String(required=True)
    compared_with = fields.String(required=True)
    residents = fields.Integer(required=True)
    grades = GRADES_MOVED
    grades_changed = fields.Integer(required=True)
    up = fields.Integer(required=True)
    down = fields.Integer(required=True)


class GradePreviewAnswer(ma.Schema):
    job_id = fields.String(required=True)
    state = fields.String(required=True)
    report = fields.Nested(GradePreviewReport, required=True)


version_doors(blueprint, "/v1/operator/grade-policies", policy_versions.register)


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
        draft = policy_versions.register.checked(wanted["draft"])
        if wanted["whole"]:
            job = policy_preview.queue(caller().id, wanted["draft"])
            audit.note(caller().id, "grade policy previewed", job.id)
            tasks.nudge(tasks.run_job, job.id)
            return queued(job)
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
