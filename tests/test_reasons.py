"""Every reason of the table in docs/methodology.md is reached by somebody, and told in zh and en.

The clock stands at noon of Wednesday 20 May 2026 in the city. Meter 3300 used 300 kWh in each of
the 24 months before April 2026.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from callers import Caller, resident
from flask import Flask
from lives import at, city, did

from accounting import clock, tokens
from footprint import activities, households, reviews
from footprint.activities import Activity
from footprint.billing_rules import BillReport, Generation
from footprint.bills import Bill
from footprint.reasons import REASONS
from footprint.reviews import Decision
from footprint.rules import Report
from points import bill_crediting, crediting, deciding, terms

DAY = "2026-05-20"
MORNING = f"{DAY} 08:00"
METHODOLOGY = (Path(__file__).parent.parent / "docs" / "methodology.md").read_text("utf-8")
TABLE = METHODOLOGY.partition("## Reasons")[2].partition("## Sources")[0]
CODES = re.findall(r"^\| `(\w+)` \|", TABLE, re.MULTILINE)
# What is shown at another time than noon of the 20th.
LATER = {"stale_factor": "2028-02-10 12:00"}

Found = Activity | Bill


@dataclass(frozen=True)
class World:
    """Somebody to whom things happen."""

    me: Caller

    def did(self, behaviour: str, quantity: object, when: str = MORNING, **more: Any) -> Activity:
        return did(self.me.id, behaviour, quantity, when, **more)

    def fresh(self, activity: Activity) -> Activity:
        found = activities.by_id(activity.id)
        assert found is not None
        return found

    def bill(
        self,
        used: object,
        month: str = "2026-04",
        *,
        days: tuple[int, int] | None = None,
        **more: Any,
    ) -> Bill:
        first, last = clock.first_day(month), clock.last_day(month)
        if days is not None:
            first, last = first.replace(day=days[0]), first.replace(day=days[1])
        what = BillReport("electricity", "3300", first, last, Decimal(str(used)), **more)
        event = f"{self.me.id}-{first}-{used}"
        return bill_crediting.report(what, source="grid", event_id=event)[0]

    def home(self, usual: int = 300, months: int = 24) -> "World":
        """The meter and its bills of the months before April."""
        households.join(self.me.id, "electricity", "3300", 2)
        for ago in range(months, 0, -1):
            self.bill(usual, clock.add_months("2026-04", -ago))
        return self

    def stop_day_with_photos(self) -> Activity:
        what = Report("car_stop_day", Decimal(1), city(f"{DAY} 00:00"), None, {"vehicle": "car"})
        return crediting.report(
            self.me.id, what, source="app", event_id="photo", evidence="D", photo=True
        )[0]

    def decide(self, kind: str, subject: str, accept: bool) -> None:
        review = reviews.of_subject(kind, subject)
        assert review is not None
        deciding.decide(review, Decision(accept, "seen", "op"))


def overlapping(world: World) -> Found:
    world.did("bus_km", 5, minutes=30)
    return world.did("bike_km", 2, f"{DAY} 08:10", minutes=10)


def boarding_too_soon(world: World) -> Found:
    world.did("bus_km", 1, line="K1")
    return world.did("bus_km", 1, f"{DAY} 08:09", line="K1")


def twice(world: World) -> Found:
    world.did("e_invoice", 1, invoice="one")
    return world.did("e_invoice", 1, f"{DAY} 09:00", invoice="one")


def same_trip(world: World) -> Found:
    world.did("bike_km", 3, minutes=15)
    return world.did("bike_km", 3, minutes=15, source="another")


def lower_step_total(world: World) -> Found:
    world.did("walk_steps", 9_000)
    return world.did("walk_steps", 8_000, f"{DAY} 09:00")


def month_count_cap(world: World) -> Found:
    for day in (1, 2):
        world.did("e_statement", 1, f"2026-05-0{day} 08:00", card=f"{day}", billing_month="2026-04")
    return world.did("e_statement", 1, card="3", billing_month="2026-04")


def overall_day_cap(world: World) -> Found:
    world.did("ev_km", 60, f"{DAY} 01:00", minutes=60, vehicle="a")
    world.did("ev_charge_kwh", 10, f"{DAY} 02:00", vehicle="b")
    return world.did("carpool_km", 40, f"{DAY} 03:00", minutes=60, order="o")


def net_of_transit(world: World) -> Found:
    world.did("bus_km", 10)
    return world.did("car_stop_day", 1, f"{DAY} 00:00", vehicle="car")


def stop_day_covers(world: World) -> Found:
    world.did("car_stop_day", 1, f"{DAY} 00:00", vehicle="car")
    return world.did("bus_km", 10)


def stale_factor(world: World) -> Found:
    with at(LATER["stale_factor"]):
        return world.did("bus_km", 1, "2028-02-10 08:00")


def taken_back(world: World) -> Found:
    return crediting.reverse(world.did("bus_km", 1), reason="refund", by="bus")


def photo_not_accepted(world: World) -> Found:
    waits = world.stop_day_with_photos()
    reviews.ask(reviews.PHOTOS, waits.id, (world.me.id,))
    world.decide(reviews.PHOTOS, waits.id, accept=False)
    return world.fresh(waits)


def appeal_upheld(world: World) -> Found:
    refused = world.did("bus_km", 101)
    deciding.appeal(refused, "It was the night bus to Hangzhou.")
    world.decide(reviews.APPEAL, refused.id, accept=True)
    return world.fresh(refused)


def bill_history(world: World) -> Found:
    return world.home().bill(250, "2024-03")


def bill_month_credited(world: World) -> Found:
    world.home().bill(100, days=(1, 15))
    return world.bill(100, days=(16, 30))


def bill_corrected(world: World) -> Found:
    first = world.home().bill(250)
    world.bill(240, corrects=f"{world.me.id}-2026-04-01-250")
    return first


def vacant_home(world: World) -> Found:
    empty = world.home().bill(50)
    world.decide(reviews.VACANCY, empty.id, accept=False)
    return empty


def solar(world: World, made: int, exported: int, certified: int = 0) -> Found:
    pv = Generation(Decimal(made), Decimal(exported), Decimal(certified))
    households.join(world.me.id, "electricity", "3300", 2)
    return world.bill(120, pv=pv)


def pv_home(world: World) -> Found:
    solar(world, 480, 290)
    with at("2026-06-02 12:00"):
        return world.bill(120, "2026-05")


def with_city_paying(world: World, permille: int) -> Found:
    """A ride after the record of the city's rate came into force."""
    terms.publish_rate("city", permille=permille, priority=1, covers=False,
                       fen_per_1000_points=200, reason="low", after=0)  # fmt: skip
    with clock.travel(terms.LEAD):
        return world.did("bus_km", 10)


def with_campaign(world: World, pays_permille: int = 1_000, **more: Any) -> Found:
    """A ride in a campaign that doubles it, paid by a bank."""
    terms.publish_rate("bank", permille=pays_permille, priority=2, covers=False,
                       fen_per_1000_points=300, reason="opened", after=0)  # fmt: skip
    everybody: dict[str, Any] = {"behaviours": [], "districts": [], "grades": []}
    double = {"funder": "bank", "multiplier": "2", "first_day": DAY, "last_day": DAY}
    terms.publish_campaign("cmp_double", everybody | double | more, ends=DAY)
    with clock.travel(terms.LEAD):
        return world.did("bus_km", 10)


def below_minimum(world: World) -> Found:
    """Under a rule of a city that gives no fewer than a thousand points at once."""
    known = terms.refresh()
    stricter = tuple(replace(rule, minimum_points=1_000) for rule in known.rules)
    terms._known = (time.monotonic(), replace(known, rules=stricter))
    return world.did("bus_km", 10)


CASES: dict[str, Callable[[World], Found]] = {
    "in_the_future": lambda world: world.did("bus_km", 1, f"{DAY} 12:06"),
    "too_old": lambda world: world.did("bus_km", 1, "2025-11-20 12:00"),
    "behaviour_disabled": lambda world: world.did("clean_plate", 1),
    "evidence_not_accepted": lambda world: world.did("bus_km", 1, evidence="D"),
    "only_from_bills": lambda world: world.did("water_saving", 1),
    "implausible_quantity": lambda world: world.did("bike_km", "15.1"),
    "implausible_speed": lambda world: world.did("bike_km", 5, minutes=10),
    "implausible_duration": lambda world: world.did(
        "bus_km", 50, "2026-05-18 08:00", minutes=24 * 60 + 1
    ),
    "quantity_not_whole": lambda world: world.did("e_invoice", "1.5"),
    "quantity_not_one": lambda world: world.did("e_invoice", 2, invoice="two"),
    "amount_too_small": lambda world: world.did("mobile_pay_offline", 1, amount_fen=99),
    "already_credited": twice,
    "overlapping_trip": overlapping,
    "boarding_too_soon": boarding_too_soon,
    "same_trip": same_trip,
    "same_merchant_cap": lambda world: world.did(
        "mobile_pay_offline", 4, amount_fen=100, merchant="m"
    ),
    "step_cadence": lambda world: world.did("walk_steps", 9_001, minutes=45),
    "manual_part_dropped": lambda world: world.did("walk_steps", 900, manual_quantity="100"),
    "lower_step_total": lower_step_total,
    "step_limit": lambda world: world.did("walk_steps", 18_001),
    "day_count_cap": lambda world: world.did("etc_pass", 5),
    "month_count_cap": month_count_cap,
    "day_gram_cap": lambda world: world.did("bike_km", 15),
    "overall_day_cap": overall_day_cap,
    "net_of_transit": net_of_transit,
    "stop_day_covers": stop_day_covers,
    "stale_factor": stale_factor,
    "reversed": taken_back,
    "needs_history": lambda world: world.home(months=11).bill(250),
    "no_saving": lambda world: world.home().bill(300),
    "saving_cap": lambda world: world.home().bill(200),
    # Eleven months of 410 kWh and April: 4,510 + 300 = 4,810 kWh.
    "tier_3": lambda world: world.home(410).bill(300),
    "vacancy_review": lambda world: world.home().bill(89),
    "bill_estimated": lambda world: world.home().bill(250, estimated=True),
    "bill_history": bill_history,
    "bill_month_credited": bill_month_credited,
    "bill_corrected": bill_corrected,
    "vacant_home": vacant_home,
    "pv_home": pv_home,
    "pv_certified": lambda world: solar(world, 480, 290, 40),
    "no_own_use": lambda world: solar(world, 480, 480),
    "budget_slowed": lambda world: with_city_paying(world, 500),
    "budget_spent": lambda world: with_city_paying(world, 0),
    "campaign_spent": lambda world: with_campaign(world, 0),
    "campaign_cap": lambda world: with_campaign(world, day_points_max=9),
    "below_minimum": below_minimum,
    "awaiting_review": World.stop_day_with_photos,
    "photo_not_accepted": photo_not_accepted,
    "appeal_upheld": appeal_upheld,
}


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    terms.forget()
    with at(f"{DAY} 12:00"):
        yield
    terms.forget()


def told(me: Caller, found: Found, language: str) -> list[dict[str, str]]:
    """The reasons as the resident is told them."""
    headers = {"Accept-Language": language}
    if isinstance(found, Activity):
        shown = me.get(f"/v1/activities/{found.id}", headers=headers).get_json()
    else:
        [shown] = [
            one
            for one in me.get("/v1/me/bills?limit=100", headers=headers).get_json()["items"]
            if one["id"] == found.id
        ]
    reasons: list[dict[str, str]] = shown["reasons"]
    return reasons


def test_every_reason_of_the_table_has_a_case() -> None:
    assert sorted(CODES) == sorted(CASES)


@pytest.mark.parametrize("code", CODES)
def test_a_reason_is_reached_and_told_in_both_languages(app: Flask, code: str) -> None:
    me = resident(app)
    found = CASES[code](World(me))
    with at(LATER.get(code, f"{DAY} 12:00")):
        me = replace(me, token=tokens.open_session(me.id).access_token)
        for language, texts in (("zh", "zh-CN,zh"), ("en", "en-GB,en")):
            assert {"code": code, "text": REASONS[code][language]} in told(me, found, texts)  # type: ignore[index]
