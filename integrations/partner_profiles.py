"""Mapping profiles of partners as versions: nothing is changed, a new version is added.

A file job names the version it was sent with, so a change in the middle of a file has no effect.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import mongoengine as me
import simplejson
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import clock, storage
from accounting.errors import AccountBusy, ValidationFailed
from accounting.ids import new_id
from integrations import mapping
from integrations.mapping import Profile

TEXT_BYTES_MAX = 256 * 1024
ATTEMPTS_MAX = 20


@storage.indexed
class PartnerProfileDocument(me.Document):
    """One version. The profile is kept as JSON text: a column may be called what no key may."""

    id = me.StringField(primary_key=True)
    partner = me.StringField(required=True)
    name = me.StringField(required=True)
    version = me.IntField(required=True)
    profile = me.StringField(required=True)
    reason = me.StringField(required=True)
    by = me.StringField(required=True)
    at = me.DateTimeField(required=True)
    # The request that made it, so that a retry makes no other.
    once = me.StringField()

    meta = {
        "collection": "partner_profiles",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["partner", "name", "version"], "unique": True},
            {"fields": ["once"], "unique": True, "sparse": True},
        ],
    }


@dataclass(frozen=True, slots=True)
class Version:
    """One version of one profile of one partner; `raw` is the profile as the operator sent it."""

    id: str
    partner: str
    name: str
    version: int
    raw: dict[str, Any]
    reason: str
    by: str
    at: datetime

    @property
    def profile(self) -> Profile:
        return mapping.parse(self.raw)


def _versions() -> "Collection[storage.Doc]":
    return storage.strong(PartnerProfileDocument._get_collection())


def add(
    partner: str, raw: dict[str, Any], *, reason: str, by: str, once: str | None = None
) -> Version:
    """Keep a checked profile as the next version of its name; `once` names the wish.

    Raises `ValidationFailed` if it is too large, and `AccountBusy`.
    """
    text = simplejson.dumps(raw, ensure_ascii=False, use_decimal=True, separators=(",", ":"))
    if len(text.encode()) > TEXT_BYTES_MAX:
        raise ValidationFailed("/profile", "Larger than 256 KiB.", "映射配置超过 256 KiB。")
    for attempt in range(ATTEMPTS_MAX):
        newest = latest(partner, raw["name"])
        row: storage.Doc = {
            "_id": new_id("prf"),
            "partner": partner,
            "name": raw["name"],
            "version": newest.version + 1 if newest else 1,
            "profile": text,
            "reason": reason,
            "by": by,
            "at": clock.now(),
        }
        try:
            _versions().insert_one(row | ({"once": once} if once is not None else {}))
            return _version(row)
        except DuplicateKeyError:
            made = _versions().find_one({"once": once}) if once is not None else None
            if made is not None:
                return _version(made)
            storage.pause(attempt)
    raise AccountBusy(retry_after=1)


def latest(partner: str, name: str) -> Version | None:
    """The newest version of a name."""
    row = _versions().find_one({"partner": partner, "name": name}, sort=[("version", -1)])
    return None if row is None else _version(row)


def get(partner: str, name: str, version: int) -> Version:
    """A version that there is."""
    row = _versions().find_one({"partner": partner, "name": name, "version": version})
    assert row is not None, "versions are never deleted"
    return _version(row)


def fixed(partner: str, name: str, version: int) -> Profile:
    """The profile a job was sent with."""
    return get(partner, name, version).profile


def listed(partner: str, *, after: tuple[str, int] | None, limit: int) -> list[Version]:
    """All versions by name, the oldest first; `after` is (name, version) of the last one seen."""
    wanted: dict[str, Any] = {"partner": partner}
    if after is not None:
        name, version = after
        wanted["$or"] = [{"name": {"$gt": name}}, {"name": name, "version": {"$gt": version}}]
    found = _versions().find(wanted).sort([("name", 1), ("version", 1)]).limit(limit)
    return [_version(row) for row in found]


def _version(row: storage.Doc) -> Version:
    return Version(
        id=row["_id"],
        partner=row["partner"],
        name=row["name"],
        version=row["version"],
        raw=json.loads(row["profile"], parse_float=Decimal),
        reason=row["reason"],
        by=row["by"],
        at=row["at"],
    )
