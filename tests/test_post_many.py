"""Many asks at once: the same answers as one by one, in few round trips, whoever else writes."""

import random
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import pytest
from faults.crew import KILLED, Crew, Death, job

from accounting import book, clock, storage
from accounting.book import Ask, Decide, Decision, Entry, Head, Line, Posted, Result, Wanted
from accounting.book.entries import collection
from accounting.errors import DomainError, KeyReused

pytestmark = pytest.mark.usefixtures("app")

ANNA, BO, CY = "res_anna", "res_bo", "res_cy"
THEN = datetime(2026, 5, 1, 8, 30, tzinfo=UTC)
TODAY = date(2026, 5, 1)


class NoMore(DomainError):
    code = "no_more"


def moving(amount: int) -> Decide:
    """Add points, or spend them if they are there; the state counts the entries."""

    def decide(head: Head, now: datetime) -> Decision:
        if book.balance(head.after, "points", "available") + amount < 0:
            raise NoMore()
        lines = (Line("points", "issued:city", -amount), Line("points", "available", amount))
        return Decision(lines, {"count": head.after.get("count", 0) + 1}, {"amount": amount})

    return decide


def wanted(account: str, key: str, amount: int = 1, decide: Decide | None = None) -> Wanted:
    ask = Ask(account, key, "earn", book.fingerprint(amount), THEN, TODAY)
    return Wanted(ask, decide or moving(amount))


def post(one: Wanted) -> Result:
    try:
        return book.post(one.ask, one.decide)
    except DomainError as refusal:
        return refusal


def told(result: Result) -> Any:
    """What an answer says, without when it was recorded and what that makes of the hashes."""
    if isinstance(result, DomainError):
        return result.code
    entry = result.entry
    return (entry.seq, entry.key, entry.lines, entry.after, entry.refs, result.replayed)


def entry_of(result: Result) -> Entry:
    assert isinstance(result, Posted), result
    return result.entry


def available(account: str) -> int:
    return book.balance(book.head(account).after, "points", "available")


def seqs(account: str) -> list[int]:
    return [entry.seq for entry in book.entries(account)]


# The same as one by one.


def test_a_batch_answers_in_order_and_each_account_goes_on_from_its_own_state() -> None:
    results = book.post_many(
        [wanted(ANNA, "a", 5), wanted(BO, "a", 7), wanted(ANNA, "b", -5), wanted(ANNA, "c", 2)]
    )
    assert [told(result)[:2] for result in results] == [(1, "a"), (1, "a"), (2, "b"), (3, "c")]
    assert (available(ANNA), available(BO)) == (2, 7)
    assert [entry_of(result) for result in results[:1] + results[2:]] == list(book.entries(ANNA))
    assert book.verify().problem is None


def test_nothing_asked_is_nothing_done() -> None:
    assert book.post_many([]) == []


@pytest.mark.parametrize("seed", range(6))
def test_a_batch_and_singles_give_the_same_entries(seed: int) -> None:
    """Random asks over few accounts: refusals, keys twice, keys with other content, old keys."""
    chance = random.Random(seed)
    before = [wanted(f"res_{chance.randrange(4)}", f"k{n}", chance.randint(1, 9)) for n in range(8)]
    asks = [
        wanted(f"res_{chance.randrange(4)}", f"k{chance.randrange(60)}", chance.randint(-9, 9))
        for _ in range(80)
    ]
    for one in before:
        post(one)
    batch = [told(result) for result in book.post_many(asks)]
    in_batch = {account: list(book.entries(account)) for account in map("res_{}".format, range(4))}
    assert book.verify().problem is None
    storage.database()["entries"].delete_many({})
    for one in before:
        post(one)
    singles = [told(post(one)) for one in asks]
    assert batch == singles
    for account, entries in in_batch.items():
        shown = [(entry.seq, entry.key, entry.after) for entry in entries]
        assert shown == [(one.seq, one.key, one.after) for one in book.entries(account)]
    assert {"no_more", "idempotency_key_reused"} <= {one for one in batch if isinstance(one, str)}


def test_a_refusal_is_one_asks_result_and_a_retry_of_a_posted_key_is_never_refused() -> None:
    first = entry_of(book.post_many([wanted(ANNA, "spent", 5)])[0])
    post(wanted(ANNA, "out", -5))
    results = book.post_many(
        [
            wanted(ANNA, "too much", -1),
            wanted(ANNA, "spent", 5, moving(-99)),
            wanted(ANNA, "spent", 6),
            wanted(BO, "fine", 1),
        ]
    )
    assert isinstance(results[0], NoMore)
    assert results[1] == Posted(first, replayed=True)
    assert isinstance(results[2], KeyReused)
    assert not isinstance(results[3], DomainError)
    assert seqs(ANNA) == [1, 2]


def test_rules_look_back_on_what_the_batch_decided_before_them() -> None:
    post(wanted(ANNA, "old", 10))
    seen: list[list[tuple[int, int]]] = []

    def looking(head: Head, now: datetime) -> Decision:
        noted = head.on_days(TODAY, TODAY)
        seen.append([(one.seq, one.refs["amount"]) for one in noted])
        return moving(3)(head, now)

    asks = [wanted(ANNA, key, 3, looking) for key in "abc"]
    book.post_many([Wanted(one.ask, one.decide, (TODAY, TODAY)) for one in asks[:2]] + asks[2:])
    assert seen == [[(1, 10)], [(1, 10), (2, 3)], [(1, 10), (2, 3), (3, 3)]]
    # Days that nobody announced are found too.
    book.post_many([wanted(BO, "old", 1)])
    seen.clear()
    book.post_many([wanted(BO, key, 3, looking) for key in "ab"])
    assert seen == [[(1, 1)], [(1, 1), (2, 3)]]


# Others write meanwhile.


def interloping(account: str, amount: int, times: int) -> Decide:
    """Somebody posts on the account between the look at its head and the insert."""
    left = iter(range(times))

    def decide(head: Head, now: datetime) -> Decision:
        number = next(left, None)
        if number is not None:
            post(wanted(account, f"interloper-{number}", amount))
        return moving(1)(head, now)

    return decide


@pytest.mark.parametrize("times", [1, 2, 3, 5])
def test_what_lost_its_account_is_judged_again_and_leaves_no_gap(times: int) -> None:
    results = book.post_many(
        [
            wanted(ANNA, "a", 1, interloping(ANNA, 100, times)),
            wanted(BO, "a", 1),
            wanted(ANNA, "b", 1),
            wanted(ANNA, "c", 1),
        ]
    )
    assert [entry_of(result).key for result in results] == ["a", "a", "b", "c"]
    assert seqs(ANNA) == list(range(1, times + 4))
    assert available(ANNA) == 100 * times + 3
    assert entry_of(results[1]).seq == 1
    assert book.verify().problem is None


def test_a_refusal_that_rested_on_a_lost_entry_is_judged_again() -> None:
    """The second spends too much only if the first was there; somebody fills the account."""
    post(wanted(ANNA, "start", 10))
    spend = interloping(ANNA, 50, 1)

    def first(head: Head, now: datetime) -> Decision:
        spend(head, now)
        return moving(-10)(head, now)

    results = book.post_many([wanted(ANNA, "a", -10, first), wanted(ANNA, "b", -20)])
    assert [entry_of(result).seq for result in results] == [3, 4]
    assert available(ANNA) == 30


def test_a_key_that_somebody_posts_meanwhile_is_answered_with_that_entry() -> None:
    def late(head: Head, now: datetime) -> Decision:
        if head.seq == 0:
            post(wanted(ANNA, "same", 1))
        return moving(1)(head, now)

    results = book.post_many([wanted(ANNA, "same", 1, late), wanted(ANNA, "next", 1)])
    assert [(entry_of(one).seq, one.replayed) for one in results if isinstance(one, Posted)] == [
        (1, True),
        (2, False),
    ]


def test_eight_processes_with_mixed_batches_on_few_accounts_end_like_a_serial_replay(
    crew: Crew,
) -> None:
    few = [f"res_few_{number}" for number in range(3)]
    jobs = [job("move_many", accounts=few, worker=worker, seed=worker) for worker in range(8)]
    ends = crew.wait(crew.start(*jobs))
    answers = [answer for end in ends for answer in end["value"]]
    # A contended account may be busy; whoever asks again with the same keys gets through.
    for worker, end in enumerate(ends):
        if "busy" in end["value"]:
            retried = crew.run("move_many", accounts=few, worker=worker, seed=worker)["value"]
            assert "busy" not in retried
    assert set(answers) <= {"posted", "replayed", "no_more", "busy"}
    for account in few:
        entries = list(book.entries(account))
        assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
        balance = 0
        for entry in entries:
            # Serial replay: each move was allowed on what was there, and left what it says.
            balance += entry.refs["amount"]
            assert balance >= 0
            assert book.balance(entry.after, "points", "available") == balance
    assert book.verify().problem is None


def test_nothing_is_busy_on_distinct_accounts(crew: Crew) -> None:
    jobs = [
        job("move_many", accounts=[f"res_{worker}_{n}" for n in range(40)], worker=worker, seed=1)
        for worker in range(8)
    ]
    ends = crew.wait(crew.start(*jobs))
    assert {answer for end in ends for answer in end["value"]} <= {"posted", "no_more"}
    assert book.verify().problem is None


@pytest.mark.parametrize(
    "death",
    [
        Death("accounting.book.posting:heads", "after"),
        Death("accounting.book.posting:_insert", "before"),
        Death("accounting.book.posting:_insert", "after"),
        Death("accounting.book.posting:_insert", "after", 2),
    ],
    ids=str,
)
def test_kill_9_in_mid_batch_leaves_whole_entries_and_the_retry_adds_the_rest(
    crew: Crew, death: Death
) -> None:
    many = {"accounts": [f"res_{number}" for number in range(30)], "worker": 0, "seed": 7}
    assert crew.run("move_many", death, **many) == KILLED
    assert book.verify().problem is None
    answers = crew.run("move_many", **many)["value"]
    assert set(answers) <= {"posted", "replayed", "no_more"}
    posted = {(one["account"], one["_id"]) for one in storage.database()["entries"].find()}
    assert len(posted) == len([answer for answer in answers if answer != "no_more"])
    assert book.verify().problem is None


# What it costs, and what the store refuses.


def test_heads_of_many_accounts_are_skipped_to_and_not_sorted() -> None:
    book.post_many([wanted(f"res_{n % 50}", f"k{n}") for n in range(200)])
    names = [f"res_{n}" for n in range(50)]
    explained = storage.database().command(
        "explain",
        {"aggregate": "entries", "pipeline": book.heads_pipeline({"$in": names}), "cursor": {}},
        verbosity="executionStats",
    )
    assert "'DISTINCT_SCAN'" in repr(explained)
    assert "'SORT'" not in repr(explained)
    assert {account: head.seq for account, head in book.heads(names).items()} == dict.fromkeys(
        names, 4
    )


@pytest.fixture
def commands() -> Iterator[list[str]]:
    """The commands on the collection of the book, as the server saw them."""
    database, seen = storage.database(), []
    database.command("profile", 2)
    yield seen
    database.command("profile", 0)
    database.drop_collection("system.profile")


def sent() -> list[str]:
    found = storage.database()["system.profile"].find({"ns": {"$regex": r"\.entries$"}}).sort("ts")
    return [next(iter(one["command"])) for one in found]


@pytest.mark.parametrize(("accounts", "each"), [(1, 100), (100, 1), (400, 2)])
def test_a_batch_takes_the_same_few_round_trips_whatever_its_size(
    commands: list[str], accounts: int, each: int
) -> None:
    book.post_many(
        [
            Wanted(one.ask, one.decide, (TODAY, TODAY))
            for n in range(each)
            for account in range(accounts)
            for one in [wanted(f"res_{account}", f"k{n}")]
        ]
    )
    later = ["insert"] if each > 1 else []
    assert sent() == ["aggregate", "find", "insert", *later]


CHANGING = (
    "update",
    "delete",
    "replace",
    "bulk_write",
    "drop",
    "rename",
    "find_one_and",
    "with_options",
)


def test_the_book_has_no_way_to_change_or_remove_an_entry() -> None:
    from pymongo.collection import Collection

    changing = [name for name in dir(Collection) if name.startswith(CHANGING)]
    assert {"update_one", "delete_many", "replace_one", "find_one_and_delete"} <= set(changing)
    entries = collection()
    assert [name for name in changing if hasattr(entries, name)] == []


@pytest.mark.parametrize(
    "change",
    [
        {"$set": {"note": "x"}},
        {"$set": {"seq": "two"}},
        {"$set": {"hash": "f"}},
        {"$set": {"after": {}}},
        {"$unset": {"lines": 1}},
    ],
)
def test_mongodb_refuses_what_is_no_longer_an_entry(change: dict[str, Any]) -> None:
    """It cannot refuse an edit that keeps the shape; `book verify` finds that by its hash."""
    from pymongo.errors import WriteError

    book.post_many([wanted(ANNA, "a")])
    with pytest.raises(WriteError):
        storage.database()["entries"].update_one({"_id": f"{ANNA}/a"}, change)


def test_a_clock_behind_the_head_does_not_go_back() -> None:
    book.post_many([wanted(ANNA, "a"), wanted(BO, "a")])
    head = book.head(ANNA)
    assert head.recorded_at is not None
    with clock.travel(THEN - clock.now()):
        [result] = book.post_many([wanted(ANNA, "b")])
    assert entry_of(result).recorded_at == head.recorded_at
