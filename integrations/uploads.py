"""Files that come in pieces: where a line broke, the next try goes on; whole, they become a job.

A piece is a document of up to a mebibyte, named by the upload and the offset it begins at. Only
who saw the end of the pieces can add the next one, and an offset is taken once, so two senders
cannot mix. Whole, the pieces are copied into a file in one stream, checked, and queued as a job.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import IO, Any, Final

import mongoengine as me
from bson import Binary
from pymongo.errors import DuplicateKeyError

from accounting import clients, clock, jobs, storage, sweeping, vault
from accounting.errors import DomainError, KeyReused, NotFound
from accounting.ids import new_id
from accounting.jobs import Job
from integrations import deliveries, imports, manifests, partner_profiles, signed_urls
from integrations.manifests import Manifest
from integrations.partner_profiles import Version
from integrations.signed_urls import UrlNotAccepted

OPEN, DONE, DROPPED = "open", "done", "dropped"
PIECE_BYTES = 1024 * 1024
LIFE: Final = timedelta(hours=24)
# After the end of its address an upload is finished if it is whole, else its pieces are cleared.
CLEARED_AFTER: Final = timedelta(hours=1)
OPEN_MAX = 100
# Pieces that are read from the store in one answer.
TOGETHER = 4
SWEEP_MAX = 20
PURPOSE: Final = "upload"


class TooManyUploads(DomainError):
    code = "too_many_uploads"
    en = f"More than {OPEN_MAX} uploads are open; finish some, or wait until they are cleared."
    zh = f"未完成的上传超过 {OPEN_MAX} 个，请先完成部分上传或等待清理。"
    final = False


class UploadOver(DomainError):
    code = "upload_over"
    en = "This upload has ended; its address cannot be used again."
    zh = "该上传已结束，地址不可重复使用。"


class UploadGap(DomainError):
    """Facts: received, start."""

    code = "upload_gap"
    en = "{received} bytes are here; these begin at {start}."
    zh = "已收到 {received} 字节，而本次从 {start} 开始。"
    final = False


class UploadBusy(DomainError):
    """Facts: retry_after."""

    code = "upload_busy"
    en = "Another request writes to this upload; try again in {retry_after} s."
    zh = "另一请求正在写入该上传，请在 {retry_after} 秒后重试。"
    final = False


class UploadTooLong(DomainError):
    """Facts: size."""

    code = "upload_too_long"
    en = "More than the {size} bytes that were announced."
    zh = "超过声明的 {size} 字节。"


@storage.indexed
class FeedUploadDocument(me.Document):
    """One file that is to come, with all that was said of it."""

    id = me.StringField(primary_key=True)
    partner = me.StringField(required=True)
    client = me.StringField(required=True)
    kind = me.StringField(required=True)
    state = me.StringField(required=True)
    media_type = me.StringField(required=True)
    gzipped = me.BooleanField(required=True)
    encoding = me.StringField(required=True)
    profile_version = me.IntField()
    manifest = me.DictField()
    expires_at = me.DateTimeField(required=True)
    job = me.StringField()

    meta = {
        "collection": "feed_uploads",
        "auto_create_index": False,
        "indexes": [
            {
                "fields": ["partner"],
                "name": "open",
                "partialFilterExpression": {"state": OPEN},
            },
            {
                "fields": ["expires_at"],
                "name": "to_be_cleared",
                "partialFilterExpression": {"state": OPEN},
            },
        ],
    }


@storage.indexed
class UploadPieceDocument(me.Document):
    """Some bytes of an upload; the id is the upload's with the offset, so pieces sort."""

    id = me.StringField(primary_key=True)
    data = me.BinaryField(required=True)

    meta = {"collection": "feed_upload_pieces", "auto_create_index": False}


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that is to come. `profile_version` is the one that the file will be read by."""

    id: str
    partner: str
    client: str
    kind: str
    state: str
    media_type: str
    gzipped: bool
    encoding: str
    profile_version: int | None
    manifest: Manifest
    expires_at: datetime
    job: str | None

    @property
    def claims(self) -> dict[str, Any]:
        """What its address is bound to."""
        return {
            "upload": self.id,
            "partner": self.partner,
            "kind": self.kind,
            "bytes": self.manifest.size,
            "sha256": self.manifest.sha256,
            "profile": self.manifest.profile,
        }

    @property
    def signature(self) -> str:
        return signed_urls.sign(PURPOSE, self.claims, self.expires_at)


def begin(
    kind: str,
    partner: str,
    client: str,
    manifest: Manifest,
    *,
    media_type: str,
    gzipped: bool,
    encoding: str,
    profile: Version | None,
    once: str | None,
) -> Upload:
    """An upload that waits for its bytes; `once` names the wish.

    Raises `TooManyUploads`, and `KeyReused` where the same wish was for another file.
    """
    upload_id = f"upl_{once[: imports.ONCE_DIGITS]}" if once else new_id("upl")
    if once is not None and (earlier := get(upload_id)) is not None:
        return _same(earlier, manifest)
    if _uploads().count_documents({"partner": partner, "state": OPEN}, limit=OPEN_MAX) >= OPEN_MAX:
        raise TooManyUploads()
    row = {
        "_id": upload_id,
        "partner": partner,
        "client": client,
        "kind": kind,
        "state": OPEN,
        "media_type": media_type,
        "gzipped": gzipped,
        "encoding": encoding,
        "profile_version": profile.version if profile else None,
        "manifest": _kept(manifest),
        # A token says whole seconds.
        "expires_at": (clock.now() + LIFE).replace(microsecond=0),
        "job": None,
    }
    try:
        _uploads().insert_one(row)
    except DuplicateKeyError:
        earlier = get(upload_id)
        assert earlier is not None, "uploads are never deleted"
        return _same(earlier, manifest)
    return _upload(row)


def _same(earlier: Upload, manifest: Manifest) -> Upload:
    """The upload of a wish that is repeated."""
    if earlier.manifest != manifest:
        raise KeyReused()
    return earlier


def get(upload_id: str) -> Upload | None:
    row = _uploads().find_one({"_id": upload_id})
    return _upload(row) if row else None


def admitted(kind: str, upload_id: str, signature: str) -> Upload:
    """The upload of an address. Raises `UrlNotAccepted`, `UrlExpired`, `NotFound`."""
    claims = signed_urls.read(PURPOSE, signature)
    if (claims.get("upload"), claims.get("kind")) != (upload_id, kind):
        raise UrlNotAccepted()
    upload = get(upload_id)
    if upload is None:
        raise NotFound()
    if {name: claims.get(name) for name in upload.claims} != upload.claims:
        raise UrlNotAccepted()
    # An address is worth what the credentials are worth that asked for it.
    if not clients.get(upload.client).enabled:
        raise UrlNotAccepted()
    return upload


def received(upload: Upload) -> int:
    """How many bytes are here, all of them from the beginning on."""
    if upload.state == DONE:
        return upload.manifest.size
    last = _pieces().find_one(_of(upload.id), sort=[("_id", -1)])
    return int(last["_id"].rpartition(":")[2]) + len(last["data"]) if last else 0


def write(upload: Upload, start: int, data: IO[bytes]) -> int:
    """Keep the bytes that begin at `start`; how many are here then.

    What is here already is read over, so that a try may begin again at the beginning. Bytes are
    kept piece by piece: what came before a line broke is durable. Raises `UploadOver`, `UploadGap`,
    `UploadTooLong`, `UploadBusy`, and what reading raises.
    """
    if upload.state != OPEN:
        raise UploadOver()
    end = received(upload)
    if start > end:
        raise UploadGap(received=end, start=start)
    over = end - start
    while over and (block := data.read(min(over, PIECE_BYTES))):
        over -= len(block)
    if over:
        return end
    for piece in _cut(data):
        if end + len(piece) > upload.manifest.size:
            raise UploadTooLong(size=upload.manifest.size)
        try:
            _pieces().insert_one({"_id": _name(upload.id, end), "data": Binary(piece)})
        except DuplicateKeyError:
            raise UploadBusy(retry_after=1) from None
        # It may take hours, and end meanwhile: nothing is to be left behind whoever ended it.
        if _uploads().find_one({"_id": upload.id, "state": OPEN}, {"_id": 1}) is None:
            _clear(upload.id)
            raise UploadOver()
        end += len(piece)
    return end


def finish(upload: Upload) -> Job:
    """Queue the job of an upload whose bytes are all here; safe to repeat, also at once.

    Raises `ManifestMismatch` and `Uncountable`; the bytes are dropped then, and may come again.
    """
    profile = None
    if upload.manifest.profile is not None:
        assert upload.profile_version is not None, "a profile has a version"
        profile = partner_profiles.get(
            upload.partner, upload.manifest.profile, upload.profile_version
        )
    kept = imports.keep(io.BufferedReader(_Joined(upload.id), PIECE_BYTES))
    try:
        manifests.check_bytes(upload.manifest, kept.size, kept.sha256)
        with imports.opened(kept) as stored:
            manifests.check_rows(
                upload.manifest,
                stored,
                media_type=upload.media_type,
                gzipped=upload.gzipped,
                encoding=upload.encoding,
                delimiter="," if profile is None else profile.profile.delimiter,
            )
    except BaseException as error:
        imports.forget(kept)
        now = get(upload.id)
        if now is not None and now.state == DONE:
            # Another request was faster, and cleared the pieces while they were read here.
            return _job_of(now)
        if isinstance(error, DomainError):
            _clear(upload.id)
        raise
    job = imports.queue(
        upload.kind,
        upload.partner,
        kept,
        media_type=upload.media_type,
        gzipped=upload.gzipped,
        encoding=upload.encoding,
        profile=profile,
        once=vault.keyed_hash("upload", upload.id),
        told=upload.manifest.told,
    )
    deliveries.note(job, upload.manifest)
    _end(upload.id, DONE, job.id)
    _clear(upload.id)
    return job


def sweep(now: datetime) -> int:
    """End what is over: an upload that is whole becomes its job, any other is cleared."""
    due = {"state": OPEN, "expires_at": {"$lt": now - CLEARED_AFTER}}
    found = [_upload(row) for row in _uploads().find(due).limit(SWEEP_MAX)]
    return sweeping.each("upload", found, _finish_or_drop)


def _finish_or_drop(upload: Upload) -> None:
    if received(upload) == upload.manifest.size:
        try:
            finish(upload)
            return
        except (manifests.ManifestMismatch, manifests.Uncountable):
            pass
    _end(upload.id, DROPPED, None)
    _clear(upload.id)


def _job_of(upload: Upload) -> Job:
    assert upload.job is not None, "a finished upload has a job"
    job = jobs.get(upload.job)
    assert job is not None, "jobs are never deleted"
    return job


class _Joined(io.RawIOBase):
    """The pieces of an upload one after the other."""

    def __init__(self, upload_id: str) -> None:
        self._pieces: Iterator[Any] = iter(
            _pieces().find(_of(upload_id)).sort("_id", 1).batch_size(TOGETHER)
        )
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = piece["data"]
        block, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(block)] = block
        return len(block)


def _cut(data: IO[bytes]) -> Iterator[bytes]:
    """The bytes in pieces of one size; what came before reading failed is given out first."""
    piece = bytearray()
    try:
        while block := data.read(PIECE_BYTES - len(piece)):
            piece += block
            if len(piece) == PIECE_BYTES:
                yield bytes(piece)
                piece.clear()
    except Exception:
        if piece:
            yield bytes(piece)
        raise
    if piece:
        yield bytes(piece)


def _kept(manifest: Manifest) -> dict[str, Any]:
    return {
        "file": manifest.file,
        "bytes": manifest.size,
        "sha256": manifest.sha256,
        "rows": manifest.rows,
        # A list: a column may be called what no key may.
        "sums": [[column, str(total)] for column, total in manifest.sums.items()],
        "profile": manifest.profile,
        "business_date": manifest.business_date.isoformat() if manifest.business_date else None,
        "sequence": manifest.sequence,
    }


def _upload(row: storage.Doc) -> Upload:
    said = row["manifest"]
    day = said["business_date"]
    return Upload(
        id=row["_id"],
        manifest=Manifest(
            file=said["file"],
            size=said["bytes"],
            sha256=said["sha256"],
            rows=said["rows"],
            sums={column: Decimal(total) for column, total in said["sums"]},
            profile=said["profile"],
            business_date=date.fromisoformat(day) if day else None,
            sequence=said["sequence"],
        ),
        **{name: row[name] for name in Upload.__slots__ if name not in ("id", "manifest")},
    )


def _name(upload_id: str, offset: int) -> str:
    return f"{upload_id}:{offset:012d}"


def _of(upload_id: str) -> dict[str, Any]:
    # ";" is the character behind ":".
    return {"_id": {"$gte": f"{upload_id}:", "$lt": f"{upload_id};"}}


def _end(upload_id: str, state: str, job_id: str | None) -> None:
    change = {"$set": {"state": state, "job": job_id}}
    _uploads().update_one({"_id": upload_id, "state": OPEN}, change)


def _clear(upload_id: str) -> None:
    _pieces().delete_many(_of(upload_id))


def _uploads() -> Any:
    return storage.strong(FeedUploadDocument._get_collection())


def _pieces() -> Any:
    return storage.strong(UploadPieceDocument._get_collection())
