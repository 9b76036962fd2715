"""The whole stack as `tanhui up` runs it: real processes, real signals.

A start costs seconds, so tests that leave a stack as they found it share one demo (`demo_stack`).
"""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pymongo import MongoClient
from pymongo.collection import Collection
from stacks import ENVIRONMENT, PATIENCE_S, SETTINGS, Stack, left_of, wait_until

from api import cli, processes, stack, stores
from api import config as settings
from api.config import Config
from api.stack import StackError
from api.supervisor import Watched
from integrations.servers import Child, ServerError

pytestmark = pytest.mark.timeout(2 * PATIENCE_S)

SECRET = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY="


@contextmanager
def kept(uri: str) -> Iterator[Collection[dict[str, Any]]]:
    """A collection of that database that no code of ours knows."""
    client: MongoClient[dict[str, Any]] = MongoClient(uri)
    with client:
        yield client.get_default_database()["kept"]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command that must fail with exit 1 and one line; that line."""

    def run(*arguments: str, env: dict[str, str] | None = None) -> str:
        with monkeypatch.context() as patch:
            for name in [name for name in os.environ if name in SETTINGS or "TANHUI" in name]:
                patch.delenv(name)
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["tanhui", *arguments])
            with pytest.raises(SystemExit) as ended:
                cli.main()
        said = capsys.readouterr()
        assert ended.value.code == 1, said
        assert len(said.err.splitlines()) == 1, said
        return said.err

    return run


# A stack that runs.


def test_each_part_is_named_and_what_is_secret_is_readable_by_its_owner_only(
    demo_stack: Stack,
) -> None:
    for part in ("MongoDB", "Redis", "indexes", "FCM", "demo data", "API", "workers", "beat"):
        assert any(line.startswith(part) for line in demo_stack.said().splitlines()), part
    assert demo_stack.said().count("curl") == 4
    assert demo_stack.get("/readyz") == 200
    for name in ("secrets.json", "stack.json", "demo-credentials.json"):
        assert stat.S_IMODE((demo_stack.data_dir / name).stat().st_mode) == 0o600, name


OTP = b"POST /v1/auth/otp HTTP/1.1\r\nHost: x\r\n"
CHUNKED = OTP + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"BLAH\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nA b: 1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 20_000 + b"\r\n\r\n",
        OTP + b"Content-Length: abc\r\n\r\n",
        CHUNKED + b"zz\r\n",
        CHUNKED + b"2\r\n{}XX\r\n",
    ],
    ids=lambda sent: repr(sent[:30] + sent[-14:]),
)
def test_what_is_no_http_is_a_problem_like_any_other(
    demo_stack: Stack, request_bytes: bytes
) -> None:
    url = urlsplit(demo_stack.base_url)
    with socket.create_connection((url.hostname, url.port), timeout=PATIENCE_S) as caller:
        caller.sendall(request_bytes)
        head, _, body = b"".join(iter(lambda: caller.recv(65_536), b"")).partition(b"\r\n\r\n")
    assert head.split()[1] == b"400"
    assert b"content-type: application/problem+json" in head.lower()
    problem = json.loads(body)
    assert (problem["status"], problem["code"]) == (400, "malformed_request")
    assert problem["request_id"]


def test_other_commands_find_a_running_stack_and_do_not_start_on_top_of_it(
    demo_stack: Stack, refused: Any
) -> None:
    data_dir = demo_stack.data_dir
    with stack.store(data_dir, {}) as store:
        assert store.mongodb_uri == demo_stack.facts["mongodb_uri"]
    with stack.running(data_dir, demo=True, env=ENVIRONMENT) as same:
        assert same == demo_stack.base_url
    with pytest.raises(StackError, match="is a demo"), stack.running(data_dir):
        pytest.fail("it is a demo")
    complaint = refused("up", "--data-dir", str(data_dir), "--port", "0")
    assert "in use by `tanhui up`" in complaint


def test_whatever_dies_is_started_again_while_its_socket_keeps_callers_waiting(
    demo_stack: Stack,
) -> None:
    def restarts() -> int:
        return demo_stack.said().count("starting it again")

    with kept(demo_stack.facts["mongodb_uri"]) as numbers:
        numbers.insert_one({"_id": 1})
    before = restarts()
    for name in ("gunicorn", "mongod", "redis-server", "celery"):
        os.kill(demo_stack.pids(name)[0], signal.SIGKILL)
    assert demo_stack.get("/healthz") == 200
    wait_until(lambda: restarts() >= before + 4)
    assert restarts() == before + 4
    wait_until(lambda: processes.answers(demo_stack.base_url))
    assert demo_stack.get("/readyz") == 200
    with kept(demo_stack.facts["mongodb_uri"]) as numbers:
        assert numbers.count_documents({}) == 1


def test_a_kill_9_leaves_no_orphan_and_can_be_followed_at_once_by_a_start_with_all_data(
    demo_stack: Stack, tmp_path: Path, refused: Any
) -> None:
    data_dir = tmp_path / "var"
    with Stack(data_dir) as first:
        first.ready()
        assert first.base_url != demo_stack.base_url
        assert first.get("/readyz") == demo_stack.get("/readyz") == 200
        assert "What to try" not in first.said()
        secret = (data_dir / "secrets.json").read_text()
        with kept(first.facts["mongodb_uri"]) as numbers:
            numbers.insert_one({"_id": 1})
        children = left_of(data_dir)
        first.process.kill()
        first.process.wait()
    with Stack(data_dir) as second:
        second.ready()
        assert set(left_of(data_dir)).isdisjoint(children)
        assert second.get("/readyz") == demo_stack.get("/readyz") == 200
        assert (data_dir / "secrets.json").read_text() == secret
        assert second.end(signal.SIGINT) == 0
    assert left_of(data_dir) == []
    assert not (data_dir / "stack.json").exists()

    # Without the stack the store comes up alone, with the data.
    with stack.store(data_dir, {}) as store, kept(store.mongodb_uri) as numbers:
        assert numbers.count_documents({}) == 1
    assert left_of(data_dir) == []
    complaint = refused("up", "--demo", "--port", "0", "--data-dir", str(data_dir))
    assert "not a demo" in complaint
    assert left_of(data_dir) == []


def test_a_stop_while_starting_is_a_stop(tmp_path: Path) -> None:
    with Stack(tmp_path / "var") as starting:
        wait_until(lambda: "MongoDB" in starting.said())
        assert starting.end() == 0
    # What was just being started may see a moment later that it is alone.
    wait_until(lambda: left_of(tmp_path / "var") == [])
    assert left_of(tmp_path / "var") == []


@pytest.fixture
def yours(config: Config) -> Iterator[dict[str, str]]:
    """Servers of the operator's own: those of the tests, with a database of its own in each."""
    uri = config.mongodb_uri.replace("/tanhui?", "/yours?")
    client: MongoClient[dict[str, Any]] = MongoClient(uri)
    with client:
        client.drop_database("yours")
        yield {"MONGODB_URI": uri, "REDIS_URL": config.redis_url.removesuffix("/0") + "/9"}
        client.drop_database("yours")


def test_your_own_servers_are_used_and_need_your_secret(
    yours: dict[str, str], tmp_path: Path, refused: Any
) -> None:
    data_dir = tmp_path / "var"
    up = ("up", "--data-dir", str(data_dir), "--port", "0")
    assert "set TANHUI_SECRET" in refused(*up, env=yours)
    env = yours | {"TANHUI_SECRET": SECRET}
    with stack.running(data_dir, env=ENVIRONMENT | env) as base_url:
        assert processes.answers(base_url)
        assert yours["MONGODB_URI"] not in (data_dir / "stack.json").read_text()
        assert not (data_dir / "mongodb").exists()
        assert not (data_dir / "secrets.json").exists()
        with stack.store(data_dir, env) as store:
            assert store.mongodb_uri == yours["MONGODB_URI"]
        assert settings.claimed(data_dir)
    assert not settings.claimed(data_dir)
    assert left_of(data_dir) == []


def test_a_database_is_a_demo_or_not_for_ever(
    yours: dict[str, str], config: Config, tmp_path: Path
) -> None:
    plain = replace(config, mongodb_uri=yours["MONGODB_URI"])
    demo = replace(plain, demo=True)
    with kept(plain.mongodb_uri) as people:
        people.insert_one({"_id": 1})
        with pytest.raises(StackError, match="--demo needs a database of its own"):
            stores.check_mode(demo)
        people.drop()
    stores.check_mode(demo)
    stores.check_mode(demo)
    with pytest.raises(StackError, match="holds demo data"):
        stores.check_mode(plain)


# A stack that cannot run.


def test_servers_of_your_own_that_do_not_answer_are_named(
    tmp_path: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "MONGODB_ANSWERS_MS", 500)
    env = {
        "MONGODB_URI": "mongodb://127.0.0.1:1/tanhui",
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "TANHUI_SECRET": SECRET,
    }
    complaint = refused("up", "--data-dir", str(tmp_path / "var"), "--port", "0", env=env)
    assert "MongoDB does not answer at MONGODB_URI" in complaint


def test_a_taken_port_is_one_line_before_anything_starts(tmp_path: Path, refused: Any) -> None:
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
    tmp_path: Path, refused: Any, options: tuple[str, ...], complaint: str
) -> None:
    (tmp_path / "file").touch()
    given = [option.format(tmp=tmp_path) for option in options]
    if "--data-dir" not in given:
        given += ["--data-dir", str(tmp_path / "var")]
    assert complaint in refused("up", "--port", "0", *given)


def test_who_needed_a_stack_is_told_why_it_did_not_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ServerError, match="cannot write to"),
        stack.running(tmp_path / "file" / "var", env=ENVIRONMENT),
    ):
        pytest.fail("it cannot start")
    with (
        pytest.raises(StackError, match="TANHUI_LOG_LEVEL must be one of"),
        stack.running(tmp_path / "var", env=ENVIRONMENT | {"TANHUI_LOG_LEVEL": "x"}),
    ):
        pytest.fail("it cannot start")


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
        timeout=PATIENCE_S,
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "MONGODB_URI" in done.stderr


def test_a_store_without_data_is_refused_by_verify(tmp_path: Path, refused: Any) -> None:
    assert "there is no data in" in refused("book", "verify", "--data-dir", str(tmp_path))


# Its parts.


def test_a_child_that_keeps_failing_ends_the_stack(tmp_path: Path) -> None:
    child = Child("sorry", ["false"], tmp_path / "sorry.log")
    child.start()
    watched = Watched(child)
    said: list[str] = []
    now = time.monotonic()

    def look_on() -> None:
        for second in range(100):
            wait_until(lambda: child.exit_code() is not None)
            watched.look(now + second, said.append)

    with pytest.raises(StackError, match=r"sorry failed 5 times within 60 s.*exit 1.*sorry\.log"):
        look_on()
    assert len(said) == 4
    assert said[0] == "sorry stopped (exit 1); starting it again in 0.5 s"


def test_a_child_that_fails_now_and_then_is_always_started_again(tmp_path: Path) -> None:
    child = Child("sorry", ["false"], tmp_path / "sorry.log")
    child.start()
    watched = Watched(child)
    said: list[str] = []
    now = time.monotonic()
    for _ in range(20):
        wait_until(lambda: child.exit_code() is not None)
        watched.look(now, said.append)
        now += 20
    child.stop()
    assert len(said) == 10


def test_a_child_ends_only_when_its_successor_is_ready(tmp_path: Path) -> None:
    """The script is the release: with `broken` there it does not start."""
    broken, ready = tmp_path / "broken", tmp_path / "ready"
    script = f"test -e {broken} && exit 3; touch {ready}; exec sleep 600"
    watched = Watched(Child("door", ["sh", "-c", script], tmp_path / "door.log"))
    former, never = watched.child, threading.Event()
    former.start()
    try:
        wait_until(ready.exists)
        broken.touch()
        with pytest.raises(StackError, match=r"door stopped while starting \(exit 3\)"):
            watched.hand_over(lambda _child: False, never, 5)
        assert watched.child is former
        assert former.exit_code() is None

        broken.unlink()
        ready.unlink()

        def is_ready(child: Child) -> bool:
            assert former.exit_code() is None
            return ready.exists()

        watched.hand_over(is_ready, never, 5)
        assert watched.child is not former
        assert former.exit_code() is not None
        assert watched.child.exit_code() is None
    finally:
        watched.stop(0)


def test_a_stack_of_a_release_without_restarts_is_left_alone(tmp_path: Path) -> None:
    data_dir = settings.prepare(tmp_path / "var")
    with settings.claim(data_dir, "`tanhui up`"), subprocess.Popen(["sleep", "60"]) as older:
        settings.StackFacts(data_dir).write({"pid": older.pid, "ready": True})
        with pytest.raises(StackError, match="stop it and start it again"):
            stack.restart(data_dir)
        # The signal would have ended it before this one does.
        older.send_signal(signal.SIGKILL)
        assert older.wait() == -signal.SIGKILL


def test_only_a_running_stack_is_restarted(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "var").mkdir()
    assert "no stack runs on" in refused("restart", "--data-dir", str(tmp_path / "var"))


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


def test_only_the_bulk_worker_steps_back_behind_who_waits_for_an_answer(demo_stack: Stack) -> None:
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    steps = {
        name: {os.getpriority(os.PRIO_PROCESS, pid) - ours for pid in demo_stack.pids(name)}
        for name in ("worker-urgent@", "worker-webhooks@", "worker-bulk@")
    }
    assert steps == {"worker-urgent@": {0}, "worker-webhooks@": {0}, "worker-bulk@": {10}}
