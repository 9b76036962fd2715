"""Taking bills back, singly: by whom, how often, against corrections, cut off at any step.

See `homes` for the household that is worked by hand: in April 2026 it used 240 kWh where 300 were
usual, so each of three members gets 60 / 3 x 497.4 = 9,948 g.
"""

from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import pytest
from homes import (
    ANNA,
    BO,
    CHEN,
    GRID,
    NOW,
    at_once,
    bill,
    live_in,
    points_of,
    send,
    send_history,
    whole,
)

from accounting import book, clock
from footprint import bill_intake, bills, summaries
from footprint.bills import Bill
from points import bill_crediting, statements
from points.wallet import Wallet

pytestmark = pytest.mark.usefixtures("app")


@pytest.fixture(autouse=True)
def _may() -> Iterator[None]:
    with clock.travel(NOW - clock.now()):
        yield


@pytest.fixture
def april() -> Bill:
    live_in(ANNA, BO, CHEN)
    send_history(count=24)
    return send(bill("2026-04", 240), "e1")


def back(one: Bill, reason: str = "sent by mistake") -> Bill:
    return bill_crediting.reverse(one, reason=reason, by=f"partner:{GRID}")


def shown(one: Bill) -> tuple[str, tuple[str, ...], int]:
    outcome = bills.by_id(one.id).outcome(clock.now())
    return outcome.status, outcome.reasons, outcome.mg


def test_a_bill_taken_back_leaves_nothing_but_its_trace(april: Bill) -> None:
    assert points_of(ANNA) == 9_948
    taken = back(april)
    assert shown(taken) == ("reversed", ("reversed",), 0)
    assert taken.points == 0
    for resident in (ANNA, BO, CHEN):
        entries = list(book.entries(resident))
        assert [(one.kind, one.refs["points"]) for one in entries] == [
            ("earn", 9_948),
            ("reverse", -9_948),
        ]
        assert (entries[1].refs["reason"], entries[1].refs["by"]) == (
            "sent by mistake",
            f"partner:{GRID}",
        )
        assert points_of(resident) == 0
        assert summaries.between(resident, *whole("2026-04")).cells == ()
        assert bills.emissions_between(resident, *whole("2026-04")) == {}
    # It is still in the list of what came, and the row that took it back is not.
    listed = bills.of_resident(ANNA, before=None, limit=99)
    assert (len(listed), listed[0].id) == (25, april.id)
    assert book.verify().problem is None


def test_its_days_are_free_for_a_new_bill_and_its_event_id_is_not(april: Bill) -> None:
    back(april)
    # 300 - 255 = 45 kWh saved, 15 each: 15 x 497.4 = 7,461 g.
    assert send(bill("2026-04", 255), "e2").points == 7_461
    assert points_of(CHEN) == 7_461
    again, fresh = bill_crediting.report(bill("2026-04", 240), source=GRID, event_id="e1")
    assert (again.id, fresh, shown(again)[0]) == (april.id, False, "reversed")
    with pytest.raises(bill_intake.AlreadyReversed):
        send(bill("2026-04", 250, corrects="e1"), "e3")


def test_taking_back_twice_is_taking_back_once(april: Bill) -> None:
    first = back(april)
    assert back(april, "another reason") == first
    assert [one.kind for one in book.entries(ANNA)] == ["earn", "reverse"]


def test_what_was_only_history_is_history_no_more() -> None:
    live_in(ANNA)
    send_history(count=23)
    march = bills.by_event(GRID, "electricity-2026-03-01")
    assert march is not None
    back(march)
    april = send(bill("2026-04", 240))
    assert shown(april) == ("recorded", ("needs_history",), 0)
    # Sent again, the history is complete and April is judged: 40 of 280 kWh, one share of three.
    send(bill("2026-03", 300), "march again")
    assert bills.by_id(april.id).points == 40 * 497_400 // 3 // 1_000


def test_a_correction_taken_back_leaves_no_bill(april: Bill) -> None:
    right = send(bill("2026-04", 270, corrects="e1"), "e2")
    with pytest.raises(bill_intake.AlreadyCorrected):
        back(april)
    back(right)
    assert (points_of(ANNA), shown(april)[1]) == (0, ("bill_corrected",))
    assert send(bill("2026-04", 240), "e3").points == 9_948


def test_an_estimate_taken_back_is_no_use_any_more() -> None:
    live_in(ANNA)
    guess = send(bill("2026-04", 200, estimated=True), "guess")
    assert bills.emissions_between(ANNA, *whole("2026-04")) == {"electricity": 33_160_000}
    back(guess)
    assert bills.emissions_between(ANNA, *whole("2026-04")) == {}
    assert shown(guess) == ("reversed", ("reversed",), 0)


def test_points_spent_before_are_owed(april: Bill) -> None:
    def spend(head: book.Head, now: Any) -> book.Decision:
        wallet = Wallet.load(head.after)
        wallet.spend(9_000)
        return book.Decision(tuple(wallet.lines), {"wallet": wallet.dump()})

    book.post(book.Ask(ANNA, "spend", "spend", "f", clock.now()), spend)
    back(april)
    balance = statements.balance(ANNA)
    assert (balance.available, balance.owed) == (0, 9_000)
    assert (points_of(BO), statements.balance(BO).owed) == (0, 0)


def test_eight_who_take_back_at_once_take_back_once(april: Bill) -> None:
    results = at_once(8, lambda _: back(april).points)
    assert results == [0] * 8
    assert [one.kind for one in book.entries(BO)] == ["earn", "reverse"]


def test_a_correction_and_a_taking_back_at_once_leave_one_of_them(april: Bill) -> None:
    def act(number: int) -> str:
        if number % 2:
            return f"back {back(april).points}"
        return f"right {send(bill('2026-04', 270, corrects='e1'), f'c{number}').points}"

    results = at_once(8, act)
    won = {one for one in results if one not in ("already_corrected", "already_reversed")}
    # Either one correction, 30 kWh saved: 10 x 497.4 g each; or taken back, by whoever asked.
    assert won in ({"right 4974"}, {"back 0"}), results
    assert points_of(ANNA) == (4_974 if won == {"right 4974"} else 0)
    assert len({one.kind for one in book.entries(ANNA)} - {"earn", "reverse"}) == 0
    assert bills.unsettled(clock.now() + timedelta(hours=1), 9) == []
    assert book.verify().problem is None


def test_a_bill_of_the_month_beside_one_being_taken_back_is_credited() -> None:
    live_in(ANNA, BO, CHEN)
    send_history(count=24)
    first = send(bill("2026-04", 100, period_end=date(2026, 4, 15)), "half")
    # The row is stored; what it undoes is not carried out yet.
    bill_intake.take_back(first, reason="wrong", by=GRID, received_at=clock.now())
    assert send(bill("2026-04", 240), "whole").points == 9_948
    with clock.travel(timedelta(minutes=2)):
        assert bill_crediting.sweep(clock.now()) == 1
    # 15 of 30 days of 300 kWh less 100 were 50, of which 45 counted: 15 x 497.4 each, and back.
    earned = [one.refs["points"] for one in book.entries(ANNA)]
    assert earned == [7_461, 9_948, -7_461]


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("module", "step", "call"),
    [
        (bills, "end", 1),
        (bill_crediting, "_post_reversal", 1),
        (bill_crediting, "_post_reversal", 3),
        (bill_crediting, "_wake", 1),
        (bills, "settle", 1),
    ],
    ids=lambda one: getattr(one, "__name__", str(one)),
)
def test_a_taking_back_cut_off_anywhere_is_finished_once(
    monkeypatch: pytest.MonkeyPatch, april: Bill, module: Any, step: str, call: int
) -> None:
    original, calls = getattr(module, step), []

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == call:
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, step, dying)
        with pytest.raises(Killed):
            back(april)
    with clock.travel(timedelta(minutes=2)):
        assert bill_crediting.sweep(clock.now()) == 1
        assert bill_crediting.sweep(clock.now()) == 0
        assert back(april).points == 0
    for resident in (ANNA, BO, CHEN):
        assert (points_of(resident), book.head(resident).seq) == (0, 2)
    assert send(bill("2026-04", 240), "e2").points == 9_948
