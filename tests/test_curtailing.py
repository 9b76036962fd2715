"""The choice of lines to stop: by hand, against trying everything, with two hundred lines."""

import random
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from fractions import Fraction
from itertools import chain, combinations

import pytest

from accounting.enterprise import curtailment, expecting
from accounting.enterprise.curtailment import Choice, Load, Reason
from accounting.enterprise.expecting import Basis, Expected
from accounting.enterprise.slots import SLOTS

KW = 1_000
# Not how long it takes, but how long it may take on a machine that does ten other things.
PATIENCE_S = 60


def names(choice: Choice) -> set[str]:
    return {one.node for one in choice.stopped}


def test_the_sun_covers_what_it_can_and_the_rest_costs_least() -> None:
    # 1,000 kW, of which 300 come from the roof: 700 are left.
    lines = [
        Load("spinning", 500 * KW, 90_000, 250_000),
        Load("weaving", 400 * KW, 60_000, 200_000),
        Load("dyeing", 300 * KW, 50_000, 150_000),
        Load("packing", 250 * KW, 20_000, 125_000),
    ]
    choice = curtailment.choose(lines, 1_000 * KW, 300 * KW)
    # weaving + dyeing = 700 kW for 1,100.00 yuan; spinning + packing = 750 kW for the same; all
    # other pairs of 700 kW lose more; weaving + dyeing + packing loses more too. Of the two pairs
    # both stop two lines, and spinning + packing avoids 375 g against 350 g.
    assert names(choice) == {"spinning", "packing"}
    assert (choice.covered_by_pv, choice.shortfall, choice.gap_fen) == (300 * KW, 0, 0)
    assert choice.reasons["weaving"] is Reason.NOT_NEEDED


def test_flexible_loads_stop_before_lines_however_cheap_these_are() -> None:
    lines = [
        Load("cheap line", 500 * KW, 10),
        Load("charging", 300 * KW, 5_000, flexible=True),
        Load("cooling", 400 * KW, 7_000, flexible=True),
    ]
    # 400 kW: cooling alone loses 70 yuan, both 120.
    assert names(curtailment.choose(lines, 400 * KW)) == {"cooling"}
    # 800 kW need the line: 500 of it, so 300 of the flexible ones suffice.
    assert names(curtailment.choose(lines, 800 * KW)) == {"cheap line", "charging"}


def test_nothing_is_stopped_that_is_not_needed_even_where_it_costs_nothing() -> None:
    lines = [Load(name, 100 * KW, 0, avoided_mg=5) for name in "abc"]
    choice = curtailment.choose(lines, 150 * KW)
    assert len(choice.stopped) == 2
    assert curtailment.choose(lines, 50 * KW, 50 * KW).stopped == ()


def test_what_must_run_keeps_what_is_above_and_below_it_running() -> None:
    lines = [
        Load("shop", 10 * KW),
        Load("furnace", 500 * KW, above="shop", must_run=True),
        Load("fan", 50 * KW, above="furnace"),
        Load("press", 200 * KW, above="shop"),
    ]
    choice = curtailment.choose(lines, 300 * KW)
    assert names(choice) == {"press"}
    assert choice.shortfall == 100 * KW
    assert choice.reasons == {
        "shop": Reason.RUNS_BELOW,
        "furnace": Reason.MUST_RUN,
        "fan": Reason.MUST_RUN,
        "press": Reason.STOPPED,
    }


def test_a_workshop_stops_only_with_everything_below_it() -> None:
    lines = [
        Load("shop", 60 * KW, 0),
        Load("left", 100 * KW, 900, above="shop"),
        Load("right", 100 * KW, 900, above="shop"),
        Load("dear", 150 * KW, 2_000),
    ]
    # The lights of the shop are free, but only when both lines stand: 18.00 against dear's 20.00.
    assert names(curtailment.choose(lines, 120 * KW)) == {"left", "right"}
    assert names(curtailment.choose(lines, 250 * KW)) == {"left", "right", "shop"}


def test_a_line_that_says_nothing_is_not_offered_and_one_that_stands_is_no_obstacle() -> None:
    lines = [
        Load("shop", 60 * KW, 0),
        Load("standing", 0, above="shop"),
        Load("yard", 80 * KW, 0),
        Load("silent", None, above="yard"),
    ]
    choice = curtailment.choose(lines, 500 * KW)
    assert names(choice) == {"shop"}
    assert choice.shortfall == 440 * KW
    assert choice.reasons["silent"] is Reason.NO_READINGS
    assert choice.reasons["yard"] is Reason.RUNS_BELOW
    assert choice.reasons["standing"] is Reason.NOT_RUNNING


def plant(seed: int, count: int) -> list[Load]:
    """Loads of a small plant: trees, must-run and flexible loads, prices close together."""
    chance = random.Random(seed)
    loads: list[Load] = []
    for number in range(count):
        watts = chance.choice([0, chance.randint(1, 20), chance.randint(1, 20) * 10])
        loads.append(
            Load(
                f"n{number}",
                None if chance.random() < 0.05 else watts,
                watts * chance.randint(0, 4) + chance.choice([0, 0, 7]) if watts else 0,
                watts * chance.randint(1, 3),
                above=f"n{chance.randrange(number)}" if number and chance.random() < 0.5 else None,
                must_run=chance.random() < 0.08,
                flexible=chance.random() < 0.3,
            )
        )
    return loads


def subsets(of: Sequence[Load]) -> Iterator[tuple[Load, ...]]:
    return chain.from_iterable(combinations(of, size) for size in range(len(of) + 1))


def above(one: Load, loads: Sequence[Load]) -> list[Load]:
    """Those above a load, found the slow way."""
    found: list[Load] = []
    while one.above is not None:
        [one] = [other for other in loads if other.node == one.above]
        found.append(one)
    return found


def worth(chosen: Iterable[Load]) -> tuple[int, int, int]:
    those = list(chosen)
    return (
        sum(one.lost_fen for one in those),
        len(those),
        -sum(one.avoided_mg for one in those),
    )


def by_trying(loads: Sequence[Load], rest: int) -> tuple[tuple[int, int, int], ...]:
    """The best (others, flexible) there is: every subset of what may stop is tried."""
    must = [one for one in loads if one.must_run or any(up.must_run for up in above(one, loads))]
    stuck = [*must, *(one for one in loads if one.watts is None)]
    kept = {one.node for one in stuck} | {up.node for one in stuck for up in above(one, loads)}
    may = [one for one in loads if one.node not in kept and one.watts]

    def closed(chosen: tuple[Load, ...], among: Sequence[Load]) -> bool:
        return all(one in chosen for one in among if any(up in chosen for up in above(one, loads)))

    def watts(chosen: Iterable[Load]) -> int:
        return sum(one.watts or 0 for one in chosen)

    others = [
        one
        for one in may
        if not one.flexible or any(not low.flexible and one in above(low, loads) for low in may)
    ]
    flexible = [one for one in may if one not in others]
    if watts(may) <= rest:
        return worth(others), worth(flexible)
    if watts(flexible) >= rest:
        return worth(()), min(
            worth(some)
            for some in subsets(flexible)
            if watts(some) >= rest and closed(some, flexible)
        )
    first = min(
        (worth(some), index)
        for index, some in enumerate(subsets(others))
        if watts(some) + watts(flexible) >= rest and closed(some, others)
    )
    best = [
        some
        for some in subsets(others)
        if worth(some) == first[0]
        and watts(some) + watts(flexible) >= rest
        and closed(some, others)
    ]
    return first[0], min(
        worth(some)
        for chosen in best
        for some in subsets(flexible)
        if watts(some) + watts(chosen) >= rest and closed((*chosen, *some), flexible)
    )


@pytest.mark.parametrize("seed", range(60))
def test_no_other_choice_is_better(seed: int) -> None:
    chance = random.Random(1_000 + seed)
    loads = plant(seed, chance.randint(1, 9))
    whole = sum(one.watts or 0 for one in loads)
    need = chance.randint(1, max(2, whole))
    generation = chance.choice([0, need // 4])
    choice = curtailment.choose(loads, need, generation, seconds=PATIENCE_S)
    assert choice.gap_fen == 0
    stopped = sum(one.watts or 0 for one in choice.stopped)
    assert choice.covered_by_pv == generation
    assert choice.shortfall == max(0, need - generation - stopped)
    names_of_stiff = _stiff(loads, choice)
    others = [one for one in choice.stopped if one.node in names_of_stiff]
    flexible = [one for one in choice.stopped if one.node not in names_of_stiff]
    first, second = by_trying(loads, need - generation)
    assert worth(others) == first
    # Of two choices of lines that are worth the same, either may let fewer flexible loads run.
    assert worth(flexible) >= second
    if len(others) == 0 or choice.shortfall:
        assert worth(flexible) == second
    for one in loads:
        if any(up in choice.stopped for up in above(one, loads)) and one.watts:
            assert one in choice.stopped


def _stiff(loads: Sequence[Load], choice: Choice) -> set[str]:
    """The lines, and flexible loads above a line that could stop."""
    may = [
        one
        for one in loads
        if one.watts and choice.reasons[one.node] in (Reason.STOPPED, Reason.NOT_NEEDED)
    ]
    lines = [one for one in may if not one.flexible]
    return {one.node for one in lines} | {up.node for one in lines for up in above(one, loads)}


def big(seed: int, count: int, price: str) -> list[Load]:
    """Two hundred lines of a real size; `price` says how value and power hang together."""
    chance = random.Random(seed)
    loads = []
    for number in range(count):
        watts = chance.randint(20_000, 400_000)
        fen = {
            "any": chance.randint(1_000, 900_000),
            "alike": watts * 3 // 10 + 50_000,
            "same": 40_000,
        }[price]
        loads.append(
            Load(
                f"l{number}",
                watts,
                fen,
                watts * chance.randint(900, 1_100),
                above=f"l{number // 8 * 8}" if number % 8 else None,
                must_run=number % 37 == 36,
                flexible=number % 11 == 10,
            )
        )
    return loads


@pytest.mark.parametrize(
    ("price", "gap_fen", "seconds"),
    # Where all lose the same fen for a watt, the last fen can take hours: a yuan is near enough.
    [("any", 0, PATIENCE_S), ("same", 0, PATIENCE_S), ("alike", 100, 3)],
)
def test_two_hundred_lines_are_chosen_from(price: str, gap_fen: int, seconds: float) -> None:
    loads = big(7, 200, price)
    choice = curtailment.choose(loads, 9_000_000, 1_600_000, seconds=seconds)
    assert choice.gap_fen <= gap_fen
    assert choice.shortfall == 0
    stopped = sum(one.watts or 0 for one in choice.stopped)
    assert stopped >= 7_400_000
    # No line that stands could run again and leave enough.
    for one in choice.stopped:
        held = any(up in choice.stopped for up in above(one, loads))
        assert held or stopped - (one.watts or 0) < 7_400_000


def test_a_choice_that_had_no_time_is_still_one_and_says_how_far_off_it_may_be() -> None:
    loads = big(7, 200, "alike")
    choice = curtailment.choose(loads, 9_000_000, 1_600_000, seconds=0)
    best = curtailment.choose(loads, 9_000_000, 1_600_000, seconds=3)
    lost = sum(one.lost_fen for one in choice.stopped)
    assert sum(one.watts or 0 for one in choice.stopped) >= 7_400_000
    assert lost - choice.gap_fen <= sum(one.lost_fen for one in best.stopped)


def test_a_holiday_is_expected_like_a_sunday() -> None:
    """1 October 2026 is a Thursday; Sunday 20 September was worked on, in exchange."""
    drawn = {date(2026, 9, 24): 100, date(2026, 9, 20): 90, date(2026, 9, 13): 40}
    known = {day: (wh, *[None] * (SLOTS - 1)) for day, wh in drawn.items()}
    assert expecting.expected([(date(2026, 10, 1), 0)], known) == Expected(
        (Fraction(40),), Basis.SAME_WEEKDAY
    )
