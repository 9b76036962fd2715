"""A bank's single query over HTTP, next to a bare view with one `find_one`.

    python -m bench.bank [--residents 2000] [--queries 400] [--clients 8]

Ours is all of it: token, rate limit, RFC 9421 signature and nonce, consent, the record of the read
on disk before the answer, the grade brought up to the head of the book, JWS. The bare view looks a
ready answer up by its reference and sends it; a second one first puts the read on record. Ours and
the bare ones each have a gunicorn with the settings of the product, on the same MongoDB. Requests
are signed beforehand and go in turns over connections that stay open. Besides what a caller waits,
the processor time of the gunicorn processes is told: on a machine that does other things as well it
is the steadier of the two.
"""

import argparse
import http.client
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from statistics import quantiles
from typing import Any

from rich.table import Table

from accounting import accounts, clients, clock, consents, storage, tokens
from accounting.clients import Kind
from api.config import Config
from bench.grade import fill
from bench.serving import ask, cpu_s, served
from bench.side_by_side import fresh_store, in_turns, out, table
from footprint import grade, regrading
from integrations import signatures
from integrations.servers import Child, redis_server

PURPOSE = "loan"
PORTS = {"api.wsgi:app": 18_411, "bench.bare_grade:app": 18_412}
OURS, BARE = PORTS.values()
WAYS = ("ours", "bare", "recorded")
Send = Callable[[], object]


def settle(residents: int) -> tuple[str, clients.BankKey, list[str]]:
    """A graded city that consents to one bank: the bank's token and key, its references."""
    fill(residents)
    regrading.run(regrading.queue("bench").id)
    client, _ = clients.create_client(Kind.BANK, "bank", subject_id="bnk_bench")
    key_id, material = clients.new_hmac_key(client)
    token, _ = tokens.issue_client_token(client, frozenset(client.scopes))
    key = clients.BankKey(key_id, client.client_id, clients.HMAC_SHA256, material)
    ends = clock.now() + timedelta(days=30)
    references = []
    for one in accounts.ids_after("", residents):
        consent = consents.grant(
            one, bank_id="bnk_bench", purpose=PURPOSE, fields=("grade",), expires_at=ends
        )
        references.append(consent.reference)
    return token, key, references


def ready_made(references: Sequence[str], answer: dict[str, Any]) -> None:
    rows = [{**answer, "_id": one, "reference": one} for one in references]
    storage.database()["bare_grades"].insert_many(rows)


class Caller:
    """One connection to each of the two, which stays open."""

    def __init__(self, token: str, key: clients.BankKey) -> None:
        self._connections = {
            port: http.client.HTTPConnection("127.0.0.1", port, timeout=30) for port in (OURS, BARE)
        }
        self._token, self._key = token, key

    def fresh(self) -> None:
        """Let connections go that were idle for long: the next request opens them."""
        for connection in self._connections.values():
            connection.close()

    def ours(self, reference: str) -> Send:
        path = f"/v1/bank/grades/{reference}?purpose={PURPOSE}"
        headers = signatures.sign(
            signatures.SignedRequest("GET", f"http://127.0.0.1:{OURS}{path}", {}),
            key_id=self._key.key_id,
            algorithm=self._key.algorithm,
            material=self._key.material,
            now=clock.now(),
        )
        headers["Authorization"] = f"Bearer {self._token}"
        return lambda: self.send(OURS, path, headers)

    def bare(self, reference: str) -> Send:
        return lambda: self.send(BARE, f"/bare/{reference}", {})

    def recorded(self, reference: str) -> Send:
        return lambda: self.send(BARE, f"/recorded/{reference}", {})

    def send(self, port: int, path: str, headers: dict[str, str]) -> bytes:
        status, body = ask(self._connections[port], "GET", path, headers=headers)
        assert status == 200, body
        return body


def one_by_one(caller: Caller, references: Sequence[str], *which: str) -> list[list[float]]:
    """Seconds of every request of each way, in turns."""
    ways = [[getattr(caller, way)(one) for one in references] for way in which]
    caller.fresh()
    return in_turns(*ways)


def cpu_of(caller: Caller, references: Sequence[str], which: str, server: Child) -> float:
    """Processor seconds a request takes in the gunicorn that serves it."""
    sends = [getattr(caller, which)(one) for one in references]
    caller.fresh()
    before = cpu_s(server.pid)
    for send in sends:
        send()
    return (cpu_s(server.pid) - before) / len(references)


def together(callers: Sequence[Caller], references: Sequence[str], which: str) -> float:
    """Requests a second of all callers at once."""
    shares = [references[place :: len(callers)] for place in range(len(callers))]
    sends = [
        [getattr(caller, which)(one) for one in share]
        for caller, share in zip(callers, shares, strict=True)
    ]
    for caller in callers:
        caller.fresh()
    with ThreadPoolExecutor(len(callers)) as pool:
        began = time.perf_counter()
        list(pool.map(lambda own: [send() for send in own], sends))
        return len(references) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--residents", type=int, default=2_000)
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--clients", type=int, default=8)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name, fresh_store() as uri:
        folder = Path(name)
        (folder / "log").mkdir()
        with redis_server(folder) as queue:
            config = Config(
                mongodb_uri=uri,
                redis_url=queue.url,
                secret=bytes(range(32)),
                public_url=f"http://127.0.0.1:{OURS}",
                data_dir=folder,
                bank_reads_per_minute=10**6,
            )
            # Before there is a bank, so that its first signatures need not wait.
            with served(config, PORTS) as servers:
                measure(servers, wanted.residents, wanted.queries, wanted.clients)


def measure(servers: Sequence[Child], residents: int, queries: int, count: int) -> None:
    token, key, references = settle(residents)
    asked = [references[place % residents] for place in range(queries)]
    callers = [Caller(token, key) for _ in range(count)]
    answer = json.loads(callers[0].ours(references[0])())
    assert answer["grade"] == grade.newest([accounts.ids_after("", 1)[0]]).popitem()[1]
    ready_made(references, answer)
    one_by_one(callers[0], asked[:50], *WAYS)
    seconds = one_by_one(callers[0], asked, *WAYS)
    shown = table(f"a bank's single query, {queries} of each in turns", "", *WAYS, "ratio", "ratio")
    for label, place in (("p50, ms", 49), ("p95, ms", 94)):
        add_row(shown, label, [quantiles(one, n=100)[place] * 1_000 for one in seconds])
    ours, bare_server = servers
    by_way = zip(WAYS, (ours, bare_server, bare_server), strict=True)
    cpu = [cpu_of(callers[0], asked, way, server) * 1_000 for way, server in by_way]
    add_row(shown, "gunicorn, ms of CPU a request", cpu)
    # There and back again, so that a drift of the machine meets all.
    rates = [together(callers, asked, way) for way in (*WAYS, *WAYS[::-1])]
    means = [2_000 / (rates[place] + rates[-1 - place]) for place in range(len(WAYS))]
    add_row(shown, f"ms a request, {count} clients", means)
    out.print(shown)


def add_row(shown: Table, label: str, ms: Sequence[float]) -> None:
    """The milliseconds of each way, and how many times the others' ours are."""
    ratios = [ms[0] / other for other in ms[1:]]
    shown.add_row(label, *(f"{one:.2f}" for one in (*ms, *ratios)))


if __name__ == "__main__":
    main()
