"""A partner's mapping profile: its columns, units, dates and codes become the fields of a row.

A profile is data. `parse` checks it, naming the field that is wrong; `Profile.row` is pure, and
what it cannot read of a row it says in words. Whether the row may be taken is for others.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import Any, Final
from zoneinfo import ZoneInfo, available_timezones

from accounting import clock, quantities
from accounting.errors import ValidationFailed
from integrations import feeds
from integrations.feeds import FeedRow, Form, Unreadable

ACTIVITIES: Final = "activities"
BILLS: Final = "bills"
KINDS: Final = (ACTIVITIES, BILLS)
# The fields that say whose row it is, by kind.
ACCOUNT: Final = {ACTIVITIES: feeds.REPORTS.account, BILLS: feeds.BILLS.account}
ENCODINGS: Final = (feeds.UTF_8, feeds.GB18030)
DELIMITERS: Final = (",", ";", "\t", "|")
NAME_RE: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
ATTRIBUTES: Final = "attributes"
# Of a unit: what it measures, and how many of the smallest unit of that it is.
UNITS: Final[Mapping[str, tuple[str, int]]] = {
    "m": ("length", 1),
    "里": ("length", 500),
    "km": ("length", 1_000),
    "Wh": ("energy", 1),
    "kWh": ("energy", 1_000),
    "度": ("energy", 1_000),
    "MWh": ("energy", 1_000_000),
    "fen": ("money", 1),
    "分": ("money", 1),
    "角": ("money", 10),
    "yuan": ("money", 100),
    "元": ("money", 100),
    "g": ("mass", 1),
    "斤": ("mass", 500),
    "kg": ("mass", 1_000),
    "t": ("mass", 1_000_000),
    "L": ("volume", 1),
    "m3": ("volume", 1_000),
    "step": ("steps", 1),
    "万步": ("steps", 10_000),
}
ISO, UNIX_S, UNIX_MS = "iso", "unix_s", "unix_ms"
DIGEST_DIGITS = 32
# What a number may be is for the form of the row; these only keep it from filling the memory.
_NUMBER = re.compile(r"[+-]?[0-9]{1,20}(?:\.[0-9]{0,18})?")
_WHOLE = re.compile(r"-?[0-9]{1,16}")
_ADJUSTED_MAX = 18
_SHOWN_MAX = 64


class Type(Enum):
    """What the value of a field is."""

    TEXT = "text"
    NUMBER = "number"
    FLAG = "flag"
    INSTANT = "instant"
    DAY = "day"
    MONTH = "month"


_TYPES: Final[Mapping[str, Type]] = {
    **dict.fromkeys(feeds.NUMBERS, Type.NUMBER),
    **dict.fromkeys(feeds.FLAGS, Type.FLAG),
    **dict.fromkeys(("occurred_at", "ended_at"), Type.INSTANT),
    **dict.fromkeys(("period_start", "period_end"), Type.DAY),
    "billing_month": Type.MONTH,
}
_NEEDED: Final = {Type.INSTANT: "Ymd", Type.DAY: "Ymd", Type.MONTH: "Ym"}
_GROUPS: Final = {
    "Y": ("year", "[0-9]{4}"),
    "m": ("month", "[0-9]{1,2}"),
    "d": ("day", "[0-9]{1,2}"),
    "H": ("hour", "[0-9]{1,2}"),
    "M": ("minute", "[0-9]{1,2}"),
    "S": ("second", "[0-9]{1,2}"),
    "f": ("fraction", "[0-9]{1,9}"),
    "z": ("offset", "[Zz]|[+-][0-9]{2}:?[0-9]{2}"),
}
_CLOCK: Final = ("hour", "minute", "second")


def type_of(name: str) -> Type:
    """What the values of a field or an attribute are; text where nothing else is known."""
    return _TYPES.get(name, Type.TEXT)


class Unmapped(Exception):
    """A row the profile cannot read; the message is for the partner."""


_ABSENT: Final = object()


@dataclass(frozen=True, slots=True)
class Rule:
    """How one field gets its value: from a column, from several, or always the same.

    `default` stands in for an empty cell, `codes` is the table of the partner's words, `factor`
    turns the partner's unit into ours, and `digest` makes an id of cells that are none.
    """

    name: str
    type: Type
    columns: tuple[str, ...] = ()
    join: str = "-"
    constant: Any = _ABSENT
    default: Any = _ABSENT
    codes: Mapping[str, Any] | None = None
    factor: Decimal | None = None
    format: str = ISO
    pattern: "re.Pattern[str] | None" = None
    zone: tzinfo = clock.CITY
    digest: bool = False

    def value(self, record: Mapping[str, Any]) -> Any:
        """The value in a record, `_ABSENT` if there is none. Raises `Unmapped`."""
        if self.constant is not _ABSENT:
            return self.constant
        cells = [_cell(record.get(column), column) for column in self.columns]
        if not all(cells):
            # Of an id of several parts no part may be missing: others would get the same.
            return self.default
        if self.digest:
            return hashlib.sha256("\x1f".join(cells).encode()).hexdigest()[:DIGEST_DIGITS]
        text: Any = self.join.join(cells)
        if self.codes is not None:
            if text not in self.codes:
                raise self._unmapped(text, "is not in the code table")
            text = self.codes[text]
        return self._typed(text)

    def _typed(self, value: Any) -> Any:
        if self.type is Type.NUMBER:
            return self._number(value)
        if self.type is Type.FLAG and value in ("true", "false"):
            return value == "true"
        if self.type in _NEEDED and self.format != ISO:
            return self._time(value)
        return value

    def _number(self, value: Any) -> int | Decimal:
        number = _number(value)
        if number is None:
            raise self._unmapped(value, "is not a number")
        if self.factor is not None:
            number = quantities.EXACT.multiply(number, self.factor)
        whole = number.to_integral_value()
        return int(whole) if whole == number else number

    def _time(self, text: str) -> str:
        if self.format in (UNIX_S, UNIX_MS):
            if not _WHOLE.fullmatch(text):
                raise self._unmapped(text, f"is not a time in {self.format}")
            ms = int(text) * (1_000 if self.format == UNIX_S else 1)
            try:
                at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
                return self._shown(at.astimezone(self.zone))
            except OverflowError:
                raise self._unmapped(text, "is out of all time") from None
        assert self.pattern is not None, "a format is compiled when the profile is read"
        match = self.pattern.fullmatch(text)
        if match is None:
            raise self._unmapped(text, f"is not of the form {self.format}")
        parts = match.groupdict()
        try:
            day = date(int(parts["year"]), int(parts["month"]), int(parts.get("day") or 1))
            hour, minute, second = (int(parts.get(name) or 0) for name in _CLOCK)
            fraction = int((parts.get("fraction") or "")[:6].ljust(6, "0"))
            at = datetime.combine(day, time(hour, minute, second, fraction), self.zone)
            return self._shown(self._placed(at, parts.get("offset"), text))
        except (ValueError, OverflowError):
            raise self._unmapped(text, "is no day or time there is") from None

    def _placed(self, at: datetime, offset: str | None, text: str) -> datetime:
        if offset is not None:
            return at.replace(tzinfo=_zone_of(offset))
        if self.type is Type.INSTANT and at.utcoffset() != at.replace(fold=1).utcoffset():
            raise self._unmapped(text, "is not one instant: the clock was changed then")
        return at

    def _shown(self, at: datetime) -> str:
        if self.type is Type.DAY:
            return at.date().isoformat()
        return f"{at:%Y-%m}" if self.type is Type.MONTH else at.isoformat()

    def _unmapped(self, value: Any, why: str) -> Unmapped:
        where = ", ".join(self.columns)
        return Unmapped(f"{self.name} from {where}: {str(value)[:_SHOWN_MAX]!r} {why}")


@dataclass(frozen=True, slots=True)
class Profile:
    """How the files of one kind of one partner are read. `encoding` and `delimiter` are of CSV."""

    name: str
    kind: str
    encoding: str
    delimiter: str
    rules: tuple[Rule, ...]
    attributes: tuple[Rule, ...]

    @property
    def form(self) -> Form:
        """The cells as they are, under the names of their columns."""
        return Form(
            fields=frozenset(),
            numbers=frozenset(),
            attributes=False,
            flags=frozenset(),
            delimiter=self.delimiter,
            needed=frozenset(
                column for rule in (*self.rules, *self.attributes) for column in rule.columns
            ),
        )

    def account(self, record: Mapping[str, Any]) -> str | None:
        """Whose row a record becomes, None if it names nobody; the same account, the same text."""
        names = ACCOUNT[self.kind]
        try:
            named = _values([rule for rule in self.rules if rule.name in names], record)
        except Unmapped:
            return None
        return feeds.account_in(named, names)

    def row(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The row a record becomes. Raises `Unmapped`."""
        row = _values(self.rules, record)
        attributes = _values(self.attributes, record)
        return {**row, ATTRIBUTES: attributes} if attributes else row

    def rows(self, records: Iterable[FeedRow]) -> Iterator[FeedRow]:
        """The rows the records become; what cannot be mapped is `Unreadable`."""
        return map(self.mapped, records)

    def mapped(self, record: FeedRow) -> FeedRow:
        if isinstance(record, Unreadable):
            return record
        try:
            return self.row(record)
        except Unmapped as unmapped:
            return Unreadable(feeds.shown(record), str(unmapped))


def parse(raw: Mapping[str, Any]) -> Profile:
    """The profile in a JSON object whose shape is known to be right.

    Raises `ValidationFailed` that names the field.
    """
    zone_name = raw.get("time_zone", str(clock.CITY))
    if zone_name not in available_timezones():
        raise _wrong("/time_zone", "Not a known time zone.", "未知的时区。")
    if not NAME_RE.fullmatch(raw["name"]):
        raise _wrong(
            "/name", "1 to 64 of a-z, 0-9, - and _.", "应为 1 至 64 个小写字母、数字、- 或 _。"
        )
    zone = ZoneInfo(zone_name)
    given = dict(raw["fields"])
    attributes = given.pop(ATTRIBUTES, {})
    return Profile(
        name=raw["name"],
        kind=raw["kind"],
        encoding=raw.get("encoding", feeds.UTF_8),
        delimiter=raw.get("delimiter", ","),
        rules=tuple(_rule(name, one, f"/fields/{name}", zone) for name, one in given.items()),
        attributes=tuple(
            _rule(name, one, f"/fields/{ATTRIBUTES}/{name}", zone)
            for name, one in attributes.items()
        ),
    )


def _values(rules: Iterable[Rule], record: Mapping[str, Any]) -> dict[str, Any]:
    values = ((rule.name, rule.value(record)) for rule in rules)
    return {name: value for name, value in values if value is not _ABSENT}


def _rule(name: str, raw: Mapping[str, Any], at: str, zone: tzinfo) -> Rule:
    sources = [key for key in ("column", "columns", "constant") if key in raw]
    if len(sources) != 1:
        raise _wrong(
            at,
            "Give one of column, columns and constant.",
            "应在 column、columns、constant 中择一。",
        )
    kind = type_of(name)
    if sources == ["constant"] and raw.keys() != {"constant"}:
        raise _wrong(at, "A constant stands alone.", "constant 不能与其他设置并用。")
    for key in ("constant", "default"):
        if key in raw and not _fits(raw[key], kind):
            raise _wrong(f"{at}/{key}", *_not_a(kind))
    codes = raw.get("codes")
    for word, value in (codes or {}).items():
        if not _fits(value, kind):
            raise _wrong(f"{at}/codes/{_escaped(word)}", *_not_a(kind))
    if "digest" in raw and kind is not Type.TEXT:
        raise _wrong(f"{at}/digest", "Only a text can be a digest.", "仅文本字段可用摘要。")
    if raw.get("digest") and codes is not None:
        raise _wrong(f"{at}/codes", "A digest has no code table.", "摘要字段不能有代码表。")
    pattern = _pattern(raw["format"], kind, f"{at}/format") if "format" in raw else None
    column = raw.get("column")
    return Rule(
        name=name,
        type=kind,
        columns=(column,) if column is not None else tuple(raw.get("columns", ())),
        join=raw.get("join", "-"),
        constant=raw.get("constant", _ABSENT),
        default=raw.get("default", _ABSENT),
        codes=codes,
        factor=_factor(raw, kind, at),
        format=raw.get("format", ISO),
        pattern=pattern,
        zone=zone,
        digest=raw.get("digest", False),
    )


def _factor(raw: Mapping[str, Any], kind: Type, at: str) -> Decimal | None:
    """How many of our units one of the partner's is, exactly."""
    if "unit" not in raw and "to" not in raw:
        return None
    if kind is not Type.NUMBER:
        raise _wrong(f"{at}/unit", "Only a number has a unit.", "仅数值字段有单位。")
    for key in ("unit", "to"):
        if key not in raw:
            raise _wrong(f"{at}/{key}", "Missing data for required field.", "缺少必填字段。")
        if raw[key] not in UNITS:
            raise _wrong(f"{at}/{key}", "Not a known unit.", "未知的单位。")
    (measures, size), (wanted, one) = UNITS[raw["unit"]], UNITS[raw["to"]]
    if measures != wanted:
        raise _wrong(
            f"{at}/to", f"{raw['unit']} measures {measures}, not {wanted}.", "两个单位不可换算。"
        )
    factor = Decimal(size) / Decimal(one)
    assert Fraction(factor) == Fraction(size, one), raw
    return factor


def _pattern(form: str, kind: Type, at: str) -> "re.Pattern[str] | None":
    """A format of dates as an expression. Only what any locale writes alike is known."""
    if kind not in _NEEDED:
        raise _wrong(
            at, "Only a day, a month or an instant has a format.", "仅日期时间字段有格式。"
        )
    if form in (ISO, UNIX_S, UNIX_MS):
        return None
    parts = re.findall(r"%.?|[^%]+", form, re.DOTALL)
    letters = [part[1:] for part in parts if part.startswith("%")]
    named = [letter for letter in letters if letter != "%"]
    if any(letter not in _GROUPS for letter in named):
        raise _wrong(
            at, "Known are %Y %m %d %H %M %S %f %z %%.", "仅支持 %Y %m %d %H %M %S %f %z %%。"
        )
    if len(set(named)) < len(named) or not set(_NEEDED[kind]) <= set(named):
        raise _wrong(
            at,
            f"Needs each of %{' %'.join(_NEEDED[kind])} once.",
            f"%{' %'.join(_NEEDED[kind])} 须各出现一次。",
        )
    # Without a mark between them, 2026111 would be the 11th of January or the 1st of November.
    glued = [
        index
        for index in range(len(parts) - 1)
        if parts[index].startswith("%") and parts[index + 1].startswith("%")
    ]
    expression = ""
    for index, part in enumerate(parts):
        if not part.startswith("%") or part == "%%":
            expression += re.escape(part.replace("%%", "%"))
            continue
        group, digits = _GROUPS[part[1:]]
        if index in glued or index - 1 in glued:
            digits = digits.replace("{1,2}", "{2}")
        expression += f"(?P<{group}>{digits})"
    return re.compile(expression)


def _zone_of(offset: str) -> tzinfo:
    if offset in "Zz":
        return UTC
    digits = offset[1:].replace(":", "")
    span = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return timezone(-span if offset.startswith("-") else span)


def _cell(value: Any, column: str) -> str:
    """A cell of a CSV or a value of a JSON object as text; empty if there is none."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Decimal) and value.is_finite() and abs(value.adjusted()) <= _ADJUSTED_MAX:
        return f"{value:f}"
    raise Unmapped(f"{column}: not a text or a number in bounds")


def _number(value: Any) -> Decimal | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | Decimal):
        return Decimal(value)
    return Decimal(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else None


def _fits(value: Any, kind: Type) -> bool:
    if kind is Type.NUMBER:
        number = _number(value) if not isinstance(value, str) else None
        return number is not None and (
            number.is_finite() and abs(number.adjusted()) <= _ADJUSTED_MAX
        )
    return isinstance(value, bool if kind is Type.FLAG else str)


def _not_a(kind: Type) -> tuple[str, str]:
    if kind is Type.NUMBER:
        return "Not a valid number.", "应为 JSON 数字。"
    if kind is Type.FLAG:
        return "Not a valid boolean.", "应为 true 或 false。"
    return "Not a valid string.", "应为字符串。"


def _escaped(word: str) -> str:
    return word.replace("~", "~0").replace("/", "~1")


def _wrong(at: str, en: str, zh: str) -> ValidationFailed:
    return ValidationFailed(f"/profile{at}", en, zh)
