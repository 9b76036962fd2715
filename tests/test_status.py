"""`tanhui status` says what is not well, and its exit code says that something is not."""

from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result
from flask import Flask
from lives import at

from accounting import alarms, storage
from api import cli, queues, schema
from api.config import Config

pytestmark = pytest.mark.usefixtures("app")


@pytest.fixture
def status(config: Config, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Result]:
    for name, value in config.environment().items():
        monkeypatch.setenv(name, value)
    # How full the disk of whoever runs the tests is says nothing of the city.
    monkeypatch.setattr("api.status.DISK_FULL", 2)

    def run() -> Result:
        storage.disconnect()
        try:
            return CliRunner().invoke(cli.tanhui, ["status"])
        finally:
            storage.connect(config.mongodb_uri)

    return run


def line(said: Result, name: str) -> str:
    return next(row for row in said.output.splitlines() if row.startswith(name))


def test_a_city_that_is_well_has_no_bad_line_but_for_a_follower_that_never_ran(
    app: Flask, status: Callable[[], Result]
) -> None:
    # Nobody works off what the tests before this one nudged.
    waiting = app.extensions["redis"].lpush(queues.URGENT, "a task")
    said = status()
    app.extensions["redis"].lpop(queues.URGENT)
    assert "PRIMARY" in line(said, "MongoDB")
    assert f"urgent {waiting} waiting" in line(said, "Redis")
    assert [row.split()[0] for row in said.output.splitlines() if " BAD " in row] == ["summaries"]
    assert said.exit_code == 1


def test_what_is_not_well_is_named(
    status: Callable[[], Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    alarms.sound("clock_skew", "host-7")
    storage.database()["meta"].insert_one({"_id": "schema", "version": 99, "release": "9.9"})
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    try:
        with at("2026-05-20 12:00"):
            assert "BAD" in line(status(), "clock")
        said = status()
    finally:
        storage.database()["meta"].delete_one({"_id": "schema"})
    assert "BAD  away" in line(said, "Redis")
    assert "BAD  shape 99 of 9.9" in line(said, "data")
    assert "BAD  clock_skew (host-7)" in line(said, "alarms")
    assert said.exit_code == 1


def test_half_a_restore_is_not_well(status: Callable[[], Result]) -> None:
    storage.database()[schema.RESTORING].insert_one({"_id": "restore", "file": "city.zip"})
    try:
        said = status()
    finally:
        storage.database().drop_collection(schema.RESTORING)
    assert "a restore of city.zip into this database is not finished" in line(said, "data")
