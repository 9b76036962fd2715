"""One warm process without a connection, from which a fresh one is forked for every scenario.

A fork costs milliseconds where a new interpreter costs a second, so a test can afford to kill a
process at every step. Lines of JSON in, lines of JSON out:

    {"start": [{"call": "redeem", "args": {...}, "die": {...}, "shift_s": 0}, ...]} -> [pid, ...]
    {"wait": [pid, ...]} -> [{"signal": 9} | {"value": ...} | {"error": "KeyReused"}, ...]

`die` names a function (`package.module:function`), `before` or `after` its n-th call; there the
process kills itself with SIGKILL. All of one `start` begin their work at the same moment.
"""

import importlib
import itertools
import json
import os
import signal
import sys
import traceback
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

# Run as a script: the tests beside this folder are found as they are in a test.
sys.path.insert(0, str(Path(__file__).parents[1]))

from accounting import clock, storage, vault
from accounting.errors import DomainError
from faults import scenarios

SECRET = bytes(range(32))


def main(uri: str) -> None:
    answers: dict[int, int] = {}
    for line in sys.stdin:
        wanted = json.loads(line)
        if "start" in wanted:
            answer: list[Any] = _start(uri, wanted["start"], answers)
        else:
            answer = [_reap(pid, answers.pop(pid)) for pid in wanted["wait"]]
        print(json.dumps(answer), flush=True)  # noqa: T201


def _start(uri: str, jobs: list[dict[str, Any]], answers: dict[int, int]) -> list[int]:
    gate_out, gate_in = os.pipe()
    pids = []
    for job in jobs:
        answer_out, answer_in = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(gate_in)
            os.close(answer_out)
            _live(uri, job, gate_out, answer_in)
        os.close(answer_in)
        answers[pid] = answer_out
        pids.append(pid)
    os.close(gate_out)
    os.close(gate_in)  # Everybody waits for the end of this file.
    return pids


def _live(uri: str, job: dict[str, Any], gate: int, answer: int) -> None:
    code = 1
    try:
        # A busy machine is no fault to be tested here.
        storage.SERVER_SELECTION_MS = 30_000
        storage.connect(uri)
        storage.client().admin.command("ping")
        vault.configure(SECRET)
        if "die" in job:
            _arm(**job["die"])
        os.read(gate, 1)
        result: dict[str, Any]
        with ExitStack() as stack:
            stack.enter_context(clock.travel(timedelta(seconds=job.get("shift_s", 0))))
            try:
                result = {"value": scenarios.SCENARIOS[job["call"]](**job["args"])}
            except DomainError as refusal:
                result = {"error": type(refusal).__name__}
        os.write(answer, json.dumps(result).encode())
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _arm(at: str, when: str, nth: int = 1) -> None:
    """Make the n-th call of a function the last thing this process does."""
    module, name = at.split(":")
    place = importlib.import_module(module)
    real, calls = getattr(place, name), itertools.count(1)

    def deadly(*args: Any, **kwargs: Any) -> Any:
        number = next(calls)  # Atomic: threads call it too.
        if number == nth and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if number == nth and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(place, name, deadly)


def _reap(pid: int, answer: int) -> dict[str, Any]:
    with os.fdopen(answer, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return {"signal": os.WTERMSIG(status)}
    if not said:
        return {"error": "crashed, see stderr"}
    result: dict[str, Any] = json.loads(said)
    return result


if __name__ == "__main__":
    main(sys.argv[1])
