"""Mapping profiles: a partner's columns, units, dates and codes become the fields of a row."""

import io
from decimal import Decimal
from typing import Any

import pytest

from accounting.errors import ValidationFailed
from api.bill_rows import BillFields
from api.feed_rows import RowFields
from api.reports import Attributes
from integrations import feeds, mapping
from integrations.feeds import Unreadable
from integrations.mapping import Type, Unmapped

FIELDS: dict[str, Any] = {
    "external_id": {"column": "卡号"},
    "behaviour": {"column": "类型", "codes": {"巴士": "bus_km", "地铁": "metro_km"}},
    "quantity": {"column": "里程", "unit": "m", "to": "km"},
    "occurred_at": {"column": "时间", "format": "%Y%m%d%H%M%S"},
    "source_event_id": {"columns": ["卡号", "时间"], "join": "."},
    "attributes": {"line": {"column": "线路", "default": "未知"}, "trip": {"constant": True}},
}
RIDE = {"卡号": "c-1", "类型": "巴士", "里程": "5200", "时间": "20260520080000", "线路": "K1"}


def profile(fields: dict[str, Any] = FIELDS, **more: Any) -> mapping.Profile:
    return mapping.parse({"name": "rides", "kind": "activities", "fields": fields, **more})


def one(name: str, rule: dict[str, Any], cell: Any, **more: Any) -> Any:
    """What one cell becomes under one rule."""
    row = profile({name: {"column": "c", **rule}}, **more).row({"c": cell})
    return row.get(name)


def test_a_ride_in_the_partners_words_becomes_a_row() -> None:
    # 5,200 m / 1,000 = 5.2 km; no offset is written, so the time is the city's.
    assert profile().row(RIDE) == {
        "external_id": "c-1",
        "behaviour": "bus_km",
        "quantity": Decimal("5.2"),
        "occurred_at": "2026-05-20T08:00:00+08:00",
        "source_event_id": "c-1.20260520080000",
        "attributes": {"line": "K1", "trip": True},
    }


def test_an_empty_cell_is_the_default_or_absent() -> None:
    row = profile().row({**RIDE, "线路": " ", "里程": ""})
    assert row["attributes"]["line"] == "未知"
    assert "quantity" not in row
    # Half of an id would be the id of another ride.
    assert "source_event_id" not in profile().row({**RIDE, "卡号": ""})


@pytest.mark.parametrize(
    ("unit", "to", "cell", "value"),
    [
        ("m", "km", "5200", Decimal("5.2")),
        ("m", "km", "5000", 5),
        ("里", "km", "3", Decimal("1.5")),  # Half a kilometre each.
        ("分", "元", "1230", Decimal("12.3")),
        ("元", "fen", "12.30", 1_230),
        ("Wh", "kWh", "31450", Decimal("31.45")),
        ("度", "kWh", "31.45", Decimal("31.45")),
        ("MWh", "kWh", "0.002", 2),
        ("斤", "kg", "7", Decimal("3.5")),
        ("L", "m3", "12500", Decimal("12.5")),
        ("万步", "step", "1.2", 12_000),
    ],
)
def test_units_are_exact(unit: str, to: str, cell: str, value: int | Decimal) -> None:
    number = one("quantity", {"unit": unit, "to": to}, cell)
    assert (number, type(number)) == (value, type(value))


def test_every_pair_of_units_of_one_kind_has_an_exact_factor() -> None:
    for unit, (measures, size) in mapping.UNITS.items():
        for to, (wanted, own) in mapping.UNITS.items():
            if measures == wanted:
                number = one("quantity", {"unit": unit, "to": to}, "1")
                assert number * own == size, (unit, to)


@pytest.mark.parametrize(
    ("form", "cell", "value"),
    [
        ("%Y-%m-%d %H:%M:%S", "2026-05-20 08:00:00", "2026-05-20T08:00:00+08:00"),
        ("%d/%m/%Y %H:%M", "1/5/2026 0:15", "2026-05-01T00:15:00+08:00"),
        ("%Y年%m月%d日", "2026年5月20日", "2026-05-20T00:00:00+08:00"),
        ("%Y-%m-%d %H:%M:%S %z", "2016-06-01 06:00:02 +0200", "2016-06-01T06:00:02+02:00"),
        ("%Y-%m-%dT%H:%M:%S.%f%z", "2026-05-20T08:00:00.5Z", "2026-05-20T08:00:00.500000+00:00"),
        # 20,593 days of 86,400 s are 1,779,235,200 s: 2026-05-20 00:00 UTC.
        ("unix_s", "1779235200", "2026-05-20T08:00:00+08:00"),
        ("unix_ms", "1779235200500", "2026-05-20T08:00:00.500000+08:00"),
        ("iso", "as it is", "as it is"),
    ],
)
def test_times_are_read_by_their_format(form: str, cell: str, value: str) -> None:
    assert one("occurred_at", {"format": form}, cell) == value


def test_days_and_months_are_those_that_are_written() -> None:
    assert one("period_start", {"format": "%Y/%m/%d"}, "2026/5/1") == "2026-05-01"
    assert one("period_end", {"format": "%Y%m%d"}, "20260531") == "2026-05-31"
    row = profile({"attributes": {"billing_month": {"column": "c", "format": "%Y%m"}}})
    assert row.row({"c": "202605"}) == {"attributes": {"billing_month": "2026-05"}}


@pytest.mark.parametrize(
    ("form", "cell", "why"),
    [
        ("%Y%m%d", "2026111", "is not of the form %Y%m%d"),
        ("%Y-%m-%d", "2026-02-30", "is no day or time there is"),
        ("%Y-%m-%d", "2026-05-20 ", None),
        ("%Y-%m-%d", "２０２６-05-20", "is not of the form %Y-%m-%d"),
        ("%Y-%m-%d %H:%M", "2026-05-20 24:00", "is no day or time there is"),
        ("%Y-%m-%d %z", "2026-05-20 +9900", "is no day or time there is"),
        ("unix_s", "1e9", "is not a time in unix_s"),
        ("unix_s", "9999999999999999", "is out of all time"),
    ],
)
def test_a_time_that_is_none_says_so(form: str, cell: str, why: str | None) -> None:
    if why is None:
        assert one("occurred_at", {"format": form}, cell) == "2026-05-20T00:00:00+08:00"
        return
    with pytest.raises(Unmapped) as unmapped:
        one("occurred_at", {"format": form}, cell)
    assert str(unmapped.value) == f"occurred_at from c: {cell!r} {why}"


@pytest.mark.parametrize("cell", ["2026-03-29 02:30", "2026-10-25 02:30"])
def test_a_wall_time_that_comes_never_or_twice_is_no_instant(cell: str) -> None:
    """Oslo's clocks went from 02:00 to 03:00 on 29 March and from 03:00 to 02:00 on 25 October."""
    rule = {"format": "%Y-%m-%d %H:%M"}
    with pytest.raises(Unmapped, match="the clock was changed then"):
        one("occurred_at", rule, cell, time_zone="Europe/Oslo")
    assert one("occurred_at", rule, cell).endswith("02:30:00+08:00")


def test_codes_make_flags_and_numbers_too() -> None:
    read = {"codes": {"实抄": False, "估抄": True}}
    assert [one("estimated", read, cell) for cell in ("实抄", "估抄")] == [False, True]
    way = {"columns": ["from", "to"], "codes": {"a-b": 1_500}, "unit": "m", "to": "km"}
    assert profile({"quantity": way}).row({"from": "a", "to": "b"}) == {"quantity": Decimal("1.5")}
    with pytest.raises(Unmapped, match=r"^estimated from c: '手抄' is not in the code table$"):
        one("estimated", read, "手抄")


def test_json_values_are_read_like_cells() -> None:
    assert one("quantity", {"unit": "m", "to": "km"}, 5200) == Decimal("5.2")
    assert one("quantity", {}, Decimal("5.20")) == Decimal("5.20")
    assert one("external_id", {}, 12_345) == "12345"
    assert one("external_id", {}, None) is None
    assert one("estimated", {}, True) is True
    for value in ({"a": 1}, [1], Decimal("1E+400"), float("nan")):
        with pytest.raises(Unmapped, match=r"^c: not a text or a number in bounds$"):
            one("quantity", {}, value)


@pytest.mark.parametrize("cell", ["eight", "1,000", "1e3", "٣", "0x10", "9" * 21, "-"])
def test_a_cell_that_is_no_plain_number_is_refused(cell: str) -> None:
    with pytest.raises(Unmapped, match="is not a number"):
        one("quantity", {}, cell)


def test_a_digest_tells_cells_apart_however_they_are_cut() -> None:
    rule = {"source_event_id": {"columns": ["a", "b"], "digest": True}}
    ids = [
        profile(rule).row({"a": a, "b": b})["source_event_id"]
        for a, b in (("1", "23"), ("12", "3"), ("1", "23"))
    ]
    assert ids[0] == ids[2] != ids[1]
    assert all(len(one_id) == 32 for one_id in ids)


def test_rows_that_cannot_be_mapped_spoil_no_neighbour() -> None:
    broken = Unreadable("x", "not UTF-8")
    made = list(profile().rows([RIDE, broken, {**RIDE, "类型": "船"}, RIDE]))
    assert made[1] == broken
    assert isinstance(made[2], Unreadable)
    assert made[2].why == "behaviour from 类型: '船' is not in the code table"
    assert '"类型": "船"' in made[2].text
    assert made[0] == made[3] == profile().row(RIDE)


@pytest.mark.parametrize(
    ("at", "rule"),
    [
        ("quantity", {}),
        ("quantity", {"column": "a", "constant": 1}),
        ("quantity", {"constant": 1, "unit": "m", "to": "km"}),
        ("quantity/to", {"column": "a", "unit": "m"}),
        ("quantity/unit", {"column": "a", "to": "m"}),
        ("quantity/to", {"column": "a", "unit": "m", "to": "kg"}),
        ("quantity/unit", {"column": "a", "unit": "mile", "to": "km"}),
        ("quantity/constant", {"constant": "1"}),
        ("quantity/constant", {"constant": True}),
        ("quantity/default", {"column": "a", "default": Decimal("1E+99")}),
        ("quantity/codes/a~1b~0", {"column": "a", "codes": {"a/b~": "one"}}),
        ("quantity/format", {"column": "a", "format": "%Y-%m-%d"}),
        ("quantity/digest", {"column": "a", "digest": True}),
        ("external_id/unit", {"column": "a", "unit": "m", "to": "km"}),
        ("external_id/codes", {"column": "a", "digest": True, "codes": {"a": "b"}}),
        ("external_id/constant", {"constant": 5}),
        ("estimated/constant", {"constant": "true"}),
        ("occurred_at/format", {"column": "a", "format": "%y-%m-%d"}),
        ("occurred_at/format", {"column": "a", "format": "%Y-%m"}),
        ("occurred_at/format", {"column": "a", "format": "%Y-%m-%d %d"}),
        ("occurred_at/format", {"column": "a", "format": "%Y-%m-%d %"}),
        ("occurred_at/format", {"column": "a", "format": "%Y-%b-%d"}),
    ],
)
def test_a_wrong_rule_is_refused_by_its_name(at: str, rule: dict[str, Any]) -> None:
    with pytest.raises(ValidationFailed) as refused:
        profile({at.partition("/")[0]: rule})
    assert refused.value.facts["pointer"] == f"/profile/fields/{at}"


@pytest.mark.parametrize(
    ("name", "value"),
    [("time_zone", "Quzhou"), ("time_zone", "../etc"), ("name", "Rides"), ("name", "-x")],
)
def test_a_wrong_setting_is_refused_by_its_name(name: str, value: str) -> None:
    with pytest.raises(ValidationFailed) as refused:
        profile(**{name: value})
    assert refused.value.facts["pointer"] == f"/profile/{name}"


def test_every_field_of_a_row_has_the_type_its_form_reads() -> None:
    known = {
        "Quantity": Type.NUMBER,
        "Whole": Type.NUMBER,
        "Flag": Type.FLAG,
        "Instant": Type.INSTANT,
        "CityDay": Type.DAY,
    }
    for form in (RowFields(), BillFields(), Attributes()):
        for name, field in form.fields.items():
            if name not in ("attributes", "billing_month"):
                assert mapping.type_of(name) is known.get(type(field).__name__, Type.TEXT), name


def test_a_csv_is_read_with_the_delimiter_and_must_have_the_columns() -> None:
    rules = {"external_id": {"column": "trip"}, "quantity": {"column": "b"}}
    form = profile(rules, delimiter=";").form

    def read(text: str) -> list[Any]:
        data = text.encode()
        return list(
            feeds.rows(
                io.BytesIO(data), media_type=feeds.CSV, gzipped=False, size=len(data), form=form
            )
        )

    # As text, even where a row of ours would have a flag.
    assert read("b;trip;c\n1;true;\n") == [{"b": "1", "trip": "true"}]
    with pytest.raises(feeds.FileRefused, match=r"^the header of the CSV lacks b, trip$"):
        read("a;c\n1;2\n")
