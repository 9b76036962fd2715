"""Reports by the hundred: the steps of crediting, each for all of them at once.

    batch remembered -> facts stored -> claims taken -> book.post_many -> milestones -> forgotten

Rules, keys and entries are those of `crediting`. What a crash leaves is a batch that is remembered
(see `underway`); the sweeper goes through it again. Outcomes of its facts are left to the book, see
`activities`. A handful is not worth that: its facts are `received` and settled like single ones.
What one report is refused is its own result.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from accounting import book, claims, clock, sweeping
from accounting.book import Posted
from accounting.claims import Wish
from accounting.errors import DomainError
from footprint import activities, underway
from footprint.activities import (
    BOOKED,
    COUNTED,
    SETTLED,
    Activity,
    Outcome,
    SourceEventConflict,
)
from footprint.underway import Batch
from points import audience, crediting, milestones
from points.earning import Who

# Fewer facts than this are settled in writing: that costs less than remembering them.
TOGETHER_MIN = 20
SWEEP_MAX = 20

# The settled activity and whether it was new, or why there is none.
Received = tuple[Activity, bool] | DomainError


def take_in(facts: Sequence[Activity]) -> list[Received]:
    """Store facts and bring each to its outcome; in their order, as `crediting.take_in` would.

    Raises nothing for a single one: `SourceEventConflict` and `AccountBusy` are results.
    """
    if len(facts) < TOGETHER_MIN:
        return _take_in(facts, booked=False)
    batch = underway.begin([fact.id for fact in facts], clock.now() + crediting.SWEEP_AFTER)
    results = _take_in(facts, booked=True)
    # What is refused for its event id was never stored; anything else is for the sweep.
    if all(isinstance(one, tuple | SourceEventConflict) for one in results):
        underway.end(batch)
    return results


def sweep(now: datetime) -> int:
    """Finish batches a crash left, or of which an account was busy; returns how many."""
    return sweeping.each("batch", underway.left(now, SWEEP_MAX), _sweep_one)


def _sweep_one(batch: Batch) -> None:
    # One by one, so that what cannot be finished holds up no other.
    facts, stored = activities.booked(batch.facts)
    finished = sweeping.each("activity of a batch", facts, crediting.resume)
    underway.looked_at(batch, clock.now(), stored=stored, left=len(facts) - finished)


def _take_in(facts: Sequence[Activity], *, booked: bool) -> list[Received]:
    stored = activities.receive_many(facts, booked=booked)
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
            plain.append((activity, result))
    for finished in _finish(plain):
        ends[finished.id] = finished
    # Few are one trip with another: what links them is written one by one.
    for activity, entry in linked:
        ends[activity.id] = crediting.finish(activity, entry)
    return ends


def _finish(posted: Sequence[tuple[Activity, Posted]]) -> list[Activity]:
    """What `crediting.finish` does, for entries that stand alone."""
    milestones.record_many([crediting.climb(one.entry) for _, one in posted])
    by_the_book: list[tuple[Activity, Outcome]] = []
    written: list[tuple[Activity, Outcome]] = []
    free: list[str] = []
    for activity, (entry, replayed) in posted:
        outcome = activities.outcome_of(activity, entry)
        # Of an entry that was there before, another may have had a word since.
        left = activity.state == BOOKED and not replayed and outcome.status not in COUNTED
        (by_the_book if left else written).append((activity, outcome))
        if activity.claim is not None and entry.refs["counted"] == 0:
            free.append(activity.id)
    settled = activities.settle_many(written)
    # Nothing is credited for them, so somebody else may have what they claimed.
    free += [one.id for one in settled if one.claim is not None and one.status == "reversed"]
    if free:
        claims.release(*free)
    return [*activities.leave_to_book(by_the_book), *settled]


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
