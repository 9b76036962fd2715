"""Addresses that carry their own permission: an expiring token, bound to what it is for.

Whoever has the address may use it until it is over, without signing in; nobody can change it.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import jwt

from accounting import clock, vault
from accounting.errors import DomainError

ALGORITHM = "HS256"
TOKEN_CHARS_MAX = 4_096


class UrlNotAccepted(DomainError):
    code = "url_not_accepted"
    en = "This signed address was changed, or is for something else."
    zh = "该签名地址被改动，或不适用于此处。"


class UrlExpired(DomainError):
    code = "url_expired"
    en = "This signed address is over; ask for another."
    zh = "该签名地址已过期，请重新申请。"


def sign(purpose: str, claims: Mapping[str, Any], expires_at: datetime) -> str:
    """A token of one purpose over some claims, until an instant (whole seconds)."""
    payload = {**claims, "exp": int(expires_at.timestamp())}
    return jwt.encode(payload, _key(purpose), ALGORITHM)


def read(purpose: str, token: str) -> dict[str, Any]:
    """The claims of a token. Raises `UrlNotAccepted` and `UrlExpired`."""
    try:
        # Our clock, not the library's, says what time it is.
        claims: dict[str, Any] = jwt.decode(
            token,
            _key(purpose),
            algorithms=[ALGORITHM],
            options={"require": ["exp"], "verify_exp": False},
        )
    except jwt.InvalidTokenError:
        raise UrlNotAccepted() from None
    if claims["exp"] <= clock.now().timestamp():
        raise UrlExpired()
    return claims


def _key(purpose: str) -> bytes:
    """A key for each purpose, so that an address for one thing is none for another."""
    return vault.derive(f"signed-url/{purpose}")
