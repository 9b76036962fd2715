"""Real servers for the whole run: one MongoDB replica set, one Redis, one application."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from faults.crew import Crew
from flask import Flask
from flask.testing import FlaskClient
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern
from stacks import Stack, left_of
from workers import (  # noqa: F401
    pytest_collection_modifyitems,
    pytest_xdist_auto_num_workers,
    pytest_xdist_make_scheduler,
)

from accounting import storage
from api.app import create_app
from api.config import Config
from integrations.servers import mongod, redis_server

SECRET = bytes(range(32))
MEMORY_MIN = 4 * 2**30


@pytest.fixture(scope="session")
def _memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory where there is one: tests kill processes, which lose no file by it.

    Every write waits until it is on disk; on a disk the suite waits for that alone a fifth of its
    time.
    """
    place = Path("/dev/shm")
    roomy = os.access(place, os.W_OK) and shutil.disk_usage(place).free >= MEMORY_MIN
    if not roomy:
        yield tmp_path_factory.mktemp("disk")
        return
    with tempfile.TemporaryDirectory(prefix="tanhui-", dir=place) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def config(_memory: Path) -> Iterator[Config]:
    """A configuration whose MongoDB and Redis are running."""
    folder = _memory / "servers"
    folder.mkdir()
    (folder / "log").mkdir()
    with mongod(folder) as store, redis_server(folder) as queue:
        yield Config(
            mongodb_uri=store.url,
            redis_url=queue.url,
            secret=SECRET,
            public_url="http://localhost",
            data_dir=folder,
        )


@pytest.fixture(scope="session")
def app(config: Config) -> Iterator[Flask]:
    app = create_app(config)
    storage.ensure_indexes()
    # Tests travel in time; the server does not, and would sweep away what they made "last May".
    storage.client().admin.command("setParameter", 1, ttlMonitorEnabled=False)
    yield app
    app.extensions["redis"].close()
    storage.disconnect()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture(scope="session")
def _zygote(config: Config) -> Iterator[Crew]:
    with Crew(config.mongodb_uri) as crew:
        yield crew


@pytest.fixture
def crew(_zygote: Crew) -> Crew:
    """Processes to be killed. One zygote forks them all: its imports cost seconds."""
    _zygote.ahead = timedelta(0)
    return _zygote


@pytest.fixture(scope="session")
def demo_stack(_memory: Path) -> Iterator[Stack]:
    """One `tanhui up --demo` for every test that leaves it running, whatever else it does to it."""
    with Stack(_memory / "var", "--demo") as stack:
        yield stack.ready()
        assert stack.end() == 0, stack.said()
    assert left_of(stack.data_dir) == []


@pytest.fixture(autouse=True)
def _empty_database(request: pytest.FixtureRequest) -> None:
    """Empty, not drop: indexes stay, and the server opens no new files for each test."""
    if "app" in request.fixturenames:
        request.getfixturevalue("app")
        # One wait for all: until a majority has the deletions, another process, which asks
        # for what a majority has, still finds what the test before left.
        filled = _filled()
        database = storage.database()
        for name in filled[:-1]:
            database[name].with_options(write_concern=WriteConcern(1, j=False)).delete_many({})
        for name in filled[-1:]:
            storage.strong(database[name]).delete_many({})


def _filled() -> list[str]:
    """The collections that hold anything, in one question: emptying all costs ten times as much."""

    def one_of(name: str) -> list[dict[str, Any]]:
        return [{"$limit": 1}, {"$project": {"_id": 0, "name": {"$literal": name}}}]

    # Not only what a majority has: what was written without waiting for it must go too.
    database = storage.database().with_options(read_concern=ReadConcern("local"))
    first, *others = database.list_collection_names()
    stages = one_of(first)
    stages += [{"$unionWith": {"coll": name, "pipeline": one_of(name)}} for name in others]
    return [row["name"] for row in database[first].aggregate(stages)]
