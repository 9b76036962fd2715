"""The OpenAPI document: what decorators know about a view ends up in it by itself.

A view never writes down a status twice. Decorators leave the codes they may refuse with
(`annotate`), and here every code becomes a response through the one table in `api/problems.py`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any

import flask_smorest  # type: ignore[import-untyped]
from flask import Flask, Response
from werkzeug.exceptions import HTTPException

from accounting import clients
from api import problems
from api.numbers import OPENAPI_TYPES, RequestParser
from api.problems import STATUS, Problem

TITLE = "Tanhui 碳惠"
VERSION = "1"
TOKEN_PATH = "/v1/oauth/token"
ALWAYS = ("rate_limited", "internal_error", "unavailable")

View = Callable[..., Any]

SECURITY_SCHEMES: dict[str, Any] = {
    "resident": {
        "type": "http",
        "scheme": "bearer",
        "description": "The access token of `POST /v1/auth/token`.",
    },
    "client": {
        "type": "oauth2",
        "description": "Merchants, banks, data partners, plants and operators.",
        "flows": {
            "clientCredentials": {
                "tokenUrl": TOKEN_PATH,
                "scopes": dict(clients.SCOPES),
            },
        },
    },
    "basic": {
        "type": "http",
        "scheme": "basic",
        "description": "A client's id and secret, at the token address only.",
    },
    "signature": {
        "type": "apiKey",
        "in": "header",
        "name": "Signature",
        "description": (
            "RFC 9421, together with `Signature-Input` and, with a body, `Content-Digest`: "
            '`sig1=("@method" "@target-uri" "content-digest");created=…;nonce="…";keyid="…";'
            'alg="hmac-sha256"` (or `ed25519`).'
        ),
    },
}


def annotate(
    view: View,
    *,
    refusals: Iterable[str] = (),
    parameter: Mapping[str, Any] | None = None,
    security: list[dict[str, list[str]]] | None = None,
) -> View:
    """Leave on a decorated view what the document shall say of it; returns the view."""
    # Decorators share the notes of what they wrap, and one view may be wrapped twice: copy first.
    notes = deepcopy(getattr(view, "_apidoc", {}))
    notes["refusals"] = notes.get("refusals", frozenset()) | set(refusals)
    if parameter is not None:
        notes.setdefault("arguments", {}).setdefault("parameters", []).append(dict(parameter))
    if security is not None:
        notes.setdefault("manual_doc", {})["security"] = security
    view._apidoc = notes  # type: ignore[attr-defined]
    return view


def refuses(*codes: str) -> Callable[[View], View]:
    """Document the codes of domain refusals that a view may answer with."""
    unknown = set(codes) - STATUS.keys()
    assert not unknown, f"no status for {unknown}"
    return lambda view: annotate(view, refusals=codes)


class Blueprint(flask_smorest.Blueprint):
    """Views whose arguments are read by our parser and whose refusals document themselves."""

    ARGUMENTS_PARSER = RequestParser()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._prepare_doc_cbks.append(self._prepare_refusals_doc)

    def add_url_rule(self, rule: str, *args: Any, **kwargs: Any) -> None:
        super().add_url_rule(rule, *args, **kwargs)
        if "<" in rule:
            for notes in self._docs[self._endpoints[-1]].values():
                if isinstance(notes, dict):
                    notes["refusals"] = notes.get("refusals", frozenset()) | {"not_found"}

    @staticmethod
    def _prepare_refusals_doc(
        doc: dict[str, Any], notes: Mapping[str, Any], **_: Any
    ) -> dict[str, Any]:
        codes = {*ALWAYS, *notes.get("refusals", ())}
        if doc.get("parameters"):
            codes |= {"validation_failed", "malformed_request"}
        if "requestBody" in doc:
            codes |= {
                "validation_failed",
                "malformed_request",
                "payload_too_large",
                "unsupported_media_type",
            }
        by_status: dict[int, list[str]] = defaultdict(list)
        for code in sorted(codes):
            by_status[STATUS[code]].append(code)
        responses = doc.setdefault("responses", {})
        for status, listed in sorted(by_status.items()):
            response: dict[str, Any] = {
                "description": " | ".join(f"`{code}`" for code in listed),
                "content": {problems.CONTENT_TYPE: {"schema": Problem}},
            }
            if {
                "rate_limited",
                "unavailable",
                "account_busy",
                "request_in_progress",
                "upload_busy",
            } & {*listed}:
                response["headers"] = {
                    "Retry-After": {
                        "schema": {"type": "integer"},
                        "description": "seconds",
                    }
                }
            responses[status] = response
        return doc


class Api(flask_smorest.Api):
    """flask-smorest, answering refusals as we do and serving no pages of its own."""

    ERROR_SCHEMA = Problem
    DEFAULT_ERROR_RESPONSE_NAME = None

    def __init__(self, app: Flask) -> None:
        app.config.update(
            API_TITLE=TITLE,
            API_VERSION=VERSION,
            OPENAPI_VERSION="3.1.0",
            API_SPEC_OPTIONS={
                "info": {
                    "description": "The resident low-carbon account of a city.",
                    "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
                },
                "components": {"securitySchemes": SECURITY_SCHEMES},
            },
        )
        super().__init__()
        for field, kind, form in OPENAPI_TYPES:
            self.register_field(field, kind, form)
        self.init_app(app)

    def handle_http_exception(self, error: HTTPException) -> Response:
        return problems.answer_http(error)
