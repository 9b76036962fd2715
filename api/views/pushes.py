"""Pushes of operators: to whom, how many that is, when, how fast, and what became of them."""

from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import clock
from api import tasks
from api.idempotency import business_key, idempotent
from api.numbers import Instant, Schema, Whole
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, newest, page_of
from api.reward_terms import GRADES
from api.security import OPERATOR, caller, door
from footprint import methodology
from points import push_audience, pushes
from points.push_audience import MONTHS_DEFAULT, Audience, Size
from points.pushes import Push, Terms

DAYS_MAX, MONTHS_MAX, KG_MAX = 3_650, 12, 1_000_000
PER_MINUTE_MAX = 1_000_000
# Both languages of both texts stay far below the 4 KB a provider takes.
TITLE, BODY = validate.Length(1, 100), validate.Length(1, 400)
DEEP_LINK = validate.Regexp(r"^tanhui://[A-Za-z0-9/_.?=&-]{1,200}\Z")

blueprint = Blueprint("pushes", __name__, description="Messages of the city to residents")


class AudienceRequest(Schema):
    """Every part narrows it; an empty audience is everybody who wants marketing.

    Of the items of a list one is enough. Who was never graded is `unrated`. Days count from when it
    is sent; the day somebody was last there is known to the day.
    """

    districts = fields.List(
        fields.String(validate=validate.Length(1, 64)), validate=validate.Length(1, 100)
    )
    language = fields.String(validate=validate.OneOf(["zh", "en"]))
    active_within_days = Whole(validate=validate.Range(1, DAYS_MAX))
    inactive_for_days = Whole(validate=validate.Range(1, DAYS_MAX))
    grades = fields.List(
        fields.String(validate=validate.OneOf(GRADES)), validate=validate.Length(1, len(GRADES))
    )
    lifetime_kg_from = Whole(
        validate=validate.Range(0, KG_MAX), metadata={"description": "Avoided in all, included."}
    )
    lifetime_kg_below = Whole(validate=validate.Range(1, KG_MAX))
    behaviours = fields.List(
        fields.String(validate=validate.Length(1, 64)), validate=validate.Length(1, 100)
    )
    within_months = Whole(
        load_default=MONTHS_DEFAULT,
        validate=validate.Range(1, MONTHS_MAX),
        metadata={"description": "Of the behaviours: city months, this one included."},
    )

    @ma.validates("behaviours")
    def known(self, value: list[str], **_: Any) -> None:
        rules = methodology.in_force(clock.city_day(clock.now()))
        if any(code not in rules.behaviours for code in value):
            raise ma.ValidationError("Not a known behaviour.")

    @ma.validates_schema(skip_on_field_errors=True)
    def leaves_somebody(self, data: dict[str, Any], **_: Any) -> None:
        within, without = data.get("active_within_days"), data.get("inactive_for_days")
        if within is not None and without is not None and without >= within:
            raise ma.ValidationError("Must be less than active_within_days.", "inactive_for_days")
        least, below = data.get("lifetime_kg_from"), data.get("lifetime_kg_below")
        if least is not None and below is not None and below <= least:
            raise ma.ValidationError("Must exceed lifetime_kg_from.", "lifetime_kg_below")

    @ma.post_load
    def made(self, data: dict[str, Any], **_: Any) -> Audience:
        return Audience.of(data)


class TitleRequest(Schema):
    zh = fields.String(required=True, validate=TITLE)
    en = fields.String(required=True, validate=TITLE)


class BodyRequest(Schema):
    zh = fields.String(required=True, validate=BODY)
    en = fields.String(required=True, validate=BODY)


class PushPreviewRequest(Schema):
    audience = fields.Nested(AudienceRequest, required=True)


class PushRequest(Schema):
    """Without `not_before` it begins now, without `per_minute` it goes as fast as it can."""

    title = fields.Nested(TitleRequest, required=True)
    body = fields.Nested(BodyRequest, required=True)
    deep_link = fields.String(load_default="tanhui://notifications", validate=DEEP_LINK)
    audience = fields.Nested(AudienceRequest, required=True)
    not_before = Instant(
        load_default=None, allow_none=True, metadata={"description": "At most 90 days ahead."}
    )
    per_minute = Whole(
        load_default=None,
        allow_none=True,
        validate=validate.Range(1, PER_MINUTE_MAX),
        metadata={"description": "So many people a minute at most."},
    )


class StopRequest(Schema):
    reason = fields.String(required=True, validate=validate.Length(1, 500))


class SizeAnswer(ma.Schema):
    """`opted_out` would be reached but for their wish for no marketing, by account alone.

    A large group that is not told by accounts alone is estimated from `looked_at` of it.
    """

    audience_count = fields.Integer(required=True, attribute="people")
    exact = fields.Boolean(required=True)
    opted_out = fields.Integer(required=True)
    looked_at = fields.Integer(required=True)


class AudienceAnswer(ma.Schema):
    districts = fields.List(fields.String(), required=True)
    language = fields.String(required=True, allow_none=True)
    active_within_days = fields.Integer(required=True, allow_none=True)
    inactive_for_days = fields.Integer(required=True, allow_none=True)
    grades = fields.List(fields.String(), required=True)
    lifetime_kg_from = fields.Integer(required=True, allow_none=True)
    lifetime_kg_below = fields.Integer(required=True, allow_none=True)
    behaviours = fields.List(fields.String(), required=True)
    within_months = fields.Integer(required=True)


class PushAnswer(ma.Schema):
    """`audience_count` is what was counted, or estimated, when it was asked for."""

    id = fields.String(required=True)
    state = fields.String(
        required=True,
        validate=validate.OneOf(["scheduled", "sending", "sent", "stopped", "failed"]),
    )
    title = fields.Dict(
        keys=fields.String(), values=fields.String(), required=True, attribute="terms.title"
    )
    body = fields.Dict(
        keys=fields.String(), values=fields.String(), required=True, attribute="terms.body"
    )
    deep_link = fields.String(required=True, attribute="terms.deep_link")
    audience = fields.Nested(AudienceAnswer, required=True, attribute="terms.audience")
    audience_count = fields.Integer(required=True, attribute="people")
    exact = fields.Boolean(required=True)
    opted_out = fields.Integer(required=True)
    not_before = Instant(required=True, allow_none=True, attribute="terms.not_before")
    per_minute = fields.Integer(required=True, allow_none=True, attribute="terms.per_minute")
    asked_by = fields.String(required=True)
    created_at = Instant(required=True)
    stopped_by = fields.String(required=True, allow_none=True)
    stopped_at = Instant(required=True, allow_none=True)
    stop_reason = fields.String(required=True, allow_none=True)


class PushReportAnswer(ma.Schema):
    """`left` is in inboxes, and each of those is one of waiting (to be sent), deferred (to the end
    of quiet hours), sent, folded (into a digest) and dropped; `opened` were read in the inbox.
    """

    left = fields.Integer(required=True)
    waiting = fields.Integer(required=True)
    deferred = fields.Integer(required=True)
    sent = fields.Integer(required=True)
    folded = fields.Integer(required=True)
    dropped = fields.Integer(required=True)
    dropped_by = fields.Dict(
        keys=fields.String(),
        values=fields.Integer(),
        required=True,
        metadata={
            "description": "no_device, not_wanted, failed (refused for good), given_up (after a "
            "day of trying), stopped."
        },
    )
    opened = fields.Integer(required=True)


class ReportedPushAnswer(PushAnswer):
    report = fields.Nested(PushReportAnswer, required=True)


@blueprint.route("/v1/operator/pushes")
class Pushes(MethodView):
    @door(OPERATOR)
    @blueprint.arguments(PushRequest)
    @idempotent()
    @blueprint.response(201, ReportedPushAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Push a message to an audience, now or later

        It is marketing: who wants none is left out, quiet hours and the daily cap hold, and nothing
        of it is left between 22:00 and 07:00.
        """
        push = pushes.ask(Terms(**wanted), caller().id, once=business_key())
        tasks.nudge(tasks.run_job, push.job)
        return _reported(push)

    @door(OPERATOR)
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(PushAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Every push, newest first"""
        return newest(wanted, pushes.newest)


@blueprint.route("/v1/operator/pushes/preview")
class PushPreview(MethodView):
    @door(OPERATOR)
    @blueprint.arguments(PushPreviewRequest)
    @idempotent()
    @blueprint.response(200, SizeAnswer)
    def post(self, wanted: dict[str, Any]) -> Size:
        """How many people an audience has; changes nothing"""
        return push_audience.size(wanted["audience"], clock.now())


@blueprint.route("/v1/operator/pushes/<push_id>")
class OnePush(MethodView):
    @door(OPERATOR)
    @blueprint.response(200, ReportedPushAnswer)
    def get(self, push_id: str) -> dict[str, Any]:
        """One push, and what became of it so far"""
        return _reported(pushes.get(push_id))


@blueprint.route("/v1/operator/pushes/<push_id>/stop")
class StoppedPush(MethodView):
    @door(OPERATOR)
    @refuses("push_over")
    @blueprint.arguments(StopRequest)
    @idempotent()
    @blueprint.response(200, ReportedPushAnswer)
    def post(self, wanted: dict[str, Any], push_id: str) -> dict[str, Any]:
        """Send nothing more of a push; who has it keeps it, and nobody else is shown it"""
        return _reported(pushes.stop(push_id, caller().id, reason=wanted["reason"]))


def _reported(push: Push) -> dict[str, Any]:
    shown = {name: getattr(push, name) for name in Push.__slots__}
    return shown | {"report": pushes.report(push.id)}
