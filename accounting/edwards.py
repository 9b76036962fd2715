"""Which 32 bytes are an Ed25519 public key anybody should sign with. Pure.

OpenSSL takes any 32 bytes. Under a key of small order a signature that nobody made verifies, for
one message in eight or for all; of two ways to write one point, a list of keys knows only one; and
bytes that are no point of the curve never verify anything. All three are refused (RFC 8032, 5.1.3).
"""

from typing import Final

POINT_BYTES: Final = 32
P: Final = 2**255 - 19
_D: Final = -121_665 * pow(121_666, -1, P) % P
# `y` of the points of order 8: the root of 1 / (1 + sqrt(1 + d)), and its negative. Their doubles
# have order 4 (y = 0), 2 (y = -1) and 1 (y = 1). The sign of x makes eight points of these five.
_Y8: Final = int.from_bytes(
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"
)
SMALL_ORDER_Y: Final = frozenset({0, 1, P - 1, _Y8, P - _Y8})


def is_sound_key(encoded: bytes) -> bool:
    """Whether the bytes are the one encoding of a point of the curve that is not of small order."""
    if len(encoded) != POINT_BYTES:
        return False
    y = int.from_bytes(encoded, "little") & (2**255 - 1)
    return y < P and y not in SMALL_ORDER_Y and _has_x(y)


def _has_x(y: int) -> bool:
    """Whether -x^2 + y^2 = 1 + d x^2 y^2 has an x: x^2 must be a square (Euler's criterion).

    Where x is 0 the sign of it could be written in two ways; both have a y of small order.
    """
    x_squared = (y * y - 1) * pow(_D * y * y + 1, -1, P) % P
    return pow(x_squared, (P - 1) // 2, P) == 1
