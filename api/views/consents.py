"""Consents from the resident's side: texts, giving, withdrawing, what banks ask for, who read."""

from datetime import datetime, timedelta
from functools import partial
from typing import Any

import marshmallow as ma
from flask import current_app
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import clients, clock, consent_requests, consent_texts, consents, real_names
from accounting.clients import Kind
from accounting.consent_requests import ConsentRequest
from accounting.consents import Access, Consent
from accounting.errors import NotFound
from api.idempotency import business_key, idempotent
from api.numbers import Instant, Schema
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, newest, page, page_of, place
from api.problems import Invalid, language
from api.security import OPEN, RESIDENT, caller, door
from footprint import greenlist

CONSENT_MAX = timedelta(days=5 * 366)
PURPOSE = validate.Length(1, 128)
REAL_NAME = validate.Length(1, 100)
# What consents other than those for banks are for, when nothing else is said.
PURPOSES = {
    consent_texts.LOCATION: "trip_checks",
    consent_texts.HEALTH: "walking",
    consent_texts.PARTNER: "kept_records",
}
FIELDS = validate.Length(1, len(consents.FIELDS))

blueprint = Blueprint("consents", __name__, description="Consents and who read what")


class ConsentBody(Schema):
    """A bank's consent names bank, purpose, fields and end; of the others only `kind` is needed.

    Outside the demo it also needs `real_name`, the name a bank has matched before. `partner` also
    needs the partner. Those without an end hold for five years.
    """

    kind = fields.String(
        load_default=consent_texts.BANK, validate=validate.OneOf(consent_texts.KINDS)
    )
    bank_id = fields.String(validate=validate.Length(1, 64))
    partner_id = fields.String(validate=validate.Length(1, 64))
    purpose = fields.String(validate=PURPOSE)
    fields_ = fields.List(
        fields.String(validate=validate.OneOf(consents.FIELDS)), data_key="fields", validate=FIELDS
    )
    expires_at = Instant()
    text_version = fields.String(validate=validate.Length(1, 32))
    real_name = fields.String(validate=REAL_NAME)

    @ma.validates_schema(skip_on_field_errors=True)
    def complete(self, data: dict[str, Any], **_: Any) -> None:
        needed = {
            consent_texts.BANK: ("bank_id", "purpose", "fields_", "expires_at"),
            consent_texts.PARTNER: ("partner_id",),
        }.get(data["kind"], ())
        foreign = {"bank_id", "fields_", "partner_id"} - set(needed)
        if data["kind"] != consent_texts.BANK:
            foreign.add("real_name")
        shown = {"fields_": "fields"}
        errors = {shown.get(one, one): ["Missing data for required field."]
                  for one in needed if one not in data}  # fmt: skip
        errors |= {shown.get(one, one): ["Unknown field."] for one in foreign & data.keys()}
        if errors:
            raise ma.ValidationError(errors)


class ConsentAnswer(ma.Schema):
    id = fields.String(required=True)
    kind = fields.String(required=True)
    reference = fields.String(required=True)
    bank_id = fields.String(required=True, allow_none=True)
    partner_id = fields.String(required=True, allow_none=True)
    purpose = fields.String(required=True)
    fields_ = fields.List(fields.String(), required=True, data_key="fields")
    text_version = fields.String(required=True)
    status = fields.String(required=True)
    created_at = Instant(required=True)
    expires_at = Instant(required=True)
    withdrawn_at = Instant(required=True, allow_none=True)


class TextsQuery(PageQuery):
    kind = fields.String(validate=validate.OneOf(consent_texts.KINDS))


class TextAnswer(ma.Schema):
    kind = fields.String(required=True)
    version = fields.String(required=True)
    text = fields.String(required=True)
    in_force = fields.Boolean(required=True)


class AskedAnswer(ma.Schema):
    """A bank's request; `named` ones need the name the bank knows its customer by."""

    id = fields.String(required=True)
    bank_id = fields.String(required=True)
    bank_name = fields.String(required=True)
    purpose = fields.String(required=True)
    fields_ = fields.List(fields.String(), required=True, data_key="fields")
    status = fields.String(required=True)
    named = fields.Boolean(required=True)
    text_version = fields.String(required=True)
    created_at = Instant(required=True)
    expires_at = Instant(required=True)


class ApproveBody(Schema):
    """The consent holds for a year unless it is given for longer or shorter."""

    body_optional = True

    expires_at = Instant()
    real_name = fields.String(validate=REAL_NAME)


class AccessAnswer(ma.Schema):
    id = fields.String(required=True)
    bank_id = fields.String(required=True)
    reference = fields.String(required=True)
    purpose = fields.String(required=True)
    what = fields.String(required=True)
    allowed = fields.Boolean(required=True)
    fields_ = fields.List(fields.String(), required=True, data_key="fields")
    at = Instant(required=True)


@blueprint.route("/v1/consent-texts")
class Texts(MethodView):
    @door(OPEN)
    @blueprint.arguments(TextsQuery, location="query")
    @blueprint.response(200, page_of(TextAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """The texts residents consent to, by kind, the version in force first"""
        day = clock.city_day(clock.now())
        rows = [
            {
                "kind": text.kind,
                "version": text.version,
                "text": text.en if language() == "en" else text.zh,
                "in_force": text == consent_texts.in_force(text.kind, day),
            }
            for text in consent_texts.shown_by(day, wanted.get("kind"))
        ]
        last = place(wanted)
        names = [(row["kind"], row["version"]) for row in rows]
        rest = rows[names.index(last) + 1 :] if last in names else rows
        return page(rest, wanted, lambda row: (row["kind"], row["version"]))


@blueprint.route("/v1/me/consents")
class Consents(MethodView):
    @door(RESIDENT)
    @refuses("name_not_matching", "real_name_needed")
    @blueprint.arguments(ConsentBody)
    @idempotent()
    @blueprint.response(201, ConsentAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Allow a bank to read chosen fields for one purpose, until a date; or another kind"""
        kind, now = wanted["kind"], clock.now()
        for name, of, wrong in (
            ("bank_id", Kind.BANK, "There is no such bank."),
            ("partner_id", Kind.DATA, "There is no such partner."),
        ):
            if name in wanted and clients.of_subject(of, wanted[name]) is None:
                raise Invalid([(f"/{name}", wrong)])
        _check_end(wanted.get("expires_at"), now)
        known = [one.version for one in consent_texts.shown_by(clock.city_day(now), kind)]
        if wanted.get("text_version", known[0]) not in known:
            raise Invalid([("/text_version", "Not a text that was in force.")])
        if kind == consent_texts.BANK and not current_app.extensions["config"].demo:
            real_names.check(caller().id, wanted.get("real_name"))
        consent = consents.grant(
            caller().id,
            kind=kind,
            bank_id=wanted.get("bank_id"),
            partner_id=wanted.get("partner_id"),
            purpose=wanted.get("purpose") or PURPOSES[kind],
            fields=tuple(dict.fromkeys(wanted.get("fields_", ()))),
            expires_at=wanted.get("expires_at", now + CONSENT_MAX),
            text_version=wanted.get("text_version"),
            once=business_key(),
        )
        greenlist.follow(consent.resident)
        return shown(consent)

    @door(RESIDENT)
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(ConsentAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """My consents, newest first"""
        return newest(wanted, partial(consents.of_resident, caller().id), shown)


@blueprint.route("/v1/me/consents/<consent_id>")
class OneConsent(MethodView):
    @door(RESIDENT)
    @blueprint.response(200, ConsentAnswer)
    def get(self, consent_id: str) -> dict[str, Any]:
        """One of my consents"""
        consent = consents.get(caller().id, consent_id)
        if consent is None:
            raise NotFound()
        return shown(consent)

    @door(RESIDENT)
    @blueprint.response(204)
    def delete(self, consent_id: str) -> None:
        """Withdraw a consent; the bank's next read gets nothing, and the bank is told"""
        if not consents.withdraw(caller().id, consent_id):
            raise NotFound()
        greenlist.follow(caller().id)


@blueprint.route("/v1/me/consent-requests")
class Asked(MethodView):
    @door(RESIDENT)
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(AskedAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """What banks ask me for: requests whose link I have opened, newest first

        In the demo, where nobody carries links about, also those nobody has opened.
        """
        demo: bool = current_app.extensions["config"].demo
        mine = partial(consent_requests.of_resident, caller().id, unopened_too=demo)
        return newest(wanted, mine, _asked)


@blueprint.route("/v1/me/consent-requests/<request_id>")
class OneAsked(MethodView):
    @door(RESIDENT)
    @blueprint.response(200, AskedAnswer)
    def get(self, request_id: str) -> dict[str, Any]:
        """The request behind a link; whoever opens it first is who it is for"""
        return _asked(consent_requests.open_link(caller().id, request_id))


@blueprint.route("/v1/me/consent-requests/<request_id>/approve")
class Approved(MethodView):
    @door(RESIDENT)
    @refuses("consent_request_over", "name_not_matching")
    @blueprint.arguments(ApproveBody)
    @idempotent()
    @blueprint.response(201, ConsentAnswer)
    def post(self, wanted: dict[str, Any], request_id: str) -> dict[str, Any]:
        """Give the consent a bank asked for"""
        _check_end(wanted.get("expires_at"), clock.now())
        consent = consent_requests.approve(
            caller().id,
            request_id,
            expires_at=wanted.get("expires_at"),
            real_name=wanted.get("real_name"),
        )
        greenlist.follow(consent.resident)
        return shown(consent)


@blueprint.route("/v1/me/consent-requests/<request_id>/decline")
class Declined(MethodView):
    @door(RESIDENT)
    @refuses("consent_request_over")
    @idempotent()
    @blueprint.response(200, AskedAnswer)
    def post(self, request_id: str) -> dict[str, Any]:
        """Refuse; the bank may not ask again for 90 days"""
        return _asked(consent_requests.decline(caller().id, request_id))


@blueprint.route("/v1/me/access-log")
class AccessLog(MethodView):
    @door(RESIDENT)
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(AccessAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Who read what of me, when and why, allowed or refused"""
        return newest(wanted, partial(consents.access_log, caller().id), _access)


def _check_end(expires_at: datetime | None, now: datetime) -> None:
    if expires_at is not None and not now < expires_at <= now + CONSENT_MAX:
        raise Invalid([("/expires_at", "Must lie in the future, at most five years.")])


def shown(consent: Consent) -> dict[str, Any]:
    return {
        "id": consent.id,
        "kind": consent.kind,
        "reference": consent.reference,
        "bank_id": consent.bank_id,
        "partner_id": consent.partner_id,
        "purpose": consent.purpose,
        "fields_": consent.fields,
        "text_version": consent.text_version,
        "status": consent.status_at(clock.now()),
        "created_at": consent.created_at,
        "expires_at": consent.expires_at,
        "withdrawn_at": consent.withdrawn_at,
    }


def _asked(request: ConsentRequest) -> dict[str, Any]:
    bank, now = clients.of_subject(Kind.BANK, request.bank_id), clock.now()
    text = consent_texts.in_force(consent_texts.BANK, clock.city_day(now))
    return {
        "id": request.id,
        "bank_id": request.bank_id,
        "bank_name": bank.name if bank is not None else request.bank_id,
        "purpose": request.purpose,
        "fields_": request.fields,
        "status": request.state_at(now),
        "named": request.named,
        "text_version": text.version,
        "created_at": request.created_at,
        "expires_at": request.expires_at,
    }


def _access(access: Access) -> dict[str, Any]:
    return {
        "id": access.id,
        "bank_id": access.bank_id,
        "reference": access.reference,
        "purpose": access.purpose,
        "what": access.what,
        "allowed": access.allowed,
        "fields_": access.fields,
        "at": access.at,
    }
