"""Machine clients: who may ask for a token, with which scopes, and for whom they act.

A secret is 256 random bits, so its SHA-256 is stored as it is: there is nothing to guess.
"""

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

import mongoengine as me

from accounting import approvals, clock, edwards, storage, vault
from accounting.errors import NotFound, ValidationFailed
from accounting.ids import new_id

SECRET_BYTES = 32
KEYS_LIVE_MAX = 2
NAME_MAX = 200
HMAC_SHA256 = "hmac-sha256"
ED25519 = "ed25519"
_KEY_PURPOSE = "bank-key"


class Kind(StrEnum):
    """What a client is; it decides the default scopes and the party it acts for."""

    OPERATOR = "operator"
    DATA = "data"
    MERCHANT = "merchant"
    BANK = "bank"
    PLANT = "plant"


# What an operator may be trusted with apart from the rest; `operator` is all of it.
AREAS = ("rewards", "methodology", "funders", "partners", "support")
SCOPES: dict[str, str] = {
    "operator": "run the programme; every plant door",
    "operator:rewards": "merchants, rewards, settlement",
    "operator:methodology": "methodology and grade policies: drafts, previews, publishing",
    "operator:funders": "funders, campaigns, the cost of the programme",
    "operator:partners": "partners and their credentials, plants",
    "operator:support": "reviews, appeals, taking an activity back",
    "feeds:write": "hand over activities and bills",
    "vouchers:redeem": "look up and redeem vouchers",
    "statements:read": "read settlement statements",
    "grades:read": "read grades under consent",
    "terms:write": "set the terms a bank gives for each grade",
    "readings:write": "send meter readings",
    "plant:read": "read the figures of the own plant",
}
# The scopes a kind may have, and those it gets when nothing else is said.
SCOPES_OF: dict[Kind, tuple[str, ...]] = {
    Kind.OPERATOR: ("operator", *(f"operator:{area}" for area in AREAS)),
    Kind.DATA: ("feeds:write",),
    Kind.MERCHANT: ("vouchers:redeem", "statements:read"),
    Kind.BANK: ("grades:read", "terms:write"),
    Kind.PLANT: ("readings:write", "plant:read"),
}
DEFAULT_SCOPES_OF = {**SCOPES_OF, Kind.OPERATOR: ("operator",)}


class UnfitKey(ValidationFailed):
    """Bytes under which somebody else could sign, or nobody."""

    def __init__(self, algorithm: str) -> None:
        super().__init__("/public_key_b64", *_UNFIT[algorithm])


_UNFIT = {
    ED25519: (
        "Not a usable Ed25519 public key: 32 bytes, a point of the curve in its one encoding, "
        "and not one of the eight of small order.",
        "不是可用的 Ed25519 公钥：须为 32 字节、曲线上点的唯一编码，且不得为八个小阶点之一。",
    ),
    HMAC_SHA256: (
        "A shared secret has at least 32 bytes.",
        "共享密钥至少须有 32 字节。",
    ),
}


class SigningKey(me.EmbeddedDocument):
    """A key a bank signs its requests with: a shared secret, or its Ed25519 public key."""

    key_id = me.StringField(required=True)
    algorithm = me.StringField(required=True, choices=(HMAC_SHA256, ED25519))
    material_encrypted = me.BinaryField(required=True)
    not_before = me.DateTimeField(required=True)
    retired_at = me.DateTimeField()


@storage.indexed
class Client(me.Document):
    """A machine that signs in with a secret of its own.

    `subject_id` is the party it acts for: partner, merchant, bank or plant id; an operator is its
    own. `policy` (data partners): behaviours, carriers, id_namespace, link_code_required.
    """

    client_id = me.StringField(primary_key=True)
    kind = me.EnumField(Kind, required=True)
    name = me.StringField(required=True, max_length=NAME_MAX)
    secret_hash = me.StringField(required=True)
    scopes = me.ListField(me.StringField(choices=tuple(SCOPES)))
    subject_id = me.StringField(required=True)
    policy = me.DictField()
    keys = me.EmbeddedDocumentListField(SigningKey)
    created_at = me.DateTimeField(required=True)
    disabled_at = me.DateTimeField()
    # The operator who asked for it and the other who approved; it gets no token before. Neither is
    # there where nobody need approve.
    asked_by = me.StringField()
    approved_by = me.StringField()
    # The request that made it, so that a retry makes no other.
    once = me.StringField()

    meta = {
        "collection": "clients",
        "auto_create_index": False,
        "indexes": [
            ("kind", "subject_id"),
            {"fields": ["once"], "unique": True, "sparse": True},
            {"fields": ["asked_by", "approved_by"], "sparse": True},
        ],
    }

    @property
    def needs_approval(self) -> bool:
        return self.asked_by is not None and self.approved_by is None

    @property
    def enabled(self) -> bool:
        """Whether anything may be done in its name."""
        return self.disabled_at is None and not self.needs_approval


@dataclass(frozen=True, slots=True)
class BankKey:
    """A live key with its bytes: the shared secret, or the raw Ed25519 public key."""

    key_id: str
    client_id: str
    algorithm: str
    material: bytes = field(repr=False)


def create_client(
    kind: Kind,
    name: str,
    *,
    subject_id: str | None = None,
    scopes: tuple[str, ...] | None = None,
    policy: dict[str, Any] | None = None,
    once: str | None = None,
    asked_by: str | None = None,
) -> tuple[Client, str]:
    """A new client and its secret, which is shown this once and cannot be read back.

    With `asked_by` it waits for the approval of another operator than this. Raises
    `NotUniqueError` when `once` made one before.
    """
    wanted = DEFAULT_SCOPES_OF[kind] if scopes is None else scopes
    assert set(wanted) <= set(SCOPES_OF[kind]), (kind, wanted)
    assert subject_id is not None or kind is Kind.OPERATOR, "a party acts for somebody"
    client_id, secret = new_id(f"cli_{kind.value}"), secrets.token_urlsafe(SECRET_BYTES)
    client = Client(
        client_id=client_id,
        kind=kind,
        name=name,
        secret_hash=_digest(secret),
        scopes=list(wanted),
        subject_id=subject_id or client_id,
        policy=policy or {},
        created_at=clock.now(),
        once=once,
        asked_by=asked_by,
    ).save(force_insert=True)
    return client, secret


def approve(client_id: str, *, by: str, alone: bool) -> Client:
    """Let a client in that another operator asked for; one that is in stays as it is.

    Raises `NotFound` and `SecondOperatorNeeded`.
    """
    client = get(client_id)
    if client.needs_approval:
        approvals.check(client.asked_by, by, alone=alone)
        Client.objects(client_id=client_id, approved_by=None).update(set__approved_by=by)
    return get(client_id)


def waiting(*, before: str | None, limit: int) -> list[Client]:
    """The clients that wait for a second operator, in the order of their ids from the end."""
    found = Client.objects(asked_by__gt="", approved_by=None)
    if before is not None:
        found = found.filter(client_id__lt=before)
    return list(found.order_by("-client_id").limit(limit))


def made_by(once: str) -> Client | None:
    """The client a request made, when a crash lost its answer."""
    return Client.objects(once=once).first()


def new_secret(client: Client) -> str:
    """Another secret for a client; the one before ends at once."""
    secret = secrets.token_urlsafe(SECRET_BYTES)
    Client.objects(client_id=client.client_id).update(set__secret_hash=_digest(secret))
    return secret


def authenticate(client_id: str, secret: str) -> Client | None:
    """The client, if it is known, approved, not disabled, and this is its secret."""
    client = Client.objects(client_id=client_id).first()
    # Compare even when there is nothing to compare with: timing must not tell who is known.
    known = client.secret_hash if client else _digest("")
    right = hmac.compare_digest(known, _digest(secret))
    return client if client and right and client.enabled else None


def get(client_id: str) -> Client:
    """The client; raises `NotFound`."""
    client = Client.objects(client_id=client_id).first()
    if client is None:
        raise NotFound
    return client


def operators() -> list[Client]:
    """Every operator, the oldest first."""
    return list(Client.objects(kind=Kind.OPERATOR).order_by("created_at"))


def of_party(kind: Kind, subject_id: str) -> list[Client]:
    """Every client that acts for a party, the oldest first."""
    return list(Client.objects(kind=kind, subject_id=subject_id).order_by("created_at"))


def of_subject(kind: Kind, subject_id: str) -> Client | None:
    """The oldest client that acts for a party, for example a partner by its partner id."""
    return Client.objects(kind=kind, subject_id=subject_id).order_by("created_at").first()


def subjects(kind: Kind) -> list[str]:
    """Every party of a kind that has a client which is not disabled."""
    return sorted(Client.objects(kind=kind, disabled_at=None).distinct("subject_id"))


def add_key(
    client: Client,
    algorithm: str,
    material: bytes,
    *,
    not_before: datetime | None = None,
    live_max: int = KEYS_LIVE_MAX,
) -> str:
    """Give a bank one more signing key and return its id.

    The oldest beyond `live_max` end at once; with 1 all but the new one. Raises `UnfitKey`.
    """
    assert client.kind is Kind.BANK, client.kind
    check_key(algorithm, material)
    key_id = new_id("key")
    now = clock.now()
    key = SigningKey(
        key_id=key_id,
        algorithm=algorithm,
        material_encrypted=vault.encrypt(base64.b64encode(material).decode(), _KEY_PURPOSE),
        not_before=not_before or now,
    )
    # One write adds it, so that of two keys added at once neither is lost.
    Client.objects(client_id=client.client_id).update(push__keys=key)
    client.reload()
    live = [one for one in client.keys if one.retired_at is None]
    for one in live[:-live_max]:
        retire_key(client, one.key_id, now)
    client.reload()
    return key_id


def check_key(algorithm: str, material: bytes) -> None:
    """Raise `UnfitKey` for bytes nobody should sign with; wherever a key enters."""
    fits = edwards.is_sound_key(material) if algorithm == ED25519 else len(material) >= SECRET_BYTES
    if not fits:
        raise UnfitKey(algorithm)


def new_hmac_key(client: Client, *, live_max: int = KEYS_LIVE_MAX) -> tuple[str, bytes]:
    """A fresh shared secret for a bank: (key id, 32 random bytes), shown this once."""
    material = secrets.token_bytes(SECRET_BYTES)
    return add_key(client, HMAC_SHA256, material, live_max=live_max), material


def live_key(client_id: str, key_id: str) -> BankKey | None:
    """The key, if it is live now and belongs to this client."""
    found = storage.strong(Client._get_collection()).find_one({"_id": client_id})
    return key_of(found, key_id) if found else None


def key_of(client: storage.Doc, key_id: str) -> BankKey | None:
    """The key of a client's record, if it is live now."""
    if client.get("disabled_at") is not None:
        return None
    now = clock.now()
    for key in client.get("keys", ()):
        retired_at = key.get("retired_at")
        live = key["not_before"] <= now and (retired_at is None or retired_at > now)
        if key["key_id"] == key_id and live:
            sealed = bytes(key["material_encrypted"])
            material = base64.b64decode(vault.decrypt(sealed, _KEY_PURPOSE))
            return BankKey(key_id, client["_id"], key["algorithm"], material)
    return None


def live_keys(client: Client) -> list[SigningKey]:
    """The keys of a bank that are not ended, the oldest first."""
    now = clock.now()
    return [key for key in client.keys if not _retired(key, now)]


def retire_key(client: Client, key_id: str, at: datetime | None = None) -> None:
    """End a key now, or at a later instant so that the bank can change over."""
    Client.objects(client_id=client.client_id, keys__key_id=key_id).update(
        set__keys__S__retired_at=at or clock.now()
    )


def _retired(key: SigningKey, now: datetime) -> bool:
    return key.retired_at is not None and key.retired_at <= now


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
