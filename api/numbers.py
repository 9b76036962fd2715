"""JSON in and out without losing a digit, and the form of numbers and times in requests.

Request numbers become `int` or `Decimal` straight from the text; no float is ever made. Whatever
MongoDB could not store (a lone surrogate, a number beyond 64 bits) is refused here.
"""

import json
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, NoReturn

import marshmallow as ma
import simplejson
from flask import Request
from flask.json.provider import JSONProvider
from marshmallow import fields, validate
from webargs.flaskparser import FlaskParser

from accounting import clock, quantities, texts
from api.problems import Invalid, MalformedRequest, UnsupportedMediaType

# MongoDB integers have 64 bits; no figure of a city comes near.
INTEGER_MAX = 2**63 - 1
NUMBER_CHARS_MAX = 60
EXPONENT_MAX = 18
DEPTH_MAX = 32
YEAR_MIN, YEAR_MAX = (
    1970,
    9998,
)  # One year of room on both sides for offsets and "30 days later".

# What a number beyond any sense becomes: every numeric field refuses it, and says which it was.
_OUT_OF_RANGE = Decimal("Infinity")

_INSTANT = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?"
    r"([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DIGITS = re.compile(r"-?[0-9]{1,18}")


# --- reading ------------------------------------------------------------------------------------


def read_json(raw: bytes) -> Any:
    """The value of a JSON text in UTF-8; raises `MalformedRequest`.

    Stricter than `json.loads`: no NaN or Infinity, no key twice, no text that cannot be stored.
    """
    try:
        text = raw.decode()
        value = json.loads(
            text,
            parse_float=_decimal,
            parse_int=_integer,
            parse_constant=_refuse_constant,
            object_pairs_hook=_object,
        )
    except UnicodeDecodeError:
        raise MalformedRequest("The body is not UTF-8.", "请求体不是 UTF-8 编码。") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:
        raise MalformedRequest("The body is not valid JSON.", "请求体不是合法的 JSON。") from None
    _check_depth(value)
    # Raw NUL and surrogates are no JSON, or no UTF-8; only an escape can bring them in.
    if "\\u" in text:
        _check_texts(value)
    return value


def _too_deep() -> MalformedRequest:
    return MalformedRequest("The JSON is nested too deeply.", "JSON 嵌套过深。")


def _check_depth(value: Any) -> None:
    """Far below what the parser itself survives, so that nothing behind it recurses too deep."""
    level = [value]
    for _ in range(DEPTH_MAX + 1):
        inner: list[Any] = []
        for part in level:
            if isinstance(part, dict):
                inner.extend(child for child in part.values() if isinstance(child, dict | list))
            elif isinstance(part, list):
                inner.extend(child for child in part if isinstance(child, dict | list))
        if not inner:
            return
        level = inner
    raise _too_deep()


def _check_texts(value: Any) -> None:
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            pending.extend(part.keys())
            pending.extend(part.values())
        elif isinstance(part, list):
            pending.extend(part)
        elif isinstance(part, str) and not texts.storable(part):
            raise MalformedRequest(
                "A text holds NUL or half of a surrogate pair.",
                "文本含有 NUL 或不完整的代理对。",
            )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise MalformedRequest("A key appears twice in an object.", "JSON 对象中有重复的键。")
    return value


def _integer(text: str) -> int | Decimal:
    if len(text) > NUMBER_CHARS_MAX or abs(int(text)) > INTEGER_MAX:
        return -_OUT_OF_RANGE if text.startswith("-") else _OUT_OF_RANGE
    return int(text)


def _decimal(text: str) -> Decimal:
    # The digits of an exponent are bounded before Decimal sees them: it refuses absurd ones.
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > NUMBER_CHARS_MAX or len(exponent.lstrip("+-0")) > 3:
        return _OUT_OF_RANGE
    value = Decimal(text)
    return value if not value or abs(value.adjusted()) <= EXPONENT_MAX else _OUT_OF_RANGE


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedRequest(f"{name} is not JSON.", f"{name} 不是合法的 JSON。")


class RequestParser(FlaskParser):
    """webargs with our JSON, a 415 for other media types, and unknown query fields refused.

    A schema may have a `quick` way to read a body that comes often and large; whatever it gives
    None for is read as JSON.
    """

    DEFAULT_UNKNOWN_BY_LOCATION: dict[str, str | None] = {
        **FlaskParser.DEFAULT_UNKNOWN_BY_LOCATION,
        "query": None,
        "form": None,
        "files": None,
    }

    def load_json(self, req: Request, schema: ma.Schema) -> Any:
        raw = req.get_data(cache=True)
        if not raw and getattr(schema, "body_optional", False):
            return {}
        if not raw:
            raise MalformedRequest("The body is missing.", "缺少请求体。")
        if (
            not req.is_json
            or req.mimetype_params.get("charset", "utf-8").lower() not in ("utf-8", "utf8")
            or req.headers.get("Content-Encoding", "identity").lower() != "identity"
        ):
            raise UnsupportedMediaType
        quick = getattr(schema, "quick", None)
        found = None if quick is None else quick(raw)
        return read_json(raw) if found is None else found

    def load_querystring(self, req: Request, schema: ma.Schema) -> Any:
        _check_texts([*req.args.keys(), *req.args.values()])
        return super().load_querystring(req, schema)

    def load_form(self, req: Request, schema: ma.Schema) -> Any:
        _check_texts([*req.form.keys(), *req.form.values()])
        return super().load_form(req, schema)

    def handle_error(
        self, error: ma.ValidationError, req: Request, schema: ma.Schema, **_: Any
    ) -> NoReturn:
        # webargs puts the location around the messages; the pointer starts inside it.
        assert isinstance(error.messages, dict)
        [error.messages] = error.messages.values()
        raise Invalid.of(error)


# --- answering ----------------------------------------------------------------------------------


class ExactJSON(JSONProvider):
    """Flask's JSON, with Decimals as JSON numbers digit by digit."""

    def dumps(self, obj: Any, **kwargs: Any) -> str:
        return simplejson.dumps(
            obj,
            use_decimal=True,
            ensure_ascii=False,
            allow_nan=False,
            separators=(",", ":"),
        )

    def loads(self, s: str | bytes, **kwargs: Any) -> Any:
        return json.loads(s, parse_float=Decimal)


def plain(value: Decimal) -> Decimal | int:
    """Without trailing zeros, and an `int` where it is one, so that 1.500 is answered as 1.5."""
    whole = value.to_integral_value()
    return int(whole) if whole == value else value.normalize(quantities.EXACT)


# --- fields -------------------------------------------------------------------------------------


class Schema(ma.Schema):
    """What may come in: unknown fields are refused."""

    class Meta:
        unknown = ma.RAISE


class Quantity(fields.Field[Decimal]):
    """A JSON number (no text, no boolean) of at most six decimal places, as Decimal.

    Bounds are inclusive unless `above` is given, which the number must exceed.
    """

    default_error_messages = {
        "invalid": "Not a valid number.",
        "too_large": "Number too large.",
        "places": f"At most {quantities.PLACES_MAX} decimal places.",
    }

    def __init__(
        self,
        *,
        minimum: Decimal | int | None = None,
        maximum: Decimal | int | None = None,
        above: Decimal | int | None = None,
        **kwargs: Any,
    ) -> None:
        low = minimum if above is None else above
        if low is not None or maximum is not None:
            kwargs["validate"] = validate.Range(low, maximum, min_inclusive=above is None)
        super().__init__(**kwargs)

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Decimal:
        if isinstance(value, bool) or not isinstance(value, int | Decimal):
            raise self.make_error("invalid")
        number = Decimal(value)
        if type(value) is int:
            return number
        if not number.is_finite():
            raise self.make_error("too_large")
        exponent = number.normalize(quantities.EXACT).as_tuple().exponent
        assert isinstance(exponent, int)
        if exponent < -quantities.PLACES_MAX:
            raise self.make_error("places")
        return number

    def _serialize(self, value: Any, attr: Any, obj: Any, **kwargs: Any) -> Any:
        return None if value is None else plain(Decimal(value))


class Whole(fields.Integer):
    """A JSON number without a fraction; no text, no boolean."""

    def _validated(self, value: Any) -> int:
        if isinstance(value, Decimal) and not value.is_finite():
            raise self.make_error("too_large")
        if not isinstance(value, int):
            raise self.make_error("invalid")
        return super()._validated(value)


class Digits(fields.Integer):
    """An integer in a query: plain ASCII digits, where `int` would also take 1_0 and ２."""

    def _validated(self, value: Any) -> int:
        if not isinstance(value, str) or not _DIGITS.fullmatch(value):
            raise self.make_error("invalid")
        return int(value)


class Flag(fields.Boolean):
    """`true` or `false`, not 1, "yes" or "on"."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise self.make_error("invalid")
        return value


class Named(fields.Dict):
    """A mapping by name whose errors point to what is wrong: `/grades/deep/basis_points`.

    marshmallow puts `key` or `value` in between, which are nowhere in the body.
    """

    def _deserialize(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super()._deserialize(*args, **kwargs)  # type: ignore[no-untyped-call]
        except ma.ValidationError as error:
            if not isinstance(error.messages, dict):
                raise
            plain = {
                name: said.get("value", said.get("key")) for name, said in error.messages.items()
            }
            raise ma.ValidationError(plain) from error


class Instant(fields.Field[datetime]):
    """RFC 3339 with an offset, as aware UTC cut to milliseconds; answered in UTC."""

    default_error_messages = {"invalid": "Not a valid RFC 3339 instant with offset."}

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> datetime:
        instant = read_instant(value) if isinstance(value, str) else None
        if instant is None:
            raise self.make_error("invalid")
        return instant

    def _serialize(self, value: Any, attr: Any, obj: Any, **kwargs: Any) -> str | None:
        return None if value is None else clock.iso(value)


class CityDay(fields.Field[date]):
    """`YYYY-MM-DD`, a day of the city."""

    default_error_messages = {"invalid": "Not a valid day (YYYY-MM-DD)."}

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> date:
        day = read_day(value) if isinstance(value, str) else None
        if day is None:
            raise self.make_error("invalid")
        return day

    def _serialize(self, value: Any, attr: Any, obj: Any, **kwargs: Any) -> str | None:
        return value.isoformat() if isinstance(value, date) else value


class DayOrInstant(fields.Field[date | datetime]):
    """An end of a range: city days are inclusive, instants half-open; the type says which."""

    default_error_messages = {"invalid": "Not a valid day or RFC 3339 instant."}

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> date | datetime:
        found = (read_day(value) or read_instant(value)) if isinstance(value, str) else None
        if found is None:
            raise self.make_error("invalid")
        return found


class EachAlone(fields.List[Any]):
    """A list whose items are documented here and read one by one later.

    Only the list is checked: a bad item then has a refusal of its own and spoils no neighbour.
    """

    def __init__(self, item: type[ma.Schema], *, most: int) -> None:
        super().__init__(fields.Nested(item), required=True, validate=validate.Length(1, most))

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Any:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise self.make_error("invalid")
        return value


class Grams(fields.Field[int]):
    """Answers only: integer milligrams of CO2e as grams, up to three places, exactly."""

    def _serialize(self, value: Any, attr: Any, obj: Any, **kwargs: Any) -> Any:
        return None if value is None else plain(quantities.grams(value))


class Kilograms(fields.Field[int]):
    """Answers only: integer milligrams of CO2e as kilograms, exactly."""

    def _serialize(self, value: Any, attr: Any, obj: Any, **kwargs: Any) -> Any:
        return None if value is None else plain(quantities.kilograms(value))


# How the fields are described in OpenAPI: (type, format).
OPENAPI_TYPES: tuple[tuple[type[fields.Field[Any]], str, str | None], ...] = (
    (Quantity, "number", None),
    (Grams, "number", None),
    (Kilograms, "number", None),
    (Instant, "string", "date-time"),
    (CityDay, "string", "date"),
    (DayOrInstant, "string", None),
)


def read_instant(text: str) -> datetime | None:
    """The instant in UTC cut to milliseconds; None if it is not RFC 3339 or out of all range."""
    match = _INSTANT.fullmatch(text)
    if match is None:
        return None
    day, time, fraction, offset = match.groups()
    # Cut, not rounded: what a phone reports twice with other digits behind must stay one instant.
    milliseconds = f".{fraction[:3]:0<3}" if fraction else ""
    try:
        instant = datetime.fromisoformat(f"{day}T{time}{milliseconds}{offset.upper()}")
        instant = instant.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return instant if YEAR_MIN <= instant.year <= YEAR_MAX else None


def read_day(text: str) -> date | None:
    try:
        day = date.fromisoformat(text) if _DAY.fullmatch(text) else None
    except ValueError:
        return None
    return day if day and YEAR_MIN <= day.year <= YEAR_MAX else None
