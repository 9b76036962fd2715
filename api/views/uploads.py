"""Files of data partners by signed addresses: sent in pieces, resumed where a line broke."""

from typing import Any

import marshmallow as ma
from flask import current_app, request
from flask.views import MethodView
from marshmallow import fields, validate
from werkzeug.http import parse_content_range_header

from accounting.errors import NotFound
from accounting.jobs import Job
from api import tasks
from api.filing import SignatureQuery, version_of
from api.idempotency import business_key, idempotent
from api.numbers import CityDay, Flag, Instant, Quantity, Schema, Whole
from api.openapi import Blueprint, refuses
from api.problems import Invalid, MalformedRequest, UnsupportedMediaType
from api.security import DATA, OPEN, caller, door
from integrations import feeds, imports, manifests, uploads
from integrations.manifests import Manifest
from integrations.mapping import ACTIVITIES, BILLS
from integrations.uploads import Upload

BYTES = "application/octet-stream"
BODY = {
    "description": "The bytes of the file, or with `Content-Range` some of them.",
    "required": True,
    "content": {BYTES: {"schema": {"type": "string", "format": "binary"}}},
}
RANGE = {
    "in": "header",
    "name": "Content-Range",
    "required": False,
    "description": "`bytes FIRST-LAST/SIZE`: which bytes these are; without it all from the first.",
    "schema": {"type": "string"},
}
blueprint = Blueprint("uploads", __name__, description="Data partners")


class UploadRequest(Schema):
    file = fields.String(
        required=True,
        validate=validate.Length(1, manifests.FILE_NAME_MAX),
        metadata={"description": "Its name, to be shown with the job."},
    )
    bytes = Whole(
        required=True, attribute="size", validate=validate.Range(1, imports.FILE_BYTES_MAX)
    )
    sha256 = fields.String(required=True, validate=validate.Regexp("^[0-9a-f]{64}$"))
    media_type = fields.String(required=True, validate=validate.OneOf(feeds.FORMATS))
    encoding = fields.String(validate=validate.OneOf((feeds.UTF_8, feeds.GB18030)))
    gzipped = Flag(load_default=False)
    profile = fields.String(
        validate=validate.Length(1, 64),
        metadata={"description": "The mapping profile to read the file by, in its newest version."},
    )
    rows = Whole(
        validate=validate.Range(0, manifests.COUNT_MAX),
        metadata={"description": "Checked before the first row is taken, like `sums`."},
    )
    sums = fields.Dict(
        keys=fields.String(validate=validate.Length(1, manifests.COLUMN_MAX)),
        values=Quantity(minimum=-manifests.SUM_MAX, maximum=manifests.SUM_MAX),
        validate=validate.Length(max=manifests.SUMS_MAX),
        metadata={"description": "The total of a column, under its name in the file."},
    )
    business_date = CityDay()
    sequence = Whole(validate=validate.Range(0, manifests.COUNT_MAX))


class UploadAnswer(ma.Schema):
    upload_id = fields.String(required=True, attribute="id")
    url = fields.String(required=True, metadata={"format": "uri"})
    method = fields.String(required=True)
    headers = fields.Dict(keys=fields.String(), values=fields.String(), required=True)
    expires_at = Instant(required=True)
    max_bytes = fields.Integer(required=True)


class UploadState(ma.Schema):
    upload_id = fields.String(required=True)
    state = fields.String(required=True, validate=validate.OneOf(("open", "done", "dropped")))
    received_bytes = fields.Integer(required=True, metadata={"description": "Go on from here."})
    bytes = fields.Integer(required=True)
    expires_at = Instant(required=True)
    job_id = fields.String(required=True, allow_none=True)


@blueprint.route("/v1/feeds/<feed>/uploads")
class Uploads(MethodView):
    @door(DATA, scope="feeds:write")
    @refuses("too_many_uploads")
    @blueprint.arguments(UploadRequest)
    @idempotent()
    @blueprint.response(201, UploadAnswer)
    def post(self, wanted: dict[str, Any], feed: str) -> dict[str, Any]:
        """An address to send a file of activities or bills to, in one go or in parts

        Announce size and SHA-256; whoever has the address may send these bytes until it is over.
        """
        if feed not in (ACTIVITIES, BILLS):
            raise NotFound()
        upload = _begun(feed, wanted)
        path = f"/v1/feeds/{feed}/uploads/{upload.id}?signature={upload.signature}"
        return {
            "id": upload.id,
            "url": current_app.extensions["config"].public_url + path,
            "method": "PUT",
            "headers": {"Content-Type": BYTES},
            "expires_at": upload.expires_at,
            "max_bytes": upload.manifest.size,
        }


@blueprint.route("/v1/feeds/<feed>/uploads/<upload_id>")
class OneUpload(MethodView):
    @door(OPEN)
    @refuses("url_not_accepted", "url_expired")
    @blueprint.arguments(SignatureQuery, location="query")
    @blueprint.response(200, UploadState)
    def get(self, wanted: dict[str, str], feed: str, upload_id: str) -> dict[str, Any]:
        """How much of a file is here, and its job when all of it was"""
        upload = uploads.admitted(feed, upload_id, wanted["signature"])
        return _state(upload, uploads.received(upload), upload.job)

    @door(OPEN, body_max=imports.FILE_BYTES_MAX)
    @refuses("url_not_accepted", "url_expired", "upload_over", "upload_gap", "upload_busy")
    @refuses("upload_too_long", "manifest_mismatch", "file_unreadable")
    @refuses("payload_too_large", "unsupported_media_type")
    @blueprint.doc(requestBody=BODY, parameters=[RANGE])
    @blueprint.arguments(SignatureQuery, location="query")
    @blueprint.response(202, UploadState)
    @blueprint.alt_response(200, schema=UploadState, description="More is to come")
    def put(
        self, wanted: dict[str, str], feed: str, upload_id: str
    ) -> tuple[dict[str, Any], int, dict[str, str]]:
        """Send a file, or the next part of it

        Parts come in order. What came before a line broke is kept: ask with GET how much that is,
        and go on there, or send everything again. 202 says that all of it is durable and queued.
        """
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnsupportedMediaType(BYTES)  # Whether the file is packed was announced.
        upload = uploads.admitted(feed, upload_id, wanted["signature"])
        received = uploads.write(upload, _first_byte(upload), request.stream)
        if received < upload.manifest.size:
            return _state(upload, received, None), 200, {}
        job: Job = uploads.finish(upload)
        tasks.nudge(tasks.run_job, job.id)
        answer = _state(upload, received, job.id) | {"state": uploads.DONE}
        return answer, 202, {"Location": f"/v1/jobs/{job.id}"}


def _begun(feed: str, wanted: dict[str, Any]) -> Upload:
    name = wanted.get("profile")
    version = None if name is None else version_of(feed, caller().id, name)
    encoding = feeds.encoding_of(
        wanted["media_type"],
        wanted.get("encoding"),
        None if version is None else version.profile.encoding,
    )
    if encoding is None:
        raise Invalid([("/encoding", "Only a CSV can be in another encoding than UTF-8.")])
    told = ("file", "size", "sha256", "rows", "sums", "profile", "business_date", "sequence")
    client_id = caller().client_id
    assert client_id is not None, "a data partner is a client"
    return uploads.begin(
        feed,
        caller().id,
        client_id,
        Manifest(**{name: wanted[name] for name in told if name in wanted}),
        media_type=wanted["media_type"],
        gzipped=wanted["gzipped"],
        encoding=encoding,
        profile=version,
        once=business_key(),
    )


def _first_byte(upload: Upload) -> int:
    """Where the body begins. Raises `MalformedRequest` for a range that is none of this file."""
    said = request.headers.get("Content-Range")
    if said is None:
        return 0
    found = parse_content_range_header(said)
    sizes = (None, upload.manifest.size)
    if found is None or found.units != "bytes" or found.start is None or found.length not in sizes:
        raise MalformedRequest(
            f"Content-Range must be `bytes FIRST-LAST/{upload.manifest.size}`.",
            f"Content-Range 应为 bytes 起-止/{upload.manifest.size}。",
        )
    return found.start


def _state(upload: Upload, received: int, job_id: str | None) -> dict[str, Any]:
    return {
        "upload_id": upload.id,
        "state": upload.state,
        "received_bytes": received,
        "bytes": upload.manifest.size,
        "expires_at": upload.expires_at,
        "job_id": job_id,
    }
