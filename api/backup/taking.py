"""Taking a backup while the city goes on: every collection is read as it was at one cluster time.

MongoDB keeps the history of a moment for `minSnapshotHistoryWindowInSeconds` (five minutes unless
somebody said otherwise), and a city takes longer to copy. So the window is widened as the backup
goes on, never further than it needs, and put back at its end. Where that is not allowed (mongos,
a user without that right) a backup that outlasts the window ends with a sentence and no file.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

from pymongo.client_session import ClientSession
from pymongo.errors import OperationFailure, PyMongoError

from accounting import storage, vault
from accounting.ids import new_id
from api import schema
from api.backup import archive, heads
from api.backup.archive import BackupError, Manifest, Part

# Places in the oplog of the servers they were stored on. A follower without one walks.
LEFT_OUT = ("followers", schema.RESTORING)
WINDOW = "minSnapshotHistoryWindowInSeconds"
# How far the window reaches beyond what is needed now, and how often it is moved.
SPARE_S = 300
MOVE_S = 30
START_ATTEMPTS = 5
SNAPSHOT_TOO_OLD, SNAPSHOT_UNAVAILABLE = 239, 246

Tell = Callable[[int], None]


def take(path: Path, tell: Tell = lambda read: None) -> Manifest:
    """Write a backup to a new file; `tell` hears how many bytes of documents were read.

    Raises `BackupError` if it cannot be one moment's; then there is no file.
    """
    schema.refuse_half_restored(storage.database())
    with archive.publish(path) as writer, _Window() as window:
        snapshot, session = _begin()
        try:
            read = 0

            def more(block: bytes) -> bytes:
                nonlocal read
                window.move()
                read += len(block)
                tell(read)
                return block

            parts = [
                _copy(writer, name, options, session, more) for name, options in snapshot.items()
            ]
            manifest = _manifest(session, parts, window)
        except OperationFailure as error:
            raise _explained(error) from error
        finally:
            session.end_session()
        writer.close(manifest)
    return manifest


def size() -> int:
    """About how many bytes a backup has to read."""
    stats = storage.database().command("dbStats")
    return int(stats["dataSize"])


def _begin() -> tuple[dict[str, Mapping[str, Any]], ClientSession]:
    """The collections of a moment with their options, and the session that reads them.

    A list of collections has no moment. One that was made after the moment began, or changed its
    shape, cannot be read in it: then a later moment is taken.
    """
    database = storage.database()
    for _ in range(START_ATTEMPTS):
        session = storage.client().start_session(snapshot=True)
        try:
            found = {
                row["name"]: row["options"]
                for row in database.list_collections()
                if row["type"] == "collection"
                and not row["name"].startswith("system.")
                and row["name"] not in LEFT_OUT
            }
            # What was made between the list and the moment comes into the next list.
            for name in found:
                database[name].find_one({}, {"_id": 1}, session=session)
            if set(found) == _names():
                return dict(sorted(found.items())), session
        except OperationFailure as error:
            if error.code != SNAPSHOT_UNAVAILABLE:
                session.end_session()
                raise
        session.end_session()
    raise BackupError("collections are being made or changed all the time: run it again later")


def _names() -> set[str]:
    return {
        name
        for name in storage.database().list_collection_names(filter={"type": "collection"})
        if not name.startswith("system.") and name not in LEFT_OUT
    }


def _copy(
    writer: archive.Writer,
    name: str,
    options: Mapping[str, Any],
    session: ClientSession,
    more: Callable[[bytes], bytes],
) -> Part:
    collection = storage.database()[name]
    indexes = [
        {key: value for key, value in index.items() if key not in ("v", "ns")}
        for index in collection.list_indexes()
        if index["name"] != "_id_"
    ]

    def blocks() -> Iterator[bytes]:
        raw: Iterable[Any] = collection.find_raw_batches({}, session=session)
        for block in raw:
            yield more(block)

    return writer.add(name, blocks(), options, indexes)


def _manifest(session: ClientSession, parts: list[Part], window: "_Window") -> Manifest:
    database = storage.database()
    book = heads.summary(session, window.move)
    proof = database["proofs"].find_one(
        {}, {"state": 1, "root": 1, "at": 1}, sort=[("_id", -1)], session=session
    )
    # PyMongo has no public name for it; it is what the server chose at the first read.
    moment: Any = session._snapshot_time
    return Manifest(
        id=new_id("backup"),
        release=schema.RELEASE,
        schema=schema.VERSION,
        cluster_time=(moment.time, moment.inc),
        taken_at=moment.as_datetime().isoformat(),
        key_id=vault.key_id(),
        book=book,
        proof=proof and {**proof, "at": proof["at"].isoformat()},
        parts=tuple(parts),
    )


def name_for(instant: datetime) -> str:
    """The name of a backup in a folder."""
    return f"tanhui-{instant.astimezone(UTC):%Y%m%dT%H%M%SZ}.zip"


class _Window:
    """The history MongoDB keeps, as wide as the backup has taken so far and a little more."""

    def __init__(self) -> None:
        self._began = self._moved = monotonic()
        self._before: int | None = None
        self._width = 0

    def __enter__(self) -> "_Window":
        try:
            found = storage.client().admin.command({"getParameter": 1, WINDOW: 1})
            self._before = self._width = int(found[WINDOW])
        except OperationFailure:
            pass  # mongos, or not our right: what there is must do.
        return self

    def move(self) -> None:
        """Widen it if it is time to."""
        now = monotonic()
        if self._before is None or now - self._moved < MOVE_S:
            return
        self._moved = now
        needed = int(now - self._began) + SPARE_S
        if needed > self._width:
            self._set(needed)

    def _set(self, seconds: int) -> None:
        try:
            storage.client().admin.command({"setParameter": 1, WINDOW: seconds})
            self._width = seconds
        except OperationFailure:
            self._before = None

    def __exit__(self, *_: object) -> None:
        if self._before is not None and self._width != self._before:
            with suppress(PyMongoError):  # It is away; a restart has the old width anyway.
                self._set(self._before)


def _explained(error: OperationFailure) -> Exception:
    if error.code == SNAPSHOT_TOO_OLD:
        return BackupError(
            f"MongoDB no longer keeps the moment the backup began at: set its parameter {WINDOW} "
            f"to longer than the backup takes, on every member, and run it again"
        )
    if error.code == SNAPSHOT_UNAVAILABLE:
        return BackupError("collections or indexes were changed meanwhile: run the backup again")
    return error
