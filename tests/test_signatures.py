"""Bank signatures: RFC 9421's own vectors, and every way a request is not what was signed."""

import base64
import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from http_message_signatures import ContentDigest, HTTPMessageSigner, MappingKeyResolver
from http_message_signatures.algorithms import HMAC_SHA256
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from accounting.errors import Unavailable
from integrations import signatures
from integrations.servers import redis_server
from integrations.signatures import BankKey, InvalidSignature, NonceStore, SignedRequest

NOW = datetime(2026, 11, 22, 9, 0, 0, 500_000, tzinfo=UTC)
SECRET = bytes(range(64))
SEED = bytes(range(32))
PUBLIC = Ed25519PrivateKey.from_private_bytes(SEED).public_key().public_bytes_raw()
KEYS = {
    "hmac-1": BankKey("hmac-1", "bank-a", "hmac-sha256", SECRET),
    "ed-1": BankKey("ed-1", "bank-a", "ed25519", PUBLIC),
}
QUERY = SignedRequest(
    "POST",
    "https://carbon.example.cn/v1/bank/grades/query",
    {"Content-Type": "application/json"},
    b'{"purpose": "green loan", "references": ["r-1"]}',
)
GET = SignedRequest("GET", "https://carbon.example.cn/v1/bank/grades/r-1?purpose=green%20loan", {})


@contextlib.contextmanager
def redis_in(folder: Path) -> Iterator[str]:
    (folder / "log").mkdir(exist_ok=True)
    with redis_server(folder) as server:
        yield server.url


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_in(tmp_path_factory.mktemp("signatures")) as url:
        yield url


@pytest.fixture
def redis(server: str) -> Iterator[Redis]:
    with contextlib.closing(Redis.from_url(server)) as client:
        client.flushall()
        yield client


@pytest.fixture
def nonces(redis: Redis) -> NonceStore:
    store = NonceStore(redis)
    store.begin(NOW - timedelta(hours=1))
    return store


def signed(request: SignedRequest, key_id: str = "hmac-1", **changes: Any) -> SignedRequest:
    material = {"hmac-1": SECRET, "ed-1": SEED}[key_id]
    algorithm = KEYS[key_id].algorithm
    arguments: dict[str, Any] = {
        "key_id": key_id,
        "algorithm": algorithm,
        "material": material,
        "now": NOW,
        **changes,
    }
    headers = signatures.sign(request, **arguments)
    return dataclasses.replace(request, headers={**request.headers, **headers})


def freely_signed(
    request: SignedRequest,
    covered: list[str],
    *,
    body: bytes | None = None,
    **parameters: Any,
) -> SignedRequest:
    """Signed with the right key, but covering and saying whatever the test wants."""

    class Message:
        method, url, headers = request.method, request.target_uri, dict(request.headers)

    arguments: dict[str, Any] = {
        "key_id": "hmac-1",
        "created": NOW,
        "nonce": "n-12345678",
    }
    HTTPMessageSigner(
        signature_algorithm=HMAC_SHA256,
        key_resolver=MappingKeyResolver(public_keys={}, private_keys={"hmac-1": SECRET}),
    ).sign(
        Message,
        covered_component_ids=covered,
        label="sig1",
        body=body,
        **{**arguments, **parameters},
    )
    return dataclasses.replace(request, headers=Message.headers)


def verify(request: SignedRequest, nonces: NonceStore, now: datetime = NOW) -> str:
    return signatures.verify(request, KEYS.get, nonces=nonces, now=now)


# --- RFC 9421, Appendix B -------------------------------------------------------------------------

RFC_REQUEST = SignedRequest(
    "POST",
    "https://example.com/foo?param=Value&Pet=dog",
    {
        "Host": "example.com",
        "Date": "Tue, 20 Apr 2021 02:07:55 GMT",
        "Content-Type": "application/json",
        "Content-Length": "18",
    },
)
RFC_NOW = datetime.fromtimestamp(1618884473, UTC)
RFC_SECRET = base64.b64decode(
    "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ=="
)
RFC_PUBLIC_PEM = b"""-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAJrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=
-----END PUBLIC KEY-----
"""
B_2_5 = (
    'sig-b25=("date" "@authority" "content-type");created=1618884473;keyid="test-shared-secret"',
    "sig-b25=:pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=:",
)
B_2_6 = (
    'sig-b26=("date" "@method" "@path" "@authority" "content-type" "content-length");'
    + 'created=1618884473;keyid="test-key-ed25519"',
    "sig-b26=:wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw==:",
)


def rfc_key(algorithm: str) -> BankKey:
    if algorithm == "hmac-sha256":
        return BankKey("test-shared-secret", "rfc", algorithm, RFC_SECRET)
    public: Any = load_pem_public_key(RFC_PUBLIC_PEM)
    return BankKey("test-key-ed25519", "rfc", algorithm, public.public_bytes_raw())


@pytest.mark.parametrize(("algorithm", "vector"), [("hmac-sha256", B_2_5), ("ed25519", B_2_6)])
def test_the_vectors_of_the_rfc_hold_and_their_neighbours_do_not(
    algorithm: str, vector: tuple[str, str]
) -> None:
    sent = {"Signature-Input": vector[0], "Signature": vector[1]}
    request = dataclasses.replace(RFC_REQUEST, headers={**RFC_REQUEST.headers, **sent})
    signatures.checked(request, rfc_key(algorithm), RFC_NOW)

    later = {**request.headers, "Date": "Tue, 20 Apr 2021 02:07:56 GMT"}
    with pytest.raises(InvalidSignature):
        signatures.checked(dataclasses.replace(request, headers=later), rfc_key(algorithm), RFC_NOW)


# --- What is accepted -----------------------------------------------------------------------------


@pytest.mark.parametrize("key_id", ["hmac-1", "ed-1"])
@pytest.mark.parametrize("request_", [QUERY, GET])
def test_a_request_signed_with_a_live_key_is_accepted(
    request_: SignedRequest, key_id: str, nonces: NonceStore
) -> None:
    assert verify(signed(request_, key_id), nonces) == key_id


def test_headers_are_what_the_contract_shows() -> None:
    headers = signed(QUERY, nonce="n-12345678").headers
    assert headers["Signature-Input"] == (
        'sig1=("@method" "@target-uri" "content-digest")'
        f';created={int(NOW.timestamp())};keyid="hmac-1";alg="hmac-sha256";nonce="n-12345678"'
    )
    assert headers["Signature"].startswith("sig1=:")
    assert headers["Content-Digest"] == ContentDigest.create(QUERY.body)
    assert "Content-Digest" not in signed(GET).headers


def test_alg_may_be_left_to_the_key_record(nonces: NonceStore) -> None:
    verify(freely_signed(GET, ["@method", "@target-uri"], include_alg=False), nonces)


def test_more_than_the_least_may_be_covered(nonces: NonceStore) -> None:
    covered = ["content-type", "@method", "@path", "@target-uri"]
    verify(freely_signed(QUERY, covered, body=QUERY.body), nonces)


def test_header_names_are_caseless(nonces: NonceStore) -> None:
    request = signed(QUERY)
    lowered = {name.lower(): text for name, text in request.headers.items()}
    verify(dataclasses.replace(request, headers=lowered), nonces)


@pytest.mark.parametrize("age_s", [300, 0, -5])
def test_the_window_reaches_from_300_s_back_to_5_s_ahead(age_s: int, nonces: NonceStore) -> None:
    now = NOW.replace(microsecond=0)
    verify(signed(GET, now=now - timedelta(seconds=age_s)), nonces, now)


def test_the_target_uri_is_the_public_one_whatever_the_proxy_said() -> None:
    raw = "/v1/bank/grades/r%2F1?purpose=a%20b"
    assert (
        signatures.target_uri("https://carbon.example.cn/", raw)
        == f"https://carbon.example.cn{raw}"
    )
    with pytest.raises(InvalidSignature):
        signatures.target_uri("https://carbon.example.cn", "http://elsewhere/v1/bank/green-list")


# --- What is refused ------------------------------------------------------------------------------


def with_header(name: str, text: str | None) -> Callable[[SignedRequest], SignedRequest]:
    def change(request: SignedRequest) -> SignedRequest:
        headers = {key: value for key, value in request.headers.items() if key != name}
        return dataclasses.replace(
            request, headers=headers if text is None else {**headers, name: text}
        )

    return change


def edited(name: str, old: str, new: str) -> Callable[[SignedRequest], SignedRequest]:
    def change(request: SignedRequest) -> SignedRequest:
        assert old in request.headers[name], request.headers[name]
        return with_header(name, request.headers[name].replace(old, new))(request)

    return change


def replaced(**fields: Any) -> Callable[[SignedRequest], SignedRequest]:
    return lambda request: dataclasses.replace(request, **fields)


OTHER_BODY = QUERY.body.replace(b"r-1", b"r-2")
CHANGES: dict[str, Callable[[SignedRequest], SignedRequest]] = {
    "another body": replaced(body=OTHER_BODY),
    "another body with its own digest": lambda request: with_header(
        "Content-Digest", ContentDigest.create(OTHER_BODY)
    )(dataclasses.replace(request, body=OTHER_BODY)),
    "no body any more": replaced(body=b""),
    "another path": replaced(target_uri="https://carbon.example.cn/v1/bank/grades/other"),
    "another query": replaced(target_uri=QUERY.target_uri + "?purpose=other"),
    "another host": replaced(target_uri="https://evil.example.cn/v1/bank/grades/query"),
    "plain http": replaced(target_uri=QUERY.target_uri.replace("https", "http")),
    "another method": replaced(method="PUT"),
    "no signature": with_header("Signature", None),
    "no signature input": with_header("Signature-Input", None),
    "no digest": with_header("Content-Digest", None),
    "an unknown digest algorithm": with_header("Content-Digest", "md5=:CY9rzUYh03PK3k6DJie09g==:"),
    "a malformed input": with_header("Signature-Input", "sig1=("),
    "an input that is not a list": with_header("Signature-Input", 'sig1="x";keyid="hmac-1"'),
    "a signature that is not bytes": with_header("Signature", 'sig1="abc"'),
    "an empty signature": with_header("Signature", "sig1=::"),
    "another label": edited("Signature", "sig1", "sig2"),
    "two labels": lambda request: edited(
        "Signature-Input", "sig1=", 'sig0=("@method");keyid="hmac-1", sig1='
    )(request),
    "one label twice": lambda request: with_header(
        "Signature-Input",
        f"{request.headers['Signature-Input']}, {request.headers['Signature-Input']}",
    )(request),
    "an unknown key": edited("Signature-Input", 'keyid="hmac-1"', 'keyid="hmac-9"'),
    "no key": edited("Signature-Input", ';keyid="hmac-1"', ""),
    "a key id that is not text": edited("Signature-Input", 'keyid="hmac-1"', "keyid=1"),
    "another key of the bank": edited("Signature-Input", 'keyid="hmac-1"', 'keyid="ed-1"'),
    "another algorithm": edited("Signature-Input", 'alg="hmac-sha256"', 'alg="ed25519"'),
    "an algorithm nobody knows": edited("Signature-Input", 'alg="hmac-sha256"', 'alg="none"'),
    "another nonce": edited("Signature-Input", "n-12345678", "n-87654321"),
    "another time": edited("Signature-Input", "created=1", "created=2"),
    "a parameter nobody knows": edited("Signature-Input", ";alg=", ";x=1;alg="),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_request_is_refused(
    change: Callable[[SignedRequest], SignedRequest], nonces: NonceStore
) -> None:
    request = signed(QUERY, nonce="n-12345678")
    with pytest.raises(InvalidSignature) as caught:
        verify(change(request), nonces)
    assert caught.value.code == "invalid_signature"
    assert caught.value.facts == {}, "which check failed is for the log"
    # Nobody could use up the bank's nonce with it.
    verify(request, nonces)


@pytest.mark.parametrize(
    ("covered", "parameters"),
    [
        (["@target-uri"], {}),
        (["@method"], {}),
        (["@method", "@path"], {}),
        (["@method", "@target-uri"], {"nonce": None}),
        (["@method", "@target-uri"], {"nonce": "short"}),
        (["@method", "@target-uri"], {"nonce": "n" * 129}),
        (["@method", "@target-uri"], {"created": NOW - timedelta(seconds=301)}),
        (["@method", "@target-uri"], {"created": NOW + timedelta(seconds=6)}),
        (["@method", "@target-uri"], {"expires": NOW - timedelta(seconds=1)}),
    ],
)
def test_a_good_signature_over_too_little_is_refused(
    covered: list[str], parameters: dict[str, Any], nonces: NonceStore
) -> None:
    with pytest.raises(InvalidSignature):
        verify(freely_signed(GET, covered, **parameters), nonces)


def test_a_digest_that_is_not_covered_is_refused(nonces: NonceStore) -> None:
    digest = {"Content-Digest": ContentDigest.create(QUERY.body)}
    request = dataclasses.replace(QUERY, headers={**QUERY.headers, **digest})
    with pytest.raises(InvalidSignature):
        verify(freely_signed(request, ["@method", "@target-uri"], use_existing_digest=True), nonces)


def test_a_body_needs_a_digest(nonces: NonceStore) -> None:
    with pytest.raises(InvalidSignature):
        verify(freely_signed(QUERY, ["@method", "@target-uri"]), nonces)


def test_a_digest_needs_a_body(nonces: NonceStore) -> None:
    with pytest.raises(InvalidSignature):
        verify(freely_signed(GET, ["@method", "@target-uri"], body=b""), nonces)


def test_created_cannot_be_left_out(nonces: NonceStore) -> None:
    request = signed(GET)
    created = f";created={int(NOW.timestamp())}"
    with pytest.raises(InvalidSignature):
        verify(edited("Signature-Input", created, "")(request), nonces)


def test_a_short_shared_secret_is_refused_when_the_key_is_made() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        signatures.ALGORITHMS["hmac-sha256"].verification_key(b"short")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sent=st.text(max_size=120) | st.builds('sig1={};keyid="hmac-1"'.format, st.text(max_size=80)),
    signature=st.text(max_size=40) | st.just("sig1=:AAAA:"),
    digest=st.text(max_size=40),
)
def test_no_header_text_does_anything_but_be_refused(
    sent: str, signature: str, digest: str, nonces: NonceStore
) -> None:
    headers = {
        "Signature-Input": sent,
        "Signature": signature,
        "Content-Digest": digest,
    }
    with pytest.raises(InvalidSignature):
        verify(dataclasses.replace(QUERY, headers=headers), nonces)


# --- Nonces ---------------------------------------------------------------------------------------


def test_a_nonce_is_used_once(nonces: NonceStore) -> None:
    request = signed(QUERY)
    verify(request, nonces)
    with pytest.raises(InvalidSignature) as caught:
        verify(request, nonces, NOW + timedelta(seconds=299))
    assert caught.value.reason == "nonce used"


def test_a_nonce_of_one_bank_is_free_for_another(nonces: NonceStore) -> None:
    other = {"hmac-1": dataclasses.replace(KEYS["hmac-1"], client_id="bank-b")}
    request = signed(QUERY)
    verify(request, nonces)
    signatures.verify(request, other.get, nonces=nonces, now=NOW)


def test_of_eight_replays_at_once_one_wins(nonces: NonceStore) -> None:
    request = signed(QUERY)
    won: list[str] = []
    start = threading.Barrier(8)

    def replay() -> None:
        start.wait()
        with contextlib.suppress(InvalidSignature):
            won.append(verify(request, nonces))

    threads = [threading.Thread(target=replay) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == ["hmac-1"]


def test_a_nonce_is_kept_longer_than_its_signature_lives(nonces: NonceStore, redis: Redis) -> None:
    verify(signed(GET, nonce="n-12345678"), nonces)
    assert redis.ttl("nonce:bank-a:n-12345678") > 300 + 5


def test_a_redis_that_forgot_refuses_what_may_have_been_used(
    nonces: NonceStore, redis: Redis
) -> None:
    request = signed(QUERY)
    ahead = signed(QUERY, now=NOW + timedelta(seconds=5))
    verify(request, nonces)
    verify(ahead, nonces)
    redis.flushall()

    for replay in (request, ahead):
        with pytest.raises(InvalidSignature) as caught:
            verify(replay, nonces, NOW + timedelta(seconds=1))
        assert caught.value.reason == "nonce before the epoch"
    later = NOW + timedelta(seconds=8)
    verify(signed(QUERY, now=later), nonces, later)


def test_a_restarted_redis_is_not_trusted_even_with_its_files(tmp_path: Path) -> None:
    request = signed(QUERY)
    with redis_in(tmp_path) as url, contextlib.closing(Redis.from_url(url)) as redis:
        nonces = NonceStore(redis)
        nonces.begin(NOW - timedelta(hours=1))
        verify(request, nonces)
        redis.delete(*redis.keys("nonce:*"))  # As if the last second had not reached the disk.
    with redis_in(tmp_path) as url, contextlib.closing(Redis.from_url(url)) as redis:
        nonces = NonceStore(redis)
        accepted_from = nonces.begin(NOW)
        assert accepted_from == NOW.replace(microsecond=0) + timedelta(seconds=6)
        with pytest.raises(InvalidSignature):
            verify(request, nonces)
        verify(signed(QUERY, now=accepted_from), nonces, accepted_from)


def test_without_redis_nothing_is_accepted(tmp_path: Path) -> None:
    with redis_in(tmp_path) as url:
        redis = Redis.from_url(url, retry=None)
        nonces = NonceStore(redis)
        nonces.begin(NOW - timedelta(hours=1))
    with contextlib.closing(redis):
        with pytest.raises(Unavailable):
            verify(signed(QUERY), nonces)
        with pytest.raises(Unavailable):
            nonces.begin(NOW)
