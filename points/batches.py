"""Reports by the hundred: the steps of crediting, each for all of them at once.

    facts stored -> claims taken -> book.post_many -> milestones -> settled

Rules, keys and entries are those of `crediting`, and so is what a crash leaves: facts that are
`received`, which the retry or the sweeper finishes. What one report is refused is its own result.
"""

from collections.abc import Callable, Iterable, Sequence

from accounting import book, claims, clock
from accounting.book import Entry
from accounting.claims import Wish
from accounting.errors import DomainError
from footprint import activities
from footprint.activities import SETTLED, Activity, Outcome
from points import audience, crediting, milestones
from points.earning import Who

# The settled activity and whether it was new, or why there is none.
Received = tuple[Activity, bool] | DomainError


def take_in(facts: Sequence[Activity]) -> list[Received]:
    """Store facts and bring each to its outcome; in their order, as `crediting.take_in` would.

    Raises nothing for a single one: `SourceEventConflict` and `AccountBusy` are results.
    """
    stored = activities.receive_many(facts)
    kept = [one[0] for one in stored if not isinstance(one, DomainError)]
    ends = resume({one.id: one for one in kept if one.state != SETTLED}.values())
    results: list[Received] = []
    for one in stored:
        if isinstance(one, DomainError):
            results.append(one)
            continue
        activity, fresh = one
        end = ends.get(activity.id, activity)
        results.append(end if isinstance(end, DomainError) else (end, fresh))
    return results


def resume(received: Iterable[Activity]) -> dict[str, Activity | DomainError]:
    """Bring received facts to their outcomes, by id; safe to run twice and at the same time."""
    ends: dict[str, Activity | DomainError] = {}
    judged, open_ = [], []
    for activity in received:
        if activity.seq is not None:
            # It is being taken back.
            ends[activity.id] = crediting.resume(activity)
        elif activity.verdict is not None:
            judged.append((activity, Outcome(activity.verdict, activity.reasons)))
        else:
            open_.append(activity)
    for activity in activities.settle_many(judged):
        ends[activity.id] = activity
    for wave in _waves(open_):
        ends |= _credit(wave)
    return ends


def _waves(received: Sequence[Activity]) -> list[list[Activity]]:
    """What can be credited at once, one part after the other; nearly always a single part.

    Whoever claims what another of them claims waits for its end, which may free it. So does
    whatever follows in its account. Pure.
    """
    waves: list[list[Activity]] = []
    accounts: dict[str, int] = {}
    claimants: dict[tuple[str, str], tuple[str, int]] = {}
    for activity in received:
        wave = accounts.get(activity.resident, 0)
        claim = activity.claim
        if claim is not None:
            name, owner = (claim["kind"], claim["value"]), claim["owner"]
            before, at = claimants.get(name, (owner, 0))
            wave = max(wave, at if before == owner else at + 1)
            claimants[name] = owner, wave
        accounts[activity.resident] = wave
        if wave == len(waves):
            waves.append([])
        waves[wave].append(activity)
    return waves


def _credit(wave: Sequence[Activity]) -> dict[str, Activity | DomainError]:
    lost, who, now = _claims_lost(wave), _Audience(wave), clock.now()
    posted = book.post_many(
        [
            crediting.asking(one, now, lost_to=lost.get(one.id), who=who.of(one.resident))
            for one in wave
        ]
    )
    ends: dict[str, Activity | DomainError] = {}
    plain, linked = [], []
    for activity, result in zip(wave, posted, strict=True):
        if isinstance(result, DomainError):
            ends[activity.id] = result
        elif result.entry.refs["merged_into"] or "replaces" in result.entry.refs:
            linked.append((activity, result.entry))
        else:
            plain.append((activity, result.entry))
    for settled in _finish(plain):
        ends[settled.id] = settled
    # Few are one trip with another: what links them is written one by one.
    for activity, entry in linked:
        ends[activity.id] = crediting.finish(activity, entry)
    return ends


def _finish(entries: Sequence[tuple[Activity, Entry]]) -> list[Activity]:
    """What `crediting.finish` does, for entries that stand alone."""
    milestones.record_many([crediting.climb(entry) for _, entry in entries])
    outcomes = [(activity, crediting.outcome(activity, entry)) for activity, entry in entries]
    settled = activities.settle_many(outcomes)
    free = [
        activity.id
        for activity, (_, entry) in zip(settled, entries, strict=True)
        if activity.claim is not None
        and (entry.refs["counted"] == 0 or activity.status == "reversed")
    ]
    if free:
        # Nothing is credited for them, so somebody else may have it.
        claims.release(*free)
    return settled


def _claims_lost(wave: Sequence[Activity]) -> dict[str, str]:
    """Take what the activities claim; the owners that have what is not theirs, by activity."""
    claiming = [one for one in wave if one.claim is not None]
    owners = claims.take_many([Wish(**one.claim, holder=one.id) for one in claiming if one.claim])
    return {
        one.id: owner
        for one, owner in zip(claiming, owners, strict=True)
        if one.claim and owner != one.claim["owner"]
    }


class _Audience:
    """The residents of a batch as campaigns see them: all read when a campaign asks for one."""

    def __init__(self, wave: Sequence[Activity]) -> None:
        self.residents = sorted({activity.resident for activity in wave})
        self.known: dict[str, Who] = {}

    def of(self, resident: str) -> Callable[[], Who]:
        return lambda: self._all()[resident]

    def _all(self) -> dict[str, Who]:
        if not self.known:
            self.known = audience.of_all(self.residents)
        return self.known
