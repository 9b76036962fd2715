"""A thousand rows in one request, every second one at fault in one of ten ways.

Fifty cards, each with ten bus rides of 1 km (26.9 g, 26 points) and one row of every fault between
them. Each row gets its own right answer, and no neighbour loses a gram.
"""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from callers import new_phone, partner
from flask import Flask
from lives import at

from accounting import accounts, book, links
from footprint import summaries
from points.wallet import consistent

CARDS = 50
RIDES = 10
FIRST = datetime(2026, 5, 18, 0, tzinfo=UTC)  # Eight in the morning in the city.

Row = dict[str, Any]
Answer = tuple[int, str, str]


def ride(card: int, number: int) -> Row:
    """Five rides a day, an hour apart."""
    day, hour = divmod(number, 5)
    return {
        "external_id": f"bus-{card:03d}",
        "behaviour": "bus_km",
        "quantity": 1,
        "occurred_at": (FIRST + timedelta(days=day, hours=hour)).isoformat(),
        "source_event_id": f"ride-{card}-{number}",
    }


def faulty(card: int) -> list[tuple[Any, Answer]]:
    """One row of each fault, and what must be answered: status, code, and where or what."""

    def wrong(fault: str, **changes: Any) -> Row:
        row = ride(card, 9) | {"source_event_id": f"{fault}-{card}"} | changes
        return {name: value for name, value in row.items() if value is not ...}

    return [
        (wrong("negative", quantity=-1), (422, "validation_failed", "/quantity")),
        (wrong("unknown", behaviour="teleport"), (422, "validation_failed", "/behaviour")),
        (wrong("stray", points=1_000), (422, "validation_failed", "/points")),
        (wrong("undated", occurred_at=...), (422, "validation_failed", "/occurred_at")),
        ("not a row", (422, "validation_failed", "")),
        (ride(card, 0) | {"quantity": 2}, (409, "source_event_conflict", "")),
        (wrong("bike", behaviour="bike_km"), (403, "behaviour_not_allowed", "")),
        (wrong("alien", external_id=f"gas-{card}"), (403, "id_not_in_namespace", "")),
        (wrong("far", quantity=101), (201, "rejected", "implausible_quantity")),
        (
            wrong("early", occurred_at="2026-05-20T12:06:00+08:00"),
            (201, "rejected", "in_the_future"),
        ),
    ]


def answered(result: dict[str, Any]) -> Answer:
    if "problem" in result:
        problem = result["problem"]
        pointers = [error["pointer"] for error in problem.get("errors", ())]
        return result["status_code"], problem["code"], ",".join(pointers)
    activity = result["activity"]
    codes = [reason["code"] for reason in activity["reasons"]]
    return result["status_code"], activity["status"], ",".join(codes)


def test_a_thousand_rows_with_ten_kinds_of_faults(app: Flask) -> None:
    with at("2026-05-20 12:00"):
        city = partner(app, every_behaviour=False, behaviours=["bus_km"], id_namespace="bus-")
        people = []
        for card in range(CARDS):
            people.append(accounts.by_phone(new_phone()))
            links.link(people[-1], city.id, f"bus-{card:03d}")
        rows: list[Any] = []
        expected: list[Answer] = []
        for card in range(CARDS):
            for number, (bad, answer) in enumerate(faulty(card)):
                rows += [ride(card, number), bad]
                # The rides of the 18th matured at noon today at the latest, those of the 19th wait.
                expected += [(201, "credited" if number < 5 else "pending", ""), answer]
        assert len(rows) == 1_000
        answer = city.post("/v1/feeds/activities", {"activities": rows})
        assert answer.status_code == 200
        results = answer.get_json()["results"]
        got = [answered(result) for result in results]
        assert [pair for pair in zip(expected, got, strict=True) if pair[0] != pair[1]] == []
        # 10 x 26,900 mg and 10 x 26 points each, and nothing of the faults.
        for who in people:
            assert book.head(who).after["lifetime_mg"] == 269_000
        cells = summaries.between(people[0], FIRST.date(), FIRST.date() + timedelta(days=1)).cells
        assert [(cell.mg, cell.points, cell.count) for cell in cells] == [(134_500, 130, 5)] * 2
        # The whole of it once more: the same rides, and still nothing credited twice.
        again = city.post("/v1/feeds/activities", {"activities": rows}).get_json()["results"]
        assert {result["status_code"] for result in again[::2]} == {200}
        assert [one["activity"]["id"] for one in again[::2]] == [
            one["activity"]["id"] for one in results[::2]
        ]
        assert sum(Decimal(one["activity"]["reduction_g"]) for one in again[::2]) == 13_450
        assert book.head(people[0]).after["lifetime_mg"] == 269_000
        assert book.verify(checks=[consistent]).problem is None
