"""A merchant, and vouchers a resident has just got, for the tests of the till."""

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

from accounting import book, clock
from accounting.book import Ask, Decision, Head, Line
from accounting.errors import AccountBusy, DomainError
from points.wallet import Wallet
from rewards import catalogue, merchants, redemptions, till, vouchers
from rewards.merchants import Merchant
from rewards.till import Used
from rewards.vouchers import Voucher

ANNA = "res_anna"
keys = (f"key-{number}" for number in itertools.count())


def city(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=clock.CITY).astimezone(UTC)


NOW = city("2026-05-20 12:00")


def new_merchant() -> Merchant:
    return merchants.add(
        {"zh": "共富商城", "en": "Mall"},
        [{"name": "柯城店", "address": "1"}, {"name": "衢江店", "address": "2"}],
    )


def buy(merchant: Merchant, quantity: int = 1, **changed: Any) -> list[Voucher]:
    """Vouchers of a 5 yuan reward that a resident has just got, without points on the way."""
    wanted: dict[str, Any] = {
        "merchant_id": merchant.id,
        "title": {"zh": "柚子", "en": "Pomelo"},
        "description": {"zh": "", "en": ""},
        "price_points": 100,
        "face_value_fen": 500,
        "stock": 100,
        "voucher_valid_days": 30,
        "funder": "city",
    }
    reward = catalogue.add_reward(**{**wanted, **changed})

    def decide(head: Head, now: datetime) -> Decision:
        wallet = Wallet.load(head.after)
        wallet.earn(100 * quantity, "city", over=now, maturity=timedelta(0))
        wallet.advance(now)
        return Decision(tuple(wallet.lines), {"wallet": wallet.dump()})

    book.post(Ask(ANNA, next(keys), "earn", "f", NOW), decide)
    done = redemptions.redeem(ANNA, next(keys), reward.id, quantity)
    return vouchers.of_redemption(done.id)


def scan(voucher: Voucher, merchant: Merchant, ref: str = "till-1", *, store: int = 0) -> Used:
    return till.redeem(
        voucher,
        merchant_id=merchant.id,
        store_id=merchant.stores[store].store_id,
        terminal_ref=ref,
    )


def outcome(voucher: Voucher, merchant: Merchant, ref: str, store: int = 0) -> str:
    for _ in range(50):
        try:
            scan(voucher, merchant, ref, store=store)
            return "used"
        except AccountBusy:
            continue
        except DomainError as refusal:
            return refusal.code
    raise AssertionError("still busy after 50 tries")


def fen_lines() -> list[Line]:
    return [line for entry in book.entries(ANNA) for line in entry.lines if line.unit == "fen"]
