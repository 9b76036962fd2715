"""Points set aside in the real book: asked twice, ended twice, too late, and by many at once."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from faults import scenarios
from faults.crew import KILLED, Crew, Death, job

from accounting import book, clock
from accounting.book import Entry
from accounting.errors import DomainError, KeyReused, NotFound
from points import holds, statements
from points.lots import Lot
from points.wallet import HOLDS_MAX, Wallet, consistent

pytestmark = pytest.mark.usefixtures("app")

ANNA, BO = "res_anna", "res_bo"
HOUR, MS = timedelta(hours=1), timedelta(milliseconds=1)
NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.travel(NOON - clock.now()):
        yield


def give(points: int, who: str = ANNA) -> None:
    scenarios.move_points(who, f"give-{points}", "earn", points)


def hold(points: int = 60, key: str = "h1", ttl: timedelta = HOUR) -> holds.Held:
    return holds.hold(ANNA, key, points, ttl, purpose="weighing pomelos")


def capture(points: int | None = None, key: str = "h1", who: str = ANNA) -> Entry:
    return holds.capture(who, key, points, reason="weighed")


def release(key: str = "h1", who: str = ANNA) -> Entry:
    return holds.release(who, key, reason="left the shop")


def there() -> tuple[int, int, int]:
    balance = statements.balance(ANNA)
    return balance.available, balance.held, balance.spent


def the_books_hold() -> None:
    assert book.verify(checks=[consistent]).problem is None


def test_a_part_is_captured_and_the_rest_is_free_again() -> None:
    give(100)
    held = hold()
    assert (held.key, held.points, there()) == ("h1", 60, (40, 60, 0))
    entry = capture(45)
    assert (entry.kind, entry.refs["hold"], there()) == ("spend", "h1", (55, 0, 45))
    rows = statements.rows(ANNA, before=None, limit=9)
    assert [(row.entry.kind, row.points, row.available_after) for row in rows] == [
        ("spend", -45, 55),
        ("hold", -60, 40),
        ("earn", 100, 100),
    ]
    assert [(row.changes.available, row.changes.held) for row in rows] == [
        (15, -60),
        (-60, 60),
        (100, 0),
    ]
    the_books_hold()


def test_what_is_let_go_can_be_spent() -> None:
    give(100)
    hold()
    assert there() == (40, 60, 0)
    assert release().kind == "release"
    assert there() == (100, 0, 0)
    row = statements.rows(ANNA, before=None, limit=1)[0]
    assert (row.points, row.available_after) == (60, 100)


def test_asking_for_the_same_again_has_one_effect() -> None:
    give(100)
    first = hold()
    with clock.travel(timedelta(minutes=5)):
        assert hold() == first
        assert capture(45) == capture(45)
        assert hold() == first  # Also when it has ended.
    assert book.head(ANNA).seq == 3


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        (lambda: hold(points=101, key="h2"), "insufficient_points"),
        (lambda: hold(points=0, key="h2"), "validation_failed"),
        (lambda: hold(points=-5, key="h2"), "validation_failed"),
        (lambda: hold(points=1.5, key="h2"), "validation_failed"),  # type: ignore[arg-type]
        (lambda: hold(points=True, key="h2"), "validation_failed"),
        (lambda: hold(ttl=timedelta(0), key="h2"), "validation_failed"),
        (lambda: hold(ttl=timedelta(days=7) + MS, key="h2"), "validation_failed"),
        (lambda: hold(key=""), "validation_failed"),
        (lambda: hold(key="x" * 65), "validation_failed"),
        (lambda: hold(points=59), "idempotency_key_reused"),
        (lambda: hold(ttl=2 * HOUR), "idempotency_key_reused"),
        (lambda: capture(61), "validation_failed"),
        (lambda: capture(0), "validation_failed"),
        (lambda: capture(-1), "validation_failed"),
        (lambda: capture(key="h9"), "not_found"),
        (lambda: capture(who=BO), "not_found"),
        (lambda: release(key="h9"), "not_found"),
        (lambda: release(who=BO), "not_found"),
    ],
)
def test_what_makes_no_sense_is_refused_and_writes_nothing(
    ask: Callable[[], Any], code: str
) -> None:
    give(100)
    hold()
    with pytest.raises(DomainError) as refused:
        ask()
    assert refused.value.code == code
    assert (book.head(ANNA).seq, book.head(BO).seq, there()) == (2, 0, (40, 60, 0))


@pytest.mark.parametrize("first", [lambda: capture(45), capture, release])
@pytest.mark.parametrize("second", [lambda: capture(44), lambda: capture(60), release])
def test_a_hold_ends_once(first: Callable[[], Entry], second: Callable[[], Entry]) -> None:
    give(100)
    hold()
    ended = first()
    before = there()
    if first is second:
        assert second() == ended
    else:
        with pytest.raises(holds.HoldClosed):
            second()
    assert (book.head(ANNA).seq, there()) == (3, before)


@pytest.mark.parametrize("end", [capture, lambda: capture(1), release])
def test_after_its_time_a_hold_is_over_to_the_millisecond(end: Callable[[], Entry]) -> None:
    give(100)
    with clock.stand(NOON + HOUR):
        until = hold().until
    with clock.stand(until):
        assert there() == (100, 0, 0)
        for _ in range(2):
            with pytest.raises(holds.HoldOver):
                end()
        assert book.head(ANNA).seq == 2
        scenarios.move_points(ANNA, "spend", "spend", 100)
        with pytest.raises(holds.HoldOver):
            end()
    the_books_hold()


def test_a_hold_can_be_captured_until_its_last_millisecond() -> None:
    give(100)
    with clock.stand(NOON + HOUR):
        until = hold().until
    with clock.stand(until - MS):
        capture()
        assert there() == (40, 0, 60)


def test_what_expired_while_it_was_held_leaves_with_the_rest_of_it() -> None:
    give(100)  # Of May 2026.
    last_instant = clock.end_of_month("2028-05") - MS
    with clock.stand(last_instant):
        hold()
    with clock.stand(last_instant + MS):
        # 40 have expired; 60 are still held.
        assert there() == (0, 60, 0)
        entry = capture(25)
        assert entry.refs["lots"] == [list(Lot(2028_05_31, "city", 25))]
        balance = statements.balance(ANNA)
        assert (balance.available, balance.held, balance.expired) == (0, 0, 75)
    the_books_hold()


# Many at once.


def test_twelve_threads_hold_no_more_than_there_is() -> None:
    give(100)

    def one(number: int) -> str:
        try:
            hold(30, key=f"h{number}")
        except DomainError as refusal:
            return refusal.code
        return "held"

    with ThreadPoolExecutor(12) as pool:
        ends = sorted(pool.map(one, range(12)))
    assert ends == ["held"] * 3 + ["insufficient_points"] * 9
    assert there() == (10, 90, 0)


def test_of_many_who_end_a_hold_one_does() -> None:
    give(100)
    hold()

    def one(number: int) -> str:
        try:
            (release() if number % 4 == 0 else capture(number % 4))
        except DomainError as refusal:
            return refusal.code
        return "ended"

    with ThreadPoolExecutor(12) as pool:
        ends = list(pool.map(one, range(12)))
    # Whoever asked for the same end is told so; there are four of them, three times each.
    assert sorted(ends) == ["ended"] * 3 + ["hold_closed"] * 9
    assert book.head(ANNA).seq == 3
    the_books_hold()


def test_only_so_many_holds_are_open_and_a_closed_one_makes_room() -> None:
    give(100)
    for number in range(HOLDS_MAX):
        hold(1, key=f"h{number}")
    with pytest.raises(DomainError, match="too_many_holds"):
        hold(1, key="one more")
    release("h3")
    assert hold(1, key="one more").points == 1


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["hold", "capture"])
def test_a_kill_while_it_is_written_is_made_good_by_asking_again(
    crew: Crew, step: str, when: str
) -> None:
    give(100)
    points = {"hold": 60, "capture": 45}[step]
    if step == "capture":
        hold()
    asked = {"account": ANNA, "key": "h1", "points": points}
    assert crew.run(step, Death("accounting.book:post", when), **asked) == KILLED
    for _ in range(2):
        assert "value" in crew.run(step, **asked)
    assert there() == {"hold": (40, 60, 0), "capture": (55, 0, 45)}[step]
    the_books_hold()


@pytest.mark.parametrize("accounts", [1, 12])
def test_eight_processes_doing_everything_at_once_are_one_after_the_other(
    crew: Crew, accounts: int
) -> None:
    """No balance is negative, and the pure wallet lives the same life entry by entry."""
    people = [f"res_{number}" for number in range(accounts)]
    for who in people:
        give(50, who)
    jobs = [job("live", accounts=people, name=f"p{number}", count=12) for number in range(8)]
    assert all("value" in end for end in crew.wait(crew.start(*jobs)))
    the_books_hold()
    assert sum(lived_again(who) for who in people) > 50


def lived_again(who: str) -> int:
    """Live an account's entries once more, in their order and at their time; returns how many."""
    after: dict[str, Any] = {}
    count = 0
    for entry in book.entries(who):
        wallet = Wallet.load(after)
        wallet.advance(entry.recorded_at)
        count += 1
        if entry.kind == "earn":
            points = entry.refs["points"]
            wallet.earn(points, "city", over=entry.recorded_at, maturity=timedelta(0))
        elif entry.kind == "hold":
            points = sum(lot[2] for lot in entry.refs["lots"])
            wallet.hold(entry.refs["hold"], points, entry.refs["until"])
        elif "hold" in entry.refs:
            held = wallet.held(entry.refs["hold"])
            assert held is not None
            points = sum(lot[2] for lot in entry.refs["lots"])
            wallet.capture(held, points) if points else wallet.release(held)
        else:
            wallet.spend(entry.refs["points"])
        wallet.advance(entry.recorded_at)
        assert (list(entry.lines), entry.after["wallet"]) == (wallet.lines, wallet.dump())
        assert wallet.available >= 0
        after = {"wallet": wallet.dump()}
    return count


def test_a_key_of_one_resident_is_none_of_anothers() -> None:
    give(100)
    give(100, BO)
    hold()
    assert holds.hold(BO, "h1", 10, HOUR, purpose="other").points == 10
    with pytest.raises(KeyReused):
        holds.hold(BO, "h1", 11, HOUR, purpose="other")
    with pytest.raises(NotFound):
        capture(key="h2", who=BO)
