"""Steps around milestones: pushed to the stand-in once each, and always in the inbox."""

import time
from collections import Counter

from api.demo.city import City, Person
from api.demo.client import StepFailed, expect
from api.demo.inputs import Row
from api.demo.residents import APP_REMOVED, device_token

WAIT_S = 90.0
POLL_S = 0.4
WAITING = ("queued", "retrying", "deferred")
MILESTONE = "milestone"


def received(city: City) -> Counter[str]:
    """How often each notification reached the stand-in, by its dedupe id."""
    if city.fcm_url is None:
        return Counter()
    rows = city.client.get(f"{city.fcm_url}/_received")
    ours = {device_token(who) for who in range(1, len(city.day.people["residents"]) + 1)}
    return Counter(
        row["message"]["data"]["notification_id"]
        for row in rows
        if row["message"].get("token") in ours
    )


def check(city: City) -> str:
    """Every milestone is in the inbox and reached the phone once, with its dedupe id."""
    people = list(city.people.values())
    rows = _settled_inboxes(city, people)
    states = Counter(row["delivery"] for _, row in rows)
    city.tables["pushes"] = states
    if not rows:
        raise StepFailed("milestones", "some in the inboxes", "none")
    for who, row in rows:
        wanted = ("failed", "no_device") if who == APP_REMOVED else ("sent",)
        if row["delivery"] not in wanted:
            raise StepFailed(f"push to resident {who}", " or ".join(wanted), row["delivery"])
    said = f"{len(rows)} milestones in the inboxes, {states['sent']} pushed"
    if city.fcm_url is not None:
        said += f", {_check_standin(city, rows)}"
    _check_reading(city, people[0])
    _check_milestones(city, people[0])
    return said


def _settled_inboxes(city: City, people: list[Person]) -> list[tuple[int, Row]]:
    """All milestone notifications by resident, once no delivery is under way any more."""
    deadline = time.monotonic() + WAIT_S
    while True:
        found = city.each(
            lambda one: city.client.pages("/v1/me/notifications", one.headers), people
        )
        rows = [
            (person.who, row)
            for person, inbox in zip(people, found, strict=True)
            for row in inbox
            if row["type"] == MILESTONE
        ]
        waiting = sum(row["delivery"] in WAITING for _, row in rows)
        if not waiting:
            return rows
        if time.monotonic() > deadline:
            raise StepFailed("pushes", "all carried", f"{waiting} still waiting")
        time.sleep(POLL_S)


def _check_standin(city: City, rows: list[tuple[int, Row]]) -> str:
    now = received(city)
    before: Counter[str] = city.tables["received_before"]
    if city.repeated:
        # Word of another kind may have been on its way yet when the first run ended.
        ours = before.keys() | {row["id"] for _, row in rows}
        again = sum(count for one, count in (now - before).items() if one in ours)
        expect("pushes of a repeated day", 0, again)
        return "none of them again"
    sent = {row["id"] for _, row in rows if row["delivery"] == "sent"}
    missing = sent - set(now)
    if city.fresh and missing:
        raise StepFailed("messages at the stand-in", f"all {len(sent)}", f"{len(missing)} missing")
    twice = sum(now[one] > 1 for one in sent)
    # A worker that was killed may have sent one without writing it down; the app drops it by id.
    if not city.client.sent_again:
        expect("messages that came twice", 0, twice)
    return f"{twice} of them twice" if twice else "each once with its dedupe id"


def _check_reading(city: City, person: Person) -> None:
    inbox = city.client.get("/v1/me/notifications", headers=person.headers)
    newest = inbox["items"][0]
    path = f"/v1/me/notifications/{newest['id']}/read"
    city.client.call("POST", path, headers=person.headers, expecting=204)
    after = city.client.get("/v1/me/notifications", headers=person.headers)
    expected = inbox["unread"] - (newest["read_at"] is None)
    expect("unread after reading one", expected, after["unread"])


def _check_milestones(city: City, person: Person) -> None:
    """The milestones reached are those below what was avoided, the next one lies above."""
    found = city.client.get("/v1/me/milestones", headers=person.headers)
    kg = city.client.get("/v1/me/grade", headers=person.headers)["reduction_kg"]
    reached = [one["kg"] for one in found["reached"] if one["kind"] == "lifetime"]
    following = found["next"]["kg"] if found["next"] else float("inf")
    # Steps count for milestones and not for the grade, so the grade's sum may be a little less.
    if not (reached and reached == sorted(reached) and kg < following):
        raise StepFailed(f"milestones of resident {person.who}", f"up to {kg} kg", found)
