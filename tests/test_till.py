"""After the scan: refunds, and scans made without network. The fen follow, whatever dies."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest
from faults.crew import KILLED, Crew, Death
from tills import ANNA, NOW, buy, fen_lines, new_merchant, outcome, scan

from accounting import book, clock, storage
from accounting.errors import AccountBusy, DomainError, KeyReused, NotFound
from points import statements
from points.wallet import consistent
from rewards import redemptions, takings, till, vouchers
from rewards.merchants import Merchant
from rewards.till import OfflineScan, RefundWindowOver, VoucherNotUsed, WrongMerchant
from rewards.vouchers import Voucher, VoucherExpired, VoucherUsed

pytestmark = pytest.mark.usefixtures("app")

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
MS = timedelta(milliseconds=1)


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.stand(NOW):
        yield


@pytest.fixture
def merchant(app: object) -> Merchant:
    return new_merchant()


def now_is(voucher: Voucher) -> Voucher:
    found = vouchers.get(voucher.id)
    assert found is not None
    return found


def owed() -> int:
    """What the book owes merchants, in fen."""
    return sum(line.amount for line in fen_lines() if line.book.startswith("payable:"))


def moved() -> list[tuple[str, int]]:
    rows = takings.moves().find().sort("_id", 1)
    return [(row["_id"].rpartition(":")[2], row["fen"]) for row in rows]


# Refunds.


def test_a_refund_takes_the_fen_back_and_the_voucher_can_be_used_again(merchant: Merchant) -> None:
    [voucher] = buy(merchant)
    scan(voucher, merchant, "t1")
    assert owed() == 500
    refunded = till.refund(voucher.id, merchant_id=merchant.id)
    assert (refunded.status, refunded.scans[-1].refunded_at) == ("issued", NOW)
    assert owed() == 0
    assert [line.amount for line in fen_lines()] == [500, -500, -500, 500]
    assert till.refund(voucher.id, merchant_id=merchant.id) == refunded
    assert scan(voucher, merchant, "t2", store=1).scan.store_id == merchant.stores[1].store_id
    assert owed() == 500
    assert moved() == [("refunded", -500), ("used", 500), ("used", 500)]
    assert book.verify(checks=[consistent]).problem is None


def test_a_late_repeat_of_a_refunded_scan_is_its_first_answer_and_uses_nothing(
    merchant: Merchant,
) -> None:
    [voucher] = buy(merchant)
    first = scan(voucher, merchant, "t1")
    till.refund(voucher.id, merchant_id=merchant.id)
    assert scan(voucher, merchant, "t1").scan.used_at == first.scan.used_at
    assert now_is(voucher).status == "issued"
    assert owed() == 0


def test_the_owner_of_a_refunded_voucher_may_cancel_it_for_the_points(merchant: Merchant) -> None:
    [voucher] = buy(merchant)
    scan(voucher, merchant)
    till.refund(voucher.id, merchant_id=merchant.id)
    redemptions.cancel(ANNA, voucher.redemption_id)
    assert statements.balance(ANNA).available == 100
    with pytest.raises(DomainError, match="voucher_cancelled"):
        scan(voucher, merchant, "t2")


def test_a_refund_has_seven_days(merchant: Merchant) -> None:
    early, late = buy(merchant, 2)
    scan(early, merchant, "t1")
    scan(late, merchant, "t2")
    with clock.stand(NOW + 7 * DAY):
        assert till.refund(early.id, merchant_id=merchant.id).status == "issued"
    with clock.stand(NOW + 7 * DAY + MS), pytest.raises(RefundWindowOver):
        till.refund(late.id, merchant_id=merchant.id)
    assert now_is(late).status == "used"


def test_a_voucher_refunded_on_its_last_day_can_be_used_seven_days_more(merchant: Merchant) -> None:
    [voucher] = buy(merchant, voucher_valid_days=1)
    # Bought on 20 May and good until the end of the 21st.
    with clock.stand(NOW + DAY):
        scan(voucher, merchant, "t1")
    with clock.stand(NOW + 2 * DAY):
        assert till.refund(voucher.id, merchant_id=merchant.id).expires_at == NOW + 9 * DAY
    with clock.stand(NOW + 9 * DAY - MS):
        scan(voucher, merchant, "t2")
    [kept] = buy(merchant, voucher_valid_days=30)
    scan(kept, merchant, "t3")
    assert till.refund(kept.id, merchant_id=merchant.id).expires_at == kept.expires_at


def test_what_cannot_be_refunded_is_refused_and_nothing_changes(merchant: Merchant) -> None:
    [voucher] = buy(merchant)
    with pytest.raises(VoucherNotUsed):
        till.refund(voucher.id, merchant_id=merchant.id)
    scan(voucher, merchant)
    with pytest.raises(WrongMerchant):
        till.refund(voucher.id, merchant_id=new_merchant().id)
    with pytest.raises(NotFound):
        till.refund("vch_none", merchant_id=merchant.id)
    assert (now_is(voucher).status, owed()) == ("used", 500)


def test_eight_refunds_at_once_take_the_fen_back_once(merchant: Merchant) -> None:
    [voucher] = buy(merchant)
    scan(voucher, merchant)
    with ThreadPoolExecutor(8) as pool:
        ends = list(
            pool.map(lambda _: till.refund(voucher.id, merchant_id=merchant.id).status, range(8))
        )
    assert ends == ["issued"] * 8
    assert [line.amount for line in fen_lines()] == [500, -500, -500, 500]


def test_refunds_and_scans_at_once_leave_book_and_voucher_in_agreement(merchant: Merchant) -> None:
    [voucher] = buy(merchant)
    scan(voucher, merchant, "t0")

    def act(number: int) -> str:
        if number % 2:
            return outcome(voucher, merchant, f"t{number}")
        try:
            return till.refund(voucher.id, merchant_id=merchant.id).status
        except DomainError as refusal:
            return refusal.code

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(act, range(16)))
    takings.book_unbooked(NOW + MINUTE)
    left = now_is(voucher)
    assert owed() == (500 if left.status == "used" else 0)
    assert sum(fen for _, fen in moved()) == owed()
    assert left.unbooked_since is None
    assert book.verify(checks=[consistent]).problem is None


@pytest.mark.parametrize(
    "step",
    [
        Death("rewards.takings:book", "before"),
        Death("accounting.book:post", "before"),
        Death("accounting.book:post", "after"),
        Death("rewards.takings:_keep_move", "after"),
    ],
    ids=str,
)
def test_a_refund_that_died_is_a_refund_and_its_fen_move_once(
    crew: Crew, merchant: Merchant, step: Death
) -> None:
    [voucher] = buy(merchant)
    scan(voucher, merchant)
    assert crew.run("refund", step, voucher_id=voucher.id, merchant_id=merchant.id) == KILLED
    with clock.stand(NOW + 30 * MINUTE):
        assert takings.book_unbooked(clock.now() - MINUTE) == 1
        assert takings.book_unbooked(clock.now() - MINUTE) == 0
    assert now_is(voucher).status == "issued"
    assert [line.amount for line in fen_lines()] == [500, -500, -500, 500]
    assert moved() == [("refunded", -500), ("used", 500)]


# Without network.


def shown(
    voucher: Voucher, merchant: Merchant, ref: str, at: datetime, store: int = 0
) -> OfflineScan:
    """A scan a till took at an instant, of the QR the phone showed then."""
    store_id = merchant.stores[store].store_id
    return OfflineScan(vouchers.qr_payload(voucher.id, at), store_id, ref, at)


def codes(taken: list[till.Taken]) -> list[str]:
    return [one.refusal.code if one.refusal else "used" for one in taken]


def test_scans_handed_in_later_are_paid_and_dated_when_they_were_made(merchant: Merchant) -> None:
    one, two = buy(merchant, 2)
    scans = [shown(one, merchant, "t1", NOW), shown(two, merchant, "t2", NOW + MINUTE)]
    with clock.stand(NOW + 2 * DAY):
        assert codes(till.take_offline(merchant.id, scans)) == ["used", "used"]
        assert codes(till.take_offline(merchant.id, scans)) == ["used", "used"]
    assert now_is(two).scans[0].used_at == NOW + MINUTE
    assert owed() == 1_000
    assert [entry.occurred_at for entry in book.entries(ANNA)][-2:] == [NOW, NOW + MINUTE]


def test_of_two_scans_of_one_voucher_the_earlier_is_paid_and_the_other_stays_unpaid(
    merchant: Merchant,
) -> None:
    [voucher] = buy(merchant)
    later = shown(voucher, merchant, "t2", NOW + MINUTE, store=1)
    earlier = shown(voucher, merchant, "t1", NOW)
    with clock.stand(NOW + DAY):
        assert codes(till.take_offline(merchant.id, [later, earlier])) == ["voucher_used", "used"]
        assert now_is(voucher).scans[0].terminal_ref == "t1"
        till.refund(voucher.id, merchant_id=merchant.id)
        # The lost one was answered; it does not win because the other was refunded.
        assert codes(till.take_offline(merchant.id, [later])) == ["voucher_used"]
        [lost] = till.lost_scans(merchant.id, before=None, limit=10)
    assert (lost["terminal_ref"], lost["voucher_id"], lost["scanned_at"]) == (
        "t2", voucher.id, NOW + MINUTE,
    )  # fmt: skip
    assert till.lost_scans("mer_other", before=None, limit=10) == []
    assert owed() == 0


def test_a_scan_with_network_wins_over_one_handed_in_afterwards(merchant: Merchant) -> None:
    [voucher] = buy(merchant)
    offline = shown(voucher, merchant, "t1", NOW)
    with clock.stand(NOW + MINUTE):
        scan(voucher, merchant, "t2")
        assert codes(till.take_offline(merchant.id, [offline])) == ["voucher_used"]
    assert owed() == 500


def test_a_scan_made_in_time_counts_also_after_the_voucher_ran_out(merchant: Merchant) -> None:
    valid, late = buy(merchant, 2, voucher_valid_days=1)
    end = valid.expires_at
    scans = [shown(valid, merchant, "t1", end - MS), shown(late, merchant, "t2", end)]
    with clock.stand(end + 3 * DAY):
        assert codes(till.take_offline(merchant.id, scans)) == ["used", "voucher_expired"]


@pytest.mark.parametrize(
    ("made", "at", "code"),
    [
        # The QR lives 60 s, and clocks may disagree by 5 s.
        (NOW, NOW + timedelta(seconds=65), "used"),
        (NOW, NOW + timedelta(seconds=65) + MS, "invalid_qr"),
        (NOW, NOW - timedelta(seconds=5), "used"),
        (NOW, NOW - timedelta(seconds=5) - MS, "invalid_qr"),
        # It is handed in on the 22nd at noon, at most seven days late and not ahead of the clock.
        (NOW - 5 * DAY, NOW - 5 * DAY, "used"),
        (NOW - 5 * DAY, NOW - 5 * DAY - MS, "scan_too_old"),
        (NOW + 2 * DAY, NOW + 2 * DAY + timedelta(seconds=6), "scan_too_old"),
    ],
)
def test_the_qr_was_fresh_when_it_was_scanned_and_is_handed_in_soon(
    merchant: Merchant, made: datetime, at: datetime, code: str
) -> None:
    [voucher] = buy(merchant)
    one = OfflineScan(vouchers.qr_payload(voucher.id, made), merchant.stores[0].store_id, "t1", at)
    with clock.stand(NOW + 2 * DAY):
        assert codes(till.take_offline(merchant.id, [one])) == [code]


def test_a_bad_scan_spoils_no_neighbour(merchant: Merchant) -> None:
    one, two, foreign = *buy(merchant, 2), *buy(new_merchant())
    good = shown(one, merchant, "t1", NOW)
    scans = [
        OfflineScan("TH1.x.1.AAAA", good.store_id, "t2", NOW),
        shown(foreign, merchant, "t3", NOW),
        good,
        shown(two, merchant, "t1", NOW),
    ]
    assert codes(till.take_offline(merchant.id, scans)) == [
        "invalid_qr", "wrong_merchant", "used", "idempotency_key_reused",
    ]  # fmt: skip
    assert now_is(two).status == "issued"


def test_a_reference_that_lost_for_one_voucher_stands_for_no_other(merchant: Merchant) -> None:
    one, two = buy(merchant, 2)
    scan(one, merchant, "t0")
    for voucher, code in ((one, "voucher_used"), (two, "idempotency_key_reused")):
        late = shown(voucher, merchant, "t1", NOW)
        assert codes(till.take_offline(merchant.id, [late])) == [code]


def test_the_same_upload_from_four_sides_is_paid_once(merchant: Merchant) -> None:
    issued = buy(merchant, 6)
    scans = [shown(one, merchant, f"t{number}", NOW) for number, one in enumerate(issued)]
    with ThreadPoolExecutor(4) as pool:
        ends = list(pool.map(lambda _: codes(till.take_offline(merchant.id, scans)), range(4)))
    assert ends == [["used"] * 6] * 4
    assert owed() == 3_000


def test_whether_a_reference_is_bound_is_found_by_its_index(merchant: Merchant) -> None:
    [voucher] = buy(merchant)
    scan(voucher, merchant, "t1")
    with pytest.raises(VoucherUsed):
        scan(voucher, merchant, "t2")
    found = storage.database()["vouchers"].find(
        {
            "merchant_id": merchant.id,
            "scans.store_id": merchant.stores[0].store_id,
            "scans.terminal_ref": "t1",
        }
    )
    assert "terminal_reference" in str(found.explain()["queryPlanner"]["winningPlan"])


def test_a_refusal_is_the_same_with_and_without_network(merchant: Merchant) -> None:
    [voucher] = buy(merchant, voucher_valid_days=1)
    with clock.stand(voucher.expires_at):
        with pytest.raises(VoucherExpired):
            scan(voucher, merchant, "t1")
        one = shown(voucher, merchant, "t1", voucher.expires_at)
        assert codes(till.take_offline(merchant.id, [one])) == ["voucher_expired"]
    [other] = buy(merchant)
    scan(other, merchant, "t1")
    [third] = buy(merchant)
    with pytest.raises(KeyReused):
        scan(third, merchant, "t1")


def test_a_till_does_not_wait_for_an_account_that_others_write(
    merchant: Merchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    [voucher] = buy(merchant)

    def busy(*_: object) -> None:
        raise AccountBusy(retry_after=1)

    with monkeypatch.context() as patch:
        patch.setattr(book, "post", busy)
        first = scan(voucher, merchant, "t1")
        assert scan(voucher, merchant, "t1") == first
    assert (owed(), moved()) == (0, [])
    # The sweep books it, or the same scan sent again.
    with clock.stand(NOW + MINUTE):
        assert [takings.book_unbooked(clock.now()), takings.book_unbooked(clock.now())] == [1, 0]
    assert (owed(), moved()) == (500, [("used", 500)])
