"""A city's accounts written fast: patterns traced for everybody by several processes.

Everybody of `api.city` has an account and a link for each of their partners. The history is that of
one of the partners: a report a month, on the same days for all. Whoever is at no partner has an
account and a grade. `bench/stencils.py` says what a tracing is and what in it is real.
"""

import logging
import multiprocessing
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, timedelta
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, TypeVar

from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient, WriteConcern

from accounting import clock, following, storage, vault
from api.city import people
from api.city.partners import PARTNERS
from bench import stencils
from bench.stencils import Pattern
from footprint import upkeep
from integrations import servers
from integrations.servers import Child

T = TypeVar("T")
SECRET = bytes(range(32))
SEED = 1
PATTERNS = "patterns"
PROCESSES = 3
BLOCKS_A_TASK = 40
BATCH = 1_000
# While it is seeded; what is measured runs with the cache of the product.
CACHE_GB = "4"
# Different lives for each partner.
VARIANTS = 4
# Beyond every city, and below the strangers' numbers.
LIVED_FROM = 85_000_000

_patterns: dict[str | None, list[Pattern]] = {}


@dataclass(frozen=True, slots=True)
class Seeded:
    """What was written, by collection; how many accounts have a history; how long it took."""

    documents: dict[str, int]
    active: int
    reports: int
    seconds: float


def history(months: int) -> list[date]:
    """A working day of each of the last full months."""
    this = clock.city_month(clock.now())
    found = []
    for back in range(months, 0, -1):
        on = clock.first_day(clock.add_months(this, -back)) + timedelta(days=5 + back % 15)
        found.append(on - timedelta(days=max(0, on.weekday() - 4)))
    return found


def elsewhere(do: Callable[..., T], *given: Any) -> T:
    """Call a function in a process of its own: a process is connected to one store, for good."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(do, given)


def prepare(uri: str) -> None:
    """Every index of the product, in the database of the URI, and a follower that has its place.

    Else the first thing that one does would be to walk over everybody. For a process of its own.
    """
    storage.connect(uri)
    storage.ensure_indexes()
    asked = chain([False], repeat(True))
    upkeep.follow(lambda: next(asked))
    assert following.lag(upkeep.FOLLOWER) is not None, "the place is kept"


def live_patterns(uri: str, months: int) -> dict[str | None, list[Pattern]]:
    """The patterns of every partner, lived in another database of the store, which is dropped.

    For a process of its own.
    """
    logging.disable(logging.WARNING)
    vault.configure(SECRET)
    storage.connect(uri.replace(f"/{storage.DEFAULT_DATABASE}?", f"/{PATTERNS}?"))
    storage.ensure_indexes()
    try:
        return lived(months)
    finally:
        storage.client().drop_database(PATTERNS)


def lived(months: int) -> dict[str | None, list[Pattern]]:
    """The patterns of every partner, lived in the connected database."""
    dates, found = history(months), dict[str | None, list[Pattern]]()
    # With numbers nobody in a city has; each lives one life.
    everybody = (
        replace(one, number=LIVED_FROM + one.number) for one in people.people(SEED, 1_000_000)
    )
    for partner in PARTNERS:
        ones = islice((one for one in everybody if partner.name in one.partners), VARIANTS)
        found[partner.name] = [stencils.live(one, partner.name, dates, SEED) for one in ones]
    nobody = next(one for one in everybody if not one.partners)
    found[None] = [stencils.live(nobody, None, dates, SEED)]
    return found


def fill(uri: str, residents: int, patterns: dict[str | None, list[Pattern]]) -> Seeded:
    """Write the accounts of everybody in the city into the database of the URI."""
    blocks = people.blocks_of(residents)
    tasks = [
        (residents, blocks[start : start + BLOCKS_A_TASK])
        for start in range(0, len(blocks), BLOCKS_A_TASK)
    ]
    began, written = time.perf_counter(), Counter[str]()
    spawned = multiprocessing.get_context("spawn")
    with spawned.Pool(PROCESSES, start, (uri, patterns)) as pool:
        for one in pool.imap_unordered(fill_blocks, tasks):
            written += one
    took = time.perf_counter() - began
    active, reports = written.pop("active", 0), written["activities"]
    return Seeded(dict(written), active, reports, took)


def start(uri: str, patterns: dict[str | None, list[Pattern]]) -> None:
    storage.connect(uri)
    vault.configure(SECRET)
    _patterns.update(patterns)


def fill_blocks(task: tuple[int, Sequence[int]]) -> Counter[str]:
    residents, blocks = task
    writer, active = Writer(), 0
    for person in people.people(SEED, residents, blocks):
        partners = person.partners
        main = partners[person.number % len(partners)] if partners else None
        choice = _patterns[main]
        resident = b""
        for collection, raw in choice[person.number % len(choice)].trace(person):
            writer.put(collection, raw)
            if collection == "residents":
                resident = stencils.id_of(raw)
        for other in partners:
            if other != main:
                writer.put(*_patterns[other][0].link(person, resident))
        active += main is not None
    writer.flush()
    return writer.written + Counter(active=active)


class Writer:
    """Documents by the batch, each collection's in their order; nothing waits for the journal."""

    def __init__(self) -> None:
        self.written: Counter[str] = Counter()
        self._left: dict[str, list[RawBSONDocument]] = {}

    def put(self, collection: str, raw: bytes) -> None:
        left = self._left.setdefault(collection, [])
        left.append(RawBSONDocument(raw))
        if len(left) == BATCH:
            self._write(collection)

    def flush(self) -> None:
        """Write what is left, and wait until whoever asks for what a majority has finds it."""
        for collection in self._left:
            self._write(collection, "majority")

    def _write(self, collection: str, concern: int | str = 1) -> None:
        documents: list[Any] = self._left[collection]
        if documents:
            into = storage.database().get_collection(
                collection, write_concern=WriteConcern(concern)
            )
            into.insert_many(documents, ordered=False, bypass_document_validation=True)
            self.written[collection] += len(documents)
            self._left[collection] = []


@contextmanager
def quick_store(folder: Path) -> Iterator[str]:
    """The store of a stopped stack for the time of seeding: alone, and with more memory; its URI.

    Without a replica set nothing is written a second time into a log of operations. What is written
    lies on disk as if it had been.
    """
    with socket.socket() as probe:
        probe.bind((servers.LOOPBACK, 0))
        port = probe.getsockname()[1]
    child = Child(
        "mongodb-seeding",
        [
            *(str(servers.MONGOD.locate()), "--dbpath", str(folder / "mongodb")),
            *("--bind_ip", servers.LOOPBACK, "--port", f"{port}", "--nounixsocket", "--quiet"),
            *("--wiredTigerCacheSizeGB", CACHE_GB, "--journalCommitInterval", "500"),
            *("--setParameter", "diagnosticDataCollectionEnabled=false"),
        ],
        folder / "log" / "mongodb-seeding.log",
        environment=servers.mongod_environment(folder),
    )
    try:
        child.start()
        client = MongoClient[Any](servers.LOOPBACK, port, serverSelectionTimeoutMS=60_000)
        client.admin.command("ping")
        client.close()
        yield f"mongodb://{servers.LOOPBACK}:{port}/{storage.DEFAULT_DATABASE}?directConnection=true"
    finally:
        child.stop(120)
