"""The model of the coming months, by hand where chance is off, and its plots."""

import io
from pathlib import Path

import pytest
from click.testing import CliRunner
from flask import Flask
from lives import at, did, spent
from PIL import Image
from rich.console import Console

from accounting import accounts, clock
from api import simulation
from footprint import upkeep
from points import simulating
from points.simulating import Assumptions, Change, City

# Nothing left to chance or to growth: 100 active of 1,000 save 10 kg each, a tenth is spent.
STILL = Assumptions(growth_a_month=0, noise=0)
TOWN = City(1_000, 100, 10_000, 1.0, 200, 0.1, stock=(50_000, *[0] * 22, 950_000))
# April has 1.04 of the mean month.
APRIL = ["2026-04"]
YEAR = [clock.add_months("2026-12", number) for number in range(12)]


def test_a_month_by_hand() -> None:
    [month] = simulating.run(TOWN, Change(), APRIL, seed=1, assume=STILL)
    # 100 x 10 kg x 1.04 = 1,040 kg and as many thousand points; 50,000 lapse.
    assert (month.active, month.saved_kg, month.issued) == (100, 1_040, 1_040_000)
    assert month.lapsed == 50_000
    # A tenth of 950,000 + 1,040,000 is spent.
    assert (month.spent, month.outstanding) == (95_000 + 104_000, 1_791_000)
    # At 200 fen for 1,000 points.
    assert (month.liability_fen, month.cost_fen) == (358_200, 39_800)
    # 39,800 fen for 1.04 t.
    assert month.fen_per_tonne == 38_269
    # 855,000 with 23 months left, 936,000 with 24: x 0.9^23 = 0.088629, x 0.9^24 = 0.079766.
    assert month.expected_lapse == int(855_000 * 0.9**23 + 936_000 * 0.9**24) == 150_439


def test_a_lower_rate_higher_prices_and_more_people_by_hand() -> None:
    change = Change(rate=0.5, price=4.0, uptake=2.0)
    grow = Assumptions(growth_a_month=0.03, noise=0)
    [month] = simulating.run(TOWN, change, APRIL, seed=1, assume=grow)
    # 100 x (1 + 0.03 x 2 x (1 - 100 / 450)) = 104.67 people.
    assert month.active == 105
    # 105 x 10 kg x 1.04 x 0.5^0.1 = 1,092 x 0.933033 = 1,018.872 kg; half a point a gram.
    assert (month.saved_kg, month.issued) == (1_018, 509_436)
    # Four times dearer: half of the tenth is spent, 4^-0.5, and a point buys a quarter.
    assert month.spent == 950_000 // 20 + 509_436 // 20
    assert month.cost_fen == int(month.spent * 200 / 1_000 / 4)


def test_the_same_seed_says_the_same_and_both_sides_draw_alike() -> None:
    one = simulating.run(TOWN, Change(), YEAR, seed=7)
    assert one == simulating.run(TOWN, Change(), YEAR, seed=7)
    assert one != simulating.run(TOWN, Change(), YEAR, seed=8)
    dearer = simulating.run(TOWN, Change(price=2.0), YEAR, seed=7)
    assert [month.issued for month in one] == [month.issued for month in dearer]
    assert all(a.spent > b.spent for a, b in zip(one, dearer, strict=True))


def test_points_are_conserved() -> None:
    before = sum(TOWN.stock or ())
    for month in simulating.run(TOWN, Change(rate=1.3), YEAR, seed=3):
        after = before + month.issued - month.spent - month.lapsed
        assert month.outstanding == after
        before = after


def test_the_plots_are_pictures_and_the_table_has_every_month(tmp_path: Path) -> None:
    found = simulation.compare(
        simulation.EXAMPLE, Change(rate=0.8), first=YEAR[0], months=12, seed=1, assume=STILL
    )
    files = simulation.plots(found, tmp_path)
    assert [file.name for file in files] == [
        "liability.png",
        "cost.png",
        "cost_per_tonne.png",
        "points.png",
    ]
    for file in files:
        assert Image.open(io.BytesIO(file.read_bytes())).size == (1_350, 750)
    shown = Console(width=80, record=True, file=io.StringIO())
    shown.print(*simulation.tables(found))
    text = shown.export_text()
    assert all(text.count(month) == 2 for month in YEAR)
    assert text.count("changed") == 24
    # Nothing was cut to fit.
    assert "…" not in text


@pytest.mark.parametrize("wrong", [["--rate", "0"], ["--months", "61"], ["--seed", "-1"]])
def test_factors_without_sense_are_refused(wrong: list[str]) -> None:
    from api.cli import tanhui

    assert CliRunner().invoke(tanhui, ["simulate", *wrong]).exit_code == 2


def test_it_begins_where_the_city_stands(app: Flask) -> None:
    anna, bo = (accounts.by_phone(f"+8613600000{number:03d}") for number in (1, 2))
    with at("2026-05-21 12:00"):
        assert simulation.observed(clock.now()) is None
        did(anna, "bus_km", "10", "2026-05-20 08:00")
        did(bo, "metro_km", "10", "2026-05-20 08:00")
    with at("2026-05-25 12:00"):
        spent(anna, 69)
    with at("2026-06-02 12:00"):
        did(anna, "bus_km", "10", "2026-06-01 08:00")
        upkeep.walk()
        found = simulation.observed(clock.now())
    assert found is not None
    # In May 269 g and 467 g, a point each; 69 of 736 + 269 points were spent.
    assert (found.residents, found.active, found.grams) == (2, 2, 368)
    assert (found.points_per_gram, found.fen_per_1000_points) == (1, 200)
    assert found.spent_share == pytest.approx(69 / 1_005)
    # Of May until the end of May 2028, 22 months after next month's begin; of June one more.
    assert found.stock == (*[0] * 22, 736 - 69, 269)
