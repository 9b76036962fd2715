"""Rules that operators publish as versions: kept for ever, in force from their own first day.

A version's text never changes once its name is taken. Two operators agree on it: one drafts it,
another approves. Its first day lies so far ahead that every process has read it before anything
that happened on that day can be judged; see `Register.earliest`.

A `Register` is one kind of rules: the methodology (`footprint/versions.py`), the grade policy
(`footprint/policy_versions.py`).
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any, Generic, Protocol, TypeVar

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import approvals, audit, clock, storage
from accounting.errors import DomainError, NotFound, ValidationFailed

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


class VersionDocument(me.Document):
    """A drafted or published version; each register has a collection of its own."""

    id = me.StringField(primary_key=True)
    text = me.StringField(required=True)
    valid_from = me.StringField(required=True)
    state = me.StringField(required=True)
    drafted_by = me.StringField(required=True)
    drafted_at = me.DateTimeField(required=True)
    approved_by = me.StringField()
    published_at = me.DateTimeField()

    meta = {
        "abstract": True,
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


class Rules(Protocol):
    """What is versioned."""

    @property
    def version(self) -> str: ...

    @property
    def valid_from(self) -> date: ...


R = TypeVar("R", bound=Rules)


class Library(Protocol[R]):
    """The module that reads such rules and knows the shipped ones; it knows no store."""

    def load(self, text: str, name: str) -> R:
        """Read a text, which errors call `name`."""

    def known(self) -> Sequence[R]:
        """Every version, shipped or published, oldest first."""

    def shipped(self) -> Sequence[R]:
        """Those that ship with the product."""

    def shipped_text(self, version: str) -> str:
        """The text of one of those."""

    def install(self, provider: Callable[[], tuple[R, ...]]) -> None:
        """Let `provider` say which versions operators have published."""


class Register(Generic[R]):
    """The versions of one kind of rules.

    `noun` names the kind in the audit, `zh` in the refusals. `error` is what a text that cannot be
    raises. `check` refuses, with `error` or `ValidationFailed`, a draft that does not fit its first
    day (None where that is not known). What clocks may run ahead of, `ahead`, is added to the lead.
    """

    def __init__(
        self,
        documents: type[VersionDocument],
        library: Library[R],
        *,
        noun: str,
        zh: str,
        error: type[Exception],
        check: Callable[[R, date | None], None] = lambda draft, valid_from: None,
        ahead: Callable[[R], timedelta] = lambda draft: timedelta(0),
    ) -> None:
        self._documents, self._library = documents, library
        self._noun, self._zh, self._error = noun, zh, error
        self._check, self._ahead = check, ahead
        self._known: tuple[float, tuple[R, ...]] | None = None
        self._read: dict[str, R] = {}

    # Drafting and approving.

    def checked(self, text: str, valid_from: date | None = None) -> R:
        """A draft that can be; raises `ValidationFailed` naming what is wrong with it.

        Without `valid_from` it is taken to follow all that is known.
        """
        draft = self._loaded(text)
        try:
            self._check(draft, valid_from)
        except self._error as error:
            raise self._refused(error) from None
        return draft

    def publish(self, text: str, valid_from: date, by: str, *, alone: bool) -> Version:
        """Draft a version; it is in force from `valid_from` once another operator approved it.

        The same draft again gives the same answer. With `alone` (the demo) it is published at once.
        Raises `ValidationFailed`, `VersionExists`, `FirstDayTaken`.
        """
        self.refresh()
        name = self._loaded(text).version
        if any(one.version == name for one in self._library.shipped()):
            raise VersionExists(version=name)
        if self._find(name) is None:
            self._check_first_day(self.checked(text, valid_from), valid_from)
            row: storage.Doc = {"_id": name, "text": text, "valid_from": valid_from.isoformat()}
            row |= {"state": DRAFT, "drafted_by": by, "drafted_at": clock.now()}
            # Drafted twice at once: what was kept is compared below.
            with contextlib.suppress(DuplicateKeyError):
                self._collection().insert_one(row)
        found = self.get(name)
        if (found.text, found.valid_from) != (text, valid_from):
            raise VersionExists(version=name)
        audit.note(
            found.drafted_by or by,
            f"{self._noun} drafted",
            name,
            after={"valid_from": valid_from.isoformat()},
            once=f"{self._noun}:{name}:drafted",
        )
        return self.approve(name, by, alone=True) if alone and found.state == DRAFT else found

    def approve(self, name: str, by: str, *, alone: bool) -> Version:
        """Publish a draft as its second operator; approving again changes nothing.

        Raises `NotFound`, `SecondOperatorNeeded`, `ValidationFailed`, `ApprovedTooLate`,
        `FirstDayTaken`.
        """
        self.refresh()
        found = self._find(name)
        if found is None:
            raise NotFound()
        if found.state == DRAFT:
            approvals.check(found.drafted_by or "", by, alone=alone)
            soonest = self.earliest(self.checked(found.text, found.valid_from), clock.now())
            if found.valid_from < soonest:
                raise ApprovedTooLate(
                    valid_from=found.valid_from.isoformat(), earliest=soonest.isoformat()
                )
            change = {"state": PUBLISHED, "approved_by": by, "published_at": clock.now()}
            try:
                self._collection().update_one({"_id": name, "state": DRAFT}, {"$set": change})
            except DuplicateKeyError:
                raise FirstDayTaken(valid_from=found.valid_from.isoformat()) from None
            found = self.get(name)
        audit.note(
            found.approved_by or by,
            f"{self._noun} published",
            name,
            after={"valid_from": found.valid_from.isoformat(), "drafted_by": found.drafted_by},
            once=f"{self._noun}:{name}:published",
        )
        self.refresh()
        return found

    def earliest(self, draft: R, now: datetime) -> date:
        """The first city day a version published now may be in force from.

        Before anything of that day can be judged, which a clock that runs ahead may ask for a few
        minutes early, every process must have read the version.
        """
        ahead = max(self._ahead(one) for one in (*self._library.known(), draft))
        return clock.city_day(now + LEAD + ahead) + timedelta(days=1)

    # Looking at them.

    def get(self, name: str) -> Version:
        """A version by its name, shipped, drafted or published; raises `NotFound`."""
        found = self._find(name)
        if found is None:
            found = next((one for one in self._shipped() if one.version == name), None)
        if found is None:
            raise NotFound()
        return found

    def listed(self) -> list[Version]:
        """Every version, the last to be in force first."""
        rows = self._collection().find({"_id": {"$gt": ""}}).limit(VERSIONS_MAX)
        found = (*self._shipped(), *map(_version, rows))
        return sorted(found, key=lambda one: (one.valid_from, one.version))[::-1]

    def in_force(self, on: date) -> str:
        """The name of the version in force on a city day."""
        return [one for one in self._library.known() if one.valid_from <= on][-1].version

    # What a process knows.

    def install(self) -> None:
        """Let this process judge by what is published; at every start, once the store is there."""
        self._known = None
        self._library.install(self._published)

    def refresh(self) -> None:
        """Read what is published now."""
        asked = time.monotonic()
        # The range lets the partial index serve: every process asks this twice a minute.
        wanted = {"state": PUBLISHED, "valid_from": {"$gt": ""}}
        found = self._collection().find(wanted).sort("valid_from", 1).limit(VERSIONS_MAX)
        self._known = (asked, tuple(self._rules(_version(row)) for row in found))

    def _published(self) -> tuple[R, ...]:
        if self._known is None or time.monotonic() - self._known[0] > REFRESH_S:
            self.refresh()
        assert self._known is not None
        return self._known[1]

    def _rules(self, version: Version) -> R:
        """The published text with the first day the operators agreed on."""
        if version.text not in self._read:
            self._read[version.text] = self._library.load(version.text, f"published {self._noun}")
        read: Any = self._read[version.text]
        dated: R = replace(read, valid_from=version.valid_from)
        return dated

    def _loaded(self, text: str) -> R:
        try:
            return self._library.load(text, "draft")
        except self._error as error:
            raise self._refused(error) from None

    def _refused(self, error: Exception) -> ValidationFailed:
        message = str(error)[:MESSAGE_CHARS_MAX]
        return ValidationFailed("/draft", message, f"{self._zh}草案无效：{message}")

    def _check_first_day(self, draft: R, valid_from: date) -> None:
        soonest = self.earliest(draft, clock.now())
        if valid_from < soonest:
            raise ValidationFailed(
                "/valid_from", f"Must be {soonest} or later.", f"不得早于 {soonest}。"
            )
        if any(one.valid_from == valid_from for one in self._library.known()):
            raise FirstDayTaken(valid_from=valid_from.isoformat())

    def _shipped(self) -> tuple[Version, ...]:
        return tuple(
            Version(one.version, one.valid_from, SHIPPED, self._library.shipped_text(one.version))
            for one in self._library.shipped()
        )

    def _find(self, name: str) -> Version | None:
        row = self._collection().find_one({"_id": name})
        return _version(row) if row else None

    def _collection(self) -> "Collection[storage.Doc]":
        return storage.strong(self._documents._get_collection())


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
