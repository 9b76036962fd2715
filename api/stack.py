"""`tanhui up`: start every part in order, keep it running, stop it in reverse order.

MongoDB, Redis, indexes, gunicorn, Celery worker, Celery beat. Each part is a process of its own
that logs to `<data-dir>/log/` and cannot outlive this one. Other commands attach to a running
stack through `<data-dir>/stack.json`, or start the store alone while they need it.
"""

import errno
import http.client
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn
from urllib.parse import urlsplit

import redis
from pymongo import MongoClient, ReturnDocument
from pymongo.errors import ConfigurationError, ConnectionFailure
from pymongo.write_concern import WriteConcern

from api import config as settings
from api.config import Config, ConfigError
from integrations import servers
from integrations.servers import Child

ROOT = Path(__file__).resolve().parents[1]
"""Where the rooms are: children start here, so they run this very code from any directory."""

API_WORKERS = 2
API_THREADS = 8
WORKER_THREADS = 4
GRACEFUL_SECONDS = 20

PART_READY_SECONDS = 120
STACK_READY_SECONDS = 300
STACK_STOP_SECONDS = 180
ATTACH_SECONDS = 60
POLL_SECONDS = 0.1
WATCH_SECONDS = 0.5

FAILURES_MAX = 5
FAILURES_WINDOW_SECONDS = 60
RESTART_SECONDS_MAX = 4.0

Say = Callable[[str], None]


class StackError(Exception):
    """The stack cannot start or go on. The message is one sentence for the operator."""


class _Stopped(BaseException):
    """Somebody asked us to stop; not an error, so nothing that handles errors may swallow it."""


def _print(line: str) -> None:
    print(line, flush=True)


# --- tanhui up ---------------------------------------------------------------------------------


def up(
    data_dir: Path,
    *,
    host: str = servers.LOOPBACK,
    port: int = 8000,
    demo: bool = False,
    env: Mapping[str, str] = os.environ,
    say: Say = _print,
) -> None:
    """Run the stack until Ctrl-C or SIGTERM; then every child is gone. Port 0 takes a free one.

    Call it from the main thread. Raises StackError, ServerError or ConfigError, each one sentence.
    """
    if demo and not settings.is_loopback(host):
        raise ConfigError(f"--demo listens on loopback only: --host {host} is not")
    try:
        with _stop_signals() as stop_asked, ExitStack() as parts:
            watched = _start(parts, data_dir, host, port, demo, env, say)
            _watch(watched, stop_asked, say)
    except _Stopped:
        say("Stopped.")


def _start(
    parts: ExitStack,
    data_dir: Path,
    host: str,
    port: int,
    demo: bool,
    env: Mapping[str, str],
    say: Say,
) -> list["_Watched"]:
    """Start the parts in order; `parts` stops them in reverse."""
    data_dir = settings.prepare(data_dir)
    keep = parts.enter_context(settings.claim(data_dir, "`tanhui up`"))
    state = settings.StackFacts(data_dir)
    parts.callback(state.forget)
    state.forget()  # Of a stack that was killed.

    door = parts.enter_context(_listen(host, port))
    base_url = _base_url(host, door)
    config = _config(data_dir, base_url, host, demo, env)

    mongodb_uri, redis_url, children = _servers(parts, data_dir, env, keep, say)
    config = replace(config, mongodb_uri=mongodb_uri, redis_url=redis_url)
    watched = [_Watched(child) for child in children]
    _check_mode(config)
    _check_redis(config)
    _make_indexes(config)
    say("indexes    ready")
    if demo and not config.fcm_url and not config.google_credentials:
        standin, fcm_url = _fcm_standin(data_dir, keep)
        parts.callback(standin.stop)
        watched.append(_Watched(standin))
        config = replace(config, fcm_url=fcm_url)
        say(f"FCM        ready  {fcm_url}  (a stand-in: pushes end there)")
    facts = {
        "pid": os.getpid(),
        "base_url": base_url,
        "demo": demo,
        # Addresses of the operator's own servers may hold passwords: they stay in memory.
        "mongodb_uri": None if env.get("MONGODB_URI") else mongodb_uri,
        "redis_url": None if env.get("REDIS_URL") else redis_url,
        "fcm_standin_url": config.fcm_url,
    }
    state.write({**facts, "ready": False})

    api, worker, beat = _processes(config, door, keep)

    def start(child: Child) -> None:
        child.start()
        parts.callback(child.stop, GRACEFUL_SECONDS + 5)
        watched.append(_Watched(child))

    start(api)
    parts.callback(door.close)  # Before gunicorn is told to stop: nobody new comes in.
    if demo:
        _seed(config)
        say(f"demo data  ready  {data_dir / 'demo-credentials.json'}")
    _await(api, lambda: _answers(base_url))
    say(f"API        ready  {base_url}")
    started_ns = time.time_ns()
    start(worker)
    start(beat)
    _await(worker, lambda: _consumes(config.redis_url))
    say(f"worker     ready  {WORKER_THREADS} threads")
    _await(beat, lambda: _schedules(data_dir, started_ns))
    say("beat       ready")
    state.write({**facts, "ready": True})
    say(f"\nTanhui is up: {base_url}  (API pages: {base_url}/docs, logs: {data_dir / 'log'})")
    if demo:
        say(_what_to_try(base_url, data_dir))
    say("Ctrl-C stops everything.")
    return watched


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into `_Stopped`; later ones do nothing.

    The event is set as well: an exception out of a signal handler is lost where Python cannot
    raise it (a finalizer, a callback from C), and the stop must not be lost with it.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    asked = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        asked.set()
        raise _Stopped

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listen(host: str, port: int) -> socket.socket:
    """The API's socket. We hold it, so no client is refused while gunicorn is started again."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StackError(
                f"port {port} on {host} is taken: choose another with --port"
            ) from error
        raise StackError(
            f"cannot listen on {host} port {port} ({error.strerror}): "
            f"choose others with --host and --port"
        ) from error
    except OverflowError:
        raise StackError(f"--port {port} is not a port: use 0 to 65535") from None


def _base_url(host: str, door: socket.socket) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{reachable}]' if ':' in reachable else reachable}:{door.getsockname()[1]}"


def _config(data_dir: Path, base_url: str, host: str, demo: bool, env: Mapping[str, str]) -> Config:
    """Check every setting before anything is started; server addresses come in afterwards."""
    own = bool(env.get("MONGODB_URI") or env.get("REDIS_URL"))
    secret = settings.given_secret(env) if own else settings.embedded_secret(data_dir, env)
    if not env.get("TANHUI_PUBLIC_URL") and not settings.is_loopback(host):
        raise ConfigError(
            f"set TANHUI_PUBLIC_URL to the address clients use, because --host {host} is not "
            f"loopback: signatures of banks cover it"
        )
    return Config.from_env(
        {
            "MONGODB_URI": "mongodb://to-be-started",
            "REDIS_URL": "redis://to-be-started",
            "TANHUI_PUBLIC_URL": base_url,
            **{name: value for name, value in env.items() if value},
            "TANHUI_SECRET": b64encode(secret).decode(),
            "TANHUI_DATA_DIR": str(data_dir),
            "TANHUI_DEMO": "1" if demo else "0",
        }
    )


def _servers(
    parts: ExitStack, data_dir: Path, env: Mapping[str, str], keep: int, say: Say
) -> tuple[str, str, list[Child]]:
    """Addresses of MongoDB and Redis: the operator's own, or embedded ones started here."""
    addresses: list[str] = []
    children: list[Child] = []
    for variable, title, start in (
        ("MONGODB_URI", "MongoDB", servers.mongod),
        ("REDIS_URL", "Redis", servers.redis_server),
    ):
        if given := env.get(variable, "").strip():
            addresses.append(given)
            say(f"{title:<10} yours  ({variable})")
            continue
        server = parts.enter_context(start(data_dir, keep=(keep,)))
        addresses.append(server.url)
        children.append(server.child)
        say(f"{title:<10} ready  {server.address}")
    return addresses[0], addresses[1], children


# --- the state of the database -----------------------------------------------------------------


def _check_mode(config: Config) -> None:
    """A database is a demo or it is not, for ever: demo conveniences must not meet real people."""
    try:
        client: MongoClient[dict[str, Any]] = MongoClient(
            config.mongodb_uri, serverSelectionTimeoutMS=10_000
        )
        with client:
            database = client.get_default_database(servers.DATABASE)
            meta = database.get_collection("meta", write_concern=WriteConcern("majority", j=True))
            if config.demo and meta.find_one({"_id": "mode"}) is None:
                for name in database.list_collection_names():
                    if not name.startswith("system.") and database[name].find_one() is not None:
                        raise StackError(
                            f"--demo needs a database of its own, and {database.name!r} already "
                            f"holds data: choose another --data-dir or MONGODB_URI"
                        )
            # Upserted with AFTER, so there always is one; atomic, so two starts agree on it.
            mode: Any = meta.find_one_and_update(
                {"_id": "mode"},
                {"$setOnInsert": {"demo": config.demo}},
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )
    except ConnectionFailure:
        raise StackError(
            "MongoDB does not answer at MONGODB_URI: start it, or correct it"
        ) from None
    except ConfigurationError as error:
        raise StackError(f"MONGODB_URI cannot be used: {error}") from None
    if mode["demo"] and not config.demo:
        raise StackError(
            "this database holds demo data: start with --demo, or choose another --data-dir "
            "or MONGODB_URI"
        )
    if config.demo and not mode["demo"]:
        raise StackError(
            "this database is not a demo: start without --demo, or choose another --data-dir "
            "or MONGODB_URI"
        )


def _check_redis(config: Config) -> None:
    try:
        with redis.Redis.from_url(config.redis_url, socket_connect_timeout=5) as client:
            client.ping()
    except redis.RedisError:
        raise StackError("Redis does not answer at REDIS_URL: start it, or correct it") from None


def _make_indexes(config: Config) -> None:
    # Imported here, because the other commands of this module need no application: a document
    # registers its indexes when its room is imported, and the application imports every room.
    import api.app  # noqa: F401
    from accounting import storage

    try:
        storage.connect(config.mongodb_uri)
        storage.ensure_indexes()
    except storage.WeakStore as error:
        raise StackError(str(error)) from error
    finally:
        storage.disconnect()


def _seed(config: Config) -> None:
    from api.demo.seed import seed

    seed(config)


# --- the processes -----------------------------------------------------------------------------


def _processes(config: Config, door: socket.socket, keep: int) -> tuple[Child, Child, Child]:
    """The API, the worker and the clock, not yet started."""
    metrics = config.data_dir / "metrics"
    shutil.rmtree(metrics, ignore_errors=True)  # Counters of processes that are gone.
    metrics.mkdir(mode=0o700)
    inherited = {name: value for name, value in os.environ.items() if name[:7] != "TANHUI_"}
    environment = {
        **inherited,
        **config.environment(),
        "PROMETHEUS_MULTIPROC_DIR": str(metrics),
        "PYTHONUNBUFFERED": "1",
    }

    def child(name: str, command: list[str], *fds: int, orphaned: signal.Signals) -> Child:
        return Child(
            name,
            [sys.executable, "-m", *command],
            config.data_dir / "log" / f"{name}.log",
            environment=environment,
            directory=ROOT,
            keep=(keep, *fds),
            on_orphaned=orphaned,
        )

    celery = ["celery", "--app", "api.worker:celery"]
    api = [
        *(
            "gunicorn",
            "api.wsgi:app",
            "--bind",
            f"fd://{door.fileno()}",
            "--no-control-socket",
        ),
        *(
            "--worker-class",
            "gthread",
            "--workers",
            f"{API_WORKERS}",
            "--threads",
            f"{API_THREADS}",
        ),
        *(
            "--graceful-timeout",
            f"{GRACEFUL_SECONDS}",
            "--timeout",
            "60",
            "--keep-alive",
            "5",
        ),
        *("--log-level", config.log_level.lower()),
    ]
    worker = [
        *(*celery, "worker", "--pool", "threads", "--concurrency", f"{WORKER_THREADS}"),
        *("--without-gossip", "--without-mingle", "--loglevel", config.log_level),
    ]
    beat = [
        *(*celery, "beat", "--schedule", str(_schedule_file(config.data_dir))),
        *("--loglevel", config.log_level),
    ]
    return (
        child("gunicorn", api, door.fileno(), orphaned=signal.SIGTERM),
        # On SIGTERM a worker finishes its tasks first; with the servers gone it never would.
        child("worker", worker, orphaned=signal.SIGKILL),
        child("beat", beat, orphaned=signal.SIGTERM),
    )


def _fcm_standin(data_dir: Path, keep: int) -> tuple[Child, str]:
    """A running stand-in for Firebase; on a fixed port, because a restart must not move it."""
    with socket.socket() as probe:
        probe.bind((servers.LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    standin = Child(
        "fcm-standin",
        [sys.executable, "-m", "integrations.fcm_standin", "--port", str(port)],
        data_dir / "log" / "fcm-standin.log",
        directory=ROOT,
        keep=(keep,),
    )
    standin.start()
    try:
        _await(standin, lambda: _accepts(port))
    except BaseException:
        standin.stop()
        raise
    return standin, f"http://{servers.LOOPBACK}:{port}"


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection((servers.LOOPBACK, port), timeout=1):
            return True
    except OSError:
        return False  # Not listening yet.


def _await(child: Child, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PART_READY_SECONDS
    while not ready():
        if child.exit_code() is not None:
            raise StackError(
                f"{child.name} stopped while starting ({_exit(child)}): read {child.log}"
            )
        if time.monotonic() > deadline:
            raise StackError(
                f"{child.name} did not become ready within {PART_READY_SECONDS} s: read {child.log}"
            )
        time.sleep(POLL_SECONDS)


def _answers(base_url: str) -> bool:
    """Whether the API says it is ready."""
    address = urlsplit(base_url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False  # Not serving yet.
    finally:
        connection.close()


def _consumes(redis_url: str) -> bool:
    """Whether a worker listens: last of all it subscribes to the pattern of its control channel."""
    try:
        with redis.Redis.from_url(redis_url, socket_connect_timeout=5) as client:
            return int(client.pubsub_numpat()) > 0
    except redis.RedisError:
        return False


def _schedule_file(data_dir: Path) -> Path:
    return data_dir / "beat-schedule"


def _schedules(data_dir: Path, since_ns: int) -> bool:
    """Whether beat has opened its schedule; some database libraries add a suffix to the name."""
    found = data_dir.glob(f"{_schedule_file(data_dir).name}*")
    return any(file.stat().st_mtime_ns >= since_ns for file in found)


@dataclass
class _Watched:
    """A child and its recent failures."""

    child: Child
    failures: deque[float] = field(default_factory=lambda: deque(maxlen=FAILURES_MAX))
    start_at: float | None = None

    def look(self, now: float, say: Say) -> None:
        """Start the child again when it died; raises StackError when that does not help."""
        child = self.child
        if self.start_at is not None:
            if now >= self.start_at:
                self.start_at = None
                child.start()
            return
        if child.exit_code() is None:
            return
        child.kill_group()
        self.failures.append(now)
        recent = sum(now - failed < FAILURES_WINDOW_SECONDS for failed in self.failures)
        if recent == FAILURES_MAX:
            raise StackError(
                f"{child.name} failed {FAILURES_MAX} times within {FAILURES_WINDOW_SECONDS} s, "
                f"last with {_exit(child)}: read {child.log}"
            )
        delay = min(0.5 * 2 ** (recent - 1), RESTART_SECONDS_MAX)
        self.start_at = now + delay
        say(f"{child.name} stopped ({_exit(child)}); starting it again in {delay:g} s")


def _watch(watched: list[_Watched], stop_asked: threading.Event, say: Say) -> None:
    """Look after the children until a stop is asked for or one of them is beyond help."""
    while not stop_asked.is_set():
        for each in watched:
            each.look(time.monotonic(), say)
        time.sleep(WATCH_SECONDS)
    raise _Stopped


def _exit(child: Child) -> str:
    code = child.exit_code()
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit {code}"


def _what_to_try(base_url: str, data_dir: Path) -> str:
    known = json.loads((data_dir / "demo-credentials.json").read_text("utf-8"))
    phone = known["residents"][0]["phone"]
    pick = 'sed -nE \'s/.*"{}": *"([^"]+)".*/\\1/p\''.format
    post = "curl -s -H 'Content-Type: application/json'"
    bearer = '-H "Authorization: Bearer $TOKEN"'
    bus = (
        '{"behaviour":"bike_km","quantity":3,"occurred_at":"\'$(date -u +%Y-%m-%dT%H:%M:%SZ)\'",'
        '"source_event_id":"try-\'$(date +%s)\'","evidence":{"kind":"sensor","recorder":"gps"}}'
    )
    return "\n".join(
        [
            "What to try: sign in, report 3 km by bike, see the points.",
            f"""  CODE=$({post} {base_url}/v1/auth/otp -d '{{"phone":"{phone}"}}' """
            f"""| {pick("debug_code")})""",
            f"""  TOKEN=$({post} {base_url}/v1/auth/token -d """
            f"""'{{"phone":"{phone}","code":"'$CODE'"}}' | {pick("access_token")})""",
            f"""  {post} {bearer} -H 'X-Firebase-AppCheck: demo' {base_url}/v1/activities """
            f"""-d '{bus}'""",
            f"""  curl -s {bearer} {base_url}/v1/me/points""",
        ]
    )


# --- for other commands and tests --------------------------------------------------------------


@contextmanager
def running(
    data_dir: Path,
    *,
    demo: bool = False,
    port: int | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """The base URL of the stack on this directory; one is started, and stopped after, if needed.

    Raises StackError with what `tanhui up` said when it could not start.
    """
    data_dir = data_dir.absolute()
    facts = settings.StackFacts(data_dir).read()
    if facts is not None and facts["ready"]:
        if facts["demo"] != demo:
            mode = "a demo" if facts["demo"] else "not a demo"
            raise StackError(f"the stack on {data_dir} is {mode}: choose another --data-dir")
        yield facts["base_url"]
        return
    command = [sys.executable, "-m", "api.cli", "up", "--data-dir", str(data_dir)]
    command += ["--port", str(port or 0), *(["--demo"] if demo else [])]
    with tempfile.TemporaryDirectory() as folder:
        child = Child("up", command, Path(folder) / "up.log", environment=env, directory=ROOT)
        child.start()
        try:
            yield _ready_url(child, data_dir)
        finally:
            child.stop(STACK_STOP_SECONDS)


def _ready_url(child: Child, data_dir: Path) -> str:
    state = settings.StackFacts(data_dir)
    deadline = time.monotonic() + STACK_READY_SECONDS
    while child.exit_code() is None and time.monotonic() < deadline:
        facts = state.read()
        if facts is not None and facts["ready"]:
            return str(facts["base_url"])
        time.sleep(POLL_SECONDS)
    lines = child.output().strip().splitlines() or ["the stack did not become ready"]
    raise StackError(lines[-1].removeprefix("tanhui: "))


@dataclass(frozen=True)
class Store:
    """Where the data is, and the secret it is sealed with."""

    mongodb_uri: str = field(repr=False)
    redis_url: str = field(repr=False)
    secret: bytes = field(repr=False)


@contextmanager
def store(data_dir: Path, env: Mapping[str, str] = os.environ) -> Iterator[Store]:
    """The store of a running stack on this directory, or one started for the time it is needed.

    Waits when another short command is at work. Raises ServerError, StackError or ConfigError.
    """
    data_dir = data_dir.absolute()
    mongodb_uri, redis_url = env.get("MONGODB_URI", ""), env.get("REDIS_URL", "")
    if mongodb_uri and redis_url:
        yield Store(mongodb_uri, redis_url, settings.given_secret(env))
        return
    own = bool(mongodb_uri or redis_url)
    if not own and not (data_dir / "mongodb").is_dir():
        raise StackError(
            f"there is no data in {data_dir}: give the --data-dir of `tanhui up`, "
            f"or set MONGODB_URI and REDIS_URL"
        )
    deadline = time.monotonic() + ATTACH_SECONDS
    while settings.claimed(data_dir) and time.monotonic() < deadline:
        facts = settings.StackFacts(data_dir).read()
        if facts is not None:
            found = mongodb_uri or facts["mongodb_uri"], redis_url or facts["redis_url"]
            if None in found:
                raise StackError(
                    f"the stack on {data_dir} uses servers of its own: set MONGODB_URI, REDIS_URL "
                    f"and TANHUI_SECRET for this command as for the stack"
                )
            yield Store(*found, _secret(data_dir, own, env))
            return
        time.sleep(POLL_SECONDS)
    with ExitStack() as parts:
        keep = parts.enter_context(settings.claim(settings.prepare(data_dir), "another command"))
        settings.StackFacts(data_dir).forget()
        secret = _secret(data_dir, own, env)
        found_uri, found_redis, _ = _servers(parts, data_dir, env, keep, lambda _line: None)
        yield Store(found_uri, found_redis, secret)


def _secret(data_dir: Path, own: bool, env: Mapping[str, str]) -> bytes:
    return settings.given_secret(env) if own else settings.embedded_secret(data_dir, env)
