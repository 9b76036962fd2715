"""What a person decides: photos as evidence, homes that may stand empty, appeals."""

from dataclasses import asdict
from datetime import timedelta
from functools import partial
from typing import Any

import marshmallow as ma
from flask import Response, request
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import clock
from accounting.errors import NotFound, ValidationFailed
from api.bill_rows import BillAnswer, shown_bill
from api.idempotency import idempotent
from api.numbers import CityDay, Flag, Instant, Schema
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, newest, page, page_of, place
from api.problems import Invalid, PayloadTooLarge, UnsupportedMediaType
from api.reports import ActivityAnswer, shown
from api.security import OPERATOR, RESIDENT, caller, door
from api.views.activities import mine
from api.views.grades import GradeAnswer
from api.views.grades import shown as shown_grade
from api.views.households import my_bill
from footprint import activities, bills, grade, photos, reviews
from footprint.photos import Photo
from footprint.reviews import Decision, Review
from points import deciding

JPEG, PNG, FORM = "image/jpeg", "image/png", "multipart/form-data"
# A form says a little more than its photo.
UPLOAD_MAX = photos.BYTES_MAX + 20_000
AHEAD_MAX = timedelta(minutes=5)
TEXT = validate.Length(1, 2_000)
REASON = validate.Length(1, 500)
STATUSES = (reviews.OPEN, reviews.ACCEPTED, reviews.REFUSED, reviews.WITHDRAWN)
APPEAL_STATUSES = {word: status for status, word in reviews.APPEAL_WORDS.items()}

_BINARY = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
# What clients call the part of a form that is the image.
PARTS = ("photo", "image", "file")
_UPLOAD = {
    JPEG: _BINARY,
    PNG: _BINARY,
    FORM: {
        "schema": {
            "type": "object",
            "properties": {
                **{name: {"type": "string", "contentMediaType": JPEG} for name in PARTS},
                "taken_at": {"type": "string", "format": "date-time"},
            },
            "oneOf": [{"required": [name]} for name in PARTS],
        }
    },
}

blueprint = Blueprint("reviews", __name__, description="Photos, reviews and appeals")


class PhotoFields(Schema):
    taken_at = Instant()


class PhotoAnswer(ma.Schema):
    id = fields.String(required=True)
    activity_id = fields.String(required=True, attribute="activity")
    uploaded_at = Instant(required=True)
    taken_at = Instant(required=True, allow_none=True)
    width = fields.Integer(required=True)
    height = fields.Integer(required=True)


class ReviewedPhotoAnswer(PhotoAnswer):
    used_elsewhere = fields.Integer(
        required=True, metadata={"description": "Other activities with the very same file."}
    )


class ReviewQuery(PageQuery):
    status = fields.String(load_default=reviews.OPEN, validate=validate.OneOf(STATUSES))


class ReviewAnswer(ma.Schema):
    """`activity` and its photos, or a `bill` with what its home used before."""

    review_id = fields.String(required=True)
    kind = fields.String(required=True, validate=validate.OneOf([reviews.PHOTOS, reviews.VACANCY]))
    status = fields.String(required=True, validate=validate.OneOf(STATUSES))
    opened_at = Instant(required=True)
    due_on = CityDay(required=True)
    overdue = fields.Boolean(required=True)
    residents = fields.List(fields.String(), required=True)
    activity = fields.Nested(ActivityAnswer)
    photos = fields.List(fields.Nested(ReviewedPhotoAnswer))
    hours_apart = fields.Integer(
        metadata={"description": "Between the first and the last photo, as far as known."}
    )
    bill = fields.Nested(BillAnswer)
    baseline = fields.String(
        metadata={"description": "The same months before, an exact fraction in the bill's unit."}
    )
    reason = fields.String(required=True, allow_none=True)
    decided_at = Instant(required=True, allow_none=True)


class ReviewDecisionRequest(Schema):
    accept = Flag(required=True)
    reason = fields.String(required=True, validate=REASON)


class AppealRequest(Schema):
    text = fields.String(required=True, validate=TEXT)


class AppealAnswer(ma.Schema):
    """Of an activity, of a bill, or of a grading by its number."""

    appeal_id = fields.String(required=True)
    activity_id = fields.String()
    bill_id = fields.String()
    grading = fields.Integer()
    status = fields.String(required=True, validate=validate.OneOf(list(APPEAL_STATUSES)))
    text = fields.String(required=True)
    opened_at = Instant(required=True)
    due_on = CityDay(required=True)
    reason = fields.String(required=True, allow_none=True)
    decided_at = Instant(required=True, allow_none=True)


class OperatorAppealAnswer(AppealAnswer):
    resident_id = fields.String(required=True)
    overdue = fields.Boolean(required=True)
    activity = fields.Nested(ActivityAnswer)
    bill = fields.Nested(BillAnswer)
    grade = fields.Nested(GradeAnswer)


class AppealQuery(PageQuery):
    status = fields.String(load_default="open", validate=validate.OneOf(list(APPEAL_STATUSES)))


class AppealDecisionRequest(Schema):
    """`despite` names the holder that `claim_held` told: it keeps its claim, both are credited."""

    uphold = Flag(required=True)
    reason = fields.String(required=True, validate=REASON)
    despite = fields.String(validate=validate.Length(1, 128))


@blueprint.route("/v1/activities/<activity_id>/photos")
class Photos(MethodView):
    @door(RESIDENT, body_max=UPLOAD_MAX)
    @refuses(
        "photos_not_wanted",
        "too_many_photos",
        "account_busy",
        "payload_too_large",
        "unsupported_media_type",
        "photo_unreadable",
        "malformed_request",
    )
    @blueprint.arguments(PhotoFields, location="query")
    @idempotent()
    @blueprint.response(201, PhotoAnswer)
    @blueprint.alt_response(200, schema=PhotoAnswer, description="Uploaded before")
    @blueprint.doc(requestBody={"required": True, "content": _UPLOAD})
    def post(self, wanted: dict[str, Any], activity_id: str) -> tuple[Photo, int]:
        """Upload a photo as evidence: JPEG or PNG, as the body or as the field `photo` of a form

        At most 5 MB and six an activity, which waits for them as `awaiting_review`. Nothing but the
        picture is kept. `taken_at` goes into the query, or into the form.
        """
        activity = mine(activity_id)
        upload, said = _upload()
        taken_at = (wanted | said).get("taken_at")
        if taken_at is not None and taken_at > clock.now() + AHEAD_MAX:
            raise ValidationFailed("/taken_at", "Lies in the future.", "时间在未来。")
        photo, fresh = photos.add(activity, upload, taken_at)
        return photo, 201 if fresh else 200


@blueprint.route("/v1/activities/<activity_id>/appeal")
class Appeal(MethodView):
    @door(RESIDENT)
    @refuses("already_appealed", "not_appealable")
    @blueprint.arguments(AppealRequest)
    @idempotent()
    @blueprint.response(201, AppealAnswer)
    @blueprint.alt_response(200, schema=AppealAnswer, description="Appealed before, same text")
    def post(self, wanted: dict[str, Any], activity_id: str) -> tuple[dict[str, Any], int]:
        """Ask a person to look at an activity that was rejected, only recorded, or merged

        It is answered within 20 days. One an activity.
        """
        found, fresh = deciding.appeal(mine(activity_id), wanted["text"])
        return _appeal(found), 201 if fresh else 200


@blueprint.route("/v1/me/bills/<bill_id>/appeal")
class BillAppeal(MethodView):
    @door(RESIDENT)
    @refuses("already_appealed", "not_appealable")
    @blueprint.arguments(AppealRequest)
    @idempotent()
    @blueprint.response(201, AppealAnswer)
    @blueprint.alt_response(200, schema=AppealAnswer, description="Appealed before, same text")
    def post(self, wanted: dict[str, Any], bill_id: str) -> tuple[dict[str, Any], int]:
        """Ask a person to look at a bill of my household that was not credited

        It is answered within 20 days. One a bill, by whoever of the household asks first.
        """
        found, fresh = deciding.appeal_bill(my_bill(bill_id), caller().id, wanted["text"])
        return _appeal(found), 201 if fresh else 200


@blueprint.route("/v1/me/grade/objections")
class Objections(MethodView):
    @door(RESIDENT)
    @refuses("already_appealed")
    @blueprint.arguments(AppealRequest)
    @idempotent()
    @blueprint.response(201, AppealAnswer)
    @blueprint.alt_response(200, schema=AppealAnswer, description="Objected before, same text")
    def post(self, wanted: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Object to my grade as it stands; a person answers within 20 days

        One a grading. Upheld, the grading is made again from the entries of the book.
        """
        found, fresh = deciding.object_to(grade.grade_now(caller().id), wanted["text"])
        return _appeal(found), 201 if fresh else 200


@blueprint.route("/v1/me/appeals")
class MyAppeals(MethodView):
    @door(RESIDENT)
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(AppealAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """My appeals with what was decided and why, newest first"""
        mine = partial(reviews.of_resident, caller().id, reviews.APPEALS)
        return newest(wanted, mine, _appeal)


@blueprint.route("/v1/operator/reviews")
class Reviews(MethodView):
    @door(OPERATOR, area="support")
    @blueprint.arguments(ReviewQuery, location="query")
    @blueprint.response(200, page_of(ReviewAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Photos and bills that wait for a decision (or had one), oldest due first"""
        answer = _queue(reviews.REVIEWS, wanted["status"], wanted)
        return answer | {"items": [_review(one) for one in answer["items"]]}


@blueprint.route("/v1/operator/reviews/<review_id>/photos/<photo_id>")
class ReviewedPhoto(MethodView):
    @door(OPERATOR, area="support")
    @blueprint.response(200, {"type": "string"}, description="The picture", content_type=JPEG)
    def get(self, review_id: str, photo_id: str) -> Response:
        """One photo of a review"""
        picture = photos.jpeg(reviews.get(reviews.REVIEWS, review_id).subject, photo_id)
        if picture is None:
            raise NotFound()
        return Response(picture, mimetype=JPEG)


@blueprint.route("/v1/operator/reviews/<review_id>/decide")
class ReviewDecision(MethodView):
    @door(OPERATOR, area="support")
    @refuses("already_decided", "account_busy")
    @blueprint.arguments(ReviewDecisionRequest)
    @idempotent()
    @blueprint.response(200, ReviewAnswer)
    def post(self, wanted: dict[str, Any], review_id: str) -> dict[str, Any]:
        """Accept the photos, or that somebody lived there; or refuse, with the reason

        The same decision again gives the first answer.
        """
        review = reviews.get(reviews.REVIEWS, review_id)
        decision = Decision(wanted["accept"], wanted["reason"], caller().id)
        return _review(deciding.decide(review, decision))


@blueprint.route("/v1/operator/appeals")
class Appeals(MethodView):
    @door(OPERATOR, area="support")
    @blueprint.arguments(AppealQuery, location="query")
    @blueprint.response(200, page_of(OperatorAppealAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Appeals, oldest due first; the open ones unless `status` says otherwise"""
        answer = _queue(reviews.APPEALS, APPEAL_STATUSES[wanted["status"]], wanted)
        return answer | {"items": [_operator_appeal(one) for one in answer["items"]]}


@blueprint.route("/v1/operator/appeals/<appeal_id>/decide")
class AppealDecision(MethodView):
    @door(OPERATOR, area="support")
    @refuses("already_decided", "not_appealable", "not_creditable", "claim_held", "account_busy")
    @blueprint.arguments(AppealDecisionRequest)
    @idempotent()
    @blueprint.response(200, OperatorAppealAnswer)
    def post(self, wanted: dict[str, Any], appeal_id: str) -> dict[str, Any]:
        """Uphold or refuse an appeal; upheld, the activity or bill is credited with its own date

        The same decision again gives the first answer.
        """
        appeal = reviews.get(reviews.APPEALS, appeal_id)
        decision = Decision(
            wanted["uphold"], wanted["reason"], caller().id, despite=wanted.get("despite")
        )
        return _operator_appeal(deciding.decide(appeal, decision))


def _upload() -> tuple[bytes, dict[str, Any]]:
    """The bytes of the photo, and what the form said beside it."""
    said: dict[str, Any] = {}
    if request.mimetype in (JPEG, PNG):
        upload = request.get_data()
    elif request.mimetype == FORM:
        parts = list(request.files)
        if len(parts) != 1 or parts[0] not in PARTS:
            raise Invalid([("/photo", "Missing data for required field.")])
        try:
            said = PhotoFields().load(request.form.to_dict())
        except ma.ValidationError as error:
            raise Invalid.of(error) from None
        upload = request.files[parts[0]].read()
    else:
        raise UnsupportedMediaType(f"{JPEG}, {PNG} or {FORM}")
    if len(upload) > photos.BYTES_MAX:
        raise PayloadTooLarge()
    return upload, said


def _queue(queue: str, status: str, wanted: dict[str, Any]) -> dict[str, Any]:
    at = place(wanted)
    found = reviews.listed(queue, status, after=at, limit=wanted["limit"] + 1)
    return page(found, wanted, lambda review: (review.due_on.isoformat(), review.id))


def _review(review: Review) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "review_id": review.id,
        "kind": review.kind,
        "status": review.status,
        "opened_at": review.opened_at,
        "due_on": review.due_on,
        "overdue": review.is_overdue,
        "residents": review.residents,
        "reason": review.reason,
        "decided_at": review.decided_at,
    }
    if review.kind == reviews.VACANCY:
        bill = bills.by_id(review.subject)
        baseline = bill.judgement.baseline if bill.judgement else None
        return answer | {"bill": shown_bill(bill), "baseline": baseline or "0"}
    held = photos.of_activity(review.subject)
    return answer | {
        "activity": _activity(review.subject),
        "photos": [_photo(photo) for photo in held],
        "hours_apart": photos.hours_apart(held),
    }


def _photo(photo: Photo) -> dict[str, Any]:
    return asdict(photo) | {"used_elsewhere": photos.used_elsewhere(photo)}


def _appeal(review: Review) -> dict[str, Any]:
    return {
        "appeal_id": review.id,
        **_subject(review),
        "status": reviews.APPEAL_WORDS[review.status],
        "text": review.text,
        "opened_at": review.opened_at,
        "due_on": review.due_on,
        "reason": review.reason,
        "decided_at": review.decided_at,
    }


def _subject(review: Review) -> dict[str, Any]:
    if review.kind == reviews.BILL_APPEAL:
        return {"bill_id": review.subject}
    if review.kind == reviews.OBJECTION:
        return {"grading": grade.by_id(review.subject).number}
    return {"activity_id": review.subject}


def _operator_appeal(review: Review) -> dict[str, Any]:
    answer = _appeal(review) | {
        "resident_id": review.residents[0],
        "overdue": review.is_overdue,
    }
    if review.kind == reviews.BILL_APPEAL:
        return answer | {"bill": shown_bill(bills.by_id(review.subject))}
    if review.kind == reviews.OBJECTION:
        return answer | {"grade": shown_grade(grade.by_id(review.subject))}
    return answer | {"activity": _activity(review.subject)}


def _activity(activity_id: str) -> dict[str, Any]:
    found = activities.by_id(activity_id)
    assert found is not None, "activities are never deleted"
    return shown(found)
