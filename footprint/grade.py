"""The personal carbon grade of one resident: inputs from the summaries, a snapshot for ever.

Only credited reductions of the policy's evidence classes, net of reversals, of behaviours that may
count for a bank. Health data never does. `footprint/regrading.py` does the same for the whole city.
"""

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime
from typing import Any

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import book, clock, grading, notices, outbox, storage
from accounting.errors import AccountBusy
from accounting.grading import UNRATED, Policy, Standing
from accounting.outbox import Notice
from footprint import grade_changes, grade_policies, methodology, summaries
from footprint.grade_changes import Change
from footprint.summaries import Row

ATTEMPTS_MAX = 8
UNTOLD_MAX = 500
_PAUSE_MAX_S = 0.05


@storage.indexed
class SnapshotDocument(me.Document):
    """One grading. Append-only; a month is graded again only when its inputs changed.

    `untold` is the one thing that is ever removed: rows of the change are still to be left.
    """

    id = me.StringField(primary_key=True)
    resident = me.StringField(required=True)
    number = me.IntField(required=True)
    graded_at = me.DateTimeField(required=True)
    standing = me.DictField()
    inputs = me.DictField()
    untold = me.BooleanField()

    meta = {
        "collection": "grades",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["resident", "-number"], "unique": True},
            {
                "fields": ["resident", "number"],
                "name": "untold",
                "partialFilterExpression": {"untold": True},
            },
        ],
    }


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that a grading rests on.

    `held` and `below` are what the grading before left. `scheduled` is the last month whose
    scheduled grading has counted, `counts` says that it is this one; `released` that a fraud was
    taken back. `seq` is the last entry of the book that did anything to the months looked at;
    `credited_mg` is everything credited in them, whatever its evidence.
    """

    policy: str
    first_month: str
    last_month: str
    by_behaviour: dict[str, int]
    active_months: int
    credited_mg: int
    seq: int
    held: str | None
    below: int
    scheduled: str | None
    counts: bool
    released: bool

    def stand(self) -> Standing:
        """What the policy makes of them."""
        return grading.stand(
            policy_named(self.policy),
            self.by_behaviour,
            self.active_months,
            held=self.held,
            below=self.below,
            scheduled=self.counts,
            released=self.released,
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One grading with everything needed to explain it and to make it again."""

    resident: str
    number: int
    graded_at: datetime
    standing: Standing
    inputs: Inputs

    @property
    def id(self) -> str:
        return f"{self.resident}/{self.number}"

    @property
    def policy(self) -> str:
        return self.inputs.policy

    @property
    def first_month(self) -> str:
        return self.inputs.first_month

    @property
    def last_month(self) -> str:
        return self.inputs.last_month

    @property
    def by_behaviour(self) -> dict[str, int]:
        return self.inputs.by_behaviour

    @property
    def share_ab(self) -> tuple[int, int]:
        """What counts, before the share cap, and all that was credited in the same months."""
        return self.standing.reduction_mg, self.inputs.credited_mg

    @property
    def months_covered(self) -> int:
        return policy_named(self.policy).months_back + 1

    @property
    def valid_until(self) -> date:
        """The end of the month after the grading."""
        return clock.last_day(clock.add_months(clock.city_month(self.graded_at), 1))

    @property
    def by_dimension(self) -> dict[str, int]:
        """Counted milligrams per dimension, after the share cap."""
        counted = policy_named(self.policy).counted(self.by_behaviour)
        sums: dict[str, int] = {}
        for code, mg in counted.items():
            dimension = methodology.dimension_of(code)
            sums[dimension] = sums.get(dimension, 0) + mg
        return sums

    @property
    def change(self) -> Change | None:
        """What this grading changed; None if the grade is the one before."""
        before = self.inputs.held or UNRATED
        if self.standing.grade == before:
            return None
        return Change(self.resident, self.number, before, self.standing.grade, self.graded_at)


def policy_on(day: date) -> Policy:
    """The policy in force on a city day."""
    return [policy for policy in grade_policies.known() if policy.valid_from <= day][-1]


def policy_named(version: str) -> Policy:
    return next(policy for policy in grade_policies.known() if policy.version == version)


def label(policy: Policy, grade: str) -> Mapping[str, str]:
    return policy.labels[grade]


def window(policy: Policy, now: datetime) -> tuple[str, str]:
    """The first and last city month a grading looks at: the full ones before, and this one."""
    last = clock.city_month(now)
    return clock.add_months(last, -policy.months_back), last


# Grading.


def grade_now(
    resident: str, *, scheduled: str | None = None, released: bool = False, anew: bool = False
) -> Snapshot:
    """Grade a resident, exactly, and keep the snapshot if anything changed.

    `scheduled` is the month whose scheduled grading this is: it counts once towards a fall.
    `released` lets the grade fall at once. `anew` looks at the months although no entry came since,
    because they were built again. Raises `AccountBusy` if others keep grading as well.
    """
    settled = scheduled is None and not released and not anew
    for attempt in range(ATTEMPTS_MAX):
        last, head = _newest_and_head(resident)
        now = clock.now()
        policy = policy_on(clock.city_day(now))
        if settled and last is not None and _nothing_came(last, head, policy, now):
            return last
        seq, rows = summaries.month_rows(resident, *window(policy, now))
        fresh = graded(
            resident, policy, now, seq, rows, last, scheduled=scheduled, released=released
        )
        if last is not None and is_same(last, fresh):
            return last
        try:
            snapshots().insert_one(document_of(fresh))
        except DuplicateKeyError:
            # Graded twice at once: look again, usually to find that nothing is left to add.
            time.sleep(random.uniform(0, min(0.002 * 2**attempt, _PAUSE_MAX_S)))
            continue
        tell([fresh])
        return fresh
    raise AccountBusy(retry_after=1)


def taken_back(resident: str, *, fraud: bool = False) -> None:
    """Grade a resident again from whom something was taken back, or whose past was restated.

    Safe to repeat. A fraud lets the grade fall at once. Who never had a grade has none to lose.
    """
    if newest_of(resident) is not None:
        grade_now(resident, released=fraud)


def made_anew(resident: str) -> Snapshot:
    """Build the months of a resident again from the book, and grade; safe to repeat."""
    summaries.rebuild(resident)
    return grade_now(resident, anew=True)


def rebuilt(resident: str) -> None:
    """Build the months of an account again; who has a grade gets the one they give."""
    summaries.rebuild(resident)
    if newest_of(resident) is not None:
        grade_now(resident, anew=True)


def graded(
    resident: str,
    policy: Policy,
    now: datetime,
    seq: int,
    rows: Sequence[Row],
    last: Snapshot | None,
    *,
    scheduled: str | None = None,
    released: bool = False,
) -> Snapshot:
    """What a policy makes of the rows of its window, after the snapshot `last`. Pure."""
    first_month, last_month = window(policy, now)
    by_behaviour, active_months = counted(policy, rows)
    before = last.inputs.scheduled if last else None
    counts = scheduled is not None and (before is None or before < scheduled)
    inputs = Inputs(
        policy=policy.version,
        first_month=first_month,
        last_month=last_month,
        by_behaviour=by_behaviour,
        active_months=active_months,
        credited_mg=sum(row.mg for row in rows),
        seq=seq,
        held=last.standing.grade if last else None,
        below=last.standing.below if last else 0,
        scheduled=scheduled if counts else before,
        counts=counts,
        released=released,
    )
    number = last.number + 1 if last else 1
    return Snapshot(resident, number, now, inputs.stand(), inputs)


def counted(policy: Policy, rows: Iterable[Row]) -> tuple[dict[str, int], int]:
    """Milligrams that count by behaviour, and in how many months any did."""
    sums: dict[str, int] = {}
    months = set()
    for row in rows:
        if policy.counts(row.evidence, bank_grade=row.bank_grade):
            sums[row.behaviour] = sums.get(row.behaviour, 0) + row.mg
            if row.mg > 0:
                months.add(row.month)
    return {code: mg for code, mg in sorted(sums.items()) if mg > 0}, len(months)


def _newest_and_head(resident: str) -> tuple[Snapshot | None, int]:
    """The last grading, and the last sequence number of the book then, in one round trip."""
    newest: list[storage.Doc] = [
        {"$match": {"resident": resident}},
        {"$sort": {"number": -1}},
        {"$limit": 1},
        book.head_stage(resident, "head"),
    ]
    last, head = None, 0
    for row in snapshots().aggregate(newest):
        if "head" in row:
            head = row["head"]
        else:
            last = snapshot_of(row)
    return last, head


def _nothing_came(last: Snapshot, head: int, policy: Policy, now: datetime) -> bool:
    """Whether the months are certainly those that `last` looked at."""
    then = last.inputs
    same = (then.policy, then.last_month) == (policy.version, clock.city_month(now))
    return same and head <= then.seq


def is_same(last: Snapshot, fresh: Snapshot) -> bool:
    """Whether grading again would say nothing new within the same month."""
    then, now = last.inputs, fresh.inputs
    return (
        last.standing == fresh.standing
        and not now.counts
        and (
            (then.by_behaviour, then.credited_mg, then.policy, then.last_month)
            == (now.by_behaviour, now.credited_mg, now.policy, now.last_month)
        )
    )


# Telling.


def tell(fresh: Sequence[Snapshot]) -> None:
    """Leave what follows from gradings that moved a grade: rows for the feeds, a notification."""
    moved = [(one, change) for one in fresh if (change := one.change) is not None]
    if not moved:
        return
    grade_changes.leave([change for _, change in moved])
    outbox.leave_many([_notice(one, change) for one, change in moved])
    snapshots().update_many(
        {"_id": {"$in": [change.id for _, change in moved]}}, {"$unset": {"untold": ""}}
    )


def tell_untold(residents: Mapping[str, Any], *, before: datetime | None = None) -> int:
    """Tell what a crash, or a batch, left untold; `residents` is a range of ids.

    Returns how many there were, at most `UNTOLD_MAX`.
    """
    wanted: dict[str, Any] = {"untold": True, "resident": dict(residents)}
    if before is not None:
        wanted["graded_at"] = {"$lt": before}
    found = snapshots().find(wanted).sort([("resident", 1), ("number", 1)]).limit(UNTOLD_MAX)
    left = [snapshot_of(document) for document in found]
    tell(left)
    return len(left)


def sweep(before: datetime) -> int:
    """Tell what a crash left untold; returns how many were."""
    return tell_untold({"$gt": ""}, before=before)


def _notice(fresh: Snapshot, change: Change) -> Notice:
    policy = policy_named(fresh.policy)
    before, after = label(policy, change.before), label(policy, change.after)
    return notices.make(
        "grade", fresh.resident, f"grade/{fresh.number}", before=before, after=after
    )


# Reading.


def history(resident: str, *, before: int | None, limit: int) -> list[Snapshot]:
    """Snapshots, newest first."""
    wanted: dict[str, Any] = {"resident": resident}
    if before is not None:
        wanted["number"] = {"$lt": before}
    found = snapshots().find(wanted).sort("number", -1).limit(limit)
    return [snapshot_of(document) for document in found]


def newest_of(resident: str, *, before: datetime | None = None) -> Snapshot | None:
    """The last grading of a resident, if there was one; of those before an instant, if given."""
    wanted: dict[str, Any] = {"resident": resident}
    if before is not None:
        wanted["graded_at"] = {"$lt": before}
    found = snapshots().find_one(wanted, sort=[("number", -1)])
    return snapshot_of(found) if found else None


def newest(residents: Sequence[str]) -> dict[str, str]:
    """The grade of the newest snapshot of each resident who has one, in one read."""
    found = snapshots().aggregate(
        [
            {"$match": {"resident": {"$in": list(residents)}}},
            {"$sort": {"resident": 1, "number": -1}},
            {"$group": {"_id": "$resident", "grade": {"$first": "$standing.grade"}}},
        ]
    )
    return {row["_id"]: row["grade"] for row in found}


def after(resident: str, number: int) -> Snapshot | None:
    """The first snapshot beyond a number, if there is one."""
    wanted = {"resident": resident, "number": {"$gt": number}}
    found = snapshots().find_one(wanted, sort=[("number", 1)])
    return snapshot_of(found) if found else None


def newest_numbers(residents: Sequence[str]) -> dict[str, int]:
    """The number of the newest snapshot of each resident who has one, in one read."""
    found = snapshots().aggregate(
        [
            {"$match": {"resident": {"$in": list(residents)}}},
            {"$sort": {"resident": 1, "number": -1}},
            {"$group": {"_id": "$resident", "number": {"$first": "$number"}}},
        ]
    )
    return {row["_id"]: row["number"] for row in found}


def by_id(snapshot_id: str) -> Snapshot:
    found = snapshots().find_one({"_id": snapshot_id})
    assert found is not None, "snapshots are never deleted"
    return snapshot_of(found)


def snapshots() -> "Collection[storage.Doc]":
    return storage.strong(SnapshotDocument._get_collection())


def document_of(snapshot: Snapshot) -> storage.Doc:
    """A snapshot as it is stored; `regrading` makes the same on the server."""
    return {
        "_id": snapshot.id,
        "resident": snapshot.resident,
        "number": snapshot.number,
        "graded_at": snapshot.graded_at,
        "standing": {name: getattr(snapshot.standing, name) for name in Standing.__slots__},
        "inputs": {name: getattr(snapshot.inputs, name) for name in Inputs.__slots__},
        **({"untold": True} if snapshot.change is not None else {}),
    }


def snapshot_of(document: storage.Doc) -> Snapshot:
    inputs = document["inputs"]
    return Snapshot(
        resident=document["resident"],
        number=document["number"],
        graded_at=document["graded_at"],
        standing=Standing(**document["standing"]),
        inputs=Inputs(**{one.name: inputs[one.name] for one in fields(Inputs)}),
    )
