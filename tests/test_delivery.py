"""Notifications to phones: quiet hours, preferences, one attempt ledger, retries at a bound pace.

The real Firebase client sends to the stand-in over a real socket.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from typing import Any

import firebase_admin
import pytest
from faults.crew import KILLED, Crew, Death

from accounting import accounts, clock, outbox, storage
from accounting.outbox import Notice
from accounting.quiet_hours import until
from api.config import Config
from integrations import delivery, devices, firebase, slots
from integrations.fcm_standin import Fault, FcmStandin
from integrations.firebase import FirebaseSettings
from integrations.push import FirebasePusher
from integrations.slots import Wish

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
TODAY = date(2026, 5, 20)


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


@pytest.fixture(scope="module")
def one_crew(config: Config) -> Iterator[Crew]:
    with Crew(config.mongodb_uri) as crew:
        yield crew


@pytest.fixture
def crew(one_crew: Crew, _noon: None) -> Crew:
    one_crew.shift = clock.now() - datetime.now(UTC)
    return one_crew


@pytest.fixture
def anna(app: object) -> str:
    return accounts.by_phone("+8613800138000")


def notice_of(who: str, dedupe: str, category: str) -> Notice:
    return Notice(
        who,
        dedupe,
        type="milestone",
        category=category,
        title={"zh": "里程碑", "en": "Milestone"},
        body={"zh": "已减排 1 千克", "en": "1 kg avoided"},
        deep_link="tanhui://milestones",
    )


def leave(who: str, dedupe: str = "one", category: str = outbox.SERVICE) -> str:
    """Leave a notification and return its id."""
    assert outbox.leave(notice_of(who, dedupe, category))
    return outbox.inbox(who, before=None, limit=1)[0].id


def state(notification_id: str) -> tuple[str, datetime | None]:
    found = outbox.by_id(notification_id)
    assert found is not None
    return found.delivery, found.next_attempt_at


def due(now: datetime) -> list[str]:
    return delivery.due(now, outbox.SERVICE)


def ledger(notification_id: str) -> list[tuple[str, int]]:
    found = storage.database()["deliveries"].find({"notification": notification_id})
    return sorted((row["outcome"], row["attempts"]) for row in found)


def at(instant: datetime) -> Any:
    return clock.travel(instant - clock.now())


def sent_to(server: FcmStandin, token: str) -> list[str]:
    return [
        one.message["data"]["notification_id"]
        for one in server.received
        if one.message["token"] == token and one.status == 200
    ]


# Once.


def test_a_notification_reaches_every_device_once_in_the_residents_language(
    anna: str, standin: FcmStandin, pusher: FirebasePusher
) -> None:
    for name in ("phone", "tablet"):
        devices.register(anna, name, "android")
    accounts.change(anna, {"language": "en"})
    left = leave(anna)
    assert due(clock.now()) == [left]
    assert delivery.deliver(left, pusher) == "sent"
    assert delivery.deliver(left, pusher) == "not due"
    assert sorted(one.message["token"] for one in standin.received) == ["phone", "tablet"]
    assert {one.message["notification"]["title"] for one in standin.received} == {"Milestone"}
    assert {one.message["data"]["notification_id"] for one in standin.received} == {left}
    assert (state(left), ledger(left)) == (("sent", None), [("sent", 1), ("sent", 1)])
    assert due(clock.now() + DAY) == []


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
    assert delivery._take([left], now, "lease_of_the_dead")  # And then nothing more is heard of it.
    assert due(now + delivery.LEASE - MS) == []
    assert due(now + delivery.LEASE) == [left]
    with at(now + delivery.LEASE + SECOND):
        assert delivery.deliver(left, pusher) == "sent"


@pytest.mark.parametrize(
    ("step", "rung"),
    [
        # Nothing was sent, so nothing comes twice.
        (Death("integrations.delivery:_send", "before"), 1),
        # Sent, and not written down: the batch in flight comes twice.
        (Death("integrations.delivery:_note", "before"), 2),
        # Written down: the next one only says so.
        (Death("integrations.delivery:_note", "after"), 1),
        (Death("integrations.delivery:_put", "before"), 1),
    ],
    ids=str,
)
def test_a_worker_killed_at_any_step_is_followed_by_one_that_ends_its_work(
    crew: Crew, anna: str, standin: FcmStandin, pusher: FirebasePusher, step: Death, rung: int
) -> None:
    devices.register(anna, "phone", "android")
    devices.register(anna, "dead-1", "android")
    ids = [leave(anna, f"{number}") for number in range(3)]
    killed = crew.run("carry", step, fcm_url=standin.url, category=outbox.SERVICE)
    assert killed == KILLED
    assert delivery.carry_due(outbox.SERVICE, pusher, 5) == 0, "the lease of the dead"
    with at(NOON + delivery.LEASE + 30 * SECOND):
        assert delivery.carry_due(outbox.SERVICE, pusher, 5) == 3
    for one in ids:
        assert sent_to(standin, "phone").count(one) == rung
        assert state(one) == ("sent", None)
    assert [device.token for device in devices.live(anna)] == ["phone"]


def test_leaving_the_same_twice_leaves_it_once(anna: str) -> None:
    leave(anna, "milestone/1")
    assert not outbox.leave(notice_of(anna, "milestone/1", outbox.SERVICE))
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
    quiet = until({"from": "22:00", "to": "07:00"}, city(local))
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
    assert due(city("2026-05-21 06:59:59.999")) == []
    with at(city("2026-05-21 07:00:01")):
        assert due(clock.now()) == [left]
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
    assert (until(quiet_hours, NOON) is not None) is quiet


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


def test_without_a_provider_it_waits_and_is_given_up_after_a_day(anna: str) -> None:
    left = leave(anna)
    assert delivery.deliver(left, None) == "queued"
    with at(NOON + DAY + 5 * SECOND):
        assert delivery.deliver(left, None) == "given_up"
    assert state(left) == ("given_up", None)


# Not too many a day.


def adverts(who: str, *names: str) -> list[str]:
    return [leave(who, name, outbox.MARKETING) for name in names]


def test_a_device_rings_twice_a_day_for_marketing_and_the_rest_is_one_digest_tomorrow(
    anna: str, standin: FcmStandin, pusher: FirebasePusher
) -> None:
    devices.register(anna, "phone", "android")
    left = adverts(anna, "one", "two", "three", "four")
    milestone = leave(anna, "milestone")
    ends = delivery.carry([*left, milestone], pusher)
    assert [ends[one] for one in left] == ["sent", "sent", "folded", "folded"]
    assert ends[milestone] == "sent", "service is not capped"
    assert sorted(sent_to(standin, "phone")) == sorted([*left[:2], milestone])
    # The inbox shows all five, and no digest.
    shown = outbox.inbox(anna, before=None, limit=9)
    assert [one.id for one in shown] == [milestone, *reversed(left)]
    assert outbox.unread(anna) == 5
    standin._received.clear()
    tomorrow = city("2026-05-21 09:00")
    assert delivery.due(tomorrow - SECOND, outbox.MARKETING) == []
    [digest] = delivery.due(tomorrow, outbox.MARKETING)
    with at(tomorrow + SECOND):
        assert delivery.carry_due(outbox.MARKETING, pusher, 5) == 1
    [rung] = standin.received
    assert rung.message["data"] == {
        "notification_id": digest,
        "type": "digest",
        "deep_link": "tanhui://notifications",
    }
    # Two were folded and are unread.
    assert rung.message["notification"]["title"] == "您有 2 条新消息"


def test_a_digest_of_what_was_read_meanwhile_does_not_ring(
    anna: str, standin: FcmStandin, pusher: FirebasePusher
) -> None:
    devices.register(anna, "phone", "android")
    left = adverts(anna, "one", "two", "three")
    delivery.carry(left, pusher)
    outbox.mark_read(anna, left[2])
    standin._received.clear()
    with at(city("2026-05-21 09:00:01")):
        [digest] = delivery.due(clock.now(), outbox.MARKETING)
        assert delivery.deliver(digest, pusher) == "not_wanted"
    assert standin.received == []


def test_the_cap_is_of_each_device_and_each_city_day(
    anna: str, standin: FcmStandin, pusher: FirebasePusher
) -> None:
    devices.register(anna, "phone", "android")
    delivery.carry(adverts(anna, "one", "two"), pusher)
    devices.register(anna, "tablet", "ios")
    [third] = adverts(anna, "three")
    assert delivery.deliver(third, pusher) == "sent"
    assert (sent_to(standin, "phone").count(third), sent_to(standin, "tablet")) == (0, [third])
    # 00:00 in the city is 16:00 UTC of the day before, and quiet hours end at seven.
    with at(city("2026-05-21 07:00:01")):
        [fourth] = adverts(anna, "four")
        assert delivery.deliver(fourth, pusher) == "sent"
    assert fourth in sent_to(standin, "phone")


def test_what_is_tried_again_keeps_its_slot(
    anna: str, standin: FcmStandin, pusher: FirebasePusher
) -> None:
    devices.register(anna, "phone", "android")
    one, two = adverts(anna, "one", "two")
    standin.fail_next(Fault(503, "UNAVAILABLE"))
    assert delivery.deliver(one, pusher) == "retrying"
    assert delivery.deliver(two, pusher) == "sent"
    [three] = adverts(anna, "three")
    assert delivery.deliver(three, pusher) == "folded"
    with at(NOON + timedelta(minutes=1)):
        assert delivery.deliver(one, pusher) == "sent"


def test_eight_workers_with_twelve_adverts_ring_a_phone_twice(
    anna: str, standin: FcmStandin, pusher: FirebasePusher
) -> None:
    devices.register(anna, "phone", "android")
    left = adverts(anna, *(f"ad-{number}" for number in range(12)))
    with ThreadPoolExecutor(8) as pool:
        ends = list(pool.map(lambda one: delivery.deliver(one, pusher), left))
    assert sorted(ends) == ["folded"] * 10 + ["sent"] * 2
    assert len(standin.received) == 2
    digests = storage.database()["notifications"].count_documents({"type": outbox.DIGEST})
    assert digests == 1


def test_of_wishes_for_the_last_slots_as_many_get_one_as_there_are() -> None:
    def wishes(first: int) -> list[Wish]:
        return [Wish(f"ntf_{n}", outbox.MARKETING, "dev_1") for n in range(first, first + 3)]

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda n: slots.take(wishes(3 * n), TODAY), range(8)))
    won = set().union(*got)
    assert len(won) == 2
    # Asked again, they have theirs, and nobody else gets one.
    everybody = [wish for n in range(8) for wish in wishes(3 * n)]
    assert slots.take(everybody, TODAY) == won
    assert len(slots.take(everybody, TODAY + timedelta(days=1))) == 2


def test_quiet_hours_of_none_let_marketing_ring_at_night_for_who_asked_so(
    anna: str, standin: FcmStandin, pusher: FirebasePusher
) -> None:
    devices.register(anna, "phone", "android")
    accounts.change(anna, {"quiet_hours": None})
    with at(city("2026-05-20 23:30")):
        [left] = adverts(anna, "one")
        assert delivery.deliver(left, pusher) == "sent"
    assert state(left) == ("sent", None)


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
    assert due(next_attempt - MS) == []
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
    assert due(NOON + 119 * SECOND) == []


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
            waited.append((next_attempt - taken) / SECOND)
            instant = next_attempt
    # 10 s doubled up to 2,560 s, then an hour; each up to half as long again.
    least = [10, 20, 40, 80, 160, 320, 640, 1_280, 2_560, 3_600, 3_600, 3_600]
    assert all(low <= waits <= low * 1.5 for low, waits in zip(least, waited, strict=True))
    assert waited != least
    assert ledger(left) == [("retry", 12)]


def test_after_a_day_of_trying_it_is_given_up_and_the_inbox_says_so(
    anna: str, standin: FcmStandin, pusher: FirebasePusher
) -> None:
    devices.register(anna, "down-1", "android")
    with at(city("2026-05-20 23:30")):
        left = leave(anna)
        assert delivery.deliver(left, pusher) == "deferred"
    # The day begins with the first attempt, not in the night before it.
    with at(city("2026-05-21 07:00:01")):
        assert delivery.deliver(left, pusher) == "retrying"
    with at(city("2026-05-22 07:00:00")):
        assert delivery.deliver(left, pusher) == "retrying"
    standin._received.clear()
    with at(city("2026-05-22 12:00")):
        assert delivery.deliver(left, pusher) == "given_up"
    assert standin.received == []
    assert [one.delivery for one in outbox.inbox(anna, before=None, limit=9)] == ["given_up"]


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


def test_a_token_that_was_not_seen_for_270_days_is_not_used_and_then_deleted(
    anna: str, standin: FcmStandin, pusher: FirebasePusher
) -> None:
    devices.register(anna, "phone", "android")
    with at(NOON + devices.IDLE - SECOND):
        assert len(devices.live(anna)) == 1
        assert devices.drop_idle(clock.now()) == 0
    with at(NOON + devices.IDLE + 5 * SECOND):
        assert devices.live(anna) == []
        assert delivery.deliver(leave(anna), pusher) == "no_device"
        assert devices.drop_idle(clock.now()) == 1
    assert storage.database()["devices"].count_documents({}) == 0


def test_a_token_registered_anew_while_its_death_was_told_lives(anna: str) -> None:
    device = devices.register(anna, "phone", "android")
    tried_at = clock.now()
    with at(NOON + HOUR):
        devices.register(anna, "phone", "android")
        devices.retire([device.id], tried_at)
        assert len(devices.live(anna)) == 1
        devices.retire([device.id], clock.now())
        assert devices.live(anna) == []


def test_eight_sign_ins_on_one_phone_leave_it_with_one_resident(anna: str) -> None:
    people = [anna, *(accounts.by_phone(f"+86139001390{number:02}") for number in range(7))]
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda who: devices.register(who, "phone", "android"), people))
    assert len({one.id for one in made}) == 1
    assert sum(len(devices.live(who)) for who in people) == 1


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
