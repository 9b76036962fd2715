"""Grade policies as data: what is refused, what a draft would change, how one comes into force."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import pytest
from callers import Caller, machine, said
from cities import settle
from flask import Flask

from accounting import audit, clock, grading, storage
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
        policy_versions.refresh()


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


def test_a_preview_says_how_many_go_from_which_grade_to_which(anna: Caller) -> None:
    ids = settle(200, NOON, graded=False)
    text = draft("from_kg = 50", "from_kg = 30")
    before, after = graded_under(SHIPPED), graded_under(text)
    answer = anna.post(
        "/v1/operator/grade-policies/preview", {"draft": text, "sample": {"size": 500}}
    )
    assert answer.status_code == 200, answer.text
    # A sample goes by phones, and these residents have none.
    assert answer.get_json()["residents"] == 0
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
