"""Keeping children alive: wait until one is ready, start it again when it dies, stop when asked."""

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import NoReturn

from api.stack import StackError
from integrations.servers import Child

READY_SECONDS = 120
POLL_SECONDS = 0.05
WATCH_SECONDS = 0.25

FAILURES_MAX = 5
FAILURES_WINDOW_SECONDS = 60
RESTART_SECONDS_MAX = 4.0

Say = Callable[[str], None]


class Stopped(BaseException):
    """Somebody asked us to stop; not an error, so nothing that handles errors may swallow it."""


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into `Stopped`; later ones do nothing.

    The event is set as well: an exception out of a signal handler is lost where Python cannot
    raise it (a finalizer, a callback from C), and the stop must not be lost with it.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    asked = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        asked.set()
        raise Stopped

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def restart_signal() -> Iterator[threading.Event]:
    """SIGUSR2 sets the event: somebody wants our parts started anew without a gap."""
    asked = threading.Event()
    before = signal.signal(signal.SIGUSR2, lambda _number, _frame: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGUSR2, before)


def await_ready(child: Child, ready: Callable[[], bool], stop_asked: threading.Event) -> None:
    """Wait until it is; raises StackError when the child stops or takes too long."""
    deadline = time.monotonic() + READY_SECONDS
    while not ready():
        if stop_asked.is_set():
            raise Stopped
        if child.exit_code() is not None:
            raise StackError(
                f"{child.name} stopped while starting ({_exit(child)}): read {child.log}"
            )
        if time.monotonic() > deadline:
            raise StackError(
                f"{child.name} did not become ready within {READY_SECONDS} s: read {child.log}"
            )
        time.sleep(POLL_SECONDS)


@dataclass
class Watched:
    """A child and its recent failures. Another may take the place of the child."""

    child: Child
    failures: deque[float] = field(default_factory=lambda: deque(maxlen=FAILURES_MAX))
    start_at: float | None = None

    def stop(self, seconds: float) -> None:
        self.child.stop(seconds)

    def start_anew(self, seconds: float) -> None:
        """End the child when it has finished what it has begun, and start it again."""
        self.child.stop(seconds)
        self.start_at = None
        self.child.start()

    def hand_over(
        self, ready: Callable[[Child], bool], stop_asked: threading.Event, seconds: float
    ) -> None:
        """Start a second child, and end the first only when the second is ready.

        Raises StackError when it does not become ready; then the first goes on as before.
        """
        successor = replace(self.child)
        try:
            successor.start()
            await_ready(successor, lambda: ready(successor), stop_asked)
        except BaseException:
            successor.stop(seconds)
            raise
        former, self.child, self.start_at = self.child, successor, None
        former.stop(seconds)

    def look(self, now: float, say: Say) -> None:
        """Start the child again when it died; raises StackError when that does not help."""
        child = self.child
        if self.start_at is not None:
            if now >= self.start_at:
                self.start_at = None
                child.start()
            return
        if child.exit_code() is None:
            return
        child.kill_group()
        self.failures.append(now)
        recent = sum(now - failed < FAILURES_WINDOW_SECONDS for failed in self.failures)
        if recent == FAILURES_MAX:
            raise StackError(
                f"{child.name} failed {FAILURES_MAX} times within {FAILURES_WINDOW_SECONDS} s, "
                f"last with {_exit(child)}: read {child.log}"
            )
        delay = min(0.5 * 2 ** (recent - 1), RESTART_SECONDS_MAX)
        self.start_at = now + delay
        say(f"{child.name} stopped ({_exit(child)}); starting it again in {delay:g} s")


def watch(
    watched: Sequence[Watched],
    stop_asked: threading.Event,
    say: Say,
    restart_asked: threading.Event,
    restart: Callable[[], None],
) -> None:
    """Look after the children until a stop is asked for or one of them is beyond help."""
    while not stop_asked.is_set():
        if restart_asked.is_set():
            restart_asked.clear()
            restart()
        for each in watched:
            each.look(time.monotonic(), say)
        time.sleep(WATCH_SECONDS)
    raise Stopped


def _exit(child: Child) -> str:
    code = child.exit_code()
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit {code}"
