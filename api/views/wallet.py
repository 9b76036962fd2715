"""Rewards and redemptions, as residents see them."""

from datetime import datetime
from functools import partial
from io import BytesIO
from typing import Any

import marshmallow as ma
import segno
from flask import Response, request
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import clock
from accounting.errors import NotFound
from api.idempotency import business_key, idempotent
from api.numbers import Instant, Schema, Whole
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, newest, page_of
from api.problems import NotAcceptable, language
from api.security import OPEN, RESIDENT, caller, door
from rewards import catalogue, redemptions, vouchers
from rewards.catalogue import Merchant, Reward
from rewards.redemptions import Redemption

SVG, PNG = "image/svg+xml", "image/png"
QR_SCALE = 6

blueprint = Blueprint("wallet", __name__, description="Rewards and redemptions")


class StoreAnswer(ma.Schema):
    store_id = fields.String(required=True)
    name = fields.String(required=True)
    address = fields.String(required=True)


class RewardAnswer(ma.Schema):
    id = fields.String(required=True)
    title = fields.String(required=True)
    description = fields.String(required=True)
    price_points = fields.Integer(required=True)
    stock_left = fields.Integer(required=True)
    per_resident_limit = fields.Integer(required=True, allow_none=True)
    merchant_id = fields.String(required=True)
    stores = fields.List(fields.Nested(StoreAnswer), required=True)
    available_from = Instant(required=True)
    available_to = Instant(required=True, allow_none=True)


class RedemptionRequest(Schema):
    reward_id = fields.String(required=True, validate=validate.Length(1, 64))
    quantity = Whole(load_default=1, validate=validate.Range(1, redemptions.QUANTITY_MAX))


class VoucherAnswer(ma.Schema):
    id = fields.String(required=True)
    status = fields.String(required=True)
    code = fields.String(required=True)
    expires_at = Instant(required=True)
    qr_payload = fields.String(required=True)


class RedemptionAnswer(ma.Schema):
    id = fields.String(required=True)
    reward_id = fields.String(required=True)
    quantity = fields.Integer(required=True)
    status = fields.String(required=True)
    points = fields.Integer(required=True)
    created_at = Instant(required=True)
    vouchers = fields.List(fields.Nested(VoucherAnswer), required=True)


@blueprint.route("/v1/rewards")
class Rewards(MethodView):
    @door(OPEN)
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(RewardAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Rewards that can be had, newest first"""
        answer = newest(wanted, partial(catalogue.open_rewards, clock.now()))
        merchants = catalogue.merchants({reward.merchant_id for reward in answer["items"]})
        shown = [_reward(reward, merchants[reward.merchant_id]) for reward in answer["items"]]
        return answer | {"items": shown}


@blueprint.route("/v1/rewards/<reward_id>")
class OneReward(MethodView):
    @door(OPEN)
    @blueprint.response(200, RewardAnswer)
    def get(self, reward_id: str) -> dict[str, Any]:
        """One reward"""
        reward = catalogue.reward(reward_id)
        return _reward(reward, catalogue.merchant(reward.merchant_id))


@blueprint.route("/v1/redemptions")
class Redemptions(MethodView):
    @door(RESIDENT)
    @refuses(
        "insufficient_points", "out_of_stock", "limit_reached", "reward_unavailable", "not_found"
    )
    @blueprint.arguments(RedemptionRequest)
    @idempotent(required=True)
    @blueprint.response(201, RedemptionAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Exchange points for vouchers of a reward"""
        key = business_key()
        assert key is not None, "the header is required"
        redemption = redemptions.redeem(caller().id, key, wanted["reward_id"], wanted["quantity"])
        return _redemption(redemption)

    @door(RESIDENT)
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(RedemptionAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """My redemptions, newest first"""
        return newest(wanted, partial(redemptions.of_resident, caller().id), _redemption)


@blueprint.route("/v1/redemptions/<redemption_id>")
class OneRedemption(MethodView):
    @door(RESIDENT)
    @blueprint.response(200, RedemptionAnswer)
    def get(self, redemption_id: str) -> dict[str, Any]:
        """One of my redemptions with its vouchers"""
        return _redemption(redemptions.get(caller().id, redemption_id))


@blueprint.route("/v1/redemptions/<redemption_id>/cancel")
class CancelledRedemption(MethodView):
    @door(RESIDENT)
    @refuses("voucher_used", "voucher_expired", "request_in_progress")
    @idempotent()
    @blueprint.response(200, RedemptionAnswer)
    def post(self, redemption_id: str) -> dict[str, Any]:
        """Give unused vouchers back; points return to the lots they came from"""
        return _redemption(redemptions.cancel(caller().id, redemption_id))


@blueprint.route("/v1/vouchers/<voucher_id>/qr")
class VoucherQr(MethodView):
    @door(RESIDENT)
    @refuses("not_acceptable")
    @blueprint.response(200, description="A QR code that lives 60 seconds")
    @blueprint.doc(
        responses={200: {"content": {kind: {"schema": {"type": "string"}} for kind in (SVG, PNG)}}}
    )
    def get(self, voucher_id: str) -> Response:
        """A fresh QR code of my voucher, SVG or PNG by the Accept header"""
        voucher = vouchers.get(voucher_id)
        if voucher is None or voucher.resident != caller().id:
            raise NotFound()
        accepted = request.accept_mimetypes
        wanted = accepted.best_match([SVG, PNG]) if accepted else SVG
        if wanted is None:
            raise NotAcceptable()
        code = segno.make(vouchers.qr_payload(voucher.id, clock.now()), error="m")
        buffer = BytesIO()
        code.save(buffer, kind="svg" if wanted == SVG else "png", scale=QR_SCALE)
        return Response(buffer.getvalue(), mimetype=wanted)


def _reward(reward: Reward, merchant: Merchant) -> dict[str, Any]:
    return {
        "id": reward.id,
        "title": reward.title[language()],
        "description": reward.description.get(language(), ""),
        "price_points": reward.price_points,
        "stock_left": reward.stock_left,
        "per_resident_limit": reward.per_resident_limit,
        "merchant_id": reward.merchant_id,
        "stores": merchant.stores,
        "available_from": reward.available_from,
        "available_to": reward.available_to,
    }


def _redemption(redemption: Redemption) -> dict[str, Any]:
    now: datetime = clock.now()
    return {
        "id": redemption.id,
        "reward_id": redemption.reward_id,
        "quantity": redemption.quantity,
        "status": redemption.state,
        "points": redemption.points,
        "created_at": redemption.created_at,
        "vouchers": [
            {
                "id": voucher.id,
                "status": voucher.status_at(now),
                "code": vouchers.code_of(voucher.id),
                "expires_at": voucher.expires_at,
                "qr_payload": vouchers.qr_payload(voucher.id, now),
            }
            for voucher in vouchers.of_redemption(redemption.id)
        ],
    }
