"""The keys banks sign with: their own to look after, and what two operators do for a lost one."""

import base64
import binascii
from functools import partial
from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import audit, clients, clock, key_resets
from accounting.clients import KEYS_LIVE_MAX, Client, Kind
from accounting.errors import DomainError, NotFound
from accounting.key_resets import KeyReset
from api.idempotency import business_key, idempotent
from api.numbers import Instant, Schema
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, newest, page_of
from api.problems import Invalid
from api.security import BANK, OPERATOR, caller, door
from api.versions import one_is_enough

blueprint = Blueprint("bank_keys", __name__, description="Signing keys of banks")


class LastKey(DomainError):
    code = "last_key"
    en = "This is the only live key; add another before you end it."
    zh = "这是唯一有效的密钥，请先添加新密钥再停用。"


class KeyBody(Schema):
    """An Ed25519 key is made by the bank; a shared secret is made here and shown once."""

    algorithm = fields.String(
        required=True, validate=validate.OneOf([clients.HMAC_SHA256, clients.ED25519])
    )
    public_key_b64 = fields.String(validate=validate.Length(1, 100))


class KeyAnswer(ma.Schema):
    key_id = fields.String(required=True)
    algorithm = fields.String(required=True)
    not_before = Instant(required=True)


class NewKeyAnswer(KeyAnswer):
    hmac_key_b64 = fields.String(allow_none=True)


class KeysAnswer(ma.Schema):
    items = fields.List(fields.Nested(KeyAnswer), required=True)


class ResetBody(KeyBody):
    """`client_id` where a bank has several; the oldest otherwise."""

    client_id = fields.String(validate=validate.Length(1, 64))
    reason = fields.String(required=True, validate=validate.Length(1, 500))


class ResetAnswer(ma.Schema):
    reset_id = fields.String(required=True, attribute="id")
    bank_id = fields.String(required=True)
    client_id = fields.String(required=True)
    algorithm = fields.String(required=True)
    reason = fields.String(required=True)
    needs_approval = fields.Boolean(required=True)
    asked_by = fields.String(required=True)
    asked_at = Instant(required=True)
    approved_by = fields.String(required=True, allow_none=True)
    key_id = fields.String(required=True, allow_none=True)


class ResetDoneAnswer(ResetAnswer):
    """`hmac_key_b64` is shown once, to whoever approves the reset of a shared secret."""

    hmac_key_b64 = fields.String(required=True, allow_none=True)


@blueprint.route("/v1/bank/keys")
class Keys(MethodView):
    @door(BANK, scope="grades:read")
    @blueprint.response(200, KeysAnswer)
    def get(self) -> dict[str, Any]:
        """My live signing keys, the oldest first"""
        return {"items": clients.live_keys(caller().client())}

    @door(BANK, scope="grades:read")
    @blueprint.arguments(KeyBody)
    @idempotent(secrets=("hmac_key_b64",))
    @blueprint.response(201, NewKeyAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Add a signing key; two are live at once, so a third ends the oldest

        Sign with the new one, and end the old one when nothing uses it any more.
        """
        bank, algorithm = caller().client(), wanted["algorithm"]
        answer: dict[str, Any] = {"algorithm": algorithm}
        public = _public_key(wanted)
        if public is not None:
            key_id = clients.add_key(bank, algorithm, public)
        else:
            key_id, secret = clients.new_hmac_key(bank)
            answer["hmac_key_b64"] = base64.b64encode(secret).decode()
        audit.note(bank.client_id, "bank key added", caller().id, after={"key_id": key_id})
        return answer | {"key_id": key_id, "not_before": clock.now()}


@blueprint.route("/v1/bank/keys/<key_id>")
class OneKey(MethodView):
    @door(BANK, scope="grades:read")
    @refuses("last_key")
    @blueprint.response(204)
    def delete(self, key_id: str) -> None:
        """End a key at once; the last one cannot be ended"""
        bank = caller().client()
        live = [key.key_id for key in clients.live_keys(bank)]
        assert len(live) <= KEYS_LIVE_MAX, live
        if key_id not in live:
            raise NotFound()
        if len(live) == 1:
            raise LastKey()
        clients.retire_key(bank, key_id)
        audit.note(bank.client_id, "bank key ended", caller().id, before={"key_id": key_id})


@blueprint.route("/v1/operator/banks/<bank_id>/key-resets")
class KeyResets(MethodView):
    @door(OPERATOR, area="partners")
    @refuses("not_found")
    @blueprint.arguments(ResetBody)
    @idempotent(secrets=("hmac_key_b64",))
    @blueprint.response(201, ResetDoneAnswer)
    def post(self, wanted: dict[str, Any], bank_id: str) -> dict[str, Any]:
        """Ask for a new signing key for a bank that has lost its own; another operator approves

        The bank's present keys hold until then.
        """
        return _shown(
            key_resets.ask(
                _client(bank_id, wanted.get("client_id")),
                wanted["algorithm"],
                _public_key(wanted),
                reason=wanted["reason"],
                by=caller().id,
                alone=one_is_enough(),
                once=business_key(),
            )
        )

    @door(OPERATOR, area="partners")
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(ResetAnswer))
    def get(self, wanted: dict[str, Any], bank_id: str) -> dict[str, Any]:
        """The resets of a bank, newest first"""
        return newest(wanted, partial(key_resets.newest, bank_id))


@blueprint.route("/v1/operator/banks/<bank_id>/key-resets/<reset_id>/approve")
class ApprovedKeyReset(MethodView):
    @door(OPERATOR, area="partners")
    @refuses("second_operator_needed", "not_found")
    @idempotent(secrets=("hmac_key_b64",))
    @blueprint.response(200, ResetDoneAnswer)
    def post(self, bank_id: str, reset_id: str) -> dict[str, Any]:
        """End all keys of the bank's client at once and give it the new one

        A shared secret is shown this once, to be handed to the bank.
        """
        done = key_resets.approve(bank_id, reset_id, by=caller().id, alone=one_is_enough())
        return _shown(done)


def _client(bank_id: str, client_id: str | None) -> Client:
    known = clients.of_party(Kind.BANK, bank_id)
    for one in known:
        if client_id in (None, one.client_id):
            return one
    if known:
        raise Invalid([("/client_id", "There is no such client.")])
    raise NotFound()


def _shown(reset: KeyReset) -> dict[str, Any]:
    shown = {name: getattr(reset, name) for name in (*KeyReset.__slots__, "needs_approval")}
    secret = shown.pop("secret")
    return shown | {"hmac_key_b64": base64.b64encode(secret).decode() if secret else None}


def _public_key(wanted: dict[str, Any]) -> bytes | None:
    """The key a bank made itself; None for a shared secret, which is made here."""
    text = wanted.get("public_key_b64")
    if wanted["algorithm"] != clients.ED25519:
        if text is not None:
            raise Invalid([("/public_key_b64", "Unknown field.")])
        return None
    try:
        material = base64.b64decode(text or "", validate=True)
    except (binascii.Error, ValueError):
        raise Invalid(
            [("/public_key_b64", "The 32 raw bytes of an Ed25519 public key in base64.")]
        ) from None
    clients.check_key(clients.ED25519, material)
    return material
