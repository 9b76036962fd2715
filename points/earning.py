"""Earning rules: what credited grams are worth in points, and which funders pay for them. Pure.

    base   milligrams x points a gram, paid by the funders of the rule of that day in their shares
    bonus  base x (multiplier - 1) for each campaign that fits, paid by the campaign's funder
    rate   each funder pays the part of it that its rate record in force allows

The exact sum is rounded down once; who pays a point is decided by the running sum, so parts always
add up to the whole. What is in force is asked of `Terms` at one instant, and everything that was
used is named in the parts, so that an entry can be judged again from what it says.
"""

import math
import tomllib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

from accounting.quantities import MG_PER_G
from points.lots import ReversalPolicy

FOLDER = Path(__file__).parent / "rules"

STOP, NEXT = "stop", "next"
WHEN_SPENT = (STOP, NEXT)
REVERSAL_POLICIES = tuple(policy.value for policy in ReversalPolicy)
FULL_PERMILLE: Final = 1_000
POINTS_PER_GRAM_MAX = 1_000
PARTS_MAX = 32
# Why fewer points were earned than the rule says; the texts are in `footprint.reasons`.
BUDGET_SLOWED, BUDGET_SPENT = "budget_slowed", "budget_spent"
CAMPAIGN_CAP, CAMPAIGN_SPENT, BELOW_MINIMUM = "campaign_cap", "campaign_spent", "below_minimum"


class EarningRuleError(Exception):
    """A rule cannot be used; the message names file and field."""


@dataclass(frozen=True, slots=True)
class Share:
    """A funder of the base points and what it pays of them."""

    funder: str
    percent: int


@dataclass(frozen=True, slots=True)
class EarningRule:
    """One dated rule. Points a gram are exact; a behaviour may have its own."""

    version: str
    valid_from: date
    points_per_gram: Fraction
    points_per_gram_of: Mapping[str, Fraction]
    minimum_points: int
    when_spent: str
    reversal_policy: str
    funders: tuple[Share, ...]

    def points_per_mg(self, behaviour: str) -> Fraction:
        return self.points_per_gram_of.get(behaviour, self.points_per_gram) / MG_PER_G


class Rate(NamedTuple):
    """A dated record of what a funder pays from an instant on: `permille` of what rules ask for.

    Priority orders who takes over for whom, the smallest number first; `covers` says whether this
    funder takes over at all.
    """

    funder: str
    number: int
    applies_from: datetime
    permille: int
    priority: int
    covers: bool
    fen_per_1000_points: int

    @property
    def id(self) -> str:
        return f"{self.funder}@{self.number}"


@dataclass(frozen=True, slots=True)
class Who:
    """What target groups ask of a resident."""

    district: str | None
    joined_on: date
    grade: str | None


@dataclass(frozen=True, slots=True)
class Campaign:
    """The terms of a campaign from an instant on; its days are the days of activities.

    Empty target groups mean everybody. Caps are points of the bonus for one resident.
    """

    id: str
    number: int
    applies_from: datetime
    funder: str
    multiplier: Fraction
    first_day: date
    last_day: date
    behaviours: frozenset[str] = frozenset()
    districts: frozenset[str] = frozenset()
    grades: frozenset[str] = frozenset()
    new_within_days: int | None = None
    day_points_max: int | None = None
    total_points_max: int | None = None
    when_spent: str = STOP
    reversal_policy: str = ReversalPolicy.OWED.value

    @property
    def name(self) -> str:
        """How an entry names these terms."""
        return f"{self.id}@{self.number}"

    @property
    def capped(self) -> bool:
        return self.day_points_max is not None or self.total_points_max is not None

    def covers(self, behaviour: str, day: date) -> bool:
        in_time = self.first_day <= day <= self.last_day
        return in_time and (not self.behaviours or behaviour in self.behaviours)

    @property
    def targeted(self) -> bool:
        return bool(self.districts or self.grades) or self.new_within_days is not None

    def fits(self, who: Who, day: date) -> bool:
        """Whether a resident belongs to the target group on the day of an activity."""
        if not self.targeted:
            return True
        if self.districts and who.district not in self.districts:
            return False
        if self.grades and who.grade not in self.grades:
            return False
        new = self.new_within_days
        return new is None or (day - who.joined_on).days < new


class Part(NamedTuple):
    """What one funder pays of an entry.

    `num / den` are its points a milligram before rounding; `limit` holds the bonus where a cap of
    the campaign does, and a later correction of the grams never exceeds it.
    """

    points: int
    funder: str
    rate: str
    campaign: str | None
    policy: str
    num: int
    den: int
    limit: int | None = None


class Earned(NamedTuple):
    """What milligrams are worth: the whole, who pays which part of it, and why it is not more."""

    points: int
    rule: str
    parts: tuple[Part, ...]
    reasons: tuple[str, ...] = ()

    @property
    def funder(self) -> str:
        """The funder an entry is shown with: the first that pays something."""
        for part in self.parts:
            if part.points:
                return part.funder
        return self.parts[0].funder


CITY = "city"
CITY_RATE: Final = Rate(
    CITY,
    0,
    datetime(1970, 1, 1, tzinfo=UTC),
    FULL_PERMILLE,
    0,
    False,
    200,  # source: Wuhan CNY 2 per kg (S19)
)


@dataclass(frozen=True, eq=False)
class Terms:
    """Everything that decides about points, dated: rules, rate records and campaigns."""

    rules: tuple[EarningRule, ...]
    rates: tuple[Rate, ...] = (CITY_RATE,)
    campaigns: tuple[Campaign, ...] = ()

    def rule_on(self, day: date) -> EarningRule:
        """The rule for an activity of a city day: the newest whose date has come, or the first."""
        applicable = [rule for rule in self.rules if rule.valid_from <= day]
        return applicable[-1] if applicable else self.rules[0]

    @cached_property
    def turns(self) -> tuple[datetime, ...]:
        """The instants at which something begins to apply, in order."""
        begins = [rate.applies_from for rate in self.rates]
        return tuple(sorted(begins + [campaign.applies_from for campaign in self.campaigns]))

    def rates_at(self, now: datetime) -> dict[str, Rate]:
        """The record in force of each funder, by priority."""
        found: dict[str, Rate] = {}
        for rate in sorted(self.rates, key=lambda one: (one.funder, one.number)):
            if rate.applies_from <= now:
                found[rate.funder] = rate
        return dict(sorted(found.items(), key=lambda one: (one[1].priority, one[0])))

    def face_value(self, funder: str) -> int:
        """What 1,000 points of a funder are worth in fen, by its newest record."""
        return max(
            (rate for rate in self.rates if rate.funder == funder), key=lambda rate: rate.number
        ).fen_per_1000_points

    def campaigns_at(self, now: datetime) -> list[Campaign]:
        """The terms in force of each campaign, the oldest campaign first."""
        found: dict[str, Campaign] = {}
        for terms in sorted(self.campaigns, key=lambda one: (one.id, one.number)):
            if terms.applies_from <= now:
                found[terms.id] = terms
        return list(found.values())


# Bonus points of a campaign a resident has already: those of the day, and all of them.
Used = Callable[[str, date], tuple[int, int]]


def earn(
    mg: int,
    behaviour: str,
    day: date,
    terms: Terms,
    *,
    now: datetime,
    who: Callable[[], Who],
    used: Used,
    above_mg: int = 0,
) -> Earned:
    """What milligrams of an activity of `day` earn when it is decided at `now`.

    They come on top of `above_mg`, which has its points: both together are rounded down once, so a
    total told in ten parts earns what it earns told at once (a bonus with a cap: to a point, see
    `_portions`). `who` is asked only where a campaign has a target group, `used` only where it has
    a cap.
    """
    assert mg >= 0, mg
    plan = _plan(terms, behaviour, day, bisect_right(terms.turns, now))
    offers = plan.offers
    if plan.targeted:
        known = who()
        offers = [offer for offer in offers if offer.campaign is None or offer.fits(known, day)]
    parts: list[Part] = []
    reasons: list[str] = []
    whole = 0
    weights = [(offer.weight, offer.capped) for offer in offers]
    for offer, points in zip(offers, _portions(weights, plan.per, mg, above_mg), strict=True):
        if offer.why is not None:
            reasons.append(offer.why)
        limit = None
        if offer.campaign is not None and offer.capped:
            room = _room(offer.campaign, day, used)
            if room < points:
                points = room
                reasons.append(CAMPAIGN_CAP)
            limit = points
        whole += points
        parts.append(Part(points, *offer.part[1:-1], limit))
    if 0 < whole < plan.rule.minimum_points:
        parts = [part._replace(points=0, num=0, limit=None) for part in parts]
        whole = 0
        reasons.append(BELOW_MINIMUM)
    told = tuple(dict.fromkeys(reasons)) if mg and reasons else ()
    return Earned(whole, plan.rule.version, tuple(parts), told)


@dataclass(frozen=True, slots=True)
class _Offer:
    """What one funder would pay: `weight / per` of its plan, in points a milligram."""

    part: Part
    weight: int
    why: str | None
    campaign: Campaign | None

    @property
    def capped(self) -> bool:
        return self.campaign is not None and self.campaign.capped

    def fits(self, who: Who, day: date) -> bool:
        assert self.campaign is not None
        return self.campaign.fits(who, day)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything about an activity of a day that does not depend on who did it."""

    rule: EarningRule
    offers: list[_Offer]
    per: int
    targeted: bool


@lru_cache(maxsize=4_096)
def _plan(terms: Terms, behaviour: str, day: date, turn: int) -> _Plan:
    """Made once for a behaviour and day until something else begins to apply."""
    now = terms.turns[turn - 1] if turn else datetime.min.replace(tzinfo=UTC)
    rule, rates = terms.rule_on(day), terms.rates_at(now)
    per_mg = rule.points_per_mg(behaviour)
    rows: list[tuple[Rate, Fraction, str | None, str, Campaign | None]] = []
    for share in rule.funders:
        rate, why = _payer(share.funder, rates, rule.when_spent)
        exact = per_mg * Fraction(share.percent, 100) * Fraction(rate.permille, FULL_PERMILLE)
        rows.append((rate, exact, why, rule.reversal_policy, None))
    for campaign in terms.campaigns_at(now):
        if not campaign.covers(behaviour, day):
            continue
        rate, why = _payer(campaign.funder, rates, campaign.when_spent)
        exact = per_mg * (campaign.multiplier - 1) * Fraction(rate.permille, FULL_PERMILLE)
        told = CAMPAIGN_SPENT if why == BUDGET_SPENT else why
        rows.append((rate, exact, told, campaign.reversal_policy, campaign))
    rows = rows[:PARTS_MAX]
    per = math.lcm(*(exact.denominator for _, exact, _, _, _ in rows))
    offers = []
    for rate, exact, why, policy, one in rows:
        name = one.name if one is not None else None
        part = Part(0, rate.funder, rate.id, name, policy, exact.numerator, exact.denominator)
        offers.append(_Offer(part, exact.numerator * (per // exact.denominator), why, one))
    targeted = any(one is not None and one.targeted for *_, one in rows)
    return _Plan(rule, offers, per, targeted)


def split(parts: Iterable[Part], mg: int, above_mg: int = 0) -> list[int]:
    """What each part of an entry pays for `mg` milligrams instead, rounded like the first time."""
    parts = list(parts)
    per = math.lcm(*(part.den for part in parts))
    weights = [(part.num * (per // part.den), part.limit is not None) for part in parts]
    return [
        points if part.limit is None else min(points, part.limit)
        for part, points in zip(parts, _portions(weights, per, mg, above_mg), strict=True)
    ]


def _portions(weights: Sequence[tuple[int, bool]], per: int, mg: int, above_mg: int) -> list[int]:
    """What each of some payers pays for `mg` on top of `above_mg`, before any cap.

    A payer is a weight, in points a milligram times `per`, and whether a cap holds it. All weigh
    together and the running sum is rounded down. On top of something a running sum may grow by less
    than a shorter one: then who comes first pays less, so that nobody is paid twice for a point and
    nobody pays back. What a cap may have held back before has no part in that: such a payer is
    rounded by itself, so that it may be a point away from what it pays for a total told at once.
    """
    if not above_mg:
        total, sums = 0, [0]
        for weight, _ in weights:
            total += weight
            sums.append(total * mg // per)
        return [more - less for less, more in pairwise(sums)]

    def growth(weight: int) -> int:
        return weight * (above_mg + mg) // per - weight * above_mg // per

    free = list(accumulate(weight for weight, capped in weights if not capped))
    # From the last: no running sum is larger than a longer one.
    sums = list(accumulate(map(growth, reversed(free)), min))
    portions = iter([more - less for less, more in pairwise([0, *reversed(sums)])])
    return [growth(weight) if capped else next(portions) for weight, capped in weights]


def parts_of(refs: Mapping[str, Any]) -> tuple[Part, ...]:
    """The parts an entry names; one part for an entry from before they were named."""
    if "parts" in refs:
        return tuple(Part._make(part) for part in refs["parts"])
    rule = rule_named(refs["rule"])
    per_mg = rule.points_per_mg(refs["behaviour"])
    whole = (refs["points"], refs["funder"], "", None, rule.reversal_policy)
    return (Part(*whole, per_mg.numerator, per_mg.denominator),)


def shared(parts: Sequence[Part], points: int) -> list[int]:
    """Points of a later correction by part, in proportion to what each pays a milligram.

    What a cap of a campaign limited does not grow. With nothing to go by the first part has it all.
    """
    weights = [
        Fraction(0) if points > 0 and part.limit is not None else Fraction(part.num, part.den)
        for part in parts
    ]
    whole = sum(weights)
    if not whole:
        return [points, *[0] * (len(parts) - 1)]
    amounts, total = [], Fraction(0)
    for weight in weights:
        before = total.__floor__()
        total += abs(points) * weight / whole
        amounts.append(total.__floor__() - before)
    return [amount if points > 0 else -amount for amount in amounts]


def _payer(funder: str, rates: Mapping[str, Rate], when_spent: str) -> tuple[Rate, str | None]:
    """The record that pays for a funder, and why it does not pay in full.

    A funder without a record in force pays nothing.
    """
    rate = rates.get(funder)
    if rate is not None and rate.permille:
        return rate, BUDGET_SLOWED if rate.permille < FULL_PERMILLE else None
    if when_spent == NEXT:
        for other in rates.values():
            if other.covers and other.permille and other.funder != funder:
                return other, BUDGET_SLOWED if other.permille < FULL_PERMILLE else None
    if rate is None:
        rate = CITY_RATE._replace(funder=funder, permille=0)
    return rate, BUDGET_SPENT


def _room(campaign: Campaign, day: date, used: Used) -> int:
    on_day, total = used(campaign.id, day)
    rooms = []
    if campaign.day_points_max is not None:
        rooms.append(campaign.day_points_max - on_day)
    if campaign.total_points_max is not None:
        rooms.append(campaign.total_points_max - total)
    return max(0, min(rooms))


@lru_cache(maxsize=1)
def shipped() -> tuple[EarningRule, ...]:
    """Every earning rule that ships, oldest first."""
    found = [load(file.read_text(encoding="utf-8"), file.name) for file in FOLDER.glob("*.toml")]
    return tuple(sorted(found, key=lambda rule: rule.valid_from))


def rule_named(version: str) -> EarningRule:
    """The shipped rule of this name."""
    return next(rule for rule in shipped() if rule.version == version)


def load(text: str, where: str) -> EarningRule:
    """A rule from its TOML text. Raises `EarningRuleError` naming what is wrong."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise EarningRuleError(f"{where}: {error}") from None
    reader = _Reader(where, data)
    rule = EarningRule(
        version=reader.text("version"),
        valid_from=reader.day("valid_from"),
        points_per_gram=reader.factor("points_per_gram", data.get("points_per_gram")),
        points_per_gram_of={
            code: reader.factor(f"points_per_gram_of.{code}", value)
            for code, value in reader.table("points_per_gram_of").items()
        },
        minimum_points=reader.whole("minimum_points"),
        when_spent=reader.choice("when_spent", WHEN_SPENT),
        reversal_policy=reader.choice("reversal_policy", REVERSAL_POLICIES),
        funders=reader.shares(),
    )
    reader.refuse_the_rest()
    return rule


@dataclass
class _Reader:
    where: str
    data: dict[str, Any]
    read: set[str] = field(default_factory=set)

    def text(self, name: str) -> str:
        value = self._value(name)
        if not isinstance(value, str) or not 1 <= len(value) <= 64:
            raise self._wrong(name, "must be a text of 1 to 64 characters")
        return value

    def day(self, name: str) -> date:
        value = self._value(name)
        if not isinstance(value, date) or isinstance(value, datetime):
            raise self._wrong(name, "must be a date")
        return value

    def whole(self, name: str) -> int:
        value = self._value(name)
        if type(value) is not int or not 0 <= value <= 1_000_000:
            raise self._wrong(name, "must be a whole number from 0 to 1,000,000")
        return value

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        value = self._value(name)
        if value not in choices:
            raise self._wrong(name, f"must be one of: {', '.join(choices)}")
        return str(value)

    def table(self, name: str) -> dict[str, Any]:
        self.read.add(name)
        value = self.data.get(name, {})
        if not isinstance(value, dict):
            raise self._wrong(name, "must be a table")
        return value

    def factor(self, name: str, value: Any) -> Fraction:
        """Points a gram as text, because a TOML number with a point would become a float."""
        self.read.add(name)
        try:
            found = Fraction(value) if isinstance(value, str) else None
        except (ValueError, ZeroDivisionError):
            found = None
        if found is None or not 0 <= found <= POINTS_PER_GRAM_MAX:
            raise self._wrong(name, f'must be a number as text from "0" to "{POINTS_PER_GRAM_MAX}"')
        return found

    def shares(self) -> tuple[Share, ...]:
        rows = self._value("funders")
        if not isinstance(rows, list) or not 1 <= len(rows) <= 8:
            raise self._wrong("funders", "must be 1 to 8 tables")
        found = []
        for row in rows:
            if not isinstance(row, dict) or row.keys() != {"id", "share_percent"}:
                raise self._wrong("funders", "each needs id and share_percent and nothing else")
            if not isinstance(row["id"], str) or type(row["share_percent"]) is not int:
                raise self._wrong("funders", "id must be a text, share_percent a whole number")
            found.append(Share(row["id"], row["share_percent"]))
        if sum(share.percent for share in found) != 100 or min(one.percent for one in found) < 1:
            raise self._wrong("funders", "shares must be positive and add up to 100")
        if len({share.funder for share in found}) < len(found):
            raise self._wrong("funders", "names a funder twice")
        return tuple(found)

    def refuse_the_rest(self) -> None:
        unknown = sorted(self.data.keys() - self.read)
        if unknown:
            raise self._wrong(unknown[0], "is unknown")

    def _value(self, name: str) -> Any:
        self.read.add(name)
        if name not in self.data:
            raise self._wrong(name, "is missing")
        return self.data[name]

    def _wrong(self, name: str, why: str) -> EarningRuleError:
        return EarningRuleError(f"{self.where}: {name}: {why}")
