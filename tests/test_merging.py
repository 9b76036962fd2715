"""One trip told by several sources is credited once, by its best evidence, whoever tells first.

The clock stands at noon of Wednesday 20 May 2026 in the city. By hand, 48,700 mg a km by bicycle:
3 km are 146,100 mg (146 points), 3.2 km 155,840 (155), 2.5 km 121,750 (121).
"""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import machine
import pytest
from callers import new_phone, partner, resident
from drafts import cleaner_bus, nothing_left_behind, published
from faults.crew import KILLED, Crew, Death
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lives import city

import api.app
from accounting import accounts, book, claims, clock, storage
from accounting.errors import AccountBusy
from footprint import activities, methodology, summaries
from footprint.activities import Activity
from footprint.months import posted
from footprint.replay import differences
from footprint.reviews import Decision
from footprint.rules import Report
from points import crediting, deciding, milestones, restating, statements
from points.crediting import NothingToReverse
from points.wallet import Wallet, consistent

pytestmark = pytest.mark.usefixtures("app")

NOW, TODAY, MAY = city("2026-05-20 12:00"), date(2026, 5, 20), "2026-05"
PHONE, DOCK, CITY_PASS = "app:me", "partner:dock", "partner:pass"
MINUTE = timedelta(minutes=1)
events = (f"event-{number}" for number in itertools.count())


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.travel(NOW - clock.now()):
        yield


@pytest.fixture
def me() -> str:
    return accounts.by_phone(new_phone())


def tell(
    who: str,
    source: str,
    quantity: object = 3,
    at: str = "2026-05-20 08:00",
    *,
    minutes: float | None = 15,
    behaviour: str = "bike_km",
    evidence: str | None = None,
    event: str | None = None,
    **attributes: Any,
) -> Activity:
    """Told by a phone it is of class B, by a partner of class A."""
    start = city(at)
    end = start + timedelta(minutes=minutes) if minutes is not None else None
    what = Report(behaviour, Decimal(str(quantity)), start, end, attributes)
    grade = evidence or ("B" if source == PHONE else "A")
    event = event or next(events)
    return crediting.report(who, what, source=source, event_id=event, evidence=grade)[0]


def now(activity: Activity) -> Activity:
    found = activities.by_id(activity.id)
    assert found is not None
    return found


def shown(activity: Activity) -> tuple[str | None, int, int, str | None, tuple[str, ...]]:
    one = now(activity)
    return one.status, one.mg, one.points, one.merged_into, one.merged_from


def lifetime_mg(who: str) -> int:
    return int(book.head(who).after.get("lifetime_mg", 0))


def cells(who: str, month: str = MAY) -> list[tuple[str, str, int, int, int]]:
    found = summaries.between(who, clock.first_day(month), clock.last_day(month)).cells
    return [(cell.day[8:], cell.evidence, cell.mg, cell.points, cell.count) for cell in found]


def spend(who: str, points: int) -> None:
    def decide(head: book.Head, at: datetime) -> book.Decision:
        wallet = Wallet.load(head.after)
        wallet.advance(at)
        wallet.spend(points)
        return book.Decision(tuple(wallet.lines), {"wallet": wallet.dump()})

    book.post(book.Ask(who, next(events), "spend", "f", NOW), decide)


def moved(who: str) -> dict[str, int]:
    """What the last entry moved into the account's own books."""
    entry = list(book.entries(who))[-1]
    books = {line.book for line in entry.lines if ":" not in line.book}
    return {name: sum(line.amount for line in entry.lines if line.book == name) for name in books}


def all_holds(who: str) -> None:
    """Book, activities, days, a replay of the month and a rebuilt projection say the same."""
    assert book.verify(checks=[consistent]).problem is None
    told = activities.of_resident(who, before=None, limit=100)
    assert sum(one.mg for one in told) == lifetime_mg(who)
    found = summaries.between(who, date(2026, 1, 1), date(2026, 12, 31))
    assert sum(cell.mg for cell in found.cells) == lifetime_mg(who)
    rules = methodology.in_force(TODAY)
    assert differences(posted(who, MAY), MAY, rules, restating.worth) == []
    summaries.rebuild(who)
    assert summaries.between(who, date(2026, 1, 1), date(2026, 12, 31)) == found


# Two sources.


@pytest.fixture(scope="module")
def demo(app: Flask, tmp_path_factory: pytest.TempPathFactory) -> Flask:
    folder = tmp_path_factory.mktemp("demo")
    return api.app.create_app(replace(app.extensions["config"], demo=True, data_dir=folder))


@pytest.mark.parametrize("phone_first", [True, False])
def test_a_resident_sees_both_records_of_a_ride_and_which_one_counts(
    demo: Flask, phone_first: bool
) -> None:
    anna, dock = resident(demo), partner(demo)
    anna.post("/v1/me/links", {"partner_id": dock.id, "external_id": "card-1"})
    ride = {
        "behaviour": "bike_km",
        "quantity": 3,
        "occurred_at": "2026-05-20T08:00:00+08:00",
        "ended_at": "2026-05-20T08:15:00+08:00",
    }

    def phone() -> str:
        told = {**ride, "source_event_id": "p", "evidence": {"kind": "sensor", "recorder": "gps"}}
        answer = anna.post("/v1/activities", told, headers={"X-Firebase-AppCheck": "demo"})
        assert answer.status_code == 201
        return str(answer.get_json()["id"])

    def row() -> str:
        told = {**ride, "quantity": 3.2, "source_event_id": "d", "external_id": "card-1"}
        [result] = dock.post("/v1/feeds/activities", {"activities": [told]}).get_json()["results"]
        assert result["status_code"] == 201
        return str(result["activity"]["id"])

    ids = {}
    for tell_it in (phone, row) if phone_first else (row, phone):
        ids[tell_it] = tell_it()
    seen = {one: anna.get(f"/v1/activities/{ids[one]}").get_json() for one in ids}
    why = {one: anna.get(f"/v1/activities/{ids[one]}/explanation").get_json() for one in ids}
    kept = {name: seen[phone][name] for name in ("status", "reduction_g", "points", "merged_into")}
    assert kept == {"status": "merged", "reduction_g": 0, "points": 0, "merged_into": ids[row]}
    assert [one["code"] for one in seen[phone]["reasons"]] == ["same_trip"]
    assert "merged_into" not in seen[row]
    assert (seen[row]["reduction_g"], seen[row]["merged_from"]) == (Decimal("155.84"), [ids[phone]])
    assert why[phone]["merged"] == {"into": ids[row], "from": []}
    assert why[row]["merged"] == {"into": None, "from": [ids[phone]]}
    assert why[phone]["stands"] == {"reduction_mg": 0, "points": 0}
    assert why[row]["stands"] == {"reduction_mg": 155_840, "points": 155}
    for one in why.values():
        machine.check(one)
    day = anna.get("/v1/me/summary?from=2026-05-20&to=2026-05-20").get_json()
    assert (day["reduction_g"], day["points"]) == (Decimal("155.84"), 155)
    kinds = [one["kind"] for one in anna.get("/v1/me/points/entries").get_json()["items"]]
    assert kinds == (["replace", "earn"] if phone_first else ["earn", "earn"])


def test_better_evidence_that_comes_second_takes_the_place_of_the_first(me: str) -> None:
    phone = tell(me, PHONE)
    assert (phone.status, phone.mg, phone.points) == ("credited", 146_100, 146)
    dock = tell(me, DOCK, "3.2", "2026-05-20 08:01")
    assert shown(dock) == ("credited", 155_840, 155, None, (phone.id,))
    assert shown(phone) == ("merged", 0, 0, dock.id, ())
    assert now(phone).reasons == ("same_trip",)
    first, second = book.entries(me)
    assert (second.kind, second.key) == ("replace", f"activity:{dock.id}")
    # 155,840 - 146,100 mg and 155 - 146 points, in one entry that names both.
    assert moved(me) == {"reduction": 9_740, "pending": 0, "available": 9}
    [replaced] = second.refs["replaces"]
    assert (replaced["activity"], replaced["reverses"]) == (phone.id, first.seq)
    balance = statements.balance(me)
    assert (balance.available, balance.owed, balance.lifetime_earned) == (155, 0, 155)
    assert cells(me) == [("20", "A", 155_840, 155, 1)]
    assert statements.rows(me, before=None, limit=1)[0].points == 9
    all_holds(me)


@pytest.mark.parametrize("second", [(PHONE, "3"), (CITY_PASS, "3.2")])
def test_evidence_no_better_than_the_first_is_merged_at_once(
    me: str, second: tuple[str, str]
) -> None:
    dock = tell(me, DOCK)
    later = tell(me, *second, at="2026-05-20 08:02")
    assert shown(later) == ("merged", 0, 0, dock.id, ())
    assert shown(dock) == ("credited", 146_100, 146, None, (later.id,))
    assert now(later).reasons == ("same_trip",)
    entry = book.by_key(me, f"activity:{later.id}")
    assert entry is not None
    assert (entry.lines, entry.refs["merged_into"]) == ((), dock.id)
    all_holds(me)


def test_a_merger_told_again_changes_nothing(me: str) -> None:
    for source, event in ((PHONE, "p"), (DOCK, "d"), (CITY_PASS, "c")):
        tell(me, source, event=event)
    before, told = book.head(me), activities.of_resident(me, before=None, limit=9)
    for source, event in ((CITY_PASS, "c"), (PHONE, "p"), (DOCK, "d")):
        tell(me, source, event=event)
    for one in told:
        crediting.resume(one)
    assert book.head(me) == before
    assert activities.of_resident(me, before=None, limit=9) == told


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        # The same source tells of two trips at a time, or a resident is on two ways of travelling.
        ({"source": PHONE}, "overlapping_trip"),
        ({"source": DOCK, "behaviour": "ebike_shared_km"}, "overlapping_trip"),
    ],
)
def test_what_is_not_the_same_trip_is_refused(me: str, second: dict[str, Any], reason: str) -> None:
    tell(me, PHONE)
    told = tell(me, at="2026-05-20 08:05", **second)
    assert (told.status, told.reasons, told.merged_into) == ("rejected", (reason,), None)
    assert lifetime_mg(me) == 146_100


def test_trips_that_only_touch_are_two(me: str) -> None:
    tell(me, PHONE)
    assert tell(me, DOCK, 3, "2026-05-20 08:15").mg == 146_100
    assert lifetime_mg(me) == 292_200


def test_another_trip_in_between_stands_in_the_way_of_a_merger(me: str) -> None:
    phone = tell(me, PHONE)
    tell(me, CITY_PASS, 5, "2026-05-20 08:15", behaviour="bus_km", minutes=10)
    dock = tell(me, DOCK, "4", "2026-05-20 08:01", minutes=20)
    assert (dock.status, dock.reasons) == ("rejected", ("overlapping_trip",))
    assert shown(phone) == ("credited", 146_100, 146, None, ())


def test_another_persons_ride_at_that_time_is_another_ride(me: str) -> None:
    tell(me, PHONE)
    other = accounts.by_phone(new_phone())
    assert tell(other, DOCK).status == "credited"
    assert lifetime_mg(me) == lifetime_mg(other) == 146_100


def test_one_order_replaces_the_two_rides_a_phone_saw(me: str) -> None:
    one = tell(me, PHONE, "1.5", "2026-05-20 08:00", minutes=8)
    two = tell(me, PHONE, "1.4", "2026-05-20 08:09", minutes=8)
    # 73,050 + 68,180 = 141,230 mg and 73 + 68 = 141 points; 3 km are 146,100 mg.
    dock = tell(me, DOCK, 3, "2026-05-20 08:00", minutes=18)
    assert moved(me) == {"reduction": 4_870, "pending": 0, "available": 5}
    assert shown(one)[3] == shown(two)[3] == dock.id
    assert set(now(dock).merged_from) == {one.id, two.id}
    assert cells(me) == [("20", "A", 146_100, 146, 1)]
    all_holds(me)


# Less than before.


def test_better_evidence_may_be_worth_less_and_takes_the_difference_back(me: str) -> None:
    phone = tell(me, PHONE)
    dock = tell(me, DOCK, "2.5")
    assert shown(dock)[:3] == ("credited", 121_750, 121)
    # 121,750 - 146,100 and 121 - 146.
    assert moved(me) == {"reduction": -24_350, "available": -25}
    assert statements.balance(me).available == 121
    assert shown(phone)[:3] == ("merged", 0, 0)
    all_holds(me)


def test_a_merger_makes_no_debt_of_points_already_spent(me: str) -> None:
    tell(me, PHONE)
    spend(me, 140)  # 6 of 146 are left.
    dock = tell(me, DOCK, "2.5")
    balance = statements.balance(me)
    assert (balance.available, balance.owed, balance.spent) == (0, 0, 140)
    entry = book.by_key(me, f"activity:{dock.id}")
    assert entry is not None
    # 25 less: 6 are taken, 19 stay with the resident for good.
    [change] = entry.refs["changes"]
    assert (change[6], change[8]) == (-127, 19)
    assert cells(me) == [("20", "A", 121_750, 121, 1), ("20", "B", 0, 19, 0)]
    all_holds(me)
    # Taking the ride back asks for its own 121 points, not for those that were waived.
    crediting.reverse(dock, reason="cancelled", by="partner:dock")
    assert statements.balance(me).owed == 121
    all_holds(me)


def test_points_that_had_matured_stay_mature(me: str) -> None:
    # Buses take two days: told by one partner at once and by a better hand three days later.
    with clock.travel(city("2026-05-17 12:00") - clock.now()):
        appealed = upheld(me, tell(me, PHONE, 5, "2026-05-17 08:00", behaviour="bus_km"))
        assert (appealed.evidence, appealed.points) == ("C", 134)
    tell(me, DOCK, "5.2", "2026-05-17 08:01", behaviour="bus_km")
    balance = statements.balance(me)
    assert (balance.available, balance.pending) == (139, 0)
    all_holds(me)


def upheld(who: str, activity: Activity) -> Activity:
    """Appeal it, and let an operator uphold that."""
    review, _ = deciding.appeal(activity, "It was as I say.")
    deciding.decide(review, Decision(True, "seen", "anna"))
    return now(activity)


# More than two.


def test_three_sources_in_any_order_leave_the_best_of_them(me: str) -> None:
    told = {PHONE: "3", DOCK: "3.2", CITY_PASS: "3.1"}
    for order in itertools.permutations(told):
        who = accounts.by_phone(new_phone())
        made = {source: tell(who, source, told[source]) for source in order}
        # Of the two partners the one that came first stays.
        best = next(source for source in order if source != PHONE)
        others = {one.id for source, one in made.items() if source != best}
        mg = {DOCK: 155_840, CITY_PASS: 150_970}[best]  # 3.1 x 48,700
        assert shown(made[best])[:4] == ("credited", mg, mg // 1_000, None)
        assert set(now(made[best]).merged_from) == others
        assert {now(one).merged_into for one in made.values()} == {made[best].id, None}
        assert lifetime_mg(who) == mg
        all_holds(who)


def test_a_chain_of_ever_better_evidence_names_its_end(me: str) -> None:
    word = upheld(me, tell(me, PHONE, "2.5", evidence="D"))
    assert (word.evidence, word.mg) == ("C", 121_750)
    watch = tell(me, "app:watch", evidence="B")
    assert shown(word)[3] == watch.id
    dock = tell(me, DOCK, "3.2")
    assert shown(word)[3] == shown(watch)[3] == dock.id
    assert set(now(dock).merged_from) == {word.id, watch.id}
    assert lifetime_mg(me) == 155_840
    all_holds(me)


# Caps.


@pytest.mark.parametrize("day", ["2026-05-20", "2026-05-05"])
def test_caps_are_those_of_the_records_that_stand(me: str, day: str) -> None:
    phone = tell(me, PHONE, 10, f"{day} 05:00", minutes=40)
    capped = tell(me, DOCK, 8, f"{day} 06:00", minutes=30)
    # 487,000 and what is left of 730,000 of 389,600.
    assert (phone.mg, capped.mg) == (487_000, 243_000)
    # Without the phone's there is room for 487,000: 9 km are 438,300.
    better = tell(me, CITY_PASS, 9, f"{day} 05:01", minutes=40)
    assert (better.mg, better.status) == (438_300, "credited")
    assert lifetime_mg(me) == 681_300
    # 48,700 more are left of the day: 730,000 - 681,300.
    assert tell(me, DOCK, 5, f"{day} 09:00", minutes=20).mg == 48_700
    all_holds(me)


@pytest.mark.parametrize("day", ["2026-05-20", "2026-05-05"])
def test_a_merged_ride_takes_no_place_in_the_count_of_a_day(me: str, day: str) -> None:
    # Ten rides a day; each is told by phone and dock, and the eleventh ride is one too many.
    for hour in range(11):
        tell(me, PHONE, "0.5", f"{day} {hour:02d}:00", minutes=5)
        ride = tell(me, DOCK, "0.5", f"{day} {hour:02d}:01", minutes=5)
        assert (ride.mg, ride.status) == ((24_350, "credited") if hour < 10 else (0, "capped"))
    assert lifetime_mg(me) == 243_500
    all_holds(me)


def test_a_record_of_another_city_day_is_merged_and_replaces_nothing(me: str) -> None:
    phone = tell(me, PHONE, 3, "2026-05-18 23:55")
    dock = tell(me, DOCK, "3.2", "2026-05-19 00:00")
    # The trip is counted on the 18th; the better record says it began on the 19th.
    assert shown(dock) == ("merged", 0, 0, phone.id, ())
    assert cells(me) == [("18", "B", 146_100, 146, 1)]
    all_holds(me)


# Taking back.


def test_taking_the_record_that_stands_back_takes_the_trip_back(me: str) -> None:
    phone, dock = tell(me, PHONE), tell(me, DOCK, "3.2")
    late = tell(me, CITY_PASS)
    crediting.reverse(dock, reason="cancelled", by="partner:dock")
    assert shown(dock)[:3] == ("reversed", 0, 0)
    assert shown(phone)[0] == shown(late)[0] == "merged"
    assert (lifetime_mg(me), cells(me)) == (0, [])
    assert statements.balance(me).lifetime_earned == 0
    # And room for whoever tells of that time again.
    assert tell(me, CITY_PASS, "3.1").mg == 150_970
    all_holds(me)


@pytest.mark.parametrize("first", [PHONE, DOCK])
def test_a_merged_record_has_nothing_to_take_back(me: str, first: str) -> None:
    made = {first: tell(me, first)}
    second = DOCK if first == PHONE else PHONE
    made[second] = tell(me, second)
    seq = book.head(me).seq
    # Also for one who still carries the record as it was before.
    for phone in (made[PHONE], now(made[PHONE])):
        with pytest.raises(NothingToReverse):
            crediting.reverse(phone, reason="refund", by="operator")
        assert now(made[PHONE]).state == "settled"
    assert book.head(me).seq == seq
    assert shown(made[PHONE])[0] == "merged"
    all_holds(me)


def test_a_record_taken_back_is_in_no_better_ones_way(me: str) -> None:
    phone = tell(me, PHONE)
    crediting.reverse(phone, reason="shaken", by="operator")
    dock = tell(me, DOCK)
    assert shown(dock) == ("credited", 146_100, 146, None, ())
    assert shown(phone)[0] == "reversed"
    all_holds(me)


# Appeals.


def test_an_appeal_against_a_merger_says_that_they_were_two_trips(me: str) -> None:
    phone, dock = tell(me, PHONE), tell(me, DOCK, "3.2")
    assert shown(phone)[0] == "merged"
    again = upheld(me, now(phone))
    assert (again.status, again.mg, again.merged_into) == ("credited", 146_100, None)
    assert lifetime_mg(me) == 301_940
    crediting.reverse(again, reason="no", by="operator")
    assert lifetime_mg(me) == 155_840
    assert shown(dock)[0] == "credited"


def test_an_upheld_appeal_for_weak_evidence_credits_no_trip_twice(me: str) -> None:
    word = tell(me, PHONE, evidence="D")
    assert word.status == "recorded"
    dock = tell(me, DOCK, "3.2")
    assert shown(upheld(me, word))[:4] == ("merged", 0, 0, dock.id)
    assert lifetime_mg(me) == 155_840
    all_holds(me)


# Claims.


def test_an_order_two_partners_tell_of_is_merged_and_stays_claimed(me: str) -> None:
    ride = {"behaviour": "carpool_km", "minutes": 20, "order": "o-1"}
    first = tell(me, DOCK, 10, **ride)
    second = tell(me, CITY_PASS, 10, **ride)
    assert shown(second) == ("merged", 0, 0, first.id, ())
    other = accounts.by_phone(new_phone())
    assert tell(other, DOCK, 10, **ride).reasons == ("already_credited",)
    crediting.reverse(first, reason="cancelled", by="operator")
    assert tell(other, DOCK, 10, **ride).mg == 730_000


def test_an_order_passes_on_to_the_record_that_replaces_it(me: str) -> None:
    ride = {"behaviour": "carpool_km", "minutes": 20}
    word = upheld(me, tell(me, PHONE, 10, evidence="D", order="o-1", **ride))
    assert word.evidence == "C"
    better = tell(me, DOCK, 10, order="o-1", **ride)
    assert shown(better)[:4] == ("credited", 730_000, 730, None)
    assert word.claim is not None
    assert claims.holder(word.claim["kind"], word.claim["value"]) == better.id
    # What the merged one had claimed by another number is held with it, and free with it.
    other = accounts.by_phone(new_phone())
    assert tell(other, DOCK, 10, order="o-1", **ride).reasons == ("already_credited",)
    crediting.reverse(better, reason="cancelled", by="operator")
    assert tell(other, DOCK, 10, order="o-1", **ride).mg == 730_000


# Restating.


def test_what_was_restated_of_a_replaced_ride_goes_with_it(me: str) -> None:
    bus = {"behaviour": "bus_km", "at": "2026-05-17 08:00"}
    word = upheld(me, tell(me, PHONE, 5, **bus))
    with clock.travel(city("2026-06-10 12:00") - clock.now()), nothing_left_behind():
        published(cleaner_bus())  # 30.0 g/km
        asked = restating.ask("QZ-RES-2026.2", MAY, None, "anna", alone=False)
        run = restating.approve(asked.id, "bo", alone=False)
        restating.restate(me, run)
        # 5 x 30,000
        assert (lifetime_mg(me), statements.balance(me).available) == (150_000, 150)
        better = tell(me, DOCK, "5.2", **bus)
        # Judged by its day's version, 26.9 g/km.
        assert (better.mg, better.points) == (139_880, 139)
        assert moved(me) == {"reduction": -10_120, "available": -11}
        assert cells(me) == [("17", "A", 139_880, 139, 1)]
        assert shown(word)[0] == "merged"
        # Another run brings the one that stands along: 5.2 x 30,000.
        again = restating.ask("QZ-RES-2026.2", MAY, None, "anna", alone=False)
        restating.restate(me, restating.approve(again.id, "bo", alone=False))
        assert cells(me) == [("17", "A", 156_000, 156, 1)]
        assert restating.restate(me, run) is not None
        assert lifetime_mg(me) == 156_000
        crediting.reverse(better, reason="refund", by="operator")
        assert (lifetime_mg(me), cells(me), statements.balance(me).available) == (0, [], 0)


# Milestones.


def test_a_milestone_is_reached_by_what_a_merger_adds(me: str) -> None:
    tell(me, CITY_PASS, 35, "2026-05-20 06:00", behaviour="bus_km", minutes=50)
    tell(me, PHONE, 1, minutes=8)
    assert milestones.of_resident(me)[0] == []
    # 941,500 and 48,700 are short of a kilogram; with 1.3 km, 63,310, it is passed.
    tell(me, DOCK, "1.3", minutes=8)
    assert lifetime_mg(me) == 1_004_810
    assert [one.kg for one in milestones.of_resident(me)[0]] == [1]


# At the same instant, and cut off.


def test_two_sources_from_eight_threads_are_credited_once(me: str) -> None:
    def one(number: int) -> Activity:
        source, event = ((PHONE, "p"), (DOCK, "d"))[number % 2]
        for _ in range(30):
            try:
                return tell(me, source, 3, event=event)
            except AccountBusy:
                continue
        raise AssertionError("still busy")

    with ThreadPoolExecutor(8) as pool:
        told = {activity.id for activity in pool.map(one, range(8))}
    phone, dock = (
        activities.by_event(source, event) for source, event in ((PHONE, "p"), (DOCK, "d"))
    )
    assert phone is not None
    assert dock is not None
    assert told == {phone.id, dock.id}
    assert shown(dock) == ("credited", 146_100, 146, None, (phone.id,))
    assert shown(phone) == ("merged", 0, 0, dock.id, ())
    assert lifetime_mg(me) == 146_100
    all_holds(me)


STEPS = [
    Death("accounting.book:post", "before"),
    Death("accounting.book:post", "after"),
    Death("footprint.activities:settle", "before"),
    Death("footprint.activities:settle", "after"),
    Death("footprint.activities:absorb", "after"),
    Death("footprint.activities:point", "after"),
    Death("footprint.activities:settle", "before", 2),
    Death("footprint.activities:settle", "after", 2),
]


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("rescue", ["retry", "sweep", "the phone again"])
def test_a_merger_cut_off_at_any_step_is_finished(
    crew: Crew, me: str, step: Death, rescue: str
) -> None:
    phone = tell(me, PHONE, minutes=None, event="p")
    args = {"behaviour": "bike_km", "quantity": "3.2", "at": "2026-05-20T00:00:00+00:00"}
    assert crew.run("report", step, resident=me, event_id="d", **args, source=DOCK) == KILLED
    if rescue == "the phone again":
        tell(me, PHONE, minutes=None, event="p")
    if rescue != "retry":
        with clock.travel(2 * MINUTE):
            crediting.sweep(clock.now())
            assert crediting.sweep(clock.now()) == 0
    dock = tell(me, DOCK, "3.2", minutes=None, event="d")
    assert shown(dock) == ("credited", 155_840, 155, None, (phone.id,))
    assert shown(phone) == ("merged", 0, 0, dock.id, ())
    assert [entry.kind for entry in book.entries(me)] == ["earn", "replace"]
    all_holds(me)


def test_between_the_entry_and_its_outcomes_the_replaced_one_cannot_be_taken_back(
    crew: Crew, me: str
) -> None:
    phone = tell(me, PHONE, minutes=None)
    args = {"behaviour": "bike_km", "quantity": "3.2", "at": "2026-05-20T00:00:00+00:00"}
    step = Death("accounting.book:post", "after")
    assert crew.run("report", step, resident=me, event_id="d", **args, source=DOCK) == KILLED
    assert shown(phone)[0] == "credited"
    with pytest.raises(NothingToReverse):
        crediting.reverse(now(phone), reason="refund", by="operator")
    with clock.travel(2 * MINUTE):
        crediting.sweep(clock.now())
    assert shown(phone)[0] == "merged"
    all_holds(me)


@pytest.mark.parametrize(
    "step",
    [
        Death("footprint.activities:reopen", "after"),
        Death("accounting.book:post", "after"),
        Death("accounting.claims:release", "after"),
    ],
    ids=str,
)
def test_a_taking_back_cut_off_is_finished_or_was_none(crew: Crew, me: str, step: Death) -> None:
    ride = tell(me, DOCK)
    assert crew.run("reverse", step, activity_id=ride.id) == KILLED
    with clock.travel(2 * MINUTE):
        assert crediting.sweep(clock.now()) == 1
        assert crediting.sweep(clock.now()) == 0
    in_book = step.at != "footprint.activities:reopen"
    assert shown(ride)[:3] == (("reversed", 0, 0) if in_book else ("credited", 146_100, 146))
    assert lifetime_mg(me) == (0 if in_book else 146_100)
    all_holds(me)


# Any of it.


# One is kept in the state, the other is summed from its entries.
DAYS = ("2026-05-20", "2026-05-05")


@st.composite
def rides(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rides of two days by bicycle and bus, told by three sources, many of them overlapping."""
    told = []
    for _ in range(draw(st.integers(2, 8))):
        told.append(
            {
                "source": draw(st.sampled_from((PHONE, DOCK, CITY_PASS))),
                "behaviour": draw(st.sampled_from(("bike_km", "bike_km", "ebike_shared_km"))),
                "quantity": draw(st.sampled_from(("1", "2.4", "4.9"))),
                "at": f"{draw(st.sampled_from(DAYS))} 08:{draw(st.integers(0, 29)):02d}",
                "back": draw(st.booleans()) and draw(st.booleans()),
            }
        )
    return told


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(told=rides())
def test_whatever_is_told_and_taken_back_the_accounts_agree(told: list[dict[str, Any]]) -> None:
    who = accounts.by_phone(new_phone())
    for one in told:
        ride = tell(who, minutes=15, **{name: one[name] for name in one if name != "back"})
        if one["back"] and ride.status in ("credited", "capped"):
            crediting.reverse(ride, reason="x", by="y")
    all_holds(who)
    assert storage.database()["activities"].count_documents({"state": "received"}) == 0
    standing = sorted(
        (one.start, one.over)
        for one in activities.of_resident(who, before=None, limit=100)
        if one.status in ("credited", "capped")
    )
    for (_, over), (start, _) in itertools.pairwise(standing):
        assert over <= start, "two of the same time are credited"
    assert statements.balance(who).owed == 0
