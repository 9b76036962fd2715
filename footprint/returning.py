"""Coming back to an account that was idle when its phone number was proven again.

The number alone proves nothing then: it may have a new holder. Who knows a partner's id or a meter
account that is linked to the old account is taken for its owner.
"""

from accounting import accounts, book, links, tokens
from accounting.errors import DomainError
from footprint import households
from footprint.billing_rules import Carrier


class ProofNotAccepted(DomainError):
    code = "proof_not_accepted"
    en = "This does not prove that an earlier account is yours."
    zh = "该信息不能证明此前的账户属于您。"
    final = False


class AccountInUse(DomainError):
    code = "account_in_use"
    en = "This account has activities already; ask support to bring the two together."
    zh = "当前账户已有记录，请联系客服处理。"


def by_link(resident: str, partner_id: str, external_id: str) -> str:
    """Return to the account a partner's id is linked to; see `_return`."""
    return _return(resident, {links.resident_of(partner_id, external_id)})


def by_meter(resident: str, carrier: Carrier, account_no: str) -> str:
    """Return to an account that has joined a meter account; see `_return`."""
    found = households.by_number(carrier, account_no)
    return _return(resident, set(found.residents) if found else set())


def _return(resident: str, owners: set[str] | set[str | None]) -> str:
    """Give the proven account its number back and end this one; returns its id.

    Raises `AccountInUse` when this account has entries, and `ProofNotAccepted`: the same for a
    wrong proof, for nothing to return to, and after too many tries.
    """
    if book.head(resident).seq:
        raise AccountInUse()
    # Counted first: five tries at once are five tries.
    allowed = accounts.count_claim(resident)
    former = next((one for one in accounts.set_aside(resident) if one in owners), None)
    if former is None or not allowed:
        raise ProofNotAccepted()
    accounts.take_back(resident, former)
    tokens.close_all(resident)
    return former
