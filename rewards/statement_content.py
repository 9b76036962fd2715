"""What a merchant's statement says: the moves of a period added up, its fee and who owes whom."""

from collections.abc import Iterable
from datetime import date, datetime
from fractions import Fraction
from typing import Any

from accounting import clock, storage
from points import terms, valuing
from rewards import takings
from rewards.merchants import Merchant

FEE_BASE = 10_000


def of_moves(
    merchant: Merchant,
    days: tuple[date, date],
    cutoff: datetime,
    rows: list[storage.Doc],
    carried_fen: int,
) -> dict[str, Any]:
    """The statement of the moves `rows`: plain JSON values, money in fen.

    `days` are the first and the last of the period. The fee is rounded once for the whole
    statement, half up, and shared among the funders by largest remainder. A negative total is
    carried into the merchant's next statement.
    """
    first, last = days
    face_fen = sum(row["fen"] for row in rows)
    fee_fen = half_up(face_fen * merchant.fee_basis_points, FEE_BASE)
    by_funder = _sums(pair for row in rows for pair in row["funder_split"])
    fees = valuing.shares(fee_fen, by_funder) if face_fen else dict.fromkeys(by_funder, 0)
    total_fen = face_fen - fee_fen + carried_fen
    scans = [row for row in rows if row["kind"] != takings.CORRECTED]
    titles = {row["reward_id"]: row["title"] for row in scans}
    return {
        "merchant_id": merchant.id,
        "merchant_name": merchant.name,
        "from": first.isoformat(),
        "to": last.isoformat(),
        "closed_at": clock.iso(cutoff),
        "vouchers": sum(row["kind"] == takings.USED for row in rows),
        "refunds": sum(row["kind"] == takings.REFUNDED for row in rows),
        "face_value_fen": face_fen,
        "fee_basis_points": merchant.fee_basis_points,
        "fee_fen": fee_fen,
        "brought_forward_fen": carried_fen,
        "payable_fen": max(total_fen, 0),
        "carried_forward_fen": min(total_fen, 0),
        "lines": [
            {
                "funder": funder,
                "face_value_fen": fen,
                "fee_fen": fees[funder],
                "net_fen": fen - fees[funder],
            }
            for funder, fen in by_funder.items()
        ],
        "points": _points_retired(rows),
        "transfers": _transfers(rows),
        "by_store": _table("store_id", _sums((row["store_id"], row["fen"]) for row in scans)),
        "by_reward": [
            {"title": titles[reward], **line}
            for line in _table("reward_id", _sums((row["reward_id"], row["fen"]) for row in scans))
            for reward in [line["reward_id"]]
        ],
        "by_day": _table(
            "day", _sums((clock.city_day(row["at"]).isoformat(), row["fen"]) for row in rows)
        ),
        "credit_notes": _credit_notes(rows),
    }


def _points_retired(rows: list[storage.Doc]) -> list[dict[str, Any]]:
    """By funder of the points: how many these vouchers were bought with, and their face value.

    That retires a liability of theirs. Rounded once for each line, half up.
    """
    points = _sums(pair for row in rows for pair in row["points"])
    known = terms.current()
    return [
        {
            "funder": funder,
            "points": count,
            "fen_per_1000_points": known.face_value(funder),
            "value_fen": half_up(count * known.face_value(funder), valuing.POINTS_PER_PRICE),
        }
        for funder, count in points.items()
    ]


def _transfers(rows: list[storage.Doc]) -> list[dict[str, Any]]:
    """What the funders of points owe the funders of the rewards those points bought, in fen.

    The reward's funders pay the merchant the face value; who issued the points pays them what the
    points are worth, shared like the face value. So the difference stays with the reward's funders.
    Rounded once for each pair, half up.
    """
    known = terms.current()
    exact: dict[tuple[str, str], Fraction] = {}
    for row in rows:
        # Of a reward without a face value the first funder is its funder.
        weights = dict(row["funder_split"]) if row["fen"] else {row["funder_split"][0][0]: 1}
        for issuer, points in row["points"]:
            worth = Fraction(points * known.face_value(issuer), valuing.POINTS_PER_PRICE)
            for funder, weight in weights.items():
                if funder != issuer:
                    share = worth * weight / sum(weights.values())
                    exact[issuer, funder] = exact.get((issuer, funder), Fraction(0)) + share
    return [
        {"from": issuer, "to": funder, "value_fen": half_up(fen.numerator, fen.denominator)}
        for (issuer, funder), fen in sorted(exact.items())
    ]


def _credit_notes(rows: list[storage.Doc]) -> list[dict[str, Any]]:
    """Corrections, and refunds of scans that an earlier statement has settled."""
    scans = {(row["voucher_id"], row["number"]) for row in rows if row["kind"] == takings.USED}
    return [
        {
            "id": row["_id"],
            "voucher_id": row["voucher_id"],
            "face_value_fen": row["fen"],
            "reason": row["reason"],
        }
        for row in rows
        if row["kind"] != takings.USED and (row["voucher_id"], row["number"]) not in scans
    ]


def _sums(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for name, amount in pairs:
        sums[name] = sums.get(name, 0) + amount
    return dict(sorted(sums.items()))


def _table(name: str, sums: dict[str, int]) -> list[dict[str, Any]]:
    return [{name: key, "face_value_fen": fen} for key, fen in sums.items()]


def half_up(numerator: int, denominator: int) -> int:
    """The nearest integer; of two equally near ones the one farther from zero."""
    whole = (2 * abs(numerator) + denominator) // (2 * denominator)
    return whole if numerator >= 0 else -whole
