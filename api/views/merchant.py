"""The till: look a voucher up, redeem it once."""

from functools import lru_cache
from typing import Any

import marshmallow as ma
from flask import current_app
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import clients, clock
from api import problems
from api.idempotency import idempotent
from api.numbers import EachAlone, Instant, Schema
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, page, page_of, place
from api.problems import Invalid, language
from api.security import MERCHANT, OPERATOR, caller, door
from rewards import till, vouchers
from rewards.till import OfflineScan, Taken, Used, WrongMerchant
from rewards.vouchers import Voucher

SCANS_MAX = 200
STORES_KEPT = 10_000

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


class RefundAnswer(ma.Schema):
    voucher_id = fields.String(required=True)
    status = fields.String(required=True)
    refunded_at = Instant(required=True)


class OfflineScanFields(Schema):
    qr_payload = fields.String(required=True, validate=validate.Length(1, 512))
    store_id = fields.String(required=True, validate=validate.Length(1, 64))
    terminal_ref = fields.String(required=True, validate=validate.Length(1, 128))
    scanned_at = Instant(required=True)


class OfflineScansRequest(Schema):
    scans = EachAlone(OfflineScanFields, most=SCANS_MAX)


class OfflineScanAnswer(ma.Schema):
    status_code = fields.Integer(required=True)
    voucher = fields.Nested(RedeemAnswer)
    problem = fields.Nested(problems.Problem)


class OfflineScansAnswer(ma.Schema):
    results = fields.List(fields.Nested(OfflineScanAnswer), required=True)


class LostScanAnswer(ma.Schema):
    merchant_id = fields.String(required=True)
    store_id = fields.String(required=True)
    terminal_ref = fields.String(required=True)
    voucher_id = fields.String(required=True)
    code = fields.String(required=True)
    scanned_at = Instant(required=True)
    received_at = Instant(required=True)


# One schema for both lists of them.
LostScansAnswer = page_of(LostScanAnswer)


@blueprint.route("/v1/merchant/vouchers/lookup")
class Lookup(MethodView):
    @door(MERCHANT, scope="vouchers:redeem")
    @refuses("wrong_merchant", "invalid_qr", "not_found", "rate_limited")
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
        _check_credential(wanted["store_id"])
        used = till.redeem(
            _in_hand(wanted),
            merchant_id=caller().id,
            store_id=wanted["store_id"],
            terminal_ref=wanted["terminal_ref"],
        )
        return _used(used)


@blueprint.route("/v1/merchant/vouchers/<voucher_id>/refund")
class Refund(MethodView):
    @door(MERCHANT, scope="vouchers:redeem")
    @refuses(
        "not_found", "wrong_merchant", "voucher_not_used", "refund_window_over", "account_busy"
    )
    @idempotent()
    @blueprint.response(200, RefundAnswer)
    def post(self, voucher_id: str) -> dict[str, Any]:
        """Take the last scan back within seven days: the voucher can be used again

        Its owner may use it elsewhere or cancel it for the points; the merchant is owed less.
        """
        bound_to = _bound_to(caller().client_id or "")
        refunded = till.refund(voucher_id, merchant_id=caller().id, store_id=bound_to)
        return {
            "voucher_id": refunded.id,
            "status": refunded.status_at(clock.now()),
            "refunded_at": refunded.scans[-1].refunded_at,
        }


@blueprint.route("/v1/merchant/vouchers/offline-scans")
class OfflineScans(MethodView):
    @door(MERCHANT, scope="vouchers:redeem")
    @refuses("account_busy")
    @blueprint.arguments(OfflineScansRequest)
    @idempotent()
    @blueprint.response(200, OfflineScansAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Hand in scans made without network; of a voucher the first that arrives is paid

        The QR must have been fresh when it was scanned. A scan that lost is unpaid, and stays so.
        """
        read = [_read(raw) for raw in wanted["scans"]]
        scans = [one for one in read if isinstance(one, OfflineScan)]
        taken = iter(till.take_offline(caller().id, scans))
        results = (next(taken) if isinstance(one, OfflineScan) else one for one in read)
        return {"results": [_result(one) for one in results]}

    @door(MERCHANT, scope="vouchers:redeem")
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, LostScansAnswer)
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """The scans made without network that lost, newest first"""
        return _lost(caller().id, wanted)


@blueprint.route("/v1/operator/lost-scans")
class LostScans(MethodView):
    @door(OPERATOR, area="rewards")
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, LostScansAnswer)
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """The lost scans of every merchant, newest first"""
        return _lost(None, wanted)


@lru_cache(maxsize=STORES_KEPT)
def _bound_to(client_id: str) -> str | None:
    """The one store a credential works for, or None; it is given with the credential for ever."""
    store_id: str | None = clients.get(client_id).policy.get("store_id")
    return store_id


def _check_credential(store_id: str) -> None:
    """Raise `WrongMerchant` for a store that the caller's credential is not for."""
    client_id = caller().client_id
    assert client_id is not None, "merchants are machines"
    if _bound_to(client_id) not in (None, store_id):
        raise WrongMerchant()


def _in_hand(wanted: dict[str, Any]) -> Voucher:
    now = clock.now()
    if "qr_payload" in wanted:
        return vouchers.find(code=None, qr=wanted["qr_payload"], now=now)
    with current_app.extensions["limits"].guessing(caller()):
        return vouchers.find(code=wanted["code"], qr=None, now=now)


def _read(raw: Any) -> OfflineScan | Taken:
    """A scan of a list, or its refusal for its form."""
    try:
        scan = OfflineScan(**OfflineScanFields().load(raw))
        _check_credential(scan.store_id)
    except ma.ValidationError as error:
        return Taken(refusal=Invalid.of(error))
    except WrongMerchant as refusal:
        return Taken(refusal=refusal)
    return scan


def _used(used: Used) -> dict[str, Any]:
    return {
        "voucher_id": used.voucher_id,
        "status": vouchers.USED,
        "used_at": used.scan.used_at,
    }


def _result(taken: Taken) -> dict[str, Any]:
    if taken.refusal is not None:
        return problems.item(taken.refusal)
    assert taken.used is not None, "a scan is taken or refused"
    return {"status_code": 200, "voucher": _used(taken.used)}


def _lost(merchant_id: str | None, wanted: dict[str, Any]) -> dict[str, Any]:
    found = till.lost_scans(merchant_id, before=place(wanted), limit=wanted["limit"] + 1)
    return page(found, wanted, lambda row: (row["received_at"], row["_id"]))
