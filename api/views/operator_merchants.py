"""Merchants as the operator keeps them: stores, fee, credentials of tills, what they are owed."""

from dataclasses import asdict
from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import audit, clients, tokens
from accounting.clients import Client, Kind
from accounting.errors import NotFound
from api.idempotency import business_key, idempotent
from api.numbers import Flag, Instant, Schema, Whole
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, newest, page_of
from api.reward_terms import BothLanguages
from api.security import OPERATOR, caller, door
from rewards import merchants, settlement
from rewards.merchants import Merchant

TEXT = validate.Length(1, 200)
STORES_MAX = 100
FEE_MAX = 10_000
CREDENTIALS_MAX = 1_000

blueprint = Blueprint("operator_merchants", __name__, description="Merchants and their tills")


class StoreRequest(Schema):
    name = fields.String(required=True, validate=TEXT)
    address = fields.String(required=True, validate=TEXT)


class MerchantRequest(Schema):
    """The fee is what settlement keeps of the face value, in hundredths of a percent."""

    name = fields.Nested(BothLanguages, required=True)
    stores = fields.List(
        fields.Nested(StoreRequest), required=True, validate=validate.Length(1, STORES_MAX)
    )
    fee_basis_points = Whole(load_default=0, validate=validate.Range(0, FEE_MAX))


class StoreChange(Schema):
    """With a `store_id` a store that changes, without one a new store."""

    store_id = fields.String(validate=validate.Length(1, 64))
    name = fields.String(validate=TEXT)
    address = fields.String(validate=TEXT)
    closed = Flag()

    @ma.validates_schema(skip_on_field_errors=True)
    def new_ones_are_whole(self, data: dict[str, Any], **_: Any) -> None:
        if "store_id" not in data:
            wrong = [name for name in ("name", "address") if name not in data]
            if wrong:
                raise ma.ValidationError(
                    {name: ["Missing data for required field."] for name in wrong}
                )


class MerchantChange(Schema):
    """What is left out stays. A changed fee holds from the next statement on."""

    name = fields.Nested(BothLanguages)
    stores = fields.List(fields.Nested(StoreChange), validate=validate.Length(1, STORES_MAX))
    fee_basis_points = Whole(validate=validate.Range(0, FEE_MAX))
    reason = fields.String(required=True, validate=validate.Length(1, 500))


class OperatorStoreAnswer(ma.Schema):
    store_id = fields.String(required=True)
    name = fields.String(required=True)
    address = fields.String(required=True)
    closed = fields.Boolean(required=True)


class MerchantMadeAnswer(ma.Schema):
    merchant_id = fields.String(required=True)
    stores = fields.List(fields.Nested(OperatorStoreAnswer), required=True)
    client_id = fields.String(required=True)
    client_secret = fields.String(required=True, allow_none=True)


class MerchantAnswer(ma.Schema):
    merchant_id = fields.String(required=True, attribute="id")
    name = fields.Dict(keys=fields.String(), values=fields.String(), required=True)
    stores = fields.List(fields.Nested(OperatorStoreAnswer), required=True)
    fee_basis_points = fields.Integer(required=True)
    unsettled_fen = fields.Integer(
        required=True, metadata={"description": "What it is owed that no statement has yet."}
    )


class CredentialRequest(Schema):
    """With a `store_id` it works for that store alone."""

    name = fields.String(required=True, validate=TEXT)
    store_id = fields.String(validate=validate.Length(1, 64))


class CredentialAnswer(ma.Schema):
    client_id = fields.String(required=True)
    name = fields.String(required=True)
    store_id = fields.String(required=True, allow_none=True)
    created_at = Instant(required=True)
    disabled_at = Instant(required=True, allow_none=True)


class CredentialMadeAnswer(CredentialAnswer):
    client_secret = fields.String(required=True, allow_none=True)


class CredentialsAnswer(ma.Schema):
    items = fields.List(fields.Nested(CredentialAnswer), required=True)


@blueprint.route("/v1/operator/merchants")
class Merchants(MethodView):
    @door(OPERATOR, area="rewards")
    @blueprint.arguments(MerchantRequest)
    @idempotent(secrets=("client_secret",))
    @blueprint.response(201, MerchantMadeAnswer)
    def post(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Add a merchant with its stores; the secret is shown once"""
        merchant = merchants.add(
            wanted["name"],
            wanted["stores"],
            fee_basis_points=wanted["fee_basis_points"],
            once=business_key(),
        )
        client, secret = clients.create_client(
            Kind.MERCHANT, wanted["name"]["zh"], subject_id=merchant.id
        )
        audit.note(
            caller().id, "merchant added", merchant.id,
            after=_plain(merchant), once=f"added:{merchant.id}",
        )  # fmt: skip
        return {
            "merchant_id": merchant.id,
            "stores": merchant.stores,
            "client_id": client.client_id,
            "client_secret": secret,
        }

    @door(OPERATOR, area="rewards")
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(MerchantAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Every merchant with what it is owed and not yet settled, newest first"""
        answer = newest(wanted, merchants.newest)
        return answer | {"items": _with_balances(answer["items"])}


@blueprint.route("/v1/operator/merchants/<merchant_id>")
class OneMerchant(MethodView):
    @door(OPERATOR, area="rewards")
    @blueprint.response(200, MerchantAnswer)
    def get(self, merchant_id: str) -> dict[str, Any]:
        """One merchant"""
        return _with_balances([merchants.get(merchant_id)])[0]

    @door(OPERATOR, area="rewards")
    @refuses("too_many_stores", "account_busy")
    @blueprint.arguments(MerchantChange)
    @idempotent()
    @blueprint.response(200, MerchantAnswer)
    def patch(self, wanted: dict[str, Any], merchant_id: str) -> dict[str, Any]:
        """Change names, fee and stores; a store that closes takes no more vouchers"""
        key = business_key()
        reason = wanted.pop("reason")
        before, after = merchants.change(merchant_id, **wanted)
        audit.note(
            caller().id, "merchant changed", merchant_id, reason=reason,
            before=_plain(before), after=_plain(after), once=f"changed:{key}" if key else None,
        )  # fmt: skip
        return _with_balances([after])[0]


@blueprint.route("/v1/operator/merchants/<merchant_id>/credentials")
class Credentials(MethodView):
    @door(OPERATOR, area="rewards")
    @refuses("too_many_credentials")
    @blueprint.arguments(CredentialRequest)
    @idempotent(secrets=("client_secret",))
    @blueprint.response(201, CredentialMadeAnswer)
    def post(self, wanted: dict[str, Any], merchant_id: str) -> dict[str, Any]:
        """One more credential, for all its stores or for one; the secret is shown once"""
        merchant = merchants.get(merchant_id)
        store_id = wanted.get("store_id")
        if store_id is not None and not merchant.has(store_id):
            raise NotFound()
        if len(clients.of_party(Kind.MERCHANT, merchant_id)) >= CREDENTIALS_MAX:
            raise merchants.TooManyCredentials(most=CREDENTIALS_MAX)
        client, secret = clients.create_client(
            Kind.MERCHANT,
            wanted["name"],
            subject_id=merchant_id,
            policy={"store_id": store_id} if store_id is not None else None,
        )
        audit.note(
            caller().id, "merchant credential added", merchant_id,
            after={"client_id": client.client_id, "store_id": store_id},
        )  # fmt: skip
        return _credential(client) | {"client_secret": secret}

    @door(OPERATOR, area="rewards")
    @blueprint.response(200, CredentialsAnswer)
    def get(self, merchant_id: str) -> dict[str, Any]:
        """Its credentials, the oldest first; no secrets"""
        merchants.get(merchant_id)
        found = clients.of_party(Kind.MERCHANT, merchant_id)
        return {"items": [_credential(client) for client in found]}


@blueprint.route("/v1/operator/merchants/<merchant_id>/credentials/<client_id>/disable")
class DisabledCredential(MethodView):
    @door(OPERATOR, area="rewards")
    @idempotent()
    @blueprint.response(200, CredentialAnswer)
    def post(self, merchant_id: str, client_id: str) -> dict[str, Any]:
        """End a credential now, the tokens in use as well"""
        client = clients.get(client_id)
        if (client.kind, client.subject_id) != (Kind.MERCHANT, merchant_id):
            raise NotFound()
        if client.disabled_at is None:
            tokens.disable_client(client)
        audit.note(
            caller().id, "merchant credential disabled", merchant_id,
            after={"client_id": client_id}, once=f"disabled:{client_id}",
        )  # fmt: skip
        return _credential(clients.get(client_id))


def _with_balances(found: list[Merchant]) -> list[dict[str, Any]]:
    owed = settlement.unsettled([merchant.id for merchant in found])
    return [asdict(merchant) | {"unsettled_fen": owed.get(merchant.id, 0)} for merchant in found]


def _plain(merchant: Merchant) -> dict[str, Any]:
    """A merchant as the audit keeps it."""
    return {
        "name": merchant.name,
        "fee_basis_points": merchant.fee_basis_points,
        "stores": [asdict(store) for store in merchant.stores],
    }


def _credential(client: Client) -> dict[str, Any]:
    return {
        "client_id": client.client_id,
        "name": client.name,
        "store_id": client.policy.get("store_id"),
        "created_at": client.created_at,
        "disabled_at": client.disabled_at,
    }
