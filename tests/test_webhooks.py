"""Events reach webhooks at least once, in order of their aggregate, whatever fails in between.

Every request crosses a real socket; the receiver is a server that is told what to answer.
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from faults.crew import KILLED, Crew, Death, job
from receivers import Event, Receiver, receiver
from standardwebhooks import Webhook as Verifier
from standardwebhooks.webhooks import WebhookVerificationError

from accounting import alarms, clock, events, subscriptions
from accounting.clients import Kind
from accounting.events import Happening, Type
from api.config import Config
from integrations import webhook_targets, webhooks

pytestmark = pytest.mark.usefixtures("app")

POST = partial(webhook_targets.post, loopback=True)
PARTY = events.party(Kind.DATA, "prt_one")
NOON = datetime(2026, 5, 20, 4, 0, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.stand(NOON):
        yield


@pytest.fixture
def there() -> Iterator[Receiver]:
    with receiver() as one:
        yield one


@pytest.fixture(scope="module")
def one_crew(config: Config, app: object) -> Iterator[Crew]:
    with Crew(config.mongodb_uri) as crew:
        yield crew


@pytest.fixture
def crew(one_crew: Crew, _noon: None) -> Crew:
    one_crew.shift = clock.now() - datetime.now(UTC)
    return one_crew


def subscribe(there: Receiver, *types: Type) -> tuple[str, str]:
    wanted = types or events.TYPES_OF[Kind.DATA]
    hook, secret = subscriptions.add(PARTY, there.url, set(map(str, wanted)), events.head(PARTY))
    return hook.id, secret


def happen(aggregate: str, number: int, type_: Type = Type.ACTIVITY_SETTLED) -> Happening:
    return Happening(PARTY, type_, aggregate, f"{aggregate}:{number}", {"n": number})


def in_order(taken: list[Event]) -> bool:
    """Within each aggregate the sequences are 1, 2, 3, ... in the order of arrival."""
    seen: dict[str, list[int]] = defaultdict(list)
    for event in taken:
        seen[event["aggregate"]].append(event["sequence"])
    return all(found == list(range(1, len(found) + 1)) for found in seen.values())


def test_an_event_arrives_signed_and_says_where_it_stands(there: Receiver) -> None:
    hook, secret = subscribe(there)
    assert events.leave(happen("activity:a", 1), happen("activity:b", 1)) == 2
    assert events.leave(happen("activity:a", 1), happen("activity:a", 2)) == 1

    assert webhooks.carry(hook, POST) is False

    by_cursor = sorted(
        (event["cursor"], event["aggregate"], event["sequence"]) for event in there.taken
    )
    assert by_cursor == [(1, "activity:a", 1), (2, "activity:b", 1), (3, "activity:a", 2)]
    headers, body = there.got[0]
    assert headers["webhook-timestamp"] == str(int(NOON.timestamp()))
    # The library compares with the real time, so the test signs what was sent at that instant.
    signed = Verifier(secret).sign(headers["webhook-id"], NOON, body.decode())
    assert headers["webhook-signature"] == signed
    assert {one["timestamp"] for one in there.taken} == {"2026-05-20T04:00:00.000Z"}


def test_a_receiver_verifies_with_the_published_library(there: Receiver) -> None:
    with clock.stand(datetime.now(UTC)):
        hook, secret = subscribe(there)
        events.leave(happen("activity:a", 1))
        webhooks.carry(hook, POST)
    ((headers, body),) = there.got
    assert Verifier(secret).verify(body, headers)["data"] == {"n": 1}
    with pytest.raises(WebhookVerificationError):
        Verifier(secret).verify(body.replace(b'"n":1', b'"n":2'), headers)


def test_nothing_is_kept_that_nobody_asked_for(there: Receiver) -> None:
    assert events.leave(happen("activity:a", 1)) == 0
    hook, _ = subscribe(there, Type.BILL_SETTLED)
    assert events.leave(happen("activity:a", 1), happen("bill:a", 1, Type.BILL_SETTLED)) == 1
    webhooks.carry(hook, POST)
    assert [event["type"] for event in there.taken] == ["bill.settled"]


def test_two_secrets_sign_for_a_day_after_a_rotation(there: Receiver) -> None:
    hook, old = subscribe(there)
    rotated, new, until = subscriptions.rotate(PARTY, hook)
    assert (until, rotated.secrets) == (NOON + DAY, (new, old))
    events.leave(happen("activity:a", 1))
    webhooks.carry(hook, POST)
    headers, body = there.got[0]
    both = [Verifier(one).sign(headers["webhook-id"], NOON, body.decode()) for one in (new, old)]
    assert headers["webhook-signature"].split(" ") == both

    with clock.travel(DAY):
        assert subscriptions.get(PARTY, hook).secrets == (new,)
    _, third, _ = subscriptions.rotate(PARTY, hook)
    assert subscriptions.get(PARTY, hook).secrets == (third, new)


def test_a_receiver_that_fails_and_recovers_sees_every_event_once_and_in_order(
    there: Receiver,
) -> None:
    hook, _ = subscribe(there)
    left = [happen(f"activity:{place % 7}", place) for place in range(60)]
    events.leave(*left[:40])
    calls = iter(range(10_000))
    # Away at first; then every third call fails, some after the receiver took the event.
    there.answers = lambda event: 500
    webhooks.carry(hook, POST)
    assert there.taken == []
    events.leave(*left[40:])
    there.answers = lambda event: 503 if next(calls) % 3 == 0 else 204

    carried = 0
    with contextlib.ExitStack() as later:
        while webhooks.waiting(hook) or carried == 0:
            later.enter_context(clock.travel(MINUTE))
            webhooks.carry(hook, POST)
            carried += 1
            assert carried < 60, "it never ends"

    assert len(there.once()) == 60
    assert in_order(there.once())
    assert in_order(there.taken), "what failed was not passed by a later one"


def test_an_event_that_fails_holds_up_its_own_aggregate_only(there: Receiver) -> None:
    hook, _ = subscribe(there)
    there.answers = lambda event: 400 if event["data"]["n"] == 1 else 204
    events.leave(happen("a", 1), happen("a", 2), happen("b", 7), happen("c", 8), happen("b", 9))
    webhooks.carry(hook, POST)
    assert sorted(event["data"]["n"] for event in there.taken) == [7, 8, 9]
    rows = {row.number: row for row in webhooks.deliveries(hook, state=None, before=None, limit=10)}
    assert (rows[1].state, rows[1].status, rows[1].attempts) == ("waiting", 400, 1)
    assert (rows[2].state, rows[2].attempts) == ("waiting", 0)
    # What happens to it later waits behind it too, and others go on.
    events.leave(happen("a", 3), happen("d", 10))
    webhooks.carry(hook, POST)
    assert [event["data"]["n"] for event in there.taken[3:]] == [10]

    # After three days it is given up, and the next of its aggregate goes.
    with clock.travel(3 * DAY + HOUR):
        webhooks.carry(hook, POST)
    assert [event["data"]["n"] for event in there.taken[4:]] == [2, 3]
    gave_up = webhooks.deliveries(hook, state=webhooks.GIVEN_UP, before=None, limit=10)
    assert [(row.number, row.next_attempt_at) for row in gave_up] == [(1, None)]


def test_retry_after_is_honoured(there: Receiver) -> None:
    hook, _ = subscribe(there)
    there.answers, there.headers = lambda _: 429, {"Retry-After": "1800"}
    events.leave(happen("a", 1))
    webhooks.carry(hook, POST)
    assert len(there.got) == 1
    there.answers = lambda _: 204
    with clock.travel(timedelta(minutes=29)):
        webhooks.carry(hook, POST)
        assert len(there.got) == 1
    with clock.travel(timedelta(minutes=30)):
        webhooks.carry(hook, POST)
    assert len(there.taken) == 1


def test_a_receiver_that_is_away_is_tried_gently_and_disabled_after_three_days(
    there: Receiver,
) -> None:
    hook, _ = subscribe(there)
    there.answers = lambda _: 500
    events.leave(*[happen(f"activity:{place}", 1) for place in range(100)])
    webhooks.carry(hook, POST)
    # Eight lanes may each be in a try when the third fails; nobody begins another.
    assert webhooks.HOPELESS <= len(there.got) <= webhooks.HOPELESS + webhooks.LANES
    before = len(there.got)
    with clock.travel(MINUTE):
        webhooks.carry(hook, POST)
        assert len(there.got) == before + 1
    with clock.travel(3 * DAY + 2 * HOUR):
        webhooks.carry(hook, POST)
        state = subscriptions.get(PARTY, hook)
        assert (state.state, state.why) == ("disabled", "It answered nothing for three days.")
        (alarm,) = alarms.newest(before=None, limit=10)
        assert (alarm.kind, alarm.subject) == ("webhook_disabled", hook)
        at = len(there.got)
        webhooks.carry(hook, POST)
        assert len(there.got) == at
        # What happens meanwhile is kept, and comes when it is enabled again.
        there.answers = lambda _: 204
        events.leave(happen("later", 1))
        subscriptions.enable(PARTY, hook)
        webhooks.carry(hook, POST)
    assert "later" in {event["aggregate"] for event in there.taken}


def test_a_receiver_that_says_gone_is_disabled_at_once(there: Receiver) -> None:
    hook, _ = subscribe(there)
    there.answers = lambda _: 410
    events.leave(happen("a", 1))
    webhooks.carry(hook, POST)
    assert subscriptions.get(PARTY, hook).why == "It answered 410 Gone."


def test_a_replay_sends_what_came_after_a_cursor_again_with_the_same_ids(there: Receiver) -> None:
    hook, _ = subscribe(there)
    events.leave(*[happen("a", number) for number in range(1, 6)])
    webhooks.carry(hook, POST)
    first = [event["id"] for event in there.taken]
    assert webhooks.replay(PARTY, hook, 2) == 5
    webhooks.carry(hook, POST)
    assert [event["id"] for event in there.taken[5:]] == first[2:]
    assert [event["cursor"] for event in there.taken[5:]] == [3, 4, 5]
    assert len(there.once()) == 5
    webhooks.carry(hook, POST)
    assert len(there.taken) == 8


def test_two_workers_at_once_number_without_gaps_and_send_each_event_once(there: Receiver) -> None:
    hook, _ = subscribe(there)

    def leave_and_carry(worker: int) -> None:
        for place in range(15):
            events.leave(happen(f"shared:{place % 3}", worker * 100 + place))
            events.number(PARTY)
            webhooks.carry(hook, POST)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(leave_and_carry, range(4)))
    webhooks.carry(hook, POST)

    assert sorted(event["cursor"] for event in there.taken) == list(range(1, 61))
    assert in_order(there.taken)


def test_a_worker_whose_lease_ran_out_does_not_pass_what_another_sends(there: Receiver) -> None:
    """The first worker hangs in a request; the second takes over and repeats it."""
    hook, _ = subscribe(there)
    events.leave(happen("a", 1), happen("a", 2))
    taken_over: list[Any] = []

    def hang(url: str, body: bytes, headers: dict[str, str]) -> webhook_targets.Answer:
        answer = POST(url, body, headers)
        if not taken_over:
            taken_over.append(True)
            with clock.travel(2 * MINUTE):
                webhooks.carry(hook, POST)
        return answer

    with clock.travel(timedelta(0)):
        webhooks.carry(hook, hang)
    assert [event["data"]["n"] for event in there.once()] == [1, 2]
    assert len(there.taken) <= 4
    assert webhooks.waiting(hook) == 0


@pytest.mark.parametrize(
    "death",
    [
        Death("integrations.webhook_targets:post", "before", 5),
        Death("integrations.webhook_targets:post", "after", 5),
        Death("integrations.webhooks:_make", "after"),
        Death("integrations.webhooks:_put", "before", 3),
        Death("integrations.webhooks:_rest", "before"),
        Death("accounting.events:head", "before", 2),
    ],
    ids=str,
)
def test_a_worker_killed_in_mid_delivery_loses_nothing_and_repeats_little(
    there: Receiver, crew: Crew, death: Death
) -> None:
    hook, _ = subscribe(there)
    events.leave(*[happen(f"activity:{place % 4}", place) for place in range(20)])
    assert crew.run("carry_webhook", death, webhook_id=hook) == KILLED
    with clock.travel(HOUR):
        webhooks.carry(hook, POST)
        assert webhooks.waiting(hook) == 0
    assert len(there.once()) == 20
    assert in_order(there.once())
    assert len(there.taken) <= 20 + webhooks.LANES, "at most what was under way comes twice"


def test_two_processes_carry_to_one_webhook(there: Receiver, crew: Crew) -> None:
    hook, _ = subscribe(there)
    events.leave(*[happen(f"activity:{place % 4}", place) for place in range(40)])
    two = [job("carry_webhook", webhook_id=hook) for _ in range(2)]
    crew.wait(crew.start(*two))
    assert sorted(event["cursor"] for event in there.taken) == list(range(1, 41))
    assert in_order(there.taken)


def test_deleting_leaves_nothing(there: Receiver) -> None:
    hook, _ = subscribe(there)
    events.leave(happen("a", 1))
    webhooks.carry(hook, POST)
    subscriptions.delete(PARTY, hook)
    webhooks.forget(hook)
    assert webhooks.deliveries(hook, state=None, before=None, limit=10) == []
    assert webhooks.carry(hook, POST) is False
    assert events.leave(happen("a", 2)) == 0
