"""Data partners: batches of rows, files as jobs, link codes, taking a row back."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import marshmallow as ma
import simplejson
from flask import Response, current_app
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import audit, clients, clock, jobs, links, pace, refused_rows, vault, walks
from accounting.errors import DomainError, NotFound
from accounting.jobs import Job
from api import problems, tasks
from api.bill_rows import BillAnswer, BillFields, shown_bill, take_bills
from api.feed_rows import RowFields, partner_of, take_rows
from api.filing import FILE, ProfileQuery, QueuedAnswer, SignatureQuery, queued
from api.idempotency import idempotent
from api.numbers import CityDay, EachAlone, Instant, Schema
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, page, page_of, place
from api.problems import language
from api.reports import ActivityAnswer, shown
from api.security import DATA, OPEN, OPERATOR, PLANT, RESIDENT, caller, door
from api.views.own_data import export_url
from footprint import bills, households
from footprint.bill_intake import Received
from integrations import exports, imports, reversals, signed_urls
from integrations import feeds as files
from integrations.mapping import ACTIVITIES, BILLS
from integrations.signed_urls import UrlNotAccepted
from points import bill_crediting, feed
from points.feed import Taken

ROWS_MAX = 1_000
LINK_LIFE = timedelta(hours=1)
ERRORS_PURPOSE = "job-errors"
# Arguments of a job that are shown with it.
SHOWN = ("profile", "profile_version", "file_name", "business_date", "sequence")
blueprint = Blueprint("feeds", __name__, description="Data partners")


class RowsRequest(Schema):
    activities = EachAlone(RowFields, most=ROWS_MAX)


class RowAnswer(ma.Schema):
    status_code = fields.Integer(required=True)
    activity = fields.Nested(ActivityAnswer)
    problem = fields.Nested(problems.Problem)


class RowsAnswer(ma.Schema):
    results = fields.List(fields.Nested(RowAnswer), required=True)


class BillsRequest(Schema):
    bills = EachAlone(BillFields, most=ROWS_MAX)


class BillItemAnswer(ma.Schema):
    status_code = fields.Integer(required=True)
    bill = fields.Nested(BillAnswer)
    problem = fields.Nested(problems.Problem)


class BillsAnswer(ma.Schema):
    results = fields.List(fields.Nested(BillItemAnswer), required=True)


class HistoryQuery(PageQuery):
    since = Instant()


class HistoryAskedAnswer(ma.Schema):
    carrier = fields.String(required=True)
    account_no = fields.String(required=True)
    period_start = CityDay(required=True, attribute="first")
    period_end = CityDay(required=True, attribute="last")
    asked_at = Instant(required=True, attribute="at")


class LinkCodeRequest(Schema):
    external_id = fields.String(required=True, validate=validate.Length(1, 128))


class LinkCodeAnswer(ma.Schema):
    link_code = fields.String(required=True, allow_none=True)
    expires_in = fields.Integer(required=True)


class TakeBackRequest(Schema):
    reason = fields.String(required=True, validate=validate.Length(1, 500))


class JobAnswer(ma.Schema):
    job_id = fields.String(required=True)
    kind = fields.String(required=True)
    state = fields.String(required=True)
    total = fields.Integer(required=True, allow_none=True)
    done = fields.Integer(required=True)
    credited = fields.Integer(required=True)
    pending = fields.Integer(required=True)
    recorded = fields.Integer(required=True)
    rejected = fields.Integer(required=True)
    duplicate = fields.Integer(required=True)
    parked = fields.Integer(required=True)
    unit = fields.String(
        required=True,
        validate=validate.OneOf(list(jobs.UNITS)),
        metadata={"description": "What `total`, `done` and `rate` count."},
    )
    progress = fields.Integer(required=True, metadata={"description": "Percent."})
    rate = fields.Float(
        required=True,
        metadata={"description": "Units a second: of the last minute, at the end of all the work."},
    )
    rows_per_second = fields.Integer(
        required=True, metadata={"description": "The rate as a whole number, whatever the unit."}
    )
    seconds_left = fields.Integer(required=True, allow_none=True)
    eta = Instant(
        required=True,
        allow_none=True,
        metadata={"description": "When it will be over at its rate; null while nobody can say."},
    )
    errors_url = fields.String(required=True)
    failure = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "Why it ended before its work did, in the reader's language."},
    )
    failure_code = fields.String(required=True, allow_none=True)
    download_url = fields.String(metadata={"description": "Of a finished export."})
    profile = fields.String(metadata={"description": "The mapping profile a file is read by."})
    profile_version = fields.Integer()
    file_name = fields.String(metadata={"description": "Of a dropped or uploaded file."})
    business_date = fields.String(metadata={"description": "As its manifest says."})
    sequence = fields.Integer(metadata={"description": "As its manifest says."})
    reversal_job_id = fields.String(metadata={"description": "The job that takes it back."})
    reverses = fields.String(metadata={"description": "The job this one takes back."})
    reversed = fields.Integer(
        metadata={"description": "Rows taken back; the others had earned nothing."}
    )


class SignedLinkAnswer(ma.Schema):
    url = fields.String(required=True, metadata={"format": "uri"})
    expires_at = Instant(required=True)


class NotAFile(DomainError):
    code = "not_a_file"
    en = "Only a file of activities or bills can be taken back."
    zh = "仅可撤销活动或账单文件。"


@blueprint.route("/v1/feeds/activities")
class Feed(MethodView):
    @door(DATA, scope="feeds:write")
    @blueprint.arguments(RowsRequest)
    @idempotent()
    @blueprint.response(200, RowsAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Hand over up to 1,000 rows; each has its own result, in order"""
        taken = take_rows(partner_of(caller().client()), wanted["activities"])
        return {"results": [_result(one) for one in taken]}


@blueprint.route("/v1/feeds/activities/<source_event_id>/reverse")
class ReversedRow(MethodView):
    @door(DATA, scope="feeds:write")
    @refuses("nothing_to_reverse", "account_busy")
    @blueprint.arguments(TakeBackRequest)
    @idempotent()
    @blueprint.response(200, ActivityAnswer)
    def post(self, wanted: dict[str, Any], source_event_id: str) -> dict[str, Any]:
        """Take a row back (a refund, a cancelled ride)"""
        partner = partner_of(caller().client())
        return shown(feed.reverse(partner, source_event_id, wanted["reason"]))


@blueprint.route("/v1/feeds/link-codes")
class LinkCodes(MethodView):
    @door(DATA, scope="feeds:write")
    @blueprint.arguments(LinkCodeRequest)
    @idempotent(secrets=("link_code",))
    @blueprint.response(201, LinkCodeAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """A code for the holder of one of my ids, to link it with"""
        code, lifetime = links.issue_code(caller().id, wanted["external_id"])
        return {"link_code": code, "expires_in": int(lifetime.total_seconds())}


@blueprint.route("/v1/feeds/activities/files")
class FeedFiles(MethodView):
    @door(DATA, scope="feeds:write", body_max=imports.FILE_BYTES_MAX)
    @refuses("malformed_request", "unsupported_media_type", "payload_too_large")
    @blueprint.doc(requestBody=FILE)
    @blueprint.arguments(ProfileQuery, location="query")
    @idempotent(streamed=True)
    @blueprint.response(202, QueuedAnswer)
    def post(self, wanted: dict[str, Any]) -> tuple[dict[str, Any], int, dict[str, str]]:
        """Hand over a file of rows, NDJSON or CSV, gzip allowed

        The bytes are stored before the answer; the job reads them.
        """
        return queued(ACTIVITIES, caller().id, wanted.get("profile"))


@blueprint.route("/v1/feeds/bills")
class BillFeed(MethodView):
    @door(DATA, scope="feeds:write")
    @blueprint.arguments(BillsRequest)
    @idempotent()
    @blueprint.response(200, BillsAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Hand over up to 1,000 bills; each has its own result, in order"""
        taken = take_bills(partner_of(caller().client()), wanted["bills"])
        return {"results": [_bill_result(one) for one in taken]}


@blueprint.route("/v1/feeds/bills/histories-asked")
class HistoriesAsked(MethodView):
    @door(DATA, scope="feeds:write")
    @blueprint.arguments(HistoryQuery, location="query")
    @blueprint.response(200, page_of(HistoryAskedAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Meter accounts residents linked, whose bills of the time before are wanted; oldest first

        Whoever links later comes last, so ask again with `since` the newest `asked_at`. An account
        that everybody left comes again when it is linked anew.
        """
        at = place(wanted)
        partner = partner_of(caller().client())
        found = households.histories_asked(
            partner.id,
            partner.carriers,
            since=wanted.get("since"),
            after=(at[0], at[1]) if at else None,
            limit=wanted["limit"] + 1,
        )
        return page(found, wanted, lambda one: (one.at, one.id))


@blueprint.route("/v1/feeds/bills/files")
class BillFiles(MethodView):
    @door(DATA, scope="feeds:write", body_max=imports.FILE_BYTES_MAX)
    @refuses("malformed_request", "unsupported_media_type", "payload_too_large")
    @blueprint.doc(requestBody=FILE)
    @blueprint.arguments(ProfileQuery, location="query")
    @idempotent(streamed=True)
    @blueprint.response(202, QueuedAnswer)
    def post(self, wanted: dict[str, Any]) -> tuple[dict[str, Any], int, dict[str, str]]:
        """Hand over a file of bills, NDJSON or CSV, gzip allowed"""
        return queued(BILLS, caller().id, wanted.get("profile"))


@blueprint.route("/v1/jobs/<job_id>")
class OneJob(MethodView):
    @door(RESIDENT, DATA, OPERATOR, PLANT, scope="feeds:write", plant_scope="readings:write")
    @blueprint.response(200, JobAnswer)
    def get(self, job_id: str) -> dict[str, Any]:
        """How far a job is"""
        return _job(_mine(job_id))


@blueprint.route("/v1/feeds/bills/<source_event_id>/reverse")
class ReversedBill(MethodView):
    @door(DATA, scope="feeds:write")
    @refuses("already_corrected", "account_busy")
    @blueprint.arguments(TakeBackRequest)
    @idempotent()
    @blueprint.response(200, BillAnswer)
    def post(self, wanted: dict[str, Any], source_event_id: str) -> dict[str, Any]:
        """Take a bill back (sent by mistake); what it credited goes, its days are free again"""
        partner = partner_of(caller().client())
        bill = bills.by_event(partner.source, source_event_id)
        if bill is None:
            raise NotFound()
        return shown_bill(bill_crediting.reverse(bill, reason=wanted["reason"], by=partner.source))


@blueprint.route("/v1/jobs/<job_id>/reverse")
class ReversedJob(MethodView):
    @door(DATA, OPERATOR, scope="feeds:write")
    @refuses("not_a_file", "account_busy")
    @blueprint.arguments(TakeBackRequest)
    @idempotent()
    @blueprint.response(200, JobAnswer)
    def post(self, wanted: dict[str, Any], job_id: str) -> dict[str, Any]:
        """Take back all that a file brought, and nothing that was there before it

        An import that still runs is stopped. A small file is taken back at once, a large one, or
        one that was being read, by the job that is answered; `GET /v1/jobs/{job_id}` follows it.
        """
        job = _mine(job_id)
        if job.kind not in (ACTIVITIES, BILLS):
            raise NotAFile()
        by_operator = caller().kind is OPERATOR
        by = caller().id if by_operator else partner_of(caller().client()).source
        reversal = reversals.ask(job, reason=wanted["reason"], by=by)
        if reversal.state in jobs.UNFINISHED:
            tasks.nudge(tasks.run_job, reversal.id)
        if by_operator:
            audit.note(
                by,
                "job reversed",
                job_id,
                reason=wanted["reason"],
                before={"state": job.state, "done": job.done},
                after={"reversal": reversal.id, "rows": reversal.total},
                once=f"reverse/{job_id}/{by}",
            )
        return _job(reversal)


@blueprint.route("/v1/jobs/<job_id>/errors")
class JobErrors(MethodView):
    @door(DATA, PLANT, OPERATOR, scope="feeds:write", plant_scope="readings:write")
    @blueprint.response(200, description="One refused row a line")
    @blueprint.doc(responses={200: {"content": {files.NDJSON: {"schema": {"type": "string"}}}}})
    def get(self, job_id: str) -> Response:
        """The rows a job could not take, as NDJSON `{row, code, message, input}`"""
        return Response(_error_lines(_mine(job_id).id, language()), mimetype=files.NDJSON)


@blueprint.route("/v1/jobs/<job_id>/errors/link")
class JobErrorsLink(MethodView):
    @door(DATA, PLANT, OPERATOR, scope="feeds:write", plant_scope="readings:write")
    @idempotent()
    @blueprint.response(201, SignedLinkAnswer)
    def post(self, job_id: str) -> dict[str, Any]:
        """An address for the refused rows that needs no token, for an hour"""
        job = _mine(job_id)
        expires_at = (clock.now() + LINK_LIFE).replace(microsecond=0)
        claims = {"job": job.id, "client": caller().client_id}
        signature = signed_urls.sign(ERRORS_PURPOSE, claims, expires_at)
        path = f"/v1/jobs/{job.id}/errors/download?signature={signature}"
        return {
            "url": current_app.extensions["config"].public_url + path,
            "expires_at": expires_at,
        }


@blueprint.route("/v1/jobs/<job_id>/errors/download")
class JobErrorsFile(MethodView):
    @door(OPEN)
    @refuses("url_not_accepted", "url_expired")
    @blueprint.arguments(SignatureQuery, location="query")
    @blueprint.response(200, description="One refused row a line")
    @blueprint.doc(responses={200: {"content": {files.NDJSON: {"schema": {"type": "string"}}}}})
    def get(self, wanted: dict[str, str], job_id: str) -> Response:
        """The rows a job could not take, by a signed address"""
        claims = signed_urls.read(ERRORS_PURPOSE, wanted["signature"])
        client_id = claims.get("client")
        if claims.get("job") != job_id or client_id is None:
            raise UrlNotAccepted()
        # An address is worth what the credentials are worth that asked for it.
        if clients.get(client_id).disabled_at is not None:
            raise UrlNotAccepted()
        answer = Response(_error_lines(job_id, language()), mimetype=files.NDJSON)
        answer.headers["Content-Disposition"] = f'attachment; filename="{job_id}.errors.ndjson"'
        return answer


def _result(one: Taken) -> dict[str, Any]:
    if one.refusal is not None:
        return problems.item(one.refusal)
    assert one.activity is not None, "a row has an activity or a refusal"
    return {"status_code": 201 if one.fresh else 200, "activity": shown(one.activity)}


def _bill_result(one: Received) -> dict[str, Any]:
    if one.refusal is not None:
        return problems.item(one.refusal)
    assert one.bill is not None, "a row has a bill or a refusal"
    return {"status_code": 201 if one.fresh else 200, "bill": shown_bill(one.bill)}


def _mine(job_id: str) -> Job:
    job = jobs.get(job_id)
    if job is None or (caller().kind is not OPERATOR and job.owner != caller().id):
        raise NotFound()
    return job


def _job(job: Job) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "job_id": job.id,
        "kind": job.kind,
        "state": job.state,
        "total": job.total,
        "done": job.done,
        **job.counts,
        "unit": job.unit,
        "progress": job.progress,
        "rate": job.rate_milli / pace.MILLI,
        "rows_per_second": job.rate_milli // pace.MILLI,
        "seconds_left": job.seconds_left,
        "eta": job.eta,
        "errors_url": f"/v1/jobs/{job.id}/errors",
        "failure": job.failure.text(language()) if job.failure else None,
        "failure_code": job.failure.code if job.failure else None,
    }
    if (job.kind, job.state) == (exports.KIND, jobs.DONE):
        answer["download_url"] = export_url(job.id)
    answer |= {name: job.arguments[name] for name in SHOWN if name in job.arguments}
    if job.reversal is not None:
        answer["reversal_job_id"] = job.reversal
    if job.kind == reversals.KIND:
        totals = walks.totals(job.id)
        answer |= {"reverses": job.arguments["reverses"], "reversed": totals.get("reversed", 0)}
    return answer


def _error_lines(job_id: str, to: str) -> Iterator[str]:
    for row in refused_rows.of_job(job_id):
        shown_row = {
            "row": row["row"],
            "code": row["code"],
            "message": row["message"][to],
            "input": vault.decrypt(row["input_sealed"], "job-error"),
        }
        yield simplejson.dumps(shown_row, ensure_ascii=False) + "\n"
