"""Terms that two operators agree on: proposed by one, approved or declined by another.

Funders and campaigns are documents of this form. `terms` is what was agreed on last (None before
the first time), `proposed` what waits for its second operator. Every step is one guarded write.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import approvals, audit, clock, storage
from accounting.errors import DomainError, NotFound


class ProposalWaiting(DomainError):
    code = "proposal_waiting"
    en = "Another change waits for its approval; approve or decline that first."
    zh = "已有待批准的变更，请先批准或否决该变更。"


class NothingProposed(DomainError):
    code = "nothing_proposed"
    en = "No change waits for approval."
    zh = "没有待批准的变更。"


@dataclass(frozen=True, slots=True)
class Agreed:
    """A document as it stands."""

    id: str
    terms: dict[str, Any] | None
    proposed: dict[str, Any] | None
    revision: int
    asked_by: str
    asked_at: datetime
    reason: str | None
    approved_by: str | None
    approved_at: datetime | None
    created_at: datetime

    @property
    def needs_approval(self) -> bool:
        return self.proposed is not None

    @property
    def shown(self) -> dict[str, Any]:
        """What is agreed on, or what is proposed before anything is."""
        found = self.terms or self.proposed
        assert found is not None, self.id
        return found


def begin(
    collection: "Collection[storage.Doc]",
    doc_id: str,
    proposed: Mapping[str, Any],
    *,
    by: str,
    once: str | None = None,
    terms: Mapping[str, Any] | None = None,
) -> Agreed:
    """A new document; with `terms` one that was agreed on before anybody asked.

    The same `once` again gives the document that was made for it.
    """
    now = clock.now()
    row: storage.Doc = {
        "_id": doc_id,
        "terms": dict(terms) if terms is not None else None,
        "proposed": dict(proposed) if terms is None else None,
        "revision": 0,
        "asked_by": by,
        "asked_at": now,
        "reason": None,
        "approved_by": None,
        "approved_at": None,
        "created_at": now,
        **({"once": once} if once is not None else {}),
    }
    try:
        collection.insert_one(row)
    except DuplicateKeyError:
        if once is not None:
            found = collection.find_one({"once": once})
            assert found is not None, once
            return agreed(found)
        # What was agreed on beforehand may be written down by two at once.
        assert terms is not None, doc_id
    else:
        if terms is None:
            audit.note(by, f"{collection.name} proposed", doc_id, after=dict(proposed))
    return get(collection, doc_id)


def change(
    collection: "Collection[storage.Doc]",
    doc_id: str,
    changes: Mapping[str, Any],
    *,
    by: str,
    reason: str,
) -> Agreed:
    """Propose a change of some terms. Raises `NotFound` and `ProposalWaiting`."""
    before = get(collection, doc_id)
    if before.proposed is not None or before.terms is None:
        raise ProposalWaiting()
    proposed = {**before.terms, **changes}
    done = collection.update_one(
        {"_id": doc_id, "proposed": None, "revision": before.revision},
        {
            "$set": {
                "proposed": proposed,
                "asked_by": by,
                "asked_at": clock.now(),
                "reason": reason,
            }
        },
    )
    if done.modified_count == 0:
        raise ProposalWaiting()
    name = f"{collection.name} change proposed"
    audit.note(by, name, doc_id, reason=reason, before=before.terms, after=proposed)
    return get(collection, doc_id)


def approve(collection: "Collection[storage.Doc]", doc_id: str, *, by: str, alone: bool) -> Agreed:
    """Agree to what is proposed; once nothing is, approving again changes nothing.

    Raises `NotFound` and `SecondOperatorNeeded`.
    """
    found = get(collection, doc_id)
    if found.proposed is None:
        return found
    approvals.check(found.asked_by, by, alone=alone)
    done = collection.update_one(
        {"_id": doc_id, "revision": found.revision, "proposed": found.proposed},
        {
            "$set": {
                "terms": found.proposed,
                "proposed": None,
                "approved_by": by,
                "approved_at": clock.now(),
            },
            "$inc": {"revision": 1},
        },
    )
    if done.modified_count:
        audit.note(
            by,
            f"{collection.name} approved",
            doc_id,
            reason=found.reason,
            before=found.terms,
            after=found.proposed,
        )
    return get(collection, doc_id)


def decline(collection: "Collection[storage.Doc]", doc_id: str, *, by: str, reason: str) -> Agreed:
    """Let a proposed change go. Raises `NotFound` and `NothingProposed`.

    What was never agreed on stays proposed: it does nothing.
    """
    found = get(collection, doc_id)
    if found.proposed is None or found.terms is None:
        raise NothingProposed()
    done = collection.update_one(
        {"_id": doc_id, "revision": found.revision, "proposed": found.proposed},
        {"$set": {"proposed": None}},
    )
    if done.modified_count:
        name = f"{collection.name} change declined"
        audit.note(by, name, doc_id, reason=reason, before=found.proposed, after=found.terms)
    return get(collection, doc_id)


def get(collection: "Collection[storage.Doc]", doc_id: str) -> Agreed:
    """Raises `NotFound`."""
    found = collection.find_one({"_id": doc_id})
    if found is None:
        raise NotFound()
    return agreed(found)


def newest(
    collection: "Collection[storage.Doc]", *, before: str | None, limit: int
) -> list[Agreed]:
    """Documents, newest first, from below an id."""
    wanted = {"_id": {"$lt": before}} if before is not None else {}
    return [agreed(row) for row in collection.find(wanted).sort("_id", -1).limit(limit)]


def agreed(row: Mapping[str, Any]) -> Agreed:
    fields = {name: row[name] for name in Agreed.__slots__ if name != "id"}
    return Agreed(id=row["_id"], **fields)
