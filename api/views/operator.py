"""The city operator: merchants, rewards, partners, taking an activity back."""

import base64
from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import audit, clients, clock
from accounting.clients import Kind
from accounting.errors import NotFound
from accounting.ids import new_id
from api.idempotency import idempotent
from api.numbers import Instant, Schema, Whole
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, newest, page_of
from api.reports import ActivityAnswer, shown
from api.security import OPERATOR, caller, door
from footprint import activities, methodology
from points import crediting
from rewards import catalogue
from rewards.catalogue import Reward

TEXT = validate.Length(1, 200)
STORES_MAX = 100
POINTS_MAX = 10_000_000
FEN_MAX = 100_000_000
STOCK_MAX = 10_000_000
CARRIERS = ("electricity", "gas", "water")
FUNDER = "city"

blueprint = Blueprint("operator", __name__, description="The city operator")


class BothLanguages(Schema):
    zh = fields.String(required=True, validate=TEXT)
    en = fields.String(required=True, validate=TEXT)


class StoreRequest(Schema):
    name = fields.String(required=True, validate=TEXT)
    address = fields.String(required=True, validate=TEXT)


class MerchantRequest(Schema):
    name = fields.Nested(BothLanguages, required=True)
    stores = fields.List(
        fields.Nested(StoreRequest), required=True, validate=validate.Length(1, STORES_MAX)
    )


class StoreIdAnswer(ma.Schema):
    store_id = fields.String(required=True)
    name = fields.String(required=True)


class MerchantAnswer(ma.Schema):
    merchant_id = fields.String(required=True)
    stores = fields.List(fields.Nested(StoreIdAnswer), required=True)
    client_id = fields.String(required=True)
    client_secret = fields.String(required=True, allow_none=True)


class RewardRequest(Schema):
    title = fields.Nested(BothLanguages, required=True)
    description = fields.Nested(BothLanguages)
    merchant_id = fields.String(required=True, validate=validate.Length(1, 64))
    price_points = Whole(required=True, validate=validate.Range(1, POINTS_MAX))
    face_value_fen = Whole(required=True, validate=validate.Range(0, FEN_MAX))
    stock = Whole(required=True, validate=validate.Range(0, STOCK_MAX))
    per_resident_limit = Whole(validate=validate.Range(1, 1_000))
    voucher_valid_days = Whole(required=True, validate=validate.Range(1, 3_650))
    funder_id = fields.String(load_default=FUNDER, validate=validate.OneOf([FUNDER]))
    available_from = Instant()
    available_to = Instant()

    @ma.validates_schema(skip_on_field_errors=True)
    def ends_after_it_begins(self, data: dict[str, Any], **_: Any) -> None:
        begins = data.get("available_from")
        if begins is not None and "available_to" in data and data["available_to"] <= begins:
            raise ma.ValidationError("Must lie after available_from.", "available_to")


class OperatorRewardAnswer(ma.Schema):
    id = fields.String(required=True)
    title = fields.Dict(keys=fields.String(), values=fields.String(), required=True)
    merchant_id = fields.String(required=True)
    price_points = fields.Integer(required=True)
    face_value_fen = fields.Integer(required=True)
    stock_left = fields.Integer(required=True)
    stock_reserved = fields.Integer(required=True)
    stock_issued = fields.Integer(required=True)
    per_resident_limit = fields.Integer(required=True, allow_none=True)
    voucher_valid_days = fields.Integer(required=True)
    funder_id = fields.String(required=True, attribute="funder")
    available_from = Instant(required=True)
    available_to = Instant(required=True, allow_none=True)


class PartnerRequest(Schema):
    """`behaviours` and `carriers` left out mean none; the id namespace is a prefix."""

    kind = fields.String(required=True, validate=validate.OneOf(["data", "bank"]))
    name = fields.String(required=True, validate=TEXT)
    behaviours = fields.List(fields.String(), load_default=list, validate=validate.Length(max=500))
    carriers = fields.List(
        fields.String(validate=validate.OneOf(CARRIERS)),
        load_default=list,
        validate=validate.Length(max=10),
    )
    id_namespace = fields.String(load_default="", validate=validate.Length(max=64))

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
    key_id = fields.String(metadata={"description": "Banks: the id of their signing key."})
    hmac_key_b64 = fields.String(allow_none=True)


class ReverseRequest(Schema):
    reason = fields.String(required=True, validate=validate.Length(1, 500))


@blueprint.route("/v1/operator/merchants")
class Merchants(MethodView):
    @door(OPERATOR, area="rewards")
    @blueprint.arguments(MerchantRequest)
    @idempotent(secrets=("client_secret",))
    @blueprint.response(201, MerchantAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Add a merchant with its stores; the secret is shown once"""
        merchant = catalogue.add_merchant(wanted["name"], wanted["stores"])
        client, secret = clients.create_client(
            Kind.MERCHANT, wanted["name"]["zh"], subject_id=merchant.id
        )
        audit.note(caller().id, "merchant added", merchant.id)
        return {
            "merchant_id": merchant.id,
            "stores": merchant.stores,
            "client_id": client.client_id,
            "client_secret": secret,
        }


@blueprint.route("/v1/operator/rewards")
class OperatorRewards(MethodView):
    @door(OPERATOR, area="rewards")
    @refuses("not_found")
    @blueprint.arguments(RewardRequest)
    @idempotent()
    @blueprint.response(201, OperatorRewardAnswer)
    def post(self, wanted: dict[str, Any]) -> Reward:
        """Add a reward to the catalogue"""
        reward = catalogue.add_reward(
            merchant_id=wanted["merchant_id"],
            title=wanted["title"],
            description=wanted.get("description", {}),
            price_points=wanted["price_points"],
            face_value_fen=wanted["face_value_fen"],
            stock=wanted["stock"],
            voucher_valid_days=wanted["voucher_valid_days"],
            funder=wanted["funder_id"],
            per_resident_limit=wanted.get("per_resident_limit"),
            available_from=wanted.get("available_from"),
            available_to=wanted.get("available_to"),
        )
        audit.note(caller().id, "reward added", reward.id)
        return reward

    @door(OPERATOR, area="rewards")
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(OperatorRewardAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """The whole catalogue with its stock, newest first"""
        return newest(wanted, catalogue.all_rewards)


@blueprint.route("/v1/operator/partners")
class Partners(MethodView):
    @door(OPERATOR, area="partners")
    @blueprint.arguments(PartnerRequest)
    @idempotent(secrets=("client_secret", "hmac_key_b64"))
    @blueprint.response(201, PartnerAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Add a data partner or a bank; credentials are shown once"""
        kind = Kind(wanted["kind"])
        partner_id = new_id("bnk" if kind is Kind.BANK else "ptn")
        policy = {name: wanted[name] for name in ("behaviours", "carriers", "id_namespace")}
        client, secret = clients.create_client(
            kind,
            wanted["name"],
            subject_id=partner_id,
            policy=policy if kind is Kind.DATA else None,
        )
        answer = {
            "partner_id": partner_id,
            "kind": kind.value,
            "client_id": client.client_id,
            "client_secret": secret,
        }
        if kind is Kind.BANK:
            key_id, key = clients.new_hmac_key(client)
            answer |= {"key_id": key_id, "hmac_key_b64": base64.b64encode(key).decode()}
        audit.note(caller().id, "partner added", partner_id)
        return answer


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
        reversed_ = crediting.reverse(activity, reason=wanted["reason"], by=caller().id)
        audit.note(caller().id, "activity reversed", activity_id, reason=wanted["reason"])
        return shown(reversed_)
