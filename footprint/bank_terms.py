"""A bank's own table: from which grade it lists residents, and what each grade is worth there.

Versions are kept; the newest applies. Limits are permille of the usual limit, at most 1,500;
basis points off the rate, at most 100.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import audit, clock, storage
from accounting.errors import AccountBusy

LIMIT_PERMILLE_MAX: Final = 1_500
BASIS_POINTS_MAX: Final = 100
ATTEMPTS_MAX: Final = 20
# Until a bank says otherwise everybody with a grade is listed, and no grade changes anything.
THRESHOLD: Final = "light"


@storage.indexed
class TermsDocument(me.Document):
    bank_id = me.StringField(required=True)
    version = me.IntField(required=True)
    threshold = me.StringField(required=True)
    grades = me.DictField()
    at = me.DateTimeField()

    meta = {
        "collection": "bank_terms",
        "auto_create_index": False,
        "indexes": [{"fields": ["bank_id", "-version"], "unique": True}],
    }


@dataclass(frozen=True, slots=True)
class GradeTerms:
    limit_permille: int = 1_000
    basis_points: int = 0
    fast_lane: bool = False


@dataclass(frozen=True, slots=True)
class Terms:
    """`version` 0 is before the bank said anything."""

    bank_id: str
    version: int
    threshold: str
    grades: Mapping[str, GradeTerms]
    at: datetime | None

    def of(self, grade: str) -> GradeTerms:
        return self.grades.get(grade, GradeTerms())


def _rows() -> "Collection[storage.Doc]":
    return storage.strong(TermsDocument._get_collection())


def current(bank_id: str) -> Terms:
    found = _rows().find_one({"bank_id": bank_id}, sort=[("version", -1)])
    return _terms(found) if found else Terms(bank_id, 0, THRESHOLD, {}, None)


def put(bank_id: str, threshold: str, grades: Mapping[str, GradeTerms], *, by: str) -> Terms:
    """Another version; the same table again is the version there is."""
    for terms in grades.values():
        assert 1_000 <= terms.limit_permille <= LIMIT_PERMILLE_MAX, terms
        assert 0 <= terms.basis_points <= BASIS_POINTS_MAX, terms
    for _ in range(ATTEMPTS_MAX):
        before = current(bank_id)
        if before.version and (before.threshold, before.grades) == (threshold, grades):
            return before
        row = {
            "bank_id": bank_id,
            "version": before.version + 1,
            "threshold": threshold,
            "grades": {name: _plain(one) for name, one in grades.items()},
            "at": clock.now(),
        }
        try:
            _rows().insert_one(row)
        except DuplicateKeyError:
            continue  # Somebody else put a table meanwhile; ours comes after it.
        after = _terms(row)
        audit.note(
            by,
            "bank terms set",
            bank_id,
            before=_noted(before),
            after=_noted(after),
            once=f"terms:{bank_id}:{after.version}",
        )
        return after
    raise AccountBusy()


def _plain(terms: GradeTerms) -> dict[str, Any]:
    return {name: getattr(terms, name) for name in GradeTerms.__slots__}


def _noted(terms: Terms) -> dict[str, Any]:
    grades = {name: _plain(one) for name, one in terms.grades.items()}
    return {"version": terms.version, "threshold": terms.threshold, "grades": grades}


def _terms(row: Mapping[str, Any]) -> Terms:
    grades = {name: GradeTerms(**one) for name, one in row["grades"].items()}
    return Terms(row["bank_id"], row["version"], row["threshold"], grades, row["at"])
