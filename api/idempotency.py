"""The Idempotency-Key: the same request sent twice is done once and answered the same.

A record in MongoDB is keyed by caller, method, path and key. It is taken with a lease before the
view runs and keeps the answer afterwards, so it outlives Redis and a crash: after the lease another
try takes over, and the business keys below (a book entry's key) make its effect single.
"""

import base64
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from typing import IO, Any, cast

import mongoengine as me
from bson import Binary
from flask import Response, current_app, g, request
from pymongo.errors import DuplicateKeyError

from accounting import clock, storage, vault
from accounting.errors import DomainError, KeyReused
from accounting.ids import random_bytes
from api import problems
from api.numbers import read_json
from api.openapi import View, annotate
from api.problems import Invalid, RequestInProgress
from api.security import caller

HEADER = "Idempotency-Key"
KEY_CHARS_MAX = 255
LEASE_S = 60
KEPT = timedelta(days=7)
CLAIM_ATTEMPTS_MAX = 3
READ_BYTES = 1024 * 1024
_PURPOSE = "idempotency"
_DONE = "done"
_RUNNING = "running"


@storage.indexed
class IdempotencyRecord(me.Document):
    """One key of one caller at one address. `answer` is encrypted and there once it is done."""

    key_hash = me.StringField(primary_key=True)
    fingerprint = me.StringField(required=True)
    state = me.StringField(required=True, choices=(_RUNNING, _DONE))
    owner = me.BinaryField(required=True)
    lease_until = me.DateTimeField(required=True)
    answer = me.BinaryField()
    # The digest of a streamed body.
    body = me.StringField()
    expires_at = me.DateTimeField(required=True)

    meta = {
        "collection": "idempotency",
        "auto_create_index": False,
        "indexes": [{"fields": ["expires_at"], "expireAfterSeconds": 0}],
    }


@dataclass(frozen=True, slots=True)
class _Claim:
    """The right of this try to run the view."""

    key_hash: str
    owner: bytes


class _Digested(io.RawIOBase):
    """A streamed body whose digest is taken as it is read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._stream.read(len(buffer))
        buffer[: len(block)] = block
        self._digest.update(block)
        return len(block)

    def whole(self) -> str:
        """The digest of all of it; what nobody has read yet is read now."""
        while self.read(READ_BYTES):
            pass
        return self._digest.hexdigest()


def idempotent(
    *, required: bool = False, secrets: tuple[str, ...] = (), streamed: bool = False
) -> Callable[[View], View]:
    """Honour the Idempotency-Key of a view; between `blp.arguments` and `blp.response`.

    `secrets` names top-level fields of the answer that a replay gives as null. `streamed` leaves
    the body to the view: its digest is taken on the way, and of a repeated one instead of the view.
    """

    def decorate(view: View) -> View:
        @wraps(view)
        def once(*args: Any, **kwargs: Any) -> Any:
            key = request.headers.get(HEADER)
            if key is None:
                if required:
                    raise Invalid([(f"/{HEADER}", "Missing data for required field.")])
                return view(*args, **kwargs)
            if not 1 <= len(key) <= KEY_CHARS_MAX or not (key.isascii() and key.isprintable()):
                raise Invalid([(f"/{HEADER}", f"1 to {KEY_CHARS_MAX} printable ASCII characters.")])
            body = _Digested(request.stream) if streamed else None
            claimed = _claim(_key_hash(key), _fingerprint(streamed), body)
            if isinstance(claimed, Response):
                return claimed
            if body is not None:
                request.stream = cast("IO[bytes]", body)
            g.idempotency_key = claimed.key_hash
            return _run(claimed, secrets, body, lambda: view(*args, **kwargs))

        once.idempotent = True  # type: ignore[attr-defined]
        return annotate(
            once,
            refusals=("idempotency_key_reused", "request_in_progress", "validation_failed"),
            parameter={
                "in": "header",
                "name": HEADER,
                "required": required,
                "description": "The same key and content again: the first answer, one effect.",
                "schema": {"type": "string", "minLength": 1, "maxLength": KEY_CHARS_MAX},
            },
        )

    return decorate


def business_key() -> str | None:
    """The key of this request with its caller, method and path in it; None without a header.

    What a view creates under it stays single even if a crash lost the answer.
    """
    return g.get("idempotency_key")


def _run(
    claim: _Claim, secrets: tuple[str, ...], body: "_Digested | None", view: Callable[[], Any]
) -> Response:
    finished = False
    try:
        try:
            response = current_app.make_response(view())
            final = 200 <= response.status_code < 300
        except DomainError as refusal:
            response = problems.answer(refusal)
            final = refusal.final and response.status_code not in (401, 403, 408, 429)
            final = final and response.status_code < 500
        if final:
            _keep(claim, response, secrets, body)
            finished = True
        return response
    finally:
        # Also when the view failed: the next try need not wait for the lease.
        if not finished:
            _release(claim)


def _claim(key_hash: str, fingerprint: str, body: "_Digested | None") -> _Claim | Response:
    """Take the key, or answer from its record; raises `KeyReused` and `RequestInProgress`."""
    records = _records()
    for _ in range(CLAIM_ATTEMPTS_MAX):
        now, owner = clock.now(), random_bytes(12)
        fresh = {
            "fingerprint": fingerprint,
            "state": _RUNNING,
            "owner": Binary(owner),
            "lease_until": now + timedelta(seconds=LEASE_S),
            "expires_at": now + KEPT,
        }
        try:
            records.insert_one({"_id": key_hash, **fresh})
            return _Claim(key_hash, owner)
        except DuplicateKeyError:
            held = records.find_one({"_id": key_hash})
        if held is None:
            continue  # It expired between the two calls.
        if held["expires_at"] > now:
            if held["fingerprint"] != fingerprint:
                raise KeyReused(key=request.headers[HEADER])
            if held["state"] == _DONE:
                if body is not None and held.get("body") not in (None, body.whole()):
                    raise KeyReused(key=request.headers[HEADER])
                return _replay(held)
            if held["lease_until"] > now:
                raise RequestInProgress(retry_after=_seconds(held["lease_until"] - now))
        # Left behind by a crash or expired: exactly one try gets it.
        taken = records.update_one(
            {"_id": key_hash, "owner": held["owner"]},
            {"$set": fresh, "$unset": {"answer": "", "body": ""}},
        )
        if taken.matched_count:
            return _Claim(key_hash, owner)
    raise RequestInProgress(retry_after=1)


def _keep(
    claim: _Claim, response: Response, secrets: tuple[str, ...], body: "_Digested | None"
) -> None:
    said = response.get_data()
    if secrets and response.status_code < 300:
        content = current_app.json.loads(said)
        said = current_app.json.dumps(
            {name: None if name in secrets else value for name, value in content.items()}
        ).encode()
    answer = {
        "status": response.status_code,
        "content_type": response.content_type,
        "location": response.headers.get("Location"),
        "body": base64.b64encode(said).decode(),
    }
    change: dict[str, Any] = {
        "state": _DONE,
        "answer": vault.encrypt(json.dumps(answer), _PURPOSE),
    }
    if body is not None and response.status_code < 300:
        # A refused body may not have been read to its end.
        change["body"] = body.whole()
    _records().update_one({"_id": claim.key_hash, "owner": Binary(claim.owner)}, {"$set": change})


def _release(claim: _Claim) -> None:
    # The record stays, so that the key cannot come back with other content.
    _records().update_one(
        {"_id": claim.key_hash, "owner": Binary(claim.owner)},
        {"$set": {"lease_until": clock.now()}},
    )


def _replay(held: dict[str, Any]) -> Response:
    answer = json.loads(vault.decrypt(bytes(held["answer"]), _PURPOSE))
    response = Response(
        base64.b64decode(answer["body"]),
        status=answer["status"],
        content_type=answer["content_type"],
    )
    if answer["location"]:
        response.headers["Location"] = answer["location"]
    response.headers["Idempotency-Replayed"] = "true"
    return response


def _key_hash(key: str) -> str:
    scope = "\n".join((caller().key, request.method, request.path, key))
    return vault.keyed_hash("idempotency", scope)


def _fingerprint(streamed: bool) -> str:
    """A hash of what was asked: the same JSON written otherwise is the same request."""
    content: bytes
    if streamed:
        names = ("Content-Type", "Content-Length", "Content-Digest", "Content-Encoding")
        content = "\n".join(request.headers.get(name, "") for name in names).encode()
    elif request.is_json and request.get_data(cache=True):
        value = read_json(request.get_data(cache=True))
        content = json.dumps(value, sort_keys=True, default=str).encode()
    elif request.mimetype == "multipart/form-data":
        content = _form_content()
    else:
        content = request.get_data(cache=True)
    return hashlib.sha256(request.query_string + b"\0" + content).hexdigest()


def _form_content() -> bytes:
    """What a form says, without the boundary, which a client makes anew for every try."""
    # Read before it is parsed, so that the view can read it again.
    request.get_data(cache=True)
    parts = [f"{name}={value}" for name, value in sorted(request.form.items(multi=True))]
    for name, file in sorted(request.files.items(multi=True), key=lambda part: part[0]):
        parts.append(f"{name}:{hashlib.sha256(file.stream.read()).hexdigest()}")
        file.stream.seek(0)
    return "\0".join(parts).encode()


def _records() -> Any:
    return storage.strong(IdempotencyRecord._get_collection())


def _seconds(span: timedelta) -> int:
    return max(1, round(span.total_seconds()))
