"""What a draft of the grade policy would change: how many residents move from which grade to which.

Both sides are what the amounts make today, under the policy in force and under the draft, without
the patience that keeps a grade for two gradings. Nothing is written but the sums of the job.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from accounting import accounts, clock, storage, walks
from accounting.accounts import ResidentDocument
from accounting.grading import Policy
from accounting.jobs import Job
from footprint import grade, grade_pipeline, grade_policies

KIND = "grade_preview"
SAMPLE_MAX = 5_000
STRETCH = 1_000
# Between two grades in the name of a sum.
_TO = ">"

Moves = Counter[tuple[str, str]]


def of_sample(draft: Policy, *, seed: int, size: int) -> dict[str, Any]:
    """Preview a draft on up to `SAMPLE_MAX` residents; the same seed picks the same ones."""
    assert 0 < size <= SAMPLE_MAX, size
    return report(draft.version, moves(draft, {"$in": accounts.sample(seed, size)}))


def queue(owner: str, text: str) -> Job:
    """A job that previews a draft, checked before, on the whole city."""
    return walks.queue(KIND, owner, {"draft": text})


def run(job_id: str) -> Job | None:
    """Carry a preview of the whole city to its end; see `walks.run`."""

    def work(job: Job, residents: Sequence[str]) -> walks.Totals:
        draft = grade_policies.load(job.arguments["draft"], "draft")
        found = moves(draft, {"$gte": residents[0], "$lte": residents[-1]})
        return {f"{before}{_TO}{after}": count for (before, after), count in found.items()}

    return walks.run(job_id, work, stretch=STRETCH)


def result(job: Job) -> dict[str, Any]:
    """What a job has added up so far."""
    found: Moves = Counter()
    for name, count in walks.totals(job.id).items():
        before, _, after = name.partition(_TO)
        found[before, after] = count
    return report(grade_policies.load(job.arguments["draft"], "draft").version, found)


def moves(draft: Policy, residents: Any) -> Moves:
    """How many open accounts among `residents` (a condition on ids) go from which grade to which.

    Of the stored months, which may lag by seconds.
    """
    now = clock.now()
    policy = grade.policy_on(clock.city_day(now))
    people = storage.strong(ResidentDocument._get_collection())
    before, after = (
        {row["_id"]: row["grade"] for row in people.aggregate(stages)}
        for stages in (
            grade_pipeline.grades(residents, policy, now),
            grade_pipeline.grades(residents, draft, now),
        )
    )
    return Counter((before[one], after[one]) for one in before.keys() & after.keys())


def report(version: str, found: Moves) -> dict[str, Any]:
    """Sums as people read them: from each grade to each grade."""
    grades: dict[str, dict[str, int]] = {}
    for (before, after), count in sorted(found.items()):
        grades.setdefault(before, {})[after] = count
    policy = grade.policy_on(clock.city_day(clock.now()))
    ups = sum(n for (a, b), n in found.items() if policy.rank(b) > policy.rank(a))
    downs = sum(n for (a, b), n in found.items() if policy.rank(b) < policy.rank(a))
    return {
        "policy_version": version,
        "compared_with": policy.version,
        "residents": sum(found.values()),
        "grades": grades,
        "grades_changed": ups + downs,
        "up": ups,
        "down": downs,
    }
