"""Reading the book: heads, entries, an account as it stood, and what is recorded from now on."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from pymongo.change_stream import ChangeStream

from accounting import storage
from accounting.book.entries import Entry, Head, collection, entry_of, id_of


def head(account: str) -> Head:
    """The newest state of an account, read from the primary."""
    found = collection().find_one(
        {"account": account},
        {"seq": 1, "after": 1, "recorded_at": 1, "hash": 1},
        sort=[("seq", -1)],
    )
    if found is None:
        return Head(account)
    return Head(account, found["seq"], found["after"], found["recorded_at"], found["hash"])


def by_key(account: str, key: str) -> Entry | None:
    found = collection().find_one({"_id": id_of(account, key), "account": account})
    return entry_of(found) if found else None


def by_keys(keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Entry]:
    """Entries by (account, key), without `after`, in one query: some hundreds at most."""
    wanted = list(keys)
    if not wanted:
        return {}
    ids = [id_of(account, key) for account, key in wanted]
    accounts = list({account for account, _ in wanted})
    found = collection().find({"_id": {"$in": ids}, "account": {"$in": accounts}}, {"after": 0})
    return {(entry.account, entry.key): entry for entry in map(entry_of, found)}


def kinds(account: str, keys: Iterable[str]) -> dict[str, str]:
    """The kinds of an account's entries by their keys, as far as there are any; one query."""
    ids = {id_of(account, key): key for key in keys}
    found = collection().find({"_id": {"$in": list(ids)}, "account": account}, {"kind": 1})
    return {ids[document["_id"]]: document["kind"] for document in found} if ids else {}


def entries(
    account: str, *, after_seq: int = 0, before_seq: int | None = None, limit: int = 0
) -> Iterator[Entry]:
    """The account's entries, oldest first; with `before_seq`, newest first from below it."""
    if before_seq is None:
        wanted: dict[str, Any] = {"$gt": after_seq}
        direction = 1
    else:
        wanted = {"$gt": after_seq, "$lt": before_seq}
        direction = -1
    found = collection().find({"account": account, "seq": wanted})
    for document in found.sort("seq", direction).limit(limit):
        yield entry_of(document)


def at(places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], Entry]:
    """Entries by (account, seq), in one query: a few hundred at most."""
    wanted = [{"account": account, "seq": seq} for account, seq in places]
    found = map(entry_of, collection().find({"$or": wanted})) if wanted else ()
    return {(entry.account, entry.seq): entry for entry in found}


def as_of(account: str, instant: datetime) -> Head:
    """The account as it stood at an instant: its last entry recorded at or before it."""
    found = collection().find_one(
        {"account": account, "recorded_at": {"$lte": instant}}, sort=[("seq", -1)]
    )
    if found is None:
        return Head(account)
    return Head(account, found["seq"], found["after"], found["recorded_at"], found["hash"])


def heads(accounts: Iterable[str]) -> dict[str, Head]:
    """The newest states of many accounts in one read; an account without entries is left out."""
    return _heads(heads_pipeline({"$in": list(accounts)}))


def heads_after(account: str, limit: int) -> dict[str, Head]:
    """The heads of the next accounts in the order of their ids; "" begins."""
    return _heads([*heads_pipeline({"$gt": account}), {"$limit": limit}])


def heads_pipeline(accounts: storage.Doc) -> list[storage.Doc]:
    """Sorted like the index, so that the planner skips from head to head (a DISTINCT_SCAN)."""
    first = {name: {"$first": f"${name}"} for name in ("seq", "after", "recorded_at", "hash")}
    return [
        {"$match": {"account": accounts}},
        {"$sort": {"account": 1, "seq": -1}},
        {"$group": {"_id": "$account", **first}},
    ]


def head_stage(account: str, name: str) -> storage.Doc:
    """A stage for a pipeline elsewhere: after its rows one of the newest `seq`, if there is one.

    `$lookup` would add it to each row, and takes longer to plan.
    """
    newest: list[storage.Doc] = [
        {"$match": {"account": account}},
        {"$sort": {"seq": -1}},
        {"$limit": 1},
        {"$project": {"_id": 0, name: "$seq"}},
    ]
    return {"$unionWith": {"coll": collection().name, "pipeline": newest}}


def last_seqs(accounts: Iterable[str]) -> dict[str, int]:
    """The newest sequence number of each account that has entries, from the index alone."""
    found = collection().aggregate(
        [
            {"$match": {"account": {"$in": list(accounts)}}},
            {"$sort": {"account": 1, "seq": -1}},
            {"$group": {"_id": "$account", "seq": {"$first": "$seq"}}},
        ]
    )
    return {row["_id"]: row["seq"] for row in found}


def _heads(pipeline: list[storage.Doc]) -> dict[str, Head]:
    return {
        row["_id"]: Head(row["_id"], row["seq"], row["after"], row["recorded_at"], row["hash"])
        for row in collection().aggregate(pipeline)
    }


def count() -> int:
    """About how many entries there are."""
    return collection().estimated_count()


def accounts_after(account: str, limit: int) -> list[str]:
    """The ids of the next accounts that have entries, in their order; "" begins."""
    found = collection().aggregate(
        [
            {"$match": {"account": {"$gt": account}}},
            {"$sort": {"account": 1, "seq": -1}},
            {"$group": {"_id": "$account"}},
            {"$limit": limit},
        ]
    )
    return [row["_id"] for row in found]


def entries_after(seqs: Mapping[str, int]) -> dict[str, list[Entry]]:
    """What several accounts recorded after a sequence number each, oldest first, without `after`.

    For callers who know from the heads that it is not too much at once.
    """
    if not seqs:
        return {}
    wanted = [{"account": account, "seq": {"$gt": seq}} for account, seq in seqs.items()]
    found: dict[str, list[Entry]] = {account: [] for account in seqs}
    for document in collection().find({"$or": wanted}, {"after": 0}):
        found[document["account"]].append(entry_of(document))
    for entries_of_one in found.values():
        entries_of_one.sort(key=lambda entry: entry.seq)
    return found


def documents(account: str, first_seq: int) -> Iterator[storage.Doc]:
    """The entries of an account from a number on as they lie in MongoDB, oldest first."""
    wanted = {"account": account, "seq": {"$gte": first_seq}}
    yield from collection().find(wanted).sort("seq", 1)


def documents_of(first_seqs: Mapping[str, int]) -> dict[str, list[storage.Doc]]:
    """The same of several accounts in one query; for callers who know that it is not too much."""
    found: dict[str, list[storage.Doc]] = {account: [] for account in first_seqs}
    if first_seqs:
        wanted = [{"account": one, "seq": {"$gte": seq}} for one, seq in first_seqs.items()]
        for document in collection().find({"$or": wanted}):
            found[document["account"]].append(document)
    for documents_of_one in found.values():
        documents_of_one.sort(key=lambda document: document["seq"])
    return found


def watch(token: Mapping[str, Any] | None, wait_ms: int) -> "ChangeStream[storage.Doc]":
    """Every entry from now on, or from behind a resume token, in the order of recording.

    Each change has the entry in `fullDocument`, without `after`; see `entry_of`.
    """
    only_entries: list[storage.Doc] = [
        {"$match": {"operationType": "insert"}},
        {"$project": {"fullDocument.after": 0}},
    ]
    return collection().watch(pipeline=only_entries, resume_after=token, max_await_time_ms=wait_ms)
