"""The city's clock: days and months are Asia/Shanghai, and a test may move it or stop it."""

from datetime import UTC, date, datetime, timedelta

import pytest

from accounting import clock

MS = timedelta(milliseconds=1)
MIDNIGHT = datetime(2026, 5, 31, 16, tzinfo=UTC)
"""The first instant of 1 June in the city, which is eight hours ahead."""


def test_day_and_month_change_at_midnight_of_the_city() -> None:
    assert clock.city_day(MIDNIGHT - MS) == date(2026, 5, 31)
    assert clock.city_day(MIDNIGHT) == date(2026, 6, 1)
    assert (clock.city_month(MIDNIGHT - MS), clock.city_month(MIDNIGHT)) == ("2026-05", "2026-06")
    assert clock.end_of_month("2026-05") == clock.start_of(date(2026, 6, 1)) == MIDNIGHT


@pytest.mark.parametrize(
    ("month", "count", "then"),
    [("2026-11", 24, "2028-11"), ("2026-12", 1, "2027-01"), ("2026-01", -1, "2025-12")],
)
def test_months_are_added_over_the_end_of_the_year(month: str, count: int, then: str) -> None:
    assert clock.add_months(month, count) == then


def test_an_instant_is_cut_to_milliseconds() -> None:
    assert clock.cut(MIDNIGHT.replace(microsecond=1_999)) == MIDNIGHT + MS


def test_a_stopped_clock_stands_moves_only_by_travel_and_runs_again_afterwards() -> None:
    with clock.travel(timedelta(days=400)):
        with clock.stand(MIDNIGHT):
            assert {clock.now() for _ in range(10_000)} == {MIDNIGHT}
            with clock.travel(-MS):
                assert clock.now() == MIDNIGHT - MS
            assert clock.now() == MIDNIGHT
        assert clock.now() - datetime.now(UTC) > timedelta(days=399)
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(days=1)
