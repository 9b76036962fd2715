"""What the book comes to at one moment: a root over the newest entries of all accounts, and sums.

It has the shape of a nightly proof (pages of leaves, a root over the page roots), so it says of a
restored book that no account, no last entry and no balance is another than when it was backed up.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import bson
from pymongo.client_session import ClientSession

from accounting import book, merkle, storage

PAGE = 1_000


def summary(session: ClientSession | None, tell: Callable[[], None]) -> dict[str, Any]:
    """Accounts, root and balances by unit/book; a page in memory and 32 bytes a page."""
    # The session carries its own read concern, and the collection's would contradict it.
    entries = storage.database()["entries"]
    after, accounts = "", 0
    pages: list[bytes] = []
    balances: Counter[str] = Counter()
    while True:
        pipeline = [
            *book.heads_pipeline({"$gt": after}),
            {"$limit": PAGE},
            {"$project": {"seq": 1, "hash": 1, "balances": "$after.balances"}},
        ]
        rows = list(entries.aggregate(pipeline, session=session))
        if not rows:
            break
        leaves = [
            merkle.leaf(bson.encode({"leaf": [row["_id"], row["seq"], row["hash"]]}))
            for row in rows
        ]
        pages.append(merkle.root(leaves))
        for row in rows:
            balances.update(row["balances"])
        accounts += len(rows)
        after = rows[-1]["_id"]
        tell()
    return {
        "accounts": accounts,
        "root": merkle.root(pages).hex(),
        "balances": {name: balances[name] for name in sorted(balances) if balances[name]},
    }
