"""Every number from what was reported to the points, for a person and for a machine.

`machine.check` works each explanation out again from its JSON alone, with fractions. The numbers
here are worked by hand from the factors; the clock stands at noon of Wednesday 20 May 2026.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import machine
import pytest
from callers import Caller, resident, said
from callers import machine as client_of
from drafts import cleaner_bus, nothing_left_behind, published
from flask import Flask
from lives import at, did

from accounting import clock, tokens
from accounting.clients import Kind
from footprint import activities, households, methodology, reasons, reviews
from footprint.activities import Activity
from footprint.billing_rules import BillReport
from footprint.bills import Bill
from footprint.reviews import Decision
from points import bill_crediting, crediting, deciding, restating

DAY = "2026-05-20"


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with at(f"{DAY} 12:00"):
        yield


@pytest.fixture
def me(app: Flask) -> Caller:
    return resident(app)


def explained(who: Caller, activity: Activity, language: str = "en") -> dict[str, Any]:
    """The explanation, worked out again; and it says what the activity itself says."""
    path = f"/v1/activities/{activity.id}"
    told: dict[str, Any] = who.get(
        f"{path}/explanation", headers={"Accept-Language": language}
    ).get_json()
    machine.check(told)
    shown = who.get(path).get_json()
    assert told["outcome"]["status"] == shown["status"]
    assert [one["code"] for one in told["outcome"]["reasons"]] == [
        one["code"] for one in shown["reasons"]
    ]
    if not told["later"]:
        assert (told["reduction_mg"], told["points"]["points"]) == (
            shown["reduction_g"] * 1000,
            shown["points"],
        )
    return told


def working(told: dict[str, Any]) -> list[tuple[str, str]]:
    return [(step["rule"], step["result"]) for step in told["steps"]]


# --- one of each --------------------------------------------------------------------------------

NEEDED_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "ev_km": {"vehicle": "car"},
    "ev_charge_kwh": {"vehicle": "car"},
    "car_stop_day": {"vehicle": "car"},
    "carpool_km": {"order": "o1"},
    "mobile_pay_offline": {"amount_fen": 500},
    "utility_pay_online": {"amount_fen": 500, "meter_account": "m1"},
    "e_statement": {"card": "c1", "billing_month": "2026-04"},
    "e_card": {"card_product": "p1"},
}


@pytest.mark.parametrize("code", sorted(methodology.shipped()[-1].behaviours))
def test_every_behaviour_is_explained_to_the_last_step(me: Caller, code: str) -> None:
    behaviour = methodology.shipped()[-1].behaviours[code]
    quantity = {"distance": 5, "capped_steps": 10_000}.get(behaviour.formula, 1)
    done = did(me.id, code, quantity, f"{DAY} 08:00", **NEEDED_ATTRIBUTES.get(code, {}))
    told = explained(me, done)
    assert told["formula"] == behaviour.formula_text
    [factor] = told["factors"]
    assert (factor["id"], factor["source"]) == (behaviour.factor_id, behaviour.source)
    assert told["evidence"]["class"] == "A"
    assert told["caps"]["day_count"] == behaviour.caps.day_count
    credited = behaviour.enabled and not behaviour.from_bills
    assert bool(told["reduction_mg"]) == credited
    [first, *_] = told["steps"]
    assert (first["rule"], first["result"]) == ("quantity", str(quantity))
    assert told["steps"][-1]["op"] == ("floor" if credited else "nothing")
    if not credited:
        assert told["outcome"]["reasons"][0]["needed"]
        assert (told["points"]["rule"], told["points"]["funder"]) == (None, None)
    else:
        assert (told["points"]["rule"], told["points"]["funder"]) == ("QZ-PTS-2026.1", "city")


def test_each_step_is_a_sentence_in_the_readers_language(me: Caller) -> None:
    """5.2 km x 26.9 g = 139.88 g: 139 points."""
    ride = did(me.id, "bus_km", "5.2", f"{DAY} 08:00", minutes=20)
    english, chinese = explained(me, ride), explained(me, ride, "zh")
    assert [step["text"] for step in english["steps"]] == [
        "Reported: 5.2 passenger-km.",
        "Times 26.9 g for each passenger-km: 139.88 g.",
        "Rounded down to whole milligrams: 139.88 g.",
    ]
    assert [step["text"] for step in chinese["steps"]] == [
        "上报数量为 5.2 人公里。",
        "乘以每人公里减排 26.9 克，得 139.88 克。",
        "向下取整到毫克，为 139.88 克。",
    ]
    assert english["points"]["text"] == (
        "139.88 g x 1 points a gram, rounded down: 139 points, paid by city."
    )
    assert english["evidence"]["why"] == "A record that a data partner sent under its own key."
    assert working(english) == [("quantity", "5.2"), ("formula", "139880"), ("rounding", "139880")]


def test_an_operator_can_answer_why(app: Flask, me: Caller) -> None:
    ride = did(me.id, "bus_km", "5.2", f"{DAY} 08:00", minutes=20)
    support = client_of(app, Kind.OPERATOR)
    path = f"/v1/operator/activities/{ride.id}/explanation"
    english = {"Accept-Language": "en"}
    assert support.get(path, headers=english).get_json() == explained(me, ride)
    assert said(support.get("/v1/operator/activities/act_0/explanation")) == (404, "not_found")
    assert said(me.get(path)) == (403, "forbidden")


def test_what_no_decimal_can_say_is_a_fraction(me: Caller) -> None:
    """10,000 steps x 296,000 / 18,000 = 164,444 and 4/9 mg: the floor comes once, at the end."""
    told = explained(me, did(me.id, "walk_steps", 10_000, f"{DAY} 08:00", evidence="B"))
    assert working(told) == [
        ("quantity", "10000"),
        ("formula", "1480000/9"),
        ("rounding", "164444"),
    ]
    assert told["factors"][0]["exact"] == {"mg_num": 296_000, "mg_den": 18_000}
    assert not told["evidence"]["bank_grade"], "steps are health data"


def test_a_trip_of_unknown_length_shows_the_factor_it_used(me: Caller) -> None:
    told = explained(me, did(me.id, "bus_km", 2, f"{DAY} 08:00", trip=True))
    [factor] = told["factors"]
    assert (factor["id"], factor["value"]) == ("QZ-RES-2026.1/bus_km/trip", 80)
    assert factor["unit"] == "g CO2 per trip"
    assert told["reduction_mg"] == 160_000


# --- caps ---------------------------------------------------------------------------------------


def test_a_cap_that_bit_says_what_had_been_used(me: Caller) -> None:
    """Cycling has 730 g a day: 14 km are 681.8 g, so of the next 97.4 g 48.2 g are left."""
    did(me.id, "bike_km", 14, f"{DAY} 06:00", minutes=60)
    told = explained(me, did(me.id, "bike_km", 2, f"{DAY} 08:00", minutes=10))
    step = told["steps"][-1]
    assert (step["rule"], step["op"], step["value"]) == ("day_gram_cap", "at_most", "48200")
    assert (step["cap"], step["used_before"]) == (730_000, 681_800)
    assert step["text"] == (
        "730 g a day are credited for this behaviour; 681.8 g were used before, "
        "which leaves 48.2 g."
    )
    assert told["caps"]["used_before"] == {
        "day_mg": 681_800, "day_count": 1, "overall_day_mg": 681_800,
    }  # fmt: skip
    assert told["caps"]["bit"] == ["day_gram_cap"]


def test_counts_of_day_and_month_are_cut_before_the_factor(me: Caller) -> None:
    """Train tickets: 2 a day, 10 a month. Nine before, so of three one is left: 136 g."""
    for day in range(1, 10):
        did(me.id, "train_ticket_online", 1, f"2026-05-{day:02d} 08:00")
    told = explained(me, did(me.id, "train_ticket_online", 3, f"{DAY} 08:00"))
    assert working(told)[:3] == [
        ("quantity", "3"), ("day_count_cap", "2"), ("month_count_cap", "1"),
    ]  # fmt: skip
    assert told["steps"][2]["used_before"] == 9
    assert told["reduction_mg"] == 136_000
    full = explained(me, did(me.id, "train_ticket_online", 1, f"{DAY} 09:00"))
    assert (full["reduction_mg"], full["outcome"]["status"]) == (0, "capped")
    assert full["outcome"]["reasons"][0]["needed"] == (
        "A month in which fewer than 10 are credited."
    )


def test_the_cap_over_travel_and_payments(me: Caller) -> None:
    """4,000 + 4,000 g of two cars and 2,200 g of carpooling leave nothing of the 10,000 g."""
    did(me.id, "ev_km", 60, f"{DAY} 01:00", minutes=60, vehicle="a")
    did(me.id, "ev_charge_kwh", 10, f"{DAY} 02:00", vehicle="b")
    told = explained(me, did(me.id, "carpool_km", 40, f"{DAY} 03:00", minutes=60, order="o"))
    assert working(told)[2:] == [
        ("rounding", "2920000"), ("day_gram_cap", "2200000"), ("overall_day_cap", "2000000"),
    ]  # fmt: skip
    assert told["steps"][-1]["used_before"] == 8_000_000


def test_steps_above_the_limit_and_a_higher_total_of_the_day(me: Caller) -> None:
    """5,000 steps are 82,222 mg; 30,000 count as 18,000, 296,000 mg: 213,778 mg more."""
    did(me.id, "walk_steps", 5_000, f"{DAY} 08:00", evidence="B")
    told = explained(me, did(me.id, "walk_steps", 30_000, f"{DAY} 09:00", evidence="B"))
    assert working(told) == [
        ("quantity", "30000"), ("step_limit", "18000"), ("formula", "296000"),
        ("rounding", "296000"), ("less_lower_total", "213778"),
    ]  # fmt: skip
    lower = explained(me, did(me.id, "walk_steps", 7_000, f"{DAY} 10:00", evidence="B"))
    assert lower["outcome"]["status"] == "merged"
    assert working(lower) == [("quantity", "7000"), ("lower_step_total", "0")]


def test_a_stop_day_and_transit_each_say_what_was_taken_off(me: Caller) -> None:
    """The metro of 20 km is worth 934 g, so the day earns 1,462 g and still covers a bus ride."""
    did(me.id, "metro_km", 20, f"{DAY} 07:00", minutes=40)
    stop = explained(me, did(me.id, "car_stop_day", 1, f"{DAY} 00:00", vehicle="car"))
    assert working(stop)[-2:] == [("rounding", "2396000"), ("net_of_transit", "1462000")]
    assert stop["steps"][-1]["value"] == "934000"
    bus = explained(me, did(me.id, "bus_km", 60, f"{DAY} 08:00", minutes=60))
    # 1,614 g, of which 1,600 g count; 2,396 - 934 = 1,462 g are covered: 138 g.
    assert working(bus)[-3:] == [
        ("rounding", "1614000"), ("day_gram_cap", "1600000"), ("stop_day_covers", "138000"),
    ]  # fmt: skip
    covers = bus["steps"][-1]
    assert (covers["cap"], covers["used_before"], covers["value"]) == (
        2_396_000, 934_000, "1462000",
    )  # fmt: skip


# --- bills --------------------------------------------------------------------------------------


def bill(month: str, used: object, event: str | None = None, **changed: Any) -> Bill:
    what = BillReport(
        "electricity", "3300", clock.first_day(month), clock.last_day(month), Decimal(str(used)),
        **changed,
    )  # fmt: skip
    return bill_crediting.report(what, source="grid", event_id=event or f"{month}-{used}")[0]


def home(*residents: str, members: int = 3) -> None:
    """Behind meter 3300, 300 kWh every month of the two years before April 2026."""
    for who in residents:
        households.join(who, "electricity", "3300", members)
    for ago in range(24, 0, -1):
        bill(clock.add_months("2026-04", -ago), 300)


def share(who: Caller, of: Bill, language: str = "en") -> dict[str, Any]:
    path = f"/v1/me/bills/{of.id}/explanation"
    told: dict[str, Any] = who.get(path, headers={"Accept-Language": language}).get_json()
    machine.check(told)
    return told


def test_each_members_share_of_a_bill(app: Flask, me: Caller) -> None:
    """300 - 250 = 50 kWh saved, 50/3 each: x 497.4 g = 8,290 g. Two of three have an account."""
    other = resident(app)
    home(me.id, other.id)
    april = bill("2026-04", 250)
    for who in (me, other):
        told = share(who, april)
        assert working(told) == [
            ("baseline", "300"), ("use", "50"), ("household_share", "50/3"),
            ("formula", "8290000"), ("rounding", "8290000"),
        ]  # fmt: skip
        assert (told["reduction_mg"], told["points"]["points"]) == (8_290_000, 8_290)
        assert told["outcome"] == {"status": "credited", "reasons": []}
    [factor] = told["factors"]
    assert factor["id"] == "electricity/CN-ZJ/2023"
    registry = factor["registry"]
    assert (registry["region"], registry["data_year"]) == ("CN-ZJ", 2023)
    assert (registry["valid_from"], registry["review_by"]) == ("2023-01-01", "2027-12-31")
    assert "均分" in share(me, april, "zh")["steps"][2]["text"]
    stranger = resident(app)
    assert said(stranger.get(f"/v1/me/bills/{april.id}/explanation")) == (404, "not_found")


def test_a_saving_of_more_than_thirty_percent_is_cut(me: Caller) -> None:
    """300 - 150 = 150 kWh, of which 90 count: 90/3 x 497.4 g = 14,922 g."""
    home(me.id)
    told = share(me, bill("2026-04", 150))
    assert working(told)[:4] == [
        ("baseline", "300"), ("use", "150"), ("saving_cap", "90"), ("household_share", "30"),
    ]  # fmt: skip
    assert told["reduction_mg"] == 14_922_000
    assert told["outcome"]["status"] == "capped"


@pytest.mark.parametrize(
    ("used", "changed", "reason"),
    [
        (310, {}, "no_saving"),
        (80, {}, "vacancy_review"),
        (250, {"estimated": True}, "bill_estimated"),
    ],
)
def test_a_bill_that_earned_nothing_says_what_was_needed(
    me: Caller, used: int, changed: dict[str, Any], reason: str
) -> None:
    home(me.id)
    told = share(me, bill("2026-04", used, **changed))
    assert (told["reduction_mg"], told["outcome"]["status"]) == (0, "recorded")
    [why] = told["outcome"]["reasons"]
    assert why["code"] == reason
    assert why["needed"]
    assert told["steps"][-1]["op"] == "nothing"


def test_a_corrected_bill_shows_what_was_taken_back(me: Caller) -> None:
    home(me.id)
    first = bill("2026-04", 250, "april")
    second = bill("2026-04", 270, "april-again", corrects="april")
    told = share(me, first)
    assert (told["reduction_mg"], told["stands"]) == (
        8_290_000, {"reduction_mg": 0, "points": 0},
    )  # fmt: skip
    assert [change["kind"] for change in told["later"]] == ["reverse"]
    # 30 kWh / 3 x 497.4 g
    assert share(me, second)["stands"] == {"reduction_mg": 4_974_000, "points": 4_974}


# --- what came later ----------------------------------------------------------------------------


def test_an_upheld_appeal_shows_what_it_overruled(me: Caller) -> None:
    did(me.id, "bus_km", 10, f"{DAY} 08:00", minutes=30)
    ride = did(me.id, "bike_km", 2, f"{DAY} 08:20", minutes=10, evidence="B")
    refused = explained(me, ride)
    assert working(refused) == [("quantity", "2"), ("overlapping_trip", "0")]
    assert (refused["appealable"], refused["appeal"]) == (True, None)
    appeal, _ = deciding.appeal(ride, "I changed to the bicycle.")
    waits = explained(me, ride)
    assert (waits["appealable"], waits["appeal"]["status"]) == (False, "open")
    assert waits["appeal"]["due_on"] == "2026-06-09"
    deciding.decide(appeal, Decision(True, "seen", "op"))
    told = explained(me, ride)
    assert told["appeal"] == {
        "appeal_id": appeal.id,
        "status": "upheld",
        "due_on": "2026-06-09",
        "reason": "seen",
        "overruled": ["overlapping_trip"],
    }
    assert told["reduction_mg"] == 97_400


def test_evidence_accepted_in_an_appeal_says_so(me: Caller) -> None:
    ride = did(me.id, "bike_km", 2, f"{DAY} 08:20", minutes=10, evidence="D")
    appeal, _ = deciding.appeal(ride, "Here is my receipt.")
    assert reviews.get(reviews.APPEALS, appeal.id).status == reviews.OPEN
    deciding.decide(appeal, Decision(True, "seen", "op"))
    told = explained(me, ride)
    assert told["evidence"] == {
        "class": "C",
        "why": "An operator looked at it in an appeal.",
        "accepted": ["A", "B"],
        "bank_grade": False,
    }


def test_a_reversed_activity_shows_how_it_was_credited_and_that_nothing_stands(me: Caller) -> None:
    ride = did(me.id, "bus_km", "5.2", f"{DAY} 08:00")
    crediting.reverse(ride, reason="refunded", by="bus")
    told = explained(me, activities.by_id(ride.id) or ride)
    assert working(told)[-1] == ("rounding", "139880")
    [change] = told["later"]
    assert (change["kind"], change["reduction_mg"], change["points"]) == ("reverse", -139_880, -139)
    assert change["text"] == "Taken back (refunded): -139.880 g, -139 points."
    assert told["stands"] == {"reduction_mg": 0, "points": 0}
    assert told["outcome"]["reasons"][0]["code"] == "reversed"


def test_a_trip_told_twice_shows_what_became_of_each_record(me: Caller) -> None:
    """By phone 3 km, 146.1 g; the dock says 3.2 km, 155.84 g; a watch has nothing better."""
    ride = {"minutes": 15, "evidence": "B", "source": "app"}
    phone = did(me.id, "bike_km", 3, f"{DAY} 00:05", **ride)
    dock = did(me.id, "bike_km", "3.2", f"{DAY} 00:04", minutes=16, source="dock")
    first, second = (explained(me, activities.by_id(one.id) or one) for one in (phone, dock))
    [change] = first["later"]
    assert (change["kind"], change["reduction_mg"], change["points"]) == ("replace", -146_100, -146)
    assert first["stands"] == {"reduction_mg": 0, "points": 0}
    assert first["merged"] == {"into": dock.id, "from": []}
    assert first["outcome"]["status"] == "merged"
    assert (second["reduction_mg"], second["merged"]["from"]) == (155_840, [phone.id])
    weaker = did(me.id, "bike_km", 3, f"{DAY} 00:06", **ride | {"source": "watch"})
    told = explained(me, weaker)
    assert working(told) == [("quantity", "3"), ("same_trip", "0")]
    crediting.reverse(dock, reason="refund", by="dock")
    assert explained(me, activities.by_id(dock.id) or dock)["stands"]["reduction_mg"] == 0


def test_a_restated_activity_shows_the_difference_and_its_version(me: Caller) -> None:
    """26.9 to 30.0 g/km: 5.2 km are 139,880 mg and then 156,000 mg; 139 and then 156 points."""
    ride = did(me.id, "bus_km", "5.2", "2026-05-19 08:00")
    with at("2026-06-10 12:00"), nothing_left_behind():
        published(cleaner_bus())
        run = restating.approve(
            restating.ask("QZ-RES-2026.2", "2026-05", None, "anna", alone=False).id,
            "bo",
            alone=False,
        )
        restating.restate(me.id, run)
        later = replace(me, token=tokens.open_session(me.id).access_token)
        told = explained(later, ride)
        assert (told["reduction_mg"], told["points"]["points"]) == (139_880, 139)
        [change] = told["later"]
        assert (change["kind"], change["reduction_mg"], change["points"]) == ("restate", 16_120, 17)
        assert change["methodology_version"] == "QZ-RES-2026.2"
        assert told["stands"] == {"reduction_mg": 156_000, "points": 156}
        crediting.reverse(ride, reason="refunded", by="bus")
        gone = explained(later, ride)
        assert [change["kind"] for change in gone["later"]] == ["restate", "reverse"]
        assert gone["stands"] == {"reduction_mg": 0, "points": 0}


# --- what would have been needed ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "quantity", "when", "more", "needed"),
    [
        ("bike_km", 16, f"{DAY} 08:00", {}, "A quantity of 0.3–15 km."),
        ("bus_km", 101, f"{DAY} 08:00", {}, "A quantity of ≤ 100 passenger-km."),
        ("bike_km", 5, f"{DAY} 08:00", {"minutes": 10}, "A speed of 4–25 km/h; this was 30 km/h."),
        ("bus_km", 1, f"{DAY} 12:06", {}, "A time not after 2026-05-20 12:05."),
        ("bus_km", 1, "2025-11-20 08:00", {}, "To arrive by 2026-05-19 08:00."),
        ("walk_steps", 9, "2026-04-19 08:00", {"evidence": "B"}, "To arrive by 2026-05-19 08:00."),
        (
            "bus_km", 1, f"{DAY} 08:00", {"evidence": "D"},
            "Evidence of class A; this was class D.",
        ),
        (
            "mobile_pay_offline", 1, f"{DAY} 08:00", {"amount_fen": 99},
            "A payment of at least 100 fen.",
        ),
    ],
)  # fmt: skip
def test_a_refusal_says_what_would_have_been_needed(
    me: Caller, code: str, quantity: int, when: str, more: dict[str, Any], needed: str
) -> None:
    done = did(me.id, code, quantity, when, **more)
    told = explained(me, done)
    assert (told["reduction_mg"], told["points"]["points"]) == (0, 0)
    assert needed in [why["needed"] for why in told["outcome"]["reasons"]]
    chinese = explained(me, done, "zh")["outcome"]["reasons"]
    assert all(re.search(r"[\u4e00-\u9fff]", why["needed"]) for why in chinese)


def test_every_reason_that_leaves_nothing_says_what_is_needed_in_both_languages() -> None:
    # These stand beside a credit, so nothing is missing.
    beside = {"step_limit", "saving_cap", "stale_factor", "appeal_upheld"}
    beside |= {"step_cadence", "manual_part_dropped"}
    beside |= {"budget_slowed", "budget_spent", "campaign_spent", "campaign_cap", "below_minimum"}
    assert reasons.REASONS.keys() - beside == reasons.NEEDED.keys()
    for code, texts in reasons.NEEDED.items():
        assert re.search(r"[\u4e00-\u9fff]", texts["zh"]), code
        assert not re.search(r"[\u4e00-\u9fff]", texts["en"]), code
        assert set(re.findall(r"{\w+}", texts["zh"])) == set(re.findall(r"{\w+}", texts["en"]))
