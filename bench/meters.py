"""Readings of plants: backfill by meter-day, the city's quarter hour, a month by day.

Backfill: bodies of up to 10,000 readings, from bytes to validated days, by two workers, next to raw
PyMongo inserting the very documents that came out, in turns.
Run: `python -m bench.meters [--only backfill|live|month] [--profile]`.
"""

import argparse
import cProfile
import json
import multiprocessing
import pstats
import random
import time
from datetime import date, timedelta
from decimal import Decimal

from accounting import clock, storage, vault
from accounting.enterprise import (
    alerting,
    inventory_days,
    meterdays,
    meters,
    plants,
    readings,
    validating,
)
from accounting.enterprise.meterdays import collection
from accounting.enterprise.meters import Kind, Meter
from accounting.enterprise.slots import SLOT, SLOTS
from api.numbers import read_json
from api.plain_readings import plain_body
from api.plants import take_readings
from bench.side_by_side import fresh_store, out, rate, table, timed

SECRET = bytes(range(32))
BODY_DAYS = 104
FIRST = date(2025, 1, 1)

_started = False


def start(uri: str) -> None:
    """What a worker process does before its first work."""
    global _started
    if not _started:
        storage.connect(uri)
        vault.configure(SECRET)
        _started = True


def add_meters(plant: str, count: int) -> None:
    told = {"name": plant, "sector": "industry", "region": plants.REGION, "created_at": clock.now()}
    storage.database()["plants"].insert_one({"_id": plant, "uscc": plant, **told})
    for number in range(count):
        meters.add(
            Meter(plant, f"m{number}", "electricity", Kind.INTERVAL, "kWh", rated_kw=Decimal(400))
        )


def body_of(meter: str, chance: random.Random, days: int = BODY_DAYS) -> bytes:
    """A meter's days in order, with a gap in one day of ten."""
    rows = []
    for number in range(days):
        begin = clock.start_of(FIRST + timedelta(days=number))
        gap = range(40, 46) if chance.random() < 0.1 else ()
        rows += [
            {
                "meter": meter,
                "at": (begin + slot * SLOT).isoformat(),
                "value": round(chance.uniform(20, 60), 2),
                "kind": "interval",
            }
            for slot in range(SLOTS)
            if slot not in gap
        ]
    return json.dumps({"readings": rows}).encode()


def take_body(plant: str, body: bytes) -> int:
    """What the door does with a request's body."""
    rows = (plain_body(body) or read_json(body))["readings"]
    ends = take_readings(plant, rows)
    assert readings.accepted(ends)[readings.ACCEPTED] == len(ends)
    return len(ends)


def work(uri: str, plant: str, bodies: list[bytes]) -> tuple[int, float]:
    """Take bodies in and validate what they touched; readings taken, CPU seconds."""
    start(uri)
    began, count = time.process_time(), 0
    last = FIRST + timedelta(days=BODY_DAYS - 1)
    for body in bodies:
        count += take_body(plant, body)
    validating.catch_up(plant, FIRST, last)
    return count, time.process_time() - began


def count_up(uri: str, plant: str) -> tuple[int, float]:
    """Energy, carbon and alerts of the days that were validated; CPU seconds."""
    start(uri)
    began = time.process_time()
    days = [FIRST + timedelta(days=number) for number in range(BODY_DAYS)]
    count = inventory_days.catch_up(plant, days[0], days[-1])
    alerting.evaluate(plant, days)
    return count, time.process_time() - began


def server_s() -> float:
    """Processor seconds MongoDB has taken so far."""
    told = storage.client().admin.command("serverStatus")["extra_info"]
    return float(told["user_time_us"] + told["system_time_us"]) / 1e6


def raw(uri: str, documents: list[storage.Doc]) -> tuple[int, float]:
    """Insert ready meter-days, as many to a call as a body had."""
    start(uri)
    began = time.process_time()
    into = storage.strong(storage.database()["raw_meter_days"])
    for place in range(0, len(documents), BODY_DAYS):
        into.insert_many(documents[place : place + BODY_DAYS], ordered=False)
    return len(documents), time.process_time() - began


def backfill(uri: str, workers: int, meters: int, rounds: int) -> None:
    chance = random.Random(8)
    for name in ("plant", "day"), ("vee_due_at",), ("inventory_due_at",), ("alerts_due_at",):
        storage.database()["raw_meter_days"].create_index([(one, 1) for one in name])
    ours: list[float] = []
    theirs: list[float] = []
    counting: list[float] = []
    counts: list[int] = []
    # Processor seconds: our workers, the server for them, raw workers, the server for those.
    spent = [0.0, 0.0, 0.0, 0.0]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for turn in range(rounds + 1):
            names = [f"bench{turn}w{number}" for number in range(workers)]
            shares = []
            for plant in names:
                add_meters(plant, meters)
                bodies = [body_of(f"m{one}", chance) for one in range(meters)]
                shares.append((uri, plant, bodies))
            ends: list[tuple[int, float]] = []
            marks = [server_s()]
            took = timed(lambda s=shares, e=ends: e.extend(pool.starmap(work, s, chunksize=1)))
            marks.append(server_s())
            made = [list(collection().find({"plant": plant})) for plant in names]
            copies = [(uri, rows) for rows in made]
            plants_of = [(uri, plant) for plant in names]
            counting_took = timed(lambda c=plants_of: pool.starmap(count_up, c, chunksize=1))
            raw_ends: list[tuple[int, float]] = []
            marks.append(server_s())
            raw_took = timed(
                lambda c=copies, e=raw_ends: e.extend(pool.starmap(raw, c, chunksize=1))
            )
            marks.append(server_s())
            if turn:  # The first warms caches and imports.
                ours.append(took)
                theirs.append(raw_took)
                counting.append(counting_took)
                counts.append(sum(count for count, _ in ends))
                parts = (
                    sum(one for _, one in ends),
                    marks[1] - marks[0],
                    sum(one for _, one in raw_ends),
                    marks[3] - marks[2],
                )
                spent = [before + part for before, part in zip(spent, parts, strict=True)]
    sample = body_of("m0", chance)
    parsed = [timed(lambda: json.loads(sample)) for _ in range(5)]
    each = counts[0]
    title = f"{workers} workers, {meters} meters of {BODY_DAYS} days each"
    shown = table(title, "", "readings/s", "µs a reading: workers", "server")
    micros = [f"{1e6 * one / sum(counts):.1f}" for one in spent]
    shown.add_row("ours, from bytes to validated days", f"{rate(each, ours):,.0f}", *micros[:2])
    both = [one + other for one, other in zip(ours, counting, strict=True)]
    shown.add_row("ours, with inventory and alerts", f"{rate(each, both):,.0f}", "", "")
    shown.add_row("raw PyMongo, the same documents", f"{rate(each, theirs):,.0f}", *micros[2:])
    out.print(shown)
    out.print(f"ratio of the rates: {rate(1, ours) / rate(1, theirs):.2f}")
    out.print(f"json.loads alone, one process: {rate(BODY_DAYS * SLOTS, parsed):,.0f} readings/s")
    out.print(f"with inventory and alerts: {rate(1, both) / rate(1, theirs):.2f}")
    out.print(f"ratio of the processor time: {sum(spent[2:]) / sum(spent[:2]):.2f}")


def live_body(slot: int) -> bytes:
    at = (clock.start_of(FIRST) + slot * SLOT).isoformat()
    rows = [
        {"meter": f"m{one}", "at": at, "value": 12.25, "kind": "interval"} for one in range(100)
    ]
    return json.dumps({"readings": rows}).encode()


def absorb(uri: str, names: list[str], body: bytes) -> None:
    start(uri)
    for plant in names:
        take_body(plant, body)


def live(uri: str, workers: int, city_plants: int) -> None:
    """The same quarter hour of every meter of the city, one call a plant; then its validation."""
    names = [f"city{number}" for number in range(city_plants)]
    for plant in names:
        rows = [
            meters.stored(Meter(plant, f"m{one}", "electricity", Kind.INTERVAL, "kWh"))
            for one in range(100)
        ]
        storage.database()["meters"].insert_many(rows)
    title = f"one slot of {city_plants * 100:,} meters, {workers} workers"
    shown = table(title, "", "seconds", "of all 111,000")
    times = 1_110 / city_plants

    def tell(what: str, took: float) -> None:
        shown.add_row(what, f"{took:,.1f}", f"{took * times:,.0f}")

    later = clock.now() + timedelta(hours=1)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        shares = [names[number::workers] for number in range(workers)]
        pool.map(start, [uri] * workers, chunksize=1)
        for slot in range(3):
            sent = [(uri, share, live_body(slot)) for share in shares]
            took = timed(lambda s=sent: pool.starmap(absorb, s, chunksize=1))
            tell(f"slot {slot} absorbed", took)

            def validate() -> None:
                while validating.sweep(later):
                    pass

            tell(f"slot {slot} validated, by one process", timed(validate))
    out.print(shown)


def month(plant: str) -> None:
    """A month of one plant of 100 meters (288,000 readings) by day."""
    add_meters(plant, 100)
    chance = random.Random(3)
    for one in range(100):
        take_body(plant, body_of(f"m{one}", chance, 30))
    last = FIRST + timedelta(days=29)
    validating.catch_up(plant, FIRST, last)
    spent = sorted(timed(lambda: meterdays.totals(plant, FIRST, last)) for _ in range(9))
    found = len(meterdays.totals(plant, FIRST, last))
    out.print(f"a month by day, {found:,} meter-days: median {spent[4] * 1e3:.0f} ms")


def profile(uri: str, meters: int) -> None:
    """Where one worker's time goes."""
    chance = random.Random(8)
    add_meters("warm", meters)
    add_meters("measured", meters)
    work(uri, "warm", [body_of("m0", chance)])
    bodies = [body_of(f"m{one}", chance) for one in range(meters)]
    seen = cProfile.Profile()
    took = timed(lambda: seen.runcall(work, uri, "measured", bodies))
    out.print(f"{meters * BODY_DAYS * SLOTS / took:,.0f} readings/s under the profiler")
    pstats.Stats(seen).sort_stats("tottime").print_stats(25)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--meters", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plants", type=int, default=111)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--only", choices=("backfill", "live", "month"))
    wanted = parser.parse_args()
    with fresh_store() as uri:
        if wanted.profile:
            profile(uri, wanted.meters)
            return
        if wanted.only in (None, "backfill"):
            backfill(uri, wanted.workers, wanted.meters, wanted.rounds)
        if wanted.only in (None, "month"):
            month("month")
        if wanted.only in (None, "live"):
            live(uri, wanted.workers, wanted.plants)


if __name__ == "__main__":
    main()
