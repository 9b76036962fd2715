"""Points for vouchers: stock, points and vouchers move together, whoever races or dies."""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from faults.crew import KILLED, Crew, Death

from accounting import book, clock, storage
from accounting.book import Ask, Decision, Head
from accounting.errors import AccountBusy, DomainError, KeyReused, NotFound
from points import statements
from points.statements import Balance
from points.wallet import InsufficientPoints, Wallet, consistent
from rewards import catalogue, merchants, redemptions, till, vouchers
from rewards.merchants import Merchant
from rewards.offers import LimitReached, Reward, RewardUnavailable
from rewards.redemptions import Redemption, RedemptionInProgress
from rewards.stock import OutOfStock
from rewards.vouchers import Voucher, VoucherCancelled, VoucherExpired, VoucherUsed

pytestmark = pytest.mark.usefixtures("app")

ANNA, BO = "res_anna", "res_bo"
DAY, MS = timedelta(days=1), timedelta(milliseconds=1)
LEASE_OVER = redemptions.LEASE + timedelta(seconds=1)
keys = (f"key-{number}" for number in itertools.count())


def city(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=clock.CITY).astimezone(UTC)


NOW = city("2026-05-20 12:00")


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.travel(NOW - clock.now()):
        yield


@pytest.fixture
def merchant(app: object) -> Merchant:
    return merchants.add(
        {"zh": "共富商城", "en": "Mall"},
        [{"name": "柯城店", "address": "1"}, {"name": "衢江店", "address": "2"}],
    )


Offer = Callable[..., Reward]


@pytest.fixture
def offer(merchant: Merchant) -> Offer:
    """Put a reward into the catalogue: 200 points for 5 yuan, five of them."""

    def make(**changed: Any) -> Reward:
        wanted: dict[str, Any] = {
            "merchant_id": merchant.id,
            "title": {"zh": "柚子", "en": "Pomelo"},
            "description": {"zh": "", "en": ""},
            "price_points": 200,
            "face_value_fen": 500,
            "stock": 5,
            "voucher_valid_days": 30,
            "funder": "city",
        }
        return catalogue.add_reward(**{**wanted, **changed})

    return make


def give(points: int, who: str = ANNA, *, over: datetime | None = None) -> None:
    """Points that are available at once, from something that was over at an instant."""

    def decide(head: Head, now: datetime) -> Decision:
        wallet = Wallet.load(head.after)
        wallet.advance(now)
        wallet.earn(points, "city", over=over or now, maturity=timedelta(0))
        wallet.advance(now)
        return Decision(tuple(wallet.lines), {"wallet": wallet.dump()})

    book.post(Ask(who, next(keys), "earn", "f", NOW), decide)


def redeem(reward: Reward, quantity: int = 1, *, who: str = ANNA, key: str = "one") -> Redemption:
    return redemptions.redeem(who, key, reward.id, quantity)


def stock(reward: Reward) -> tuple[int, int, int]:
    now = catalogue.reward(reward.id)
    return now.stock_left, now.stock_reserved, now.stock_issued


def available(who: str = ANNA) -> int:
    return statements.balance(who).available


def patiently(do: Callable[[], Any]) -> Any:
    """Ask again while the account or the redemption is busy, a bounded number of times."""
    for _ in range(50):
        try:
            return do()
        except (AccountBusy, RedemptionInProgress):
            continue
    raise AssertionError("still busy after 50 tries")


def outcome(do: Callable[[], Any]) -> str:
    """`ok`, or the code of the refusal."""
    try:
        patiently(do)
    except DomainError as refusal:
        return refusal.code
    return "ok"


def everything_holds(reward: Reward) -> None:
    """Stock is whole, every issued item is a voucher, nothing is half-way, the books balance."""
    now = catalogue.reward(reward.id)
    assert (
        now.stock_left + now.stock_reserved + now.stock_issued
        == reward.stock_left + reward.stock_reserved + reward.stock_issued
    )
    row = storage.database()["rewards"].find_one({"_id": reward.id})
    assert row is not None
    assert (now.stock_reserved, row["in_flight"]) == (0, [])
    standing = {"reward_id": reward.id, "status": {"$ne": "cancelled"}}
    assert storage.database()["vouchers"].count_documents(standing) == now.stock_issued
    halfway = {"state": {"$in": list(redemptions.HALF_WAY)}}
    assert storage.database()["redemptions"].count_documents(halfway) == 0
    assert book.verify(checks=[consistent]).problem is None


# Once, as it should be.


def test_points_become_vouchers(offer: Offer) -> None:
    give(1_000)
    reward = offer()
    done = redeem(reward, 3)
    assert (done.state, done.points, done.quantity) == ("issued", 600, 3)
    assert available() == 400
    assert stock(reward) == (2, 0, 3)
    issued = vouchers.of_redemption(done.id)
    assert [voucher.status for voucher in issued] == ["issued"] * 3
    assert len({vouchers.code_of(voucher.id) for voucher in issued}) == 3
    # 30 days after the 20 May, to the end of the day.
    assert {voucher.expires_at for voucher in issued} == {city("2026-06-20 00:00")}
    entry = list(book.entries(ANNA))[-1]
    assert [tuple(line) for line in entry.lines] == [
        ("points", "available", -600, ""),
        ("points", "spent:city", 600, ""),
    ]
    assert entry.refs["lots"] == [[2028_05_31, "city", 600]]
    assert redemptions.get(ANNA, done.id) == done
    everything_holds(reward)


def test_the_same_key_again_gives_the_same_redemption_and_no_second_effect(offer: Offer) -> None:
    give(1_000)
    reward = offer(stock=1)
    first = redeem(reward)
    with clock.travel(400 * DAY):
        assert redeem(reward) == first
    assert stock(reward) == (0, 0, 1)
    assert book.head(ANNA).seq == 2


@pytest.mark.parametrize("other", ["another reward", "another quantity"])
def test_the_same_key_with_other_content_is_refused(offer: Offer, other: str) -> None:
    give(1_000)
    reward = offer()
    redeem(reward)
    with pytest.raises(KeyReused):
        redeem(offer() if other == "another reward" else reward, 1 if "reward" in other else 2)
    assert available() == 800


def test_two_residents_may_use_the_same_key(offer: Offer) -> None:
    give(200)
    give(200, BO)
    reward = offer()
    assert redeem(reward).id != redeem(reward, who=BO).id


def test_nobody_sees_the_redemption_of_another(offer: Offer) -> None:
    give(200)
    done = redeem(offer())
    for act in (redemptions.get, redemptions.cancel):
        with pytest.raises(NotFound):
            act(BO, done.id)
    assert redemptions.of_resident(BO, before=None, limit=9) == []


# Refusals change nothing.


def test_too_few_points_leave_stock_and_points_and_stay_refused_under_that_key(
    offer: Offer,
) -> None:
    give(199)
    reward = offer()
    for _ in range(2):
        with pytest.raises(InsufficientPoints) as refused:
            redeem(reward)
        assert refused.value.facts == {"needed": 200, "available": 199}
    give(1)
    with pytest.raises(InsufficientPoints):  # The same key is the same question.
        redeem(reward)
    assert (stock(reward), available()) == ((5, 0, 0), 200)
    assert redeem(reward, key="two").state == "issued"
    assert [one.key for one in redemptions.of_resident(ANNA, before=None, limit=9)] == ["two"]
    everything_holds(reward)


def test_pending_points_cannot_be_spent(offer: Offer) -> None:
    def decide(head: Head, now: datetime) -> Decision:
        wallet = Wallet.load(head.after)
        wallet.earn(500, "city", over=now, maturity=DAY)
        return Decision(tuple(wallet.lines), {"wallet": wallet.dump()})

    book.post(Ask(ANNA, "earn", "earn", "f", NOW), decide)
    reward = offer()
    with pytest.raises(InsufficientPoints):
        redeem(reward)
    with clock.travel(DAY):
        assert redeem(reward, key="two").state == "issued"


def test_what_is_sold_out_is_refused(offer: Offer) -> None:
    give(1_000)
    reward = offer(stock=2)
    with pytest.raises(OutOfStock):
        redeem(reward, 3, key="three")
    redeem(reward, 2, key="two")
    with pytest.raises(OutOfStock):
        redeem(reward, 1, key="one more")
    assert (stock(reward), available()) == ((0, 0, 2), 600)


@pytest.mark.parametrize(
    ("at", "is_open"),
    [
        (NOW - MS, False),
        (NOW, True),
        (NOW + 2 * DAY - timedelta(minutes=1), True),
        (NOW + 2 * DAY, False),
    ],
)
def test_a_reward_is_open_from_its_first_instant_to_before_its_last(
    offer: Offer, at: datetime, is_open: bool
) -> None:
    reward = offer(available_from=NOW, available_to=NOW + 2 * DAY)
    assert reward.open_at(at) is is_open
    with clock.stand(at):
        assert (reward.id in [one.id for one in listed()]) is is_open


def listed() -> list[Reward]:
    return catalogue.open_rewards(clock.now(), before=None, limit=9)


def test_a_reward_that_is_over_is_refused(offer: Offer) -> None:
    give(200)
    reward = offer(available_to=NOW - DAY, available_from=NOW - 2 * DAY)
    with pytest.raises(RewardUnavailable):
        redeem(reward)
    assert (stock(reward), available()) == ((5, 0, 0), 200)
    with pytest.raises(NotFound):
        redemptions.redeem(ANNA, "x", "rwd_nothing", 1)


def test_each_resident_gets_at_most_the_limit_and_a_cancelled_one_does_not_count(
    offer: Offer,
) -> None:
    give(2_000)
    reward = offer(per_resident_limit=2, stock=9)
    with pytest.raises(LimitReached) as refused:
        redeem(reward, 3, key="a")
    assert refused.value.facts == {"limit": 2}
    first = redeem(reward, key="b")
    redeem(reward, key="c")
    with pytest.raises(LimitReached):
        redeem(reward, key="d")
    redemptions.cancel(ANNA, first.id)
    redeem(reward, key="e")
    with pytest.raises(LimitReached):
        redeem(reward, key="f")
    assert stock(reward) == (7, 0, 2)
    everything_holds(reward)


# Races.


def test_24_residents_race_for_five_and_exactly_five_get_one(offer: Offer) -> None:
    people = [f"res_{number}" for number in range(24)]
    for who in people:
        give(200, who)
    reward = offer()
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda who: outcome(lambda: redeem(reward, who=who)), people))
    assert sorted(answers) == ["ok"] * 5 + ["out_of_stock"] * 19
    assert stock(reward) == (0, 0, 5)
    left = [available(who) for who in people]
    assert sorted(left) == [0] * 5 + [200] * 19
    assert [points == 0 for points in left] == [answer == "ok" for answer in answers]
    everything_holds(reward)


def test_twelve_requests_of_one_resident_never_exceed_the_limit(offer: Offer) -> None:
    give(10_000)
    reward = offer(per_resident_limit=2, stock=20)
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda n: outcome(lambda: redeem(reward, key=f"k{n}")), range(12)))
    assert sorted(answers) == ["limit_reached"] * 10 + ["ok"] * 2
    assert (stock(reward), available()) == ((18, 0, 2), 9_600)
    everything_holds(reward)


def test_eight_requests_of_one_resident_never_spend_a_point_twice(offer: Offer) -> None:
    give(500)
    reward = offer(stock=20)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: outcome(lambda: redeem(reward, key=f"k{n}")), range(8)))
    assert sorted(answers) == ["insufficient_points"] * 6 + ["ok"] * 2
    assert (stock(reward), available()) == ((18, 0, 2), 100)
    everything_holds(reward)


def test_eight_threads_with_one_key_make_one_redemption(offer: Offer) -> None:
    give(10_000)
    reward = offer()
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda _: patiently(lambda: redeem(reward)), range(8)))
    assert len({one.id for one in done}) == 1
    assert (stock(reward), available()) == ((4, 0, 1), 9_800)
    everything_holds(reward)


# Deaths while redeeming.

BEFORE_PAYING = [
    Death("rewards.redemptions:_ask", "after"),
    Death("rewards.stock:reserve", "after"),
    Death("accounting.book:post", "before"),
]
AFTER_PAYING = [
    Death("accounting.book:post", "after"),
    Death("rewards.vouchers:issue", "after"),
    Death("rewards.stock:issue", "before"),
    Death("rewards.stock:issue", "after"),
    Death("rewards.redemptions:_set_state", "after"),
]


def die_redeeming(crew: Crew, reward: Reward, step: Death, quantity: int = 1) -> None:
    args = {"resident": ANNA, "key": "one", "reward_id": reward.id, "quantity": quantity}
    assert crew.run("redeem", step, **args) == KILLED


@pytest.mark.parametrize("step", BEFORE_PAYING + AFTER_PAYING, ids=str)
def test_a_retry_after_a_kill_at_any_step_gets_its_vouchers_once(
    crew: Crew, offer: Offer, step: Death
) -> None:
    give(1_000)
    reward = offer(stock=2)  # The last ones: nothing is there to be taken twice.
    die_redeeming(crew, reward, step, 2)
    if step is not AFTER_PAYING[-1]:
        with pytest.raises(RedemptionInProgress):  # Whoever carried it may still live.
            redeem(reward, 2)
    with clock.travel(LEASE_OVER):
        assert redeem(reward, 2).state == "issued"
    assert (stock(reward), available()) == ((0, 0, 2), 600)
    everything_holds(reward)


@pytest.mark.parametrize("step", BEFORE_PAYING, ids=str)
def test_the_sweep_releases_what_was_not_paid_for(crew: Crew, offer: Offer, step: Death) -> None:
    give(1_000)
    reward = offer(stock=2)
    die_redeeming(crew, reward, step, 2)
    assert redemptions.sweep(clock.now()) == 0
    with clock.travel(LEASE_OVER):
        assert redemptions.sweep(clock.now()) == 1
        assert redemptions.sweep(clock.now()) == 0
        with pytest.raises(RewardUnavailable):
            redeem(reward, 2)
        assert (stock(reward), available()) == ((2, 0, 0), 1_000)
        assert redeem(reward, 2, key="two").state == "issued"
    everything_holds(reward)


@pytest.mark.parametrize("step", AFTER_PAYING[:-1], ids=str)
def test_the_sweep_finishes_what_was_paid_for(crew: Crew, offer: Offer, step: Death) -> None:
    give(1_000)
    reward = offer(stock=2, available_to=NOW + timedelta(seconds=30))
    die_redeeming(crew, reward, step, 2)
    with clock.travel(LEASE_OVER), ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: redemptions.sweep(clock.now()), range(4)))
    assert redeem(reward, 2).state == "issued"
    assert (stock(reward), available()) == ((0, 0, 2), 600)
    everything_holds(reward)


@pytest.mark.parametrize("step", AFTER_PAYING[:-1], ids=str)
def test_what_was_paid_for_is_handed_over_although_the_reward_has_closed(
    crew: Crew, offer: Offer, step: Death
) -> None:
    give(200)
    reward = offer(available_to=NOW + timedelta(seconds=30))
    die_redeeming(crew, reward, step)
    with clock.travel(LEASE_OVER):
        assert redeem(reward).state == "issued"
    assert available() == 0
    everything_holds(reward)


def test_a_request_that_was_only_slow_cannot_spend_after_the_sweep_gave_it_up(
    crew: Crew, offer: Offer
) -> None:
    give(1_000)
    reward = offer()
    die_redeeming(crew, reward, Death("rewards.stock:reserve", "after"))
    row = storage.database()["redemptions"].find_one({})
    assert row is not None
    slow = redemptions._redemption(row)
    with clock.travel(LEASE_OVER):
        redemptions.sweep(clock.now())
    with pytest.raises(RewardUnavailable):
        redemptions._carry_through(slow, reward, eligible=True)
    assert (stock(reward), available()) == ((5, 0, 0), 1_000)
    everything_holds(reward)


# Cancelling.


def test_cancelling_returns_points_to_their_lots_and_stock_to_the_shelf(offer: Offer) -> None:
    give(150, over=city("2026-03-10 12:00"))
    give(150, over=city("2026-05-10 12:00"))
    before = statements.balance(ANNA).expiring
    assert before == (("2028-03-31", 150), ("2028-05-31", 150))
    reward = offer()
    done = redeem(reward)
    assert statements.balance(ANNA).expiring == (("2028-05-31", 100),)
    for _ in range(2):
        assert redemptions.cancel(ANNA, done.id).state == "cancelled"
        balance = statements.balance(ANNA)
        assert (balance.expiring, balance.spent) == (before, 0)
        assert stock(reward) == (5, 0, 0)
    assert [one.status for one in vouchers.of_redemption(done.id)] == ["cancelled"]
    assert redeem(reward).state == "cancelled"  # The key is still the same redemption.
    everything_holds(reward)


def test_points_whose_lot_expired_meanwhile_get_30_days_of_grace(offer: Offer) -> None:
    give(200, over=city("2026-05-10 12:00"))
    done = redeem(offer(voucher_valid_days=1_000))
    with clock.travel(city("2028-06-10 12:00") - clock.now()):
        redemptions.cancel(ANNA, done.id)
        # 10 June and 30 days.
        assert statements.balance(ANNA).expiring == (("2028-07-10", 200),)


def test_points_that_come_back_pay_what_is_owed_first(offer: Offer) -> None:
    give(500)
    done = redeem(offer(), 2)

    def take_back(head: Head, now: datetime) -> Decision:
        wallet = Wallet.load(head.after)
        wallet.advance(now)
        wallet.take_back(300, "city", over=now, maturity=timedelta(0))
        return Decision(tuple(wallet.lines), {"wallet": wallet.dump()})

    book.post(Ask(ANNA, next(keys), "reverse", "f", NOW), take_back)
    balance = statements.balance(ANNA)
    # 100 of the 500 were left, so 200 of the 300 are owed.
    assert (balance.available, balance.owed, balance.spent) == (0, 200, 400)
    redemptions.cancel(ANNA, done.id)
    balance = statements.balance(ANNA)
    assert (balance.available, balance.owed, balance.spent) == (200, 0, 0)
    row = statements.rows(ANNA, before=None, limit=1)[0]
    assert (row.points, row.changes.available, row.changes.owed) == (400, 200, -200)
    assert book.verify(checks=[consistent]).problem is None


def scan(voucher: Voucher, merchant: Merchant, ref: str = "till-1") -> till.Used:
    store = merchant.stores[0].store_id
    return till.redeem(voucher, merchant_id=merchant.id, store_id=store, terminal_ref=ref)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_with_one_voucher_used_nothing_can_be_cancelled_and_nothing_changes(
    offer: Offer, merchant: Merchant, which: int
) -> None:
    give(1_000)
    reward = offer()
    done = redeem(reward, 3)
    scan(vouchers.of_redemption(done.id)[which], merchant)
    with pytest.raises(VoucherUsed):
        redemptions.cancel(ANNA, done.id)
    assert redemptions.get(ANNA, done.id).state == "issued"
    assert (stock(reward), available()) == ((2, 0, 3), 400)
    statuses = [voucher.status for voucher in vouchers.of_redemption(done.id)]
    assert statuses == ["used" if place == which else "issued" for place in range(3)]
    for voucher in vouchers.of_redemption(done.id):
        assert scan(
            voucher, merchant, f"till-{voucher.id}" if voucher.status == "issued" else "till-1"
        )
    everything_holds(reward)


def test_a_voucher_that_ran_out_cannot_be_cancelled(offer: Offer) -> None:
    give(200)
    done = redeem(offer())
    with clock.stand(city("2026-06-20 00:00")):
        with pytest.raises(VoucherExpired):
            redemptions.cancel(ANNA, done.id)
        assert redemptions.get(ANNA, done.id).state == "issued"
        assert available() == 0


def test_a_cancelled_voucher_is_refused_at_the_till(offer: Offer, merchant: Merchant) -> None:
    give(200)
    done = redeem(offer())
    [voucher] = vouchers.of_redemption(done.id)
    redemptions.cancel(ANNA, done.id)
    with pytest.raises(VoucherCancelled):
        scan(voucher, merchant)


CANCEL_STEPS = [
    Death("rewards.redemptions:_set_state", "after", 1),  # cancelling
    Death("rewards.redemptions:_lease", "after"),
    Death("rewards.vouchers:cancel", "after", 1),
    Death("rewards.vouchers:cancel", "after", 2),
    Death("accounting.book:post", "after"),
    Death("rewards.stock:begin_return", "after"),
    Death("rewards.redemptions:_set_state", "after", 2),  # returning
    Death("rewards.stock:give_back", "after"),
    Death("rewards.redemptions:_set_state", "after", 3),  # cancelled
]


@pytest.mark.parametrize("step", CANCEL_STEPS, ids=str)
@pytest.mark.parametrize("rescue", ["retry", "sweep"])
def test_a_kill_at_any_step_of_cancelling_is_finished_once(
    crew: Crew, offer: Offer, step: Death, rescue: str
) -> None:
    give(1_000)
    reward = offer(per_resident_limit=2)
    done = redeem(reward, 2)
    assert crew.run("cancel", step, resident=ANNA, redemption_id=done.id) == KILLED
    with clock.travel(LEASE_OVER):
        if rescue == "sweep":
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda _: redemptions.sweep(clock.now()), range(4)))
        assert redemptions.cancel(ANNA, done.id).state == "cancelled"
        assert redemptions.sweep(clock.now()) == 0
    assert (stock(reward), available()) == ((5, 0, 0), 1_000)
    assert redeem(reward, 2, key="two").state == "issued"
    everything_holds(reward)


@pytest.mark.parametrize("step", CANCEL_STEPS[:3], ids=str)
def test_a_cancellation_that_died_before_a_voucher_was_used_ends_unchanged(
    crew: Crew, offer: Offer, merchant: Merchant, step: Death
) -> None:
    give(1_000)
    reward = offer()
    done = redeem(reward, 2)
    assert crew.run("cancel", step, resident=ANNA, redemption_id=done.id) == KILLED
    scan(vouchers.of_redemption(done.id)[1], merchant)
    with clock.travel(LEASE_OVER):
        redemptions.sweep(clock.now())
    assert redemptions.get(ANNA, done.id).state == "issued"
    assert [one.status for one in vouchers.of_redemption(done.id)] == ["issued", "used"]
    assert (stock(reward), available()) == ((3, 0, 2), 600)
    everything_holds(reward)


def test_eight_cancellations_at_once_give_back_once(offer: Offer) -> None:
    give(1_000)
    reward = offer()
    done = redeem(reward, 2)
    with ThreadPoolExecutor(8) as pool:
        ends = list(
            pool.map(lambda _: patiently(lambda: redemptions.cancel(ANNA, done.id)), range(8))
        )
    assert {one.state for one in ends} == {"cancelled"}
    assert (stock(reward), available()) == ((5, 0, 0), 1_000)
    everything_holds(reward)


def test_a_voucher_is_either_scanned_or_cancelled_never_both(
    offer: Offer, merchant: Merchant
) -> None:
    reward = offer(stock=20)
    done = []
    for number in range(12):
        give(200, f"res_{number}")
        done.append(redeem(reward, who=f"res_{number}"))

    def use(one: Redemption) -> str:
        [voucher] = vouchers.of_redemption(one.id)
        return outcome(lambda: scan(voucher, merchant, one.id))

    def give_up(one: Redemption) -> str:
        return outcome(lambda: redemptions.cancel(one.resident, one.id))

    with ThreadPoolExecutor(8) as pool:
        used = [pool.submit(use, one) for one in done]
        cancelled = [pool.submit(give_up, one) for one in done]
    for one, scanned, gave_up in zip(done, used, cancelled, strict=True):
        [voucher] = vouchers.of_redemption(one.id)
        ends = (scanned.result(), gave_up.result())
        if voucher.status == "used":
            assert ends == ("ok", "voucher_used")
            assert available(one.resident) == 0
        else:
            assert ends == ("voucher_cancelled", "ok")
            assert available(one.resident) == 200
    everything_holds(reward)


def test_lifetime_points_are_conserved_through_it_all(offer: Offer, merchant: Merchant) -> None:
    give(1_000)
    reward = offer()
    first, second = redeem(reward, 2), redeem(reward, key="two")
    redemptions.cancel(ANNA, second.id)
    scan(vouchers.of_redemption(first.id)[0], merchant)
    balance: Balance = statements.balance(ANNA)
    assert (balance.lifetime_earned, balance.available, balance.spent) == (1_000, 600, 400)
    everything_holds(reward)
