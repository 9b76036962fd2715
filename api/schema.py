"""Which shape the data has, and whether this code may work on it.

The document `schema` in `meta` says which version of the shape the data has. Code of an older
version refuses to start on it: what it would write, the newer release no longer expects. Newer code
raises the version with `tanhui prepare`, once its indexes are there.
"""

from importlib import metadata
from typing import Any

from pymongo.database import Database
from pymongo.write_concern import WriteConcern

from api.stack import StackError

VERSION = 1
"""Raise it when older code must not write to the data any more, and say why in CHANGELOG.md."""
RELEASE = metadata.version("tanhui")
RESTORING = "restoring"
"""The collection that is there while, and only while, a restore is not finished."""

Db = Database[dict[str, Any]]


def check(database: Db) -> None:
    """Raises `StackError` for data of a newer release, and for half a restore."""
    refuse_half_restored(database)
    found = found_in(database)
    if found is not None and found["version"] > VERSION:
        raise StackError(
            f"this data has shape {found['version']}, made by release {found['release']}, and this "
            f"release ({RELEASE}) knows shapes up to {VERSION}: start the newer release"
        )


def found_in(database: Db) -> dict[str, Any] | None:
    """What the data says of its shape; None before the first `tanhui prepare` that writes it."""
    return database["meta"].find_one({"_id": "schema"})


def write(database: Db) -> None:
    """Say that the data has our shape; never lowers what a newer release said."""
    meta = database.get_collection("meta", write_concern=WriteConcern("majority", j=True))
    meta.update_one({"_id": "schema"}, {"$setOnInsert": {"version": 0, "release": ""}}, upsert=True)
    meta.update_one(
        {"_id": "schema", "version": {"$lt": VERSION}},
        {"$set": {"version": VERSION, "release": RELEASE}},
    )


def refuse_half_restored(database: Db) -> None:
    """Raises `StackError` while a restore into this database is not finished."""
    mark = database[RESTORING].find_one({})
    if mark is not None:
        raise StackError(
            f"a restore of {mark['file']} into this database is not finished: run `tanhui restore` "
            f"on that file again"
        )
