"""How pytest shares the suite between two processes, each with a MongoDB and a Redis of its own."""

import os

import pytest

STACKS = {"test_demo.py", "test_servers.py", "test_stack.py", "test_torture.py"}
"""They start whole stacks, one of them for all: one worker runs them all, one after another."""

LONG = {"test_batches.py", "test_doors.py", "test_regrading.py", "test_schemathesis.py"}
"""They go first, so that no worker is left alone with one of them at the end."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two for the whole suite; none for named files, where two more servers would not pay."""
    whole = config.args_source is not pytest.Config.ArgsSource.ARGS
    return min(2, os.cpu_count() or 1) if whole else 0


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep each file together in one worker, for its fixtures and for the order of its tests."""
    items.sort(key=_turn)
    for item in items:
        file = item.path.name
        item.add_marker(pytest.mark.xdist_group("stacks" if file in STACKS else file))


def _turn(item: pytest.Item) -> int:
    return 0 if item.path.name in STACKS else 1 if item.path.name in LONG else 2
