"""Which milestones a resident's days reach. Pure; the steps and texts are `milestones.toml`."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from accounting.quantities import MG_PER_KG

FILE = Path(__file__).parent / "milestones.toml"
LIFETIME, FIRST, STREAK, MONTH = "lifetime", "first", "streak", "month"
KINDS: Final = (LIFETIME, FIRST, STREAK, MONTH)
CLASSES: Final = ("service", "marketing")
LANGUAGES: Final = ("zh", "en")
_DAY = timedelta(days=1)

# Milligrams by city day and behaviour.
Days = Mapping[date, Mapping[str, int]]


class BadMilestones(Exception):
    """The file cannot be used; the message names kind and field."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of milestone: its ascending steps (none for firsts), and what is said."""

    kind: str
    type: str
    category: str
    steps: tuple[int, ...]
    title: Mapping[str, str]
    body: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Step:
    """A milestone: `n` of its kind; `about` is the behaviour of a first, the month of a goal.

    `day` is the city day of what reached it, where it is known.
    """

    kind: str
    n: int = 1
    about: str = ""
    day: date | None = None

    @property
    def name(self) -> str:
        """What it is unique by, within a resident."""
        return {
            LIFETIME: f"lifetime_{self.n}_kg",
            FIRST: f"first_{self.about}",
            STREAK: f"streak_{self.n}_days",
            MONTH: f"month_{self.about}_{self.n}_kg",
        }[self.kind]


@cache
def rules() -> Mapping[str, Rule]:
    return parse(FILE.read_text(encoding="utf-8"))


def parse(text: str) -> dict[str, Rule]:
    """The rules of a file, by kind. Raises `BadMilestones`."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadMilestones(str(error)) from None
    if data.keys() != set(KINDS):
        raise BadMilestones(f"the kinds are {', '.join(KINDS)}")
    return {kind: _rule(kind, data[kind]) for kind in KINDS}


def _rule(kind: str, row: Mapping[str, Any]) -> Rule:
    known = {"type", "class", "title", "body"} | (set() if kind == FIRST else {"steps"})
    if row.keys() != known:
        raise BadMilestones(f"{kind}: the fields are {', '.join(sorted(known))}")
    steps = row.get("steps", [])
    if steps != sorted(set(steps)) or any(type(n) is not int or n < 1 for n in steps):
        raise BadMilestones(f"{kind}: steps must be whole numbers that ascend")
    if row["class"] not in CLASSES:
        raise BadMilestones(f"{kind}: class must be one of {', '.join(CLASSES)}")
    for part in ("title", "body"):
        if row[part].keys() != set(LANGUAGES):
            raise BadMilestones(f"{kind}: {part} must be in {' and '.join(LANGUAGES)}")
        for said in row[part].values():
            try:
                said.format(n=1, behaviour="", month="")
            except (KeyError, IndexError, ValueError) as error:
                raise BadMilestones(f"{kind}: {part} cannot be filled in: {error}") from None
    return Rule(kind, row["type"], row["class"], tuple(steps), row["title"], row["body"])


def crossed(before_mg: int, after_mg: int) -> list[int]:
    """The kilogram steps that lie between two lifetime totals."""
    return [kg for kg in rules()[LIFETIME].steps if before_mg < kg * MG_PER_KG <= after_mg]


def reached(days: Days) -> dict[str, Step]:
    """What these days reach, but for lifetime steps, by name."""
    steps = [*_firsts(days), *_streaks(days), *_months(days)]
    return {step.name: step for step in steps}


def run_until(days: Days, today: date) -> int:
    """How many days in a row lead up to today; yesterday counts while today may still follow."""
    active = {day for day, by_behaviour in days.items() if sum(by_behaviour.values()) > 0}
    last = today if today in active else today - _DAY
    length = 0
    while last in active:
        length, last = length + 1, last - _DAY
    return length


def month_mg(days: Days, month: str) -> int:
    return sum(sum(by.values()) for day, by in days.items() if day.isoformat()[:7] == month)


def _firsts(days: Days) -> Iterator[Step]:
    seen: set[str] = set()
    for day in sorted(days):
        for behaviour, mg in sorted(days[day].items()):
            if mg > 0 and behaviour not in seen:
                seen.add(behaviour)
                yield Step(FIRST, about=behaviour, day=day)


def _streaks(days: Days) -> Iterator[Step]:
    steps = rules()[STREAK].steps
    seen: set[int] = set()
    length, before = 0, date.min
    for day in sorted(days):
        if sum(days[day].values()) <= 0:
            continue
        length = length + 1 if day - _DAY == before else 1
        before = day
        if length in steps and length not in seen:
            seen.add(length)
            yield Step(STREAK, length, day=day)


def _months(days: Days) -> Iterator[Step]:
    by_month: dict[str, list[date]] = {}
    for day in sorted(days):
        by_month.setdefault(day.isoformat()[:7], []).append(day)
    for month, active in by_month.items():
        sums = list(accumulate(sum(days[day].values()) for day in active))
        for kg in rules()[MONTH].steps:
            if sums[-1] >= kg * MG_PER_KG:
                day = next(
                    day for day, mg in zip(active, sums, strict=True) if mg >= kg * MG_PER_KG
                )
                yield Step(MONTH, kg, about=month, day=day)


def following(steps: Sequence[int], have: int) -> int | None:
    """The first step that is more than what there is."""
    return next((step for step in steps if step > have), None)
