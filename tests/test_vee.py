"""The VEE rules with numbers worked by hand. A slot of these meters is in Wh, a unit is 1 kWh."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting.enterprise import vee
from accounting.enterprise.registers import Change
from accounting.enterprise.slots import SLOTS
from accounting.enterprise.vee import RawDay, Terms, Validated

INTERVAL = Terms(register=False, unit=1_000, modulus=1_000_000_000)
REGISTER = Terms(register=True, unit=1_000, modulus=1_000_000_000)


def day(values: dict[int, int | None] | None = None, usual: int | None = 10_000) -> RawDay:
    """A day of one value in every slot but some."""
    row = [usual] * SLOTS
    for slot, value in (values or {}).items():
        row[slot] = value
    return RawDay(values=tuple(row))


def register(reads: dict[int, int]) -> list[RawDay]:
    """Readings by slot since the beginning of the first of three days."""
    rows = [[reads.get(number * SLOTS + slot) for slot in range(SLOTS)] for number in range(3)]
    return [RawDay(reads=tuple(row)) for row in rows]


def one(span: list[RawDay], target: int = 0, terms: Terms = INTERVAL, **more: Any) -> Validated:
    [made] = vee.validate(terms, span, [target], **more)
    return made


def told(made: Validated, *slots: int) -> list[tuple[int | None, str, str | None]]:
    return [(made.values[slot], made.quality[slot], made.rules.get(slot)) for slot in slots]


def test_a_whole_day_stays_as_it_was_sent() -> None:
    sent = tuple(range(10_000, 10_000 + SLOTS))
    made = one([RawDay(values=sent)])
    assert made.values == made.shown == sent
    assert (made.quality, dict(made.rules), made.total) == ("A" * SLOTS, {}, 964_560)


def test_a_short_gap_is_filled_on_a_line() -> None:
    # From 9,000 to 12,000 over three steps: 10,000 and 11,000 stand between.
    made = one([day({10: 9_000, 11: None, 12: None, 13: 12_000})])
    assert told(made, 10, 11, 12, 13) == [
        (9_000, "A", None),
        (10_000, "E", "V18"),
        (11_000, "E", "V18"),
        (12_000, "A", None),
    ]


def test_eight_slots_are_a_short_gap_and_nine_have_nothing_to_go_by() -> None:
    eight = one([day(dict.fromkeys(range(10, 18)))])
    assert (eight.quality[10:18], eight.rules[10]) == ("E" * 8, "V18")
    nine = one([day(dict.fromkeys(range(10, 19)))])
    assert (nine.quality[10:19], nine.rules[10], nine.values[10]) == ("M" * 9, "V20", None)


def test_a_long_gap_is_as_on_the_same_weekday_of_three_weeks_before() -> None:
    span = [day(usual=None) for _ in range(23)]
    # Of slot 20: 6,000, 9,000 and 12,000 in the weeks before, 9,000 on average.
    for number, value in ((0, 6_000), (7, 9_000), (14, 12_000)):
        span[number] = day(usual=value)
    span[20] = day()
    span[21] = day(dict.fromkeys(range(10, 30)))
    span[22] = day()
    assert told(one(span, 21), 9, 20, 30) == [
        (10_000, "A", None),
        (9_000, "E", "V19"),
        (10_000, "A", None),
    ]


def test_a_gap_of_more_than_a_week_and_an_open_end_stay_missing() -> None:
    span = [day() for _ in range(20)] + [day(usual=None)] * 7 + [day({0: None})] + [day()]
    # 7 days and one slot.
    assert one(span, 22).quality == "M" * SLOTS
    shorter = [*span[:-2], day(), day()]
    assert set(one(shorter, 22).quality) == {"E"}
    # A meter that fell silent and has not come back.
    assert one([day(), day(usual=None)], 1).quality == "M" * SLOTS


def test_what_cannot_be_is_estimated_and_stays_to_be_seen() -> None:
    # 40 kW x 1/4 h x 1.2 = 12,000 Wh is the most; 12,000 passes, 12,001 does not.
    terms = Terms(register=False, unit=1_000, modulus=10**9, ceiling=10_000)
    made = one([day({10: 12_000, 20: 12_001, 30: -1})], terms=terms)
    assert told(made, 10, 20, 30) == [
        (12_000, "A", None),
        (10_000, "E", "V11"),
        (10_000, "E", "V10"),
    ]
    assert (made.shown[20], made.shown[30]) == (12_001, -1)


def test_a_spike_is_to_be_reviewed_and_stands() -> None:
    # (28,001 - 10,000) / 10,000 > 1.8; at 28,000 it is 1.8.
    assert told(one([day({10: 28_001})]), 10) == [(28_001, "A", "V12")]
    assert told(one([day({10: 28_000})]), 10) == [(28_000, "A", None)]


def test_an_outlier_is_flagged_against_the_working_days_of_two_weeks() -> None:
    # Around 10,000: deviations 0 to 2,000, the median of them 1,000; 5 MAD are 5,000.
    usual = [8_000, 9_000, 10_000, 11_000, 12_000, 99, 99, 9_000, 11_000, 10_000, 10_000]
    span = [day({5: value}) for value in usual] + [day({5: 15_001})]
    # The span begins on a Monday, so the twelfth day is a Friday.
    assert told(one(span, 11), 5) == [(15_001, "A", "V13")]
    span[-1] = day({5: 15_000})
    assert told(one(span, 11), 5) == [(15_000, "A", None)]
    # Seven working days are no history, and a Saturday has none of its kind.
    assert told(one([*span[:9], day({5: 15_001})], 9), 5) == [(15_001, "A", None)]
    assert told(one([*span, day({5: 15_001})], 12), 5) == [(15_001, "A", None)]


def test_a_flat_day_and_zeros_in_a_shift_are_flagged() -> None:
    assert one([day()]).flags == ("V14",)
    terms = Terms(register=False, unit=1_000, modulus=10**9, shifts={3: frozenset(range(32, 68))})
    still = one([day(dict.fromkeys(range(30, 49), 0))], terms=terms, kinds=[3])
    # Of the zeros 32 to 48 are in the shift: 17, more than 16.
    assert [slot for slot, rule in still.rules.items() if rule == "V14"] == [*range(32, 49)]
    assert still.quality == "A" * SLOTS
    assert one([day(dict.fromkeys(range(30, 48), 0))], terms=terms, kinds=[3]).flags == ()
    assert one([day(dict.fromkeys(range(30, 49), 0))], terms=terms, kinds=[4]).flags == ()


def test_hours_are_split_and_nothing_is_lost() -> None:
    terms = Terms(register=False, unit=1_000, modulus=10**9, interval_slots=4)
    made = one([day({0: 10_003}, usual=None)], terms=terms)
    assert (made.values[:4], made.rules[0]) == ((2_500, 2_501, 2_501, 2_501), "V6")
    assert sum(value or 0 for value in made.values[:4]) == 10_003


def test_a_reading_off_its_slot_stands_in_the_nearest_free_one() -> None:
    row = RawDay(values=day({5: None}).values, off_values={5: 9_000, 6: 9_000})
    assert told(one([row]), 5, 6) == [(9_000, "A", "V4"), (10_000, "A", None)]


def test_a_register_is_read_by_its_differences() -> None:
    made = one(register({0: 100_000, 1: 101_000, 2: 101_500, 4: 104_500}), terms=REGISTER)
    # The third and fourth slot used 3,000 together: half each, by the register exactly.
    assert told(made, 0, 1, 2, 3, 4) == [
        (1_000, "A", None),
        (500, "A", None),
        (1_500, "E", "V18"),
        (1_500, "E", "V18"),
        (None, "M", "V20"),
    ]
    assert made.shown[:4] == (1_000, 500, None, None)


def test_a_register_rolls_over() -> None:
    # 999,999 kWh and then 2 kWh: 3 kWh were used.
    made = one(register({0: 999_998_000, 1: 999_999_000, 2: 2_000, 3: 3_000}), terms=REGISTER)
    assert told(made, 0, 1, 2) == [(1_000, "A", None), (3_000, "A", "V8"), (1_000, "A", None)]


def test_a_dip_is_held_and_not_counted_twice() -> None:
    made = one(register({0: 100_000, 1: 99_500, 2: 101_000}), terms=REGISTER)
    assert told(made, 0, 1) == [(0, "A", "V7"), (1_000, "A", None)]


def test_a_swapped_register_is_known_with_its_event_and_estimated_without() -> None:
    reads = {0: 500_000, 1: 501_000, 2: 502_000, 3: 40_000, 4: 41_000, 5: 42_000}
    # Old: 502,000 to 502,600. New: 39,700 to 40,000. In all 900.
    known = one(register(reads), terms=REGISTER, changes=[Change(3, 502_600, 39_700)])
    assert told(known, 2, 3) == [(900, "A", "V9"), (1_000, "A", None)]
    unknown = one(register(reads), terms=REGISTER)
    assert told(unknown, 1, 2, 3) == [(1_000, "A", None), (1_000, "E", "V9"), (1_000, "A", None)]


@pytest.mark.parametrize(("wrong", "rule"), [(0, "V9"), (900_000, "V12")])
def test_one_wrong_reading_of_a_register_is_passed_over(wrong: int, rule: str) -> None:
    reads = {slot: 500_000 + 1_000 * slot for slot in range(10)} | {4: wrong}
    made = one(register(reads), terms=REGISTER)
    # 503,000 to 505,000 over two slots, whatever the register said between them.
    assert [(value, quality) for value, quality, _ in told(made, 2, 3, 4, 5)] == [
        (1_000, "A"),
        (1_000, "E"),
        (1_000, "E"),
        (1_000, "A"),
    ]
    assert rule in made.flags


def test_a_day_read_at_its_ends_has_exactly_what_was_used() -> None:
    made = one(register({0: 100_000, 96: 107_001}), terms=REGISTER)
    assert (set(made.quality), set(made.rules.values())) == ({"E"}, {"V19"})
    assert made.total == 7_001


def test_a_register_beside_intervals_gives_the_gap_its_sum() -> None:
    row = day({11: None, 12: None}).values
    reads = tuple(100_000 if slot == 10 else 145_000 if slot == 14 else None for slot in range(96))
    made = one([RawDay(values=row, reads=reads)])
    # 45,000 from slot 10 to 13, less the two slots of 10,000 that are known: 25,000 for two.
    assert told(made, 11, 12) == [(12_500, "E", "V18"), (12_500, "E", "V18")]


def test_a_register_that_disagrees_flags_the_day_and_moves_nothing() -> None:
    reads = tuple(100_000 if slot == 10 else 145_000 if slot == 14 else None for slot in range(96))
    made = one([RawDay(values=day().values, reads=reads)])
    assert "V15" in made.flags
    assert made.values[10:14] == (10_000,) * 4


def test_an_edit_fills_what_is_missing_and_never_an_actual_unless_it_chooses_between_two() -> None:
    row = RawDay(
        values=day({5: None}).values,
        edits={5: (7_000, False), 6: (7_000, False), 7: (7_000, True)},
    )
    assert told(one([row]), 5, 6, 7) == [
        (7_000, "D", "V23"),
        (10_000, "A", None),
        (7_000, "D", "V3"),
    ]


@given(st.integers(0, 10**12), st.lists(st.integers(0, 10**9), min_size=1, max_size=96))
def test_parts_add_up(total: int, weights: list[int]) -> None:
    parts = vee.spread(total, weights)
    assert sum(parts) == total
    assert min(parts) >= 0


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.booleans())
def test_a_day_alone_and_among_others_is_the_same(seed: int, of_register: bool) -> None:
    """However many days are validated together, each comes out as by itself in its window."""
    chance = random.Random(seed)
    terms = REGISTER if of_register else INTERVAL
    count, span, shown = 60, [], 0
    for _ in range(count):
        row: list[int | None] = []
        keep = chance.choice((0.0, 0.9, 1.0, 1.0))
        for _ in range(SLOTS):
            shown += chance.randrange(2_000)
            value = shown if of_register else chance.randrange(-20, 30_000)
            row.append(value if chance.random() < keep else None)
        span.append(RawDay(reads=tuple(row)) if of_register else RawDay(values=tuple(row)))
    together = vee.validate(terms, span, range(count))
    target = chance.randrange(count)
    first, last = max(0, target - vee.BEFORE), min(count, target + vee.AFTER + 1)
    kinds = [day % 7 + 1 for day in range(first, last)]
    alone = one(span[first:last], target - first, terms, kinds=kinds)
    assert alone == together[target]
    assert all(
        (value is None) == (q == "M") for value, q in zip(alone.values, alone.quality, strict=True)
    )


def test_a_long_gap_on_a_holiday_is_as_on_the_sundays_before() -> None:
    # Three plain weeks and then a holiday, a Monday: Sundays have 2,000, 3,000 and 4,000.
    span = [day() for _ in range(21)] + [day(dict.fromkeys(range(10, 30))), day()]
    for number, value in ((6, 2_000), (13, 3_000), (20, 4_000)):
        span[number] = day(usual=value)
    plain = [number % 7 + 1 for number in range(23)]
    assert told(one(span, 21, kinds=plain), 20) == [(10_000, "E", "V19")]
    holiday = [*plain[:21], 7, *plain[22:]]
    assert told(one(span, 21, kinds=holiday), 20) == [(3_000, "E", "V19")]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.integers(1, 670), st.booleans())
def test_a_gap_between_two_readings_of_a_register_has_exactly_their_difference(
    seed: int, length: int, history: bool
) -> None:
    """Also after a rollover, also where the gap is longer than a day, slot by slot whole."""
    chance = random.Random(seed)
    days = 38
    shown, reads = chance.randrange(999_000_000, 10**9), []
    for _ in range(days * SLOTS):
        reads.append(shown % 10**9)
        shown += chance.randrange(3_000)
    start = chance.randrange(25 * SLOTS, (days - 8) * SLOTS)
    row: list[int | None] = list(reads)
    # Of readings `start` to `start + length` the first and last are known.
    row[start + 1 : start + length] = [None] * (length - 1)
    if not history:
        row[:start] = [None] * start
    span = [RawDay(reads=tuple(row[n * SLOTS : (n + 1) * SLOTS])) for n in range(days)]
    values = [value for made in vee.validate(REGISTER, span, range(days)) for value in made.values]
    used = (reads[start + length] - reads[start]) % 10**9
    assert sum(values[start : start + length]) == used
    assert all(value is not None and value >= 0 for value in values[start : start + length])


def test_a_week_of_a_register_is_the_same_by_itself_and_among_others() -> None:
    """Its first slots are shaped by days four weeks before the last day of the gap."""
    chance, shown, rows = random.Random(4), 0, []
    for number in range(45):
        row: list[int | None] = []
        for _ in range(SLOTS):
            row.append(None if 33 <= number < 39 else shown)
            shown += chance.randrange(1, 2_000)
        rows.append(RawDay(reads=tuple(row)))
    together = vee.validate(REGISTER, rows, range(45))
    for target in (33, 36, 38):
        first = target - vee.BEFORE
        kinds = [number % 7 + 1 for number in range(first, target + vee.AFTER + 1)]
        alone = one(rows[first : target + vee.AFTER + 1], vee.BEFORE, REGISTER, kinds=kinds)
        assert alone == together[target]
