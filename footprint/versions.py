"""Versions of the methodology that operators publish; see `accounting/publishing.py`.

A factor that a draft names as one of the registry's is there, with that value. A behaviour keeps
its unit and dimension for ever, and is turned off, never left out: quantities that were reported,
and the way back to them, must go on meaning the same.
"""

from datetime import date
from fractions import Fraction

from accounting import factors, publishing, storage
from accounting.errors import ValidationFailed
from accounting.publishing import Register
from footprint import methodology
from footprint.methodology import Methodology, MethodologyError


@storage.indexed
class VersionDocument(publishing.VersionDocument):
    meta = {"collection": "methodology_versions"}


def _check(draft: Methodology, valid_from: date | None) -> None:
    """Raise `MethodologyError` or `ValidationFailed` unless a draft fits the other versions."""
    _check_factors(draft)
    for other in methodology.known():
        if valid_from is None or other.valid_from < valid_from:
            _check_follows(draft, other)
        elif other.version != draft.version:
            _check_follows(other, draft)
    if valid_from is not None and valid_from >= draft.review_by:
        raise ValidationFailed(
            "/valid_from",
            f"Must lie before the draft's review_by, {draft.review_by}.",
            f"应早于草案的复核日期 {draft.review_by}。",
        )


def _check_factors(draft: Methodology) -> None:
    """Refuse a factor of the registry that is not there, or has another value there.

    Such an id begins with a carrier, `electricity/CN-ZJ/2023`; those of the methodology's own
    numbers begin with its name.
    """
    registry = factors.shipped()
    for code, behaviour in draft.behaviours.items():
        named = behaviour.factor_id
        if named.partition("/")[0] not in registry.carriers:
            continue
        place = f"{draft.version}: {code}: factor:"
        factor = registry.find(named)
        if factor is None:
            raise MethodologyError(f"{place} id: {named!r} is not in the factor registry")
        exact = factor.mg_per(factor.per)
        if exact != Fraction(behaviour.mg_num, behaviour.mg_den):
            raise MethodologyError(
                f"{place} mg_num: {named} has {exact} mg a {factor.per} in the factor registry"
            )


def _check_follows(later: Methodology, earlier: Methodology) -> None:
    for code, was in earlier.behaviours.items():
        now = later.behaviours.get(code)
        if now is None:
            raise MethodologyError(
                f"{later.version}: {code}: code: is in {earlier.version} and must stay; "
                "set enabled = false"
            )
        for field in ("unit", "dimension"):
            if getattr(now, field) != getattr(was, field):
                raise MethodologyError(
                    f"{later.version}: {code}: {field}: is {getattr(was, field)!r} in "
                    f"{earlier.version}; another one needs a new code"
                )


register: Register[Methodology] = Register(
    VersionDocument,
    methodology,
    noun="methodology",
    zh="方法学",
    error=MethodologyError,
    check=_check,
    ahead=lambda version: version.window.future,
)
