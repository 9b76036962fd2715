"""Everything we hold about a resident in one file, and an account that is closed.

The resident here has 26,900 points of 20 kg of recyclables, and something in every other room.
"""

import io
import json
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from callers import Caller, machine, named, new_phone, partner, resident, said
from faults.crew import KILLED, Crew, Death
from flask import Flask
from pictures import picture
from shop import EARNED, RECYCLED, Shop, open_shop

from accounting import (
    accounts,
    book,
    clock,
    consent_requests,
    consents,
    jobs,
    links,
    outbox,
    storage,
    vault,
)
from accounting.clients import Kind
from accounting.outbox import Notice
from footprint import households
from integrations import closing, devices, exports
from points.wallet import consistent

NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)
ACCOUNT_NO, NAME, CARD, DEVICE = "3301-0001", "小梅", "home-1", "token-of-a-phone"
APPEAL = "I was on that bus."
LEASE_OVER = jobs.LEASE + timedelta(seconds=1)
AGAIN = accounts.ERASE_AGAIN_AFTER + timedelta(seconds=1)

HELD = {
    "residents": "account",
    "links": "links",
    "households": "households",
    "devices": "devices",
    "activities": "activities",
    "reviews": "appeals",
    "bills": "bills",
    "entries": "entries",
    "milestones": "milestones",
    "redemptions": "redemptions",
    "vouchers": "vouchers",
    "grades": "grades",
    "consents": "consents",
    "consent_requests": "consent_requests",
    "bank_access": "access_log",
    "notifications": "notifications",
}
"""The section that shows what a collection holds about a resident."""
OF_OURS = {
    "tokens": "keys, not data about anybody",
    "refresh_tokens": "keys",
    "sessions": "keys",
    "claims": "who was first to report an invoice, by keyed hash; shown with the activity",
    "summary_months": "sums of the entries",
    "grade_changes": "that a grading moved the grade, for the feeds",
    "summary_cursors": "how far those sums are",
    "jobs": "the export itself",
    "exports": "the export itself",
    "export_pieces": "the export itself",
    "audit": "what operators did",
    "consent_marks": "a mark that a bank may have to be told",
    "green_standings": "how far a bank is told of consents and grades",
    "green_changes": "what a bank was told of consents and grades",
}
"""Collections that name residents and say nothing about them that is not in a section."""
ANONYMOUS = {
    *("activities", "bills", "entries", "milestones", "redemptions", "vouchers", "grades"),
    *("consents", "bank_access", "claims", "summary_months", "summary_cursors", "reviews", "jobs"),
    *("residents", "audit", "grade_changes", "consent_requests"),
    *("consent_marks", "green_standings", "green_changes"),
}
"""What still names the opaque id when the account is closed."""


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.travel(NOON - clock.now()):
        yield


@dataclass(frozen=True)
class Life:
    """A resident with something everywhere, and those they dealt with."""

    me: Caller
    phone: str
    bank: Caller
    partner: Caller
    shop: Shop
    reference: str
    code: str

    @property
    def id(self) -> str:
        return self.me.id


@pytest.fixture
def life(app: Flask) -> Life:
    phone = new_phone()
    me, shop, bank = resident(app, phone), open_shop(app), machine(app, Kind.BANK)
    city = partner(app, carriers=["electricity"])
    me.patch("/v1/me", {"display_name": NAME, "district": "柯城"})
    me.post("/v1/me/links", {"partner_id": city.id, "external_id": CARD})
    city.post("/v1/feeds/activities", {"activities": [RECYCLED]})
    me.post("/v1/me/devices", {"token": DEVICE, "platform": "ios"})
    households.join(me.id, "electricity", ACCOUNT_NO, 2)
    bill = {
        "carrier": "electricity", "account_no": ACCOUNT_NO, "period_start": "2026-04-01",
        "period_end": "2026-04-30", "quantity": 200, "estimated": False, "source_event_id": "b-1",
    }  # fmt: skip
    assert city.post("/v1/feeds/bills", {"bills": [bill]}).get_json()["results"][0]["bill"]
    ride = {
        "behaviour": "bike_km", "quantity": 2, "occurred_at": "2026-05-20T08:00:00+08:00",
        "source_event_id": "r1",
    }  # fmt: skip
    told = me.post("/v1/activities", ride).get_json()
    assert me.post(f"/v1/activities/{told['id']}/appeal", {"text": APPEAL}).status_code == 201
    stop_day = {
        "behaviour": "car_stop_day", "quantity": 1, "occurred_at": "2026-05-18T00:00:00+08:00",
        "source_event_id": "stop-1", "attributes": {"vehicle": "浙H12345"},
        "evidence": {"kind": "photo"},
    }  # fmt: skip
    stop = me.post("/v1/activities", stop_day).get_json()
    jpeg = {"Content-Type": "image/jpeg"}
    photo = me.post(f"/v1/activities/{stop['id']}/photos", data=picture(), headers=jpeg)
    assert photo.status_code == 201
    redeemed = me.post("/v1/redemptions", {"reward_id": shop.offer()}, key="k").get_json()
    me.get("/v1/me/summary")
    me.get("/v1/me/grade")
    consent = {
        "bank_id": bank.id, "purpose": "loan", "fields": ["grade"],
        "expires_at": "2026-12-31T00:00:00+08:00", "real_name": named(me),
    }  # fmt: skip
    reference = me.post("/v1/me/consents", consent).get_json()["reference"]
    assert consents.read(bank.id, reference, "loan", "grade") is not None
    asked = consent_requests.ask(bank.id, "customer-7", "card", ("grade",))
    assert me.post(f"/v1/me/consent-requests/{asked.id}/approve").status_code == 201
    code = redeemed["vouchers"][0]["code"]
    return Life(me, phone, bank, city, shop, reference, code)


def naming(text: str) -> set[str]:
    """The collections with a document that has this text in any field."""
    database = storage.database()
    return {
        name
        for name in database.list_collection_names()
        if any(text in str(document) for document in database[name].find())
    }


def asked(me: Caller, **options: Any) -> str:
    answer = me.post("/v1/me/export", **options)
    assert answer.status_code == 202
    job_id: str = answer.get_json()["job_id"]
    assert answer.headers["Location"] == f"/v1/jobs/{job_id}"
    return job_id


def opened(content: bytes) -> dict[str, list[Any]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name[:-5]: json.loads(archive.read(name)) for name in archive.namelist()}


def exported(me: Caller) -> dict[str, list[Any]]:
    job_id = asked(me)
    exports.run(job_id)
    job = me.get(f"/v1/jobs/{job_id}").get_json()
    assert (job["state"], job["progress"]) == ("done", 100)
    answer = me.get(job["download_url"])
    assert answer.content_type == "application/zip"
    assert answer.content_length == len(answer.data)
    return opened(answer.data)


# --- everything we hold -------------------------------------------------------------------------


def test_the_file_has_something_of_everything_that_names_the_resident(life: Life) -> None:
    held = exported(life.me)
    naming_me = naming(life.id)
    assert naming_me <= HELD.keys() | OF_OURS.keys(), "a collection nobody thought of"
    assert naming_me >= HELD.keys(), "the life above should touch every section"
    assert held.keys() == {*HELD.values(), "photos"}
    assert [name for name, rows in held.items() if not rows] == []


def test_the_file_says_in_clear_what_is_kept_encrypted(life: Life) -> None:
    held = exported(life.me)
    [account] = held["account"]
    assert (account["phone"], account["display_name"]) == (life.phone, NAME)
    assert (account["district"], account["language"]) == ("柯城", "zh")
    assert [row["external_id"] for row in held["links"]] == [CARD]
    assert [row["account_no"] for row in held["households"]] == [ACCOUNT_NO]
    assert [row["token"] for row in held["devices"]] == [DEVICE]
    assert [row["text"] for row in held["appeals"]] == [APPEAL]
    assert [row["reference"] for row in held["access_log"]] == [life.reference]
    assert [row["seq"] for row in held["entries"]] == list(range(1, len(held["entries"]) + 1))
    assert held["entries"][-1]["hash"] == list(book.entries(life.id))[-1].hash
    [photo] = held["photos"]
    assert photo.keys() >= {"activity", "width", "height", "uploaded_at"}


def test_nobody_else_is_in_the_file(app: Flask, life: Life) -> None:
    other = resident(app)
    households.join(other.id, "electricity", ACCOUNT_NO, 2)
    later = {
        "carrier": "electricity", "account_no": ACCOUNT_NO, "period_start": "2026-03-01",
        "period_end": "2026-03-31", "quantity": 200, "estimated": False, "source_event_id": "b-2",
    }  # fmt: skip
    life.partner.post("/v1/feeds/bills", {"bills": [later]})
    assert other.id not in str(exported(life.me))


def test_the_file_is_for_its_owner_and_for_a_week(app: Flask, life: Life) -> None:
    job_id = asked(life.me)
    path = f"/v1/me/exports/{job_id}"
    assert said(life.me.get(path)) == (404, "not_found"), "not made yet"
    assert "download_url" not in life.me.get(f"/v1/jobs/{job_id}").get_json()
    exports.run(job_id)
    assert life.me.get(path).status_code == 200
    other = resident(app)
    assert said(other.get(path)) == (404, "not_found")
    assert said(other.get(f"/v1/jobs/{job_id}")) == (404, "not_found")
    assert said(life.shop.operator.get(path)) == (403, "forbidden")
    with clock.stand(clock.now() + exports.KEPT):
        again = resident(app, life.phone)
        assert said(again.get(path)) == (404, "not_found")


def test_what_is_stored_of_it_is_sealed(life: Life) -> None:
    exported(life.me)
    pieces = list(storage.database()["export_pieces"].find())
    assert pieces
    for piece in pieces:
        assert not piece["sealed"].startswith(b"PK")
    assert vault.unseal(pieces[0]["sealed"], "export").startswith(b"PK")


def test_a_large_file_is_kept_in_pieces(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "PIECE_BYTES", 1_000)
    assert exported(life.me)["account"]
    assert storage.database()["export_pieces"].count_documents({}) > 3


def test_asking_again_before_it_is_made_is_the_same_job_and_after_it_a_new_one(life: Life) -> None:
    first = asked(life.me, key="k1")
    assert asked(life.me) == first
    replayed = life.me.post("/v1/me/export", key="k1")
    assert replayed.headers["Idempotency-Replayed"] == "true"
    exports.run(first)
    assert asked(life.me) != first


@pytest.mark.parametrize(
    "step",
    [
        Death("integrations.exports:_write", "before"),
        Death("integrations.exports:_write", "after"),
        Death("integrations.exports:_keep", "after"),
        Death("accounting.jobs:finish", "after"),
    ],
    ids=str,
)
def test_a_worker_killed_at_any_step_leaves_one_whole_file_to_the_next(
    crew: Crew, life: Life, step: Death
) -> None:
    job_id = asked(life.me)
    assert crew.run("export", step, job_id=job_id) == KILLED
    with clock.travel(LEASE_OVER):
        for waiting in jobs.waiting(clock.now()):
            exports.run(waiting)
    found = exports.get(life.id, job_id)
    assert found is not None
    content = b"".join(exports.content(found))
    assert len(content) == found.size
    assert opened(content).keys() == {*HELD.values(), "photos"}
    assert life.me.get(f"/v1/jobs/{job_id}").get_json()["state"] == "done"


# --- leaving ------------------------------------------------------------------------------------


def left_nothing(life: Life) -> None:
    """Nothing that names the person is anywhere; the opaque id is where it must be."""
    for personal in (
        *(life.phone, NAME, CARD, ACCOUNT_NO, DEVICE, APPEAL),
        vault.keyed_hash("phone", life.phone),
        vault.keyed_hash("device", DEVICE),
    ):
        assert naming(personal) <= {"idempotency"}, personal
    database = storage.database()
    for name in ("links", "devices", "photos", "notifications", "exports", "export_pieces"):
        assert database[name].count_documents({}) == 0, name
    assert database["households"].count_documents({}) == 0
    assert database["consents"].count_documents({"withdrawn_at": None}) == 0
    assert database["tokens"].count_documents({"subject_id": life.id}) == 0
    assert database["reviews"].count_documents({"text_sealed": {"$ne": None}}) == 0
    assert database["reviews"].count_documents({"status": "open"}) == 0
    assert naming(life.id) <= ANONYMOUS
    row = database["residents"].find_one({"_id": life.id})
    assert row is not None
    assert row.keys() <= {"_id", "status", "created_at", "closed_at", "erase_at"}
    assert book.verify(checks=[consistent]).problem is None


def test_a_closed_account_leaves_an_opaque_id_and_nothing_else(life: Life) -> None:
    exported(life.me)
    before = [entry.hash for entry in book.entries(life.id)]
    assert life.me.delete("/v1/me").status_code == 204
    left_nothing(life)
    assert [entry.hash for entry in book.entries(life.id)] == before
    for path in ("/v1/me", "/v1/activities", "/v1/me/points"):
        assert said(life.me.get(path)) == (401, "unauthenticated")
    assert said(life.me.delete("/v1/me")) == (401, "unauthenticated")


def test_a_bank_sees_nothing_from_the_next_read_on_and_the_record_of_its_reads_stays(
    life: Life,
) -> None:
    life.me.delete("/v1/me")
    assert consents.read(life.bank.id, life.reference, "loan", "grade") is None
    reads = list(storage.database()["bank_access"].find().sort("_id", 1))
    assert [row["allowed"] for row in reads] == [True, False]


def test_a_voucher_of_a_closed_account_is_still_paid_for_in_the_shop(life: Life) -> None:
    life.me.delete("/v1/me")
    scan = {"code": life.code, "store_id": life.shop.store_id, "terminal_ref": "t1"}
    used = life.shop.till.post("/v1/merchant/vouchers/redeem", scan)
    assert (used.status_code, used.get_json()["status"]) == (200, "used")
    # The face value of 100 fen is owed to the merchant.
    paid = [line for entry in book.entries(life.id) for line in entry.lines if line.unit == "fen"]
    assert sum(line.amount for line in paid if line.book.startswith("payable:")) == 100
    assert book.verify(checks=[consistent]).problem is None


def test_the_phone_begins_a_new_account_that_inherits_nothing(app: Flask, life: Life) -> None:
    life.me.delete("/v1/me")
    new = resident(app, life.phone)
    assert new.id != life.id
    assert new.get("/v1/me/points").get_json()["available"] == 0
    for path in ("/v1/me/links", "/v1/me/households", "/v1/activities", "/v1/me/consents",
                 "/v1/me/notifications", "/v1/me/access-log", "/v1/redemptions"):  # fmt: skip
        assert new.get(path).get_json()["items"] == [], path
    # The card and the meter are free for whoever proves that they are theirs.
    link = {"partner_id": life.partner.id, "external_id": CARD}
    assert new.post("/v1/me/links", link).status_code == 201
    assert households.join(new.id, "electricity", ACCOUNT_NO, 3).joined == 1
    assert new.get("/v1/me/points").get_json()["available"] == 0
    # What the partner reports from now on is the new resident's.
    row = {**RECYCLED, "source_event_id": "weigh-2"}
    life.partner.post("/v1/feeds/activities", {"activities": [row]})
    assert new.get("/v1/me/points").get_json()["available"] == EARNED


def test_who_lives_in_the_same_home_keeps_it(app: Flask, life: Life) -> None:
    other = resident(app)
    households.join(other.id, "electricity", ACCOUNT_NO, 2)
    life.me.delete("/v1/me")
    [kept] = other.get("/v1/me/households").get_json()["items"]
    assert (kept["account_no"], kept["joined"]) == (ACCOUNT_NO, 1)


def test_what_a_request_under_way_still_wrote_is_erased_by_the_sweep(life: Life) -> None:
    life.me.delete("/v1/me")
    # As requests write that were let in a moment before the closing.
    links.link(life.id, life.partner.id, "late-card")
    devices.register(life.id, "late-token", "android")
    said = {"zh": "x", "en": "x"}
    outbox.leave(Notice(life.id, "late", "milestone", "service", said, said, deep_link="x"))
    assert closing.sweep(clock.now()) == 0, "it may still be writing"
    with clock.travel(AGAIN):
        assert closing.sweep(clock.now()) == 1
        assert closing.sweep(clock.now()) == 0
    left_nothing(life)


@pytest.mark.parametrize(
    "step",
    [
        Death("accounting.accounts:close", "after"),
        Death("accounting.consents:withdraw_all", "before"),
        Death("accounting.links:unlink_all", "before"),
        Death("footprint.households:leave_all", "after"),
        Death("footprint.photos:forget", "before"),
        Death("accounting.outbox:forget", "before"),
    ],
    ids=str,
)
@pytest.mark.parametrize("by", ["again", "sweep"])
def test_a_closing_killed_at_any_step_is_finished(
    crew: Crew, life: Life, step: Death, by: str
) -> None:
    assert crew.run("close_account", step, resident=life.id) == KILLED
    if by == "again":
        closing.close(life.id)
    with clock.travel(AGAIN):
        assert closing.sweep(clock.now()) == 1
    left_nothing(life)


def test_eight_closings_at_once_are_one(life: Life) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(closing.close, [life.id] * 8))
    left_nothing(life)


def test_an_export_of_a_closed_account_is_not_made(life: Life) -> None:
    job_id = asked(life.me)
    life.me.delete("/v1/me")
    job = exports.run(job_id)
    assert job is not None
    assert (job.state, job.failure) == ("failed", exports.CLOSED)
    assert exports.get(life.id, job_id) is None
