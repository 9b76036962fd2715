"""Posting: one ask, or many in a fixed number of round trips, each judged on the newest state."""

import random
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta

from bson.raw_bson import RawBSONDocument
from pymongo.errors import DuplicateKeyError

from accounting import alarms, clock, storage
from accounting.book.entries import (
    BY_DAY,
    NOTED_FIELDS,
    Ask,
    Decide,
    Entry,
    Head,
    Noted,
    Posted,
    Result,
    Wanted,
    between,
    collection,
    entry_of,
    id_of,
    next_entry,
    noted_of,
    on_days,
)
from accounting.book.reading import by_key, head, heads
from accounting.errors import AccountBusy, DomainError, KeyReused

POST_ATTEMPTS_MAX = 12
# Rounds of a batch after which the accounts that still lose are posted one ask at a time.
BATCH_ROUNDS_MAX = 3
BATCH_MAX = 5_000
# Day ranges that one query of a batch tells apart; beyond, they are read as one.
RANGES_MAX = 50
# How far a clock may be behind the newest entry of an account before somebody has to look at it.
SKEW_MAX = timedelta(seconds=1)
SKEW_TOLD_EVERY_S = 60.0
SKEWED = "clock_skew"
_PAUSE_S = 0.004
_PAUSE_MAX_S = 0.25
_skew_told_s = -SKEW_TOLD_EVERY_S


def post(ask: Ask, decide: Decide) -> Posted:
    """Record one ask and return its entry, or the entry an earlier try of it wrote.

    `decide` is pure but for `Head.on_days`, this account's own entries. It is judged on the newest
    state, again on every lost race. A refusal it raises leaves no entry; a retry after success gets
    its answer before any refusal. Raises `KeyReused` for the same key with other content and
    `AccountBusy` after a bounded number of lost races.
    """
    for attempt in range(POST_ATTEMPTS_MAX):
        before = head(ask.account)
        now = _following(before, clock.now())
        try:
            entry, document = next_entry(ask, before, decide(before, now), now)
        except DomainError:
            earlier = _replayed(ask)
            if earlier is not None:
                return earlier
            raise
        try:
            collection().insert_one(document)
        except DuplicateKeyError:
            # Either this very key was posted before, or somebody took the sequence number.
            earlier = _replayed(ask)
            if earlier is not None:
                return earlier
            time.sleep(random.uniform(0, min(_PAUSE_S * 2**attempt, _PAUSE_MAX_S)))
            continue
        return Posted(entry, replayed=False)
    raise AccountBusy(retry_after=1)


def post_many(wanted: Sequence[Wanted]) -> list[Result]:
    """Record many asks in a fixed number of round trips; the results are in their order.

    Each is judged like by `post`: asks of one account one after the other, in their order, each on
    the state the one before left. A refusal is that ask's result and nobody else's. What lost its
    account to another writer is judged again, at last through `post`.
    """
    assert len(wanted) <= BATCH_MAX, len(wanted)
    results: dict[int, Result] = {}
    left = list(range(len(wanted)))
    for _ in range(BATCH_ROUNDS_MAX):
        left = _round(wanted, left, results)
        if not left:
            break
        # Some of what is left may be there: that is one way of losing.
        left = _answered(wanted, left, results)
    for place in left:
        try:
            results[place] = post(wanted[place].ask, wanted[place].decide)
        except DomainError as refusal:
            results[place] = refusal
    return [results[place] for place in range(len(wanted))]


@dataclass(slots=True)
class _Chain:
    """What a round decided for one account: entries that follow one another, and refusals.

    `places` are its asks in order, `drafts` the entries with the place each is for.
    """

    places: list[int]
    drafts: list[tuple[int, Entry, RawBSONDocument]] = field(default_factory=list)
    refused: dict[int, DomainError] = field(default_factory=dict)
    again: list[int] = field(default_factory=list)
    written: int = 0


def _round(wanted: Sequence[Wanted], left: list[int], results: dict[int, Result]) -> list[int]:
    """Judge and insert what is left, filling in results; returns what has to be judged again."""
    chains: dict[str, _Chain] = {}
    for place in left:
        chains.setdefault(wanted[place].ask.account, _Chain([])).places.append(place)
    befores, days = heads(chains), _DaysRead(wanted, left)
    now = clock.now()
    for account, chain in chains.items():
        _decide_chain(wanted, chain, befores.get(account) or Head(account), days, now)
    # Before anything is written, so that a later ask of the batch with the same key is not meant.
    refused = [place for chain in chains.values() for place in chain.refused]
    _answered(wanted, refused, results)
    # A later entry of an account must never lie behind a lost one. So the first of each account
    # goes in by itself: whoever lost is known, and the others' entries follow in order.
    first = [chain for chain in chains.values() if chain.drafts]
    for place in _insert([chain.drafts[0][2] for chain in first], ordered=False):
        first[place].written = 1
    rest = [(chain, draft) for chain in first if chain.written for draft in chain.drafts[1:]]
    for place in _insert([draft[2] for _, draft in rest], ordered=True):
        rest[place][0].written += 1
    for chain in chains.values():
        for place, entry, _ in chain.drafts[: chain.written]:
            results[place] = Posted(entry, replayed=False)
    return _unsettled(chains.values(), results)


def _decide_chain(
    wanted: Sequence[Wanted], chain: _Chain, before: Head, days: "_DaysRead", now: datetime
) -> None:
    keys = set()
    before = replace(before, days=days)
    for place in chain.places:
        ask = wanted[place].ask
        if ask.key in keys:
            # The answer is the entry drafted here a moment ago, once it is written.
            chain.again.append(place)
            continue
        then = _following(before, now)
        try:
            entry, document = next_entry(ask, before, wanted[place].decide(before, then), then)
        except DomainError as refusal:
            chain.refused[place] = refusal
            continue
        keys.add(ask.key)
        chain.drafts.append((place, entry, document))
        days.add(entry)
        before = Head(ask.account, entry.seq, entry.after, then, entry.hash, days)


def _unsettled(chains: Iterable[_Chain], results: dict[int, Result]) -> list[int]:
    """What must be judged again: all of an account from what it lost, and keys asked for twice.

    A refusal is a result unless it rested on what was lost.
    """
    again: list[int] = []
    for chain in chains:
        lost = chain.drafts[chain.written][0] if chain.written < len(chain.drafts) else None
        for place in chain.places:
            if place in results:
                continue
            if place in chain.again or (lost is not None and place >= lost):
                again.append(place)
            else:
                results[place] = chain.refused[place]
    return sorted(again)


def _answered(wanted: Sequence[Wanted], places: list[int], results: dict[int, Result]) -> list[int]:
    """Answer what an earlier try wrote, all found in one query; returns what nobody wrote."""
    if not places:
        return []
    asks = {id_of(wanted[place].ask.account, wanted[place].ask.key): place for place in places}
    accounts = {wanted[place].ask.account for place in places}
    found = collection().find({"_id": {"$in": list(asks)}, "account": {"$in": list(accounts)}})
    earlier = {document["_id"]: entry_of(document) for document in found}
    nobody = []
    for place in places:
        ask = wanted[place].ask
        entry = earlier.get(id_of(ask.account, ask.key))
        if entry is None:
            nobody.append(place)
        elif entry.fingerprint != ask.fingerprint:
            results[place] = KeyReused(key=ask.key)
        else:
            results[place] = Posted(entry, replayed=True)
    return nobody


def _insert(documents: list[RawBSONDocument], *, ordered: bool) -> list[int]:
    """Insert entries; returns the places of those written."""
    return storage.insert_new(collection(), documents, ordered=ordered)


class _DaysRead:
    """The entries of a batch's accounts on the days its rules look back on, read at once.

    What the batch itself decides is added as it goes; days nobody named are read when asked for.
    """

    def __init__(self, wanted: Sequence[Wanted], places: list[int]) -> None:
        self.ranges: dict[str, tuple[date, date]] = {}
        self.stored: dict[str, list[Noted]] = {}
        self.added: dict[str, list[Noted]] = {}
        for place in places:
            days, account = wanted[place].days, wanted[place].ask.account
            if days is not None:
                first, last = self.ranges.get(account, days)
                self.ranges[account] = (min(first, days[0]), max(last, days[1]))
        if self.ranges:
            self._read()

    def __call__(self, account: str, first: date, last: date) -> list[Noted]:
        known = self.ranges.get(account)
        if known is not None and known[0] <= first and last <= known[1]:
            stored = self.stored.get(account, [])
        else:
            stored = on_days(account, first, last)
        since, until = first.isoformat(), last.isoformat()
        return [
            noted
            for noted in (*stored, *self.added.get(account, ()))
            if since <= noted.cap_day <= until
        ]

    def add(self, entry: Entry) -> None:
        if entry.cap_day is not None:
            noted = Noted(entry.seq, entry.kind, entry.cap_day, entry.recorded_at, entry.refs)
            self.added.setdefault(entry.account, []).append(noted)

    def _read(self) -> None:
        by_range: dict[tuple[date, date], list[str]] = {}
        for account, days in self.ranges.items():
            by_range.setdefault(days, []).append(account)
        if len(by_range) > RANGES_MAX:
            whole = (min(days[0] for days in by_range), max(days[1] for days in by_range))
            by_range = {whole: list(self.ranges)}
        wanted = [
            {"account": {"$in": accounts}, "cap_day": between(*days)}
            for days, accounts in by_range.items()
        ]
        found = collection().find({"$or": wanted}, NOTED_FIELDS).hint(BY_DAY)
        for document in found.sort([("account", 1), ("seq", 1)]):
            self.stored.setdefault(document["account"], []).append(noted_of(document))


def _following(before: Head, now: datetime) -> datetime:
    """Now, or the instant of the entry before where our clock is behind the one that wrote it.

    More than a second of that is an alarm: one of the two clocks is wrong.
    """
    global _skew_told_s
    if before.recorded_at is None or before.recorded_at <= now:
        return now
    behind = before.recorded_at - now
    if behind > SKEW_MAX and time.monotonic() - _skew_told_s > SKEW_TOLD_EVERY_S:
        _skew_told_s = time.monotonic()
        behind_ms = behind // timedelta(milliseconds=1)
        alarms.sound(SKEWED, socket.gethostname(), behind_ms=behind_ms, account=before.account)
    return before.recorded_at


def _replayed(ask: Ask) -> Posted | None:
    earlier = by_key(ask.account, ask.key)
    if earlier is None:
        return None
    if earlier.fingerprint != ask.fingerprint:
        raise KeyReused(key=ask.key)
    return Posted(earlier, replayed=True)
