"""Tables for people's spreadsheets: CSV that opens in Chinese and runs no formula."""

import csv
from collections.abc import Iterable, Sequence
from io import StringIO
from typing import Any

CSV = "text/csv"
# A spreadsheet takes a cell that begins so for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
# Without it spreadsheets on Chinese Windows take UTF-8 for GB18030.
_BOM = "\ufeff"


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A CSV file (RFC 4180, UTF-8 with a byte order mark); None is an empty cell."""
    return _BOM + csv_rows([header, *rows])


def csv_rows(rows: Iterable[Sequence[Any]]) -> str:
    """Rows of a CSV file alone: for machines, or for a file that is written in pieces."""
    out = StringIO()
    csv.writer(out).writerows([cell(value) for value in row] for row in rows)
    return out.getvalue()


def cell(value: Any) -> Any:
    """A value as a cell: text that would start a formula is quoted, numbers stay numbers."""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value
