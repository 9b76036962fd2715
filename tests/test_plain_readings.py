"""Bodies of plain readings, read by one pattern: the same rows and ends as one by one."""

import json
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting import clock, storage
from accounting.enterprise import meters, readings
from accounting.enterprise.meters import Kind, Meter
from api.numbers import read_json
from api.plain_readings import FIELDS, plain_body
from api.plants import readings_of, take_readings

NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)


def text_of(rows: list[dict[str, Any]], *, between: str = ", ", colon: str = ": ") -> str:
    """JSON with numbers digit by digit."""
    parts = []
    for row in rows:
        pairs = [
            f'"{name}"{colon}{value if name == "value" else json.dumps(value)}'
            for name, value in row.items()
        ]
        parts.append("{" + between.join(pairs) + "}")
    return f'{{"readings"{colon}[{between.join(parts)}]}}'


@st.composite
def rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    names = draw(st.permutations(sorted(FIELDS)))
    made = []
    for _ in range(draw(st.integers(1, 5))):
        # From 1993 to 2090.
        at = datetime.fromtimestamp(draw(st.integers(725_846_400, 3_786_912_000)), UTC)
        offset = draw(st.sampled_from(["Z", "+08:00", "-03:30", "+00:00", "+23:59"]))
        # Up to nine digits before the point and six behind, as a plain number has.
        whole = draw(st.integers(0, 10**9 - 1))
        places = draw(st.text("0123456789", min_size=0, max_size=6))
        sign = draw(st.sampled_from(["", "-"]))
        row = {
            "meter": draw(st.text("abcAZ09._:-", min_size=1, max_size=64)),
            "at": at.replace(tzinfo=None).isoformat() + offset,
            "value": f"{sign}{whole}.{places}" if places else f"{sign}{whole}",
            "kind": draw(st.sampled_from(["interval", "register"])),
        }
        made.append({name: row[name] for name in names})
    return made


@settings(deadline=None, max_examples=150)
@given(rows(), st.sampled_from([", ", ",", " ,\n  "]), st.sampled_from([": ", ":", " : "]))
def test_a_plain_body_has_the_rows_that_json_and_the_schema_read(
    sent: list[dict[str, Any]], between: str, colon: str
) -> None:
    body = text_of(sent, between=between, colon=colon).encode()
    found = plain_body(body)
    assert found is not None
    columns = found["readings"].columns
    one_by_one = readings_of(read_json(body)["readings"])
    assert [columns.reading(place) for place in range(len(sent))] == one_by_one
    assert readings_of(found["readings"]) == one_by_one


PLAIN = {"meter": "m1", "at": "2026-05-18T08:00:00+08:00", "value": 1.5, "kind": "interval"}


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"readings": [PLAIN | {"unit": "kWh"}]}),
        json.dumps({"readings": [PLAIN, PLAIN | {"value": "1"}]}),
        json.dumps({"readings": [PLAIN | {"value": 1e12}]}),
        json.dumps({"readings": [PLAIN | {"at": "2026-02-30T08:00:00Z"}]}),
        json.dumps({"readings": [PLAIN | {"at": "2026-05-18T08:00:60Z"}]}),
        json.dumps({"readings": [PLAIN | {"at": "2026-05-18T24:00:00Z"}]}),
        json.dumps({"readings": [PLAIN | {"at": "1988-05-18T08:00:00Z"}]}),
        json.dumps({"readings": [PLAIN | {"kind": "Interval"}]}),
        json.dumps({"readings": [PLAIN | {"meter": "表"}]}),
        json.dumps({"readings": [PLAIN, 5]}),
        json.dumps({"readings": [PLAIN], "more": 1}),
        json.dumps({"readings": []}),
        json.dumps([PLAIN]),
        json.dumps({"readings": [PLAIN]}) + "]",
        json.dumps({"readings": [PLAIN]})[:-1],
        json.dumps({"readings": [PLAIN, PLAIN]}).replace("}, {", "} {"),
        json.dumps({"readings": [PLAIN, PLAIN]}).replace("}, {", "},, {"),
        json.dumps({"readings": [PLAIN]}).replace("1.5", "01.5"),
        json.dumps({"readings": [PLAIN]}).replace("1.5", "1.5000001"),
        json.dumps({"readings": [PLAIN]}).replace('"kind"', '"meter": "m2", "kind"'),
        "",
        "null",
    ],
)
def test_whatever_is_not_exactly_plain_is_left_to_json(body: str) -> None:
    assert plain_body(body.encode()) is None


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.usefixtures("app")
def test_columns_end_as_the_same_rows_one_by_one(seed: int) -> None:
    """Duplicates, conflicts, readings off their slot and of registers, in two calls."""
    chance = random.Random(seed)
    with clock.stand(NOON):
        for plant in ("columns", "single"):
            meters.add(
                Meter(plant, "m", "electricity", Kind.INTERVAL, "kWh", multiplier=Decimal("2.5"))
            )
            meters.add(Meter(plant, "r", "natural_gas", Kind.REGISTER, "Nm3"))
        for _ in range(2):
            sent = [_row(chance) for _ in range(400)]
            body = text_of(sent).encode()
            found = plain_body(body)
            assert found is not None
            ends = readings.take_columns("columns", found["readings"].columns)
            assert ends == take_readings("single", read_json(body)["readings"])
            assert {end.outcome for end in ends} == {"accepted", "duplicate", "conflict"}
    stored = storage.database()["meter_days"]
    hidden = {"_id": 0, "plant": 0, "writers": 0}
    by_plant = [
        list(stored.find({"plant": plant}, hidden).sort([("meter", 1), ("day", 1)]))
        for plant in ("columns", "single")
    ]
    assert by_plant[0] == by_plant[1] != []
    kept = storage.database()["reading_conflicts"]
    one, other = (
        sorted(row["_id"].split("/", 1)[1] for row in kept.find({"plant": plant}))
        for plant in ("columns", "single")
    )
    assert one == other != []


@pytest.mark.usefixtures("app")
def test_two_gateways_that_send_the_same_days_at_once_are_one() -> None:
    meters.add(Meter("p", "m", "electricity", Kind.INTERVAL, "kWh"))
    begin = clock.start_of(date(2026, 5, 10))
    sent = [
        {
            "meter": "m",
            "at": (begin + timedelta(minutes=15 * slot)).isoformat(),
            "value": str(slot),
            "kind": "interval",
        }
        for slot in range(5 * 96)
    ]
    # Both send everything, from either end, in bodies that cut the days at other slots.
    parts = [sent[place : place + 70] for place in range(0, len(sent), 70)]
    others = [sent[::-1][place : place + 50] for place in range(0, len(sent), 50)]

    def send(part: list[dict[str, Any]]) -> list[str]:
        found = plain_body(text_of(part).encode())
        assert found is not None
        ends = readings.take_columns("p", found["readings"].columns)
        assert ends is not None
        return [end.outcome for end in ends]

    with clock.stand(NOON), ThreadPoolExecutor(8) as pool:
        told = Counter(one for ends in pool.map(send, [*parts, *others]) for one in ends)
    assert told == {"accepted": len(sent), "duplicate": len(sent)}
    days = storage.database()["meter_days"].find({"plant": "p"}).sort("day", 1)
    assert [one for day in days for one in day["raw"]] == [slot * 1_000 for slot in range(5 * 96)]


def _row(chance: random.Random) -> dict[str, Any]:
    register = chance.random() < 0.3
    at = clock.start_of(date(2026, 5, 17)) + timedelta(minutes=15 * chance.randrange(190))
    at += timedelta(seconds=chance.choice((0, 0, 0, 59, 61, -300, 450)))
    value = f"{chance.randrange(3)}.{chance.choice(('', '5'))}".rstrip(".")
    kind = "register" if register else "interval"
    return {"meter": "r" if register else "m", "at": at.isoformat(), "value": value, "kind": kind}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"meter": "nobody"}, "unknown_meter"),
        ({"meter": "r"}, "wrong_kind"),
        ({"at": "2026-05-20T12:05:01+08:00"}, "future_reading"),
        ({"meter": "r", "kind": "register", "value": -1}, "value_out_of_range"),
    ],
)
@pytest.mark.usefixtures("app")
def test_a_row_to_refuse_is_refused_by_itself(changes: dict[str, Any], code: str) -> None:
    meters.add(Meter("p", "m1", "electricity", Kind.INTERVAL, "kWh"))
    meters.add(Meter("p", "r", "electricity", Kind.REGISTER, "kWh"))
    found = plain_body(text_of([PLAIN, PLAIN | changes]).encode())
    assert found is not None
    with clock.stand(NOON):
        assert readings.take_columns("p", found["readings"].columns) is None
        ends = take_readings("p", found["readings"])
    assert [(end.outcome, end.code) for end in ends] == [("accepted", None), ("rejected", code)]
