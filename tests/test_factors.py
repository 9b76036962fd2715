"""The emission-factor registry: what ships, what a lookup answers, what a file is refused for."""

import csv
import shutil
from collections.abc import Callable
from datetime import date, timedelta
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from accounting import factors
from accounting.factors import (
    CALORIFIC_SET,
    EQUIVALENT_SET,
    FOOTPRINT_SET,
    FUEL_SET,
    GRID_SET,
    HEAT_SET,
    Confidence,
    FactorsError,
    Found,
    MissingFactor,
    Registry,
    Series,
    review,
)
from api import cli
from footprint import methodology

DATA = Path(factors.__file__).parent
TODAY = date(2026, 11, 22)
GENERIC = (
    "id,carrier,series,region,set,data_year,value,unit,valid_from,valid_to,published,review_by,"
    "basis,confidence,source"
)
DECLARED = """
[review]
months = 24
grace_days = 180

[carriers]
electricity = { zh = "电力", en = "Electricity" }

[regions]
CN = { zh = "全国", en = "China" }
CN-ZJ = { zh = "浙江", en = "Zhejiang" }
"""
TRIAL_SET = """
[[set]]
id = "S"
series = ["location_average"]
title = { zh = "试", en = "Trial" }
"""
DECLARED += TRIAL_SET


def grid(region: str, on: date, today: date = TODAY) -> Found:
    return factors.shipped().lookup(
        "electricity", region, on, series=Series.LOCATION_AVERAGE, set=GRID_SET, today=today
    )


def row(**changes: str) -> str:
    fields = {
        "id": "a",
        "carrier": "electricity",
        "series": "location_average",
        "region": "CN",
        "set": "S",
        "data_year": "",
        "value": "0.5",
        "unit": "kgCO2/kWh",
        "valid_from": "2024-01-01",
        "valid_to": "",
        "published": "2024-02-29",
        "review_by": "",
        "basis": "location average",
        "confidence": "seen",
        "source": "a notice",
    }
    assert changes.keys() <= fields.keys(), changes
    return ",".join((fields | changes).values())


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Registry]:
    def loaded(*rows: str, declared: str = DECLARED, header: str = GENERIC) -> Registry:
        (tmp_path / "registry.toml").write_text(declared, encoding="utf-8")
        (tmp_path / "grid.csv").write_text("\n".join([header, *rows, ""]), encoding="utf-8")
        return Registry.load(factors.files_in(tmp_path))

    return loaded


# What ships.


@pytest.mark.parametrize(
    ("carrier", "ncv", "carbon", "oxidation", "printed"),
    [
        # 20.908 x 0.02637 = 0.55134396; x 0.94 = 0.5182633224; x 44 / 12 = 1.9002988...
        ("raw_coal", "20.908", "0.02637", "0.94", "1.9003"),
        # 42.652 x 0.0202 = 0.8615704; x 0.98 = 0.844338992; x 44 / 12 = 3.0959096...
        ("diesel", "42.652", "0.0202", "0.98", "3.0959"),
        # 389.31 x 0.0153 = 5.956443; x 0.99 = 5.89687857; x 44 / 12 = 21.62188809
        ("natural_gas", "389.31", "0.0153", "0.99", "21.6219"),
    ],
)
def test_fuel_factors_worked_by_hand(
    carrier: str, ncv: str, carbon: str, oxidation: str, printed: str
) -> None:
    factor = factors.shipped().by_id(f"{carrier}/{FUEL_SET}")
    native = "1e4Nm3" if carrier == "natural_gas" else "t"
    assert factor.derivation == {
        f"ncv_gj_per_{native}": ncv,
        "carbon_tc_per_gj": carbon,
        "oxidation": oxidation,
        f"ef_tco2_per_{native}": printed,
    }


def test_every_printed_fuel_number_follows_from_its_row() -> None:
    with (DATA / "fuels.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 26
    for fuel in rows:
        ncv = Decimal(fuel["ncv_gj_per_unit"])
        carbon = ncv * Decimal(fuel["carbon_tc_per_gj"]) * Decimal(fuel["oxidation"])
        tonnes = carbon * 44 / 12
        small = 10 if fuel["native_unit"] == "1e4Nm3" else 1
        assert four_places(tonnes) == fuel["ef_tco2_per_unit"], fuel
        assert four_places(tonnes / small) == fuel["ef_kgco2_per_small_unit"], fuel
        if fuel["kgce_basis"] == "computed":
            kgce = ncv / Decimal("29.3076") / small
            assert four_places(kgce) == fuel["kgce_per_small_unit"], fuel


def four_places(number: Decimal) -> str:
    return str(number.quantize(Decimal("0.0001"), ROUND_HALF_UP))


def test_a_kilowatt_hour_in_zhejiang_is_497400_milligrams() -> None:
    factor = factors.shipped().by_id("electricity/CN-ZJ/2023")
    assert (factor.mg_num, factor.mg_den) == (497_400, 1)
    assert factor.mg(1, "kWh") == factor.mg(1_000, "Wh") == 497_400
    assert factor.mg_per("Wh") == Fraction(4_974, 10)
    # 3 Wh are 1,492.2 mg, rounded down once; three times 1 Wh would lose more.
    assert factor.mg(3, "Wh") == 1_492
    assert factor.mg(Decimal("0.001"), "MWh") == 497_400


def test_a_cubic_metre_of_gas_is_2162200_milligrams() -> None:
    factor = factors.shipped().by_id("natural_gas/CN-GBT32151.34-2024")
    assert (factor.mg_num, factor.mg_den, factor.per) == (2_162_200, 1, "Nm3")
    assert factor.mg(1, "1e4Nm3") == 21_622_000_000


def test_a_unit_of_another_kind_is_refused() -> None:
    factor = factors.shipped().by_id("natural_gas/CN-GBT32151.34-2024")
    for unit in ("kWh", "kg", "litre", ""):
        with pytest.raises(ValueError, match=r"natural_gas/.* is given per Nm3"):
            factor.mg(1, unit)


def test_heat_and_coal_equivalents() -> None:
    def found(carrier: str, series: Series, of: str) -> tuple[str, str, str]:
        factor = (
            factors.shipped()
            .lookup(carrier, "CN", date(2026, 3, 1), series=series, set=of, today=TODAY)
            .factor
        )
        return str(factor.value), factor.unit, factor.basis

    coal = Series.COAL_EQUIVALENT
    assert found("heat", Series.PURCHASED_HEAT, HEAT_SET)[:2] == ("110", "kgCO2/GJ")
    assert found("electricity", coal, CALORIFIC_SET) == ("0.1229", "kgce/kWh", "calorific")
    assert found("electricity", coal, EQUIVALENT_SET) == ("0.31", "kgce/kWh", "equivalent")
    assert found("heat", coal, CALORIFIC_SET) == ("0.03412", "kgce/MJ", "calorific")
    assert found("natural_gas", coal, FUEL_SET) == ("1.3300", "kgce/Nm3", "GB/T 2589-2020")
    assert found("lignite", coal, FUEL_SET) == ("0.4060", "kgce/kg", "NCV / 29.3076 GJ per tce")
    # A gigajoule of heat is 34.12 kgce, whatever unit the meter has.
    assert factors.shipped().by_id("tce/heat/calorific").mg(1, "GJ") == 34_120_000


def test_the_resident_methodology_and_the_registry_say_the_same() -> None:
    version = methodology.version("QZ-RES-2026.1")
    named = [
        behaviour
        for behaviour in version.behaviours.values()
        if not behaviour.factor_id.startswith("QZ-RES")
    ]
    assert {behaviour.factor_id: behaviour.mg_num for behaviour in named} == {
        "electricity/CN-ZJ/2023": 497_400,
        "natural_gas/CN-GBT32151.34-2024": 2_162_200,
    }
    for behaviour in named:
        factor = factors.shipped().by_id(behaviour.factor_id)
        assert Fraction(behaviour.mg_num, behaviour.mg_den) == factor.mg_per(factor.per)


PUBLISHED = {
    "CN-ZJ": {2021: "0.5422", 2022: "0.5153", 2023: "0.4974"},
    "CN": {2021: "0.5568", 2022: "0.5366", 2023: "0.5306"},
    "CN-RESIDUAL": {2022: "0.5856", 2023: "0.6096"},
    "CN-FOSSIL": {2021: "0.8426", 2022: "0.8325", 2023: "0.8273"},
    "CN-EAST": {2022: "0.5617", 2023: "0.5500"},
    "CN-NORTH": {2023: "0.6361"},
    "CN-NORTHEAST": {2023: "0.5122"},
    "CN-CENTRAL": {2023: "0.5271"},
    "CN-NORTHWEST": {2023: "0.5543"},
    "CN-SOUTH": {2023: "0.4042"},
    "CN-SOUTHWEST": {2023: "0.2472"},
    "CN-SH": {2023: "0.5737"},
    "CN-JS": {2023: "0.5827"},
    "CN-AH": {2023: "0.6553"},
    "CN-FJ": {2023: "0.4211"},
    "CN-JX": {2023: "0.5836"},
}


def test_the_published_grid_values() -> None:
    shipped = [one for one in factors.shipped().factors if one.set == GRID_SET]
    assert {(one.region, one.data_year): str(one.value) for one in shipped} == {
        (region, year): value
        for region, years in PUBLISHED.items()
        for year, value in years.items()
    }


def test_reporting_values_of_the_trading_scheme_are_nobodys_grid_average() -> None:
    trap = {Decimal("0.5703"), Decimal("0.5810"), Decimal("0.6101")}
    assert not trap & {one.value for one in factors.shipped().factors}


def test_every_shipped_factor_has_a_source_and_both_names() -> None:
    registry = factors.shipped()
    assert all(factor.source for factor in registry.factors)
    used = {factor.carrier for factor in registry.factors}
    assert used == registry.carriers.keys()
    assert {factor.region for factor in registry.factors} == registry.regions.keys()
    assert {factor.set for factor in registry.factors} == registry.sets.keys()


# Looking up.


@pytest.mark.parametrize(
    ("on", "year", "provisional"),
    [
        (date(2021, 1, 1), 2021, False),
        (date(2021, 12, 31), 2021, False),
        (date(2022, 1, 1), 2022, False),
        (date(2022, 12, 31), 2022, False),
        (date(2023, 1, 1), 2023, False),
        (date(2023, 12, 31), 2023, False),
        (date(2024, 1, 1), 2023, True),
        (date(2026, 11, 22), 2023, True),
    ],
)
def test_half_open_edges_of_the_vintages(on: date, year: int, provisional: bool) -> None:
    found = grid("CN-ZJ", on)
    assert (found.factor.id, found.provisional) == (f"electricity/CN-ZJ/{year}", provisional)


def test_a_fuel_property_is_never_provisional() -> None:
    found = factors.shipped().lookup(
        "diesel", "CN", date(2031, 5, 1), series=Series.COMBUSTION, set=FUEL_SET, today=TODAY
    )
    assert found == Found(factors.shipped().by_id(f"diesel/{FUEL_SET}"), False, False, False)


def test_the_two_electricity_series_never_answer_for_each_other() -> None:
    registry, on = factors.shipped(), date(2024, 6, 1)
    life = registry.lookup(
        "electricity", "CN", on, series=Series.LIFE_CYCLE, set=FOOTPRINT_SET, today=TODAY
    )
    assert (str(life.factor.value), life.factor.unit) == ("0.5777", "kgCO2e/kWh")
    assert str(grid("CN", on).factor.value) == "0.5306"
    for series, of in ((Series.LIFE_CYCLE, GRID_SET), (Series.LOCATION_AVERAGE, FOOTPRINT_SET)):
        with pytest.raises(MissingFactor):
            registry.lookup("electricity", "CN", on, series=series, set=of, today=TODAY)
    # Zhejiang has a grid factor but no footprint factor, and the nation's does not step in.
    with pytest.raises(MissingFactor):
        registry.lookup(
            "electricity", "CN-ZJ", on, series=Series.LIFE_CYCLE, set=FOOTPRINT_SET, today=TODAY
        )


def test_a_missing_factor_names_carrier_region_and_date() -> None:
    with pytest.raises(MissingFactor) as refusal:
        grid("CN-ZJ", date(2020, 12, 31))
    assert refusal.value.code == "missing_factor"
    for text in (refusal.value.text("zh"), refusal.value.text("en")):
        assert all(named in text for named in ("electricity", "CN-ZJ", "2020-12-31", GRID_SET))


@pytest.mark.parametrize("region", ["CN-EAST", "CN-RESIDUAL", "CN-SH", "cn-zj", ""])
def test_no_other_region_answers_for_a_year_without_a_value(region: str) -> None:
    with pytest.raises(MissingFactor):
        grid(region, date(2021, 6, 1))


def test_fuels_have_no_regional_value() -> None:
    with pytest.raises(MissingFactor):
        factors.shipped().lookup(
            "diesel", "CN-ZJ", TODAY, series=Series.COMBUSTION, set=FUEL_SET, today=TODAY
        )


def test_review_and_grace_are_judged_on_the_day_given() -> None:
    # Published 2025-12-31: review by 2027-12-31, and 180 days later is 2028-06-28.
    def judged(today: date) -> tuple[bool, bool]:
        found = grid("CN-ZJ", date(2026, 3, 1), today)
        return found.stale, found.past_grace

    assert judged(date(2027, 12, 31)) == (False, False)
    assert judged(date(2028, 1, 1)) == (True, False)
    assert judged(date(2028, 6, 28)) == (True, False)
    assert judged(date(2028, 6, 29)) == (True, True)


def test_a_vintage_that_has_ended_is_final() -> None:
    found = grid("CN-ZJ", date(2021, 6, 1), date(2040, 1, 1))
    assert (found.stale, found.past_grace, found.provisional) == (False, False, False)


def test_an_unknown_id_is_no_factor() -> None:
    with pytest.raises(KeyError):
        factors.shipped().by_id("electricity/CN-ZJ/2020")


DAY_ZERO = date(2020, 1, 1)


@given(
    cuts=st.lists(st.integers(0, 3_000), min_size=2, max_size=12, unique=True).map(sorted),
    open_end=st.booleans(),
    keep=st.lists(st.booleans(), min_size=12, max_size=12),
    asked=st.integers(-10, 3_010),
)
def test_lookup_returns_the_interval_that_contains_the_day(
    tmp_path_factory: pytest.TempPathFactory,
    cuts: list[int],
    open_end: bool,
    keep: list[bool],
    asked: int,
) -> None:
    days = [DAY_ZERO + timedelta(days=cut) for cut in cuts]
    spans: list[tuple[date, date | None]] = list(pairwise(days))
    spans = [span for span, kept in zip(spans, keep, strict=False) if kept]
    if open_end:
        spans.append((days[-1], None))
    if not spans:
        spans = [(days[0], days[1])]
    folder = tmp_path_factory.mktemp("factors")
    (folder / "registry.toml").write_text(DECLARED, encoding="utf-8")
    rows = [
        row(id=f"f{number}", valid_from=str(start), valid_to=str(end or ""))
        for number, (start, end) in enumerate(spans)
    ]
    (folder / "grid.csv").write_text("\n".join([GENERIC, *reversed(rows)]), encoding="utf-8")
    registry = Registry.load(factors.files_in(folder))

    on = DAY_ZERO + timedelta(days=asked)
    expected = [
        f"f{number}"
        for number, (start, end) in enumerate(spans)
        if start <= on and (end is None or on < end)
    ]
    try:
        found = registry.lookup(
            "electricity", "CN", on, series=Series.LOCATION_AVERAGE, set="S", today=TODAY
        )
        answered = [found.factor.id]
    except MissingFactor:
        answered = []
    assert answered == expected


# What a file is refused for.


def test_the_review_rule_fills_what_the_row_leaves_open(load: Callable[..., Registry]) -> None:
    given_day = row(id="b", region="CN-ZJ", review_by="2030-01-01")
    registry = load(row(), given_day)
    assert registry.by_id("a").review_by == date(2026, 2, 28)  # published on a leap day
    assert registry.by_id("b").review_by == date(2030, 1, 1)


def test_a_city_adds_its_own_set_beside_the_shipped_ones(tmp_path: Path) -> None:
    (tmp_path / "city.toml").write_text(
        '[[set]]\nid = "QZ-EQUIVALENT"\nseries = ["coal_equivalent"]\n'
        'title = { zh = "衢州等价值", en = "Quzhou equivalent value" }\n',
        encoding="utf-8",
    )
    changes = {"series": "coal_equivalent", "set": "QZ-EQUIVALENT", "unit": "kgce/kWh"}
    own = row(**changes, value="0.3025", basis="equivalent")
    (tmp_path / "city.csv").write_text(f"{GENERIC}\n{own}\n", encoding="utf-8")
    registry = Registry.load([*factors.files_in(DATA), *factors.files_in(tmp_path)])

    def equivalent(of: str) -> str:
        found = registry.lookup(
            "electricity", "CN", TODAY, series=Series.COAL_EQUIVALENT, set=of, today=TODAY
        )
        return str(found.factor.value)

    assert (equivalent("QZ-EQUIVALENT"), equivalent(EQUIVALENT_SET)) == ("0.3025", "0.31")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"value": "0,5"}, "has not 15 fields"),
        ({"value": "5e-1"}, "value: must be a decimal number above zero, not '5e-1'"),
        ({"value": "-0.5"}, "value: must be a decimal number above zero"),
        ({"value": "0.0"}, "value: must be a decimal number above zero"),
        ({"value": "NaN"}, "value: must be a decimal number above zero"),
        ({"value": "٠.٥"}, "value: must be a decimal number above zero"),
        ({"value": ""}, "value: is missing"),
        ({"carrier": "electrcity"}, "carrier: 'electrcity' is not declared"),
        ({"region": "CN-ZZ"}, "region: 'CN-ZZ' is not declared"),
        ({"set": "T"}, "set: 'T' is not declared"),
        ({"series": "average"}, "series: must be one of combustion, location_average"),
        ({"series": "life_cycle"}, "set: S holds location_average, never life_cycle"),
        ({"unit": "kgCO2e/kWh"}, "unit: location_average is given in kgCO2/kWh, not 'kgCO2e/kWh'"),
        ({"unit": "kgCO2/MWh"}, "unit: location_average is given in kgCO2/kWh"),
        ({"valid_from": ""}, "valid_from: is missing"),
        ({"valid_from": "20240101"}, "valid_from: must be a date like 2026-01-31"),
        ({"valid_from": "2023-02-29"}, "valid_from: must be a date like 2026-01-31"),
        ({"valid_to": "2024-01-01"}, "valid_to: must lie after valid_from"),
        ({"data_year": "23"}, "data_year: must be a year"),
        ({"data_year": "2023"}, "valid_from: must lie in the data year 2023"),
        (
            {"data_year": "2024", "valid_to": "2025-01-02"},
            "valid_to: must not reach past the data year 2024",
        ),
        ({"published": ""}, "published: is missing, and the set has none"),
        ({"review_by": "2024-02-29"}, "review_by: must lie after published"),
        ({"basis": ""}, "basis: is missing"),
        ({"confidence": "sure"}, "confidence: must be one of seen, secondary, memory, computed"),
        ({"source": " "}, "source: is missing"),
        ({"id": "a b"}, "id: must be letters, digits"),
    ],
)
def test_a_bad_row_is_named_by_file_row_and_field(
    load: Callable[..., Registry], changes: dict[str, str], said: str
) -> None:
    good = row(id="good", region="CN-ZJ")
    with pytest.raises(FactorsError) as refusal:
        load(good, row(**changes))
    [problem] = refusal.value.problems
    place = f"grid.csv: row 3: {changes.get('id', 'a')}: {said}"
    assert str(problem).startswith(place), problem
    assert problem.kind == ("unsourced" if "source" in changes else "unreadable")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("2024-01-01", ""), ("2025-01-01", "")),
        (("2024-01-01", "2025-01-02"), ("2025-01-01", "")),
        (("2024-01-01", ""), ("2024-01-01", "")),
        (("2025-01-01", ""), ("2024-01-01", "2025-01-02")),
    ],
)
def test_overlapping_factors_are_refused(
    load: Callable[..., Registry], first: tuple[str, str], second: tuple[str, str]
) -> None:
    with pytest.raises(FactorsError, match=r"grid.csv: row [23]: [ab]: valid_from: overlaps [ab]"):
        load(
            row(id="a", valid_from=first[0], valid_to=first[1]),
            row(id="b", valid_from=second[0], valid_to=second[1]),
        )


def test_an_overlap_is_seen_past_a_short_factor_in_between(load: Callable[..., Registry]) -> None:
    with pytest.raises(FactorsError) as refusal:
        load(
            row(id="long"),
            row(id="short", valid_from="2024-03-01", valid_to="2024-04-01"),
            row(id="later", valid_from="2024-06-01", valid_to="2024-07-01"),
        )
    assert [problem.why for problem in refusal.value.problems] == [
        "overlaps long (grid.csv row 2)",
        "overlaps long (grid.csv row 2)",
    ]


def test_neighbours_and_other_regions_do_not_overlap(load: Callable[..., Registry]) -> None:
    registry = load(
        row(id="a", valid_to="2025-01-01"),
        row(id="b", valid_from="2025-01-01"),
        row(id="c", region="CN-ZJ"),
    )
    assert [factor.id for factor in registry.factors] == ["a", "b", "c"]


def test_an_id_belongs_to_one_factor(load: Callable[..., Registry]) -> None:
    with pytest.raises(FactorsError, match=r"row 3: a: id: is the id of grid.csv row 2 already"):
        load(row(), row(region="CN-ZJ"))


def test_all_bad_rows_are_reported_at_once(load: Callable[..., Registry]) -> None:
    with pytest.raises(FactorsError) as refusal:
        load(*[row(id=f"f{number}", value="x") for number in range(25)])
    assert len(refusal.value.problems) == 25
    assert str(refusal.value).endswith("and 5 more")


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ("", "grid.csv: review: no TOML file says the rule"),
        ("[review", "registry.toml: is not TOML in UTF-8"),
        (DECLARED.replace("24", '"24"'), "registry.toml: review.months: must be a whole number"),
        (DECLARED.replace("24", "0"), "registry.toml: review.months: must be 1 to 1200"),
        (DECLARED.replace('en = "China"', 'fr = "Chine"'), "regions.CN: needs a name in zh and"),
        (DECLARED.replace("location_average", "average"), "set S: series: must be one of"),
        (DECLARED.replace('["location_average"]', "[]"), "set S: series: must list the series"),
        (DECLARED + 'published = "soon"\n', "set S: published: must be a date, not 'soon'"),
        (DECLARED + "licence = 1\n", "set S: licence: is not a field of a set"),
        ("[gas]\n" + DECLARED, "registry.toml: gas: is not a field of the registry"),
        (DECLARED + TRIAL_SET, "set S: is given twice"),
        (DECLARED.replace('id = "S"', 'id = "S S"'), "set 1: id: must be letters, digits"),
    ],
)
def test_a_bad_declaration_is_named(
    load: Callable[..., Registry], declared: str, said: str
) -> None:
    with pytest.raises(FactorsError) as refusal:
        load(row(), declared=declared)
    [problem] = refusal.value.problems
    assert said in str(problem)


def test_unreadable_files_are_named(load: Callable[..., Registry], tmp_path: Path) -> None:
    with pytest.raises(FactorsError, match=r"grid.csv: row 1: the header must be id,carrier,"):
        load(row(), header=GENERIC.replace("confidence,", ""))
    with pytest.raises(FactorsError, match=r"the files: hold no factor"):
        load()
    with pytest.raises(FactorsError, match=r"gone.csv: cannot be read: No such file"):
        Registry.load([tmp_path / "registry.toml", tmp_path / "gone.csv"])
    (tmp_path / "grid.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(FactorsError, match=r"grid.csv: is not CSV in UTF-8"):
        Registry.load(factors.files_in(tmp_path))


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    for file in factors.files_in(DATA):
        shutil.copy(file, tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [
        ("26.7,0.0274,0.94", "26.8,0.0274,0.94", "ef_tco2_per_unit: 2.5215 does not follow"),
        ("26.7,0.0274,0.94", "26.7,0.0274,1.94", "oxidation: is a fraction, at most 1"),
        ("2.5215,0.9110", "2.5216,0.9110", "ef_kgco2_per_small_unit: 2.5216 does not follow"),
        ("2.5215,0.9110", "2.5215,0.9109", "kgce_per_small_unit: 0.9109 does not follow"),
        ("2.5215,0.9110,computed", "2.5215,0.9110,guess", "kgce_basis: 'guess' is not declared"),
        ("2.5215,kg", "2.5215,Nm3", "small_unit: Nm3 is not of the same kind as t"),
    ],
)
def test_a_fuel_row_must_agree_with_itself(copied: Path, was: str, becomes: str, said: str) -> None:
    text = (copied / "fuels.csv").read_text(encoding="utf-8")
    assert text.count(was) == 1
    (copied / "fuels.csv").write_text(text.replace(was, becomes), encoding="utf-8")
    with pytest.raises(FactorsError) as refusal:
        Registry.load(factors.files_in(copied))
    [problem] = refusal.value.problems
    assert str(problem).startswith(f"fuels.csv: row 3: anthracite/{FUEL_SET}: {said}")


# The command.


def check(*arguments: str) -> tuple[int, str]:
    outcome = CliRunner().invoke(cli.tanhui, ["factors", "check", *arguments])
    return outcome.exit_code, outcome.output


def test_the_shipped_factors_hold() -> None:
    code, output = check("--on", "2026-11-22")
    assert code == 0
    assert "The factors hold: 93 in 7 sets" in output
    kinds = {one.kind for one in review.findings(factors.shipped(), TODAY)}
    assert kinds == {review.Kind.MEMORY, review.Kind.PROVISIONAL}


def test_what_is_overdue_is_listed_and_not_an_error() -> None:
    on = date(2028, 1, 1)
    found = {
        kind: {one.factor.id for one in review.findings(factors.shipped(), on) if one.kind == kind}
        for kind in review.Kind
    }
    assert "electricity/CN-ZJ/2023" in found[review.Kind.OVERDUE]
    assert f"diesel/{FUEL_SET}" in found[review.Kind.PAST_GRACE]
    assert not found[review.Kind.OVERDUE] & found[review.Kind.PAST_GRACE]
    memory = {one.id for one in factors.shipped().factors if one.confidence == Confidence.MEMORY}
    assert found[review.Kind.MEMORY] == memory
    code, output = check("--on", "2028-01-01")
    assert code == 0
    assert "past grace" in output


def test_broken_tables_are_listed_and_exit_one(copied: Path) -> None:
    table = copied / "electricity.csv"
    lines = table.read_text(encoding="utf-8").splitlines()
    zhejiang = next(line for line in lines if line.startswith("electricity/CN-ZJ/2023,"))
    lines.append(zhejiang.replace("CN-ZJ/2023", "CN-ZJ/2023b"))
    lines.append("unsourced," + zhejiang.split(",", 1)[1].replace(zhejiang.split(",")[-1], ""))
    table.write_text("\n".join(lines), encoding="utf-8")
    code, output = check("--folder", str(copied))
    assert code == 1
    assert "overlap" in output
    assert "unsourced" in output
    assert "problems in the factor tables: 2" in output
