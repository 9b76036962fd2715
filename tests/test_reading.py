"""A row is read the same with and without the schema's ceremony, and refused in the same words."""

from decimal import Decimal
from typing import Any

import marshmallow as ma
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
    assert told(RowReader(schema, schema.fits_behaviour).load, raw) == told(schema.load, raw)


def test_a_good_row_needs_no_ceremony_and_what_is_no_row_is_refused() -> None:
    schema = RowFields()
    reader = RowReader(schema, schema.fits_behaviour)
    assert reader._quick(GOOD) == schema.load(GOOD)
    for raw in (None, [], "row", 1):
        assert told(reader.load, raw) == told(schema.load, raw)
