"""Manifests: what a partner says of a file beside it, held against the file before a row counts.

A manifest is one JSON object. `file`, `bytes` and `sha256` are there always; `rows` and `sums`
(a column's total) are counted from the durable bytes; `profile` names how the file is read;
`business_date` and `sequence` say which file of the partner's series it is.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import IO, Any, Final

from accounting import texts
from accounting.errors import DomainError
from integrations import feeds
from integrations.feeds import FileRefused, Form, Unreadable

SUFFIX: Final = ".manifest.json"
TEXT_BYTES_MAX: Final = 64 * 1024
FILE_NAME_MAX: Final = 200
SUMS_MAX: Final = 10
COLUMN_MAX: Final = 64
COUNT_MAX: Final = 10**12
SHA_256: Final = re.compile(r"[0-9a-f]{64}")
SUM_MAX: Final = 10**18 - 1
# More than that many places before or behind the point no sum has.
SUM_PLACES_MAX: Final = 18
NUMBER: Final = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,6})?")
_NAMES: Final = frozenset(
    {"file", "bytes", "sha256", "rows", "sums", "profile", "business_date", "sequence"}
)


class ManifestInvalid(DomainError):
    """The manifest itself is wrong. Facts: en, zh."""

    code = "manifest_invalid"
    en = "The manifest cannot be used: {en}."
    zh = "清单无法使用：{zh}。"


class ManifestMismatch(DomainError):
    """The file is not the one its manifest speaks of. Facts: what, told, found."""

    code = "manifest_mismatch"
    en = "The file is not what its manifest says: {what} is {found}, the manifest says {told}."
    zh = "文件与清单不符：{what} 实为 {found}，清单为 {told}。"


class Uncountable(DomainError):
    """The rows cannot be counted, because the file cannot be read. Facts: why."""

    code = "file_unreadable"
    en = "The file cannot be read: {why}."
    zh = "文件无法读取：{why}。"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a partner says of one file. `sums` are totals by column, exact."""

    file: str
    size: int
    sha256: str
    rows: int | None = None
    sums: Mapping[str, Decimal] = field(default_factory=dict)
    profile: str | None = None
    business_date: date | None = None
    sequence: int | None = None

    @property
    def told(self) -> dict[str, Any]:
        """What is kept and shown with the job."""
        told: dict[str, Any] = {"file_name": self.file}
        if self.rows is not None:
            told["rows_told"] = self.rows
        if self.business_date is not None:
            told["business_date"] = self.business_date.isoformat()
        if self.sequence is not None:
            told["sequence"] = self.sequence
        return told


def parse(text: bytes) -> Manifest:
    """The manifest of a JSON text. Raises `ManifestInvalid`, which names the field."""
    if len(text) > TEXT_BYTES_MAX:
        raise _invalid(f"larger than {TEXT_BYTES_MAX} bytes", f"超过 {TEXT_BYTES_MAX} 字节")
    try:
        raw = json.loads(text.decode("utf-8-sig"), parse_float=Decimal)
    except (ValueError, ArithmeticError, RecursionError):
        raise _invalid("not JSON in UTF-8", "不是 UTF-8 编码的 JSON") from None
    if not isinstance(raw, dict):
        raise _invalid("not a JSON object", "不是 JSON 对象")
    unknown = sorted(raw.keys() - _NAMES)
    if unknown:
        name = unknown[0][:COLUMN_MAX]
        raise _invalid(f"unknown field {name!a}", f"未知字段 {name!a}")
    return Manifest(
        file=_text(raw, "file", FILE_NAME_MAX),
        size=_whole(raw, "bytes", feeds.FILE_BYTES_MAX),
        sha256=_digest(raw),
        rows=_whole(raw, "rows", COUNT_MAX) if "rows" in raw else None,
        sums=_sums(raw.get("sums", {})),
        profile=_text(raw, "profile", COLUMN_MAX) if "profile" in raw else None,
        business_date=_day(raw["business_date"]) if "business_date" in raw else None,
        sequence=_whole(raw, "sequence", COUNT_MAX) if "sequence" in raw else None,
    )


def check_bytes(manifest: Manifest, size: int, sha256: str) -> None:
    """Raises `ManifestMismatch`."""
    _same("bytes", manifest.size, size)
    _same("sha256", manifest.sha256, sha256)


def check_rows(
    manifest: Manifest,
    data: IO[bytes],
    *,
    media_type: str,
    gzipped: bool,
    encoding: str,
    delimiter: str = ",",
) -> None:
    """Hold the rows and sums that were told against the bytes; reads nothing if none were.

    Raises `ManifestMismatch`, and `Uncountable` when the file cannot be read to its end.
    """
    if manifest.rows is None and not manifest.sums:
        return
    size = manifest.size
    try:
        if manifest.sums:
            form = Form(
                fields=frozenset(),
                numbers=frozenset(),
                attributes=False,
                flags=frozenset(),
                delimiter=delimiter,
                needed=frozenset(manifest.sums),
            )
            rows, sums = 0, dict.fromkeys(manifest.sums, Decimal(0))
            found = feeds.rows(
                data,
                media_type=media_type,
                gzipped=gzipped,
                size=size,
                form=form,
                encoding=encoding,
            )
            for rows, row in enumerate(found, start=1):  # noqa: B007
                if not isinstance(row, Unreadable):
                    for column in sums:
                        sums[column] += _number(row.get(column))
        else:
            *_, rows = feeds.counted(
                data, media_type=media_type, gzipped=gzipped, size=size, encoding=encoding
            )
            sums = {}
    except FileRefused as refused:
        raise Uncountable(why=str(refused)) from None
    if manifest.rows is not None:
        _same("rows", manifest.rows, rows)
    for column, told in manifest.sums.items():
        if told != sums[column]:
            raise ManifestMismatch(
                what=f"sums.{column}", told=f"{told.normalize():f}", found=f"{sums[column]:f}"
            )


def _number(value: Any) -> Decimal:
    """What a cell adds to a sum; what is no number adds nothing and shows in the total.

    Nor does one that no sum could hold.
    """
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return Decimal(value) if -SUM_MAX <= value <= SUM_MAX else Decimal(0)
    if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        return Decimal(value.strip())
    return Decimal(0)


def _same(what: str, told: Any, found: Any) -> None:
    if told != found:
        raise ManifestMismatch(what=what, told=told, found=found)


def _invalid(en: str, zh: str) -> ManifestInvalid:
    return ManifestInvalid(en=en, zh=zh)


def _text(raw: Mapping[str, Any], name: str, most: int) -> str:
    value = raw.get(name)
    if not _is_text(value, most):
        raise _invalid(f"{name} must be a text of 1 to {most} characters", f"{name} 应为文本")
    return str(value)


def _is_text(value: Any, most: int) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= most and texts.storable(value)


def _whole(raw: Mapping[str, Any], name: str, most: int) -> int:
    value = raw.get(name)
    if type(value) is not int or not 0 <= value <= most:
        raise _invalid(f"{name} must be a whole number up to {most}", f"{name} 应为非负整数")
    return value


def _digest(raw: Mapping[str, Any]) -> str:
    value = raw.get("sha256")
    if not isinstance(value, str) or not SHA_256.fullmatch(value.lower()):
        raise _invalid("sha256 must be 64 hexadecimal digits", "sha256 应为 64 位十六进制数字")
    return value.lower()


def _day(value: Any) -> date:
    try:
        if isinstance(value, str) and len(value) == 10:
            return date.fromisoformat(value)
    except ValueError:
        pass
    raise _invalid("business_date must be a day (YYYY-MM-DD)", "business_date 应为日期")


def _sums(raw: Any) -> dict[str, Decimal]:
    wrong = _invalid(
        "sums must be numbers by column, at most 10", "sums 应为按列的数字，至多 10 列"
    )
    if not isinstance(raw, dict) or len(raw) > SUMS_MAX:
        raise wrong
    sums: dict[str, Decimal] = {}
    for column, value in raw.items():
        text = _digits(value)
        if not _is_text(column, COLUMN_MAX) or text is None or not NUMBER.fullmatch(text):
            raise wrong
        sums[column] = Decimal(text)
    return sums


def _digits(value: Any) -> str | None:
    """A sum as it was said, in plain digits; None for what is none.

    Nine characters can say a number of a gigabyte of digits, so how large it is is asked first.
    """
    if type(value) is int:
        return str(value)
    if isinstance(value, Decimal):
        return f"{value:f}" if -SUM_PLACES_MAX <= value.adjusted() <= SUM_PLACES_MAX else None
    return value if isinstance(value, str) else None
