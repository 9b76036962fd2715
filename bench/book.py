"""Postings a second, single and in batches, next to raw PyMongo writing the same documents.

    python -m bench.book [--steps 20]

Raw is the least a posting can take: the head read and the insert for a single one, `insert_many`
alone for a batch, both with the concerns and indexes of the book. No rules run on either side:
what is decided is a typical entry of a resident, ready made.
"""

import argparse
from datetime import UTC, date, datetime
from typing import Any

import bson
from pymongo import DESCENDING

from accounting import book, storage
from accounting.book import Ask, Decision, Entry, Head, Line, Wanted
from bench.side_by_side import fresh_store, out, rate, table, timed

SINGLES, BATCH = 100, 1_000
LONG = 10_000
THEN = datetime(2026, 5, 24, 4, 0, tzinfo=UTC)
DAY = {name: [1, 139_880, None, None] for name in ("bus_km", "metro_km", "mobile_pay_offline")}
AFTER: dict[str, Any] = {
    "lifetime_mg": 13_676_400,
    "caps": {
        "days": {
            f"2026-05-{day}": {**DAY, "_overall": 569_850, "_netted": 564_850}
            for day in (22, 23, 24)
        },
        "months": {"2026-05": dict.fromkeys(DAY, 24)},
    },
    "wallet": {
        "lots": [["2028-05-31", "city", 12_501]],
        "pending": [[1_779_668_280_000 + n, "2028-05-31", "city", 139] for n in range(5)],
        "owed": {},
        "earned": 13_632,
        "spent": 0,
        "expired": 0,
    },
}
REFS: dict[str, Any] = {
    "activity": "act_01m8ca5bj3cmkmyrx89hhf35p2",
    "behaviour": "mobile_pay_offline",
    "methodology": "QZ-RES-2026.1",
    "evidence": "A",
    "start": THEN,
    "quantity": "1",
    "status": "credited",
    "mg": 5_000,
    "counted": 1,
    "gross_mg": 5_000,
    "steps": [["formula", 5_000, None]],
    "points": 5,
    "rule": "QZ-PTS-2026.1",
    "funder": "city",
}
LINES = (
    Line("co2e_mg", "baseline:city", -5_000),
    Line("co2e_mg", "reduction", 5_000),
    Line("points", "issued:city", -5),
    Line("points", "pending", 5),
)


def decide(head: Head, now: datetime) -> Decision:
    return Decision(LINES, AFTER, REFS)


def ask(account: str, number: int) -> Ask:
    key = f"activity:act_01m8ca5bj3cmkmyrx89hh{number:06d}"
    return Ask(account, key, "earn", book.fingerprint(key), THEN, date(2026, 5, 24))


def account(number: int) -> str:
    return f"res_01k9v6c2r7abcdefghj{number:07d}"


class Raw:
    """The same documents by PyMongo alone, in a collection with the same indexes."""

    def __init__(self) -> None:
        entries = storage.database()["entries"]
        self.collection = storage.strong(storage.database()["entries_raw"])
        for index in entries.index_information().values():
            options = {name: index[name] for name in ("unique", "sparse") if name in index}
            self.collection.create_index(index["key"], **options)

    def documents(self, step: int, size: int) -> list[dict[str, Any]]:
        """What the book wrote for the accounts of a step."""
        names = [account(step * size + number) for number in range(size)]
        return list(storage.database()["entries"].find({"account": {"$in": names}}))

    def singles(self, documents: list[dict[str, Any]]) -> None:
        for document in documents:
            wanted = {"account": document["account"]}
            self.collection.find_one(wanted, sort=[("seq", DESCENDING)])
            self.collection.insert_one(document)

    def batch(self, documents: list[dict[str, Any]]) -> None:
        self.collection.insert_many(documents, ordered=False)


def singles(steps: int) -> tuple[float, float]:
    raw, ours, theirs = Raw(), [], []
    for step in range(steps):
        asks = [ask(account(step * SINGLES + number), step) for number in range(SINGLES)]
        ours.append(timed(lambda asks=asks: [book.post(one, decide) for one in asks]))
        documents = raw.documents(step, SINGLES)
        theirs.append(timed(lambda documents=documents: raw.singles(documents)))
    return rate(SINGLES, ours), rate(SINGLES, theirs)


def batches(steps: int) -> tuple[float, float]:
    raw, ours, theirs = Raw(), [], []
    for step in range(1_000, 1_000 + steps):
        wanted = [
            Wanted(ask(account(step * BATCH + number), step), decide) for number in range(BATCH)
        ]
        ours.append(timed(lambda wanted=wanted: book.post_many(wanted)))
        documents = raw.documents(step, BATCH)
        theirs.append(timed(lambda documents=documents: raw.batch(documents)))
    return rate(BATCH, ours), rate(BATCH, theirs)


def long_account() -> list[tuple[int, float]]:
    """Milliseconds of a posting on one account as it grows: entries before, milliseconds."""
    one, marks, number = "res_long", [], 0
    for mark in (1, 10, 100, 1_000, LONG):
        fill = [Wanted(ask(one, n), decide) for n in range(number, mark)]
        for start in range(0, len(fill), BATCH):
            book.post_many(fill[start : start + BATCH])
        took = timed(lambda mark=mark: [post(one, mark + n) for n in range(SINGLES)])
        marks.append((mark, took * 1_000 / SINGLES))
        number = mark + SINGLES
    return marks


def post(one: str, number: int) -> Entry:
    return book.post(ask(one, number), decide).entry


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    with fresh_store():
        single, raw_single = singles(steps)
        batched, raw_batched = batches(steps)
        size = len(bson.encode(storage.database()["entries"].find_one()))
        stats = storage.database().command("collstats", "entries")
        marks = long_account()
    shown = table("the book, entries a second", "", "ours", "raw PyMongo", "ratio")
    for name, ours, raw in (
        ("single", single, raw_single),
        (f"batches of {BATCH}", batched, raw_batched),
    ):
        shown.add_row(name, f"{ours:,.0f}", f"{raw:,.0f}", f"{ours / raw:.2f}")
    out.print(shown)
    disk = (stats["storageSize"] + stats["totalIndexSize"]) // stats["count"]
    out.print(f"an entry: {size} bytes of BSON, {disk} on disk with its indexes")
    grown = table("one account as it grows", "entries before", "ms a posting")
    for entries, ms in marks:
        grown.add_row(f"{entries:,}", f"{ms:.2f}")
    out.print(grown)


if __name__ == "__main__":
    main()
