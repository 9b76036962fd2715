"""How fast a book is backed up and restored: `python -m bench.backup --entries 100000`.

Entries are posted as the product posts them, on embedded servers. The file is written and read on
the same disk as the database; the restore checks every entry of the book.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

from rich.console import Console

from accounting import book, clock, storage, vault
from accounting.book import Ask, Decision, Head, Line, Wanted
from api.backup import restoring, taking
from integrations.servers import mongod

ACCOUNTS = 1_000


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--entries", type=int, default=100_000)
    wanted = parse.parse_args().entries
    vault.configure(bytes(range(32)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "log").mkdir()
        with mongod(folder) as server:
            storage.connect(server.url)
            storage.ensure_indexes()
            for number in range(wanted // ACCOUNTS):
                book.post_many([_wanted(f"res_{who}", str(number)) for who in range(ACCOUNTS)])
            path = folder / "city.zip"
            began = time.monotonic()
            made = taking.take(path)
            took_s = time.monotonic() - began
            packed = path.stat().st_size
            _say("backup", made.documents, made.bytes, took_s, f"{packed / made.bytes:.0%} left")
            storage.disconnect()
            storage.connect(server.url.replace("/tanhui?", "/restored?"))
            steps: dict[str, float] = {}
            began = time.monotonic()
            restoring.restore(
                path,
                replace=False,
                tell=lambda step, _done: steps.__setitem__(step, time.monotonic() - began),
            )
            took_s = time.monotonic() - began
            _say("restore", made.documents, made.bytes, took_s, f"steps end at {_shown(steps)}")
            storage.disconnect()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    Console().print(f"memory of this process at most {peak:,.0f} MB")


def _shown(steps: dict[str, float]) -> str:
    return ", ".join(f"{name} {at:.1f} s" for name, at in steps.items())


def _say(what: str, documents: int, size: int, took_s: float, more: str) -> None:
    rate = f"{documents / took_s:,.0f} documents/s, {size / took_s / 1e6:,.0f} MB/s"
    Console().print(
        f"{what}: {documents:,} documents, {size / 1e6:,.0f} MB in {took_s:.1f} s: {rate}; {more}"
    )


def _wanted(account: str, key: str) -> Wanted:
    def decide(head: Head, now: object) -> Decision:
        lines = (Line("fen", "funded:city", -1), Line("fen", "payable:shop", 1))
        return Decision(lines=lines, after={})

    ask = Ask(account, key, "adjust", book.fingerprint(key), clock.now())
    return Wanted(ask, decide)


if __name__ == "__main__":
    main()
