"""What holds of every life, whatever happens in it and in whatever order: on the real book.

Hypothesis makes the lives; CI makes more of them (`TANHUI_FUZZ_EXAMPLES`). Reports come at noon of
Sunday 31 May 2026; each has an hour of its own, so that no two trips overlap unless they mean to.
"""

import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import machine
import pytest
from flask import Flask
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from lives import at, city

from accounting import book, links
from footprint import methodology, summaries
from footprint.activities import Activity
from footprint.rules import Report
from points import crediting, explaining, feed
from points.crediting import NothingToReverse
from points.feed import Partner, Row
from points.wallet import Wallet, consistent

pytestmark = pytest.mark.usefixtures("app")

EXAMPLES = int(os.environ.get("TANHUI_FUZZ_EXAMPLES", "8"))
some = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
BEHAVIOURS = methodology.in_force(date(2026, 5, 31)).behaviours
REPORTED = sorted(one.code for one in BEHAVIOURS.values() if one.enabled and not one.from_bills)
_numbers = itertools.count()


@pytest.fixture(autouse=True)
def _end_of_may() -> Iterator[None]:
    with at("2026-05-31 12:00"):
        yield
    assert book.verify(checks=[consistent]).problem is None


def someone() -> str:
    return f"res_p{next(_numbers)}"


def quantities(code: str) -> st.SearchStrategy[Decimal]:
    """Quantities that one record of the behaviour can have."""
    behaviour = BEHAVIOURS[code]
    if behaviour.formula == "capped_steps":
        return st.integers(1, 60_000).map(Decimal)
    if behaviour.counts_quantity:
        return st.just(Decimal(1)) if behaviour.claim else st.integers(1, 4).map(Decimal)
    low = behaviour.plausible.quantity_min or Decimal("0.000001")
    high = min(behaviour.plausible.quantity_max or Decimal(20), Decimal(60))
    return st.decimals(low, high, places=6)


def attributes(code: str) -> dict[str, Any]:
    """What a behaviour asks for, never the same twice."""
    number = next(_numbers)
    values: dict[str, Any] = {
        "amount_fen": 500,
        "billing_month": "2026-04",
        **{
            name: f"{name}-{number}"
            for name in ("vehicle", "order", "card", "card_product", "meter_account")
        },
    }
    return {name: values[name] for name in BEHAVIOURS[code].required}


@st.composite
def happenings(draw: st.DrawFn, codes: list[str], days: tuple[int, ...]) -> Report:
    code = draw(st.sampled_from(codes))
    start = city(f"2026-05-{draw(st.sampled_from(days)):02d} 00:00")
    return Report(code, draw(quantities(code)), start, None, attributes(code))


def lives(codes: list[str], days: tuple[int, ...], most: int) -> st.SearchStrategy[list[Report]]:
    """Up to `most` happenings, each in an hour of its own."""
    return st.lists(happenings(codes, days), min_size=1, max_size=most).map(
        lambda life: [
            replace(one, start=one.start + timedelta(hours=hour)) for hour, one in enumerate(life)
        ]
    )


def tell(who: str, what: Report, event: str | None = None) -> Activity:
    event = event or f"p{next(_numbers)}"
    return crediting.report(who, what, source="city", event_id=event, evidence="A")[0]


def total_mg(who: str) -> int:
    return int(book.head(who).after.get("lifetime_mg", 0))


@some
@given(life=lives(REPORTED, (28, 29, 30), 12), undone=st.sets(st.integers(0, 11), max_size=4))
def test_nothing_is_ever_negative_and_every_number_is_explained(
    app: Flask, life: list[Report], undone: set[int]
) -> None:
    who = someone()
    done = [tell(who, what) for what in life]
    assert all(one.mg >= 0 and one.points >= 0 for one in done)
    for number in sorted(undone & set(range(len(done)))):
        try:
            done[number] = crediting.reverse(done[number], reason="refund", by="op")
        except NothingToReverse:
            assert done[number].mg == 0
    stands = {"reduction_mg": 0, "points": 0}
    for activity, language in itertools.product(done, ("zh", "en")):
        told = app.json.loads(app.json.dumps(explaining.of_activity(activity, language)))  # type: ignore[arg-type]
        machine.check(told)
        if language == "en":
            stands = {name: stands[name] + told["stands"][name] for name in stands}
    wallet = Wallet.load(book.head(who).after)
    assert stands == {"reduction_mg": total_mg(who), "points": wallet.earned}
    cells = summaries.between(who, date(2026, 5, 1), date(2026, 5, 31)).cells
    assert all(min(cell.mg, cell.points, cell.count) >= 0 for cell in cells)
    assert sum(cell.mg for cell in cells) == total_mg(who)
    assert min(wallet.available, wallet.pending_points, wallet.owed_points, wallet.earned) >= 0


@some
@given(data=st.data(), code=st.sampled_from(REPORTED))
def test_more_is_never_worth_less(data: st.DataObject, code: str) -> None:
    """Two people on an empty day, one did more; below every cap it is worth more by the factor."""
    less, more = sorted((data.draw(quantities(code)), data.draw(quantities(code))))
    start = city("2026-05-30 08:00")
    low, high = (
        tell(someone(), Report(code, quantity, start, None, attributes(code)))
        for quantity in (less, more)
    )
    assert low.mg <= high.mg
    assert low.points <= high.points
    if not high.reasons:
        behaviour = BEHAVIOURS[code]
        exact = (more - less) * behaviour.mg_num / behaviour.mg_den
        assert abs(high.mg - low.mg - exact) <= 1


# Behaviours whose caps are of grams alone, or of counts a handful of records cannot reach.
FREE = ["walk_steps", "bike_km", "bus_km", "metro_km", "ev_km", "recycle_kg", "mobile_pay_offline"]


@some
@given(data=st.data(), life=lives(FREE, (30,), 6), stop=st.booleans())
def test_a_day_is_worth_the_same_in_whatever_order_it_arrives(
    data: st.DataObject, life: list[Report], stop: bool
) -> None:
    if stop:
        start = city("2026-05-30 23:00")
        life = [*life, Report("car_stop_day", Decimal(1), start, None, attributes("car_stop_day"))]
    counted = [one for one in life if one.behaviour in ("bus_km", "metro_km", "recycle_kg")]
    assume(all(sum(1 for b in counted if b.behaviour == a.behaviour) <= 3 for a in counted))
    assume(sum(one.quantity for one in life if one.behaviour == "mobile_pay_offline") <= 10)
    totals = []
    for order in (life, data.draw(st.permutations(life))):
        who = someone()
        for what in order:
            # The same things happen to another person, so with numbers of their own.
            tell(who, replace(what, attributes=attributes(what.behaviour)))
        totals.append(total_mg(who))
    assert totals[0] == totals[1]


CITY = Partner("city")


@some
@given(life=lives(REPORTED, (29, 30), 10))
def test_a_batch_is_what_its_rows_are_one_by_one_and_a_replay_changes_nothing(
    life: list[Report],
) -> None:
    together, alone = someone(), someone()
    for who in (together, alone):
        links.link(who, CITY.id, who)
    batch = [Row(together, f"b{next(_numbers)}", what) for what in life]
    singles = [
        Row(alone, f"s{next(_numbers)}", replace(what, attributes=attributes(what.behaviour)))
        for what in life
    ]
    taken = [feed.take(CITY, batch), [feed.take(CITY, [row])[0] for row in singles]]
    outcomes = [
        [
            (one.activity.status, one.activity.mg, one.activity.points, one.activity.reasons)
            for one in result
            if one.activity is not None
        ]
        for result in taken
    ]
    assert len(outcomes[0]) == len(life)
    assert outcomes[0] == outcomes[1]
    states = [book.head(who).after for who in (together, alone)]
    for name in ("balances", "lifetime_mg", "wallet"):
        assert states[0][name] == states[1][name]
    before = book.head(together)
    again = feed.take(CITY, batch)
    assert [one.activity for one in again] == [one.activity for one in taken[0]]
    assert not any(one.fresh for one in again)
    assert book.head(together) == before
