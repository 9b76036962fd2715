"""Statements for merchants, and what the operator does about settlement."""

from collections.abc import Iterator
from functools import partial
from operator import attrgetter
from typing import Any

import marshmallow as ma
from flask import Response, request
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import audit, clock
from accounting.errors import NotFound
from accounting.tables import CSV, csv_text
from api.documents import PDF
from api.idempotency import idempotent
from api.numbers import CityDay, Instant, Schema, Whole
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, newest, page, page_of, place
from api.problems import NotAcceptable, language
from api.security import MERCHANT, OPERATOR, caller, door
from api.statement_pdf import statement_pdf
from points import terms
from rewards import disputes, merchants, settlement, takings
from rewards.settlement import Statement

JSON = "application/json"
TEXT = validate.Length(1, 2_000)
FEN_MAX = 100_000_000_000
NUMBER_DIGITS_MAX = 9

blueprint = Blueprint("settlement", __name__, description="Statements and settlement")


class StatementAnswer(ma.Schema):
    """A statement in a list; money in fen."""

    id = fields.String(required=True)
    merchant_id = fields.String(required=True)
    period = fields.Integer(required=True)
    from_ = CityDay(required=True, data_key="from", attribute="from")
    to = CityDay(required=True)
    closed_at = fields.String(required=True, metadata={"format": "date-time"})
    vouchers = fields.Integer(required=True)
    refunds = fields.Integer(required=True)
    face_value_fen = fields.Integer(required=True)
    fee_fen = fields.Integer(required=True)
    brought_forward_fen = fields.Integer(required=True)
    payable_fen = fields.Integer(required=True)
    carried_forward_fen = fields.Integer(required=True)
    digest = fields.String(required=True)


class FunderLine(ma.Schema):
    funder = fields.String(required=True)
    face_value_fen = fields.Integer(required=True)
    fee_fen = fields.Integer(required=True)
    net_fen = fields.Integer(required=True)


class PointsLine(ma.Schema):
    funder = fields.String(required=True)
    points = fields.Integer(required=True)
    fen_per_1000_points = fields.Integer(required=True)
    value_fen = fields.Integer(required=True)


class TransferLine(ma.Schema):
    """What a funder of points owes a funder of the rewards they bought."""

    from_ = fields.String(required=True, data_key="from", attribute="from")
    to = fields.String(required=True)
    value_fen = fields.Integer(required=True)


class StoreLine(ma.Schema):
    store_id = fields.String(required=True)
    face_value_fen = fields.Integer(required=True)


class RewardLine(ma.Schema):
    reward_id = fields.String(required=True)
    title = fields.String(required=True)
    face_value_fen = fields.Integer(required=True)


class DayLine(ma.Schema):
    day = fields.String(required=True)
    face_value_fen = fields.Integer(required=True)


class CreditNote(ma.Schema):
    id = fields.String(required=True)
    voucher_id = fields.String(required=True, allow_none=True)
    face_value_fen = fields.Integer(required=True)
    reason = fields.String(required=True, allow_none=True)


class MessageAnswer(ma.Schema):
    by = fields.String(required=True)
    text = fields.String(required=True)
    at = Instant(required=True)


class CorrectionAnswer(ma.Schema):
    fen = fields.Integer(required=True)
    funder = fields.String(required=True)


class DisputeAnswer(ma.Schema):
    statement_id = fields.String(required=True, attribute="id")
    merchant_id = fields.String(required=True)
    state = fields.String(required=True)
    messages = fields.List(fields.Nested(MessageAnswer), required=True)
    correction = fields.Nested(CorrectionAnswer, required=True, allow_none=True)
    opened_at = Instant(required=True)


class WholeStatementAnswer(StatementAnswer):
    merchant_name = fields.String(required=True)
    fee_basis_points = fields.Integer(required=True)
    lines = fields.List(fields.Nested(FunderLine), required=True)
    points = fields.List(fields.Nested(PointsLine), required=True)
    transfers = fields.List(fields.Nested(TransferLine), required=True)
    by_store = fields.List(fields.Nested(StoreLine), required=True)
    by_reward = fields.List(fields.Nested(RewardLine), required=True)
    by_day = fields.List(fields.Nested(DayLine), required=True)
    credit_notes = fields.List(fields.Nested(CreditNote), required=True)
    dispute = fields.Nested(DisputeAnswer, required=True, allow_none=True)


class SettlementPeriodAnswer(ma.Schema):
    number = fields.Integer(required=True)
    from_ = CityDay(required=True, data_key="from", attribute="first")
    to = CityDay(required=True, attribute="last")
    closed_at = Instant(required=True, attribute="cutoff")
    state = fields.String(required=True)
    statements = fields.Integer(required=True)
    job_id = fields.String(required=True, attribute="job")


class DisputeRequest(Schema):
    text = fields.String(required=True, validate=TEXT)


class DisputeQuery(PageQuery):
    state = fields.String(
        validate=validate.OneOf([disputes.OPEN, disputes.ANSWERED, disputes.RESOLVED])
    )


class FunderFen(Schema):
    """Fen more or less for the merchant, and the funder that bears them."""

    fen = Whole(
        required=True,
        validate=[validate.Range(-FEN_MAX, FEN_MAX), validate.NoneOf([0])],
    )
    funder_id = fields.String(required=True, validate=validate.Length(1, 64))

    @ma.validates("funder_id")
    def known(self, value: str, **_: Any) -> None:
        if value not in terms.current().rates_at(clock.now()):
            raise ma.ValidationError("Not a known funder.")


class ResolveRequest(DisputeRequest):
    correction = fields.Nested(FunderFen)


class CorrectionRequest(FunderFen):
    reference = fields.String(
        required=True,
        validate=validate.Regexp(r"^[A-Za-z0-9._:-]{1,64}\Z"),
        metadata={"description": "Yours; the same one again is the same correction."},
    )
    reason = fields.String(required=True, validate=TEXT)


class CorrectedAnswer(ma.Schema):
    id = fields.String(required=True)


# What a statement may be asked for as.
FORMS: dict[str, dict[str, Any]] = {
    CSV: {"schema": {"type": "string"}},
    PDF: {"schema": {"type": "string", "format": "binary"}},
}


@blueprint.route("/v1/merchant/statements")
class Statements(MethodView):
    @door(MERCHANT, scope="statements:read")
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(StatementAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """My statements, newest first"""
        find = partial(settlement.of_merchant, caller().id)
        return newest(wanted, find, _summary, by=attrgetter("period"))


@blueprint.route("/v1/merchant/statements/<statement_id>")
class OneStatement(MethodView):
    @door(MERCHANT, scope="statements:read")
    @refuses("not_acceptable")
    @blueprint.response(200, WholeStatementAnswer)
    @blueprint.doc(responses={200: {"content": FORMS}})
    def get(self, statement_id: str) -> Any:
        """One statement, JSON, CSV or PDF by the Accept header"""
        return _answer(settlement.statement(statement_id, caller().id))


@blueprint.route("/v1/merchant/statements/<statement_id>/dispute")
class MerchantDispute(MethodView):
    @door(MERCHANT, scope="statements:read")
    @refuses("dispute_resolved", "account_busy")
    @blueprint.arguments(DisputeRequest)
    @idempotent()
    @blueprint.response(201, DisputeAnswer)
    def post(self, wanted: dict[str, Any], statement_id: str) -> disputes.Dispute:
        """Say what is wrong with a statement, or write again about it"""
        found = settlement.statement(statement_id, caller().id)
        return disputes.raise_(found.id, found.merchant_id, wanted["text"])


@blueprint.route("/v1/operator/settlements")
class Settlements(MethodView):
    @door(OPERATOR, area="rewards")
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(SettlementPeriodAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """The periods, newest first; `POST /v1/operator/jobs` of kind `settle` closes the next"""
        return newest(wanted, settlement.periods, by=attrgetter("number"))


@blueprint.route("/v1/operator/settlements/<number>/payout")
class Payout(MethodView):
    @door(OPERATOR, area="rewards")
    @refuses("settlement_underway")
    @blueprint.response(200, description="One line a merchant, and a last one with the sum")
    @blueprint.doc(responses={200: {"content": {CSV: FORMS[CSV]}}})
    def get(self, number: str) -> Response:
        """What the bank is to pay for a period, as CSV"""
        if not number.isdecimal() or not number.isascii() or len(number) > NUMBER_DIGITS_MAX:
            raise NotFound()
        rows = settlement.payout(int(number))
        total = sum(row[-1] for row in rows)
        lines: list[tuple[Any, ...]] = [*rows, ("total", len(rows), "", "CNY", total)]
        return _csv(
            ("statement_id", "merchant_id", "merchant_name", "currency", "amount_fen"),
            lines,
            f"payout-{number}.csv",
        )


@blueprint.route("/v1/operator/statements/<statement_id>")
class OperatorStatement(MethodView):
    @door(OPERATOR, area="rewards")
    @refuses("not_acceptable")
    @blueprint.response(200, WholeStatementAnswer)
    @blueprint.doc(responses={200: {"content": FORMS}})
    def get(self, statement_id: str) -> Any:
        """Any merchant's statement, JSON, CSV or PDF by the Accept header"""
        return _answer(settlement.statement(statement_id))


@blueprint.route("/v1/operator/disputes")
class Disputes(MethodView):
    @door(OPERATOR, area="rewards")
    @blueprint.arguments(DisputeQuery, location="query")
    @blueprint.response(200, page_of(DisputeAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """What merchants do not agree with, newest first"""
        found = disputes.listed(
            wanted.get("state"), before=place(wanted), limit=wanted["limit"] + 1
        )
        return page(found, wanted, lambda one: (one.opened_at, one.id))


@blueprint.route("/v1/operator/disputes/<statement_id>/answer")
class AnsweredDispute(MethodView):
    @door(OPERATOR, area="rewards")
    @refuses("dispute_resolved", "account_busy")
    @blueprint.arguments(DisputeRequest)
    @idempotent()
    @blueprint.response(200, DisputeAnswer)
    def post(self, wanted: dict[str, Any], statement_id: str) -> disputes.Dispute:
        """Answer a merchant; the dispute stays open to a reply"""
        found = disputes.answer(statement_id, caller().id, wanted["text"])
        audit.note(caller().id, "dispute answered", statement_id, reason=wanted["text"])
        return found


@blueprint.route("/v1/operator/disputes/<statement_id>/resolve")
class ResolvedDispute(MethodView):
    @door(OPERATOR, area="rewards")
    @refuses("dispute_resolved", "account_busy")
    @blueprint.arguments(ResolveRequest)
    @idempotent()
    @blueprint.response(200, DisputeAnswer)
    def post(self, wanted: dict[str, Any], statement_id: str) -> disputes.Dispute:
        """End a dispute; a correction is settled in the period that is open"""
        correction = wanted.get("correction") or {"fen": 0, "funder_id": ""}
        found = disputes.resolve(
            statement_id,
            caller().id,
            wanted["text"],
            correction_fen=correction["fen"],
            funder=correction["funder_id"],
        )
        audit.note(
            caller().id,
            "dispute resolved",
            statement_id,
            reason=wanted["text"],
            after=wanted.get("correction"),
            once=f"resolved:{statement_id}",
        )
        return found


@blueprint.route("/v1/operator/merchants/<merchant_id>/corrections")
class Corrections(MethodView):
    @door(OPERATOR, area="rewards")
    @refuses("account_busy", "idempotency_key_reused")
    @blueprint.arguments(CorrectionRequest)
    @idempotent()
    @blueprint.response(201, CorrectedAnswer)
    def post(self, wanted: dict[str, Any], merchant_id: str) -> dict[str, Any]:
        """Owe a merchant more or less: a credit note of the period that is open"""
        merchants.get(merchant_id)
        made = takings.correct(
            merchant_id,
            wanted["fen"],
            wanted["funder_id"],
            reference=wanted["reference"],
            reason=wanted["reason"],
            by=caller().id,
        )
        after = {"fen": wanted["fen"], "funder": wanted["funder_id"]}
        audit.note(
            caller().id, "merchant corrected", merchant_id,
            reason=wanted["reason"], after=after, once=made,
        )  # fmt: skip
        return {"id": made}


def _answer(statement: Statement) -> Any:
    """The statement in the form that is asked for."""
    accepted = request.accept_mimetypes
    wanted = accepted.best_match([JSON, *FORMS]) if accepted else JSON
    if wanted is None:
        raise NotAcceptable()
    if wanted == CSV:
        return _csv(_CSV_HEADER, _csv_rows(statement), f"{statement.id}.csv")
    if wanted == PDF:
        return _file(statement_pdf(statement, language()), PDF, f"{statement.id}.pdf")
    content = statement.content
    dispute = disputes.of_statement(statement.id)
    return {
        **content,
        **_summary(statement),
        "merchant_name": content["merchant_name"][language()],
        "by_reward": [
            {**line, "title": line["title"][language()]} for line in content["by_reward"]
        ],
        "dispute": dispute,
    }


def _summary(statement: Statement) -> dict[str, Any]:
    content = statement.content
    return {
        **content,
        "id": statement.id,
        "period": statement.period,
        "digest": statement.digest,
    }


_CSV_HEADER = (
    "at", "kind", "voucher_id", "reward", "store_id", "terminal_ref", "funder", "fen", "reason",
)  # fmt: skip


def _csv_rows(statement: Statement) -> Iterator[tuple[Any, ...]]:
    """A line for each move and funder, then fee, what was brought forward, and the sum."""
    for move in settlement.moves_of(statement.id):
        at = move["at"].astimezone(clock.CITY).isoformat(timespec="seconds")
        title = move["title"][language()] if move["title"] else None
        for funder, fen in move["funder_split"]:
            yield (
                at, move["kind"], move["voucher_id"], title, move["store_id"],
                move["terminal_ref"], funder, fen, move["reason"],
            )  # fmt: skip
    content = statement.content
    last = [
        ("fee", -content["fee_fen"]),
        ("brought_forward", content["brought_forward_fen"]),
        ("total", content["payable_fen"] + content["carried_forward_fen"]),
    ]
    for kind, fen in last:
        yield (None, kind, None, None, None, None, None, fen, None)


def _csv(header: tuple[str, ...], rows: Any, name: str) -> Response:
    return _file(csv_text(header, rows), CSV, name)


def _file(content: str | bytes, kind: str, name: str) -> Response:
    answer = Response(content, mimetype=kind)
    answer.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return answer
