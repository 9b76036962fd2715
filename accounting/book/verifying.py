"""Holding every entry against its hash, its lines and the entry before it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from accounting.book.entries import (
    BY_HEAD,
    Head,
    Line,
    State,
    balances_after,
    collection,
    digest,
    sums,
)


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found: how much it read, the totals per unit, and the first broken entry."""

    entries: int
    accounts: int
    totals: dict[str, int]
    problem: str | None


Check = Callable[[State], str | None]


def verify(
    account: str | None = None,
    progress: Callable[[int], None] | None = None,
    checks: Iterable[Check] = (),
) -> Verification:
    """Recompute every hash, sequence, balance and zero sum; stop at the first that does not hold.

    `checks` are the rooms' own: each looks at a state and says in one sentence what is wrong.
    `progress` is called with the number of entries read so far, every 1,000.
    """
    checks = tuple(checks)
    count = accounts = 0
    totals: dict[str, int] = {}
    previous = Head("")
    found = collection().find({"account": account} if account else {})
    for document in found.sort([("account", 1), ("seq", 1)]).hint(BY_HEAD):
        if document["account"] != previous.account:
            previous = Head(document["account"])
            accounts += 1
        count += 1
        wrong = problem(document, previous, checks)
        if wrong is not None:
            name = f"{document['account']} seq {document['seq']}"
            return Verification(count, accounts, totals, f"{name}: {wrong}")
        for unit, _book, amount, _tag in document["lines"]:
            totals[unit] = totals.get(unit, 0) + amount
        previous = Head(
            document["account"],
            document["seq"],
            document["after"],
            document["recorded_at"],
            document["hash"],
        )
        if progress is not None and count % 1_000 == 0:
            progress(count)
    return Verification(count, accounts, totals, None)


def problem(
    document: Mapping[str, Any], previous: Head | None, checks: tuple[Check, ...]
) -> str | None:
    """What is wrong with a stored entry, in one sentence; None for `previous` looks at it alone."""
    if previous is not None and document["seq"] != previous.seq + 1:
        return f"follows seq {previous.seq}, so an entry is missing"
    if previous is not None and document["prev_hash"] != previous.hash:
        return "does not name the hash of the entry before it"
    if document["hash"] != digest(document):
        return "its hash does not match its content"
    lines = tuple(Line(*line) for line in document["lines"])
    if any(total != 0 for total in sums(lines).values()):
        return "its lines do not sum to zero"
    if previous is not None:
        if document["after"]["balances"] != balances_after(previous.after, lines):
            return "its balances do not follow from the entry before it and its lines"
        if previous.recorded_at and document["recorded_at"] < previous.recorded_at:
            return "was recorded before the entry it follows"
    return next((wrong for check in checks if (wrong := check(document["after"]))), None)
