"""`tanhui up`: start every part in order, keep it running, stop ours together, then the servers.

MongoDB, Redis, indexes, then gunicorn, Celery worker, Celery beat and the follower of the book
together. Each part is a process of its own that logs to `<data-dir>/log/` and cannot outlive this
one.
"""

import errno
import json
import os
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from accounting import indexing
from api import config as settings
from api import processes, stores
from api.config import Config, ConfigError
from api.stack import StackError, open_servers
from api.supervisor import (
    Say,
    Stopped,
    Watched,
    await_ready,
    restart_signal,
    stop_signals,
    watch,
)
from integrations import servers
from integrations.servers import Child

# A little more than a part takes to finish what it has begun.
ENDS_SECONDS = processes.GRACEFUL_SECONDS + 5


def _print(line: str) -> None:
    print(line, flush=True)


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
        with (
            stop_signals() as stop_asked,
            restart_signal() as restart_asked,
            ExitStack() as parts,
        ):
            watched, restart = _start(parts, stop_asked, data_dir, host, port, demo, env, say)
            watch(watched, stop_asked, say, restart_asked, restart)
    except Stopped:
        say("Stopped.")


def _start(
    parts: ExitStack,
    stop_asked: threading.Event,
    data_dir: Path,
    host: str,
    port: int,
    demo: bool,
    env: Mapping[str, str],
    say: Say,
) -> tuple[list[Watched], Callable[[], None]]:
    """Start the parts in order; `parts` stops them in reverse, ours all at once.

    Returns what to look after, and what starts ours anew without a gap.
    """
    data_dir = settings.prepare(data_dir)
    keep = parts.enter_context(settings.claim(data_dir, "`tanhui up`"))
    state = settings.StackFacts(data_dir)
    parts.callback(state.forget)
    state.forget()  # Of a stack that was killed.

    door = parts.enter_context(_listen(host, port))
    base_url = _base_url(host, door)
    config = _config(data_dir, base_url, host, demo, env)

    mongodb_uri, redis_url, children = open_servers(parts, data_dir, env, keep, say)
    config = replace(config, mongodb_uri=mongodb_uri, redis_url=redis_url)
    watched = [Watched(child) for child in children]
    stores.check_mode(config)
    stores.check_redis(config)
    # Of embedded servers nobody else is served: what differs may be dropped and built again.
    for one in stores.make_indexes(config.mongodb_uri, replace=not env.get("MONGODB_URI")):
        if one.kind == indexing.DIFFERENT:
            raise StackError(
                f"the index {one.name} of {one.collection} is not as this release declares it: "
                f"run `tanhui prepare --drop`"
            )
    say("indexes    ready")

    def start(child: Child) -> Watched:
        one = Watched(child)
        parts.callback(one.stop, ENDS_SECONDS)
        child.start()
        watched.append(one)
        return one

    if demo and not config.fcm_url and not config.google_credentials:
        standin, fcm_url, listening = processes.fcm_standin(data_dir, keep)
        start(standin)
        await_ready(standin, listening, stop_asked)
        config = replace(config, fcm_url=fcm_url)
        say(f"FCM        ready  {fcm_url}  (a stand-in: pushes end there)")
    facts: dict[str, Any] = {
        "pid": os.getpid(),
        "base_url": base_url,
        "demo": demo,
        # Addresses of the operator's own servers may hold passwords: they stay in memory.
        "mongodb_uri": None if env.get("MONGODB_URI") else mongodb_uri,
        "redis_url": None if env.get("REDIS_URL") else redis_url,
        "fcm_standin_url": config.fcm_url,
    }
    state.write({**facts, "ready": False})

    started_ns = time.time_ns()
    parts_of_ours = processes.of(config, door, keep)
    api, workers, beat = parts_of_ours.api, parts_of_ours.workers, parts_of_ours.beat
    others = [start(child) for child in (parts_of_ours.follower, *parts_of_ours.watchers)]
    at_work = [start(worker) for worker in workers]
    others.append(start(beat))
    at_the_door = start(api)
    parts.callback(
        _ask, [*others, *at_work, at_the_door]
    )  # None needs another to end, so all end at once.
    parts.callback(door.close)  # Before gunicorn is told to stop: nobody new comes in.
    if demo:
        _seed(config)
        say(f"demo data  ready  {data_dir / 'demo-credentials.json'}")
    await_ready(api, lambda: processes.answers(base_url), stop_asked)
    say(f"API        ready  {base_url}")
    for worker in workers:
        await_ready(worker, lambda: processes.consumes(config.redis_url), stop_asked)
    queues = " and ".join(processes.QUEUES.values())
    say(f"workers    ready  {processes.WORKER_THREADS} threads each for {queues}")
    await_ready(beat, lambda: processes.schedules(data_dir, started_ns), stop_asked)
    say("beat       ready")
    if config.drop_folder:
        say(f"watcher    ready  {config.drop_folder}")
    ready = {**facts, "ready": True, "restarts": 0, "problem": None}
    state.write(ready)

    def restart() -> None:
        """Workers, then the API, then the rest: the order of a release."""
        ready["restarts"] += 1
        try:
            for one in at_work:
                one.start_anew(ENDS_SECONDS)
                await_ready(one.child, lambda: processes.consumes(config.redis_url), stop_asked)
            at_the_door.hand_over(
                lambda child: processes.serves(data_dir, child.pid), stop_asked, ENDS_SECONDS
            )
            for one in others:
                one.start_anew(ENDS_SECONDS)
        except StackError as error:
            ready["problem"] = str(error)
        else:
            ready["problem"] = None
        state.write(ready)
        say(f"not restarted: {ready['problem']}" if ready["problem"] else "restarted")

    say(f"\nTanhui is up: {base_url}  (API pages: {base_url}/docs, logs: {data_dir / 'log'})")
    if demo:
        say(_what_to_try(base_url, data_dir))
    say("Ctrl-C stops everything.")
    return watched, restart


def _ask(watched: Iterable[Watched]) -> None:
    for one in watched:
        one.child.ask()


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


def _seed(config: Config) -> None:
    from api.demo.seed import seed  # Only a demo needs it.

    seed(config)


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
