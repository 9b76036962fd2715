"""A backup is one moment of a city that goes on, and what comes back is that moment or nothing."""

import gzip
import io
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import bson
import pytest
from bson import json_util
from click.testing import CliRunner
from faults.crew import KILLED, Crew, Death
from lives import at, did
from pymongo.errors import OperationFailure

from accounting import accounts, book, proofs, storage, vault
from api import cli, stores
from api.backup import archive, restoring, taking
from api.backup.archive import Archive, BackupError
from api.backup.taking import WINDOW
from api.bookkeeping import RULES
from api.config import Config
from api.stack import StackError
from integrations import imports

pytestmark = pytest.mark.usefixtures("app")

PEOPLE = ["res_anna", "res_bo", "res_cai"]
ELSEWHERE = "restored"


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with at("2026-05-20 12:00"):
        yield


@pytest.fixture(autouse=True)
def _gone_afterwards(config: Config) -> Iterator[None]:
    yield
    storage.client().drop_database(ELSEWHERE)


def there(config: Config) -> Config:
    """The same servers, another database."""
    return replace(config, mongodb_uri=config.mongodb_uri.replace("/tanhui?", f"/{ELSEWHERE}?"))


@contextmanager
def connected(config: Config) -> Iterator[None]:
    """What is asked of the store goes to that database."""
    before = storage.database().name
    assert before == "tanhui"
    storage.disconnect()
    storage.connect(config.mongodb_uri)
    try:
        yield
    finally:
        storage.disconnect()
        storage.connect(config.mongodb_uri.replace(f"/{ELSEWHERE}?", f"/{before}?"))


def lives() -> None:
    for who in PEOPLE:
        for day in (17, 18, 19):
            did(who, "bike_km", 4, f"2026-05-{day} 08:00", minutes=20)
    # The outcome beside a fact is a copy that waits for nobody; a backup is what a majority has.
    storage.strong(storage.database()["walks"]).delete_many({"_id": "nobody's"})


def back_up(folder: Path) -> Path:
    path = folder / "city.zip"
    taking.take(path)
    return path


def everything() -> dict[str, list[dict[str, Any]]]:
    """All documents by collection, but for what no backup carries."""
    database = storage.database()
    left_out = (*taking.LEFT_OUT, "meta")
    names = sorted(set(database.list_collection_names()) - set(left_out))
    found = {name: sorted(database[name].find(), key=lambda one: str(one["_id"])) for name in names}
    return {name: documents for name, documents in found.items() if documents}


# What comes back.


def test_all_that_was_there_comes_back_sealed_as_it_was(config: Config, tmp_path: Path) -> None:
    lives()
    anna = accounts.by_phone("+8613800138000")
    file = bytes(range(256)) * 5_000
    job = imports.store("feed", "p", io.BytesIO(file), media_type="text/csv", gzipped=False)
    proofs.run(proofs.queue("op").id, RULES)
    newest = proofs.newest()
    assert newest is not None
    before, indexes = everything(), _indexes()
    path = back_up(tmp_path)
    with connected(there(config)):
        found = restoring.restore(path, replace=False)
        assert everything() == before
        assert (
            _indexes().items()
            >= {name: found for name, found in indexes.items() if name in before}.items()
        )
        assert (found.book.accounts, found.book.entries) == (3, 9)
        # 4 km by bike save 4 x 48.7 g = 194.8 g, so 194 points, three times for each of three.
        assert found.book.balances["points/available"] == 9 * 194
        assert dict(found.manifest.book["balances"]) == found.book.balances
        with imports._files().open_download_stream(job.arguments["file"]) as stored:
            assert stored.read() == file
        assert accounts.by_phone("+8613800138000") == anna
        moment = datetime.fromisoformat(found.manifest.taken_at)
        assert moment.timestamp() == found.manifest.cluster_time[0]
        assert found.manifest.proof is not None
        assert found.manifest.proof["root"] == newest.root
        assert proofs.newest() == newest
    assert vault.derive("field") not in path.read_bytes()
    with zipfile.ZipFile(path) as file_of_all:
        packed = gzip.decompress(file_of_all.read("collections/residents.bson.gz"))
    assert b"13800138000" not in packed
    assert [row["_id"] for row in bson.decode_all(packed)] == [anna]


def _indexes() -> dict[str, Any]:
    database = storage.database()
    return {name: database[name].index_information() for name in database.list_collection_names()}


def test_it_is_one_moment_though_writers_write_all_the_while(
    config: Config, tmp_path: Path
) -> None:
    """Activities are read before entries: read one after the other, late entries had no fact."""
    lives()
    stop = threading.Event()
    written = threading.Semaphore(0)
    acknowledged: list[str] = []

    def write(who: str) -> None:
        with at("2026-05-20 12:00"):
            while not stop.is_set():
                acknowledged.append(did(who, "bus_km", 1, "2026-05-20 08:00").id)
                written.release()

    def more(_read: int) -> None:
        # Not a block of it is read without two more facts and entries beside it.
        for _ in range(2):
            written.acquire(timeout=60)

    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(write, f"res_{number}") for number in range(3)]
        try:
            for _ in range(6):
                written.acquire(timeout=60)
            before = list(acknowledged)
            manifest = taking.take(tmp_path / "city.zip", more)
        finally:
            stop.set()
        for writer in writers:
            writer.result(60)

    with connected(there(config)):
        found = restoring.restore(tmp_path / "city.zip", replace=False)
        facts = {row["_id"] for row in storage.database()["activities"].find()}
        entries = {row["refs"]["activity"] for row in storage.database()["entries"].find()}
        settled = {
            row["_id"] for row in storage.database()["activities"].find({"state": "settled"})
        }
    assert set(before) <= entries
    assert len(entries) < len(acknowledged) + 9
    assert settled <= entries <= facts
    assert found.book.entries == len(entries)
    assert dict(manifest.book["balances"]) == found.book.balances


def test_the_commands_say_what_they_did(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lives()
    settings = config.environment()
    for name in ("MONGODB_URI", "REDIS_URL", "TANHUI_SECRET"):
        monkeypatch.setenv(name, settings[name])
    storage.disconnect()
    try:
        said = CliRunner().invoke(cli.tanhui, ["backup", str(tmp_path)], catch_exceptions=False)
        assert said.exit_code == 0, said.output
        assert "3 accounts" in said.output
        (path,) = tmp_path.glob("tanhui-20260520T040000Z.zip")
        assert path.stat().st_mode & 0o777 == 0o600
        monkeypatch.setenv("MONGODB_URI", there(config).mongodb_uri)
        said = CliRunner().invoke(cli.tanhui, ["restore", str(path)], catch_exceptions=False)
        assert said.exit_code == 0, said.output
        assert "The book holds: 9 entries of 3 accounts" in said.output
    finally:
        storage.connect(config.mongodb_uri)


# What is refused, before a document is written.


def _without(path: Path, member: str) -> None:
    _rewritten(path, lambda name, content: None if name == member else content)


def _rewritten(path: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in members.items():
            changed = change(name, content)
            if changed is not None:
                new.writestr(name, changed)


def _in_manifest(path: Path, **values: Any) -> None:
    def change(name: str, content: bytes) -> bytes:
        if name != archive.MANIFEST:
            return content
        return json_util.dumps(json_util.loads(content.decode()) | values).encode()

    _rewritten(path, change)


def _flip(path: Path) -> None:
    """One bit of an entry's packed bytes."""
    content = bytearray(path.read_bytes())
    content[content.index(b"collections/entries.bson.gz") + 200] ^= 1
    path.write_bytes(content)


def _other_content(path: Path) -> None:
    """A member that is whole in itself, and not the one that was hashed."""
    _rewritten(
        path,
        lambda name, content: gzip.compress(b"") if "entries.bson" in name else content,
    )


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (_flip, "entries.bson.gz in .* is damaged"),
    (_other_content, "entries.bson.gz in .* is damaged"),
    (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "cut off or no backup"),
    (lambda path: path.write_bytes(b""), "cut off or no backup"),
    (lambda path: path.unlink(), "cannot read"),
    (lambda path: _without(path, "collections/entries.bson.gz"), "lacks collections/entries"),
    (lambda path: _without(path, archive.MANIFEST), "no readable manifest"),
    (lambda path: _in_manifest(path, format=2), "of format 2, and this release reads format 1"),
    (lambda path: _in_manifest(path, schema=99, release="9.9"), "restore it with release 9.9"),
    (lambda path: _in_manifest(path, parts=[{}]), "manifest of .* is damaged"),
]


def test_what_is_no_whole_backup_of_ours_is_refused_and_writes_nothing(
    config: Config, tmp_path: Path
) -> None:
    lives()
    whole, path = back_up(tmp_path), tmp_path / "damaged.zip"
    with connected(there(config)):
        for damage, said in DAMAGES:
            shutil.copy(whole, path)
            damage(path)
            with pytest.raises(BackupError, match=said):
                restoring.restore(path, replace=False)
            assert storage.database().list_collection_names() == [], said


@pytest.mark.parametrize("end", ["published", "given up"])
def test_a_backup_that_ended_between_our_look_and_our_lock_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    path = tmp_path / "city.zip"
    partial = tmp_path / "city.zip.partial"
    lock = archive.fcntl.flock

    def ended(file: Any, how: int) -> None:
        with partial.open("wb") as other:
            other.write(b"whole")
        if end == "published":
            partial.rename(path)
        else:
            partial.unlink()
        lock(file, how)

    monkeypatch.setattr(archive.fcntl, "flock", ended)
    with pytest.raises(BackupError, match="until now: run it again"), archive.publish(path):
        pytest.fail("nothing may be written")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == (
        [b"whole"] if end == "published" else []
    )


def test_a_backup_is_not_written_over_one_that_came_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "city.zip"
    lock = archive.fcntl.flock

    def first(file: Any, how: int) -> None:
        path.write_bytes(b"whole")
        lock(file, how)

    monkeypatch.setattr(archive.fcntl, "flock", first)
    with pytest.raises(BackupError, match="exists already"), archive.publish(path):
        pytest.fail("nothing may be written")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"whole"]


def test_another_secret_is_refused(config: Config, tmp_path: Path) -> None:
    lives()
    path = back_up(tmp_path)
    with connected(there(config)):
        vault.configure(bytes(32))
        try:
            with pytest.raises(BackupError, match="under another secret"):
                restoring.restore(path, replace=False)
        finally:
            vault.configure(config.secret)
        assert storage.database().list_collection_names() == []


def test_data_is_dropped_and_a_broken_book_served_only_over_our_refusal(
    config: Config, tmp_path: Path
) -> None:
    lives()
    path, before = back_up(tmp_path), everything()
    storage.database()["entries"].update_one(
        {"account": PEOPLE[1], "seq": 2}, {"$set": {"lines.0.2": 5}}
    )
    taking.take(tmp_path / "broken.zip")
    with connected(there(config)):
        storage.database()["kept"].insert_one({"_id": 1})
        with pytest.raises(BackupError, match=r"not empty \(kept holds data\)"):
            restoring.restore(path, replace=False)
        assert storage.database()["kept"].count_documents({}) == 1
        with pytest.raises(BackupError, match=f"does not hold: {PEOPLE[1]} seq 2"):
            restoring.restore(tmp_path / "broken.zip", replace=True)
        with pytest.raises(StackError, match="is not finished"):
            stores.check_mode(there(config))
        restoring.restore(path, replace=True)
        assert everything() == before


def test_a_file_that_is_there_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "city.zip"
    path.write_bytes(b"precious")
    with pytest.raises(BackupError, match="exists already"):
        taking.take(path)
    assert path.read_bytes() == b"precious"


# What is cut off.


def test_a_moment_that_is_no_longer_kept_leaves_no_file(tmp_path: Path) -> None:
    lives()
    admin = storage.client().admin
    database = storage.database()

    def outrun(_read: int) -> None:
        """Until a moment behind that of the backup is forgotten."""
        with storage.client().start_session(snapshot=True) as session:
            for _ in range(100_000):
                database["walks"].insert_one({})
                try:
                    database["entries"].find_one({}, session=session)
                except OperationFailure as error:
                    assert error.code == taking.SNAPSHOT_TOO_OLD  # noqa: PT017
                    return
        raise AssertionError("MongoDB kept it")

    admin.command({"setParameter": 1, WINDOW: 0})
    try:
        with pytest.raises(BackupError, match=WINDOW):
            taking.take(tmp_path / "city.zip", outrun)
    finally:
        admin.command({"setParameter": 1, WINDOW: 300})
    assert list(tmp_path.iterdir()) == []


def test_a_long_backup_widens_the_window_and_puts_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lives()
    admin = storage.client().admin
    seen: list[int] = []
    # As if ten minutes passed between one block and the next.
    passed = iter(range(0, 600_000, 600))
    monkeypatch.setattr(taking, "monotonic", lambda: float(next(passed)))

    def look(_read: int) -> None:
        seen.append(admin.command({"getParameter": 1, WINDOW: 1})[WINDOW])

    taking.take(tmp_path / "city.zip", look)
    # The first block after 600 s: 600 and the spare 300.
    assert seen[0] == 900
    assert seen == sorted(seen)
    assert admin.command({"getParameter": 1, WINDOW: 1})[WINDOW] == 300


def test_a_backup_killed_half_way_is_no_backup(crew: Crew, tmp_path: Path) -> None:
    lives()
    path = tmp_path / "city.zip"
    assert crew.run("back_up", Death("api.backup.archive:count", "after", 2), file=str(path)) == (
        KILLED
    )
    assert [file.name for file in tmp_path.iterdir()] == ["city.zip.partial"]
    back_up(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["city.zip"]
    with Archive(path) as whole:
        for part in whole.manifest.parts:
            whole.check(part)


@pytest.mark.parametrize(
    "death",
    [
        Death("api.backup.restoring:_batches", "after", 2),
        Death("api.backup.restoring:_compare", "after"),
    ],
    ids=str,
)
def test_half_a_restore_is_known_as_such_and_gone_on_with(
    config: Config, crew: Crew, tmp_path: Path, death: Death
) -> None:
    lives()
    path, before = back_up(tmp_path), everything()
    other = Path(shutil.copy(path, tmp_path / "other.zip"))
    _in_manifest(other, id="backup_other")
    uri = there(config).mongodb_uri
    assert crew.run("restore_into", death, uri=uri, file=str(path)) == KILLED
    with pytest.raises(StackError, match="is not finished: run `tanhui restore` on that file"):
        stores.check_mode(there(config))
    with connected(there(config)):
        with pytest.raises(StackError, match="is not finished"):
            taking.take(tmp_path / "half.zip")
        with pytest.raises(BackupError, match=f"a restore of {path} into this database is not"):
            restoring.restore(other, replace=False)
        # What a restore that was stopped while it dropped left of the city before.
        storage.database()["kept"].insert_one({"_id": 1})
        found = restoring.restore(path, replace=False)
        assert found.went_on
        assert everything() == before
        assert book.head(PEOPLE[0]).seq == 3
    stores.check_mode(there(config))
