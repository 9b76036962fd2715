"""A reward as it stands, and what of it holds for one resident at one instant. Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from accounting import clock
from accounting.errors import DomainError
from points import valuing

# What becomes of a voucher nobody used: its points are gone, or they come back.
LAPSE, RETURN = "lapse", "return"
WHOLE_PERCENT = 100


class RewardUnavailable(DomainError):
    code = "reward_unavailable"
    en = "This reward cannot be had at present."
    zh = "该奖品当前不可兑换。"


class NotEligible(RewardUnavailable):
    en = "This reward is for certain grades or districts, and yours is not among them."
    zh = "该奖品仅面向特定等级或区县，您暂不符合条件。"


class LimitReached(DomainError):
    """Facts: limit."""

    code = "limit_reached"
    en = "Each resident may have {limit} of this reward."
    zh = "该奖品每人限兑 {limit} 份。"


class DayLimitReached(LimitReached):
    en = "Each resident may have {limit} of this reward a day."
    zh = "该奖品每人每日限兑 {limit} 份。"


class MonthLimitReached(LimitReached):
    en = "Each resident may have {limit} of this reward a month."
    zh = "该奖品每人每月限兑 {limit} 份。"


class Limit(NamedTuple):
    """At most so many for each resident, of those asked for since an instant; None is ever."""

    most: int
    since: datetime | None
    refusal: type[LimitReached]


@dataclass(frozen=True, slots=True)
class Reward:
    """A reward as it stands. Prices in points, face value in fen.

    `funders` are (funder, percent of the face value); empty `grades`, `districts` and `store_ids`
    mean all. `stock_left`, `stock_reserved` and `stock_issued` sum to all there ever was.
    """

    id: str
    merchant_id: str
    title: dict[str, str]
    description: dict[str, str]
    category: str
    image: str | None
    price_points: int
    prices_by_grade: dict[str, int]
    face_value_fen: int
    funders: tuple[tuple[str, int], ...]
    per_resident_limit: int | None
    per_day_limit: int | None
    per_month_limit: int | None
    monthly_stock: int | None
    grades: tuple[str, ...]
    districts: tuple[str, ...]
    store_ids: tuple[str, ...]
    voucher_valid_days: int
    unused: str
    available_from: datetime
    available_to: datetime | None
    paused: bool
    low_stock_at: int | None
    stock_left: int
    stock_reserved: int
    stock_issued: int
    taken: dict[str, int]
    revision: int

    def open_at(self, now: datetime) -> bool:
        if self.paused:
            return False
        return self.available_from <= now and (self.available_to is None or now < self.available_to)

    @property
    def asks_grade(self) -> bool:
        """Whether a resident's grade matters for it."""
        return bool(self.grades or self.prices_by_grade)

    def admits(self, grade: str | None, district: str | None) -> bool:
        """Whether a resident of this grade, living there, may have it."""
        if self.grades and grade not in self.grades:
            return False
        return not self.districts or district in self.districts

    def price_for(self, grade: str | None) -> int:
        """Points for one, for a resident of this grade."""
        return self.prices_by_grade.get(grade or "", self.price_points)

    def left_in(self, month: str) -> int:
        """How many can still be had in a city month."""
        if self.monthly_stock is None:
            return self.stock_left
        return max(min(self.stock_left, self.monthly_stock - self.taken.get(month, 0)), 0)

    def funder_split(self) -> tuple[tuple[str, int], ...]:
        """Who pays how many fen of the face value (largest remainder)."""
        return tuple(valuing.shares(self.face_value_fen, dict(self.funders)).items())

    def limits_at(self, asked_at: datetime) -> list[Limit]:
        """What a resident may have, judged by the city day and month of the ask."""
        day = clock.start_of(clock.city_day(asked_at))
        month = clock.start_of(clock.first_day(clock.city_month(asked_at)))
        limits = [
            (self.per_day_limit, day, DayLimitReached),
            (self.per_month_limit, month, MonthLimitReached),
            (self.per_resident_limit, None, LimitReached),
        ]
        return [Limit(most, since, refusal) for most, since, refusal in limits if most is not None]

    def expires_at(self, asked_at: datetime) -> datetime:
        """When vouchers asked for at an instant run out: the end of a city day."""
        last = clock.city_day(asked_at) + timedelta(days=self.voucher_valid_days)
        return clock.start_of(last + timedelta(days=1))


def listed(pairs: Any) -> tuple[tuple[str, int], ...]:
    """Pairs as they lie in MongoDB, as they are used."""
    return tuple((name, amount) for name, amount in pairs)
