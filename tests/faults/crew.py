"""The test's side of the zygote: start processes, wait for them, have them killed at a step."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

KILLED = {"signal": int(signal.SIGKILL)}


class Crew:
    """Processes that work on the same database as the test. Use it as a context."""

    def __init__(self, mongodb_uri: str) -> None:
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
        self._process.communicate(timeout=10)

    def start(self, *jobs: dict[str, Any]) -> list[int]:
        """Fork a process for each job; they begin together. Returns their ids."""
        pids: list[int] = self._say({"start": jobs})
        return pids

    def wait(self, pids: list[int]) -> list[dict[str, Any]]:
        ends: list[dict[str, Any]] = self._say({"wait": pids})
        return ends

    def run(self, call: str, die: tuple[str, str] | None = None, **args: Any) -> dict[str, Any]:
        """Run one scenario to its end; `die` is (`package.module:function`, before or after)."""
        return self.wait(self.start(job(call, die, **args)))[0]

    def _say(self, wanted: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def job(call: str, die: tuple[str, str] | None = None, **args: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"call": call, "args": args}
    if die is not None:
        made["die"] = {"at": die[0], "when": die[1]}
    return made
