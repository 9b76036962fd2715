"""The stack as other commands meet it: running already, or started for the time it is needed.

They attach to a running one through `<data-dir>/stack.json`. `api/launch.py` is what runs it.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api import config as settings
from integrations import servers
from integrations.servers import Child

ROOT = Path(__file__).resolve().parents[1]
"""Where the rooms are: children start here, so they run this very code from any directory."""

READY_SECONDS = 300
STOP_SECONDS = 180
ATTACH_SECONDS = 60
# Each part may take its time to finish and to start.
RESTART_SECONDS = 600
POLL_SECONDS = 0.05


class StackError(Exception):
    """The stack cannot start or go on. The message is one sentence for the operator."""


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
        try:
            child.start()
            yield _ready_url(child, data_dir)
        finally:
            child.stop(STOP_SECONDS)


def _ready_url(child: Child, data_dir: Path) -> str:
    state = settings.StackFacts(data_dir)
    deadline = time.monotonic() + READY_SECONDS
    while child.exit_code() is None and time.monotonic() < deadline:
        facts = state.read()
        if facts is not None and facts["ready"]:
            return str(facts["base_url"])
        time.sleep(POLL_SECONDS)
    lines = child.output().strip().splitlines() or ["the stack did not become ready"]
    raise StackError(lines[-1].removeprefix("tanhui: "))


def running_facts(data_dir: Path) -> dict[str, Any]:
    """What the `tanhui up` on this directory says of itself; StackError when none is ready."""
    facts = settings.StackFacts(data_dir.absolute()).read()
    if facts is None or not facts["ready"]:
        raise StackError(f"no stack runs on {data_dir}: start it with `tanhui up`")
    return facts


def restart(data_dir: Path) -> None:
    """Have the `tanhui up` on this directory start its parts anew, and wait until it did.

    Raises StackError when one did not become ready; the old API goes on then.
    """
    state, before = settings.StackFacts(data_dir.absolute()), running_facts(data_dir)
    if "restarts" not in before:
        # Of a release from before there were restarts: the signal would end it.
        raise StackError(f"what runs on {data_dir} cannot be restarted: stop it and start it again")
    os.kill(before["pid"], signal.SIGUSR2)
    deadline = time.monotonic() + RESTART_SECONDS
    while time.monotonic() < deadline:
        facts = state.read()
        if facts is None:
            raise StackError(f"the stack on {data_dir} ended meanwhile: read what it said")
        if facts["restarts"] > before["restarts"]:
            if facts["problem"]:
                raise StackError(f"{facts['problem']}; what ran before goes on")
            return
        time.sleep(POLL_SECONDS)
    raise StackError(f"the parts on {data_dir} were not ready in {RESTART_SECONDS} s")


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
    if (there := found(data_dir, env)) is not None:
        yield there
        return
    own = bool(env.get("MONGODB_URI") or env.get("REDIS_URL"))
    if not own and not (data_dir / "mongodb").is_dir():
        raise StackError(
            f"there is no data in {data_dir}: give the --data-dir of `tanhui up`, "
            f"or set MONGODB_URI and REDIS_URL"
        )
    deadline = time.monotonic() + ATTACH_SECONDS
    while settings.claimed(data_dir) and time.monotonic() < deadline:
        if (there := found(data_dir, env)) is not None:
            yield there
            return
        time.sleep(POLL_SECONDS)
    with ExitStack() as parts:
        keep = parts.enter_context(settings.claim(settings.prepare(data_dir), "another command"))
        settings.StackFacts(data_dir).forget()
        secret = _secret(data_dir, own, env)
        found_uri, found_redis, _ = open_servers(parts, data_dir, env, keep, lambda _line: None)
        yield Store(found_uri, found_redis, secret)


def found(data_dir: Path, env: Mapping[str, str] = os.environ) -> Store | None:
    """The store that the environment names, or of a stack that runs on this directory; None if none
    does. Raises StackError or ConfigError.
    """
    mongodb_uri, redis_url = env.get("MONGODB_URI", ""), env.get("REDIS_URL", "")
    if mongodb_uri and redis_url:
        return Store(mongodb_uri, redis_url, settings.given_secret(env))
    data_dir = data_dir.absolute()
    facts = settings.StackFacts(data_dir).read()
    if facts is None:
        return None
    mongodb_uri, redis_url = mongodb_uri or facts["mongodb_uri"], redis_url or facts["redis_url"]
    if mongodb_uri is None or redis_url is None:
        raise StackError(
            f"the stack on {data_dir} uses servers of its own: set MONGODB_URI, REDIS_URL "
            f"and TANHUI_SECRET for this command as for the stack"
        )
    own = bool(env.get("MONGODB_URI") or env.get("REDIS_URL"))
    return Store(mongodb_uri, redis_url, _secret(data_dir, own, env))


def _secret(data_dir: Path, own: bool, env: Mapping[str, str]) -> bytes:
    return settings.given_secret(env) if own else settings.embedded_secret(data_dir, env)


def open_servers(
    parts: ExitStack, data_dir: Path, env: Mapping[str, str], keep: int, say: Callable[[str], None]
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
