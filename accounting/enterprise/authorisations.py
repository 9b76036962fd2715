"""Which banks a plant lets read its carbon credit report, and the record of every read they tried.

An authorisation names one bank and ends at a date. It is looked at on each read, so taking it back
works on the next one. Nothing here is deleted: the record is what shows that a read was allowed.
"""

from dataclasses import dataclass
from datetime import datetime

import mongoengine as me
from pymongo import ReturnDocument
from pymongo.collection import Collection

from accounting import clock, storage
from accounting.enterprise import plants
from accounting.enterprise.plants import Plant
from accounting.errors import NotFound
from accounting.ids import new_id


@storage.indexed
class AuthorisationDocument(me.Document):
    id = me.StringField(primary_key=True)
    plant = me.StringField(required=True)
    bank_id = me.StringField(required=True)
    expires_at = me.DateTimeField(required=True)
    # The key of the request that gave it.
    once = me.StringField()

    meta = {
        "collection": "plant_authorisations",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["plant", "_id"]},
            {"fields": ["plant", "bank_id", "expires_at"]},
            {
                "fields": ["once"],
                "unique": True,
                "partialFilterExpression": {"once": {"$type": "string"}},
            },
        ],
    }


@storage.indexed
class PlantAccessDocument(me.Document):
    """One read a bank made or tried. Append-only, kept at least three years."""

    id = me.StringField(primary_key=True)
    plant = me.StringField()
    bank_id = me.StringField(required=True)
    uscc = me.StringField(required=True)
    allowed = me.BooleanField(required=True)
    at = me.DateTimeField(required=True)

    meta = {
        "collection": "plant_access",
        "auto_create_index": False,
        "indexes": [{"fields": ["plant", "_id"], "sparse": True}, {"fields": ["bank_id", "_id"]}],
    }


@dataclass(frozen=True, slots=True)
class Authorisation:
    """`signatory` signed for the plant; `letter_sha256` is the digest of the signed letter."""

    id: str
    plant: str
    bank_id: str
    purpose: str
    signatory: str
    letter_sha256: str
    by: str
    at: datetime
    expires_at: datetime
    withdrawn_at: datetime | None


@dataclass(frozen=True, slots=True)
class Access:
    id: str
    bank_id: str
    allowed: bool
    at: datetime


def grant(
    plant_id: str,
    bank_id: str,
    *,
    purpose: str,
    signatory: str,
    letter_sha256: str,
    expires_at: datetime,
    by: str,
    once: str | None,
) -> Authorisation:
    """Let a bank read; what is asked `once` again is the same authorisation."""
    row: storage.Doc = {
        "_id": new_id("aut"),
        "once": once,
        "plant": plant_id,
        "bank_id": bank_id,
        "purpose": purpose,
        "signatory": signatory,
        "letter_sha256": letter_sha256,
        "by": by,
        "at": clock.now(),
        "expires_at": expires_at,
        "withdrawn_at": None,
    }
    if not storage.insert_new(_rows(), [row]):
        found = _rows().find_one({"once": once})
        assert found is not None, "an authorisation is never deleted"
        return _authorisation(found)
    return _authorisation(row)


def withdraw(plant_id: str, authorisation_id: str) -> Authorisation:
    """End it now; when it was first taken back stays. Raises `NotFound`."""
    wanted = {"_id": authorisation_id, "plant": plant_id}
    changed = _rows().find_one_and_update(
        {**wanted, "withdrawn_at": None},
        {"$set": {"withdrawn_at": clock.now()}},
        return_document=ReturnDocument.AFTER,
    ) or _rows().find_one(wanted)
    if changed is None:
        raise NotFound
    return _authorisation(changed)


def listed(plant_id: str, *, before: str | None, limit: int) -> list[Authorisation]:
    """Every authorisation a plant gave, ended ones too, newest first."""
    found = _rows().find(_page(plant_id, before)).sort("_id", -1).limit(limit)
    return [_authorisation(row) for row in found]


def read(bank_id: str, uscc: str) -> Plant | None:
    """The plant behind a bank's read, None where it may see nothing; recorded before it answers.

    A plant that is unknown and one that gave no leave cost and look the same.
    """
    plant, now = plants.plant_by_uscc(uscc), clock.now()
    wanted = {
        "plant": plant.id if plant else "",
        "bank_id": bank_id,
        "expires_at": {"$gt": now},
        "withdrawn_at": None,
    }
    allowed = _rows().find_one(wanted, {"_id": 1}) is not None
    row: storage.Doc = {
        "_id": new_id("pac"), "bank_id": bank_id, "uscc": uscc, "allowed": allowed, "at": now,
    }  # fmt: skip
    if plant is not None:
        row["plant"] = plant.id
    _accesses().insert_one(row)
    return plant if allowed else None


def access_log(plant_id: str, *, before: str | None, limit: int) -> list[Access]:
    """Every read of this plant that a bank made or tried, newest first."""
    found = _accesses().find(_page(plant_id, before)).sort("_id", -1).limit(limit)
    return [Access(row["_id"], row["bank_id"], row["allowed"], row["at"]) for row in found]


def _page(plant_id: str, before: str | None) -> storage.Doc:
    return {"plant": plant_id, **({} if before is None else {"_id": {"$lt": before}})}


def _authorisation(row: storage.Doc) -> Authorisation:
    names = [name for name in Authorisation.__slots__ if name != "id"]
    return Authorisation(id=row["_id"], **{name: row[name] for name in names})


def _rows() -> "Collection[storage.Doc]":
    return storage.strong(AuthorisationDocument._get_collection())


def _accesses() -> storage.AppendOnly:
    return storage.AppendOnly(PlantAccessDocument._get_collection())
