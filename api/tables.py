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
    out = StringIO()
    out.write(_BOM)
    writer = csv.writer(out)
    writer.writerow(header)
    writer.writerows([cell(value) for value in row] for row in rows)
    return out.getvalue()


def cell(value: Any) -> Any:
    """A value as a cell: text that would start a formula is quoted, numbers stay numbers."""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value
