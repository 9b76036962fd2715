"""Whose plant a request is about, and the form of its readings."""

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Any

import marshmallow as ma
from marshmallow import fields, validate

from accounting import clock
from accounting.enterprise import plants, readings
from accounting.enterprise.plants import Kind, Plant
from accounting.enterprise.readings import End, Reading
from accounting.errors import Forbidden, ValidationFailed
from api.numbers import Instant, Quantity, Schema
from api.reading import RowReader
from api.security import PLANT, caller

# The kind of a file of readings, as its jobs are called.
READINGS = "readings"
DAYS_MAX = 400
NAME = validate.Regexp(r"[A-Za-z0-9._:-]{1,64}\Z")


class ReadingFields(Schema):
    """`unit` and `multiplier` may be left out; when sent they must be the meter's."""

    meter = fields.String(required=True, validate=validate.Length(1, 64))
    at = Instant(
        required=True,
        metadata={"description": "The start of the slot of an interval; when a register was read."},
    )
    value = Quantity(required=True)
    kind = fields.String(required=True, validate=validate.OneOf([kind.value for kind in Kind]))
    unit = fields.String(validate=validate.Length(1, 16))
    multiplier = Quantity(above=0)


def own_plant(plant_id: str) -> Plant:
    """The plant of a request: the caller's own, or any for an operator.

    Raises `Forbidden` for another's and `NotFound`.
    """
    if caller().kind is PLANT and caller().id != plant_id:
        raise Forbidden
    return plants.get_plant(plant_id)


def take_readings(plant_id: str, raw: Sequence[Any]) -> list[End]:
    """Check the form of each row and take the good ones in together; the end of each, in order."""
    reader = RowReader(ReadingFields())
    rows: list[Reading | str] = []
    for one in raw:
        try:
            data = reader.load(one)
        except ma.ValidationError:
            rows.append("malformed_reading")
            continue
        rows.append(
            Reading(
                data["meter"],
                data["at"],
                data["value"],
                Kind(data["kind"]),
                data.get("unit"),
                data.get("multiplier"),
            )
        )
    return readings.take(plant_id, rows)


def span_of(
    begin: date | datetime, end: date | datetime, most: int = DAYS_MAX
) -> tuple[datetime, datetime]:
    """A range as instants, half-open: days are inclusive. Raises `ValidationFailed`."""
    first = begin if isinstance(begin, datetime) else clock.start_of(begin)
    last = end if isinstance(end, datetime) else clock.start_of(end + timedelta(days=1))
    if not first < last:
        raise ValidationFailed("/to", "Must lie after from.", "必须晚于 from。")
    if last - first > timedelta(days=most):
        raise ValidationFailed("/to", f"At most {most} days.", f"最多 {most} 天。")
    return first, last
