"""A replica set of three real members on loopback; each can be killed and started again."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError
from stacks import PATIENCE_S, wait_until

from integrations import servers
from integrations.servers import MONGOD, Child

ELECTION_MS = 2_000
"""After so long without a primary the others elect one; MongoDB's own default is ten seconds."""


WHOLE = {"PRIMARY": 1, "SECONDARY": 2}


class ReplicaSet:
    """Use `running`. `members` are processes by port."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.members: dict[int, Child] = {}
        for port in free_ports(3):
            files = folder / str(port)
            files.mkdir()
            command = [
                *(str(MONGOD.locate()), "--replSet", "city", "--dbpath", str(files)),
                *("--bind_ip", "127.0.0.1", "--port", str(port), "--nounixsocket", "--quiet"),
                *("--wiredTigerCacheSizeGB", "0.25", "--oplogSize", "64"),
                *("--setParameter", "diagnosticDataCollectionEnabled=false"),
            ]
            log = folder / f"{port}.log"
            child = Child("mongod", command, log, environment=servers.mongod_environment(folder))
            stack.callback(child.stop, 0)
            child.start()
            self.members[port] = child
        hosts = [f"127.0.0.1:{port}" for port in self.members]
        self.url = f"mongodb://{','.join(hosts)}/tanhui?replicaSet=city"
        self._initiate(hosts)

    def _initiate(self, hosts: list[str]) -> None:
        wanted = {
            "_id": "city",
            "members": [{"_id": number, "host": host} for number, host in enumerate(hosts)],
            "settings": {"electionTimeoutMillis": ELECTION_MS},
        }
        wait_until(lambda: all(map(_listens, self.members)))
        first: MongoClient[Any] = MongoClient(
            hosts[0], directConnection=True, serverSelectionTimeoutMS=60_000
        )
        with first:
            first.admin.command("replSetInitiate", wanted)
        wait_until(lambda: self.states() == WHOLE)
        assert self.states() == WHOLE

    def states(self) -> dict[str, int]:
        """How many members are in each state, as the primary sees them; empty without one."""
        found: dict[str, int] = {}
        for member in self._status():
            found[member["stateStr"]] = found.get(member["stateStr"], 0) + 1
        return found

    def primary(self) -> int:
        """The port of the primary; waits for one."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            for member in self._status():
                if member["stateStr"] == "PRIMARY":
                    return int(member["name"].partition(":")[2])
            time.sleep(0.05)
        raise AssertionError("no primary")

    def _status(self) -> list[dict[str, Any]]:
        client: MongoClient[Any] = MongoClient(self.url, serverSelectionTimeoutMS=1_000)
        with client:
            try:
                return list(client.admin.command("replSetGetStatus")["members"])
            except PyMongoError:
                return []


@contextmanager
def running(folder: Path) -> Iterator[ReplicaSet]:
    with ExitStack() as stack:
        yield ReplicaSet(folder, stack)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
