"""What an account is given for its grams, and how that is taken back: lots, counters, names.

Activities, bills and restatements all come through here, inside the posting loop. What the earning
rules ask about the resident is read only where a campaign asks for it, so most entries cost no
read. The points of a campaign that a resident may have are counted in the account's own state.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

from accounting import clock
from accounting.book import Entry, Head, State
from points import audience, earning, exchanging, terms
from points.earning import Earned, Part, Who
from points.exchanging import Forerunner
from points.lots import ReversalPolicy
from points.wallet import Wallet

# Bonus counters of the newest days live in the state; older days are summed from their entries.
DAYS_KEPT = 3


class Award(NamedTuple):
    """What was given: for the entry's `refs` and the state after it."""

    earned: Earned
    after: State
    waived: int = 0

    @property
    def points(self) -> int:
        return self.earned.points

    @property
    def reasons(self) -> tuple[str, ...]:
        return self.earned.reasons

    @property
    def refs(self) -> dict[str, Any]:
        """Points, and who pays them by which rule, campaign and rate record."""
        return {
            "points": self.earned.points,
            "rule": self.earned.rule,
            "funder": self.earned.funder,
            "parts": [list(part) for part in self.earned.parts],
        }


class Undone(NamedTuple):
    """What taking back leaves: for the entry's `refs` and the state after it."""

    refs: dict[str, Any]
    after: State


def give(
    wallet: Wallet,
    head: Head,
    now: datetime,
    *,
    mg: int,
    behaviour: str,
    day: date,
    over: datetime,
    maturity: timedelta,
    who: Callable[[], Who] | None = None,
    replaces: Sequence[Forerunner] = (),
    above_mg: int = 0,
) -> Award:
    """Give an account the points for `mg` milligrams of an activity of `day`, decided at `now`.

    `who` is the resident as campaigns see them, for callers who read many at once. What is mature
    on arrival moves on in the same entry. Of what it replaces only the difference moves. `above_mg`
    has its points already, see `earning.earn`.
    """
    counters = _Counters.load(head, now)
    for one in replaces:
        counters.add(day, one.back)
    earned = earning.earn(
        mg,
        behaviour,
        day,
        terms.current(),
        now=now,
        who=who or (lambda: audience.of(head.account)),
        used=counters.used,
        above_mg=above_mg,
    )
    waived = exchanging.exchange(wallet, replaces, earned.parts, over=over, maturity=maturity)
    wallet.advance(now)
    counters.add(day, earned.parts)
    return Award(earned, counters.dump(), waived)


def take_back(
    wallet: Wallet,
    head: Head,
    now: datetime,
    earlier: Entry,
    parts: Sequence[Part],
    *,
    day: date,
    over: datetime,
    maturity: timedelta,
) -> Undone:
    """Take back what stands of an entry, part by part, from whoever's points they are.

    `parts` are those of the entry with the points that stand today; the policy of each says how far
    it may reach. Room under the caps of a
    campaign reopens for what comes later.
    """
    owing = taken = 0
    for part in _settled(parts):
        policy = ReversalPolicy(part.policy)
        owing += part.points
        taken += wallet.take_back(
            part.points, part.funder, over=over, maturity=maturity, policy=policy
        )
    back = [part._replace(points=-part.points) for part in earning.parts_of(earlier.refs)]
    counters = _Counters.load(head, now)
    counters.add(day, back)
    waived = owing - taken
    refs = {
        # What a policy leaves with the resident stays credited to the activity.
        "points": waived - earlier.refs["points"],
        "waived": waived,
        "parts": [list(part) for part in back],
    }
    return Undone(refs, counters.dump())


def _settled(parts: Sequence[Part]) -> list[Part]:
    """Parts without a negative one: a part that roundings took a point too much from is made up
    for by the largest."""
    missing = sum(min(part.points, 0) for part in parts)
    found = [part._replace(points=max(part.points, 0)) for part in parts]
    if missing:
        most = max(range(len(found)), key=lambda place: found[place].points)
        found[most] = found[most]._replace(points=found[most].points + missing)
    return found


class _Counters:
    """Bonus points a resident has of campaigns with a cap: all of them, and those of a day.

    Read after the head and kept in the state, so they change only together with a new entry.
    """

    def __init__(self, head: Head, today: date, state: dict[str, Any]) -> None:
        self.head = head
        self.today = today
        self.state = state
        # What is in no entry yet, for days that are summed from entries.
        self.added: dict[date, list[Part]] = {}

    @classmethod
    def load(cls, head: Head, now: datetime) -> "_Counters":
        kept = head.after.get("campaigns")
        state = (
            {
                campaign: {"total": one["total"], "days": dict(one["days"]), "until": one["until"]}
                for campaign, one in kept.items()
            }
            if kept
            else {}
        )
        return cls(head, clock.city_day(now), state)

    def used(self, campaign: str, day: date) -> tuple[int, int]:
        one = self.state.get(campaign)
        if one is None:
            return 0, 0
        if self._keeps(day):
            return one["days"].get(day.isoformat(), 0), one["total"]
        in_book = (
            Part._make(part)
            for entry in self.head.on_days(day, day)
            for refs in (entry.refs, *entry.refs.get("replaces", ()))
            for part in refs.get("parts", ())
        )
        on_day = sum(
            part.points
            for part in (*in_book, *self.added.get(day, ()))
            if part.campaign is not None and part.campaign.partition("@")[0] == campaign
        )
        return on_day, one["total"]

    def add(self, day: date, parts: Iterable[Part]) -> None:
        for part in parts:
            if part.campaign is None or part.limit is None:
                continue
            self.added.setdefault(day, []).append(part)
            campaign = part.campaign.partition("@")[0]
            one = self.state.setdefault(campaign, {"total": 0, "days": {}, "until": ""})
            one["total"] += part.points
            one["until"] = max(one["until"], (day + terms.CAMPAIGN_KEPT).isoformat())
            if self._keeps(day):
                on = day.isoformat()
                one["days"][on] = one["days"].get(on, 0) + part.points

    def dump(self) -> State:
        if not self.state:
            return {"campaigns": {}}
        today = self.today.isoformat()
        first = (self.today - timedelta(days=DAYS_KEPT - 1)).isoformat()
        kept = {
            campaign: {
                "total": one["total"],
                "days": {day: points for day, points in one["days"].items() if day >= first},
                "until": one["until"],
            }
            for campaign, one in self.state.items()
            if one["until"] >= today
        }
        return {"campaigns": kept}

    def _keeps(self, day: date) -> bool:
        return day > self.today - timedelta(days=DAYS_KEPT)
