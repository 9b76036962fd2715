"""The personal grade and the consents, from the resident's side."""

from datetime import timedelta
from functools import partial
from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import clients, clock, consents
from accounting.clients import Kind
from accounting.consents import Access, Consent
from accounting.errors import NotFound
from api.idempotency import idempotent
from api.numbers import CityDay, Instant, Kilograms, Schema
from api.openapi import Blueprint
from api.paging import PageQuery, newest, page_of
from api.problems import Invalid, language
from api.security import OPEN, RESIDENT, caller, door
from footprint import grade
from footprint.grade import Snapshot

CONSENT_MAX = timedelta(days=5 * 366)
PURPOSE = validate.Length(1, 128)

blueprint = Blueprint("grades", __name__, description="The personal grade and consents")


class NextAnswer(ma.Schema):
    grade = fields.String(required=True)
    kg_to_go = Kilograms(required=True)


class CoverageAnswer(ma.Schema):
    active_months = fields.Integer(required=True)
    months = fields.Integer(required=True)
    share_ab_percent = fields.Integer(required=True)


class GradeAnswer(ma.Schema):
    grade = fields.String(required=True)
    label = fields.String(required=True)
    reduction_kg = Kilograms(required=True)
    counted_kg = Kilograms(required=True)
    margin_below_kg = Kilograms(required=True, allow_none=True)
    next = fields.Nested(NextAnswer)
    coverage = fields.Nested(CoverageAnswer, required=True)
    by_dimension = fields.Dict(keys=fields.String(), values=Kilograms(), required=True)
    policy_version = fields.String(required=True)
    graded_on = CityDay(required=True)
    valid_until = CityDay(required=True)


class ConsentRequest(Schema):
    kind = fields.String(load_default=consents.BANK, validate=validate.Equal(consents.BANK))
    bank_id = fields.String(required=True, validate=validate.Length(1, 64))
    purpose = fields.String(required=True, validate=PURPOSE)
    fields_ = fields.List(
        fields.String(validate=validate.OneOf(consents.FIELDS)),
        required=True,
        data_key="fields",
        validate=validate.Length(1, len(consents.FIELDS)),
    )
    expires_at = Instant(required=True)
    text_version = fields.String(validate=validate.OneOf(list(consents.TEXTS)))


class ConsentAnswer(ma.Schema):
    id = fields.String(required=True)
    reference = fields.String(required=True)
    bank_id = fields.String(required=True)
    purpose = fields.String(required=True)
    fields_ = fields.List(fields.String(), required=True, data_key="fields")
    text_version = fields.String(required=True)
    status = fields.String(required=True)
    created_at = Instant(required=True)
    expires_at = Instant(required=True)


class ConsentText(ma.Schema):
    version = fields.String(required=True)
    text = fields.String(required=True)


class ConsentTexts(ma.Schema):
    items = fields.List(fields.Nested(ConsentText), required=True)


class AccessAnswer(ma.Schema):
    id = fields.String(required=True)
    bank_id = fields.String(required=True)
    reference = fields.String(required=True)
    purpose = fields.String(required=True)
    what = fields.String(required=True)
    allowed = fields.Boolean(required=True)
    fields_ = fields.List(fields.String(), required=True, data_key="fields")
    at = Instant(required=True)


@blueprint.route("/v1/me/grade")
class Grade(MethodView):
    @door(RESIDENT)
    @blueprint.response(200, GradeAnswer)
    def get(self) -> dict[str, Any]:
        """My grade as it stands, with its margins and what it is made of"""
        return shown(grade.grade_now(caller().id))


@blueprint.route("/v1/me/grade/history")
class GradeHistory(MethodView):
    @door(RESIDENT)
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(GradeAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """My gradings, newest first"""
        history = partial(grade.history, caller().id)
        return newest(wanted, history, shown, by=lambda snapshot: snapshot.number)


@blueprint.route("/v1/consent-texts")
class Texts(MethodView):
    @door(OPEN)
    @blueprint.response(200, ConsentTexts)
    def get(self) -> dict[str, Any]:
        """The texts residents consent to, by version"""
        return {
            "items": [
                {"version": version, "text": texts[language()]}
                for version, texts in consents.TEXTS.items()
            ]
        }


@blueprint.route("/v1/me/consents")
class Consents(MethodView):
    @door(RESIDENT)
    @blueprint.arguments(ConsentRequest)
    @idempotent()
    @blueprint.response(201, ConsentAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Allow a bank to read chosen fields for one purpose, until a date"""
        if clients.of_subject(Kind.BANK, wanted["bank_id"]) is None:
            raise Invalid([("/bank_id", "There is no such bank.")])
        now = clock.now()
        if not now < wanted["expires_at"] <= now + CONSENT_MAX:
            raise Invalid([("/expires_at", "Must lie in the future, at most five years.")])
        return _consent(
            consents.grant(
                caller().id,
                bank_id=wanted["bank_id"],
                purpose=wanted["purpose"],
                fields=tuple(dict.fromkeys(wanted["fields_"])),
                expires_at=wanted["expires_at"],
                text_version=wanted.get("text_version", consents.TEXT_VERSION),
            )
        )

    @door(RESIDENT)
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(ConsentAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """My consents, newest first"""
        return newest(wanted, partial(consents.of_resident, caller().id), _consent)


@blueprint.route("/v1/me/consents/<consent_id>")
class OneConsent(MethodView):
    @door(RESIDENT)
    @blueprint.response(200, ConsentAnswer)
    def get(self, consent_id: str) -> dict[str, Any]:
        """One of my consents"""
        consent = consents.get(caller().id, consent_id)
        if consent is None:
            raise NotFound()
        return _consent(consent)

    @door(RESIDENT)
    @blueprint.response(204)
    def delete(self, consent_id: str) -> None:
        """Withdraw a consent; the bank's next read gets nothing"""
        if not consents.withdraw(caller().id, consent_id):
            raise NotFound()


@blueprint.route("/v1/me/access-log")
class AccessLog(MethodView):
    @door(RESIDENT)
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(AccessAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Who read what of me, when and why, allowed or refused"""
        return newest(wanted, partial(consents.access_log, caller().id), _access)


def shown(snapshot: Snapshot) -> dict[str, Any]:
    """A grading as the resident sees it, in the reader's language."""
    standing = snapshot.standing
    policy = grade.policy_named(snapshot.policy)
    answer: dict[str, Any] = {
        "grade": standing.grade,
        "label": grade.label(policy, standing.grade)[language()],
        "reduction_kg": standing.reduction_mg,
        "counted_kg": standing.counted_mg,
        "margin_below_kg": standing.margin_below_mg,
        "coverage": coverage(snapshot),
        "by_dimension": snapshot.by_dimension,
        "policy_version": snapshot.policy,
        "graded_on": clock.city_day(snapshot.graded_at),
        "valid_until": snapshot.valid_until,
    }
    if standing.next_grade is not None:
        answer["next"] = {"grade": standing.next_grade, "kg_to_go": standing.to_next_mg}
    return answer


def coverage(snapshot: Snapshot) -> dict[str, Any]:
    """On how much a grading rests: active months, and the share of class A and B evidence."""
    counted, whole = snapshot.share_ab
    return {
        "active_months": snapshot.standing.active_months,
        "months": snapshot.months_covered,
        "share_ab_percent": counted * 100 // whole if whole else 0,
    }


def _consent(consent: Consent) -> dict[str, Any]:
    return {
        "id": consent.id,
        "reference": consent.reference,
        "bank_id": consent.bank_id,
        "purpose": consent.purpose,
        "fields_": consent.fields,
        "text_version": consent.text_version,
        "status": consent.status_at(clock.now()),
        "created_at": consent.created_at,
        "expires_at": consent.expires_at,
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
