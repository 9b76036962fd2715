"""Which lines to stop when a plant must draw less: the exact best choice. Pure.

Powers are integers in W, money in fen, CO2e in mg. What the order asks is covered in this order:

1. the plant's own generation;
2. flexible loads, and nothing else as long as they suffice;
3. other loads.

Among loads of one kind the choice loses the least value; of two that lose the same it stops fewer
loads, and of those it avoids the most CO2e. So nothing is stopped that is not needed. A load stops
only with everything below it, and never where something must run.

The choice is a knapsack turned around (cover the need at the least cost) with precedences, solved
by branch and bound in HiGHS. Coefficients are integers, so a gap below one proves the best. Where
time ends before, the answer says how far from the best it can be.
"""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, takewhile
from math import ceil

from accounting.enterprise import trees

# HiGHS computes with doubles, in which integers below this are exact.
SUM_MAX = 2**53
# Who asks waits so long at most. Lines that all lose alike can take for ever to tell apart to the
# fen; the answer then says how many fen a better choice could lose less at most.
SECONDS_MAX = 0.9
# What one aim may take of the time that is left, and never less.
_PATIENCE, _MOMENT_S = 0.6, 0.02
# Half of the smallest difference there is between two sums of integers.
_HALF = 0.5

_Chains = Mapping[str, tuple[str, ...]]


class Reason(StrEnum):
    """Why a load is stopped or not."""

    STOPPED = "stopped"
    NOT_NEEDED = "not_needed"
    MUST_RUN = "must_run"
    RUNS_BELOW = "runs_below"
    NOT_RUNNING = "not_running"
    NO_READINGS = "no_readings"


@dataclass(frozen=True, slots=True)
class Load:
    """What stopping a node does, without what is below it.

    `watts` is its mean draw in the window, None where no reading tells; `lost_fen` the value lost
    until it may start again, restart included. `above` is the node it hangs under.
    """

    node: str
    watts: int | None
    lost_fen: int = 0
    avoided_mg: int = 0
    above: str | None = None
    must_run: bool = False
    flexible: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """The loads to stop, in the order they were given, and why each other is not.

    No choice loses less by more than `gap_fen`: 0 is the proven best.
    """

    stopped: tuple[Load, ...]
    covered_by_pv: int
    shortfall: int
    reasons: Mapping[str, Reason]
    gap_fen: int


@dataclass(frozen=True, slots=True)
class _Solved:
    chosen: frozenset[str]
    gap: int = 0


def choose(
    loads: Sequence[Load], need: int, generation: int = 0, *, seconds: float = SECONDS_MAX
) -> Choice:
    """Cover `need` W with the plant's own generation and the loads that cost the least."""
    assert need > 0 <= generation, (need, generation)
    covered = min(need, generation)
    rest = need - covered
    for name in ("watts", "lost_fen", "avoided_mg"):
        assert sum(getattr(one, name) or 0 for one in loads) < SUM_MAX, name
    chains = _chains(loads)
    barred = _barred(loads, chains)
    running = [one for one in loads if one.node not in barred and one.watts]
    solved = _cover(running, rest, chains, time.monotonic() + seconds)
    stopped = tuple(one for one in running if one.node in solved.chosen)
    reasons = {
        one.node: barred.get(one.node)
        or (Reason.STOPPED if one.node in solved.chosen else Reason.NOT_NEEDED)
        for one in loads
    }
    shortfall = max(0, rest - _watts(stopped))
    return Choice(stopped, covered, shortfall, reasons, solved.gap)


def _cover(running: Sequence[Load], rest: int, chains: _Chains, deadline: float) -> _Solved:
    """The nodes to stop for `rest` W: flexible loads first."""
    if rest <= 0:
        return _Solved(frozenset())
    stiff = {one.node for one in running if not one.flexible}
    # A flexible load above one that is not cannot stop before it: it counts with the others.
    stiff |= {above for name in stiff for above in chains[name]}
    flexible = [one for one in running if one.node not in stiff]
    others = [one for one in running if one.node in stiff]
    if _watts(flexible) >= rest:
        return _solve(flexible, rest, chains, deadline)
    first = _solve(others, rest - _watts(flexible), chains, deadline)
    stopped = [one for one in others if one.node in first.chosen]
    # What stops takes everything below it along, flexible or not.
    forced = {one.node for one in flexible if not first.chosen.isdisjoint(chains[one.node])}
    second = _solve(flexible, rest - _watts(stopped), chains, deadline, forced)
    return _Solved(first.chosen | second.chosen, first.gap + second.gap)


def _solve(
    items: Sequence[Load],
    need: int,
    chains: _Chains,
    deadline: float,
    forced: Collection[str] = (),
) -> _Solved:
    """The subset that covers `need` and loses least; all of them where that is not enough."""
    if need <= 0 and not forced:
        return _Solved(frozenset())
    everything = _Solved(frozenset(one.node for one in items))
    if _watts(items) <= need:
        return everything
    program, solved = _Program(items, need, chains, forced), everything
    most = max(one.avoided_mg for one in items)
    aims = (
        [one.lost_fen for one in items],
        [1] * len(items),
        [most - one.avoided_mg for one in items],
    )
    gap = 0
    # One aim after the other, each among the best of those before.
    for aim in aims:
        if any(aim):
            limit = max(_MOMENT_S, _PATIENCE * (deadline - time.monotonic()))
            solved = program.least(aim, solved, limit)
            gap = solved.gap if aim is aims[0] else gap
        if solved.gap:
            break
    return _Solved(_needed(items, solved.chosen, need, chains, forced), gap)


def _needed(
    items: Sequence[Load],
    chosen: frozenset[str],
    need: int,
    chains: _Chains,
    forced: Collection[str],
) -> frozenset[str]:
    """The choice without what it can do without: time may have ended before that was all gone."""
    left = {one.node: one for one in items if one.node in chosen}
    for one in sorted(left.values(), key=lambda one: (-one.lost_fen, one.watts or 0)):
        held = one.node in forced or not left.keys().isdisjoint(chains[one.node])
        if not held and _watts(left.values()) - (one.watts or 0) >= need:
            del left[one.node]
    return frozenset(left)


class _Program:
    """A binary program over the loads; each aim that was reached stays a bound for the next."""

    def __init__(
        self,
        items: Sequence[Load],
        need: int,
        chains: _Chains,
        forced: Collection[str],
    ) -> None:
        self._items = items
        self._need = need
        place = {one.node: number for number, one in enumerate(items)}
        # (coefficients by place, at least, at most)
        self._rows: list[tuple[dict[int, int], float | None, float | None]] = []
        if need > 0:
            # More than the need in one load helps no more than the need itself.
            weights = {number: min(one.watts or 0, need) for number, one in enumerate(items)}
            self._rows.append((weights, need - _HALF, None))
            # No fewer loads cover it than of the largest ones: without this the bound is weak where
            # all lines lose alike and each costs something to start again.
            least = _fewest(weights.values(), need)
            self._rows.append((dict.fromkeys(weights, 1), least - _HALF, None))
        for one in items:
            parent = next((name for name in chains[one.node] if name in place), None)
            if parent is not None:
                self._rows.append(({place[parent]: 1, place[one.node]: -1}, None, 0.0))
        self._forced = {place[name] for name in forced}

    def least(self, aim: Sequence[int], before: _Solved, limit_s: float) -> _Solved:
        """The choice with the least sum of `aim`, which later aims may not exceed."""
        values, bound = self._run(aim, limit_s)
        chosen = before.chosen
        if values is not None:
            chosen = frozenset(
                one.node for one, value in zip(self._items, values, strict=True) if value > _HALF
            )
        total = sum(cost for one, cost in zip(self._items, aim, strict=True) if one.node in chosen)
        watts = _watts(one for one in self._items if one.node in chosen)
        assert watts >= self._need, "the solver's choice covers the need in whole watts"
        self._rows.append((dict(enumerate(aim)), None, total + _HALF))
        # Sums are whole numbers: of a bound only the next whole one can be reached.
        return _Solved(chosen, max(0, total - ceil(bound - _HALF)))

    def _run(self, aim: Sequence[int], limit_s: float) -> tuple[Sequence[float] | None, float]:
        """The values of the best choice found, and what no choice can be below."""
        # Imported by who asks: it brings NumPy and a solver into a process.
        import highspy

        solver = highspy.Highs()  # type: ignore[no-untyped-call]
        for name, setting in (
            ("output_flag", False),
            ("threads", 1),
            ("random_seed", 0),
            ("time_limit", limit_s),
            ("mip_rel_gap", 0.0),
            ("mip_abs_gap", _HALF),
            ("mip_feasibility_tolerance", 1e-9),
        ):
            solver.setOptionValue(name, setting)
        for number, cost in enumerate(aim):
            solver.addVar(1.0 if number in self._forced else 0.0, 1.0)
            solver.changeColCost(number, float(cost))
            solver.changeColIntegrality(number, highspy.HighsVarType.kInteger)
        for coefficients, least, most in self._rows:
            there = {number: value for number, value in coefficients.items() if value}
            solver.addRow(
                -highspy.kHighsInf if least is None else least,
                highspy.kHighsInf if most is None else most,
                len(there),
                list(there),
                [float(value) for value in there.values()],
            )
        solver.run()
        told = solver.getInfo()
        found = told.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
        # Nothing costs less than nothing, whatever the solver had no time to say.
        bound = max(0.0, told.mip_dual_bound)
        return (solver.getSolution().col_value if found else None), bound


def _barred(loads: Sequence[Load], chains: _Chains) -> dict[str, Reason]:
    """What cannot be chosen at all, and why."""
    kept = {one.node for one in loads if one.must_run}
    barred: dict[str, Reason] = {}
    for one in loads:
        if one.must_run or not kept.isdisjoint(chains[one.node]):
            barred[one.node] = Reason.MUST_RUN
        elif one.watts is None:
            barred[one.node] = Reason.NO_READINGS
        elif one.watts == 0:
            barred[one.node] = Reason.NOT_RUNNING
    # What is not running is stopped already; what must run or is unknown keeps all above it on.
    for name in [name for name, why in barred.items() if why is not Reason.NOT_RUNNING]:
        for above in chains[name]:
            if barred.get(above) in (None, Reason.NOT_RUNNING):
                barred[above] = Reason.RUNS_BELOW
    return barred


def _chains(loads: Iterable[Load]) -> _Chains:
    """Of each load the nodes above it, nearest first."""
    above = {one.node: one.above for one in loads}
    return {name: tuple(trees.above(name, above)) for name in above}


def _fewest(weights: Iterable[int], need: int) -> int:
    """How many of the largest weights it takes to cover the need."""
    reached = accumulate(sorted(weights, reverse=True))
    return 1 + sum(1 for _ in takewhile(lambda sum_: sum_ < need, reached))


def _watts(loads: Iterable[Load]) -> int:
    return sum(one.watts or 0 for one in loads)
