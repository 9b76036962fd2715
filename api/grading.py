"""`tanhui grade explain`: why a resident had a grade on a day, made again from what is stored."""

from datetime import date, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from accounting import book, clock, storage, vault
from accounting.quantities import kilograms
from api import stack
from api.operators import data_dir_option
from footprint import folding, grade, methodology, policy_versions, versions
from footprint.folding import Month
from footprint.grade import Snapshot
from footprint.summaries import Row


@click.group("grade")
def grades() -> None:
    """Look at gradings."""


@grades.command()
@click.argument("resident")
@click.option(
    "--on",
    "on",
    type=click.DateTime(["%Y-%m-%d"]),
    help="The grading in force at the end of this city day  [default: today]",
)
@data_dir_option
def explain(resident: str, on: datetime | None, data_dir: Path) -> None:
    """Show what the grade of RESIDENT was made of, and make it again.

    Once from the inputs the snapshot keeps, and those once more from the entries of the book that
    it had taken in. Exits 1 if either differs, or if there was no grading by that day.
    """
    with stack.store(data_dir) as store:
        vault.configure(store.secret)
        storage.connect(store.mongodb_uri)
        versions.register.install()
        policy_versions.register.install()
        try:
            day = on.date() if on else clock.city_day(clock.now())
            found = on_day(resident, day)
            if found is None:
                raise click.ClickException(f"{resident} was not graded by {day}")
            _show(found)
            problems = differing(found)
        finally:
            storage.disconnect()
    if problems:
        raise click.ClickException(f"the grading cannot be made again: {'; '.join(problems)}")
    click.echo("Made again from the kept inputs and from the book: the same.")


def on_day(resident: str, day: date) -> Snapshot | None:
    """The last grading up to the end of a city day."""
    return grade.newest_of(resident, before=clock.start_of(day.fromordinal(day.toordinal() + 1)))


def differing(found: Snapshot) -> list[str]:
    """What does not come out again; empty if everything does."""
    problems = []
    if found.inputs.stand() != found.standing:
        problems.append("the kept inputs give another standing")
    months: dict[str, Month] = {}
    for entry in book.entries(found.resident):
        if entry.seq > found.inputs.seq:
            break
        for name, effect in folding.effects(entry).items():
            if found.first_month <= name <= found.last_month:
                month = months.setdefault(name, Month(found.resident, name))
                month.take_in(entry.seq, effect)
    rows = [
        Row(name, key.behaviour, key.evidence, key.bank_grade, row["mg"], row["count"])
        for name, month in months.items()
        for key, row in month.behaviours.items()
    ]
    policy = grade.policy_named(found.policy)
    again = (*grade.counted(policy, rows), sum(row.mg for row in rows))
    kept = (found.by_behaviour, found.inputs.active_months, found.inputs.credited_mg)
    if again != kept:
        problems.append("the book gives other inputs")
    return problems


def _show(found: Snapshot) -> None:
    policy, standing, inputs = grade.policy_named(found.policy), found.standing, found.inputs
    console = Console()
    console.print(
        f"{found.resident}: {standing.grade} ({grade.label(policy, standing.grade)['zh']}), "
        f"grading {found.number} of {clock.city_day(found.graded_at)}, policy {policy.version}, "
        f"valid until {found.valid_until}"
    )
    console.print(f"months {found.first_month} to {found.last_month}, entries up to {inputs.seq}")
    counted = policy.counted(found.by_behaviour)
    table = Table()
    for column in ("behaviour", "dimension", "kg", "counted kg"):
        table.add_column(column, justify="right" if "kg" in column else "left")
    for code, mg in found.by_behaviour.items():
        table.add_row(
            code,
            methodology.dimension_of(code),
            f"{kilograms(mg)}",
            f"{kilograms(counted[code])}",
        )
    console.print(table)
    most = policy.most(standing.reduction_mg)
    console.print(
        f"raw {kilograms(standing.reduction_mg)} kg; one behaviour counts at most "
        f"{policy.share_num}/{policy.share_den} of it, {kilograms(most)} kg; "
        f"counted {kilograms(standing.counted_mg)} kg"
    )
    steps = ", ".join(f"{name} from {kilograms(floor)} kg" for floor, name in policy.cut_offs)
    console.print(
        f"{steps}; {standing.active_months} active months, {policy.active_months_min} needed"
    )
    console.print(
        f"held before: {inputs.held or 'nothing'}, {inputs.below} scheduled gradings below it; "
        f"{'this one counted' if inputs.counts else 'this one did not count'}"
        f"{'; a fraud was taken back' if inputs.released else ''}"
    )
