"""Readings come in: out of order, late, twice, wrong. Each row has its own end.

The days a call touches are read together, the rows laid into the free slots, and the days written
back with a guard on the version that was read; who lost a race lays its rows in anew. The first
reading of a slot stays; another value for it is kept beside as a conflict.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from operator import attrgetter

import mongoengine as me
import numpy as np
import numpy.typing as npt
from pymongo import InsertOne, UpdateOne
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError

from accounting import clock, quantities, storage
from accounting.enterprise import meters
from accounting.enterprise.meterdays import collection, day_id
from accounting.enterprise.meters import Kind, Meter
from accounting.enterprise.screening import AMOUNT_MAX
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
# Writers that came last, so that one whose answer was lost to a race knows its own.
WRITERS_KEPT = 16
# So many new slots of a stored day are written one by one, more as the whole row.
SINGLE_MAX = 8
# Since 1992 the city's clock is eight hours ahead, with no summer time: days are plain arithmetic.
PLAIN_FROM = date(1992, 1, 1)
_AHEAD_S, _DAY_S = 8 * 3_600, 86_400
_EPOCH = date(1970, 1, 1).toordinal()

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


_ACCEPTED, _DUPLICATE = End(ACCEPTED), End(DUPLICATE)


@dataclass(frozen=True, slots=True)
class Columns:
    """Rows as columns: instants in seconds (from `PLAIN_FROM` on), numbers in millionths.

    What a gateway sends ten thousand of is never made an object each.
    """

    meters: Sequence[str]
    seconds: npt.NDArray[np.int64]
    micros: npt.NDArray[np.int64]
    registers: npt.NDArray[np.bool_]

    def reading(self, place: int) -> Reading:
        return Reading(
            self.meters[place],
            datetime.fromtimestamp(int(self.seconds[place]), UTC),
            quantities.from_micro(int(self.micros[place])),
            Kind.REGISTER if self.registers[place] else Kind.INTERVAL,
        )


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
        "indexes": [{"fields": ["plant", "meter", "at", "_id"]}],
    }


@dataclass(frozen=True, slots=True)
class Conflict:
    """A value as it was sent, in the meter's unit before its multiplier; the first one holds."""

    id: str
    at: datetime
    kind: str
    value: Decimal
    received_at: datetime


@dataclass(slots=True)
class _Laid:
    """A day with rows of this call to be laid in, column by column in the order they came."""

    meter: Meter
    day: date
    places: list[int] = field(default_factory=list)
    registers: list[bool] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    offs: list[int] = field(default_factory=list)
    amounts: list[int] = field(default_factory=list)


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
        if abs(self.amount(row.value)) >= AMOUNT_MAX:
            return "value_out_of_range"
        return None

    def amount(self, value: Decimal) -> int:
        """In the meter's smallest unit, rounded down once."""
        above, below = value.as_integer_ratio()
        return above * self.num // (below * self.den)

    def amounts(
        self, micros: npt.NDArray[np.int64], registers: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.int64] | None:
        """The same for many numbers in millionths; None if one of them has to be looked at."""
        most = max(int(micros.max()), -int(micros.min()))
        num, den = (self.meter.scale / 10**quantities.PLACES_MAX).as_integer_ratio()
        if most * num >= 2**63 or most * num >= AMOUNT_MAX * den:
            return None
        if self.meter.kind is Kind.REGISTER and not registers.all():
            return None
        if registers.any():
            shown = micros[registers]
            if int(shown.min()) < 0 or int(shown.max()) > quantities.micro(self.meter.modulus):
                return None
        return micros * num // den


def take(plant_id: str, rows: Sequence[Reading | str]) -> list[End]:
    """Store readings of a plant; what became of each, in order.

    A row that could not be read comes as the code it is rejected with. Raises `AccountBusy`.
    """
    assert len(rows) <= ROWS_MAX, len(rows)
    known = _known(plant_id, {row.meter for row in rows if isinstance(row, Reading)})
    latest = clock.now() + AHEAD
    ends = [_ACCEPTED] * len(rows)
    days: dict[tuple[str, date], _Laid] = {}
    for place, row in enumerate(rows):
        if isinstance(row, str):
            ends[place] = End(REJECTED, row)
            continue
        meter = known.get(row.meter)
        code = "unknown_meter" if meter is None else meter.refusal(row, latest)
        if code is not None or meter is None:
            ends[place] = End(REJECTED, code)
            continue
        day, slot, off = _slot_of(row.at)
        laid = days.get((row.meter, day))
        if laid is None:
            laid = days[(row.meter, day)] = _Laid(meter.meter, day)
        laid.places.append(place)
        laid.registers.append(row.kind is Kind.REGISTER)
        laid.slots.append(slot)
        laid.offs.append(off)
        laid.amounts.append(meter.amount(row.value))

    def sent(place: int) -> Reading:
        row = rows[place]
        assert isinstance(row, Reading), "what was rejected is not laid in"
        return row

    _store(plant_id, list(days.values()), ends, sent)
    return ends


def take_columns(plant_id: str, rows: Columns) -> list[End] | None:
    """As `take` for rows without anything to refuse; None if there is, and nothing was stored."""
    assert 0 < len(rows.meters) <= ROWS_MAX, len(rows.meters)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(rows.meters))}
    known = _known(plant_id, numbers)
    latest = int((clock.now() + AHEAD).timestamp())
    if len(known) < len(numbers) or int(rows.seconds.max()) > latest:
        return None
    day, second = np.divmod(rows.seconds + _AHEAD_S, _DAY_S)
    slot, rest = np.divmod(second, SLOT_S)
    slot += rest > SLOT_S // 2
    off = np.where(np.abs(second - slot * SLOT_S) > DRIFT_S, second + 1, 0)
    day += slot == SLOTS
    slot[slot == SLOTS] = 0
    whose = np.fromiter(map(numbers.__getitem__, rows.meters), np.int64, len(rows.meters))
    # By meter and day; within a day in the order they came.
    group = (whose << 32) + day
    order = np.argsort(group, kind="stable")
    group = group[order]
    registers, micros = rows.registers[order], rows.micros[order]
    amounts = np.empty_like(micros)
    for name, part in zip(numbers, _runs(group >> 32), strict=True):
        made = known[name].amounts(micros[part], registers[part])
        if made is None:
            return None
        amounts[part] = made
    days = []
    names = list(numbers)
    for part in _runs(group):
        number, place = divmod(int(group[part.start]), 1 << 32)
        days.append(
            _Laid(
                known[names[number]].meter,
                date.fromordinal(_EPOCH + place),
                places=order[part].tolist(),
                registers=registers[part].tolist(),
                slots=slot[order[part]].tolist(),
                offs=off[order[part]].tolist(),
                amounts=amounts[part].tolist(),
            )
        )
    ends = [_ACCEPTED] * len(rows.meters)
    _store(plant_id, days, ends, rows.reading)
    return ends


def _runs(ordered: npt.NDArray[np.int64]) -> list[slice]:
    """Where an ordered column has the same value."""
    edges = [0, *(np.flatnonzero(np.diff(ordered)) + 1).tolist(), len(ordered)]
    return [slice(start, end) for start, end in pairwise(edges)]


def _known(plant_id: str, names: Iterable[str]) -> dict[str, _Known]:
    """Those of the named meters that the plant has."""
    return {meter.meter: _Known(meter) for meter in meters.named(plant_id, names)}


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


def _store(
    plant_id: str,
    days: Sequence[_Laid],
    ends: list[End],
    sent: Callable[[int], Reading],
) -> None:
    """Lay the rows in, a round trip to read and one to write, again for days that lost a race.

    `ends` says of each row that it was accepted, until something else becomes of it.
    """
    writer = new_id("wrt")
    left = {day_id(plant_id, one.meter.meter, one.day): one for one in days}
    for attempt in range(ATTEMPTS_MAX):
        found = {
            row["_id"]: row for row in collection().find({"_id": {"$in": list(left)}}, _RAW_FIELDS)
        }
        changes: list[_Change] = []
        waiting: dict[str, _Laid] = {}
        conflicts: list[storage.Doc] = []
        for identity, laid in left.items():
            held = found.get(identity)
            if held is not None and writer in held.get("writers", ()):
                continue  # Our own write of the round before.
            lay = _Lay(plant_id, identity, laid, held or {})
            for place, slot, off, amount in lay.rows(ends):
                conflicts.append(_conflict(plant_id, sent(place), identity, slot, off, amount))
            if lay.fresh:
                changes.append(lay.change(writer))
                waiting[identity] = laid
        # A conflict is kept before the answer that tells of it.
        storage.insert_new(_conflicts(), conflicts)
        if not changes or _write(changes) == len(changes):
            return
        left = waiting
        storage.pause(attempt)
    raise AccountBusy(retry_after=1)


_Change = InsertOne[storage.Doc] | UpdateOne


def _write(changes: Sequence[_Change]) -> int:
    try:
        result = collection().bulk_write(changes, ordered=False)
    except BulkWriteError as error:
        # Somebody made the day meanwhile.
        if any(one["code"] != storage.DUPLICATE for one in error.details["writeErrors"]):
            raise
        return int(error.details["nMatched"]) + int(error.details["nInserted"])
    return result.matched_count + result.inserted_count


class _Lay:
    """Rows laid into a day as it is stored, and the write that keeps them."""

    def __init__(self, plant_id: str, identity: str, laid: _Laid, stored: storage.Doc) -> None:
        self.plant_id, self.identity, self.laid, self.stored = plant_id, identity, laid, stored
        # New slots of both channels, and new readings off their slot, by second of the day.
        self.slots: tuple[dict[int, int], dict[int, int]] = {}, {}
        self.offs: tuple[dict[str, int], dict[str, int]] = {}, {}

    @property
    def fresh(self) -> bool:
        return any(self.slots) or any(self.offs)

    def rows(self, ends: list[End]) -> list[tuple[int, int, int, int]]:
        """Say what becomes of each row; those in conflict are given back."""
        stored, laid, scale = self.stored, self.laid, self.laid.meter.scale
        if not stored and not any(laid.offs) and len({*laid.registers}) == 1:
            fresh = dict(zip(laid.slots, laid.amounts, strict=True))
            if len(fresh) == len(laid.slots):
                self.slots[laid.registers[0]].update(fresh)
                return []
        channels = [stored.get(name) or _NOTHING for name in _CHANNELS]
        there_off: list[Mapping[str, int]] = [stored.get(name) or {} for name in _OFFS]
        conflicts = []
        for place, register, slot, off, amount in zip(
            laid.places, laid.registers, laid.slots, laid.offs, laid.amounts, strict=True
        ):
            if off:
                key = str(off)
                there = there_off[register].get(key, self.offs[register].get(key))
            else:
                there = channels[register][slot]
                if there is None:
                    there = self.slots[register].get(slot)
            if there is None:
                if off:
                    self.offs[register][key] = amount
                else:
                    self.slots[register][slot] = amount
                ends[place] = _ACCEPTED
            elif there == amount:
                ends[place] = _DUPLICATE
            else:
                kept = Decimal(there * scale.denominator) / scale.numerator
                ends[place] = End(CONFLICT, "conflicting_reading", kept)
                conflicts.append((place, slot, off, amount))
        return conflicts

    def change(self, writer: str) -> _Change:
        stored, fields = self.stored, self._fields()
        if not stored.get("vee_due_at"):
            fields["vee_due_at"] = clock.now() + DEBOUNCE
        if not stored:
            return InsertOne(
                {
                    "_id": self.identity,
                    "plant": self.plant_id,
                    "meter": self.laid.meter.meter,
                    "day": self.laid.day.isoformat(),
                    "version": 1,
                    "writers": [writer],
                    **fields,
                }
            )
        version = stored["version"]
        fields["version"] = version + 1
        fields["writers"] = [*stored.get("writers", ()), writer][-WRITERS_KEPT:]
        return UpdateOne({"_id": self.identity, "version": version}, {"$set": fields})

    def _fields(self) -> storage.Doc:
        fields: storage.Doc = {}
        for name, fresh in zip(_CHANNELS, self.slots, strict=True):
            held = self.stored.get(name)
            if held and len(fresh) <= SINGLE_MAX:
                fields |= {f"{name}.{slot}": amount for slot, amount in fresh.items()}
            elif len(fresh) == SLOTS:
                fields[name] = [fresh[slot] for slot in range(SLOTS)]
            elif fresh:
                row = list(held or _NOTHING)
                for slot, amount in fresh.items():
                    row[slot] = amount
                fields[name] = row
        for name, told in zip(_OFFS, self.offs, strict=True):
            if told:
                fields[name] = (self.stored.get(name) or {}) | told
        return fields


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
    plant_id: str, meter: str, *, before: tuple[datetime, str] | None, limit: int
) -> list[Conflict]:
    """The second values that came for slots of a meter, the newest slot first."""
    wanted: storage.Doc = {"plant": plant_id, "meter": meter}
    if before is not None:
        at, last = before
        wanted["$or"] = [{"at": {"$lt": at}}, {"at": at, "_id": {"$lt": last}}]
    found = _conflicts().find(wanted).sort([("at", -1), ("_id", -1)]).limit(limit)
    return [
        Conflict(row["_id"], row["at"], row["kind"], Decimal(row["value"]), row["received_at"])
        for row in found
    ]


def accepted(ends: Iterable[End]) -> Mapping[str, int]:
    """How many rows came to each end."""
    return Counter(map(attrgetter("outcome"), ends))


# Intervals, and readings of a register: `False` and `True` of a row's `registers`.
_CHANNELS, _OFFS = ("raw", "reads"), ("off_raw", "off_reads")
_NOTHING: Sequence[None] = (None,) * SLOTS
_RAW_FIELDS = dict.fromkeys(("version", "vee_due_at", "writers", *_CHANNELS, *_OFFS), 1)


def _conflicts() -> "Collection[storage.Doc]":
    return storage.strong(ConflictDocument._get_collection())
