"""Partners' files: NDJSON or CSV bytes become rows of plain values, one at a time.

Nothing here knows rules: a row is the object a partner would have sent as JSON. A line that cannot
be read is yielded as `Unreadable`, so it is reported with its number and the rest go on.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import IO, Any, Final, cast

NDJSON: Final = "application/x-ndjson"
CSV: Final = "text/csv"
FORMATS: Final = (NDJSON, CSV)
LINE_BYTES_MAX = 64 * 1024
# How much of a line that cannot be read is kept to be shown.
TEXT_MAX = 500
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
    """

    fields: frozenset[str]
    numbers: frozenset[str]
    attributes: bool = True


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
    data: IO[bytes], *, media_type: str, gzipped: bool, size: int, form: Form = REPORTS
) -> Iterator[FeedRow]:
    """The rows of a file, streamed. Raises `FileRefused` when it cannot be read on."""
    source = cast("IO[bytes]", gzip.GzipFile(fileobj=data)) if gzipped else data
    bound = _Bounded(source, size * GZIP_RATIO_MAX if gzipped else size)
    try:
        yield from _ndjson(bound) if media_type == NDJSON else _csv(bound, form)
    except (gzip.BadGzipFile, zlib.error, EOFError, OSError) as error:
        raise FileRefused(f"the gzip data is damaged: {error}") from None


class _Bounded:
    """Lines of a file as text, refusing to read more bytes in all than allowed.

    A line that is too long, or is not UTF-8, is `Unreadable`; the lines behind it are read on.
    """

    def __init__(self, source: IO[bytes], most: int) -> None:
        self.source = source
        self.left = most

    def __iter__(self) -> Iterator[str | Unreadable]:
        encoding = "utf-8-sig"
        while line := self._read():
            if len(line) > LINE_BYTES_MAX:
                self._skip(line)
                yield Unreadable(_beginning(line), f"longer than {LINE_BYTES_MAX} bytes")
            else:
                try:
                    yield line.decode(encoding)
                except UnicodeDecodeError:
                    yield Unreadable(_beginning(line), "not UTF-8")
            encoding = "utf-8"

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


def _beginning(line: bytes) -> str:
    return line[:TEXT_MAX].decode(errors="replace").strip()


def _ndjson(lines: _Bounded) -> Iterator[FeedRow]:
    for line in lines:
        if isinstance(line, Unreadable):
            yield line
            continue
        text = line.strip()
        if not text:
            continue
        try:
            row = json.loads(text, parse_float=Decimal)
            # Half of a surrogate pair comes in by an escape, and nothing behind here can encode it.
            if "\\u" in text:
                json.dumps(row, ensure_ascii=False, default=str).encode()
        except (ValueError, ArithmeticError, RecursionError):
            # Decimal answers an absurd exponent with an ArithmeticError.
            yield Unreadable(text[:TEXT_MAX], "not a JSON object")
            continue
        yield row if isinstance(row, dict) else Unreadable(text[:TEXT_MAX], "not a JSON object")


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
        try:
            [cells] = csv.reader([text], strict=True)
        except csv.Error as error:
            if header is None:
                raise FileRefused(f"the header of the CSV cannot be read: {error}") from None
            yield Unreadable(text[:TEXT_MAX], f"not CSV: {error}")
            continue
        if header is None:
            header = [name.strip() for name in cells]
            if len(set(header)) < len(header):
                raise FileRefused("the header of the CSV names a column twice")
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
    if name in FLAGS and cell in ("true", "false"):
        return cell == "true"
    return cell
