"""Two and a half years of monthly bills of some households, with a year's rhythm."""

from random import Random
from typing import Any

from api.demo import story

Bill = dict[str, Any]

MONTHS = 30
# Use against the year's mean, by months back: the rhythm repeats, as a baseline needs.
SEASON = {
    "electricity": (1.0, 0.9, 1.1, 1.3, 1.2, 0.9, 0.8, 0.8, 0.9, 1.1, 1.1, 0.9),
    "gas": (1.1, 0.9, 0.7, 0.6, 0.6, 0.7, 0.9, 1.1, 1.4, 1.5, 1.4, 1.1),
    "water": (1.0, 1.0, 1.1, 1.2, 1.2, 1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 1.0),
}
MEAN = {"electricity": (150, 260), "gas": (12, 28), "water": (8, 17)}
# How the last half year compares with the years before: most save a little.
CHANGE = (0.93, 0.88, 1.06, 0.78, 0.9, 0.97, 0.6, 1.15)
SHARE_WITH = {"electricity": 1, "gas": 2, "water": 2}
THIRD_TIER_KWH = 460


def bills_of(everyone: list[str], random: Random) -> tuple[list[dict[str, Any]], list[Bill]]:
    """Households with their residents, and their bills, oldest month first."""
    homes = [who for who, role in enumerate(everyone, start=1) if role == "deep"]
    households: list[dict[str, Any]] = []
    bills: list[Bill] = []
    for number, who in enumerate(homes):
        members = random.randint(1, 4)
        for carrier, every in SHARE_WITH.items():
            if number % every:
                continue
            account = f"{carrier[0].upper()}-{who}"
            households.append(_household(account, carrier, members, [who]))
            mean = random.uniform(*MEAN[carrier])
            if carrier == "electricity" and number == len(homes) - 1:
                mean = THIRD_TIER_KWH
            bills += _account(account, carrier, mean, CHANGE[number % len(CHANGE)], random)
    walker = everyone.index("walker") + 1
    households.append(_household(story.METER, "electricity", 2, [walker, walker + 1]))
    bills += [_bill(story.METER, "electricity", back, 200) for back in range(MONTHS, 1, -1)]
    bills.append(_bill(story.METER, "electricity", 1, 170))
    return households, bills + _odd(bills)


def _account(account: str, carrier: str, mean: float, change: float, random: Random) -> list[Bill]:
    found = []
    for back in range(MONTHS, 0, -1):
        used = mean * SEASON[carrier][back % 12] * random.uniform(0.95, 1.05)
        if back <= 6:
            used *= change
        found.append(_bill(account, carrier, back, round(used, 1)))
    return found


def _odd(bills: list[Bill]) -> list[Bill]:
    """A repeat, the same month again under another id, a stranger's, a future and a negative one,
    and an estimate with the reading that corrects it."""
    last = bills[-1]
    estimate = _bill("E-1", "electricity", 31, 180) | {"estimated": "true"}
    return [
        dict(last),
        last | {"source_event_id": f"{last['source_event_id']}-again"},
        _bill("E-stranger", "electricity", 1, 120),
        _bill(story.METER, "electricity", -1, 120),
        _bill(story.METER, "electricity", 40, -5),
        estimate,
        _bill("E-1", "electricity", 31, 172)
        | {
            "source_event_id": f"{estimate['source_event_id']}-read",
            "corrects": estimate["source_event_id"],
        },
    ]


def _household(account: str, carrier: str, members: int, who: list[int]) -> dict[str, Any]:
    return {"account_no": account, "carrier": carrier, "members": members, "who": who}


def _bill(account: str, carrier: str, back: int, quantity: float) -> Bill:
    return {
        "source_event_id": f"bill-{account}-{back}",
        "carrier": carrier,
        "account_no": account,
        "month": f"m-{back}",
        "quantity": quantity,
        "estimated": "false",
        "corrects": "",
    }
