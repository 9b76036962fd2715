"""Devices of residents: registration tokens, kept encrypted and found by keyed hash.

A token belongs to one resident at a time: when a phone changes hands, registering moves it.
"""

from dataclasses import dataclass
from datetime import datetime

import mongoengine as me
from pymongo.collection import Collection

from accounting import clock, storage, vault
from accounting.ids import new_id

PER_RESIDENT_MAX = 20
PLATFORMS = ("android", "ios", "harmony", "web")


@storage.indexed
class DeviceDocument(me.Document):
    id = me.StringField(primary_key=True)
    resident = me.StringField(required=True)
    token_hash = me.StringField(required=True)
    token_sealed = me.BinaryField(required=True)
    platform = me.StringField(required=True)
    seen_at = me.DateTimeField(required=True)
    retired_at = me.DateTimeField()

    meta = {
        "collection": "devices",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["token_hash"], "unique": True},
            {"fields": ["resident", "retired_at"]},
        ],
    }


@dataclass(frozen=True, slots=True)
class Device:
    id: str
    resident: str
    token: str
    platform: str
    seen_at: datetime


def _devices() -> "Collection[storage.Doc]":
    return storage.strong(DeviceDocument._get_collection())


def register(resident: str, token: str, platform: str) -> Device:
    """Register a token for a resident, taking it over from whoever had it."""
    found = _devices().find_one_and_update(
        {"token_hash": vault.keyed_hash("device", token)},
        {
            "$set": {
                "resident": resident,
                "platform": platform,
                "seen_at": clock.now(),
                "retired_at": None,
            },
            "$setOnInsert": {"_id": new_id("dev"), "token_sealed": vault.encrypt(token, "device")},
        },
        upsert=True,
        return_document=True,
    )
    assert found is not None, "an upsert returns the document"
    return _device(found)


def forget(resident: str, device_id: str) -> bool:
    """Remove a device; False if the resident has no such one."""
    return _devices().delete_one({"_id": device_id, "resident": resident}).deleted_count == 1


def forget_all(resident: str) -> None:
    """Remove every device of a closed account."""
    _devices().delete_many({"resident": resident})


def live(resident: str) -> list[Device]:
    wanted = {"resident": resident, "retired_at": None}
    found = _devices().find(wanted).sort("seen_at", -1).limit(PER_RESIDENT_MAX)
    return [_device(row) for row in found]


def retire(device_id: str) -> None:
    """The provider says this token is dead: never use it again."""
    _devices().update_one({"_id": device_id}, {"$set": {"retired_at": clock.now()}})


def _device(row: storage.Doc) -> Device:
    return Device(
        id=row["_id"],
        resident=row["resident"],
        token=vault.decrypt(row["token_sealed"], "device"),
        platform=row["platform"],
        seen_at=row["seen_at"],
    )
