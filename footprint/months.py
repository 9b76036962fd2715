"""The entries of one resident-month, as replaying takes them."""

from accounting import book, clock
from footprint.replay import Posted, window


def posted(account: str, month: str) -> list[Posted]:
    """The account's entries of a month and of the days whose trips may overlap its own."""
    return [
        Posted(noted.seq, noted.cap_day, clock.city_day(noted.recorded_at), noted.refs)
        for noted in book.on_days(account, *window(month))
    ]
