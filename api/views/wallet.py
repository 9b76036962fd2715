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
from api import security
from api.idempotency import business_key, idempotent
from api.numbers import Instant, Schema, Whole
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, newest, page_of
from api.problems import NotAcceptable, language
from api.reward_terms import image_url
from api.security import OPEN, RESIDENT, caller, door
from footprint import grade
from points import statements
from rewards import catalogue, merchants, pictures, redemptions, vouchers
from rewards.merchants import Merchant
from rewards.offers import Reward
from rewards.redemptions import Redemption

SVG, PNG, JPEG = "image/svg+xml", "image/png", "image/jpeg"
# Another picture has another address, see `image_url`.
PICTURE_KEPT_S = 86_400
QR_SCALE = 6

blueprint = Blueprint("wallet", __name__, description="Rewards and redemptions")


class StoreAnswer(ma.Schema):
    store_id = fields.String(required=True)
    name = fields.String(required=True)
    address = fields.String(required=True)


class RewardQuery(PageQuery):
    """`affordable` is about the resident whose token comes along, and needs one."""

    text = fields.String(
        validate=validate.Length(1, 64),
        metadata={"description": "Words of the title or the description, in either language."},
    )
    category = fields.String(validate=validate.Length(1, 40))
    merchant_id = fields.String(validate=validate.Length(1, 64))
    affordable = fields.String(validate=validate.OneOf(["true"]))
    available = fields.String(
        validate=validate.OneOf(["true"]),
        metadata={"description": "Without what is sold out, for good or for this month."},
    )


class RewardAnswer(ma.Schema):
    """Empty `grades` and `districts` mean everybody; `stock_left` is what this month has left."""

    id = fields.String(required=True)
    title = fields.String(required=True)
    description = fields.String(required=True)
    category = fields.String(required=True)
    image_url = fields.String(required=True, allow_none=True)
    price_points = fields.Integer(required=True)
    prices_by_grade = fields.Dict(keys=fields.String(), values=fields.Integer(), required=True)
    face_value_fen = fields.Integer(required=True)
    stock_left = fields.Integer(required=True)
    per_resident_limit = fields.Integer(required=True, allow_none=True)
    per_day_limit = fields.Integer(required=True, allow_none=True)
    per_month_limit = fields.Integer(required=True, allow_none=True)
    grades = fields.List(fields.String(), required=True)
    districts = fields.List(fields.String(), required=True)
    voucher_valid_days = fields.Integer(required=True)
    paused = fields.Boolean(required=True)
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
    points_returned = fields.Boolean(
        required=True, metadata={"description": "It ran out unused, and its points are back."}
    )
    code = fields.String(required=True)
    expires_at = Instant(required=True)
    qr_payload = fields.String(required=True)


class RedemptionAnswer(ma.Schema):
    id = fields.String(required=True)
    reward_id = fields.String(required=True)
    reward_title = fields.String(required=True)
    quantity = fields.Integer(required=True)
    status = fields.String(required=True)
    points = fields.Integer(required=True)
    created_at = Instant(required=True)
    vouchers = fields.List(fields.Nested(VoucherAnswer), required=True)


@blueprint.route("/v1/rewards")
class Rewards(MethodView):
    @door(OPEN)
    @refuses("unauthenticated")
    @blueprint.arguments(RewardQuery, location="query")
    @blueprint.response(200, page_of(RewardAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Rewards that can be had, newest first"""
        names = ("text", "category", "merchant_id")
        filters: dict[str, Any] = {name: wanted[name] for name in names if name in wanted}
        if "affordable" in wanted:
            me = security.resident().id
            filters["most_points"] = statements.balance(me).available
            filters["grade"] = grade.newest([me]).get(me)
        filters["in_stock"] = "available" in wanted
        answer = newest(wanted, partial(catalogue.open_rewards, clock.now(), **filters))
        known = merchants.many({reward.merchant_id for reward in answer["items"]})
        shown = [_reward(reward, known[reward.merchant_id]) for reward in answer["items"]]
        return answer | {"items": shown}


@blueprint.route("/v1/rewards/<reward_id>")
class OneReward(MethodView):
    @door(OPEN)
    @blueprint.response(200, RewardAnswer)
    def get(self, reward_id: str) -> dict[str, Any]:
        """One reward"""
        reward = catalogue.reward(reward_id)
        return _reward(reward, merchants.get(reward.merchant_id))


@blueprint.route("/v1/rewards/<reward_id>/image")
class RewardPicture(MethodView):
    @door(OPEN)
    @blueprint.response(200, description="A JPEG, to be kept for a day")
    @blueprint.alt_response(304, description="The same as you have")
    @blueprint.doc(responses={200: {"content": {JPEG: {"schema": {"type": "string"}}}}})
    def get(self, reward_id: str) -> Response:
        """The picture of a reward"""
        digest = catalogue.reward(reward_id).image
        if digest is None:
            raise NotFound()
        response = Response(mimetype=JPEG)
        response.set_etag(digest)
        response.cache_control.public = True
        response.cache_control.max_age = PICTURE_KEPT_S
        if not request.if_none_match.contains(digest):
            response.set_data(pictures.jpeg(digest))
        response.make_conditional(request)
        return response


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
        "category": reward.category,
        "image_url": image_url(reward),
        "price_points": reward.price_points,
        "prices_by_grade": reward.prices_by_grade,
        "face_value_fen": reward.face_value_fen,
        "stock_left": reward.left_in(clock.city_month(clock.now())),
        "per_resident_limit": reward.per_resident_limit,
        "per_day_limit": reward.per_day_limit,
        "per_month_limit": reward.per_month_limit,
        "grades": reward.grades,
        "districts": reward.districts,
        "voucher_valid_days": reward.voucher_valid_days,
        "paused": reward.paused,
        "merchant_id": reward.merchant_id,
        "stores": [
            store
            for store in merchant.open_stores
            if not reward.store_ids or store.store_id in reward.store_ids
        ],
        "available_from": reward.available_from,
        "available_to": reward.available_to,
    }


def _redemption(redemption: Redemption) -> dict[str, Any]:
    now: datetime = clock.now()
    return {
        "id": redemption.id,
        "reward_id": redemption.reward_id,
        "reward_title": redemption.promise["title"][language()],
        "quantity": redemption.quantity,
        "status": redemption.state,
        "points": redemption.points,
        "created_at": redemption.created_at,
        "vouchers": [
            {
                "id": voucher.id,
                "status": voucher.status_at(now),
                "points_returned": voucher.status == vouchers.RETURNED,
                "code": vouchers.code_of(voucher.id),
                "expires_at": voucher.expires_at,
                "qr_payload": vouchers.qr_payload(voucher.id, now),
            }
            for voucher in vouchers.of_redemption(redemption.id)
        ],
    }
