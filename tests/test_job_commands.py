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

import click
import pytest
from callers import partner
from click.testing import CliRunner, Result
from flask import Flask

from accounting import audit, clients, clock, jobs, shares, storage
from accounting.clients import Kind
from accounting.jobs import Job
from api import cli, job_commands
from api.config import Config
from footprint import upkeep

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


@pytest.fixture
def told(
    config: Config, app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """What `tanhui` says on the servers of the test, in this very process."""
    for name in ("MONGODB_URI", "REDIS_URL", "TANHUI_SECRET"):
        monkeypatch.setenv(name, config.environment()[name])

    def tanhui(*words: str) -> Result:
        storage.disconnect()
        try:
            return CliRunner().invoke(cli.tanhui, [*words, "--data-dir", str(tmp_path)])
        finally:
            storage.connect(config.mongodb_uri)

    return tanhui


def test_jobs_are_listed_cancelled_and_resumed(told: Callable[..., Result]) -> None:
    walk = upkeep.queue("clock")
    other = jobs.queue("proof", "clock", {})
    jobs.queue("file_share", "bus", {}, whole=other.id)
    said = told("jobs", "list", "--kind", "projections", "--state", "queued")
    assert said.exit_code == 0, said.output
    [row] = said.output.splitlines()
    assert row.split("\t")[:6] == [walk.id, "projections", "queued", "0", "0", "accounts"]
    assert [job.id for job in jobs.newest(limit=9)] == [other.id, walk.id]
    said = told("jobs", "cancel", walk.id, "--reason", "busy hour")
    assert (said.exit_code, said.output) == (0, f"{walk.id} is cancelled: busy hour\n")
    said = told("jobs", "follow", walk.id)
    assert said.exit_code == 1
    assert said.output.startswith(f"{walk.id} failed, 0 %")
    assert f"{walk.id} failed: Cancelled: busy hour\n" in said.output
    assert told("jobs", "resume", walk.id).exit_code == 0
    with clock.travel(2 * jobs.LEASE):
        assert upkeep.run(walk.id) is not None
    done = {row.action for row in audit.trail(subject=walk.id, limit=9)}
    assert done == {"job cancelled", "job resumed"}


def test_a_job_is_shown_with_all_its_shares(told: Callable[..., Result]) -> None:
    """A grading of a large city has more shares than a file ever has."""
    whole = jobs.queue("regrade", "clock", {shares.COUNT: 12}, unit=jobs.RESIDENTS)
    names = [shares.name(whole.id, number) for number in range(12)]
    for name in names:
        jobs.queue("regrade_range", "clock", {}, name, unit=jobs.RESIDENTS, whole=whole.id)
    said = told("jobs", "show", whole.id)
    shown = [row.split() for row in said.output.splitlines()]
    assert [row[1] for row in shown if row[0] == "share"] == names


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
    code, out, err = ended(start(*words, "--here"))
    assert (code, err) == (0, "")
    job_id = out.splitlines()[0]
    assert out.splitlines()[-1] == f"{job_id} is done: 1 rejected, 3 parked"
    job = jobs.get(job_id)
    assert job is not None
    assert (job.owner, job.state, job.total) == (owner, "done", 4)


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize(
    ("file", "kind", "profile", "charset", "why"),
    [
        ("a.txt", "activities", None, None, "want .ndjson, .jsonl or .csv"),
        ("a.csv", "activities", None, None, "there is no data partner nobody"),
        ("a.csv", "readings", None, None, "There is no such thing"),
        ("a.csv", "activities", "rides", None, "nobody has no profile rides"),
        ("a.csv.gz", "activities", None, "latin-1", "cannot read text/csv in latin-1"),
    ],
)
def test_what_cannot_be_read_is_refused_before_a_byte_is_kept(
    tmp_path: Path, file: str, kind: str, profile: str | None, charset: str | None, why: str
) -> None:
    if profile or charset:
        clients.create_client(Kind.DATA, "nobody", subject_id="nobody")
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(click.ClickException, match=why):
        job_commands._stored(tmp_path / file, "nobody", kind, profile, charset)
    assert jobs.newest(limit=1) == []


def test_what_is_said_of_a_job() -> None:
    now = clock.now()
    marks = [{"at": now - timedelta(seconds=50), "done": 0}]
    job = Job(
        id="job_1",
        kind="regrade",
        owner="op",
        state="running",
        arguments={},
        unit="residents",
        total=20_000,
        done=2_500,
        bytes_done=0,
        counts={},
        failure=None,
        created_at=now,
        leased_until=now + jobs.LEASE,
        stepped_at=now,
        marks=marks,
        worked_ms=50_000,
    )
    # 2,500 in 50 seconds; 17,500 left are 350 seconds.
    said = "running, 12 %, 2,500 of 20,000 residents, 50.0/s, 5:50 left"
    assert job_commands._said(job) == said
    assert job_commands._span(3_725) == "1:02:05"


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
