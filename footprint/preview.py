"""What a draft of the methodology would have changed: who gains, who loses, which grades change.

A resident-month is replayed under the draft and compared with the book. Nothing is written but the
rows of a preview of the whole city, which a worker that takes over finds again.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from statistics import median_low
from typing import Any

import mongoengine as me
from pymongo import ReplaceOne
from pymongo.collection import Collection

from accounting import accounts, clock, grading, storage, walks
from accounting.grading import Policy
from accounting.jobs import Job
from footprint import grade, methodology, summaries
from footprint.methodology import Methodology
from footprint.months import posted
from footprint.replay import Worth, differences

KIND = "preview"
SAMPLE_MAX = 500
EXTREMES = 5
KEPT = timedelta(days=30)

# Milligrams that count for a bank, by day, behaviour and evidence class.
_Cells = dict[tuple[str, str, str], int]


@storage.indexed
class RowDocument(me.Document):
    """What a draft changes for one resident; kept while somebody may look at the preview."""

    job = me.StringField(required=True)
    row = me.DictField(required=True)
    made_at = me.DateTimeField(required=True)

    meta = {
        "collection": "preview_rows",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["job"]},
            {"fields": ["made_at"], "expireAfterSeconds": KEPT // timedelta(seconds=1)},
        ],
    }


@storage.indexed
class PreviewDocument(me.Document):
    id = me.StringField(primary_key=True)
    report = me.DictField(required=True)

    meta = {"collection": "previews", "auto_create_index": False}


@dataclass(frozen=True, slots=True)
class Row:
    """What a draft changes for one resident in one month. Points by who pays them.

    The grades are those the amounts make now and would make, without the patience that keeps a
    grade for two gradings.
    """

    resident: str
    mg: int
    by_behaviour: Mapping[str, tuple[int, int]]
    by_payer: Mapping[str, int]
    grade_before: str
    grade_after: str


Report = dict[str, Any]


def of_sample(draft: Methodology, month: str, worth: Worth, *, seed: int, size: int) -> Report:
    """Preview a draft on up to `SAMPLE_MAX` residents."""
    assert 0 < size <= SAMPLE_MAX, size
    residents = accounts.sample(seed, size)
    rows = (row_of(resident, draft, month, worth) for resident in residents)
    return report(draft, month, (row for row in rows if row is not None), len(residents))


def queue(owner: str, text: str, month: str) -> Job:
    """A job that previews a draft, checked before, on the whole city."""
    return walks.queue(KIND, owner, {"draft": text, "month": month})


def run(job_id: str, worth: Worth) -> Job | None:
    """Carry a preview of the whole city to its end."""

    def work(job: Job, residents: Sequence[str]) -> walks.Totals:
        draft, month = _drafted(job), job.arguments["month"]
        rows = (row_of(resident, draft, month, worth) for resident in residents)
        _keep(job.id, [row for row in rows if row is not None])
        return {"residents": len(residents)}

    def end(job: Job) -> None:
        looked_at = walks.totals(job.id).get("residents", 0)
        found = report(_drafted(job), job.arguments["month"], _kept(job.id), looked_at)
        _previews().replace_one({"_id": job.id}, {"_id": job.id, "report": found}, upsert=True)

    return walks.run(job_id, work, end)


def result(job_id: str) -> Report | None:
    """The report of a finished preview of the whole city."""
    found = _previews().find_one({"_id": job_id})
    return found["report"] if found else None


def row_of(resident: str, draft: Methodology, month: str, worth: Worth) -> Row | None:
    """What a draft changes for one resident; None for one who did nothing in the month."""
    entries = posted(resident, month)
    refs_of = {entry.seq: entry.refs for entry in entries}
    if not any(entry.day[:7] == month for entry in entries):
        return None
    changes = differences(entries, month, draft, worth)
    by_behaviour: dict[str, tuple[int, int]] = {}
    by_payer: Counter[str] = Counter()
    before = _graded_cells(resident)
    after = dict(before)
    first, last = _graded_days()
    for change in changes:
        mg, gained = by_behaviour.get(change.behaviour, (0, 0))
        by_behaviour[change.behaviour] = (mg + change.mg, gained + change.points)
        by_payer.update(worth.payers(refs_of[change.seq], change.points))
        if change.bank_grade and first.isoformat() <= change.day <= last.isoformat():
            cell = (change.day, change.behaviour, change.evidence)
            after[cell] = after.get(cell, 0) + change.mg
    policy = grade.policy_on(clock.city_day(clock.now()))
    return Row(
        resident=resident,
        mg=sum(change.mg for change in changes),
        by_behaviour=by_behaviour,
        by_payer=by_payer,
        grade_before=_grade(policy, before),
        grade_after=_grade(policy, after),
    )


def report(draft: Methodology, month: str, rows: Iterable[Row], looked_at: int) -> Report:
    """Add rows up: counts, milligrams and points, as a document can hold them."""
    amounts: dict[str, int] = {}
    by_behaviour: dict[str, list[int]] = {}
    by_payer: Counter[str] = Counter()
    grades: dict[str, Counter[str]] = {}
    active = 0
    for row in rows:
        active += 1
        if row.mg:
            amounts[row.resident] = row.mg
        for code, (mg, gained) in row.by_behaviour.items():
            sums = by_behaviour.setdefault(code, [0, 0, 0])
            sums[:] = sums[0] + 1, sums[1] + mg, sums[2] + gained
        by_payer.update(row.by_payer)
        grades.setdefault(row.grade_before, Counter())[row.grade_after] += 1
    gains = {resident: mg for resident, mg in amounts.items() if mg > 0}
    losses = {resident: mg for resident, mg in amounts.items() if mg < 0}
    return {
        "methodology_version": draft.version,
        "compared_with": sorted(
            {methodology.in_force(day).version for day in (clock.first_day(month), _last(month))}
        ),
        "month": month,
        "residents": looked_at,
        "active": active,
        "gain": _side(gains),
        "lose": _side(losses),
        "unchanged": active - len(amounts),
        "mg": sum(amounts.values()),
        "by_behaviour": [
            {"behaviour": code, "residents": count, "mg": mg, "points": gained}
            for code, (count, mg, gained) in sorted(by_behaviour.items())
        ],
        "by_payer": [
            {"payer": payer, "points": gained} for payer, gained in sorted(by_payer.items())
        ],
        "grades": {before: dict(after) for before, after in sorted(grades.items())},
        "grades_changed": sum(
            count
            for before, after in grades.items()
            for grade_after, count in after.items()
            if grade_after != before
        ),
    }


def _side(amounts: Mapping[str, int]) -> dict[str, Any]:
    """Those who gain or those who lose; the most affected first."""
    most = sorted(amounts.items(), key=lambda one: (-abs(one[1]), one[0]))[:EXTREMES]
    return {
        "residents": len(amounts),
        "mg": sum(amounts.values()),
        "median_mg": median_low(amounts.values()) if amounts else 0,
        "extremes": [{"resident_id": resident, "mg": mg} for resident, mg in most],
    }


def _last(month: str) -> date:
    return min(clock.last_day(month), clock.city_day(clock.now()))


def _graded_days() -> tuple[date, date]:
    """The days the grade looks at today."""
    today = clock.city_day(clock.now())
    first = clock.add_months(clock.month_of(today), -grade.policy_on(today).months_back)
    return clock.first_day(first), today


def _graded_cells(resident: str) -> _Cells:
    return {
        (cell.day, cell.behaviour, cell.evidence): cell.mg
        for cell in summaries.between(resident, *_graded_days()).cells
        if cell.bank_grade
    }


def _grade(policy: Policy, cells: _Cells) -> str:
    by_behaviour: Counter[str] = Counter()
    for (_, behaviour, _), mg in cells.items():
        by_behaviour[behaviour] += mg
    active_months = len({day[:7] for (day, _, _), mg in cells.items() if mg})
    return grading.stand(policy, by_behaviour, active_months).grade


def _drafted(job: Job) -> Methodology:
    return methodology.load(job.arguments["draft"], "draft")


def _rows() -> "Collection[storage.Doc]":
    return storage.strong(RowDocument._get_collection())


def _previews() -> "Collection[storage.Doc]":
    return storage.strong(PreviewDocument._get_collection())


def _keep(job_id: str, rows: list[Row]) -> None:
    """Keep rows, once each however often their stretch is done."""
    if not rows:
        return
    now = clock.now()
    _rows().bulk_write(
        [
            ReplaceOne(
                {"_id": f"{job_id}/{row.resident}"},
                {"job": job_id, "made_at": now, "row": _packed(row)},
                upsert=True,
            )
            for row in rows
        ],
        ordered=False,
    )


def _kept(job_id: str) -> Iterable[Row]:
    for found in _rows().find({"job": job_id}):
        packed = found["row"]
        sums = {code: (mg, gained) for code, mg, gained in packed["by_behaviour"]}
        yield Row(**{**packed, "by_behaviour": sums, "by_payer": dict(packed["by_payer"])})


def _packed(row: Row) -> storage.Doc:
    return {
        **{name: getattr(row, name) for name in Row.__slots__},
        # Names of versions have dots, which the store would take for a path.
        "by_behaviour": [[code, *sums] for code, sums in row.by_behaviour.items()],
        "by_payer": [[payer, gained] for payer, gained in row.by_payer.items()],
    }
