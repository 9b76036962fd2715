"""Grading the whole city: one job, cut into ranges of residents that workers share.

    job -> a job for each range -> stretches: months brought to the heads -> graded on the server ->
    snapshots written -> those who were graded meanwhile one by one -> changes told

The server makes the snapshots from the stored months (`footprint/grade_pipeline.py`); only finished
documents travel. Who has nothing new gets none, so a stretch that a crash cut off is simply done
again, and nobody is graded twice or left out.

The job of a city month is its scheduled grading, which counts towards a fall.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo.collection import Collection

from accounting import accounts, book, clock, jobs, shares, storage, walks
from accounting.accounts import ResidentDocument
from accounting.jobs import Job
from footprint import grade, grade_pipeline, summaries

KIND, RANGE_KIND = "regrade", "regrade_range"
# A worker's share is minutes, not hours.
RANGE_MIN = 10_000
STRETCH = 1_000

_RAW: CodecOptions[Any] = CodecOptions(document_class=RawBSONDocument, tz_aware=True)


def queue(owner: str, *, month: str | None = None) -> Job:
    """A job over every resident; with a `month` its one scheduled grading, however often asked.

    Where it is cut stands in the job, so that a worker that takes over cuts it there too.
    """
    name = f"job_{KIND}_{month}" if month is not None else None
    earlier = jobs.get(name) if name is not None else None
    if earlier is not None:
        return earlier
    size = accounts.count()
    cuts = accounts.every_nth_id(max(RANGE_MIN, -(-size // shares.SHARES_MAX)))
    arguments = {"month": month, "cuts": cuts, shares.COUNT: len(cuts) + 1}
    return jobs.queue(KIND, owner, arguments, name, unit=jobs.RESIDENTS, total=size)


def cut(job_id: str) -> list[Job]:
    """Make the jobs of the ranges; returns those that are not over, for workers to share.

    None of them when another worker cuts the job or it is over.
    """
    job = jobs.take(job_id)
    if job is None:
        return []
    assert job.total is not None, job.id
    starts = ["", *job.arguments["cuts"]]
    ranges = [
        {"month": job.arguments["month"], "after": after, "last": last}
        | {"total": max(job.total // len(starts), 1)}
        for after, last in zip(starts, [*starts[1:], None], strict=True)
    ]
    return shares.make(job, RANGE_KIND, ranges)


def run(job_id: str) -> Job | None:
    """Cut a job and carry every range to its end in this very process."""
    for one in cut(job_id):
        run_range(one.id)
    return jobs.get(job_id)


def run_range(job_id: str) -> Job | None:
    """Carry a range to its end; see `walks.run`. Whoever ends the last one ends the whole job."""
    found = jobs.get(job_id)
    assert found is not None, job_id
    share, whole = found.arguments, found.whole
    assert whole is not None, job_id
    if not shares.goes_on(found):
        return None

    def ids_after(after: str, limit: int) -> Sequence[str]:
        ids = accounts.ids_after(after or share["after"], limit)
        return [one for one in ids if share["last"] is None or one <= share["last"]]

    def work(job: Job, residents: Sequence[str]) -> walks.Totals:
        done = grade_all(residents, share["month"])
        if shares.goes_on(job):
            shares.add_up(whole)
        return done

    over = walks.run(job_id, work, ids_after=ids_after, stretch=STRETCH)
    shares.add_up(whole)
    return over


def grade_all(residents: Sequence[str], scheduled: str | None) -> walks.Totals:
    """Grade residents that stand next to each other in the order of their ids; safe to repeat."""
    _catch_up(residents)
    between = {"$gte": residents[0], "$lte": residents[-1]}
    stages = grade_pipeline.snapshots(between, clock.now(), scheduled)
    made = list(_residents().aggregate(stages))
    written = storage.insert_new(grade.snapshots(), made)
    # Somebody graded these meanwhile, or they moved on: one by one nothing is lost.
    for place in sorted(set(range(len(made))) - set(written)):
        grade.grade_now(made[place]["resident"], scheduled=scheduled)
    changed = 0
    while told := grade.tell_untold(between):
        changed += told
    return {"residents": len(residents), "graded": len(made), "changed": changed}


def totals(job: Job) -> walks.Totals:
    """What all ranges have added up so far: residents, new snapshots, grades that moved."""
    sums: Counter[str] = Counter()
    for number in range(len(job.arguments["cuts"]) + 1):
        sums.update(walks.totals(shares.name(job.id, number)))
    return dict(sums)


def _residents() -> "Collection[RawBSONDocument]":
    return storage.strong(ResidentDocument._get_collection()).with_options(codec_options=_RAW)


def _catch_up(residents: Sequence[str]) -> None:
    """Bring the months to the heads: what lags is what the follower has not reached."""
    heads = book.last_seqs(residents)
    done = summaries.cursors(heads)
    behind = [account for account, seq in heads.items() if seq > done[account]]
    if behind:
        summaries.catch_up_to(book.heads(behind).values())
