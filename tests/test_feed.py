"""Rows of partners: whose they are, what a partner may report, and rows nobody is linked to yet."""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from faults.crew import KILLED, Crew, Death

from accounting import book, clock, links, storage, vault
from accounting.errors import NotFound
from accounting.links import AlreadyLinked, InvalidLinkCode, Link
from footprint import activities, parked
from footprint.activities import SourceEventConflict
from footprint.rules import Report
from points import crediting, feed, statements
from points.crediting import NothingToReverse
from points.feed import BehaviourNotAllowed, NotInNamespace, Partner, Row, Taken
from points.wallet import consistent

pytestmark = pytest.mark.usefixtures("app")

ANNA, BO = "res_anna", "res_bo"
BUS = Partner("bus", frozenset({"bus_km", "metro_km"}), id_namespace="card-")
OTHER = Partner("other")
CARD = "card-0001"


def city(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=clock.CITY).astimezone(UTC)


NOW = city("2026-05-20 12:00")
events = (f"event-{number}" for number in itertools.count())


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.travel(NOW - clock.now()):
        yield


def row(
    card: str = CARD,
    km: object = "5.2",
    at: str = "2026-05-20 08:00",
    *,
    event: str | None = None,
    behaviour: str = "bus_km",
    **attributes: Any,
) -> Row:
    what = Report(behaviour, Decimal(str(km)), city(at), None, attributes)
    return Row(card, event or next(events), what)


def statuses(taken: list[Taken]) -> list[str]:
    return [
        one.refusal.code
        if one.refusal is not None
        else one.activity.status_at(clock.now())
        if one.activity is not None
        else "nothing"
        for one in taken
    ]


def take(*rows: Row, partner: Partner = BUS) -> list[str]:
    return statuses(feed.take(partner, rows))


def linked(who: str = ANNA, card: str = CARD, partner: Partner = BUS) -> Link:
    link = links.link(who, partner.id, card)
    feed.credit_parked(link)
    return link


@pytest.mark.parametrize(("late", "credited"), [(-1, 1), (0, 0)])
def test_a_parked_row_is_credited_for_ninety_days(late: int, credited: int) -> None:
    assert take(row(event="one")) == ["parked"]
    [kept] = parked.of_external(links.external_hash(BUS.id, CARD))
    with clock.stand(kept.parked_at + timedelta(days=90, milliseconds=late)):
        link = links.link(ANNA, BUS.id, CARD)
        assert feed.credit_parked(link) == credited
        # Sent again it is taken as it is now: within the 180 days of a partner.
        assert take(row(event="one")) == ["credited"]
        assert book.head(ANNA).after["lifetime_mg"] == 139_880


def test_a_row_that_expired_and_nobody_swept_is_parked_anew() -> None:
    assert take(row(event="one")) == ["parked"]
    with clock.travel(timedelta(days=90)):
        assert take(row(event="one", km=6)) == ["parked"]
        assert feed.credit_parked(links.link(ANNA, BUS.id, CARD)) == 1
        # 6 x 26,900
        assert book.head(ANNA).after["lifetime_mg"] == 161_400


# Rows of residents.


def test_a_row_of_a_linked_card_is_credited_to_its_holder_as_evidence_a() -> None:
    linked()
    [taken] = feed.take(BUS, [row()])
    assert taken.activity is not None
    assert (taken.fresh, taken.activity.resident, taken.activity.evidence) == (True, ANNA, "A")
    assert (taken.activity.source, taken.activity.points) == ("partner:bus", 139)
    assert statements.balance(ANNA).pending == 139


def test_results_are_in_the_order_of_the_rows_and_a_bad_row_spoils_no_neighbour() -> None:
    linked()
    linked(BO, "card-0002")
    rows = [
        row(),
        row(behaviour="bike_km"),
        row("card-0002"),
        row("alien-1"),
        row("card-9999"),
        row(km=999, at="2026-05-20 09:00"),
        row("card-0002", at="2026-05-20 10:00"),
        row(at="2026-05-20 08:00:00.000"),
    ]
    assert take(*rows) == [
        "pending",
        "behaviour_not_allowed",
        "pending",
        "id_not_in_namespace",
        "parked",
        "rejected",
        "pending",
        "rejected",
    ]
    # 5.2 x 26,900 for one ride of each, and one more of the second card.
    assert book.head(ANNA).after["lifetime_mg"] == 139_880
    assert book.head(BO).after["lifetime_mg"] == 279_760


def test_a_batch_of_many_residents_is_taken_in_the_order_of_each() -> None:
    cards = [f"card-{number:04d}" for number in range(20)]
    for card in cards:
        linked(f"res_{card}", card)
    rows = [row(card, km, f"2026-05-20 0{km}:00") for km in (1, 2, 3) for card in cards]
    taken = feed.take(BUS, rows)
    assert statuses(taken) == ["pending"] * 60
    for card in cards:
        quantities = [entry.refs["quantity"] for entry in book.entries(f"res_{card}")]
        assert quantities == ["1", "2", "3"]


def test_no_rows_give_no_results() -> None:
    assert feed.take(BUS, []) == []


@pytest.mark.parametrize(
    ("partner", "what", "refusal"),
    [
        (BUS, row("0001"), NotInNamespace),
        (BUS, row(behaviour="walk_steps", km=100), BehaviourNotAllowed),
        (Partner("none", frozenset()), row(), BehaviourNotAllowed),
    ],
)
def test_a_partner_reports_only_what_its_record_says(
    partner: Partner, what: Row, refusal: type[Exception]
) -> None:
    [taken] = feed.take(partner, [what])
    assert isinstance(taken.refusal, refusal)
    assert taken.activity is None
    assert storage.database()["parked"].count_documents({}) == 0


def test_a_link_of_one_partner_says_nothing_to_another() -> None:
    linked()
    assert take(row(), partner=OTHER) == ["parked"]
    assert take(row(), partner=BUS) == ["pending"]


# The same row again.


def test_a_file_sent_twice_has_one_effect() -> None:
    linked()
    rows = [row(at=f"2026-05-20 0{hour}:00") for hour in range(5)] + [row("card-9999")]
    first, second = feed.take(BUS, rows), feed.take(BUS, rows)
    assert [one.fresh for one in first] == [True] * 6
    assert [one.fresh for one in second] == [False] * 6
    ids = [[one.activity.id for one in taken if one.activity] for taken in (first, second)]
    assert ids[0] == ids[1]
    assert book.head(ANNA).seq == 5
    assert storage.database()["parked"].count_documents({}) == 1


def test_the_same_event_twice_in_one_batch_has_one_effect() -> None:
    linked()
    twice = row(event="one")
    first, second = feed.take(BUS, [twice, twice])
    assert (first.fresh, second.fresh) == (True, False)
    assert book.head(ANNA).seq == 1


@pytest.mark.parametrize("is_linked", [True, False])
@pytest.mark.parametrize(
    "other", [{"km": 6}, {"at": "2026-05-20 08:01"}, {"line": "1"}, {"card": "card-0002"}]
)
def test_an_event_id_with_other_content_is_a_conflict(
    is_linked: bool, other: dict[str, Any]
) -> None:
    if is_linked:
        linked()
        linked(BO, "card-0002")
    feed.take(BUS, [row(event="one")])
    [taken] = feed.take(BUS, [row(**{"event": "one", **other})])
    assert isinstance(taken.refusal, SourceEventConflict)
    assert book.head(BO).seq == 0


def test_two_partners_may_use_the_same_event_id() -> None:
    linked()
    linked(BO, CARD, OTHER)
    assert take(row(event="one")) == ["pending"]
    assert take(row(event="one"), partner=OTHER) == ["pending"]


# Parked rows.


def test_rows_of_an_unknown_card_wait_and_are_credited_when_it_is_linked() -> None:
    answered = feed.take(BUS, [row(), row(at="2026-05-20 09:00")])
    assert statuses(answered) == ["parked", "parked"]
    assert storage.database()["activities"].count_documents({}) == 0
    link = links.link(ANNA, BUS.id, CARD)
    assert feed.credit_parked(link) == 2
    assert feed.credit_parked(link) == 0
    shown = activities.of_resident(ANNA, before=None, limit=9)
    # Under the ids the partner was answered.
    assert {one.id for one in shown} == {one.activity.id for one in answered if one.activity}
    assert statements.balance(ANNA).pending == 278
    assert storage.database()["parked"].count_documents({}) == 0


def test_a_parked_row_is_sealed() -> None:
    feed.take(BUS, [row(line="line-77")])
    stored = storage.database()["parked"].find_one({})
    assert stored is not None
    for secret in (CARD, "5.2", "bus_km", "line-77"):
        assert secret not in repr(stored)
    [kept] = parked.of_external(links.external_hash(BUS.id, CARD))
    assert kept.report == row(line="line-77").report


def test_the_window_of_a_parked_row_is_judged_when_it_arrived() -> None:
    take(row(at="2025-11-25 12:00"))  # 176 days old on arrival.
    with clock.travel(timedelta(days=60)):
        link = linked()
        assert feed.credit_parked(link) == 0
        [ride] = activities.of_resident(ANNA, before=None, limit=9)
        assert (ride.status, ride.received_at.date()) == ("credited", NOW.date())


def test_a_row_parked_for_one_card_is_not_credited_to_another() -> None:
    take(row("card-0002"))
    linked(ANNA, CARD)
    assert book.head(ANNA).seq == 0


def test_a_row_sent_again_after_it_was_credited_answers_with_its_activity() -> None:
    sent = row(event="one")
    [parked_as] = feed.take(BUS, [sent])
    linked()
    [again] = feed.take(BUS, [sent])
    assert again.activity is not None
    assert parked_as.activity is not None
    assert (again.fresh, again.activity.id) == (False, parked_as.activity.id)
    assert again.activity.status == "credited"


def test_a_row_sent_again_after_the_link_was_ended_is_not_parked_a_second_time() -> None:
    link = linked()
    sent = row(event="one")
    take(sent)
    assert links.unlink(ANNA, link.id)
    assert take(sent) == ["pending"]
    assert storage.database()["parked"].count_documents({}) == 0
    # What the first holder earned is not the next holder's.
    linked(BO)
    [again] = feed.take(BUS, [sent])
    assert again.activity is not None
    assert again.activity.resident == ANNA
    assert book.head(BO).seq == 0


def test_more_rows_than_one_go_are_left_to_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parked, "CREDIT_MAX", 2)
    take(*[row(at=f"2026-05-20 0{hour}:00") for hour in range(3)])
    link = links.link(ANNA, BUS.id, CARD)
    assert feed.credit_parked(link) == 2
    later = clock.now() + timedelta(minutes=2)
    assert [left.id for left in links.parked_open(later)] == [link.id]
    assert feed.credit_parked(link) == 1
    assert links.parked_open(later) == []
    assert book.head(ANNA).seq == 3


def test_a_row_that_arrives_while_its_card_is_linked_is_credited_whoever_is_first() -> None:
    """Sixteen cards; for each, one thread sends rows while another links. None may stay parked."""
    cards = [f"card-{number:04d}" for number in range(16)]

    def send(card: str) -> None:
        for hour in range(4):
            feed.take(BUS, [row(card, at=f"2026-05-20 0{hour}:00", event=f"{card}-{hour}")])

    def link(card: str) -> None:
        feed.credit_parked(links.link(f"res_{card}", BUS.id, card))

    calls: list[tuple[Callable[[str], None], str]] = []
    for card in cards:
        calls += [(send, card), (link, card)]
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(call, card) for call, card in calls]:
            done.result()
    for card in cards:
        keys = [entry.refs["quantity"] for entry in book.entries(f"res_{card}")]
        assert keys == ["5.2"] * 4, card
    assert storage.database()["parked"].count_documents({}) == 0


@pytest.mark.parametrize(
    "step",
    [
        Death("footprint.activities:receive_many", "after"),
        Death("accounting.book:post_many", "after"),
        Death("footprint.parked:forget", "before"),
        Death("footprint.parked:forget", "after"),
        Death("accounting.links:parked_credited", "before"),
    ],
    ids=str,
)
def test_a_kill_while_parked_rows_are_credited_is_finished_by_the_sweep(
    crew: Crew, step: Death
) -> None:
    take(row(), row(at="2026-05-20 09:00"))
    link = links.link(ANNA, BUS.id, CARD)
    assert crew.run("credit_parked", step, resident=ANNA, link_id=link.id) == KILLED
    with clock.travel(timedelta(minutes=2)):
        crediting.sweep(clock.now())
        for left in links.parked_open(clock.now() - timedelta(minutes=1)):
            feed.credit_parked(left)
        assert links.parked_open(clock.now()) == []
    assert [entry.refs["mg"] for entry in book.entries(ANNA)] == [139_880, 139_880]
    assert storage.database()["parked"].count_documents({}) == 0
    assert book.verify(checks=[consistent]).problem is None


# Taking back.


def test_a_partner_takes_back_its_own_event_and_nobody_elses() -> None:
    linked()
    take(row(event="one"))
    with pytest.raises(NotFound):
        feed.reverse(OTHER, "one", "refund")
    with pytest.raises(NotFound):
        feed.reverse(BUS, "two", "refund")
    assert feed.reverse(BUS, "one", "refund").status == "reversed"
    assert feed.reverse(BUS, "one", "refund").status == "reversed"
    assert book.head(ANNA).after["lifetime_mg"] == 0
    take(row("card-0001", at="2026-05-20 08:00", event="two"))
    take(row("card-0001", at="2026-05-20 08:00", event="three"))
    with pytest.raises(NothingToReverse):
        feed.reverse(BUS, "three", "it overlapped anyway")


# Links.


def test_an_external_id_belongs_to_one_resident_at_a_time() -> None:
    link = links.link(ANNA, BUS.id, CARD)
    for who in (ANNA, BO):
        with pytest.raises(AlreadyLinked):
            links.link(who, BUS.id, CARD)
    assert links.resident_of(BUS.id, CARD) == ANNA
    assert links.residents_of(BUS.id, [CARD, "card-x"]) == {CARD: ANNA}
    assert not links.unlink(BO, link.id)
    assert links.unlink(ANNA, link.id)
    assert not links.unlink(ANNA, link.id)
    assert links.resident_of(BUS.id, CARD) is None
    assert links.link(BO, BUS.id, CARD).external_id == CARD


def test_eight_residents_race_for_one_card_and_one_gets_it() -> None:
    def try_to_link(number: int) -> str:
        try:
            return links.link(f"res_{number}", BUS.id, CARD).resident
        except AlreadyLinked:
            return "refused"

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(try_to_link, range(8)))
    assert answers.count("refused") == 7


def test_the_external_id_is_stored_sealed_and_found_by_keyed_hash() -> None:
    links.link(ANNA, BUS.id, CARD)
    stored = storage.database()["links"].find_one({})
    assert stored is not None
    assert CARD not in repr(stored)
    assert vault.decrypt(stored["external_sealed"], "external") == CARD
    assert [link.external_id for link in links.of_resident(ANNA, before=None, limit=9)] == [CARD]
    assert links.of_resident(BO, before=None, limit=9) == []


def test_a_link_code_works_once_for_its_id_and_for_thirty_minutes() -> None:
    code, lifetime = links.issue_code(BUS.id, CARD)
    assert lifetime == timedelta(minutes=30)
    for partner, card in ((BUS.id, "card-0002"), (OTHER.id, CARD)):
        with pytest.raises(InvalidLinkCode):
            links.check_code(partner, card, code)
    links.check_code(BUS.id, CARD, code)
    with pytest.raises(InvalidLinkCode):
        links.check_code(BUS.id, CARD, code)
    code, _ = links.issue_code(BUS.id, CARD)
    with clock.travel(timedelta(minutes=30)), pytest.raises(InvalidLinkCode):
        links.check_code(BUS.id, CARD, code)
    with pytest.raises(InvalidLinkCode):
        links.check_code(BUS.id, CARD, None)


def test_five_wrong_tries_spoil_a_link_code_also_when_made_at_once() -> None:
    code, _ = links.issue_code(BUS.id, CARD)
    wrong = "0" * 8 if code != "0" * 8 else "1" * 8

    def guess(_: int) -> None:
        with pytest.raises(InvalidLinkCode):
            links.check_code(BUS.id, CARD, wrong)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(guess, range(5)))
    with pytest.raises(InvalidLinkCode):
        links.check_code(BUS.id, CARD, code)
    # A new code replaces the last, with tries of its own.
    code, _ = links.issue_code(BUS.id, CARD)
    for _try in range(4):
        guess(0)
    links.check_code(BUS.id, CARD, code)


def test_a_new_link_code_replaces_the_last() -> None:
    old, _ = links.issue_code(BUS.id, CARD)
    new, _ = links.issue_code(BUS.id, CARD)
    if old != new:
        with pytest.raises(InvalidLinkCode):
            links.check_code(BUS.id, CARD, old)
    links.check_code(BUS.id, CARD, new)
