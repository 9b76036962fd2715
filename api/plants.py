"""Whose plant a request is about, and the form of its readings."""

from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta
from typing import Any

import marshmallow as ma
from marshmallow import fields, validate

from accounting.enterprise import inventory, plants, readings
from accounting.enterprise.meters import Kind
from accounting.enterprise.plants import Plant
from accounting.enterprise.readings import End, Reading
from accounting.enterprise.refusals import REFUSALS, MalformedReading
from accounting.errors import Forbidden, ValidationFailed
from accounting.jobs import Job
from api.numbers import Instant, Quantity, Schema
from api.plain_readings import PlainReadings
from api.problems import Invalid
from api.reading import RowReader
from api.security import PLANT, caller
from integrations.imports import RowResult

# The kind of a file of readings, as its jobs are called.
READINGS = "readings"
DAYS_MAX = 400
MONTH = validate.Regexp(r"(19[7-9][0-9]|[2-8][0-9]{3})-(0[1-9]|1[0-2])\Z")
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
    if isinstance(raw, PlainReadings):
        ends = readings.take_columns(plant_id, raw.columns)
        if ends is not None:
            return ends
    rows = [row if isinstance(row, Reading) else MalformedReading.code for row in readings_of(raw)]
    return readings.take(plant_id, rows)


def readings_of(raw: Iterable[Any]) -> list[Reading | Invalid]:
    """Each row as a reading, or what is wrong with its form."""
    reader = RowReader(ReadingFields())
    rows: list[Reading | Invalid] = []
    for one in raw:
        try:
            data = reader.load(one)
        except ma.ValidationError as error:
            rows.append(Invalid.of(error))
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
    return rows


def take_file_rows(job: Job, raw: Sequence[dict[str, Any]]) -> list[RowResult]:
    """Rows of a file of readings, for the job that reads it; it belongs to the plant."""
    rows = readings_of(raw)
    taken = iter(readings.take(job.owner, [row for row in rows if isinstance(row, Reading)]))
    return [
        _counted(next(taken)) if isinstance(row, Reading) else RowResult("rejected", row)
        for row in rows
    ]


def _counted(end: End) -> RowResult:
    if end.code is not None:
        return RowResult("rejected", REFUSALS[end.code]())
    return RowResult("duplicate" if end.outcome == readings.DUPLICATE else "recorded")


def span_of(
    begin: date | datetime, end: date | datetime, most: int = DAYS_MAX
) -> tuple[datetime, datetime]:
    """A range as instants, half-open: days are inclusive. Raises `ValidationFailed`."""
    first, last = inventory.span(begin, end)
    if last - first > timedelta(days=most):
        raise ValidationFailed("/to", f"At most {most} days.", f"最多 {most} 天。")
    return first, last
