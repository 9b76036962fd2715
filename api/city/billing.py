"""Monthly bills of a household: a mean by its size, a year's rhythm, a trend, some noise."""

from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

from accounting import clock
from api.city.chance import Use, among, stream
from api.city.faults import DUPLICATE, UNKNOWN
from api.city.people import Household

Bill = dict[str, Any]

ESTIMATED = "estimated_then_read"
# Of bills. An estimate is followed by the reading that corrects it.
SHARES = ((DUPLICATE, 0.005), (UNKNOWN, 0.003), (ESTIMATED, 0.01))
# A month's use of a household in kWh, m3 or tonnes: this, and so much more for each member.
MEAN = {"electricity": (70.0, 50.0), "gas": (6.0, 4.0), "water": (2.5, 3.0)}
SPREAD = 0.35
# January to December against the year's mean: heating and cooling by electricity, hot water by gas.
SEASON = {
    "electricity": (1.18, 1.08, 0.88, 0.78, 0.78, 0.92, 1.38, 1.48, 1.08, 0.78, 0.78, 0.88),
    "gas": (1.45, 1.40, 1.15, 0.95, 0.85, 0.75, 0.65, 0.65, 0.75, 0.90, 1.10, 1.40),
    "water": (0.92, 0.90, 0.94, 0.98, 1.02, 1.06, 1.14, 1.16, 1.06, 0.98, 0.94, 0.90),
}
NOISE = 0.06
# A household's use goes one way by so much a year, most a little down.
TREND_MEAN, TREND_SIGMA = -0.015, 0.06
# January 2024, as a number of months: there it stands at its mean.
TREND_FROM = 2024 * 12 + 1


def bills(
    random: Random, seed: int, household: Household, carrier: str, month: str, found: Counter[str]
) -> Iterator[Bill]:
    """The bills of one meter for one month; faults are counted in `found`."""
    account = household.account_no(carrier)
    kind = list(MEAN).index(carrier)
    stream(random, seed, Use.BILL, household.first, kind)
    base, each = MEAN[carrier]
    mean = (base + each * household.members) * random.lognormvariate(-(SPREAD**2) / 2, SPREAD)
    trend = random.gauss(TREND_MEAN, TREND_SIGMA)
    months = int(month[:4]) * 12 + int(month[5:])
    stream(random, seed, Use.BILL, household.first, months << 2 | kind)
    rhythm = SEASON[carrier][int(month[5:]) - 1] * random.uniform(1 - NOISE, 1 + NOISE)
    used = mean * rhythm * (1 + trend) ** ((months - TREND_FROM) / 12)
    bill: Bill = {
        "source_event_id": f"{account}-{month}",
        "carrier": carrier,
        "account_no": account,
        "period_start": clock.first_day(month).isoformat(),
        "period_end": clock.last_day(month).isoformat(),
        "quantity": round(used, 1),
        "estimated": False,
    }
    yield from _spoilt(random, bill, found)


def _spoilt(random: Random, bill: Bill, found: Counter[str]) -> Iterator[Bill]:
    fault = among(random.random(), SHARES)
    if fault is None:
        yield bill
        return
    found[fault] += 1
    if fault == DUPLICATE:
        yield bill
        yield bill
    elif fault == UNKNOWN:
        # Accounts of households have a nought behind the letter.
        yield bill | {"account_no": f"{bill['account_no'][0]}9{bill['account_no'][2:]}"}
    else:
        event, guess = bill["source_event_id"], random.uniform(0.8, 1.2)
        told = {"quantity": round(bill["quantity"] * guess, 1), "estimated": True}
        yield bill | told
        yield bill | {"source_event_id": f"{event}-read", "corrects": event}
