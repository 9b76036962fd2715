"""The processes of a city on one machine, as deployed, and what each of them takes."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from api import processes
from api.config import Config
from api.stack import ROOT
from bench.serving import cpu_s, served
from integrations.servers import Child, Server

PORT = 18_431
WORKERS = 2
READY_S = 90


@dataclass(frozen=True)
class Stack:
    """What runs: the API, bulk workers and a follower, and the servers below them."""

    parts: dict[str, list[Child]]

    def cpu_s(self) -> dict[str, float]:
        """Processor seconds of each part so far."""
        return {
            name: sum(cpu_s(child.pid) for child in children)
            for name, children in self.parts.items()
        }

    def peak_mib(self) -> dict[str, int]:
        """The most memory a process of each part ever had."""
        return {
            name: max(_peak_mib(pid) for child in children for pid in _family(child.pid))
            for name, children in self.parts.items()
        }


@contextmanager
def city_stack(config: Config, store: Server, queue: Server, threads: int) -> Iterator[Stack]:
    """The API, two bulk workers of some threads and the follower on running servers."""
    with ExitStack() as stack:
        api = stack.enter_context(served(config, {"api.wsgi:app": PORT}))
        environment = {**os.environ, **config.environment()}

        def part(name: str, command: list[str]) -> Child:
            child = Child(
                name, [sys.executable, "-m", *command], config.data_dir / "log" / f"{name}.log",
                environment=environment, directory=ROOT,
            )  # fmt: skip
            child.start()
            stack.callback(child.stop)
            return child

        worker = processes.command("worker-bulk", config, "")
        worker[worker.index("--concurrency") + 1] = f"{threads}"
        host = worker.index("--hostname") + 1
        workers = [
            part(f"worker-{n}", [*worker[:host], f"bulk-{n}@%h", *worker[host + 1 :]])
            for n in range(WORKERS)
        ]
        follower = part("follower", processes.command("follower", config, ""))
        _wait(config, workers)
        yield Stack(
            {
                "api": api,
                "worker": workers,
                "follower": [follower],
                "mongod": [store.child],
                "redis": [queue.child],
            }
        )


def _wait(config: Config, workers: list[Child]) -> None:
    """Until every worker listens: last of all it subscribes to the pattern of control."""
    until = time.monotonic() + READY_S
    with redis.Redis.from_url(config.redis_url) as client:
        while sum(int(one["psub"]) > 0 for one in client.client_list(_type="pubsub")) < WORKERS:
            for child in workers:
                assert child.exit_code() is None, child.output()
            assert time.monotonic() < until, workers[0].output()
            time.sleep(0.2)


def _family(pid: int) -> list[int]:
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def _peak_mib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    # One that has ended meanwhile has no memory.
    found = [int(one.split()[1]) for one in status.splitlines() if one.startswith("VmHWM")]
    return sum(found) // 1024
