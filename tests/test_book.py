"""The book: one insert is the transaction, a retry finds its entry, and nothing can be edited."""

import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from faults.crew import KILLED, Crew, job
from pymongo.errors import DuplicateKeyError

from accounting import accounts, book, claims, clock, consents, jobs, links, outbox, storage
from accounting.book import Ask, Decision, Head, Line, posting
from accounting.book.entries import digest, next_entry
from accounting.errors import AccountBusy, DomainError, KeyReused
from footprint import activities, grade, parked, summaries
from footprint.rules import Report
from integrations import delivery, devices
from integrations.push_file import FilePusher
from points import crediting, feed, milestones, statements
from rewards import catalogue, merchants, redemptions, takings, till, vouchers

pytestmark = pytest.mark.usefixtures("app")

ANNA, BO = "res_anna", "res_bo"
THEN = datetime(2026, 5, 1, 8, 30, 0, 123_000, tzinfo=UTC)


class NoMore(DomainError):
    code = "no_more"


def ask(key: str, what: object = 1, *, account: str = ANNA, day: date | None = None) -> Ask:
    return Ask(account, key, "earn", book.fingerprint(what), THEN, day)


def adding(amount: int, **after: Any) -> book.Decide:
    lines = (Line("points", "issued:city", -amount), Line("points", "available", amount))
    return lambda head, now: Decision(lines, {"count": head.after.get("count", 0) + 1, **after})


def add(key: str, amount: int = 1, *, account: str = ANNA, **after: Any) -> book.Posted:
    return book.post(ask(key, amount, account=account), adding(amount, **after))


def patiently(do: Callable[[], Any]) -> Any:
    """What a caller does with `AccountBusy`: ask again, a bounded number of times."""
    for _ in range(20):
        try:
            return do()
        except AccountBusy:
            continue
    raise AssertionError("still busy after 20 tries")


def raw() -> Any:
    return storage.database()["entries"]


# One ask, one entry.


def test_the_first_entry_has_number_one_and_carries_the_balance() -> None:
    posted = add("a", 7)
    assert not posted.replayed
    head = book.head(ANNA)
    assert (head.seq, head.after) == (1, {"count": 1, "balances": {"points/available": 7}})
    assert book.balance(head.after, "points", "available") == 7
    assert book.balance(head.after, "points", "spent") == 0
    assert book.by_key(ANNA, "a") == posted.entry
    assert posted.entry.amount("points", "issued:city") == -7
    assert book.by_key(BO, "a") is None
    assert book.head(BO) == Head(BO)


def test_shared_books_have_no_balance_and_a_book_at_zero_is_left_out() -> None:
    add("a", 7)
    add("b", -7)
    assert book.head(ANNA).after["balances"] == {}


def test_the_same_ask_again_gives_the_same_entry_and_no_second_effect() -> None:
    first = add("a", 5)
    again = add("a", 5)
    assert again.replayed
    assert again.entry == first.entry
    assert book.head(ANNA).seq == 1


def test_a_retry_after_success_is_answered_even_when_the_rules_would_refuse_now() -> None:
    first = add("a", 5)

    def refuse(head: Head, now: datetime) -> Decision:
        raise NoMore()

    assert book.post(ask("a", 5), refuse) == book.Posted(first.entry, replayed=True)
    with pytest.raises(NoMore):
        book.post(ask("b", 5), refuse)
    assert book.head(ANNA).seq == 1


def test_a_refusal_leaves_no_entry() -> None:
    def refuse(head: Head, now: datetime) -> Decision:
        raise NoMore()

    with pytest.raises(NoMore):
        book.post(ask("a"), refuse)
    assert raw().count_documents({}) == 0


@pytest.mark.parametrize("refused", [False, True])
def test_the_same_key_with_other_content_is_refused(refused: bool) -> None:
    add("a", 5)

    def refuse(head: Head, now: datetime) -> Decision:
        raise NoMore()

    with pytest.raises(KeyReused) as caught:
        book.post(ask("a", 6), refuse if refused else adding(6))
    assert caught.value.facts == {"key": "a"}
    assert book.head(ANNA).seq == 1


def test_two_accounts_never_meet_in_one_key() -> None:
    add("a", 5)
    other = add("a", 6, account=BO)
    assert not other.replayed
    assert book.head(BO).seq == 1


def test_the_store_itself_refuses_a_second_seq_and_a_second_key() -> None:
    add("a")
    entry = raw().find_one()
    with pytest.raises(DuplicateKeyError):
        raw().insert_one({**entry, "_id": f"{ANNA}/b"})
    with pytest.raises(DuplicateKeyError):
        raw().insert_one({**entry, "seq": 2})


def test_what_the_rules_leave_out_of_the_state_stays_as_it_was() -> None:
    add("a", 1, wallet={"lots": [1, 2]}, caps={"2026-05-01": 3})
    add("b", 2, caps={"2026-05-02": 1})
    assert book.head(ANNA).after == {
        "count": 2,
        "wallet": {"lots": [1, 2]},
        "caps": {"2026-05-02": 1},
        "balances": {"points/available": 3},
    }


@pytest.mark.parametrize(
    "lines",
    [
        (Line("points", "available", 1),),
        (Line("points", "available", 1), Line("fen", "issued:city", -1)),
        (Line("points", "available", 0.5), Line("points", "issued:city", -0.5)),  # type: ignore[arg-type]
        (Line("points", "available", True), Line("points", "issued:city", -True)),
        tuple(Line("points", "available", sign) for sign in (1, -1) for _ in range(201)),
    ],
    ids=["one side", "zero only over units", "floats", "booleans", "too many"],
)
def test_our_own_mistakes_stop_before_anything_is_written(lines: tuple[Line, ...]) -> None:
    with pytest.raises(AssertionError):
        book.post(ask("a"), lambda head, now: Decision(lines, {}))
    assert raw().count_documents({}) == 0


@pytest.mark.parametrize("when", [THEN.replace(tzinfo=None), THEN.replace(microsecond=123_001)])
def test_an_instant_needs_a_timezone_and_whole_milliseconds(when: datetime) -> None:
    with pytest.raises(AssertionError):
        book.post(Ask(ANNA, "a", "earn", "f", when), adding(1))


def test_an_account_that_always_loses_its_race_is_busy_after_a_bounded_number_of_tries() -> None:
    tries = 0

    def overtaken(head: Head, now: datetime) -> Decision:
        nonlocal tries
        tries += 1
        add(f"faster-{tries}")
        return adding(1)(head, now)

    with pytest.raises(AccountBusy) as caught:
        book.post(ask("slow"), overtaken)
    assert tries == book.POST_ATTEMPTS_MAX == 12
    assert caught.value.facts["retry_after"] == 1
    assert book.by_key(ANNA, "slow") is None
    assert book.head(ANNA).seq == 12


def test_the_rules_are_judged_again_on_the_state_the_winner_left() -> None:
    seen: list[int] = []

    def overtaken_once(head: Head, now: datetime) -> Decision:
        seen.append(head.seq)
        if len(seen) == 1:
            add("faster")
        return adding(1)(head, now)

    assert book.post(ask("slow"), overtaken_once).entry.seq == 2
    assert seen == [0, 1]


def test_time_never_runs_backwards_within_an_account() -> None:
    first = add("a").entry
    with clock.travel(timedelta(hours=-3)):
        assert add("b").entry.recorded_at == first.recorded_at
        decided: list[datetime] = []
        book.post(ask("c"), lambda head, now: decided.append(now) or Decision((), {}))  # type: ignore[func-returns-value]
    assert decided == [first.recorded_at]
    assert book.verify().problem is None


# Reading.


def test_entries_come_oldest_first_or_newest_first_page_by_page() -> None:
    for number in range(1, 8):
        add(f"k{number}")
    numbers = [entry.seq for entry in book.entries(ANNA)]
    assert numbers == [1, 2, 3, 4, 5, 6, 7]
    assert [entry.seq for entry in book.entries(ANNA, after_seq=5)] == [6, 7]
    assert [entry.seq for entry in book.entries(ANNA, after_seq=2, limit=3)] == [3, 4, 5]
    pages, before = [], 2**62
    for _ in range(4):
        page = [entry.seq for entry in book.entries(ANNA, before_seq=before, limit=3)]
        pages.append(page)
        before = page[-1] if page else 0
    assert pages == [[7, 6, 5], [4, 3, 2], [1], []]


def test_the_account_as_of_an_instant_is_its_last_entry_until_then() -> None:
    base = clock.now()
    for hours, key in ((0, "a"), (2, "b"), (4, "c")):
        with clock.travel(base + timedelta(hours=hours) - clock.now()):
            add(key)
    made = [entry.recorded_at for entry in book.entries(ANNA)]
    assert book.as_of(ANNA, made[0] - timedelta(milliseconds=1)) == Head(ANNA)
    assert [book.as_of(ANNA, instant).seq for instant in made] == [1, 2, 3]
    assert book.as_of(ANNA, made[2] - timedelta(milliseconds=1)).seq == 2


def test_entries_of_days_are_those_that_happened_on_them_in_the_order_of_the_book() -> None:
    days = ["2026-05-03", "2026-05-01", "2026-04-30", "2026-05-02", "2026-05-01"]
    for number, day in enumerate(days):
        book.post(ask(f"k{number}", day=date.fromisoformat(day)), adding(1))
    add("without a day")
    found = book.on_days(ANNA, date(2026, 5, 1), date(2026, 5, 2))
    assert [(entry.seq, entry.cap_day) for entry in found] == [
        (2, "2026-05-01"),
        (4, "2026-05-02"),
        (5, "2026-05-01"),
    ]


# The proof.


def post_three() -> None:
    for number in (1, 2, 3):
        add(f"k{number}", number, nested={"deep": [{"big": 2**40 + number, "at": THEN}]})
    add("other", 9, account=BO)


def test_a_book_as_it_was_written_holds() -> None:
    post_three()
    found = book.verify()
    assert found == book.Verification(entries=4, accounts=2, totals={"points": 0}, problem=None)
    assert book.verify(BO).entries == 1


def test_a_hash_survives_the_way_through_the_store() -> None:
    big = {
        "just above 32 bits": 2**31,
        "just below": 2**31 - 1,
        "64 bits": 2**63 - 1,
        "negative": -(2**40),
        "at": datetime(2028, 2, 29, 15, 59, 59, 999_000, tzinfo=UTC),
        "nested": {"list": [[1, "二"], {"x": None, "y": True}], "empty": [], "none": {}},
    }
    posted = add("a", 3_000_000_000, **big)
    add("b", 1)  # The big state is carried on as the store gave it back.
    stored = [row["hash"] for row in raw().find({"account": ANNA}).sort("seq", 1)]
    assert stored[0] == posted.entry.hash
    assert book.verify().problem is None
    assert book.head(ANNA).after["64 bits"] == 2**63 - 1
    assert book.balance(book.head(ANNA).after, "points", "available") == 3_000_000_001


def edit(key: str, change: dict[str, Any]) -> None:
    assert raw().update_one({"_id": f"{ANNA}/{key}"}, {"$set": change}).modified_count == 1


def swap() -> None:
    """Exchange entries 1 and 2 by way of a free number."""
    for key, seq in (("k1", 99), ("k2", 1), ("k1", 2)):
        edit(key, {"seq": seq})


def forge_with_a_new_hash() -> None:
    """An attacker who knows the scheme recomputes the hash of what he edited."""
    edit("k2", {"fingerprint": "0" * 64})
    edit("k2", {"hash": digest(raw().find_one({"_id": f"{ANNA}/k2"}))})


def forge_the_last(change: dict[str, Any]) -> None:
    edit("k3", change)
    edit("k3", {"hash": digest(raw().find_one({"_id": f"{ANNA}/k3"}))})


@pytest.mark.parametrize(
    ("tamper", "problem"),
    [
        (lambda: edit("k2", {"lines.1.2": 200}), "seq 2: its hash does not match its content"),
        (lambda: edit("k2", {"after.count": 9}), "seq 2: its hash does not match its content"),
        (lambda: edit("k3", {"refs": {"why": "x"}}), "seq 3: its hash does not match its content"),
        (lambda: edit("k2", {"hash": "f" * 64}), "seq 2: its hash does not match its content"),
        (
            lambda: edit("k2", {"prev_hash": "f" * 64}),
            "seq 2: does not name the hash of the entry before it",
        ),
        (
            lambda: raw().delete_one({"_id": f"{ANNA}/k2"}),
            "seq 3: follows seq 1, so an entry is missing",
        ),
        (
            lambda: raw().delete_one({"_id": f"{ANNA}/k1"}),
            "seq 2: follows seq 0, so an entry is missing",
        ),
        (swap, "seq 1: does not name the hash of the entry before it"),
        (forge_with_a_new_hash, "seq 3: does not name the hash of the entry before it"),
        (
            lambda: forge_the_last({"lines.1.2": 4}),
            "seq 3: its lines do not sum to zero",
        ),
        (
            lambda: forge_the_last({"after.balances": {"points/available": 1_000}}),
            "seq 3: its balances do not follow from the entry before it and its lines",
        ),
        (
            lambda: forge_the_last({"recorded_at": THEN - timedelta(days=9_000)}),
            "seq 3: was recorded before the entry it follows",
        ),
    ],
)
def test_whoever_touches_an_entry_is_found(tamper: Callable[[], object], problem: str) -> None:
    post_three()
    tamper()
    assert book.verify().problem == f"{ANNA} {problem}"
    assert book.verify(BO).problem is None


def test_the_rooms_add_checks_of_their_own_and_progress_is_told() -> None:
    post_three()
    found = book.verify(checks=[lambda after: "is too rich" if after["count"] > 2 else None])
    assert found.problem == f"{ANNA} seq 3: is too rich"
    told: list[int] = []
    raw().insert_many(_chain("res_long", 2_000))
    assert book.verify("res_long", told.append).problem is None
    assert told == [1_000, 2_000]


def _chain(account: str, length: int) -> Iterator[dict[str, Any]]:
    """Entries without lines, made without asking the store for each head."""
    before = Head(account)
    for number in range(length):
        entry, document = next_entry(
            ask(f"k{number}", account=account), before, Decision((), {}), THEN
        )
        yield document
        before = Head(account, entry.seq, entry.after, THEN, entry.hash)


# Races and deaths.


def test_eight_threads_post_twenty_each_and_every_one_counts_once() -> None:
    def work(worker: int) -> None:
        for number in range(20):
            patiently(lambda number=number: add(f"{worker}-{number}", 1))  # type: ignore[misc]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    entries = list(book.entries(ANNA))
    assert [entry.seq for entry in entries] == list(range(1, 161))
    assert {entry.key for entry in entries} == {f"{w}-{n}" for w in range(8) for n in range(20)}
    assert book.head(ANNA).after == {"count": 160, "balances": {"points/available": 160}}
    assert book.verify().problem is None


def test_eight_threads_and_one_last_balance_have_exactly_one_winner() -> None:
    add("a", 10)

    def spend(head: Head, now: datetime) -> Decision:
        if book.balance(head.after, "points", "available") < 10:
            raise NoMore()
        return adding(-10)(head, now)

    def work(worker: int) -> str:
        try:
            patiently(lambda: book.post(ask(f"spend-{worker}", account=ANNA), spend))
        except NoMore:
            return "refused"
        return "won"

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(work, range(8))) == ["refused"] * 7 + ["won"]
    assert book.head(ANNA).after["balances"] == {}


def test_eight_processes_racing_with_one_key_write_one_entry(crew: Crew) -> None:
    same = {"account": ANNA, "key": "once", "amount": 5}
    ends = crew.wait(crew.start(*[job("deposit", **same) for _ in range(8)]))
    assert sorted(end["value"] for end in ends) == [False] + [True] * 7
    assert [entry.key for entry in book.entries(ANNA)] == ["once"]
    assert book.head(ANNA).after["held"] == 5


def _settled_keys(account: str) -> list[str]:
    """The keys of an account once the server has finished what the killed had sent it."""
    for _ in range(100):
        keys = [entry.key for entry in book.entries(account)]
        if book.head(account).seq == len(keys):
            return keys
        time.sleep(0.02)
    raise AssertionError("the account does not come to rest")


def test_what_was_acknowledged_survives_kill_9_exactly_once(crew: Crew, tmp_path: Path) -> None:
    """Posters are killed at random points, two at a time on one account, five times over."""
    chance = random.Random(20260522)
    written = tmp_path / "acknowledged"
    written.touch()
    killed = 0
    for _ in range(5):
        wanted = written.read_bytes().count(b"\n") + chance.randint(1, 25)
        pids = crew.start(
            *[job("deposit_for_ever", account=ANNA, acknowledged=str(written)) for _ in "ab"]
        )
        deadline = time.monotonic() + 120
        while written.read_bytes().count(b"\n") < wanted and time.monotonic() < deadline:
            time.sleep(chance.uniform(0.001, 0.01))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert crew.wait(pids) == [KILLED, KILLED]
        killed += len(pids)
    acknowledged = written.read_text().split()
    posted = _settled_keys(ANNA)
    assert len(acknowledged) >= 5
    assert len(set(acknowledged)) == len(acknowledged)
    assert len(set(posted)) == len(posted)
    assert set(acknowledged) <= set(posted)
    # A process may die between its entry and its acknowledgement, never with two of them.
    assert len(posted) - len(acknowledged) <= killed
    assert book.head(ANNA).seq == len(posted) == book.head(ANNA).after["held"]
    assert book.verify().problem is None


# Every read of a request uses an index.


def winning_stages(explained: dict[str, Any]) -> list[str]:
    plan, stages = explained["queryPlanner"]["winningPlan"], []
    while plan:
        stages.append(plan["stage"])
        plan = plan.get("inputStage")
    return stages


def test_the_head_is_the_first_key_of_the_index_and_never_sorted() -> None:
    post_three()
    found = raw().find({"account": ANNA}).sort("seq", -1).limit(1).explain()
    assert winning_stages(found) == ["LIMIT", "FETCH", "IXSCAN"]
    assert found["executionStats"]["totalKeysExamined"] == 1


NOTES = re.compile(r"\.system\.profile$")


@pytest.fixture
def profiled() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """The server notes every command; its notes are dropped, for they cannot be emptied."""
    database = storage.database()
    live_through_a_day("before")  # An empty collection has no plan to look at.
    database.command("profile", 2)
    try:
        yield lambda: list(database["system.profile"].find({"ns": {"$not": NOTES}}))
    finally:
        database.command("profile", 0)
        database["system.profile"].drop()


def ride(start: datetime) -> Report:
    return Report("bus_km", Decimal("5.2"), start)


def live_through_a_day(tag: str) -> None:
    """Something in every collection, and every read and write a request makes."""
    now = clock.now()
    anna = accounts.by_phone("+8613800138000")
    invoice = Report("e_invoice", Decimal(1), now - timedelta(days=5), None, {"invoice": tag})
    crediting.report(anna, invoice, source=f"app:{anna}", event_id=tag, evidence="A")
    partner = feed.Partner("bus")
    rides = [ride(now - timedelta(days=days)) for days in (1, 4)]
    for number, one in enumerate(rides):
        feed.take(partner, [feed.Row(f"card-{tag}", f"{tag}-{number}", one)])
    link = links.link(anna, partner.id, f"card-{tag}")
    assert feed.credit_parked(link) == 2
    feed.take(partner, [feed.Row(f"card-{tag}", f"{tag}-2", ride(now - timedelta(days=6)))])
    redeem_and_scan(anna, tag, now)
    seen_by_the_resident(anna, tag, now)
    seen_by_a_bank(anna, now)
    swept(now)


def redeem_and_scan(anna: str, tag: str, now: datetime) -> None:
    merchant = merchants.add({"zh": "店", "en": "Shop"}, [{"name": "1", "address": "1"}])
    reward = catalogue.add_reward(
        merchant_id=merchant.id,
        title={"zh": "券", "en": "Voucher"},
        description={"zh": "", "en": ""},
        price_points=10,
        face_value_fen=500,
        stock=5,
        voucher_valid_days=30,
        funder="city",
        per_resident_limit=3,
    )
    kept = redemptions.redeem(anna, f"{tag}-kept", reward.id, 1)
    given_back = redemptions.redeem(anna, f"{tag}-back", reward.id, 1)
    redemptions.redeem(anna, f"{tag}-back", reward.id, 1)
    redemptions.cancel(anna, redemptions.get(anna, given_back.id).id)
    [voucher] = vouchers.of_redemption(kept.id)
    store = {"merchant_id": merchant.id, "store_id": merchant.stores[0].store_id}
    vouchers.find(code=None, qr=vouchers.qr_payload(voucher.id, now), now=now)
    found = vouchers.find(code=vouchers.code_of(voucher.id), qr=None, now=now)
    for _ in range(2):
        till.redeem(found, **store, terminal_ref=f"till-{tag}")
    redemptions.of_resident(anna, before=None, limit=9)
    catalogue.open_rewards(now, before=None, limit=9)
    catalogue.all_rewards(before=None, limit=9)
    merchants.many({merchant.id})


def seen_by_the_resident(anna: str, tag: str, now: datetime) -> None:
    for before in (None, "zzz"):
        activities.of_resident(anna, before=before, limit=9)
        outbox.inbox(anna, before=before, limit=9)
        links.of_resident(anna, before=before, limit=9)
        consents.of_resident(anna, before=before, limit=9)
    activities.by_event(f"app:{anna}", tag)
    outbox.unread(anna)
    statements.balance(anna)
    statements.balance(anna, now - timedelta(days=1))
    statements.rows(anna, before=9, limit=9)
    book.on_days(anna, clock.city_day(now), clock.city_day(now))
    summaries.between(anna, date(2026, 1, 1), clock.city_day(now))
    grade.grade_now(anna)
    grade.history(anna, before=None, limit=9)
    milestones.of_resident(anna)
    milestones.upcoming(anna)
    milestones.look(list(book.entries(anna)))
    devices.register(anna, "token", "android")
    accounts.change(anna, {"quiet_hours": None})
    devices.live(anna)
    claims.take("invoice", "1", "somebody")


def seen_by_a_bank(anna: str, now: datetime) -> None:
    consent = consents.grant(
        anna,
        bank_id="bank",
        purpose="loan",
        fields=("grade",),
        expires_at=now + timedelta(days=1),
    )
    consents.read("bank", consent.reference, "loan", "grade")
    consents.access_log(anna, before=None, limit=9)
    consents.withdraw(anna, consent.id)


def swept(now: datetime) -> None:
    later = now + timedelta(minutes=2)
    crediting.sweep(later)
    redemptions.sweep(later)
    takings.book_unbooked(later)
    links.parked_open(later)
    parked.of_external("nobody")
    with TemporaryDirectory() as folder:
        for category in (outbox.SERVICE, outbox.MARKETING):
            delivery.carry_due(category, FilePusher(Path(folder)), 5)
    devices.drop_idle(later)
    jobs.queue("feed", "bus", {})
    jobs.waiting(later)


def test_no_request_reads_a_whole_collection(
    profiled: Callable[[], list[dict[str, Any]]],
) -> None:
    with clock.travel(timedelta(minutes=5)):
        live_through_a_day("after")
    seen = profiled()
    plans = {one["planSummary"].split(" ")[0] for one in seen if "planSummary" in one}
    assert {"IXSCAN", "IDHACK"} <= plans, "the profiler was not on"
    scans = [one for one in seen if one.get("planSummary") == "COLLSCAN"]
    assert [(one["ns"], one["command"]) for one in scans] == []


def test_a_scan_would_have_been_seen(profiled: Callable[[], list[dict[str, Any]]]) -> None:
    list(raw().find({"kind": "earn"}))
    assert "COLLSCAN" in {one.get("planSummary") for one in profiled()}


# Clocks.


@pytest.mark.parametrize(("behind_ms", "alarms"), [(999, 0), (1_000, 0), (1_001, 1)])
def test_a_clock_behind_the_book_by_more_than_a_second_is_an_alarm(
    monkeypatch: pytest.MonkeyPatch, behind_ms: int, alarms: int
) -> None:
    monkeypatch.setattr(posting, "_skew_told_s", -book.SKEW_TOLD_EVERY_S)
    with clock.stand(THEN):
        first = add("a").entry
    with clock.stand(THEN - timedelta(milliseconds=behind_ms)):
        entries = [add(key).entry for key in ("b", "c")]
    assert [entry.recorded_at for entry in entries] == [first.recorded_at] * 2
    found = list(storage.database()["alarms"].find({}))
    assert [(one["kind"], one["facts"]["behind_ms"]) for one in found] == [
        ("clock_skew", behind_ms)
    ] * alarms
