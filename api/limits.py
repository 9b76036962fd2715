"""How often and how much: requests a minute, counted in Redis, and the bytes of one body.

Without Redis the rates are not enforced. The library `limits` counts; Flask-Limiter around it is
not used, because it puts Retry-After on every answer, replaces ours on a 409, and counts before the
caller is known.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import flask
from flask import Response, current_app, g, request
from gunicorn.http.errors import ParseException
from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import RedisStorage
from limits.strategies import FixedWindowRateLimiter
from redis import ConnectionPool, Redis, RedisError
from redis.exceptions import NoScriptError
from werkzeug.exceptions import RequestEntityTooLarge

from accounting.clients import Kind
from accounting.errors import NotFound, RateLimited
from integrations.signatures import Budget

if TYPE_CHECKING:
    from api.security import Caller

RESIDENT_PER_MINUTE = 600
CLIENT_PER_MINUTE = 6_000
ADDRESS_PER_MINUTE = 3_000
DEMO_FACTOR = 100
# Typed voucher codes that were wrong, by merchant: a till mistypes, a thief tries.
WRONG_CODES = 30
WRONG_CODES_MINUTES = 10
# After a failure Redis is left alone this long, so that its absence costs one timeout, not each
# request one.
PAUSE_S = 5.0
# How much of a refused body is read to its end, and for how long; past that the connection is lost.
DRAIN_MAX = 16_000_000
DRAIN_S = 5.0
_DRAIN_STEP = 64 * 1024


class Request(flask.Request):
    """A body without a declared length that reaches the limit is refused, not cut off there.

    Werkzeug stops reading at the limit and hands over what it has, as if that were the body.
    """

    def get_data(self, *args: Any, **kwargs: Any) -> Any:
        data = super().get_data(*args, **kwargs)
        limit = self.max_content_length
        if self.content_length is None and limit is not None and len(data) >= limit:
            raise RequestEntityTooLarge
        return data


class Limits:
    """Counts the requests of one process' callers; the counters are shared through Redis."""

    def __init__(self, pool: ConnectionPool, *, demo: bool, bank_reads: int) -> None:
        factor = DEMO_FACTOR if demo else 1
        self._resident = RateLimitItemPerMinute(RESIDENT_PER_MINUTE * factor)
        self._client = RateLimitItemPerMinute(CLIENT_PER_MINUTE * factor)
        # Counted by bank, whichever of its clients asks: a request is one read, a batch one for
        # each reference it names.
        self._bank = RateLimitItemPerMinute(bank_reads * factor)
        self._address = RateLimitItemPerMinute(ADDRESS_PER_MINUTE * factor)
        self._wrong_codes = RateLimitItemPerMinute(WRONG_CODES, WRONG_CODES_MINUTES)
        self._redis = Redis(connection_pool=pool)
        self._storage = RedisStorage("redis://", connection_pool=pool)
        self._counter = FixedWindowRateLimiter(self._storage)
        self._paused_until = 0.0

    def count(self, caller: "Caller | None", address: str | None, cost: int = 1) -> None:
        """Count one request for the caller, else for the address; raises `RateLimited`.

        What costs more than is left takes nothing, so that smaller requests still go through.
        """
        if time.monotonic() < self._paused_until:
            return
        item, key = self._bucket(caller, address)
        try:
            fits = cost == 1 or self._counter.test(item, key, cost=cost)
            used, reset_s = self._hit(item, key, cost if fits else 0)
        except RedisError as error:
            self._paused_until = time.monotonic() + PAUSE_S
            current_app.logger.warning("rate limits are off, Redis is away: %s", error)
            return
        self.counted(caller, used, reset_s, fits=fits)

    def counted(
        self, caller: "Caller | None", used: int, reset_s: int, *, fits: bool = True
    ) -> None:
        """Say what is left in the answer; raises `RateLimited` where nothing is."""
        amount = self._item(caller).amount
        # The last half second of a window rounds to none, and "at once" is too soon.
        reset_s = max(1, reset_s)
        g.rate_limit = (amount, max(0, amount - used), reset_s)
        if not fits or used > amount:
            raise RateLimited(retry_after=reset_s)

    def budget(self, caller: "Caller") -> Budget:
        """The counter of a caller, for whoever counts in the same round trip as something else."""
        item, key = self._bucket(caller, None)
        return Budget(self._storage.prefixed_key(item.key_for(key)), item.amount, item.get_expiry())

    @contextmanager
    def guessing(self, caller: "Caller") -> Iterator[None]:
        """Around a look-up by a typed code: after too many wrong ones, `RateLimited`."""
        key = f"wrong-codes:{caller.id}"
        try:
            if not self._counter.test(self._wrong_codes, key):
                stats = self._counter.get_window_stats(self._wrong_codes, key)
                raise RateLimited(retry_after=max(1, round(stats.reset_time - time.time())))
        except RedisError as error:
            current_app.logger.warning("wrong codes are not counted, Redis is away: %s", error)
        try:
            yield
        except NotFound:
            with suppress(RedisError):
                self._counter.hit(self._wrong_codes, key)
            raise

    def _hit(self, item: RateLimitItem, key: str, cost: int) -> tuple[int, int]:
        """Count, and say what is used of the window and in how many seconds it ends.

        What the library's `hit` and `get_window_stats` do, in one round trip instead of three.
        """
        name = self._storage.prefixed_key(item.key_for(key))
        count = self._storage.lua_incr_expire
        with self._redis.pipeline(transaction=False) as both:
            both.evalsha(count.sha, 1, name, item.get_expiry(), cost)
            both.ttl(name)
            try:
                used, seconds = both.execute()
            except NoScriptError:  # A Redis that has not met the script yet; `count` loads it.
                used, seconds = count([name], [item.get_expiry(), cost]), self._redis.ttl(name)
        return int(used), int(seconds)

    def _item(self, caller: "Caller | None") -> RateLimitItem:
        if caller is None:
            return self._address
        if caller.kind.value == Kind.BANK.value:
            return self._bank
        return self._client if caller.client_id else self._resident

    def _bucket(self, caller: "Caller | None", address: str | None) -> tuple[RateLimitItem, str]:
        item = self._item(caller)
        if caller is None:
            return item, f"address:{address}"
        return item, f"bank:{caller.id}" if caller.kind.value == Kind.BANK.value else caller.key


def count(caller: "Caller | None", address: str | None) -> None:
    """`Limits.count` of the current application."""
    current_app.extensions["limits"].count(caller, address)


def read_more(caller: "Caller", reads: int) -> None:
    """Count what a request reads beyond the one it was counted for at the door.

    Raises `RateLimited`.
    """
    if reads > 0:
        current_app.extensions["limits"].count(caller, None, reads)


def add_headers(response: Response) -> Response:
    """The three RateLimit headers on whatever was counted; `Reset` is in seconds from now."""
    if "rate_limit" in g:
        limit, remaining, reset_s = g.rate_limit
        response.headers["RateLimit-Limit"] = str(limit)
        response.headers["RateLimit-Remaining"] = str(remaining)
        response.headers["RateLimit-Reset"] = str(reset_s)
    return response


def drain(response: Response) -> Response:
    """Read on what a refusal left unread of a body, so that the caller's connection stays usable.

    gunicorn promises to keep the connection, then closes it when more than 64 KiB are left.
    """
    size = request.content_length
    if response.status_code >= 400 and (size is None or size <= DRAIN_MAX):
        until = time.monotonic() + DRAIN_S
        read = 0
        while read <= DRAIN_MAX and time.monotonic() < until:
            try:
                part = request.environ["wsgi.input"].read(_DRAIN_STEP)
            except (ParseException, OSError):
                break  # Chunks that are none, or nobody there: gunicorn closes the connection.
            if not part:
                break
            read += len(part)
    return response
