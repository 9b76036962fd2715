"""The doors of rules that operators publish as versions: look at them, draft one, approve it.

The same for each kind of rules (`accounting/publishing.py`); what a preview of a draft says is each
kind's own.
"""

from typing import Any

import marshmallow as ma
from flask import current_app
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import clock
from accounting.jobs import Job
from accounting.publishing import DRAFT, PUBLISHED, SHIPPED, Register, Version
from api.idempotency import idempotent
from api.numbers import CityDay, Flag, Instant, Schema, Whole
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, page, page_of, place
from api.security import OPERATOR, caller, door

TEXT_CHARS_MAX = 200_000
SEED_MAX = 2**31 - 1
DRAFT_TEXT = fields.String(
    required=True,
    validate=validate.Length(1, TEXT_CHARS_MAX),
    metadata={"description": "The whole text as TOML, as `versions/{version}` shows it."},
)
GRADES_MOVED = fields.Dict(
    keys=fields.String(),
    values=fields.Dict(keys=fields.String(), values=fields.Integer()),
    required=True,
    metadata={"description": "Residents by grade now, then by grade under the draft."},
)


class Sample(Schema):
    """The same seed picks the same residents; each kind of preview adds its `size`."""

    seed = Whole(load_default=1, validate=validate.Range(0, SEED_MAX))


class DraftOnSampleOrWhole(Schema):
    """A draft to preview, on a sample (which each kind adds) or with `whole` on everybody."""

    draft = DRAFT_TEXT
    whole = Flag(load_default=False)

    @ma.validates_schema(skip_on_field_errors=True)
    def one_of_two(self, data: dict[str, Any], **_: Any) -> None:
        if data["whole"] and "sample" in data:
            raise ma.ValidationError("Send either sample or whole.", "whole")


class QueuedPreviewAnswer(ma.Schema):
    job_id = fields.String(required=True)


class PublishRequest(Schema):
    draft = DRAFT_TEXT
    valid_from = CityDay(required=True)


class PublishedAnswer(ma.Schema):
    version = fields.String(required=True)
    state = fields.String(required=True, validate=validate.OneOf([DRAFT, PUBLISHED]))
    needs_approval = fields.Boolean(required=True)
    valid_from = CityDay(required=True)


class VersionAnswer(PublishedAnswer):
    in_force = fields.Boolean(required=True)
    shipped = fields.Boolean(required=True)
    drafted_by = fields.String(required=True, allow_none=True)
    drafted_at = Instant(required=True, allow_none=True)
    approved_by = fields.String(required=True, allow_none=True)
    published_at = Instant(required=True, allow_none=True)


class VersionTextAnswer(VersionAnswer):
    text = fields.String(required=True)


VersionsPage = page_of(VersionAnswer)


def version_doors(blueprint: Blueprint, path: str, register: Register[Any]) -> None:
    """Open the doors to the versions of a register below `path`."""

    @blueprint.route(path)
    class Versions(MethodView):
        @door(OPERATOR, area="methodology")
        @blueprint.arguments(PageQuery, location="query")
        @blueprint.response(200, VersionsPage)
        def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
            """Every version, drafts too, the last to be in force first"""
            at = place(wanted)
            found = [one for one in register.listed() if at is None or _place_of(one) < at]
            answer = page(found, wanted, _place_of)
            return answer | {"items": [_shown(register, one) for one in answer["items"]]}

    @blueprint.route(f"{path}/versions/<version>")
    class OneVersion(MethodView):
        @door(OPERATOR, area="methodology")
        @blueprint.response(200, VersionTextAnswer)
        def get(self, version: str) -> dict[str, Any]:
            """One version with its text, to begin a draft from"""
            found = register.get(version)
            return {**_shown(register, found), "text": found.text}

    @blueprint.route(f"{path}/publish")
    class Published(MethodView):
        @door(OPERATOR, area="methodology")
        @refuses("version_exists", "first_day_taken", "approved_too_late")
        @blueprint.arguments(PublishRequest)
        @idempotent()
        @blueprint.response(201, PublishedAnswer)
        def post(self, wanted: dict[str, Any]) -> Version:
            """Draft a version for a day to come; another operator must approve it

            What is of earlier days keeps its version.
            """
            return register.publish(
                wanted["draft"], wanted["valid_from"], caller().id, alone=one_is_enough()
            )

    @blueprint.route(f"{path}/<version>/approve")
    class ApprovedVersion(MethodView):
        @door(OPERATOR, area="methodology")
        @refuses(
            "second_operator_needed", "first_day_taken", "approved_too_late", "validation_failed"
        )
        @idempotent()
        @blueprint.response(200, VersionAnswer)
        def post(self, version: str) -> dict[str, Any]:
            """Publish another operator's draft"""
            return _shown(register, register.approve(version, caller().id, alone=one_is_enough()))


def one_is_enough() -> bool:
    """Whether an operator may approve alone: in the demo only."""
    demo: bool = current_app.extensions["config"].demo
    return demo


def queued(job: Job) -> tuple[Any, int, dict[str, str]]:
    """The answer of a preview that became a job.

    The schema of a preview's answer depends on the status, so this one is dumped here.
    """
    return current_app.json.response({"job_id": job.id}), 202, location_of(job.id)


def location_of(job_id: str) -> dict[str, str]:
    return {"Location": f"/v1/jobs/{job_id}"}


def _place_of(version: Version) -> tuple[str, str]:
    return version.valid_from.isoformat(), version.version


def _shown(register: Register[Any], version: Version) -> dict[str, Any]:
    return {
        "version": version.version,
        "state": PUBLISHED if version.state == SHIPPED else version.state,
        "shipped": version.state == SHIPPED,
        "needs_approval": version.needs_approval,
        "valid_from": version.valid_from,
        "in_force": register.in_force(clock.city_day(clock.now())) == version.version,
        "drafted_by": version.drafted_by,
        "drafted_at": version.drafted_at,
        "approved_by": version.approved_by,
        "published_at": version.published_at,
    }
