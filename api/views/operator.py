"""The city operator: partners, taking an activity back."""

import base64
from operator import attrgetter
from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import audit, clients, clock
from accounting.clients import Client, Kind
from accounting.enterprise import plants
from accounting.errors import NotFound
from accounting.ids import new_id
from api.idempotency import KEPT, business_key, idempotent
from api.numbers import Flag, Schema
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, newest, page_of
from api.reports import ActivityAnswer, shown
from api.security import OPERATOR, caller, door
from api.versions import one_is_enough
from footprint import activities, methodology
from points import crediting

TEXT = validate.Length(1, 200)
CARRIERS = ("electricity", "gas", "water")

blueprint = Blueprint("operator", __name__, description="The city operator")


class PartnerRequest(Schema):
    """`behaviours` and `carriers` left out mean none; the id namespace is a prefix.

    A gateway of a plant names the plant it sends readings of.
    """

    kind = fields.String(required=True, validate=validate.OneOf(["data", "bank", "plant"]))
    name = fields.String(required=True, validate=TEXT)
    plant_id = fields.String(validate=validate.Length(1, 64))
    behaviours = fields.List(fields.String(), load_default=list, validate=validate.Length(max=500))
    carriers = fields.List(
        fields.String(validate=validate.OneOf(CARRIERS)),
        load_default=list,
        validate=validate.Length(max=10),
    )
    id_namespace = fields.String(load_default="", validate=validate.Length(max=64))

    @ma.validates_schema(skip_on_field_errors=True)
    def names_its_plant(self, data: dict[str, Any], **_: Any) -> None:
        if data["kind"] == "plant" and "plant_id" not in data:
            raise ma.ValidationError("Missing data for required field.", "plant_id")
        if data["kind"] != "plant" and "plant_id" in data:
            raise ma.ValidationError("Only a gateway of a plant names a plant.", "plant_id")

    @ma.validates("behaviours")
    def known(self, value: list[str], **_: Any) -> None:
        rules = methodology.in_force(clock.city_day(clock.now()))
        unknown = [code for code in value if code not in rules.behaviours]
        if unknown:
            raise ma.ValidationError("Not a known behaviour.")


class PartnerAnswer(ma.Schema):
    partner_id = fields.String(required=True)
    kind = fields.String(required=True)
    client_id = fields.String(required=True)
    client_secret = fields.String(required=True, allow_none=True)
    plant_id = fields.String(metadata={"description": "Gateways: the plant they act for."})
    key_id = fields.String(metadata={"description": "Banks: the id of their signing key."})
    hmac_key_b64 = fields.String(allow_none=True)


class WaitingAnswer(ma.Schema):
    partner_id = fields.String(required=True, attribute="subject_id")
    kind = fields.Enum(Kind, by_value=True, required=True)
    name = fields.String(required=True)
    client_id = fields.String(required=True)
    needs_approval = fields.Boolean(required=True)
    asked_by = fields.String(required=True, allow_none=True)
    approved_by = fields.String(required=True, allow_none=True)


class ReverseRequest(Schema):
    """`fraud: false` is for honest mistakes: then the grade keeps its two gradings of patience."""

    reason = fields.String(required=True, validate=validate.Length(1, 500))
    fraud = Flag(load_default=True)


@blueprint.route("/v1/operator/partners")
class Partners(MethodView):
    @door(OPERATOR, area="partners")
    @refuses("not_found")
    @blueprint.arguments(PartnerRequest)
    @idempotent(secrets=("client_secret", "hmac_key_b64"))
    @blueprint.response(201, PartnerAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Add a data partner, a bank or the gateway of a plant; credentials are shown once

        They give no token until another operator approves; in the demo one operator is enough.
        """
        kind, once = Kind(wanted["kind"]), business_key()
        client = clients.made_by(once) if once is not None else None
        if client is None:
            client, secret = _added(kind, wanted, once)
        else:
            # A crash lost the first answer, and with it the secret.
            secret = clients.new_secret(client) if _just_made(client) else None
        answer: dict[str, Any] = {
            "partner_id": client.subject_id,
            "kind": kind.value,
            "client_id": client.client_id,
            "client_secret": secret,
        }
        if kind is Kind.PLANT:
            answer["plant_id"] = client.subject_id
        if kind is Kind.BANK:
            answer |= _first_key(client, seen=secret is None)
        audit.note(
            caller().id,
            "partner added",
            client.subject_id,
            after={"kind": kind.value, "name": client.name, "client_id": client.client_id},
            once=f"partner-added:{client.client_id}",
        )
        return answer

    @door(OPERATOR, area="partners")
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(WaitingAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Partners that wait for a second operator"""
        return newest(wanted, clients.waiting, by=attrgetter("client_id"))


@blueprint.route("/v1/operator/partners/<client_id>/approve")
class ApprovedPartner(MethodView):
    @door(OPERATOR, area="partners")
    @refuses("second_operator_needed", "not_found")
    @idempotent()
    @blueprint.response(200, WaitingAnswer)
    def post(self, client_id: str) -> Client:
        """Let a partner in that another operator added, by its `client_id`"""
        done = clients.approve(client_id, by=caller().id, alone=one_is_enough())
        # Whoever approved, also where a crash kept that from being noted.
        if done.approved_by is not None:
            audit.note(
                done.approved_by,
                "partner approved",
                done.subject_id,
                before={"client_id": client_id, "approved_by": None},
                after={"client_id": client_id, "approved_by": done.approved_by},
                once=f"partner-approved:{client_id}",
            )
        return done


@blueprint.route("/v1/operator/activities/<activity_id>/reverse")
class ReversedActivity(MethodView):
    @door(OPERATOR, area="support")
    @refuses("nothing_to_reverse", "account_busy")
    @blueprint.arguments(ReverseRequest)
    @idempotent()
    @blueprint.response(200, ActivityAnswer)
    def post(self, wanted: dict[str, Any], activity_id: str) -> dict[str, Any]:
        """Take an activity back, with its points"""
        activity = activities.by_id(activity_id)
        if activity is None:
            raise NotFound()
        reversed_ = crediting.reverse(
            activity, reason=wanted["reason"], by=caller().id, fraud=wanted["fraud"]
        )
        audit.note(caller().id, "activity reversed", activity_id, reason=wanted["reason"])
        return shown(reversed_)


def _added(kind: Kind, wanted: dict[str, Any], once: str | None) -> tuple[Client, str | None]:
    if kind is Kind.PLANT:
        partner_id = plants.get_plant(wanted["plant_id"]).id
    else:
        partner_id = new_id("bnk" if kind is Kind.BANK else "ptn")
    policy = {name: wanted[name] for name in ("behaviours", "carriers", "id_namespace")}
    return clients.create_client(
        kind,
        wanted["name"],
        subject_id=partner_id,
        policy=policy if kind is Kind.DATA else None,
        once=once,
        asked_by=None if one_is_enough() else caller().id,
    )


def _just_made(client: Client) -> bool:
    """Whether nobody has seen the secret: an answer would have been kept for so long."""
    return clock.now() < client.created_at + KEPT


def _first_key(client: Client, *, seen: bool) -> dict[str, Any]:
    """A signing key for a new bank; one that a crash kept from being seen is replaced."""
    if seen:
        return {"key_id": clients.live_keys(client)[-1].key_id, "hmac_key_b64": None}
    key_id, key = clients.new_hmac_key(client, live_max=1)
    return {"key_id": key_id, "hmac_key_b64": base64.b64encode(key).decode()}
