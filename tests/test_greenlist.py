"""The green list and its feed: every change once and in order, through races and crashes."""

import itertools
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from faults.crew import KILLED, Crew, Death

from accounting import clock, consent_marks, consents, events, storage, subscriptions
from accounting.clients import Kind
from accounting.consents import Consent
from accounting.events import Type
from accounting.grading import Policy, Standing
from api.config import Config
from footprint import bank_terms, grade, grade_changes, greenlist, listing
from footprint.bank_terms import GradeTerms

pytestmark = pytest.mark.usefixtures("app")

NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)
DAY = timedelta(days=1)
BANK, OTHER = "bnk_kecheng", "bnk_other"
ANNA, BO = "res_anna", "res_bo"
MINUTES = itertools.count(1)


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.travel(NOON - clock.now()):
        yield


def snapshot(resident: str, name: str) -> None:
    """One more grading of a resident, as a grading job stores and tells it."""
    last = grade.newest_of(resident)
    standing = Standing(name, 0, 0, None, None, None, 0, 0)
    inputs = grade.Inputs(
        policy="QZ-GRADE-2026.1", first_month="2025-05", last_month="2026-05", by_behaviour={},
        active_months=0, credited_mg=0, seq=0, held=last.standing.grade if last else None,
        below=0, scheduled=None, counts=False, released=False,
    )  # fmt: skip
    number = last.number + 1 if last else 1
    made = grade.Snapshot(resident, number, clock.now(), standing, inputs)
    grade.snapshots().insert_one(grade.document_of(made))
    grade.tell([made])


def grant(
    who: str = ANNA, bank: str = BANK, fields: tuple[str, ...] = ("grade",), days: int = 30
) -> Consent:
    return consents.grant(
        who, bank_id=bank, purpose="loan", fields=fields, expires_at=clock.now() + days * DAY
    )


def feed(bank: str = BANK) -> list[tuple[int, str, str | None]]:
    return [(one.sequence, one.change, one.grade) for one in all_changes(bank)]


def all_changes(bank: str) -> list[greenlist.Told]:
    found: list[greenlist.Told] = []
    while page := greenlist.changes(bank, after=found[-1].sequence if found else 0, limit=7):
        found += page
    return found


def on_list(bank: str = BANK) -> list[tuple[str, str]]:
    found = greenlist.listed(bank, after=None, limit=99)
    return [(one.consent.resident, one.grade) for one in found]


# --- one step, pure -----------------------------------------------------------------------------

POLICY = Policy("p", 12, ((0, "light"), (50, "mid"), (100, "deep")), 40, 100, 3, 2, {})
OFF = listing.Standing(4, 1, "light", "mid", 1, None)
ON = listing.Standing(4, 1, "mid", "mid", 1, NOON)


@pytest.mark.parametrize(
    ("old", "fresh", "may_list", "told", "listed"),
    [
        (OFF, "light", True, None, False),
        (OFF, "mid", True, "added", True),
        (OFF, "deep", True, "added", True),
        (OFF, "deep", False, None, False),
        (OFF, "unrated", True, None, False),
        (ON, "mid", True, None, True),
        (ON, "deep", True, "upgraded", True),
        (ON, "light", True, "downgraded", False),
        (ON, "unrated", True, "downgraded", False),
    ],
)
def test_a_grading_moves_a_standing_by_one_step(
    old: listing.Standing, fresh: str, may_list: bool, told: str | None, listed: bool
) -> None:
    new, change = listing.graded(old, POLICY, 2, fresh, NOON, may_list=may_list)
    assert (change.change if change else None) == told
    assert (new.step, new.number, new.grade, new.listed) == (5, 2, fresh, listed)
    if change is not None:
        assert change.grade == fresh


@pytest.mark.parametrize(
    ("old", "threshold", "told", "listed"),
    [
        (OFF, "light", "added", True),
        (OFF, "deep", None, False),
        (ON, "light", None, True),
        (ON, "deep", "downgraded", False),
    ],
)
def test_another_threshold_moves_a_standing_too(
    old: listing.Standing, threshold: str, told: str | None, listed: bool
) -> None:
    new, change = listing.termed(old, POLICY, 2, threshold, NOON, may_list=True)
    assert (change.change if change else None) == told
    assert (new.terms, new.threshold, new.listed) == (2, threshold, listed)


# --- what a bank is told ------------------------------------------------------------------------


def test_a_life_on_the_list_is_told_once_and_in_order() -> None:
    snapshot(ANNA, "mid")
    consent = grant()
    greenlist.follow(ANNA)
    for name in ("deep", "deep", "light", "unrated", "mid"):
        snapshot(ANNA, name)
    greenlist.follow(ANNA)
    # The first grading that is told of is the one made on consenting: a resident without anything.
    told = [
        (1, "added", "mid"), (2, "upgraded", "deep"), (3, "downgraded", "light"),
        (4, "downgraded", "unrated"), (5, "added", "mid"),
    ]  # fmt: skip
    assert feed() == told
    assert on_list() == [(ANNA, "mid")]
    consents.withdraw(ANNA, consent.id)
    assert on_list() == []
    greenlist.follow(ANNA)
    greenlist.follow(ANNA)
    assert feed() == [*told, (6, "withdrawn", None)]
    snapshot(ANNA, "deep")
    greenlist.follow(ANNA)
    assert len(feed()) == 6
    assert feed(OTHER) == []


def test_a_consent_that_runs_out_is_told_by_the_sweep() -> None:
    snapshot(ANNA, "deep")
    grant(days=2)
    greenlist.follow(ANNA)
    with clock.travel(2 * DAY):
        assert on_list() == []
        greenlist.sweep(clock.now())
        greenlist.sweep(clock.now())
        assert feed() == [(1, "added", "deep"), (2, "expired", None)]


def test_a_consent_without_the_grade_is_never_listed_but_its_end_is_told() -> None:
    snapshot(ANNA, "deep")
    consent = grant(fields=("report",))
    greenlist.follow(ANNA)
    assert on_list() == []
    assert feed() == []
    consents.withdraw(ANNA, consent.id)
    greenlist.follow(ANNA)
    assert feed() == [(1, "withdrawn", None)]


def test_each_bank_has_a_sequence_and_references_of_its_own() -> None:
    snapshot(ANNA, "mid")
    snapshot(BO, "deep")
    for who, bank in ((ANNA, BANK), (BO, BANK), (BO, OTHER)):
        grant(who, bank)
        greenlist.follow(who)
    assert [one[0] for one in feed()] == [1, 2]
    assert [one[0] for one in feed(OTHER)] == [1]
    references = {one.reference for bank in (BANK, OTHER) for one in all_changes(bank)}
    assert len(references) == 3


def test_new_terms_list_and_unlist_and_are_told() -> None:
    for who, name in ((ANNA, "light"), (BO, "deep")):
        snapshot(who, name)
        grant(who)
        greenlist.follow(who)
    assert on_list() == [(ANNA, "light"), (BO, "deep")]
    terms = {"deep": GradeTerms(1_500, 100, True)}
    first = bank_terms.put(BANK, "mid", terms, by="cli_1")
    assert bank_terms.put(BANK, "mid", terms, by="cli_1") == first
    # At once for the list, and for the feed when somebody looks.
    assert on_list() == [(BO, "deep")]
    greenlist.follow_bank(BANK)
    bank_terms.put(BANK, "light", terms, by="cli_1")
    greenlist.follow_bank(BANK)
    assert [one[1:] for one in feed()] == [
        ("added", "light"), ("added", "deep"), ("downgraded", "light"), ("added", "light"),
    ]  # fmt: skip


def test_the_sweep_takes_what_grading_left() -> None:
    snapshot(ANNA, "mid")
    grant()
    snapshot(ANNA, "deep")
    greenlist.sweep(clock.now())
    assert feed() == [(1, "added", "deep")]
    snapshot(ANNA, "mid")
    greenlist.sweep(clock.now())
    greenlist.sweep(clock.now())
    assert feed() == [(1, "added", "deep"), (2, "downgraded", "mid")]
    assert grade_changes.waiting(9) == []


def test_a_mark_is_kept_until_its_change_must_have_been_seen() -> None:
    snapshot(ANNA, "mid")
    consent = grant()
    greenlist.follow(ANNA)
    consent_marks.mark([ANNA])
    greenlist.sweep(clock.now())  # Too early: what was announced is not stored yet.
    consents._consents().update_one({"_id": consent.id}, {"$set": {"withdrawn_at": clock.now()}})
    with clock.travel(consent_marks.SETTLED_AFTER):
        greenlist.sweep(clock.now())
        assert [one[1] for one in feed()] == ["added", "withdrawn"]
        assert consent_marks.marked(9) == []


def test_the_nightly_look_finds_what_no_mark_told_of() -> None:
    for who in (ANNA, BO):
        snapshot(who, "mid")
        grant(who)
        greenlist.follow(who)
    snapshot(BO, "deep")
    grade_changes.taken(grade_changes.waiting(9))
    ids = greenlist.ids_after("", 50)
    assert len(ids) == greenlist.count() == 2
    assert greenlist.compare(ids) == 1
    assert greenlist.ids_after(ids[-1], 50) == []
    assert [one[1] for one in feed()] == ["added", "added", "upgraded"]


def test_a_bank_that_walks_while_grades_change_sees_every_change_once_in_order() -> None:
    """Six threads grade twelve residents and tell at random; one walks the feed meanwhile."""
    people = [f"res_{number:02d}" for number in range(12)]
    consent_of = {}
    for who in people:
        snapshot(who, "light")
        consent_of[who] = grant(who).reference
        greenlist.follow(who)
    names = ("light", "mid", "deep")
    lives = {who: ["light", *random.Random(who).choices(names, k=8)] for who in people}

    def live(lane: int) -> None:
        for who in people[lane::6]:
            for name in lives[who][1:]:
                snapshot(who, name)
                # Whom somebody else follows at this moment as well.
                for one in (who, random.choice(people)):
                    greenlist.follow(one)

    walked: list[greenlist.Told] = []

    def walk() -> None:
        walked.extend(greenlist.changes(BANK, after=walked[-1].sequence if walked else 0, limit=5))

    with ThreadPoolExecutor(6) as pool:
        running = [pool.submit(live, lane) for lane in range(6)]
        while not all(one.done() for one in running):
            walk()
        for one in running:
            one.result()
    while (before := len(walked)) != (walk() or len(walked)):
        assert before < len(walked)
    assert [one.sequence for one in walked] == list(range(1, len(walked) + 1))
    rank = {name: place for place, name in enumerate(names)}
    for who in people:
        expected = [("added", "light")]
        for old, new in itertools.pairwise(lives[who]):
            if rank[new] != rank[old]:
                expected.append(("upgraded" if rank[new] > rank[old] else "downgraded", new))
        told = [(one.change, one.grade) for one in walked if one.reference == consent_of[who]]
        assert told == expected, who


# --- crashes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_crew(config: Config) -> Iterator[Crew]:
    with Crew(config.mongodb_uri) as crew:
        yield crew


@pytest.mark.parametrize(
    "step",
    [
        Death("footprint.greenlist:_begin", "after"),
        Death("footprint.greenlist:_take", "before"),
        Death("footprint.greenlist:_take", "after"),
        Death("footprint.greenlist:_publish", "before"),
        Death("footprint.greenlist:last_sequence", "after"),
        Death("footprint.greenlist:_publish", "after"),
    ],
    ids=str,
)
def test_a_crash_at_any_step_loses_and_doubles_nothing(one_crew: Crew, step: Death) -> None:
    one_crew.shift = clock.now() - datetime.now(UTC)
    snapshot(ANNA, "mid")
    grant()
    assert one_crew.run("follow_green", step, resident=ANNA) == KILLED
    snapshot(ANNA, "deep")
    with clock.travel(timedelta(minutes=3)):
        greenlist.sweep(clock.now())
    assert feed() == [(1, "added", "mid"), (2, "upgraded", "deep")]
    assert on_list() == [(ANNA, "deep")]


def test_a_change_published_by_a_worker_that_died_is_not_published_again(one_crew: Crew) -> None:
    """Cut off between the change and the standing that lets go of it."""
    snapshot(ANNA, "mid")
    grant()
    greenlist.follow(ANNA)
    row = storage.database()["green_standings"].find_one()
    assert row is not None
    subscribe()
    pending = {"change": "added", "grade": "mid", "at": clock.now()}
    storage.database()["green_standings"].update_one({}, {"$set": {"pending": pending}})
    greenlist.follow(ANNA)
    assert feed() == [(1, "added", "mid")]
    assert storage.database()["green_standings"].find_one() == row
    # It died before the bank's webhooks were told.
    assert hooked() == [(1, "added")]


def subscribe(bank: str = BANK) -> None:
    party = events.party(Kind.BANK, bank)
    subscriptions.add(party, "https://bank.example/hook", {Type.GREEN_LIST_CHANGED}, 0)


def hooked(bank: str = BANK) -> list[tuple[int, str]]:
    """What webhooks of a bank are told, in the order of its events."""
    party = events.party(Kind.BANK, bank)
    events.number(party)
    return [(one.data["sequence"], one.data["change"]) for one in events.after(party, 0, 99)]


def test_a_bank_that_subscribed_is_told_of_every_change_once_and_of_no_grade() -> None:
    subscribe()
    consent = grant()
    grant(bank=OTHER)
    for name in ("mid", "deep", "light"):
        snapshot(ANNA, name)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(greenlist.follow, [ANNA] * 4))
    assert hooked() == [(1, "added"), (2, "upgraded"), (3, "downgraded")]
    assert hooked(OTHER) == []
    told = events.after(events.party(Kind.BANK, BANK), 0, 99)
    assert {one.aggregate for one in told} == {f"consent:{consent.reference}"}
    assert [one.sequence for one in told] == [1, 2, 3]
    assert all(one.data.keys() == {"sequence", "reference", "change"} for one in told)
