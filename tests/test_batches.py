"""Reports by the hundred end as they would one by one, also when somebody dies in between."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from faults.crew import KILLED, Crew, Death, job
from faults.mess import ANNA, BO, CY, NOW, a_days_mess, fact
from lives import at
from pymongo.read_concern import ReadConcern

from accounting import book, clock, ids, storage
from accounting.errors import DomainError
from footprint import activities, underway
from footprint.activities import Activity
from points import batches, crediting
from points.wallet import consistent

pytestmark = pytest.mark.usefixtures("app")


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with at(NOW):
        yield


def ends(received: Sequence[batches.Received]) -> list[Any]:
    return [
        one.code if isinstance(one, DomainError) else (one[0].status, one[0].reasons, one[0].mg)
        for one in received
    ]


def one_by_one(facts: Sequence[Activity]) -> list[batches.Received]:
    received: list[batches.Received] = []
    for one in facts:
        try:
            received.append(crediting.take_in(one))
        except DomainError as refusal:
            received.append(refusal)
    return received


def shape(received: Sequence[batches.Received]) -> list[Any]:
    """What was answered; facts of their own time only differ in nothing."""
    return [one.code if isinstance(one, DomainError) else one for one in received]


def in_the_book(accounts: Sequence[str]) -> list[Any]:
    """Every entry, without the instant it was recorded at and the hashes that cover it."""
    return [
        (entry.account, entry.seq, entry.key, entry.lines, entry.after, entry.refs)
        for account in accounts
        for entry in book.entries(account)
    ]


def newest(collection: str) -> Any:
    """Read what is written, not what the majority has: outcomes do not wait for it."""
    return storage.database().get_collection(collection, read_concern=ReadConcern("local"))


def stored(collection: str, *without: str) -> list[Any]:
    rows = newest(collection).find({}, dict.fromkeys(("_id", *without), 0))
    return sorted((sorted(row.items()) for row in rows), key=repr)


def told() -> list[Activity]:
    """Every activity as it is read, whether its outcome lies beside it or in the book alone."""
    ids = [row["_id"] for row in newest("activities").find({}, {"_id": 1})]
    return sorted(activities.by_ids(ids), key=lambda one: one.id)


def everything(accounts: Sequence[str]) -> dict[str, Any]:
    return {
        "entries": in_the_book(accounts),
        "activities": told(),
        "claims": stored("claims", "taken_at"),
        "milestones": stored("milestones", "reached_at"),
        "notifications": stored("notifications", "created_at", "next_attempt_at"),
    }


def emptied() -> None:
    for name in storage.database().list_collection_names():
        storage.database()[name].delete_many({})


@pytest.mark.parametrize("seed", range(5))
def test_a_batch_leaves_what_one_by_one_would_have_left(seed: int) -> None:
    facts = a_days_mess(seed)
    people = [ANNA, BO, CY]
    batch = [shape(batches.take_in(half)) for half in (facts[:50], facts[50:])]
    in_batch = everything(people)
    assert book.verify(checks=[consistent]).problem is None
    emptied()
    assert batch == [shape(one_by_one(half)) for half in (facts[:50], facts[50:])]
    assert in_batch == everything(people)
    told = {end if isinstance(end, str) else end[0].status for half in batch for end in half}
    assert {"credited", "rejected", "capped", "recorded"} <= told


def test_the_same_again_is_the_same_and_other_content_a_conflict_of_its_own() -> None:
    facts = [fact(ANNA, "bus_km", "5.2", f"2026-05-20 0{n}:00", f"e{n}") for n in range(3)]
    first = batches.take_in(facts)
    entries = in_the_book([ANNA])
    changed = fact(ANNA, "bus_km", 6, "2026-05-20 00:00", "e0")
    again = batches.take_in([changed, *facts[1:], fact(BO, "bus_km", 1, "2026-05-20 05:00", "e5")])
    # 5.2 x 26,900 = 139,880 mg; 1 x 26,900.
    assert ends(again) == [
        "source_event_conflict",
        ("credited", (), 139_880),
        ("credited", (), 139_880),
        ("credited", (), 26_900),
    ]
    assert [one[1] for one in again if not isinstance(one, DomainError)] == [False, False, True]
    assert again[1:3] == [(one[0], False) for one in first[1:] if not isinstance(one, DomainError)]
    assert in_the_book([ANNA]) == entries


def test_an_event_twice_in_one_batch_is_stored_and_credited_once() -> None:
    one = fact(ANNA, "bus_km", "5.2", "2026-05-20 08:00", "e1")
    received = batches.take_in([one, replace(one, id="act_other")])
    assert [(end[0].id, end[1]) for end in received if not isinstance(end, DomainError)] == [
        (one.id, True),
        (one.id, False),
    ]
    assert len(in_the_book([ANNA])) == 1


def test_a_claim_freed_by_the_first_is_there_for_the_second() -> None:
    """Anna's sixth invoice of the day is beyond the cap of five; Bo may have that invoice."""
    mine = [
        fact(ANNA, "e_invoice", 1, "2026-05-20 08:00", f"a{n}", invoice=str(n)) for n in range(6)
    ]
    his = fact(BO, "e_invoice", 1, "2026-05-20 09:00", "b", invoice="5")
    taken = fact(CY, "e_invoice", 1, "2026-05-20 09:00", "c", invoice="5")
    received = batches.take_in([*mine, his, taken])
    statuses = [one[0].status for one in received if not isinstance(one, DomainError)]
    assert statuses == ["credited"] * 5 + ["capped", "credited", "rejected"]
    assert ends(received)[-1] == ("rejected", ("already_credited",), 0)


def test_what_arrives_together_keeps_its_order_in_lists() -> None:
    made = [ids.new_id("act") for _ in range(5_000)]
    assert made == sorted(made)
    assert len(set(made)) == 5_000


STEPS = [
    Death("footprint.underway:begin", "before"),
    Death("footprint.underway:begin", "after"),
    Death("footprint.activities:receive_many", "before"),
    Death("footprint.activities:receive_many", "after"),
    Death("accounting.claims:take_many", "after"),
    Death("accounting.book.posting:_insert", "before"),
    Death("accounting.book.posting:_insert", "after"),
    Death("accounting.book:post_many", "after"),
    Death("accounting.claims:release", "after"),
    Death("accounting.outbox:leave_many", "before"),
    Death("points.milestones:record_many", "after"),
    Death("footprint.activities:settle_many", "before", 2),
    Death("footprint.activities:settle_many", "after", 2),
    Death("footprint.activities:leave_to_book", "before"),
    Death("footprint.underway:end", "before"),
    Death("footprint.underway:end", "after"),
]


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("by", ["the sweep", "the retry"])
def test_a_batch_cut_off_at_any_step_is_finished(crew: Crew, step: Death, by: str) -> None:
    facts = a_days_mess(seed=1)
    batches.take_in(facts)
    whole = everything([ANNA, BO, CY])
    emptied()
    assert crew.run("take_in_a_mess", step, seed=1) == KILLED
    if by == "the retry":
        with clock.travel(timedelta(seconds=1)):
            again = batches.take_in(facts)
        assert all(isinstance(one, DomainError) or one[0].state == "settled" for one in again)
    with clock.travel(timedelta(minutes=2)):
        swept()
    assert newest("activities").count_documents({"state": "received"}) == 0
    if by == "the retry":
        # Facts nobody had sent before are as whole as if nobody had died.
        assert everything([ANNA, BO, CY]) == whole
    else:
        assert all(one.state == "settled" for one in told())
    assert book.verify(checks=[consistent]).problem is None


def swept() -> None:
    """What a crash left is finished, and nothing is left to look at again but late arrivals."""
    while crediting.sweep(clock.now()) or batches.sweep(clock.now()):
        pass
    with clock.travel(timedelta(hours=2)):
        batches.sweep(clock.now())
    assert newest("underway").count_documents({}) == 0


def a_ride_each(people: int = batches.TOGETHER_MIN) -> list[Activity]:
    when = "2026-05-20 08:00"
    return [fact(f"res_{n:02}", "bus_km", "5.2", when, f"e{n}", minutes=9) for n in range(people)]


def test_the_outcomes_of_a_batch_are_in_the_book_alone() -> None:
    facts = a_ride_each()
    received = batches.take_in(facts)
    assert {row["state"] for row in newest("activities").find()} == {"booked"}
    # 5.2 x 26,900 = 139,880 mg.
    assert ends(received) == [("credited", (), 139_880)] * len(facts)
    assert [one[0] for one in received if not isinstance(one, DomainError)] == told()
    [again] = batches.take_in(facts[:1])
    assert again == (told()[0], False)


@pytest.mark.parametrize(
    "step",
    [
        Death("footprint.activities:reopen", "before"),
        Death("footprint.activities:reopen", "after"),
        Death("accounting.book:post", "after"),
        Death("footprint.activities:settle", "before"),
        Death("footprint.activities:settle", "after"),
    ],
    ids=str,
)
def test_taking_back_what_only_the_book_knows_is_finished_or_undone(
    crew: Crew, step: Death
) -> None:
    ride = a_ride_each()[0]
    batches.take_in(a_ride_each())
    assert crew.run("reverse", step, activity_id=ride.id) == KILLED
    with clock.travel(timedelta(minutes=2)):
        swept()
    [stands] = activities.by_ids([ride.id])
    posted = book.by_key(ride.resident, f"reverse:{ride.id}") is not None
    assert (stands.state, stands.status, stands.mg) == (
        ("settled", "reversed", 0) if posted else ("settled", "credited", 139_880)
    )
    assert crediting.reverse(stands, reason="refund", by="operator").status == "reversed"
    assert [entry.kind for entry in book.entries(ride.resident)] == ["earn", "reverse"]


def test_a_batch_that_is_still_at_work_is_not_forgotten() -> None:
    """Held up before its facts are stored, it stores them after a sweep and dies: found again."""
    batch = underway.begin([one.id for one in a_ride_each()], clock.now())
    assert batches.sweep(clock.now()) == 1
    activities.receive_many(a_ride_each(), booked=True)
    with clock.travel(timedelta(minutes=11)):
        assert batches.sweep(clock.now()) == 1
        assert newest("underway").count_documents({"_id": batch}) == 0
    assert {(one.state, one.mg) for one in told()} == {("settled", 139_880)}


def test_one_of_a_batch_that_cannot_be_finished_does_not_hold_up_the_others(crew: Crew) -> None:
    step = Death("footprint.activities:receive_many", "after")
    assert crew.run("take_in_a_mess", step, seed=1) == KILLED
    odd = newest("activities").find_one({"state": "booked"})["_id"]
    storage.database()["activities"].update_one({"_id": odd}, {"$set": {"methodology": "?"}})
    with clock.travel(timedelta(minutes=2)):
        crediting.sweep(clock.now())
        assert batches.sweep(clock.now()) == 1
        assert [row["_id"] for row in newest("activities").find({"state": "booked"})] == [odd]
    with clock.travel(timedelta(hours=2)):
        assert batches.sweep(clock.now()) == 1
        assert newest("underway").count_documents({}) == 1


def test_batches_of_eight_workers_on_the_same_people_credit_each_event_once(crew: Crew) -> None:
    jobs = [job("take_in_a_mess", seed=worker % 2) for worker in range(8)]
    ends = crew.wait(crew.start(*jobs))
    assert all("value" in end for end in ends), ends
    again = [crew.run("take_in_a_mess", seed=seed)["value"] for seed in (0, 1)]
    assert all("account_busy" not in answers for answers in again)
    assert newest("activities").count_documents({"state": "received"}) == 0
    assert book.verify(checks=[consistent]).problem is None
    credited = [entry for who in (ANNA, BO, CY) for entry in book.entries(who)]
    assert len({entry.refs["activity"] for entry in credited}) == len(credited)


@pytest.mark.parametrize("booked", [True, False])
def test_what_a_crash_left_without_an_outcome_is_not_credited_after_it_was_taken_back(
    booked: bool,
) -> None:
    """The refund of a ride comes before the sweep that would have credited the ride."""
    [ride] = a_ride_each(1)
    activities.receive_many([ride], booked=booked)
    underway.begin([ride.id], clock.now())
    stored = activities.by_event(ride.source, ride.event_id)
    assert stored is not None
    assert crediting.reverse(stored, reason="refund", by="operator").status == "reversed"
    with clock.travel(timedelta(minutes=2)):
        swept()
    assert [(one.status, one.mg) for one in told()] == [("reversed", 0)]
    assert [entry.kind for entry in book.entries(ride.resident)] == ["earn", "reverse"]


def test_who_comes_late_with_an_outcome_does_not_end_what_is_being_taken_back() -> None:
    """Who takes back may die before its entry is copied: the sweep has to find it then."""
    ride = a_ride_each()[0]
    batches.take_in(a_ride_each())
    posted = book.by_key(ride.resident, activities.key_of(ride.id))
    assert posted is not None
    outcome = activities.outcome_of(ride, posted)
    activities.reopen(ride, posted)
    for late in (activities.settle(ride, outcome), *activities.settle_many([(ride, outcome)])):
        assert (late.state, late.status, late.mg) == ("received", "credited", 139_880)
    assert crediting.reverse(late, reason="refund", by="operator").status == "reversed"
