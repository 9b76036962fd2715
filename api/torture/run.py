"""One run: start the stack, let clients write and parts die, wait until all is calm, count."""

import json
import random
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from accounting import storage, vault
from api import config as settings
from api import processes, stack
from api.demo.client import StepFailed
from api.demo.seed import CREDENTIALS
from api.torture import checks
from api.torture.load import Load
from api.torture.victims import Victims

PAUSE_S = (1.0, 6.0)
CALM_SECONDS = 300
POLL_SECONDS = 0.5

Calm = Callable[[], None]


def main(*, data_dir: Path | None, seed: int, minutes: float) -> int:
    """Torture the demo stack on `data_dir`, or a new one in a temporary place; the exit code.

    Raises what `stack.running` raises.
    """
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    temporary = data_dir is None
    where = Path(tempfile.mkdtemp(prefix="tanhui-torture-")) if data_dir is None else data_dir
    with stack.running(where, demo=True) as base_url:
        console.print(f"The stack is at {base_url}, its data in {where}", soft_wrap=True)
        try:
            found = torture(where.absolute(), base_url, seed, minutes * 60, console)
        except StepFailed as failed:
            found = [str(failed)]
    for problem in found:
        errors.print(f"[red]✗[/] {escape(problem)}", soft_wrap=True)
    if found:
        errors.print(f"Seed {seed}; data and logs are kept in {where}", soft_wrap=True)
        return 1
    if temporary:
        shutil.rmtree(where)
    console.print("Nothing was lost, nothing was done twice, and the book holds.")
    return 0


def torture(
    data_dir: Path,
    base_url: str,
    seed: int,
    seconds: float,
    console: Console,
    *,
    calm: Calm | None = None,
    pause_s: tuple[float, float] = PAUSE_S,
) -> list[str]:
    """Kill for so long, then hold the store against what was acknowledged; what is wrong.

    `calm` returns when nothing is half-way any more; by default the stack's own sweeps are awaited.
    """
    facts = settings.StackFacts(data_dir).read()
    if facts is None or not facts["demo"]:
        raise stack.StackError(f"there is no demo stack on {data_dir} to torture")
    credentials = json.loads((data_dir / CREDENTIALS).read_text("utf-8"))
    rng = random.Random(seed)
    load = Load(base_url, credentials, seed, run=f"t{secrets.token_hex(4)}")
    victims = Victims(facts["pid"], rng)
    load.prepare()
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with ExitStack() as parts:
        parts.enter_context(bar)
        task = bar.add_task("clients write, parts die", total=None)
        with load.running() as lives:
            end = time.monotonic() + seconds
            while (now := time.monotonic()) < end and not any(life.done() for life in lives):
                killed = victims.kill_one(now)
                bar.update(task, description=f"{killed or 'nobody'} died")
                time.sleep(min(rng.uniform(*pause_s), max(end - now, 0)))
            bar.update(task, description="clients finish what they began")
        for life in lives:
            life.result()  # A client that could not go on says why.
        _show(console, load, victims)
        bar.update(task, description="sweeps finish what was left half-way")
        _wait(lambda: processes.answers(base_url), "the API does not answer again")
        store = parts.enter_context(stack.store(data_dir))
        vault.configure(store.secret)
        storage.connect(store.mongodb_uri)
        parts.callback(storage.disconnect)
        (calm or _await_sweeps)()
        bar.update(task, description="counting")
        run = checks.Run(
            load.ledger, load.residents, load.reward_id, credentials["merchant"]["merchant_id"]
        )
        return checks.problems(run, lambda count: bar.update(task, description=f"{count} entries"))


def _await_sweeps() -> None:
    _wait(lambda: not checks.half_way(), "the sweeps have not finished everything")


def _wait(done: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + CALM_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise stack.StackError(f"{otherwise} within {CALM_SECONDS} s")
        time.sleep(POLL_SECONDS)


def _show(console: Console, load: Load, victims: Victims) -> None:
    table = Table()
    for column in ("what", "", "number"):
        table.add_column(column, justify="right" if column == "number" else "left")
    for title, counts in (
        ("killed", victims.kills),
        ("acknowledged", load.ledger.answered),
        ("given up", load.ledger.given_up),
    ):
        for name, count in sorted(counts.items()):
            table.add_row(title, name, f"{count:,}")
    table.add_row("sent again", "", f"{load.client.sent_again:,}")
    console.print(table)
