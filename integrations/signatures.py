"""HTTP Message Signatures (RFC 9421) on the requests of banks.

A signature proves that a bank's key stood behind exactly this method, address and body, now and
once. The algorithms are a table: another one (SM2 with SM3) is one more row.
"""

import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import http_sf
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from http_message_signatures import (
    HTTPMessageSignaturesException,
    HTTPMessageSigner,
    HTTPMessageVerifier,
    HTTPSignatureAlgorithm,
    MappingKeyResolver,
    SigningKey,
    VerificationKey,
    VerifyResult,
)
from http_message_signatures import InvalidSignature as NotVerified
from http_message_signatures.algorithms import ED25519, HMAC_SHA256
from redis import ConnectionError as RedisConnectionError
from redis import Redis
from redis import TimeoutError as RedisTimeoutError

from accounting.errors import DomainError, Unavailable

AGE_S_MAX = 300
SKEW_S_MAX = 5
# Longer than any signature lives, so that two servers whose clocks differ still share the answer.
NONCE_KEPT_S = 2 * AGE_S_MAX
NONCE_CHARS_MIN, NONCE_CHARS_MAX = 8, 128
HMAC_BYTES_MIN = 32
LABEL = "sig1"
COVERED_ALWAYS = ("@method", "@target-uri")

logger = logging.getLogger(__name__)


class InvalidSignature(DomainError):
    """The signature is missing, wrong, stale or used. `reason` is for the log, never the caller."""

    code = "invalid_signature"
    en = "The request signature is missing, wrong, stale or already used."
    zh = "请求签名缺失、错误、过期或已被使用。"
    final = False

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason


@dataclass(frozen=True)
class SignedRequest:
    """A request as its sender signed it; `target_uri` is built by `target_uri()`."""

    method: str
    target_uri: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class BankKey:
    """A live key: the shared secret of hmac-sha256, or the 32 raw public bytes of ed25519."""

    key_id: str
    client_id: str
    algorithm: str
    material: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Proven:
    """A signature that holds; its nonce is still to be taken."""

    key: BankKey
    nonce: str
    created: int


@dataclass(frozen=True, slots=True)
class Budget:
    """A counter in Redis of which at most `amount` is used in a window of `seconds`."""

    name: str
    amount: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Claimed:
    """What became of a nonce, what is used of the budget, and in how many seconds that ends."""

    said: str
    used: int
    left_s: int

    def check(self) -> None:
        """Raise `InvalidSignature` unless the nonce is this request's."""
        if self.said != "ok":
            raise _refused(f"nonce {self.said}")


# Finds a key among the live keys of the client that the access token names; None: not one of them.
KeyLookup = Callable[[str], BankKey | None]


@dataclass(frozen=True)
class Algorithm:
    """How one `alg` signs, verifies, and reads its stored key bytes (ValueError: unfit bytes)."""

    scheme: type[HTTPSignatureAlgorithm]
    signing_key: Callable[[bytes], SigningKey]
    verification_key: Callable[[bytes], VerificationKey]


def _secret(material: bytes) -> bytes:
    if len(material) < HMAC_BYTES_MIN:
        raise ValueError(f"an hmac-sha256 key needs at least {HMAC_BYTES_MIN} bytes")
    return material


# Both compare in constant time: `hmac.HMAC.verify` and Ed25519 of the cryptography library.
ALGORITHMS: dict[str, Algorithm] = {
    "hmac-sha256": Algorithm(HMAC_SHA256, _secret, _secret),
    "ed25519": Algorithm(
        ED25519,
        Ed25519PrivateKey.from_private_bytes,
        Ed25519PublicKey.from_public_bytes,
    ),
}


class NonceStore:
    """Remembers nonces in Redis for as long as their signatures live.

    A Redis that restarted may have forgotten some of them. So each run of the server has an epoch,
    the time at which this store first met it, and a signature that may be older is refused.
    """

    # The run id decides, not the presence of the key: a snapshot brings back the old epoch, but
    # not the nonces taken since it was written. INFO is local to the server, so it is cheap.
    _EPOCH = """
        local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
        if redis.call('HGET', KEYS[1], 'run') ~= run then
            redis.call('HSET', KEYS[1], 'run', run, 'at_ms', ARGV[1])
        end
        local at_ms = tonumber(redis.call('HGET', KEYS[1], 'at_ms'))
    """
    _BEGIN = f"{_EPOCH} return at_ms"
    # With a budget: one more is used of it whatever follows, and past it no nonce is taken. Counted
    # as the library `limits` does.
    _CLAIM = f"""
        local used, ttl_s = 0, 0
        if KEYS[3] then
            used = redis.call('INCRBY', KEYS[3], 1)
            if used == 1 then redis.call('EXPIRE', KEYS[3], ARGV[5]) end
            ttl_s = redis.call('TTL', KEYS[3])
            if used > tonumber(ARGV[4]) then return {{'over', used, ttl_s}} end
        end
        {_EPOCH}
        if tonumber(ARGV[2]) <= at_ms then return {{'before the epoch', used, ttl_s}} end
        if not redis.call('SET', KEYS[2], '1', 'NX', 'EX', ARGV[3]) then
            return {{'used', used, ttl_s}}
        end
        return {{'ok', used, ttl_s}}
    """

    def __init__(self, redis: Redis, prefix: str = "nonce") -> None:
        self._prefix = prefix
        self._begin = redis.register_script(self._BEGIN)
        self._claim = redis.register_script(self._CLAIM)

    def begin(self, since: datetime) -> datetime:
        """Set the epoch of this Redis run if it has none; return when signatures are accepted from.

        `since` is the earliest instant that no nonce can have been forgotten after: the present,
        or earlier where no bank can have called yet. Raises `Unavailable` without Redis.
        """
        at_ms = self._ask(self._begin, [self._epoch_key()], [_ms(since)])
        return datetime.fromtimestamp(int(at_ms) // 1000 + SKEW_S_MAX + 1, UTC)

    def claim(self, proven: "Proven", now: datetime, budget: "Budget | None" = None) -> "Claimed":
        """Take the nonce of a signature once, and one of a budget, in one round trip.

        A clock that runs ahead may have signed up to `SKEW_S_MAX` after the nonce was forgotten.
        Raises `Unavailable` without Redis.
        """
        created_at_least_ms = (proven.created - SKEW_S_MAX) * 1000
        keys = [self._epoch_key(), f"{self._prefix}:{proven.key.client_id}:{proven.nonce}"]
        args = [_ms(now), created_at_least_ms, NONCE_KEPT_S]
        if budget is not None:
            keys.append(budget.name)
            args += [budget.amount, budget.seconds]
        said, used, left_s = self._ask(self._claim, keys, args)
        # A client without decode_responses answers bytes.
        return Claimed(said.decode() if isinstance(said, bytes) else said, used, left_s)

    def _epoch_key(self) -> str:
        return f"{self._prefix}-epoch"

    @staticmethod
    def _ask(script: Any, keys: list[str], args: list[int]) -> Any:
        try:
            return script(keys=keys, args=args)
        except (RedisConnectionError, RedisTimeoutError) as error:
            raise Unavailable("the signature check") from error


def target_uri(public_url: str, request_target: str) -> str:
    """`@target-uri` from the configured public base and the request line as it came, still encoded.

    A proxy may change scheme and host; what the bank signed is the address it was given.
    """
    if not request_target.startswith("/"):
        raise InvalidSignature("the request target is not a path")
    return public_url.rstrip("/") + request_target


def verify(request: SignedRequest, keys: KeyLookup, *, nonces: NonceStore, now: datetime) -> str:
    """Check the one signature of a request and use up its nonce; return the key id.

    Raises `InvalidSignature` whatever is wrong, and `Unavailable` without Redis.
    """
    found = proven(request, keys, now)
    nonces.claim(found, now).check()
    return found.key.key_id


def proven(request: SignedRequest, keys: KeyLookup, now: datetime) -> Proven:
    """Check the one signature of a request, all but whether its nonce is new.

    That is for the end: whoever cannot sign must not be able to use up a nonce. Raises
    `InvalidSignature` whatever is wrong.
    """
    try:
        key = _claimed_key(request, keys)
        result = checked(request, key, now, covered=_to_cover(request))
    except InvalidSignature as error:
        raise _refused(error.reason) from error
    nonce = result.nonce
    if nonce is None or not NONCE_CHARS_MIN <= len(nonce) <= NONCE_CHARS_MAX:
        raise _refused("nonce missing or of unfit length")
    return Proven(key, nonce, int(result.parameters["created"]))


def _refused(reason: str) -> InvalidSignature:
    logger.info("signature refused: %s", reason)
    return InvalidSignature(reason)


def checked(
    request: SignedRequest,
    key: BankKey,
    now: datetime,
    *,
    covered: tuple[str, ...] = (),
) -> VerifyResult:
    """The cryptographic part: signature, body digest, `created`, `alg` and what must be covered.

    Raises `InvalidSignature`. Nonces are not looked at.
    """
    algorithm = ALGORITHMS[key.algorithm]
    public = {key.key_id: algorithm.verification_key(key.material)}
    verifier = _Verifier(
        signature_algorithm=algorithm.scheme,
        key_resolver=MappingKeyResolver(public_keys=public, private_keys={}),
    )
    verifier.now = now
    message = _Message(request.method, request.target_uri, request.headers)
    try:
        [result] = verifier.verify(
            message, max_age=None, require_components=covered, body=request.body
        )
    except HTTPMessageSignaturesException as error:
        raise InvalidSignature(str(error)) from error
    return result


def sign(
    request: SignedRequest,
    *,
    key_id: str,
    algorithm: str,
    material: bytes,
    now: datetime,
    nonce: str | None = None,
) -> dict[str, str]:
    """The headers a client adds: `Signature-Input`, `Signature`, and `Content-Digest` with a body.

    `material` is the shared secret, or the 32 raw private bytes of ed25519. The nonce is random
    unless given.
    """
    row = ALGORITHMS[algorithm]
    private = {key_id: row.signing_key(material)}
    message = _Message(request.method, request.target_uri, dict(request.headers))
    HTTPMessageSigner(
        signature_algorithm=row.scheme,
        key_resolver=MappingKeyResolver(public_keys={}, private_keys=private),
    ).sign(
        message,
        key_id=key_id,
        created=now,
        nonce=nonce or secrets.token_urlsafe(18),
        label=LABEL,
        covered_component_ids=COVERED_ALWAYS,
        body=request.body or None,
    )
    names = ("Content-Digest", "Signature-Input", "Signature")
    return {name: message.headers[name] for name in names if name in message.headers}


def _ms(instant: datetime) -> int:
    return (instant - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def _header(request: SignedRequest, name: str) -> str | None:
    return next((text for key, text in request.headers.items() if key.lower() == name), None)


def _to_cover(request: SignedRequest) -> tuple[str, ...]:
    if request.body:
        return (*COVERED_ALWAYS, "content-digest")
    if _header(request, "content-digest") is not None:
        raise InvalidSignature("a digest without a body")
    return COVERED_ALWAYS


def _claimed_key(request: SignedRequest, keys: KeyLookup) -> BankKey:
    """The key named by the only label; nothing is proven yet.

    The library needs the algorithm before it reads the signature, and the algorithm comes from our
    record of the key, never from the request.
    """
    text = _header(request, "signature-input") or ""
    try:
        parsed = http_sf.parse(text.encode(), tltype="dictionary")
    except ValueError as error:
        raise InvalidSignature(f"signature-input is malformed: {error}") from error
    labels = cast(dict[str, tuple[Any, dict[str, Any]]], parsed)
    if len(labels) != 1:
        raise InvalidSignature("there must be exactly one signature")
    [(_, parameters)] = labels.values()
    key_id = parameters.get("keyid")
    key = keys(key_id) if isinstance(key_id, str) else None
    if key is None:
        raise InvalidSignature("the key is not a live key of this client")
    return key


@dataclass
class _Message:
    """What the library reads from a request, and where its signer writes headers."""

    method: str
    url: str
    headers: Any


class _Verifier(HTTPMessageVerifier):
    """The library reads the wall clock; ours is handed in, and has another window each way."""

    now: datetime

    def validate_created_and_expires(self, sig_input: Any, max_age: Any = None) -> None:
        created, expires = (sig_input.params.get(name) for name in ("created", "expires"))
        now_s = self.now.timestamp()
        if created is None or not now_s - AGE_S_MAX <= created <= now_s + SKEW_S_MAX:
            raise NotVerified("created is missing or outside the window")
        if expires is not None and expires < now_s:
            raise NotVerified("expires is in the past")
