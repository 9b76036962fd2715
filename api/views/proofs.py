"""The proofs of the book: open to all, with the way from one's own account to the signed root."""

from typing import Any

import marshmallow as ma
from flask.views import MethodView
from marshmallow import fields, validate

from accounting import proofs
from accounting.proofs import Proof
from api.numbers import Instant
from api.openapi import Blueprint, refuses
from api.paging import PageQuery, newest, page_of
from api.security import OPEN, OPERATOR, RESIDENT, caller, door

STATES = (proofs.GREEN, proofs.RED)
NONE = "none"

blueprint = Blueprint("proofs", __name__, description="Signed nightly roots of the book")


class ProofAnswer(ma.Schema):
    """`jws` is all of it, signed (EdDSA, the key is in `/.well-known/jwks.json`).

    `previous` is the SHA-256 of the `jws` of the proof before. A red proof has no root.
    """

    number = fields.Integer(required=True, attribute="id")
    state = fields.String(required=True, validate=validate.OneOf(STATES))
    at = Instant(required=True)
    accounts = fields.Integer(required=True)
    entries = fields.Integer(required=True)
    balances = fields.Dict(
        keys=fields.String(),
        values=fields.Integer(),
        required=True,
        metadata={"description": "All accounts together, by `unit/book`."},
    )
    root = fields.String(required=True, allow_none=True)
    previous = fields.String(required=True, allow_none=True)
    jws = fields.String(required=True)


class BookProofAnswer(ma.Schema):
    """The newest proof; only `state: none` before the first."""

    state = fields.String(required=True, validate=validate.OneOf((*STATES, NONE)))
    number = fields.Integer(attribute="id")
    at = Instant()
    accounts = fields.Integer()
    entries = fields.Integer()
    balances = fields.Dict(keys=fields.String(), values=fields.Integer())
    root = fields.String(allow_none=True)
    previous = fields.String(allow_none=True)
    problem = fields.String(
        allow_none=True, metadata={"description": "The first entry that does not hold, and why."}
    )
    jws = fields.String()


class SiblingAnswer(ma.Schema):
    side = fields.String(required=True, validate=validate.OneOf(["left", "right"]))
    hash = fields.String(required=True)


class LeafAnswer(ma.Schema):
    account = fields.String(required=True)
    seq = fields.Integer(required=True)
    hash = fields.String(required=True)


class MyProofAnswer(ma.Schema):
    """The way to the root: SHA-256 of `0x00`, account, newline, seq, newline, hash of the leaf;
    then, up the path, SHA-256 of `0x01`, what is left, what is right. `side` is the sibling's.
    """

    proof = fields.Nested(ProofAnswer, required=True)
    leaf = fields.Nested(LeafAnswer, required=True)
    path = fields.List(fields.Nested(SiblingAnswer), required=True)


@blueprint.route("/v1/proofs")
class Proofs(MethodView):
    @door(OPEN)
    @blueprint.arguments(PageQuery, location="query")
    @blueprint.response(200, page_of(ProofAnswer))
    def get(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """The nightly proofs of the book, newest first

        Whoever keeps one can tell later that nothing it covers was changed or taken away.
        """
        return newest(wanted, proofs.listed)


@blueprint.route("/v1/me/proof")
class MyProof(MethodView):
    @door(RESIDENT)
    @refuses("not_found")
    @blueprint.response(200, MyProofAnswer)
    def get(self) -> dict[str, Any]:
        """How my account is part of the newest proof; not found before my first night"""
        found = proofs.inclusion(caller().id)
        path = [
            {"side": "left" if sibling.left else "right", "hash": sibling.hash.hex()}
            for sibling in found.siblings
        ]
        return {"proof": found.proof, "leaf": found.leaf._asdict(), "path": path}


@blueprint.route("/v1/operator/book/proof")
class BookProof(MethodView):
    @door(OPERATOR)
    @blueprint.response(200, BookProofAnswer)
    def get(self) -> Proof | dict[str, str]:
        """Whether the book was proved last night, and if not, what does not hold"""
        return proofs.newest() or {"state": NONE}
