"""A bank asks its customers for consents, and looks after the keys it signs with."""

import base64
import binascii
from typing import Any

import marshmallow as ma
from flask import current_app
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import audit, clients, clock, consent_requests, consents
from accounting.clients import KEYS_LIVE_MAX
from accounting.consent_requests import APPROVED, ConsentRequest
from accounting.errors import DomainError, NotFound
from api.idempotency import idempotent
from api.numbers import Instant, Schema
from api.openapi import Blueprint, refuses
from api.problems import Invalid
from api.security import BANK, caller, door
from api.views.consents import FIELDS, PURPOSE, REAL_NAME
from integrations import signatures

blueprint = Blueprint("bank_requests", __name__, description="Consent requests and keys of a bank")


class LastKey(DomainError):
    code = "last_key"
    en = "This is the only live key; add another before you end it."
    zh = "这是唯一有效的密钥，请先添加新密钥再停用。"


class RequestBody(Schema):
    """`customer_name` is needed outside the demo: the customer must give the same to approve."""

    customer_ref = fields.String(required=True, validate=validate.Length(1, 128))
    purpose = fields.String(required=True, validate=PURPOSE)
    fields_ = fields.List(
        fields.String(validate=validate.OneOf(consents.FIELDS)),
        required=True,
        data_key="fields",
        validate=FIELDS,
    )
    customer_name = fields.String(validate=REAL_NAME)


class RequestedAnswer(ma.Schema):
    request_id = fields.String(required=True)
    link = fields.String(required=True)


class RequestAnswer(RequestedAnswer):
    """`reference` is there once the customer approved."""

    customer_ref = fields.String(required=True)
    purpose = fields.String(required=True)
    fields_ = fields.List(fields.String(), required=True, data_key="fields")
    status = fields.String(required=True)
    reference = fields.String(required=True, allow_none=True)
    created_at = Instant(required=True)
    expires_at = Instant(required=True)
    answered_at = Instant(required=True, allow_none=True)


class KeyBody(Schema):
    """An Ed25519 key is made by the bank; a shared secret is made here and shown once."""

    algorithm = fields.String(
        required=True, validate=validate.OneOf([clients.HMAC_SHA256, clients.ED25519])
    )
    public_key_b64 = fields.String(validate=validate.Length(1, 100))


class KeyAnswer(ma.Schema):
    key_id = fields.String(required=True)
    algorithm = fields.String(required=True)
    not_before = Instant(required=True)


class NewKeyAnswer(KeyAnswer):
    hmac_key_b64 = fields.String(allow_none=True)


class KeysAnswer(ma.Schema):
    items = fields.List(fields.Nested(KeyAnswer), required=True)


@blueprint.route("/v1/bank/consent-requests")
class Requests(MethodView):
    @door(BANK, scope="grades:read")
    @refuses("consent_refused_recently")
    @blueprint.arguments(RequestBody)
    @idempotent()
    @blueprint.response(201, RequestedAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Ask a customer for a consent; hand the link over for them to approve in the app

        The same question again, while it is open, is the same request. After a refusal the customer
        rests from requests of this bank for 90 days.
        """
        name = wanted.get("customer_name")
        if name is None and not current_app.extensions["config"].demo:
            raise Invalid([("/customer_name", "Missing data for required field.")])
        request = consent_requests.ask(
            caller().id,
            wanted["customer_ref"],
            wanted["purpose"],
            tuple(dict.fromkeys(wanted["fields_"])),
            real_name=name,
        )
        return {"request_id": request.id, "link": _link(request)}


@blueprint.route("/v1/bank/consent-requests/<request_id>")
class OneRequest(MethodView):
    @door(BANK, scope="grades:read")
    @blueprint.response(200, RequestAnswer)
    def get(self, request_id: str) -> dict[str, Any]:
        """What became of a request; the reference of the consent is bound to `customer_ref`"""
        request = consent_requests.of_bank(caller().id, request_id)
        consent = None
        if request.state == APPROVED and request.resident is not None:
            consent = consents.get(request.resident, request.consent_id)
        return {
            "request_id": request.id,
            "link": _link(request),
            "customer_ref": request.customer_ref,
            "purpose": request.purpose,
            "fields_": request.fields,
            "status": request.state_at(clock.now()),
            "reference": consent.reference if consent is not None else None,
            "created_at": request.created_at,
            "expires_at": request.expires_at,
            "answered_at": request.answered_at,
        }


@blueprint.route("/v1/bank/keys")
class Keys(MethodView):
    @door(BANK, scope="grades:read")
    @blueprint.response(200, KeysAnswer)
    def get(self) -> dict[str, Any]:
        """My live signing keys, the oldest first"""
        return {"items": clients.live_keys(caller().client())}

    @door(BANK, scope="grades:read")
    @blueprint.arguments(KeyBody)
    @idempotent(secrets=("hmac_key_b64",))
    @blueprint.response(201, NewKeyAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Add a signing key; two are live at once, so a third ends the oldest

        Sign with the new one, and end the old one when nothing uses it any more.
        """
        bank, algorithm = caller().client(), wanted["algorithm"]
        answer: dict[str, Any] = {"algorithm": algorithm}
        if algorithm == clients.ED25519:
            key_id = clients.add_key(bank, algorithm, _public_key(wanted.get("public_key_b64")))
        else:
            if "public_key_b64" in wanted:
                raise Invalid([("/public_key_b64", "Unknown field.")])
            key_id, secret = clients.new_hmac_key(bank)
            answer["hmac_key_b64"] = base64.b64encode(secret).decode()
        audit.note(bank.client_id, "bank key added", caller().id, after={"key_id": key_id})
        return answer | {"key_id": key_id, "not_before": clock.now()}


@blueprint.route("/v1/bank/keys/<key_id>")
class OneKey(MethodView):
    @door(BANK, scope="grades:read")
    @refuses("last_key")
    @blueprint.response(204)
    def delete(self, key_id: str) -> None:
        """End a key at once; the last one cannot be ended"""
        bank = caller().client()
        live = [key.key_id for key in clients.live_keys(bank)]
        assert len(live) <= KEYS_LIVE_MAX, live
        if key_id not in live:
            raise NotFound()
        if len(live) == 1:
            raise LastKey()
        clients.retire_key(bank, key_id)
        audit.note(bank.client_id, "bank key ended", caller().id, before={"key_id": key_id})


def _link(request: ConsentRequest) -> str:
    """The address the app reads the request from."""
    base: str = current_app.extensions["config"].public_url
    return f"{base.rstrip('/')}/v1/me/consent-requests/{request.id}"


def _public_key(text: str | None) -> bytes:
    try:
        material = base64.b64decode(text or "", validate=True)
        signatures.ALGORITHMS[clients.ED25519].verification_key(material)
    except (binascii.Error, ValueError):
        raise Invalid(
            [("/public_key_b64", "The 32 raw bytes of an Ed25519 public key in base64.")]
        ) from None
    return material
