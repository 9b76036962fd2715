"""What points are worth in fen. Pure: a total is rounded once, and its lines add up to it."""

from collections.abc import Hashable, Mapping
from fractions import Fraction
from typing import TypeVar

POINTS_PER_PRICE = 1_000

Line = TypeVar("Line", bound=Hashable)


def fen(points: int, fen_per_1000_points: int) -> int:
    """What points of a funder are worth, rounded down once."""
    return points * fen_per_1000_points // POINTS_PER_PRICE


def points_for(fen: int, fen_per_1000_points: int) -> int:
    """How many points an amount pays for."""
    assert fen_per_1000_points > 0, fen_per_1000_points
    return fen * POINTS_PER_PRICE // fen_per_1000_points


def lines(points: Mapping[Line, int], fen_per_1000_points: int) -> dict[Line, int]:
    """Fen by line that add up to what all points together are worth (largest remainder).

    Equal remainders go to the line that comes first.
    """
    return shares(fen(sum(points.values()), fen_per_1000_points), points)


def shares(total: int, weights: Mapping[Line, int]) -> dict[Line, int]:
    """A total split in proportion to weights that are not negative (largest remainder)."""
    whole = sum(weights.values())
    if whole == 0:
        assert total == 0, total
        return dict.fromkeys(weights, 0)
    exact = {line: Fraction(total * weight, whole) for line, weight in weights.items()}
    found = {line: share.__floor__() for line, share in exact.items()}
    left = total - sum(found.values())
    by_remainder = sorted(exact, key=lambda line: found[line] - exact[line])
    for line in by_remainder[:left]:
        found[line] += 1
    return found
