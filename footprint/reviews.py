"""What a person has to decide: photos, a home that may stand empty, an appeal.

A review is a row unique on `(kind, subject)`. It is open until one operator's decision wins; the
decision is then carried out (`points/deciding.py`), and until that is finished the row is
`pending`, so a sweep finds what a crash left decided but not done.
"""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import mongoengine as me
from pymongo.collection import Collection, ReturnDocument
from pymongo.errors import DuplicateKeyError

from accounting import clock, storage, vault
from accounting.errors import DomainError, NotFound
from accounting.ids import new_id

PHOTOS, VACANCY, APPEAL, BILL_APPEAL = "photos", "vacancy", "appeal", "bill_appeal"
# Of a grading.
OBJECTION = "grade_objection"
OPEN, ACCEPTED, REFUSED, WITHDRAWN = "open", "accepted", "refused", "withdrawn"
# An appeal is told in its own words.
APPEAL_WORDS = {OPEN: "open", ACCEPTED: "upheld", REFUSED: "refused", WITHDRAWN: "withdrawn"}
# Appeals are a work list of their own.
REVIEWS, APPEALS = "reviews", "appeals"
QUEUES = {
    PHOTOS: REVIEWS,
    VACANCY: REVIEWS,
    APPEAL: APPEALS,
    BILL_APPEAL: APPEALS,
    OBJECTION: APPEALS,
}
# Calendar days, as for objections in credit reporting (Credit Reporting Regulation, article 25).
DECIDE_WITHIN = timedelta(days=20)
_PURPOSE = "review-text"


class AlreadyDecided(DomainError):
    code = "already_decided"
    en = "This was decided otherwise, or is no longer open; read it again."
    zh = "该事项已有其他决定或已不再待处理，请重新查看。"


@storage.indexed
class ReviewDocument(me.Document):
    id = me.StringField(primary_key=True)
    kind = me.StringField(required=True)
    subject = me.StringField(required=True)
    queue = me.StringField(required=True)
    residents = me.ListField(me.StringField())
    opened_at = me.DateTimeField(required=True)
    due_on = me.StringField(required=True)
    status = me.StringField(required=True)
    # What the resident wrote, encrypted: it may say anything about anybody.
    text_sealed = me.BinaryField()
    reason = me.StringField()
    despite = me.StringField()
    before = me.DictField()
    decided_by = me.StringField()
    decided_at = me.DateTimeField()
    pending = me.BooleanField()

    meta = {
        "collection": "reviews",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["kind", "subject"], "unique": True},
            {"fields": ["queue", "status", "due_on", "_id"]},
            {"fields": ["residents", "queue", "_id"]},
            {
                "fields": ["decided_at"],
                "name": "pending",
                "partialFilterExpression": {"pending": True},
            },
        ],
    }


@dataclass(frozen=True, slots=True)
class Decision:
    """What an operator answered. `despite` names the claim owner an upheld appeal overrules."""

    accept: bool
    reason: str
    by: str
    despite: str | None = None


@dataclass(frozen=True, slots=True)
class Review:
    """One row. `subject` is an activity or a bill; `before` what it was when it was decided."""

    id: str
    kind: str
    subject: str
    residents: tuple[str, ...]
    opened_at: datetime
    due_on: date
    status: str
    text_sealed: bytes | None
    reason: str | None
    despite: str | None
    before: dict[str, Any] | None
    decided_by: str | None
    decided_at: datetime | None
    pending: bool

    @property
    def text(self) -> str | None:
        """What the resident wrote, if anything."""
        return None if self.text_sealed is None else vault.decrypt(self.text_sealed, _PURPOSE)

    @property
    def is_overdue(self) -> bool:
        return self.status == OPEN and self.due_on < clock.city_day(clock.now())


def _collection() -> "Collection[storage.Doc]":
    return storage.strong(ReviewDocument._get_collection())


def ask(
    kind: str, subject: str, residents: tuple[str, ...], text: str | None = None
) -> tuple[Review, bool]:
    """Open the review of a subject; returns what is stored and whether it is new."""
    now = clock.now()
    document: storage.Doc = {
        "_id": new_id("apl" if QUEUES[kind] == APPEALS else "rev"),
        "kind": kind,
        "subject": subject,
        "queue": QUEUES[kind],
        "residents": list(residents),
        "opened_at": now,
        "due_on": (clock.city_day(now) + DECIDE_WITHIN).isoformat(),
        "status": OPEN,
        "text_sealed": None if text is None else vault.encrypt(text, _PURPOSE),
        "reason": None,
        "despite": None,
        "before": None,
        "decided_by": None,
        "decided_at": None,
        "pending": False,
    }
    try:
        _collection().insert_one(document)
    except DuplicateKeyError:
        earlier = of_subject(kind, subject)
        assert earlier is not None, "reviews are never deleted"
        return earlier, False
    return _review(document), True


def decide(review: Review, decision: Decision, before: dict[str, Any] | None) -> Review:
    """Record a decision; the first one counts. Raises `AlreadyDecided` if that was another one.

    The same decision again, whoever makes it, gives the first.
    """
    found = _collection().find_one_and_update(
        {"_id": review.id, "status": OPEN},
        {
            "$set": {
                "status": ACCEPTED if decision.accept else REFUSED,
                "reason": decision.reason,
                "despite": decision.despite,
                "before": before,
                "decided_by": decision.by,
                "decided_at": clock.now(),
                "pending": True,
            }
        },
        return_document=ReturnDocument.AFTER,
    )
    decided = _review(found) if found else get(QUEUES[review.kind], review.id)
    status = ACCEPTED if decision.accept else REFUSED
    wanted = (status, decision.reason, decision.despite)
    if (decided.status, decided.reason, decided.despite) != wanted:
        raise AlreadyDecided()
    return decided


def carried_out(review: Review) -> Review:
    """Everything that follows from the decision is done."""
    found = _collection().find_one_and_update(
        {"_id": review.id}, {"$set": {"pending": False}}, return_document=ReturnDocument.AFTER
    )
    assert found is not None, "reviews are never deleted"
    return _review(found)


def withdraw(kind: str, subject: str) -> None:
    """Close an open review whose subject has gone; safe to repeat."""
    _collection().update_one(
        {"kind": kind, "subject": subject, "status": OPEN}, {"$set": {"status": WITHDRAWN}}
    )


def forget(resident: str) -> None:
    """Close what is open about a closed account alone, and erase what it wrote; decisions stay."""
    alone = {"residents": [resident]}
    _collection().update_many({**alone, "status": OPEN}, {"$set": {"status": WITHDRAWN}})
    _collection().update_many(alone, {"$set": {"text_sealed": None}})


def get(queue: str, review_id: str) -> Review:
    """One review of a queue. Raises `NotFound`."""
    found = _collection().find_one({"_id": review_id, "queue": queue})
    if found is None:
        raise NotFound()
    return _review(found)


def of_subject(kind: str, subject: str) -> Review | None:
    found = _collection().find_one({"kind": kind, "subject": subject})
    return _review(found) if found else None


def listed(queue: str, status: str, *, after: tuple[str, str] | None, limit: int) -> list[Review]:
    """The rows of a queue, first due first; `after` is due day and id of the last one seen."""
    wanted: dict[str, Any] = {"queue": queue, "status": status}
    if after is not None:
        due_on, last = after
        wanted["$or"] = [{"due_on": {"$gt": due_on}}, {"due_on": due_on, "_id": {"$gt": last}}]
    found = _collection().find(wanted).sort([("due_on", 1), ("_id", 1)]).limit(limit)
    return [_review(document) for document in found]


def of_resident(resident: str, queue: str, *, before: str | None, limit: int) -> list[Review]:
    """Newest first; `before` is the id of the last one of the page before."""
    wanted: dict[str, Any] = {"residents": resident, "queue": queue}
    if before is not None:
        wanted["_id"] = {"$lt": before}
    return [_review(found) for found in _collection().find(wanted).sort("_id", -1).limit(limit)]


def undone(decided_before: datetime, limit: int) -> list[Review]:
    """Decisions a crash left without their effect, oldest first."""
    wanted = {"pending": True, "decided_at": {"$lt": decided_before}}
    found = _collection().find(wanted).sort("decided_at", 1).limit(limit)
    return [_review(document) for document in found]


def _review(document: storage.Doc) -> Review:
    fields = {name: document[name] for name in Review.__slots__ if name != "id"}
    fields["residents"] = tuple(fields["residents"])
    fields["due_on"] = date.fromisoformat(fields["due_on"])
    return Review(id=document["_id"], **fields)
