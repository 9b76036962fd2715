"""Who lives in the city: households by blocks of streets, their people, what takes part in what.

Where the numbers come from is in docs/city.md. A household is known from its block alone, so a city
that ends in the middle of a block only lacks the people who are beyond its end.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random

from api.city.chance import Use, pick, stream

# Residents of a block; its last household is cut off at its end.
BLOCK = 120
# Permanent residents by district; the second number is how urban it is, on rides and pipes.
DISTRICTS = (
    ("柯城区", 0.234, 1.4),
    ("江山市", 0.217, 1.0),
    ("龙游县", 0.158, 1.0),
    ("衢江区", 0.145, 0.9),
    ("开化县", 0.126, 0.7),
    ("常山县", 0.120, 0.8),
)
_DISTRICTS = tuple((place, share) for place, (_, share, _) in enumerate(DISTRICTS))
HOUSEHOLD_SIZES = ((1, 0.325), (2, 0.31), (3, 0.18), (4, 0.105), (5, 0.05), (6, 0.03))
MEAN_SIZE = sum(size * share for size, share in HOUSEHOLD_SIZES)

Band = tuple[int, int]
# First and last age, and its share of the population.
AGES: tuple[tuple[Band, float], ...] = (
    ((0, 6), 0.0530),
    ((7, 14), 0.0728),
    ((15, 17), 0.0320),
    ((18, 29), 0.1150),
    ((30, 44), 0.1927),
    ((45, 59), 0.2650),
    ((60, 69), 0.1400),
    ((70, 79), 0.0895),
    ((80, 94), 0.0400),
)
ADULT, OLD = 18, 60
_ADULTS = sum(share for (first, _), share in AGES if first >= ADULT)
FIRST_AGES = tuple((band, share / _ADULTS) for band, share in AGES if band[0] >= ADULT)


def _others() -> tuple[tuple[Band, float], ...]:
    """Ages of whoever is not the first of a household, so that all together are as in `AGES`."""
    firsts, of_first = 1 / MEAN_SIZE, dict(FIRST_AGES)
    return tuple(
        (band, (share - firsts * of_first.get(band, 0.0)) / (1 - firsts)) for band, share in AGES
    )


OTHER_AGES = _others()

# Who has an account at a partner: of 7 to 17, of 18 to 59, from 60 on. Nobody is younger.
YOUNGEST = 7
PARTICIPATION: dict[str, tuple[float, float, float]] = {
    "bank": (0.05, 0.85, 0.45),
    "bus": (0.35, 0.40, 0.60),
    "bike": (0.08, 0.25, 0.06),
    "ev": (0.0, 0.06, 0.01),
    "etc": (0.0, 0.28, 0.06),
    "recycler": (0.05, 0.22, 0.30),
    "health": (0.10, 0.50, 0.25),
}
URBAN_PARTNERS = ("bus", "bike")
PIPED = {"electricity": 1.0, "gas": 0.45, "water": 0.85}


@dataclass(frozen=True, slots=True)
class Household:
    """`first` is the number of its first member and names it; `carriers` have a meter here."""

    first: int
    members: int
    district: int
    carriers: tuple[str, ...]

    def account_no(self, carrier: str) -> str:
        return f"{carrier[0].upper()}{self.first:08d}"


@dataclass(frozen=True, slots=True)
class Person:
    """`keen` is how much more often than others; steps are a median day's."""

    number: int
    age: int
    household: Household
    partners: tuple[str, ...]
    keen: float
    home_km: float
    line: str
    steps: float
    pay_day: int

    @property
    def pays_bills(self) -> bool:
        return self.number == self.household.first

    @property
    def district(self) -> str:
        return DISTRICTS[self.household.district][0]

    def external_id(self, partner: str) -> str:
        return f"{partner}-{self.number:08d}"


STEPS_MEDIAN, STEPS_SIGMA = 5_260, 0.35
KEEN_SIGMA = 0.5


def people(seed: int, residents: int, blocks: Iterable[int] | None = None) -> Iterator[Person]:
    """The residents 1 to `residents`, household by household; those of some blocks, if named."""
    random = Random()
    for household in households(seed, residents, blocks):
        last = min(household.first + household.members - 1, residents)
        for number in range(household.first, last + 1):
            yield _person(stream(random, seed, Use.PERSON, number), number, household)


def blocks_of(residents: int) -> range:
    """The numbers of the blocks in which so many live."""
    return range((residents + BLOCK - 1) // BLOCK)


def households(
    seed: int, residents: int, blocks: Iterable[int] | None = None
) -> Iterator[Household]:
    """Those with a first member in the city; of some of its blocks, if they are named."""
    random = Random()
    for block in blocks_of(residents) if blocks is None else blocks:
        stream(random, seed, Use.HOUSEHOLDS, block)
        district, place = pick(random, _DISTRICTS), block * BLOCK + 1
        end = place + BLOCK
        while place < end:
            members = min(pick(random, HOUSEHOLD_SIZES), end - place)
            carriers = tuple(
                carrier
                for carrier, share in PIPED.items()
                if random.random() < share * (1 if share == 1 else DISTRICTS[district][2])
            )
            if place <= residents:
                yield Household(place, members, district, carriers)
            place += members


def _person(random: Random, number: int, household: Household) -> Person:
    ages = FIRST_AGES if number == household.first else OTHER_AGES
    age = random.randint(*pick(random, ages))
    urban = DISTRICTS[household.district][2]
    group = 0 if age < ADULT else 1 if age < OLD else 2
    partners = []
    for partner, shares in PARTICIPATION.items():
        chance = shares[group] * (urban if partner in URBAN_PARTNERS else 1)
        if random.random() < chance and age >= YOUNGEST:
            partners.append(partner)
    return Person(
        number=number,
        age=age,
        household=household,
        partners=tuple(partners),
        # Its mean is 1.
        keen=random.lognormvariate(-(KEEN_SIGMA**2) / 2, KEEN_SIGMA),
        home_km=min(random.lognormvariate(1.6, 0.5), 25.0),
        line=f"K{random.randint(1, 40)}",
        steps=random.lognormvariate(0, STEPS_SIGMA) * STEPS_MEDIAN,
        pay_day=random.randint(1, 28),
    )
