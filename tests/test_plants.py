"""Plants, their two trees, and figures that are corrected by adding."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from decimal import Decimal

import pytest
from flask import Flask

from accounting.enterprise import figures, meters, plants, sectors, trees
from accounting.enterprise.boundary import highest
from accounting.enterprise.meters import Flow, Kind, Meter
from accounting.enterprise.plants import Node, NodeKind
from accounting.errors import ValidationFailed

# Check digit by GB 32100: the code of an invented plant in Quzhou's area 330802.
USCC = "91330802MA2DH0000Y"

pytestmark = pytest.mark.usefixtures("app")


def electricity(plant: str, name: str, **changes: object) -> Meter:
    return Meter(plant, name, "electricity", Kind.INTERVAL, "kWh", **changes)  # type: ignore[arg-type]


def test_a_plant_is_registered_once_and_by_a_valid_code() -> None:
    made = plants.add_plant("示范钢厂", USCC, "C3110")
    assert plants.get_plant(made.id) == made == plants.plant_by_uscc(USCC)
    with pytest.raises(plants.PlantExists):
        plants.add_plant("another", USCC, "C3110")
    with pytest.raises(ValidationFailed):
        plants.add_plant("a typo", USCC[:-1] + "9", "C3110")


def test_only_the_highest_meters_are_summed() -> None:
    whole, left, right = (
        electricity("p", "whole"),
        electricity("p", "left", parent="whole"),
        electricity("p", "right", parent="whole"),
    )
    assert highest([whole, left, right], []) == [whole]
    # Of the children alone both count: nothing above them is in the sum.
    assert highest([left, right], []) == [left, right]


def test_a_meter_covers_those_at_the_nodes_below_it_once_it_was_heard() -> None:
    tree = [Node("p", "hall", NodeKind.WORKSHOP), Node("p", "line", NodeKind.LINE, parent="hall")]
    main, hall = electricity("p", "main"), electricity("p", "hall", node="hall")
    line = electricity("p", "line", node="line")
    assert highest([main, hall, line], tree) == [main]
    assert highest([line, hall], tree) == [hall]
    heard = replace(hall, first_day=date(2026, 3, 1))
    assert highest([main, heard, line], tree) == [main, heard]


def test_a_meter_is_never_redefined(app: Flask) -> None:
    meter = electricity("p", "m", multiplier=Decimal(40))
    assert meters.add(meter) == meters.add(meter)
    with pytest.raises(meters.MeterExists):
        meters.add(electricity("p", "m", multiplier=Decimal(80)))
    # 1 kWh shown at a transformer ratio of 40 is 40,000 Wh.
    assert meters.get("p", "m").scale == 40_000


@pytest.mark.parametrize(
    "wrong",
    [
        Meter("p", "m", "electricity", Kind.INTERVAL, "Nm3"),
        Meter("p", "m", "wood", Kind.INTERVAL, "kg"),
        electricity("p", "m", node="nowhere"),
        electricity("p", "m", parent="nothing"),
        electricity("p", "m", parent="made", flow=Flow.IMPORT),
    ],
    ids=["unit", "carrier", "node", "parent", "flow"],
)
def test_a_meter_that_cannot_be_is_refused(wrong: Meter) -> None:
    meters.add(electricity("p", "made", flow=Flow.GENERATION))
    with pytest.raises(ValidationFailed):
        meters.add(wrong)


def test_nodes_hang_below_each_other() -> None:
    for name, parent in (("shop", None), ("line", "shop"), ("pump", "line"), ("office", None)):
        plants.add_node(Node("p", name, NodeKind.LINE, parent=parent))
    tree = plants.nodes("p")
    assert trees.below("shop", plants.parents(tree)) == {"shop", "line", "pump"}
    with pytest.raises(plants.NodeExists):
        plants.add_node(Node("p", "pump", NodeKind.EQUIPMENT, parent="line"))


def test_figures_are_corrected_by_a_revision_and_the_same_again_is_none() -> None:
    def told(tax_fen: int) -> int:
        return figures.add(
            "p",
            "2026-03",
            output=Decimal("12.5"),
            output_unit="t",
            added_value_fen=90_000_000,
            tax_fen=tax_fen,
        ).revision

    assert [told(100), told(100), told(-50), told(100)] == [1, 1, 2, 3]
    [newest] = figures.of_months("p", "2026-01", "2026-12")
    assert (newest.revision, newest.output, newest.tax_fen) == (3, Decimal("12.5"), 100)


def test_revisions_of_eight_callers_at_once_have_no_gap() -> None:
    def told(tax_fen: int) -> int:
        return figures.add(
            "p", "2026-03", output=None, output_unit=None, added_value_fen=None, tax_fen=tax_fen
        ).revision

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(told, range(8))) == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("sector", "profile", "unit"),
    [
        ("industry", "industry", "t"),
        ("C3110", "industry", "t"),
        ("A0111", "agriculture", "kg"),
        ("P8336", "public_building", "m2"),
        ("G5430", "transport_goods", "t_km"),
        ("transport_passengers", "transport_passengers", "p_km"),
        ("steel", "industry", "t"),
    ],
)
def test_a_sector_has_a_profile(sector: str, profile: str, unit: str) -> None:
    found = sectors.profile_of(sector)
    assert (found.id, found.denominators[0].unit) == (profile, unit)
