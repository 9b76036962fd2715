"""The end of the demo: three views of every account agree, nothing is missing, and the tables."""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any

from rich.console import Console
from rich.table import Table

from accounting import clock
from api.demo import story
from api.demo.banks import GRADES
from api.demo.city import City, Person
from api.demo.client import StepFailed, expect
from api.demo.inputs import Row

DAYS = 600
SAVINGS = ("electricity_saving", "gas_saving", "water_saving")
POINTS = ("lifetime_earned", "available", "pending", "spent", "expired", "owed")


def repeat(city: City) -> str:
    """What was sent once is sent again: the first answer, no second effect."""
    rows = city.day.app()
    who = city.day.who("deep")[0]
    person = city.people[who]
    before = city.client.get("/v1/me/points", headers=person.headers)["lifetime_earned"]
    sample = rows[who][:10]
    answer = city.client.post(
        "/v1/activities/batch", {"activities": sample}, headers=person.app_headers
    )
    codes = {one["status_code"] for one in answer["results"]}
    expect("events sent again", {200}, codes)
    after = city.client.get("/v1/me/points", headers=person.headers)["lifetime_earned"]
    expect("points earned by repeats", 0, after - before)
    first = answer["results"][0]["activity"]
    path = f"/v1/activities/{first['id']}/explanation"
    told = city.client.get(path, headers=person.headers)
    expect("explained grams", story.exact(first["reduction_g"]) * 1000, told["reduction_mg"])
    return f"{len(sample)} events answered 200, no points twice; the first is explained"


def reconcile(city: City) -> str:
    """Activities, summary and wallet of everybody say the same, and every event is there."""
    people = list(city.people.values())
    found = city.each(lambda person: _account(city, person), people)
    missing = [event for one in found for event in one["missing"]]
    if missing:
        raise StepFailed(
            "acknowledged events", "all found", f"{len(missing)} missing: {missing[:3]}"
        )
    by_behaviour: dict[str, list[Any]] = {}
    for one in found:
        for code, sums in one["by_behaviour"].items():
            held = by_behaviour.setdefault(code, [0, Decimal(0), 0])
            held[0] += sums["count"]
            held[1] += story.exact(sums["reduction_g"])
            held[2] += sums["points"]
    city.tables["behaviours"] = by_behaviour
    city.tables["points"] = {name: sum(one["points"][name] for one in found) for name in POINTS}
    city.tables["vouchers"] = sum((one["vouchers"] for one in found), Counter())
    totals = {
        "grams": str(sum((one["day_g"] for one in found), Decimal(0))),
        "points": sum(one["day_points"] for one in found),
        "events": sum(one["day_events"] for one in found),
        "redemptions": city.tables["vouchers"].total(),
    }
    earlier = city.record.get("totals")
    if earlier is not None:
        expect("totals of the first run", earlier, totals)
    city.record.keep(totals=totals)
    events = sum(one["events"] for one in found)
    same = ", as in the first run" if earlier is not None else ""
    return f"{len(people)} accounts, {events:,} activities; none missing, sums agree{same}"


def _account(city: City, person: Person) -> Row:
    rows = city.client.pages("/v1/activities", person.headers)
    today = clock.city_day(clock.now())
    span = {"from": str(today - timedelta(days=DAYS)), "to": str(today), "by": "month"}
    summary = city.client.get("/v1/me/summary", headers=person.headers, params=span)
    points = city.client.get("/v1/me/points", headers=person.headers)
    name = f"resident {person.who}"
    savings = [sums for code, sums in summary["by_behaviour"].items() if code in SAVINGS]
    listed = sum((story.exact(row["reduction_g"]) for row in rows), Decimal(0))
    billed = sum((story.exact(sums["reduction_g"]) for sums in savings), Decimal(0))
    expect(f"grams of {name}", listed + billed, story.exact(summary["reduction_g"]))
    earned = sum(row["points"] for row in rows) + sum(sums["points"] for sums in savings)
    expect(f"points of {name} by summary", earned, summary["points"])
    expect(f"points of {name} by wallet", earned, points["lifetime_earned"])
    held = points["available"] + points["pending"] + points["spent"] + points["expired"]
    expect(f"wallet of {name}", points["lifetime_earned"], held - points["owed"])
    redemptions = city.client.pages("/v1/redemptions", person.headers)
    spent = sum(one["points"] for one in redemptions if one["status"] == "issued")
    expect(f"points {name} spent", spent, points["spent"])
    events = {row["source_event_id"] for row in rows}
    ours = [row for row in rows if row["source_event_id"] in city.day.event_ids]
    return {
        "missing": [
            event for who, event in city.acknowledged if who == person.who and event not in events
        ],
        "by_behaviour": summary["by_behaviour"],
        "points": points,
        "vouchers": Counter(one["status"] for each in redemptions for one in each["vouchers"]),
        "events": len(rows),
        "day_events": len(ours),
        "day_points": sum(row["points"] for row in [*ours, *savings]),
        "day_g": sum((story.exact(row["reduction_g"]) for row in ours), billed),
    }


def show(city: City, console: Console) -> None:
    """The tables at the end."""
    reductions = _table("Reductions by behaviour", "behaviour", "records", "kg CO2e", "points")
    held = sorted(city.tables["behaviours"].items(), key=lambda item: -item[1][1])
    for code, (count, grams, points) in held:
        name = f"{city.behaviours[code]['name']}"
        reductions.add_row(name, f"{count:,}", f"{grams / 1000:,.3f}", f"{points:,}")
    reductions.add_section()
    counts, grams, points = (sum(one[place] for _, one in held) for place in range(3))
    reductions.add_row("all", f"{counts:,}", f"{grams / 1000:,.3f}", f"{points:,}")
    console.print(reductions)

    wallet, vouchers, pushes = (city.tables[name] for name in ("points", "vouchers", "pushes"))
    removed = pushes["failed"] + pushes["no_device"]
    rest = _table("Points, vouchers, grades, pushes", "what", "", "number")
    _rows(rest, "points issued", [(name, wallet[name]) for name in POINTS[1:]])
    rest.add_row("", "all", f"{wallet[POINTS[0]]:,}", end_section=True)
    kinds = [("used", "used"), ("not used yet", "issued"), ("given back", "cancelled")]
    _rows(rest, "vouchers issued", [(name, vouchers[kind]) for name, kind in kinds])
    rest.add_section()
    _rows(rest, "residents by grade", [(name, city.tables["grades"][name]) for name in GRADES])
    rest.add_section()
    _rows(rest, "milestones", [("pushed", pushes["sent"]), ("app was removed", removed)])
    console.print(rest)

    rows = _table("Rows by outcome", "outcome", "", "rows")
    _rows(rows, "all doors", city.outcomes.most_common())
    rows.add_row("", "all", f"{city.outcomes.total():,}")
    console.print(rows)


def _rows(table: Table, what: str, held: Sequence[tuple[str, int]]) -> None:
    for place, (name, count) in enumerate(held):
        table.add_row("" if place else what, name, f"{count:,}")


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right" if name else "left")
    return table
