"""The one MongoDB connection, with the durability the book rests on.

Every domain write is `w: majority, j: true`: an acknowledged write survives the death of any one
process. That needs a replica set (or a sharded cluster), so a standalone server is refused.
"""

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import mongoengine
from mongoengine.connection import get_connection, get_db
from pymongo import MongoClient
from pymongo.change_stream import CollectionChangeStream
from pymongo.collection import Collection
from pymongo.command_cursor import CommandCursor
from pymongo.cursor import Cursor
from pymongo.database import Database
from pymongo.errors import BulkWriteError, ConfigurationError
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.uri_parser import parse_uri
from pymongo.write_concern import WriteConcern

DEFAULT_DATABASE = "tanhui"
SERVER_SELECTION_MS = 3_000
DUPLICATE = 11_000
PAUSE_S = 0.005

Doc = dict[str, Any]


class Indexed(Protocol):
    """What `ensure_indexes` can prepare: a MongoEngine document, or a collection of our own."""

    @classmethod
    def ensure_indexes(cls) -> None: ...


D = TypeVar("D", bound=type[Indexed])

_indexed: list[type[Indexed]] = []


class WeakStore(Exception):
    """The store cannot keep the promises of the book; the message says what to change."""


def connect(uri: str) -> None:
    """Connect MongoEngine with majority, journaled writes and majority reads from the primary.

    Raises `WeakStore` on a URI that asks for less, or on a standalone server. The client is lazy
    about the network otherwise: an absent server shows at the first use, as an unavailable part.
    """
    options = parse_uri(uri)["options"] if not uri.startswith("mongodb+srv") else {}
    if options.get("w", "majority") != "majority" or options.get("journal") is False:
        raise WeakStore("MONGODB_URI asks for a weaker write than w=majority, journal=true")
    if "readpreference" in options and options["readpreference"] not in (0, "primary"):
        raise WeakStore("MONGODB_URI must read from the primary: what is read leads to writes")
    try:
        database = parse_uri(uri)["database"] or DEFAULT_DATABASE
    except ConfigurationError as error:
        raise WeakStore(f"MONGODB_URI cannot be read: {error}") from None
    mongoengine.connect(
        db=database,
        host=uri,
        tz_aware=True,
        uuidRepresentation="standard",
        serverSelectionTimeoutMS=SERVER_SELECTION_MS,
        w="majority",
        journal=True,
        readConcernLevel="majority",
        retryWrites=True,
    )


def check_topology() -> None:
    """Refuse a standalone server: without a replica set nothing is replicated or majority-read."""
    hello = client().admin.command("hello")
    if "setName" not in hello and hello.get("msg") != "isdbgrid":
        raise WeakStore(
            "MongoDB runs standalone; start it as a replica set (--replSet) or use a sharded "
            "cluster, because the book needs majority writes"
        )


def disconnect() -> None:
    mongoengine.disconnect()
    # MongoEngine finds documents by their class name: of two that share one it forgets but one.
    for document in _indexed:
        if issubclass(document, mongoengine.Document):
            document._disconnect()  # type: ignore[attr-defined]


def client() -> "MongoClient[Doc]":
    return get_connection()


def database() -> "Database[Doc]":
    return get_db()


def strong(collection: Any) -> Any:
    """The collection with the concerns spelled out, whatever the URI says."""
    return collection.with_options(
        write_concern=WriteConcern(w="majority", j=True),
        read_concern=ReadConcern("majority"),
        read_preference=ReadPreference.PRIMARY,
    )


class AppendOnly:
    """A collection one can read and add to, with strong concerns.

    What would change, replace or remove a document is not here to be called.
    """

    def __init__(self, collection: "Collection[Doc]") -> None:
        self._collection: Collection[Doc] = strong(collection)
        self.name = collection.name

    def insert_one(self, document: Any) -> None:
        self._collection.insert_one(document)

    def insert_many(self, documents: Sequence[Any], *, ordered: bool) -> None:
        self._collection.insert_many(documents, ordered=ordered)

    def find_one(
        self,
        wanted: Mapping[str, Any],
        fields: Mapping[str, Any] | None = None,
        sort: Sequence[tuple[str, int]] | None = None,
    ) -> Doc | None:
        return self._collection.find_one(wanted, fields, sort=sort)

    def find(
        self, wanted: Mapping[str, Any], fields: Mapping[str, Any] | None = None
    ) -> "Cursor[Doc]":
        return self._collection.find(wanted, fields)

    def estimated_count(self) -> int:
        return self._collection.estimated_document_count()

    def aggregate(self, pipeline: Sequence[Doc]) -> "CommandCursor[Doc]":
        return self._collection.aggregate(pipeline)

    def watch(self, **options: Any) -> "CollectionChangeStream[Doc]":
        return self._collection.watch(**options)


def insert_new(collection: Any, documents: Sequence[Any], *, ordered: bool = False) -> list[int]:
    """Insert what is not there yet, in one round trip; returns the places of what was written.

    Ordered, it stops at the first that is there already.
    """
    if not documents:
        return []
    try:
        collection.insert_many(documents, ordered=ordered)
    except BulkWriteError as error:
        wrong = error.details["writeErrors"]
        there = {one["index"] for one in wrong if one["code"] == DUPLICATE}
        if len(there) < len(wrong) or error.details["writeConcernErrors"]:
            raise
        end = min(there) if ordered else len(documents)
        return [place for place in range(end) if place not in there]
    return list(range(len(documents)))


def pause(attempt: int) -> None:
    """Wait a little before a write that lost a race is tried again, longer with each attempt."""
    time.sleep(random.uniform(0, PAUSE_S) * 2 ** min(attempt, 5))


def indexed(document: D) -> D:
    """Class decorator: `ensure_indexes` makes the indexes of this document."""
    _indexed.append(document)
    return document


def documents() -> tuple[type[Indexed], ...]:
    """All that was declared with `indexed`, as far as its module was imported."""
    return tuple(_indexed)


def ensure_collection(name: str, schema: Doc) -> None:
    """Make a collection that refuses documents of another shape (`$jsonSchema`).

    The shape of a collection that is there already is replaced.
    """
    known = database().list_collection_names(filter={"name": name})
    validator = {"$jsonSchema": schema}
    if known:
        database().command("collMod", name, validator=validator)
    else:
        database().create_collection(name, validator=validator)


def ensure_shapes() -> None:
    """Make every validator that a declared collection has."""
    for document in _indexed:
        prepare = getattr(document, "prepare_collection", None)
        if prepare is not None:
            prepare()


def ensure_indexes() -> None:
    """Make every index and validator. Run at start-up, before anything is served."""
    check_topology()
    ensure_shapes()
    for document in _indexed:
        document.ensure_indexes()
