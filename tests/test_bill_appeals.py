"""Bills that earned nothing: a member of the household asks why, an operator looks, it is decided.

See `homes` for the household that is worked by hand.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from callers import Caller, machine, resident, said
from faults.crew import KILLED, Crew, Death
from flask import Flask
from homes import NOW, bill, live_in, points_of, send, send_history

from accounting import audit, book, clock
from accounting.clients import Kind
from footprint import bills, reviews
from footprint.billing_rules import Generation
from footprint.bills import Bill
from points import bill_crediting, deciding
from points.wallet import Wallet

TEXT = "We were away in April; my mother watered the plants every day."


@pytest.fixture(autouse=True)
def _may() -> Iterator[None]:
    with clock.travel(NOW - clock.now()):
        yield


@pytest.fixture
def me(app: Flask) -> Caller:
    return resident(app)


@pytest.fixture
def partner_of_mine(app: Flask) -> Caller:
    return resident(app)


@pytest.fixture
def operator(app: Flask) -> Caller:
    return machine(app, Kind.OPERATOR)


@pytest.fixture
def late(me: Caller, partner_of_mine: Caller) -> Bill:
    """October's bill of 240 kWh, 60 saved, that came 201 days after October."""
    live_in(me.id, partner_of_mine.id)
    send_history(last="2025-09", count=24)
    october = send(bill("2025-10", 240), "october")
    assert october.outcome(clock.now()).reasons == ("bill_history",)
    return october


def appeal(who: Caller, one: Bill, text: str = TEXT) -> Any:
    return who.post(f"/v1/me/bills/{one.id}/appeal", {"text": text})


def decide(operator: Caller, appeal_id: str, uphold: bool, reason: str = "seen") -> Any:
    return operator.post(
        f"/v1/operator/appeals/{appeal_id}/decide", {"uphold": uphold, "reason": reason}
    )


def test_a_late_bill_is_credited_to_everybody_when_the_appeal_is_upheld(
    me: Caller, partner_of_mine: Caller, operator: Caller, late: Bill
) -> None:
    answer = appeal(me, late)
    assert answer.status_code == 201
    asked = answer.get_json()
    assert (asked["bill_id"], asked["status"], "activity_id" in asked) == (late.id, "open", False)
    assert asked["due_on"] == str(clock.city_day(clock.now()) + timedelta(days=20))
    (waiting,) = operator.get("/v1/operator/appeals").get_json()["items"]
    assert (waiting["bill"]["id"], waiting["resident_id"]) == (late.id, me.id)

    told = decide(operator, asked["appeal_id"], uphold=True, reason="The post was late.")
    assert (told.status_code, told.get_json()["status"]) == (200, "upheld")
    # 300 - 240 = 60 kWh, a third for each of three members: 20 x 497.4 g.
    assert (points_of(me.id), points_of(partner_of_mine.id)) == (9_948, 9_948)
    shown = me.get(f"/v1/me/bills/{late.id}").get_json()
    assert (shown["status"], shown["reduction_g"]) == ("credited", 9_948)
    assert [one["code"] for one in shown["reasons"]] == ["appeal_upheld"]
    (lot,) = Wallet.load(book.head(me.id).after).lots
    assert lot.expires_on == 20271031, "the month of the bill"
    (mine,) = me.get("/v1/me/appeals").get_json()["items"]
    assert (mine["status"], mine["reason"]) == ("upheld", "The post was late.")
    (noted,) = audit.trail(subject=late.id, limit=9)
    assert (noted.before or {})["mg"] == 0
    assert (noted.after or {})["mg"] == 9_948_000
    assert "appeal_decided" in [
        one["type"] for one in me.get("/v1/me/notifications").get_json()["items"]
    ]
    assert book.verify().problem is None


def test_a_refused_appeal_changes_nothing_and_says_why(
    me: Caller, operator: Caller, late: Bill
) -> None:
    asked = appeal(me, late).get_json()
    assert decide(operator, asked["appeal_id"], uphold=False).get_json()["status"] == "refused"
    assert bills.by_id(late.id) == late
    assert book.head(me.id).seq == 0


def test_one_appeal_a_bill_by_whoever_of_the_household_asks_first(
    app: Flask, me: Caller, partner_of_mine: Caller, late: Bill
) -> None:
    first = appeal(me, late)
    again = appeal(me, late)
    assert (again.status_code, again.get_json()) == (200, first.get_json())
    assert said(appeal(me, late, "Another text.")) == (409, "already_appealed")
    assert said(appeal(partner_of_mine, late)) == (409, "already_appealed")
    assert said(appeal(resident(app), late)) == (404, "not_found")
    assert partner_of_mine.get("/v1/me/appeals").get_json()["items"] == []


@pytest.mark.parametrize(
    ("used", "history", "because"),
    [(300, 24, "no_saving"), (240, 6, "needs_history")],
)
def test_what_is_arithmetic_cannot_be_upheld(
    me: Caller, operator: Caller, used: int, history: int, because: str
) -> None:
    live_in(me.id)
    send_history(count=history)
    april = send(bill("2026-04", used))
    assert april.outcome(clock.now()).reasons == (because,)
    asked = appeal(me, april).get_json()
    assert said(decide(operator, asked["appeal_id"], uphold=True)) == (409, "not_creditable")
    assert decide(operator, asked["appeal_id"], uphold=False).status_code == 200


def test_another_bill_of_the_month_keeps_its_credit(me: Caller, operator: Caller) -> None:
    live_in(me.id)
    send_history(count=24)
    half = clock.first_day("2026-04") + timedelta(days=14)
    send(bill("2026-04", 120, period_end=half), "first half")
    second = send(bill("2026-04", 120, period_start=half + timedelta(days=1)), "second half")
    assert second.outcome(clock.now()).reasons == ("bill_month_credited",)
    asked = appeal(me, second).get_json()
    assert said(decide(operator, asked["appeal_id"], uphold=True)) == (409, "not_creditable")


def test_what_was_credited_corrected_or_is_reviewed_cannot_be_appealed(me: Caller) -> None:
    live_in(me.id)
    send_history(count=24)
    credited = send(bill("2026-04", 240), "e1")
    assert said(appeal(me, credited)) == (409, "not_appealable")
    empty = send(bill("2026-04", 20, corrects="e1"), "e2")
    assert empty.outcome(clock.now()).reasons == ("vacancy_review",)
    assert said(appeal(me, empty)) == (409, "not_appealable")
    assert said(appeal(me, credited)) == (409, "not_appealable")


def test_a_home_that_was_lived_in_after_all(me: Caller, operator: Caller) -> None:
    live_in(me.id)
    send_history(count=24)
    april = send(bill("2026-04", 80))
    (review,) = operator.get("/v1/operator/reviews").get_json()["items"]
    refused = {"accept": False, "reason": "nobody lived there"}
    operator.post(f"/v1/operator/reviews/{review['review_id']}/decide", refused)
    assert bills.by_id(april.id).outcome(clock.now()).reasons == ("vacant_home",)
    asked = appeal(me, april).get_json()
    assert decide(operator, asked["appeal_id"], uphold=True).status_code == 200
    # 220 saved, at most 90 count, 30 for each of three: 14,922 g.
    shown = me.get(f"/v1/me/bills/{april.id}").get_json()
    assert (shown["status"], shown["points"]) == ("capped", 14_922)
    assert [one["code"] for one in shown["reasons"]] == ["appeal_upheld", "saving_cap"]


def test_panels_that_are_not_there(me: Caller, operator: Caller) -> None:
    live_in(me.id)
    # Somebody else's panels, told of this meter by mistake.
    send(bill("2025-06", 300, pv=Generation(Decimal(200))), "june")
    send_history(count=9)
    send_history(last="2025-05", count=14)
    april = send(bill("2026-04", 240))
    assert april.outcome(clock.now()).reasons == ("pv_home",)
    asked = appeal(me, april).get_json()
    assert decide(operator, asked["appeal_id"], uphold=True).status_code == 200
    assert points_of(me.id) == 9_948


def test_a_correction_withdraws_the_appeal(me: Caller, operator: Caller, late: Bill) -> None:
    asked = appeal(me, late).get_json()
    send(bill("2025-10", 250, corrects="october"), "october 2")
    (mine,) = me.get("/v1/me/appeals").get_json()["items"]
    assert mine["status"] == "withdrawn"
    assert said(decide(operator, asked["appeal_id"], uphold=True)) == (409, "already_decided")


def test_upheld_and_corrected_at_once_end_in_the_correction(
    me: Caller, operator: Caller, late: Bill
) -> None:
    appeal_id = appeal(me, late).get_json()["appeal_id"]
    review = reviews.get(reviews.APPEALS, appeal_id)
    decision = reviews.Decision(True, "seen", operator.id)

    def uphold() -> Any:
        try:
            return deciding.decide(review, decision).status
        except (deciding.NotAppealable, reviews.AlreadyDecided) as refusal:
            return refusal.code

    with ThreadPoolExecutor(2) as pool:
        ends = [
            pool.submit(uphold),
            pool.submit(send, bill("2025-10", 270, corrects="october"), "october 2"),
        ]
        [one.result() for one in ends]
    with clock.travel(timedelta(minutes=2)):
        deciding.sweep(clock.now())
        bill_crediting.sweep(clock.now())
    # The correction came as late as the bill, so it earns nothing, and neither does the bill.
    assert points_of(me.id) == 0
    assert bills.by_id(late.id).outcome(clock.now()).mg == 0
    assert book.verify().problem is None


@pytest.mark.parametrize(
    "death",
    [
        Death("footprint.bills:reopen", "before"),
        Death("footprint.bills:reopen", "after"),
        Death("accounting.book:post_many", "after"),
        Death("footprint.bills:settle", "before"),
        Death("footprint.reviews:carried_out", "before"),
    ],
    ids=str,
)
def test_a_decision_killed_anywhere_is_carried_out_once(
    me: Caller, partner_of_mine: Caller, operator: Caller, late: Bill, crew: Crew, death: Death
) -> None:
    appeal_id = appeal(me, late).get_json()["appeal_id"]
    asked = {"queue": "appeals", "review_id": appeal_id, "accept": True, "reason": "seen"}
    assert crew.run("decide", death, **asked, by=operator.id) == KILLED
    with clock.travel(timedelta(minutes=2)):
        bill_crediting.sweep(clock.now())
        deciding.sweep(clock.now())
        assert me.get(f"/v1/me/bills/{late.id}").get_json()["points"] == 9_948
    for who in (me.id, partner_of_mine.id):
        assert (points_of(who), book.head(who).seq) == (9_948, 1)
    assert len(audit.trail(subject=late.id, limit=9)) == 1
