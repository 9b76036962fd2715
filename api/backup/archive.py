"""The file of a backup: a ZIP of gzipped BSON, one member a collection, and a manifest at the end.

    collections/<name>.bson.gz   documents one after another, as MongoDB keeps them
    manifest.json                format, cluster time, what members hold, what the book comes to

Any `unzip`, `gzip` and `bsondump` read it. It is published by renaming a finished, synced file, so
a name without `.partial` is a whole backup. Members are read and written as streams.
"""

import fcntl
import gzip
import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from bson import json_util

FORMAT = 1
MANIFEST = "manifest.json"
MANIFEST_BYTES_MAX = 16 * 2**20
PARTIAL = ".partial"
# The fastest level: the next ones save a tenth of the size for twice the time.
LEVEL = 1
BLOCK = 1 << 20
# MongoDB's 16 MiB and what it adds of its own.
DOCUMENT_BYTES_MAX = 17 * 2**20
_LENGTH = struct.Struct("<i")


class BackupError(Exception):
    """A backup cannot be made, read or restored: one sentence that says what to do."""


@dataclass(frozen=True)
class Part:
    """A collection in the file. `bytes` are of its documents, `sha256` of the gzipped member."""

    name: str
    documents: int
    bytes: int
    sha256: str
    options: Mapping[str, Any] = field(default_factory=dict)
    indexes: tuple[Mapping[str, Any], ...] = ()

    @property
    def member(self) -> str:
        return f"collections/{self.name}.bson.gz"


@dataclass(frozen=True)
class Manifest:
    """What a backup says of itself. `book` is what the heads of all accounts come to.

    `taken_at` is the moment it is of, the second of its cluster time: not the end of the copying.
    """

    id: str
    release: str
    schema: int
    cluster_time: tuple[int, int]
    taken_at: str
    key_id: str
    """Public: which master secret its sealed fields need, not the secret."""
    book: Mapping[str, Any]
    proof: Mapping[str, Any] | None
    parts: tuple[Part, ...]

    @property
    def documents(self) -> int:
        return sum(part.documents for part in self.parts)

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)


class Writer:
    """A backup being written; `publish` ends it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True)

    def add(
        self,
        name: str,
        blocks: Iterable[bytes],
        options: Mapping[str, Any],
        indexes: Iterable[Mapping[str, Any]],
    ) -> Part:
        """Write a collection from blocks of whole documents."""
        documents = size = 0
        part = Part(name, 0, 0, "", options, tuple(indexes))
        with self._zip.open(part.member, "w", force_zip64=True) as member:
            hashing = _Hashing(member)
            with gzip.GzipFile("", "wb", LEVEL, hashing, mtime=0) as packed:  # type: ignore[arg-type]
                for block in blocks:
                    documents += count(block)
                    size += len(block)
                    packed.write(block)
        return Part(name, documents, size, hashing.digest.hexdigest(), part.options, part.indexes)

    def close(self, manifest: Manifest) -> None:
        # MongoDB's extended JSON: options and indexes may hold more than JSON has.
        found = {"format": FORMAT, **asdict(manifest)}
        text = json_util.dumps(found, json_options=json_util.RELAXED_JSON_OPTIONS, indent=1)
        self._zip.writestr(MANIFEST, text)
        self._zip.close()

    def abandon(self) -> None:
        with suppress(OSError, ValueError):  # Whatever it is, there will be no file.
            self._zip.close()


class _Hashing:
    """Hashes what it passes on."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def write(self, block: bytes) -> int:
        self.digest.update(block)
        return self._file.write(block)

    def flush(self) -> None:
        self._file.flush()


def count(block: bytes) -> int:
    """How many whole documents lie in a block."""
    found = at = 0
    while at < len(block):
        at += _LENGTH.unpack_from(block, at)[0]
        found += 1
    assert at == len(block), "MongoDB sends whole documents"
    return found


@contextmanager
def publish(path: Path) -> Iterator[Writer]:
    """Write a backup beside its place and move it there when it is whole and on disk.

    Raises `BackupError` when something is there already, or another backup is being written to it.
    """
    if path.exists():
        raise BackupError(f"{path} exists already: name another file")
    partial = path.with_name(path.name + PARTIAL)
    try:
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise BackupError(f"cannot write {partial} ({error.strerror})") from None
    with os.fdopen(descriptor, "w+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackupError(f"another backup is writing {partial}: wait for it") from None
        # Between our look and our lock another backup may have come to its end.
        if not _lies_at(partial, file):
            raise BackupError(f"another backup was writing {partial} until now: run it again")
        if path.exists():
            partial.unlink()
            raise BackupError(f"{path} exists already: name another file")
        try:
            file.truncate()  # What a killed backup left.
            writer = Writer(file)
            try:
                yield writer
                file.flush()
                os.fsync(file.fileno())
                partial.rename(path)
            except BaseException:
                writer.abandon()
                partial.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise BackupError(f"cannot write {path} ({error.strerror}): no backup made") from None
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _lies_at(path: Path, file: IO[bytes]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


class Archive:
    """A backup to read. Raises `BackupError` for what is no whole backup of a known format."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except OSError as error:
            raise BackupError(f"cannot read {path} ({error.strerror})") from None
        except zipfile.BadZipFile:
            raise BackupError(f"{path} is cut off or no backup: use another one") from None
        self.manifest = self._read_manifest()

    def _read_manifest(self) -> Manifest:
        try:
            with self._zip.open(MANIFEST) as file:
                found = json_util.loads(file.read(MANIFEST_BYTES_MAX).decode())
            version = found.pop("format")
        except (KeyError, ValueError, AttributeError, zipfile.BadZipFile, zlib.error):
            raise BackupError(f"{self.path} has no readable manifest: use another backup") from None
        if version != FORMAT:
            raise BackupError(
                f"{self.path} is of format {version}, and this release reads format {FORMAT}: "
                f"restore it with the release that made it"
            )
        try:
            parts = tuple(
                Part(**{**part, "indexes": tuple(part["indexes"])}) for part in found.pop("parts")
            )
            time = tuple(found.pop("cluster_time"))
            return Manifest(**found, cluster_time=time, parts=parts)
        except (KeyError, TypeError):
            raise BackupError(f"the manifest of {self.path} is damaged: use another one") from None

    def check(self, part: Part) -> None:
        """Read a member whole and compare its hash; raises `BackupError`."""
        digest = hashlib.sha256()
        try:
            with self._zip.open(part.member) as file:
                while block := file.read(BLOCK):
                    digest.update(block)
        except KeyError:
            raise BackupError(
                f"{self.path} lacks {part.member}, which its manifest names: use another backup"
            ) from None
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error):
            digest = hashlib.sha256()
        if digest.hexdigest() != part.sha256:
            raise BackupError(f"{part.member} in {self.path} is damaged: use another backup")

    def documents(self, part: Part) -> Iterator[bytes]:
        """The documents of a collection one after another, never many in memory."""
        with self._zip.open(part.member) as member, gzip.open(member) as file:
            while head := file.read(_LENGTH.size):
                length = _LENGTH.unpack(head)[0]
                if not _LENGTH.size < length <= DOCUMENT_BYTES_MAX:
                    raise BackupError(f"{part.member} in {self.path} holds no BSON")
                yield head + file.read(length - _LENGTH.size)

    def close(self) -> None:
        self._zip.close()

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
