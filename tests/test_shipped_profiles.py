"""The shipped mapping profiles, each on a small sample of the file it is for, worked by hand.

The Shenzhen taps are of the municipal open-data platform (data set 29200_00403601), the bike trips
of Oslo Bysykkel (NLOD 2.0); the whole files are read too where they lie beside the repository.
"""

import csv
import gzip
import hashlib
import io
import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from api.bill_rows import sent_of
from api.feed_rows import row_of
from api.views.partner_profiles import checked
from integrations import feeds, mapping
from integrations.feeds import FeedRow, Unreadable
from points.feed import Partner

SHIPPED = Path(mapping.__file__).parent / "profiles"
DATA = Path(os.environ.get("TANHUI_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
UTILITY = Partner("ptn_1", carriers=frozenset({"electricity", "gas", "water"}))

TAPS = """\
deal_date,close_date,card_no,deal_value,deal_type,company_name,car_no,station,conn_mark,\
deal_money,equ_no
2018-08-31 22:14:50,2018-09-01 00:00:00,CBEHFCFCG,0,地铁入站,地铁五号线,IGT-105,布吉,0,\
0,263032105
2018-08-31 23:11:06,2018-09-01 00:00:00,FFHEDIBCC,700,地铁出站,地铁五号线,OGT-101,长龙,0,\
665,263031101
2018-09-01 05:39:10,2018-09-01 00:00:00,CFBAJECDH,800,巴士,金华南巴士,粤BU2313,332(观澜),0,\
595,227000010
"""
TRIPS = """\
Start station,Start time,End station,End time
226,2016-06-01 05:59:59 +0200,243,2016-06-01 06:02:14 +0200
206,2016-06-01 06:00:02 +0200,212,2016-06-01 06:18:46 +0200
"""


def raw(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((SHIPPED / f"{name}.json").read_text(encoding="utf-8"))
    return read


def read(settings: dict[str, Any], data: bytes) -> list[FeedRow]:
    profile = checked(settings)
    rows = feeds.rows(
        io.BytesIO(data),
        media_type=feeds.CSV,
        gzipped=False,
        size=len(data),
        form=profile.form,
        encoding=profile.encoding,
    )
    return list(profile.rows(rows))


def digest(*cells: str) -> str:
    return hashlib.sha256("\x1f".join(cells).encode()).hexdigest()[:32]


SAMPLES: dict[str, tuple[str, list[dict[str, Any]]]] = {
    # 12.30 yuan are 1,230 fen.
    "bank_epayment": (
        "交易流水号|客户号|交易类型|交易金额|交易时间|商户号|缴费户号\n"
        "P1|C7|扫码支付|12.30|20260519183005|M9|\n"
        "P2|C7|生活缴费|208|20260519190000||3301\n",
        [
            {
                "external_id": "C7",
                "behaviour": "mobile_pay_offline",
                "quantity": 1,
                "occurred_at": "2026-05-19T18:30:05+08:00",
                "source_event_id": "P1",
                "attributes": {"amount_fen": 1_230, "merchant": "M9"},
            },
            {
                "external_id": "C7",
                "behaviour": "utility_pay_online",
                "quantity": 1,
                "occurred_at": "2026-05-19T19:00:00+08:00",
                "source_event_id": "P2",
                "attributes": {"amount_fen": 20_800, "meter_account": "3301"},
            },
        ],
    ),
    # 5,200 m are 5.2 km.
    "bus_card": (
        "卡号,交易类型,里程（米）,上车时间,下车时间,终端号,终端流水号,线路\n"
        "K1,公交,5200,2026-05-19 08:00:00,2026-05-19 08:21:30,T4,0077,K1路\n",
        [
            {
                "external_id": "K1",
                "behaviour": "bus_km",
                "quantity": Decimal("5.2"),
                "occurred_at": "2026-05-19T08:00:00+08:00",
                "ended_at": "2026-05-19T08:21:30+08:00",
                "source_event_id": "T4-0077",
                "attributes": {"line": "K1路"},
            }
        ],
    ),
    # 1,779,235,200 s are 2026-05-20 08:00 in the city; 600 s later it is 08:10.
    "shared_bike": (
        "order_id,user_id,vehicle_type,distance_m,start_ms,end_ms\n"
        "o1,u1,1,1850,1779235200000,1779235800000\n",
        [
            {
                "external_id": "u1",
                "behaviour": "bike_km",
                "quantity": Decimal("1.85"),
                "occurred_at": "2026-05-20T08:00:00+08:00",
                "ended_at": "2026-05-20T08:10:00+08:00",
                "source_event_id": "o1",
            }
        ],
    ),
    # 31,450 Wh are 31.45 kWh.
    "ev_charging": (
        "订单号,用户编号,车牌,充电量Wh,开始时间,结束时间\n"
        "E1,U1,浙HD12345,31450,2026-05-19 12:00:00,2026-05-19 12:48:00\n",
        [
            {
                "external_id": "U1",
                "behaviour": "ev_charge_kwh",
                "quantity": Decimal("31.45"),
                "occurred_at": "2026-05-19T12:00:00+08:00",
                "ended_at": "2026-05-19T12:48:00+08:00",
                "source_event_id": "E1",
                "attributes": {"vehicle": "浙HD12345"},
            }
        ],
    ),
    "etc": (
        "ETC卡号,交易类别,出口时间,出口站\n3301,通行,2026/5/19 7:05:09,衢州东\n",
        [
            {
                "external_id": "3301",
                "behaviour": "etc_pass",
                "quantity": 1,
                "occurred_at": "2026-05-19T07:05:09+08:00",
                "source_event_id": digest("3301", "2026/5/19 7:05:09", "衢州东"),
            }
        ],
    ),
    # A 度 is a kWh.
    "grid_bill": (
        "账单号,原账单号,户号,上次抄表日期,本次抄表日期,抄表方式,电量\n"
        "B2,B1,33010001,20260401,20260430,估抄,186.5\n",
        [
            {
                "carrier": "electricity",
                "account_no": "33010001",
                "period_start": "2026-04-01",
                "period_end": "2026-04-30",
                "quantity": Decimal("186.5"),
                "estimated": True,
                "source_event_id": "B2",
                "corrects": "B1",
            }
        ],
    ),
    "gas_bill": (
        "账单号,原账单号,户号,上次抄表日期,本次抄表日期,抄表方式,用气量\n"
        "G1,,44,20260401,20260430,远程,23\n",
        [
            {
                "carrier": "gas",
                "account_no": "44",
                "period_start": "2026-04-01",
                "period_end": "2026-04-30",
                "quantity": 23,
                "estimated": False,
                "source_event_id": "G1",
            }
        ],
    ),
    # 12,500 L are 12.5 m3.
    "water_bill": (
        "账单号,原账单号,户号,上次抄表日期,本次抄表日期,抄表方式,用水量（升）\n"
        "W1,,55,20260301,20260430,现场,12500\n",
        [
            {
                "carrier": "water",
                "account_no": "55",
                "period_start": "2026-03-01",
                "period_end": "2026-04-30",
                "quantity": Decimal("12.5"),
                "estimated": False,
                "source_event_id": "W1",
            }
        ],
    ),
    # 7 斤 of half a kilogram each are 3.5 kg.
    "recycler": (
        "会员号,重量（斤）,称重时间,磅单号,品类\nH1,7,2026-05-19 9:30,S-1,纸类\n",
        [
            {
                "external_id": "H1",
                "behaviour": "recycle_kg",
                "quantity": Decimal("3.5"),
                "occurred_at": "2026-05-19T09:30:00+08:00",
                "source_event_id": "S-1",
                "attributes": {"slip": "S-1", "category": "paper"},
            }
        ],
    ),
    "health_steps": (
        "open_id,day,steps\no-1,2026-05-19,8432\n",
        [
            {
                "external_id": "o-1",
                "behaviour": "walk_steps",
                "quantity": 8_432,
                "occurred_at": "2026-05-19T00:00:00+08:00",
                "source_event_id": "o-1:2026-05-19",
            }
        ],
    ),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_shipped_profile_reads_its_partners_file(name: str) -> None:
    text, expected = SAMPLES[name]
    settings = raw(name)
    assert settings["name"] == name.replace("_", "-")
    rows = read(settings, text.encode(settings.get("encoding", "utf-8")))
    assert rows == expected
    for row in rows:
        (sent_of if settings["kind"] == "bills" else row_of)(UTILITY, row)


def test_every_shipped_profile_has_a_sample() -> None:
    assert {path.stem for path in SHIPPED.iterdir()} == {*SAMPLES, "transit_taps"}


def test_card_taps_of_shenzhen_are_trips_and_an_entry_alone_is_none() -> None:
    entry, metro, bus = read(raw("transit_taps"), TAPS.encode())
    assert isinstance(entry, Unreadable)
    assert entry.why == "behaviour from deal_type: '地铁入站' is not in the code table"
    assert [metro, bus] == [
        {
            "external_id": card,
            "behaviour": behaviour,
            "quantity": 1,
            "occurred_at": at.replace(" ", "T") + "+08:00",
            "source_event_id": digest(card, at, device, word),
            "attributes": {"trip": True, "line": line},
        }
        for card, behaviour, at, device, word, line in (
            ("FFHEDIBCC", "metro_km", "2018-08-31 23:11:06", "263031101", "地铁出站", "地铁五号线"),
            ("CFBAJECDH", "bus_km", "2018-09-01 05:39:10", "227000010", "巴士", "金华南巴士"),
        )
    ]
    whole = DATA / "transit_shenzhen_2018-08-31_to_09-01_card_taps.csv"
    if whole.exists():
        rows = read(raw("transit_taps"), whole.read_bytes())
        trips = [row for row in rows if not isinstance(row, Unreadable)]
        # 64 entries, 26 exits and 10 buses, no two of them the same.
        assert [row["behaviour"] for row in trips].count("metro_km") == 26
        assert (len(rows), len(trips)) == (100, 36)
        assert len({row["source_event_id"] for row in trips}) == 36


def bikes(ways_m: dict[str, int]) -> dict[str, Any]:
    """Oslo's trips name two docks and no distance: a table of ways between docks is the profile."""
    trip = ["Start station", "Start time", "End station", "End time"]
    return {
        "name": "oslo-bikes",
        "kind": "activities",
        "time_zone": "Europe/Oslo",
        "fields": {
            # Who rode is not published.
            "external_id": {"constant": "somebody"},
            "behaviour": {"constant": "bike_km"},
            "quantity": {"columns": trip[::2], "codes": ways_m, "unit": "m", "to": "km"},
            "occurred_at": {"column": "Start time", "format": "%Y-%m-%d %H:%M:%S %z"},
            "ended_at": {"column": "End time", "format": "%Y-%m-%d %H:%M:%S %z"},
            "source_event_id": {"columns": trip, "digest": True},
        },
    }


def test_bike_trips_of_oslo_between_docks_a_table_knows() -> None:
    known, unknown = read(bikes({"226-243": 640}), TRIPS.encode())
    assert known == {
        "external_id": "somebody",
        "behaviour": "bike_km",
        "quantity": Decimal("0.64"),
        "occurred_at": "2016-06-01T05:59:59+02:00",
        "ended_at": "2016-06-01T06:02:14+02:00",
        "source_event_id": digest(
            "226", "2016-06-01 05:59:59 +0200", "243", "2016-06-01 06:02:14 +0200"
        ),
    }
    assert isinstance(unknown, Unreadable)
    assert "'206-212' is not in the code table" in unknown.why
    whole = DATA / "bikeshare_oslo_2016-06-01_to_07_trips.csv.gz"
    if whole.exists():
        lines = gzip.decompress(whole.read_bytes()).splitlines(keepends=True)[:2_001]
        trips = list(csv.DictReader(io.StringIO(b"".join(lines).decode())))
        ways = {f"{trip['Start station']}-{trip['End station']}": 1_200 for trip in trips}
        rows = [row for row in read(bikes(ways), b"".join(lines)) if isinstance(row, dict)]
        assert len(rows) == 2_000
        assert {row["quantity"] for row in rows} == {Decimal("1.2")}
        assert rows[0]["occurred_at"] == known["occurred_at"]
