"""Exact quantities: integers in the smallest unit, Decimal in between, rounded down once.

CO2e is kept in milligrams, energy in watt-hours, money in fen, points in points. Nothing here ever
makes a float of an amount; grams and kilograms for people are made at the very edge.
"""

from decimal import ROUND_FLOOR, Context, Decimal
from fractions import Fraction

# Wide enough that no product of a request quantity (<= 6 places) and a factor is ever rounded.
EXACT = Context(prec=60, rounding=ROUND_FLOOR)
PLACES_MAX = 6
MG_PER_G = 1_000
MG_PER_KG = 1_000_000


def floor_mg(quantity: Decimal | Fraction, num: int, den: int) -> int:
    """`quantity x num / den` milligrams, rounded down once.

    `num/den` is a factor in milligrams per unit; keeping it a fraction keeps 296,000/18,000 exact.
    """
    assert den > 0, den
    # In integers: Fraction would look for common divisors each time.
    above, below = quantity.as_integer_ratio()
    return above * num // (below * den)


def micro(quantity: Decimal) -> int:
    """A quantity of at most six places as an integer number of millionths, to store and compare."""
    scaled = quantity.scaleb(PLACES_MAX, EXACT)
    assert scaled == scaled.to_integral_value(), f"more than {PLACES_MAX} places: {quantity}"
    return int(scaled)


def from_micro(value: int) -> Decimal:
    return Decimal(value).scaleb(-PLACES_MAX, EXACT)


def grams(mg: int) -> Decimal:
    """Milligrams shown as grams, up to three places, exactly."""
    return Decimal(mg).scaleb(-3, EXACT)


def kilograms(mg: int) -> Decimal:
    return Decimal(mg).scaleb(-6, EXACT)
