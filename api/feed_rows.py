"""Rows of a partner, by HTTP or from a file: the form of each, then all good ones together."""

from collections.abc import Sequence
from typing import Any

import marshmallow as ma
from marshmallow import fields, validate

from accounting import clients, clock
from accounting.clients import Kind
from accounting.jobs import COUNTS, Job
from api.bill_rows import take_bills
from api.problems import Invalid
from api.reading import RowReader
from api.reports import ReportFields, report_of
from footprint.bill_intake import Received
from integrations.imports import RowResult
from integrations.mapping import BILLS
from points import feed
from points.feed import Partner, Row, Taken


class RowFields(ReportFields):
    external_id = fields.String(required=True, validate=validate.Length(1, 128))


def take_rows(partner: Partner, raw: Sequence[Any], job: str | None = None) -> list[Taken]:
    """Check the form of each row, take the good ones in together, and keep the order.

    `job` is the file they came with, if any.
    """
    results: list[Taken | None] = []
    rows: list[Row] = []
    reader = RowReader(RowFields())
    for one in raw:
        try:
            data = reader.load(one)
        except ma.ValidationError as error:
            results.append(Taken(refusal=Invalid.of(error)))
            continue
        results.append(None)
        rows.append(_row(data, job))
    taken = iter(feed.take(partner, rows))
    return [result if result is not None else next(taken) for result in results]


def row_of(partner: Partner, raw: Any) -> Row:
    """A row as it is taken in; raises `ma.ValidationError` and what the partner may not report."""
    row = _row(RowFields().load(raw), None)
    refusal = feed.refusal_of(partner, row)
    if refusal is not None:
        raise refusal
    return row


def _row(data: dict[str, Any], job: str | None) -> Row:
    return Row(data["external_id"], data["source_event_id"], report_of(data), job)


def take_file_rows(job: Job, raw: Sequence[dict[str, Any]]) -> list[RowResult]:
    """Rows of a partner's file, for the job that reads it."""
    client = clients.of_subject(Kind.DATA, job.owner)
    assert client is not None, job.owner
    partner = partner_of(client)
    if job.kind == BILLS:
        return [_counted_bill(one) for one in take_bills(partner, raw, job.id)]
    return [_counted(one) for one in take_rows(partner, raw, job.id)]


def _counted_bill(one: Received) -> RowResult:
    if one.bill is None:
        return RowResult("rejected", one.refusal)
    if not one.fresh:
        return RowResult("duplicate")
    status = one.bill.outcome(clock.now()).status
    status = "credited" if status == "capped" else status
    return RowResult(status if status in COUNTS else "recorded")


def _counted(one: Taken) -> RowResult:
    if one.refusal is not None:
        return RowResult("rejected", one.refusal)
    assert one.activity is not None, "a row has an activity or a refusal"
    if not one.fresh:
        return RowResult("duplicate")
    # No language is asked for: the worker has no reader.
    status = one.activity.status_at(clock.now())
    if status == "rejected":
        return RowResult("rejected", reason=one.activity.reasons[0])
    return RowResult({"capped": "credited", "merged": "credited"}.get(status, status))


def partner_of(client: clients.Client) -> Partner:
    """What a partner's record lets it report; the demo partner's policy says everything."""
    policy = client.policy
    everything = policy.get("every_behaviour", False)
    return Partner(
        id=client.subject_id,
        behaviours=None if everything else frozenset(policy.get("behaviours", ())),
        carriers=frozenset(policy.get("carriers", ())),
        id_namespace=policy.get("id_namespace", ""),
    )
