"""Files of a city on disk: written line by line, hashed on the way, listed in a manifest."""

import gzip
import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from api.city.partners import Row, writer
from integrations.feeds import CSV, NDJSON

# Level 6 takes twice the time for a tenth less.
GZIP_LEVEL = 3


@dataclass
class Written:
    """A file as the manifest lists it; `sha256` and `bytes` are of the file as it lies there."""

    name: str
    kind: str
    partner: str | None
    media_type: str
    gzip: bool
    rows: int = 0
    bytes: int = 0
    sha256: str = ""
    faults: Counter[str] = field(default_factory=Counter)

    def told(self) -> dict[str, Any]:
        return {**vars(self), "faults": dict(sorted(self.faults.items()))}


class _Hashed(io.RawIOBase):
    """Counts and hashes what goes through into a file."""

    def __init__(self, into: IO[bytes]) -> None:
        self.into = into
        self.digest = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self.digest.update(data)
        size = self.into.write(data)
        self.size += size
        return size


@dataclass(frozen=True)
class Folder:
    """Where a city's files go."""

    path: Path
    compressed: bool

    @contextmanager
    def file(
        self, name: str, kind: str, columns: Sequence[str] = (), partner: str | None = None
    ) -> Iterator[tuple[Written, Callable[[Row], None]]]:
        """A file being written: its record, complete at the end, and what takes a row."""
        media_type, ending = (CSV, "csv") if columns else (NDJSON, "ndjson")
        name = f"{name}.{ending}{'.gz' if self.compressed else ''}"
        written = Written(name, kind, partner, media_type, self.compressed)
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        with (self.path / name).open("wb") as raw:
            hashed = _Hashed(raw)
            sink = cast("IO[bytes]", hashed)
            if self.compressed:
                # Neither name nor time goes in: the same rows are the same bytes.
                sink = cast("IO[bytes]", gzip.GzipFile("", "wb", GZIP_LEVEL, hashed, mtime=0))
            with io.TextIOWrapper(sink, "utf-8", newline="") as text:
                put = writer(text, columns)

                def take(row: Row) -> None:
                    put(row)
                    written.rows += 1

                yield written, take
        written.bytes, written.sha256 = hashed.size, hashed.digest.hexdigest()
