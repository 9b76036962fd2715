"""Files of partners as jobs: the bytes are durable before the partner hears 202.

The worker reads the file in chunks, takes each chunk in, then records how far it is. After a kill
the next worker starts at the last chunk recorded; rows of it that were taken already answer as
duplicates of themselves, so nothing has a second effect.

A large file is cut into shares that workers do side by side: not at places in the file but by whose
row it is. Rows of one account stay in the order of the file and with one worker, each share is read
up to the row it reached, and any format can be cut. Passing over a row of another share costs
little against crediting one.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import IO, Any

import gridfs
from pymongo import WriteConcern

from accounting import clock, jobs, refused_rows, shares, storage, vault
from accounting.errors import DomainError, KeyReused
from accounting.ids import new_id
from accounting.jobs import Failure, Job
from footprint import reasons
from integrations import feeds, partner_profiles
from integrations.feeds import FeedRow, FileRefused, Form, Share, Unreadable
from integrations.mapping import Profile
from integrations.partner_profiles import Version

CHUNK_ROWS = 1_000
SHARE_KIND = "file_share"
# A file is cut if it is two shares of these or more: at 1,000 rows a second, half a minute each.
SHARE_ROWS_MIN = 25_000
# More would let workers pass over rows more than they take them in.
SHARES_MAX = 8
# After so long a share goes to the end of the queue: a large file is not all that workers do.
STINT = timedelta(minutes=5)
# Rows passed over between two renewals of a lease: a second of a share's work, at most.
HOLD_ROWS = 10_000
READ_BYTES = 256 * 1024
BLOCK_BYTES = 1024 * 1024
FILE_BYTES_MAX = feeds.FILE_BYTES_MAX
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


Numbered = tuple[int, FeedRow]
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

    def tell(self) -> int:
        return self.stored.tell()


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
    """The kept bytes, to be read."""
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
    job = jobs.queue(kind, partner_id, arguments, job_id)
    if job.arguments["file"] != kept.id:
        forget(kept)
        # Not the version: one may have been added between the first try and this one.
        if any(job.arguments.get(name) != arguments.get(name) for name in ("sha256", "profile")):
            raise KeyReused()
    return job


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


def run(
    job_id: str,
    take_rows: TakeRows,
    form: Form = feeds.REPORTS,
    give: Callable[[Job], object] | None = None,
) -> Job | None:
    """Work a file job, or a share of one, to its end.

    None when another worker has it, when it is over, when a share has had its stint, or when the
    file was cut: the shares of a large one go to `give`, for other workers. Without `give` a file
    stays whole unless it was cut before.
    """
    job = jobs.take(job_id)
    if job is None:
        job = jobs.get(job_id)
        if job is not None and job.whole is not None:
            # It may have been given up just now.
            shares.add_up(job.whole)
        return None
    try:
        if job.whole is not None:
            return _run_share(job, take_rows, form)
        cut_into = _cut_into(job, may_cut=give is not None)
        if not cut_into:
            return _run_rows(job, job, take_rows, form)
        made = shares.make(job, SHARE_KIND, [{"number": number} for number in range(cut_into)])
    except _Overtaken:
        return None
    except FileRefused as refused:
        jobs.fail(job, Failure("file_refused", str(refused), refused.zh))
        return jobs.get(job_id)
    finally:
        if job.whole is not None:
            shares.add_up(job.whole)
    if give is not None:
        for one in made:
            give(one)
        return None
    for one in made:
        run(one.id, take_rows, form)
    return jobs.get(job_id)


class _Overtaken(Exception):
    """Another worker has the job, or it was ended."""


def _cut_into(job: Job, *, may_cut: bool) -> int:
    """How many shares a file is cut into, 0 for none; counts its rows the first time.

    It stands in the job, so that whoever takes over cuts it alike.
    """
    if job.total is not None:
        return int(job.arguments.get(shares.COUNT, 0))
    total = 0
    try:
        with opened(_kept(job)) as data:
            for so_far in feeds.counted(data, **_how(job)):
                total = so_far
                _hold(job)
    except FileRefused:
        # What can be read of it is taken in; then it fails with the reason.
        return 0
    cut_into = min(total // SHARE_ROWS_MIN, SHARES_MAX) if may_cut else 0
    if cut_into < 2:
        cut_into = 0
    jobs.expect(job.id, total, **{shares.COUNT: cut_into})
    return cut_into


def _run_share(job: Job, take_rows: TakeRows, form: Form) -> Job | None:
    assert job.whole is not None, job.id
    whole = jobs.get(job.whole)
    assert whole is not None, "jobs are never deleted"
    if not shares.goes_on(job):
        # It has ended with the whole, and taken nothing in.
        return jobs.get(job.id)
    number, of, profile = job.arguments["number"], whole.arguments[shares.COUNT], _profile(whole)
    if profile is None:
        share = feeds.share(number, of, form)
    else:
        share = Share(number, of, profile.account)
    return _run_rows(job, whole, take_rows, form, share)


def _run_rows(
    job: Job, whole: Job, take_rows: TakeRows, form: Form, share: Share | None = None
) -> Job | None:
    """Take in the rows a job still has to do, for the `whole` they belong to."""
    counts, done, profile = dict(job.counts), job.done, _profile(whole)
    until = clock.now() + STINT
    form = form if profile is None else profile.form
    with opened(_kept(whole)) as data:
        rows = feeds.numbered_rows(data, form=form, share=share, **_how(whole))
        for skipped, _ in enumerate(islice(rows, done)):
            if skipped % HOLD_ROWS == 0:
                _hold(job)
        for chunk in _chunks(rows):
            mapped = [(number, profile.mapped(row)) for number, row in chunk] if profile else chunk
            _take_chunk(whole, mapped, counts, take_rows)
            done += len(chunk)
            if not jobs.advance(job, done, data.tell(), counts):
                return None
            if share is not None:
                if not shares.goes_on(job):
                    return None
                shares.add_up(whole.id)
                if clock.now() >= until:
                    jobs.rest(job, clock.now())
                    return None
    jobs.finish(job, done)
    return jobs.get(job.id)


def _hold(job: Job) -> None:
    """Keep the lease while rows are only counted or skipped. Raises `_Overtaken`."""
    if not jobs.hold(job.id) or (job.whole is not None and not shares.goes_on(job)):
        raise _Overtaken


def _kept(job: Job) -> Kept:
    """The bytes a job reads."""
    given = job.arguments
    return Kept(given["file"], given["size"], given["sha256"])


def _how(job: Job) -> dict[str, Any]:
    """How the file of a job is read."""
    given = job.arguments
    how = {name: given[name] for name in ("media_type", "gzipped", "size")}
    return {**how, "encoding": given.get("encoding", feeds.UTF_8)}


def _profile(job: Job) -> Profile | None:
    name = job.arguments.get("profile")
    if name is None:
        return None
    return partner_profiles.fixed(job.owner, name, job.arguments["profile_version"])


def _chunks(rows: Iterator[Numbered]) -> Iterator[list[Numbered]]:
    while chunk := list(islice(rows, CHUNK_ROWS)):
        yield chunk


def _take_chunk(
    job: Job, chunk: Sequence[Numbered], counts: dict[str, int], take_rows: TakeRows
) -> None:
    readable = [row for _, row in chunk if not isinstance(row, Unreadable)]
    results = iter(take_rows(job, readable))
    refused: list[dict[str, Any]] = []
    for number, row in chunk:
        if isinstance(row, Unreadable):
            counts["rejected"] += 1
            refused.append(_error(job, number, MALFORMED, said(row), row.text))
            continue
        result = next(results)
        counts[result.count] += 1
        if result.error is not None:
            shown = json.dumps(row, ensure_ascii=False, default=str)
            refused.append(_error(job, number, *result.error, shown))
    refused_rows.note(refused)


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
