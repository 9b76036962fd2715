"""Reading factor tables: CSV rows and the TOML file that says what they may name.

Every row is checked by itself and all problems are collected, so a person adding a year of factors
sees every mistake at once, each with file, row and field.
"""

import csv
import io
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from accounting import clock
from accounting.factors.model import SIZES, UNITS, Confidence, Factor, FactorSet, Series

ROWS_MAX = 10_000
SHOWN_MAX = 20

UNREADABLE = "unreadable"
UNSOURCED = "unsourced"
OVERLAP = "overlap"

_FACTOR_HEADER = (
    "id,carrier,series,region,set,data_year,value,unit,valid_from,valid_to,published,review_by,"
    "basis,confidence,source"
)
_FUEL_HEADER = (
    "id,carrier,region,set,native_unit,ncv_gj_per_unit,carbon_tc_per_gj,oxidation,"
    "ef_tco2_per_unit,small_unit,ef_kgco2_per_small_unit,kgce_per_small_unit,kgce_basis,"
    "valid_from,valid_to,published,review_by,confidence,source"
)
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,12})?", re.ASCII)
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}", re.ASCII)
_CO2_PER_C = Fraction(44, 12)
_GJ_PER_TCE = Fraction("29.3076")
_KGCE_BASIS = {
    "GBT2589": "GB/T 2589-2020",
    "computed": "NCV / 29.3076 GJ per tce",
}


Kind = TypeVar("Kind", Series, Confidence)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a factor, or a whole file, cannot be used. `row` is its line in the file."""

    kind: str
    file: str
    row: int | None
    field: str | None
    why: str

    @property
    def place(self) -> str:
        parts = [self.file, None if self.row is None else f"row {self.row}", self.field]
        return ": ".join(part for part in parts if part)

    def __str__(self) -> str:
        return f"{self.place}: {self.why}"


class FactorsError(Exception):
    """The factor files were refused; the message names file, row and field of each problem."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        shown = [str(problem) for problem in self.problems[:SHOWN_MAX]]
        if len(self.problems) > SHOWN_MAX:
            shown.append(f"and {len(self.problems) - SHOWN_MAX} more")
        super().__init__("; ".join(shown))


@dataclass(slots=True)
class Content:
    """What the files hold, before anything is compared with anything else."""

    review_months: int = 0
    grace: timedelta = timedelta(0)
    sets: dict[str, FactorSet] = field(default_factory=dict)
    regions: dict[str, Mapping[str, str]] = field(default_factory=dict)
    carriers: dict[str, Mapping[str, str]] = field(default_factory=dict)
    factors: list[Factor] = field(default_factory=list)
    places: list[tuple[str, int]] = field(default_factory=list)


class _Refused(Exception):
    def __init__(self, field: str, why: str, kind: str = UNREADABLE) -> None:
        super().__init__(why)
        self.field, self.why, self.kind = field, why, kind


def read(files: Iterable[Path]) -> tuple[Content, list[Problem]]:
    """Everything the files hold and everything that is wrong with them, row by row."""
    content = Content()
    problems: list[Problem] = []
    ordered = sorted(files, key=lambda file: (file.suffix != ".toml", file.name))
    for file in ordered:
        try:
            text = file.read_bytes().decode("utf-8-sig")
            if file.suffix == ".toml":
                _declarations(tomllib.loads(text), content)
            elif problems:
                break  # Rows cannot be judged against half-read declarations.
            elif content.review_months == 0:
                problems.append(
                    Problem(UNREADABLE, file.name, None, "review", "no TOML file says the rule")
                )
            else:
                problems.extend(_rows(file.name, text, content))
        except OSError as error:
            why = f"cannot be read: {error.strerror}"
            problems.append(Problem(UNREADABLE, file.name, None, None, why))
        except (UnicodeDecodeError, tomllib.TOMLDecodeError, csv.Error) as error:
            why = f"is not {file.suffix.lstrip('.').upper()} in UTF-8: {error}"
            problems.append(Problem(UNREADABLE, file.name, None, None, why))
        except _Refused as refused:
            problems.append(Problem(refused.kind, file.name, None, refused.field, refused.why))
    return content, problems


def _declarations(top: dict[str, Any], content: Content) -> None:
    review = top.pop("review", None)
    if review is not None:
        if content.review_months:
            raise _Refused("review", "is given twice")
        for name in ("months", "grace_days"):
            if not isinstance(review, dict) or type(review.get(name)) is not int:
                raise _Refused(f"review.{name}", "must be a whole number")
            if not 0 < review[name] <= 1_200:
                raise _Refused(f"review.{name}", "must be 1 to 1200")
        content.review_months = review["months"]
        content.grace = timedelta(days=review["grace_days"])
    for name, known in (("regions", content.regions), ("carriers", content.carriers)):
        for code, names in _mapping(top.pop(name, {}), name).items():
            _once(code, known, f"{name}.{code}")
            known[code] = _names(names, f"{name}.{code}")
    sets = top.pop("set", [])
    if not isinstance(sets, list):
        raise _Refused("set", "must be a list of tables, [[set]]")
    for number, table in enumerate(sets, start=1):
        found = _set(_mapping(table, f"set {number}"), f"set {number}")
        _once(found.id, content.sets, f"set {found.id}")
        content.sets[found.id] = found
    if top:
        raise _Refused(next(iter(top)), "is not a field of the registry")


def _set(table: dict[str, Any], place: str) -> FactorSet:
    set_id = table.pop("id", None)
    if not isinstance(set_id, str) or not _ID.fullmatch(set_id):
        raise _Refused(f"{place}: id", f"must be letters, digits and . _ / -, not {set_id!r}")
    place = f"set {set_id}"
    listed = table.pop("series", [])
    if not isinstance(listed, list) or not listed:
        raise _Refused(f"{place}: series", "must list the series the set holds")
    days: dict[str, date | None] = {}
    for name in ("published", "review_by"):
        day = table.pop(name, None)
        if day is not None and type(day) is not date:
            raise _Refused(f"{place}: {name}", f"must be a date, not {day!r}")
        days[name] = day
    found = FactorSet(
        id=set_id,
        series=frozenset(_choice(Series, series, f"{place}: series") for series in listed),
        title=_names(table.pop("title", None), f"{place}: title"),
        published=days["published"],
        review_by=days["review_by"],
    )
    if table:
        raise _Refused(f"{place}: {next(iter(table))}", "is not a field of a set")
    return found


def _mapping(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Refused(place, "must be a table")
    return dict(value)


def _names(value: Any, place: str) -> Mapping[str, str]:
    if (
        not isinstance(value, dict)
        or value.keys() != {"zh", "en"}
        or not all(isinstance(text, str) and text.strip() for text in value.values())
    ):
        raise _Refused(place, "needs a name in zh and one in en")
    return value


def _once(code: str, known: Mapping[str, object], place: str) -> None:
    if code in known:
        raise _Refused(place, "is given twice")


def _choice(kind: type[Kind], value: Any, place: str) -> Kind:
    try:
        return kind(value)
    except ValueError:
        allowed = ", ".join(kind)
        raise _Refused(place, f"must be one of {allowed}, not {value!r}") from None


def _rows(name: str, text: str, content: Content) -> Iterable[Problem]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    header = list(reader.fieldnames or ())
    wanted, reads = _FACTOR_HEADER, _generic
    if "oxidation" in header:
        wanted, reads = _FUEL_HEADER, _fuel
    if header != wanted.split(","):
        yield Problem(UNREADABLE, name, 1, None, f"the header must be {wanted}")
        return
    for raw in reader:
        number = reader.line_num
        if number > ROWS_MAX:
            yield Problem(UNREADABLE, name, number, None, f"more than {ROWS_MAX} rows")
            return
        try:
            if None in raw or None in raw.values():
                raise _Refused("", f"has not {len(header)} fields")
            for factor in reads(_Row(raw, content)):
                content.factors.append(factor)
                content.places.append((name, number))
        except _Refused as refused:
            place = f"{raw.get('id') or 'no id'}: {refused.field}".removesuffix(": ")
            yield Problem(refused.kind, name, number, place, refused.why)


class _Row:
    """One row; every read names the field it refuses."""

    def __init__(self, raw: Mapping[str, str], content: Content) -> None:
        self.raw = raw
        self.content = content

    def text(self, name: str) -> str:
        value = self.raw[name].strip()
        if not value:
            raise _Refused(name, "is missing", UNSOURCED if name == "source" else UNREADABLE)
        return value

    def known(self, name: str, known: Iterable[str]) -> str:
        value = self.text(name)
        if value not in known:
            raise _Refused(name, f"{value!r} is not declared")
        return value

    def number(self, name: str) -> Decimal:
        value = self.text(name)
        if not _NUMBER.fullmatch(value) or Decimal(value) == 0:
            raise _Refused(name, f"must be a decimal number above zero, not {value!r}")
        return Decimal(value)

    def maybe_day(self, name: str) -> date | None:
        value = self.raw[name].strip()
        if not value:
            return None
        try:
            if not _DAY.fullmatch(value):
                raise ValueError(value)
            return date.fromisoformat(value)
        except ValueError:
            raise _Refused(name, f"must be a date like 2026-01-31, not {value!r}") from None

    def year(self) -> int | None:
        value = self.raw["data_year"].strip()
        if not value:
            return None
        if not re.fullmatch(r"[12][0-9]{3}", value, re.ASCII):
            raise _Refused("data_year", f"must be a year, not {value!r}")
        return int(value)

    def factor(
        self,
        series: Series,
        value: Decimal,
        unit: str,
        basis: str,
        data_year: int | None = None,
        confidence: Confidence | None = None,
        derivation: Mapping[str, str] | None = None,
    ) -> Factor:
        """The parts every table has, checked against what the registry declares."""
        found_set = self.content.sets[self.known("set", self.content.sets)]
        if series not in found_set.series:
            allowed = ", ".join(sorted(found_set.series))
            raise _Refused("set", f"{found_set.id} holds {allowed}, never {series}")
        if unit not in UNITS[series]:
            allowed = ", ".join(sorted(UNITS[series]))
            raise _Refused("unit", f"{series} is given in {allowed}, not {unit!r}")
        factor_id = self.text("id")
        if not _ID.fullmatch(factor_id):
            raise _Refused("id", f"must be letters, digits and . _ / -, not {factor_id!r}")
        published = self.maybe_day("published") or found_set.published
        if published is None:
            raise _Refused("published", "is missing, and the set has none")
        valid_from, valid_to = self.maybe_day("valid_from"), self.maybe_day("valid_to")
        if valid_from is None:
            raise _Refused("valid_from", "is missing")
        if valid_to is not None and valid_to <= valid_from:
            raise _Refused("valid_to", "must lie after valid_from; it is the first day without")
        if data_year is not None:
            if valid_from.year != data_year:
                raise _Refused("valid_from", f"must lie in the data year {data_year}")
            if valid_to is not None and valid_to > date(data_year + 1, 1, 1):
                raise _Refused("valid_to", f"must not reach past the data year {data_year}")
        review_by = self.maybe_day("review_by") or found_set.review_by
        if review_by is None:
            review_by = _months_after(published, self.content.review_months)
        if review_by <= published:
            raise _Refused("review_by", "must lie after published")
        return Factor(
            id=factor_id,
            carrier=self.known("carrier", self.content.carriers),
            series=series,
            region=self.known("region", self.content.regions),
            set=found_set.id,
            data_year=data_year,
            value=value,
            unit=unit,
            valid_from=valid_from,
            valid_to=valid_to,
            published=published,
            review_by=review_by,
            basis=basis,
            confidence=confidence or _choice(Confidence, self.text("confidence"), "confidence"),
            source=self.text("source"),
            derivation=derivation or {},
        )


def _generic(row: _Row) -> tuple[Factor, ...]:
    series = _choice(Series, row.text("series"), "series")
    unit, basis = row.text("unit"), row.text("basis")
    return (row.factor(series, row.number("value"), unit, basis, row.year()),)


def _fuel(row: _Row) -> tuple[Factor, ...]:
    """The CO2 factor and the coal equivalent of one fuel, both checked against its properties."""
    native, small = row.known("native_unit", SIZES), row.known("small_unit", SIZES)
    if SIZES[native][0] != SIZES[small][0]:
        raise _Refused("small_unit", f"{small} is not of the same kind as {native}")
    small_per_native = SIZES[native][1] / SIZES[small][1]
    ncv, carbon = row.number("ncv_gj_per_unit"), row.number("carbon_tc_per_gj")
    oxidation = row.number("oxidation")
    if oxidation > 1:
        raise _Refused("oxidation", "is a fraction, at most 1")
    tonnes = Fraction(ncv) * Fraction(carbon) * Fraction(oxidation) * _CO2_PER_C
    kilograms = tonnes * 1_000 / small_per_native
    _agrees(row, "ef_tco2_per_unit", tonnes)
    value = _agrees(row, "ef_kgco2_per_small_unit", kilograms)
    kgce, kgce_basis = row.number("kgce_per_small_unit"), row.known("kgce_basis", _KGCE_BASIS)
    computed = kgce_basis == "computed"
    if computed:
        _agrees(row, "kgce_per_small_unit", Fraction(ncv) / _GJ_PER_TCE * 1_000 / small_per_native)
    co2 = row.factor(
        Series.COMBUSTION,
        value,
        f"kgCO2/{small}",
        "NCV x carbon content x oxidation x 44/12",
        derivation={
            f"ncv_gj_per_{native}": str(ncv),
            "carbon_tc_per_gj": str(carbon),
            "oxidation": str(oxidation),
            f"ef_tco2_per_{native}": row.text("ef_tco2_per_unit"),
        },
    )
    tce = row.factor(
        Series.COAL_EQUIVALENT,
        kgce,
        f"kgce/{small}",
        _KGCE_BASIS[kgce_basis],
        confidence=Confidence.COMPUTED if computed else None,
        derivation={f"ncv_gj_per_{native}": str(ncv)} if computed else None,
    )
    return (co2, replace(tce, id=f"tce/{tce.id}"))


def _agrees(row: _Row, name: str, exact: Fraction) -> Decimal:
    """The printed number, which must be the exact one rounded to the places it is printed with."""
    printed = row.number(name)
    places = -int(printed.as_tuple().exponent)
    if abs(Fraction(printed) - exact) * 2 * 10**places > 1:
        shown = f"{Decimal(exact.numerator) / exact.denominator:.{places + 2}f}"
        raise _Refused(name, f"{printed} does not follow from the row, which gives {shown}")
    return printed


def _months_after(day: date, months: int) -> date:
    """The same day of a later month, or that month's last."""
    last = clock.last_day(clock.add_months(clock.month_of(day), months))
    return last.replace(day=min(day.day, last.day))
