"""Bills of a utility, by HTTP or from a file: the form of each, then each by itself."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import marshmallow as ma
from marshmallow import fields, validate

from accounting import clock
from accounting.errors import DomainError
from api.numbers import CityDay, Flag, Grams, Quantity, Schema
from api.problems import Invalid, language
from api.reports import EVENT_ID, ReasonAnswer, reasons_of
from footprint.bill_intake import Received, Sent
from footprint.billing_rules import BillReport, Generation
from footprint.bills import Bill, Given
from points import bill_crediting
from points.feed import Partner

CARRIERS = ("electricity", "gas", "water")
QUANTITY_MAX = 1_000_000
PV_PARTS = ("generated", "exported", "certified")


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
    pv_generated_kwh = Quantity(
        minimum=0,
        maximum=QUANTITY_MAX,
        metadata={"description": "Only from homes with solar panels; 0 counts as having them."},
    )
    pv_exported_kwh = Quantity(minimum=0, maximum=QUANTITY_MAX)
    pv_certified_kwh = Quantity(
        minimum=0,
        maximum=QUANTITY_MAX,
        metadata={"description": "Covered by a green certificate, a CCER or another scheme."},
    )


class BillAnswer(ma.Schema):
    """`quantity` in kWh, m3 or tonnes; `reduction_g` and `points` are one resident's share.

    The reader's own; for anybody else the most that campaigns gave one of the household.

    `behaviour` is what it is credited as. A bill of a home with solar panels says what they made.
    """

    id = fields.String(required=True)
    source_event_id = fields.String(required=True)
    household_id = fields.String(required=True)
    behaviour = fields.String(required=True)
    carrier = fields.String(required=True)
    period_start = CityDay(required=True)
    period_end = CityDay(required=True)
    quantity = Quantity(required=True)
    estimated = fields.Boolean(required=True)
    corrects = fields.String()
    pv_generated_kwh = Quantity()
    pv_exported_kwh = Quantity()
    pv_certified_kwh = Quantity()
    status = fields.String(required=True)
    reduction_g = Grams(required=True)
    points = fields.Integer(required=True)
    reasons = fields.List(fields.Nested(ReasonAnswer), required=True)
    emissions_g = Grams(required=True)
    shares = fields.Integer(required=True)
    methodology_version = fields.String(required=True)


def take_bills(partner: Partner, raw: Sequence[Any], job: str | None = None) -> list[Received]:
    """Check the form of each bill, take the good ones in together, and keep the order.

    `job` is the file they came with, if any.
    """
    results: list[Received | None] = []
    sent: list[Sent] = []
    for one in raw:
        try:
            sent.append(sent_of(partner, one))
        except ma.ValidationError as error:
            results.append(Received(refusal=Invalid.of(error)))
        except DomainError as refusal:
            results.append(Received(refusal=refusal))
        else:
            results.append(None)
    taken = iter(bill_crediting.report_many(sent, source=partner.source, job=job))
    return [result if result is not None else next(taken) for result in results]


def sent_of(partner: Partner, raw: Any) -> Sent:
    """A bill as it is taken in; raises `ma.ValidationError` and `DomainError`."""
    data = BillFields().load(raw)
    if data["carrier"] not in partner.carriers:
        raise CarrierNotAllowed(carrier=data["carrier"])
    report = BillReport(
        carrier=data["carrier"],
        account_no=data["account_no"],
        period_start=data["period_start"],
        period_end=data["period_end"],
        quantity=data["quantity"],
        estimated=data["estimated"],
        corrects=data.get("corrects"),
        pv=_generation(data),
    )
    return Sent(report, data["source_event_id"])


def _generation(data: dict[str, Any]) -> Generation | None:
    said = {name: data[f"pv_{name}_kwh"] for name in PV_PARTS if f"pv_{name}_kwh" in data}
    if said and "generated" not in said:
        raise Invalid([("/pv_generated_kwh", "Missing data for required field.")])
    return Generation(**said) if said else None


def shown_bill(bill: Bill, reader: str | None = None) -> dict[str, Any]:
    """A bill as it is answered, in the reader's language; `reader` if it is a resident of it."""
    outcome = bill.outcome(clock.now())
    given = Given(bill.points) if reader is None else bill.given.get(reader, Given(0))
    answer: dict[str, Any] = {
        "id": bill.id,
        "source_event_id": bill.event_id,
        "household_id": bill.household,
        "behaviour": bill.rules[1].code,
        "carrier": bill.carrier,
        "period_start": bill.period_start,
        "period_end": bill.period_end,
        "quantity": bill.use.quantity,
        "estimated": bill.estimated,
        "status": outcome.status,
        "reduction_g": outcome.mg,
        "points": given.points,
        "reasons": reasons_of((*outcome.reasons, *given.reasons), language()),
        "emissions_g": bill.emissions_mg,
        "shares": bill.shares,
        "methodology_version": bill.methodology,
    }
    if bill.corrects:
        answer["corrects"] = bill.corrects
    if bill.pv:
        answer |= {f"pv_{name}_kwh": kwh for name, kwh in asdict(bill.pv).items()}
    return answer
