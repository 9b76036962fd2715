"""Methodology versions that operators publish: kept for ever, in force from their own first day.

A version's text never changes once its name is taken. Two operators agree on it: one drafts it,
another approves. Its first day lies so far ahead that every process has read it before anything
that happened on that day can be judged; see `earliest`.
"""

import contextlib
import time
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from fractions import Fraction
from functools import lru_cache

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import approvals, audit, clock, factors, storage
from accounting.errors import DomainError, NotFound, ValidationFailed
from footprint import methodology
from footprint.methodology import Methodology, MethodologyError

DRAFT, PUBLISHED = "draft", "published"
SHIPPED = "shipped"
# Every process asks again for what was published when what it knows is older than this.
REFRESH_S = 30.0
# Longer than the slowest write and the oldest knowledge of a process together.
LEAD = timedelta(minutes=5)
MESSAGE_CHARS_MAX = 500
VERSIONS_MAX = 1_000


class VersionExists(DomainError):
    """Facts: version."""

    code = "version_exists"
    en = "Version {version} exists with another text or first day; give the new one another name."
    zh = "版本 {version} 已存在且内容或生效日不同，请为新版本另行命名。"


class FirstDayTaken(DomainError):
    """Facts: valid_from."""

    code = "first_day_taken"
    en = "Another version is in force from {valid_from}."
    zh = "已有其他版本自 {valid_from} 起生效。"


class ApprovedTooLate(DomainError):
    """Facts: valid_from, earliest."""

    code = "approved_too_late"
    en = "A version approved now is in force from {earliest} at the soonest, not from {valid_from}."
    zh = "现在批准的版本最早于 {earliest} 生效，不能自 {valid_from} 起生效。"


@storage.indexed
class VersionDocument(me.Document):
    id = me.StringField(primary_key=True)
    text = me.StringField(required=True)
    valid_from = me.StringField(required=True)
    state = me.StringField(required=True)
    drafted_by = me.StringField(required=True)
    drafted_at = me.DateTimeField(required=True)
    approved_by = me.StringField()
    published_at = me.DateTimeField()

    meta = {
        "collection": "methodology_versions",
        "auto_create_index": False,
        "indexes": [
            {
                "fields": ["valid_from"],
                "unique": True,
                "partialFilterExpression": {"state": PUBLISHED},
            },
        ],
    }


@dataclass(frozen=True, slots=True)
class Version:
    """A version and how it came to be; the shipped ones have no text here and nobody drafted."""

    version: str
    valid_from: date
    state: str
    text: str
    drafted_by: str | None = None
    drafted_at: datetime | None = None
    approved_by: str | None = None
    published_at: datetime | None = None

    @property
    def needs_approval(self) -> bool:
        return self.state == DRAFT


def _collection() -> "Collection[storage.Doc]":
    return storage.strong(VersionDocument._get_collection())


def checked(text: str, valid_from: date | None = None) -> Methodology:
    """A draft, if it fits the other versions; raises `ValidationFailed` naming what is wrong.

    A factor that is named as one of the registry's is there, with that value. A behaviour keeps its
    unit and dimension for ever, and is turned off, never left out: quantities
    that were reported, and the way back to them, must go on meaning the same. Without `valid_from`
    the draft follows all that is known.
    """
    draft = _loaded(text)
    try:
        _check_factors(draft)
        for other in methodology.known():
            if valid_from is None or other.valid_from < valid_from:
                _check_follows(draft, other)
            elif other.version != draft.version:
                _check_follows(other, draft)
    except MethodologyError as error:
        raise _refused(error) from None
    return draft


def publish(text: str, valid_from: date, by: str, *, alone: bool) -> Version:
    """Draft a version; it is in force from `valid_from` once another operator has approved it.

    The same draft again gives the same answer. With `alone` (the demo) it is published at once.
    Raises `ValidationFailed`, `VersionExists`, `FirstDayTaken`.
    """
    refresh()
    name = _loaded(text).version
    if any(shipped.version == name for shipped in methodology.shipped()):
        raise VersionExists(version=name)
    if _find(name) is None:
        draft = checked(text, valid_from)
        _check_first_day(draft, valid_from)
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
        "methodology drafted",
        name,
        after={"valid_from": valid_from.isoformat()},
        once=f"methodology:{name}:drafted",
    )
    return approve(name, by, alone=True) if alone and found.state == DRAFT else found


def approve(name: str, by: str, *, alone: bool) -> Version:
    """Publish a draft as its second operator; approving again changes nothing.

    Raises `NotFound`, `SecondOperatorNeeded`, `ApprovedTooLate`, `FirstDayTaken`.
    """
    refresh()
    found = _find(name)
    if found is None:
        raise NotFound()
    if found.state == DRAFT:
        approvals.check(found.drafted_by or "", by, alone=alone)
        soonest = earliest(checked(found.text, found.valid_from), clock.now())
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
        "methodology published",
        name,
        after={"valid_from": found.valid_from.isoformat(), "drafted_by": found.drafted_by},
        once=f"methodology:{name}:published",
    )
    refresh()
    return found


def earliest(draft: Methodology, now: datetime) -> date:
    """The first city day a version published now may be in force from.

    Before anything of that day can be judged, which a clock that runs ahead may ask for a few
    minutes early, every process must have read the version.
    """
    ahead = max(version.window.future for version in (*methodology.known(), draft))
    return clock.city_day(now + LEAD + ahead) + timedelta(days=1)


def get(name: str) -> Version:
    """A version by its name, shipped, drafted or published; raises `NotFound`."""
    found = _find(name)
    if found is None:
        found = next((one for one in _shipped() if one.version == name), None)
    if found is None:
        raise NotFound()
    return found


def listed() -> list[Version]:
    """Every version, the last to be in force first."""
    found = [_version(row) for row in _collection().find({"_id": {"$gt": ""}}).limit(VERSIONS_MAX)]
    return sorted((*_shipped(), *found), key=lambda one: (one.valid_from, one.version))[::-1]


def _loaded(text: str) -> Methodology:
    try:
        return methodology.load(text, "draft")
    except MethodologyError as error:
        raise _refused(error) from None


def _refused(error: MethodologyError) -> ValidationFailed:
    message = str(error)[:MESSAGE_CHARS_MAX]
    return ValidationFailed("/draft", message, f"方法学草案无效：{message}")


_known: tuple[float, tuple[Methodology, ...]] | None = None


def install() -> None:
    """Let this process judge by what is published; at every start, after the store is connected."""
    global _known
    _known = None
    methodology.install(_published)


def refresh() -> None:
    """Read what is published now."""
    global _known
    asked = time.monotonic()
    # The range lets the partial index serve: every process asks this twice a minute.
    wanted = {"state": PUBLISHED, "valid_from": {"$gt": ""}}
    found = _collection().find(wanted).sort("valid_from", 1).limit(VERSIONS_MAX)
    _known = (asked, tuple(_methodology(_version(row)) for row in found))


def _published() -> tuple[Methodology, ...]:
    if _known is None or time.monotonic() - _known[0] > REFRESH_S:
        refresh()
    assert _known is not None
    return _known[1]


@lru_cache(maxsize=VERSIONS_MAX)
def _parsed(text: str) -> Methodology:
    return methodology.load(text, "published methodology")


def _methodology(version: Version) -> Methodology:
    """The published text with the first day the operators agreed on."""
    return replace(_parsed(version.text), valid_from=version.valid_from)


def _check_factors(draft: Methodology) -> None:
    """Refuse a factor of the registry that is not there, or has another value there.

    Such an id begins with a carrier, `electricity/CN-ZJ/2023`; those of the methodology's own
    numbers begin with its name.
    """
    registry = factors.shipped()
    for code, behaviour in draft.behaviours.items():
        named = behaviour.factor_id
        if named.partition("/")[0] not in registry.carriers:
            continue
        place = f"{draft.version}: {code}: factor:"
        factor = registry.find(named)
        if factor is None:
            raise MethodologyError(f"{place} id: {named!r} is not in the factor registry")
        exact = factor.mg_per(factor.per)
        if exact != Fraction(behaviour.mg_num, behaviour.mg_den):
            raise MethodologyError(
                f"{place} mg_num: {named} has {exact} mg a {factor.per} in the factor registry"
            )


def _check_follows(later: Methodology, earlier: Methodology) -> None:
    for code, was in earlier.behaviours.items():
        now = later.behaviours.get(code)
        if now is None:
            raise MethodologyError(
                f"{later.version}: {code}: code: is in {earlier.version} and must stay; "
                "set enabled = false"
            )
        for field in ("unit", "dimension"):
            if getattr(now, field) != getattr(was, field):
                raise MethodologyError(
                    f"{later.version}: {code}: {field}: is {getattr(was, field)!r} in "
                    f"{earlier.version}; another one needs a new code"
                )


def _check_first_day(draft: Methodology, valid_from: date) -> None:
    soonest = earliest(draft, clock.now())
    if valid_from < soonest:
        raise ValidationFailed(
            "/valid_from", f"Must be {soonest} or later.", f"不得早于 {soonest}。"
        )
    if valid_from >= draft.review_by:
        raise ValidationFailed(
            "/valid_from",
            f"Must lie before the draft's review_by, {draft.review_by}.",
            f"应早于草案的复核日期 {draft.review_by}。",
        )
    if any(version.valid_from == valid_from for version in methodology.known()):
        raise FirstDayTaken(valid_from=valid_from.isoformat())


def _shipped() -> tuple[Version, ...]:
    return tuple(
        Version(one.version, one.valid_from, SHIPPED, methodology.shipped_text(one.version))
        for one in methodology.shipped()
    )


def _find(name: str) -> Version | None:
    row = _collection().find_one({"_id": name})
    return _version(row) if row else None


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
