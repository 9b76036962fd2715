"""The resident methodology as versioned data, and the loader that refuses a bad file.

A version is one TOML file: those beside this module ship with the product, others are published by
operators and come from the provider the process installs. A new behaviour of a known formula kind
is a table in it and needs no code. Loading checks everything and names file, behaviour and field
when it refuses.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from accounting import toml_tables
from accounting.toml_tables import VERSION, Table

DIMENSIONS = ("green_travel", "green_payment", "green_life")
FORMULAS = (
    "per_unit",
    "distance",
    "capped_steps",
    "charging",
    "stop_day",
    "utility_saving",
    "utility_generation",
)
EVIDENCE_CLASSES = ("A", "B", "C", "D")
# Behaviours whose activities occupy the resident from start to end: no two may overlap.
TRIP_FORMULA = "distance"
CLAIM_SCOPES = ("resident", "day", "month", "billing_month")
BEHAVIOURS_MAX = 500
DAYS_MAX = 36_500
_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")

_HERE = Path(__file__).parent


class MethodologyError(Exception):
    """A methodology file was refused; the message names file, behaviour and field."""


@dataclass(frozen=True, slots=True)
class Caps:
    """None means unlimited. Counts count quantities where the unit is a count, else records."""

    day_mg: int | None = None
    day_count: int | None = None
    month_count: int | None = None


@dataclass(frozen=True, slots=True)
class Plausible:
    """Limits of what one record can mean; None means not checked. Speeds in km/h."""

    quantity_min: Decimal | None = None
    quantity_max: Decimal | None = None
    kmh_min: Decimal | None = None
    kmh_max: Decimal | None = None
    gap_minutes_min: int | None = None
    # Above it is credited all the same, and marked.
    per_minute_max: int | None = None


@dataclass(frozen=True, slots=True)
class ClaimRule:
    """One credit per value in the whole city, alone or together with more (`within`).

    Held by the activity, or by the resident's `behaviour`: then the same person may report it
    again (three charges of one car in a day), another person or another behaviour may not.
    """

    kind: str
    attribute: str
    within: tuple[str, ...] = ()
    held_by: str = "activity"


@dataclass(frozen=True, slots=True)
class SameRule:
    """How many of a day are credited that share an attribute (payments at one merchant)."""

    attribute: str
    day_count: int


@dataclass(frozen=True, slots=True)
class Behaviour:
    """One creditable behaviour. The factor is `mg_num / mg_den` milligrams CO2 per unit."""

    code: str
    name: Mapping[str, str]
    dimension: str
    unit: str
    formula: str
    formula_text: str
    factor_id: str
    mg_num: int
    mg_den: int
    counts_quantity: bool
    caps: Caps
    maturity: timedelta
    accepts: frozenset[str]
    enabled: bool
    bank_grade: bool
    trip_mg: int | None
    step_limit: int | None
    plausible: Plausible
    required: tuple[str, ...]
    optional: tuple[str, ...]
    # What a report may tell beside its quantity: these and what is claimed.
    attributes: frozenset[str]
    claim: ClaimRule | None
    same: SameRule | None
    nets: frozenset[str]
    amount_fen_min: int | None
    categories: tuple[str, ...]
    derivation: Mapping[str, str]
    evidence_text: str
    rules_text: str
    source: str
    confidence: str

    @property
    def is_trip(self) -> bool:
        return self.formula == TRIP_FORMULA

    @property
    def from_bills(self) -> bool:
        """Credited only from bills of the utility, never from a report."""
        return self.formula in ("utility_saving", "utility_generation")


@dataclass(frozen=True, slots=True)
class Window:
    """How old a report may be when it arrives, and how far ahead its clock may run."""

    app: timedelta
    partner: timedelta
    future: timedelta


@dataclass(frozen=True, slots=True)
class Methodology:
    version: str
    published: date
    valid_from: date
    review_by: date
    grace: timedelta
    overall_day_mg: int
    overall_dimensions: frozenset[str]
    window: Window
    behaviours: Mapping[str, Behaviour]
    # What a stop-driving day is reduced by, of all behaviours that net.
    netted: frozenset[str]

    def stale(self, on: date) -> bool:
        """Past its review date: results are marked `stale_factor`."""
        return on > self.review_by

    def past_grace(self, on: date) -> bool:
        """So long past its review date that nothing credited under it counts for a bank."""
        return on > self.review_by + self.grace


def load(text: str, name: str) -> Methodology:
    """Read and check one methodology file; `name` is what errors call it.

    Raises `MethodologyError` for the first thing that is wrong.
    """
    top = toml_tables.read(text, name, MethodologyError, "the methodology")
    overall, window = top.table("overall_day_cap"), top.table("window")
    tables = top.take("behaviour", list)
    if not 0 < len(tables) <= BEHAVIOURS_MAX:
        raise top.wrong("behaviour", f"needs 1 to {BEHAVIOURS_MAX} entries")
    behaviours: dict[str, Behaviour] = {}
    for number, table in enumerate(tables, start=1):
        behaviour = _behaviour(top, number, table)
        if behaviour.code in behaviours:
            raise MethodologyError(f"{name}: {behaviour.code}: code: is listed twice")
        behaviours[behaviour.code] = behaviour
    methodology = Methodology(
        version=top.matching("version", VERSION),
        published=top.day("published"),
        valid_from=top.day("valid_from"),
        review_by=top.day("review_by"),
        grace=timedelta(days=top.positive("grace_days", DAYS_MAX)),
        overall_day_mg=overall.positive("grams") * 1_000,
        overall_dimensions=frozenset(overall.strings("dimensions", DIMENSIONS)),
        window=Window(
            app=timedelta(days=window.positive("app_days", DAYS_MAX)),
            partner=timedelta(days=window.positive("partner_days", DAYS_MAX)),
            future=timedelta(minutes=window.positive("future_minutes", DAYS_MAX)),
        ),
        behaviours=behaviours,
        netted=frozenset().union(*(behaviour.nets for behaviour in behaviours.values())),
    )
    for part in (overall, window, top):
        part.close()
    for behaviour in behaviours.values():
        for netted in behaviour.nets - behaviours.keys():
            raise MethodologyError(f"{name}: {behaviour.code}: nets: {netted!r} is not listed")
    if methodology.review_by <= methodology.valid_from:
        raise top.wrong("review_by", "must lie after valid_from")
    return methodology


def _behaviour(top: Table, number: int, raw: Any) -> Behaviour:
    code = raw.get("code", f"behaviour {number}") if isinstance(raw, dict) else f"entry {number}"
    table = top.inside(f"{top.place}: {code}", raw)
    factor, caps, plausible = (
        table.table("factor"),
        table.table("caps"),
        table.table("plausible"),
    )
    names = table.table("name")
    day_grams = caps.maybe_natural("day_grams")
    required, optional, claim = table.strings("required"), table.strings("optional"), _claim(table)
    behaviour = Behaviour(
        code=table.matching("code", _CODE),
        name={"zh": names.take("zh", str), "en": names.take("en", str)},
        dimension=table.one_of("dimension", DIMENSIONS),
        unit=table.take("unit", str),
        formula=table.one_of("formula", FORMULAS),
        formula_text=table.take("formula_text", str),
        factor_id=factor.take("id", str),
        mg_num=factor.natural("mg_num"),
        mg_den=factor.positive("mg_den"),
        counts_quantity=table.one_of("counts", ("quantity", "records")) == "quantity",
        caps=Caps(
            day_mg=None if day_grams is None else day_grams * 1_000,
            day_count=caps.maybe_natural("day_count"),
            month_count=caps.maybe_natural("month_count"),
        ),
        maturity=timedelta(hours=table.natural("maturity_hours", DAYS_MAX)),
        accepts=frozenset(table.strings("accepts", EVIDENCE_CLASSES)),
        enabled=table.take("enabled", bool, True),
        bank_grade=table.take("bank_grade", bool, True),
        trip_mg=table.maybe_positive("trip_mg"),
        step_limit=table.maybe_positive("step_limit"),
        plausible=Plausible(
            quantity_min=plausible.maybe_decimal("quantity_min"),
            quantity_max=plausible.maybe_decimal("quantity_max"),
            kmh_min=plausible.maybe_decimal("kmh_min"),
            kmh_max=plausible.maybe_decimal("kmh_max"),
            gap_minutes_min=plausible.maybe_positive("gap_minutes_min"),
            per_minute_max=plausible.maybe_positive("per_minute_max"),
        ),
        required=required,
        optional=optional,
        attributes=frozenset((*required, *optional, *([claim.attribute] if claim else ()))),
        claim=claim,
        same=_same(table),
        nets=frozenset(table.strings("nets")),
        amount_fen_min=table.maybe_positive("amount_fen_min"),
        categories=table.strings("categories"),
        derivation=_texts(table),
        evidence_text=table.take("evidence_text", str),
        rules_text=table.take("rules_text", str),
        source=table.take("source", str),
        confidence=table.take("confidence", str),
    )
    table.strings("taper")  # bands of volume are data without effect until a city turns them on
    for part in (factor, caps, plausible, names, table):
        part.close()
    if behaviour.enabled and behaviour.mg_num == 0:
        raise table.wrong("factor", "an enabled behaviour needs mg_num above zero")
    if behaviour.formula == "capped_steps" and behaviour.step_limit is None:
        raise table.wrong("step_limit", "is missing")
    return behaviour


def _texts(table: Table) -> dict[str, str]:
    """The shown derivation: any names, texts only."""
    shown = table.take("derivation", dict, {})
    if not all(isinstance(value, str) for value in shown.values()):
        raise table.wrong("derivation", "must hold texts only")
    return shown


def _same(table: Table) -> SameRule | None:
    if "same" not in table.rest:
        return None
    rule = table.table("same")
    same = SameRule(rule.take("attribute", str), rule.positive("day_count"))
    rule.close()
    return same


def _claim(table: Table) -> ClaimRule | None:
    if "claim" not in table.rest:
        return None
    rule = table.table("claim")
    claim = ClaimRule(
        kind=rule.take("kind", str),
        attribute=rule.take("attribute", str),
        within=rule.strings("with", CLAIM_SCOPES),
        held_by=rule.one_of("held_by", ("activity", "behaviour"), "activity"),
    )
    rule.close()
    return claim


@lru_cache(maxsize=1)
def _files() -> dict[str, str]:
    """The files that ship with the product, by name."""
    return {file.name: file.read_text(encoding="utf-8") for file in sorted(_HERE.glob("*.toml"))}


@lru_cache(maxsize=1)
def shipped() -> tuple[Methodology, ...]:
    """Every version that ships with the product, oldest first."""
    versions = [load(text, name) for name, text in _files().items()]
    return tuple(sorted(versions, key=lambda version: version.valid_from))


def shipped_text(version: str) -> str:
    """The text of a version that ships with the product: what a draft begins from."""
    return next(text for name, text in _files().items() if load(text, name).version == version)


Provider = Callable[[], tuple[Methodology, ...]]
_published: Provider = tuple


def install(provider: Provider) -> None:
    """Let `provider` say which versions operators have published; this room knows no store."""
    global _published
    _published = provider


class _Known(NamedTuple):
    """Shipped and published versions, put in order once for what the provider last said."""

    published: tuple[Methodology, ...]
    versions: tuple[Methodology, ...]
    by_name: Mapping[str, Methodology]


_last_known: _Known | None = None


def _known() -> _Known:
    global _last_known
    published = _published()
    if _last_known is None or _last_known.published is not published:
        versions = sorted((*shipped(), *published), key=lambda version: version.valid_from)
        by_name = {version.version: version for version in versions}
        _last_known = _Known(published, tuple(versions), by_name)
    return _last_known


def known() -> tuple[Methodology, ...]:
    """Every version, shipped or published, oldest first."""
    return _known().versions


def in_force(on: date) -> Methodology:
    """The version that applies to an activity of a city day: the newest whose date has come.

    A day before the first version has none of its own; the first one answers, because such a day is
    long outside every window and only its plausibility is ever judged.
    """
    versions = known()
    applicable = [version for version in versions if version.valid_from <= on]
    return applicable[-1] if applicable else versions[0]


def version(name: str) -> Methodology:
    """A version by its name, as an activity recorded it."""
    return _known().by_name[name]


def dimension_of(code: str) -> str:
    """The dimension of a behaviour, from the newest version that lists it."""
    return next(
        found.behaviours[code].dimension for found in reversed(known()) if code in found.behaviours
    )


def name_of(code: str) -> Mapping[str, str]:
    """What a behaviour is called, zh and en, by the newest version that lists it."""
    return next(
        found.behaviours[code].name for found in reversed(known()) if code in found.behaviours
    )
