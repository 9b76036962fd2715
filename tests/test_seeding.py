"""Accounts of the scale run: what is traced is what the real path would have left for everybody."""

from dataclasses import replace
from datetime import timedelta

import pytest
from flask import Flask

from accounting import book, clock, links, storage
from api import feed_rows
from api.bookkeeping import RULES
from api.city import people
from api.city.people import Person
from bench import seeding, stencils
from bench.seeding import Writer
from bench.stencils import Pattern
from footprint import grade, summaries
from points.feed import Partner

pytestmark = pytest.mark.usefixtures("app")
# Charging has claims, a bus trip has none.
PARTNERS = ("ev", "bus")
PEOPLE = 3


def somebody(partner: str, count: int, beyond: int = 0) -> list[Person]:
    found = (one for one in people.people(seeding.SEED, 5_000) if partner in one.partners)
    return [replace(next(found), number=beyond + place + 1) for place in range(count)]


@pytest.fixture
def traced(app: Flask) -> dict[str, tuple[Pattern, list[str]]]:
    """Of each partner a pattern, and the residents traced from it."""
    dates, found, writer = seeding.history(2), {}, Writer()
    for place, partner in enumerate(PARTNERS):
        [lived, *others] = somebody(partner, 1 + PEOPLE, beyond=10 * place)
        pattern = stencils.live(lived, partner, dates, seeding.SEED)
        names = []
        for other in others:
            for collection, raw in pattern.trace(other):
                writer.put(collection, raw)
                if collection == "residents":
                    names.append(stencils.id_of(raw).decode())
        found[partner] = pattern, names
    writer.flush()
    return found


def test_every_entry_and_month_of_a_traced_account_verifies(
    traced: dict[str, tuple[Pattern, list[str]]],
) -> None:
    found = book.verify(checks=RULES.checks)
    assert found.problem is None
    # Of each partner one who lived and three who were traced, with a report in each of two months.
    assert (found.accounts, found.entries) == (8, 16)
    for _, names in traced.values():
        heads = book.heads(names)
        for name in names:
            [before] = summaries.months_of([name]).values()
            assert before is not None, "its digest fits"
            assert summaries.cursors([name]) == {name: heads[name].seq} == {name: 2}
            summaries.rebuild(name)
            [after] = summaries.months_of([name]).values()
            assert [one.dump() for one in before] == [one.dump() for one in after or ()]


def test_what_was_traced_is_known_to_the_door_as_reported_before(
    traced: dict[str, tuple[Pattern, list[str]]],
) -> None:
    """The very rows, sent by the partner, are duplicates and leave nothing."""
    before = counts()
    for place, partner in enumerate(PARTNERS):
        pattern, names = traced[partner]
        for person, name in zip(somebody(partner, 4, beyond=10 * place)[1:], names, strict=True):
            external_id = person.external_id(partner)
            assert links.resident_of(partner, external_id) == name
            rows = [
                row_of(stencils.report_of(report, person.number, number), external_id)
                | {"source_event_id": stencils.event_of(partner, person.number, number)}
                for number, report in enumerate(pattern.reports)
            ]
            taken = feed_rows.take_rows(Partner(partner), rows)
            assert [(one.refusal, one.fresh) for one in taken] == [(None, False)] * 2
            assert all(one.activity and one.activity.resident == name for one in taken)
    assert counts() == before


def test_a_traced_account_goes_on_and_is_graded_like_any_other(
    traced: dict[str, tuple[Pattern, list[str]]],
) -> None:
    _, names = traced["bus"]
    [person] = somebody("bus", 2, beyond=10)[1:]
    at = clock.now() - timedelta(days=2)
    row = {
        "external_id": person.external_id("bus"),
        "behaviour": "bus_km",
        "quantity": 5,
        "occurred_at": at.isoformat(timespec="seconds"),
        "ended_at": (at + timedelta(minutes=20)).isoformat(timespec="seconds"),
        "source_event_id": "new",
    }
    [taken] = feed_rows.take_rows(Partner("bus"), [row])
    assert taken.activity is not None
    # 5 km at 26.9 g: 134.5 g, which floors to 134 points.
    assert taken.activity.resident == names[0]
    entries = list(book.entries(names[0]))
    assert [entry.seq for entry in entries] == [1, 2, 3]
    assert entries[2].amount("co2e_mg", "reduction") == 5 * 26_900
    graded = grade.newest_of(names[0])
    assert graded is not None
    assert grade.grade_now(names[0]).number == graded.number + 1
    assert book.verify(names[0], checks=RULES.checks).problem is None


def row_of(report: stencils.Report, external_id: str) -> dict[str, object]:
    row: dict[str, object] = {
        "external_id": external_id,
        "behaviour": report.behaviour,
        "quantity": report.quantity,
        "occurred_at": report.start.isoformat(),
        "attributes": dict(report.attributes),
    }
    return row | ({"ended_at": report.end.isoformat()} if report.end else {})


def counts() -> dict[str, int]:
    base = storage.database()
    return {name: base[name].count_documents({}) for name in sorted(base.list_collection_names())}
