"""Milestones by days: firsts, streaks in city days, goals of a month; taken back and told once."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from faults.crew import KILLED, Crew, Death

from accounting import accounts, book, clock, outbox, storage
from api.config import Config
from footprint import summaries, upkeep
from footprint.activities import Activity
from footprint.rules import Report
from points import crediting, milestones, reaching
from points.reaching import BadMilestones, Days

pytestmark = pytest.mark.usefixtures("app")

events = (f"event-{number}" for number in itertools.count())


def city(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=clock.CITY).astimezone(UTC)


NOW = city("2026-05-20 20:00")


@pytest.fixture(autouse=True)
def _now() -> Iterator[None]:
    with clock.travel(NOW - clock.now()):
        yield


@pytest.fixture(scope="module")
def one_crew(config: Config) -> Iterator[Crew]:
    with Crew(config.mongodb_uri) as crew:
        yield crew


@pytest.fixture
def crew(one_crew: Crew, _now: None) -> Crew:
    one_crew.shift = clock.now() - datetime.now(UTC)
    return one_crew


@pytest.fixture
def anna(app: object) -> str:
    return accounts.by_phone("+8613800138000")


def tell(who: str, behaviour: str, quantity: str, at: str, **attributes: str) -> Activity:
    what = Report(behaviour, Decimal(quantity), city(at), None, attributes)
    event = next(events)
    told, _ = crediting.report(who, what, source="partner:1", event_id=event, evidence="A")
    return told


def look(who: str) -> None:
    """What the follower of the book does with every entry of an account."""
    summaries.catch_up(who)
    milestones.look(list(book.entries(who)))


def names(who: str) -> list[str]:
    return [one.milestone for one in milestones.of_resident(who)[0]]


def told(who: str) -> list[tuple[str, str]]:
    rows = outbox.inbox(who, before=None, limit=50)
    return sorted((row.type, row.title["en"]) for row in rows)


def test_the_first_time_of_a_behaviour_is_told_by_its_name_and_once(anna: str) -> None:
    for hour in (8, 18):
        tell(anna, "bus_km", "5.2", f"2026-05-20 {hour:02}:00")
        look(anna)
    assert names(anna) == ["first_bus_km"]
    [row] = outbox.inbox(anna, before=None, limit=9)
    assert (row.type, row.category) == ("first_time", outbox.MARKETING)
    assert row.title == {"zh": "第一次：公共汽(电)车", "en": "A first: City bus"}


def test_days_in_a_row_are_days_of_the_city(anna: str) -> None:
    # In UTC the first two are one day.
    for at in ("2026-05-18 23:59", "2026-05-19 00:01", "2026-05-20 12:00"):
        tell(anna, "bus_km", "5.2", at)
    look(anna)
    assert names(anna) == ["first_bus_km", "streak_3_days"]
    assert ("streak", "3 days in a row") in told(anna)


def test_a_streak_that_a_reversal_broke_is_gone_and_comes_back_without_a_word(anna: str) -> None:
    rides = [tell(anna, "bus_km", "5.2", f"2026-05-{day} 08:00") for day in (18, 19, 20)]
    look(anna)
    before = told(anna)
    crediting.reverse(rides[1], reason="refund", by="operator")
    look(anna)
    assert names(anna) == ["first_bus_km"]
    tell(anna, "bus_km", "5.2", "2026-05-19 09:00")
    look(anna)
    assert names(anna) == ["first_bus_km", "streak_3_days"]
    assert told(anna) == before


def test_a_first_that_was_taken_back_is_no_first_and_lifetime_steps_fall_at_once(
    anna: str,
) -> None:
    # 8 kg of recyclables = 10.76 kg.
    given = tell(anna, "recycle_kg", "8", "2026-05-20 08:00", slip="1")
    look(anna)
    assert set(names(anna)) == {
        *("lifetime_1_kg", "lifetime_5_kg", "lifetime_10_kg"),
        *("first_recycle_kg", "month_2026-05_10_kg"),
    }
    crediting.reverse(given, reason="void", by="operator")
    assert not [name for name in names(anna) if name.startswith("lifetime")]
    assert milestones.of_resident(anna)[1] == 1
    look(anna)
    assert names(anna) == []
    before = told(anna)
    tell(anna, "recycle_kg", "8", "2026-05-20 09:00", slip="2")
    look(anna)
    assert len(names(anna)) == 5
    assert told(anna) == before


def test_a_goal_of_a_month_is_reached_in_each_month(anna: str) -> None:
    for month, slip in (("04", "1"), ("05", "2")):
        tell(anna, "recycle_kg", "8", f"2026-{month}-19 08:00", slip=slip)
    look(anna)
    goals = [name for name in names(anna) if name.startswith("month")]
    assert goals == ["month_2026-04_10_kg", "month_2026-05_10_kg"]
    # 19 April is 31 days ago and so still told.
    assert [title for kind, title in told(anna) if kind == "monthly_goal"] == [
        "10 kg in 2026-04",
        "10 kg in 2026-05",
    ]


def test_what_was_reached_long_ago_by_late_data_is_shown_and_not_told(anna: str) -> None:
    tell(anna, "recycle_kg", "8", "2026-03-01 08:00", slip="1")
    look(anna)
    assert {"first_recycle_kg", "month_2026-03_10_kg"} <= set(names(anna))
    # Only the lifetime steps.
    assert {kind for kind, _ in told(anna)} == {"milestone"}


def test_what_comes_next(anna: str) -> None:
    for day in (18, 19):
        tell(anna, "bus_km", "5.2", f"2026-05-{day} 08:00")
    summaries.catch_up(anna)
    # 2 x 139,880 mg = 279.76 g; today may still be the third day.
    found = {one.kind: (one.milestone, one.have, one.need) for one in milestones.upcoming(anna)}
    assert found == {
        "lifetime": ("lifetime_1_kg", 279, 1_000),
        "streak": ("streak_3_days", 2, 3),
        "month": ("month_2026-05_10_kg", 279, 10_000),
    }


def test_eight_followers_record_and_tell_once(anna: str) -> None:
    tell(anna, "recycle_kg", "8", "2026-05-20 08:00", slip="1")
    summaries.catch_up(anna)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: milestones.look(list(book.entries(anna))), range(8)))
    assert len(names(anna)) == 5
    assert len(told(anna)) == 5
    assert storage.database()["milestones"].count_documents({}) == 5


@pytest.mark.parametrize(
    "step",
    [
        Death("points.milestones:look", "before"),
        Death("points.milestones:_row", "before"),
        Death("points.milestones:_notice", "before"),
    ],
    ids=str,
)
def test_a_follower_killed_at_any_step_is_followed_by_one_that_tells(
    crew: Crew, anna: str, step: Death
) -> None:
    upkeep.walk()
    asked = {"resident": anna, "name": "first_bus_km"}
    # The place of the follower is where it begins.
    upkeep.follow(lambda: storage.database()["followers"].count_documents({}) > 0)
    tell(anna, "bus_km", "5.2", "2026-05-20 08:00")
    assert crew.run("follow_to_milestone", step, **asked) == KILLED
    # Its place was not stored, so the entry is handed on again.
    upkeep.follow(lambda: bool(names(anna)), milestones.look)
    assert told(anna) == [("first_time", "A first: City bus")]
    assert names(anna) == ["first_bus_km"]


def test_a_follower_that_lost_its_place_looks_at_everybody(anna: str) -> None:
    over = {"_id": upkeep.FOLLOWER}
    tell(anna, "bus_km", "5.2", "2026-05-20 08:00")
    assert names(anna) == []
    # Nobody followed when it happened: the walk finds the place, and looks.
    there = storage.database()["followers"].count_documents
    upkeep.follow(lambda: there(over) > 0, milestones.look, milestones.look_at)
    assert told(anna) == [("first_time", "A first: City bus")]


# The rules.


def day(text: str) -> date:
    return date.fromisoformat(f"2026-{text}")


@pytest.mark.parametrize(
    ("days", "today", "length"),
    [
        ({}, "05-20", 0),
        ({"05-20": 1}, "05-20", 1),
        ({"05-19": 1}, "05-20", 1),
        ({"05-18": 1}, "05-20", 0),
        ({"04-30": 1, "05-01": 1, "05-02": 1}, "05-02", 3),
        ({"05-17": 1, "05-19": 1, "05-20": 1}, "05-20", 2),
        ({"05-18": 1, "05-19": 0, "05-20": 1}, "05-20", 1),
    ],
)
def test_how_many_days_lead_up_to_today(days: dict[str, int], today: str, length: int) -> None:
    known: Days = {day(text): {"bus_km": mg} for text, mg in days.items()}
    assert reaching.run_until(known, day(today)) == length


def test_a_week_and_a_gap() -> None:
    first = day("05-01")
    active = [first + timedelta(days=n) for n in range(15) if n != 8]
    known: Days = {one: {"walk_steps": 5} for one in active}
    streaks = {name: step.day for name, step in reaching.reached(known).items() if "streak" in name}
    # Days 1 to 8 (0-based 0..7) are one run, so three on the 3rd and seven on the 7th.
    assert streaks == {"streak_3_days": day("05-03"), "streak_7_days": day("05-07")}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("[streak]", "[strike]"), "the kinds are"),
        (("steps = [3, 7", "steps = [7, 3"), "streak: steps must be"),
        (("steps = [10, 20", "steps = [0, 20"), "month: steps must be"),
        (("steps = [10, 20", "steps = [1.5, 20"), "month: steps must be"),
        (('class = "marketing"', 'class = "spam"'), "first: class must be"),
        (('type = "streak"', 'kind = "streak"'), "streak: the fields are"),
        (("{n} days in a row", "{days} in a row"), "streak: title cannot be filled in"),
        (('zh = "连续', 'fr = "连续'), "streak: title must be in zh and en"),
        (("[first]", "[first"), "line"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_kind_and_field(
    change: tuple[str, str], complaint: str
) -> None:
    text = reaching.FILE.read_text(encoding="utf-8")
    assert change[0] in text
    with pytest.raises(BadMilestones, match=complaint.replace("(", "\\(")):
        reaching.parse(text.replace(*change, 1))
