"""What a resident can do to reach the next grade, from what he does anyway. Pure.

Doing more of one behaviour raises the raw total and with it what every behaviour may count, so more
always counts at least as much, and the least number of times is found by halving.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from accounting.grading import Policy
from footprint.summaries import Row

# What takes more than this is no advice.
TIMES_MAX = 400
ADVICE_MAX = 3


@dataclass(frozen=True, slots=True)
class Advice:
    """`times` more of a behaviour, each of them worth what one was worth on average until now."""

    behaviour: str
    times: int
    each_mg: int


def advise(
    policy: Policy,
    by_behaviour: Mapping[str, int],
    rows: Iterable[Row],
    goal_mg: int,
    allowed: Iterable[str],
) -> list[Advice]:
    """The behaviours that reach `goal_mg` alone, those first that the resident does most.

    `rows` are the months graded; `allowed` the behaviours somebody can still do more of.
    """
    done: dict[str, tuple[int, int]] = {}
    for row in rows:
        if policy.counts(row.evidence, bank_grade=row.bank_grade):
            mg, count = done.get(row.behaviour, (0, 0))
            done[row.behaviour] = (mg + row.mg, count + row.count)
    found = []
    for code in set(allowed) & done.keys():
        mg, count = done[code]
        each = mg // count if count > 0 else 0
        times = _times(policy, by_behaviour, code, each, goal_mg)
        if times is not None:
            # In units of what is done in the months looked at: the smaller, the easier.
            found.append((times / count, Advice(code, times, each)))
    found.sort(key=lambda one: (one[0], one[1].behaviour))
    return [advice for _, advice in found[:ADVICE_MAX]]


def _times(
    policy: Policy, by_behaviour: Mapping[str, int], code: str, each_mg: int, goal_mg: int
) -> int | None:
    def reached(times: int) -> bool:
        more = {**by_behaviour, code: by_behaviour.get(code, 0) + times * each_mg}
        return sum(policy.counted(more).values()) >= goal_mg

    if each_mg <= 0 or not reached(TIMES_MAX):
        return None
    low, high = 0, TIMES_MAX
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
