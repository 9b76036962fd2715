"""How pytest shares the suite between two processes, each with a MongoDB and a Redis of its own."""

import os
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

STACKS = {
    "test_bank_client.py",
    "test_demo.py",
    "test_servers.py",
    "test_stack.py",
    "test_torture.py",
}
"""They start whole stacks, one of them for all: one worker runs them all, one after another."""

LONG = {"test_batches.py", "test_doors.py", "test_regrading.py", "test_schemathesis.py"}
"""They go first, so that no worker is left alone with one of them at the end."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two for the whole suite; none for named files, where two more servers would not pay."""
    whole = config.args_source is not pytest.Config.ArgsSource.ARGS
    return min(2, os.cpu_count() or 1) if whole else 0


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return WholeFiles(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_turn)


class WholeFiles(LoadScopeScheduling):
    """A file stays with one worker, for its fixtures and the order of its tests; so do all stacks.

    The marks of `--dist loadgroup` would say the same, but xdist 3.8 does not show them to
    pytest 9.2: it puts them into a name of the test that is not read any more.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0].rpartition("/")[2]
        return "stacks" if file in STACKS else file


def _turn(item: pytest.Item) -> int:
    return 0 if item.path.name in STACKS else 1 if item.path.name in LONG else 2
