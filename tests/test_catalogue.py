"""What a reward asks of a resident and gives: limits, grades, stock of a month, funders, alarms."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
from faults.crew import Crew, job
from tills import city, new_merchant

from accounting import accounts, book, clock, storage
from accounting.book import Ask, Decision, Head
from accounting.errors import AccountBusy, DomainError, KeyReused
from points import statements
from points.wallet import Wallet, consistent
from rewards import catalogue, expiring, merchants, redemptions, searching, stock, till, vouchers
from rewards.merchants import Merchant
from rewards.offers import RETURN, NotEligible, Reward
from rewards.redemptions import Redemption
from rewards.stock import StockPromised
from rewards.till import WrongMerchant

pytestmark = pytest.mark.usefixtures("app")

ANNA, BO = "res_anna", "res_bo"
# The last minute of 20 May in the city, which is 15:59 UTC.
NIGHT = city("2026-05-20 23:59")
DAY, MINUTE, MS = timedelta(days=1), timedelta(minutes=1), timedelta(milliseconds=1)
keys = (f"key-{number}" for number in itertools.count())


@pytest.fixture(autouse=True)
def _night() -> Iterator[None]:
    with clock.stand(NIGHT):
        yield


@pytest.fixture
def merchant(app: object) -> Merchant:
    return new_merchant()


def offer(merchant: Merchant, **changed: Any) -> Reward:
    """A reward of 100 points for 5 yuan, fifty of them."""
    wanted: dict[str, Any] = {
        "merchant_id": merchant.id,
        "title": {"zh": "柚子", "en": "Pomelo"},
        "description": {"zh": "", "en": ""},
        "price_points": 100,
        "face_value_fen": 500,
        "stock": 50,
        "voucher_valid_days": 30,
        "funder": "city",
    }
    return catalogue.add_reward(**{**wanted, **changed})


def give(points: int, who: str = ANNA) -> None:
    def decide(head: Head, now: datetime) -> Decision:
        wallet = Wallet.load(head.after)
        wallet.advance(now)
        wallet.earn(points, "city", over=now, maturity=timedelta(0))
        wallet.advance(now)
        return Decision(tuple(wallet.lines), {"wallet": wallet.dump()})

    book.post(Ask(who, next(keys), "earn", "f", NIGHT), decide)


def redeem(reward: Reward, quantity: int = 1, *, who: str = ANNA, key: str = "") -> Redemption:
    return redemptions.redeem(who, key or next(keys), reward.id, quantity)


def end(reward: Reward, quantity: int = 1, *, who: str = ANNA) -> str:
    """`ok`, or the code and facts of the refusal."""
    key = next(keys)
    for _ in range(50):
        try:
            redeem(reward, quantity, who=who, key=key)
        except AccountBusy:
            continue
        except DomainError as refusal:
            return " ".join([refusal.code, *map(str, refusal.facts.values())])
        return "ok"
    raise AssertionError("still busy after 50 tries")


def shelf(reward: Reward) -> tuple[int, int, int]:
    now = catalogue.reward(reward.id)
    return now.stock_left, now.stock_reserved, now.stock_issued


def available(who: str = ANNA) -> int:
    return statements.balance(who).available


# Limits.


def test_a_limit_a_day_begins_again_at_midnight_in_the_city(merchant: Merchant) -> None:
    give(1_000)
    reward = offer(merchant, per_day_limit=2)
    assert [end(reward, 2), end(reward)] == ["ok", "limit_reached 2"]
    with clock.stand(city("2026-05-21 00:00") - MS):
        assert end(reward) == "limit_reached 2"
    with clock.stand(city("2026-05-21 00:00")):
        assert [end(reward, 3), end(reward), end(reward), end(reward)] == [
            "limit_reached 2", "ok", "ok", "limit_reached 2",
        ]  # fmt: skip
    assert shelf(reward) == (46, 0, 4)


def test_a_limit_a_month_begins_again_with_the_month(merchant: Merchant) -> None:
    give(1_000)
    reward = offer(merchant, per_month_limit=1, per_resident_limit=2)
    assert end(reward) == "ok"
    with clock.stand(city("2026-06-01 00:00") - MS):
        assert end(reward) == "limit_reached 1"
    with clock.stand(city("2026-06-01 00:00")):
        assert [end(reward), end(reward)] == ["ok", "limit_reached 1"]
    with clock.stand(city("2026-07-01 00:00")):
        assert end(reward) == "limit_reached 2"


def test_a_redemption_belongs_to_the_day_it_was_asked_on(merchant: Merchant) -> None:
    give(1_000)
    reward = offer(merchant, per_day_limit=1)
    first = redeem(reward, key="first")
    with clock.stand(NIGHT + 2 * MINUTE):
        assert redeem(reward, key="first") == first
        assert end(reward) == "ok"


def test_the_words_of_a_refusal_say_which_limit_it_is_and_stay(merchant: Merchant) -> None:
    give(1_000)
    reward = offer(merchant, per_day_limit=1)
    redeem(reward)
    for _ in range(2):
        with pytest.raises(DomainError) as refused:
            redeem(reward, key="again")
        assert refused.value.text("en") == "Each resident may have 1 of this reward a day."


def test_what_was_cancelled_or_came_back_unused_does_not_count(merchant: Merchant) -> None:
    give(1_000)
    reward = offer(merchant, per_resident_limit=2, unused=RETURN)
    kept = redeem(reward, 2)
    assert end(reward) == "limit_reached 2"
    redemptions.cancel(ANNA, kept.id)
    redeem(reward, 2)
    # Valid to 19 June, and a week for scans on their way.
    with clock.stand(city("2026-06-27 00:00")):
        assert expiring.run(clock.now()) == 2
        assert [end(reward, 2), end(reward)] == ["ok", "limit_reached 2"]


def test_whose_points_came_back_is_told_once_and_a_closed_account_nothing(
    merchant: Merchant,
) -> None:
    stays, leaves = accounts.by_phone("+8613700000014"), accounts.by_phone("+8613700000015")
    reward = offer(merchant, unused=RETURN)
    for who in (stays, leaves):
        give(100, who)
        redeem(reward, who=who)
    accounts.close(leaves)
    with clock.stand(city("2026-06-27 00:00")):
        assert expiring.run(clock.now()) == 2
    [told] = storage.database()["notifications"].find()
    assert (told["resident"], told["type"]) == (stays, "points_returned")
    assert told["body"]["en"] == "“Pomelo” ran out unused; its 100 points are back."


def test_a_limit_set_later_counts_what_was_had_before(merchant: Merchant) -> None:
    give(1_000)
    reward = offer(merchant)
    redeem(reward, 3)
    catalogue.change(reward.id, {"per_resident_limit": 4})
    assert [end(reward, 2), end(reward), end(reward)] == [
        "limit_reached 4", "ok", "limit_reached 4",
    ]  # fmt: skip


def test_ten_requests_at_once_never_exceed_the_limit_of_a_day(merchant: Merchant) -> None:
    give(10_000)
    reward = offer(merchant, per_day_limit=3)
    with ThreadPoolExecutor(10) as pool:
        ends = sorted(pool.map(lambda _: end(reward), range(10)))
    assert ends == ["limit_reached 3"] * 7 + ["ok"] * 3
    assert (shelf(reward), available()) == ((47, 0, 3), 9_700)


def test_limits_leave_nothing_behind_in_the_account(merchant: Merchant) -> None:
    give(1_000)
    redeem(offer(merchant, per_resident_limit=1, per_day_limit=1))
    assert set(book.head(ANNA).after) == {"wallet", "balances"}


# Stock.


def test_a_hundred_residents_from_eight_processes_race_for_ten(
    crew: Crew, merchant: Merchant
) -> None:
    people = [f"res_{number:03d}" for number in range(100)]
    for who in people:
        give(100, who)
    reward = offer(merchant, stock=10, per_resident_limit=1)
    shares = [people[start::8] for start in range(8)]
    pids = crew.start(
        *(job("redeem_each", residents=share, reward_id=reward.id) for share in shares)
    )
    ends: dict[str, str] = {}
    for share, answer in zip(shares, crew.wait(pids), strict=True):
        ends |= dict(zip(share, answer["value"], strict=True))
    assert sorted(ends.values()) == ["ok"] * 10 + ["out_of_stock"] * 90
    assert shelf(reward) == (0, 0, 10)
    assert {who: available(who) for who in people} == {
        who: 0 if ends[who] == "ok" else 100 for who in people
    }
    held = storage.database()["vouchers"].distinct("resident", {"reward_id": reward.id})
    assert sorted(held) == sorted(who for who in people if ends[who] == "ok")
    assert book.verify(checks=[consistent]).problem is None


def test_of_three_when_two_are_left_none_is_had(merchant: Merchant) -> None:
    give(1_000)
    reward = offer(merchant, stock=2)
    assert end(reward, 3) == "out_of_stock"
    assert (shelf(reward), available()) == ((2, 0, 0), 1_000)
    assert end(reward, 2) == "ok"


def test_a_month_has_its_own_stock(merchant: Merchant) -> None:
    give(2_000)
    reward = offer(merchant, monthly_stock=3)
    first = redeem(reward, 2)
    assert [end(reward, 2), end(reward), end(reward)] == ["out_of_stock", "ok", "out_of_stock"]
    assert catalogue.reward(reward.id).left_in("2026-05") == 0
    redemptions.cancel(ANNA, first.id)
    assert end(reward, 2) == "ok"
    with clock.stand(city("2026-06-01 00:00")):
        assert [end(reward, 3), end(reward)] == ["ok", "out_of_stock"]
    assert catalogue.reward(reward.id).taken == {"2026-05": 3, "2026-06": 3}
    assert shelf(reward) == (44, 0, 6)


def test_twelve_at_once_take_no_more_than_the_month_has(merchant: Merchant) -> None:
    people = [f"res_{number}" for number in range(12)]
    for who in people:
        give(100, who)
    reward = offer(merchant, monthly_stock=5)
    with ThreadPoolExecutor(12) as pool:
        ends = sorted(pool.map(lambda who: end(reward, who=who), people))
    assert ends == ["ok"] * 5 + ["out_of_stock"] * 7


def test_stock_changes_by_deltas_and_never_below_what_is_promised(merchant: Merchant) -> None:
    give(1_000)
    reward = offer(merchant, stock=5)
    redeem(reward, 2)
    assert stock.change(reward.id, 4, "a") == (3, 7)
    assert stock.change(reward.id, 4, "a") == (3, 7)
    with pytest.raises(StockPromised) as refused:
        stock.change(reward.id, -8, "b")
    assert refused.value.facts == {"left": 7}
    assert stock.change(reward.id, -7, "b") == (7, 0)
    assert shelf(reward) == (0, 0, 2)
    with pytest.raises(stock.StockTooLarge):
        stock.change(reward.id, stock.TOTAL_MAX, "c")


def test_deltas_and_redemptions_at_once_lose_nothing(merchant: Merchant) -> None:
    people = [f"res_{number}" for number in range(8)]
    for who in people:
        give(100, who)
    reward = offer(merchant, stock=20)
    with ThreadPoolExecutor(12) as pool:
        deltas = [pool.submit(stock.change, reward.id, -1, f"d{n}") for n in range(8)]
        ends = list(pool.map(lambda who: end(reward, who=who), people))
        for delta in deltas:
            delta.result()
    assert (ends, shelf(reward)) == (["ok"] * 8, (4, 0, 8))


# Few are left.


def alarms() -> list[tuple[int, int]]:
    return [(one.stock_left, one.low_stock_at) for one in stock.alarms(before=None, limit=9)]


def test_each_crossing_leaves_one_alarm(merchant: Merchant) -> None:
    give(2_000)
    reward = offer(merchant, stock=4, low_stock_at=2)
    redeem(reward)
    assert alarms() == []
    third = redeem(reward)
    redeem(reward)
    assert alarms() == [(2, 2)]
    low = catalogue.all_rewards(before=None, limit=9, low_stock=True)
    assert [one.id for one in low] == [reward.id]
    with clock.stand(NIGHT + MINUTE):
        redemptions.cancel(ANNA, third.id)
        stock.change(reward.id, 5, None)
        assert catalogue.all_rewards(before=None, limit=9, low_stock=True) == []
        stock.change(reward.id, -6, None)
        stock.change(reward.id, -1, None)
    assert alarms() == [(1, 2), (2, 2)]


def test_one_alarm_also_when_twelve_cross_at_once(merchant: Merchant) -> None:
    people = [f"res_{number}" for number in range(12)]
    for who in people:
        give(100, who)
    reward = offer(merchant, stock=20, low_stock_at=15)
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda who: end(reward, who=who), people))
    # Whoever tells it may be a later one than who crossed.
    [(left, threshold)] = alarms()
    assert (left <= 15, threshold) == (True, 15)


def test_an_alarm_a_crash_kept_back_is_left_by_the_sweep(
    merchant: Merchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(100)
    reward = offer(merchant, stock=1, low_stock_at=0)
    with monkeypatch.context() as patch:
        patch.setattr(stock, "_tell", lambda row: None)  # Dead before it told.
        redeem(reward)
    assert alarms() == []
    assert [stock.sweep(), stock.sweep()] == [1, 0]
    assert alarms() == [(0, 0)]


def test_a_threshold_set_later_alarms_at_once(merchant: Merchant) -> None:
    reward = offer(merchant, stock=5)
    catalogue.change(reward.id, {"low_stock_at": 5})
    stock.watch(reward.id)
    stock.watch(reward.id)
    assert alarms() == [(5, 5)]


# Who may have it, and for how much.


def test_a_reward_for_a_district_is_for_those_who_live_there(merchant: Merchant) -> None:
    here, there = accounts.by_phone("+8613700000011"), accounts.by_phone("+8613700000012")
    accounts.change(here, {"district": "柯城区"})
    for who in (here, there):
        give(100, who)
    reward = offer(merchant, districts=("柯城区", "衢江区"))
    assert end(reward, who=here) == "ok"
    for _ in range(2):
        with pytest.raises(NotEligible):
            redeem(reward, who=there, key="far")
    assert (shelf(reward), available(there)) == ((49, 0, 1), 100)


def test_a_grade_has_its_own_price_and_its_own_rewards(merchant: Merchant) -> None:
    who = accounts.by_phone("+8613700000013")
    give(1_000, who)
    # Nobody has graded them, and they have done nothing: unrated.
    cheaper = offer(merchant, prices_by_grade={"unrated": 80, "deep": 10})
    assert redeem(cheaper, 2, who=who).points == 160
    assert end(offer(merchant, grades=("deep", "mid")), who=who) == "reward_unavailable"
    assert end(offer(merchant, grades=("unrated",)), who=who) == "ok"
    assert available(who) == 740


def test_a_paused_reward_is_not_had_until_it_goes_on(merchant: Merchant) -> None:
    give(200)
    reward = offer(merchant)
    catalogue.change(reward.id, {"paused": True})
    assert end(reward) == "reward_unavailable"
    assert catalogue.open_rewards(NIGHT, before=None, limit=9) == []
    catalogue.change(reward.id, {"paused": False})
    assert end(reward) == "ok"


# What was promised.


def test_funders_share_the_face_value_to_the_fen(merchant: Merchant) -> None:
    give(100)
    # 333 fen: 70 % are 233.1 and 30 % are 99.9, so the odd fen is the bank's.
    reward = offer(merchant, face_value_fen=333, funders=(("city", 70), ("bank:1", 30)))
    [voucher] = vouchers.of_redemption(redeem(reward).id)
    assert voucher.funder_split == (("city", 233), ("bank:1", 100))
    store = merchant.stores[0].store_id
    till.redeem(voucher, merchant_id=merchant.id, store_id=store, terminal_ref="t")
    last = list(book.entries(ANNA))[-1]
    assert [(line.book, line.amount) for line in last.lines] == [
        (f"payable:{merchant.id}", 333), ("funded:city", -233), ("funded:bank:1", -100),
    ]  # fmt: skip


def test_a_change_of_terms_leaves_what_was_redeemed_alone(merchant: Merchant) -> None:
    give(500)
    reward = offer(merchant)
    done = redeem(reward)
    catalogue.change(
        reward.id,
        {
            "price_points": 300,
            "face_value_fen": 900,
            "funders": (("bank:1", 100),),
            "voucher_valid_days": 1,
            "unused": RETURN,
        },
    )
    [old] = vouchers.of_redemption(done.id)
    [new] = vouchers.of_redemption(redeem(reward).id)
    assert (old.face_value_fen, old.funder_split, old.unused) == (500, (("city", 500),), "lapse")
    assert (new.face_value_fen, new.funder_split, new.unused) == (900, (("bank:1", 900),), RETURN)
    assert (old.expires_at, new.expires_at) == (city("2026-06-20 00:00"), city("2026-05-22 00:00"))
    assert available() == 100


def test_only_the_stores_of_a_reward_take_its_vouchers(merchant: Merchant) -> None:
    give(200)
    one, two = (store.store_id for store in merchant.stores)
    reward = offer(merchant, store_ids=(two,))
    [voucher] = vouchers.of_redemption(redeem(reward).id)
    with pytest.raises(WrongMerchant):
        till.redeem(voucher, merchant_id=merchant.id, store_id=one, terminal_ref="t")
    till.redeem(voucher, merchant_id=merchant.id, store_id=two, terminal_ref="t")


def test_a_store_that_closed_takes_nothing_and_a_new_one_at_once(merchant: Merchant) -> None:
    give(200)
    first = merchant.stores[0].store_id
    reward = offer(merchant)
    one, two = vouchers.of_redemption(redeem(reward, 2).id)
    till.redeem(one, merchant_id=merchant.id, store_id=first, terminal_ref="t")
    stores = [{"store_id": first, "closed": True}, {"name": "新店", "address": "3"}]
    for _ in range(2):
        _, after = merchants.change(merchant.id, stores=stores)
    assert [store.closed for store in after.stores] == [True, False, False]
    with pytest.raises(WrongMerchant):
        till.redeem(two, merchant_id=merchant.id, store_id=first, terminal_ref="t2")
    new = after.stores[2].store_id
    till.redeem(two, merchant_id=merchant.id, store_id=new, terminal_ref="t2")


def test_a_reward_asked_for_twice_is_one(merchant: Merchant) -> None:
    assert offer(merchant, once=("row:1", "a")).id == offer(merchant, once=("row:1", "a")).id
    with pytest.raises(KeyReused):
        offer(merchant, once=("row:1", "b"))


# Finding.


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("柚子", True),
        ("子", True),
        ("一箱 胡柚", True),
        ("POMELO", True),
        ("pome", True),
        ("ＰＯＭＥＬＯ", True),
        ("box pom", True),
        ("柚皮", False),
        ("melon", False),
        ("   ", True),
    ],
)
def test_words_find_rewards_in_either_language(merchant: Merchant, text: str, found: bool) -> None:
    reward = offer(
        merchant,
        title={"zh": "胡柚子一箱", "en": "A box of pomelos"},
        description={"zh": "常山", "en": "From Changshan"},
    )
    offer(merchant, title={"zh": "车票", "en": "Ticket"}, paused=True)
    rewards = catalogue.open_rewards(NIGHT, before=None, limit=9, text=text)
    assert [one.id for one in rewards] == ([reward.id] if found else [])


def test_a_search_asks_for_no_more_than_a_few_words() -> None:
    assert len(searching.pieces("a " * 100)) == searching.PIECES_MAX
    assert searching.grams("Ab cd") == ["a", "ab", "b", "c", "cd", "d"]


def test_filters_find_by_category_merchant_price_and_stock(merchant: Merchant) -> None:
    other = new_merchant()
    cheap = offer(merchant, category="food", price_points=50)
    gone = offer(merchant, category="food", stock=0)
    month = offer(other, category="bus", monthly_stock=0)
    dear = offer(other, price_points=900, prices_by_grade={"deep": 40})

    def find(**filters: Any) -> list[str]:
        rewards = catalogue.open_rewards(NIGHT, before=None, limit=9, **filters)
        return [one.id for one in rewards]

    assert find() == [dear.id, month.id, gone.id, cheap.id]
    assert find(category="food") == [gone.id, cheap.id]
    assert find(category="food", in_stock=True) == [cheap.id]
    assert find(merchant_id=other.id, in_stock=True) == [dear.id]
    assert find(most_points=60) == [cheap.id]
    assert find(most_points=60, grade="deep") == [dear.id, cheap.id]
    assert find(most_points=60, grade="light") == [cheap.id]


def stages(wanted: dict[str, Any], sort: list[tuple[str, int]]) -> str:
    found = storage.database()["rewards"].find(wanted).sort(sort).explain()
    return str(found["queryPlanner"]["winningPlan"])


def test_no_list_reads_the_whole_catalogue(merchant: Merchant) -> None:
    offer(merchant)
    for wanted in (
        {"category": "food"},
        {"merchant_id": merchant.id},
        catalogue._named(None, "柚子", None, None),
        {"low_since": {"$type": "date"}},
        {"_id": {"$lt": "rwd_z"}},
    ):
        assert "COLLSCAN" not in stages(wanted, [("_id", -1)]), wanted
