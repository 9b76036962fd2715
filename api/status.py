"""`tanhui status`: what a person looks at first when something is wrong, a line a part."""

import time
from collections.abc import Callable
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import click
import redis
from pymongo.errors import PyMongoError

from accounting import alarms, clock, following, jobs, proofs, storage
from api import queues, schema, stack
from api.operators import data_dir_option
from footprint import upkeep

ALARMS_SHOWN = 5
ALARMS_OF = timedelta(days=2)
SKEW_MS_MAX = 1_000
DISK_FULL = 0.9
LAG_MAX = timedelta(minutes=2)
# So long a running job may be without a worker: the sweep hands it on sooner.
LEFT_MAX = timedelta(minutes=5)


@click.command()
@data_dir_option
def status(data_dir: Path) -> None:
    """Say how MongoDB, Redis, queues, jobs and the proof are; exit 1 when something is not well."""
    with stack.store(data_dir) as store:
        storage.connect(store.mongodb_uri)
        try:
            lines = [
                _line(name, look)
                for name, look in (
                    ("MongoDB", _members),
                    ("clock", _skew),
                    ("disk", _disk),
                    ("data", _shape),
                    ("Redis", lambda: _queues(store.redis_url)),
                    ("jobs", _jobs),
                    ("summaries", _summaries),
                    ("proof", _proof),
                    ("alarms", _alarms),
                )
            ]
        finally:
            storage.disconnect()
    for _well, line in lines:
        click.echo(line)
    if not all(well for well, _line in lines):
        raise click.ClickException("not all is well: docs/runbook.md says what to do")


def _line(name: str, look: Callable[[], tuple[bool, str]]) -> tuple[bool, str]:
    try:
        well, said = look()
    except (PyMongoError, redis.RedisError) as error:
        well, said = False, f"away ({str(error).partition(',')[0]})"
    except stack.StackError as error:
        well, said = False, str(error)
    return well, f"{name:<10} {'ok ' if well else 'BAD'}  {said}"


def _members() -> tuple[bool, str]:
    found = storage.client().admin.command("replSetGetStatus")["members"]
    states = [f"{one['name']} {one['stateStr']}" for one in found]
    well = all(one["stateStr"] in ("PRIMARY", "SECONDARY", "ARBITER") for one in found)
    return well, ", ".join(states)


def _skew() -> tuple[bool, str]:
    """Half the way there and back is taken off."""
    began = time.monotonic()
    there = storage.client().admin.command("hello")["localTime"].replace(tzinfo=UTC)
    way = timedelta(seconds=(time.monotonic() - began) / 2)
    behind_ms = round((there + way - clock.now()) / timedelta(milliseconds=1))
    return abs(behind_ms) <= SKEW_MS_MAX, f"{behind_ms} ms behind MongoDB's"


def _disk() -> tuple[bool, str]:
    found = storage.database().command("dbStats")
    used, total = int(found["fsUsedSize"]), int(found["fsTotalSize"])
    size = found["dataSize"] / 1e9
    said = f"{used / total:.0%} of {total / 1e9:,.0f} GB used, data {size:.2f} GB"
    return used / total < DISK_FULL, said


def _shape() -> tuple[bool, str]:
    schema.refuse_half_restored(storage.database())
    found = schema.found_in(storage.database()) or {"version": 0, "release": "none"}
    return found["version"] <= schema.VERSION, f"shape {found['version']} of {found['release']}"


def _queues(url: str) -> tuple[bool, str]:
    with redis.Redis.from_url(url, socket_connect_timeout=3, socket_timeout=3) as client:
        lengths = {name: client.llen(name) for name in (queues.URGENT, queues.BULK, queues.OUTSIDE)}
    return True, ", ".join(f"{name} {length} waiting" for name, length in lengths.items())


def _jobs() -> tuple[bool, str]:
    rows: Any = storage.database()["jobs"]
    waiting = rows.count_documents({"state": jobs.QUEUED})
    running = rows.count_documents({"state": jobs.RUNNING})
    left = {"state": jobs.RUNNING, "leased_until": {"$lt": clock.now() - LEFT_MAX}}
    return rows.count_documents(left) == 0, f"{waiting} waiting, {running} running"


def _summaries() -> tuple[bool, str]:
    lag = following.lag(upkeep.FOLLOWER)
    if lag is None:
        return False, "nobody has followed the book yet"
    return lag < LAG_MAX, f"{lag.total_seconds():.0f} s since the follower was heard of"


def _proof() -> tuple[bool, str]:
    newest = proofs.newest()
    if newest is None:
        return True, "none yet"
    return newest.state == proofs.GREEN, f"{newest.state} of {newest.at.isoformat()}"


def _alarms() -> tuple[bool, str]:
    since = clock.now() - ALARMS_OF
    found = [one for one in alarms.newest(before=None, limit=ALARMS_SHOWN) if one.at >= since]
    said = ", ".join(f"{one.kind} ({one.subject})" for one in found)
    return not found, said or "none in two days"
