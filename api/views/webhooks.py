"""Webhooks: partners, banks, merchants and operators say what they want to hear, and where."""

from collections.abc import Callable
from typing import Any

import marshmallow as ma
from flask import current_app
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import audit, events, subscriptions
from accounting.clients import Kind as ClientKind
from accounting.events import TYPES_OF
from accounting.subscriptions import URL_CHARS_MAX, Webhook
from api import tasks
from api.idempotency import business_key, idempotent
from api.numbers import Instant, Schema, Whole
from api.openapi import Blueprint, View, refuses
from api.paging import PageQuery, newest, page_of
from api.problems import Invalid
from api.security import BANK, DATA, MERCHANT, OPERATOR, PLANT, caller, door
from integrations import webhook_targets, webhooks

CURSOR_MAX = 2**53
ALL_TYPES = sorted({str(type_) for types in TYPES_OF.values() for type_ in types})


class WebhookRequest(Schema):
    """Data partners: `activity.*`, `bill.*`, `bills.*`, `job.done`. Banks: `consent.*`,
    `green_list.*`. Merchants: `voucher.*`, `statement.closed`. Plants: `alert.*`.
    """

    url = fields.String(required=True, validate=validate.Length(1, URL_CHARS_MAX))
    events = fields.List(
        fields.String(validate=validate.OneOf(ALL_TYPES)),
        required=True,
        validate=validate.Length(1, len(ALL_TYPES)),
    )


class ReplayRequest(Schema):
    """Everything after `cursor`, which each event carries; 0 begins with the oldest there is."""

    cursor = Whole(required=True, validate=validate.Range(0, CURSOR_MAX))


class WebhookAnswer(ma.Schema):
    id = fields.String(required=True)
    url = fields.String(required=True)
    events = fields.List(fields.String(), required=True)
    state = fields.String(required=True, metadata={"enum": ["active", "disabled"]})
    why = fields.String(
        required=True, allow_none=True, metadata={"description": "Why it was disabled."}
    )
    failing_since = Instant(required=True, allow_none=True)
    created_at = Instant(required=True)


class MadeWebhookAnswer(WebhookAnswer):
    secret = fields.String(required=True, allow_none=True)


class RotatedAnswer(ma.Schema):
    id = fields.String(required=True)
    secret = fields.String(required=True, allow_none=True)
    old_secret_until = Instant(required=True)


class ReplayAnswer(ma.Schema):
    last_cursor = fields.Integer(required=True)


class PartyWebhookAnswer(WebhookAnswer):
    party = fields.String(required=True)


class DeliveryQuery(PageQuery):
    state = fields.String(
        validate=validate.OneOf([webhooks.WAITING, webhooks.DELIVERED, webhooks.GIVEN_UP])
    )


class DeliveryAnswer(ma.Schema):
    cursor = fields.Integer(required=True, attribute="number")
    event_id = fields.String(required=True, attribute="event")
    type = fields.String(required=True)
    aggregate = fields.String(required=True)
    state = fields.String(required=True)
    attempts = fields.Integer(required=True)
    next_attempt_at = Instant(required=True, allow_none=True)
    last_attempt_at = Instant(required=True, allow_none=True)
    status = fields.Integer(required=True, allow_none=True)
    error = fields.String(required=True, allow_none=True)
    took_ms = fields.Integer(required=True, allow_none=True)


class PartyQuery(PageQuery):
    state = fields.String(validate=validate.OneOf([subscriptions.ACTIVE, subscriptions.DISABLED]))


# Made once: two schemas of one name would be two in the document.
WEBHOOK_PAGE, DELIVERY_PAGE = page_of(WebhookAnswer), page_of(DeliveryAnswer)


def _kind() -> ClientKind:
    return ClientKind(caller().kind)


def _party() -> str:
    return events.party(_kind(), caller().id)


def _shown(hook: Webhook) -> dict[str, Any]:
    return {name: getattr(hook, name) for name in ("id", "party", *WebhookAnswer().fields)}


def _note(action: str, hook: Webhook) -> None:
    audit.note(caller().client_id or caller().id, action, hook.id, after={"party": hook.party})


def _find(before: str | None, limit: int) -> list[Webhook]:
    return subscriptions.listed(_party(), before=before, limit=limit)


def _add(wanted: dict[str, Any]) -> dict[str, Any]:
    if not set(wanted["events"]) <= set(TYPES_OF[_kind()]):
        raise Invalid([("/events", "Not an event for this kind of caller.")])
    webhook_targets.check(wanted["url"], loopback=current_app.extensions["config"].demo)
    party, once = _party(), business_key()
    events.number(party)
    hook, secret = subscriptions.add(
        party,
        wanted["url"],
        set(wanted["events"]),
        events.head(party),
        f"whk_{once[:32]}" if once else None,
    )
    _note("webhook added", hook)
    return {**_shown(hook), "secret": secret}


def _delete(webhook_id: str) -> None:
    hook = subscriptions.get(_party(), webhook_id)
    subscriptions.delete(hook.party, hook.id)
    webhooks.forget(hook.id)
    _note("webhook deleted", hook)


def _deliveries(wanted: dict[str, Any], webhook_id: str) -> dict[str, Any]:
    hook = subscriptions.get(_party(), webhook_id)

    def find(before: int | None, limit: int) -> list[webhooks.Delivery]:
        return webhooks.deliveries(hook.id, state=wanted.get("state"), before=before, limit=limit)

    return newest(wanted, find, by=lambda row: row.number)


def _replay(wanted: dict[str, Any], webhook_id: str) -> dict[str, Any]:
    last = webhooks.replay(_party(), webhook_id, wanted["cursor"])
    tasks.nudge(tasks.carry_webhook, webhook_id)
    return {"last_cursor": last}


def _rotate(webhook_id: str) -> dict[str, Any]:
    hook, secret, until = subscriptions.rotate(_party(), webhook_id)
    _note("webhook secret rotated", hook)
    return {"id": hook.id, "secret": secret, "old_secret_until": until}


def _enable(webhook_id: str) -> dict[str, Any]:
    hook = subscriptions.enable(_party(), webhook_id)
    _note("webhook enabled", hook)
    tasks.nudge(tasks.carry_webhook, hook.id)
    return _shown(hook)


def _blueprint(name: str, prefix: str, guard: Callable[[View], View]) -> Blueprint:
    """The addresses under one prefix, behind one door; each caller sees its own webhooks."""
    blueprint = Blueprint(name, __name__, description="Events sent to those who asked for them")

    @blueprint.route(prefix)
    class Webhooks(MethodView):
        @guard
        @refuses("too_many_webhooks")
        @blueprint.arguments(WebhookRequest)
        @idempotent(secrets=("secret",))
        @blueprint.response(201, MadeWebhookAnswer)
        def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
            """Ask for events at an address; the secret they are signed with is shown once"""
            return _add(wanted)

        @guard
        @blueprint.arguments(PageQuery, location="query")
        @blueprint.response(200, WEBHOOK_PAGE)
        def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
            """My webhooks, newest first"""
            return newest(wanted, _find, _shown)

    @blueprint.route(f"{prefix}/<webhook_id>")
    class OneWebhook(MethodView):
        @guard
        @blueprint.response(200, WebhookAnswer)
        def get(self, webhook_id: str) -> dict[str, Any]:
            """One of my webhooks, and whether it was disabled"""
            return _shown(subscriptions.get(_party(), webhook_id))

        @guard
        @blueprint.response(204)
        def delete(self, webhook_id: str) -> None:
            """Want no more events there"""
            _delete(webhook_id)

    @blueprint.route(f"{prefix}/<webhook_id>/deliveries")
    class Deliveries(MethodView):
        @guard
        @blueprint.arguments(DeliveryQuery, location="query")
        @blueprint.response(200, DELIVERY_PAGE)
        def get(self, wanted: dict[str, Any], webhook_id: str) -> dict[str, Any]:
            """What became of each event, newest first"""
            return _deliveries(wanted, webhook_id)

    @blueprint.route(f"{prefix}/<webhook_id>/replay")
    class Replay(MethodView):
        @guard
        @blueprint.arguments(ReplayRequest)
        @idempotent()
        @blueprint.response(202, ReplayAnswer)
        def post(self, wanted: dict[str, Any], webhook_id: str) -> dict[str, Any]:
            """Send everything after a cursor once more, with the ids it had"""
            return _replay(wanted, webhook_id)

    @blueprint.route(f"{prefix}/<webhook_id>/rotate")
    class Rotation(MethodView):
        @guard
        @idempotent(secrets=("secret",))
        @blueprint.response(200, RotatedAnswer)
        def post(self, webhook_id: str) -> dict[str, Any]:
            """A new secret; for a day the old one signs beside it"""
            return _rotate(webhook_id)

    @blueprint.route(f"{prefix}/<webhook_id>/enable")
    class Enabling(MethodView):
        @guard
        @idempotent()
        @blueprint.response(200, WebhookAnswer)
        def post(self, webhook_id: str) -> dict[str, Any]:
            """Begin again where it was disabled"""
            return _enable(webhook_id)

    return blueprint


blueprint = _blueprint("webhooks", "/v1/webhooks", door(DATA, BANK, MERCHANT, PLANT))
operators_blueprint = _blueprint(
    "operator_webhooks", "/v1/operator/webhooks", door(OPERATOR, area="partners")
)


@operators_blueprint.route("/v1/operator/partner-webhooks")
class PartnerWebhooks(MethodView):
    @door(OPERATOR, area="partners")
    @operators_blueprint.arguments(PartyQuery, location="query")
    @operators_blueprint.response(200, page_of(PartyWebhookAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Everybody's webhooks, newest first; `state=disabled` for those that were given up"""

        def find(before: str | None, limit: int) -> list[Webhook]:
            return subscriptions.of_all(wanted.get("state"), before=before, limit=limit)

        return newest(wanted, find, _shown)
