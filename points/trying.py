"""What a change of the earning rules would have given: a past month replayed, nothing written.

Both sides are replayed from the grams that stand in the book, with every funder paying in full: the
rules and campaigns in force, and the same with the draft. So the difference is the draft's alone,
and not that of a budget or of a restatement. A draft rule or campaign is taken as if it had been in
force for the whole month; caps of a campaign begin at zero with it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from statistics import median_low
from typing import Any

from accounting import accounts, clock
from footprint.months import posted
from footprint.replay import Posted, moved
from points import audience, earning, terms, valuing
from points.earning import FULL_PERMILLE, Campaign, EarningRule, Part, Terms, Who

SAMPLE_MAX = 500
EXTREMES = 5

Report = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Draft:
    """A rule instead of the one in force, a campaign beside the others, or both."""

    rule: EarningRule | None = None
    campaign: Campaign | None = None


def of_sample(draft: Draft, month: str, *, seed: int, size: int) -> Report:
    """Who gains and who loses among up to `SAMPLE_MAX` residents, and what it costs by funder."""
    assert 0 < size <= SAMPLE_MAX, size
    residents = accounts.sample(seed, size)
    now = clock.now()
    known = terms.refresh()
    before, after = _in_full(known), _with(draft, _in_full(known), month)
    people = audience.of_all(residents)
    differences: dict[str, int] = {}
    by_funder: Counter[str] = Counter()
    by_behaviour: dict[str, Counter[str]] = {}
    active = 0
    for resident in residents:
        stands = _standing(posted(resident, month), month)
        if not stands:
            continue
        active += 1
        was = _replayed(stands, before, now, people[resident])
        would = _replayed(stands, after, now, people[resident])
        for sign, parts in ((-1, was), (1, would)):
            for behaviour, part in parts:
                by_funder[part.funder] += sign * part.points
                sums = by_behaviour.setdefault(behaviour, Counter())
                sums["points"] += sign * part.points
        for _, behaviour, mg in stands:
            by_behaviour[behaviour]["mg"] += mg
        difference = sum(part.points for _, part in would) - sum(part.points for _, part in was)
        if difference:
            differences[resident] = difference
    gains = {resident: points for resident, points in differences.items() if points > 0}
    losses = {resident: points for resident, points in differences.items() if points < 0}
    return {
        "month": month,
        "residents": len(residents),
        "active": active,
        "points": sum(differences.values()),
        "gain": _side(gains),
        "lose": _side(losses),
        "unchanged": active - len(differences),
        "by_funder": [
            {
                "funder": funder,
                "points": points,
                "fen": valuing.fen(points, known.face_value(funder)),
            }
            for funder, points in sorted(by_funder.items())
        ],
        "by_behaviour": [
            {"behaviour": behaviour, "mg": sums["mg"], "points": sums["points"]}
            for behaviour, sums in sorted(by_behaviour.items())
        ],
    }


def _in_full(known: Terms) -> Terms:
    """The terms with the newest record of every funder, paying in full."""
    newest: dict[str, earning.Rate] = {}
    for rate in sorted(known.rates, key=lambda one: one.number):
        newest[rate.funder] = rate._replace(
            permille=FULL_PERMILLE, applies_from=earning.CITY_RATE.applies_from
        )
    return Terms(known.rules, tuple(newest.values()), known.campaigns)


def _with(draft: Draft, known: Terms, month: str) -> Terms:
    rules, campaigns = known.rules, known.campaigns
    if draft.rule is not None:
        rules = (draft.rule,)
    if draft.campaign is not None:
        campaigns = (*campaigns, _all_month(draft.campaign, month))
    return Terms(rules, known.rates, campaigns)


def _all_month(campaign: Campaign, month: str) -> Campaign:
    return replace(
        campaign,
        applies_from=earning.CITY_RATE.applies_from,
        first_day=clock.first_day(month),
        last_day=clock.last_day(month),
    )


_Activity = tuple[date, str, int]


def _standing(entries: Sequence[Posted], month: str) -> list[_Activity]:
    """Day, behaviour and milligrams of what was credited in the month and still stands."""
    sums: Counter[int] = Counter()
    credited: dict[int, _Activity] = {}
    for entry in entries:
        if entry.day[:7] != month:
            continue
        if "parts" in entry.refs and "reverses" not in entry.refs:
            credited[entry.seq] = (date.fromisoformat(entry.day), entry.refs["behaviour"], 0)
        for change in moved(entry.seq, entry.day, entry.refs):
            sums[change.seq] += change.mg
    return [
        (day, behaviour, sums[seq])
        for seq, (day, behaviour, _) in sorted(credited.items())
        if sums[seq] > 0
    ]


def _replayed(
    stands: list[_Activity], under: Terms, now: datetime, who: Who
) -> list[tuple[str, Part]]:
    """Every part the activities earn, one after the other, with the caps filling up."""
    days: Counter[tuple[str, date]] = Counter()
    totals: Counter[str] = Counter()
    found = []
    for day, behaviour, mg in stands:
        earned = earning.earn(
            mg,
            behaviour,
            day,
            under,
            now=now,
            who=lambda: who,
            used=lambda campaign, day: (days[campaign, day], totals[campaign]),
        )
        for part in earned.parts:
            if part.campaign is not None:
                campaign = part.campaign.partition("@")[0]
                days[campaign, day] += part.points
                totals[campaign] += part.points
            found.append((behaviour, part))
    return found


def _side(amounts: dict[str, int]) -> dict[str, Any]:
    """Those who gain or those who lose; the most affected first."""
    most = sorted(amounts.items(), key=lambda one: (-abs(one[1]), one[0]))[:EXTREMES]
    return {
        "residents": len(amounts),
        "points": sum(amounts.values()),
        "median_points": median_low(amounts.values()) if amounts else 0,
        "extremes": [{"resident": resident, "points": points} for resident, points in most],
    }
