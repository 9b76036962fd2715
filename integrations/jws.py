"""Signed answers (JWS, RFC 7515) that a bank can keep and verify offline against our key set."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import jwt
import simplejson
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from jwt.algorithms import OKPAlgorithm

ALGORITHM = "EdDSA"
OURS = ("iss", "iat", "aud")


def sign(
    payload: Mapping[str, Any],
    key: Ed25519PrivateKey,
    kid: str,
    *,
    issuer: str,
    audience: str,
    now: datetime,
) -> str:
    """A compact JWS over the payload and `iss`, `iat` (whole seconds), `aud`.

    Decimals are written digit by digit, as the answer beside it has them: a year of a steel mill
    in kilograms has more digits than a float keeps.
    """
    assert not set(OURS) & payload.keys(), payload.keys()
    claims = {**payload, "iss": issuer, "iat": int(now.timestamp()), "aud": audience}
    text = simplejson.dumps(claims, use_decimal=True, allow_nan=False, separators=(",", ":"))
    return jwt.api_jws.encode(text.encode(), key, ALGORITHM, headers={"kid": kid})


def jwks(keys: Mapping[str, Ed25519PublicKey]) -> dict[str, Any]:
    """The public key set (RFC 7517, 8037) by key id; old keys stay as long as answers live."""
    return {
        "keys": [
            OKPAlgorithm.to_jwk(key, as_dict=True) | {"kid": kid, "use": "sig", "alg": ALGORITHM}
            for kid, key in keys.items()
        ]
    }


def verify(token: str, jwks: Mapping[str, Any], audience: str) -> dict[str, Any]:
    """The payload of an answer made for `audience`, as a bank checks it without asking us.

    Raises `jwt.InvalidTokenError`. The answer's own `valid_until` says how long it holds, so `iat`
    must be there but is not compared with the reader's clock.
    """
    kid = jwt.get_unverified_header(token).get("kid")
    keys = {key.key_id: key for key in jwt.PyJWKSet.from_dict(dict(jwks)).keys}
    if kid not in keys:
        raise jwt.InvalidTokenError("the key id is not in the key set")
    return jwt.decode(
        token,
        keys[kid],
        algorithms=[ALGORITHM],
        audience=audience,
        options={"require": list(OURS), "verify_iat": False},
    )
