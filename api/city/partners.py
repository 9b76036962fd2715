"""The partners of the city and the form of each one's files: NDJSON or CSV, gzip or not."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from api.city.people import PIPED
from integrations.feeds import CSV, FLAGS, NDJSON

Row = dict[str, Any]

_REPORT = ("source_event_id", "external_id", "behaviour", "quantity", "occurred_at")
_BILL = (
    *("source_event_id", "carrier", "account_no", "period_start", "period_end"),
    *("quantity", "estimated", "corrects"),
)
READING = ("meter", "at", "value", "kind")
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Partner:
    """`columns` are those of its CSV files; without any it sends NDJSON."""

    name: str
    behaviours: tuple[str, ...]
    columns: tuple[str, ...] = ()
    carriers: tuple[str, ...] = ()

    @property
    def media_type(self) -> str:
        return CSV if self.columns else NDJSON


PARTNERS = (
    Partner(
        "bank",
        (
            *("mobile_pay_offline", "online_transfer", "e_invoice", "train_ticket_online"),
            *("e_statement", "utility_pay_online"),
        ),
        (
            *_REPORT,
            *("amount_fen", "merchant", "invoice", "order", "card", "billing_month"),
            "meter_account",
        ),
    ),
    Partner("bus", ("bus_km",)),
    Partner("bike", ("bike_km",)),
    Partner("ev", ("ev_charge_kwh",), (*_REPORT, "vehicle")),
    Partner("etc", ("etc_pass",), _REPORT),
    Partner("recycler", ("recycle_kg", "carton_return")),
    Partner("health", ("walk_steps",)),
)
UTILITIES = tuple(Partner(carrier, (), _BILL, (carrier,)) for carrier in PIPED)


def writer(into: TextIO, columns: Sequence[str]) -> Callable[[Row], object]:
    """Writes a row as one line: by `columns` of a CSV, or as JSON if there are none."""
    if not columns:
        return lambda row: into.write(_encode(row) + "\n")
    lines = csv.writer(into, lineterminator="\n")
    lines.writerow(columns)
    flags = FLAGS.intersection(columns)

    def put(row: Row) -> None:
        flat = row | row["attributes"] if "attributes" in row else row
        if flags:
            # A flag is written as JSON has it.
            flat = flat | {name: _encode(flat[name]) for name in flags}
        lines.writerow([flat.get(name, "") for name in columns])

    return put
