"""Webhooks: which party wants which events at which address, and the secrets they are signed with.

At most two secrets are live: after a rotation the old one signs beside the new one for a day. They
are kept encrypted and shown once, when they are made.
"""

import base64
from collections.abc import Collection as Some
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import clock, storage, vault
from accounting.errors import DomainError, NotFound
from accounting.ids import new_id, random_bytes

SECRET_BYTES = 32
SECRET_PREFIX = "whsec_"
OLD_SECRET_LIVES = timedelta(days=1)
WEBHOOKS_MAX = 10
URL_CHARS_MAX = 2_000
SWEEP_MAX = 1_000
ACTIVE, DISABLED = "active", "disabled"
_PURPOSE = "webhook-secret"
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


class TooManyWebhooks(DomainError):
    """Facts: most."""

    code = "too_many_webhooks"
    en = "At most {most} webhooks; delete one first."
    zh = "最多 {most} 个 Webhook，请先删除一个。"


@storage.indexed
class WebhookDocument(me.Document):
    id = me.StringField(primary_key=True)
    party = me.StringField(required=True)
    url = me.StringField(required=True)
    events = me.ListField(me.StringField())
    # {sealed, until}, the oldest first; `until` is None for the one in force.
    secrets = me.ListField(me.DictField())
    state = me.StringField(required=True)
    why = me.StringField()
    created_at = me.DateTimeField(required=True)
    # Up to which number of its party deliveries are laid out, and how often that was begun anew.
    laid_out = me.IntField(required=True)
    round = me.IntField(required=True)
    # Tries in a row that reached nothing, since when, and how long it rests.
    failures = me.IntField(required=True)
    failing_since = me.DateTimeField()
    rests_until = me.DateTimeField(required=True)
    # Who carries at the moment.
    lease = me.StringField()
    leased_until = me.DateTimeField(required=True)

    meta = {
        "collection": "webhooks",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["party", "_id"]},
            {"fields": ["state", "rests_until"]},
            {"fields": ["state", "_id"]},
        ],
    }


@dataclass(frozen=True, slots=True)
class Webhook:
    """One address of one party. `secrets` are those that sign now, the newest first."""

    id: str
    party: str
    url: str
    events: tuple[str, ...]
    state: str
    why: str | None
    created_at: datetime
    laid_out: int
    round: int
    failures: int
    failing_since: datetime | None
    secrets: tuple[str, ...] = field(repr=False)


def rows() -> "Collection[storage.Doc]":
    return storage.strong(WebhookDocument._get_collection())


def add(
    party: str, url: str, events: Some[str], head: int, webhook_id: str | None = None
) -> tuple[Webhook, str]:
    """A new webhook and its secret, which is shown this once.

    It hears what is numbered above `head`. The same `webhook_id` again is the same webhook with
    another secret, since nobody has seen the first. Raises `TooManyWebhooks`.
    """
    if rows().count_documents({"party": party}, limit=WEBHOOKS_MAX) == WEBHOOKS_MAX:
        raise TooManyWebhooks(most=WEBHOOKS_MAX)
    secret, now = _new_secret(), clock.now()
    row: storage.Doc = {
        "_id": webhook_id or new_id("whk"),
        "party": party,
        "url": url,
        "events": sorted(events),
        "secrets": [_kept(secret)],
        "state": ACTIVE,
        "why": None,
        "created_at": now,
        "laid_out": head,
        "round": 0,
        "failures": 0,
        "failing_since": None,
        "rests_until": LONG_AGO,
        "lease": None,
        "leased_until": LONG_AGO,
    }
    try:
        rows().insert_one(row)
    except DuplicateKeyError:
        change = {"$set": {"secrets": row["secrets"]}}
        rows().update_one({"_id": row["_id"], "party": party}, change)
        return get(party, row["_id"]), secret
    return _webhook(row), secret


def get(party: str, webhook_id: str) -> Webhook:
    """Raises `NotFound` for another party's too."""
    found = rows().find_one({"_id": webhook_id, "party": party})
    if found is None:
        raise NotFound
    return _webhook(found)


def listed(party: str, *, before: str | None, limit: int) -> list[Webhook]:
    """Newest first."""
    wanted: dict[str, Any] = {"party": party}
    if before is not None:
        wanted["_id"] = {"$lt": before}
    return [_webhook(row) for row in rows().find(wanted).sort("_id", -1).limit(limit)]


def of_all(state: str | None, *, before: str | None, limit: int) -> list[Webhook]:
    """Webhooks of every party, newest first."""
    wanted: dict[str, Any] = {} if state is None else {"state": state}
    if before is not None:
        wanted["_id"] = {"$lt": before}
    return [_webhook(row) for row in rows().find(wanted).sort("_id", -1).limit(limit)]


def wanted(parties: Some[str]) -> list[Webhook]:
    """Every webhook of these parties; a disabled one too: it hears the rest when it is back."""
    found = rows().find({"party": {"$in": list(parties)}})
    return [_webhook(row) for row in found]


def delete(party: str, webhook_id: str) -> None:
    """Raises `NotFound`."""
    if rows().delete_one({"_id": webhook_id, "party": party}).deleted_count == 0:
        raise NotFound


def rotate(party: str, webhook_id: str) -> tuple[Webhook, str, datetime]:
    """A new secret; the one before signs beside it until the instant that is returned.

    What was live before that one ends now. Raises `NotFound`.
    """
    secret = _new_secret()
    until = clock.now() + OLD_SECRET_LIVES
    newest = {"$mergeObjects": [{"$last": "$secrets"}, {"until": until}]}
    # As a literal: bytes and null in an expression are read as they are only there.
    changed = rows().find_one_and_update(
        {"_id": webhook_id, "party": party},
        [{"$set": {"secrets": [newest, {"$literal": _kept(secret)}]}}],
        return_document=True,
    )
    if changed is None:
        raise NotFound
    return _webhook(changed), secret, until


def enable(party: str, webhook_id: str) -> Webhook:
    """Begin again where it was disabled; nothing changes for one that is active."""
    change = {
        "state": ACTIVE,
        "why": None,
        "failures": 0,
        "failing_since": None,
        "rests_until": LONG_AGO,
    }
    rows().update_one({"_id": webhook_id, "party": party, "state": DISABLED}, {"$set": change})
    return get(party, webhook_id)


def disable(webhook_id: str, why: str) -> bool:
    """Stop carrying to it; False if it was stopped or deleted before."""
    change = {"$set": {"state": DISABLED, "why": why}}
    return rows().update_one({"_id": webhook_id, "state": ACTIVE}, change).modified_count == 1


def to_be_carried(now: datetime) -> list[str]:
    """Webhooks that do not rest."""
    found = rows().find({"state": ACTIVE, "rests_until": {"$lte": now}}, {"_id": 1})
    return [row["_id"] for row in found.sort("rests_until", 1).limit(SWEEP_MAX)]


def of_row(row: storage.Doc) -> Webhook:
    return _webhook(row)


def _new_secret() -> str:
    return SECRET_PREFIX + base64.b64encode(random_bytes(SECRET_BYTES)).decode()


def _kept(secret: str) -> storage.Doc:
    return {"sealed": vault.encrypt(secret, _PURPOSE), "until": None}


def _webhook(row: storage.Doc) -> Webhook:
    now = clock.now()
    live = [one for one in row["secrets"] if one["until"] is None or one["until"] > now]
    fields = {name: row[name] for name in Webhook.__slots__ if name in row}
    return Webhook(
        id=row["_id"],
        **{
            **fields,
            "events": tuple(row["events"]),
            "secrets": tuple(vault.decrypt(one["sealed"], _PURPOSE) for one in reversed(live)),
        },
    )
