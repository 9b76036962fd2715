"""Numbers and instants as they are read from a request."""

from decimal import Decimal

import pytest

from accounting import clock
from api.numbers import read_instant, read_json


def test_no_float_is_made_of_a_request_number() -> None:
    assert read_json(b"[1, -2, 0.1, 1e2, 1e-7]") == [
        1, -2, Decimal("0.1"), Decimal("1e2"), Decimal("1e-7"),
    ]  # fmt: skip
    absurd = read_json(b"[1e30, -1e30, 123456789012345678901, " + b"9" * 5_000 + b"]")
    assert all(isinstance(number, Decimal) and number.is_infinite() for number in absurd)


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2026-03-01T10:00:00+08:00", "2026-03-01T02:00:00.000Z"),
        ("2026-03-01T10:00:00.1239999Z", "2026-03-01T10:00:00.123Z"),
        ("2026-03-01t10:00:00.5z", "2026-03-01T10:00:00.500Z"),
        ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000Z"),
        ("1970-01-01T00:00:00+08:00", None),
        ("9999-12-31T23:59:59-12:00", None),
        ("0001-01-01T00:00:00+14:00", None),
        ("2026-03-01T10:00:00", None),
        ("2026-03-01", None),
        ("2026-02-29T10:00:00Z", None),
        ("2026-03-01T24:00:00Z", None),
        ("2026-03-01T10:00:60Z", None),
        ("2026-W09-7T10:00:00Z", None),
        ("２026-03-01T10:00:00Z", None),
        ("2026-03-01T10:00:00+99:00", None),
    ],
)
def test_instants_need_an_offset_and_a_sane_year(text: str, instant: str | None) -> None:
    found = read_instant(text)
    assert (found and clock.iso(found)) == instant
