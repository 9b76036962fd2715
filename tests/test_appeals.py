"""Appeals: a person looks again, and what was wronged is credited with the date it happened on.

Cycling avoids 48.7 g a kilometre, the bus 26.9 g, an electronic invoice 5 g. The clock stands at
noon of Wednesday 20 May 2026 in the city.
"""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from callers import Caller, machine, partner, resident, said
from faults.crew import KILLED, Crew, Death, job
from flask import Flask

from accounting import audit, book, claims, clock, outbox, storage
from accounting.clients import Kind
from footprint import activities, reviews, summaries
from footprint.activities import Activity
from footprint.reviews import Decision
from footprint.rules import Report
from points import crediting, deciding, statements
from points.wallet import consistent

NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
TEXT = "I changed from the bus to the bicycle at 08:20; the bus ticket says 08:30."


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.travel(NOON - clock.now()):
        yield


@pytest.fixture
def me(app: Flask) -> Caller:
    return resident(app)


@pytest.fixture
def operator(app: Flask) -> Caller:
    return machine(app, Kind.OPERATOR)


def tell(
    who: Caller,
    behaviour: str,
    quantity: object,
    at: str = "2026-05-18 08:00",
    minutes: int | None = None,
    evidence: str = "A",
    **attributes: Any,
) -> Activity:
    start = datetime.fromisoformat(at).replace(tzinfo=clock.CITY).astimezone(UTC)
    end = None if minutes is None else start + timedelta(minutes=minutes)
    what = Report(behaviour, Decimal(str(quantity)), start, end, attributes)
    event = f"{who.id}-{behaviour}-{at}-{quantity}-{minutes}-{evidence}"
    return crediting.report(who.id, what, source="bus", event_id=event, evidence=evidence)[0]


def overlapping(who: Caller) -> Activity:
    """A ride of 2 km, 97.4 g, that a bus ride of 08:00 to 08:30 stands in the way of."""
    assert tell(who, "bus_km", 10, minutes=30).points == 269
    ride = tell(who, "bike_km", 2, "2026-05-18 08:20", minutes=10, evidence="B")
    assert (ride.status, ride.reasons, ride.points) == ("rejected", ("overlapping_trip",), 0)
    return ride


def appeal(who: Caller, activity: Activity, text: str = TEXT, **options: Any) -> Any:
    return who.post(f"/v1/activities/{activity.id}/appeal", {"text": text}, **options)


def decide(
    operator: Caller, appeal_id: str, uphold: bool, reason: str = "seen", **more: Any
) -> Any:
    path = f"/v1/operator/appeals/{appeal_id}/decide"
    return operator.post(path, {"uphold": uphold, "reason": reason, **more})


def reported(who: Caller, activity: Activity) -> dict[str, Any]:
    return who.get(f"/v1/activities/{activity.id}").get_json()


def codes(activity: dict[str, Any]) -> list[str]:
    return [reason["code"] for reason in activity["reasons"]]


def upheld(who: Caller, operator: Caller, activity: Activity, **more: Any) -> dict[str, Any]:
    appeal_id = appeal(who, activity).get_json()["appeal_id"]
    assert decide(operator, appeal_id, True, **more).status_code == 200
    return reported(who, activity)


# --- lodging one --------------------------------------------------------------------------------


def test_an_appeal_has_a_day_by_which_it_is_answered(me: Caller) -> None:
    ride = overlapping(me)
    answer = appeal(me, ride)
    assert answer.status_code == 201
    made = answer.get_json()
    assert made == {
        "appeal_id": made["appeal_id"],
        "activity_id": ride.id,
        "status": "open",
        "text": TEXT,
        "opened_at": made["opened_at"],
        "due_on": "2026-06-09",
        "reason": None,
        "decided_at": None,
    }
    assert me.get("/v1/me/appeals").get_json() == {"items": [made], "next_cursor": None}
    [row] = storage.database()["reviews"].find()
    assert TEXT.encode() not in row["text_sealed"], "it may say anything about anybody"
    assert reported(me, ride)["status"] == "rejected", "nothing changes until it is decided"


def test_one_appeal_an_activity(me: Caller) -> None:
    ride = overlapping(me)
    first = appeal(me, ride)
    again = appeal(me, ride)
    assert (again.status_code, again.get_json()) == (200, first.get_json())
    assert said(appeal(me, ride, "Another story.")) == (409, "already_appealed")
    keyed = appeal(me, ride, key="a1")
    assert appeal(me, ride, key="a1").get_json() == keyed.get_json()
    assert len(me.get("/v1/me/appeals").get_json()["items"]) == 1


def test_the_same_appeal_again_is_answered_also_after_it_was_decided(
    me: Caller, operator: Caller
) -> None:
    ride = overlapping(me)
    upheld(me, operator, ride)
    again = appeal(me, ride)
    assert (again.status_code, again.get_json()["status"]) == (200, "upheld")
    assert said(appeal(me, ride, "More, please.")) == (409, "already_appealed")


def test_what_was_credited_capped_or_taken_back_cannot_be_appealed(me: Caller) -> None:
    credited = tell(me, "bus_km", 10)
    tell(me, "no_tableware", 3)
    full = tell(me, "no_tableware", 1, "2026-05-18 19:00")
    assert (full.status, full.mg) == ("capped", 0)
    taken_back = tell(me, "bus_km", 3, "2026-05-17 08:00")
    crediting.reverse(taken_back, reason="refund", by="bus")
    waits = tell(me, "car_stop_day", 1, evidence="D", vehicle="H1")
    activities._collection().update_one(
        {"_id": waits.id}, {"$set": {"reasons": ["awaiting_review"]}}
    )
    for activity in (credited, full, taken_back, waits):
        assert said(appeal(me, activity)) == (409, "not_appealable")


@pytest.mark.parametrize("body", [{}, {"text": ""}, {"text": "a" * 2_001}, {"text": 1},
                                  {"text": "a", "to": "b"}], ids=str)  # fmt: skip
def test_an_appeal_needs_a_text(me: Caller, body: dict[str, Any]) -> None:
    path = f"/v1/activities/{overlapping(me).id}/appeal"
    assert said(me.post(path, body)) == (422, "validation_failed")


def test_appeals_are_the_residents_own(app: Flask, me: Caller) -> None:
    ride = overlapping(me)
    other = resident(app)
    assert said(appeal(other, ride)) == (404, "not_found")
    appeal(me, ride)
    assert other.get("/v1/me/appeals").get_json()["items"] == []


# --- deciding one -------------------------------------------------------------------------------


def test_upheld_it_is_credited_with_the_date_it_happened_on(me: Caller, operator: Caller) -> None:
    ride = overlapping(me)
    appeal_id = appeal(me, ride).get_json()["appeal_id"]
    with clock.travel(MINUTE):
        answer = decide(operator, appeal_id, True, "ticket seen")
    assert answer.status_code == 200
    decided = answer.get_json()
    assert (decided["status"], decided["reason"]) == ("upheld", "ticket seen")
    assert decided["resident_id"] == me.id
    credited = reported(me, ride)
    assert decided["activity"] == credited
    assert (credited["status"], credited["points"]) == ("credited", 97)
    assert credited["reduction_g"] == Decimal("97.4")
    assert codes(credited) == ["appeal_upheld"]
    assert credited["evidence_class"] == "B"
    assert credited["matures_at"] == "2026-05-18T00:30:00.000Z"
    *_, first, entry = book.entries(me.id)
    assert (first.key, first.refs["mg"]) == (f"activity:{ride.id}", 0)
    assert (entry.key, entry.kind, entry.cap_day) == (f"appeal:{ride.id}", "earn", "2026-05-18")
    assert entry.refs["overruled"] == ["overlapping_trip"]
    assert entry.refs["bank_grade"], "a sensor record it still is"
    # The ride is mature; the bus ride of the 18th matures at 08:30 today.
    assert statements.balance(me.id).expiring == (("2028-05-31", 97 + 269),)
    cells = summaries.between(me.id, date(2026, 5, 18), date(2026, 5, 18)).cells
    assert [(cell.behaviour, cell.mg, cell.count) for cell in cells] == [
        ("bike_km", 97_400, 1), ("bus_km", 269_000, 1),
    ]  # fmt: skip
    explained = me.get(f"/v1/activities/{ride.id}/explanation").get_json()
    assert explained["appeal"] == {
        "appeal_id": appeal_id, "status": "upheld", "due_on": "2026-06-09",
        "reason": "ticket seen", "overruled": ["overlapping_trip"],
    }  # fmt: skip
    assert (explained["reduction_mg"], explained["points"]["points"]) == (97_400, 97)
    assert explained["steps"][-1]["result"] == "97400"
    assert book.verify(checks=[consistent]).problem is None


def test_points_expire_by_the_month_it_happened_in(me: Caller, operator: Caller) -> None:
    ride = tell(me, "bike_km", 2, "2026-04-20 13:00", minutes=2, evidence="B")
    assert ride.reasons == ("implausible_speed",)
    upheld(me, operator, ride)
    assert statements.balance(me.id).expiring == (("2028-04-30", 97),)


def test_refused_it_stays_as_it_was_and_says_why(me: Caller, operator: Caller) -> None:
    ride = overlapping(me)
    appeal_id = appeal(me, ride).get_json()["appeal_id"]
    before = reported(me, ride)
    decided = decide(operator, appeal_id, False, "the ticket says 08:10").get_json()
    assert decided["status"] == "refused"
    assert reported(me, ride) == before
    [mine] = me.get("/v1/me/appeals").get_json()["items"]
    assert (mine["status"], mine["reason"]) == ("refused", "the ticket says 08:10")
    assert mine["decided_at"] is not None
    assert statements.balance(me.id).lifetime_earned == 269


@pytest.mark.parametrize("uphold", [True, False])
def test_a_decision_is_audited_and_told(me: Caller, operator: Caller, uphold: bool) -> None:
    ride = overlapping(me)
    appeal_id = appeal(me, ride).get_json()["appeal_id"]
    decide(operator, appeal_id, uphold)
    [note] = audit.AuditDocument.objects(subject=ride.id)
    word = "accepted" if uphold else "refused"
    assert (note.actor, note.action, note.reason) == (operator.id, f"appeal {word}", "seen")
    was = {"status": "rejected", "reasons": ["overlapping_trip"], "mg": 0, "points": 0}
    now = {"status": "credited", "reasons": ["appeal_upheld"], "mg": 97_400, "points": 97}
    assert (note.before, note.after) == (was, now if uphold else was)
    [told] = outbox.inbox(me.id, before=None, limit=9)
    assert (told.type, told.category) == ("appeal_decided", "service")
    assert told.deep_link == f"tanhui://activities/{ride.id}"


def test_a_decision_stands(me: Caller, operator: Caller) -> None:
    appeal_id = appeal(me, overlapping(me)).get_json()["appeal_id"]
    first = decide(operator, appeal_id, True)
    assert decide(operator, appeal_id, True).get_json() == first.get_json()
    for other in ((False, "seen"), (True, "seen twice")):
        assert said(decide(operator, appeal_id, *other)) == (409, "already_decided")
    assert said(decide(operator, appeal_id, True, despite="act_1")) == (409, "already_decided")
    assert statements.balance(me.id).lifetime_earned == 269 + 97
    assert said(decide(operator, "apl_nothing", True)) == (404, "not_found")
    other_door = f"/v1/operator/reviews/{appeal_id}/decide"
    answer = operator.post(other_door, {"accept": True, "reason": "seen"})
    assert said(answer) == (404, "not_found")


def test_the_queue_is_oldest_due_first_and_pages(app: Flask, operator: Caller) -> None:
    people = [resident(app) for _ in range(3)]
    made = [appeal(who, overlapping(who)).get_json()["appeal_id"] for who in people]
    decide(operator, made[1], False)
    first = operator.get("/v1/operator/appeals?limit=1").get_json()
    second = operator.get(f"/v1/operator/appeals?limit=1&cursor={first['next_cursor']}").get_json()
    assert [row["appeal_id"] for row in first["items"] + second["items"]] == [made[0], made[2]]
    assert second["next_cursor"] is None
    [row] = operator.get("/v1/operator/appeals?status=refused").get_json()["items"]
    assert (row["appeal_id"], row["overdue"]) == (made[1], False)
    assert row["activity"]["reasons"][0]["code"] == "overlapping_trip"
    assert operator.get("/v1/operator/appeals?status=upheld").get_json()["items"] == []
    wrong = operator.get("/v1/operator/appeals?status=lost")
    assert said(wrong) == (422, "validation_failed")


# --- what is overruled, and what is not ---------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "mg"),
    [
        ({"behaviour": "bike_km", "quantity": 2, "minutes": 2}, 97_400),
        ({"behaviour": "bike_km", "quantity": "0.2"}, 9_740),
        ({"behaviour": "bus_km", "quantity": 10, "at": "2025-11-01 08:00"}, 269_000),
        ({"behaviour": "bus_km", "quantity": 10, "minutes": 1_500}, 269_000),
        ({"behaviour": "mobile_pay_offline", "quantity": 1, "amount_fen": 99}, 5_000),
    ],
    ids=["speed", "quantity", "age", "duration", "amount"],
)
def test_what_seemed_implausible_is_overruled(
    me: Caller, operator: Caller, told: dict[str, Any], mg: int
) -> None:
    rejected = tell(me, **told)
    assert rejected.status == "rejected"
    upheld(me, operator, rejected)
    [entry] = book.entries(me.id)
    assert (entry.refs["mg"], entry.refs["overruled"]) == (mg, list(rejected.reasons))
    assert entry.cap_day == clock.city_day(rejected.start).isoformat()


def test_caps_of_its_day_still_apply(me: Caller, operator: Caller) -> None:
    """730 g a day is 14.98 km: after 14 km, 681.8 g, there is room for 48.2 g."""
    tell(me, "bike_km", 14, "2026-05-18 12:00", minutes=60)
    ride = tell(me, "bike_km", 2, "2026-05-18 12:30", minutes=10, evidence="B")
    assert ride.reasons == ("overlapping_trip",)
    credited = upheld(me, operator, ride)
    assert (credited["status"], credited["points"]) == ("capped", 48)
    assert codes(credited) == ["appeal_upheld", "day_gram_cap"]
    # And it takes the room itself: nothing is left for what comes later.
    assert tell(me, "bike_km", 2, "2026-05-18 19:00", minutes=10).mg == 0


def test_a_ride_credited_on_appeal_stands_in_the_way_of_others(
    me: Caller, operator: Caller
) -> None:
    upheld(me, operator, overlapping(me))
    inside = tell(me, "bike_km", 2, "2026-05-18 08:30", minutes=10)
    assert inside.status == "credited"
    assert tell(me, "bike_km", 1, "2026-05-18 08:25", minutes=4).reasons == ("overlapping_trip",)


def test_evidence_somebody_looked_at_is_class_c_and_never_counts_for_a_bank(
    me: Caller, operator: Caller
) -> None:
    ride = tell(me, "bike_km", 2, minutes=10, evidence="D")
    assert (ride.status, ride.reasons) == ("recorded", ("evidence_not_accepted",))
    credited = upheld(me, operator, ride)
    assert (credited["points"], credited["evidence_class"]) == (97, "C")
    [entry] = book.entries(me.id)
    assert not entry.refs["bank_grade"]


@pytest.mark.parametrize("told", [("gas_saving", 5), ("clean_plate", 1)], ids=str)
def test_what_the_methodology_credits_no_report_of_cannot_be_upheld(
    me: Caller, operator: Caller, told: tuple[str, int]
) -> None:
    appeal_id = appeal(me, tell(me, *told)).get_json()["appeal_id"]
    assert said(decide(operator, appeal_id, True)) == (409, "not_creditable")
    assert decide(operator, appeal_id, False).get_json()["status"] == "refused"


def test_the_highest_step_total_stays_the_one_that_counts(me: Caller, operator: Caller) -> None:
    tell(me, "walk_steps", 10_000)
    lower = tell(me, "walk_steps", 5_000)
    assert lower.status == "merged"
    shown = upheld(me, operator, lower)
    assert (shown["status"], codes(shown), shown["points"]) == ("merged", ["lower_step_total"], 0)


# --- claims -------------------------------------------------------------------------------------


@pytest.fixture
def same_invoice(app: Flask, me: Caller) -> tuple[Activity, Activity]:
    """Somebody else was credited for the invoice before me."""
    first = tell(resident(app), "e_invoice", 1, invoice="033")
    second = tell(me, "e_invoice", 1, "2026-05-18 09:00", invoice="033")
    assert (first.points, second.reasons) == (5, ("already_credited",))
    return first, second


def test_a_claim_stays_with_its_holder_unless_the_operator_names_it(
    me: Caller, operator: Caller, same_invoice: tuple[Activity, Activity]
) -> None:
    first, second = same_invoice
    appeal_id = appeal(me, second).get_json()["appeal_id"]
    refusal = decide(operator, appeal_id, True)
    assert said(refusal) == (409, "claim_held")
    assert first.id in refusal.get_json()["detail"]
    assert said(decide(operator, appeal_id, True, despite="act_other")) == (409, "claim_held")
    assert decide(operator, appeal_id, True, despite=first.id).status_code == 200
    assert reported(me, second)["points"] == 5
    assert first.claim is not None
    assert claims.holder(first.claim["kind"], first.claim["value"]) == first.id
    [entry] = [one for one in book.entries(me.id) if one.refs["counted"]]
    assert entry.refs["despite"] == first.id


def test_a_claim_that_became_free_is_taken(
    me: Caller, operator: Caller, same_invoice: tuple[Activity, Activity]
) -> None:
    first, second = same_invoice
    crediting.reverse(first, reason="not theirs", by="operator")
    assert upheld(me, operator, second)["points"] == 5
    assert second.claim is not None
    assert claims.holder(second.claim["kind"], second.claim["value"]) == second.id


def test_a_claim_lost_between_decision_and_entry_is_not_credited_twice(
    app: Flask, me: Caller, operator: Caller, same_invoice: tuple[Activity, Activity]
) -> None:
    first, second = same_invoice
    crediting.reverse(first, reason="not theirs", by="operator")
    found = reviews.get(reviews.APPEALS, appeal(me, second).get_json()["appeal_id"])
    decided = reviews.decide(found, Decision(True, "seen", operator.id), before=None)
    assert tell(resident(app), "e_invoice", 1, invoice="033").points == 5
    deciding.finish(decided)
    assert codes(reported(me, second)) == ["already_credited"]


# --- afterwards ---------------------------------------------------------------------------------


def test_what_an_appeal_credited_can_be_taken_back(me: Caller, operator: Caller) -> None:
    ride = overlapping(me)
    upheld(me, operator, ride)
    answer = operator.post(f"/v1/operator/activities/{ride.id}/reverse", {"reason": "forged"})
    assert answer.get_json()["status"] == "reversed"
    assert statements.balance(me.id).lifetime_earned == 269
    assert codes(reported(me, ride)) == ["reversed"]
    # Whoever still carries the outcome of the appeal changes nothing.
    crediting.credit(ride, activities.appeal_key(ride.id))
    assert reported(me, ride)["status"] == "reversed"
    assert said(decide(operator, appeal(me, ride).get_json()["appeal_id"], False)) == (
        409, "already_decided",
    )  # fmt: skip
    assert book.verify(checks=[consistent]).problem is None


def test_a_partner_sees_and_may_reverse_what_an_appeal_credited(
    app: Flask, me: Caller, operator: Caller
) -> None:
    feed = partner(app)
    me.post("/v1/me/links", {"partner_id": feed.id, "external_id": "card-1"})
    row = {
        "external_id": "card-1",
        "behaviour": "bus_km",
        "quantity": 10,
        "occurred_at": "2026-05-18T08:00:00+08:00",
        "ended_at": "2026-05-18T08:01:00+08:00",
        "source_event_id": "b1",
    }
    [result] = feed.post("/v1/feeds/activities", {"activities": [row]}).get_json()["results"]
    rejected = activities.by_id(result["activity"]["id"])
    assert rejected is not None
    assert rejected.reasons == ("implausible_speed",)
    assert upheld(me, operator, rejected)["points"] == 269
    [again] = feed.post("/v1/feeds/activities", {"activities": [row]}).get_json()["results"]
    assert (again["status_code"], again["activity"]["points"]) == (200, 269)
    taken = feed.post("/v1/feeds/activities/b1/reverse", {"reason": "refund"})
    assert taken.get_json()["status"] == "reversed"
    assert statements.balance(me.id).lifetime_earned == 0


# --- crashes and races --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step",
    [
        Death("footprint.reviews:decide", "after"),
        Death("accounting.book:post", "before"),
        Death("accounting.book:post", "after"),
        Death("footprint.activities:settle", "before"),
        Death("footprint.activities:settle", "after"),
        Death("points.deciding:_tell", "before"),
        Death("footprint.reviews:carried_out", "before"),
    ],
    ids=str,
)
@pytest.mark.parametrize("rescue", ["again", "sweep"])
def test_an_upheld_appeal_survives_a_kill_at_any_step(
    crew: Crew, me: Caller, operator: Caller, step: Death, rescue: str
) -> None:
    ride = overlapping(me)
    appeal_id = appeal(me, ride).get_json()["appeal_id"]
    wanted = {"queue": "appeals", "review_id": appeal_id, "accept": True, "reason": "seen"}
    assert crew.run("decide", step, by=operator.id, **wanted) == KILLED
    if rescue == "again":
        assert decide(operator, appeal_id, True).status_code == 200
    else:
        with clock.travel(2 * MINUTE):
            assert deciding.sweep(clock.now()) == 1
    assert reported(me, ride)["points"] == 97
    assert [entry.refs["mg"] for entry in book.entries(me.id)] == [269_000, 0, 97_400]
    [note] = audit.AuditDocument.objects(subject=ride.id)
    assert (note.before["points"], note.after["points"]) == (0, 97)
    assert len(outbox.inbox(me.id, before=None, limit=9)) == 1
    assert book.verify(checks=[consistent]).problem is None


def test_two_operators_at_once_make_one_decision(crew: Crew, me: Caller, operator: Caller) -> None:
    ride = overlapping(me)
    appeal_id = appeal(me, ride).get_json()["appeal_id"]
    ends = crew.wait(
        crew.start(
            *(
                job("decide", queue="appeals", review_id=appeal_id, accept=accept, reason="seen",
                    by=f"ops-{number}")
                for number, accept in enumerate((True, False, True, False))
            )
        )
    )  # fmt: skip
    status = reviews.get(reviews.APPEALS, appeal_id).status
    assert [end for end in ends if "value" in end] == [{"value": status}] * 2
    assert [end for end in ends if "error" in end] == [{"error": "AlreadyDecided"}] * 2
    assert reported(me, ride)["points"] == (97 if status == "accepted" else 0)
    assert len(audit.AuditDocument.objects(subject=ride.id)) == 1
    assert len(outbox.inbox(me.id, before=None, limit=9)) == 1
