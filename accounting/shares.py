"""Large jobs cut into shares: jobs of their own, that workers do side by side.

    whole -> shares, named by their numbers -> each worked on -> the last ends the whole

A share has its own lease, count and place, so a worker that is killed costs the others nothing. The
whole adds up what they have done, and its lease lasts at least as long as any of theirs, so whoever
stopped it knows when nobody can be at it any more. Shares that were cut once are never cut anew.
"""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from accounting import jobs
from accounting.jobs import Job

# The whole lets every page add up at once, and a share is minutes of work, not hours.
SHARES_MAX = 64
# The argument of a whole that says how many shares it has.
COUNT = "shares"


def name(whole: str, number: int) -> str:
    return f"{whole}_{number:02d}"


def make(whole: Job, kind: str, shares: Sequence[Mapping[str, Any]]) -> list[Job]:
    """The shares of a job that is taken, by their arguments; those that are not over.

    How many there are stands in the job's own arguments. A share has its `total` among its
    arguments if somebody knows it. Safe to repeat: what was made is left as it is, and what was
    cancelled with the whole goes on with it.
    """
    assert len(shares) <= SHARES_MAX, whole.id
    for number, given in enumerate(shares):
        arguments = {key: value for key, value in given.items() if key != "total"}
        total = given.get("total")
        jobs.queue(
            kind,
            whole.owner,
            arguments,
            name(whole.id, number),
            unit=whole.unit,
            total=total,
            whole=whole.id,
        )
    add_up(whole.id)
    # Shares may wait long for a worker: that is no failure of the whole.
    jobs.forget_tries(whole.id)
    return [one for one in of(whole.id) if one.state in jobs.UNFINISHED]


def of(whole: str) -> list[Job]:
    """The shares of a job in the order of their numbers."""
    return jobs.shares(whole, SHARES_MAX)


def goes_on(share: Job) -> bool:
    """Whether a share may be worked on: its whole is. If not, the share ends with it."""
    assert share.whole is not None, share.id
    if jobs.hold(share.whole):
        return True
    # It may be over.
    with contextlib.suppress(jobs.JobOver):
        jobs.cancel(share.id, share.whole, share.whole)
    return False


def add_up(whole_id: str) -> None:
    """Let a job know how far its shares are, and end it with the last of them.

    One that failed fails the whole, once the others have done what they could; one that ended with
    the whole goes on with it.
    """
    whole = jobs.get(whole_id)
    assert whole is not None, whole_id
    if whole.state != jobs.RUNNING:
        return
    parts = of(whole_id)
    for one in parts:
        if one.cancelled_by is not None:
            # The whole has rested for all of them. Another worker may have been quicker.
            with contextlib.suppress(jobs.JobNotCancelled):
                jobs.resume(one.id, timedelta(0))
    done = sum(one.done for one in parts)
    counts: Counter[str] = Counter(dict.fromkeys(whole.counts, 0))
    for one in parts:
        counts.update(one.counts)
    jobs.advance(whole, done, 0, dict(counts))
    if len(parts) < whole.arguments[COUNT]:
        return  # Whoever was making them died: the next worker makes the others.
    if any(one.state in jobs.UNFINISHED or one.cancelled_by is not None for one in parts):
        return
    failed = next((one for one in parts if one.state == jobs.FAILED), None)
    if failed is None:
        jobs.finish(whole, done)
    else:
        assert failed.failure is not None, failed.id
        jobs.fail(whole, failed.failure)
