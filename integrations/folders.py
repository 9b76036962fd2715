"""Folders that somebody else writes into: everything by name in an open folder, no link followed.

A partner may put a link where a file or folder is expected. A path would lead us through it; an
open folder does not, and what was looked at is what is opened or moved.
"""

import heapq
import os
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote_from_bytes

# With an ending of ours behind it, a name still fits into the 255 bytes of a file system.
NAME_BYTES_MAX = 200
FREE_MAX = 10_000
# Of our own writing, and renamed when it is whole.
UNFINISHED = ".tanhui-"
FILE_MODE, FOLDER_MODE = 0o640, 0o750


@dataclass(frozen=True, slots=True)
class Look:
    """What tells whether a file changed between two looks."""

    inode: int
    size: int
    mtime_ns: int
    regular: bool
    folder: bool


class NotPlain(OSError):
    """Something else than a plain file lies under a name."""


class Folder:
    """An open folder; use it as a context. What is wrong with the disk comes as `OSError`."""

    def __init__(self, descriptor: int) -> None:
        self._fd = descriptor

    @classmethod
    def at(cls, path: Path) -> "Folder":
        """The folder of ours that all begins at; its own path may have links."""
        return cls(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def into(self, name: str, *, make: bool = False) -> "Folder":
        """A folder in this one; raises `FileNotFoundError`, or `OSError` for a link or a file."""
        if make:
            with suppress(FileExistsError):
                os.mkdir(name, FOLDER_MODE, dir_fd=self._fd)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return Folder(os.open(name, flags, dir_fd=self._fd))

    def names(self, most: int, wanted: Callable[[str], bool]) -> list[str]:
        """The first wanted names in order; the others come when these are gone."""
        with os.scandir(self._fd) as found:
            return heapq.nsmallest(most, filter(wanted, (entry.name for entry in found)))

    def look(self, name: str) -> Look | None:
        """What lies under a name, a link as such; None when nothing does."""
        try:
            return _look(os.stat(name, dir_fd=self._fd, follow_symlinks=False))
        except FileNotFoundError:
            return None

    def open(self, name: str) -> IO[bytes]:
        """A plain file to read; raises `NotPlain` for anything else, without waiting for it."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(name, flags, dir_fd=self._fd)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise NotPlain(f"{name!a} is no plain file")
        return os.fdopen(descriptor, "rb")

    def free(self, name: str) -> str:
        """The name itself, or with a number behind it if something lies there already."""
        for number in range(1, FREE_MAX):
            wanted = name if number == 1 else f"{name}~{number}"
            if self.look(wanted) is None:
                return wanted
        raise OSError(f"{FREE_MAX} files are called {name!a}")

    def move(self, name: str, to: "Folder", new: str) -> bool:
        """Move a name; False when it is gone, because somebody else was faster."""
        try:
            os.rename(name, new, src_dir_fd=self._fd, dst_dir_fd=to._fd)
        except FileNotFoundError:
            return False
        return True

    def write(self, name: str, parts: Iterable[bytes]) -> None:
        """A file that is whole and on disk under its name, or not there at all."""
        unfinished = f"{UNFINISHED}{name}"
        # Half of one of ours, or what somebody laid there: opening a pipe waits for a reader.
        with suppress(FileNotFoundError):
            os.unlink(unfinished, dir_fd=self._fd)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(unfinished, flags, FILE_MODE, dir_fd=self._fd)
        with os.fdopen(descriptor, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.rename(unfinished, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        os.fsync(self._fd)


def look_at(file: IO[bytes]) -> Look:
    """An open file as it is now."""
    return _look(os.fstat(file.fileno()))


def is_plain(name: str) -> bool:
    """Whether a name can be shown and kept as it is."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return False  # Not UTF-8 on the disk.
    return size <= NAME_BYTES_MAX and name.isprintable() and name.strip() == name


def plain(name: str) -> str:
    """A name for what has an odd one: what is odd becomes percent signs and digits."""
    raw = os.fsencode(name)
    return name if is_plain(name) else quote_from_bytes(raw, safe=" ()+~=@,")[:NAME_BYTES_MAX]


def _look(found: os.stat_result) -> Look:
    mode = found.st_mode
    return Look(
        found.st_ino, found.st_size, found.st_mtime_ns, stat.S_ISREG(mode), stat.S_ISDIR(mode)
    )
