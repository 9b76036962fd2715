"""Vouchers: a typed code, a short-lived signed QR, consumed once.

The code is 60 random-looking bits derived from the voucher id under a secret key, plus a check
character, so its owner can be shown it again although only its keyed hash is stored. The QR payload
is signed with Ed25519 and lives 60 seconds: a screenshot dies, and a merchant can verify it without
network. One guarded update consumes; the merchant's `terminal_ref` makes it safe to repeat.
"""

import base64
import hashlib
import hmac
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import mongoengine as me
from cryptography.exceptions import InvalidSignature
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError
from stdnum.iso7064 import mod_37_36

from accounting import book, clock, storage, sweeping, vault
from accounting.book import Ask, Decision, Head, Line
from accounting.errors import DomainError, KeyReused, NotFound
from points.wallet import Wallet
from rewards import catalogue

QR_LIFETIME = timedelta(seconds=60)
# How far the clocks of a till and of the city may disagree.
QR_TOLERANCE = timedelta(seconds=5)
CODE_BITS = 60
# Crockford's alphabet: no I, L, O, U, so that a code can be read aloud and typed.
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LOOKALIKES = str.maketrans("ILO", "110", "- ")
ISSUED, USED, CANCELLED = "issued", "used", "cancelled"
UNBOOKED_MAX = 500


class VoucherUsed(DomainError):
    code = "voucher_used"
    en = "This voucher was used already."
    zh = "该券已被使用。"


class VoucherExpired(DomainError):
    code = "voucher_expired"
    en = "This voucher has expired."
    zh = "该券已过期。"


class VoucherCancelled(DomainError):
    code = "voucher_cancelled"
    en = "This voucher was cancelled."
    zh = "该券已取消。"


class WrongMerchant(DomainError):
    code = "wrong_merchant"
    en = "This voucher belongs to another merchant or store."
    zh = "该券不属于本商户或本门店。"


class BadQr(DomainError):
    code = "invalid_qr"
    en = "This QR code is altered or too old; ask for a fresh one."
    zh = "二维码无效或已过期，请出示最新二维码。"


@storage.indexed
class VoucherDocument(me.Document):
    id = me.StringField(primary_key=True)
    redemption_id = me.StringField(required=True)
    resident = me.StringField(required=True)
    reward_id = me.StringField(required=True)
    merchant_id = me.StringField(required=True)
    title = me.DictField()
    face_value_fen = me.IntField(required=True)
    funder = me.StringField(required=True)
    code_hash = me.StringField(required=True)
    status = me.StringField(required=True)
    expires_at = me.DateTimeField(required=True)
    used_at = me.DateTimeField()
    store_id = me.StringField()
    terminal_ref = me.StringField()
    # False from the scan until the book has its fen lines; the sweep looks here.
    booked = me.BooleanField()

    meta = {
        "collection": "vouchers",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["code_hash"], "unique": True},
            {"fields": ["redemption_id"]},
            {
                "fields": ["merchant_id", "store_id", "terminal_ref"],
                "unique": True,
                "partialFilterExpression": {"terminal_ref": {"$exists": True}},
            },
            {
                "fields": ["used_at"],
                "name": "unbooked",
                "partialFilterExpression": {"booked": False},
            },
        ],
    }


@dataclass(frozen=True, slots=True)
class Voucher:
    id: str
    redemption_id: str
    resident: str
    reward_id: str
    merchant_id: str
    title: dict[str, str]
    face_value_fen: int
    funder: str
    status: str
    expires_at: datetime
    used_at: datetime | None = None
    store_id: str | None = None
    terminal_ref: str | None = None

    def status_at(self, now: datetime) -> str:
        return "expired" if self.status == ISSUED and self.expires_at <= now else self.status


def _vouchers() -> "Collection[storage.Doc]":
    return storage.strong(VoucherDocument._get_collection())


def issue(vouchers: list[Voucher]) -> None:
    """Store vouchers; ids are derived from the redemption, so repeating it changes nothing."""
    for voucher in vouchers:
        document = {
            name: getattr(voucher, name)
            for name in Voucher.__slots__
            if name != "id" and getattr(voucher, name) is not None
        }
        document["code_hash"] = _code_hash(code_of(voucher.id))
        _vouchers().update_one({"_id": voucher.id}, {"$setOnInsert": document}, upsert=True)


def of_redemption(redemption_id: str) -> list[Voucher]:
    found = _vouchers().find({"redemption_id": redemption_id}).sort("_id", 1)
    return [_voucher(row) for row in found]


def get(voucher_id: str) -> Voucher | None:
    found = _vouchers().find_one({"_id": voucher_id})
    return _voucher(found) if found else None


def code_of(voucher_id: str) -> str:
    """The typed code, shown to the owner only: 12 characters and a check character (ISO 7064)."""
    digest = hmac.new(vault.derive("voucher-code"), voucher_id.encode(), hashlib.sha256).digest()
    bits = int.from_bytes(digest[:8]) >> (64 - CODE_BITS)
    payload = "".join(ALPHABET[(bits >> shift) & 31] for shift in range(CODE_BITS - 5, -1, -5))
    whole = payload + mod_37_36.calc_check_digit(payload, ALPHABET)
    return f"{whole[:4]}-{whole[4:8]}-{whole[8:]}"


def qr_payload(voucher_id: str, now: datetime) -> str:
    """`TH1.<voucher>.<until>.<signature>`: Ed25519 over the first three parts, 60 s to live."""
    until = int((now + QR_LIFETIME).timestamp())
    signed = f"TH1.{voucher_id}.{until}"
    signature = vault.signing_key().sign(signed.encode())
    return f"{signed}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def voucher_of_qr(payload: str, now: datetime) -> str:
    """The voucher id a fresh, genuine QR names. Raises `BadQr`."""
    parts = payload.split(".")
    if len(parts) != 4 or parts[0] != "TH1" or not parts[2].isascii() or not parts[2].isdigit():
        raise BadQr()
    try:
        signature = base64.urlsafe_b64decode(parts[3] + "=" * (-len(parts[3]) % 4))
        vault.signing_key().public_key().verify(signature, ".".join(parts[:3]).encode())
    except (InvalidSignature, ValueError):
        raise BadQr() from None
    until = datetime.fromtimestamp(int(parts[2]), UTC)
    if now > until + QR_TOLERANCE:
        raise BadQr()
    return parts[1]


def find(*, code: str | None, qr: str | None, now: datetime) -> Voucher:
    """The voucher a till holds in its hand. Raises `BadQr` or `NotFound`."""
    if qr is not None:
        wanted = {"_id": voucher_of_qr(qr, now)}
    else:
        wanted = {"code_hash": _code_hash(_clean(code or ""))}
    found = _vouchers().find_one(wanted)
    if found is None:
        raise NotFound()
    return _voucher(found)


def redeem(voucher: Voucher, *, merchant_id: str, store_id: str, terminal_ref: str) -> Voucher:
    """Consume a voucher once, at one store.

    The same `(merchant, store, terminal_ref)` again gives the first answer; with another voucher it
    raises `KeyReused`. Only a success binds the reference. Raises `WrongMerchant`, `VoucherUsed`,
    `VoucherExpired` or `VoucherCancelled` otherwise; then nothing changed.
    """
    stores = {store.store_id for store in catalogue.merchant(merchant_id).stores}
    if voucher.merchant_id != merchant_id or store_id not in stores:
        raise WrongMerchant()
    now = clock.now()
    try:
        used = _vouchers().find_one_and_update(
            {"_id": voucher.id, "status": ISSUED, "expires_at": {"$gt": now}},
            {
                "$set": {
                    "status": USED,
                    "used_at": now,
                    "store_id": store_id,
                    "terminal_ref": terminal_ref,
                    "booked": False,
                }
            },
            return_document=True,
        )
    except DuplicateKeyError:
        raise KeyReused(key=terminal_ref) from None
    if used is None:
        return _repeated(voucher, store_id, terminal_ref, now)
    return _book(_voucher(used))


def _repeated(voucher: Voucher, store_id: str, terminal_ref: str, now: datetime) -> Voucher:
    """Not issued any more: the same scan again gets its first answer, any other its refusal."""
    found = get(voucher.id)
    assert found is not None, "vouchers are never deleted"
    if (found.status, found.store_id, found.terminal_ref) == (USED, store_id, terminal_ref):
        return _book(found)
    bound = {
        "merchant_id": voucher.merchant_id,
        "store_id": store_id,
        "terminal_ref": terminal_ref,
    }
    if _vouchers().count_documents(bound, limit=1):
        raise KeyReused(key=terminal_ref)
    status = found.status_at(now)
    if status == "expired":
        raise VoucherExpired()
    raise VoucherCancelled() if status == CANCELLED else VoucherUsed()


def cancel(voucher_id: str, resident: str) -> bool:
    """Take an unused voucher out of use; False if it was used. Repeating it changes nothing.

    Raises `VoucherExpired` for one that ran out unused: its points lapse with it.
    """
    now = clock.now()
    _vouchers().update_one(
        {"_id": voucher_id, "resident": resident, "status": ISSUED, "expires_at": {"$gt": now}},
        {"$set": {"status": CANCELLED}},
    )
    found = get(voucher_id)
    assert found is not None, "vouchers are never deleted"
    if found.status_at(now) == "expired":
        raise VoucherExpired()
    return found.status == CANCELLED


def uncancel(voucher_id: str) -> None:
    """Put a voucher back into use when a cancellation could not take all of its kind."""
    _vouchers().update_one({"_id": voucher_id, "status": CANCELLED}, {"$set": {"status": ISSUED}})


def book_unbooked(used_before: datetime) -> int:
    """Post the fen lines of scans a crash left without them; returns how many."""
    wanted = {"booked": False, "used_at": {"$lt": used_before}}
    found = _vouchers().find(wanted).sort("used_at", 1).limit(UNBOOKED_MAX)
    return sweeping.each("scan", [_voucher(row) for row in found], _book)


def _book(voucher: Voucher) -> Voucher:
    """Owe the merchant the face value, paid by the reward's funder; on the resident's account."""
    assert voucher.used_at is not None, voucher.id
    book.post(
        Ask(
            account=voucher.resident,
            key=f"voucher:{voucher.id}:used",
            kind="adjust",
            fingerprint=book.fingerprint("voucher used", voucher.id),
            occurred_at=voucher.used_at,
        ),
        lambda head, now: _decide(voucher, head, now),
    )
    _vouchers().update_one({"_id": voucher.id}, {"$set": {"booked": True}})
    return voucher


def _decide(voucher: Voucher, head: Head, now: datetime) -> Decision:
    wallet = Wallet.load(head.after)
    wallet.advance(now)
    fen = voucher.face_value_fen
    paid = (
        Line("fen", f"payable:{voucher.merchant_id}", fen),
        Line("fen", f"funded:{voucher.funder}", -fen),
    )
    return Decision(
        lines=(*(paid if fen else ()), *wallet.lines),
        after={"wallet": wallet.dump()},
        refs={
            "voucher": voucher.id,
            "redemption": voucher.redemption_id,
            "merchant": voucher.merchant_id,
            "store": voucher.store_id,
            "fen": fen,
        },
    )


def _clean(code: str) -> str:
    """A typed code as it was printed: case, blanks, dashes and lookalikes forgiven."""
    typed = code.strip().upper().translate(_LOOKALIKES)
    if len(typed) != CODE_BITS // 5 + 1 or any(letter not in ALPHABET for letter in typed):
        raise NotFound()
    if not mod_37_36.is_valid(typed, ALPHABET):
        raise NotFound()
    return f"{typed[:4]}-{typed[4:8]}-{typed[8:]}"


def _code_hash(code: str) -> str:
    return vault.keyed_hash("voucher-code", code)


def _voucher(row: storage.Doc) -> Voucher:
    fields: dict[str, Any] = {
        name: row.get(name) for name in Voucher.__slots__ if name not in ("id",)
    }
    return Voucher(id=row["_id"], **fields)
