"""What happens to a voucher at the till: used once, refunded, scanned without network.

    issued --redeem / offline scan--> used --refund--> issued

One guarded update is the scan; the merchant's `(store_id, terminal_ref)` stays bound to it for
ever, so the same scan again gets its first answer. The fen follow, see `rewards/takings.py`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import clock, storage
from accounting.errors import AccountBusy, DomainError, KeyReused, NotFound
from rewards import merchants, takings, vouchers
from rewards.vouchers import (
    CANCELLED,
    ISSUED,
    QR_TOLERANCE,
    RAN_OUT,
    USED,
    BadQr,
    Scan,
    Voucher,
    VoucherCancelled,
    VoucherExpired,
    VoucherUsed,
)

# How long a merchant may take a scan back.
REFUND_WINDOW = timedelta(days=7)
# A refunded voucher can be used for at least this long again, also past its own last day.
REFUND_GRACE = timedelta(days=7)
# How late a scan that was made without network may be handed in.
OFFLINE_MAX_AGE = timedelta(days=7)
ATTEMPTS_MAX = 5


class WrongMerchant(DomainError):
    code = "wrong_merchant"
    en = "This voucher belongs to another merchant or store."
    zh = "该券不属于本商户或本门店。"


class VoucherNotUsed(DomainError):
    code = "voucher_not_used"
    en = "This voucher was not used, so there is nothing to refund."
    zh = "该券未被使用，无需退回。"


class RefundWindowOver(DomainError):
    """Facts: days."""

    code = "refund_window_over"
    en = "A scan can be refunded within {days} days."
    zh = "核销后 {days} 天内可退回，现已超期。"


class ScanTooOld(DomainError):
    """Facts: days."""

    code = "scan_too_old"
    en = "A scan made without network is accepted within {days} days, and not from the future."
    zh = "离线核销须在 {days} 天内上传，且时间不得晚于当前。"


@storage.indexed
class LostScanDocument(me.Document):
    """A scan without network that came too late: unpaid, kept so that it stays so."""

    merchant_id = me.StringField(required=True)
    store_id = me.StringField(required=True)
    terminal_ref = me.StringField(required=True)
    voucher_id = me.StringField(required=True)
    code = me.StringField(required=True)
    scanned_at = me.DateTimeField(required=True)
    received_at = me.DateTimeField(required=True)

    meta = {
        "collection": "lost_scans",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["merchant_id", "store_id", "terminal_ref"], "unique": True},
            {"fields": ["merchant_id", "received_at", "_id"]},
            {"fields": ["received_at", "_id"]},
        ],
    }


class Used(NamedTuple):
    """The answer to a scan: the voucher and where and when it was used."""

    voucher_id: str
    scan: Scan


@dataclass(frozen=True, slots=True)
class OfflineScan:
    """What a till without network took: the QR as it was shown, and when."""

    qr_payload: str
    store_id: str
    terminal_ref: str
    scanned_at: datetime


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of one offline scan: used, or a refusal."""

    used: Used | None = None
    refusal: DomainError | None = None


def redeem(voucher: Voucher, *, merchant_id: str, store_id: str, terminal_ref: str) -> Used:
    """Use a voucher once, at one store.

    The same `(merchant, store, terminal_ref)` again gives the first answer, also after a refund;
    with another voucher it raises `KeyReused`. Only a success binds the reference. Raises
    `WrongMerchant`, `VoucherUsed`, `VoucherExpired` or `VoucherCancelled` otherwise; then nothing
    changed.
    """
    _check_store(voucher, merchant_id, store_id)
    return _use(voucher, Scan(store_id, terminal_ref, clock.now()))


def refund(voucher_id: str, *, merchant_id: str, store_id: str | None = None) -> Voucher:
    """Take the last scan of a voucher back: its owner can use it again, the merchant is owed less.

    With a `store_id` only a scan of that store. Repeating it changes nothing. Raises `NotFound`,
    `WrongMerchant`, `VoucherNotUsed` or `RefundWindowOver`.
    """
    for _ in range(ATTEMPTS_MAX):
        voucher = vouchers.get(voucher_id)
        if voucher is None:
            raise NotFound()
        if voucher.merchant_id != merchant_id:
            raise WrongMerchant()
        if not voucher.scans:
            raise VoucherNotUsed()
        if store_id not in (None, voucher.scans[-1].store_id):
            raise WrongMerchant()
        if voucher.scans[-1].refunded_at is not None:
            return takings.book_if_free(voucher)
        now = clock.now()
        if now > voucher.scans[-1].used_at + REFUND_WINDOW:
            raise RefundWindowOver(days=REFUND_WINDOW.days)
        place = len(voucher.scans) - 1
        refunded = vouchers.rows().find_one_and_update(
            {
                "_id": voucher.id,
                "status": USED,
                "scans": {"$size": place + 1},
                f"scans.{place}.refunded_at": None,
            },
            {
                "$set": {
                    "status": ISSUED,
                    f"scans.{place}.refunded_at": now,
                    "expires_at": max(voucher.expires_at, now + REFUND_GRACE),
                },
                "$min": {"unbooked_since": now},
            },
            return_document=True,
        )
        if refunded is not None:
            return takings.book_if_free(vouchers.of_row(refunded))
    raise AccountBusy(retry_after=1)


def take_offline(merchant_id: str, scans: list[OfflineScan]) -> list[Taken]:
    """Take scans in that were made without network, in the order they were made.

    Whichever scan of a voucher arrives first is the one that is paid; one that lost stays unpaid
    and is kept for the merchant and the operator to see. The results are in the order of `scans`.
    """
    lost = _lost_before(merchant_id, scans)
    results = [Taken()] * len(scans)
    for place in sorted(range(len(scans)), key=lambda place: scans[place].scanned_at):
        results[place] = _take_one(merchant_id, scans[place], lost)
    return results


def lost_scans(
    merchant_id: str | None, *, before: tuple[Any, ...] | None, limit: int
) -> list[dict[str, Any]]:
    """Offline scans that lost, of one merchant or of all, newest first.

    `before` is (received_at, id) of the last one seen.
    """
    wanted: dict[str, Any] = {} if merchant_id is None else {"merchant_id": merchant_id}
    if before is not None:
        at, last = before
        wanted["$or"] = [
            {"received_at": {"$lt": at}},
            {"received_at": at, "_id": {"$lt": last}},
        ]
    found = _lost().find(wanted).sort([("received_at", -1), ("_id", -1)]).limit(limit)
    return list(found)


def _lost() -> "Collection[storage.Doc]":
    return storage.strong(LostScanDocument._get_collection())


def _check_store(voucher: Voucher, merchant_id: str, store_id: str) -> None:
    if voucher.merchant_id != merchant_id or not merchants.owns(merchant_id, store_id):
        raise WrongMerchant()
    if voucher.store_ids and store_id not in voucher.store_ids:
        raise WrongMerchant()


def _use(voucher: Voucher, scan: Scan) -> Used:
    """Consume a voucher that is valid at the instant of the scan, and book it."""
    reference = {"store_id": scan.store_id, "terminal_ref": scan.terminal_ref}
    try:
        used = vouchers.rows().find_one_and_update(
            {
                "_id": voucher.id,
                "status": ISSUED,
                "expires_at": {"$gt": scan.used_at},
                "scans": {"$not": {"$elemMatch": reference}},
            },
            {
                "$set": {"status": USED},
                "$push": {"scans": {**reference, "used_at": scan.used_at, "refunded_at": None}},
                "$min": {"unbooked_since": clock.now()},
            },
            return_document=True,
        )
    except DuplicateKeyError:
        raise KeyReused(key=scan.terminal_ref) from None
    if used is not None:
        takings.book_if_free(vouchers.of_row(used))
        return Used(voucher.id, scan)
    return _repeated(voucher, scan)


def _repeated(voucher: Voucher, scan: Scan) -> Used:
    """Nothing to use: the same scan again gets its first answer, any other its refusal."""
    found = vouchers.get(voucher.id)
    assert found is not None, "vouchers are never deleted"
    for earlier in found.scans:
        if (earlier.store_id, earlier.terminal_ref) == (scan.store_id, scan.terminal_ref):
            takings.book_if_free(found)
            return Used(found.id, earlier)
    if _is_bound(voucher.merchant_id, scan):
        raise KeyReused(key=scan.terminal_ref)
    if found.status == ISSUED or found.status in RAN_OUT:
        raise VoucherExpired()
    raise VoucherCancelled() if found.status == CANCELLED else VoucherUsed()


def _is_bound(merchant_id: str, scan: Scan) -> bool:
    """Whether a reference of a till stands for another voucher already."""
    # Not $elemMatch: only the dotted form lets the planner use the partial index.
    wanted = {
        "merchant_id": merchant_id,
        "scans.store_id": scan.store_id,
        "scans.terminal_ref": scan.terminal_ref,
    }
    reference = (scan.store_id, scan.terminal_ref)
    return any(
        (one["store_id"], one["terminal_ref"]) == reference
        for row in vouchers.rows().find(wanted, {"scans": 1})
        for one in row["scans"]
    )


def _take_one(merchant_id: str, scan: OfflineScan, lost: dict[tuple[str, str], str]) -> Taken:
    now = clock.now()
    try:
        if not now - OFFLINE_MAX_AGE <= scan.scanned_at <= now + QR_TOLERANCE:
            raise ScanTooOld(days=OFFLINE_MAX_AGE.days)
        voucher = vouchers.get(vouchers.voucher_of_qr(scan.qr_payload, scan.scanned_at))
        if voucher is None:
            raise BadQr()
        _check_store(voucher, merchant_id, scan.store_id)
    except DomainError as refusal:
        return Taken(refusal=refusal)
    earlier = lost.get((scan.store_id, scan.terminal_ref))
    if earlier is not None:
        return Taken(refusal=VoucherUsed() if earlier == voucher.id else KeyReused())
    try:
        made = Scan(scan.store_id, scan.terminal_ref, clock.cut(scan.scanned_at))
        return Taken(used=_use(voucher, made))
    except VoucherUsed as refusal:
        _keep_lost(merchant_id, voucher, scan, refusal.code)
        return Taken(refusal=refusal)
    except DomainError as refusal:
        return Taken(refusal=refusal)


def _lost_before(merchant_id: str, scans: Iterable[OfflineScan]) -> dict[tuple[str, str], str]:
    """The vouchers of scans that have lost before, by store and reference of the till."""
    wanted = {
        "merchant_id": merchant_id,
        "store_id": {"$in": sorted({scan.store_id for scan in scans})},
        "terminal_ref": {"$in": sorted({scan.terminal_ref for scan in scans})},
    }
    return {
        (row["store_id"], row["terminal_ref"]): row["voucher_id"] for row in _lost().find(wanted)
    }


def _keep_lost(merchant_id: str, voucher: Voucher, scan: OfflineScan, code: str) -> None:
    reference = {
        "merchant_id": merchant_id,
        "store_id": scan.store_id,
        "terminal_ref": scan.terminal_ref,
    }
    what = {
        "voucher_id": voucher.id,
        "code": code,
        "scanned_at": clock.cut(scan.scanned_at),
        "received_at": clock.now(),
    }
    _lost().update_one(reference, {"$setOnInsert": what}, upsert=True)
