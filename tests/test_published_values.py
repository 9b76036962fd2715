"""What was published for each behaviour and the factor we made of it, as `GET /v1/behaviours` says.

Typed by hand from the reviewed defaults and the sources they name. Where a value is derived, the
arithmetic stands here, in grams; it is cut to whole grams, never raised, but for the one the
defaults round to the nearest (recycling).
"""

from fractions import Fraction as F
from math import floor
from typing import Any

import pytest
from flask import Flask

# A kilometre: 7.5 L/100 km x 2,165 g/L of petrol; 16.67 kWh/100 km x 497.4 g/kWh (Zhejiang).
CAR_G = F("0.075") * 2_165
GRID_G = F("497.4")
EV_G = F("0.1667") * GRID_G

# Unit, published grams, our milligrams (num, den), caps (day g, day n, month n), hours, evidence.
PUBLISHED: dict[str, tuple[Any, ...]] = {
    # Ant Forest: at most 296 g a day, reached with 18,000 steps.
    "walk_steps": ("step", F(296, 18_000), (296_000, 18_000), 296, None, None, 24, "AB"),
    # Meituan with CEC: 48.7 g/km by shared bicycle.
    "bike_km": ("km", F("48.7"), (48_700, 1), 730, 10, None, 0, "AB"),
    # Published 61.8 g/km, held down to the bicycle's.
    "ebike_shared_km": ("km", min(F("61.8"), F("48.7")), (48_700, 1), 730, 10, None, 0, "AB"),
    # Shenzhen: 26.9 and 46.7 g a passenger-kilometre.
    "bus_km": ("passenger-km", F("26.9"), (26_900, 1), 1_600, 6, None, 48, "A"),
    "metro_km": ("passenger-km", F("46.7"), (46_700, 1), 2_400, 5, None, 48, "A"),
    # 162.375 - 82.917 = 79.458 g
    "ev_km": ("vehicle-km", floor(CAR_G - EV_G), (79_000, 1), 4_000, None, None, 48, "A"),
    # 162.375 / 0.1667 - 497.4 = 476.66 g
    "ev_charge_kwh": (
        "kWh", floor(CAR_G / F("0.1667") - GRID_G), (476_000, 1), 4_000, 3, None, 48, "A",
    ),
    # 162.3 x (1 - 1.1 / 2) = 73.035 g
    "carpool_km": (
        "passenger-km", floor(F("162.3") * (1 - F("1.1") / 2)), (73_000, 1), 2_200, 4, None, 48,
        "A",
    ),
    # 32.9 km x (162.3 / 1.3 - 52) = 2,396.6 g
    "car_stop_day": (
        "day", floor(F("32.9") * (F("162.3") / F("1.3") - 52)), (2_396_000, 1), 2_396, 1, 8, 72,
        "AC",
    ),
    # Ant Forest: 5 g a payment of at least 1 yuan, ten a day.
    "mobile_pay_offline": ("txn", 5, (5_000, 1), 50, 10, None, 24, "A"),
    # CITIC: 89 g; Ant: 262 g. The lower one.
    "utility_pay_online": ("payment", min(89, 262), (89_000, 1), 267, 3, 10, 24, "A"),
    "e_invoice": ("invoice", 5, (5_000, 1), 25, 5, None, 24, "A"),
    "e_statement": ("statement", 24, (24_000, 1), 24, None, 2, 24, "A"),
    "e_card": ("card", 89, (89_000, 1), 89, 1, 1, 24, "A"),
    # ABC Tibet: 173 g a transfer.
    "online_transfer": ("txn", 173, (173_000, 1), 173, 1, 8, 24, "A"),
    "etc_pass": ("pass", 23, (23_000, 1), 92, 4, None, 24, "A"),
    "ticket_online": ("order", 180, (180_000, 1), 360, 2, 10, 24, "A"),
    "train_ticket_online": ("order", 136, (136_000, 1), 272, 2, 10, 24, "A"),
    "hospital_booking": ("visit", 277, (277_000, 1), 277, 1, 5, 24, "A"),
    # The Ministry's Zhejiang grid of 2023: 0.4974 kg/kWh.
    "electricity_saving": ("kWh/month", GRID_G, (497_400, 1), None, None, 1, 0, ""),
    # 389.31 GJ a 10,000 Nm3 x 15.3 tC/TJ x 0.99 x 44/12 = 21.6219 t: 2.1622 kg a Nm3.
    "gas_saving": (
        "m3/month",
        F(round(F("389.31") * F("0.0153") * F("0.99") * F(44, 12) * 1_000), 10_000) * 1_000,
        (2_162_200, 1), None, None, 1, 0, "",
    ),
    "water_saving": ("t/month", 168, (168_000, 1), None, None, 1, 0, ""),
    "rooftop_pv_self_use": ("kWh", GRID_G, (497_400, 1), None, None, 1, 0, ""),
    # Kecheng: 15,600 t CO2 of 11,600 t of recyclables, 1,344.8 g a kilogram, to the nearest gram.
    "recycle_kg": ("kg", round(F(15_600, 11_600) * 1_000), (1_345_000, 1), 27_000, 3, 30, 24, "A"),
    "carton_return": ("carton", 37, (37_000, 1), 111, 3, None, 24, "A"),
    # Beijing Green Life: at least 23 g.
    "no_tableware": ("order", 23, (23_000, 1), 69, 3, None, 24, "A"),
    # The only published number, 449 g or more, is implausibly large: listed and turned off.
    "clean_plate": ("meal", 0, (0, 1), 0, 0, None, 24, "A"),
}  # fmt: skip


@pytest.fixture(scope="module")
def listed(app: Flask) -> dict[str, Any]:
    answer = app.test_client().get("/v1/behaviours").get_json()
    return {item["code"]: item for item in answer["items"]}


def test_all_27_are_listed_with_names_in_both_languages(listed: dict[str, Any]) -> None:
    assert listed.keys() == PUBLISHED.keys()
    assert len(listed) == 27
    for code, item in listed.items():
        assert not item["names"]["zh"].isascii(), code
        assert item["names"]["en"].isascii(), code
    assert [code for code, item in listed.items() if not item["enabled"]] == ["clean_plate"]


@pytest.mark.parametrize("code", PUBLISHED)
def test_a_behaviour_has_the_published_value_and_its_caps(
    listed: dict[str, Any], code: str
) -> None:
    unit, grams, factor, day_g, day_n, month_n, hours, classes = PUBLISHED[code]
    item = listed[code]
    assert (item["factor"]["mg_num"], item["factor"]["mg_den"]) == factor
    assert F(*factor) == F(grams) * 1_000
    assert item["unit"] == unit
    assert item["caps"] == {"day_g": day_g, "day_count": day_n, "month_count": month_n}
    assert item["maturity"] == {"hours": hours}
    assert "".join(item["evidence"]) == classes
    assert item["source"]
    assert item["factor"]["valid_from"] == "2024-01-01"
    assert item["factor"]["review_by"] == "2028-01-01"


def test_trips_of_unknown_length_have_the_published_fallbacks(listed: dict[str, Any]) -> None:
    """Ant Forest and Beijing Green Life: 80 g a bus trip, at least 46 g a metro trip."""
    fallbacks = {code: item["factor"]["trip_mg"] for code, item in listed.items()}
    assert {code: mg for code, mg in fallbacks.items() if mg is not None} == {
        "bus_km": 80_000,
        "metro_km": 46_000,
    }
