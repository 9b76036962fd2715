"""Steps of the data partner: a stream, two files, a refund, bills, a ride that matures."""

import gzip
import json
import time
from collections import Counter
from datetime import timedelta
from typing import Any

from accounting import clock
from api.demo import story
from api.demo.city import City, Person
from api.demo.client import StepFailed, expect
from api.demo.inputs import REFUSED, FeedFile, Row
from api.demo.residents import check_activity, check_case, link, note

# A worker that was killed holds its job for two minutes more.
JOB_S = 300.0
WAIT_S = 120.0
POLL_S = 0.3
STREAM_ROWS = 50
MATURITY = timedelta(hours=48)
# How long the ride of `watch_a_ride` stays pending after it is reported.
WATCHED = timedelta(seconds=5)
WATCHED_KM, WATCHED_POINTS = 5.2, 139
REFUNDED_POINTS = 26


def stream(city: City) -> str:
    """The partner streams the newest rows as JSON; each has its own result."""
    rows = city.day.batch()
    cases = {case.event: case for case in story.through(story.BATCH)}
    numbers = {person.who for person in city.people.values()}
    fresh = refused = 0
    for start in range(0, len(rows), STREAM_ROWS):
        chunk = rows[start : start + STREAM_ROWS]
        answer = city.client.post(
            "/v1/feeds/activities", {"activities": chunk}, headers=city.partner
        )
        expect("results of a stream", len(chunk), len(answer["results"]))
        for row, result in zip(chunk, answer["results"], strict=True):
            case = cases.get(row["source_event_id"])
            if case is not None:
                check_case(city, case, result)
            if "activity" in result:
                who = int(row["external_id"].rpartition("-")[2])
                parked = result["activity"]["status"] == "parked"
                fresh += note(city, None if parked or who not in numbers else who, result)
            elif case is None:
                raise StepFailed(f"row {row['source_event_id']}", "200 or 201", result)
            else:
                refused += 1
                city.outcomes["refused"] += 1
        city.tick(start + len(chunk), len(rows))
    return f"{len(rows)} rows, {fresh} new, {refused} refused, {len(cases)} compared with the story"


def hand_over_files(city: City) -> str:
    """NDJSON and gzipped CSV as jobs; what must be refused is refused, row by row."""
    said = []
    for file in city.day.files(set(city.behaviours)):
        job = _run_file(city, file)
        _check_job(city, file, job)
        for name in ("credited", "pending", "recorded", "parked"):
            city.outcomes[name] += job[name]
        refused = file.refused.total()
        city.outcomes["refused"] += refused
        city.outcomes["rejected"] += max(job["rejected"] - refused, 0)
        city.outcomes["repeat"] += job["duplicate"]
        said.append(f"{file.name} {job['total']:,} rows at {job['rows_per_second']:,}/s")
    _check_filed_cases(city)
    return ", ".join(said)


def _run_file(city: City, file: FeedFile) -> Row:
    gzipped = file.media_type == "text/csv"
    body = gzip.compress(file.body, mtime=0) if gzipped else file.body
    headers = {
        **city.partner,
        "Content-Type": file.media_type,
        **({"Content-Encoding": "gzip"} if gzipped else {}),
        # A retry of this run is the same job; the next run hands the file over once more.
        "Idempotency-Key": f"demo-{file.name}-{city.record.run}",
    }
    path = "/v1/feeds/activities/files"
    answer = city.client.call("POST", path, data=body, headers=headers, expecting=202)
    expect("Location", f"/v1/jobs/{answer.json()['job_id']}", answer.headers.get("Location"))
    return wait_for_job(city, answer.json()["job_id"], file.rows)


def wait_for_job(city: City, job_id: str, rows: int) -> Row:
    """The job when it is done."""
    deadline = time.monotonic() + JOB_S
    while time.monotonic() < deadline:
        job: Row = city.client.get(f"/v1/jobs/{job_id}", headers=city.partner)
        city.tick(job["done"], rows)
        if job["state"] == "done":
            return job
        if job["state"] == "failed":
            raise StepFailed(f"job {job_id}", "done", job["failure"])
        time.sleep(POLL_S)
    raise StepFailed(f"job {job_id}", f"done within {JOB_S:.0f} s", job)


def _check_job(city: City, file: FeedFile, job: Row) -> None:
    expect(f"{file.name}: rows", file.rows, job["total"])
    names = ("credited", "pending", "recorded", "rejected", "duplicate", "parked")
    expect(f"{file.name}: rows accounted for", file.rows, sum(job[name] for name in names))
    errors = city.client.call("GET", job["errors_url"], headers=city.partner)
    lines = [json.loads(line) for line in errors.text.splitlines()]
    expect(f"{file.name}: rejected rows that are listed", job["rejected"], len(lines))
    # Beside them rows that were kept and credited nothing: too old, in the future, somebody else's.
    codes = Counter(line["code"] for line in lines if line["code"] in REFUSED)
    expect(f"{file.name}: refused rows", dict(file.refused), dict(codes))
    if city.repeated:
        repeats = file.rows - file.refused.total()
        expect(f"{file.name}: repeats", repeats, job["duplicate"])


def _check_filed_cases(city: City) -> None:
    neighbour = city.person("neighbour")
    found = _by_event(city, neighbour)
    for case in (*story.through(story.NDJSON), *story.through(story.CSV)):
        if case.event not in found:
            raise StepFailed(case.event, "an activity", "none")
        check_activity(case, found[case.event])


def _by_event(city: City, person: Person) -> dict[str, Row]:
    rows = city.client.pages("/v1/activities", person.headers)
    return {row["source_event_id"]: row for row in rows}


def link_late(city: City) -> str:
    """Somebody links a card whose rows were parked; they are credited now."""
    person = city.person("late_linker")
    card = f"card-{person.who}"
    rows = [row for row in city.day.rides_of(card) if row["behaviour"] in city.behaviours]
    wanted = {row["source_event_id"] for row in rows}
    link(city, person, card)
    deadline = time.monotonic() + WAIT_S
    missing = wanted
    while time.monotonic() < deadline:
        found = _by_event(city, person)
        missing = wanted - set(found)
        if not missing:
            grams = sum(row["reduction_g"] for row in found.values())
            city.acknowledged |= {(person.who, event) for event in wanted}
            return f"{len(wanted)} parked rows became {grams / 1000:.1f} kg"
        # The request that linked may have been cut off; a sweep finishes it within two minutes.
        time.sleep(1)
    raise StepFailed("parked rows", "all credited", f"{len(missing)} missing")


def refund(city: City) -> str:
    """A fare is refunded: the partner takes the ride back, its grams and points go."""
    walker = city.person("walker")
    ride = {
        "external_id": f"card-{walker.who}",
        "behaviour": "bus_km",
        "quantity": 1,
        "occurred_at": city.day.calendar.instant(35, "08:00:00").isoformat(),
        "source_event_id": "refunded-1",
    }
    sent = {"activities": [ride]}
    result = city.client.post("/v1/feeds/activities", sent, headers=city.partner)["results"][0]
    note(city, walker.who, result)
    earned = _earned(city, walker)
    path = "/v1/feeds/activities/refunded-1/reverse"
    answer = city.client.post(path, {"reason": "fare refunded"}, headers=city.partner)
    expect("refunded ride", "reversed", answer["status"])
    taken = earned - _earned(city, walker)
    expect("points taken back", REFUNDED_POINTS if result["status_code"] == 201 else 0, taken)
    return f"1 km by bus taken back with its {REFUNDED_POINTS} points"


def _earned(city: City, person: Person) -> int:
    return int(city.client.get("/v1/me/points", headers=person.headers)["lifetime_earned"])


def watch_a_ride(city: City) -> str:
    """A ride of 48 hours ago is pending; seconds later its points are available."""
    watcher = city.person("watcher")
    kept = city.record.get("watched_at")
    if kept is None:
        kept = (clock.now() - MATURITY + WATCHED).isoformat()
        city.record.keep(watched_at=kept)
    row = {
        "external_id": f"card-{watcher.who}",
        "behaviour": "bus_km",
        "quantity": WATCHED_KM,
        "occurred_at": kept,
        "source_event_id": "watched-1",
    }
    sent = {"activities": [row]}
    result = city.client.post("/v1/feeds/activities", sent, headers=city.partner)["results"][0]
    seen = [result["activity"]["status"]]
    note(city, watcher.who, result)
    points = city.client.get("/v1/me/points", headers=watcher.headers)
    if result["status_code"] == 201 and seen == ["pending"]:
        expect("pending points", (WATCHED_POINTS, 0), (points["pending"], points["available"]))
    elif city.fresh and not city.client.sent_again:
        raise StepFailed("a ride of 48 hours ago", "pending", result)
    path = f"/v1/activities/{result['activity']['id']}"
    deadline = time.monotonic() + WAIT_S
    while seen[-1] != "credited" and time.monotonic() < deadline:
        time.sleep(POLL_S)
        seen.append(city.client.get(path, headers=watcher.headers)["status"])
    expect("the ride after 48 hours", "credited", seen[-1])
    points = city.client.get("/v1/me/points", headers=watcher.headers)
    expect("available points", (0, WATCHED_POINTS), (points["pending"], points["available"]))
    return f"{' then '.join(dict.fromkeys(seen))}: {WATCHED_POINTS} points available"


def bills(city: City) -> str:
    """Households link their meters and the utility hands over its bills."""
    joins = [
        (city.people[who], {name: home[name] for name in ("carrier", "account_no", "members")})
        for home in city.day.people["households"]
        for who in home["who"]
    ]
    for person, wanted in joins:
        # The second resident of a household must find it opened, so one after the other.
        path = "/v1/me/households"
        city.client.call("POST", path, json=wanted, headers=person.headers, expecting=(201, 409))
    rows = city.day.bills()
    codes: Counter[str] = Counter()
    for start in range(0, len(rows), 100):
        chunk = rows[start : start + 100]
        answer = city.client.post("/v1/feeds/bills", {"bills": chunk}, headers=city.partner)
        expect("results of bills", len(chunk), len(answer["results"]))
        for bill, result in zip(chunk, answer["results"], strict=True):
            codes[_bill_outcome(city, bill, result)] += 1
        city.tick(start + len(chunk), len(rows))
    wanted = {
        "account_not_linked": 1, "bill_overlaps": 1, "validation_failed": 2
    }  # fmt: skip
    refusals = {code: count for code, count in codes.items() if code not in ("bill", "repeat")}
    expect("refused bills", wanted, refusals)
    shares = _story_shares(city)
    return f"{len(rows)} bills, {len(joins)} places at meters; 30 kWh saved: {shares}"


def _bill_outcome(city: City, bill: Row, result: Row) -> str:
    if "problem" in result:
        return str(result["problem"]["code"])
    if result["status_code"] not in (200, 201):
        raise StepFailed(f"bill {bill['source_event_id']}", "200 or 201", result)
    return "bill" if result["status_code"] == 201 else "repeat"


def _story_shares(city: City) -> str:
    """Both members of the story's household got their half of the saving."""
    last = city.day.calendar.month("m-1")
    span = {"from": f"{last}-01", "to": clock.last_day(last).isoformat(), "by": "month"}
    for role in ("walker", "neighbour"):
        person = city.person(role)
        summary: Any = city.client.get("/v1/me/summary", headers=person.headers, params=span)
        saved = summary["by_behaviour"].get("electricity_saving", {"reduction_g": 0})
        expect(f"share of the {role}", story.BILL_SHARE_G, story.exact(saved["reduction_g"]))
    return f"{story.BILL_SHARE_G} g for each of two"
