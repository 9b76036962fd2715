"""Balance and entries over HTTP: for the resident, and for the operator who helps them."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from callers import Caller, machine, resident, said
from faults import scenarios
from flask import Flask
from lives import did
from shop import EARNED, Shop, open_shop, rich_resident

from accounting import clients, clock, tokens
from accounting.clients import Kind
from points import crediting, holds

HOUR, MS = timedelta(hours=1), timedelta(milliseconds=1)
# Wednesday 20 May 2026, noon in the city.
NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.travel(NOON - clock.now()):
        yield


@pytest.fixture
def shop(app: Flask) -> Shop:
    return open_shop(app)


@pytest.fixture
def me(app: Flask) -> Caller:
    return rich_resident(app)


def redeem(me: Caller, reward_id: str, key: str = "k1", **body: Any) -> Any:
    return me.post("/v1/redemptions", {"reward_id": reward_id, **body}, key=key)


def entries(me: Caller, of: str = "me") -> list[dict[str, Any]]:
    """Every entry, oldest first, page by page."""
    rows: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        more = f"&cursor={cursor}" if cursor else ""
        page = me.get(f"/v1/{of}/points/entries?limit=3{more}").get_json()
        rows, cursor = rows + page["items"], page["next_cursor"]
    return rows[::-1]


def test_a_new_resident_has_a_wallet_of_zeros(app: Flask) -> None:
    points = resident(app).get("/v1/me/points").get_json()
    as_of = points.pop("as_of")
    assert points == {
        "available": 0, "pending": 0, "held": 0, "owed": 0, "lifetime_earned": 0, "spent": 0,
        "expired": 0, "expiring": [],
    }  # fmt: skip
    assert as_of.startswith("2026-05-20T04:00:")


def test_the_balance_says_what_expires_when_and_what_it_was(me: Caller) -> None:
    points = me.get("/v1/me/points").get_json()
    assert (points["available"], points["pending"], points["lifetime_earned"]) == (
        EARNED,
        0,
        EARNED,
    )
    # 24 months after the month of the activity.
    assert points["expiring"] == [{"on": "2028-05-31", "points": EARNED}]
    before = me.get("/v1/me/points?as_of=2026-05-20T11:59:59%2B08:00").get_json()
    assert (before["available"], before["as_of"]) == (0, "2026-05-20T03:59:59.000Z")
    for wrong in ("2026-05-20", "2026-05-20T11:59:59", "now", ""):
        answer = me.get(f"/v1/me/points?as_of={wrong}")
        assert said(answer) == (422, "validation_failed")


def test_every_entry_of_the_account_is_shown_newest_first(me: Caller, shop: Shop) -> None:
    redemption = redeem(me, shop.offer()).get_json()
    rows = me.get("/v1/me/points/entries").get_json()["items"]
    assert [row["kind"] for row in rows] == ["spend", "earn"]
    spend, earn = rows
    assert (earn["points"], earn["available_after"], earn["seq"]) == (EARNED, EARNED, 1)
    assert (spend["points"], spend["available_after"], spend["seq"]) == (-500, EARNED - 500, 2)
    assert spend["redemption_id"] == redemption["id"]
    assert (earn["reason"], earn["funder"]) == ("recycle_kg", "city")
    [activity] = me.get("/v1/activities").get_json()["items"]
    assert earn["activity_id"] == activity["id"]
    assert earn["occurred_at"] == "2026-05-18T02:00:00.000Z"
    first = me.get("/v1/me/points/entries?limit=1").get_json()
    assert first["items"] == [spend]
    second = me.get(f"/v1/me/points/entries?limit=1&cursor={first['next_cursor']}").get_json()
    assert (second["items"], second["next_cursor"]) == ([earn], None)


def instant(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def test_the_balance_of_an_instant_is_exact_to_the_millisecond(me: Caller) -> None:
    with clock.stand(NOON + 2 * HOUR):
        holds.hold(me.id, "h1", 900, HOUR, purpose="scale")
        ride = did(me.id, "bus_km", 5, NOON - 4 * HOUR, minutes=18)
    with clock.stand(NOON + 5 * HOUR):
        scenarios.move_points(me.id, "s1", "spend", 100)
    assert ride.points == 134
    matures = NOON - 4 * HOUR + timedelta(minutes=18) + 48 * HOUR
    expected = {
        NOON + 2 * HOUR - MS: (EARNED, 0, 0, 0),
        # The hold and the ride were recorded at this very instant.
        NOON + 2 * HOUR: (EARNED - 900, 134, 900, 0),
        # It ran out without an entry, then points were spent,
        NOON + 3 * HOUR - MS: (EARNED - 900, 134, 900, 0),
        NOON + 3 * HOUR: (EARNED, 134, 0, 0),
        NOON + 5 * HOUR - MS: (EARNED, 134, 0, 0),
        NOON + 5 * HOUR: (EARNED - 100, 134, 0, 100),
        # and the ride matured after the last of them.
        matures - MS: (EARNED - 100, 134, 0, 100),
        matures: (EARNED + 34, 0, 0, 100),
    }
    with clock.stand(matures + 24 * HOUR):
        token = tokens.open_session(me.id).access_token
        later = Caller(me.http, me.id, token)
        for at, (available, pending, held, spent) in expected.items():
            points = later.get(f"/v1/me/points?as_of={instant(at)}").get_json()
            found = [points[name] for name in ("available", "pending", "held", "spent", "as_of")]
            assert found == [available, pending, held, spent, instant(at)]
        # Nobody knows the future: it answers for now.
        ahead = later.get(f"/v1/me/points?as_of={instant(matures + 999 * HOUR)}").get_json()
        assert ahead["as_of"] == instant(matures + 24 * HOUR)


def test_the_statement_of_an_account_adds_up_in_every_column(me: Caller, shop: Shop) -> None:
    done = redeem(me, shop.offer(), quantity=2).get_json()
    ride = did(me.id, "bus_km", 5, NOON - 4 * HOUR, minutes=18)
    redeem(me, shop.offer(price_points=26_000 - 200), key="k2")
    holds.hold(me.id, "h1", 100, HOUR, purpose="scale")
    crediting.reverse(ride, reason="refund", by="op")
    holds.capture(me.id, "h1", 30, reason="weighed")
    me.post(f"/v1/redemptions/{done['id']}/cancel")
    running = {"available": 0, "pending": 0, "held": 0, "owed": 0}
    rows = entries(me)
    for row in rows:
        for name, change in row["changes"].items():
            running[name] += change
        assert row["available_after"] == running["available"]
    points = me.get("/v1/me/points").get_json()
    assert {name: points[name] for name in running} == running
    assert [(row["kind"], row["points"]) for row in rows] == [
        ("earn", 26_900),
        ("spend", -1_000),
        ("earn", 134),
        ("spend", -25_800),
        ("hold", -100),
        ("reverse", -134),
        ("spend", -30),
        ("release", 1_000),
    ]
    # 26,900 - 25,800 - 30.
    assert running == {"available": 1_070, "pending": 0, "held": 0, "owed": 0}


def test_an_entry_names_what_it_is_about(me: Caller) -> None:
    holds.hold(me.id, "h1", 100, HOUR, purpose="Weighing pomelos")
    earned, held = entries(me)
    assert (earned["rule"], earned["funder"]) == ("QZ-PTS-2026.1", "city")
    assert (earned["methodology_version"], earned["reason"]) == ("QZ-RES-2026.1", "recycle_kg")
    assert earned["funders"] == [{"funder": "city", "points": EARNED}]
    assert (earned["campaigns"], held["funders"]) == ([], [])
    assert (held["hold"], held["reason"]) == ("h1", "Weighing pomelos")
    assert held.keys().isdisjoint({"activity_id", "redemption_id", "rule", "funder"})


# --- for the operator -----------------------------------------------------------------------------


def test_support_sees_what_the_resident_sees_and_the_look_is_recorded(
    app: Flask, me: Caller
) -> None:
    support, auditor = operator(app, "operator:support"), machine(app, Kind.OPERATOR)
    with clock.stand(clock.now()):
        mine = me.get("/v1/me/points").get_json()
        theirs = support.get(f"/v1/operator/residents/{me.id}/points").get_json()
    assert theirs == mine
    assert entries(support, f"operator/residents/{me.id}") == entries(me)
    before = support.get(
        f"/v1/operator/residents/{me.id}/points?as_of=2026-05-20T11:59:59%2B08:00"
    ).get_json()
    assert before["available"] == 0
    looks = auditor.get(f"/v1/operator/audit?subject={me.id}").get_json()["items"]
    assert [(row["actor"], row["action"]) for row in looks] == [
        (support.id, "balance looked at"),
        (support.id, "entries looked at"),
        (support.id, "balance looked at"),
    ]


@pytest.mark.parametrize("path", ["points", "points/entries"])
def test_other_areas_see_no_account_and_nobody_has_none(app: Flask, me: Caller, path: str) -> None:
    where = f"/v1/operator/residents/{me.id}/{path}"
    assert said(operator(app, "operator:rewards").get(where)) == (403, "forbidden")
    assert said(me.get(where)) == (403, "forbidden")
    support = operator(app, "operator:support")
    nobody = support.get(f"/v1/operator/residents/res_none/{path}")
    assert said(nobody) == (404, "not_found")
    wrong = "as_of=yesterday" if path == "points" else "limit=0"
    assert said(support.get(f"{where}?{wrong}")) == (422, "validation_failed")


def operator(app: Flask, scope: str) -> Caller:
    """An operator who is trusted with one area."""
    client, _ = clients.create_client(Kind.OPERATOR, scope, scopes=(scope,))
    token, _ = tokens.issue_client_token(client, frozenset(client.scopes))
    return Caller(app.test_client(), client.client_id, token)
