"""`tanhui jobs` and `tanhui import`: lists, a bar to follow, exit codes, plain lines elsewhere."""

import base64
import gzip
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from callers import partner
from flask import Flask

from accounting import audit, clock, jobs
from api.config import Config
from footprint import upkeep

Words = list[str]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(config: Config, app: Flask, tmp_path: Path) -> Start:
    """Starts `tanhui` on the servers of the test, or on those of another address."""

    def tanhui(*words: str, mongodb_uri: str = config.mongodb_uri) -> "subprocess.Popen[str]":
        servers = {
            "MONGODB_URI": mongodb_uri,
            "REDIS_URL": config.redis_url,
            "TANHUI_SECRET": base64.b64encode(config.secret).decode(),
        }
        return subprocess.Popen(
            [sys.executable, "-m", "api.cli", *words, "--data-dir", str(tmp_path)],
            env={**os.environ, **servers},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return tanhui


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def test_jobs_are_listed_shown_cancelled_and_resumed(start: Start) -> None:
    walk = upkeep.queue("clock")
    other = jobs.queue("proof", "clock", {})
    share = jobs.queue("file_share", "bus", {}, whole=other.id)
    listing = start("jobs", "list", "--kind", "projections", "--state", "queued")
    wrong = start("jobs", "show", "job_none")
    code, out, err = ended(listing)
    assert (code, err) == (0, "")
    [row] = out.splitlines()
    assert row.split("\t")[:6] == [walk.id, "projections", "queued", "0", "0", "accounts"]
    assert ended(wrong) == (
        1, "", "tanhui: there is no job job_none: see tanhui jobs list\n",
    )  # fmt: skip
    assert [job.id for job in jobs.newest(limit=9)] == [other.id, walk.id]
    code, out, _ = ended(start("jobs", "cancel", walk.id, "--reason", "busy hour"))
    assert (code, out) == (0, f"{walk.id} is cancelled: busy hour\n")
    again, follow, of_whole = (
        start("jobs", "cancel", walk.id, "--reason", "x"),
        start("jobs", "follow", walk.id),
        start("jobs", "cancel", share.id, "--reason", "x"),
    )
    assert ended(again)[0] == 1
    code, out, err = ended(follow)
    assert (code, err) == (1, f"tanhui: {walk.id} failed: Cancelled: busy hour\n")
    assert out.startswith(f"{walk.id} failed, 0 %")
    assert ended(of_whole)[0] == 1
    assert ended(start("jobs", "resume", walk.id))[0] == 0
    with clock.travel(2 * jobs.LEASE):
        assert upkeep.run(walk.id) is not None
    done = {row.action for row in audit.trail(subject=walk.id, limit=9)}
    assert done == {"job cancelled", "job resumed"}


def test_a_file_is_handed_over_worked_here_and_followed(
    app: Flask, start: Start, tmp_path: Path
) -> None:
    owner = partner(app, behaviours=["bus_km"]).id
    at = (clock.now() - timedelta(days=4)).isoformat()
    row = {"external_id": "c", "behaviour": "bus_km", "quantity": 2, "occurred_at": at}
    lines = [json.dumps(row | {"source_event_id": f"e-{n}"}) for n in range(3)]
    file = tmp_path / "rides.ndjson.gz"
    file.write_bytes(gzip.compress("\n".join([*lines, "not json"]).encode()))
    words = ("import", str(file), "--partner", owner, "--kind", "activities")
    here = start(*words, "--here")
    nobody = start("import", str(file), "--partner", "nobody", "--kind", "activities")
    code, out, err = ended(here)
    assert (code, err) == (0, "")
    job_id = out.splitlines()[0]
    assert out.splitlines()[-1] == f"{job_id} is done: 1 rejected, 3 parked"
    assert ended(nobody) == (1, "", "tanhui: there is no data partner nobody\n")
    job = jobs.get(job_id)
    assert job is not None
    assert (job.owner, job.state, job.total) == (owner, "done", 4)


class Door:
    """A way to the store that can be shut, as if the store were started again."""

    def __init__(self, to: str) -> None:
        address = urlsplit(to)
        self._to = (address.hostname, address.port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._port = self._listening.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._open = True
        self.uri = f"mongodb://127.0.0.1:{self._port}{address.path}?directConnection=true"
        self._begin()

    def _begin(self) -> None:
        threading.Thread(target=self._serve, args=(self._listening,), daemon=True).start()

    def _serve(self, listening: socket.socket) -> None:
        while True:
            try:
                near, _ = listening.accept()
                far = socket.create_connection(self._to)
            except OSError:
                return
            self._ends += [near, far]
            threading.Thread(target=self._carry, args=(near, far), daemon=True).start()

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        other = {near: far, far: near}
        while True:
            try:
                for end in select.select([near, far], [], [])[0]:
                    data = end.recv(65_536)
                    if not data:
                        raise OSError("hung up")
                    other[end].sendall(data)
            except (OSError, ValueError):
                near.close()
                far.close()
                return

    def shut(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for end in self._ends:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                end.close()
        self._ends.clear()

    def open(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", self._port))
        self._begin()


@pytest.fixture
def door(config: Config) -> Iterator[Door]:
    made = Door(config.mongodb_uri)
    yield made
    made.shut()


def test_following_survives_a_store_that_is_started_again(start: Start, door: Door) -> None:
    walk = upkeep.queue("clock")
    following = start("jobs", "follow", walk.id, mongodb_uri=door.uri)
    assert following.stdout is not None
    assert following.stdout.readline().startswith(f"{walk.id} queued, 0 %")
    door.shut()
    assert following.stdout.readline() == "waiting for the store\n"
    upkeep.run(walk.id)
    door.open()
    code, out, err = ended(following)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].startswith(f"{walk.id} is done: ")
