"""A resident with points, a merchant with a reward: what wallet and till tests begin with."""

from dataclasses import dataclass
from typing import Any

from callers import Caller, machine, partner, resident
from flask import Flask

from accounting.clients import Kind

# 20 kg of recyclables avoid 26.9 kg of CO2 and earn 26,900 points, 24 hours later.
RECYCLED: dict[str, Any] = {
    "external_id": "home-1",
    "behaviour": "recycle_kg",
    "quantity": 20,
    "occurred_at": "2026-05-18T10:00:00+08:00",
    "source_event_id": "weigh-1",
}
EARNED = 26_900


@dataclass(frozen=True)
class Shop:
    """A merchant's till, its stores, and the operator who opened it."""

    operator: Caller
    till: Caller
    store_id: str
    other_store_id: str

    def offer(self, **changes: Any) -> str:
        """Put a reward of 500 points into the catalogue; returns its id."""
        reward = {
            "title": {"zh": "公交单程券", "en": "One bus ride"},
            "merchant_id": self.till.id,
            "price_points": 500,
            "face_value_fen": 100,
            "stock": 10,
            "voucher_valid_days": 30,
        }
        answer = self.operator.post("/v1/operator/rewards", reward | changes)
        assert answer.status_code == 201, answer.text
        reward_id: str = answer.get_json()["id"]
        return reward_id


def open_shop(app: Flask) -> Shop:
    operator = machine(app, Kind.OPERATOR)
    made = operator.post(
        "/v1/operator/merchants",
        {
            "name": {"zh": "共富商城", "en": "Common Prosperity Mall"},
            "stores": [
                {"name": "柯城店", "address": "柯城区"},
                {"name": "衢江店", "address": "衢江区"},
            ],
        },
    ).get_json()
    till = machine(app, Kind.MERCHANT, made["merchant_id"])
    one, two = (store["store_id"] for store in made["stores"])
    return Shop(operator, till, one, two)


def rich_resident(app: Flask) -> Caller:
    """A resident with 26,900 points to spend, on 20 May 2026."""
    me, recycler = resident(app), partner(app)
    me.post("/v1/me/links", {"partner_id": recycler.id, "external_id": "home-1"})
    answer = recycler.post("/v1/feeds/activities", {"activities": [RECYCLED]})
    [result] = answer.get_json()["results"]
    assert (result["activity"]["status"], result["activity"]["points"]) == ("credited", EARNED)
    return me
