"""Signed answers: made once, checked by anybody who holds the key set."""

import base64
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from integrations import jws

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OLD_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
KEY_SET = jws.jwks({"k1": KEY.public_key(), "k0": OLD_KEY.public_key()})
NOW = datetime(2026, 11, 22, 9, 0, 0, 500_000, tzinfo=UTC)
ISSUER, BANK = "https://carbon.example.cn", "bank-a"
GRADE = {"reference": "r-1", "grade": "deep", "margin_below_kg": Decimal("12.340")}


def signed(key: Ed25519PrivateKey = KEY, kid: str = "k1", payload: Any = GRADE) -> str:
    return jws.sign(payload, key, kid, issuer=ISSUER, audience=BANK, now=NOW)


def part(content: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


def test_an_answer_comes_back_with_issuer_time_and_audience() -> None:
    token = signed()
    assert jwt.get_unverified_header(token) == {"alg": "EdDSA", "kid": "k1", "typ": "JWT"}
    assert jws.verify(token, KEY_SET, BANK) == {
        "reference": "r-1",
        "grade": "deep",
        "margin_below_kg": 12.34,
        "iss": ISSUER,
        "iat": 1795338000,
        "aud": BANK,
    }


def test_every_digit_is_signed() -> None:
    """16 digits are more than a float keeps for sure, 18 more than it keeps at all."""
    amounts = {"a": Decimal("4672000964.753984"), "b": Decimal("467200096475.398417")}
    _, content, _ = signed(payload=amounts).split(".")
    text = base64.urlsafe_b64decode(content + "==").decode()
    assert '"a":4672000964.753984,"b":467200096475.398417,' in text


def test_the_key_set_is_the_public_half_in_the_form_of_rfc_8037() -> None:
    key, old = KEY_SET["keys"]
    assert key == {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": base64.urlsafe_b64encode(KEY.public_key().public_bytes_raw()).rstrip(b"=").decode(),
        "kid": "k1",
        "use": "sig",
        "alg": "EdDSA",
    }
    assert old["kid"] == "k0"
    json.dumps(KEY_SET)


def test_an_answer_signed_with_an_old_key_still_holds() -> None:
    assert jws.verify(signed(OLD_KEY, "k0"), KEY_SET, BANK)["grade"] == "deep"


def test_an_answer_stays_good_on_a_slow_clock_and_years_later() -> None:
    token = jws.sign(GRADE, KEY, "k1", issuer=ISSUER, audience=BANK, now=NOW.replace(year=2099))
    assert jws.verify(token, KEY_SET, BANK)["iat"] > 4_000_000_000


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(signed(OLD_KEY, "k1"), id="another key under this id"),
        pytest.param(signed(KEY, "k9"), id="an id that is not in the set"),
        pytest.param(signed()[:-4] + "AAAA", id="another signature"),
        pytest.param(signed().rpartition(".")[0] + ".", id="no signature"),
        pytest.param(
            f"{part({'alg': 'none', 'kid': 'k1'})}.{part({'aud': BANK, 'iss': ISSUER, 'iat': 1})}.",
            id="alg none",
        ),
        pytest.param(
            ".".join([signed().split(".")[0], part({"grade": "x"}), signed().split(".")[2]]),
            id="another payload",
        ),
        pytest.param("not a token", id="not a token"),
        pytest.param("", id="empty"),
        pytest.param(
            jwt.encode({"iat": 1, "iss": ISSUER}, KEY, "EdDSA", headers={"kid": "k1"}),
            id="no audience",
        ),
    ],
)
def test_what_we_did_not_sign_is_refused(token: str) -> None:
    with pytest.raises(jwt.InvalidTokenError):
        jws.verify(token, KEY_SET, BANK)


def test_an_answer_for_another_bank_is_refused() -> None:
    with pytest.raises(jwt.InvalidAudienceError):
        jws.verify(signed(), KEY_SET, "bank-b")


def test_a_payload_cannot_bring_its_own_issuer() -> None:
    with pytest.raises(AssertionError):
        signed(payload={"iss": "somebody else"})
