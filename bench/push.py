"""Ten thousand notifications past dead tokens, refusals, killed workers, an empty Redis: counted.

    python -m bench.push [--notifications 10000] [--seed 7] [--minutes 8]

Everything is real but Google: MongoDB, Redis, a Celery worker and beat of their own, and the
Firebase client, which sends to the stand-in over a socket. Of the tokens 5 % are UNREGISTERED; of
the messages 5 % meet a 429 with Retry-After and 2 % a 503. The worker is killed -9 three times and
Redis is started again empty. One resident in fifty has quiet hours until later in the day. Exits 1
when a living phone missed a notification, one rang at night, a dead token lives, or more came twice
than were in flight at a kill.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Table

from accounting import accounts, clock, outbox, storage, vault
from accounting.outbox import Notice
from api import tasks
from api.config import Config
from integrations import delivery, devices
from integrations.fcm_standin import Fault, FcmStandin
from integrations.servers import mongod, redis_server

out = Console()
EACH = 4
QUIET = {"from": "11:00", "to": "14:00"}
MISHAPS = (
    (0.05, Fault(429, "QUOTA_EXCEEDED", retry_after_s=2)),
    (0.02, Fault(503, "UNAVAILABLE")),
)
OVER = {"$nin": ["queued", "retrying", "deferred"]}


def settle(count: int) -> list[tuple[str, str, bool]]:
    """Residents with a phone each: resident, token, whether it is quiet there at noon."""
    found = []
    for number in range(count):
        resident = accounts.by_phone(f"+86137{number:08}")
        token = f"dead-{number}" if number % 20 == 0 else f"phone-{number}"
        devices.register(resident, token, "android")
        quiet = number % 50 == 1
        if quiet:
            accounts.change(resident, {"quiet_hours": QUIET})
        found.append((resident, token, quiet))
    return found


def leave(people: list[tuple[str, str, bool]]) -> None:
    notices = [
        Notice(
            resident,
            f"bench/{turn}",
            type="milestone",
            category=outbox.SERVICE,
            title={"zh": "里程碑", "en": "Milestone"},
            body={"zh": "已减排", "en": "Avoided"},
            deep_link="tanhui://milestones",
        )
        for turn in range(EACH)
        for resident, _, _ in people
    ]
    for start in range(0, len(notices), 1_000):
        outbox.leave_many(notices[start : start + 1_000])


@contextmanager
def celery(config: Config, shift: timedelta, role: list[str], log: Path) -> Iterator["Respawned"]:
    environment = {
        **os.environ,
        **config.environment(),
        "BENCH_SHIFT_S": str(shift.total_seconds()),
    }
    command = [sys.executable, "-m", "celery", "-A", "bench.push_worker:celery", *role]
    one = Respawned(command, environment, log)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.wait()


class Respawned:
    """A process that is started again each time it is killed."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self._command, self._environment, self._log = command, environment, log
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = self._start()


def waiting() -> int:
    return outbox.collection().count_documents({"delivery": {"$in": ["queued", "retrying"]}})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--notifications", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--minutes", type=float, default=8)
    wanted = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tanhui-push-"))
    (folder / "log").mkdir()
    try:
        with ExitStack() as parts:
            wrong = run(parts, folder, wanted.notifications, wanted.seed, wanted.minutes)
    finally:
        shutil.rmtree(folder)
    for line in wrong:
        out.print(f"[red]{line}[/red]")
    sys.exit(1 if wrong else 0)


def run(parts: ExitStack, folder: Path, size: int, seed: int, minutes: float) -> list[str]:
    standin = parts.enter_context(FcmStandin().running())
    standin.mishaps, standin.rng = MISHAPS, random.Random(seed)
    store = parts.enter_context(mongod(folder))
    queue = ExitStack()
    parts.callback(lambda: queue.close())
    redis = queue.enter_context(redis_server(folder))
    config = Config(
        mongodb_uri=store.url,
        redis_url=redis.url,
        secret=bytes(range(32)),
        public_url="http://localhost",
        data_dir=folder,
        fcm_url=standin.url,
    )
    vault.configure(config.secret)
    storage.connect(store.url)
    parts.callback(storage.disconnect)
    storage.ensure_indexes()
    noon = datetime.now(clock.CITY).replace(hour=12, minute=0, second=0, microsecond=0)
    shift = noon - datetime.now(clock.CITY)
    parts.enter_context(clock.travel(shift))
    tasks.make_celery(config)
    people = settle(size // EACH)
    out.print(f"{len(people):,} residents with a phone each; leaving {size:,} notifications")

    worker = ["worker", "--pool", "threads", "--concurrency", "4", "--queues", "urgent"]
    beat = ["beat", "--schedule", str(folder / "beat")]
    log = folder / "log" / "celery.log"
    at_work = parts.enter_context(celery(config, shift, worker, log))
    parts.enter_context(celery(config, shift, beat, log))
    began = time.monotonic()
    leave(people)
    chance, kills = random.Random(seed), 0
    in_flight = 4 * delivery.BATCH_MAX  # One batch a thread.
    sent_by_kill = [size * share // 100 for share in (15, 40, 65)]
    emptied = False
    while waiting() and time.monotonic() - began < 60 * minutes:
        arrived = len(standin.received)
        if kills < 3 and arrived > sent_by_kill[kills]:
            time.sleep(chance.random())
            at_work.kill()
            kills += 1
            out.print(f"{time.monotonic() - began:5.0f} s  killed the worker at {arrived:,}")
        if not emptied and arrived > size // 2:
            queue.close()
            shutil.rmtree(folder / "redis")
            queue.enter_context(redis_server(folder))
            emptied = True
            out.print(f"{time.monotonic() - began:5.0f} s  Redis is back, empty, at {arrived:,}")
        time.sleep(0.2)
    took = time.monotonic() - began
    out.print(f"{took:5.0f} s  {waiting():,} are still waiting")
    at_work.process.kill()
    wrong = [] if (kills, emptied) == (3, True) else ["not everything was broken that should be"]
    wrong += count(standin, people, kills * in_flight)
    wrong += morning_after(standin, people, noon, config)
    return wrong


def count(
    standin: FcmStandin, people: list[tuple[str, str, bool]], duplicates_max: int
) -> list[str]:
    """What is wrong with what arrived while it was quiet for some."""
    arrived = Counter(
        (one.message["token"], one.message["data"]["notification_id"])
        for one in standin.received
        if one.status == 200
    )
    whose = {row["_id"]: row["resident"] for row in outbox.collection().find({}, {"resident": 1})}
    token_of = {resident: token for resident, token, _ in people}
    expected = {
        (token_of[resident], notification)
        for notification, resident in whose.items()
        if not token_of[resident].startswith("dead-")
    }
    quiet = {token for _, token, is_quiet in people if is_quiet}
    missed = [pair for pair in expected if pair[0] not in quiet and pair not in arrived]
    strange = [pair for pair in arrived if pair not in expected]
    at_night = [pair for pair in arrived if pair[0] in quiet]
    twice = arrived.total() - len(arrived)
    dead = sum(
        device.token.startswith("dead-")
        for found in devices.live_of([resident for resident, _, _ in people]).values()
        for device in found
    )
    statuses = Counter(one.status for one in standin.received)
    table = Table("answered by the stand-in", "messages")
    for status, messages in sorted(statuses.items()):
        table.add_row(str(status), f"{messages:,}")
    out.print(table)
    out.print(
        f"{len(arrived):,} arrived, {twice} of them twice (at most {duplicates_max}); "
        f"{len(missed)} missed, {len(at_night)} at night, {dead} dead tokens alive"
    )
    checks = {
        f"{len(missed)} living phones missed a notification": missed,
        f"{len(strange)} rang where they should not": strange,
        f"{len(at_night)} rang at night": at_night,
        f"{twice} came twice": twice > duplicates_max,
        f"{dead} dead tokens are alive": dead,
    }
    return [what for what, is_wrong in checks.items() if is_wrong]


def morning_after(
    standin: FcmStandin, people: list[tuple[str, str, bool]], noon: datetime, config: Config
) -> list[str]:
    """When their quiet hours are over the others get theirs; that is measured."""
    standin.mishaps = ()
    before = len(standin.received)
    pusher = tasks.pusher_of(config)
    end = noon.replace(hour=14, minute=0) + timedelta(seconds=1)
    with clock.stand(clock.cut(end)):
        delivery.carry_due(outbox.SERVICE, pusher, 60)
    rung = len(standin.received) - before
    owed = EACH * sum(quiet and not token.startswith("dead-") for _, token, quiet in people)
    out.print(f"{rung} of {owed} rang when quiet hours were over")
    return [] if rung >= owed else ["some did not ring after their quiet hours"]


if __name__ == "__main__":
    main()
