"""What tills have taken in: the fen of each scan and refund, in the book and by merchant.

An entry on the resident's account owes the merchant the face value, paid by the funders of the
reward, or takes it back. A row of `till_moves` then says the same by merchant; settlement reads
those and holds them against the book. `unbooked_since` stays on the voucher until both are written,
so whatever a crash leaves half-way is finished by the same scan sent again or by the sweeper.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import book as the_book
from accounting import clock, events, storage, sweeping
from accounting.book import Ask, Decision, Entry, Head, Line
from accounting.clients import Kind
from accounting.errors import AccountBusy
from accounting.events import Happening, Type
from points.wallet import Wallet
from rewards import vouchers
from rewards.vouchers import Scan, Voucher

UNBOOKED_MAX = 500
USED, REFUNDED, CORRECTED = "used", "refunded", "corrected"


@storage.indexed
class MoveDocument(me.Document):
    """One scan, refund or correction as the book has it, found by merchant.

    Corrections have no voucher, store or reward.
    """

    id = me.StringField(primary_key=True)
    kind = me.StringField(required=True)
    # Which scan of its voucher, from 1; a refund has the number of its scan.
    number = me.IntField()
    merchant_id = me.StringField(required=True)
    store_id = me.StringField()
    terminal_ref = me.StringField()
    voucher_id = me.StringField()
    reward_id = me.StringField()
    title = me.DictField()
    # Signed: a refund takes back.
    fen = me.IntField(required=True)
    funder_split = me.ListField(me.ListField())
    # (funder, points) of the lots the voucher was bought with.
    points = me.ListField(me.ListField())
    reason = me.StringField()
    at = me.DateTimeField(required=True)
    account = me.StringField(required=True)
    seq = me.IntField(required=True)
    recorded_at = me.DateTimeField(required=True)
    # The statement that has settled it.
    statement = me.StringField()

    meta = {
        "collection": "till_moves",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["merchant_id", "statement", "recorded_at"]},
            {"fields": ["statement", "_id"]},
            # What no statement has yet, and since when.
            {"fields": ["statement", "recorded_at", "merchant_id"]},
        ],
    }


def moves() -> "Collection[storage.Doc]":
    """Scans and refunds by merchant, for settlement."""
    return storage.strong(MoveDocument._get_collection())


def book(voucher: Voucher) -> Voucher:
    """Bring every scan and refund of a voucher into the book and among the merchant's moves."""
    if voucher.unbooked_since is None:
        return voucher
    for move in _moves_of(voucher):
        _keep_move(voucher, move, _post(voucher, move))
    last = len(voucher.scans) - 1
    vouchers.rows().update_one(
        {
            "_id": voucher.id,
            "scans": {"$size": last + 1},
            f"scans.{last}.refunded_at": voucher.scans[last].refunded_at,
        },
        {"$unset": {"unbooked_since": ""}},
    )
    return replace(voucher, unbooked_since=None)


def book_if_free(voucher: Voucher) -> Voucher:
    """`book`, and leave it to the sweep where others write the account: a till does not wait."""
    try:
        return book(voucher)
    except AccountBusy:
        return voucher


def book_unbooked(before: datetime) -> int:
    """Book the scans and refunds a crash left without their fen; returns how many vouchers."""
    wanted = {"unbooked_since": {"$lt": before}}
    found = vouchers.rows().find(wanted).sort("unbooked_since", 1).limit(UNBOOKED_MAX)
    return sweeping.each("scan", [vouchers.of_row(row) for row in found], book)


def correct(
    merchant_id: str, fen: int, funder: str, *, reference: str, reason: str, by: str
) -> str:
    """Owe a merchant more or less than its scans say; returns the id of the move.

    On the merchant's own account, in the period that is open: what is settled stays as it is. The
    same `reference` again gives the first one, and with other content raises `KeyReused`.
    """
    entry = the_book.post(
        Ask(
            account=merchant_id,
            key=f"correction:{reference}",
            kind="adjust",
            fingerprint=the_book.fingerprint("correction", fen, funder, reason),
            occurred_at=clock.now(),
        ),
        lambda head, now: Decision(
            lines=(
                Line("fen", f"payable:{merchant_id}", fen),
                Line("fen", f"funded:{funder}", -fen),
            ),
            after={},
            refs={
                "merchant": merchant_id,
                "funder": funder,
                "fen": fen,
                "reason": reason,
                "by": by,
            },
        ),
    ).entry
    return _keep_correction(entry)


def catch_up(merchant_id: str) -> None:
    """Write the moves of corrections that a crash left in the book alone."""
    for entry in the_book.entries(merchant_id):
        _keep_correction(entry)


def _keep_correction(entry: Entry) -> str:
    refs, move = entry.refs, f"{entry.account}:{entry.key}"
    row: storage.Doc = {
        "_id": move,
        "kind": CORRECTED,
        "number": None,
        "merchant_id": entry.account,
        "store_id": None,
        "terminal_ref": None,
        "voucher_id": None,
        "reward_id": None,
        "title": None,
        "fen": refs["fen"],
        "funder_split": [[refs["funder"], refs["fen"]]],
        "points": [],
        "reason": refs["reason"],
        "at": entry.occurred_at,
    }
    keep(row, entry)
    return move


class _Move(NamedTuple):
    """A scan (sign 1) or its refund (sign -1), with its key in the book."""

    key: str
    kind: str
    number: int
    sign: int
    scan: Scan
    at: datetime


def _moves_of(voucher: Voucher) -> Iterator[_Move]:
    for number, scan in enumerate(voucher.scans, start=1):
        key = f"voucher:{voucher.id}:{number}"
        yield _Move(f"{key}:{USED}", USED, number, 1, scan, scan.used_at)
        if scan.refunded_at is not None:
            yield _Move(f"{key}:{REFUNDED}", REFUNDED, number, -1, scan, scan.refunded_at)


def _post(voucher: Voucher, move: _Move) -> Entry:
    """Owe the merchant the face value, paid by the reward's funders; on the resident's account."""
    return the_book.post(
        Ask(
            account=voucher.resident,
            key=move.key,
            kind="adjust",
            fingerprint=the_book.fingerprint("till", move.key),
            occurred_at=move.at,
        ),
        lambda head, now: _decide(voucher, move, head, now),
    ).entry


def _decide(voucher: Voucher, move: _Move, head: Head, now: datetime) -> Decision:
    wallet = Wallet.load(head.after)
    wallet.advance(now)
    fen = move.sign * voucher.face_value_fen
    paid = [
        Line("fen", f"funded:{funder}", -move.sign * part)
        for funder, part in voucher.funder_split
        if part
    ]
    owed = [Line("fen", f"payable:{voucher.merchant_id}", fen)] if fen else []
    return Decision(
        lines=(*owed, *paid, *wallet.lines),
        after={"wallet": wallet.dump()},
        refs={
            "voucher": voucher.id,
            "redemption": voucher.redemption_id,
            "merchant": voucher.merchant_id,
            "store": move.scan.store_id,
            "fen": fen,
        },
    )


def _keep_move(voucher: Voucher, move: _Move, entry: Entry) -> None:
    row: storage.Doc = {
        "_id": move.key,
        "kind": move.kind,
        "number": move.number,
        "merchant_id": voucher.merchant_id,
        "store_id": move.scan.store_id,
        "terminal_ref": move.scan.terminal_ref,
        "voucher_id": voucher.id,
        "reward_id": voucher.reward_id,
        "title": voucher.title,
        "fen": move.sign * voucher.face_value_fen,
        "funder_split": [[funder, move.sign * part] for funder, part in voucher.funder_split],
        "points": [[funder, move.sign * points] for funder, points in voucher.points],
        "reason": None,
        "at": move.at,
    }
    _tell(voucher, move)
    keep(row, entry)


def _tell(voucher: Voucher, move: _Move) -> None:
    """Leave word of a scan or its refund, for the merchant and for operators."""
    type_ = Type.VOUCHER_USED if move.kind == USED else Type.VOUCHER_REFUNDED
    data = {
        "voucher_id": voucher.id,
        "reward_id": voucher.reward_id,
        "merchant_id": voucher.merchant_id,
        "store_id": move.scan.store_id,
        "terminal_ref": move.scan.terminal_ref,
        "fen": move.sign * voucher.face_value_fen,
    }
    parties = (events.party(Kind.MERCHANT, voucher.merchant_id), events.OPERATORS)
    told = (f"voucher:{voucher.id}", move.key, data)
    events.leave(*[Happening(party, type_, *told) for party in parties])


def keep(row: storage.Doc, entry: Entry) -> None:
    """Write a move beside the entry that booked it, once."""
    row |= {
        "account": entry.account,
        "seq": entry.seq,
        "recorded_at": entry.recorded_at,
        "statement": None,
    }
    # An earlier try of the same move may have written it.
    with contextlib.suppress(DuplicateKeyError):
        moves().insert_one(row)
