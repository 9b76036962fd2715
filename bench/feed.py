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
from datetime import UTC, datetime, timedelta
from typing import Any

from accounting import clients, clock, links, storage, vault
from accounting.clients import Kind
from accounting.ids import new_id
from api import feed_rows
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
        _started = True


def work(uri: str, job_id: str) -> tuple[dict[str, int], int]:
    start(uri)
    job = imports.run(job_id, feed_rows.take_file_rows)
    assert job is not None
    assert job.state == "done", job
    return job.counts, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def raw(uri: str, names: list[tuple[str, list[Any]]]) -> None:
    """Write ready documents, found by id in what ours left, into collections beside it."""
    start(uri)
    for name, documents in names:
        into = storage.strong(storage.database()[f"raw_{name}"])
        for begin in range(0, len(documents), BATCH):
            into.insert_many(documents[begin : begin + BATCH], ordered=False)


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
        ours: list[float] = []
        theirs: list[float] = []
        memory = 0
        with multiprocessing.get_context("spawn").Pool(wanted.workers) as pool:
            for turn in range(wanted.rounds + 1):
                day = today - timedelta(days=wanted.rounds + 1 - turn)
                jobs = [
                    queued(file_of(each, wanted.residents, chance, day))
                    for _ in range(wanted.workers)
                ]
                before = seen()
                ends: list[Any] = []
                took = timed(
                    lambda jobs=jobs, ends=ends: ends.extend(
                        pool.starmap(work, [(uri, job) for job in jobs], chunksize=1)
                    )
                )
                documents = new_documents(before)
                shares = [
                    (uri, [(name, rows[n :: wanted.workers]) for name, rows in documents.items()])
                    for n in range(wanted.workers)
                ]
                raw_took = timed(lambda shares=shares: pool.starmap(raw, shares, chunksize=1))
                memory = max(memory, *(end[1] for end in ends))
                out.print(f"round {turn}: {[end[0] for end in ends]}")
                if turn:  # The first one warms caches, and everybody's first kilograms.
                    ours.append(took)
                    theirs.append(raw_took)
    shown = table(
        f"a file of {each:,} rows for each of {wanted.workers} workers", "", "rows a second"
    )
    shown.add_row("ours, from bytes to points", f"{rate(each * wanted.workers, ours):,.0f}")
    shown.add_row("raw PyMongo, the same documents", f"{rate(each * wanted.workers, theirs):,.0f}")
    shown.add_row("ratio", f"{rate(1, ours) / rate(1, theirs):.2f}")
    out.print(shown)
    out.print(f"most memory of a worker: {memory} MiB")


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
