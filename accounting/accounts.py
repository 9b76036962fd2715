"""Residents: an opaque id, the few things they told us, and the one place that knows their phone.

Phone numbers and names are encrypted and found by keyed hash. Everything else in the system uses
the opaque id, which outlives the account: the book keeps it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import clock, storage, vault
from accounting.ids import new_id

OPEN, CLOSED = "open", "closed"
# Longer than any request or task runs: after it nothing that began before the closing still writes.
ERASE_AGAIN_AFTER = timedelta(minutes=5)
LEAVING_MAX = 200
# After so long a phone number may be somebody else's.
IDLE = timedelta(days=90)
SEEN_STEP = timedelta(days=1)
SET_ASIDE_MAX = 10
CLAIMS_MAX = 5
PERSONAL = (
    "phone_hash",
    "former_phone_hash",
    "seen_at",
    "claims_made",
    "phone_sealed",
    "firebase_hash",
    "name_sealed",
    "real_name_hash",
    "real_name_tries",
    "district",
    "language",
    "quiet_hours",
    "push",
)
DEFAULT_QUIET_HOURS = {"from": "22:00", "to": "07:00"}
DEFAULT_PUSH = {"service": True, "marketing": True}


@storage.indexed
class ResidentDocument(me.Document):
    id = me.StringField(primary_key=True)
    phone_hash = me.StringField()
    phone_sealed = me.BinaryField()
    firebase_hash = me.StringField()
    name_sealed = me.BinaryField()
    # What a bank has matched; see `accounting/real_names.py`.
    real_name_hash = me.StringField()
    real_name_tries = me.IntField()
    district = me.StringField()
    language = me.StringField(required=True)
    quiet_hours = me.DictField()
    push = me.DictField()
    status = me.StringField(required=True)
    created_at = me.DateTimeField(required=True)
    # The last sign-in or refresh, to the day.
    seen_at = me.DateTimeField()
    # The number of an account that was idle when somebody proved that number again.
    former_phone_hash = me.StringField()
    claims_made = me.IntField()
    closed_at = me.DateTimeField()
    # When what is kept about a closed account elsewhere is to be erased (again); the sweep looks.
    erase_at = me.DateTimeField()

    meta = {
        "collection": "residents",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["phone_hash"], "unique": True, "sparse": True},
            {"fields": ["firebase_hash"], "unique": True, "sparse": True},
            {"fields": ["erase_at"], "sparse": True},
            {"fields": ["former_phone_hash"], "sparse": True},
            # Target groups are counted here without reading an account; see `account_filters`.
            {
                "fields": ["status", "push.marketing", "district", "language", "seen_at"],
                "name": "target_group",
            },
        ],
    }


@dataclass(frozen=True, slots=True)
class Resident:
    id: str
    display_name: str | None
    district: str | None
    language: str
    quiet_hours: dict[str, str] | None
    push: dict[str, bool] = field(default_factory=lambda: dict(DEFAULT_PUSH))


def _collection() -> "Collection[storage.Doc]":
    return storage.strong(ResidentDocument._get_collection())


def by_phone(phone: str) -> str:
    """The resident of a proven phone number, opened on first sight. `phone` is E.164.

    A number may have changed hands: an account idle for 90 days is not inherited by whoever has its
    number now. It is set aside, and `take_back` returns it to who proves to be its owner.
    """
    return _open("phone_hash", vault.keyed_hash("phone", phone), vault.encrypt(phone, "phone"))


def by_firebase(uid: str) -> str:
    """The resident of a verified Firebase user, opened on first sight."""
    return _open("firebase_hash", vault.keyed_hash("firebase", uid), None)


def _open(index: str, hashed: str, phone_sealed: bytes | None) -> str:
    now = clock.now()
    found = _collection().find_one({index: hashed}, {"seen_at": 1})
    if found is not None:
        if index != "phone_hash" or found["seen_at"] >= now - IDLE:
            return str(found["_id"])
        _collection().update_one(
            {"_id": found["_id"], "phone_hash": hashed, "seen_at": found["seen_at"]},
            {"$set": {"former_phone_hash": hashed}, "$unset": {"phone_hash": ""}},
        )
    row: dict[str, Any] = {
        "_id": new_id("res"),
        index: hashed,
        "language": "zh",
        "quiet_hours": dict(DEFAULT_QUIET_HOURS),
        "push": dict(DEFAULT_PUSH),
        "status": OPEN,
        "created_at": now,
        "seen_at": now,
    }
    if phone_sealed is not None:
        row["phone_sealed"] = phone_sealed
    try:
        _collection().insert_one(row)
    except DuplicateKeyError:
        # Two first sign-ins at once: the other one opened the account.
        other = _collection().find_one({index: hashed}, {"_id": 1})
        assert other is not None, "a resident is never deleted while its phone is known"
        return str(other["_id"])
    return str(row["_id"])


def seen(resident_id: str) -> None:
    """Note that a resident is there; one write a day at most."""
    now = clock.now()
    _collection().update_one(
        {"_id": resident_id, "seen_at": {"$lt": now - SEEN_STEP}}, {"$set": {"seen_at": now}}
    )


def set_aside(resident_id: str) -> list[str]:
    """The idle accounts whose number this resident has now, the newest first."""
    mine = _collection().find_one({"_id": resident_id, "status": OPEN}, {"phone_hash": 1})
    if mine is None or "phone_hash" not in mine:
        return []
    wanted = {"former_phone_hash": mine["phone_hash"], "status": OPEN}
    found = _collection().find(wanted, {"_id": 1}).sort("_id", -1)
    return [row["_id"] for row in found.limit(SET_ASIDE_MAX)]


def count_claim(resident_id: str) -> bool:
    """Count one try to prove who one is; False when there were too many."""
    counted = _collection().update_one(
        {"_id": resident_id, "status": OPEN, "claims_made": {"$not": {"$gte": CLAIMS_MAX}}},
        {"$inc": {"claims_made": 1}},
    )
    return counted.modified_count == 1


def take_back(resident_id: str, former_id: str) -> None:
    """Give an account that was set aside its number back; the account opened meanwhile closes.

    Safe to repeat. After a crash in between the number belongs to nobody: the next sign-in opens an
    account, from which the same can be done.
    """
    former = _collection().find_one({"_id": former_id, "status": OPEN})
    if former is None or "former_phone_hash" not in former:
        return
    close(resident_id)
    _collection().update_one(
        {"_id": former_id, "former_phone_hash": former["former_phone_hash"]},
        {
            "$set": {"phone_hash": former["former_phone_hash"], "seen_at": clock.now()},
            "$unset": {"former_phone_hash": ""},
        },
    )


def get(resident_id: str) -> Resident | None:
    found = _collection().find_one({"_id": resident_id, "status": OPEN})
    return _resident(found) if found else None


def get_many(residents: Sequence[str]) -> dict[str, Resident]:
    """Those of some residents whose accounts are open, by id."""
    found = _collection().find({"_id": {"$in": list(residents)}, "status": OPEN})
    return {row["_id"]: _resident(row) for row in found}


def known(resident_id: str) -> bool:
    """Whether there ever was such a resident; a closed account still has its book."""
    return _collection().find_one({"_id": resident_id}, {"_id": 1}) is not None


def change(resident_id: str, changes: dict[str, Any]) -> Resident | None:
    """Change preferences; keys are fields of `Resident`. The display name is sealed.

    None if the account was closed meanwhile.
    """
    fields = dict(changes)
    if "display_name" in fields:
        name = fields.pop("display_name")
        fields["name_sealed"] = vault.encrypt(name, "name") if name is not None else None
    push = fields.pop("push", {})
    fields |= {f"push.{category}": wanted for category, wanted in push.items()}
    if fields:
        _collection().update_one({"_id": resident_id, "status": OPEN}, {"$set": fields})
    return get(resident_id)


def contact(resident_id: str) -> dict[str, Any]:
    """The phone we know, whether a Firebase user is, the last day seen: for the resident alone."""
    found = _collection().find_one({"_id": resident_id, "status": OPEN}) or {}
    sealed = found.get("phone_sealed")
    return {
        "phone": vault.decrypt(sealed, "phone") if sealed else None,
        "firebase_user": "known" if found.get("firebase_hash") else None,
        "seen_at": found.get("seen_at"),
    }


def close(resident_id: str) -> None:
    """Close an account: phone, name and preferences go, and its id says nothing any more.

    From here on the same phone opens a new account. What other places keep is erased by whoever
    closes, and once more when `leaving` names it: something may have been under way.
    """
    now = clock.now()
    _collection().update_one(
        {"_id": resident_id, "status": OPEN},
        {
            "$set": {
                "status": CLOSED,
                "closed_at": now,
                "erase_at": now + ERASE_AGAIN_AFTER,
            },
            "$unset": dict.fromkeys(PERSONAL, ""),
        },
    )


def leaving(now: datetime) -> list[str]:
    """Closed accounts of which everything is to be erased once more."""
    found = _collection().find({"erase_at": {"$lte": now}}, {"_id": 1}).sort("erase_at", 1)
    return [row["_id"] for row in found.limit(LEAVING_MAX)]


def left(resident_id: str) -> None:
    """Nothing of a closed account is left to erase."""
    _collection().update_one({"_id": resident_id}, {"$unset": {"erase_at": ""}})


def count() -> int:
    """About how many residents there ever were."""
    return _collection().estimated_document_count()


def ids_after(resident_id: str, limit: int) -> list[str]:
    """The next residents in the order of their ids, closed accounts among them; "" begins."""
    found = _collection().find({"_id": {"$gt": resident_id}}, {"_id": 1}).sort("_id", 1)
    return [row["_id"] for row in found.limit(limit)]


def every_nth_id(step: int) -> list[str]:
    """Ids that cut all residents into ranges of `step`: the last one of each range but the last."""
    found: list[str] = []
    while True:
        wanted = {"_id": {"$gt": found[-1] if found else ""}}
        at = _collection().find(wanted, {"_id": 1}).sort("_id", 1).skip(step - 1).limit(2)
        ids = [row["_id"] for row in at]
        if len(ids) < 2:
            return found
        found.append(ids[0])


def sample(seed: int, size: int) -> list[str]:
    """Up to `size` open accounts, each as likely as any other; the same seed gives the same ones.

    Keyed hashes of phones stand in no order but a random one, so those next to each other there are
    a fair sample, and finding them reads no more than is answered.
    """
    start = vault.keyed_hash("sample", str(seed))
    found: list[tuple[bool, str, str]] = []
    for index, others in (("phone_hash", {}), ("firebase_hash", {"phone_hash": None})):
        # Beyond the last one it goes on at the first.
        for wrapped, place in ((False, {"$gte": start}), (True, {"$lt": start})):
            wanted = {index: place, "status": OPEN, **others}
            rows = _collection().find(wanted, {index: 1}).sort(index, 1).limit(size)
            found += [(wrapped, row[index], row["_id"]) for row in rows]
    return [resident_id for _, _, resident_id in sorted(found)[:size]]


def created_at(resident_id: str) -> datetime:
    found = _collection().find_one({"_id": resident_id}, {"created_at": 1})
    assert found is not None, resident_id
    moment: datetime = found["created_at"]
    return moment


def placed(residents: Sequence[str]) -> list[tuple[str, str | None, datetime]]:
    """Id, district and when they joined, of those residents who have an account."""
    wanted = {"_id": {"$in": list(residents)}}
    found = _collection().find(wanted, {"district": 1, "created_at": 1})
    return [(row["_id"], row.get("district"), row["created_at"]) for row in found]


def _resident(row: storage.Doc) -> Resident:
    sealed = row.get("name_sealed")
    return Resident(
        id=row["_id"],
        display_name=vault.decrypt(sealed, "name") if sealed else None,
        district=row.get("district"),
        language=row["language"],
        quiet_hours=row["quiet_hours"],
        push=row["push"],
    )
