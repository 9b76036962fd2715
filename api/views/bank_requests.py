"""A bank asks its customers for consents."""

from typing import Any

import marshmallow as ma
from flask import current_app
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import clock, consent_requests, consents
from accounting.consent_requests import APPROVED, ConsentRequest
from api.idempotency import idempotent
from api.numbers import Instant, Schema
from api.openapi import Blueprint, refuses
from api.problems import Invalid
from api.security import BANK, caller, door
from api.views.consents import FIELDS, PURPOSE, REAL_NAME

blueprint = Blueprint("bank_requests", __name__, description="Consent requests of a bank")


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


def _link(request: ConsentRequest) -> str:
    """The address the app reads the request from."""
    base: str = current_app.extensions["config"].public_url
    return f"{base.rstrip('/')}/v1/me/consent-requests/{request.id}"
