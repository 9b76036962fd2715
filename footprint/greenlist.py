"""The green list of each bank, and the changes of it in the bank's own gapless sequence.

A consent's standing (`footprint/listing.py`) is one document. A step of it and what the bank is to
be told are written together, guarded by the step before; then the change gets the next number of
its bank, and only then may the standing move again. So whoever works on the same consent at the
same time, and wherever a crash comes in between, each change is told once and in order:

- two who take the same step: one of the guarded writes finds the step gone;
- two who publish the same change: `(bank, consent, step)` is unique;
- two changes that want the same number: `(bank, sequence)` is unique, the loser takes the next.

Gradings are taken in by their number, so a grade that rose and fell again is two changes.
"""

import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import clock, consent_marks, consents, events, storage, sweeping
from accounting.clients import Kind
from accounting.consents import Consent
from accounting.errors import AccountBusy
from accounting.events import Happening, Type
from accounting.ids import new_id
from footprint import bank_terms, grade, grade_changes, listing
from footprint.listing import Change, Standing

# A step each; a consent that fell behind further goes on at the next look.
STEPS_MAX: Final = 500
ATTEMPTS_MAX: Final = 200
SWEEP_MAX: Final = 500
# What a read of the feed looks at before it answers, so that it need not wait for the sweep.
AT_ONCE_MAX: Final = 50
STRETCH: Final = 500
_PAUSE_MAX_S = 0.05


@storage.indexed
class StandingDocument(me.Document):
    """`pending` is a change that has no number yet: {"change", "grade", "at"}."""

    id = me.StringField(primary_key=True)
    bank_id = me.StringField(required=True)
    reference = me.StringField(required=True)
    resident = me.StringField(required=True)
    expires_at = me.DateTimeField(required=True)
    standing = me.DictField()
    listed = me.StringField()
    pending = me.DictField()

    meta = {
        "collection": "green_standings",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["resident"]},
            {"fields": ["bank_id", "listed", "_id"]},
            {"fields": ["bank_id", "_id"]},
            {
                "fields": ["expires_at"],
                "name": "not_over",
                "partialFilterExpression": {"standing.over": False},
            },
            {
                "fields": ["pending.at"],
                "name": "half_told",
                "partialFilterExpression": {"pending.at": {"$exists": True}},
            },
        ],
    }


@storage.indexed
class ChangeDocument(me.Document):
    """One change a bank was told. Append-only."""

    id = me.StringField(primary_key=True)
    bank_id = me.StringField(required=True)
    sequence = me.IntField(required=True)
    consent = me.StringField(required=True)
    step = me.IntField(required=True)
    reference = me.StringField(required=True)
    resident = me.StringField(required=True)
    change = me.StringField(required=True)
    grade = me.StringField()
    at = me.DateTimeField(required=True)

    meta = {
        "collection": "green_changes",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["bank_id", "sequence"], "unique": True},
            {"fields": ["bank_id", "consent", "step"], "unique": True},
        ],
    }


@dataclass(frozen=True, slots=True)
class Listed:
    """Somebody on a bank's green list."""

    consent: Consent
    grade: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Told:
    """One change of a bank's list; `sequence` counts from 1 without a gap."""

    sequence: int
    consent_id: str
    reference: str
    change: str
    grade: str | None
    at: datetime


def _standings() -> "Collection[storage.Doc]":
    return storage.strong(StandingDocument._get_collection())


def _changes() -> storage.AppendOnly:
    return storage.AppendOnly(ChangeDocument._get_collection())


# Reading.


def listed(bank_id: str, *, after: str | None, limit: int) -> list[Listed]:
    """Who is on a bank's list, in the order of consents; only who consents at this instant."""
    terms = bank_terms.current(bank_id)
    policy = grade.policy_on(clock.city_day(clock.now()))
    names = [name for _, name in policy.cut_offs if listing.reaches(policy, name, terms.threshold)]
    wanted: dict[str, Any] = {"bank_id": bank_id, "listed": {"$in": names}}
    found: list[Listed] = []
    while len(found) < limit:
        if after is not None:
            wanted["_id"] = {"$gt": after}
        rows = list(_standings().find(wanted).sort("_id", 1).limit(limit))
        live = consents.live([row["_id"] for row in rows], clock.now())
        found += [
            Listed(live[row["_id"]], row["listed"], row["standing"]["since"])
            for row in rows
            if row["_id"] in live
        ]
        if len(rows) < limit:
            break
        after = rows[-1]["_id"]
    return found[:limit]


def changes(bank_id: str, *, after: int, limit: int) -> list[Told]:
    """A bank's changes beyond a sequence number, oldest first."""
    wanted = {"bank_id": bank_id, "sequence": {"$gt": after}}
    found = _changes().find(wanted).sort("sequence", 1).limit(limit)
    return [
        Told(
            sequence=row["sequence"],
            consent_id=row["consent"],
            reference=row["reference"],
            change=row["change"],
            grade=row["grade"],
            at=row["at"],
        )
        for row in found
    ]


def last_sequence(bank_id: str) -> int:
    found = _changes().find_one({"bank_id": bank_id}, {"sequence": 1}, [("sequence", -1)])
    return int(found["sequence"]) if found else 0


# Telling.


def follow(resident: str) -> None:
    """Tell every bank of this resident what changed, up to now."""
    own = consents.of_banks(resident)
    wanted = {"_id": {"$in": [consent.id for consent in own]}, "standing.over": True}
    over = {row["_id"] for row in _standings().find(wanted, {"_id": 1})}
    for consent in own:
        if consent.id not in over:
            _follow(consent)


def catch_up(bank_id: str) -> None:
    """Before a bank reads: what was marked just now, and what ran out just now."""
    now = clock.now()
    marked = {one.resident for one in consent_marks.marked(AT_ONCE_MAX, newest=True)}
    marked |= {one.resident for one in grade_changes.waiting(AT_ONCE_MAX)}
    wanted = {"resident": {"$in": sorted(marked)}, "bank_id": bank_id}
    residents = {row["resident"] for row in _standings().find(wanted, {"resident": 1})}
    ran_out = {
        "bank_id": bank_id,
        "expires_at": {"$lte": now},
        "standing.over": False,
    }
    found = _standings().find(ran_out, {"resident": 1}).sort("expires_at", 1).limit(AT_ONCE_MAX)
    for resident in residents | {row["resident"] for row in found}:
        follow(resident)


def sweep(now: datetime) -> int:
    """Tell what nobody told: moved grades, marked residents, ended consents, half-told changes."""
    moved = grade_changes.waiting(SWEEP_MAX)
    by_resident = [list(rows) for _, rows in itertools.groupby(moved, lambda one: one.resident)]
    # One that fails keeps its rows, or its mark, and is looked at again.
    done = sweeping.each("moved grade", by_resident, _settle)
    marks = consent_marks.marked(SWEEP_MAX)
    done += sweeping.each("marked consent", marks, lambda mark: _settle_mark(mark, now))
    ran_out = _standings().find({"expires_at": {"$lte": now}, "standing.over": False})
    wanted = {"pending.at": {"$lt": now - timedelta(minutes=1)}}
    rows = [*ran_out.sort("expires_at", 1).limit(SWEEP_MAX)]
    rows += [*_standings().find(wanted).sort("pending.at", 1).limit(SWEEP_MAX)]
    return done + sweeping.each("green list entry", {row["resident"] for row in rows}, follow)


def _settle(moved: Sequence[grade_changes.Change]) -> None:
    follow(moved[0].resident)
    grade_changes.taken(moved)


def _settle_mark(mark: consent_marks.Mark, now: datetime) -> None:
    follow(mark.resident)
    consent_marks.looked_at([mark], now)


def follow_bank(bank_id: str, *, at_most: int | None = None) -> None:
    """Tell a bank what its own new terms change; `at_most` of its consents, in their order."""
    after = ""
    while True:
        limit = STRETCH if at_most is None else at_most
        wanted = {"bank_id": bank_id, "_id": {"$gt": after}}
        rows = list(_standings().find(wanted).sort("_id", 1).limit(limit))
        for resident in dict.fromkeys(
            row["resident"] for row in rows if not row["standing"]["over"]
        ):
            follow(resident)
        if at_most is not None or len(rows) < limit:
            return
        after = rows[-1]["_id"]


def count() -> int:
    """About how many standings there are."""
    return int(_standings().estimated_document_count())


def ids_after(standing: str, limit: int) -> list[str]:
    """The ids of the standings behind one, in order."""
    wanted = {"_id": {"$gt": standing}}
    found = _standings().find(wanted, {"_id": 1}).sort("_id", 1).limit(limit)
    return [row["_id"] for row in found]


def compare(ids: Sequence[str]) -> int:
    """Follow those of some standings that lag behind gradings or terms; returns how many.

    The nightly look at all of them: it finds what no mark told of.
    """
    rows = list(_standings().find({"_id": {"$in": list(ids)}}))
    live = [row for row in rows if not row["standing"]["over"]]
    numbers = grade.newest_numbers([row["resident"] for row in live])
    terms = {bank: bank_terms.current(bank).version for bank in {row["bank_id"] for row in live}}
    behind = {
        row["resident"]
        for row in live
        if numbers.get(row["resident"], 0) > row["standing"]["number"]
        or terms[row["bank_id"]] > row["standing"]["terms"]
        or row["pending"]
    }
    sweeping.each("standing that lags", behind, follow)
    return len(behind)


def _follow(consent: Consent) -> None:
    assert consent.bank_id is not None, consent
    row = _standings().find_one({"_id": consent.id}) or _begin(consent)
    for _ in range(STEPS_MAX):
        if row["pending"]:
            _publish(row)
        else:
            moved = _next(consent, _standing(row))
            if moved is None:
                return
            _take(consent.id, *moved)
        found = _standings().find_one({"_id": consent.id})
        assert found is not None, "a standing is never deleted"
        row = found


def _begin(consent: Consent) -> storage.Doc:
    terms = bank_terms.current(consent.bank_id or "")
    last = grade.grade_now(consent.resident) if consent.status_at(clock.now()) == "active" else None
    standing = Standing(
        step=0,
        # The grading of this moment is the first the bank is told.
        number=last.number - 1 if last is not None else 0,
        grade=None,
        threshold=terms.threshold,
        terms=terms.version,
        since=None,
    )
    row: storage.Doc = {
        "_id": consent.id,
        "bank_id": consent.bank_id,
        "reference": consent.reference,
        "resident": consent.resident,
        "expires_at": consent.expires_at,
        "standing": _plain(standing),
        "listed": None,
        "pending": None,
    }
    try:
        _standings().insert_one(row)
    except DuplicateKeyError:
        found = _standings().find_one({"_id": consent.id})
        assert found is not None, consent.id
        return found
    return row


def _next(consent: Consent, old: Standing) -> tuple[Standing, Change | None, datetime] | None:
    """The next step: gradings first, then terms, and the end only after both."""
    if old.over:
        return None
    now = clock.now()
    over = consent.status_at(now) != "active"
    policy = grade.policy_on(clock.city_day(now))
    may_list = "grade" in consent.fields
    snapshot = grade.after(consent.resident, old.number)
    if snapshot is not None and not (over and snapshot.graded_at >= consent.ends_at):
        standing = snapshot.standing.grade
        moved = listing.graded(
            old, policy, snapshot.number, standing, snapshot.graded_at, may_list=may_list
        )
        return *moved, now
    terms = bank_terms.current(consent.bank_id or "")
    if terms.version > old.terms and not over:
        moved = listing.termed(old, policy, terms.version, terms.threshold, now, may_list=may_list)
        return *moved, now
    if over:
        return *listing.ended(old, withdrawn=consent.withdrawn_at is not None), now
    return None


def _take(consent_id: str, new: Standing, change: Change | None, at: datetime) -> None:
    """Move the standing on by one step with what is to be told; nothing if it moved already."""
    pending = {"change": change.change, "grade": change.grade, "at": at} if change else None
    _standings().update_one(
        {"_id": consent_id, "standing.step": new.step - 1, "pending": None},
        {
            "$set": {
                "standing": _plain(new),
                "listed": new.grade if new.listed else None,
                "pending": pending,
            }
        },
    )


def _publish(row: storage.Doc) -> None:
    """Give a pending change the next number of its bank, once, and let the standing go on."""
    bank_id, step, pending = row["bank_id"], row["standing"]["step"], row["pending"]
    key = {"bank_id": bank_id, "consent": row["_id"], "step": step}
    for attempt in range(ATTEMPTS_MAX):
        change = _changes().find_one(key)
        if change is not None:
            break
        change = {
            "_id": new_id("chg"),
            **key,
            "sequence": last_sequence(bank_id) + 1,
            "reference": row["reference"],
            "resident": row["resident"],
            **pending,
        }
        try:
            _changes().insert_one(change)
        except DuplicateKeyError:
            # Another change took the number, or another worker told this one.
            time.sleep(random.uniform(0, min(_PAUSE_MAX_S, 0.001 * (attempt + 1))))
            continue
        break
    else:
        raise AccountBusy()
    # The grade itself is read where reads are recorded.
    events.leave(
        Happening(
            events.party(Kind.BANK, bank_id),
            Type.GREEN_LIST_CHANGED,
            f"consent:{change['reference']}",
            f"green_list:{change['consent']}:{step}",
            {name: change[name] for name in ("sequence", "reference", "change")},
        )
    )
    _standings().update_one({"_id": row["_id"], "standing.step": step}, {"$set": {"pending": None}})


def _plain(standing: Standing) -> dict[str, Any]:
    return {name: getattr(standing, name) for name in Standing.__slots__}


def _standing(row: storage.Doc) -> Standing:
    return Standing(**row["standing"])


def consents_of(told: Sequence[Told]) -> list[Consent]:
    """The consents behind changes that show a grade, as far as they hold now, in their order."""
    found = consents.live([one.consent_id for one in told if one.grade], clock.now())
    return [found[one.consent_id] for one in told if one.grade and one.consent_id in found]
