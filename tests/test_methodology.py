"""The methodology file: what ships with it, and what a bad one is refused for, by name."""

import re
from collections import Counter
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from footprint import methodology, reasons
from footprint.methodology import MethodologyError, load

SHIPPED = Path(methodology.__file__).parent / "QZ-RES-2026.1.toml"
TEXT = SHIPPED.read_text(encoding="utf-8")

HEAD = """
version = "T-1"
published = 2026-01-01
valid_from = 2024-01-01
review_by = 2028-01-01
grace_days = 180
overall_day_cap = { grams = 10000, dimensions = ["green_travel"] }
window = { app_days = 30, partner_days = 180, future_minutes = 5 }
"""
BUS = """
[[behaviour]]
code = "bus_km"
name = { zh = "公交", en = "Bus" }
dimension = "green_travel"
unit = "km"
formula = "distance"
formula_text = "km*f"
factor = { id = "T-1/bus_km", mg_num = 26900, mg_den = 1 }
counts = "records"
caps = { day_grams = 1600, day_count = 6 }
maturity_hours = 48
accepts = ["A"]
plausible = { quantity_max = 100, kmh_min = "0.5" }
optional = ["line"]
claim = { kind = "ride", attribute = "line", with = ["day"] }
evidence_text = "card"
rules_text = "paid rides"
source = "S16"
confidence = "seen"
"""


def changed(line: str, becomes: str, text: str = HEAD + BUS) -> str:
    assert text.count(line) == 1, line
    return text.replace(line, becomes)


# The shipped version.


def test_the_shipped_methodology_lists_27_behaviours_in_three_dimensions() -> None:
    (shipped,) = methodology.shipped()
    assert shipped.version == "QZ-RES-2026.1"
    assert len(shipped.behaviours) == 27
    dimensions = Counter(one.dimension for one in shipped.behaviours.values())
    assert dimensions == {"green_travel": 10, "green_payment": 8, "green_life": 9}
    assert [one.code for one in shipped.behaviours.values() if not one.enabled] == ["clean_plate"]


def test_the_shipped_methodology_has_the_settled_dates_windows_and_overall_cap() -> None:
    (shipped,) = methodology.shipped()
    assert (shipped.valid_from, shipped.review_by) == (date(2024, 1, 1), date(2028, 1, 1))
    assert shipped.grace == timedelta(days=180)
    assert shipped.overall_day_mg == 10_000_000
    assert shipped.overall_dimensions == {"green_travel", "green_payment"}
    assert shipped.window.app == timedelta(days=30)
    assert shipped.window.partner == timedelta(days=180)
    assert shipped.window.future == timedelta(minutes=5)


@pytest.mark.parametrize(
    ("code", "factor", "day_g", "day_n", "month_n", "hours"),
    # Typed from resident_defaults.json.
    [
        ("walk_steps", (296_000, 18_000), 296, None, None, 24),
        ("bike_km", (48_700, 1), 730, 10, None, 0),
        ("ebike_shared_km", (48_700, 1), 730, 10, None, 0),
        ("bus_km", (26_900, 1), 1_600, 6, None, 48),
        ("metro_km", (46_700, 1), 2_400, 5, None, 48),
        ("ev_km", (79_000, 1), 4_000, None, None, 48),
        ("ev_charge_kwh", (476_000, 1), 4_000, 3, None, 48),
        ("carpool_km", (73_000, 1), 2_200, 4, None, 48),
        ("car_stop_day", (2_396_000, 1), 2_396, 1, 8, 72),
        ("mobile_pay_offline", (5_000, 1), 50, 10, None, 24),
        ("utility_pay_online", (89_000, 1), 267, 3, 10, 24),
        ("e_invoice", (5_000, 1), 25, 5, None, 24),
        ("e_statement", (24_000, 1), 24, None, 2, 24),
        ("e_card", (89_000, 1), 89, 1, 1, 24),
        ("online_transfer", (173_000, 1), 173, 1, 8, 24),
        ("etc_pass", (23_000, 1), 92, 4, None, 24),
        ("ticket_online", (180_000, 1), 360, 2, 10, 24),
        ("train_ticket_online", (136_000, 1), 272, 2, 10, 24),
        ("hospital_booking", (277_000, 1), 277, 1, 5, 24),
        ("electricity_saving", (497_400, 1), None, None, 1, 0),
        ("gas_saving", (2_162_200, 1), None, None, 1, 0),
        ("water_saving", (168_000, 1), None, None, 1, 0),
        ("rooftop_pv_self_use", (497_400, 1), None, None, 1, 0),
        ("recycle_kg", (1_345_000, 1), 27_000, 3, 30, 24),
        ("carton_return", (37_000, 1), 111, 3, None, 24),
        ("no_tableware", (23_000, 1), 69, 3, None, 24),
        ("clean_plate", (0, 1), 0, 0, None, 24),
    ],
)
def test_each_behaviour_ships_with_the_published_factor_and_caps(
    code: str,
    factor: tuple[int, int],
    day_g: int | None,
    day_n: int | None,
    month_n: int | None,
    hours: int,
) -> None:
    found = methodology.in_force(date(2026, 5, 20)).behaviours[code]
    assert (found.mg_num, found.mg_den) == factor
    assert found.caps.day_mg == (None if day_g is None else day_g * 1_000)
    assert (found.caps.day_count, found.caps.month_count) == (day_n, month_n)
    assert found.maturity == timedelta(hours=hours)
    assert found.name["zh"]
    assert found.name["en"]
    assert found.source
    assert found.confidence


def test_health_data_never_counts_for_a_bank() -> None:
    behaviours = methodology.in_force(date(2026, 5, 20)).behaviours.values()
    assert {one.code for one in behaviours if not one.bank_grade} == {
        "walk_steps",
        "hospital_booking",
    }


def test_what_is_accepted_as_evidence_is_what_was_settled() -> None:
    behaviours = methodology.in_force(date(2026, 5, 20)).behaviours
    accepts = {code: "".join(sorted(one.accepts)) for code, one in behaviours.items()}
    special = {
        "walk_steps": "AB",
        "bike_km": "AB",
        "ebike_shared_km": "AB",
        "car_stop_day": "AC",
        "electricity_saving": "",
        "gas_saving": "",
        "water_saving": "",
        "rooftop_pv_self_use": "",
    }
    assert accepts == dict.fromkeys(behaviours, "A") | special


def test_a_version_goes_stale_after_its_review_date_and_loses_the_bank_after_the_grace() -> None:
    (shipped,) = methodology.shipped()
    assert not shipped.stale(date(2028, 1, 1))
    assert shipped.stale(date(2028, 1, 2))
    # 1 January 2028 and 180 days: 29 June, in a leap year.
    assert not shipped.past_grace(date(2028, 6, 29))
    assert shipped.past_grace(date(2028, 6, 30))


def test_a_day_before_the_first_version_is_answered_by_the_first() -> None:
    assert methodology.in_force(date(2020, 1, 1)).version == "QZ-RES-2026.1"


# A file that is good.


def test_a_new_behaviour_of_a_known_kind_needs_no_code() -> None:
    tram = BUS.replace("bus_km", "tram_km").replace("26900, mg_den = 1", "31415, mg_den = 1000")
    found = load(HEAD + BUS + tram, "t.toml").behaviours["tram_km"]
    assert (found.mg_num, found.mg_den, found.is_trip) == (31_415, 1_000, True)
    assert found.plausible.kmh_min == Decimal("0.5")
    assert found.plausible.kmh_max is None


# A file that is not.


@pytest.mark.parametrize(
    ("text", "why"),
    [
        # Unknown fields, at each level.
        (HEAD + BUS + 'colour = "red"\n', "bus_km: colour: is not a field of the methodology"),
        (
            changed("day_count = 6", "dayly = 6"),
            "bus_km: caps: dayly: is not a field of the methodology",
        ),
        (
            changed('with = ["day"]', 'with = ["day"], x = 1'),
            "bus_km: claim: x: is not a field of the methodology",
        ),
        (
            changed("quantity_max = 100", "quantity_most = 100"),
            "bus_km: plausible: quantity_most: is not a field of the methodology",
        ),
        (
            changed('en = "Bus"', 'en = "Bus", fr = "Bus"'),
            "bus_km: name: fr: is not a field of the methodology",
        ),
        ("city = 1\n" + HEAD + BUS, "city: is not a field of the methodology"),
        (
            changed("future_minutes = 5", "future_minutes = 5, past = 1"),
            "window: past: is not a field of the methodology",
        ),
        # Missing fields.
        (changed('unit = "km"\n', ""), "bus_km: unit: is missing"),
        (changed('source = "S16"\n', ""), "bus_km: source: is missing"),
        (changed("mg_num = 26900, ", ""), "bus_km: factor: mg_num: is missing"),
        (changed(', en = "Bus"', ""), "bus_km: name: en: is missing"),
        (changed('code = "bus_km"\n', ""), "behaviour 1: code: is missing"),
        (changed("review_by = 2028-01-01\n", ""), "review_by: is missing"),
        (changed("app_days = 30, ", ""), "window: app_days: is missing"),
        (HEAD, "behaviour: is missing"),
        (
            changed('formula = "distance"', 'formula = "capped_steps"'),
            "bus_km: step_limit: is missing",
        ),
        # Wrong types.
        (changed('unit = "km"', "unit = 5"), "bus_km: unit: must be str, not 5"),
        (
            changed("mg_num = 26900", 'mg_num = "26900"'),
            "bus_km: factor: mg_num: must be int, not '26900'",
        ),
        (
            changed("mg_num = 26900", "mg_num = 26900.5"),
            "bus_km: factor: mg_num: must be int, not 26900.5",
        ),
        (
            changed("day_count = 6", "day_count = true"),
            "bus_km: caps: day_count: must be int, not True",
        ),
        (
            changed("caps = { day_grams = 1600, day_count = 6 }", "caps = 6"),
            "bus_km: caps: must be a table",
        ),
        (
            changed("quantity_max = 100", "quantity_max = 100.5"),
            "bus_km: plausible: quantity_max: must be an integer or a decimal in quotes, not 100.5",
        ),
        (
            changed('kmh_min = "0.5"', 'kmh_min = "slow"'),
            "bus_km: plausible: kmh_min: must be a number, not 'slow'",
        ),
        (
            changed('kmh_min = "0.5"', 'kmh_min = "NaN"'),
            "bus_km: plausible: kmh_min: must be an integer or a decimal in quotes, not 'NaN'",
        ),
        (
            changed('kmh_min = "0.5"', "kmh_min = true"),
            "bus_km: plausible: kmh_min: must be a number, not True",
        ),
        (
            changed('optional = ["line"]', "optional = [1]"),
            "bus_km: optional: has the unknown item 1",
        ),
        (
            changed("published = 2026-01-01", 'published = "2026-01-01"'),
            "published: must be date, not '2026-01-01'",
        ),
        (HEAD + "behaviour = [5]\n", "entry 1: must be a table"),
        # Values that cannot be.
        (
            changed("mg_num = 26900", "mg_num = -1"),
            "bus_km: factor: mg_num: must not be negative",
        ),
        (changed("mg_den = 1", "mg_den = 0"), "bus_km: factor: mg_den: must be above zero"),
        (
            changed("mg_num = 26900", "mg_num = 0"),
            "bus_km: factor: an enabled behaviour needs mg_num above zero",
        ),
        (
            changed('kmh_min = "0.5"', 'kmh_min = "-1"'),
            "bus_km: plausible: kmh_min: must be an integer or a decimal in quotes, not '-1'",
        ),
        (
            changed("day_grams = 1600", "day_grams = -1"),
            "bus_km: caps: day_grams: must not be negative",
        ),
        (
            changed("day_count = 6", "day_count = -6"),
            "bus_km: caps: day_count: must not be negative",
        ),
        (
            changed("maturity_hours = 48", "maturity_hours = -48"),
            "bus_km: maturity_hours: must not be negative",
        ),
        (changed("grace_days = 180", "grace_days = 0"), "grace_days: must be above zero"),
        (
            changed("grams = 10000", "grams = 0"),
            "overall_day_cap: grams: must be above zero",
        ),
        (
            changed("grams = 10000", "grams = -1"),
            "overall_day_cap: grams: must not be negative",
        ),
        (
            changed("mg_num = 26900", "mg_num = 1000000001"),
            "bus_km: factor: mg_num: must not exceed 1000000000",
        ),
        (
            changed("app_days = 30", "app_days = 36501"),
            "window: app_days: must not exceed 36500",
        ),
        (
            changed("valid_from = 2024-01-01", "valid_from = 0001-01-01"),
            "valid_from: must lie in the years 2000 to 2199",
        ),
        (
            changed('code = "bus_km"', 'code = "Bus km"'),
            "Bus km: code: must match [a-z][a-z0-9_]{0,63}, not 'Bus km'",
        ),
        (
            changed('version = "T-1"', 'version = "../T"'),
            "version: must match [A-Za-z0-9][A-Za-z0-9._-]{0,63}, not '../T'",
        ),
        (
            HEAD + BUS + "derivation = { detour = 1.1 }\n",
            "bus_km: derivation: must hold texts only",
        ),
        (HEAD + BUS + BUS, "bus_km: code: is listed twice"),
        (
            changed('dimension = "green_travel"', 'dimension = "green"'),
            "bus_km: dimension: must be one of green_travel, green_payment, green_life, "
            "not 'green'",
        ),
        (
            changed('formula = "distance"', 'formula = "magic"'),
            "bus_km: formula: must be one of per_unit, distance, capped_steps, charging, "
            "stop_day, utility_saving, utility_generation, not 'magic'",
        ),
        (
            changed('accepts = ["A"]', 'accepts = ["A", "E"]'),
            "bus_km: accepts: has the unknown item 'E'",
        ),
        (
            changed('counts = "records"', 'counts = "rides"'),
            "bus_km: counts: must be one of quantity, records, not 'rides'",
        ),
        (
            changed('with = ["day"]', 'with = ["week"]'),
            "bus_km: claim: with: has the unknown item 'week'",
        ),
        (
            changed('dimensions = ["green_travel"]', 'dimensions = ["travel"]'),
            "overall_day_cap: dimensions: has the unknown item 'travel'",
        ),
        (
            HEAD + BUS + 'nets = ["metro_km"]\n',
            "bus_km: nets: 'metro_km' is not listed",
        ),
        (
            changed("review_by = 2028-01-01", "review_by = 2024-01-01"),
            "review_by: must lie after valid_from",
        ),
    ],
)
def test_a_bad_file_is_refused_by_file_behaviour_and_field(text: str, why: str) -> None:
    with pytest.raises(MethodologyError) as refused:
        load(text, "t.toml")
    assert str(refused.value) == f"t.toml: {why}"


def test_a_file_that_is_not_toml_is_named() -> None:
    with pytest.raises(MethodologyError, match=r"^t\.toml: is not TOML: "):
        load("version = ", "t.toml")


def test_every_line_of_the_shipped_file_matters() -> None:
    """Taking away any single line of a behaviour is noticed or changes what is loaded."""
    whole = load(TEXT, "t.toml")
    lines = TEXT.splitlines(keepends=True)
    start = next(place for place, line in enumerate(lines) if 'code = "car_stop_day"' in line)
    end = next(place for place in range(start, len(lines)) if lines[place].startswith("[["))
    silent = []
    for place in range(start, end):
        if not lines[place].strip():
            continue
        try:
            if load("".join(lines[:place] + lines[place + 1 :]), "t.toml") == whole:
                silent.append(lines[place])
        except MethodologyError:
            continue
    assert silent == []


# Reasons.


def test_every_reason_has_a_text_in_both_languages() -> None:
    for code, texts in reasons.REASONS.items():
        assert re.fullmatch(r"[a-z0-9_]+", code)
        assert reasons.text(code, "en") == texts["en"] != ""
        assert re.search(r"[\u4e00-\u9fff]", reasons.text(code, "zh"))
