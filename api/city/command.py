"""`tanhui city`: the options, a progress bar, and what was written."""

import time
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import click

from accounting import clock
from api import progress
from api.city import making, plants
from api.city.chance import SEED_MAX
from api.city.files import Folder
from api.city.making import Plan
from api.operators import data_dir_option

# Numbers have eight digits, of which strangers take those from ninety million on.
RESIDENTS_MAX = 80_000_000
# Partners may report the last 180 days, and a year of bills is what a saving is measured against.
DAYS_MAX, BILL_MONTHS = 180, 13


@click.command()
@click.option(
    "--residents", type=click.IntRange(1, RESIDENTS_MAX), default=10_000, show_default=True
)
@click.option("--days", type=click.IntRange(1, DAYS_MAX), default=1, show_default=True)
@click.option("--seed", type=click.IntRange(0, SEED_MAX), default=1, show_default=True)
@click.option(
    "--until", type=click.DateTime(["%Y-%m-%d"]), help="The last day  [default: yesterday]"
)
@click.option(
    "--bill-months", type=click.IntRange(0, 60), default=BILL_MONTHS, show_default=True,
    help="Of bills; a saving needs a year before it.",
)  # fmt: skip
@click.option("--plants", "plant_count", type=click.IntRange(0, 99_999),
              help="[default: 1,110 for 2,334,000 residents]")  # fmt: skip
@click.option(
    "--meters", type=click.IntRange(1, 999), default=plants.METERS, show_default=True,
    help="Of each plant.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False),
    help="A folder that is new or empty  [default: city/ in the data directory]",
)  # fmt: skip
@click.option("--plain", is_flag=True, help="Do not compress the files.")
@data_dir_option
def city(
    residents: int,
    days: int,
    seed: int,
    until: datetime | None,
    bill_months: int,
    plant_count: int | None,
    meters: int,
    out: Path | None,
    plain: bool,
    data_dir: Path,
) -> None:
    """Make a city up: its people, and the files their partners hand over.

    The same options give the same bytes. docs/city.md has the distributions and their sources.
    """
    out = out or data_dir / "city"
    if not making.is_free(out):
        raise click.ClickException(f"{out} is not empty: name a new folder with --out")
    plan = Plan(
        residents=residents,
        days=days,
        seed=seed,
        until=until.date() if until else clock.city_day(clock.now()) - timedelta(days=1),
        bill_months=bill_months,
        plants=plants.count_for(residents) if plant_count is None else plant_count,
        meters=meters,
    )
    began = time.monotonic()
    with progress.bars() as show:
        written = making.write(plan, Folder(out, compressed=not plain), show)
    seconds = max(time.monotonic() - began, 1e-9)
    rows: Counter[str] = Counter()
    for one in written:
        rows[one.kind] += one.rows
    for kind, count in rows.items():
        click.echo(f"{kind}: {count:,} rows")
    click.echo(
        f"{len(written)} files, {sum(one.bytes for one in written):,} bytes in {out}, "
        f"{rows.total() / seconds:,.0f} rows/s"
    )
