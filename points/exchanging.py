"""Points of a trip that better evidence replaces: the difference moves, and nobody gets into debt.

The record that stays is worth its own points. What its forerunners earned counts towards them,
funder by funder, so that matured points stay mature; only differences are issued or taken back.
What was to be taken and is not there any more is waived, for good, and the entry says how much.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from footprint import methodology
from footprint.held import Trip
from footprint.replay import Change
from points import earning, restating
from points.earning import Part
from points.wallet import Wallet


@dataclass(frozen=True, slots=True)
class Forerunner:
    """A credited record that is about to be replaced.

    `changes` undo it and what restatements made of it, `parts` are who paid for it first, `stands`
    what they pay today.
    """

    changes: tuple[Change, ...]
    parts: tuple[Part, ...]
    stands: tuple[Part, ...]
    over: datetime
    maturity: timedelta

    @property
    def back(self) -> list[Part]:
        """Its parts, negated: what counters of campaigns lose."""
        return [part._replace(points=-part.points) for part in self.parts]


def forerunners(account: str, trips: Iterable[Trip]) -> list[Forerunner]:
    """What stands of the trips of an account; read after the head, like all that decides."""
    found = []
    for trip in trips:
        refs = trip.refs
        stands = restating.standing(account, trip.seq, trip.day, refs)
        behaviour = methodology.version(refs["methodology"]).behaviours[refs["behaviour"]]
        found.append(
            Forerunner(
                changes=(_undone(trip), *stands.changes),
                parts=earning.parts_of(refs),
                stands=stands.parts,
                over=refs["end"] or refs["start"],
                maturity=behaviour.maturity,
            )
        )
    return found


def exchange(
    wallet: Wallet,
    replaces: Sequence[Forerunner],
    parts: Iterable[Part],
    *,
    over: datetime,
    maturity: timedelta,
) -> int:
    """Bring the wallet from what the forerunners earned to `parts`; returns the points waived.

    What is missing of one funder's points is given less of the others', so that the resident never
    has more than the larger of the two.
    """
    more: dict[str, int] = {}
    for part in parts:
        more[part.funder] = more.get(part.funder, 0) + part.points
    for one in replaces:
        for part in one.stands:
            more[part.funder] = more.get(part.funder, 0) - part.points
    missing = 0
    for funder in sorted(more):
        if more[funder] < 0:
            first = replaces[0]
            moved = wallet.adjust(more[funder], funder, over=first.over, maturity=first.maturity)
            missing += moved - more[funder]
    for funder in sorted(more):
        if more[funder] > 0:
            kept = min(more[funder], missing)
            missing -= kept
            wallet.adjust(more[funder] - kept, funder, over=over, maturity=maturity)
    return missing


def changes(replaces: Iterable[Forerunner], waived: int) -> list[Change]:
    """What changes about the replaced entries, by cell; what was waived stays where it was."""
    left: list[Change] = []
    for change in (change for one in replaces for change in one.changes):
        part = min(max(-change.points, 0), waived)
        left.append(change._replace(points=change.points + part, waived=change.waived + part))
        waived -= part
    assert waived == 0, "no more is waived than was earned"
    return left


def _undone(trip: Trip) -> Change:
    refs = trip.refs
    return Change(
        seq=trip.seq,
        day=trip.day,
        behaviour=refs["behaviour"],
        evidence=refs["evidence"],
        bank_grade=refs["bank_grade"],
        mg=-refs["mg"],
        points=-refs["points"],
        activities=-1,
    )
