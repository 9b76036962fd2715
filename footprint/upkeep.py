"""Keeping the summaries at the heads of the book: following it, walking it, checking them.

Following is what a process of its own does all day. The walk is a job: every account is brought up
to its head, and the nightly one checks the sums of a thirtieth of the accounts against the balances
the book keeps; whatever does not agree is built again, and an alarm says so.
"""

import zlib
from collections.abc import Callable, Iterable, Sequence, Set
from functools import partial

from accounting import alarms, book, clock, following, jobs, walks
from accounting.book import Entry, Head
from accounting.jobs import Job
from footprint import folding, grade, intake, summaries
from footprint.folding import Month

KIND = "projections"
FOLLOWER = "summaries"
ALARM = "summary_differs"
# The nightly job checks the sums of one part of the accounts, so the whole city in a month.
PARTS = 30
PAGE = 500


def follow(
    stopping: Callable[[], bool],
    then: Callable[[list[Entry]], None] | None = None,
    after_walk: Callable[[Set[str]], None] | None = None,
) -> None:
    """Take entries in as they are recorded, until `stopping`; `then` looks at what they changed.

    The place is stored after both, so `then` may be handed the same entries again. Where the place
    was lost, `after_walk` looks at every account instead: nobody knows which have changed.
    """

    def take_in(entries: list[Entry]) -> None:
        summaries.take_in(entries)
        if then is not None:
            then(entries)

    following.follow(FOLLOWER, take_in, partial(walk, after_walk), stopping)


def walk(then: Callable[[Set[str]], None] | None = None) -> None:
    """Bring every account up to its head; `then` looks at a page of them after it."""
    after = ""
    while heads := book.heads_after(after, PAGE):
        summaries.catch_up_to(heads.values())
        if then is not None:
            then(heads.keys())
        after = max(heads)


def queue(owner: str, *, rebuild: bool = False, part: int | None = None) -> Job:
    """A job over every account of the book: bring it to the head and check its sums.

    With `part` only the sums of that part are checked; with `rebuild` all months are built again.
    """
    arguments = {"rebuild": rebuild, "part": part}
    return walks.queue(KIND, owner, arguments, unit=jobs.ACCOUNTS)


def queue_tonight() -> Job:
    """Tonight's job, however often asked; the part it checks goes round with the days."""
    today = clock.city_day(clock.now())
    job_id = f"job_{KIND}_{today.isoformat()}"
    arguments = {"rebuild": False, "part": today.toordinal() % PARTS}
    return walks.queue(KIND, "clock", arguments, job_id, unit=jobs.ACCOUNTS)


def run(job_id: str) -> Job | None:
    """Carry the job to its end; see `walks.run`."""

    def work(job: Job, accounts: Sequence[str]) -> walks.Totals:
        if job.arguments["rebuild"]:
            for account in accounts:
                grade.rebuilt(account)
            return {"accounts": len(accounts), "rebuilt": len(accounts)}
        heads = book.heads(accounts).values()
        lagged = summaries.catch_up_to(heads)
        part = job.arguments["part"]
        wrong = differing(head for head in heads if part in (None, part_of(head.account)))
        for account in wrong:
            alarms.sound(ALARM, account, job=job.id)
            grade.rebuilt(account)
        return {"accounts": len(accounts), "lagged": lagged, "rebuilt": len(wrong)}

    return walks.run(job_id, work, ids_after=book.accounts_after)


def totals(job_id: str) -> walks.Totals:
    """What a walk has added up so far: accounts, how many lagged, how many were built again."""
    return walks.totals(job_id)


def part_of(account: str) -> int:
    """Which part of the accounts an account is in, always the same."""
    return zlib.crc32(account.encode()) % PARTS


def differing(heads: Iterable[Head]) -> list[str]:
    """The accounts whose months do not add up to what the book says at their heads.

    One that moved on meanwhile is left for another night.
    """
    known = {head.account: head for head in heads}
    return [
        account
        for account, months in summaries.months_of(list(known)).items()
        if months is None or _differs(known[account], months)
    ]


def _differs(head: Head, months: Sequence[Month]) -> bool:
    if max((month.seq for month in months), default=0) > head.seq:
        return False
    mg, sums = folding.totals(months)
    # All that the books hold of a unit is zero: what the shared ones gained the own ones lost.
    for name, held in head.after.get("balances", {}).items():
        unit = name.partition("/")[0]
        sums[unit] = sums.get(unit, 0) + held
    return mg != intake.lifetime_mg(head) or any(sums.values())
