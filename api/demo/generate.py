"""Make the day that `tanhui demo` plays: the same seed gives the same bytes.

    python -m api.demo.generate --seed 2026 --residents 40 --out api/demo/day

What the files mean and how the rows are spread is in `day/README.md`. `day/story.toml` is written
by hand and goes into the files with everything else.
"""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

import click

from api.demo import story
from api.demo.habits import HABITS, LATE_LINKER, Life, Row
from api.demo.household_bills import bills_of

SPECIAL = ("walker", "neighbour", "late_linker", "watcher")
SHARES = (("deep", 0.22), ("mid", 0.22), ("light", 0.28))
# The partner streams what is new and hands the rest over as files.
STREAMED_DAYS = 3
LATE_SHARE, REPEAT_SHARE = 0.03, 0.02
COLUMNS = (
    *("source_event_id", "external_id", "behaviour", "quantity", "day", "at"),
    *("amount_fen", "merchant", "meter_account", "card", "billing_month", "order", "invoice"),
)


def roles(residents: int) -> list[str]:
    """The role of each resident, first to last."""
    ordinary = residents - len(SPECIAL)
    found: list[str] = []
    for role, share in SHARES:
        found += [role] * round(ordinary * share)
    return [*found, *["unrated"] * (ordinary - len(found)), *SPECIAL]


def generate(seed: int, residents: int) -> dict[str, str]:
    """The files by name."""
    random = Random(seed)
    everyone = roles(residents)
    lives = []
    for who, role in enumerate(everyone, start=1):
        habit = LATE_LINKER if role == "late_linker" else HABITS.get(role)
        if habit is not None:
            life = Life(who, habit, random)
            life.live()
            lives.append(life)
    walker = everyone.index("walker") + 1
    households, bills = bills_of(everyone, random)
    mobility = [_partner_row(row, "card") for life in lives for row in life.mobility]
    payments = [_partner_row(row, "pay") for life in lives for row in life.payments]
    stream = _numbered([row for row in mobility if row["day"] <= STREAMED_DAYS], "s")
    filed = _numbered([row for row in mobility if row["day"] > STREAMED_DAYS], "n")
    listed = _numbered(payments, "c")
    people = {
        "seed": seed,
        "residents": [{"who": who, "role": role} for who, role in enumerate(everyone, start=1)],
        "households": households,
    }
    ndjson = _lines(_spoiled(filed, random) + _story(story.NDJSON, walker))
    return {
        "people.json": json.dumps(people, indent=1) + "\n",
        "app.ndjson": "".join(_lines(_app_rows(lives, walker, random))),
        "batch.ndjson": "".join(_lines(stream + _story(story.BATCH, walker))),
        "feed.ndjson": "".join(_with_damage(ndjson, random)),
        "feed.csv": _table(_spoiled(listed, random) + _story(story.CSV, walker)),
        "bills.csv": _csv(("source_event_id", *list(bills[0])[1:]), bills),
    }


def _partner_row(row: Row, kind: str) -> Row:
    held = dict(row)
    held["external_id"] = f"{kind}-{held.pop('who')}"
    return held


def _numbered(rows: list[Row], prefix: str) -> list[Row]:
    """In the order they happened, with an event id each."""
    ordered = sorted(rows, key=lambda row: (-row["day"], row["at"], row["external_id"]))
    return [
        {"source_event_id": f"{prefix}-{number}", **row} for number, row in enumerate(ordered, 1)
    ]


def _spoiled(rows: list[Row], random: Random) -> list[Row]:
    """As a partner's file really comes: late rows, repeats, and rows nobody can take."""
    late = [row for row in rows if random.random() < LATE_SHARE]
    moved = {row["source_event_id"] for row in late}
    found = [row for row in rows if row["source_event_id"] not in moved]
    for place in _places(found, round(len(rows) * REPEAT_SHARE), random):
        found.insert(min(place + random.randint(1, 30), len(found)), dict(found[place]))
    donors = [rows[place] for place in _places(rows, 26, random)]
    for number, donor in enumerate(donors):
        bad: Row = {**donor, "source_event_id": f"{donor['source_event_id']}-bad"}
        kind = number % 6
        if kind == 0:
            bad["behaviour"] = "scooter_km"
        elif kind == 1:
            bad["quantity"] = -bad["quantity"]
        elif kind == 2:
            bad["day"] = random.randint(190, 260)
        elif kind == 3:
            bad["day"] = -random.randint(1, 3)
        elif kind == 4:
            bad["external_id"] = f"stranger-{random.randint(1, 3)}"
        else:
            # The id of another row with other content.
            bad["source_event_id"] = donor["source_event_id"]
            bad["at"] = "03:03:03"
            found.append(bad)
            continue
        found.insert(random.randint(0, len(found)), bad)
    return found + late


def _places(rows: list[Row], count: int, random: Random) -> list[int]:
    return sorted(random.sample(range(len(rows)), count), reverse=True)


def _app_rows(lives: list[Life], walker: int, random: Random) -> list[Row]:
    """What phones report, resident by resident, a few events twice."""
    found = []
    for life in lives:
        rows = sorted(life.app, key=lambda row: (-row["day"], row["at"]))
        for number, row in enumerate(rows, start=1):
            found.append({"id": f"a-{number}", **row})
            if random.random() < REPEAT_SHARE:
                found.append(dict(found[-1]))
    for case in story.through(story.APP):
        found.append({"id": case.event, "who": walker, **_told(case), "by": case.by})
    return found


def _story(door: str, walker: int) -> list[Row]:
    return [
        {
            "source_event_id": case.event,
            "external_id": case.external_id or _card(case, walker),
            **_told(case),
            **({"attributes": case.attributes} if case.attributes else {}),
        }
        for case in story.through(door)
    ]


def _card(case: story.Case, walker: int) -> str:
    kind = "pay" if case.door == story.CSV else "card"
    return f"{kind}-{walker + case.neighbour}"


def _told(case: story.Case) -> Row:
    number = float(case.quantity)
    told: Row = {
        "behaviour": case.behaviour,
        "quantity": int(number) if number.is_integer() else number,
        "day": case.day,
        "at": case.at,
    }
    return told | ({"minutes": case.minutes} if case.minutes else {})


def _lines(rows: Iterable[Row]) -> list[str]:
    return [json.dumps(_filled(row), separators=(",", ":")) + "\n" for row in rows]


def _filled(row: Row) -> Row:
    return {name: value for name, value in row.items() if value not in (None, {})}


def _with_damage(lines: list[str], random: Random) -> list[str]:
    """Some lines arrive cut in half, beside the whole ones."""
    for place in sorted(random.sample(range(len(lines)), 6), reverse=True):
        lines.insert(place, lines[place][: len(lines[place]) // 2] + "\n")
    return lines


def _table(rows: list[Row]) -> str:
    flat = [
        {name: value for name, value in row.items() if name != "attributes"}
        | row.get("attributes", {})
        for row in rows
    ]
    text = _csv(COLUMNS, flat)
    # A row with a cell too few and one whose quantity is no number.
    return (
        text
        + "c-short,pay-1,online_transfer,1,20\n"
        + ("c-word,pay-1,online_transfer,once,20,10:00:00" + "," * 7 + "\n")
    )


def _csv(columns: tuple[str, ...], rows: list[Row]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


@click.command()
@click.option("--seed", type=int, default=2026, show_default=True)
@click.option("--residents", type=click.IntRange(12, 400), default=40, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=story.DAY)
def main(seed: int, residents: int, out: Path) -> None:
    """Write the day's files."""
    out.mkdir(parents=True, exist_ok=True)
    files: dict[str, Any] = generate(seed, residents)
    for name, text in files.items():
        (out / name).write_text(text, "utf-8")
        click.echo(f"{name}: {text.count(chr(10)):,} lines, {len(text.encode()):,} bytes")


if __name__ == "__main__":
    main()
