"""Photos as evidence, and homes that may stand empty: what a person has to decide.

A stop-driving day avoids 2,396 g. The clock stands at noon of Wednesday 20 May 2026 in the city.
"""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from io import BytesIO
from typing import Any

import pytest
from callers import Caller, machine, resident, said
from faults.crew import KILLED, Crew, Death, job
from flask import Flask
from pictures import ODOMETER_M, picture, saved, telling_picture
from PIL import Image

from accounting import audit, book, claims, clock, outbox, storage
from accounting.clients import Kind
from footprint import activities, bills, households, photos, reviews
from footprint.billing_rules import BillReport
from footprint.bills import Bill
from footprint.photos import PhotoUnreadable
from points import bill_crediting, deciding, statements
from points.wallet import consistent

NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
STOP_DAY: dict[str, Any] = {
    "behaviour": "car_stop_day",
    "quantity": 1,
    "occurred_at": "2026-05-18T00:00:00+08:00",
    "source_event_id": "stop-1",
    "attributes": {"vehicle": "浙H12345"},
    "evidence": {"kind": "photo"},
}
JPEG = {"Content-Type": "image/jpeg"}


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


def stop_day(me: Caller, **changes: Any) -> dict[str, Any]:
    answer = me.post("/v1/activities", STOP_DAY | changes)
    assert answer.status_code == 201
    return answer.get_json()


def upload(me: Caller, activity: dict[str, Any], content: bytes | None = None, query: str = "",
           headers: dict[str, str] = JPEG, **options: Any) -> Any:  # fmt: skip
    path = f"/v1/activities/{activity['id']}/photos{query}"
    return me.post(path, data=picture() if content is None else content, headers=headers, **options)


def waiting(operator: Caller) -> list[dict[str, Any]]:
    return operator.get("/v1/operator/reviews").get_json()["items"]


def decide(operator: Caller, review_id: str, accept: bool, reason: str = "odometer") -> Any:
    path = f"/v1/operator/reviews/{review_id}/decide"
    return operator.post(path, {"accept": accept, "reason": reason})


def reported(me: Caller, activity: dict[str, Any]) -> dict[str, Any]:
    return me.get(f"/v1/activities/{activity['id']}").get_json()


def codes(activity: dict[str, Any]) -> list[str]:
    return [reason["code"] for reason in activity["reasons"]]


def points(me: Caller) -> int:
    held = me.get("/v1/me/points").get_json()
    return held["available"] + held["pending"]


# --- waiting for photos -------------------------------------------------------------------------


def test_a_stop_day_with_photos_waits_for_its_review(me: Caller) -> None:
    activity = stop_day(me)
    assert (activity["status"], activity["evidence_class"]) == ("recorded", "D")
    assert codes(activity) == ["awaiting_review"]
    assert (activity["reduction_g"], activity["points"]) == (0, 0)
    again = me.post("/v1/activities", STOP_DAY)
    assert (again.status_code, again.get_json()) == (200, activity)
    plain = me.post("/v1/activities", STOP_DAY | {"evidence": {"kind": "none"}})
    assert said(plain) == (409, "source_event_conflict"), "a photo is part of what was said"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"evidence": {"kind": "none"}}, "evidence_not_accepted"),
        ({"evidence": {"kind": "sensor"}}, "evidence_not_accepted"),
        ({"behaviour": "etc_pass", "attributes": {}}, "evidence_not_accepted"),
        ({"behaviour": "gas_saving", "attributes": {}}, "only_from_bills"),
        ({"occurred_at": "2026-04-01T00:00:00+08:00"}, "too_old"),
    ],
    ids=str,
)
def test_nothing_else_takes_photos(me: Caller, change: dict[str, Any], reason: str) -> None:
    activity = stop_day(me, **change)
    assert codes(activity) == [reason]
    assert said(upload(me, activity)) == (409, "photos_not_wanted")


def test_a_photo_is_taken_as_a_body_or_in_a_form(me: Caller) -> None:
    activity = stop_day(me)
    first = upload(me, activity, query="?taken_at=2026-05-18T07:00:00%2B08:00")
    assert first.status_code == 201
    assert first.get_json() == {
        "id": first.get_json()["id"],
        "activity_id": activity["id"],
        "taken_at": "2026-05-17T23:00:00.000Z",
        "width": 64,
        "height": 48,
    } | {"uploaded_at": first.get_json()["uploaded_at"]}
    assert first.get_json()["uploaded_at"].startswith("2026-05-20T04:00:0")
    png = upload(me, activity, picture("PNG", mode="RGBA"), headers={"Content-Type": "image/png"})
    assert (png.status_code, png.get_json()["taken_at"]) == (201, None)
    content = picture()
    form = {"photo": (BytesIO(content), "a.jpg"), "taken_at": "2026-05-19T07:30:00+08:00"}
    path = f"/v1/activities/{activity['id']}/photos"
    third = me.post(path, data=form, content_type="multipart/form-data")
    assert (third.status_code, third.get_json()["taken_at"]) == (201, "2026-05-18T23:30:00.000Z")
    for name in ("image", "file"):  # The same picture under the other names a part may have.
        form = {name: (BytesIO(content), "a.jpg"), "taken_at": "2026-05-19T07:30:00+08:00"}
        again = me.post(path, data=form, content_type="multipart/form-data")
        assert (again.status_code, again.get_json()) == (200, third.get_json()), name


def test_the_same_photo_again_is_the_first_one(me: Caller) -> None:
    activity, content = stop_day(me), picture()
    first = upload(me, activity, content)
    again = upload(me, activity, content)
    assert (again.status_code, again.get_json()) == (200, first.get_json())
    keyed = upload(me, activity, picture(), key="p1")
    assert upload(me, activity, b"", key="p1").status_code == 422, "another body under the key"
    assert len(photos.of_activity(activity["id"])) == 2
    assert keyed.status_code == 201


def test_a_form_under_a_key_is_the_same_request_whatever_its_boundary(me: Caller) -> None:
    activity, content = stop_day(me), picture()
    path = f"/v1/activities/{activity['id']}/photos"

    def send(boundary: str, picture: bytes) -> Any:
        kind = f"multipart/form-data; boundary={boundary}"
        form = {"photo": (BytesIO(picture), "a.jpg")}
        return me.post(path, data=form, content_type=kind, key="f1")

    first = send("one", content)
    again = send("two", content)
    assert (again.status_code, again.get_json()) == (201, first.get_json())
    assert again.headers["Idempotency-Replayed"] == "true"
    assert said(send("one", picture())) == (422, "idempotency_key_reused")


def test_only_the_picture_is_kept_upright_and_encrypted(me: Caller, operator: Caller) -> None:
    activity = stop_day(me)
    original = telling_picture()
    assert ODOMETER_M.encode() in original
    photo = upload(me, activity, original).get_json()
    assert (photo["width"], photo["height"]) == (48, 64)
    [row] = storage.database()["photos"].find()
    assert row["sealed"].find(b"JFIF") == -1
    [review] = waiting(operator)
    answer = operator.get(f"/v1/operator/reviews/{review['review_id']}/photos/{photo['id']}")
    assert answer.mimetype == "image/jpeg"
    assert answer.headers["Cache-Control"] == "no-store"
    for told in (b"Exif", b"GPS", b"plate", ODOMETER_M.encode()):
        assert told not in answer.data
    with Image.open(BytesIO(answer.data)) as shown:
        assert (shown.size, dict(shown.getexif()), shown.info.keys() & {"comment", "exif"}) == (
            (48, 64), {}, set(),
        )  # fmt: skip


def test_a_large_picture_is_made_smaller() -> None:
    with Image.open(BytesIO(photos.cleaned(picture(size=(5_712, 4_284))).jpeg)) as shown:
        assert shown.size == (2_048, 1_536)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK"])
def test_every_kind_of_pixel_is_read(mode: str) -> None:
    base = Image.new("L", (64, 48), 200)
    image = Image.new(mode, (64, 48)) if mode == "I;16" else base.convert("RGB").convert(
        "L" if mode == "LA" else mode).convert(mode)  # fmt: skip
    assert photos.cleaned(saved(image, "JPEG" if mode == "CMYK" else "PNG")).width == 64


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html></html>",
        picture("GIF"),
        picture("BMP"),
        picture()[:300],
        picture("PNG")[:60],
        # Few bytes, many pixels.
        saved(Image.new("1", (5_001, 5_000)), "PNG"),
        saved(Image.new("1", (20_000, 20_000)), "PNG"),
    ],
    ids=["empty", "html", "gif", "bmp", "half a jpeg", "half a png", "25 MP", "400 MP"],
)
def test_what_is_no_photo_is_refused(me: Caller, content: bytes) -> None:
    activity = stop_day(me)
    assert said(upload(me, activity, content)) == (422, "photo_unreadable")
    assert photos.of_activity(activity["id"]) == []


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_broken_file_is_refused_or_read_and_nothing_else() -> None:
    chance = random.Random(20_260_520)
    wholes = [telling_picture(), picture("PNG", mode="P"), picture("PNG", mode="RGBA")]
    read = 0
    for _ in range(1_500):
        broken = bytearray(chance.choice(wholes))
        for _ in range(chance.randint(1, 9)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        try:
            read += photos.cleaned(bytes(broken)).width > 0
        except PhotoUnreadable:
            continue
    assert 0 < read < 1_500


def test_bodies_that_are_too_large_or_of_another_type_are_refused(me: Caller) -> None:
    activity = stop_day(me)
    assert said(upload(me, activity, bytes(5_000_001))) == (413, "payload_too_large")
    assert said(upload(me, activity, bytes(6_000_000))) == (413, "payload_too_large")
    other = {"Content-Type": "image/gif"}
    assert said(upload(me, activity, headers=other)) == (415, "unsupported_media_type")
    path = f"/v1/activities/{activity['id']}/photos"
    for form in ({}, {"photo": "text"}, {"else": (BytesIO(picture()), "a.jpg")},
                 {name: (BytesIO(picture()), "a.jpg") for name in ("photo", "image")},
                 {"photo": (BytesIO(picture()), "a.jpg"), "taken_at": "yesterday"},
                 {"photo": (BytesIO(picture()), "a.jpg"), "where": "here"}):  # fmt: skip
        answer = me.post(path, data=form, content_type="multipart/form-data")
        assert said(answer) == (422, "validation_failed"), form
    for query in ("?taken_at=2026-05-20T12:05:01%2B08:00", "?taken_at=1", "?where=here"):
        assert said(upload(me, activity, query=query)) == (422, "validation_failed"), query
    assert photos.of_activity(activity["id"]) == []


def test_photos_of_somebody_elses_activity_are_refused(app: Flask, me: Caller) -> None:
    activity = stop_day(me)
    assert said(upload(resident(app), activity)) == (404, "not_found")


def test_six_photos_are_taken_whoever_is_first(me: Caller) -> None:
    activity = stop_day(me)
    stored = activities.by_id(activity["id"])
    assert stored is not None
    pictures = [picture() for _ in range(9)]

    def add(content: bytes) -> str:
        try:
            return photos.add(stored, content, None)[0].id
        except photos.TooManyPhotos:
            return "too many"

    with ThreadPoolExecutor(9) as pool:
        ends = list(pool.map(add, pictures))
    assert ends.count("too many") == 3
    assert [photo.number for photo in photos.of_activity(activity["id"])] == [1, 2, 3, 4, 5, 6]
    assert said(upload(me, activity)) == (409, "too_many_photos")


# --- the queue and the decision -----------------------------------------------------------------


def test_the_queue_shows_what_to_decide_oldest_first(
    app: Flask, me: Caller, operator: Caller
) -> None:
    content = picture()
    first = stop_day(me)
    upload(me, first, content, query="?taken_at=2026-05-18T07:00:00%2B08:00")
    upload(me, first, query="?taken_at=2026-05-19T08:00:00%2B08:00")
    with clock.travel(DAY):
        other = resident(app)
        second = stop_day(other)
        upload(other, second, content)
    stop_day(me, source_event_id="no-photo-yet")
    one = operator.get("/v1/operator/reviews?limit=1").get_json()
    [review] = one["items"]
    assert (review["kind"], review["status"], review["hours_apart"]) == ("photos", "open", 25)
    assert (review["due_on"], review["overdue"]) == ("2026-06-09", False)
    assert review["residents"] == [me.id]
    assert review["activity"]["id"] == first["id"]
    assert [photo["used_elsewhere"] for photo in review["photos"]] == [1, 0]
    two = operator.get(f"/v1/operator/reviews?limit=1&cursor={one['next_cursor']}").get_json()
    assert [row["activity"]["id"] for row in two["items"]] == [second["id"]]
    assert two["next_cursor"] is None
    with clock.travel(21 * DAY):
        [late, _] = reviews.listed(reviews.REVIEWS, reviews.OPEN, after=None, limit=9)
        assert late.is_overdue
    foreign = f"/v1/operator/reviews/{two['items'][0]['review_id']}/photos/"
    assert said(operator.get(foreign + review["photos"][0]["id"])) == (404, "not_found")


def test_accepted_photos_credit_the_day_itself(me: Caller, operator: Caller) -> None:
    activity = stop_day(me)
    upload(me, activity)
    [review] = waiting(operator)
    answer = decide(operator, review["review_id"], True)
    assert answer.status_code == 200
    decided = answer.get_json()
    assert (decided["status"], decided["reason"]) == ("accepted", "odometer")
    credited = reported(me, activity)
    assert credited == decided["activity"]
    assert (credited["status"], credited["evidence_class"]) == ("pending", "C")
    assert (credited["reduction_g"], credited["points"], credited["reasons"]) == (2_396, 2_396, [])
    # 72 hours from the day itself, not from the decision.
    assert credited["matures_at"] == "2026-05-20T16:00:00.000Z"
    explained = me.get(f"/v1/activities/{activity['id']}/explanation").get_json()
    assert (explained["reduction_mg"], explained["inputs"]["evidence_class"]) == (2_396_000, "C")
    [entry] = book.entries(me.id)
    assert (entry.key, entry.cap_day) == (f"activity:{activity['id']}", "2026-05-18")
    assert not entry.refs["bank_grade"]
    with clock.travel(DAY):
        assert statements.balance(me.id).expiring == (("2028-05-31", 2_396),)
    assert waiting(operator) == []
    listed = operator.get("/v1/operator/reviews?status=accepted").get_json()["items"]
    assert [row["review_id"] for row in listed] == [review["review_id"]]
    assert said(upload(me, activity)) == (409, "photos_not_wanted")


def test_refused_photos_leave_it_recorded_with_the_reason(me: Caller, operator: Caller) -> None:
    activity = stop_day(me)
    upload(me, activity)
    [review] = waiting(operator)
    decide(operator, review["review_id"], False, "another car")
    refused = reported(me, activity)
    assert (refused["status"], refused["evidence_class"]) == ("recorded", "D")
    assert codes(refused) == ["photo_not_accepted"]
    assert points(me) == 0
    [note] = audit.AuditDocument.objects(subject=activity["id"])
    assert (note.actor, note.action, note.reason) == (operator.id, "photos refused", "another car")
    assert note.before["reasons"] == ["awaiting_review"]
    assert note.after["reasons"] == ["photo_not_accepted"]
    [told] = outbox.inbox(me.id, before=None, limit=9)
    assert (told.type, told.title["en"]) == ("photos_reviewed", "Your photos were not accepted")
    assert "another car" not in str(told), "what the operator wrote stays off the push service"


def test_the_photos_go_when_nobody_can_need_them(me: Caller, operator: Caller) -> None:
    activity = stop_day(me)
    upload(me, activity)
    rows = storage.database()["photos"]
    assert rows.count_documents({"expires_at": {"$exists": True}}) == 0
    decide(operator, waiting(operator)[0]["review_id"], True)
    [row] = rows.find()
    assert timedelta(0) <= row["expires_at"] - (NOON + 90 * DAY) < MINUTE


def test_rules_of_the_day_hold_for_what_is_accepted(
    app: Flask, me: Caller, operator: Caller
) -> None:
    """One credit for a vehicle's day in the whole city, whichever is decided first."""
    other = resident(app)
    mine, theirs = stop_day(me), stop_day(other)
    upload(me, mine)
    upload(other, theirs)
    for review in waiting(operator):
        assert decide(operator, review["review_id"], True).status_code == 200
    assert reported(me, mine)["points"] == 2_396
    lost = reported(other, theirs)
    assert (lost["status"], codes(lost), lost["points"]) == ("rejected", ["already_credited"], 0)


def test_a_decision_stands(me: Caller, operator: Caller) -> None:
    activity = stop_day(me)
    upload(me, activity)
    [review] = waiting(operator)
    first = decide(operator, review["review_id"], True)
    assert decide(operator, review["review_id"], True).get_json() == first.get_json()
    for other in ((False, "odometer"), (True, "another reason")):
        assert said(decide(operator, review["review_id"], *other)) == (409, "already_decided")
    assert points(me) == 2_396
    assert said(decide(operator, "rev_nothing", True)) == (404, "not_found")


@pytest.mark.parametrize("both", [(True, True), (True, False)], ids=["agree", "disagree"])
def test_two_operators_at_once_make_one_decision(
    crew: Crew, me: Caller, operator: Caller, both: tuple[bool, bool]
) -> None:
    activity = stop_day(me)
    upload(me, activity)
    review_id = waiting(operator)[0]["review_id"]
    said_by = [
        job("decide", queue="reviews", review_id=review_id, accept=accept, reason="seen", by=name)
        for name, accept in zip(("ops-1", "ops-2"), both, strict=True)
    ]
    ends = crew.wait(crew.start(*said_by))
    status = reviews.get(reviews.REVIEWS, review_id).status
    if both == (True, True):
        assert ends == [{"value": "accepted"}] * 2
    else:
        assert sorted(ends, key=str) == [{"error": "AlreadyDecided"}, {"value": status}]
    assert points(me) == (2_396 if status == "accepted" else 0)
    assert len(audit.AuditDocument.objects(subject=activity["id"])) == 1
    assert len(outbox.inbox(me.id, before=None, limit=9)) == (2 if status == "accepted" else 1)
    assert book.verify(checks=[consistent]).problem is None


STEPS = [
    Death("footprint.reviews:decide", "before"),
    Death("footprint.reviews:decide", "after"),
    Death("accounting.claims:take", "after"),
    Death("accounting.book:post", "after"),
    Death("footprint.activities:settle", "before"),
    Death("footprint.activities:settle", "after"),
    Death("accounting.audit:note", "after"),
    Death("footprint.reviews:carried_out", "before"),
]


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("rescue", ["again", "sweep"])
def test_a_decision_survives_a_kill_at_any_step(
    crew: Crew, me: Caller, operator: Caller, step: Death, rescue: str
) -> None:
    activity = stop_day(me)
    upload(me, activity)
    review_id = waiting(operator)[0]["review_id"]
    wanted = {"queue": "reviews", "review_id": review_id, "accept": True, "reason": "odometer"}
    assert crew.run("decide", step, by=operator.id, **wanted) == KILLED
    undecided = step == STEPS[0]
    if rescue == "again" or undecided:
        assert decide(operator, review_id, True).status_code == 200
    else:
        assert deciding.sweep(clock.now()) == 0, "younger than a minute: its request may still run"
        with clock.travel(2 * MINUTE):
            assert deciding.sweep(clock.now()) == 1
    credited = reported(me, activity)
    assert (credited["points"], credited["evidence_class"]) == (2_396, "C")
    assert points(me) == 2_396
    assert len(list(book.entries(me.id))) == 1
    [note] = audit.AuditDocument.objects(subject=activity["id"])
    assert note.before["points"] == 0
    types = [row.type for row in outbox.inbox(me.id, before=None, limit=9)]
    assert sorted(types) == ["milestone", "photos_reviewed"]
    with clock.travel(5 * MINUTE):
        assert deciding.sweep(clock.now()) == 0
    assert book.verify(checks=[consistent]).problem is None


# --- homes that may stand empty -----------------------------------------------------------------


def send(month: str, used: object, **changed: Any) -> Bill:
    first, last = clock.first_day(month), clock.last_day(month)
    what = BillReport("electricity", "3300-0001", first, last, Decimal(str(used)), **changed)
    event = f"{month}-{used}"
    return bill_crediting.report(what, source="grid", event_id=event)[0]


@pytest.fixture
def empty_looking(app: Flask) -> Bill:
    """A household of two used 300 kWh a month for a year, and 60 in April: below 30 %."""
    for who in ("res_anna", "res_bo"):
        households.join(who, "electricity", "3300-0001", 2)
    for ago in range(12):
        send(clock.add_months("2025-04", ago), 300)
    found = send("2026-04", 60)
    assert found.outcome(clock.now()).reasons == ("vacancy_review",)
    return found


# 30 % of 300 kWh over two members: 45 x 497,400 mg.
SHARE_MG = 22_383_000


def test_a_home_that_was_lived_in_is_credited_after_all(
    empty_looking: Bill, operator: Caller
) -> None:
    [review] = waiting(operator)
    assert (review["kind"], review["baseline"]) == ("vacancy", "300")
    assert review["bill"]["id"] == empty_looking.id
    assert review["residents"] == ["res_anna", "res_bo"]
    answer = decide(
        operator, review["review_id"], True, "induction stove replaced by gas"
    ).get_json()
    assert answer["status"] == "accepted"
    shown = answer["bill"]
    assert (shown["status"], shown["reduction_g"], shown["points"]) == ("capped", 22_383, 22_383)
    assert codes(shown) == ["saving_cap"]
    for who in review["residents"]:
        [entry] = book.entries(who)
        assert (entry.refs["mg"], entry.cap_day) == (SHARE_MG, "2026-04-30")
        assert statements.balance(who).expiring == (("2028-04-30", 22_383),)
        types = {row.type for row in outbox.inbox(who, before=None, limit=9)}
        assert types == {"milestone", "bill_reviewed"}
    [note] = audit.AuditDocument.objects(subject=empty_looking.id)
    assert (note.before["mg"], note.after["mg"]) == (0, SHARE_MG)
    assert (
        decide(operator, review["review_id"], True, "induction stove replaced by gas").get_json()
        == answer
    )


def test_an_empty_home_stays_recorded(empty_looking: Bill, operator: Caller) -> None:
    [review] = waiting(operator)
    shown = decide(operator, review["review_id"], False, "moved out").get_json()["bill"]
    assert (shown["status"], codes(shown), shown["points"]) == ("recorded", ["vacant_home"], 0)
    assert list(book.entries("res_anna")) == []
    assert bills.by_id(empty_looking.id).state == "settled"


def test_a_corrected_bill_needs_no_decision_any_more(empty_looking: Bill, operator: Caller) -> None:
    [review] = waiting(operator)
    send("2026-04", 240, corrects=empty_looking.event_id)
    assert waiting(operator) == []
    assert said(decide(operator, review["review_id"], True)) == (409, "already_decided")
    # 60 kWh over two members.
    assert [entry.refs["mg"] for entry in book.entries("res_anna")] == [14_922_000]


def test_a_correction_takes_back_what_a_reviewer_credited(
    empty_looking: Bill, operator: Caller
) -> None:
    decide(operator, waiting(operator)[0]["review_id"], True)
    send("2026-04", 240, corrects=empty_looking.event_id)
    for who in ("res_anna", "res_bo"):
        assert [entry.refs["mg"] for entry in book.entries(who)] == [
            SHARE_MG, -SHARE_MG, 14_922_000,
        ]  # fmt: skip


def test_a_decision_that_a_correction_overtook_changes_nothing(
    empty_looking: Bill, operator: Caller
) -> None:
    found = reviews.get(reviews.REVIEWS, waiting(operator)[0]["review_id"])
    send("2026-04", 240, corrects=empty_looking.event_id)
    storage.database()["reviews"].update_one({"_id": found.id}, {"$set": {"status": "open"}})
    deciding.decide(found, reviews.Decision(True, "lived in", operator.id))
    assert [entry.refs["mg"] for entry in book.entries("res_anna")] == [14_922_000]
    assert "bill_reviewed" not in {
        row.type for row in outbox.inbox("res_anna", before=None, limit=9)
    }
    month = f"{empty_looking.household}\x1f2026-04"
    assert (
        claims.holder("bill_month", month)
        == bills.by_id(
            storage.database()["bills"].find_one({"corrects": empty_looking.id})["_id"]
        ).id
    )


@pytest.mark.parametrize(
    "step",
    [
        Death("footprint.reviews:decide", "after"),
        Death("footprint.bills:reopen", "after"),
        Death("accounting.book:post_many", "after"),
        Death("footprint.bills:settle", "before"),
        Death("footprint.reviews:carried_out", "before"),
    ],
    ids=str,
)
def test_a_decision_on_a_bill_survives_a_kill(
    crew: Crew, empty_looking: Bill, operator: Caller, step: Death
) -> None:
    review_id = waiting(operator)[0]["review_id"]
    wanted = {"queue": "reviews", "review_id": review_id, "accept": True, "reason": "lived in"}
    assert crew.run("decide", step, by=operator.id, **wanted) == KILLED
    with clock.travel(2 * MINUTE):
        assert deciding.sweep(clock.now()) == 1
    for who in ("res_anna", "res_bo"):
        assert [entry.refs["mg"] for entry in book.entries(who)] == [SHARE_MG]
    assert date(2026, 4, 30) == bills.by_id(empty_looking.id).period_end
    assert len(audit.AuditDocument.objects(subject=empty_looking.id)) == 1


def test_the_queue_and_the_sweep_read_from_indexes_in_order(app: Flask) -> None:
    rows = storage.database()["reviews"]
    after = {
        "$or": [{"due_on": {"$gt": "2026-06-09"}}, {"due_on": "2026-06-09", "_id": {"$gt": "r"}}]
    }
    for wanted, order in (
        ({"queue": "reviews", "status": "open"}, [("due_on", 1), ("_id", 1)]),
        ({"queue": "reviews", "status": "open", **after}, [("due_on", 1), ("_id", 1)]),
        ({"residents": "res_a", "queue": "appeals"}, [("_id", -1)]),
        ({"pending": True, "decided_at": {"$lt": NOON}}, [("decided_at", 1)]),
    ):
        plan = str(rows.find(wanted).sort(order).explain()["queryPlanner"]["winningPlan"])
        assert "IXSCAN" in plan, wanted
        assert "'COLLSCAN'" not in plan, wanted
        assert "'SORT'" not in plan, wanted
