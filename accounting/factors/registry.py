"""Finding the one factor that applies, and refusing when there is none."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from pathlib import Path

from accounting.errors import DomainError
from accounting.factors.model import Factor, FactorSet, Found, Series
from accounting.factors.reading import OVERLAP, UNREADABLE, Content, FactorsError, Problem, read

_Key = tuple[Series, str, str, str]


class MissingFactor(DomainError):
    """No factor covers what was asked. Facts: carrier, region, on, series, set."""

    code = "missing_factor"
    en = "There is no {series} factor for {carrier} in {region} on {on} in the set {set}."
    zh = "因子集 {set} 中没有 {region} 在 {on} 的 {carrier} 因子（序列 {series}）。"
    # The year's own value may be added tomorrow.
    final = False

    def __init__(self, carrier: str, region: str, on: date, series: str, set: str) -> None:
        super().__init__(carrier=carrier, region=region, on=on.isoformat(), series=series, set=set)


class Registry:
    """All factors of some files, checked as a whole. Reading never changes it."""

    def __init__(self, content: Content) -> None:
        self.factors: tuple[Factor, ...] = tuple(content.factors)
        self.sets: Mapping[str, FactorSet] = content.sets
        self.regions: Mapping[str, Mapping[str, str]] = content.regions
        self.carriers: Mapping[str, Mapping[str, str]] = content.carriers
        self.grace: timedelta = content.grace
        self._by_id = {factor.id: factor for factor in self.factors}
        vintages: dict[_Key, list[Factor]] = defaultdict(list)
        for factor in sorted(self.factors, key=lambda factor: factor.valid_from):
            vintages[_key(factor)].append(factor)
        self._vintages = dict(vintages)

    @classmethod
    def load(cls, files: Iterable[Path]) -> "Registry":
        """Read and check the files: declarations in TOML, factors in CSV.

        Raises `FactorsError` with every problem found, overlapping factors and reused ids included.
        """
        content, problems = read(files)
        problems += _clashes(content)
        if not problems and not content.factors:
            problems = [Problem(UNREADABLE, "the files", None, None, "hold no factor")]
        if problems:
            raise FactorsError(problems)
        return cls(content)

    def lookup(
        self, carrier: str, region: str, on: date, *, series: Series, set: str, today: date
    ) -> Found:
        """The factor for an activity of the city day `on`, judged for staleness on `today`.

        Raises `MissingFactor`; no other region, set, series or year ever answers instead.
        """
        vintages = self._vintages.get((series, carrier, region, set), [])
        place = bisect_right(vintages, on, key=lambda factor: factor.valid_from)
        if place == 0 or not vintages[place - 1].covers(on):
            raise MissingFactor(carrier, region, on, series, set)
        factor = vintages[place - 1]
        return Found(
            factor, factor.provisional(on), factor.stale(today), self.past_grace(factor, today)
        )

    def by_id(self, factor_id: str) -> Factor:
        """A factor as a methodology or a stored result names it. Raises `KeyError`."""
        return self._by_id[factor_id]

    def find(self, factor_id: str) -> Factor | None:
        """The factor of an id, None if the registry does not hold it."""
        return self._by_id.get(factor_id)

    def past_grace(self, factor: Factor, today: date) -> bool:
        """So long past its review date that no result computed with it counts for a bank."""
        return factor.stale(today) and today > factor.review_by + self.grace


def _key(factor: Factor) -> _Key:
    return factor.series, factor.carrier, factor.region, factor.set


def _clashes(content: Content) -> list[Problem]:
    """Ids used twice, and factors of one (series, carrier, region, set) valid on the same day."""
    problems: list[Problem] = []
    ids: dict[str, str] = {}
    latest: dict[_Key, tuple[Factor, str]] = {}
    placed = zip(content.factors, content.places, strict=True)
    for factor, (file, row) in sorted(placed, key=lambda one: one[0].valid_from):
        place = f"{file} row {row}"
        if factor.id in ids:
            why = f"is the id of {ids[factor.id]} already"
            problems.append(Problem(UNREADABLE, file, row, f"{factor.id}: id", why))
        ids[factor.id] = place
        # Only the factor that reaches furthest can still overlap the ones that begin later.
        before, before_place = latest.get(_key(factor), (None, ""))
        if before is not None and (before.valid_to is None or before.valid_to > factor.valid_from):
            why = f"overlaps {before.id} ({before_place})"
            problems.append(Problem(OVERLAP, file, row, f"{factor.id}: valid_from", why))
        if before is None or _end(factor) > _end(before):
            latest[_key(factor)] = (factor, place)
    return problems


def _end(factor: Factor) -> date:
    return factor.valid_to or date.max
