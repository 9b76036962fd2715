"""Bearer tokens of residents and machine clients: opaque, random, stored as SHA-256 only.

Whoever reads the database cannot use what is in it. A token is found by its hash in one keyed read
and dies by deletion, so closing an account or a session takes effect on the next request.
"""

import hashlib
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta

import mongoengine as me
from pymongo import ReturnDocument

from accounting import clock, storage
from accounting.clients import Client, Kind
from accounting.errors import Unauthenticated
from accounting.ids import new_id

TOKEN_BYTES = 32
TOKEN_CHARS_MAX = 128
ACCESS_S = 15 * 60
CLIENT_S = 60 * 60
REFRESH_S = 30 * 24 * 3600
RESIDENT = "resident"


@dataclass(frozen=True, slots=True)
class TokenPair:
    access_token: str
    refresh_token: str
    expires_in: int  # Seconds the access token lives.


@dataclass(frozen=True, slots=True)
class Bearer:
    """Who holds a token. `subject_id`: the resident, partner, merchant, bank, plant or operator."""

    kind: str
    subject_id: str
    scopes: frozenset[str]
    session_id: str | None
    client_id: str | None
    # The client's record as it is stored, where it was asked for.
    client: storage.Doc | None = None


@storage.indexed
class Token(me.Document):
    """An access token; `session_id` for residents, `client_id` for machines."""

    hash = me.StringField(primary_key=True)
    kind = me.StringField(required=True)
    subject_id = me.StringField(required=True)
    client_id = me.StringField()
    session_id = me.StringField()
    scopes = me.ListField(me.StringField())
    expires_at = me.DateTimeField(required=True)

    meta = {
        "collection": "tokens",
        "auto_create_index": False,
        "indexes": [
            "subject_id",
            {"fields": ["session_id"], "sparse": True},
            {"fields": ["client_id"], "sparse": True},
            {"fields": ["expires_at"], "expireAfterSeconds": 0},
        ],
    }


@storage.indexed
class RefreshToken(me.Document):
    """One link of a session's chain. The used ones stay: seeing one again means it was copied."""

    hash = me.StringField(primary_key=True)
    session_id = me.StringField(required=True)
    resident_id = me.StringField(required=True)
    used_at = me.DateTimeField()
    expires_at = me.DateTimeField(required=True)

    meta = {
        "collection": "refresh_tokens",
        "auto_create_index": False,
        "indexes": ["session_id", {"fields": ["expires_at"], "expireAfterSeconds": 0}],
    }


@storage.indexed
class Session(me.Document):
    """A sign-in of a resident on one phone; gone means closed."""

    session_id = me.StringField(primary_key=True)
    resident_id = me.StringField(required=True)
    opened_at = me.DateTimeField(required=True)
    expires_at = me.DateTimeField(required=True)

    meta = {
        "collection": "sessions",
        "auto_create_index": False,
        "indexes": ["resident_id", {"fields": ["expires_at"], "expireAfterSeconds": 0}],
    }


def resolve(token: str, *, with_client: bool = False) -> Bearer | None:
    """Who holds the token; None if it is unknown, closed or expired.

    `with_client` brings the record of a machine's client, too.
    """
    if len(token) > TOKEN_CHARS_MAX:
        return None
    hashed = _digest(token)
    if with_client:
        found, client = _with_client(hashed)
    else:
        found, client = storage.strong(Token._get_collection()).find_one({"_id": hashed}), None
    # The TTL index sweeps once a minute only.
    if found is None or found["expires_at"] <= clock.now():
        return None
    return Bearer(
        kind=found["kind"],
        subject_id=found["subject_id"],
        scopes=frozenset(found.get("scopes", ())),
        session_id=found.get("session_id"),
        client_id=found.get("client_id"),
        client=client,
    )


# Whose each token is, by its hash: that never changes, so knowing it says nothing about whether the
# token or the client still lives. It only lets both be read at once.
_clients_of: OrderedDict[str, str] = OrderedDict()
_CLIENTS_OF_MAX = 10_000


def _with_client(hashed: str) -> tuple[storage.Doc | None, storage.Doc | None]:
    """A token and the record of its client, from the second time on in one round trip.

    `$lookup` needs no memory, but takes twice the time of the union of two keyed reads.
    """
    tokens, owners = Token._get_collection(), storage.strong(Client._get_collection())
    client_id = _clients_of.get(hashed)
    if client_id is None:
        found = storage.strong(tokens).find_one({"_id": hashed})
        if found is None or (client_id := found.get("client_id")) is None:
            return found, None
        _clients_of[hashed] = client_id
        while len(_clients_of) > _CLIENTS_OF_MAX:
            _clients_of.popitem(last=False)
        return found, owners.find_one({"_id": client_id})
    both = [
        {"$match": {"_id": client_id}},
        {"$unionWith": {"coll": tokens.name, "pipeline": [{"$match": {"_id": hashed}}]}},
    ]
    rows = {row["_id"]: row for row in owners.aggregate(both)}
    return rows.get(hashed), rows.get(client_id)


# --- machine clients ----------------------------------------------------------------------------


def issue_client_token(client: Client, scopes: frozenset[str]) -> tuple[str, int]:
    """A token for some of the client's scopes, and the seconds it lives."""
    assert scopes <= set(client.scopes), scopes
    token = secrets.token_urlsafe(TOKEN_BYTES)
    Token(
        hash=_digest(token),
        kind=client.kind.value,
        subject_id=client.subject_id,
        client_id=client.client_id,
        scopes=sorted(scopes),
        expires_at=_after(CLIENT_S),
    ).save(force_insert=True)
    return token, CLIENT_S


def disable_client(client: Client) -> None:
    """No new tokens for the client, and the present ones end."""
    Client.objects(client_id=client.client_id).update(set__disabled_at=clock.now())
    Token.objects(client_id=client.client_id).delete()


def any_held(kind: Kind) -> bool:
    """Whether a client of this kind got a token within the last hour, and so may have called."""
    holders = list(Client.objects(kind=kind).scalar("client_id"))
    return Token.objects(client_id__in=holders).first() is not None


# --- residents ----------------------------------------------------------------------------------


def open_session(resident_id: str) -> TokenPair:
    """Sign a resident in on one more phone."""
    session = Session(
        session_id=new_id("ses"),
        resident_id=resident_id,
        opened_at=clock.now(),
        expires_at=_after(REFRESH_S),
    ).save(force_insert=True)
    return _issue_pair(session.session_id, resident_id)


def refresh(refresh_token: str) -> TokenPair:
    """Exchange a refresh token for a new pair; raises `Unauthenticated`.

    Each token works once. One that was used before has been copied, by the phone's thief or from
    it, so the whole session ends. Of two calls that race with the same token one wins; the other
    is only refused.
    """
    digest = _digest(refresh_token) if len(refresh_token) <= TOKEN_CHARS_MAX else ""
    held = RefreshToken.objects(hash=digest).first()
    if held is None or held.expires_at <= clock.now():
        raise Unauthenticated
    if held.used_at is not None:
        _close(held.session_id)
        raise Unauthenticated
    # The successor is written first: a crash between the two writes leaves the old token usable.
    pair = _issue_pair(held.session_id, held.resident_id)
    won = storage.strong(RefreshToken._get_collection()).find_one_and_update(
        {"_id": digest, "used_at": None},
        {"$set": {"used_at": clock.now()}},
        return_document=ReturnDocument.AFTER,
    )
    if won is None or not _prolonged(held.session_id):
        RefreshToken.objects(hash=_digest(pair.refresh_token)).delete()
        Token.objects(hash=_digest(pair.access_token)).delete()
        raise Unauthenticated
    return pair


def close_session(session_id: str) -> None:
    """Sign out on one phone; its access token ends with it."""
    _close(session_id)


def close_all(resident_id: str) -> None:
    """Sign out everywhere, for a closed account or a lost phone."""
    for session in Session.objects(resident_id=resident_id):
        _close(session.session_id)


def _prolonged(session_id: str) -> bool:
    """Whether the session is still open; a closing that began meanwhile has deleted it first."""
    return bool(Session.objects(session_id=session_id).update(set__expires_at=_after(REFRESH_S)))


def _close(session_id: str) -> None:
    # The session goes first: a refresh that is under way looks for it last and undoes itself.
    Session.objects(session_id=session_id).delete()
    RefreshToken.objects(session_id=session_id).delete()
    Token.objects(session_id=session_id).delete()


def _issue_pair(session_id: str, resident_id: str) -> TokenPair:
    access, successor = (secrets.token_urlsafe(TOKEN_BYTES) for _ in range(2))
    RefreshToken(
        hash=_digest(successor),
        session_id=session_id,
        resident_id=resident_id,
        expires_at=_after(REFRESH_S),
    ).save(force_insert=True)
    Token(
        hash=_digest(access),
        kind=RESIDENT,
        subject_id=resident_id,
        session_id=session_id,
        expires_at=_after(ACCESS_S),
    ).save(force_insert=True)
    return TokenPair(access, successor, ACCESS_S)


def _after(seconds: int) -> datetime:
    return clock.now() + timedelta(seconds=seconds)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()
