"""A whole city written to a folder, day by day, with a manifest as the last file.

Nothing is held but the row at hand and the list of files: people are made again for every day,
which costs less than keeping two million of them.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from random import Random
from typing import Any

from accounting import clock
from api.city import billing, days, faults, people, plants
from api.city.chance import Use, stream
from api.city.files import Folder, Written
from api.city.partners import PARTNERS, READING, UTILITIES, Row
from api.city.people import Person

MANIFEST = "manifest.json"
# What is told to whoever watches: the stage, how much of it is done, how much there is.
Tick = Callable[[str, int, int], None]
TICK_EVERY = 500


@dataclass(frozen=True)
class Plan:
    """What city is asked for. `until` is its last day, `bill_months` end before or on it."""

    residents: int
    days: int
    seed: int
    until: date
    bill_months: int
    plants: int
    meters: int

    @property
    def dates(self) -> list[date]:
        return [self.until - timedelta(days=back) for back in range(self.days - 1, -1, -1)]

    @property
    def months(self) -> list[str]:
        """The last months that are over on the evening of `until`, oldest first."""
        last = clock.add_months(clock.month_of(self.until + timedelta(days=1)), -1)
        return [clock.add_months(last, -back) for back in range(self.bill_months - 1, -1, -1)]


def write(plan: Plan, folder: Folder, tick: Tick) -> list[Written]:
    """Write every file; the manifest comes last, so a folder that has one is whole."""
    written = [*_listed(plan, folder, tick), *_activities(plan, folder, tick)]
    written += [*_bills(plan, folder, tick), *_readings(plan, folder, tick)]
    manifest = {
        "city": {**asdict(plan), "until": plan.until.isoformat()},
        "partners": [
            {"name": one.name, "behaviours": one.behaviours, "carriers": one.carriers}
            for one in (*PARTNERS, *UTILITIES)
        ],
        "files": [one.told() for one in written],
    }
    text = json.dumps(manifest, ensure_ascii=False, indent=1) + "\n"
    (folder.path / MANIFEST).write_text(text, "utf-8")
    return written


def activity_rows(
    plan: Plan,
    on: date,
    found: dict[str, Counter[str]],
    tick: Tick | None = None,
    blocks: Iterable[int] | None = None,
) -> Iterator[tuple[str, Row]]:
    """What partners hand over on a day, with the partner's name; faults are counted in `found`.

    Days that came late stand with the rows of the day they came. With `blocks` only of some parts
    of the city.
    """
    today = days.day_of(plan.seed, on)
    before = days.day_of(plan.seed, on - timedelta(days=faults.LATE_DAYS))
    random = Random()
    for person in people.people(plan.seed, plan.residents, blocks):
        if tick is not None and person.number % TICK_EVERY == 0:
            tick("activities", person.number, plan.residents)
        if not person.partners:
            continue
        for day, late in ((before, True), (today, False)):
            if faults.is_late(plan.seed, person.number, day.date) != late:
                continue
            stream(random, plan.seed, Use.DAY, person.number, day.date.toordinal())
            for partner, row in [*days.rows(random, person, day)]:
                found[partner][faults.LATE] += late
                for one in faults.spoil(random, row, found[partner]):
                    yield partner, one


def resident(person: Person) -> dict[str, Any]:
    """A line of the residents' file: what a test or a bench links for whom."""
    home = person.household
    return {
        "resident": person.number,
        "age": person.age,
        "district": person.district,
        "ids": {partner: person.external_id(partner) for partner in person.partners},
        "household": {
            "members": home.members,
            "meters": {carrier: home.account_no(carrier) for carrier in home.carriers},
        },
    }


def _listed(plan: Plan, folder: Folder, tick: Tick) -> Iterator[Written]:
    with folder.file("residents", "residents") as (written, take):
        for person in people.people(plan.seed, plan.residents):
            take(resident(person))
            if person.number % TICK_EVERY == 0:
                tick("residents", person.number, plan.residents)
    yield written
    with folder.file("plants", "plants") as (written, take):
        for plant in plants.plants(plan.plants, plan.meters):
            take(plant.told())
    yield written


def _activities(plan: Plan, folder: Folder, tick: Tick) -> Iterator[Written]:
    total = plan.days * plan.residents
    for number, on in enumerate(plan.dates):
        done = number * plan.residents

        def told(stage: str, place: int, _: int, done: int = done) -> None:
            tick(stage, done + place, total)

        with ExitStack() as stack:
            files = {
                one.name: stack.enter_context(
                    folder.file(f"{one.name}/{on}", "activities", one.columns, one.name)
                )
                for one in PARTNERS
            }
            found = {name: written.faults for name, (written, _) in files.items()}
            takes = {name: take for name, (_, take) in files.items()}
            for partner, row in activity_rows(plan, on, found, told):
                takes[partner](row)
        yield from (written for written, _ in files.values())


def _bills(plan: Plan, folder: Folder, tick: Tick) -> Iterator[Written]:
    random, total = Random(), plan.bill_months * plan.residents
    for number, month in enumerate(plan.months):
        with ExitStack() as stack:
            files = {
                one.name: stack.enter_context(
                    folder.file(f"{one.name}/{month}", "bills", one.columns, one.name)
                )
                for one in UTILITIES
            }
            for home in people.households(plan.seed, plan.residents):
                for carrier in home.carriers:
                    written, take = files[carrier]
                    for bill in billing.bills(
                        random, plan.seed, home, carrier, month, written.faults
                    ):
                        take(bill)
                tick("bills", number * plan.residents + home.first, total)
        yield from (written for written, _ in files.values())


def _readings(plan: Plan, folder: Folder, tick: Tick) -> Iterator[Written]:
    total = plan.plants * plan.days
    for number, on in enumerate(plan.dates):
        for plant in plants.plants(plan.plants, plan.meters):
            name = f"{plant.id}/{on}"
            with folder.file(name, "readings", READING, plant.id) as (written, take):
                for row in plants.readings(plan.seed, plant, on, written.faults):
                    take(row)
            yield written
            tick("readings", number * plan.plants + plant.number, total)


def is_free(path: Path) -> bool:
    """A folder that is not there yet, or is empty."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))
