"""Bills of a utility, by HTTP or from a file: the form of each, then each by itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import marshmallow as ma
from marshmallow import fields, validate

from accounting import clock
from accounting.errors import DomainError
from api.numbers import CityDay, Flag, Grams, Quantity, Schema
from api.problems import Invalid, language
from api.reports import EVENT_ID, ReasonAnswer, reasons_of
from footprint.billing_rules import BillReport
from footprint.bills import Bill
from points import bill_crediting
from points.feed import Partner

CARRIERS = ("electricity", "gas", "water")
QUANTITY_MAX = 1_000_000


class CarrierNotAllowed(DomainError):
    """Facts: carrier."""

    code = "carrier_not_allowed"
    en = "This partner may not send bills of {carrier}."
    zh = "该合作方无权上报 {carrier} 账单。"


class BillFields(Schema):
    carrier = fields.String(required=True, validate=validate.OneOf(CARRIERS))
    account_no = fields.String(required=True, validate=validate.Length(1, 64))
    period_start = CityDay(required=True)
    period_end = CityDay(required=True)
    quantity = Quantity(required=True, minimum=0, maximum=QUANTITY_MAX)
    estimated = Flag(required=True)
    source_event_id = fields.String(required=True, validate=EVENT_ID)
    corrects = fields.String(validate=EVENT_ID)


class BillAnswer(ma.Schema):
    """`quantity` in kWh, m3 or tonnes; `reduction_g` and `points` are one resident's share."""

    id = fields.String(required=True)
    source_event_id = fields.String(required=True)
    household_id = fields.String(required=True)
    carrier = fields.String(required=True)
    period_start = CityDay(required=True)
    period_end = CityDay(required=True)
    quantity = Quantity(required=True)
    estimated = fields.Boolean(required=True)
    corrects = fields.String()
    status = fields.String(required=True)
    reduction_g = Grams(required=True)
    points = fields.Integer(required=True)
    reasons = fields.List(fields.Nested(ReasonAnswer), required=True)
    emissions_g = Grams(required=True)
    shares = fields.Integer(required=True)
    methodology_version = fields.String(required=True)


@dataclass(frozen=True, slots=True)
class BillTaken:
    """What became of one bill."""

    bill: Bill | None = None
    fresh: bool = False
    refusal: DomainError | None = None


def take_bills(partner: Partner, raw: Sequence[Any], job: str | None = None) -> list[BillTaken]:
    """Take bills in one after the other: each may be history for the next.

    `job` is the file they came with, if any.
    """
    return [_take(partner, one, job) for one in raw]


def _take(partner: Partner, raw: Any, job: str | None) -> BillTaken:
    try:
        data = BillFields().load(raw)
    except ma.ValidationError as error:
        return BillTaken(refusal=Invalid.of(error))
    try:
        if data["carrier"] not in partner.carriers:
            raise CarrierNotAllowed(carrier=data["carrier"])
        bill, fresh = bill_crediting.report(
            BillReport(
                carrier=data["carrier"],
                account_no=data["account_no"],
                period_start=data["period_start"],
                period_end=data["period_end"],
                quantity=data["quantity"],
                estimated=data["estimated"],
                corrects=data.get("corrects"),
            ),
            source=partner.source,
            event_id=data["source_event_id"],
            job=job,
        )
    except DomainError as refusal:
        return BillTaken(refusal=refusal)
    return BillTaken(bill, fresh)


def shown_bill(bill: Bill) -> dict[str, Any]:
    """A bill as it is answered, in the reader's language."""
    outcome = bill.outcome(clock.now())
    answer: dict[str, Any] = {
        "id": bill.id,
        "source_event_id": bill.event_id,
        "household_id": bill.household,
        "carrier": bill.carrier,
        "period_start": bill.period_start,
        "period_end": bill.period_end,
        "quantity": bill.use.quantity,
        "estimated": bill.estimated,
        "status": outcome.status,
        "reduction_g": outcome.mg,
        "points": bill.points,
        "reasons": reasons_of(outcome.reasons, language()),
        "emissions_g": bill.emissions_mg,
        "shares": bill.shares,
        "methodology_version": bill.methodology,
    }
    return answer | ({"corrects": bill.corrects} if bill.corrects else {})
