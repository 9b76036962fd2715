"""The nightly proof of the book: one signed root over the newest entry of every account.

    accounts in order -> pages of leaves (account, seq, hash) -> page roots -> root -> signature

A proof is green if everything recorded since the green one before it holds, and every entry that
one named is still there; so a cut tail, a rewritten chain or a missing account shows, even where
every hash fits again. A thirtieth of the accounts is checked from the first entry each night, the
others from the entry that was proved last. Pages are kept by their content: an account that was
quiet costs one entry to read, and a page of quiet accounts is stored once for all nights.

Proofs are only added. Each names the hash of the one before, so none can be taken out between.
"""

import bisect
import hashlib
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import jwt
import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import alarms, book, clock, jobs, merkle, storage, vault, verifying, walks
from accounting.errors import DomainError, NotFound
from accounting.jobs import Failure, Job
from accounting.merkle import Sibling
from accounting.verifying import Broken, Checked, Leaf, Rules, broken

KIND = "proof"
ALARM = "book_not_proven"
GREEN, RED = "green", "red"
STRETCH = 1_000
# So many nights until every account has been checked from its first entry.
NIGHTS = 30
_ALGORITHM = "EdDSA"


class BookNotProven(DomainError):
    """Facts: number (the proof that is red)."""

    code = "book_not_proven"
    en = "Proof {number} of the book is red. Nothing is settled until it is green again."
    zh = "账本第 {number} 号证明未通过，在恢复之前不进行结算。"


@storage.indexed
class ProofDocument(me.Document):
    """One proof; `pages` are (last account, page root), in the order of the accounts."""

    id = me.IntField(primary_key=True)
    job = me.StringField(required=True)
    state = me.StringField(required=True)
    at = me.DateTimeField(required=True)
    accounts = me.IntField(required=True)
    entries = me.IntField(required=True)
    balances = me.DictField()
    root = me.StringField()
    previous = me.StringField()
    problem = me.StringField()
    jws = me.StringField(required=True)
    pages = me.ListField(me.ListField())

    meta = {
        "collection": "proofs",
        "auto_create_index": False,
        "indexes": [{"fields": ["job"], "unique": True}, {"fields": ["state", "-_id"]}],
    }


@storage.indexed
class PageDocument(me.Document):
    """Leaves of accounts next to each other, by the root over them."""

    id = me.StringField(primary_key=True)
    leaves = me.ListField(me.ListField())

    meta = {"collection": "proof_pages", "auto_create_index": False}


@storage.indexed
class DraftDocument(me.Document):
    """A page of a proof that is being made."""

    job = me.StringField(required=True)
    last = me.StringField(required=True)
    page = me.StringField(required=True)
    accounts = me.IntField(required=True)
    entries = me.IntField(required=True)
    balances = me.DictField()
    # How many of its accounts were in the proof before.
    known = me.IntField(required=True)

    meta = {
        "collection": "proof_drafts",
        "auto_create_index": False,
        "indexes": [{"fields": ["job", "last"], "unique": True}],
    }


@dataclass(frozen=True, slots=True)
class Proof:
    """A proof as it is published; `problem` is for operators."""

    id: int
    state: str
    at: datetime
    accounts: int
    entries: int
    balances: dict[str, int]
    root: str | None
    previous: str | None
    problem: str | None
    jws: str


@dataclass(frozen=True, slots=True)
class Inclusion:
    """That an account is in a proof: its leaf, and the siblings up to the root."""

    proof: Proof
    leaf: Leaf
    siblings: tuple[Sibling, ...]


def _proofs() -> storage.AppendOnly:
    return storage.AppendOnly(ProofDocument._get_collection())


def _pages() -> "Collection[storage.Doc]":
    return storage.strong(PageDocument._get_collection())


def _drafts() -> "Collection[storage.Doc]":
    return storage.strong(DraftDocument._get_collection())


# Making one.


def queue(owner: str, *, day: date | None = None) -> Job:
    """A job that proves the book; with a `day` the one job of that night, however often asked."""
    job_id = f"job_{KIND}_{day.isoformat()}" if day is not None else None
    return walks.queue(KIND, owner, {}, job_id, unit=jobs.ACCOUNTS)


def run(job_id: str, rules: Rules) -> Job | None:
    """Carry the job to its end: one proof, green or red, however often it is cut off."""

    def work(job: Job, accounts: Sequence[str]) -> walks.Totals:
        proved = _leaves(pages, accounts)
        tonight = (before.id if before else 0) % NIGHTS
        found = verifying.check(
            accounts, rules, proved, whole=lambda account: _night_of(account) == tonight
        )
        _draft(job.id, found, known=len(proved))
        return {"accounts": len(accounts), "entries": found.entries}

    def end(job: Job) -> None:
        if _proofs().find_one({"job": job.id}, {"_id": 1}) is not None:
            return
        drafts = list(_drafts().find({"job": job.id}).sort("last", 1))
        if before is not None and sum(row["known"] for row in drafts) != before.accounts:
            _refuse_missing(pages)
        balances: Counter[str] = Counter()
        for row in drafts:
            balances.update(row["balances"])
        _add(
            job.id,
            GREEN,
            accounts=sum(row["accounts"] for row in drafts),
            entries=sum(row["entries"] for row in drafts),
            balances={name: balances[name] for name in sorted(balances) if balances[name]},
            pages=[[row["last"], row["page"]] for row in drafts],
        )

    try:
        before = newest(GREEN)
        pages = _index(before)
        done = walks.run(job_id, work, end, book.accounts_after, stretch=STRETCH)
    except Broken as found:
        _add(job_id, RED, problem=str(found))
        alarms.sound(ALARM, "book", job=job_id, problem=str(found))
        job = jobs.get(job_id)
        assert job is not None, "jobs are never deleted"
        said = str(found)
        jobs.fail(job, Failure("book_broken", said, f"账本校验不通过：{said}"))
        done = jobs.get(job_id)
    if done is not None:
        _drafts().delete_many({"job": job_id})
    return done


def _night_of(account: str) -> int:
    return zlib.crc32(account.encode()) % NIGHTS


def _draft(job_id: str, found: Checked, *, known: int) -> None:
    """Keep a page of the proof that is being made; one made again replaces what it overlaps."""
    leaves = [list(leaf) for leaf in found.leaves]
    page = merkle.root([_hash(leaf) for leaf in found.leaves]).hex()
    # An empty page cannot be: there are entries, or the account would not have been found.
    _pages().update_one({"_id": page}, {"$setOnInsert": {"leaves": leaves}}, upsert=True)
    _drafts().delete_many({"job": job_id, "last": {"$gte": found.leaves[0].account}})
    _drafts().insert_one(
        {
            "job": job_id,
            "last": found.leaves[-1].account,
            "page": page,
            "accounts": len(leaves),
            "entries": sum(leaf.seq for leaf in found.leaves),
            "balances": dict(found.balances),
            "known": known,
        }
    )


def _add(job_id: str, state: str, **content: Any) -> None:
    """Sign and add the proof of a job, once; the number is the next one."""
    while _proofs().find_one({"job": job_id}, {"_id": 1}) is None:
        last = newest()
        pages = content.get("pages", [])
        root = merkle.root([bytes.fromhex(page) for _, page in pages]).hex()
        said = {
            "number": last.id + 1 if last else 1,
            "state": state,
            "at": clock.now(),
            "accounts": content.get("accounts", 0),
            "entries": content.get("entries", 0),
            "balances": content.get("balances", {}),
            "root": root if state == GREEN else None,
            "previous": hashlib.sha256(last.jws.encode()).hexdigest() if last else None,
        }
        row = {
            "_id": said["number"],
            **{name: value for name, value in said.items() if name != "number"},
            "job": job_id,
            "problem": content.get("problem"),
            "jws": _signed(said),
            "pages": pages,
        }
        try:
            _proofs().insert_one(row)
        except DuplicateKeyError:
            continue  # Another proof took the number: this one names that as the one before.


def _signed(said: Mapping[str, Any]) -> str:
    at: datetime = said["at"]
    payload = {**said, "at": at.isoformat(timespec="milliseconds")}
    key, kid = vault.signing_key(), vault.key_id()
    return jwt.encode(payload, key, _ALGORITHM, headers={"kid": kid, "typ": "tanhui-proof"})


def _hash(leaf: Leaf) -> bytes:
    return merkle.leaf(f"{leaf.account}\n{leaf.seq}\n{leaf.hash}".encode())


# Reading.


def newest(state: str | None = None) -> Proof | None:
    """The newest proof, or the newest of a state."""
    wanted = {"state": state} if state is not None else {}
    found = _proofs().find_one(wanted, {"pages": 0}, sort=[("_id", -1)])
    return _proof(found) if found else None


def listed(*, before: int | None, limit: int) -> list[Proof]:
    """Proofs, newest first, from below a number."""
    wanted = {"_id": {"$lt": before}} if before is not None else {}
    found = _proofs().find(wanted, {"pages": 0}).sort("_id", -1).limit(limit)
    return [_proof(row) for row in found]


def require_green() -> None:
    """Raise `BookNotProven` if the newest proof is red; before the first there is nothing to say.

    For whoever is about to pay by what the book says.
    """
    last = newest()
    if last is not None and last.state == RED:
        raise BookNotProven(number=last.id)


def proved(accounts: Sequence[str]) -> dict[str, Leaf]:
    """What the newest green proof says of some accounts, in order; new ones are left out."""
    return _leaves(_index(newest(GREEN)), accounts)


def inclusion(account: str) -> Inclusion:
    """How to see that an account is in the newest green proof; raises `NotFound`."""
    proof = newest(GREEN)
    pages = _index(proof)
    place = bisect.bisect_left(pages, account, key=lambda page: page[0])
    if proof is None or place == len(pages):
        raise NotFound()
    leaves = _page(pages[place][1])
    inside = next((i for i, leaf in enumerate(leaves) if leaf.account == account), None)
    if inside is None:
        raise NotFound()
    within = merkle.path([_hash(leaf) for leaf in leaves], inside)
    above = merkle.path([bytes.fromhex(page) for _, page in pages], place)
    return Inclusion(proof, leaves[inside], (*within, *above))


_Pages = Sequence[tuple[str, str]]


def _index(proof: Proof | None) -> _Pages:
    """The pages of a green proof; raises `Broken` if they are not what was signed."""
    if proof is None:
        return []
    found = _proofs().find_one({"_id": proof.id}, {"pages": 1})
    pages = [(last, page) for last, page in found["pages"]] if found else []
    root = merkle.root([bytes.fromhex(page) for _, page in pages]).hex()
    if root != _read(proof).get("root"):
        raise Broken(f"proof {proof.id} is not what was signed")
    return pages


def _read(proof: Proof) -> dict[str, Any]:
    """What the signature of a proof stands for; nothing if it is not ours."""
    try:
        return jwt.decode(
            proof.jws,
            vault.signing_key().public_key(),
            algorithms=[_ALGORITHM],
        )
    except jwt.InvalidTokenError:
        return {}


def _leaves(pages: _Pages, accounts: Sequence[str]) -> dict[str, Leaf]:
    """The leaves of some accounts, which are in order."""
    first = bisect.bisect_left(pages, accounts[0], key=lambda page: page[0])
    last = bisect.bisect_left(pages, accounts[-1], key=lambda page: page[0])
    wanted = set(accounts)
    return {
        leaf.account: leaf
        for _, page in pages[first : last + 1]
        for leaf in _page(page)
        if leaf.account in wanted
    }


def _page(page: str) -> list[Leaf]:
    """The leaves of a page, which is what its name says, or it is no proof of anything."""
    found = _pages().find_one({"_id": page})
    leaves = [Leaf(*leaf) for leaf in found["leaves"]] if found else []
    if merkle.root([_hash(leaf) for leaf in leaves]).hex() != page:
        raise Broken(f"page {page} of the last proof is not what was signed")
    return leaves


def _refuse_missing(pages: _Pages) -> None:
    """Name the first account of the proof before that has no entries any more."""
    for _, page in pages:
        leaves = _page(page)
        there = book.heads(leaf.account for leaf in leaves)
        for leaf in leaves:
            if leaf.account not in there:
                raise broken(leaf.account, leaf.seq, "was proved, and is gone with its account")


def _proof(row: storage.Doc) -> Proof:
    return Proof(id=row["_id"], **{name: row[name] for name in Proof.__slots__ if name != "id"})
