"""Rows of a data partner: who they belong to, whether the partner may report them, what they earn.

A bad row never spoils its neighbours: each row has its own result, in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from accounting import clock, links, sweeping, walks
from accounting.errors import AccountBusy, DomainError, NotFound
from accounting.links import Link
from footprint import activities, intake, parked
from footprint.activities import Activity
from footprint.parked import Parked
from footprint.rules import Report
from points import batches, crediting
from points.batches import Received

EVIDENCE = "A"
PARKED = "parked"
CREDIT_AT_ONCE = 500


class BehaviourNotAllowed(DomainError):
    """Facts: behaviour."""

    code = "behaviour_not_allowed"
    en = "This partner may not report {behaviour}."
    zh = "该合作方无权上报 {behaviour}。"


class NotInNamespace(DomainError):
    code = "id_not_in_namespace"
    en = "This external id does not belong to the partner's namespace."
    zh = "该外部账号不属于合作方的编号范围。"


@dataclass(frozen=True, slots=True)
class Partner:
    """What a data partner may report. `behaviours` None means all (the demo partner)."""

    id: str
    behaviours: frozenset[str] | None = None
    carriers: frozenset[str] = frozenset()
    id_namespace: str = ""

    @property
    def source(self) -> str:
        return f"partner:{self.id}"


@dataclass(frozen=True, slots=True)
class Row:
    external_id: str
    event_id: str
    report: Report
    # The file job it came with, if any.
    job: str | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of one row: an activity, a parked row's stand-in, or a refusal."""

    activity: Activity | None = None
    fresh: bool = False
    refusal: DomainError | None = field(default=None)


def take(partner: Partner, rows: Sequence[Row]) -> list[Taken]:
    """Take rows in, all together; the results are in the order of the rows."""
    results: dict[int, Taken] = {}
    residents = links.residents_of(partner.id, sorted({row.external_id for row in rows}))
    known: list[tuple[int, Activity]] = []
    unknown: list[tuple[int, Row]] = []
    now = clock.now()
    for place, row in enumerate(rows):
        refusal = refusal_of(partner, row)
        if refusal is not None:
            results[place] = Taken(refusal=refusal)
        elif row.external_id in residents:
            known.append((place, _fact(partner, row, residents[row.external_id], now)))
        else:
            unknown.append((place, row))
    received = batches.take_in([fact for _, fact in known])
    for (place, _), one in zip(known, received, strict=True):
        results[place] = _taken(one)
    parked_rows = _park(partner, [row for _, row in unknown], now)
    for (place, _), taken in zip(unknown, parked_rows, strict=True):
        results[place] = taken
    return [results[place] for place in range(len(rows))]


def credit_parked(link: Link) -> int:
    """Credit what was parked for a link that now exists; safe to repeat. Returns how many.

    At most `parked.CREDIT_MAX` at once; the sweep goes on with what is left.
    """
    rows = parked.of_external(link.external_hash)
    for start in range(0, len(rows), CREDIT_AT_ONCE):
        for one in _credit(rows[start : start + CREDIT_AT_ONCE], link.resident):
            if isinstance(one, AccountBusy):
                # It stays parked, and the link open for the sweep.
                raise one
    if len(rows) < parked.CREDIT_MAX:
        links.parked_credited(link.id)
    return len(rows)


def sweep(now: datetime) -> int:
    """Credit what a crash left parked although its id is linked; returns how many links."""
    left = links.parked_open(now - crediting.SWEEP_AFTER)
    return sweeping.each("link with parked rows", left, credit_parked)


def reverse(partner: Partner, event_id: str, reason: str) -> Activity:
    """Take back what a partner reported (a refund, a cancelled ride). Raises `NotFound`."""
    activity = activities.by_event(partner.source, event_id)
    if activity is None:
        raise NotFound()
    return crediting.reverse(activity, reason=reason, by=partner.source)


def refusal_of(partner: Partner, row: Row) -> DomainError | None:
    """Why a partner may not report a row; None if it may."""
    if partner.behaviours is not None and row.report.behaviour not in partner.behaviours:
        return BehaviourNotAllowed(behaviour=row.report.behaviour)
    if not row.external_id.startswith(partner.id_namespace):
        return NotInNamespace()
    return None


def _fact(partner: Partner, row: Row, resident: str, now: datetime) -> Activity:
    return intake.fact_of(
        row.report,
        resident=resident,
        source=partner.source,
        event_id=row.event_id,
        evidence=EVIDENCE,
        received_at=now,
        subject=links.external_hash(partner.id, row.external_id),
        job=row.job,
    )


def _taken(one: Received) -> Taken:
    if isinstance(one, DomainError):
        return Taken(refusal=one)
    activity, fresh = one
    return Taken(activity, fresh)


def _park(partner: Partner, rows: Sequence[Row], now: datetime) -> list[Taken]:
    """Park the rows of ids nobody has linked, in a fixed number of round trips."""
    if not rows:
        return []
    results: dict[int, Taken] = {}
    credited = activities.by_events(partner.source, [row.event_id for row in rows])
    wanted: list[tuple[int, Parked]] = []
    for place, row in enumerate(rows):
        one = _parked(partner, row, now)
        earlier = credited.get(row.event_id)
        if earlier is None:
            wanted.append((place, one))
        elif earlier.fingerprint == one.fingerprint:
            # Credited under a link that was ended since; the event id is taken for ever.
            results[place] = Taken(earlier, fresh=False)
        else:
            conflict = activities.SourceEventConflict(source_event_id=row.event_id)
            results[place] = Taken(refusal=conflict)
    kept = parked.park_many([one for _, one in wanted])
    # Linked between the look-up and the parking: nobody else would credit these rows.
    residents = links.residents_of(partner.id, sorted({row.external_id for row in rows}))
    for (place, _), parking in zip(wanted, kept, strict=True):
        resident = residents.get(rows[place].external_id)
        if isinstance(parking, DomainError):
            results[place] = Taken(refusal=parking)
        elif resident is None:
            results[place] = Taken(_stand_in(parking[0]), parking[1])
        else:
            [received] = _credit([parking[0]], resident)
            results[place] = replace(_taken(received), fresh=parking[1])
    return [results[place] for place in range(len(rows))]


def _parked(partner: Partner, row: Row, now: datetime) -> Parked:
    external_hash = links.external_hash(partner.id, row.external_id)
    return Parked(
        id=activities.new_activity_id(),
        source=partner.source,
        event_id=row.event_id,
        external_hash=external_hash,
        fingerprint=intake.fingerprint(row.report, external_hash),
        report=row.report,
        parked_at=now,
        job=row.job,
    )


def _credit(rows: Sequence[Parked], resident: str) -> list[Received]:
    """Credit parked rows to who linked their id, and forget them unless the account was busy.

    One whose event id came with other content meanwhile can never be credited.
    """
    received = batches.take_in(
        [
            intake.fact_of(
                row.report,
                resident=resident,
                source=row.source,
                event_id=row.event_id,
                evidence=EVIDENCE,
                received_at=row.parked_at,
                subject=row.external_hash,
                activity_id=row.id,
                job=row.job,
            )
            for row in rows
        ]
    )
    taken = zip(rows, received, strict=True)
    done = [row.id for row, one in taken if not isinstance(one, AccountBusy)]
    if parked.forget(done) < len(done):
        # Somebody dropped them meanwhile. Were it a file that is taken back, its walk may have gone
        # by before these were credited.
        for job in {row.job for row in rows if row.job}:
            walks.again_after(job)
    return received


def _stand_in(row: Parked) -> Activity:
    """A parked row shown as the activity it will become."""
    return Activity(
        id=row.id,
        resident="",
        source=row.source,
        event_id=row.event_id,
        fingerprint=row.fingerprint,
        behaviour=row.report.behaviour,
        quantity=format(row.report.quantity.normalize(), "f"),
        start=row.report.start,
        end=row.report.end,
        attributes={},
        evidence=EVIDENCE,
        methodology="",
        received_at=row.parked_at,
        verdict=None,
        reasons=(),
        claim=None,
        line=None,
        status=PARKED,
    )
