"""Finishing what crashes left half-way, one thing at a time."""

import logging
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from accounting.errors import DomainError

log = logging.getLogger(__name__)

Item = TypeVar("Item")


def each(what: str, items: Iterable[Item], finish: Callable[[Item], Any]) -> int:
    """Finish every item; returns how many were. One that cannot be finished holds up no other.

    It stays where it is, is logged, and is tried again by the next sweep.
    """
    finished = 0
    for item in items:
        try:
            finish(item)
        except DomainError as refusal:
            log.warning("the sweep left one %s: %s", what, refusal)
        except Exception:  # A bug in one item must not become a standstill of all.
            log.exception("the sweep failed on one %s", what)
        else:
            finished += 1
    if finished:
        log.warning("the sweep finished %d of: %s", finished, what)
    return finished
