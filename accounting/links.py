"""Links: which partner's external id (a card, an account) belongs to which resident.

The external id is kept encrypted and found by keyed hash. Unless the partner's policy waives it, a
link needs a code the partner issued to the holder of that id.
"""

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import clock, storage, vault
from accounting.errors import DomainError
from accounting.ids import new_id

CODE_LIFETIME = timedelta(minutes=30)
CODE_TRIES_MAX = 5
CODE_DIGITS = 8
SWEEP_MAX = 200


class AlreadyLinked(DomainError):
    code = "already_linked"
    en = "This id is linked already."
    zh = "该账号已被绑定。"


class InvalidLinkCode(DomainError):
    code = "invalid_link_code"
    en = "The link code is missing, wrong or expired; ask the partner for a new one."
    zh = "绑定码缺失、错误或已过期，请向合作方重新获取。"


@storage.indexed
class LinkDocument(me.Document):
    id = me.StringField(primary_key=True)
    resident = me.StringField(required=True)
    partner_id = me.StringField(required=True)
    external_hash = me.StringField(required=True)
    external_sealed = me.BinaryField(required=True)
    linked_at = me.DateTimeField(required=True)
    # The request that made it, so that a retry gets it and is not refused.
    once = me.StringField()
    # False until the rows parked for this id are credited; the sweep looks here.
    parked_done = me.BooleanField(required=True)

    meta = {
        "collection": "links",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["partner_id", "external_hash"], "unique": True},
            {"fields": ["resident", "_id"]},
            {
                "fields": ["linked_at"],
                "name": "parked_open",
                "partialFilterExpression": {"parked_done": False},
            },
        ],
    }


@storage.indexed
class LinkCodeDocument(me.Document):
    """A code a partner issued for one of its ids; only its keyed hash is kept."""

    id = me.StringField(primary_key=True)
    code_hash = me.StringField(required=True)
    tries = me.IntField(required=True)
    # The request that used it up.
    used_by = me.StringField()
    expires_at = me.DateTimeField(required=True)

    meta = {
        "collection": "link_codes",
        "auto_create_index": False,
        "indexes": [{"fields": ["expires_at"], "expireAfterSeconds": 0}],
    }


@dataclass(frozen=True, slots=True)
class Link:
    id: str
    resident: str
    partner_id: str
    external_hash: str
    external_id: str
    linked_at: datetime


def _links() -> "Collection[storage.Doc]":
    return storage.strong(LinkDocument._get_collection())


def _codes() -> "Collection[storage.Doc]":
    return storage.strong(LinkCodeDocument._get_collection())


def external_hash(partner_id: str, external_id: str) -> str:
    return vault.keyed_hash("external", f"{partner_id}\x1f{external_id}")


def issue_code(partner_id: str, external_id: str) -> tuple[str, timedelta]:
    """A code for the holder of an id; a new one replaces the last."""
    code = "".join(secrets.choice("0123456789") for _ in range(CODE_DIGITS))
    hashed = external_hash(partner_id, external_id)
    _codes().replace_one(
        {"_id": hashed},
        {
            "_id": hashed,
            "code_hash": vault.keyed_hash("link-code", code),
            "tries": 0,
            "expires_at": clock.now() + CODE_LIFETIME,
        },
        upsert=True,
    )
    return code, CODE_LIFETIME


def check_code(
    partner_id: str, external_id: str, code: str | None, *, once: str | None = None
) -> None:
    """Use up a link code. Raises `InvalidLinkCode`; five wrong tries spoil a code.

    The request that used it up, known by `once`, may try again: a crash may have come before what
    the code was for.
    """
    hashed = external_hash(partner_id, external_id)
    if code is None:
        raise InvalidLinkCode()
    right = {"_id": hashed, "code_hash": vault.keyed_hash("link-code", code)}
    unspoilt = {"expires_at": {"$gt": clock.now()}, "tries": {"$lt": CODE_TRIES_MAX}}
    if once is not None and _codes().find_one({**right, "used_by": once}) is not None:
        return
    # The try is counted before the comparison, so parallel guesses cannot exceed the limit.
    wanted = {"_id": hashed, "used_by": None, **unspoilt}
    if _codes().find_one_and_update(wanted, {"$inc": {"tries": 1}}) is None:
        raise InvalidLinkCode()
    used = {"$set": {"used_by": once or ""}}
    if _codes().update_one({**right, "used_by": None}, used).modified_count == 0:
        raise InvalidLinkCode()


def link(resident: str, partner_id: str, external_id: str, *, once: str | None = None) -> Link:
    """Bind an external id to a resident. Raises `AlreadyLinked`, whoever holds it.

    `once` is the request it is made for; `made_by` finds it again.
    """
    hashed = external_hash(partner_id, external_id)
    row: storage.Doc = {
        "_id": new_id("lnk"),
        "resident": resident,
        "partner_id": partner_id,
        "external_hash": hashed,
        "external_sealed": vault.encrypt(external_id, "external"),
        "linked_at": clock.now(),
        "parked_done": False,
        **({"once": once} if once is not None else {}),
    }
    try:
        _links().insert_one(row)
    except DuplicateKeyError:
        raise AlreadyLinked() from None
    return _link(row)


def made_by(once: str | None, resident: str, partner_id: str, external_id: str) -> Link | None:
    """The link a request made, when a crash lost its answer.

    Raises `AlreadyLinked` when the id is linked by anything else.
    """
    hashed = external_hash(partner_id, external_id)
    found = _links().find_one({"partner_id": partner_id, "external_hash": hashed})
    if found is None:
        return None
    if once is None or (found["resident"], found.get("once")) != (resident, once):
        raise AlreadyLinked()
    return _link(found)


def resident_of(partner_id: str, external_id: str) -> str | None:
    wanted = {"partner_id": partner_id, "external_hash": external_hash(partner_id, external_id)}
    found = _links().find_one(wanted, {"resident": 1})
    return str(found["resident"]) if found else None


def residents_of(partner_id: str, external_ids: list[str]) -> dict[str, str]:
    """External id to resident, for a whole batch in one read; unknown ids are left out."""
    hashes = {external_hash(partner_id, external): external for external in external_ids}
    wanted = {"partner_id": partner_id, "external_hash": {"$in": list(hashes)}}
    found = _links().find(wanted, {"external_hash": 1, "resident": 1})
    return {hashes[row["external_hash"]]: row["resident"] for row in found}


def of_resident(resident: str, *, before: str | None, limit: int) -> list[Link]:
    """Newest first."""
    wanted: dict[str, Any] = {"resident": resident}
    if before is not None:
        wanted["_id"] = {"$lt": before}
    return [_link(row) for row in _links().find(wanted).sort("_id", -1).limit(limit)]


def one_of(resident: str, link_id: str) -> Link | None:
    """A link of the resident's own; None for an unknown one and for somebody else's."""
    row = _links().find_one({"_id": link_id, "resident": resident})
    return _link(row) if row else None


def unlink(resident: str, link_id: str) -> bool:
    """End a link; what it earned stays. False if the resident has no such link."""
    return _links().delete_one({"_id": link_id, "resident": resident}).deleted_count == 1


def hashes_of(resident: str) -> list[str]:
    """The keyed hashes of every external id that is linked to a resident."""
    found = _links().find({"resident": resident}, {"external_hash": 1})
    return [row["external_hash"] for row in found]


def unlink_all(resident: str) -> None:
    """End all links of a closed account."""
    _links().delete_many({"resident": resident})


def parked_open(linked_before: datetime) -> list[Link]:
    """Links whose parked rows a crash left uncredited."""
    wanted = {"parked_done": False, "linked_at": {"$lt": linked_before}}
    return [_link(row) for row in _links().find(wanted).limit(SWEEP_MAX)]


def parked_credited(link_id: str) -> None:
    _links().update_one({"_id": link_id}, {"$set": {"parked_done": True}})


def _link(row: storage.Doc) -> Link:
    return Link(
        id=row["_id"],
        resident=row["resident"],
        partner_id=row["partner_id"],
        external_hash=row["external_hash"],
        external_id=vault.decrypt(row["external_sealed"], "external"),
        linked_at=row["linked_at"],
    )
