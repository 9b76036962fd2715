"""What MongoDB and Redis must be before a stack serves anybody from them."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import redis
from pymongo import MongoClient, ReturnDocument
from pymongo.errors import ConfigurationError, ConnectionFailure
from pymongo.write_concern import WriteConcern

from accounting import indexing, storage
from accounting.indexing import Finding
from api import schema
from api.config import Config
from api.stack import StackError
from integrations import servers

MONGODB_ANSWERS_MS = 10_000
REDIS_ANSWERS_S = 5


def check_mode(config: Config) -> None:
    """A database is a demo or it is not, for ever: demo conveniences must not meet real people."""
    try:
        client: MongoClient[dict[str, Any]] = MongoClient(
            config.mongodb_uri, serverSelectionTimeoutMS=MONGODB_ANSWERS_MS
        )
        with client:
            database = client.get_default_database(servers.DATABASE)
            schema.check(database)
            meta = database.get_collection("meta", write_concern=WriteConcern("majority", j=True))
            if config.demo and meta.find_one({"_id": "mode"}) is None:
                for name in database.list_collection_names():
                    if not name.startswith("system.") and database[name].find_one() is not None:
                        raise StackError(
                            f"--demo needs a database of its own, and {database.name!r} already "
                            f"holds data: choose another --data-dir or MONGODB_URI"
                        )
            # Upserted with AFTER, so there always is one; atomic, so two starts agree on it.
            mode: Any = meta.find_one_and_update(
                {"_id": "mode"},
                {"$setOnInsert": {"demo": config.demo}},
                upsert=True,
                return_document=ReturnDocument.AFTER,
            )
    except ConnectionFailure:
        raise StackError(
            "MongoDB does not answer at MONGODB_URI: start it, or correct it"
        ) from None
    except ConfigurationError as error:
        raise StackError(f"MONGODB_URI cannot be used: {error}") from None
    if mode["demo"] and not config.demo:
        raise StackError(
            "this database holds demo data: start with --demo, or choose another --data-dir "
            "or MONGODB_URI"
        )
    if config.demo and not mode["demo"]:
        raise StackError(
            "this database is not a demo: start without --demo, or choose another --data-dir "
            "or MONGODB_URI"
        )


def check_data(config: Config) -> None:
    """Refuse data that is not for this code; raises StackError.

    A store that is away refuses nothing: a part may start before it, and waits.
    """
    client: MongoClient[dict[str, Any]] = MongoClient(
        config.mongodb_uri, serverSelectionTimeoutMS=MONGODB_ANSWERS_MS
    )
    with client, suppress(ConnectionFailure):
        schema.check(client.get_default_database(servers.DATABASE))


def check_redis(config: Config) -> None:
    """Whether it answers; raises StackError."""
    try:
        with redis.Redis.from_url(
            config.redis_url, socket_connect_timeout=REDIS_ANSWERS_S
        ) as client:
            client.ping()
    except redis.RedisError:
        raise StackError("Redis does not answer at REDIS_URL: start it, or correct it") from None


def make_indexes(
    mongodb_uri: str,
    tell: Callable[[Finding], None] = lambda finding: None,
    *,
    drop: bool = False,
    replace: bool = False,
) -> list[Finding]:
    """Every index and validator, and the shape of the data; what was left as it was.

    Raises StackError for a store that could lose what it accepted, for data that is not for this
    code, and for data that cannot have an index it needs.
    """
    # Imported here, because the other commands of this module need no application: a document
    # registers its indexes when its room is imported, and the application imports every room.
    import api.app  # noqa: F401

    try:
        storage.connect(mongodb_uri)
        storage.check_topology()
        schema.check(storage.database())
        storage.ensure_shapes()
        left = indexing.build(tell, drop=drop, replace=replace)
        schema.write(storage.database())
    except (storage.WeakStore, indexing.NotBuilt) as error:
        raise StackError(str(error)) from error
    finally:
        storage.disconnect()
    return left
