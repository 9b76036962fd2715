"""The bank's door: a grade under a live consent, signed, and every read recorded."""

from typing import Any

import marshmallow as ma
from flask import current_app
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import clock, consents, vault
from accounting.consents import Consent
from accounting.errors import DomainError
from api import limits, problems
from api.config import BANK_BATCH_MAX
from api.numbers import CityDay, Kilograms, Schema
from api.openapi import Blueprint, refuses
from api.problems import language
from api.security import BANK, caller, door
from api.views.consents import PURPOSE
from api.views.grades import CoverageAnswer, coverage
from footprint import grade
from integrations import jws

REFERENCE = validate.Length(1, 64)
WHAT = "grade"

blueprint = Blueprint("bank", __name__, description="The bank's door")


class NoGradeAvailable(DomainError):
    """No consent, withdrawn, expired, another purpose or unknown: a bank cannot tell which."""

    code = "no_grade_available"
    en = "No grade is available for this reference and purpose."
    zh = "该引用编号与用途下没有可提供的等级。"


class PurposeQuery(Schema):
    purpose = fields.String(required=True, validate=PURPOSE)


class PeriodAnswer(ma.Schema):
    from_month = fields.String(required=True, data_key="from")
    to_month = fields.String(required=True, data_key="to")


class BankGradeAnswer(ma.Schema):
    """`margin_below_kg` and `coverage` only where the resident agreed to them."""

    reference = fields.String(required=True)
    grade = fields.String(required=True)
    label = fields.String(required=True)
    period = fields.Nested(PeriodAnswer, required=True)
    margin_below_kg = Kilograms(allow_none=True)
    coverage = fields.Nested(CoverageAnswer)
    policy_version = fields.String(required=True)
    graded_on = CityDay(required=True)
    valid_until = CityDay(required=True)
    jws = fields.String(required=True)


_UNSIGNED = BankGradeAnswer(exclude=["jws"])


class GradesQuery(Schema):
    purpose = fields.String(required=True, validate=PURPOSE)
    references = fields.List(
        fields.String(validate=REFERENCE),
        required=True,
        validate=validate.Length(1, BANK_BATCH_MAX),
    )


class GradeItem(ma.Schema):
    reference = fields.String(required=True)
    status_code = fields.Integer(required=True)
    grade = fields.Nested(BankGradeAnswer)
    problem = fields.Nested(problems.Problem)


class GradesAnswer(ma.Schema):
    results = fields.List(fields.Nested(GradeItem), required=True)


@blueprint.route("/v1/bank/grades/<reference>")
class BankGrade(MethodView):
    @door(BANK, scope="grades:read")
    @refuses("no_grade_available")
    @blueprint.arguments(PurposeQuery, location="query")
    @blueprint.response(200, BankGradeAnswer)
    def get(self, wanted: dict[str, Any], reference: str) -> dict[str, Any]:
        """The grade behind a reference, for the purpose the resident agreed to

        The answer carries a JWS over its other fields that verifies offline against the key set.
        """
        consent = consents.read(caller().id, reference, wanted["purpose"], WHAT)
        if consent is None:
            raise NoGradeAvailable()
        return _grade(consent)


@blueprint.route("/v1/bank/grades/query")
class BankGrades(MethodView):
    @door(BANK, scope="grades:read")
    @blueprint.arguments(GradesQuery)
    @blueprint.response(200, GradesAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Up to 500 grades at once; each reference has its own result, in order

        Each reference counts as one read towards the bank's limit a minute.
        It takes no Idempotency-Key: a replay would outlive a withdrawn consent.
        """
        references, purpose = wanted["references"], wanted["purpose"]
        # Before anything is looked at or recorded.
        limits.read_more(caller(), len(references) - 1)
        found = consents.read_many(caller().id, references, purpose, WHAT)
        return {
            "results": [
                _item(reference, consent)
                for reference, consent in zip(references, found, strict=True)
            ]
        }


def _item(reference: str, consent: Consent | None) -> dict[str, Any]:
    if consent is None:
        refusal = NoGradeAvailable()
        return {
            "reference": reference,
            "status_code": problems.STATUS[refusal.code],
            "problem": problems.describe(refusal),
        }
    return {"reference": reference, "status_code": 200, "grade": _grade(consent)}


def _grade(consent: Consent) -> dict[str, Any]:
    snapshot = grade.grade_now(consent.resident)
    policy = grade.policy_named(snapshot.policy)
    answer: dict[str, Any] = {
        "reference": consent.reference,
        "grade": snapshot.standing.grade,
        "label": grade.label(policy, snapshot.standing.grade)[language()],
        "period": {"from_month": snapshot.first_month, "to_month": snapshot.last_month},
        "policy_version": snapshot.policy,
        "graded_on": clock.city_day(snapshot.graded_at),
        "valid_until": snapshot.valid_until,
    }
    if "margin" in consent.fields:
        answer["margin_below_kg"] = snapshot.standing.margin_below_mg
    if "coverage" in consent.fields:
        answer["coverage"] = coverage(snapshot)
    return answer | {"jws": signed(_UNSIGNED.dump(answer))}


def signed(payload: dict[str, Any]) -> str:
    """A JWS for this bank over an answer exactly as it is dumped, so both always say the same."""
    return jws.sign(
        payload,
        vault.signing_key(),
        vault.key_id(),
        issuer=current_app.extensions["config"].public_url,
        audience=caller().id,
        now=clock.now(),
    )
