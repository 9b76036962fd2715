"""Grade policies as data: what is refused, what a draft would change, how one comes into force."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import pytest
from callers import Caller, machine, new_phone, said
from cities import settle
from flask import Flask

from accounting import accounts, audit, clock, grading, storage
from accounting.clients import Kind
from footprint import grade, grade_policies, policy_preview, policy_versions, regrading
from footprint.grade_policies import PolicyError

SHIPPED = grade_policies.shipped_text("QZ-GRADE-2026.1")
NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)


def changed(old: str, new: str, text: str = SHIPPED) -> str:
    assert text.count(old) == 1, (old, text.count(old))
    return text.replace(old, new)


def draft(old: str = "share_percent = 40", new: str = "share_percent = 60") -> str:
    """The shipped policy under another name, with one change."""
    return changed("QZ-GRADE-2026.1", "QZ-GRADE-2026.2", changed(old, new))


# Reading.


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("months_back = 12", "months_back = 0", "months_back: must be above zero"),
        ("months_back = 12", "months_back = 37", "months_back: must not exceed 36"),
        ("months_back = 12", 'months_back = "12"', "months_back: must be int"),
        ("months_back = 12", "", "months_back: is missing"),
        ("share_percent = 40", "share_percent = 101", "share_percent: must not exceed 100"),
        ("share_percent = 40", "share_percent = 0", "share_percent: must be above zero"),
        ("active_months_min = 3", "active_months_min = 14", "active_months_min: must not exceed"),
        ("gradings_below = 2", "gradings_below = 0", "gradings_below: must be above zero"),
        ('evidence = ["A", "B"]', 'evidence = ["A", "D"]', "evidence: has the unknown item 'D'"),
        ('evidence = ["A", "B"]', "evidence = []", "evidence: must list some of A, B"),
        ('evidence = ["A", "B"]', 'evidence = ["A", "A"]', "evidence: must list some of A, B"),
        ("from_kg = 0", "from_kg = 1", "grade 1: from_kg: must be 0 for the lowest grade"),
        ("from_kg = 50", "from_kg = 100", "grade 3: from_kg: must lie above that of 'mid'"),
        ("from_kg = 50", "from_kg = 49.5", "grade 2: from_kg: must be an integer or a decimal"),
        ("from_kg = 50", 'from_kg = "50.0000001"', "grade 2: from_kg: must have at most 6"),
        ('name = "mid"', 'name = "gold"', "grade 2: name: must be 'mid'"),
        ('"中绿"', '""', "grade 2: label: zh: must have 1 to 32"),
        ('en = "Not rated yet"', 'fr = "x"', "unrated: label: en: is missing"),
        ("[unrated]", "[other]", "unrated: label: zh: is missing"),
        ("gradings_below = 2", "gradings_below = 2\ngrace = 1", "grace: is not a field of the gr"),
        ("valid_from = 2024-01-01", "valid_from = 24", "valid_from: must be date"),
        ('version = "', 'version = " ', "version: must match"),
        ("months_back = 12", "months_back = ", "is not TOML"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_naming_the_field(
    old: str, new: str, named: str
) -> None:
    with pytest.raises(PolicyError, match=r"^draft: ") as refused:
        grade_policies.load(changed(old, new), "draft")
    assert str(refused.value).startswith(f"draft: {named}")


def test_a_cut_off_may_have_decimals_in_quotes() -> None:
    policy = grade_policies.load(changed("from_kg = 50", 'from_kg = "49.5"'), "draft")
    assert policy.cut_offs[1] == (49_500_000, "mid")
    assert grading.stand(policy, {"a": 50_000_000, "b": 50_000_000}, 3).grade == "mid"


# Over HTTP.


@pytest.fixture(autouse=True)
def _noon(request: pytest.FixtureRequest) -> Iterator[None]:
    with clock.stand(NOON):
        yield
    if "app" in request.fixturenames:
        storage.database()["grade_policies"].delete_many({})
        policy_versions.register.refresh()


@pytest.fixture
def anna(app: Flask) -> Caller:
    return machine(app, Kind.OPERATOR)


@pytest.fixture
def bo(app: Flask) -> Caller:
    return machine(app, Kind.OPERATOR)


def graded_under(text: str) -> dict[str, str]:
    """The grades one by one, with nothing held."""
    policy = grade_policies.load(text, "x")
    found = {}
    for row in storage.database()["residents"].find():
        first, last = grade.window(policy, NOON)
        months = storage.database()["summary_months"].find(
            {"account": row["_id"], "month": {"$gte": first, "$lte": last}}
        )
        rows = [
            grade.Row(
                month["month"],
                **{
                    name: one[name]
                    for name in ("behaviour", "evidence", "bank_grade", "mg", "count")
                },
            )
            for month in months
            for one in month["behaviours"]
        ]
        found[row["_id"]] = grading.stand(policy, *grade.counted(policy, rows)).grade
    return found


def test_a_preview_of_the_whole_city_says_who_goes_where(anna: Caller) -> None:
    ids = settle(200, NOON, graded=False)
    text = draft("from_kg = 50", "from_kg = 30")
    before, after = graded_under(SHIPPED), graded_under(text)
    whole = anna.post("/v1/operator/grade-policies/preview", {"draft": text, "whole": True})
    assert whole.status_code == 202
    job_id = whole.get_json()["job_id"]
    policy_preview.run(job_id)
    shown = anna.get(f"/v1/operator/grade-policies/previews/{job_id}").get_json()
    assert shown["state"] == "done"
    report = shown["report"]
    assert report["residents"] == 200
    assert (report["policy_version"], report["compared_with"]) == (
        "QZ-GRADE-2026.2",
        "QZ-GRADE-2026.1",
    )
    for one in ids:
        report["grades"][before[one]][after[one]] -= 1
    assert {n for row in report["grades"].values() for n in row.values()} == {0}
    assert report["grades_changed"] == report["up"] == sum(before[i] != after[i] for i in ids) > 0
    assert report["down"] == 0
    assert storage.database()["grades"].count_documents({}) == 0


def did(kg_by_behaviour: dict[str, int], months: int = 3) -> None:
    """A resident with a phone who did this, a part of it in each of the last months."""
    one = accounts.by_phone(new_phone())
    for back in range(months):
        month = clock.add_months("2026-05", -back)
        rows = [
            {
                "behaviour": code, "dimension": "green_travel", "evidence": "A", "bank_grade": True,
                "mg": kg * 1_000_000 // months, "points": 0, "count": 1, "days": [],
            }
            for code, kg in kg_by_behaviour.items()
        ]  # fmt: skip
        storage.database()["summary_months"].insert_one(
            {"_id": f"{one}:{month}", "account": one, "month": month, "seq": 1,
             "behaviours": rows, "books": [], "digest": ""}
        )  # fmt: skip


def test_a_preview_of_a_sample_is_what_one_works_out_by_hand(anna: Caller) -> None:
    # In force: one behaviour counts 40 % at most, mid from 50 kg, deep from 100.
    # The draft: 30 % at most, mid from 30 kg.
    text = changed(
        "share_percent = 40", "share_percent = 30", draft("from_kg = 50", "from_kg = 30")
    )
    # Raw 99. Now 39.6 + 21 = 60.6, mid. Then 29.7 + 21 = 50.7, mid.
    did({"bus_km": 78, "metro_km": 21})
    # Raw 102 of one thing. Now 40.8, light. Then 30.6, mid: up.
    did({"bus_km": 102})
    # Raw 42. Now 16.8 + 16.8 = 33.6, light. Then 12.6 + 12.6 = 25.2, light.
    did({"bus_km": 21, "metro_km": 21})
    # Raw 132. Now 52.8 + 52.8 = 105.6, deep. Then 39.6 + 39.6 = 79.2, mid: down.
    did({"bus_km": 66, "metro_km": 66})
    # Raw 120 of five things, each 24: the cap bites in neither. Deep and deep.
    did(dict.fromkeys(("bus_km", "metro_km", "bike_km", "recycle_kg", "e_invoice"), 24))
    # Two months of the three it takes: not rated, whatever was done.
    did({"bus_km": 100, "metro_km": 100}, months=2)
    # Nobody with anything to grade.
    did({})
    body = {"draft": text, "sample": {"size": 50}}
    answer = anna.post("/v1/operator/grade-policies/preview", body)
    assert answer.status_code == 200, answer.text
    assert answer.get_json() == {
        "policy_version": "QZ-GRADE-2026.2",
        "compared_with": "QZ-GRADE-2026.1",
        "residents": 7,
        "grades": {
            "deep": {"deep": 1, "mid": 1},
            "light": {"light": 1, "mid": 1},
            "mid": {"mid": 1},
            "unrated": {"unrated": 2},
        },
        "grades_changed": 2,
        "up": 1,
        "down": 1,
    }
    again = anna.post("/v1/operator/grade-policies/preview", body | {"sample": {"size": 3}})
    assert again.get_json()["residents"] == 3
    assert storage.database()["grades"].count_documents({}) == 0


def test_the_list_shows_every_policy_and_each_has_its_text(anna: Caller, bo: Caller) -> None:
    body = {"draft": draft(), "valid_from": "2026-06-01"}
    anna.post("/v1/operator/grade-policies/publish", body)
    approved = bo.post("/v1/operator/grade-policies/QZ-GRADE-2026.2/approve").get_json()
    answer = anna.get("/v1/operator/grade-policies").get_json()
    shown = [
        (one["version"], one["state"], one["valid_from"], one["in_force"], one["shipped"])
        for one in answer["items"]
    ]
    assert shown == [
        ("QZ-GRADE-2026.2", "published", "2026-06-01", False, False),
        ("QZ-GRADE-2026.1", "published", "2024-01-01", True, True),
    ]
    assert answer["items"][0] == approved
    assert (approved["drafted_by"], approved["approved_by"]) == (anna.id, bo.id)
    first = anna.get("/v1/operator/grade-policies?limit=1").get_json()
    rest = anna.get(f"/v1/operator/grade-policies?limit=1&cursor={first['next_cursor']}").get_json()
    assert [*first["items"], *rest["items"]] == answer["items"]
    path = "/v1/operator/grade-policies/versions"
    assert anna.get(f"{path}/QZ-GRADE-2026.2").get_json() == approved | {"text": draft()}
    assert anna.get(f"{path}/QZ-GRADE-2026.1").get_json()["text"] == SHIPPED
    assert said(anna.get(f"{path}/none")) == (404, "not_found")


def test_a_draft_that_is_wrong_is_pointed_at(anna: Caller) -> None:
    wrong = draft("share_percent = 40", "share_percent = 400")
    for path, body in (("preview", {}), ("publish", {"valid_from": "2026-06-01"})):
        answer = anna.post(f"/v1/operator/grade-policies/{path}", {"draft": wrong, **body})
        assert said(answer) == (422, "validation_failed")
        [error] = answer.get_json()["errors"]
        assert error["pointer"] == "/draft"
        assert "share_percent" in error["message"]


def test_a_policy_comes_into_force_on_its_day_after_two_operators_agreed(
    anna: Caller, bo: Caller
) -> None:
    text = draft("from_kg = 50", "from_kg = 30")
    body = {"draft": text, "valid_from": "2026-06-01"}
    answer = anna.post("/v1/operator/grade-policies/publish", body)
    assert answer.status_code == 201
    assert answer.get_json() == {
        "version": "QZ-GRADE-2026.2",
        "state": "draft",
        "needs_approval": True,
        "valid_from": "2026-06-01",
    }
    path = "/v1/operator/grade-policies/QZ-GRADE-2026.2/approve"
    assert said(anna.post(path)) == (403, "second_operator_needed")
    assert bo.post(path).get_json()["state"] == "published"
    assert bo.post(path).status_code == 200
    assert grade.policy_on(date(2026, 5, 31)).version == "QZ-GRADE-2026.1"
    assert grade.policy_on(date(2026, 6, 1)).version == "QZ-GRADE-2026.2"
    assert len(audit.trail(subject="QZ-GRADE-2026.2", limit=9)) == 2
    # The batch of the new month grades by it, and old snapshots keep theirs.
    ids = settle(30, NOON, graded=False)
    grade.grade_now(ids[0])
    with clock.stand(datetime(2026, 6, 1, 4, tzinfo=UTC)):
        regrading.run(regrading.queue("clock", month="2026-06").id)
    policies = [one.policy for one in grade.history(ids[0], before=None, limit=9)]
    assert policies == ["QZ-GRADE-2026.2", "QZ-GRADE-2026.1"]


def test_what_cannot_be_published_is_refused(anna: Caller) -> None:
    def publish(text: str, day: str) -> tuple[int, str]:
        body = {"draft": text, "valid_from": day}
        return said(anna.post("/v1/operator/grade-policies/publish", body))

    assert publish(SHIPPED, "2026-06-01") == (409, "version_exists")
    assert publish(draft(), "2026-05-20") == (422, "validation_failed")
    assert publish(draft(), "2026-06-01") == (201, "")
    assert publish(draft(), "2026-06-01") == (201, "")
    assert publish(draft(), "2026-06-02") == (409, "version_exists")
    assert said(anna.post("/v1/operator/grade-policies/none/approve")) == (404, "not_found")


def test_a_draft_approved_too_late_stays_a_draft(app: Flask, anna: Caller) -> None:
    body = {"draft": draft(), "valid_from": "2026-05-21"}
    assert anna.post("/v1/operator/grade-policies/publish", body).status_code == 201
    with clock.travel(timedelta(days=1)):
        bo = machine(app, Kind.OPERATOR)
        answer = bo.post("/v1/operator/grade-policies/QZ-GRADE-2026.2/approve")
    assert said(answer) == (409, "approved_too_late")
