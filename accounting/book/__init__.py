"""The book: one append-only collection of double entries, one document an entry.

An entry of an account carries its lines, which sum to zero in each unit, and the account's state
after it. It takes the account's next sequence number; `(account, seq)` and `(account, key)` are
unique. So one insert is the whole transaction: two writers who saw the same state cannot both win,
and a retry finds what its first try wrote. Entries are never updated or deleted; undo is a new
entry that names the old one.

A book whose name has a colon is shared (`issued:city`, `payable:m_1`); one without belongs to the
account (`available`). Shared books have no head: only the account is sequenced.
"""

from accounting.book.entries import (
    LINES_PER_ENTRY_MAX,
    Ask,
    Decide,
    Decision,
    Entry,
    Head,
    Line,
    Noted,
    Posted,
    Result,
    State,
    Wanted,
    balance,
    entry_of,
    fingerprint,
    on_days,
)
from accounting.book.posting import BATCH_MAX, POST_ATTEMPTS_MAX, SKEW_TOLD_EVERY_S, post, post_many
from accounting.book.reading import (
    accounts_after,
    as_of,
    at,
    by_key,
    by_keys,
    count,
    documents,
    documents_of,
    entries,
    entries_after,
    head,
    head_stage,
    heads,
    heads_after,
    heads_pipeline,
    kinds,
    last_seqs,
    watch,
)
from accounting.book.verifying import Check, Verification, problem, verify

__all__ = [
    "BATCH_MAX",
    "LINES_PER_ENTRY_MAX",
    "POST_ATTEMPTS_MAX",
    "SKEW_TOLD_EVERY_S",
    "Ask",
    "Check",
    "Decide",
    "Decision",
    "Entry",
    "Head",
    "Line",
    "Noted",
    "Posted",
    "Result",
    "State",
    "Verification",
    "Wanted",
    "accounts_after",
    "as_of",
    "at",
    "balance",
    "by_key",
    "by_keys",
    "count",
    "documents",
    "documents_of",
    "entries",
    "entries_after",
    "entry_of",
    "fingerprint",
    "head",
    "head_stage",
    "heads",
    "heads_after",
    "heads_pipeline",
    "kinds",
    "last_seqs",
    "on_days",
    "post",
    "post_many",
    "problem",
    "verify",
    "watch",
]
