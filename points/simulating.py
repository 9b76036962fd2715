"""What a change of rate, price or uptake would cost over the coming months: a seeded model. Pure.

The model, in docs/simulate.md: residents take part in a growing share of the city (logistic), save
grams by the season, earn points on them, spend a part of what they have each month, and what is
not spent lapses at the end of its 24th month. An account spends its oldest points first, but
accounts differ: over the city the points of every month shrink by about the same share. Both sides
of a comparison draw the same random numbers, so that a difference is the change's alone.

Shares and elasticities are estimates, so the model computes in floats; what it answers is whole
people, points and fen.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

EXPIRY_MONTHS = 24
MONTHS_MAX = 60
# A bus is fuller in winter, a bicycle emptier: grams by calendar month, mean 1.
SEASON = (0.94, 0.86, 1.0, 1.04, 1.06, 1.02, 0.98, 0.98, 1.03, 1.05, 1.04, 1.0)


@dataclass(frozen=True, slots=True)
class City:
    """Where the simulation begins. Shares are of 1, `grams` those of an active resident a month.

    `stock` is the points outstanding by months left until they expire, the next to expire first;
    None lets two years at the opening values fill it.
    """

    residents: int
    active: int
    grams: float
    points_per_gram: float
    fen_per_1000_points: int
    spent_share: float
    stock: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """Factors on what the city does now: 1 is as it is."""

    rate: float = 1.0
    price: float = 1.0
    uptake: float = 1.0


@dataclass(frozen=True, slots=True)
class Assumptions:
    """How people answer. Assumptions, not measurements: change them and look at the difference."""

    growth_a_month: float = 0.03
    active_share_max: float = 0.45
    # One per cent more points a gram brings so many per cent more grams.
    grams_by_rate: float = 0.1
    # One per cent higher prices let so many per cent fewer points be spent.
    spending_by_price: float = 0.5
    noise: float = 0.04


@dataclass(frozen=True, slots=True)
class Month:
    """One month of the city; points and fen, grams as kilograms."""

    month: str
    active: int
    saved_kg: int
    issued: int
    spent: int
    lapsed: int
    outstanding: int
    expected_lapse: int
    liability_fen: int
    cost_fen: int

    @property
    def fen_per_tonne(self) -> int:
        """What was paid to merchants for each tonne saved in the month."""
        return self.cost_fen * 1_000 // self.saved_kg if self.saved_kg else 0


def run(
    city: City,
    change: Change,
    months: Sequence[str],
    *,
    seed: int,
    assume: Assumptions | None = None,
) -> list[Month]:
    """The coming months, oldest first; `months` are their names (`2026-12`)."""
    assume = assume or Assumptions()
    assert 0 < len(months) <= MONTHS_MAX, months
    draw = random.Random(seed)
    share = _spent_share(city.spent_share, change.price, assume)
    stock = list(city.stock) if city.stock is not None else _filled(city)
    stock += [0] * (EXPIRY_MONTHS - len(stock))
    active = float(city.active)
    found = []
    for name in months:
        # Drawn whatever the change is, so that both sides of a comparison draw the same.
        people, habits, tills = (max(0.0, draw.gauss(1, assume.noise)) for _ in range(3))
        ceiling = city.residents * assume.active_share_max
        room = max(0.0, 1 - active / ceiling) if ceiling else 0.0
        active = min(city.residents, active * (1 + assume.growth_a_month * change.uptake * room))
        here = min(city.residents, round(active * people))
        grams = here * city.grams * SEASON[int(name[5:]) - 1] * habits
        grams *= change.rate**assume.grams_by_rate
        issued = int(grams * city.points_per_gram * change.rate)
        lapsed = stock.pop(0)
        stock.append(issued)
        going = [int(points * min(1.0, share * tills)) for points in stock]
        stock = [points - part for points, part in zip(stock, going, strict=True)]
        spent = sum(going)
        outstanding = sum(stock)
        worth = city.fen_per_1000_points
        found.append(
            Month(
                month=name,
                active=here,
                saved_kg=int(grams / 1_000),
                issued=issued,
                spent=spent,
                lapsed=lapsed,
                outstanding=outstanding,
                expected_lapse=expected_lapse(stock, share),
                liability_fen=outstanding * worth // 1_000,
                # A dearer reward is worth what it was: each point buys less of it.
                cost_fen=int(spent * worth / 1_000 / change.price),
            )
        )
    return found


def expected_lapse(stock: Sequence[int], spent_share: float) -> int:
    """Points that will not be spent before they expire, if the same share is spent each month.

    What has k months left keeps `(1 - share)^k` of itself.
    """
    return int(sum(points * (1 - spent_share) ** left for left, points in enumerate(stock, 1)))


def _spent_share(share: float, price: float, assume: Assumptions) -> float:
    return float(min(1.0, share * price**-assume.spending_by_price))


def _filled(city: City) -> list[int]:
    """Two years at the opening values: what is left of each month's points."""
    a_month = city.active * city.grams * city.points_per_gram
    kept = 1 - city.spent_share
    return [int(a_month * kept**age) for age in range(EXPIRY_MONTHS, 0, -1)]
