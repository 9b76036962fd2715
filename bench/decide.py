"""What Python does for a row of a partner's file, without a database: microseconds of CPU a row.

    python -m bench.decide [--rows 10000] [--residents 5000] [--rounds 5] [--profile]

The rows of `bench.feed`, day after day: read and checked, made into facts, decided and drafted as
entries one behind the other, and told as outcomes. The book is a dictionary.
"""

import argparse
import cProfile
import io
import pstats
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from statistics import median

from accounting import clock, links, vault
from accounting.book import Entry, Head
from accounting.book.entries import Noted, next_entry
from api import garbage, reports
from api.feed_rows import RowFields
from api.reading import RowReader
from bench.feed import PARTNER, SECRET, external, file_of
from bench.side_by_side import out, table
from footprint import activities, intake
from footprint.activities import Activity
from footprint.rules import Report
from integrations import feeds
from points import crediting, earning, terms
from points.earning import Terms

CHUNK = 1_000
SOURCE = f"partner:{PARTNER}"
STEPS = ("parse", "read and check", "fact", "decide", "outcome")


@dataclass
class Book:
    """Every account as its newest entry left it, and what its rules look back on."""

    residents: dict[str, str]
    heads: dict[str, Head] = field(default_factory=dict)
    noted: defaultdict[str, list[Noted]] = field(default_factory=lambda: defaultdict(list))

    def on_days(self, account: str, first: date, last: date) -> list[Noted]:
        since, until = first.isoformat(), last.isoformat()
        return [one for one in self.noted[account] if since <= one.cap_day <= until]


@dataclass
class Spent:
    """CPU seconds by step."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def on(self, step: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self.seconds[step] += time.process_time() - began


def take(content: bytes, book: Book, now: datetime, spent: Spent) -> None:
    """All rows of a file, a thousand at a time."""
    reader = RowReader(RowFields())
    with spent.on("parse"):
        data = io.BytesIO(content)
        rows = list(feeds.rows(data, media_type=feeds.NDJSON, gzipped=False, size=len(content)))
    for start in range(0, len(rows), CHUNK):
        with spent.on("read and check"):
            read = [reader.load(row) for row in rows[start : start + CHUNK]]
            told = [(row, reports.report_of(row)) for row in read]
        with spent.on("fact"):
            facts = [
                _fact(book, row["external_id"], row["source_event_id"], report, now)
                for row, report in told
            ]
        with spent.on("decide"):
            entries = [_decided(book, fact, now) for fact in facts if fact.verdict is None]
        with spent.on("outcome"):
            for fact, entry in entries:
                outcome = activities.outcome_of(fact, entry)
                climb = crediting.climb(entry)
                assert climb.after_mg >= climb.before_mg, outcome


def _fact(book: Book, external_id: str, event_id: str, report: Report, now: datetime) -> Activity:
    return intake.fact_of(
        report,
        resident=book.residents[external_id],
        source=SOURCE,
        event_id=event_id,
        evidence="A",
        received_at=now,
        subject=links.external_hash(PARTNER, external_id),
        job="job_1",
    )


def _decided(book: Book, fact: Activity, now: datetime) -> tuple[Activity, Entry]:
    account = fact.resident
    wanted = crediting.asking(fact, now, lost_to=None, who=_nobody)
    before = book.heads.get(account) or Head(account, days=book.on_days)
    entry, _ = next_entry(wanted.ask, before, wanted.decide(before, now), now)
    book.heads[account] = Head(account, entry.seq, entry.after, now, entry.hash, book.on_days)
    if entry.cap_day is not None:
        noted = Noted(entry.seq, entry.kind, entry.cap_day, entry.recorded_at, entry.refs)
        book.noted[account].append(noted)
    return fact, entry


def _nobody() -> earning.Who:
    raise AssertionError("no campaign asks")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--residents", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    wanted = parser.parse_args()
    vault.configure(SECRET)
    # The rules that ship, and no record of a funder: they are never read again.
    terms._known = (float("inf"), Terms(earning.shipped()))
    book = Book({external(number): f"res_{number:026d}" for number in range(wanted.residents)})
    chance, today = random.Random(9), clock.now().astimezone(UTC).replace(hour=0, minute=0)
    profiler, turns = cProfile.Profile(), []
    for turn in range(wanted.rounds + 1):
        day = today - timedelta(days=wanted.rounds + 1 - turn)
        content = file_of(wanted.rows, wanted.residents, chance, day)
        spent = Spent()
        # What the book keeps would lie in MongoDB, where no collector looks at it.
        garbage.settle()
        if wanted.profile and turn:
            profiler.enable()
        take(content, book, day + timedelta(hours=20), spent)
        profiler.disable()
        # The first turn warms caches and brings everybody's first points.
        turns += [spent] if turn else []
    report(wanted.rows, turns)
    if wanted.profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(45)


def report(rows: int, turns: list[Spent]) -> None:
    shown = table(f"{rows:,} rows a day, the median of {len(turns)} days", "", "µs of CPU a row")
    for step in STEPS:
        shown.add_row(step, f"{_median_us(rows, [turn.seconds[step] for turn in turns]):.1f}")
    whole = _median_us(rows, [sum(turn.seconds.values()) for turn in turns])
    shown.add_row("all", f"{whole:.1f}")
    out.print(shown)


def _median_us(rows: int, seconds: list[float]) -> float:
    return 1e6 * median(seconds) / rows


if __name__ == "__main__":
    main()
