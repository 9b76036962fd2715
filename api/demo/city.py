"""What the steps of the demo share: the stack, the people signed in, the day, what was counted."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any, TypeVar

from accounting import clock
from api.config import write_private
from api.demo.client import Client
from api.demo.inputs import DayInput

RECORD = "demo-day.json"
SESSIONS = "demo-sessions.json"
AT_ONCE = 8

T = TypeVar("T")


class Record:
    """What one data directory remembers of its demo, so that playing again changes nothing.

    `anchor` is the first run's instant: every event of the day is dated from it.
    """

    def __init__(self, data_dir: Path) -> None:
        self._file = data_dir / RECORD
        self._held: dict[str, Any] = {"anchor": clock.now().isoformat(), "runs": 0}
        if self._file.exists():
            self._held = json.loads(self._file.read_text("utf-8"))

    @property
    def anchor(self) -> datetime:
        return datetime.fromisoformat(self._held["anchor"])

    @property
    def today(self) -> date:
        return clock.city_day(self.anchor)

    @property
    def run(self) -> int:
        """Which run this is, from 1."""
        return int(self._held["runs"])

    def begin(self) -> None:
        self.keep(runs=self.run + 1)

    def get(self, name: str) -> Any:
        return self._held.get(name)

    def keep(self, **facts: Any) -> None:
        self._held.update(facts)
        write_private(self._file, self._held)


class Sessions:
    """Refresh tokens of demo residents, kept beside the data: codes are five an hour a phone."""

    def __init__(self, data_dir: Path) -> None:
        self._file = data_dir / SESSIONS
        self._lock = threading.Lock()
        self._held: dict[str, str] = {}
        if self._file.exists():
            self._held = json.loads(self._file.read_text("utf-8"))

    def of(self, phone: str) -> str | None:
        return self._held.get(phone)

    def keep(self, phone: str, refresh_token: str) -> None:
        with self._lock:
            self._held[phone] = refresh_token
            write_private(self._file, self._held)


@dataclass
class Person:
    """A resident who is signed in."""

    who: int
    phone: str
    resident_id: str
    headers: dict[str, str]

    @property
    def app_headers(self) -> dict[str, str]:
        """With the attestation only the demo accepts."""
        return {**self.headers, "X-Firebase-AppCheck": "demo"}


@dataclass
class City:
    client: Client
    data_dir: Path
    credentials: dict[str, Any]
    record: Record
    sessions: Sessions
    day: DayInput
    fcm_url: str | None
    # Shows (done, of how many) of the step at work.
    tick: Callable[[int, int], None]
    people: dict[int, Person] = field(default_factory=dict)
    behaviours: dict[str, Any] = field(default_factory=dict)
    partner: dict[str, str] = field(default_factory=dict)
    # What was acknowledged: (resident or None for a partner's row, source_event_id).
    acknowledged: set[tuple[int | None, str]] = field(default_factory=set)
    outcomes: Counter[str] = field(default_factory=Counter)
    tables: dict[str, Any] = field(default_factory=dict)

    @property
    def repeated(self) -> bool:
        """Whether the whole day was played on this data before."""
        return self.record.get("totals") is not None

    @property
    def fresh(self) -> bool:
        """Whether nothing of the day was played on this data before."""
        return self.record.run == 1

    def person(self, role: str) -> Person:
        return self.people[self.day.who(role)[0]]

    def each(self, work: Callable[[T], Any], items: Iterable[T]) -> list[Any]:
        """Do `work` for all items, a few at a time, in order of the items."""
        return side_by_side(work, list(items), self.tick)


def side_by_side(
    work: Callable[[T], Any], items: Sequence[T], tick: Callable[[int, int], None]
) -> list[Any]:
    found = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        waiting = [pool.submit(work, item) for item in items]
        try:
            for done, future in enumerate(waiting, start=1):
                found.append(future.result())
                tick(done, len(items))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found
