"""Funders and campaigns: two operators agree, records put in force, accounts earn by them."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from typing import Any

import pytest
from callers import Caller, machine, resident, said
from flask import Flask
from lives import at, city, did, spent

from accounting import accounts, book, clients, clock, storage, tokens
from accounting.clients import Kind
from footprint import grade, summaries
from points import campaigns, crediting, earning, statements, terms
from points.wallet import consistent

NOON = "2026-05-20 12:00"
LEAD = terms.LEAD
MS = timedelta(milliseconds=1)
BANK: dict[str, Any] = {
    "name": {"zh": "衢江农商银行", "en": "Qujiang Rural Bank"},
    "kind": "bank",
    "fen_per_1000_points": 300,
    "budget_fen": 3_000,
}
DOUBLE: dict[str, Any] = {
    "name": {"zh": "公交双倍月", "en": "Double bus month"},
    "multiplier": 2,
    "first_day": "2026-05-20",
    "last_day": "2026-05-31",
    "behaviours": ["bus_km"],
}
DAY = date(2026, 5, 20)
RIDE = "2026-05-20 08:00"
_people = iter(range(10_000))


@pytest.fixture(autouse=True)
def _noon(app: Flask) -> Iterator[None]:
    terms.forget()
    with at(NOON):
        yield
    terms.forget()


@pytest.fixture
def anna(app: Flask) -> Caller:
    return machine(app, Kind.OPERATOR)


@pytest.fixture
def bo(app: Flask) -> Caller:
    return machine(app, Kind.OPERATOR)


def someone() -> str:
    return accounts.by_phone(f"+86139{next(_people):08d}")


def trusted_with(app: Flask, area: str) -> Caller:
    """An operator for a part of the programme."""
    client, _ = clients.create_client(Kind.OPERATOR, area, scopes=(f"operator:{area}",))
    token, _ = tokens.issue_client_token(client, frozenset(client.scopes))
    return Caller(app.test_client(), client.subject_id, token)


def agreed(anna: Caller, bo: Caller, path: str, body: dict[str, Any]) -> str:
    """Proposed by one, approved by the other; in force when this returns. The new id."""
    made = anna.post(f"/v1/operator/{path}", body)
    assert made.status_code == 201, made.text
    new_id: str = made.get_json()["funder_id" if path == "funders" else "campaign_id"]
    assert bo.post(f"/v1/operator/{path}/{new_id}/approve").status_code == 200
    return new_id


def bank(anna: Caller, bo: Caller, **changes: Any) -> str:
    return agreed(anna, bo, "funders", BANK | changes)


def campaign(anna: Caller, bo: Caller, funder: str, **changes: Any) -> str:
    return agreed(anna, bo, "campaigns", DOUBLE | {"funder_id": funder} | changes)


def later(by: timedelta = LEAD) -> Any:
    return clock.travel(by)


def entry_of(who: str) -> book.Entry:
    return list(book.entries(who))[-1]


def paid(who: str) -> list[tuple[str, str | None, int]]:
    return [(part[1], part[3], part[0]) for part in entry_of(who).refs["parts"]]


def the_books_hold() -> None:
    assert book.verify(checks=(consistent,)).problem is None


# Agreeing.


def test_a_funder_pays_only_after_another_operator_has_approved(anna: Caller, bo: Caller) -> None:
    made = anna.post("/v1/operator/funders", BANK).get_json()
    assert (made["state"], made["needs_approval"], made["pays_permille"]) == ("proposed", True, 0)
    path = f"/v1/operator/funders/{made['funder_id']}"
    assert said(anna.post(f"{path}/approve")) == (403, "second_operator_needed")
    ready = bo.post(f"{path}/approve").get_json()
    assert (ready["state"], ready["needs_approval"]) == ("open", False)
    # The record is ten seconds ahead of everybody.
    assert ready["pays_permille"] == 0
    with later():
        assert anna.get(path).get_json()["pays_permille"] == 1_000
    again = bo.post(f"{path}/approve").get_json()
    assert again == ready
    [record] = anna.get(f"{path}/rates").get_json()["items"]
    assert (record["record"], record["reason"]) == (f"{made['funder_id']}@1", "opened")


def test_changes_wait_one_at_a_time_and_are_in_the_audit(anna: Caller, bo: Caller) -> None:
    funder = bank(anna, bo)
    path = f"/v1/operator/funders/{funder}"
    change = {"budget_points": 5_000, "reason": "less money this year"}
    waiting = anna.patch(path, change).get_json()
    assert (waiting["budget_points"], waiting["proposed"]["budget_points"]) == (None, 5_000)
    assert said(bo.patch(path, change)) == (409, "proposal_waiting")
    declined = bo.post(f"{path}/decline", {"reason": "there is enough"}).get_json()
    assert (declined["budget_points"], declined["proposed"]) == (None, None)
    assert said(bo.post(f"{path}/decline", {"reason": "again"})) == (409, "nothing_proposed")
    anna.patch(path, change)
    assert bo.post(f"{path}/approve").get_json()["budget_points"] == 5_000
    rows = anna.get(f"/v1/operator/audit?subject={funder}").get_json()["items"]
    assert [row["action"] for row in rows][::-1] == [
        "funders proposed",
        "funders approved",
        "funders change proposed",
        "funders change declined",
        "funders change proposed",
        "funders approved",
    ]
    assert rows[0]["before"]["budget_points"] is None
    assert rows[0]["after"]["budget_points"] == 5_000
    assert rows[0]["reason"] == "less money this year"


def test_the_city_is_a_funder_from_the_start_and_can_be_given_a_budget(
    anna: Caller, bo: Caller
) -> None:
    [city_itself] = anna.get("/v1/operator/funders").get_json()["items"]
    assert (city_itself["funder_id"], city_itself["fen_per_1000_points"]) == ("city", 200)
    assert (city_itself["budget_fen"], city_itself["pays_permille"]) == (None, 1_000)
    anna.patch("/v1/operator/funders/city", {"budget_fen": 10**9, "reason": "the year's budget"})
    assert bo.post("/v1/operator/funders/city/approve").get_json()["budget_fen"] == 10**9
    newest = bank(anna, bo)
    pages = []
    cursor = ""
    while cursor is not None:
        answer = anna.get(f"/v1/operator/funders?limit=1&cursor={cursor}").get_json()
        pages += [one["funder_id"] for one in answer["items"]]
        cursor = answer["next_cursor"]
    assert pages == [newest, "city"]


def test_two_operators_approve_at_once_and_one_record_is_written(anna: Caller, bo: Caller) -> None:
    made = anna.post("/v1/operator/funders", BANK).get_json()
    path = f"/v1/operator/funders/{made['funder_id']}"
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: bo.post(f"{path}/approve").status_code, range(4)))
    assert answers == [200] * 4
    assert len(anna.get(f"{path}/rates").get_json()["items"]) == 1


def test_a_request_sent_twice_proposes_once(anna: Caller) -> None:
    first = anna.post("/v1/operator/funders", BANK, key="bank-1").get_json()
    # The answer was lost before it was kept: the row it made is found by the request.
    storage.database()["idempotency"].delete_many({})
    again = anna.post("/v1/operator/funders", BANK, key="bank-1").get_json()
    assert again["funder_id"] == first["funder_id"]
    assert len(anna.get("/v1/operator/funders").get_json()["items"]) == 2


def test_a_campaign_whose_record_a_crash_left_out_is_put_in_force_by_the_sweep(
    anna: Caller, bo: Caller
) -> None:
    name = campaign(anna, bo, bank(anna, bo))
    # As if the process had died between the approval and the record.
    storage.database()["campaign_terms"].delete_many({})
    storage.database()["campaigns"].update_one({"_id": name}, {"$unset": {"recorded": ""}})
    assert campaigns.sweep(clock.now()) == 1
    assert campaigns.sweep(clock.now()) == 0
    assert [one.name for one in terms.refresh().campaigns] == [f"{name}@1"]


@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [
        ("funders", BANK | {"fen_per_1000_points": 0}, "/fen_per_1000_points"),
        ("funders", BANK | {"budget_fen": -1}, "/budget_fen"),
        ("funders", BANK | {"kind": "bakery"}, "/kind"),
        ("funders", BANK | {"slows_at_percent": 101}, "/slows_at_percent"),
        ("funders", BANK | {"name": {"zh": "行"}}, "/name/en"),
        ("campaigns", DOUBLE | {"funder_id": "nobody"}, "/funder_id"),
        ("campaigns", DOUBLE | {"funder_id": "city", "multiplier": 1}, "/multiplier"),
        ("campaigns", DOUBLE | {"funder_id": "city", "multiplier": "2"}, "/multiplier"),
        ("campaigns", DOUBLE | {"funder_id": "city", "behaviours": ["fly"]}, "/behaviours"),
        ("campaigns", DOUBLE | {"funder_id": "city", "first_day": "2026-05-19"}, "/first_day"),
        ("campaigns", DOUBLE | {"funder_id": "city", "last_day": "2026-05-19"}, "/last_day"),
        ("campaigns", DOUBLE | {"funder_id": "city", "grades": ["gold"]}, "/grades/0"),
        ("campaigns", DOUBLE | {"funder_id": "city", "paused": True}, "/paused"),
        ("campaigns", DOUBLE | {"funder_id": "city", "day_points_max": 0}, "/day_points_max"),
    ],
)
def test_bad_terms_are_refused_by_field(
    anna: Caller, path: str, body: dict[str, Any], pointer: str
) -> None:
    answer = anna.post(f"/v1/operator/{path}", body)
    assert said(answer) == (422, "validation_failed"), answer.text
    assert [error["pointer"] for error in answer.get_json()["errors"]] == [pointer]


def test_an_operator_of_another_area_is_turned_away(app: Flask) -> None:
    support, money = (trusted_with(app, area) for area in ("support", "funders"))
    for path in ("funders", "campaigns"):
        assert said(support.get(f"/v1/operator/{path}")) == (403, "forbidden")
        assert money.get(f"/v1/operator/{path}").status_code == 200
    assert said(resident(app).get("/v1/operator/funders")) == (403, "forbidden")


# Earning.


def test_a_campaign_pays_its_bonus_from_its_own_funder_and_says_so(
    app: Flask, anna: Caller, bo: Caller
) -> None:
    funder = bank(anna, bo)
    name = campaign(anna, bo, funder, multiplier=1.5)
    rider = resident(app)
    with later():
        ride = did(rider.id, "bus_km", "5.2", RIDE)
        # 139.88 g x 1.5 = 209.82 points, of which the city pays 139.
        assert ride.points == 209
        assert paid(rider.id) == [("city", None, 139), (funder, f"{name}@1", 70)]
        entry = entry_of(rider.id)
        assert (entry.amount("points", "issued:city"), entry.amount("points", "pending")) == (
            -139,
            209,
        )
        told = rider.get(
            f"/v1/activities/{ride.id}/explanation", headers={"Accept-Language": "en"}
        ).get_json()["points"]
        assert told["text"] == (
            "139.88 g x 1 points a gram, rounded down: 139 points, paid by city. "
            f"Campaign {name}@1: 0.5 points a gram more, 70 points of the sum rounded down, "
            f"paid by {funder}."
        )
        crediting.reverse(ride, reason="refund", by="op")
    assert statements.balance(rider.id).lifetime_earned == 0
    assert entry_of(rider.id).amount("points", f"issued:{funder}") == 70
    the_books_hold()


def test_terms_begin_ten_seconds_after_they_were_agreed_on(anna: Caller, bo: Caller) -> None:
    funder = bank(anna, bo)
    with at(city(NOON) + timedelta(minutes=1)):
        campaign(anna, bo, funder)
        asked = storage.database()["campaign_terms"].find_one()["applies_from"] - LEAD
    early, exact = someone(), someone()
    with at(asked + LEAD - timedelta(seconds=1)):
        assert did(early, "bus_km", "5.2", RIDE).points == 139
    with at(asked + LEAD + timedelta(seconds=1)):
        assert did(exact, "bus_km", "5.2", RIDE).points == 279


def test_a_retry_after_the_terms_changed_has_the_first_answer(anna: Caller, bo: Caller) -> None:
    rider = someone()
    ride = did(rider, "bus_km", "5.2", RIDE)
    campaign(anna, bo, bank(anna, bo))
    with later():
        assert crediting.credit(ride, f"activity:{ride.id}").points == 139
        assert len(list(book.entries(rider))) == 1


def test_a_paused_campaign_gives_nothing_and_goes_on_afterwards(anna: Caller, bo: Caller) -> None:
    name = campaign(anna, bo, bank(anna, bo))
    path = f"/v1/operator/campaigns/{name}"
    anna.patch(path, {"paused": True, "reason": "too many rides"})
    assert bo.post(f"{path}/approve").get_json()["state"] == "paused"
    with later(2 * LEAD):
        assert did(someone(), "bus_km", "5.2", RIDE).points == 139
        anna.patch(path, {"paused": False, "reason": "go on"})
        assert bo.post(f"{path}/approve").get_json()["state"] == "running"
        with later():
            rider = someone()
            did(rider, "bus_km", "5.2", RIDE)
            assert paid(rider)[1][1] == f"{name}@3"


def test_a_campaign_is_for_whom_it_names(app: Flask, anna: Caller, bo: Caller) -> None:
    campaign(anna, bo, "city", districts=["柯城区"], new_within_days=30, grades=["unrated"])
    inside, elsewhere, ungraded = resident(app), resident(app), resident(app)
    for who, district in ((inside, "柯城区"), (elsewhere, "衢江区"), (ungraded, "柯城区")):
        who.patch("/v1/me", {"district": district})
    for who in (inside, elsewhere):
        grade.grade_now(who.id)
    with later():
        given = [did(who.id, "bus_km", "5.2", RIDE).points for who in (inside, elsewhere, ungraded)]
    # Twice 139.88 for who lives there, is new and has the grade.
    assert given == [279, 139, 139]
    with at("2026-06-19 12:00"):
        # Joined on 20 May: on the 18th of June it is day 30, on the 19th day 31.
        storage.database()["campaign_terms"].update_one(
            {}, {"$set": {"terms.last_day": "2026-06-30"}}
        )
        terms.forget()
        assert did(inside.id, "bus_km", "5.2", "2026-06-18 08:00").points == 279
        assert did(inside.id, "bus_km", "5.2", "2026-06-19 08:00").points == 139


# The bonus one resident can have.


def test_the_bonus_of_a_day_and_of_a_campaign_end_exactly(anna: Caller, bo: Caller) -> None:
    name = campaign(anna, bo, "city", first_day="2026-05-20", day_points_max=200,
                    total_points_max=250)  # fmt: skip
    rider = someone()
    with at("2026-05-21 12:00"):
        rides = [did(rider, "bus_km", "5.2", f"2026-05-20 {hour:02d}:00") for hour in (6, 8, 10)]
        # 139 + 140 of the sum, then what is left of 200, then nothing.
        assert [ride.points for ride in rides] == [279, 139 + 60, 139]
        assert [ride.reasons for ride in rides] == [(), ("campaign_cap",), ("campaign_cap",)]
        next_day = did(rider, "bus_km", "5.2", "2026-05-21 08:00")
        assert next_day.points == 139 + 50
        # A reversal reopens room for what comes later.
        crediting.reverse(rides[0], reason="refund", by="op")
        assert did(rider, "bus_km", "5.2", "2026-05-21 10:00").points == 279
        assert entry_of(rider).after["campaigns"][name]["total"] == 250
    the_books_hold()


def test_a_late_row_counts_on_its_own_day(anna: Caller, bo: Caller) -> None:
    campaign(anna, bo, "city", day_points_max=200)
    rider = someone()
    with at("2026-05-20 23:00"):
        assert did(rider, "bus_km", "5.2", "2026-05-20 08:00").points == 279
    with at("2026-05-28 12:00"):
        # The state keeps three days; what the 20th has is summed from its entries.
        assert did(rider, "bus_km", "5.2", "2026-05-20 12:00").points == 139 + 60
        assert did(rider, "bus_km", "5.2", "2026-05-20 16:00").points == 139
        days = entry_of(rider).after["campaigns"]
        assert [one["days"] for one in days.values()] == [{}]
    the_books_hold()


def test_eight_threads_at_one_account_share_the_cap_of_a_campaign(anna: Caller, bo: Caller) -> None:
    name = campaign(anna, bo, "city", day_points_max=500)
    rider = someone()
    together = threading.Barrier(8)

    def ride(number: int) -> int:
        together.wait()
        return did(rider, "bus_km", "5.2", f"2026-05-20 {number:02d}:00", line=str(number)).points

    with later(), ThreadPoolExecutor(8) as pool:
        points = sum(pool.map(ride, range(8)))
    # Six rides a day are credited: 6 x 139 of the base, and 500 of a bonus of 6 x 140.
    assert points == 6 * 139 + 500
    assert entry_of(rider).after["campaigns"][name]["total"] == 500
    the_books_hold()


@pytest.mark.parametrize(
    ("policy", "available", "owed", "waived"),
    # 139 points of the city and 140 of the bank, of which the city's 100 were spent. The base takes
    # 39 and 100 of the bank's 140; of the bonus of 140 there are 40 left.
    [("pending_only", 40, 0, 140), ("within_balance", 0, 0, 100), ("owed", 0, 100, 0)],
)
def test_a_bonus_is_taken_back_as_its_campaign_says(
    anna: Caller, bo: Caller, policy: str, available: int, owed: int, waived: int
) -> None:
    campaign(anna, bo, bank(anna, bo), reversal_policy=policy)
    rider = someone()
    with at("2026-05-21 12:00"):
        ride = did(rider, "bus_km", "5.2", RIDE)
    with at("2026-05-23 12:00"):
        spent(rider, 100)
        # Reversed with what its policies leave; saying it again changes nothing.
        for _ in range(2):
            reversed_ = crediting.reverse(ride, reason="refund", by="op")
            assert (reversed_.status, reversed_.points) == ("reversed", waived)
        balance = statements.balance(rider)
        assert (balance.available, balance.owed) == (available, owed)
        assert sum(cell.points for cell in summaries.between(rider, DAY, DAY).cells) == waived
    the_books_hold()


def test_the_statement_names_the_campaign_and_what_each_funder_gave(
    app: Flask, anna: Caller, bo: Caller
) -> None:
    funder = bank(anna, bo)
    name = campaign(anna, bo, funder)
    with at("2026-05-21 12:00"):
        me = resident(app)
        did(me.id, "bus_km", "5.2", RIDE)
        [row] = me.get("/v1/me/points/entries").get_json()["items"]
    # 5.2 x 26,900 mg are 139.88 points of the city; 279.76 together, so 140 of the bank.
    assert (row["points"], row["rule"]) == (279, "QZ-PTS-2026.1")
    assert row["campaigns"] == [{"campaign": f"{name}@1", "funder": funder, "points": 140}]
    assert {one["funder"]: one["points"] for one in row["funders"]} == {"city": 139, funder: 140}


# Trying out.


def test_a_draft_campaign_says_who_gains_and_what_it_costs(
    app: Flask, anna: Caller, bo: Caller
) -> None:
    funder = bank(anna, bo)
    rider, walker, idle = someone(), someone(), someone()
    with at("2026-05-21 12:00"):
        did(rider, "bus_km", "5.2", "2026-05-20 08:00")
        gone = did(rider, "bus_km", "7", "2026-05-20 11:00")
        crediting.reverse(gone, reason="refund", by="op")
        did(rider, "bus_km", "10", "2026-05-21 08:00")
        did(walker, "metro_km", "10", "2026-05-21 08:00")
    entries = storage.database()["entries"].count_documents({})
    with at("2026-06-02 12:00"):
        wanted = DOUBLE | {"funder_id": funder, "multiplier": 1.5, "day_points_max": 100}
        wanted |= {"first_day": "2026-07-01", "last_day": "2026-07-31"}
        carl = machine(app, Kind.OPERATOR)
        answer = carl.post("/v1/operator/earning/preview", {"campaign": wanted})
    told = answer.get_json()
    # 139.88 x 0.5: 209 - 139 = 70; 269 x 0.5 = 134.5, of which a day allows 100.
    assert (told["residents"], told["active"], told["unchanged"]) == (3, 2, 1)
    assert told["gain"] == {
        "residents": 1,
        "points": 170,
        "median_points": 170,
        "extremes": [{"resident_id": rider, "points": 170}],
    }
    assert told["lose"]["residents"] == 0
    # 170 points at 300 fen per 1,000.
    assert told["by_funder"] == [
        {"funder_id": "city", "points": 0, "fen": 0},
        {"funder_id": funder, "points": 170, "fen": 51},
    ]
    assert [(one["behaviour"], one["points"]) for one in told["by_behaviour"]] == [
        ("bus_km", 170),
        ("metro_km", 0),
    ]
    assert idle not in answer.get_data(as_text=True)
    assert storage.database()["entries"].count_documents({}) == entries


def test_a_draft_rule_says_who_loses(app: Flask) -> None:
    rider, walker = someone(), someone()
    with at("2026-05-21 12:00"):
        did(rider, "bus_km", "10", "2026-05-21 08:00")
        did(walker, "metro_km", "10", "2026-05-21 08:00")
    text = (earning.FOLDER / "QZ-PTS-2026.1.toml").read_text(encoding="utf-8")
    less = text.replace("[points_per_gram_of]", '[points_per_gram_of]\nbus_km = "0.75"')
    with at("2026-06-02 12:00"):
        anna = machine(app, Kind.OPERATOR)
        told = anna.post("/v1/operator/earning/preview", {"rule": less}).get_json()
        # 269 g x 0.75 = 201.75: 68 points fewer, 13.6 fen that the city keeps, rounded down.
        assert (told["points"], told["lose"]["residents"], told["unchanged"]) == (-68, 1, 1)
        assert told["by_funder"] == [{"funder_id": "city", "points": -68, "fen": -14}]
        for wrong in (text + "bonus = 1", text.replace('id = "city"', 'id = "nobody"')):
            answer = anna.post("/v1/operator/earning/preview", {"rule": wrong})
            assert said(answer) == (422, "validation_failed")
        assert said(anna.post("/v1/operator/earning/preview", {})) == (422, "validation_failed")
        future = {"rule": less, "month": "2026-07"}
        answer = anna.post("/v1/operator/earning/preview", future)
        assert said(answer) == (422, "validation_failed")


# Two processes.


def test_what_another_process_published_is_known_before_it_applies(
    anna: Caller, bo: Caller
) -> None:
    """A process asks again when its knowledge is three seconds old; a record is ten ahead."""
    before = terms.refresh()
    bank(anna, bo)
    known_then = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        # This process knows what it knew, and its knowledge ages.
        patch.setattr(terms, "_known", (known_then, before))
        patch.setattr(time, "monotonic", lambda: known_then + terms.REFRESH_S - 0.1)
        assert terms.current() is before
        patch.setattr(time, "monotonic", lambda: known_then + terms.REFRESH_S + 0.1)
        assert len(terms.current().rates) == 2
    # A second of skew between clocks, and one more for a slow write.
    assert timedelta(seconds=terms.REFRESH_S + 2) < terms.LEAD
