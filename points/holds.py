"""Points set aside for a time: held, then spent in whole or in part, or let go.

For whoever must be sure of points before handing something over, and hands it over later than it
asks: a till that weighs first, a shop that ships in parts. (Redemptions hand over at once, so they
spend at once.) What nobody captures or releases in time is free again by itself.

The key a hold was asked with is its name. A hold ends once: whoever asks for the same end again
gets the same entry, whoever asks for another is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from accounting import book, clock
from accounting.book import Ask, Decision, Entry, Head
from accounting.errors import DomainError, KeyReused, NotFound, ValidationFailed
from points.lots import Hold, Lot
from points.wallet import Wallet

TTL_MAX = timedelta(days=7)
KEY_CHARS_MAX = 64


class HoldOver(DomainError):
    code = "hold_over"
    en = "The time of this hold is over, and its points are free again."
    zh = "该笔积分冻结已到期，积分已自动释放。"


class HoldClosed(DomainError):
    code = "hold_closed"
    en = "This hold was captured or released before."
    zh = "该笔积分冻结已被使用或释放。"


@dataclass(frozen=True, slots=True)
class Held:
    """Points of a resident that are set aside until an instant; `key` is the name of the hold."""

    key: str
    points: int
    until: datetime


def hold(resident: str, key: str, points: int, ttl: timedelta, *, purpose: str) -> Held:
    """Set points aside for a time; `purpose` is what the resident reads.

    The same key again gives the same hold, whatever became of it; with other content it raises
    `KeyReused`. Raises `ValidationFailed`, `InsufficientPoints` and `TooManyHolds`.
    """
    _check_points(points)
    if not timedelta(0) < ttl <= TTL_MAX:
        raise ValidationFailed(
            "/ttl", "Must be more than 0, at most 7 days.", "须大于 0 且不超过 7 天。"
        )
    if not 0 < len(key) <= KEY_CHARS_MAX:
        raise ValidationFailed("/key", "Must be 1 to 64 characters.", "长度须为 1 至 64 个字符。")

    def decide(head: Head, now: datetime) -> Decision:
        wallet = Wallet.load(head.after)
        wallet.advance(now)
        held = wallet.hold(key, points, now + ttl)
        refs = {"hold": key, "reason": purpose, "until": now + ttl}
        refs["lots"] = [list(lot) for lot in held.lots]
        return Decision(tuple(wallet.lines), {"wallet": wallet.dump()}, refs)

    asked = book.fingerprint("hold", points, ttl // timedelta(milliseconds=1), purpose)
    entry = book.post(Ask(resident, _begin(key), "hold", asked, clock.now()), decide).entry
    return Held(key, points, entry.refs["until"])


def capture(resident: str, key: str, points: int | None = None, *, reason: str) -> Entry:
    """Spend points of a hold, all of them if not told otherwise; the others are free again.

    Raises `NotFound` for a hold the resident never had, `HoldOver`, `HoldClosed`, and
    `ValidationFailed` for more than was held; then nothing is written.
    """
    if points is not None:
        _check_points(points)

    def end(wallet: Wallet, held: Hold) -> list[Lot]:
        if points is not None and points > held.points:
            raise ValidationFailed(
                "/points", f"At most {held.points} are held.", f"最多冻结了 {held.points} 积分。"
            )
        return wallet.capture(held, held.points if points is None else points)

    return _end(resident, key, "spend", book.fingerprint("capture", points), reason, end)


def release(resident: str, key: str, *, reason: str) -> Entry:
    """Let go of a hold before its time is over. Raises `NotFound`, `HoldOver` and `HoldClosed`."""

    def end(wallet: Wallet, held: Hold) -> list[Lot]:
        wallet.release(held)
        return []

    return _end(resident, key, "release", book.fingerprint("release"), reason, end)


def _end(
    resident: str,
    key: str,
    kind: str,
    asked: str,
    reason: str,
    end: Callable[[Wallet, Hold], list[Lot]],
) -> Entry:
    """End a hold once. What expired while it was held leaves in the same entry."""
    begun = book.by_key(resident, _begin(key))
    if begun is None:
        raise NotFound()

    def decide(head: Head, now: datetime) -> Decision:
        wallet = Wallet.load(head.after)
        wallet.advance(now)
        held = wallet.held(key)
        if held is None:
            raise HoldOver()
        taken = end(wallet, held)
        wallet.advance(now)
        refs = {"hold": key, "reason": reason, "lots": [list(lot) for lot in taken]}
        return Decision(tuple(wallet.lines), {"wallet": wallet.dump()}, refs)

    try:
        return book.post(
            Ask(resident, f"{_begin(key)}:end", kind, asked, clock.now()), decide
        ).entry
    except KeyReused:
        raise HoldClosed() from None


def _begin(key: str) -> str:
    return f"hold:{key}"


def _check_points(points: int) -> None:
    if type(points) is not int or points <= 0:
        raise ValidationFailed("/points", "Must be a whole number above 0.", "须为大于 0 的整数。")
