"""The resident's own account: preferences, links, devices, inbox, milestones, footprint summary."""

from dataclasses import asdict
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import accounts, clients, clock, links, outbox
from accounting.accounts import Resident
from accounting.clients import Kind
from accounting.errors import NotFound, Unauthenticated
from accounting.links import Link
from accounting.outbox import Notification
from api.idempotency import business_key, idempotent
from api.numbers import DayOrInstant, Flag, Grams, Instant, Schema
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, newest, page_of
from api.problems import Invalid, language
from api.security import RESIDENT, caller, door
from footprint import bills, methodology, summaries
from integrations import closing, devices
from points import feed, milestones, reaching

DISTRICT_CHARS_MAX = 64
RANGE_DAYS_MAX = 800
CLOCK = validate.Regexp(r"^([01][0-9]|2[0-3]):[0-5][0-9]\Z")

blueprint = Blueprint("me", __name__, description="The resident's own account")


class QuietHours(Schema):
    """City time; `from` later than `to` spans midnight."""

    class Meta:
        unknown = ma.RAISE
        include = {
            "from": fields.String(required=True, validate=CLOCK),
            "to": fields.String(required=True, validate=CLOCK),
        }


class PushPreferences(Schema):
    service = Flag()
    marketing = Flag()


class MeRequest(Schema):
    display_name = fields.String(allow_none=True, validate=validate.Length(1, 40))
    district = fields.String(allow_none=True, validate=validate.Length(1, DISTRICT_CHARS_MAX))
    language = fields.String(validate=validate.OneOf(["zh", "en"]))
    quiet_hours = fields.Nested(QuietHours, allow_none=True)
    push = fields.Nested(PushPreferences)


class MeAnswer(ma.Schema):
    resident_id = fields.String(required=True, attribute="id")
    display_name = fields.String(required=True, allow_none=True)
    district = fields.String(required=True, allow_none=True)
    language = fields.String(required=True)
    quiet_hours = fields.Dict(
        keys=fields.String(), values=fields.String(), required=True, allow_none=True
    )
    push = fields.Dict(keys=fields.String(), values=fields.Boolean(), required=True)


class LinkRequest(Schema):
    partner_id = fields.String(required=True, validate=validate.Length(1, 64))
    external_id = fields.String(required=True, validate=validate.Length(1, 128))
    link_code = fields.String(validate=validate.Length(1, 32))


class LinkAnswer(ma.Schema):
    id = fields.String(required=True)
    partner_id = fields.String(required=True)
    external_id = fields.String(required=True)
    linked_at = Instant(required=True)


class DeviceRequest(Schema):
    token = fields.String(required=True, validate=validate.Length(1, 4_096))
    platform = fields.String(required=True, validate=validate.OneOf(devices.PLATFORMS))


class DeviceAnswer(ma.Schema):
    id = fields.String(required=True)
    platform = fields.String(required=True)


class NotificationAnswer(ma.Schema):
    id = fields.String(required=True)
    type = fields.String(required=True)
    category = fields.String(required=True)
    title = fields.String(required=True)
    body = fields.String(required=True)
    deep_link = fields.String(required=True)
    created_at = Instant(required=True)
    read_at = Instant(required=True, allow_none=True)
    delivery = fields.String(required=True)


class InboxAnswer(page_of(NotificationAnswer)):  # type: ignore[misc]
    unread = fields.Integer(required=True)


class MilestoneAnswer(ma.Schema):
    """`kg` of a lifetime step and a monthly goal; null of firsts and streaks."""

    milestone = fields.String(required=True)
    kind = fields.String(required=True, validate=validate.OneOf(reaching.KINDS))
    title = fields.String(required=True)
    kg = fields.Integer(required=True, allow_none=True)
    reached_at = Instant(required=True)


class NextMilestone(ma.Schema):
    kg = fields.Integer(required=True)


class UpcomingMilestone(ma.Schema):
    """How much there is of what is needed, in `unit`."""

    milestone = fields.String(required=True)
    kind = fields.String(required=True, validate=validate.OneOf(reaching.KINDS))
    title = fields.String(required=True)
    have = fields.Integer(required=True)
    need = fields.Integer(required=True)
    unit = fields.String(required=True, validate=validate.OneOf(["g", "days"]))


class MilestonesAnswer(ma.Schema):
    """`next` is the next step of lifetime kilograms; `upcoming` the next of each kind."""

    reached = fields.List(fields.Nested(MilestoneAnswer), required=True)
    next = fields.Nested(NextMilestone, required=True, allow_none=True)
    upcoming = fields.List(fields.Nested(UpcomingMilestone), required=True)


class SummaryQuery(Schema):
    """City days are included, instants half-open; without them the month to date."""

    class Meta:
        unknown = ma.RAISE
        include = {"from": DayOrInstant(), "to": DayOrInstant()}

    by = fields.String(load_default="day", validate=validate.OneOf(["day", "month"]))


class Sums(ma.Schema):
    reduction_g = Grams(required=True)
    points = fields.Integer(required=True)
    count = fields.Integer(required=True)


class Period(Sums):
    period = fields.String(required=True)


class SummaryAnswer(ma.Schema):
    """`emissions_g` is what the household's bills emitted, my share of it, by whole days.

    `by_evidence` tells records of partners (A) from those of my phone (B), photos (C), my word (D).
    """

    reduction_g = Grams(required=True)
    points = fields.Integer(required=True)
    emissions_g = Grams(required=True)
    by_carrier = fields.Dict(keys=fields.String(), values=Grams(), required=True)
    by_behaviour = fields.Dict(keys=fields.String(), values=fields.Nested(Sums), required=True)
    by_dimension = fields.Dict(keys=fields.String(), values=fields.Nested(Sums), required=True)
    by_evidence = fields.Dict(keys=fields.String(), values=fields.Nested(Sums), required=True)
    series = fields.List(fields.Nested(Period), required=True)


@blueprint.route("/v1/me")
class Me(MethodView):
    @door(RESIDENT)
    @blueprint.response(200, MeAnswer)
    def get(self) -> Resident:
        """My account and preferences"""
        return _open(accounts.get(caller().id))

    @door(RESIDENT)
    @blueprint.arguments(MeRequest)
    @blueprint.response(200, MeAnswer)
    def patch(self, wanted: dict[str, Any]) -> Resident:
        """Change my preferences; what is left out stays"""
        return _open(accounts.change(caller().id, wanted))

    @door(RESIDENT)
    @blueprint.response(204)
    def delete(self) -> None:
        """Close my account

        Sessions, links, meter accounts, phones, photos, inbox and consents end now, and my phone
        number is free: whoever signs in with it next begins a new account. What I earned stays in
        the book under an id that says nothing about me; vouchers I hold stay valid in the shop.
        """
        closing.close(caller().id)


@blueprint.route("/v1/me/links")
class Links(MethodView):
    @door(RESIDENT)
    @refuses("already_linked", "invalid_link_code")
    @blueprint.arguments(LinkRequest)
    @idempotent()
    @blueprint.response(201, LinkAnswer)
    def post(self, wanted: dict[str, Any]) -> Link:
        """Bind a partner's id (a card, an account) to me

        What the partner reported for it in the last 90 days is credited. Unless the partner's
        policy waives it, the code the partner issued for that id is needed.
        """
        partner = clients.of_subject(Kind.DATA, wanted["partner_id"])
        if partner is None:
            raise Invalid([("/partner_id", "There is no such partner.")])
        external_id, once = wanted["external_id"], business_key()
        link = links.made_by(once, caller().id, partner.subject_id, external_id)
        if link is None:
            if partner.policy.get("link_code_required", True):
                code = wanted.get("link_code")
                links.check_code(partner.subject_id, external_id, code, once=once)
            link = links.link(caller().id, partner.subject_id, external_id, once=once)
        feed.credit_parked(link)
        return link

    @door(RESIDENT)
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(LinkAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """My links, newest first"""
        return newest(wanted, partial(links.of_resident, caller().id))


@blueprint.route("/v1/me/links/<link_id>")
class OneLink(MethodView):
    @door(RESIDENT)
    @blueprint.response(200, LinkAnswer)
    def get(self, link_id: str) -> Link:
        """One of my links"""
        link = links.one_of(caller().id, link_id)
        if link is None:
            raise NotFound()
        return link

    @door(RESIDENT)
    @blueprint.response(204)
    def delete(self, link_id: str) -> None:
        """End a link; what it earned stays"""
        if not links.unlink(caller().id, link_id):
            raise NotFound()


@blueprint.route("/v1/me/devices")
class Devices(MethodView):
    @door(RESIDENT)
    @blueprint.arguments(DeviceRequest)
    @idempotent()
    @blueprint.response(201, DeviceAnswer)
    def post(self, wanted: dict[str, Any]) -> devices.Device:
        """Register a phone for notifications"""
        return devices.register(caller().id, wanted["token"], wanted["platform"])


@blueprint.route("/v1/me/devices/<device_id>")
class OneDevice(MethodView):
    @door(RESIDENT)
    @blueprint.response(204)
    def delete(self, device_id: str) -> None:
        """Remove a phone"""
        if not devices.forget(caller().id, device_id):
            raise NotFound()


@blueprint.route("/v1/me/notifications")
class Notifications(MethodView):
    @door(RESIDENT)
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, InboxAnswer)
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """My inbox, newest first"""
        answer = newest(wanted, partial(outbox.inbox, caller().id), _notification)
        return answer | {"unread": outbox.unread(caller().id)}


@blueprint.route("/v1/me/notifications/<notification_id>/read")
class ReadNotification(MethodView):
    @door(RESIDENT)
    @idempotent()
    @blueprint.response(204)
    def post(self, notification_id: str) -> None:
        """Mark one as read"""
        if not outbox.mark_read(caller().id, notification_id):
            raise NotFound()


@blueprint.route("/v1/me/milestones")
class Milestones(MethodView):
    @door(RESIDENT)
    @blueprint.response(200, MilestonesAnswer)
    def get(self) -> dict[str, Any]:
        """Milestones reached, oldest first, and the next ones

        What a reversal took back is not among them until it is reached again.
        """
        reached, following = milestones.of_resident(caller().id)
        return {
            "reached": [_titled(one) for one in reached],
            "next": {"kg": following} if following else None,
            "upcoming": [_titled(one) for one in milestones.upcoming(caller().id)],
        }


@blueprint.route("/v1/me/summary")
class Summary(MethodView):
    @door(RESIDENT)
    @blueprint.arguments(SummaryQuery, location="query")
    @blueprint.response(200, SummaryAnswer)
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """What I avoided and earned, by behaviour, dimension, day or month"""
        start, end = _range(wanted)
        cells = summaries.during(caller().id, start, end).cells
        behaviours: dict[str, dict[str, int]] = {}
        evidence: dict[str, dict[str, int]] = {}
        dimensions: dict[str, dict[str, int]] = {}
        series: dict[str, dict[str, int]] = {}
        for cell in cells:
            period = cell.day if wanted["by"] == "day" else cell.day[:7]
            for sums, name in (
                (behaviours, cell.behaviour),
                (evidence, cell.evidence),
                (dimensions, methodology.dimension_of(cell.behaviour)),
                (series, period),
            ):
                held = sums.setdefault(name, {"reduction_g": 0, "points": 0, "count": 0})
                held["reduction_g"] += cell.mg
                held["points"] += cell.points
                held["count"] += cell.count
        first = clock.city_day(start)
        last = clock.city_day(max(start, end - timedelta(milliseconds=1)))
        emitted = bills.emissions_between(caller().id, first, last)
        return {
            "reduction_g": sum(cell.mg for cell in cells),
            "points": sum(cell.points for cell in cells),
            "emissions_g": sum(emitted.values()),
            "by_carrier": emitted,
            "by_behaviour": behaviours,
            "by_dimension": dimensions,
            "by_evidence": evidence,
            "series": [{"period": period, **sums} for period, sums in sorted(series.items())],
        }


def _open(resident: Resident | None) -> Resident:
    """The caller's account, unless it was closed since the caller was let in."""
    if resident is None:
        raise Unauthenticated()
    return resident


def _range(wanted: dict[str, Any]) -> tuple[datetime, datetime]:
    """From the first instant to just before the second."""
    last = wanted.get("to", clock.city_day(clock.now()))
    end = last if isinstance(last, datetime) else clock.start_of(last + timedelta(days=1))
    newest = clock.city_day(end - timedelta(milliseconds=1))
    first = wanted.get("from", newest.replace(day=1))
    start = first if isinstance(first, datetime) else clock.start_of(first)
    if start > end or (start == end and not isinstance(last, datetime)):
        raise Invalid([("/from", "Must not lie after to.")])
    if end - start > timedelta(days=RANGE_DAYS_MAX + 1):
        raise Invalid([("/from", f"At most {RANGE_DAYS_MAX} days.")])
    return start, end


def _titled(one: milestones.Milestone | milestones.Upcoming) -> dict[str, Any]:
    return {**asdict(one), "title": one.title[language()]}


def _notification(row: Notification) -> dict[str, Any]:
    return {
        "id": row.id,
        "type": row.type,
        "category": row.category,
        "title": row.title[language()],
        "body": row.body[language()],
        "deep_link": row.deep_link,
        "created_at": row.created_at,
        "read_at": row.read_at,
        "delivery": row.delivery,
    }
