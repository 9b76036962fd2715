"""Every part of a running stack is started anew under load, and no caller sees anything of it.

Not part of the default suite, for what a stack of its own costs: `pytest deploy`.
"""

import http.client
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pymongo import MongoClient
from stacks import ENVIRONMENT, PATIENCE_S, Stack, wait_until

from accounting import clock
from api.demo.client import Client
from api.stack import ROOT

ROWS = 2
# What a caller does between two requests; without it the load is the test of another thing.
PACE_S = 0.1


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path / "var", "--demo") as running:
        yield running.ready()


class Caller:
    """Sends rows without a break, over one connection or a new one each time; repeats nothing."""

    def __init__(self, name: str, base_url: str, token: str, *, keeps: bool) -> None:
        address = urlsplit(base_url)
        self._name, self._keeps = name, keeps
        self._door = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        self._head = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self.acknowledged: dict[str, str] = {}
        self.failures: list[str] = []
        self.requests = 0

    def work(self, stop: threading.Event) -> None:
        while not stop.is_set():
            names = [f"{self._name}-{self.requests}-{row}" for row in range(ROWS)]
            body = json.dumps({"activities": [_row(name) for name in names]})
            for method, path, sent in (
                ("POST", "/v1/feeds/activities", body),
                ("GET", "/healthz", None),
            ):
                try:
                    status, answer = self._ask(method, path, sent)
                except (OSError, http.client.HTTPException) as error:
                    self.failures.append(f"{method} {path}: {error!r}")
                    self._door.close()
                    continue
                self.requests += 1
                if status >= 300:
                    self.failures.append(f"{method} {path}: {status} {answer}")
                elif sent:
                    for name, result in zip(names, answer["results"], strict=True):
                        self.acknowledged[name] = result["activity"]["id"]
            stop.wait(PACE_S)
        self._door.close()

    def _ask(self, method: str, path: str, body: str | None) -> tuple[int, Any]:
        self._door.request(method, path, body, self._head)
        answer = self._door.getresponse()
        found = json.loads(answer.read())
        if not self._keeps:
            self._door.close()
        return answer.status, found


@pytest.mark.timeout(3 * PATIENCE_S)
def test_a_restart_under_load_fails_no_request_and_loses_nothing(stack: Stack) -> None:
    known = json.loads((stack.data_dir / "demo-credentials.json").read_text())
    token = _token(stack.base_url, known["data_partner"])
    url = stack.base_url
    callers = [Caller(f"c{number}", url, token, keeps=number % 2 == 0) for number in range(4)]
    before = {part: set(stack.pids(part)) for part in ("gunicorn", "celery", "api.follower")}
    servers = set(stack.pids("mongod"))
    stop = threading.Event()
    with ThreadPoolExecutor(len(callers)) as pool:
        working = [pool.submit(caller.work, stop) for caller in callers]
        try:
            wait_until(lambda: all(caller.requests >= 4 for caller in callers))
            begun = sum(caller.requests for caller in callers)
            said = _tanhui("restart", "--data-dir", str(stack.data_dir))
            meanwhile = sum(caller.requests for caller in callers) - begun
            wait_until(lambda: sum(each.requests for each in callers) > begun + meanwhile + 16)
        finally:
            stop.set()
        for one in working:
            one.result(PATIENCE_S)

    assert "Every part runs anew" in said
    assert [failure for caller in callers for failure in caller.failures] == []
    assert meanwhile > 20
    assert stack.base_url == url
    for part, pids in before.items():
        now = set(stack.pids(part))
        assert now, part
        assert not now & pids, part
    assert set(stack.pids("mongod")) == servers

    acknowledged = {name: at for caller in callers for name, at in caller.acknowledged.items()}
    client: MongoClient[Any] = MongoClient(stack.facts["mongodb_uri"])
    with client:
        kept = list(client.tanhui.parked.find({"event_id": {"$regex": "^c[0-9]-"}}))
    assert {row["event_id"]: row["_id"] for row in kept} == acknowledged
    assert len(kept) == len(acknowledged)
    assert "holds" in _tanhui("book", "verify", "--data-dir", str(stack.data_dir))


def _token(base_url: str, credentials: dict[str, str]) -> str:
    return Client(base_url).bearer(credentials)["Authorization"].partition(" ")[2]


def _tanhui(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "api.cli", *words],
        env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=2 * PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _row(name: str) -> dict[str, Any]:
    return {
        "external_id": f"card-of-{name.partition('-')[0]}",
        "behaviour": "bus_km",
        "quantity": 3,
        "occurred_at": (clock.now() - timedelta(hours=2)).isoformat(),
        "source_event_id": name,
    }
