"""The programme on one page: what each funder owes and paid, what a tonne cost, what was refused.

Everything is read from what jobs added up; nothing here looks at accounts or entries. Money is
rounded once for each funder, and its lines by behaviour add up to it (largest remainder).
"""

from collections import Counter
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from accounting import clock
from footprint import refusals
from points import flows, funders, liability, pools, terms, valuing
from points.flows import Flow, Flows
from points.liability import Liability
from points.proposals import Agreed

MG_PER_TONNE = 10**9
REFUSAL_DAYS = 30
ALARMS_MAX = 100


@dataclass(frozen=True, slots=True)
class FunderLine:
    """One funder. Points over all time; fen are points at the funder's value."""

    funder: str
    name: dict[str, str]
    kind: str
    budget_points: int | None
    budget_fen: int | None
    limit_points: int | None
    used_percent: int | None
    pays_permille: int
    issued: int
    taken_back: int
    redeemed: int
    redeemed_fen: int
    expired: int
    outstanding: int
    liability_fen: int
    expected_lapse: int | None
    expected_lapse_fen: int | None


@dataclass(frozen=True, slots=True)
class BehaviourLine:
    """What a behaviour saved and what its points are worth, over all funders."""

    behaviour: str
    mg: int
    points: int
    fen: int

    @property
    def fen_per_tonne(self) -> int | None:
        return self.fen * MG_PER_TONNE // self.mg if self.mg > 0 else None


@dataclass(frozen=True, slots=True)
class Programme:
    as_of: datetime
    liability_as_of: datetime | None
    funders: list[FunderLine]
    behaviours: list[BehaviourLine]
    refused: dict[str, int]
    refused_from: date
    refused_to: date
    alarms: list[dict[str, Any]]

    def total(self, name: str) -> int:
        """A column of the funders added up."""
        return sum(getattr(line, name) or 0 for line in self.funders)


def refresh(now: datetime) -> None:
    """Add up what the page shows, as often as it is worth it; for the keeper's clockwork."""
    pools.keep_due(now)
    today = clock.city_day(now)
    refusals.refresh(today - timedelta(days=REFUSAL_DAYS - 1), today)
    if liability.small_city():
        liability.add_up(now)


def page(now: datetime) -> Programme:
    """The programme as it was added up last."""
    found, owed = flows.latest(), liability.latest()
    today = clock.city_day(now)
    first = today - timedelta(days=REFUSAL_DAYS - 1)
    lines = [_funder(one, found, owed, now) for one in funders.everyone()]
    return Programme(
        as_of=found.at,
        liability_as_of=owed.at if owed else None,
        funders=lines,
        behaviours=behaviours(found),
        refused=refusals.between(first, today),
        refused_from=first,
        refused_to=today,
        alarms=pools.raised(limit=ALARMS_MAX),
    )


def behaviours(found: Flows) -> list[BehaviourLine]:
    """Cost by behaviour; corrections that are about several have a line of their own, unnamed."""
    points: Counter[str] = Counter()
    fen: Counter[str] = Counter()
    known = terms.current()
    for flow in found.funders.values():
        worth = known.face_value(flow.funder)
        points.update(flow.by_behaviour)
        whole = valuing.fen(sum(flow.by_behaviour.values()), worth)
        positive = {code: max(number, 0) for code, number in flow.by_behaviour.items()}
        fen.update(valuing.shares(max(whole, 0), positive))
    names = sorted(points.keys() | found.mg_by_behaviour.keys())
    return [
        BehaviourLine(name, found.mg_by_behaviour.get(name, 0), points[name], fen[name])
        for name in names
    ]


def _funder(one: Agreed, found: Flows, owed: Liability | None, now: datetime) -> FunderLine:
    assert one.terms is not None, one.id
    flow = found.funders.get(one.id) or Flow(one.id)
    worth = one.terms["fen_per_1000_points"]
    limit = funders.pool_of(one).limit(flow.expired)
    rate = terms.current().rates_at(now).get(one.id)
    lapse = _lapse(flow, owed, now)
    return FunderLine(
        funder=one.id,
        name=one.terms["name"],
        kind=one.terms["kind"],
        budget_points=one.terms["budget_points"],
        budget_fen=one.terms["budget_fen"],
        limit_points=limit,
        used_percent=flow.used * 100 // limit if limit else None,
        pays_permille=rate.permille if rate is not None else 0,
        issued=flow.issued,
        taken_back=flow.taken_back,
        redeemed=flow.redeemed,
        redeemed_fen=valuing.fen(flow.redeemed, worth),
        expired=flow.expired,
        outstanding=flow.outstanding,
        liability_fen=valuing.fen(flow.outstanding, worth),
        expected_lapse=lapse,
        expected_lapse_fen=valuing.fen(lapse, worth) if lapse is not None else None,
    )


def _lapse(flow: Flow, owed: Liability | None, now: datetime) -> int | None:
    if owed is None:
        return None
    this_month = clock.city_month(now)
    spent = flow.spent_by_month.get(clock.add_months(this_month, -1), 0)
    share = liability.spent_share(spent, flow.outstanding)
    return liability.expected_lapse(owed.lots.get(flow.funder, {}), share, this_month)
