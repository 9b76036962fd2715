"""`tanhui jobs` and `tanhui import`: long work begun, followed and stopped at a terminal."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from pymongo.errors import PyMongoError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from accounting import audit, clients, jobs, pace, shares, storage, vault
from accounting.clients import Kind
from accounting.enterprise import plants
from accounting.errors import DomainError
from accounting.jobs import Job
from api import stack
from api.operators import ACTOR, data_dir_option
from api.stack import Store
from integrations import dropped, feeds, imports, partner_profiles
from integrations.mapping import ACTIVITIES, BILLS
from integrations.servers import ServerError

READINGS = "readings"
KINDS = (ACTIVITIES, BILLS, READINGS)
STATES = (jobs.QUEUED, jobs.RUNNING, jobs.DONE, jobs.FAILED)
MEDIA_TYPES = {".csv": feeds.CSV, ".ndjson": feeds.NDJSON, ".jsonl": feeds.NDJSON}
LISTED_MAX = 1_000
LOOK_S = 0.5
# A store that is started again takes seconds; one that was stopped for good stays away.
AWAY_S = 120
# Where nobody watches, one line each time so much more is done, or so long has passed.
PLAIN_PERCENT, PLAIN_S = 10, 30


@click.group("jobs")
def jobs_group() -> None:
    """Look at long work: imports, gradings, rebuilds, exports, proofs."""


@jobs_group.command("list")
@click.option("--state", type=click.Choice(STATES), help="Only jobs in this state.")
@click.option("--kind", help="Only jobs of this kind, for example activities or regrade.")
@click.option(
    "--limit", type=click.IntRange(1, LISTED_MAX), default=20, show_default=True,
)  # fmt: skip
@data_dir_option
def list_(state: str | None, kind: str | None, limit: int, data_dir: Path) -> None:
    """List jobs, the newest first."""
    with _opened(data_dir):
        found = jobs.newest(state=state, kind=kind, limit=limit)
    columns = ("job", "kind", "state", "done", "of", "unit", "%", "a second", "left", "since")
    rows = [_row(job) for job in found]
    if not Console().is_terminal:
        for row in rows:
            click.echo("\t".join(row))
        return
    table = Table(*columns)
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)


@jobs_group.command()
@click.argument("job_id")
@data_dir_option
def show(job_id: str, data_dir: Path) -> None:
    """Show all that is known of a job."""
    with _opened(data_dir):
        job = _known(job_id)
        parts = shares.of(job_id)
    for name, value in _facts(job).items():
        if value not in (None, ""):
            click.echo(f"{name:<12} {value}")
    for part in parts:
        click.echo(f"{'share':<12} {part.id}  {_said(part)}")


@jobs_group.command()
@click.argument("job_id")
@data_dir_option
def follow(job_id: str, data_dir: Path) -> None:
    """Watch a job to its end; exit 0 if it is done, 1 if it failed.

    A store that is started again meanwhile is waited for.
    """
    _followed(job_id, data_dir)


@jobs_group.command()
@click.argument("job_id")
@click.option("--reason", required=True, help="Its owner and the audit trail read it.")
@data_dir_option
def cancel(job_id: str, reason: str, data_dir: Path) -> None:
    """Stop a job where it is; what is done stays."""
    from api import tasks  # Its dependencies would slow down every other command.

    with _opened(data_dir):
        job = _known(job_id)
        if not tasks.stoppable(job):
            raise click.ClickException(f"a job of kind {job.kind} cannot be stopped here")
        jobs.cancel(job_id, ACTOR, reason)
        audit.note(ACTOR, "job cancelled", job_id, reason=reason)
    click.echo(f"{job_id} is cancelled: {reason}")


@jobs_group.command()
@click.argument("job_id")
@data_dir_option
def resume(job_id: str, data_dir: Path) -> None:
    """Let a cancelled job go on where it was stopped, in a minute."""
    with _opened(data_dir):
        _known(job_id)
        jobs.resume(job_id)
        dropped.again(job_id)
        audit.note(ACTOR, "job resumed", job_id)
    click.echo(f"{job_id} goes on in a minute.")


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--partner", required=True, help="Who the file is of; of readings, the plant.")
@click.option("--kind", type=click.Choice(KINDS), required=True)
@click.option("--profile", "profile_name", help="The partner's mapping profile to read it by.")
@click.option("--charset", help="Of a CSV: utf-8 or gb18030  [default: the profile's, or utf-8]")
@click.option("--follow", "then_follow", is_flag=True, help="Watch it to its end.")
@click.option("--here", is_flag=True, help="Work it in this process, not by the stack's workers.")
@data_dir_option
def import_(
    file: Path,
    partner: str,
    kind: str,
    profile_name: str | None,
    charset: str | None,
    then_follow: bool,
    here: bool,
    data_dir: Path,
) -> None:
    """Hand FILE over as a partner would: .ndjson, .jsonl or .csv, with .gz if it is packed."""
    with _opened(data_dir):
        job = _stored(file, partner, kind, profile_name, charset)
        audit.note(ACTOR, "file imported", job.id, after={"partner": partner, "kind": kind})
        click.echo(job.id)
        if here:
            with ThreadPoolExecutor(1) as pool:
                _watched(job.id, pool.submit(_work, job))
            return
    if then_follow:
        _followed(job.id, data_dir)


def _stored(
    file: Path, partner: str, kind: str, profile_name: str | None, charset: str | None
) -> Job:
    media_type = MEDIA_TYPES.get(file.with_suffix("").suffix if _packed(file) else file.suffix)
    if media_type is None:
        raise click.ClickException(f"{file.name}: want .ndjson, .jsonl or .csv, then .gz if packed")
    profile = None
    if kind == READINGS:
        with _refusals():
            plants.get_plant(partner)
    elif clients.of_subject(Kind.DATA, partner) is None:
        raise click.ClickException(f"there is no data partner {partner}")
    if profile_name is not None:
        profile = partner_profiles.latest(partner, profile_name)
        if profile is None or profile.profile.kind != kind:
            raise click.ClickException(f"{partner} has no profile {profile_name} for {kind}")
    encoding = feeds.encoding_of(media_type, charset, profile.profile.encoding if profile else None)
    if encoding is None:
        raise click.ClickException(f"cannot read {media_type} in {charset}")
    with file.open("rb") as data, _refusals():
        return imports.store(
            kind,
            partner,
            data,
            media_type=media_type,
            gzipped=_packed(file),
            encoding=encoding,
            profile=profile,
        )


def _packed(file: Path) -> bool:
    return file.suffix == ".gz"


def _work(job: Job) -> None:
    """Work a file in this very process."""
    from api import tasks  # Its dependencies would slow down every other command.
    from footprint import versions

    versions.register.install()
    take_rows, form = tasks.FILES[job.kind]
    imports.run(job.id, take_rows, form)


# Watching.


def _followed(job_id: str, data_dir: Path) -> None:
    """Watch a job on a store that may be started again meanwhile."""
    away_since: float | None = None
    with _Screen() as screen:
        while True:
            try:
                with _attached(data_dir) as there:
                    if there:
                        away_since = None
                        return _end(_look(job_id, screen))
            except (PyMongoError, ServerError):
                pass
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > AWAY_S:
                raise click.ClickException(
                    f"nothing runs on {data_dir}: start it with tanhui up, then follow {job_id}"
                )
            screen.away()
            time.sleep(LOOK_S)


def _watched(job_id: str, work: "Future[None]") -> None:
    """Watch a job that is worked on in this process."""
    with _Screen() as screen:
        while not work.done():
            screen.show(_known(job_id))
            time.sleep(LOOK_S)
        work.result()
        job = _known(job_id)
        screen.show(job)
    _end(job)


def _look(job_id: str, screen: "_Screen") -> Job:
    while True:
        job = _known(job_id)
        screen.show(job)
        if job.state not in jobs.UNFINISHED:
            return job
        time.sleep(LOOK_S)


def _end(job: Job) -> None:
    """Exit as the job ended."""
    if job.state == jobs.FAILED:
        why = job.failure.en if job.failure else "it failed"
        raise click.ClickException(f"{job.id} failed: {why}")
    click.echo(f"{job.id} is done: {_counts(job)}")


class _Screen:
    """A bar with the job's own numbers, or a line now and then where nobody watches."""

    def __init__(self) -> None:
        self._console = Console()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[said]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=100, said="")
        self._shown: tuple[str, int] | None = None
        self._shown_at = 0.0

    def __enter__(self) -> "_Screen":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, job: Job) -> None:
        said = _said(job)
        self._bar.update(self._task, description=job.kind, completed=job.progress, said=said)
        if self._console.is_terminal:
            return
        step = (job.state, job.progress // PLAIN_PERCENT)
        now = time.monotonic()
        if step != self._shown or now - self._shown_at >= PLAIN_S:
            click.echo(f"{job.id} {said}")
            self._shown, self._shown_at = step, now

    def away(self) -> None:
        """Say that the store cannot be asked now."""
        self._bar.update(self._task, said="waiting for the store")
        if not self._console.is_terminal and self._shown != ("away", 0):
            click.echo("waiting for the store")
            self._shown = ("away", 0)


def _said(job: Job) -> str:
    of = f" of {job.total:,}" if job.total is not None else ""
    parts = [job.state, f"{job.progress} %", f"{job.done:,}{of} {job.unit}"]
    if job.state != jobs.QUEUED:
        parts.append(f"{_rate(job)}/s")
    if job.seconds_left is not None:
        parts.append(f"{_span(job.seconds_left)} left")
    return ", ".join(parts)


def _rate(job: Job) -> str:
    per_second = job.rate_milli / pace.MILLI
    return f"{per_second:,.1f}" if per_second < 100 else f"{per_second:,.0f}"


def _span(seconds: int) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _counts(job: Job) -> str:
    counted = [f"{count:,} {name}" for name, count in job.counts.items() if count]
    return ", ".join(counted) or f"{job.done:,} {job.unit}"


def _row(job: Job) -> tuple[str, ...]:
    left = "" if job.seconds_left is None else _span(job.seconds_left)
    total = "" if job.total is None else str(job.total)
    since = job.created_at.isoformat(timespec="seconds")
    return (
        *(job.id, job.kind, job.state, str(job.done), total, job.unit),
        *(str(job.progress), _rate(job), left, since),
    )


def _facts(job: Job) -> dict[str, Any]:
    def at(instant: Any) -> Any:
        return instant and instant.isoformat(timespec="seconds")

    return {
        "job": job.id,
        "kind": job.kind,
        "owner": job.owner,
        "state": _said(job),
        "counts": ", ".join(f"{count:,} {name}" for name, count in job.counts.items() if count),
        "queued": at(job.created_at),
        "begun": at(job.started_at),
        "ended": at(job.finished_at),
        "expected": at(job.eta),
        "failure": job.failure and f"{job.failure.code}: {job.failure.en} {job.failure.zh}",
        "cancelled by": job.cancelled_by,
        "share of": job.whole,
        "taken back": job.reversal,
    }


# The store.


def _known(job_id: str) -> Job:
    job = jobs.get(job_id)
    if job is None:
        raise click.ClickException(f"there is no job {job_id}: see tanhui jobs list")
    return job


@contextmanager
def _opened(data_dir: Path) -> Iterator[None]:
    """The store, started for this command if nothing runs on it; refusals in words."""
    with stack.store(data_dir) as store, _connected(store), _refusals():
        yield


@contextmanager
def _attached(data_dir: Path) -> Iterator[bool]:
    """The store of a stack that runs; False if there is none now. Starts nothing."""
    store = stack.found(data_dir)
    if store is None:
        yield False
        return
    with _connected(store):
        yield True


@contextmanager
def _connected(store: Store) -> Iterator[None]:
    vault.configure(store.secret)
    storage.connect(store.mongodb_uri)
    try:
        yield
    finally:
        storage.disconnect()


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except DomainError as refusal:
        raise click.ClickException(refusal.text("en")) from None
