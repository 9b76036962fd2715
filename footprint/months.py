"""The entries of one resident-month, as replaying takes them."""

from accounting import book, clock
from footprint.replay import Posted, window


def posted(account: str, month: str) -> list[Posted]:
    """The account's entries of a month and of the days whose trips may overlap its own."""
    return [
        Posted(entry.seq, entry.cap_day, clock.city_day(entry.recorded_at), entry.refs)
        for entry in book.on_days(account, *window(month))
        if entry.cap_day is not None
    ]
