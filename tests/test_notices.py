"""What residents are told of: the texts as data, and reminders that are left once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta

import pytest
from callers import new_phone
from faults.crew import KILLED, Crew, Death
from lives import at, city, did, spent
from tills import buy, new_merchant, scan

from accounting import (
    accounts,
    clients,
    clock,
    consents,
    jobs,
    notices,
    outbox,
    read_receipts,
    storage,
)
from accounting.clients import Kind
from accounting.notices import BadNotices
from footprint import reviews
from points import passing
from rewards import redemptions, reminding, vouchers

pytestmark = pytest.mark.usefixtures("app")

NOON = city("2026-05-20 12:00")
DAY, HOUR = timedelta(days=1), timedelta(hours=1)


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.stand(NOON):
        yield


@pytest.fixture
def anna(app: object) -> str:
    return accounts.by_phone(new_phone())


def told(who: str) -> list[tuple[str, str]]:
    """(type, body) of the inbox, oldest first."""
    rows = outbox.inbox(who, before=None, limit=99)
    return [(row.type, row.body["en"]) for row in reversed(rows)]


# The texts.


def test_every_decision_of_an_operator_has_a_text() -> None:
    kinds = (reviews.PHOTOS, reviews.VACANCY, reviews.APPEAL, reviews.BILL_APPEAL)
    for kind in (*kinds, reviews.OBJECTION):
        for outcome in (reviews.ACCEPTED, reviews.REFUSED):
            notice = notices.make(f"{kind}_{outcome}", "res_1", "one", place="bills")
            assert notice.deep_link == "tanhui://bills"
            assert {*notice.title} == {*notice.body} == {"zh", "en"}


def test_a_fact_may_have_a_text_for_each_language() -> None:
    reward = {"zh": "柚子", "en": "Pomelo"}
    made = notices.make(
        "voucher_expires", "res_1", "one", reward=reward, day="2026-06-19", redemption="rdm_1"
    )
    assert made.title == {"zh": "“柚子”即将到期", "en": "“Pomelo” expires soon"}
    assert made.deep_link == "tanhui://redemptions/rdm_1"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (('class = "service"', 'class = "spam"'), "digest: class: must be one of"),
        (('type = "digest"', 'kind = "digest"'), "digest: type: is missing"),
        (('collapse = "digest"', 'folds = "digest"'), "digest: folds: is not a field"),
        (('facts = ["count"]', "facts = []"), "title: zh: cannot be filled in"),
        (('zh = "您有', 'fr = "您有'), "title: zh: is missing"),
        (("[digest]", "[digest"), "is not TOML"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_occasion_and_field(
    change: tuple[str, str], complaint: str
) -> None:
    text = notices.FILE.read_text(encoding="utf-8")
    assert change[0] in text
    with pytest.raises(BadNotices, match=complaint):
        notices.parse(text.replace(*change, 1))


@pytest.mark.parametrize(
    ("days_left", "step"),
    [(31, None), (30, 30), (8, 30), (7, 7), (2, 7), (1, 1), (0, 1), (-1, None)],
)
def test_a_reminder_is_due_from_its_day_until_the_next_step(
    days_left: int, step: int | None
) -> None:
    assert notices.step_of(days_left, (30, 7, 1)) == step


# Points.

# 5 km by bus on 20 May 2026: 5 x 26,900 mg and 134 points, to be spent until 31 May 2028.
LAST = date(2028, 5, 31)


def night(day: date) -> None:
    with clock.stand(clock.start_of(day) + timedelta(minutes=10)):
        passing.run(passing.queue("clock", day=day).id)


def rode(who: str) -> None:
    assert did(who, "bus_km", 5, "2026-05-20 08:00", minutes=18).points == 134


def test_points_that_expire_are_told_of_thirty_days_a_week_and_a_day_before(anna: str) -> None:
    rode(anna)
    for before in range(32, -1, -1):
        night(LAST - before * DAY)
        if before == 20:
            with clock.stand(clock.start_of(LAST - 20 * DAY) + HOUR):
                spent(anna, 100)
    said = "{} of your points can be spent until 2028-05-31 and are gone after it."
    assert [body for kind, body in told(anna) if kind == "points_expire"] == [
        said.format(134),
        said.format(34),
        said.format(34),
    ]
    rows = outbox.found({"resident": anna, "type": "points_expire"})
    # Made at ten past midnight, and not to ring before nine.
    assert sorted(row.next_attempt_at for row in rows if row.next_attempt_at) == [
        clock.start_of(LAST - days * DAY) + 9 * HOUR for days in (30, 7, 1)
    ]


def test_a_night_that_was_missed_is_made_up_for_and_a_closed_account_hears_nothing(
    anna: str,
) -> None:
    bo = accounts.by_phone(new_phone())
    for who in (anna, bo):
        rode(who)
    accounts.close(bo)
    night(LAST - 5 * DAY)
    night(LAST - 4 * DAY)
    assert [kind for kind, _ in told(anna)] == ["points_expire"]
    assert outbox.found({"resident": bo, "type": "points_expire"}) == []


@pytest.mark.parametrize(
    "step",
    [
        Death("points.reminding:remind", "before"),
        Death("accounting.outbox:leave_many", "after"),
        Death("accounting.walks:_move", "before"),
    ],
    ids=str,
)
def test_a_night_killed_at_a_step_reminds_everybody_once(crew: Crew, step: Death) -> None:
    crowd = [accounts.by_phone(new_phone()) for _ in range(3)]
    for who in crowd:
        rode(who)
    with clock.stand(clock.start_of(LAST - 7 * DAY)):
        job_id = passing.queue("op").id
        assert crew.run("run_passing", step, job_id=job_id) == KILLED
        crew.ahead = 10 * jobs.LEASE
        assert crew.run("run_passing", job_id=job_id) == {"value": "done"}
    assert [[kind for kind, _ in told(who)] for who in crowd] == [["points_expire"]] * 3


# Vouchers.


def test_an_unused_voucher_is_told_of_three_days_and_a_day_before() -> None:
    # tills.buy gives them to somebody without an account: vouchers are moved to Anna's.
    merchant = new_merchant()
    anna = accounts.by_phone(new_phone())
    one, two = buy(merchant, 2)
    [used] = buy(merchant)
    scan(used, merchant)
    [given_up] = buy(merchant)
    redemptions.cancel(given_up.resident, given_up.redemption_id)
    vouchers.rows().update_many({}, {"$set": {"resident": anna}})
    # Bought on 20 May for 30 days, so valid to the end of 19 June.
    for day in range(12, 23):
        for hour in (0, 10, 23):
            with at(f"2026-06-{day} {hour:02}:20"):
                reminding.remind(clock.now())
    rows = outbox.found({"resident": anna, "type": "voucher_expires"})
    # Both vouchers of one redemption are one notice.
    assert sorted((row.dedupe, row.created_at) for row in rows) == [
        (f"voucher_expires/{one.redemption_id}/2026-06-19/{step}", city(f"2026-06-{day} 00:20"))
        for step, day in ((1, 18), (3, 16))
    ]
    assert two.redemption_id == one.redemption_id
    assert {row.body["en"] for row in rows} == {"The voucher can be used until 2026-06-19."}
    assert {row.deep_link for row in rows} == {f"tanhui://redemptions/{one.redemption_id}"}


def test_eight_runs_at_once_remind_of_a_voucher_once() -> None:
    anna = accounts.by_phone(new_phone())
    buy(new_merchant())
    vouchers.rows().update_many({}, {"$set": {"resident": anna}})
    with at("2026-06-18 10:00"), ThreadPoolExecutor(8) as pool:
        fresh = list(pool.map(lambda _: reminding.remind(clock.now()), range(8)))
    assert sum(fresh) == 1


def test_vouchers_that_end_soon_are_found_by_an_index() -> None:
    plan = vouchers.rows().find(reminding.ending(NOON)).explain()
    assert "COLLSCAN" not in str(plan["queryPlanner"]["winningPlan"])


# Banks.


@pytest.fixture
def bank() -> str:
    clients.create_client(Kind.BANK, "柯城农商银行", subject_id="bnk_1")
    clients.create_client(Kind.BANK, "Another bank", subject_id="bnk_2")
    return "bnk_1"


def grant(who: str, bank: str, purpose: str = "loan") -> str:
    end = NOON + 300 * DAY
    given = consents.grant(
        who, bank_id=bank, purpose=purpose, fields=("grade", "report"), expires_at=end
    )
    return given.reference


def test_a_read_of_a_bank_is_told_once_a_day_with_its_purpose(anna: str, bank: str) -> None:
    loan, card, other = grant(anna, bank), grant(anna, bank, "card"), grant(anna, "bnk_2")
    for minutes in (0, 5, 24 * 60 - 1, 24 * 60 + 13 * 60):
        with clock.stand(NOON + timedelta(minutes=minutes)):
            assert consents.read(bank, loan, "loan", "grade") is not None
            assert consents.read(bank, card, "card", "report") is not None
            # What was refused is in the access log only.
            assert consents.read(bank, loan, "job", "grade") is None
        with clock.stand(NOON + timedelta(minutes=minutes + 1)):
            read_receipts.tell(clock.now())
    with clock.stand(NOON + 2 * DAY):
        consents.read("bnk_2", other, "loan", "grade")
    with clock.stand(NOON + 2 * DAY + HOUR):
        read_receipts.tell(clock.now())
        read_receipts.tell(clock.now())
    rows = outbox.found({"resident": anna, "type": "grade_read"})
    # Noon is on the 20th, a day less a minute later on the 21st, 37 hours later on the 22nd.
    assert sorted(row.dedupe for row in rows) == [
        "grade_read/bnk_1/2026-05-20",
        "grade_read/bnk_1/2026-05-21",
        "grade_read/bnk_1/2026-05-22",
        "grade_read/bnk_2/2026-05-22",
    ]
    first = min(rows, key=lambda row: row.created_at)
    assert first.title == {
        "zh": "柯城农商银行查看了您的低碳等级",
        "en": "柯城农商银行 read your grade",
    }
    assert "“loan”" in first.body["en"]


def test_what_a_list_shows_is_not_rung_for(anna: str, bank: str) -> None:
    reference = grant(anna, bank)
    [consent] = consents.of_banks(anna)
    assert consent.reference == reference
    consents.note_reads(bank, [consent], "green_list")
    with clock.stand(NOON + HOUR):
        assert read_receipts.tell(clock.now()) == 0
    assert told(anna) == []


def test_reads_are_told_of_once_by_many_at_once_and_after_a_crash(
    anna: str, bank: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd = [anna, *(accounts.by_phone(new_phone()) for _ in range(9))]
    for who in crowd:
        consents.read(bank, grant(who, bank), "loan", "grade")
    monkeypatch.setattr(read_receipts, "CHUNK", 4)
    later = NOON + HOUR

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with clock.stand(later):
        with monkeypatch.context() as patch:
            # Cut off between the first notices and the place.
            patch.setattr(read_receipts, "_move", die)
            with pytest.raises(KeyboardInterrupt):
                read_receipts.tell(later)
        assert len(outbox.found({"type": "grade_read"})) == 4
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: read_receipts.tell(later), range(8)))
    assert [[kind for kind, _ in told(who)] for who in crowd] == [["grade_read"]] * 10


def test_a_read_recorded_by_a_slow_process_is_not_passed_by(anna: str, bank: str) -> None:
    reference = grant(anna, bank)
    with clock.stand(NOON + HOUR):
        read_receipts.tell(clock.now())
    # Its clock said so, and its record came after the look.
    with clock.stand(NOON + HOUR - timedelta(seconds=30)):
        consents.read(bank, reference, "loan", "grade")
    with clock.stand(NOON + HOUR + timedelta(seconds=60)):
        assert read_receipts.tell(clock.now()) == 1
    assert storage.database()["receipt_places"].count_documents({}) == 1
