"""`tanhui demo`: play a day of a city over HTTP and check every step of it.

Each step says what it saw; the first that comes out otherwise than the input says ends the demo
with exit code 1. Played again on the same data it changes nothing.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from api import stack
from api.config import DEFAULT_DATA_DIR, StackFacts
from api.demo import banks, inputs, partners, pushes, real, residents, rewards, tally
from api.demo.city import City, Record, Sessions
from api.demo.client import Client, StepFailed, expect
from api.demo.inputs import Calendar
from api.demo.seed import CREDENTIALS

BOOK_S = 300

Step = tuple[str, Callable[[City], str]]


def check_book(city: City) -> str:
    """`tanhui book verify` on the running stack."""
    command = [sys.executable, "-m", "api.cli", "book", "verify"]
    command += ["--data-dir", str(city.data_dir)]
    done = subprocess.run(
        command, cwd=stack.ROOT, capture_output=True, text=True, timeout=BOOK_S, check=False
    )
    said = (done.stdout + done.stderr).strip()
    expect("tanhui book verify", 0, done.returncode if done.returncode == 0 else said)
    return said


DAY: tuple[Step, ...] = (
    ("The stack is ready", residents.look_around),
    ("Residents sign in", residents.sign_in),
    ("Settings and phones", residents.settle_in),
    ("Cards are linked", residents.link_cards),
    ("Apps report", residents.report_from_apps),
    ("The partner streams", partners.stream),
    ("The partner's files", partners.hand_over_files),
    ("A card is linked late", partners.link_late),
    ("Bills arrive", partners.bills),
    ("A fare is refunded", partners.refund),
    ("A ride matures", partners.watch_a_ride),
    ("Points become vouchers", rewards.redeem),
    ("Vouchers are scanned", rewards.scan),
    ("Grades", banks.grade),
    ("Consent and the bank", banks.consent_and_query),
    ("Milestones are pushed", pushes.check),
    ("Sent again", tally.repeat),
    ("Accounts agree", tally.reconcile),
    ("The book holds", check_book),
)


def main(*, data_dir: Path | None, input_dir: Path | None, base_url: str | None) -> int:
    """Play against the stack on `data_dir` or at `base_url`; without either, against a new one.

    Returns the exit code. Raises what `stack.running` raises.
    """
    console = Console(highlight=False)
    errors = Console(stderr=True, highlight=False)
    began = time.monotonic()
    temporary = data_dir is None and base_url is None
    if data_dir is None:
        data_dir = Path(tempfile.mkdtemp(prefix="tanhui-demo-")) if temporary else _default()
    try:
        with ExitStack() as parts:
            if base_url is None:
                with console.status("Starting MongoDB, Redis, the API and its workers …"):
                    base_url = parts.enter_context(stack.running(data_dir, demo=True))
            console.print(f"The stack is at {base_url}, its data in {data_dir}", soft_wrap=True)
            code = _play(console, errors, data_dir.absolute(), base_url, input_dir)
            if code == 0:
                console.print(f"All as it should be, after {time.monotonic() - began:.0f} s.")
    except BaseException:
        if temporary:
            errors.print(f"The logs are kept in {data_dir / 'log'}", soft_wrap=True)
        raise
    if temporary and code == 0:
        shutil.rmtree(data_dir)
    elif temporary:
        errors.print(f"The data and logs are kept in {data_dir}", soft_wrap=True)
    return code


def _default() -> Path:
    return Path(DEFAULT_DATA_DIR)


def _play(
    console: Console, errors: Console, data_dir: Path, base_url: str, input_dir: Path | None
) -> int:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        name = "The demo"
        task = bar.add_task(name, total=None)
        try:
            city = _city(data_dir, base_url, lambda *at: _show(bar, task, at))
            steps: Sequence[Step] = DAY if input_dir is None else real.steps(input_dir)
            steps = steps if input_dir is None else (*steps, ("The book holds", check_book))
            for name, step in steps:
                bar.reset(task, description=name, total=None)
                began = time.monotonic()
                said = step(city)
                spent = f"{time.monotonic() - began:5.1f} s"
                console.print(f"[green]✓[/] {name:<24} {spent}  {escape(said)}", soft_wrap=True)
        except StepFailed as failed:
            errors.print(f"[red]✗ {name}[/]: {escape(str(failed))}", soft_wrap=True)
            return 1
    console.print()
    if input_dir is None:
        tally.show(city, console)
    else:
        real.show(city, console)
    if city.client.sent_again:
        console.print(f"{city.client.sent_again} calls were sent again after no answer or a wait.")
    return 0


def _show(bar: Progress, task: object, at: tuple[int, int]) -> None:
    bar.update(task, completed=at[0], total=at[1])  # type: ignore[arg-type]


def _city(data_dir: Path, base_url: str, tick: Callable[[int, int], None]) -> City:
    file = data_dir / CREDENTIALS
    if not file.is_file():
        raise StepFailed("credentials", f"{file} of a stack started with --demo", "no such file")
    record = Record(data_dir)
    record.begin()
    facts = StackFacts(data_dir).read() or {}
    city = City(
        client=Client(base_url),
        data_dir=data_dir,
        credentials=json.loads(file.read_text("utf-8")),
        record=record,
        sessions=Sessions(data_dir),
        day=inputs.built_in(Calendar(record.today)),
        fcm_url=facts.get("fcm_standin_url"),
        tick=tick,
    )
    city.tables["received_before"] = pushes.received(city)
    return city
