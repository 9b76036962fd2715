"""One activity over HTTP, next to a bare Flask view that writes the same documents.

    python -m bench.activities [--clients 8] [--each 50] [--rounds 6]

Ours is `POST /v1/activities` as deployed: token, limit, form, fact, judgement, points, entry,
outcome. What residents report is a bicycle ride of an attested sensor, which is credited. The bare
view reads the head and writes the same documents with the same indexes and concerns, and neither
validates nor knows nor limits anybody. Each has a gunicorn with the settings of the product, on the
same MongoDB; the clients take turns at them over connections that stay open. Nobody sends an
Idempotency-Key. Last, the round trips of one report are counted in this process.
"""

import argparse
import http.client
import itertools
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from statistics import quantiles
from typing import Any

from pymongo import monitoring

from accounting import accounts, clock, storage, tokens
from api.app import create_app
from api.config import Config
from bench import bare_activity
from bench.feed import server_cpu_s
from bench.serving import ask, cpu_s, same_indexes, served
from bench.side_by_side import fresh_store, out, rate, table
from integrations.servers import Child, redis_server

PORTS = {"api.wsgi:app": 18_421, "bench.bare_activity:app": 18_422}
OURS, BARE = PORTS.values()
PATH = "/v1/activities"
OUTCOME = ("state", "status", "reasons", "mg", "points", "mature_at", "merged_into", "seq")


class Trips(monitoring.CommandListener):
    """The commands that went to MongoDB, each a round trip."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        about = event.command.get(event.command_name)
        self.seen.append(f"{event.command_name} {about}")

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...


@dataclass
class Person:
    """A resident with a token, who rides a few hours apart, another day each time."""

    id: str
    token: str
    rides: Iterator[int] = field(default_factory=itertools.count)

    def ride(self) -> bytes:
        number = next(self.rides)
        start = clock.now() - timedelta(days=1 + number % 25, hours=number // 25)
        return json.dumps(
            {
                "behaviour": "bike_km",
                "quantity": 2.4,
                "occurred_at": start.isoformat(timespec="seconds"),
                "ended_at": (start + timedelta(minutes=12)).isoformat(timespec="seconds"),
                "source_event_id": f"ride-{number}",
                "evidence": {"kind": "sensor", "recorder": "gps"},
            }
        ).encode()

    @property
    def headers(self) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self.token}",
            "X-Firebase-AppCheck": "demo",
            "Content-Type": "application/json",
        }


@dataclass
class Way:
    """One of the two, as its turns add up."""

    port: int
    path: Callable[[Person], str]
    server: Child
    seconds: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    cpu_s: float = 0.0
    mongod_s: float = 0.0

    def turn(self, shares: Sequence[Sequence[Person]], *, counts: bool) -> None:
        """Every client reports for its share of people, one after the other."""
        work = [[(one, one.ride()) for one in share] for share in shares]
        before, mongod = cpu_s(self.server.pid), server_cpu_s()
        with ThreadPoolExecutor(len(work)) as pool:
            began = time.perf_counter()
            ends = list(pool.map(self._report, work))
            took = time.perf_counter() - began
        if counts:
            self.seconds.append(took)
            self.cpu_s += cpu_s(self.server.pid) - before
            self.mongod_s += server_cpu_s() - mongod
            for waits, answers in ends:
                self.waits += waits
                self.answers += answers

    def _report(self, rides: Sequence[tuple[Person, bytes]]) -> tuple[list[float], Counter[str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        waits, answers = [], Counter[str]()
        for person, body in rides:
            began = time.perf_counter()
            status, answer = ask(connection, "POST", self.path(person), body, person.headers)
            waits.append(time.perf_counter() - began)
            assert status == 201, answer
            answers[json.loads(answer)["status"]] += 1
        connection.close()
        return waits, answers


def settle(count: int) -> list[Person]:
    people = []
    for number in range(count):
        resident = accounts.by_phone(f"+86139{number:08}")
        people.append(Person(resident, tokens.open_session(resident).access_token))
    return people


def ready_made(person: Person) -> None:
    """Have a ride reported, and keep what that left behind for the bare view."""
    connection = http.client.HTTPConnection("127.0.0.1", OURS, timeout=60)
    for _ in range(3):
        status, answer = ask(connection, "POST", PATH, person.ride(), person.headers)
        assert status == 201, answer
    base = storage.database()
    fact = base["activities"].find_one({"resident": person.id}, sort=[("_id", -1)])
    entry = base["entries"].find_one({"account": person.id}, sort=[("seq", -1)])
    assert fact is not None
    assert entry is not None
    made = {
        "fact": fact,
        "entry": entry,
        "outcome": {name: fact[name] for name in OUTCOME if name in fact},
        "answer": json.loads(answer),
    }
    base[bare_activity.TEMPLATES].insert_many(
        {"_id": name, "document": document} for name, document in made.items()
    )
    same_indexes("activities", bare_activity.FACTS)
    same_indexes("entries", bare_activity.ENTRIES)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--each", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=6)
    wanted = parser.parse_args()
    trips = Trips()
    monitoring.register(trips)
    with tempfile.TemporaryDirectory(prefix="bench-") as name, fresh_store() as uri:
        folder = Path(name)
        (folder / "log").mkdir()
        with redis_server(folder) as queue:
            # Demo, so that the sensor can be attested without Google; the way taken is the same.
            config = Config(
                mongodb_uri=uri, redis_url=queue.url, secret=bytes(range(32)), demo=True,
                public_url=f"http://127.0.0.1:{OURS}", data_dir=folder, log_level="WARNING",
            )  # fmt: skip
            people = settle(wanted.clients * wanted.each)
            with served(config, PORTS) as servers:
                measure(servers, people, wanted.clients, wanted.rounds)
            count(config, people[0], trips)


def measure(servers: Sequence[Child], people: list[Person], clients: int, rounds: int) -> None:
    ready_made(people[0])
    shares = [people[place::clients] for place in range(clients)]
    ours = Way(OURS, lambda person: PATH, servers[0])
    bare = Way(BARE, lambda person: f"/bare/{person.id}", servers[1])
    for turn in range(rounds + 1):
        for way in (ours, bare) if turn % 2 else (bare, ours):
            way.turn(shares, counts=turn > 0)
    report(ours, bare, len(people), clients)


def report(ours: Way, bare: Way, each: int, clients: int) -> None:
    title = f"one activity over HTTP, {clients} clients, {len(ours.seconds)} turns of {each}"
    shown = table(title, "", "ours", "bare", "ratio")
    ways = (ours, bare)

    def row(name: str, values: Sequence[float], form: str) -> None:
        mine, other = values
        shown.add_row(name, format(mine, form), format(other, form), f"{mine / other:.2f}")

    row("activities a second", [rate(each, way.seconds) for way in ways], ",.0f")
    for name, place in (("p50, ms", 49), ("p99, ms", 98)):
        row(name, [quantiles(way.waits, n=100)[place] * 1_000 for way in ways], ".1f")
    for name, spent in (("gunicorn", "cpu_s"), ("mongod", "mongod_s")):
        ms = [getattr(way, spent) * 1_000 / len(way.waits) for way in ways]
        row(f"{name}, ms of CPU an activity", ms, ".2f")
    together = [(way.cpu_s + way.mongod_s) * 1_000 / len(way.waits) for way in ways]
    row("both, ms of CPU an activity", together, ".2f")
    out.print(shown)
    out.print("answered:", dict(ours.answers))


def count(config: Config, person: Person, trips: Trips) -> None:
    """The round trips of one report, in this process, by what they ask for."""
    storage.disconnect()
    app = create_app(config)
    http, headers = app.test_client(), person.headers
    for _ in range(2):  # The first one fills what a process keeps.
        with redis_trips(app) as redis:
            trips.seen.clear()
            answer = http.post(PATH, data=person.ride(), headers=headers)
            assert answer.status_code == 201, answer.text
    out.print(f"round trips of one report: {len(trips.seen)} to MongoDB, {redis[0]} to Redis")
    for place, one in enumerate(trips.seen, 1):
        out.print(f"  {place}. {one}")


@contextmanager
def redis_trips(app: Any) -> Iterator[list[int]]:
    """How often a connection was taken from the pool: each time for one round trip."""
    pool, seen = app.extensions["redis"].connection_pool, [0]
    take = pool.get_connection

    def counted(*args: Any, **kwargs: Any) -> Any:
        seen[0] += 1
        return take(*args, **kwargs)

    pool.get_connection = counted
    try:
        yield seen
    finally:
        pool.get_connection = take


if __name__ == "__main__":
    main()
