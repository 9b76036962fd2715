"""The processes of a stack besides its servers: how each is started, and how we see it is ready."""

import http.client
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import redis

from api.config import Config
from api.stack import ROOT
from integrations import servers
from integrations.servers import Child

# A worker for each queue, so that a push or a sweep never waits behind a file.
QUEUES = {"worker-urgent": "urgent", "worker-bulk": "bulk", "worker-webhooks": "webhooks"}
API_WORKERS = 2
API_THREADS = 8
WORKER_THREADS = 4
GRACEFUL_SECONDS = 20
# Beside the counters, with the id of the gunicorn whose first process is ready.
SERVING = "serving-"


@dataclass(frozen=True)
class Parts:
    """The API, the workers, the clock, the follower of the book, who watches a drop folder."""

    api: Child
    workers: list[Child]
    beat: Child
    follower: Child
    watchers: list[Child]


API, BEAT, FOLLOWER, WATCHER = "api", "beat", "follower", "watcher"
NAMES = (API, *QUEUES, BEAT, FOLLOWER, WATCHER)


def command(name: str, config: Config, bind: str) -> list[str]:
    """What a part runs after `python -m`. `bind` is what gunicorn listens on."""
    celery = ["celery", "--app", f"api.{'beat' if name == BEAT else 'worker'}:celery"]
    if name == API:
        return gunicorn("api.wsgi:app", bind, config.log_level)
    if name == BEAT:
        schedule = str(_schedule_file(config.data_dir))
        return [*celery, "beat", "--schedule", schedule, "--loglevel", config.log_level]
    if name in (FOLLOWER, WATCHER):
        return [f"api.{name}"]
    return [
        *(*celery, "worker", "--pool", "threads", "--concurrency", f"{WORKER_THREADS}"),
        *("--queues", QUEUES[name], "--hostname", f"{name}@%h"),
        *("--without-gossip", "--without-mingle", "--loglevel", config.log_level),
    ]


def environment(config: Config, given: Mapping[str, str]) -> dict[str, str]:
    """What a part finds in its environment; its counters start from nothing."""
    metrics = _metrics(config.data_dir)
    shutil.rmtree(metrics, ignore_errors=True)  # Counters of processes that are gone.
    metrics.mkdir(mode=0o700, parents=True)
    inherited = {name: value for name, value in given.items() if name[:7] != "TANHUI_"}
    return {
        **inherited,
        **config.environment(),
        "PROMETHEUS_MULTIPROC_DIR": str(metrics),
        "PYTHONUNBUFFERED": "1",
    }


def _metrics(data_dir: Path) -> Path:
    return data_dir / "metrics"


def become(name: str, config: Config, bind: str, given: Mapping[str, str]) -> NoReturn:
    """Turn this process into a part, for whoever supervises it (systemd, Kubernetes, Compose)."""
    program = [sys.executable, "-m", *command(name, config, bind)]
    os.execve(sys.executable, program, environment(config, given))


def of(config: Config, door: socket.socket, keep: int) -> Parts:
    """The processes besides the servers, not yet started."""
    env = environment(config, os.environ)

    def child(name: str, *fds: int, orphaned: signal.Signals) -> Child:
        return Child(
            name,
            [sys.executable, "-m", *command(name, config, f"fd://{door.fileno()}")],
            config.data_dir / "log" / f"{name}.log",
            environment=env,
            directory=ROOT,
            keep=(keep, *fds),
            on_orphaned=orphaned,
        )

    return Parts(
        api=child(API, door.fileno(), orphaned=signal.SIGTERM),
        # On SIGTERM a worker finishes its tasks first; with the servers gone it never would.
        workers=[child(name, orphaned=signal.SIGKILL) for name in QUEUES],
        beat=child(BEAT, orphaned=signal.SIGTERM),
        follower=child(FOLLOWER, orphaned=signal.SIGKILL),
        watchers=[child(WATCHER, orphaned=signal.SIGKILL)] if config.drop_folder else [],
    )


def gunicorn(application: str, bind: str, log_level: str) -> list[str]:
    """The command, after `python -m`, that serves an application the way the product is served."""
    return [
        *("gunicorn", application, "--config", "python:api.gunicorn"),
        *("--bind", bind, "--no-control-socket"),
        *("--worker-class", "api.gunicorn.Worker"),
        *("--workers", f"{API_WORKERS}", "--threads", f"{API_THREADS}"),
        *("--graceful-timeout", f"{GRACEFUL_SECONDS}", "--timeout", "60", "--keep-alive", "5"),
        *("--log-level", log_level.lower()),
    ]


def fcm_standin(data_dir: Path, keep: int) -> tuple[Child, str, Callable[[], bool]]:
    """A stand-in for Firebase, not yet started; its URL; whether it listens.

    On a fixed port, because a restart must not move it.
    """
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
    return standin, f"http://{servers.LOOPBACK}:{port}", lambda: _accepts(port)


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection((servers.LOOPBACK, port), timeout=1):
            return True
    except OSError:
        return False  # Not listening yet.


def answers(base_url: str) -> bool:
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


def serves(data_dir: Path, pid: int) -> bool:
    """Whether a process of this gunicorn has built the application and takes requests."""
    return (_metrics(data_dir) / f"{SERVING}{pid}").exists()


def consumes(redis_url: str) -> bool:
    """Whether the workers listen: last of all each subscribes to the pattern of control."""
    try:
        with redis.Redis.from_url(redis_url, socket_connect_timeout=5) as client:
            listening = client.client_list(_type="pubsub")
            return sum(int(one["psub"]) > 0 for one in listening) >= len(QUEUES)
    except redis.RedisError:
        return False


def _schedule_file(data_dir: Path) -> Path:
    return data_dir / "beat-schedule"


def schedules(data_dir: Path, since_ns: int) -> bool:
    """Whether beat has opened its schedule; some database libraries add a suffix to the name."""
    found = data_dir.glob(f"{_schedule_file(data_dir).name}*")
    return any(file.stat().st_mtime_ns >= since_ns for file in found)
