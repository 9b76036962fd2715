"""The energy and carbon budget of a plant's year: the plan told, and how the year stands."""

from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import audit, clock
from accounting.enterprise import budget, budget_plans, budgets
from accounting.enterprise.budget import Amounts, Line, Measure, Method, Plan
from accounting.enterprise.budget_plans import Kept
from accounting.enterprise.budgets import Standing
from accounting.quantities import EXACT
from api.idempotency import business_key, idempotent
from api.numbers import CityDay, Digits, Instant, Quantity, Schema, Whole, plain
from api.openapi import Blueprint, refuses
from api.plants import MONTH, own_plant
from api.problems import Invalid
from api.security import PLANT, caller, door

YEAR = validate.Range(2000, 2100)
AMOUNT_MAX = 9_000_000
KWH_MAX = 9_000_000_000_000
# A share as people read it: 0.8315 of the plan is used.
SHARE_PLACES = Decimal("0.0001")
# The names of the contract, and the decimal places between them and the stored integers.
SHOWN: Mapping[Measure, tuple[str, int]] = {
    Measure.ENERGY: ("kwh", 3),
    Measure.COAL: ("tce", 9),
    Measure.CARBON: ("tco2", 9),
}

blueprint = Blueprint("budgets", __name__, description="Energy and carbon budgets of plants")


class YearQuery(Schema):
    """The city's year; without one the present."""

    year = Digits(validate=YEAR)


class BudgetPlanFields(Schema):
    """What is left out or null has no plan. Coal equivalent with the equivalent value of power."""

    kwh = Quantity(allow_none=True, minimum=0, maximum=KWH_MAX)
    tce = Quantity(allow_none=True, minimum=0, maximum=AMOUNT_MAX)
    tco2 = Quantity(allow_none=True, minimum=0, maximum=AMOUNT_MAX)


class BudgetMonthFields(BudgetPlanFields):
    month = fields.String(required=True, validate=MONTH)


class BudgetPlanRequest(Schema):
    """A year's plan. What it has beyond the months told is spread over the others by days."""

    year = Whole(required=True, validate=YEAR)
    yearly = fields.Nested(BudgetPlanFields, load_default=dict)
    monthly = fields.List(
        fields.Nested(BudgetMonthFields), load_default=list, validate=validate.Length(max=12)
    )
    reason = fields.String(load_default="", validate=validate.Length(max=500))


class BudgetAmounts(ma.Schema):
    kwh = Quantity(required=True, allow_none=True)
    tce = Quantity(required=True, allow_none=True)
    tco2 = Quantity(required=True, allow_none=True)


class BudgetPlanMonth(BudgetAmounts):
    month = fields.String(required=True)


class BudgetPlanAnswer(ma.Schema):
    plant_id = fields.String(required=True)
    year = fields.Integer(required=True)
    revision = fields.Integer(required=True)
    plan = fields.Nested(BudgetAmounts, required=True)
    months = fields.List(fields.Nested(BudgetPlanMonth), required=True)
    recorded_at = Instant(required=True)


class BudgetMonth(ma.Schema):
    month = fields.String(required=True)
    plan = fields.Nested(BudgetAmounts, required=True)
    used = fields.Nested(BudgetAmounts, required=True)


class ForecastMethods(ma.Schema):
    """How each forecast was made: docs/budget.md."""

    kwh = fields.String(required=True, validate=validate.OneOf([one.value for one in Method]))
    tce = fields.String(required=True, validate=validate.OneOf([one.value for one in Method]))
    tco2 = fields.String(required=True, validate=validate.OneOf([one.value for one in Method]))


class BudgetAnswer(ma.Schema):
    """Null: nothing planned, or nothing known. Shares are of 1.

    `surplus` is what the forecast leaves of the plan, negative a shortage; `progress` the share of
    the plan that is used; `ahead` how far use is ahead of the plan to date.
    """

    plant_id = fields.String(required=True)
    year = fields.Integer(required=True)
    revision = fields.Integer(required=True, metadata={"description": "Of the plan; 0 is none."})
    as_of = CityDay(required=True)
    plan = fields.Nested(BudgetAmounts, required=True)
    used = fields.Nested(BudgetAmounts, required=True)
    planned_to_date = fields.Nested(BudgetAmounts, required=True)
    forecast = fields.Nested(BudgetAmounts, required=True)
    surplus = fields.Nested(BudgetAmounts, required=True)
    progress = fields.Nested(BudgetAmounts, required=True)
    ahead = fields.Nested(BudgetAmounts, required=True)
    forecast_method = fields.Nested(ForecastMethods, required=True)
    months = fields.List(fields.Nested(BudgetMonth), required=True)
    completeness = Quantity(required=True)
    estimated_share = Quantity(required=True)
    provisional = fields.Boolean(required=True)
    tce_basis = fields.String(required=True)


@blueprint.route("/v1/plants/<plant_id>/budget")
class Budget(MethodView):
    @door(PLANT, scope="plant:read")
    @refuses("account_busy", "missing_factor")
    @blueprint.arguments(YearQuery, location="query")
    @blueprint.response(200, BudgetAnswer)
    def get(self, wanted: dict[str, Any], plant_id: str) -> dict[str, Any]:
        """Plan, use and forecast of a year in kWh, tce and tCO2"""
        own_plant(plant_id)
        return shown(budgets.standing(plant_id, wanted.get("year") or this_year()))

    @door(PLANT, scope="readings:write")
    @refuses("account_busy")
    @blueprint.arguments(BudgetPlanRequest)
    @idempotent()
    @blueprint.response(201, BudgetPlanAnswer)
    def post(self, wanted: dict[str, Any], plant_id: str) -> dict[str, Any]:
        """Plan a year; another plan for it is its next revision, the old one is kept"""
        own_plant(plant_id)
        plan = _plan(wanted)
        kept = budget_plans.tell(plant_id, plan, once=business_key())
        before = budget_plans.revision(plant_id, plan.year, kept.revision - 1)
        audit.note(
            caller().client_id or caller().id,
            "budget planned",
            plant_id,
            reason=wanted["reason"] or None,
            before=_noted(before),
            after=_noted(kept),
            once=f"budget:{plant_id}:{plan.year}:{kept.revision}",
        )
        return {
            "plant_id": plant_id,
            "year": plan.year,
            "revision": kept.revision,
            "plan": shown_amounts({one: budget.of_year(plan, one) for one in Measure}),
            "months": _months_planned(plan),
            "recorded_at": kept.recorded_at,
        }


def this_year() -> int:
    return clock.city_day(clock.now()).year


def shown(standing: Standing) -> dict[str, Any]:
    """A budget as it is answered."""
    lines = standing.lines

    def of(read: Callable[[Line], int | None]) -> dict[str, Any]:
        return shown_amounts({measure: read(line) for measure, line in lines.items()})

    def share(read: Callable[[Line], Fraction | None]) -> dict[str, Any]:
        return {name: _share(read(lines[measure])) for measure, (name, _) in SHOWN.items()}

    return {
        "plant_id": standing.plant,
        "year": standing.year,
        "revision": standing.kept.revision if standing.kept else 0,
        "as_of": standing.on,
        "plan": of(lambda line: line.plan),
        "used": of(lambda line: line.used),
        "planned_to_date": of(lambda line: line.planned_to_date),
        "forecast": of(lambda line: line.forecast.amount),
        "surplus": of(lambda line: line.surplus),
        "progress": share(lambda line: line.progress),
        "ahead": share(lambda line: line.ahead),
        "forecast_method": {
            name: lines[measure].forecast.method.value for measure, (name, _) in SHOWN.items()
        },
        "months": [
            {
                "month": month,
                "plan": shown_amounts({one: line.months[place][0] for one, line in lines.items()}),
                "used": shown_amounts({one: line.months[place][1] for one, line in lines.items()}),
            }
            for place, month in enumerate(clock.months_of(standing.year))
        ],
        "completeness": standing.completeness,
        "estimated_share": standing.estimated_share,
        "provisional": standing.provisional,
        "tce_basis": budgets.TCE_BASIS,
    }


def shown_amounts(told: Mapping[Measure, int | None]) -> dict[str, Decimal | int | None]:
    """Integers as kWh, tce and tCO2, exactly."""
    found: dict[str, Decimal | int | None] = {}
    for measure, (name, places) in SHOWN.items():
        amount = told[measure]
        found[name] = None if amount is None else plain(Decimal(amount).scaleb(-places, EXACT))
    return found


def _plan(wanted: Mapping[str, Any]) -> Plan:
    monthly = {one["month"]: _amounts(one) for one in wanted["monthly"]}
    if len(monthly) < len(wanted["monthly"]):
        raise Invalid([("/monthly", "A month is named twice.")])
    return Plan(wanted["year"], _amounts(wanted["yearly"]), monthly)


def _amounts(told: Mapping[str, Any]) -> Amounts:
    return {
        measure: int(told[name].scaleb(places, EXACT))
        for measure, (name, places) in SHOWN.items()
        if told.get(name) is not None
    }


def _months_planned(plan: Plan) -> list[dict[str, Any]]:
    by_month = {measure: budget.by_month(plan, measure) for measure in Measure}
    return [
        {"month": month, **shown_amounts({one: told[place] for one, told in by_month.items()})}
        for place, month in enumerate(clock.months_of(plan.year))
    ]


def _noted(kept: Kept | None) -> dict[str, Any] | None:
    if kept is None:
        return None
    yearly = {measure.value: amount for measure, amount in kept.plan.yearly.items()}
    return {"year": kept.plan.year, "revision": kept.revision, "yearly": yearly}


def _share(of: Fraction | None) -> Decimal | None:
    if of is None:
        return None
    return (Decimal(of.numerator) / of.denominator).quantize(SHARE_PLACES, rounding="ROUND_FLOOR")
