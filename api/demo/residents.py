"""Steps of the residents: sign in, settings and phones, links, what their apps report."""

from typing import Any

from api.demo import story
from api.demo.city import City, Person
from api.demo.client import StepFailed, expect
from api.demo.inputs import Row

BATCH_MAX = 100
NEEDED = (
    ("/v1/activities/batch", "post"),
    ("/v1/feeds/activities/files", "post"),
    ("/v1/feeds/bills", "post"),
    ("/v1/me/households", "post"),
    ("/v1/bank/grades/query", "post"),
)
BEHAVIOURS = 27
APP_REMOVED = 2


def look_around(city: City) -> str:
    """The stack is ready, and its documentation names the doors the demo goes through."""
    ready = city.client.get("/readyz")
    expect("readiness", "ready", ready["status"])
    paths = city.client.get("/openapi.json")["paths"]
    for path, method in NEEDED:
        if method not in paths.get(path, {}):
            raise StepFailed("OpenAPI", f"{method.upper()} {path}", "no such path")
    methodology = city.client.get("/v1/behaviours")
    city.behaviours = {one["code"]: one for one in methodology["items"]}
    expect("behaviours", BEHAVIOURS, len(city.behaviours))
    city.partner = city.client.bearer(city.credentials["data_partner"])
    return f"{len(paths)} addresses, methodology {methodology['methodology_version']}"


def sign_in(city: City) -> str:
    """Everybody signs in: by refresh token if one is kept, else by a code."""
    wanted = city.day.people["residents"]
    known = city.credentials["residents"]
    if len(wanted) > len(known):
        raise StepFailed("demo residents", f"at least {len(wanted)}", len(known))

    def enter(place: int) -> bool:
        phone = known[place]["phone"]
        person, by_code = enter_by_phone(city, place + 1, phone)
        expect(f"resident of {phone}", known[place]["resident_id"], person.resident_id)
        city.people[place + 1] = person
        return by_code

    codes = sum(city.each(enter, range(len(wanted))))
    return f"{len(wanted)} residents, {codes} by code, {len(wanted) - codes} by refresh token"


def enter_by_phone(city: City, who: int, phone: str) -> tuple[Person, bool]:
    """One resident signed in, and whether that took a code."""
    kept = city.sessions.of(phone)
    tokens: Row | None = None
    if kept is not None:
        answer = city.client.call(
            "POST", "/v1/auth/refresh", json={"refresh_token": kept}, expecting=(200, 401)
        )
        tokens = answer.json() if answer.status_code == 200 else None
    by_code = tokens is None
    if tokens is None:
        # Sent again after Retry-After when this phone asked for a code less than a minute ago.
        code = city.client.post("/v1/auth/otp", {"phone": phone}, expecting=202)["debug_code"]
        tokens = city.client.post("/v1/auth/token", {"phone": phone, "code": code})
    city.sessions.keep(phone, tokens["refresh_token"])
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    return Person(who, phone, tokens["resident_id"], headers), by_code


def settle_in(city: City) -> str:
    """Language, no quiet hours (the demo runs at any time of day), a phone for notifications."""

    def settle(person: Person) -> None:
        wanted = {"language": "zh" if person.who % 3 else "en", "quiet_hours": None}
        got = city.client.call("PATCH", "/v1/me", json=wanted, headers=person.headers).json()
        expect("settings", wanted, {name: got[name] for name in wanted})
        device = {"token": device_token(person.who), "platform": "android"}
        city.client.post("/v1/me/devices", device, headers=person.headers, expecting=201)

    city.each(settle, city.people.values())
    return f"{len(city.people)} phones registered"


def device_token(who: int) -> str:
    """The stand-in takes a token that starts with `dead-` for an app that was removed."""
    return f"{'dead' if who == APP_REMOVED else 'demo'}-phone-{who:04d}"


def link_cards(city: City) -> str:
    """Bus card and bank card of everybody but the one who does it later."""
    late = city.person("late_linker").who
    pairs = [
        (person, kind)
        for person in city.people.values()
        for kind in ("card", "pay")
        if person.who != late
    ]
    fresh = sum(city.each(lambda pair: link(city, pair[0], f"{pair[1]}-{pair[0].who}"), pairs))
    return f"{len(pairs)} partner ids linked ({fresh} new)"


def link(city: City, person: Person, external_id: str) -> bool:
    """Link a partner's id; False if this person had linked it before."""
    wanted = {"partner_id": city.credentials["data_partner"]["partner_id"]}
    answer = city.client.call(
        "POST",
        "/v1/me/links",
        json={**wanted, "external_id": external_id},
        headers=person.headers,
        expecting=(201, 409),
    )
    if answer.status_code == 409:
        mine = [one["external_id"] for one in city.client.pages("/v1/me/links", person.headers)]
        expect(f"links of resident {person.who}", True, external_id in mine)
    return answer.status_code == 201


def report_from_apps(city: City) -> str:
    """Phones report rides and steps, in batches; the hand-picked ones one by one."""
    walker = city.person("walker").who
    reports = city.day.app()
    fresh = sum(
        city.each(
            lambda who: _report_batch(city, city.people[who], reports[who]),
            [who for who in reports if who != walker],
        )
    )
    checked = _report_story(city, city.people[walker], reports[walker])
    total = sum(map(len, reports.values()))
    return f"{total} reports, {fresh} new, {checked} compared with the story"


def _report_batch(city: City, person: Person, reports: list[Row]) -> int:
    fresh = 0
    for start in range(0, len(reports), BATCH_MAX):
        chunk = reports[start : start + BATCH_MAX]
        answer = city.client.post(
            "/v1/activities/batch", {"activities": chunk}, headers=person.app_headers
        )
        expect("results of a batch", len(chunk), len(answer["results"]))
        for report, result in zip(chunk, answer["results"], strict=True):
            if result["status_code"] not in (200, 201):
                raise StepFailed(f"report {report['source_event_id']}", "200 or 201", result)
            fresh += note(city, person.who, result)
    return fresh


def _report_story(city: City, person: Person, reports: list[Row]) -> int:
    first: dict[str, str] = {}
    for case, report in zip(story.through(story.APP), reports, strict=True):
        answer = city.client.call(
            "POST",
            "/v1/activities",
            json=report,
            headers=person.app_headers,
            expecting=(200, 201, 409, 422),
        )
        got: dict[str, Any] = answer.json()
        result = {"status_code": answer.status_code}
        refused = answer.status_code >= 400
        check_case(city, case, result | ({"problem": got} if refused else {"activity": got}))
        if not refused:
            earlier = first.setdefault(case.event, got["id"])
            expect(f"{case.event}: the same activity", earlier, got["id"])
            note(city, person.who, result | {"activity": got})
    return len(reports)


def check_case(city: City, case: story.Case, result: Row) -> None:
    """Compare one answer with the story; a second run is answered 200 instead of 201."""
    what = f"{case.event} ({case.how})"
    wanted = (200, 201) if case.code == 201 and not city.fresh else (case.code,)
    # A first try whose answer was lost makes the next one a repeat.
    if case.code == 201 and city.client.sent_again:
        wanted = (200, 201)
    if result["status_code"] not in wanted:
        raise StepFailed(what, f"status {wanted}", result)
    if result["status_code"] >= 400:
        expect(f"{what}: code", case.reasons[0], result["problem"]["code"])
        return
    check_activity(case, result["activity"])


def check_activity(case: story.Case, activity: Row) -> None:
    """Compare an activity with the story: status, reasons, and grams to the milligram."""
    what = f"{case.event} ({case.how})"
    expect(f"{what}: status", case.status, activity["status"])
    reasons = tuple(reason["code"] for reason in activity["reasons"])
    expect(f"{what}: reasons", case.reasons, reasons)
    expect(f"{what}: grams", case.grams, story.exact(activity["reduction_g"]))
    points = int(case.grams) if case.points is None else case.points
    expect(f"{what}: points", points, activity["points"])


def note(city: City, who: int | None, result: Row) -> int:
    """Remember that an event was acknowledged; 1 if it was new."""
    city.acknowledged.add((who, result["activity"]["source_event_id"]))
    fresh = int(result["status_code"] == 201)
    city.outcomes[result["activity"]["status"] if fresh else "repeat"] += 1
    return fresh
