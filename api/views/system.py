"""What operators' tools and integrators look at: health, figures, the contract, the key set."""

from importlib import metadata
from typing import Any

import pymongo
from flask import Response, current_app, jsonify, send_from_directory
from flask.typing import ResponseReturnValue
from redis import RedisError

from accounting import storage, vault
from accounting.errors import Unavailable
from api.openapi import Blueprint
from api.security import INTERNAL, OPEN, door
from integrations import jws

STORE_ANSWER_S = 2.0
DEMO_CREDENTIALS = "demo-credentials.json"
# Swagger UI 5, which reads OpenAPI 3.1; only its files are used, so nothing of it is imported.
ASSETS_OF, ASSETS = "flask-swagger-ui", "flask_swagger_ui/dist"
ASSET_MAX_AGE_S = 24 * 3600

blueprint = Blueprint("system", __name__, description="Health, figures, the contract, the key set")


def _answers(
    description: str, content_type: str = "application/json", **schema: Any
) -> dict[str, Any]:
    """The 200 of an address in the document."""
    return {
        "responses": {
            200: {"description": description, "content": {content_type: {"schema": schema}}}
        }
    }


def _status(*values: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["status"],
        "properties": {"status": {"type": "string", "enum": list(values)}},
    }


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Tanhui 碳惠 API</title>
<link rel="icon" href="/docs/assets/favicon-32x32.png">
<link rel="stylesheet" href="/docs/assets/swagger-ui.css">
</head>
<body>
<div id="page"></div>
<script src="/docs/assets/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
_START = """SwaggerUIBundle({ url: "/openapi.json", dom_id: "#page", deepLinking: true });
"""
# The page's own scripts only; the library writes style attributes and draws icons from data: URLs.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


@blueprint.route("/healthz")
@door(OPEN)
@blueprint.doc(**_answers("This process answers", **_status("ok")))
def healthz() -> ResponseReturnValue:
    """Whether this process answers"""
    return jsonify(status="ok")


@blueprint.route("/readyz")
@door(OPEN)
@blueprint.doc(**_answers("Requests can be served", **_status("ready", "degraded")))
def readyz() -> ResponseReturnValue:
    """Whether requests can be served; `degraded` without Redis"""
    config = current_app.extensions["config"]
    with pymongo.timeout(STORE_ANSWER_S):
        storage.client().admin.command("ping")
    if config.demo and not (config.data_dir / DEMO_CREDENTIALS).exists():
        raise Unavailable("Tanhui")
    try:
        current_app.extensions["redis"].ping()
    except RedisError:
        return jsonify(status="degraded")
    return jsonify(status="ready")


@blueprint.route("/metrics", endpoint="metrics")
@door(INTERNAL)
@blueprint.doc(**_answers("Prometheus text", "text/plain", type="string"))
def figures() -> ResponseReturnValue:
    """Figures for Prometheus; internal networks only"""
    answer: Response = current_app.extensions["metrics"].exposition()
    return answer


@blueprint.route("/openapi.json")
@door(OPEN)
@blueprint.doc(**_answers("This document", type="object"))
def openapi() -> ResponseReturnValue:
    """The contract as OpenAPI 3.1"""
    return jsonify(current_app.extensions["openapi"].to_dict())


@blueprint.route("/docs")
@door(OPEN)
@blueprint.doc(**_answers("A page", "text/html", type="string"))
def docs() -> ResponseReturnValue:
    """The contract as a page that needs no internet"""
    response = Response(_PAGE, mimetype="text/html")
    response.headers["Content-Security-Policy"] = _PAGE_POLICY
    return response


@blueprint.route("/docs/start.js")
@door(OPEN)
@blueprint.doc(**_answers("A script", "text/javascript", type="string"))
def docs_start() -> ResponseReturnValue:
    """The page's script"""
    return Response(_START, mimetype="text/javascript")


@blueprint.route("/docs/assets/<name>")
@door(OPEN)
@blueprint.doc(responses={200: {"description": "A file"}})
def docs_asset(name: str) -> ResponseReturnValue:
    """A file of the page"""
    folder = str(metadata.distribution(ASSETS_OF).locate_file(ASSETS))
    return send_from_directory(folder, name, max_age=ASSET_MAX_AGE_S)


@blueprint.route("/.well-known/jwks.json")
@door(OPEN)
@blueprint.doc(**_answers("A JSON Web Key Set (RFC 7517)", type="object", required=["keys"]))
def key_set() -> ResponseReturnValue:
    """The public keys that signed answers verify against"""
    return jsonify(jws.jwks({vault.key_id(): vault.signing_key().public_key()}))
