"""Taking a whole file back: what the file brought first, and nothing else.

The import is stopped, and once no worker can be at it any more, a job of its own walks over the
rows that name it. Each is taken back as it would be by itself, so a job that a kill cut off begins
again where it was.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from accounting import clock, jobs, walks
from accounting.jobs import Failure, Job
from footprint import activities, bills, parked
from footprint.activities import Activity
from footprint.bill_intake import AlreadyCorrected
from footprint.bills import Bill
from points import bill_crediting, crediting
from points.crediting import NothingToReverse

KIND = "reverse"
STOPPED = Failure(
    "taken_back", "It was taken back before it ended.", "该文件在处理完成前已被撤销。"
)
# As many rows as a request takes back itself.
AT_ONCE_MAX = 1_000
THREADS = 8

Item = TypeVar("Item")


def ask(job: Job, *, reason: str, by: str) -> Job:
    """Take a file job back; the job that does so, which is done already for a small file.

    Asking again gives the same one, with the first reason.
    """
    reversal_id = f"{KIND}_{job.id}"
    size = activities.count_of_job(job.id) + bills.count_of_job(job.id)
    arguments = {"reverses": job.id, "reason": reason, "by": by}
    jobs.queue(KIND, job.owner, arguments, reversal_id, total=size)
    _stop(job.id, reversal_id)
    if size <= AT_ONCE_MAX:
        run(reversal_id)
    reversal = jobs.get(reversal_id)
    assert reversal is not None, "jobs are never deleted"
    return reversal


def run(job_id: str) -> Job | None:
    """Work a reversal to its end; None when it has to wait, another worker has it or it is over."""
    waiting = jobs.get(job_id)
    assert waiting is not None, job_id
    source = _stop(waiting.arguments["reverses"], job_id)
    stopped = source.failure == STOPPED or source.cancelled_by is not None
    if stopped and source.leased_until > clock.now():
        # Its last worker may be at its rows still; the sweep comes back when that is over.
        jobs.postpone(job_id, source.leased_until)
        return None
    parked.forget_job(source.id)
    return walks.run(job_id, _work, ids_after=lambda after, limit: _ids(source.id, after, limit))


def _stop(job_id: str, reversal_id: str) -> Job:
    return jobs.stop(job_id, reversal_id, STOPPED)


def _ids(job_id: str, after: str, limit: int) -> Sequence[str]:
    """Activities first, then bills: so do their ids sort."""
    found = activities.of_job(job_id, after=after, limit=limit)
    return found or bills.of_job(job_id, after=after, limit=limit)


def _work(job: Job, ids: Sequence[str]) -> walks.Totals:
    reason, by = job.arguments["reason"], job.arguments["by"]

    def activity_back(one: Activity) -> bool:
        return _taken(lambda: crediting.reverse(one, reason=reason, by=by))

    def bill_back(one: Bill) -> bool:
        return _taken(lambda: bill_crediting.reverse(one, reason=reason, by=by))

    back = _each(activity_back, activities.by_ids(ids), lambda one: one.resident)
    back += _each(bill_back, bills.by_ids(ids).values(), lambda one: one.household)
    return {"reversed": back, "nothing": len(ids) - back}


def _taken(take_back: Callable[[], object]) -> bool:
    """Whether there was something to take back."""
    try:
        take_back()
    except (NothingToReverse, AlreadyCorrected):
        return False
    return True


def _each(
    take_back: Callable[[Item], bool], items: Iterable[Item], owner: Callable[[Item], str]
) -> int:
    """Take items back, owners side by side; returns how many were."""
    by_owner: dict[str, list[Item]] = {}
    for item in items:
        by_owner.setdefault(owner(item), []).append(item)

    def all_of(name: str) -> int:
        return sum(take_back(item) for item in by_owner[name])

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(all_of, by_owner))
