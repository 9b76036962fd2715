"""Readings as gateways send them ten thousand at a time, read as columns by one pattern.

A body in which every row has the four fields, in one order, with nothing escaped and numbers and
instants of the usual length, is cut up by a regular expression. Whatever is not exactly that is
left to the JSON parser and the schema, which say what is wrong: both ways give the same rows.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import date
from functools import lru_cache
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from accounting import clock, quantities
from accounting.enterprise.readings import PLAIN_FROM, Columns
from api.numbers import read_instant

WHITE = r"[ \t\r\n]*"
FIELDS = {
    "meter": r'"([A-Za-z0-9._:-]{1,64})"',
    "at": r'"([0-9]{4}-[0-9]{2}-[0-9]{2})T([0-9:]{8}(?:Z|[+-][0-9]{2}:[0-9]{2}))"',
    # So many digits that a float times a million, rounded, is still the exact number of millionths.
    "value": r"(-?(?:0|[1-9][0-9]{0,8})(?:\.[0-9]{1,6})?)",
    "kind": r'"(interval|register)"',
}
GROUPS = 5
_HEAD = re.compile(rf'{WHITE}\{{{WHITE}"readings"{WHITE}:{WHITE}\[{WHITE}')
_TAIL = re.compile(rf"{WHITE}\]{WHITE}\}}{WHITE}")
_COMMA = re.compile(f"{WHITE},{WHITE}")
# The first row: names, the colon and comma with the few blanks a sender puts around them.
_NAME, _VALUE, _BLANKS = '"(meter|at|value|kind)"', '(?:"[^"]*"|[^",}]*)', r"[ \t\r\n]{0,16}"
_FIRST = re.compile(
    rf"\{{{_NAME}({_BLANKS}:{_BLANKS}){_VALUE}({_BLANKS},{_BLANKS}){_NAME}(\2){_VALUE}\3"
    rf"{_NAME}(\2){_VALUE}\3{_NAME}\2{_VALUE}\}}"
)
_LAST_DAY = date(9997, 12, 31)


class PlainReadings(Sequence[dict[str, Any]]):
    """Rows as columns; one asked for is the object it would have been."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns.meters)

    @overload
    def __getitem__(self, place: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[dict[str, Any]]: ...
    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        row = self.columns.reading(place)
        return {
            "meter": row.meter,
            "at": clock.iso(row.at),
            "value": row.value,
            "kind": row.kind.value,
        }


def plain_body(raw: bytes) -> dict[str, Any] | None:
    """A request body of plain readings; None if it is anything else."""
    if not raw.isascii():
        return None
    text = raw.decode("ascii")
    head = _HEAD.match(text)
    if head is None:
        return None
    found = _columns(text, head.end())
    return None if found is None else {"readings": PlainReadings(found)}


def _columns(text: str, begin: int) -> Columns | None:
    first = _FIRST.match(text, begin)
    if first is None:
        return None
    order = first.group(1, 4, 6, 8)
    if sorted(order) != sorted(FIELDS):
        return None
    # Whoever writes ten thousand rows writes them all alike.
    parts = _row(order, first[2], first[3]).split(text[begin:])
    gaps = {*parts[GROUPS + 1 : -1 : GROUPS + 1]}
    if parts[0] or not _TAIL.fullmatch(parts[-1]):
        return None
    if not all(_COMMA.fullmatch(gap) for gap in gaps):
        return None
    taken = {
        name: parts[place :: GROUPS + 1] for place, name in enumerate(_group_names(order), start=1)
    }
    return _read(**taken)


def _read(
    meter: list[str], day: list[str], time: list[str], value: list[str], kind: list[str]
) -> Columns | None:
    if not meter:
        return None
    days, times = {}, {}
    for text in {*day}:
        days[text] = _day_s(text)
    for text in {*time}:
        midnight = read_instant(f"2000-01-01T{text}")
        times[text] = None if midnight is None else int(midnight.timestamp()) - _Y2K_S
    if None in days.values() or None in times.values():
        return None
    count = len(meter)
    begin = np.fromiter(map(days.__getitem__, day), np.int64, count)
    numbers = np.fromiter(map(float, value), np.float64, count)
    return Columns(
        meter,
        begin + np.fromiter(map(times.__getitem__, time), np.int64, count),
        np.rint(numbers * 10**quantities.PLACES_MAX).astype(np.int64),
        _registers(kind),
    )


def _registers(kind: list[str]) -> npt.NDArray[np.bool_]:
    if len({*kind}) == 1:
        return np.full(len(kind), kind[0] == "register")
    return np.fromiter((one == "register" for one in kind), np.bool_, len(kind))


def _day_s(text: str) -> int | None:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return None
    # An offset may move it by a day.
    if not PLAIN_FROM < day < _LAST_DAY:
        return None
    return (day.toordinal() - _EPOCH) * 86_400


def _group_names(order: Iterable[str]) -> list[str]:
    return [part for name in order for part in (("day", "time") if name == "at" else (name,))]


@lru_cache(maxsize=64)
def _row(order: tuple[str, ...], colon: str, comma: str) -> re.Pattern[str]:
    pairs = comma.join(f'"{name}"{colon}{FIELDS[name]}' for name in order)
    return re.compile(rf"\{{{pairs}\}}")


_EPOCH = date(1970, 1, 1).toordinal()
_Y2K_S = (date(2000, 1, 1).toordinal() - _EPOCH) * 86_400
