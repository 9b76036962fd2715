"""Grading: the whole city next to a bare aggregation, one resident next to a bare view.

    python -m bench.grade [--residents 100000] [--small 10000] [--singles 300]

The bare aggregation adds up the milligrams of the same months by account and writes one document
for each with `$merge`; nothing is caught up, capped, compared or told. The bare view is the same
application with a view behind the same door that does one `find_one` and answers it. Both take
turns with ours on the same store.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

from flask import Flask, jsonify

from accounting import accounts, clock, storage, tokens
from accounting.ids import new_id
from api.app import create_app
from api.config import Config
from api.security import RESIDENT, caller, door
from bench.side_by_side import fresh_store, in_turns, out, table, timed
from footprint import grade, regrading
from integrations.servers import redis_server

MG = 3_000_000
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
    """Thirteen months of eight behaviours for each, as the projections hold them."""
    this = clock.city_month(clock.now())
    names = [clock.add_months(this, -back) for back in range(13)]
    for start in range(0, residents, 1_000):
        ids = [new_id("res") for _ in range(min(1_000, residents - start))]
        storage.database()["residents"].insert_many({"_id": one, "status": "open"} for one in ids)
        rows = [month(one, name, place) for place, one in enumerate(ids) for name in names]
        storage.database()["summary_months"].insert_many(rows, ordered=False)


def month(one: str, name: str, place: int) -> dict[str, Any]:
    rows = [
        {
            "behaviour": code,
            "dimension": "green_travel",
            "evidence": "B" if code.startswith(("bike", "walk")) else "A",
            "bank_grade": code != "walk_steps",
            "mg": MG // (1 + (place + number) % 9),
            "points": 100,
            "count": 12,
            "days": [[day, 200_000, 20, 1] for day in range(1, 25, 2)],
        }
        for number, code in enumerate(CODES)
    ]
    row = {"_id": f"{one}:{name}", "account": one, "month": name, "seq": 60, "digest": "0" * 32}
    return row | {"behaviours": rows, "books": []}


def bare(into: str) -> None:
    """One document for each account that did something in the window."""
    first, last = grade.window(grade.policy_on(clock.city_day(clock.now())), clock.now())
    stages: list[dict[str, Any]] = [
        {"$match": {"month": {"$gte": first, "$lte": last}}},
        {"$group": {"_id": "$account", "mg": {"$sum": {"$sum": "$behaviours.mg"}}}},
        {"$merge": into},
    ]
    storage.strong(storage.database()["summary_months"]).aggregate(stages, allowDiskUse=True)


def whole_city(residents: int) -> tuple[float, float]:
    """Seconds of ours and of the bare one, before and after it, over the same months."""
    fill(residents)
    # Everybody was graded a month ago and little moves, as on the first of most months.
    with clock.travel(timedelta(days=-31)):
        regrading.run(regrading.queue("bench").id)
    before = timed(lambda: bare("bare_before"))
    month = clock.city_month(clock.now())
    ours = timed(lambda: regrading.run(regrading.queue("bench", month=month).id))
    after = timed(lambda: bare("bare_after"))
    for name, each in (("grades", 2), ("bare_before", 1), ("bare_after", 1)):
        assert storage.database()[name].count_documents({}) == each * residents, name
    return ours, (before + after) / 2


def empty() -> None:
    for name in storage.database().list_collection_names():
        storage.database()[name].delete_many({})


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
    parser.add_argument("--residents", type=int, default=100_000)
    parser.add_argument("--small", type=int, default=10_000)
    parser.add_argument("--singles", type=int, default=300)
    wanted = parser.parse_args()
    shown = table("grading", "", "residents", "ours, s", "bare, s", "ratio", "µs a resident")
    with fresh_store() as uri:
        for size in (wanted.small, wanted.residents):
            ours, theirs = whole_city(size)
            each = ours / size * 1_000_000
            shown.add_row(
                "whole city",
                f"{size:,}",
                f"{ours:.1f}",
                f"{theirs:.1f}",
                f"{ours / theirs:.2f}",
                f"{each:.0f}",
            )
            if size != wanted.residents:
                empty()
        out.print(shown)
        one_by_one(uri, wanted.singles)


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
