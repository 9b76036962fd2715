"""Grade policies as versioned data, and the loader that refuses a bad file naming the field.

A policy is one TOML file: those in `policies/` ship with the product, others are published by
operators (`footprint/policy_versions.py`) and come from the provider the process installs.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from accounting import toml_tables
from accounting.grading import UNRATED, Policy
from accounting.quantities import MG_PER_KG
from accounting.toml_tables import VERSION, Table

# What the contract, the banks' terms and the residents' app know by name, from the lowest.
GRADES = ("light", "mid", "deep")
# Only what a partner signed or a sensor recorded can ever count for a bank.
EVIDENCE = ("A", "B")
MONTHS_MAX = 36
GRADINGS_MAX = 12
LABEL_CHARS_MAX = 32

_FOLDER = Path(__file__).parent / "policies"


class PolicyError(Exception):
    """A grade policy was refused; the message names file, grade and field."""


def load(text: str, name: str) -> Policy:
    """Read and check one policy; `name` is what errors call it. Raises `PolicyError`."""
    top = toml_tables.read(text, name, PolicyError, "the grade policy")
    months_back = top.positive("months_back", MONTHS_MAX)
    cut_offs: list[tuple[int, str]] = []
    labels: dict[str, dict[str, str]] = {}
    tables = top.take("grade", list)
    if len(tables) != len(GRADES):
        raise top.wrong("grade", f"needs the {len(GRADES)} grades {', '.join(GRADES)}")
    for place, (expected, raw) in enumerate(zip(GRADES, tables, strict=True), start=1):
        grade = top.inside(f"{name}: grade {place}", raw)
        if grade.take("name", str) != expected:
            raise grade.wrong("name", f"must be {expected!r}: grades stand in order, lowest first")
        cut_offs.append((_from_mg(grade, cut_offs), expected))
        labels[expected] = _label(grade)
        grade.close()
    unrated = top.table(UNRATED)
    labels[UNRATED] = _label(unrated)
    unrated.close()
    policy = Policy(
        version=top.matching("version", VERSION),
        months_back=months_back,
        cut_offs=tuple(cut_offs),
        share_num=top.positive("share_percent", 100),
        share_den=100,
        active_months_min=top.natural("active_months_min", months_back + 1),
        gradings_below=top.positive("gradings_below", GRADINGS_MAX),
        labels=labels,
        evidence=top.strings("evidence", EVIDENCE),
        valid_from=top.day("valid_from"),
    )
    if not policy.evidence or len(set(policy.evidence)) < len(policy.evidence):
        raise top.wrong("evidence", f"must list some of {', '.join(EVIDENCE)}, each once")
    top.close()
    return policy


def _from_mg(grade: Table, below: list[tuple[int, str]]) -> int:
    """Where a grade begins, in milligrams: zero for the lowest, then upwards."""
    kg = grade.maybe_decimal("from_kg")
    if kg is None:
        raise grade.wrong("from_kg", "is missing")
    if kg > toml_tables.NUMBER_MAX:
        raise grade.wrong("from_kg", f"must not exceed {toml_tables.NUMBER_MAX}")
    mg = kg * MG_PER_KG
    if mg != mg.to_integral_value():
        raise grade.wrong("from_kg", f"must have at most 6 places, not {kg}")
    if not below and mg != 0:
        raise grade.wrong("from_kg", f"must be 0 for the lowest grade, not {kg}")
    if below and mg <= below[-1][0]:
        raise grade.wrong("from_kg", f"must lie above that of {below[-1][1]!r}, not {kg}")
    return int(mg)


def _label(table: Table) -> dict[str, str]:
    label = table.table("label")
    texts = {language: label.take(language, str).strip() for language in ("zh", "en")}
    for language, text in texts.items():
        if not 0 < len(text) <= LABEL_CHARS_MAX:
            raise label.wrong(language, f"must have 1 to {LABEL_CHARS_MAX} characters")
    label.close()
    return texts


@lru_cache(maxsize=1)
def _texts() -> dict[str, str]:
    """The policies that ship with the product, by version."""
    texts = {file.name: file.read_text(encoding="utf-8") for file in sorted(_FOLDER.glob("*.toml"))}
    return {load(text, name).version: text for name, text in texts.items()}


@lru_cache(maxsize=1)
def shipped() -> tuple[Policy, ...]:
    """Every policy that ships with the product, oldest first."""
    policies = [load(text, version) for version, text in _texts().items()]
    return tuple(sorted(policies, key=lambda policy: policy.valid_from))


def shipped_text(version: str) -> str:
    """The text of a policy that ships with the product: what a draft begins from."""
    return _texts()[version]


Provider = Callable[[], tuple[Policy, ...]]
_published: Provider = tuple


def install(provider: Provider) -> None:
    """Let `provider` say which policies operators have published."""
    global _published
    _published = provider


def known() -> tuple[Policy, ...]:
    """Every policy, shipped or published, oldest first."""
    return tuple(sorted((*shipped(), *_published()), key=lambda policy: policy.valid_from))
