"""Reporting what people did at times of the city, straight to the rules and the book."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from accounting import book, clock
from footprint.activities import Activity
from footprint.rules import Report
from points import crediting
from points.wallet import Wallet

_events = itertools.count()


def city(text: str) -> datetime:
    """An instant written in city time."""
    return datetime.fromisoformat(text).replace(tzinfo=clock.CITY).astimezone(UTC)


@contextmanager
def at(text: str | datetime) -> Iterator[None]:
    """The clock stands at a time of the city: a slow machine changes no answer."""
    with clock.stand(city(text) if isinstance(text, str) else text):
        yield


def did(
    who: str,
    behaviour: str,
    quantity: object,
    when: str | datetime,
    *,
    minutes: int | None = None,
    evidence: str = "A",
    source: str = "city",
    **attributes: Any,
) -> Activity:
    """Report it now; returns what became of it."""
    start = city(when) if isinstance(when, str) else when
    end = start + timedelta(minutes=minutes) if minutes is not None else None
    what = Report(behaviour, Decimal(str(quantity)), start, end, attributes)
    event = f"event-{next(_events)}"
    return crediting.report(who, what, source=source, event_id=event, evidence=evidence)[0]


def spent(who: str, points: int) -> None:
    """Spend points of a resident as a redemption does."""

    def decide(head: book.Head, now: datetime) -> book.Decision:
        wallet = Wallet.load(head.after)
        wallet.advance(now)
        wallet.spend(points)
        return book.Decision(tuple(wallet.lines), {"wallet": wallet.dump()})

    ask = book.Ask(who, f"spend-{points}", "spend", book.fingerprint(points), clock.now())
    book.post(ask, decide)
