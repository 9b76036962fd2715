"""A plant's year with seeded faults whose truth is known: what VEE finds, and how far it is off.

Every quarter hour of 2025, a profile by kind of day and hour with noise. Pure: nothing is stored.
`python -m bench.plant_year` sends such a year through the door.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta

from accounting.enterprise import vee, workdays
from accounting.enterprise.registers import Change
from accounting.enterprise.slots import SLOTS
from accounting.enterprise.vee import RawDay, Terms, Validated

FIRST, DAYS = date(2025, 1, 1), 365
KINDS = [workdays.kind_of(FIRST + timedelta(days=day)) for day in range(DAYS)]
UNIT = 1_000
MODULUS = 1_000_000 * UNIT
INTERVALS = Terms(register=False, unit=UNIT, modulus=MODULUS, ceiling=100_000)
REGISTERS = Terms(register=True, unit=UNIT, modulus=MODULUS, ceiling=100_000)
Slots = list[int | None]


@dataclass
class Faulty:
    """A meter's year as it was and as it was sent; `seeded` says what was done to which slots."""

    terms: Terms
    truth: list[int]
    sent: Slots
    seeded: dict[str, list[range]] = field(default_factory=lambda: defaultdict(list))
    changes: list[Change] = field(default_factory=list)

    def days(self) -> list[RawDay]:
        rows = [tuple(self.sent[place : place + SLOTS]) for place in range(0, DAYS * SLOTS, SLOTS)]
        if self.terms.register:
            return [RawDay(reads=row) for row in rows]
        return [RawDay(values=row) for row in rows]

    def validated(self) -> list[Validated]:
        return vee.validate(self.terms, self.days(), range(DAYS), kinds=KINDS, changes=self.changes)


def truth_of(chance: random.Random) -> list[int]:
    """Wh by slot: a base, a shift on weekdays, some noise."""
    base, work = chance.randrange(2_000, 8_000), chance.randrange(8_000, 60_000)
    made = []
    for day in range(DAYS):
        kind = KINDS[day]
        for slot in range(SLOTS):
            busy = 28 <= slot < 80 and (kind <= 5 or (kind == 6 and slot < 48))
            level = base + (work if busy else 0)
            made.append(int(level * chance.uniform(0.93, 1.07)))
    return made


def interval_meter(chance: random.Random) -> Faulty:
    """Spikes, dropouts of some hours and of days, negative values."""
    truth = truth_of(chance)
    meter = Faulty(INTERVALS, truth, list(truth))
    for _ in range(6):
        slot = chance.randrange(SLOTS, len(truth) - SLOTS)
        meter.sent[slot] = max(truth[slot] * 30, 300_000)
        meter.seeded["impossible"].append(range(slot, slot + 1))
    for _ in range(6):
        slot = chance.randrange(SLOTS, len(truth) - SLOTS)
        meter.sent[slot] = truth[slot] * 3
        meter.seeded["triple"].append(range(slot, slot + 1))
    for _ in range(3):
        slot = chance.randrange(SLOTS, len(truth) - SLOTS)
        meter.sent[slot] = -truth[slot]
        meter.seeded["negative"].append(range(slot, slot + 1))
    drop_out(meter, chance)
    return meter


def register_meter(chance: random.Random) -> Faulty:
    """A register that rolls over, is swapped, drops to zero once, and is silent at times."""
    truth = truth_of(chance)
    shown = MODULUS - sum(truth[: chance.randrange(30, 200) * SLOTS]) - 500
    reads: Slots = []
    swap = chance.randrange(210, 350) * SLOTS + 40
    meter = Faulty(REGISTERS, truth, reads)
    for slot, used in enumerate(truth):
        if slot == swap:
            meter.changes.append(Change(slot, shown, 12_000))
            meter.seeded["swapped"].append(range(slot - 1, slot))
            shown = 12_000
        reads.append(shown)
        shown += used
        if shown >= MODULUS:
            shown -= MODULUS
            meter.seeded["rollover"].append(range(slot, slot + 1))
    drop_out(meter, chance)
    taken = {one for gaps in meter.seeded.values() for gap in gaps for one in gap}
    for _ in range(3):
        slot = chance.randrange(SLOTS, len(truth) - SLOTS)
        if taken.isdisjoint(range(slot - 8, slot + 8)):
            reads[slot] = 0
            meter.seeded["zero reading"].append(range(slot - 1, slot + 1))
    return meter


def drop_out(meter: Faulty, chance: random.Random) -> None:
    lengths = [
        *(chance.randrange(1, 9) for _ in range(20)),
        *(chance.randrange(9, 673) for _ in "12"),
    ]
    lengths.append(chance.randrange(700, 1_200))
    taken: set[int] = {one for gaps in meter.seeded.values() for gap in gaps for one in gap}
    for length in lengths:
        start = chance.randrange(25 * SLOTS, len(meter.sent) - 1_300)
        gap = range(start, start + length)
        if not taken.isdisjoint(range(start - SLOTS, start + length + SLOTS)):
            continue
        taken |= set(gap)
        name = "up to 2 h" if length <= 8 else "up to 7 days" if length <= 672 else "longer"
        for slot in gap:
            meter.sent[slot] = None
        # A register loses the slots at both ends of its missing readings.
        lost = range(start - 1, start + length) if meter.terms.register else gap
        meter.seeded[name].append(lost)


FOUND = {
    "impossible": {"V11"},
    "triple": {"V12", "V13", "V11"},
    "negative": {"V10"},
    "rollover": {"V8"},
    "swapped": {"V9"},
    "zero reading": {"V9"},
    "up to 2 h": {"V18", "V19"},
    "up to 7 days": {"V19"},
    "longer": {"V20"},
}


@dataclass
class Score:
    """What was seeded and found, and estimates against the truth, by kind of fault."""

    seeded: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    slots: Counter[str] = field(default_factory=Counter)
    off: Counter[str] = field(default_factory=Counter)
    true: Counter[str] = field(default_factory=Counter)
    bias: Counter[str] = field(default_factory=Counter)
    false_alarms: Counter[str] = field(default_factory=Counter)
    zeros: int = 0
    all_slots: int = 0


def score(meter: Faulty, days: Sequence[Validated], told: Score) -> None:
    touched: set[int] = set()
    for name, gaps in meter.seeded.items():
        for gap in gaps:
            touched |= set(gap)
            told.seeded[name] += 1
            rules = {rule_of(days, slot) for slot in gap}
            if name == "zero reading":
                # The slots show how they were estimated, the day that a reading was passed over.
                rules.update(*(days[slot // SLOTS].flags for slot in gap))
            told.found[name] += not rules.isdisjoint(FOUND[name])
            for slot in gap:
                made = days[slot // SLOTS].values[slot % SLOTS]
                if days[slot // SLOTS].quality[slot % SLOTS] == "E" and made is not None:
                    told.slots[name] += 1
                    told.off[name] += abs(made - meter.truth[slot])
                    told.true[name] += meter.truth[slot]
                    told.bias[name] += made - meter.truth[slot]
                    told.zeros += made == 0
    for number, day in enumerate(days):
        told.all_slots += SLOTS
        for slot, rule in day.rules.items():
            if number * SLOTS + slot not in touched:
                told.false_alarms[rule] += 1


def rule_of(days: Sequence[Validated], slot: int) -> str:
    return days[slot // SLOTS].rules.get(slot % SLOTS, "")


def meter_of(number: int, seed: int) -> Faulty:
    """One of a plant's meters: two of intervals to each register."""
    chance = random.Random(seed * 1_000 + number)
    return interval_meter(chance) if number % 3 else register_meter(chance)


def year(meters: int, seed: int) -> Score:
    """The score of a plant of so many meters."""
    told = Score()
    for number in range(meters):
        meter = meter_of(number, seed)
        score(meter, meter.validated(), told)
    return told
