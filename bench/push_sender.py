"""The sender on its own, nothing failing: notifications a second by one thread.

    python -m bench.push_sender [--notifications 2000]

Three sides take turns in one run: ours alone, with a provider that takes everything at once; the
Firebase client alone, to the stand-in in a process of its own; and both, as a worker sends.
"""

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from accounting import accounts, clock, outbox, storage, vault
from accounting.outbox import Notice
from integrations import delivery, devices, firebase
from integrations.firebase import FirebaseSettings
from integrations.push import FirebasePusher, Outcome, Pusher, PushMessage, PushResult
from integrations.servers import LOOPBACK, mongod

out = Console()
TURNS = 3
SAID = {"zh": "里程碑", "en": "Milestone"}


class TakesAll:
    """A provider that takes everything at once."""

    def send(self, messages: list[PushMessage]) -> list[PushResult]:
        return [PushResult(Outcome.SENT) for _ in messages]


@contextmanager
def standin() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "integrations.fcm_standin", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()  # It says so once it listens.
        yield f"http://{LOOPBACK}:{port}"
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def settle(count: int) -> list[str]:
    people = []
    for number in range(count):
        people.append(accounts.by_phone(f"+86137{number:08}"))
        devices.register(people[-1], f"phone-{number}", "android")
    return people


def leave(people: list[str], turn: str) -> None:
    category, link = outbox.SERVICE, "tanhui://milestones"
    outbox.leave_many(
        [Notice(who, f"bench/{turn}", "milestone", category, SAID, SAID, link) for who in people]
    )


def a_second(count: int, work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return count / (time.perf_counter() - began_s)


def carried(pusher: Pusher, count: int) -> None:
    assert delivery.carry_due(outbox.SERVICE, pusher, 600) == count


def sent(pusher: Pusher, messages: list[PushMessage]) -> None:
    for start in range(0, len(messages), delivery.BATCH_MAX):
        results = pusher.send(messages[start : start + delivery.BATCH_MAX])
        assert all(one.outcome is Outcome.SENT for one in results)


def run(parts: ExitStack, folder: Path, size: int) -> None:
    store = parts.enter_context(mongod(folder))
    url = parts.enter_context(standin())
    vault.configure(bytes(range(32)))
    storage.connect(store.url)
    parts.callback(storage.disconnect)
    storage.ensure_indexes()
    noon = datetime.now(clock.CITY).replace(hour=12, minute=0, second=0, microsecond=0)
    parts.enter_context(clock.travel(noon - datetime.now(clock.CITY)))
    app = firebase.client(FirebaseSettings(fcm_url=url))
    assert app is not None
    google = FirebasePusher(app)
    people = settle(size)
    messages = [PushMessage(f"phone-{n}", "t", "b", {"notification_id": "n"}) for n in range(size)]
    rates: dict[str, list[float]] = {}
    for turn in range(TURNS):
        leave(people, f"ours-{turn}")
        ours = a_second(size, lambda: carried(TakesAll(), size))
        client = a_second(size, lambda: sent(google, messages))
        leave(people, f"both-{turn}")
        both = a_second(size, lambda: carried(google, size))
        for name, rate in (("ours", ours), ("Firebase client", client), ("both", both)):
            rates.setdefault(name, []).append(rate)
    table = Table("one thread", "notifications a second", "of turns")
    for name, found in rates.items():
        turns = ", ".join(f"{rate:,.0f}" for rate in found)
        table.add_row(name, f"{sorted(found)[len(found) // 2]:,.0f}", turns)
    out.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--notifications", type=int, default=2_000)
    size = parser.parse_args().notifications
    folder = Path(tempfile.mkdtemp(prefix="tanhui-sender-"))
    (folder / "log").mkdir()
    try:
        with ExitStack() as parts:
            run(parts, folder, size)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
