"""Partners' files: NDJSON or CSV bytes become rows of plain values, one at a time.

Nothing here knows rules: a row is the object a partner would have sent as JSON. A line that cannot
be read is yielded as `Unreadable`, so it is reported with its number and the rest go on.
"""

import codecs
import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import IO, Any, Final, cast

from accounting import texts

NDJSON: Final = "application/x-ndjson"
CSV: Final = "text/csv"
FORMATS: Final = (NDJSON, CSV)
UTF_8: Final = "utf-8"
GB18030: Final = "gb18030"
# What a declared charset is read as. GBK and GB2312 are parts of GB18030, ASCII of UTF-8.
CHARSETS: Final = {
    "utf-8": UTF_8,
    "utf8": UTF_8,
    "us-ascii": UTF_8,
    "gb18030": GB18030,
    "gbk": GB18030,
    "gb2312": GB18030,
}
BOM: Final = "\ufeff"
LINE_BYTES_MAX = 64 * 1024
# How much of a line that cannot be read is kept to be shown.
TEXT_MAX = 500
NAME_MAX = 64
HOLDS_NUL = "holds a NUL character"
# A gzip file may blow up to this many times its size, and no further.
GZIP_RATIO_MAX = 200
PV: Final = ("pv_generated_kwh", "pv_exported_kwh", "pv_certified_kwh")
NUMBERS: Final = frozenset({"quantity", "amount_fen", *PV})
FLAGS: Final = frozenset({"trip", "estimated"})
ROW_FIELDS: Final = frozenset(
    {
        "external_id",
        "behaviour",
        "quantity",
        "occurred_at",
        "ended_at",
        "source_event_id",
        "carrier",
        "account_no",
        "period_start",
        "period_end",
        "estimated",
        "corrects",
        *PV,
    }
)


@dataclass(frozen=True, slots=True)
class Form:
    """The columns of a CSV: those that are fields of a row, and those of them that are numbers.

    Others are the row's attributes where it has any, and fields it does not know where it has none.
    Without a column of `needed` a file is refused.
    """

    fields: frozenset[str]
    numbers: frozenset[str]
    attributes: bool = True
    flags: frozenset[str] = FLAGS
    delimiter: str = ","
    needed: frozenset[str] = frozenset()


REPORTS: Final = Form(ROW_FIELDS, NUMBERS)
READINGS: Final = Form(
    frozenset({"meter", "at", "value", "kind", "unit", "multiplier"}),
    frozenset({"value", "multiplier"}),
    attributes=False,
)


class FileRefused(Exception):
    """The file as a whole cannot be read; the message is for the partner."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """One line that is not a row; `text` is its beginning."""

    text: str
    why: str


FeedRow = dict[str, Any] | Unreadable


def rows(
    data: IO[bytes],
    *,
    media_type: str,
    gzipped: bool,
    size: int,
    form: Form = REPORTS,
    encoding: str = UTF_8,
) -> Iterator[FeedRow]:
    """The rows of a file, streamed. Raises `FileRefused` when it cannot be read on."""
    source = cast("IO[bytes]", gzip.GzipFile(fileobj=data)) if gzipped else data
    bound = _Bounded(source, size * GZIP_RATIO_MAX if gzipped else size, encoding)
    try:
        yield from _ndjson(bound) if media_type == NDJSON else _csv(bound, form)
    except (gzip.BadGzipFile, zlib.error, EOFError, OSError) as error:
        raise FileRefused(f"the gzip data is damaged: {error}") from None


class _Bounded:
    """Lines of a file as text, refusing to read more bytes in all than allowed.

    A line that is too long, or is not of the encoding, is `Unreadable`; the lines behind it are
    read on. Lines are cut as bytes: in GB18030 too no character has a line feed in it.
    """

    def __init__(self, source: IO[bytes], most: int, encoding: str) -> None:
        self.source = source
        self.left = most
        self.encoding = encoding

    def __iter__(self) -> Iterator[str | Unreadable]:
        first = True
        while line := self._read():
            if first and self.encoding != UTF_8 and line.startswith(codecs.BOM_UTF8):
                raise FileRefused(f"declared as {self.encoding.upper()}, but marked as UTF-8")
            if len(line) > LINE_BYTES_MAX:
                self._skip(line)
                yield Unreadable(
                    _beginning(line, self.encoding), f"longer than {LINE_BYTES_MAX} bytes"
                )
            else:
                try:
                    text = line.decode(self.encoding)
                except UnicodeDecodeError:
                    why = f"not {self.encoding.upper()}"
                    yield Unreadable(_beginning(line, self.encoding), why)
                else:
                    yield text.removeprefix(BOM) if first else text
            first = False

    def _read(self) -> bytes:
        line = self.source.readline(LINE_BYTES_MAX + 1)
        self.left -= len(line)
        if self.left < 0:
            raise FileRefused("the file unpacks to far more than its size")
        return line

    def _skip(self, part: bytes) -> None:
        """Read to the end of a line of which a part was read, keeping nothing of it."""
        while part and not part.endswith(b"\n"):
            part = self._read()


def shown(row: dict[str, Any]) -> str:
    """The beginning of a row as JSON, for people."""
    return json.dumps(row, ensure_ascii=False, default=str)[:TEXT_MAX]


def _beginning(line: bytes, encoding: str) -> str:
    return line[:TEXT_MAX].decode(encoding, errors="replace").strip()


class _Unfit(Exception):
    """A JSON text that no row can be made of, and why."""


def _ndjson(lines: _Bounded) -> Iterator[FeedRow]:
    for line in lines:
        if isinstance(line, Unreadable):
            yield line
            continue
        text = line.strip()
        if not text:
            continue
        try:
            row = json.loads(text, parse_float=Decimal, object_pairs_hook=_once_each)
            # Raw, NUL is no JSON and half of a surrogate pair no UTF-8: they come in by escapes.
            if "\\u" in text:
                _check_texts(row)
        except _Unfit as unfit:
            yield Unreadable(text[:TEXT_MAX], str(unfit))
            continue
        except (ValueError, ArithmeticError, RecursionError):
            # Decimal answers an absurd exponent with an ArithmeticError.
            why = HOLDS_NUL if "\0" in text else "not a JSON object"
            yield Unreadable(text[:TEXT_MAX], why)
            continue
        yield row if isinstance(row, dict) else Unreadable(text[:TEXT_MAX], "not a JSON object")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; which of two values was meant by a key that comes twice, nobody can say."""
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise _Unfit(f"names a key twice: {twice[:NAME_MAX]!a}")
    return row


def _check_texts(value: Any) -> None:
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            pending += [*part.keys(), *part.values()]
        elif isinstance(part, list):
            pending += part
        elif isinstance(part, str) and not texts.storable(part):
            raise _Unfit(HOLDS_NUL if "\0" in part else "holds half of a surrogate pair")


def _csv(lines: _Bounded, form: Form) -> Iterator[FeedRow]:
    """A header names the columns; columns that are no field of a row are its attributes.

    A record is one line. Cells with line breaks are refused, because a quote somebody forgot to
    close would otherwise swallow the rows behind it.
    """
    header: list[str] | None = None
    for line in lines:
        if isinstance(line, Unreadable):
            if header is None:
                raise FileRefused(f"the header of the CSV cannot be read: {line.why}")
            yield line
            continue
        text = line.rstrip("\r\n")
        if not text.strip():
            continue
        if "\0" in text:
            if header is None:
                raise FileRefused(f"the header of the CSV cannot be read: {HOLDS_NUL}")
            yield Unreadable(text[:TEXT_MAX], HOLDS_NUL)
            continue
        try:
            [cells] = csv.reader([text], strict=True, delimiter=form.delimiter)
        except csv.Error as error:
            if header is None:
                raise FileRefused(f"the header of the CSV cannot be read: {error}") from None
            yield Unreadable(text[:TEXT_MAX], f"not CSV: {error}")
            continue
        if header is None:
            header = [name.strip() for name in cells]
            if len(set(header)) < len(header):
                raise FileRefused("the header of the CSV names a column twice")
            lacking = sorted(form.needed.difference(header))
            if lacking:
                raise FileRefused(f"the header of the CSV lacks {', '.join(lacking)}"[:TEXT_MAX])
        elif len(cells) != len(header):
            yield Unreadable(text[:TEXT_MAX], "has more or fewer cells than the header")
        else:
            yield _typed(dict(zip(header, cells, strict=True)), form)


def _typed(record: dict[str, str], form: Form) -> dict[str, Any]:
    """A CSV record as the object JSON would have given; an empty cell is an absent field."""
    row: dict[str, Any] = {}
    attributes: dict[str, Any] = {}
    for name, cell in record.items():
        if cell.strip():
            known = name in form.fields or not form.attributes
            (row if known else attributes)[name] = _value(name, cell.strip(), form)
    if attributes:
        row["attributes"] = attributes
    return row


def _value(name: str, cell: str, form: Form) -> Any:
    if name in form.numbers:
        try:
            number = json.loads(cell, parse_float=Decimal)
        except (ValueError, ArithmeticError, RecursionError):
            return cell
        return number if type(number) in (int, Decimal) else cell
    if name in form.flags and cell in ("true", "false"):
        return cell == "true"
    return cell
