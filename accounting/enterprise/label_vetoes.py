"""Vetoes: proven fraud or a major penalty takes a plant's label of a year away, until lifted."""

from collections.abc import Collection as Some
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import mongoengine as me
from pymongo import ReturnDocument
from pymongo.collection import Collection

from accounting import clock, storage
from accounting.errors import NotFound
from accounting.ids import new_id


class Kind(StrEnum):
    DATA_FRAUD = "data_fraud"
    MAJOR_PENALTY = "major_penalty"


@storage.indexed
class LabelVetoDocument(me.Document):
    id = me.StringField(primary_key=True)
    plant = me.StringField(required=True)
    # The key of the request that raised it.
    once = me.StringField()

    meta = {
        "collection": "label_vetoes",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["plant", "_id"]},
            {
                "fields": ["once"],
                "unique": True,
                "partialFilterExpression": {"once": {"$type": "string"}},
            },
        ],
    }


@dataclass(frozen=True, slots=True)
class Veto:
    """`by` and `lifted_by` are the operators; a veto is never deleted."""

    id: str
    plant: str
    year: int
    kind: Kind
    evidence: str
    by: str
    at: datetime
    lifted_by: str | None
    lifted_at: datetime | None


def add(plant_id: str, year: int, kind: Kind, evidence: str, by: str, once: str | None) -> Veto:
    """Raise a veto; what is asked `once` again is the same veto."""
    row: storage.Doc = {
        "_id": new_id("vto"),
        "once": once,
        "plant": plant_id,
        "year": year,
        "kind": kind.value,
        "evidence": evidence,
        "by": by,
        "at": clock.now(),
        "lifted_by": None,
        "lifted_at": None,
    }
    if not storage.insert_new(_rows(), [row]):
        found = _rows().find_one({"once": once})
        assert found is not None, "a veto is never deleted"
        return _veto(found)
    return _veto(row)


def get(plant_id: str, veto_id: str) -> Veto:
    """Raises `NotFound`."""
    found = _rows().find_one({"_id": veto_id, "plant": plant_id})
    if found is None:
        raise NotFound
    return _veto(found)


def lift(plant_id: str, veto_id: str, by: str) -> Veto:
    """Lift a veto; who did it first stays. Raises `NotFound`."""
    changed = _rows().find_one_and_update(
        {"_id": veto_id, "plant": plant_id, "lifted_at": None},
        {"$set": {"lifted_at": clock.now(), "lifted_by": by}},
        return_document=ReturnDocument.AFTER,
    )
    return _veto(changed) if changed else get(plant_id, veto_id)


def listed(plant_id: str, *, before: str | None, limit: int) -> list[Veto]:
    """All vetoes of a plant, lifted ones too, newest first."""
    wanted: storage.Doc = {"plant": plant_id}
    if before is not None:
        wanted["_id"] = {"$lt": before}
    return [_veto(row) for row in _rows().find(wanted).sort("_id", -1).limit(limit)]


def standing(plant_id: str, years: Some[int]) -> Veto | None:
    """The newest veto on one of these years that was not lifted."""
    wanted = {"plant": plant_id, "year": {"$in": list(years)}, "lifted_at": None}
    found = _rows().find_one(wanted, sort=[("_id", -1)])
    return _veto(found) if found else None


def _veto(row: storage.Doc) -> Veto:
    names = [name for name in Veto.__slots__ if name not in ("id", "kind")]
    return Veto(id=row["_id"], kind=Kind(row["kind"]), **{name: row[name] for name in names})


def _rows() -> "Collection[storage.Doc]":
    return storage.strong(LabelVetoDocument._get_collection())
