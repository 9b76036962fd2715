"""The green list of a bank: as it stands, as a feed of changes, as a daily file; and its terms."""

from datetime import date
from decimal import Decimal
from typing import Any

import marshmallow as ma
from flask import Response, current_app
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import clock, consents
from accounting.errors import NotFound
from accounting.tables import CSV
from api.numbers import Digits, Flag, Instant, Named, Quantity, Schema, Whole, plain, read_day
from api.openapi import Blueprint
from api.paging import PageQuery, page, page_of, place
from api.problems import Invalid
from api.security import BANK, caller, door
from footprint import bank_terms, grade, greenlist, listing
from footprint.bank_terms import BASIS_POINTS_MAX, GradeTerms, Terms
from integrations import bank_files

SEQUENCE_MAX = 10**15
LIST = "green_list"
CHANGES = "green_list_changes"
# So many consents are told new terms before the answer; the sweep tells the rest.
TOLD_AT_ONCE = 200

blueprint = Blueprint("bank_list", __name__, description="The green list of a bank")


class GradeTermsBody(Schema):
    limit_uplift = Quantity(
        load_default=Decimal(1),
        minimum=1,
        maximum=Decimal("1.5"),
        metadata={"description": "Times the usual limit, at most 1.5; three decimal places."},
    )
    basis_points = Whole(load_default=0, validate=validate.Range(0, BASIS_POINTS_MAX))
    fast_lane = Flag(load_default=False)

    @ma.validates("limit_uplift")
    def in_permille(self, value: Decimal, **_: Any) -> None:
        if value * 1_000 != int(value * 1_000):
            raise ma.ValidationError("At most 3 decimal places.")


class TermsBody(Schema):
    """The whole table: a grade left out has no benefits."""

    threshold = fields.String(
        load_default=bank_terms.THRESHOLD,
        metadata={"description": "The lowest grade on the green list."},
    )
    grades = Named(keys=fields.String(), values=fields.Nested(GradeTermsBody), required=True)


class GradeTermsAnswer(ma.Schema):
    limit_uplift = fields.Raw(required=True, metadata={"type": "number"})
    basis_points = fields.Integer(required=True)
    fast_lane = fields.Boolean(required=True)


class TermsAnswer(ma.Schema):
    version = fields.Integer(required=True)
    threshold = fields.String(required=True)
    grades = fields.Dict(
        keys=fields.String(), values=fields.Nested(GradeTermsAnswer), required=True
    )
    effective_from = Instant(required=True, allow_none=True)


class ListedAnswer(ma.Schema):
    reference = fields.String(required=True)
    grade = fields.String(required=True)
    since = Instant(required=True)
    terms = fields.Nested(GradeTermsAnswer, required=True)


class ChangesQuery(PageQuery):
    """`after` resumes behind a sequence number; a cursor goes on in a walk."""

    after = Digits(load_default=0, validate=validate.Range(0, SEQUENCE_MAX))


class ChangeAnswer(ma.Schema):
    """`grade` where the consent still holds."""

    sequence = fields.Integer(required=True)
    reference = fields.String(required=True)
    change = fields.String(required=True, validate=validate.OneOf(listing.CHANGES))
    grade = fields.String()
    at = Instant(required=True)


class ManifestAnswer(ma.Schema):
    """`signature` is a JWS over the other fields; `sequence` the last change in the file."""

    bank_id = fields.String(required=True)
    date = fields.String(required=True, metadata={"format": "date"})
    revision = fields.Integer(required=True)
    rows = fields.Integer(required=True)
    size = fields.Integer(required=True)
    sha256 = fields.String(required=True)
    sequence = fields.Integer(required=True)
    made_at = fields.String(required=True, metadata={"format": "date-time"})
    signature = fields.String(required=True)


@blueprint.route("/v1/bank/green-list")
class GreenList(MethodView):
    @door(BANK, scope="grades:read")
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(ListedAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Everybody who consents and whose grade reaches my threshold, by consent

        Each page is recorded for everybody on it, as any other read.
        """
        bank_id = caller().id
        at = place(wanted)
        greenlist.catch_up(bank_id)
        rows = greenlist.listed(bank_id, after=at[0] if at else None, limit=wanted["limit"] + 1)
        answer = page(rows, wanted, lambda row: (row.consent.id,))
        consents.note_reads(bank_id, [row.consent for row in answer["items"]], LIST)
        terms = bank_terms.current(bank_id)
        shown = [
            {
                "reference": row.consent.reference,
                "grade": row.grade,
                "since": row.since,
                "terms": _grade_terms(terms.of(row.grade)),
            }
            for row in answer["items"]
        ]
        return answer | {"items": shown}


@blueprint.route("/v1/bank/green-list/changes")
class Changes(MethodView):
    @door(BANK, scope="grades:read")
    @blueprint.arguments(ChangesQuery, location="query")
    @blueprint.response(200, page_of(ChangeAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """What changed, oldest first, in my own sequence without a gap

        At the end `next_cursor` is null; come back with `after`, the last sequence number seen.
        """
        bank_id = caller().id
        at = place(wanted)
        greenlist.catch_up(bank_id)
        after = at[0] if at else wanted["after"]
        rows = greenlist.changes(bank_id, after=after, limit=wanted["limit"] + 1)
        answer = page(rows, wanted, lambda row: (row.sequence,))
        live = greenlist.consents_of(answer["items"])
        consents.note_reads(bank_id, live, CHANGES)
        known = {consent.id for consent in live}
        shown = [
            {
                "sequence": row.sequence,
                "reference": row.reference,
                "change": row.change,
                "at": row.at,
                **({"grade": row.grade} if row.grade and row.consent_id in known else {}),
            }
            for row in answer["items"]
        ]
        return answer | {"items": shown}


@blueprint.route("/v1/bank/green-list/files/<day>")
class DayFile(MethodView):
    @door(BANK, scope="grades:read")
    @blueprint.response(200, description="A header, then a row for everybody on the list")
    @blueprint.doc(responses={200: {"content": {CSV: {"schema": {"type": "string"}}}}})
    def get(self, day: str) -> Response:
        """My green list of a city day as CSV, with its `Content-Digest`"""
        file = bank_files.of_day(caller().id, _day(day))
        answer = Response(bank_files.content(file), mimetype=CSV)
        answer.headers["Content-Digest"] = bank_files.digest_header(file)
        answer.headers["Content-Length"] = str(file.size)
        answer.headers["Content-Disposition"] = f'attachment; filename="green-list-{file.day}.csv"'
        return answer


@blueprint.route("/v1/bank/green-list/files/<day>/manifest")
class DayManifest(MethodView):
    @door(BANK, scope="grades:read")
    @blueprint.response(200, ManifestAnswer)
    def get(self, day: str) -> dict[str, Any]:
        """Rows, SHA-256 and signature of a day's file"""
        file = bank_files.of_day(caller().id, _day(day))
        return bank_files.manifest(file, issuer=current_app.extensions["config"].public_url)


@blueprint.route("/v1/bank/terms")
class BankTerms(MethodView):
    @door(BANK, scope="terms:write")
    @blueprint.response(200, TermsAnswer)
    def get(self) -> dict[str, Any]:
        """What each grade is worth at my bank, and from which one residents are listed"""
        return _terms(bank_terms.current(caller().id))

    @door(BANK, scope="terms:write")
    @blueprint.arguments(TermsBody)
    @blueprint.response(200, TermsAnswer)
    def put(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Replace the table; versions are kept, and another threshold shows in the changes"""
        grades = [name for _, name in grade.policy_on(clock.city_day(clock.now())).cut_offs]
        unknown = [f"/grades/{name}" for name in wanted["grades"] if name not in grades]
        if wanted["threshold"] not in grades:
            unknown.append("/threshold")
        if unknown:
            raise Invalid([(pointer, "Not a known grade.") for pointer in unknown])
        table = {
            name: GradeTerms(int(one["limit_uplift"] * 1_000), one["basis_points"],
                             one["fast_lane"])
            for name, one in wanted["grades"].items()
        }  # fmt: skip
        bank = caller()
        terms = bank_terms.put(bank.id, wanted["threshold"], table, by=bank.client_id or bank.id)
        greenlist.follow_bank(bank.id, at_most=TOLD_AT_ONCE)
        return _terms(terms)


def _day(text: str) -> date:
    day = read_day(text)
    if day is None:
        raise NotFound()
    return day


def _terms(terms: Terms) -> dict[str, Any]:
    return {
        "version": terms.version,
        "threshold": terms.threshold,
        "grades": {name: _grade_terms(one) for name, one in terms.grades.items()},
        "effective_from": terms.at,
    }


def _grade_terms(terms: GradeTerms) -> dict[str, Any]:
    return {
        "limit_uplift": plain(Decimal(terms.limit_permille) / 1_000),
        "basis_points": terms.basis_points,
        "fast_lane": terms.fast_lane,
    }
