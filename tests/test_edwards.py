"""Public keys of small order, in every encoding, and bytes that are no point."""

import base64

import pytest
from callers import machine, said
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from flask import Flask

from accounting import clients
from accounting.clients import Kind, UnfitKey
from accounting.edwards import SMALL_ORDER_Y, P, is_sound_key

SIGN_BIT = 1 << 255
_D = -121_665 * pow(121_666, -1, P) % P

Point = tuple[int, int]


def added(one: Point, other: Point) -> Point:
    """RFC 8032, 5.1: the complete addition of the curve, in plain affine coordinates."""
    (x1, y1), (x2, y2) = one, other
    product = _D * x1 * x2 * y1 * y2
    x = (x1 * y2 + x2 * y1) * pow(1 + product, -1, P)
    y = (y1 * y2 + x1 * x2) * pow(1 - product, -1, P)
    return x % P, y % P


def roots(y: int) -> list[int]:
    """Every x of a y: P is 5 mod 8, so a root is u^((P+3)/8), maybe times a root of -1."""
    square = (y * y - 1) * pow(_D * y * y + 1, -1, P) % P
    tried = pow(square, (P + 3) // 8, P)
    found = [tried, tried * pow(2, (P - 1) // 4, P) % P]
    return sorted({x for one in found for x in (one, -one % P) if x * x % P == square})


def small_order() -> list[bytes]:
    """Every encoding of the eight points: y, y + P where it fits 255 bits, either sign bit."""
    numbers = [y for one in SMALL_ORDER_Y for y in (one, one + P) if y < SIGN_BIT]
    return [(y | sign).to_bytes(32, "little") for y in sorted(numbers) for sign in (0, SIGN_BIT)]


def test_the_five_y_are_those_of_the_points_that_eight_times_are_nothing() -> None:
    points = {(x, y) for y in SMALL_ORDER_Y for x in roots(y)}
    assert len(points) == 8
    for point in points:
        two = added(point, point)
        four = added(two, two)
        assert added(four, four) == (0, 1)


# y = 0, 1, -1, +-y8 with both signs are ten; 0 + P and 1 + P fit 255 bits too, with both signs.
def test_there_are_fourteen_ways_to_write_them() -> None:
    assert len(set(small_order())) == 14


def test_no_key_of_small_order_enters(app: Flask) -> None:
    client, _ = clients.create_client(Kind.BANK, "bank", subject_id="bnk_1")
    for encoded in small_order():
        assert not is_sound_key(encoded), encoded.hex()
        with pytest.raises(UnfitKey):
            clients.add_key(client, clients.ED25519, encoded)
    assert clients.live_keys(clients.get(client.client_id)) == []


def test_why_they_are_refused() -> None:
    # R = the identity, S = 0 "signs" everything under the identity as a key, and OpenSSL agrees.
    identity = (1).to_bytes(32, "little")
    Ed25519PublicKey.from_public_bytes(identity).verify(identity + bytes(32), b"a loan for anybody")


def test_other_encodings_and_bytes_that_are_no_point_are_refused() -> None:
    # Every y from P to 2^255 - 1 is another way to write y - P.
    for y in range(P, 2**255):
        assert not is_sound_key(y.to_bytes(32, "little")), y
    # x^2 = (2^2 - 1) / (4 d + 1) is no square: no point has y = 2.
    assert roots(2) == []
    assert not is_sound_key((2).to_bytes(32, "little"))
    assert not is_sound_key(bytes(31))
    assert not is_sound_key(bytes(33))


def test_every_real_key_enters() -> None:
    for number in range(200):
        private = Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big"))
        public = private.public_key()
        assert is_sound_key(public.public_bytes_raw())
        with pytest.raises(InvalidSignature):
            public.verify(private.sign(b"one"), b"other")


@pytest.mark.parametrize("length", [0, 16, 31])
def test_a_shared_secret_that_could_be_guessed_is_refused(length: int, app: Flask) -> None:
    client, _ = clients.create_client(Kind.BANK, "bank", subject_id="bnk_1")
    with pytest.raises(UnfitKey):
        clients.add_key(client, clients.HMAC_SHA256, bytes(length))


def test_both_doors_refuse_them_in_the_callers_language(app: Flask) -> None:
    bank, operator = machine(app, Kind.BANK), machine(app, Kind.OPERATOR)
    resets = f"/v1/operator/banks/{bank.id}/key-resets"
    for encoded in (small_order()[0], small_order()[-1]):
        body = {"algorithm": "ed25519", "public_key_b64": base64.b64encode(encoded).decode()}
        for answer in (
            bank.post("/v1/bank/keys", body),
            operator.post(resets, body | {"reason": "lost"}),
        ):
            assert said(answer) == (422, "validation_failed")
            [error] = answer.get_json()["errors"]
            assert error["pointer"] == "/public_key_b64"
            assert "小阶点" in error["message"]
    refused = bank.post("/v1/bank/keys", body, headers={"Accept-Language": "en"})
    assert "small order" in refused.get_json()["detail"]
    assert len(bank.get("/v1/bank/keys").get_json()["items"]) == 1
    assert operator.get(resets).get_json()["items"] == []
