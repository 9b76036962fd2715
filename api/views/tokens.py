"""Tokens for machine clients (OAuth 2.0 client credentials, RFC 6749 section 4.4)."""

from typing import Any

import marshmallow as ma
from flask import request
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import clients, tokens
from accounting.errors import Forbidden, Unauthenticated
from api.openapi import TOKEN_PATH, Blueprint, refuses
from api.problems import MalformedRequest, UnsupportedMediaType
from api.security import OPEN, door

FORM = "application/x-www-form-urlencoded"
GRANT = "client_credentials"
TEXT_CHARS_MAX = 512

blueprint = Blueprint("tokens", __name__, description="Tokens for machine clients")


class TokenForm(ma.Schema):
    """RFC 6749 has servers ignore parameters they do not know."""

    class Meta:
        unknown = ma.EXCLUDE

    grant_type = fields.String(load_default="", metadata={"enum": [GRANT]})
    scope = fields.String(validate=validate.Length(max=TEXT_CHARS_MAX))
    client_id = fields.String(validate=validate.Length(max=TEXT_CHARS_MAX))
    client_secret = fields.String(validate=validate.Length(max=TEXT_CHARS_MAX))


class TokenAnswer(ma.Schema):
    access_token = fields.String(required=True)
    token_type = fields.String(required=True, validate=validate.OneOf(["Bearer"]))
    expires_in = fields.Integer(required=True)
    scope = fields.String(required=True)


@blueprint.route(TOKEN_PATH)
class ClientTokens(MethodView):
    @door(OPEN)
    @refuses("unauthenticated", "forbidden")
    @blueprint.doc(security=[{"basic": []}, {}])
    @blueprint.arguments(TokenForm, location="form")
    @blueprint.response(200, TokenAnswer)
    def post(self, form: dict[str, Any]) -> dict[str, Any]:
        """Exchange a client's credentials for a bearer token

        The credentials come by HTTP Basic or as `client_id` and `client_secret`. `scope` may ask
        for less than the client has; without it the token has all of them.
        """
        if request.mimetype not in (FORM, ""):
            raise UnsupportedMediaType(FORM)
        if form["grant_type"] != GRANT:
            raise MalformedRequest(f"grant_type must be {GRANT}.", f"grant_type 应为 {GRANT}。")
        client = clients.authenticate(*_credentials(form))
        if client is None:
            raise Unauthenticated
        wanted = frozenset(form.get("scope", "").split()) or frozenset(client.scopes)
        if not wanted <= set(client.scopes):
            raise Forbidden
        token, expires_in = tokens.issue_client_token(client, wanted)
        return {
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": expires_in,
            "scope": " ".join(sorted(wanted)),
        }


def _credentials(form: dict[str, Any]) -> tuple[str, str]:
    sent = request.authorization
    if sent is not None and sent.type == "basic":
        return sent.username or "", sent.password or ""
    return form.get("client_id", ""), form.get("client_secret", "")
