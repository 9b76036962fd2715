"""The colour label of a plant: its inventory and figures of a year, held against its sector.

A label is made when it is asked for, from what is known then. Once a night each plant's intensities
are also kept, for the plants of a sector that has no benchmark to be compared with each other, and
its label, for the warning that the running twelve months look worse than the last year.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction

import mongoengine as me
from pymongo.collection import Collection

from accounting import clock, storage
from accounting.enterprise import figures, inventory, label_rules, label_vetoes, plants, sectors
from accounting.enterprise.figures import Benchmark
from accounting.enterprise.inventory import By, Total
from accounting.enterprise.label_rules import Doubt, Indicator, Label, Reason, Told
from accounting.enterprise.label_vetoes import Veto
from accounting.enterprise.plants import Plant
from accounting.errors import DomainError

MONTHS = 12
# A year that is not over may be held against the averages of one of so many years before it.
BENCHMARK_YEARS_BACK = 3
PEERS_MAX = 5_000

log = logging.getLogger(__name__)


@storage.indexed
class PlantYearDocument(me.Document):
    """What a plant's year came to when it was last looked at; made anew every night."""

    id = me.StringField(primary_key=True)
    plant = me.StringField(required=True)
    sector = me.StringField(required=True)
    year = me.IntField(required=True)
    # By indicator, exact: "numerator/denominator".
    intensities = me.DictField()
    label = me.StringField(required=True)
    provisional = me.BooleanField(required=True)

    meta = {
        "collection": "plant_years",
        "auto_create_index": False,
        "indexes": [{"fields": ["sector", "year"]}],
    }


@dataclass(frozen=True, slots=True)
class Trend:
    """The intensities against those of the same months a year before, as shares."""

    changes: tuple[tuple[str, Fraction], ...]
    direction: str | None


@dataclass(frozen=True, slots=True)
class PlantLabel:
    """A label and everything it rests on; `months` are those that were counted.

    `doubts` say why it is provisional, `reason` why there is none. `single` is whether it rests on
    one indicator alone.
    """

    plant: Plant
    year: int
    months: tuple[str, ...]
    label: Label
    indicators: tuple[Indicator, ...]
    single: bool
    doubts: tuple[Doubt, ...]
    reason: Reason | None
    veto: Veto | None
    benchmark: Benchmark | None
    completeness: Decimal
    estimated_share: Decimal
    trend: Trend | None

    @property
    def provisional(self) -> bool:
        return bool(self.doubts)


@dataclass(frozen=True, slots=True)
class _Period:
    """What is known of some months of a plant."""

    months: tuple[str, ...]
    total: Total
    told: tuple[Told | None, ...]
    cut: bool


def of_year(plant: Plant, year: int, *, fresh: bool = True) -> PlantLabel:
    """The label of a calendar year, of one that runs by its months that are over.

    Raises what `inventory.for_period` does: `MissingFactor`, `AccountBusy`.
    """
    now = clock.city_month(clock.now())
    months = clock.months_of(year)
    over = [month for month in months if month < now]
    return _label(plant, year, over, running=months[-1] >= now, fresh=fresh)


def rolling(plant: Plant, *, fresh: bool = True) -> PlantLabel:
    """A preview: the twelve months that are over, always provisional. Raises as `of_year`."""
    now = clock.city_month(clock.now())
    months = [clock.add_months(now, -number) for number in range(MONTHS, 0, -1)]
    return _label(plant, int(months[-1][:4]), months, running=True, fresh=fresh)


def _label(
    plant: Plant, year: int, months: Sequence[str], *, running: bool, fresh: bool
) -> PlantLabel:
    period = _period(plant.id, months, running=running, fresh=fresh)
    total = period.total
    profile = sectors.profile_of(plant.sector)
    benchmark = _benchmark(plant.sector, year, running)
    averages = benchmark.intensities if benchmark else {}
    indicators = tuple(
        label_rules.indicator(
            one,
            total.co2e_mg if total.known else None,
            period.told,
            averages.get(one.indicator),
            () if one.indicator in averages else _peers(plant, year, one.indicator),
        )
        for one in profile.denominators
    )
    veto = label_vetoes.standing(plant.id, {int(month[:4]) for month in months} | {year})
    label = Label.UNRATED if veto else label_rules.overall([one.label for one in indicators])
    rated = [one for one in indicators if one.label is not Label.UNRATED]
    reason = None
    if label is Label.UNRATED:
        reason = Reason.VETO if veto else indicators[0].reason
    return PlantLabel(
        plant=plant,
        year=year,
        months=period.months,
        label=label,
        indicators=indicators,
        single=len(rated) == 1,
        doubts=tuple(_doubts(period, benchmark, year, running)),
        reason=reason,
        veto=veto,
        benchmark=benchmark,
        completeness=total.completeness,
        estimated_share=total.estimated_share,
        trend=_trend(plant, period, rated, fresh),
    )


def _period(plant_id: str, months: Sequence[str], *, running: bool, fresh: bool) -> _Period:
    """The months from the first that anything is known of; of a running year to the last told.

    A month in between that was not told stays: it is why an indicator cannot be rated.
    """
    if not months:
        return _Period((), Total(), (), False)
    first, last = clock.first_day(months[0]), clock.last_day(months[-1])
    found = inventory.for_period(plant_id, first, last, By.MONTH, fresh=fresh)
    totals = {month: total for month, total in found.series if total.known}
    told = {
        one.month: Told(one.output, one.output_unit, one.added_value_fen, one.tax_fen)
        for one in figures.of_months(plant_id, months[0], months[-1])
    }
    known = [month for month in months if month in totals or month in told]
    begin = months.index(known[0]) if known else 0
    end = len(months)
    while running and end > begin and months[end - 1] not in told:
        end -= 1
    counted = tuple(months[begin:end])
    whole = Total()
    for month in counted:
        if month in totals:
            whole.merge(totals[month])
    return _Period(counted, whole, tuple(told.get(month) for month in counted), begin > 0)


def _doubts(
    period: _Period, benchmark: Benchmark | None, year: int, running: bool
) -> Iterator[Doubt]:
    if running:
        yield Doubt.YEAR_NOT_OVER
    if period.cut:
        yield Doubt.PART_OF_YEAR
    if period.total.completeness < label_rules.COMPLETENESS_MIN:
        yield Doubt.COMPLETENESS
    if period.total.estimated_share > label_rules.ESTIMATED_MAX:
        yield Doubt.ESTIMATES
    if benchmark is not None and benchmark.year != year:
        yield Doubt.EARLIER_BENCHMARK


def _benchmark(sector: str, year: int, running: bool) -> Benchmark | None:
    """The newest version of the sector's year; of a running year an earlier one may stand in."""
    for back in range(BENCHMARK_YEARS_BACK + 1 if running else 1):
        found = figures.benchmark(sector, year - back)
        if found is not None:
            return found
    return None


def _trend(plant: Plant, period: _Period, rated: Sequence[Indicator], fresh: bool) -> Trend | None:
    """None where nothing of the year before can be compared."""
    if not rated:
        return None
    months = [clock.add_months(month, -MONTHS) for month in period.months]
    before = _period(plant.id, months, running=False, fresh=fresh)
    if before.cut or not before.total.known:
        return None
    denominators = {one.indicator: one for one in sectors.profile_of(plant.sector).denominators}
    changes = []
    for one in rated:
        then = label_rules.indicator(
            denominators[one.name], before.total.co2e_mg, before.told, None, ()
        )
        if one.intensity is not None and then.intensity is not None:
            changes.append((one.name, label_rules.change(one.intensity, then.intensity)))
    if not changes:
        return None
    return Trend(tuple(changes), label_rules.direction([share for _, share in changes]))


# --- kept for comparing -------------------------------------------------------------------------


def keep(made: PlantLabel) -> None:
    """Keep what a year came to; the newest look stays."""
    row = {
        "plant": made.plant.id,
        "sector": made.plant.sector,
        "year": made.year,
        "intensities": {
            one.name: f"{one.intensity.numerator}/{one.intensity.denominator}"
            for one in made.indicators
            if one.intensity is not None
        },
        "label": made.label.value,
        "provisional": made.provisional,
        "looked_at": clock.now(),
    }
    _rows().update_one({"_id": f"{made.plant.id}/{made.year}"}, {"$set": row}, upsert=True)


def last_final(plant_id: str, now: datetime) -> Label | None:
    """The label of the last year that is over and has a final one kept."""
    year = clock.city_day(now).year - 1
    wanted = {"_id": {"$in": [f"{plant_id}/{year}", f"{plant_id}/{year - 1}"]}}
    final = {"provisional": False, "label": {"$ne": Label.UNRATED.value}}
    found = _rows().find_one({**wanted, **final}, sort=[("_id", -1)])
    return Label(found["label"]) if found else None


def keep_all(now: datetime) -> None:
    """Keep the last and the running year of every plant; one that cannot be counted is left out."""
    year = clock.city_day(now).year
    for plant in plants.everyone():
        for one in (year - 1, year):
            try:
                keep(of_year(plant, one, fresh=False))
            except DomainError as refusal:
                log.warning("no label of %s for %d: %s", plant.id, one, refusal)


def _peers(plant: Plant, year: int, name: str) -> list[Fraction]:
    """The intensities of the other plants of a sector that were kept for a year."""
    wanted = {
        "sector": plant.sector,
        "year": year,
        f"intensities.{name}": {"$exists": True},
        "plant": {"$ne": plant.id},
    }
    found = _rows().find(wanted, {f"intensities.{name}": 1}).limit(PEERS_MAX)
    return [Fraction(row["intensities"][name]) for row in found]


def _rows() -> "Collection[storage.Doc]":
    return storage.strong(PlantYearDocument._get_collection())
