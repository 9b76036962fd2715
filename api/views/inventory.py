"""What a plant used and emitted, over any range, whole or of one node."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import factors
from accounting.enterprise import inventory
from accounting.enterprise.inventory import By, CarrierTotal, Inventory, Total
from api.numbers import DayOrInstant, Kilograms, Quantity, Schema, plain
from api.openapi import Blueprint, refuses
from api.plants import NAME, own_plant
from api.security import PLANT, door

# What quantities are shown in: the unit of people, and how many of the smallest one it holds.
SHOWN: Mapping[str, tuple[str, int]] = {
    "Wh": ("kWh", 1_000),
    "g": ("t", 1_000_000),
    "NL": ("Nm3", 1_000),
    "kJ": ("GJ", 1_000_000),
}

blueprint = Blueprint("inventory", __name__, description="Energy and carbon of plants")


class EmissionsQuery(Schema):
    """City days are included, instants half-open."""

    begin = DayOrInstant(required=True, data_key="from")
    end = DayOrInstant(required=True, data_key="to")
    by = fields.String(
        load_default=By.DAY.value, validate=validate.OneOf([one.value for one in By])
    )
    node = fields.String(validate=NAME)


class FactorUsed(ma.Schema):
    id = fields.String(required=True)
    set = fields.String(required=True)
    value = Quantity(required=True)
    unit = fields.String(required=True)
    data_year = fields.Integer(required=True, allow_none=True)


class CarrierEmissions(ma.Schema):
    """What was drawn from outside less what was given away.

    `process` (process emissions) and `green_power` (what evidenced green power changes) stand
    beside the carriers. Scope 1 was emitted here, scope 2 for the power and heat bought.
    """

    co2e_kg = Kilograms(required=True)
    tce_kg = Kilograms(required=True)
    scope = fields.Integer(required=True)
    quantity = Quantity(required=True, allow_none=True)
    unit = fields.String(required=True, allow_none=True)
    factors = fields.List(fields.Nested(FactorUsed), required=True)


class Known(ma.Schema):
    """`co2e_kg` and `tce_kg` are null where nothing is known: missing is never zero.

    `completeness` is the share of slots that were measured, `estimated_share` of those estimated.
    """

    co2e_kg = Kilograms(required=True, allow_none=True)
    tce_kg = Kilograms(required=True, allow_none=True)
    completeness = Quantity(required=True)
    estimated_share = Quantity(required=True)


class EmissionsPeriod(Known):
    period = fields.String(
        required=True, metadata={"description": "A month, a day, or the instant it begins at."}
    )
    quantities = fields.Dict(
        keys=fields.String(),
        values=Quantity(),
        required=True,
        metadata={"description": "Each carrier in the unit it has in by_carrier."},
    )


class EmissionsAnswer(Known):
    by_carrier = fields.Dict(
        keys=fields.String(), values=fields.Nested(CarrierEmissions), required=True
    )
    series = fields.List(fields.Nested(EmissionsPeriod), required=True)
    factor_set = fields.String(
        required=True, metadata={"description": "The sets of all factors used, joined by +."}
    )
    revision = fields.Integer(
        required=True, metadata={"description": "Grows with every change of a number in the range."}
    )


@blueprint.route("/v1/plants/<plant_id>/emissions")
class Emissions(MethodView):
    @door(PLANT, scope="plant:read")
    @refuses("account_busy", "missing_factor")
    @blueprint.arguments(EmissionsQuery, location="query")
    @blueprint.response(200, EmissionsAnswer)
    def get(self, wanted: dict[str, Any], plant_id: str) -> dict[str, Any]:
        """CO2e and coal equivalent by slot, hour, day or month, of the plant or one of its nodes

        What was sent a moment ago is in it. Coal equivalent is calorific. At most 31 days by slot
        or hour, 400 by day, 1,100 by month.
        """
        own_plant(plant_id)
        found = inventory.for_period(
            plant_id, wanted["begin"], wanted["end"], By(wanted["by"]), wanted.get("node")
        )
        return _answer(found)


def _answer(found: Inventory) -> dict[str, Any]:
    return {
        **known(found.total),
        "by_carrier": {
            name: carrier(name, one) for name, one in sorted(found.total.by_carrier.items())
        },
        "series": [
            {"period": period, "quantities": _quantities(total), **known(total)}
            for period, total in found.series
        ],
        "factor_set": found.factor_set,
        "revision": found.revision,
    }


def known(total: Total) -> dict[str, Any]:
    """A total as it is answered: nothing known is null, never zero."""
    return {
        "co2e_kg": total.co2e_mg if total.known else None,
        "tce_kg": total.tce_mg if total.known else None,
        "completeness": total.completeness,
        "estimated_share": total.estimated_share,
    }


def _quantities(total: Total) -> dict[str, Decimal]:
    return {
        name: Decimal(one.quantity) / SHOWN[one.unit][1]
        for name, one in sorted(total.by_carrier.items())
        if one.unit in SHOWN
    }


def carrier(name: str, one: CarrierTotal) -> dict[str, Any]:
    """A carrier as it is answered, with the factors it was computed with."""
    unit, size = SHOWN.get(one.unit, (None, 1))
    registry = factors.shipped()
    return {
        "co2e_kg": one.co2e_mg,
        "tce_kg": one.tce_mg,
        "scope": inventory.scope_of(name),
        "quantity": plain(Decimal(one.quantity) / size) if unit else None,
        "unit": unit,
        "factors": [registry.by_id(factor_id) for factor_id in sorted(one.factors)],
    }
