"""A request whose body is a file of rows: the bytes are stored, a job reads them."""

from typing import Any

import marshmallow as ma
from flask import request
from marshmallow import fields, validate

from api import tasks
from api.idempotency import business_key
from api.numbers import Schema
from api.problems import Invalid, UnsupportedMediaType
from integrations import feeds, imports, partner_profiles
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


def queued(
    kind: str, owner: str, profile: str | None = None
) -> tuple[dict[str, Any], int, dict[str, str]]:
    """Store the body as a file and queue the job that reads it, by a profile of the owner's."""
    encoding = request.headers.get("Content-Encoding", "").lower()
    if request.mimetype not in feeds.FORMATS or encoding not in ENCODINGS:
        raise UnsupportedMediaType(" or ".join(feeds.FORMATS))
    version = None if profile is None else _version(kind, owner, profile)
    declared = request.mimetype_params.get("charset", "")
    charset = declared or feeds.UTF_8
    if not declared and version is not None and request.mimetype == feeds.CSV:
        charset = version.profile.encoding
    read_as = feeds.CHARSETS.get(charset.lower())
    if read_as is None or (request.mimetype == feeds.NDJSON and read_as != feeds.UTF_8):
        raise UnsupportedMediaType(WANTED)
    job = imports.store(
        kind,
        owner,
        request.stream,
        media_type=request.mimetype,
        gzipped=encoding == "gzip",
        encoding=read_as,
        profile=version,
        once=business_key(),
    )
    tasks.nudge(tasks.run_job, job.id)
    return {"job_id": job.id}, 202, {"Location": f"/v1/jobs/{job.id}"}


def _version(kind: str, owner: str, name: str) -> Version:
    found = partner_profiles.latest(owner, name)
    if found is None or found.profile.kind != kind:
        raise Invalid([("/profile", f"Not a mapping profile of yours for {kind}.")])
    return found
