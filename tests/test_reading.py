"""A row is read the same with and without the schema's ceremony, and refused in the same words."""

import random
from datetime import datetime
from decimal import Decimal
from typing import Any

import marshmallow as ma
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.feed_rows import RowFields
from api.reading import RowReader
from api.views.activities import ActivityRequest

GOOD: dict[str, Any] = {
    "external_id": "card-1",
    "behaviour": "bus_km",
    "quantity": Decimal("5.2"),
    "occurred_at": "2026-05-20T08:00:00+08:00",
    "ended_at": "2026-05-20T08:18:00+08:00",
    "source_event_id": "tap-1",
    "attributes": {"line": "K1", "trip": False},
}
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.just(Decimal("0.1234567")),
    st.just(Decimal("Infinity")),
    st.sampled_from(["", "x", "bus_km", "recycle_kg", "2026-05-20T07:00:00Z", "K" * 200]),
    st.lists(st.integers(), max_size=1),
    st.dictionaries(st.sampled_from(["line", "trip", "slip", "kind", "odd"]), st.text(max_size=3)),
)
CHANGES = st.dictionaries(
    st.sampled_from([*GOOD, "evidence", "odd"]), ODD | st.just("absent"), max_size=3
)


def told(load: Any, raw: Any) -> Any:
    try:
        return load(raw)
    except ma.ValidationError as error:
        return error.messages


@settings(max_examples=300, deadline=None)
@given(changes=CHANGES, form=st.sampled_from([RowFields, ActivityRequest]))
def test_a_row_is_read_as_the_schema_reads_it(changes: dict[str, Any], form: Any) -> None:
    raw = {name: value for name, value in (GOOD | changes).items() if value != "absent"}
    if form is ActivityRequest:
        raw.pop("external_id", None)
    schema = form()
    assert told(RowReader(schema).load, raw) == told(schema.load, raw)


DECIMALS = ["1.5000000", "1E-7", "NaN", "-Infinity", "0.000001", "1E+9"]
INSTANTS = [
    "2026-05-20 08:00:00.123456789z",
    "2026-05-20t08:00:00.5-11:30",
    "2026-05-20T08:00:00Z",
    "2026-05-20T08:00:00",
    "2026-05-20T24:00:00Z",
    "2026-05-20T08:00:00.Z",
    "2026-02-30T00:00:00Z",
    "1969-12-31T23:59:59Z",
    "9999-01-01T00:00:00Z",
    "",
]
FIELDS = {
    "line": ["K1", "", "K" * 128, "K" * 129, None, 5],
    "trip": [True, False, 1, "true"],
    "amount_fen": [5, 0, -1, 10**12, Decimal("5"), Decimal("5.5"), True, "5", None],
    "merchant": ["m", ""],
    "billing_month": ["2026-12", "2026-13", 202612],
    "role": ["driver", "both"],
    "category": ["paper", ""],
    "odd": [1],
}
EVIDENCE = {
    "kind": ["none", "x", None],
    "recorder": ["gps", "eye"],
    "manual": [True, 1],
    "manual_quantity": [1, 0, Decimal("5.2"), Decimal("5.3"), "1", None],
}
OTHERS = {
    "external_id": ["", "c", "c" * 128, "c" * 129, 5, None, b"bytes", ["c"]],
    "behaviour": ["bus_km", "mobile_pay_offline", "recycle_kg", "e_card", "x", "", "b" * 65, 1],
    "quantity": [1, 0, -1, True, "1", 10**9, 10**9 + 1, 1.5, None, [], *map(Decimal, DECIMALS)],
    "occurred_at": [*INSTANTS, 5, None],
    "ended_at": [*INSTANTS, "2026-05-20T07:59:59+08:00", None],
    "source_event_id": ["", "a b", "a:b.c_d-e", "e" * 128, "e" * 129, "e\n", None, 7],
    "odd": [1],
}


def changed(raw: dict[str, Any], others: dict[str, list[Any]], chance: random.Random) -> Any:
    """A copy in which up to three fields hold something else, and now and then one is missing."""
    raw = dict(raw)
    for name in chance.sample(sorted(others), chance.randrange(4)):
        raw[name] = chance.choice(others[name])
    if raw and chance.random() < 0.1:
        del raw[chance.choice(sorted(raw))]
    return raw


@pytest.mark.parametrize("form", [RowFields, ActivityRequest])
def test_thousands_of_rows_are_read_as_the_schema_reads_them(form: type[Any]) -> None:
    chance, schema = random.Random(9), form()
    reader = RowReader(schema)
    good = 0
    for _ in range(2_000):
        raw = changed(GOOD, OTHERS, chance)
        if chance.random() < 0.5:
            raw["attributes"] = changed({}, FIELDS, chance)
        if form is ActivityRequest:
            raw.pop("external_id", None)
            if chance.random() < 0.3:
                raw["evidence"] = changed({"kind": "sensor"}, EVIDENCE, chance)
        read = told(reader.load, raw)
        assert read == told(schema.load, raw), raw
        good += isinstance(read.get("occurred_at"), datetime)
    # Otherwise it would show only how rows are refused, or how they are read.
    assert 300 < good < 1_500, good


@pytest.mark.parametrize(
    ("behaviour", "by_hand", "said"),
    [
        ("bus_km", 1, "Unknown field."),
        ("walk_steps", 9_001, "Must not exceed the quantity."),
    ],
)
def test_every_check_of_a_whole_row_is_asked(behaviour: str, by_hand: int, said: str) -> None:
    raw = GOOD | {"behaviour": behaviour, "quantity": 9_000, "attributes": {}}
    raw |= {"evidence": {"kind": "sensor", "manual_quantity": by_hand}}
    del raw["external_id"]
    refused = {"evidence": {"manual_quantity": [said]}}
    assert told(RowReader(ActivityRequest()).load, raw) == refused


def test_a_good_row_needs_no_ceremony_and_what_is_no_row_is_refused() -> None:
    schema = RowFields()
    reader = RowReader(schema)
    assert reader.quick(GOOD) == schema.load(GOOD)
    for raw in (None, [], "row", 1):
        assert told(reader.load, raw) == told(schema.load, raw)
