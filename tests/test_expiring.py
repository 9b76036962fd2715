"""Vouchers nobody used: their points are gone or come back, once, whoever scans or dies."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
from faults.crew import KILLED, Crew, Death
from tills import ANNA, NOW, buy, city, fen_lines, new_merchant, scan

from accounting import book, clock, storage
from points import statements
from points.wallet import consistent
from rewards import catalogue, expiring, redemptions, till, vouchers
from rewards.merchants import Merchant
from rewards.offers import RETURN
from rewards.till import OfflineScan
from rewards.vouchers import Voucher, VoucherExpired, VoucherUsed

pytestmark = pytest.mark.usefixtures("app")

DAY, MS = timedelta(days=1), timedelta(milliseconds=1)
# Bought on 20 May for 30 days, so valid to the end of 19 June; scans may arrive for 7 days more.
OVER = city("2026-06-20 00:00")
ENDED = city("2026-06-27 00:00")
# The clock of a process that is killed runs on while it starts.
LEASE_OVER = expiring.LEASE + timedelta(minutes=10)


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.stand(NOW):
        yield


@pytest.fixture
def crew(crew: Crew) -> Crew:
    crew.ahead = ENDED - clock.now()
    return crew


@pytest.fixture
def merchant(app: object) -> Merchant:
    return new_merchant()


def run(at: datetime = ENDED) -> int:
    with clock.stand(at):
        return expiring.run(clock.now())


def now_of(voucher: Voucher) -> Voucher:
    found = vouchers.get(voucher.id)
    assert found is not None
    return found


def stock(voucher: Voucher) -> tuple[int, int, int]:
    reward = catalogue.reward(voucher.reward_id)
    return reward.stock_left, reward.stock_reserved, reward.stock_issued


def balance(at: datetime = ENDED) -> tuple[int, int]:
    with clock.stand(at):
        found = statements.balance(ANNA)
    return found.available, found.spent


def everything_holds() -> None:
    halfway = {"status": {"$in": list(vouchers.RETURN_HALF_WAY)}}
    assert storage.database()["vouchers"].count_documents(halfway) == 0
    assert storage.database()["rewards"].count_documents({"in_flight": {"$ne": []}}) == 0
    assert book.verify(checks=[consistent]).problem is None


def test_an_unused_voucher_lapses_and_its_points_stay_spent(merchant: Merchant) -> None:
    [voucher] = buy(merchant)
    before = book.head(ANNA).seq
    assert run(ENDED - MS) == 0
    assert run() == 1
    assert run() == 0
    assert now_of(voucher).status == vouchers.EXPIRED
    assert (balance(), stock(voucher)) == ((0, 100), (99, 0, 1))
    assert book.head(ANNA).seq == before
    with clock.stand(ENDED), pytest.raises(VoucherExpired):
        scan(voucher, merchant)


def test_points_come_back_to_their_lots_and_the_item_to_the_shelf(merchant: Merchant) -> None:
    one, two = buy(merchant, 2, unused=RETURN)
    scan(one, merchant)
    assert run(ENDED - MS) == 0
    assert run() == 1
    assert run() == 0
    assert [now_of(one).status, now_of(two).status] == [vouchers.USED, vouchers.RETURNED]
    assert now_of(two).status_at(ENDED) == "expired"
    # Of the 200 points the used one keeps 100.
    assert (balance(), stock(one)) == ((100, 100), (99, 0, 1))
    with clock.stand(ENDED):
        assert statements.balance(ANNA).expiring == (("2028-05-31", 100),)
        with pytest.raises(VoucherExpired):
            scan(two, merchant, "till-2")
        with pytest.raises((VoucherExpired, VoucherUsed)):
            redemptions.cancel(ANNA, two.redemption_id)
    last = list(book.entries(ANNA))[-1]
    assert (last.kind, last.refs["voucher"]) == ("release", two.id)
    everything_holds()


def test_points_that_expired_meanwhile_get_thirty_days_from_then(merchant: Merchant) -> None:
    buy(merchant, unused=RETURN, voucher_valid_days=1_000)
    # 20 May 2026 and 1,000 days is 13 February 2029; the lot expired on 31 May 2028.
    late = city("2029-02-21 00:00")
    assert run(late) == 1
    with clock.stand(late):
        # 21 February and 30 days.
        assert statements.balance(ANNA).expiring == (("2029-03-23", 100),)


def test_the_month_an_item_was_taken_in_has_it_back(merchant: Merchant) -> None:
    [voucher] = buy(merchant, unused=RETURN, monthly_stock=3)
    assert catalogue.reward(voucher.reward_id).taken == {"2026-05": 1}
    run()
    assert catalogue.reward(voucher.reward_id).taken == {"2026-05": 0}


def test_a_scan_without_network_that_arrives_in_time_is_paid(merchant: Merchant) -> None:
    [voucher] = buy(merchant, unused=RETURN)
    made = OVER - timedelta(minutes=1)
    qr = vouchers.qr_payload(voucher.id, made)
    late = OfflineScan(qr, merchant.stores[0].store_id, "t1", made)
    # The last moment it can arrive is before its points can come back.
    arrived = made + till.OFFLINE_MAX_AGE
    assert arrived < ENDED
    with clock.stand(arrived):
        [taken] = till.take_offline(merchant.id, [late])
        assert taken.used is not None
    assert run() == 0
    assert balance() == (0, 100)
    assert sum(line.amount for line in fen_lines() if line.book.startswith("payable")) == 500


def test_a_refunded_voucher_has_its_own_later_day(merchant: Merchant) -> None:
    [voucher] = buy(merchant, unused=RETURN)
    with clock.stand(OVER - DAY):
        scan(voucher, merchant)
        till.refund(voucher.id, merchant_id=merchant.id)
    # Seven days after the refund, and seven more for scans on their way.
    assert now_of(voucher).expires_at == OVER + 6 * DAY
    assert run() == 0
    assert run(OVER + 13 * DAY) == 1
    assert balance(OVER + 13 * DAY) == (100, 0)


STEPS = [
    Death("rewards.expiring:_lease", "after"),
    Death("accounting.book:post", "after"),
    Death("rewards.stock:begin_return", "after"),
    Death("rewards.expiring:_set_status", "after", 1),
    Death("rewards.stock:give_back", "after"),
    Death("rewards.expiring:_set_status", "after", 2),
]


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_a_kill_at_any_step_is_finished_once(crew: Crew, merchant: Merchant, step: Death) -> None:
    [voucher] = buy(merchant, unused=RETURN)
    assert crew.run("expire_vouchers", step) == KILLED
    with clock.stand(ENDED + LEASE_OVER), ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: expiring.sweep(clock.now()), range(4)))
        assert expiring.run(clock.now()) == 0
    assert now_of(voucher).status == vouchers.RETURNED
    assert (balance(), stock(voucher)) == ((100, 0), (100, 0, 0))
    everything_holds()


def test_several_nights_at_once_give_back_once(merchant: Merchant) -> None:
    bought = buy(merchant, 12, unused=RETURN)
    with clock.stand(ENDED), ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: expiring.run(clock.now()), range(4)))
    with clock.stand(ENDED + LEASE_OVER):
        expiring.sweep(clock.now())
    assert {now_of(one).status for one in bought} == {vouchers.RETURNED}
    assert (balance(), stock(bought[0])) == ((1_200, 0), (100, 0, 0))
    everything_holds()


def test_many_vouchers_end_in_bounded_batches(
    merchant: Merchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiring, "BATCH", 3)
    buy(merchant, 4)
    buy(merchant, 4, unused=RETURN)
    assert run() == 8


def asked(**changed: Any) -> list[str]:
    """What the planner reads for the night's look; for the test below."""
    plan = storage.database()["vouchers"].find(changed).explain()["queryPlanner"]["winningPlan"]
    names = []
    while plan:
        names.append(plan["stage"])
        plan = plan.get("inputStage")
    return names


def test_the_night_looks_no_further_than_what_has_ended(merchant: Merchant) -> None:
    buy(merchant)
    for unused in ("lapse", "return"):
        assert "COLLSCAN" not in asked(**expiring._over(unused, ENDED))
    halfway = {"status": {"$in": list(vouchers.RETURN_HALF_WAY)}, "leased_until": {"$lte": ENDED}}
    assert "COLLSCAN" not in asked(**halfway)
