"""Chance that depends on what it is for, and on nothing drawn before.

Everybody, every day and every bill has a stream of its own, keyed by the city's seed and a number.
So a resident's life is the same in a city of a thousand and of two million, whatever was asked for
first, and a file of one day needs nothing of the day before.
"""

from enum import IntEnum
from random import Random
from typing import TypeVar

T = TypeVar("T")

SEED_MAX = 2**32 - 1
_MASK = 2**64 - 1


class Use(IntEnum):
    """What a stream is drawn for; numbers are never given anew."""

    HOUSEHOLDS = 1
    PERSON = 2
    DAY = 3
    WEATHER = 4
    LATE = 5
    BILL = 6
    METER = 7
    METER_DAY = 8


def stream(random: Random, seed: int, use: Use, who: int, when: int = 0) -> Random:
    """The stream of `who` on `when`, on a generator that is used again: making one is dear."""
    random.seed((((seed << 8 | use) << 64) | who << 32) | when)
    return random


def share(seed: int, use: Use, who: int, when: int) -> float:
    """One number in [0, 1), without a stream: the mixing of SplitMix64."""
    mixed = (seed << 8 | use) * 0x9E3779B97F4A7C15 + who * 0xD1B54A32D192ED03 + when
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed &= _MASK
        mixed = (mixed ^ (mixed >> shift)) * factor
    mixed &= _MASK
    return float((mixed ^ (mixed >> 31)) >> 11) / 2**53


def pick(random: Random, table: tuple[tuple[T, float], ...]) -> T:
    """One of a table's values by their weights, which add up to 1."""
    found = among(random.random(), table)
    # Weights are floats: their sum may miss the last of the numbers below 1.
    return table[-1][0] if found is None else found


def among(drawn: float, table: tuple[tuple[T, float], ...]) -> T | None:
    """The value whose part of [0, 1) a number falls into; None behind the parts of all."""
    for value, weight in table:
        drawn -= weight
        if drawn < 0:
            return value
    return None


def times(random: Random, mean: float, most: int) -> int:
    """How often something happens that has this mean: Poisson, cut off at `most`."""
    count, left = 0, random.expovariate(1.0)
    while left < mean and count < most:
        count += 1
        left += random.expovariate(1.0)
    return count
