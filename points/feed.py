"""Rows of a data partner: who they belong to, whether the partner may report them, what they earn.

A bad row never spoils its neighbours: each row has its own result, in order.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime

from accounting import clock, links, sweeping
from accounting.errors import DomainError, NotFound
from accounting.links import Link
from footprint import activities, intake, parked
from footprint.activities import Activity
from footprint.parked import Parked
from footprint.rules import Report
from points import crediting

EVIDENCE = "A"
PARKED = "parked"
# Accounts are independent, and a posting mostly waits for the journal: a few at a time.
AT_ONCE = 8


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
    """Take rows in; the results are in the order of the rows.

    Rows of one resident run one after the other in their order, residents side by side.
    """
    residents = links.residents_of(partner.id, sorted({row.external_id for row in rows}))
    by_owner: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        owner = residents.get(row.external_id, f"?{row.external_id}")
        by_owner.setdefault(owner, []).append(place)
    results: list[Taken] = [Taken()] * len(rows)

    def run(places: list[int]) -> None:
        for place in places:
            row = rows[place]
            results[place] = _take_one(partner, row, residents.get(row.external_id))

    _side_by_side(run, by_owner.values())
    return results


def credit_parked(link: Link) -> int:
    """Credit what was parked for a link that now exists; safe to repeat. Returns how many.

    At most `parked.CREDIT_MAX` at once; the sweep goes on with what is left.
    """
    rows = parked.of_external(link.external_hash)
    for row in rows:
        _credit(row, link.resident)
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


def _take_one(partner: Partner, row: Row, resident: str | None) -> Taken:
    try:
        _may_report(partner, row)
        if resident is None:
            return _park(partner, row)
        activity, fresh = crediting.report(
            resident,
            row.report,
            source=partner.source,
            event_id=row.event_id,
            evidence=EVIDENCE,
            subject=links.external_hash(partner.id, row.external_id),
            job=row.job,
        )
    except DomainError as refusal:
        return Taken(refusal=refusal)
    return Taken(activity, fresh)


def _may_report(partner: Partner, row: Row) -> None:
    if partner.behaviours is not None and row.report.behaviour not in partner.behaviours:
        raise BehaviourNotAllowed(behaviour=row.report.behaviour)
    if not row.external_id.startswith(partner.id_namespace):
        raise NotInNamespace()


def _park(partner: Partner, row: Row) -> Taken:
    earlier = activities.by_event(partner.source, row.event_id)
    external_hash = links.external_hash(partner.id, row.external_id)
    fingerprint = intake.fingerprint(row.report, external_hash)
    if earlier is not None:
        # Credited under a link that was ended since; the event id is taken for ever.
        if earlier.fingerprint != fingerprint:
            raise activities.SourceEventConflict(source_event_id=row.event_id)
        return Taken(earlier, fresh=False)
    kept, fresh = parked.park(
        Parked(
            id=activities.new_activity_id(),
            source=partner.source,
            event_id=row.event_id,
            external_hash=external_hash,
            fingerprint=fingerprint,
            report=row.report,
            parked_at=clock.now(),
            job=row.job,
        )
    )
    # Linked between the look-up and the parking: nobody else would credit this row.
    resident = links.resident_of(partner.id, row.external_id)
    if resident is not None:
        return Taken(_credit(kept, resident), fresh)
    return Taken(_stand_in(kept), fresh)


def _credit(row: Parked, resident: str) -> Activity:
    fact = intake.fact_of(
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
    activity, _fresh = crediting.take_in(fact)
    parked.forget(row.id)
    return activity


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


def _side_by_side(run: Callable[[list[int]], None], groups: Iterable[list[int]]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done in pool.map(run, groups):
            assert done is None
