"""One large file among workers: what sharing costs, what it brings, and the memory it takes.

    python -m bench.shares [--rows 60000] [--residents 10000] [--workers 1 2]
    python -m bench.shares --flat-mb 200

Without options: what passing over a row of another share costs next to reading one, by format, and
one file worked by one worker and by two, from its bytes to points. With `--flat-mb` a packed file
of that many megabytes is taken in by two workers, and the most memory each ever took is shown: of
its rows one in ten is good, the others are refused and kept with what was wrong, which takes more.
"""

import argparse
import csv
import gzip
import io
import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

from accounting import clock, jobs, storage
from api import feed_rows
from bench.feed import PARTNER, external, file_of, link_everybody, server_cpu_s, start
from bench.side_by_side import fresh_store, out, table
from integrations import feeds, imports, mapping
from integrations.feeds import CSV, NDJSON, REPORTS, Share

# Another share's: none of these rows is yielded.
NOBODYS = 1_000_003
PADDING_CHARS = 4_000


def peak_mib() -> int:
    """Of this program alone: the figure of `getrusage` begins with that of whoever started it."""
    told = Path("/proc/self/status").read_text().split("VmHWM:")[1]
    return int(told.split()[0]) // 1024


def work(uri: str, job_id: str, first: int) -> tuple[float, int]:
    """Take up every share of a job that is free, from a place on; CPU seconds and peak MiB."""
    start(uri)
    began = time.process_time()
    made = [one.id for one in jobs.shares(job_id, imports.SHARES_MAX)] or [job_id]
    for one in made[first:] + made[:first]:
        imports.run(one, feed_rows.take_file_rows)
    return time.process_time() - began, peak_mib()


def as_csv(content: bytes) -> bytes:
    rows = [json.loads(line) for line in content.splitlines()]
    names = ["external_id", "behaviour", "quantity", "occurred_at", "source_event_id", "ended_at"]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def passing(rows: int, residents: int) -> None:
    """Microseconds of CPU a row: of a share that has them all, and of one that has none."""
    content = file_of(rows, residents, random.Random(9), datetime(2026, 5, 20, tzinfo=UTC))
    flat = as_csv(content)
    own = mapping.parse(
        {
            "name": "own",
            "kind": "activities",
            "fields": {
                name: {"column": name}
                for name in ("external_id", "behaviour", "quantity", "occurred_at")
            },
        }
    )
    kinds = {
        "NDJSON": (content, NDJSON, False, feeds.share(0, NOBODYS, REPORTS), REPORTS),
        "NDJSON, gzip": (
            *(gzip.compress(content), NDJSON, True),
            *(feeds.share(0, NOBODYS, REPORTS), REPORTS),
        ),
        "CSV": (flat, CSV, False, feeds.share(0, NOBODYS, REPORTS), REPORTS),
        "CSV by a profile": (flat, CSV, False, Share(0, NOBODYS, own.account), own.form),
        "NDJSON by a profile": (content, NDJSON, False, Share(0, NOBODYS, own.account), own.form),
    }
    shown = table(f"{rows:,} rows", "", "counted, µs", "passed over, µs", "read, µs")
    for name, (data, media_type, gzipped, none, form) in kinds.items():
        how: dict[str, Any] = {"media_type": media_type, "gzipped": gzipped, "size": len(data)}

        def read(share: Share | None, data: bytes = data, form: Any = form, how: Any = how) -> Any:
            return feeds.numbered_rows(io.BytesIO(data), form=form, share=share, **how)

        figures = [
            cpu_us(lambda data=data, how=how: feeds.counted(io.BytesIO(data), **how), rows),
            cpu_us(lambda read=read, none=none: read(none), rows),
            cpu_us(lambda read=read: read(None), rows),
        ]
        shown.add_row(name, *(f"{figure:.1f}" for figure in figures))
    out.print(shown)


def cpu_us(rows_of: Callable[[], Iterator[Any]], rows: int) -> float:
    best = 1e9
    for _ in range(3):
        began = time.process_time()
        for _ in rows_of():
            pass
        best = min(best, time.process_time() - began)
    return best * 1e6 / rows


def sharing(rows: int, residents: int, crews: list[int]) -> None:
    today = clock.now().astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    shown = table(
        f"one file of {rows:,} rows", "workers", "shares", "rows a second", "worker, µs a row",
        "mongod, µs a row",
    )  # fmt: skip
    with fresh_store() as uri:
        start(uri)
        link_everybody(residents)
        # The first file warms caches, and brings everybody's first kilograms.
        for turn, workers in enumerate([crews[0], *crews]):
            content = file_of(
                rows, residents, random.Random(turn), today - timedelta(days=9 - turn)
            )
            job = stored(io.BytesIO(content), gzipped=False)
            given: list[Any] = []
            if workers > 1:
                imports.run(job.id, feed_rows.take_file_rows, give=given.append)
            with multiprocessing.get_context("spawn").Pool(workers) as pool:
                pool.starmap(start, [(uri,)] * workers)
                server, began = server_cpu_s(), time.perf_counter()
                places = [n * len(given) // workers for n in range(workers)]
                ends = pool.starmap(work, [(uri, job.id, at) for at in places], chunksize=1)
                took, server = time.perf_counter() - began, server_cpu_s() - server
            over = jobs.get(job.id)
            assert over is not None
            assert (over.state, over.done) == (jobs.DONE, rows), over
            if turn:
                shown.add_row(
                    f"{workers}", f"{len(given) or 1}", f"{rows / took:,.0f}",
                    f"{sum(cpu for cpu, _ in ends) * 1e6 / rows:,.0f}",
                    f"{server * 1e6 / rows:,.0f}",
                )  # fmt: skip
    out.print(shown)


def stored(data: IO[bytes], *, gzipped: bool) -> jobs.Job:
    return imports.store("activities", PARTNER, data, media_type=NDJSON, gzipped=gzipped)


def flat(megabytes: int, residents: int) -> None:
    chance, wanted = random.Random(9), megabytes * 1_000_000
    at = (clock.now() - timedelta(days=4)).isoformat(timespec="seconds")
    with fresh_store() as uri, tempfile.TemporaryFile() as file:
        start(uri)
        link_everybody(residents)
        rows = 0
        with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1) as packed:
            while file.tell() < wanted:
                row = {
                    "external_id": external(chance.randrange(residents)),
                    "behaviour": "bus_km",
                    "quantity": 5.2,
                    "occurred_at": at,
                    "source_event_id": f"e-{rows}",
                }
                if rows % 10:
                    # No attribute of a ride, and nothing that packs well.
                    row["padding"] = chance.randbytes(PADDING_CHARS // 2).hex()
                packed.write(json.dumps(row).encode() + b"\n")
                rows += 1
        file.seek(0)
        before = peak_mib()
        job = stored(file, gzipped=True)
        given: list[Any] = []
        imports.run(job.id, feed_rows.take_file_rows, give=given.append)
        out.print(f"{rows:,} rows, {wanted // 1_000_000} MB packed, {len(given)} shares")
        out.print(f"stored and counted: {before} MiB before, {peak_mib()} MiB at most")
        began = time.perf_counter()
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            half = len(given) // 2
            ends = pool.starmap(work, [(uri, job.id, 0), (uri, job.id, half)], chunksize=1)
        over = jobs.get(job.id)
        assert over is not None
        assert (over.state, over.done) == (jobs.DONE, rows), over
        noted = storage.database()["job_errors"].count_documents({"job": job.id})
        took = time.perf_counter() - began
        out.print(f"{rows / took:,.0f} rows a second, {noted:,} of them refused")
        out.print("most memory of a worker: " + ", ".join(f"{mib} MiB" for _, mib in ends))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--residents", type=int, default=10_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--flat-mb", type=int)
    wanted = parser.parse_args()
    if wanted.flat_mb:
        flat(wanted.flat_mb, wanted.residents)
        return
    passing(min(wanted.rows, 20_000), wanted.residents)
    sharing(wanted.rows, wanted.residents, wanted.workers)


if __name__ == "__main__":
    main()
