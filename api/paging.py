"""Lists in pages: a cursor is the signed place of the last row, so inserts shift nothing.

A cursor of one list is no cursor of another, and nobody can make one: the place inside is trusted.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any, TypeVar

import marshmallow as ma
from flask import request
from itsdangerous import BadData, URLSafeSerializer
from marshmallow import fields, validate

from accounting import vault
from api.numbers import Digits, Schema
from api.problems import Invalid

LIMIT_DEFAULT = 20
LIMIT_MAX = 100
CURSOR_CHARS_MAX = 1_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

Place = tuple[Any, ...]
Row = TypeVar("Row")


class PageQuery(Schema):
    """`?limit=` and `?cursor=`; a list with filters of its own inherits from this."""

    limit = Digits(load_default=LIMIT_DEFAULT, validate=validate.Range(1, LIMIT_MAX))
    cursor = fields.String(validate=validate.Length(max=CURSOR_CHARS_MAX))


def page_of(item: type[ma.Schema]) -> type[ma.Schema]:
    """The answer of a list of `item`s."""
    return type(
        f"{item.__name__}Page",
        (ma.Schema,),
        {
            "items": fields.List(fields.Nested(item), required=True),
            "next_cursor": fields.String(required=True, allow_none=True),
        },
    )


def place(wanted: dict[str, Any]) -> Place | None:
    """Where the page begins: the sort values of the last row seen; None at the start.

    Raises `Invalid` on a cursor that is not ours or belongs to another list.
    """
    cursor = wanted.get("cursor")
    if not cursor:
        return None
    try:
        values = _signer().loads(cursor)
    except BadData:
        raise Invalid([("/cursor", "Not a valid page cursor.")]) from None
    return tuple(_unpacked(value) for value in values)


def page(rows: Sequence[Any], wanted: dict[str, Any], of: Callable[[Any], Place]) -> dict[str, Any]:
    """The answer made of `limit + 1` rows: the one too many says whether there is a next page.

    `of` gives the sort values of a row: text, integers and instants.
    """
    shown = rows[: wanted["limit"]]
    more = len(rows) > wanted["limit"]
    cursor = _signer().dumps([_packed(value) for value in of(shown[-1])]) if more else None
    return {"items": list(shown), "next_cursor": cursor}


def newest(
    wanted: dict[str, Any],
    find: Callable[..., Sequence[Row]],
    shown: Callable[[Row], Any] | None = None,
    *,
    by: Callable[[Row], Any] = attrgetter("id"),
) -> dict[str, Any]:
    """One page of the rows that `find(before=..., limit=...)` finds, newest first.

    They are sorted by `by`, which is unique; `shown` is what the answer says of each.
    """
    at = place(wanted)
    rows = find(before=at[0] if at else None, limit=wanted["limit"] + 1)
    answer = page(rows, wanted, lambda row: (by(row),))
    return answer | {"items": [shown(row) for row in answer["items"]]} if shown else answer


def beyond(names: Sequence[str], at: Place | None, *, oldest_first: bool = False) -> dict[str, Any]:
    """The MongoDB condition for rows after a place, in the order of `names` (all one direction).

    The last name must be unique, or rows could be skipped.
    """
    if at is None:
        return {}
    assert len(names) == len(at), (names, at)
    step = "$gt" if oldest_first else "$lt"
    return {
        "$or": [
            {**dict(zip(names[:count], at, strict=False)), names[count]: {step: at[count]}}
            for count in range(len(names))
        ]
    }


def find(
    collection: Any,
    condition: dict[str, Any],
    wanted: dict[str, Any],
    *names: str,
    oldest_first: bool = False,
) -> dict[str, Any]:
    """One page straight from a collection, newest first, sorted by `names` (the last one unique).

    The index of the list must end in `names`; `condition` may not use `$or` itself.
    """
    direction = 1 if oldest_first else -1
    rows = list(
        collection.find({**condition, **beyond(names, place(wanted), oldest_first=oldest_first)})
        .sort([(name, direction) for name in names])
        .limit(wanted["limit"] + 1)
    )
    return page(rows, wanted, lambda row: tuple(row[name] for name in names))


def _signer() -> URLSafeSerializer:
    # The path is in the salt, so the cursor of one list, or of one plant, opens no other.
    return URLSafeSerializer(vault.derive("cursor"), salt=request.path)


def _packed(value: Any) -> Any:
    if isinstance(value, datetime):
        return {"ms": (value - _EPOCH) // _MILLISECOND}
    assert isinstance(value, str | int), value
    return value


def _unpacked(value: Any) -> Any:
    return _EPOCH + value["ms"] * _MILLISECOND if isinstance(value, dict) else value
