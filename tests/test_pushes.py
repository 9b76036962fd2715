"""Pushes of operators: to whom, at what pace, by day only, once to each, until they are stopped.

Rows are carried by the real Firebase client to the stand-in over a real socket.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import firebase_admin
import pytest
from callers import new_phone
from faults.crew import KILLED, Crew, Death
from lives import city, did

from accounting import account_filters, accounts, audit, clock, grading, jobs, outbox, storage
from accounting.account_filters import AccountFilter
from accounting.errors import ValidationFailed
from footprint import grade, summaries
from integrations import delivery, devices, firebase
from integrations.fcm_standin import FcmStandin
from integrations.firebase import FirebaseSettings
from integrations.push import FirebasePusher, PushMessage, PushResult
from points import push_audience, pushes
from points.push_audience import Audience, Size
from points.pushes import Push, PushOver, Terms

pytestmark = pytest.mark.usefixtures("app")

NOON = city("2026-05-20 12:00")
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
LEASE_OVER = jobs.LEASE + timedelta(seconds=1)
OPERATOR = "op_1"


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.stand(NOON):
        yield


@pytest.fixture(scope="module")
def one_standin() -> Iterator[FcmStandin]:
    with FcmStandin().running() as server:
        yield server


@pytest.fixture
def standin(one_standin: FcmStandin) -> FcmStandin:
    one_standin._received.clear()
    one_standin._faults.clear()
    return one_standin


@pytest.fixture(scope="module")
def _pusher(one_standin: FcmStandin) -> Iterator[FirebasePusher]:
    app = firebase.client(FirebaseSettings(fcm_url=one_standin.url))
    assert app is not None
    yield FirebasePusher(app)
    firebase_admin.delete_app(app)
    firebase.client.cache_clear()


@pytest.fixture
def pusher(_pusher: FirebasePusher, standin: FcmStandin) -> FirebasePusher:
    return _pusher


def people(count: int) -> list[str]:
    """Residents with a phone each, whose token is `phone-<number>`."""
    found = [accounts.by_phone(new_phone()) for _ in range(count)]
    for number, who in enumerate(found):
        devices.register(who, f"phone-{number}", "android")
    return found


def ask(audience: Audience | None = None, **changes: Any) -> Push:
    terms = {
        "title": {"zh": "地球日", "en": "Earth Day"},
        "body": {"zh": "今天骑车吧", "en": "Ride a bike today"},
        "deep_link": "tanhui://behaviours/bike_shared",
        "audience": audience or Audience(),
    }
    return pushes.ask(Terms(**(terms | changes)), OPERATOR)


def carry(pusher: FirebasePusher) -> int:
    return delivery.carry_due(outbox.MARKETING, pusher, 30)


def rung(standin: FcmStandin) -> list[str]:
    return sorted(one.message["token"] for one in standin.received if one.status == 200)


def counts(push: Push) -> dict[str, int]:
    """What is not zero of the report."""
    report = pushes.report(push.id)
    names = ("left", "waiting", "deferred", "sent", "folded", "dropped", "opened")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


def state(push: Push) -> str:
    return pushes.get(push.id).state


def told(who: str) -> list[str]:
    return [row.title["en"] for row in outbox.inbox(who, before=None, limit=50)]


# To whom.


def graded(who: str, name: str) -> None:
    standing = grading.Standing(name, 0, 0, None, None, None, 0, 0)
    inputs = grade.Inputs(
        policy="QZ-GRADE-2026.1", first_month="2025-05", last_month="2026-05", by_behaviour={},
        active_months=0, credited_mg=0, seq=0, held=None, below=0, scheduled=None, counts=False,
        released=False,
    )  # fmt: skip
    snapshot = grade.Snapshot(who, 1, clock.now(), standing, inputs)
    grade.snapshots().insert_one(grade.document_of(snapshot))


@pytest.fixture
def cast(app: object) -> dict[str, str]:
    """Four who may be written to, one who wants no marketing, one who left.

    Anna rode 5 km by bus (134.5 g); Bo gave 8 kg of recyclables (10.76 kg) in March.
    """
    who = {name: accounts.by_phone(new_phone()) for name in ("anna", "bo", "chen", "dora")}
    accounts.change(who["anna"], {"district": "柯城区"})
    accounts.change(who["bo"], {"district": "衢江区", "language": "en"})
    did(who["anna"], "bus_km", 5, "2026-05-20 08:00", minutes=18)
    with clock.stand(city("2026-03-10 12:00")):
        did(who["bo"], "recycle_kg", 8, "2026-03-10 10:00", slip="1")
    for name in ("anna", "bo"):
        summaries.catch_up(who[name])
    graded(who["anna"], "light")
    graded(who["bo"], "deep")
    seen_at = {"chen": NOON - 10 * DAY, "dora": NOON - 40 * DAY}
    for name, at in seen_at.items():
        change = {"$set": {"seen_at": at}}
        storage.database()["residents"].update_one({"_id": who[name]}, change)
    quiet = accounts.by_phone(new_phone())
    accounts.change(quiet, {"push": {"marketing": False}})
    accounts.close(accounts.by_phone(new_phone()))
    return who


def found(audience: Audience) -> list[str]:
    ids = account_filters.after(audience.accounts(NOON), "", 100)
    return sorted(push_audience.among(audience, ids, NOON))


@pytest.mark.parametrize(
    ("audience", "expected"),
    [
        (Audience(), "anna bo chen dora"),
        (Audience(districts=("柯城区",)), "anna"),
        (Audience(districts=("柯城区", "衢江区")), "anna bo"),
        (Audience(language="zh"), "anna chen dora"),
        (Audience(active_within_days=10), "anna bo chen"),
        (Audience(active_within_days=9), "anna bo"),
        (Audience(inactive_for_days=9), "chen dora"),
        (Audience(inactive_for_days=10), "dora"),
        (Audience(inactive_for_days=9, active_within_days=30), "chen"),
        (Audience(grades=("deep",)), "bo"),
        (Audience(grades=("light", "unrated")), "anna chen dora"),
        (Audience(lifetime_kg_from=10), "bo"),
        (Audience(lifetime_kg_from=0, lifetime_kg_below=1), "anna chen dora"),
        (Audience(lifetime_kg_from=11), ""),
        (Audience(behaviours=("bus_km",)), "anna"),
        (Audience(behaviours=("bus_km", "recycle_kg")), "anna bo"),
        # March, April and May are three months.
        (Audience(behaviours=("recycle_kg",), within_months=3), "bo"),
        (Audience(behaviours=("recycle_kg",), within_months=2), ""),
        (Audience(language="zh", behaviours=("recycle_kg",)), ""),
        (Audience(districts=("衢江区",), grades=("deep",), lifetime_kg_below=11), "bo"),
    ],
)
def test_an_audience_is_narrowed_by_every_part_of_it(
    cast: dict[str, str], audience: Audience, expected: str
) -> None:
    names = {resident: name for name, resident in cast.items()}
    assert sorted(names[one] for one in found(audience)) == expected.split()
    size = push_audience.size(audience, NOON)
    assert (size.people, size.exact) == (len(expected.split()), True)
    assert Audience.of(audience.dump()) == audience


def test_who_wants_no_marketing_is_counted_apart(cast: dict[str, str]) -> None:
    assert push_audience.size(Audience(), NOON) == Size(4, 1, exact=True, looked_at=4)
    assert push_audience.size(Audience(districts=("柯城区",)), NOON).opted_out == 0


def test_a_large_group_is_estimated_from_a_sample(
    cast: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_audience, "LOOKED_AT_MAX", 3)
    # The account alone tells this one, whatever its size.
    assert push_audience.size(Audience(language="zh"), NOON).exact
    # Nobody is graded mid, and everybody has less than 11 kg.
    assert push_audience.size(Audience(grades=("mid",)), NOON).people == 0
    all_of_them = push_audience.size(Audience(lifetime_kg_below=11), NOON)
    assert (all_of_them.people, all_of_them.exact) == (4, False)
    assert all_of_them.looked_at <= 3


def test_a_group_is_counted_and_a_push_reported_without_reading_a_document() -> None:
    which = AccountFilter(language="zh", seen_from=NOON).condition(willing=True)
    for name, wanted, hint in (
        ("residents", which, {"hint": account_filters.INDEX}),
        ("notifications", {"batch": "psh_1", "delivery": "sent"}, {}),
        ("notifications", {"batch": "psh_1", "read_at": {"$gt": NOON, "$lt": NOON + DAY}}, {}),
    ):
        stages = [{"$match": wanted}, {"$count": "n"}]
        plan = storage.database().command(
            "explain", {"aggregate": name, "pipeline": stages, "cursor": {}, **hint}
        )
        text = str(plan)
        assert "COLLSCAN" not in text, name
        assert "FETCH" not in text, name


# Once to each.


def test_a_push_reaches_its_audience_once_and_says_what_became_of_it(
    pusher: FirebasePusher, standin: FcmStandin
) -> None:
    anna, bo, chen, dora = people(4)
    accounts.change(bo, {"language": "en"})
    [phone] = devices.live_of([dora])[dora]
    devices.forget(dora, phone.id)
    push = ask()
    assert (push.state, push.people, counts(push)) == ("scheduled", 4, {})
    assert pushes.run(push.job) is not None
    assert (state(push), counts(push)) == ("sending", {"left": 4, "waiting": 4})
    carry(pusher)
    assert rung(standin) == ["phone-0", "phone-1", "phone-2"]
    titles = {
        one.message["token"]: one.message["notification"]["title"] for one in standin.received
    }
    assert (titles["phone-0"], titles["phone-1"]) == ("地球日", "Earth Day")
    [data] = [one.message["data"] for one in standin.received if one.message["token"] == "phone-2"]
    [row] = outbox.inbox(chen, before=None, limit=9)
    assert data == {
        "notification_id": row.id,
        "type": "city_message",
        "deep_link": "tanhui://behaviours/bike_shared",
    }
    for _ in range(2):
        outbox.mark_read(chen, row.id)
    assert counts(push) == {"left": 4, "sent": 3, "dropped": 1, "opened": 1}
    assert pushes.report(push.id).dropped_by == {"no_device": 1}
    assert pushes.sweep() == 1
    assert (state(push), pushes.sweep()) == ("sent", 0)
    assert pushes.run(push.job) is None
    assert told(anna) == ["Earth Day"]


def test_eight_workers_with_one_push_leave_each_a_row_once() -> None:
    crowd = people(30)
    push = ask()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: pushes.run(push.job), range(8)))
    assert counts(push) == {"left": 30, "waiting": 30}
    assert [len(told(who)) for who in crowd] == [1] * 30


@pytest.mark.parametrize(
    "step",
    [
        Death("accounting.outbox:leave_many", "before"),
        Death("accounting.outbox:leave_many", "after"),
        Death("accounting.walks:_move", "after"),
        Death("accounting.jobs:finish", "before"),
    ],
    ids=str,
)
def test_a_worker_killed_at_a_step_leaves_nobody_out_and_nobody_twice(
    crew: Crew, step: Death
) -> None:
    crowd = people(5)
    push = ask()
    assert crew.run("run_push", step, job_id=push.job) == KILLED
    # The clock of the killed process ran on while it started.
    crew.ahead = 10 * MINUTE
    assert crew.run("run_push", job_id=push.job) == {"value": "done"}
    assert [told(who) for who in crowd] == [["Earth Day"]] * 5
    assert counts(push)["left"] == 5


def test_a_request_cut_off_before_its_job_is_finished_by_the_sweep_or_its_retry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    [anna] = people(1)

    def die(_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pushes, "_begin", die)
        with pytest.raises(KeyboardInterrupt):
            ask()
    [push] = pushes.newest(before=None, limit=9)
    assert (push.state, jobs.get(push.job)) == ("scheduled", None)
    assert pushes.sweep() == 1
    assert pushes.sweep() == 0
    pushes.run(push.job)
    assert told(anna) == ["Earth Day"]
    [asked] = audit.trail(subject=push.id, limit=9)
    assert (asked.actor, asked.action) == (OPERATOR, "push asked for")


def test_the_same_request_asks_for_one_push() -> None:
    terms = Terms({"zh": "一", "en": "One"}, {"zh": "一", "en": "One"}, "tanhui://x", Audience())
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: pushes.ask(terms, OPERATOR, once="key-1"), range(8)))
    assert len({one.id for one in made}) == 1
    assert storage.database()["jobs"].count_documents({"kind": pushes.KIND}) == 1
    assert len(audit.trail(subject=made[0].id, limit=9)) == 1


# When, and how fast.


def at(instant: datetime) -> Any:
    return clock.stand(instant)


def test_nothing_is_left_before_its_time() -> None:
    [anna] = people(1)
    push = ask(not_before=NOON + 3 * DAY)
    for waited in (timedelta(0), 3 * DAY - MINUTE):
        with at(NOON + waited):
            assert pushes.run(push.job) is None
            assert (state(push), told(anna)) == ("scheduled", [])
    # Even where the job was told a moment too early.
    jobs_ = storage.database()["jobs"]
    jobs_.update_one({"_id": push.job}, {"$set": {"leased_until": NOON}})
    assert pushes.run(push.job) is None
    assert told(anna) == []
    with at(NOON + 3 * DAY):
        pushes.run(push.job)
        assert told(anna) == ["Earth Day"]


def test_it_is_asked_for_at_most_ninety_days_ahead() -> None:
    ask(not_before=NOON + 90 * DAY)
    with pytest.raises(ValidationFailed):
        ask(not_before=NOON + 90 * DAY + timedelta(milliseconds=1))


def test_days_count_from_when_it_is_sent() -> None:
    [anna] = people(1)
    for waited, expected in ((20 * DAY, []), (31 * DAY, ["Earth Day"])):
        push = ask(Audience(inactive_for_days=30), not_before=NOON + waited)
        with at(NOON + waited):
            pushes.run(push.job)
            assert told(anna) == expected


def test_so_many_a_minute_and_no_more_while_they_wait(
    pusher: FirebasePusher, standin: FcmStandin
) -> None:
    people(8)
    push = ask(per_minute=3)
    assert pushes.run(push.job) is None
    assert counts(push) == {"left": 3, "waiting": 3}
    assert pushes.run(push.job) is None
    assert counts(push)["left"] == 3
    with at(NOON + MINUTE):
        # The sender was away: what comes back to it is a minute's worth.
        assert pushes.run(push.job) is None
        assert counts(push)["left"] == 3
        carry(pusher)
    with at(NOON + 2 * MINUTE):
        assert pushes.run(push.job) is None
        assert counts(push) == {"left": 6, "waiting": 3, "sent": 3}
        carry(pusher)
    with at(NOON + 3 * MINUTE):
        over = pushes.run(push.job)
        assert over is not None
        carry(pusher)
        assert counts(push) == {"left": 8, "sent": 8}
    assert len(rung(standin)) == 8


def test_who_is_not_meant_costs_no_place_in_the_minute(cast: dict[str, str]) -> None:
    push = ask(Audience(grades=("deep",)), per_minute=1)
    over = pushes.run(push.job)
    assert over is not None
    assert counts(push) == {"left": 1, "waiting": 1}
    assert told(cast["bo"])[0] == "Earth Day"


def test_nothing_is_left_at_night(pusher: FirebasePusher, standin: FcmStandin) -> None:
    [anna] = people(1)
    accounts.change(anna, {"quiet_hours": None})
    with at(city("2026-05-20 22:00")):
        push = ask()
        assert pushes.run(push.job) is None
    with at(city("2026-05-21 06:59")):
        assert pushes.run(push.job) is None
        carry(pusher)
        assert (told(anna), rung(standin)) == ([], [])
    with at(city("2026-05-21 07:00")):
        assert pushes.run(push.job) is not None
        carry(pusher)
    assert rung(standin) == ["phone-0"]


def test_what_was_left_before_the_evening_waits_for_the_morning_and_holds_up_no_other(
    pusher: FirebasePusher, standin: FcmStandin
) -> None:
    early, *_ = people(3)
    accounts.change(early, {"quiet_hours": {"from": "11:00", "to": "13:00"}})
    push = ask(per_minute=1)
    pushes.run(push.job)
    carry(pusher)
    assert counts(push) == {"left": 1, "deferred": 1}
    with at(NOON + MINUTE):
        pushes.run(push.job)
        carry(pusher)
        assert counts(push) == {"left": 2, "deferred": 1, "sent": 1}
    with at(NOON + HOUR):
        carry(pusher)
        assert counts(push) == {"left": 2, "sent": 2}


def test_the_daily_cap_and_a_wish_made_meanwhile_hold(
    pusher: FirebasePusher, standin: FcmStandin
) -> None:
    anna, bo = people(2)
    made = [ask() for _ in range(3)]
    for push in made:
        pushes.run(push.job)
    accounts.change(bo, {"push": {"marketing": False}})
    carry(pusher)
    # Two a day ring, the third is told of in tomorrow's digest.
    assert rung(standin) == ["phone-0", "phone-0"]
    assert [counts(push) for push in made] == [
        {"left": 2, "sent": 1, "dropped": 1},
        {"left": 2, "sent": 1, "dropped": 1},
        {"left": 2, "folded": 1, "dropped": 1},
    ]
    assert pushes.report(made[0].id).dropped_by == {"not_wanted": 1}
    assert told(anna) == ["Earth Day"] * 3


# Stopped.


class StopsAtTheFirst:
    """Sends, and has the push stopped while the first message is under way."""

    def __init__(self, pusher: FirebasePusher, push: Push) -> None:
        self._pusher, self._push = pusher, push

    def send(self, messages: Sequence[PushMessage]) -> list[PushResult]:
        pushes.stop(self._push.id, OPERATOR, reason="wrong day")
        return list(self._pusher.send(messages))


def test_a_push_stopped_during_the_send_reaches_who_was_under_way_and_nobody_else(
    pusher: FirebasePusher, standin: FcmStandin
) -> None:
    crowd = people(6)
    push = ask(per_minute=4)
    pushes.run(push.job)
    first, *others = delivery.due(NOON, outbox.MARKETING)
    assert len(others) == 3
    assert delivery.carry([first], StopsAtTheFirst(pusher, push)) == {first: "sent"}
    assert delivery.carry(others, pusher) == {}
    with at(NOON + MINUTE):
        assert pushes.run(push.job) is None
        assert carry(pusher) == 0
    assert (state(push), rung(standin)) == ("stopped", ["phone-0"])
    assert counts(push) == {"left": 4, "sent": 1, "dropped": 3}
    assert pushes.report(push.id).dropped_by == {"stopped": 3}
    assert [len(told(who)) for who in crowd] == [1, 0, 0, 0, 0, 0]
    assert [outbox.unread(who) for who in crowd] == [1, 0, 0, 0, 0, 0]


def test_what_a_worker_leaves_a_moment_after_the_stop_is_not_sent(
    pusher: FirebasePusher, standin: FcmStandin
) -> None:
    [anna] = people(1)
    push = ask()
    pushes.stop(push.id, OPERATOR, reason="wrong day")
    outbox.leave(pushes._notice(push, anna))
    carry(pusher)
    assert (rung(standin), told(anna)) == ([], [])
    assert pushes.report(push.id).dropped_by == {"stopped": 1}


def test_a_push_stopped_before_its_job_was_there_leaves_no_job_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    [anna] = people(1)
    begin = pushes._begin

    def stopped_first(row: Any) -> None:
        pushes.stop(row["_id"], OPERATOR, reason="wrong day")
        begin(row)

    monkeypatch.setattr(pushes, "_begin", stopped_first)
    push = ask()
    assert push.state == "stopped"
    assert jobs.waiting(NOON) == [push.job]
    assert pushes.run(push.job) is None
    assert (jobs.waiting(NOON), told(anna)) == ([], [])


@pytest.mark.parametrize("rescue", ["worker", "sweep"])
def test_a_stop_that_was_cut_off_is_finished_by_the_sweep_or_a_worker(
    pusher: FirebasePusher, standin: FcmStandin, monkeypatch: pytest.MonkeyPatch, rescue: str
) -> None:
    people(3)
    push = ask(per_minute=2)
    pushes.run(push.job)

    def die(_: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(outbox, "stop", die)
        with pytest.raises(KeyboardInterrupt):
            pushes.stop(push.id, OPERATOR, reason="wrong day")
    with at(NOON + MINUTE):
        if rescue == "worker":
            assert pushes.run(push.job) is None
        else:
            assert pushes.sweep() == 1
        assert (pushes.sweep(), counts(push)) == (0, {"left": 2, "dropped": 2})
        carry(pusher)
    assert rung(standin) == []
    job = jobs.get(push.job)
    assert job is not None
    assert (job.state, job.cancelled_by) == (jobs.FAILED, OPERATOR)
    [stopped, _asked] = audit.trail(subject=push.id, limit=9)
    assert (stopped.action, stopped.reason) == ("push stopped", "wrong day")


def test_stopping_twice_is_stopping_once_and_what_is_over_cannot_be_stopped(
    pusher: FirebasePusher,
) -> None:
    people(1)
    one, two = ask(), ask(not_before=NOON + DAY)
    with ThreadPoolExecutor(4) as pool:
        ends = list(pool.map(lambda by: pushes.stop(two.id, f"op_{by}", reason="no"), range(4)))
    assert {end.state for end in ends} == {"stopped"}
    assert len({end.stopped_by for end in ends}) == 1
    assert len(audit.trail(subject=two.id, limit=9)) == 2
    pushes.run(one.job)
    carry(pusher)
    pushes.sweep()
    with pytest.raises(PushOver):
        pushes.stop(one.id, OPERATOR, reason="too late")
    assert state(one) == "sent"


def test_a_push_that_cannot_go_on_sounds_an_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    people(1)
    push = ask()
    storage.database()["jobs"].update_one({"_id": push.job}, {"$set": {"tries": jobs.TRIES_MAX}})
    assert pushes.run(push.job) is None
    assert pushes.sweep() == 1
    assert state(push) == "failed"
    assert storage.database()["alarms"].count_documents({"kind": "push_failed"}) == 1
