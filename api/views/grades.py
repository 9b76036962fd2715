"""The personal grade, from the resident's side."""

from functools import partial
from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields

from accounting import clock
from api.numbers import CityDay, Kilograms
from api.openapi import Blueprint
from api.paging import PageQuery, newest, page_of
from api.problems import language
from api.security import RESIDENT, caller, door
from footprint import grade, grade_advice, methodology, summaries
from footprint.grade import Snapshot

blueprint = Blueprint("grades", __name__, description="The personal grade")


class NextAnswer(ma.Schema):
    grade = fields.String(required=True)
    kg_to_go = Kilograms(required=True)


class CoverageAnswer(ma.Schema):
    active_months = fields.Integer(required=True)
    months = fields.Integer(required=True)
    share_ab_percent = fields.Integer(required=True)


class GradeAnswer(ma.Schema):
    grade = fields.String(required=True)
    label = fields.String(required=True)
    reduction_kg = Kilograms(required=True)
    counted_kg = Kilograms(required=True)
    margin_below_kg = Kilograms(required=True, allow_none=True)
    next = fields.Nested(NextAnswer)
    coverage = fields.Nested(CoverageAnswer, required=True)
    by_dimension = fields.Dict(keys=fields.String(), values=Kilograms(), required=True)
    policy_version = fields.String(required=True)
    graded_on = CityDay(required=True)
    valid_until = CityDay(required=True)


class PartAnswer(ma.Schema):
    behaviour = fields.String(required=True)
    name = fields.String(required=True)
    reduction_kg = Kilograms(required=True)
    counted_kg = Kilograms(
        required=True, metadata={"description": "At most its share of the raw total."}
    )


class DimensionAnswer(ma.Schema):
    dimension = fields.String(required=True)
    counted_kg = Kilograms(required=True)
    behaviours = fields.List(fields.Nested(PartAnswer), required=True)


class CutOffAnswer(ma.Schema):
    grade = fields.String(required=True)
    label = fields.String(required=True)
    from_kg = Kilograms(required=True)


class GradeExplanationAnswer(ma.Schema):
    """`held` is the grade before; after `gradings_below` monthly gradings below it falls."""

    grade = fields.String(required=True)
    from_month = fields.String(required=True)
    to_month = fields.String(required=True)
    reduction_kg = Kilograms(required=True)
    share_percent = fields.Integer(required=True)
    most_of_one_kg = Kilograms(required=True)
    counted_kg = Kilograms(required=True)
    dimensions = fields.List(fields.Nested(DimensionAnswer), required=True)
    cut_offs = fields.List(fields.Nested(CutOffAnswer), required=True)
    active_months = fields.Integer(required=True)
    active_months_min = fields.Integer(required=True)
    held = fields.String(required=True, allow_none=True)
    below = fields.Integer(required=True)
    gradings_below = fields.Integer(required=True)


class AdviceItem(ma.Schema):
    behaviour = fields.String(required=True)
    times = fields.Integer(required=True)
    each_kg = Kilograms(required=True)
    text = fields.String(required=True)


class AdviceAnswer(ma.Schema):
    """`active_months_to_go` are missing before anything is rated at all."""

    next = fields.Nested(NextAnswer)
    active_months_to_go = fields.Integer(required=True)
    items = fields.List(fields.Nested(AdviceItem), required=True)


@blueprint.route("/v1/me/grade")
class Grade(MethodView):
    @door(RESIDENT)
    @blueprint.response(200, GradeAnswer)
    def get(self) -> dict[str, Any]:
        """My grade as it stands, with its margins and what it is made of"""
        return shown(grade.grade_now(caller().id))


@blueprint.route("/v1/me/grade/history")
class GradeHistory(MethodView):
    @door(RESIDENT)
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(GradeAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """My gradings, newest first"""
        history = partial(grade.history, caller().id)
        return newest(wanted, history, shown, by=lambda snapshot: snapshot.number)


@blueprint.route("/v1/me/grade/explanation")
class GradeExplanation(MethodView):
    @door(RESIDENT)
    @blueprint.response(200, GradeExplanationAnswer)
    def get(self) -> dict[str, Any]:
        """What my grade is made of, dimension by dimension, and by which rules"""
        return _explained(grade.grade_now(caller().id))


@blueprint.route("/v1/me/grade/advice")
class GradeAdvice(MethodView):
    @door(RESIDENT)
    @blueprint.response(200, AdviceAnswer)
    def get(self) -> dict[str, Any]:
        """What would bring me to the next grade, from what I do anyway

        Each item alone is enough. It counts with the largest share one behaviour may have.
        """
        return _advised(grade.grade_now(caller().id))


def shown(snapshot: Snapshot) -> dict[str, Any]:
    """A grading as the resident sees it, in the reader's language."""
    standing = snapshot.standing
    policy = grade.policy_named(snapshot.policy)
    answer: dict[str, Any] = {
        "grade": standing.grade,
        "label": grade.label(policy, standing.grade)[language()],
        "reduction_kg": standing.reduction_mg,
        "counted_kg": standing.counted_mg,
        "margin_below_kg": standing.margin_below_mg,
        "coverage": coverage(snapshot),
        "by_dimension": snapshot.by_dimension,
        "policy_version": snapshot.policy,
        "graded_on": clock.city_day(snapshot.graded_at),
        "valid_until": snapshot.valid_until,
    }
    if standing.next_grade is not None:
        answer["next"] = {"grade": standing.next_grade, "kg_to_go": standing.to_next_mg}
    return answer


def _explained(snapshot: Snapshot) -> dict[str, Any]:
    policy, standing = grade.policy_named(snapshot.policy), snapshot.standing
    counted = policy.counted(snapshot.by_behaviour)
    parts: dict[str, list[dict[str, Any]]] = {}
    for code, mg in snapshot.by_behaviour.items():
        part = {
            "behaviour": code,
            "name": methodology.name_of(code)[language()],
            "reduction_kg": mg,
            "counted_kg": counted[code],
        }
        parts.setdefault(methodology.dimension_of(code), []).append(part)
    return {
        "grade": standing.grade,
        "from_month": snapshot.first_month,
        "to_month": snapshot.last_month,
        "reduction_kg": standing.reduction_mg,
        "share_percent": policy.share_num * 100 // policy.share_den,
        "most_of_one_kg": policy.most(standing.reduction_mg),
        "counted_kg": standing.counted_mg,
        "dimensions": [
            {
                "dimension": dimension,
                "counted_kg": sum(part["counted_kg"] for part in behaviours),
                "behaviours": behaviours,
            }
            for dimension, behaviours in sorted(parts.items())
        ],
        "cut_offs": [
            {"grade": name, "label": policy.labels[name][language()], "from_kg": floor}
            for floor, name in policy.cut_offs
        ],
        "active_months": standing.active_months,
        "active_months_min": policy.active_months_min,
        "held": snapshot.inputs.held,
        "below": standing.below,
        "gradings_below": policy.gradings_below,
    }


_ADVICE = {"zh": "再完成约 {times} 次“{name}”", "en": "about {times} more: {name}"}


def _advised(snapshot: Snapshot) -> dict[str, Any]:
    policy, standing = grade.policy_named(snapshot.policy), snapshot.standing
    missing = policy.active_months_min - standing.active_months
    answer: dict[str, Any] = {"active_months_to_go": max(missing, 0), "items": []}
    if standing.next_grade is None:
        return answer
    answer["next"] = {"grade": standing.next_grade, "kg_to_go": standing.to_next_mg}
    rules = methodology.in_force(clock.city_day(clock.now())).behaviours
    _, rows = summaries.month_rows(snapshot.resident, snapshot.first_month, snapshot.last_month)
    advice = grade_advice.advise(
        policy,
        snapshot.by_behaviour,
        rows,
        policy.floor_of(standing.next_grade),
        [code for code, one in rules.items() if one.enabled and not one.from_bills],
    )
    for one in advice:
        name = rules[one.behaviour].name[language()]
        answer["items"].append(
            {
                "behaviour": one.behaviour,
                "times": one.times,
                "each_kg": one.each_mg,
                "text": _ADVICE[language()].format(times=one.times, name=name),
            }
        )
    return answer


def coverage(snapshot: Snapshot) -> dict[str, Any]:
    """On how much a grading rests: active months, and the share of class A and B evidence."""
    counted, whole = snapshot.share_ab
    return {
        "active_months": snapshot.standing.active_months,
        "months": snapshot.months_covered,
        "share_ab_percent": counted * 100 // whole if whole else 0,
    }
