"""The `tanhui` command. Every failure is one line on stderr; exit 0 means it worked."""

import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from pymongo.errors import PyMongoError
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from accounting import book as the_book
from accounting import clock, indexing, proofs, storage, vault, verifying
from accounting import factors as the_factors
from accounting.factors import review
from accounting.verifying import Broken, Place
from api import grading, job_commands, launch, operators, processes, stack, stores
from api.backup.archive import BackupError
from api.backup.command import backup, restore
from api.bookkeeping import RULES
from api.city.command import city as make_city
from api.config import Config, ConfigError
from api.operators import data_dir_option
from api.status import status
from footprint import versions
from integrations.servers import LOOPBACK, ServerError
from points.simulating import City

# A factor on what the city does now.
FACTOR = click.FloatRange(0.1, 10)


@click.group(invoke_without_command=True)
@click.pass_context
def tanhui(context: click.Context) -> None:
    """Tanhui: the backend of a city's resident low-carbon account."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@tanhui.command()
@data_dir_option
@click.option("--host", default=LOOPBACK, show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--demo", is_flag=True, help="Load demo people and open demo conveniences.")
def up(data_dir: Path, host: str, port: int, demo: bool) -> None:
    """Start everything and keep it running until Ctrl-C."""
    launch.up(data_dir, host=host, port=port, demo=demo)


@tanhui.command()
@data_dir_option
def restart(data_dir: Path) -> None:
    """Start the parts of a running `tanhui up` anew, with the code that is installed now.

    Indexes first, then each worker when its tasks are finished, then the API: the new one takes
    requests before the old one ends, so no caller is refused. MongoDB and Redis go on.
    """
    stack.running_facts(data_dir)
    with stack.store(data_dir) as store:
        for one in stores.make_indexes(store.mongodb_uri):
            click.echo(f"{one.kind}, left as it is: {_named(one)}", err=True)
    stack.restart(data_dir)
    click.echo("Every part runs anew.")


@tanhui.command()
@click.option("--drop", is_flag=True, help="Drop indexes nobody declares, replace differing ones.")
def prepare(drop: bool) -> None:
    """Check the servers that MONGODB_URI and REDIS_URL name, and make every index they lack.

    Run it before the parts of a new release start, while the old ones serve; run again it changes
    nothing. With --drop, only when no part of the old release runs any more.
    """
    config = Config.from_env(os.environ)
    stores.check_mode(config)
    stores.check_redis(config)
    left = stores.make_indexes(
        config.mongodb_uri,
        lambda one: click.echo(f"{'drop' if one.declared is None else 'build'}  {_named(one)}"),
        drop=drop,
    )
    for one in left:
        click.echo(f"{one.kind}, left as it is without --drop: {_named(one)}", err=True)
    if any(one.kind == indexing.DIFFERENT for one in left):
        raise click.ClickException("not every index is as this release declares it: see above")
    click.echo("The servers serve, and every index is there.")


@tanhui.command()
@data_dir_option
def indexes(data_dir: Path) -> None:
    """Show indexes that are missing, different or extra; exit 1 for missing and different ones."""
    import api.app  # noqa: F401  # Every room, and so every declaration.

    with stack.store(data_dir) as store:
        storage.connect(store.mongodb_uri)
        try:
            found = indexing.differences()
            wanted = sum(map(len, indexing.declared().values()))
        finally:
            storage.disconnect()
    if found:
        table = Table(title="Indexes that are not as declared")
        for column in ("finding", "index", "declared", "present"):
            table.add_column(column, overflow="fold")
        for one in found:
            sides = (one.declared, one.present)
            texts = [escape(indexing.describe(side)) if side else "" for side in sides]
            table.add_row(one.kind, escape(_named(one)), *texts)
        Console().print(table)
    lacking = sum(one.kind != indexing.EXTRA for one in found)
    if lacking:
        raise click.ClickException(f"{lacking} of {wanted} indexes are missing or different")
    click.echo(f"All {wanted} declared indexes are there.")


def _named(finding: indexing.Finding) -> str:
    return f"{finding.collection}.{finding.name}"


@tanhui.command()
@click.argument("part", type=click.Choice(processes.NAMES))
@click.option(
    "--bind", default=f"{LOOPBACK}:8000", show_default=True, help="Where the API listens."
)
def run(part: str, bind: str) -> None:
    """Run one part in the foreground, on servers that the environment names.

    For whoever supervises parts on many machines; on one machine `tanhui up` does it all.
    """
    config = Config.from_env(os.environ)
    config.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    stores.check_data(config)
    processes.become(part, config, bind, os.environ)


@tanhui.command()
@data_dir_option
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def watch(data_dir: Path, folder: Path) -> None:
    """Take in the files that partners lay down in FOLDER, until Ctrl-C.

    FOLDER/PARTNER/activities and FOLDER/PARTNER/bills are read; docs/files.md has the rest.
    """
    from api import watcher  # Its dependencies would slow down every other command.

    with stack.store(data_dir) as store:
        click.echo(f"Watching {folder}. Ctrl-C stops.", err=True)
        watcher.watch(
            Config(
                mongodb_uri=store.mongodb_uri,
                redis_url=store.redis_url,
                secret=store.secret,
                public_url="",
                data_dir=data_dir,
                drop_folder=folder,
            )
        )


@tanhui.command()
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="Play against the stack on this directory, started if needed  [default: a temporary one]",
)
@click.option(
    "--input",
    "input_dir",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Play the files in this folder instead of the day that comes with Tanhui.",
)
@click.option("--base-url", help="Play against this stack instead of the one on --data-dir.")
@click.pass_context
def demo(
    context: click.Context, data_dir: Path | None, input_dir: Path | None, base_url: str | None
) -> None:
    """Play one day of a city over HTTP and check every step of it."""
    from api.demo import play  # Its dependencies would slow down every other command.

    context.exit(play.main(data_dir=data_dir, input_dir=input_dir, base_url=base_url))


@tanhui.command()
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="Torture the demo stack on this directory, started if needed  [default: a temporary one]",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Decides who dies when.")
@click.option("--minutes", type=click.FloatRange(0.05), default=3, show_default=True)
@click.pass_context
def torture(context: click.Context, data_dir: Path | None, seed: int, minutes: float) -> None:
    """Kill parts of a demo stack while clients write; check that nothing is lost or done twice."""
    from api.torture import run

    context.exit(run.main(data_dir=data_dir, seed=seed, minutes=minutes))


@tanhui.group()
def book() -> None:
    """Look at the book of points."""


@book.command()
@data_dir_option
@click.option("--account", help="Check one account only.")
@click.option("--anew", is_flag=True, help="Begin at the first account, not where it was stopped.")
def verify(data_dir: Path, account: str | None, anew: bool) -> None:
    """Recompute every entry of the book and name the first that does not hold.

    Hashes, numbers, sums, balances, lots, lifetime grams and cap counters; what the last nightly
    proof names must be there unchanged. Stopped, it goes on where it was the next time.
    """
    with stack.store(data_dir) as store:
        vault.configure(store.secret)
        storage.connect(store.mongodb_uri)
        versions.register.install()
        try:
            found = _checked_account(account) if account else _checked_book(anew)
        except Broken as broken:
            raise click.ClickException(f"the book does not hold: {broken}") from None
        finally:
            storage.disconnect()
    click.echo(f"The book holds: {found.entries} entries of {found.accounts} accounts.")


def _checked_account(account: str) -> Place:
    found = verifying.check([account], RULES, proofs.proved([account]))
    return Place(entries=found.entries, accounts=1 if found.entries else 0)


def _checked_book(anew: bool) -> Place:
    """With progress and the time that is left on stderr when a person is watching."""
    stopped = None if anew else verifying.place()
    if stopped is not None:
        click.echo(f"going on behind {stopped.after}, {stopped.entries} entries on", err=True)
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("checking the book"),
        BarColumn(),
        TextColumn("{task.completed:,} of about {task.total:,} entries"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=the_book.count())
        return verifying.whole_book(
            RULES, proofs.proved, lambda entries: bar.update(task, completed=entries), anew=anew
        )


tanhui.add_command(operators.operator)
tanhui.add_command(grading.grades)
tanhui.add_command(make_city)
tanhui.add_command(backup)
tanhui.add_command(restore)
tanhui.add_command(job_commands.jobs_group)
tanhui.add_command(job_commands.import_)
tanhui.add_command(status)


@tanhui.command()
@data_dir_option
@click.option("--rate", type=FACTOR, default=1.0, show_default=True, help="On points a gram.")
@click.option("--price", type=FACTOR, default=1.0, show_default=True, help="On prices in points.")
@click.option("--uptake", type=FACTOR, default=1.0, show_default=True, help="On growth.")
@click.option("--months", type=click.IntRange(1, 60), default=12, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the plots go  [default: simulation/ in the data directory]",
)
@click.option("--example", is_flag=True, help="Begin with the example city and read no store.")
@click.option("--growth", type=click.FloatRange(0, 1), default=0.03, show_default=True)
@click.option("--ceiling", type=click.FloatRange(0, 1), default=0.45, show_default=True)
@click.option("--grams-by-rate", type=click.FloatRange(0, 2), default=0.1, show_default=True)
@click.option("--spending-by-price", type=click.FloatRange(0, 2), default=0.5, show_default=True)
def simulate(
    data_dir: Path,
    rate: float,
    price: float,
    uptake: float,
    months: int,
    seed: int,
    out: Path | None,
    example: bool,
    growth: float,
    ceiling: float,
    grams_by_rate: float,
    spending_by_price: float,
) -> None:
    """Project liability and cost for a change of rate, price or uptake (factors: 1 is as it is).

    Begins where the city stands; docs/simulate.md has the model and its assumptions.
    """
    from api import simulation  # Its dependencies would slow down every other command.

    city = None if example else _observed(data_dir)
    if city is None and not example:
        click.echo("No full month lies behind this city: it begins with the example instead.")
    found = simulation.compare(
        city or simulation.EXAMPLE,
        simulation.Change(rate, price, uptake),
        first=clock.add_months(clock.city_month(clock.now()), 1),
        months=months,
        seed=seed,
        assume=simulation.Assumptions(growth, ceiling, grams_by_rate, spending_by_price),
    )
    Console().print(*simulation.tables(found), sep="\n")
    click.echo(simulation.summary(found))
    for file in simulation.plots(found, out or data_dir / "simulation"):
        click.echo(str(file))


def _observed(data_dir: Path) -> City | None:
    """The city as the store on a data directory has it."""
    from api import simulation

    with stack.store(data_dir) as store:
        vault.configure(store.secret)
        storage.connect(store.mongodb_uri)
        try:
            return simulation.observed(clock.now())
        finally:
            storage.disconnect()


@tanhui.group()
def factors() -> None:
    """Look at the emission factors."""


@factors.command()
@click.option(
    "--on",
    type=click.DateTime(["%Y-%m-%d"]),
    help="Judge review dates as on this day  [default: today]",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Check the tables in this folder instead of those that come with Tanhui.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    expose_value=False,
    help="Taken like everywhere; the tables come with Tanhui, so nothing there is read.",
)
def check(on: datetime | None, folder: Path | None) -> None:
    """List the factors somebody should look at.

    Overdue reviews, values known from memory only, and vintages standing in for a later year are
    warnings and exit 0. Unreadable rows, overlapping factors and factors without a source are
    errors and exit 1.
    """
    today = on.date() if on else clock.city_day(clock.now())
    table = Table(title=f"Emission factors on {today}")
    for column in ("finding", "factor or file", "what"):
        table.add_column(column, overflow="fold")
    try:
        registry = (
            the_factors.Registry.load(the_factors.files_in(folder))
            if folder
            else the_factors.shipped()
        )
    except the_factors.FactorsError as error:
        for problem in error.problems:
            table.add_row(problem.kind, escape(problem.place), escape(problem.why))
        Console().print(table)
        raise click.ClickException(
            f"problems in the factor tables: {len(error.problems)}"
        ) from None
    found = review.findings(registry, today)
    for finding in found:
        table.add_row(finding.kind, finding.factor.id, escape(finding.detail))
    if found:
        Console().print(table)
    click.echo(
        f"The factors hold: {len(registry.factors)} in {len(registry.sets)} sets, "
        f"{len(found)} to look at."
    )


def main() -> None:
    """Console entry."""
    try:
        code: Any = tanhui(prog_name="tanhui", standalone_mode=False)
    except click.Abort:
        code = _fail("interrupted", 130)
    except click.ClickException as error:
        code = _fail(error.format_message(), error.exit_code)
    except (ServerError, ConfigError, BackupError, stack.StackError, storage.WeakStore) as error:
        code = _fail(str(error))
    except PyMongoError as error:
        code = _fail(f"MongoDB: {error}")
    sys.exit(code if isinstance(code, int) else 0)


def _fail(problem: str, code: int = 1) -> int:
    click.echo(f"tanhui: {' '.join(problem.split())}", err=True)
    return code


if __name__ == "__main__":
    main()
