"""Day totals of plants in the book: once a day for days that are over, then only differences.

The account is the plant's id. A day's entries carry it as their city day, so what the book holds of
a day is the sum of its entries, and each run posts at most one difference for a day. The key names
the version of the day that was posted: a run that was killed behind the entry finds it again, and
one that is slower than another posts nothing older over it.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import NamedTuple

from pymongo import UpdateOne

from accounting import book, clock
from accounting.book import Ask, Decide, Decision, Head, Line, Noted, Wanted
from accounting.enterprise import inventory, inventory_days, meterdays, meters, plants
from accounting.enterprise.boundary import Boundary
from accounting.enterprise.inventory import Total
from accounting.enterprise.inventory_days import Day, collection, day_id
from accounting.errors import DomainError
from accounting.factors import MissingFactor

KIND = "plant_day"
CO2E, TCE = "co2e_mg", "tce_mg"
EMITTED, USED = "emitted", "used"
CITY_EMITTED, CITY_USED = "emitted:plants", "used:plants"

log = logging.getLogger(__name__)


class Held(NamedTuple):
    """What the book holds of a day: milligrams, and the newest version of the day in it."""

    co2e_mg: int
    tce_mg: int
    version: int


def due(now: datetime, limit: int) -> dict[str, list[Day]]:
    """Days that are over and not as the book has them, the longest waiting first, by plant."""
    wanted = {"due_at": meterdays.due_by(now), "day": {"$lt": clock.city_day(now).isoformat()}}
    by_plant: dict[str, list[Day]] = defaultdict(list)
    for row in collection().find(wanted).sort("due_at", 1).limit(limit):
        by_plant[row["plant"]].append(inventory_days.day_of(row))
    return by_plant


def post(plant_id: str, days: Sequence[Day], now: datetime) -> list[Day]:
    """Post days of a plant; returns those it is done with. They are due until `let_go`."""
    bounds = Boundary(meters.of_plant(plant_id), plants.nodes(plant_id), None)
    ordered = sorted(days, key=lambda day: day.day)
    totals = dict(_totals(bounds, ordered, now))
    held = held_of(book.on_days(plant_id, ordered[0].day, ordered[-1].day))
    wanted = [
        Wanted(_ask(day), _decide(day, totals[day.day]), (day.day, day.day))
        for day in ordered
        if day.day in totals and _is_news(day, totals[day.day], held.get(day.day))
    ]
    failed = {
        one.ask.cap_day
        for one, result in zip(wanted, book.post_many(wanted), strict=True)
        if isinstance(result, DomainError)
    }
    return [day for day in ordered if day.day not in failed]


def let_go(days: Sequence[Day]) -> None:
    """These are as the book has them; a day that was changed meanwhile stays due."""
    changes = [
        UpdateOne(
            {"_id": day_id(day.plant, day.day), "version": day.version}, {"$unset": {"due_at": ""}}
        )
        for day in days
    ]
    if changes:
        collection().bulk_write(changes, ordered=False)


def held_of(entries: Iterable[Noted]) -> Mapping[date, Held]:
    """What the book holds of each day that is in it."""
    held: dict[date, Held] = {}
    for one in entries:
        if one.kind == KIND:
            on = date.fromisoformat(one.cap_day)
            before = held.get(on, Held(0, 0, 0))
            held[on] = Held(
                before.co2e_mg + one.refs["more_co2e_mg"],
                before.tce_mg + one.refs["more_tce_mg"],
                max(before.version, one.refs["version"]),
            )
    return held


def _totals(bounds: Boundary, days: Sequence[Day], now: datetime) -> Iterable[tuple[date, Total]]:
    for day in days:
        try:
            yield day.day, inventory.day_total(bounds, day, now)
        except MissingFactor as missing:
            # It is due again when there is a factor.
            log.warning("%s is not posted: %s", day_id(day.plant, day.day), missing)


def _is_news(day: Day, total: Total, held: Held | None) -> bool:
    """Also a later version that says the same: an earlier one may be on its way to the book."""
    return total.known if held is None else day.version > held.version


def _ask(day: Day) -> Ask:
    name = day.day.isoformat()
    return Ask(
        account=day.plant,
        key=f"day:{name}:{day.version}",
        kind=KIND,
        fingerprint=book.fingerprint(name, day.version),
        occurred_at=clock.start_of(day.day),
        cap_day=day.day,
    )


def _decide(day: Day, total: Total) -> Decide:
    def decide(head: Head, now: datetime) -> Decision:
        held = held_of(head.on_days(day.day, day.day)).get(day.day, Held(0, 0, 0))
        more_co2e = more_tce = 0
        if day.version > held.version:
            more_co2e, more_tce = total.co2e_mg - held.co2e_mg, total.tce_mg - held.tce_mg
        lines = (
            *_moved(CO2E, EMITTED, CITY_EMITTED, more_co2e),
            *_moved(TCE, USED, CITY_USED, more_tce),
        )
        refs = {
            "version": day.version,
            "run": day.run,
            "cause": day.cause,
            "more_co2e_mg": more_co2e,
            "more_tce_mg": more_tce,
            "co2e_mg": held.co2e_mg + more_co2e,
            "tce_mg": held.tce_mg + more_tce,
            "completeness": str(total.completeness),
            "estimated_share": str(total.estimated_share),
            "factors": sorted({one for row in total.by_carrier.values() for one in row.factors}),
        }
        return Decision(lines, {}, refs)

    return decide


def _moved(unit: str, own: str, shared: str, amount: int) -> tuple[Line, ...]:
    return (Line(unit, shared, -amount), Line(unit, own, amount)) if amount else ()
