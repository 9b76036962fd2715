"""Three MongoDB members, parts started one by one, the primary killed while rows come in.

Not part of the default suite, for what three servers cost: `pytest deploy`.
"""

import base64
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import replica_set
from pymongo import MongoClient
from stacks import ENVIRONMENT, PATIENCE_S, wait_until

from accounting import clock
from api.demo.client import Client
from api.stack import ROOT
from integrations.servers import Child, redis_server

WRITERS, BEFORE, AFTER, ROWS = 4, 5, 10, 5


@pytest.fixture
def city(tmp_path: Path) -> Iterator["City"]:
    (tmp_path / "log").mkdir()
    with replica_set.running(tmp_path) as members, redis_server(tmp_path) as queue:
        port = replica_set.free_ports(1)[0]
        env = ENVIRONMENT | {
            "MONGODB_URI": members.url,
            "REDIS_URL": queue.url,
            "TANHUI_SECRET": base64.b64encode(bytes(range(32))).decode(),
            "TANHUI_PUBLIC_URL": f"http://127.0.0.1:{port}",
            "TANHUI_DATA_DIR": str(tmp_path / "var"),
        }
        city = City(members, env, port, tmp_path)
        try:
            yield city
        finally:
            city.api.stop()


class City:
    """The API on three members, a partner with rows for cards that nobody has linked yet."""

    def __init__(
        self, members: replica_set.ReplicaSet, env: dict[str, str], port: int, folder: Path
    ) -> None:
        self.members, self._env = members, env
        command = [sys.executable, "-m", "api.cli", "run", "api", "--bind", f"127.0.0.1:{port}"]
        self.api = Child("api", command, folder / "log" / "api.log", env, directory=ROOT)
        self.client = Client(env["TANHUI_PUBLIC_URL"])

    def tanhui(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "api.cli", *words],
            env=self._env, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def partner(self) -> dict[str, str]:
        """The header of a partner that may report bus rides."""
        first, second = map(self.operator, ("first", "second"))
        wanted = {"kind": "data", "name": "bus card", "behaviours": ["bus_km"]}
        wanted["id_namespace"] = "card"
        head = self.client.bearer(first) | {"Idempotency-Key": "partner"}
        made = self.client.post("/v1/operator/partners", wanted, headers=head, expecting=201)
        path = f"/v1/operator/partners/{made['client_id']}/approve"
        self.client.post(path, {}, headers=self.client.bearer(second))
        return self.client.bearer(made)

    def operator(self, name: str) -> dict[str, str]:
        made = self.tanhui("operator", "add", name, "--data-dir", self._env["TANHUI_DATA_DIR"])
        return dict(line.split() for line in made.splitlines())


@pytest.mark.timeout(3 * PATIENCE_S)
def test_a_killed_primary_loses_nothing_that_was_acknowledged(city: City) -> None:
    city.tanhui("prepare")
    assert "every index is there" in city.tanhui("prepare")
    city.api.start()
    wait_until(lambda: b"Listening at" in city.api.log.read_bytes())
    assert city.client.get("/readyz")["status"] in ("ready", "degraded")
    partner = city.partner()

    acknowledged: dict[str, str] = {}
    half = threading.Barrier(WRITERS + 1)

    def write(writer: int) -> None:
        for number in range(BEFORE + AFTER):
            if number == BEFORE:
                half.wait(PATIENCE_S)
            names = [f"{writer}-{number}-{row}" for row in range(ROWS)]
            rows = [_row(name) for name in names]
            answer = city.client.post("/v1/feeds/activities", {"activities": rows}, headers=partner)
            assert len(answer["results"]) == ROWS
            for name, result in zip(names, answer["results"], strict=True):
                assert result["status_code"] in (200, 201, 202), result
                acknowledged[name] = result["activity"]["id"]

    first = city.members.primary()
    with ThreadPoolExecutor(WRITERS) as pool:
        writers = [pool.submit(write, number) for number in range(WRITERS)]
        half.wait(PATIENCE_S)
        city.members.members[first].kill_group()
        city.members.members[first].stop()
        for writer in writers:
            writer.result(2 * PATIENCE_S)

    assert city.members.primary() != first
    assert len(acknowledged) == WRITERS * (BEFORE + AFTER) * ROWS
    client: MongoClient[Any] = MongoClient(city.members.url, tz_aware=True)
    with client:
        kept = {
            row["event_id"]: row["_id"]
            for row in client.tanhui.parked.find({"_id": {"$in": list(acknowledged.values())}})
        }
    assert kept == acknowledged

    # The member that died comes back, and all three have the same again.
    city.members.members[first].start()
    wait_until(lambda: city.members.states() == replica_set.WHOLE)
    assert city.members.states() == replica_set.WHOLE
    assert "hold" in city.tanhui("book", "verify", "--data-dir", city._env["TANHUI_DATA_DIR"])


def _row(name: str) -> dict[str, Any]:
    return {
        "external_id": f"card-{name.partition('-')[0]}",
        "behaviour": "bus_km",
        "quantity": 3,
        "occurred_at": (clock.now() - timedelta(hours=2)).isoformat(),
        "source_event_id": name,
    }
