"""Reading TOML that people write: every value is checked, and a refusal names place and field."""

import re
import tomllib
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar

# Far above anything meant, and small enough that no product of two leaves 64 bits or a calendar.
NUMBER_MAX = 10**9
YEARS = (2000, 2199)
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

T = TypeVar("T")


class Table:
    """One table of the file; every read names the field it failed on, and `close` finds strays."""

    def __init__(self, place: str, table: Any, error: type[Exception], whole: str) -> None:
        """`error` is raised for what is wrong; `whole` is what people call the file."""
        self._error, self._whole = error, whole
        if not isinstance(table, dict):
            raise error(f"{place}: must be a table")
        self.place = place
        self.rest = dict(table)

    def wrong(self, field: str, why: str) -> Exception:
        return self._error(f"{self.place}: {field}: {why}")

    def take(self, field: str, kind: type[T], default: T | None = None) -> T:
        value = self.rest.pop(field, default)
        if value is None:
            raise self.wrong(field, "is missing")
        # A bool is an int and a datetime is a date, and neither is meant.
        if not isinstance(value, kind) or (kind in (int, date) and type(value) is not kind):
            raise self.wrong(field, f"must be {kind.__name__}, not {value!r}")
        return value

    def matching(self, field: str, pattern: re.Pattern[str]) -> str:
        value = self.take(field, str)
        if not pattern.fullmatch(value):
            raise self.wrong(field, f"must match {pattern.pattern}, not {value!r}")
        return value

    def day(self, field: str) -> date:
        value = self.take(field, date)
        if not YEARS[0] <= value.year <= YEARS[1]:
            raise self.wrong(field, f"must lie in the years {YEARS[0]} to {YEARS[1]}")
        return value

    def natural(self, field: str, most: int = NUMBER_MAX) -> int:
        value = self.take(field, int)
        if value < 0:
            raise self.wrong(field, "must not be negative")
        if value > most:
            raise self.wrong(field, f"must not exceed {most}")
        return value

    def maybe_natural(self, field: str) -> int | None:
        return self.natural(field) if field in self.rest else None

    def positive(self, field: str, most: int = NUMBER_MAX) -> int:
        value = self.natural(field, most)
        if value == 0:
            raise self.wrong(field, "must be above zero")
        return value

    def maybe_positive(self, field: str) -> int | None:
        return self.positive(field) if field in self.rest else None

    def maybe_decimal(self, field: str) -> Decimal | None:
        if field not in self.rest:
            return None
        value = self.rest.pop(field)
        try:
            number = Decimal(str(value))
        except InvalidOperation:
            raise self.wrong(field, f"must be a number, not {value!r}") from None
        if isinstance(value, bool | float) or not number.is_finite() or number < 0:
            raise self.wrong(field, f"must be an integer or a decimal in quotes, not {value!r}")
        return number

    def one_of(self, field: str, allowed: tuple[str, ...], default: str | None = None) -> str:
        value = self.take(field, str, default)
        if value not in allowed:
            raise self.wrong(field, f"must be one of {', '.join(allowed)}, not {value!r}")
        return value

    def strings(self, field: str, allowed: tuple[str, ...] | None = None) -> tuple[str, ...]:
        values = self.take(field, list, [])
        for value in values:
            if not isinstance(value, str) or (allowed is not None and value not in allowed):
                raise self.wrong(field, f"has the unknown item {value!r}")
        return tuple(values)

    def table(self, field: str) -> "Table":
        return self.inside(f"{self.place}: {field}", self.rest.pop(field, {}))

    def inside(self, place: str, raw: Any) -> "Table":
        """Another table of the same file."""
        return Table(place, raw, self._error, self._whole)

    def close(self) -> None:
        if self.rest:
            raise self.wrong(next(iter(self.rest)), f"is not a field of {self._whole}")


def read(text: str, name: str, error: type[Exception], whole: str) -> Table:
    """The top table of a file; raises `error` if the text is not TOML."""
    try:
        return Table(name, tomllib.loads(text), error, whole)
    # Beside its own error, the parser lets through those of endless numbers and endless nesting.
    except (ValueError, RecursionError) as wrong:
        raise error(f"{name}: is not TOML: {wrong}") from None
