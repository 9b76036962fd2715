"""The till: look a voucher up, redeem it once."""

from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import clock
from api.idempotency import idempotent
from api.numbers import Instant, Schema
from api.openapi import Blueprint, refuses
from api.problems import language
from api.security import MERCHANT, caller, door
from rewards import vouchers
from rewards.vouchers import Voucher, WrongMerchant

blueprint = Blueprint("merchant", __name__, description="Merchants at the till")


class VoucherInHand(Schema):
    """The typed code or the scanned QR, one of them."""

    code = fields.String(validate=validate.Length(1, 32))
    qr_payload = fields.String(validate=validate.Length(1, 512))

    @ma.validates_schema
    def one_of_them(self, data: dict[str, Any], **_: Any) -> None:
        if ("code" in data) == ("qr_payload" in data):
            raise ma.ValidationError("Send either code or qr_payload.", "code")


class RedeemRequest(VoucherInHand):
    store_id = fields.String(required=True, validate=validate.Length(1, 64))
    terminal_ref = fields.String(required=True, validate=validate.Length(1, 128))


class LookupAnswer(ma.Schema):
    voucher_id = fields.String(required=True)
    reward_title = fields.String(required=True)
    status = fields.String(required=True)
    expires_at = Instant(required=True)


class RedeemAnswer(ma.Schema):
    voucher_id = fields.String(required=True)
    status = fields.String(required=True)
    used_at = Instant(required=True)


@blueprint.route("/v1/merchant/vouchers/lookup")
class Lookup(MethodView):
    @door(MERCHANT, scope="vouchers:redeem")
    @refuses("wrong_merchant", "invalid_qr", "not_found")
    @blueprint.arguments(VoucherInHand)
    @blueprint.response(200, LookupAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """What a voucher is and whether it can be used"""
        voucher = _in_hand(wanted)
        if voucher.merchant_id != caller().id:
            raise WrongMerchant()
        return {
            "voucher_id": voucher.id,
            "reward_title": voucher.title[language()],
            "status": voucher.status_at(clock.now()),
            "expires_at": voucher.expires_at,
        }


@blueprint.route("/v1/merchant/vouchers/redeem")
class Redeem(MethodView):
    @door(MERCHANT, scope="vouchers:redeem")
    @refuses(
        "wrong_merchant",
        "invalid_qr",
        "not_found",
        "voucher_used",
        "voucher_expired",
        "voucher_cancelled",
        "idempotency_key_reused",
    )
    @blueprint.arguments(RedeemRequest)
    @idempotent()
    @blueprint.response(200, RedeemAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Use a voucher, once; the same terminal_ref again gives the first answer"""
        voucher = vouchers.redeem(
            _in_hand(wanted),
            merchant_id=caller().id,
            store_id=wanted["store_id"],
            terminal_ref=wanted["terminal_ref"],
        )
        return {
            "voucher_id": voucher.id,
            "status": voucher.status,
            "used_at": voucher.used_at,
        }


def _in_hand(wanted: dict[str, Any]) -> Voucher:
    return vouchers.find(code=wanted.get("code"), qr=wanted.get("qr_payload"), now=clock.now())
