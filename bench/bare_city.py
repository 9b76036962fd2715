"""What other processes do for the city's bench: a bare aggregation, ready-made postings."""

from typing import Any

from accounting import book, clock, storage
from accounting.book import Wanted
from bench import book as bare_book
from footprint import grade


def start(uri: str) -> None:
    storage.connect(uri)


def nothing() -> None:
    """So that the process is there before anything is measured."""


def middle(last: str) -> str:
    """The account in the middle of those up to `last`, by the order of their ids."""
    residents = storage.database()["residents"]
    wanted = {"_id": {"$lte": last}}
    half = residents.count_documents(wanted) // 2
    found = residents.find(wanted, {"_id": 1}).sort("_id", 1).skip(half).limit(1)
    return str(next(found)["_id"])


def grade_stages(after: str, last: str, into: str) -> list[dict[str, Any]]:
    """Add up the milligrams of the same months by account; one document for each."""
    now = clock.now()
    first_month, last_month = grade.window(grade.policy_on(clock.city_day(now)), now)
    return [
        {
            "$match": {
                "account": {"$gt": after, "$lte": last},
                "month": {"$gte": first_month, "$lte": last_month},
            }
        },
        {"$group": {"_id": "$account", "mg": {"$sum": {"$sum": "$behaviours.mg"}}}},
        {"$merge": into},
    ]


def bare_grade(after: str, last: str, into: str) -> None:
    months = storage.strong(storage.database()["summary_months"])
    months.aggregate(grade_stages(after, last, into), allowDiskUse=True)


def post(batch: int) -> None:
    first = batch * bare_book.BATCH
    wanted = [
        Wanted(bare_book.ask(bare_book.account(first + number), batch), bare_book.decide)
        for number in range(bare_book.BATCH)
    ]
    book.post_many(wanted)
