"""Open accounts by what the account itself says: district, language, when its owner was there.

Who wants no marketing is in no such group; only the count says how many those are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from pymongo.collection import Collection

from accounting import storage
from accounting.accounts import OPEN, ResidentDocument

INDEX = "target_group"


@dataclass(frozen=True, slots=True)
class AccountFilter:
    """Empty and None ask for nothing. `seen_from` is included, `seen_before` is not."""

    districts: tuple[str, ...] = ()
    language: str | None = None
    seen_from: datetime | None = None
    seen_before: datetime | None = None

    def condition(self, *, willing: bool) -> dict[str, Any]:
        """Of those who want marketing, or of those who do not."""
        wanted: dict[str, Any] = {"status": OPEN, "push.marketing": willing}
        if self.districts:
            wanted["district"] = {"$in": list(self.districts)}
        if self.language is not None:
            wanted["language"] = self.language
        seen = {"$gte": self.seen_from, "$lt": self.seen_before}
        if bounds := {name: at for name, at in seen.items() if at is not None}:
            wanted["seen_at"] = bounds
        return wanted


class Counted(NamedTuple):
    """How many may be written to, and how many are left out because they want no marketing."""

    people: int
    opted_out: int


def count(which: AccountFilter) -> Counted:
    """Count a group in the index, without reading an account."""
    people, opted_out = (
        _accounts().count_documents(which.condition(willing=willing), hint=INDEX)
        for willing in (True, False)
    )
    return Counted(people, opted_out)


def after(which: AccountFilter, resident_id: str, limit: int) -> list[str]:
    """The next of a group in the order of their ids; "" begins."""
    wanted = {**which.condition(willing=True), "_id": {"$gt": resident_id}}
    return [row["_id"] for row in _accounts().find(wanted, {"_id": 1}).sort("_id", 1).limit(limit)]


def among(which: AccountFilter, residents: Sequence[str]) -> list[str]:
    """Those of some residents who are in a group."""
    wanted = {**which.condition(willing=True), "_id": {"$in": list(residents)}}
    return [row["_id"] for row in _accounts().find(wanted, {"_id": 1})]


def _accounts() -> "Collection[storage.Doc]":
    return storage.strong(ResidentDocument._get_collection())
