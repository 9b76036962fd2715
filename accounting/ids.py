"""Opaque ids. They carry no meaning but their prefix, and sort by time of making.

Time order in front keeps B-tree inserts on the right edge; 80 random bits behind it keep them
unguessable. Those of one process sort strictly: what arrives together keeps its order.
"""

import os
import threading
import time

# Crockford's base 32 without padding: no I, L, O, U, so an id read aloud survives.
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [high + low for high in ALPHABET for low in ALPHABET]
_RANDOM_BITS = 80
# How far an id lies behind the last of its millisecond: still nothing anybody could guess.
_STEP_BYTES = 8

_lock = threading.Lock()
_last = 0


def random_bytes(count: int) -> bytes:
    return os.urandom(count)


def new_id(prefix: str) -> str:
    """For example `act_01k9v6c2r7...`: 48 bits of milliseconds, 80 random bits, base 32."""
    global _last
    made = time.time_ns() // 1_000_000 << _RANDOM_BITS | _random(_RANDOM_BITS // 8)
    with _lock:
        _last = value = made if made > _last else _last + 1 + _random(_STEP_BYTES)
    digits = "".join([_PAIRS[value >> shift & 1_023] for shift in range(120, -1, -10)])
    return f"{prefix}_{digits}"


def _random(count: int) -> int:
    return int.from_bytes(random_bytes(count))
