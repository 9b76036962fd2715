"""Notifications to phones: quiet hours, preferences, one attempt ledger, retries at a bound pace.

The real Firebase client sends to the stand-in over a real socket.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import firebase_admin
import pytest

from accounting import accounts, clock, outbox, storage
from integrations import delivery, devices, firebase
from integrations.fcm_standin import Fault, FcmStandin
from integrations.firebase import FirebaseSettings
from integrations.push import FirebasePusher

pytestmark = pytest.mark.usefixtures("app")

DAY, HOUR, SECOND, MS = (
    timedelta(days=1),
    timedelta(hours=1),
    timedelta(seconds=1),
    timedelta(milliseconds=1),
)


def city(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=clock.CITY).astimezone(UTC)


NOON = city("2026-05-20 12:00")


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.travel(NOON - clock.now()):
        yield


@pytest.fixture(scope="module")
def one_standin() -> Iterator[FcmStandin]:
    with FcmStandin().running() as server:
        yield server


@pytest.fixture
def standin(one_standin: FcmStandin) -> FcmStandin:
    """The same server for all, with nothing received and no fault left over."""
    one_standin._received.clear()
    one_standin._faults.clear()
    return one_standin


@pytest.fixture(scope="module")
def pusher(one_standin: FcmStandin) -> Iterator[FirebasePusher]:
    app = firebase.client(FirebaseSettings(fcm_url=one_standin.url))
    assert app is not None
    yield FirebasePusher(app)
    firebase_admin.delete_app(app)
    firebase.client.cache_clear()


@pytest.fixture
def anna(app: object) -> str:
    return accounts.by_phone("+8613800138000")


def leave(who: str, dedupe: str = "one", category: str = outbox.SERVICE) -> str:
    """Leave a notification and return its id."""
    assert outbox.leave(
        who,
        dedupe,
        type="milestone",
        category=category,
        title={"zh": "里程碑", "en": "Milestone"},
        body={"zh": "已减排 1 千克", "en": "1 kg avoided"},
        deep_link="tanhui://milestones",
    )
    return outbox.inbox(who, before=None, limit=1)[0].id


def state(notification_id: str) -> tuple[str, datetime | None]:
    found = outbox.by_id(notification_id)
    assert found is not None
    return found.delivery, found.next_attempt_at


def ledger(notification_id: str) -> list[tuple[str, int]]:
    found = storage.database()["deliveries"].find({"notification": notification_id})
    return sorted((row["outcome"], row["attempts"]) for row in found)


def at(instant: datetime) -> Any:
    return clock.travel(instant - clock.now())


# Once.


def test_a_notification_reaches_every_device_once_in_the_residents_language(
    anna: str, standin: FcmStandin, pusher: FirebasePusher
) -> None:
    for name in ("phone", "tablet"):
        devices.register(anna, name, "android")
    accounts.change(anna, {"language": "en"})
    left = leave(anna)
    assert delivery.due(clock.now()) == [left]
    assert delivery.deliver(left, pusher) == "sent"
    assert delivery.deliver(left, pusher) == "not due"
    assert sorted(one.message["token"] for one in standin.received) == ["phone", "tablet"]
    assert {one.message["notification"]["title"] for one in standin.received} == {"Milestone"}
    assert {one.message["data"]["notification_id"] for one in standin.received} == {left}
    assert (state(left), ledger(left)) == (("sent", None), [("sent", 1), ("sent", 1)])
    assert delivery.due(clock.now() + DAY) == []


def test_eight_workers_with_one_notification_send_it_once(
    anna: str, standin: FcmStandin, pusher: FirebasePusher
) -> None:
    devices.register(anna, "phone", "android")
    left = leave(anna)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: delivery.deliver(left, pusher), range(8)))
    assert sorted(answers) == ["not due"] * 7 + ["sent"]
    assert len(standin.received) == 1


def test_a_worker_that_died_leaves_the_notification_to_the_next_after_its_lease(
    anna: str, standin: FcmStandin, pusher: FirebasePusher
) -> None:
    devices.register(anna, "phone", "android")
    left = leave(anna)
    now = clock.now()
    assert delivery._take(left, now)  # And then nothing more is heard of it.
    assert delivery.due(now + delivery.LEASE - MS) == []
    assert delivery.due(now + delivery.LEASE) == [left]
    with at(now + delivery.LEASE + SECOND):
        assert delivery.deliver(left, pusher) == "sent"


def test_leaving_the_same_twice_leaves_it_once(anna: str) -> None:
    leave(anna, "milestone/1")
    assert not outbox.leave(
        anna,
        "milestone/1",
        type="milestone",
        category=outbox.SERVICE,
        title={},
        body={},
        deep_link="",
    )
    assert outbox.unread(anna) == 1


def test_the_inbox_has_it_whatever_becomes_of_the_push(anna: str) -> None:
    left = leave(anna)
    assert delivery.deliver(left, None) == "queued"
    [shown] = outbox.inbox(anna, before=None, limit=9)
    assert shown.read_at is None
    assert outbox.mark_read(anna, left)
    assert not outbox.mark_read("res_other", left)
    assert outbox.unread(anna) == 0


# Whether and when.


@pytest.mark.parametrize(
    ("local", "quiet_until"),
    [
        ("2026-05-20 21:59:59.999", None),
        ("2026-05-20 22:00", "2026-05-21 07:00"),
        ("2026-05-20 23:59:59.999", "2026-05-21 07:00"),
        ("2026-05-21 00:00", "2026-05-21 07:00"),
        ("2026-05-21 06:59:59.999", "2026-05-21 07:00"),
        ("2026-05-21 07:00", None),
    ],
)
def test_from_ten_at_night_to_seven_nothing_rings(local: str, quiet_until: str | None) -> None:
    quiet = delivery._quiet_until({"from": "22:00", "to": "07:00"}, city(local))
    assert quiet == (city(quiet_until) if quiet_until else None)


def test_what_was_left_at_night_is_sent_at_seven(
    anna: str, standin: FcmStandin, pusher: FirebasePusher
) -> None:
    devices.register(anna, "phone", "android")
    with at(city("2026-05-20 23:30")):
        left = leave(anna)
        assert delivery.deliver(left, pusher) == "deferred"
        assert state(left) == ("deferred", city("2026-05-21 07:00"))
    assert standin.received == []
    assert delivery.due(city("2026-05-21 06:59:59.999")) == []
    with at(city("2026-05-21 07:00:01")):
        assert delivery.due(clock.now()) == [left]
        assert delivery.deliver(left, pusher) == "sent"


@pytest.mark.parametrize(
    ("quiet_hours", "quiet"),
    [
        (None, False),
        ({"from": "00:00", "to": "00:00"}, False),
        ({"from": "12:00", "to": "12:00"}, False),
        ({"from": "12:00", "to": "12:01"}, True),
        ({"from": "11:00", "to": "12:00"}, False),
        ({"from": "13:00", "to": "12:01"}, True),
        ({"from": "12:01", "to": "12:00"}, False),
    ],
)
def test_quiet_hours_are_the_residents_own(quiet_hours: dict[str, str], quiet: bool) -> None:
    assert (delivery._quiet_until(quiet_hours, NOON) is not None) is quiet


def test_who_wants_no_marketing_gets_none_but_still_hears_of_service(
    anna: str, standin: FcmStandin, pusher: FirebasePusher
) -> None:
    devices.register(anna, "phone", "android")
    accounts.change(anna, {"push": {"marketing": False}})
    advert, milestone = leave(anna, "ad", outbox.MARKETING), leave(anna, "milestone")
    assert delivery.deliver(advert, pusher) == "not_wanted"
    assert delivery.deliver(milestone, pusher) == "sent"
    assert [one.message["data"]["notification_id"] for one in standin.received] == [milestone]
    assert state(advert) == ("not_wanted", None)


def test_without_a_device_nothing_is_left_to_do(anna: str, pusher: FirebasePusher) -> None:
    left = leave(anna)
    assert delivery.deliver(left, pusher) == "no_device"
    assert state(left) == ("no_device", None)


def test_without_a_provider_it_waits_and_is_given_up_after_a_day_and_a_half(anna: str) -> None:
    left = leave(anna)
    assert delivery.deliver(left, None) == "queued"
    with at(NOON + delivery.GIVE_UP_AFTER + 5 * SECOND):
        assert delivery.deliver(left, None) == "given_up"
    assert state(left) == ("given_up", None)


# When the provider refuses.


def test_a_dead_token_is_retired_and_never_used_again(
    anna: str, standin: FcmStandin, pusher: FirebasePusher
) -> None:
    for token in ("dead-1", "phone"):
        devices.register(anna, token, "android")
    first = leave(anna, "one")
    assert delivery.deliver(first, pusher) == "sent"
    assert ledger(first) == [("retire", 1), ("sent", 1)]
    assert [device.token for device in devices.live(anna)] == ["phone"]
    standin._received.clear()
    delivery.deliver(leave(anna, "two"), pusher)
    assert [one.message["token"] for one in standin.received] == ["phone"]
    # The phone comes back with a new installation.
    devices.register(anna, "dead-1", "android")
    assert len(devices.live(anna)) == 2


def test_a_429_is_tried_again_no_sooner_than_the_provider_said(
    anna: str, standin: FcmStandin, pusher: FirebasePusher
) -> None:
    devices.register(anna, "phone", "android")
    left = leave(anna)
    standin.fail_next(Fault(429, "QUOTA_EXCEEDED", retry_after_s=120))
    before = clock.now()
    assert delivery.deliver(left, pusher) == "retrying"
    delivery_state, next_attempt = state(left)
    assert next_attempt is not None
    assert (delivery_state, ledger(left)) == ("retrying", [("retry", 1)])
    assert next_attempt >= before + 120 * SECOND
    assert delivery.due(next_attempt - MS) == []
    with clock.stand(next_attempt):
        assert delivery.deliver(left, pusher) == "sent"
    assert ledger(left) == [("sent", 2)]


def test_a_rest_the_provider_asked_for_holds_for_all_devices(
    anna: str, standin: FcmStandin, pusher: FirebasePusher
) -> None:
    for token in ("phone", "down-1"):
        devices.register(anna, token, "android")
    left = leave(anna)
    standin.fail_next(Fault(429, "QUOTA_EXCEEDED", retry_after_s=120))
    standin.fail_next(Fault(503, "UNAVAILABLE"))
    assert delivery.deliver(left, pusher) == "retrying"
    assert delivery.due(NOON + 119 * SECOND) == []


def test_a_503_is_tried_again_after_10_20_40_seconds_and_at_most_an_hour(
    anna: str, standin: FcmStandin, pusher: FirebasePusher
) -> None:
    devices.register(anna, "down-1", "android")
    left = leave(anna)
    waited = []
    instant = clock.now()
    for _ in range(12):
        with clock.stand(instant):
            taken = clock.now()
            assert delivery.deliver(left, pusher) == "retrying"
            _, next_attempt = state(left)
            assert next_attempt is not None
            waited.append((next_attempt - taken) // SECOND)
            instant = next_attempt
    # 10 s doubled up to 2,560 s, then an hour.
    assert waited == [10, 20, 40, 80, 160, 320, 640, 1_280, 2_560, 3_600, 3_600, 3_600]
    assert ledger(left) == [("retry", 12)]


def test_only_the_device_that_was_not_reached_is_tried_again(
    anna: str, standin: FcmStandin, pusher: FirebasePusher
) -> None:
    for token in ("phone", "down-1"):
        devices.register(anna, token, "android")
    left = leave(anna)
    assert delivery.deliver(left, pusher) == "retrying"
    standin._received.clear()
    with at(NOON + 60 * SECOND):
        delivery.deliver(left, pusher)
    assert [one.message["token"] for one in standin.received] == ["down-1"]
    assert ledger(left) == [("retry", 2), ("sent", 1)]


def test_a_message_nobody_can_take_is_not_sent_again(
    anna: str, standin: FcmStandin, pusher: FirebasePusher
) -> None:
    devices.register(anna, "phone", "android")
    left = leave(anna)
    standin.fail_next(Fault(400, "INVALID_ARGUMENT", "Message too big."))
    assert delivery.deliver(left, pusher) == "failed"
    assert (state(left), ledger(left)) == (("failed", None), [("failed", 1)])
    assert len(devices.live(anna)) == 1


# Devices.


def test_a_phone_that_changes_hands_belongs_to_its_new_owner(
    anna: str, standin: FcmStandin, pusher: FirebasePusher
) -> None:
    bo = accounts.by_phone("+8613900139000")
    first = devices.register(anna, "phone", "android")
    second = devices.register(bo, "phone", "ios")
    assert first.id == second.id
    assert devices.live(anna) == []
    assert delivery.deliver(leave(anna), pusher) == "no_device"
    assert delivery.deliver(leave(bo), pusher) == "sent"
    assert not devices.forget(anna, second.id)
    assert devices.forget(bo, second.id)


def test_a_token_is_stored_sealed(anna: str) -> None:
    devices.register(anna, "secret-token", "android")
    stored = storage.database()["devices"].find_one({})
    assert "secret-token" not in repr(stored)
    assert devices.live(anna)[0].token == "secret-token"
