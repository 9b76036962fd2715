"""A household and its bills, for the tests of bills.

The worked household: 300 kWh every month but April, which was 320 in 2024 and 280 in 2025.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from accounting import clock
from accounting.errors import DomainError
from footprint import households
from footprint.bill_intake import Sent
from footprint.billing_rules import BillReport
from footprint.bills import Bill
from points import bill_crediting, statements

# Wednesday 20 May 2026, noon in the city.
NOW = datetime(2026, 5, 20, 4, tzinfo=UTC)
GRID, METER = "grid", "3300-0001"
ANNA, BO, CHEN = "res_anna", "res_bo", "res_chen"
MG_PER_KWH, MG_PER_M3 = 497_400, 2_162_200


def whole(month: str) -> tuple[date, date]:
    return clock.first_day(month), clock.last_day(month)


def bill(month: str, quantity: object, /, **changed: Any) -> BillReport:
    first, last = whole(month)
    what = BillReport("electricity", METER, first, last, Decimal(str(quantity)))
    return replace(what, **changed)


def send(what: BillReport, event: str | None = None, source: str = GRID) -> Bill:
    event = event or f"{what.carrier}-{what.period_start}"
    return bill_crediting.report(what, source=source, event_id=event)[0]


def send_history(last: str = "2026-03", count: int = 23, **changed: Any) -> None:
    months = [clock.add_months(last, -ago) for ago in range(count - 1, -1, -1)]
    used = {"2024-04": 320, "2025-04": 280}
    send_all(bill(month, used.get(month, 300), **changed) for month in months)


def send_all(what: Iterable[BillReport]) -> list[Bill]:
    """Send bills together, all of which are good."""
    sent = [Sent(one, f"{one.carrier}-{one.period_start}") for one in what]
    received = bill_crediting.report_many(sent, source=GRID)
    assert all(one.fresh for one in received), received
    return [one.bill for one in received if one.bill is not None]


def live_in(*residents: str, members: int = 3) -> str:
    return [households.join(who, "electricity", METER, members) for who in residents][-1].id


def points_of(resident: str) -> int:
    return statements.balance(resident).available


def at_once(count: int, act: Callable[[int], Any]) -> list[Any]:
    def tried(number: int) -> Any:
        try:
            return act(number)
        except DomainError as refusal:
            return refusal.code

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(tried, range(count)))
