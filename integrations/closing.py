"""Closing an account: what is known of the person goes, what was earned stays under an opaque id.

Phone, name and preferences go with the account itself, in one write; everything else is erased
after it and can be erased again. A crash in between, or a request that was under way, leaves the
rest to the sweep. The book, activities, bills and gradings name the opaque id and stay, and so do
vouchers: what they are worth is owed to the merchant who takes them. The record of what banks read
stays as long as the law asks.
"""

from datetime import datetime

from accounting import accounts, consent_requests, consents, links, outbox, sweeping, tokens
from footprint import activities, households, parked, photos, reviews
from integrations import devices, exports


def close(resident: str) -> None:
    """Close an account and erase what is kept about it; safe to repeat."""
    accounts.close(resident)
    erase(resident)


def erase(resident: str) -> None:
    """Erase what other places keep about a closed account; safe to repeat."""
    tokens.close_all(resident)
    consents.withdraw_all(resident)
    consent_requests.forget(resident)
    for hashed in links.hashes_of(resident):
        parked.forget_external(hashed)
    links.unlink_all(resident)
    households.leave_all(resident)
    devices.forget_all(resident)
    for ids in activities.ids_of_resident(resident):
        photos.forget(ids)
    reviews.forget(resident)
    exports.forget(resident)
    outbox.forget(resident)


def sweep(now: datetime) -> int:
    """Erase once more what requests under way may have left, or what a crash did not reach."""
    return sweeping.each("closed account", accounts.leaving(now), _finish)


def _finish(resident: str) -> None:
    erase(resident)
    accounts.left(resident)
