"""Devices of residents: registration tokens, kept encrypted and found by keyed hash.

A token belongs to one resident at a time: when a phone changes hands, registering moves it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import mongoengine as me
from pymongo.collection import Collection

from accounting import clock, storage, vault
from accounting.ids import new_id

PER_RESIDENT_MAX = 20
# The app registers its token at each start. One that was not seen for so long is gone: FCM calls
# a token expired after 270 idle days.
IDLE = timedelta(days=270)
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
            {"fields": ["seen_at"]},
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
    """The devices to push to, the one seen last first."""
    return live_of([resident])[resident]


def live_of(residents: Sequence[str]) -> dict[str, list[Device]]:
    """`live` for many residents, in one read."""
    wanted = {
        "resident": {"$in": list(residents)},
        "retired_at": None,
        "seen_at": {"$gt": clock.now() - IDLE},
    }
    found: dict[str, list[Device]] = {resident: [] for resident in residents}
    for row in _devices().find(wanted).sort("seen_at", -1):
        if len(found[row["resident"]]) < PER_RESIDENT_MAX:
            found[row["resident"]].append(_device(row))
    return found


def retire(device_ids: Sequence[str], tried_at: datetime) -> None:
    """The provider says these tokens are dead: never use them again.

    One that was registered anew since it was tried lives.
    """
    wanted = {"_id": {"$in": list(device_ids)}, "seen_at": {"$lte": tried_at}}
    _devices().update_many(wanted, {"$set": {"retired_at": clock.now()}})


def drop_idle(now: datetime) -> int:
    """Delete tokens that nobody has shown us for 270 days, the retired ones too; how many."""
    return _devices().delete_many({"seen_at": {"$lte": now - IDLE}}).deleted_count


def _device(row: storage.Doc) -> Device:
    return Device(
        id=row["_id"],
        resident=row["resident"],
        token=vault.decrypt(row["token_sealed"], "device"),
        platform=row["platform"],
        seen_at=row["seen_at"],
    )
