"""Validation of the days that were touched: the queue, its debounce, and what hangs on a day.

A day's validated layer depends on its neighbours, so a touched day takes along the days that looked
at it. Every write is guarded by what was read (`version` of the raw layer, `passes` of the
validation); the mark of a touched day goes last, when all that hangs on it is written.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

from pymongo import UpdateOne
from pymongo.errors import BulkWriteError

from accounting import clock, storage
from accounting.enterprise import meterdays, meters, vee, workdays
from accounting.enterprise.meterdays import Mark, collection, day_id, layer_of
from accounting.enterprise.meters import Kind, Meter
from accounting.enterprise.registers import Change
from accounting.enterprise.screening import HISTORY_DAYS
from accounting.enterprise.slots import EMPTY, SLOT, SLOT_S, SLOTS
from accounting.enterprise.vee import RawDay, Terms, Validated
from accounting.errors import AccountBusy

# Due days that are validated in one go, of one meter; and days a sweep takes.
TOGETHER_DAYS = 120
SWEEP_MAX = 2_000
ATTEMPTS_MAX = 8
_DAY = timedelta(days=1)
# The queues a day joins when its validated layer changes.

log = logging.getLogger(__name__)

# Days of one meter that are due, in order.
Due = tuple[Meter, list[date]]


def sweep(now: datetime, limit: int = SWEEP_MAX) -> int:
    """Validate days whose wait is over, the longest waiting first; returns how many were due."""
    wanted = {"vee_due_at": meterdays.due_by(now)}
    found = collection().find(wanted, _WHOSE).sort("vee_due_at", 1).limit(limit)
    return _validate_all(found, patient=True)


def catch_up(plant_id: str, first: date, last: date, meter: str | None = None) -> int:
    """Validate at once whatever was sent and could change days in `[first, last]`.

    Raises `AccountBusy` when others keep changing the same days.
    """
    first, last = first - vee.BEFORE * _DAY, last + vee.AFTER * _DAY
    wanted: storage.Doc = {"vee_due_at": {"$type": "date"}}
    if meter is not None:
        between = {"$gte": day_id(plant_id, meter, first), "$lte": day_id(plant_id, meter, last)}
        wanted["_id"] = between
    else:
        wanted |= {"plant": plant_id, "day": {"$gte": first.isoformat(), "$lte": last.isoformat()}}
    return _validate_all(collection().find(wanted, _WHOSE), patient=False)


def touch(plant_id: str, meter: str) -> None:
    """Let every day of a meter be validated anew: what is known of the meter itself changed."""
    now = clock.now()
    wanted = {"_id": {"$gte": f"{plant_id}/{meter}/", "$lt": f"{plant_id}/{meter}0"}}
    collection().update_many(wanted, {"$set": {"vee_due_at": now}, "$inc": {"version": 1}})


def _validate_all(rows: Iterable[storage.Doc], *, patient: bool) -> int:
    """Validate due days, many meters to a round trip.

    What others keep changing stays due, or raises `AccountBusy` for those who cannot wait.
    """
    count = 0
    for batch in _batches(_by_meter(rows)):
        count += sum(len(due) for _, due in batch)
        if _try(batch):
            continue
        for one in batch:
            try:
                _validate(one)
            except AccountBusy:
                if not patient:
                    raise
                log.info("%s/%s is being written, it stays due", one[0].plant, one[0].meter)
    return count


def _batches(dues: Iterable[Due]) -> Iterator[list[Due]]:
    """Few enough days to hold, and a meter only once: its days hang together."""
    batch: list[Due] = []
    size = 0
    for meter, due in dues:
        if batch and (size + len(due) > TOGETHER_DAYS or batch[-1][0] == meter):
            yield batch
            batch, size = [], 0
        batch.append((meter, due))
        size += len(due)
    if batch:
        yield batch


def _by_meter(rows: Iterable[storage.Doc]) -> Iterator[Due]:
    """Due days by meter, so many that one run can hold them."""
    due: dict[tuple[str, str], list[date]] = defaultdict(list)
    for row in rows:
        due[row["plant"], row["meter"]].append(date.fromisoformat(row["day"]))
    by_plant: dict[str, dict[str, Meter]] = {}
    for (plant_id, name), days in due.items():
        if plant_id not in by_plant:
            by_plant[plant_id] = {one.meter: one for one in meters.of_plant(plant_id)}
        for together in meterdays.stretches(days, TOGETHER_DAYS):
            yield by_plant[plant_id][name], together


def _validate(one: Due) -> None:
    """Raises `AccountBusy` when others keep changing the same days; they stay due."""
    for attempt in range(ATTEMPTS_MAX):
        if _try([one]):
            return
        storage.pause(attempt)
    raise AccountBusy(retry_after=1)


def _try(batch: Sequence[Due]) -> bool:
    """Validate once; False if any of the days changed meanwhile, which then stay due."""
    loaded = _load(batch)
    now = clock.now()
    own: list[UpdateOne] = []
    others: list[UpdateOne] = []
    for meter, due in batch:
        found = loaded[meter.plant, meter.meter]
        if found:
            for day, validated in _validated(meter, due, found):
                change = _change(meter, day, found.get(day), validated, now, day in due)
                if change is not None:
                    (own if day in due else others).append(change)
    return _write(others) and _write(own)


def _validated(
    meter: Meter, due: Sequence[date], found: dict[date, storage.Doc]
) -> Iterator[tuple[date, Validated]]:
    """The due days of a meter and those that looked at them, as they come out now."""
    first, length = min(found), (max(found) - min(found)).days + 1
    targets = _targets({*due}, found)
    begin = clock.start_of(first)
    done = vee.validate(
        terms_of(meter),
        [raw_day(found.get(first + number * _DAY)) for number in range(length)],
        [(day - first).days for day in targets],
        kinds=[workdays.kind_of(first + number * _DAY) for number in range(length)],
        changes=[
            Change(-(-int((one.at - begin).total_seconds()) // SLOT_S), one.old_last, one.new_first)
            for one in meter.changes
            if one.at > begin
        ],
    )
    return zip(targets, done, strict=True)


def _load(batch: Sequence[Due]) -> dict[tuple[str, str], dict[date, storage.Doc]]:
    """Whatever the due days of these meters, and those that look at them, depend on."""
    reach = (vee.BEFORE + vee.AFTER) * _DAY
    ranges = [
        {
            "_id": {
                "$gte": day_id(meter.plant, meter.meter, due[0] - reach),
                "$lte": day_id(meter.plant, meter.meter, due[-1] + reach),
            }
        }
        for meter, due in batch
    ]
    loaded: dict[tuple[str, str], dict[date, storage.Doc]] = defaultdict(dict)
    for row in collection().find({"$or": ranges}, {"writers": 0}):
        loaded[row["plant"], row["meter"]][date.fromisoformat(row["day"])] = row
    return loaded


def _targets(due: set[date], found: dict[date, storage.Doc]) -> list[date]:
    """The due days, and those whose layer looked at one of them."""
    known = {day.toordinal(): row for day, row in found.items()}
    looked, near, around = set[int](), set[int](), set[int]()
    for day in due:
        at = day.toordinal()
        looked.update(range(at - vee.AFTER, at + vee.BEFORE + 1))
        near.update((at - 1, *range(at + 1, at + HISTORY_DAYS + 1)))
        around.update(range(at - vee.AFTER, at + vee.AFTER + 1))
    wanted = set(due)
    for at in looked.intersection(range(min(known), max(known) + 1)):
        row = known.get(at)
        if row is None:
            # A hole between days: a gap that may have found its other end.
            touched = at in around
        else:
            quality = row.get("quality", "M")
            touched = at in near or "M" in quality or "E" in quality
        if touched:
            wanted.add(date.fromordinal(at))
    return sorted(wanted)


def _change(
    meter: Meter,
    day: date,
    held: storage.Doc | None,
    made: Validated,
    now: datetime,
    due: bool,
) -> UpdateOne | None:
    identity = day_id(meter.plant, meter.meter, day)
    if held is None:
        if made.values == EMPTY:
            return None
        whose = {"plant": meter.plant, "meter": meter.meter, "day": day.isoformat()}
        layer = {name: one for name, one in layer_of(None, made).items() if one is not None}
        fields = {**whose, **layer, "version": 0, "passes": 1, "validation": 1}
        fields |= dict.fromkeys(Mark, now)
        return UpdateOne({"_id": identity, "version": -1}, {"$set": fields}, upsert=True)
    raw = held.get("raw")
    layer = layer_of(None if raw is None else tuple(raw), made)
    guard = {"_id": identity, "version": held["version"], "passes": held.get("passes")}
    fields, gone = {"passes": (held.get("passes") or 0) + 1}, {}
    changed = {name: one for name, one in layer.items() if held.get(name) != one}
    if changed:
        fields |= {name: one for name, one in changed.items() if one is not None}
        gone = {name: "" for name, one in changed.items() if one is None}
        fields["validation"] = held.get("validation", 0) + 1
        if not changed.keys().isdisjoint(("values", "quality")):
            fields |= dict.fromkeys(Mark, now)
    if due:
        gone["vee_due_at"] = ""
    return UpdateOne(guard, {"$set": fields, "$unset": gone} if gone else {"$set": fields})


def _write(changes: list[UpdateOne]) -> bool:
    """False if one of the days is not what was read any more."""
    if not changes:
        return True
    try:
        result = collection().bulk_write(changes, ordered=False)
    except BulkWriteError as error:
        if any(one["code"] != storage.DUPLICATE for one in error.details["writeErrors"]):
            raise
        return False
    return int(result.matched_count) + int(result.upserted_count) == len(changes)


def raw_day(row: storage.Doc | None) -> RawDay:
    """The raw layer of a stored day."""
    if row is None:
        return vee.NOTHING
    return RawDay(
        values=tuple(row.get("raw") or EMPTY),
        reads=tuple(row.get("reads") or EMPTY),
        off_values=_nearest(row.get("off_raw") or {}),
        off_reads=_nearest(row.get("off_reads") or {}),
        edits={
            int(slot): (edit["value"], edit["above"])
            for slot, edit in (row.get("edits") or {}).items()
        },
    )


def _nearest(off: dict[str, int]) -> dict[int, int]:
    """Readings off their slot by slot: of several the nearest, of two as near the earlier."""
    best: dict[int, tuple[int, int, int]] = {}
    for key, value in off.items():
        # Stored as the second of the day plus one; a slot's end half belongs to the next.
        second = int(key) - 1
        slot, rest = divmod(second, SLOT_S)
        if rest > SLOT_S // 2:
            slot, rest = slot + 1, SLOT_S - rest
        slot %= SLOTS
        candidate = (rest, second, value)
        if slot not in best or candidate < best[slot]:
            best[slot] = candidate
    return {slot: value for slot, (_, _, value) in best.items()}


def terms_of(meter: Meter) -> Terms:
    """What VEE has to know of a meter."""
    ceiling = None
    if meter.rated_kw is not None and meter.carrier == "electricity":
        # kW over a quarter of an hour, in Wh.
        ceiling = int(meter.rated_kw * 1_000 / Decimal(4))
    slots: dict[int, set[int]] = defaultdict(set)
    for shift in meter.shifts:
        for weekday in shift.weekdays:
            slots[weekday].update(range(-(-shift.start_minute // 15), shift.end_minute // 15))
    return Terms(
        register=meter.kind is Kind.REGISTER,
        unit=max(1, int(meter.scale)),
        modulus=int(Fraction(meter.modulus) * meter.scale),
        ceiling=ceiling,
        interval_slots=meter.interval_minutes * 60 // int(SLOT.total_seconds()),
        shifts={weekday: frozenset(those) for weekday, those in slots.items()},
    )


_WHOSE = {"plant": 1, "meter": 1, "day": 1}
