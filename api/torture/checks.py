"""What must be true of the store when everybody has stopped."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from accounting import book, storage
from api.torture.load import FACE_FEN, STOCK, Ledger
from footprint import activities
from points import statements
from points.wallet import consistent
from rewards import catalogue, redemptions, vouchers

ISSUED, CANCELLED = "issued", "cancelled"
HALF_WAY: dict[str, dict[str, Any]] = {
    "activities": {"state": activities.RECEIVED},
    "underway": {},
    "redemptions": {"state": {"$in": list(redemptions.HALF_WAY)}},
    "vouchers": {"unbooked_since": {"$exists": True}},
}
PAGE = 500


def half_way() -> dict[str, int]:
    """How many things a crash left half-way and no sweep has finished yet, by collection."""
    database = storage.database()
    counts = {name: database[name].count_documents(wanted) for name, wanted in HALF_WAY.items()}
    return {name: count for name, count in counts.items() if count}


@dataclass(frozen=True)
class Run:
    """What one run has to be held against."""

    ledger: Ledger
    residents: list[str]
    reward_id: str
    merchant_id: str


def problems(run: Run, tell: Callable[[int], None]) -> list[str]:
    """Everything that is not as it must be, one sentence each."""
    found = [*run.ledger.wrong, *_activities(run), *_redemptions(run), *_scans(run)]
    verified = book.verify(None, tell, (consistent,))
    if verified.problem is not None:
        found.append(f"the book does not hold: {verified.problem}")
    return found


def _activities(run: Run) -> Iterator[str]:
    for name, activity_id in run.ledger.activities.items():
        resident, _, event_id = name.partition("/")
        activity = activities.by_id(activity_id)
        if activity is None:
            yield f"activity {activity_id} was acknowledged and is not there"
        elif (activity.resident, activity.event_id) != (resident, event_id):
            yield f"activity {activity_id} is another than was acknowledged"
        elif activity.mg and activities.entry(activity) is None:
            yield f"activity {activity_id} was credited and has no entry"
    for resident in run.residents:
        # A share of a bill is of no activity.
        earned = [
            entry.refs["activity"]
            for entry in book.entries(resident)
            if entry.kind == "earn" and entry.refs["activity"] is not None
        ]
        if len(earned) != len(set(earned)):
            yield f"an activity of {resident} has two entries"


def _redemptions(run: Run) -> Iterator[str]:
    for redemption_id, (resident, quantity) in run.ledger.redemptions.items():
        kept = redemptions.get(resident, redemption_id)
        wanted = CANCELLED if redemption_id in run.ledger.cancelled else ISSUED
        if (kept.state, kept.quantity) != (wanted, quantity):
            yield f"redemption {redemption_id} is {kept.state}, and was acknowledged as {wanted}"
        if len(vouchers.of_redemption(redemption_id)) != quantity:
            yield f"redemption {redemption_id} has not the vouchers it was answered with"
    issued = 0
    for resident in run.residents:
        held = list(_all_redemptions(resident))
        spent = sum(one.points for one in held if one.state == ISSUED)
        if statements.balance(resident).spent != spent:
            yield f"{resident} spent {statements.balance(resident).spent} for what costs {spent}"
        mine = [one for one in held if (one.reward_id, one.state) == (run.reward_id, ISSUED)]
        issued += sum(one.quantity for one in mine)
    stock = catalogue.reward(run.reward_id)
    if (stock.stock_left, stock.stock_reserved, stock.stock_issued) != (STOCK - issued, 0, issued):
        yield (
            f"of {STOCK} in stock {issued} are with residents, {stock.stock_left} left, "
            f"{stock.stock_reserved} reserved, {stock.stock_issued} issued"
        )


def _scans(run: Run) -> Iterator[str]:
    owed, used = 0, 0
    payable = f"payable:{run.merchant_id}"
    for resident in run.residents:
        ours = {one.id for one in _all_redemptions(resident) if one.reward_id == run.reward_id}
        for redemption_id in ours:
            for voucher in vouchers.of_redemption(redemption_id):
                used += voucher.status == vouchers.USED
                if voucher.id in run.ledger.scanned and voucher.status != vouchers.USED:
                    yield f"voucher {voucher.id} was taken and is {voucher.status}"
        owed += sum(
            line.amount
            for entry in book.entries(resident)
            for line in entry.lines
            if line.book == payable and entry.refs.get("redemption") in ours
        )
    if owed != used * FACE_FEN:
        yield f"{used} vouchers of {FACE_FEN} fen were used, and the book owes {owed} fen"


def _all_redemptions(resident: str) -> Iterator[redemptions.Redemption]:
    before = None
    while found := redemptions.of_resident(resident, before=before, limit=PAGE):
        yield from found
        before = found[-1].id
