"""Quiet hours in city time. Pure."""

from collections.abc import Mapping
from datetime import datetime, time, timedelta

from accounting import clock


def until(quiet_hours: Mapping[str, str] | None, now: datetime) -> datetime | None:
    """The end of quiet hours (`{"from": "22:00", "to": "07:00"}`) if `now` lies in them."""
    if quiet_hours is None:
        return None
    local = now.astimezone(clock.CITY)
    start = time.fromisoformat(quiet_hours["from"])
    end = time.fromisoformat(quiet_hours["to"])
    at = local.time()
    inside = start <= at < end if start <= end else at >= start or at < end
    if not inside or start == end:
        return None
    morning = local.replace(hour=end.hour, minute=end.minute, second=0, microsecond=0)
    if morning <= local:
        morning += timedelta(days=1)
    return clock.cut(morning)
