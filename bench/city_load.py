"""What a city asks: reads of residents and a bank, one after the other or at a rate; activities."""

import http.client
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from queue import Empty, Queue
from statistics import quantiles
from typing import Any

from accounting import accounts, clients, clock, consents, tokens
from accounting.clients import Kind
from bench.city_stack import PORT
from bench.serving import ask
from integrations import signatures

PURPOSE, BANK = "loan", "bnk_city"
READS = {
    "me": "/v1/me",
    "account": "/v1/me/points",
    "statement": "/v1/me/points/entries",
    "activities": "/v1/activities",
    "summary": "/v1/me/summary",
    "grade": "/v1/me/grade",
}
BANK_QUERY = "bank query"
KINDS = (*READS, BANK_QUERY)
CALLERS = 12
WARM_UP = 20


@dataclass
class Public:
    """Residents with a token and a consent, and the bank that reads their grades."""

    residents: list[str]
    tokens: list[str]
    references: list[str]
    bank_token: str
    key: clients.BankKey
    turns: Iterator[int] = field(default_factory=itertools.count)

    def sign_in(self) -> None:
        """New tokens: they live a quarter of an hour."""
        self.tokens = [tokens.open_session(one).access_token for one in self.residents]

    def request(self, kind: str) -> tuple[str, dict[str, str]]:
        """Path and headers of the next read of a kind."""
        place = next(self.turns) % len(self.residents)
        if kind != BANK_QUERY:
            return READS[kind], {"Authorization": f"Bearer {self.tokens[place]}"}
        path = f"/v1/bank/grades/{self.references[place]}?purpose={PURPOSE}"
        headers = signatures.sign(
            signatures.SignedRequest("GET", f"http://127.0.0.1:{PORT}{path}", {}),
            key_id=self.key.key_id, algorithm=self.key.algorithm, material=self.key.material,
            now=clock.now(),
        )  # fmt: skip
        return path, headers | {"Authorization": f"Bearer {self.bank_token}"}

    def ride(self) -> tuple[bytes, dict[str, str]]:
        """The next activity somebody reports: a ride of an attested sensor."""
        number = next(self.turns)
        start = clock.now() - timedelta(days=1 + number // len(self.residents), hours=1)
        body = {
            "behaviour": "bike_km",
            "quantity": 2.4,
            "occurred_at": start.isoformat(timespec="seconds"),
            "ended_at": (start + timedelta(minutes=12)).isoformat(timespec="seconds"),
            "source_event_id": f"ride-{number}",
            "evidence": {"kind": "sensor", "recorder": "gps"},
        }
        headers = {
            "Authorization": f"Bearer {self.tokens[number % len(self.tokens)]}",
            "X-Firebase-AppCheck": "demo",
            "Content-Type": "application/json",
        }
        return json.dumps(body).encode(), headers


def settle(count: int) -> Public:
    """A fair sample of the city signs in and consents to a bank's reading."""
    residents = accounts.sample(1, count)
    client, _ = clients.create_client(Kind.BANK, "bank", subject_id=BANK)
    key_id, material = clients.new_hmac_key(client)
    token, _ = tokens.issue_client_token(client, frozenset(client.scopes))
    ends = clock.now() + timedelta(days=30)
    references = [
        consents.grant(
            one, bank_id=BANK, purpose=PURPOSE, fields=("grade",), expires_at=ends
        ).reference
        for one in residents
    ]
    return Public(
        residents=residents,
        tokens=[],
        references=references,
        bank_token=token,
        key=clients.BankKey(key_id, client.client_id, clients.HMAC_SHA256, material),
    )


@dataclass
class Waits:
    """Seconds waited, by what was asked."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    failed: int = 0

    def add(self, kind: str, seconds: float) -> None:
        self.seconds.setdefault(kind, []).append(seconds)

    def told(self) -> dict[str, Any]:
        """Milliseconds at the median and the 99th of a hundred, of all reads and of each kind."""
        reads = [wait for kind in KINDS for wait in self.seconds.get(kind, ())]
        kinds = {kind: _cuts(waits) for kind, waits in self.seconds.items() if len(waits) > 1}
        return {"reads": _cuts(reads), "kinds": kinds, "failed": self.failed}


def _cuts(waits: Sequence[float]) -> dict[str, float]:
    cuts = quantiles(waits, n=100)
    at = {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98]}
    told = {name: round(wait * 1_000, 2) for name, wait in at.items()}
    return {"count": len(waits), **told}


def one_by_one(public: Public, each: int) -> Waits:
    """Every kind in turn over one connection, nothing else going on."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    for kind in KINDS:  # What a process reads once is not a read.
        for _ in range(WARM_UP):
            path, headers = public.request(kind)
            status, body = ask(connection, "GET", path, headers=headers)
            assert status == 200, (kind, body)
    waits = Waits()
    for _ in range(each):
        for kind in KINDS:
            path, headers = public.request(kind)
            began = time.perf_counter()
            status, body = ask(connection, "GET", path, headers=headers)
            waits.add(kind, time.perf_counter() - began)
            assert status == 200, (kind, body)
    connection.close()
    return waits


def at_a_rate(
    public: Public, reads_s: float, posts_s: float, going_on: Callable[[], bool], least_s: float
) -> Waits:
    """Reads and reported activities at a rate while something goes on.

    A wait counts from the instant a request was due, whoever had time for it when: nobody's turn is
    put off because an answer is late.
    """
    due: Queue[tuple[str, float] | None] = Queue()
    waits, lock = Waits(), threading.Lock()

    def call() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
        while (wanted := due.get()) is not None:
            kind, at = wanted
            with lock:
                if kind == "post":
                    body, headers = public.ride()
                    method, path = "POST", "/v1/activities"
                else:
                    (path, headers), body, method = public.request(kind), None, "GET"
            try:
                status, _ = ask(connection, method, path, body, headers)
            except (OSError, http.client.HTTPException):
                status = 0
                connection.close()
            took = time.perf_counter() - at
            with lock:
                waits.add(kind, took)
                waits.failed += status not in (200, 201)

    callers = [threading.Thread(target=call) for _ in range(CALLERS)]
    for one in callers:
        one.start()
    began, sent = time.perf_counter(), {"read": 0, "post": 0}
    try:
        while going_on() or time.perf_counter() - began < least_s:
            now = time.perf_counter()
            for name, rate in (("read", reads_s), ("post", posts_s)):
                while rate and began + sent[name] / rate <= now:
                    kind = KINDS[sent[name] % len(KINDS)] if name == "read" else "post"
                    due.put((kind, began + sent[name] / rate))
                    sent[name] += 1
            time.sleep(0.002)
    finally:
        _stop(due, callers)
    return waits


def _stop(due: "Queue[tuple[str, float] | None]", callers: Sequence[threading.Thread]) -> None:
    for _ in callers:
        due.put(None)
    for one in callers:
        one.join()
    while True:
        try:
            due.get_nowait()
        except Empty:
            return
