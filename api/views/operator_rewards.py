"""The operator's catalogue: rewards, their stock, pictures, files of them, what became of them."""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import marshmallow as ma
from flask import Response, request
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import audit, clock
from accounting.errors import DomainError
from accounting.tables import CSV, csv_text
from api import problems, reward_terms
from api.idempotency import business_key, idempotent
from api.numbers import CityDay, Instant, Schema
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, newest, page, page_of, place
from api.problems import UnsupportedMediaType
from api.reward_terms import OperatorRewardAnswer, RewardChange, RewardRequest, shown
from api.security import OPERATOR, caller, door
from footprint import photos
from rewards import catalogue, figures, pictures, stock
from rewards.offers import Reward

JPEG, PNG = "image/jpeg", "image/png"
EXPORT_MAX = 10_000
PAGE = 500
_BINARY = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}

blueprint = Blueprint("operator_rewards", __name__, description="The catalogue and its figures")


class OperatorRewardQuery(PageQuery):
    text = fields.String(validate=validate.Length(1, 64))
    category = fields.String(validate=validate.Length(1, 40))
    merchant_id = fields.String(validate=validate.Length(1, 64))
    low_stock = fields.String(validate=validate.OneOf(["true"]))


class ImportedRewardAnswer(ma.Schema):
    row = fields.Integer(required=True, metadata={"description": "From 1, without the header."})
    status_code = fields.Integer(required=True)
    id = fields.String()
    problem = fields.Nested(problems.Problem)


class ImportAnswer(ma.Schema):
    results = fields.List(fields.Nested(ImportedRewardAnswer), required=True)


class StockAlarmAnswer(ma.Schema):
    id = fields.String(required=True)
    reward_id = fields.String(required=True)
    merchant_id = fields.String(required=True)
    title = fields.Dict(keys=fields.String(), values=fields.String(), required=True)
    stock_left = fields.Integer(required=True)
    low_stock_at = fields.Integer(required=True)
    at = Instant(required=True)


class FiguresQuery(Schema):
    """City days, both included; the last thirty if not told otherwise."""

    from_ = CityDay(data_key="from")
    to = CityDay()
    reward_id = fields.String(validate=validate.Length(1, 64))


class RefusedRedemptionsAnswer(ma.Schema):
    code = fields.String(required=True)
    redemptions = fields.Integer(required=True)


class ByStatusAnswer(ma.Schema):
    issued = fields.Integer(required=True)
    used = fields.Integer(required=True)
    expired = fields.Integer(required=True)
    cancelled = fields.Integer(required=True)


class TopAnswer(ma.Schema):
    reward_id = fields.String(required=True)
    title = fields.Dict(keys=fields.String(), values=fields.String(), required=True)
    vouchers = fields.Integer(required=True)
    points = fields.Integer(required=True)


class FiguresAnswer(ma.Schema):
    """From asking to using: redemptions by their end, then their vouchers as they stand now."""

    from_ = CityDay(required=True, data_key="from", attribute="from")
    to = CityDay(required=True)
    asked = fields.Integer(required=True)
    under_way = fields.Integer(required=True)
    refused = fields.List(fields.Nested(RefusedRedemptionsAnswer), required=True)
    went_through = fields.Integer(required=True)
    vouchers = fields.Nested(ByStatusAnswer, required=True)
    top = fields.List(fields.Nested(TopAnswer), required=True)


@blueprint.route("/v1/operator/rewards")
class OperatorRewards(MethodView):
    @door(OPERATOR, area="rewards")
    @refuses("not_found")
    @blueprint.arguments(RewardRequest)
    @idempotent()
    @blueprint.response(201, OperatorRewardAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Add a reward to the catalogue"""
        key = business_key()
        reward = reward_terms.add(wanted, f"request:{key}" if key else None)
        audit.note(
            caller().id, "reward added", reward.id, after=_plain(reward), once=f"added:{reward.id}"
        )
        return shown(reward)

    @door(OPERATOR, area="rewards")
    @blueprint.arguments(OperatorRewardQuery, location="query")
    @blueprint.response(200, page_of(OperatorRewardAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """The whole catalogue with its stock, newest first"""
        names = ("text", "category", "merchant_id")
        filters: dict[str, Any] = {name: wanted[name] for name in names if name in wanted}
        find = partial(catalogue.all_rewards, low_stock="low_stock" in wanted, **filters)
        return newest(wanted, find, shown)


@blueprint.route("/v1/operator/rewards/<reward_id>")
class OperatorReward(MethodView):
    @door(OPERATOR, area="rewards")
    @blueprint.response(200, OperatorRewardAnswer)
    def get(self, reward_id: str) -> dict[str, Any]:
        """One reward with its stock"""
        return shown(catalogue.reward(reward_id))

    @door(OPERATOR, area="rewards")
    @refuses("stock_promised", "stock_too_large", "account_busy")
    @blueprint.arguments(RewardChange)
    @idempotent()
    @blueprint.response(200, OperatorRewardAnswer)
    def patch(self, wanted: dict[str, Any], reward_id: str) -> dict[str, Any]:
        """Change terms, pause, add or take away stock; what was redeemed keeps its terms

        Stock that is reserved or issued stays.
        """
        key = business_key()
        before: dict[str, Any] = {}
        after: dict[str, Any] = {}
        changes = reward_terms.terms_of(wanted)
        # All of the request or nothing of it.
        catalogue.check(reward_id, changes)
        if "stock_delta" in wanted:
            left = stock.change(reward_id, wanted["stock_delta"], key)
            before["stock_left"], after["stock_left"] = left
        if changes:
            was, now = catalogue.change(reward_id, changes)
            before |= {name: _plain(was)[name] for name in changes}
            after |= {name: _plain(now)[name] for name in changes}
            if "low_stock_at" in changes:
                stock.watch(reward_id)
        audit.note(
            caller().id, "reward changed", reward_id, reason=wanted.get("reason"),
            before=before, after=after, once=f"changed:{key}" if key else None,
        )  # fmt: skip
        return shown(catalogue.reward(reward_id))


@blueprint.route("/v1/operator/rewards/<reward_id>/image")
class RewardImage(MethodView):
    @door(OPERATOR, area="rewards", body_max=photos.BYTES_MAX)
    @refuses("photo_unreadable", "payload_too_large", "unsupported_media_type")
    @idempotent()
    @blueprint.response(200, OperatorRewardAnswer)
    @blueprint.doc(requestBody={"required": True, "content": {JPEG: _BINARY, PNG: _BINARY}})
    def put(self, reward_id: str) -> dict[str, Any]:
        """Upload its picture, JPEG or PNG of at most 5 MB; nothing but the picture is kept"""
        if request.mimetype not in (JPEG, PNG):
            raise UnsupportedMediaType(f"{JPEG} or {PNG}")
        before = catalogue.reward(reward_id).image
        digest = pictures.show(reward_id, request.get_data())
        audit.note(
            caller().id, "reward picture changed", reward_id,
            before={"image": before}, after={"image": digest},
        )  # fmt: skip
        return shown(catalogue.reward(reward_id))


@blueprint.route("/v1/operator/reward-files")
class RewardFiles(MethodView):
    @door(OPERATOR, area="rewards")
    @refuses(
        "malformed_request", "validation_failed", "payload_too_large", "unsupported_media_type"
    )
    @idempotent()
    @blueprint.response(200, ImportAnswer)
    @blueprint.doc(requestBody={"required": True, "content": {CSV: {"schema": {"type": "string"}}}})
    def post(self) -> dict[str, Any]:
        """Add rewards from a CSV file of at most 1,000 rows: the good rows, the others are told

        A `reference` of yours makes a row one: the same row again is the same reward.
        """
        if request.mimetype != CSV:
            raise UnsupportedMediaType(CSV)
        rows = reward_terms.read_rows(request.get_data())
        return {"results": [_imported(number, row) for number, row in enumerate(rows, start=1)]}

    @door(OPERATOR, area="rewards")
    @blueprint.response(200, description="One line a reward")
    @blueprint.doc(responses={200: {"content": {CSV: {"schema": {"type": "string"}}}}})
    def get(self) -> Response:
        """The catalogue as CSV, newest first, at most 10,000 rewards"""
        header = (*reward_terms.COLUMNS, *reward_terms.STANDING)
        text = csv_text(header, reward_terms.as_rows(_everything()))
        response = Response(text, content_type=f"{CSV}; charset=utf-8")
        response.headers["Content-Disposition"] = 'attachment; filename="rewards.csv"'
        return response


@blueprint.route("/v1/operator/stock-alarms")
class StockAlarms(MethodView):
    @door(OPERATOR, area="rewards")
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(StockAlarmAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """When only few of a reward were left: one alarm each time, newest first"""
        found = stock.alarms(before=place(wanted), limit=wanted["limit"] + 1)
        return page(found, wanted, lambda one: (one.at, one.id))


@blueprint.route("/v1/operator/reward-figures")
class RewardFigures(MethodView):
    @door(OPERATOR, area="rewards")
    @blueprint.arguments(FiguresQuery, location="query")
    @blueprint.response(200, FiguresAnswer)
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """From asking to using: what became of redemptions and vouchers, and the top rewards"""
        last = wanted.get("to") or clock.city_day(clock.now())
        first = wanted.get("from_") or last - timedelta(days=29)
        if first > last:
            raise problems.Invalid([("/from", "Must not lie after to.")])
        if (last - first).days >= figures.DAYS_MAX:
            raise problems.Invalid([("/to", f"At most {figures.DAYS_MAX} days.")])
        found = figures.between(first, last, wanted.get("reward_id"))
        known = catalogue.many({one.reward_id for one in found.top})
        return {
            "from": first,
            "to": last,
            "asked": found.asked,
            "under_way": found.under_way,
            "refused": [
                {"code": code, "redemptions": count} for code, count in found.refused.items()
            ],
            "went_through": found.went_through,
            "vouchers": found.by_status,
            "top": [asdict(one) | {"title": known[one.reward_id].title} for one in found.top],
        }


def _imported(number: int, row: dict[str, str]) -> dict[str, Any]:
    made = reward_terms.add_row(row)
    if isinstance(made, DomainError):
        return {"row": number, **problems.item(made)}
    after = _plain(made)
    audit.note(caller().id, "reward added", made.id, after=after, once=f"added:{made.id}")
    return {"row": number, "status_code": 201, "id": made.id}


def _everything() -> Iterator[Reward]:
    before = None
    for _ in range(EXPORT_MAX // PAGE):
        found = catalogue.all_rewards(before=before, limit=PAGE)
        yield from found
        if len(found) < PAGE:
            break
        before = found[-1].id


def _plain(reward: Reward) -> dict[str, Any]:
    """A reward's terms as the audit keeps and shows them."""
    terms = {name: getattr(reward, name) for name in catalogue.CHANGEABLE}
    return {name: _plain_value(value) for name, value in terms.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain_value(one) for one in value]
    return clock.iso(value) if isinstance(value, datetime) else value
