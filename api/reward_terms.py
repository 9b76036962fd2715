"""The terms of a reward as operators write and read them, in JSON and as rows of a CSV file."""

import csv
import json
import re
from collections.abc import Iterator
from datetime import datetime
from io import StringIO
from typing import Any

import marshmallow as ma
from marshmallow import fields, validate

from accounting import book, clock, grading
from accounting.errors import DomainError
from api.numbers import Flag, Instant, Schema, Whole
from api.problems import Invalid, MalformedRequest
from points import funders
from points.earning import CITY
from rewards import catalogue
from rewards.offers import LAPSE, RETURN, WHOLE_PERCENT, Reward

TEXT = validate.Length(1, 200)
LONG_TEXT = validate.Length(0, 1_000)
ID = validate.Length(1, 64)
REFERENCE = r"^[A-Za-z0-9._:-]{1,64}\Z"
POINTS_MAX = 10_000_000
FEN_MAX = 100_000_000
STOCK_MAX = 10_000_000
FUNDERS_MAX = 10
ROWS_MAX = 1_000
LIMIT = validate.Range(1, 1_000)
GRADES = ("deep", "mid", "light", grading.UNRATED)
CATEGORY = validate.Regexp(r"^[a-z0-9_]{1,40}\Z")


class BothLanguages(Schema):
    zh = fields.String(required=True, validate=TEXT)
    en = fields.String(required=True, validate=TEXT)


class BothDescriptions(Schema):
    zh = fields.String(required=True, validate=LONG_TEXT)
    en = fields.String(required=True, validate=LONG_TEXT)


class PricesByGrade(Schema):
    """Points for one where they differ from `price_points`."""

    deep = Whole(validate=validate.Range(1, POINTS_MAX))
    mid = Whole(validate=validate.Range(1, POINTS_MAX))
    light = Whole(validate=validate.Range(1, POINTS_MAX))
    unrated = Whole(validate=validate.Range(1, POINTS_MAX))


class FunderShare(Schema):
    funder_id = fields.String(required=True, validate=ID)
    percent = Whole(required=True, validate=validate.Range(1, WHOLE_PERCENT))


class RewardTerms(Schema):
    """`funders` share the face value, in percent that sum to 100. Empty lists mean all."""

    title = fields.Nested(BothLanguages)
    description = fields.Nested(BothDescriptions)
    category = fields.String(validate=CATEGORY)
    price_points = Whole(validate=validate.Range(1, POINTS_MAX))
    prices_by_grade = fields.Nested(PricesByGrade)
    face_value_fen = Whole(validate=validate.Range(0, FEN_MAX))
    funders = fields.List(fields.Nested(FunderShare), validate=validate.Length(1, FUNDERS_MAX))
    per_resident_limit = Whole(allow_none=True, validate=LIMIT)
    per_day_limit = Whole(allow_none=True, validate=LIMIT)
    per_month_limit = Whole(allow_none=True, validate=LIMIT)
    monthly_stock = Whole(allow_none=True, validate=validate.Range(0, STOCK_MAX))
    grades = fields.List(
        fields.String(validate=validate.OneOf(GRADES)), validate=validate.Length(max=len(GRADES))
    )
    districts = fields.List(
        fields.String(validate=validate.Length(1, 64)), validate=validate.Length(max=100)
    )
    store_ids = fields.List(fields.String(validate=ID), validate=validate.Length(max=500))
    voucher_valid_days = Whole(validate=validate.Range(1, 3_650))
    unused = fields.String(
        validate=validate.OneOf([LAPSE, RETURN]),
        metadata={"description": "Whether the points of unused vouchers lapse or come back."},
    )
    available_from = Instant()
    available_to = Instant(allow_none=True)
    paused = Flag()
    low_stock_at = Whole(
        allow_none=True,
        validate=validate.Range(0, STOCK_MAX),
        metadata={"description": "An alarm is left when no more than these are left."},
    )

    @ma.validates_schema(skip_on_field_errors=True)
    def funders_share_it_all(self, data: dict[str, Any], **_: Any) -> None:
        shares = data.get("funders")
        if shares is None:
            return
        if len({one["funder_id"] for one in shares}) < len(shares):
            raise ma.ValidationError("A funder appears twice.", "funders")
        if sum(one["percent"] for one in shares) != WHOLE_PERCENT:
            raise ma.ValidationError("The percents must sum to 100.", "funders")
        if not all(funders.known(one["funder_id"]) for one in shares):
            raise ma.ValidationError("Not a known funder.", "funders")

    @ma.validates_schema(skip_on_field_errors=True)
    def ends_after_it_begins(self, data: dict[str, Any], **_: Any) -> None:
        begins, ends = data.get("available_from"), data.get("available_to")
        if begins is not None and ends is not None and ends <= begins:
            raise ma.ValidationError("Must lie after available_from.", "available_to")


class RewardRequest(RewardTerms):
    """`funder_id` is short for one funder that pays all; the city's, if there is neither."""

    title = fields.Nested(BothLanguages, required=True)
    merchant_id = fields.String(required=True, validate=ID)
    price_points = Whole(required=True, validate=validate.Range(1, POINTS_MAX))
    face_value_fen = Whole(required=True, validate=validate.Range(0, FEN_MAX))
    stock = Whole(required=True, validate=validate.Range(0, STOCK_MAX))
    voucher_valid_days = Whole(required=True, validate=validate.Range(1, 3_650))
    funder_id = fields.String(validate=ID)

    @ma.validates_schema(skip_on_field_errors=True)
    def one_way_of_funding(self, data: dict[str, Any], **_: Any) -> None:
        if "funder_id" in data and "funders" in data:
            raise ma.ValidationError("Send either funder_id or funders.", "funder_id")
        if not funders.known(data.get("funder_id", CITY)):
            raise ma.ValidationError("Not a known funder.", "funder_id")


class RewardChange(RewardTerms):
    """What is left out stays; `stock_delta` adds to the stock or takes free items away."""

    stock_delta = Whole(
        validate=[validate.Range(-STOCK_MAX, STOCK_MAX), validate.NoneOf([0])],
    )
    reason = fields.String(validate=validate.Length(1, 500))


class FunderShareAnswer(ma.Schema):
    funder_id = fields.String(required=True)
    percent = fields.Integer(required=True)


class OperatorRewardAnswer(ma.Schema):
    id = fields.String(required=True)
    title = fields.Dict(keys=fields.String(), values=fields.String(), required=True)
    description = fields.Dict(keys=fields.String(), values=fields.String(), required=True)
    category = fields.String(required=True)
    image_url = fields.String(required=True, allow_none=True)
    merchant_id = fields.String(required=True)
    price_points = fields.Integer(required=True)
    prices_by_grade = fields.Dict(keys=fields.String(), values=fields.Integer(), required=True)
    face_value_fen = fields.Integer(required=True)
    stock_left = fields.Integer(required=True)
    stock_reserved = fields.Integer(required=True)
    stock_issued = fields.Integer(required=True)
    monthly_stock = fields.Integer(required=True, allow_none=True)
    low_stock_at = fields.Integer(required=True, allow_none=True)
    low_stock = fields.Boolean(required=True)
    per_resident_limit = fields.Integer(required=True, allow_none=True)
    per_day_limit = fields.Integer(required=True, allow_none=True)
    per_month_limit = fields.Integer(required=True, allow_none=True)
    grades = fields.List(fields.String(), required=True)
    districts = fields.List(fields.String(), required=True)
    store_ids = fields.List(fields.String(), required=True)
    voucher_valid_days = fields.Integer(required=True)
    unused = fields.String(required=True)
    funder_id = fields.String(required=True)
    funders = fields.List(fields.Nested(FunderShareAnswer), required=True)
    available_from = Instant(required=True)
    available_to = Instant(required=True, allow_none=True)
    paused = fields.Boolean(required=True)


def shown(reward: Reward) -> dict[str, Any]:
    """A reward as operators see it."""
    answer = {name: getattr(reward, name) for name in Reward.__slots__}
    few = reward.low_stock_at is not None and reward.stock_left <= reward.low_stock_at
    return answer | {
        "image_url": image_url(reward),
        "low_stock": few,
        "funder_id": reward.funders[0][0],
        "funders": [{"funder_id": name, "percent": percent} for name, percent in reward.funders],
    }


def image_url(reward: Reward) -> str | None:
    """Where its picture is; another picture has another address, so either may be kept."""
    if reward.image is None:
        return None
    return f"/v1/rewards/{reward.id}/image?v={reward.image[:16]}"


def terms_of(wanted: dict[str, Any]) -> dict[str, Any]:
    """What a request says, as the catalogue takes it."""
    terms = {name: wanted[name] for name in catalogue.CHANGEABLE if name in wanted}
    if "funders" in wanted:
        terms["funders"] = tuple((one["funder_id"], one["percent"]) for one in wanted["funders"])
    return terms


def add(wanted: dict[str, Any], once: str | None) -> Reward:
    """Add the reward of a request; see `catalogue.add_reward`."""
    terms = terms_of(wanted)
    terms.setdefault("description", {})
    asked = json.dumps(wanted, sort_keys=True, default=str)
    return catalogue.add_reward(
        merchant_id=wanted["merchant_id"],
        stock=wanted["stock"],
        funder=wanted.get("funder_id", CITY),
        once=(once, book.fingerprint(asked)) if once is not None else None,
        **terms,
    )


# --- as CSV -------------------------------------------------------------------------------------

_NUMBERS = (
    "price_points", "face_value_fen", "stock", "monthly_stock", "per_resident_limit",
    "per_day_limit", "per_month_limit", "voucher_valid_days", "low_stock_at",
)  # fmt: skip
_TEXTS = ("merchant_id", "category", "unused", "available_from", "available_to")
_SETS = ("grades", "districts", "store_ids")
COLUMNS = (
    "reference", "merchant_id", "title_zh", "title_en", "description_zh", "description_en",
    "category", "price_points", *(f"price_{name}" for name in GRADES), "face_value_fen", "funders",
    "stock", "monthly_stock", "low_stock_at", "per_resident_limit", "per_day_limit",
    "per_month_limit", "grades", "districts", "store_ids", "voucher_valid_days", "unused",
    "available_from", "available_to",
)  # fmt: skip
# What an exported file says besides; nothing that is read back.
STANDING = ("id", "stock_left", "stock_reserved", "stock_issued", "paused")
_DIGITS = re.compile(r"-?[0-9]{1,18}")


def read_rows(content: bytes) -> list[dict[str, str]]:
    """The rows of a CSV file with a header of `COLUMNS`, in any order, and of `STANDING`.

    Raises `MalformedRequest` and `Invalid`.
    """
    try:
        text = content.decode("utf-8-sig")
        rows = list(csv.DictReader(StringIO(text, newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error):
        raise MalformedRequest(
            "The body is no CSV file in UTF-8.", "请求体不是 UTF-8 编码的 CSV 文件。"
        ) from None
    names = list(rows[0]) if rows else []
    if not rows or len(rows) > ROWS_MAX:
        raise Invalid([("", f"Length must be between 1 and {ROWS_MAX}.")])
    for name in names:
        if name not in (*COLUMNS, *STANDING):
            raise Invalid([(f"/{name}", "Unknown field.")])
    return rows


def add_row(row: dict[Any, Any]) -> Reward | DomainError:
    """The reward of one row, or why there is none; a row sent again is the same reward."""
    try:
        if None in row or None in row.values():
            raise Invalid([("", "The row does not have as many cells as the header.")])
        reference = row.get("reference", "")
        if not re.match(REFERENCE, reference):
            raise Invalid([("/reference", "String does not match expected pattern.")])
        return add(RewardRequest().load(_request_of(row)), f"row:{reference}")
    except ma.ValidationError as error:
        return Invalid.of(error)
    except DomainError as refusal:
        return refusal


def _request_of(row: dict[str, str]) -> dict[str, Any]:
    """A row as the request that says the same; an empty cell is left out."""
    cells = {name: _unquoted(value.strip()) for name, value in row.items()}
    cells = {name: value for name, value in cells.items() if value}
    wanted: dict[str, Any] = {name: cells[name] for name in _TEXTS if name in cells}
    wanted |= {name: _number(cells[name]) for name in _NUMBERS if name in cells}
    wanted |= {name: cells[name].split() for name in _SETS if name in cells}
    for name in ("title", "description"):
        both = {tag: cells[f"{name}_{tag}"] for tag in ("zh", "en") if f"{name}_{tag}" in cells}
        if both:
            wanted[name] = both
    prices = {one: _number(cells[f"price_{one}"]) for one in GRADES if f"price_{one}" in cells}
    if prices:
        wanted["prices_by_grade"] = prices
    if "funders" in cells:
        shares = (part.rpartition(":") for part in cells["funders"].split())
        wanted["funders"] = [
            {"funder_id": name, "percent": _number(percent)} for name, _, percent in shares
        ]
    return wanted


def _number(text: str) -> int | str:
    """An integer, or the text for the schema to refuse."""
    return int(text) if _DIGITS.fullmatch(text) else text


def _unquoted(cell: str) -> str:
    """Without the quote that keeps an exported cell from being a formula."""
    return cell[1:] if cell[:1] == "'" and cell[1:2] in ("=", "+", "-", "@") else cell


def as_rows(rewards: Iterator[Reward]) -> Iterator[tuple[Any, ...]]:
    """Rewards as rows of `COLUMNS` and `STANDING`; `reference` and `stock` begin another one."""
    for one in rewards:
        cells: dict[str, Any] = {name: getattr(one, name, None) for name in (*COLUMNS, *STANDING)}
        for name in ("title", "description"):
            for tag in ("zh", "en"):
                cells[f"{name}_{tag}"] = getattr(one, name).get(tag)
        for name in GRADES:
            cells[f"price_{name}"] = one.prices_by_grade.get(name)
        for name in _SETS:
            cells[name] = " ".join(getattr(one, name)) or None
        cells["funders"] = " ".join(f"{name}:{percent}" for name, percent in one.funders)
        for name in ("available_from", "available_to"):
            at: datetime | None = getattr(one, name)
            cells[name] = clock.iso(at) if at is not None else None
        yield tuple(cells[name] for name in (*COLUMNS, *STANDING))
