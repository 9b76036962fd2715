"""Grading: the whole city next to a bare aggregation, one resident next to a bare view.

    python -m bench.grade [--sizes 10000,100000] [--singles 300] [--cache-gb 0.25]
    python -m bench.grade --sizes 10000,100000,1000000 --singles 0   # a city of a million

The bare aggregation adds up the milligrams of the same months by account and writes one document
for each with `$merge`; nothing is caught up, capped, compared or told. The bare view is the same
application with a view behind the same door that does one `find_one` and answers it. Both take
turns with ours on the same store.

Months are about 60 KB a resident in the cache of the server and 5 on disk. By default the cache is
smaller than the smallest city, so that none is read from memory alone: else a small city seems
cheaper than a large one, whoever grades it. A million residents take about 9 GB of disk.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path
from statistics import median
from typing import Any

import bson
from bson.raw_bson import RawBSONDocument
from flask import Flask, jsonify
from pymongo import WriteConcern
from rich.table import Table

from accounting import accounts, clock, storage, tokens, vault
from accounting.ids import new_id
from api.app import create_app
from api.config import Config
from api.security import RESIDENT, caller, door
from bench.side_by_side import fresh_store, in_turns, out, table, timed
from footprint import grade, regrading
from integrations import servers
from integrations.servers import redis_server

MG = 3_000_000
# What residents did differs between this many kinds of them.
KINDS = 9
CHUNK = 5_000
WORKERS = 2
BACK = timedelta(days=31)
CODES = (
    "bike_km",
    "bus_km",
    "e_invoice",
    "ev_charge_kwh",
    "metro_km",
    "mobile_pay_offline",
    "recycle_kg",
    "walk_steps",
)


def fill(residents: int) -> None:
    """Thirteen months of eight behaviours for each, as the projections hold them.

    The months are encoded once for each kind of resident: encoding was most of the time.
    """
    this = clock.city_month(clock.now())
    names = [clock.add_months(this, -back) for back in range(13)]
    kinds = [bson.encode(month(place))[4:-1] for place in range(KINDS)]
    ids = [new_id("res") for _ in range(residents)]
    quick = WriteConcern(w=1, j=False)
    base = storage.database()
    people = base.get_collection("residents", write_concern=quick)
    people.insert_many({"_id": one, "status": "open"} for one in ids)
    months = base.get_collection("summary_months", write_concern=quick)
    for start in range(0, residents, 500):
        rows = [
            _raw({"_id": f"{one}:{name}", "account": one, "month": name}, kinds[place % KINDS])
            for place, one in enumerate(ids[start : start + 500], start)
            for name in names
        ]
        months.insert_many(rows, ordered=False)


def _raw(keys: dict[str, Any], rest: bytes) -> RawBSONDocument:
    body = bson.encode(keys)[4:-1] + rest + b"\0"
    return RawBSONDocument((len(body) + 4).to_bytes(4, "little") + body)


def _join(uri: str) -> None:
    storage.connect(uri)
    vault.configure(bytes(range(32)))


def _workers(uri: str) -> Pool:
    """Processes that share the work of making a city. Forked ones would share its connection."""
    return get_context("spawn").Pool(WORKERS, _join, (uri,))


def month(place: int) -> dict[str, Any]:
    """What stands in each month of a resident beside its keys."""
    rows = [
        {
            "behaviour": code,
            "dimension": "green_travel",
            "evidence": "B" if code.startswith(("bike", "walk")) else "A",
            "bank_grade": code != "walk_steps",
            "mg": MG // (1 + (place + number) % KINDS),
            "points": 100,
            "count": 12,
            "days": [[day, 200_000, 20, 1] for day in range(1, 25, 2)],
        }
        for number, code in enumerate(CODES)
    ]
    return {"seq": 60, "digest": "0" * 32, "behaviours": rows, "books": []}


def bare(into: str) -> None:
    """One document for each account that did something in the window."""
    first, last = grade.window(grade.policy_on(clock.city_day(clock.now())), clock.now())
    stages: list[dict[str, Any]] = [
        {"$match": {"month": {"$gte": first, "$lte": last}}},
        {"$group": {"_id": "$account", "mg": {"$sum": {"$sum": "$behaviours.mg"}}}},
        {"$merge": into},
    ]
    storage.strong(storage.database()["summary_months"]).aggregate(stages, allowDiskUse=True)


def whole_city(uri: str, residents: int) -> tuple[float, float]:
    """Seconds of ours, and of the bare ones before and after it, over the same months."""
    began = time.perf_counter()
    with _workers(uri) as pool:
        chunks = [min(CHUNK, residents - start) for start in range(0, residents, CHUNK)]
        pool.map(fill, chunks, chunksize=1)
    filled = time.perf_counter()
    # Everybody was graded a month ago and little moves, as on the first of most months.
    with clock.travel(-BACK):
        shares = regrading.cut(regrading.queue("bench").id)
    with _workers(uri) as pool:
        pool.map(_graded_before, [one.id for one in shares], chunksize=1)
    out.log(
        f"{residents:,} residents made in {filled - began:.0f} s,"
        f" graded a month ago in {time.perf_counter() - filled:.0f} s"
    )
    before = timed(lambda: bare("bare_before"))
    month = clock.city_month(clock.now())
    ours = timed(lambda: regrading.run(regrading.queue("bench", month=month).id))
    after = timed(lambda: bare("bare_after"))
    for name, each in (("grades", 2), ("bare_before", 1), ("bare_after", 1)):
        assert storage.database()[name].count_documents({}) == each * residents, name
    return ours, (before + after) / 2


def _graded_before(share: str) -> None:
    with clock.travel(-BACK):
        regrading.run_range(share)


def single(app: Flask, residents: Sequence[str], steps: int) -> list[float]:
    """Median milliseconds: ours again, ours anew, bare."""
    http = app.test_client()
    keys = {one: tokens.open_session(one).access_token for one in residents}

    def ask(path: str, one: str) -> Any:
        answer = http.get(path, headers={"Authorization": f"Bearer {keys[one]}"})
        assert answer.status_code == 200, answer.text
        return answer

    def way(path: str) -> list[Any]:
        return [
            lambda one=one: ask(path, one) for one in list(residents) * (steps // len(residents))
        ]

    turns = in_turns(way("/v1/me/grade"), way("/bare"))
    return [median(seconds) * 1_000 for seconds in turns]


def bare_view(app: Flask) -> None:
    @app.get("/bare", endpoint="bare")
    @door(RESIDENT)
    def view() -> Any:
        found = grade.snapshots().find_one({"resident": caller().id})
        return jsonify({"found": found is not None})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", default="10000,100000", help="residents of each city")
    parser.add_argument("--singles", type=int, default=300)
    parser.add_argument("--cache-gb", default="0.25")
    wanted = parser.parse_args()
    servers.MONGOD_CACHE_GB = wanted.cache_gb
    sizes = [int(size) for size in wanted.sizes.split(",")]
    figures: list[tuple[int, float, float]] = []
    with fresh_store() as uri:
        for size in sizes:
            if figures:
                storage.client().drop_database(storage.database().name)
                storage.ensure_indexes()
            figures.append((size, *whole_city(uri, size)))
            # After each: whoever stops a long run keeps what it had.
            out.print(_shown(figures))
        if wanted.singles:
            one_by_one(uri, wanted.singles)


def _shown(figures: Sequence[tuple[int, float, float]]) -> Table:
    """Each city; what a resident costs, and how many times that of the first city it is."""
    names = ("ours, s", "bare, s", "ratio", "ours, µs each", "times", "bare, µs each", "times")
    shown = table("grading a whole city", "residents", *names)
    first = [seconds / figures[0][0] for seconds in figures[0][1:]]
    for size, ours, theirs in figures:
        row = [f"{size:,}", f"{ours:.1f}", f"{theirs:.1f}", f"{ours / theirs:.2f}"]
        for seconds, small in zip((ours, theirs), first, strict=True):
            row += [f"{seconds / size * 1_000_000:.0f}", f"{seconds / size / small:.2f}"]
        shown.add_row(*row)
    return shown


def one_by_one(uri: str, singles: int) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        (folder / "log").mkdir()
        with redis_server(folder) as queue:
            config = Config(
                mongodb_uri=uri,
                redis_url=queue.url,
                secret=bytes(range(32)),
                public_url="http://localhost",
                data_dir=folder,
            )
            app = create_app(replace(config, log_level="ERROR"))
            bare_view(app)
            ids = accounts.ids_after("", 20)
            ours, theirs = single(app, ids, singles)
    shown = table("one resident over HTTP, median", "", "ms")
    shown.add_row("GET /v1/me/grade", f"{ours:.2f}")
    shown.add_row("a view with one find_one", f"{theirs:.2f}")
    shown.add_row("ratio", f"{ours / theirs:.2f}")
    out.print(shown)


if __name__ == "__main__":
    main()
