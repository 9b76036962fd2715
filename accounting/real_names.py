"""The real name behind an account, as far as a bank has matched it.

A phone may be in other hands than its owner's. A bank knows its customer's name; whoever approves
the bank's request and says the same name has proven it. From then on that name is asked for when
the resident gives a consent unasked. It is kept as a keyed hash only, and ends with the account.
"""

from pymongo import ReturnDocument
from pymongo.collection import Collection

from accounting import storage, vault
from accounting.accounts import OPEN, ResidentDocument
from accounting.errors import DomainError

TRIES_MAX = 5


class NameNotMatching(DomainError):
    code = "name_not_matching"
    en = "The name is not the one the bank knows its customer by."
    zh = "姓名与银行登记的客户姓名不符。"


class RealNameNeeded(DomainError):
    code = "real_name_needed"
    en = "A bank must match your name first: approve a request of a bank that knows you."
    zh = "须先由银行核验您的姓名，请先同意您开户银行发来的授权请求。"


def _residents() -> "Collection[storage.Doc]":
    return storage.strong(ResidentDocument._get_collection())


def hash_of(name: str) -> str:
    """Spaces and case do not matter."""
    return vault.keyed_hash("real-name", "".join(name.split()).casefold())


def prove(resident: str, name: str) -> None:
    """Keep a name that a bank has matched; the last one counts."""
    change = {"$set": {"real_name_hash": hash_of(name), "real_name_tries": 0}}
    _residents().update_one({"_id": resident, "status": OPEN}, change)


def check(resident: str, name: str | None) -> None:
    """Compare with the proven name; after five wrong tries a bank must match it anew.

    Raises `RealNameNeeded` and `NameNotMatching`.
    """
    # The try is counted before the comparison, so parallel guesses cannot exceed the limit.
    found = _residents().find_one_and_update(
        {"_id": resident, "status": OPEN, "real_name_tries": {"$lt": TRIES_MAX}},
        {"$inc": {"real_name_tries": 1}},
        return_document=ReturnDocument.AFTER,
    )
    if found is None:
        raise RealNameNeeded()
    if name is None or found["real_name_hash"] != hash_of(name):
        raise NameNotMatching()
    _residents().update_one(
        {"_id": resident, "real_name_hash": found["real_name_hash"]},
        {"$set": {"real_name_tries": 0}},
    )
