"""Settlement: a period closes to statements that equal the book to the fen, once and for ever."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta

import pytest
from faults.crew import KILLED, Crew, Death
from tills import ANNA, NOW, buy, city, fen_lines, new_merchant, scan

from accounting import book, clock, jobs, proofs, storage
from accounting.errors import DomainError, NotFound
from accounting.jobs import Job
from accounting.proofs import BookNotProven
from points import statements
from rewards import expiring, merchants, settlement, statement_content, takings, till, vouchers
from rewards.merchants import Merchant
from rewards.offers import LAPSE, RETURN
from rewards.settlement import (
    PeriodClosed,
    PeriodNotContinuous,
    PeriodNotOver,
    SettlementUnderway,
    Statement,
)
from rewards.till import OfflineScan

pytestmark = pytest.mark.usefixtures("app")

DAY, MINUTE, MS = timedelta(days=1), timedelta(minutes=1), timedelta(milliseconds=1)
MAY_20, MAY_21, MAY_22 = date(2026, 5, 20), date(2026, 5, 21), date(2026, 5, 22)


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.stand(NOW):
        yield


@pytest.fixture
def merchant(app: object) -> Merchant:
    return new_merchant()


def close(first: date | None = None, last: date | None = None) -> Job:
    job = settlement.run(settlement.ask(first, last, "cli_operator").id)
    assert job is not None
    return job


def of(merchant: Merchant) -> list[Statement]:
    return settlement.of_merchant(merchant.id, before=None, limit=100)


def payable(merchant: Merchant) -> int:
    name = f"payable:{merchant.id}"
    return sum(line.amount for line in fen_lines() if line.book == name)


def test_a_statement_says_what_was_used_by_funder_store_reward_and_day(merchant: Merchant) -> None:
    one, two = buy(merchant, 2)
    [bank] = buy(merchant, face_value_fen=1_200, funder="bank:1", title={"zh": "茶", "en": "Tea"})
    scan(one, merchant, "t1")
    with clock.stand(NOW + DAY):
        scan(two, merchant, "t2", store=1)
        scan(bank, merchant, "t3", store=1)
    with clock.stand(NOW + 2 * DAY):
        assert close().state == jobs.DONE
    [statement] = of(merchant)
    said = statement.content
    first, second = (store.store_id for store in merchant.stores)
    assert (said["from"], said["to"], said["vouchers"], said["refunds"]) == (
        "2026-05-20", "2026-05-21", 3, 0,
    )  # fmt: skip
    # 500 + 500 + 1,200 fen.
    assert (said["face_value_fen"], said["payable_fen"]) == (2_200, 2_200)
    assert [(line["funder"], line["net_fen"]) for line in said["lines"]] == [
        ("bank:1", 1_200), ("city", 1_000),
    ]  # fmt: skip
    by_store = {line["store_id"]: line["face_value_fen"] for line in said["by_store"]}
    assert by_store == {first: 500, second: 1_700}
    assert sorted(line["face_value_fen"] for line in said["by_reward"]) == [1_000, 1_200]
    assert [(line["day"], line["face_value_fen"]) for line in said["by_day"]] == [
        ("2026-05-20", 500), ("2026-05-21", 1_700),
    ]  # fmt: skip
    # Three vouchers of 100 points of the city, worth 200 fen a thousand: 60 fen.
    assert said["points"] == [
        {"funder": "city", "points": 300, "fen_per_1000_points": 200, "value_fen": 60}
    ]
    # Of them 100 bought a reward of the bank's: the city owes it 20 fen for them.
    assert said["transfers"] == [{"from": "city", "to": "bank:1", "value_fen": 20}]
    assert payable(merchant) == 2_200


def test_a_fee_is_rounded_once_and_shared_among_the_funders(app: object) -> None:
    merchant = merchants.add(
        {"zh": "店", "en": "Shop"}, [{"name": "一", "address": "1"}], fee_basis_points=150
    )
    for number, (fen, funder) in enumerate([(333, "city"), (333, "bank:1"), (334, "city")]):
        [voucher] = buy(merchant, face_value_fen=fen, funder=funder)
        scan(voucher, merchant, f"t{number}")
    with clock.stand(NOW + DAY):
        close()
    [statement] = of(merchant)
    # 1.5 % of 1,000 fen is 15. The bank's 333 fen bear 4.995, the city's 667 bear 10.005.
    assert statement.content["fee_fen"] == 15
    assert [(line["funder"], line["fee_fen"]) for line in statement.content["lines"]] == [
        ("bank:1", 5), ("city", 10),
    ]  # fmt: skip
    assert statement.content["payable_fen"] == 985


def test_half_a_fen_is_rounded_away_from_zero() -> None:
    assert [statement_content.half_up(n, 10) for n in (14, 15, 16, -14, -15, -16, 0)] == [
        1, 2, 2, -1, -2, -2, 0,
    ]  # fmt: skip


def test_a_period_is_closed_once_and_periods_follow_one_another(merchant: Merchant) -> None:
    [voucher] = buy(merchant)
    scan(voucher, merchant)
    with clock.stand(NOW + 2 * DAY):
        close(MAY_20, MAY_21)
        for first, last in ((MAY_20, MAY_21), (None, MAY_21), (MAY_21, MAY_22), (None, MAY_20)):
            with pytest.raises(PeriodClosed):
                close(first, last)
    with clock.stand(NOW + 3 * DAY):
        with pytest.raises(PeriodNotContinuous):
            close(MAY_22 + DAY, MAY_22 + DAY)
        with pytest.raises(PeriodNotOver):
            close(MAY_22, MAY_22 + 2 * DAY)
    with clock.stand(NOW + 4 * DAY):
        close()
        newest = settlement.periods(before=None, limit=1)[0]
        assert (newest.first, newest.last, newest.statements) == (MAY_22, MAY_22 + DAY, 0)
    assert len(of(merchant)) == 1


def test_a_period_may_end_today_and_what_comes_later_is_in_the_next(merchant: Merchant) -> None:
    one, two = buy(merchant, 2)
    scan(one, merchant, "t1")
    with clock.stand(NOW + MINUTE):
        close(MAY_20, MAY_20)
    with clock.stand(NOW + 2 * MINUTE):
        scan(two, merchant, "t2")
    with clock.stand(NOW + 2 * DAY):
        close()
    newer, older = of(merchant)
    assert [older.content["face_value_fen"], newer.content["face_value_fen"]] == [500, 500]
    assert [line["day"] for line in newer.content["by_day"]] == ["2026-05-20"]


def test_the_city_day_decides_which_period_a_scan_is_in(merchant: Merchant) -> None:
    last, first = buy(merchant, 2)
    with clock.stand(city("2026-05-21 00:00") - MS):
        scan(last, merchant, "t1")
    with clock.stand(city("2026-05-21 00:00")):
        scan(first, merchant, "t2")
        close(MAY_20, MAY_20)
    assert [statement.content["vouchers"] for statement in of(merchant)] == [1]


def test_a_refund_after_the_close_is_a_credit_note_of_the_next_statement(
    merchant: Merchant,
) -> None:
    settled, kept = buy(merchant, 2)
    scan(settled, merchant, "t1")
    with clock.stand(NOW + DAY):
        close()
        frozen = of(merchant)[0]
        till.refund(settled.id, merchant_id=merchant.id)
        scan(kept, merchant, "t2")
        till.refund(kept.id, merchant_id=merchant.id)
    with clock.stand(NOW + 2 * DAY):
        close()
    newer, older = of(merchant)
    assert older == frozen
    [note] = newer.content["credit_notes"]
    assert (note["voucher_id"], note["face_value_fen"]) == (settled.id, -500)
    assert (newer.content["face_value_fen"], newer.content["refunds"]) == (-500, 2)
    # Nothing is paid, and the next statement begins with the debt.
    assert (newer.content["payable_fen"], newer.content["carried_forward_fen"]) == (0, -500)
    [another] = buy(merchant, face_value_fen=800)
    with clock.stand(NOW + 2 * DAY):
        scan(another, merchant, "t3")
    with clock.stand(NOW + 3 * DAY):
        close()
    last = of(merchant)[0].content
    assert (last["brought_forward_fen"], last["payable_fen"]) == (-500, 300)
    assert last["carried_forward_fen"] == 0


def test_a_late_scan_without_network_is_in_the_period_it_arrived_in(merchant: Merchant) -> None:
    [voucher] = buy(merchant)
    late = OfflineScan(vouchers.qr_payload(voucher.id, NOW), merchant.stores[0].store_id, "t1", NOW)
    with clock.stand(NOW + DAY):
        close(MAY_20, MAY_20)
        till.take_offline(merchant.id, [late])
    with clock.stand(NOW + 2 * DAY):
        close()
    [statement] = of(merchant)
    assert (statement.content["from"], statement.content["vouchers"]) == ("2026-05-21", 1)


def test_a_close_to_now_takes_in_what_came_since_the_last_one_of_today(merchant: Merchant) -> None:
    def close_now() -> Job:
        job = settlement.run(settlement.ask(None, None, "cli_operator", to_now=True).id)
        assert job is not None
        return job

    one, two = buy(merchant, 2)
    scan(one, merchant, "t1")
    with clock.stand(NOW + MINUTE):
        close_now()
    with clock.stand(NOW + 2 * MINUTE):
        scan(two, merchant, "t2")
    with clock.stand(NOW + 3 * MINUTE):
        assert close_now().state == jobs.DONE
        assert close_now().done == 0, "nothing came since"
        with pytest.raises(PeriodClosed):
            settlement.ask(None, MAY_20, "cli_operator", to_now=True)
    days = [(each.content["from"], each.content["to"]) for each in of(merchant)]
    assert days == [("2026-05-20", "2026-05-20")] * 2
    assert [each.content["face_value_fen"] for each in of(merchant)] == [500, 500]
    with clock.stand(NOW + DAY):
        with pytest.raises(PeriodClosed):
            close()
        # The next one begins after today, however often today was closed.
        close_now()
    assert settlement.periods(before=None, limit=1)[0].first == MAY_21


def test_another_merchants_statement_is_not_found(merchant: Merchant) -> None:
    [voucher] = buy(merchant)
    scan(voucher, merchant)
    with clock.stand(NOW + DAY):
        close()
    [statement] = of(merchant)
    assert settlement.statement(statement.id, merchant.id) == statement
    with pytest.raises(NotFound):
        settlement.statement(statement.id, new_merchant().id)


def test_a_move_the_book_does_not_know_stops_the_close(merchant: Merchant) -> None:
    [voucher] = buy(merchant)
    scan(voucher, merchant)
    takings.moves().update_one({}, {"$inc": {"fen": 100}})
    with clock.stand(NOW + DAY):
        job = close()
    assert job.state == jobs.FAILED
    assert job.failure is not None
    assert job.failure.code == "book_disagrees"
    assert "600 fen" in job.failure.en
    assert "600 fen" in job.failure.zh
    assert of(merchant) == []
    # Once it is put right, asking again carries the same close on.
    takings.moves().update_one({}, {"$inc": {"fen": -100}})
    with clock.stand(NOW + 2 * DAY):
        for other in ((None, MAY_22), (MAY_21, None)):
            with pytest.raises(SettlementUnderway):
                settlement.ask(*other, "cli_operator")
        again = close()
    assert (again.id, again.state) == (job.id, jobs.DONE)
    [statement] = of(merchant)
    assert (statement.content["to"], statement.content["payable_fen"]) == ("2026-05-20", 500)


def test_nothing_is_settled_by_a_book_whose_proof_is_red(merchant: Merchant) -> None:
    [voucher] = buy(merchant)
    scan(voucher, merchant)
    with clock.stand(NOW + DAY):
        asked = settlement.ask(None, None, "cli_operator")
        proofs._add("night", proofs.RED, problem="a hole")
        with pytest.raises(BookNotProven):
            settlement.ask(None, None, "cli_operator")
        failed = settlement.run(asked.id)
        assert failed is not None
        assert (failed.state, of(merchant)) == (jobs.FAILED, [])
        storage.database()["proofs"].delete_many({})
        assert (close().id, len(of(merchant))) == (asked.id, 1)


def test_a_move_written_late_is_in_the_next_statement_if_its_own_is_out(merchant: Merchant) -> None:
    one, two = buy(merchant, 2)
    scan(one, merchant, "t1")
    scan(two, merchant, "t2")
    # The second one's entry is in the book; whoever posted it died before the row beside it.
    row = takings.moves().find_one_and_delete({"voucher_id": two.id})
    with clock.stand(NOW + DAY):
        job = settlement.ask(None, None, "cli_operator")
        period = settlement.period_of(1)
        assert period is not None
        settlement._state(period, merchant.id)
        assert row is not None
        takings.moves().insert_one(row)
        # The worker died here, and another carries the close on.
        done = settlement.run(job.id)
        assert done is not None
        assert done.state == jobs.DONE
    with clock.stand(NOW + 2 * DAY):
        close()
    assert [one.content["face_value_fen"] for one in of(merchant)] == [500, 500]
    assert settlement.unsettled([merchant.id]) == {}


def test_a_close_whose_asker_died_is_worked_on_once_asked_again(
    merchant: Merchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    [voucher] = buy(merchant)
    scan(voucher, merchant)
    with clock.stand(NOW + DAY):
        with monkeypatch.context() as patch:
            patch.setattr(jobs, "release", lambda job_id: None)
            job = settlement.ask(None, None, "cli_operator")
        assert jobs.waiting(clock.now()) == []
        with pytest.raises(SettlementUnderway):
            settlement.ask(None, None, "cli_operator")
        assert jobs.waiting(clock.now()) == [job.id]


def test_eight_operators_close_at_once_and_one_period_is_closed(merchant: Merchant) -> None:
    [voucher] = buy(merchant)
    scan(voucher, merchant)

    def attempt(_: int) -> str:
        try:
            job = settlement.run(settlement.ask(None, MAY_20, "cli_operator").id)
        except DomainError as refusal:
            return refusal.code
        return job.state if job else "another has it"

    with clock.stand(NOW + DAY), ThreadPoolExecutor(8) as pool:
        ends = list(pool.map(attempt, range(8)))
    assert ends.count(jobs.DONE) == 1
    assert set(ends) <= {jobs.DONE, "settlement_underway", "period_closed"}
    assert len(of(merchant)) == 1
    assert len(settlement.periods(before=None, limit=10)) == 1


@pytest.mark.parametrize(
    "step",
    [
        Death("rewards.settlement:_state", "before"),
        Death("rewards.settlement:_hold_against_the_book", "before"),
        Death("rewards.statement_content:of_moves", "after"),
        Death("rewards.settlement:_state", "after"),
        Death("rewards.settlement:_state", "after", nth=2),
        Death("accounting.jobs:finish", "before"),
    ],
    ids=str,
)
def test_a_close_that_died_is_carried_on_and_every_move_is_settled_once(
    crew: Crew, merchant: Merchant, step: Death
) -> None:
    others = [merchant, new_merchant(), new_merchant()]
    for one in others:
        [voucher] = buy(one)
        scan(voucher, one)
    with clock.stand(NOW + DAY):
        job = settlement.ask(None, None, "cli_operator")
        assert crew.run("settle", step, job_id=job.id) == KILLED
    with clock.stand(NOW + DAY + 10 * MINUTE):
        # Scanned after the close had begun: not in this period, however often it is tried.
        [late] = buy(merchant)
        scan(late, merchant, "late")
        assert jobs.waiting(clock.now()) == [job.id]
        done = settlement.run(job.id)
        assert done is not None
        assert done.state == jobs.DONE
    assert [len(of(one)) for one in others] == [1, 1, 1]
    assert [of(one)[0].content["face_value_fen"] for one in others] == [500] * 3
    assert settlement.unsettled([merchant.id]) == {merchant.id: 500}
    assert settlement.periods(before=None, limit=1)[0].state == "closed"


def test_a_month_of_shopping_settles_to_what_the_book_says(app: object) -> None:
    """Random scans, refunds, late scans, vouchers that run out.

    The statements are added up by an independent reading, and so is what became of the points.
    """
    chance = random.Random(20260520)
    shops = [new_merchant() for _ in range(3)]
    at, scanned, number = NOW, [], 0
    # Of every voucher whether its points come back if nobody uses it; and those in use.
    comes_back: dict[str, bool] = {}
    in_use: set[str] = set()
    for day in range(30):
        at = NOW + day * DAY
        with clock.stand(at):
            for shop in shops:
                terms = {
                    "face_value_fen": chance.choice([300, 500, 999]),
                    "funders": chance.choice([(("city", 100),), (("city", 67), ("bank:1", 33))]),
                    "unused": chance.choice([LAPSE, RETURN]),
                    "voucher_valid_days": 3,
                }
                for voucher in buy(shop, chance.randint(1, 2), **terms):
                    number += 1
                    comes_back[voucher.id] = terms["unused"] == RETURN
                    if chance.random() < 0.2:
                        continue  # Never used.
                    if chance.random() < 0.3:
                        payload = vouchers.qr_payload(voucher.id, at)
                        store = shop.stores[0].store_id
                        late = OfflineScan(payload, store, f"o{number}", at)
                        with clock.stand(at + chance.randint(0, 6) * DAY):
                            till.take_offline(shop.id, [late])
                    else:
                        scan(voucher, shop, f"t{number}", store=chance.randint(0, 1))
                    scanned.append((voucher, shop))
                    in_use.add(voucher.id)
            for voucher, shop in chance.sample(scanned, min(2, len(scanned))):
                # Some come too late, or the scan is of a later day than this one.
                try:
                    till.refund(voucher.id, merchant_id=shop.id)
                except till.RefundWindowOver:
                    continue
                in_use.discard(voucher.id)
            expiring.run(clock.now())
        if day % 7 == 6:
            with clock.stand(at + timedelta(hours=13)):
                close()
    with clock.stand(at + 10 * DAY):
        close()
    # The last refund gives a voucher seven days, and seven more for scans on their way.
    with clock.stand(at + 20 * DAY):
        expiring.run(clock.now())
        balance = statements.balance(ANNA)
    back = sum(comes_back[one] for one in comes_back.keys() - in_use)
    # Each was bought for 100 points.
    assert (balance.available, balance.spent) == (100 * back, 100 * (len(comes_back) - back))
    assert 0 < back < len(comes_back) - len(in_use)
    rewards = list(storage.database()["rewards"].find())
    assert sum(one["stock_issued"] for one in rewards) == len(comes_back) - back
    assert {one["stock_left"] + one["stock_issued"] for one in rewards} == {100}
    booked: dict[str, int] = {}
    for row in storage.database()["entries"].find({"account": ANNA}):
        for unit, name, amount, _tag in row["lines"]:
            if unit == "fen":
                booked[name] = booked.get(name, 0) + amount
    stated = {f"payable:{shop.id}": 0 for shop in shops}
    funded: dict[str, int] = {}
    for shop in shops:
        for statement in of(shop):
            stated[f"payable:{shop.id}"] += statement.content["face_value_fen"]
            for line in statement.content["lines"]:
                name = f"funded:{line['funder']}"
                funded[name] = funded.get(name, 0) - line["face_value_fen"]
    assert stated | funded == booked
    assert sum(stated.values()) > 0
    assert len(of(shops[0])) >= 5
    assert takings.moves().count_documents({"statement": None}) == 0
    # What is paid out, and what is still carried, is what the book owes.
    for shop in shops:
        paid = sum(statement.content["payable_fen"] for statement in of(shop))
        left = of(shop)[0].content["carried_forward_fen"]
        assert paid + left == stated[f"payable:{shop.id}"]
    assert book.verify().problem is None
