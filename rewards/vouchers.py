"""Vouchers: a typed code, a short-lived signed QR, consumed once.

The code is 60 random-looking bits derived from the voucher id under a secret key, plus a check
character, so its owner can be shown it again although only its keyed hash is stored. The QR payload
is signed with Ed25519 and lives 60 seconds: a screenshot dies, and a merchant can verify it without
network. What happens to a voucher at the till is in `rewards/till.py`.
"""

import base64
import hashlib
import hmac
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import mongoengine as me
from cryptography.exceptions import InvalidSignature
from pymongo.collection import Collection
from stdnum.iso7064 import mod_37_36

from accounting import clock, storage, vault
from accounting.errors import DomainError, NotFound
from rewards.offers import LAPSE

QR_LIFETIME = timedelta(seconds=60)
# How far the clocks of a till and of the city may disagree.
QR_TOLERANCE = timedelta(seconds=5)
CODE_BITS = 60
# Crockford's alphabet: no I, L, O, U, so that a code can be read aloud and typed.
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LOOKALIKES = str.maketrans("ILO", "110", "- ")
ISSUED, USED, CANCELLED = "issued", "used", "cancelled"
# What ran out unused: for good, or with its points coming back. Its owner is told `expired`.
EXPIRED, EXPIRING, RETURNING, RETURNED = "expired", "expiring", "returning", "returned"
RAN_OUT = (EXPIRED, EXPIRING, RETURNING, RETURNED)
RETURN_HALF_WAY = (EXPIRING, RETURNING)


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
    # (funder, fen) and (funder, points), fixed when the voucher was issued.
    funder_split = me.ListField(me.ListField())
    points = me.ListField(me.ListField())
    code_hash = me.StringField(required=True)
    status = me.StringField(required=True)
    expires_at = me.DateTimeField(required=True)
    issued_at = me.DateTimeField(required=True)
    # The stores that take it; all of the merchant's if there are none here.
    store_ids = me.ListField(me.StringField())
    # What becomes of it when nobody uses it.
    unused = me.StringField(required=True)
    # Until when somebody is giving its points back.
    leased_until = me.DateTimeField()
    # Every successful scan, the refunded ones too: a reference of a till stays bound for ever.
    scans = me.ListField(me.DictField())
    # Since when the book lacks fen lines of a scan or a refund; the sweep looks here.
    unbooked_since = me.DateTimeField()

    meta = {
        "collection": "vouchers",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["code_hash"], "unique": True},
            {"fields": ["redemption_id"]},
            {"fields": ["issued_at", "reward_id", "status", "expires_at"]},
            {
                "fields": ["unused", "expires_at"],
                "name": "unused",
                "partialFilterExpression": {"status": ISSUED},
            },
            {
                "fields": ["leased_until"],
                "name": "coming_back",
                "partialFilterExpression": {"status": {"$in": list(RETURN_HALF_WAY)}},
            },
            {
                "fields": ["merchant_id", "scans.store_id", "scans.terminal_ref"],
                "name": "terminal_reference",
                "unique": True,
                "partialFilterExpression": {"scans.terminal_ref": {"$exists": True}},
            },
            {"fields": ["unbooked_since"], "sparse": True},
        ],
    }


@dataclass(frozen=True, slots=True)
class Scan:
    """One successful scan of a voucher, and when it was refunded."""

    store_id: str
    terminal_ref: str
    used_at: datetime
    refunded_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Voucher:
    """A voucher as it stands.

    `funder_split` says who pays how many fen of the face value, `points` what it was bought with:
    (funder, points) of the lots they came from.
    """

    id: str
    redemption_id: str
    resident: str
    reward_id: str
    merchant_id: str
    title: dict[str, str]
    face_value_fen: int
    funder_split: tuple[tuple[str, int], ...]
    status: str
    expires_at: datetime
    issued_at: datetime
    store_ids: tuple[str, ...] = ()
    unused: str = LAPSE
    points: tuple[tuple[str, int], ...] = ()
    scans: tuple[Scan, ...] = ()
    unbooked_since: datetime | None = None

    def status_at(self, now: datetime) -> str:
        ran_out = self.status == ISSUED and self.expires_at <= now
        return EXPIRED if ran_out or self.status in RAN_OUT else self.status


# What a voucher is issued with; the rest comes at the till.
_ISSUED_FIELDS = (
    "redemption_id",
    "resident",
    "reward_id",
    "merchant_id",
    "title",
    "face_value_fen",
    "status",
    "expires_at",
    "issued_at",
    "unused",
)


def rows() -> "Collection[storage.Doc]":
    """The vouchers themselves, for the till."""
    return storage.strong(VoucherDocument._get_collection())


def issue(vouchers: list[Voucher]) -> None:
    """Store vouchers; ids are derived from the redemption, so repeating it changes nothing."""
    for voucher in vouchers:
        document = {name: getattr(voucher, name) for name in _ISSUED_FIELDS}
        document["funder_split"] = [list(part) for part in voucher.funder_split]
        document["points"] = [list(part) for part in voucher.points]
        document["store_ids"] = list(voucher.store_ids)
        document["scans"] = []
        document["code_hash"] = _code_hash(code_of(voucher.id))
        rows().update_one({"_id": voucher.id}, {"$setOnInsert": document}, upsert=True)


def of_redemption(redemption_id: str) -> list[Voucher]:
    found = rows().find({"redemption_id": redemption_id}).sort("_id", 1)
    return [of_row(row) for row in found]


def get(voucher_id: str) -> Voucher | None:
    found = rows().find_one({"_id": voucher_id})
    return of_row(found) if found else None


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


def voucher_of_qr(payload: str, at: datetime) -> str:
    """The voucher id named by a genuine QR that was fresh at an instant. Raises `BadQr`."""
    parts = payload.split(".")
    if len(parts) != 4 or parts[0] != "TH1" or not parts[2].isascii() or not parts[2].isdigit():
        raise BadQr()
    try:
        signature = base64.urlsafe_b64decode(parts[3] + "=" * (-len(parts[3]) % 4))
        vault.signing_key().public_key().verify(signature, ".".join(parts[:3]).encode())
    except (InvalidSignature, ValueError):
        raise BadQr() from None
    until = datetime.fromtimestamp(int(parts[2]), UTC)
    if not until - QR_LIFETIME - QR_TOLERANCE <= at <= until + QR_TOLERANCE:
        raise BadQr()
    return parts[1]


def find(*, code: str | None, qr: str | None, now: datetime) -> Voucher:
    """The voucher a till holds in its hand. Raises `BadQr` or `NotFound`."""
    if qr is not None:
        wanted = {"_id": voucher_of_qr(qr, now)}
    else:
        wanted = {"code_hash": _code_hash(_clean(code or ""))}
    found = rows().find_one(wanted)
    if found is None:
        raise NotFound()
    return of_row(found)


def cancel(voucher_id: str, resident: str) -> bool:
    """Take an unused voucher out of use; False if it was used. Repeating it changes nothing.

    Raises `VoucherExpired` for one that ran out unused: its points lapse with it.
    """
    now = clock.now()
    rows().update_one(
        {"_id": voucher_id, "resident": resident, "status": ISSUED, "expires_at": {"$gt": now}},
        {"$set": {"status": CANCELLED}},
    )
    found = get(voucher_id)
    assert found is not None, "vouchers are never deleted"
    if found.status_at(now) == EXPIRED:
        raise VoucherExpired()
    return found.status == CANCELLED


def uncancel(voucher_id: str) -> None:
    """Put a voucher back into use when a cancellation could not take all of its kind."""
    rows().update_one({"_id": voucher_id, "status": CANCELLED}, {"$set": {"status": ISSUED}})


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


def of_row(row: storage.Doc) -> Voucher:
    """A voucher as MongoDB keeps it."""
    return Voucher(
        id=row["_id"],
        funder_split=tuple((funder, fen) for funder, fen in row["funder_split"]),
        points=tuple((funder, points) for funder, points in row["points"]),
        store_ids=tuple(row["store_ids"]),
        scans=tuple(Scan(**scan) for scan in row["scans"]),
        unbooked_since=row.get("unbooked_since"),
        **{name: row[name] for name in _ISSUED_FIELDS},
    )
