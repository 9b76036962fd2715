"""Drop folders: what a partner lays down by SFTP becomes a job, and the job's end lies beside it.

    DIR/PARTNER/{activities,bills}/[PROFILE/]NAME    incoming, with NAME.manifest.json if there is
    DIR/PARTNER/done/{activities,bills}/NAME         taken, with NAME.result.json, NAME.errors.csv
    DIR/PARTNER/refused/{activities,bills}/NAME      not taken, with NAME.reason.json

The folder is read again and again, because most are mounts of another machine, whose changes no
kernel here hears of. Bytes are durable before a file moves; what a watcher that was killed left is
done again and comes to the same job, because the job's id is made of the name and the content.
"""

import io
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import IO, Any, Final

from pymongo.errors import ConnectionFailure

from accounting import alarms, clients, clock, jobs, vault
from accounting.clients import Kind
from accounting.errors import DomainError
from accounting.ids import new_id
from accounting.jobs import Job
from integrations import (
    deliveries,
    drop_reports,
    dropped,
    feeds,
    folders,
    imports,
    manifests,
    partner_profiles,
)
from integrations.dropped import Lease, LeaseLost
from integrations.folders import Folder, Look, NotPlain
from integrations.manifests import Manifest, ManifestInvalid, ManifestMismatch
from integrations.mapping import KINDS
from integrations.partner_profiles import Version

DONE, REFUSED = "done", "refused"
# A file without a manifest is whole when it stood still for this long.
SETTLE = timedelta(seconds=60)
POLL_S = 5.0
# Of one folder in one pass; the others come with the next.
NAMES_MAX = 1_000
# Names under which programs write what is not whole yet.
UNFINISHED: Final = (".part", ".tmp", ".filepart", ".partial", ".crdownload")
MEDIA_TYPES: Final = {
    ".ndjson": feeds.NDJSON,
    ".jsonl": feeds.NDJSON,
    ".csv": feeds.CSV,
    ".txt": feeds.CSV,
}
GZIP: Final = ".gz"
# A manifest that lies alone for so long waits for a file that does not come.
MISSED_AFTER = timedelta(hours=1)
STUCK, UNKNOWN = "drop_folder_stuck", "drop_folder_unknown"

log = logging.getLogger(__name__)


class NotTaken(DomainError):
    """A file that cannot become a job. Facts: en, zh."""

    code = "file_not_taken"
    en = "{en}"
    zh = "{zh}"


@dataclass(frozen=True, slots=True)
class _Place:
    """One incoming folder of a partner."""

    partner: str
    kind: str
    profile: str | None
    incoming: Folder
    home: Folder


@dataclass(frozen=True, slots=True)
class _Standing:
    """How a file and its manifest looked, and since when they look so."""

    file: Look
    manifest: Look | None
    since: datetime
    tried: bool = False


class _Held(io.RawIOBase):
    """A file that is read while the lease is held."""

    def __init__(self, source: IO[bytes], lease: Lease) -> None:
        self._source, self._lease = source, lease

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._lease.hold()
        block = self._source.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)


class Watcher:
    """Takes what partners lay down. `queued` hears of every job, to tell a worker.

    Any number may watch one folder; each has its own name in the leases.
    """

    def __init__(
        self, root: Path, queued: Callable[[str], None], *, settle: timedelta = SETTLE
    ) -> None:
        self._root = root
        self._queued = queued
        self._settle = settle
        self._owner = f"{socket.gethostname()}/{os.getpid()}/{new_id('wat')}"
        self._standing: dict[tuple[str, ...], _Standing] = {}
        self._sounded: set[tuple[str, str, date]] = set()

    def run(self, stop: threading.Event) -> None:
        """Look until asked to stop; what goes wrong in one look is tried again in the next."""
        while not stop.is_set():
            try:
                self.look()
            except Exception:  # The store away, the mount gone: both come back.
                log.exception("the look at the drop folder failed")
            stop.wait(POLL_S)

    def look(self) -> int:
        """One look at every partner's folder; how many files were taken or refused."""
        known = set(clients.subjects(Kind.DATA))
        moved, seen = 0, set(self._standing)
        with Folder.at(self._root) as root:
            for name in root.names(NAMES_MAX, _shown):
                found = root.look(name)
                if found is None or not found.folder:
                    continue
                if name not in known or not _may_feed(name):
                    self._alarm(UNKNOWN, folders.plain(name))
                    continue
                moved += self._serve(root, name, seen)
        for gone in seen:  # Whoever comes again begins again.
            self._standing.pop(gone, None)
        return moved

    def _serve(self, root: Folder, partner: str, unseen: set[tuple[str, ...]]) -> int:
        """What one partner laid down, then what became of what it laid down before."""
        moved = 0
        with dropped.lease(partner, self._owner) as lease:
            if lease is None:
                return 0
            try:
                with root.into(partner) as home:
                    for place in self._places(partner, home):
                        with place.incoming:
                            moved += self._sift(place, lease, unseen)
                    self._report(partner, home)
            except LeaseLost:
                log.warning("another watcher serves %s now", partner)
            except ConnectionFailure:
                raise
            except Exception as error:  # Other partners need not wait for this one.
                self._stuck(partner, error)
        return moved

    def _places(self, partner: str, home: Folder) -> Iterator[_Place]:
        """The incoming folders of a partner, those of its profiles behind the one they lie in."""
        for kind in KINDS:
            try:
                incoming = home.into(kind)
            except FileNotFoundError:
                continue
            except OSError as error:  # A link, or a file.
                self._alarm(STUCK, f"{partner}/{kind}", why=str(error))
                continue
            inner = [
                name
                for name in incoming.names(NAMES_MAX, _shown)
                if (found := incoming.look(name)) and found.folder
            ]
            yield _Place(partner, kind, None, incoming, home)
            for name in inner:
                version = partner_profiles.latest(partner, name) if folders.is_plain(name) else None
                if version is None or version.profile.kind != kind:
                    self._alarm(UNKNOWN, f"{partner}/{kind}/{folders.plain(name)}")
                    continue
                with home.into(kind) as outer:
                    yield _Place(partner, kind, name, outer.into(name), home)

    def _stuck(self, subject: str, error: Exception) -> None:
        """Say what is wrong; what nobody foresaw also to whoever reads the log."""
        if not isinstance(error, OSError):
            log.error("cannot serve %s", subject, exc_info=error)
        # It may say a name that is no text.
        self._alarm(STUCK, subject, why=str(error).encode(errors="replace").decode())

    def _alarm(self, what: str, subject: str, **facts: Any) -> None:
        """Once a day: a look comes every few seconds."""
        said = (what, subject, clock.city_day(clock.now()))
        if said not in self._sounded:
            self._sounded = {one for one in self._sounded if one[2] == said[2]} | {said}
            alarms.sound(what, subject, **facts)

    def _sift(self, place: _Place, lease: Lease, unseen: set[tuple[str, ...]]) -> int:
        moved = 0
        for name in place.incoming.names(NAMES_MAX, _is_data):
            lease.hold()
            key = (place.partner, place.kind, place.profile or "", name)
            unseen.discard(key)
            try:
                if self._consider(place, name, key, lease):
                    self._standing.pop(key, None)
                    moved += 1
            except (LeaseLost, ConnectionFailure):
                raise
            except Exception as error:
                # This one stays where it is; the others need not wait for it.
                self._stuck(f"{place.partner}/{place.kind}/{folders.plain(name)}", error)
        for name in place.incoming.names(NAMES_MAX, _is_manifest):
            self._consider_alone(place, name, unseen)
        return moved

    def _consider_alone(self, place: _Place, name: str, unseen: set[tuple[str, ...]]) -> None:
        """A manifest whose file a watcher moved and was killed, or whose file never came."""
        of = name.removesuffix(manifests.SUFFIX)
        alone = place.incoming.look(name)
        if alone is None or place.incoming.look(of) is not None:
            return
        key = (place.partner, place.kind, place.profile or "", name)
        unseen.discard(key)
        before = self._standing.setdefault(key, _Standing(alone, None, clock.now()))
        if clock.now() - before.since < MISSED_AFTER:
            return
        for what in (DONE, REFUSED):
            with _kept_in(place.home, what, place.kind) as folder:
                if folder.look(of) is not None and folder.look(name) is None:
                    place.incoming.move(name, folder, name)
                    return
        self._alarm("feed_file_missing", f"{place.partner}/{place.kind}/{folders.plain(of)}")

    def _consider(self, place: _Place, name: str, key: tuple[str, ...], lease: Lease) -> bool:
        """Take or refuse a file if it is whole; False while it may still be growing."""
        file = place.incoming.look(name)
        if file is None or file.folder:
            return False  # A folder is a profile's, or was told of.
        beside = place.incoming.look(f"{name}{manifests.SUFFIX}")
        before = self._standing.get(key)
        if before is None or (before.file, before.manifest) != (file, beside):
            before = self._standing[key] = _Standing(file, beside, clock.now())
        still = clock.now() - before.since >= self._settle
        if before.tried and not still:
            return False
        try:
            manifest = _manifest(place, name, beside) if beside is not None else None
            if not still and (manifest is None or manifest.size != file.size):
                return False
            job = self._take(place, name, file, manifest, lease)
        except _Growing:
            self._standing.pop(key, None)
            return False
        except DomainError as refusal:
            # What may be half a file, or half a manifest, is not refused before it stands still.
            if not still:
                self._standing[key] = replace(before, tried=True)
                return False
            return _refuse(place, name, file, refusal)
        self._queued(job.id)
        return True

    def _take(
        self, place: _Place, name: str, seen: Look, manifest: Manifest | None, lease: Lease
    ) -> Job:
        """The bytes, the job, the note, the move: each step may be the last of this process."""
        _check_name(name, seen)
        version = _profile(place, manifest)
        media_type, gzipped = _media_type(name)
        csv_encoding = feeds.UTF_8 if version is None else version.profile.encoding
        encoding = csv_encoding if media_type == feeds.CSV else feeds.UTF_8
        try:
            with place.incoming.open(name) as file:
                if folders.look_at(file) != seen:
                    raise _Growing
                kept = imports.keep(io.BufferedReader(_Held(file, lease), imports.BLOCK_BYTES))
                changed = folders.look_at(file) != seen
        except (NotPlain, FileNotFoundError):
            raise _Growing from None  # Changed between the look and the opening.
        try:
            if changed or kept.size != seen.size:
                raise _Growing
            if manifest is not None:
                manifests.check_bytes(manifest, kept.size, kept.sha256)
                with imports.opened(kept) as data:
                    manifests.check_rows(
                        manifest,
                        io.BufferedReader(_Held(data, lease), imports.READ_BYTES),
                        media_type=media_type,
                        gzipped=gzipped,
                        encoding=encoding,
                        delimiter="," if version is None else version.profile.delimiter,
                    )
            if place.incoming.look(name) != seen:
                raise _Growing  # Another lies there by now, and is taken instead.
        except BaseException:
            imports.forget(kept)
            raise
        job = imports.queue(
            place.kind,
            place.partner,
            kept,
            media_type=media_type,
            gzipped=gzipped,
            encoding=encoding,
            profile=version,
            once=_wish(place, name, version, kept.sha256),
            told={"file_name": name} if manifest is None else manifest.told,
        )
        if manifest is not None:
            known_as = replace(manifest, profile=version.name if version else None)
            deliveries.note(job, known_as)
        with _kept_in(place.home, DONE, place.kind) as done:
            free = done.free(name)
            dropped.note(place.partner, place.kind, free, job.id)
            _move(place.incoming, name, seen, done, free)
        return job

    def _report(self, partner: str, home: Folder) -> None:
        """Lay the end of every job that ended beside its file."""
        waiting = dropped.unreported(partner)
        ended = {
            job.id: job
            for job in jobs.many(sorted({one.job for one in waiting}))
            if job.state not in jobs.UNFINISHED
        }
        for one in waiting:
            if one.job in ended:
                try:
                    with _kept_in(home, DONE, one.kind) as done:
                        drop_reports.write_end(done, one, ended[one.job])
                except OSError as error:  # A full disk: tried again by the next look.
                    subject = f"{partner}/{one.kind}/{one.name}"
                    self._alarm("drop_report_unwritten", subject, why=str(error))
                else:
                    dropped.reported(one)


class _Growing(Exception):
    """A file changed while it was read."""


def _may_feed(partner: str) -> bool:
    return any(
        client.enabled and "feeds:write" in client.scopes
        for client in clients.of_party(Kind.DATA, partner)
    )


def _shown(name: str) -> bool:
    return not name.startswith(".")


def _is_data(name: str) -> bool:
    """Whether a name is that of a file that is written to its end, as far as names tell."""
    return _shown(name) and not name.endswith((*UNFINISHED, manifests.SUFFIX))


def _is_manifest(name: str) -> bool:
    return _shown(name) and name.endswith(manifests.SUFFIX)


def _check_name(name: str, seen: Look) -> None:
    if not seen.regular:
        raise NotTaken(en="This is no plain file.", zh="这不是普通文件。")
    if not folders.is_plain(name):
        raise NotTaken(
            en=f"A name has at most {folders.NAME_BYTES_MAX} bytes of printable UTF-8.",
            zh=f"文件名应为可打印的 UTF-8 字符，至多 {folders.NAME_BYTES_MAX} 字节。",
        )
    if not seen.size:
        raise NotTaken(en="The file is empty.", zh="文件为空。")


def _media_type(name: str) -> tuple[str, bool]:
    gzipped = name.endswith(GZIP)
    ending = Path(name.removesuffix(GZIP)).suffix.lower()
    if ending not in MEDIA_TYPES:
        endings = ", ".join(MEDIA_TYPES)
        raise NotTaken(
            en=f"The name of a file ends in one of {endings}, and .gz behind it if it is packed.",
            zh=f"文件名应以 {endings} 之一结尾，压缩文件再加 .gz。",
        )
    return MEDIA_TYPES[ending], gzipped


def _manifest(place: _Place, name: str, seen: Look) -> Manifest | None:
    """The manifest beside a file; None if it went away since. Raises `ManifestInvalid`."""
    if not seen.regular:
        raise ManifestInvalid(en="it is no plain file", zh="不是普通文件")
    try:
        with place.incoming.open(f"{name}{manifests.SUFFIX}") as file:
            found = manifests.parse(file.read(manifests.TEXT_BYTES_MAX + 1))
    except FileNotFoundError:
        return None
    if found.file != name:
        raise ManifestMismatch(what="file", told=found.file, found=folders.plain(name))
    return found


def _profile(place: _Place, manifest: Manifest | None) -> Version | None:
    named = {place.profile, manifest.profile if manifest else None} - {None}
    if len(named) > 1:
        raise NotTaken(
            en="The folder names one profile and the manifest another.",
            zh="目录与清单指定了不同的映射配置。",
        )
    for name in named:
        assert name is not None
        version = partner_profiles.latest(place.partner, name)
        if version is None or version.profile.kind != place.kind:
            raise NotTaken(
                en=f"There is no mapping profile {name!a} for {place.kind}.",
                zh=f"没有用于 {place.kind} 的映射配置 {name!a}。",
            )
        return version
    return None


def _wish(place: _Place, name: str, version: Version | None, sha256: str) -> str:
    """What names the job of a file: whose, which name and which content."""
    parts = (place.partner, place.kind, version.name if version else "", name, sha256)
    return vault.keyed_hash("dropped-file", "\0".join(parts))


def _kept_in(home: Folder, what: str, kind: str) -> Folder:
    with home.into(what, make=True) as outer:
        return outer.into(kind, make=True)


def _move(incoming: Folder, name: str, seen: Look, to: Folder, new: str) -> None:
    """A file, then its manifest; whichever is gone was moved by another watcher.

    A file that came under the name since, or was written on, goes back: nobody has read it yet.
    """
    if incoming.move(name, to, new) and to.look(new) != seen:
        to.move(new, incoming, incoming.free(name))
        return
    incoming.move(f"{name}{manifests.SUFFIX}", to, f"{new}{manifests.SUFFIX}")


def _refuse(place: _Place, name: str, seen: Look, refusal: DomainError) -> bool:
    """Put a file aside; the reason lies there before the file does."""
    with _kept_in(place.home, REFUSED, place.kind) as aside:
        free = aside.free(folders.plain(name))
        drop_reports.write_reason(aside, free, folders.plain(name), refusal)
        _move(place.incoming, name, seen, aside, free)
    log.warning("refused a file of %s: %s", place.partner, refusal)
    return True
