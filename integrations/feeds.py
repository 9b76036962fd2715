"""Partners' files: NDJSON or CSV bytes become rows of plain values, one at a time.

Nothing here knows rules: a row is the object a partner would have sent as JSON. A line that cannot
be read is yielded as `Unreadable`, so it is reported with its number and the rest go on.
"""

import codecs
import csv
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
FILE_BYTES_MAX: Final = 2 * 1024**3
LINE_BYTES_MAX = 64 * 1024
# How much of a line that cannot be read is kept to be shown.
TEXT_MAX = 500
NAME_MAX = 64
HOLDS_NUL = "holds a NUL character"
COUNTED_ROWS = 100_000
# What no name of an account has in it: between its parts.
ACCOUNT_JOIN = "\x1f"
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
    Without a column of `needed` a file is refused. `account` are the fields that name whose row it
    is: rows of one account keep their order, whoever works on the file.
    """

    fields: frozenset[str]
    numbers: frozenset[str]
    attributes: bool = True
    flags: frozenset[str] = FLAGS
    delimiter: str = ","
    needed: frozenset[str] = frozenset()
    account: tuple[str, ...] = ()


REPORTS: Final = Form(ROW_FIELDS, NUMBERS, account=("external_id",))
BILLS: Final = replace(REPORTS, account=("carrier", "account_no"))
READINGS: Final = Form(
    frozenset({"meter", "at", "value", "kind", "unit", "multiplier"}),
    frozenset({"value", "multiplier"}),
    attributes=False,
    account=("meter",),
)


def encoding_of(media_type: str, charset: str | None, of_profile: str | None = None) -> str | None:
    """What a file declared in a charset is read as; None if it cannot be. A profile is for CSV."""
    if charset is None:
        charset = (of_profile if media_type == CSV else None) or UTF_8
    read_as = CHARSETS.get(charset.lower())
    return None if media_type == NDJSON and read_as != UTF_8 else read_as


class FileRefused(Exception):
    """The file as a whole cannot be read; the messages are for the partner."""

    def __init__(self, en: str, zh: str) -> None:
        super().__init__(en)
        self.zh = zh


UNPACKS: Final = "the file unpacks to far more than its size"
UNPACKS_ZH: Final = "文件解压后远大于其自身大小"


def damaged(error: Exception) -> FileRefused:
    """What is said of a gzip file that cannot be unpacked to its end."""
    return FileRefused(f"the gzip data is damaged: {error}", f"gzip 数据已损坏：{error}")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """One line that is not a row; `text` is its beginning."""

    text: str
    why: str


FeedRow = dict[str, Any] | Unreadable


@dataclass(frozen=True, slots=True)
class Share:
    """All rows of about every n-th account: number `number`, from zero, of `of`.

    `account_of` names the account of a record, None if it has none. Where a line of NDJSON alone
    shows it, by the fields `named`, the line is not parsed to find out.
    """

    number: int
    of: int
    account_of: Callable[[Mapping[str, Any]], str | None]
    named: tuple[str, ...] = ()

    def has(self, account: str | None, row: int) -> bool:
        """Whether a row is in it; rows of nobody go round by their numbers."""
        return (row if account is None else zlib.crc32(account.encode())) % self.of == self.number


def share(number: int, of: int, form: Form) -> Share:
    """A share of a file whose rows name their accounts as the form says."""
    return Share(number, of, lambda record: account_in(record, form.account), form.account)


def account_in(record: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """The account a record names; None unless each of the fields is a text."""
    parts = [record.get(name) for name in names]
    stripped = [part.strip() for part in parts if isinstance(part, str)]
    return ACCOUNT_JOIN.join(stripped) if len(stripped) == len(names) and all(stripped) else None


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
    numbered = numbered_rows(
        data, media_type=media_type, gzipped=gzipped, size=size, form=form, encoding=encoding
    )
    return (row for _, row in numbered)


def numbered_rows(
    data: IO[bytes],
    *,
    media_type: str,
    gzipped: bool,
    size: int,
    form: Form = REPORTS,
    encoding: str = UTF_8,
    share: Share | None = None,
) -> Iterator[tuple[int, FeedRow]]:
    """The rows of a file with their numbers, from one, streamed; of a share only its own.

    What is not in the share is hardly looked at. Raises `FileRefused` when the file cannot be read
    on.
    """
    with _readable(data, gzipped=gzipped, size=size, encoding=encoding) as lines:
        yield from _ndjson(lines, share) if media_type == NDJSON else _csv(lines, form, share)


def counted(
    data: IO[bytes], *, media_type: str, gzipped: bool, size: int, encoding: str = UTF_8
) -> Iterator[int]:
    """How many rows a file has: every `COUNTED_ROWS` how many there were so far, then all of them.

    Raises `FileRefused` when it cannot be read to its end.
    """
    # The header of a CSV is no row.
    found = 0 if media_type == NDJSON else -1
    with _readable(data, gzipped=gzipped, size=size, encoding=encoding) as lines:
        for line in lines:
            if isinstance(line, Unreadable) or line.strip():
                found += 1
                if found % COUNTED_ROWS == 0:
                    yield found
    yield max(found, 0)


@contextmanager
def _readable(data: IO[bytes], *, gzipped: bool, size: int, encoding: str) -> Iterator["_Bounded"]:
    source = cast("IO[bytes]", gzip.GzipFile(fileobj=data)) if gzipped else data
    try:
        yield _Bounded(source, size * GZIP_RATIO_MAX if gzipped else size, encoding)
    except (gzip.BadGzipFile, zlib.error, EOFError, OSError) as error:
        raise damaged(error) from None


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
                raise FileRefused(
                    f"declared as {self.encoding.upper()}, but marked as UTF-8",
                    f"声明为 {self.encoding.upper()}，却带有 UTF-8 标记",
                )
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
            raise FileRefused(UNPACKS, UNPACKS_ZH)
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


def _ndjson(lines: _Bounded, share: Share | None) -> Iterator[tuple[int, FeedRow]]:
    number = 0
    shown = _shown_account(share.named) if share is not None else None
    for line in lines:
        if isinstance(line, Unreadable):
            number += 1
            if share is None or share.has(None, number):
                yield number, line
            continue
        text = line.strip()
        if not text:
            continue
        number += 1
        if share is None:
            yield number, _parsed(text)
            continue
        account = shown(text) if shown is not None else None
        if account is None:
            row = _parsed(text)
            if not isinstance(row, Unreadable):
                account = share.account_of(row)
            if share.has(account, number):
                yield number, row
        elif share.has(account, number):
            yield number, _parsed(text)


def _shown_account(names: tuple[str, ...]) -> Callable[[str], str | None] | None:
    """How to see in a line of NDJSON which account it names, without parsing it.

    Nothing is seen where a name or a value may be written in another way, or stands there twice. A
    name seen inside of another object, and nowhere else, is that of a row that will be refused.
    """
    if not names:
        return None
    pattern = re.compile(rf'"({"|".join(map(re.escape, names))})"(?:[ \t]*:[ \t]*"([^"]+)")?')

    def shown(text: str) -> str | None:
        if "\\" in text:
            return None
        found = pattern.findall(text)
        values = dict(found)
        if len(found) != len(names) or len(values) != len(names):
            return None
        return account_in(values, names)

    return shown


def _parsed(text: str) -> FeedRow:
    try:
        row = _JSON.decode(text)
        # Raw, NUL is no JSON and half of a surrogate pair no UTF-8: they come in by escapes.
        if "\\u" in text:
            _check_texts(row)
    except _Unfit as unfit:
        return Unreadable(text[:TEXT_MAX], str(unfit))
    except (ValueError, ArithmeticError, RecursionError):
        # Decimal answers an absurd exponent with an ArithmeticError.
        why = HOLDS_NUL if "\0" in text else "not a JSON object"
        return Unreadable(text[:TEXT_MAX], why)
    return row if isinstance(row, dict) else Unreadable(text[:TEXT_MAX], "not a JSON object")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; which of two values was meant by a key that comes twice, nobody can say."""
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise _Unfit(f"names a key twice: {twice[:NAME_MAX]!a}")
    return row


_JSON: Final = json.JSONDecoder(parse_float=Decimal, object_pairs_hook=_once_each)


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


def _csv(lines: _Bounded, form: Form, share: Share | None) -> Iterator[tuple[int, FeedRow]]:
    """A header names the columns; columns that are no field of a row are its attributes.

    A record is one line. Cells with line breaks are refused, because a quote somebody forgot to
    close would otherwise swallow the rows behind it.
    """
    header: list[str] | None = None
    number = 0
    for line in lines:
        if not isinstance(line, Unreadable) and not line.strip():
            continue
        cells = _cells(line, form.delimiter)
        if header is None:
            header = _header(cells, form)
            continue
        number += 1
        if not isinstance(cells, Unreadable) and len(cells) != len(header):
            assert isinstance(line, str), "it has cells"
            why = "has more or fewer cells than the header"
            cells = Unreadable(line.rstrip("\r\n")[:TEXT_MAX], why)
        if isinstance(cells, Unreadable):
            if share is None or share.has(None, number):
                yield number, cells
            continue
        record = dict(zip(header, cells, strict=True))
        if share is None or share.has(share.account_of(record), number):
            yield number, _typed(record, form)


def _cells(line: str | Unreadable, delimiter: str) -> list[str] | Unreadable:
    if isinstance(line, Unreadable):
        return line
    text = line.rstrip("\r\n")
    if "\0" in text:
        return Unreadable(text[:TEXT_MAX], HOLDS_NUL)
    try:
        [cells] = csv.reader([text], strict=True, delimiter=delimiter)
    except csv.Error as error:
        return Unreadable(text[:TEXT_MAX], f"not CSV: {error}")
    return cells


def _header(cells: list[str] | Unreadable, form: Form) -> list[str]:
    if isinstance(cells, Unreadable):
        why = cells.why
        raise FileRefused(
            f"the header of the CSV cannot be read: {why}", f"CSV 表头无法读取：{why}"
        )
    header = [name.strip() for name in cells]
    if len(set(header)) < len(header):
        raise FileRefused("the header of the CSV names a column twice", "CSV 表头中有重复的列名")
    if lacking := ", ".join(sorted(form.needed.difference(header)))[:TEXT_MAX]:
        raise FileRefused(f"the header of the CSV lacks {lacking}", f"CSV 表头缺少列：{lacking}")
    return header


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
