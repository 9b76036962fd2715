"""Work over the whole city that an operator starts: each kind is one job."""

from typing import Any

import marshmallow as ma
from flask import current_app
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import audit, jobs, proofs
from accounting.errors import NotFound
from accounting.jobs import Job
from api import tasks
from api.idempotency import idempotent
from api.numbers import CityDay, Flag, Schema
from api.openapi import Blueprint, refuses
from api.reports import MONTH
from api.security import OPERATOR, caller, door
from api.versions import TEXT_CHARS_MAX, location_of, one_is_enough
from api.views.methodology import month_of_preview, queue_preview
from footprint import preview, regrading, upkeep, versions
from integrations import dropped
from points import liability, passing, restating
from rewards import settlement

# By kind: the fields it needs, and those it may have besides.
FIELDS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    restating.KIND: (frozenset({"methodology", "month"}), frozenset({"reason"})),
    preview.KIND: (frozenset({"draft"}), frozenset({"month"})),
    upkeep.KIND: (frozenset(), frozenset({"rebuild"})),
    proofs.KIND: (frozenset(), frozenset()),
    regrading.KIND: (frozenset(), frozenset()),
    passing.KIND: (frozenset(), frozenset()),
    liability.KIND: (frozenset(), frozenset()),
    settlement.KIND: (frozenset(), frozenset({"from", "to"})),
}

blueprint = Blueprint("operator_jobs", __name__, description="Work over the whole city")


class JobRequest(Schema):
    """`restate` needs `methodology` and `month`, `preview` a `draft`, the others nothing.

    `projections` brings every summary to its head and checks all sums; with `rebuild` it builds
    them again. `proof` proves the book now.
    `settle` closes the city days `from` to `to`: the day after the period before, to yesterday
    (in the demo, when neither is said: to now).
    """

    kind = fields.String(required=True, validate=validate.OneOf(list(FIELDS)))
    methodology = fields.String(validate=validate.Length(1, 64))
    month = fields.String(validate=MONTH)
    reason = fields.String(
        validate=validate.Length(1, 500), metadata={"description": "Residents read it."}
    )
    draft = fields.String(validate=validate.Length(1, TEXT_CHARS_MAX))
    from_ = CityDay(data_key="from")
    to = CityDay()
    rebuild = Flag()

    @ma.validates_schema(skip_on_field_errors=True)
    def fits_kind(self, data: dict[str, Any], **_: Any) -> None:
        needed, allowed = FIELDS[data["kind"]]
        given = {name.rstrip("_") for name in data} - {"kind"}
        wrong = {name: ["Missing data for required field."] for name in needed - given}
        wrong |= {name: ["Unknown field."] for name in given - needed - allowed}
        if wrong:
            raise ma.ValidationError(wrong)


class CancelRequest(Schema):
    reason = fields.String(required=True, validate=validate.Length(1, 500))


class QueuedJobAnswer(ma.Schema):
    job_id = fields.String(required=True)
    needs_approval = fields.Boolean(required=True)


@blueprint.route("/v1/operator/jobs")
class OperatorJobs(MethodView):
    @door(OPERATOR)
    @refuses("period_closed", "period_not_continuous", "period_not_over", "settlement_underway")
    @refuses("book_not_proven")
    @blueprint.arguments(JobRequest)
    @idempotent()
    @blueprint.response(202, QueuedJobAnswer)
    def post(self, wanted: dict[str, Any]) -> tuple[dict[str, Any], int, dict[str, str]]:
        """Start work over the whole city; `GET /v1/jobs/{id}` says how far it is

        A restatement waits until another operator has approved it.
        """
        job_id, needs_approval = START[wanted["kind"]](wanted)
        return (
            {"job_id": job_id, "needs_approval": needs_approval},
            202,
            location_of(job_id),
        )


@blueprint.route("/v1/operator/jobs/<job_id>/approve")
class ApprovedJob(MethodView):
    @door(OPERATOR)
    @refuses("second_operator_needed")
    @idempotent()
    @blueprint.response(202, QueuedJobAnswer)
    def post(self, job_id: str) -> tuple[dict[str, Any], int, dict[str, str]]:
        """Let another operator's restatement begin"""
        run = restating.approve(job_id, caller().id, alone=one_is_enough())
        tasks.nudge(tasks.run_job, run.id)
        return {"job_id": run.id, "needs_approval": False}, 202, location_of(run.id)


@blueprint.route("/v1/operator/jobs/<job_id>/cancel")
class CancelledJob(MethodView):
    @door(OPERATOR)
    @refuses("job_over")
    @blueprint.arguments(CancelRequest)
    @idempotent()
    @blueprint.response(204)
    def post(self, wanted: dict[str, Any], job_id: str) -> None:
        """Stop a job where it is, a file or work over the whole city; what is done stays

        A period that is being settled and an export cannot be stopped; a push is stopped as a push.
        """
        job = jobs.cancel(_of_ours(job_id).id, caller().id, wanted["reason"])
        audit.note(caller().id, "job cancelled", job.id, reason=wanted["reason"])


@blueprint.route("/v1/operator/jobs/<job_id>/resume")
class ResumedJob(MethodView):
    @door(OPERATOR)
    @refuses("job_not_cancelled")
    @idempotent()
    @blueprint.response(202, QueuedJobAnswer)
    def post(self, job_id: str) -> tuple[dict[str, Any], int, dict[str, str]]:
        """Let a cancelled job go on where it was stopped, in a minute"""
        job = jobs.resume(_of_ours(job_id).id)
        dropped.again(job.id)
        audit.note(caller().id, "job resumed", job.id)
        return {"job_id": job.id, "needs_approval": False}, 202, location_of(job.id)


def _of_ours(job_id: str) -> Job:
    job = jobs.get(job_id)
    if job is None or not tasks.stoppable(job):
        raise NotFound()
    return job


def _restate(wanted: dict[str, Any]) -> tuple[str, bool]:
    run = restating.ask(
        wanted["methodology"],
        wanted["month"],
        wanted.get("reason"),
        caller().id,
        alone=one_is_enough(),
    )
    if run.approved_by is None:
        return run.id, True
    tasks.nudge(tasks.run_job, run.id)
    return run.id, False


def _preview(wanted: dict[str, Any]) -> tuple[str, bool]:
    versions.register.checked(wanted["draft"])
    return queue_preview(wanted["draft"], month_of_preview(wanted.get("month"))).id, False


def _queued(job: Job, said: str) -> tuple[str, bool]:
    """Note that it was asked for, and give it to a worker."""
    audit.note(caller().id, said, job.id)
    tasks.nudge(tasks.run_job, job.id)
    return job.id, False


def _proof(_: dict[str, Any]) -> tuple[str, bool]:
    return _queued(proofs.queue(caller().id), "proof asked for")


def _projections(wanted: dict[str, Any]) -> tuple[str, bool]:
    return _queued(
        upkeep.queue(caller().id, rebuild=wanted.get("rebuild", False)), "projections asked for"
    )


def _let_time_pass(_: dict[str, Any]) -> tuple[str, bool]:
    return _queued(passing.queue(caller().id), "maturing and expiry asked for")


def _settle(wanted: dict[str, Any]) -> tuple[str, bool]:
    # Nobody who tries the demo out waits until tomorrow to see what was scanned today.
    to_now = current_app.extensions["config"].demo
    job = settlement.ask(wanted.get("from_"), wanted.get("to"), caller().id, to_now=to_now)
    return _queued(job, "settlement asked for")


def _regrade(_: dict[str, Any]) -> tuple[str, bool]:
    """Not the scheduled grading of the month: it counts towards no fall."""
    return _queued(regrading.queue(caller().id), "grading of everybody asked for")


def _liability(_: dict[str, Any]) -> tuple[str, bool]:
    return _queued(liability.queue(caller().id), "liability asked for")


START = {
    restating.KIND: _restate,
    preview.KIND: _preview,
    upkeep.KIND: _projections,
    proofs.KIND: _proof,
    regrading.KIND: _regrade,
    passing.KIND: _let_time_pass,
    liability.KIND: _liability,
    settlement.KIND: _settle,
}
