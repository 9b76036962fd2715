"""Bills a second: a year's history and a month, together and one by one, next to raw PyMongo.

    python -m bench.bills [--homes 1000]

Raw writes the same bills and entries with `insert_many` and the same concerns, and reads nothing.
Every home is a household of one with twelve months of 300 kWh and an April of 240, so each bill of
the month is judged against its history, credited, and passes four milestones of its resident.
"""

import argparse
from decimal import Decimal

from accounting import clock, storage
from bench.side_by_side import fresh_store, out, table, timed
from footprint import households
from footprint.bill_intake import Sent
from footprint.billing_rules import BillReport
from points import bill_crediting

SINGLES = 100
OPTIONS = ("unique", "sparse", "partialFilterExpression")


def sent(month: str, home: int, kwh: int) -> Sent:
    first, last = clock.first_day(month), clock.last_day(month)
    report = BillReport("electricity", f"H-{home}", first, last, Decimal(kwh))
    return Sent(report, f"{month}-{home}")


def together(rows: list[Sent], size: int = 1_000) -> None:
    for start in range(0, len(rows), size):
        bill_crediting.report_many(rows[start : start + size], source="grid")


def raw(name: str) -> float:
    """Seconds PyMongo takes to write what is in a collection into another one like it."""
    documents = list(storage.database()[name].find())
    copy = storage.strong(storage.database()[f"{name}_raw"])
    for index in storage.database()[name].index_information().values():
        options = {one: index[one] for one in OPTIONS if one in index}
        copy.create_index(index["key"], **options)
    return timed(lambda: copy.insert_many(documents, ordered=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--homes", type=int, default=1_000)
    homes = parser.parse_args().homes
    newest = clock.add_months(clock.city_month(clock.now()), -1)
    with fresh_store():
        for home in range(homes):
            households.join(f"res_{home}", "electricity", f"H-{home}", 1)
        months = [clock.add_months(newest, -ago) for ago in range(12, 0, -1)]
        history = [sent(month, home, 300) for month in months for home in range(homes)]
        took_history = timed(lambda: together(history))
        raw_history = raw("bills")
        singles = [sent(newest, home, 240) for home in range(min(SINGLES, homes // 2))]
        took_singles = timed(lambda: [together([one]) for one in singles])
        month = [sent(newest, home, 240) for home in range(len(singles), homes)]
        took_month = timed(lambda: together(month))
        storage.database()["bills_raw"].drop()
        raw_month = (raw("bills") / (len(history) + homes) + raw("entries") / homes) * len(month)
    shown = table("bills a second", "what", "bills", "a second", "raw", "share of raw")
    for what, count, took, least in (
        ("history, 1,000 together", len(history), took_history, raw_history),
        ("credited, 1,000 together", len(month), took_month, raw_month),
        ("credited, one by one", len(singles), took_singles, None),
    ):
        raw_rate, share = (f"{count / least:,.0f}", f"{least / took:.0%}") if least else ("", "")
        shown.add_row(what, f"{count:,}", f"{count / took:,.0f}", raw_rate, share)
    out.print(shown)


if __name__ == "__main__":
    main()
