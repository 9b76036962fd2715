"""Manifests: read strictly, and held against the bytes by counts the reader of files shares."""

import gzip
import io
import json
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integrations import feeds, manifests
from integrations.feeds import CSV, NDJSON, FileRefused
from integrations.manifests import Manifest, ManifestInvalid, ManifestMismatch, Uncountable

GOOD: dict[str, Any] = {"file": "rides.csv", "bytes": 12, "sha256": "ab" * 32}


def test_everything_a_manifest_may_say_is_read() -> None:
    said = GOOD | {
        "rows": 3,
        "sums": {"quantity": 12.5, "分": "300"},
        "profile": "bus_card",
        "business_date": "2026-05-20",
        "sequence": 141,
    }
    assert manifests.parse(b"\xef\xbb\xbf" + json.dumps(said).encode()) == Manifest(
        file="rides.csv",
        size=12,
        sha256="ab" * 32,
        rows=3,
        sums={"quantity": Decimal("12.5"), "分": Decimal(300)},
        profile="bus_card",
        business_date=date(2026, 5, 20),
        sequence=141,
    )


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"file": None}, "file"),
        ({"file": "\ud83d.csv"}, "file"),
        ({"profile": "bus\0card"}, "profile"),
        ({"bytes": -1}, "bytes"),
        ({"bytes": 1.0}, "bytes"),
        ({"bytes": True}, "bytes"),
        ({"sha256": "ab"}, "sha256"),
        ({"rows": "3"}, "rows"),
        ({"sums": [1]}, "sums"),
        ({"sums": {"a": True}}, "sums"),
        ({"sums": {"a": "1e9"}}, "sums"),
        ({"sums": {"\ud83d": 1}}, "sums"),
        ({"sums": {f"c{n}": 1 for n in range(11)}}, "sums"),
        ({"business_date": "20260520"}, "business_date"),
        ({"business_date": "2026-02-30"}, "business_date"),
        ({"sequence": -1}, "sequence"),
        ({"rowz": 3}, "rowz"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], names: str) -> None:
    with pytest.raises(ManifestInvalid) as refusal:
        manifests.parse(json.dumps(GOOD | change).encode())
    assert names in refusal.value.text("en")
    assert names in refusal.value.text("zh")


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff{}", b"[" * 9_000, b" " * 70_000])
def test_what_is_no_manifest_is_refused_whatever_it_is(text: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        manifests.parse(text)


@pytest.mark.parametrize("number", ["1e999999999999", "1e-999999999999", "0e999999999999", "NaN"])
def test_a_sum_of_a_terabyte_of_digits_is_refused_without_being_written_out(number: str) -> None:
    text = json.dumps(GOOD | {"sums": {"km": 0}}).replace('"km": 0', f'"km": {number}')
    with pytest.raises(ManifestInvalid, match="sums"):
        manifests.parse(text.encode())


def check(content: bytes, media_type: str = CSV, *, gzipped: bool = False, **said: Any) -> None:
    manifests.check_rows(
        Manifest("f", len(content), "", **said),
        io.BytesIO(content),
        media_type=media_type,
        gzipped=gzipped,
        encoding="utf-8",
    )


RIDES = b"card,km\na,1.5\nb,2\n\nc,0.25\n"


def test_rows_and_sums_that_fit_pass_and_others_are_named() -> None:
    """Three rows below the header; 1.5 + 2 + 0.25 = 3.75."""
    check(RIDES, rows=3, sums={"km": Decimal("3.75")})
    check(gzip.compress(RIDES), gzipped=True, rows=3)
    check(b'{"km": 1.5}\n{"km": "2"}\n', NDJSON, rows=2, sums={"km": Decimal("3.50")})
    # What no sum could hold is no number.
    check(
        b'{"km": 1e999999999}\n{"km": -1e999999999}\n{"km": 2}\n', NDJSON, sums={"km": Decimal(2)}
    )
    with pytest.raises(ManifestMismatch, match="rows is 3, the manifest says 4"):
        check(RIDES, rows=4)
    with pytest.raises(ManifestMismatch, match=r"sums.km is 3.75, the manifest says 3.7\."):
        check(RIDES, sums={"km": Decimal("3.70")})


def test_a_file_that_cannot_be_read_to_its_end_is_not_counted() -> None:
    with pytest.raises(Uncountable, match="damaged"):
        check(gzip.compress(RIDES)[:-9], gzipped=True, rows=3)
    with pytest.raises(Uncountable, match="far more than its size"):
        check(gzip.compress(b"x" * 10_000_000), gzipped=True, rows=3)
    with pytest.raises(Uncountable, match="lacks fen"):
        check(RIDES, sums={"fen": Decimal(1)})


LINES = st.sampled_from(
    ["", " ", "\t", "a,1", '{"a": 1}', "\r", '"', "\0", "x" * 70_000, "\ufeff", "\ufeffa,1"]
)


@given(st.lists(LINES, max_size=6), st.sampled_from(["", "\n", "\r\n"]), st.booleans())
def test_counting_gives_as_many_rows_as_reading(lines: list[str], end: str, gzipped: bool) -> None:
    plain = ("\n".join(lines) + end).encode()
    content = gzip.compress(plain) if gzipped else plain
    for media_type in (NDJSON, CSV):
        how: dict[str, Any] = {
            "media_type": media_type,
            "gzipped": gzipped,
            "size": len(content),
        }
        try:
            expected = len(list(feeds.rows(io.BytesIO(content), **how)))
        except FileRefused:
            continue  # Without a header nothing is a row.
        assert [*feeds.counted(io.BytesIO(content), **how)][-1:] == [expected]
