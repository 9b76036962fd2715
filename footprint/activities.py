"""Activities: what residents and partners reported, stored once, and what became of it.

A fact is unique on `(source, event_id)` for ever. It is `received` until the book has its entry,
then `settled`; a retry or the sweeper resumes a received one. The entry is the truth, the outcome
beside the fact a copy for reading.

Facts of a large batch have no copy: they are stored as `booked`, and whoever reads one gets what
its entry says. The copy is written when something else than that entry has the last word (a
reversal, a merger), or when it is looked for by itself (a rejection).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

import mongoengine as me
from pymongo import UpdateOne
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from accounting import book, events, storage
from accounting.book import Entry
from accounting.errors import DomainError
from accounting.events import Happening, Type
from accounting.ids import new_id
from footprint import methodology

RECEIVED, SETTLED, BOOKED = "received", "settled", "booked"
# Outcomes that are counted by the day, so that they are written beside the fact.
COUNTED = ("rejected",)


class SourceEventConflict(DomainError):
    """Facts: source_event_id."""

    code = "source_event_conflict"
    en = "source_event_id {source_event_id} was already sent with other content."
    zh = "source_event_id {source_event_id} 已用于内容不同的上报。"


@storage.indexed
class ActivityDocument(me.Document):
    id = me.StringField(primary_key=True)
    resident = me.StringField(required=True)
    source = me.StringField(required=True)
    event_id = me.StringField(required=True)
    fingerprint = me.StringField(required=True)
    behaviour = me.StringField(required=True)
    quantity = me.StringField(required=True)
    start = me.DateTimeField(required=True)
    end = me.DateTimeField()
    attributes = me.DictField()
    evidence = me.StringField(required=True)
    methodology = me.StringField(required=True)
    received_at = me.DateTimeField(required=True)
    verdict = me.StringField()
    reasons = me.ListField(me.StringField())
    claim = me.DictField()
    line = me.StringField()
    state = me.StringField(required=True)
    status = me.StringField()
    mg = me.IntField()
    points = me.IntField()
    mature_at = me.DateTimeField()
    merged_into = me.StringField()
    merged_from = me.ListField(me.StringField())
    same = me.StringField()
    seq = me.IntField()
    # The file it came with, for taking a whole file back.
    job = me.StringField()

    meta = {
        "collection": "activities",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["source", "event_id"], "unique": True},
            # Ids sort by time of arrival: newest first for a resident is this index backwards.
            {"fields": ["resident", "_id"]},
            # What was refused lately, and nothing else.
            {
                "fields": ["status", "received_at"],
                "name": "rejected",
                "partialFilterExpression": {"status": "rejected"},
            },
            {
                "fields": ["job", "_id"],
                "partialFilterExpression": {"job": {"$gt": ""}},
            },
            {
                "fields": ["received_at"],
                "name": "unsettled",
                "partialFilterExpression": {"state": RECEIVED},
            },
        ],
    }


@dataclass(frozen=True, slots=True)
class Activity:
    """One stored activity. `quantity` is decimal text; `line` and the claim are keyed hashes.

    `job` is the file job that brought it first; what only named it again is not here.
    `merged_into` is the record credited in its stead, `merged_from` are those it stands for.
    """

    id: str
    resident: str
    source: str
    event_id: str
    fingerprint: str
    behaviour: str
    quantity: str
    start: datetime
    end: datetime | None
    attributes: dict[str, Any]
    evidence: str
    methodology: str
    received_at: datetime
    verdict: str | None
    reasons: tuple[str, ...]
    claim: dict[str, str] | None
    line: str | None
    state: str = RECEIVED
    status: str | None = None
    mg: int = 0
    points: int = 0
    mature_at: datetime | None = None
    merged_into: str | None = None
    seq: int | None = None
    job: str | None = None
    merged_from: tuple[str, ...] = ()
    same: str | None = None

    @property
    def amount(self) -> Decimal:
        return Decimal(self.quantity)

    @property
    def over(self) -> datetime:
        return self.end or self.start

    def status_at(self, now: datetime) -> str:
        """The status to show: credited points that are not mature yet are `pending`."""
        assert self.status is not None, f"{self.id} is not settled"
        if self.status == "credited" and self.mature_at is not None and self.mature_at > now:
            return "pending"
        return self.status


_STORED = tuple(name for name in Activity.__slots__ if name != "id")
# What a stored fact says even where that is an empty text or nothing.
_ALWAYS = frozenset(
    {"resident", "source", "event_id", "fingerprint", "behaviour", "quantity", "start", "state"}
)
# What it leaves out and `Activity` has no default for.
_NOTHING: dict[str, Any] = {"end": None, "verdict": None, "claim": None, "line": None}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an activity; `seq` is the entry that says so, if there is one."""

    status: str
    reasons: tuple[str, ...] = ()
    mg: int = 0
    points: int = 0
    mature_at: datetime | None = None
    merged_into: str | None = None
    seq: int | None = None
    evidence: str | None = None


def _collection() -> "Collection[storage.Doc]":
    # Local reads: an outcome is copied without waiting for the majority (see `settle`).
    return storage.strong(ActivityDocument._get_collection()).with_options(
        read_concern=ReadConcern("local")
    )


def _copies() -> "Collection[storage.Doc]":
    """For outcomes, which the book can give again: they do not wait for the journal."""
    return ActivityDocument._get_collection().with_options(write_concern=WriteConcern(w=1))


def receive(fact: Activity) -> tuple[Activity, bool]:
    """Store a fact once; returns what is stored and whether it was new.

    Raises `SourceEventConflict` when the same source sent this event id with other content.
    """
    try:
        _collection().insert_one(_document(fact))
    except DuplicateKeyError:
        earlier = _collection().find_one({"source": fact.source, "event_id": fact.event_id})
        assert earlier is not None, "activities are never deleted"
        if earlier["fingerprint"] != fact.fingerprint:
            raise SourceEventConflict(source_event_id=fact.event_id) from None
        return _activity(earlier), False
    return fact, True


def receive_many(
    facts: Sequence[Activity], *, booked: bool = False
) -> list[tuple[Activity, bool] | SourceEventConflict]:
    """Store facts once in two round trips; what `receive` returns or raises for each, in order.

    With `booked` the outcomes of those that are not judged yet stay in the book. Somebody else has
    to remember them until they have one, see `underway`.
    """
    if booked:
        facts = [fact if fact.verdict else replace(fact, state=BOOKED) for fact in facts]
    fresh = set(storage.insert_new(_collection(), [_document(fact) for fact in facts]))
    there = [fact for place, fact in enumerate(facts) if place not in fresh]
    earlier = {
        (source, event_id): activity
        for source in {fact.source for fact in there}
        for event_id, activity in by_events(
            source, [fact.event_id for fact in there if fact.source == source]
        ).items()
    }
    results: list[tuple[Activity, bool] | SourceEventConflict] = []
    for place, fact in enumerate(facts):
        if place in fresh:
            results.append((fact, True))
            continue
        stored = earlier[fact.source, fact.event_id]
        same = stored.fingerprint == fact.fingerprint
        results.append(
            (stored, False) if same else SourceEventConflict(source_event_id=fact.event_id)
        )
    return results


def _document(fact: Activity) -> storage.Doc:
    """A fact as it lies in MongoDB; what it has nothing of is left out."""
    document: storage.Doc = {"_id": fact.id}
    for name in _STORED:
        value = getattr(fact, name)
        if value or name in _ALWAYS:
            document[name] = list(value) if type(value) is tuple else value
    return document


def rejected_between(begins: datetime, ends: datetime) -> dict[str, int]:
    """How many reports that arrived between two instants stand rejected, by reason."""
    found = _collection().aggregate(
        [
            {"$match": {"status": "rejected", "received_at": {"$gte": begins, "$lt": ends}}},
            {"$unwind": "$reasons"},
            {"$group": {"_id": "$reasons", "count": {"$sum": 1}}},
        ]
    )
    return {row["_id"]: row["count"] for row in found}


def settle(activity: Activity, outcome: Outcome) -> Activity:
    """Write the outcome beside the fact. Safe to repeat: the same entry gives the same outcome.

    A later entry has the last word: an outcome from before it changes nothing any more. Nor does it
    end what was reopened to be taken back: no sweep would find then what a crash left of that.

    The outcome is a copy of what the entry says, so it does not wait for the journal: were it lost,
    the fact would be `received` again and the next reader or the sweeper would copy it once more.
    """
    _tell([(activity, outcome)])
    earlier: storage.Doc = {"_id": activity.id}
    if outcome.seq is None:
        earlier["state"] = RECEIVED
    else:
        earlier["$or"] = [{"seq": None}, {"seq": {"$lte": outcome.seq}}]
        earlier["$nor"] = [{"state": RECEIVED, "seq": outcome.seq}]
    change = {"$set": _outcome(activity, outcome)}
    found = _copies().find_one_and_update(earlier, change, return_document=True)
    settled = _activity(found) if found is not None else by_id(activity.id)
    assert settled is not None, activity.id
    return settled


def settle_many(outcomes: Sequence[tuple[Activity, Outcome]]) -> list[Activity]:
    """Write the first outcomes of facts in one round trip; see `settle`.

    A fact that somebody settled meanwhile is read again.
    """
    if not outcomes:
        return []
    _tell(outcomes)
    settled, writes = [], []
    for activity, outcome in outcomes:
        change = _outcome(activity, outcome)
        first = {"_id": activity.id, "state": {"$in": [RECEIVED, BOOKED]}, "seq": None}
        writes.append(UpdateOne(first, {"$set": change}))
        settled.append(_with(activity, outcome))
    if _copies().bulk_write(writes, ordered=False).matched_count == len(writes):
        return settled
    stored = {one.id: one for one in by_ids([activity.id for activity, _ in outcomes])}
    return [stored[activity.id] for activity, _ in outcomes]


def leave_to_book(outcomes: Sequence[tuple[Activity, Outcome]]) -> list[Activity]:
    """What booked facts are now that their entries are there: told of, and not written.

    Only for whoever posted the entry: nothing else can have had a word then.
    """
    _tell(outcomes)
    return [_with(activity, outcome) for activity, outcome in outcomes]


def _tell(outcomes: Sequence[tuple[Activity, Outcome]]) -> None:
    """Leave word of outcomes for the partners that sent the activities, before they are written."""
    asked = events.asked({activity.source for activity, _ in outcomes})
    events.leave(
        *[
            Happening(
                party,
                Type.ACTIVITY_REVERSED if outcome.status == "reversed" else Type.ACTIVITY_SETTLED,
                f"activity:{activity.id}",
                f"activity:{activity.id}:{outcome.status}:{outcome.seq}",
                {
                    "activity_id": activity.id,
                    "source_event_id": activity.event_id,
                    "behaviour": activity.behaviour,
                    "status": outcome.status,
                    "reasons": list(outcome.reasons),
                    "reduction_mg": outcome.mg,
                },
            )
            for activity, outcome in outcomes
            if (party := asked.get(activity.source)) is not None
        ]
    )


def _outcome(activity: Activity, outcome: Outcome) -> dict[str, Any]:
    return {
        "state": SETTLED,
        "status": outcome.status,
        "reasons": list(outcome.reasons),
        "mg": outcome.mg,
        "points": outcome.points,
        "mature_at": outcome.mature_at,
        "merged_into": outcome.merged_into,
        "seq": outcome.seq,
        "evidence": outcome.evidence or activity.evidence,
    }


def _with(activity: Activity, outcome: Outcome) -> Activity:
    return replace(activity, **_outcome(activity, outcome) | {"reasons": outcome.reasons})


def outcome_of(activity: Activity, entry: Entry) -> Outcome:
    """What the entry of an activity says became of it."""
    refs = entry.refs
    upheld = ("appeal_upheld",) if "appeal" in refs and refs["counted"] else ()
    behaviour = methodology.version(activity.methodology).behaviours[activity.behaviour]
    return Outcome(
        status=refs["status"],
        reasons=(*upheld, *refs["reasons"]),
        mg=refs["mg"],
        points=refs["points"],
        mature_at=activity.over + behaviour.maturity if refs["points"] else None,
        merged_into=refs["merged_into"],
        seq=entry.seq,
        evidence=refs["evidence"],
    )


def absorb(survivor: str, merged: Sequence[str]) -> Activity:
    """Note which records of the same trip one is credited for; safe to repeat."""
    found = _copies().find_one_and_update(
        {"_id": survivor},
        {"$addToSet": {"merged_from": {"$each": list(merged)}}},
        return_document=True,
    )
    assert found is not None, "activities are never deleted"
    return _activity(found)


def point(merged: Sequence[str], survivor: str) -> None:
    """Let records that were merged name the one that is credited now; safe to repeat."""
    wanted = {"_id": {"$in": list(merged)}, "status": "merged"}
    _copies().update_many(wanted, {"$set": {"merged_into": survivor}})


def reopen(activity: Activity, credited: Entry) -> None:
    """Mark an activity as unfinished before it is taken back, so that the sweep finds it.

    An outcome that only the book has is written with it: the next word is another entry's. One that
    is taken back already stays as it is: nothing more will come of it.
    """
    booked = {"_id": activity.id, "state": BOOKED}
    change = _outcome(activity, outcome_of(activity, credited)) | {"state": RECEIVED}
    if _collection().update_one(booked, {"$set": change}).matched_count == 0:
        wanted = {"_id": activity.id, "seq": {"$ne": None}, "status": {"$ne": "reversed"}}
        _collection().update_one(wanted, {"$set": {"state": RECEIVED}})


def close(activity: Activity) -> Activity:
    """Leave an activity as it was before it was reopened: nothing came of taking it back."""
    _copies().update_one({"_id": activity.id}, {"$set": {"state": SETTLED}})
    found = by_id(activity.id)
    assert found is not None, "activities are never deleted"
    return found


def replace_reason(activity: Activity, old: str, new: str) -> Activity:
    """Give another reason to an activity that earned nothing and has no entry; safe to repeat."""
    wanted = {"_id": activity.id, "seq": None, "reasons": [old]}
    _collection().update_one(wanted, {"$set": {"reasons": [new]}})
    found = by_id(activity.id)
    assert found is not None, "activities are never deleted"
    return found


def key_of(activity_id: str) -> str:
    """The key of the entry an activity posts first."""
    return f"activity:{activity_id}"


def appeal_key(activity_id: str) -> str:
    """The key of the entry an upheld appeal posts: there is at most one an activity."""
    return f"appeal:{activity_id}"


def entry(activity: Activity) -> Entry | None:
    """The entry that credited an activity or said why not: an upheld appeal's, else its first."""
    for key in (appeal_key(activity.id), key_of(activity.id)):
        found = book.by_key(activity.resident, key)
        if found is not None:
            return found
    return None


def by_id(activity_id: str) -> Activity | None:
    found = _collection().find_one({"_id": activity_id})
    return _activity(found) if found else None


def of_resident(resident: str, *, before: str | None, limit: int) -> list[Activity]:
    """Newest first; `before` is the id of the last one of the page before."""
    wanted: dict[str, Any] = {"resident": resident}
    if before is not None:
        wanted["_id"] = {"$lt": before}
    return _activities(_collection().find(wanted).sort("_id", -1).limit(limit))


def ids_of_resident(resident: str, size: int = 1_000) -> Iterator[list[str]]:
    """The ids of everything a resident ever reported, in portions, oldest first."""
    after = ""
    while True:
        wanted = {"resident": resident, "_id": {"$gt": after}}
        found = _collection().find(wanted, {"_id": 1}).sort("_id", 1).limit(size)
        ids = [str(row["_id"]) for row in found]
        if not ids:
            return
        yield ids
        after = ids[-1]


def by_event(source: str, event_id: str) -> Activity | None:
    found = _collection().find_one({"source": source, "event_id": event_id})
    return _activity(found) if found else None


def by_events(source: str, event_ids: Sequence[str]) -> dict[str, Activity]:
    """What a source sent before under these event ids, in one read."""
    found = _collection().find({"source": source, "event_id": {"$in": list(event_ids)}})
    return {activity.event_id: activity for activity in _activities(found)}


def of_job(job: str, *, after: str, limit: int) -> list[str]:
    """The ids of what a file job brought, in their order; `after` is the last one seen."""
    wanted = {"job": job, "_id": {"$gt": after}}
    found = _collection().find(wanted, {"_id": 1}).sort("_id", 1).limit(limit)
    return [document["_id"] for document in found]


def by_ids(activity_ids: Sequence[str]) -> list[Activity]:
    return _activities(_collection().find({"_id": {"$in": list(activity_ids)}}))


def count_of_job(job: str) -> int:
    return _collection().count_documents({"job": job})


def unsettled(received_before: datetime, limit: int) -> Iterator[Activity]:
    """Facts a crash left without an outcome, oldest first."""
    wanted = {"state": RECEIVED, "received_at": {"$lt": received_before}}
    for found in _collection().find(wanted).sort("received_at", 1).limit(limit):
        yield _stored(found)


def new_activity_id() -> str:
    return new_id("act")


def booked(activity_ids: Sequence[str]) -> tuple[list[Activity], int]:
    """Those of a batch that are booked, as they are stored, and how many of it are there at all."""
    stored = list(_collection().find({"_id": {"$in": list(activity_ids)}}))
    return [_stored(found) for found in stored if found["state"] == BOOKED], len(stored)


def _activity(document: storage.Doc) -> Activity:
    return _activities([document])[0]


def _activities(documents: Iterable[storage.Doc]) -> list[Activity]:
    """Activities as they lie in MongoDB, with the outcomes of those that leave them to the book.

    That is one query more for all of them. A booked one without an entry has none yet.
    """
    found = [_stored(document) for document in documents]
    entries = book.by_keys((one.resident, key_of(one.id)) for one in found if one.state == BOOKED)
    if not entries:
        return found
    return [
        one
        if (entry := entries.get((one.resident, key_of(one.id)))) is None
        else _with(one, outcome_of(one, entry))
        for one in found
    ]


def _stored(document: storage.Doc) -> Activity:
    fields = {name: document[name] for name in _STORED if name in document}
    for name in ("reasons", "merged_from"):
        fields[name] = tuple(fields.get(name, ()))
    return Activity(id=document["_id"], **{**_NOTHING, "attributes": {}, **fields})
