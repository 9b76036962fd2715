"""`tanhui operator`: who may run the programme.

Operators are named people, each with credentials of their own. They are added where the servers
run and not over HTTP: nobody's token can make another operator.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from accounting import audit, clients, storage, tokens, vault
from accounting.clients import AREAS, Kind
from api import stack
from api.config import DEFAULT_DATA_DIR

ACTOR = "command line"

data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    default=DEFAULT_DATA_DIR,
    show_default=True,
    help="Where data, logs and secrets live.",
)


@click.group()
def operator() -> None:
    """Say who may run the programme."""


@operator.command()
@click.argument("name")
@click.option(
    "--area",
    "areas",
    multiple=True,
    type=click.Choice(AREAS),
    help="A part of the programme; several may be given  [default: all of it]",
)
@data_dir_option
def add(name: str, areas: tuple[str, ...], data_dir: Path) -> None:
    """Add an operator by NAME and show the credentials, this once."""
    if not name.strip() or len(name) > clients.NAME_MAX:
        raise click.BadParameter(f"give a name of 1 to {clients.NAME_MAX} characters")
    scopes = tuple(f"operator:{area}" for area in areas) or None
    with _store(data_dir):
        client, secret = clients.create_client(Kind.OPERATOR, name.strip(), scopes=scopes)
        audit.note(ACTOR, "operator added", client.client_id, after={"scopes": client.scopes})
    click.echo(f"client_id      {client.client_id}")
    click.echo(f"client_secret  {secret}")


@operator.command("list")
@data_dir_option
def list_(data_dir: Path) -> None:
    """List every operator with what each may do."""
    table = Table("client_id", "name", "scopes", "since", "until")
    with _store(data_dir):
        for one in clients.operators():
            until = one.disabled_at.isoformat(timespec="seconds") if one.disabled_at else ""
            since = one.created_at.isoformat(timespec="seconds")
            table.add_row(one.client_id, escape(one.name), " ".join(one.scopes), since, until)
    Console().print(table)


@operator.command()
@click.argument("client_id")
@data_dir_option
def disable(client_id: str, data_dir: Path) -> None:
    """End the operator CLIENT_ID now, the tokens in use as well."""
    with _store(data_dir):
        known = {one.client_id: one for one in clients.operators()}
        if client_id not in known:
            raise click.ClickException(
                f"there is no operator {client_id}: see tanhui operator list"
            )
        tokens.disable_client(known[client_id])
        audit.note(ACTOR, "operator disabled", client_id, once=f"disabled:{client_id}")
    click.echo(f"{client_id} may do nothing any more.")


@contextmanager
def _store(data_dir: Path) -> Iterator[None]:
    with stack.store(data_dir) as store:
        vault.configure(store.secret)
        storage.connect(store.mongodb_uri)
        try:
            yield
        finally:
            storage.disconnect()
