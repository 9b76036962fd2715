"""Restoring a backup: check the file, load it, compare, check the book; only then it may be used.

A mark in the database (`schema.RESTORING`) says from the first write on that it is half a restore;
nothing starts on it until the mark is gone. A restore that was cut off goes on with the collection
it was at when it is run again with the same file.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo import IndexModel
from pymongo.collection import Collection
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from accounting import indexing, proofs, storage, vault, verifying
from accounting.verifying import Broken, Place
from api import schema
from api.backup import heads
from api.backup.archive import Archive, BackupError, Manifest, Part
from api.bookkeeping import RULES

# What goes to MongoDB at once: the fewer of the two.
BATCH_DOCUMENTS = 1_000
BATCH_BYTES = 8 * 2**20

Tell = Callable[[str, int], None]


@dataclass(frozen=True)
class Restored:
    """What was loaded and what the check of the book found."""

    manifest: Manifest
    went_on: bool
    book: Place


def restore(path: Path, *, replace: bool, tell: Tell = lambda step, done: None) -> Restored:
    """Load a backup into the database that is connected; `vault` has the secret it was made with.

    `tell` hears of each step how many bytes (checking, loading) or entries (book) are done. Raises
    `BackupError`: before anything was written, or with the mark left in the database.
    """
    with Archive(path) as archive:
        manifest = archive.manifest
        _refuse_foreign(manifest)
        done = 0
        for part in manifest.parts:
            tell("checking", done)
            archive.check(part)
            done += part.bytes
        went_on = _begin(path, manifest, replace)
        _load(archive, tell)
    _compare(manifest, tell)
    try:
        book = verifying.whole_book(
            RULES, proofs.proved, lambda entries: tell("book", entries), anew=True
        )
    except Broken as broken:
        raise BackupError(
            f"the book in {path} does not hold: {broken}; restore an earlier backup with --replace"
        ) from None
    schema.write(storage.database())
    _marks().drop()
    return Restored(manifest, went_on, book)


def _marks() -> "Collection[storage.Doc]":
    return storage.strong(storage.database()[schema.RESTORING])


def _refuse_foreign(manifest: Manifest) -> None:
    if manifest.schema > schema.VERSION:
        raise BackupError(
            f"this backup has shape {manifest.schema}, and this release knows shapes up to "
            f"{schema.VERSION}: restore it with release {manifest.release} or newer"
        )
    if manifest.key_id != vault.key_id():
        raise BackupError(
            "this backup was made under another secret, and without that nobody's name or phone "
            "number could be read again: give the TANHUI_SECRET (or secrets.json) of its city"
        )


def _begin(path: Path, manifest: Manifest, replace: bool) -> bool:
    """Set the mark, or find it; True when a restore of this backup goes on where it stopped.

    Whatever the backup did not bring is dropped, also by a restore that goes on: the one before may
    have been stopped in the middle of dropping.
    """
    mark = _marks().find_one({"_id": "restore"})
    went_on = mark is not None and mark["backup"] == manifest.id and not replace
    names = [
        name
        for name in storage.database().list_collection_names()
        if not name.startswith("system.") and name != schema.RESTORING
    ]
    if not (replace or went_on):
        if mark is not None:
            raise BackupError(
                f"a restore of {mark['file']} into this database is not finished: run it with "
                f"that file, or with --replace to drop what there is"
            )
        for name in names:
            if storage.database()[name].find_one({}, {"_id": 1}) is not None:
                raise BackupError(
                    f"this database is not empty ({name} holds data): restore into an empty one, "
                    f"or say --replace to drop everything in it"
                )
    if mark is None or not went_on:
        mark = {"backup": manifest.id, "file": str(path), "loaded": []}
        _marks().replace_one({"_id": "restore"}, mark, upsert=True)
    for name in names:
        if name not in mark["loaded"]:
            storage.database().drop_collection(name)
    return went_on


def _load(archive: Archive, tell: Tell) -> None:
    mark = _marks().find_one({"_id": "restore"})
    assert mark is not None, "it was set before"
    done = 0
    for part in archive.manifest.parts:
        if part.name not in mark["loaded"]:
            _load_part(archive, part, done, tell)
            # Majority and journaled: whatever was written before it is on disk as well.
            _marks().update_one({"_id": "restore"}, {"$push": {"loaded": part.name}})
        done += part.bytes
        tell("loading", done)


def _load_part(archive: Archive, part: Part, before: int, tell: Tell) -> None:
    database = storage.database()
    database.drop_collection(part.name)
    database.command("create", part.name, **part.options)
    collection = database.get_collection(
        part.name,
        codec_options=CodecOptions(document_class=RawBSONDocument),
        # The mark after each collection waits for all of it at once.
        write_concern=WriteConcern(1, j=False),
        read_concern=ReadConcern("local"),
    )
    loaded = size = 0
    for batch in _batches(archive.documents(part)):
        # Their shape was checked when they were first written, and every hash is checked below.
        collection.insert_many(
            map(RawBSONDocument, batch), ordered=False, bypass_document_validation=True
        )
        loaded += len(batch)
        size += sum(map(len, batch))
        tell("loading", before + size)
    # Counted before there is an index: one that expires documents may take some at once.
    found = collection.count_documents({})
    if not loaded == found == part.documents:
        raise BackupError(
            f"{part.name} should have {part.documents} documents and has {found} after loading"
        )
    if part.indexes:
        collection.create_indexes([_index(index) for index in part.indexes])


def _index(found: Mapping[str, Any]) -> IndexModel:
    options = {name: value for name, value in found.items() if name != "key"}
    return IndexModel(list(found["key"].items()), **options)


def _batches(documents: Iterator[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if len(batch) == BATCH_DOCUMENTS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _compare(manifest: Manifest, tell: Tell) -> None:
    """The book's heads and sums are what they were when it was backed up."""
    storage.ensure_shapes()
    # Those of this release; its own came with the backup. Nobody else is served meanwhile.
    indexing.build(drop=False, replace=True)
    found = heads.summary(None, lambda: tell("heads", 0))
    if found != dict(manifest.book):
        raise BackupError(
            f"the restored book is not the one that was backed up: {found['accounts']} accounts "
            f"with root {found['root']}, and the backup says {manifest.book['accounts']} with "
            f"{manifest.book['root']}"
        )
