"""Values people set by hand: each with who, when and why; what was sent stays as it is (V3, V23).

An edit fills what has no actual reading. Above an actual one it stands only where somebody says
so, as when the second of two readings was the right one. A later edit of a slot, or taking it back,
ends the one before; the audit keeps them all.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from pymongo import UpdateOne
from pymongo.errors import BulkWriteError

from accounting import audit, clock, storage
from accounting.enterprise import meterdays, validating
from accounting.enterprise.meterdays import MeterDay, collection, day_id
from accounting.enterprise.meters import Meter
from accounting.enterprise.screening import AMOUNT_MAX
from accounting.enterprise.slots import SLOT_S, Quality, start_of_slot
from accounting.errors import AccountBusy, DomainError, ValidationFailed

EDITS_MAX = 1_000
DAYS_MAX = 100
ATTEMPTS_MAX = 5


class ActualStands(DomainError):
    """Facts: at."""

    code = "actual_stands"
    en = (
        "The slot at {at} has an actual reading; an edit stands above it only if that is asked for."
    )
    zh = "{at} 时段已有实际读数；如需以人工数值替代，请明确声明。"


@dataclass(frozen=True, slots=True)
class Edit:
    """A slot by its start, and its quantity in the smallest unit; None takes an edit back."""

    at: datetime
    amount: int | None


def edit(meter: Meter, edits: Sequence[Edit], *, above: bool, by: str, reason: str) -> None:
    """Set slots of a meter by hand; the same again changes nothing but the audit.

    `above` lets an edit stand above an actual reading; without it `ActualStands` is raised for a
    slot that has one. Raises `ValidationFailed` for what is no slot.
    """
    assert 0 < len(edits) <= EDITS_MAX, len(edits)
    now = clock.now()
    by_day: dict[date, dict[int, Edit]] = defaultdict(dict)
    for number, one in enumerate(edits):
        day = clock.city_day(one.at)
        slot, rest = divmod(int((one.at - clock.start_of(day)).total_seconds()), SLOT_S)
        if rest or one.at.microsecond or start_of_slot(day, slot + 1) > now:
            pointer = f"/edits/{number}/at"
            raise ValidationFailed(
                pointer, "Must be the start of a slot that is over.", "须为已结束时段的起点。"
            )
        if one.amount is not None and not 0 <= one.amount < AMOUNT_MAX:
            pointer = f"/edits/{number}/value"
            raise ValidationFailed(pointer, "No such quantity.", "数值超出范围。")
        by_day[day][slot] = one
    first, last = min(by_day), max(by_day)
    if (last - first).days >= DAYS_MAX:
        raise ValidationFailed(
            "/edits", f"At most {DAYS_MAX} days at once.", f"一次最多 {DAYS_MAX} 天。"
        )
    validating.catch_up(meter.plant, first, last, meter.meter)
    before = {one.day: one for one in meterdays.days(meter.plant, [meter.meter], first, last)}
    if not above:
        _refuse_actuals(by_day, before)
    # The audit first: what is done without a trace would be worse than a trace of what was not.
    audit.note(
        by,
        "readings edited",
        f"{meter.plant}/{meter.meter}",
        reason=reason,
        before=_told(by_day, before),
        after={
            one.at.isoformat(): one.amount for slots in by_day.values() for one in slots.values()
        },
    )
    _write(
        [
            _change(meter, day, slots, above=above, by=by, reason=reason, now=now)
            for day, slots in sorted(by_day.items())
        ]
    )


def _write(changes: list[UpdateOne]) -> None:
    for _ in range(ATTEMPTS_MAX):
        try:
            collection().bulk_write(changes, ordered=False)
        except BulkWriteError as error:
            # A gateway made the day meanwhile: it is there now.
            if any(one["code"] != storage.DUPLICATE for one in error.details["writeErrors"]):
                raise
        else:
            return
    raise AccountBusy(retry_after=1)


def _refuse_actuals(by_day: dict[date, dict[int, Edit]], before: dict[date, MeterDay]) -> None:
    for day, slots in by_day.items():
        for slot, one in slots.items():
            actual = before[day].quality_of(slot) is Quality.ACTUAL
            if actual and one.amount is not None:
                raise ActualStands(at=one.at.isoformat())


def _told(by_day: dict[date, dict[int, Edit]], before: dict[date, MeterDay]) -> dict[str, Any]:
    return {
        one.at.isoformat(): {
            "amount": before[day].values[slot],
            "quality": before[day].quality_of(slot).value,
        }
        for day, slots in by_day.items()
        for slot, one in slots.items()
    }


def _change(
    meter: Meter,
    day: date,
    slots: dict[int, Edit],
    *,
    above: bool,
    by: str,
    reason: str,
    now: datetime,
) -> UpdateOne:
    """A day nobody sent anything of may be edited too."""
    told = {"above": above, "by": by, "reason": reason, "at": now}
    kept: storage.Doc = {
        f"edits.{slot}": {"value": one.amount, **told}
        for slot, one in slots.items()
        if one.amount is not None
    }
    gone = {f"edits.{slot}": "" for slot, one in slots.items() if one.amount is None}
    change: storage.Doc = {
        "$set": kept | {"vee_due_at": now},
        "$inc": {"version": 1},
        "$setOnInsert": {"plant": meter.plant, "meter": meter.meter, "day": day.isoformat()},
    }
    if gone:
        change["$unset"] = gone
    return UpdateOne({"_id": day_id(meter.plant, meter.meter, day)}, change, upsert=True)
