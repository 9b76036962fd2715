"""Time passing in accounts where nothing else happens: what matured, was held too long, expired.

Any entry of an account brings it to the present first, so balances are right without this. The
nightly job writes the same moves down for quiet accounts, so that the books of the city and its
funders are right as well, and residents read of it. An account without such moves gets no entry,
so doing a stretch of accounts again after a crash writes nothing twice. On the same walk residents
are told of points that expire soon.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime

from accounting import book, clock, walks
from accounting.book import Ask, Decision, Entry, Head, Wanted
from accounting.errors import DomainError
from accounting.jobs import Job
from points import reminding
from points.wallet import Wallet

KIND = "mature_and_expire"
Step = Callable[[Wallet, datetime], None]
# In the order of `Wallet.advance`: an entry of each kind where that much time has passed.
STEPS: tuple[tuple[str, Step], ...] = (
    ("mature", Wallet.mature),
    ("release", Wallet.lapse),
    ("expire", Wallet.expire),
)
REASONS = {"mature": "matured", "release": "hold_over", "expire": "expired"}


class NothingPassed(DomainError):
    code = "nothing_passed"
    en = "Nothing has matured, ended or expired in this account."
    zh = "该账户没有到期生效、冻结到期或过期的积分。"


def queue(owner: str, *, day: date | None = None) -> Job:
    """A job over every resident; with a `day` the one job of that night, however often asked."""
    name = f"job_{KIND}_{day.isoformat()}" if day is not None else None
    return walks.queue(KIND, owner, {}, name)


def run(job_id: str) -> Job | None:
    """Carry the job to its end; see `walks.run`."""

    def work(job: Job, residents: Sequence[str]) -> walks.Totals:
        posted = Counter(entry.kind for entry in pass_time(residents))
        if reminded := reminding.remind(residents):
            posted["reminded"] = reminded
        return {"residents": len(residents), **posted}

    return walks.run(job_id, work)


def pass_time(residents: Iterable[str]) -> list[Entry]:
    """Write down what time has done to accounts since their last entries; nothing if nothing.

    Whoever does the same at the same time has the same entries. Raises `AccountBusy`; then doing it
    again does what is left.
    """
    now = clock.now()
    wanted = [
        _wanted(head, kind, step)
        for head in book.heads(residents).values()
        if _moved(Wallet.advance, head, now) is not None
        for kind, step in STEPS
    ]
    posted = []
    for result in book.post_many(wanted):
        if isinstance(result, book.Posted):
            posted.append(result.entry)
        elif not isinstance(result, NothingPassed):
            raise result
    return posted


def _wanted(head: Head, kind: str, step: Step) -> Wanted:
    def decide(newest: Head, now: datetime) -> Decision:
        wallet = _moved(step, newest, now)
        if wallet is None:
            # Nothing of this kind, or another entry has brought the account to the present.
            raise NothingPassed()
        refs = {"by_time": kind, "reason": REASONS[kind]}
        return Decision(tuple(wallet.lines), {"wallet": wallet.dump()}, refs)

    key = f"time:{kind}:{head.seq}"
    return Wanted(Ask(head.account, key, kind, book.fingerprint(key), clock.now()), decide)


def _moved(step: Step, head: Head, now: datetime) -> Wallet | None:
    wallet = Wallet.load(head.after)
    step(wallet, now)
    return wallet if wallet.lines else None
