"""Following the book: every entry handed on once it is recorded, in order, from a stored place.

A follower reads the change stream of the entries and stores how far it has come after what it read
is dealt with. So it may be killed at any moment: the next one is handed the last entries again, and
must take them in as if for the first time. Where the place is unknown, because nobody has followed
before or the oplog has moved on, a walk over all accounts brings it up to date first.
"""

import logging
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import mongoengine as me
from pymongo.change_stream import ChangeStream
from pymongo.collection import Collection
from pymongo.errors import OperationFailure, PyMongoError

from accounting import book, clock, storage
from accounting.book import Entry
from accounting.errors import AccountBusy

BATCH_MAX = 5_000
# How long a quiet stream is waited for, and the longest an entry waits for more to join it.
WAIT_MS = 250
GATHER_S = 0.5
# How often the place is stored while nothing is recorded, so that the oplog does not outrun it.
KEEP_S = 10.0
RETRY_S = 1.0
# The oplog no longer reaches back to the place, or does not know it.
LOST_PLACE = (260, 280, 286)

log = logging.getLogger(__name__)

TakeIn = Callable[[list[Entry]], None]


@storage.indexed
class FollowerDocument(me.Document):
    """How far a follower is: a resume token of the change stream, and when it was there."""

    id = me.StringField(primary_key=True)
    token = me.DictField()
    at = me.DateTimeField(required=True)

    meta = {"collection": "followers", "auto_create_index": False}


def _collection() -> "Collection[storage.Doc]":
    return storage.strong(FollowerDocument._get_collection())


def follow(
    name: str, take_in: TakeIn, walk: Callable[[], None], stopping: Callable[[], bool]
) -> None:
    """Hand every entry to `take_in` until `stopping`; `walk` brings the follower to the heads.

    A store that is away is waited for. Whatever else goes wrong is raised, and the place stands:
    the next one begins there.
    """
    while not stopping():
        try:
            _follow(name, take_in, walk, stopping)
        except OperationFailure as error:
            if error.code not in LOST_PLACE:
                log.exception("%s cannot go on, and tries again", name)
                time.sleep(RETRY_S)
                continue
            log.warning("%s lost its place, and walks to find it again: %s", name, error)
            _collection().delete_one({"_id": name})
        except (PyMongoError, AccountBusy) as error:
            log.warning("%s goes on from its place in a moment: %s", name, error)
            time.sleep(RETRY_S)


def lag(name: str) -> timedelta | None:
    """How long ago a follower last said where it is; None if it never did."""
    found = _collection().find_one({"_id": name})
    return clock.now() - found["at"] if found else None


def _follow(
    name: str, take_in: TakeIn, walk: Callable[[], None], stopping: Callable[[], bool]
) -> None:
    found = _collection().find_one({"_id": name})
    token = found["token"] if found else None
    with book.watch(token, WAIT_MS) as stream:
        if token is None:
            # Opened before the walk: what is recorded meanwhile comes after it.
            walk()
            _keep(name, stream.resume_token)
        kept_s = time.monotonic()
        while stream.alive and not stopping():
            entries = _gather(stream)
            if entries:
                take_in(entries)
            if entries or time.monotonic() - kept_s > KEEP_S:
                _keep(name, stream.resume_token)
                kept_s = time.monotonic()
        if not stream.alive:
            # The collection itself was dropped or renamed; the stream ends there for ever.
            _collection().delete_one({"_id": name})


def _gather(stream: "ChangeStream[storage.Doc]") -> list[Entry]:
    """The next entries; none when it was quiet."""
    entries: list[Entry] = []
    until_s: float | None = None
    while len(entries) < BATCH_MAX and (until_s is None or time.monotonic() < until_s):
        change: Mapping[str, Any] | None = stream.try_next()
        if change is None:
            break
        entries.append(book.entry_of(change["fullDocument"]))
        until_s = until_s or time.monotonic() + GATHER_S
    return entries


def _keep(name: str, token: Mapping[str, Any] | None) -> None:
    if token is not None:
        row = {"token": dict(token), "at": clock.now()}
        _collection().update_one({"_id": name}, {"$set": row}, upsert=True)
