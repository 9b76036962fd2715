"""Sign-in of residents: a code by text message, or a Firebase ID token; rotating refresh tokens."""

import re
from typing import Any

import marshmallow as ma
from flask import current_app, request
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import accounts, tokens
from accounting.errors import Unauthenticated
from accounting.tokens import TokenPair
from api.bill_rows import CARRIERS
from api.numbers import Schema
from api.openapi import Blueprint, refuses
from api.problems import Invalid, language
from api.security import OPEN, RESIDENT, caller, door
from footprint import returning
from integrations import firebase, otp
from integrations.otp import OtpLimits

# The demo is one machine, and so are all its phones.
DEMO_LIMITS = OtpLimits(per_address="100000 per hour")
_MAINLAND = re.compile(r"1[3-9][0-9]{9}")
_INTERNATIONAL = re.compile(r"\+[1-9][0-9]{7,14}")

blueprint = Blueprint("auth", __name__, description="Sign-in of residents")


class PhoneRequest(Schema):
    phone = fields.String(required=True, validate=validate.Length(1, 20))


class CodeRequest(PhoneRequest):
    code = fields.String(required=True, validate=validate.Regexp(r"^[0-9]{6}\Z"))


class RefreshRequest(Schema):
    refresh_token = fields.String(required=True, validate=validate.Length(1, 128))


class FirebaseRequest(Schema):
    id_token = fields.String(required=True, validate=validate.Length(1, 8_000))


class ReturnRequest(Schema):
    """Partner and external id, or carrier and account number."""

    partner_id = fields.String(validate=validate.Length(1, 64))
    external_id = fields.String(validate=validate.Length(1, 128))
    carrier = fields.String(validate=validate.OneOf(CARRIERS))
    account_no = fields.String(validate=validate.Length(1, 64))

    @ma.validates_schema(skip_on_field_errors=True)
    def one_proof(self, data: dict[str, Any], **_: Any) -> None:
        if set(data) not in ({"partner_id", "external_id"}, {"carrier", "account_no"}):
            raise ma.ValidationError("Send partner_id and external_id, or carrier and account_no.")


class OtpAnswer(ma.Schema):
    expires_in = fields.Integer(required=True)
    debug_code = fields.String(metadata={"description": "With --demo on loopback only."})


class TokensAnswer(ma.Schema):
    access_token = fields.String(required=True)
    refresh_token = fields.String(required=True)
    token_type = fields.String(required=True)
    expires_in = fields.Integer(required=True)
    resident_id = fields.String(required=True)


@blueprint.route("/v1/auth/otp")
class OneTimePasswords(MethodView):
    @door(OPEN)
    @blueprint.arguments(PhoneRequest)
    @blueprint.response(202, OtpAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Text a sign-in code to a phone

        A mainland number (11 digits) or an international one with `+`.
        """
        demo = current_app.extensions["config"].demo
        issued = otp.request(
            current_app.extensions["redis"],
            current_app.extensions["texter"],
            _e164(wanted["phone"]),
            request.remote_addr or "",
            limits=DEMO_LIMITS if demo else OtpLimits(),
            language=language(),
        )
        answer: dict[str, Any] = {"expires_in": issued.expires_in}
        return answer | {"debug_code": issued.code} if demo else answer


@blueprint.route("/v1/auth/token")
class Tokens(MethodView):
    @door(OPEN)
    @refuses("invalid_code")
    @blueprint.arguments(CodeRequest)
    @blueprint.response(200, TokensAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Exchange a texted code for tokens; the account opens on first sign-in"""
        phone = _e164(wanted["phone"])
        otp.check(current_app.extensions["redis"], phone, wanted["code"])
        return _signed_in(accounts.by_phone(phone))


@blueprint.route("/v1/auth/firebase")
class FirebaseTokens(MethodView):
    @door(OPEN)
    @refuses("unauthenticated")
    @blueprint.arguments(FirebaseRequest)
    @blueprint.response(200, TokensAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Exchange a Firebase ID token for tokens"""
        claims = firebase.verify_id_token(current_app.extensions["firebase"], wanted["id_token"])
        phone = claims.get("phone_number")
        # Firebase has proven the number: whoever signs in by code with it is the same resident.
        return _signed_in(
            accounts.by_phone(phone) if phone else accounts.by_firebase(claims["uid"])
        )


@blueprint.route("/v1/auth/refresh")
class RefreshedTokens(MethodView):
    @door(OPEN)
    @refuses("unauthenticated")
    @blueprint.arguments(RefreshRequest)
    @blueprint.response(200, TokensAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Exchange a refresh token for new tokens; each works once"""
        pair = tokens.refresh(wanted["refresh_token"])
        bearer = tokens.resolve(pair.access_token)
        if bearer is None:
            raise Unauthenticated()
        accounts.seen(bearer.subject_id)
        return _answer(pair, bearer.subject_id)


@blueprint.route("/v1/auth/return")
class Returned(MethodView):
    @door(RESIDENT)
    @refuses("proof_not_accepted", "account_in_use")
    @blueprint.arguments(ReturnRequest)
    @blueprint.response(200, TokensAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Come back to my account after more than 90 days away

        A phone number may have changed hands, so by then the code alone opens a new account. Name a
        partner's id or a meter account that is linked to the old one; five tries.
        """
        if "partner_id" in wanted:
            former = returning.by_link(caller().id, wanted["partner_id"], wanted["external_id"])
        else:
            former = returning.by_meter(caller().id, wanted["carrier"], wanted["account_no"])
        return _answer(tokens.open_session(former), former)


@blueprint.route("/v1/auth/logout")
class Logout(MethodView):
    @door(RESIDENT)
    @blueprint.response(204)
    def post(self) -> None:
        """End this session and its refresh token"""
        session_id = caller().session_id
        assert session_id is not None, "a resident's token has a session"
        tokens.close_session(session_id)


def _signed_in(resident_id: str) -> dict[str, Any]:
    accounts.seen(resident_id)
    return _answer(tokens.open_session(resident_id), resident_id)


def _answer(pair: TokenPair, resident_id: str) -> dict[str, Any]:
    return {
        "access_token": pair.access_token,
        "refresh_token": pair.refresh_token,
        "token_type": "Bearer",
        "expires_in": pair.expires_in,
        "resident_id": resident_id,
    }


def _e164(phone: str) -> str:
    """The one spelling of a number; raises `Invalid`."""
    digits = phone.replace(" ", "").replace("-", "")
    if _MAINLAND.fullmatch(digits):
        return f"+86{digits}"
    if _INTERNATIONAL.fullmatch(digits):
        return digits
    raise Invalid([("/phone", "Not a valid phone number.")])
