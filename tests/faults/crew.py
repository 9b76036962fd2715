"""The test's side of the zygote: start processes, wait for them, have them killed at a step."""

import json
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from accounting import clock

KILLED = {"signal": int(signal.SIGKILL)}


class Death(NamedTuple):
    """Die by SIGKILL `before` or `after` the n-th call of `package.module:function`."""

    at: str
    when: str
    nth: int = 1

    def __str__(self) -> str:
        """For the ids of parametrized tests."""
        return f"{self.when}-{self.at.split(':')[1]}" + (f"-{self.nth}" if self.nth > 1 else "")


class Crew:
    """Processes that work on the same database as the test. Use it as a context.

    They begin at the time of the test's own clock, or so far `ahead` of it.
    """

    def __init__(self, mongodb_uri: str) -> None:
        self.ahead = timedelta(0)
        zygote = Path(__file__).with_name("zygote.py")
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", str(zygote), mongodb_uri],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def start(self, *jobs: dict[str, Any]) -> list[int]:
        """Fork a process for each job; they begin together. Returns their ids."""
        shift_s = (clock.now() + self.ahead - datetime.now(UTC)).total_seconds()
        pids: list[int] = self._say({"start": [{"shift_s": shift_s, **one} for one in jobs]})
        return pids

    def wait(self, pids: list[int]) -> list[dict[str, Any]]:
        ends: list[dict[str, Any]] = self._say({"wait": pids})
        return ends

    def run(self, call: str, die: Death | None = None, **args: Any) -> dict[str, Any]:
        """Run one scenario to its end, or to its death."""
        return self.wait(self.start(job(call, die, **args)))[0]

    def _say(self, wanted: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def job(call: str, die: Death | None = None, **args: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"call": call, "args": args}
    if die is not None:
        made["die"] = die._asdict()
    return made
