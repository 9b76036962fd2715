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
from footprint import grade
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


def coverage(snapshot: Snapshot) -> dict[str, Any]:
    """On how much a grading rests: active months, and the share of class A and B evidence."""
    counted, whole = snapshot.share_ab
    return {
        "active_months": snapshot.standing.active_months,
        "months": snapshot.months_covered,
        "share_ab_percent": counted * 100 // whole if whole else 0,
    }
