"""A resident as target groups of campaigns see them: district, when they joined, their grade."""

from collections.abc import Sequence

from accounting import accounts, clock
from footprint import grade
from points.earning import Who

NOBODY_KNOWN = Who(None, clock.city_day(clock.start_of(clock.first_day("1970-01"))), None)


def of(resident: str) -> Who:
    return of_all([resident])[resident]


def of_all(residents: Sequence[str]) -> dict[str, Who]:
    """Many residents in two reads; one who is not known belongs to no target group."""
    grades = grade.newest(residents)
    known = {
        resident: Who(district, clock.city_day(joined_at), grades.get(resident))
        for resident, district, joined_at in accounts.placed(residents)
    }
    return {resident: known.get(resident, NOBODY_KNOWN) for resident in residents}
