"""The resident's meter accounts, and what utilities sent for them."""

from functools import partial
from typing import Any

import marshmallow as ma
from flask import current_app
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import audit, clients, clock, links
from accounting.clients import Kind
from accounting.errors import NotFound
from api.bill_rows import CARRIERS, BillAnswer, shown_bill
from api.idempotency import business_key, idempotent
from api.numbers import Instant, Schema, Whole
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, newest, page_of
from api.security import OPERATOR, RESIDENT, caller, door
from footprint import activities, bills, households
from footprint.bills import Bill
from footprint.households import Membership
from points import bill_crediting

MEMBERS = validate.Range(1, 12)

blueprint = Blueprint("households", __name__, description="Meter accounts and bills")


class HouseholdRequest(Schema):
    """Outside the demo, `partner_id` and the `link_code` the utility issued prove the account."""

    carrier = fields.String(required=True, validate=validate.OneOf(CARRIERS))
    account_no = fields.String(required=True, validate=validate.Length(1, 64))
    members = Whole(required=True, validate=MEMBERS)
    partner_id = fields.String(validate=validate.Length(1, 64))
    link_code = fields.String(validate=validate.Length(1, 32))


class MembersRequest(Schema):
    members = Whole(required=True, validate=MEMBERS)


class BillReverseRequest(Schema):
    reason = fields.String(required=True, validate=validate.Length(1, 500))


class ProposalAnswer(ma.Schema):
    members = fields.Integer(required=True)
    agreed = fields.Integer(required=True)


class HouseholdAnswer(ma.Schema):
    id = fields.String(required=True)
    carrier = fields.String(required=True)
    account_no = fields.String(required=True)
    members = fields.Integer(required=True)
    joined = fields.Integer(required=True)
    since = Instant(required=True)
    proposed = fields.Nested(
        ProposalAnswer,
        required=True,
        allow_none=True,
        metadata={"description": "In force once all who are linked have agreed."},
    )


@blueprint.route("/v1/me/households")
class Households(MethodView):
    @door(RESIDENT)
    @refuses("already_linked", "household_full", "members_conflict", "invalid_link_code")
    @blueprint.arguments(HouseholdRequest)
    @idempotent()
    @blueprint.response(201, HouseholdAnswer)
    def post(self, wanted: dict[str, Any]) -> Membership:
        """Link a meter account of my household

        The first resident says how many members it has; more may join up to that number. The
        utility is asked for the bills of the two years before.
        """
        partner_id, once = wanted.get("partner_id"), business_key()
        carrier, account_no = wanted["carrier"], wanted["account_no"]
        joined = households.joined_by(once, caller().id, carrier, account_no)
        if joined is not None:
            return joined
        if not current_app.extensions["config"].demo:
            _prove(partner_id, wanted, once)
        return households.join(
            caller().id, carrier, account_no, wanted["members"], partner_id, once=once
        )

    @door(RESIDENT)
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(HouseholdAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """My meter accounts, newest first"""
        return newest(wanted, partial(households.of_resident, caller().id))


@blueprint.route("/v1/me/households/<household_id>")
class OneHousehold(MethodView):
    @door(RESIDENT)
    @blueprint.response(200, HouseholdAnswer)
    def get(self, household_id: str) -> Membership:
        """One of my meter accounts"""
        return households.get(caller().id, household_id)

    @door(RESIDENT)
    @refuses("members_below_joined")
    @blueprint.arguments(MembersRequest)
    @blueprint.response(200, HouseholdAnswer)
    def patch(self, wanted: dict[str, Any], household_id: str) -> Membership:
        """Change the number of members from today on

        Where several are linked it is a proposal until each of them has said the same number.
        """
        return households.change_members(caller().id, household_id, wanted["members"])

    @door(RESIDENT)
    @blueprint.response(204)
    def delete(self, household_id: str) -> None:
        """Leave a meter account; what it earned stays"""
        households.leave(caller().id, household_id)


@blueprint.route("/v1/me/bills")
class Bills(MethodView):
    @door(RESIDENT)
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(BillAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """What utilities sent for my meters, and what each was credited or not for"""
        me = caller().id
        answer = newest(wanted, partial(bills.of_resident, me))
        return answer | {"items": [shown_bill(_settled(one), me) for one in answer["items"]]}


@blueprint.route("/v1/me/bills/<bill_id>")
class OneBill(MethodView):
    @door(RESIDENT)
    @blueprint.response(200, BillAnswer)
    def get(self, bill_id: str) -> dict[str, Any]:
        """One bill of my meters"""
        return shown_bill(my_bill(bill_id), caller().id)


@blueprint.route("/v1/operator/bills/<bill_id>/reverse")
class ReversedBill(MethodView):
    @door(OPERATOR)
    @refuses("already_corrected", "account_busy")
    @blueprint.arguments(BillReverseRequest)
    @idempotent()
    @blueprint.response(200, BillAnswer)
    def post(self, wanted: dict[str, Any], bill_id: str) -> dict[str, Any]:
        """Take a bill back, with what it credited to each resident"""
        bill = bills.find(bill_id)
        if bill is None or bill.takes_back:
            raise NotFound()
        before = _seen(_settled(bill))
        taken = bill_crediting.reverse(bill, reason=wanted["reason"], by=caller().id)
        audit.note(
            caller().id,
            "bill reversed",
            bill_id,
            reason=wanted["reason"],
            before=before,
            after=_seen(taken),
            once=f"reverse/{bill_id}",
        )
        return shown_bill(taken)


def _prove(partner_id: str | None, wanted: dict[str, Any], once: str | None) -> None:
    """Only a utility of this carrier can tell whose meter it is. Raises `InvalidLinkCode`."""
    partner = clients.of_subject(Kind.DATA, partner_id) if partner_id else None
    if partner is None or wanted["carrier"] not in partner.policy.get("carriers", ()):
        raise links.InvalidLinkCode()
    code = wanted.get("link_code")
    links.check_code(partner.subject_id, wanted["account_no"], code, once=once)


def my_bill(bill_id: str) -> Bill:
    """A bill the caller has a share in, settled. Raises `NotFound`."""
    bill = bills.shared_with(caller().id, bill_id)
    if bill is None:
        raise NotFound()
    return _settled(bill)


def _seen(bill: Bill) -> dict[str, Any]:
    """What a bill is now, for the audit."""
    outcome = bill.outcome(clock.now())
    return {"status": outcome.status, "mg": outcome.mg, "points": bill.points}


def _settled(bill: Bill) -> Bill:
    return bill if bill.state == activities.SETTLED else bill_crediting.resume(bill)
