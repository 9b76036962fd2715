"""Vouchers at the till: a code to type, a QR that dies, one scan, and the fen of the merchant."""

import base64
import itertools
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from faults.crew import KILLED, Crew, Death
from tills import ANNA, NOW, buy, city, fen_lines, new_merchant, outcome, scan

from accounting import book, clock, storage, vault
from accounting.book import Line
from accounting.errors import KeyReused, NotFound
from points.wallet import consistent
from rewards import takings, till, vouchers
from rewards.merchants import Merchant
from rewards.till import WrongMerchant
from rewards.vouchers import BadQr, VoucherExpired, VoucherUsed

pytestmark = pytest.mark.usefixtures("app")

SECOND, MS = timedelta(seconds=1), timedelta(milliseconds=1)


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.travel(NOW - clock.now()):
        yield


@pytest.fixture
def merchant(app: object) -> Merchant:
    return new_merchant()


# The typed code.


def test_a_code_is_twelve_characters_and_a_check_character_in_three_groups(
    merchant: Merchant,
) -> None:
    [voucher] = buy(merchant)
    code = vouchers.code_of(voucher.id)
    assert code == vouchers.code_of(voucher.id)
    groups = code.split("-")
    assert [len(group) for group in groups] == [4, 4, 5]
    assert set("".join(groups)) <= set("0123456789ABCDEFGHJKMNPQRSTVWXYZ")
    assert vouchers.find(code=code, qr=None, now=NOW) == voucher


def test_the_code_is_stored_only_as_a_keyed_hash(merchant: Merchant) -> None:
    [voucher] = buy(merchant)
    stored = storage.database()["vouchers"].find_one({"_id": voucher.id})
    code = vouchers.code_of(voucher.id)
    assert stored is not None
    assert code not in repr(stored)
    assert code.replace("-", "") not in repr(stored)


def test_a_typed_code_is_forgiven_its_case_blanks_dashes_and_lookalikes() -> None:
    printed = [vouchers.code_of(f"vch_{number}") for number in range(100)]
    assert {"0", "1"} <= set("".join(printed))
    for code in printed:
        for typed in (
            code.lower(),
            code.replace("-", ""),
            f"  {code.replace('-', ' ')} ",
            code.replace("0", "O").replace("1", "I"),
            code.replace("0", "o").replace("1", "l"),
        ):
            assert vouchers._clean(typed) == code


def test_a_wrong_character_is_always_noticed_and_a_swapped_pair_nearly_always() -> None:
    swapped = missed = 0
    for number in range(50):
        code = vouchers.code_of(f"vch_{number}").replace("-", "")
        for place, other in itertools.product(range(13), vouchers.ALPHABET):
            if other != code[place]:
                with pytest.raises(NotFound):
                    vouchers._clean(code[:place] + other + code[place + 1 :])
        for place in range(12):
            pair = code[place + 1] + code[place]
            if pair[0] != pair[1]:
                swapped += 1
                missed += is_a_code(code[:place] + pair + code[place + 2 :])
    assert swapped > 500
    assert missed * 100 < swapped


def is_a_code(typed: str) -> bool:
    try:
        vouchers._clean(typed)
    except NotFound:
        return False
    return True


@pytest.mark.parametrize(
    "typed", ["", "-", "0" * 13, "ABCD", "你好", "UUUU-UUUU-UUUUU", "A" * 5_000]
)
def test_what_is_no_code_is_not_found(typed: str) -> None:
    with pytest.raises(NotFound):
        vouchers.find(code=typed, qr=None, now=NOW)


def test_codes_do_not_repeat_and_use_the_whole_alphabet() -> None:
    codes = {vouchers.code_of(f"vch_{number}") for number in range(2_000)}
    assert len(codes) == 2_000
    assert set("".join(codes)) == set(vouchers.ALPHABET) | {"-"}


# The QR.


def test_a_fresh_qr_names_its_voucher_and_a_merchant_can_check_it_without_network(
    merchant: Merchant,
) -> None:
    [voucher] = buy(merchant)
    payload = vouchers.qr_payload(voucher.id, NOW)
    assert vouchers.find(code=None, qr=payload, now=NOW) == voucher
    signed, _, signature = payload.rpartition(".")
    padded = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
    vault.signing_key().public_key().verify(padded, signed.encode())


def test_a_screenshot_dies_after_a_minute_and_five_seconds_of_tolerance(
    merchant: Merchant,
) -> None:
    [voucher] = buy(merchant)
    payload = vouchers.qr_payload(voucher.id, NOW)
    assert vouchers.voucher_of_qr(payload, NOW + 65 * SECOND) == voucher.id
    with pytest.raises(BadQr):
        vouchers.voucher_of_qr(payload, NOW + 65 * SECOND + MS)


def test_a_qr_that_was_altered_anywhere_is_refused() -> None:
    payload = vouchers.qr_payload("vch_1_1", NOW)
    chance = random.Random(5)
    # All but the last character: of that one, base64 uses two bits of six.
    for place in range(len(payload) - 1):
        letter = chance.choice([one for one in "abcdefgXYZ789" if one != payload[place]])
        with pytest.raises(BadQr):
            vouchers.voucher_of_qr(payload[:place] + letter + payload[place + 1 :], NOW)


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "TH1",
        "TH1.vch_1.1779249660",
        "TH1.vch_1.1779249660.",
        "TH1.vch_1.x.AAAA",
        "TH1.vch_1.²³.AAAA",
        "TH2.vch_1.1779249660.AAAA",
        "TH1.vch_1.1779249660.你好",
        "TH1.\ud800.1779249660.AAAA",
        "TH1.vch_1.1779249660.AAAA.more",
        "TH1.vch_1.99999999999999999999999999.AAAA",
    ],
)
def test_what_is_no_qr_of_ours_is_refused(payload: str) -> None:
    with pytest.raises(BadQr):
        vouchers.voucher_of_qr(payload, NOW)


def test_the_signature_of_one_voucher_does_not_open_another() -> None:
    mine, other = (vouchers.qr_payload(f"vch_{name}", NOW) for name in "ab")
    with pytest.raises(BadQr):
        vouchers.voucher_of_qr(".".join([*mine.split(".")[:3], other.split(".")[3]]), NOW)


def test_the_life_of_a_qr_cannot_be_prolonged() -> None:
    parts = vouchers.qr_payload("vch_1", NOW).split(".")
    parts[2] = str(int(parts[2]) + 3_600)
    with pytest.raises(BadQr):
        vouchers.voucher_of_qr(".".join(parts), NOW)


# One scan.


def test_sixteen_tills_scan_one_voucher_and_one_succeeds(merchant: Merchant) -> None:
    [voucher] = buy(merchant)
    with ThreadPoolExecutor(16) as pool:
        ends = list(pool.map(lambda n: outcome(voucher, merchant, f"t{n}", n % 2), range(16)))
    assert sorted(ends) == ["used"] + ["voucher_used"] * 15
    assert [line.amount for line in fen_lines()] == [500, -500]


def test_the_same_scan_again_gets_its_first_answer(merchant: Merchant) -> None:
    [voucher] = buy(merchant)
    first = scan(voucher, merchant)
    with clock.travel(timedelta(days=400)):
        again = scan(voucher, merchant)
    assert again == first
    assert (first.voucher_id, first.scan.terminal_ref) == (voucher.id, "till-1")
    assert len(fen_lines()) == 2


def test_eight_repeats_of_one_scan_at_once_all_get_the_one_answer(merchant: Merchant) -> None:
    [voucher] = buy(merchant)
    with ThreadPoolExecutor(8) as pool:
        ends = list(pool.map(lambda _: outcome(voucher, merchant, "till-1"), range(8)))
    assert ends == ["used"] * 8
    assert len(fen_lines()) == 2


def test_only_a_success_binds_a_terminal_reference_and_it_binds_one_voucher(
    merchant: Merchant,
) -> None:
    used, other, third = buy(merchant, 3)
    scan(used, merchant, "t1")
    with pytest.raises(VoucherUsed):
        scan(used, merchant, "t2")
    # t2 failed, so it is free; t1 is bound to the first voucher, at its store.
    assert scan(other, merchant, "t2").voucher_id == other.id
    with pytest.raises(KeyReused):
        scan(third, merchant, "t1")
    with pytest.raises(KeyReused):
        scan(other, merchant, "t1")
    assert scan(third, merchant, "t1", store=1).voucher_id == third.id


def test_two_vouchers_race_with_one_terminal_reference(merchant: Merchant) -> None:
    issued = buy(merchant, 8)
    with ThreadPoolExecutor(8) as pool:
        ends = list(pool.map(lambda one: outcome(one, merchant, "till-1"), issued))
    assert sorted(ends) == ["idempotency_key_reused"] * 7 + ["used"]
    left = storage.database()["vouchers"].count_documents({"status": "issued"})
    assert left == 7


def test_a_voucher_belongs_to_its_merchant_and_to_the_merchants_stores(merchant: Merchant) -> None:
    [voucher] = buy(merchant)
    other = new_merchant()
    with pytest.raises(WrongMerchant):
        scan(voucher, other)
    with pytest.raises(WrongMerchant):
        till.redeem(
            voucher,
            merchant_id=merchant.id,
            store_id=other.stores[0].store_id,
            terminal_ref="t",
        )
    found = vouchers.get(voucher.id)
    assert found is not None
    assert found.status == "issued"
    assert scan(voucher, merchant, store=1).scan.store_id == merchant.stores[1].store_id


def test_a_voucher_ends_with_its_last_day(merchant: Merchant) -> None:
    late, early = buy(merchant, 2)
    assert late.expires_at == city("2026-06-20 00:00")
    with clock.stand(city("2026-06-20 00:00") - MS):
        assert scan(early, merchant, "t1").voucher_id == early.id
    with clock.stand(city("2026-06-20 00:00")):
        assert late.status_at(clock.now()) == "expired"
        with pytest.raises(VoucherExpired):
            scan(late, merchant, "t2")
        assert scan(early, merchant, "t1").voucher_id == early.id


# The merchant's fen.


def test_a_scan_owes_the_merchant_the_face_value_from_the_funder(merchant: Merchant) -> None:
    [voucher] = buy(merchant, funder="bank:1")
    scan(voucher, merchant)
    assert fen_lines() == [
        Line("fen", f"payable:{merchant.id}", 500),
        Line("fen", "funded:bank:1", -500),
    ]
    entry = list(book.entries(ANNA))[-1]
    assert entry.key == f"voucher:{voucher.id}:1:used"
    assert entry.refs["store"] == merchant.stores[0].store_id
    found = book.verify(checks=[consistent])
    assert (found.problem, found.totals["fen"]) == (None, 0)


def test_a_voucher_without_a_face_value_owes_nobody_anything(merchant: Merchant) -> None:
    [voucher] = buy(merchant, face_value_fen=0)
    assert scan(voucher, merchant).voucher_id == voucher.id
    assert fen_lines() == []
    assert book.verify(checks=[consistent]).problem is None


@pytest.mark.parametrize(
    "step",
    [
        Death("rewards.takings:book", "before"),
        Death("accounting.book:post", "before"),
        Death("accounting.book:post", "after"),
        Death("rewards.takings:book", "after"),
    ],
    ids=str,
)
@pytest.mark.parametrize("rescue", ["sweep", "the same scan"])
def test_a_scan_that_died_is_a_scan_and_its_fen_are_booked_once(
    crew: Crew, merchant: Merchant, step: Death, rescue: str
) -> None:
    [voucher] = buy(merchant)
    store = merchant.stores[0].store_id
    args = {"voucher_id": voucher.id, "store_id": store, "terminal_ref": "till-1"}
    assert crew.run("scan", step, **args) == KILLED
    with clock.travel(timedelta(minutes=2)):
        if rescue == "sweep":
            minute_ago = clock.now() - timedelta(minutes=1)
            booked = takings.book_unbooked(minute_ago)
            assert booked == (0 if step.when == "after" and "takings" in step.at else 1)
            assert takings.book_unbooked(minute_ago) == 0
        else:
            assert scan(voucher, merchant).voucher_id == voucher.id
    with pytest.raises(VoucherUsed):
        scan(voucher, merchant, "till-2")
    assert [line.amount for line in fen_lines()] == [500, -500]
    left = storage.database()["vouchers"].find_one({"unbooked_since": {"$exists": True}})
    assert left is None
    assert book.verify(checks=[consistent]).problem is None


def test_the_sweep_leaves_a_scan_that_is_just_being_booked(crew: Crew, merchant: Merchant) -> None:
    [voucher] = buy(merchant)
    args = {
        "voucher_id": voucher.id,
        "store_id": merchant.stores[0].store_id,
        "terminal_ref": "till-1",
    }
    crew.run("scan", Death("rewards.takings:book", "before"), **args)
    assert takings.book_unbooked(clock.now() - timedelta(minutes=1)) == 0
