"""The day's files, read and put on the calendar: days back from an anchor become instants.

Only this module knows both spellings: `day`, `at` and `minutes` of the files, `occurred_at` and
`ended_at` of the API. The anchor is kept with the data, so the same event always has the same time.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from accounting import clock
from api.demo import story

Row = dict[str, Any]

MALFORMED = "malformed_row"
INVALID = "validation_failed"
CONFLICT = "source_event_conflict"
REFUSED = frozenset({MALFORMED, INVALID, CONFLICT})


@dataclass(frozen=True)
class Calendar:
    """Turns days and months back into dates; `today` is the city day of the first run."""

    today: date

    def instant(self, days_back: int, at: str) -> datetime:
        day = self.today - timedelta(days=days_back)
        return datetime.combine(day, time.fromisoformat(at), clock.CITY)

    def month(self, text: str) -> str:
        """`m-1` is the last full month before the anchor."""
        back = int(text.removeprefix("m-"))
        return clock.add_months(clock.month_of(self.today), -back)

    def told(self, row: Row) -> Row:
        """A row of the files as the API takes it."""
        found = {name: value for name, value in row.items() if name not in ("day", "at", "minutes")}
        start = self.instant(row["day"], row["at"])
        found["occurred_at"] = start.isoformat()
        if "minutes" in row:
            found["ended_at"] = (start + timedelta(minutes=row["minutes"])).isoformat()
        return found


@dataclass(frozen=True)
class FeedFile:
    """A partner's file as it is handed over, and what must be refused in it, by code."""

    name: str
    media_type: str
    body: bytes
    rows: int
    refused: Counter[str]


@dataclass(frozen=True)
class DayInput:
    """Everything the built-in day consists of."""

    folder: Path
    calendar: Calendar

    @cached_property
    def people(self) -> Row:
        found: Row = json.loads(self._text("people.json"))
        return found

    def who(self, role: str) -> list[int]:
        """The residents of a role, numbered from 1."""
        return [one["who"] for one in self.people["residents"] if one["role"] == role]

    def app(self) -> dict[int, list[Row]]:
        """What each resident's phone reports, in order, as the API takes it."""
        found: dict[int, list[Row]] = {}
        for row in map(json.loads, self._lines("app.ndjson")):
            who, by, event = row.pop("who"), row.pop("by"), row.pop("id")
            told = self.calendar.told(row) | {"source_event_id": event}
            evidence = {"kind": "sensor", "recorder": "pedometer", "manual": True}
            if by != "manual":
                evidence = {"kind": "sensor", "recorder": by}
            found.setdefault(who, []).append(told | {"evidence": evidence})
        return found

    def batch(self) -> list[Row]:
        return [self.calendar.told(json.loads(line)) for line in self._lines("batch.ndjson")]

    @cached_property
    def event_ids(self) -> set[str]:
        """The ids of all events of the day, whoever reports them."""
        found = {json.loads(line)["id"] for line in self._lines("app.ndjson")}
        for name in ("batch.ndjson", "feed.ndjson"):
            rows = map(_json, self._lines(name))
            found |= {row["source_event_id"] for row in rows if row is not None}
        table = csv.reader(io.StringIO(self._text("feed.csv")))
        return found | {cells[0] for cells in table}

    def rides_of(self, card: str) -> list[Row]:
        """The partner's good rows of one card, streamed or in the file."""
        lines = map(_json, [*self._lines("batch.ndjson"), *self._lines("feed.ndjson")])
        return [
            row
            for row in lines
            if row is not None and row["external_id"] == card and row["quantity"] > 0
        ]

    def files(self, known: set[str]) -> list[FeedFile]:
        """The partner's two files; `known` are the behaviours of the methodology."""
        return [self._ndjson(known), self._csv(known)]

    def bills(self) -> list[Row]:
        """Bills as the API takes them; every one covers a calendar month."""
        found = []
        for row in csv.DictReader(io.StringIO(self._text("bills.csv"))):
            month = self.calendar.month(row.pop("month"))
            bill: Row = {
                **{name: value for name, value in row.items() if value},
                "quantity": json.loads(row["quantity"]),
                "estimated": row["estimated"] == "true",
                "period_start": clock.first_day(month).isoformat(),
                "period_end": clock.last_day(month).isoformat(),
            }
            found.append(bill)
        return found

    def _ndjson(self, known: set[str]) -> FeedFile:
        told: list[Row | None] = []
        lines = []
        for line in self._lines("feed.ndjson"):
            row = _json(line)
            told.append(None if row is None else self.calendar.told(row))
            lines.append(line if row is None else json.dumps(told[-1]))
        body = "".join(f"{line}\n" for line in lines).encode()
        return FeedFile(
            "feed.ndjson", "application/x-ndjson", body, len(told), refused(told, known)
        )

    def _csv(self, known: set[str]) -> FeedFile:
        reader = csv.reader(io.StringIO(self._text("feed.csv")))
        header = next(reader)
        place = {name: number for number, name in enumerate(header)}
        columns = ["occurred_at" if name == "at" else name for name in header if name != "day"]
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(columns)
        told: list[Row | None] = []
        for cells in reader:
            if len(cells) != len(header):
                writer.writerow(cells)
                told.append(None)
                continue
            at = self.calendar.instant(int(cells[place["day"]]), cells[place["at"]])
            cells[place["at"]] = at.isoformat()
            if month := cells[place["billing_month"]]:
                cells[place["billing_month"]] = self.calendar.month(month)
            del cells[place["day"]]
            writer.writerow(cells)
            row: Row = dict(zip(columns, cells, strict=True))
            told.append(row | {"quantity": _json(row["quantity"])})
        body = buffer.getvalue().encode()
        return FeedFile("feed.csv", "text/csv", body, len(told), refused(told, known))

    def _text(self, name: str) -> str:
        return (self.folder / name).read_text("utf-8")

    def _lines(self, name: str) -> list[str]:
        return self._text(name).splitlines()


def built_in(calendar: Calendar) -> DayInput:
    """The day that comes with Tanhui."""
    return DayInput(story.DAY, calendar)


def refused(rows: Iterable[Row | None], known: set[str]) -> Counter[str]:
    """Which rows of a file must be refused, by code; None is a line that is no row.

    Worked out from the input alone: unknown behaviours, quantities that are not above zero, and ids
    that came before with other content.
    """
    found: Counter[str] = Counter()
    seen: dict[str, Row] = {}
    for row in rows:
        if row is None:
            found[MALFORMED] += 1
            continue
        quantity = row["quantity"]
        if row["behaviour"] not in known or not isinstance(quantity, int | float) or quantity <= 0:
            found[INVALID] += 1
        elif seen.setdefault(row["source_event_id"], row) != row:
            found[CONFLICT] += 1
    return found


def _json(text: str) -> Any:
    """The value, or None for what is not JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return None
