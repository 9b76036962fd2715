"""The operators' audit trail: who changed what, when and why."""

from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import audit
from api.numbers import Instant
from api.openapi import Blueprint
from api.paging import PageQuery, page, page_of, place
from api.security import OPERATOR, door

blueprint = Blueprint("operator_audit", __name__, description="Who changed what")


class AuditQuery(PageQuery):
    """At most one of `subject` and `actor`."""

    subject = fields.String(validate=validate.Length(1, 200))
    actor = fields.String(validate=validate.Length(1, 200))

    @ma.validates_schema(skip_on_field_errors=True)
    def one_of_two(self, data: dict[str, Any], **_: Any) -> None:
        if "subject" in data and "actor" in data:
            raise ma.ValidationError("Give subject or actor, not both.", "actor")


class AuditAnswer(ma.Schema):
    id = fields.String(required=True)
    actor = fields.String(required=True)
    action = fields.String(required=True)
    subject = fields.String(required=True)
    reason = fields.String(required=True, allow_none=True)
    before = fields.Dict(required=True, allow_none=True)
    after = fields.Dict(required=True, allow_none=True)
    at = Instant(required=True)


@blueprint.route("/v1/operator/audit")
class Audit(MethodView):
    @door(OPERATOR)
    @blueprint.arguments(AuditQuery, location="query")
    @blueprint.response(200, page_of(AuditAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Who changed what, with what it was before and after, newest first"""
        at = place(wanted)
        found = audit.trail(
            subject=wanted.get("subject"),
            actor=wanted.get("actor"),
            before=at,
            limit=wanted["limit"] + 1,
        )
        return page(found, wanted, lambda row: (row.at, row.id))
