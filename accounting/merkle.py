"""Merkle trees over SHA-256 in the shape of RFC 6962: a root, a short proof for each leaf. Pure.

Leaves and inner nodes are hashed with different first bytes, so no node can pass for a leaf.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

EMPTY = hashlib.sha256(b"").digest()


class Sibling(NamedTuple):
    """A hash on the way from a leaf to the root, and on which side of it the way runs."""

    left: bool
    hash: bytes


def leaf(content: bytes) -> bytes:
    """The hash of a leaf."""
    return hashlib.sha256(b"\x00" + content).digest()


def root(hashes: Sequence[bytes]) -> bytes:
    """The root over the hashes of leaves, or of roots of smaller trees."""
    if not hashes:
        return EMPTY
    if len(hashes) == 1:
        return hashes[0]
    split = _split(len(hashes))
    return _node(root(hashes[:split]), root(hashes[split:]))


def path(hashes: Sequence[bytes], place: int) -> list[Sibling]:
    """The siblings from the hash at a place up to the root."""
    if len(hashes) <= 1:
        return []
    split = _split(len(hashes))
    if place < split:
        return [*path(hashes[:split], place), Sibling(False, root(hashes[split:]))]
    return [*path(hashes[split:], place - split), Sibling(True, root(hashes[:split]))]


def climb(start: bytes, siblings: Sequence[Sibling]) -> bytes:
    """The root that a hash and its siblings lead to."""
    reached = start
    for sibling in siblings:
        pair = (sibling.hash, reached) if sibling.left else (reached, sibling.hash)
        reached = _node(*pair)
    return reached


def _split(count: int) -> int:
    """The largest power of two below the count."""
    return 1 << (count - 1).bit_length() - 1


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()
