"""Applications served as the product is served, asked over HTTP, and their processor time."""

import http.client
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from accounting import storage
from api import processes
from api.config import Config
from integrations.servers import Child

READY_S = 60
TICKS = os.sysconf("SC_CLK_TCK")


@contextmanager
def served(config: Config, ports: Mapping[str, int]) -> Iterator[list[Child]]:
    """Each application under a gunicorn as the product starts it, on its port, listening."""
    metrics = config.data_dir / "metrics"
    metrics.mkdir(exist_ok=True)
    environment = {**os.environ, **config.environment(), "PROMETHEUS_MULTIPROC_DIR": str(metrics)}
    made = [
        Child(
            name.partition(".")[0],
            [
                *(sys.executable, "-m"),
                *processes.gunicorn(name, f"127.0.0.1:{port}", config.log_level),
            ],
            config.data_dir / "log" / f"{port}.log",
            environment=environment,
        )
        for name, port in ports.items()
    ]
    try:
        for child in made:
            child.start()
        for child, port in zip(made, ports.values(), strict=True):
            _wait(child, port)
        yield made
    finally:
        for child in made:
            child.stop()


def _wait(child: Child, port: int) -> None:
    until = time.monotonic() + READY_S
    while True:
        try:
            ask(http.client.HTTPConnection("127.0.0.1", port, timeout=5), "GET", "/readyz")
            return
        except OSError:
            assert child.exit_code() is None, child.output()
            assert time.monotonic() < until, child.output()
            time.sleep(0.1)


def ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, bytes]:
    """Status and body of one request over a connection that stays open."""
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    return answer.status, answer.read()


def cpu_s(pid: int) -> float:
    """Processor seconds of a process with the children it has now, so far."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ticks = 0
    for one in (pid, *map(int, children)):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS


def same_indexes(name: str, into: str) -> None:
    """The indexes of a collection on another one, for whoever writes the same documents there."""
    kept = ("unique", "sparse", "partialFilterExpression")
    for index in storage.database()[name].index_information().values():
        if index["key"] != [("_id", 1)]:
            options = {option: index[option] for option in kept if option in index}
            storage.database()[into].create_index(index["key"], **options)
