"""`tanhui backup` and `tanhui restore`."""

import os
import time
from pathlib import Path

import click

from accounting import clock, storage, vault
from api import config as settings
from api import progress, stack
from api.operators import data_dir_option
from api.stack import StackError


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@data_dir_option
def backup(path: Path, data_dir: Path) -> None:
    """Write everything in MongoDB, as it is at one moment, to the new file PATH while all runs.

    In a folder the file is named after the time. The secret is not in it: keep TANHUI_SECRET or
    secrets.json elsewhere, or nothing in the backup that is sealed can be read again.
    """
    from api.backup import taking  # Its dependencies would slow down every other command.

    target = path / taking.name_for(clock.now()) if path.is_dir() else path
    with stack.store(data_dir) as store:
        vault.configure(store.secret)
        storage.connect(store.mongodb_uri)
        try:
            began = time.monotonic()
            with progress.bars() as show:
                total = taking.size()
                found = taking.take(target, lambda read: show("backing up", read, total))
        finally:
            storage.disconnect()
    seconds = max(time.monotonic() - began, 1e-9)
    click.echo(
        f"{target}: {found.documents:,} documents of {len(found.parts)} collections, "
        f"{found.bytes:,} bytes in {target.stat().st_size:,}, "
        f"{found.bytes / seconds / 1e6:,.0f} MB/s"
    )
    click.echo(
        f"As of {found.taken_at}: {found.book['accounts']:,} accounts, root {found.book['root']}"
    )


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@data_dir_option
@click.option("--replace", is_flag=True, help="Drop everything in the database first.")
def restore(file: Path, data_dir: Path, replace: bool) -> None:
    """Load the backup FILE into an empty database and check it; nothing else may run on it.

    Needs the secret of the city it was made of: TANHUI_SECRET, or its secrets.json in the data
    directory. Stopped, run it again with the same file: it goes on where it was.
    """
    from api.backup import restoring
    from api.backup.archive import Archive

    with Archive(file) as archive:
        totals = {
            "checking": archive.manifest.bytes,
            "loading": archive.manifest.bytes,
            "book": next((p.documents for p in archive.manifest.parts if p.name == "entries"), 0),
        }
    if not (os.environ.get("MONGODB_URI") and os.environ.get("REDIS_URL")):
        _prepare_folder(data_dir)
    with stack.store(data_dir) as store:
        vault.configure(store.secret)
        storage.connect(store.mongodb_uri)
        began = time.monotonic()
        try:
            with progress.bars() as show:
                found = restoring.restore(
                    file,
                    replace=replace,
                    tell=lambda step, done: show(step, done, totals.get(step)),
                )
        finally:
            storage.disconnect()
    if found.went_on:
        click.echo("Went on with a restore that was stopped.")
    click.echo(
        f"{found.manifest.documents:,} documents of {len(found.manifest.parts)} collections are as "
        f"they were at {found.manifest.taken_at}, in {time.monotonic() - began:,.0f} s."
    )
    click.echo(
        f"The book holds: {found.book.entries} entries of {found.book.accounts} accounts, "
        f"root {found.manifest.book['root']}"
    )


def _prepare_folder(data_dir: Path) -> None:
    """Make the place for embedded servers. Their secret must be there: a new one opens nothing."""
    if settings.claimed(data_dir):
        raise StackError(f"{data_dir} is in use: stop what runs on it before a restore")
    secrets = data_dir / "secrets.json"
    given = os.environ.get("TANHUI_SECRET", "").strip()
    if not secrets.is_file():
        if not given:
            raise StackError(
                f"put the secrets.json of the city that was backed up into {data_dir} first, or "
                f"set TANHUI_SECRET"
            )
        settings.prepare(data_dir)
        settings.given_secret(os.environ)
        settings.write_private(secrets, {"secret": given})
    settings.prepare(data_dir)
    (data_dir / "mongodb").mkdir(mode=0o700, exist_ok=True)
