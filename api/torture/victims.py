"""The processes of a running stack, as the kernel shows them, and whose turn it is to die."""

import os
import random
import signal
from collections import Counter, deque
from pathlib import Path

from api.supervisor import FAILURES_MAX, FAILURES_WINDOW_SECONDS

# What tells each part by its command line; the first that fits.
PARTS = {
    "mongod": "mongod",
    "redis-server": "Redis",
    "gunicorn": "API",
    "--queues urgent": "urgent worker",
    "--queues bulk": "bulk worker",
    "beat --schedule": "beat",
}
API_WORKER = "API worker"
# The supervisor gives up on a part that fails too often; a worker of the API is not its business.
KILLS_IN_WINDOW_MAX = FAILURES_MAX - 2


class Victims:
    """Kills parts of the stack under one supervisor, in an order that a seed decides."""

    def __init__(self, supervisor: int, rng: random.Random) -> None:
        self.kills: Counter[str] = Counter()
        self._supervisor = supervisor
        self._rng = rng
        self._recent: dict[str, deque[float]] = {}

    def kill_one(self, now_s: float) -> str | None:
        """Kill -9 one part that is there; its name, or None when nobody's turn it is."""
        living = self.living()
        turn = [name for name in (*PARTS.values(), API_WORKER) if self._may_die(name, now_s)]
        self._rng.shuffle(turn)
        for name in turn:
            if living.get(name):
                os.kill(self._rng.choice(sorted(living[name])), signal.SIGKILL)
                self._recent.setdefault(name, deque()).append(now_s)
                self.kills[name] += 1
                return name
        return None

    def living(self) -> dict[str, list[int]]:
        """Process ids by the name of the part."""
        found: dict[str, list[int]] = {}
        for pid in _children(self._supervisor):
            command = _command(pid)
            name = next((part for sign, part in PARTS.items() if sign in command), None)
            if name is None:
                continue
            found.setdefault(name, []).append(pid)
            if name == "API":
                found.setdefault(API_WORKER, []).extend(_children(pid))
        return found

    def _may_die(self, name: str, now_s: float) -> bool:
        recent = self._recent.setdefault(name, deque())
        while recent and now_s - recent[0] > FAILURES_WINDOW_SECONDS:
            recent.popleft()
        return len(recent) < KILLS_IN_WINDOW_MAX


def _children(parent: int) -> list[int]:
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if _parent(pid) == parent]


def _parent(pid: int) -> int | None:
    try:
        # The name in brackets may hold anything; state and parent come after it.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None  # Gone meanwhile.


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""
