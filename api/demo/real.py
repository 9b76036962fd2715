"""`tanhui demo --input DIR`: real measurements through the same doors.

Known files are recognised by their names: bike-share trips with their stations, a home's daily
electricity, hourly registers of a home's water and gas. Days and months keep their order and
distance and are shifted so that the newest are recent; nothing else is changed.
"""

import csv
import gzip
import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from math import asin, cos, radians, sin, sqrt
from pathlib import Path
from zoneinfo import ZoneInfo

from rich.console import Console
from rich.table import Table

from accounting import clock
from api.demo import residents, story
from api.demo.city import City, Person
from api.demo.client import StepFailed, expect
from api.demo.inputs import Row

Step = tuple[str, Callable[[City], str]]

TRIPS = "bike-share trips"
TRIPS_MAX = 3_000
RIDERS_MAX = 500
CHUNK = 100
EARTH_KM = 6_371.0088
# The newest trips become two days old, so even the longest of them is over.
NEWEST_DAYS_BACK = 2
VANCOUVER = ZoneInfo("America/Vancouver")
# Mainland numbers apart from those of the demo residents.
RIDER_PHONE, HOME_PHONE = "+86137000{:05d}", "+8613600000001"
MINUTES_PER_HOUR = 60


@dataclass
class Found:
    """The files of a folder that are known, and what came of them so far."""

    trips: Path | None
    stations: Path | None
    meters: list[tuple[str, Path]]
    results: dict[str, Counter[str]] = field(default_factory=dict)
    grams: dict[str, Decimal] = field(default_factory=dict)

    def count(self, source: str, outcome: str, grams: Decimal = Decimal(0)) -> None:
        self.results.setdefault(source, Counter())[outcome] += 1
        self.grams[source] = self.grams.get(source, Decimal(0)) + grams


def steps(folder: Path) -> tuple[Step, ...]:
    """What to play from a folder; raises `StepFailed` when nothing in it is known."""
    meters = [
        ("electricity", "household_electricity*_daily.csv"),
        ("water", "household_water*_hourly.csv"),
        ("gas", "household_gas*_hourly.csv"),
    ]
    found = Found(
        trips=_first(folder, "bikeshare*_trips.csv.gz"),
        stations=_first(folder, "bikeshare*_stations.csv"),
        meters=[
            (carrier, path)
            for carrier, pattern in meters
            if (path := _first(folder, pattern)) is not None
        ],
    )
    rides = found.trips is not None and found.stations is not None
    if not rides and not found.meters:
        patterns = ["bikeshare*_trips.csv.gz with bikeshare*_stations.csv"]
        patterns += [pattern for _, pattern in meters]
        raise StepFailed(f"files in {folder}", " or ".join(patterns), "none of them")
    played: list[Step] = [("The stack is ready", residents.look_around)]
    if rides:
        played.append(("Bike-share trips", lambda city: _play_trips(city, found)))
    if found.meters:
        played.append(("Household meters", lambda city: _play_meters(city, found)))
    return (*played, ("Counted", lambda city: _keep(city, found)))


def show(city: City, console: Console) -> None:
    """One table: what came of the rows of each file."""
    found: Found = city.tables["real"]
    table = Table(title="Real data by outcome", title_justify="left", title_style="bold")
    for name in ("source", "outcome", "rows", "kg CO2e"):
        table.add_column(name, justify="left" if name in ("source", "outcome") else "right")
    for source, outcomes in found.results.items():
        table.add_row(source, "", f"{outcomes.total():,}", f"{found.grams[source] / 1000:,.3f}")
        for outcome, count in outcomes.most_common():
            table.add_row("", outcome, f"{count:,}", "")
        table.add_section()
    console.print(table)


def _first(folder: Path, pattern: str) -> Path | None:
    return next(iter(sorted(folder.glob(pattern))), None)


def _keep(city: City, found: Found) -> str:
    city.tables["real"] = found
    rows = sum(outcomes.total() for outcomes in found.results.values())
    return f"{rows:,} rows of {len(found.results)} sources"


# --- trips -------------------------------------------------------------------------------------


def _play_trips(city: City, found: Found) -> str:
    assert found.trips is not None
    assert found.stations is not None
    places = _places(found.stations)
    trips = _trips(found.trips)
    newest = max(start.date() for start, *_ in trips)
    shift = city.record.today - timedelta(days=NEWEST_DAYS_BACK) - newest
    rows: list[Row] = []
    for rider, (start, end, origin, goal) in _riders(trips):
        if origin not in places or goal not in places:
            found.count(TRIPS, "not sent: station without coordinates")
            continue
        told = f"{origin} {start.isoformat()} {goal} {end.isoformat()}"
        event = hashlib.sha256(told.encode()).hexdigest()[:24]
        rows.append(
            {
                "external_id": f"rider-{rider:03d}",
                "behaviour": "bike_km",
                "quantity": round(_haversine_km(places[origin], places[goal]), 3),
                "occurred_at": _moved(start, shift),
                "ended_at": _moved(end, shift),
                "source_event_id": f"trip-{event}",
            }
        )
    riders = sorted({row["external_id"] for row in rows})
    city.each(lambda rider: _enter_rider(city, rider), riders)
    for start_row in range(0, len(rows), CHUNK):
        chunk = rows[start_row : start_row + CHUNK]
        sent = {"activities": chunk}
        results = city.client.post("/v1/feeds/activities", sent, headers=city.partner)["results"]
        expect("results of trips", len(chunk), len(results))
        for result in results:
            _count(found, TRIPS, result, "activity")
        city.tick(start_row + len(chunk), len(rows))
    return f"the last {len(trips):,} trips, {len(riders)} riders"


def _places(path: Path) -> dict[str, tuple[float, float]]:
    with path.open(encoding="utf-8", newline="") as file:
        return {
            row["id"]: (float(row["latitude"]), float(row["longitude"]))
            for row in csv.DictReader(file)
            if row["latitude"] and row["longitude"]
        }


def _trips(path: Path) -> list[tuple[datetime, datetime, str, str]]:
    """The last trips of the file by start time."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        found = [
            (
                _trip_time(row["Start time"]),
                _trip_time(row["End time"]),
                row["Start station"],
                row["End station"],
            )
            for row in csv.DictReader(file)
        ]
    return sorted(found, key=lambda trip: trip[0])[-TRIPS_MAX:]


def _trip_time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S %z")


def _riders(
    trips: list[tuple[datetime, datetime, str, str]],
) -> Iterator[tuple[int, tuple[datetime, datetime, str, str]]]:
    """The file names no riders: each trip goes to whoever has been off a bicycle for longest."""
    free: list[tuple[datetime, int]] = []
    riders = 0
    for trip in trips:
        if riders < RIDERS_MAX and not (free and free[0][0] <= trip[0]):
            riders += 1
            rider = riders
        else:
            _, rider = heapq.heappop(free)
        yield rider, trip
        # A bicycle that was never locked does not keep its rider for days.
        heapq.heappush(free, (min(trip[1], trip[0] + timedelta(hours=2)), rider))


def _moved(instant: datetime, shift: timedelta) -> str:
    """The same time on the wall, in the city, on the shifted day."""
    return (instant.replace(tzinfo=clock.CITY) + shift).isoformat()


def _haversine_km(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Straight over the ground; the ridden way is longer."""
    (lat_1, lon_1), (lat_2, lon_2) = (tuple(map(radians, place)) for place in (one, other))
    half = sin((lat_2 - lat_1) / 2) ** 2
    half += cos(lat_1) * cos(lat_2) * sin((lon_2 - lon_1) / 2) ** 2
    return 2 * EARTH_KM * asin(sqrt(half))


def _enter_rider(city: City, rider: str) -> Person:
    number = int(rider.rpartition("-")[2])
    person, _ = residents.enter_by_phone(city, number, RIDER_PHONE.format(number))
    residents.link(city, person, rider)
    return person


# --- meters ------------------------------------------------------------------------------------


def _play_meters(city: City, found: Found) -> str:
    home, _ = residents.enter_by_phone(city, 0, HOME_PHONE)
    sent = 0
    for carrier, path in found.meters:
        account = f"real-{carrier}"
        wanted = {"carrier": carrier, "account_no": account, "members": 1}
        city.client.call(
            "POST", "/v1/me/households", json=wanted, headers=home.headers, expecting=(201, 409)
        )
        months = _daily_kwh(path) if carrier == "electricity" else _register(path)
        bills = list(_bills(months, city.record.today, carrier, account))
        for start in range(0, len(bills), CHUNK):
            chunk = bills[start : start + CHUNK]
            answer = city.client.post("/v1/feeds/bills", {"bills": chunk}, headers=city.partner)
            expect("results of bills", len(chunk), len(answer["results"]))
            for result in answer["results"]:
                _count(found, carrier, result, "bill")
        sent += len(bills)
        city.tick(sent, sent)
    return f"{sent} monthly bills of {len(found.meters)} meters"


def _daily_kwh(path: Path) -> dict[str, Decimal]:
    """Use by full month: the column is a sum of minute means in kW. The ends are partial days."""
    months: dict[str, Decimal] = {}
    days: Counter[str] = Counter()
    with path.open(encoding="utf-8", newline="") as file:
        for row in list(csv.DictReader(file))[1:-1]:
            month = row["datetime"][:7]
            kwh = Decimal(row["Global_active_power"]) / MINUTES_PER_HOUR
            months[month] = months.get(month, Decimal(0)) + kwh
            days[month] += 1
    return {
        month: used for month, used in months.items() if days[month] == clock.last_day(month).day
    }


def _register(path: Path) -> dict[str, Decimal]:
    """Use by full local month from an hourly register: litres as tonnes, dm3 as m3."""
    readings: dict[str, Decimal] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            at = datetime.fromtimestamp(int(row["unix_ts"]), VANCOUVER)
            if (at.day, at.hour) == (1, 0):
                readings[f"{at:%Y-%m}"] = Decimal(row["counter"])
    return {
        month: (readings[following] - read) / 1000
        for month, read in readings.items()
        if (following := clock.add_months(month, 1)) in readings
    }


def _bills(months: dict[str, Decimal], today: date, carrier: str, account: str) -> Iterator[Row]:
    """Monthly bills, shifted so that the newest is of the last full month."""
    newest = date.fromisoformat(f"{max(months)}-01")
    target = clock.first_day(clock.add_months(clock.month_of(today), -1))
    shift = (target.year - newest.year) * 12 + target.month - newest.month
    for month, used in sorted(months.items()):
        moved = clock.add_months(month, shift)
        yield {
            "carrier": carrier,
            "account_no": account,
            "period_start": clock.first_day(moved).isoformat(),
            "period_end": clock.last_day(moved).isoformat(),
            "quantity": float(round(used, 3)),
            "estimated": False,
            "source_event_id": f"{account}-{month}",
        }


def _count(found: Found, source: str, result: Row, kind: str) -> None:
    """Sort one result under its status and reasons; a refusal under its code."""
    if "problem" in result:
        problem = result["problem"]
        pointer = "".join(error["pointer"] for error in problem.get("errors", [])[:1])
        found.count(source, f"refused: {problem['code']} {pointer}".strip())
        return
    if result["status_code"] == 200:
        found.count(source, "sent before", story.exact(result[kind]["reduction_g"]))
        return
    reasons = " + ".join(reason["code"] for reason in result[kind]["reasons"])
    outcome = f"{result[kind]['status']}: {reasons}" if reasons else result[kind]["status"]
    found.count(source, outcome, story.exact(result[kind]["reduction_g"]))
