"""What a plant's meters cannot say (process emissions, green power), and its closed months."""

from decimal import Decimal
from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import audit
from accounting.enterprise import inventory_entries, periods
from accounting.enterprise.inventory_entries import Entry, Evidence, Kind
from accounting.enterprise.periods import Revision
from api.idempotency import idempotent
from api.numbers import CityDay, Instant, Kilograms, Quantity, Schema, read_day
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, page, page_of, place
from api.plants import NAME, own_plant
from api.problems import Invalid
from api.reports import EVENT_ID
from api.security import PLANT, caller, door

TEXT = validate.Length(1, 500)
TONNES_MAX = 10_000_000
KWH_MAX = 10_000_000_000

blueprint = Blueprint(
    "inventory_entries",
    __name__,
    description="Process emissions, green power and closed months of plants",
)


class Span(Schema):
    class Meta:
        unknown = ma.RAISE
        include = {"from": CityDay(required=True), "to": CityDay(required=True)}


class ProcessRequest(Span):
    """Both days are included, and the emission is even over them.

    Either a `material` and the `quantity_t` of it, or `co2e_kg` as it was measured or balanced.
    """

    source_event_id = fields.String(required=True, validate=EVENT_ID)
    material = fields.String(validate=validate.OneOf(inventory_entries.materials()))
    quantity_t = Quantity(above=0, maximum=TONNES_MAX)
    co2e_kg = Quantity(above=0, maximum=TONNES_MAX * 1_000)
    node = fields.String(allow_none=True, load_default=None, validate=NAME)
    evidence = fields.String(required=True, validate=TEXT)

    @ma.validates_schema
    def is_one_of_both(self, data: dict[str, Any], **_: Any) -> None:
        told = data.keys() & {"material", "quantity_t", "co2e_kg"}
        if told not in ({"material", "quantity_t"}, {"co2e_kg"}):
            raise ma.ValidationError("Either material and quantity_t, or co2e_kg.", "co2e_kg")


class GreenPowerRequest(Span):
    """Both days are included. `certificate` is the id of a green certificate, or of a contract."""

    certificate = fields.String(required=True, validate=EVENT_ID)
    kwh = Quantity(required=True, minimum=Decimal("0.001"), maximum=KWH_MAX)
    evidence_kind = fields.String(
        required=True, validate=validate.OneOf([one.value for one in Evidence])
    )
    evidence = fields.String(required=True, validate=TEXT)


class ReasonRequest(Schema):
    reason = fields.String(required=True, validate=TEXT)


class EntryAnswer(ma.Schema):
    """`taken_back` is the reason where it counts no more."""

    class Meta:
        include = {
            "from": CityDay(required=True, attribute="first_day"),
            "to": CityDay(required=True, attribute="last_day"),
        }

    number = fields.Integer(required=True)
    evidence = fields.String(required=True)
    recorded_at = Instant(required=True)
    taken_back = fields.String(required=True, allow_none=True)


class ProcessAnswer(EntryAnswer):
    source_event_id = fields.String(required=True, attribute="event")
    material = fields.String(required=True, allow_none=True)
    quantity_t = Quantity(required=True, allow_none=True)
    co2e_kg = Kilograms(required=True, attribute="amount")
    factor = fields.String(required=True, allow_none=True)
    node = fields.String(required=True, allow_none=True)


class GreenPowerAnswer(EntryAnswer):
    certificate = fields.String(required=True, attribute="event")
    kwh = Quantity(required=True)
    evidence_kind = fields.String(required=True)


class RevisionAnswer(ma.Schema):
    """A closed month as it was at one time; the newest revision says what it is now.

    `difference_*` and `days` (kilograms of CO2e by day) are against the revision before.
    """

    month = fields.String(required=True)
    revision = fields.Integer(required=True)
    made_at = Instant(required=True)
    causes = fields.List(fields.String(), required=True)
    co2e_kg = Kilograms(required=True, attribute="co2e_mg", allow_none=True)
    tce_kg = Kilograms(required=True, attribute="tce_mg", allow_none=True)
    difference_co2e_kg = Kilograms(required=True, attribute="difference_co2e_mg")
    difference_tce_kg = Kilograms(required=True, attribute="difference_tce_mg")
    days = fields.Dict(keys=fields.String(), values=Kilograms(), required=True)
    completeness = Quantity(required=True)
    estimated_share = Quantity(required=True)
    factor_set = fields.String(required=True)
    provisional = fields.Boolean(required=True)


@blueprint.route("/v1/plants/<plant_id>/process-emissions")
class ProcessEmissions(MethodView):
    @door(PLANT, scope="plant:read")
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(ProcessAnswer))
    def get(self, wanted: dict[str, Any], plant_id: str) -> dict[str, Any]:
        """Process emissions, newest first"""
        return _listed(plant_id, Kind.PROCESS, wanted)

    @door(PLANT, scope="readings:write")
    @refuses("account_busy", "idempotency_key_reused", "missing_factor")
    @blueprint.arguments(ProcessRequest)
    @idempotent()
    @blueprint.response(201, ProcessAnswer)
    def post(self, wanted: dict[str, Any], plant_id: str) -> dict[str, Any]:
        """Record a process emission with its evidence"""
        own_plant(plant_id)
        quantity_t, co2e_kg = wanted.get("quantity_t"), wanted.get("co2e_kg")
        entry = inventory_entries.add_process(
            plant_id,
            wanted["source_event_id"],
            wanted["from"],
            wanted["to"],
            evidence=wanted["evidence"],
            by=caller().id,
            material=wanted.get("material"),
            quantity_g=None if quantity_t is None else int(quantity_t * 1_000_000),
            co2e_mg=None if co2e_kg is None else int(co2e_kg * 1_000_000),
            node=wanted["node"],
        )
        _note("process emission recorded", entry)
        return _entry(entry)


@blueprint.route("/v1/plants/<plant_id>/process-emissions/<event_id>/take-back")
class ProcessTakenBack(MethodView):
    @door(PLANT, scope="readings:write")
    @refuses("account_busy")
    @blueprint.arguments(ReasonRequest)
    @idempotent()
    @blueprint.response(200, ProcessAnswer)
    def post(self, wanted: dict[str, Any], plant_id: str, event_id: str) -> dict[str, Any]:
        """Let a process emission count no more; what it was may then be told anew"""
        return _taken_back(plant_id, Kind.PROCESS, event_id, wanted["reason"])


@blueprint.route("/v1/plants/<plant_id>/green-power")
class GreenPower(MethodView):
    @door(PLANT, scope="plant:read")
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(GreenPowerAnswer))
    def get(self, wanted: dict[str, Any], plant_id: str) -> dict[str, Any]:
        """Green power, newest first"""
        return _listed(plant_id, Kind.GREEN_POWER, wanted)

    @door(PLANT, scope="readings:write")
    @refuses(
        "account_busy",
        "certificate_used",
        "green_power_exceeds_purchase",
        "idempotency_key_reused",
        "missing_factor",
    )
    @blueprint.arguments(GreenPowerRequest)
    @idempotent()
    @blueprint.response(201, GreenPowerAnswer)
    def post(self, wanted: dict[str, Any], plant_id: str) -> dict[str, Any]:
        """Record green power that was bought; a certificate counts once in the city"""
        own_plant(plant_id)
        entry = inventory_entries.add_green_power(
            plant_id,
            wanted["certificate"],
            wanted["from"],
            wanted["to"],
            wh=int(wanted["kwh"] * 1_000),
            evidence_kind=Evidence(wanted["evidence_kind"]),
            evidence=wanted["evidence"],
            by=caller().id,
        )
        _note("green power recorded", entry)
        return _entry(entry)


@blueprint.route("/v1/plants/<plant_id>/green-power/<certificate>/take-back")
class GreenPowerTakenBack(MethodView):
    @door(PLANT, scope="readings:write")
    @refuses("account_busy")
    @blueprint.arguments(ReasonRequest)
    @idempotent()
    @blueprint.response(200, GreenPowerAnswer)
    def post(self, wanted: dict[str, Any], plant_id: str, certificate: str) -> dict[str, Any]:
        """Let green power count no more; its certificate is free again"""
        return _taken_back(plant_id, Kind.GREEN_POWER, certificate, wanted["reason"])


@blueprint.route("/v1/plants/<plant_id>/periods")
class Periods(MethodView):
    @door(PLANT, scope="plant:read")
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(RevisionAnswer))
    def get(self, wanted: dict[str, Any], plant_id: str) -> dict[str, Any]:
        """Closed months with all their revisions, the newest month and revision first"""
        own_plant(plant_id)
        at = place(wanted)
        found = periods.revisions_before(
            plant_id, before=(at[0], at[1]) if at else None, limit=wanted["limit"] + 1
        )
        return page(found, wanted, lambda one: (one.month, one.revision))


@blueprint.route("/v1/plants/<plant_id>/periods/<month>/close")
class ClosedPeriod(MethodView):
    @door(PLANT, scope="readings:write")
    @refuses("account_busy", "missing_factor", "period_not_over")
    @idempotent()
    @blueprint.response(200, RevisionAnswer)
    def post(self, plant_id: str, month: str) -> Revision:
        """Freeze a month that is over; what changes it later is a revision with the difference

        Closed again, it answers with the newest revision.
        """
        own_plant(plant_id)
        if read_day(f"{month}-01") is None:
            raise Invalid([("/month", "Not a month (YYYY-MM).")])
        made = periods.close(plant_id, month, by=caller().id)
        once = f"close:{plant_id}/{month}"
        after = {"co2e_mg": made.co2e_mg, "revision": made.revision}
        audit.note(caller().id, "month closed", f"{plant_id}/{month}", after=after, once=once)
        return made


def _listed(plant_id: str, kind: Kind, wanted: dict[str, Any]) -> dict[str, Any]:
    own_plant(plant_id)
    at = place(wanted)
    found = inventory_entries.entries_before(
        plant_id, kind, before=(at[0], at[1]) if at else None, limit=wanted["limit"] + 1
    )
    answer = page(found, wanted, lambda one: (one.recorded_at, one.id))
    return answer | {"items": [_entry(one) for one in answer["items"]]}


def _taken_back(plant_id: str, kind: Kind, event: str, reason: str) -> dict[str, Any]:
    own_plant(plant_id)
    entry = inventory_entries.take_back(plant_id, kind, event, reason=reason, by=caller().id)
    _note(f"{kind.value} taken back", entry, reason)
    return _entry(entry)


def _note(action: str, entry: Entry, reason: str | None = None) -> None:
    after = {"kind": entry.kind.value, "amount": entry.amount, "evidence": entry.evidence}
    once = f"{action}:{entry.id}"
    audit.note(caller().id, action, entry.id, reason=reason, after=after, once=once)


def _entry(entry: Entry) -> dict[str, Any]:
    shown = {name: getattr(entry, name) for name in Entry.__slots__}
    tonnes = None if entry.quantity_g is None else Decimal(entry.quantity_g).scaleb(-6)
    return shown | {"quantity_t": tonnes, "kwh": Decimal(entry.amount).scaleb(-3)}
