"""What a plant's nodes draw in a window, from the final layer of their meters, to choose from.

A node's own load is what its meters measure less what the nodes below it do, so stopping a workshop
and its lines is never counted twice. Reading is all that happens here: asking "what if" leaves
nothing behind.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from fractions import Fraction

from accounting import clock, factors
from accounting.enterprise import (
    carbon,
    curtailment,
    expecting,
    meterdays,
    meters,
    plants,
    trees,
    validating,
    workdays,
)
from accounting.enterprise.boundary import OUTSIDE, Boundary, highest
from accounting.enterprise.carbon import ELECTRICITY
from accounting.enterprise.carriers import UNITS
from accounting.enterprise.curtailment import Choice, Load
from accounting.enterprise.expecting import Basis, Expected, Place
from accounting.enterprise.meters import Flow, Meter
from accounting.enterprise.plants import Node, Plant
from accounting.enterprise.slots import SLOT, Row
from accounting.errors import ValidationFailed

WINDOW_MAX = timedelta(days=7)
_HOUR = timedelta(hours=1)
_MS = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Order:
    """Draw `watts` less in `[begin, end)`; the nodes in `keep` shall run whatever it costs."""

    watts: int
    begin: datetime
    end: datetime
    keep: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Answer:
    """The choice, and what it rests on.

    `until` says when a node may start again, `basis` what its load was expected from. `lowest` is
    the quarter hour in which generation and stopped loads bring least, and how many watts.
    """

    choice: Choice
    loads: Sequence[Load]
    generation: int
    until: Mapping[str, datetime]
    basis: Mapping[str, Basis]
    lowest: tuple[datetime, int]


@dataclass(frozen=True, slots=True)
class _Expectations:
    """What each meter will say, by quarter hour from the beginning of the window on."""

    places: tuple[Place, ...]
    meters: Mapping[str, Expected | None]

    def of(self, measured: Iterable[Meter]) -> list[Fraction] | None:
        """The sum of meters by quarter hour; None if one of them says nothing."""
        sums = [Fraction(0)] * len(self.places)
        for meter in measured:
            told = self.meters[meter.meter]
            if told is None:
                return None
            sums = [one + other for one, other in zip(sums, told.quantities, strict=True)]
        return sums

    def basis(self, measured: Iterable[Meter]) -> Basis:
        weakest = [told.basis for one in measured if (told := self.meters[one.meter])]
        return max(weakest, key=tuple(Basis).index, default=Basis.MEASURED)


def answer(plant: Plant, order: Order) -> Answer:
    """What to stop for an order. Raises `ValidationFailed` for a node to keep that is none."""
    tree = plants.nodes(plant.id)
    if missing := order.keep - {one.node for one in tree}:
        raise ValidationFailed(
            "/keep_running", f"There is no node {min(missing)}.", f"没有节点 {min(missing)}。"
        )
    until = {
        one.node: max(order.end, order.begin + timedelta(minutes=one.minimum_stop_minutes))
        for one in tree
    }
    measured = [one for one in meters.of_plant(plant.id) if one.carrier not in OUTSIDE]
    told = _expectations(plant, measured, order.begin, max([order.end, *until.values()]))
    # A panel of which nothing is known covers nothing.
    solar = [
        one
        for one in measured
        if (one.carrier, one.flow) == (ELECTRICITY, Flow.GENERATION) and told.meters[one.meter]
    ]
    generated = told.of(highest(solar, tree)) or []
    window = expecting.shares(order.begin, order.end)
    generation = _watts(generated, window, order)
    loads, profiles, basis = _loads(plant, tree, measured, told, order, until)
    choice = curtailment.choose(loads, order.watts, generation)
    stopped = [profiles[one.node] for one in choice.stopped]
    return Answer(
        choice, loads, generation, until, basis, _lowest(told, [generated, *stopped], len(window))
    )


def _loads(
    plant: Plant,
    tree: Sequence[Node],
    measured: Sequence[Meter],
    told: _Expectations,
    order: Order,
    until: Mapping[str, datetime],
) -> tuple[list[Load], dict[str, list[Fraction]], dict[str, Basis]]:
    """Each node as a load, its power by quarter hour, and what that was expected from."""
    by_name, parents = {one.node: one for one in tree}, plants.parents(tree)
    used = _by_node(tree, measured)
    window = expecting.shares(order.begin, order.end)
    spans = {end: expecting.shares(order.begin, end) for end in {*until.values()}}
    on = clock.city_day(order.begin)
    loads: list[Load] = []
    profiles: dict[str, list[Fraction]] = {}
    basis: dict[str, Basis] = {}
    for node in tree:
        load = Load(
            node.node,
            None,
            above=node.parent,
            must_run=node.must_run or node.node in order.keep,
            flexible=node.flexible,
        )
        above = [by_name[name] for name in trees.above(node.node, parents)]
        own = _own(node.node, used[ELECTRICITY], told, tree)
        if own is None and _is_part(node, used[ELECTRICITY], above):
            own = [Fraction(0)] * len(told.places)
        if own is not None:
            profiles[node.node] = own
            basis[node.node] = told.basis(used[ELECTRICITY].get(node.node, ()))
            span = spans[until[node.node]]
            load = replace(load, watts=_watts(own, window, order))
            if load.watts:
                energy_wh = _sum(own, span)
                lost = int(energy_wh * _value(node, above) / 1_000) + node.restart_cost_fen
                load = replace(
                    load,
                    lost_fen=lost,
                    avoided_mg=_avoided(plant, node.node, used, told, tree, span, on),
                )
        loads.append(load)
    return loads, profiles, basis


def _expectations(
    plant: Plant, measured: Sequence[Meter], begin: datetime, end: datetime
) -> _Expectations:
    wanted = expecting.places(begin, end)
    days = expecting.history(wanted, clock.city_day(clock.now()))
    validating.catch_up(plant.id, days[0], days[-1])
    asked = {day for day, _ in wanted}
    kinds = {workdays.kind_of(day) for day in asked}
    near = [day for day in days if day in asked or workdays.kind_of(day) in kinds]
    known = _known(plant, [one.meter for one in measured], near)
    found = {one.meter: _expected(one, wanted, known[one.meter]) for one in measured}
    # Only for meters of which the same weekdays do not tell enough: the other days as well.
    unsure = [name for name, one in found.items() if one is None or one.basis not in _SURE]
    if unsure:
        more = _known(plant, unsure, [day for day in days if day not in near])
        for one in measured:
            if one.meter in unsure:
                found[one.meter] = _expected(one, wanted, known[one.meter] | more[one.meter])
    return _Expectations(wanted, found)


def _known(plant: Plant, meters: list[str], days: list[date]) -> dict[str, dict[date, Row]]:
    known: dict[str, dict[date, Row]] = defaultdict(dict)
    wanted = [(plant.id, meter, day) for meter in meters for day in days]
    for day in meterdays.several(wanted):
        known[day.meter][day.day] = day.values
    return known


def _expected(meter: Meter, wanted: Sequence[Place], known: Mapping[date, Row]) -> Expected | None:
    return expecting.expected(wanted, known, sun=meter.flow is Flow.GENERATION)


def _by_node(tree: Sequence[Node], measured: Sequence[Meter]) -> dict[str, dict[str, list[Meter]]]:
    """By carrier and node: the meters whose sum is what the node and all below it use.

    What covers what is the inventory's to say. A node whose whole load is metered needs none of
    what it draws from the grid.
    """
    whole = {(one.carrier, one.node) for one in measured if one.flow is Flow.LOAD}
    using = [
        one
        for one in measured
        if one.flow is Flow.LOAD
        or (one.flow is Flow.IMPORT and (one.carrier, one.node) not in whole)
    ]
    on = clock.city_day(clock.now())
    used: dict[str, dict[str, list[Meter]]] = defaultdict(lambda: defaultdict(list))
    for node in tree:
        bounds = Boundary(using, tree, node.node)
        for name in bounds.signs(on):
            meter = bounds.meters[name]
            used[meter.carrier][node.node].append(meter)
    return {ELECTRICITY: {}, **used}


def _own(
    node: str, used: Mapping[str, Sequence[Meter]], told: _Expectations, tree: Sequence[Node]
) -> list[Fraction] | None:
    """What a node uses itself, by quarter hour; None if no meter tells. Never below zero."""
    if node not in used:
        return None
    own = told.of(used[node])
    if own is None:
        return None
    for child in tree:
        if child.parent == node and child.node in used:
            below = told.of(used[child.node])
            # What a silent meter below draws stays with the node: neither can be stopped.
            if below is not None:
                own = [one - other for one, other in zip(own, below, strict=True)]
    return [max(one, Fraction(0)) for one in own]


def _is_part(node: Node, used: Mapping[str, object], above: Iterable[Node]) -> bool:
    """Whether a node without meters is measured with one above it."""
    return node.node not in used and any(one.node in used for one in above)


def _value(node: Node, above: Iterable[Node]) -> int:
    """The value of a kilowatt hour at a node: its own, else that of the nearest above, else 0."""
    told = (one.value_fen_per_kwh for one in (node, *above))
    return next((value for value in told if value is not None), 0)


def _avoided(
    plant: Plant,
    node: str,
    used: Mapping[str, Mapping[str, Sequence[Meter]]],
    told: _Expectations,
    tree: Sequence[Node],
    span: Collection[Fraction],
    on: date,
) -> int:
    """Milligrams the node does not emit while it stands: of all carriers its meters tell of."""
    total = Fraction(0)
    for carrier, by_node in used.items():
        own = _own(node, by_node, told, tree)
        if own is not None:
            total += _sum(own, span) * _mg_per_smallest(carrier, plant.region, on)
    return int(total)


def _mg_per_smallest(carrier: str, region: str, on: date) -> Fraction:
    """Raises `MissingFactor`."""
    factor = carbon.co2e_factor(factors.shipped(), carrier, region, on)
    return factor.mg_per(factor.per) / UNITS[factor.per][1]


def _lowest(
    told: _Expectations, profiles: Sequence[Sequence[Fraction]], count: int
) -> tuple[datetime, int]:
    """The quarter hour of the window in which these together bring least, and its watts."""
    sums = [sum((one[number] for one in profiles if one), Fraction(0)) for number in range(count)]
    number = min(range(count), key=sums.__getitem__)
    at = clock.start_of(told.places[number][0]) + told.places[number][1] * SLOT
    return at, int(sums[number] * (_HOUR // SLOT))


def _watts(quantities: Sequence[Fraction], window: Sequence[Fraction], order: Order) -> int:
    """The mean power of watt hours over the window, rounded down."""
    hours = Fraction((order.end - order.begin) // _MS, _HOUR // _MS)
    return int(_sum(quantities, window) / hours)


def _sum(quantities: Iterable[Fraction], shares: Iterable[Fraction]) -> Fraction:
    # The span may be shorter than what was looked ahead for another node.
    return sum((one * share for one, share in zip(quantities, shares, strict=False)), Fraction(0))


_SURE = (Basis.MEASURED, Basis.SAME_WEEKDAY)
