"""Telling residents that a bank read their grade: once a city day for each bank.

The record of a read is written before the bank is answered. What follows from it here goes along
that record from a stored place, so nothing is added to a read, and a crash costs nothing: the next
run begins a little before the place, and a notice is left once. Lists and files, which show a bank
everybody on its list at once, are in the access log of the app and told of nowhere else.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from itertools import islice
from typing import Final

import mongoengine as me
from pymongo.collection import Collection

from accounting import clients, clock, consents, notices, storage
from accounting.clients import Kind
from accounting.consents import Access
from accounting.outbox import Notice

TOLD: Final = ("grade", "report")
# A record is written within this after its instant, whatever process writes it.
LATE_MAX = timedelta(minutes=1)
# Where nobody has looked before.
FIRST_LOOK = timedelta(days=1)
CHUNK = 500
_PLACE = "grade_read"


@storage.indexed
class ReceiptPlaceDocument(me.Document):
    """How far the record of reads has been told of."""

    id = me.StringField(primary_key=True)
    at = me.DateTimeField(required=True)

    meta = {"collection": "receipt_places", "auto_create_index": False}


def tell(now: datetime) -> int:
    """Tell of the reads since the last time; returns how many notices are new.

    Safe to repeat and to run twice.
    """
    found = _places().find_one({"_id": _PLACE})
    first = (found["at"] if found else now - FIRST_LOOK) - LATE_MAX
    reads = consents.accesses(first, now)
    told = 0
    while chunk := list(islice(reads, CHUNK)):
        told += notices.leave_new(_notices(chunk))
        _move(chunk[-1].at)
    _move(now)
    return told


def _notices(reads: Iterable[Access]) -> list[Notice]:
    """One for each resident, bank and day, with the purpose of the first read."""
    made: dict[tuple[str, str], Notice] = {}
    banks: dict[str, str] = {}
    for read in reads:
        if read.resident is None or not read.allowed or read.what not in TOLD:
            continue
        dedupe = f"grade_read/{read.bank_id}/{clock.city_day(read.at)}"
        if (read.resident, dedupe) in made:
            continue
        if read.bank_id not in banks:
            bank = clients.of_subject(Kind.BANK, read.bank_id)
            banks[read.bank_id] = bank.name if bank is not None else read.bank_id
        made[read.resident, dedupe] = notices.make(
            "grade_read", read.resident, dedupe, bank=banks[read.bank_id], purpose=read.purpose
        )
    return list(made.values())


def _move(at: datetime) -> None:
    _places().update_one({"_id": _PLACE}, {"$max": {"at": at}}, upsert=True)


def _places() -> "Collection[storage.Doc]":
    return storage.strong(ReceiptPlaceDocument._get_collection())
