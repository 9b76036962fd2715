"""One-time passwords by text message, kept in Redis as keyed hashes for five minutes."""

import hmac
import math
import secrets
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

from limits import RateLimitItem, parse
from limits.storage import RedisStorage
from limits.strategies import MovingWindowRateLimiter
from redis import ConnectionError as RedisConnectionError
from redis import Redis
from redis import TimeoutError as RedisTimeoutError

from accounting import vault
from accounting.errors import DomainError, Language, RateLimited, Unavailable
from integrations.sms import Texter

DIGITS = 6
VALID_S = 300
TRIES_MAX = 5
TEXT: dict[Language, str] = {
    "zh": "【碳惠】验证码 {code}，5 分钟内有效。请勿告诉他人。",
    "en": "[Tanhui] Your code is {code}, valid for 5 minutes. Do not share it.",
}

# Counts the try and hands out what to compare with, in one step: of many parallel guesses at most
# TRIES_MAX ever get to compare. Answers {tries left after this one, hash, seconds to live}.
_TAKE_A_TRY = """
    local code = redis.call('HGET', KEYS[1], 'code')
    if not code then return {} end
    local tries = redis.call('HINCRBY', KEYS[1], 'tries', 1)
    return {tonumber(ARGV[1]) - tries, code, redis.call('TTL', KEYS[1])}
"""
# Of two equal right answers one deletes; a newer code that came in between stays.
_CONSUME = """
    if redis.call('HGET', KEYS[1], 'code') ~= ARGV[1] then return 0 end
    return redis.call('DEL', KEYS[1])
"""


class InvalidCode(DomainError):
    code = "invalid_code"
    en = "The code is wrong or expired; ask for a new one."
    zh = "验证码错误或已过期，请重新获取。"
    final = False


@dataclass(frozen=True)
class OtpLimits:
    """How often a code may be asked for. Addresses are shared behind carrier NAT, so wider."""

    per_phone: tuple[str, ...] = ("1 per minute", "5 per hour")
    per_address: str = "100 per hour"


class Issued(NamedTuple):
    """`code` is for the demo on loopback only."""

    code: str
    expires_in: int


def request(
    redis: Redis,
    texter: Texter,
    phone: str,
    address: str,
    *,
    limits: OtpLimits,
    language: Language = "zh",
) -> Issued:
    """Text a new code to a phone (E.164); it replaces the one before and its tries.

    Raises `RateLimited`, or `Unavailable` without Redis or when the text cannot be handed over.
    """
    key = vault.keyed_hash("otp-phone", phone)
    code = f"{secrets.randbelow(10**DIGITS):0{DIGITS}d}"
    try:
        _hit(redis, limits.per_address, "otp-address", address)
        for limit in limits.per_phone:
            _hit(redis, limit, "otp-phone", key)
        # The code must be there before the text is: the reverse loses it when Redis fails between.
        with redis.pipeline(transaction=True) as pipe:
            pipe.delete(_at(key))
            pipe.hset(_at(key), "code", _hash(phone, code))
            pipe.expire(_at(key), VALID_S)
            pipe.execute()
    except (RedisConnectionError, RedisTimeoutError) as error:
        raise Unavailable("sign-in") from error
    texter.send(phone, TEXT[language].format(code=code))
    return Issued(code, VALID_S)


def check(redis: Redis, phone: str, code: str) -> None:
    """Use up a code. Raises `InvalidCode`, `RateLimited` after too many tries, `Unavailable`."""
    key = _at(vault.keyed_hash("otp-phone", phone))
    offered = _hash(phone, code)
    try:
        answer: list[Any] = redis.register_script(_TAKE_A_TRY)([key], [TRIES_MAX])
        if not answer:
            raise InvalidCode()
        tries_left, kept, live_s = answer
        if tries_left < 0:
            raise RateLimited(retry_after=max(int(live_s), 1))
        # A client without decode_responses answers bytes.
        stored = kept.decode() if isinstance(kept, bytes) else kept
        if not hmac.compare_digest(stored, offered):
            raise InvalidCode()
        if not redis.register_script(_CONSUME)([key], [offered]):
            raise InvalidCode()
    except (RedisConnectionError, RedisTimeoutError) as error:
        raise Unavailable("sign-in") from error


def _at(phone_hash: str) -> str:
    return f"otp:{phone_hash}"


def _hash(phone: str, code: str) -> str:
    """Bound to the phone, and keyed: six digits alone are guessed from their hash in a second."""
    return vault.keyed_hash("otp-code", f"{phone} {code}")


def _hit(redis: Redis, limit: str, *names: str) -> None:
    """Count one request in a moving window. Raises `RateLimited` when the window is full."""
    storage = RedisStorage("redis://", connection_pool=redis.connection_pool)
    limiter = MovingWindowRateLimiter(storage)
    item: RateLimitItem = parse(limit)
    if not limiter.hit(item, *names):
        wait_s = limiter.get_window_stats(item, *names).reset_time - time.time()
        raise RateLimited(retry_after=max(math.ceil(wait_s), 1))
