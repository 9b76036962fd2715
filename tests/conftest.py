"""Real servers for the whole run: one MongoDB replica set, one Redis, one application."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from accounting import storage
from api.app import create_app
from api.config import Config
from integrations.servers import mongod, redis_server

SECRET = bytes(range(32))


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    """A configuration whose MongoDB and Redis are running."""
    folder: Path = tmp_path_factory.mktemp("servers")
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


@pytest.fixture(autouse=True)
def _empty_database(request: pytest.FixtureRequest) -> None:
    """Empty, not drop: indexes stay, and the server opens no new files for each test."""
    if "app" in request.fixturenames:
        request.getfixturevalue("app")
        for name in storage.database().list_collection_names():
            storage.database()[name].delete_many({})
