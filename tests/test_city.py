"""A made-up city: the same seed gives the same bytes, and its files go through the real door.

Expected shares come from the tables in docs/city.md; the seed is fixed, so nothing here is chance.
"""

import gzip
import hashlib
import json
import statistics
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest
from callers import Caller, machine, partner
from click.testing import CliRunner
from flask import Flask

from accounting import clock, links
from accounting.clients import Kind
from api import feed_rows, tasks
from api.bill_rows import BillFields
from api.city import billing, days, faults, making, people, plants
from api.city.command import city
from api.city.files import Folder, Written
from api.city.making import Plan
from api.city.partners import PARTNERS, UTILITIES
from api.feed_rows import RowFields
from api.plants import ReadingFields
from footprint import households
from integrations import feeds, imports

# A Monday, and the city's noon two days later.
UNTIL = date(2026, 5, 18)
NOW = datetime(2026, 5, 20, 4, tzinfo=UTC)
PLAN = Plan(
    residents=2_000, days=1, seed=7, until=UNTIL, bill_months=13, plants=1, meters=4
)  # fmt: skip


def untold(*_: object) -> None:
    """Nobody watches."""


def make(path: Path, plan: Plan, *, compressed: bool = True) -> dict[str, Written]:
    return {one.name: one for one in making.write(plan, Folder(path, compressed), untold)}


def activity_rows(plan: Plan, on: date = UNTIL) -> list[tuple[str, dict[str, Any]]]:
    return list(making.activity_rows(plan, on, defaultdict(Counter)))


@pytest.fixture(scope="module")
def everyone() -> list[people.Person]:
    return list(people.people(PLAN.seed, PLAN.residents))


# --- the same again -----------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    plan = replace(PLAN, residents=400, bill_months=1)
    first, again = make(tmp_path / "a", plan), make(tmp_path / "b", plan)
    other = make(tmp_path / "c", replace(plan, seed=8))
    assert first == again
    for name in [*first, making.MANIFEST]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    same = {name for name in first if first[name].sha256 == other[name].sha256}
    # Plants are named without chance.
    assert same == {"plants.ndjson.gz"}


def test_plain_files_hold_what_the_compressed_ones_do(tmp_path: Path) -> None:
    plan = replace(PLAN, residents=130, bill_months=1)
    make(tmp_path / "small", plan)
    for name in make(tmp_path / "plain", plan, compressed=False):
        unpacked = gzip.decompress((tmp_path / "small" / f"{name}.gz").read_bytes())
        assert unpacked == (tmp_path / "plain" / name).read_bytes()


def test_the_manifest_says_what_lies_there(tmp_path: Path) -> None:
    make(tmp_path, replace(PLAN, residents=130, days=2, bill_months=2))
    manifest = json.loads((tmp_path / making.MANIFEST).read_text("utf-8"))
    listed = {one["name"]: one for one in manifest["files"]}
    there = {str(one.relative_to(tmp_path)) for one in tmp_path.rglob("*") if one.is_file()}
    assert there == {*listed, making.MANIFEST}
    # Residents and plants, 7 partners and 1 plant on 2 days, 3 utilities in 2 months.
    assert len(listed) == 2 + (7 + 1) * 2 + 3 * 2
    assert manifest["city"]["seed"] == PLAN.seed
    for name, one in listed.items():
        data = (tmp_path / name).read_bytes()
        assert (one["bytes"], one["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        header = 1 if one["media_type"] == feeds.CSV else 0
        assert one["rows"] == gzip.decompress(data).count(b"\n") - header


def test_a_life_does_not_depend_on_how_many_others_there_are() -> None:
    """131 ends in the middle of a block and of a household."""
    small = replace(PLAN, residents=131)
    assert list(people.people(7, 131)) == list(islice(people.people(7, 2_000), 131))
    in_both = {person.external_id(one.name) for person in people.people(7, 131) for one in PARTNERS}
    in_small, in_large = activity_rows(small), activity_rows(PLAN)
    mine = [(name, row) for name, row in in_large if row["source_event_id"] in _events(in_small)]
    assert mine == in_small
    assert len(in_small) > 200
    strangers = [row for _, row in in_large if row["external_id"] in in_both]
    assert {row["source_event_id"] for row in strangers} <= _events(in_small)


def as_sent(row: dict[str, Any]) -> Any:
    """A row as the door reads it from its line: numbers are exact."""
    return json.loads(json.dumps(row), parse_float=Decimal)


def _events(rows: list[tuple[str, dict[str, Any]]]) -> set[str]:
    return {row["source_event_id"] for _, row in rows}


def test_a_day_does_not_depend_on_how_many_others_are_made(tmp_path: Path) -> None:
    one = make(tmp_path / "one", replace(PLAN, residents=200, bill_months=1))
    three = make(tmp_path / "three", replace(PLAN, residents=200, days=3, bill_months=2))
    assert len(one) == 2 + 7 + 3 + 1
    for name, written in one.items():
        assert three[name] == written


def test_a_day_that_is_late_comes_whole_in_the_file_of_three_days_later() -> None:
    plan = PLAN
    late = [
        person.number
        for person in people.people(plan.seed, plan.residents)
        if person.partners and faults.is_late(plan.seed, person.number, UNTIL)
    ]
    # 0.5 % of 2,000 residents are ten, and about three quarters of them have a partner.
    assert 3 <= len(late) <= 15
    told, ids = f"{UNTIL:%Y%m%d}", {f"{number}" for number in late}
    at_once = {row["source_event_id"].split("-")[1] for _, row in activity_rows(plan)}
    assert not ids & at_once
    later = activity_rows(plan, UNTIL + timedelta(days=3))
    came = {
        row["source_event_id"].split("-")[1]
        for _, row in later
        if row["source_event_id"].split("-")[2] == told
    }
    assert came
    assert came <= ids


# --- distributions ------------------------------------------------------------------------------


def test_people_are_as_old_and_live_where_the_tables_say(everyone: list[people.Person]) -> None:
    """Within three standard errors of a share at 2,000: 3 * sqrt(0.25 / 2000) = 0.034 at most.

    Districts are drawn by blocks, so only 17 times: they are looked at over 600 blocks instead,
    where three standard errors are 3 * sqrt(0.234 * 0.766 / 600) = 0.052.
    """
    for (first, last), share in people.AGES:
        found = sum(first <= person.age <= last for person in everyone) / len(everyone)
        assert found == pytest.approx(share, abs=0.034)
    blocks = {}
    for home in people.households(PLAN.seed, 600 * people.BLOCK):
        blocks[home.first // people.BLOCK] = home.district
    for place, (_, share, _) in enumerate(people.DISTRICTS):
        assert list(blocks.values()).count(place) / len(blocks) == pytest.approx(share, abs=0.052)


def test_the_tables_add_up() -> None:
    assert sum(share for _, share, _ in people.DISTRICTS) == pytest.approx(1)
    for table in (people.HOUSEHOLD_SIZES, people.AGES, people.FIRST_AGES, people.OTHER_AGES):
        assert sum(share for _, share in table) == pytest.approx(1)
        assert min(share for _, share in table) > 0
    # A year's rhythm moves use between months and adds none.
    for rhythm in billing.SEASON.values():
        assert sum(rhythm) / 12 == pytest.approx(1, abs=0.005)


def test_the_document_has_the_numbers_of_the_tables() -> None:
    text = (Path(__file__).parent.parent / "docs" / "city.md").read_text("utf-8")
    for name, share, _ in people.DISTRICTS:
        assert f"{name} {share:.1%}".rstrip("%") in text
    for shares in people.PARTICIPATION.values():
        assert "/".join(f"{share * 100:.0f}" for share in shares) in text
    for fault, share in (*faults.SHARES, (faults.LATE, faults.LATE_SHARE), billing.SHARES[-1]):
        assert f"| `{fault}` | {share * 100:g} % of" in text


def test_households_have_an_adult_and_the_size_of_the_census() -> None:
    homes = list(people.households(PLAN.seed, 24_000))
    assert statistics.mean(home.members for home in homes) == pytest.approx(2.33, abs=0.04)
    firsts = [one for one in people.people(PLAN.seed, 2_000) if one.pays_bills]
    assert min(person.age for person in firsts) >= people.ADULT
    assert max(person.number for person in firsts) > 1_990


def test_who_takes_part_is_as_the_table_says(everyone: list[people.Person]) -> None:
    grown = [one for one in everyone if people.ADULT <= one.age < people.OLD]
    for name in ("bank", "etc", "health", "recycler"):
        share = people.PARTICIPATION[name][1]
        found = sum(name in person.partners for person in grown) / len(grown)
        # Three standard errors at about 1,140 adults.
        assert found == pytest.approx(share, abs=0.045)
    assert not [one for one in everyone if one.age < people.YOUNGEST and one.partners]


def test_a_day_has_the_steps_and_payments_of_the_sources(everyone: list[people.Person]) -> None:
    day = days.day_of(PLAN.seed, UNTIL)
    told: dict[str, list[float]] = defaultdict(list)
    for person in everyone:
        stream = making.stream(Random(), PLAN.seed, making.Use.DAY, person.number, 1)
        for _, row in days.rows(stream, person, day):
            told[row["behaviour"]].append(row["quantity"])
    # 5,260 * exp((0.35^2 + 0.45^2) / 2) = 6,188 steps; the standard error at 640 is 150.
    assert statistics.mean(told["walk_steps"]) == pytest.approx(6_189, abs=450)
    paying = sum("bank" in person.partners for person in everyone)
    # Two a day, a little less by the cut at nine.
    assert len(told["mobile_pay_offline"]) / paying == pytest.approx(2.0, abs=0.2)
    # A lognormal's median is exp(0.5) = 1.65 km.
    assert statistics.median(told["bike_km"]) == pytest.approx(1.65, abs=0.3)


def test_bills_have_two_peaks_a_year_and_the_mean_of_a_household() -> None:
    random, found = Random(), Counter[str]()
    homes = [home for home in people.households(PLAN.seed, 2_000) if home.members == 2]
    by_month = [
        statistics.mean(
            bill["quantity"]
            for home in homes
            for bill in billing.bills(
                random, PLAN.seed, home, "electricity", f"2025-{month:02d}", found
            )
        )
        for month in range(1, 13)
    ]
    # 70 and 50 for each of two is 170 kWh a month; 1.5 % a year less from 2024 on: 167.
    assert statistics.mean(by_month) == pytest.approx(167, rel=0.08)
    assert by_month.index(max(by_month)) == 7
    assert min(by_month[0], by_month[6], by_month[7]) > max(by_month[2:5])


def test_faults_have_their_shares(everyone: list[people.Person]) -> None:
    row = {
        "external_id": "bus-00000001", "behaviour": "bus_km", "quantity": 5, "attributes": {}
    }  # fmt: skip
    random, found = Random(3), Counter[str]()
    handed = [one for _ in range(20_000) for one in faults.spoil(random, row, found)]
    # Three standard errors of the largest are 3 * sqrt(20000 * 0.005) = 30.
    for fault, share in faults.SHARES:
        assert found[fault] == pytest.approx(20_000 * share, abs=30)
    assert len(handed) == 20_000 + found[faults.DUPLICATE]
    assert sum(one["external_id"] == "bus-90000001" for one in handed) == found[faults.UNKNOWN]
    assert sum(one["quantity"] == 480 for one in handed) == found[faults.IMPLAUSIBLE]


# --- through the door ---------------------------------------------------------------------------


@pytest.fixture
def _noon() -> Iterator[None]:
    with clock.stand(NOW):
        yield


def test_every_row_has_the_form_of_its_door() -> None:
    allowed = {one.name: one.behaviours for one in PARTNERS}
    seen, form = Counter[str](), RowFields()
    with clock.stand(NOW):
        for name, row in activity_rows(replace(PLAN, residents=1_200)):
            assert form.load(as_sent(row))["behaviour"] in allowed[name]
            seen[row["behaviour"]] += 1
    assert set(seen) == {code for codes in allowed.values() for code in codes}
    plant = plants.Plant(1, 3, plants.SHIFTS[0])
    found = Counter[str]()
    rows = list(plants.readings(PLAN.seed, plant, UNTIL, found))
    assert (
        len(ReadingFields(many=True).load([*map(as_sent, rows)])) == 3 * 96 - found[plants.MISSING]
    )
    assert rows[40]["at"] == "2026-05-18T10:00:00+08:00"
    # At ten in the morning of a Monday the plant works, at three at night it does not.
    assert rows[40]["value"] > 2 * rows[12]["value"]


def upload(by: Caller, kind: str, data: bytes, written: Written) -> dict[str, Any]:
    headers = {"Content-Type": written.media_type}
    if written.gzip:
        headers["Content-Encoding"] = "gzip"
    answer = by.post(f"/v1/feeds/{kind}/files", data=data, headers=headers)
    assert answer.status_code == 202
    job_id = answer.get_json()["job_id"]
    imports.run(job_id, feed_rows.take_file_rows)
    told: dict[str, Any] = by.get(f"/v1/jobs/{job_id}").get_json()
    return told


@pytest.mark.usefixtures("_noon")
def test_files_of_partners_are_taken_in_with_what_was_spoilt_and_nothing_else(
    app: Flask, tmp_path: Path
) -> None:
    plan = replace(PLAN, residents=360, bill_months=1)
    files = make(tmp_path, plan)
    faulty = Counter[str]()
    residents = list(people.people(plan.seed, plan.residents))
    for one in PARTNERS:
        by = partner(app, every_behaviour=False, behaviours=list(one.behaviours))
        for person in residents:
            if one.name in person.partners:
                links.link(f"res_{person.number}", by.id, person.external_id(one.name))
        [written] = [file for file in files.values() if file.partner == one.name]
        job = upload(by, "activities", (tmp_path / written.name).read_bytes(), written)
        assert (job["state"], job["total"]) == ("done", written.rows)
        assert job["rejected"] == written.faults[faults.IMPLAUSIBLE]
        assert job["parked"] == written.faults[faults.UNKNOWN]
        assert job["duplicate"] == written.faults[faults.DUPLICATE]
        assert job["credited"] + job["pending"] > 0
        faulty += written.faults
    assert all(faulty[fault] for fault, _ in faults.SHARES)


@pytest.mark.usefixtures("_noon")
def test_bills_of_utilities_are_taken_in(app: Flask, tmp_path: Path) -> None:
    plan = replace(PLAN, residents=300, bill_months=2)
    files = make(tmp_path, plan)
    faulty = Counter[str]()
    homes = list(people.households(plan.seed, plan.residents))
    for one in UTILITIES:
        by = partner(app, carriers=list(one.carriers))
        for home in homes:
            if one.name in home.carriers:
                account = home.account_no(one.name)
                households.join(f"res_{home.first}", one.name, account, home.members)
        sent = [file for file in files.values() if file.partner == one.name]
        assert [file.name for file in sent] == [
            f"{one.name}/2026-03.csv.gz", f"{one.name}/2026-04.csv.gz"
        ]  # fmt: skip
        for written in sent:
            job = upload(by, "bills", (tmp_path / written.name).read_bytes(), written)
            assert (job["state"], job["total"]) == ("done", written.rows)
            assert job["rejected"] == written.faults[faults.UNKNOWN]
            assert job["duplicate"] == written.faults[faults.DUPLICATE]
            # Nobody has a year behind them yet.
            assert job["recorded"] == job["total"] - job["rejected"] - job["duplicate"]
            faulty += written.faults
    assert all(faulty[fault] for fault, _ in billing.SHARES)


@pytest.mark.usefixtures("_noon")
def test_readings_of_a_plant_are_taken_in(app: Flask, tmp_path: Path) -> None:
    """Opened as the file of plants says; of what is wrong with a reading its day's checks tell."""
    plan = replace(PLAN, residents=1, bill_months=0, seed=1)
    files = make(tmp_path, plan, compressed=False)
    [told] = map(json.loads, (tmp_path / "plants.ndjson").read_text("utf-8").splitlines())
    operator = machine(app, Kind.OPERATOR)
    plant = operator.post("/v1/operator/plants", told["plant"]).get_json()["plant_id"]
    for meter in told["meters"]:
        made = operator.post(f"/v1/operator/plants/{plant}/meters", meter)
        assert made.status_code == 201
    gateway, written = machine(app, Kind.PLANT, plant), files["plant-00001/2026-05-18.csv"]
    answer = gateway.post(
        f"/v1/plants/{plant}/readings/files",
        data=(tmp_path / written.name).read_bytes(),
        headers={"Content-Type": feeds.CSV},
    )
    job_id = answer.get_json()["job_id"]
    tasks.run_job(job_id)
    job = gateway.get(f"/v1/jobs/{job_id}").get_json()
    assert (job["state"], job["total"], job["recorded"]) == ("done", written.rows, written.rows)
    assert written.rows == 4 * 96 - written.faults[plants.MISSING]


def test_every_bill_has_the_form_of_its_door() -> None:
    found = Counter[str]()
    home = next(people.households(PLAN.seed, 1))
    bills = [
        bill
        for number in range(28)
        for bill in billing.bills(
            Random(), PLAN.seed, home, "electricity", clock.add_months("2024-01", number), found
        )
    ]
    assert len(BillFields(many=True).load([*map(as_sent, bills)])) >= 28


# --- the machine --------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_city(tmp_path: Path) -> None:
    """Four times the residents, the same peak: nothing but the row at hand is held."""

    def peak(residents: int) -> int:
        plan = replace(PLAN, residents=residents, bill_months=1)
        tracemalloc.start()
        try:
            make(tmp_path / str(residents), plan)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(120)
    small, large = peak(150), peak(600)
    assert large < small * 1.05


def test_a_city_is_made_by_the_command(tmp_path: Path) -> None:
    options = ["--residents", "50", "--until", "2026-05-18", "--meters", "1", "--out"]
    run = CliRunner().invoke(city, [*options, str(tmp_path / "new")], catch_exceptions=False)
    assert run.exit_code == 0
    assert "residents: 50 rows" in run.output
    # 2 and 7 partners, 3 utilities in 13 months, 1 plant.
    assert f"{2 + 7 + 3 * 13 + 1} files" in run.output
    again = CliRunner().invoke(city, [*options, str(tmp_path / "new")])
    assert again.exit_code == 1
    assert "is not empty" in again.output
