"""What indexes are declared, what is there, and what a release does about the difference."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from click.testing import CliRunner
from pymongo import IndexModel

from accounting import indexing, storage
from accounting.indexing import DIFFERENT, EXTRA, MISSING, Finding
from api import cli, schema, stores
from api.config import Config
from api.stack import StackError

# Unique on (job, row), and a collection that tests of this file have to themselves.
NAME = "job_errors"


@pytest.fixture
def _as_declared_afterwards(app: object) -> Iterator[None]:
    yield
    storage.database()[NAME].delete_many({})
    assert indexing.build(drop=True, replace=True) == []
    storage.database()["meta"].delete_one({"_id": "schema"})


in_the_store = pytest.mark.usefixtures("_as_declared_afterwards")


def errors() -> Any:
    return storage.database()[NAME]


def kinds() -> list[tuple[str, str]]:
    return [(one.kind, f"{one.collection}.{one.name}") for one in indexing.differences()]


@in_the_store
def test_what_a_fresh_start_makes_is_what_is_declared() -> None:
    assert indexing.differences() == []
    assert sum(map(len, indexing.declared().values())) > 150


@in_the_store
def test_prepare_builds_what_is_missing_and_leaves_the_rest_to_those_who_say_so() -> None:
    errors().drop_index("job_1_row_1")
    errors().create_index("code", name="by_hand")
    storage.database()["jobs"].drop_index("unfinished")
    storage.database()["jobs"].create_index("leased_until", name="unfinished")
    try:
        assert kinds() == [
            (MISSING, f"{NAME}.job_1_row_1"),
            (EXTRA, f"{NAME}.by_hand"),
            (DIFFERENT, "jobs.unfinished"),
        ]
        told: list[Finding] = []
        left = indexing.build(told.append, drop=False, replace=False)
        assert [one.name for one in told] == ["job_1_row_1"]
        assert [(one.kind, one.name) for one in left] == [
            (EXTRA, "by_hand"),
            (DIFFERENT, "unfinished"),
        ]
        assert errors().index_information()["job_1_row_1"]["unique"]
        assert indexing.build(drop=True, replace=False) == []
        assert kinds() == []
    finally:
        indexing.build(drop=True, replace=True)


@in_the_store
def test_an_index_is_built_while_writers_write() -> None:
    errors().drop_index("job_1_row_1")
    errors().insert_many([{"job": "a", "row": row} for row in range(5_000)])
    stop, busy = threading.Event(), threading.Barrier(3)

    def write(writer: int) -> int:
        row = 0
        while not stop.is_set():
            storage.strong(errors()).insert_one({"job": f"w{writer}", "row": row})
            row += 1
            if row == 1:
                busy.wait(60)
        return row

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write, number) for number in range(2)]
        busy.wait(60)
        try:
            assert indexing.build(drop=False, replace=False) == []
        finally:
            stop.set()
        written = sum(writer.result(60) for writer in writers)
    assert errors().count_documents({}) == 5_000 + written
    assert kinds() == []


@in_the_store
def test_data_that_cannot_have_the_index_is_told_of_in_one_sentence() -> None:
    errors().drop_index("job_1_row_1")
    errors().insert_many([{"job": "a", "row": 1}, {"job": "a", "row": 1}])
    with pytest.raises(indexing.NotBuilt, match=r"job_1_row_1 of job_errors .* duplicate key"):
        indexing.build(drop=False, replace=False)


@pytest.mark.parametrize(
    ("there", "found"),
    [
        ({"keys": "a", "unique": True}, []),
        ({"keys": "a", "unique": True, "background": True}, []),
        ({"keys": "a", "unique": True, "sparse": False}, []),
        ({"keys": "a"}, [DIFFERENT]),
        ({"keys": "a", "unique": True, "expireAfterSeconds": 0}, [DIFFERENT]),
        ({"keys": [("a", -1)], "unique": True, "name": "a_1"}, [DIFFERENT]),
        ({"keys": "a", "unique": True, "name": "other"}, [DIFFERENT]),
        ({"keys": "b"}, [MISSING, EXTRA]),
        # The same keys over other documents are another index.
        (
            {"keys": "a", "name": "some", "partialFilterExpression": {"b": 1}},
            [MISSING, EXTRA],
        ),
    ],
)
def test_only_what_an_index_does_makes_it_another(there: dict[str, Any], found: list[str]) -> None:
    declared = {"c": [IndexModel("a", unique=True).document]}
    present = {"c": [IndexModel(**there).document]}
    assert [one.kind for one in indexing.compare(declared, present)] == found


@in_the_store
def test_the_commands_show_and_prepare(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in config.environment().items():
        monkeypatch.setenv(name, value)
    errors().drop_index("job_1_row_1")
    errors().create_index("code", name="by_hand")
    storage.disconnect()
    try:
        shown = CliRunner().invoke(cli.tanhui, ["indexes"])
        assert shown.exit_code == 1
        assert "1 of " in shown.output
        for word in (MISSING, EXTRA, "by_hand", "job 1, row 1; unique True"):
            assert word in shown.output, shown.output
        made = CliRunner().invoke(cli.tanhui, ["prepare"], catch_exceptions=False)
        assert made.exit_code == 0
        assert f"build  {NAME}.job_1_row_1" in made.output
        assert f"extra, left as it is without --drop: {NAME}.by_hand" in made.output
        shown = CliRunner().invoke(cli.tanhui, ["indexes"], catch_exceptions=False)
        assert shown.exit_code == 0
        assert "by_hand" in shown.output
        made = CliRunner().invoke(cli.tanhui, ["prepare", "--drop"], catch_exceptions=False)
        assert f"drop  {NAME}.by_hand" in made.output
    finally:
        storage.connect(config.mongodb_uri)
    assert storage.database()["meta"].find_one({"_id": "schema"}) == {
        "_id": "schema",
        "version": schema.VERSION,
        "release": schema.RELEASE,
    }


@in_the_store
def test_an_older_release_does_not_start_on_the_data_of_a_newer_one(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = {"_id": "schema", "version": schema.VERSION + 1, "release": "9.9"}
    storage.database()["meta"].replace_one({"_id": "schema"}, newer, upsert=True)
    schema.write(storage.database())
    assert schema.found_in(storage.database()) == newer
    storage.disconnect()
    try:
        for look in (
            lambda: stores.check_mode(config),
            lambda: stores.check_data(config),
            lambda: stores.make_indexes(config.mongodb_uri),
        ):
            with pytest.raises(StackError, match=r"made by release 9\.9, .* start the newer"):
                look()
    finally:
        storage.connect(config.mongodb_uri)
    for name, value in config.environment().items():
        monkeypatch.setenv(name, value)
    ended = CliRunner().invoke(cli.tanhui, ["run", "follower"])
    assert isinstance(ended.exception, StackError)
