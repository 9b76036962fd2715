"""Which slots of whole days stand out: rules V12 and V13 over many days at once, pure.

Days are rows of 96 integers (64 bits) with `MISSING` where nothing is known. Everything stays in
integers, doubled where a median may lie between two of them, so nothing is ever rounded.
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from accounting.enterprise.slots import SLOTS

Amounts = npt.NDArray[np.int64]

# No quantity comes near; four times a quantity still has room in 64 bits.
AMOUNT_MAX = 2**56
MISSING = -(2**62)
# Sorted behind everything known.
_LAST = 2**62
_SUM_MAX = 2**59

HISTORY_DAYS = 14
HISTORY_MIN = 8
SPIKE = Fraction(18, 10)
MAD_MAX = 5


def amounts(row: Sequence[int | None]) -> Amounts:
    """Quantities as an array, `MISSING` for None."""
    return np.array([MISSING if one is None else one for one in row], dtype=np.int64)


def spikes(days: Amounts, unit: int) -> list[tuple[int, int]]:
    """V12: day and slot of a day's highest value, where it is far above the third highest."""
    ordered = np.sort(days, axis=1)
    third, most = ordered[:, -3], ordered[:, -1]
    enough = (days != MISSING).sum(axis=1) >= HISTORY_MIN
    away = SPIKE.denominator * (most - third) > SPIKE.numerator * third
    found = np.flatnonzero(enough & (most > unit) & (third > 0) & away)
    return [(day, int(days[day].argmax())) for day in found.tolist()]


def outliers(
    days: Amounts, targets: Sequence[int], resting: Sequence[bool], unit: int
) -> list[tuple[int, int]]:
    """V13: day and slot of values far from the median of the slot on days of their kind before.

    A Sunday is no outlier among working days; of its own kind two weeks hold too few.
    """
    histories = {
        target: [
            day
            for day in range(max(0, target - HISTORY_DAYS), target)
            if resting[day] == resting[target]
        ]
        for target in targets
    }
    judged = [target for target in targets if len(histories[target]) >= HISTORY_MIN]
    if not judged:
        return []
    most = max(len(histories[target]) for target in judged)
    # A row behind the last stands for the days a shorter history does not have.
    rows = np.vstack([days, np.full((1, SLOTS), MISSING, dtype=np.int64)])
    places = [
        histories[target] + [len(days)] * (most - len(histories[target])) for target in judged
    ]
    values = rows[judged]
    # The history of each slot lies side by side, known ones first when sorted.
    history = rows[places].transpose(0, 2, 1).copy()
    history[history == MISSING] = _LAST
    history.sort(axis=2)
    known = (history != _LAST).sum(axis=2)
    middle = _doubled_median(history, known)
    away = np.abs(2 * values - middle)
    odd = (values != MISSING) & (known >= HISTORY_MIN) & (away > 2 * unit)
    if not odd.any():
        return []
    # Most values are near: the deviation is only worth its sorting for those that are not.
    history, known = history[odd], known[odd]
    deviations = np.abs(2 * history - middle[odd][:, None])
    deviations[history == _LAST] = _LAST
    deviations.sort(axis=1)
    # Four times the deviation, against four times the distance.
    deviation = _doubled_median(deviations, known)
    far = (deviation > 0) & (MAD_MAX * deviation < 2 * away[odd])
    where = np.argwhere(odd)[far].tolist()
    return [(judged[number], slot) for number, slot in where]


def _doubled_median(ordered: Amounts, known: npt.NDArray[np.intp]) -> Amounts:
    """Twice the median of the first `known` along the last axis; of none something to ignore."""
    below = np.take_along_axis(ordered, (np.maximum(known - 1, 0) // 2)[..., None], axis=-1)
    above = np.take_along_axis(ordered, (np.maximum(known, 1) // 2)[..., None], axis=-1)
    # Where too few are known nothing is judged, but two of `_LAST` would not fit.
    doubled: Amounts = (np.minimum(below, _SUM_MAX) + np.minimum(above, _SUM_MAX))[..., 0]
    return doubled
