"""A request whose body is a file of rows: the bytes are stored, a job reads them."""

from typing import Any

import marshmallow as ma
from flask import request
from marshmallow import fields

from api import tasks
from api.idempotency import business_key
from api.problems import UnsupportedMediaType
from integrations import feeds, imports

ENCODINGS = ("", "identity", "gzip")
FILE = {
    "description": "The file as it is; gzip if `Content-Encoding: gzip` says so.",
    "required": True,
    "content": {kind: {"schema": {"type": "string"}} for kind in feeds.FORMATS},
}


class QueuedAnswer(ma.Schema):
    job_id = fields.String(required=True)


def queued(kind: str, owner: str) -> tuple[dict[str, Any], int, dict[str, str]]:
    """Store the body as a file and queue the job that reads it."""
    encoding = request.headers.get("Content-Encoding", "").lower()
    if request.mimetype not in feeds.FORMATS or encoding not in ENCODINGS:
        raise UnsupportedMediaType(" or ".join(feeds.FORMATS))
    job = imports.store(
        kind,
        owner,
        request.stream,
        media_type=request.mimetype,
        gzipped=encoding == "gzip",
        once=business_key(),
    )
    tasks.nudge(tasks.run_job, job.id)
    return {"job_id": job.id}, 202, {"Location": f"/v1/jobs/{job.id}"}
