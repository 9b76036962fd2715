"""Grade policies that operators publish: kept for ever, in force from their own first day.

As with versions of the methodology (`footprint/versions.py`), one operator drafts a policy, another
approves it, and its first day lies so far ahead that every process knows it before that day begins.
"""

import contextlib
import time
from dataclasses import replace
from datetime import date, datetime, timedelta

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import approvals, audit, clock, storage
from accounting.errors import NotFound, ValidationFailed
from accounting.grading import Policy
from footprint import grade_policies
from footprint.grade_policies import PolicyError
from footprint.versions import (
    DRAFT,
    LEAD,
    MESSAGE_CHARS_MAX,
    PUBLISHED,
    REFRESH_S,
    VERSIONS_MAX,
    ApprovedTooLate,
    FirstDayTaken,
    Version,
    VersionExists,
)


@storage.indexed
class PolicyDocument(me.Document):
    id = me.StringField(primary_key=True)
    text = me.StringField(required=True)
    valid_from = me.StringField(required=True)
    state = me.StringField(required=True)
    drafted_by = me.StringField(required=True)
    drafted_at = me.DateTimeField(required=True)
    approved_by = me.StringField()
    published_at = me.DateTimeField()

    meta = {
        "collection": "grade_policies",
        "auto_create_index": False,
        "indexes": [
            {
                "fields": ["valid_from"],
                "unique": True,
                "partialFilterExpression": {"state": PUBLISHED},
            },
        ],
    }


def _collection() -> "Collection[storage.Doc]":
    return storage.strong(PolicyDocument._get_collection())


def checked(text: str) -> Policy:
    """A draft; raises `ValidationFailed` naming the field that is wrong."""
    try:
        return grade_policies.load(text, "draft")
    except PolicyError as error:
        message = str(error)[:MESSAGE_CHARS_MAX]
        raise ValidationFailed("/draft", message, f"等级规则草案无效：{message}") from None


def publish(text: str, valid_from: date, by: str, *, alone: bool) -> Version:
    """Draft a policy; it is in force from `valid_from` once another operator has approved it.

    The same draft again gives the same answer. With `alone` (the demo) it is published at once.
    Raises `ValidationFailed`, `VersionExists`, `FirstDayTaken`.
    """
    refresh()
    name = checked(text).version
    if any(policy.version == name for policy in grade_policies.shipped()):
        raise VersionExists(version=name)
    if _collection().find_one({"_id": name}) is None:
        soonest = earliest(clock.now())
        if valid_from < soonest:
            raise ValidationFailed(
                "/valid_from", f"Must be {soonest} or later.", f"不得早于 {soonest}。"
            )
        _check_free(valid_from)
        row: storage.Doc = {"_id": name, "text": text, "valid_from": valid_from.isoformat()}
        row |= {"state": DRAFT, "drafted_by": by, "drafted_at": clock.now()}
        # Drafted twice at once: what was kept is compared below.
        with contextlib.suppress(DuplicateKeyError):
            _collection().insert_one(row)
    found = get(name)
    if (found.text, found.valid_from) != (text, valid_from):
        raise VersionExists(version=name)
    audit.note(
        found.drafted_by or by,
        "grade policy drafted",
        name,
        after={"valid_from": valid_from.isoformat()},
        once=f"grade-policy:{name}:drafted",
    )
    return approve(name, by, alone=True) if alone and found.state == DRAFT else found


def approve(name: str, by: str, *, alone: bool) -> Version:
    """Publish a draft as its second operator; approving again changes nothing.

    Raises `NotFound`, `SecondOperatorNeeded`, `ApprovedTooLate`, `FirstDayTaken`.
    """
    found = get(name)
    if found.state == DRAFT:
        approvals.check(found.drafted_by or "", by, alone=alone)
        soonest = earliest(clock.now())
        if found.valid_from < soonest:
            raise ApprovedTooLate(
                valid_from=found.valid_from.isoformat(), earliest=soonest.isoformat()
            )
        change = {"state": PUBLISHED, "approved_by": by, "published_at": clock.now()}
        try:
            _collection().update_one({"_id": name, "state": DRAFT}, {"$set": change})
        except DuplicateKeyError:
            raise FirstDayTaken(valid_from=found.valid_from.isoformat()) from None
        found = get(name)
    audit.note(
        found.approved_by or by,
        "grade policy published",
        name,
        after={"valid_from": found.valid_from.isoformat(), "drafted_by": found.drafted_by},
        once=f"grade-policy:{name}:published",
    )
    refresh()
    return found


def earliest(now: datetime) -> date:
    """The first city day a policy published now may be in force from."""
    return clock.city_day(now + LEAD) + timedelta(days=1)


def get(name: str) -> Version:
    """A drafted or published policy by its name. Raises `NotFound`."""
    row = _collection().find_one({"_id": name})
    if row is None:
        raise NotFound()
    return _version(row)


_known: tuple[float, tuple[Policy, ...]] | None = None


def install() -> None:
    """Let this process grade by what is published; at every start, after the store is connected."""
    global _known
    _known = None
    grade_policies.install(_published)


def refresh() -> None:
    """Read what is published now."""
    global _known
    asked = time.monotonic()
    # The range lets the partial index serve: every process asks this twice a minute.
    wanted = {"state": PUBLISHED, "valid_from": {"$gt": ""}}
    found = _collection().find(wanted).sort("valid_from", 1).limit(VERSIONS_MAX)
    _known = (asked, tuple(_policy(_version(row)) for row in found))


def _published() -> tuple[Policy, ...]:
    if _known is None or time.monotonic() - _known[0] > REFRESH_S:
        refresh()
    assert _known is not None
    return _known[1]


def _policy(version: Version) -> Policy:
    """The published text with the first day the operators agreed on."""
    policy = grade_policies.load(version.text, "published policy")
    return replace(policy, valid_from=version.valid_from)


def _check_free(valid_from: date) -> None:
    if any(policy.valid_from == valid_from for policy in grade_policies.known()):
        raise FirstDayTaken(valid_from=valid_from.isoformat())


def _version(row: storage.Doc) -> Version:
    return Version(
        version=row["_id"],
        valid_from=date.fromisoformat(row["valid_from"]),
        state=row["state"],
        text=row["text"],
        drafted_by=row["drafted_by"],
        drafted_at=row["drafted_at"],
        approved_by=row.get("approved_by"),
        published_at=row.get("published_at"),
    )
