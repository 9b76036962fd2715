"""The indexes that documents declare, against those that are there; the missing are built.

Building goes on beside the service: MongoDB locks a collection only at the beginning and the end of
a build, and a majority of the members is enough to commit it, so one that lags holds up nobody.
Nothing is dropped unless that is asked for: while two releases run, the older may need it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import bson
import mongoengine as me
from pymongo import IndexModel
from pymongo.errors import OperationFailure

from accounting import storage

MISSING, DIFFERENT, EXTRA = "missing", "different", "extra"
# What an index is besides its name: the rest (version, background) changes nothing of what it does.
_MATTERS = (
    "unique",
    "sparse",
    "expireAfterSeconds",
    "partialFilterExpression",
    "collation",
    "hidden",
)

Definition = Mapping[str, Any]
Tell = Callable[["Finding"], None]


class NotBuilt(Exception):
    """An index cannot be built on the data as it is: one sentence."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One index that is not as it is declared; `present` is None for a missing one."""

    kind: str
    collection: str
    name: str
    declared: Definition | None
    present: Definition | None


def declared() -> dict[str, list[Definition]]:
    """What the documents of all imported rooms declare, by collection."""
    found: dict[str, list[Definition]] = {}
    for document in storage.documents():
        if issubclass(document, me.Document):
            models = [_model(spec) for spec in document._meta["index_specs"]]  # type: ignore[attr-defined]
            name = document._get_collection_name()  # type: ignore[attr-defined]
        else:
            models, name = document.indexes(), document.name  # type: ignore[attr-defined]
        found.setdefault(name, []).extend(model.document for model in models)
    return found


def present(names: Iterable[str]) -> dict[str, list[Definition]]:
    """The indexes of collections but that of `_id`; none for a collection that is not there."""
    database = storage.database()
    return {
        name: [dict(one) for one in database[name].list_indexes() if one["name"] != "_id_"]
        for name in names
    }


def compare(
    wanted: Mapping[str, list[Definition]], there: Mapping[str, list[Definition]]
) -> list[Finding]:
    """What is missing, different or extra, by collection and name.

    Different is what has the name or the keys of a declared one and is not it: MongoDB takes no
    second one beside it.
    """
    found: list[Finding] = []
    for collection in sorted(wanted):
        left = list(there.get(collection, ()))
        lacking: list[Definition] = []
        for one in wanted[collection]:
            same = next(
                (other for other in left if _name_and_all(other) == _name_and_all(one)), None
            )
            if same is None:
                lacking.append(one)
            else:
                left.remove(same)
        for one in lacking:
            other = next((it for it in left if _clash(it, one)), None)
            if other is not None:
                left.remove(other)
            kind = MISSING if other is None else DIFFERENT
            found.append(Finding(kind, collection, one["name"], one, other))
        found += [Finding(EXTRA, collection, other["name"], None, other) for other in left]
    return found


def differences() -> list[Finding]:
    """What is not as declared, now."""
    wanted = declared()
    return compare(wanted, present(wanted))


def build(tell: Tell = lambda finding: None, *, drop: bool, replace: bool) -> list[Finding]:
    """Build what is missing, and with `drop` or `replace` take away what is extra or different.

    Returns what is left as it was. A different one is dropped before its successor is built; for
    that time it guards nothing. Raises `NotBuilt`.
    """
    left: list[Finding] = []
    for finding in differences():
        collection = storage.database()[finding.collection]
        if finding.kind == EXTRA and not drop:
            left.append(finding)
            continue
        if finding.kind == DIFFERENT and not (drop or replace):
            left.append(finding)
            continue
        tell(finding)
        if finding.present is not None:
            collection.drop_index(finding.present["name"])
        if finding.declared is not None:
            options = {name: value for name, value in finding.declared.items() if name != "key"}
            model = IndexModel(list(finding.declared["key"].items()), **options)
            try:
                collection.create_indexes([model], commitQuorum="majority")
            except OperationFailure as error:
                raise NotBuilt(
                    f"the index {finding.name} of {finding.collection} cannot be built: "
                    f"{error.details['errmsg'] if error.details else error}"
                ) from None
    return left


def describe(definition: Definition) -> str:
    """One line for people."""
    keys = ", ".join(f"{name} {way}" for name, way in definition["key"].items())
    more = [f"{name} {definition[name]}" for name in _MATTERS if definition.get(name)]
    return "; ".join([keys, *more])


def _model(spec: Mapping[str, Any]) -> IndexModel:
    options = {name: value for name, value in spec.items() if name not in ("fields", "cls")}
    return IndexModel(spec["fields"], **options)


def _all(definition: Definition) -> tuple[Any, ...]:
    keys = [(name, way) for name, way in definition["key"].items()]
    # An option that is off is as good as one that is not there, but zero seconds are not.
    options = {name: definition.get(name) for name in _MATTERS if definition.get(name) is not False}
    # As MongoDB keeps them: an instant has no zone there.
    return keys, bson.encode({name: it for name, it in options.items() if it is not None})


def _name_and_all(definition: Definition) -> tuple[Any, ...]:
    return definition["name"], _all(definition)


def _clash(there: Definition, wanted: Definition) -> bool:
    filters = [one.get("partialFilterExpression") or {} for one in (there, wanted)]
    same_filter = bson.encode(filters[0]) == bson.encode(filters[1])
    same_keys = list(there["key"].items()) == list(wanted["key"].items())
    return bool(there["name"] == wanted["name"] or (same_keys and same_filter))
