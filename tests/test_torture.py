"""A short torture of the shared demo stack; `tanhui torture` goes on for as long as you like.

And what its checks say when something is wrong, on a store that is made wrong by hand.
"""

import random
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from callers import Caller
from flask import Flask
from shop import Shop, open_shop, rich_resident
from stacks import ENVIRONMENT, PATIENCE_S, Stack

from accounting import clock, storage
from api import stack
from api.torture import checks
from api.torture.checks import Run
from api.torture.load import FACE_FEN, PRICE, STOCK, Ledger
from api.torture.victims import API_WORKER, KILLS_IN_WINDOW_MAX, PARTS, Victims

NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)


@pytest.mark.timeout(3 * PATIENCE_S)
def test_while_parts_die_nothing_is_lost_and_nothing_is_done_twice(demo_stack: Stack) -> None:
    script = Path(__file__).parent / "faults" / "short_torture.py"
    done = subprocess.run(
        [sys.executable, str(script), str(demo_stack.data_dir), demo_stack.base_url, "7", "8"],
        capture_output=True,
        text=True,
        cwd=stack.ROOT,
        env=ENVIRONMENT | {"PYTHONPATH": str(stack.ROOT), "COLUMNS": "120"},
        timeout=2 * PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    killed = [int(number) for number in re.findall(r"killed .*?(\d+) │", done.stdout)]
    assert sum(killed) >= 3, done.stdout
    for what in ("activity", "row", "redemption"):
        assert re.search(rf"acknowledged │ {what}", done.stdout), done.stdout


def test_every_part_is_found_and_none_dies_so_often_that_it_is_given_up(demo_stack: Stack) -> None:
    victims = Victims(demo_stack.facts["pid"], random.Random(1))
    living = victims.living()
    assert living.keys() == {*PARTS.values(), API_WORKER}
    assert len(living[API_WORKER]) == 2
    for name in living:
        for _ in range(KILLS_IN_WINDOW_MAX):
            assert victims._may_die(name, 100.0)
            victims._recent[name].append(100.0)
        assert not victims._may_die(name, 150.0)
    assert victims.kill_one(150.0) is None
    assert victims._may_die("mongod", 161.0)


# What the checks see.


@pytest.fixture(autouse=True)
def _noon(request: pytest.FixtureRequest) -> Iterator[None]:
    if "demo_stack" in request.fixturenames:  # Its clock runs.
        yield
        return
    with clock.travel(NOON - clock.now()):
        yield


@pytest.fixture
def run(app: Flask) -> Run:
    """A resident who redeemed twice, cancelled one and had the other's first voucher scanned."""
    me, shop = rich_resident(app), open_shop(app)
    reward_id = shop.offer(price_points=PRICE, face_value_fen=FACE_FEN, stock=STOCK)
    ledger = Ledger()
    for item in me.get("/v1/activities").get_json()["items"]:
        ledger.acknowledge(f"{me.id}/{item['source_event_id']}", item["id"])
    kept, back = (_redeem(me, reward_id, key, ledger) for key in ("a", "b"))
    assert me.post(f"/v1/redemptions/{back['id']}/cancel").status_code == 200
    ledger.cancelled.add(back["id"])
    _scan(shop, kept, ledger)
    return Run(ledger, [me.id], reward_id, shop.till.id)


def _redeem(me: Caller, reward_id: str, key: str, ledger: Ledger) -> dict[str, Any]:
    body = {"reward_id": reward_id, "quantity": 2}
    redemption: dict[str, Any] = me.post("/v1/redemptions", body, key=key).get_json()
    ledger.redemptions[redemption["id"]] = (me.id, 2)
    return redemption


def _scan(shop: Shop, redemption: dict[str, Any], ledger: Ledger) -> None:
    [voucher, _] = redemption["vouchers"]
    body = {"code": voucher["code"], "store_id": shop.store_id, "terminal_ref": "t1"}
    assert shop.till.post("/v1/merchant/vouchers/redeem", body).status_code == 200
    ledger.scanned.add(voucher["id"])


def found(run: Run) -> list[str]:
    return checks.problems(run, lambda count: None)


def test_where_all_is_well_the_checks_say_nothing(run: Run) -> None:
    assert found(run) == []
    assert checks.half_way() == {}


@pytest.mark.parametrize(
    ("collection", "which", "change", "says"),
    [
        ("activities", {}, None, "acknowledged and is not there"),
        ("activities", {}, {"$set": {"event_id": "other"}}, "is another than was acknowledged"),
        ("redemptions", {"state": "issued"}, {"$set": {"quantity": 1}}, "is issued"),
        ("redemptions", {"state": "issued"}, {"$set": {"points": 1}}, "for what costs 1"),
        ("vouchers", {"status": "issued"}, None, "has not the vouchers"),
        ("vouchers", {"status": "used"}, {"$set": {"status": "issued"}}, "was taken and is issued"),
        ("rewards", {}, {"$inc": {"stock_left": -1}}, f"of {STOCK} in stock 2 are with residents"),
        ("entries", {"seq": 1}, {"$set": {"after.lifetime_mg": 1}}, "the book does not hold"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(
    run: Run, collection: str, which: dict[str, Any], change: dict[str, Any] | None, says: str
) -> None:
    rows = storage.database()[collection]
    if change is None:
        assert rows.delete_one(which).deleted_count == 1
    else:
        assert rows.update_one(which, change).modified_count == 1
    assert any(says in problem for problem in found(run)), found(run)


def test_an_answer_that_contradicts_an_earlier_one_is_wrong(run: Run) -> None:
    [(event, activity_id)] = run.ledger.activities.items()
    run.ledger.acknowledge(event, activity_id)
    assert found(run) == []
    run.ledger.acknowledge(event, "act_other")
    assert found(run) == [f"{event} was {activity_id} and then act_other"]


@pytest.mark.parametrize(
    ("collection", "change"),
    [
        ("activities", {"state": "received"}),
        ("redemptions", {"state": "asked"}),
        ("vouchers", {"unbooked_since": NOON}),
    ],
)
def test_what_is_half_way_is_counted(run: Run, collection: str, change: dict[str, Any]) -> None:
    storage.database()[collection].update_one({}, {"$set": change})
    assert checks.half_way() == {collection: 1}
