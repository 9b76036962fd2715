"""Banks that a plant lets read its carbon credit report, their door to it, and who read it."""

from datetime import timedelta
from functools import partial
from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import audit, clients, clock
from accounting.clients import Kind
from accounting.enterprise import authorisations
from accounting.enterprise.authorisations import Authorisation
from accounting.errors import DomainError
from api.documents import PDF
from api.idempotency import business_key, idempotent
from api.numbers import Instant, Schema
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, newest, page_of
from api.plants import own_plant
from api.problems import Invalid
from api.security import BANK, PLANT, caller, door
from api.views.plant_reports import PlantReportAnswer, PlantReportQuery, answered

# As long as a resident's consent may last.
LONGEST = timedelta(days=5 * 366)

blueprint = Blueprint("plant_banks", __name__, description="Banks and plants")


class NoReportAvailable(DomainError):
    """Unknown, never authorised, taken back or ended: a bank cannot tell which."""

    code = "no_report_available"
    en = "No report is available to you for this credit code."
    zh = "该统一社会信用代码下没有可向贵行提供的报告。"


class AuthorisationRequest(Schema):
    """What the plant signed: the letter stays with the bank, its digest here."""

    bank_id = fields.String(required=True, validate=validate.Length(1, 64))
    purpose = fields.String(required=True, validate=validate.Length(1, 128))
    signatory = fields.String(required=True, validate=validate.Length(1, 128))
    letter_sha256 = fields.String(
        required=True,
        validate=validate.Regexp(r"[0-9a-f]{64}\Z"),
        metadata={"description": "SHA-256 of the signed letter, in lower-case hexadecimal."},
    )
    expires_at = Instant(required=True)


class AuthorisationAnswer(ma.Schema):
    id = fields.String(required=True)
    plant_id = fields.String(required=True, attribute="plant")
    bank_id = fields.String(required=True)
    purpose = fields.String(required=True)
    signatory = fields.String(required=True)
    letter_sha256 = fields.String(required=True)
    by = fields.String(required=True)
    at = Instant(required=True)
    expires_at = Instant(required=True)
    withdrawn_at = Instant(required=True, allow_none=True)


class PlantAccessAnswer(ma.Schema):
    id = fields.String(required=True)
    bank_id = fields.String(required=True)
    allowed = fields.Boolean(required=True)
    at = Instant(required=True)


@blueprint.route("/v1/plants/<plant_id>/bank-authorisations")
class Authorisations(MethodView):
    @door(PLANT, scope="readings:write")
    @blueprint.arguments(AuthorisationRequest)
    @idempotent()
    @blueprint.response(201, AuthorisationAnswer)
    def post(self, wanted: dict[str, Any], plant_id: str) -> Authorisation:
        """Let a bank read the plant's carbon credit report until a date"""
        own_plant(plant_id)
        if clients.of_subject(Kind.BANK, wanted["bank_id"]) is None:
            raise Invalid([("/bank_id", "There is no such bank.")])
        now = clock.now()
        if not now < wanted["expires_at"] <= now + LONGEST:
            raise Invalid([("/expires_at", "Must lie in the future, at most five years.")])
        by = caller().client_id or caller().id
        given = authorisations.grant(plant_id, **wanted, by=by, once=business_key())
        after = {"plant": plant_id, "bank": given.bank_id, "until": given.expires_at.isoformat()}
        audit.note(by, "bank authorised by a plant", given.id, after=after, once=given.id)
        return given

    @door(PLANT, scope="plant:read")
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(AuthorisationAnswer))
    def get(self, wanted: dict[str, Any], plant_id: str) -> dict[str, Any]:
        """Every authorisation the plant gave, ended ones too, newest first"""
        own_plant(plant_id)
        return newest(wanted, partial(authorisations.listed, plant_id))


@blueprint.route("/v1/plants/<plant_id>/bank-authorisations/<authorisation_id>")
class OneAuthorisation(MethodView):
    @door(PLANT, scope="readings:write")
    @blueprint.response(204)
    def delete(self, plant_id: str, authorisation_id: str) -> None:
        """Take it back: the bank's next read already gets nothing"""
        own_plant(plant_id)
        by = caller().client_id or caller().id
        ended = authorisations.withdraw(plant_id, authorisation_id)
        once = f"{ended.id}:withdrawn"
        audit.note(by, "bank authorisation taken back", ended.id, once=once)


@blueprint.route("/v1/plants/<plant_id>/access-log")
class PlantAccessLog(MethodView):
    @door(PLANT, scope="plant:read")
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(PlantAccessAnswer))
    def get(self, wanted: dict[str, Any], plant_id: str) -> dict[str, Any]:
        """Every read of the plant's report that a bank made or tried, newest first"""
        own_plant(plant_id)
        return newest(wanted, partial(authorisations.access_log, plant_id))


@blueprint.route("/v1/bank/plants/<uscc>/report")
class BankPlantReport(MethodView):
    @door(BANK, scope="grades:read")
    @refuses("account_busy", "missing_factor", "no_report_available", "not_acceptable")
    @blueprint.arguments(PlantReportQuery, location="query")
    @blueprint.response(200, PlantReportAnswer)
    @blueprint.doc(
        responses={200: {"content": {PDF: {"schema": {"type": "string", "format": "binary"}}}}}
    )
    def get(self, wanted: dict[str, Any], uscc: str) -> Any:
        """The carbon credit report of a plant that let this bank read it, JSON or PDF"""
        plant = authorisations.read(caller().id, uscc)
        if plant is None:
            raise NoReportAvailable
        return answered(plant, wanted.get("year"))
