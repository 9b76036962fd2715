"""How fast work goes lately and how long it worked, as numbers and as stages of an update. Pure.

Beside the count of what is done stand a few marks of the last minute: how much was done when. The
rate is measured from the oldest mark to the newest step, so a job that slows down says so soon. A
pause is no work: who takes the job up begins its marks anew, and a gap longer than a lease, which
only a pause can be, counts as no more than a lease.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

MARK_EVERY = timedelta(seconds=5)
# With one every five seconds: the last minute.
MARKS_MAX = 13
# Rates are kept in thousandths of a unit a second.
MILLI = 1_000

Expression = dict[str, Any]


def begun(now: datetime) -> Expression:
    """What is set when a worker takes a job up."""
    return {"stepped_at": now, "marks": [{"at": now, "done": "$done"}]}


def stepped(now: datetime, done: int, pause: timedelta) -> Expression:
    """What is set when `done` has been reached; a gap beyond `pause` was none of work."""
    gap_ms = {"$subtract": [now, {"$ifNull": ["$stepped_at", now]}]}
    pause_ms = _ms(pause)
    here = [{"at": now, "done": done}]
    since_mark_ms = {"$subtract": [now, {"$last": "$marks.at"}]}
    longer = {"$slice": [{"$concatArrays": ["$marks", here]}, -MARKS_MAX]}
    marks = {
        "$switch": {
            "branches": [
                {"case": {"$eq": [{"$size": "$marks"}, 0]}, "then": here},
                {"case": {"$gt": [gap_ms, pause_ms]}, "then": here},
                {"case": {"$gte": [since_mark_ms, _ms(MARK_EVERY)]}, "then": longer},
            ],
            "default": "$marks",
        }
    }
    # Clocks of two workers may differ: no step takes less than no time.
    counted_ms = {"$max": [{"$min": [gap_ms, pause_ms]}, 0]}
    return {
        "stepped_at": now,
        "marks": marks,
        "worked_ms": {"$add": ["$worked_ms", counted_ms]},
    }


def lately_milli(marks: Sequence[Mapping[str, Any]], done: int, at: datetime | None) -> int:
    """Thousandths of a unit a second between the oldest mark and `at`, when `done` was reached."""
    if not marks or at is None:
        return 0
    spent_ms = _ms(at - marks[0]["at"])
    return (done - marks[0]["done"]) * MILLI * 1_000 // spent_ms if spent_ms > 0 else 0


def mean_milli(done: int, worked_ms: int) -> int:
    """Thousandths of a unit a second over all the time worked."""
    return done * MILLI * 1_000 // max(worked_ms, 1)


def seconds_for(left: int, rate_milli: int) -> int | None:
    """How long what is left takes at a rate, rounded up; None if there is no rate."""
    return -(-left * MILLI // rate_milli) if rate_milli > 0 else None


def _ms(span: timedelta) -> int:
    return span // timedelta(milliseconds=1)
