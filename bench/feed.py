"""A partner's file from its bytes to credited points, next to raw PyMongo writing the documents.

    python -m bench.feed [--rows 20000] [--residents 10000] [--workers 2] [--profile]

Ours is a job as a worker runs it: bytes from GridFS, rows read and checked, facts, claims, entries,
milestones and outcomes written. Raw inserts the very documents that left behind, ready made, in
batches of 1,000, with the same indexes and concerns and as many processes. Both take turns.
"""

import argparse
import cProfile
import io
import json
import multiprocessing
import pstats
import random
import resource
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from accounting import clients, clock, links, storage, vault
from accounting.clients import Kind
from accounting.ids import new_id
from api import feed_rows, garbage
from bench.side_by_side import fresh_store, out, rate, table, timed
from integrations import feeds, imports

PARTNER, BATCH, SECRET = "bank", 1_000, bytes(range(32))
WRITTEN = ("activities", "entries", "claims", "milestones", "notifications")
# Behaviour, quantity, minutes, attributes; how often: what a bank with a bus card sends.
KINDS: list[tuple[str, Any, int | None, dict[str, Any], int]] = [
    ("mobile_pay_offline", 1, None, {"amount_fen": 2_350, "merchant": "m_221"}, 5),
    ("bus_km", 5.2, 18, {"line": "K1"}, 3),
    ("metro_km", 9.1, 25, {}, 1),
    ("e_invoice", 1, None, {}, 1),
]

_started = False


def external(number: int) -> str:
    return f"62270000{number:010d}"


def link_everybody(residents: int) -> None:
    now = clock.now()
    rows = [
        {
            "_id": new_id("lnk"),
            "resident": new_id("res"),
            "partner_id": PARTNER,
            "external_hash": links.external_hash(PARTNER, external(number)),
            "external_sealed": b"",
            "linked_at": now,
            "parked_done": True,
        }
        for number in range(residents)
    ]
    storage.database()["links"].insert_many(rows)
    clients.create_client(Kind.DATA, PARTNER, subject_id=PARTNER, policy={"every_behaviour": True})


def file_of(rows: int, residents: int, chance: random.Random, day: datetime) -> bytes:
    """A day of one partner in the order it happened."""
    behaviours = [kind for kind in KINDS for _ in range(kind[4])]
    lines = []
    for number in range(rows):
        at = day + timedelta(seconds=57_600 * number / rows)
        behaviour, quantity, minutes, attributes, _ = chance.choice(behaviours)
        row = {
            "external_id": external(chance.randrange(residents)),
            "behaviour": behaviour,
            "quantity": quantity,
            "occurred_at": at.isoformat(timespec="seconds"),
            "source_event_id": f"{day:%Y%m%d}-{chance.randrange(10**12)}",
            "attributes": dict(attributes),
        }
        if minutes:
            row["ended_at"] = (at + timedelta(minutes=minutes)).isoformat(timespec="seconds")
        if behaviour == "e_invoice":
            row["attributes"] = {"invoice": str(chance.randrange(10**12))}
        lines.append(json.dumps(row))
    return "\n".join(lines).encode() + b"\n"


def queued(content: bytes) -> str:
    data = io.BytesIO(content)
    return imports.store("activities", PARTNER, data, media_type=feeds.NDJSON, gzipped=False).id


def start(uri: str) -> None:
    """What a worker process does before its first job."""
    global _started
    if not _started:
        storage.connect(uri)
        vault.configure(SECRET)
        garbage.settle()
        _started = True


class End(NamedTuple):
    """What a worker did: rows by outcome, its CPU seconds, the most memory it ever took."""

    counts: dict[str, int]
    cpu_s: float
    memory_mib: int


def work(uri: str, job_id: str) -> End:
    start(uri)
    began = time.process_time()
    job = imports.run(job_id, feed_rows.take_file_rows)
    assert job is not None
    assert job.state == "done", job
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return End(job.counts, time.process_time() - began, memory)


def raw(uri: str, names: list[tuple[str, list[Any]]]) -> End:
    """Write ready documents into collections beside those ours wrote them into."""
    start(uri)
    began = time.process_time()
    for name, documents in names:
        into = storage.strong(storage.database()[f"raw_{name}"])
        for place in range(0, len(documents), BATCH):
            into.insert_many(documents[place : place + BATCH], ordered=False)
    return End({}, time.process_time() - began, 0)


def server_cpu_s() -> float:
    """CPU seconds mongod has taken so far."""
    told = storage.database().command("serverStatus")["extra_info"]
    return (told["user_time_us"] + told["system_time_us"]) / 1e6


@dataclass
class Way:
    """One of the two ways, as its turns add up."""

    seconds: list[float] = field(default_factory=list)
    worker_s: float = 0.0
    server_s: float = 0.0
    memory_mib: int = 0

    def turn(self, do: Callable[[], list[End]], *, counts: bool) -> list[End]:
        server, ends = server_cpu_s(), []
        took = timed(lambda: ends.extend(do()))
        self.memory_mib = max(self.memory_mib, *(end.memory_mib for end in ends))
        if counts:
            self.seconds.append(took)
            self.worker_s += sum(end.cpu_s for end in ends)
            self.server_s += server_cpu_s() - server
        return ends


def raw_collections() -> None:
    for name in WRITTEN:
        for index in storage.database()[name].index_information().values():
            wanted = ("unique", "sparse", "partialFilterExpression")
            options = {option: index[option] for option in wanted if option in index}
            if index["key"] != [("_id", 1)]:
                storage.database()[f"raw_{name}"].create_index(index["key"], **options)


def seen() -> dict[str, set[Any]]:
    return {
        name: {row["_id"] for row in storage.database()[name].find({}, {"_id": 1})}
        for name in WRITTEN
    }


def new_documents(before: dict[str, set[Any]]) -> dict[str, list[Any]]:
    return {
        name: [row for row in storage.database()[name].find() if row["_id"] not in before[name]]
        for name in WRITTEN
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--residents", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    wanted = parser.parse_args()
    chance, each = random.Random(9), wanted.rows // wanted.workers
    today = clock.now().astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    with fresh_store() as uri:
        link_everybody(wanted.residents)
        if wanted.profile:
            profile(uri, wanted.rows, wanted.residents, chance, today)
            return
        raw_collections()
        ours, theirs = Way(), Way()
        with multiprocessing.get_context("spawn").Pool(wanted.workers) as pool:
            for turn in range(wanted.rounds + 1):
                day = today - timedelta(days=wanted.rounds + 1 - turn)
                files = [
                    file_of(each, wanted.residents, chance, day) for _ in range(wanted.workers)
                ]
                jobs = [(uri, queued(content)) for content in files]
                before = seen()
                # The first turn warms caches, and brings everybody's first kilograms.
                ends = ours.turn(
                    lambda jobs=jobs: pool.starmap(work, jobs, chunksize=1), counts=turn > 0
                )
                shares = [
                    (uri, [(name, rows[n :: wanted.workers]) for name, rows in written])
                    for written in [list(new_documents(before).items())]
                    for n in range(wanted.workers)
                ]
                theirs.turn(
                    lambda shares=shares: pool.starmap(raw, shares, chunksize=1), counts=turn > 0
                )
                out.print(f"turn {turn}:", *[dict(Counter(end.counts)) for end in ends])
    report(wanted.workers, each, ours, theirs)


def report(workers: int, each: int, ours: Way, theirs: Way) -> None:
    rows = workers * each
    title = f"a file of {each:,} rows for each of {workers} workers"
    shown = table(title, "", "rows a second", "worker, µs a row", "mongod, µs a row", "together")
    for name, way in (("ours, from bytes to points", ours), ("raw PyMongo", theirs)):
        per_row = 1e6 / (rows * len(way.seconds))
        worker, server = way.worker_s * per_row, way.server_s * per_row
        together = f"{worker + server:,.0f}"
        speed = f"{rate(rows, way.seconds):,.0f}"
        shown.add_row(name, speed, f"{worker:,.0f}", f"{server:,.0f}", together)
    out.print(shown)
    out.print(f"ratio of the rates: {rate(1, ours.seconds) / rate(1, theirs.seconds):.2f}")
    out.print(f"most memory of a worker: {ours.memory_mib} MiB")


def profile(uri: str, rows: int, residents: int, chance: random.Random, day: datetime) -> None:
    start(uri)
    for turn in (2, 1):
        job = queued(file_of(rows, residents, chance, day - timedelta(days=turn)))
        profiler = cProfile.Profile()
        profiler.enable()
        took = timed(lambda job=job: work(uri, job))
        profiler.disable()
        out.print(f"{rows / took:,.0f} rows a second, under the profiler")
    pstats.Stats(profiler).sort_stats("tottime").print_stats(45)
    pstats.Stats(profiler).sort_stats("cumtime").print_stats(70)


if __name__ == "__main__":
    main()
