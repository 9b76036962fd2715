"""The operator's mapping profiles of partners' files: versions, and a preview without effects."""

import io
from collections.abc import Iterator
from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import audit, clients, clock
from accounting.clients import Kind
from accounting.errors import DomainError, NotFound, ValidationFailed
from api.bill_rows import BillFields, sent_of
from api.feed_rows import RowFields, partner_of, row_of
from api.idempotency import business_key, idempotent
from api.numbers import Flag, Instant, Schema, Whole
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, page, page_of, place
from api.problems import Invalid, language
from api.reports import Attributes
from api.security import OPERATOR, caller, door
from footprint import methodology
from integrations import feeds, imports, mapping, partner_profiles
from integrations.feeds import FeedRow, FileRefused, Unreadable
from integrations.mapping import ATTRIBUTES, Profile
from integrations.partner_profiles import Version
from points.feed import Partner

LINES_MAX = 100
COLUMN = validate.Length(1, 128)
CODES_MAX = 20_000
FORMS: dict[str, Schema] = {mapping.ACTIVITIES: RowFields(), mapping.BILLS: BillFields()}

blueprint = Blueprint("partner_profiles", __name__, description="Mapping profiles of partners")


class RuleFields(Schema):
    """One of `column`, `columns` (joined) and `constant`; the rest says how a cell is read."""

    column = fields.String(validate=COLUMN)
    columns = fields.List(fields.String(validate=COLUMN), validate=validate.Length(1, 8))
    constant = fields.Raw(metadata={"description": "The same value for every row."})
    join = fields.String(validate=validate.Length(max=8))
    default = fields.Raw(metadata={"description": "The value where the cell is empty."})
    codes = fields.Dict(
        keys=fields.String(validate=validate.Length(1, 256)),
        values=fields.Raw(),
        validate=validate.Length(1, CODES_MAX),
        metadata={"description": "The partner's word and the value it stands for."},
    )
    unit = fields.String(validate=validate.OneOf(list(mapping.UNITS)))
    to = fields.String(validate=validate.OneOf(list(mapping.UNITS)))
    format = fields.String(
        validate=validate.Length(1, 64),
        metadata={"description": "`iso`, `unix_s`, `unix_ms`, or of %Y %m %d %H %M %S %f %z."},
    )
    digest = Flag(metadata={"description": "An id of 32 hexadecimal digits made of the cells."})


def _rules_of(name: str, targets: set[str], **more: fields.Field[Any]) -> type[Schema]:
    each: dict[str, Any] = {target: fields.Nested(RuleFields) for target in sorted(targets)}
    return type(name, (Schema,), each | more)


AttributeRules = _rules_of("AttributeRules", set(Attributes().fields))
RowRules = _rules_of(
    "RowRules",
    {name for form in FORMS.values() for name in form.fields} - {ATTRIBUTES},
    attributes=fields.Nested(AttributeRules),
)


class RulesByField(fields.Dict):
    """The rules of a row, documented as one object: all of them would be a long page."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        return RowRules().load(value)


class ProfileFields(Schema):
    name = fields.String(required=True, validate=validate.Length(1, 64))
    kind = fields.String(required=True, validate=validate.OneOf(mapping.KINDS))
    encoding = fields.String(validate=validate.OneOf(mapping.ENCODINGS))
    delimiter = fields.String(validate=validate.OneOf(mapping.DELIMITERS))
    time_zone = fields.String(validate=validate.Length(1, 64))
    fields = RulesByField(  # type: ignore[assignment]
        required=True,
        metadata={
            "description": "By field of a row, and by attribute under `attributes`: a rule of"
            " `column`, `columns`, `join`, `constant`, `default`, `codes`, `unit`, `to`, `format`"
            " and `digest`; see docs/files.md."
        },
    )


class ProfileRequest(Schema):
    profile = fields.Nested(ProfileFields, required=True)
    reason = fields.String(required=True, validate=validate.Length(1, 500))


class ProfileAnswer(ma.Schema):
    partner_id = fields.String(required=True)
    name = fields.String(required=True)
    version = fields.Integer(required=True)
    profile = fields.Raw(required=True)
    reason = fields.String(required=True)
    by = fields.String(required=True)
    at = Instant(required=True)


class ProfilePreviewRequest(Schema):
    """`lines` of a file; of a CSV the first is the header."""

    profile = fields.Nested(ProfileFields, required=True)
    media_type = fields.String(load_default=feeds.CSV, validate=validate.OneOf(feeds.FORMATS))
    lines = fields.List(
        fields.String(validate=validate.Regexp(r"[^\r\n]*[^\s][^\r\n]*\Z")),
        required=True,
        validate=validate.Length(1, LINES_MAX),
    )


class LineErrorAnswer(ma.Schema):
    code = fields.String(required=True)
    message = fields.String(required=True)


class LineAnswer(ma.Schema):
    line = Whole(required=True)
    row = fields.Raw(metadata={"description": "What the line becomes."})
    error = fields.Nested(LineErrorAnswer)


class ProfilePreviewAnswer(ma.Schema):
    results = fields.List(fields.Nested(LineAnswer), required=True)


@blueprint.route("/v1/operator/partners/<partner_id>/profiles")
class Profiles(MethodView):
    @door(OPERATOR, area="partners")
    @refuses("account_busy")
    @blueprint.arguments(ProfileRequest)
    @idempotent()
    @blueprint.response(201, ProfileAnswer)
    def post(self, wanted: dict[str, Any], partner_id: str) -> dict[str, Any]:
        """Add a version of a mapping profile; files sent from now on are read by it"""
        _partner(partner_id)
        checked(wanted["profile"])
        by = caller().client_id or caller().id
        made = partner_profiles.add(
            partner_id, wanted["profile"], reason=wanted["reason"], by=by, once=business_key()
        )
        audit.note(
            by,
            "partner profile added",
            partner_id,
            reason=wanted["reason"],
            before={"name": made.name, "version": made.version - 1} if made.version > 1 else None,
            after={"name": made.name, "version": made.version},
            once=f"partner-profile:{made.id}",
        )
        return _shown(made)

    @door(OPERATOR, area="partners")
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(ProfileAnswer))
    def get(self, wanted: dict[str, Any], partner_id: str) -> dict[str, Any]:
        """The versions of the mapping profiles of a partner, by name, the oldest first"""
        _partner(partner_id)
        at = place(wanted)
        found = partner_profiles.listed(
            partner_id, after=(at[0], at[1]) if at else None, limit=wanted["limit"] + 1
        )
        shown = page(found, wanted, lambda one: (one.name, one.version))
        return shown | {"items": [_shown(one) for one in shown["items"]]}


@blueprint.route("/v1/operator/partners/<partner_id>/profiles/preview")
class PreviewedProfile(MethodView):
    @door(OPERATOR, area="partners")
    @blueprint.arguments(ProfilePreviewRequest)
    @blueprint.response(200, ProfilePreviewAnswer)
    def post(self, wanted: dict[str, Any], partner_id: str) -> dict[str, Any]:
        """What sample lines become by a profile, or why not; keeps nothing"""
        partner = _partner(partner_id)
        profile = checked(wanted["profile"])
        lines, media_type = wanted["lines"], wanted["media_type"]
        first = 2 if media_type == feeds.CSV else 1
        try:
            rows = list(profile.rows(_read(lines, media_type, profile)))
        except FileRefused as refused:
            raise ValidationFailed("/lines/0", str(refused), f"无法读取：{refused}") from None
        return {
            "results": [
                {"line": line, **_becomes(partner, profile, row)}
                for line, row in enumerate(rows, start=first)
            ]
        }


def checked(raw: dict[str, Any]) -> Profile:
    """The profile, if its fields are those of a row of its kind; raises `ValidationFailed`."""
    profile = mapping.parse(raw)
    form = FORMS[profile.kind]
    for name in raw["fields"]:
        if name not in form.fields:
            raise ValidationFailed(f"/profile/fields/{name}", "Unknown field.", "未知字段。")
    for name, field in form.fields.items():
        if field.required and name not in raw["fields"]:
            raise ValidationFailed(
                f"/profile/fields/{name}", "Missing data for required field.", "缺少必填字段。"
            )
    known = methodology.in_force(clock.city_day(clock.now())).behaviours
    rule = raw["fields"].get("behaviour", {})
    said = {f"codes/{word}": code for word, code in rule.get("codes", {}).items()}
    said |= {key: rule[key] for key in ("constant", "default") if key in rule}
    for where, code in said.items():
        if code not in known:
            raise ValidationFailed(
                f"/profile/fields/behaviour/{where}", "Not a known behaviour.", "未知的行为。"
            )
    return profile


def _partner(partner_id: str) -> Partner:
    client = clients.of_subject(Kind.DATA, partner_id)
    if client is None:
        raise NotFound()
    return partner_of(client)


def _read(lines: list[str], media_type: str, profile: Profile) -> Iterator[FeedRow]:
    data = "\n".join(lines).encode()
    return feeds.rows(
        io.BytesIO(data), media_type=media_type, gzipped=False, size=len(data), form=profile.form
    )


def _becomes(partner: Partner, profile: Profile, row: FeedRow) -> dict[str, Any]:
    """The row, or the code and the reason the errors of a job would give."""
    if isinstance(row, Unreadable):
        message = imports.said(row)[language()]
        return {"error": {"code": imports.MALFORMED, "message": message}}
    take = sent_of if profile.kind == mapping.BILLS else row_of
    try:
        take(partner, row)
    except ma.ValidationError as error:
        refusal: DomainError = Invalid.of(error)
    except DomainError as refused:
        refusal = refused
    else:
        return {"row": row}
    return {"row": row, "error": {"code": refusal.code, "message": refusal.text(language())}}


def _shown(one: Version) -> dict[str, Any]:
    return {
        "partner_id": one.partner,
        "name": one.name,
        "version": one.version,
        "profile": one.raw,
        "reason": one.reason,
        "by": one.by,
        "at": one.at,
    }
