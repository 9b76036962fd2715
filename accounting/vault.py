"""Keys, encryption and keyed hashes, all derived from one master secret.

Names, phone numbers and external ids are stored encrypted and looked up by keyed hash; everything
else in the system uses an opaque id. One secret to guard, one purpose per derived key.
"""

import hashlib
import hmac
from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from accounting.ids import random_bytes

MASTER_BYTES = 32
_NONCE_BYTES = 12

_master: bytes | None = None


def configure(master: bytes) -> None:
    """Set the master secret of this process; the rooms below `api/` never read the environment."""
    global _master
    if len(master) < MASTER_BYTES:
        raise ValueError(f"the master secret needs at least {MASTER_BYTES} bytes")
    _master = master
    derive.cache_clear()
    _keyed.cache_clear()
    signing_key.cache_clear()
    key_id.cache_clear()


@lru_cache(maxsize=64)
def derive(purpose: str) -> bytes:
    """A 32-byte key for one purpose (RFC 5869, HKDF-SHA256)."""
    assert _master is not None, "vault.configure() was not called"
    return HKDF(SHA256(), 32, salt=None, info=f"tanhui/{purpose}".encode()).derive(_master)


def encrypt(text: str, purpose: str = "field") -> bytes:
    """Seal a text; see `seal`."""
    return seal(text.encode(), purpose)


def decrypt(sealed: bytes, purpose: str = "field") -> str:
    """Undo `encrypt`; raises `cryptography.exceptions.InvalidTag` on another key or purpose."""
    return unseal(sealed, purpose).decode()


def seal(content: bytes, purpose: str) -> bytes:
    """AES-256-GCM with a random nonce in front; the purpose is bound as associated data."""
    nonce = random_bytes(_NONCE_BYTES)
    return nonce + AESGCM(derive(purpose)).encrypt(nonce, content, purpose.encode())


def unseal(sealed: bytes, purpose: str) -> bytes:
    """Undo `seal`; raises `cryptography.exceptions.InvalidTag` on another key or purpose."""
    nonce, body = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
    return AESGCM(derive(purpose)).decrypt(nonce, body, purpose.encode())


def keyed_hash(kind: str, text: str) -> str:
    """HMAC-SHA256 of a value under the key of its kind: findable, not guessable without the key."""
    keyed = _keyed(kind).copy()
    keyed.update(text.encode())
    return keyed.hexdigest()


@lru_cache(maxsize=64)
def _keyed(kind: str) -> hmac.HMAC:
    """An HMAC that has taken its key in, which costs more than a short value; to be copied."""
    return hmac.new(derive(f"hash/{kind}"), digestmod="sha256")


@lru_cache(maxsize=1)
def signing_key() -> Ed25519PrivateKey:
    """The city's Ed25519 key that signs grade answers, QR payloads and proofs."""
    return Ed25519PrivateKey.from_private_bytes(derive("sign/ed25519"))


@lru_cache(maxsize=1)
def key_id() -> str:
    """A stable id of the signing key: the first half of the SHA-256 of its public bytes."""
    public = signing_key().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return hashlib.sha256(public).hexdigest()[:32]
