"""Readings come in: out of order, late, twice, wrong. Each row has its own end.

The days a call touches are read together, the rows laid into the free slots, and the days written
back with a guard on the version that was read; who lost a race lays its rows in anew. The first
reading of a slot stays; another value for it is kept beside as a conflict.
"""

import random
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import mongoengine as me
from pymongo import UpdateOne
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError

from accounting import clock, storage
from accounting.enterprise import plants
from accounting.enterprise.meterdays import collection, day_id
from accounting.enterprise.plants import Kind, Meter
from accounting.enterprise.slots import SLOT_S, SLOTS
from accounting.errors import AccountBusy
from accounting.ids import new_id

ROWS_MAX = 10_000
# How far a gateway's clock may be ahead, and off the slot without a flag.
AHEAD = timedelta(minutes=5)
DRIFT_S = 60
# How long a touched day waits for more readings before it is validated.
DEBOUNCE = timedelta(seconds=60)
ATTEMPTS_MAX = 16
PAUSE_S = 0.005
# Writers that came last, so that one whose answer was lost to a race knows its own.
WRITERS_KEPT = 16
VALUE_MAX = 2**62

ACCEPTED, DUPLICATE, CONFLICT, REJECTED = "accepted", "duplicate", "conflict", "rejected"


@dataclass(frozen=True, slots=True)
class Reading:
    """One row: a number as the meter shows it, at the start of its slot or when it was read."""

    meter: str
    at: datetime
    value: Decimal
    kind: Kind
    # What a file may say besides, to be held against the meter.
    unit: str | None = None
    multiplier: Decimal | None = None


@dataclass(frozen=True, slots=True)
class End:
    """What became of a row: `code` says why it was rejected, `kept` what stands in a conflict."""

    outcome: str
    code: str | None = None
    kept: Decimal | None = None


@storage.indexed
class ConflictDocument(me.Document):
    """A second value for a slot that has one, once for each value."""

    id = me.StringField(primary_key=True)
    plant = me.StringField(required=True)
    meter = me.StringField(required=True)
    at = me.DateTimeField(required=True)

    meta = {
        "collection": "reading_conflicts",
        "auto_create_index": False,
        "indexes": [{"fields": ["plant", "meter", "at"]}],
    }


@dataclass(slots=True)
class _Laid:
    """A day with rows of this call to be laid in."""

    meter: Meter
    day: date
    rows: list[tuple[int, Reading, int, int, int]] = field(default_factory=list)


class _Known:
    """A meter of the plant with what every row of it needs, worked out once a call."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.num, self.den = meter.scale.as_integer_ratio()

    def refusal(self, row: Reading, latest: datetime) -> str | None:
        meter = self.meter
        if row.kind is Kind.INTERVAL and meter.kind is Kind.REGISTER:
            return "wrong_kind"
        if row.unit is not None and row.unit != meter.unit:
            return "wrong_unit"
        if row.multiplier is not None and row.multiplier != meter.multiplier:
            return "wrong_multiplier"
        if row.at > latest:
            return "future_reading"
        if row.kind is Kind.REGISTER and not 0 <= row.value <= meter.modulus:
            return "value_out_of_range"
        if abs(self.amount(row.value)) >= VALUE_MAX:
            return "value_out_of_range"
        return None

    def amount(self, value: Decimal) -> int:
        """In the meter's smallest unit, rounded down once."""
        above, below = value.as_integer_ratio()
        return above * self.num // (below * self.den)


def take(plant_id: str, rows: Sequence[Reading | str]) -> list[End]:
    """Store readings of a plant; what became of each, in order.

    A row that could not be read comes as the code it is rejected with. Raises `AccountBusy`.
    """
    assert len(rows) <= ROWS_MAX, len(rows)
    meters = {meter.meter: _Known(meter) for meter in plants.meters(plant_id)}
    latest = clock.now() + AHEAD
    ends: list[End | None] = [None] * len(rows)
    days: dict[tuple[str, date], _Laid] = {}
    for place, row in enumerate(rows):
        if isinstance(row, str):
            ends[place] = End(REJECTED, row)
            continue
        known = meters.get(row.meter)
        code = "unknown_meter" if known is None else known.refusal(row, latest)
        if code is not None or known is None:
            ends[place] = End(REJECTED, code)
            continue
        day, slot, off = _slot_of(row.at)
        laid = days.get((row.meter, day))
        if laid is None:
            laid = days[(row.meter, day)] = _Laid(known.meter, day)
        laid.rows.append((place, row, slot, off, known.amount(row.value)))
    _store(plant_id, list(days.values()), ends)
    return [end for end in ends if end is not None]


def _slot_of(at: datetime) -> tuple[date, int, int]:
    """The day and slot a reading belongs to, and 0, or its second of the day if it is off.

    Within a minute of a slot's start it is on it; otherwise it stands for the nearest start.
    """
    local = at.astimezone(clock.CITY)
    second = local.hour * 3_600 + local.minute * 60 + local.second
    slot, rest = divmod(second, SLOT_S)
    if rest > SLOT_S // 2:
        slot += 1
    away = abs(second - slot * SLOT_S)
    day = local.date()
    if slot == SLOTS:
        day, slot = day + timedelta(days=1), 0
    return day, slot, second + 1 if away > DRIFT_S else 0


def _store(plant_id: str, days: Sequence[_Laid], ends: list[End | None]) -> None:
    """Lay the rows in, a round trip to read and one to write, again for days that lost a race."""
    writer = new_id("wrt")
    left = {day_id(plant_id, one.meter.meter, one.day): one for one in days}
    for attempt in range(ATTEMPTS_MAX):
        found = {
            row["_id"]: row for row in collection().find({"_id": {"$in": list(left)}}, _RAW_FIELDS)
        }
        changes: list[UpdateOne] = []
        waiting: dict[str, _Laid] = {}
        conflicts: list[storage.Doc] = []
        for identity, laid in left.items():
            held = found.get(identity)
            if held is not None and writer in held.get("writers", ()):
                continue  # Our own write of the round before.
            change = _lay(plant_id, identity, laid, held, writer, ends, conflicts)
            if change is not None:
                changes.append(change)
                waiting[identity] = laid
        # A conflict is kept before the answer that tells of it.
        storage.insert_new(_conflicts(), conflicts)
        if not changes or _write(changes) == len(changes):
            return
        left = waiting
        time.sleep(random.uniform(0, PAUSE_S) * 2 ** min(attempt, 5))
    raise AccountBusy(retry_after=1)


def _write(changes: list[UpdateOne]) -> int:
    try:
        result = collection().bulk_write(changes, ordered=False)
    except BulkWriteError as error:
        # Somebody made the day, or changed it: the upsert then meets its id.
        if any(one["code"] != 11_000 for one in error.details["writeErrors"]):
            raise
        return int(error.details["nMatched"]) + int(error.details["nUpserted"])
    return result.matched_count + result.upserted_count


def _lay(
    plant_id: str,
    identity: str,
    laid: _Laid,
    held: storage.Doc | None,
    writer: str,
    ends: list[End | None],
    conflicts: list[storage.Doc],
) -> UpdateOne | None:
    """The write that puts rows into the free slots of a day; None when it has them all."""
    stored = held or {}
    channels: dict[Kind, list[int | None]] = {}
    offs: dict[Kind, dict[str, int]] = {}
    fresh = False
    for place, row, slot, off, amount in laid.rows:
        kind = row.kind
        if off:
            if kind not in offs:
                offs[kind] = dict(stored.get(_OFF[kind]) or {})
            there = offs[kind].get(str(off))
        else:
            if kind not in channels:
                channels[kind] = list(stored.get(_CHANNEL[kind]) or [None] * SLOTS)
            there = channels[kind][slot]
        if there is None:
            if off:
                offs[kind][str(off)] = amount
            else:
                channels[kind][slot] = amount
            ends[place] = End(ACCEPTED)
            fresh = True
        elif there == amount:
            ends[place] = End(DUPLICATE)
        else:
            kept = Decimal(there * laid.meter.scale.denominator) / laid.meter.scale.numerator
            ends[place] = End(CONFLICT, "conflicting_reading", kept)
            conflicts.append(_conflict(plant_id, row, identity, slot, off, amount))
    if not fresh:
        return None
    now = clock.now()
    fields: dict[str, Any] = {_CHANNEL[kind]: values for kind, values in channels.items()}
    fields |= {_OFF[kind]: values for kind, values in offs.items()}
    if not stored.get("vee_due_at"):
        fields["vee_due_at"] = now + DEBOUNCE
    version = stored.get("version", 0)
    if held is None:
        fields |= {"plant": plant_id, "meter": laid.meter.meter, "day": laid.day.isoformat()}
    return UpdateOne(
        {"_id": identity, "version": version} if held else {"_id": identity, "version": -1},
        {
            "$set": fields | {"version": version + 1},
            "$push": {"writers": {"$each": [writer], "$slice": -WRITERS_KEPT}},
        },
        upsert=held is None,
    )


def _conflict(
    plant_id: str, row: Reading, identity: str, slot: int, off: int, amount: int
) -> storage.Doc:
    return {
        "_id": f"{identity}/{row.kind.value}/{slot}/{off}/{amount}",
        "plant": plant_id,
        "meter": row.meter,
        "at": row.at,
        "kind": row.kind.value,
        "value": str(row.value),
        "amount": amount,
        "received_at": clock.now(),
    }


def conflicts_of(
    plant_id: str, meter: str, first: datetime, end: datetime, limit: int
) -> list[storage.Doc]:
    """The second values that came for slots of a meter in `[first, end)`."""
    wanted = {"plant": plant_id, "meter": meter, "at": {"$gte": first, "$lt": end}}
    return list(_conflicts().find(wanted).sort("at", 1).limit(limit))


def accepted(ends: Iterable[End]) -> dict[str, int]:
    """How many rows came to each end."""
    counts: dict[str, int] = defaultdict(int)
    for end in ends:
        counts[end.outcome] += 1
    return counts


_CHANNEL = {Kind.INTERVAL: "raw", Kind.REGISTER: "reads"}
_OFF = {Kind.INTERVAL: "off_raw", Kind.REGISTER: "off_reads"}
_RAW_FIELDS = dict.fromkeys(
    ("version", "vee_due_at", "writers", *_CHANNEL.values(), *_OFF.values()), 1
)


def _conflicts() -> "Collection[storage.Doc]":
    return storage.strong(ConflictDocument._get_collection())
