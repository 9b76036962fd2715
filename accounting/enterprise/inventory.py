"""Energy, CO2e and coal equivalent of a plant: by slot, hour, day or month, whole or of a node.

Sums are sums of milligrams of whole meter-days, so days, months and nodes add up to the milligram.
Beside every number stands how much of it was measured. A period nothing is known of has no number.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum

from accounting import clock, factors
from accounting.enterprise import (
    carbon,
    inventory_days,
    meterdays,
    meters,
    plants,
    trees,
    validating,
)
from accounting.enterprise.boundary import Boundary
from accounting.enterprise.inventory_days import Day, Row
from accounting.enterprise.meters import Meter
from accounting.enterprise.slots import SLOT, SLOTS, start_of_slot
from accounting.enterprise.slots import Row as Values
from accounting.errors import AccountBusy, NotFound, ValidationFailed
from accounting.factors import Factor, Registry

PROCESS, GREEN_POWER = "process", "green_power"
SHARE_PLACES = Decimal("0.0001")
_DAY = timedelta(days=1)


class By(StrEnum):
    SLOT = "slot"
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


# The longest range in days: slots and hours are read meter by meter.
DAYS_MAX: Mapping[By, int] = {By.SLOT: 31, By.HOUR: 31, By.DAY: 400, By.MONTH: 1_100}


@dataclass(slots=True)
class CarrierTotal:
    """One carrier of a period: what was drawn less what was given away, in `unit` (Wh, g, NL, kJ).

    `factors` are the ids of the factors it was computed with.
    """

    unit: str
    quantity: int = 0
    co2e_mg: int = 0
    tce_mg: int = 0
    factors: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Total:
    """A period: milligrams of CO2e and of coal equivalent, and how well they are known.

    Of the `expected` slots of the meters that are summed, `actual` were measured (or edited) and
    `estimated` estimated. Where `known` is false nothing is known and the sums mean nothing.
    """

    co2e_mg: int = 0
    tce_mg: int = 0
    by_carrier: dict[str, CarrierTotal] = field(default_factory=dict)
    expected: int = 0
    actual: int = 0
    estimated: int = 0
    known: bool = False

    @property
    def completeness(self) -> Decimal:
        """The share of the expected slots that were measured, rounded down to four places."""
        return share(self.actual, self.expected)

    @property
    def estimated_share(self) -> Decimal:
        return share(self.estimated, self.expected)

    def scope_mg(self, scope: int) -> int:
        """What of the CO2e is scope 1 (emitted here) or 2 (for the power and heat bought)."""
        return sum(one.co2e_mg for name, one in self.by_carrier.items() if scope_of(name) == scope)

    def add(
        self, carrier: str, unit: str, quantity: int, co2e_mg: int, tce_mg: int
    ) -> CarrierTotal:
        one = self.by_carrier.setdefault(carrier, CarrierTotal(unit))
        one.quantity += quantity
        one.co2e_mg += co2e_mg
        one.tce_mg += tce_mg
        self.co2e_mg += co2e_mg
        self.tce_mg += tce_mg
        self.known = True
        return one

    def merge(self, other: "Total") -> None:
        for name, theirs in other.by_carrier.items():
            one = self.add(name, theirs.unit, theirs.quantity, theirs.co2e_mg, theirs.tce_mg)
            one.factors |= theirs.factors
        self.expected += other.expected
        self.actual += other.actual
        self.estimated += other.estimated


@dataclass(frozen=True, slots=True)
class Inventory:
    """A range of a plant or node; `series` by period: an instant, a day or a month.

    `factor_set` names the sets of all factors used. `revision` grows with every change of a number
    in the range. `provisional` if a factor of an earlier year stands in for its own.
    """

    plant: str
    node: str | None
    total: Total
    series: tuple[tuple[str, Total], ...]
    factor_set: str
    revision: int
    provisional: bool


def scope_of(carrier: str) -> int:
    return 2 if carrier == GREEN_POWER else carbon.scope_of(carrier)


def for_period(
    plant_id: str,
    begin: date | datetime,
    end: date | datetime,
    by: By = By.DAY,
    node: str | None = None,
    *,
    fresh: bool = True,
) -> Inventory:
    """The inventory of a range: days inclusive, instants half-open.

    `fresh` first validates and counts whatever was sent and touches the range; without it the
    numbers are those of the last sweep. Raises `NotFound` for an unknown node, `MissingFactor`
    where a carrier has no factor for a day, `ValidationFailed` for a range too long, `AccountBusy`.
    """
    start, stop = span(begin, end)
    first, last = clock.city_day(start), clock.city_day(stop - timedelta(milliseconds=1))
    if stop - start > DAYS_MAX[by] * _DAY:
        raise ValidationFailed("/to", f"At most {DAYS_MAX[by]} days.", f"最多 {DAYS_MAX[by]} 天。")
    tree = plants.nodes(plant_id)
    if node is not None and all(one.node != node for one in tree):
        raise NotFound
    if fresh:
        validating.catch_up(plant_id, first, last)
        inventory_days.catch_up(plant_id, first, last)
    # Read after counting: it says since when meters are heard.
    measured = meters.of_plant(plant_id)
    inside = None if node is None else trees.below(node, plants.parents(tree))
    reader = _Reader(plant_id, Boundary(measured, tree, node), inside)
    series: dict[str, Total] = {}
    for period, total in reader.pieces(start, stop, by):
        series.setdefault(period, Total()).merge(total)
    whole = Total()
    for total in series.values():
        whole.merge(total)
    return Inventory(
        plant=plant_id,
        node=node,
        total=whole,
        series=tuple(series.items()),
        factor_set=carbon.sets_of(reader.used.values()),
        revision=reader.revision,
        provisional=reader.provisional,
    )


def span(begin: date | datetime, end: date | datetime) -> tuple[datetime, datetime]:
    """A range as instants, half-open: days are inclusive. Raises `ValidationFailed`."""
    start = begin if isinstance(begin, datetime) else clock.start_of(begin)
    stop = end if isinstance(end, datetime) else clock.start_of(end + _DAY)
    if not start < stop:
        raise ValidationFailed("/to", "Must lie after from.", "必须晚于 from。")
    return start, stop


def day_total(bounds: Boundary, day: Day, now: datetime) -> Total:
    """One whole day of a whole plant, as it goes to the book. Raises `MissingFactor`."""
    return _Reader(day.plant, bounds, None).whole_day(day.day, day, now)


class _Slots:
    """One carrier's quarter hours of a day, added up over its meters."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.factors: set[str] = set()
        self.known = [False] * SLOTS
        self.sums = [[0] * SLOTS for _ in range(3)]

    def add(self, sign: int, values: Values, co2e: Sequence[int], tce: Sequence[int]) -> None:
        quantities = [value or 0 for value in values]
        for place, more in enumerate((quantities, co2e, tce)):
            held = self.sums[place]
            self.sums[place] = [before + sign * one for before, one in zip(held, more, strict=True)]
        self.known = [
            before or value is not None for before, value in zip(self.known, values, strict=True)
        ]

    def lay(self, slot: int, carrier: str, total: Total) -> None:
        if self.known[slot]:
            quantity, co2e_mg, tce_mg = (one[slot] for one in self.sums)
            total.add(carrier, self.unit, quantity, co2e_mg, tce_mg).factors |= self.factors


class _Reader:
    """Adds up days of one boundary; remembers which factors it met."""

    def __init__(
        self,
        plant_id: str,
        bounds: Boundary,
        inside: frozenset[str] | None,
        registry: Registry | None = None,
    ) -> None:
        self.plant, self.bounds, self.inside = plant_id, bounds, inside
        self.registry = registry or factors.shipped()
        self.used: dict[str, Factor] = {}
        self.revision = 0
        self.provisional = False

    @property
    def whole(self) -> bool:
        """Whether this is the plant and not one of its nodes."""
        return self.inside is None

    def within(self, node: str | None) -> bool:
        return self.inside is None or node in self.inside

    def pieces(self, start: datetime, stop: datetime, by: By) -> Iterator[tuple[str, Total]]:
        """The parts of a range in order; a period may come in several."""
        now = clock.now()
        first, last = clock.city_day(start), clock.city_day(stop - timedelta(milliseconds=1))
        known = inventory_days.days(self.plant, first, last)
        for number in range((last - first).days + 1):
            on = first + number * _DAY
            day = known.get(on) or Day(self.plant, on)
            self.revision = max(self.revision, day.run)
            midnight = clock.start_of(on)
            slots = range(
                max(0, -((midnight - start) // SLOT)), min(SLOTS, -((midnight - stop) // SLOT))
            )
            if by in (By.DAY, By.MONTH) and len(slots) == SLOTS:
                yield _period(on, 0, by), self.whole_day(on, day, now)
                continue
            for slot, total in zip(slots, self.slots(on, day, now, slots), strict=True):
                yield _period(on, slot, by), total

    def whole_day(self, on: date, day: Day, now: datetime) -> Total:
        total = Total()
        over = min(SLOTS, max(0, (now - clock.start_of(on)) // SLOT))
        for name, sign in self.bounds.signs(on).items():
            meter, row = self.bounds.meters[name], day.rows.get(name)
            known = row.actual + row.estimated if row else 0
            # A slot that is not over is not missing yet.
            total.expected += max(over, known)
            if row is not None and known:
                total.actual += row.actual
                total.estimated += row.estimated
                one = total.add(
                    meter.carrier,
                    meter.smallest_unit,
                    sign * row.quantity,
                    sign * row.co2e_mg,
                    sign * row.tce_mg,
                )
                one.factors |= self._meet(meter, row, on)
        for part in day.process:
            if self.within(part.node):
                total.add(PROCESS, "", 0, part.co2e_mg, 0)
        self._green(on, day, total)
        return total

    def _green(self, on: date, day: Day, total: Total) -> None:
        """What green power with evidence changes of a plant's day.

        It counts as zero, and what else was bought at the average without green power: the
        grid's average holds what others have bought as green already.
        """
        bought = total.by_carrier.get(carbon.ELECTRICITY)
        if not day.green_wh or not self.whole or bought is None:
            return
        rate = carbon.rate(self.registry, carbon.ELECTRICITY, "Wh", carbon.RESIDUAL, on)
        rest_mg = rate.co2e_mg(bought.quantity - day.green_wh)
        one = total.add(GREEN_POWER, "Wh", -day.green_wh, rest_mg - bought.co2e_mg, 0)
        one.factors |= self._remember({rate.co2e.id}, on)

    def slots(self, on: date, day: Day, now: datetime, slots: range) -> list[Total]:
        """The quarter hours of a day; those of a meter add up to its day to the milligram."""
        signs = self.bounds.signs(on)
        over = (now - clock.start_of(on)) // SLOT
        actual, estimated = [0] * SLOTS, [0] * SLOTS
        by_carrier: dict[str, _Slots] = {}
        for one in meterdays.several((self.plant, name, on) for name in signs):
            row = day.rows.get(one.meter)
            if row is None or not row.actual + row.estimated:
                continue
            meter = self.bounds.meters[one.meter]
            sums = by_carrier.setdefault(meter.carrier, _Slots(meter.smallest_unit))
            sums.factors |= self._meet(meter, row, on)
            values = inventory_days.counted_values(meter, one)
            co2e = carbon.split(values, self.used[row.factor], meter.smallest_unit)
            tce = carbon.split(values, self.used[row.tce_factor], meter.smallest_unit)
            sums.add(signs[one.meter], values, co2e, tce)
            for slot, (value, letter) in enumerate(zip(values, one.quality, strict=True)):
                if value is not None:
                    (estimated if letter == "E" else actual)[slot] += 1
        totals = []
        for slot in slots:
            total = Total(actual=actual[slot], estimated=estimated[slot])
            total.expected = len(signs) if slot < over else actual[slot] + estimated[slot]
            for name, sums in by_carrier.items():
                sums.lay(slot, name, total)
            totals.append(total)
        self._spread(on, day, totals, slots)
        return totals

    def _spread(self, on: date, day: Day, totals: list[Total], slots: range) -> None:
        """What is known of the day only, evenly over its quarter hours."""
        if not day.process and not day.green_wh:
            return
        found = self.whole_day(on, day, clock.now()).by_carrier
        beside = {name: found[name] for name in (PROCESS, GREEN_POWER) if name in found}
        for total, slot in zip(totals, slots, strict=True):
            for name, whole in beside.items():
                quantity, co2e_mg = (
                    one * (slot + 1) // SLOTS - one * slot // SLOTS
                    for one in (whole.quantity, whole.co2e_mg)
                )
                total.add(name, whole.unit, quantity, co2e_mg, 0).factors |= whole.factors

    def _meet(self, meter: Meter, row: Row, on: date) -> set[str]:
        """The ids of a row's factors, which are remembered. Raises `MissingFactor`."""
        if not row.factor:
            region = plants.region_of(self.plant)
            carbon.rate(self.registry, meter.carrier, meter.smallest_unit, region, on)
            # There is one since this was read.
            raise AccountBusy(retry_after=1)
        return self._remember({row.factor, row.tce_factor}, on)

    def _remember(self, ids: set[str], on: date) -> set[str]:
        for one in ids:
            if one not in self.used:
                self.used[one] = self.registry.by_id(one)
            self.provisional = self.provisional or self.used[one].provisional(on)
        return ids


def _period(on: date, slot: int, by: By) -> str:
    if by is By.MONTH:
        return clock.month_of(on)
    if by is By.DAY:
        return on.isoformat()
    at = start_of_slot(on, slot if by is By.SLOT else slot // 4 * 4)
    return clock.iso(at)


def share(part: int, whole: int) -> Decimal:
    """A share of slots, rounded down to four places; 0 of none."""
    if not whole:
        return Decimal(0)
    return (Decimal(part) / whole).quantize(SHARE_PLACES, rounding="ROUND_FLOOR")
