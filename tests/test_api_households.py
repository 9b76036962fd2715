"""Meter accounts over HTTP: who may link one, how many live there, whose history is asked for."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from callers import Caller, partner, resident, said
from flask import Flask
from homes import METER, NOW

from accounting import clock, links
from api.config import Config
from footprint import households


@pytest.fixture(autouse=True)
def _may() -> Iterator[None]:
    with clock.travel(NOW - clock.now()):
        yield


@pytest.fixture
def demo(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with --demo: an account needs no proof."""
    config: Config = app.extensions["config"]
    monkeypatch.setitem(app.extensions, "config", replace(config, demo=True))


def link(who: Caller, members: int = 2, **more: Any) -> Any:
    wanted = {"carrier": "electricity", "account_no": METER, "members": members, **more}
    return who.post("/v1/me/households", wanted)


def linked(who: Caller, members: int = 2, **more: Any) -> str:
    answer = link(who, members, **more)
    assert answer.status_code == 201, answer.text
    household_id: str = answer.get_json()["id"]
    return household_id


def say(who: Caller, household_id: str, members: int) -> tuple[int, Any]:
    answer = who.patch(f"/v1/me/households/{household_id}", {"members": members})
    assert answer.status_code == 200, answer.text
    body = answer.get_json()
    return body["members"], body["proposed"]


def code_of(grid: Caller) -> str:
    return links.issue_code(grid.id, METER)[0]


def test_a_meter_account_needs_a_code_of_a_utility_of_its_carrier(app: Flask) -> None:
    me = resident(app)
    grid, water = partner(app, carriers=["electricity"]), partner(app, carriers=["water"])
    refused = (422, "invalid_link_code")
    assert said(link(me)) == refused
    assert said(link(me, partner_id=grid.id)) == refused
    assert said(link(me, partner_id=grid.id, link_code="00000000")) == refused
    assert said(link(me, partner_id="nobody", link_code=code_of(grid))) == refused
    # Whoever sends water bills cannot say whose electricity meter it is.
    assert said(link(me, partner_id=water.id, link_code=code_of(water))) == refused
    linked(me, partner_id=grid.id, link_code=code_of(grid))


@pytest.mark.usefixtures("demo")
def test_one_who_lives_alone_on_paper_changes_the_number_at_once(app: Flask) -> None:
    me = resident(app)
    home = linked(me)
    assert say(me, home, 3) == (3, None)


@pytest.mark.usefixtures("demo")
def test_several_must_agree_and_each_is_told(app: Flask) -> None:
    me, you, her = (resident(app) for _ in range(3))
    home = linked(me, 4)
    linked(you, 4)
    linked(her, 4)
    assert say(me, home, 5) == (4, {"members": 5, "agreed": 1})
    assert say(me, home, 5) == (4, {"members": 5, "agreed": 1})
    told = you.get("/v1/me/notifications").get_json()["items"]
    assert [one["type"] for one in told] == ["members_proposed"]
    assert me.get("/v1/me/notifications").get_json()["items"] == []
    # Another number is another proposal; the number in force ends it.
    assert say(you, home, 6) == (4, {"members": 6, "agreed": 1})
    assert say(her, home, 4) == (4, None)
    say(me, home, 5)
    say(you, home, 5)
    assert say(her, home, 5) == (5, None)
    kept = households.by_number("electricity", METER)
    assert kept is not None
    assert (kept.members, [members for _, members in kept.counts]) == (5, [5])
    refused = her.patch(f"/v1/me/households/{home}", {"members": 2})
    assert said(refused) == (409, "members_below_joined")


@pytest.mark.usefixtures("demo")
def test_who_leaves_needs_not_agree(app: Flask) -> None:
    me, you, her = (resident(app) for _ in range(3))
    home = linked(me, 3)
    linked(you, 3)
    linked(her, 3)
    say(me, home, 4)
    say(you, home, 4)
    assert her.delete(f"/v1/me/households/{home}").status_code == 204
    answer = me.get(f"/v1/me/households/{home}").get_json()
    assert (answer["members"], answer["joined"], answer["proposed"]) == (4, 2, None)
    # A proposal nobody else agreed to does not come into force because somebody left.
    say(me, home, 2)
    assert me.delete(f"/v1/me/households/{home}").status_code == 204
    assert you.get(f"/v1/me/households/{home}").get_json()["members"] == 4


@pytest.mark.usefixtures("demo")
def test_agreeing_at_once_is_agreeing(app: Flask) -> None:
    everybody = [resident(app) for _ in range(6)]
    homes = {linked(one, 6) for one in everybody}
    (home,) = homes
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda one: households.change_members(one.id, home, 8), everybody))
    kept = households.by_number("electricity", METER)
    assert kept is not None
    assert kept.members == 8


def test_the_utility_that_proved_an_account_is_asked_for_its_history(app: Flask) -> None:
    me, you = resident(app), resident(app)
    grid, other = (partner(app, carriers=["electricity"]) for _ in range(2))
    home = linked(me, partner_id=grid.id, link_code=code_of(grid))
    linked(you, partner_id=grid.id, link_code=code_of(grid))
    path = "/v1/feeds/bills/histories-asked"
    (asked,) = grid.get(path).get_json()["items"]
    period = (asked["period_start"], asked["period_end"])
    assert (asked["carrier"], asked["account_no"], period) == (
        "electricity",
        METER,
        ("2024-05-01", "2026-05-20"),
    )
    assert other.get(path).get_json()["items"] == []
    # Everybody moved out; the next family's history is asked for anew.
    for who in (me, you):
        who.delete(f"/v1/me/households/{home}")
    later = f"{path}?since=2026-05-20T12:10:00%2B08:00"
    assert grid.get(later).get_json()["items"] == []
    with clock.travel(timedelta(minutes=20)):
        linked(resident(app), 1, partner_id=grid.id, link_code=code_of(grid))
        (again,) = grid.get(later).get_json()["items"]
        assert (again["account_no"], again["asked_at"] > asked["asked_at"]) == (METER, True)


@pytest.mark.usefixtures("demo")
def test_without_proof_whoever_may_send_the_carrier_is_asked(app: Flask) -> None:
    grid, gas = partner(app, carriers=["electricity"]), partner(app, carriers=["gas"])
    path = "/v1/feeds/bills/histories-asked?limit=2"
    for number in range(3):
        with clock.travel(timedelta(minutes=number)):
            linked(resident(app), 1, account_no=f"M-{number}")
    first = grid.get(path).get_json()
    second = grid.get(f"{path}&cursor={first['next_cursor']}").get_json()
    numbers = [one["account_no"] for page in (first, second) for one in page["items"]]
    assert (numbers, second["next_cursor"]) == (["M-0", "M-1", "M-2"], None)
    assert gas.get(path).get_json()["items"] == []
