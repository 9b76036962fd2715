"""Opaque ids. They carry no meaning but their prefix, and sort roughly by time of making.

Time order in front keeps B-tree inserts on the right edge; 80 random bits behind it keep them
unguessable.
"""

import os
import time

# Crockford's base 32 without padding: no I, L, O, U, so an id read aloud survives.
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def random_bytes(count: int) -> bytes:
    return os.urandom(count)


def new_id(prefix: str) -> str:
    """For example `act_01k9v6c2r7...`: 48 bits of milliseconds, 80 random bits, base 32."""
    value = int.from_bytes((time.time_ns() // 1_000_000).to_bytes(6) + random_bytes(10))
    digits = [ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5)]
    return f"{prefix}_{''.join(digits)}"
