"""A city of any size on one machine: what files, gradings and reads cost, and disk and memory.

    python -m bench.city --residents 10000 100000 [--days 1] [--out docs/scale] [--dir /var/tmp]

For each size accounts are seeded (see `bench/seeding.py`), then the same work is done over the city
of that size by the processes of the product: MongoDB and Redis as `tanhui up` starts them, the API,
two bulk workers, the follower. The figures go to `OUT/RESIDENTS.json`; `bench/city_report.py` makes
tables and plots of them. Each size runs in a process of its own, and the next ones go on when one
fails. docs/scale.md says what was found.
"""

import argparse
import gzip
import http.client
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from io import BytesIO, TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any

from accounting import book, clients, clock, jobs, storage, tokens, vault
from accounting.clients import Kind
from api import tasks
from api.city import making, people
from api.city.making import Plan
from api.city.partners import PARTNERS, Row, writer
from api.config import Config
from bench import bare_city, seeding
from bench import book as bare_book
from bench.city_load import KINDS, WARM_UP, Public, at_a_rate, one_by_one, settle
from bench.city_stack import PORT, Stack, city_stack
from bench.seeding import SECRET, SEED, elsewhere
from bench.serving import ask
from bench.side_by_side import out
from footprint import regrading
from integrations.servers import MONGOD_CACHE_GB, mongod, redis_server

ROWS_A_RESIDENT_DAY = 2.0
PUBLIC = 1_000
POSTED_BATCHES = 15
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--residents", type=int, nargs="+", default=[10_000])
    parser.add_argument("--days", type=int, default=1, help="of partners' files, at least")
    parser.add_argument("--history", type=int, default=2, help="months seeded, a report in each")
    parser.add_argument("--rows", type=int, default=40_000, help="in the files of each import")
    parser.add_argument("--reads", type=int, default=300, help="of each kind, on an idle machine")
    parser.add_argument("--rate", type=float, default=40, help="reads a second under load")
    parser.add_argument("--posts", type=float, default=4, help="activities a second under load")
    parser.add_argument("--grade-residents", type=int, default=0, help="at least; 0 is everybody")
    parser.add_argument("--worker-threads", type=int, default=1, help="of each bulk worker")
    parser.add_argument("--minutes", type=float, default=60, help="after which a size is given up")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--out", type=Path, default=Path("docs/scale"))
    wanted = parser.parse_args()
    if len(wanted.residents) > 1:
        sys.exit(each_alone(wanted.residents, wanted.minutes))
    wanted.out.mkdir(parents=True, exist_ok=True)
    told = one_city(wanted, wanted.residents[0])
    file = wanted.out / f"{wanted.residents[0]}.json"
    file.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", "utf-8")
    out.print(f"{file} is written")


def each_alone(sizes: Sequence[int], minutes: float) -> int:
    """Run each size in a process of its own; how many failed."""
    at = sys.argv.index("--residents")
    others = sys.argv[1:at] + sys.argv[at + 1 + len(sizes) :]
    failed = 0
    for size in sizes:
        command = [sys.executable, "-m", "bench.city", "--residents", str(size), *others]
        try:
            ended = subprocess.run(command, timeout=60 * minutes, check=False).returncode
        except subprocess.TimeoutExpired:
            ended = -1
        if ended:
            out.print(f"[red]{size:,} residents: given up ({ended})[/red]")
            failed += 1
    return failed


def one_city(wanted: argparse.Namespace, residents: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="city-", dir=wanted.dir) as name:
        folder = Path(name)
        (folder / "log").mkdir()
        try:
            told = {"residents": residents, "given": given(wanted), "machine": machine()}
            told["seeding"] = seed(folder, residents, wanted.history)
            with running(folder, wanted.worker_threads) as (stack, config):
                told |= measured(stack, config, residents, wanted)
            return told
        except BaseException:
            kept = Path(tempfile.gettempdir()) / f"city-{residents}-log"
            shutil.copytree(folder / "log", kept, dirs_exist_ok=True)
            out.print(f"logs are kept in {kept}")
            raise


def given(wanted: argparse.Namespace) -> dict[str, Any]:
    names = (
        "days",
        "history",
        "rows",
        "reads",
        "rate",
        "posts",
        "grade_residents",
        "worker_threads",
    )
    return {name: getattr(wanted, name) for name in names}


def machine() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(memory / GIB, 1),
        "mongod_cache_gib": float(MONGOD_CACHE_GB),
        "load_before": round(os.getloadavg()[0], 2),
    }


def seed(folder: Path, residents: int, months: int) -> dict[str, Any]:
    with mongod(folder) as store:
        patterns = elsewhere(seeding.live_patterns, store.url, months)
        elsewhere(seeding.prepare, store.url)
    with seeding.quick_store(folder) as uri:
        done = seeding.fill(uri, residents, patterns)
    said(f"{residents:,} residents seeded", done.seconds)
    return {
        "seconds": round(done.seconds, 1),
        "documents": done.documents,
        "active": done.active,
        "reports": done.reports,
    }


@contextmanager
def running(folder: Path, threads: int) -> Iterator[tuple[Stack, Config]]:
    with mongod(folder) as store, redis_server(folder) as queue:
        # Demo, so that a sensor can be attested without Google; the way taken is the same.
        config = Config(
            mongodb_uri=store.url, redis_url=queue.url, secret=SECRET, demo=True,
            public_url=f"http://127.0.0.1:{PORT}", data_dir=folder, log_level="WARNING",
            bank_reads_per_minute=10**6,
        )  # fmt: skip
        vault.configure(SECRET)
        storage.connect(store.url)
        tasks.make_celery(config)
        with city_stack(config, store, queue, threads) as stack:
            yield stack, config


def measured(
    stack: Stack, config: Config, residents: int, wanted: argparse.Namespace
) -> dict[str, Any]:
    told: dict[str, Any] = {"disk": disk()}
    partners = sign_up()
    public = settle(min(PUBLIC, residents))
    public.sign_in()
    began, before = time.perf_counter(), stack.cpu_s()
    told["idle"] = one_by_one(public, wanted.reads).told()
    asked = len(KINDS) * (WARM_UP + wanted.reads)
    told["idle"]["us_a_read"] = {
        name: round(us / asked) for name, us in spent_us(stack, before).items()
    }
    said(f"idle reads {told['idle']['reads']}", time.perf_counter() - began)
    # Before anything comes in, so that as little moves in every city.
    told["regrade"] = regraded(stack, residents, wanted.grade_residents)
    said(f"regrade {told['regrade']}", told["regrade"]["seconds"])
    told["bare"] = bare(config.mongodb_uri, stack, told["regrade"].pop("last"))
    said(f"bare {told['bare']}", told["bare"]["seconds"])
    first, second = files(residents, wanted.days, wanted.rows)
    told["import"] = imported(stack, partners, first)
    said(f"import {told['import']['rows_a_second']:,} rows/s", told["import"]["seconds"])
    public.sign_in()
    told["mixed"] = mixed(stack, partners, second, public, wanted.rate, wanted.posts)
    said(f"mixed reads {told['mixed']['reads']}", told["mixed"]["import"]["seconds"])
    # Ready-made decisions are nobody's life: a follower that meets them ends.
    told["peak_mib"] = stack.peak_mib()
    told["posting"] = posted(config.mongodb_uri, stack)
    said(f"posting {told['posting']}", told["posting"]["seconds"])
    told["disk_after"] = disk()
    return told


def said(what: str, seconds: float) -> None:
    out.print(f"{time.strftime('%H:%M:%S')} {what} ({seconds:.1f} s)")


# --- disk ---------------------------------------------------------------------------------------


def disk() -> dict[str, dict[str, int]]:
    """Documents and bytes of each collection that has any: BSON, on disk, of its indexes."""
    storage.client().admin.command("fsync")
    found = {}
    for name in sorted(storage.database().list_collection_names()):
        stats = storage.database().command("collStats", name)
        if stats["count"]:
            found[name] = {
                "count": stats["count"],
                "bson": stats["size"],
                "storage": stats["storageSize"],
                "indexes": stats["totalIndexSize"],
            }
    return found


# --- partners' files ----------------------------------------------------------------------------


def sign_up() -> dict[str, str]:
    """A token for each partner of the city."""
    found = {}
    for one in PARTNERS:
        policy = {"behaviours": list(one.behaviours), "carriers": [], "id_namespace": ""}
        client, _ = clients.create_client(Kind.DATA, one.name, subject_id=one.name, policy=policy)
        found[one.name], _ = tokens.issue_client_token(client, frozenset(client.scopes))
    return found


Files = list[tuple[str, str, bytes, int]]


def files(residents: int, days: int, rows: int) -> tuple[Files, Files]:
    """Two hand-overs of all partners, of about so many rows each, from all over the city.

    A city with fewer rows a day hands over several days; of a larger one it is every so many blocks
    of streets one.
    """
    a_day = residents * ROWS_A_RESIDENT_DAY
    days = max(days, -int(-rows // a_day))
    blocks = people.blocks_of(residents)
    some = blocks[:: max(1, int(a_day * days // rows))]
    until = clock.city_day(clock.now()) - timedelta(days=1)
    plan = Plan(residents, 2 * days, SEED, until, 0, 0, 1)
    dates = plan.dates
    return files_of(plan, dates[:days], some, rows), files_of(plan, dates[days:], some, rows)


def files_of(plan: Plan, dates: Sequence[Any], blocks: Sequence[int], rows: int) -> Files:
    """Two files of each partner, gzip: partner, media type, bytes, rows."""
    faults: dict[str, Counter[str]] = defaultdict(Counter)
    found: dict[str, list[Row]] = {one.name: [] for one in PARTNERS}
    every = (row for on in dates for row in making.activity_rows(plan, on, faults, blocks=blocks))
    for partner, row in islice(every, rows):
        found[partner].append(row)
    made = []
    for one in PARTNERS:
        for half in (0, 1):
            share = found[one.name][half::2]
            data = BytesIO()
            with TextIOWrapper(gzip.open(data, "wb", 1), "utf-8", newline="") as lines:
                put = writer(lines, one.columns)
                for row in share:
                    put(row)
            if share:
                made.append((one.name, one.media_type, data.getvalue(), len(share)))
    return made


def hand_over(partners: dict[str, str], handed: Files) -> list[str]:
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    queued = []
    for partner, media_type, data, _ in handed:
        headers = {
            "Authorization": f"Bearer {partners[partner]}",
            "Content-Type": media_type,
            "Content-Encoding": "gzip",
        }
        status, answer = ask(connection, "POST", "/v1/feeds/activities/files", data, headers)
        assert status == 202, answer
        queued.append(json.loads(answer)["job_id"])
    return queued


def unfinished(queued: Sequence[str]) -> bool:
    return any(one.state in jobs.UNFINISHED for one in jobs.many(queued))


def until_done(going_on: Callable[[], bool]) -> None:
    while going_on():
        time.sleep(0.1)


def imported(
    stack: Stack,
    partners: dict[str, str],
    handed: Files,
    meanwhile: Callable[[Callable[[], bool]], Any] = until_done,
) -> dict[str, Any]:
    """Hand files over and wait for their jobs; what they brought and what that took."""
    before, began, entries = stack.cpu_s(), time.perf_counter(), book.count()
    queued = hand_over(partners, handed)
    over = began

    def going_on() -> bool:
        nonlocal over
        goes_on = unfinished(queued)
        if goes_on:
            over = time.perf_counter()
        return goes_on

    meanwhile(going_on)
    took, spent = over - began, spent_us(stack, before)
    counts: Counter[str] = Counter()
    for one in jobs.many(queued):
        assert one.state == jobs.DONE, one
        counts.update(one.counts)
    rows = sum(count for *_, count in handed)
    return {
        "rows": rows,
        "bytes": sum(len(data) for _, _, data, _ in handed),
        "seconds": round(took, 2),
        "rows_a_second": round(rows / took),
        "counts": dict(counts),
        "entries": book.count() - entries,
        "us_a_row": {name: round(us / rows) for name, us in spent.items()},
    }


def spent_us(stack: Stack, before: dict[str, float]) -> dict[str, float]:
    """Microseconds of processor each part took since."""
    return {name: (now - before[name]) * 1e6 for name, now in stack.cpu_s().items()}


def mixed(
    stack: Stack,
    partners: dict[str, str],
    handed: Files,
    public: Public,
    reads: float,
    posts: float,
) -> dict[str, Any]:
    """Reads and reports at a rate while files are taken in."""
    waits: dict[str, Any] = {}

    def meanwhile(going_on: Callable[[], bool]) -> None:
        waits.update(at_a_rate(public, reads, posts, going_on, 5).told())

    taken = imported(stack, partners, handed, meanwhile)
    return {**waits, "import": taken}


# --- grading ------------------------------------------------------------------------------------


def regraded(stack: Stack, residents: int, at_least: int) -> dict[str, Any]:
    """The scheduled grading of this month by the workers; of some ranges when told so.

    Everybody was graded a month ago and little moves, as on the first of most months.
    """
    job = regrading.queue("bench", month=clock.city_month(clock.now()))
    shares = regrading.cut(job.id)
    if at_least:
        share = residents // len(shares)
        shares = shares[: max(1, -(-at_least // share))]
    names = [one.id for one in shares]
    before, began = stack.cpu_s(), time.perf_counter()
    for name in names:
        tasks.nudge(tasks.run_job, name)
    until_done(lambda: unfinished(names))
    took, spent = time.perf_counter() - began, spent_us(stack, before)
    done = jobs.many(names)
    assert all(one.state == jobs.DONE for one in done), done
    graded = sum(one.done for one in done)
    whole = jobs.get(job.id)
    assert whole is not None
    return {
        "residents": graded,
        "seconds": round(took, 2),
        "us_a_resident": round(took * 1e6 / graded, 1),
        "cpu_us_a_resident": {name: round(us / graded, 1) for name, us in spent.items()},
        "totals": regrading.totals(whole),
        "last": max((one.arguments["last"] or "~") for one in shares),
    }


def bare(uri: str, stack: Stack, last: str) -> dict[str, Any]:
    """A bare aggregation over the same residents, in as many processes, next to it."""
    middle = bare_city.middle(last)
    stretches = [("", middle, "bare_grades_a"), (middle, last, "bare_grades_b")]
    before = stack.cpu_s()
    with multiprocessing.get_context("spawn").Pool(2, bare_city.start, (uri,)) as pool:
        pool.starmap(bare_city.nothing, [() for _ in range(4)])
        began = time.perf_counter()
        pool.starmap(bare_city.bare_grade, stretches, chunksize=1)
        took = time.perf_counter() - began
    mongod_us = spent_us(stack, before)["mongod"]
    written = sum(storage.database()[name].count_documents({}) for *_, name in stretches)
    for *_, name in stretches:
        storage.database()[name].drop()
    return {
        "documents": written,
        "seconds": round(took, 2),
        "us_a_document": round(took * 1e6 / written, 1),
        "cpu_us_a_document": round(mongod_us / written, 1),
    }


# --- posting ------------------------------------------------------------------------------------


def posted(uri: str, stack: Stack) -> dict[str, Any]:
    """Ready-made decisions posted in batches by two processes, into the book of this size."""
    with multiprocessing.get_context("spawn").Pool(2, bare_city.start, (uri,)) as pool:
        pool.starmap(bare_city.nothing, [() for _ in range(4)])
        before, began = stack.cpu_s(), time.perf_counter()
        pool.map(bare_city.post, range(2 * POSTED_BATCHES), chunksize=1)
        took = time.perf_counter() - began
    entries = 2 * POSTED_BATCHES * bare_book.BATCH
    return {
        "entries": entries,
        "seconds": round(took, 2),
        "entries_a_second": round(entries / took),
        "mongod_us_an_entry": round(spent_us(stack, before)["mongod"] / entries, 1),
    }


if __name__ == "__main__":
    main()
