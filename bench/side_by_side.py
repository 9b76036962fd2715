"""Two ways of doing the same, measured in turns, so that a busy machine slows both alike."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from accounting import storage, vault
from integrations.servers import mongod

out = Console(width=110)


@contextmanager
def fresh_store() -> Iterator[str]:
    """A MongoDB of its own, as the product starts it, connected and indexed; its URI."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        (folder / "log").mkdir()
        with mongod(folder) as store:
            storage.connect(store.url)
            vault.configure(bytes(range(32)))
            storage.ensure_indexes()
            try:
                yield store.url
            finally:
                storage.disconnect()


def timed(do: Callable[[], object]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def in_turns(*ways: Sequence[Callable[[], object]]) -> list[list[float]]:
    """Seconds of every step of every way; first steps of all ways, then second ones, and so on."""
    seconds: list[list[float]] = [[] for _ in ways]
    for steps in zip(*ways, strict=True):
        for place, step in enumerate(steps):
            seconds[place].append(timed(step))
    return seconds


def rate(count_a_step: int, seconds: Sequence[float]) -> float:
    """Things a second, by the median step."""
    return count_a_step / median(seconds)


def table(title: str, *columns: str) -> Table:
    made = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        made.add_column(column, justify="right" if place else "left")
    return made
