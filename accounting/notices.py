"""What residents are told of: the texts of every occasion in both languages, as data.

`notices.toml` says what each is, and which facts its texts name. Milestones have a file of their
own, because their steps are in it as well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Final

from accounting import accounts, clock, outbox, toml_tables
from accounting.outbox import Notice
from accounting.toml_tables import Table

FILE: Final = Path(__file__).parent / "notices.toml"
CLASSES: Final = (outbox.SERVICE, outbox.MARKETING)
LANGUAGES: Final = ("zh", "en")
MORNING: Final = timedelta(hours=9)

# A fact is the same in both languages, or has a text for each.
Fact = str | int | Mapping[str, str]
Texts = dict[str, str]


class BadNotices(Exception):
    """The file cannot be used; the message names occasion and field."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One occasion; texts and link name `facts` in braces."""

    type: str
    category: str
    facts: frozenset[str]
    link: str
    collapse: str | None
    title: Texts
    body: Texts


def make(
    occasion: str,
    resident: str,
    dedupe: str,
    *,
    category: str | None = None,
    not_before: datetime | None = None,
    **facts: Fact,
) -> Notice:
    """The notice of an occasion with its facts filled in, of its own class unless told otherwise.

    The same `dedupe` tells a resident once.
    """
    rule = rules()[occasion]
    assert facts.keys() == rule.facts, (occasion, sorted(facts))
    zh, en = _in("zh", facts), _in("en", facts)
    return Notice(
        resident,
        dedupe,
        type=rule.type,
        category=category or rule.category,
        title={"zh": rule.title["zh"].format(**zh), "en": rule.title["en"].format(**en)},
        body={"zh": rule.body["zh"].format(**zh), "en": rule.body["en"].format(**en)},
        deep_link=rule.link.format(**zh),
        collapse_key=rule.collapse,
        not_before=not_before,
    )


def leave_new(made: Sequence[Notice]) -> int:
    """Leave notices that were not left before, for accounts that are open; returns how many.

    For jobs that come to the same notices time and again.
    """
    fresh = outbox.untold(made)
    open_ = accounts.get_many(sorted({one.resident for one in fresh}))
    return outbox.leave_many([one for one in fresh if one.resident in open_])


def step_of(days_left: int, steps: Sequence[int]) -> int | None:
    """Which reminder is due so many days before a last day: the nearest step not yet passed.

    So a night that was missed is made up for by the next one, and each step is told once.
    """
    return min((step for step in steps if 0 <= days_left <= step), default=None)


def morning_of(day: date) -> datetime:
    """When a reminder of a city day may ring, whatever time of the night it was made."""
    return clock.start_of(day) + MORNING


@cache
def rules() -> Mapping[str, Rule]:
    return parse(FILE.read_text(encoding="utf-8"))


def parse(text: str) -> dict[str, Rule]:
    """The occasions of a file, by name. Raises `BadNotices`."""
    top = toml_tables.read(text, FILE.name, BadNotices, "the notices")
    return {occasion: _rule(top.table(occasion)) for occasion in list(top.rest)}


def _rule(row: Table) -> Rule:
    facts = frozenset(row.strings("facts"))
    rule = Rule(
        type=row.take("type", str),
        category=row.one_of("class", CLASSES),
        facts=facts,
        link=_filled(row, "link", row.take("link", str), facts),
        collapse=row.take("collapse", str) if "collapse" in row.rest else None,
        title=_texts(row, "title", facts),
        body=_texts(row, "body", facts),
    )
    row.close()
    return rule


def _texts(row: Table, field: str, facts: frozenset[str]) -> Texts:
    part = row.table(field)
    texts = {language: part.take(language, str) for language in LANGUAGES}
    part.close()
    return {language: _filled(part, language, said, facts) for language, said in texts.items()}


def _filled(row: Table, field: str, said: str, facts: frozenset[str]) -> str:
    """The text, if it names nothing but facts."""
    try:
        said.format(**dict.fromkeys(facts, ""))
    except (KeyError, IndexError, ValueError) as error:
        raise row.wrong(field, f"cannot be filled in: {error}") from None
    return said


def _in(language: str, facts: Mapping[str, Fact]) -> dict[str, str | int]:
    return {
        name: fact[language] if isinstance(fact, Mapping) else fact for name, fact in facts.items()
    }
