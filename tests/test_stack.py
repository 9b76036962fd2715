"""The whole stack as `tanhui up` runs it: real processes, real signals."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pymongo import MongoClient

from api import config as settings
from api import stack
from api.stack import StackError
from integrations import servers
from integrations.servers import Child, ServerError

pytestmark = pytest.mark.timeout(420)

SETTINGS = ("MONGODB_URI", "REDIS_URL", "GOOGLE_APPLICATION_CREDENTIALS")
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in SETTINGS and not name.startswith("TANHUI_")
}


class Stack:
    """A `tanhui up` in the background."""

    def __init__(self, data_dir: Path, *options: str, env: dict[str, str] | None = None) -> None:
        self.data_dir = data_dir
        self._out = data_dir.with_name(f"{data_dir.name}-{time.monotonic_ns()}.out")
        command = ["-m", "api.cli", "up", "--data-dir", str(data_dir), *options]
        with self._out.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=stack.ROOT,
                env=env or ENVIRONMENT,
            )

    def said(self) -> str:
        return self._out.read_text()

    def ready(self) -> "Stack":
        wait_until(lambda: "is up:" in self.said() or self.process.poll() is not None, 180)
        assert "is up:" in self.said(), self.said()
        return self

    @property
    def facts(self) -> dict[str, object]:
        facts: dict[str, object] = json.loads((self.data_dir / "stack.json").read_text())
        return facts

    def get(self, path: str) -> int:
        with urllib.request.urlopen(f"{self.facts['base_url']}{path}", timeout=20) as answer:
            return int(answer.status)

    def pids(self, name: str) -> list[int]:
        return [pid for pid in left_of(self.data_dir) if name in command_of(pid)]

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(120)


def wait_until(true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.1)


def read_proc(pid: int, what: str) -> str:
    try:
        return Path(f"/proc/{pid}/{what}").read_text(errors="replace").replace("\0", " ")
    except OSError:  # Gone, or somebody else's.
        return ""


def command_of(pid: int) -> str:
    return read_proc(pid, "cmdline")


def works_in(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/cwd").readlink())
    except OSError:
        return ""


def left_of(data_dir: Path) -> list[int]:
    """Every process that names this data directory in its command line or environment.

    Redis writes its title over both, but works in its folder.
    """
    pids = sorted(int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit())
    return [
        pid
        for pid in pids
        if pid != os.getpid()
        and str(data_dir) in read_proc(pid, "environ") + command_of(pid) + works_in(pid)
    ]


def refused(*arguments: str, env: dict[str, str] | None = None) -> str:
    """Run a command that must fail with exit 1 and one line; that line."""
    done = subprocess.run(
        [sys.executable, "-m", "api.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=stack.ROOT,
        env=env or ENVIRONMENT,
        timeout=120,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


@pytest.fixture
def begin(tmp_path: Path) -> Iterator["type[Stack]"]:
    """Start stacks that are surely gone after the test."""
    begun: list[Stack] = []

    class Begun(Stack):
        def __init__(
            self, data_dir: Path, *options: str, env: dict[str, str] | None = None
        ) -> None:
            super().__init__(data_dir, *options, env=env)
            begun.append(self)

    yield Begun
    for each in begun:
        if each.process.poll() is None:
            each.end()


def test_a_demo_lives_through_deaths_a_stop_and_a_restart(
    begin: type[Stack], tmp_path: Path
) -> None:
    data_dir = tmp_path / "var"
    first = begin(data_dir, "--demo", "--port", "0").ready()
    for part in ("MongoDB", "Redis", "indexes", "API", "worker", "beat"):
        assert any(line.startswith(part) for line in first.said().splitlines()), first.said()
    assert first.said().count("curl") == 4
    assert first.get("/readyz") == 200
    for name in ("secrets.json", "stack.json", "demo-credentials.json"):
        assert stat.S_IMODE((data_dir / name).stat().st_mode) == 0o600, name
    secret = (data_dir / "secrets.json").read_text()

    # The supervisor brings back whatever dies, and its socket keeps callers waiting meanwhile.
    for name in ("gunicorn", "mongod", "redis-server", "celery"):
        os.kill(first.pids(name)[0], signal.SIGKILL)
    assert first.get("/healthz") == 200
    wait_until(lambda: first.said().count("starting it again") >= 4, 30)
    assert first.said().count("starting it again") >= 4
    wait_until(lambda: stack._answers(str(first.facts["base_url"])), 60)
    assert first.get("/readyz") == 200

    # Other commands find its servers, and a second stack does not start on top of it.
    with stack.store(data_dir, {}) as store:
        assert store.mongodb_uri == first.facts["mongodb_uri"]
        client: MongoClient[dict[str, object]] = MongoClient(store.mongodb_uri)
        with client:
            client.get_default_database()["kept"].insert_one({"_id": 1})
    assert "in use by `tanhui up`" in refused("up", "--data-dir", str(data_dir), "--port", "0")

    assert first.end() == 0
    assert left_of(data_dir) == []
    assert not (data_dir / "stack.json").exists()

    # Without the stack the store comes up alone, with the data.
    with stack.store(data_dir, {}) as store:
        client = MongoClient(store.mongodb_uri)
        with client:
            assert client.get_default_database()["kept"].count_documents({}) == 1
    assert left_of(data_dir) == []
    assert "holds demo data" in refused("up", "--data-dir", str(data_dir), "--port", "0")

    second = begin(data_dir, "--demo", "--port", "0").ready()
    assert (data_dir / "secrets.json").read_text() == secret
    assert second.end(signal.SIGINT) == 0
    assert left_of(data_dir) == []


def test_two_stacks_side_by_side_and_kill_9_leaves_no_orphan(
    begin: type[Stack], tmp_path: Path
) -> None:
    plain, demo = tmp_path / "plain", tmp_path / "demo"
    both = begin(plain, "--port", "0"), begin(demo, "--port", "0", "--demo")
    for each in both:
        each.ready()
    assert both[0].facts["base_url"] != both[1].facts["base_url"]
    assert both[0].get("/readyz") == both[1].get("/readyz") == 200
    assert "What to try" not in both[0].said()

    both[0].process.kill()
    both[0].process.wait()
    wait_until(lambda: not left_of(plain), 60)
    assert left_of(plain) == []
    assert both[1].get("/readyz") == 200

    again = begin(plain, "--port", "0").ready()
    assert again.end() == 0
    complaint = refused("up", "--demo", "--port", "0", "--data-dir", str(plain))
    assert "not a demo" in complaint


def test_a_kill_9_can_be_followed_at_once_by_a_start(begin: type[Stack], tmp_path: Path) -> None:
    data_dir = tmp_path / "var"
    first = begin(data_dir, "--port", "0").ready()
    first.process.kill()
    first.process.wait()
    second = begin(data_dir, "--port", "0").ready()
    assert second.get("/readyz") == 200


def test_a_stop_while_starting_is_a_stop(begin: type[Stack], tmp_path: Path) -> None:
    starting = begin(tmp_path / "var", "--port", "0")
    wait_until(lambda: "MongoDB" in starting.said(), 60)
    assert starting.end() == 0
    assert left_of(tmp_path / "var") == []


def test_your_own_servers_are_used_and_need_your_secret(begin: type[Stack], tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "log").mkdir(parents=True)
    data_dir = tmp_path / "var"
    with servers.mongod(elsewhere) as mongo, servers.redis_server(elsewhere) as cache:
        env = ENVIRONMENT | {"MONGODB_URI": mongo.url, "REDIS_URL": cache.url}
        assert "set TANHUI_SECRET" in refused("up", "--data-dir", str(data_dir), env=env)
        env["TANHUI_SECRET"] = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY="
        up = begin(data_dir, "--port", "0", env=env).ready()
        assert up.get("/readyz") == 200
        assert mongo.url not in (data_dir / "stack.json").read_text()
        assert not (data_dir / "mongodb").exists()
        assert not (data_dir / "secrets.json").exists()
        with stack.store(data_dir, env) as store:
            assert store.mongodb_uri == mongo.url
        assert up.end() == 0
        client: MongoClient[dict[str, object]] = MongoClient(mongo.url)
        with client:
            client.get_default_database()["people"].insert_one({"_id": 1})
            client.get_default_database()["meta"].delete_many({})
        complaint = refused("up", "--demo", "--data-dir", str(data_dir), "--port", "0", env=env)
        assert "--demo needs a database of its own" in complaint


def test_servers_of_your_own_that_do_not_answer_are_named(tmp_path: Path) -> None:
    env = ENVIRONMENT | {
        "MONGODB_URI": "mongodb://127.0.0.1:1/tanhui",
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "TANHUI_SECRET": "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY=",
    }
    complaint = refused("up", "--data-dir", str(tmp_path / "var"), "--port", "0", env=env)
    assert "MongoDB does not answer at MONGODB_URI" in complaint


def test_a_taken_port_is_one_line_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = str(holder.getsockname()[1])
        complaint = refused("up", "--data-dir", str(tmp_path / "var"), "--port", port)
    assert f"port {port} on 127.0.0.1 is taken" in complaint
    assert not (tmp_path / "var" / "mongodb").exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--data-dir", "{tmp}/file/var"), "cannot write to"),
        (("--demo", "--host", "0.0.0.0"), "loopback only"),
        (("--host", "0.0.0.0"), "set TANHUI_PUBLIC_URL"),
        (("--host", "203.0.113.1"), "cannot listen on 203.0.113.1"),
        (("--host", "no such host"), "cannot listen on no such host"),
    ],
)
def test_a_start_that_cannot_work_is_one_line(
    tmp_path: Path, options: tuple[str, ...], complaint: str
) -> None:
    (tmp_path / "file").touch()
    given = [option.format(tmp=tmp_path) for option in options]
    if "--data-dir" not in given:
        given += ["--data-dir", str(tmp_path / "var")]
    assert complaint in refused("up", "--port", "0", *given)


def test_a_missing_binary_is_one_line(tmp_path: Path) -> None:
    without = (
        "from dataclasses import replace\n"
        "from integrations import servers\n"
        "servers.MONGOD = replace(servers.MONGOD, path='nowhere/mongod')\n"
        "from api.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", without, "up", "--data-dir", str(tmp_path / "var"), "--port", "0"],
        capture_output=True,
        text=True,
        cwd=stack.ROOT,
        env=ENVIRONMENT,
        timeout=60,
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "MONGODB_URI" in done.stderr


def test_a_store_without_data_is_refused_by_verify(tmp_path: Path) -> None:
    assert "there is no data in" in refused("book", "verify", "--data-dir", str(tmp_path))


def test_running_starts_a_stack_and_finds_a_running_one(tmp_path: Path) -> None:
    data_dir = tmp_path / "var"
    with stack.running(data_dir, env=ENVIRONMENT) as base_url:
        with stack.running(data_dir, env=ENVIRONMENT) as same:
            assert same == base_url
        with pytest.raises(StackError, match="not a demo"), stack.running(data_dir, demo=True):
            pytest.fail("it is not a demo")
        assert settings.claimed(data_dir)
    assert left_of(data_dir) == []
    (tmp_path / "file").touch()
    with (
        pytest.raises(ServerError, match="cannot write to"),
        stack.running(tmp_path / "file" / "var", env=ENVIRONMENT),
    ):
        pytest.fail("it cannot start")


def test_a_child_that_keeps_failing_ends_the_stack(tmp_path: Path) -> None:
    child = Child("sorry", ["false"], tmp_path / "sorry.log")
    child.start()
    watched = stack._Watched(child)
    said: list[str] = []
    now = time.monotonic()

    def look_on() -> None:
        for second in range(100):
            wait_until(lambda: child.exit_code() is not None, 10)
            watched.look(now + second, said.append)

    with pytest.raises(StackError, match=r"sorry failed 5 times within 60 s.*exit 1.*sorry\.log"):
        look_on()
    assert len(said) == 4
    assert said[0] == "sorry stopped (exit 1); starting it again in 0.5 s"


def test_a_child_that_fails_now_and_then_is_always_started_again(tmp_path: Path) -> None:
    child = Child("sorry", ["false"], tmp_path / "sorry.log")
    child.start()
    watched = stack._Watched(child)
    said: list[str] = []
    now = time.monotonic()
    for _ in range(20):
        wait_until(lambda: child.exit_code() is not None, 10)
        watched.look(now, said.append)
        now += 20
    child.stop()
    assert len(said) == 10


def test_earlier_children_are_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(settings, "EARLIER_STACK_SECONDS", 0.3)
    with ExitStack() as parts:
        keep = parts.enter_context(settings.claim(tmp_path, "up"))
        child = Child("left", ["sleep", "600"], tmp_path / "left.log", keep=(keep,))
        child.start()
    with pytest.raises(ServerError, match="still hold"), settings.claim(tmp_path, "up"):
        pytest.fail("a child still holds it")
    child.stop()
    with settings.claim(tmp_path, "up"):
        pass
