"""What a person has to look at."""

from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields

from accounting import alarms
from api.numbers import Instant
from api.openapi import Blueprint
from api.paging import PageQuery, newest, page_of
from api.security import OPERATOR, door

blueprint = Blueprint("operator_alarms", __name__, description="What a person has to look at")


class AlarmAnswer(ma.Schema):
    """`subject` is what it is about; the same is kept once a city day."""

    id = fields.String(required=True)
    kind = fields.String(required=True)
    subject = fields.String(required=True)
    facts = fields.Dict(required=True)
    at = Instant(required=True)


@blueprint.route("/v1/operator/alarms")
class Alarms(MethodView):
    @door(OPERATOR)
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(AlarmAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Alarms, newest first"""
        return newest(wanted, alarms.newest)
