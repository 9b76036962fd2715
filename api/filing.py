"""A request whose body is a file of rows: the bytes are stored, a job reads them."""

import io
from typing import IO, Any

import marshmallow as ma
from flask import request
from marshmallow import fields, validate

from api import tasks
from api.idempotency import business_key
from api.numbers import Schema
from api.problems import Invalid, MalformedRequest, UnsupportedMediaType
from integrations import feeds, imports, partner_profiles, signed_urls
from integrations.partner_profiles import Version

WANTED = "application/x-ndjson in UTF-8, or text/csv in UTF-8 or GB18030"
ENCODINGS = ("", "identity", "gzip")
FILE = {
    "description": (
        "The file as it is; gzip if `Content-Encoding: gzip` says so. UTF-8, with or without a byte"
        " order mark; a CSV in GB18030 says so by `Content-Type: text/csv; charset=gb18030`."
    ),
    "required": True,
    "content": {kind: {"schema": {"type": "string"}} for kind in feeds.FORMATS},
}


class QueuedAnswer(ma.Schema):
    job_id = fields.String(required=True)


class ProfileQuery(Schema):
    profile = fields.String(
        validate=validate.Length(1, 64),
        metadata={"description": "The mapping profile to read the file by, in its newest version."},
    )


class SignatureQuery(Schema):
    """Of a signed address, which is used without a token."""

    signature = fields.String(
        required=True, validate=validate.Length(1, signed_urls.TOKEN_CHARS_MAX)
    )


def queued(
    kind: str, owner: str, profile: str | None = None
) -> tuple[dict[str, Any], int, dict[str, str]]:
    """Store the body as a file and queue the job that reads it, by a profile of the owner's."""
    encoding = request.headers.get("Content-Encoding", "").lower()
    if request.mimetype not in feeds.FORMATS or encoding not in ENCODINGS:
        raise UnsupportedMediaType(" or ".join(feeds.FORMATS))
    version = None if profile is None else version_of(kind, owner, profile)
    read_as = feeds.encoding_of(
        request.mimetype,
        request.mimetype_params.get("charset") or None,
        version.profile.encoding if version is not None else None,
    )
    if read_as is None:
        raise UnsupportedMediaType(WANTED)
    job = imports.store(
        kind,
        owner,
        io.BufferedReader(Whole(request.stream, request.content_length)),
        media_type=request.mimetype,
        gzipped=encoding == "gzip",
        encoding=read_as,
        profile=version,
        once=business_key(),
    )
    tasks.nudge(tasks.run_job, job.id)
    return {"job_id": job.id}, 202, {"Location": f"/v1/jobs/{job.id}"}


class CutOff(MalformedRequest):
    """The sender went away in the middle, and may come again with the same key."""

    final = False

    def __init__(self) -> None:
        super().__init__("The body was cut off.", "请求体不完整。")


class Whole(io.RawIOBase):
    """A body that must be as long as it was said to be.

    gunicorn ends a body whose sender went away as if that were all of it.
    """

    def __init__(self, body: IO[bytes], length: int | None) -> None:
        self._body, self._left = body, length

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._body.read(len(buffer))
        buffer[: len(block)] = block
        if self._left is not None:
            self._left -= len(block)
            if not block and self._left:
                raise CutOff()
        return len(block)


def version_of(kind: str, owner: str, name: str) -> Version:
    """The newest version of a partner's profile for a kind of file. Raises `Invalid`."""
    found = partner_profiles.latest(owner, name)
    if found is None or found.profile.kind != kind:
        raise Invalid([("/profile", f"Not a mapping profile of yours for {kind}.")])
    return found
