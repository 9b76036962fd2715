"""A bank that has lost its signing key gets a new one from two operators.

One asks, another approves. Then every key of the bank's client ends at once and a new one holds:
its own Ed25519 key, or a shared secret that is shown to whoever approves. Approving is safe to
repeat until it was done: what a crash kept from being seen ends with the rest.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import mongoengine as me
from pymongo import ReturnDocument
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import approvals, audit, clients, clock, storage
from accounting.clients import Client
from accounting.errors import NotFound
from accounting.ids import new_id

ASKED, DONE = "asked", "done"


@storage.indexed
class KeyResetDocument(me.Document):
    id = me.StringField(primary_key=True)
    client_id = me.StringField(required=True)
    bank_id = me.StringField(required=True)
    algorithm = me.StringField(required=True)
    # The raw public key of ed25519; nothing for a secret that is made when it is done.
    material = me.BinaryField()
    reason = me.StringField(required=True)
    state = me.StringField(required=True)
    asked_by = me.StringField(required=True)
    asked_at = me.DateTimeField(required=True)
    approved_by = me.StringField()
    key_id = me.StringField()
    once = me.StringField()

    meta = {
        "collection": "key_resets",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["bank_id", "_id"]},
            {"fields": ["once"], "unique": True, "sparse": True},
        ],
    }


@dataclass(frozen=True, slots=True)
class KeyReset:
    """`secret` is there once, for a shared secret, in the answer to the approval."""

    id: str
    client_id: str
    bank_id: str
    algorithm: str
    reason: str
    state: str
    asked_by: str
    asked_at: datetime
    approved_by: str | None
    key_id: str | None
    secret: bytes | None = None

    @property
    def needs_approval(self) -> bool:
        return self.state == ASKED


def _resets() -> "Collection[storage.Doc]":
    return storage.strong(KeyResetDocument._get_collection())


def ask(
    bank: Client,
    algorithm: str,
    material: bytes | None,
    *,
    reason: str,
    by: str,
    alone: bool,
    once: str | None = None,
) -> KeyReset:
    """Ask for another key; with `alone` (the demo) it is given at once.

    The same `once` again gives the first one.
    """
    row: storage.Doc = {
        "_id": new_id("krs"),
        "client_id": bank.client_id,
        "bank_id": bank.subject_id,
        "algorithm": algorithm,
        "material": material,
        "reason": reason,
        "state": ASKED,
        "asked_by": by,
        "asked_at": clock.now(),
        "approved_by": None,
        "key_id": None,
        **({"once": once} if once is not None else {}),
    }
    try:
        _resets().insert_one(row)
    except DuplicateKeyError:
        found = _resets().find_one({"once": once})
        assert found is not None, "resets are never deleted"
        row = found
    asked = _reset(row)
    audit.note(
        by,
        "bank key reset asked",
        asked.bank_id,
        reason=reason,
        after={"reset_id": asked.id, "algorithm": algorithm},
        once=f"key-reset:{asked.id}:asked",
    )
    return approve(asked.bank_id, asked.id, by=by, alone=True) if alone else asked


def approve(bank_id: str, reset_id: str, *, by: str, alone: bool) -> KeyReset:
    """End all keys of the bank's client and give it the new one; done, it changes nothing.

    Raises `NotFound` and `SecondOperatorNeeded`.
    """
    found = get(bank_id, reset_id)
    if found.state == DONE:
        return found
    approvals.check(found.asked_by, by, alone=alone)
    # Of two who approve at once only one is shown a secret, and that secret is the one that holds.
    claimed = _resets().find_one_and_update(
        {"_id": reset_id, "state": ASKED, "approved_by": {"$in": [None, by]}},
        {"$set": {"approved_by": by}},
        return_document=ReturnDocument.AFTER,
    )
    if claimed is None:
        return get(bank_id, reset_id)
    client = clients.get(found.client_id)
    before = [key.key_id for key in clients.live_keys(client)]
    secret = None
    if claimed["material"] is None:
        key_id, secret = clients.new_hmac_key(client, live_max=1)
    else:
        key_id = clients.add_key(client, found.algorithm, claimed["material"], live_max=1)
    _resets().update_one({"_id": reset_id}, {"$set": {"state": DONE, "key_id": key_id}})
    audit.note(
        by,
        "bank keys reset",
        bank_id,
        reason=found.reason,
        before={"key_ids": before},
        after={"key_ids": [key_id], "asked_by": found.asked_by},
    )
    return replace(get(bank_id, reset_id), secret=secret)


def get(bank_id: str, reset_id: str) -> KeyReset:
    """Raises `NotFound`."""
    found = _resets().find_one({"_id": reset_id, "bank_id": bank_id})
    if found is None:
        raise NotFound()
    return _reset(found)


def newest(bank_id: str, *, before: str | None, limit: int) -> list[KeyReset]:
    """The resets of a bank, newest first."""
    wanted: dict[str, Any] = {"bank_id": bank_id}
    if before is not None:
        wanted["_id"] = {"$lt": before}
    return [_reset(row) for row in _resets().find(wanted).sort("_id", -1).limit(limit)]


def _reset(row: storage.Doc) -> KeyReset:
    fields = {name: row[name] for name in KeyReset.__slots__ if name not in ("id", "secret")}
    return KeyReset(id=row["_id"], **fields)
