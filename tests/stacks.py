"""`tanhui up` in the background, and what is left of it in the process table."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from api import stack

SETTINGS = ("MONGODB_URI", "REDIS_URL", "GOOGLE_APPLICATION_CREDENTIALS")
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in SETTINGS and not name.startswith("TANHUI_")
}
"""Ours without settings: what it says of other servers is not for a stack of a test."""

PATIENCE_S = 240
"""For what takes seconds on a quiet machine. Nothing is measured by it: it ends what hangs."""


class Stack:
    """A `tanhui up` in the background; it ends with the context."""

    def __init__(self, data_dir: Path, *options: str) -> None:
        self.data_dir = data_dir
        self._out = data_dir.with_name(f"{data_dir.name}-{time.monotonic_ns()}.out")
        command = ["-m", "api.cli", "up", "--data-dir", str(data_dir), "--port", "0", *options]
        with self._out.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=stack.ROOT,
                env=ENVIRONMENT,
            )

    def __enter__(self) -> "Stack":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.end()

    def said(self) -> str:
        return self._out.read_text()

    def ready(self) -> "Stack":
        wait_until(lambda: "is up:" in self.said() or self.process.poll() is not None)
        assert "is up:" in self.said(), self.said()
        return self

    @property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.data_dir / "stack.json").read_text())
        return facts

    @property
    def base_url(self) -> str:
        return str(self.facts["base_url"])

    def get(self, path: str) -> int:
        with urllib.request.urlopen(f"{self.base_url}{path}", timeout=60) as answer:
            return int(answer.status)

    def pids(self, name: str) -> list[int]:
        return [pid for pid in left_of(self.data_dir) if name in command_of(pid)]

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


def wait_until(true: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    """Wait, and go on in any case: the caller asserts what must be true then."""
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)


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
