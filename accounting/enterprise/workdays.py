"""Which kind of day a day is: its weekday, but a holiday is a Sunday, and a worked weekend is not.

`holidays.toml` holds what the State Council announced; a year it does not know has plain weeks.
"""

import tomllib
from collections.abc import Mapping
from datetime import date, timedelta
from functools import cache
from importlib import resources

FRIDAY, SATURDAY, SUNDAY = 5, 6, 7


def kind_of(day: date) -> int:
    """The ISO weekday a day is like: 7 for a holiday, 5 or 1 for a worked weekend.

    A worked Saturday is like the Friday before it, a worked Sunday like the Monday after it.
    """
    special = _special().get(day)
    return day.isoweekday() if special is None else special


def rests(kind: int) -> bool:
    """Whether a kind of day is one without work."""
    return kind >= SATURDAY


@cache
def _special() -> Mapping[date, int]:
    text = resources.files("accounting.enterprise").joinpath("holidays.toml").read_text("utf-8")
    special: dict[date, int] = {}
    for year in tomllib.loads(text).values():
        for first, last in year["holidays"]:
            day = date.fromisoformat(first)
            while day <= date.fromisoformat(last):
                special[day] = SUNDAY
                day += timedelta(days=1)
        for one in year["worked"]:
            day = date.fromisoformat(one)
            special[day] = FRIDAY if day.isoweekday() == SATURDAY else 1
    return special
