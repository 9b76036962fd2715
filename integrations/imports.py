"""Files of partners as jobs: the bytes are durable before the partner hears 202.

The worker reads the file in chunks, takes each chunk in, then records how far it is. After a kill
the next worker starts at the last chunk recorded; rows of it that were taken already answer as
duplicates of themselves, so nothing has a second effect.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any

import gridfs
from pymongo import WriteConcern
from pymongo.errors import DuplicateKeyError

from accounting import jobs, storage, vault
from accounting.errors import DomainError, KeyReused
from accounting.ids import new_id
from accounting.jobs import Job
from footprint import reasons
from integrations import feeds, partner_profiles
from integrations.feeds import FeedRow, FileRefused, Form, Unreadable
from integrations.mapping import Profile
from integrations.partner_profiles import Version

CHUNK_ROWS = 1_000
READ_BYTES = 256 * 1024
BLOCK_BYTES = 1024 * 1024
FILE_BYTES_MAX = 2 * 1024**3
# The code of a line that is no row.
MALFORMED = "malformed_row"
# As many hexadecimal digits of a wish as name its job: 104 bits.
ONCE_DIGITS = 26


class FileTooLarge(DomainError):
    code = "payload_too_large"
    en = "The file is larger than 2 GiB; send it in parts."
    zh = "文件超过 2 GiB，请分批发送。"


@dataclass(frozen=True, slots=True)
class RowResult:
    """One row's end: a name from `jobs.COUNTS`; for a rejected one why: a refusal, or the code in
    `footprint.reasons` of a row that is kept but credited nothing."""

    count: str
    refusal: DomainError | None = None
    reason: str | None = None

    @property
    def error(self) -> tuple[str, dict[str, str]] | None:
        """Code and text by language for the list of errors; None if the row was taken."""
        if self.refusal is not None:
            texts = {"en": self.refusal.text("en"), "zh": self.refusal.text("zh")}
            return self.refusal.code, texts
        if self.reason is not None:
            texts = {"en": reasons.text(self.reason, "en"), "zh": reasons.text(self.reason, "zh")}
            return self.reason, texts
        return None


# Takes plain rows of a job in and says what became of each, in order.
TakeRows = Callable[[Job, Sequence[dict[str, Any]]], list[RowResult]]


class _Blocks(io.RawIOBase):
    """A stored file by blocks: GridFS itself hands out lines byte by byte."""

    def __init__(self, stored: gridfs.GridOut) -> None:
        self.stored = stored

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self.stored.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)


def _files() -> gridfs.GridFSBucket:
    return gridfs.GridFSBucket(
        storage.database(), "feed_files", write_concern=WriteConcern(w="majority", j=True)
    )


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes that are durable; no job names them yet."""

    id: str
    size: int
    sha256: str


def keep(data: IO[bytes]) -> Kept:
    """Write the bytes of a file. Raises `FileTooLarge`, and what reading the data raises.

    What was written until then is taken away again.
    """
    file_id = new_id("file")
    size, digest = 0, hashlib.sha256()
    with _files().open_upload_stream_with_id(file_id, file_id) as upload:
        try:
            while block := data.read(BLOCK_BYTES):
                size += len(block)
                if size > FILE_BYTES_MAX:
                    raise FileTooLarge()
                digest.update(block)
                upload.write(block)
        except BaseException:
            upload.abort()
            raise
    return Kept(file_id, size, digest.hexdigest())


def forget(kept: Kept) -> None:
    """Take bytes away that no job will read."""
    _files().delete(kept.id)


@contextmanager
def opened(kept: Kept) -> Iterator[IO[bytes]]:
    """The kept bytes, to look at them before a job does."""
    with _files().open_download_stream(kept.id) as data:
        yield io.BufferedReader(_Blocks(data), READ_BYTES)


def queue(
    kind: str,
    partner_id: str,
    kept: Kept,
    *,
    media_type: str,
    gzipped: bool,
    encoding: str = feeds.UTF_8,
    profile: Version | None = None,
    once: str | None = None,
    told: Mapping[str, Any] | None = None,
) -> Job:
    """The job that reads kept bytes.

    `profile` is the version of the partner's profile that the whole file is read by. `once` names
    the wish in hexadecimal digits: repeating it gives the first job, and with other bytes or
    another profile raises `KeyReused`. `told` is what a manifest said, to be shown with the job.
    """
    arguments: dict[str, Any] = {
        "media_type": media_type,
        "gzipped": gzipped,
        "encoding": encoding,
        "size": kept.size,
        "file": kept.id,
        "sha256": kept.sha256,
        **(told or {}),
    }
    if profile is not None:
        arguments |= {"profile": profile.name, "profile_version": profile.version}
    job_id = f"job_{once[:ONCE_DIGITS]}" if once else new_id("job")
    try:
        return jobs.queue(kind, partner_id, arguments, job_id)
    except DuplicateKeyError:
        forget(kept)
        earlier = jobs.get(job_id)
        assert earlier is not None, "jobs are never deleted"
        # Not the version: one may have been added between the first try and this one.
        if any(
            earlier.arguments.get(name) != arguments.get(name) for name in ("sha256", "profile")
        ):
            raise KeyReused() from None
        return earlier


def store(
    kind: str,
    partner_id: str,
    data: IO[bytes],
    *,
    media_type: str,
    gzipped: bool,
    encoding: str = feeds.UTF_8,
    profile: Version | None = None,
    once: str | None = None,
) -> Job:
    """Write the bytes, then the job that will read them; see `keep` and `queue`."""
    return queue(
        kind,
        partner_id,
        keep(data),
        media_type=media_type,
        gzipped=gzipped,
        encoding=encoding,
        profile=profile,
        once=once,
    )


def run(job_id: str, take_rows: TakeRows, form: Form = feeds.REPORTS) -> Job | None:
    """Work a file job to its end; None when another worker has it or it is finished."""
    job = jobs.take(job_id)
    if job is None:
        return None
    counts, done = dict(job.counts), job.done
    profile = _profile(job)
    try:
        with _files().open_download_stream(job.arguments["file"]) as data:
            arguments = job.arguments
            rows = feeds.rows(
                io.BufferedReader(_Blocks(data), READ_BYTES),
                media_type=arguments["media_type"],
                gzipped=arguments["gzipped"],
                size=arguments["size"],
                form=form if profile is None else profile.form,
                encoding=arguments.get("encoding", feeds.UTF_8),
            )
            rest: Iterator[FeedRow] = islice(rows, done, None)
            for chunk in _chunks(rest if profile is None else profile.rows(rest)):
                _take_chunk(job, done, chunk, counts, take_rows)
                done += len(chunk)
                if not jobs.advance(job, done, data.tell(), counts):
                    return None
    except FileRefused as refused:
        jobs.fail(job, str(refused))
        return jobs.get(job_id)
    jobs.finish(job, done)
    return jobs.get(job_id)


def _profile(job: Job) -> Profile | None:
    name = job.arguments.get("profile")
    if name is None:
        return None
    return partner_profiles.fixed(job.owner, name, job.arguments["profile_version"])


def _chunks(rows: Iterator[FeedRow]) -> Iterator[list[FeedRow]]:
    while chunk := list(islice(rows, CHUNK_ROWS)):
        yield chunk


def _take_chunk(
    job: Job, done: int, chunk: list[FeedRow], counts: dict[str, int], take_rows: TakeRows
) -> None:
    readable = [row for row in chunk if not isinstance(row, Unreadable)]
    results = iter(take_rows(job, readable))
    refused: list[dict[str, Any]] = []
    for number, row in enumerate(chunk, start=done + 1):
        if isinstance(row, Unreadable):
            counts["rejected"] += 1
            refused.append(_error(job, number, MALFORMED, said(row), row.text))
            continue
        result = next(results)
        counts[result.count] += 1
        if result.error is not None:
            shown = json.dumps(row, ensure_ascii=False, default=str)
            refused.append(_error(job, number, *result.error, shown))
    jobs.note_errors(refused)


def said(row: Unreadable) -> dict[str, str]:
    """Why a line is no row, by language."""
    return {"en": row.why, "zh": f"无法读取该行：{row.why}"}


def _error(job: Job, number: int, code: str, message: dict[str, str], shown: str) -> dict[str, Any]:
    return {
        "job": job.id,
        "row": number,
        "code": code,
        "message": message,
        "input_sealed": vault.encrypt(shown, "job-error"),
    }
